"""The room log on real stores: numbers, repeats, epochs, and faults of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis

from tests.support import SLOWNESS
from tornadochat._fastframe import pack_arguments, pack_message, published_bodies, published_header
from tornadochat.broker import Broker, Outcome
from tornadochat.embedded import EmbeddedStore
from tornadochat.errors import StartError, StoreRefused, Unavailable
from tornadochat.redis_link import Link, check_info
from tornadochat.settings import Settings
from tornadochat.store_address import parse_address

Work = Callable[["Bench"], Awaitable[None]]
_prefixes = iter(range(1_000_000))


class Bench:
    """A broker in a namespace of its own, and what it reported."""

    def __init__(self, url: str, **changed: Any) -> None:
        prefix = f"test-{os.getpid()}-{time.time_ns()}-{next(_prefixes)}"
        self.settings = Settings(**{"redis_prefix": prefix, **changed})
        self.published: list[tuple[bytes, bytes]] = []
        self.status: list[bool] = []
        self.control: list[bytes] = []
        self.broker = Broker(
            self.settings,
            url,
            on_published=self.published.extend,
            on_status=lambda up, concerns: self.status.append(up),
            on_control=self.control.append,
            on_moved=lambda channels: None,
        )

    async def up(self) -> None:
        while not self.broker.available:
            await asyncio.sleep(0.01)

    async def publish(
        self, *texts: str, room: str = "tea", user: str = "u", ids: list[str] | None = None
    ) -> list[Outcome]:
        """Publish and wait for all outcomes, in the order of the texts."""
        loop = asyncio.get_running_loop()
        futures = []
        for number, text in enumerate(texts):
            future: asyncio.Future[Outcome] = loop.create_future()
            message_id = ids[number] if ids else f"id-{time.time_ns()}-{number}"
            body = b'{"text":"%s"}' % text.encode()
            self.broker.publish(room, user, message_id, body, text, future.set_result)
            futures.append(future)
        return list(await asyncio.gather(*futures))

    def bodies(self) -> list[bytes]:
        return [body for _, payload in self.published for body in published_bodies(payload)]

    def first_seqs(self) -> list[int]:
        return [published_header(payload)[1] for _, payload in self.published]


def run(url: str, work: Work, **changed: Any) -> None:
    """Run something with a broker that is up, within 30 s."""

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[Bench]:
        bench = Bench(url, **changed)
        await bench.broker.start()
        try:
            yield bench
        finally:
            await bench.broker.close()

    async def whole() -> None:
        async with asyncio.timeout(30 * SLOWNESS), made() as bench:
            await bench.up()
            await work(bench)

    asyncio.run(whole())


def test_messages_are_numbered_stored_and_published_in_order(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.broker.subscribe("tea")
        head = await bench.broker.read_head("tea")
        assert head.seq == 0 and len(head.epoch) == 8
        outcomes = await bench.publish(*(f"t{number}" for number in range(300)))
        assert [outcome.seq for outcome in outcomes] == list(range(1, 301))
        assert {(outcome.status, outcome.epoch) for outcome in outcomes} == {("stored", head.epoch)}
        while len(bench.bodies()) < 300:
            await asyncio.sleep(0.01)
        assert bench.bodies() == [b'{"text":"t%d"}' % number for number in range(300)]
        assert all(channel == bench.broker.channel_of("tea") for channel, _ in bench.published)
        page = await bench.broker.read_log("tea", 0, 3)
        assert (page.epoch, page.head_seq, page.first_seq) == (head.epoch, 300, 298)
        assert page.bodies == [b'{"text":"t297"}', b'{"text":"t298"}', b'{"text":"t299"}']
        assert (await bench.broker.read_log("tea", 5, 2)).bodies == [b'{"text":"t4"}', b'{"text":"t5"}']

    run(store_url, work)


def test_what_waits_while_a_batch_is_in_flight_goes_as_one(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.broker.subscribe("tea")
        await bench.publish(*(f"t{number}" for number in range(200)))
        await asyncio.sleep(0.1)
        assert len(bench.published) <= 4 and bench.first_seqs()[0] == 1

    run(store_url, work)


def test_a_repeat_answers_its_old_place_and_another_text_is_told(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        first, again, other = await bench.publish("a", "a", "b", ids=["x", "x", "x"])
        assert (first.status, again.status, other.status) == ("stored", "repeat", "id_reused")
        assert again.seq == first.seq == 1
        (elsewhere,) = await bench.publish("a", room="coffee", ids=["x"])
        (somebody,) = await bench.publish("a", user="v", ids=["x"])
        assert elsewhere.status == somebody.status == "stored"
        found: list[Outcome] = []
        for text, message_id in (("a", "x"), ("b", "x"), ("a", "y")):
            bench.broker.find_repeat("tea", "u", message_id, text, found.append)
        while len(found) < 3:
            await asyncio.sleep(0.01)
        assert [outcome.status for outcome in found] == ["repeat", "id_reused", "unknown"]
        assert (await bench.broker.read_head("tea")).seq == 2

    run(store_url, work)


def test_repeats_are_recognised_across_a_rotation_and_forgotten_after_two(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.publish("a", ids=["x"])
        await asyncio.sleep(1.1)
        await bench.publish("b")
        (again,) = await bench.publish("a", ids=["x"])
        assert again.status == "repeat"
        await asyncio.sleep(2.3)
        await bench.publish("c")
        await asyncio.sleep(1.1)
        await bench.publish("d")
        (late,) = await bench.publish("a", ids=["x"])
        assert late.status == "stored"

    run(store_url, work, repeat_window_seconds=1)


def test_remembered_ids_are_bounded(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        for turn in range(6):
            await bench.publish(*(f"{turn}-{number}" for number in range(100)))
        keys = bench.broker.keys_of("tea")
        held = await bench.broker.redis.hlen(keys.repeats) + await bench.broker.redis.hlen(keys.former)
        assert held <= 400

    run(store_url, work, repeat_entries=100)


def test_the_log_keeps_at_least_its_messages_and_at_most_its_bytes(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        for turn in range(20):
            await bench.publish(*(f"{turn}-{number}" for number in range(100)))
        log = bench.broker.keys_of("tea").log
        assert 200 <= await bench.broker.redis.xlen(log) <= 500
        page = await bench.broker.read_log("tea", 1, 10)
        assert page.first_seq > 1 and len(page.bodies) == 10

    run(store_url, work, history=200, history_seconds=0)

    async def heavy(bench: Bench) -> None:
        for turn in range(10):
            await bench.publish(*(f"{turn}-{number}" + "x" * 1000 for number in range(100)))
        assert await bench.broker.redis.xlen(bench.broker.keys_of("tea").log) <= 400

    run(store_url, heavy, history=10_000, history_bytes=200_000)


def test_what_is_young_enough_is_kept_beyond_the_count(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        for turn in range(6):
            await bench.publish(*(f"{turn}-{number}" for number in range(100)))
        assert await bench.broker.redis.xlen(bench.broker.keys_of("tea").log) == 600

    run(store_url, work, history=100, history_seconds=60)


def test_the_keys_of_a_room_expire_and_the_meta_key_last(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.publish("a")
        keys, store = bench.broker.keys_of("tea"), bench.broker.redis
        life = [await store.ttl(key) for key in (keys.log, keys.repeats, keys.meta)]
        assert 0 < life[0] <= 100 and 0 < life[1] <= 100 and 100 < life[2] <= 200
        await store.delete(keys.log)
        (after,) = await bench.publish("b")
        assert after.seq == 2

    run(store_url, work, history_ttl_seconds=100)


async def written_under(store: Any, meta: bytes, run_id: str) -> None:
    """Make a room as if another server had been the last to write it."""
    state = await store.hget(meta, "state")
    behind_epoch = 5 * 8 + 1 + state[5 * 8]
    await store.hset(meta, "state", state[:behind_epoch] + bytes((len(run_id),)) + run_id.encode())


def test_a_server_with_another_run_id_never_reuses_numbers(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        (first,) = await bench.publish("a")
        keys = bench.broker.keys_of("tea")
        epochs = [first.epoch]
        for number in range(2, 12):
            await written_under(bench.broker.redis, keys.meta, f"another-{number}")
            (outcome,) = await bench.publish(f"text {number}")
            assert outcome.seq == number and outcome.epoch not in epochs
            epochs.append(outcome.epoch)
        head = await bench.broker.read_head("tea")
        ends = list(zip(reversed(epochs[:-1]), range(10, 0, -1), strict=True))[:8]
        assert head.epoch == epochs[-1] and head.ends == ends

    run(store_url, work)


def test_a_log_whose_meta_key_is_gone_is_numbered_on(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.publish("a", "b", "c")
        await bench.broker.redis.delete(bench.broker.keys_of("tea").meta)
        (outcome,) = await bench.publish("d")
        assert outcome.seq == 4

    run(store_url, work)


def test_scripts_that_a_server_has_forgotten_are_loaded_again(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.publish("a")
        await bench.broker.redis.script_flush()
        (outcome,) = await bench.publish("b")
        assert outcome == ("stored", outcome.epoch, 2)

    run(store_url, work)


def test_rooms_do_not_hear_one_another_and_control_reaches_all(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        for room in ("tea", "}x", "日本"):
            await bench.broker.subscribe(room)
        bench.broker.publish_ephemeral("}x", b"X{}")
        bench.broker.publish_control(b"order")
        while not (bench.published and bench.control):
            await asyncio.sleep(0.01)
        assert bench.published == [(bench.broker.channel_of("}x"), b"X{}")] and bench.control == [b"order"]

    run(store_url, work)


def test_an_unsubscribe_within_its_grace_is_cancelled_by_a_subscribe(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        await bench.broker.subscribe("tea")
        bench.broker.unsubscribe("tea", 0.2)
        await bench.broker.subscribe("tea")
        await asyncio.sleep(0.4)
        await bench.publish("heard")
        await asyncio.sleep(0.1)
        assert len(bench.bodies()) == 1
        bench.broker.unsubscribe("tea", 0)
        await asyncio.sleep(0.1)
        await bench.publish("not heard")
        await asyncio.sleep(0.1)
        assert len(bench.bodies()) == 1

    run(store_url, work)


def test_two_thousand_rooms_are_subscribed_in_batches(store_url: str) -> None:
    async def work(bench: Bench) -> None:
        rooms = [f"room {number}" for number in range(2000)]
        await asyncio.gather(*(bench.broker.subscribe(room) for room in rooms))
        heads = await bench.broker.heads(rooms[:600])
        assert len({head.epoch for head in heads if head}) == 600

    run(store_url, work)


# Faults --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A store of its own, to be harmed."""
    made = EmbeddedStore(tmp_path)
    made.start()
    yield made
    made.stop()


