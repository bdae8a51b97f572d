"""Rooms without sockets and without a store: the numbers alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tornadochat._fastframe import Batch, FrameDecoder, pack_published
from tornadochat.hub import MAX_STRETCH, SETTLE_SECONDS, Hub
from tornadochat.room import Page, Room, State
from tornadochat.settings import Settings

EPOCH, NEXT = "aaaaaaaa", "bbbbbbbb"


def events_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(payload) for _, payload in FrameDecoder(1 << 24, require_mask=False).feed(data)]


class Recorder:
    """Stands for a member and its connection; notes every event."""

    def __init__(self) -> None:
        self.connection = self
        self.transport_index = 0
        self.closed = False
        self.events: list[dict[str, Any]] = []
        self.failed = 0
        self.over: list[tuple[str, int]] = []

    def send_text(self, payload: bytes) -> None:
        self.events.append(json.loads(payload))

    def entered(self, room: Room) -> None:
        """See ``Member``."""

    def passed_over(self, room: Room, epoch: str, seq: int) -> None:
        self.over.append((epoch, seq))

    def wants(self, room: Room) -> bool:
        return True

    def join_failed(self, room: Room) -> None:
        self.failed += 1

    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events if event["type"] == "message"]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]


class Channel:
    """A transport's channel in a few lines, with nothing in between."""

    def __init__(self) -> None:
        self.entries: dict[Any, list[Any]] = {}
        self.busy = False
        self.takes = True  # whether sockets take what is replayed at once
        self.flying = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __contains__(self, connection: Any) -> bool:
        return connection in self.entries

    def join(self, connection: Any, next_seq: int, live: bool) -> None:
        self.entries[connection] = [next_seq, live]

    def leave(self, connection: Any) -> None:
        self.entries.pop(connection, None)

    def next_seq(self, connection: Any) -> int:
        return int(self.entries[connection][0])

    def silent(self, connection: Any) -> bool:
        return not self.entries[connection][1]

    def replay(self, connection: Any, batch: Batch) -> int:
        entry = self.entries[connection]
        connection.events += events_of(batch.frames(entry[0]))
        self.flying += 0 if self.takes else len(batch.frames(entry[0]))
        entry[0] = max(entry[0], batch.last_seq + 1)
        return self.flying

    def in_flight(self, connection: Any) -> int:
        return self.flying

    def set_live(self, connection: Any, next_seq: int) -> None:
        self.entries[connection] = [next_seq, True]

    def set_silent(self, connection: Any) -> None:
        self.entries[connection][1] = False

    def broadcast(self, batch: Batch) -> None:
        for connection, entry in self.entries.items():
            if not batch.first_seq:
                connection.events += events_of(batch.frames())
            elif entry[1] and batch.last_seq >= entry[0]:
                connection.events += events_of(batch.frames(entry[0]))
                entry[0] = batch.last_seq + 1

    def reset(self, notice: Batch, next_seq: int) -> None:
        for connection, entry in self.entries.items():
            if entry[1]:
                connection.events += events_of(notice.frames())
                entry[0] = next_seq


class Pacer:
    """The pace that a hub has asked for; the test says when a beat has settled, and how much of the time that it
    lets pass the worker waits."""

    def __init__(self) -> None:
        self.beats: list[float] = []
        self.settled = False
        self.idle = 1.0
        self.waited_us = 0

    def pace(self, beat: float, settle: float) -> None:
        assert settle == SETTLE_SECONDS
        self.beats.append(beat)


