# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
"""The frame codec: bytes to messages, and a room's batch to the frames that all its members share.

Second and eighth step of the walk: ``_reactor`` feeds it what it read and writes what it made. Pure:
no sockets, no store, no loop. Framing follows RFC 6455 section 5, UTF-8 RFC 3629, close codes RFC
6455 section 7.4. Lengths that come from outside are checked before they are used.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

cimport cython

import zlib

from tornadochat.errors import FrameError

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)

OP_CONTINUATION = 0x0
OP_TEXT = 0x1
OP_BINARY = 0x2
OP_CLOSE = 0x8
OP_PING = 0x9
OP_PONG = 0xA

cdef enum:
    # decoder_t.flags
    REQUIRE_MASK = 1
    MASKED = 2
    FINAL = 4
    IN_PAYLOAD = 8
    FAILED = 16
    PARTIAL_GIVEN = 32      # the caller has seen `partial`; it is freed at the next call
    DEFLATES = 64           # permessage-deflate is negotiated
    COMPRESSED = 128        # the unfinished data message is compressed
    # A published payload: kind, epoch, first_seq, count; then a length before each body.
    EPOCH_BYTES = 8
    PUBLISHED_HEAD = 21
    LENGTH_BYTES = 4
    # {"seq":18446744073709551615, and the longest frame header
    MAX_PREFIX = 28
    MAX_HEADER = 10
    FIRST_PARTIAL = 512     # smallest allocation for an unfinished message

# Frames of one batch are found by 32-bit offsets.
cdef uint64_t MAX_BATCH_BYTES = 0xFFFFFFFF


# Shared bytes --------------------------------------------------------------------------------------

cdef shared_t *shared_new(size_t size, uint64_t first_seq, uint32_t count) noexcept nogil:
    """One allocation with one reference; NULL when there is no memory."""
    cdef size_t offsets = (<size_t>count + 1) * sizeof(uint32_t)
    cdef shared_t *shared = <shared_t *>malloc(sizeof(shared_t) + offsets + size)
    if shared == NULL:
        return NULL
    shared.references = 1
    shared.size = size
    shared.first_seq = first_seq
    shared.count = count
    shared.offsets = <uint32_t *>(<unsigned char *>shared + sizeof(shared_t))
    shared.data = <unsigned char *>shared.offsets + offsets
    shared.offsets[0] = 0
    return shared


cdef void shared_retain(shared_t *shared) noexcept nogil:
    shared.references += 1


cdef void shared_release(shared_t *shared) noexcept nogil:
    shared.references -= 1
    if shared.references == 0:
        free(shared)


@cython.final
@cython.no_gc
cdef class Batch:
    """Frames that many members share; made by the ``encode_`` functions, never changed."""

    def __init__(self):
        raise TypeError("a Batch is made by encode_events, encode_published or encode_plain")

    @staticmethod
    cdef Batch adopt(shared_t *shared):
        """Take over one reference."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.shared = shared
        return batch

    def __dealloc__(self):
        if self.shared != NULL:
            shared_release(self.shared)

    @property
    def first_seq(self):
        """Seq of the first event; 0 where events carry none."""
        return self.shared.first_seq

    @property
    def last_seq(self):
        """Seq of the last event; 0 where events carry none."""
        return self.shared.first_seq + self.shared.count - 1 if self.shared.first_seq else 0

    @property
    def count(self):
        """Number of events, a frame each."""
        return self.shared.count

    @property
    def size(self):
        """Bytes of all frames."""
        return self.shared.size

    @property
    def address(self):
        """Of the bytes, which all members share."""
        return <uintptr_t>self.shared.data

    @property
    def references(self):
        """Holders of these bytes: this object and every member that still has to send some."""
        return self.shared.references

    def frames(self, start_seq=0):
        """A copy of the frames from ``start_seq`` on; all of them for 0."""
        cdef uint64_t start = start_seq
        cdef uint32_t skip = 0
        if self.shared.first_seq and start > self.shared.first_seq:
            skip = <uint32_t>min(start - self.shared.first_seq, <uint64_t>self.shared.count)
        skip = self.shared.offsets[skip]
        return PyBytes_FromStringAndSize(<char *>self.shared.data + skip, self.shared.size - skip)


