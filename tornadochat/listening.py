"""Listening sockets: one for each worker slot, on the same port, spread over by the kernel.

Used by ``supervisor`` before it forks. SO_REUSEPORT (socket(7)) lets several sockets share a port, but
would also let a second server take half of the first one's users without an error: so the port is
bound plainly first.
"""

from __future__ import annotations

import socket

from tornadochat.errors import StartError
from tornadochat.processes import listen_backlog

# A worker is told of a connection when something has come on it, or after this time (TCP_DEFER_ACCEPT, tcp(7)): it
# wakes up once for each handshake and not twice. A browser that connects for later, and whoever's first packet
# takes longer than this, is accepted then. Until then a connection is the kernel's, and reset when the whole
# server ends.
DEFER_SECONDS = 1


def check_port_free(host: str, port: int) -> int:
    """Make sure that nobody else has the port; returns it, or a free one for 0.

    Raises:
        StartError: It is taken, or the address is not this machine's; the message says what to do.
    """
    with _bound(host, port, shared=False) as sock:
        return int(sock.getsockname()[1])


def listen(host: str, port: int) -> socket.socket:
    """A non-blocking socket that shares the port with the other slots.

    Raises:
        StartError: It cannot be bound.
    """
    sock = _bound(host, port, shared=True)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
    sock.listen(listen_backlog())
    sock.setblocking(False)
    return sock


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(f"--host {host} is no address: {error.strerror}") from None
    family, kind, number, _, address = found[0]
    sock = socket.socket(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise StartError(
            f"port {port} on {host} cannot be used: {error.strerror}; "
            "end whatever listens there, or choose another one with --port"
        ) from None
    return sock
