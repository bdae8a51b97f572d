"""What is fuzzed: functions that take any bytes and raise AssertionError where our codec is wrong.

Each cuts its input into arguments, hands them to ``_fastframe`` and holds the outcome against ``peer``
or against the format as its docstring tells it. ``run`` feeds them from libFuzzer, a test of the suite
from the corpus; neither atheris nor a compiler is needed here. A target of a decoder that knows more (an
extension, say) is one more function that ends in ``check_decoder``, one more line in TARGETS, and a folder
of its name with a first input in ``corpus``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence

from tests.fuzz.peer import RSV1, Bytes, inflate, parse_frames, peer_reads, read_published
from tornadochat._fastframe import (
    Batch,
    Deflater,
    FrameDecoder,
    encode_close,
    encode_events,
    encode_frame,
    encode_plain,
    encode_published,
    pack_arguments,
    pack_message,
    pack_published,
    plain_message,
    plain_send,
    published_bodies,
    published_header,
)
from tornadochat.errors import FrameError
from tornadochat.protocol import Limits, Send, parse_json
from tornadochat.settings import Settings

# Below, at and above a control frame's limit, and where a length takes eight bytes.
LIMITS = (1, 125, 1000, 1 << 17)
LIMITS_OF_TEXT = Limits.of(Settings())
MAX_SEQ = (1 << 64) - 1
Outcome = tuple[list[tuple[int, bytes]], int]


class Source:
    """Cuts arguments off the bytes of the fuzzer; beyond their end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """An unsigned big-endian number of so many bytes."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data))

    def long(self, size: int) -> bytes:
        """So many bytes out of at most 255 of the input, the last one repeated, so that long is not large."""
        start = self.take(min(size, self.number(1)))
        return start.ljust(size, start[-1:] or b"{")


# The decoder ---------------------------------------------------------------------------------------


def decode(decoder: FrameDecoder, pieces: Iterable[bytes]) -> Outcome:
    """Messages and the close code of the breach, 0 without one."""
    frames: list[tuple[int, bytes]] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
        decoder.feed(b"")
    except FrameError as error:
        return frames, error.code
    return frames, 0


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut at these places, counted round the end."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in zip(at, at[1:], strict=False)]


def check_decoder(make: Callable[[], FrameDecoder], sent: bytes, places: Sequence[int], expected: Outcome) -> None:
    """One outcome, however the bytes come: whole, cut at these places, and one at a time where they are few."""
    ways = {"whole": [sent], "cut": cut(sent, places)}
    if len(sent) <= 300:
        ways["byte by byte"] = [sent[i : i + 1] for i in range(len(sent))]
    for way, pieces in ways.items():
        found = decode(make(), pieces)
        assert found == expected, f"{way}: {found} is not {expected}, of {sent.hex()}"


def wire(data: bytes) -> None:
    """Bytes as they come off a socket, from a client (masked) or a server."""
    source = Source(data)
    flags, places, sent = source.number(1), source.take(3), source.rest()
    limit, masked = LIMITS[flags >> 1 & 3], not flags & 1
    check_decoder(lambda: FrameDecoder(limit, masked), sent, places, peer_reads(sent, limit, masked))


def messages(data: bytes) -> None:
    """Frames as our encoder makes them: of any opcode, in any order, also longer than 65,535 bytes."""
    source = Source(data)
    flags, places = source.number(1), [source.number(2) for _ in range(3)]
    limit, masked = LIMITS[flags >> 1 & 3], not flags & 1
    sent = b""
    while source and len(sent) < 200_000:
        kind, mask = source.number(1), source.take(4).ljust(4, b"\0") if masked else None
        if kind & 0x40:
            reason = source.take(source.number(1)).decode("utf-8", "replace")
            sent += encode_close(source.number(2), reason, mask)
            continue
        size = source.number(2) * 2 if kind & 0x20 else source.number(1)
        sent += encode_frame(kind & 0xF, source.long(size), mask, bool(kind & 0x80))
    check_decoder(lambda: FrameDecoder(limit, masked), sent, places, peer_reads(sent, limit, masked))


def compressed(source: Source) -> bytes:
    """A payload as a compressor makes it, whole or damaged, one stream or several."""
    kind, payload = source.number(1), b""
    for _ in range(kind & 3):
        deflater = zlib.compressobj(1 + (kind >> 2 & 7), zlib.DEFLATED, -15)
        text = source.long(source.number(2) if kind & 0x40 else source.number(1))
        # A stream that ends, or one that goes on as the RFC wants it, without its last four bytes.
        payload += deflater.compress(text) + deflater.flush(zlib.Z_FINISH if kind & 0x20 else zlib.Z_SYNC_FLUSH)
    payload = payload.removesuffix(b"\x00\x00\xff\xff")
    if kind & 0x80:
        place, damage = source.number(1), source.take(source.number(1) & 7)
        payload = payload[:place] + damage + payload[place + len(damage) :]
    return payload


def inflated(data: bytes) -> None:
    """Messages of which some are compressed, in one frame or two."""
    source = Source(data)
    flags, places = source.number(1), source.take(3)
    limit, masked = LIMITS[flags >> 1 & 3], not flags & 1
    sent = b""
    while source and len(sent) < 200_000:
        kind, mask = source.number(1), source.take(4).ljust(4, b"\0") if masked else None
        payload = compressed(source) if kind & 0x40 else source.take(source.number(1))
        first = len(payload) * (kind >> 4 & 3) // 2
        frames = [encode_frame(kind & 0xF, payload[:first], mask, first >= len(payload))]
        if first < len(payload):
            frames.append(encode_frame(0, payload[first:], mask))
        sent += bytes((frames[0][0] | kind & 0x40,)) + b"".join(frames)[1:]
        if kind & 0x80:
            sent += source.take(source.number(1))
    expected = peer_reads(sent, limit, masked, deflates=True)
    check_decoder(lambda: FrameDecoder(limit, masked, True), sent, places, expected)


# The encoders --------------------------------------------------------------------------------------


def batch_or_none(make: Callable[[], Batch]) -> Batch | None:
    """The batch, None where the arguments are refused."""
    try:
        return make()
    except ValueError:
        return None


def check_batch(batch: Batch | None, first_seq: int, payloads: list[bytes] | None) -> None:
    """The batch has these payloads, a text frame each, and from each seq on; None is a refusal."""
    assert (batch is None) is (payloads is None), f"{batch} for {payloads}"
    if batch is None or payloads is None:
        return
    frames = parse_frames(batch.frames())
    assert [bytes(frame.data) for frame in frames] == payloads
    assert all(frame.fin and frame.opcode == 1 for frame in frames)
    assert (batch.first_seq, batch.count, batch.size) == (first_seq, len(payloads), len(batch.frames()))
    assert batch.last_seq == (first_seq + len(payloads) - 1 if first_seq else 0)
    for skip in range(min(len(payloads) + 1, 4)) if first_seq else ():
        found = parse_frames(batch.frames(first_seq + skip))
        assert [bytes(frame.data) for frame in found] == payloads[skip:]


def spliced(first_seq: int, bodies: list[bytes]) -> list[bytes] | None:
    """What members get of these bodies; None where one has no place for a seq."""
    if not bodies or not 0 < first_seq <= MAX_SEQ - len(bodies):
        return None
    if not all(len(body) >= 3 and body[:1] == b"{" and body[1:2] != b"}" for body in bodies):
        return None
    return [b'{"seq":%d,' % seq + body[1:] for seq, body in enumerate(bodies, first_seq)]


def batches(data: bytes) -> None:
    """Bodies to frames: with a seq, without one, and by way of what is published."""
    source, bodies = Source(data), list[bytes]()
    first_seq = source.number(8)
    while source and len(bodies) < 20:
        size = source.number(1)
        bodies.append(source.long(size * 300) if size > 250 else source.take(size))
    expected = spliced(first_seq, bodies)
    check_batch(batch_or_none(lambda: encode_events(first_seq, bodies)), first_seq, expected)
    check_batch(encode_plain(bodies), 0, bodies)
    published = pack_published(b"an epoch", first_seq, bodies)
    check_batch(batch_or_none(lambda: encode_published([published])), first_seq, expected)
    if expected is not None:
        assert published_header(published) == (b"an epoch", first_seq, len(bodies))
        assert published_bodies(published) == bodies


def published(data: bytes) -> None:
    """Payloads as they come from the store, malformed or not, that overlap or leave a hole."""
    source, payloads = Source(data), list[bytes]()
    start = source.number(8)
    while source and len(payloads) < 5:
        payloads.append(source.take(source.number(2)))
    for payload in payloads:
        read = read_published(payload)
        try:
            bodies: list[bytes] | None = published_bodies(payload)
        except ValueError:
            bodies = None
        assert bodies == (read[2] if read is not None else None)
        if read is not None:
            assert published_header(payload) == (read[0], read[1], len(read[2]))
    first_seq, expected = joined(payloads, start)
    check_batch(batch_or_none(lambda: encode_published(payloads, start)), first_seq, expected)


def joined(payloads: list[bytes], start: int) -> tuple[int, list[bytes] | None]:
    """First seq and frames' payloads of published batches from ``start`` on; None is a refusal."""
    found: list[bytes] = []
    following = 0
    for payload in payloads:
        read = read_published(payload)
        if read is None:
            return 0, None
        _, first, bodies = read
        if not following:
            following = start = max(start, first)
        if first > following:
            return 0, None
        fresh = bodies[following - first :]
        found += spliced(following, fresh) or []
        following += len(fresh)
    return start, found or None


