"""Locust users that chat: each signs in, joins rooms, talks, goes away, comes back, and checks all that it gets.

    locust -f bench/locustfile.py --host http://127.0.0.1:8000 ChatUser
    locust -f bench/locustfile.py --host http://127.0.0.1:8000 DenseChatUser --headless -u 2000 -r 500 --hold 60

``ChatUser`` is for ordinary scale and to copy from: a greenlet reads its socket. Of ``DenseChatUser`` one
process holds ten thousand and more: see ``bench.crowd``. Both work with the web page, headless, and distributed
(``--processes``, or ``--master`` and ``--worker``). Without one of the names Locust makes half of the users of
each kind. Beside Locust's own options there are those of ``options`` below.

What is reported: ``connect`` (TCP and the handshake), ``join``, ``send`` (until the own copy is back),
``delivery`` (from the stamp that the sender put into the text; by one clock, since the members of a room are all
in one process) and ``replay`` (the same for what came after a return). A hole, a repeat, a message out of order,
one that is not confirmed or not delivered by the end of the run is a failure, and so is a lost connection.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import ujson
from gevent.event import AsyncResult
from locust import HttpUser, User, events, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from websocket import WebSocket, WebSocketException, create_connection

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the rest: only `bench` comes from there

from bench import native
from bench.conductor import Answering, Conductor
from bench.crowd import Crowd, Member
from bench.dialects import DIALECTS
from bench.processes import loopback
from bench.stage import CONFIRM_SECONDS, ENTER_SECONDS, stage_of
from bench.tally import Standing
from tornadochat.protocol import SUBPROTOCOL
from tornadochat.resume import Position, Track, backoff, encode, send_command

native.load("_loadgen")  # compiled once, before Locust forks its workers

# A worker that starts thousands of users, or shares its core with the server, may be silent for that many
# seconds; Locust's 3 would have it replaced, and its users counted as gone.
runners.HEARTBEAT_LIVENESS = 60

# What each text of a load begins with, the dense users' too.
STAMP = re.compile(r"@(\d+)")
# Seqs of a hole that are remembered, so that one that comes too late is told from a repeat.
MAX_MISSING = 1000


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """What a load can be told; the web page shows these fields too."""
    parser.add_argument("--room-size", type=int, default=50, help="Members of a room")
    parser.add_argument("--rooms-per-user", type=int, default=2, help="Rooms of a ChatUser; a dense one has one")
    parser.add_argument("--messages-per-minute", type=float, default=1.0, help="Of each user; 0 for none")
    parser.add_argument("--text-bytes", type=int, default=96, help="Length of a message")
    parser.add_argument(
        "--leave-share", type=float, default=0.05, help="Share of a user's turns in which it goes away and returns"
    )
    parser.add_argument(
        "--away-seconds", type=float, default=5.0, help="How long it is away, half of it to half more"
    )
    parser.add_argument(
        "--connects-at-a-time", type=int, default=100, help="Users of a worker that connect at the same time"
    )
    parser.add_argument(
        "--sources",
        default="",
        help="Source addresses, with commas; by default each worker has its own 127.x ones",
    )
    parser.add_argument(
        "--dialect", choices=sorted(DIALECTS), default="tornadochat", help="What the server speaks (dense users)"
    )
    parser.add_argument(
        "--hold", type=float, default=0.0, help="Seconds for which all are there; then they leave, and Locust ends"
    )
    parser.add_argument(
        "--settle", type=float, default=30.0, help="Seconds that the last deliveries get; then they are lost"
    )
    parser.add_argument(
        "--ramp-down", type=float, default=2000.0, help="Users that leave in a second, after --hold"
    )
    parser.add_argument(
        "--progress", default="", include_in_web_ui=False, help="File for phases and outcome, as JSON"
    )


@events.init.add_listener
def set_up(environment: Environment, **_event: Any) -> None:
    """Each process has users, or leads, or both.

    Raises:
        ValueError: The host is not on this machine; Locust ends.
    """
    if environment.host:
        loopback(environment.host)
    if not isinstance(environment.runner, MasterRunner):
        Answering(environment)
    if not isinstance(environment.runner, WorkerRunner):
        Conductor(environment)


class Paced:
    """A user's pace: its messages are due at equal distances, whatever its greenlet did meanwhile."""

    due = 0.0

    def begin_pace(self, interval: float) -> None:
        """The first message is due somewhere within the first interval."""
        self._interval = interval
        self.due = time.monotonic() + random.uniform(0, interval)

    def wait_for_turn(self) -> float:
        """Wait until the message is due; returns by how much it is late."""
        gevent.sleep(max(0.0, self.due - time.monotonic()))
        late = time.monotonic() - self.due
        self.due = max(self.due, time.monotonic() - self._interval) + self._interval
        return late


