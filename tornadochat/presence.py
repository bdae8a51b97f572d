"""Who is where, over all workers, without ghosts.

Beside the walk: ``member`` tells who came and went, ``hub`` hands over what other workers publish.
Each worker keeps a record of its own people for each of its rooms in the store, tells the others when
it has changed (at most once a second for each room), and beats for all of them at once: a worker that
was killed is gone after 15 s with all its people. While nobody comes or goes, nothing is done.

A person whose connection was lost stays for 15 s, so that a reconnect, here or elsewhere, is no leave.
Up to 200 people a room is told who came and went; above that, how many there are. The names of a large room are
kept by no worker but each one's own; its counts travel with those of all other large rooms, in one message of a
worker to all others: 1,000 rooms on 50 workers that change once a second are 2,500 pieces of news a second
otherwise, each of which wakes 50 workers.

Presence yields to messages. What a worker writes, publishes and tells in a second is bounded; when more has
changed, rooms wait for their turn, and only the last state of each is told.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import redis
import ujson
from tornado.process import cpu_count

from tornadochat import protocol
from tornadochat.errors import Unavailable
from tornadochat.protocol import User

if TYPE_CHECKING:
    from tornadochat.broker import Broker
    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

MAX_LISTED = 200  # people of a room whose names are told, and typing passed on
# A large room lists its people again only below this: at the limit itself each who comes and goes would make every
# worker tell its names once more.
LISTED_AGAIN = 160
GRACE_SECONDS = 15.0  # a lost connection is a leave only after this
BEAT_SECONDS = 1.0
# A worker that has not beaten for this long is gone: a second more than the grace, since its last beat may
# have been a second before its end.
GONE_SECONDS = 16.5
# After the store was away nobody has beaten, and the others need as long to come back as this worker did.
SETTLE_SECONDS = 5.0
TELL_SECONDS = 1.0  # between two presence events, or two typing events, of one room
# Keys of a worker that vanished with all others disappear by themselves; a living one renews them.
RECORD_LIFE_SECONDS = 86400
RENEW_SECONDS = 6 * 3600
ACTIVE_LIFE_SECONDS = 60
RENEW_LOOK_SECONDS = 60.0
COUNTS_SECONDS = 2.0  # between two messages with the counts of large rooms
COUNTS_AT_A_TIME = 1000  # rooms of one such message: some 30 KiB
# Bounds of a worker that has a core to itself; workers that share cores share these as well. A send costs some
# 10 us, a record some 100 us where it is written and 40 us wherever it is read: together a fifth of a core.
TELLS_PER_SECOND = 2000  # members told
WRITES_PER_SECOND = 1000  # records put into the store
NEWS_PER_SECOND = 2000  # records with names that come from all workers together
WRITES_AT_A_TIME = 64  # records of one round trip


class Here:
    """The people of one room, as this worker sees them."""

    __slots__ = (
        "changes",
        "extra",
        "large",
        "loaded",
        "names",
        "others",
        "others_total",
        "stale",
        "told",
        "told_people",
        "typed_at",
        "typing",
        "users",
        "written",
        "_people",
    )

    def __init__(self) -> None:
        self.users: dict[str, User] = {}  # ours, with those whose connection was lost a moment ago
        self.extra: dict[str, int] = {}  # further connections of the same user
        self.others: dict[str, int] = {}  # people of each other worker
        self.others_total = 0
        self.names: dict[str, dict[str, User]] = {}  # who they are; of no worker once the room is large
        self.large = False
        self.changes: dict[str, User | None] = {}  # ours, not yet in the store; None is gone
        self.told: dict[str, User] = {}  # whom the members here have been told of
        self.told_people = 0
        self.loaded = False
        self.written = 0.0
        self.typing: dict[str, User] = {}
        self.typed_at = 0.0
        self.stale = False  # whether people came or went since they were counted
        self._people = 0

    @property
    def named(self) -> bool:
        """Whether everybody is known by name."""
        return not self.large and len(self.names) == len(self.others)

    @property
    def people(self) -> int:
        """Distinct people where all are known by name, else the sum over the workers."""
        if self.stale:
            self.stale = False
            total = len(self.users) + self.others_total
            self._people = len(self.union()) if self.names and self.named else total
        return self._people

    def recount(self) -> None:
        """Somebody came or went: the room may turn large, so that its names are let go, or small."""
        self.stale = True
        total = len(self.users) + self.others_total
        if total > MAX_LISTED:
            self.large = True
            self.names.clear()
            self.told = {}
        elif total <= LISTED_AGAIN:
            self.large = False

    def set_other(self, worker: str, count: int, users: dict[str, User] | None) -> None:
        """Take in how many people another worker has, and who they are where that was said."""
        self.others_total += count - self.others.pop(worker, 0)
        if count:
            self.others[worker] = count
        if not count or self.large or (users is None and len(self.names.get(worker, ())) != count):
            self.names.pop(worker, None)
        elif users is not None:
            self.names[worker] = users
        self.recount()

    def union(self) -> dict[str, User]:
        """Everybody that is known by name."""
        found: dict[str, User] = {}
        for users in self.names.values():
            found.update(users)
        found.update(self.users)
        return found


class Allowance:
    """So much a second; what is above it is paid back before anything else.

    Args:
        rate: A second, above 0.
    """

    __slots__ = ("_at", "left", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.left = rate
        self._at = 0.0

    def refill(self, now: float) -> None:
        """Time has passed; at most a second's worth is kept."""
        self.left = min(self.rate, self.left + (now - self._at) * self.rate) if self._at else self.rate
        self._at = now


