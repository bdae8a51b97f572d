"""The opening handshake of RFC 6455 section 4: what is accepted, and the 101 answer.

``gateway`` calls it with a parsed request before anybody is authenticated. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders

from tornadochat.errors import HandshakeError
from tornadochat.protocol import SUBPROTOCOL

PATH = "/ws"
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
DEFLATE = "permessage-deflate"
WINDOW_BITS = frozenset(str(bits) for bits in range(8, 16))
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Request(NamedTuple):
    """An HTTP request for a WebSocket.

    Attributes:
        method: As it was sent.
        version: ``HTTP/1.1``, or what the client sent.
        target: Path and query; tokens may be in it.
        query: What is behind the question mark.
        headers: All of them, with repetitions.
        peer: Address at the other end of the socket.
        secure: Whether that socket speaks TLS.
    """

    method: str
    version: str
    target: str
    query: str
    headers: HTTPHeaders
    peer: str
    secure: bool


class Upgrade(NamedTuple):
    """A handshake that was accepted."""

    accept: str
    subprotocol: str | None
    extension: str | None  # what to answer of permessage-deflate, None where it is not used


def check_upgrade(
    request: Request,
    *,
    secure: bool,
    allow_origin: Sequence[str],
    deflate: bool = False,
) -> Upgrade:
    """Check a request against RFC 6455 section 4.2.1, strictly.

    Args:
        request: As it came.
        secure: Whether the client sees ``https``.
        allow_origin: Origins besides the server's own; ``*`` for any.
        deflate: Whether permessage-deflate is accepted where it is offered.

    Raises:
        HandshakeError: With the status to answer: 400, 403 (origin), 405 (method), 426 (no upgrade, or
            another version of the protocol), 505 (HTTP/1.0).
    """
    method, version, headers = request.method, request.version, request.headers
    if method != "GET":
        raise HandshakeError(405, "Open the WebSocket with GET.", {"Allow": "GET"})
    if version != "HTTP/1.1":
        raise HandshakeError(505, "Open the WebSocket with HTTP/1.1.")
    if len(headers.get_list("Host")) != 1:
        raise HandshakeError(400, "Send exactly one Host header.")
    if not _has_token(headers, "Upgrade", "websocket"):
        raise HandshakeError(426, "Send Upgrade: websocket.", {"Upgrade": "websocket"})
    if not _has_token(headers, "Connection", "upgrade"):
        raise HandshakeError(426, "Send Connection: Upgrade.", {"Upgrade": "websocket"})
    if headers.get_list("Sec-WebSocket-Version") != ["13"]:
        raise HandshakeError(
            426,
            "Send Sec-WebSocket-Version: 13, once.",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    key = _key(headers.get_list("Sec-WebSocket-Key"))
    if not origin_allowed(headers, secure=secure, allow_origin=allow_origin):
        raise HandshakeError(403, "This origin may not connect; the server's --allow-origin names those that may.")
    accept = base64.b64encode(hashlib.sha1(key + MAGIC, usedforsecurity=False).digest()).decode("ascii")
    offered = [name.strip() for name in ",".join(headers.get_list("Sec-WebSocket-Protocol")).split(",")]
    extension = choose_deflate(headers.get_list("Sec-WebSocket-Extensions")) if deflate else None
    return Upgrade(accept, SUBPROTOCOL if SUBPROTOCOL in offered else None, extension)


def choose_deflate(offers: Sequence[str]) -> str | None:
    """The answer to the first offer of permessage-deflate that can be kept (RFC 7692 section 7.1).

    Neither side keeps its window from one message to the next, so that no memory is needed for a
    connection and an event is compressed once for everybody. An offer with a smaller window for what
    the server sends is declined: all members share the same bytes.
    """
    for offer in ",".join(offers).split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name.lower() == DEFLATE and (answer := _deflate_answer(parameters)) is not None:
            return answer
    return None


def _deflate_answer(parameters: Sequence[str]) -> str | None:
    answer = [DEFLATE, "server_no_context_takeover", "client_no_context_takeover"]
    seen = set()
    for parameter in parameters:
        name, equals, value = (part.strip() for part in parameter.lower().partition("="))
        value = value.strip('"')
        if name in seen:
            return None
        seen.add(name)
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if equals:
                return None
        elif name == "server_max_window_bits":
            if value != "15":  # 8 to 14 cannot be kept, anything else is none
                return None
            answer.append("server_max_window_bits=15")
        elif name != "client_max_window_bits" or (equals and value not in WINDOW_BITS):
            return None
    return "; ".join(answer)


def response_bytes(upgrade: Upgrade, worker: int | None = None) -> bytes:
    """The answer of RFC 6455 section 4.2.2; with ``worker`` it tells which one gives it."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {upgrade.accept}",
    ]
    if upgrade.extension is not None:
        lines.append(f"Sec-WebSocket-Extensions: {upgrade.extension}")
    if upgrade.subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {upgrade.subprotocol}")
    if worker is not None:
        lines.append(f"X-Worker: {worker}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def origin_allowed(headers: HTTPHeaders, *, secure: bool, allow_origin: Sequence[str]) -> bool:
    """Whether a browser on this page may talk to us: RFC 6455 section 10.2.

    A request without Origin comes from no browser and is allowed. Otherwise the origin must be the
    server's own (scheme, host and port of Host) or one of ``allow_origin``.
    """
    origins = headers.get_list("Origin")
    if not origins:
        return True
    if len(origins) > 1:
        return False
    origin = origins[0].lower().rstrip("/")
    if "*" in allow_origin or origin in (allowed.lower().rstrip("/") for allowed in allow_origin):
        return True
    own = f"{'https' if secure else 'http'}://{headers.get('Host', '')}"
    return _origin(origin) is not None and _origin(origin) == _origin(own)


def _origin(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url.lower())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
        return None
    return parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme]


