"""The connections of one kind (those that write, or those that listen) to all servers of the store.

``publisher`` and ``subscriber`` ask here for the connection of a room: there is one to a single server, and one
to each master of a cluster. ``Links.routes`` has it by the room's slot; with a single server there is one slot.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from redis.crc import key_slot

from tornadochat.redis_link import Link, stay_connected
from tornadochat.slot_map import SLOTS

if TYPE_CHECKING:
    from tornadochat.redis_link import Push
    from tornadochat.slot_map import Place, SlotMap
    from tornadochat.store_address import Address

# Errors of a server that has not got the slot (any more), or cannot serve it just now: what they answer was
# not done, and is tried again for as long as its sender waits.
PASSING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN", "NOSCRIPT")
# Servers that a slot is on its way to, and that have none yet, which we keep a connection to.
MAX_COMING = 8


class Links:
    """Connections to a single server: one.

    Args:
        address: Of the store.
        begin: Makes a new connection ready; a ``StoreError`` counts as a connection that failed.
        on_change: Called when ``routes`` has changed.
        on_push: See ``redis_link.Link``.

    Attributes:
        routes: Connection by slot; None while there is none. The same list always.
        ready: All connections that are ready.
    """

    def __init__(
        self,
        address: Address,
        *,
        begin: Callable[[Link], Awaitable[None]],
        on_change: Callable[[], None],
        on_push: Push | None = None,
    ) -> None:
        self.routes: list[Link | None] = [None]
        self.ready: tuple[Link, ...] = ()
        self._address = address
        self._begin = begin
        self._on_change = on_change
        self._on_push = on_push
        self._task: asyncio.Task[None] | None = None

    def slot_of(self, key: bytes) -> int:
        """Slot of a key or channel."""
        return 0

    def start(self) -> None:
        """Connect, and connect again whenever a connection is lost."""
        self._task = asyncio.ensure_future(self._connected(self._address, self._set))

    async def close(self) -> None:
        """End all connections for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def learn(self, link: Link, error: str) -> Link | None:
        """Learn where a slot is from the error that a server answered with.

        Returns:
            The connection on which the command has to be sent once more, behind ASKING; mostly None.
        """
        if error.startswith("READONLY"):
            link.abort()  # it became a replica; the address leads to another primary by now
        return None

    def doubt(self) -> None:
        """Something is not where it was: look for it soon."""

    def _connected(self, address: Address, keep: Callable[[Link | None], None]) -> Awaitable[None]:
        """Stay connected to one server."""

        async def begin(link: Link) -> None:
            await self._begin(link)
            keep(link)

        return stay_connected(address, begin=begin, on_lost=functools.partial(keep, None), on_push=self._on_push)

    def _set(self, link: Link | None) -> None:
        self.routes[0] = link
        self.ready = () if link is None else (link,)
        self._on_change()


class Node:
    """One server of a cluster; its connection while that is ready."""

    __slots__ = ("link", "task")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.task: asyncio.Task[None] | None = None


class ClusterLinks(Links):
    """Connections to all masters of a cluster.

    Args:
        slots: Who has which slot.
        address: Of the cluster.
        begin: See ``Links``.
        on_change: See ``Links``.
        on_push: See ``Links``.
    """

    def __init__(
        self,
        slots: SlotMap,
        address: Address,
        *,
        begin: Callable[[Link], Awaitable[None]],
        on_change: Callable[[], None],
        on_push: Push | None = None,
    ) -> None:
        super().__init__(address, begin=begin, on_change=on_change, on_push=on_push)
        self.routes = [None] * SLOTS
        self._slots = slots
        self._nodes: dict[Place, Node] = {}
        self._coming: dict[Place, None] = {}  # oldest first
        slots.listen(self._remapped, self._settled)

    def slot_of(self, key: bytes) -> int:
        """Slot of a key or channel."""
        return key_slot(key)

    def start(self) -> None:
        """Connect to every master that the map names."""
        self._slots.start()

    async def close(self) -> None:
        """End all connections for good."""
        await self._slots.close()
        tasks = [node.task for node in self._nodes.values() if node.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def learn(self, link: Link, error: str) -> Link | None:
        """See ``Links.learn``."""
        kind, _, rest = error.partition(" ")
        if kind not in ("MOVED", "ASK"):
            if kind in ("CLUSTERDOWN", "READONLY", "MASTERDOWN"):
                self._slots.doubt()
            return None
        slot, _, where = rest.partition(" ")
        host, _, port = where.rpartition(":")
        place = (host or link.place[0], int(port))  # without a host it is the one that answered
        if kind == "MOVED":
            self._slots.moved(int(slot), place)
            return None
        node = self._nodes.get(place)
        if node is None:  # a new master, that has no slot yet
            self._coming[place] = None
            if len(self._coming) > MAX_COMING:
                del self._coming[next(iter(self._coming))]
            self._remapped()
        return node.link if node is not None else None

    def doubt(self) -> None:
        """See ``Links.doubt``."""
        self._slots.doubt()

    def _settled(self) -> bool:
        return all(node.link is not None for node in self._nodes.values())

    def _remapped(self) -> None:
        """The map has changed: connect to new masters, let former ones go."""
        masters = {owner for owner in self._slots.owners if owner is not None}
        wanted = masters | set(self._coming)
        for place in [place for place in self._nodes if place not in wanted]:
            node = self._nodes.pop(place)
            if node.task is not None:
                node.task.cancel()
        for place in wanted - set(self._nodes):
            node = self._nodes[place] = Node()
            work = self._connected(self._address.node(place), functools.partial(self._keep, node))
            node.task = asyncio.ensure_future(work)
        for place in masters & set(self._coming):
            del self._coming[place]
        self._route()

    def _keep(self, node: Node, link: Link | None) -> None:
        if node.link is not link:
            node.link = link
            if link is None:
                self._slots.doubt()
            self._route()

    def _route(self) -> None:
        links = {place: node.link for place, node in self._nodes.items()} if self._slots.well else {}
        self.routes[:] = [links.get(owner) if owner is not None else None for owner in self._slots.owners]
        self.ready = tuple(link for link in links.values() if link is not None)
        self._on_change()
