"""Who connects: what is taken as a handshake, and what is left to the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.support import LEFT_TO_THE_SERVER, request_bytes
from tornadochat.acceptor import CONNECTIONS_AT_ONCE, Acceptor, read_handshake
from tornadochat.handshake import Request

PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def test_a_whole_handshake_is_read_and_not_what_comes_behind_it() -> None:
    sent = request_bytes(path="/ws?name=Ada&token=a")
    found = read_handshake(sent + b"\x81\x80\r\n\r\n", "192.0.2.7")
    assert found is not None
    request, size = found
    assert request._replace(headers=None) == Request(
        "GET", "HTTP/1.1", "/ws?name=Ada&token=a", "name=Ada&token=a", None, "192.0.2.7", False
    )
    assert request.headers["Sec-WebSocket-Version"] == "13" and size == len(sent)


@pytest.mark.parametrize(
    "received",
    [
        b"",
        request_bytes()[:-1],
        request_bytes().replace(b"\r\n", b"\n"),
        request_bytes(method="POST"),
        request_bytes(path="/wsx"),
        request_bytes(path="/"),
        request_bytes(Host=None),
        request_bytes(Host="a b"),
        request_bytes(Host=["a", "a"]),
        request_bytes(Content_Length="3"),
        request_bytes(Transfer_Encoding="chunked"),
        request_bytes(version="HTTP/2.0"),
        request_bytes().replace(b"Upgrade:", b"Upgrade "),
        request_bytes().replace(b"\r\nUpgrade", b"\r\n Upgrade"),
        request_bytes().replace(b"Upgrade:", b"Up\x00grade:"),
        b"\x16\x03\x01" + request_bytes(),  # TLS
        b"\r\n" + request_bytes(),
        request_bytes().replace(b"\r\nUpgrade", b"\n\nUpgrade"),
        request_bytes().replace(b"\r\nUpgrade", b"\r\n\nUpgrade"),
        request_bytes().replace(b"\r\nUpgrade", b"\n\r\nUpgrade"),
        request_bytes().replace(b"\r\nUpgrade", b"\nUpgrade"),
        request_bytes(path="/ws?" + "a=1&" * 64),
        request_bytes(**LEFT_TO_THE_SERVER),
    ],
)
def test_anything_else_is_left_alone(received: bytes) -> None:
    assert read_handshake(received, "192.0.2.7") is None


class Recorder:
    """An acceptor, what it hands over, and those who connect."""

    def __init__(self, listening: socket.socket) -> None:
        self.handshakes: list[tuple[socket.socket, Request]] = []
        self.connections: list[socket.socket] = []
        self.peers: list[socket.socket] = []
        self.fails = False
        self._listening = listening
        self.acceptor = Acceptor(self.on_handshake, self.on_connection)

    @classmethod
    @contextlib.contextmanager
    def standing(cls, listening: socket.socket | None = None) -> Iterator[Recorder]:
        with listening or socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            listening.setblocking(False)
            seen = cls(listening)
            try:
                yield seen
            finally:
                seen.acceptor.stop()
                for sock in (*seen.peers, *seen.connections, *(one for one, _ in seen.handshakes)):
                    sock.close()

    def on_handshake(self, connection: socket.socket, request: Request) -> None:
        self.handshakes.append((connection, request))
        if self.fails:
            raise ValueError("a fault")

    def on_connection(self, connection: socket.socket, _address: Any) -> None:
        self.connections.append(connection)

    @property
    def count(self) -> int:
        return len(self.handshakes) + len(self.connections)

    def start(self) -> None:
        self.acceptor.start(self._listening)

    def connect(self, sent: bytes) -> socket.socket:
        peer = socket.create_connection(self._listening.getsockname())
        self.peers.append(peer)
        peer.sendall(sent)
        return peer


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", request_bytes()[:30], b"\x16\x03\x01", b""]
)
@in_loop
async def test_what_is_no_whole_handshake_stays_in_the_socket(sent: bytes) -> None:
    with Recorder.standing() as seen:
        seen.connect(sent)
        seen.start()
        await until(lambda: seen.count == 1)
        connection = seen.connections[0]
        connection.setblocking(False)
        if sent:
            assert connection.recv(4096) == sent
        else:
            with pytest.raises(BlockingIOError):
                connection.recv(4096)


@in_loop
async def test_a_handshake_is_taken_out_of_the_socket_and_what_comes_behind_it_stays() -> None:
    with Recorder.standing() as seen:
        peer = seen.connect(request_bytes() + b"early")
        seen.start()
        await until(lambda: seen.count == 1)
        connection, request = seen.handshakes[0]
        peer.sendall(b"later")
        peer.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        with connection.makefile("rb") as left:
            assert request.peer == "127.0.0.1" and left.read() == b"earlylater"


@in_loop
async def test_who_is_gone_already_is_closed() -> None:
    with Recorder.standing() as seen:
        seen.connect(b"").close()
        seen.connect(request_bytes()).close()  # what it said is there all the same
        seen.start()
        await until(lambda: bool(seen.count))
        assert len(seen.handshakes) == 1 and not seen.connections


@in_loop
async def test_one_that_fails_is_closed_and_the_next_one_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    with Recorder.standing() as seen:
        seen.fails = True
        for _ in range(2):
            seen.connect(request_bytes())
        seen.start()
        await until(lambda: seen.count == 2)
        assert all(connection.fileno() == -1 for connection, _ in seen.handshakes)
        assert caplog.text.count("is closed") == 2


@pytest.mark.parametrize(
    ("sent", "at_once"), [(request_bytes(), 40), (b"GET / HTTP/1.1\r\n\r\n", CONNECTIONS_AT_ONCE)]
)
@in_loop
async def test_only_some_of_those_for_the_server_are_accepted_at_once(
    sent: bytes, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornadochat.acceptor.ACCEPT_SECONDS", 60.0)
    with Recorder.standing() as seen:
        for _ in range(40):
            seen.connect(sent)
        seen.start()
        turns = [0]

        def count() -> None:
            turns.append(seen.count)
            asyncio.get_running_loop().call_soon(count)

        count()
        await until(lambda: seen.count == 40)
        assert max(after - before for before, after in itertools.pairwise(turns)) == at_once


class Refusing(socket.socket):
    """A listening socket whose first calls of ``accept`` fail."""

    error, refusals = errno.EMFILE, 3

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@in_loop
async def test_without_descriptors_those_who_come_wait(caplog: pytest.LogCaptureFixture) -> None:
    with Recorder.standing(Refusing()) as seen:
        seen.connect(request_bytes())
        began = asyncio.get_running_loop().time()
        seen.start()
        await until(lambda: seen.count == 1)
        assert asyncio.get_running_loop().time() - began >= 0.29  # three pauses, in which others had their turn
        assert caplog.text.count("Too many open files") == 1  # and not ten times a second


@in_loop
async def test_a_pause_ends_with_the_acceptor() -> None:
    with Recorder.standing(Refusing()) as seen:
        seen.connect(request_bytes())
        seen.start()
        await asyncio.sleep(0.01)
        seen.acceptor.stop()
        await asyncio.sleep(0.5)
        assert not seen.count


@in_loop
async def test_the_error_of_one_connection_holds_up_no_other_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornadochat.acceptor.PAUSE_SECONDS", 3600.0)
    listening = Refusing()
    listening.error = errno.EPROTO  # accept(2) tells errors of the new connection itself
    with Recorder.standing(listening) as seen:
        seen.connect(request_bytes())
        seen.start()
        await until(lambda: seen.count == 1)
        assert not caplog.text


@in_loop
async def test_nobody_is_accepted_after_the_end() -> None:
    with Recorder.standing() as seen:
        seen.start()
        seen.acceptor.stop()
        seen.acceptor.stop()
        seen.connect(request_bytes())
        await asyncio.sleep(0.1)
        assert not seen.count
        seen.start()  # it waited for whoever accepts next
        await until(lambda: seen.count == 1)
