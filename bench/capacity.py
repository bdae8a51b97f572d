"""``python -m bench.capacity``: how many users each system holds at once, before and after clustering.

    python -m bench.capacity --write-docs
    python -m bench.capacity --systems socketio --start socketio=40000
    python -m bench.capacity --read bench/results/2026-01-01/capacity.json --write-docs

A number of users is held when all are joined, no connect failed, every message was delivered once, and the 95th
percentile of the delay is below a second, with one message a minute of each user in rooms of 50. The search goes
by holds of 20 seconds; what it finds is proved for 3 minutes, and lowered where it is not held so long. Server,
store and generator share the machine's cores. One process may hold as many users as it may open files: systems of
several processes get as many workers as that asks for, systems of one stop there.

Rows that were measured at another time of the same day are kept in the results' file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import million, report, search, users
from bench.compare import CHECKOUT, FAILURES
from bench.results import save_json, this_machine
from bench.users import ROOM, Trial
from tornadochat.processes import raise_file_limit
from tornadochat.worker import RESERVED_FILES

TRIAL_SECONDS = 20.0
PROOF_SECONDS = 180.0
# Where several processes are allowed: many more than two cores carry.
MOST_USERS = 400_000
BEGIN, END = "<!-- capacity: begin -->", "<!-- capacity: end -->"


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table.

    Attributes:
        name: Of ``bench.systems``.
        title: For people.
        single: Whether it is one process (worker) and cannot be more.
        start: Users that the search begins with.
    """

    name: str
    title: str
    single: bool
    start: int


