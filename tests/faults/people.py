"""Clients that talk all the time, and write down what they see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from typing import Any

from tests.faults.checker import Member, Seen, Sent, Told
from tornadochat.client import Client, ClientError, Hole, Message, Room, RoomEvent

# No fault of a run keeps the chat away for so long; a send that waits longer hangs.
SEND_SECONDS = 90.0
# A masked text frame that announces more than it brings (RFC 6455 section 5.2).
HALF_FRAME = bytes([0x81, 0x80 | 100]) + b"mask" + b"half"


class Probe:
    """A message, and the members who have not got it yet."""

    def __init__(self, message_id: str, waiting: set[str]) -> None:
        self.id = message_id
        self.waiting = waiting
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def saw(self, name: str) -> None:
        """A member got it."""
        self.waiting.discard(name)
        if not self.waiting and not self.done.done():
            self.done.set_result(None)


class Record:
    """Everything that was sent and seen, and the probes on their way."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.members: list[Member] = []
        self.probes: dict[str, Probe] = {}
        self.untracked = 0

    def new_message(self, message_id: str, room: str) -> Sent:
        """Write down a message that is about to be sent."""
        sent = Sent(message_id, room)
        self.sent.append(sent)
        return sent


class Talker:
    """One client in its rooms. Sends one message after the other; each is tried until it is stored."""

    def __init__(self, record: Record, url: str, name: str, rooms: list[str], draw: random.Random) -> None:
        self.name = name
        self.record = record
        self.draw = draw
        self.client = Client(url, name=name, on_event=self._on_event)
        self.rooms: dict[str, Room] = {}
        self._names = rooms
        self._members: dict[str, Member] = {}
        self._count = 0
        self._gate = asyncio.Event()
        self._gate.set()

    async def start(self) -> None:
        """Connect and join everything; what comes from then on is written down."""
        await self.client.connect()
        for name in self._names:
            room = await self.client.join(name, listen=False)
            assert room.track.position is not None
            member = Member(f"{self.name} in {name}", name, room.track.position)
            self.rooms[name], self._members[name] = room, member
            self.record.members.append(member)

    async def stop(self) -> None:
        """Close, and add up what the client found to be wrong."""
        await self.client.close()
        self.record.untracked += sum(room.track.repeats + room.track.holes for room in self.rooms.values())

    def _on_event(self, event: RoomEvent) -> None:
        member = self._members.get(event.room)
        if member is None:
            return
        if isinstance(event, Message):
            member.saw.append(Seen(event.epoch, event.seq, event.id))
            probe = self.record.probes.get(event.id)
            if probe is not None:
                probe.saw(member.name)
        elif isinstance(event, Hole):
            member.saw.append(Told(event.epoch, event.seq))

    async def talk(self, pause_seconds: float, until: asyncio.Event) -> None:
        """Say something again and again, in one room or another."""
        await asyncio.sleep(self.draw.random() * pause_seconds)
        while not until.is_set():
            await self.say(self.draw.choice(self._names))
            await asyncio.sleep(self.draw.uniform(0.5, 1.5) * pause_seconds)

    async def say(self, room: str, text: str = "") -> Sent:
        """Send one message, however long it takes."""
        self._count += 1
        message_id = f"{self.name}-{self._count:06d}-{os.getpid()}"
        sent = self.record.new_message(message_id, room)
        async with asyncio.timeout(SEND_SECONDS):
            with contextlib.suppress(ClientError):
                sent.place = await self.rooms[room].send(text or message_id, message_id)
        return sent

    def state(self) -> str:
        """How the client and its rooms are, for a run that hangs."""
        rooms = {name: (room.track.live, room.track.position) for name, room in self.rooms.items()}
        return f"{self.name}: connected {self.client.connected}, ended by {self.client._error!r}, {rooms}"

    # Harm ------------------------------------------------------------------------------------

    def _socket(self) -> socket.socket | None:
        connection: Any = self.client._connection
        if connection is None or connection.protocol is None or connection.protocol.stream.closed():
            return None
        found: socket.socket = connection.protocol.stream.socket
        return found

    def drop(self) -> None:
        """Break the connection in the middle of a frame, with a reset where chance wants it."""
        sock = self._socket()
        if sock is None:
            return
        with contextlib.suppress(OSError):
            sock.send(HALF_FRAME)
            if self.draw.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection: Any = self.client._connection
        connection.protocol.stream.close()

    async def stall(self, seconds: float) -> None:
        """Read nothing for some time."""
        connection: Any = self.client._connection
        if self._socket() is None:
            return
        read, gate = connection.read_message, asyncio.Event()

        async def read_later() -> Any:
            await gate.wait()
            return await read()

        connection.read_message = read_later
        await asyncio.sleep(seconds)
        gate.set()
