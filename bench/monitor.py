"""What a long run costs while it lasts: CPU and memory of groups of processes, and of the kernel's sockets.

    with Monitor(folder, lambda: groups_of(server, load.pids)) as monitor:
        monitor.mark("ramp")
        ...
        monitor.mark("hold")
        ...
    write_results(folder, "a run", facts, monitor)

A thread takes a sample each second: the CPU of each process, and the proportional set size (PSS) of as many of
them as make each one's turn come every ten seconds, since the kernel walks all pages of a process for it.
``samples.csv`` grows while the run lasts, so that one that is broken off leaves what it found. Fork load
generators before the monitor starts: a thread and ``fork`` do not go together.
"""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from bench import plots
from bench.processes import TICKS, Server, cpu_seconds, kernel_memory, pss_bytes
from bench.results import this_machine

SAMPLE_SECONDS = 1.0
# Each process's memory is read once in so many samples.
MEMORY_EVERY = 10
# Three hours of samples; a run that takes longer keeps the rest in its CSV alone.
MAX_SAMPLES = 10_800
RESULTS = Path(__file__).parent / "results"

Groups = Mapping[str, Sequence[int]]


class Sample(NamedTuple):
    """One look at everything.

    Attributes:
        seconds: Since the monitor started.
        cores: CPU of each group since the last sample, in cores.
        pss: Bytes of each group.
        busy_cores: CPU of the whole machine, whoever used it.
        sockets: TCP sockets of this machine, both ends of each connection.
        buffer_bytes: What the kernel has for their buffers.
        slab_bytes: The kernel's small objects: sockets, files, entries of epoll, and whatever else it caches.
        available_bytes: Memory that is left.
    """

    seconds: float
    cores: dict[str, float]
    pss: dict[str, int]
    busy_cores: float
    sockets: int
    buffer_bytes: int
    slab_bytes: int
    available_bytes: int


class Mark(NamedTuple):
    """A moment that has a name: a phase begins, something is killed."""

    seconds: float
    name: str


@dataclass(slots=True)
class Phase:
    """What one phase cost: CPU in cores, the mean and the highest sample; bytes at its end."""

    name: str
    seconds: float
    mean_cores: dict[str, float] = field(default_factory=dict)
    peak_cores: dict[str, float] = field(default_factory=dict)
    pss_bytes: dict[str, int] = field(default_factory=dict)
    sockets: int = 0
    buffer_bytes: int = 0
    slab_bytes: int = 0
    available_bytes: int = 0


def groups_of(server: Server, generators: Sequence[int] = ()) -> dict[str, list[int]]:
    """The processes of a server, and those that load it."""
    pids, store = server.pids, server.store
    workers = [pid for pid in pids if pid not in (server.process.pid, store)]
    found = {"workers": workers, "parent": [server.process.pid], "store": [store] if store else []}
    return found | ({"generators": list(generators)} if generators else {})


class Monitor:
    """See the module; a context manager that samples while it is open.

    Args:
        folder: Gets ``samples.csv``.
        groups: Tells the processes of each group, always of the same groups; asked for each sample, since
            workers come and go.
        seconds: Between two samples.
    """

    def __init__(self, folder: Path, groups: Callable[[], Groups], seconds: float = SAMPLE_SECONDS) -> None:
        self.samples: list[Sample] = []
        self.marks: list[Mark] = []
        self.errors = 0  # samples that could not be taken
        self._groups = groups
        self._seconds = seconds
        self._path = folder / "samples.csv"
        self._cpu: dict[int, float] = {}
        self._pss: dict[int, int] = {}
        self._machine = 0.0
        self._number = 0
        self._began = self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._began = self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.marks.append(Mark(time.monotonic() - self._began, "end"))

    def mark(self, name: str) -> None:
        """Something begins now."""
        self.marks.append(Mark(time.monotonic() - self._began, name))

    def phases(self) -> list[Phase]:
        """What happened from each mark to the next one, as far as there are samples in between."""
        found = []
        for begin, end in zip(self.marks, self.marks[1:], strict=False):
            inside = [one for one in self.samples if begin.seconds <= one.seconds < end.seconds]
            if inside:
                found.append(_phase(begin.name, end.seconds - begin.seconds, inside))
        return found

    def _run(self) -> None:
        with self._path.open("w", newline="") as file:
            writer = csv.writer(file)
            self._look(self._groups())  # the CPU so far is nobody's sample
            while not self._ended.wait(self._seconds):
                try:
                    sample = self._look(self._groups())
                except OSError:
                    self.errors += 1  # a process ended under our eyes
                    continue
                if file.tell() == 0:
                    writer.writerow(_columns(sample))
                writer.writerow(_row(sample))
                file.flush()
                if len(self.samples) < MAX_SAMPLES:
                    self.samples.append(sample)

    def _look(self, groups: Groups) -> Sample:
        now = time.monotonic()
        took, self._last = max(1e-3, now - self._last), now
        cores = {name: self._cpu_of(pids) / took for name, pids in groups.items()}
        machine = _busy_seconds()
        busy, self._machine = (machine - self._machine) / took, machine
        pss = self._memory(groups)
        alive = {pid for pids in groups.values() for pid in pids}
        self._cpu = {pid: used for pid, used in self._cpu.items() if pid in alive}
        kernel = kernel_memory()
        return Sample(
            now - self._began,
            cores,
            pss,
            busy,
            kernel.sockets,
            kernel.buffer_bytes,
            kernel.slab_bytes,
            kernel.available_bytes,
        )

    def _cpu_of(self, pids: Sequence[int]) -> float:
        """What these processes have used since the last sample; a new one, since it began."""
        total = 0.0
        for pid in pids:
            used = cpu_seconds([pid])
            total += max(0.0, used - self._cpu.get(pid, 0.0))
            self._cpu[pid] = max(used, self._cpu.get(pid, 0.0))
        return total

    def _memory(self, groups: Groups) -> dict[str, int]:
        known: dict[int, int] = {}
        totals: dict[str, int] = {}
        for name, pids in groups.items():
            for index, pid in enumerate(pids):
                due = index % MEMORY_EVERY == self._number % MEMORY_EVERY
                known[pid] = _pss(pid) if due or pid not in self._pss else self._pss[pid]
            totals[name] = sum(known[pid] for pid in pids)
        self._pss = known
        self._number += 1
        return totals


