"""Who connects: a handshake that is there whole when its connection is, is answered without a stream.

Before ``gateway``. The kernel tells of a connection when its first bytes are there (``listening``), and nearly
every handshake is one packet; so a look at those bytes tells it from everything else. It is taken from the
socket and parsed by Tornado's own functions. What is no handshake, or none that is whole and plain, stays in
the socket untouched and goes to the HTTP server. For somebody who leaves them at once an ``IOStream``, an
``HTTP1Connection``, a task and their time-outs cost as much as all the rest of coming in.
"""

from __future__ import annotations

import asyncio
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
# Connections are accepted for this long at a time, and at least one; then it is the turn of the members.
ACCEPT_SECONDS = 0.005
# When the kernel refuses a descriptor (EMFILE, ENFILE, ENOBUFS) those who come wait this long in its queue.
PAUSE_SECONDS = 0.1
# Any other Host, and a request with a body, are left to the HTTP server, which knows what to say of them.
PLAIN_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
BODY_HEADERS = ("Content-Length", "Transfer-Encoding")

OnHandshake = Callable[[socket.socket, Request, bytes], object]
OnConnection = Callable[[socket.socket, Any], object]


def read_handshake(received: bytes, peer: str) -> tuple[Request, bytes] | None:
    """The handshake that a connection begins with, and what came behind it.

    Args:
        received: What has come so far.
        peer: Address at the other end.

    Returns:
        None where this is something else, is not whole, or is not well-formed (RFC 9112).
    """
    end = received.find(b"\r\n\r\n")
    if end < 0 or not received.startswith(b"GET " + PATH.encode()):
        return None
    line, _, fields = received[: end + 2].decode("latin-1").partition("\r\n")
    try:
        method, target, version = parse_request_start_line(line)
        headers = HTTPHeaders.parse(fields)
    except HTTPInputError:
        return None
    path, _, query = target.partition("?")
    if path != PATH or not PLAIN_HOST.fullmatch(headers.get("Host", "")):
        return None
    if any(name in headers for name in BODY_HEADERS):
        return None
    return Request(method, version, target, query, headers, peer, False), received[end + 4 :]


class Acceptor:
    """Accepts the connections of one listening socket.

    Args:
        on_handshake: Takes a connected non-blocking socket, its handshake, and what came behind that.
        on_other: Takes a connected non-blocking socket with everything still in it, and its address.
    """

    def __init__(self, on_handshake: OnHandshake, on_other: OnConnection) -> None:
        self._on_handshake, self._on_other = on_handshake, on_other
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None

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
        until = time.monotonic() + ACCEPT_SECONDS
        while self._listening is not None:
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:  # gone before it was its turn
                continue
            except OSError as error:
                self._pause(self._listening, error)
                return
            try:
                self._greet(connection, address)
            except Exception:
                log.exception("a new connection failed and is closed")
                connection.close()
            if time.monotonic() >= until:
                return

    def _greet(self, connection: socket.socket, address: Any) -> None:
        connection.setblocking(False)
        try:
            received = connection.recv(MAX_HEADER_BYTES, socket.MSG_PEEK)
        except OSError:  # nothing yet, or it is gone: both are the server's
            received = b""
        found = read_handshake(received, address[0] if address else "")
        if found is None:
            self._on_other(connection, address)
            return
        connection.recv(len(received))
        self._on_handshake(connection, *found)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        log.warning("no connection can be accepted: %s; tried again in %g s", error, PAUSE_SECONDS)
        self._loop.remove_reader(listening)
        self._loop.call_later(PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if self._listening is listening:
            self._loop.add_reader(listening, self._accept)
