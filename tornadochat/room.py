"""One room on one worker: its place in the log, its recent events, and who is being caught up.

After ``broker`` (which hands over what was published), before ``_fastframe`` and the transports
(which write it). The numbers are the point: events go out in order, each once; a hole is read from
the log before anything behind it goes out; a new epoch is announced before its first event.

Pure: asks the ``Ports`` for everything that waits or does I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tornadochat import protocol
from tornadochat._fastframe import encode_events, encode_plain, encode_published, published_header
from tornadochat.ring import Ring

if TYPE_CHECKING:
    from tornadochat._fastframe import Batch
    from tornadochat.member import Member
    from tornadochat.transport import Channel

# Events of one read from the log. 128 texts of the largest size are 2 MiB, of the usual one 30 KiB.
PAGE_EVENTS = 128
# Published payloads kept while the log is read; beyond this the log is simply read once more.
MAX_EARLY = 256


class Page(NamedTuple):
    """One atomic read of a room's log.

    Attributes:
        epoch: Current epoch of the room.
        head_seq: Seq of its newest event, 0 when unwritten.
        ends: ``(epoch, last seq)`` of epochs that ended, at most 8.
        first_seq: Seq of ``bodies[0]``; above what was asked for where the log was trimmed.
        bodies: Consecutive events without their seq.
    """

    epoch: str
    head_seq: int
    ends: Sequence[tuple[str, int]]
    first_seq: int
    bodies: Sequence[bytes]


class Ports(Protocol):
    """What a room needs from outside."""

    replay_bytes: int
    max_history: int

    def sync(self, room: Room, start_seq: int) -> None:
        """Subscribe if need be, read the log from ``start_seq`` (0: its newest events), and call
        ``room.synced(page)``, or ``room.sync_failed()`` when the store stays away."""

    def fetch(self, room: Room, start_seq: int, done: Callable[[Page | None], None]) -> None:
        """Read one page for members who lag; ``None`` when the store stays away."""

    def people(self, room: str) -> int:
        """Members in the room on all workers."""

    def ring_bytes(self) -> int:
        """What a room may keep of its recent events just now, in bytes."""


# A join's ``after`` and ``history``, and whether the log is read for it, so that its answer is final.
Wish = tuple[tuple[str, int] | None, int, bool]


class State(enum.Enum):
    """Whether what comes by pub/sub can be handed on as it comes."""

    CLOSED = "closed"  # nothing is known; the first join opens it
    OPENING = "opening"  # the subscription or the first read is under way
    SYNCING = "syncing"  # a hole or a new epoch was seen; the log is being read
    LIVE = "live"


class Room:
    """See the module. Made by ``hub``, dropped some time after the last member left."""

    __slots__ = (
        "_early",
        "_early_lost",
        "_fetches",
        "_pending",
        "_ports",
        "_waiting",
        "channels",
        "empty_since",
        "ends",
        "epoch",
        "flushed_seq",
        "last_seq",
        "name",
        "next_flush",
        "replays",
        "ring",
        "state",
        "window",
    )

    def __init__(self, name: str, ports: Ports, channels: Sequence[Channel]) -> None:
        self.name = name
        self.channels = channels  # one for each transport, in the transports' order
        self.epoch = ""
        self.ends: dict[str, int] = {}
        self.last_seq = 0  # newest event received in order
        self.flushed_seq = 0  # newest event handed to the channels
        self.ring = Ring()
        self.state = State.CLOSED
        self.replays: set[Member] = set()  # members that are being caught up
        self.empty_since: float | None = None
        self.next_flush = 0.0
        self.window = 0.0  # seconds that a message waits for others, where it does not come alone
        self._ports = ports
        self._pending: list[bytes] = []  # published payloads between flushed_seq and last_seq
        self._early: list[bytes] = []  # published payloads that came while the log was read
        self._early_lost = False
        self._waiting: dict[Member, Wish] = {}
        self._fetches: dict[int, list[Callable[[Page | None], None]]] = {}

    def __len__(self) -> int:
        return sum(len(channel) for channel in self.channels)

    @property
    def busy(self) -> bool:
        """Whether what is written now has to wait for the end of an earlier fan-out."""
        for channel in self.channels:  # noqa: SIM110 - a generator costs more than the two look-ups
            if channel.busy:
                return True
        return False

    @property
    def pending(self) -> bool:
        """Whether events wait for ``flush``."""
        return bool(self._pending)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits to join, or a read of the log is under way."""
        return bool(self._waiting or self._fetches) or self.state in (State.OPENING, State.SYNCING)

    def has(self, member: Member) -> bool:
        """Whether this member is in the room."""
        return member.connection in self._channel(member)

    def delivered(self, member: Member, epoch: str, seq: int) -> bool:
        """Whether the event at this place was written or queued for a member of the room."""
        known = epoch == self.epoch or epoch in self.ends  # else it belongs to an epoch still to come
        return known and seq < self._channel(member).next_seq(member.connection)

    # What was published ----------------------------------------------------------------------

    def receive(self, payload: bytes) -> None:
        """Take one published batch in; it goes out with the next ``flush``.

        Raises:
            ValueError: The payload is malformed; nothing was taken in.
        """
        epoch, first_seq, count = published_header(payload)
        if self.state is not State.LIVE:
            self._keep_early(payload)
        elif epoch.decode("ascii") != self.epoch or first_seq > self.last_seq + 1:
            self._keep_early(payload)
            self.resync()
        elif first_seq + count - 1 > self.last_seq:
            self._pending.append(payload)
            self.last_seq = first_seq + count - 1

    def flush(self) -> int:
        """Write all pending events to everyone, as one batch; returns how many events it were."""
        if not self._pending:
            return 0
        batch = encode_published(self._pending, self.flushed_seq + 1)
        self._pending = []
        self._deliver(batch)
        return batch.count

    def tell(self, event: bytes) -> None:
        """Send an event without a seq to everyone here; it may be dropped for those who lag."""
        batch = encode_plain([event])
        for channel in self.channels:
            if len(channel):
                channel.broadcast(batch)

    def _deliver(self, batch: Batch) -> None:
        self.ring.append(batch, self._ports.ring_bytes())
        self.flushed_seq = batch.last_seq
        for channel in self.channels:
            if len(channel):
                channel.broadcast(batch)

    def _keep_early(self, payload: bytes) -> None:
        if len(self._early) < MAX_EARLY:
            self._early.append(payload)
        else:
            self._early_lost = True

    # Holes and epochs ------------------------------------------------------------------------

    def open(self) -> None:
        """Subscribe and read the newest events; joins wait until then."""
        self.state = State.OPENING
        self._ports.sync(self, 0)

    def resync(self) -> None:
        """Read from the log what is missing; what is published meanwhile waits."""
        if self.state is State.LIVE:
            self.state = State.SYNCING
            self._ports.sync(self, self.last_seq + 1)

    def check_head(self, epoch: str, head_seq: int) -> None:
        """Compare with the head of the log, and read what is missing here."""
        if self.state is State.LIVE and (epoch != self.epoch or head_seq > self.last_seq):
            self.resync()

    def sync_failed(self) -> None:
        """The store stayed away. Whoever waits to join is told; the members stay, and the next
        head check or published batch tries again."""
        waiting, self._waiting = self._waiting, {}
        self.state = State.LIVE if self.epoch else State.CLOSED
        for member in waiting:
            member.join_failed(self)
        self._resume_replays()

    def synced(self, page: Page) -> None:
        """Continue with one page of the log (see ``Ports.sync``)."""
        if not self.epoch:
            self._start_from(page)
        elif not self._continue_with(page):
            return  # asked for the next page
        self.state = State.LIVE
        self._take_early()
        self.flush()  # nothing else may come for a long time
        if self.state is State.LIVE:
            waiting, self._waiting = self._waiting, {}
            for member, (after, history, sure) in waiting.items():
                if not member.connection.closed:
                    self._serve(member, after, history, sure)
            self._resume_replays()

    def _resume_replays(self) -> None:
        for member in tuple(self.replays):
            self.advance(member)

    def _start_from(self, page: Page) -> None:
        self.epoch = page.epoch
        self.ends = dict(page.ends)
        self.last_seq = self.flushed_seq = page.head_seq
        if page.bodies:
            self.ring.append(encode_events(page.first_seq, page.bodies), self._ports.ring_bytes())

    def _take_early(self) -> None:
        early, self._early = self._early, []
        lost, self._early_lost = self._early_lost, False
        for payload in early:
            # One of another epoch was read from the log just now, or belongs to an epoch that ended.
            if published_header(payload)[0].decode("ascii") == self.epoch:
                self.receive(payload)
        if lost:
            self.resync()

    def _continue_with(self, page: Page) -> bool:
        """Deliver what a page adds. Returns whether the head of the log is reached."""
        self.flush()
        self.ends = dict(page.ends)
        if page.epoch != self.epoch:
            end = self.ends.get(self.epoch)
            if end is not None and self.last_seq < end:
                page = _until(page, end)
            else:
                # Beyond the recorded end, events went out here that the store lost. Without one the
                # store knows nothing of this epoch, or too many have passed to tell; what was stored
                # in the present one has not been seen here, and goes out.
                lost = end is None or end < self.last_seq
                start = end if end is not None else page.ends[0][1] if page.ends else 0
                self._reset(page.epoch, start, lost, survived=end)
                self._ports.sync(self, self.last_seq + 1)
                return False
        if page.bodies:
            self._deliver_page(page)
        elif self.last_seq < page.head_seq:
            self._reset(page.epoch, page.head_seq, truncated=True)
        if self.epoch == page.epoch and self.last_seq >= page.head_seq:
            return True
        self._ports.sync(self, self.last_seq + 1)
        return False

    def _deliver_page(self, page: Page) -> None:
        skip = self.last_seq + 1 - page.first_seq
        if skip < 0:  # trimmed before it could be read: a hole that nobody can fill
            self._reset(self.epoch, page.first_seq - 1, truncated=True)
            skip = 0
        bodies = page.bodies[skip:]
        if bodies:
            batch = encode_events(self.last_seq + 1, bodies)
            self.last_seq = batch.last_seq
            self._deliver(batch)

    def _reset(self, epoch: str, seq: int, truncated: bool, survived: int | None = None) -> None:
        """Tell everyone that the room goes on behind ``seq`` of ``epoch``.

        Args:
            epoch: The room's epoch from here on.
            seq: Last seq before the events that follow.
            truncated: Whether members have a hole, or events that the store lost.
            survived: Last seq of the former epoch that is still in the log, where that is known.
        """
        if truncated:
            for channel in self.channels:
                for member in channel:
                    member.passed_over(self, epoch, seq)
        self.epoch = epoch
        self.last_seq = self.flushed_seq = seq
        if truncated:
            self.ring.clear()
        notice = encode_plain([protocol.reset(self.name, epoch, seq, truncated)])
        for channel in self.channels:
            channel.reset(notice, seq + 1)
        for member in tuple(self.replays):
            if not member.connection.closed:
                self._reset_replay(member, seq, survived)

    def _reset_replay(self, member: Member, seq: int, survived: int | None) -> None:
        """The same for a member that is being caught up: numbers go on across epochs, so one that
        has only what survived continues from where it is."""
        channel, connection = self._channel(member), member.connection
        reached = channel.next_seq(connection) - 1
        whole = survived is not None and reached <= survived
        at = reached if whole else seq
        connection.send_text(protocol.reset(self.name, self.epoch, at, not whole))
        channel.join(connection, at + 1, False)

    # Joining and catching up -----------------------------------------------------------------

    def join(self, member: Member, after: tuple[str, int] | None, history: int) -> None:
        """Let a member in: ``joined``, then what it lacks, then what comes.

        Args:
            member: May be in the room already; it is then caught up anew.
            after: Epoch and seq of the last event it has, or None for the newest ``history``.
            history: Events wanted where ``after`` is None or cannot be continued.
        """
        if self.state is State.LIVE:
            self._serve(member, after, history)
            return
        self._waiting[member] = (after, history, self.state is State.CLOSED)
        if self.state is State.CLOSED:
            self.open()

    def leave(self, member: Member) -> None:
        """Let a member go; nothing of this room reaches it from here on."""
        self.replays.discard(member)
        self._waiting.pop(member, None)
        self._channel(member).leave(member.connection)

    def _serve(self, member: Member, after: tuple[str, int] | None, history: int, sure: bool = False) -> None:
        start, truncated = self._start_of(after, history)
        if truncated and not sure:
            # It may come from a worker that is ahead of this one; the log has the last word.
            self._wait(member, (after, history, True))
            return
        if start > self.flushed_seq or self.ring.since(start) is not None:
            self._begin(member, start, truncated)
            return

        def with_page(page: Page | None) -> None:
            if member.connection.closed or not member.wants(self):
                return
            if page is None:
                member.join_failed(self)
            elif self.state is not State.LIVE or page.epoch != self.epoch:
                self._wait(member, (after, history, False))
            elif page.first_seq > start and after is not None and not truncated:
                self._serve(member, ("", 0), history, sure=True)  # trimmed: what is missing is gone
            else:
                self._begin(member, max(start, page.first_seq), truncated, page)

        self._fetch(start, with_page)

    def _wait(self, member: Member, wish: Wish) -> None:
        """Serve a member behind what the log has now."""
        self._waiting[member] = wish
        self.resync()

    def _start_of(self, after: tuple[str, int] | None, history: int) -> tuple[int, bool]:
        """First seq that a joiner lacks, and whether there is a hole before it."""
        if after is not None:
            epoch, seq = after
            end = self.flushed_seq if epoch == self.epoch else self.ends.get(epoch, -1)
            # Its seq may come from another worker that is a moment ahead of this one.
            if seq <= end or (epoch == self.epoch and seq <= self.last_seq):
                return seq + 1, False
        first = max(1, self.flushed_seq - min(history, self._ports.max_history) + 1)
        return first, after is not None

    def _begin(self, member: Member, start: int, truncated: bool, page: Page | None = None) -> None:
        channel, newcomer = self._channel(member), not self.has(member)
        if truncated and not newcomer:
            member.passed_over(self, self.epoch, start - 1)
        channel.join(member.connection, start, False)
        if newcomer:
            member.entered(self)
        head = max(self.flushed_seq, start - 1)
        event = protocol.joined(
            self.name, self.epoch, head, truncated, head - start + 1, self._ports.people(self.name)
        )
        self.replays.add(member)  # first: a send that finds the connection gone takes it out again
        member.connection.send_text(event)
        if member.connection.closed:
            return
        if page is not None:
            self._replay_page(member, page)
        self.advance(member)

    def _replay_page(self, member: Member, page: Page) -> None:
        """Send a member what it lacks of a page, as far as it may be in flight."""
        channel, connection = self._channel(member), member.connection
        seq = max(page.first_seq, channel.next_seq(connection))
        bodies, in_flight = page.bodies[seq - page.first_seq :], channel.in_flight(connection)
        while bodies and in_flight < self._ports.replay_bytes and not connection.closed:
            count = _fitting(bodies, self._ports.replay_bytes - in_flight)
            in_flight = channel.replay(connection, encode_events(seq, bodies[:count]))
            seq, bodies = seq + count, bodies[count:]

    def advance(self, member: Member) -> None:
        """Send a member that lags the next of what it lacks; live once it has all."""
        if member not in self.replays or self.state is not State.LIVE:
            return
        channel, connection = self._channel(member), member.connection
        in_flight = channel.in_flight(connection)
        while in_flight < self._ports.replay_bytes:
            if connection.closed:
                return
            position = channel.next_seq(connection)
            if position > self.flushed_seq:
                self.replays.discard(member)
                channel.set_live(connection, position)
                return
            batches = self.ring.since(position)
            if batches is None:
                self._fetch(position, lambda page: self._advance_with(member, page))
                return
            for batch in batches:
                in_flight = channel.replay(connection, batch)
                if in_flight >= self._ports.replay_bytes:
                    return

    def _advance_with(self, member: Member, page: Page | None) -> None:
        if member not in self.replays or member.connection.closed:
            return
        channel = self._channel(member)
        position = channel.next_seq(member.connection)
        if page is None:
            member.join_failed(self)
        elif page.epoch != self.epoch:
            self.resync()
        elif page.bodies and page.first_seq <= position:
            self._replay_page(member, page)
            self.advance(member)
        else:  # trimmed while it was being read: told, never hidden
            seq = page.first_seq - 1 if page.bodies else page.head_seq
            member.passed_over(self, self.epoch, seq)
            member.connection.send_text(protocol.reset(self.name, self.epoch, seq, True))
            channel.join(member.connection, seq + 1, False)
            self.advance(member)

    def _fetch(self, start: int, done: Callable[[Page | None], None]) -> None:
        """Read a page once for all who want the same one."""
        waiting = self._fetches.get(start)
        if waiting is not None:
            waiting.append(done)
            return
        self._fetches[start] = [done]

        def fetched(page: Page | None) -> None:
            for callback in self._fetches.pop(start):
                callback(page)

        self._ports.fetch(self, start, fetched)

    def _channel(self, member: Member) -> Channel:
        return self.channels[member.transport_index]


def _fitting(bodies: Sequence[bytes], size: int) -> int:
    """How many of the first bodies have at most so many bytes; at least one."""
    count = 0
    for body in bodies:
        size -= len(body)
        if size < 0 and count:
            break
        count += 1
    return count


def _until(page: Page, end: int) -> Page:
    """The part of a page that belongs to the epoch which ended at ``end``."""
    return page._replace(bodies=page.bodies[: max(0, end - page.first_seq + 1)])
