"""``python -m bench.compare``: ours next to other servers and the floors of the machine, in pairs.

    python -m bench.compare --shapes sparse,busy,small
    python -m bench.compare --shapes busy --systems socketio,websockets --saturation
    python -m bench.compare --read bench/results/compare.json bench/results/more.json --write-docs

For each shape and each other system both stand with their rooms full, and the same load goes to ours, to the
other, to ours, to the other ...; absolute times of a shared machine mean little, so that the ratios of these
pairs are compared: their median and quartiles. CPU is that of all processes of a server, its Redis included.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import peers, plots, report
from bench.peers import Unavailable
from bench.results import Pair, Results, this_machine
from bench.saturation import highest_rate
from bench.shapes import SHAPES, Shape
from bench.systems import FLOORS, OURS, Seat, session

CHECKOUT = Path(__file__).resolve().parent.parent
# One process alone is compared by how many users it carries: ``bench.capacity``.
OTHERS = (*FLOORS, *(name for name, peer in peers.PEERS.items() if not peer.single))
# A system that cannot run, or ends in the middle, is left out; the others go on.
FAILURES = (Unavailable, RuntimeError, OSError, EOFError)
# Rooms that are filled where memory is taken over the number of connections.
MEMORY_ROOM = 100


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=_names(SHAPES), default=["sparse", "busy", "small"])
    parser.add_argument("--systems", type=_names(OTHERS), default=list(OTHERS), help="other than ours")
    parser.add_argument("--pairs", type=int, default=7, help="0 leaves them out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--saturation", action="store_true", help="find the highest rate of each system")
    parser.add_argument("--saturation-seconds", type=float, default=5.0, help="of each load that is tried")
    parser.add_argument(
        "--connections",
        type=_numbers,
        default=[],
        help="take memory at these numbers of members too, in rooms of 100",
    )
    parser.add_argument("--out", type=Path, default=CHECKOUT / "bench" / "results" / "compare.json")
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        default=[],
        help="measure nothing, take the results of earlier runs together",
    )
    parser.add_argument("--write-docs", action="store_true", help="tables and plots go to docs/performance.md")
    return parser.parse_args(arguments)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


class Comparison:
    """One run; whatever it finds is in ``results``, and in the file after each system."""

    def __init__(self, out: Path) -> None:
        self.results = Results(machine=this_machine())
        self._out = out

    def run_shape(self, shape: Shape, names: Sequence[str], pairs: int, seconds: float) -> None:
        """Ours, which stands all the time, and each other system under one shape of load."""
        with Seat(OURS, shape) as ours:
            for name in names:
                self.run_pairs(shape, ours, name, pairs, seconds)
            self.results.joinings += ours.joinings
        self.results.save(self._out)

    def run_pairs(self, shape: Shape, ours: Seat, name: str, pairs: int, seconds: float) -> None:
        """Ours and one other system in turn."""
        with ExitStack() as stack:
            try:
                other = stack.enter_context(Seat(name, shape))
            except FAILURES as error:
                self._skip(name, shape, error)
                return
            for number in range(pairs):
                mine = ours.send(shape.rate, seconds)
                try:
                    pair = Pair(shape.name, name, mine, other.send(shape.rate, seconds))
                except FAILURES as error:
                    self._skip(name, shape, error)
                    break
                self.results.pairs.append(pair)
                _tell(
                    f"{shape.name} {number + 1}/{pairs} {name}: ours {pair.ours.cpu_us:.2f} us, "
                    f"it {pair.other.cpu_us:.2f} us, p99 {pair.ours.p99_ms:.1f} and {pair.other.p99_ms:.1f} ms"
                )
            self.results.joinings += other.joinings
        self.results.save(self._out)

    def saturate(self, shape: Shape, name: str, seconds: float) -> None:
        """The highest rate of one system in the rooms of one shape."""
        try:
            with Seat(name, shape) as seat:
                found = highest_rate(seat, seconds)
        except FAILURES as error:
            self._skip(name, shape, error)
            return
        self.results.saturations.append(found)
        _tell(f"{found.layout}, {name}: {found.rate:,.0f} messages a second; above that: {found.limit}")
        self.results.save(self._out)

    def fill(self, connections: int, name: str) -> None:
        """Memory of one system with so many members."""
        shape = Shape("fill", connections // MEMORY_ROOM, MEMORY_ROOM, rate=1)
        try:
            with session(name, shape) as filled:
                if filled.joining is not None:
                    self.results.joinings.append(filled.joining)
                    _tell(f"{name}: {filled.joining.pss_bytes:,.0f} bytes for each of {connections:,}")
        except FAILURES as error:
            self._skip(name, shape, error)
        self.results.save(self._out)

    def _skip(self, name: str, shape: Shape, error: Exception) -> None:
        reason = str(error).strip()
        self.results.skipped[f"{name} in {shape.layout}"] = reason
        _tell(f"{name} is left out in {shape.layout}: {reason}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> Results:
    """Everything that the command line asks for."""
    comparison = Comparison(options.out)
    shapes = [SHAPES[name] for name in options.shapes]
    for shape in shapes:
        if options.pairs:
            comparison.run_shape(shape, options.systems, options.pairs, options.seconds)
    layouts: dict[str, Shape] = {}
    for shape in shapes if options.saturation else ():
        layouts.setdefault(shape.layout, shape)  # the search only begins with the shape's rate
    for shape in layouts.values():
        for name in (OURS, *(name for name in options.systems if name not in FLOORS)):
            comparison.saturate(shape, name, options.saturation_seconds)
    for connections in options.connections:
        for name in (OURS, *(name for name in options.systems if name not in FLOORS)):
            comparison.fill(connections, name)
    return comparison.results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when a delivery of ours was lost, doubled or out of order."""
    options = options_of(arguments)
    results = Results.together([Results.load(path) for path in options.read]) if options.read else run(options)
    print(report.tables(results))
    if options.write_docs:
        folder = CHECKOUT / "docs"
        drawn = plots.draw(results, folder / "plots")
        report.write_docs(results, folder / "performance.md", [os.path.relpath(path, folder) for path in drawn])
    return 0 if all(pair.ours.exact for pair in results.pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
