"""Part of ``_fastframe``: permessage-deflate (RFC 7692) without context takeover, in either direction.

zlib is Python's own. Every message stands alone, so no state is kept for a connection, and the
compressed form of an event is the same for everybody.
"""

cdef enum:
    # A stream may end within a message and another begin (RFC 7692 section 7.2.3.5). Nobody needs more,
    # and each costs a new inflater.
    MAX_STREAMS = 8
    # Hash chains of 8 KiB instead of 64, since they are cleared for each event; texts are short.
    DEFLATE_MEMORY = 5

cdef bytes DEFLATE_TAIL = b"\x00\x00\xff\xff"  # taken off by the sender, section 7.2.1


cdef bytes inflate(const unsigned char *payload, size_t size, size_t limit):
    """The message of a compressed payload.

    Raises:
        FrameError: 1009 where it has more than ``limit`` bytes, of which no more are made than that
            one; 1007 where it is no deflate stream.
    """
    cdef bytes data = PyBytes_FromStringAndSize(<const char *>payload, size) + DEFLATE_TAIL
    cdef bytes found = b"", part
    cdef int streams = 0
    while data:
        inflater = zlib.decompressobj(-15)
        try:
            part = inflater.decompress(data, limit + 1 - PyBytes_GET_SIZE(found))
        except zlib.error as error:
            raise FrameError(1007, "the compressed message is damaged") from error
        found = found + part if found else part
        if <size_t>PyBytes_GET_SIZE(found) > limit:
            raise FrameError(1009, "the message is too large")
        streams += 1
        data = inflater.unused_data if inflater.eof else b""
        if streams == MAX_STREAMS and data:
            raise FrameError(1007, "the compressed message has too many streams")
        if data == DEFLATE_TAIL or data == b"\x00" + DEFLATE_TAIL:
            break  # what is added behind a stream that ended by itself
    return found


cdef inline bint is_utf8(bytes text):
    return utf8_step(UTF8_OK, <unsigned char *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)) == UTF8_OK


@cython.final
cdef class Deflater:
    """Makes the compressed form of batches, once for everybody who negotiated it.

    Args:
        level: Of zlib, from 1 (fast) to 9 (small).
        min_bytes: Payloads below are sent as they are, which RFC 7692 section 6 allows for each message.
    """

    def __cinit__(self, int level, size_t min_bytes):
        if not 1 <= level <= 9:
            raise ValueError("a compression level is from 1 to 9")
        self.stream = zlib.compressobj(level, zlib.DEFLATED, -15, DEFLATE_MEMORY)
        self.min_bytes = min_bytes

    def deflate(self, Batch batch not None):
        """The batch with the same events, each compressed where that makes it smaller.

        The same object for every call with this batch; ``batch`` itself where nothing is smaller.
        """
        if batch.deflated is None and not batch.incompressible:
            batch.deflated = self.make(batch)
            batch.incompressible = batch.deflated is None
        return batch if batch.incompressible else batch.deflated

    cdef Batch make(self, Batch batch):
        """The compressed batch; None where nothing is smaller."""
        cdef shared_t *plain = batch.shared
        cdef uint32_t i
        cdef size_t size = 0
        cdef bint smaller = False
        cdef bytes frame
        cdef Batch made
        frames = []
        for i in range(plain.count):
            frame = self.frame(plain.data + plain.offsets[i], plain.offsets[i + 1] - plain.offsets[i])
            smaller = smaller or <size_t>PyBytes_GET_SIZE(frame) < plain.offsets[i + 1] - plain.offsets[i]
            size += PyBytes_GET_SIZE(frame)
            frames.append(frame)
        if not smaller:
            return None
        made = new_batch(size, plain.first_seq, plain.count)
        size = 0
        for i in range(plain.count):
            frame = frames[i]
            memcpy(made.shared.data + size, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
            size += PyBytes_GET_SIZE(frame)
            made.shared.offsets[i + 1] = <uint32_t>size
        return made

    cdef bytes frame(self, const unsigned char *plain, size_t size):
        """One frame of a batch, compressed where that makes it smaller (section 7.2.1)."""
        cdef size_t head = 2 if plain[1] < 126 else 4 if plain[1] == 126 else 10
        cdef unsigned char[MAX_HEADER] header
        cdef bytes packed
        cdef size_t used, kept
        if size - head >= self.min_bytes:
            packed = self.stream.compress(PyBytes_FromStringAndSize(<const char *>plain + head, size - head))
            # A full flush: what follows does not refer to what went before.
            packed += self.stream.flush(zlib.Z_FULL_FLUSH)
            kept = PyBytes_GET_SIZE(packed) - PyBytes_GET_SIZE(DEFLATE_TAIL)
            used = put_header(header, 0x1, kept)
            header[0] |= 0x40
            if used + kept < size:
                packed = PyBytes_FromStringAndSize(PyBytes_AS_STRING(packed), kept)
                return PyBytes_FromStringAndSize(<const char *>header, used) + packed
        return PyBytes_FromStringAndSize(<const char *>plain, size)
