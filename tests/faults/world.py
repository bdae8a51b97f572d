"""A store, a proxy before it, a server, and every way in which they are broken."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.processes import Server, running_server
from tests.faults.people import Talker
from tests.faults.proxy import Proxy
from tornadochat.embedded import EmbeddedStore

# A rolling restart stops where a new worker dies before it is ready, such as one that another fault kills.
ROLLED = re.compile("all workers are replaced|the replacement stops here")
ROLLING_SECONDS = 60.0
KILL_SECONDS = 10.0
# With a log that short, a burst exceeds it, and members who were away have to be told.
HISTORY = 200
HISTORY_SECONDS = 1
BACKLOG_BYTES = 65536
# A burst is more than kernels and backlogs hold for a member that does not read.
BURST_MESSAGES = 800
BURST_TEXT = "x" * 12_000
STALL_SECONDS = 3.0


class World:
    """What a run breaks.

    Args:
        freeze_seconds: How long the store stands still; above 5 s its connections are made anew.
    """

    def __init__(
        self, folder: Path, store: EmbeddedStore, proxy: Proxy, server: Server, draw: random.Random, freeze: float
    ) -> None:
        self.folder = folder
        self.store = store
        self.proxy = proxy
        self.server = server
        self.draw = draw
        self.freeze_seconds = freeze
        self.talkers: list[Talker] = []

    @property
    def faults(self) -> dict[str, tuple[int, Callable[[], Awaitable[None]]]]:
        """Each kind of fault with its weight in the draw; a call returns when the fault is over."""
        return {
            "worker killed": (4, self.kill_worker),
            "workers replaced": (2, self.replace_workers),
            "store restarted": (3, self.restart_store),
            "store restarted empty": (1, self.wipe_store),
            "store frozen": (1, self.freeze_store),
            "store cut off": (3, self.cut_store),
            "store connections truncated": (3, self.truncate_store),
            "store slow": (2, self.delay_store),
            "clients dropped": (4, self.drop_clients),
            "clients stalled": (2, self.stall_clients),
        }

    async def kill_worker(self) -> None:
        """-9."""
        workers = self.server.workers
        if workers:
            os.kill(self.draw.choice(workers), signal.SIGKILL)

    async def replace_workers(self) -> None:
        """A rolling restart; over when the last predecessor has drained."""
        log = self.folder / "server.log"
        before = len(ROLLED.findall(log.read_text()))
        os.kill(self.server.process.pid, signal.SIGHUP)
        async with asyncio.timeout(ROLLING_SECONDS):
            while len(ROLLED.findall(log.read_text())) == before:
                await asyncio.sleep(0.1)

    async def restart_store(self) -> None:
        """-9, some time without it, then again with its data."""
        await self._kill_store()
        await asyncio.sleep(self.draw.uniform(0.2, 2.0))
        await asyncio.to_thread(self.store.restart)

    async def wipe_store(self) -> None:
        """The same, but nothing that it knew is left."""
        await self._kill_store()
        for path in self.store.data_dir.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix in (".rdb", ".aof"):
                path.unlink()
        await asyncio.to_thread(self.store.restart)

    async def _kill_store(self) -> None:
        assert self.store.pid is not None
        os.kill(self.store.pid, signal.SIGKILL)
        async with asyncio.timeout(KILL_SECONDS):
            while self.store.alive():
                await asyncio.sleep(0.01)

    async def freeze_store(self) -> None:
        """Stop it; its connections stay open."""
        assert self.store.pid is not None
        os.kill(self.store.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.freeze_seconds)
        finally:
            os.kill(self.store.pid, signal.SIGCONT)

    async def cut_store(self) -> None:
        """Close the connections between workers and store."""
        self.proxy.cut()

    async def truncate_store(self) -> None:
        """Close them in the middle of what they carry."""
        self.proxy.truncate()
        await asyncio.sleep(0.5)
        self.proxy.cut()

    async def delay_store(self) -> None:
        """Each piece takes some time more."""
        self.proxy.delay_seconds = self.draw.uniform(0.05, 0.5)
        await asyncio.sleep(self.draw.uniform(1.0, 3.0))
        self.proxy.delay_seconds = 0.0

    async def drop_clients(self) -> None:
        """A tenth of the clients, in the middle of a frame."""
        for talker in self._some(10):
            talker.drop()

    async def stall_clients(self) -> None:
        """Some clients of one room read nothing while more is said than anyone holds for them."""
        [speaker] = self.draw.sample(self.talkers, 1)
        room = self.draw.choice(sorted(speaker.rooms))
        others = [each for each in self.talkers if room in each.rooms and each is not speaker]
        stalled = self.draw.sample(others, max(1, len(others) // 4))
        await asyncio.gather(*(each.stall(STALL_SECONDS) for each in stalled), self._burst(speaker, room))

    async def _burst(self, speaker: Talker, room: str) -> None:
        """In two halves, so that the first one is old enough to be trimmed when the second one comes."""
        for _ in range(2):
            await asyncio.gather(*(speaker.say(room, BURST_TEXT) for _ in range(BURST_MESSAGES // 2)))
            await asyncio.sleep(HISTORY_SECONDS + 0.2)

    def _some(self, share: int) -> list[Talker]:
        return self.draw.sample(self.talkers, max(1, len(self.talkers) // share))


@asynccontextmanager
async def running_world(folder: Path, draw: random.Random, workers: int, freeze: float) -> AsyncIterator[World]:
    """Start everything, end everything."""
    store = EmbeddedStore(folder / "store")
    store.start()
    proxy = Proxy(lambda: asyncio.open_unix_connection(store.url.removeprefix("unix://")), draw)
    await proxy.start()
    options = (
        f"--redis=redis://127.0.0.1:{proxy.port}",
        f"--history={HISTORY}",
        f"--history-seconds={HISTORY_SECONDS}",
        f"--max-backlog={BACKLOG_BYTES}",
        "--drain-seconds=1",
        "--max-text-chars=16000",
    )
    try:
        manager = running_server(folder, *options, workers=workers)
        server = await asyncio.to_thread(manager.__enter__)
        try:
            yield World(folder, store, proxy, server, draw, freeze)
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)
    finally:
        await proxy.stop()
        store.stop()
