"""One room of the Python client: its events, and the sending of each message once.

``client`` holds the connection and hands each event of a room to its ``Room``; what a program uses of
this module is named in ``client`` as well. What rules the position is ``resume.Track``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Protocol

from tornadochat.errors import ClientClosed, CommandRefused, Unconfirmed
from tornadochat.protocol import DEFAULT_HISTORY, ID, User
from tornadochat.resume import Position, Track, send_command

# The server recognises a repeated send for at least ten minutes after the first try (docs/protocol.md).
# What is older is sent again only behind an unbroken replay; a minute is left for the way.
REPEAT_WINDOW_SECONDS = 540.0
# Messages of one room that wait for their confirmation; a program that sends more has to wait for some.
MAX_PENDING = 1000
# Events of one room that wait for the program, about 2 MiB of Python objects. Above it the room falls
# silent, and goes on from there when the program has read half of them.
MAX_UNREAD = 2000


class Message(NamedTuple):
    """Somebody said something. ``ts`` is the server's clock, in milliseconds since 1970."""

    room: str
    epoch: str
    seq: int
    id: str
    user: User
    text: str
    ts: int


class Hole(NamedTuple):
    """Messages before the next one cannot be had from the log any more, or were lost by the store.

    ``seq`` is the last number before what follows; ``Client.history`` may still have some of them.
    """

    room: str
    epoch: str
    seq: int


class Presence(NamedTuple):
    """Who came and went since the last one; the lists stay empty in large rooms."""

    room: str
    joined: tuple[User, ...]
    left: tuple[User, ...]
    people: int


class Typing(NamedTuple):
    """Who is writing just now."""

    room: str
    users: tuple[User, ...]


RoomEvent = Message | Hole | Presence | Typing


class Link(Protocol):
    """What a room needs of its client."""

    user: User | None

    def command(self, **fields: Any) -> bool:
        """Send a command; returns whether there was a connection to send it on."""

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after some time, unless the client is closed."""

    def tell(self, event: RoomEvent) -> None:
        """Hand an event to the program's callback."""

    def drop(self, room: Room, error: Exception) -> None:
        """The room is over."""


class _Pending:
    """A message that is not confirmed yet."""

    __slots__ = ("done", "id", "text", "tried_at")

    def __init__(self, message_id: str, text: str) -> None:
        self.id = message_id
        self.text = text
        self.done: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self.tried_at: float | None = None