def deflated(data: bytes) -> None:
    """Batches that are compressed once for all: the same events come out, in no more bytes."""
    source, bodies = Source(data), list[bytes]()
    first_seq, flags = source.number(8), source.number(1)
    while source and len(bodies) < 10:
        bodies.append(source.long(source.number(2) if flags & 0x80 else source.number(1)))
    if flags & 0x40:
        batch = encode_plain(bodies)
    else:
        made = batch_or_none(lambda: encode_events(first_seq, [b'{"' + body for body in bodies]))
        if made is None:
            return
        batch = made
    small = Deflater(1 + flags % 9, flags >> 3 & 7).deflate(batch)
    assert small.size <= batch.size
    assert (small.first_seq, small.last_seq, small.count) == (batch.first_seq, batch.last_seq, batch.count)
    for skip in range(min(batch.count + 1, 3)) if batch.first_seq else (0,):
        plain, packed = (each.frames(batch.first_seq + skip) for each in (batch, small))
        rest = Bytes(packed, deflates=True)
        for frame in parse_frames(plain):
            smaller = packed[rest.at] & RSV1
            payload = bytes(rest.frame(masked=False).data)
            assert (inflate(payload, len(frame.data)) if smaller else payload) == frame.data
        assert rest.at == len(packed)


# The short ways of a message -----------------------------------------------------------------------


