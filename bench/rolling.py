"""Connects all the time while the workers are replaced again and again: is anybody refused?

    python -m bench.rolling --connects 10000 --restarts 10

Each connect is a new socket that asks for the upgrade and waits for ``welcome``. Refused or reset ones and
answers other than 101 are counted; the exit status is 1 when there was any. Restarts are made for as long as
fewer than asked for are over, and connects for as long as restarts go on, at least as many as asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.processes import Server, running_server
from bench.wire import REQUEST

ROLLED = "all workers are replaced"
RESTART_SECONDS = 60.0
CONNECT_SECONDS = 15.0
AT_A_TIME = 50


async def connect(port: int) -> str:
    """One connect; what became of it: ``ok``, or what went wrong."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 101 "):
                    return head.split(b"\r\n")[0].decode("latin-1")
                header = await reader.readexactly(2)
                if header[0] != 0x81:
                    return f"a first frame of type {header[0] & 15}"
                return "ok"
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        return type(error).__name__


def restart(server: Server, log: Path, times: int) -> None:
    """Replace all workers so many times, each time once the last one is over.

    Raises:
        TimeoutError: One took too long.
    """
    for number in range(times):
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + RESTART_SECONDS
        while log.read_text().count(ROLLED) <= number:
            if time.monotonic() > deadline:
                raise TimeoutError("a rolling restart did not end")
            time.sleep(0.05)


async def measure(server: Server, log: Path, connects: int, restarts: int) -> Counter[str]:
    """How many connects had which outcome."""
    outcomes: Counter[str] = Counter()
    restarting = asyncio.ensure_future(asyncio.to_thread(restart, server, log, restarts))

    async def keep_connecting() -> None:
        while outcomes.total() < connects or not restarting.done():
            outcomes[await connect(server.port)] += 1

    await asyncio.gather(*(keep_connecting() for _ in range(AT_A_TIME)))
    await restarting
    return outcomes


def main() -> int:
    """Read the sizes from the command line and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connects", type=int, default=10_000)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--drain-seconds", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tornadochat-rolling-") as folder:
        options = (f"--drain-seconds={given.drain_seconds}",)
        with running_server(Path(folder), *options, workers=given.workers) as server:
            begin = time.monotonic()
            log = Path(folder) / "server.log"
            outcomes = asyncio.run(measure(server, log, given.connects, given.restarts))
            took = time.monotonic() - begin
    print(
        f"{outcomes.total()} connects during {given.restarts} rolling restarts in {took:.0f} s: {dict(outcomes)}"
    )
    return 0 if set(outcomes) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
