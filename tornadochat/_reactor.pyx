# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
"""One epoll for all members of a worker: reading, the fan-out, and what members cost who do not read.

First and last step of the walk: bytes from a socket go through ``_fastframe`` to ``on_text``; batches
from a room go to every member by one ``send()`` each, with the GIL released. Nothing is copied on the
way out: what a socket does not take at once is kept as a reference to the shared bytes.

Knows no commands, no rooms' names and no store. Only the loop's thread calls it.
"""

import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

from tornadochat._fastframe cimport (
    DECODED_BINARY, DECODED_CLOSE, DECODED_ERROR, DECODED_PING, DECODED_TEXT,
    Batch, decoder_free, decoder_init, decoder_next, frame_t, inflate_message, put_header,
    shared_new, shared_release, shared_retain, shared_t,
)

from tornadochat._poller cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, GENERATION_BITS, MSG_NOSIGNAL,
    Poller, Sockets, epoll_ctl, epoll_event, now_us, recv, send,
)

from tornadochat._fastframe import encode_close
from tornadochat.errors import FrameError

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SHUT_WR
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int size)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY
        TCP_NOTSENT_LOWAT

log = logging.getLogger("tornadochat")

_EMPTY_CLOSE = b"\x88\x00"  # the answer to a close frame without a code

cdef enum:
    # conn_t.flags
    WRITABLE_WATCHED = 1    # EPOLLOUT is asked for
    CLOSE_SENT = 2          # our close frame is sent or queued; no more data goes out
    CLOSE_RECEIVED = 4      # the peer's close frame came
    FAILED = 8              # the peer breached the protocol; its input is thrown away
    SHUT = 16               # our half of the socket is shut
    GAPPED = 32             # room events were dropped and nobody was told yet
    REPLAYING = 64          # on_drained is owed
    BROKEN = 128            # in the list of broken connections
    PINGED = 256            # a ping is unanswered
    HELD = 512              # nothing is read for a while
    DEFLATES = 1024         # permessage-deflate is negotiated
    # entry_t.state
    LIVE = 0
    SILENT = 1              # replays, or waits for its join after a gap
    GAP = 2                 # silent because events were dropped; on_gap will tell
    # job_t.kind
    EVENTS = 0
    PLAIN = 1
    RESET = 2
    # One read. Level-triggered: what is left comes with the next event, after everybody's turn.
    READ_BYTES = 65536
    # No call holds the loop for longer with fan-outs; one room's slice of it is smaller, so that a
    # huge room does not make the others wait for its whole turn.
    WALK_BUDGET_US = 9000
    WALK_SLICE_US = 2500
    # Sends between two looks at the clock: at about 6 us each, 0.2 ms.
    SENDS_PER_LOOK = 32
    # The loop has surely turned since a walk that ended this long ago.
    LOOP_TURN_US = 20000
    # The kernel takes so much of what a peer has no window for, not the megabytes of a whole send
    # buffer: who does not read is known as such soon, and what is sent can still be dropped.
    UNSENT_BYTES = 131072
    # Presence and typing are not worth queueing behind more than this; later ones are absolute again.
    PLAIN_BACKLOG = 65536
    # Nor behind this many batches that wait for the walk of their room; the hub holds events back meanwhile.
    PLAIN_JOBS = 16
    # Batches on one walk, and parts of one call: one for each batching window of a fan-out of 160 ms. Of one that
    # takes longer the hub makes fewer and larger ones.
    MAX_WALKED = 16
    MAX_IOV = 64
    # Longer than every time-out, or a look too many: the wheel looks at each connection once a turn.
    WHEEL_SLOTS = 64
    FIRST_ROOMS = 1
    FIRST_ENTRIES = 4


