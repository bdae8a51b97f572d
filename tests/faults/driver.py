"""Breaks a running chat again and again while clients talk, then proves that nothing was lost.

    python -m tests.faults.driver --clients 500 --seconds 600 --faults 200 --seed 7

The schedule of faults comes from the seed; the run goes on until both the time is over and as many faults
were made. It ends with exit status 1 when any promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import pss_bytes
from tests.faults.checker import Verdict, check
from tests.faults.people import Probe, Record, Talker
from tests.faults.world import World, running_world

# Longest time after a fault in which every member must have got something that was said after it. The
# longest pause of the back-off is part of it.
RECOVERY_SECONDS = 60.0
# Share of the faults that come together with a second one.
TOGETHER = 0.2


@dataclass
class Plan:
    """A run.

    Attributes:
        seconds: It goes on for at least so long ...
        faults: ... and until so many faults were made.
        pause_seconds: Mean time between two messages of a client.
        freeze_seconds: How long a frozen store stands still.
        kinds: Kinds of faults, by name; all where empty. Each is made once before chance decides.
    """

    clients: int = 500
    rooms: int = 25
    rooms_each: int = 2
    seconds: float = 600.0
    faults: int = 200
    pause_seconds: float = 10.0
    freeze_seconds: float = 10.0
    workers: int = 3
    seed: int = 1
    kinds: tuple[str, ...] = ()


@dataclass
class Report:
    """What happened."""

    verdict: Verdict
    reconnects: int = 0
    untracked: int = 0
    unconfirmed: int = 0
    seconds: float = 0.0
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[int] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many faults were made."""
        return sum(len(times) for times in self.recoveries.values())

    @property
    def clean(self) -> bool:
        """Whether every promise was kept, and the clients' own counts agree."""
        return self.verdict.clean and self.untracked == 0

    def lines(self) -> list[str]:
        """The counts, for people."""
        verdict = self.verdict
        lines = [
            f"{self.seconds:.0f} s, {self.faults} faults, {self.reconnects} reconnects",
            f"messages {verdict.messages}, acknowledged {verdict.acknowledged}, deliveries {verdict.deliveries}",
            f"lost {verdict.lost}, doubled {verdict.doubled}, disordered {verdict.disordered}, "
            f"half {verdict.half}, wrong numbers seen by clients {self.untracked}",
            f"holes that were told {verdict.told}, sent again after a loss of the store {verdict.again}",
            f"PSS of the workers, MiB: {', '.join(f'{each / 2**20:.1f}' for each in self.memory)}",
            f"{'fault':40} {'times':>5} {'p50 s':>7} {'p99 s':>7}   until every member got something new",
        ]
        for kind, times in sorted(self.recoveries.items()):
            ordered = sorted(times)
            high = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            lines.append(f"{kind:40} {len(ordered):5} {statistics.median(ordered):7.2f} {high:7.2f}")
        return lines + verdict.details


async def run(plan: Plan, folder: Path) -> Report:
    """Carry a plan out.

    Raises:
        TimeoutError: The chat did not recover from a fault, or a send hung.
    """
    draw = random.Random(plan.seed)
    record = Record()
    # What a fault hits depends on when it comes; the schedule must not.
    targets = random.Random(plan.seed + 1_000_000)
    async with running_world(folder, targets, plan.workers, plan.freeze_seconds) as world:
        url = f"ws://127.0.0.1:{world.server.port}/ws"
        names = [f"room-{index}" for index in range(plan.rooms)]
        for index in range(plan.clients):
            rooms = [names[(index + offset) % plan.rooms] for offset in range(plan.rooms_each)]
            world.talkers.append(
                Talker(record, url, f"client{index:04d}", rooms, random.Random(plan.seed + index))
            )
        for start in range(0, plan.clients, 50):
            await asyncio.gather(*(talker.start() for talker in world.talkers[start : start + 50]))
        report = await _break(plan, world, record, draw)
        await asyncio.gather(*(talker.stop() for talker in world.talkers))
    report.verdict = check(record.sent, record.members)
    report.reconnects = sum(talker.client.reconnects for talker in world.talkers)
    report.untracked = record.untracked
    return report


