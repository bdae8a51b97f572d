"""``python -m bench.stress --users 80000``: as many Locust users as that, joined at once, and everything counted.

Starts the server (or a peer, or takes the one at ``--host``), a Locust master and as many workers as the limit of
open files asks for; ramps up as fast as the server lets people in, holds, ramps down, and writes
``bench/results/<date>/``: Locust's CSV and HTML report, CPU and memory of server, store and load over time with
plots, and a summary. All of it ends with this process, however it ends.

The exit status is 1 when anything was lost, doubled or out of order, or somebody could not come in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import native, peers
from bench.dialects import DIALECTS
from bench.load import CONNECTIONS_PER_PROCESS
from bench.million import START_SECONDS_A_WORKER, workers_for
from bench.monitor import RESULTS, Groups, Monitor, groups_of, new_folder, write_results
from bench.processes import START_SECONDS, free_port, loopback, pss_bytes, running_server, tree
from bench.tally import Tally
from tornadochat.processes import end_with_parent, raise_file_limit
from tornadochat.worker import RESERVED_FILES

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
# Two, so that the run is a distributed one at any size.
MIN_LOAD_WORKERS = 2
LOOK_SECONDS = 0.2
# Above what a run is meant to take; with it a run that hangs ends too.
SLACK_SECONDS = 400.0
STOP_SECONDS = 60.0
WORKERS_WAIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Target:
    """What is loaded: where it is, what it speaks, and its processes by group."""

    host: str
    dialect: str
    groups: Callable[[], dict[str, list[int]]]

    def pss(self) -> int:
        """Bytes of all its processes but the store."""
        return sum(pss_bytes(pid) for name, pids in self.groups().items() if name != "store" for pid in pids)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=80_000)
    parser.add_argument("--hold", type=float, default=180.0, help="seconds for which all of them are there")
    parser.add_argument(
        "--spawn-rate",
        type=float,
        default=2000.0,
        help="users that may come in a second; a server that is slower makes them wait outside",
    )
    parser.add_argument("--ramp-down", type=float, default=4000.0, help="users that leave in a second at the end")
    parser.add_argument("--room-size", type=int, default=50)
    parser.add_argument("--messages-per-minute", type=float, default=1.0, help="of each user")
    parser.add_argument("--text-bytes", type=int, default=96)
    parser.add_argument(
        "--leave-share", type=float, default=0.0, help="share of turns in which a user goes and returns"
    )
    parser.add_argument("--connects-at-a-time", type=int, default=50, help="of each Locust worker")
    parser.add_argument("--settle", type=float, default=30.0, help="seconds that the last deliveries get")
    parser.add_argument("--workers", type=int, default=0, help="of the server; 0 is as many as are needed")
    parser.add_argument("--load-workers", type=int, default=0, help="of Locust; 0 is as many as are needed")
    parser.add_argument("--server-option", action="append", default=[], help="passed on, like --redis=...")
    parser.add_argument("--peer", default="", choices=["", *peers.PEERS], help="load this one instead of ours")
    parser.add_argument(
        "--host", default="", help="load what runs there, within 127.0.0.0/8, like http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--dialect", default="tornadochat", choices=sorted(DIALECTS), help="of what runs at --host"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the folders of results")
    options = parser.parse_args(arguments)
    if options.host:
        try:
            loopback(options.host)
        except ValueError as error:
            parser.error(str(error))
    if options.users < 1 or options.room_size < 1:
        parser.error("there must be users, and rooms for them")
    return options


def server_workers(users: int, files: int, cores: int) -> tuple[int, str]:
    """How many workers the server needs for so many users, and why.

    Args:
        files: That one process may open.
    """
    workers = max(cores, workers_for(users, files - RESERVED_FILES))
    if workers > cores:
        why = f"a process may open {files:,} files here, so {cores} for {cores} cores would hold too few members"
    else:
        why = f"one for each core; {files:,} files in each are enough"
    return workers, why


def load_workers(users: int, files: int) -> tuple[int, str]:
    """How many Locust workers are needed, and why."""
    each = min(CONNECTIONS_PER_PROCESS, files - RESERVED_FILES)
    return max(MIN_LOAD_WORKERS, -(-users // each)), f"at most {each:,} users in each, one file for each user"


@contextmanager
def target_of(options: argparse.Namespace, workers: int, folder: Path) -> Iterator[Target]:
    """Start what is to be loaded; it has ended when the context is left."""
    if options.host:
        yield Target(options.host, options.dialect, dict)
    elif options.peer:
        with peers.start(options.peer, workers) as peer:
            names = ("server", "store")
            roots = dict(zip(names, peer.roots, strict=False))
            yield Target(
                f"http://127.0.0.1:{peer.port}",
                peer.dialect,
                lambda: {name: tree(root) for name, root in roots.items()},
            )
    else:
        with running_server(
            folder / "data",
            "--drain-seconds=0.5",
            f"--gather={workers > len(os.sched_getaffinity(0))}",
            *options.server_option,
            workers=workers,
            start_seconds=START_SECONDS + workers * START_SECONDS_A_WORKER,
            tied=True,
        ) as server:
            yield Target(f"http://127.0.0.1:{server.port}", "tornadochat", lambda: groups_of(server))


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the load: out of reach of the terminal's Ctrl-C, and dead when this one is."""
    parent = os.getpid()
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent),
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


