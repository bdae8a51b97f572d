"""A chat server that breaks its promises, one in each room, for the tests of whoever checks a real one.

It speaks as much of ``tornadochat.v1`` as a load needs. What it does wrong is told by the number that ends a
room's name, see ``FAULTS``; the third message of a room is the one that it does it with.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

FAULTS = ("none", "hole", "repeat", "misorder", "lost", "unconfirmed")
EPOCH = "abcdefgh"
FAULTY_MESSAGE = 3


class Room:
    """Members, and how far the numbers are."""

    def __init__(self, name: str) -> None:
        number = int(name.rpartition("-")[2])
        self.fault = FAULTS[number] if number < len(FAULTS) else "none"
        self.members: list[Member] = []
        self.seq = 0
        self.held = ""

    def say(self, sender: Member, command: dict[str, Any]) -> None:
        """Number a message and send it to everybody, or do what the fault asks for."""
        self.seq += 1
        faulty = self.seq == FAULTY_MESSAGE
        if faulty and self.fault == "unconfirmed":
            self.seq -= 1
            return
        if faulty and self.fault == "hole":
            self.seq += 1
        event = {"seq": self.seq, "type": "message", "room": command["room"], "id": command["id"]}
        event |= {"user": {"id": sender.user, "name": "Ada"}, "text": command["text"], "ts": 1}
        text = json.dumps(event, separators=(",", ":"))
        if faulty and self.fault == "misorder":
            self.held = text
            return
        members = self.members
        if self.fault == "lost" and self.seq >= FAULTY_MESSAGE:
            members = members[:-1]
            if sender not in members:
                ack = {
                    "type": "ack",
                    "room": command["room"],
                    "id": command["id"],
                    "epoch": EPOCH,
                    "seq": self.seq,
                }
                sender.write_message(ack)
        for member in members:
            member.write_message(text)
            if faulty and self.fault == "repeat":
                member.write_message(text)
            if self.held:
                member.write_message(self.held)
        self.held = ""


class Member(WebSocketHandler):
    """One connection."""

    def open(self, *_arguments: str) -> None:
        """Say welcome, unless it is the one to be refused."""
        self.user = self.get_query_argument("token", "") or f"u_{id(self)}"
        self.rooms: list[Room] = []
        self.write_message({"type": "welcome", "user": {"id": self.user}, "session": self.user, "limits": {}})

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Whatever is offered."""
        return subprotocols[0] if subprotocols else None

    async def get(self, *arguments: Any, **named: Any) -> None:
        """Refuse the first handshakes, as a server that is full does."""
        chat: FakeChat = self.application.settings["chat"]
        if chat.refusals:
            chat.refusals -= 1
            self.set_status(503)
            return
        await super().get(*arguments, **named)

    def on_message(self, message: str | bytes) -> None:
        """A command."""
        chat: FakeChat = self.application.settings["chat"]
        command = json.loads(message)
        room = chat.rooms[command["room"]]
        if command["type"] == "join" and chat.refused_joins:
            chat.refused_joins -= 1
            event = {"type": "error", "code": "unavailable", "message": "Later.", "room": command["room"]}
            self.write_message(event | {"retry_after_ms": 10})
        elif command["type"] == "join":
            after = command.get("after", {"seq": room.seq})["seq"]
            assert after == room.seq, "the fake has no log"
            room.members.append(self)
            self.rooms.append(room)
            event = {"type": "joined", "room": command["room"], "epoch": EPOCH, "seq": room.seq}
            self.write_message(event | {"truncated": False, "missing": 0, "people": 1})
        elif command["type"] == "send":
            room.say(self, command)

    def on_close(self) -> None:
        """Gone."""
        for room in getattr(self, "rooms", ()):
            room.members.remove(self)


class Session(RequestHandler):
    """Sign in."""

    def post(self) -> None:
        """A new guest."""
        name = json.loads(self.request.body)["name"]
        self.write({"user": {"id": name.replace(" ", "_"), "name": name}, "token": name.replace(" ", "_")})


class Rooms(dict[str, Room]):
    """Rooms, made when somebody comes."""

    def __missing__(self, name: str) -> Room:
        self[name] = room = Room(name)
        return room


class FakeChat:
    """The server, in a thread of its own; a context manager that ends it.

    Args:
        refusals: Handshakes that are refused, the first ones.
        refused_joins: Joins that are.
    """

    def __init__(self, refusals: int = 0, refused_joins: int = 0) -> None:
        self.refusals = refusals
        self.refused_joins = refused_joins
        self.rooms = Rooms()
        self.port = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> FakeChat:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = HTTPServer(Application([(r"/ws", Member), (r"/api/session", Session)], chat=self))
        listening, self.port = bind_unused_port()
        server.add_socket(listening)
        self._started.set()
        await self._ended.wait()
        server.stop()
        await server.close_all_connections()
