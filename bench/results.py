"""What a comparison found, and the JSON file that keeps it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one system; all delays in milliseconds, 0 where nobody measures them (the floors)."""

    rate: float
    sent: int
    expected: int
    delivered: int
    disconnected: int
    errors: int
    cpu_us: float
    p50_ms: float
    p99_ms: float
    late_ms: float

    @property
    def exact(self) -> bool:
        """Whether everybody got everything, by a second after the end."""
        return self.delivered == self.expected and not self.errors

    @property
    def lost(self) -> float:
        """Share of the deliveries that were not there a second after the end; below 0 for repeats."""
        return 1 - self.delivered / self.expected if self.expected else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Ours and another system under the same load, one right after the other."""

    shape: str
    system: str
    ours: Sample
    other: Sample

    @property
    def ratio(self) -> float:
        """CPU of ours for each delivery over the other's."""
        return self.ours.cpu_us / self.other.cpu_us if self.other.cpu_us else 0.0


@dataclass(frozen=True, slots=True)
class Joining:
    """What connections cost all processes of a system: CPU-microseconds and bytes of PSS for each."""

    system: str
    layout: str
    connections: int
    cpu_us: float
    pss_bytes: float


@dataclass(frozen=True, slots=True)
class Saturation:
    """The highest rate that a system held in one layout, 0 for none; every load that was tried."""

    layout: str
    members: int
    system: str
    rate: float
    limit: str
    samples: tuple[Sample, ...]


@dataclass(slots=True)
class Results:
    """A whole comparison.

    Attributes:
        machine: Where it ran.
        skipped: Systems that could not run, or not in one shape (``system in shape``), and why.
    """

    machine: dict[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    joinings: list[Joining] = field(default_factory=list)
    saturations: list[Saturation] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        save_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote."""
        data = json.loads(path.read_text())
        return cls(
            machine=data["machine"],
            pairs=[
                Pair(one["shape"], one["system"], Sample(**one["ours"]), Sample(**one["other"]))
                for one in data["pairs"]
            ],
            joinings=[Joining(**one) for one in data["joinings"]],
            saturations=[
                Saturation(**{**one, "samples": tuple(Sample(**sample) for sample in one["samples"])})
                for one in data["saturations"]
            ],
            skipped=data["skipped"],
        )

    @classmethod
    def together(cls, runs: Sequence[Results]) -> Results:
        """Several runs as one, for what takes too long in one go.

        Raises:
            ValueError: They are not of one machine.
        """
        if any(run.machine != runs[0].machine for run in runs):
            raise ValueError("these results are of different machines; compare each by itself")
        return cls(
            machine=runs[0].machine,
            pairs=[pair for run in runs for pair in run.pairs],
            joinings=[joining for run in runs for joining in run.joinings],
            saturations=[saturation for run in runs for saturation in run.saturations],
            skipped={name: reason for run in runs for name, reason in run.skipped.items()},
        )


def save_json(data: Mapping[str, object], path: Path) -> None:
    """Write a results file, whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(data, indent=1) + "\n")
    fresh.replace(path)


def this_machine() -> dict[str, str]:
    """What matters of the machine for whoever reads the figures."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"Linux {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


class Quartiles(NamedTuple):
    """The middle of some values, and where the middle half of them lies."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles of one value or more, the ends included."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(low, statistics.median(values), high)
