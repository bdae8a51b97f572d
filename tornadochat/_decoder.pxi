"""Part of ``_fastframe``: bytes of a peer to its messages (RFC 6455 section 5, RFC 3629)."""

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


cdef void decoder_init(decoder_t *decoder, uint32_t max_message, bint require_mask, bint deflates) noexcept nogil:
    decoder.remaining = 0
    decoder.partial = NULL
    decoder.partial_size = decoder.partial_capacity = 0
    decoder.max_message = max_message
    decoder.utf8_state = UTF8_OK
    decoder.header_size = decoder.opcode = decoder.message_opcode = 0
    decoder.flags = (REQUIRE_MASK if require_mask else 0) | (DEFLATES if deflates else 0)
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
    # RSV1 tells a compressed message, on its first frame alone (RFC 7692 section 6).
    if decoder.header[0] & 0x70 and not (
        decoder.header[0] & 0x70 == 0x40 and decoder.flags & DEFLATES and 0x1 <= opcode <= 0x2
    ):
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
            decoder.flags &= ~COMPRESSED
            if decoder.header[0] & 0x40:
                decoder.flags |= COMPRESSED
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
    if kind == 0x1 and not decoder.flags & COMPRESSED:
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
    frame.compressed = decoder.flags & COMPRESSED != 0
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


cdef bytes inflate_message(const frame_t *frame, int kind, size_t limit):
    cdef bytes message = inflate(frame.payload, frame.size, limit)
    if kind == DECODED_TEXT and not is_utf8(message):
        raise FrameError(1007, "the text is not UTF-8")
    return message


@cython.final
cdef class FrameDecoder:
    """Bytes of one peer to its messages, whole or cut anywhere.

    Args:
        max_message_bytes: Limit of one message, all its fragments together; at most 2**31.
        require_mask: True for the frames of a client, False for those of a server.
        deflates: Whether permessage-deflate is negotiated; the limit then holds for the compressed
            message and for what it becomes.
    """

    cdef decoder_t decoder
    cdef object error

    def __cinit__(self, max_message_bytes, bint require_mask=True, bint deflates=False):
        if not 0 < max_message_bytes <= 1 << 31:
            raise ValueError("max_message_bytes is from 1 to 2**31")
        decoder_init(&self.decoder, max_message_bytes, require_mask, deflates)

    def __dealloc__(self):
        decoder_free(&self.decoder)

    def feed(self, bytes data not None):
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
            elif found in (DECODED_TEXT, DECODED_BINARY) and frame.compressed:
                try:
                    frames.append((found, inflate_message(&frame, found, self.decoder.max_message)))
                except FrameError as error:
                    self.error = error
            elif found != DECODED_NOTHING:
                frames.append((found, PyBytes_FromStringAndSize(<char *>frame.payload, frame.size)))
            if self.error is not None:
                if not frames:
                    raise self.error
                return frames
        return frames
