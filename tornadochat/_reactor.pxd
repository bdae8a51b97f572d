"""Fields of the reactor and its parts; who owns each pointer and how long it lives.

Only the loop's thread touches any of this. Functions marked ``nogil`` touch C memory alone.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from tornadochat._fastframe cimport Batch, Deflater, decoder_t, frame_t, shared_t
from tornadochat._poller cimport Poller, Sockets

# Bytes that wait for one socket; owns one reference to `shared` and one to `channel`.
cdef struct segment_t:
    segment_t *next
    shared_t *shared
    channel_t *channel      # NULL for answers, which are never dropped
    uint32_t start          # the bytes shared.data[start:end] are still to be sent
    uint32_t end
    uint64_t first_seq      # of the event at the original start; 0 where events carry none
    uint8_t replayed
    uint8_t begun           # some of it is on its way, so the frame in progress must be finished

# A room that a connection is in; `channel` holds the connection in turn, both go together.
cdef struct membership_t:
    channel_t *channel
    uint32_t index          # of its entry in channel.entries

# One for each open connection. Freed when the events in hand have been handled.
cdef struct conn_t:
    # A fan-out looks at the first 32 bytes alone, so they come first: one cache line for each member.
    segment_t *first
    int fd                  # -1 once closed
    uint32_t flags
    uint32_t answer_bytes   # queued: answers and control frames
    uint32_t room_bytes     # queued: room events
    uint32_t replay_bytes   # the part of room_bytes that was replayed
    uint32_t progress       # when the socket took something, or the queue began
    segment_t *last
    PyObject *connection    # the Connection; one reference owned while the socket is open
    membership_t *rooms     # owned; room_count of room_capacity are used
    conn_t *wheel_next      # neighbours in one slot of the timer wheel
    conn_t *wheel_previous
    conn_t *next_left       # in the list of broken or of dead connections
    uint32_t room_count
    uint32_t room_capacity
    uint32_t heard          # seconds of the reactor's clock; any byte counts
    uint32_t due            # when the wheel looks at it next
    uint32_t slot
    uint32_t generation
    uint32_t close_code     # what on_closed will tell
    decoder_t decoder

# One member of a room.
cdef struct entry_t:
    conn_t *conn            # NULL for one that left during a walk
    uint64_t next_seq       # what this member gets next
    uint32_t resets         # of the channel that it knows: what was broadcast before is not for it
    uint8_t state

# A batch on its way to all members; owns one reference to `shared` and one to `deflated`.
cdef struct job_t:
    job_t *next
    shared_t *shared
    shared_t *deflated      # the same events for those who negotiated compression; NULL where nobody did
    uint64_t next_seq       # for a reset
    uint32_t resets         # of the channel when this was broadcast, itself included
    uint32_t begin          # where the walk was when this got on, and in which lap
    uint32_t lap
    uint8_t kind

# What one member gets of a batch: shared.data from `start` on. Borrowed.
cdef struct piece_t:
    shared_t *shared
    uint64_t first_seq      # 0 where events carry none
    uint32_t start

# One room on this transport. Lives as long as its Channel, and then as long as segments name it.
cdef struct channel_t:
    entry_t *entries        # owned; size of capacity are used, tombstones among them
    job_t *first_job
    job_t *last_job
    channel_t *next_walk    # in the ring of channels with unfinished jobs
    PyObject *owner         # the Channel; borrowed, NULL once it is gone
    uint64_t walked_seq
    uint32_t size
    uint32_t capacity
    uint32_t tombstones
    uint32_t cursor         # entry that the walk comes to next
    uint32_t lap            # how often it has come to the end
    uint32_t references
    uint32_t resets         # so far
    uint32_t jobs           # from first_job to last_job
    uint32_t walked         # the first so many of them are on the walk; the others wait
    uint32_t deflating      # members that negotiated compression
    uint8_t walking         # whether it is in the list of unfinished walks


cdef class Connection:
    cdef conn_t *conn       # NULL once closed
    cdef Reactor reactor
    cdef public object owner

    cdef void put(self, bytes data, uint8_t opcode)


cdef class Channel:
    cdef channel_t *channel
    cdef Reactor reactor
    cdef public object key

    cdef entry_t *entry_of(self, Connection connection) except NULL


cdef class Reactor(Sockets):
    cdef Poller poller
    cdef Deflater deflater          # None where compression is off
    cdef object on_text, on_binary, on_closed, on_drained, on_gap
    cdef public object on_work_left
    cdef int epoll
    cdef unsigned char *buffer
    cdef conn_t **slots             # by slot; NULL where free
    cdef uint32_t *generations
    cdef uint32_t *free_slots
    cdef uint32_t slot_count, slot_capacity, free_count
    cdef conn_t **wheel             # WHEEL_SLOTS heads
    cdef uint32_t wheel_at          # second that the wheel has come to
    cdef conn_t *broken             # sends failed during a walk; closed when it pauses
    cdef conn_t *dead               # closed; freed when nothing is in hand
    cdef channel_t *first_walk
    cdef channel_t *last_walk
    cdef uint32_t max_message, max_backlog, max_answer, replay_limit
    cdef uint32_t ping_after, pong_after, close_after, stuck_after
    cdef conn_t *parsed             # whose bytes are being handled, and what is left of them
    cdef unsigned char *parsed_data
    cdef size_t parsed_size
    cdef int depth
    cdef int64_t spent_us, last_walk_us
    cdef shared_t *ping
    cdef uint64_t random_state
    cdef uint64_t deliveries_, messages_, bytes_sent_, bytes_received_, drops_, gaps_
    cdef uint32_t connections_
    cdef int64_t longest_hold

    cdef int take_slot(self, conn_t *conn) except -1
    cdef void give_slot(self, uint32_t slot) noexcept nogil
    cdef conn_t *find(self, uint64_t data) noexcept
    cdef void call(self, object handler, conn_t *conn, object argument)
    cdef void on_readable(self, conn_t *conn)
    cdef void on_writable(self, conn_t *conn)
    cdef void parse(self, conn_t *conn, unsigned char *data, size_t size)
    cdef void message(self, conn_t *conn, object handler, int kind, frame_t *frame)
    cdef void peer_closed(self, conn_t *conn, uint32_t code)
    cdef void start_close(self, conn_t *conn, int code, str reason)
    cdef void finish_close(self, conn_t *conn)
    cdef void close_now(self, conn_t *conn, uint32_t code)
    cdef void tell_gaps(self, conn_t *conn)
    cdef void close_broken(self)
    cdef void bury(self)
    cdef void mark_broken(self, conn_t *conn) noexcept nogil