def _has_token(headers: HTTPHeaders, name: str, wanted: str) -> bool:
    values = headers.get_list(name)
    if len(values) == 1 and values[0].lower() == wanted:  # as nearly everybody sends it
        return True
    return wanted in (token.strip().lower() for value in values for token in value.split(","))


def _key(keys: list[str]) -> bytes:
    if len(keys) != 1:
        raise HandshakeError(400, "Send exactly one Sec-WebSocket-Key header.")
    try:
        raw = base64.b64decode(keys[0].strip(), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 16:
        raise HandshakeError(400, "Sec-WebSocket-Key must be 16 bytes in base64.")
    return keys[0].strip().encode("ascii")


# Behind proxies ------------------------------------------------------------------------------------


def parse_networks(names: Sequence[str]) -> tuple[Network, ...]:
    """Networks or single addresses.

    Raises:
        ValueError: One is neither; the message names it.
    """
    return tuple(ipaddress.ip_network(name, strict=False) for name in names)


def in_networks(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of these networks; an IPv4 address in IPv6 form counts as IPv4."""
    if not networks:
        return False
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed in network for network in networks)


class Client(NamedTuple):
    """Where a request really comes from, and whether its client sees https."""

    address: str
    secure: bool


def client_of(peer: str, secure: bool, headers: HTTPHeaders, trusted: Sequence[Network]) -> Client:
    """Look through trusted proxies, from the nearest to the farthest.

    Args:
        peer: Address at the other end of the socket.
        secure: Whether that socket speaks TLS.
        headers: Of the request.
        trusted: Networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
    """
    if not in_networks(peer, trusted):
        return Client(peer, secure)
    address = peer
    hops = [hop.strip() for hop in ",".join(headers.get_list("X-Forwarded-For")).split(",") if hop.strip()]
    for hop in reversed(hops):
        try:
            address = str(ipaddress.ip_address(hop))
        except ValueError:
            break
        if not in_networks(address, trusted):
            break
    schemes = [value.strip().lower() for value in ",".join(headers.get_list("X-Forwarded-Proto")).split(",")]
    return Client(address, schemes[-1] in ("https", "wss") if schemes[-1] else secure)
