"""Plots: of a comparison (CPU and latency over the rate, memory over connections), and of a run over its time."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.results import Results, Sample
from bench.shapes import SHAPES
from bench.systems import FLOORS, OURS, TITLES

if TYPE_CHECKING:
    from bench import monitor

MIB = 2**20
FLOOR_LINES = dict(zip(FLOORS, (":", "-.", "--"), strict=True))


def prepare() -> None:
    """Set Matplotlib up for SVG files.

    Raises:
        ImportError: Matplotlib is missing; it comes with the extra ``bench``.
    """
    import matplotlib

    matplotlib.use("svg")
    # The same results give the same file, byte for byte.
    matplotlib.rcParams.update({"svg.hashsalt": "tornadochat", "svg.fonttype": "none", "font.size": 9})


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there are results for; returns the SVG files.

    Raises:
        ImportError: Matplotlib is missing; it comes with the extra ``bench``.
    """
    prepare()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for layout, systems in sorted(_by_layout(results).items()):
        name = re.sub(r"[^0-9]+", "x", layout.replace(",", "").replace("room", "").strip()).strip("x")
        for kind, label, value in (
            ("cpu", "CPU, us for each delivery", _cpu),
            ("latency", "p99 of the delay, ms", _p99),
        ):
            path = folder / f"{kind}-{name}.svg"
            series = {system: _over_rate(samples, value) for system, samples in systems.items()}
            if _plot(path, f"{layout} members", "messages a second", label, series):
                drawn.append(path)
    path = folder / "memory.svg"
    if _plot(path, "memory of all server processes", "connections", "PSS, MiB above idle", _memory(results)):
        drawn.append(path)
    return drawn


def _cpu(sample: Sample) -> float:
    return sample.cpu_us


def _p99(sample: Sample) -> float:
    return sample.p99_ms


def _by_layout(results: Results) -> dict[str, dict[str, list[Sample]]]:
    found: dict[str, dict[str, list[Sample]]] = {}
    for pair in results.pairs:
        systems = found.setdefault(SHAPES[pair.shape].layout, {})
        systems.setdefault(OURS, []).append(pair.ours)
        systems.setdefault(pair.system, []).append(pair.other)
    for one in results.saturations:
        found.setdefault(one.layout, {}).setdefault(one.system, []).extend(one.samples)
    return found


def _over_rate(samples: Iterable[Sample], value: Callable[[Sample], float]) -> list[tuple[float, float]]:
    """The median for each rate at which nothing was lost; nothing where nobody measured it."""
    by_rate: dict[float, list[float]] = {}
    for sample in samples:
        if sample.exact and value(sample):
            by_rate.setdefault(sample.rate, []).append(value(sample))
    return [(rate, statistics.median(values)) for rate, values in sorted(by_rate.items())]


def _memory(results: Results) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for one in results.joinings:
        counts = found.setdefault(one.system, {})
        counts.setdefault(one.connections, []).append(one.pss_bytes * one.connections / 2**20)
    return {
        name: [(count, statistics.median(values)) for count, values in sorted(counts.items())]
        for name, counts in found.items()
    }


def _plot(path: Path, title: str, x_label: str, y_label: str, series: dict[str, Any]) -> bool:
    """Both axes logarithmic; False where nobody was measured at two places of the x axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    series = {name: points for name, points in series.items() if points}
    if max(map(len, series.values()), default=0) < 2:
        return False  # a column of dots shows nothing that the tables do not
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in sorted(series, key=lambda name: list(TITLES).index(name)):
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1}
        if name == OURS:
            style.update(linewidth=2.5, color="black")
        elif name in FLOORS:
            style.update(linestyle=FLOOR_LINES[name], color="grey")
        axes.plot(*zip(*series[name], strict=True), label=name, **style)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})
    return True


def draw_run(
    folder: Path, title: str, samples: Sequence[monitor.Sample], marks: Sequence[monitor.Mark]
) -> list[Path]:
    """Draw CPU, memory and sockets over the time of a run, with its marks; returns the SVG files.

    Raises:
        ImportError: Matplotlib is missing; it comes with the extra ``bench``.
    """
    prepare()
    if not samples:
        return []
    cpu = {name: [one.cores[name] for one in samples] for name in samples[0].cores}
    cpu["whole machine"] = [one.busy_cores for one in samples]
    memory = {name: [one.pss[name] / MIB for one in samples] for name in samples[0].pss}
    memory["kernel: TCP buffers"] = [one.buffer_bytes / MIB for one in samples]
    memory["kernel: slab"] = [one.slab_bytes / MIB for one in samples]
    times = [one.seconds for one in samples]
    drawn = []
    for name, label, series in (
        ("cpu", "cores", cpu),
        ("memory", "MiB", memory),
        ("sockets", "TCP sockets, both ends", {"sockets": [float(one.sockets) for one in samples]}),
    ):
        drawn.append(folder / f"{name}.svg")
        _over_time(drawn[-1], title, label, times, series, marks)
    return drawn


def _over_time(
    path: Path,
    title: str,
    label: str,
    times: Sequence[float],
    series: dict[str, list[float]],
    marks: Sequence[monitor.Mark],
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(times, values, label=name, linewidth=1.2)
    axes.set(title=title, xlabel="seconds", ylabel=label, ylim=(0, None))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    for mark in marks:
        axes.axvline(mark.seconds, color="grey", linewidth=0.7, linestyle=":")
        axes.annotate(
            mark.name,
            (mark.seconds, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=7,
        )
    axes.grid(True, which="major", linewidth=0.3)
    if len(series) > 1:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})


def draw_lines(
    path: Path, x_label: str, y_label: str, series: dict[str, list[tuple[float, float, float]]]
) -> None:
    """Draw points with the straight line that was laid through each series: x, measured y, the line's y.

    Raises:
        ImportError: Matplotlib is missing; it comes with the extra ``bench``.
    """
    prepare()
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        places, measured, line = zip(*points, strict=True)
        (drawn,) = axes.plot(places, line, linewidth=1, label=name)
        axes.plot(places, measured, linestyle="", marker="o", markersize=4, color=drawn.get_color())
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
