"""Who connects: what is taken as a handshake, and what is left to the HTTP server."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support import request_bytes
from tornadochat.acceptor import Acceptor, read_handshake
from tornadochat.handshake import Request


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def test_a_whole_handshake_is_read_with_what_comes_behind_it() -> None:
    found = read_handshake(request_bytes(path="/ws?name=Ada&token=a") + b"\x81\x80", "192.0.2.7")
    assert found is not None
    request, behind = found
    assert request._replace(headers=None) == Request(
        "GET", "HTTP/1.1", "/ws?name=Ada&token=a", "name=Ada&token=a", None, "192.0.2.7", False
    )
    assert request.headers["Sec-WebSocket-Version"] == "13" and behind == b"\x81\x80"


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
    ],
)
def test_anything_else_is_left_alone(received: bytes) -> None:
    assert read_handshake(received, "192.0.2.7") is None


class Recorder:
    """Takes what an acceptor hands over."""

    def __init__(self) -> None:
        self.handshakes: list[tuple[socket.socket, Request, bytes]] = []
        self.others: list[socket.socket] = []

    def on_handshake(self, connection: socket.socket, request: Request, behind: bytes) -> None:
        self.handshakes.append((connection, request, behind))

    def on_other(self, connection: socket.socket, _address: Any) -> None:
        self.others.append(connection)

    @property
    def count(self) -> int:
        return len(self.handshakes) + len(self.others)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", request_bytes()[:30], b"\x16\x03\x01"])
@in_loop
async def test_what_is_no_whole_handshake_stays_in_the_socket(sent: bytes) -> None:
    seen = Recorder()
    acceptor = Acceptor(seen.on_handshake, seen.on_other)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        listening.setblocking(False)
        peer.connect(listening.getsockname())
        peer.sendall(sent)
        acceptor.start(listening)
        await until(lambda: bool(seen.count))
        with seen.others[0] as connection:
            assert connection.recv(4096) == sent and not connection.getblocking()
        acceptor.stop()


@in_loop
async def test_a_handshake_is_taken_out_of_the_socket_and_later_bytes_stay_in_it() -> None:
    seen = Recorder()
    acceptor = Acceptor(seen.on_handshake, seen.on_other)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        listening.setblocking(False)
        peer.connect(listening.getsockname())
        peer.sendall(request_bytes() + b"early")
        acceptor.start(listening)
        await until(lambda: bool(seen.count))
        connection, request, behind = seen.handshakes[0]
        with connection:
            assert request.peer == "127.0.0.1" and behind == b"early"
            peer.sendall(b"later")
            await until(lambda: _readable(connection))
            assert connection.recv(4096) == b"later"
        acceptor.stop()


def _readable(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@in_loop
async def test_one_that_fails_is_closed_and_the_next_one_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    seen = Recorder()

    def on_handshake(connection: socket.socket, request: Request, behind: bytes) -> None:
        seen.on_handshake(connection, request, behind)
        if len(seen.handshakes) == 1:
            raise ValueError("a fault")

    acceptor = Acceptor(on_handshake, seen.on_other)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        peers = [socket.create_connection(listening.getsockname()) for _ in range(2)]
        for peer in peers:
            peer.sendall(request_bytes())
        acceptor.start(listening)
        await until(lambda: seen.count == 2)
        assert seen.handshakes[0][0].fileno() == -1 and "is closed" in caplog.text
        acceptor.stop()
        for sock in (*peers, seen.handshakes[1][0]):
            sock.close()


class Refusing(socket.socket):
    """A listening socket on which the kernel grants no descriptor for a while."""

    refusals = 3

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@in_loop
async def test_without_descriptors_those_who_come_wait(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tornadochat")
    seen = Recorder()
    acceptor = Acceptor(seen.on_handshake, seen.on_other)
    with Refusing() as listening, socket.socket() as peer:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        peer.connect(listening.getsockname())
        peer.sendall(request_bytes())
        began = asyncio.get_running_loop().time()
        acceptor.start(listening)
        await until(lambda: bool(seen.count))
        assert asyncio.get_running_loop().time() - began >= 0.29  # three pauses, in which others had their turn
        assert caplog.text.count("Too many open files") == 3
        seen.handshakes[0][0].close()
        acceptor.stop()


@in_loop
async def test_nobody_is_accepted_after_the_end() -> None:
    seen = Recorder()
    acceptor = Acceptor(seen.on_handshake, seen.on_other)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        listening.setblocking(False)
        acceptor.start(listening)
        acceptor.stop()
        acceptor.stop()
        peer.connect(listening.getsockname())
        peer.sendall(request_bytes())
        await asyncio.sleep(0.1)
        assert not seen.count
        listening.accept()[0].close()  # it waits for whoever accepts next
