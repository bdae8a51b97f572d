"""Every command, event and error code of the wire protocol ``tornadochat.v1``.

Third step of the walk: ``parse_command`` makes a command of one text payload; the functions behind it
make the events that go back. docs/protocol.md describes both for people, ``schema.json`` for machines,
and tests/samples holds one of each kind. Pure: no sockets, no store, no clock.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ujson

from tornadochat._fastframe import plain_message, plain_send
from tornadochat.errors import ProtocolError
from tornadochat.text_rules import check_text, normalise_room

if TYPE_CHECKING:
    from tornadochat.settings import Settings

SUBPROTOCOL = "tornadochat.v1"

# Code of an ``error`` event -> what its receiver does about it.
ERROR_CODES: dict[str, str] = {
    "bad_json": "Send one JSON object in each text frame (RFC 8259, UTF-8).",
    "bad_command": "Correct the command; its message names the field.",
    "unknown_type": "Use one of the command types of this protocol.",
    "bad_room": "Choose a room name within the limits of `welcome`.",
    "bad_text": "Shorten the text, or take out control characters.",
    "not_joined": "Join the room, then send the command again.",
    "forbidden": "Ask whoever runs the chat for access; trying again does not help.",
    "too_many_rooms": "Leave a room first.",
    "rate_limited": "Wait `retry_after_ms`, then send it again with the same id.",
    "id_reused": "Give the message a new id: this one belongs to another text.",
    "unavailable": "The outcome is unknown: wait `retry_after_ms`, then send it again with the same id.",
}

# Close code -> whether and how a client comes back.
CLOSE_CODES: dict[int, str] = {
    1000: "Closed by the client.",
    1002: "The client broke RFC 6455; mend it before it connects again.",
    1003: "A binary message came; only text is understood.",
    1007: "A text was not UTF-8.",
    1008: "Against the rules: nothing joined in time, or the session ended or expired; sign in first.",
    1009: "A message was larger than `limits.message_bytes`.",
    1011: "The server failed; connect again with back-off.",
    1012: "The server restarts; connect again after `bye.retry_after_ms`.",
    1013: "The client read too slowly; connect again with back-off.",
}

ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
EPOCH = re.compile(r"[a-z0-9]{8}")
MAX_SEQ = 2**53 - 1
DEFAULT_HISTORY = 50
MAX_WHO = 200


class User(NamedTuple):
    """Who somebody is: an id that stays, and a name to show."""

    id: str
    name: str


class Limits(NamedTuple):
    """What a client must keep to; told in ``welcome``."""

    text_chars: int
    text_bytes: int
    message_bytes: int
    rooms: int
    history: int
    backlog_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that these settings stand for."""
        return cls(
            settings.max_text_chars,
            settings.max_text_bytes,
            settings.max_message_bytes,
            settings.max_rooms_per_member,
            settings.history,
            settings.max_backlog_bytes,
        )


class Join(NamedTuple):
    """Come into a room. ``after`` is the (epoch, seq) that the client has, None for the newest."""

    room: str
    after: tuple[str, int] | None
    history: int


class Leave(NamedTuple):
    """Go out of a room."""

    room: str


class Send(NamedTuple):
    """Say something. ``id`` makes a repeat recognisable."""

    room: str
    id: str
    text: str


class Typing(NamedTuple):
    """Tell the others that a text is being written."""

    room: str


class Who(NamedTuple):
    """Ask for a window of the people in a room."""

    room: str
    offset: int
    limit: int


class Ping(NamedTuple):
    """Ask for a ``pong``."""


Command = Join | Leave | Send | Typing | Who | Ping


# Commands ------------------------------------------------------------------------------------------


def parse_command(payload: bytes, limits: Limits) -> Command:
    """One text payload as a command.

    Args:
        payload: UTF-8, at most ``limits.message_bytes`` long.
        limits: Of texts and histories.

    Raises:
        ProtocolError: It is no command; the error names what to correct. Unknown fields are ignored,
            so that the protocol can grow.
    """
    plain = plain_send(payload, min(limits.text_chars, limits.text_bytes))
    return parse_json(payload, limits) if plain is None else Send._make(plain)


