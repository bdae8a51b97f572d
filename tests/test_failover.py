"""Real stores that fail over: Sentinels, a replica that lacks the last writes, TLS, an old append-only file."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bench.processes import Server, free_port, running_server
from tests.support import SLOWNESS, Person, check_loss_is_announced, http, make_certificate
from tornadochat.embedded import find_binary
from tornadochat.errors import StartError, Unavailable
from tornadochat.redis_link import Link
from tornadochat.store_address import parse_address
from tornadochat.store_check import check_store

pytestmark = pytest.mark.faults

QUICK = f"--drain-seconds={0.3 * SLOWNESS:g}"
SERVICE = "chat"
START_SECONDS = 10.0


@contextlib.contextmanager
def running_store(folder: Path, *options: str, binary: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """One Valkey or Redis in a folder of its own; killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    common = ("--dir", str(folder), "--logfile", str(folder / "log"), "--save", "")
    process = subprocess.Popen([binary or str(find_binary()), *options, *common], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_sentinel(folder: Path, primary_port: int, port: int) -> Iterator[None]:
    """A Sentinel that fails over on its own judgement, half a second after the primary is gone."""
    folder.mkdir(parents=True)
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\n"
        f"sentinel failover-timeout {SERVICE} 2000\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(find_binary()), str(config), "--sentinel"], stdout=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait_until_up(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_SECONDS * SLOWNESS
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "the store does not start"
            time.sleep(0.02)


class Pair:
    """A primary with a replica, and a Sentinel that watches both."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.ports = free_port(), free_port()
        self.sentinel_port = free_port()
        bind = ("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")
        first, second = self.ports
        self.primary = stack.enter_context(running_store(folder / "a", "--port", str(first), *bind))
        follows = ("--replicaof", f"127.0.0.1 {first}")
        stack.enter_context(running_store(folder / "b", "--port", str(second), *bind, *follows))
        self.clients = [stack.enter_context(redis.Redis(port=port)) for port in self.ports]
        for client in self.clients:
            wait_until_up(client)
        self.wait(lambda: self.clients[1].info("replication")["master_link_status"] == "up")
        stack.enter_context(running_sentinel(folder / "s", first, self.sentinel_port))
        sentinel = stack.enter_context(redis.Redis(port=self.sentinel_port))
        wait_until_up(sentinel)
        self.wait(lambda: sentinel.sentinel_masters()[SERVICE]["num-slaves"] == 1)  # type: ignore[no-untyped-call]

    @staticmethod
    def wait(condition: object) -> None:
        deadline = time.monotonic() + START_SECONDS * SLOWNESS
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, "it did not become so in time"
            time.sleep(0.02)

    @property
    def url(self) -> str:
        # The first Sentinel does not answer: the next one is asked.
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel_port}/{SERVICE}"

    def replicate(self) -> None:
        """Wait until the replica has everything."""
        first, second = self.clients
        written = first.info("replication")["master_repl_offset"]
        self.wait(lambda: second.info("replication")["slave_repl_offset"] >= written)

    def stop_replication(self) -> None:
        """From here on the replica falls behind."""
        self.clients[1].config_set("masterauth", "not the password")
        self.clients[0].client_kill_filter(_type="replica")
        self.wait(lambda: self.clients[0].info("replication")["connected_slaves"] == 0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(tmp_path, stack)


def test_a_sentinel_leads_to_the_new_primary_and_nothing_is_lost(pair: Pair, tmp_path: Path, room: str) -> None:
    with (
        running_server(tmp_path / "server", f"--redis={pair.url}", QUICK, workers=2) as server,
        Person(server.port, "Ada") as ada,
        Person(server.port, "Bob") as bob,
    ):
        before = ada.join(room)
        bob.join(room)
        for number in range(3):
            ada.say(room, f"line {number}")
        assert [message["seq"] for message in bob.messages(3)] == [1, 2, 3]
        pair.replicate()
        pair.primary.kill()
        assert bob.expect("status", broker="down") and bob.expect("status", broker="up", timeout=15)
        message_id = ada.say(room, "line 3")
        reset = bob.expect("reset")
        assert reset["epoch"] != before["epoch"] and (reset["seq"], reset["truncated"]) == (3, False)
        assert bob.expect("message")["id"] == message_id
        pair.wait(lambda: all(http(server.port, "GET", "/readyz").status == 200 for _ in range(8)))
        with Person(server.port, "Cem") as late:
            assert late.join(room, after={"epoch": before["epoch"], "seq": 1})["truncated"] is False
            assert [message["text"] for message in late.messages(3)] == ["line 1", "line 2", "line 3"]
        assert_api_works(server)


def assert_api_works(server: Server) -> None:
    """The connections of redis-py have moved too."""
    deadline = time.monotonic() + 10 * SLOWNESS
    while http(server.port, "GET", "/api/rooms").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_replica_that_lacks_the_last_writes_never_gives_their_numbers_away(
    pair: Pair, tmp_path: Path, room: str
) -> None:
    with (
        running_server(tmp_path / "server", f"--redis={pair.url}", QUICK, workers=2) as server,
        Person(server.port, "Ada") as ada,
        Person(server.port, "Bob") as bob,
    ):
        epoch = ada.join(room)["epoch"]
        bob.join(room)
        ada.say(room, "replicated")
        bob.messages(1)
        pair.replicate()
        pair.stop_replication()
        ids = [ada.say(room, f"lost {number}") for number in range(2)]
        assert [message["seq"] for message in bob.messages(2)] == [2, 3]
        pair.primary.kill()
        assert bob.expect("status", broker="up", timeout=20)
        check_loss_is_announced(ada, bob, server.port, room, epoch, ids[0])


def test_an_address_that_leads_to_a_replica_is_not_written_to(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{pair.ports[1]}"
    with caplog.at_level("WARNING"):
        check_store(url)
    assert "is a replica" in caplog.text
    with pytest.raises(Unavailable, match="is a replica"):
        connect_to(url)
    connect_to(pair.url)


def connect_to(url: str) -> None:
    """What a worker does first."""

    async def connect() -> None:
        link = Link(parse_address(url), lambda: None)
        await link.connect()
        link.abort()

    asyncio.run(connect())


def test_a_store_from_an_old_append_only_file_opens_a_new_epoch(tmp_path: Path, room: str) -> None:
    folder, port = tmp_path / "store", free_port()
    options = ("--port", str(port), "--appendonly", "yes", "--appendfsync", "always")
    with contextlib.ExitStack() as stack, redis.Redis(port=port) as client:
        with running_store(folder, *options):
            wait_until_up(client)
            server = stack.enter_context(
                running_server(tmp_path / "server", f"--redis=redis://127.0.0.1:{port}", QUICK, workers=1)
            )
            ada = stack.enter_context(Person(server.port))
            epoch = ada.join(room)["epoch"]
            ada.say(room, "in the old file")
            ada.messages(1)
            shutil.copytree(folder / "appendonlydir", tmp_path / "old")
            for number in range(4):
                ada.say(room, f"after the copy {number}")
            assert [message["seq"] for message in ada.messages(4)] == [2, 3, 4, 5]
        shutil.rmtree(folder / "appendonlydir")
        shutil.copytree(tmp_path / "old", folder / "appendonlydir")
        stack.enter_context(running_store(folder, *options))
        assert ada.expect("status", broker="up", timeout=10)
        ada.say(room, "in the new life")
        reset = ada.expect("reset")
        assert (reset["seq"], reset["truncated"]) == (1, True) and reset["epoch"] != epoch
        assert ada.expect("message")["seq"] == 2


def test_a_store_behind_tls_is_used_and_its_certificate_checked(tmp_path: Path, room: str) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("Valkey's wheel has no TLS, and redis-server is not installed; `apt-get install redis-server`")
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    tls = ("--tls-port", str(port), "--port", "0", "--tls-auth-clients", "no")
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    good = f"rediss://localhost:{port}?ssl_ca_certs={certificate}"
    with (
        running_store(tmp_path / "store", *tls, *files, binary=binary),
        redis.Redis.from_url(good) as client,
    ):
        wait_until_up(client)
        with running_server(tmp_path / "server", f"--redis={good}", QUICK), Person(free(tmp_path)) as ada:
            ada.join(room)
            ada.say(room, "over TLS")
            assert ada.expect("message")["seq"] == 1
        with pytest.raises(Unavailable, match="certificate"):
            connect_to(f"rediss://localhost:{port}")


def free(tmp_path: Path) -> int:
    """Port of the server that logs there."""
    words = (tmp_path / "server" / "server.log").read_text()
    return int(words.split(" is at http://127.0.0.1:")[1].split("/")[0])


def test_sentinel_addresses_are_read() -> None:
    address = parse_address(
        "redis+sentinel://user:secret@one:26380,[::1],three/chat/4?sentinel_password=other&health_check_interval=5"
    )
    assert address.sentinels is not None and address.sentinels.service == "chat"
    assert address.sentinels.hosts == (("one", 26380), ("::1", 26379), ("three", 26379))
    assert address.sentinels.options == {"password": "other"}
    assert (address.username, address.password, address.database) == ("user", "secret", 4)
    assert address.shown == "redis+sentinel://one:26380,::1:26379,three:26379/chat"
    assert parse_address("rediss+sentinel://one/chat").tls is not None
    for url in ("redis+sentinel://one", "redis+sentinel://one:port/chat", "redis+sentinel:///chat"):
        with pytest.raises(StartError):
            parse_address(url)
    with pytest.raises(StartError) as refused:
        parse_address("redis+sentinel://user:secret@one")
    assert "secret" not in str(refused.value)