# Encoding ------------------------------------------------------------------------------------------

cdef inline size_t header_size(size_t size) noexcept nogil:
    return 2 if size < 126 else 4 if size < 65536 else 10


cdef size_t put_header(unsigned char *out, uint8_t opcode, size_t size) noexcept nogil:
    cdef int i
    out[0] = 0x80 | opcode
    if size < 126:
        out[1] = <unsigned char>size
        return 2
    if size < 65536:
        out[1] = 126
        out[2] = <unsigned char>(size >> 8)
        out[3] = <unsigned char>(size & 0xFF)
        return 4
    out[1] = 127
    for i in range(8):
        out[2 + i] = <unsigned char>((<uint64_t>size >> (56 - 8 * i)) & 0xFF)
    return 10


cdef inline int digits_of(uint64_t value) noexcept nogil:
    cdef int digits = 1
    while value >= 10:
        value //= 10
        digits += 1
    return digits


cdef inline size_t event_size(size_t body, uint64_t seq) noexcept nogil:
    """Bytes of a body's payload with its seq spliced in: ``{"seq":N,`` for ``{``."""
    return body + 7 + digits_of(seq)


cdef inline size_t put_event(
    unsigned char *out, const unsigned char *body, size_t size, uint64_t seq
) noexcept nogil:
    """Write one text frame; returns its bytes."""
    cdef int digits = digits_of(seq), i
    cdef size_t at = put_header(out, 0x1, event_size(size, seq))
    memcpy(out + at, b'{"seq":', 7)
    at += 7
    for i in range(digits):
        out[at + digits - 1 - i] = <unsigned char>(48 + seq % 10)
        seq //= 10
    at += digits
    out[at] = 44  # a comma
    memcpy(out + at + 1, body + 1, size - 1)
    return at + size


cdef inline bint is_body(const unsigned char *body, size_t size) noexcept nogil:
    """Whether a seq can be spliced in: an object with at least one member."""
    return size >= 3 and body[0] == 123 and body[1] != 125


cdef inline Py_ssize_t size_of(bytes body) except -1:
    """Bytes of a body out of a sequence, where Cython's type lets None pass."""
    if body is None:
        raise TypeError("a body is bytes, not None")
    return PyBytes_GET_SIZE(body)


cdef Batch new_batch(size_t size, uint64_t first_seq, size_t count):
    if size > MAX_BATCH_BYTES or count >= MAX_BATCH_BYTES:
        raise ValueError(f"a batch of {size} bytes is too large; its limit is {MAX_BATCH_BYTES}")
    cdef shared_t *shared = shared_new(size, first_seq, <uint32_t>count)
    if shared == NULL:
        raise MemoryError("no memory for a batch of frames")
    return Batch.adopt(shared)


def encode_frame(int opcode, bytes payload not None, mask=None, bint fin=True):
    """One frame of RFC 6455 section 5.2.

    Args:
        opcode: One of the ``OP_`` constants.
        payload: Unmasked payload.
        mask: Four bytes as a client sends; None as a server sends.
        fin: Whether it ends its message.
    """
    cdef unsigned char[MAX_HEADER] head
    cdef size_t size = PyBytes_GET_SIZE(payload), used
    used = put_header(head, <uint8_t>(opcode & 0xF), size)
    if not fin:
        head[0] &= 0x7F
    if mask is None:
        return PyBytes_FromStringAndSize(<char *>head, used) + payload
    if len(mask) != 4:
        raise ValueError("a mask is four bytes")
    head[1] |= 0x80
    cdef bytes masked = PyBytes_FromStringAndSize(PyBytes_AS_STRING(payload), size)
    cdef bytes key = mask
    if size <= 1:
        # CPython shares empty and one-byte objects, so they must not be changed in place.
        masked = bytes(byte ^ key[0] for byte in payload)
    else:
        unmask(<unsigned char *>PyBytes_AS_STRING(masked), size, <unsigned char *>PyBytes_AS_STRING(key), 0)
    return PyBytes_FromStringAndSize(<char *>head, used) + key + masked


