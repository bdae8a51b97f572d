# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
"""One epoll for everything that a worker waits for, and its turns.

Members' sockets (``_reactor``), the connections to the store (``Stream``) and what asyncio itself
watches are in it. ``worker_loop`` makes it the selector of the worker's event loop: a turn that only
concerns members and the store is handled here and never goes through asyncio's machinery, which costs
more than many of the callbacks. Knows no frames, no commands and no store.

Only the loop's thread calls it.
"""

import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport close as close_fd

log = logging.getLogger("tornadochat")

cdef enum:
    # One read. Level-triggered: what is left comes with the next event, after everybody's turn.
    READ_BYTES = 65536
    EVENTS_AT_ONCE = 256
    # After so many events, or this time of them, fan-outs and the loop's own work get their turn.
    EVENTS_PER_TURN = 1024
    READ_BUDGET_US = 5000
    LONGEST_PAUSE_MS = 86400000
    # A worker is busy while more than BUSY_EVENTS come within LOAD_US: 1,000 a second.
    LOAD_US = 20000
    BUSY_EVENTS = 20
    # What one read of a stream brings counts as an event for each so many bytes, about a message: else
    # the pauses of a busy worker, which make few reads of many, would make it look quiet.
    EVENT_BYTES = 512

cdef uint64_t LOOP_BIT = <uint64_t>1 << 62    # a descriptor that the loop watches
cdef uint64_t STREAM_BIT = <uint64_t>1 << 63


cdef int64_t now_us() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return at.tv_sec * <int64_t>1000000 + at.tv_nsec // 1000


cdef class Sockets:
    """See the declaration."""

    cdef void begin_turn(self, int64_t now):
        pass

    cdef void on_events(self, uint64_t data, uint32_t events):
        pass

    cdef bint end_turn(self, int64_t begun):
        return False


