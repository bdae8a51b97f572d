"""The reading side of the broker: one connection per worker that only drains.

Sixth step of the walk. All payloads of one read of the socket are handed over in one call, unparsed.
Channels are subscribed in variadic batches, kept for a grace period, and subscribed again after the
connection was made anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tornadochat.errors import Unavailable
from tornadochat.redis_link import Link, stay_connected

if TYPE_CHECKING:
    from tornadochat.store_address import Address

# Channels of one SUBSCRIBE: tens of thousands in one command would hold the store for everybody.
SUBSCRIBE_BATCH = 512


class Subscription:
    """What is known of one channel."""

    __slots__ = ("confirmed", "leaving", "waiting")

    def __init__(self) -> None:
        self.confirmed = False
        self.waiting: list[asyncio.Future[None]] = []
        self.leaving: asyncio.TimerHandle | None = None


class Subscriber:
    """See the module.

    Args:
        address: Of the store.
        control: Channel that is always subscribed; its payloads go to ``on_control``.
        on_published: Takes ``(channel, payload)`` of all rooms' payloads of one read.
        on_control: Takes one payload of the control channel.
        on_change: Called when ``ready`` has changed.
    """

    def __init__(
        self,
        address: Address,
        control: bytes,
        *,
        on_published: Callable[[list[tuple[bytes, bytes]]], None],
        on_control: Callable[[bytes], None],
        on_change: Callable[[], None],
    ) -> None:
        self.ready = False
        self._address = address
        self._control = control
        self._on_published, self._on_control = on_published, on_control
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._channels: dict[bytes, Subscription] = {}
        self._asked: list[bytes] = []  # to be subscribed with the next batch
        self._unconfirmed: set[bytes] = set()  # after a re-made connection
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and connect again whenever the connection is lost."""
        work = stay_connected(self._address, begin=self._begin, on_lost=self._on_lost, on_push=self._on_push)
        self._task = asyncio.ensure_future(work)

    async def close(self) -> None:
        """End for good."""
        if self._task is not None:
            self._task.cancel()
        if self._link is not None:
            self._link.abort()
        for subscription in self._channels.values():
            self._settle(subscription, Unavailable("the worker is ending"))

    async def subscribe(self, channel: bytes, seconds: float) -> None:
        """Wait until a channel is subscribed; a pending ``unsubscribe`` of it is cancelled.

        Raises:
            Unavailable: The store did not confirm within ``seconds``.
        """
        subscription = self._channels.get(channel)
        if subscription is None:
            subscription = self._channels[channel] = Subscription()
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
            self._unconfirmed.discard(channel)
            if self._link is not None and self._link.connected:
                self._link.send(b"UNSUBSCRIBE", channel)

    def _ask(self, channel: bytes) -> None:
        if not self._asked:
            self._loop.call_soon(self._subscribe_asked)
        self._asked.append(channel)

    def _subscribe_asked(self) -> None:
        asked, self._asked = self._asked, []
        if self._link is not None and self._link.connected and self._link.info is not None:
            self._send_subscribe([channel for channel in asked if channel in self._channels])

    def _send_subscribe(self, channels: list[bytes]) -> None:
        assert self._link is not None
        for first in range(0, len(channels), SUBSCRIBE_BATCH):
            self._link.send(b"SUBSCRIBE", *channels[first : first + SUBSCRIBE_BATCH])

    # The connection --------------------------------------------------------------------------------

    async def _begin(self, link: Link) -> None:
        """A connection was made: subscribe everything, in batches, before it counts as ready."""
        self._link = link
        self._asked.clear()
        self._unconfirmed = set(self._channels) | {self._control}
        self._send_subscribe([self._control, *self._channels])

    def _on_lost(self) -> None:
        for subscription in self._channels.values():
            subscription.confirmed = False
        self._set_ready(False)

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_change()

    def _on_push(self, replies: Iterable[Any]) -> None:
        items: list[tuple[bytes, bytes]] = []
        for reply in replies:
            kind = reply[0]
            if kind == b"message":
                if reply[1] == self._control:
                    self._on_control(reply[2])
                else:
                    items.append((reply[1], reply[2]))
            elif kind == b"subscribe":
                self._confirm(reply[1])
        if items:
            self._on_published(items)

    def _confirm(self, channel: bytes) -> None:
        subscription = self._channels.get(channel)
        if subscription is not None:
            subscription.confirmed = True
            self._settle(subscription, None)
        if self._unconfirmed:
            self._unconfirmed.discard(channel)
            if not self._unconfirmed:
                self._set_ready(True)

    def _settle(self, subscription: Subscription, error: Exception | None) -> None:
        waiting, subscription.waiting = subscription.waiting, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
