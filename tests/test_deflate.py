"""permessage-deflate (RFC 7692): negotiated, made once, judged by the `websockets` package, and bounded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from bench.processes import running_server
from tests.support import make_certificate
from tests.tunnel import tls_socket
from tornadochat._fastframe import (
    OP_BINARY,
    OP_TEXT,
    Deflater,
    FrameDecoder,
    encode_events,
    encode_frame,
    encode_plain,
)
from tornadochat.errors import FrameError
from tornadochat.handshake import choose_deflate

MASK = b"\x37\xfa\x21\x3d"
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def compressed(message: bytes, opcode: int = OP_TEXT) -> bytes:
    """What a client sends of a message, in one frame."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH)
    frame = bytearray(encode_frame(opcode, packed[:-4], MASK))
    frame[0] |= 0x40
    return bytes(frame)


def by_websockets(frames: bytes) -> list[bytes]:
    """The messages of a server's frames as the `websockets` package reads them."""
    extension = PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=15,
        local_max_window_bits=15,
    )
    found, at = [], 0
    while at < len(frames):
        head, size = frames[at], frames[at + 1]
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(frames[at : at + width], "big"), at + width
        frame = Frame(Opcode(head & 15), frames[at : at + size], rsv1=bool(head & 0x40))
        found.append(bytes(extension.decode(frame).data))
        at += size
    return found


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_max_window_bits=10; server_no_context_takeover", ANSWER),
        ("permessage-deflate; server_max_window_bits=15", ANSWER + "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", ANSWER),
        ('x-other; a=1, permessage-deflate; client_max_window_bits="12"', ANSWER),
        ("permessage-deflate; server_max_window_bits=10", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=016", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
        ("permessage-deflate; unknown", None),
        ("permessage-bzip2", None),
        ("", None),
    ],
)
def test_the_first_offer_that_can_be_kept_is_answered(offer: str, answer: str | None) -> None:
    assert choose_deflate([offer]) == answer


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=8), st.integers(1, 9), st.sampled_from([0, 100]))
def test_every_event_stands_alone_and_is_read_by_another_implementation(
    parts: list[bytes], level: int, min_bytes: int
) -> None:
    bodies = [b'{"text":"%s"}' % part.hex().encode() for part in parts]
    plain = encode_events(7, bodies)
    deflater = Deflater(level, min_bytes)
    deflater.deflate(encode_plain([b'{"text":"something before"}' * 9]))
    made = deflater.deflate(plain)
    assert (made.first_seq, made.last_seq, made.count) == (plain.first_seq, plain.last_seq, plain.count)
    for seq in range(7, 7 + len(bodies)):
        # From any event on: none needs what went before it.
        assert by_websockets(made.frames(seq)) == by_websockets(plain.frames(seq))
    assert made.size <= plain.size


def test_a_batch_is_compressed_once() -> None:
    deflater = Deflater(1, 100)
    batch = encode_events(1, [b'{"text":"%s"}' % (b"so long " * 50)])
    made = deflater.deflate(batch)
    assert deflater.deflate(batch) is made and made.size < batch.size // 3
    assert made.frames()[0] == 0xC1
    short = encode_events(1, [b'{"text":"short"}'])
    assert deflater.deflate(short) is short


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
@pytest.mark.parametrize("message", [b"", b"hello", "grüße ☃".encode() * 100, b'{"type":"ping"}'])
def test_a_compressed_message_is_read_however_it_is_cut(message: bytes, step: int) -> None:
    decoder, data, frames = FrameDecoder(1 << 16, deflates=True), compressed(message), []
    data += encode_frame(OP_TEXT, b"plain", MASK) + compressed(b"\xff\x00", OP_BINARY)
    for at in range(0, len(data), step):
        frames += decoder.feed(data[at : at + step])
    assert frames == [(OP_TEXT, message), (OP_TEXT, b"plain"), (OP_BINARY, b"\xff\x00")]


