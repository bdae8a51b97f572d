"""A chat client for programs: bots, bridges, tests. It resumes, and sends each message once.

    async with Client("ws://127.0.0.1:8000/ws", name="Ada") as client:
        room = await client.join("lobby")
        await room.send("Hello")
        async for event in room:
            if isinstance(event, Message):
                print(event.user.name, event.text)

Runs on asyncio, on Tornado's WebSocket client. A lost connection is made again, with jittered exponential
back-off or when the server has said to come back, and every room continues where it was. Nobody's words
arrive twice; what cannot be had any more is told by a ``Hole``. All on one event loop: not thread-safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import ujson
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httputil import url_concat
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from tornadochat.client_room import Hole, Message, Presence, Room, RoomEvent, Typing
from tornadochat.errors import ClientClosed, ClientError, CommandRefused, ConnectRefused, Unconfirmed
from tornadochat.protocol import DEFAULT_HISTORY, SUBPROTOCOL, User
from tornadochat.resume import Position, backoff, encode
from tornadochat.text_rules import normalise_room

__all__ = [
    "Client",
    "ClientClosed",
    "ClientError",
    "CommandRefused",
    "ConnectRefused",
    "Hole",
    "Message",
    "Position",
    "Presence",
    "Room",
    "RoomEvent",
    "Typing",
    "Unconfirmed",
    "User",
]

log = logging.getLogger("tornadochat")

# A client that has heard nothing for so long asks whether the server is there, and leaves if no answer
# comes (docs/protocol.md).
QUIET_SECONDS = 25.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 2.5
# One try to connect, with TLS and the HTTP upgrade.
CONNECT_SECONDS = 10.0
# The closing handshake; a server that does not answer it is left.
CLOSE_SECONDS = 2.0
# Commands that the socket has not taken yet; with more the server has stopped reading, and is left.
MAX_UNWRITTEN = 4096
# Close codes after which coming back is of no use before something is mended (docs/protocol.md).
FINAL_CODES = frozenset({1002, 1003, 1007, 1008, 1009})
# Answers to the handshake after which coming back makes sense; 599 is Tornado's for none at all.
RETRY_STATUS = frozenset({429, 500, 502, 503, 504, 599})
# The largest pause that a server may ask for.
MAX_PAUSE_SECONDS = 300.0


class Client:
    """A connection that is made again whenever it is lost, and the rooms on it.

    Args:
        url: Of the WebSocket, such as ``wss://chat.example.org/ws``.
        name: Of a new guest; without a token.
        token: The ``session`` of an earlier client, the token of ``POST /api/session``, or a JWT.
        on_event: Called with each event of each room, before it is iterated; must not block.
        headers: Further headers of the handshake, such as Origin.
        ssl_options: For ``wss``; by default the system's certificates are asked.

    Attributes:
        user: Who the client is, from the first ``welcome`` on.
        session: Token that brings the same guest back.
        limits: As ``welcome`` told them.
        store_up: Whether the server reaches its store, as last told.
        reconnects: Connections that were made again.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        token: str = "",
        on_event: Callable[[RoomEvent], None] | None = None,
        headers: dict[str, str] | None = None,
        ssl_options: ssl.SSLContext | None = None,
    ) -> None:
        if bool(name) == bool(token):
            raise ValueError("Give either a name (for a new guest) or a token.")
        self.user: User | None = None
        self.session = token
        self.limits: dict[str, int] = {}
        self.store_up = True
        self.reconnects = 0
        self._url = url
        self._name = name
        self._on_event = on_event
        self._headers = headers or {}
        self._ssl_options = ssl_options
        self._rooms: dict[str, Room] = {}
        self._connection: WebSocketClientConnection | None = None
        self._unwritten: set[asyncio.Future[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._welcomed: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()
        self._attempt = 0
        self._pause: float | None = None
        self._heard = 0.0
        self._asked = False
        self._error: Exception | None = None

    # For programs ----------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._connection is not None

    async def connect(self) -> None:
        """Connect, however often it takes; returns with the first ``welcome``.

        Raises:
            ConnectRefused: The server does not let this client in.
        """
        if self._running is None:
            self._welcomed = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run())
        assert self._welcomed is not None
        await asyncio.shield(self._welcomed)

    async def join(
        self, name: str, *, after: Position | None = None, history: int = DEFAULT_HISTORY, listen: bool = True
    ) -> Room:
        """Come into a room; returns once the server has let the client in.

        Args:
            after: ``room.track.position`` of an earlier run: what came since then follows.
            history: Newest messages wanted without ``after``, or where it cannot be continued.
            listen: Whether the room is going to be iterated; ``on_event`` is called either way.

        Raises:
            CommandRefused: The server does not let the client in.
            ProtocolError: This is no name for a room.
            ClientClosed: The client was closed meanwhile.
        """
        name = normalise_room(name)
        if self._error is not None:
            raise self._error
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(self, name, after, history, listen)
            room.rejoin()
        await asyncio.shield(room.entered)
        return room

    async def history(self, name: str, before: int = 0, limit: int = 50) -> tuple[list[Message], bool]:
        """Older messages of a room from the log, oldest first, and whether there are more before them.

        Args:
            before: Seq that they come before; 0 for the newest.
            limit: 1 to 200.

        Raises:
            CommandRefused: The server does not answer with them.
        """
        parts = urlsplit(self._url)
        path = f"{parts.path.removesuffix('/ws')}/api/rooms/{quote(name, safe='')}/messages"
        scheme = {"ws": "http", "wss": "https"}[parts.scheme]
        fields = {"limit": str(limit), **({"before": str(before)} if before else {})}
        url = url_concat(urlunsplit((scheme, parts.netloc, path, "", "")), fields)
        try:
            answer = await AsyncHTTPClient().fetch(self._request(url))
        except HTTPClientError as error:
            raise CommandRefused(
                "unavailable" if error.code in RETRY_STATUS else "forbidden", str(error)
            ) from error
        page = ujson.loads(answer.body)
        found = [
            Message(name, page["epoch"], each["seq"], each["id"], User(**each["user"]), each["text"], each["ts"])
            for each in page["messages"]
        ]
        return found, bool(page["more"])

    def retry_now(self) -> None:
        """Try at once instead of waiting for the back-off, as when the network is known to be back."""
        self._attempt = 0
        self._sooner.set()

    async def close(self) -> None:
        """End the connection; whoever waits for something gets ``ClientClosed``."""
        self._end(ClientClosed("The client was closed."))
        self._leave(1000)
        if self._running is not None:
            await asyncio.wait([self._running], timeout=CLOSE_SECONDS)
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    # For rooms -------------------------------------------------------------------------------

    def command(self, **fields: Any) -> bool:
        """Send a command; returns whether there was a connection to send it on."""
        if self._connection is None:
            return False
        try:
            written = asyncio.ensure_future(self._connection.write_message(encode(fields)))
        except WebSocketClosedError:
            return False
        self._unwritten.add(written)
        written.add_done_callback(self._on_written)
        if len(self._unwritten) > MAX_UNWRITTEN:
            self._leave(1000)
        return True

    def _on_written(self, written: asyncio.Future[None]) -> None:
        self._unwritten.discard(written)
        if not written.cancelled():
            written.exception()  # a lost connection is noticed by the reader

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after some time, unless the client is closed."""

        def call() -> None:
            self._timers.discard(timer)
            callback()

        timer = asyncio.get_running_loop().call_later(min(seconds, MAX_PAUSE_SECONDS), call)
        self._timers.add(timer)

    def tell(self, event: RoomEvent) -> None:
        """Hand an event to the program's callback."""
        if self._on_event is not None:
            self._on_event(event)

    def drop(self, room: Room, error: Exception) -> None:
        """A room is over."""
        if self._rooms.get(room.name) is room:
            del self._rooms[room.name]
        room.fail(error)

    # The connection --------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while self._error is None:
                self._pause = None
                await self._connect_once()
                if self._error is None:
                    await self._wait()
        except Exception as error:
            log.exception("the client has failed")
            self._end(error)

    async def _wait(self) -> None:
        """The pause before the next try: what the server asked for, or the back-off."""
        pause = backoff(self._attempt) if self._pause is None else min(self._pause, MAX_PAUSE_SECONDS)
        self._attempt += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._sooner.wait()
        self._sooner.clear()

    async def _connect_once(self) -> None:
        url = self._url if self.session else url_concat(self._url, {"name": self._name})
        request = self._request(url)
        try:
            connection = await websocket_connect(request, subprotocols=[SUBPROTOCOL], max_message_size=1 << 20)
        except HTTPClientError as error:
            self._on_refused(error)
        except ssl.SSLCertVerificationError as error:
            self._end(ConnectRefused(0, f"The server's certificate is not trusted: {error}"))
        except (OSError, WebSocketError) as error:
            log.debug("no connection to %s: %s", self._url, error)
        else:
            await self._serve(connection)

    def _request(self, url: str) -> HTTPRequest:
        headers = dict(self._headers)
        if self.session:
            headers["Authorization"] = f"Bearer {self.session}"
        return HTTPRequest(
            url,
            headers=headers,
            ssl_options=self._ssl_options,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=20,
        )

    def _on_refused(self, error: HTTPClientError) -> None:
        if error.code not in RETRY_STATUS:
            self._end(ConnectRefused(error.code, _words_of(error)))
        elif error.response is not None:
            wanted = error.response.headers.get("Retry-After", "")
            self._pause = float(wanted) if wanted.isdigit() else None

    async def _serve(self, connection: WebSocketClientConnection) -> None:
        """Read one connection until it ends."""
        self._connection = connection
        self._heard, self._asked = time.monotonic(), False
        looking = asyncio.create_task(self._look())
        try:
            while (text := await connection.read_message()) is not None:
                self._heard, self._asked = time.monotonic(), False
                if self._connection is connection:
                    self._handle(ujson.loads(text))
        finally:
            looking.cancel()
            self._leave(1000)
            for room in self._rooms.values():
                room.disconnected()
        if connection.close_code in FINAL_CODES and self._error is None:
            self._end(ConnectRefused(connection.close_code, connection.close_reason or "The server closed."))

    def _leave(self, code: int) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(code)

    async def _look(self) -> None:
        """Notice a server that has vanished without a word."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            quiet = time.monotonic() - self._heard
            if quiet > QUIET_SECONDS + ANSWER_SECONDS:
                self._leave(1000)
            elif quiet > QUIET_SECONDS and not self._asked:
                self._asked = self.command(type="ping")

    def _handle(self, event: dict[str, Any]) -> None:
        room = self._rooms.get(event.get("room", ""))
        if room is not None:
            room.handle(event)
        elif event["type"] == "welcome":
            self._on_welcome(event)
        elif event["type"] == "status":
            self.store_up = event["broker"] == "up"
        elif event["type"] == "bye":
            self._pause = event["retry_after_ms"] / 1000
            if event["reason"] == "session_ended":
                self._end(ConnectRefused(1008, "The session has ended; sign in again."))

    def _on_welcome(self, event: dict[str, Any]) -> None:
        self.user = User(event["user"]["id"], event["user"]["name"])
        self.session = event["session"] or self.session
        self.limits = event["limits"]
        self.store_up = True
        self._attempt = 0
        assert self._welcomed is not None
        if self._welcomed.done():
            self.reconnects += 1
        else:
            self._welcomed.set_result(None)
        for room in self._rooms.values():
            room.rejoin()

    def _end(self, error: Exception) -> None:
        """Nothing comes any more; everybody who waits is told why."""
        if self._error is not None:
            return
        self._error = error
        self._sooner.set()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for room in tuple(self._rooms.values()):
            self.drop(room, error)
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(error)
            self._welcomed.exception()  # nobody may be waiting for it


def _words_of(error: HTTPClientError) -> str:
    """What the server said about a handshake that it refused."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        return str(ujson.loads(error.response.body)["message"])  # type: ignore[union-attr]
    return str(error)
