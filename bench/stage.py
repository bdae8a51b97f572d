"""The part of a Locust process that its users share: who is here, what is reported, when the run ends.

``Stage`` is there once for each process that has users. It merges what the native epoll counted into Locust's
statistics once a second, in bulk, and makes the tally of its users when it is asked to. ``bench.conductor`` asks.
"""

from __future__ import annotations

import gc
import itertools
import logging
import random
import secrets
import time
from collections.abc import Iterable
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from locust.env import Environment
from locust.exception import StopUser
from locust.stats import RequestStats, StatsEntry, StatsError, bucket_response_time

from bench import native
from bench.dialects import DIALECTS
from bench.load import CONNECTIONS_PER_SOURCE
from bench.processes import loopback
from bench.tally import Standing, Tally, middle_ms, reckon

log = logging.getLogger("bench")

# Type of every entry in Locust's statistics but the HTTP requests.
KIND = "WS"
REPORT_SECONDS = 1.0
# A message whose own copy has not come back by then is not confirmed.
CONFIRM_SECONDS = 10.0
# One try to connect and join.
ENTER_SECONDS = 30.0


class Guest(Protocol):
    """What the stage needs of a user."""

    @property
    def joined(self) -> bool:
        """Whether the user is in all its rooms."""

    @property
    def entered(self) -> bool:
        """Whether the user has been in all its rooms."""

    @property
    def unconfirmed(self) -> int:
        """Messages on their way."""

    def standings(self) -> Iterable[Standing]:
        """Where the user stands in each of its rooms."""


