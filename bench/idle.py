"""``python -m bench.idle``: memory and CPU of members who only sit there.

Fills the rooms of one worker, waits, and tells the proportional set size (PSS) of the worker above
what it was with nobody connected, for each member, and the CPU that the idle members cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.load import CONNECTIONS_PER_PROCESS, Load, Plan
from bench.processes import cpu_seconds, pss_bytes, running_server


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 1 when somebody could not join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, default=18_000, help="in all")
    parser.add_argument("--room-size", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they sit there")
    options = parser.parse_args(arguments)
    rooms = max(1, options.members // options.room_size)
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), workers=1) as server:
        (worker,) = server.workers
        time.sleep(2)
        empty, connect_cpu = pss_bytes(worker), cpu_seconds([worker])
        plan = Plan(
            port=server.port,
            rooms=rooms,
            members=options.room_size,
            processes=-(-options.members // CONNECTIONS_PER_PROCESS),
            sources=("127.0.0.2", "127.0.0.3"),
        )
        with Load(plan) as load:
            report = load.connect()
            connect_cpu = cpu_seconds([worker]) - connect_cpu
            load.idle(5.0)  # presence and the last answers settle
            before = cpu_seconds([worker])
            load.idle(options.seconds)
            idle_cpu = cpu_seconds([worker]) - before
            full = pss_bytes(worker)
    members = max(1, report.joined)
    print(f"joined {report.joined}, failed {report.failed} in {report.connect_seconds:.1f} s {report.last_error}")
    print(f"connect and join: {connect_cpu * 1e6 / members:.0f} us of the worker's CPU for each member")
    print(
        f"memory: {(full - empty) / members:.0f} bytes of PSS for each member "
        f"({empty >> 20} MiB -> {full >> 20} MiB)"
    )
    print(f"idle: {idle_cpu / options.seconds * 100:.2f} % of a core for {members} members")
    return 0 if report.joined == rooms * options.room_size else 1


if __name__ == "__main__":
    sys.exit(main())
