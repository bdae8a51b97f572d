"""``python -m bench.growth --write-docs``: what grows with users, rooms, room size, rate and workers; how fast.

Five series of five points; each point is a server of its own with its embedded store, filled, left alone for a
moment and then loaded for some seconds. Told for each: CPU of the workers and of the store, commands that the
store carried out, memory of the workers, p99 of the delay; then a straight line through the points by least
squares, with R2, the share of the differences that the line explains. From the lines follows what a million users
need. The results go to docs/scale.md and docs/plots with ``--write-docs``, else to the terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis

from bench import plots
from bench.load import Load, Plan, sources_for
from bench.million import ended_by_sigterm
from bench.processes import Server, cpu_seconds, pss_bytes, running_server
from bench.report import place, table, write_between
from bench.results import this_machine
from tornadochat.processes import raise_file_limit

CHECKOUT = Path(__file__).parent.parent
BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
# Presence of those who joined is told and written by then.
SETTLE_SECONDS = 3.0
WARM_SECONDS = 1.0
# The last deliveries are in by then.
LAST_SECONDS = 0.5
# The plan: rooms of this size, one message of each user in a minute.
PLANNED_USERS, PLANNED_ROOM_SIZE, PLANNED_MESSAGES_A_MINUTE = 1_000_000, 50, 1.0
# No core is planned to be fuller than this: bursts, and a machine that fails, need the rest.
MAX_SHARE = 0.6
MACHINE_CORES = 8
# Of one connection in the kernel, at the server's end (docs/deploy.md).
KERNEL_BYTES = 4300


class Shape(NamedTuple):
    """One load: the place on the series' axis, and what it is."""

    x: float
    rooms: int
    members: int
    rate: float
    workers: int = 2


class Series(NamedTuple):
    """What grows, over what, and what stays."""

    name: str
    axis: str
    stays: str
    shapes: tuple[Shape, ...]


SERIES = (
    Series(
        "users",
        "users, each in one room of 50",
        "one message of each user in a minute",
        tuple(Shape(rooms * 50, rooms, 50, rooms * 50 / 60) for rooms in (20, 50, 100, 160, 240)),
    ),
    Series(
        "rooms",
        "rooms of 10",
        "100 messages a second in all of them together",
        tuple(Shape(rooms, rooms, 10, 100.0) for rooms in (50, 200, 400, 700, 1000)),
    ),
    Series(
        "room size",
        "members of each of 10 rooms",
        "50 messages a second in all of them together",
        tuple(Shape(size, 10, size, 50.0) for size in (10, 100, 200, 400, 700)),
    ),
    Series(
        "rate",
        "messages a second in 20 rooms of 50",
        "everything else",
        tuple(Shape(rate, 20, 50, float(rate)) for rate in (25, 100, 200, 350, 500)),
    ),
    Series(
        "workers",
        "workers, whatever the cores",
        "10 rooms of 100, 100 messages a second in all of them together",
        tuple(Shape(workers, 10, 100, 100.0, workers) for workers in (1, 4, 8, 12, 16)),
    ),
)
# A few seconds for a test.
SMALL = (
    Series(
        "users",
        "users, each in one room of 10",
        "one message of each user in a second",
        (Shape(20, 2, 10, 20.0), Shape(40, 4, 10, 40.0)),
    ),
)


@dataclass(frozen=True, slots=True)
class Point:
    """What one load cost; CPU in cores, of the seconds in which messages were sent."""

    x: float
    users: int
    messages: float
    deliveries: float
    worker_cores: float
    store_cores: float
    commands: float
    pss_bytes: int
    p99_ms: float
    exact: bool

    @property
    def cores(self) -> float:
        """Of workers and store."""
        return self.worker_cores + self.store_cores


class Line(NamedTuple):
    """``y = base + slope * x``, and the share of the differences in y that it explains."""

    base: float
    slope: float
    r2: float

    def at(self, x: float) -> float:
        """Its y at some x."""
        return self.base + self.slope * x


COSTS: dict[str, tuple[str, Callable[[Point], float]]] = {
    "workers' CPU": ("cores", lambda point: point.worker_cores),
    "store's CPU": ("cores", lambda point: point.store_cores),
    "store's commands": ("a second", lambda point: point.commands),
    "workers' memory": ("MiB", lambda point: point.pss_bytes / 2**20),
}


