"""What a history of sends and deliveries must look like, judged without a server.

Everything that every member saw, and everything that every sender was told, is held against the promises
of docs/protocol.md: one order for all, each acknowledged message exactly once at every member, an
unacknowledged one at all members or at none, and no hole that was not told.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple


class Seen(NamedTuple):
    """A message that a member got: where, and which."""

    epoch: str
    seq: int
    id: str


class Told(NamedTuple):
    """A member was told that messages are missing here."""

    epoch: str
    seq: int


Key = tuple[int, int]  # number of the epoch, seq: a message's place in the one order of its room


@dataclass
class Sent:
    """A message and what its sender was told: its place, or nothing."""

    id: str
    room: str
    place: tuple[str, int] | None = None


@dataclass
class Member:
    """One member of one room: where it began, and what it saw since then, in order."""

    name: str
    room: str
    start: tuple[str, int]
    saw: list[Seen | Told] = field(default_factory=list)


@dataclass
class Verdict:
    """Counts; all but the first five must be 0, each with an example in ``details``.

    Attributes:
        lost: Acknowledged messages that a member did not get, without a word.
        doubled: Messages that a member got twice.
        disordered: Messages that came before one they follow, or places held by two messages.
        half: Unacknowledged messages that some members got and others did not.
        again: Sent again after the store had lost them, which the member was told: not a fault.
    """

    messages: int = 0
    acknowledged: int = 0
    deliveries: int = 0
    told: int = 0
    again: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    half: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.disordered or self.half)

    def add(self, other: Verdict) -> None:
        """Count another room's verdict in."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def fault(self, kind: str, detail: str) -> None:
        """Count something that must not be."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.details) < 20:
            self.details.append(f"{kind}: {detail}")


def check(sent: list[Sent], members: list[Member]) -> Verdict:
    """Judge a whole history; every send must have ended and every member caught up."""
    verdict = Verdict()
    by_room: dict[str, tuple[list[Sent], list[Member]]] = defaultdict(lambda: ([], []))
    for message in sent:
        by_room[message.room][0].append(message)
    for member in members:
        by_room[member.room][1].append(member)
    for room_sent, room_members in by_room.values():
        verdict.add(_Room(room_sent, room_members).judge())
    return verdict


class _Room:
    def __init__(self, sent: list[Sent], members: list[Member]) -> None:
        self.sent = sent
        self.members = members
        self.verdict = Verdict(messages=len(sent))
        self.epochs = self._order_epochs()
        # The same message may be seen in the epoch in which it was stored or, replayed, in a later one
        # that continues it; its place is that of the earliest.
        self.keys: dict[tuple[str, int], Key] = {}
        for epoch, seq, message_id in self._places():
            key = (self.epochs[epoch], seq)
            self.keys[message_id, seq] = min(key, self.keys.get((message_id, seq), key))

    def judge(self) -> Verdict:
        self._check_places()
        gotten = [self._walk(member) for member in self.members]
        seen_by_any = {message_id for got, _ in gotten for message_id in got}
        for message in self.sent:
            if message.place is not None:
                self.verdict.acknowledged += 1
            elif message.id not in seen_by_any:
                continue
            self._check_everyone_has(message, gotten)
        return self.verdict

    def _places(self) -> Iterator[tuple[str, int, str]]:
        for member in self.members:
            for event in member.saw:
                if isinstance(event, Seen):
                    yield event
        for message in self.sent:
            if message.place is not None:
                yield (*message.place, message.id)

    def _order_epochs(self) -> dict[str, int]:
        """Number the epochs in the order in which every member met them."""
        graph: dict[str, set[str]] = {}
        for member in self.members:
            met = [member.start[0], *(event.epoch for event in member.saw)]
            for earlier, later in itertools.pairwise(met):
                graph.setdefault(earlier, set())
                if earlier != later:
                    graph.setdefault(later, set()).add(earlier)
            graph.setdefault(met[0], set())
        for message in self.sent:
            if message.place is not None:
                graph.setdefault(message.place[0], set())
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            self.verdict.fault("disordered", f"members met epochs in different orders: {error.args[1]}")
            order = list(graph)
        return {epoch: number for number, epoch in enumerate(order)}

    def _check_places(self) -> None:
        holders: dict[Key, str] = {}
        for (message_id, _), key in self.keys.items():
            other = holders.setdefault(key, message_id)
            if other != message_id:
                self.verdict.fault("disordered", f"{other} and {message_id} have the same place {key}")

    def _walk(self, member: Member) -> tuple[dict[str, list[Key]], list[tuple[Key, Key]]]:
        """What a member got, and the stretches in which it was told that messages are missing."""
        last: Key = (self.epochs[member.start[0]], member.start[1])
        got: dict[str, list[Key]] = {}
        holes: list[tuple[Key, Key]] = []
        told_at: Key | None = None
        for event in member.saw:
            if isinstance(event, Told):
                self.verdict.told += 1
                told_at = told_at or last
                continue
            self.verdict.deliveries += 1
            key = self.keys[event.id, event.seq]
            if told_at is not None:
                holes.append((told_at, key))
                told_at = None
            if event.id in got:
                between = any(got[event.id][-1] <= start and end <= key for start, end in holes)
                if between and key not in got[event.id]:
                    self.verdict.again += 1
                else:
                    self.verdict.fault("doubled", f"{member.name} got {event.id} twice, at {key}")
            elif key <= last:
                self.verdict.fault("disordered", f"{member.name} got {event.id} at {key} after {last}")
            got.setdefault(event.id, []).append(key)
            last = max(last, key)
        if told_at is not None:
            holes.append((told_at, (len(self.epochs), 0)))
        return got, holes

    def _check_everyone_has(
        self, message: Sent, gotten: list[tuple[dict[str, list[Key]], list[tuple[Key, Key]]]]
    ) -> None:
        if message.place is not None:
            places = [self.keys[message.id, message.place[1]]]
            kind = "lost"
        else:
            places = [key for (message_id, _), key in self.keys.items() if message_id == message.id]
            kind = "half"
        for member, (got, holes) in zip(self.members, gotten, strict=True):
            start = (self.epochs[member.start[0]], member.start[1])
            for key in places:
                excused = key <= start or any(after < key < before for after, before in holes)
                if message.id not in got and not excused:
                    self.verdict.fault(kind, f"{member.name} never got {message.id}, stored at {key}")
