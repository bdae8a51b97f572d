"""The writing side of the broker: each room's messages in batches, one script for each batch.

Fifth step of the walk. While a batch of a room is in flight, further messages of that room wait and
go as the next one; no timer is involved. Batches of different rooms are pipelined on one connection, in a
cluster on one to each master. A batch whose reply was lost, or whose room is elsewhere by now, is sent again,
the identical one, before any later batch of its room: the script knows what it stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import random
import secrets
from collections.abc import Callable, Iterator
from importlib.resources import files
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis

from tornadochat._fastframe import pack_arguments, pack_message
from tornadochat.errors import Unavailable
from tornadochat.store_links import PASSING
from tornadochat.worker_loop import at_end_of_turn

if TYPE_CHECKING:
    from tornadochat.redis_link import Link
    from tornadochat.settings import Settings
    from tornadochat.store_links import Links

log = logging.getLogger("tornadochat")

# One script may hold the store for about a millisecond, not longer: 128 messages cost 0.5 ms.
BATCH_MESSAGES = 128
BATCH_BYTES = 256 * 1024
# Messages older than ``publish_seconds`` are looked for this often.
SWEEP_SECONDS = 0.25
# Pause before a batch is sent again that the store answered with an error (loading, no memory, a slot on its
# way, ...), and before one follows its room to another server; drawn from half to one and a half of it.
ERROR_RETRY_SECONDS, MOVED_RETRY_SECONDS = 0.1, 0.03
# Typing and presence in flight; beyond it they are dropped, since the next ones are absolute again.
MAX_EPHEMERAL = 2000
# Eight characters out of 32 are 40 bits. One epoch is sent with each batch and mostly not used, so many are
# drawn at a time; each character stands for eight of the 256 bytes.
EPOCH_CHARS, EPOCHS_AT_ONCE = 8, 256
EPOCH_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567" * 8
# How the scripts write a room's state, for Lua's ``struct``: seq of the newest event, bytes in the log, time (ms)
# and newest seq when the repeats rotated last, time (ms) when the lives were renewed last; then, each behind its
# length, the epoch and the run id of the server.
STATE = "<I8I8I8I8I8Bc0Bc0"


class Outcome(NamedTuple):
    """What became of a message.

    Attributes:
        status: ``stored``, ``repeat`` (an earlier try stored it), ``id_reused`` (the id belongs to
            another text), ``unknown`` (only of a look-up: it was never stored), or ``unavailable``
            (the store did not answer in time; it may or may not be stored).
        epoch: Of the room; empty where nothing is stored.
        seq: Its place; 0 where nothing is stored.
    """

    status: str
    epoch: str
    seq: int


class RoomKeys(NamedTuple):
    """A room's keys and channel, all in one hash slot of a cluster."""

    meta: bytes
    log: bytes
    repeats: bytes
    former: bytes
    channel: bytes


class Waiting(NamedTuple):
    """One message on its way."""

    packed: bytes  # as it is in the command
    reply: Callable[[Outcome], None]
    deadline: float


class Find(NamedTuple):
    """One message that is looked for."""

    who: str
    fingerprint: str
    reply: Callable[[Outcome], None]


class RoomQueue:
    """The messages of one room that wait or are in flight."""

    __slots__ = ("batch", "fresh_epoch", "head", "head_link", "keys", "link", "scheduled", "slot", "waiting")

    def __init__(self, keys: RoomKeys, slot: int) -> None:
        self.keys = keys
        self.slot = slot
        self.link: Link | None = None  # that the batch is out on
        self.waiting: list[Waiting] = []
        self.batch: list[Waiting] = []
        self.fresh_epoch = b""
        self.head = b""  # what all commands of the room begin with on head_link
        self.head_link: Link | None = None
        self.scheduled = False


class Script(NamedTuple):
    """A Lua script and the digest that the store knows it by."""

    source: bytes
    digest: str

    @classmethod
    def load(cls, name: str, **constants: int | str) -> Script:
        """The script ``scripts/<name>.lua`` of this package, with these names and STATE as locals before it."""
        text = files("tornadochat").joinpath("scripts", f"{name}.lua").read_text("utf-8")
        constants = {"packed": STATE, **constants}
        values = (f"'{value}'" if isinstance(value, str) else str(value) for value in constants.values())
        # On the first line, so that the lines of the store's error messages are those of the file.
        head = f"local {', '.join(constants)} = {', '.join(values)} "
        source = (head + text).encode("utf-8")
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


READ, FIND = (Script.load(name) for name in ("read", "find"))


