"""One pipelined connection to the store: commands out, replies back in their order.

The two hot connections of a worker (``publisher`` and ``subscriber``) are such links: a command costs
one deque entry and no Future, and everything written in one turn of the loop leaves in one
``send()``. RESP is read and written by hiredis. Everything that is not hot goes through redis-py
itself (``Broker.redis``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import hiredis

from tornadochat.errors import StoreError, StoreRefused, Unavailable
from tornadochat.store_address import Address, find_primary
from tornadochat.worker_loop import at_end_of_turn, open_stream

log = logging.getLogger("tornadochat")

Reply = Callable[[Any], None]
Push = Callable[["Link", list[Any]], None]
CONNECT_SECONDS = 5.0
# A dead connection is silent, so it is asked every 2 s and made anew after 5 s without an answer.
PING_SECONDS = 2.0
SILENCE_SECONDS = 5.0
# Pauses between tries to connect: quick at first, since a restarted store is back within a second.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.05, 1.0
MIN_VERSION = (7, 0)


class ServerInfo(NamedTuple):
    """What a server says of itself."""

    run_id: str
    version: str
    policy: str
    primary: bool


def read_info(text: bytes, cluster: bool = False) -> ServerInfo:
    """The reply to INFO, see ``check_info``."""
    lines = text.decode("utf-8", "replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    return check_info(fields, cluster)


def check_info(fields: Mapping[str, Any], cluster: bool = False) -> ServerInfo:
    """What a server says of itself, by the names that INFO has.

    Args:
        fields: By name.
        cluster: Whether the address is of the form for a Redis Cluster.

    Raises:
        StoreRefused: The server must not be used; the message says what to change.
    """
    version = str(fields.get("valkey_version") or fields.get("redis_version", "0"))
    policy = str(fields.get("maxmemory_policy", "noeviction"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        raise StoreRefused(f"the store is version {version}; tornadochat needs Redis 7.0 or Valkey, or newer")
    if policy != "noeviction":
        raise StoreRefused(
            f"the store may evict keys (maxmemory-policy {policy}), which would lose messages; "
            "set maxmemory-policy to noeviction"
        )
    if (str(fields.get("cluster_enabled", int(cluster))) == "1") != cluster:
        raise StoreRefused(
            "this server is not in cluster mode; give its address as redis://host:port"
            if cluster
            else "this server is a node of a Redis Cluster; give the address as redis+cluster://host:port[,host:port...]"
        )
    return ServerInfo(str(fields.get("run_id", "")), version, policy, fields.get("role", "master") == "master")


class Link(asyncio.Protocol):
    """A connection that is made, and after a loss left to its owner to be made anew.

    Args:
        address: Of the store.
        on_lost: Called once when the connection is gone; commands without a reply are dropped.
        on_push: Takes this link and all replies of one read that answer no command: pub/sub messages, and
            ``(b"error", error)`` for what was sent in vain.
    """

    def __init__(self, address: Address, on_lost: Callable[[], None], on_push: Push | None = None) -> None:
        self.address = address
        self.info: ServerInfo | None = None
        self.place = ("", 0)  # where the server was found
        self.connected = False
        self._ended = False
        self._on_lost = on_lost
        self._on_push = on_push
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._replies: deque[Reply] = deque()
        self._out: list[bytes] = []
        self._transport: Any = None
        self._heard = 0.0
        self._loop = asyncio.get_running_loop()
        self._at_end_of_turn = at_end_of_turn(self._loop)

    async def connect(self) -> ServerInfo:
        """Connect, log in, and learn who the server is.

        Raises:
            Unavailable: It cannot be reached, or does not let us in.
            StoreRefused: It must not be used.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._open()
                return await self._greet()
        except (OSError, TimeoutError, hiredis.HiredisError) as error:
            self.abort()
            raise Unavailable(str(error) or type(error).__name__) from None
        except StoreError:
            self.abort()
            raise

    async def _open(self) -> None:
        address = self.address
        # What a turn sends is on its way to the store before fan-outs take their time.
        late = self._on_push is not None
        if address.path:
            self._made(await open_stream(self._loop, self, address.path, late=late))
            return
        self.place = address.host, address.port
        if address.sentinels is not None:
            self.place = await find_primary(address.sentinels)
        self._made(await open_stream(self._loop, self, self.place, address.tls, late))

    def _made(self, transport: Any) -> None:
        if self._ended:  # before this was told that it is there
            raise ConnectionResetError("the connection ended as soon as it was made")
        self._transport = transport
        self.connected = True
        self._heard = self._loop.time()

    async def _greet(self) -> ServerInfo:
        address = self.address
        if address.password:
            credentials = (address.username, address.password) if address.username else (address.password,)
            await self.ask("AUTH", *credentials)
        if address.database:
            await self.ask("SELECT", address.database)
        self.info = read_info(await self.ask("INFO"), address.cluster)
        if not self.info.primary:
            # Its numbers may be behind, and it takes no writes.
            raise Unavailable("this server is a replica; the address must lead to its primary")
        return self.info

    async def ask(self, *command: Any) -> Any:
        """Send one command and wait for its reply.

        Raises:
            Unavailable: The connection was lost, or the server answered with an error.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def settle(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        self.call(settle, *command)
        reply = await future
        if isinstance(reply, Exception):
            raise Unavailable(str(reply)) from None
        return reply

    def call(self, reply: Reply, *command: Any) -> None:
        """Send one command; ``reply`` gets its answer, an exception object where it failed."""
        self._replies.append(reply)
        self.send(*command)

    def call_packed(self, reply: Reply, packed: bytes) -> None:
        """``call`` for the commands that come by the thousand: ``packed`` is one, as RESP has it."""
        self._replies.append(reply)
        self._put(packed)

    def send(self, *command: Any) -> None:
        """Send one command whose reply is pushed, with everything else of this turn of the loop."""
        self._put(hiredis.pack_command(command))

    def _put(self, packed: bytes) -> None:
        if not self._out:
            self._at_end_of_turn(self.flush)
        self._out.append(packed)

    def flush(self) -> None:
        """Write what was sent so far; without it that is done at the end of the turn."""
        out = self._out
        if not out:
            return
        self._out = []
        if self._transport is not None:
            self._transport.write(b"".join(out) if len(out) > 1 else out[0])

    @property
    def waiting(self) -> int:
        """Commands whose reply has not come yet."""
        return len(self._replies)

    def ping(self) -> None:
        """Ask for a sign of life, or end a connection that has been silent for too long; called every
        ``PING_SECONDS``."""
        silent = self._loop.time() - self._heard
        if self.connected and silent > SILENCE_SECONDS:
            log.warning("the store at %s has been silent for %.0f s", self.address.shown, silent)
            self.abort()
        elif self._on_push is not None:
            self.send("PING")
        else:
            self.call(lambda reply: None, "PING")

    async def check_primary(self) -> None:
        """Ask the Sentinels whether this is the primary still; one that was cut off from them does not know
        itself that it is none any more. Without an answer the connection stays."""
        if self.address.sentinels is None:
            return
        try:
            place = await find_primary(self.address.sentinels)
        except Unavailable as error:
            log.debug("%s", error)
            return
        if place != self.place:
            log.warning("the primary of %s has moved to %s:%d", self.address.shown, *place)
            self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the command it answers, and what was pushed on in one call."""
        self._heard = self._loop.time()
        self._reader.feed(data)
        pushed: list[Any] = []
        try:
            while (reply := self._reader.gets()) is not NOTHING:
                if self._on_push is not None and type(reply) is list and reply and reply[0] in PUSHED:
                    pushed.append(reply)
                elif self._replies:
                    self._replies.popleft()(reply)
                elif self._on_push is not None and isinstance(reply, hiredis.ReplyError):
                    pushed.append((b"error", reply))
        except hiredis.ProtocolError:
            log.exception("the store at %s does not speak RESP", self.address.shown)
            self.abort()
        if pushed and self._on_push is not None:
            self._on_push(self, pushed)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everyone who waits for a reply, then the owner."""
        self.connected = False
        self._ended = True
        self._transport = None
        replies, self._replies = self._replies, deque()
        lost = Unavailable(str(error) if error else "the connection to the store was lost")
        for reply in replies:
            reply(lost)
        self._on_lost()


async def stay_connected(
    address: Address,
    *,
    begin: Callable[[Link], Awaitable[None]],
    on_lost: Callable[[], None],
    on_push: Push | None = None,
) -> None:
    """Connect, and connect again whenever the connection is lost; runs until it is cancelled.

    Args:
        address: Of the store.
        begin: Makes a new connection ready; a ``StoreError`` counts as a connection that failed.
        on_lost: Called whenever a connection is gone.
        on_push: See ``Link``.
    """
    pause = FIRST_RETRY_SECONDS
    while True:
        lost = asyncio.Event()

        def gone(lost: asyncio.Event = lost) -> None:
            lost.set()
            on_lost()

        link = Link(address, gone, on_push)
        try:
            await link.connect()
            await begin(link)
            pause = FIRST_RETRY_SECONDS
            await _watch(link, lost)
        except StoreError as error:
            # Said while it is news; later tries only in detail.
            level = logging.WARNING if pause < LAST_RETRY_SECONDS else logging.DEBUG
            log.log(level, "the store at %s cannot be used: %s; trying again", address.shown, error)
            link.abort()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY_SECONDS)
        finally:
            link.abort()


async def _watch(link: Link, lost: asyncio.Event) -> None:
    """Ask a connection for signs of life until it is lost."""
    while not lost.is_set():
        try:
            async with asyncio.timeout(PING_SECONDS):
                await lost.wait()
        except TimeoutError:
            link.ping()
            await link.check_primary()


class _Nothing:
    """Stands for "no whole reply yet"; a store's reply may be None or False."""


NOTHING = _Nothing()
PUSHED = frozenset(
    (b"message", b"subscribe", b"unsubscribe", b"smessage", b"ssubscribe", b"sunsubscribe", b"pong")
)