def parse_json(payload: bytes, limits: Limits) -> Command:
    """``parse_command`` for every payload, also those that are no plain ``send``."""
    try:
        found = ujson.loads(payload)
    except (ValueError, RecursionError):
        raise ProtocolError("bad_json", "Send one JSON object in each message.") from None
    if type(found) is not dict:
        raise ProtocolError("bad_json", "Send one JSON object in each message.")
    kind = found.get("type")
    parser = PARSERS.get(kind) if type(kind) is str else None
    if parser is None:
        raise ProtocolError(
            "unknown_type", f"`type` must be one of {', '.join(PARSERS)}.", message_id=_id_or_none(found)
        )
    return parser(found, limits)


def _parse_send(found: dict[str, Any], limits: Limits) -> Send:
    message_id, room = found.get("id"), None
    if type(message_id) is not str or ID.fullmatch(message_id) is None:
        raise ProtocolError("bad_command", "`id` must be 16 to 64 characters of A-Z, a-z, 0-9, _ and -.")
    try:
        room = normalise_room(found.get("room"))
        text = check_text(found.get("text"), limits.text_chars, limits.text_bytes)
    except ProtocolError as error:
        error.message_id, error.room = message_id, room
        raise
    return Send(room, message_id, text)


def _parse_join(found: dict[str, Any], limits: Limits) -> Join:
    room = normalise_room(found.get("room"))
    history = found.get("history", min(DEFAULT_HISTORY, limits.history))
    if type(history) is not int or not 0 <= history <= MAX_SEQ:
        raise _bad("`history` must be a number of messages from 0 on.", room)
    return Join(room, _position(found.get("after"), room), min(history, limits.history))


def _position(after: Any, room: str) -> tuple[str, int] | None:
    if after is None:
        return None
    epoch, seq = (after.get("epoch"), after.get("seq")) if type(after) is dict else (None, None)
    if type(epoch) is not str or EPOCH.fullmatch(epoch) is None:
        raise _bad("`after.epoch` must be an epoch as `joined` gave it.", room)
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise _bad("`after.seq` must be a seq from 0 on.", room)
    return epoch, seq


def _parse_who(found: dict[str, Any], limits: Limits) -> Who:
    room = normalise_room(found.get("room"))
    offset, limit = found.get("offset", 0), found.get("limit", MAX_WHO)
    if type(offset) is not int or not 0 <= offset <= MAX_SEQ:
        raise _bad("`offset` must be a number from 0 on.", room)
    if type(limit) is not int or not 1 <= limit <= MAX_WHO:
        raise _bad(f"`limit` must be a number from 1 to {MAX_WHO}.", room)
    return Who(room, offset, limit)


def _bad(message: str, room: str) -> ProtocolError:
    return ProtocolError("bad_command", message, room=room)


def _id_or_none(found: dict[str, Any]) -> str | None:
    message_id = found.get("id")
    return message_id if type(message_id) is str and ID.fullmatch(message_id) else None


PARSERS: dict[str, Callable[[dict[str, Any], Limits], Command]] = {
    "join": _parse_join,
    "leave": lambda found, limits: Leave(normalise_room(found.get("room"))),
    "send": _parse_send,
    "typing": lambda found, limits: Typing(normalise_room(found.get("room"))),
    "who": _parse_who,
    "ping": lambda found, limits: Ping(),
}


# Events --------------------------------------------------------------------------------------------


def _event(fields: dict[str, Any]) -> bytes:
    return ujson.dumps(fields, ensure_ascii=False, escape_forward_slashes=False).encode("utf-8")


@functools.lru_cache(8)
def _limits(limits: Limits) -> dict[str, int]:
    return limits._asdict()