def publish_script(settings: Settings, sharded: bool) -> Script:
    """The script that stores and publishes, for these settings; ``sharded`` in a cluster."""
    return Script.load(
        "publish",
        keep=settings.history,
        keep_seconds=settings.history_seconds,
        keep_bytes=settings.history_bytes,
        life=settings.history_ttl_seconds,
        rotate_seconds=settings.repeat_window_seconds,
        rotate_entries=settings.repeat_entries,
        publish="SPUBLISH" if sharded else "PUBLISH",
    )


def epochs() -> Iterator[bytes]:
    """Eight random characters each, 40 bits: two lives of one room do not share an epoch."""
    while True:
        drawn = secrets.token_bytes(EPOCH_CHARS * EPOCHS_AT_ONCE).translate(EPOCH_ALPHABET)
        for first in range(0, len(drawn), EPOCH_CHARS):
            yield drawn[first : first + EPOCH_CHARS]


def fingerprint_of(text: str) -> str:
    """What tells two texts under one id apart; a stamp or a name may differ between two tries."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


class Publisher:
    """See the module.

    Args:
        settings: Bounds and times.
        connect: Makes the connections, see ``store_links.Links``; told how to begin one, and whom to tell.
        keys_of: A room's keys.
        on_change: Called when ``links.routes`` has changed.
        sharded: Whether the store is a cluster, where a channel belongs to a slot.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[..., Links],
        keys_of: Callable[[str], RoomKeys],
        on_change: Callable[[], None],
        sharded: bool = False,
    ) -> None:
        self.on_publish_seconds: Callable[[float], None] | None = None
        self._settings = settings
        self._keys_of = keys_of
        self._on_change = on_change
        self._publish_command = b"SPUBLISH" if sharded else b"PUBLISH"
        self.links = connect(begin=self._begin, on_change=self._rerouted)
        self._routes = self.links.routes
        self._loop = asyncio.get_running_loop()
        self._at_end_of_turn = at_end_of_turn(self._loop)
        self._queues: dict[str, RoomQueue] = {}
        self._scheduled: list[RoomQueue] = []
        self._count = 0  # messages that wait or are in flight
        self._finds: dict[str, list[Find]] = {}  # of this turn, by room
        self._loading: set[Link] = set()  # connections that scripts were loaded on a moment ago
        self._finding = 0  # look-ups that wait or are in flight
        self._finders: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event | None = None  # set when a closing publisher has nothing in flight
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._publish_script = publish_script(settings, sharded)
        self.epochs = epochs()

    # The connections -------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and connect again whenever a connection is lost."""
        self.links.start()

    async def close(self) -> None:
        """Wait for what is in flight, at most ``publish_seconds``, then end for good."""
        if self._count and self.links.ready:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.publish_seconds):
                    await self._idle.wait()
        self._sweeper.cancel()
        await self.links.close()
        for queue in self._queues.values():
            self._fail(queue.batch + queue.waiting)
            queue.batch, queue.waiting = [], []

    async def _begin(self, link: Link) -> None:
        """A connection was made: the scripts must be there before it is used."""
        for script in (self._publish_script, READ, FIND):
            await link.ask("SCRIPT", "LOAD", script.source)

    def _rerouted(self) -> None:
        """There are other connections: what waits goes out, unless it is out on one that lives."""
        for queue in tuple(self._queues.values()):
            if queue.link is None:
                self._send(queue)
        self._on_change()

    def _learn(self, link: Link, error: Exception) -> tuple[Link | None, float]:
        """What an error says of the store.

        Returns:
            Where to send the same at once, behind ASKING; or None, and the pause before it is tried again.
        """
        words = str(error)
        if words.startswith("NOSCRIPT") and link not in self._loading:
            self._loading.add(link)  # once for all that meet this at the same time
            self._loop.call_later(ERROR_RETRY_SECONDS, self._loading.discard, link)
            for script in (self._publish_script, READ, FIND):
                link.call(_ignore, "SCRIPT", "LOAD", script.source)
        asking = self.links.learn(link, words)
        pause = MOVED_RETRY_SECONDS if words.startswith("MOVED") else ERROR_RETRY_SECONDS
        return asking, pause * random.uniform(0.5, 1.5)

    async def ask(self, slot: int, command: Callable[[str], tuple[Any, ...]]) -> Any:
        """One command that is not a message; its reply.

        Args:
            slot: Of its keys.
            command: Gives the command for the run id of the server that it is sent to.

        Raises:
            Unavailable: No answer within ``publish_seconds``, or an error for an answer.
        """
        try:
            async with asyncio.timeout(self._settings.publish_seconds):
                while True:
                    reply, pause = await self._try(slot, command)
                    if pause is None:
                        return reply
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise Unavailable("the store did not answer in time") from None

    async def _try(self, slot: int, command: Callable[[str], tuple[Any, ...]]) -> tuple[Any, float | None]:
        """Ask the server that has the slot once: its reply, or else the seconds after which to try again."""
        link = self._routes[slot]
        if link is None:
            raise Unavailable("the store cannot be reached")
        reply = await self._call(link, command)
        target, pause = None, None
        if isinstance(reply, Exception) and str(reply).startswith(PASSING):
            target, pause = self._learn(link, reply)
        if target is not None:
            target.call(_ignore, "ASKING")
            reply = await self._call(target, command)
        if not isinstance(reply, Exception):
            return reply, None
        if pause is None:
            raise Unavailable(str(reply))
        return None, pause

    async def _call(self, link: Link, command: Callable[[str], tuple[Any, ...]]) -> Any:
        assert link.info is not None  # it was learnt before the connection became a route
        future: asyncio.Future[Any] = self._loop.create_future()
        link.call(functools.partial(_settle, future), *command(link.info.run_id))
        return await future

    # Messages --------------------------------------------------------------------------------------

    def publish(
        self, room: str, user_id: str, message_id: str, body: bytes, text: str, reply: Callable[[Outcome], None]
    ) -> None:
        """Store and publish one message; see ``Broker.publish``."""
        if self._count >= self._settings.publish_queue:
            raise Unavailable("too many messages wait for the store")
        queue = self._queues.get(room)
        if queue is None:
            keys = self._keys_of(room)
            queue = self._queues[room] = RoomQueue(keys, self.links.slot_of(keys.meta))
        packed = pack_message(user_id, message_id, fingerprint_of(text), body)
        self._count += 1
        deadline = monotonic() + self._settings.publish_seconds
        queue.waiting.append(Waiting(packed, reply, deadline))
        if not queue.batch and not queue.scheduled:
            queue.scheduled = True
            if not self._scheduled:
                self._at_end_of_turn(self._send_scheduled)
            self._scheduled.append(queue)

    def _send_scheduled(self) -> None:
        """What came in one turn of the loop goes as one batch of each room."""
        scheduled, self._scheduled = self._scheduled, []
        for queue in scheduled:
            queue.scheduled = False
            self._send(queue)
        for link in self.links.ready:
            link.flush()

    def _send(self, queue: RoomQueue) -> None:
        """Send the batch that is not stored yet once more, or else the next one, unless one is out."""
        link = self._routes[queue.slot]
        if link is None or queue.link is not None:
            return
        if not queue.batch:
            if not queue.waiting:
                return
            if len(queue.waiting) == 1:
                queue.batch, queue.waiting = queue.waiting, []
            else:
                queue.batch = _next_batch(queue.waiting)
            queue.fresh_epoch = next(self.epochs)
        self._send_on(link, queue)

    def _send_on(self, link: Link, queue: RoomQueue) -> None:
        if queue.head_link is not link:
            assert link.info is not None  # it was learnt before the connection became a route
            digest, run_id = self._publish_script.digest, link.info.run_id
            queue.head, queue.head_link = pack_arguments(["EVALSHA", digest, "5", *queue.keys, run_id]), link
        batch = queue.batch
        messages = batch[0].packed if len(batch) == 1 else b"".join([message.packed for message in batch])
        queue.link = link
        link.call_packed(
            functools.partial(self._replied, queue, batch, link, monotonic()),
            b"*%d\r\n%b$8\r\n%b\r\n%b" % (10 + 3 * len(batch), queue.head, queue.fresh_epoch, messages),
        )

    def _replied(self, queue: RoomQueue, batch: list[Waiting], link: Link, sent: float, reply: Any) -> None:
        if queue.batch is not batch:
            return  # it was given up, and its senders know that the outcome is unknown
        queue.link = None
        if type(reply) is not bytes and type(reply) is not list:
            if isinstance(reply, hiredis.ReplyError):
                self._retry_after_error(queue, batch, link, reply)
            return  # the connection is gone; the batch goes first on the next one
        if self.on_publish_seconds is not None:
            self.on_publish_seconds(monotonic() - sent)
        queue.batch = []
        self._count -= len(batch)
        if self._idle is not None and not self._count:
            self._idle.set()
        if queue.waiting:
            self._send(queue)
        if isinstance(reply, bytes):
            epoch, seq = reply[:EPOCH_CHARS].decode("ascii"), int(reply[EPOCH_CHARS:])
            for message in batch:
                _answer(message.reply, Outcome("stored", epoch, seq))
                seq += 1
            return
        epoch = reply[0].decode("ascii")
        for message, seq in zip(batch, reply[1:], strict=True):
            status = "stored" if seq > 0 else "repeat" if seq < 0 else "id_reused"
            _answer(message.reply, Outcome(status, epoch, abs(seq)))

    def _retry_after_error(self, queue: RoomQueue, batch: list[Waiting], link: Link, error: Exception) -> None:
        level = logging.DEBUG if str(error).startswith(PASSING) else logging.WARNING
        log.log(level, "the store refused a batch of %d messages: %s", len(batch), error)
        asking, pause = self._learn(link, error)
        if asking is not None:
            asking.call(_ignore, "ASKING")
            self._send_on(asking, queue)
            return

        def again() -> None:
            if queue.batch is batch and queue.link is None:
                self._send(queue)

        self._loop.call_later(pause, again)

    def _sweep(self) -> None:
        """Give up what has waited too long, and forget the rooms that are quiet."""
        now = monotonic()
        for room, queue in tuple(self._queues.items()):
            if queue.batch and queue.batch[0].deadline <= now:
                late, queue.batch, queue.link = queue.batch, [], None
                self._count -= len(late)
                self._fail(late)
            late = [message for message in queue.waiting if message.deadline <= now]
            if late:
                queue.waiting = queue.waiting[len(late) :]  # in the order of their deadlines
                self._count -= len(late)
                self._fail(late)
            if not queue.batch and not queue.scheduled:
                if queue.waiting:
                    self._send(queue)
                else:
                    del self._queues[room]
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _fail(self, messages: list[Waiting]) -> None:
        for message in messages:
            _answer(message.reply, UNAVAILABLE)

    # Everything else -------------------------------------------------------------------------------

    def find_repeat(
        self, room: str, user_id: str, message_id: str, text: str, reply: Callable[[Outcome], None]
    ) -> None:
        """Look up one message; see ``Broker.find_repeat``. Those of one turn of the loop go together."""
        if self._finding >= self._settings.publish_queue or not self.links.ready:
            raise Unavailable("the store cannot be reached")
        self._finding += 1
        if not self._finds:
            self._at_end_of_turn(self._send_finds)
        found = Find(f"{user_id} {message_id}", fingerprint_of(text), reply)
        self._finds.setdefault(room, []).append(found)

    def _send_finds(self) -> None:
        finds, self._finds = self._finds, {}
        for room, wanted in finds.items():
            for first in range(0, len(wanted), BATCH_MESSAGES):
                task = asyncio.ensure_future(
                    self._find(self._keys_of(room), wanted[first : first + BATCH_MESSAGES])
                )
                self._finders.add(task)
                task.add_done_callback(self._finders.discard)

    async def _find(self, keys: RoomKeys, batch: list[Find]) -> None:
        command: list[Any] = ["EVALSHA", FIND.digest, 3, keys.meta, keys.repeats, keys.former]
        for who, fingerprint, _reply in batch:
            command += (who, fingerprint)
        try:
            answer = await self.ask(self.links.slot_of(keys.meta), lambda _run_id: tuple(command))
            epoch = answer[0].decode("ascii")
            outcomes = [_outcome_of(epoch, seq) for seq in answer[1:]]
        except Unavailable:
            outcomes = [UNAVAILABLE] * len(batch)
        finally:
            self._finding -= len(batch)
        for (_who, _fingerprint, reply), outcome in zip(batch, outcomes, strict=True):
            _answer(reply, outcome)

    def unanswered(self) -> bool:
        """Whether answers of the store are still to come."""
        for link in self.links.ready:  # noqa: SIM110 - a generator costs more
            if link.waiting:
                return True
        return False

    def publish_raw(self, channel: bytes, payload: bytes) -> None:
        """Publish without storing; dropped when the store is away or has much to do."""
        link = self._routes[self.links.slot_of(channel)]
        if link is not None and link.waiting < MAX_EPHEMERAL:
            link.call(functools.partial(self._published_raw, link), self._publish_command, channel, payload)

    def _published_raw(self, link: Link, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._learn(link, reply)  # this one is lost, the next one finds its way


UNAVAILABLE = Outcome("unavailable", "", 0)


def _outcome_of(epoch: str, seq: int) -> Outcome:
    """What ``find.lua`` says of one message."""
    if seq < 0:
        return Outcome("unknown", "", 0)
    return Outcome("repeat" if seq else "id_reused", epoch, seq)


def _ignore(_reply: Any) -> None:
    """For commands whose reply says nothing."""


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


def _answer(reply: Callable[[Outcome], None], outcome: Outcome) -> None:
    try:
        reply(outcome)
    except Exception:
        log.exception("the handler of a message's outcome failed")


def _next_batch(waiting: list[Waiting]) -> list[Waiting]:
    """Take the oldest messages out of ``waiting``, as many as one script may store."""
    size = count = 0
    for message in waiting[:BATCH_MESSAGES]:
        size += len(message.packed)
        if count and size > BATCH_BYTES:
            break
        count += 1
    batch = waiting[:count]
    del waiting[:count]
    return batch