@cython.final
cdef class Poller:
    """See the module.

    Args:
        interval: Seconds from one turn to the next while more than 2,000 events come in a second, and half
            as much above 1,000; 0 for none. As with the interrupts of a network card, waking up costs
            more than most of the events. Whatever comes to a worker that is not busy is handled at once.
            The turns of all workers of a machine fall on the same beats of its clock, so that the store
            gets what they send at once. See ``pace`` too.

    Attributes:
        unanswered: Tells whether the store still has something to answer; for ``pace``. None for never.
        settled: Whether this turn is one for the streams alone, see ``pace``.
        waited_us: Microseconds so far in which there was nothing to do, or what there was waited for its turn.
    """

    def __cinit__(self, double interval=0.0):
        self.streams, self.after = {}, []
        self.interval_us = <int64_t>(interval * 1000000.0)
        self.buffer = <unsigned char *>malloc(READ_BYTES)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.buffer == NULL:
            raise MemoryError("no memory for the poller")
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.epoll >= 0:
            close_fd(self.epoll)
        free(self.buffer)

    def watch(self, int fd, uint32_t events, bint known):
        """Report a descriptor to the loop.

        Args:
            fd: Stays its owner's, who calls ``forget`` before closing it.
            events: ``select.EPOLLIN`` and ``select.EPOLLOUT``.
            known: Whether it is watched already, and only ``events`` change.

        Raises:
            OSError: epoll refuses it.
        """
        cdef epoll_event event
        event.events = events
        event.data.u64 = LOOP_BIT | <uint32_t>fd
        if epoll_ctl(self.epoll, EPOLL_CTL_MOD if known else EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    def forget(self, int fd):
        """Report a descriptor no more; one that is closed already is no error."""
        cdef epoll_event event
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &event)

    def at_end(self, callback):
        """Call back once everything that came in this turn is handled, before late streams are read and
        before anything is waited for."""
        self.after.append(callback)

    def wait(self, timeout=None):
        """Handle turns until the loop has something to do itself.

        Args:
            timeout: Seconds after which it has at the latest; None for any time.

        Returns:
            ``(fd, events)`` of watched descriptors; empty after ``timeout``, a signal, or when
            ``interrupted`` was set by a callback.
        """
        cdef int64_t due, until = 0
        cdef bint forever = timeout is None, members
        cdef int pause
        cdef list found = []
        if not forever:
            until = now_us() + <int64_t>(max(0.0, <double>timeout) * 1000000.0)
        self.interrupted = False
        if self.after:
            self.run_after()
        while True:
            pause, members = 0, True
            if not (self.left or self.interrupted or self.after):
                pause = self.longest_pause(forever, until)
                if pause and not self.work_left and self.interval_us and self.load > BUSY_EVENTS:
                    members = self.choose_turn(&due)
                    if self.beat_us and not forever and until < due:
                        self.sleep_until(until)  # a beat is too long for a timer to be late by
                        return found
                    self.sleep_until(due)
            if members:
                self.turn(pause, found)
            else:
                self.turn_streams()
            if self.after:
                self.run_after()
            if found or self.interrupted or (not forever and now_us() >= until):
                return found

    def pace(self, double beat, double settle):
        """Make the turns of a busy worker fewer and longer.

        On each beat everything is handled. What that sent to the store is answered a moment later: then, and
        again while ``unanswered``, the streams alone are read; the members are not before the next beat. So the
        caches are cold once for many messages, and what is fanned out has come together, from all workers that
        keep the same beats. For a beat after something came that the loop watches, such as a connection, turns
        follow each other as without this.

        Args:
            beat: Seconds from one to the next, at least twice ``settle``; 0 for the turns of the interval that
                the poller was made with. Counted from the beginning of the monotonic clock.
            settle: Seconds in which the store has answered most of the time.
        """
        self.beat_us, self.settle_us = <int64_t>(beat * 1000000.0 + 0.5), <int64_t>(settle * 1000000.0 + 0.5)

    def poll(self):
        """Handle one turn without waiting; what the loop watches is left alone.

        Returns:
            True where work is left that does not wait for events: call again soon.
        """
        cdef list found = []
        self.rest_until_us = 0  # who does not wait cannot rest
        self.turn(0, found)
        if self.after:
            self.run_after()
        return self.work_left or bool(self.after)

    cdef int longest_pause(self, bint forever, int64_t until_us):
        """Milliseconds that nothing is to be done in but wait: until a timer is due, or what rests goes on; -1 for
        any time."""
        cdef int64_t now
        if self.work_left:
            until_us = self.rest_until_us if forever else min(until_us, self.rest_until_us)
        elif forever:
            return -1
        now = now_us()
        return <int>min((until_us - now + 999) // 1000, <int64_t>LONGEST_PAUSE_MS) if until_us > now else 0

    cdef int turn(self, int pause_ms, list found) except -1:
        cdef epoll_event[EVENTS_AT_ONCE] events
        cdef bint begun = False
        cdef int ready = EVENTS_AT_ONCE, handled = 0, i
        cdef uint64_t data
        cdef int64_t now = 0
        cdef list late = []
        while ready == EVENTS_AT_ONCE and handled < EVENTS_PER_TURN:
            if pause_ms:
                now = now_us()
            with nogil:
                ready = epoll_wait(self.epoll, events, EVENTS_AT_ONCE, pause_ms)
            if pause_ms:
                self.waited_us += now_us() - now
                pause_ms = 0
            if not begun:
                begun = True
                self.open_turn()
            if ready < 0:
                self.interrupted = True  # a signal, whose handler is Python's
                break
            for i in range(ready):
                data = events[i].data.u64
                if data & LOOP_BIT:
                    found.append((<int>(data & 0xFFFFFFFF), events[i].events))
                elif data & STREAM_BIT:
                    stream = self.streams.get(<uint32_t>(data & 0xFFFFFFFF))
                    if stream is not None and (<Stream>stream).late:
                        late.append((stream, events[i].events))
                    elif stream is not None:
                        (<Stream>stream).on_events(events[i].events)
                elif self.sockets is not None:
                    self.sockets.on_events(data, events[i].events)
            handled += ready
            self.load += ready
            if now_us() - self.turned_us > READ_BUDGET_US:
                break
        self.left = self.left or ready == EVENTS_AT_ONCE
        self.heard = True
        if found:
            self.watched_us = self.turned_us
        return self.close_turn(late)

    cdef int turn_streams(self) except -1:
        """A turn for the streams alone; one that has nothing to read costs a call of recv()."""
        cdef list late = []
        cdef uint32_t events
        self.open_turn()
        self.heard, self.settled = False, True
        for stream in list(self.streams.values()):
            events = EPOLLIN | (EPOLLOUT if (<Stream>stream).queue else 0)
            if (<Stream>stream).late:
                late.append((stream, events))
            else:
                (<Stream>stream).on_events(events)
        try:
            return self.close_turn(late)
        finally:
            self.settled = False

    cdef void open_turn(self):
        cdef int64_t now = now_us()
        self.load *= LOAD_US / <double>(LOAD_US + now - self.turned_us)
        self.turned_us = now
        self.left = False
        if self.sockets is not None:
            self.sockets.begin_turn(now)

    cdef int close_turn(self, list late) except -1:
        if late:
            if self.after:
                self.run_after()
            for stream, reported in late:
                if (<Stream>stream).fd >= 0:  # else it was closed in the same turn
                    (<Stream>stream).on_events(reported)
        self.work_left = self.sockets.end_turn(self.turned_us) if self.sockets is not None else False
        return 0

    cdef bint choose_turn(self, int64_t *due_us) except -1:
        """When a busy worker has its next turn, and whether that is for the members too: until then more comes
        in. At most one interval or beat after the last one."""
        cdef int64_t interval = self.interval_us if self.load > 2 * BUSY_EVENTS else (self.interval_us + 1) // 2
        cdef int64_t next_look = self.turned_us + self.settle_us
        if self.beat_us == 0 or self.turned_us - self.watched_us < self.beat_us:
            due_us[0] = (self.turned_us // interval + 1) * interval
            return True
        due_us[0] = (self.turned_us // self.beat_us + 1) * self.beat_us
        if next_look < due_us[0] and (self.heard or (self.unanswered is not None and self.unanswered())):
            due_us[0] = next_look
            return False
        return True

    cdef void sleep_until(self, int64_t due_us) noexcept:
        cdef int64_t pause_us = due_us - now_us()
        cdef timespec time
        if pause_us <= 0:
            return
        time.tv_sec = pause_us // 1000000
        time.tv_nsec = pause_us % 1000000 * 1000
        with nogil:
            nanosleep(&time, NULL)
        self.waited_us += pause_us

    cdef void run_after(self):
        """What is added meanwhile has its turn at the end of the next one."""
        callbacks, self.after = self.after, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback at the end of a turn failed")


@cython.final
cdef class Stream:
    """A connected socket of the worker's own, such as the store's; stands for an asyncio transport.

    Args:
        poller: That of the loop.
        fd: Non-blocking and connected; owned from here on.
        protocol: ``data_received(bytes)`` for what comes, ``connection_lost(error)`` once at the end
            of the turn in which it ended.
        late: Whether it is read at the end of the turn, behind what ``Poller.at_end`` calls.
    """

    def __init__(self, Poller poller not None, int fd, protocol, bint late=False):
        cdef epoll_event event
        self.poller, self.fd, self.protocol = poller, fd, protocol
        self.queue, self.late = [], late
        poller.streams_made += 1
        self.number = poller.streams_made
        event.events = EPOLLIN
        event.data.u64 = STREAM_BIT | self.number
        if epoll_ctl(poller.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            error = OSError(errno, os.strerror(errno))
            self.fd = -1
            close_fd(fd)
            raise error
        poller.streams[self.number] = self

    def write(self, bytes data not None):
        """Send at once what the socket takes, and the rest as soon as it can, in order.

        What waits is bounded by its writer: who has many commands without an answer sends no more.
        """
        if self.fd < 0 or not data:
            return
        self.queue.append(data)
        if len(self.queue) == 1:
            self.send_queue()

    def abort(self):
        """End the connection at once; what waits is dropped."""
        self.lose(None)

    cdef int send_queue(self) except -1:
        cdef bytes data
        cdef ssize_t sent
        cdef size_t size
        cdef int fd = self.fd
        cdef const char *raw
        while self.queue:
            data = self.queue[0]
            raw = PyBytes_AS_STRING(data) + self.offset
            size = PyBytes_GET_SIZE(data) - self.offset
            with nogil:
                sent = send(fd, raw, size, MSG_NOSIGNAL)
            if sent == <ssize_t>size:
                del self.queue[0]
                self.offset = 0
            elif sent >= 0:
                self.offset += sent
            elif errno == EAGAIN or errno == EINTR:
                break
            else:
                self.lose(OSError(errno, os.strerror(errno)))
                return 0
        self.watch_writable(len(self.queue) > 0)
        return 0

    cdef void watch_writable(self, bint writable):
        cdef epoll_event event
        if writable == self.writable_watched:
            return
        self.writable_watched = writable
        event.events = EPOLLIN | (EPOLLOUT if writable else 0)
        event.data.u64 = STREAM_BIT | self.number
        epoll_ctl(self.poller.epoll, EPOLL_CTL_MOD, self.fd, &event)

    cdef void on_events(self, uint32_t events):
        cdef ssize_t got
        cdef int fd = self.fd
        cdef unsigned char *buffer = self.poller.buffer
        try:
            if events & EPOLLOUT:
                self.send_queue()
            if self.fd >= 0 and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                with nogil:
                    got = recv(fd, buffer, READ_BYTES, 0)
                if got > 0:
                    self.poller.load += got // EVENT_BYTES
                    if got == READ_BYTES:
                        self.poller.left = True
                    self.protocol.data_received(PyBytes_FromStringAndSize(<char *>buffer, got))
                elif got == 0:
                    self.lose(None)
                elif errno not in (EAGAIN, EINTR):
                    self.lose(OSError(errno, os.strerror(errno)))
        except Exception as error:
            log.exception("a stream's protocol failed; its connection is closed")
            self.lose(error)

    cdef void lose(self, object error):
        cdef epoll_event event
        if self.fd < 0:
            return
        epoll_ctl(self.poller.epoll, EPOLL_CTL_DEL, self.fd, &event)
        close_fd(self.fd)
        self.fd = -1
        self.queue.clear()
        self.poller.streams.pop(self.number, None)
        protocol, self.protocol = self.protocol, None
        self.poller.at_end(lambda: protocol.connection_lost(error))
        self.poller.interrupted = True
