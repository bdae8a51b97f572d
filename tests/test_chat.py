"""People who chat: on two workers, with real sockets and a real store."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bench.processes import Server, running_server
from tests.support import SLOWNESS, Person, http, make_certificate, new_id
from tornadochat.embedded import EmbeddedStore


def on_each_worker(port: int, room: str, people: int = 8) -> list[Person]:
    """At least so many people, and more until both workers have some: the kernel spreads by a hash."""
    found: list[Person] = []
    workers: set[str] = set()
    while len(found) < people or len(workers) < 2:
        assert len(found) < 60, "one worker alone takes all connections"
        person = Person(port, f"P{len(found)}")
        assert person.socket.response is not None
        workers.add(person.socket.response.headers["X-Worker"])
        person.join(room)
        found.append(person)
    return found


def close_all(people: list[Person]) -> None:
    for person in people:
        person.socket.close()


def test_messages_cross_workers_and_everyone_gets_each_once_in_one_order(server: Server, room: str) -> None:
    people = on_each_worker(server.port, room)
    sent = [person.say(room, f"{turn} of {person.user['name']}") for turn in range(5) for person in people]
    orders = []
    for person in people:
        messages = person.messages(len(sent))
        assert [message["seq"] for message in messages] == list(range(1, len(sent) + 1))
        orders.append([message["id"] for message in messages])
    assert all(order == orders[0] for order in orders) and sorted(orders[0]) == sorted(sent)
    close_all(people)


def test_two_servers_on_one_redis_are_one_chat(tmp_path: Path, room: str) -> None:
    store = EmbeddedStore(tmp_path / "store")
    options = (f"--redis={store.start()}", "--redis-prefix=shared", "--drain-seconds=0.2")
    with (
        running_server(tmp_path / "a", *options, workers=1) as here,
        running_server(tmp_path / "b", *options, workers=2) as there,
    ):
        ada = Person(here.port, "Ada")
        bob = Person(there.port, "Bob")
        epoch = ada.join(room)["epoch"]
        bob.join(room)
        ada.expect("presence", people=2)
        for number in range(50):
            (ada, bob)[number % 2].say(room, str(number))
        orders = [[message["id"] for message in person.messages(50)] for person in (ada, bob)]
        assert orders[0] == orders[1]
        # One session and one place in the log, on whichever machine.
        with Person(there.port, token=ada.welcome["session"]) as again:
            assert again.user == ada.user
            joined = again.join(room, after={"epoch": epoch, "seq": 45})
            assert (joined["seq"], joined["missing"]) == (50, 5)
        close_all([ada, bob])
    store.stop()


def test_a_message_carries_who_said_it_and_when(server: Server, room: str) -> None:
    with Person(server.port, "Ada Lovelace") as ada:
        ada.join(room)
        message_id = ada.say(room, "naïve\n🙂")
        (message,) = ada.messages(1)
    assert message["user"] == ada.user and message["text"] == "naïve\n🙂" and message["id"] == message_id
    assert message["room"] == room and abs(message["ts"] / 1000 - time.time()) < 10


def test_a_joiner_gets_the_history_and_then_what_comes(server: Server, room: str) -> None:
    with Person(server.port) as ada, Person(server.port) as bob:
        ada.join(room)
        for number in range(120):
            ada.say(room, str(number))
        ada.messages(120)
        joined = bob.join(room, history=100)
        assert (joined["seq"], joined["missing"], joined["truncated"]) == (120, 100, False)
        ada.say(room, "live")
        assert [message["seq"] for message in bob.messages(101)] == list(range(21, 122))


def test_people_who_join_while_others_talk_miss_and_double_nothing(server: Server, room: str) -> None:
    with Person(server.port) as talker:
        talker.join(room)
        joiners = []
        for turn in range(20):
            for number in range(10):
                talker.say(room, f"{turn}-{number}")
            joiner = Person(server.port)
            joiner.command(type="join", room=room, history=1000)
            joiners.append(joiner)
        talker.messages(200)
        for joiner in joiners:
            seqs = [message["seq"] for message in joiner.messages(200)]
            assert seqs == list(range(1, 201))
        close_all(joiners)


def test_a_resume_on_any_worker_gives_all_that_is_missing(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        epoch = ada.join(room)["epoch"]
        for number in range(300):
            ada.say(room, str(number))
        ada.messages(300)
        for _ in range(4):
            with Person(server.port) as bob:
                joined = bob.join(room, after={"epoch": epoch, "seq": 10})
                assert (joined["missing"], joined["truncated"]) == (290, False)
                assert [message["seq"] for message in bob.messages(290)] == list(range(11, 301))


def test_the_same_id_is_stored_once_whoever_asks_and_wherever(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        ada.join(room)
        message_id = ada.say(room, "once")
        first = ada.expect("message")
        ada.say(room, "once", message_id)
        assert ada.expect("ack")["seq"] == first["seq"]
        for _ in range(4):
            with Person(server.port, token=ada.welcome["session"]) as again:
                assert again.user == ada.user
                again.join(room)
                again.say(room, "once", message_id)
                assert again.expect("ack", id=message_id)["seq"] == first["seq"]
                again.say(room, "another text", message_id)
                assert again.expect("error", id=message_id)["code"] == "id_reused"
        with Person(server.port, "Bob") as bob:
            bob.join(room, history=0)
            bob.say(room, "once", message_id)
            assert bob.expect("message", id=message_id)["user"] == bob.user


def test_a_stored_message_is_acknowledged_even_by_whoever_has_left(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        ada.join(room)
        message_id = ada.say(room, "then I left")
        ada.command(type="leave", room=room)
        kinds = [event for event in ada.quiet(1.0) if event.get("id") == message_id]
        assert len(kinds) == 1 and kinds[0]["type"] in ("ack", "message")
        ada.say(room, "then I left", message_id)
        assert ada.expect("ack", id=message_id)["seq"] == 1
        ada.say(room, "never in")
        assert ada.expect("error")["code"] == "not_joined"


def test_leaving_ends_what_comes(server: Server, room: str) -> None:
    with Person(server.port) as ada, Person(server.port) as bob:
        ada.join(room)
        bob.join(room)
        bob.command(type="leave", room=room)
        assert bob.expect("left") == {"type": "left", "room": room, "reason": "left"}
        ada.say(room, "alone")
        ada.messages(1)
        assert all(event["type"] != "message" for event in bob.quiet(0.5))


def test_presence_tells_who_came_and_went_and_who_lists_them(server: Server, room: str) -> None:
    with Person(server.port, "Ada") as ada:
        ada.join(room)
        bob = Person(server.port, "Bob")
        bob.join(room)
        came = ada.expect("presence", people=2)
        assert bob.user in came["joined"]
        ada.command(type="who", room=room)
        who = ada.expect("who")
        assert who["people"] == 2 and sorted(user["name"] for user in who["users"]) == ["Ada", "Bob"]
        bob.command(type="leave", room=room)
        assert ada.expect("presence", people=1)["left"] == [bob.user]
        bob.socket.close()


def test_a_reconnect_is_no_leave(server: Server, room: str) -> None:
    with Person(server.port, "Ada") as ada:
        ada.join(room)
        bob = Person(server.port, "Bob")
        bob.join(room)
        ada.expect("presence", people=2)
        bob.socket.close()
        with Person(server.port, token=bob.welcome["session"]) as again:
            again.join(room)
            events = ada.quiet(2.5)
            assert all(not event["left"] for event in events if event["type"] == "presence")


def test_typing_reaches_the_others(server: Server, room: str) -> None:
    with Person(server.port, "Ada") as ada, Person(server.port, "Bob") as bob:
        ada.join(room)
        bob.join(room)
        bob.command(type="typing", room=room)
        assert ada.expect("typing")["users"] == [bob.user]


def test_a_room_has_any_name_within_the_rules(server: Server) -> None:
    for name in ("}x", "a/b c", "日本語 👋", 'q"uote\\', "r" * 64):
        with Person(server.port) as ada:
            assert ada.join(name)["room"] == name
            ada.say(name, "hello")
            assert ada.expect("message")["room"] == name


def test_limits_are_told_and_kept(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        limits = ada.welcome["limits"]
        ada.join(room)
        ada.say(room, "x" * limits["text_chars"])
        ada.messages(1)
        ada.say(room, "x" * (limits["text_chars"] + 1))
        assert ada.expect("error")["code"] == "bad_text"
        for number in range(limits["rooms"] - 1):
            ada.command(type="join", room=f"{room}-{number}", history=0)
        ada.command(type="join", room="one too many")
        assert ada.expect("error", timeout=10)["code"] == "too_many_rooms"


def test_two_hundred_clients_and_every_count_is_exact(server: Server, room: str) -> None:
    from bench.load import Load, Plan

    plan = Plan(port=server.port, rooms=5, members=40, processes=1, prefix=room)
    with Load(plan) as load:
        assert load.connect(30).joined == 200
        load.idle(0.5)
        report = load.send(3.0, 300)
    assert report.exact and report.delivered == report.sent * 40 and report.sent >= 890, report


# Servers of their own ------------------------------------------------------------------------------


def test_a_flood_is_told_when_to_try_again(tmp_path: Path, room: str) -> None:
    options = ("--messages-per-second=5", "--typing-per-second=1", "--drain-seconds=0.2")
    with running_server(tmp_path, *options, workers=1) as server, Person(server.port) as ada:
        ada.join(room)
        ids = [ada.say(room, f"n{number}") for number in range(30)]
        events = ada.quiet(1.5)
        stored = {event["id"] for event in events if event["type"] == "message"}
        refused = {event["id"]: event for event in events if event["type"] == "error"}
        assert stored | set(refused) == set(ids) and not stored & set(refused) and 10 <= len(stored) <= 15
        assert all(e["code"] == "rate_limited" and e["retry_after_ms"] > 0 for e in refused.values())
        # Whatever a rule says: what is stored is acknowledged.
        ada.say(room, "n0", ids[0])
        for _ in range(20):
            ada.say(room, "flood")
        ada.say(room, "n1", ids[1])
        assert ada.expect("ack", id=ids[1])["seq"] == 2


@pytest.mark.parametrize("tls", [False, True], ids=["epoll", "TLS"])
def test_a_flood_waits_in_its_own_socket(
    tmp_path: Path, room: str, tls: bool, tls_options: tuple[str, ...]
) -> None:
    options = ("--messages-per-second=5", "--drain-seconds=0.2", *(tls_options if tls else ()))
    scheme = "https" if tls else "http"
    with (
        running_server(tmp_path, *options, workers=1, scheme=scheme) as server,
        Person(server.port, "Ada", tls=tls) as ada,
        Person(server.port, "Bob", tls=tls) as bob,
    ):
        for person in (ada, bob):
            person.join(room)
        flood = 0

        def send() -> None:
            nonlocal flood
            with contextlib.suppress(ConnectionClosed):
                while flood < 60_000 and not over.is_set():
                    ada.say(room, "flood " * 20)
                    flood += 1

        over = threading.Event()
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        refused = Counter(event.get("code", event["type"]) for event in ada.quiet(3.0))
        for number in range(5):
            bob.say(room, f"line {number}")
            bob.expect("message", user=bob.user)
        over.set()
        # A worker could have read and refused tens of thousands.
        assert refused["message"] >= 10 and 0 < refused["rate_limited"] < 3000
        # Its close frame would wait behind the flood.
        ada.socket.socket.shutdown(socket.SHUT_RDWR)
        sending.join(10)


@pytest.fixture(scope="module")
def tls_options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    certificate, key = make_certificate(tmp_path_factory.mktemp("certificate"))
    return f"--certfile={certificate}", f"--keyfile={key}"


@pytest.fixture(scope="module")
def tls_server(tls_options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    with running_server(folder, *tls_options, "--drain-seconds=0.2", workers=2, scheme="https") as running:
        yield running


@pytest.mark.parametrize("tls", [False, True], ids=["epoll", "TLS"])
def test_who_does_not_read_is_told_of_the_gap_and_gets_the_rest(
    tmp_path: Path, room: str, tls: bool, tls_options: tuple[str, ...]
) -> None:
    options = ("--max-backlog=65536", "--drain-seconds=0.2", *(tls_options if tls else ()))
    scheme = "https" if tls else "http"
    with (
        running_server(tmp_path, *options, workers=1, scheme=scheme) as server,
        Person(server.port, "Ada", tls=tls) as ada,
        Person(server.port, "Bob", tls=tls) as bob,
    ):
        epoch = ada.join(room)["epoch"]
        bob.join(room)
        for number in range(900):  # more than the kernels and the backlog hold
            bob.say(room, "x" * 3000)
            if number % 30 == 29:
                bob.messages(30)
        seen = []
        while (event := ada.read())["type"] != "gap":
            seen += [event["seq"]] if event["type"] == "message" else []
        assert event["seq"] == seen[-1] < 900 and event["epoch"] == epoch
        bob.say(room, "while the room is silent for Ada")
        assert all(event["type"] != "message" for event in ada.quiet(0.3))
        joined = ada.join(room, after={"epoch": epoch, "seq": seen[-1]})
        assert (joined["truncated"], joined["missing"]) == (False, 901 - seen[-1])
        seen += [message["seq"] for message in ada.messages(joined["missing"])]
        assert seen == list(range(1, 902))


def test_everything_works_over_tls_too(tls_server: Server, room: str) -> None:
    people = [Person(tls_server.port, f"P{number}", tls=True) for number in range(6)]
    for person in people:
        person.join(room)
    for person in people:
        person.say(room, "over TLS")
    for person in people:
        assert [message["seq"] for message in person.messages(6)] == list(range(1, 7))
    with Person(tls_server.port, tls=True) as late:
        assert late.join(room)["missing"] == 6
        assert len(late.messages(6)) == 6
        late.socket.send(b"binary")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                late.read()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1003
    close_all(people)


def test_jwts_decide_who_comes_in_and_where(tmp_path: Path, room: str) -> None:
    import jwt

    key = "k" * 40
    options = ("--auth=required", f"--jwt-key={key}", "--drain-seconds=0.2")
    with running_server(tmp_path, *options, workers=1) as server:
        claims = {"sub": "42", "name": "Ada", "exp": time.time() + 3, "rooms": [room]}
        with Person(server.port, token=jwt.encode(claims, key, "HS256")) as ada:
            assert ada.user == {"id": "42", "name": "Ada"}
            ada.join(room)
            ada.command(type="join", room="elsewhere")
            assert ada.expect("error")["code"] == "forbidden"
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    ada.read(10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
        assert http(server.port, "GET", f"/api/rooms/{room}/messages").status == 401


@pytest.mark.faults
def test_redis_away_and_back_is_told_and_loses_nothing(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=2) as server, Person(server.port) as ada:
        ada.join(room)
        ada.say(room, "before")
        ada.messages(1)
        store = server.store
        assert store is not None
        subprocess.run(["kill", "-9", str(store)], check=True)
        assert ada.expect("status")["broker"] == "down"
        message_id = ada.say(room, "while it was away")
        assert ada.expect("status", timeout=10)["broker"] == "up"
        found = ada.expect("message", timeout=10, id=message_id)
        assert found["seq"] == 2
        kinds = [event["type"] for event in ada.events]
        assert "reset" in kinds and kinds.index("reset") < len(kinds) - 1
        with Person(server.port) as bob:
            assert bob.join(room)["missing"] == 2


@pytest.mark.faults
def test_a_store_that_lost_everything_costs_the_history_but_not_the_sessions(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=1) as server, Person(server.port) as ada:
        epoch = ada.join(room)["epoch"]
        ada.say(room, "lost")
        ada.messages(1)
        with redis.Redis.from_url(f"unix://{tmp_path / 'store.sock'}") as client:
            client.flushall()
            assert server.store is not None
            subprocess.run(["kill", "-9", str(server.store)], check=True)
        assert ada.expect("status", broker="down") and ada.expect("status", timeout=10, broker="up")
        reset = ada.expect("reset", timeout=10)
        assert reset["truncated"] is True and reset["epoch"] != epoch
        ada.say(room, "first of the new epoch")
        assert ada.expect("message")["seq"] == 1
        # A worker that starts later signs with the same secret, and finds who is here.
        time.sleep(2.2)
        subprocess.run(["kill", "-9", str(server.workers[0])], check=True)
        with pytest.raises(ConnectionClosed):
            ada.expect("nothing")
        deadline = time.monotonic() + 10 * SLOWNESS
        while True:
            try:
                again = Person(server.port, token=ada.welcome["session"])
                break
            except (InvalidStatus, OSError):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert again.user == ada.user
        assert again.join(room, after={"epoch": epoch, "seq": 1})["truncated"] is True
        again.socket.close()


@pytest.mark.faults
def test_members_are_told_bye_before_a_drain(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, "--drain-seconds=1", workers=1) as server:
        people = [Person(server.port) for _ in range(10)]
        for person in people:
            person.join(room)
        people[0].say(room, "last words")
        for person in people:
            person.messages(1)
        server.process.terminate()
        for person in people:
            try:
                while True:
                    person.read(10)
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code == 1012
            bye = person.events[-1]
            assert bye["type"] == "bye" and 0 <= bye["retry_after_ms"] <= 1000


def test_a_moderator_removes_and_ends(server: Server, room: str) -> None:
    key = {"X-API-Key": "a-key-for-the-tests"}
    with Person(server.port, "Bob") as bob:
        bob.join(room)
        assert (
            http(server.port, "DELETE", f"/api/rooms/{room}/members/{bob.user['id']}", headers=key).status == 204
        )
        assert bob.expect("left")["reason"] == "removed"
        bob.join(room)
        assert http(server.port, "DELETE", f"/api/users/{bob.user['id']}/sessions", headers=key).status == 204
        assert bob.expect("bye")["reason"] == "session_ended"
        time.sleep(0.2)
        status = http(server.port, "GET", f"/api/session?token={json.dumps(bob.welcome['session'])[1:-1]}").status
        assert status == 401


def test_ids_of_the_tests_are_ids_of_the_protocol() -> None:
    from tornadochat.protocol import ID

    assert ID.fullmatch(new_id())
