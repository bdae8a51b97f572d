"""Who is where: across workers, after a kill, and in large rooms."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from bench.load import Load, Plan
from bench.processes import running_server
from tests.support import Person, http
from tornadochat import presence
from tornadochat.presence import Presence
from tornadochat.protocol import User
from tornadochat.settings import Settings


@pytest.mark.slow
@pytest.mark.faults
def test_people_of_a_killed_worker_are_gone_fifteen_to_twenty_seconds_later(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=2) as server:
        people = [Person(server.port, f"P{number}") for number in range(20)]
        for person in people:
            person.join("tea")
        for person in people:
            person.expect("presence", people=20)
        os.kill(server.workers[0], signal.SIGKILL)
        begin = time.monotonic()
        stayed = []
        for person in people:
            try:
                person.quiet(0.1)
                stayed.append(person)
            except ConnectionClosed:
                pass
        assert 0 < len(stayed) < 20
        event = stayed[0].expect("presence", timeout=25, people=len(stayed))
        assert 15 <= time.monotonic() - begin <= 20 and len(event["left"]) == 20 - len(stayed)
        for person in stayed:
            person.socket.close()


def test_a_large_room_tells_counts_and_who_pages_through_it(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=2) as server:
        plan = Plan(port=server.port, rooms=1, members=450, prefix="big")
        with Load(plan) as load, Person(server.port, "Ada") as ada:
            assert load.connect(30).joined == 450
            ada.join("big-0", history=0)
            event = ada.expect("presence", timeout=10, people=451)
            assert event["joined"] == event["left"] == []
            time.sleep(2.2)
            names: dict[str, str] = {}
            for offset in (0, 200, 400):
                ada.command(type="who", room="big-0", offset=offset, limit=200)
                window = ada.expect("who", timeout=10)
                assert window["people"] == 451 and window["offset"] == offset
                names.update((user["id"], user["name"]) for user in window["users"])
            assert len(names) == 451 and names[ada.user["id"]] == "Ada"
            ada.command(type="typing", room="big-0")
            assert all(event["type"] != "typing" for event in ada.quiet(1.2))
            rooms = http(server.port, "GET", "/api/rooms").json["rooms"]
            assert rooms == [{"room": "big-0", "people": 451}]


def test_a_storm_of_joins_costs_each_member_one_presence_event_a_second(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=2) as server, Person(server.port) as ada:
        ada.join("storm-0")
        begin = time.monotonic()
        with Load(Plan(port=server.port, rooms=1, members=1000, prefix="storm")) as load:
            assert load.connect(60).joined == 1000
            ada.expect("presence", timeout=20, people=1001)
        seconds = time.monotonic() - begin
        told = [event for event in ada.events if event["type"] == "presence"]
        assert len(told) <= seconds + 3


class Pipe:
    """A pipeline that keeps what was asked of the store."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self.asked = asked

    async def __aenter__(self) -> Pipe:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.asked.append((name, *arguments))

    async def execute(self) -> list[Any]:
        return []


