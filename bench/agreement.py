"""``python -m bench.agreement``: three load generators on one server: do they see the same?

    python -m bench.agreement --users 1000 --minutes 1

Artillery with its engine for Socket.IO, Locust (``bench/locustfile.py``) and our own native generator load the
same Socket.IO cluster one after the other: as many users in rooms of 50, each says one message a minute. Told are
users joined, deliveries expected and counted, their delays from the stamp of the sender, and the CPU that the
generator took for them. Locust's users talk while others still come; its deliveries count from when all are
there. The exit status is 1 where one of them missed a user or a delivery.

Artillery comes from npm, in the version that ``bench/artillery`` locks (Node 20; 600 MB below ``build``).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from bench import native, node_packages, report
from bench.compare import CHECKOUT
from bench.load import CONNECTIONS_PER_PROCESS, Load, Plan, sources_for
from bench.processes import Unavailable, cpu_seconds
from bench.results import save_json, this_machine
from bench.systems import REST_SECONDS, TEXT_BYTES, TITLES, Running, serving
from bench.users import MESSAGES_A_SECOND, ROOM, SETTLE_SECONDS

# Artillery's users come evenly; more a second would make it late by itself.
ARRIVALS_A_SECOND = 50
# To start, to connect, to write the report: a generator that is not at its end so long after its time is ended.
SPARE_SECONDS = 120.0
MOST_USERS = 15_000
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one generator saw; delays in milliseconds, CPU in seconds that it took from start to end."""

    tool: str
    joined: int
    sent: int
    expected: int
    delivered: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_seconds: float

    def exact(self, users: int) -> bool:
        """Whether everybody was there and got everything."""
        return self.joined == users and self.sent > 0 and self.delivered == self.expected


def artillery_seen(found: Mapping[str, Mapping[str, Mapping[str, float]]], cpu: float) -> Seen:
    """Read the JSON that ``artillery run --output`` wrote.

    Raises:
        Unavailable: Nobody got anything, so that there are no delays; Artillery's errors are in the message.
    """
    counters = found["aggregate"]["counters"]
    delays = found["aggregate"]["summaries"].get("chat.delay")
    if not delays:
        raise Unavailable(f"Artillery delivered nothing: {dict(counters)}")
    sent = int(counters["chat.sent"])
    return Seen(
        tool="Artillery",
        joined=int(counters["chat.joined"]),
        sent=sent,
        expected=sent * ROOM,
        delivered=int(counters["chat.delivered"]),
        p50_ms=delays["p50"],
        p95_ms=delays["p95"],
        p99_ms=delays["p99"],
        cpu_seconds=cpu,
    )


def locust_seen(progress: str, statistics: str, cpu: float) -> Seen:
    """Read what Locust's run left: its outcome, and the delays of Locust's own statistics.

    Args:
        progress: Lines that ``--progress`` wrote.
        statistics: Text of the file of ``--csv`` that ends in ``_stats.csv``.

    Raises:
        Unavailable: It did not come to its end.
    """
    lines = [json.loads(line) for line in progress.splitlines()]
    outcome = next((line["outcome"] for line in lines if "outcome" in line), None)
    rows = {row["Name"]: row for row in csv.DictReader(statistics.splitlines())}
    if outcome is None or "delivery" not in rows:
        raise Unavailable("Locust did not come to its end")
    delays = rows["delivery"]
    return Seen(
        tool="Locust",
        joined=outcome["joined"],
        sent=outcome["sent"],
        expected=outcome["expected"],
        delivered=outcome["delivered"],
        p50_ms=float(delays["50%"]),
        p95_ms=float(delays["95%"]),
        p99_ms=float(delays["99%"]),
        cpu_seconds=cpu,
    )


def _run(command: Sequence[str], folder: Path, seconds: float, **environment: str) -> float:
    """Run a generator to its end; returns the CPU that it took.

    Raises:
        Unavailable: It took too long; it has been ended.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "output.txt").open("wb") as output:
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,  # its report tells
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{Path(command[0]).name} had not ended after {seconds:.0f} s") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_artillery(server: Running, users: int, minutes: int) -> Seen:
    """Artillery in one worker thread.

    Raises:
        Unavailable: It cannot be installed, or did not come to its end.
    """
    node, program = node_packages.install(CHECKOUT / "bench" / "artillery")
    arrival = max(1, -(-users // ARRIVALS_A_SECOND))
    phases = {"config": {"phases": [{"duration": arrival, "arrivalCount": users}]}}
    with tempfile.TemporaryDirectory(prefix="tornadochat-artillery-") as folder:
        out = Path(folder) / "report.json"
        command = [
            *(node, str(program / "node_modules" / "artillery" / "bin" / "run"), "run", str(program / "chat.yml")),
            *("--quiet", "--output", str(out), "--target", f"http://127.0.0.1:{server.port}"),
            *("--overrides", json.dumps(phases)),
        ]
        cpu = _run(
            command,
            Path(folder),
            arrival + minutes * 60 + 2 * SETTLE_SECONDS + SPARE_SECONDS,
            WORKERS="1",
            ARTILLERY_DISABLE_TELEMETRY="true",
            CHAT_USERS=str(users),
            CHAT_ROOM=str(ROOM),
            CHAT_MINUTES=str(minutes),
            CHAT_ARRIVAL_SECONDS=str(arrival),
            CHAT_SETTLE_SECONDS=str(SETTLE_SECONDS),
            CHAT_TEXT_CHARS=str(TEXT_BYTES),
        )
        if not out.exists():
            raise Unavailable(f"Artillery wrote no report: {_last_words(Path(folder))}")
        return artillery_seen(json.loads(out.read_text()), cpu)


def by_locust(server: Running, users: int, minutes: int) -> Seen:
    """Locust's dense users in one process.

    Raises:
        Unavailable: It is not installed, or did not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="tornadochat-locust-") as name:
        folder = Path(name)
        command = [
            *(sys.executable, "-m", "locust", "-f", str(CHECKOUT / "bench" / "locustfile.py"), "DenseChatUser"),
            *("--headless", "--only-summary", f"--csv={folder / 'locust'}", f"--progress={folder / 'progress'}"),
            *(f"--host=http://127.0.0.1:{server.port}", f"--dialect={server.dialect}", f"--users={users}"),
            *(f"--spawn-rate={ARRIVALS_A_SECOND * 10}", f"--hold={minutes * 60}", f"--settle={SETTLE_SECONDS}"),
            *(f"--room-size={ROOM}", f"--messages-per-minute={MESSAGES_A_SECOND * 60}", "--leave-share=0"),
            f"--text-bytes={TEXT_BYTES}",
        ]
        cpu = _run(command, folder, users / ARRIVALS_A_SECOND + minutes * 60 + SETTLE_SECONDS + SPARE_SECONDS)
        progress, statistics = folder / "progress", folder / "locust_stats.csv"
        if not (progress.exists() and statistics.exists()):
            raise Unavailable(f"Locust wrote no report: {_last_words(folder)}")
        return locust_seen(progress.read_text(), statistics.read_text(), cpu)


