"""What a worker counts, and the sum over all workers in Prometheus' text format.

The workers share a folder of memory-mapped files (prometheus_client's multiprocess mode). A file
belongs to a slot and the parity of its generation, not to a process: a worker that is replaced goes on
counting where its predecessor's predecessor stopped, so that counters never fall and files do not pile
up. Whatever is hot is counted in C by the transports and carried over once a second by ``tick``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "tornadochat-metrics-"  # and the parent's process id, below the folder for temporary files
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PUBLISH_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
# Round trips that are noted between two observations; a busy worker has some thousands in a second.
MAX_ROUND_TRIPS = 10_000
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


# Name of a counter of the transports -> its metric and what it counts.
TRANSPORT_COUNTERS = {
    "deliveries": ("deliveries", "Room events handed to members' sockets, each member counted"),
    "messages_received": ("commands", "WebSocket messages from members"),
    "bytes_sent": ("sent_bytes", "Bytes that members' sockets have taken"),
    "bytes_received": ("received_bytes", "Bytes from members' sockets"),
    "backlog_drops": ("backlog_drops", "Pieces of room events dropped for members that did not read"),
    "gaps": ("gaps", "Gaps told to members that did not read"),
}


class Metrics:
    """One worker's counters.

    Args:
        folder: Shared by all workers, see ``prepare``.
        slot: Number of the worker's slot.
        generation: How many workers the slot had before.
    """

    def __init__(self, folder: Path, slot: int, generation: int) -> None:
        self._folder = folder
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        for stale in folder.glob(f"gauge_live*_{slot}-*.db"):
            with contextlib.suppress(OSError):
                stale.unlink()
        values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
            lambda: f"{slot}-{generation % 2}"
        )
        registry = self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"tornadochat_{name}", text, registry=registry, multiprocess_mode="livesum")

        def counter(name: str, text: str) -> Counter:
            return Counter(f"tornadochat_{name}", text, registry=registry)

        self.connections = gauge("connections", "Members connected")
        self.rooms = gauge("worker_rooms", "Rooms with members, summed over the workers")
        self.store_up = gauge("store_up", "Workers that reach the store")
        self.messages = counter("messages", "Messages stored for members of this server")
        self.events = counter("events", "Room events taken in from the store, each worker counted")
        self.handshakes = counter("handshakes", "WebSocket handshakes accepted")
        self.refused = Counter(
            "tornadochat_handshakes_refused", "Handshakes refused, by HTTP status", ["status"], registry=registry
        )
        self.gathered = counter("members_gathered", "Members handed over to the worker where their room is")
        self.restarts = counter("worker_restarts", "Workers started in place of another one")
        self.publish_seconds = Histogram(
            "tornadochat_publish_seconds",
            "Round trip of a published batch",
            registry=registry,
            buckets=PUBLISH_BUCKETS,
        )
        self.loop_lag_seconds = Histogram(
            "tornadochat_loop_lag_seconds",
            "How late the timer of each second came",
            registry=registry,
            buckets=LAG_BUCKETS,
        )
        self.longest_hold = Gauge(
            "tornadochat_longest_hold_seconds",
            "Longest time that sockets and fan-outs held a worker's loop so far",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._transport = {name: counter(metric, text) for name, (metric, text) in TRANSPORT_COUNTERS.items()}
        self._seen: dict[tuple[int, str], int] = {}
        self._round_trips: list[float] = []
        if generation:
            self.restarts.inc()

    def published(self, seconds: float) -> None:
        """Note the round trip of a batch; it is observed with the next ``observe_published``, since that
        costs ten times more in between of other work."""
        self._round_trips.append(seconds)
        if len(self._round_trips) >= MAX_ROUND_TRIPS:
            self.observe_published()

    def observe_published(self) -> None:
        """Carry over the round trips since the last call; called once a second."""
        noted, self._round_trips = self._round_trips, []
        for seconds in noted:
            self.publish_seconds.observe(seconds)

    def count_transports(self, transports: list[Any]) -> None:
        """Carry over what the transports have counted since the last call."""
        for index, transport in enumerate(transports):
            for name, metric in self._transport.items():
                total = getattr(transport, name)
                metric.inc(total - self._seen.get((index, name), 0))
                self._seen[index, name] = total
        self.connections.set(sum(transport.connections for transport in transports))

    def render(self) -> bytes:
        """The metrics of all workers, in Prometheus' text format."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def prepare() -> Path:
    """Make the folder that the workers will share; called by the parent before it forks.

    Folders of servers that were killed, and so could not take theirs away, are removed.
    """
    base = Path(tempfile.gettempdir())
    for stale in base.glob(f"{FOLDER}*"):
        pid = stale.name.removeprefix(FOLDER)
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(stale, ignore_errors=True)
    folder = base / f"{FOLDER}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder
