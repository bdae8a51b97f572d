"""The judge of the fuzzed codec: frames by the ``websockets`` package, and the few rules it leaves out.

``websockets`` parses one frame at a time; its message layer is not asked, since it discards what follows
a close frame and limits control frames too. What is added here:

- fragments (RFC 6455 section 5.4), which may have a close frame among them;
- a length is in its shortest form, with the top bit clear (section 5.2);
- reserved bits, a control frame's FIN and its length are judged by the first two bytes of a frame, which
  ``websockets`` does when the payload is there;
- a close code is judged before the reason behind it (section 7.4);
- the limit of a message does not count control frames, which have one of their own (section 5.5);
- text is UTF-8 (section 8.1), found wrong at its first wrong byte, by Python's own decoder, which waits for
  the third byte of a surrogate though two tell it.

Of a compressed message (RFC 7692) the package inflates what is one stream; what is no stream it calls a
breach of the protocol, here it is bad data. It drops what stands behind the end of a stream (section
7.2.3.5), so that several streams are read here, by the same zlib.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import struct
import zlib
from collections.abc import Generator

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.typing import ExtensionName

TEXT, CLOSE = 0x1, 0x8
RSV1 = 0x40
DEFLATE_TAIL = b"\x00\x00\xff\xff"
MAX_STREAMS = 8


class TakeRsv1(Extension):
    """Lets a message be called compressed, on its first frame alone (RFC 7692 section 6)."""

    name = ExtensionName("permessage-deflate")

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """The frame, still compressed, without the bit."""
        starts = frame.opcode in (Opcode.TEXT, Opcode.BINARY)
        return dataclasses.replace(frame, rsv1=False) if starts else frame


class Bytes:
    """Bytes to parse a frame from; beyond their end they are zero."""

    def __init__(self, data: bytes, at: int = 0, deflates: bool = False) -> None:
        self.data = data
        self.at = at
        self.extensions = [TakeRsv1()] if deflates else []

    def read_exact(self, size: int) -> Generator[None, None, bytes]:
        """As ``Frame.parse`` wants it; never waits."""
        yield from ()
        self.at += size
        return self.data[self.at - size : self.at].ljust(size, b"\0")

    def frame(self, masked: bool, limit: int | None = None) -> Frame:
        """The next frame.

        Raises:
            ProtocolError, PayloadTooBig: As ``Frame.parse``.
        """
        parser = Frame.parse(self.read_exact, mask=masked, max_size=limit, extensions=self.extensions)
        try:
            next(parser)
        except StopIteration as end:
            frame: Frame = end.value
            return frame
        raise AssertionError("the parser waits for bytes")


def parse_frames(data: bytes) -> list[Frame]:
    """Frames of a server; the last one is whole."""
    source, frames = Bytes(data), []
    while source.at < len(data):
        frames.append(source.frame(masked=False))
    assert source.at == len(data), "the last frame is cut short"
    return frames


class Breach(Exception):
    """The peer breached RFC 6455; its argument is the close code."""


def _check_head(head: bytes, masked: bool, in_message: bool, deflates: bool) -> None:
    """The first two bytes of a frame.

    Raises:
        Breach: They are wrong whatever follows.
    """
    opcode, size = head[0] & 0xF, head[1] & 0x7F
    try:
        Bytes(bytes((head[0], head[1] & 0x80)), deflates=deflates).frame(masked)
    except ProtocolError:
        raise Breach(1002) from None
    if size > 125 if opcode & 0x8 else in_message is bool(opcode):
        raise Breach(1002)


def _check_length(head: bytes) -> None:
    """The length of a data frame.

    Raises:
        Breach: It could be written shorter, or has its top bit set.
    """
    size = head[1] & 0x7F
    if size == 126 and struct.unpack(">H", head[2:4])[0] < 126:
        raise Breach(1002)
    if size == 127 and not 65536 <= struct.unpack(">Q", head[2:10])[0] < 1 << 63:
        raise Breach(1002)


def _check_close(payload: bytes) -> None:
    try:
        Close.parse(payload[:2])
        Close.parse(payload)
    except ProtocolError:
        raise Breach(1002) from None
    except UnicodeDecodeError:
        raise Breach(1007) from None


def _inflate(payload: bytes, limit: int) -> bytes:
    """A compressed message.

    Raises:
        Breach: It is no deflate stream, or more than ``limit`` bytes.
    """
    found, data = b"", payload + DEFLATE_TAIL
    for count in range(1, MAX_STREAMS + 1):
        stream = zlib.decompressobj(-15)
        try:
            found += stream.decompress(data, limit + 1 - len(found))
        except zlib.error:
            raise Breach(1007) from None
        if len(found) > limit:
            raise Breach(1009)
        data = stream.unused_data
        if not stream.eof or not data:
            return found
        if data in (DEFLATE_TAIL, b"\0" + DEFLATE_TAIL) and count < MAX_STREAMS:
            return found
    raise Breach(1007)


def _inflate_one(payload: bytes, limit: int) -> bytes:
    """As ``_inflate``, of a message that is one stream without an end, by ``websockets``."""
    inflater = PerMessageDeflate(True, True, 15, 15)
    try:
        frame = inflater.decode(Frame(Opcode.BINARY, payload, rsv1=True), max_size=limit + 1)
    except ProtocolError:
        raise Breach(1007) from None
    except PayloadTooBig:
        raise Breach(1009) from None
    if len(frame.data) > limit:
        raise Breach(1009)
    return bytes(frame.data)


def inflate(payload: bytes, limit: int) -> bytes:
    """A compressed message (RFC 7692 section 7.2.2).

    Raises:
        Breach: It is no deflate stream, or more than ``limit`` bytes.
    """
    stream = zlib.decompressobj(-15)
    with contextlib.suppress(zlib.error):
        stream.decompress(payload + DEFLATE_TAIL, limit + 1)
    return _inflate(payload, limit) if stream.eof else _inflate_one(payload, limit)


class Peer:
    """Reads what came so far: see ``peer_reads``."""

    def __init__(self, data: bytes, limit: int, masked: bool, deflates: bool) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self._data = data
        self._limit = limit
        self._masked = masked
        self._deflates = deflates
        self._compressed = False
        self._opcode = 0
        self._partial = b""
        self._text = codecs.getincrementaldecoder("utf-8")()

    def read(self) -> None:
        """Read all.

        Raises:
            Breach: As soon as a byte is there that shows one.
        """
        at = 0
        while len(self._data) - at >= 2:
            at = self._read_frame(at)

    def _read_frame(self, at: int) -> int:
        head = self._data[at : at + 14]
        _check_head(head, self._masked, bool(self._opcode), self._deflates)
        begin = at + 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0) + (4 if self._masked else 0)
        if begin > len(self._data):
            return len(self._data)
        _check_length(head)
        source = Bytes(self._data, at, self._deflates)
        control = bool(head[0] & 0x8)
        try:
            frame = source.frame(self._masked, None if control else self._limit - len(self._partial))
        except PayloadTooBig:
            raise Breach(1009) from None
        whole = source.at <= len(self._data)
        payload = bytes(frame.data[: len(self._data) - begin])
        if not control:
            if frame.opcode:
                self._compressed = bool(head[0] & RSV1)
            self._read_data(frame, payload, whole)
        elif whole:
            if frame.opcode == CLOSE:
                _check_close(payload)
            self.messages.append((int(frame.opcode), payload))
        return source.at

    def _read_data(self, frame: Frame, payload: bytes, whole: bool) -> None:
        if frame.opcode:
            self._opcode = int(frame.opcode)
            self._text.reset()
        if not self._compressed:
            self._check_text(payload, whole and frame.fin)
        self._partial += payload
        if whole and frame.fin:
            message = self._partial
            if self._compressed:
                message = inflate(message, self._limit)
                self._check_text(message, final=True)
            self.messages.append((self._opcode, message))
            self._opcode, self._partial = 0, b""

    def _check_text(self, payload: bytes, final: bool) -> None:
        if self._opcode != TEXT:
            return
        try:
            self._text.decode(payload, final)
        except UnicodeDecodeError:
            raise Breach(1007) from None
        waiting = self._text.getstate()[0]
        if waiting[:1] == b"\xed" and waiting[1:2] >= b"\xa0":
            raise Breach(1007)


def peer_reads(
    data: bytes, limit: int, masked: bool, deflates: bool = False
) -> tuple[list[tuple[int, bytes]], int]:
    """Messages and control frames in these bytes, and the close code of the first breach, 0 without one.

    Args:
        limit: Bytes of one message, all its fragments together, compressed and not.
        masked: Whether they come from a client.
        deflates: Whether permessage-deflate is negotiated.
    """
    peer = Peer(data, limit, masked, deflates)
    try:
        peer.read()
    except Breach as breach:
        return peer.messages, breach.args[0]
    return peer.messages, 0


def read_published(payload: bytes) -> tuple[bytes, int, list[bytes]] | None:
    """Epoch, first seq and bodies of a published batch (``encode_published`` has its format); None is none."""
    if len(payload) < 21 or payload[:1] != b"E":
        return None
    epoch, first_seq, count = struct.unpack_from(">8sQI", payload, 1)
    if not first_seq or not count or first_seq + count >= 1 << 64:
        return None
    at, bodies = 21, list[bytes]()
    while len(bodies) < count:
        size = int.from_bytes(payload[at : at + 4], "big")
        body = payload[at + 4 : at + 4 + size]
        if len(payload) - at < 4 or len(body) < max(size, 3) or body[:1] != b"{" or body[1:2] == b"}":
            return None
        bodies.append(body)
        at += 4 + size
    return (epoch, first_seq, bodies) if at == len(payload) else None
