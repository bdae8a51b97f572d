"""One worker process: builds the parts of the walk, ties them together, runs until drained.

``supervisor`` forks it with a listening socket; ``gateway`` brings people in; from then on this
module only carries callables between parts that do not know each other. It is the one place where
the pure middle (``member``, ``room``, ``hub``) meets sockets and the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ujson

from tornadochat import protocol
from tornadochat._fastframe import OP_TEXT, Deflater, encode_frame
from tornadochat.auth import Authenticator, Identity
from tornadochat.broker import Broker
from tornadochat.errors import StoreError
from tornadochat.gateway import Upgraded, make_gateway
from tornadochat.handover import Parcel
from tornadochat.homes import WIDE_MEMBERS
from tornadochat.hub import Hub, Pacer
from tornadochat.identity import IdentityKeeper
from tornadochat.limits import TokenBucket, resolve
from tornadochat.member import UNLIMITED, Member, Rates, Rules
from tornadochat.metrics import Metrics
from tornadochat.presence import Presence
from tornadochat.processes import give_memory_back, raise_file_limit
from tornadochat.room import PAGE_EVENTS, Page, Room
from tornadochat.stream_transport import Limits, StreamTransport
from tornadochat.worker_loop import WorkerLoop, new_loop

try:
    from tornadochat._reactor import Reactor
except ImportError:  # systems without epoll: everybody talks through streams
    Reactor = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from tornadochat.broker import Concerns
    from tornadochat.handover import Handover
    from tornadochat.homes import Homes
    from tornadochat.protocol import Join, Who
    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

TICK_SECONDS = 1.0
# A new worker accepts nobody before it can tell who they are; without a store it does after this
# time, to answer 503 and /healthz.
STORE_SECONDS = 3.0
# A member over its rate is read again after this time at most: pings and its close frame wait with the rest.
MAX_HOLD_SECONDS = 1.0
# The log of every subscribed room is compared with what came by pub/sub this often; a part of the rooms each
# second, since 50 workers that ask for 1,000 rooms each would hold the store for a second otherwise.
HEAD_CHECK_SECONDS = 30.0
# Memory that rooms and people have left behind is looked for this often.
TRIM_SECONDS = 20.0
# Rooms whose heads are asked for in one round trip.
HEAD_BATCH = 512
# Members told and closed at a time while draining, so that the loop stays free in between.
DRAIN_STEPS = 50
EPOLL, STREAM = 0, 1  # places in Room.channels
# Descriptors of a worker that are not members: the loop, the store, files, requests under way.
RESERVED_FILES = 100


def run(
    settings: Settings,
    slot: int,
    sock: socket.socket,
    store_url: str,
    metrics_dir: Path,
    tell: Callable[[str], object],
    generation: int,
    homes: Homes | None = None,
    handover: Handover | None = None,
) -> int:
    """Serve one slot until SIGTERM; the entry point of a forked process.

    Args:
        settings: Of the whole server.
        slot: Number of the listening socket, from 0.
        sock: Listening socket, bound by the parent.
        store_url: Address of the store, embedded or the user's.
        metrics_dir: Folder of the metrics that all workers share.
        tell: Tells the parent: ``ready N`` once connections are accepted, with how many members there is
            room for, and ``draining`` when they are not any more.
        generation: How many workers this slot had before.
        homes: Where rooms come together, shared by all workers; None where members stay where they came in.
        handover: The way there; given with ``homes``.

    Returns:
        Exit status: 0 after a drain.
    """

    async def serve() -> int:
        worker = Worker(settings, slot, store_url, metrics_dir, generation, homes, handover)
        return await worker.serve(sock, tell)

    interval = settings.turn_interval_ms / 1000
    with asyncio.Runner(loop_factory=lambda: new_loop(interval)) as runner:
        return runner.run(serve())


class Worker:
    """See the module. Also what ``gateway`` and ``api`` know of a worker (``gateway.Services``)."""

    def __init__(
        self,
        settings: Settings,
        slot: int,
        store_url: str,
        metrics_dir: Path,
        generation: int,
        homes: Homes | None = None,
        handover: Handover | None = None,
    ) -> None:
        self.settings = settings
        self.slot = slot
        self.draining = False
        self.plain_sockets = Reactor is not None
        reserved = RESERVED_FILES + (homes.slots if homes is not None else 0)
        self.capacity = settings.max_connections or max(1, raise_file_limit() - reserved)
        self.homes, self.handover = homes, handover
        if homes is not None:
            homes.take(slot, generation, self.capacity)
        if handover is not None:
            handover.take(slot)
        self.worker_id = f"{slot}-{secrets.token_hex(6)}"
        self.members: set[Member] = set()
        self._next_expiry = math.inf  # no member's token ends before this
        self.loop = asyncio.get_running_loop()
        self.metrics = Metrics(metrics_dir, slot, generation)
        self.broker = Broker(
            settings,
            store_url,
            on_published=self._on_published,
            on_status=self._on_status,
            on_control=self._on_control,
            on_moved=self._on_moved,
        )
        self.identity = IdentityKeeper(self.broker, settings)
        self.presence = Presence(self.broker, self.worker_id, settings, self._tell)
        callbacks: dict[str, Any] = {
            "on_text": Member.handle,
            "on_closed": self._on_closed,
            "on_drained": Member.drained,
            "on_gap": Member.gapped,
        }
        limits = transport_limits(settings)
        deflater = None
        if settings.compression:
            deflater = Deflater(settings.compression_level, settings.compression_min_bytes)
        self.streams = StreamTransport(limits, **callbacks, deflater=deflater)
        self.reactor: Any = self.streams
        if self.plain_sockets:
            poller = self.loop.poller if isinstance(self.loop, WorkerLoop) else None
            self.reactor = Reactor(**callbacks, **limits._asdict(), deflater=deflater, poller=poller)
        self.transports: list[Any] = [self.reactor, self.streams]
        self.gateway = make_gateway(self)
        self.hub = Hub(
            settings,
            self.transports,
            channel_of=self.broker.channel_of,
            now=time.monotonic,
            schedule=self.loop.call_later,
            sync=self._sync,
            fetch=self._fetch,
            close_room=self._close_room,
            people=self.presence.people,
            on_presence=self.presence.on_peer,
            pacer=self._pacer(),
        )
        self.rules = Rules(
            room=self.hub.room,
            find_room=self.hub.rooms.get,
            publish=self.broker.publish,
            find_repeat=self.broker.find_repeat,
            enter=self.presence.join,
            leave=self.presence.leave,
            bring_home=self._bring_home,
            typing=self.presence.typing,
            spoke=self.presence.spoke,
            who=self._who,
            hold=self._hold,
            clock=time.time,
            now=time.monotonic,
            limits=protocol.Limits.of(settings),
            max_rooms=settings.max_rooms_per_member,
            stored=0,
        )
        self._stopped = asyncio.Event()
        self._gone = asyncio.Event()  # a member, or somebody who waited for an answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_down: set[Member] = set()  # who knows that the store of one of its rooms is away
        self._unjoined: deque[tuple[float, Member]] = deque()  # oldest first: all wait equally long
        self._poll_queued = False
        self._ticked = time.monotonic()
        self._cpu_seconds = time.process_time()
        self._unchecked: list[str] = []  # rooms whose heads are still to be compared in this round
        self._checks_a_tick = 0
        self._counted_events = self._counted_messages = 0

    # Life ----------------------------------------------------------------------------------------

    async def serve(self, sock: socket.socket, tell: Callable[[str], object]) -> int:
        """Run until drained."""
        self.loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        if self.plain_sockets and not isinstance(self.loop, WorkerLoop):
            self.loop.add_reader(self.reactor.fileno(), self._poll)
            self.reactor.on_work_left = self._poll_soon
        self.broker.on_publish_seconds = self.metrics.published
        await self.broker.start()
        self._spawn(self.identity.keep())
        self.presence.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STORE_SECONDS):
                await self.identity.known.wait()
        self.gateway.listen(sock)
        if self.homes is not None and self.handover is not None:
            self.homes.open()
            self.loop.add_reader(self.handover.fileno(), self._take_in)
        tell(f"ready {self.capacity}")
        duties = (
            (self._tick, TICK_SECONDS),
            (self._check_some_heads, TICK_SECONDS),
            (give_memory_back, TRIM_SECONDS),
        )
        for duty, seconds in duties:
            self._spawn(self._repeat(duty, seconds))
        await self._stopped.wait()
        tell("draining")
        self.gateway.stop()
        if self.homes is not None:
            self.homes.shut()
        await self._drain()
        return 0

    async def _drain(self) -> None:
        """Tell everyone to move elsewhere, a part at a time, then finish what is in flight."""
        self.draining = True
        self.gateway.server.on_settled = self._gone.set
        seconds = self.settings.drain_seconds
        members = list(self.members)
        random.shuffle(members)
        per_step = -(-len(members) // DRAIN_STEPS) or 1
        for first in range(0, len(members), per_step):
            for member in members[first : first + per_step]:
                self._send_away(member)
            await asyncio.sleep(seconds / DRAIN_STEPS)
        if self.handover is not None:
            self._take_in()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.close_seconds / 2):
                while self.members or self.gateway.server.owed:
                    self._gone.clear()
                    await self._gone.wait()
        for task in self._tasks:
            task.cancel()
        await self.presence.stop()
        await self.broker.close()
        for transport in self.transports:
            transport.close()

    def _send_away(self, member: Member) -> None:
        # Spread over the drain, so that those who fall together do not return together.
        retry_after_ms = random.randint(0, int(self.settings.drain_seconds * 1000))
        member.connection.send_text(protocol.bye("drain", retry_after_ms))
        member.connection.close(1012, "the server restarts")

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _repeat(self, duty: Callable[[], Any], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                outcome = duty()
                if asyncio.iscoroutine(outcome):
                    await outcome
            except StoreError as error:
                log.debug("%s: %s", duty.__name__, error)
            except Exception:
                log.exception("%s failed; it is tried again", duty.__name__)

    # What the gateway asks and brings --------------------------------------------------------------

    @property
    def authenticator(self) -> Authenticator | None:
        """Who tells who somebody is; None until the session secret is known."""
        return self.identity.authenticator

    def ready(self) -> bool:
        """Whether people can be let in."""
        return self.broker.available and self.authenticator is not None and not self.draining

    def full(self) -> bool:
        """Whether there is no file descriptor left for one more member."""
        return len(self.members) >= self.capacity

    def adopt(self, upgraded: Upgraded) -> Member:
        """Take over a socket whose handshake was accepted.

        Raises:
            Exception: It could not be taken over; the socket is closed.
        """
        identity = upgraded.identity
        try:
            member = Member(
                self.rules,
                identity.user,
                transport_index=EPOLL if upgraded.stream is None else STREAM,
                allowed=identity.rooms,
                expires=identity.expires,
                address=upgraded.address,
                rates=self._rates(upgraded.address),
            )
            welcome = b""
            if upgraded.join is None:  # else it has had it
                welcome = protocol.welcome(identity.user, identity.session, self.rules.limits)
        except BaseException:
            self.gateway.release(upgraded.address)
            if upgraded.stream is not None:
                upgraded.stream.close()
            else:
                os.close(upgraded.fd)
            raise
        self.members.add(member)
        if self.homes is not None and upgraded.join is None:  # else its sender has counted it
            self.homes.count(1)
        if member.expires > 0:
            self._next_expiry = min(self._next_expiry, member.expires)
        try:
            self._begin(member, upgraded, welcome)
        except BaseException:
            connection = getattr(member, "connection", None)
            if connection is None:
                self._forget(member)
                self.gateway.release(member.address)
            else:
                connection.abort()
            raise
        if not self.broker.available:
            self._tell_status(member)
        if self.draining:  # it was accepted a moment before the end: nobody is refused for that
            self._send_away(member)
        return member

    def _begin(self, member: Member, upgraded: Upgraded, welcome: bytes) -> None:
        if upgraded.join is not None:
            moved = member.connection = self.reactor.attach(upgraded.fd, member, upgraded.deflates)
            member.enter(upgraded.join)
            moved.feed(upgraded.received)
            return
        if upgraded.stream is None:
            connection = member.connection = self.reactor.attach(upgraded.fd, member, upgraded.deflates)
            connection.send(upgraded.answer + encode_frame(OP_TEXT, welcome))
            connection.feed(upgraded.received)
        else:
            stream = member.connection = self.streams.attach(upgraded.stream, member, upgraded.deflates)
            stream.send_text(welcome)
            stream.start(upgraded.received)
        if self.settings.join_seconds:
            self._unjoined.append((time.monotonic() + self.settings.join_seconds, member))

    # Members of one room come together ---------------------------------------------------------------

    def _bring_home(self, member: Member, join: Join) -> bool:
        """Hand a member that joins its first room over to the worker where the others are.

        Returns:
            False where it stays here: this is its room's home, or the other worker cannot have it.
        """
        homes, handover = self.homes, self.handover
        if homes is None or handover is None or member.transport_index != EPOLL or self.draining:
            return False
        room = self.hub.rooms.get(join.room)
        if room is not None and len(room) >= WIDE_MEMBERS:
            homes.widen(join.room)
            return False
        connection: Any = member.connection
        home = homes.find(join.room) if connection.portable else None
        if home is None:
            return False
        identity = Identity(member.user, "", member.allowed, member.expires)
        ended = self._ended_at(identity)
        parcel = Parcel(identity, member.address, connection.deflates, ended, join, connection.unread())
        if not handover.send(home, connection.fileno(), parcel):
            return False
        homes.expect(home)
        member.joined_once = True  # nobody waits for it here any more
        connection.abort()  # the other worker has a descriptor of its own
        self.metrics.gathered.inc()
        return True

    def _take_in(self) -> None:
        """Take over who was brought here."""
        assert self.handover is not None and self.homes is not None
        if self.draining and self.homes.succeeded():
            self.loop.remove_reader(self.handover.fileno())  # the successor takes in who is on the way
            return
        for descriptor, parcel in self.handover.receive():
            identity, address, deflates, ended, join, received = parcel
            full = self.full()
            self.gateway.counts.add(address)
            try:
                member = self.adopt(Upgraded(descriptor, None, b"", received, identity, address, deflates, join))
            except Exception:
                log.exception("a member that was brought here could not be taken over; its connection is closed")
                continue
            if self._ended_at(identity) > ended:
                self._end(member)  # while it was on its way
            elif full:
                member.connection.close(1013, "the worker is full; connect again")

    def _ended_at(self, identity: Identity) -> float:
        """When the sessions of a user were last ended, as far as this worker has heard; -1 for never."""
        return self.authenticator.ended_at(identity.user.id) if self.authenticator is not None else -1.0

    def _forget(self, member: Member) -> None:
        self.members.discard(member)
        if self.homes is not None:
            self.homes.count(-1)

    def _rates(self, address: str) -> Rates:
        found = [
            TokenBucket.of(resolve(self.settings, name, address))
            for name in ("commands_per_second", "messages_per_second", "joins_per_second", "typing_per_second")
        ]
        return Rates(*found) if any(found) else UNLIMITED

    def _hold(self, member: Member, seconds: float) -> None:
        """A member is over a rate: what it sends meanwhile waits in its own socket."""
        now = time.monotonic()
        held = member.held_until > now
        member.held_until = min(now + MAX_HOLD_SECONDS, max(now, member.held_until) + seconds)
        if not held:
            member.connection.hold(True)
            self.loop.call_later(seconds, self._release, member)

    def _release(self, member: Member) -> None:
        left = member.held_until - time.monotonic()
        if left > 0:
            self.loop.call_later(left, self._release, member)
        else:
            member.connection.hold(False)

    # What the transports report ----------------------------------------------------------------------

    def _pacer(self) -> Pacer | None:
        """The poller, where it reads members and the store by itself: over TLS the loop does."""
        if not isinstance(self.loop, WorkerLoop) or self.settings.tls or self.broker.tls:
            return None
        self.loop.poller.unanswered = self.broker.unanswered
        return self.loop.poller

    def _poll(self) -> None:
        self._poll_queued = False
        if self.reactor.poll():
            self._poll_soon()

    def _poll_soon(self) -> None:
        if not self._poll_queued:
            self._poll_queued = True
            self.loop.call_soon(self._poll)

    def _on_closed(self, member: Member, code: int, reason: str) -> None:
        self._forget(member)
        self._told_down.discard(member)
        member.closed()
        self._gone.set()
        self.gateway.release(member.address)

    # What the broker reports -----------------------------------------------------------------------

    def _on_published(self, items: list[tuple[bytes, bytes]]) -> None:
        self.hub.on_published(items)

    def _on_status(self, up: bool, concerns: Concerns) -> None:
        for member in tuple(self._told_down if up else self.members):
            self._tell_status(member)
        if up:
            self._spawn(self._check_heads([name for name in self.hub.rooms if concerns(name)]))
            self.presence.renew(concerns)
            self.identity.ask()

    def _tell_status(self, member: Member) -> None:
        """Tell a member when the store of one of its rooms has gone, and when all are back."""
        serves = self.broker.serves
        down = not (all(serves(room.name) for room in member.rooms) if member.rooms else self.broker.available)
        if down is not (member in self._told_down):
            (self._told_down.add if down else self._told_down.discard)(member)
            member.connection.send_text(protocol.status("down" if down else "up"))

    def _on_moved(self, channels: list[bytes]) -> None:
        self._spawn(self._check_heads(self.hub.names_of(channels)))

    def _on_control(self, payload: bytes) -> None:
        try:
            order = ujson.loads(payload)
            kind, user, room, at = order["kind"], order.get("user"), order.get("room"), float(order.get("at", 0))
        except (ValueError, KeyError, TypeError):
            log.warning("malformed control message of %d bytes left out", len(payload))
            return
        if kind == "people":
            self._on_counts(order)
            return
        if kind == "secrets":
            self.identity.ask()
        if kind == "end" and self.authenticator is not None:
            self.authenticator.end(user, at)
        for member in [member for member in self.members if member.user.id == user]:
            if kind == "kick":
                member.removed(room)
            elif kind == "end":
                self._end(member)

    def _end(self, member: Member) -> None:
        member.connection.send_text(protocol.bye("session_ended", 0))
        member.connection.close(1008, "the session was ended")

    def _on_counts(self, order: dict[str, Any]) -> None:
        worker, counts = order.get("worker"), order.get("rooms")
        if isinstance(worker, str) and isinstance(counts, dict) and set(map(type, counts.values())) <= {int}:
            self.presence.on_counts(worker, counts)
        else:
            log.warning("a malformed message with the counts of rooms left out")

    # What rooms ask for ----------------------------------------------------------------------------

    def _sync(self, room: Room, start_seq: int) -> None:
        self._spawn(self._sync_room(room, start_seq))

    async def _sync_room(self, room: Room, start_seq: int) -> None:
        try:
            await self.broker.subscribe(room.name)
            await self._load_presence(room)
            page = await self._read_page(room, start_seq)
        except StoreError as error:
            log.debug("room %r cannot be read: %s", room.name, error)
            room.sync_failed()
        else:
            room.synced(page)

    async def _load_presence(self, room: Room) -> None:
        """Who is here already; without it the room opens all the same, and is told later."""
        try:
            await self.presence.load(room.name)
        except StoreError as error:
            log.debug("presence of room %r cannot be read: %s", room.name, error)

    def _fetch(self, room: Room, start_seq: int, done: Callable[[Page | None], None]) -> None:
        self._spawn(self._fetch_page(room, start_seq, done))

    async def _fetch_page(self, room: Room, start_seq: int, done: Callable[[Page | None], None]) -> None:
        try:
            page: Page | None = await self._read_page(room, start_seq)
        except StoreError:
            page = None
        done(page)

    async def _read_page(self, room: Room, start_seq: int) -> Page:
        limit = min(PAGE_EVENTS, self.settings.history)
        found = await self.broker.read_log(room.name, start_seq, limit)
        return Page(found.epoch, found.head_seq, found.ends, found.first_seq, found.bodies)

    def _close_room(self, name: str) -> None:
        self.broker.unsubscribe(name, 0)  # the hub has waited for the grace period already
        self.presence.forget(name)

    # Presence ----------------------------------------------------------------------------------------

    def _tell(self, name: str, event: bytes) -> None:
        room = self.hub.rooms.get(name)
        if room is not None:
            room.tell(event)

    def _who(self, member: Member, command: Who) -> None:
        self._spawn(self._answer_who(member, command))

    async def _answer_who(self, member: Member, command: Who) -> None:
        try:
            users, people = await self.presence.who(command.room, command.offset, command.limit)
        except StoreError:
            member.unavailable(command.room, "The list cannot be read just now; ask again in a moment.")
        else:
            member.connection.send_text(protocol.who(command.room, users, people, command.offset))

    # Timers ------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self.reactor.tick(now)
        self.streams.tick(now)
        self.hub.tick()
        self.presence.tick(now)
        if self.homes is not None:
            self._tell_siblings(self.homes, now)
        self._end_unjoined(now)
        self._end_expired()
        self._count(now)

    def _tell_siblings(self, homes: Homes, now: float) -> None:
        cpu = time.process_time()
        busy = (cpu - self._cpu_seconds) / max(now - self._ticked, 0.1)
        homes.report(len(self.members), len(self.hub.rooms), busy)
        homes.sweep(self.hub.rooms)
        self._cpu_seconds = cpu

    def _end_unjoined(self, now: float) -> None:
        while self._unjoined and self._unjoined[0][0] <= now:
            member = self._unjoined.popleft()[1]
            if not member.joined_once:
                member.connection.close(1008, "join a room after connecting")

    def _end_expired(self) -> None:
        now = time.time()
        if now < self._next_expiry:
            return
        for member in [member for member in self.members if 0 < member.expires <= now]:
            member.connection.close(1008, "the session has expired; sign in again")
        left = (member.expires for member in self.members if member.expires > now)
        self._next_expiry = min(left, default=math.inf)

    def _count(self, now: float) -> None:
        metrics, hub = self.metrics, self.hub
        metrics.loop_lag_seconds.observe(max(0.0, now - self._ticked - TICK_SECONDS))
        self._ticked = now
        metrics.observe_published()
        metrics.count_transports(self.transports if self.plain_sockets else [self.streams])
        metrics.rooms.set(len(hub.rooms))
        metrics.store_up.set(self.broker.available)
        metrics.events.inc(hub.events_delivered - self._counted_events)
        self._counted_events = hub.events_delivered
        metrics.messages.inc(self.rules.stored - self._counted_messages)
        self._counted_messages = self.rules.stored
        if self.plain_sockets:
            metrics.longest_hold.set(self.reactor.longest_hold_us / 1e6)

    async def _check_some_heads(self) -> None:
        """Compare what came by pub/sub with the logs of the rooms whose turn it is."""
        if not self._unchecked:
            self._unchecked = list(self.hub.rooms)
            self._checks_a_tick = math.ceil(len(self._unchecked) * TICK_SECONDS / HEAD_CHECK_SECONDS)
        names = self._unchecked[: self._checks_a_tick]
        del self._unchecked[: len(names)]
        await self._check_heads(names)

    async def _check_heads(self, names: Sequence[str]) -> None:
        """Compare what came by pub/sub with the logs of some rooms; what is missing is read. What the store does
        not tell of is looked at again the next time."""
        rooms = self.hub.rooms
        known = [name for name in names if name in rooms and rooms[name].epoch]
        for first in range(0, len(known), HEAD_BATCH):
            batch = known[first : first + HEAD_BATCH]
            for name, head in zip(batch, await self.broker.heads(batch), strict=True):
                room = self.hub.rooms.get(name)
                if room is not None and head is not None:
                    room.check_head(head.epoch, head.seq)


def transport_limits(settings: Settings) -> Limits:
    """The bounds of one connection, the same on both transports."""
    return Limits(
        max_message_bytes=settings.max_message_bytes,
        max_backlog_bytes=settings.max_backlog_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        replay_bytes=settings.replay_in_flight_bytes,
        ping_seconds=settings.ping_seconds,
        pong_seconds=settings.pong_seconds,
        close_seconds=settings.close_seconds,
        stuck_seconds=settings.stuck_seconds,
    )
