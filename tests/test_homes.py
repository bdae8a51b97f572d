"""Where rooms come together, on the memory that workers share."""

from __future__ import annotations

import copy
import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from tornadochat import handover, homes
from tornadochat.auth import Identity
from tornadochat.handover import Handover, Parcel
from tornadochat.homes import Homes
from tornadochat.limits import AddressCounts
from tornadochat.protocol import Join, User
from tornadochat.settings import Settings


def workers(count: int, capacity: int = 1000) -> list[Homes]:
    """What each worker sees of the same memory."""
    shared = Homes(count)
    views = [copy.copy(shared) for _ in range(count)]
    for slot, view in enumerate(views):
        view.take(slot, 0, capacity)
        view.open()
    return views


def home_of(views: list[Homes], room: str) -> int:
    """The one worker that all of them name."""
    found = {view.slot if (home := view.find(room)) is None else home for view in views}
    assert len(found) == 1
    return found.pop()


def test_all_workers_name_the_same_home_and_rooms_are_spread_evenly() -> None:
    views = workers(4)
    rooms = [f"room-{number}" for number in range(40)]
    spread = Counter(home_of(views, room) for room in rooms)
    assert set(spread.values()) == {10}
    assert [home_of(views, room) for room in rooms] == [home_of(list(reversed(views)), room) for room in rooms]


def test_a_new_room_goes_to_whoever_has_the_fewest_members() -> None:
    views = workers(3)
    for view, members in zip(views, (500, 20, 500), strict=True):
        view.report(members, rooms=0, busy=0.1)
    assert home_of(views, "tea") == 1


@pytest.mark.parametrize("state", ["full", "busy", "ending", "gone"])
def test_nobody_is_brought_to_a_worker_that_cannot_have_them(state: str) -> None:
    views = workers(2)
    there = views[home_of(views, "tea")]
    here = views[1 - there.slot]
    if state == "full":
        there.report(900, rooms=1, busy=0.0)
    elif state == "busy":
        there.report(1, rooms=1, busy=0.7)
    elif state == "ending":
        there.shut()
    else:
        here.shut_out(there.slot)
    assert here.find("tea") is None
    assert all(view.find(f"new-{number}") != there.slot for view in views for number in range(5) if view is here)


def test_a_room_with_very_many_members_grows_wherever_they_come_in() -> None:
    views = workers(2)
    home = home_of(views, "tea")
    views[home].widen("tea")
    assert views[0].find("tea") is views[1].find("tea") is None


def test_a_predecessor_changes_nothing_that_is_its_successors() -> None:
    (before, other), (after, _) = (pair := workers(2)), (copy.copy(pair[0]), None)
    before.report(70, rooms=1, busy=0.0)
    before.count_address("203.0.113.7", 70)
    after.take(0, 1, 1000)
    after.open()
    assert other.address_total("203.0.113.7") == 0
    after.report(5, rooms=1, busy=0.0)
    before.report(900, rooms=1, busy=0.0)
    before.count(500)
    before.count_address("203.0.113.7", -1)
    after.count_address("203.0.113.7", 1)
    before.shut()
    assert before.succeeded() and not after.succeeded() and other.address_total("203.0.113.7") == 1
    other.report(100, rooms=1, busy=0.0)
    assert other.find("tea") == 0


def test_a_successor_is_not_taken_for_as_full_as_its_predecessor() -> None:
    before, other = workers(2)
    before.report(1000, rooms=90, busy=1.0)
    before.shut()
    after = copy.copy(before)
    after.take(0, 1, 1000)
    after.open()
    other.report(100, rooms=0, busy=0.0)
    assert other.find("tea") == 0


def test_members_on_their_way_count_at_once() -> None:
    one, other = workers(2)
    for _ in range(30):
        one.expect(1)
    assert {one.find(f"new-{number}") for number in range(3)} == {None} and other.find("new-0") == 0


def test_rooms_that_are_not_there_any_more_are_forgotten_after_two_rounds() -> None:
    views = workers(2)
    mine = [room for room in map(str, range(20)) if home_of(views, room) == 0]
    kept, gone = mine[:5], mine[5:]
    rounds = homes.CELLS // homes.SWEPT_AT_ONCE
    for turn in range(2):
        for _ in range(rounds):
            views[0].sweep(kept)
        left = sum(1 for word in views[0]._rooms.tolist() if word & homes.SLOT_BITS == 1)
        assert left == (len(mine) if turn == 0 else len(kept))
    assert all(home_of(views, room) == 0 for room in kept)
    others = sum(1 for word in views[0]._rooms.tolist() if word & homes.SLOT_BITS == 2)
    assert others == 20 - len(mine), "another worker's rooms are its own business"
    assert gone


def test_a_full_table_leaves_members_where_they_are() -> None:
    (only, other) = workers(2)
    first = (homes._key("tea") >> homes.HASH_SHIFT) * homes.BUCKET % homes.CELLS
    for cell in range(first, first + homes.BUCKET):
        only._rooms[cell] = homes._key("another") | 1
    assert only.find("tea") is other.find("tea") is None


def test_there_are_homes_for_one_worker_to_very_many() -> None:
    with pytest.raises(ValueError, match="not 0"):
        Homes(0)
    with pytest.raises(ValueError, match="not 1000000"):
        Homes(1_000_000)


def test_an_address_has_its_connections_on_all_workers_together() -> None:
    one, other = workers(2)
    settings = Settings(max_connections_per_address=3)
    here, there = AddressCounts(settings, one), AddressCounts(settings, other)
    for _ in range(6):
        assert here.may_add("203.0.113.7")
        there.add("203.0.113.7")  # all have moved
    assert not here.may_add("203.0.113.7") and here.may_add("203.0.113.8")
    there.remove("203.0.113.7")
    assert here.may_add("203.0.113.7")


# The way there -------------------------------------------------------------------------------------


@pytest.fixture
def inboxes() -> Iterator[Handover]:
    made = Handover(2)
    made.take(0)
    yield made
    made.close()


def a_parcel(received: bytes = b"behind it") -> Parcel:
    identity = Identity(User("u_1", "Ada"), "", frozenset({"tea"}), 1e9)
    return Parcel(identity, "203.0.113.7", True, 1.5, Join("tea", ("e1", 7), 50), received)


def test_a_socket_arrives_with_all_that_is_known_of_its_member(inboxes: Handover) -> None:
    ours, peers = socket.socketpair()
    with ours, peers:
        assert inboxes.send(0, ours.fileno(), a_parcel())
        ours.close()
        ((descriptor, parcel),) = inboxes.receive()
        assert parcel == a_parcel()
        with socket.socket(fileno=descriptor) as taken:
            taken.sendall(b"hello")
            assert peers.recv(100) == b"hello"
    assert inboxes.receive() == []


def test_what_does_not_fit_is_refused_and_nothing_of_it_sent(inboxes: Handover) -> None:
    ours, peers = socket.socketpair()
    with ours, peers:
        assert not inboxes.send(0, ours.fileno(), a_parcel(b"x" * handover.MAX_PARCEL_BYTES))
        assert inboxes.receive() == []
        sent = 0
        while inboxes.send(0, ours.fileno(), a_parcel(b"%d" % sent)):
            sent += 1
            assert sent < 100_000
        assert sent > handover.PARCELS_AT_ONCE
        found = []
        while parcels := inboxes.receive():
            assert len(parcels) <= handover.PARCELS_AT_ONCE
            for descriptor, parcel in parcels:
                os.close(descriptor)
                found.append(int(parcel.received))
        assert found == list(range(sent))
