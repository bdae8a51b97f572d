"""The reading side of the broker: connections that only drain, one per worker, in a cluster one to each master.

Sixth step of the walk. All payloads of one read of the socket are handed over in one call, unparsed.
Channels are subscribed in variadic batches, kept for a grace period, and subscribed again after the
connection was made anew or their slot has moved to another master.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tornadochat.errors import Unavailable

if TYPE_CHECKING:
    from tornadochat.redis_link import Link
    from tornadochat.store_links import Links

# Channels of one SUBSCRIBE: tens of thousands in one command would hold the store for everybody.
SUBSCRIBE_BATCH = 512
# What was refused, or ended by a server that has not got the slot any more, is asked for again after this time;
# drawn from half to one and a half of it.
ASK_AGAIN_SECONDS = 0.1
# And again after this, since many channels take their time to be confirmed.
ASK_ONCE_MORE_SECONDS = 1.0


class Subscription:
    """What is known of one channel."""

    __slots__ = ("confirmed", "leaving", "link", "slot", "waiting")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.link: Link | None = None  # that it was asked for on
        self.confirmed = False
        self.waiting: list[asyncio.Future[None]] = []
        self.leaving: asyncio.TimerHandle | None = None


class Subscriber:
    """See the module.

    Args:
        connect: Makes the connections, see ``store_links.Links``; told how to begin one, and whom to tell.
        control: Channel that is always subscribed; its payloads go to ``on_control``.
        on_published: Takes ``(channel, payload)`` of all rooms' payloads of one read.
        on_control: Takes one payload of the control channel.
        on_change: Called when ``serving`` may have changed.
        on_moved: Takes channels that are subscribed again at another master, while the rest went on.
        sharded: Whether the store is a cluster, where a channel belongs to a slot.
    """

    def __init__(
        self,
        connect: Callable[..., Links],
        control: bytes,
        *,
        on_published: Callable[[list[tuple[bytes, bytes]]], None],
        on_control: Callable[[bytes], None],
        on_change: Callable[[], None],
        on_moved: Callable[[list[bytes]], None],
        sharded: bool = False,
    ) -> None:
        self._control = control
        self._on_published, self._on_control = on_published, on_control
        self._on_change, self._on_moved = on_change, on_moved
        shard = b"s" if sharded else b""
        self._message, self._subscribed, self._ended = (
            shard + kind for kind in (b"message", b"subscribe", b"unsubscribe")
        )
        self._loop = asyncio.get_running_loop()
        self.links = connect(begin=self._begin, on_change=self._rerouted, on_push=self._on_push)
        self._routes = self.links.routes
        self._channels: dict[bytes, Subscription] = {control: Subscription(self.links.slot_of(control))}
        self._asked: list[bytes] = []  # to be subscribed with the next batch
        # Channels that a connection was made with and that are not confirmed yet; by connection, once it was seen.
        self._unconfirmed: dict[Link | None, set[bytes]] = {}
        self._moved: set[bytes] = set()  # not confirmed yet by the master that has them now
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Connect, and connect again whenever a connection is lost."""
        self.links.start()

    async def close(self) -> None:
        """End for good."""
        if self._again is not None:
            self._again.cancel()
        await self.links.close()
        for subscription in self._channels.values():
            self._settle(subscription, Unavailable("the worker is ending"))

    def serving(self) -> list[bool]:
        """By slot: whether everything that was subscribed when the connection was made is confirmed."""
        waits = {None, *(link for link, channels in self._unconfirmed.items() if channels)}
        return [link not in waits for link in self._routes]

    async def subscribe(self, channel: bytes, seconds: float) -> None:
        """Wait until a channel is subscribed; a pending ``unsubscribe`` of it is cancelled.

        Raises:
            Unavailable: The store did not confirm within ``seconds``.
        """
        subscription = self._channels.get(channel)
        if subscription is None:
            subscription = self._channels[channel] = Subscription(self.links.slot_of(channel))
            self._ask(channel)
        elif subscription.leaving is not None:
            subscription.leaving.cancel()
            subscription.leaving = None
        if subscription.confirmed:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        subscription.waiting.append(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            raise Unavailable("the store did not confirm the subscription in time") from None

    def unsubscribe(self, channel: bytes, grace: float) -> None:
        """Let a channel go after ``grace`` seconds, unless it is subscribed again before."""
        subscription = self._channels.get(channel)
        if subscription is not None and subscription.leaving is None:
            subscription.leaving = self._loop.call_later(grace, self._leave, channel)

    def _leave(self, channel: bytes) -> None:
        subscription = self._channels.pop(channel, None)
        if subscription is not None:
            self._settle(subscription, Unavailable("the room was left"))
            self._moved.discard(channel)
            self._confirmed_on(subscription.link, channel)
            link = self._routes[subscription.slot]
            if link is not None:
                link.send(self._ended.upper(), channel)

    def _ask(self, channel: bytes) -> None:
        if not self._asked:
            self._loop.call_soon(self._subscribe_asked)
        self._asked.append(channel)

    def _subscribe_asked(self) -> None:
        asked, self._asked = self._asked, []
        self._send_subscribe(asked)

    def _send_subscribe(self, channels: Iterable[bytes]) -> None:
        """Subscribe what is not confirmed, at whoever has its slot; all channels of a command are of one slot."""
        by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
        for channel in channels:
            subscription = self._channels.get(channel)
            if subscription is not None and not subscription.confirmed:
                subscription.link = self._routes[subscription.slot]
                by_slot[subscription.slot].append(channel)
        for slot, group in by_slot.items():
            link = self._routes[slot]
            if link is not None:
                for first in range(0, len(group), SUBSCRIBE_BATCH):
                    link.send(self._subscribed.upper(), *group[first : first + SUBSCRIBE_BATCH])

    # The connections -------------------------------------------------------------------------------

    async def _begin(self, link: Link) -> None:
        """A connection was made; it is subscribed on as soon as it is a route."""

    def _rerouted(self) -> None:
        """There are other connections: subscribe what is not, or not there; all of a new connection's channels
        before it counts."""
        routes, ready = self._routes, self.links.ready
        fresh: dict[Link | None, set[bytes]] = {link: set() for link in ready if link not in self._unconfirmed}
        ask: list[bytes] = []
        for channel, subscription in self._channels.items():
            link = routes[subscription.slot]
            if subscription.link is link:
                continue
            self._unconfirmed.get(subscription.link, set()).discard(channel)
            if link in fresh:
                fresh[link].add(channel)
            elif link is not None:
                self._moved.add(channel)
            subscription.link, subscription.confirmed = link, False
            ask.append(channel)
        self._unconfirmed = {**{link: left for link, left in self._unconfirmed.items() if link in ready}, **fresh}
        self._send_subscribe(ask)
        self._on_change()

    def _on_push(self, link: Link, replies: Iterable[Any]) -> None:
        items: list[tuple[bytes, bytes]] = []
        moved: list[bytes] = []
        for reply in replies:
            kind = reply[0]
            if kind == self._message:
                if reply[1] == self._control:
                    self._on_control(reply[2])
                else:
                    items.append((reply[1], reply[2]))
            elif kind == self._subscribed:
                self._confirm(link, reply[1], moved)
            elif kind == self._ended:
                self._end(link, reply[1])
            elif kind == b"error":
                self.links.learn(link, str(reply[1]))
                self._ask_again_later()
        if items:
            self._on_published(items)
        if moved:
            self._on_moved(moved)

    def _confirm(self, link: Link, channel: bytes, moved: list[bytes]) -> None:
        subscription = self._channels.get(channel)
        if subscription is None or subscription.link is not link:
            return
        subscription.confirmed = True
        self._settle(subscription, None)
        self._confirmed_on(link, channel)
        if channel in self._moved:
            self._moved.discard(channel)
            moved.append(channel)

    def _confirmed_on(self, link: Link | None, channel: bytes) -> None:
        left = self._unconfirmed.get(link)
        if left and channel in left:
            left.discard(channel)
            if not left:
                self._on_change()

    def _end(self, link: Link, channel: bytes) -> None:
        """The server has ended a subscription: it has not got the slot any more. Or we have, a moment ago."""
        subscription = self._channels.get(channel)
        if subscription is not None and subscription.link is link and subscription.confirmed:
            subscription.confirmed = False
            self._moved.add(channel)
            self.links.doubt()
            self._ask_again_later()

    def _ask_again_later(self, seconds: float = ASK_AGAIN_SECONDS) -> None:
        if self._again is None:
            self._again = self._loop.call_later(seconds * random.uniform(0.5, 1.5), self._ask_again)

    def _ask_again(self) -> None:
        """Whatever is still not confirmed is asked for again, where there is somebody to ask."""
        self._again = None
        routes = self._routes
        left = [
            channel
            for channel, subscription in self._channels.items()
            if not subscription.confirmed and routes[subscription.slot] is not None
        ]
        self._send_subscribe(left)
        if left:
            self._ask_again_later(ASK_ONCE_MORE_SECONDS)

    def _settle(self, subscription: Subscription, error: Exception | None) -> None:
        waiting, subscription.waiting = subscription.waiting, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