def commands(data: bytes) -> None:
    """The short way finds what the general parser finds, or nothing."""
    plain = plain_send(data, LIMITS_OF_TEXT.text_chars)
    if plain is not None:
        assert parse_json(data, LIMITS_OF_TEXT) == Send._make(plain)


def packing(data: bytes) -> None:
    """Bodies and arguments of the store's commands that are put together without a general encoder."""
    source, texts = Source(data), list[str]()
    ts_ms = source.number(8)
    while len(texts) < 5:
        texts.append(source.take(source.number(1)).decode("utf-8", "surrogateescape" if ts_ms & 1 else "replace"))
    room, message_id, user_id, name, text = texts
    body = plain_message(room, message_id, user_id, name, text, ts_ms)
    fields = {"room": room, "id": message_id, "user": {"id": user_id, "name": name}, "text": text, "ts": ts_ms}
    if body is not None:
        assert body == json.dumps({"type": "message", **fields}, separators=(",", ":")).encode()
    arguments: list[str | bytes] = [*texts, data, source.rest()]
    try:
        expected: bytes | None = b"".join(bulk_string(argument) for argument in arguments)
    except UnicodeEncodeError:
        expected = None
    try:
        packed: bytes | None = pack_arguments(arguments)
    except UnicodeEncodeError:
        packed = None
    assert packed == expected
    try:
        packed = pack_message(room, message_id, user_id, data)
    except UnicodeEncodeError:
        packed = None
    try:
        expected = b"".join(map(bulk_string, (f"{room} {message_id}", user_id, data)))
    except UnicodeEncodeError:
        expected = None
    assert packed == expected


def bulk_string(argument: str | bytes) -> bytes:
    """As RESP wants it."""
    raw = argument.encode() if isinstance(argument, str) else argument
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "messages": messages,
    "inflated": inflated,
    "batches": batches,
    "published": published,
    "deflated": deflated,
    "commands": commands,
    "packing": packing,
}
