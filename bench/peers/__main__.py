"""``python -m bench.peers NAME``: run one peer with its store until it is interrupted, to look at it by hand."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys

from bench.peers import PEERS, Unavailable, start


def main() -> int:
    """Print the address and the processes, then wait; 1 where the peer cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    try:
        with start(options.name, options.workers) as peer, contextlib.suppress(KeyboardInterrupt):
            print(f"ws://127.0.0.1:{peer.port}/ speaks {peer.dialect}; processes {peer.pids}", flush=True)
            signal.pause()
    except Unavailable as error:
        print(f"{options.name} cannot run here: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