def _pss(pid: int) -> int:
    try:
        return pss_bytes(pid)
    except (OSError, ValueError):  # it has ended, and its memory with it
        return 0


def _busy_seconds() -> float:
    """CPU time that the machine has used since it started, all cores, that of other guests included."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def _columns(sample: Sample) -> list[str]:
    return [
        "seconds",
        *(f"{name}_cores" for name in sample.cores),
        *(f"{name}_pss_bytes" for name in sample.pss),
        *sample._fields[3:],
    ]


def _row(sample: Sample) -> list[str | int]:
    return [
        f"{sample.seconds:.2f}",
        *(f"{value:.4f}" for value in sample.cores.values()),
        *sample.pss.values(),
        f"{sample.busy_cores:.3f}",
        *sample[4:],
    ]


def _phase(name: str, seconds: float, samples: Sequence[Sample]) -> Phase:
    groups, last = samples[-1].cores, samples[-1]
    return Phase(
        name,
        seconds,
        {group: sum(one.cores[group] for one in samples) / len(samples) for group in groups},
        {group: max(one.cores[group] for one in samples) for group in groups},
        last.pss,
        last.sockets,
        last.buffer_bytes,
        last.slab_bytes,
        last.available_bytes,
    )


# The results of a run -------------------------------------------------------------------------------


def new_folder(name: str, root: Path = RESULTS) -> Path:
    """A fresh folder for the results of one run, ``bench/results/<date-time>-<name>``."""
    folder = root / f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}"
    folder.mkdir(parents=True)
    return folder


def write_results(folder: Path, title: str, facts: Mapping[str, Any], monitor: Monitor) -> str:
    """Write ``summary.json``, ``summary.txt`` and the plots; returns the text.

    Args:
        folder: Of this run.
        title: What the run was, for people.
        facts: What it found, in the order in which it is to be read.
        monitor: After its end.

    Raises:
        ImportError: Matplotlib is missing; the files without plots are there then.
    """
    phases = monitor.phases()
    summary = {
        "title": title,
        "machine": this_machine(),
        "facts": dict(facts),
        "marks": [mark._asdict() for mark in monitor.marks],
        "phases": [{name: getattr(phase, name) for name in Phase.__slots__} for phase in phases],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, default=str) + "\n")
    text = _text(title, facts, phases)
    (folder / "summary.txt").write_text(text)
    plots.draw_run(folder, title, monitor.samples, monitor.marks)
    return text


def _text(title: str, facts: Mapping[str, Any], phases: Sequence[Phase]) -> str:
    width = max(map(len, facts), default=0)
    lines = [title, "", *(f"{name:{width}}  {_told(value)}" for name, value in facts.items()), ""]
    for phase in phases:
        lines.append(f"{phase.name} ({phase.seconds:.0f} s)")
        for group, mean in phase.mean_cores.items():
            lines.append(
                f"  {group:<12} {mean:6.3f} cores, at most {phase.peak_cores[group]:6.3f}; "
                f"{phase.pss_bytes[group] / 2**20:10,.1f} MiB"
            )
        lines.append(
            f"  kernel: {phase.sockets:,} TCP sockets, buffers {phase.buffer_bytes / 2**20:,.1f} MiB, "
            f"slab {phase.slab_bytes / 2**20:,.1f} MiB, {phase.available_bytes / 2**30:.2f} GiB are left"
        )
    return "\n".join(lines) + "\n"


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
