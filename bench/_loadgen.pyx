# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A load generator that is no bottleneck: one epoll, C structs, every delivery checked.

One ``Swarm`` holds the connections of one process. Each connection joins one room; whatever arrives
is counted, its seq compared with the one that must come next, and its delay taken from the stamp in
the text. What is said to the server, and how a delivery of it is told, is a ``bench.dialects.Dialect``.
Sending is open-loop: messages leave when they are due, whether or not the server keeps up;
how late the generator itself was is told too, so that a saturated generator is not mistaken for a
slow server.

A swarm that resumes comes back when it is cut off, as a client does: after a pause with full jitter, with the
session that it had and with the last seq that it got; what it misses then is a hole. Delays of those who were
cut are kept apart from the others'.

A ``Crowd`` is a swarm whose connections each belong to somebody: who it is decides when to come, to
speak, to leave and to come back, and hears of what is no message; messages are counted here alone.

Frames from the server are read by ``tornadochat._fastframe``, the same code that reads a member's.
"""

import heapq
import os
import socket

from tornadochat.resume import backoff

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close

from tornadochat._fastframe cimport (
    DECODED_ERROR, DECODED_NOTHING, DECODED_PING, DECODED_TEXT, DECODED_CLOSE,
    decoder_free, decoder_init, decoder_next, decoder_t, frame_t,
)

from tornadochat._poller cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_NOSIGNAL,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, recv, send,
)

cdef extern from *:
    """
    #include <string.h>
    """
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)

cdef enum:
    CONNECTING = 1
    UPGRADING = 2
    JOINING = 3
    JOINED = 4
    FAILED = 5
    PAUSING = 6  # cut off, will come back

cdef enum:
    READ_BYTES = 1 << 18
    MAX_EVENTS = 1024
    # Delays in classes of a sixteenth of an octave from 1 us to 2**36 us.
    CLASSES = 36 * 16
    # While messages are due, connections that come back are looked after this often at least.
    MAX_WAIT_MS = 50

cdef struct peer_t:
    int fd
    uint32_t room
    uint8_t state
    uint8_t step  # answers of the opening that have come
    bint sends
    bint cut  # cut off since the count began, so that its delays are kept apart
    uint8_t attempt  # of coming back
    uint16_t source
    uint32_t epoch  # place in the swarm's list of epochs
    uint64_t next_seq
    int64_t started
    decoder_t decoder


cdef bytes HEAD_END_BYTES = b"\r\n\r\n"
cdef bytes STAMP_BYTES = b'"text":"@'
cdef const char *HEAD_END = HEAD_END_BYTES
cdef const char *STAMP = STAMP_BYTES


cdef inline int64_t now_us() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return at.tv_sec * <int64_t>1000000 + at.tv_nsec // 1000


cdef inline int class_of(int64_t delay) noexcept nogil:
    cdef int octave = 0
    cdef uint64_t value = <uint64_t>delay
    if delay < 16:
        return <int>delay if delay > 0 else 0
    while value >= 32:
        value >>= 1
        octave += 1
    octave = octave * 16 + <int>value
    return octave if octave < CLASSES else CLASSES - 1


cdef inline int64_t take_number(unsigned char **at, unsigned char *end) noexcept nogil:
    """The digits that come next, passed over."""
    cdef int64_t number = 0
    while at[0] < end and 48 <= at[0][0] <= 57:
        number = number * 10 + at[0][0] - 48
        at[0] += 1
    return number


cdef inline int64_t stamp_of(unsigned char *at, unsigned char *end) noexcept nogil:
    return take_number(&at, end)


cdef bytes field(bytes payload, bytes begin, bytes end):
    """What stands between two pieces of a payload; empty where they are not there."""
    cdef bytes rest = payload.partition(begin)[2]
    return rest.partition(end)[0]


def class_limit(int index):
    """Upper limit in microseconds of one class of the histogram."""
    if index < 16:
        return index + 1
    octave, rest = (index - 16) // 16, (index - 16) % 16
    return (rest + 16 + 1) << octave


cdef class Swarm:
    """The connections of one process; not thread-safe.

    Args:
        host, port: Address of the server, an IPv4 literal.
        dialect: What the server speaks.
        path: Request target of the WebSocket; the dialect's own where empty.
        text_bytes: Length of each text; at least 32, since it carries the stamp.
        resumes: Whether whoever is cut off comes back; each session is remembered for that.
    """

    cdef peer_t *peers
    cdef int count, capacity, epoll
    cdef unsigned char *buffer
    cdef object address
    cdef str path, message
    cdef tuple opening
    cdef bytes ping, pong
    cdef bint numbered, resumes
    cdef str resume, resume_path
    cdef list rooms, by_room, sources, epochs, sessions, pauses, came_back
    cdef dict source_numbers, epoch_numbers
    cdef int text_bytes
    cdef uint64_t sent_number
    cdef uint64_t tag
    cdef int cursor
    cdef uint64_t[CLASSES] delays
    cdef uint64_t[CLASSES] cut_delays
    cdef uint64_t[CLASSES] connect_delays
    cdef readonly uint64_t joined, failed, sent, delivered, holes, repeats, errors
    cdef readonly uint64_t bytes_received, closed, refused_sends, bye, retries, truncated
    cdef readonly int64_t worst_lateness_us
    # Where no seq tells, what was sent before is of an earlier load and does not count.
    cdef int64_t counted_from_us
    cdef bytes last_error

    def __cinit__(self, str host, int port, object dialect, list rooms, int capacity, int text_bytes=96, str path="",
                  bint resumes=False):
        self.address = (host, port)
        self.path = path or dialect.path
        self.message = dialect.message
        self.opening = tuple([(said, answer.encode()) for said, answer in dialect.opening])
        self.numbered = dialect.numbered
        self.ping, self.pong = dialect.ping.encode(), dialect.pong.encode()
        self.resumes = resumes
        self.resume, self.resume_path = dialect.resume, dialect.resume_path
        if resumes and not self.resume:
            raise ValueError("nobody can come back with what they have in this dialect")
        self.sources, self.source_numbers = [""], {"": 0}
        self.epochs, self.epoch_numbers = [b""], {b"": 0}
        self.sessions = [b""] * capacity if resumes else []
        self.pauses, self.came_back = [], []
        self.capacity = capacity
        self.rooms = rooms
        self.by_room = [0] * len(rooms)
        self.text_bytes = max(32, text_bytes)
        self.epoll = epoll_create1(0)
        self.peers = <peer_t *>calloc(capacity, sizeof(peer_t))
        self.buffer = <unsigned char *>malloc(READ_BYTES)
        self.tag = int.from_bytes(os.urandom(6), "big")
        self.last_error = b""
        if self.peers == NULL or self.buffer == NULL or self.epoll < 0:
            raise MemoryError("no memory or no file descriptor left for the load generator")

    def __dealloc__(self):
        cdef int i
        if self.peers != NULL:
            for i in range(self.count):
                if self.peers[i].fd >= 0:
                    c_close(self.peers[i].fd)
                decoder_free(&self.peers[i].decoder)
            free(self.peers)
        free(self.buffer)
        if self.epoll >= 0:
            c_close(self.epoll)

    def connect(self, int room, bint sends, str source=""):
        """Begin one connection that will join ``rooms[room]``; ``run`` carries it on."""
        cdef peer_t *peer = &self.peers[self.count]
        if self.count >= self.capacity:
            raise ValueError("more connections than the swarm's capacity")
        peer.fd = -1
        peer.room = room
        peer.sends = sends
        peer.source = self.source_number(source)
        if not self.open(self.count, peer):
            self.failed += 1
            return False
        self.count += 1
        return True

    cdef uint16_t source_number(self, str source):
        if source not in self.source_numbers:
            self.source_numbers[source] = len(self.sources)
            self.sources.append(source)
        return self.source_numbers[source]

    cdef bint open(self, uint32_t index, peer_t *peer) except -1:
        """Open a socket for a connection; False where the kernel has none, or no port for it."""
        cdef epoll_event event
        cdef str source = self.sources[peer.source]
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self.last_error = str(error).encode()
            return False
        if source:
            # Lets the kernel choose the port by the whole four-tuple: 28,000 for each source address.
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(self.address)
        if code not in (0, EINPROGRESS):
            self.last_error = os.strerror(code).encode()
            sock.close()
            return False
        peer.fd = sock.detach()
        peer.state = CONNECTING
        peer.step = 0
        peer.started = now_us()
        decoder_init(&peer.decoder, 1 << 24, False, False)
        event.events = EPOLLOUT
        event.data.u64 = index
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, peer.fd, &event)
        return True

    def run(self, double seconds, double rate=0.0, double phase=0.0):
        """Carry connections on, send ``rate`` messages a second, and count what comes.

        Args:
            seconds: How long; returns a little later.
            rate: Messages a second of the whole swarm, by the connections that send, in turn.
            phase: The first message is due after this share of the time between two of them, so that
                several swarms do not all send at once.
        """
        cdef int64_t begin = now_us(), end = begin + <int64_t>(seconds * 1000000)
        cdef int64_t now = begin, due = end
        cdef double interval = 1000000.0 / rate if rate > 0 else 0.0
        cdef double number = phase
        cdef int ready, i, timeout
        cdef epoll_event[MAX_EVENTS] events
        while now < end:
            if rate > 0:
                due = min(begin + <int64_t>(number * interval), end)
            timeout = <int>max(0, min((due - now + 999) // 1000, MAX_WAIT_MS))
            with nogil:
                ready = epoll_wait(self.epoll, events, MAX_EVENTS, timeout)
            for i in range(ready):
                self.handle(<uint32_t>events[i].data.u64, events[i].events)
            now = now_us()
            if self.pauses:
                self.end_pauses(now)
            while rate > 0 and due <= now and due < end:
                if now - due > self.worst_lateness_us:
                    self.worst_lateness_us = now - due
                self.send_next(due)
                number += 1
                due = begin + <int64_t>(number * interval)

    cdef void pause(self, uint32_t index, peer_t *peer):
        """Come back later; as ``tornadochat.client`` does, with a pause that grows from try to try."""
        peer.state = PAUSING
        heapq.heappush(self.pauses, (now_us() + <int64_t>(<double>backoff(peer.attempt) * 1000000), index))
        if peer.attempt < 255:
            peer.attempt += 1

    cdef void end_pauses(self, int64_t now):
        cdef peer_t *peer
        while self.pauses and self.pauses[0][0] <= now:
            index = heapq.heappop(self.pauses)[1]
            peer = &self.peers[<uint32_t>index]
            if peer.state == JOINING:
                self.say_next(peer)
            elif peer.state == PAUSING:
                self.retries += 1
                if not self.open(index, peer):
                    self.pause(index, peer)

    cdef void handle(self, uint32_t index, uint32_t events):
        cdef peer_t *peer = &self.peers[index]
        if peer.state == CONNECTING:
            self.request(index, peer)
        elif peer.state == UPGRADING:
            self.upgrade(peer)
        elif peer.state in (JOINING, JOINED):
            self.read(peer)

    cdef void fail(self, peer_t *peer):
        cdef epoll_event event
        cdef uint8_t state = peer.state
        if state in (FAILED, PAUSING):
            return
        peer.state = FAILED
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, peer.fd, &event)
        c_close(peer.fd)
        peer.fd = -1
        decoder_free(&peer.decoder)
        if state == JOINED:
            self.closed += 1
            self.joined -= 1
            peer.cut = True
            peer.attempt = 0
        elif not self.resumes or peer.next_seq == 0:
            self.failed += 1  # it has never been in its room
            return
        if self.resumes:
            self.pause(<uint32_t>(peer - self.peers), peer)

    cdef str target(self, uint32_t index, peer_t *peer):
        if self.resumes and self.sessions[index]:
            return self.resume_path % {"session": (<bytes>self.sessions[index]).decode()}
        return self.path % {"room": self.rooms[peer.room]} if "%" in self.path else self.path

    cdef void request(self, uint32_t index, peer_t *peer):
        cdef epoll_event event
        cdef str path = self.target(index, peer)
        cdef bytes data = (
            f"GET {path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        cdef const char *raw = data
        if send(peer.fd, raw, len(data), MSG_NOSIGNAL) != len(data):
            self.fail(peer)
            return
        peer.state = UPGRADING
        event.events = EPOLLIN
        event.data.u64 = index
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, peer.fd, &event)

    cdef void upgrade(self, peer_t *peer):
        # The answer is a few hundred bytes and comes in one piece on loopback; one that does not
        # counts as failed rather than being waited for.
        cdef ssize_t got = recv(peer.fd, self.buffer, READ_BYTES, 0)
        cdef unsigned char *end
        if got <= 12 or memcmp(self.buffer, b"HTTP/1.1 101", 12) != 0:
            if got > 0:
                self.last_error = self.buffer[:min(got, 300)]
            self.fail(peer)
            return
        end = <unsigned char *>memmem(self.buffer, got, HEAD_END, 4)
        if end == NULL:
            self.fail(peer)
            return
        self.upgraded(peer)
        end += 4
        if end < self.buffer + got:
            self.parse(peer, end, self.buffer + got - end)

    cdef void upgraded(self, peer_t *peer):
        """The handshake is done."""
        peer.state = JOINING
        self.say_next(peer)

    cdef void entered(self, peer_t *peer):
        """The connection has joined its room."""
        peer.state = JOINED
        self.joined += 1
        if peer.cut:
            self.came_back.append(now_us())
        else:
            self.connect_delays[class_of(now_us() - peer.started)] += 1

    cdef void say_next(self, peer_t *peer):
        """Say what comes next in the opening; at its end the connection has joined."""
        if peer.step == len(self.opening):
            self.entered(peer)
            return
        said = self.opening[peer.step][0] % {"room": self.rooms[peer.room]}
        if said and self.resumes and peer.next_seq:
            said = self.resume % {
                "room": self.rooms[peer.room], "epoch": self.epochs[peer.epoch].decode(), "seq": peer.next_seq - 1,
            }
        if said and not self.send_text(peer, said.encode()):
            self.fail(peer)

    cdef bint send_text(self, peer_t *peer, bytes payload):
        # A zero mask is allowed and leaves the bytes as they are.
        cdef int size = len(payload)
        head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE, size >> 8, size & 255))
        cdef bytes data = head + b"\0\0\0\0" + payload
        cdef const char *raw = data
        cdef ssize_t done = send(peer.fd, raw, len(data), MSG_NOSIGNAL)
        if 0 < done < len(data):
            self.fail(peer)  # what follows half a frame would not be understood
        return done == len(data)

    cdef void read(self, peer_t *peer):
        cdef ssize_t got
        with nogil:
            got = recv(peer.fd, self.buffer, READ_BYTES, 0)
        if got > 0:
            self.bytes_received += got
            self.parse(peer, self.buffer, got)
        elif got == 0 or errno not in (EAGAIN, EINTR):
            self.fail(peer)

    cdef void parse(self, peer_t *peer, unsigned char *data, size_t size):
        cdef size_t used
        cdef frame_t frame
        cdef int found
        cdef unsigned char[132] pong
        while size > 0 and peer.fd >= 0:
            used = 0
            found = decoder_next(&peer.decoder, data, size, &used, &frame)
            data += used
            size -= used
            if found == DECODED_TEXT:
                self.event(peer, frame.payload, frame.size)
            elif found == DECODED_PING:
                memcpy(pong, b"\x8a\x80\0\0\0\0", 6)
                pong[1] |= <unsigned char>frame.size  # at most 125 bytes, which the decoder sees to
                memcpy(pong + 6, frame.payload, frame.size)
                send(peer.fd, pong, 6 + frame.size, MSG_NOSIGNAL)
            elif found == DECODED_CLOSE or found == DECODED_ERROR:
                self.errors += found == DECODED_ERROR
                self.fail(peer)
                return
            elif found == DECODED_NOTHING:
                return

    cdef void event(self, peer_t *peer, unsigned char *payload, size_t size):
        cdef uint64_t seq = 0
        cdef size_t i = 7
        cdef unsigned char *at
        cdef int64_t stamp
        if not self.numbered:
            at = <unsigned char *>memmem(payload, size, STAMP, 9)
            if at == NULL:
                self.control(peer, payload[:size])
                return
            stamp = stamp_of(at + 9, payload + size)
            if stamp >= self.counted_from_us:
                self.delivered += 1
                self.delays[class_of(now_us() - stamp)] += 1
            return
        if size > 8 and memcmp(payload, b'{"seq":', 7) == 0:
            while i < size and 48 <= payload[i] <= 57:
                seq = seq * 10 + payload[i] - 48
                i += 1
            self.delivered += 1
            if peer.next_seq == 0 or seq == peer.next_seq:
                peer.next_seq = seq + 1
            elif seq > peer.next_seq:
                self.holes += seq - peer.next_seq
                peer.next_seq = seq + 1
            else:
                self.repeats += 1
            at = <unsigned char *>memmem(payload, size, STAMP, 9)
            if at != NULL:
                stamp = now_us() - stamp_of(at + 9, payload + size)
                if peer.cut:
                    self.cut_delays[class_of(stamp)] += 1
                else:
                    self.delays[class_of(stamp)] += 1
            return
        self.control(peer, payload[:size])

    cdef void control(self, peer_t *peer, bytes payload):
        if self.ping and payload == self.ping:
            self.send_text(peer, self.pong)
            return
        if self.numbered and payload.startswith(b'{"type":"joined"'):
            self.enter(peer, payload)
        elif self.resumes and payload.startswith(b'{"type":"welcome"'):
            self.sessions[peer - self.peers] = field(payload, b'"session":"', b'"')
        elif peer.state == JOINING and b'"code":"unavailable"' in payload:
            # The room cannot be read just now; a client asks again when it is told to.
            self.last_error = payload[:300]
            self.retries += 1
            wait = int(field(payload, b'"retry_after_ms":', b"}") or b"1000")
            heapq.heappush(self.pauses, (now_us() + wait * 1000, peer - self.peers))
        elif payload.startswith(b'{"type":"error"'):
            self.errors += 1
            self.last_error = payload[:300]
        elif payload.startswith(b'{"type":"bye"'):
            self.bye += 1
        if peer.state == JOINING and payload.startswith(self.opening[peer.step][1]):
            peer.step += 1
            self.say_next(peer)

    cdef void enter(self, peer_t *peer, bytes payload):
        """Take ``joined`` in: what comes next, and whether it follows what was there before."""
        cdef uint64_t head = int(field(payload, b'"seq":', b","))
        cdef uint64_t first = head + 1 - <uint64_t>int(field(payload, b'"missing":', b","))
        epoch = field(payload, b'"epoch":"', b'"')
        if self.resumes and peer.next_seq:
            self.truncated += b'"truncated":true' in payload
            if first > peer.next_seq:
                self.holes += first - peer.next_seq
        if epoch not in self.epoch_numbers:
            self.epoch_numbers[epoch] = len(self.epochs)
            self.epochs.append(epoch)
        peer.epoch = self.epoch_numbers[epoch]
        if not (self.resumes and peer.next_seq) or first > peer.next_seq:
            peer.next_seq = first

    cdef void send_next(self, int64_t stamp):
        """Send one message from the next connection that may."""
        cdef peer_t *peer
        cdef int _tries
        for _tries in range(self.count):
            peer = &self.peers[self.cursor]
            self.cursor = self.cursor + 1 if self.cursor + 1 < self.count else 0
            if peer.state == JOINED and peer.sends:
                break
        else:
            self.refused_sends += 1
            return
        self.sent_number += 1
        text = f"@{stamp} ".ljust(self.text_bytes, "x")
        message_id = f"{self.tag:012x}{self.sent_number:012x}"
        payload = self.message % {"room": self.rooms[peer.room], "id": message_id, "text": text}
        if self.send_text(peer, payload.encode()):
            self.sent += 1
            self.by_room[peer.room] += 1
        else:
            self.refused_sends += 1

    def room_sizes(self):
        """Joined connections of each room, by index."""
        sizes = [0] * len(self.rooms)
        cdef int i
        for i in range(self.count):
            if self.peers[i].state == JOINED:
                sizes[self.peers[i].room] += 1
        return sizes

    def begin_count(self):
        """A new load begins; what is still under way of an earlier one is left out where it can be told.

        Nobody counts as cut off any more.
        """
        cdef int i
        self.counted_from_us = now_us()
        self.worst_lateness_us = 0
        self.came_back = []
        for i in range(self.count):
            self.peers[i].cut = False

    def sent_by_room(self):
        """Messages sent to each room, by index."""
        return list(self.by_room)

    def heads(self):
        """For each joined connection its room and the seq that it got last."""
        cdef int i
        return [
            (self.peers[i].room, self.peers[i].next_seq - 1)
            for i in range(self.count) if self.peers[i].state == JOINED
        ]

    def returns(self):
        """When each connection that was cut off had joined again, in microseconds of CLOCK_MONOTONIC."""
        return list(self.came_back)

    def away(self):
        """How many are cut off just now, or not yet in their room again."""
        cdef int i
        return sum(1 for i in range(self.count) if self.peers[i].cut and self.peers[i].state != JOINED)

    def histogram(self, str kind="delays"):
        """Deliveries by class of delay, to those who stayed (``delays``) or were ``cut`` off; or ``joins``."""
        cdef int i
        if kind == "joins":
            return [self.connect_delays[i] for i in range(CLASSES)]
        if kind == "cut":
            return [self.cut_delays[i] for i in range(CLASSES)]
        return [self.delays[i] for i in range(CLASSES)]

    def error(self):
        """The last error event or refused handshake, for a person to read."""
        return self.last_error.decode("utf-8", "replace")


cdef class Delays:
    """Delays in microseconds, in the classes of ``class_limit``, with their exact sum and bounds."""

    cdef uint64_t[CLASSES] classes
    cdef uint64_t[CLASSES] taken
    cdef int64_t total, least, most

    def __cinit__(self):
        self.least = -1

    cdef void add(self, int64_t delay) noexcept nogil:
        if delay < 0:
            delay = 0
        self.classes[class_of(delay)] += 1
        self.total += delay
        if self.least < 0 or delay < self.least:
            self.least = delay
        if delay > self.most:
            self.most = delay

    def note(self, int64_t delay):
        """Add one, in microseconds."""
        self.add(delay)

    def take(self):
        """What came since the last call: counts by class, and sum, least and most in microseconds."""
        cdef int i
        counts = {}
        for i in range(CLASSES):
            if self.classes[i] != self.taken[i]:
                counts[i] = self.classes[i] - self.taken[i]
                self.taken[i] = self.classes[i]
        found = (counts, self.total, max(self.least, 0), self.most)
        self.total, self.least, self.most = 0, -1, 0
        return found

    def counts(self):
        """All that ever came, by class; classes without any are left out."""
        cdef int i
        return {i: self.classes[i] for i in range(CLASSES) if self.classes[i]}


cdef struct place_t:
    int64_t asked  # stamp of the message whose own copy has not come yet; 0 for none
    int64_t upgraded
    uint64_t replay_end  # seq up to which the server replays what was missed
    uint64_t delivered  # messages, repeats not counted
    uint64_t hole_first, hole_last  # what is missing of the last hole; 0 for nothing
    bint leaving


cdef class Crowd(Swarm):
    """A swarm in which each connection belongs to somebody; nothing runs but inside ``poll``.

    Where the dialect numbers its messages, whoever is told of the answer to a join calls ``let_in``; in other
    dialects the opening is said from here. A message is marked with its place, so that its sender's own copy is told
    from the others'; a place has at most one message on its way.
    """

    cdef place_t *places
    cdef dict targets
    cdef object told, came, gone
    cdef readonly Delays connects, joins, confirms, deliveries, replays
    cdef readonly Delays counted  # deliveries of what was sent since the count began
    cdef readonly uint64_t confirmed, misorders

    def __cinit__(self, *_arguments):
        self.places = <place_t *>calloc(self.capacity, sizeof(place_t))
        if self.places == NULL:
            raise MemoryError("no memory left for the load generator")
        self.targets = {}
        self.connects, self.joins, self.confirms = Delays(), Delays(), Delays()
        self.deliveries, self.replays, self.counted = Delays(), Delays(), Delays()

    def __dealloc__(self):
        free(self.places)

    def listen(self, told, entered, lost):
        """Whom to call from within ``poll``; they must not open connections themselves.

        Args:
            told: With a place and an event (bytes) that is no message.
            entered: With the place of somebody who has joined.
            lost: With a place and whether it had joined, when a connection has ended that was not closed here.
        """
        self.told, self.came, self.gone = told, entered, lost

    def fileno(self):
        """The epoll descriptor: readable when ``poll`` has something to do."""
        return self.epoll

    def add_room(self, str name):
        """A further room; returns its index."""
        self.rooms.append(name)
        self.by_room.append(0)
        return len(self.rooms) - 1

    def place(self, int room):
        """A new place, for a member of ``rooms[room]``, not connected."""
        if self.count >= self.capacity:
            raise ValueError("more connections than the crowd's capacity")
        self.peers[self.count].fd = -1
        self.peers[self.count].room = room
        self.peers[self.count].state = FAILED
        self.count += 1
        return self.count - 1

    cdef peer_t *at(self, int index) except NULL:
        if not 0 <= index < self.count:
            raise IndexError("there is no such place")
        return &self.peers[index]

    def begin(self, int index, str target="", str source=""):
        """Begin a connection for a place that has none; False where that fails at once."""
        cdef peer_t *peer = self.at(index)
        if peer.fd >= 0:
            raise ValueError("this place is connected")
        if target:
            self.targets[index] = target
        self.places[index].leaving = False
        self.places[index].upgraded = 0
        peer.source = self.source_number(source)
        return self.open(index, peer)

    def let_in(self, int index, uint64_t next_seq, uint64_t replay_end):
        """The server has let somebody in: what comes next, and up to where it is what was missed."""
        cdef peer_t *peer = self.at(index)
        peer.next_seq = next_seq
        self.places[index].replay_end = replay_end
        if peer.state == JOINING:
            self.entered(peer)

    def send(self, int index, bytes payload):
        """Send a text frame; False where there is no connection that takes it."""
        cdef peer_t *peer = self.at(index)
        return peer.state in (JOINING, JOINED) and self.send_text(peer, payload)

    def say(self, int index, str message_id):
        """Send a message to the room; returns its text, or "" where there is no connection that takes it."""
        cdef peer_t *peer = self.at(index)
        cdef int64_t stamp = now_us()
        if peer.state != JOINED:
            return ""
        text = f"@{stamp},{index},{self.tag} ".ljust(self.text_bytes, "x")
        said = self.message % {"room": self.rooms[peer.room], "id": message_id, "text": text}
        if not self.send_text(peer, said.encode()):
            return ""
        self.places[index].asked = stamp
        self.sent += 1
        if stamp >= self.counted_from_us:
            self.by_room[peer.room] += 1
        return text

    def waiting(self, int index):
        """Seconds for which a message of this place has not come back; 0 where none is on its way."""
        self.at(index)
        asked = self.places[index].asked
        return max(1e-6, (now_us() - asked) / 1e6) if asked else 0.0

    def confirm(self, int index):
        """The server says that the message of this place is stored; or nobody waits for it any more."""
        self.at(index)
        self.places[index].asked = 0

    def last_seq(self, int index):
        """The last message that this place has."""
        return self.at(index).next_seq - 1

    def delivered_to(self, int index):
        """Messages that this place got, repeats not counted."""
        self.at(index)
        return self.places[index].delivered

    def was_upgraded(self, int index):
        """Whether the last connection of this place has got through the handshake."""
        self.at(index)
        return self.places[index].upgraded > 0

    def count_anew(self):
        """What is sent from now on is told apart; where no seq tells, only that counts as sent and delivered."""
        self.begin_count()
        self.counted = Delays()
        self.by_room = [0] * len(self.rooms)
        self.delivered = 0

    def is_joined(self, int index):
        """Whether somebody is in the room just now."""
        return self.at(index).state == JOINED

    def close(self, int index):
        """Say goodbye (1000) and end the connection, if there is one; nobody is told."""
        cdef peer_t *peer = self.at(index)
        if peer.fd < 0:
            return
        if peer.state in (JOINING, JOINED):
            send(peer.fd, b"\x88\x82\0\0\0\0\x03\xe8", 8, MSG_NOSIGNAL)
        self.places[index].leaving = True
        self.fail(peer)

    def poll(self, int timeout_ms=0):
        """Handle what is ready, at most 1,024 connections; returns how many there were."""
        cdef epoll_event[MAX_EVENTS] events
        cdef int ready, i
        with nogil:
            ready = epoll_wait(self.epoll, events, MAX_EVENTS, timeout_ms)
        for i in range(ready):
            self.handle(<uint32_t>events[i].data.u64, events[i].events)
        return ready

    cdef str target(self, uint32_t index, peer_t *peer):
        found = self.targets.pop(index, None)
        return found or Swarm.target(self, index, peer)

    cdef void upgraded(self, peer_t *peer):
        cdef place_t *place = &self.places[peer - self.peers]
        place.upgraded = now_us()
        self.connects.add(place.upgraded - peer.started)
        peer.state = JOINING
        if not self.numbered:
            self.say_next(peer)

    cdef void entered(self, peer_t *peer):
        Swarm.entered(self, peer)
        self.joins.add(now_us() - self.places[peer - self.peers].upgraded)
        self.came(peer - self.peers)

    cdef void fail(self, peer_t *peer):
        cdef bint was_open = peer.state != FAILED, was_in = peer.state == JOINED
        cdef int index = peer - self.peers
        Swarm.fail(self, peer)
        if not was_open:
            return
        if self.places[index].leaving:
            self.closed -= was_in
        else:
            self.gone(index, was_in)

    cdef void control(self, peer_t *peer, bytes payload):
        if self.numbered:
            self.told(peer - self.peers, payload)
        else:
            Swarm.control(self, peer, payload)

    cdef void event(self, peer_t *peer, unsigned char *payload, size_t size):
        cdef int64_t stamp, delay, index = peer - self.peers
        cdef place_t *place = &self.places[index]
        cdef unsigned char *end = payload + size
        cdef unsigned char *at = payload
        cdef uint64_t seq = 0
        if self.numbered:
            if size > 8 and memcmp(payload, b'{"seq":', 7) == 0:
                at += 7
                seq = take_number(&at, end)
                if not self.is_new(peer, place, seq):
                    return
            else:
                # Counts of who is there come for each that joins; nothing here needs them.
                if size < 18 or memcmp(payload, b'{"type":"presence"', 18) != 0:
                    self.control(peer, payload[:size])
                return
        at = <unsigned char *>memmem(at, end - at, STAMP, 9)
        if at == NULL:
            if self.numbered:
                self.delivered += 1
                place.delivered += 1
            else:
                self.control(peer, payload[:size])
            return
        at += 9
        stamp = take_number(&at, end)
        if not self.numbered and stamp < self.counted_from_us:
            self.own_copy(place, index, stamp, at, end)
            return
        self.delivered += 1
        place.delivered += 1
        delay = now_us() - stamp
        if seq and seq <= place.replay_end:
            self.replays.add(delay)
        else:
            self.deliveries.add(delay)
            if stamp >= self.counted_from_us:
                self.counted.add(delay)
        self.own_copy(place, index, stamp, at, end)

    cdef void own_copy(
        self, place_t *place, int64_t index, int64_t stamp, unsigned char *at, unsigned char *end
    ) noexcept:
        """Note that a message has come back to its sender, if this is it."""
        if place.asked != stamp or at >= end or at[0] != 44:
            return
        at += 1
        if take_number(&at, end) != index or at >= end or at[0] != 44:
            return
        at += 1
        if <uint64_t>take_number(&at, end) == self.tag:
            place.asked = 0
            self.confirmed += 1
            self.confirms.add(now_us() - stamp)

    cdef bint is_new(self, peer_t *peer, place_t *place, uint64_t seq) noexcept:
        """Check a seq against what must come next; False for what came before."""
        if peer.next_seq == 0 or seq == peer.next_seq:
            peer.next_seq = seq + 1
        elif seq > peer.next_seq:
            self.holes += seq - peer.next_seq
            place.hole_first, place.hole_last = peer.next_seq, seq - 1
            peer.next_seq = seq + 1
        elif place.hole_first <= seq <= place.hole_last and place.hole_first:
            # It came after all, but behind a later one. Of what is left of the hole the larger numbers are kept.
            self.holes -= 1
            self.misorders += 1
            if seq == place.hole_last:
                place.hole_last -= 1
            else:
                place.hole_first = seq + 1
            if place.hole_first > place.hole_last:
                place.hole_first = place.hole_last = 0
        else:
            self.repeats += 1
            return False
        return True