class World:
    """A hub, a log that the test writes, and a clock that the test moves."""

    def __init__(self, paced: bool = False, **changed: Any) -> None:
        self.pacer = Pacer()
        self.log: list[bytes] = []
        self.first = 1
        self.epoch = EPOCH
        self.ends: list[tuple[str, int]] = []
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.reads: list[Callable[[], None]] = []
        self.hold = False
        self.away = False
        self.closed: list[str] = []
        self.hub = Hub(
            Settings(**changed),
            [SimpleNamespace(channel=lambda key: Channel())],  # type: ignore[list-item]
            channel_of=lambda name: name.encode(),
            now=lambda: self.now,
            schedule=lambda delay, call: self.timers.append((self.now + delay, call)),
            sync=self.sync,
            fetch=lambda room, start, done: self.later(lambda: done(None if self.away else self.page(start))),
            close_room=self.closed.append,
            people=lambda name: len(self.hub.rooms[name]),
            on_presence=lambda name, payload: None,
            pacer=self.pacer if paced else None,
        )

    def sync(self, room: Room, start: int) -> None:
        page = self.page(start)  # as the log is now; the answer may come later
        self.later(lambda: room.sync_failed() if self.away else room.synced(page))

    def later(self, read: Callable[[], None]) -> None:
        self.reads.append(read)
        if not self.hold:
            self.answer()

    def answer(self) -> None:
        """Answer all reads of the log."""
        while self.reads:
            self.reads.pop(0)()

    def page(self, start: int, limit: int = 128) -> Page:
        head = self.first + len(self.log) - 1
        if start <= 0:
            start = max(1, head - limit + 1)
        start = max(start, self.first)
        bodies = self.log[start - self.first : start - self.first + limit]
        return Page(self.epoch, head, self.ends, start, bodies)

    def write(self, count: int = 1) -> bytes:
        """Store messages; returns the payload that is published."""
        head = self.first + len(self.log)
        bodies = [b'{"type":"message","n":%d}' % (head + i) for i in range(count)]
        self.log += bodies
        return pack_published(self.epoch.encode(), head, bodies)

    def publish(self, *payloads: bytes) -> None:
        self.hub.on_published([(b"tea", payload) for payload in payloads])

    def say(self, count: int = 1) -> None:
        self.publish(self.write(count))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pacer.waited_us += int(seconds * 1e6 * self.pacer.idle)
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for call in due:
            call()

    def joined(self, after: tuple[str, int] | None = None, history: int = 50) -> Recorder:
        member = Recorder()
        self.hub.room("tea").join(member, after, history)  # type: ignore[arg-type]
        return member


@pytest.fixture
def world() -> World:
    return World(batch_window_ms=0)


def test_a_replay_of_large_messages_never_overruns_the_backlog() -> None:
    """A page of them was sent whole, was dropped as too much, and the member had to begin anew."""
    world = World(batch_window_ms=0, max_backlog_bytes=400_000, ring_bytes=1)
    world.log = [b'{"type":"message","n":%d,"text":"%s"}' % (n, b"x" * 20_000) for n in range(1, 151)]
    room = world.hub.room("tea")
    (channel,) = room.channels
    assert isinstance(channel, Channel)
    channel.takes = False
    ann = world.joined(history=150)
    for _ in range(150):
        assert channel.flying <= 100_000 + 21_000
        channel.flying = 0  # the socket has taken it
        room.advance(ann)  # type: ignore[arg-type]
    assert ann.seqs() == list(range(1, 151)) and not room.replays


def test_a_joiner_gets_the_newest_messages_and_then_the_live_ones(world: World) -> None:
    world.write(60)
    ann = world.joined(history=50)
    assert ann.events[0] == {
        "type": "joined",
        "room": "tea",
        "epoch": EPOCH,
        "seq": 60,
        "truncated": False,
        "missing": 50,
        "people": 1,
    }
    world.say(3)
    assert ann.seqs() == list(range(11, 64))


def test_what_is_published_while_the_room_opens_is_neither_lost_nor_doubled(world: World) -> None:
    world.write(5)
    world.hold = True
    ann = world.joined()
    early = [world.write(), world.write()]
    world.publish(early[0])
    world.answer()  # the read has seen both
    world.publish(early[1])
    world.say()
    assert ann.seqs() == list(range(1, 9))


