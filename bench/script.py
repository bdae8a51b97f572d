"""``python -m bench.script``: what one message costs the store, in the script that numbers and stores it.

Sends messages one at a time over ten rooms to an embedded store, and tells the CPU time of its process, and how
many commands the script ran for each. Other versions of the script can be given, to be measured in turn in the
same run: ``python -m bench.script old.lua tornadochat/scripts/publish.lua``. With ``--cold`` there is a pause
before each message, in which the caches are filled with something else, as on a server with little to do.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis

import tornadochat
from tornadochat.embedded import EmbeddedStore
from tornadochat.publisher import epochs, publish_script
from tornadochat.settings import Settings

OURS = Path(tornadochat.__file__).parent / "scripts" / "publish.lua"
MESSAGES, COLD_MESSAGES = 1000, 150
ROOMS = 10
BODY = b'{"type":"message","text":"%s"}' % (b"x" * 200)
PAUSE_SECONDS = 0.002
ELSE = bytes(24 << 20)  # more than the caches of a core hold


def keys_of(room: int) -> list[str]:
    """The keys and the channel of a room, in the order of the script."""
    return [f"bench:{{{room:032x}}}:{name}" for name in ("meta", "log", "ids0", "ids1", "ch")]


def arguments(room: int, number: int, epoch: bytes) -> tuple[str | bytes | int, ...]:
    """What the script is called with for one message of a room: number of keys, keys, values."""
    return (5, *keys_of(room), "run", epoch, f"u_{room:016x} {number:024x}", f"{number:016x}", BODY)


class Candidate:
    """One version of the script, on a store of its own."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.path = path
        self.costs: list[float] = []
        store = EmbeddedStore(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        self._client = stack.enter_context(redis.Redis.from_url(store.start()))
        stack.callback(store.stop)
        head = publish_script(Settings(), sharded=False).source.decode().partition("-- ")[0]
        self._digest = self._client.script_load(head + path.read_text())
        self._pid = int(self._client.info("server")["process_id"])
        self._numbers, self._fresh = itertools.count(), epochs()
        for _ in range(ROOMS * 20):  # epochs and keys are made
            self._send()
        self._client.config_resetstat()

    def _send(self) -> None:
        number = next(self._numbers)
        room = number % ROOMS
        self._client.evalsha(self._digest, *arguments(room, number, next(self._fresh)))

    def _cpu_ns(self) -> int:
        tasks = Path(f"/proc/{self._pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def pin(self, core: int) -> None:
        """Keep the store on the core whose caches are filled."""
        os.sched_setaffinity(self._pid, {core})

    def measure(self, messages: int, cold: bool) -> None:
        """Add one cost, in microseconds of CPU for each message."""
        before = self._cpu_ns()
        for _ in range(messages):
            if cold:
                ELSE[::64].count(1)
                time.sleep(PAUSE_SECONDS)
            self._send()
        self.costs.append((self._cpu_ns() - before) / 1000 / messages)

    def commands(self) -> float:
        """That the script ran for each message."""
        stats = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()}
        scripts = calls.pop("evalsha")
        return float(sum(calls.values()) - calls.get("info", 0) - calls.get("config|resetstat", 0)) / scripts


def main() -> None:
    """Print a line for each script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scripts", nargs="*", type=Path, default=[OURS])
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--cold", action="store_true", help="with caches that others have filled")
    options = parser.parse_args()
    with ExitStack() as stack:
        candidates = [Candidate(stack, path) for path in options.scripts]
        if options.cold:
            core = min(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {core})
            for candidate in candidates:
                candidate.pin(core)
        for _ in range(options.turns):
            for candidate in candidates:
                candidate.measure(COLD_MESSAGES if options.cold else MESSAGES, options.cold)
        for candidate in candidates:
            ratio = statistics.median(
                ours / first for ours, first in zip(candidate.costs, candidates[0].costs, strict=True)
            )
            print(
                f"{candidate.path}: {statistics.median(candidate.costs):.1f} us of the store for each message, "
                f"{ratio:.2f} of the first, {candidate.commands():.1f} commands"
            )


if __name__ == "__main__":
    main()
