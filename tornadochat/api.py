"""The HTTP API: sessions, rooms, messages, and what other servers may do with an API key.

Behind ``gateway``, beside the WebSocket. Errors have the same codes as the events of the protocol.
``openapi.json`` beside this file describes every route; it is served at /api/openapi.json.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import tornado.web
import ujson

from tornadochat import handshake, protocol
from tornadochat.auth import COOKIE, Identity, store_ended
from tornadochat.errors import HandshakeError, ProtocolError, StoreError
from tornadochat.limits import is_loopback
from tornadochat.metrics import CONTENT_TYPE
from tornadochat.protocol import User
from tornadochat.publisher import Outcome
from tornadochat.text_rules import check_text, normalise_name, normalise_room

if TYPE_CHECKING:
    from tornadochat.gateway import Gateway, Services

MAX_MESSAGES = 200
DEFAULT_MESSAGES = 50
MAX_ROOMS = 200
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "id_reused",
    413: "too_large",
    415: "bad_media_type",
    426: "upgrade_required",
    429: "rate_limited",
    503: "unavailable",
    505: "http_version",
}
CORS_METHODS = "GET, POST, DELETE, OPTIONS"
CORS_SECONDS = 600


def code_of(status: int) -> str:
    """Error code for an HTTP status."""
    return CODES.get(status, "internal" if status >= 500 else "bad_request")


def error_body(code: str, message: str) -> bytes:
    """Body of an answer that is an error."""
    return ujson.dumps({"type": "error", "code": code, "message": message}, ensure_ascii=False).encode("utf-8")


def routes() -> list[Any]:
    """Routes of the API and of what machines ask."""
    return [
        (r"/healthz", Health),
        (r"/readyz", Ready),
        (r"/metrics", MetricsHandler),
        (r"/api/openapi\.json", OpenApi),
        (r"/api/session", SessionHandler),
        (r"/api/rooms", Rooms),
        (r"/api/rooms/([^/]+)/messages", Messages),
        (r"/api/rooms/([^/]+)/members/([^/]+)", Members),
        (r"/api/users/([^/]+)/sessions", Sessions),
        (r"/api(?:/.*)?", Unknown),
    ]


class Handler(tornado.web.RequestHandler):
    """What all handlers share: JSON, errors, CORS, rates, and who asks."""

    limited = True

    @property
    def services(self) -> Services:
        """The worker."""
        found: Services = self.settings["services"]
        return found

    @property
    def gateway(self) -> Gateway:
        """The gateway of the worker."""
        found: Gateway = self.settings["gateway"]
        return found

    def set_default_headers(self) -> None:
        """See ``tornado.web.RequestHandler``."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.services.settings.debug_headers:
            self.set_header("X-Worker", str(self.services.slot))
        self._allow_origin()

    def _allow_origin(self) -> None:
        origin = self.request.headers.get("Origin")
        self.set_header("Vary", "Origin")
        if origin is not None and self._origin_allowed():
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Credentials", "true")

    def _origin_allowed(self) -> bool:
        return handshake.origin_allowed(
            self.request.headers, secure=self.client.secure, allow_origin=self.services.settings.allow_origin
        )

    @property
    def client(self) -> handshake.Client:
        """Where the request really comes from."""
        return self.gateway.client_of(self.request)

    def prepare(self) -> None:
        """Refuse floods, and pages of other sites that would change something."""
        if self.limited:
            wait = self.settings["request_rates"].take(self.client.address, time.monotonic())
            if wait:
                raise HandshakeError(429, "Too many requests; wait.", {"Retry-After": str(int(wait) + 1)})
        if self.request.method in ("POST", "DELETE") and not self._origin_allowed():
            raise HandshakeError(403, "This origin may not call the API; see --allow-origin.")

    def options(self, *_path: str) -> None:
        """Answer a preflight of the Fetch standard."""
        if self.request.headers.get("Origin") is not None and not self._origin_allowed():
            raise HandshakeError(403, "This origin may not call the API; see --allow-origin.")
        self.set_status(204)
        self.clear_header("Content-Type")
        self.set_header("Access-Control-Allow-Methods", CORS_METHODS)
        self.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type, X-API-Key")
        self.set_header("Access-Control-Max-Age", str(CORS_SECONDS))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every failure is the same JSON object."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        code, message = code_of(status_code), self._reason
        if isinstance(error, HandshakeError):
            message = error.message
            for name, value in error.headers.items():
                self.set_header(name, value)
        elif isinstance(error, ProtocolError):
            code, message = error.code, error.message
        elif isinstance(error, StoreError):
            message = "The store cannot be reached; try again in a moment."
            self.set_header("Retry-After", "2")
        elif status_code >= 500:
            message = "The server failed; the failure is in its log."
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(error_body(code, message))

    def _handle_request_exception(self, e: BaseException) -> None:
        status = _status_of(e)
        if status is None or self._finished:
            super()._handle_request_exception(e)
        else:
            self.send_error(status, exc_info=(type(e), e, e.__traceback__))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is our fault alone."""
        if _status_of(value) is None:
            super().log_exception(typ, value, tb)

    def answer(self, fields: Any, status: int = 200) -> None:
        """Finish with a JSON object."""
        self.set_status(status)
        self.finish(ujson.dumps(fields, ensure_ascii=False, escape_forward_slashes=False).encode("utf-8"))

    def body_fields(self) -> dict[str, Any]:
        """The JSON object in the body.

        Raises:
            HandshakeError: 415 or 400.
        """
        if self.request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise HandshakeError(415, "Send Content-Type: application/json.")
        try:
            found = ujson.loads(self.request.body)
        except ValueError:
            raise HandshakeError(400, "The body must be a JSON object.") from None
        if type(found) is not dict:
            raise HandshakeError(400, "The body must be a JSON object.")
        return found

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A number from the query.

        Raises:
            HandshakeError: 400.
        """
        given = self.get_query_argument(name, None)
        if given is None:
            return default
        if not given.isascii() or not given.isdigit() or len(given) > 16 or not low <= int(given) <= high:
            raise HandshakeError(400, f"`{name}` must be a number from {low} to {high}.")
        return int(given)

    def identity(self) -> Identity | None:
        """Who asks; None for somebody unknown where guests are let in.

        Raises:
            HandshakeError: 401, or 503 while the store was never reached.
        """
        authenticator = self.services.authenticator
        if authenticator is None:
            raise HandshakeError(503, "The store cannot be reached yet; try again.", {"Retry-After": "2"})
        cookie = self.get_cookie(COOKIE)
        token = self.get_query_argument("token", None)
        authorization = self.request.headers.get("Authorization")
        if not (cookie or token or authorization) and self.services.settings.auth == "guest":
            return None
        try:
            return authenticator.authenticate(cookie=cookie, token=token, authorization=authorization)
        except HandshakeError:
            if token or authorization or self.services.settings.auth != "guest":
                raise
            return None

    def require_api_key(self) -> None:
        """Let other servers in by their key.

        Raises:
            HandshakeError: 403 where there is no key on this server, 401 for a wrong one.
        """
        expected = self.services.settings.api_key
        if not expected:
            raise HandshakeError(403, "This server takes no API key; start it with --api-key.")
        scheme, _, bearer = self.request.headers.get("Authorization", "").partition(" ")
        given = self.request.headers.get("X-API-Key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        if not hmac.compare_digest(given.encode("utf-8"), expected.encode("utf-8")):
            raise HandshakeError(401, "Send the server's API key as X-API-Key or Authorization: Bearer.")


def _status_of(error: Any) -> int | None:
    if isinstance(error, HandshakeError):
        return error.status
    if isinstance(error, ProtocolError):
        return 400
    if isinstance(error, StoreError):
        return 503
    return None


class Unknown(Handler):
    """No such route."""

    def prepare(self) -> None:
        """Always 404."""
        raise HandshakeError(404, "There is no such route; see /api/openapi.json.")


class Health(Handler):
    """Whether the process answers at all, and what it knows of the store."""

    limited = False

    def get(self) -> None:
        """Always 200 while the worker's loop runs."""
        services = self.services
        self.answer(
            {
                "status": "ok",
                "store": services.broker.state,
                "draining": services.draining,
                "worker": services.slot,
            }
        )


class Ready(Handler):
    """Whether people should be sent here."""

    limited = False

    def get(self) -> None:
        """200, or 503 while draining or while the store is away."""
        services = self.services
        ready = services.ready()
        if not ready:
            self.set_header("Retry-After", "2")
        store = services.broker.state
        self.answer({"ready": ready, "store": store, "draining": services.draining}, status=200 if ready else 503)


class MetricsHandler(Handler):
    """Prometheus' text format, for loopback and ``--metrics-allow``."""

    limited = False

    def get(self) -> None:
        """All workers together."""
        address = self.client.address
        if not is_loopback(address) and not handshake.in_networks(address, self.settings["metrics_networks"]):
            raise HandshakeError(403, "This address may not read the metrics; see --metrics-allow.")
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(self.services.metrics.render())


class OpenApi(Handler):
    """The description of this API."""

    def get(self) -> None:
        """OpenAPI 3.1."""
        self.finish(files("tornadochat").joinpath("openapi.json").read_bytes())


class SessionHandler(Handler):
    """Guest sessions in a signed cookie, and as a token for clients without cookies."""

    def get(self) -> None:
        """Who I am; renews the cookie. The same 401 and 503 as a handshake, which browsers cannot see."""
        if self.services.draining or self.services.full():
            raise HandshakeError(503, "This worker is full or ending; try again.", {"Retry-After": "5"})
        identity = self.identity()
        if identity is None:
            raise HandshakeError(401, "Sign in first: POST /api/session with a name.")
        if identity.session and self.get_cookie(COOKIE):
            self._set_cookie(identity.session)
        self._answer(identity, 200)

    def post(self) -> None:
        """Become a guest under a name, or take another name."""
        name = self.body_fields().get("name")
        identity = self.identity()
        authenticator = self.services.authenticator
        assert authenticator is not None
        if identity is not None and identity.session:
            identity = authenticator.rename(identity, name)
        else:
            identity = authenticator.new_guest(name)
        self._set_cookie(identity.session)
        self._answer(identity, 201)

    def delete(self) -> None:
        """Forget the cookie."""
        self.clear_cookie(COOKIE, path="/")
        self.set_status(204)
        self.finish()

    def _set_cookie(self, token: str) -> None:
        self.set_cookie(
            COOKIE,
            token,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=self.client.secure,
            max_age=self.services.settings.session_seconds,
        )

    def _answer(self, identity: Identity, status: int) -> None:
        user = {"id": identity.user.id, "name": identity.user.name}
        self.answer({"user": user, "token": identity.session, "expires": int(identity.expires)}, status)


class Rooms(Handler):
    """Rooms that are active now."""

    async def get(self) -> None:
        """Rooms with people, the fullest first."""
        identity = self.identity()
        limit = self.number("limit", MAX_ROOMS, 1, MAX_ROOMS)
        rooms = await self.services.presence.active_rooms(limit)
        if identity is not None and identity.rooms is not None:
            rooms = [room for room in rooms if room[0] in identity.rooms]
        self.answer({"rooms": [{"room": name, "people": people} for name, people in rooms]})


class Messages(Handler):
    """Messages of a room."""

    async def get(self, name: str) -> None:
        """A page of the log, oldest first, that ends before ``before`` (default: the newest)."""
        room = normalise_room(name)
        identity = self.identity()
        if identity is not None and identity.rooms is not None and room not in identity.rooms:
            raise HandshakeError(403, "You may not read this room.")
        limit = self.number("limit", DEFAULT_MESSAGES, 1, MAX_MESSAGES)
        before = self.number("before", 0, 1, protocol.MAX_SEQ)
        start = max(1, before - limit) if before else 0
        count = min(limit, before - start) if before else limit
        page = await self.services.broker.read_log(room, start, count)
        events = []
        for seq, body in enumerate(page.bodies, page.first_seq):
            if not before or seq < before:
                events.append(b'{"seq":%d,' % seq + body[1:])
        first = page.first_seq if events else 0
        head = ujson.dumps(
            {"room": room, "epoch": page.epoch, "seq": page.head_seq, "more": first > 1},
            ensure_ascii=False,
            escape_forward_slashes=False,
        )
        self.finish(head[:-1].encode("utf-8") + b',"messages":[' + b",".join(events) + b"]}")

    async def post(self, name: str) -> None:
        """Say something as a server; the same id is stored once."""
        self.require_api_key()
        room = normalise_room(name)
        fields = self.body_fields()
        settings = self.services.settings
        message_id = fields.get("id", secrets.token_hex(12))
        if type(message_id) is not str or protocol.ID.fullmatch(message_id) is None:
            raise ProtocolError("bad_command", "`id` must be 16 to 64 characters of A-Z, a-z, 0-9, _ and -.")
        text = check_text(fields.get("text"), settings.max_text_chars, settings.max_text_bytes)
        user = _user_of(fields.get("user"))
        body = protocol.message_body(room, message_id, user, text, int(time.time() * 1000))
        outcome = await self._publish(room, user, message_id, body, text)
        if outcome.status == "id_reused":
            raise HandshakeError(409, "This id was used for another text.")
        if outcome.status == "unavailable":
            raise HandshakeError(
                503,
                "It is unknown whether the message was stored; send it again with the same id.",
                {"Retry-After": "2"},
            )
        self.answer(
            {"room": room, "id": message_id, "epoch": outcome.epoch, "seq": outcome.seq},
            201 if outcome.status == "stored" else 200,
        )

    def _publish(self, room: str, user: User, message_id: str, body: bytes, text: str) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def reply(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self.services.broker.publish(room, user.id, message_id, body, text, reply)
        return future


def _user_of(given: Any) -> User:
    """Sender of a message that a server posts; ``{"id", "name"}``, by default the server itself."""
    if given is None:
        return User("s_server", "Server")
    if type(given) is not dict or type(given.get("id")) is not str or not 0 < len(given["id"]) <= 128:
        raise ProtocolError("bad_command", "`user` must have an `id` of 1 to 128 characters and a `name`.")
    return User(given["id"], normalise_name(given.get("name")))


class Members(Handler):
    """Somebody in a room."""

    def delete(self, name: str, user_id: str) -> None:
        """Remove a user from a room, on every worker; it may come back."""
        self.require_api_key()
        order = {"kind": "kick", "room": normalise_room(name), "user": user_id}
        self._tell(order)

    def _tell(self, order: dict[str, Any]) -> None:
        if not self.services.broker.hears_control:
            raise HandshakeError(503, "The store cannot be reached; try again.", {"Retry-After": "2"})
        self.services.broker.publish_control(ujson.dumps(order, ensure_ascii=False).encode("utf-8"))
        self.set_status(204)
        self.clear_header("Content-Type")
        self.finish()


class Sessions(Members):
    """The sessions of a user."""

    async def delete(self, user_id: str) -> None:  # type: ignore[override]
        """End all that were given out so far, and close their connections on every worker."""
        self.require_api_key()
        now = time.time()
        await store_ended(self.services.broker.redis, self.services.settings, user_id, now)
        self._tell({"kind": "end", "user": user_id, "at": now})