def fit(points: Sequence[Point], cost: Callable[[Point], float]) -> Line:
    """The line through points at two or more places."""
    places, values = [point.x for point in points], [cost(point) for point in points]
    slope, base = statistics.linear_regression(places, values)
    varies = len(set(values)) > 1
    return Line(base, slope, statistics.correlation(places, values) ** 2 if varies else 1.0)


def measure(shape: Shape, seconds: float) -> Point:
    """One point.

    Raises:
        RuntimeError: Not everybody could join.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-growth-")))
        told = ("--drain-seconds=0.2", "--log-level=error")
        server = stack.enter_context(running_server(folder, *told, workers=shape.workers, start_seconds=60.0))
        store = stack.enter_context(redis.Redis(unix_socket_path=str(folder / "store.sock")))
        plan = Plan(
            port=server.port,
            rooms=shape.rooms,
            members=shape.members,
            sources=sources_for(shape.rooms * shape.members),
            prefix="growth",
        )
        load = stack.enter_context(Load(plan))
        joined = load.connect()
        if joined.joined != shape.rooms * shape.members:
            raise RuntimeError(f"{joined.joined} joined: {joined.last_error}")
        load.idle(SETTLE_SECONDS)
        load.send(WARM_SECONDS, shape.rate)
        return _loaded(server, load, store, shape, seconds)


def _loaded(server: Server, load: Load, store: redis.Redis, shape: Shape, seconds: float) -> Point:
    workers, store_pid = server.workers, server.store
    assert store_pid is not None
    before, store_before, commands = cpu_seconds(workers), cpu_seconds([store_pid]), _commands(store)
    load.begin_count()
    load.run(seconds, shape.rate)
    report = load.run(LAST_SECONDS, 0.0)
    took = seconds + LAST_SECONDS
    return Point(
        x=shape.x,
        users=shape.rooms * shape.members,
        messages=report.sent / took,
        deliveries=report.delivered / took,
        worker_cores=(cpu_seconds(workers) - before) / took,
        store_cores=(cpu_seconds([store_pid]) - store_before) / took,
        commands=(_commands(store) - commands) / took,
        pss_bytes=sum(map(pss_bytes, workers)),
        p99_ms=report.p99_ms,
        exact=report.exact,
    )


def _commands(store: redis.Redis) -> int:
    """Commands that the store has carried out, those of scripts included."""
    found = store.info("commandstats")
    assert isinstance(found, dict)
    return sum(int(each["calls"]) for each in found.values())


# What follows from it -------------------------------------------------------------------------------


class Costs(NamedTuple):
    """What the lines say, in CPU-microseconds and bytes.

    Attributes:
        message: A message in its sender's worker.
        wake: A message in each worker that has members in its room.
        delivery: To each member.
        store_message: A message in the store.
        store_wake: A message in the store, for each worker that listens.
        member_bytes: PSS of a member in its worker.
        worker_bytes: PSS of a worker with nobody.
        commands: Of the store, for each message.
    """

    message: float
    wake: float
    delivery: float
    store_message: float
    store_wake: float
    member_bytes: float
    worker_bytes: float
    commands: float


def costs_of(found: dict[str, list[Point]]) -> Costs:
    """Take the series apart; nothing is less than 0, however noisy the machine was."""

    def each(name: str, cost: Callable[[Point], float]) -> Line:
        return fit(found[name], lambda point: cost(point) * 1e6 / point.messages)

    by_workers = each("workers", lambda point: point.worker_cores)
    by_size = each("room size", lambda point: point.worker_cores)
    store = each("workers", lambda point: point.store_cores)
    memory = fit(found["users"], lambda point: point.pss_bytes)
    wake = max(0.0, by_workers.slope)
    return Costs(
        message=max(0.0, by_size.base - 2 * wake),  # two workers in that series
        wake=wake,
        delivery=max(0.0, by_size.slope),
        store_message=max(0.0, store.base),
        store_wake=max(0.0, store.slope),
        member_bytes=max(0.0, memory.slope),
        worker_bytes=max(0.0, memory.base / 2),
        commands=max(0.0, fit(found["rate"], lambda point: point.commands).slope),
    )


class Fleet(NamedTuple):
    """What so many users need.

    Attributes:
        workers: One for each core, so that none is fuller than ``MAX_SHARE``.
        spread: Workers in which a message arrives, on average.
        worker_cores, store_cores: CPU of all of them.
        shards: Of the store, one core each.
    """

    workers: int
    spread: float
    worker_cores: float
    store_cores: float
    shards: int


def fleet_for(users: int, room_size: int, messages: float, costs: Costs, affinity: bool) -> Fleet:
    """Size a fleet: more workers share the deliveries, but each message wakes more of them.

    Args:
        users: In all, each in one room.
        room_size: Members of each.
        messages: A second, in all.
        costs: Of each part.
        affinity: Whether all members of a room are led to the same worker.
    """
    workers = 1
    while True:
        # Members who are drawn at random leave a share of the workers without any.
        spread = 1.0 if affinity else workers * (1 - (1 - 1 / workers) ** room_size)
        used = messages * (costs.message + spread * costs.wake + room_size * costs.delivery) / 1e6
        if used <= workers * MAX_SHARE:
            break
        workers = max(workers + 1, math.ceil(used / MAX_SHARE))
    store = messages * (costs.store_message + spread * costs.store_wake) / 1e6
    return Fleet(workers, spread, used, store, max(1, math.ceil(store / MAX_SHARE)))


def plan_text(costs: Costs, files: int) -> str:
    """The plan for a million users, in Markdown."""
    messages = PLANNED_USERS * PLANNED_MESSAGES_A_MINUTE / 60
    drawn, led = (
        fleet_for(PLANNED_USERS, PLANNED_ROOM_SIZE, messages, costs, affinity) for affinity in (False, True)
    )
    by_files = -(-PLANNED_USERS // files)
    rows = []
    for name, fleet in (("drawn by the balancer", drawn), ("led by room", led)):
        workers = max(fleet.workers, by_files)
        machines = -(-workers // MACHINE_CORES)
        memory = (PLANNED_USERS * (costs.member_bytes + KERNEL_BYTES) + workers * costs.worker_bytes) / machines
        rows.append(
            [
                name,
                f"{fleet.spread:.1f}",
                f"{fleet.worker_cores:.1f}",
                f"{fleet.workers} ({by_files} by files)",
                f"{machines} of {MACHINE_CORES} cores, {memory / 2**30:.1f} GiB each",
                f"{fleet.store_cores:.2f}",
                str(fleet.shards),
            ]
        )
    heads = ["members are", "workers that a message wakes", "cores of the workers", "workers"]
    heads += ["machines", "cores of the store", "shards of a Redis Cluster"]
    return "\n\n".join(
        [
            f"A message costs its sender's worker {costs.message:.0f} us, each worker that has members in the "
            f"room {costs.wake:.0f} us, and {costs.delivery:.1f} us for each member; the store "
            f"{costs.store_message:.0f} us, {costs.store_wake:.1f} us for each worker that listens, and "
            f"{costs.commands:.0f} commands. A member takes {costs.member_bytes:,.0f} bytes of its worker.",
            f"{PLANNED_USERS:,} users in rooms of {PLANNED_ROOM_SIZE}, each saying something once a minute, are "
            f"{messages:,.0f} messages and {messages * PLANNED_ROOM_SIZE:,.0f} deliveries a second. With no core "
            f"fuller than {MAX_SHARE:.0%}, and one worker for each core:",
            table(heads, rows),
            what_breaks_first(costs, files),
        ]
    )


def what_breaks_first(costs: Costs, files: int) -> str:
    """How many users one machine with one store holds by each of its limits, the narrowest first."""
    each = PLANNED_MESSAGES_A_MINUTE / 60
    workers = MACHINE_CORES
    per_message = costs.message + workers * costs.wake + PLANNED_ROOM_SIZE * costs.delivery
    per_store = costs.store_message + workers * costs.store_wake
    bounds = {
        f"the cores of its {workers} workers, at {MAX_SHARE:.0%}": workers * MAX_SHARE * 1e6 / each / per_message,
        f"the store, which has one core, at {MAX_SHARE:.0%}": MAX_SHARE * 1e6 / each / max(per_store, 1e-9),
        f"{files:,} files for each worker": float(workers * files),
        "16 GiB of memory": (16 * 2**30 - workers * costs.worker_bytes) / (costs.member_bytes + KERNEL_BYTES),
    }
    lines = [
        f"{place}. {name}: {users:,.0f} users"
        for place, (name, users) in enumerate(sorted(bounds.items(), key=lambda item: item[1]), 1)
    ]
    return (
        f"What breaks first on one machine of {MACHINE_CORES} cores with one store, same rooms and pace:\n\n"
        + "\n".join(lines)
    )


# The report -----------------------------------------------------------------------------------------


def series_text(series: Series, points: Sequence[Point]) -> str:
    """The table of one series, and its lines."""
    heads = [series.axis, "users", "deliveries a second", "workers, cores", "store, cores"]
    heads += ["store, commands a second", "workers, MiB", "p99, ms"]
    rows = [
        [
            f"{point.x:,g}",
            f"{point.users:,}",
            f"{point.deliveries:,.0f}" + ("" if point.exact else " (lost some)"),
            f"{point.worker_cores:.3f}",
            f"{point.store_cores:.3f}",
            f"{point.commands:,.0f}",
            f"{point.pss_bytes / 2**20:.1f}",
            f"{point.p99_ms:.1f}",
        ]
        for point in points
    ]
    lines = []
    for name, (unit, cost) in COSTS.items():
        line = fit(points, cost)
        lines.append(f"- {name}, {unit}: {line.base:.3g} + {line.slope:.3g} x {series.axis} (R2 {line.r2:.3f})")
    return "\n\n".join(
        [f"### By {series.name}", f"The same for all: {series.stays}.", table(heads, rows), "\n".join(lines)]
    )


def draw(found: dict[str, list[Point]], series: Sequence[Series], folder: Path) -> list[Path]:
    """One plot for each series: CPU over its axis, with the lines; returns the SVG files.

    Raises:
        ImportError: Matplotlib is missing; it comes with the extra ``bench``.
    """
    drawn = []
    for one in series:
        path = folder / f"growth-{one.name.replace(' ', '-')}.svg"
        lines = {}
        for name in ("workers' CPU", "store's CPU"):
            cost = COSTS[name][1]
            line = fit(found[one.name], cost)
            lines[name] = [(point.x, cost(point), line.at(point.x)) for point in found[one.name]]
        plots.draw_lines(path, one.axis, "cores", lines)
        drawn.append(path)
    return drawn


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each point is loaded")
    parser.add_argument("--small", action="store_true", help="one short series, to see that it works")
    parser.add_argument("--write-docs", action="store_true", help="into docs/scale.md and docs/plots")
    parser.add_argument("--docs", type=Path, default=CHECKOUT / "docs", help="folder of scale.md and plots")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write where asked; 1 when a delivery was lost."""
    options = options_of(arguments)
    files = raise_file_limit()
    series = SMALL if options.small else SERIES
    found: dict[str, list[Point]] = {}
    with ended_by_sigterm():
        for one in series:
            found[one.name] = []
            for shape in one.shapes:
                found[one.name].append(measure(shape, options.seconds))
                print(f"{one.name} {shape.x:g}: {found[one.name][-1]}", file=sys.stderr, flush=True)
    parts = [
        "Measured by `python -m bench.growth --write-docs`, with two workers and their embedded store where "
        f"nothing else is said. {place(this_machine())}",
        *(series_text(one, found[one.name]) for one in series),
    ]
    if not options.small:
        parts += ["### The plan for a million users", plan_text(costs_of(found), files)]
    if options.write_docs:
        drawn = draw(found, series, options.docs / "plots")
        names = [os.path.relpath(path, options.docs) for path in drawn]
        images = "\n".join(f"![{Path(name).stem.replace('-', ' ')}]({name})" for name in names)
        write_between(options.docs / "scale.md", (BEGIN, END), [*parts, images])
    print("\n\n".join(parts))
    return 0 if all(point.exact for points in found.values() for point in points) else 1


if __name__ == "__main__":
    sys.exit(main())
