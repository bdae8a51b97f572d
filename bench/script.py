"""``python -m bench.script``: what one message costs the store, in the script that numbers and stores it.

Runs the script one message at a time over ten rooms on an embedded store, and tells the store's own
account of it (``INFO commandstats``). Other versions of the script can be given, to be measured in turn
in the same run: ``python -m bench.script old.lua tornadochat/scripts/publish.lua``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import redis

import tornadochat
from tornadochat.embedded import EmbeddedStore
from tornadochat.publisher import epochs, publish_script
from tornadochat.settings import Settings

OURS = Path(tornadochat.__file__).parent / "scripts" / "publish.lua"
MESSAGES = 6000
ROOMS = 10
BODY = b'{"type":"message","text":"%s"}' % (b"x" * 200)


def measure(path: Path) -> tuple[float, float]:
    """Microseconds of the store for each message, and commands that the script ran for each."""
    head = publish_script(Settings(), sharded=False).source.decode().partition("-- ")[0]
    fresh = epochs()
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder))
        with redis.Redis.from_url(store.start()) as client:
            digest = client.script_load(head + path.read_text())
            client.config_resetstat()
            for number in range(MESSAGES):
                keys = [f"bench:{{{number % ROOMS}}}:{name}" for name in ("meta", "log", "ids0", "ids1", "ch")]
                client.evalsha(digest, 5, *keys, "run", next(fresh), f"u m{number}", "print", BODY)
            stats = client.info("commandstats")
        store.stop()
    calls = sum(found["calls"] for name, found in stats.items() if name != "cmdstat_evalsha")
    return float(stats["cmdstat_evalsha"]["usec_per_call"]), calls / MESSAGES


def main() -> None:
    """Print a line for each script and turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", type=Path, default=[OURS])
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    for _ in range(options.turns):
        for path in options.scripts:
            cost, commands = measure(path)
            print(f"{path.name}: {cost:.1f} us of the store for each message, {commands:.1f} commands")


if __name__ == "__main__":
    main()
