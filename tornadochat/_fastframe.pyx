# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
"""The frame codec: bytes to messages, and a room's batch to the frames that all its members share.

Second and eighth step of the walk: ``_reactor`` feeds it what it read and writes what it made. Pure:
no sockets, no store, no loop. Framing follows RFC 6455 section 5, UTF-8 RFC 3629, close codes RFC
6455 section 7.4. Lengths that come from outside are checked before they are used.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cimport cython

from tornadochat.errors import FrameError

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


cdef Batch new_batch(size_t size, uint64_t first_seq, size_t count):
    if size > MAX_BATCH_BYTES or count >= MAX_BATCH_BYTES:
        raise ValueError(f"a batch of {size} bytes is too large; its limit is {MAX_BATCH_BYTES}")
    cdef shared_t *shared = shared_new(size, first_seq, <uint32_t>count)
    if shared == NULL:
        raise MemoryError("no memory for a batch of frames")
    return Batch.adopt(shared)


def encode_frame(int opcode, bytes payload, mask=None, bint fin=True):
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


def encode_close(int code, str reason="", mask=None):
    """A close frame; a reason beyond 123 bytes of UTF-8 is cut (RFC 6455 section 5.5)."""
    text = reason.encode("utf-8")[:123].decode("utf-8", "ignore").encode("utf-8")
    return encode_frame(OP_CLOSE, bytes((code >> 8, code & 0xFF)) + text, mask)


def encode_events(first_seq, bodies):
    """A batch of a room's log: each body a text frame with its seq spliced in.

    Args:
        first_seq: Place in the log of the first body, from 1; the others follow without a hole.
        bodies: UTF-8 JSON objects with at least one member and without ``seq``.

    Raises:
        ValueError: There is no body, or one is no such object.
    """
    cdef uint64_t first = first_seq, seq
    cdef size_t size = 0, used = 0, payload
    cdef uint32_t count = 0
    cdef bytes body
    if first == 0 or not bodies:
        raise ValueError("a batch has at least one event and its first seq is at least 1")
    for body in bodies:
        payload = PyBytes_GET_SIZE(body)
        if not is_body(<unsigned char *>PyBytes_AS_STRING(body), payload):
            raise ValueError("a body is a JSON object with at least one member")
        payload = event_size(payload, first + count)
        size += payload + header_size(payload)
        count += 1
    cdef Batch batch = new_batch(size, first, count)
    seq = first
    count = 0
    for body in bodies:
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
    for body in bodies:
        payload = PyBytes_GET_SIZE(body)
        size += payload + header_size(payload)
        count += 1
    cdef Batch batch = new_batch(size, 0, count)
    count = 0
    for body in bodies:
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


def pack_published(bytes epoch, first_seq, bodies):
    """The payload that the store's script publishes for a batch, see ``encode_published``."""
    if len(epoch) != EPOCH_BYTES:
        raise ValueError("an epoch has eight characters")
    parts = [b"E", epoch, int(first_seq).to_bytes(8, "big"), len(bodies).to_bytes(4, "big")]
    for body in bodies:
        parts.append(len(body).to_bytes(4, "big"))
        parts.append(body)
    return b"".join(parts)


def published_header(bytes payload):
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
    cdef size_t total = PyBytes_GET_SIZE(payload), at = PUBLISHED_HEAD, body, event
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


def published_bodies(bytes payload):
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
    cdef unsigned char *data
    for payload in payloads:
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
    for payload in payloads:
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


# Decoding ------------------------------------------------------------------------------------------

cdef void unmask(unsigned char *data, size_t size, const unsigned char *mask, uint8_t offset) noexcept nogil:
    """RFC 6455 section 5.3 in place, eight bytes at a time; ``offset`` is the place in the mask."""
    cdef unsigned char[8] key
    cdef uint64_t word, wide
    cdef size_t i = 0
    for i in range(8):
        key[i] = mask[(offset + i) & 3]
    memcpy(&wide, key, 8)
    i = 0
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        word ^= wide
        memcpy(data + i, &word, 8)
        i += 8
    while i < size:
        data[i] ^= key[i & 7]
        i += 1


cdef enum:
    UTF8_OK = 0
    UTF8_BAD = 1

