"""Load from several generator processes at once, and one report of what they saw.

Each process holds a share of every room's members in a ``_loadgen.Swarm`` of its own; this module
forks them, leads them through the phases (connect, warm up, measure, drain) and adds up.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bench import native
from bench.dialects import DIALECTS

# One process may hold 20,000 descriptors where the limit is that low; some stay free.
CONNECTIONS_PER_PROCESS = 15_000
# Connections begun at a time by one process: enough to keep the server busy, within its backlog.
CONNECT_BATCH = 100
# While nothing is asked of a process, it looks that often whether something is.
IDLE_SECONDS = 0.05
# Time for the last deliveries after the last message was sent.
DRAIN_SECONDS = 1.0
# Of about 28,000 ports that a source address has towards one server.
CONNECTIONS_PER_SOURCE = 20_000


@dataclass(slots=True)
class Plan:
    """What one load is.

    Attributes:
        port: Of the server, on 127.0.0.1.
        rooms: Number of rooms.
        members: Connections in each room.
        rate: Messages a second, all rooms together.
        seconds: How long messages are sent.
        text_bytes: Length of each text.
        processes: Generator processes.
        sources: Source addresses; more than one beyond 28,000 connections.
        prefix: Of the rooms' names.
        path: Request target of the WebSocket; the dialect's own where empty.
        dialect: What the server speaks, one of ``bench.dialects.DIALECTS``.
    """

    port: int
    rooms: int = 10
    members: int = 100
    rate: float = 200.0
    seconds: float = 10.0
    text_bytes: int = 96
    processes: int = 1
    sources: tuple[str, ...] = ("127.0.0.1",)
    prefix: str = "load"
    path: str = ""
    dialect: str = "tornadochat"


@dataclass(slots=True)
class Report:
    """What a load saw; counts are of the whole load, delays in milliseconds."""

    joined: int = 0
    failed: int = 0
    sent: int = 0
    expected: int = 0
    delivered: int = 0
    holes: int = 0
    repeats: int = 0
    errors: int = 0
    closed: int = 0
    refused: int = 0
    connect_seconds: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    join_p99_ms: float = 0.0
    late_ms: float = 0.0
    last_error: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every message reached every member once and in order."""
        return self.delivered == self.expected and not (self.holes or self.repeats or self.errors)

    def as_json(self) -> str:
        """One line for a log or a results file."""
        return json.dumps(asdict(self))