class Workers:
    """The presence of several workers that hear each other at once, and a clock of their own; ``sent`` keeps what
    was published."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.sent: list[tuple[str, bytes]] = []
        self.stored: list[tuple[Any, ...]] = []
        self.told: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        self.all: list[Presence] = []
        for number in range(count):
            self.all.append(
                Presence(
                    self.broker(),
                    f"worker-{number}",
                    Settings(),
                    lambda _room, event, number=number: self.told[number].append(json.loads(event)),
                )
            )
            self.all[-1]._alive = {f"worker-{each}" for each in range(count)}

    def broker(self) -> Any:
        store = SimpleNamespace(register_script=lambda _text: None, pipeline=lambda transaction: Pipe(self.stored))
        return SimpleNamespace(
            redis=store,
            channel_of=lambda room: f"{room}:ch".encode(),
            publish_ephemeral=self.publish,
            publish_control=self.control,
            hears_control=True,
            state="up",
        )

    def publish(self, room: str, payload: bytes) -> None:
        self.sent.append((room, payload))
        for each in self.all:
            each.on_peer(room, payload)

    def control(self, payload: bytes) -> None:
        self.sent.append(("", payload))
        order = json.loads(payload)
        for each in self.all:
            each.on_counts(order["worker"], order["rooms"])

    async def settle(self, seconds: int) -> None:
        """So many ticks, a second each."""
        for _ in range(seconds):
            self.now += 1
            for each in self.all:
                each.tick(self.now)
                if each._writing is not None:
                    await each._writing


def fill(one: Presence, rooms: int, people: int, prefix: str = "") -> None:
    for room in range(rooms):
        for number in range(people):
            one.join(f"room-{room}", User(f"u_{prefix}{room}_{number}", "Ada"))


def test_names_of_a_large_room_are_kept_by_nobody_but_the_workers_of_the_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        workers = Workers(3, monkeypatch)
        for number, each in enumerate(workers.all):
            fill(each, rooms=1, people=60, prefix=f"{number}_")
        await workers.settle(3)
        assert [each.people("room-0") for each in workers.all] == [180] * 3
        assert all(len(each._rooms["room-0"].union()) == 180 for each in workers.all)
        for number, each in enumerate(workers.all):
            fill(each, rooms=1, people=80, prefix=f"{number}_more_")
        await workers.settle(5)
        assert [each.people("room-0") for each in workers.all] == [420] * 3
        for each in workers.all:
            here = each._rooms["room-0"]
            assert here.names == here.told == {} and len(here.users) == 140
        # It becomes small again, and everybody learns all names.
        for each in workers.all:
            for user in list(each._rooms["room-0"].users.values())[:90]:
                each.leave("room-0", user, by_hand=True)
        await workers.settle(6)
        assert [each.people("room-0") for each in workers.all] == [150] * 3
        assert all(len(each._rooms["room-0"].union()) == 150 for each in workers.all)
        assert all(len(told[-1]["joined"]) == told[-1]["people"] == 150 for told in workers.told)

    asyncio.run(scenario())


def test_counts_of_many_large_rooms_travel_in_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        workers = Workers(2, monkeypatch)
        for number, each in enumerate(workers.all):
            fill(each, rooms=40, people=150, prefix=f"{number}_")
        await workers.settle(6)
        assert all(each.people(f"room-{room}") == 300 for each in workers.all for room in range(40))
        workers.sent.clear()
        fill(workers.all[0], rooms=40, people=3, prefix="late_")
        await workers.settle(4)
        assert all(workers.all[1].people(f"room-{room}") == 303 for room in range(40))
        assert len(workers.sent) == 1 and len(json.loads(workers.sent[0][1])["rooms"]) == 40

    asyncio.run(scenario())


def test_what_is_told_and_published_in_a_second_is_bounded_and_the_rest_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "TELLS_PER_SECOND", 100)
    monkeypatch.setattr(presence, "NEWS_PER_SECOND", 20)
    monkeypatch.setattr(presence, "WRITES_PER_SECOND", 30)
    monkeypatch.setattr(presence, "cpu_count", lambda: 1)

    async def scenario() -> None:
        workers = Workers(2, monkeypatch)
        for number, each in enumerate(workers.all):
            fill(each, rooms=60, people=10, prefix=f"{number}_")
        await workers.settle(1)
        assert len(workers.told[0]) == 10, "ten people each"
        assert len([room for room, _ in workers.sent if room]) == 2 * 10, "two workers hear each piece"
        await workers.settle(14)
        assert all(each.people(f"room-{room}") == 20 for each in workers.all for room in range(60))
        assert not any(each._to_write or each._to_tell or each._uncounted for each in workers.all)

    asyncio.run(scenario())


def test_a_worker_that_is_gone_takes_its_people_with_it_in_rooms_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        workers = Workers(2, monkeypatch)
        fill(workers.all[0], rooms=1, people=150)
        fill(workers.all[1], rooms=1, people=100, prefix="other_")
        await workers.settle(4)
        one = workers.all[0]
        assert one.people("room-0") == 250
        one._lose({"worker-1"})
        assert one.people("room-0") == 150 and one._rooms["room-0"].named
        assert "room-0" in one._to_write, "its names are told again now that the room is small"

    asyncio.run(scenario())