cdef uint32_t utf8_step(uint32_t state, const unsigned char *data, size_t size) noexcept nogil:
    """Check UTF-8 (RFC 3629) from one state to the next.

    A state is 0 between characters, UTF8_BAD for good once something was wrong, else how many bytes
    must follow (bits 2 to 3) and between which bounds the next one lies (bits 8 to 15 and 16 to 23).
    """
    cdef size_t i = 0
    cdef uint64_t word
    cdef unsigned char byte
    cdef uint32_t left, low, high
    if state == UTF8_BAD:
        return state
    while i < size:
        if state == UTF8_OK:
            while i + 8 <= size:
                memcpy(&word, data + i, 8)
                if word & <uint64_t>0x8080808080808080:
                    break
                i += 8
            if i >= size:
                break
            byte = data[i]
            i += 1
            if byte < 0x80:
                continue
            low, high = 0x80, 0xBF
            if 0xC2 <= byte <= 0xDF:
                left = 1
            elif 0xE0 <= byte <= 0xEF:
                left = 2
                if byte == 0xE0:
                    low = 0xA0
                elif byte == 0xED:
                    high = 0x9F
            elif 0xF0 <= byte <= 0xF4:
                left = 3
                if byte == 0xF0:
                    low = 0x90
                elif byte == 0xF4:
                    high = 0x8F
            else:
                return UTF8_BAD
        else:
            byte = data[i]
            i += 1
            if byte < ((state >> 8) & 0xFF) or byte > (state >> 16):
                return UTF8_BAD
            left = ((state >> 2) & 3) - 1
            low, high = 0x80, 0xBF
        state = (left << 2) | (low << 8) | (high << 16) if left else UTF8_OK
    return state