def encode_close(int code, str reason not None="", mask=None):
    """A close frame; a reason beyond 123 bytes of UTF-8 is cut (RFC 6455 section 5.5)."""
    text = reason.encode("utf-8")[:123].decode("utf-8", "ignore").encode("utf-8")
    return encode_frame(OP_CLOSE, bytes((code >> 8, code & 0xFF)) + text, mask)


def encode_events(first_seq, bodies):
    """A batch of a room's log: each body a text frame with its seq spliced in.

    Args:
        first_seq: Place in the log of the first body, from 1; the others follow without a hole.
        bodies: UTF-8 JSON objects with at least one member and without ``seq``.

    Raises:
        ValueError: There is no body, one is no such object, or their seqs go beyond 64 bits.
    """
    cdef uint64_t first = first_seq, seq
    cdef size_t size = 0, used = 0, payload
    cdef uint32_t count = 0
    cdef bytes body
    cdef list counted = list(bodies)  # both passes see the same
    if first == 0 or not counted:
        raise ValueError("a batch has at least one event and its first seq is at least 1")
    if first + <uint64_t>len(counted) < first:
        raise ValueError("a seq is below 2**64 - 1")
    for body in counted:
        payload = size_of(body)
        if not is_body(<unsigned char *>PyBytes_AS_STRING(body), payload):
            raise ValueError("a body is a JSON object with at least one member")
        payload = event_size(payload, first + count)
        size += payload + header_size(payload)
        count += 1
    cdef Batch batch = new_batch(size, first, count)
    seq = first
    count = 0
    for body in counted:
        used += put_event(
            batch.shared.data + used,
            <unsigned char *>PyBytes_AS_STRING(body),
            PyBytes_GET_SIZE(body),
            seq,
        )
        seq += 1
        count += 1
        batch.shared.offsets[count] = <uint32_t>used
    return batch


def encode_plain(bodies):
    """A batch of events without a seq, each body a text frame as it is."""
    cdef size_t size = 0, used = 0, payload
    cdef uint32_t count = 0
    cdef bytes body
    cdef list counted = list(bodies)  # both passes see the same
    for body in counted:
        payload = size_of(body)
        size += payload + header_size(payload)
        count += 1
    cdef Batch batch = new_batch(size, 0, count)
    count = 0
    for body in counted:
        payload = PyBytes_GET_SIZE(body)
        used += put_header(batch.shared.data + used, 0x1, payload)
        memcpy(batch.shared.data + used, PyBytes_AS_STRING(body), payload)
        used += payload
        count += 1
        batch.shared.offsets[count] = <uint32_t>used
    return batch


# What was published --------------------------------------------------------------------------------

