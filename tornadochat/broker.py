"""The room log: everything that a worker asks of Redis or Valkey for its rooms.

``publisher`` stores and publishes, ``subscriber`` listens, this module reads the log and ties both to
one address. Which connections serve a room is decided by its slot (``store_links``); a single server is a
cluster of one slot.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tornadochat.errors import Unavailable
from tornadochat.publisher import READ, Outcome, Publisher, RoomKeys
from tornadochat.slot_map import SlotMap
from tornadochat.store_address import make_client, parse_address
from tornadochat.store_links import ClusterLinks, Links
from tornadochat.subscriber import Subscriber

if TYPE_CHECKING:
    from tornadochat.settings import Settings

__all__ = ("Broker", "Head", "LogPage", "Outcome")

log = logging.getLogger("tornadochat")

# Keys of this many rooms are remembered; making them anew costs 3 us.
REMEMBERED_KEYS = 65_536
# Connections of redis-py for what is not hot (sessions, presence, the HTTP API).
SLOW_CONNECTIONS = 16


Concerns = Callable[[str], bool]


class Head(NamedTuple):
    """Where a room's log is.

    Attributes:
        epoch: Current epoch.
        seq: Seq of the newest event; 0 when unwritten.
        ends: ``(epoch, last seq)`` of the epochs that ended, newest first, at most 8.
    """

    epoch: str
    seq: int
    ends: Sequence[tuple[str, int]]


class LogPage(NamedTuple):
    """One atomic read of a room's log; see ``room.Page``."""

    epoch: str
    head_seq: int
    ends: Sequence[tuple[str, int]]
    first_seq: int
    bodies: list[bytes]