cdef inline bint is_close_code(uint32_t code) noexcept nogil:
    """Codes that may stand in a close frame (RFC 6455 section 7.4 and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef void decoder_init(decoder_t *decoder, uint32_t max_message, bint require_mask) noexcept nogil:
    decoder.remaining = 0
    decoder.partial = NULL
    decoder.partial_size = decoder.partial_capacity = 0
    decoder.max_message = max_message
    decoder.utf8_state = UTF8_OK
    decoder.header_size = decoder.opcode = decoder.message_opcode = 0
    decoder.flags = REQUIRE_MASK if require_mask else 0
    decoder.control_size = decoder.mask_offset = 0


cdef void decoder_free(decoder_t *decoder) noexcept nogil:
    free(decoder.partial)
    decoder.partial = NULL
    decoder.partial_size = decoder.partial_capacity = 0


cdef int fail(decoder_t *decoder, frame_t *frame, uint32_t code, const char *reason) noexcept nogil:
    decoder.flags |= FAILED
    frame.code = code
    frame.reason = reason
    frame.payload = NULL
    frame.size = 0
    decoder_free(decoder)
    return DECODED_ERROR


cdef int check_start(decoder_t *decoder, frame_t *frame) noexcept nogil:
    """The first two bytes of a header, checked as soon as they are there; 0 when they are right."""
    cdef uint8_t opcode = decoder.header[0] & 0x0F, size = decoder.header[1] & 0x7F
    if decoder.header[0] & 0x70:
        return fail(decoder, frame, 1002, b"reserved bits are set")
    if opcode > 0xA or 0x3 <= opcode <= 0x7:
        return fail(decoder, frame, 1002, b"reserved opcode")
    if decoder.flags & REQUIRE_MASK and not decoder.header[1] & 0x80:
        return fail(decoder, frame, 1002, b"frames of a client must be masked")
    if not decoder.flags & REQUIRE_MASK and decoder.header[1] & 0x80:
        return fail(decoder, frame, 1002, b"frames of a server must not be masked")
    if opcode & 0x8:
        if not decoder.header[0] & 0x80:
            return fail(decoder, frame, 1002, b"control frames cannot be fragmented")
        if size > 125:
            return fail(decoder, frame, 1002, b"control frames are at most 125 bytes")
    elif opcode == 0 and decoder.message_opcode == 0:
        return fail(decoder, frame, 1002, b"continuation without a start")
    elif opcode != 0 and decoder.message_opcode != 0:
        return fail(decoder, frame, 1002, b"a new message within a fragmented one")
    return 0


cdef int take_header(decoder_t *decoder, frame_t *frame) noexcept nogil:
    """A whole header: note what it says; 0 when it is right."""
    cdef uint8_t size = decoder.header[1] & 0x7F
    cdef int at = 2
    decoder.opcode = decoder.header[0] & 0x0F
    decoder.remaining = size
    if size == 126:
        decoder.remaining = read_number(decoder.header + 2, 2)
        at = 4
        if decoder.remaining < 126:
            return fail(decoder, frame, 1002, b"the length is not in its shortest form")
    elif size == 127:
        decoder.remaining = read_number(decoder.header + 2, 8)
        at = 10
        if decoder.remaining >> 63:
            return fail(decoder, frame, 1002, b"the top bit of the length is set")
        if decoder.remaining < 65536:
            return fail(decoder, frame, 1002, b"the length is not in its shortest form")
    decoder.flags &= ~(MASKED | FINAL)
    if decoder.header[0] & 0x80:
        decoder.flags |= FINAL
    if decoder.header[1] & 0x80:
        decoder.flags |= MASKED
        memcpy(decoder.mask, decoder.header + at, 4)
    decoder.mask_offset = 0
    if not decoder.opcode & 0x8:
        if decoder.remaining > decoder.max_message - decoder.partial_size:
            return fail(decoder, frame, 1009, b"the message is too large")
        if decoder.opcode:
            decoder.message_opcode = decoder.opcode
            decoder.utf8_state = UTF8_OK
    decoder.flags |= IN_PAYLOAD
    decoder.header_size = decoder.control_size = 0
    return 0


cdef int read_header(
    decoder_t *decoder, const unsigned char *data, size_t size, size_t *used, frame_t *frame
) noexcept nogil:
    """Use header bytes; 0 with IN_PAYLOAD set once the header is whole."""
    cdef uint8_t need
    while used[0] < size:
        decoder.header[decoder.header_size] = data[used[0]]
        decoder.header_size += 1
        used[0] += 1
        if decoder.header_size < 2:
            continue
        if decoder.header_size == 2 and check_start(decoder, frame):
            return DECODED_ERROR
        need = decoder.header[1] & 0x7F
        need = 2 + (2 if need == 126 else 8 if need == 127 else 0) + (4 if decoder.header[1] & 0x80 else 0)
        if decoder.header_size == need:
            return take_header(decoder, frame)
    return 0


cdef int append_partial(decoder_t *decoder, const unsigned char *data, size_t size) noexcept nogil:
    """Keep payload of an unfinished message; grows with what came, never beyond the limit. 0 is done."""
    cdef uint64_t need = <uint64_t>decoder.partial_size + size, capacity
    cdef unsigned char *grown
    if need > decoder.partial_capacity:
        capacity = max(<uint64_t>decoder.partial_capacity * 2, need, <uint64_t>FIRST_PARTIAL)
        if capacity > decoder.max_message:
            capacity = max(need, <uint64_t>decoder.max_message)
        grown = <unsigned char *>realloc(decoder.partial, capacity)
        if grown == NULL:
            return -1
        decoder.partial = grown
        decoder.partial_capacity = <uint32_t>capacity
    memcpy(decoder.partial + decoder.partial_size, data, size)
    decoder.partial_size += <uint32_t>size
    return 0


cdef int finish_control(decoder_t *decoder, unsigned char *payload, size_t size, frame_t *frame) noexcept nogil:
    frame.payload = payload
    frame.size = size
    frame.code = 1005
    if decoder.opcode == 0x8 and size:
        if size == 1:
            return fail(decoder, frame, 1002, b"a close code has two bytes")
        frame.code = <uint32_t>read_number(payload, 2)
        if not is_close_code(frame.code):
            return fail(decoder, frame, 1002, b"this close code must not be sent")
        if utf8_step(UTF8_OK, payload + 2, size - 2) != UTF8_OK:
            return fail(decoder, frame, 1007, b"the close reason is not UTF-8")
    return decoder.opcode


cdef int read_control(
    decoder_t *decoder, unsigned char *data, size_t take, frame_t *frame
) noexcept nogil:
    """Use payload of a control frame; its kind once it is whole, else DECODED_NOTHING."""
    cdef unsigned char *payload = data
    if decoder.flags & MASKED:
        unmask(data, take, decoder.mask, decoder.mask_offset)
        decoder.mask_offset = (decoder.mask_offset + take) & 3
    decoder.remaining -= take
    if decoder.control_size or decoder.remaining:
        memcpy(decoder.control + decoder.control_size, data, take)
        decoder.control_size += <uint8_t>take
        payload = decoder.control
        take = decoder.control_size
    if decoder.remaining:
        return DECODED_NOTHING
    decoder.flags &= ~IN_PAYLOAD
    return finish_control(decoder, payload, take, frame)


cdef int read_data(decoder_t *decoder, unsigned char *data, size_t take, frame_t *frame) noexcept nogil:
    """Use payload of a data frame; the message's kind once it is whole, else DECODED_NOTHING."""
    cdef uint8_t kind = decoder.message_opcode
    cdef bint whole
    if decoder.flags & MASKED:
        unmask(data, take, decoder.mask, decoder.mask_offset)
        decoder.mask_offset = (decoder.mask_offset + take) & 3
    decoder.remaining -= take
    whole = decoder.remaining == 0 and decoder.flags & FINAL
    if kind == 0x1:
        decoder.utf8_state = utf8_step(decoder.utf8_state, data, take)
        if decoder.utf8_state == UTF8_BAD or (whole and decoder.utf8_state != UTF8_OK):
            return fail(decoder, frame, 1007, b"the text is not UTF-8")
    if decoder.remaining == 0:
        decoder.flags &= ~IN_PAYLOAD
    if whole and decoder.partial_size == 0:
        frame.payload = data
        frame.size = take
    else:
        if take and append_partial(decoder, data, take):
            return fail(decoder, frame, 1011, b"no memory for the message")
        if not whole:
            return DECODED_NOTHING
        frame.payload = decoder.partial
        frame.size = decoder.partial_size
        decoder.flags |= PARTIAL_GIVEN
    decoder.message_opcode = 0
    return kind