async def _break(plan: Plan, world: World, record: Record, draw: random.Random) -> Report:
    """Let everybody talk, and make faults until the plan is fulfilled; everybody has caught up at the end."""
    report, until = Report(Verdict()), asyncio.Event()
    talking = asyncio.gather(*(talker.talk(plan.pause_seconds, until) for talker in world.talkers))
    began = time.monotonic()
    first = list(plan.kinds or world.faults)
    draw.shuffle(first)
    try:
        while first or report.faults < plan.faults or time.monotonic() - began < plan.seconds:
            kinds = [first.pop()] if first else _draw_kinds(plan, world, draw)
            await asyncio.sleep(draw.uniform(0.1, 1.0))
            print(f"{time.monotonic() - began:7.1f} s  {' + '.join(kinds)}", end="", file=sys.stderr, flush=True)
            await asyncio.gather(*(world.faults[kind][1]() for kind in kinds))
            took = await _recover(world, record)
            report.recoveries[" + ".join(sorted(kinds))].append(took)
            if talking.done():
                break  # a send failed in a way that it must not
            print(f": {took:.2f} s", file=sys.stderr)
    finally:
        until.set()
        await talking
    await _recover(world, record)
    report.seconds = time.monotonic() - began
    report.memory = [pss_bytes(pid) for pid in world.server.workers]
    return report


def _draw_kinds(plan: Plan, world: World, draw: random.Random) -> list[str]:
    kinds = list(plan.kinds or world.faults)
    weights = [world.faults[kind][0] for kind in kinds]
    first = draw.choices(kinds, weights)[0]
    second = draw.choices(kinds, weights)[0]
    # Two of them on the store would end what the other has begun.
    apart = first != second and not (first.startswith("store") and second.startswith("store"))
    return [first, second] if apart and draw.random() < TOGETHER else [first]


async def _recover(world: World, record: Record) -> float:
    """Seconds until something that is said now has reached every member of every room."""
    began = time.monotonic()
    speakers: dict[str, Talker] = {}
    for talker in world.talkers:
        for room in talker.rooms:
            speakers.setdefault(room, talker)
    try:
        async with asyncio.timeout(RECOVERY_SECONDS):
            await asyncio.gather(*(_probe(talker, room, record) for room, talker in speakers.items()))
    except TimeoutError:
        for talker in world.talkers:
            print(talker.state(), file=sys.stderr)
        raise
    return time.monotonic() - began


async def _probe(talker: Talker, room: str, record: Record) -> None:
    saying = asyncio.ensure_future(talker.say(room))
    await asyncio.sleep(0)  # it has its id now
    message_id = record.sent[-1].id
    waiting = {member.name for member in record.members if member.room == room}
    probe = record.probes[message_id] = Probe(message_id, waiting)
    try:
        await asyncio.gather(saying, probe.done)
    except asyncio.CancelledError:
        print(f"{message_id} did not reach {sorted(probe.waiting)[:5]}", file=sys.stderr)
        raise
    finally:
        del record.probes[message_id]


def main() -> int:
    """Read the plan from the command line and carry it out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan = Plan()
    for name in ("clients", "rooms", "rooms_each", "seconds", "faults", "pause_seconds", "freeze_seconds"):
        default = getattr(plan, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--workers", type=int, default=plan.workers)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--kind", action="append", default=[], help="only this kind of fault; may be repeated")
    given = parser.parse_args()
    kinds = tuple(given.kind)
    del given.kind
    with tempfile.TemporaryDirectory(prefix="tornadochat-faults-") as folder:
        report = asyncio.run(run(Plan(**vars(given), kinds=kinds), Path(folder)))
    print("\n".join(report.lines()))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