def test_a_hole_is_read_from_the_log_before_anything_behind_it_goes_out(world: World) -> None:
    ann = world.joined()
    world.say()
    world.write(3)  # published, but never arrives
    world.say(2)
    assert ann.seqs() == [1, 2, 3, 4, 5, 6]


def test_messages_that_come_while_a_hole_is_read_wait_their_turn(world: World) -> None:
    ann = world.joined()
    world.say()
    world.hold = True
    world.write()
    world.say()
    world.say()
    assert ann.seqs() == [1]
    world.answer()
    assert ann.seqs() == [1, 2, 3, 4]


def test_what_is_published_behind_the_page_that_was_read_goes_out_with_it(world: World) -> None:
    ann = world.joined()
    world.say()
    world.hold = True
    world.write()
    world.publish(world.write())  # a hole: the log is read up to 3
    world.publish(world.write())  # behind what was read
    assert ann.seqs() == [1]
    world.answer()
    assert ann.seqs() == [1, 2, 3, 4]


def test_more_than_can_wait_is_read_again(world: World) -> None:
    ann = world.joined()
    world.hold = True
    world.write()
    for _ in range(400):
        world.say()
    world.answer()
    world.hold = False
    world.answer()
    assert ann.seqs() == list(range(1, 402))


def test_a_batch_that_comes_twice_goes_out_once(world: World) -> None:
    ann = world.joined()
    payload = world.write(2)
    world.publish(payload, payload)
    assert ann.seqs() == [1, 2]


def test_a_head_check_finds_what_was_never_published_here(world: World) -> None:
    ann = world.joined()
    world.write(4)
    world.hub.rooms["tea"].check_head(EPOCH, 4)
    assert ann.seqs() == [1, 2, 3, 4]


def test_resume_gives_exactly_what_is_missing(world: World) -> None:
    world.write(300)
    ann = world.joined(after=(EPOCH, 100))
    assert (ann.events[0]["missing"], ann.events[0]["truncated"]) == (200, False)
    world.say()
    assert ann.seqs() == list(range(101, 302))


def test_resume_at_the_head_gives_nothing_but_what_comes(world: World) -> None:
    world.write(7)
    ann = world.joined(after=(EPOCH, 7))
    assert ann.events[0]["missing"] == 0
    world.say()
    assert ann.seqs() == [8]


@pytest.mark.parametrize("after", [("zzzzzzzz", 3), (EPOCH, 99)])
def test_a_place_that_was_never_here_is_truncated(world: World, after: tuple[str, int]) -> None:
    world.write(10)
    ann = world.joined(after=after, history=4)
    assert ann.events[0]["truncated"] is True and ann.seqs() == [7, 8, 9, 10]


def test_a_place_that_this_worker_has_not_heard_of_yet_is_looked_up_in_the_log(world: World) -> None:
    ann = world.joined()
    world.say(3)
    world.write(2)  # another worker's members have them already
    bob = world.joined(after=(EPOCH, 5))
    assert (bob.events[0]["truncated"], bob.events[0]["missing"]) == (False, 0)
    assert ann.seqs() == [1, 2, 3, 4, 5]


def test_an_epoch_that_this_worker_has_not_heard_of_yet_is_looked_up_in_the_log(world: World) -> None:
    world.joined()
    world.say(3)
    world.ends.append((world.epoch, 3))
    world.epoch = NEXT
    world.write(2)
    bob = world.joined(after=(NEXT, 4))
    assert (bob.events[0]["epoch"], bob.events[0]["truncated"]) == (NEXT, False)
    assert bob.seqs() == [5]


def test_resume_behind_the_trimmed_log_is_truncated(world: World) -> None:
    world.write(500)
    del world.log[:400]
    world.first = 401
    ann = world.joined(after=(EPOCH, 100), history=50)
    assert ann.events[0]["truncated"] is True and ann.seqs() == list(range(451, 501))


