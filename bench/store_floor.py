"""``python -m bench.store_floor``: the floor of who keeps every message in the store before it is delivered.

Two processes in C hold half the members of each room. Each message goes to an embedded store by the script of the
server, which numbers, keeps and publishes it; both processes get it from there and send every member of the room a
ready-made frame. They read no commands, check nothing, and know neither windows nor history: who calls the script
for each message and send() for each delivery, with two processes, costs more. The bare floor of the same run
stands beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import hiredis
import redis

from bench import floor, native
from bench.processes import cpu_seconds
from bench.script import arguments, keys_of
from bench.shapes import add_shape
from tornadochat.embedded import EmbeddedStore
from tornadochat.publisher import epochs, publish_script
from tornadochat.settings import Settings

WORKERS = 2
STAMP = 0x0123456789ABCDEF  # stands for the message's number, which the processes write over it
MAX_ROOMS = 65536  # four hexadecimal digits of a channel tell the room
LEAD_SECONDS = 1.5  # in which both processes start and subscribe


class StoreFloor(NamedTuple):
    """One measurement; the times are CPU-microseconds for each delivery."""

    deliveries: int
    workers_us: float
    store_us: float

    @property
    def cpu_us(self) -> float:
        """Of all processes together."""
        return self.workers_us + self.store_us


def measure(rooms: int, members: int, rate: float, seconds: float, frame_bytes: int) -> StoreFloor:
    """CPU for each delivery of ``frame_bytes`` that was stored and published before.

    Raises:
        OSError: One process may not open so many files, or there are no ports left.
        ValueError: There are too many rooms, or the store refused a message.
    """
    if not 1 <= rooms <= MAX_ROOMS:
        raise ValueError(f"the rooms must be 1 to {MAX_ROOMS:,}, not {rooms:,}")
    code = native.load("_floor")
    processes = multiprocessing.get_context("fork")  # they inherit the members' sockets
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = EmbeddedStore(Path(folder))
        path = store.start().removeprefix("unix://")
        stack.callback(store.stop)
        client = stack.enter_context(redis.Redis(unix_socket_path=path))
        digest = str(client.script_load(publish_script(Settings(), sharded=False).source))
        pid = int(client.info("server")["process_id"])
        fds = stack.enter_context(floor.connected(code, rooms * members, seconds + LEAD_SECONDS + 1))
        plan = Plan(
            path, digest, rooms, rate, seconds, floor.frame_of(frame_bytes), fds, time.monotonic() + LEAD_SECONDS
        )
        with ProcessPoolExecutor(WORKERS, processes) as pool:
            working = [pool.submit(_work, plan, number) for number in range(WORKERS)]
            time.sleep(max(0.0, plan.start - time.monotonic()))
            before = cpu_seconds([pid])
            done = [future.result() for future in working]
            stored = cpu_seconds([pid]) - before
    deliveries = sum(sent for sent, _ in done)
    each = 1e6 / max(1, deliveries)
    return StoreFloor(deliveries, sum(cpu for _, cpu in done) * each, stored * each)


class Plan(NamedTuple):
    """What both processes do."""

    path: str
    digest: str
    rooms: int
    rate: float
    seconds: float
    frame: bytes
    fds: list[int]
    start: float  # monotonic time


def _work(plan: Plan, number: int) -> tuple[int, float]:
    """One process: deliveries, and its CPU seconds."""
    code = native.load("_floor")
    fresh, stamp = epochs(), f"{STAMP:016x}".encode()
    rooms = range(plan.rooms)
    commands = [_packed("EVALSHA", plan.digest, *arguments(room, STAMP, next(fresh))) for room in rooms]
    with socket.socket(socket.AF_UNIX) as publisher, socket.socket(socket.AF_UNIX) as subscriber:
        for sock in (publisher, subscriber):
            sock.connect(plan.path)
        subscriber.settimeout(LEAD_SECONDS)
        subscriber.sendall(_packed("SUBSCRIBE", *(keys_of(room)[-1] for room in rooms)))
        confirmed = b""
        while confirmed.count(b":ch\r\n") < plan.rooms:
            received = subscriber.recv(65536)
            if not received:
                raise ConnectionResetError("the store has ended the connection of a subscriber")
            confirmed += received
        time.sleep(max(0.0, plan.start - time.monotonic()))
        result: tuple[int, float] = code.fan_out_stored(
            # Every WORKERS-th of the blocks that have one member of each room.
            [fd for index, fd in enumerate(plan.fds) if index // plan.rooms % WORKERS == number],
            plan.rooms,
            plan.frame,
            commands,
            commands[0].index(stamp),
            publisher.fileno(),
            subscriber.fileno(),
            plan.rate,
            plan.seconds,
            number,
            WORKERS,
        )
    return result


def _packed(*command: str | bytes | int) -> bytes:
    return bytes(hiredis.pack_command(command))  # type: ignore[arg-type]


def main() -> None:
    """Print a line for each pair, and the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_shape(parser, seconds=5.0)
    parser.add_argument("--frame-bytes", type=int, default=296)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    shape = (options.rooms, options.members, options.rate, options.seconds, options.frame_bytes)
    ratios: list[float] = []
    for _ in range(options.pairs):
        bare, stored = floor.measure(*shape), measure(*shape)
        ratios.append(stored.cpu_us / bare.cpu_us)
        print(
            f"bare {bare.cpu_us:.2f} us, with the store {stored.cpu_us:.2f} us ({stored.workers_us:.2f} of both "
            f"processes, {stored.store_us:.2f} of the store) for each delivery: {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median of {len(ratios)} pairs: {statistics.median(ratios):.2f} times the bare floor")


if __name__ == "__main__":
    main()
