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
from bench.processes import kernel_memory

# One process may hold 20,000 descriptors where the limit is that low; some stay free.
CONNECTIONS_PER_PROCESS = 15_000
# Connections begun at a time by all processes: enough to keep the server busy, within its backlog.
CONNECT_BATCH = 100
# Connections to one port of the server from one source address. There are 28,000 ports, but the kernel tries
# the even ones first: beyond half of them each connect looks at thousands that are taken.
CONNECTIONS_PER_SOURCE = 10_000
# A ramp with a floor of free memory looks at it this often.
LOOK_SECONDS = 0.5
# A process that has failed to connect so often gives its ramp up: what is used up stays used up.
MAX_FAILED = 100
# While nothing is asked of a process, it looks that often whether something is.
IDLE_SECONDS = 0.05
# Time for the last deliveries after the last message was sent.
DRAIN_SECONDS = 1.0


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
        whole_rooms: Each process holds all members of some rooms, so that a message wakes one process and
            not every one; otherwise each holds a share of every room.
        connect_batch: Connections begun at a time, all processes together.
        floor_bytes: The ramp ends when less memory than this is free; 0 for no floor.
        resumes: Whoever is cut off comes back; see ``_loadgen``.
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
    whole_rooms: bool = False
    connect_batch: int = CONNECT_BATCH
    floor_bytes: int = 0
    resumes: bool = False

    def share(self, number: int) -> Sequence[int]:
        """The room of each connection of one process, in the order in which they connect."""
        if self.whole_rooms:
            return [*range(number, self.rooms, self.processes)] * self.members
        return [i % self.rooms for i in range(number, self.rooms * self.members, self.processes)]


