"""``python -m bench.flame --out flame.svg``: where a worker's time goes under a load, as a flame graph.

Starts a server and a load, and lets py-spy sample one of its workers, C and kernel entries included. Needs
the right to trace other processes (root, or ``kernel.yama.ptrace_scope`` of 0).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.load import Load, Plan
from bench.processes import running_server
from bench.shapes import add_shape

RATE_HZ = 500
# py-spy takes a moment to read the symbols; it samples from then on.
START_SECONDS = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Write the graph; 1 where py-spy could not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("flame.svg"))
    add_shape(parser, seconds=10.0)
    options = parser.parse_args(arguments)
    program = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder)) as server,
        Load(Plan(port=server.port, rooms=options.rooms, members=options.members)) as load,
    ):
        load.connect()
        load.send(1.0, options.rate)
        title = f"{options.rooms} rooms of {options.members}, {options.rate:.0f} messages a second"
        sampler = subprocess.Popen(
            [
                *(program, "record", "--native", "--format", "flamegraph", "--rate", str(RATE_HZ)),
                *("--duration", str(round(options.seconds)), "--pid", str(server.workers[0])),
                *("--output", str(options.out)),
            ],
            stdout=subprocess.DEVNULL,
        )
        report = load.send(options.seconds + START_SECONDS, options.rate)
        failed = sampler.wait(60)
    if not failed:
        # py-spy's own title is its command line, which tells more of this machine than of the graph.
        drawn = options.out.read_text()
        options.out.write_text(re.sub(r">[^<>]*py-spy record [^<>]*<", f">{title}<", drawn))
    print(f"{options.out}: {title}, {report.delivered} deliveries")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