def _user(user: User) -> dict[str, str]:
    return {"id": user.id, "name": user.name}


def welcome(user: User, session: str, limits: Limits) -> bytes:
    """First event of a connection. ``session`` is the token that brings the same user back."""
    return _event({"type": "welcome", "user": _user(user), "session": session, "limits": _limits(limits)})


def joined(room: str, epoch: str, seq: int, truncated: bool, missing: int, people: int) -> bytes:
    """Answer to ``join``: the room's head, and how many messages follow before the live ones."""
    return _event(
        {
            "type": "joined",
            "room": room,
            "epoch": epoch,
            "seq": seq,
            "truncated": truncated,
            "missing": missing,
            "people": people,
        }
    )


def left(room: str, reason: str) -> bytes:
    """The connection is out of a room: ``left`` on its own command, ``removed`` by a moderator."""
    return _event({"type": "left", "room": room, "reason": reason})


def message_body(room: str, message_id: str, user: User, text: str, ts_ms: int) -> bytes:
    """A message without its seq, which the frame codec splices in; made once, by the sender's worker.

    Args:
        ts_ms: When it was received, in milliseconds since 1970.
    """
    plain = plain_message(room, message_id, user.id, user.name, text, ts_ms)
    return plain or _event(
        {"type": "message", "room": room, "id": message_id, "user": _user(user), "text": text, "ts": ts_ms}
    )


def ack(room: str, message_id: str, epoch: str, seq: int) -> bytes:
    """A send was stored before, or its sender is not in the room any more. Moves no position."""
    return _event({"type": "ack", "room": room, "id": message_id, "epoch": epoch, "seq": seq})


def reset(room: str, epoch: str, seq: int, truncated: bool) -> bytes:
    """The room goes on behind ``seq`` of another epoch, or behind a hole that cannot be filled."""
    return _event({"type": "reset", "room": room, "epoch": epoch, "seq": seq, "truncated": truncated})


def gap(room: str, epoch: str, seq: int) -> bytes:
    """Events behind ``seq`` were not sent, since the client did not read; join again with ``after``."""
    return _event({"type": "gap", "room": room, "epoch": epoch, "seq": seq})


def presence(room: str, joined: Sequence[User], left: Sequence[User], people: int) -> bytes:
    """Who came and went since the last one, and how many are here; lists are empty in large rooms."""
    return _event(
        {
            "type": "presence",
            "room": room,
            "joined": [_user(user) for user in joined],
            "left": [_user(user) for user in left],
            "people": people,
        }
    )


def typing(room: str, users: Sequence[User]) -> bytes:
    """Who is writing just now."""
    return _event({"type": "typing", "room": room, "users": [_user(user) for user in users]})


def who(room: str, users: Sequence[User], people: int, offset: int) -> bytes:
    """A window of the people in a room, in the order of their ids."""
    return _event(
        {
            "type": "who",
            "room": room,
            "offset": offset,
            "users": [_user(user) for user in users],
            "people": people,
        }
    )


def status(broker: str) -> bytes:
    """Whether the store can be reached: ``up`` or ``down``."""
    return _event({"type": "status", "broker": broker})


def pong() -> bytes:
    """Answer to ``ping``."""
    return b'{"type":"pong"}'


def bye(reason: str, retry_after_ms: int) -> bytes:
    """The server is about to close: ``drain`` or ``session_ended``."""
    return _event({"type": "bye", "reason": reason, "retry_after_ms": retry_after_ms})


def error(problem: ProtocolError) -> bytes:
    """A command was not carried out."""
    fields: dict[str, Any] = {"type": "error", "code": problem.code, "message": problem.message}
    if problem.room is not None:
        fields["room"] = problem.room
    if problem.message_id is not None:
        fields["id"] = problem.message_id
    if problem.retry_after_ms is not None:
        fields["retry_after_ms"] = problem.retry_after_ms
    return _event(fields)