cdef inline uint32_t now_s() noexcept nogil:
    return <uint32_t>(now_us() // 1000000)


cdef inline uint32_t bound(double seconds) noexcept nogil:
    return <uint32_t>(seconds + 0.999) if seconds > 0 else 1


cdef shared_t *copied(const unsigned char *data, size_t size, uint8_t opcode) noexcept nogil:
    """One frame with this payload; NULL when there is no memory. opcode 0: the bytes as they are."""
    cdef size_t head = 0
    cdef shared_t *shared = shared_new(size + 10, 0, 1)
    if shared == NULL:
        return NULL
    if opcode:
        head = put_header(shared.data, opcode, size)
    memcpy(shared.data + head, data, size)
    shared.size = head + size
    shared.offsets[1] = <uint32_t>shared.size
    return shared


cdef inline uint64_t event_data(conn_t *conn) noexcept nogil:
    """What epoll gives back of a connection: never a pointer, since that may be freed by then."""
    return (<uint64_t>(conn.generation & GENERATION_BITS) << 32) | conn.slot


include "_entries.pxi"


# The reactor ---------------------------------------------------------------------------------------

@cython.final
cdef class Reactor(Sockets):
    """All members of this worker that talk through plain sockets.

    Args:
        on_text: ``(owner, payload)`` for each text message; its UTF-8 is checked.
        on_closed: ``(owner, code, reason)`` once for each connection, whatever ended it; 1006 where no
            close frame came. The connection is still in its channels, and out of them right after.
        on_drained: ``(owner)`` when the replayed bytes in flight have fallen to half of
            ``replay_bytes``, once after each ``Channel.replay`` that returned more.
        on_gap: ``(owner, [(channel key, seq)])`` when the socket has taken all that was left after room
            events were dropped; ``seq`` is the first that was not sent. The connection stays silent in
            these channels until ``Channel.join`` or ``set_live``.
        on_binary: Like ``on_text`` for binary messages; without it they end the connection with 1003.
        max_message_bytes: Of one message, all fragments together.
        max_backlog_bytes: Room events that wait for one socket.
        max_answer_bytes: Answers and control frames that wait for one socket; above it 1013.
        replay_bytes: Replayed bytes that should be in flight to one socket.
        ping_seconds: Silence after which a peer is pinged; the first time comes at random before.
        pong_seconds: Silence after a ping that ends the connection.
        close_seconds: Wait for the peer's close frame.
        stuck_seconds: Time that a socket may take nothing while something waits; then 1013.
        deflater: Compresses events for the connections that negotiated it.
        poller: That of the worker's loop; one of its own where none is given, for ``poll``.
    """

    def __cinit__(
        self,
        *,
        on_text,
        on_closed,
        on_drained,
        on_gap,
        max_message_bytes,
        max_backlog_bytes,
        max_answer_bytes,
        replay_bytes,
        double ping_seconds,
        double pong_seconds,
        double close_seconds,
        double stuck_seconds,
        on_binary=None,
        deflater=None,
        poller=None,
    ):
        self.on_text, self.on_closed, self.on_binary = on_text, on_closed, on_binary
        self.on_drained, self.on_gap = on_drained, on_gap
        self.deflater = deflater
        self.max_message = max_message_bytes
        self.max_backlog = max_backlog_bytes
        self.max_answer = max_answer_bytes
        self.replay_limit = replay_bytes
        self.ping_after, self.pong_after = bound(ping_seconds), bound(pong_seconds)
        self.close_after, self.stuck_after = bound(close_seconds), bound(stuck_seconds)
        self.random_state = int.from_bytes(os.urandom(8), "big") | 1
        self.wheel_at = now_s()
        self.buffer = <unsigned char *>malloc(READ_BYTES)
        self.wheel = <conn_t **>calloc(WHEEL_SLOTS, sizeof(void *))
        self.ping = copied(<const unsigned char *>b"", 0, 0x9)
        if self.buffer == NULL or self.wheel == NULL or self.ping == NULL:
            raise MemoryError("no memory for the reactor")
        self.poller = Poller() if poller is None else poller
        self.epoll = self.poller.epoll
        self.poller.sockets = self

    def __dealloc__(self):
        if self.ping != NULL:
            shared_release(self.ping)
        free(self.buffer)
        free(self.wheel)
        free(self.slots)
        free(self.generations)
        free(self.free_slots)

    @property
    def connections(self):
        """Open connections."""
        return self.connections_

    @property
    def deliveries(self):
        """Room events handed to a socket or its queue so far, each member counted."""
        return self.deliveries_

    @property
    def messages_received(self):
        """Text and binary messages so far."""
        return self.messages_

    @property
    def bytes_sent(self):
        """Bytes that sockets have taken so far."""
        return self.bytes_sent_

    @property
    def bytes_received(self):
        """Bytes read so far."""
        return self.bytes_received_

    @property
    def backlog_drops(self):
        """Queued pieces of room events that were dropped so far."""
        return self.drops_

    @property
    def gaps(self):
        """Gaps told so far."""
        return self.gaps_

    @property
    def longest_hold_us(self):
        """Longest time so far that one call held the loop, in microseconds, callbacks included."""
        return self.longest_hold

    def fileno(self):
        """Descriptor that is readable while ``poll`` has something to do."""
        return self.epoll

    def attach(self, int fd, owner, bint deflates=False):
        """Take over the descriptor of a connected socket whose handshake is answered.

        Args:
            fd: Owned by the reactor from here on, and made non-blocking.
            owner: Given back in every callback.
            deflates: Whether permessage-deflate is negotiated, without context takeover on both sides.

        Returns:
            The connection. The caller notes it, then calls ``feed`` with the bytes that came behind
            the handshake.

        Raises:
            MemoryError, OSError: The descriptor has been closed.
        """
        cdef epoll_event event
        cdef conn_t *conn = NULL
        cdef int on = 1, unsent = UNSENT_BYTES
        cdef Connection connection = Connection.__new__(Connection)
        try:
            os.set_blocking(fd, False)
            # Batches are made here; Nagle's algorithm would hold each back for the peer's delayed
            # acknowledgement of the last one (40 ms). Other sockets than TCP's do not have it.
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
            setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))
            conn = <conn_t *>calloc(1, sizeof(conn_t))
            if conn == NULL:
                raise MemoryError("no memory for a connection")
            self.take_slot(conn)
            event.events = EPOLLIN
            event.data.u64 = event_data(conn)
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
                self.give_slot(conn.slot)
                raise OSError(errno, os.strerror(errno))
        except BaseException:
            free(conn)
            close_fd(fd)
            raise
        decoder_init(&conn.decoder, self.max_message, True, deflates)
        conn.fd = fd
        conn.flags = DEFLATES if deflates else 0
        conn.close_code = 1006
        conn.heard = conn.progress = now_s()
        connection.conn, connection.reactor, connection.owner = conn, self, owner
        Py_INCREF(connection)
        conn.connection = <PyObject *>connection
        self.connections_ += 1
        # xorshift64: pings spread over the interval by themselves.
        self.random_state ^= self.random_state << 13
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        conn.heard -= <uint32_t>(self.random_state % self.ping_after)
        schedule(self, conn, conn.heard + self.ping_after)
        return connection

    cdef int take_slot(self, conn_t *conn) except -1:
        cdef uint32_t capacity, slot
        cdef void *slots
        cdef void *generations
        cdef void *free_slots
        if self.free_count:
            self.free_count -= 1
            slot = self.free_slots[self.free_count]
        else:
            if self.slot_count == self.slot_capacity:
                capacity = self.slot_capacity * 2 if self.slot_capacity else 64
                slots = realloc(self.slots, capacity * sizeof(void *))
                if slots != NULL:
                    self.slots = <conn_t **>slots
                generations = realloc(self.generations, capacity * sizeof(uint32_t))
                if generations != NULL:
                    self.generations = <uint32_t *>generations
                free_slots = realloc(self.free_slots, capacity * sizeof(uint32_t))
                if free_slots != NULL:
                    self.free_slots = <uint32_t *>free_slots
                if slots == NULL or generations == NULL or free_slots == NULL:
                    raise MemoryError("no memory for one more connection")
                memset(self.generations + self.slot_capacity, 0, (capacity - self.slot_capacity) * sizeof(uint32_t))
                self.slot_capacity = capacity
            slot = self.slot_count
            self.slot_count += 1
        self.slots[slot] = conn
        conn.slot = slot
        conn.generation = self.generations[slot]
        return 0

    cdef void give_slot(self, uint32_t slot) noexcept nogil:
        self.slots[slot] = NULL
        self.generations[slot] += 1
        self.free_slots[self.free_count] = slot
        self.free_count += 1

    def channel(self, key):
        """A channel without members; ``key`` is what ``on_gap`` calls it."""
        cdef Channel made = Channel.__new__(Channel)
        made.channel = <channel_t *>calloc(1, sizeof(channel_t))
        if made.channel == NULL:
            raise MemoryError("no memory for a channel")
        made.channel.references = 1
        made.channel.owner = <PyObject *>made
        made.reactor = self
        made.key = key
        return made

    # Events --------------------------------------------------------------------------------------

    def poll(self):
        """Handle what the sockets have, then go on with fan-outs that were cut; waits for nothing.

        Returns:
            True where fan-outs are left: call again in the next turn of the loop. It handles at most
            1,024 events or 5 ms of them, and fan-outs up to 10 ms in all.
        """
        return self.poller.poll()

    cdef void begin_turn(self, int64_t now):
        self.depth += 1
        self.spent_us = 0

    cdef void on_events(self, uint64_t data, uint32_t events):
        cdef conn_t *conn = self.find(data)
        if conn != NULL and events & EPOLLOUT:
            self.on_writable(conn)
            conn = self.find(data)
        if conn != NULL and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            self.on_readable(conn)

    cdef bint end_turn(self, int64_t begun):
        cdef int64_t held
        if self.first_walk != NULL and now_us() >= self.poller.rest_until_us:
            walk_on(self, begun + WALK_BUDGET_US)
        self.close_broken()
        self.depth -= 1
        self.bury()
        held = now_us() - begun
        if held > self.longest_hold:
            self.longest_hold = held
        return self.first_walk != NULL

    cdef conn_t *find(self, uint64_t data) noexcept:
        """The connection that an event is about; NULL where it was closed meanwhile."""
        cdef uint32_t slot = <uint32_t>(data & 0xFFFFFFFF)
        cdef conn_t *conn
        if slot >= self.slot_count:
            return NULL
        conn = self.slots[slot]
        return conn if conn != NULL and (conn.generation & GENERATION_BITS) == <uint32_t>(data >> 32) else NULL

    cdef void on_readable(self, conn_t *conn):
        cdef ssize_t got
        with nogil:
            got = recv(conn.fd, self.buffer, READ_BYTES, 0)
        if got > 0:
            self.bytes_received_ += got
            conn.heard = now_s()
            conn.flags &= ~<uint32_t>PINGED
            if not conn.flags & (FAILED | CLOSE_RECEIVED):
                self.parse(conn, self.buffer, got)
        elif got == 0 or errno not in (EAGAIN, EINTR):
            self.close_now(conn, conn.close_code)

    cdef void parse(self, conn_t *conn, unsigned char *data, size_t size):
        """Hand every message of these bytes on; callbacks may close this or any connection."""
        cdef size_t used
        cdef frame_t frame
        cdef int found
        cdef shared_t *pong
        while size and conn.fd >= 0 and not conn.flags & FAILED:
            found = decoder_next(&conn.decoder, data, size, &used, &frame)
            data += used
            size -= used
            self.parsed, self.parsed_data, self.parsed_size = conn, data, size
            if found == DECODED_TEXT:
                self.message(conn, self.on_text, found, &frame)
            elif found == DECODED_BINARY:
                self.message(conn, self.on_binary, found, &frame)
            elif found == DECODED_PING:
                if not conn.flags & CLOSE_SENT:
                    pong = copied(frame.payload, frame.size, 0xA)
                    answer(self, conn, pong)
            elif found == DECODED_CLOSE:
                self.peer_closed(conn, frame.code)
                break
            elif found == DECODED_ERROR:
                conn.flags |= FAILED
                self.start_close(conn, frame.code, (<bytes>frame.reason).decode("ascii"))
                break
        self.parsed = NULL

    cdef void message(self, conn_t *conn, object handler, int kind, frame_t *frame):
        cdef Connection connection = <Connection>conn.connection
        self.messages_ += 1
        if conn.flags & CLOSE_SENT:
            return
        if handler is None:
            self.start_close(conn, 1003, "text messages only")
            return
        try:
            if frame.compressed:
                handler(connection.owner, inflate_message(frame, kind, self.max_message))
            else:
                handler(connection.owner, PyBytes_FromStringAndSize(<char *>frame.payload, frame.size))
        except FrameError as error:
            conn.flags |= FAILED
            self.start_close(conn, error.code, error.reason)
        except Exception:
            log.exception("the handler of a message failed; its connection is closed")
            self.start_close(conn, 1011, "internal error")

    cdef void on_writable(self, conn_t *conn):
        cdef int left
        with nogil:
            left = flush(self, conn)
        if left < 0:
            self.close_now(conn, conn.close_code)
        elif left == 0:
            watch(self, conn, False)
            if conn.flags & CLOSE_SENT:
                self.finish_close(conn)
            elif conn.flags & GAPPED:
                self.tell_gaps(conn)
        if conn.fd >= 0 and conn.flags & REPLAYING and conn.replay_bytes <= self.replay_limit // 2:
            conn.flags &= ~<uint32_t>REPLAYING
            self.call(self.on_drained, conn, None)

    cdef void tell_gaps(self, conn_t *conn):
        """Tell which rooms were cut off, and from which seq on."""
        cdef uint32_t i
        cdef entry_t *entry
        conn.flags &= ~<uint32_t>(GAPPED | REPLAYING)
        found = []
        for i in range(conn.room_count):
            entry = &conn.rooms[i].channel.entries[conn.rooms[i].index]
            if entry.state == GAP:
                entry.state = SILENT
                if conn.rooms[i].channel.owner != NULL:
                    found.append(((<Channel>conn.rooms[i].channel.owner).key, entry.next_seq))
        if found:
            self.gaps_ += len(found)
            self.call(self.on_gap, conn, found)

    cdef void call(self, object handler, conn_t *conn, object argument):
        cdef Connection connection = <Connection>conn.connection
        try:
            if argument is None:
                handler(connection.owner)
            else:
                handler(connection.owner, argument)
        except Exception:
            log.exception("a callback failed; its connection is closed")
            self.start_close(conn, 1011, "internal error")

    # The end of a connection ----------------------------------------------------------------------

    cdef void peer_closed(self, conn_t *conn, uint32_t code):
        """Echo the peer's close frame (RFC 6455 section 5.5.1), then end the connection."""
        conn.flags |= CLOSE_RECEIVED
        conn.close_code = code
        if not conn.flags & CLOSE_SENT:
            self.start_close(conn, code, "")
        if conn.fd >= 0 and conn.first == NULL:
            self.finish_close(conn)

    cdef void start_close(self, conn_t *conn, int code, str reason):
        """Send our close frame behind what is queued; nothing else is sent from here on."""
        cdef bytes frame
        cdef shared_t *shared
        if conn.fd < 0 or conn.flags & CLOSE_SENT:
            return
        frame = encode_close(code, reason) if code != 1005 else _EMPTY_CLOSE
        shared = copied(<unsigned char *>PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), 0)
        conn.flags |= CLOSE_SENT
        conn.close_code = code
        if shared == NULL:
            self.close_now(conn, code)
            return
        send_shared(self, conn, shared, 0, NULL, 0, False)
        shared_release(shared)
        schedule(self, conn, now_s() + self.close_after)
        if conn.flags & BROKEN:
            return
        if conn.first == NULL and conn.flags & FAILED:
            self.finish_close(conn)

    cdef void finish_close(self, conn_t *conn):
        """Our close frame is out. With both, the server ends TCP first (section 7.1.1); else the peer's
        frame is awaited, and one that breached the protocol may finish writing, so that a reset does
        not destroy our frame on its way."""
        if conn.flags & CLOSE_RECEIVED:
            self.close_now(conn, conn.close_code)
        elif conn.flags & FAILED and not conn.flags & SHUT:
            conn.flags |= SHUT
            shutdown(conn.fd, SHUT_WR)

    cdef void close_now(self, conn_t *conn, uint32_t code):
        """End the connection, tell its owner, and take it out of its rooms."""
        cdef Connection connection
        cdef epoll_event event
        if conn.fd < 0:
            return
        connection = <Connection>conn.connection
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, conn.fd, &event)
        close_fd(conn.fd)
        conn.fd = -1
        self.connections_ -= 1
        self.depth += 1
        try:
            self.on_closed(connection.owner, code, "")
        except Exception:
            log.exception("the handler of a closed connection failed")
        self.depth -= 1
        while conn.room_count:
            leave_channel(conn, conn.rooms[conn.room_count - 1].channel)
        unschedule(self, conn)
        drop_segments(self, conn, True)
        self.give_slot(conn.slot)
        decoder_free(&conn.decoder)
        connection.conn = NULL
        connection.owner = None
        conn.connection = NULL
        if not conn.flags & BROKEN:  # else close_broken moves it on
            conn.next_left = self.dead
            self.dead = conn
        Py_DECREF(connection)
        if self.depth == 0:
            self.bury()

    cdef void mark_broken(self, conn_t *conn) noexcept nogil:
        """A send failed while the GIL may be released; closed when the walk pauses."""
        if not conn.flags & BROKEN:
            conn.flags |= BROKEN
            conn.next_left = self.broken
            self.broken = conn

    cdef void close_broken(self):
        cdef conn_t *conn
        while self.broken != NULL:
            conn = self.broken
            self.broken = conn.next_left
            conn.flags &= ~<uint32_t>BROKEN
            if conn.fd >= 0:
                self.close_now(conn, conn.close_code)
            else:
                conn.next_left = self.dead
                self.dead = conn

    cdef void bury(self):
        """Free what was closed, once no event or callback can name it any more."""
        cdef conn_t *conn
        if self.depth:
            return
        if self.broken != NULL:
            self.depth += 1
            self.close_broken()
            self.depth -= 1
        while self.dead != NULL:
            conn = self.dead
            self.dead = conn.next_left
            free(conn.rooms)
            free(conn)

    def close(self):
        """End every connection at once; ``on_closed`` is called for each."""
        cdef uint32_t slot
        self.depth += 1
        for slot in range(self.slot_count):
            if self.slots[slot] != NULL:
                self.close_now(self.slots[slot], 1006)
        self.depth -= 1
        self.bury()

    # Timers ---------------------------------------------------------------------------------------

    def tick(self, double now):
        """Look at every connection whose time has come; called about once a second.

        Args:
            now: Monotonic seconds, as ``time.monotonic`` gives them.
        """
        cdef uint32_t until = <uint32_t>now
        cdef conn_t *conn
        cdef conn_t *following
        if until > self.wheel_at + WHEEL_SLOTS:
            self.wheel_at = until - WHEEL_SLOTS  # one whole turn looks at everybody
        self.depth += 1
        while self.wheel_at <= until:
            conn = self.wheel[self.wheel_at % WHEEL_SLOTS]
            while conn != NULL:
                following = conn.wheel_next
                if conn.due <= until:
                    check_time(self, conn, until)
                conn = following
            self.wheel_at += 1
        self.wheel_at = until  # this second may not be over
        self.close_broken()
        self.depth -= 1
        self.bury()


include "_writing.pxi"
include "_fanout.pxi"
include "_wheel.pxi"
include "_handles.pxi"
