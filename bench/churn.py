"""People who come, join, talk and go, an hour's worth of them in a minute: does memory come back?

    python -m bench.churn --connects 72000

Each visit is a new connection that joins two of many rooms, says something in each, and leaves by a close
frame, by a plain end, or by a reset. An hour of 20 visits a second are 72,000. The proportional set size (PSS)
of each worker is taken after a third of them, when each has seen its busiest quarter of a minute (the time for
which lost connections are remembered), and again after all, both times once the rooms have closed. The exit
status is 1 when one has grown by more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Server, pss_bytes, running_server
from bench.wire import REQUEST, frame

AT_A_TIME = 50
VISIT_SECONDS = 15.0
MAX_GROWTH = 1.1
CLOSE = struct.pack(">BB4xH", 0x88, 0x82, 1000)


@dataclass
class Visits:
    """How the visits went, and the PSS of each worker in bytes."""

    made: int = 0
    failed: int = 0
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def growth(self) -> float:
        """The largest ratio of after to before among the workers."""
        return max(after / before for before, after in zip(self.before, self.after, strict=True))


async def visit(port: int, rooms: int, draw: random.Random) -> bool:
    """One visit; False where it could not join or talk."""
    try:
        async with asyncio.timeout(VISIT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(REQUEST)
                for room in (f"churn-{draw.randrange(rooms)}", f"churn-{draw.randrange(rooms)}"):
                    writer.write(frame(type="join", room=room))
                    message_id = f"churn-{draw.getrandbits(96):024x}"
                    # Sent at once: a message that comes before its room has opened is refused.
                    await reader.readuntil(b'"type":"joined"')
                    writer.write(frame(type="send", room=room, id=message_id, text="x" * draw.randrange(1, 500)))
                    await reader.readuntil(message_id.encode())
                leave(writer, draw)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        return False
    return True


def leave(writer: asyncio.StreamWriter, draw: random.Random) -> None:
    """A third each: a close frame, a reset, a plain end."""
    way = draw.randrange(3)
    if way == 0:
        writer.write(CLOSE)
    elif way == 1:
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def churn(port: int, visits: int, rooms: int, seed: int, outcome: Visits) -> None:
    """Make so many visits, some at a time."""
    left = visits

    async def keep_visiting(number: int) -> None:
        nonlocal left
        draw = random.Random(seed + number)
        while left > 0:
            left -= 1
            outcome.made += 1
            outcome.failed += not await visit(port, rooms, draw)

    await asyncio.gather(*(keep_visiting(number) for number in range(AT_A_TIME)))


def measure(server: Server, visits: int, rooms: int, settle_seconds: float) -> Visits:
    """Visit, and take the memory of the workers after a third and after all of it."""
    outcome = Visits()
    asyncio.run(churn(server.port, visits // 3, rooms, 1, outcome))
    time.sleep(settle_seconds)
    outcome.before = tuple(pss_bytes(pid) for pid in server.workers)
    asyncio.run(churn(server.port, visits - visits // 3, rooms, 1000, outcome))
    time.sleep(settle_seconds)
    outcome.after = tuple(pss_bytes(pid) for pid in server.workers)
    return outcome


def main() -> int:
    """Read the sizes from the command line, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connects", type=int, default=72_000)
    parser.add_argument("--rooms", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--settle-seconds", type=float, default=60.0, help="for lost connections and empty rooms")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tornadochat-churn-") as folder,
        running_server(Path(folder), "--drain-seconds=0.5", workers=given.workers) as server,
    ):
        outcome = measure(server, given.connects, given.rooms, given.settle_seconds)
    sizes = ", ".join(
        f"{before / 2**20:.1f} -> {after / 2**20:.1f}"
        for before, after in zip(outcome.before, outcome.after, strict=True)
    )
    print(f"{outcome.made} visits, {outcome.failed} failed; PSS of the workers in MiB: {sizes}")
    return 0 if outcome.growth <= MAX_GROWTH and not outcome.failed else 1


if __name__ == "__main__":
    sys.exit(main())
