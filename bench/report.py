"""The tables of a comparison in Markdown, for the terminal and for docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.results import Joining, Pair, Results, Sample, quartiles
from bench.shapes import SHAPES
from bench.systems import FLOORS, OURS, TITLES

BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
HEAD = """# What it costs, next to others

Measured by `python -m bench.compare --write-docs`, which writes everything below; `--help` tells what else it
can measure.

"""
METHOD = """Each system is the smallest same chat that its own documentation recommends for production
(`bench/peers`), two worker processes, Redis (Valkey) between them where it needs one, 96-byte texts, loopback.
Ours also keeps a log of every room, in a store with an append-only file; of the others only nchan keeps
messages, in memory. Our frames are larger, since they carry who, when and the place in the log. Ours and the
other system get the same load one right after the other, several times; the ratio is the median of these pairs,
with quartiles. CPU is that of all server processes, Redis included. Late or lost is what had not come a second
after the last message. The floors are a bare C loop that sends ready-made frames: nobody gets below them but by
fewer sends. floor-store is two such processes which first have our script keep and publish each message."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first one to the right."""
    lines = [" | ".join(heads), " | ".join(["---"] + ["---:"] * (len(heads) - 1))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _middle(values: Iterable[float], digits: int) -> str:
    found = [value for value in values if value]
    return f"{statistics.median(found):,.{digits}f}" if found else "-"


def _costs(samples: Sequence[Sample]) -> list[str]:
    lost = statistics.median(sample.lost for sample in samples)
    gone = max(sample.disconnected for sample in samples)
    return [
        _middle((sample.p50_ms for sample in samples), 1),
        _middle((sample.p99_ms for sample in samples), 1),
        ("none" if all(sample.exact for sample in samples) else f"{lost:.2%}")
        + (f", {gone:,} disconnected" if gone else ""),
    ]


def _ratio(pairs: Sequence[Pair]) -> str:
    found = quartiles([pair.ratio for pair in pairs])
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def pairs_table(pairs: Sequence[Pair]) -> str:
    """All pairs of one shape, cheapest system first."""
    by_system: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_system.setdefault(pair.system, []).append(pair)

    ours = [pair.ours for pair in pairs]
    cost = {name: statistics.median(pair.other.cpu_us for pair in some) for name, some in by_system.items()}
    cost[OURS] = statistics.median(sample.cpu_us for sample in ours)
    rows = []
    for name in sorted(cost, key=lambda name: (name not in FLOORS, cost[name])):
        samples = ours if name == OURS else [pair.other for pair in by_system[name]]
        ratio = "1" if name == OURS else _ratio(by_system[name])
        rows.append([TITLES[name], f"{cost[name]:.2f}", ratio, *_costs(samples)])
    return table(("system", "CPU, us a delivery", "ours / it", "p50, ms", "p99, ms", "late or lost"), rows)


def joinings_table(joinings: Sequence[Joining]) -> str:
    """What a connection costs, for each number of connections; medians over the times it was measured."""
    counts = sorted({one.connections for one in joinings})
    names = sorted({one.system for one in joinings}, key=lambda name: (name != OURS, list(TITLES).index(name)))
    rows = []
    for name in names:
        row = [TITLES[name]]
        for count in counts:
            some = [one for one in joinings if one.system == name and one.connections == count]
            row += [_middle((one.cpu_us for one in some), 0), _middle((one.pss_bytes for one in some), 0)]
        rows.append(row)
    heads = [head for count in counts for head in (f"CPU, us, of {count:,}", f"PSS, bytes, of {count:,}")]
    return table(["system", *heads], rows)


def saturation_table(results: Results) -> str:
    """The highest rate of each system, in deliveries a second."""
    layouts = list(dict.fromkeys(one.layout for one in results.saturations))
    found = {(one.system, one.layout): one for one in results.saturations}
    rows = []
    for name in dict.fromkeys(one.system for one in results.saturations):
        row = [TITLES[name]]
        for layout in layouts:
            one = found.get((name, layout))
            row.append(f"{one.rate * one.members:,.0f} ({one.limit})" if one else "-")
        rows.append(row)
    return table(["system", *layouts], rows)


def tables(results: Results) -> str:
    """All tables that there are results for, with their headings."""
    parts = []
    for name in dict.fromkeys(pair.shape for pair in results.pairs):
        pairs = [pair for pair in results.pairs if pair.shape == name]
        parts += [f"### {SHAPES[name].title}", pairs_table(pairs)]
    if results.saturations:
        parts += [
            "### Highest rate, in deliveries a second, with p99 below 250 ms and nothing lost",
            saturation_table(results),
        ]
    if results.joinings:
        parts += [
            "### To connect and join, and to be there: for each connection",
            joinings_table(results.joinings),
        ]
    if results.skipped:
        parts.append("\n".join(f"- {name} was left out: {reason}" for name, reason in results.skipped.items()))
    return "\n\n".join(parts)


def write_docs(results: Results, path: Path, plots: Sequence[str]) -> None:
    """Put the tables and plots between the markers of a document; it is made where it is missing.

    Args:
        plots: Paths of the plots, from the document's folder.
    """
    images = "\n".join(f"![{Path(plot).stem.replace('-', ' ')}]({plot})" for plot in plots)
    if not path.exists():
        path.write_text(f"{HEAD}{BEGIN}\n{END}\n")
    parts = [part for part in (METHOD, place(results.machine), tables(results), images) if part]
    write_between(path, (BEGIN, END), parts)


def place(machine: Mapping[str, str]) -> str:
    """Where it was measured, of ``bench.results.this_machine``."""
    return (
        f"{machine['cores']} cores, {machine['memory']}, {machine['system']}, Python {machine['python']}; "
        "the load generator runs on the same cores."
    )


def write_between(path: Path, marks: tuple[str, str], parts: Sequence[str]) -> None:
    """Put paragraphs between two marks of a document, in the place of what was there.

    Raises:
        ValueError: The document has no such marks.
    """
    before, begin, rest = path.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{path} has no marks {marks[0]} and {marks[1]}")
    path.write_text(before + begin + "\n\n" + "\n\n".join(parts) + "\n\n" + end + after)
