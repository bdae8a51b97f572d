"""A Redis Cluster of three masters and three replicas: rooms spread over it, a master lost, a slot moved."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from websockets.exceptions import ConnectionClosed

from bench.processes import Server, free_port, running_server
from bench.redis_cluster import Cluster, find_cluster_binary, running_cluster, wait_for
from tests.support import SLOWNESS, Person, check_loss_is_announced, http, make_certificate
from tests.test_broker import Bench
from tests.test_broker import run as run_broker
from tests.test_failover import assert_api_works, running_store, wait_until_up
from tornadochat.embedded import find_binary
from tornadochat.errors import StartError
from tornadochat.redis_link import read_info
from tornadochat.slot_map import SLOTS, SlotMap, View
from tornadochat.store_address import parse_address
from tornadochat.store_check import check_store
from tornadochat.subscriber import Subscriber

pytestmark = pytest.mark.skipif(
    find_cluster_binary() is None, reason="redis-server is not installed; `apt-get install redis-server`"
)

ROOMS = [f"room {number}" for number in range(300)]
OPTIONS = ("--debug-headers", "--max-rooms-per-member=0", "--drain-seconds=0.3", "--api-key=a-key-for-the-tests")
SECONDS = 30.0 * SLOWNESS


@pytest.fixture(scope="module", params=["redis", "valkey"])
def calm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the tests that do it no harm."""
    binary = str(find_binary()) if request.param == "valkey" else ""
    with running_cluster(tmp_path_factory.mktemp("cluster"), binary=binary) as cluster:
        yield cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One to be harmed."""
    with running_cluster(tmp_path / "cluster") as running:
        yield running


def slot_of(room: str, prefix: str = "tornadochat") -> int:
    """Slot of a room's keys; the tag is the hash of its name."""
    tag = hashlib.blake2b(room.encode(), digest_size=16).hexdigest()
    return key_slot(f"{prefix}:{{{tag}}}:meta".encode())


class Listener:
    """A person whose events are read all the time, by a thread."""

    def __init__(self, server: Server, name: str, rooms: list[str], worker: str = "") -> None:
        for _ in range(100):
            self.person = Person(server.port, name)
            response = self.person.socket.response
            assert response is not None
            if worker in ("", response.headers["X-Worker"]):
                break
            self.person.socket.close()
        self.messages: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.resets: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.joined: dict[str, dict[str, Any]] = {}
        self.people: dict[str, int] = {}
        self.errors: list[dict[str, Any]] = []
        self.status: list[str] = []
        self.texts: dict[str, str] = {}  # by id, of what was said here
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        for room in rooms:
            self.person.command(type="join", room=room)
        wait_for(lambda: len(self.joined) == len(rooms), SECONDS)

    def _read(self) -> None:
        while True:
            try:
                event = self.person.read(timeout=600)
            except ConnectionClosed:
                return
            kind, room = event["type"], event.get("room", "")
            if kind == "message":
                self.messages[room].append(event)
            elif kind == "reset":
                self.resets[room].append(event)
            elif kind == "joined":
                self.joined[room] = event
            elif kind == "presence":
                self.people[room] = event["people"]
            elif kind == "error":
                self.errors.append(event)
            elif kind == "status":
                self.status.append(event["broker"])
            if kind == "ack" or (kind == "message" and event["user"]["id"] == self.person.user["id"]):
                self.acknowledged[event["id"]] = event

    def close(self) -> None:
        self.person.socket.close()
        self._thread.join()

    def say(self, room: str, text: str, message_id: str = "") -> str:
        message_id = self.person.say(room, text, message_id)
        self.texts[message_id] = text
        return message_id

    def assert_whole(self, room: str, count: int) -> None:
        """Every message of the room came once and in order."""
        seqs = [message["seq"] for message in self.messages[room]]
        assert seqs == list(range(1, count + 1)), room