class Load:
    """Locust, headless and distributed; a context manager that ends it.

    Attributes:
        outcome: What its users told at the end; None before.
    """

    def __init__(self, options: argparse.Namespace, target: Target, workers: int, folder: Path) -> None:
        self.outcome: Tally | None = None
        self._progress = folder / "progress.jsonl"
        self._progress.touch()
        self._read = 0
        self._stack = ExitStack()
        port = free_port()
        locust = [sys.executable, "-P", "-m", "locust", "-f", str(LOCUSTFILE), "DenseChatUser"]
        lead = [
            *("--master", "--master-bind-host=127.0.0.1", f"--master-bind-port={port}", "--headless"),
            *(
                f"--expect-workers={workers}",
                f"--expect-workers-max-wait={WORKERS_WAIT_SECONDS}",
                "--only-summary",
            ),
            *(f"--csv={folder / 'locust'}", "--csv-full-history", f"--html={folder / 'locust.html'}"),
            *(f"--host={target.host}", f"--dialect={target.dialect}", f"--progress={self._progress}"),
            *(f"--users={options.users}", f"--spawn-rate={options.spawn_rate}", f"--hold={options.hold}"),
            *(
                f"--settle={options.settle}",
                f"--ramp-down={options.ramp_down}",
                f"--room-size={options.room_size}",
            ),
            *(f"--messages-per-minute={options.messages_per_minute}", f"--text-bytes={options.text_bytes}"),
            *(f"--leave-share={options.leave_share}", f"--connects-at-a-time={options.connects_at_a_time}"),
        ]
        follow = ["--worker", "--master-host=127.0.0.1", f"--master-port={port}"]
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            self.master = start(process([*locust, *lead], folder / "locust-master.log"))
            self.workers = [
                start(process([*locust, *follow], folder / f"locust-worker-{number}.log"))
                for number in range(workers)
            ]
            self._stack = stack.pop_all()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        """Those of the workers; the master only adds up."""
        return [each.pid for each in self.workers]

    def news(self) -> list[str]:
        """Phases that have begun since the last call."""
        text = self._progress.read_text()[self._read :]
        lines = text[: text.rfind("\n") + 1]
        self._read += len(lines)
        found = [json.loads(line) for line in lines.splitlines()]
        for each in found:
            if "outcome" in each:
                self.outcome = Tally.sum([each["outcome"]])
        return [each["phase"] for each in found if "phase" in each]


