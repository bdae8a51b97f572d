"""Who connects: a handshake that is there whole when its connection is, is answered without a stream.

Before ``gateway``. The kernel tells of a connection when its first bytes are there (``listening``), and nearly
every handshake is one packet; so a look at those bytes tells it from everything else. It is taken from the
socket, and its lines are parsed by Tornado's functions. What is no handshake, or none that is whole and plain,
stays in the socket untouched and goes to the HTTP server. That keeps an ``IOStream``, an ``HTTP1Connection``, a
task and their time-outs for each connection; a member needs none of them a moment later, and they cost as much as
all the rest of its coming in.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPInputError, parse_request_start_line

from tornadochat.handshake import PATH, Request

log = logging.getLogger("tornadochat")

# RFC 9112 sets no limit; browsers with large cookies stay below this.
MAX_HEADER_BYTES = 16 * 1024
# Connections are accepted for so long at a time, and at least one; then it is the turn of the members.
ACCEPT_SECONDS = 0.005
# Of those for the HTTP server so many, since most of their work is done later, and all at once.
CONNECTIONS_AT_ONCE = 16
# Who comes waits so long in the kernel's queue when it has nothing left for one more socket.
PAUSE_SECONDS = 0.1
NOTHING_LEFT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# That nothing is left is said this often while it lasts.
TELL_SECONDS = 60.0
# What follows is left to the HTTP server, which knows what to say of it. Browsers send some twenty fields, and
# whoever sends hundreds makes more work than a handshake is; two fields of the query mean something.
MAX_FIELDS, MAX_QUERY_FIELDS = 64, 64
PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
BODY_FIELDS = ("Content-Length", "Transfer-Encoding")

OnHandshake = Callable[[socket.socket, Request], object]
OnConnection = Callable[[socket.socket, Any], object]


def read_handshake(received: bytes, peer: str) -> tuple[Request, int] | None:
    """The handshake that a connection begins with, and its length in bytes.

    Args:
        received: What has come so far.
        peer: Address at the other end.

    Returns:
        None where this is something else, is not whole, or is not well-formed (RFC 9112; a line ends with CR and
        LF here, and not with LF alone).
    """
    end = received.find(b"\r\n\r\n")
    if end < 0 or not received.startswith(b"GET " + PATH.encode()):
        return None
    lines = received.count(b"\n", 0, end)
    if lines > MAX_FIELDS or lines != received.count(b"\r\n", 0, end):
        return None
    line, _, fields = received[: end + 2].decode("latin-1").partition("\r\n")
    try:
        method, target, version = parse_request_start_line(line)
        headers = HTTPHeaders.parse(fields)
    except HTTPInputError:
        return None
    path, _, query = target.partition("?")
    if path != PATH or query.count("&") >= MAX_QUERY_FIELDS or not PLAIN_HOST.fullmatch(headers.get("Host", "")):
        return None
    if any(name in headers for name in BODY_FIELDS):
        return None
    return Request(method, version, target, query, headers, peer, False), end + 4


class Acceptor:
    """Accepts the connections of one listening socket.

    Args:
        on_handshake: Takes a connected socket and the handshake that came on it; what came behind that is still in
            the socket.
        on_connection: Takes a connected socket with everything still in it, and its address.
    """

    def __init__(self, on_handshake: OnHandshake, on_connection: OnConnection) -> None:
        self._on_handshake, self._on_connection = on_handshake, on_connection
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._told = -TELL_SECONDS  # when it was said that nothing is left

    def start(self, listening: socket.socket) -> None:
        """Accept from here on; the socket stays its owner's."""
        self._listening = listening
        self._loop.add_reader(listening, self._accept)

    def stop(self) -> None:
        """Accept nobody any more; who has connected waits for whoever accepts next."""
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening = None

    def _accept(self) -> None:
        until, left = time.monotonic() + ACCEPT_SECONDS, CONNECTIONS_AT_ONCE
        while self._listening is not None:
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NOTHING_LEFT:
                    self._pause(self._listening, error)
                    return
                # It was gone before it was its turn: accept(2) gives the errors of its connection.
            else:
                try:
                    left -= not self._greet(connection, address)
                except Exception:
                    log.exception("a new connection failed and is closed")
                    connection.close()
            if not left or time.monotonic() >= until:
                return

    def _greet(self, connection: socket.socket, address: Any) -> bool:
        """Hand a connection on; whether it began with a handshake."""
        try:
            received = connection.recv(MAX_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:  # it has said nothing for a whole second
            self._on_connection(connection, address)
            return False
        except OSError:
            received = b""
        if not received:  # gone already
            connection.close()
            return False
        found = read_handshake(received, address[0])
        if found is None:
            self._on_connection(connection, address)
            return False
        request, size = found
        connection.recv(size, socket.MSG_DONTWAIT)  # what a look has seen is there
        self._on_handshake(connection, request)
        return True

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            log.warning("nobody else can be let in: %s; tried again every %g s", error, PAUSE_SECONDS)
        self._loop.remove_reader(listening)
        self._loop.call_later(PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if self._listening is listening:
            self._loop.add_reader(listening, self._accept)
