"""One connected person: commands in, rules, events out.

After ``protocol`` (which made a command of the bytes), before ``broker`` (which stores what is said)
and ``room`` (which lets people in). Knows no sockets and no store: both come as callables.

A stored message is never answered with an error: whatever a rule says of a send, it is first looked
up whether the same message was stored by an earlier try.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tornadochat import protocol
from tornadochat.errors import ProtocolError, Unavailable
from tornadochat.limits import TokenBucket

if TYPE_CHECKING:
    from tornadochat.broker import Outcome
    from tornadochat.protocol import Join, Leave, Ping, Send, Typing, User, Who
    from tornadochat.room import Room
    from tornadochat.transport import Connection

# Sends that were stored but whose copy has not reached the member yet. A member that sends thousands
# without reading gets an early ``ack`` for the oldest, which it understands as well as its copy.
MAX_UNCONFIRMED = 1000
# Up to here the list is not searched for what has arrived meanwhile.
UNCONFIRMED_SLACK = 16


@dataclass(slots=True)
class Rules:
    """What all members of a worker share.

    Attributes:
        room: Gives the room of a name, made where needed.
        find_room: Gives the room of a name, or None.
        publish: ``broker.publish``.
        find_repeat: ``broker.find_repeat``.
        enter: A user is in a room from now on (presence).
        leave: A user left: room, user, and whether by hand (or by a lost connection).
        bring_home: Hand a member that joins its first room over to another worker; False where it stays.
        typing: A user types in a room (presence).
        spoke: A user has said something there (presence).
        who: Answer a ``who`` of a member.
        hold: Read nothing of a member's for so many seconds more.
        clock: Wall clock in seconds, for the stamp of messages.
        now: Monotonic seconds, for the rates.
        max_rooms: Rooms of one member, 0 for no limit.
        stored: Messages of members that were stored so far, for the metrics.
    """

    room: Callable[[str], Room]
    find_room: Callable[[str], Room | None]
    publish: Callable[..., None]
    find_repeat: Callable[..., None]
    enter: Callable[[str, User], None]
    leave: Callable[[str, User, bool], None]
    bring_home: Callable[[Member, Join], bool]
    typing: Callable[[str, User], None]
    spoke: Callable[[str, User], None]
    who: Callable[[Member, Who], None]
    hold: Callable[[Member, float], None]
    clock: Callable[[], float]
    now: Callable[[], float]
    limits: protocol.Limits
    max_rooms: int
    stored: int


class Unconfirmed(NamedTuple):
    """A stored message whose copy, which confirms it, has not reached its sender yet."""

    room: Room
    epoch: str
    seq: int
    id: str


class Rates:
    """Token buckets of one member; None where a rate is not limited."""

    __slots__ = ("commands", "joins", "messages", "typing")

    def __init__(
        self,
        commands: TokenBucket | None,
        messages: TokenBucket | None,
        joins: TokenBucket | None,
        typing: TokenBucket | None,
    ) -> None:
        self.commands = commands
        self.messages = messages
        self.joins = joins
        self.typing = typing


# Members whose rates are not limited, such as those of a load test, share this one.
UNLIMITED = Rates(None, None, None, None)


class Member:
    """See the module.

    Args:
        rules: Shared by all members of the worker.
        user: Who it is.
        transport_index: Place of its transport in ``Room.channels``.
        allowed: Rooms it may join; None for all.
        expires: Unix time at which its right to be here ends; 0 for never.
        address: Remote address, for the limits.
        rates: Its token buckets.

    Attributes:
        held_until: Monotonic time before which nothing of its is read, so that a flood waits in the
            sender's own socket and costs the others nothing.
    """

    __slots__ = (
        "_rates",
        "_rules",
        "_unconfirmed",
        "address",
        "allowed",
        "connection",
        "expires",
        "held_until",
        "joined_once",
        "rooms",
        "transport_index",
        "user",
    )

    connection: Connection

    def __init__(
        self,
        rules: Rules,
        user: User,
        *,
        transport_index: int,
        allowed: frozenset[str] | None,
        expires: float,
        address: str,
        rates: Rates,
    ) -> None:
        self.user = user
        self.transport_index = transport_index
        self.allowed = allowed
        self.expires = expires
        self.address = address
        self.rooms: tuple[Room, ...] = ()  # joined, or about to be; a tuple is the smallest holder
        self.joined_once = False
        self.held_until = 0.0
        self._rules = rules
        self._rates = rates
        self._unconfirmed: list[Unconfirmed] | None = None

    def handle(self, payload: bytes) -> None:
        """Carry out one command; whatever is wrong with it is answered with an ``error`` event."""
        commands = self._rates.commands
        if commands is not None and (wait := commands.take(self._rules.now())) > 0:
            self._rules.hold(self, wait)
        try:
            command = protocol.parse_command(payload, self._rules.limits)
            HANDLERS[type(command)](self, command)
        except ProtocolError as error:
            self.connection.send_text(protocol.error(error))

    # Rooms -------------------------------------------------------------------------------------

    def _join(self, command: Join) -> None:
        self._take(self._rates.joins, "joins", command.room)
        if self.allowed is not None and command.room not in self.allowed:
            raise ProtocolError(
                "forbidden", "You may not join this room; ask for access to it.", room=command.room
            )
        # Who waits for an answer of the store stays: it comes to this worker.
        if not self.joined_once and self._unconfirmed is None and self._rules.bring_home(self, command):
            return
        self.enter(command)

    def enter(self, command: Join) -> None:
        """Carry a join out on this worker.

        Raises:
            ProtocolError: The member is in too many rooms.
        """
        room = self._rules.room(command.room)
        if room not in self.rooms:
            if self._rules.max_rooms and len(self.rooms) >= self._rules.max_rooms:
                raise ProtocolError(
                    "too_many_rooms", "Leave a room before you join another one.", room=command.room
                )
            self.rooms = (*self.rooms, room)
        self.joined_once = True
        room.join(self, command.after, command.history)

    def entered(self, room: Room) -> None:
        """``room`` has let this member in."""
        self._rules.enter(room.name, self.user)

    def wants(self, room: Room) -> bool:
        """Whether a join of this room still holds."""
        return room in self.rooms

    def join_failed(self, room: Room) -> None:
        """The store stayed away while ``room`` was to be read."""
        self._exit(room, by_hand=False)
        self.unavailable(room.name, "The room cannot be read just now; join again in a moment.")

    def unavailable(self, room: str, message: str) -> None:
        """Something that was asked of this room needs the store, and the store is away."""
        problem = ProtocolError("unavailable", message, room=room, retry_after_ms=2000)
        self.connection.send_text(protocol.error(problem))

    def _leave(self, command: Leave) -> None:
        room = self._member_of(command.room)
        self._exit(room, by_hand=True)
        self.connection.send_text(protocol.left(room.name, "left"))

    def removed(self, name: str) -> None:
        """A moderator removed this member's user from a room."""
        room = self._rules.find_room(name)
        if room is not None and room in self.rooms:
            self._exit(room, by_hand=True)
            self.connection.send_text(protocol.left(name, "removed"))

    def _exit(self, room: Room, by_hand: bool) -> None:
        self.rooms = tuple(other for other in self.rooms if other is not room)
        present = room.has(self)
        if present and self._unconfirmed:
            for sent in self._take_unconfirmed(room):
                self._confirm(sent)
        room.leave(self)
        if present:
            self._rules.leave(room.name, self.user, by_hand)

    def closed(self) -> None:
        """The connection is gone; called once."""
        self._unconfirmed = None
        for room in self.rooms:
            self._exit(room, by_hand=False)

    def _member_of(self, name: str, message_id: str | None = None) -> Room:
        room = self._rules.find_room(name)
        if room is None or room not in self.rooms or not room.has(self):
            raise ProtocolError("not_joined", "Join the room first.", room=name, message_id=message_id)
        return room

    # Messages ----------------------------------------------------------------------------------

    def _send(self, command: Send) -> None:
        rules = self._rules
        try:
            room = self._member_of(command.room, command.id)
            self._take(self._rates.messages, "messages", command.room, command.id)
        except ProtocolError as problem:
            self._refuse_unless_stored(command, problem)
            return
        rules.spoke(room.name, self.user)
        body = protocol.message_body(command.room, command.id, self.user, command.text, int(rules.clock() * 1000))
        try:
            rules.publish(
                room.name,
                self.user.id,
                command.id,
                body,
                command.text,
                lambda outcome: self._sent(command, outcome),
            )
        except Unavailable:
            self._fail_unavailable(command.room, command.id)

    def _sent(self, command: Send, outcome: Outcome) -> None:
        """The store has answered. A fresh message is confirmed by the member's own copy."""
        self._rules.stored += outcome.status == "stored"
        if self.connection.closed:
            return
        if outcome.status == "stored":
            room = self._rules.find_room(command.room)
            if room is not None and room in self.rooms and room.has(self):
                self._await_copy(room, outcome.epoch, outcome.seq, command.id)
            else:
                self._ack(command.room, command.id, outcome.epoch, outcome.seq)
        elif outcome.status == "repeat":
            self._ack(command.room, command.id, outcome.epoch, outcome.seq)
        elif outcome.status == "id_reused":
            self._fail(
                ProtocolError(
                    "id_reused",
                    "This id was used for another text; send the message with a new id.",
                    message_id=command.id,
                    room=command.room,
                )
            )
        else:
            self._fail_unavailable(command.room, command.id)

    def _await_copy(self, room: Room, epoch: str, seq: int, message_id: str) -> None:
        if room.delivered(self, epoch, seq):
            return
        waiting = self._unconfirmed
        if waiting is None:
            waiting = self._unconfirmed = []
        waiting.append(Unconfirmed(room, epoch, seq, message_id))
        if len(waiting) > UNCONFIRMED_SLACK:
            waiting[:] = [each for each in waiting if not self._has_copy(each)]
            if len(waiting) > MAX_UNCONFIRMED:
                self._confirm(waiting.pop(0))

    def _has_copy(self, sent: Unconfirmed) -> bool:
        return not sent.room.has(self) or sent.room.delivered(self, sent.epoch, sent.seq)

    def _confirm(self, sent: Unconfirmed) -> None:
        self._ack(sent.room.name, sent.id, sent.epoch, sent.seq)

    def _take_unconfirmed(self, room: Room) -> list[Unconfirmed]:
        """The messages whose copies this member still lacks in a room; they are forgotten here."""
        waiting = self._unconfirmed or ()
        self._unconfirmed = [each for each in waiting if each.room is not room] or None
        return [each for each in waiting if each.room is room and not self._has_copy(each)]

    def passed_over(self, room: Room, epoch: str, seq: int) -> None:
        """Before a room goes on behind ``seq`` of ``epoch``: what copies will not come any more?

        A message of the same epoch is in the log, or was until it grew old: it is confirmed. One of
        another epoch may be lost with it: its sender is asked to try again, which finds out.
        """
        for sent in self._take_unconfirmed(room):
            if sent.epoch != epoch:
                self._fail_unavailable(room.name, sent.id)
            elif sent.seq <= seq:
                self._confirm(sent)
            else:
                self._await_copy(room, sent.epoch, sent.seq, sent.id)

    def _refuse_unless_stored(self, command: Send, problem: ProtocolError) -> None:
        def looked_up(outcome: Outcome) -> None:
            if self.connection.closed:
                return
            if outcome.status == "repeat":
                self._ack(command.room, command.id, outcome.epoch, outcome.seq)
            elif outcome.status == "unavailable":
                self._fail_unavailable(command.room, command.id)
            else:
                self._fail(problem)

        if self._unconfirmed is None:
            self._unconfirmed = []
        try:
            self._rules.find_repeat(command.room, self.user.id, command.id, command.text, looked_up)
        except Unavailable:
            self._fail_unavailable(command.room, command.id)

    def _ack(self, room: str, message_id: str, epoch: str, seq: int) -> None:
        self.connection.send_text(protocol.ack(room, message_id, epoch, seq))

    def _fail_unavailable(self, room: str, message_id: str) -> None:
        self._fail(
            ProtocolError(
                "unavailable",
                "It is unknown whether the message was stored; send it again with the same id.",
                message_id=message_id,
                room=room,
                retry_after_ms=1000,
            )
        )

    def _fail(self, problem: ProtocolError) -> None:
        self.connection.send_text(protocol.error(problem))

    def gapped(self, rooms: Sequence[tuple[str, int]]) -> None:
        """Events were dropped for this member; each room is silent until its join with ``after``."""
        for name, next_seq in rooms:
            room = self._rules.find_room(name)
            if room is not None and room in self.rooms:
                room.replays.discard(self)
                self.connection.send_text(protocol.gap(name, room.epoch, next_seq - 1))

    def drained(self) -> None:
        """The socket has taken most of what was replayed; the rest follows."""
        for room in self.rooms:
            room.advance(self)

    # The rest ----------------------------------------------------------------------------------

    def _typing(self, command: Typing) -> None:
        room = self._member_of(command.room)
        self._take(self._rates.typing, "typing notices", command.room)
        self._rules.typing(room.name, self.user)

    def _who(self, command: Who) -> None:
        self._member_of(command.room)
        self._take(self._rates.joins, "requests", command.room)
        self._rules.who(self, command)

    def _ping(self, _command: Ping) -> None:
        self.connection.send_text(protocol.pong())

    def _take(self, bucket: TokenBucket | None, what: str, room: str, message_id: str | None = None) -> None:
        if bucket is None:
            return
        wait = bucket.take(self._rules.now())
        if wait > 0:
            self._rules.hold(self, wait)
            raise ProtocolError(
                "rate_limited",
                f"Too many {what}; wait before the next one.",
                room=room,
                message_id=message_id,
                retry_after_ms=max(1, round(wait * 1000)),
            )


HANDLERS: dict[type, Callable[[Member, Any], None]] = {
    protocol.Join: Member._join,
    protocol.Leave: Member._leave,
    protocol.Send: Member._send,
    protocol.Typing: Member._typing,
    protocol.Who: Member._who,
    protocol.Ping: Member._ping,
}
