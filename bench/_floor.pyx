# cython: language_level=3, boundscheck=False, wraparound=False
"""The floor of the machine: one bare send() of a ready-made frame for each member.

Nothing that delivers each message by a send() of its own can cost less than this; what a server adds
is its distance from here, measured in the same run. Who waits a while and sends each member all that came
meanwhile has another floor, which is here too; and so has who keeps every message in the store first.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, clock_gettime, nanosleep, timespec

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
    ssize_t send(int fd, const void *buf, size_t size, int flags)
    ssize_t recv(int fd, void *buf, size_t size, int flags)

cdef extern from "<string.h>" nogil:
    void *memmove(void *to, const void *data, size_t size)
    void *memmem(const void *haystack, size_t size, const void *needle, size_t needle_size)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *sigmask)

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLL_CTL_ADD
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)


cdef inline int64_t clock_us(int which) noexcept nogil:
    cdef timespec at
    clock_gettime(which, &at)
    return at.tv_sec * <int64_t>1000000 + at.tv_nsec // 1000


cdef int *descriptors(list fds) except NULL:
    """The numbers in C; freed by the caller."""
    cdef int i, count = len(fds)
    cdef int *found = <int *>malloc(count * sizeof(int))
    if found == NULL:
        raise MemoryError("no memory for the descriptors")
    for i in range(count):
        found[i] = fds[i]
    return found


def fan_out(list fds, int rooms, bytes frame, double rate, double seconds):
    """Send ``frame`` to all members of one room after another, ``rate`` rooms a second.

    Args:
        fds: Connected non-blocking sockets; member i is in room i % rooms.
        rooms: Number of rooms.
        frame: Bytes that each member gets for each message.
        rate: Messages a second, all rooms together.
        seconds: How long.

    Returns:
        ``(deliveries, CPU seconds of this process)``; sends that the socket refused do not count.
    """
    cdef int count = len(fds), i, room
    cdef int *all_fds = descriptors(fds)
    cdef const char *raw = frame
    cdef size_t size = len(frame)
    cdef int64_t begin, due, now, cpu, message = 0, total = <int64_t>(rate * seconds), sent = 0
    cdef timespec pause
    with nogil:
        cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID)
        begin = clock_us(CLOCK_MONOTONIC)
        while message < total:
            due = begin + <int64_t>(message * 1000000.0 / rate)
            now = clock_us(CLOCK_MONOTONIC)
            if due > now:
                pause.tv_sec = 0
                pause.tv_nsec = (due - now) * 1000 if due - now < 900000 else 900000000
                nanosleep(&pause, NULL)
                continue
            room = message % rooms
            i = room
            while i < count:
                sent += send(all_fds[i], raw, size, MSG_NOSIGNAL) == <ssize_t>size
                i += rooms
            message += 1
        cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu
    free(all_fds)
    return sent, cpu / 1e6


def fan_out_batched(list fds, int rooms, bytes frame, double rate, double seconds, int window_us):
    """Send each member of a room all that came within a window with one send().

    Args:
        fds, rooms, frame, rate, seconds: As for ``fan_out``.
        window_us: Time between two turns; in each, every room with new messages is served.

    Returns:
        ``(deliveries, CPU seconds of this process)``; what the socket did not take whole does not count.
    """
    cdef int count = len(fds), i, room
    cdef int64_t most = <int64_t>(rate * window_us / 1e6 / rooms) + 8, waiting
    cdef bytes batch = frame * most
    cdef int *all_fds = descriptors(fds)
    cdef const char *raw = batch
    cdef size_t size = len(frame)
    cdef int64_t begin, now, cpu, turn = 0, turns = <int64_t>(seconds * 1e6 / window_us), sent = 0
    cdef int64_t came, served = 0
    cdef timespec pause
    with nogil:
        cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID)
        begin = clock_us(CLOCK_MONOTONIC)
        while turn < turns:
            now = begin + (turn + 1) * window_us - clock_us(CLOCK_MONOTONIC)
            if now > 0:
                pause.tv_sec = 0
                pause.tv_nsec = now * 1000
                nanosleep(&pause, NULL)
                continue
            turn += 1
            came = <int64_t>(rate * turn * window_us / 1e6)
            for room in range(rooms):
                # Message number n is of room n % rooms.
                waiting = (came - room + rooms - 1) // rooms - (served - room + rooms - 1) // rooms
                if waiting > most:
                    waiting = most
                i = room if waiting > 0 else count
                while i < count:
                    if send(all_fds[i], raw, size * waiting, MSG_NOSIGNAL) == <ssize_t>(size * waiting):
                        sent += waiting
                    i += rooms
            served = came
        cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu
    free(all_fds)
    return sent, cpu / 1e6


def fan_out_stored(
    list fds, int rooms, bytes frame, list commands, int stamp, int publisher, int subscriber,
    double rate, double seconds, int worker, int workers,
):
    """Have the store number, keep and publish every message, and send ``frame`` for each that it publishes.

    Args:
        fds, frame: As for ``fan_out``; the members that this process holds.
        rooms: Number of rooms, at most 65,536.
        commands: For each room the command that publishes a message, as the store reads it.
        stamp: Where a command has the 16 hexadecimal digits that tell one message from another.
        publisher: Connected socket for the commands.
        subscriber: Connected socket that is subscribed to channels whose names end in ``}:ch``, behind four
            hexadecimal digits for the room.
        rate: Messages a second, all rooms and processes together.
        seconds: How long they are sent; what comes in the half second after it is still delivered.
        worker: Number of this process, which publishes every ``workers``-th message.
        workers: Number of processes.

    Returns:
        ``(deliveries, CPU seconds of this process)``; sends that the socket refused do not count.

    Raises:
        ValueError: The store refused a command.
    """
    cdef int count = len(fds), i, room, size_of_frame = len(frame)
    cdef int *all_fds = descriptors(fds)
    cdef const char *raw = frame
    cdef const char *command
    cdef char[65536] buffer
    cdef char *place
    cdef char *found
    cdef char *end
    cdef ssize_t got
    cdef size_t size, kept = 0  # bytes of a name that the last read cut
    cdef pollfd[2] polled
    cdef timespec pause
    cdef bint refused = False
    cdef int64_t begin, due, now, cpu, left, message = worker, total = <int64_t>(rate * seconds), sent = 0
    polled[0].fd, polled[1].fd = publisher, subscriber
    polled[0].events = polled[1].events = POLLIN
    cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID)
    begin = clock_us(CLOCK_MONOTONIC)
    while not refused:
        due = begin + <int64_t>(min(message, total) * 1000000.0 / rate) + (0 if message < total else 500000)
        now = clock_us(CLOCK_MONOTONIC)
        if now >= due:
            if message >= total:
                break
            room = message % rooms
            command = commands[room]
            size = len(commands[room])
            put_hex(<char *>command + stamp, message)
            with nogil:
                send(publisher, command, size, MSG_NOSIGNAL)
            message += workers
            continue
        with nogil:
            left = due - now
            pause.tv_sec = left // 1000000
            pause.tv_nsec = left % 1000000 * 1000
            ppoll(polled, 2, &pause, NULL)
            if polled[0].revents:
                got = recv(publisher, buffer, 65536, 0)
                refused = got <= 0 or buffer[0] == c"-"
            if polled[1].revents:
                got = recv(subscriber, buffer + kept, 65536 - kept, 0)
                place = buffer
                end = buffer + kept + (got if got > 0 else 0)
                while True:
                    found = <char *>memmem(place, end - place, b"}:ch\r\n", 6)
                    if found == NULL:
                        break
                    place = found + 6
                    room = 0
                    for i in range(4):
                        room = room * 16 + digit((found - 4 + i)[0])
                    i = room
                    while i < count:
                        sent += send(all_fds[i], raw, size_of_frame, MSG_NOSIGNAL) == size_of_frame
                        i += rooms
                kept = min(<size_t>(end - place), <size_t>9)
                memmove(buffer, end - kept, kept)
    cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu
    free(all_fds)
    if refused:
        raise ValueError("the store refused a command: " + buffer[:max(0, min(got, 200))].decode("utf-8", "replace"))
    return sent, cpu / 1e6


cdef inline int digit(char character) noexcept nogil:
    return character - 48 if character < 58 else character - 87


cdef void put_hex(char *place, int64_t number) noexcept nogil:
    cdef int i
    for i in range(15, -1, -1):
        place[i] = b"0123456789abcdef"[number & 15]
        number >>= 4


def drain(list fds, double seconds):
    """Read and throw away what comes on these sockets; returns the bytes."""
    cdef int poll = epoll_create1(0), ready, i
    cdef epoll_event event
    cdef epoll_event[1024] events
    cdef char[65536] buffer
    cdef ssize_t got
    cdef int64_t total = 0, end = clock_us(CLOCK_MONOTONIC) + <int64_t>(seconds * 1000000)
    for fd in fds:
        event.events = EPOLLIN
        event.data.fd = fd
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)
    with nogil:
        while clock_us(CLOCK_MONOTONIC) < end:
            ready = epoll_wait(poll, events, 1024, 20)
            for i in range(ready):
                got = recv(events[i].data.fd, buffer, 65536, 0)
                if got > 0:
                    total += got
    return total
