"""What a client knows of its place in one room, and when it may come back.

The client's half of docs/protocol.md, "Positions". ``client`` holds one ``Track`` for each room, and so
does whatever else speaks the protocol in Python, such as a load test. Pure: takes events, returns facts;
no sockets, no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ujson

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
# 2**6 times the first pause is above the last one.
MAX_DOUBLINGS = 6


class Position(NamedTuple):
    """The last message that a client has of a room; seqs are compared within one epoch only."""

    epoch: str
    seq: int


def backoff(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait before try number ``attempt`` (from 0): full jitter under a limit that doubles.

    Everything below the limit is equally likely, so that those who fell together do not return together.
    """
    return draw() * min(LAST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * (1 << min(attempt, MAX_DOUBLINGS)))


def encode(command: Mapping[str, Any]) -> str:
    """A command as the text of a frame."""
    return ujson.dumps(command, ensure_ascii=False, escape_forward_slashes=False)


def send_command(room: str, message_id: str, text: str) -> dict[str, Any]:
    """The command that says something; the same id again makes a repeat recognisable."""
    return {"type": "send", "room": room, "id": message_id, "text": text}


class Track:
    """The position in one room, moved by the events of that room and by nothing else.

    Attributes:
        position: What the next ``join`` gives as ``after``; None where nothing is known.
        live: Whether the server sends this room's events to the present connection.
        head: Seq that ends the replay of the last ``joined``.
        repeats: Messages that came although the position was behind them; they are not to be shown.
        holes: Numbers that were skipped without a word. Both stay 0 unless a promise was broken.
    """

    __slots__ = ("epoch", "head", "holes", "live", "position", "repeats")

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self.epoch = ""
        self.head = 0
        self.live = False
        self.repeats = 0
        self.holes = 0

    @property
    def caught_up(self) -> bool:
        """Whether everything that was missing at the last ``joined`` has come."""
        return self.live and self.position is not None and self.position.seq >= self.head

    def join_command(self, room: str, history: int) -> dict[str, Any]:
        """The command that comes into the room, behind the position where there is one.

        Args:
            history: Newest messages wanted without a position, or where it cannot be continued.
        """
        command: dict[str, Any] = {"type": "join", "room": room, "history": history}
        if self.position is not None:
            command["after"] = {"epoch": self.position.epoch, "seq": self.position.seq}
        return command

    def on_joined(self, event: Mapping[str, Any]) -> bool:
        """Take ``joined`` in; returns whether there is a hole before what follows (``truncated``)."""
        self.live = True
        self.epoch, self.head = event["epoch"], event["seq"]
        if event["missing"] == 0:
            self.position = Position(self.epoch, self.head)
        elif event["truncated"]:
            self.position = None
        return bool(event["truncated"])

    def on_message(self, seq: int) -> bool:
        """Move to a message; False for one that is behind the position already."""
        last = self.position
        if last is not None:
            # Numbers go on across epochs, so what follows an unbroken resume follows the old seq too.
            if seq <= last.seq and self.epoch == last.epoch:
                self.repeats += 1
                return False
            if seq != last.seq + 1:
                self.holes += 1
        self.position = Position(self.epoch, seq)
        return True

    def on_reset(self, event: Mapping[str, Any]) -> bool:
        """Take ``reset`` in; returns whether messages are missing or were lost by the store."""
        caught_up = self.caught_up
        self.epoch = event["epoch"]
        self.position = Position(self.epoch, event["seq"])
        if caught_up:  # a store that lost everything begins with small numbers again
            self.head = event["seq"]
        return bool(event["truncated"])

    def pause(self) -> None:
        """The room is silent until the next ``joined``: a gap, or a connection that is gone."""
        self.live = False