class DenseChatUser(Paced, User):
    """One of very many. Its greenlet sleeps until its turn; what comes for it, the process's epoll counts."""

    member: Member | None = None

    def on_start(self) -> None:
        """Come into the room."""
        self.stage = stage_of(self.environment)
        if self.stage.crowd is None:
            self.stage.crowd = Crowd(self.stage)
        self.member = Member(self.stage.crowd, self.stage.take_number())
        self.stage.enter(self.member)
        gevent.sleep(random.random())  # Locust starts the users of a second all at once
        self.member.come_in()
        self.begin_pace(self.stage.interval)

    @task
    def turn(self) -> None:
        """Think, then speak or go away for a while."""
        assert self.member is not None
        self.stage.late(self.wait_for_turn())
        if self.stage.leaves():
            self.member.leave_and_return()
            self.begin_pace(self.stage.interval)
        else:
            self.member.say()

    def on_stop(self) -> None:
        """Go."""
        if self.member is not None:
            self.stage.leave(self.member)
            self.member.end()


class Seat:
    """A user's seat in one room: the position, and what was seen of it."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.track = Track()
        self.start = -1
        self.delivered = 0
        self.missing: set[int] = set()
        self.entered = AsyncResult()

    def check(self, seq: int) -> str:
        """Take a message's seq; returns what is wrong with it."""
        last = self.track.position
        if not self.track.on_message(seq):
            if seq not in self.missing:
                return "repeat: a message came twice"
            self.missing.discard(seq)
            self.delivered += 1
            return "misorder: a message came behind a later one"
        self.delivered += 1
        if last is not None and seq > last.seq + 1:
            self.missing = set(range(max(last.seq + 1, seq - MAX_MISSING), seq))
            return "hole: numbers were skipped"
        return ""


