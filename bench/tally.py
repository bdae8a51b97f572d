"""What the users of a load did and saw, and what follows from it: was anything lost, was anything doubled?

Each process of a load makes a ``Tally`` of its own users, whose rooms are in no other process; tallies add up.
Pure: no sockets, no clock, no Locust.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from bench import native

QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


class Standing(NamedTuple):
    """Where one user stands in one room.

    Attributes:
        room: Its name.
        start: Seq behind which everything was to come.
        last: Seq of the last message that came.
        delivered: Messages that came, repeats not counted.
    """

    room: str
    start: int
    last: int
    delivered: int


@dataclass(slots=True)
class Tally:
    """Counts of a whole run; delays in microseconds, by the classes of ``_loadgen.class_limit``.

    Attributes:
        users: Those that there are.
        joined: Those that are in their rooms just now.
        entered: Those that have ever been in their rooms.
        failed_connects: Tries to connect that failed, and ...
        failed_joins: ... tries to join. Both are tried again.
        disconnected: Connections that ended although nobody had closed them.
        returns: Comings back, with ``after``.
        sent: Messages.
        unconfirmed: Those that did not come back to their senders.
        stored: Messages that rooms have got meanwhile, as far as their numbers tell.
        expected: Deliveries that there had to be.
        delivered: Those that there were, repeats not counted.
        repeats: Messages that came again.
        misorders: Messages that came behind later ones.
        refused: Errors that the server answered with.
        late_us: How late the load itself sent at worst.
        hold_seconds, hold_delivered, hold_cpu_seconds: Of the time when everybody was there: how long it was, how
            many deliveries came, and the CPU time of the process.
        deliveries, joins, connects: Delays by class.
        hold_deliveries: Those of messages that were sent while everybody was there.
    """

    users: int = 0
    joined: int = 0
    entered: int = 0
    failed_connects: int = 0
    failed_joins: int = 0
    disconnected: int = 0
    returns: int = 0
    sent: int = 0
    unconfirmed: int = 0
    stored: int = 0
    expected: int = 0
    delivered: int = 0
    repeats: int = 0
    misorders: int = 0
    refused: int = 0
    late_us: int = 0
    hold_seconds: float = 0.0
    hold_delivered: int = 0
    hold_cpu_seconds: float = 0.0
    deliveries: dict[int, int] = field(default_factory=dict)
    hold_deliveries: dict[int, int] = field(default_factory=dict)
    joins: dict[int, int] = field(default_factory=dict)
    connects: dict[int, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Deliveries that did not come."""
        return max(0, self.expected - self.delivered)

    @property
    def doubled(self) -> int:
        """Deliveries too many: the same message again, or stored twice."""
        return self.repeats + max(0, self.delivered - self.expected) + max(0, self.stored - self.sent)

    @property
    def settled(self) -> bool:
        """Whether everybody is there and has everything."""
        return not (self.lost or self.unconfirmed or self.joined != self.users)

    @property
    def clean(self) -> bool:
        """Whether nothing at all went wrong."""
        wrong = (
            self.doubled,
            self.misorders,
            self.failed_connects,
            self.failed_joins,
            self.disconnected,
            self.refused,
        )
        return self.settled and not any(wrong)

    def as_dict(self) -> dict[str, Any]:
        """For a message to the process that adds up."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def sum(cls, parts: Iterable[Mapping[str, Any]]) -> Tally:
        """The whole, from what ``as_dict`` gave of its parts."""
        total = cls()
        for part in parts:
            for name, value in part.items():
                mine = getattr(total, name)
                if isinstance(value, Mapping):
                    value = dict(Counter(mine) + Counter({int(key): count for key, count in value.items()}))
                elif name in LARGEST:
                    value = max(mine, value)
                else:
                    value = mine + value
                setattr(total, name, value)
        return total

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of the run, in the order in which it is to be read."""
        return {
            "users": self.users,
            "joined": self.joined,
            "failed connects": self.failed_connects,
            "failed joins": self.failed_joins,
            "disconnected": self.disconnected,
            "came back with after": self.returns,
            "sent": self.sent,
            "not confirmed": self.unconfirmed,
            "expected deliveries": self.expected,
            "delivered": self.delivered,
            "lost": self.lost,
            "doubled": self.doubled,
            "out of order": self.misorders,
            "refused commands": self.refused,
            **_named("delivery", self.hold_deliveries),
            **_named("delivery in the whole run", self.deliveries),
            **_named("connect", self.connects),
            **_named("join", self.joins),
            "load sent late by at most, ms": self.late_us / 1000,
            "deliveries a second while all were there": self.hold_delivered / self.hold_seconds
            if self.hold_seconds
            else 0.0,
            "CPU of the load, us a delivery": (
                self.hold_cpu_seconds * 1e6 / self.hold_delivered if self.hold_delivered else 0.0
            ),
        }


# Where the whole is as its largest part; everything else adds up.
LARGEST = frozenset(("late_us", "hold_seconds"))


def reckon(standings: Iterable[Standing]) -> tuple[int, int, int]:
    """From where everybody stands: deliveries that there had to be, those that there were, and messages stored.

    A room's last message is the last one that anybody has: its sender's copy is one of them, so that a message
    which came to nobody at all is one that was not confirmed.
    """
    rooms: dict[str, list[Standing]] = defaultdict(list)
    for each in standings:
        rooms[each.room].append(each)
    expected = delivered = stored = 0
    for members in rooms.values():
        head = max(each.last for each in members)
        expected += sum(head - each.start for each in members)
        delivered += sum(each.delivered for each in members)
        stored += head - min(each.start for each in members)
    return expected, delivered, stored


def middle_ms(index: int) -> float:
    """The middle of one class of delays, in milliseconds."""
    limit_of = native.load("_loadgen").class_limit
    below = limit_of(index - 1) if index else 0
    return float(below + limit_of(index)) / 2000


def _named(name: str, counts: Mapping[int, int]) -> dict[str, float]:
    return {f"{name} {quantile}, ms": value for quantile, value in quantiles(counts).items()}


def quantiles(counts: Mapping[int, int]) -> dict[str, float]:
    """The 50th, 95th and 99th percentile in milliseconds: upper limits of their classes, at most 6 % too high."""
    limit_of = native.load("_loadgen").class_limit
    found = dict.fromkeys((name for name, _ in QUANTILES), 0.0)
    total = sum(counts.values())
    for name, share in QUANTILES:
        seen = 0
        for index in sorted(counts):
            seen += counts[index]
            if seen >= share * total:
                found[name] = limit_of(index) / 1000
                break
    return found