def test_a_new_epoch_that_lost_nothing_is_told_before_its_first_event(world: World) -> None:
    ann = world.joined()
    world.say(3)
    world.epoch, world.ends = NEXT, [(EPOCH, 3)]
    world.say(2)
    assert ann.kinds() == ["joined", *["message"] * 3, "reset", *["message"] * 2]
    reset = ann.events[4]
    assert (reset["epoch"], reset["seq"], reset["truncated"]) == (NEXT, 3, False)
    assert ann.seqs() == [1, 2, 3, 4, 5]


def test_events_of_the_old_epoch_that_were_missed_come_before_the_reset(world: World) -> None:
    ann = world.joined()
    world.say(3)
    world.write(2)
    world.epoch, world.ends = NEXT, [(EPOCH, 5)]
    world.say(2)
    assert ann.seqs() == [1, 2, 3, 4, 5, 6, 7]
    assert ann.kinds().index("reset") == 6


def test_a_store_that_lost_events_is_never_hidden(world: World) -> None:
    ann = world.joined()
    world.say(5)
    del world.log[3:]  # a replica without the last two was promoted
    world.epoch, world.ends = NEXT, [(EPOCH, 3)]
    world.say(1)
    reset = ann.events[-2]
    assert (reset["type"], reset["seq"], reset["truncated"]) == ("reset", 3, True)
    assert ann.events[-1]["seq"] == 4
    assert world.joined(after=(EPOCH, 3)).events[0]["truncated"] is False
    assert world.joined(after=(EPOCH, 5)).events[0]["truncated"] is True


def test_an_empty_store_starts_over_and_says_so(world: World) -> None:
    ann = world.joined()
    world.say(5)
    world.log, world.epoch, world.ends = [], NEXT, []
    world.write(1)  # what is stored in the new epoch before anybody here has heard of it goes out too
    world.say(1)
    assert ann.kinds()[-3:] == ["reset", "message", "message"]
    assert (ann.events[-3]["seq"], ann.events[-3]["truncated"]) == (0, True)
    assert ann.seqs()[-2:] == [1, 2] and ann.over == [(NEXT, 0)]


class Vanished(Recorder):
    """A member whose peer is gone, which the first send finds out."""

    def __init__(self, room: Room) -> None:
        super().__init__()
        self.room = room

    def send_text(self, payload: bytes) -> None:
        super().send_text(payload)
        self.closed = True
        self.room.leave(self)  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [True, False])
def test_who_is_gone_when_it_is_let_in_holds_the_room_up_never_again(world: World, read: bool) -> None:
    """It stayed among those who are caught up, and the room could not go on into the next epoch."""
    ann = world.joined()
    world.say(200)
    room = world.hub.rooms["tea"]
    if read:
        room.ring.clear()  # its history is read from the log
    gone = Vanished(room)
    room.join(gone, None, 50)  # type: ignore[arg-type]
    assert gone.kinds() == ["joined"] and not room.replays
    world.epoch, world.ends = NEXT, [(EPOCH, 200)]
    world.say(1)
    assert room.state is State.LIVE and ann.seqs() == list(range(1, 202))


def test_who_is_found_gone_by_a_reset_does_not_hold_it_up(world: World) -> None:
    ann, room = world.joined(), world.hub.rooms["tea"]
    world.say(200)
    (channel,) = room.channels
    assert isinstance(channel, Channel)
    channel.takes = False
    gone, waits = Vanished(room), world.joined(history=200)
    for member in (gone, waits):
        channel.join(member, 1, False)
        room.replays.add(member)  # type: ignore[arg-type]
    world.epoch, world.ends = NEXT, [(EPOCH, 200)]
    world.say(1)
    assert room.state is State.LIVE and ann.seqs() == list(range(1, 202)) and gone not in room.replays


def test_after_more_epochs_than_are_remembered_the_present_one_goes_out(world: World) -> None:
    ann = world.joined()
    world.say(2)
    world.write(4)
    world.epoch, world.ends = NEXT, [("dddddddd", 5), ("cccccccc", 3)]
    world.say(1)
    assert ann.kinds()[-3:] == ["reset", "message", "message"]
    assert ann.events[-3]["truncated"] is True and ann.seqs() == [1, 2, 6, 7]


