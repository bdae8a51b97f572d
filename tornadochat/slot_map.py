"""Which master of a Redis Cluster has which slot.

A cluster cuts its keys into 16,384 slots and moves them between its servers: when a master is replaced by its
replica, or by hand. Servers say so (MOVED) to whoever comes to the wrong one; this module remembers what they
say, and asks for the whole map again when there is reason to doubt it, and now and then. A server that is cut
off from the others does not know that its map is old: the answer that counts is that of a server which finds
the cluster well and has seen the newest of its epochs.

Knows no connections but its own short ones; ``store_links`` keeps the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from tornadochat.errors import Unavailable
from tornadochat.store_address import make_node

if TYPE_CHECKING:
    from tornadochat.store_address import Address

log = logging.getLogger("tornadochat")

Place = tuple[str, int]  # host and port of a server
SLOTS: int = REDIS_CLUSTER_HASH_SLOTS
# A server that does not answer must not keep a worker from asking the next one for long.
ASK_SECONDS = 1.0
# Between two looks at the map: soon while it is in doubt, later the longer that lasts, rarely when all is
# well. Drawn from half to one and a half of it, so that the workers of many machines do not ask together.
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS, CALM_SECONDS = 0.1, 1.0, 10.0
# Changes are told at most so often: hundreds of slots may move in a second, and each change is looked at in full.
TELL_SECONDS = 0.1


class View(NamedTuple):
    """The cluster as one server sees it.

    Attributes:
        well: Whether it serves at all (``cluster_state:ok``).
        epoch: Counts what was decided in the cluster; the higher, the newer the view.
        owners: Master of each slot.
        places: All servers.
    """

    well: bool
    epoch: int
    owners: list[Place | None]
    places: set[Place]


class SlotMap:
    """See the module. Made within a running loop.

    Args:
        address: Of the cluster.

    Attributes:
        owners: Master of each slot; None where none is known.
        well: Whether the cluster serves at all, as far as is known.
    """

    def __init__(self, address: Address) -> None:
        self.owners: list[Place | None] = [None] * SLOTS
        self.well = False
        self._address = address
        self._places: set[Place] = set(address.nodes)
        self._epoch = 0
        self._doubted = asyncio.Event()
        self._listeners: list[tuple[Callable[[], None], Callable[[], bool]]] = []
        self._telling: asyncio.TimerHandle | None = None
        self._closed = False
        self._told = 0.0
        self._task: asyncio.Task[None] | None = None

    def listen(self, on_change: Callable[[], None], settled: Callable[[], bool]) -> None:
        """Have somebody told of changes; looks are frequent until all listeners are ``settled``."""
        self._listeners.append((on_change, settled))

    def start(self) -> None:
        """Ask for the map, and keep it true."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """Ask no more."""
        self._closed = True  # a client that is just being closed may swallow the cancellation
        self._doubted.set()
        if self._telling is not None:
            self._telling.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def doubt(self) -> None:
        """Something is not as the map says: look at it soon."""
        self._doubted.set()

    def moved(self, slot: int, place: Place) -> None:
        """A server says who has a slot now."""
        self.doubt()
        if self.owners[slot] != place:
            self.owners[slot] = place
            if self._telling is None:
                loop = asyncio.get_running_loop()
                self._telling = loop.call_at(max(loop.time(), self._told + TELL_SECONDS), self._tell)

    def _tell(self) -> None:
        self._told = asyncio.get_running_loop().time()
        self._telling = None
        for on_change, _settled in self._listeners:
            on_change()

    async def _keep(self) -> None:
        pause = FIRST_LOOK_SECONDS
        while not self._closed:
            self._doubted.clear()
            try:
                view = await self._look()
                if self._closed:
                    return
                self._take(view)
            except Unavailable as error:
                log.debug("%s", error)
            except Exception:
                log.exception("the map of the cluster's slots could not be used; it is asked for again")
            if self.well and all(settled() for _on_change, settled in self._listeners):
                pause = FIRST_LOOK_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_about(CALM_SECONDS)):
                        await self._doubted.wait()
            await asyncio.sleep(_about(pause))
            pause = min(pause * 1.5, LAST_LOOK_SECONDS)

    def _take(self, view: View) -> None:
        self._epoch = view.epoch
        self._places = view.places | set(self._address.nodes)
        if (self.well, self.owners) != (view.well, view.owners):
            self.well = view.well
            self.owners[:] = view.owners
            if self._telling is not None:
                self._telling.cancel()
            self._tell()

    async def _look(self) -> View:
        """The newest view of a server that finds the cluster well, else the newest of all.

        Raises:
            Unavailable: No server answers.
        """
        best: View | None = None
        problem: Exception = OSError("none is known")
        for place in random.sample(sorted(self._places), len(self._places)):
            try:
                view = await self._ask(place)
            except (redis.RedisError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                problem = error
                continue
            if view.well and view.epoch >= self._epoch:
                return view
            if best is None or view[:2] > best[:2]:
                best = view
        if best is None:
            raise Unavailable(f"no server of the cluster tells who has which slot: {problem}")
        return best

    async def _ask(self, place: Place) -> View:
        client = make_node(self._address, place, ASK_SECONDS)
        try:
            info: Any = await client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
            ranges: Any = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()
        return view_of(info, ranges, place)


def view_of(info: Any, ranges: Any, asked: Place) -> View:
    """What redis-py makes of CLUSTER INFO and CLUSTER SLOTS, as a view.

    Args:
        info: Fields by name.
        ranges: First and last slot of each, then its master and replicas, each as host, port and more.
        asked: Who answered; a server that does not know its own host leaves it empty.
    """
    owners: list[Place | None] = [None] * SLOTS
    places: set[Place] = set()
    for first, last, *servers in ranges:
        found = [((host or b"").decode("ascii") or asked[0], int(port)) for host, port, *_ in servers]
        places.update(found)
        owners[first : last + 1] = [found[0]] * (last + 1 - first)
    epoch = int(info["cluster_current_epoch"])
    return View(info["cluster_state"] == "ok", epoch, owners, places)


def _about(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.5)