def kill(store: EmbeddedStore) -> None:
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    while store.alive():
        time.sleep(0.01)


@pytest.mark.faults
def test_a_store_that_dies_is_told_and_what_waited_is_stored_once(store: EmbeddedStore) -> None:
    async def work(bench: Bench) -> None:
        await bench.broker.subscribe("tea")
        (first,) = await bench.publish("before")
        await asyncio.sleep(1.2)  # the append-only file is synced once a second
        kill(store)
        waiting = asyncio.ensure_future(bench.publish("during", ids=["x"]))
        while bench.status[-1]:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await bench.broker.read_head("tea")
        store.restart()
        begin = time.monotonic()
        (second,) = await waiting
        assert time.monotonic() - begin < 2
        await bench.up()
        assert second.seq == 2 and second.epoch != first.epoch and bench.status == [True, False, True]
        assert (await bench.broker.read_head("tea")).ends == [(first.epoch, 1)]
        (again,) = await bench.publish("during", ids=["x"])
        assert again.status == "repeat" and again.seq == 2
        await bench.publish("after")
        await asyncio.sleep(0.2)
        assert bench.bodies()[-1] == b'{"text":"after"}'

    run(store.url, work)


@pytest.mark.faults
def test_a_send_fails_after_its_time_when_the_store_stays_away(store: EmbeddedStore) -> None:
    async def work(bench: Bench) -> None:
        kill(store)
        begin = time.monotonic()
        outcomes = await bench.publish("a", "b")
        assert {outcome.status for outcome in outcomes} == {"unavailable"}
        assert 0.8 < time.monotonic() - begin < 3

    run(store.url, work, publish_seconds=1.0)