@pytest.fixture
def listeners() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(*arguments: Any) -> Listener:
        made.append(Listener(*arguments))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def test_messages_of_300_rooms_over_three_masters_come_once_and_in_order(
    calm: Cluster, tmp_path: Path, listeners: Callable[..., Listener]
) -> None:
    with running_server(tmp_path, f"--redis={calm.url}", *OPTIONS, workers=2) as server:
        people = [listeners(server, f"P{number}", ROOMS, str(number % 2)) for number in range(4)]
        for turn in range(5):
            for room in ROOMS:
                people[turn % 4].say(room, f"{turn} in {room}")
        wait_for(lambda: all(sum(map(len, one.messages.values())) == 1500 for one in people), SECONDS)
        for one in people:
            for room in ROOMS:
                one.assert_whole(room, 5)
                assert {message["text"] for message in one.messages[room]} == {f"{t} in {room}" for t in range(5)}
                assert one.messages[room] == people[0].messages[room]
            assert not one.errors and not one.resets and not one.status
    masters = {calm.owner(slot_of(room)).port for room in ROOMS}
    assert len(masters) == 3
    for node in calm.nodes[:3]:
        assert node.client.dbsize() > 100
        # Published on the shard alone: no server sends it to all the others.
        assert node.client.info("commandstats").get("cmdstat_publish") is None


@pytest.mark.faults
def test_a_master_is_killed_and_nothing_that_its_replica_had_is_lost(
    cluster: Cluster, tmp_path: Path, listeners: Callable[..., Listener]
) -> None:
    with running_server(tmp_path, f"--redis={cluster.url}", *OPTIONS, workers=2) as server:
        ada, bob = (listeners(server, name, ROOMS, worker) for name, worker in (("Ada", "0"), ("Bob", "1")))
        victim = cluster.owner(slot_of(ROOMS[0]))
        struck = [room for room in ROOMS if cluster.owner(slot_of(room)) is victim]
        others = [room for room in ROOMS if room not in struck]
        safe = {ada.say(room, f"safe {turn}"): room for turn in range(3) for room in ROOMS}
        wait_for(lambda: len(ada.acknowledged) == len(safe), SECONDS)
        cluster.replicate(victim)

        sent: dict[str, str] = {}
        turn, deadline = 0, time.monotonic() + SECONDS
        killed_at = replaced_at = 0.0
        while not replaced_at or time.monotonic() < replaced_at + 1.0:
            assert time.monotonic() < deadline
            for room in ROOMS:
                sent[ada.say(room, f"turn {turn}")] = room
            turn += 1
            if turn == 2:
                victim.process.kill()
                killed_at = time.monotonic()
            elif killed_at and not replaced_at and "up" in ada.status and "up" in bob.status:
                replaced_at = time.monotonic()
            time.sleep(0.2)
        # Rooms of the other masters did not notice.
        mine = {message_id for message_id, room in sent.items() if room in others}
        wait_for(lambda: mine <= set(ada.acknowledged), SECONDS)
        assert not [error for error in ada.errors if error.get("id") in mine]
        assert http(server.port, "GET", "/readyz").status == 200

        # What was not confirmed is sent once more with its id, as every client does.
        def missing() -> list[str]:
            return [message_id for message_id in sent if message_id not in ada.acknowledged]

        for message_id in missing():
            ada.say(sent[message_id], ada.texts[message_id], message_id)
        wait_for(lambda: not missing(), SECONDS)
        last = {ada.say(room, "last"): room for room in ROOMS}
        wait_for(lambda: set(last) <= set(ada.acknowledged), SECONDS)
        wait_for(lambda: all(bob.messages[room][-1:] == ada.messages[room][-1:] for room in ROOMS), SECONDS)

        for one in (ada, bob):
            for room in others:
                one.assert_whole(room, 3 + turn + 1)
                assert room not in one.resets
            for room in struck:
                assert one.resets[room] and one.resets[room][0]["epoch"] != one.joined[room]["epoch"]
        assert_api_works(server)
        with Person(server.port, "Late") as late:
            late.command(type="join", room=struck[0])
            wait_for(lambda: ada.people.get(struck[0]) == 3, SECONDS)
            for room in ROOMS:
                history = _history(late, room)
                ids = [message["id"] for message in history]
                assert len(ids) == len(set(ids)), "stored twice"
                assert [message["seq"] for message in history] == list(range(1, len(history) + 1))
                assert {message_id for message_id, place in safe.items() if place == room} <= set(ids)
                lost = {message_id for message_id, place in sent.items() if place == room} - set(ids)
                # The replica may have lacked what was acknowledged last. Then that was announced.
                assert not lost or bob.resets[room][0]["truncated"] is True
                assert bob.messages[room][-1]["seq"] == history[-1]["seq"]


def _history(person: Person, room: str) -> list[dict[str, Any]]:
    joined = person.join(room, history=1000)
    return [person.expect("message", room=room) for _ in range(joined["missing"])]