class Stage:
    """See the module.

    Attributes:
        address: Of the server.
        dialect: What the server speaks.
        last_call: Set when the run ends: nobody speaks or leaves any more, and who is away comes back.
        door: Held while somebody connects, so that a slow server makes the ramp slower and not longer queues.
        greenlets: What users do beside their tasks; ended with the stage.
        counts: What is not told by where everybody stands.
        crowd: The connections of dense users, once there is one.
    """

    def __init__(self, environment: Environment, worker: int) -> None:
        options = environment.parsed_options
        assert options is not None
        self.environment = environment
        self.options = options
        self.address = loopback(environment.host)
        self.dialect = DIALECTS[options.dialect]
        self.last_call = Event()
        self.door = BoundedSemaphore(options.connects_at_a_time)
        self.greenlets = Group()
        self.counts = Tally()
        self.crowd: Any = None
        self._worker = worker
        self._guests: set[Guest] = set()
        self._rooms: dict[tuple[int, int], str] = {}
        self._numbers = itertools.count()
        self._ids = itertools.count()
        new_delays = native.load("_loadgen").Delays
        self._delays = {name: new_delays() for name in DELAYS}
        self._tag = secrets.token_hex(6)
        self._reported = {"repeats": 0, "misorders": 0, "holes": 0}
        # When everybody was there, and the CPU time of this process by then; the same when the last call came.
        self._hold_began = self._hold_ended = (0.0, 0.0)
        self._delivered_at_hold: int | None = None
        self._final = False
        self.greenlets.spawn(self._report_always)

    # For users --------------------------------------------------------------------------------

    def take_number(self) -> int:
        """The number of one more user: it decides on rooms and source address."""
        return next(self._numbers)

    def enter(self, guest: Guest) -> None:
        """A user is there."""
        self._guests.add(guest)

    def leave(self, guest: Guest) -> None:
        """A user is there no more."""
        self._guests.discard(guest)

    def room_of(self, number: int, layer: int = 0) -> str:
        """The name of a room of this user. Each layer fills its rooms one after the other, half a room apart.

        No other process has members in it, so that stamps are of one clock and the end can be judged here.
        """
        size = self.options.room_size
        place = layer, (number + layer * size // 2) // size
        if place not in self._rooms:  # one string for all members
            self._rooms[place] = f"load-{self._tag}-{self._worker}-{place[0]}-{place[1]}"
        return self._rooms[place]

    def source_of(self, number: int) -> str:
        """The source address of this user's connections: each process has its own."""
        given = [each for each in self.options.sources.split(",") if each]
        nth = number // CONNECTIONS_PER_SOURCE
        if given:
            return given[(self._worker + nth) % len(given)]
        return f"127.{self._worker // 250}.{2 + self._worker % 250}.{1 + nth}"

    def new_id(self) -> str:
        """An id for a message, with 96 bits that are nobody else's."""
        return f"{self._tag}{next(self._ids):012x}"

    @property
    def interval(self) -> float:
        """Seconds between two messages of a user."""
        rate = float(self.options.messages_per_minute)
        return 60 / rate if rate > 0 else 86_400.0

    def leaves(self) -> bool:
        """Whether a user whose turn it is goes away instead of speaking.

        Who is away misses what a server without numbers does not send again, so there nobody leaves.
        """
        return self.dialect.numbered and random.random() < self.options.leave_share

    def away(self) -> None:
        """Wait as long as somebody is away."""
        self.last_call.wait(self.options.away_seconds * random.uniform(0.5, 1.5))

    def late(self, seconds: float) -> None:
        """A message leaves that much after it was due."""
        if not self.last_call.is_set():
            self.counts.late_us = max(self.counts.late_us, int(seconds * 1e6))

    # Statistics -------------------------------------------------------------------------------

    @property
    def stats(self) -> RequestStats:
        """Locust's own."""
        return self.environment.stats

    def took(self, name: str, seconds: float, failure: str = "") -> None:
        """Report one request of a user who has no place in the crowd: how long it took, and why it failed."""
        if not failure and name in self._delays:
            self._delays[name].note(int(seconds * 1e6))
        if name == "delivery" and time.monotonic() - seconds >= self._hold_began[0] and self.held:
            self._delays["delivery in the hold"].note(int(seconds * 1e6))
        error = RuntimeError(failure) if failure else None
        self.environment.events.request.fire(
            request_type=KIND,
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            exception=error,
            context={},
        )

    def failed(self, name: str, what: str, count: int = 1) -> None:
        """Report failures that are no requests of their own, like a hole."""
        if count <= 0:
            return
        part = StatsEntry(self.stats, name, KIND)
        part.num_failures, part.num_fail_per_sec = count, {int(time.time()): count}
        for entry in (self.stats.get(name, KIND), self.stats.total):
            entry.extend(part)
        key = StatsError.create_key(KIND, name, what)
        error = self.stats.errors.setdefault(key, StatsError(KIND, name, what))
        error.occurrences += count
        now = time.time()
        error.first_seen, error.last_seen = getattr(error, "first_seen", None) or now, now

    def report(self) -> None:
        """Merge what the native epoll counted since the last time into Locust's statistics."""
        if self.crowd is None:
            return
        epoll = self.crowd.native
        delays = {
            "connect": epoll.connects,
            "join": epoll.joins,
            "send": epoll.confirms,
            "delivery": epoll.deliveries,
            "replay": epoll.replays,
        }
        for name, found in delays.items():
            merge(self.stats, name, *found.take())
        for name, what in FAULTS.items():
            count = getattr(epoll, name)
            self.failed("delivery", what, count - self._reported[name])
            self._reported[name] = count

    def _report_always(self) -> None:
        while True:
            gevent.sleep(REPORT_SECONDS)
            self.report()

    # The end ----------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether everybody was there once."""
        return self._delivered_at_hold is not None

    def hold(self) -> None:
        """Everybody is there: what comes from now on is told apart."""
        if self.crowd is not None:
            self.crowd.native.count_anew()
            gc.freeze()  # the users stay, so the collector need not look at them again and again
        self.counts.late_us = 0
        self._hold_began = time.monotonic(), time.process_time()
        self._delays["delivery in the hold"] = native.load("_loadgen").Delays()
        self._delivered_at_hold = sum(self._so_far().deliveries.values())

    def call_last(self) -> None:
        """Nobody speaks or leaves any more, and who is away comes back."""
        if not self.last_call.is_set():
            self._hold_ended = time.monotonic(), time.process_time()
            self.last_call.set()

    def presence(self) -> Tally:
        """Only who is here; the whole tally of thousands would hold up what is on its way."""
        return Tally(
            users=len(self._guests),
            joined=sum(guest.joined for guest in self._guests),
            entered=sum(guest.entered for guest in self._guests),
        )

    def tally(self) -> Tally:
        """What this process knows by now."""
        found = self._so_far()
        found.unconfirmed += sum(guest.unconfirmed for guest in self._guests)
        if self.dialect.numbered:
            standings = (each for guest in tuple(self._guests) for each in guest.standings())
            found.expected, found.delivered, found.stored = reckon(standings)
        if self._delivered_at_hold is not None:
            ended = self._hold_ended if self.last_call.is_set() else (time.monotonic(), time.process_time())
            found.hold_seconds = ended[0] - self._hold_began[0]
            found.hold_cpu_seconds = ended[1] - self._hold_began[1]
            found.hold_delivered = sum(found.deliveries.values()) - self._delivered_at_hold
        return found

    def _so_far(self) -> Tally:
        """What was counted by the way."""
        parts = [self.presence().as_dict(), self.counts.as_dict()]
        parts.append({DELAYS[name]: each.counts() for name, each in self._delays.items()})
        if self.crowd is not None:
            parts.append(self.crowd.tally().as_dict())
        return Tally.sum(parts)

    def finish(self, found: Tally) -> None:
        """The run is over: what is missing by now is lost, and a failure."""
        if self._final:
            return
        self._final = True
        self.report()
        self.failed("delivery", "lost: not delivered by the end of the run", found.lost)
        self.failed("delivery", "doubled: the room has more messages than were sent", found.stored - found.sent)
        if not self.dialect.numbered:
            self.failed("delivery", "doubled: more deliveries than expected", found.delivered - found.expected)
        self.failed("send", "not confirmed by the end of the run", sum(g.unconfirmed for g in self._guests))
        self.failed("join", "not there at the end of the run", found.users - found.joined)

    def close(self) -> None:
        """Nobody is here any more."""
        self.greenlets.kill(block=False)
        if self.crowd is not None:
            self.crowd.close()


# Kinds of requests whose delays are told in the tally, and how they are called there.
DELAYS = {
    "connect": "connects",
    "join": "joins",
    "delivery": "deliveries",
    "delivery in the hold": "hold_deliveries",
}
# What the native epoll counts -> how it is called in Locust's failures.
FAULTS = {
    "holes": "hole: numbers were skipped",
    "repeats": "repeat: a message came twice",
    "misorders": "misorder: a message came behind a later one",
}


def merge(
    stats: RequestStats, name: str, counts: dict[int, int], total_us: int, least_us: int, most_us: int
) -> None:
    """Add many requests to Locust's statistics at once, as a worker's report is added to the master's.

    Args:
        counts: How many, by the classes of ``_loadgen.class_limit``; Locust keeps them by whole milliseconds, of
            which at least one, and by two digits from 100 ms on.
    """
    number = sum(counts.values())
    if not number:
        return
    now = time.time()
    part = StatsEntry(stats, name, KIND)
    part.start_time = part.last_request_timestamp = now
    part.num_requests, part.num_reqs_per_sec = number, {int(now): number}
    part.total_response_time = total_us / 1000
    part.min_response_time, part.max_response_time = least_us / 1000, most_us / 1000
    for index, count in counts.items():
        part.response_times[max(1, bucket_response_time(middle_ms(index)))] += count
    for entry in (stats.get(name, KIND), stats.total):
        entry.extend(part)


_stages: dict[int, Stage] = {}


def stage_of(environment: Environment) -> Stage:
    """The stage of this process's present run; the first user that asks opens it.

    Raises:
        StopUser: The host may not be loaded, or there is none; that is a failure of the run.
    """
    stage = _stages.get(id(environment))
    if stage is None:
        runner: Any = environment.runner
        try:
            stage = _stages[id(environment)] = Stage(environment, max(0, runner.worker_index))
        except ValueError as error:
            environment.stats.log_error(KIND, "run", str(error))
            raise StopUser() from error
    return stage


def present_stage(environment: Environment) -> Stage | None:
    """The stage of this process, if it has had users in this run."""
    return _stages.get(id(environment))


def new_run(environment: Environment) -> None:
    """A run begins: whatever was before is closed."""
    before = _stages.pop(id(environment), None)
    if before is not None:
        before.close()