@pytest.mark.faults
def test_the_queue_of_what_waits_is_bounded(store: EmbeddedStore) -> None:
    async def work(bench: Bench) -> None:
        kill(store)
        for number in range(50):
            bench.broker.publish("tea", "u", f"id{number}", b'{"a":1}', "a", lambda outcome: None)
        with pytest.raises(Unavailable):
            bench.broker.publish("tea", "u", "one more", b'{"a":1}', "a", lambda outcome: None)

    run(store.url, work, publish_queue=50, publish_seconds=1.0)


@pytest.mark.faults
def test_a_frozen_store_is_noticed_and_nothing_is_stored_twice(store: EmbeddedStore) -> None:
    async def work(bench: Bench) -> None:
        await bench.broker.subscribe("tea")
        await bench.publish("before")
        assert store.pid is not None
        os.kill(store.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.ensure_future(bench.publish("during", ids=["x"]))
            while bench.status[-1]:
                await asyncio.sleep(0.05)
        finally:
            os.kill(store.pid, signal.SIGCONT)
        (outcome,) = await waiting
        assert outcome.status in ("stored", "repeat") and outcome.seq == 2
        assert (await bench.broker.read_head("tea")).seq == 2

    run(store.url, work, publish_seconds=20.0)


@pytest.mark.faults
def test_an_empty_store_begins_a_new_epoch(store: EmbeddedStore) -> None:
    async def work(bench: Bench) -> None:
        (first,) = await bench.publish("before")
        kill(store)
        for path in (store.data_dir / "appendonlydir").iterdir():
            path.unlink()
        store.restart()
        (second,) = await bench.publish("after")
        assert second.seq == 1 and second.epoch != first.epoch

    run(store.url, work)


# Addresses and refusals ----------------------------------------------------------------------------


def test_addresses_are_read_and_shown_without_their_password() -> None:
    address = parse_address("redis://user:secret@example.org:7000/3")
    assert address[:6] == ("example.org", 7000, "", "user", "secret", 3)
    assert address.shown == "redis://example.org:7000"
    assert parse_address("unix:///run/redis.sock?db=2")[2:6] == ("/run/redis.sock", "", "", 2)
    assert parse_address("rediss://example.org").tls is not None
    for url in ("http://x", "redis://host:notaport", "rediss://x?ssl_ca_certs=/nowhere/at/all"):
        with pytest.raises(StartError):
            parse_address(url)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"redis_version": "6.2.14"}, "6.2.14"),
        ({"redis_version": "7.2.4", "maxmemory_policy": "allkeys-lru"}, "noeviction"),
        ({"redis_version": "7.2.4", "maxmemory_policy": "volatile-ttl"}, "noeviction"),
        ({}, "7.0"),
    ],
)
def test_a_store_that_would_lose_messages_is_refused(info: dict[str, str], words: str) -> None:
    with pytest.raises(StoreRefused, match=words):
        check_info(info)
    assert check_info({"redis_version": "7.0.15", "run_id": "r"}).run_id == "r"
    assert check_info({"redis_version": "7.2.4", "valkey_version": "9.1.2"}).version == "9.1.2"