@pytest.mark.faults
def test_what_a_promoted_replica_lacked_is_announced_and_its_numbers_are_not_given_away(
    cluster: Cluster, tmp_path: Path, room: str
) -> None:
    with (
        running_server(tmp_path, f"--redis={cluster.url}", *OPTIONS, workers=2) as server,
        Person(server.port, "Ada") as ada,
        Person(server.port, "Bob") as bob,
    ):
        epoch = ada.join(room)["epoch"]
        bob.join(room)
        ada.say(room, "replicated")
        bob.messages(1)
        victim = cluster.owner(slot_of(room))
        cluster.replicate(victim)
        cluster.replica_of(victim).client.config_set("masterauth", "not the password")
        victim.client.client_kill_filter(_type="replica")
        wait_for(lambda: victim.client.info("replication")["connected_slaves"] == 0)
        ids = [ada.say(room, f"lost {number}") for number in range(2)]
        assert [message["seq"] for message in bob.messages(2)] == [2, 3]
        victim.process.kill()
        assert bob.expect("status", broker="down") and bob.expect("status", broker="up", timeout=30)
        check_loss_is_announced(ada, bob, server.port, room, epoch, ids[0])


@pytest.mark.faults
def test_a_master_changes_places_with_its_replica_and_nothing_is_lost(
    cluster: Cluster, tmp_path: Path, listeners: Callable[..., Listener]
) -> None:
    """The former master runs on, and ends the subscriptions itself."""
    with running_server(tmp_path, f"--redis={cluster.url}", *OPTIONS, workers=2) as server:
        rooms = ROOMS[:30]
        ada, bob = (listeners(server, name, rooms, worker) for name, worker in (("Ada", "0"), ("Bob", "1")))
        former = cluster.owner(slot_of(rooms[0]))
        cluster.replicate(former)
        cluster.replica_of(former).run("CLUSTER FAILOVER")
        turns, deadline = 0, time.monotonic() + SECONDS
        while len(ada.resets) == 0 or turns < 20:
            assert time.monotonic() < deadline
            for room in rooms:
                ada.say(room, "on")
            turns += 1
            time.sleep(0.1)
        wait_for(lambda: all(sum(map(len, one.messages.values())) == 30 * turns for one in (ada, bob)), SECONDS)
        for one in (ada, bob):
            assert not one.errors
            for room in rooms:
                one.assert_whole(room, turns)
                assert not any(reset["truncated"] for reset in one.resets[room])


@pytest.mark.faults
def test_a_slot_moves_while_messages_flow_and_nothing_is_lost(
    cluster: Cluster, tmp_path: Path, listeners: Callable[..., Listener]
) -> None:
    with running_server(tmp_path, f"--redis={cluster.url}", *OPTIONS, workers=2) as server:
        rooms = ROOMS[:30]
        ada, bob = (listeners(server, name, rooms, worker) for name, worker in (("Ada", "0"), ("Bob", "1")))
        moving = rooms[7]
        slot = slot_of(moving)
        source = cluster.owner(slot)
        target, third = (node for node in cluster.nodes[:3] if node is not source)
        ending = threading.Event()

        def talk() -> None:
            while not ending.is_set():
                for room in rooms:
                    ada.say(room, "on")
                time.sleep(0.02)

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            time.sleep(0.3)
            cluster.move_slot(slot, target, during=lambda: time.sleep(0.5))
            time.sleep(0.5)
            cluster.move_slot(slot, third)
            time.sleep(0.5)
        finally:
            ending.set()
            talking.join()
        sent = len(ada.texts)
        wait_for(lambda: len(ada.acknowledged) == sent, SECONDS)
        last = ada.say(moving, "last")
        wait_for(lambda: last in ada.acknowledged, SECONDS)
        count = len(ada.texts) // len(rooms)
        wait_for(lambda: sum(map(len, bob.messages.values())) == len(ada.texts), SECONDS)
        for one in (ada, bob):
            assert not one.errors and not one.status
            for room in rooms:
                one.assert_whole(room, count + (room == moving))
                # Another server is another epoch, and nobody has missed anything.
                assert not any(reset["truncated"] for reset in one.resets[room])
                assert bool(one.resets[room]) == (room == moving)


