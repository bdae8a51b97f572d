"""``python -m bench.million``: as many members as this machine holds, a million at most, in rooms of a thousand.

One server with its log, sessions and presence, an embedded store, and the load generator share the machine.
Everybody joins; for a while nobody says anything; then 50 messages a second for a minute, and every delivery is
counted. CPU and memory over time go to ``bench/results/<date-time>-million/``.

How many processes: each worker and each generator holds as many connections as it may open files. The ramp ends
early, and the number that was reached is told, when little memory is left, when connections fail, or when
its time is over. The exit status is 1 when a connection failed or a delivery was lost or doubled.

Members who say nothing are pinged by the server after ``--ping-seconds`` of silence, 25 by default: for a million
of them these are 40,000 pings a second, which fill a core or more at both ends together. So a server for that many
has to be told to wait longer; this run does, with ``PING_SECONDS``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import monitor
from bench.load import Load, Plan, Report, sources_for
from bench.monitor import Monitor, groups_of
from bench.processes import KernelMemory, Server, kernel_memory, pss_bytes, running_server
from tornadochat.processes import listen_backlog, raise_file_limit
from tornadochat.worker import RESERVED_FILES

ROOM_SIZE = 1000
# A member who vanished is noticed after the sum of both; 1,700 pings a second for a million members.
PING_SECONDS, PONG_SECONDS = 600, 60
# Files of a generator that are not connections: its pipe, the compiler's leavings, a reserve.
GENERATOR_FILES = 200
# What the kernel spreads over so many workers is uneven; five times the deviation of a fair draw is never met.
DEVIATIONS = 5
# Connections under way at a time. One worker's backlog would hold them all; with several thousand a room takes
# longer to open than a worker waits for it.
CONNECTS_UNDER_WAY = 500
# What a member takes of this machine when idle, with both ends of its connection: the worker, the generator,
# and sockets, files and epoll entries in the kernel.
MEMBER_BYTES, GENERATOR_BYTES, KERNEL_BYTES = 1400, 600, 8600
# What a worker and a generator take before anybody has come.
PROCESS_BYTES = 16 << 20
# A ramp slower than this has stopped.
MIN_JOINS_PER_SECOND = 500
# Presence and the last answers come to rest.
SETTLE_SECONDS = 20.0
# Workers that start at the same time share the cores.
START_SECONDS_A_WORKER = 1.5
# The last deliveries may be under way for this long.
LAST_SECONDS = 10.0


class Limit(NamedTuple):
    """So many members at most, and why."""

    members: int
    reason: str


@dataclass(frozen=True, slots=True)
class Size:
    """What the members are spread over.

    Attributes:
        rooms: Of ``room_size`` members each.
        workers: Server processes.
        generators: Load generator processes, each with whole rooms.
    """

    rooms: int
    room_size: int
    workers: int
    generators: int

    @property
    def members(self) -> int:
        """In all."""
        return self.rooms * self.room_size


def workers_for(members: int, capacity: int) -> int:
    """Workers for so many members when the kernel draws a worker for each connection.

    Args:
        members: In all.
        capacity: Members that one worker takes.
    """
    workers = max(1, -(-members // capacity))
    while members / workers + DEVIATIONS * math.sqrt(members / workers) > capacity and workers < members:
        workers += 1
    return workers


def size_of(members: int, room_size: int, files: int) -> Size:
    """How many rooms and processes.

    Args:
        members: Wanted; rounded down to whole rooms, one at least.
        room_size: Members of each room.
        files: That one process may open.

    Raises:
        ValueError: A room does not fit into one generator process.
    """
    rooms = max(1, members // room_size)
    rooms_each = (files - GENERATOR_FILES) // room_size
    if rooms_each < 1:
        raise ValueError(f"a room of {room_size} does not fit into a process of {files} files")
    workers = workers_for(rooms * room_size, files - RESERVED_FILES)
    return Size(rooms, room_size, workers, -(-rooms // rooms_each))


def limits(size: Size, floor_bytes: int, root: Path = Path("/proc")) -> list[Limit]:
    """What this machine allows, the narrowest first. Both ends of each connection are on it."""
    found = []
    used, _, most = map(int, (root / "sys/fs/file-nr").read_text().split())
    found.append(Limit((most - used) // 2, f"fs.file-max is {most:,}, and each connection takes two files"))
    watches = int((root / "sys/fs/epoll/max_user_watches").read_text())
    found.append(Limit(watches // 2, f"fs.epoll.max_user_watches is {watches:,}, and both ends are watched"))
    tracked = root / "sys/net/netfilter"
    with contextlib.suppress(OSError):
        if count := int((tracked / "nf_conntrack_count").read_text()):
            most = int((tracked / "nf_conntrack_max").read_text())
            found.append(Limit(most - count, f"the firewall tracks connections, {most:,} at most"))
    lines = (line.split() for line in (root / "meminfo").read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    left = free - floor_bytes - (size.workers + size.generators) * PROCESS_BYTES
    found.append(
        Limit(
            max(0, left) // (MEMBER_BYTES + GENERATOR_BYTES + KERNEL_BYTES),
            f"{free / 2**30:.1f} GiB are free, {floor_bytes / 2**30:.1f} GiB stay so",
        )
    )
    return sorted(found)


def fitting(options: argparse.Namespace, files: int) -> tuple[Size, list[str]]:
    """The largest size up to what was asked for that this machine should hold, and what to say about it."""
    size = size_of(options.members, options.room_size, files)
    found = limits(size, options.floor_mib << 20)
    notes = [f"at most {limit.members:,} members: {limit.reason}" for limit in found]
    if found[0].members < size.members:
        size = size_of(found[0].members, options.room_size, files)
        notes.append(f"so {size.members:,} members are tried")
    notes.append(
        f"{size.workers} workers and {size.generators} generators for {size.members:,} members in {size.rooms:,} "
        f"rooms, since a process may open {files:,} files"
    )
    return size, notes


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, with everything that it has started."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def server_options(options: argparse.Namespace) -> list[str]:
    """What the server is told besides its port and its workers."""
    return [
        f"--ping-seconds={PING_SECONDS}",
        f"--pong-seconds={PONG_SECONDS}",
        "--drain-seconds=0.5",
        "--log-level=warning",
        *options.server_option,
    ]


class Run:
    """One run: its phases, and what each of them found, as facts for the report."""

    def __init__(self, options: argparse.Namespace, size: Size, server: Server, load: Load, seen: Monitor) -> None:
        self.options, self.size = options, size
        self.server, self.load, self.seen = server, load, seen
        self.facts: dict[str, Any] = {
            "members wanted": options.members,
            "members planned": size.members,
            "rooms": size.rooms,
            "workers": size.workers,
            "generators": size.generators,
            "source addresses": len(load.plan.sources),
        }
        self.good = False

    def _pss(self) -> tuple[int, int]:
        """Bytes of the workers, and of parent and store."""
        groups = groups_of(self.server)
        workers, others = groups["workers"], groups["parent"] + groups["store"]
        return sum(map(pss_bytes, workers)), sum(map(pss_bytes, others))

    def do(self) -> None:
        """All phases."""
        before, kernel = self._pss(), kernel_memory()
        joined = self._ramp()
        if joined.joined:
            self._rest(joined, before, kernel)
            self._talk(joined)

    def _ramp(self) -> Report:
        self.seen.mark("ramp")
        report = self.load.connect(self.size.members / MIN_JOINS_PER_SECOND + 30)
        planned = self.size.members
        self.facts |= {
            "joined": report.joined,
            "failed": report.failed,
            "ramp, s": report.connect_seconds,
            "joins a second": report.joined / max(1e-9, report.connect_seconds),
            "p99 of joining, ms": report.join_p99_ms,
            "joins asked for again": report.retries,
            "stopped by": why_stopped(report, planned, self.options.floor_mib),
        }
        self.good = report.joined == planned and not report.failed
        print(f"{report.joined:,} of {planned:,} joined, {report.failed} failed {report.last_error}", flush=True)
        return report

    def _rest(self, joined: Report, before: tuple[int, int], kernel: KernelMemory) -> None:
        self.seen.mark("settle")
        self.load.idle(SETTLE_SECONDS)
        self.seen.mark("idle")
        still = self.load.idle(self.options.idle_seconds)
        after, now = self._pss(), kernel_memory()
        members = joined.joined
        self.facts |= {
            "bytes of PSS a member, workers": (after[0] - before[0]) / members,
            "bytes of PSS a member, workers with nobody included": after[0] / members,
            "MiB of parent and store": sum(after[1:]) / 2**20,
            "kernel bytes a member, both ends": (
                now.slab_bytes + now.buffer_bytes - kernel.slab_bytes - kernel.buffer_bytes
            )
            / members,
            "cut off while idle": joined.joined - still.joined,
        }

    def _talk(self, joined: Report) -> None:
        self.seen.mark("messages")
        self.load.begin_count()
        self.load.run(self.options.seconds, self.options.rate)
        report = self.load.run(LAST_SECONDS, 0.0)
        self.facts |= {
            "messages": report.sent,
            "deliveries expected": report.expected,
            "delivered": report.delivered,
            "lost": report.expected - report.delivered + report.repeats,
            "doubled": report.repeats,
            "errors": report.errors,
            "cut off": joined.joined - report.joined,
            "p50, ms": report.p50_ms,
            "p95, ms": report.p95_ms,
            "p99, ms": report.p99_ms,
            "generators late by at most, ms": report.late_ms,
            "last error": report.last_error,
        }
        self.good = self.good and report.exact and report.sent > 0 and report.joined == joined.joined


def why_stopped(report: Report, planned: int, floor_mib: int) -> str:
    """What ended the ramp."""
    if report.low_memory:
        return f"less than {floor_mib} MiB of memory were left"
    if report.failed:
        return f"connections failed: {report.last_error or 'no reason was given'}"
    if report.joined < planned:
        return "its time was over"
    return "nothing: all have joined"


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, default=1_000_000, help="at most")
    parser.add_argument("--room-size", type=int, default=ROOM_SIZE)
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second, all rooms together")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long messages are sent")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long nobody says anything")
    parser.add_argument("--floor-mib", type=int, default=1536, help="memory that stays free")
    parser.add_argument(
        "--files", type=int, default=0, help="as if a process could open so many: many workers for few members"
    )
    parser.add_argument("--server-option", action="append", default=[], help="passed on, like --batch-window=0")
    parser.add_argument("--out", type=Path, default=monitor.RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run it and print the report."""
    options = options_of(arguments)
    files = min(options.files or sys.maxsize, raise_file_limit())
    size, notes = fitting(options, files)
    print("\n".join(notes), flush=True)
    folder = monitor.new_folder("million", options.out)
    plan = Plan(
        port=0,
        rooms=size.rooms,
        members=size.room_size,
        processes=size.generators,
        sources=sources_for(size.members),
        whole_rooms=True,
        connect_batch=min(CONNECTS_UNDER_WAY, listen_backlog()),
        floor_bytes=options.floor_mib << 20,
        prefix="million",
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-million-")))
        told = (*server_options(options), f"--max-connections={files - RESERVED_FILES}")
        start_seconds = 20 + START_SECONDS_A_WORKER * size.workers
        server = stack.enter_context(
            running_server(
                data_dir,
                *told,
                workers=size.workers,
                start_seconds=start_seconds,
                stop_seconds=start_seconds,
            )
        )
        plan.port = server.port
        load = stack.enter_context(Load(plan))
        with Monitor(folder, lambda: groups_of(server, load.pids)) as seen:
            run = Run(options, size, server, load, seen)
            run.do()
        run.facts["server's options"] = " ".join(told)
        # Before the end of so many processes, which takes its time.
        print(monitor.write_results(folder, f"{run.facts['joined']:,} members", run.facts, seen))
        print(f"written to {os.path.relpath(folder)}", flush=True)
    return 0 if run.good else 1


if __name__ == "__main__":
    sys.exit(main())