cdef inline uint64_t read_number(const unsigned char *at, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = (value << 8) | at[i]
    return value


def pack_published(bytes epoch not None, first_seq, bodies):
    """The payload that the store's script publishes for a batch, see ``encode_published``."""
    if len(epoch) != EPOCH_BYTES:
        raise ValueError("an epoch has eight characters")
    parts = [b"E", epoch, int(first_seq).to_bytes(8, "big"), len(bodies).to_bytes(4, "big")]
    for body in bodies:
        parts.append(len(body).to_bytes(4, "big"))
        parts.append(body)
    return b"".join(parts)


def published_header(bytes payload not None):
    """Epoch, first seq and number of events of a published batch, its bodies not looked at.

    Raises:
        ValueError: It is no published batch.
    """
    cdef unsigned char *data = <unsigned char *>PyBytes_AS_STRING(payload)
    if PyBytes_GET_SIZE(payload) < PUBLISHED_HEAD or data[0] != 69:
        raise ValueError("this is no published batch")
    cdef uint64_t first = read_number(data + 9, 8), count = read_number(data + 17, 4)
    if first == 0 or count == 0 or first + count < first:
        raise ValueError("a published batch has at least one event and its first seq is at least 1")
    return PyBytes_FromStringAndSize(<char *>data + 1, EPOCH_BYTES), first, count


cdef object walk_published(bytes payload, uint64_t start, size_t *size, uint64_t *first, uint64_t *count):
    """Check one payload whole; adds the frame bytes of its events from ``start`` on to ``size``."""
    cdef unsigned char *data = <unsigned char *>PyBytes_AS_STRING(payload)
    cdef size_t total = size_of(payload), at = PUBLISHED_HEAD, body, event
    cdef uint64_t seq, left
    published_header(payload)
    first[0] = seq = read_number(data + 9, 8)
    count[0] = left = read_number(data + 17, 4)
    while left:
        if total - at < LENGTH_BYTES:
            raise ValueError("a published batch ends before its last event")
        body = read_number(data + at, LENGTH_BYTES)
        at += LENGTH_BYTES
        if body > total - at:
            raise ValueError("a published batch ends within an event")
        if not is_body(data + at, body):
            raise ValueError("a body is a JSON object with at least one member")
        if seq >= start:
            event = event_size(body, seq)
            size[0] += event + header_size(event)
        at += body
        seq += 1
        left -= 1
    if at != total:
        raise ValueError("a published batch has bytes behind its last event")


def published_bodies(bytes payload not None):
    """The bodies of a published batch, checked whole.

    Raises:
        ValueError: It is malformed.
    """
    cdef unsigned char *data = <unsigned char *>PyBytes_AS_STRING(payload)
    cdef size_t size = 0, at = PUBLISHED_HEAD, body
    cdef uint64_t first, count
    walk_published(payload, 0, &size, &first, &count)
    found = []
    while count:
        body = read_number(data + at, LENGTH_BYTES)
        at += LENGTH_BYTES
        found.append(PyBytes_FromStringAndSize(<char *>data + at, body))
        at += body
        count -= 1
    return found


def encode_published(payloads, start_seq=0):
    """Published batches of one room as one batch of frames, straight from their bytes.

    Each payload is ``E``, the epoch (8 bytes), the first seq (8 bytes) and the number of events (4
    bytes), then each event with its length (4 bytes) before it; numbers are big-endian.

    Args:
        payloads: Batches of one epoch whose seqs follow each other; they may overlap.
        start_seq: Events below are left out.

    Raises:
        ValueError: One is malformed, there is a hole between two, or nothing is left.
    """
    cdef uint64_t start = start_seq, next_seq = 0, first = 0, count = 0, seq, events = 0
    cdef size_t size = 0, used = 0, at, body
    cdef bytes payload
    cdef list counted = list(payloads)  # both passes see the same
    cdef unsigned char *data
    for payload in counted:
        walk_published(payload, max(start, next_seq), &size, &first, &count)
        if next_seq == 0:
            start = max(start, first)
            next_seq = start
        if first > next_seq:
            raise ValueError(f"a published batch starts at {first}, not at {next_seq}")
        next_seq = max(next_seq, first + count)
    if next_seq <= start:
        raise ValueError("no event is left to encode")
    cdef Batch batch = new_batch(size, start, <size_t>(next_seq - start))
    next_seq = start
    for payload in counted:
        data = <unsigned char *>PyBytes_AS_STRING(payload)
        seq = read_number(data + 9, 8)
        count = read_number(data + 17, 4)
        at = PUBLISHED_HEAD
        while count:
            body = read_number(data + at, LENGTH_BYTES)
            at += LENGTH_BYTES
            if seq == next_seq:
                used += put_event(batch.shared.data + used, data + at, body, seq)
                next_seq += 1
                events += 1
                batch.shared.offsets[events] = <uint32_t>used
            at += body
            seq += 1
            count -= 1
    return batch


include "_messages.pxi"
include "_deflate.pxi"
include "_decoder.pxi"
