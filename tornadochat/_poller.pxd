"""The one epoll of a worker; who owns what stands in ``_poller.pyx``."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLERR
        EPOLLHUP
        EPOLLIN
        EPOLLOUT
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
    ssize_t send(int fd, const void *buf, size_t size, int flags)
    ssize_t recv(int fd, void *buf, size_t size, int flags)

# Kinds of descriptors, in the upper bits of epoll's data; members' sockets have none of them.
cdef enum:
    GENERATION_BITS = 0x3FFFFFFF    # of a member's generation, in the bits above its slot

cdef int64_t now_us() noexcept nogil


cdef class Sockets:
    """Who takes the events of members' sockets; the reactor."""

    cdef void begin_turn(self, int64_t now)
    cdef void on_events(self, uint64_t data, uint32_t events)
    # Returns whether work is left that does not wait for events.
    cdef bint end_turn(self, int64_t begun)


cdef class Poller:
    cdef readonly int epoll
    cdef Sockets sockets            # the reactor that it was given to; None for none
    cdef dict streams               # number -> Stream that is open
    cdef list after                 # called at the end of the turn
    cdef public bint interrupted    # the loop has something to do of its own
    cdef bint work_left
    cdef uint32_t streams_made
    cdef int64_t interval_us        # between two turns of a busy worker; 0 for none
    cdef int64_t beat_us, settle_us  # see ``pace``; 0 where it was not asked for
    cdef public object unanswered   # tells whether the store still has something to answer; None for never
    cdef readonly bint settled      # this turn is one for the streams alone
    cdef readonly int64_t waited_us
    cdef bint heard                 # the last one was not
    cdef bint left                  # the last one did not read all that there was
    cdef int64_t watched_us         # when something last came that the loop watches
    cdef int64_t turned_us          # when the last turn began
    cdef int64_t rest_until_us      # what `work_left` tells of is not gone on with before
    cdef double load                # events of the last LOAD_US, older ones counted less and less
    cdef unsigned char *buffer

    cdef int longest_pause(self, bint forever, int64_t until_us)
    cdef int turn(self, int pause_ms, list found) except -1
    cdef int turn_streams(self) except -1
    cdef void open_turn(self)
    cdef int close_turn(self, list late) except -1
    cdef void run_after(self)
    cdef bint choose_turn(self, int64_t *due_us) except -1
    cdef void sleep_until(self, int64_t due_us) noexcept


cdef class Stream:
    cdef Poller poller
    cdef object protocol            # None once it was told of the end
    cdef list queue                 # bytes objects that wait for the socket; only while it is full
    cdef size_t offset              # of the first of them, sent already
    cdef int fd                     # -1 once closed
    cdef uint32_t number
    cdef bint writable_watched
    cdef bint late                  # read behind everything else of a turn

    cdef void on_events(self, uint32_t events)
    cdef int send_queue(self) except -1
    cdef void watch_writable(self, bint writable)
    cdef void lose(self, object error)