def sources_for(connections: int) -> tuple[str, ...]:
    """As many addresses of 127.0.0.0/8 as so many connections to one server need."""
    return tuple(f"127.0.0.{2 + number}" for number in range(max(1, -(-connections // CONNECTIONS_PER_SOURCE))))


class Load:
    """The generator processes of one load; a context manager that ends them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        native.load("_loadgen")  # compiled once, before the processes fork
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("fork")
        for number in range(plan.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_generate, args=(theirs, plan, number), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_exc: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("end",))
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def pids(self) -> list[int]:
        """Process ids of the generators."""
        return [process.pid for process in self._processes]

    def _all(self, *order: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self._pipes]

    def connect(self, seconds: float = 120.0) -> Report:
        """Connect and join everybody; returns when all are joined or have failed."""
        begin = time.monotonic()
        report = self._merge(self._all("connect", seconds))
        report.connect_seconds = time.monotonic() - begin
        return report

    def idle(self, seconds: float) -> Report:
        """Only read for a while."""
        return self._merge(self._all("run", seconds, 0.0))

    def send(self, seconds: float, rate: float, drain_seconds: float | None = None) -> Report:
        """Send at a rate, then read on until the last deliveries are in; counts of this call.

        Who is in a room at the start is expected to get all that is sent to it, also when the server
        disconnects it in between.

        Args:
            drain_seconds: How long it is read on; ``DRAIN_SECONDS`` where nothing is given.
        """
        members = self._room_sizes(self._all("forget"))
        self._all("run", seconds, rate / len(self._pipes))
        drain = DRAIN_SECONDS if drain_seconds is None else drain_seconds
        return self._merge(self._all("run", drain, 0.0), members)

    def _room_sizes(self, parts: Sequence[dict[str, Any]]) -> list[int]:
        return [sum(part["sizes"][room] for part in parts) for room in range(self.plan.rooms)]

    def _merge(self, parts: Sequence[dict[str, Any]], members: Sequence[int] = ()) -> Report:
        report = Report()
        for name in ("joined", "failed", "sent", "delivered", "holes", "repeats", "errors", "closed", "refused"):
            setattr(report, name, sum(part[name] for part in parts))
        sizes = members or self._room_sizes(parts)
        report.expected = sum(
            sizes[room] * sum(part["sent_by_room"][room] for part in parts) for room in range(self.plan.rooms)
        )
        delays = [sum(part["delays"][i] for part in parts) for i in range(len(parts[0]["delays"]))]
        joins = [sum(part["joins"][i] for part in parts) for i in range(len(parts[0]["joins"]))]
        report.p50_ms, report.p95_ms, report.p99_ms = (quantile(delays, q) for q in (0.5, 0.95, 0.99))
        report.join_p99_ms = quantile(joins, 0.99)
        report.late_ms = max(part["late_us"] for part in parts) / 1000
        report.last_error = next((part["last_error"] for part in parts if part["last_error"]), "")
        return report


def quantile(classes: Sequence[int], share: float) -> float:
    """Upper limit in milliseconds of the class in which this share of all delays is reached."""
    limit_of = native.load("_loadgen").class_limit
    total, seen = sum(classes), 0
    for index, count in enumerate(classes):
        seen += count
        if total and seen >= share * total:
            return float(limit_of(index)) / 1000
    return 0.0


def _generate(pipe: Connection, plan: Plan, number: int) -> None:
    """One generator process: carries out the leader's orders until the pipe closes."""
    loadgen = native.load("_loadgen")
    members = sum(1 for i in range(plan.rooms * plan.members) if i % plan.processes == number)
    rooms = [f"{plan.prefix}-{room}" for room in range(plan.rooms)]
    dialect = DIALECTS[plan.dialect]
    swarm = loadgen.Swarm("127.0.0.1", plan.port, dialect, rooms, members, plan.text_bytes, plan.path)
    base: dict[str, Any] = {}
    while True:
        try:
            while swarm.joined and not pipe.poll():
                swarm.run(IDLE_SECONDS)  # pings are answered, whatever the leader is busy with
            order = pipe.recv()
        except EOFError:
            return
        if order[0] == "end":
            return
        if order[0] == "connect":
            _connect(swarm, plan, number, order[1])
        elif order[0] == "run":
            swarm.run(order[1], order[2])
        elif order[0] == "forget":
            base = _totals(swarm)
            swarm.begin_count()
        pipe.send(_since(_totals(swarm), base))


def _connect(swarm: Any, plan: Plan, number: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    total = plan.rooms * plan.members
    begun = 0
    for i in range(number, total, plan.processes):
        while begun - swarm.joined - swarm.failed - swarm.closed >= CONNECT_BATCH:
            if time.monotonic() > deadline:
                return  # whoever has not begun by now is neither joined nor failed
            swarm.run(0.002)
        swarm.connect(i % plan.rooms, True, plan.sources[i % len(plan.sources)])
        begun += 1
    while swarm.joined + swarm.failed + swarm.closed < begun and time.monotonic() < deadline:
        swarm.run(0.01)


def _totals(swarm: Any) -> dict[str, Any]:
    return {
        "joined": swarm.joined,
        "failed": swarm.failed,
        "sent": swarm.sent,
        "delivered": swarm.delivered,
        "holes": swarm.holes,
        "repeats": swarm.repeats,
        "errors": swarm.errors,
        "closed": swarm.closed,
        "refused": swarm.refused_sends,
        "delays": swarm.histogram(),
        "joins": swarm.histogram(True),
        "sizes": swarm.room_sizes(),
        "sent_by_room": swarm.sent_by_room(),
        "late_us": swarm.worst_lateness_us,
        "last_error": swarm.error(),
    }


# What is a state and not a count, so that nothing is taken off it.
STATES = frozenset(("joined", "failed", "sizes", "late_us", "last_error", "joins"))


def _since(now: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    found = dict(now)
    for name, before in base.items():
        if name in STATES:
            continue
        if isinstance(before, list):
            found[name] = [new - old for new, old in zip(now[name], before, strict=True)]
        else:
            found[name] = now[name] - before
    return found
