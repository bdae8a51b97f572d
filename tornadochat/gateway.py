"""The door: HTTP comes in, WebSockets are handed over.

Before ``worker.adopt``. ``/ws`` is answered here without a RequestHandler, since every member passes once: most
handshakes come from ``acceptor``, those over TLS or in parts from Tornado's HTTP server. Everything else goes to
the handlers of ``api`` and ``pages``. After the 101 no Tornado object is kept for a member on a plain socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from http.client import responses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qs

import tornado.web
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    parse_cookie,
)
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.routing import Router

from tornadochat import api, handshake, pages
from tornadochat.acceptor import MAX_HEADER_BYTES, Acceptor
from tornadochat.auth import COOKIE, Authenticator, Identity, redacted
from tornadochat.errors import HandshakeError, StartError
from tornadochat.limits import AddressCounts, AddressRates

if TYPE_CHECKING:
    from tornadochat.broker import Broker
    from tornadochat.homes import Homes
    from tornadochat.metrics import Metrics
    from tornadochat.presence import Presence
    from tornadochat.protocol import Join
    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

MAX_BODY_BYTES = 1024 * 1024
# What a client may send behind its handshake before it has the answer: one message of the usual kind.
MAX_EARLY_BYTES = 1024 * 1024
RETRY_AFTER_SECONDS = 5


class Upgraded(NamedTuple):
    """A member who is let in.

    Attributes:
        fd: Descriptor of its plain socket, owned by the receiver; -1 where ``stream`` is given.
        stream: Its TLS stream, owned by the receiver.
        answer: The answer to its handshake, which goes before everything else; empty where it is sent.
        received: Bytes that came behind the handshake.
        identity: Who it is.
        address: Where it comes from, for ``Gateway.release``.
        deflates: Whether permessage-deflate is negotiated.
        join: With what it moved here from another worker, which has let it in; None for who is new.
    """

    fd: int
    stream: IOStream | None
    answer: bytes
    received: bytes
    identity: Identity
    address: str
    deflates: bool
    join: Join | None = None


class Services(Protocol):
    """What the gateway and the API know of their worker."""

    settings: Settings
    slot: int
    draining: bool
    broker: Broker
    presence: Presence
    metrics: Metrics
    homes: Homes | None
    plain_sockets: bool  # whether the reactor takes plain sockets; else streams are handed over

    @property
    def authenticator(self) -> Authenticator | None:
        """Who tells who somebody is; None until the session secret is known."""

    def ready(self) -> bool:
        """Whether people can be let in."""

    def full(self) -> bool:
        """Whether there is no room for one more member."""

    def adopt(self, upgraded: Upgraded) -> object:
        """Take a member over."""


class AnsweringServer(HTTPServer):
    """An HTTP server that knows whom it still owes an answer, so that the end of a worker cuts nobody off.

    Somebody who has connected sends a first request at once, and takes it ill when nothing answers it; a
    connection that is kept alive may be closed between two requests (RFC 9112 section 9.5).

    Attributes:
        owed: Connections whose first request has not come or that wait for an answer, and streams that wait
            for the end of theirs.
        on_settled: Called whenever one has left ``owed``.
    """

    def initialize(self, *args: Any, **options: Any) -> None:
        """See ``HTTPServer.initialize``."""
        super().initialize(*args, **options)
        self.owed: set[HTTPConnection | IOStream] = set()
        self.on_settled: Callable[[], object] | None = None
        self._current: dict[object, HTTPConnection] = {}  # the request that each socket is at

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """A connection waits for a request, its first one or the next one."""
        answered = self._current.get(server_conn)
        self._current[server_conn] = request_conn
        if answered is None:
            self.owed.add(request_conn)
        else:
            self.settle(answered)
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """A connection is closed, or is a WebSocket now."""
        super().on_close(server_conn)
        self.settle(self._current.pop(server_conn))

    def settle(self, connection: HTTPConnection | IOStream) -> None:
        """Somebody has an answer, or is gone."""
        self.owed.discard(connection)
        if self.on_settled is not None:
            self.on_settled()


class Gateway(Router):
    """Routes requests, and keeps count of what each address does.

    Attributes:
        server: Takes the connections that need a stream.

    Raises:
        StartError: The certificate cannot be used.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        settings = services.settings
        self.trusted = handshake.parse_networks(settings.trusted_proxies)
        self.rates = AddressRates(settings, "handshakes_per_second")
        self.counts = AddressCounts(settings, services.homes)
        self.application = tornado.web.Application(
            [*api.routes(), *pages.routes()],
            services=services,
            gateway=self,
            request_rates=AddressRates(settings, "api_requests_per_second"),
            metrics_networks=handshake.parse_networks(settings.metrics_allow),
            log_function=log_request,
            default_handler_class=pages.NotFound,
        )
        self.server = self._server()
        self.acceptor = Acceptor(self._on_handshake, self._on_connection)

    def listen(self, listening: socket.socket) -> None:
        """Let people in from here on; over TLS a stream has to decrypt what they say."""
        if self.server.ssl_options is None and self.services.plain_sockets:
            self.acceptor.start(listening)
        else:
            self.server.add_socket(listening)

    def stop(self) -> None:
        """Let nobody in any more; requests under way go on."""
        self.acceptor.stop()
        self.server.stop()

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        """See ``tornado.routing.Router``."""
        assert request.connection is not None
        self.server.owed.add(request.connection)
        if request.path == handshake.PATH:
            return Door(self, request)
        return self.application.find_handler(request, **kwargs)

    def _server(self) -> AnsweringServer:
        settings = self.services.settings
        return AnsweringServer(
            self,
            ssl_options=tls_context(settings.certfile, settings.keyfile) if settings.tls else None,
            idle_connection_timeout=settings.handshake_seconds,
            body_timeout=settings.handshake_seconds,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_BODY_BYTES,
        )

    def client_of(self, request: HTTPServerRequest) -> handshake.Client:
        """Where a request really comes from."""
        peer = request.remote_ip or ""
        return handshake.client_of(peer, request.protocol == "https", request.headers, self.trusted)

    def release(self, address: str) -> None:
        """A member from this address is gone."""
        self.counts.remove(address)

    def admit(self, request: handshake.Request) -> tuple[handshake.Upgrade, Identity, str]:
        """Check a handshake whole: form, room for one more, rates, and who it is.

        Returns:
            What to answer, who it is, and the address that ``release`` gets later.

        Raises:
            HandshakeError: It is refused; nothing is counted.
        """
        services, headers = self.services, request.headers
        client = handshake.client_of(request.peer, request.secure, headers, self.trusted)
        upgrade = handshake.check_upgrade(
            request,
            secure=client.secure,
            allow_origin=services.settings.allow_origin,
            deflate=services.settings.compression,
        )
        if services.full():
            raise busy("This worker is full; connect again in a moment.")
        authenticator = services.authenticator
        if authenticator is None:
            raise busy("The store cannot be reached yet; connect again in a moment.")
        wait = self.rates.take(client.address, time.monotonic())
        if wait:
            raise HandshakeError(
                429, "Too many connections from this address; wait.", {"Retry-After": str(int(wait) + 1)}
            )
        query = parse_qs(request.query, keep_blank_values=True) if request.query else {}
        identity = authenticator.authenticate(
            cookie=cookie_of(headers),
            token=query.get("token", [""])[-1] or None,
            authorization=headers.get("Authorization"),
            name=query["name"][-1] if "name" in query else None,
        )
        if not self.counts.may_add(client.address):
            raise HandshakeError(
                429,
                "This address has too many connections; close one first.",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        self.counts.add(client.address)
        self.services.metrics.handshakes.inc()
        return upgrade, identity, client.address

    def refuse(self, request: handshake.Request, error: HandshakeError) -> bytes:
        """Count a handshake that is refused; the answer to it."""
        self.services.metrics.refused.labels(error.status).inc()
        log.debug("refused %s: %s", redacted(request.target), error)
        return refusal_bytes(error, with_body=request.method != "HEAD")

    def answer(self, upgrade: handshake.Upgrade) -> bytes:
        """The answer to a handshake that is accepted."""
        worker = self.services.slot if self.services.settings.debug_headers else None
        return handshake.response_bytes(upgrade, worker)

    def _on_handshake(self, connection: socket.socket, request: handshake.Request) -> None:
        try:
            upgrade, identity, address = self.admit(request)
        except HandshakeError as error:
            with connection, contextlib.suppress(OSError):  # it may be gone already
                connection.send(self.refuse(request, error))  # a new socket takes it whole
            return
        deflates = upgrade.extension is not None
        answer, descriptor = self.answer(upgrade), connection.detach()
        self.services.adopt(Upgraded(descriptor, None, answer, b"", identity, address, deflates))

    def _on_connection(self, connection: socket.socket, address: Any) -> None:
        self.server.handle_stream(IOStream(connection), address)


def make_gateway(services: Services) -> Gateway:
    """The gateway of one worker."""
    return Gateway(services)


def busy(message: str) -> HandshakeError:
    """503 with Retry-After."""
    return HandshakeError(503, message, {"Retry-After": str(RETRY_AFTER_SECONDS)})


class Door(HTTPMessageDelegate):
    """One handshake: refused with an HTTP answer, or upgraded and handed over."""

    def __init__(self, gateway: Gateway, request: HTTPServerRequest) -> None:
        self._gateway = gateway
        self._request = request

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        """See ``tornado.httputil.HTTPMessageDelegate``."""
        connection = self._request.connection
        assert isinstance(connection, HTTP1Connection)
        stream = connection.detach()
        try:
            self._answer(stream)
        except Exception:
            stream.close()  # nobody else has it any more
            raise

    def _answer(self, stream: IOStream) -> None:
        gateway, request = self._gateway, request_of(self._request)
        try:
            upgrade, identity, address = gateway.admit(request)
        except HandshakeError as error:
            self._write(stream, gateway.refuse(request, error), stream.close)
            return
        answer, deflates = gateway.answer(upgrade), upgrade.extension is not None
        if not isinstance(stream, SSLIOStream) and gateway.services.plain_sockets:
            self._hand_over(stream, answer, identity, address, deflates)
            return
        upgraded = Upgraded(-1, stream, b"", b"", identity, address, deflates)
        self._write(stream, answer, lambda: gateway.services.adopt(upgraded), lambda: gateway.release(address))

    def _write(
        self,
        stream: IOStream,
        answer: bytes,
        written: Callable[[], object],
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        """Send an answer, and go on when it is on its way or when nobody is there any more."""
        server = self._gateway.server
        server.owed.add(stream)

        def done(sent: asyncio.Future[None]) -> None:
            gone = sent.exception() is not None or stream.closed()
            try:
                (failed if gone else written)()
            finally:
                server.settle(stream)

        try:
            stream.write(answer).add_done_callback(done)
        except StreamClosedError:
            server.settle(stream)
            failed()

    def _hand_over(
        self, stream: IOStream, answer: bytes, identity: Identity, address: str, deflates: bool
    ) -> None:
        """The answer goes out together with the first event, so that it is one send and not two."""
        # Whatever is in the stream's buffer or in the kernel's comes at once; a read that has to wait
        # ends with the stream, and nothing is lost: the descriptor lives on.
        try:
            early: Any = stream.read_bytes(MAX_EARLY_BYTES, partial=True)
            received = early.result() if early.done() and early.exception() is None else b""
            if stream.closed():
                raise StreamClosedError
            descriptor = os.dup(stream.socket.fileno())
        except (StreamClosedError, OSError) as error:  # it has hung up, or there is no descriptor left
            log.debug("a handshake has come to nothing: %s", error)
            self._gateway.release(address)
            stream.close()
            return
        stream.close()
        upgraded = Upgraded(descriptor, None, answer, received, identity, address, deflates)
        self._gateway.services.adopt(upgraded)

    def finish(self) -> None:
        """See ``tornado.httputil.HTTPMessageDelegate``."""

    def on_connection_close(self) -> None:
        """See ``tornado.httputil.HTTPMessageDelegate``."""


def request_of(request: HTTPServerRequest) -> handshake.Request:
    """What Tornado's server has read, in the form of ``acceptor``."""
    return handshake.Request(
        request.method or "",
        request.version,
        request.uri or "",
        request.query,
        request.headers,
        request.remote_ip or "",
        request.protocol == "https",
    )


def refusal_bytes(error: HandshakeError, with_body: bool = True) -> bytes:
    """The HTTP answer to a handshake that is refused; the connection ends behind it."""
    body = api.error_body(api.code_of(error.status), error.message)
    lines = [
        f"HTTP/1.1 {error.status} {responses.get(error.status, 'Refused')}",
        *(f"{name}: {value}" for name, value in error.headers.items()),
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head + body if with_body else head


def cookie_of(headers: HTTPHeaders) -> str | None:
    """The session cookie, as it was sent."""
    sent = headers.get("Cookie")
    return parse_cookie(sent).get(COOKIE) if sent else None


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """The server's certificate.

    Raises:
        StartError: It cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile or None)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"--certfile {certfile} with --keyfile {keyfile or '(none)'} cannot be used: {error}"
        ) from None
    return context


def log_request(handler: tornado.web.RequestHandler) -> None:
    """One line for each request, tokens taken out."""
    status = handler.get_status()
    level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.ERROR
    request = handler.request
    log.log(
        level,
        "%d %s %s (%s) %.1f ms",
        status,
        request.method,
        redacted(request.uri or ""),
        request.remote_ip,
        request.request_time() * 1000,
    )
