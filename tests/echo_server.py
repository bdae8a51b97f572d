"""A WebSocket echo on the reactor and the frame codec, for Autobahn's test suite alone.

``python tests/echo_server.py --port 9001``. The handshake is the server's own; messages of up to
64 MiB go back as they came, text as text and binary as binary.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time

from tornado.httputil import HTTPHeaders

from tornadochat._fastframe import OP_BINARY, Deflater, encode_frame, encode_plain
from tornadochat._reactor import Reactor
from tornadochat.handshake import Request, check_upgrade, response_bytes

LIMIT = 64 << 20


class Echo:
    """One connection."""

    def __init__(self) -> None:
        self.connection = None
        self.deflates = False


DEFLATER = Deflater(level=1, min_bytes=0)


def answer(echo: Echo, payload: bytes) -> None:
    """A text comes back compressed where that is negotiated."""
    batch = encode_plain([payload])
    echo.connection.send((DEFLATER.deflate(batch) if echo.deflates else batch).frames())


async def serve(port: int) -> None:
    """Echo until the process is ended."""
    loop = asyncio.get_running_loop()
    reactor = Reactor(
        on_text=answer,
        on_binary=lambda echo, payload: echo.connection.send(encode_frame(OP_BINARY, payload)),
        on_closed=lambda echo, code, reason: None,
        on_drained=lambda echo: None,
        on_gap=lambda echo, rooms: None,
        max_message_bytes=LIMIT,
        max_backlog_bytes=LIMIT,
        max_answer_bytes=2 * LIMIT,
        replay_bytes=LIMIT,
        ping_seconds=600,
        pong_seconds=600,
        close_seconds=5,
        stuck_seconds=60,
    )
    loop.add_reader(reactor.fileno(), reactor.poll)
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    listener.setblocking(False)

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            reactor.tick(time.monotonic())

    async def greet(sock: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await loop.sock_recv(sock, 65536)
            if not piece:
                sock.close()
                return
            data += piece
        head, _, behind = data.partition(b"\r\n\r\n")
        first, _, rest = head.decode("latin-1").partition("\r\n")
        method, _, version = first.split(" ", 2)
        request = Request(method, version, "/", "", HTTPHeaders.parse(rest), "", False)
        upgrade = check_upgrade(request, secure=False, allow_origin=["*"], deflate=True)
        await loop.sock_sendall(sock, response_bytes(upgrade))
        echo = Echo()
        echo.deflates = upgrade.extension is not None
        echo.connection = reactor.attach(sock.detach(), echo, echo.deflates)
        echo.connection.feed(behind)

    tasks = {asyncio.ensure_future(tick())}
    while True:
        sock, _ = await loop.sock_accept(listener)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        task = asyncio.ensure_future(greet(sock))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9001)
    asyncio.run(serve(parser.parse_args().port))
