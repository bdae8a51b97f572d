"""C interface of the frame codec; ``_reactor`` is its only C user."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

# Bytes that many members share. Counted by hand, since the fan-out runs without the GIL; only the
# loop's thread touches a count. Header, offsets and data are one allocation.
cdef struct shared_t:
    Py_ssize_t references
    size_t size             # bytes in data
    uint64_t first_seq      # 0 where the bytes carry no seq (presence, typing)
    uint32_t count          # events; the frame of event i is data[offsets[i]:offsets[i + 1]]
    uint32_t *offsets       # count + 1 of them
    unsigned char *data

cdef shared_t *shared_new(size_t size, uint64_t first_seq, uint32_t count) noexcept nogil
cdef void shared_retain(shared_t *shared) noexcept nogil
cdef void shared_release(shared_t *shared) noexcept nogil


cdef class Batch:
    cdef shared_t *shared   # one reference owned by this object
    cdef Batch deflated     # the same events compressed, once somebody wanted them so
    cdef bint incompressible    # nothing is smaller then

    @staticmethod
    cdef Batch adopt(shared_t *shared)


# What decoder_next found.
cdef enum:
    DECODED_NOTHING = 0     # all bytes used, no whole frame yet
    DECODED_TEXT = 1        # a whole text message, UTF-8 checked
    DECODED_BINARY = 2
    DECODED_CLOSE = 8       # frame_t.code is the peer's code, 1005 where it gave none
    DECODED_PING = 9
    DECODED_PONG = 10
    DECODED_ERROR = -1      # frame_t.code and frame_t.reason say how to close; feed nothing more

cdef struct frame_t:
    unsigned char *payload  # unmasked; in the caller's buffer or the decoder's, until the next call
    size_t size
    uint32_t code
    const char *reason      # static text, NUL-terminated
    bint compressed         # a data message: payload is what `inflate` takes, its text not checked

# 1 for each connection, so kept small; `partial` is NULL unless a message is unfinished.
cdef struct decoder_t:
    uint64_t remaining      # payload bytes of the current frame still to come
    unsigned char *partial  # unmasked payload of the unfinished data message
    uint32_t partial_size
    uint32_t partial_capacity
    uint32_t max_message    # bytes
    uint32_t utf8_state     # DFA over fragments
    unsigned char mask[4]
    unsigned char header[14]    # header bytes that came so far
    uint8_t header_size
    uint8_t opcode          # of the current frame
    uint8_t message_opcode  # of the unfinished fragmented message, 0 if none
    uint8_t flags           # see _fastframe.pyx
    unsigned char control[125]  # payload of an unfinished control frame
    uint8_t control_size
    uint8_t mask_offset

cdef void decoder_init(decoder_t *decoder, uint32_t max_message, bint require_mask, bint deflates) noexcept nogil
cdef void decoder_free(decoder_t *decoder) noexcept nogil
# Uses bytes from data (unmasking them in place) until one message or control frame is whole, an
# error is found, or data is used up; *used tells how many. Call again while *used < size.
cdef int decoder_next(decoder_t *decoder, unsigned char *data, size_t size, size_t *used, frame_t *frame) noexcept nogil

# A whole message whose frames were compressed; FrameError where it is too large, damaged, or no UTF-8.
cdef bytes inflate_message(const frame_t *frame, int kind, size_t limit)


cdef class Deflater:
    cdef object stream      # of zlib; flushed fully after each event
    cdef size_t min_bytes

    cdef Batch make(self, Batch batch)
    cdef bytes frame(self, const unsigned char *plain, size_t size)

# Writes an unmasked server header for a final frame; returns its length (2, 4 or 10).
cdef size_t put_header(unsigned char *out, uint8_t opcode, size_t size) noexcept nogil
