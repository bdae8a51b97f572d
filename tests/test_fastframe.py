"""The frame codec on literal bytes: whole, one byte at a time, and cut anywhere."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tornadochat._fastframe import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Batch,
    FrameDecoder,
    encode_close,
    encode_events,
    encode_frame,
    encode_plain,
    encode_published,
    pack_arguments,
    pack_message,
    pack_published,
    plain_send,
    published_bodies,
    published_header,
)
from tornadochat.errors import FrameError

MASK = b"\x37\xfa\x21\x3d"  # of RFC 6455 section 5.7


def feed(data: bytes, *, step: int = 0, limit: int = 1 << 16) -> tuple[list[tuple[int, bytes]], FrameError | None]:
    """Frames and the error of these bytes, fed in steps (0: whole)."""
    decoder, frames = FrameDecoder(limit), []
    pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
        decoder.feed(b"")
    except FrameError as error:
        return frames, error
    return frames, None


@pytest.fixture(params=[0, 1, 3], ids=["whole", "byte by byte", "by threes"])
def step(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_the_examples_of_the_rfc_are_decoded(step: int) -> None:
    assert feed(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", step=step) == ([(OP_TEXT, b"Hello")], None)
    assert feed(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", step=step) == ([(OP_PONG, b"Hello")], None)


def test_a_fragmented_message_is_joined_and_control_frames_pass_between(step: int) -> None:
    data = (
        encode_frame(OP_TEXT, b"one ", MASK, fin=False)
        + encode_frame(OP_PING, b"p", MASK)
        + encode_frame(0, b"two ", MASK, fin=False)
        + encode_frame(0, b"", MASK, fin=False)
        + encode_frame(0, b"three", MASK)
    )
    assert feed(data, step=step) == ([(OP_PING, b"p"), (OP_TEXT, b"one two three")], None)


def test_a_character_may_be_cut_between_fragments(step: int) -> None:
    euro = "€".encode()
    data = encode_frame(OP_TEXT, euro[:1], MASK, fin=False) + encode_frame(0, euro[1:], MASK)
    assert feed(data, step=step) == ([(OP_TEXT, euro)], None)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 125, 126, 127, 65535, 65536, 70000])
def test_every_length_form_is_read_and_written(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    frame = encode_frame(OP_BINARY, payload, MASK)
    assert feed(frame, limit=1 << 20) == ([(OP_BINARY, payload)], None)
    unmasked = encode_frame(OP_BINARY, payload)
    decoder = FrameDecoder(1 << 20, require_mask=False)
    assert decoder.feed(unmasked) == [(OP_BINARY, payload)]


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"\x81\x05Hello", 1002, "masked"),
        (b"\xc1\x80" + MASK, 1002, "reserved bits"),
        (b"\xa1\x80" + MASK, 1002, "reserved bits"),
        (b"\x91\x80" + MASK, 1002, "reserved bits"),
        (b"\x83\x80" + MASK, 1002, "reserved opcode"),
        (b"\x8b\x80" + MASK, 1002, "reserved opcode"),
        (b"\x8f\x80" + MASK, 1002, "reserved opcode"),
        (b"\x09\x80" + MASK, 1002, "fragmented"),
        (b"\x89\xfe\x00\x7e" + MASK, 1002, "125"),
        (b"\x80\x80" + MASK, 1002, "continuation"),
        (b"\x01\x80" + MASK + b"\x81\x80" + MASK, 1002, "within"),
        (b"\x81\xfe\x00\x7d" + MASK, 1002, "shortest"),
        (b"\x81\xff" + struct.pack(">Q", 65535) + MASK, 1002, "shortest"),
        (b"\x81\xff" + struct.pack(">Q", 1 << 63) + MASK, 1002, "top bit"),
        (b"\x81\xff" + struct.pack(">Q", 1 << 40) + MASK, 1009, "too large"),
        (encode_frame(OP_CLOSE, b"\x03", MASK), 1002, "two bytes"),
        (encode_frame(OP_CLOSE, b"\x03\xe8\xff", MASK), 1007, "reason"),
        (encode_frame(OP_TEXT, b"\xc0\x80", MASK), 1007, "UTF-8"),
        (encode_frame(OP_TEXT, b"\xed\xa0\x80", MASK), 1007, "UTF-8"),
        (encode_frame(OP_TEXT, b"\xf4\x90\x80\x80", MASK), 1007, "UTF-8"),
        (encode_frame(OP_TEXT, b"12345678\xe2\x82", MASK), 1007, "UTF-8"),
    ],
)
def test_a_breach_of_the_rfc_is_told_with_its_close_code(data: bytes, code: int, words: str, step: int) -> None:
    frames, error = feed(data, step=step)
    assert error is not None and error.code == code and words in error.reason
    assert frames == []


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_must_not_be_sent_is_refused(code: int) -> None:
    frames, error = feed(encode_frame(OP_CLOSE, struct.pack(">H", code), MASK))
    assert frames == [] and error is not None and error.code == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999])
def test_a_close_code_that_may_be_sent_is_taken(code: int) -> None:
    assert feed(encode_close(code, "bye", MASK)) == ([(OP_CLOSE, struct.pack(">H", code) + b"bye")], None)


def test_what_came_before_a_breach_is_handed_out_first(step: int) -> None:
    data = encode_frame(OP_TEXT, b"good", MASK) + b"\x83\x80" + MASK
    frames, error = feed(data, step=step)
    assert frames == [(OP_TEXT, b"good")] and error is not None


def test_bad_utf8_is_found_before_its_frame_is_whole() -> None:
    decoder = FrameDecoder(1 << 16)
    frame = encode_frame(OP_TEXT, b"abc\xff" + b"x" * 1000, MASK)
    with pytest.raises(FrameError, match="UTF-8"):
        decoder.feed(frame[:20])


def test_the_size_limit_counts_all_fragments_and_is_checked_on_the_header() -> None:
    decoder = FrameDecoder(10)
    assert decoder.feed(encode_frame(OP_TEXT, b"123456", MASK, fin=False)) == []
    with pytest.raises(FrameError) as found:
        decoder.feed(encode_frame(0, b"12345", MASK)[:6])
    assert found.value.code == 1009
    assert feed(encode_frame(OP_TEXT, b"1234567890", MASK), limit=10)[1] is None


def test_a_decoder_that_has_failed_stays_failed() -> None:
    decoder = FrameDecoder(10)
    with pytest.raises(FrameError):
        decoder.feed(b"\x83\x80" + MASK)
    with pytest.raises(FrameError):
        decoder.feed(encode_frame(OP_TEXT, b"x", MASK))


# Batches -------------------------------------------------------------------------------------------


def test_a_seq_is_spliced_into_each_body() -> None:
    batch = encode_events(9, [b'{"text":"hi"}', b'{"text":"you"}'])
    assert batch.frames() == b'\x81\x15{"seq":9,"text":"hi"}' + b'\x81\x17{"seq":10,"text":"you"}'
    assert (batch.first_seq, batch.last_seq, batch.count, batch.size) == (9, 10, 2, len(batch.frames()))
    assert batch.frames(10) == b'\x81\x17{"seq":10,"text":"you"}'
    assert batch.frames(11) == b""


def test_a_long_body_gets_the_longer_header() -> None:
    body = b'{"text":"' + b"x" * 70000 + b'"}'
    frames = FrameDecoder(1 << 20, require_mask=False).feed(encode_events(1, [body]).frames())
    assert frames == [(OP_TEXT, b'{"seq":1,' + body[1:])]


def test_plain_events_go_as_they_are() -> None:
    batch = encode_plain([b'{"type":"typing"}'])
    assert batch.frames() == b'\x81\x11{"type":"typing"}'
    assert (batch.first_seq, batch.last_seq) == (0, 0)


def test_published_batches_become_one_batch_of_frames() -> None:
    first = pack_published(b"abcdefgh", 5, [b'{"a":1}', b'{"b":2}'])
    second = pack_published(b"abcdefgh", 7, [b'{"c":3}'])
    assert published_header(first) == (b"abcdefgh", 5, 2)
    assert published_bodies(first) == [b'{"a":1}', b'{"b":2}']
    batch = encode_published([first, second], 6)
    assert batch.frames() == encode_events(6, [b'{"b":2}', b'{"c":3}']).frames()


def test_batches_that_overlap_give_each_event_once() -> None:
    first = pack_published(b"abcdefgh", 5, [b'{"a":1}', b'{"b":2}'])
    again = pack_published(b"abcdefgh", 6, [b'{"b":2}', b'{"c":3}'])
    assert (
        encode_published([first, first, again]).frames()
        == encode_events(5, [b'{"a":1}', b'{"b":2}', b'{"c":3}']).frames()
    )


def test_a_hole_between_published_batches_is_refused() -> None:
    first = pack_published(b"abcdefgh", 5, [b'{"a":1}'])
    later = pack_published(b"abcdefgh", 7, [b'{"c":3}'])
    with pytest.raises(ValueError, match="starts at 7, not at 6"):
        encode_published([first, later])


GOOD = pack_published(b"abcdefgh", 5, [b'{"a":1}', b'{"b":2}'])


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_a_published_batch_that_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        encode_published([GOOD[:size]])


@pytest.mark.parametrize(
    "payload",
    [
        GOOD + b"x",
        b"X" + GOOD[1:],
        GOOD[:9] + bytes(8) + GOOD[17:],
        GOOD[:17] + b"\xff\xff\xff\xff" + GOOD[21:],
        GOOD[:21] + b"\xff\xff\xff\xff" + GOOD[25:],
        pack_published(b"abcdefgh", 5, [b"{}"]),
        pack_published(b"abcdefgh", 5, [b"[1]"]),
    ],
)
def test_a_malformed_published_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        encode_published([payload])


@pytest.mark.parametrize("bodies", [[], [b"{}"], [b"no object"], [b""]])
def test_bodies_without_a_member_are_refused(bodies: list[bytes]) -> None:
    with pytest.raises(ValueError):
        encode_events(1, bodies)


def test_nobody_makes_a_batch_by_hand() -> None:
    with pytest.raises(TypeError):
        Batch()


def test_a_close_reason_is_cut_at_a_whole_character() -> None:
    frame = encode_close(1000, "€" * 50)
    assert len(frame) == 2 + 2 + 123 and frame[4:].decode() == "€" * 41


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_whose_seqs_go_beyond_64_bits_is_refused(count: int) -> None:
    bodies = [b'{"a":1}'] * count
    assert encode_events((1 << 64) - 1 - count, bodies).last_seq == (1 << 64) - 2
    with pytest.raises(ValueError, match="2\\*\\*64"):
        encode_events((1 << 64) - count, bodies)


@pytest.mark.parametrize(
    "call",
    [
        lambda nothing: encode_events(1, [nothing]),
        lambda nothing: encode_plain([nothing]),
        lambda nothing: encode_published([nothing]),
        lambda nothing: published_bodies(nothing),
        lambda nothing: published_header(nothing),
        lambda nothing: encode_frame(OP_TEXT, nothing),
        lambda nothing: FrameDecoder(10).feed(nothing),
        lambda nothing: plain_send(nothing, 10),
        lambda nothing: pack_arguments(nothing),
        lambda nothing: pack_message("u", "i", "f", nothing),
    ],
)
def test_none_is_refused_where_bytes_are_wanted(call: Callable[[None], object]) -> None:
    with pytest.raises(TypeError):
        call(None)


def test_bodies_may_come_from_an_iterator() -> None:
    """They are walked twice, and the second walk found nothing."""
    bodies = [b'{"a":1}', b'{"b":2}']
    assert encode_events(1, iter(bodies)).frames(2) == encode_events(2, bodies[1:]).frames()
    assert encode_plain(iter(bodies)).frames() == encode_plain(bodies).frames()
    published = [pack_published(b"abcdefgh", 1, bodies)]
    assert encode_published(iter(published)).frames() == encode_events(1, bodies).frames()
