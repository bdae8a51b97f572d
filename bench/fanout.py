"""``python -m bench.fanout``: CPU and delay of each delivery, next to the floor of the machine.

Starts a server of its own (or measures the one at ``--port``), fills rooms, sends at a rate, and
counts every delivery. The floor (``bench.floor``) is measured before and after, in the same run,
because absolute times of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from bench import floor
from bench.load import CONNECTIONS_PER_PROCESS, Load, Plan, Report
from bench.processes import Server, cpu_seconds, running_server
from bench.shapes import add_shape

# A message of 96 bytes of text is an event of about this many bytes on the wire.
FRAME_OVERHEAD_BYTES = 200


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_shape(parser, seconds=10.0)
    parser.add_argument("--text-bytes", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="generator processes, at least")
    parser.add_argument("--server-option", action="append", default=[], help="passed on, like --batch-window-ms=0")
    parser.add_argument("--no-floor", action="store_true", help="leave the floor out")
    return parser.parse_args(arguments)


def measure(server: Server, options: argparse.Namespace) -> tuple[Report, float]:
    """One load on a running server; returns the report and the server's CPU-microseconds a delivery."""
    connections = options.rooms * options.members
    processes = max(options.processes, -(-connections // CONNECTIONS_PER_PROCESS))
    plan = Plan(
        port=server.port,
        rooms=options.rooms,
        members=options.members,
        text_bytes=options.text_bytes,
        processes=processes,
        sources=tuple(f"127.0.0.{2 + i}" for i in range(-(-connections // 20_000))),
    )
    with Load(plan) as load:
        joined = load.connect()
        if joined.joined != connections:
            raise RuntimeError(f"{joined.joined} of {connections} joined: {joined.last_error}")
        load.idle(1.5)
        load.send(1.0, options.rate)  # warms up caches, scripts and windows
        pids = server.pids
        before = cpu_seconds(pids)
        report = load.send(options.seconds, options.rate)
        cpu = cpu_seconds(pids) - before
    return report, cpu * 1e6 / max(1, report.delivered)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 1 when a delivery was lost, doubled or out of order."""
    options = options_of(arguments)
    frame_bytes = options.text_bytes + FRAME_OVERHEAD_BYTES

    def floor_us() -> float:
        return floor.measure(options.rooms, options.members, options.rate, 3.0, frame_bytes).cpu_us

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(running_server(Path(folder), *options.server_option, workers=options.workers))
        floors = [] if options.no_floor else [floor_us()]
        report, cpu_us = measure(server, options)
        floors += [] if options.no_floor else [floor_us()]
    print(report.as_json())
    print(
        f"sent {report.sent}, expected {report.expected}, delivered {report.delivered}, "
        f"holes {report.holes}, repeats {report.repeats}, errors {report.errors}"
    )
    print(
        f"delay p50 {report.p50_ms:.1f} ms, p95 {report.p95_ms:.1f} ms, p99 {report.p99_ms:.1f} ms; "
        f"generator late by at most {report.late_ms:.1f} ms"
    )
    print(f"server {cpu_us:.2f} us of CPU for each delivery, store included")
    if floors:
        mean = sum(floors) / len(floors)
        print(
            f"floor  {mean:.2f} us ({' and '.join(f'{value:.2f}' for value in floors)}); ratio {cpu_us / mean:.2f}"
        )
    return 0 if report.exact else 1


if __name__ == "__main__":
    sys.exit(main())