def test_a_late_payload_of_an_old_epoch_is_passed_over(world: World) -> None:
    ann = world.joined()
    old = world.write(2)
    world.epoch, world.ends = NEXT, [(EPOCH, 2)]
    world.say(1)
    world.publish(old)
    assert ann.seqs() == [1, 2, 3] and world.hub.rooms["tea"].state is State.LIVE


def test_a_join_fails_clearly_while_the_store_is_away_and_works_again_later(world: World) -> None:
    world.away = True
    ann = world.joined()
    assert ann.failed == 1 and ann.events == []
    world.away = False
    world.write()
    assert world.joined().seqs() == [1]


def test_a_hole_while_the_store_is_away_is_filled_later(world: World) -> None:
    ann = world.joined()
    world.say()
    world.away = True
    world.write()
    world.say()
    assert ann.seqs() == [1]
    world.away = False
    world.say()
    assert ann.seqs() == [1, 2, 3, 4]


def test_a_malformed_payload_is_left_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ann = world.joined()
    world.publish(b"E" + b"x" * 5)
    world.say()
    assert ann.seqs() == [1] and "malformed" in caplog.text


def test_whoever_left_gets_nothing_more(world: World) -> None:
    ann = world.joined()
    world.say()
    world.hub.rooms["tea"].leave(ann)  # type: ignore[arg-type]
    world.say()
    assert ann.seqs() == [1]


def test_ten_thousand_who_come_back_read_the_log_once() -> None:
    world = World(batch_window_ms=0)
    world.write(100)
    world.hold = True
    members = [world.joined(after=(EPOCH, 90)) for _ in range(10_000)]
    assert len(world.reads) == 1
    world.answer()
    assert all(member.seqs() == list(range(91, 101)) for member in members)


# Windows -------------------------------------------------------------------------------------------


def test_a_quiet_room_writes_at_once_and_a_busy_one_once_per_window() -> None:
    world = World(batch_window_ms=10)
    ann = world.joined()
    world.say()
    assert ann.seqs() == [1] and world.timers == []
    world.say()
    world.say()
    assert ann.seqs() == [1]
    world.pass_time(0.011)
    assert ann.seqs() == [1, 2, 3]
    world.pass_time(0.05)
    world.say()
    assert ann.seqs() == [1, 2, 3, 4] and world.timers == []


def test_a_window_begins_with_the_first_message_that_waits() -> None:
    world = World(batch_window_ms=10)
    ann = world.joined()
    world.say()
    world.pass_time(0.006)
    world.say()
    world.pass_time(0.007)
    world.say()
    assert ann.seqs() == [1]
    world.pass_time(0.004)
    assert ann.seqs() == [1, 2, 3]


def test_a_window_that_is_shorter_than_the_timers_is_one_still() -> None:
    world = World(batch_window_ms=1)
    ann = world.joined()
    world.say()
    world.say()
    assert ann.seqs() == [1]
    world.pass_time(0.0025)
    assert ann.seqs() == [1, 2]


def test_windows_are_wider_while_fan_outs_take_much_of_the_time() -> None:
    world = World(batch_window_ms=10)
    ann = world.joined()
    (channel,) = world.hub.rooms["tea"].channels
    broadcast = channel.broadcast
    fan_out_seconds = 0.0

    def slow(batch: Batch) -> None:
        world.now += fan_out_seconds
        broadcast(batch)

    channel.broadcast = slow  # type: ignore[method-assign]

    def longest_wait(seconds: float) -> float:
        """Of messages that each come right behind the fan-out of the one before."""
        longest, end = 0.0, world.now + seconds
        world.say()
        while world.now < end:
            said, seen = world.now, len(ann.seqs())
            world.say()
            while len(ann.seqs()) == seen:
                world.pass_time(0.001)
            longest = max(longest, world.now - said)
        return longest

    assert longest_wait(1) < 0.013
    fan_out_seconds = 0.002  # a seventh of the time
    longest_wait(1)
    widest = 0.01 * MAX_STRETCH
    assert widest - 0.003 < longest_wait(1) < widest + 0.005
    fan_out_seconds = 0.0001
    longest_wait(1)
    assert longest_wait(1) < 0.013