def test_presence_history_resume_kicks_and_sessions_work(calm: Cluster, tmp_path: Path, room: str) -> None:
    key = {"X-API-Key": "a-key-for-the-tests"}
    with (
        running_server(tmp_path, f"--redis={calm.url}", *OPTIONS, workers=2) as server,
        Person(server.port, "Ada") as ada,
        Person(server.port, "Bob") as bob,
    ):
        first = ada.join(room)
        bob.join(room)
        ada.expect("presence", people=2)
        for number in range(10):
            ada.say(room, f"line {number}")
        assert [message["seq"] for message in bob.messages(10)] == list(range(1, 11))
        for _ in range(4):  # whichever worker answers
            with Person(server.port, "Cem") as cem:
                joined = cem.join(room, after={"epoch": first["epoch"], "seq": 4})
                assert (joined["missing"], joined["truncated"]) == (6, False)
                assert [message["text"] for message in cem.messages(6)] == [f"line {n}" for n in range(4, 10)]
        cem.socket.close()
        history = http(server.port, "GET", f"/api/rooms/{room}/messages?limit=3")
        assert [message["seq"] for message in history.json["messages"]] == [8, 9, 10]
        wait_for(
            lambda: any(r["room"] == room for r in http(server.port, "GET", "/api/rooms").json["rooms"]), SECONDS
        )
        bob.command(type="who", room=room)
        assert {user["name"] for user in bob.expect("who")["users"]} >= {"Ada", "Bob"}
        with Person(server.port, token=ada.welcome["session"]) as again:
            assert again.user == ada.user
        kicked = http(server.port, "DELETE", f"/api/rooms/{room}/members/{bob.user['id']}", headers=key)
        assert kicked.status == 204 and bob.expect("left", reason="removed")
        ended = http(server.port, "DELETE", f"/api/users/{ada.user['id']}/sessions", headers=key)
        assert ended.status == 204 and ada.expect("bye")["reason"] == "session_ended"
        assert http(server.port, "GET", "/readyz").json["store"] == "up"


def test_a_store_without_one_of_its_masters_serves_the_rooms_of_the_others(
    tmp_path: Path, listeners: Callable[..., Listener]
) -> None:
    with (
        running_cluster(tmp_path / "cluster", replicas=0) as cluster,
        running_server(tmp_path / "server", f"--redis={cluster.url}", *OPTIONS, "--publish-seconds=1") as server,
    ):
        victim = cluster.owner(slot_of(ROOMS[0]))
        here = next(room for room in ROOMS if cluster.owner(slot_of(room)) is not victim)
        gone = listeners(server, "A", [ROOMS[0]])
        both = listeners(server, "B", [ROOMS[0], here])
        calm = listeners(server, "C", [here])
        victim.process.kill()
        wait_for(lambda: gone.status == both.status == ["down"], SECONDS)
        message_id = gone.say(ROOMS[0], "in vain")
        wait_for(lambda: bool(gone.errors), SECONDS)
        assert (gone.errors[0]["code"], gone.errors[0]["id"]) == ("unavailable", message_id)
        said = both.say(here, "heard")
        wait_for(lambda: [message["id"] for message in calm.messages[here]] == [said], SECONDS)
        assert calm.status == [] and not calm.errors
        ready = http(server.port, "GET", "/readyz")
        assert (ready.status, ready.json["store"]) == (200, "partly")
        for node in cluster.nodes:
            node.process.kill()
        wait_for(lambda: calm.status == ["down"], SECONDS)
        assert http(server.port, "GET", "/readyz").status == 503


def test_a_cluster_speaks_tls_under_the_names_that_it_announces(tmp_path: Path, room: str) -> None:
    certificate = make_certificate(tmp_path)
    with running_cluster(tmp_path / "cluster", replicas=0, certificate=certificate) as cluster:
        url = f"rediss+cluster://localhost:{cluster.nodes[1].tls_port}?ssl_ca_certs={certificate[0]}"
        check_store(url)
        with running_server(tmp_path / "server", f"--redis={url}", *OPTIONS) as server, Person(server.port) as ada:
            for name in (room, *ROOMS[:5]):
                ada.join(name)
                ada.say(name, "over TLS")
                assert ada.expect("message")["seq"] == 1
            assert_api_works(server)
        assert all(int(node.client.info("clients")["cluster_connections"]) > 0 for node in cluster.nodes)


# The broker alone ----------------------------------------------------------------------------------


def test_scripts_that_a_master_has_forgotten_are_loaded_again(calm: Cluster) -> None:
    async def work(bench: Bench) -> None:
        await bench.publish("a")
        for node in calm.nodes[:3]:
            node.client.script_flush()
        head = await bench.broker.read_head("tea")
        (outcome,) = await bench.publish("b")
        assert outcome == ("stored", head.epoch, 2)

    run_broker(calm.url, work)