def test_an_evicting_store_is_refused_at_start(store: EmbeddedStore) -> None:
    from tornadochat.store_check import check_store

    check_store(store.url)
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lfu")
    with pytest.raises(StartError, match="noeviction"):
        check_store(store.url)


def test_a_password_is_used_and_a_wrong_one_is_told(store: EmbeddedStore) -> None:
    from tornadochat.store_check import check_store

    with redis.Redis.from_url(store.url) as client:
        client.config_set("requirepass", "secret")
    good = store.url.replace("unix://", "unix://:secret@")

    async def work(bench: Bench) -> None:
        (outcome,) = await bench.publish("a")
        assert outcome.status == "stored"

    run(good, work)
    check_store(good)
    with pytest.raises(StartError, match="let us in"):
        check_store(store.url)
    with redis.Redis.from_url(good) as client:
        client.config_set("requirepass", "")


def test_arguments_are_packed_as_the_store_reads_them() -> None:
    arguments = ["EVALSHA", b"\x00\r\n\xff", "", "gr\u00fc\u00dfe \u2603", "x" * 100_000]
    whole = b"*%d\r\n%b" % (len(arguments), pack_arguments(arguments))
    assert whole == hiredis.pack_command(tuple(arguments))
    assert pack_arguments([]) == b""
    for wrong in (1, None, bytearray(b"x")):
        with pytest.raises(TypeError, match="bytes or str"):
            pack_arguments(["ok", wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 9, b"\r\n" * 50, b"\0" * 100_000])
def test_a_message_is_packed_as_its_three_arguments_are(body: bytes) -> None:
    packed = pack_message("u_1", "gr\u00fc\u00dfe-\u2603", "f" * 16, body)
    assert packed == pack_arguments(["u_1 gr\u00fc\u00dfe-\u2603", "f" * 16, body])
    with pytest.raises(UnicodeEncodeError):
        pack_message("u_1", "\ud800", "f", body)
    with pytest.raises(TypeError):
        pack_message("u_1", "i", "f", bytearray(body))  # type: ignore[arg-type]


def test_a_connection_that_ends_before_it_is_told_of_is_no_connection() -> None:
    """It counted as one, and its first command waited for an answer until the time was over."""

    async def work() -> None:
        link = Link(parse_address("redis://127.0.0.1"), lambda: None)
        link.connection_lost(None)
        with pytest.raises(ConnectionResetError):
            link._made(object())
        assert not link.connected

    asyncio.run(work())