def sources_for(connections: int) -> tuple[str, ...]:
    """Source addresses for so many connections to one port of the server."""
    count = max(1, -(-connections // CONNECTIONS_PER_SOURCE))
    return tuple(f"127.0.{i // 250}.{2 + i % 250}" for i in range(count))


@dataclass(slots=True)
class Report:
    """What a load saw; counts are of the whole load, delays in milliseconds.

    Delays are of those who were not cut off; ``cut_p99_ms`` is of those who were.

    Attributes:
        begun: Connections begun, joined or not; fewer than planned where the ramp was given up.
        away: Connections that were cut off and have not joined again.
        retries: Tries to come back.
        truncated: Times that somebody came back and was told that messages are missing.
        returns: When each that was cut off had joined again, in seconds of CLOCK_MONOTONIC, sorted.
        low_memory: Whether the ramp ended at the floor of free memory.
    """

    begun: int = 0
    away: int = 0
    retries: int = 0
    truncated: int = 0
    returns: list[float] = field(default_factory=list)
    cut_p99_ms: float = 0.0
    low_memory: bool = False

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


class Load:
    """The generator processes of one load; a context manager that ends them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        native.load("_loadgen")  # compiled once, before the processes fork
        self._members: Sequence[int] = ()
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

    def send(self, seconds: float, rate: float) -> Report:
        """Send at a rate, then read on until the last deliveries are in; counts of this call.

        Who is in a room at the start is expected to get all that is sent to it, also when the server
        disconnects it in between.
        """
        self.begin_count()
        self.run(seconds, rate)
        return self.run(DRAIN_SECONDS, 0.0)

    def begin_count(self) -> None:
        """What ``run`` and ``idle`` report from now on begins at 0; nobody counts as cut off any more."""
        self._members = self._room_sizes(self._all("forget"))

    def run(self, seconds: float, rate: float) -> Report:
        """Send at a rate and report what came since ``begin_count``; those who were in a room then are
        expected to get all that is sent to it."""
        return self._merge(self._all("run", seconds, rate / len(self._pipes)), self._members)

    def heads(self) -> list[tuple[int, int]]:
        """For each room the lowest and the highest of the seqs that its members got last; (0, 0) without any."""
        found = [(0, 0)] * self.plan.rooms
        for part in self._all("heads"):
            for room, (low, high) in part.items():
                known = found[room]
                found[room] = (min(low, known[0]), max(high, known[1])) if known != (0, 0) else (low, high)
        return found

    def _room_sizes(self, parts: Sequence[dict[str, Any]]) -> list[int]:
        return [sum(part["sizes"][room] for part in parts) for room in range(self.plan.rooms)]

    def _merge(self, parts: Sequence[dict[str, Any]], members: Sequence[int] = ()) -> Report:
        report = Report()
        for name in COUNTS:
            setattr(report, name, sum(part[name] for part in parts))
        sizes = members or self._room_sizes(parts)
        report.expected = sum(
            sizes[room] * sum(part["sent_by_room"][room] for part in parts) for room in range(self.plan.rooms)
        )
        delays = [sum(part["delays"][i] for part in parts) for i in range(len(parts[0]["delays"]))]
        joins = [sum(part["joins"][i] for part in parts) for i in range(len(parts[0]["joins"]))]
        report.p50_ms, report.p95_ms, report.p99_ms = (quantile(delays, q) for q in (0.5, 0.95, 0.99))
        report.join_p99_ms = quantile(joins, 0.99)
        cut = [sum(part["cut_delays"][i] for part in parts) for i in range(len(parts[0]["cut_delays"]))]
        report.cut_p99_ms = quantile(cut, 0.99)
        report.returns = sorted(at / 1e6 for part in parts for at in part["returns"])
        report.low_memory = any(part["low_memory"] for part in parts)
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
    share = plan.share(number)
    rooms = [f"{plan.prefix}-{room}" for room in range(plan.rooms)]
    dialect = DIALECTS[plan.dialect]
    swarm = loadgen.Swarm(
        "127.0.0.1", plan.port, dialect, rooms, len(share), plan.text_bytes, plan.path, plan.resumes
    )
    base: dict[str, Any] = {}
    ramp = Ramp()
    while True:
        try:
            while (swarm.joined or plan.resumes) and not pipe.poll():
                swarm.run(IDLE_SECONDS)  # pings are answered, whatever the leader is busy with
            order = pipe.recv()
        except EOFError:
            return
        if order[0] == "end":
            return
        if order[0] == "connect":
            ramp.climb(swarm, plan, number, share, order[1])
        elif order[0] == "run":
            swarm.run(order[1], order[2], number / plan.processes)
        elif order[0] == "forget":
            base = _totals(swarm, ramp)
            swarm.begin_count()
        elif order[0] == "heads":
            pipe.send(_heads(swarm))
            continue
        pipe.send(_since(_totals(swarm, ramp), base))


class Ramp:
    """How the connections of one process are made.

    Attributes:
        begun: Connections that were begun.
        low_memory: Whether it ended at the floor of free memory.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.low_memory = False
        self._looked = 0.0

    def climb(self, swarm: Any, plan: Plan, number: int, share: Sequence[int], seconds: float) -> None:
        """Connect and join everybody, or stop where memory, tries or time end."""
        deadline = time.monotonic() + seconds
        batch = max(1, plan.connect_batch // plan.processes)
        first_source = number * len(share)
        for i, room in enumerate(share):
            while self.begun - swarm.joined - swarm.failed - swarm.closed >= batch and time.monotonic() < deadline:
                swarm.run(0.002)
            if time.monotonic() > deadline or swarm.failed > MAX_FAILED or self._memory_is_low(plan):
                break
            swarm.connect(room, True, plan.sources[(first_source + i) % len(plan.sources)])
            self.begun += 1
        while swarm.joined + swarm.failed + swarm.closed < self.begun and time.monotonic() < deadline:
            swarm.run(0.01)

    def _memory_is_low(self, plan: Plan) -> bool:
        now = time.monotonic()
        if plan.floor_bytes and now - self._looked > LOOK_SECONDS:
            self._looked = now
            self.low_memory = kernel_memory().available_bytes < plan.floor_bytes
        return self.low_memory


def _heads(swarm: Any) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for room, seq in swarm.heads():
        low, high = found.get(room, (seq, seq))
        found[room] = (min(low, seq), max(high, seq))
    return found


def _totals(swarm: Any, ramp: Ramp) -> dict[str, Any]:
    return {
        "begun": ramp.begun,
        "low_memory": ramp.low_memory,
        "away": swarm.away(),
        "retries": swarm.retries,
        "truncated": swarm.truncated,
        "returns": swarm.returns(),
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
        "cut_delays": swarm.histogram("cut"),
        "joins": swarm.histogram("joins"),
        "sizes": swarm.room_sizes(),
        "sent_by_room": swarm.sent_by_room(),
        "late_us": swarm.worst_lateness_us,
        "last_error": swarm.error(),
    }


# What is a state and not a count, so that nothing is taken off it.
STATES = frozenset(
    ("begun", "low_memory", "away", "returns", "joined", "failed", "sizes", "late_us", "last_error", "joins")
)
# What reports add up over the processes.
COUNTS = (
    *("begun", "away", "retries", "truncated", "joined", "failed", "sent", "delivered", "holes", "repeats"),
    *("errors", "closed", "refused"),
)


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