def by_native(server: Running, users: int, minutes: int) -> Seen:
    """Our own generator, in one process.

    Raises:
        Unavailable: Not everybody could join.
    """
    plan = Plan(
        port=server.port,
        rooms=users // ROOM,
        members=ROOM,
        text_bytes=TEXT_BYTES,
        sources=sources_for(users),
        dialect=server.dialect,
    )
    with Load(plan) as load:
        opened = load.connect()
        if opened.joined != users:
            raise Unavailable(f"{opened.joined} of {users} joined {opened.last_error}".strip())
        load.idle(REST_SECONDS)
        load.begin_count()
        load.run(minutes * 60, users * MESSAGES_A_SECOND)
        found = load.run(SETTLE_SECONDS, 0.0)
        return Seen(
            tool="our own",
            joined=found.joined,
            sent=found.sent,
            expected=found.expected,
            delivered=found.delivered,
            p50_ms=found.p50_ms,
            p95_ms=found.p95_ms,
            p99_ms=found.p99_ms,
            cpu_seconds=cpu_seconds(load.pids),
        )


TOOLS: Mapping[str, Callable[[Running, int, int], Seen]] = {
    "artillery": by_artillery,
    "locust": by_locust,
    "native": by_native,
}


def _last_words(folder: Path) -> str:
    return (folder / "output.txt").read_text(errors="replace").strip()[-500:]


def table(seen: Sequence[Seen]) -> str:
    """One row for each generator."""
    heads = (
        *("generator", "users joined", "messages", "deliveries expected", "deliveries counted"),
        *("p50 / p95 / p99, ms", "CPU, us a delivery"),
    )
    rows = [
        (
            one.tool,
            f"{one.joined:,}",
            f"{one.sent:,}",
            f"{one.expected:,}",
            f"{one.delivered:,}",
            f"{one.p50_ms:,.1f} / {one.p95_ms:,.1f} / {one.p99_ms:,.1f}",
            f"{one.cpu_seconds * 1e6 / max(1, one.delivered):,.0f}",
        )
        for one in seen
    ]
    return report.table(heads, rows)


def _tools(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in TOOLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(TOOLS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a generator could not run, or missed a user or a delivery."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000, help="a multiple of 50")
    parser.add_argument("--minutes", type=int, default=1)
    parser.add_argument("--tools", type=_tools, default=list(TOOLS), help=f"of {','.join(TOOLS)}")
    parser.add_argument("--write-docs", action="store_true", help="the table goes to docs/scale.md")
    parser.add_argument(
        "--out",
        type=Path,
        default=CHECKOUT / "bench" / "results" / date.today().isoformat() / "agreement.json",
    )
    options = parser.parse_args(arguments)
    most = min(MOST_USERS, CONNECTIONS_PER_PROCESS)
    if options.users % ROOM or not ROOM <= options.users <= most or options.minutes < 1:
        parser.error(f"users must be a multiple of {ROOM} up to {most}, and minutes at least 1")
    native.load("_loadgen")  # compiled here, so that no generator is charged for it
    seen, missing = [], 0
    with serving("socketio") as server:
        for name in options.tools:
            try:
                seen.append(TOOLS[name](server, options.users, options.minutes))
            except Unavailable as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                missing += 1
    save_json({"machine": this_machine(), "seen": [asdict(one) for one in seen]}, options.out)
    print(table(seen))
    if options.write_docs:
        what = (
            f"{TITLES['socketio']}, {options.users:,} users in rooms of {ROOM}, one message a minute of each, "
            f"{options.minutes} min; {report.place(this_machine())}"
        )
        report.write_between(CHECKOUT / "docs" / "scale.md", (BEGIN, END), [what, table(seen)])
    return 1 if missing or not all(one.exact(options.users) for one in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
