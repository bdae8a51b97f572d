"""``python -m bench.receive``: what it costs to take in what the store publishes, spread over many rooms or not.

Feeds a subscriber's connection the very bytes of 1,000 published messages, as one read brings them: all of
one room, or each of a room of its own. Measured up to the buffers that the rooms' members would be sent
(the sends are ``bench.fanout``'s part). The figure is the ratio of the two, pair by pair.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from functools import partial
from typing import Any

from tornadochat import settings
from tornadochat._fastframe import pack_published
from tornadochat.hub import Hub
from tornadochat.redis_link import Link
from tornadochat.room import Page, Room
from tornadochat.store_address import parse_address
from tornadochat.store_links import Links
from tornadochat.stream_transport import StreamTransport
from tornadochat.subscriber import Subscriber
from tornadochat.worker import transport_limits

EPOCH = b"abcdefgh"
BODY = (
    b'{"type":"message","room":"lobby","id":"q7Hn2kLw9ZxT4vBc8YpR","user":{"id":"u_8f3a5d1c2b4e6f70",'
    b'"name":"Ada"},"text":"%s","ts":1790000000123}'
) % (b"x" * 96)


def ignore(*_arguments: Any) -> None:
    """For callbacks that have nothing to do here."""


class Bench:
    """A hub with open rooms behind a subscriber's connection, without a store."""

    def __init__(self, rooms: int) -> None:
        chosen = settings.Settings()
        address = parse_address("redis://127.0.0.1")
        streams = StreamTransport(
            transport_limits(chosen), on_text=ignore, on_closed=ignore, on_drained=ignore, on_gap=ignore
        )
        self.hub = Hub(
            chosen,
            [streams],
            channel_of=lambda name: b"tornadochat:{%s}:ch" % name.encode(),
            now=time.monotonic,
            schedule=ignore,
            sync=self._sync,
            fetch=ignore,
            close_room=ignore,
            people=lambda name: 0,
            on_presence=ignore,
        )
        self.subscriber = Subscriber(
            partial(Links, address),
            b"control",
            on_published=self.hub.on_published,
            on_control=ignore,
            on_change=ignore,
            on_moved=ignore,
        )
        self.link = Link(address, ignore, self.subscriber._on_push)
        self.rooms = [self.hub.room(f"{number:032x}") for number in range(rooms)]
        for room in self.rooms:
            room.open()

    def _sync(self, room: Room, _start: int) -> None:
        room.synced(Page(EPOCH.decode(), 0, (), 1, ()))

    def read(self, messages: int) -> bytes:
        """One read of the connection: so many messages, the rooms in turn."""
        parts = []
        for number in range(messages):
            room = self.rooms[number % len(self.rooms)]
            seq = room.last_seq + 1 + number // len(self.rooms)
            channel = b"tornadochat:{%s}:ch" % room.name.encode()
            payload = pack_published(EPOCH, seq, [BODY])
            parts.append(
                b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                % (len(channel), channel, len(payload), payload)
            )
        return b"".join(parts)

    def take(self, messages: int) -> float:
        """Microseconds of CPU for each message of one read."""
        data = self.read(messages)
        for room in self.rooms:
            room.next_flush = 0.0  # the last window is over
        begin = time.thread_time_ns()
        for at in range(0, len(data), 65_536):
            self.link.data_received(data[at : at + 65_536])
        for room in self.rooms:
            room.next_flush = 0.0
        self.hub.flush_due()
        return (time.thread_time_ns() - begin) / 1000 / messages


async def measure(messages: int, pairs: int) -> tuple[list[float], list[float]]:
    """The cost in one room and in as many rooms as messages, pair by pair."""
    one, many = Bench(1), Bench(messages)
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs + 1):
        for bench, costs in zip((one, many), found, strict=True):
            costs.append(bench.take(messages))
    return found[0][1:], found[1][1:]  # the first pair warms up


def main(arguments: list[str] | None = None) -> None:
    """Print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=21)
    options = parser.parse_args(arguments)
    one, many = asyncio.run(measure(options.messages, options.pairs))
    ratio = statistics.median(b / a for a, b in zip(one, many, strict=True))
    print(
        f"{options.messages} messages: {statistics.median(one):.2f} us each in one room, "
        f"{statistics.median(many):.2f} us each in {options.messages} rooms; ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
