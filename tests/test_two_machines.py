"""Two machines, as two network namespaces of this one: a server in each, and one store that both reach."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from bench.processes import Server, free_port, running_server
from bench.redis_cluster import find_cluster_binary, running_cluster
from tests.support import SLOWNESS, Person
from tests.test_cluster import slot_of
from tests.test_failover import running_store, wait_until_up

# Of the networks that RFC 2544 keeps for tests of equipment: no other machine has such an address.
# Two runs at a time do not share one.
NETWORK, FIRST = "198.18", os.getpid() % 125 * 2
STORE_HOST = f"{NETWORK}.{FIRST}.1"
OPTIONS = (f"--drain-seconds={0.3 * SLOWNESS:g}", "--messages-per-second=0", "--joins-per-second=0")
ROOMS = [f"room {number}" for number in range(30)]


class Machine(NamedTuple):
    """A namespace with an address of its own; ``wrapper`` runs a command in it."""

    host: str
    wrapper: tuple[str, ...]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@contextlib.contextmanager
def running_machine(number: int) -> Iterator[Machine]:
    """A namespace, linked to the one of the tests; whatever happens, nothing of it is left."""
    name = f"chat{os.getpid()}n{number}"
    ours, theirs = f"ch{os.getpid()}o{number}", f"ch{os.getpid()}t{number}"
    gateway, host = f"{NETWORK}.{number}.1", f"{NETWORK}.{number}.2"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "delete", name)  # the link goes with it
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
        # Gone with the namespace once its other end is there.
        stack.callback(subprocess.run, ["ip", "link", "delete", ours], capture_output=True, timeout=20)
        ip("link", "set", theirs, "netns", name)
        ip("address", "add", f"{gateway}/30", "dev", ours)
        ip("link", "set", ours, "up")
        for words in (
            ("address", "add", f"{host}/30", "dev", theirs),
            ("link", "set", theirs, "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", gateway),
        ):
            ip("-netns", name, *words)
        yield Machine(host, ("ip", "netns", "exec", name))


def remove_leftovers() -> None:
    """Namespaces of a run that was killed."""
    for line in subprocess.check_output(["ip", "netns", "list"], text=True, timeout=20).splitlines():
        found = re.match(r"chat(\d+)n\d+\b", line)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            ip("netns", "delete", found[0])


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed; `apt-get install iproute2`")
    with contextlib.ExitStack() as stack:
        try:
            remove_leftovers()
            first, second = (stack.enter_context(running_machine(number)) for number in (FIRST, FIRST + 1))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield first, second


@contextlib.contextmanager
def two_servers(
    machines: tuple[Machine, Machine], folder: Path, url: str
) -> Iterator[tuple[tuple[str, Server], tuple[str, Server]]]:
    """A server on each machine, with its address."""
    with contextlib.ExitStack() as stack:
        first, second = (
            (
                machine.host,
                stack.enter_context(
                    running_server(
                        folder / machine.host,
                        f"--redis={url}",
                        *OPTIONS,
                        workers=1,
                        host=machine.host,
                        wrapper=machine.wrapper,
                    )
                ),
            )
            for machine in machines
        )
        yield first, second


def assert_machines_are_one_chat(servers: tuple[tuple[str, Server], tuple[str, Server]]) -> None:
    """Messages cross, presence spans both, and whoever is cut off on one resumes on the other."""
    (here, one), (there, other) = servers
    with Person(one.port, "Ada", host=here) as ada, Person(other.port, "Bob", host=there) as bob:
        epochs = {}
        for room in ROOMS:
            epochs[room] = ada.join(room)["epoch"]
            assert bob.join(room)["epoch"] == epochs[room]
        told: dict[str, set[str]] = {}
        while len(told) < len(ROOMS):  # in any order
            event = ada.expect("presence", timeout=10, people=2)
            told[event["room"]] = {user["name"] for user in event["joined"]}
        assert all("Bob" in names for names in told.values())
        for room in ROOMS:
            bob.command(type="who", room=room)
            assert {user["name"] for user in bob.expect("who", room=room)["users"]} == {"Ada", "Bob"}
        for room in ROOMS:
            ada.say(room, "from here")
        assert [message["room"] for message in _sorted(bob.messages(len(ROOMS)))] == sorted(ROOMS)
        for room in ROOMS:
            bob.say(room, "from there")
        answers = ada.messages(2 * len(ROOMS))
        assert {(m["room"], m["seq"], m["text"]) for m in answers} == {
            (room, seq, text) for room in ROOMS for seq, text in ((1, "from here"), (2, "from there"))
        }
        bob.messages(len(ROOMS))  # his own
        bob.socket.socket.close()  # without a word
        for room in ROOMS:
            ada.say(room, "while nobody hears")
        ada.messages(len(ROOMS))
        with Person(one.port, token=bob.welcome["session"], host=here) as again:
            assert again.user == bob.user
            for room in ROOMS:
                joined = again.join(room, after={"epoch": epochs[room], "seq": 2})
                assert (joined["missing"], joined["truncated"], joined["epoch"]) == (1, False, epochs[room])
                assert again.expect("message", room=room)["text"] == "while nobody hears"


def _sorted(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(messages, key=lambda message: message["room"])


def test_two_machines_with_one_redis_are_one_chat(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    binary = find_cluster_binary()
    if binary is None:
        pytest.skip("redis-server is not installed; `apt-get install redis-server`")
    port = free_port()
    options = ("--port", str(port), "--bind", STORE_HOST, "--protected-mode", "no")
    with running_store(tmp_path / "store", *options, binary=binary), redis.Redis(STORE_HOST, port) as client:
        wait_until_up(client)
        with two_servers(machines, tmp_path, f"redis://{STORE_HOST}:{port}") as servers:
            assert_machines_are_one_chat(servers)


@pytest.mark.faults
def test_two_machines_with_a_redis_cluster_are_one_chat_and_see_a_master_replaced(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    if find_cluster_binary() is None:
        pytest.skip("redis-server is not installed; `apt-get install redis-server`")
    with (
        running_cluster(tmp_path / "cluster", host=STORE_HOST) as cluster,
        # One of the servers is enough: it tells of the others.
        two_servers(machines, tmp_path, f"redis+cluster://{STORE_HOST}:{cluster.nodes[4].port}") as servers,
    ):
        assert_machines_are_one_chat(servers)
        (here, one), (there, other) = servers
        with Person(one.port, "Ada", host=here) as ada, Person(other.port, "Bob", host=there) as bob:
            seqs = {}
            for room in ROOMS:
                seqs[room] = ada.join(room, history=0)["seq"]
                bob.join(room, history=0)
            victim = cluster.owner(slot_of(ROOMS[0]))
            cluster.replicate(victim)
            victim.process.kill()
            for person in (ada, bob):
                person.expect("status", broker="down", timeout=20)
                person.expect("status", broker="up", timeout=30)
            for room in ROOMS:
                ada.say(room, "after")
            for person in (ada, bob):
                found = person.messages(len(ROOMS), timeout=20)
                assert {(m["room"], m["seq"], m["text"]) for m in found} == {
                    (room, seqs[room] + 1, "after") for room in ROOMS
                }