def test_fragments_of_one_compressed_message_are_joined_before_they_are_inflated() -> None:
    packer = zlib.compressobj(wbits=-15)
    packed = (packer.compress(b"hello " * 40) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    first = bytearray(encode_frame(OP_TEXT, packed[:5], MASK, fin=False))
    first[0] |= 0x40
    decoder = FrameDecoder(1 << 16, deflates=True)
    assert decoder.feed(bytes(first)) == []
    assert decoder.feed(encode_frame(0, packed[5:], MASK)) == [(OP_TEXT, b"hello " * 40)]


def test_a_stream_that_ends_by_itself_is_a_whole_message() -> None:
    """RFC 7692 section 7.2.3.5: a block with BFINAL set."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(b"hello") + packer.flush(zlib.Z_FINISH)
    for payload in (packed + b"\x00", packed):
        frame = bytearray(encode_frame(OP_TEXT, payload, MASK))
        frame[0] |= 0x40
        assert FrameDecoder(100, deflates=True).feed(bytes(frame)) == [(OP_TEXT, b"hello")]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (compressed(b"x" * 5001), 1009),
        (compressed(b"\0" * 50_000_000), 1009),  # a bomb of 48 KiB
        (compressed(b"\xff\xfe"), 1007),
        (bytes((0xC1,)) + encode_frame(OP_TEXT, b"\xff" * 9, MASK)[1:], 1007),
        (bytes((0xC1,)) + encode_frame(OP_TEXT, b"\x03\x00" * 50, MASK)[1:], 1007),
        (bytes((0xC9, 0x80)) + MASK, 1002),
        (bytes((0xE1, 0x80)) + MASK, 1002),
        (bytes((0x41, 0x80)) + MASK + bytes((0xC0, 0x80)) + MASK, 1002),
    ],
    ids=["too large", "bomb", "no UTF-8", "damaged", "many streams", "ping", "RSV2", "continuation"],
)
def test_what_breaks_the_rules_fails_the_connection(frame: bytes, code: int) -> None:
    decoder = FrameDecoder(5000, deflates=True)
    with pytest.raises(FrameError) as found:
        decoder.feed(frame)
        decoder.feed(b"")
    assert found.value.code == code
    with pytest.raises(FrameError):
        decoder.feed(encode_frame(OP_TEXT, b"x", MASK))


def test_rsv1_means_nothing_where_it_was_not_negotiated() -> None:
    with pytest.raises(FrameError, match="reserved"):
        FrameDecoder(5000).feed(compressed(b"hello"))


# On a server ---------------------------------------------------------------------------------------


def connect(port: int, room: str, tls: bool = False, **options: Any) -> Any:
    # Entered by hand: it lives as long as its test wants.
    client = websockets.sync.client.connect(
        f"ws://127.0.0.1:{port}/ws?name=Ada", sock=tls_socket("127.0.0.1", port) if tls else None, **options
    ).__enter__()
    client.send(json.dumps({"type": "join", "room": room}))
    until(client, "joined")
    return client


def until(client: Any, kind: str) -> dict[str, Any]:
    while True:
        event: dict[str, Any] = json.loads(client.recv(5))
        if event["type"] == kind:
            return event


def say(client: Any, room: str, text: str) -> None:
    client.send(json.dumps({"type": "send", "room": room, "id": "a" * 16, "text": text}))


@pytest.mark.parametrize("tls", [False, True], ids=["epoll", "TLS"])
def test_members_with_and_without_compression_share_a_room(tmp_path: Path, room: str, tls: bool) -> None:
    options = ["--compression", "--drain-seconds=0.2"]
    if tls:
        certificate, key = make_certificate(tmp_path)
        options += [f"--certfile={certificate}", f"--keyfile={key}"]
    text = "round and round " * 100
    with running_server(tmp_path / "server", *options, scheme="https" if tls else "http") as server:
        packed = connect(server.port, room, tls)
        plain = connect(server.port, room, tls, compression=None)
        assert [type(each) for each in packed.protocol.extensions] == [PerMessageDeflate]
        assert not plain.protocol.extensions
        say(packed, room, text)
        for client in (packed, plain):
            assert until(client, "message")["text"] == text
            client.send(json.dumps({"type": "join", "room": room, "history": 10}))
            assert until(client, "message")["text"] == text  # replayed
            client.close()


def test_a_bomb_ends_its_connection_alone(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, "--compression", "--drain-seconds=0.2", workers=1) as server:
        good, bad = connect(server.port, room), connect(server.port, room)
        bad.send("x" * 10_000_000)
        with pytest.raises(websockets.ConnectionClosed):
            until(bad, "message")
        assert bad.close_code == 1009
        say(good, room, "still here")
        assert until(good, "message")["text"] == "still here"
        good.close()
