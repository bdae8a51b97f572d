"""``python -m bench.storm``: workers are killed, and everybody who was on them comes back at once.

Twice, on a server with as many members as one worker may hold: all workers but one are killed with -9, then all
of them. People keep talking. Whoever is cut off comes back as a client does, after a pause with full jitter,
with its session and with ``after``; each seq is compared with the one before the cut. Told are the times until
50 %, 99 % and 100 % have joined again; whether anything was lost or doubled; how ``/readyz`` of the worker that
stayed answered meanwhile, on a connection of its own; and the delays of the members who were not cut off.

At the end each room is spoken in once more, so that a lost end would be a hole, and all members of a room must
have got the same last seq. A message whose sender was cut off before it was stored counts as not stored: a real
client sends it again. The exit status is 1 when anything was lost or doubled, or somebody did not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import monitor
from bench.load import Load, Plan, Report, sources_for
from bench.million import GENERATOR_FILES, ended_by_sigterm
from bench.monitor import Monitor, groups_of
from bench.processes import Server, running_server
from tornadochat.processes import raise_file_limit
from tornadochat.worker import RESERVED_FILES

ROOM_SIZE = 50
# Everybody is back within this time, or does not come back: a client's longest pause is 30 s.
RETURN_SECONDS = 120.0
CONNECT_SECONDS = 120.0
QUIET_SECONDS = 2.0
SLICE_SECONDS = 0.5
# A probe that is not answered within this time counts as a failure.
PROBE_SECONDS = 5.0
PROBE_PAUSE_SECONDS = 0.05
# Connections that are made in search of one to another worker.
MAX_TRIES = 200


class Probe:
    """Asks one worker for ``/readyz`` again and again, on one connection; a context manager.

    Attributes:
        slot: Of the worker at the other end.
        took: Seconds of each answer with status 200.
        failures: What else came.
    """

    def __init__(self, port: int, keep: bool = True) -> None:
        self.took: list[float] = []
        self.failures: list[str] = []
        self._port = port
        self._keep = keep
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._connection = self._open()
        self.slot = self._ask()

    def _open(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PROBE_SECONDS)

    def _ask(self) -> int:
        self._connection.request("GET", "/readyz")
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        return int(answer.headers["X-Worker"])

    def _run(self) -> None:
        while not self._ended.wait(PROBE_PAUSE_SECONDS):
            begin = time.monotonic()
            try:
                if not self._keep:
                    self._connection.close()
                    self._connection = self._open()
                self._ask()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._connection.close()
            else:
                self.took.append(time.monotonic() - begin)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()


@dataclass(slots=True)
class Storm:
    """What came of one kill; times in seconds since it, delays in milliseconds.

    Attributes:
        stored: Messages that were numbered, all rooms together.
        uneven: Rooms whose members did not all get the same last seq.
        stayed_p99_ms: Of the members who were not cut off; 0 where there were none.
        ready_ms: The slowest answer of ``/readyz`` by the worker that stayed, or by any where all were killed.
    """

    killed: int
    members: int
    cut: int = 0
    back: int = 0
    times: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    sent: int = 0
    stored: int = 0
    expected: int = 0
    delivered: int = 0
    holes: int = 0
    repeats: int = 0
    truncated: int = 0
    errors: int = 0
    failed: int = 0
    uneven: int = 0
    stayed_p99_ms: float = 0.0
    cut_p99_ms: float = 0.0
    probes: int = 0
    probes_failed: int = 0
    ready_ms: float = 0.0
    last_failure: str = ""

    @property
    def exact(self) -> bool:
        """Whether everybody came back and got everything once."""
        wrong = self.holes + self.repeats + self.truncated + self.errors + self.failed + self.uneven
        return self.back == self.cut > 0 and self.delivered == self.expected > 0 and not wrong

    def facts(self, name: str) -> dict[str, Any]:
        """For the report."""
        return {
            f"{name}: workers killed": self.killed,
            f"{name}: cut off": f"{self.cut:,} of {self.members:,}",
            **{f"{name}: {share} joined again, s": took for share, took in self.times.items()},
            f"{name}: tries to connect again": self.retries,
            f"{name}: sent, and stored": f"{self.sent:,}, {self.stored:,}",
            f"{name}: deliveries expected, and made": f"{self.expected:,}, {self.delivered:,}",
            f"{name}: holes, doubled, truncated, errors": (
                f"{self.holes}, {self.repeats}, {self.truncated}, {self.errors}"
            ),
            **({f"{name}: p99 of those who stayed, ms": self.stayed_p99_ms} if self.cut < self.members else {}),
            f"{name}: p99 of those who were cut, pauses included, ms": self.cut_p99_ms,
            f"{name}: /readyz asked, failed, slowest answer in ms": (
                f"{self.probes}, {self.probes_failed}, {self.ready_ms:.0f} {self.last_failure}".strip()
            ),
        }


def probe_of(port: int, slot: int | None) -> Probe:
    """A probe whose connection goes to one worker; the kernel draws, so several are tried.

    Raises:
        RuntimeError: None of many did.
    """
    for _ in range(MAX_TRIES):
        probe = Probe(port, keep=slot is not None)
        if slot is None or probe.slot == slot:
            return probe
        probe._connection.close()
    raise RuntimeError(f"no connection went to worker {slot}")


def kill(server: Server, but: int | None) -> int:
    """Kill all workers, but not the one of this slot; returns how many."""
    workers = sorted(server.workers)  # forked in the order of their slots
    doomed = [pid for slot, pid in enumerate(workers) if slot != but]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return len(doomed)


def measure(server: Server, load: Load, rate: float, but: int | None, seen: Monitor | None = None) -> Storm:
    """One storm.

    Args:
        server: With ``--debug-headers``; its workers are those that it started with where ``but`` is given.
        load: With members that come back, all joined.
        rate: Messages a second, all rooms together.
        but: Slot of the worker that stays; None kills all.
        seen: Gets the marks.
    """
    load.idle(QUIET_SECONDS)  # whatever was under way arrives
    load.begin_count()
    before = load.heads()
    members = load.idle(0.1).joined
    with probe_of(server.port, but) as probe:
        load.run(QUIET_SECONDS, rate)
        if seen is not None:
            seen.mark("kill all" if but is None else "kill all but one")
        at = time.monotonic()
        storm = Storm(kill(server, but), members)
        report = load.run(SLICE_SECONDS, rate)
        while report.away and time.monotonic() - at < RETURN_SECONDS:
            report = load.run(SLICE_SECONDS, rate)
        if seen is not None:
            seen.mark("all are back")
    load.run(load.plan.rooms / rate + QUIET_SECONDS, rate)  # a word in each room
    report = load.run(QUIET_SECONDS, 0.0)
    _fill(storm, report, before, load, at)
    storm.probes, storm.probes_failed = len(probe.took) + len(probe.failures), len(probe.failures)
    storm.ready_ms = max(probe.took, default=0.0) * 1000
    storm.last_failure = probe.failures[-1] if probe.failures else ""
    return storm


def _fill(storm: Storm, report: Report, before: Sequence[tuple[int, int]], load: Load, at: float) -> None:
    after = load.heads()
    stored = [high - old for (_, high), (_, old) in zip(after, before, strict=True)]
    storm.cut, storm.back = report.closed, len(report.returns)
    for share in (0.5, 0.99, 1.0):
        place = math.ceil(share * storm.cut) - 1
        if 0 <= place < len(report.returns):
            storm.times[f"{share:.0%}"] = report.returns[place] - at
    storm.retries, storm.failed = report.retries, report.failed
    storm.sent, storm.stored = report.sent, sum(stored)
    storm.expected = sum(stored) * load.plan.members
    storm.delivered, storm.holes, storm.repeats = report.delivered, report.holes, report.repeats
    storm.truncated, storm.errors = report.truncated, report.errors
    storm.uneven = sum(low != high for low, high in after)
    storm.stayed_p99_ms, storm.cut_p99_ms = report.p99_ms, report.cut_p99_ms


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, default=0, help="0: as many as one worker may hold")
    parser.add_argument("--room-size", type=int, default=ROOM_SIZE)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second, all rooms together")
    parser.add_argument("--out", type=Path, default=monitor.RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Make both storms and print the report."""
    options = options_of(arguments)
    files = raise_file_limit()
    # One connection of the probe, and one that is being closed.
    members = options.members or files - max(RESERVED_FILES + 2, GENERATOR_FILES)
    rooms = max(1, members // options.room_size)
    folder = monitor.new_folder("storm", options.out)
    storms: dict[str, Storm] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-storm-")))
        told = ("--drain-seconds=0.5", "--debug-headers", "--log-level=error")
        server = stack.enter_context(running_server(data_dir, *told, workers=options.workers))
        plan = Plan(
            port=server.port,
            rooms=rooms,
            members=options.room_size,
            processes=2,
            sources=sources_for(members),
            whole_rooms=True,
            resumes=True,
            prefix="storm",
        )
        load = stack.enter_context(Load(plan))
        with Monitor(folder, lambda: groups_of(server, load.pids)) as seen:
            seen.mark("ramp")
            joined = load.connect(CONNECT_SECONDS)
            if joined.joined != rooms * options.room_size:
                print(f"{joined.joined} of {rooms * options.room_size} joined: {joined.last_error}")
                return 1
            seen.mark("messages")
            calm = load.send(5.0, options.rate)
            for name, but in (("all but one", 0), ("all", None)):
                storms[name] = measure(server, load, options.rate, but, seen)
    facts: dict[str, Any] = {"members": joined.joined, "rooms": rooms, "p99 before, ms": calm.p99_ms}
    for name, storm in storms.items():
        facts |= storm.facts(name)
    print(monitor.write_results(folder, f"reconnect storm of {joined.joined:,} members", facts, seen))
    print(f"written to {os.path.relpath(folder)}")
    stayed = storms["all but one"].probes_failed == 0
    return 0 if stayed and all(storm.exact for storm in storms.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