class Room:
    """A room that the client is in; made by ``Client.join``. Iterating gives its events in order.

    Attributes:
        name: As the server knows it.
        people: How many are here, as last told.
        track: Position, and counts of what the server sent against its promises.
    """

    def __init__(
        self, link: Link, name: str, after: Position | None, history: int = DEFAULT_HISTORY, listen: bool = True
    ) -> None:
        self.name = name
        self.people = 0
        self.track = Track(after)
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._history = history
        self._listen = listen
        self._pending: dict[str, _Pending] = {}
        self._unread: deque[RoomEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._joining = False
        self._silenced = False
        self._who: deque[asyncio.Future[tuple[list[User], int]]] = deque()
        self._error: Exception | None = None

    # For programs ----------------------------------------------------------------------------

    async def send(self, text: str, message_id: str = "") -> Position:
        """Say something; returns its place once it is stored.

        It is tried until then, through lost connections and an absent store, always under the same id,
        so it is stored once. Put ``asyncio.timeout`` around it to give up: whether it was stored is
        then unknown, and ``send`` with the same ``message_id`` finds out. Messages that must keep their
        order are awaited one after the other.

        Args:
            text: At most ``client.limits["text_chars"]`` characters.
            message_id: 16 to 64 characters of ``A-Z a-z 0-9 _ -``; a random one where it is empty.

        Raises:
            CommandRefused: The server does not take it (``code`` as in docs/protocol.md).
            Unconfirmed: More than nine minutes after the first try the log did not tell any more whether
                it was stored.
            ClientClosed: The client was closed, or left the room.
            ValueError: This is no id, or belongs to a message that waits; or a thousand of them wait.
        """
        if self._error is not None:
            raise self._error
        if len(self._pending) >= MAX_PENDING:
            raise ValueError(f"{MAX_PENDING} messages of {self.name!r} are not confirmed yet; wait for some.")
        if message_id and ID.fullmatch(message_id) is None:
            raise ValueError("`message_id` must be 16 to 64 characters of A-Z, a-z, 0-9, _ and -.")
        pending = _Pending(message_id or secrets.token_urlsafe(15), text)
        if pending.id in self._pending:
            raise ValueError(f"{pending.id!r} is on its way already.")
        self._pending[pending.id] = pending
        self._transmit(pending)
        try:
            return await pending.done
        finally:
            del self._pending[pending.id]

    def typing(self) -> None:
        """Tell the others that a text is being written; dropped while there is no connection."""
        self._link.command(type="typing", room=self.name)

    async def who(self, offset: int = 0, limit: int = 200) -> tuple[list[User], int]:
        """A window of the people here, in the order of their ids, and how many there are.

        Raises:
            ClientClosed: There is no connection, or it went away before the answer came; ask again.
            CommandRefused: The server does not answer just now.
        """
        answer: asyncio.Future[tuple[list[User], int]] = asyncio.get_running_loop().create_future()
        if not self._link.command(type="who", room=self.name, offset=offset, limit=limit):
            raise ClientClosed("There is no connection just now; ask again.")
        self._who.append(answer)
        return await answer

    async def leave(self) -> None:
        """Go out of the room; what is not confirmed yet fails with ``ClientClosed``."""
        self._link.command(type="leave", room=self.name)
        self._link.drop(self, ClientClosed(f"The client has left {self.name!r}."))

    async def __aiter__(self) -> AsyncIterator[RoomEvent]:
        """Events, in order, until the room is left or the client closed; one iteration at a time."""
        while True:
            while self._unread:
                yield self._unread.popleft()
                self._listen_again()
            if isinstance(self._error, ClientClosed):
                return
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    # For the client --------------------------------------------------------------------------

    def rejoin(self) -> None:
        """Ask to be let in, behind the position; once until it is answered."""
        if not self._joining and self._error is None:
            self._joining = self._link.command(**self.track.join_command(self.name, self._history))

    def disconnected(self) -> None:
        """The connection is gone."""
        self._joining = False
        self.track.pause()
        self._fail_who(ClientClosed("The connection went away; ask again."))

    def fail(self, error: Exception) -> None:
        """The room is over: whoever waits for something gets this error."""
        self._error = error
        self._fail_who(error)
        for pending in self._pending.values():
            if not pending.done.done():
                pending.done.set_exception(error)
        if not self.entered.done():
            self.entered.set_exception(error)
            self.entered.exception()  # nobody may be waiting for it
        self._wake()

    def handle(self, event: dict[str, Any]) -> None:
        """Take one event of this room in."""
        handler = HANDLERS.get(event["type"])
        if handler is not None:
            handler(self, event)

    # Events ----------------------------------------------------------------------------------

    def _on_joined(self, event: dict[str, Any]) -> None:
        self._joining = self._silenced = False
        self.people = event["people"]
        if self.track.on_joined(event):
            self._tell_hole(event["epoch"], event["seq"] - event["missing"])
        if not self.entered.done():
            self.entered.set_result(None)
        self._transmit_all()

    def _on_message(self, event: dict[str, Any]) -> None:
        track, seq = self.track, event["seq"]
        user = User(event["user"]["id"], event["user"]["name"])
        if self._link.user is not None and user.id == self._link.user.id:
            self._confirm(event["id"], Position(track.epoch, seq))
        if not track.live:
            return  # it comes again behind the position, with the next ``joined``
        if len(self._unread) >= MAX_UNREAD:
            self._silenced = True
            track.pause()
            self._transmit_all()
            return
        behind = not track.caught_up
        if track.on_message(seq):
            self._tell(Message(self.name, track.epoch, seq, event["id"], user, event["text"], event["ts"]))
        if behind and track.caught_up:
            self._transmit_all()

    def _on_reset(self, event: dict[str, Any]) -> None:
        behind = self.track.live and not self.track.caught_up
        if self.track.on_reset(event):
            self._tell_hole(event["epoch"], event["seq"])
        if behind:  # where this replay ends is not known any more
            self._on_gap(event)

    def _on_gap(self, event: dict[str, Any]) -> None:
        self.track.pause()
        if not self._silenced:
            self.rejoin()

    def _on_presence(self, event: dict[str, Any]) -> None:
        self.people = event["people"]
        self._tell(Presence(self.name, _users(event["joined"]), _users(event["left"]), event["people"]))

    def _on_typing(self, event: dict[str, Any]) -> None:
        self._tell(Typing(self.name, _users(event["users"])))

    def _on_who(self, event: dict[str, Any]) -> None:
        self.people = event["people"]
        if self._who:
            answer = self._who.popleft()
            if not answer.done():
                answer.set_result((list(_users(event["users"])), event["people"]))

    def _on_left(self, event: dict[str, Any]) -> None:
        if event["reason"] == "removed":
            error = CommandRefused("forbidden", "A moderator has removed this user from the room.")
            self._link.drop(self, error)

    def _on_ack(self, event: dict[str, Any]) -> None:
        self._confirm(event["id"], Position(event["epoch"], event["seq"]))

    def _on_error(self, event: dict[str, Any]) -> None:
        code, pause_ms = event["code"], event.get("retry_after_ms")
        error = CommandRefused(code, event["message"])
        pending = self._pending.get(event.get("id", ""))
        if pending is not None:
            self._on_refused_send(pending, error, pause_ms)
        elif "id" in event or (self.track.live and code != "unavailable"):
            self._fail_who(error)  # or of a typing notice, which nobody waits for
        elif pause_ms is not None:  # the room could not be read: the member is out of it
            self._joining = False
            self.track.pause()
            self._fail_who(error)
            self._link.later(pause_ms / 1000, self._rejoin_unless_live)
        elif code != "not_joined":
            self._link.drop(self, error)

    def _on_refused_send(self, pending: _Pending, error: CommandRefused, pause_ms: int | None) -> None:
        if pause_ms is not None:
            self._link.later(pause_ms / 1000, lambda: self._transmit(pending))
        elif error.code == "not_joined":
            # It is sent again behind ``joined``.
            self._on_gap({})
        elif not pending.done.done():
            pending.done.set_exception(error)

    def _rejoin_unless_live(self) -> None:
        if not self.track.live and not self._silenced:
            self.rejoin()

    # Unread events ---------------------------------------------------------------------------

    def _tell_hole(self, epoch: str, seq: int) -> None:
        self._refuse_old()
        self._tell(Hole(self.name, epoch, seq))

    def _tell(self, event: RoomEvent) -> None:
        self._link.tell(event)
        # Only messages must not be missed; presence and typing may be dropped.
        if self._listen and (isinstance(event, Message | Hole) or len(self._unread) < MAX_UNREAD):
            self._unread.append(event)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _listen_again(self) -> None:
        if self._silenced and len(self._unread) <= MAX_UNREAD // 2:
            self._silenced = False
            self.rejoin()

    def _fail_who(self, error: Exception) -> None:
        while self._who:
            answer = self._who.popleft()
            if not answer.done():
                answer.set_exception(error)

    # Sending once ----------------------------------------------------------------------------

    def _transmit(self, pending: _Pending) -> None:
        """Send a message: behind an unbroken replay at any time, otherwise only while its repeat would be
        recognised. What is not sent here is sent with the next ``joined``."""
        if self._pending.get(pending.id) is not pending or pending.done.done():
            return
        young = pending.tried_at is None or time.monotonic() - pending.tried_at < REPEAT_WINDOW_SECONDS
        if not (self.track.caught_up or (self._silenced and young)):
            return
        sent = self._link.command(**send_command(self.name, pending.id, pending.text))
        if sent and pending.tried_at is None:
            pending.tried_at = time.monotonic()

    def _transmit_all(self) -> None:
        for pending in tuple(self._pending.values()):
            self._transmit(pending)

    def _refuse_old(self) -> None:
        """There is a hole in the log, and the server may have forgotten the ids of old messages."""
        limit = time.monotonic() - REPEAT_WINDOW_SECONDS
        for pending in self._pending.values():
            if pending.tried_at is not None and pending.tried_at < limit and not pending.done.done():
                message = "It is not known whether this was stored; look at the room before sending it again."
                pending.done.set_exception(Unconfirmed(message))

    def _confirm(self, message_id: str, place: Position) -> None:
        pending = self._pending.get(message_id)
        if pending is not None and not pending.done.done():
            pending.done.set_result(place)


HANDLERS: dict[str, Callable[[Room, dict[str, Any]], None]] = {
    "joined": Room._on_joined,
    "message": Room._on_message,
    "reset": Room._on_reset,
    "gap": Room._on_gap,
    "presence": Room._on_presence,
    "typing": Room._on_typing,
    "who": Room._on_who,
    "left": Room._on_left,
    "ack": Room._on_ack,
    "error": Room._on_error,
}


def _users(found: list[dict[str, str]]) -> tuple[User, ...]:
    return tuple(User(user["id"], user["name"]) for user in found)