SYSTEMS = {
    "socketio-single": System("socketio-single", "Socket.IO, one process, no Redis", True, 19_900),
    "socketio": System("socketio", "Socket.IO cluster + Redis adapter", False, 52_000),
    "tornado-single": System("tornado-single", "Tornado WebSocketHandler, one process, no Redis", True, 19_900),
    "tornadochat-one": System("tornadochat", "**tornadochat**, one worker", True, 19_900),
    "tornadochat": System("tornadochat", "**tornadochat**, as many workers as needed", False, 95_000),
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one system holds.

    Attributes:
        system: Key of ``SYSTEMS``.
        users: The most that were held for the whole time, 0 for none.
        limit: What stopped it above that.
        proof: The long trial of ``users``; nothing where none was held.
        trials: All of them, in the order they were made.
        skipped: Why it could not be measured here; empty where it was.
    """

    system: str
    users: int
    limit: str
    proof: Trial | None
    trials: tuple[Trial, ...]
    skipped: str = ""

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Row:
        """From what ``dataclasses.asdict`` made of one."""
        fields = dict(data)
        fields["proof"] = Trial(**fields["proof"]) if fields["proof"] else None
        fields["trials"] = tuple(Trial(**trial) for trial in fields["trials"])
        return cls(**fields)


@dataclass(slots=True)
class Capacity:
    """The rows that there are, by system, and where and when they were measured."""

    machine: dict[str, str] = field(default_factory=dict)
    date: str = ""
    files: int = 0
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Capacity:
        """Read what ``save`` wrote."""
        data = json.loads(path.read_text())
        rows = {name: Row.of(row) for name, row in data["rows"].items()}
        return cls(data["machine"], data["date"], data["files"], rows)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        save_json(asdict(self), path)


def workers_for(connections: int, files: int, cores: int, single: bool) -> int:
    """Worker processes that so many connections ask for: one for each core, or what the file limit needs."""
    return 1 if single else max(cores, million.workers_for(connections, files - RESERVED_FILES))


def limit_of(found: search.Found, capped: str, trials: Sequence[Trial], cores: int) -> str:
    """What stopped the search.

    Args:
        capped: Why nothing larger could be tried, where all that could be was held.
    """
    worse = [trial for trial in trials if trial.users > found.size and users.complaint(trial)]
    parts = []
    if found.capped:
        parts.append(capped)
    elif worse:
        first = min(worse, key=lambda trial: (trial.users, trial.seconds))
        parts.append(f"at {first.users:,}: {users.complaint(first)}")
        whose = users.whose_limit(first, cores)
        if whose:
            parts.append(whose)
    if found.tried > found.size:
        parts.append(f"{found.tried:,} were held for the short time only")
    return "; ".join(parts)


def measure(
    name: str,
    start: int,
    growth: float,
    seconds: tuple[float, float],
    files: int,
    cores: int,
    most: int = MOST_USERS,
    try_users: Callable[[str, int, float, int], Trial] = users.run,
) -> Row:
    """Search what one system holds.

    Args:
        name: Key of ``SYSTEMS``.
        seconds: Of a short trial, and of the proof.
        files: That one process may open.
        most: No more users are tried.
        try_users: Makes one trial; see ``users.run``.
    """
    system = SYSTEMS[name]
    trials: list[Trial] = []

    def held(size: int, long: float) -> bool:
        workers = workers_for(size, files, cores, system.single)
        trial = try_users(system.name, size, long, workers)
        trials.append(trial)
        why = users.complaint(trial)
        whose = users.whose_limit(trial, cores)
        _tell(
            f"{name}: {size:,} users on {workers} workers, joined in {trial.connect_seconds:.0f} s, {long:.0f} s: "
            f"p95 {trial.p95_ms:,.0f} ms, p99 {trial.p99_ms:,.0f} ms, {trial.machine_cores:.2f} cores (server "
            f"{trial.server_cores:.2f}, store {trial.store_cores:.2f}, generator {trial.generator_cores:.2f}), "
            f"{trial.pss_bytes:,.0f} bytes a user: {why or 'held'}{f' ({whose})' if whose else ''} {trial.error}"
        )
        return not why

    short, long = seconds
    cap, capped = most, "nothing larger was tried"
    if system.single and files - RESERVED_FILES < most:
        cap, capped = files - RESERVED_FILES, f"{files:,} open files of one process"
    found = search.largest(lambda size: held(size, short), lambda size: held(size, long), start, ROOM, cap, growth)
    return Row(
        system=name,
        users=found.size,
        limit=limit_of(found, capped, trials, cores),
        proof=trials[-1] if found.size else None,
        trials=tuple(trials),
    )


def table(found: Capacity) -> str:
    """All rows in the order of ``SYSTEMS``."""
    rows = []
    for name, system in SYSTEMS.items():
        row = found.rows.get(name)
        if row is None or row.skipped:
            continue
        cells = [system.title, f"{row.users:,}", row.limit or "-"]
        trial = row.proof
        if trial is None:
            cells += ["-"] * 7
        else:
            cores = trial.server_cores + trial.store_cores
            cells += [
                str(trial.workers),
                f"{trial.p50_ms:,.0f} / {trial.p95_ms:,.0f} / {trial.p99_ms:,.0f}",
                f"{cores:.2f}",
                f"{trial.generator_cores:.2f}",
                f"{row.users / cores:,.0f}",
                f"{trial.pss_bytes:,.0f}",
                f"{trial.connect_seconds:.0f}",
            ]
        rows.append(cells)
    heads = (
        *("system", "concurrent users", "what stopped it", "workers", "p50 / p95 / p99, ms", "cores"),
        *("cores, generator", "users a core", "bytes a user", "s to join all"),
    )
    return report.table(heads, rows)


def paragraphs(found: Capacity) -> list[str]:
    """What goes into the document."""
    method = f"""Concurrent users: the most that are all joined, with no failed connect, every message
delivered once and the 95th percentile of a delivery's delay below {users.MAX_P95_MS:,.0f} ms, at one message
a minute of each user in rooms of {ROOM}, for {PROOF_SECONDS / 60:.0f} minutes. Each system is the smallest chat
that its documentation recommends (`bench/peers`), started anew for each trial; one process may open
{found.files:,} files here. Cores and bytes are those of all server processes, store included; bytes are what
they have above what they had with nobody there. Users a core are the quotient: where the files were the limit,
it tells how far away the next one is."""
    skipped = [f"- {name} was left out: {row.skipped}" for name, row in found.rows.items() if row.skipped]
    parts = [method, f"{report.place(found.machine)} {found.date}.", table(found), "\n".join(skipped)]
    return [part for part in parts if part]


def _tell(line: str) -> None:
    print(line.rstrip(), file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(SYSTEMS)}")
    return names


def _starts(text: str) -> dict[str, int]:
    starts = dict(pair.split("=", 1) for pair in text.split(","))
    _names(",".join(starts))
    return {name: int(size) for name, size in starts.items()}


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = datetime.date.today().isoformat()
    parser.add_argument("--systems", type=_names, default=list(SYSTEMS), help=f"of {','.join(SYSTEMS)}")
    parser.add_argument(
        "--start", type=_starts, default={}, help="first sizes, like socketio=40000,tornadochat=90000"
    )
    parser.add_argument("--growth", type=float, default=search.GROWTH, help="factor of a step up or down")
    parser.add_argument("--most", type=int, default=MOST_USERS, help="try no more users than that")
    parser.add_argument("--trial-seconds", type=float, default=TRIAL_SECONDS)
    parser.add_argument("--proof-seconds", type=float, default=PROOF_SECONDS)
    parser.add_argument("--out", type=Path, default=CHECKOUT / "bench" / "results" / today / "capacity.json")
    parser.add_argument("--read", type=Path, nargs="+", help="measure nothing, take and merge earlier results")
    parser.add_argument("--write-docs", action="store_true", help="the table goes to docs/scale.md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Capacity:
    """Measure the rows that the command line asks for, saved after each of them."""
    found = Capacity.load(options.out) if options.out.exists() else Capacity()
    found.machine, found.date = this_machine(), datetime.date.today().isoformat()
    found.files = raise_file_limit()
    cores = int(found.machine["cores"])
    for name in options.systems:
        start = options.start.get(name, SYSTEMS[name].start)
        seconds = (options.trial_seconds, options.proof_seconds)
        try:
            found.rows[name] = measure(name, start, options.growth, seconds, found.files, cores, options.most)
        except FAILURES as error:
            found.rows[name] = Row(name, 0, "", None, (), str(error).strip())
            _tell(f"{name} is left out: {error}")
        found.save(options.out)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when a system could not be measured."""
    options = options_of(arguments)
    if options.read:
        found = Capacity.load(options.read[0])
        for path in options.read[1:]:
            found.rows |= Capacity.load(path).rows
    else:
        found = run(options)
    print(table(found))
    if options.write_docs:
        report.write_between(CHECKOUT / "docs" / "scale.md", (BEGIN, END), paragraphs(found))
    return 1 if any(row.skipped for row in found.rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
