"""``python -m pytest bench/micro --benchmark-only``: the frame codec alone, in one process, no sockets.

Figures to compare two builds by (``--benchmark-save``, ``--benchmark-compare``); what a chat costs as a
whole is told by the other modules of ``bench``.
"""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from tornadochat._fastframe import (
    OP_TEXT,
    FrameDecoder,
    encode_events,
    encode_frame,
    encode_published,
    pack_published,
)

MASK = b"\x37\xfa\x21\x3d"
COMMAND = b'{"type":"send","room":"lobby","id":"01J0000000000000000000000A","text":"Who is coming to tea?"}'
BODY = b'{"type":"message","room":"lobby","user":"u-17","name":"Ada","text":"Who is coming to tea?","time":1}'
# A batch of a busy room.
BODIES = [BODY] * 20


def fragmented(payload: bytes, pieces: int) -> bytes:
    """One masked text message in so many frames."""
    size = -(-len(payload) // pieces)
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    last = len(parts) - 1
    return b"".join(
        encode_frame(0 if number else OP_TEXT, part, MASK, number == last) for number, part in enumerate(parts)
    )


def test_decode_a_command(benchmark: BenchmarkFixture) -> None:
    frame = encode_frame(OP_TEXT, COMMAND, MASK)
    decoder = FrameDecoder(1 << 17)
    assert benchmark(decoder.feed, frame) == [(OP_TEXT, COMMAND)]


def test_decode_sixteen_kib_of_text(benchmark: BenchmarkFixture) -> None:
    payload = "Wer kommt zum Tee? Ünïcode ".encode() * 585
    frame = encode_frame(OP_TEXT, payload, MASK)
    decoder = FrameDecoder(1 << 17)
    assert benchmark(decoder.feed, frame) == [(OP_TEXT, payload)]


def test_decode_a_message_in_eight_fragments(benchmark: BenchmarkFixture) -> None:
    payload = COMMAND * 20
    frames = fragmented(payload, 8)
    decoder = FrameDecoder(1 << 17)
    assert benchmark(decoder.feed, frames) == [(OP_TEXT, payload)]


def test_decode_a_hundred_commands_of_one_read(benchmark: BenchmarkFixture) -> None:
    frames = encode_frame(OP_TEXT, COMMAND, MASK) * 100
    decoder = FrameDecoder(1 << 17)
    assert len(benchmark(decoder.feed, frames)) == 100


def test_encode_the_events_of_a_batch(benchmark: BenchmarkFixture) -> None:
    assert benchmark(encode_events, 1_000_000, BODIES).count == len(BODIES)


def test_encode_a_published_batch(benchmark: BenchmarkFixture) -> None:
    payload = pack_published(b"abcdefgh", 1_000_000, BODIES)
    assert benchmark(encode_published, [payload]).count == len(BODIES)