def watch(load: Load, monitor: Monitor, seconds: float) -> None:
    """Until Locust has ended: mark the phases.

    Raises:
        TimeoutError: It takes too long.
        RuntimeError: One of its workers has ended before the outcome is known.
    """
    deadline = time.monotonic() + seconds
    while load.master.poll() is None:
        for phase in load.news():
            print(f"{time.strftime('%H:%M:%S')} {phase}", flush=True)
            monitor.mark(phase)
        dead = [each for each in load.workers if each.poll() is not None]
        if dead and load.outcome is None:
            raise RuntimeError(f"a worker of Locust has ended with {dead[0].returncode}; see its log")
        if time.monotonic() > deadline:
            raise TimeoutError(f"Locust has not ended within {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
    load.news()


def costs(monitor: Monitor, users: int, before: int) -> dict[str, Any]:
    """What it cost while everybody was there, from the monitor's samples.

    Args:
        before: Bytes of the server before anybody came.
    """
    hold = next((phase for phase in monitor.phases() if phase.name == "hold"), None)
    if hold is None:
        return {}
    found: dict[str, Any] = {f"{name}, cores": cores for name, cores in hold.mean_cores.items()}
    found["whole machine, cores"] = _mean_busy(monitor)
    server = sum(size for name, size in hold.pss_bytes.items() if name not in ("store", "generators"))
    if server:
        found["server, MiB"] = server / 2**20
        found["server, bytes a user above what it had before"] = (server - before) / users
    for name in ("store", "generators"):
        if name in hold.pss_bytes:
            found[f"{name}, MiB"] = hold.pss_bytes[name] / 2**20
    return found


def _mean_busy(monitor: Monitor) -> float:
    times = {mark.name: mark.seconds for mark in monitor.marks}
    inside = [one.busy_cores for one in monitor.samples if times["hold"] <= one.seconds < times["settle"]]
    return sum(inside) / len(inside) if inside else 0.0


def ramp_seconds(monitor: Monitor) -> float:
    """From the first user's start until all had joined; 0 where they never had."""
    times = {mark.name: mark.seconds for mark in monitor.marks}
    return times["hold"] - times["ramp"] if "hold" in times and "ramp" in times else 0.0


def run(options: argparse.Namespace) -> tuple[Tally | None, Path]:
    """One run; its outcome, None where it came to none, and the folder of its results."""
    files, cores = raise_file_limit(), len(os.sched_getaffinity(0))
    needed, why = server_workers(options.users, files, cores)
    loads, load_why = load_workers(options.users, files)
    workers, loads = options.workers or needed, options.load_workers or loads
    print(f"{workers} workers of the server ({why}); {loads} of Locust ({load_why})", flush=True)
    native.load("_loadgen")  # compiled once, and before anything is measured
    folder = new_folder(f"{options.peer or 'stress'}-{options.users}", options.out)
    began = time.monotonic()
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-stress-")))
        target = stack.enter_context(target_of(options, workers, data))
        before = target.pss()
        load = stack.enter_context(Load(options, target, loads, folder))

        def groups() -> Groups:
            return {**target.groups(), "generators": load.pids, "locust master": [load.master.pid]}

        monitor = stack.enter_context(Monitor(folder, groups))
        seconds = 4 * options.users / options.spawn_rate + options.hold + SLACK_SECONDS
        watch(load, monitor, seconds)
        status = load.master.returncode
    found = load.outcome
    facts: dict[str, Any] = {"workers of the server": workers, "why": why, "workers of Locust": loads}
    facts |= found.facts() if found is not None else {"broken off": f"Locust ended with {status}"}
    ramp = ramp_seconds(monitor)
    facts |= {"ramp, s": ramp, "joins a second": options.users / ramp if ramp else 0.0}
    facts |= costs(monitor, options.users, before)
    facts |= {"status of Locust": status, "whole run, s": time.monotonic() - began}
    title = (
        f"{options.users:,} users of {options.peer or 'tornadochat'} in rooms of {options.room_size}, "
        f"{options.messages_per_minute:g} messages a minute from each, {options.hold:g} s"
    )
    print(write_results(folder, title, facts, monitor))
    print(f"results are in {folder}")
    return (found if found is not None and found.clean and status == 0 else None), folder


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 only if nothing went wrong."""
    options = options_of(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)  # SIGINT too: a shell that starts it in the background has it ignored
    try:
        found, _folder = run(options)
    except (peers.Unavailable, TimeoutError, RuntimeError) as error:
        print(f"the run was broken off: {error}", file=sys.stderr)
        return 1
    return 0 if found is not None else 1


if __name__ == "__main__":
    sys.exit(main())