class Busy:
    """A room whose fan-outs take a millisecond each, on a worker that keeps the beat that the room asks for."""

    def __init__(self, **changed: Any) -> None:
        self.world = World(paced=True, **changed)
        self.ann = self.world.joined()
        (channel,) = self.world.hub.rooms["tea"].channels
        broadcast = channel.broadcast
        self.seconds = 0.001
        self.came: list[float] = []

        def slow(batch: Batch) -> None:
            self.came.append(self.world.now)
            self.world.now += self.seconds
            broadcast(batch)

        channel.broadcast = slow  # type: ignore[method-assign]

    @property
    def beat(self) -> float:
        return self.world.pacer.beats[-1] if self.world.pacer.beats else 0.0

    def talk(self, seconds: float, every: float) -> list[float]:
        """Say something again and again; when that was written. On a beat, what was said comes when it has
        settled."""
        self.came = []
        end, next_at, said = self.world.now + seconds, self.world.now, 0
        while self.world.now < end:
            while self.world.now >= next_at:
                said += 1
                next_at += every
            self.world.pacer.settled = bool(self.beat) and self.since < 0.0005
            if said and (self.world.pacer.settled or not self.beat):
                self.world.say(said)
                said = 0
            self.world.pass_time(0.0005)
        self.world.pacer.settled = False
        return self.came

    @property
    def since(self) -> float:
        """The last moment at which a beat had settled."""
        return (self.world.now - SETTLE_SECONDS) % self.beat


def test_turns_keep_a_beat_while_busy_rooms_take_much_of_the_time() -> None:
    busy = Busy(batch_window_ms=10)
    busy.talk(1, every=0.002)
    assert busy.world.pacer.beats == [0.024]
    came = busy.talk(2, every=0.002)
    assert 82 <= len(came) <= 84  # once for each beat
    assert busy.world.pacer.beats == [0.024]  # although the fan-outs take less of the time
    busy.seconds = 0.00001
    busy.talk(1, every=0.002)
    assert busy.world.pacer.beats == [0.024, 0]
    seqs = busy.ann.seqs()
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("turn_interval_ms", [0, 5])
def test_a_worker_that_cannot_keep_up_writes_less_often(turn_interval_ms: int) -> None:
    """It wrote each message of a small room by itself, was ever later, and all the later for that."""
    busy = Busy(batch_window_ms=10, turn_interval_ms=turn_interval_ms)

    def window(idle: float) -> float:
        busy.world.pacer.idle = idle
        came = busy.talk(3, every=0.002)
        return (came[-1] - came[-6]) / 5

    usual = window(idle=0.5)
    assert usual < 0.025
    assert window(idle=0.0) == pytest.approx(0.08, abs=0.025)
    assert window(idle=0.2) == pytest.approx(0.08, abs=0.025)  # it waits because it writes less often
    assert window(idle=0.5) == pytest.approx(usual, abs=0.002)
    seqs = busy.ann.seqs()
    assert seqs == list(range(1, len(seqs) + 1))


