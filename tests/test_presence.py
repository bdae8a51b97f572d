"""Who is where: across workers, after a kill, and in large rooms."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from bench.load import Load, Plan
from bench.processes import running_server
from tests.support import Person, http


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
