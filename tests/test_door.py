"""Strictness at the door, on raw sockets against a running server."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from bench.processes import Server, running_server
from tests.support import KEY, LEFT_TO_THE_SERVER, SLOWNESS, dial, http, read_all, read_head, request_bytes
from tornadochat._fastframe import OP_CLOSE, OP_PING, OP_PONG, OP_TEXT, FrameDecoder, encode_close, encode_frame

MASK = b"\x11\x22\x33\x44"


def upgraded(port: int, behind: bytes = b"") -> socket.socket:
    """A raw WebSocket; ``behind`` is sent in the same packet as the handshake."""
    sock = dial(port)
    sock.sendall(request_bytes() + behind)
    assert read_head(sock).startswith(b"HTTP/1.1 101 ")
    return sock


def frames_until_close(sock: socket.socket) -> list[tuple[int, bytes]]:
    return FrameDecoder(1 << 24, require_mask=False).feed(read_all(sock))


def close_code(frames: list[tuple[int, bytes]]) -> int:
    opcode, payload = frames[-1]
    assert opcode == OP_CLOSE
    return int.from_bytes(payload[:2], "big")


def test_the_accept_key_is_that_of_the_rfc(server: Server) -> None:
    with dial(server.port) as sock:
        sock.sendall(request_bytes(Sec_WebSocket_Protocol="tornadochat.v1"))
        head = read_head(sock)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    assert b"Sec-WebSocket-Protocol: tornadochat.v1\r\n" in head


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (400, {"Sec_WebSocket_Key": "c2hvcnQ="}),
        (400, {"Sec_WebSocket_Key": [KEY, KEY]}),
        (400, {"Sec_WebSocket_Key": None}),
        (505, {"version": "HTTP/1.0"}),
        (405, {"method": "POST", "Content_Length": "0"}),
        (426, {"Sec_WebSocket_Version": "12"}),
        (426, {"Upgrade": None}),
        (403, {"Origin": "http://evil.example"}),
        (401, {"path": "/ws"}),
        (401, {"path": "/ws?token=rubbish"}),
        (400, {"path": "/ws?name=%00"}),
    ],
)
@pytest.mark.parametrize("further", [{}, LEFT_TO_THE_SERVER])
def test_a_wrong_handshake_gets_a_status_and_words(
    server: Server, status: int, changed: dict[str, Any], further: dict[str, Any]
) -> None:
    with dial(server.port) as sock:
        sock.sendall(request_bytes(**changed, **further))
        answer = read_all(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b'"message"' in body
    if status == 426:
        assert b"Upgrade: websocket" in head


def test_the_servers_own_origin_may_connect(server: Server) -> None:
    with dial(server.port) as sock:
        own = f"127.0.0.1:{server.port}"
        sock.sendall(request_bytes(Host=own, Origin=f"http://{own}"))
        assert read_head(sock).startswith(b"HTTP/1.1 101 ")


def test_frames_in_the_packet_of_the_handshake_are_answered(server: Server) -> None:
    behind = encode_frame(OP_PING, b"early", MASK) + encode_frame(OP_TEXT, b'{"type":"ping"}', MASK)
    with upgraded(server.port, behind + encode_close(1000, "", MASK)) as sock:
        frames = frames_until_close(sock)
    assert [opcode for opcode, _ in frames] == [OP_TEXT, OP_PONG, OP_TEXT, OP_CLOSE]
    assert frames[1][1] == b"early" and frames[2][1] == b'{"type":"pong"}' and close_code(frames) == 1000


def test_a_handshake_and_frames_may_come_one_byte_at_a_time(server: Server) -> None:
    data = request_bytes() + encode_frame(OP_TEXT, b'{"type":"ping"}', MASK) + encode_close(1000, "", MASK)
    with dial(server.port) as sock:
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
        answer = read_all(sock)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    frames = FrameDecoder(1 << 20, require_mask=False).feed(rest)
    assert frames[1] == (OP_TEXT, b'{"type":"pong"}') and close_code(frames) == 1000


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x02{}", 1002),
        (b"\xc1\x80" + MASK, 1002),
        (b"\x83\x80" + MASK, 1002),
        (b"\x8b\x80" + MASK, 1002),
        (b"\x09\x80" + MASK, 1002),
        (encode_frame(0, b"x", MASK), 1002),
        (encode_frame(OP_CLOSE, b"\x03", MASK), 1002),
        (encode_frame(OP_CLOSE, b"\x03\xed", MASK), 1002),
        (encode_frame(2, b"binary", MASK), 1003),
        (encode_frame(OP_TEXT, b"\xff", MASK), 1007),
        (b"\x81\xff\x00\x00\x00\x00\x00\x02\x00\x01" + MASK, 1009),
    ],
)
def test_a_broken_frame_closes_with_the_right_code(server: Server, sent: bytes, code: int) -> None:
    with upgraded(server.port, encode_frame(OP_TEXT, b'{"type":"ping"}', MASK) + sent) as sock:
        sock.settimeout(10)
        sock.shutdown(socket.SHUT_WR)
        frames = frames_until_close(sock)
    assert close_code(frames) == code
    assert (OP_TEXT, b'{"type":"pong"}') in frames, "earlier frames are answered before the close"


def test_a_bad_command_answers_error_and_keeps_the_connection(server: Server) -> None:
    data = b"".join(
        encode_frame(OP_TEXT, payload, MASK) for payload in (b"{", b'{"type":"x"}', b'{"type":"ping"}')
    )
    with upgraded(server.port, data + encode_close(1000, "", MASK)) as sock:
        texts = [payload for opcode, payload in frames_until_close(sock) if opcode == OP_TEXT][1:]
    assert b'"bad_json"' in texts[0] and b'"unknown_type"' in texts[1] and texts[2] == b'{"type":"pong"}'


def test_a_name_with_a_token_never_reaches_the_log(server: Server, tmp_path: Path) -> None:
    assert http(server.port, "GET", "/api/session?token=very-secret-thing").status == 401
    log = Path(f"/proc/{server.process.pid}/fd/1").resolve()
    assert "very-secret-thing" not in log.read_text()


# With limits of its own ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = (
        *("--handshake-seconds=1", "--join-seconds=2", "--ping-seconds=1", "--pong-seconds=2"),
        *("--max-connections-per-address=5", "--drain-seconds=0.2"),
    )
    with running_server(tmp_path_factory.mktemp("strict"), *options, workers=1) as running:
        yield running


def test_a_slow_handshake_is_ended(strict: Server) -> None:
    with dial(strict.port) as sock:
        sock.sendall(b"GET /ws?name=Slow HTTP/1.1\r\n")
        begin = time.monotonic()
        assert read_all(sock) == b""
    assert 0.5 < time.monotonic() - begin < 4


def test_a_connection_that_joins_nothing_is_ended_with_1008(strict: Server) -> None:
    with upgraded(strict.port) as sock:
        decoder, begin = FrameDecoder(1 << 20, require_mask=False), time.monotonic()
        while True:
            for opcode, payload in decoder.feed(sock.recv(4096)):
                if opcode == OP_PING:
                    sock.sendall(encode_frame(OP_PONG, payload, MASK))
                if opcode == OP_CLOSE:
                    assert int.from_bytes(payload[:2], "big") == 1008
                    assert 1 < time.monotonic() - begin < 5
                    return


def test_a_peer_that_vanished_is_noticed(strict: Server) -> None:
    with upgraded(strict.port, encode_frame(OP_TEXT, b'{"type":"join","room":"vanish"}', MASK)) as sock:
        begin = time.monotonic()
        data = read_all(sock)  # reads, but answers no ping
    assert 1.5 < time.monotonic() - begin < 7
    assert b"\x89\x00" in data


def test_an_address_has_so_many_connections_and_no_more(strict: Server) -> None:
    time.sleep(0.3)
    sockets = [upgraded(strict.port) for _ in range(5)]
    with dial(strict.port) as sock:
        sock.sendall(request_bytes())
        assert read_all(sock).startswith(b"HTTP/1.1 429 ")
    sockets.pop().close()
    time.sleep(0.3)
    sockets.append(upgraded(strict.port))
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("further", [{}, LEFT_TO_THE_SERVER])
def test_who_hangs_up_behind_the_handshake_counts_no_more(strict: Server, further: dict[str, Any]) -> None:
    """It was counted for ever where Tornado had read the handshake, until its address was let in no more."""
    for _ in range(6):
        with dial(strict.port) as sock:
            sock.sendall(request_bytes(**further))
    deadline = time.monotonic() + 10 * SLOWNESS
    while True:
        with dial(strict.port) as sock:
            sock.sendall(request_bytes(**further))
            if read_head(sock).startswith(b"HTTP/1.1 101 "):
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("further", [{}, LEFT_TO_THE_SERVER])
def test_head_gets_the_status_alone(server: Server, further: dict[str, Any]) -> None:
    with dial(server.port) as sock:
        sock.sendall(request_bytes(method="HEAD", **further))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 405 ") and answer.endswith(b"\r\n\r\n")


def test_a_full_worker_answers_503_with_retry_after(tmp_path: Path) -> None:
    with running_server(tmp_path, "--max-connections=3", "--drain-seconds=0.2", workers=1) as running:
        sockets = [upgraded(running.port) for _ in range(3)]
        with dial(running.port) as sock:
            sock.sendall(request_bytes())
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in answer
        assert http(running.port, "GET", "/api/session").status == 503
        for sock in sockets:
            sock.close()