class ChatUser(Paced, HttpUser):
    """A user with a socket of its own and a greenlet that reads it; speaks ``tornadochat.v1`` alone."""

    over = coming = False
    seats: dict[str, Seat] = {}

    def on_start(self) -> None:
        """Sign in, connect, join the rooms."""
        self.stage = stage_of(self.environment)
        if not self.stage.dialect.numbered:
            self.stage.stats.log_error("WS", "run", "a ChatUser speaks tornadochat.v1 alone")
            raise StopUser()
        number = self.stage.take_number()
        self.source = self.stage.source_of(number)
        layers = range(self.stage.options.rooms_per_user)
        self.seats = {room: Seat(room) for room in (self.stage.room_of(number, layer) for layer in layers)}
        self.pending: dict[str, tuple[dict[str, Any], AsyncResult]] = {}
        self.pause: float | None = None  # that the server asked for
        self.socket: WebSocket | None = None
        self.user_id = self.token = ""
        self.stage.enter(self)
        answer = self.client.post("/api/session", json={"name": f"User {number}"}).json()
        self.user_id, self.token = answer["user"]["id"], answer["token"]
        self.come_in()
        self.begin_pace(self.stage.interval)

    @task
    def turn(self) -> None:
        """Think, then say something in one of the rooms, or go away for a while."""
        self.stage.late(self.wait_for_turn())
        if self.stage.last_call.is_set() or not self.joined:
            return
        if not self.stage.leaves():
            self.say(random.choice(list(self.seats)))
            return
        self.leave()
        self.stage.away()
        self.stage.counts.returns += 1
        self.come_in()
        self.begin_pace(self.stage.interval)

    def on_stop(self) -> None:
        """Go."""
        self.over = True
        if self.seats:
            self.stage.leave(self)
            self.leave()

    # What a user does ---------------------------------------------------------------------------

    def come_in(self) -> None:
        """Connect and join all rooms, behind what the user has; again until it works."""
        attempt, self.coming = 0, True
        while not self.over and not (self._connect() and self._join_rooms()):
            self.leave()
            gevent.sleep(backoff(attempt))
            attempt += 1
        self.coming = False
        for command, _confirmed in tuple(self.pending.values()):
            self._send(command)  # with the same id, so it is stored once

    def say(self, room: str) -> None:
        """Send a message, and wait until it comes back."""
        message_id, began = self.stage.new_id(), time.monotonic()
        text = f"@{int(began * 1e6)} ".ljust(self.stage.options.text_bytes, "x")
        command, confirmed = send_command(room, message_id, text), AsyncResult()
        self.pending[message_id] = command, confirmed
        self.stage.counts.sent += 1
        self._send(command)
        try:
            confirmed.get(timeout=CONFIRM_SECONDS)
            failure = ""
        except gevent.Timeout:
            self.stage.counts.unconfirmed += 1
            failure = f"not confirmed within {CONFIRM_SECONDS:.0f} s"
        self.pending.pop(message_id, None)
        self.stage.took("send", time.monotonic() - began, failure)

    def leave(self) -> None:
        """Close the connection."""
        left, self.socket = self.socket, None
        for seat in self.seats.values():
            seat.track.pause()
        if left is not None:
            left.close(timeout=1)

    # The stage's questions ----------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        """Whether the user is in all its rooms and has what was missing."""
        return self.socket is not None and all(seat.track.caught_up for seat in self.seats.values())

    @property
    def entered(self) -> bool:
        """Whether the user has been in all its rooms."""
        return all(seat.start >= 0 for seat in self.seats.values())

    @property
    def unconfirmed(self) -> int:
        """Messages on their way."""
        return len(self.pending)

    def standings(self) -> Iterable[Standing]:
        """Where the user stands in each room."""
        for seat in self.seats.values():
            if seat.start >= 0:
                last = seat.track.position.seq if seat.track.position else seat.start
                yield Standing(seat.room, seat.start, last, seat.delivered)

    # The connection -----------------------------------------------------------------------------

    def _connect(self) -> bool:
        host, port = self.stage.address
        with self.stage.door:
            began = time.monotonic()
            try:
                raw = socket.create_connection((host, port), ENTER_SECONDS, (self.source, 0))
                url = f"ws://{host}:{port}/ws?token={quote(self.token)}"
                self.socket = create_connection(url, ENTER_SECONDS, socket=raw, subprotocols=[SUBPROTOCOL])
            except (WebSocketException, OSError) as error:
                self.stage.counts.failed_connects += 1
                self.stage.took("connect", time.monotonic() - began, str(error))
                return False
            self.socket.settimeout(None)
            self.stage.took("connect", time.monotonic() - began)
        self.stage.greenlets.spawn(self._receive, self.socket)
        return True

    def _join_rooms(self) -> bool:
        for seat in self.seats.values():
            began, seat.entered = time.monotonic(), AsyncResult()
            self._send(seat.track.join_command(seat.room, history=0))
            try:
                failure = seat.entered.get(timeout=ENTER_SECONDS)
            except gevent.Timeout:
                failure = f"no answer within {ENTER_SECONDS:.0f} s"
            self.stage.took("join", time.monotonic() - began, failure)
            if failure:
                self.stage.counts.failed_joins += 1
                return False
        return True

    def _send(self, command: dict[str, Any]) -> None:
        try:
            if self.socket is not None:
                self.socket.send(encode(command))
        except (WebSocketException, OSError) as error:
            logging.debug("a connection is gone: %s", error)  # its reader tells

    def _receive(self, mine: WebSocket) -> None:
        """Read one connection until it ends."""
        try:
            while text := mine.recv():
                if mine is not self.socket:
                    return
                self._handle(ujson.loads(text))
        except (WebSocketException, OSError) as error:
            logging.debug("a connection has ended: %s", error)
        if mine is self.socket:
            self.leave()
            self.stage.counts.disconnected += 1
            self.stage.failed("connect", "lost: the connection ended, though nobody had closed it")
            if self.coming:  # whoever waits for the rooms tries again
                for seat in self.seats.values():
                    seat.entered.set("the connection was lost")
                return
            pause, self.pause = self.pause, None
            gevent.sleep(backoff(0) if pause is None else pause)
            self.stage.counts.returns += 1
            self.come_in()

    # What comes ---------------------------------------------------------------------------------

    def _handle(self, event: dict[str, Any]) -> None:
        seat = self.seats.get(event.get("room", ""))
        if seat is None:
            if event["type"] == "bye":
                self.pause = event["retry_after_ms"] / 1000
            return
        match event["type"]:
            case "message":
                self._on_message(seat, event)
            case "joined":
                self._go_on(seat, seat.track.on_joined(event), event["seq"] - event["missing"])
                seat.entered.set("")
            case "reset":
                self._go_on(seat, seat.track.on_reset(event), event["seq"])
            case "gap":
                seat.track.pause()
                self._send(seat.track.join_command(seat.room, history=0))
            case "ack":
                self._confirm(event["id"])
            case "error":
                self._on_error(seat, event)

    def _on_error(self, seat: Seat, event: dict[str, Any]) -> None:
        self.stage.counts.refused += 1
        failure = f"refused: {event['code']}"
        if "id" not in event and self.coming:
            seat.entered.set(failure)  # whoever waits for it reports it
            return
        self.stage.failed("send" if "id" in event else "join", failure)
        if "retry_after_ms" not in event:
            return
        if "id" not in event:  # the room could not be read: the user is out of it
            seat.track.pause()
            command = seat.track.join_command(seat.room, history=0)
        elif event["id"] in self.pending:
            command, _confirmed = self.pending[event["id"]]
        else:
            return
        self.stage.greenlets.add(gevent.spawn_later(event["retry_after_ms"] / 1000, self._send, command))

    def _on_message(self, seat: Seat, event: dict[str, Any]) -> None:
        if event["user"]["id"] == self.user_id:
            self._confirm(event["id"])
        if not seat.track.live:
            return  # it comes again behind the position
        replayed = event["seq"] <= seat.track.head
        wrong = seat.check(event["seq"])
        if wrong:
            self.stage.failed("delivery", wrong)
            self.stage.counts.repeats += wrong.startswith("repeat")
            self.stage.counts.misorders += wrong.startswith("misorder")
        elif stamp := STAMP.match(event["text"]):
            self.stage.took("replay" if replayed else "delivery", time.monotonic() - int(stamp[1]) / 1e6)

    def _go_on(self, seat: Seat, hole: bool, seq: int) -> None:
        """The room goes on behind a seq, of which everything is there unless there is a hole before it."""
        if hole:
            self.stage.failed("delivery", "hole: the server says that messages are gone")
            seat.track.position = Position(seat.track.epoch, seq)
        if seat.start < 0 or hole or seq < seat.start:
            seat.start = seq - seat.delivered

    def _confirm(self, message_id: str) -> None:
        if message_id in self.pending:
            _command, confirmed = self.pending.pop(message_id)
            confirmed.set(None)
