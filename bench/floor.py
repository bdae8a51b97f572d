"""``python -m bench.floor``: what one bare send() for each delivery, or for each batch, costs on this machine.

A process with N connections to a second one sends a ready-made frame to every member of a room, at a
rate; the second process reads. With a window, all that came within it goes with one send(). The figure is
CPU-microseconds of the sender for each delivery.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple, NoReturn

from bench import native
from bench.shapes import add_shape

# Everybody has connected long before.
ACCEPT_SECONDS = 10.0


class Floor(NamedTuple):
    """One measurement of the floor."""

    deliveries: int
    cpu_us: float


def measure(
    rooms: int, members: int, rate: float, seconds: float, frame_bytes: int, window_ms: float = 0.0
) -> Floor:
    """CPU-microseconds for each delivery of ``frame_bytes`` by one bare send(), or one for each window.

    Raises:
        OSError: One process may not open so many files, or there are no ports left.
    """
    code = native.load("_floor")
    frame = frame_of(frame_bytes)
    with connected(code, rooms * members, seconds + 1) as fds:
        if window_ms:
            sent, cpu = code.fan_out_batched(fds, rooms, frame, rate, seconds, int(window_ms * 1000))
        else:
            sent, cpu = code.fan_out(fds, rooms, frame, rate, seconds)
    return Floor(sent, cpu * 1e6 / max(1, sent))


def frame_of(size: int) -> bytes:
    """A binary frame of so many bytes, 130 to 65,539 with its header."""
    return b"\x82" + bytes((126, (size - 4) >> 8, (size - 4) & 255)) + b"x" * (size - 4)


@contextmanager
def connected(code: ModuleType, members: int, seconds: float) -> Iterator[list[int]]:
    """Descriptors of so many connections to a second process, which reads for so many seconds once all are there.

    Raises:
        OSError: One process may not open so many files, or there are no ports left.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.settimeout(ACCEPT_SECONDS)
    reader = os.fork()
    if reader == 0:
        _read(code, listener, members, seconds)
    sockets: list[socket.socket] = []
    try:
        for _ in range(members):
            sockets.append(_ready(listener.accept()[0]))
        yield [sock.fileno() for sock in sockets]
    finally:
        os.waitpid(reader, 0)
        for sock in (*sockets, listener):
            sock.close()


def _read(code: ModuleType, listener: socket.socket, members: int, seconds: float) -> NoReturn:
    """The second process: connects everybody, then reads until a second after the last message."""
    try:
        sockets = [_ready(socket.create_connection(listener.getsockname())) for _ in range(members)]
        code.drain([sock.fileno() for sock in sockets], seconds)
    finally:
        os._exit(0)


def _ready(sock: socket.socket) -> socket.socket:
    """With the options of the server's own connections."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape(parser, seconds=5.0)
    parser.add_argument("--frame-bytes", type=int, default=250)
    parser.add_argument("--window-ms", type=float, default=0.0, help="of a batch; 0 sends each frame by itself")
    options = parser.parse_args()
    found = measure(**vars(options))
    print(f"floor: {found.cpu_us:.2f} us of CPU for each of {found.deliveries} deliveries")


if __name__ == "__main__":
    main()