class Broker:
    """See the module. Made within a running loop.

    Args:
        settings: Bounds, times and the namespace.
        url: Address of the store.
        on_published: Takes ``(channel, payload)`` of everything that one read brought for rooms.
        on_status: Called with False when the store is gone, with True when it is there and every
            subscription holds: what was published in between is in the rooms' logs alone. The second
            argument tells of a room's name whether it is concerned: a cluster may be gone in part.
        on_control: Takes one payload of the control channel.
        on_moved: Called with the channels of rooms that have moved to another server of a cluster. What was
            published meanwhile is in their logs alone.

    Attributes:
        available: Whether any room can be served.
        tls: Whether the store is reached over TLS.
    """

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        on_published: Callable[[list[tuple[bytes, bytes]]], None],
        on_status: Callable[[bool, Concerns], None],
        on_control: Callable[[bytes], None],
        on_moved: Callable[[list[bytes]], None],
    ) -> None:
        self.available = False
        self._closing = False
        self.settings = settings
        self.redis = make_client(url, SLOW_CONNECTIONS, settings.publish_seconds)
        address = parse_address(url)
        prefix = settings.redis_prefix
        self.tls = address.tls is not None
        self._on_status = on_status
        self._control = f"{prefix}:control".encode()
        self._prefix = prefix
        self.keys_of = functools.lru_cache(REMEMBERED_KEYS)(self._keys_of)
        connect: Callable[..., Links] = functools.partial(Links, address)
        if address.cluster:
            connect = functools.partial(ClusterLinks, SlotMap(address), address)
        self._publisher = Publisher(settings, connect, self.keys_of, self._changed, address.cluster)
        self._subscriber = Subscriber(
            connect,
            self._control,
            on_published=on_published,
            on_control=on_control,
            on_change=self._changed,
            on_moved=on_moved,
            sharded=address.cluster,
        )
        self._served = [False] * len(self._publisher.links.routes)  # by slot

    async def start(self) -> None:
        """Connect in the background; ``available`` and ``on_status`` tell when the store is there."""
        self._publisher.start()
        self._subscriber.start()

    async def close(self) -> None:
        """Finish what is in flight, at most ``publish_seconds``, then end for good."""
        self._closing = True
        await self._publisher.close()
        await self._subscriber.close()
        await self.redis.aclose()

    def _changed(self) -> None:
        before = self._served
        routes, heard = self._publisher.links.routes, self._subscriber.serving()
        served = self._served = [link is not None and hears for link, hears in zip(routes, heard, strict=True)]
        self.available = True in served
        if served == before or self._closing:  # our own doing is no news
            return
        changes = [
            (slot, now) for slot, (was, now) in enumerate(zip(before, served, strict=True)) if was is not now
        ]
        for up in (False, True):
            slots = frozenset(slot for slot, now in changes if now is up)
            if slots:
                self._tell_status(up, slots)

    def _tell_status(self, up: bool, slots: frozenset[int]) -> None:
        whole = len(slots) == len(self._served)
        log.log(
            logging.INFO if up else logging.WARNING,
            "%s is %s",
            "the store" if whole else f"the part of the store with {len(slots)} of {len(self._served)} slots",
            "there" if up else "away; members stay, messages wait",
        )
        # Large rooms' counts travel on the control channel: all rooms may have missed something of it.
        control = self._publisher.links.slot_of(self._control) in slots
        self._on_status(up, lambda room: control or self._slot_of(room) in slots)

    def _slot_of(self, room: str) -> int:
        return self._publisher.links.slot_of(self.keys_of(room).meta)

    def serves(self, room: str) -> bool:
        """Whether a room can be read and written just now, as far as is known."""
        return self._served[self._slot_of(room)]

    @property
    def state(self) -> str:
        """``up``, ``down``, or ``partly`` where some masters of a cluster are away."""
        return "up" if False not in self._served else "partly" if self.available else "down"

    @property
    def hears_control(self) -> bool:
        """Whether ``publish_control`` reaches anybody just now."""
        return self._served[self._publisher.links.slot_of(self._control)]

    # Names -----------------------------------------------------------------------------------------

    def _keys_of(self, room: str) -> RoomKeys:
        # A hash for a tag: a room named "}x" must not scatter its keys over a cluster.
        tag = hashlib.blake2b(room.encode("utf-8"), digest_size=16).hexdigest()
        base = f"{self._prefix}:{{{tag}}}"
        return RoomKeys(*(f"{base}:{name}".encode() for name in ("meta", "log", "ids0", "ids1", "ch")))

    def channel_of(self, room: str) -> bytes:
        """Pub/sub channel of a room."""
        return self.keys_of(room).channel

    # Messages --------------------------------------------------------------------------------------

    def unanswered(self) -> bool:
        """Whether the store still has to answer something that the publisher sent."""
        return self._publisher.unanswered()

    @property
    def on_publish_seconds(self) -> Callable[[float], None] | None:
        """Called with the round trip of each published batch, in seconds."""
        return self._publisher.on_publish_seconds

    @on_publish_seconds.setter
    def on_publish_seconds(self, handler: Callable[[float], None] | None) -> None:
        self._publisher.on_publish_seconds = handler

    def publish(
        self,
        room: str,
        user_id: str,
        message_id: str,
        body: bytes,
        text: str,
        reply: Callable[[Outcome], None],
    ) -> None:
        """Number, store and publish one message; returns at once.

        Args:
            room: Its room.
            user_id: Its sender; (user, room, id) makes a repeat.
            message_id: Its id.
            body: The event without its seq, a JSON object with at least one member.
            text: What must be the same in a repeat.
            reply: Called once, within ``publish_seconds`` or a little more.

        Raises:
            Unavailable: ``publish_queue`` messages wait already; ``reply`` is not called.
        """
        self._publisher.publish(room, user_id, message_id, body, text, reply)

    def find_repeat(
        self, room: str, user_id: str, message_id: str, text: str, reply: Callable[[Outcome], None]
    ) -> None:
        """Tell whether a message was stored by an earlier try; stores nothing.

        Raises:
            Unavailable: The store is away or has too much to do; ``reply`` is not called.
        """
        self._publisher.find_repeat(room, user_id, message_id, text, reply)

    def publish_ephemeral(self, room: str, payload: bytes) -> None:
        """Publish to a room what is not stored (``X`` or ``P`` before it); may be dropped."""
        self._publisher.publish_raw(self.channel_of(room), payload)

    def publish_control(self, payload: bytes) -> None:
        """Tell every worker something; may be dropped when the store is away."""
        self._publisher.publish_raw(self._control, payload)

    # Rooms -----------------------------------------------------------------------------------------

    async def subscribe(self, room: str) -> None:
        """Wait until this worker gets what is published in a room.

        Raises:
            Unavailable: Not confirmed within ``publish_seconds``.
        """
        await self._subscriber.subscribe(self.channel_of(room), self.settings.publish_seconds)

    def unsubscribe(self, room: str, grace: float | None = None) -> None:
        """Stop listening to a room after ``grace`` seconds (default: the setting), unless it is
        subscribed again before."""
        seconds = self.settings.subscription_grace_seconds if grace is None else grace
        self._subscriber.unsubscribe(self.channel_of(room), seconds)

    async def read_log(self, room: str, start_seq: int, limit: int) -> LogPage:
        """Read events and the head of a room's log in one step; an unwritten room gets its epoch.

        Args:
            room: Its name.
            start_seq: First event wanted; 0 or less for the newest ``limit``.
            limit: Events at most; 0 for none.

        Raises:
            Unavailable: No answer within ``publish_seconds``.
        """
        keys = self.keys_of(room)

        def command(run_id: str) -> tuple[Any, ...]:
            return (
                *("EVALSHA", READ.digest, 2, keys.meta, keys.log),
                *(run_id, next(self._publisher.epochs), self.settings.history_ttl_seconds, start_seq, limit),
            )

        return _page(await self._publisher.ask(self._publisher.links.slot_of(keys.meta), command))

    async def read_head(self, room: str) -> Head:
        """Where a room's log is; an unwritten room gets its epoch.

        Raises:
            Unavailable: No answer within ``publish_seconds``.
        """
        page = await self.read_log(room, 0, 0)
        return Head(page.epoch, page.head_seq, page.ends)

    async def read_hash(self, room: str, key: str) -> dict[bytes, bytes]:
        """A hash that belongs to a room, read on the connection of its messages; empty where there is none.

        Args:
            room: Its name.
            key: In the room's hash slot.

        Raises:
            Unavailable: No answer within ``publish_seconds``.
        """
        found = await self._publisher.ask(self._slot_of(room), lambda _run_id: ("HGETALL", key))
        return dict(zip(found[::2], found[1::2], strict=True))

    async def heads(self, rooms: Sequence[str]) -> list[Head | None]:
        """Heads of many rooms in one round trip; renews the life of their logs.

        Returns:
            In the order of the rooms; None for what the store did not tell within ``publish_seconds``.
        """
        found = await asyncio.gather(*map(self.read_head, rooms), return_exceptions=True)
        for problem in found:
            if isinstance(problem, BaseException) and not isinstance(problem, Unavailable):
                raise problem
        return [head if isinstance(head, Head) else None for head in found]


def _page(reply: Any) -> LogPage:
    try:
        epoch, head_seq, ends, first_seq = reply[:4]
        return LogPage(epoch.decode("ascii"), head_seq, _ends(ends), first_seq, reply[4:])
    except (TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"the store answered with something else than a page: {error}") from None


def _ends(text: bytes) -> list[tuple[str, int]]:
    pairs = (entry.split(":") for entry in text.decode("ascii").split())
    return [(epoch, int(seq)) for epoch, seq in pairs]
