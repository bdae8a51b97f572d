"""Ours, its peers and the floors of the machine behind one face: open a session, send, get a sample."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from bench import floor, peers, store_floor
from bench.load import CONNECTIONS_PER_PROCESS, Load, Plan
from bench.peers import Unavailable
from bench.processes import cpu_seconds, pss_bytes, running_server
from bench.results import Joining, Sample
from bench.shapes import Shape

OURS = "tornadochat"
# What has no server, by rooms, members of each, messages a second, seconds, and bytes of a frame: one send() for
# each delivery, one for each window of 10 ms, and one for each delivery that a store has kept and published.
FLOORS: dict[str, Callable[[int, int, float, float, int], floor.Floor | store_floor.StoreFloor]] = {
    "floor": floor.measure,
    "floor-batch": functools.partial(floor.measure, window_ms=10.0),
    "floor-store": store_floor.measure,
}
TITLES = {
    OURS: "**tornadochat**",
    "floor": "floor: a bare send() for each delivery, no Redis",
    "floor-batch": "floor-batch: a bare send() for 10 ms of deliveries, no Redis",
    "floor-store": "floor-store: the same by two processes in C, behind our script in the store",
    **{name: peer.title for name, peer in peers.PEERS.items()},
}
TEXT_BYTES = 96
# A message of 96 bytes of text is an event of ours of about this many bytes on the wire.
FLOOR_FRAME_BYTES = 296
REST_SECONDS = 1.0
# A hundred thousand connections that end at once keep the workers busy before they can stop.
STOP_SECONDS = 60.0
WARM_SECONDS = 1.0
# Any system holds that, so that nothing of it is left when the first load begins.
WARM_RATE = 100.0


class Session(Protocol):
    """A system with its rooms full."""

    joining: Joining | None

    def send(self, rate: float, seconds: float) -> Sample:
        """Send at a rate and count, see ``Load.send``."""


class FloorSession:
    """One of the floors; it connects anew for each load."""

    joining: Joining | None = None

    def __init__(self, name: str, shape: Shape) -> None:
        self._measure = FLOORS[name]
        self._shape = shape

    def send(self, rate: float, seconds: float) -> Sample:
        """See ``Session``; what the sockets refused counts as lost."""
        shape = self._shape
        found = self._measure(shape.rooms, shape.members, rate, seconds, FLOOR_FRAME_BYTES)
        expected = int(rate * seconds) * shape.members
        return Sample(
            rate=rate,
            sent=int(rate * seconds),
            expected=expected,
            delivered=found.deliveries,
            disconnected=0,
            errors=0,
            cpu_us=found.cpu_us,
            p50_ms=0.0,
            p99_ms=0.0,
            late_ms=0.0,
        )


class ChatSession:
    """A running server, ours or a peer's, and the generator that holds its members.

    Raises:
        Unavailable: Not everybody could join.
    """

    def __init__(self, name: str, shape: Shape, load: Load, pids: Callable[[], list[int]]) -> None:
        self._load = load
        self._pids = pids
        self._connections = shape.connections
        time.sleep(REST_SECONDS)
        memory, cpu = self._memory(), cpu_seconds(pids())
        joined = load.connect(60.0)
        if joined.joined != self._connections:
            raise Unavailable(f"{joined.joined} of {self._connections} joined {joined.last_error}".strip())
        load.idle(REST_SECONDS)
        self.joining: Joining | None = Joining(
            system=name,
            layout=shape.layout,
            connections=self._connections,
            cpu_us=(cpu_seconds(pids()) - cpu) * 1e6 / self._connections,
            pss_bytes=(self._memory() - memory) / self._connections,
        )
        load.send(WARM_SECONDS, min(WARM_RATE, shape.rate))  # caches and scripts get warm

    def _memory(self) -> int:
        return sum(pss_bytes(pid) for pid in self._pids())

    def send(self, rate: float, seconds: float) -> Sample:
        """See ``Session``."""
        pids = self._pids()
        cpu = cpu_seconds(pids)
        report = self._load.send(seconds, rate)
        cpu = cpu_seconds(pids) - cpu
        return Sample(
            rate=rate,
            sent=report.sent,
            expected=report.expected,
            delivered=report.delivered,
            disconnected=self._connections - report.joined,
            errors=report.errors + report.holes + report.repeats,
            cpu_us=cpu * 1e6 / max(1, report.delivered),
            p50_ms=report.p50_ms,
            p99_ms=report.p99_ms,
            late_ms=report.late_ms,
        )


class Running(Protocol):
    """A server, ours or a peer's: where it is, what it speaks, and its processes."""

    port: int

    @property
    def dialect(self) -> str:
        """See ``bench.dialects``."""

    @property
    def pids(self) -> list[int]:
        """All its processes, its store's included."""

    @property
    def store(self) -> int | None:
        """Its store's process, where it has one of its own."""


@contextmanager
def serving(name: str, workers: int = 2) -> Iterator[Running]:
    """Start ours or a peer; it has ended when the context is left.

    Raises:
        Unavailable: It cannot run here; the message is the reason.
        RuntimeError: It ended, or was not ready in time.
    """
    with ExitStack() as stack:
        if name == OURS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-bench-")))
            server = running_server(folder, "--drain-seconds=0.5", workers=workers, stop_seconds=STOP_SECONDS)
            yield stack.enter_context(server)
        else:
            yield stack.enter_context(peers.start(name, workers))


@contextmanager
def session(name: str, shape: Shape) -> Iterator[Session]:
    """Start a system with two worker processes and fill its rooms; all of it ends with the context.

    Raises:
        Unavailable: It cannot run here; the message is the reason.
    """
    if name in FLOORS:
        yield FloorSession(name, shape)
        return
    with ExitStack() as stack:
        server = stack.enter_context(serving(name))
        plan = Plan(
            port=server.port,
            rooms=shape.rooms,
            members=shape.members,
            text_bytes=TEXT_BYTES,
            processes=-(-shape.connections // CONNECTIONS_PER_PROCESS),
            dialect=server.dialect,
        )
        yield ChatSession(name, shape, stack.enter_context(Load(plan)), lambda: server.pids)


class Seat:
    """A system that is there when it is needed: its session is opened anew where a load spoilt it.

    A context manager that ends the last session.

    Attributes:
        joinings: What the connections cost, for each time that they were made.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.shape = shape
        self.joinings: list[Joining] = []
        self._stack = ExitStack()
        self._session: Session | None = None

    def __enter__(self) -> Seat:
        self._open()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _open(self) -> Session:
        if self._session is None:
            self._session = self._stack.enter_context(session(self.name, self.shape))
            if self._session.joining is not None:
                self.joinings.append(self._session.joining)
        return self._session

    def send(self, rate: float, seconds: float) -> Sample:
        """One load. A system that could not deliver all of it is opened anew before the next one, however
        long what it still has under way would take.

        Raises:
            Unavailable: It could not be opened anew.
        """
        sample = self._open().send(rate, seconds)
        if not sample.exact:
            self._session = None
            self._stack.close()
        return sample