def test_what_comes_between_two_beats_goes_out_when_the_next_one_has_settled() -> None:
    busy = Busy(batch_window_ms=10)
    busy.talk(1, every=0.002)

    def go_to(since: float) -> None:
        busy.world.now += (since - busy.since) % busy.beat
        busy.world.pacer.settled = not since

    go_to(0)
    busy.world.say()
    busy.came = []
    go_to(0.012)
    busy.world.say()
    for _ in range(50):
        busy.world.pass_time(0.0005)
    assert len(busy.came) == 1 and (busy.came[0] - SETTLE_SECONDS) % busy.beat < SETTLE_SECONDS + 0.003
    go_to(0)
    busy.world.say()
    seen = len(busy.ann.seqs())
    go_to(0.012)  # a beat that came late, and the look at the streams comes late too
    busy.world.say()
    assert len(busy.ann.seqs()) == seen
    busy.world.now += SETTLE_SECONDS
    busy.world.pacer.settled = True
    busy.world.say()
    assert len(busy.ann.seqs()) == seen + 2


def test_a_window_wider_than_the_beat_goes_on_to_the_end_of_one() -> None:
    busy = Busy(batch_window_ms=10)
    busy.talk(1, every=0.002)
    assert busy.beat
    busy.seconds = 0.05  # a huge room: twice that is its window
    came = busy.talk(3, every=0.002)
    waits = [after - before for before, after in itertools.pairwise(came[2:])]
    assert min(waits) > 0.09 and max(waits) < 0.09 + 4 * busy.beat


@pytest.mark.parametrize(
    ("changed", "every"),
    [
        ({"batch_window_ms": 10}, 0.04),  # each message goes alone: nobody waits for others
        ({"batch_window_ms": 0}, 0.002),
        ({"batch_window_ms": 2}, 0.0005),  # a beat would be over before it has settled
        ({"batch_window_ms": 30}, 0.002),  # a beat would be too long for who connects
        ({"batch_window_ms": 10, "turn_interval_ms": 0}, 0.002),
        ({"batch_window_ms": 10, "turn_interval_ms": 20}, 0.002),
    ],
)
def test_turns_keep_no_beat_otherwise(changed: dict[str, Any], every: float) -> None:
    busy = Busy(**changed)
    busy.seconds = 0.003 if every > 0.001 else 0.0003
    busy.talk(2, every)
    assert busy.world.pacer.beats == []


@pytest.mark.parametrize("window", [5, 5.5, 9, 9.5, 11, 18.5, 20])
def test_hub_and_poller_count_a_beat_in_the_same_microseconds(window: float) -> None:
    busy = Busy(batch_window_ms=window)
    busy.seconds = window / 5000
    busy.talk(2, every=0.0015)
    assert busy.beat and abs(busy.beat * 1e6 - round(busy.beat * 1e6)) < 1e-6


def test_no_batch_is_written_while_the_last_one_still_goes_out() -> None:
    world = World(batch_window_ms=10)
    ann = world.joined()
    channel: Any = world.hub.rooms["tea"].channels[0]
    channel.busy = True
    world.say()
    world.pass_time(1.0)
    assert ann.seqs() == []
    channel.busy = False
    world.pass_time(1.0)
    assert ann.seqs() == [1]


def test_a_joiner_in_the_middle_of_a_window_gets_each_message_once() -> None:
    world = World(batch_window_ms=10)
    world.joined()
    world.say()
    world.say()
    bob = world.joined()
    world.pass_time(0.02)
    assert bob.seqs() == [1, 2]


# Bounds --------------------------------------------------------------------------------------------


def test_an_empty_room_is_dropped_after_its_grace() -> None:
    world = World(subscription_grace_seconds=10)
    ann = world.joined()
    world.hub.rooms["tea"].leave(ann)  # type: ignore[arg-type]
    world.hub.tick()
    world.pass_time(9)
    world.hub.tick()
    assert world.closed == []
    world.pass_time(2)
    world.hub.tick()
    assert world.closed == ["tea"] and world.hub.rooms == {}


def test_the_ring_stays_within_its_bytes(world: World) -> None:
    small = World(batch_window_ms=0, ring_bytes=2000)
    small.joined()
    for _ in range(200):
        small.say()
    room = small.hub.rooms["tea"]
    assert 0 < room.ring.size <= 2000
    # What the ring has forgotten comes from the log.
    assert small.joined(history=200).seqs() == list(range(1, 201))
