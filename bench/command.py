"""``python -m bench.command``: what a message costs from a member's bytes to the batch that leaves for the store.

Members of many rooms say something in one turn of the loop: decoding their frames, the rules, the event's
body, the batch of each room and its command to the store, up to the bytes that are written; then the
store's answer, up to its senders. No socket and no store take part, so all of it is the worker's own code.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from functools import partial
from typing import Any

from bench.receive import EPOCH, Bench, ignore
from tornadochat import protocol
from tornadochat._fastframe import OP_TEXT, FrameDecoder, encode_frame
from tornadochat.member import UNLIMITED, Member, Rules
from tornadochat.protocol import User
from tornadochat.publisher import Publisher, RoomKeys
from tornadochat.redis_link import Link, ServerInfo
from tornadochat.settings import Settings
from tornadochat.store_address import parse_address
from tornadochat.store_links import Links


class Socket:
    """Stands for a member's connection: it is open, and what it is sent is thrown away."""

    closed = False

    def send_text(self, payload: bytes) -> None:
        """Throw it away."""


class Writer:
    """Stands for the store's connection; keeps what was written last."""

    data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data = data

    def abort(self) -> None:
        """Nothing is open."""


class Talk:
    """Members, one for each room, behind a publisher whose store answers at once."""

    def __init__(self, rooms: int) -> None:
        settings = Settings()
        self.bench = Bench(rooms)
        self.writer = Writer()
        self.link = Link(parse_address("redis://127.0.0.1"), ignore)
        self.link._transport, self.link.connected = self.writer, True
        self.link.info = ServerInfo("0123456789abcdef" * 2 + "01234567", "7.0.0", "noeviction", True)
        keys = [b"tornadochat:{%032x}:%b" % (0, name) for name in (b"meta", b"log", b"ids0", b"ids1", b"ch")]
        self.publisher = Publisher(
            settings, partial(Links, parse_address("redis://127.0.0.1")), lambda room: RoomKeys(*keys), ignore
        )
        self.publisher.links._set(self.link)
        self.rules = rules = Rules(
            room=self.bench.hub.room,
            find_room=self.bench.hub.rooms.get,
            publish=self.publisher.publish,
            find_repeat=ignore,
            enter=ignore,
            leave=ignore,
            bring_home=lambda member, join: False,
            typing=ignore,
            spoke=ignore,
            who=ignore,
            hold=ignore,
            clock=time.time,
            now=time.monotonic,
            limits=protocol.Limits.of(settings),
            max_rooms=100,
            stored=0,
        )
        self.members = []
        for number, room in enumerate(self.bench.rooms):
            member = Member(
                rules,
                User(f"u_{number:016x}", "Ada"),
                transport_index=0,
                allowed=None,
                expires=0,
                address="",
                rates=UNLIMITED,
            )
            member.connection = Connection()
            member.rooms = (room,)
            room.channels[0].join(member.connection, 1, True)
            self.members.append(member)
        self.ids = itertools.count()


class Connection(Socket):
    """A member's place in the stream transport's channels; nothing is ever broadcast here."""

    def __init__(self) -> None:
        self.channels: set[Any] = set()


def turn(talk: Talk) -> tuple[float, float]:
    """Microseconds of CPU for each message: to the store, and back."""
    frames = []
    for member in talk.members:
        room, number = member.rooms[0].name, next(talk.ids)
        payload = b'{"type":"send","room":"%s","id":"%024x","text":"%s"}' % (room.encode(), number, b"x" * 96)
        frames.append((member, FrameDecoder(1 << 17), encode_frame(OP_TEXT, payload, b"\x01\x02\x03\x04")))
    begin = time.thread_time_ns()
    for member, decoder, frame in frames:
        for _opcode, payload in decoder.feed(frame):
            member.handle(payload)
    talk.publisher._send_scheduled()
    sent = time.thread_time_ns()
    answer = b"$9\r\n%b1\r\n" % EPOCH * len(frames)
    answered = time.thread_time_ns()
    talk.link.data_received(answer)
    done = time.thread_time_ns()
    for member in talk.members:
        member._unconfirmed = None  # as if the copies had come
    return (sent - begin) / 1000 / len(frames), (done - answered) / 1000 / len(frames)


async def measure(rooms: int, turns: int) -> tuple[list[float], list[float]]:
    """The cost of each turn, there and back."""
    talk = Talk(rooms)
    found = [turn(talk) for _ in range(turns + 3)][3:]
    await talk.publisher.close()
    return [there for there, _ in found], [back for _, back in found]


def main(arguments: list[str] | None = None) -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rooms", type=int, default=100, help="rooms in which one message comes in a turn")
    parser.add_argument("--turns", type=int, default=101)
    options = parser.parse_args(arguments)
    there, back = asyncio.run(measure(options.rooms, options.turns))
    print(
        f"from the bytes to the published batch {statistics.median(there):.1f} us of CPU for each message, "
        f"the answer {statistics.median(back):.1f} us"
    )


if __name__ == "__main__":
    main()
