"""Users who cost little: their sockets are in one native epoll, which gevent's loop watches.

A user's greenlet sleeps until the user speaks, leaves or comes back; what comes for it is read, checked and
counted by ``_loadgen.Crowd`` in the loop's turn, and wakes nobody. What is no message comes here: ``Member``
answers it by the same rules as the Python client, with the same ``Track``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import gevent
import ujson
from gevent.event import AsyncResult

from bench import native
from bench.stage import CONFIRM_SECONDS, ENTER_SECONDS, Stage
from bench.tally import Standing, Tally
from tornadochat.processes import raise_file_limit
from tornadochat.resume import Position, Track, backoff, encode, send_command

log = logging.getLogger("bench")

# Files of a Locust process that are no connections of users.
RESERVED_FILES = 100
# More than a process can be asked to hold where files have no limit; 300 bytes each, touched when used.
MAX_MEMBERS = 200_000
# While a message must be confirmed before its sender goes on, it is looked at that often.
LOOK_SECONDS = 0.02
# A replay that has not brought a sender's own message by then did not have it.
REPLAY_SECONDS = 2.0


class Crowd:
    """The connections of this process's dense users.

    A place is kept for its user until the run is over, so that what it saw is not forgotten.
    """

    def __init__(self, stage: Stage) -> None:
        host, port = stage.address
        self.stage = stage
        self.members: list[Member] = []
        capacity = min(MAX_MEMBERS, raise_file_limit() - RESERVED_FILES)
        self.native = native.load("_loadgen").Crowd(
            host, port, stage.dialect, [], capacity, stage.options.text_bytes
        )
        self.native.listen(self._on_event, self._on_entered, self._on_lost)
        self._rooms: dict[str, int] = {}
        self._watcher = gevent.get_hub().loop.io(self.native.fileno(), 1)
        self._watcher.start(self._on_ready)

    def close(self) -> None:
        """End all connections, and watch no more."""
        self._watcher.stop()
        self._watcher.close()
        for member in self.members:
            member.end()

    def take_place(self, room: str) -> int:
        """A place for one more member of a room."""
        index = self._rooms.get(room)
        if index is None:
            index = self._rooms[room] = self.native.add_room(room)
        return int(self.native.place(index))

    def tally(self) -> Tally:
        """What the epoll counted."""
        crowd = self.native
        found = Tally(sent=crowd.sent, repeats=crowd.repeats, misorders=crowd.misorders)
        found.deliveries, found.joins, found.connects = (
            each.counts() for each in (crowd.deliveries, crowd.joins, crowd.connects)
        )
        if self.stage.held:
            found.hold_deliveries = crowd.counted.counts()
        if not self.stage.dialect.numbered and self.stage.held:
            pairs = zip(crowd.room_sizes(), crowd.sent_by_room(), strict=True)
            found.expected = sum(size * sent for size, sent in pairs)
            found.delivered = crowd.delivered
        return found

    # Called by the loop; nothing here waits ------------------------------------------------------

    def _on_ready(self) -> None:
        try:
            self.native.poll()
        except Exception:
            log.exception("the crowd has failed")
            self.stage.failed("delivery", "the load itself has failed; see its log")

    def _on_event(self, place: int, payload: bytes) -> None:
        self.members[place].on_event(ujson.loads(payload))

    def _on_entered(self, place: int) -> None:
        self.members[place].on_entered()

    def _on_lost(self, place: int, had_joined: bool) -> None:
        self.members[place].on_lost(had_joined)


class Member:
    """One dense user in its room: comes, speaks, leaves, comes back.

    Args:
        number: Of the user, in this process.
    """

    __slots__ = (
        "_answer",
        "_crowd",
        "_number",
        "_over",
        "_pause",
        "_said",
        "_session",
        "_stage",
        "_start",
        "place",
        "track",
    )

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._stage = crowd.stage
        self._number = number
        self._answer: AsyncResult | None = None  # of a try to come in: "" or why it failed
        self._pause: float | None = None  # that the server asked for
        self._over = False
        self._said = ("", "")
        self._session = ""
        self._start = -1
        self.track = Track()
        self.place = crowd.take_place(self.room)
        assert self.place == len(crowd.members)
        crowd.members.append(self)

    @property
    def room(self) -> str:
        """Name of the room."""
        return self._stage.room_of(self._number)

    @property
    def joined(self) -> bool:
        """Whether the member is in its room."""
        return bool(self._crowd.native.is_joined(self.place))

    @property
    def entered(self) -> bool:
        """Whether the member has been in its room."""
        return self._start >= 0

    @property
    def unconfirmed(self) -> int:
        """1 while a message is on its way."""
        return int(self._crowd.native.waiting(self.place) > 0)

    def standings(self) -> Iterable[Standing]:
        """Where the member stands, once it has been in the room."""
        if self._start >= 0:
            crowd = self._crowd.native
            yield Standing(self.room, self._start, crowd.last_seq(self.place), crowd.delivered_to(self.place))

    # What the user's greenlet does; it waits here ------------------------------------------------

    def come_in(self) -> None:
        """Connect and join, however often it takes."""
        attempt = 0
        while not self._over and (reason := self._try_to_come_in()):
            counts = self._stage.counts
            if self._crowd.native.was_upgraded(self.place):
                counts.failed_joins += 1
                self._stage.failed("join", reason)
            else:
                counts.failed_connects += 1
                self._stage.failed("connect", reason)
            pause, self._pause = self._pause, None
            gevent.sleep(backoff(attempt) if pause is None else pause)
            attempt += 1

    def _try_to_come_in(self) -> str:
        crowd = self._crowd.native
        crowd.close(self.place)
        with self._stage.door:
            answer = self._answer = AsyncResult()
            try:
                if not crowd.begin(self.place, self._target(), self._stage.source_of(self._number)):
                    return "no connection could be begun"
                return str(answer.get(timeout=ENTER_SECONDS))
            except gevent.Timeout:
                return f"no answer within {ENTER_SECONDS:.0f} s"
            finally:
                self._answer = None

    def _target(self) -> str:
        """Who it is: a new guest, or the one that it was before."""
        if not self._stage.dialect.numbered:
            return ""
        return f"/ws?token={quote(self._session)}" if self._session else f"/ws?name=Load+{self._number}"

    def say(self) -> None:
        """Send one message to the room, once the one before it is confirmed."""
        if not self._wait_until_confirmed() or not self.joined or self._stage.last_call.is_set():
            return
        message_id = self._stage.new_id()
        text = self._crowd.native.say(self.place, message_id)
        if text:
            self._said = message_id, text

    def leave_and_return(self) -> None:
        """Go away, and come back for what was missed meanwhile."""
        if not self._wait_until_confirmed() or not self.joined:
            return
        self.leave()
        self._stage.away()
        self._stage.counts.returns += 1
        self.come_in()

    def leave(self) -> None:
        """End the connection."""
        self._note_position()
        self.track.pause()
        self._crowd.native.close(self.place)

    def end(self) -> None:
        """Leave for good."""
        self._over = True
        self.leave()

    def _wait_until_confirmed(self) -> bool:
        """Wait until no message is on its way; one that does not come back is a failure, once."""
        crowd = self._crowd.native
        while (waiting := crowd.waiting(self.place)) and waiting < CONFIRM_SECONDS:
            gevent.sleep(LOOK_SECONDS)
        if waiting and self.joined:
            crowd.confirm(self.place)
            self._stage.counts.unconfirmed += 1
            self._stage.failed("send", f"not confirmed within {CONFIRM_SECONDS:.0f} s")
        return self.joined

    def _come_back(self) -> None:
        """The connection was lost: come in again, and send again what was not confirmed, with the same id."""
        gevent.sleep(backoff(0) if self._pause is None else self._pause)
        self._pause = None
        if self._over:
            return
        self._stage.counts.returns += 1
        self.come_in()
        crowd = self._crowd.native
        deadline = time.monotonic() + REPLAY_SECONDS
        while crowd.waiting(self.place) and time.monotonic() < deadline:
            gevent.sleep(LOOK_SECONDS)
        if crowd.waiting(self.place):
            crowd.send(self.place, encode(send_command(self.room, *self._said)).encode())

    # What comes for it; nothing here waits -------------------------------------------------------

    def on_entered(self) -> None:
        """It is in."""
        if self._start < 0:
            self._start = self._crowd.native.last_seq(self.place)
        if self._answer is not None:
            self._answer.set("")

    def on_lost(self, had_joined: bool) -> None:
        """The connection has ended."""
        self._note_position()
        self.track.pause()
        if self._answer is not None:
            self._answer.set(self._crowd.native.error() or "the connection was refused or closed")
        elif had_joined:
            self._stage.counts.disconnected += 1
            self._stage.failed("connect", "lost: the connection ended, though nobody had closed it")
            self._stage.greenlets.spawn(self._come_back)

    def on_event(self, event: dict[str, Any]) -> None:
        """An event that is no message."""
        handler = HANDLERS.get(event["type"])
        if handler is not None:
            handler(self, event)

    def _note_position(self) -> None:
        """Tell the track what the epoll has counted."""
        if self.track.live:
            self.track.position = Position(self.track.epoch, self._crowd.native.last_seq(self.place))

    def _join(self) -> None:
        self._crowd.native.send(self.place, encode(self.track.join_command(self.room, history=0)).encode())

    def _on_welcome(self, event: dict[str, Any]) -> None:
        self._session = event["session"] or self._session
        self._join()

    def _on_joined(self, event: dict[str, Any]) -> None:
        hole = self.track.on_joined(event)
        position = self.track.position
        self._go_on_behind(position.seq if position else event["seq"] - event["missing"], event["seq"], hole)

    def _on_reset(self, event: dict[str, Any]) -> None:
        self._note_position()
        self._go_on_behind(event["seq"], 0, self.track.on_reset(event))

    def _go_on_behind(self, seq: int, replay_end: int, hole: bool) -> None:
        crowd = self._crowd.native
        if hole:
            self._stage.failed("delivery", "hole: the server says that messages are gone")
        if hole or self._start > seq:
            self._start = seq - crowd.delivered_to(self.place)
        crowd.let_in(self.place, seq + 1, replay_end)

    def _on_gap(self, event: dict[str, Any]) -> None:
        self._note_position()
        self.track.pause()
        self._join()

    def _on_ack(self, event: dict[str, Any]) -> None:
        if event["id"] == self._said[0]:
            self._crowd.native.confirm(self.place)

    def _on_error(self, event: dict[str, Any]) -> None:
        code, pause_ms = event["code"], event.get("retry_after_ms")
        self._stage.counts.refused += 1
        if "id" not in event and self._answer is not None:
            self._answer.set(f"refused: {code}")  # whoever waits for it reports it
            return
        self._stage.failed("send" if "id" in event else "join", f"refused: {code}")
        if pause_ms is not None and event.get("id") == self._said[0]:
            command = encode(send_command(self.room, *self._said)).encode()
            self._stage.greenlets.add(
                gevent.spawn_later(pause_ms / 1000, self._crowd.native.send, self.place, command)
            )
        elif pause_ms is not None and "id" not in event:  # the room could not be read: the member is out of it
            self._note_position()
            self.track.pause()
            self._stage.greenlets.add(gevent.spawn_later(pause_ms / 1000, self._join))

    def _on_bye(self, event: dict[str, Any]) -> None:
        self._pause = event["retry_after_ms"] / 1000


HANDLERS = {
    "welcome": Member._on_welcome,
    "joined": Member._on_joined,
    "reset": Member._on_reset,
    "gap": Member._on_gap,
    "ack": Member._on_ack,
    "error": Member._on_error,
    "bye": Member._on_bye,
}
