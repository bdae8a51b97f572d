"""Members who do not read, in the room of those who do: what do they cost the others?

    python -m bench.stalled --stalled 1000 --readers 100

One room on one worker. In turn, the readers alone and the readers beside stalled members, several pairs in
one run; prints the median of the pairs' ratios of the readers' p99, and the memory that a stalled member
holds in the worker. Stalled members join, then leave their sockets alone.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import Load, Plan, Report
from bench.processes import Server, cpu_seconds, pss_bytes, running_server
from bench.wire import REQUEST, frame

# A receive buffer so small that the server's side fills soon; the kernel doubles it.
RECEIVE_BYTES = 4096


@dataclass
class Turn:
    """One turn: the readers' report, the worker's CPU for each delivery, what a stalled member holds."""

    report: Report
    cpu_us: float
    stalled_bytes: float = 0.0


def stall(port: int, room: str) -> socket.socket:
    """One member that has joined and never reads again."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    sock.sendall(REQUEST + frame(type="join", room=room, history=0))
    seen = b""
    while b'"type":"joined"' not in seen:
        piece = sock.recv(2048)
        if not piece:
            raise RuntimeError("the server closed a stalled member before it had joined")
        seen = (seen + piece)[-4096:]
    return sock


@contextlib.contextmanager
def stalled_members(port: int, room: str, count: int) -> Iterator[None]:
    """So many of them, for a while."""
    socks = []
    try:
        for _ in range(count):
            socks.append(stall(port, room))
        yield
    finally:
        for sock in socks:
            sock.close()


def measure(server: Server, readers: int, stalled: int, rate: float, seconds: float, text_bytes: int) -> Turn:
    """One turn on a running server with one worker."""
    (worker,) = server.workers
    plan = Plan(port=server.port, rooms=1, members=readers, text_bytes=text_bytes, prefix="stalled")
    with Load(plan) as load:
        if load.connect().joined != readers:
            raise RuntimeError("not every reader could join")
        load.send(1.0, rate)
        before_bytes = pss_bytes(worker)
        with stalled_members(server.port, "stalled-0", stalled):
            load.send(2.0, rate)  # fills the kernel's buffers of those who do not read
            before = cpu_seconds([worker])
            report = load.send(seconds, rate)
            cpu_us = (cpu_seconds([worker]) - before) * 1e6 / max(1, report.delivered)
            held = (pss_bytes(worker) - before_bytes) / max(1, stalled)
    time.sleep(1.5)
    return Turn(report, cpu_us, held)


def main() -> int:
    """Read the sizes from the command line, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--text-bytes", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    sizes = (given.rate, given.seconds, given.text_bytes)
    ratios, cpu_ratios, exact = [], [], True
    with (
        tempfile.TemporaryDirectory(prefix="tornadochat-stalled-") as folder,
        running_server(Path(folder), "--drain-seconds=0.5", workers=1) as server,
    ):
        for _ in range(given.pairs):
            alone = measure(server, given.readers, 0, *sizes)
            beside = measure(server, given.readers, given.stalled, *sizes)
            ratios.append(beside.report.p99_ms / alone.report.p99_ms)
            cpu_ratios.append(beside.cpu_us / alone.cpu_us)
            exact = exact and alone.report.exact and beside.report.exact
            print(
                f"p99 {alone.report.p99_ms:.1f} ms alone, {beside.report.p99_ms:.1f} ms beside the stalled; "
                f"CPU {alone.cpu_us:.1f} and {beside.cpu_us:.1f} us for each delivery to a reader; "
                f"{beside.stalled_bytes / 1024:.1f} KiB in the worker for each stalled member"
            )
    print(
        f"median ratio of the p99: {statistics.median(ratios):.2f}, "
        f"of the CPU: {statistics.median(cpu_ratios):.2f}; every delivery exact: {exact}"
    )
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