class Presence:
    """See the module.

    Args:
        broker: Publishes to the other workers, and has the connection for records.
        worker_id: Unlike that of any other worker, now or before.
        settings: The namespace.
        tell: Gives an event to all members of a room on this worker.
    """

    def __init__(
        self, broker: Broker, worker_id: str, settings: Settings, tell: Callable[[str, bytes], None]
    ) -> None:
        self._broker = broker
        self._worker = worker_id
        self._prefix = settings.redis_prefix
        self._tell = tell
        self._rooms: dict[str, Here] = {}
        self._to_write: dict[str, None] = {}  # rooms whose own people changed
        self._active: dict[str, int] = {}  # people of rooms whose count is not in the list of active rooms yet
        self._to_tell: dict[str, None] = {}  # rooms whose members may have to be told
        self._lost: deque[tuple[float, str, str]] = deque()  # deadline, room, user; oldest first
        self._lost_until: dict[tuple[str, str], float] = {}
        self._alive: set[str] = set()
        self._peers: set[str] = set()  # other workers that have people in our rooms
        self._uncounted: dict[str, None] = {}  # rooms whose count the other workers have not been told of
        share = min(1.0, cpu_count() / (settings.workers or cpu_count()))
        self._tells = Allowance(TELLS_PER_SECOND * share)
        self._writes = Allowance(WRITES_PER_SECOND * share)
        self._news = Allowance(NEWS_PER_SECOND * share)
        self._counted = self._renewed = time.monotonic()
        self._beaten = self._settled = time.monotonic()
        self._beat = broker.redis.register_script(files("tornadochat").joinpath("scripts", "beat.lua").read_text())
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._task = asyncio.ensure_future(self._beat_on())

    def renew(self, concerns: Callable[[str], bool]) -> None:
        """The store of some rooms is back, perhaps without our records: write those again."""
        for room, here in self._rooms.items():
            if here.users and concerns(room):
                here.changes.update(here.users)
                here.written = 0.0
                self._to_write[room] = self._uncounted[room] = None

    async def stop(self) -> None:
        """Beat no more. The records stay: whoever comes back elsewhere within the grace never left."""
        for task in (self._task, self._writing):
            if task is not None:
                task.cancel()

    # What members do -------------------------------------------------------------------------------

    def join(self, room: str, user: User) -> None:
        """A user has come into a room here (once more, with a second connection)."""
        here = self._rooms.setdefault(room, Here())
        if self._lost_until.pop((room, user.id), None) is not None:
            here.users[user.id] = user
            return
        if user.id in here.users:
            here.extra[user.id] = here.extra.get(user.id, 0) + 1
            return
        here.users[user.id] = user
        here.changes[user.id] = user
        self._changed(room, here)

    def leave(self, room: str, user: User, by_hand: bool) -> None:
        """A connection of a user has left a room, by hand or because it was lost."""
        here = self._rooms.get(room)
        if here is None or user.id not in here.users:
            return
        extra = here.extra.get(user.id, 0)
        if extra > 1:
            here.extra[user.id] = extra - 1
        elif extra == 1:
            del here.extra[user.id]
        elif by_hand:
            self._gone(room, here, user.id)
        else:
            deadline = time.monotonic() + GRACE_SECONDS
            self._lost_until[room, user.id] = deadline
            self._lost.append((deadline, room, user.id))

    def _gone(self, room: str, here: Here, user_id: str) -> None:
        here.users.pop(user_id, None)
        here.changes[user_id] = None
        self._changed(room, here)

    def _changed(self, room: str, here: Here) -> None:
        here.recount()
        self._to_write[room] = self._to_tell[room] = self._uncounted[room] = None

    def typing(self, room: str, user: User) -> None:
        """A user writes; passed on at most once a second for each room, never in large rooms."""
        here = self._rooms.get(room)
        if here is None or here.large:
            return
        here.typing[user.id] = user
        self._to_tell[room] = None
        now = time.monotonic()
        if now - here.typed_at >= TELL_SECONDS:
            self._tell_typing(room, here, now)

    def spoke(self, room: str, user: User) -> None:
        """A user has said something, so does not write any more."""
        here = self._rooms.get(room)
        if here is not None and here.typing:
            here.typing.pop(user.id, None)

    def _tell_typing(self, room: str, here: Here, now: float) -> None:
        users, here.typing = list(here.typing.values()), {}
        here.typed_at = now
        self._broker.publish_ephemeral(room, b"X" + protocol.typing(room, users))

    # What others ask -------------------------------------------------------------------------------

    def people(self, room: str) -> int:
        """People in a room on all workers, as far as is known here."""
        here = self._rooms.get(room)
        return here.people if here is not None else 0

    async def who(self, room: str, offset: int, limit: int) -> tuple[list[User], int]:
        """A window of the people in a room, and how many there are.

        Raises:
            Unavailable: The room is large and the store cannot be reached.
        """
        here = self._rooms.get(room)
        if here is None:
            return [], 0
        people = here.people
        if here.named:
            everybody = here.union()
            return [everybody[key] for key in sorted(everybody)[offset : offset + limit]], people
        found: list[User] = []
        workers = sorted({self._worker, *here.others})
        try:
            for worker in workers:
                key = self._who_key(room, worker)
                if offset > 0 and (size := await self._broker.redis.zcard(key)) <= offset:
                    offset -= size
                    continue
                window: Any = await self._broker.redis.zrange(key, offset, offset + limit - len(found) - 1)
                found += [User(*member.decode("utf-8").split("\0", 1)) for member in window]
                offset = 0
                if len(found) >= limit:
                    break
        except redis.RedisError as error:
            raise Unavailable(str(error)) from None
        return found, people

    async def active_rooms(self, limit: int) -> list[tuple[str, int]]:
        """Rooms with people, the fullest first.

        Raises:
            Unavailable: The store cannot be reached.
        """
        totals: dict[str, int] = {}
        try:
            async with self._broker.redis.pipeline(transaction=False) as pipe:
                for worker in sorted(self._alive | {self._worker}):
                    pipe.zrevrange(self._active_key(worker), 0, limit - 1, withscores=True)
                for found in await pipe.execute():
                    for name, count in found:
                        room = name.decode("utf-8")
                        totals[room] = totals.get(room, 0) + int(count)
        except redis.RedisError as error:
            raise Unavailable(str(error)) from None
        return sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:limit]

    async def load(self, room: str) -> None:
        """Learn who is in a room elsewhere; called when the room is opened here.

        Raises:
            Unavailable: The store cannot be reached.
        """
        here = self._rooms.setdefault(room, Here())
        if here.loaded:
            return
        records = await self._broker.read_hash(room, self._here_key(room))
        try:
            if not all(worker.decode("ascii") in self._alive for worker in records):
                await self._beat_once()  # some of them may have come a moment ago
            settled = time.monotonic() >= self._settled
            dead = [worker for worker in records if settled and worker.decode("ascii") not in self._alive]
            if dead:
                keys = [self._who_key(room, worker.decode("ascii")) for worker in dead]
                await self._broker.redis.hdel(self._here_key(room), *dead)
                await self._broker.redis.delete(*keys)
        except redis.RedisError as error:
            raise Unavailable(str(error)) from None
        here.loaded = True
        for worker, record in records.items():
            if worker not in dead and worker.decode("ascii") != self._worker:
                self._take(room, here, record)
        # Whoever was here before us is told by `who`, not by an event.
        if here.named:
            here.told = {**here.union(), **here.told}

    def forget(self, room: str) -> None:
        """The room is closed here; what the store must still be told is told first."""
        here = self._rooms.get(room)
        if here is not None and not here.users and not here.changes:
            del self._rooms[room]

    def on_peer(self, room: str, payload: bytes) -> None:
        """A record of another worker, published as ``P`` and JSON."""
        here = self._rooms.get(room)
        if here is not None and self._take(room, here, payload[1:]):
            self._to_tell[room] = None

    def on_counts(self, worker: str, counts: Mapping[str, int]) -> None:
        """People of another worker in some of its rooms; see ``_tell_counts``."""
        if worker == self._worker:
            return
        worker = sys.intern(worker)
        self._peers.add(worker)
        for room, count in counts.items():
            here = self._rooms.get(room)
            if here is not None:
                self._hear(room, here, worker, count, None)
                self._to_tell[room] = None

    def _hear(self, room: str, here: Here, worker: str, count: int, users: dict[str, User] | None) -> None:
        was_large = here.large
        here.set_other(worker, count, users)
        if was_large and not here.large and here.users:
            self._to_write[room] = None  # each worker tells its names again

    def _take(self, room: str, here: Here, record: bytes) -> bool:
        try:
            found = ujson.loads(record)
            worker, count, users = found["w"], int(found["n"]), found["u"]
            known = None if users is None else {user_id: User(user_id, name) for user_id, name in users}
        except (ValueError, KeyError, TypeError):
            log.warning("malformed presence record of %d bytes left out", len(record))
            return False
        if worker == self._worker:
            return False
        worker = sys.intern(worker)  # one object for all its rooms
        self._peers.add(worker)
        self._hear(room, here, worker, max(0, count), known)
        return True

    # Timers ----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Once a second: end the grace of lost connections, tell members, write records."""
        while self._lost and self._lost[0][0] <= now:
            deadline, room, user_id = self._lost.popleft()
            if self._lost_until.get((room, user_id)) == deadline:
                del self._lost_until[room, user_id]
                here = self._rooms.get(room)
                if here is not None and user_id in here.users:
                    self._gone(room, here, user_id)
        self._tell_rooms(now)
        if now - self._counted >= COUNTS_SECONDS:
            self._counted = now
            self._tell_counts()
        if (self._to_write or self._active) and (self._writing is None or self._writing.done()):
            self._writing = asyncio.ensure_future(self._write())

    def _tell_rooms(self, now: float) -> None:
        self._tells.refill(now)
        for room in tuple(self._to_tell):
            if self._tells.left <= 0:
                return
            del self._to_tell[room]
            here = self._rooms.get(room)
            if here is not None and self._tell_room(room, here, now):
                self._tells.left -= len(here.users)

    def _tell_counts(self) -> None:
        """Tell the other workers how many people large rooms have here, and those whose names must wait."""
        if not self._broker.hears_control:
            return
        counts: dict[str, int] = {}
        for room in self._uncounted:
            here = self._rooms.get(room)
            if here is not None and (here.large or room in self._to_write):
                counts[room] = len(here.users)
        self._uncounted = {}
        rooms = list(counts)
        for first in range(0, len(rooms), COUNTS_AT_A_TIME):
            part = {room: counts[room] for room in rooms[first : first + COUNTS_AT_A_TIME]}
            message = {"kind": "people", "worker": self._worker, "rooms": part}
            self._broker.publish_control(ujson.dumps(message, ensure_ascii=False).encode("utf-8"))

    def _tell_room(self, room: str, here: Here, now: float) -> bool:
        """Tell the members here what is new; returns whether there was anything."""
        if here.typing:
            self._tell_typing(room, here, now)
        people = here.people
        joined: list[User] = []
        left: list[User] = []
        if here.named:
            everybody = here.union()
            joined = [user for key, user in everybody.items() if key not in here.told]
            left = [user for key, user in here.told.items() if key not in everybody]
            here.told = everybody
        if not (joined or left or people != here.told_people):
            return False
        here.told_people = people
        self._tell(room, protocol.presence(room, joined, left, people))
        return True

    async def _write(self) -> None:
        """Put changed records into the store and tell the other workers, as many as may be; what fails is kept."""
        await self._write_changed()
        await self._write_active()

    async def _write_changed(self) -> None:
        now = time.monotonic()
        self._writes.refill(now)
        self._news.refill(now)
        while self._writes.left > 0:
            rooms = self._next_to_write(min(WRITES_AT_A_TIME, math.ceil(self._writes.left)))
            if not rooms:
                return
            self._writes.left -= len(rooms)
            if not await self._write_rooms(rooms):
                return

    async def _write_active(self) -> None:
        """How many people the changed rooms have here: one key, which a cluster may miss."""
        active, self._active = self._active, {}
        if not active:
            return
        full = {room: count for room, count in active.items() if count}
        empty = [room for room, count in active.items() if not count]
        key = self._active_key(self._worker)
        try:
            async with self._broker.redis.pipeline(transaction=False) as pipe:
                if full:
                    pipe.zadd(key, full)
                if empty:
                    pipe.zrem(key, *empty)
                await pipe.execute()
        except redis.RedisError as error:
            self._active = {**active, **self._active}
            log.debug("the list of active rooms is written later: %s", error)

    def _next_to_write(self, limit: int) -> dict[str, Here]:
        """Rooms whose turn it is; those whose names are published are fewer than the others."""
        found: dict[str, Here] = {}
        partly = self._broker.state == "partly"
        for room in tuple(self._to_write):
            here = self._rooms.get(room)
            if here is None:
                del self._to_write[room]
                continue
            if partly and not self._broker.serves(room):
                continue  # the others must not wait for it
            if not here.large:
                if self._news.left <= 0:
                    continue
                self._news.left -= max(1, len(self._alive))
            found[room] = here
            if len(found) == limit:
                break
        return found

    async def _write_rooms(self, rooms: dict[str, Here]) -> bool:
        taken: dict[str, dict[str, User | None]] = {}
        records: dict[str, bytes] = {}
        async with self._broker.redis.pipeline(transaction=False) as pipe:
            for room, here in rooms.items():
                taken[room], here.changes = here.changes, {}
                records[room] = self._put(pipe, room, here, taken[room])
                self._to_write.pop(room, None)
            try:
                await pipe.execute()
            except redis.RedisError as error:
                for room, here in rooms.items():
                    here.changes = {**taken[room], **here.changes}
                    self._to_write[room] = None
                log.debug("presence of %d rooms is written later: %s", len(rooms), error)
                return False
        for room, here in rooms.items():
            self._active[room] = len(here.users)
            if not here.large:
                self._broker.publish_ephemeral(room, b"P" + records[room])
                if room not in self._to_write:
                    self._uncounted.pop(room, None)
            if not here.users and not here.others and not here.changes:
                self._rooms.pop(room, None)
        return True

    def _put(self, pipe: Any, room: str, here: Here, changes: dict[str, User | None]) -> bytes:
        """Ask for one room's record to be written; returns the record."""
        count = len(here.users)
        users = None if here.large else [[user.id, user.name] for user in here.users.values()]
        record = ujson.dumps({"w": self._worker, "n": count, "u": users}, ensure_ascii=False).encode("utf-8")
        here_key, who_key = self._here_key(room), self._who_key(room, self._worker)
        now = time.monotonic()
        renewed = not here.written or now - here.written > RENEW_SECONDS
        came = {f"{user.id}\0{user.name}": 0 for user in changes.values() if user is not None}
        went = [user_id for user_id, user in changes.items() if user is None]
        if count:
            pipe.hset(here_key, self._worker, record)
        else:
            pipe.hdel(here_key, self._worker)
            pipe.delete(who_key)
            here.written = 0.0  # whoever comes next makes new keys
        if came:
            pipe.zadd(who_key, came)
        for user_id in went:
            pipe.zremrangebylex(who_key, f"[{user_id}\0", f"({user_id}\1")
        if count and renewed:
            here.written = now
            pipe.expire(here_key, RECORD_LIFE_SECONDS)
            pipe.expire(who_key, RECORD_LIFE_SECONDS)
        return record

    async def _beat_on(self) -> None:
        while True:
            try:
                await self._beat_once()
            except (redis.RedisError, OSError) as error:
                log.debug("the heartbeat failed: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def _beat_once(self) -> None:
        found: Any = await self._beat(keys=[f"{self._prefix}:workers"], args=[self._worker, GONE_SECONDS])
        await self._broker.redis.expire(self._active_key(self._worker), ACTIVE_LIFE_SECONDS)
        self._alive = {worker.decode("ascii") for worker in found}
        now = time.monotonic()
        if now - self._beaten > SETTLE_SECONDS:
            self._settled = now + SETTLE_SECONDS
        self._beaten = now
        if now >= self._settled and (gone := self._peers - self._alive):
            self._peers -= gone
            self._lose(gone)
        if now - self._renewed > RENEW_LOOK_SECONDS:
            self._renewed = now
            self._renew_old(now)

    def _lose(self, gone: set[str]) -> None:
        """Workers have ended, and their people with them."""
        for room, here in self._rooms.items():
            for worker in gone & here.others.keys():
                self._hear(room, here, worker, 0, None)
                self._to_tell[room] = None

    def _renew_old(self, now: float) -> None:
        for room, here in self._rooms.items():
            if here.users and now - here.written > RENEW_SECONDS:
                here.changes.update(here.users)
                self._to_write[room] = None

    # Keys ------------------------------------------------------------------------------------------

    def _base(self, room: str) -> str:
        return self._broker.channel_of(room).decode("ascii").removesuffix(":ch")

    def _here_key(self, room: str) -> str:
        return f"{self._base(room)}:here"

    def _who_key(self, room: str, worker: str) -> str:
        return f"{self._base(room)}:who:{worker}"

    def _active_key(self, worker: str) -> str:
        return f"{self._prefix}:active:{worker}"