def test_a_batch_is_not_stored_twice_when_its_room_moves(cluster: Cluster) -> None:
    async def work(bench: Bench) -> None:
        (first,) = await bench.publish("a", ids=["x"])
        slot = slot_of("tea", bench.settings.redis_prefix)
        target = next(node for node in cluster.nodes[:3] if node is not cluster.owner(slot))
        await asyncio.to_thread(cluster.move_slot, slot, target)
        again, second = await bench.publish("a", "b", ids=["x", "y"])
        assert (again.status, again.seq) == ("repeat", 1) and (second.status, second.seq) == ("stored", 2)
        found: list[Any] = []
        bench.broker.find_repeat("tea", "u", "y", "b", found.append)
        while not found:
            await asyncio.sleep(0.01)
        assert (found[0].status, found[0].seq) == ("repeat", 2)
        assert (await bench.broker.read_head("tea")).ends == [(first.epoch, 1)]

    run_broker(cluster.url, work)


def test_a_room_whose_keys_went_ahead_is_read_where_they_are(cluster: Cluster) -> None:
    """ASK: the slot is still on its way, and the room is there already."""

    async def work(bench: Bench) -> None:
        await bench.publish("a")
        slot = slot_of("tea", bench.settings.redis_prefix)
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes[:3] if node is not source)
        target.run("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
        keys = source.run("CLUSTER GETKEYSINSLOT", slot, 100)
        source.run("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
        page = await bench.broker.read_log("tea", 1, 10)
        assert page.bodies == [b'{"text":"a"}']
        waiting = asyncio.ensure_future(bench.publish("b", ids=["y"]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        for node in (target, source):
            node.run("CLUSTER SETSLOT", slot, "NODE", target.id)
        (outcome,) = await waiting
        assert (outcome.status, outcome.seq) == ("stored", 2)

    run_broker(cluster.url, work)


# Addresses and refusals ----------------------------------------------------------------------------


def test_addresses_of_clusters_are_read() -> None:
    address = parse_address("redis+cluster://user:secret@one:7000,[::1],three?health_check_interval=5")
    assert address.cluster and address.nodes == (("one", 7000), ("::1", 6379), ("three", 6379))
    assert (address.username, address.password, address.database) == ("user", "secret", 0)
    assert address.options["health_check_interval"] == 5 and "host" not in address.options
    assert address.shown == "redis+cluster://one:7000,::1:6379,three:6379"
    assert address.node(("three", 6379)).shown == "redis://three:6379"
    assert parse_address("rediss+cluster://one/0").tls is not None
    for url, words in (
        ("redis+cluster://one/3", "no databases"),
        ("redis+cluster://one:port", "port"),
        ("redis+cluster:///", "host:port"),
        ("redis+cluster://user:secret@one,", "host:port"),
    ):
        with pytest.raises(StartError, match=words) as refused:
            parse_address(url)
        assert "secret" not in str(refused.value)


def test_the_wrong_form_of_an_address_is_refused_with_advice(calm: Cluster, tmp_path: Path) -> None:
    check_store(calm.url)
    with pytest.raises(StartError, match=r"redis\+cluster://"):
        check_store(f"redis://127.0.0.1:{calm.nodes[0].port}")
    port = free_port()
    with running_store(tmp_path, "--port", str(port)), redis.Redis(port=port) as client:
        wait_until_up(client)
        with pytest.raises(StartError, match="not in cluster mode"):
            check_store(f"redis+cluster://127.0.0.1:{port}")


def test_every_master_is_looked_at_before_the_start(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.nodes[2].client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StartError, match=f"{cluster.nodes[2].port}.*noeviction"):
        check_store(cluster.url)
    cluster.nodes[2].client.config_set("maxmemory-policy", "noeviction")
    for node in cluster.nodes:
        node.client.config_set("requirepass", "secret")
    with pytest.raises(StartError, match="does not let us in"):
        check_store(cluster.url)
    good = cluster.url.replace("://", "://:secret@")
    check_store(good)
    assert not caplog.records
    for node in cluster.nodes[:3]:
        node.client.config_set("cluster-require-full-coverage", "yes")
    check_store(good)
    assert caplog.text.count("while one master is away no room of any other is served") == 3
    caplog.clear()
    cluster.nodes[1].process.kill()
    cluster.nodes[1].process.wait()
    check_store(good)
    assert f"the master at redis://127.0.0.1:{cluster.nodes[1].port} cannot be reached" in caplog.text
    caplog.clear()
    check_store("redis+cluster://127.0.0.1:1")
    assert "cannot be reached" in caplog.text


class FakeLink:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, ...]] = []

    def send(self, *command: bytes) -> None:
        self.sent.append(command)


class FakeLinks:
    """Three slots, by the first byte of a key; a test says who has them."""

    def __init__(self, **hooks: Callable[..., None]) -> None:
        self.routes: list[Any] = [None] * 3
        self.ready: tuple[Any, ...] = ()
        self.hooks = hooks
        self.learnt: list[str] = []

    def slot_of(self, key: bytes) -> int:
        return key[0] - ord("0")

    def learn(self, _link: Any, error: str) -> None:
        self.learnt.append(error)

    def doubt(self) -> None:
        self.learnt.append("doubt")

    def route(self, *routes: Any) -> None:
        self.routes[:] = routes
        self.ready = tuple({link for link in routes if link is not None})
        self.hooks["on_change"]()


def test_channels_are_subscribed_by_slot_and_follow_it() -> None:
    async def work() -> None:
        moved: list[bytes] = []
        subscriber = Subscriber(
            FakeLinks,  # type: ignore[arg-type]
            b"0control",
            on_published=lambda items: None,
            on_control=lambda payload: None,
            on_change=lambda: None,
            on_moved=moved.extend,
            sharded=True,
        )
        links: Any = subscriber.links
        one, other = FakeLink(), FakeLink()
        for channel in (b"0a", b"1b", b"1c", b"2d"):
            waiting = asyncio.ensure_future(subscriber.subscribe(channel, 10))
            await asyncio.sleep(0)
        links.route(one, one, None)
        assert one.sent == [(b"SSUBSCRIBE", b"0control", b"0a"), (b"SSUBSCRIBE", b"1b", b"1c")]
        assert subscriber.serving() == [False, False, False]
        push: Any = links.hooks["on_push"]
        push(one, [[b"ssubscribe", channel, 1] for channel in (b"0control", b"0a", b"1b")])
        assert subscriber.serving() == [False, False, False]
        # A slot goes elsewhere before its last channel is confirmed: the rest does not wait for that one.
        links.route(one, other, other)
        assert other.sent == [(b"SSUBSCRIBE", b"1b", b"1c"), (b"SSUBSCRIBE", b"2d")]
        assert subscriber.serving() == [True, False, False] and not waiting.done()
        push(other, [[b"ssubscribe", channel, 1] for channel in (b"1b", b"1c", b"2d")])
        assert subscriber.serving() == [True, True, True] and moved == []
        await waiting
        # A single slot moves between two that are there: its logs are looked at once it is heard again.
        push(other, [[b"sunsubscribe", b"2d", 0]])
        assert links.learnt == ["doubt"] and subscriber.serving() == [True, True, True]
        links.route(one, other, one)
        assert one.sent[-1] == (b"SSUBSCRIBE", b"2d") and moved == []
        push(other, [[b"ssubscribe", b"2d", 1]])  # too late
        assert moved == []
        push(one, [[b"ssubscribe", b"2d", 1]])
        assert moved == [b"2d"]
        # What is refused is asked for again.
        links.routes[2] = other
        push(one, [[b"sunsubscribe", b"2d", 0], (b"error", "MOVED 2 127.0.0.1:1")])
        assert links.learnt[-1] == "MOVED 2 127.0.0.1:1"
        while other.sent[-1] != (b"SSUBSCRIBE", b"2d") or len(other.sent) < 3:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(work(), 20 * SLOWNESS))


def test_a_map_of_a_server_that_is_cut_off_does_not_count() -> None:
    async def work() -> None:
        slots = SlotMap(parse_address("redis+cluster://old,new"))
        views = {
            "old": View(False, 3, [("old", 6379)] * SLOTS, {("old", 6379)}),
            "new": View(True, 4, [("new", 6379)] * SLOTS, {("new", 6379), ("old", 6379)}),
        }

        async def ask(place: tuple[str, int]) -> View:
            return views[place[0]]

        slots._ask = ask  # type: ignore[method-assign]
        for _ in range(20):
            slots._take(await slots._look())
            assert slots.well and slots.owners[0] == ("new", 6379)

    asyncio.run(work())


def test_a_link_to_a_cluster_wants_a_cluster() -> None:
    info = b"redis_version:7.0.15\r\nrun_id:r\r\ncluster_enabled:1\r\n"
    assert read_info(info, cluster=True).run_id == "r"