cdef int decoder_next(
    decoder_t *decoder, unsigned char *data, size_t size, size_t *used, frame_t *frame
) noexcept nogil:
    cdef size_t take
    cdef int found
    used[0] = 0
    if decoder.flags & FAILED:
        return fail(decoder, frame, 1002, b"the connection has failed")
    if decoder.flags & PARTIAL_GIVEN:
        decoder.flags &= ~PARTIAL_GIVEN
        decoder_free(decoder)
    while True:
        if not decoder.flags & IN_PAYLOAD:
            if read_header(decoder, data, size, used, frame):
                return DECODED_ERROR
            if not decoder.flags & IN_PAYLOAD:
                return DECODED_NOTHING
        take = size - used[0]
        if take > decoder.remaining:
            take = <size_t>decoder.remaining
        if decoder.opcode & 0x8:
            found = read_control(decoder, data + used[0], take, frame)
        else:
            found = read_data(decoder, data + used[0], take, frame)
        used[0] += take
        if found != DECODED_NOTHING or used[0] >= size:
            return found


@cython.final
cdef class FrameDecoder:
    """Bytes of one peer to its messages, whole or cut anywhere.

    Args:
        max_message_bytes: Limit of one message, all its fragments together; at most 2**31.
        require_mask: True for the frames of a client, False for those of a server.
    """

    cdef decoder_t decoder
    cdef object error

    def __cinit__(self, max_message_bytes, bint require_mask=True):
        if not 0 < max_message_bytes <= 1 << 31:
            raise ValueError("max_message_bytes is from 1 to 2**31")
        decoder_init(&self.decoder, max_message_bytes, require_mask)

    def __dealloc__(self):
        decoder_free(&self.decoder)

    def feed(self, bytes data):
        """Use bytes; returns the whole messages and control frames among them, in order.

        Returns:
            ``(opcode, payload)`` of each; text is checked UTF-8, fragments are joined.

        Raises:
            FrameError: The peer breached RFC 6455. What came before the breach is returned first,
                and the next call raises.
        """
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(data) + 1)
        cdef unsigned char *raw = <unsigned char *>PyBytes_AS_STRING(copy)
        cdef size_t size = PyBytes_GET_SIZE(data), used = 0
        cdef frame_t frame
        cdef int found
        frames = []
        if self.error is not None:
            raise self.error
        memcpy(raw, PyBytes_AS_STRING(data), size)
        while size:
            found = decoder_next(&self.decoder, raw, size, &used, &frame)
            raw += used
            size -= used
            if found == DECODED_ERROR:
                self.error = FrameError(frame.code, (<bytes>frame.reason).decode("ascii"))
                if not frames:
                    raise self.error
                return frames
            if found != DECODED_NOTHING:
                frames.append((found, PyBytes_FromStringAndSize(<char *>frame.payload, frame.size)))
        return frames
