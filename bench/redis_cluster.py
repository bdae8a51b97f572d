"""A Redis Cluster on one machine, for tests and measurements: masters and their replicas, ended by their ids."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.processes import Unavailable

SLOTS = 16384
START_SECONDS = 30.0
# A master is replaced two or three seconds after it is gone.
NODE_TIMEOUT_MS = 2000
# Below the ports that Linux gives to outgoing connections: one of those may be taken before it is used.
PORTS = range(12_000, 32_000)


class ClusterNode:
    """One server."""

    def __init__(self, host: str, port: int, bus_port: int, process: subprocess.Popen[bytes]) -> None:
        self.host = host
        self.port = port
        self.bus_port = bus_port
        self.tls_port = 0
        self.process = process
        self.client = redis.Redis(host=host, port=port, socket_timeout=5)
        self.id = ""

    def run(self, *words: object) -> Any:
        """One command."""
        return self.client.execute_command(*words)  # type: ignore[no-untyped-call]

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def state(self) -> dict[str, str]:
        """What it says of the cluster."""
        found: dict[str, str] = self.run("CLUSTER INFO")
        return found


class Cluster:
    """A running cluster; the first half of ``nodes`` began as masters, the second as their replicas."""

    def __init__(self, nodes: Sequence[ClusterNode]) -> None:
        self.nodes = list(nodes)

    @property
    def url(self) -> str:
        """For ``--redis``."""
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    @property
    def alive(self) -> list[ClusterNode]:
        """Servers that run."""
        return [node for node in self.nodes if node.process.poll() is None]

    def masters(self) -> list[ClusterNode]:
        """Servers that are masters now and run."""
        return [node for node in self.alive if node.client.info("replication")["role"] == "master"]

    def owner(self, slot: int) -> ClusterNode:
        """Master of a slot, as a server that runs has it."""
        ranges = self.alive[0].run("CLUSTER SLOTS")
        for first, last, (_host, port, *_), *_replicas in ranges:
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(f"nobody has slot {slot}")

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        """The server that would take a master's place."""
        for node in self.alive:
            info = node.client.info("replication")
            if info["role"] == "slave" and info["master_port"] == master.port:
                return node
        raise LookupError(f"{master.port} has no replica")

    def wait_well(self) -> None:
        """Wait until every server that runs finds the cluster well."""
        wait_for(lambda: all(node.state["cluster_state"] == "ok" for node in self.alive))

    def replicate(self, master: ClusterNode) -> None:
        """Wait until the replica has everything that its master has written so far."""
        written = master.client.info("replication")["master_repl_offset"]
        replica = self.replica_of(master)
        wait_for(lambda: replica.client.info("replication")["slave_repl_offset"] >= written)

    def move_slot(self, slot: int, to: ClusterNode, during: Callable[[], None] = lambda: None) -> None:
        """Move one slot with its keys, as ``redis-cli --cluster reshard`` does.

        Args:
            slot: Its number.
            to: Its master from now on.
            during: Called while the slot is on its way, before its keys are.
        """
        source = self.owner(slot)
        to.run("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER SETSLOT", slot, "MIGRATING", to.id)
        during()
        while True:
            keys = source.run("CLUSTER GETKEYSINSLOT", slot, 100)
            if not keys:
                break
            source.run("MIGRATE", to.host, to.port, "", 0, 5000, "KEYS", *keys)
        for node in (to, source, *(node for node in self.masters() if node not in (to, source))):
            node.run("CLUSTER SETSLOT", slot, "NODE", to.id)


def wait_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It is not, after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not become so in time")
        time.sleep(0.02)


def quiet_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now, and that no outgoing connection gets."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def find_cluster_binary() -> str | None:
    """Redis 7.0 or newer as Debian has it, or None."""
    return shutil.which("redis-server")


def _binary() -> str:
    found = find_cluster_binary()
    if found is None:
        raise Unavailable("redis-server is not installed; `apt-get install redis-server`")
    return found


@contextmanager
def running_cluster(
    folder: Path,
    *options: str,
    masters: int = 3,
    replicas: int = 1,
    host: str = "127.0.0.1",
    binary: str = "",
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[Cluster]:
    """Start a cluster, wait until it serves all slots and every replica is one; kill it at the end.

    Args:
        folder: Of its files; everything stays below it.
        options: Further options of every server.
        masters: Servers with slots.
        replicas: Of each of them.
        host: Address that all of them listen on and announce.
        binary: Path of redis-server or valkey-server.
        certificate: For ``localhost``, which is what servers then call themselves, and its key: TLS is spoken
            on ``ClusterNode.tls_port`` and between them.

    Raises:
        Unavailable: There is no redis-server.
    """
    program = binary or _binary()
    with ExitStack() as stack:
        nodes = []
        for number in range(masters * (1 + replicas)):
            tls_port = quiet_port() if certificate is not None else 0
            tls = _tls_options(certificate, tls_port) if certificate is not None else ()
            node = _start(program, folder / f"node-{number}", host, (*options, *tls))
            node.tls_port = tls_port
            stack.callback(_stop, node)
            nodes.append(node)
        _join(nodes, masters)
        cluster = Cluster(nodes)
        cluster.wait_well()
        yield cluster


@contextmanager
def running_redis(folder: Path, *options: str, host: str = "127.0.0.1") -> Iterator[ClusterNode]:
    """A single server, no cluster; killed at the end."""
    node = _start(_binary(), folder, host, options, cluster=False)
    try:
        wait_for(lambda: _answers(node))
        yield node
    finally:
        _stop(node)


def _start(program: str, folder: Path, host: str, options: Sequence[str], cluster: bool = True) -> ClusterNode:
    folder.mkdir(parents=True)
    port, bus_port = quiet_port(), quiet_port()
    words = [
        *(program, "--port", port, "--bind", host, "--protected-mode", "no"),
        *("--repl-diskless-sync-delay", 0, "--save", "", "--appendonly", "no"),
        *("--dir", folder, "--logfile", folder / "log", *options),
    ]
    if cluster:
        words += [
            *("--cluster-enabled", "yes", "--cluster-config-file", folder / "nodes.conf"),
            *("--cluster-port", bus_port, "--cluster-announce-ip", host),
            *("--cluster-node-timeout", NODE_TIMEOUT_MS, "--cluster-require-full-coverage", "no"),
        ]
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    return ClusterNode(host, port, bus_port, process)


def _tls_options(certificate: tuple[Path, Path], port: int) -> tuple[str, ...]:
    return (
        *("--tls-port", str(port), "--tls-cluster", "yes", "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1])),
        *("--tls-ca-cert-file", str(certificate[0])),
        *("--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"),
    )


def _stop(node: ClusterNode) -> None:
    node.client.close()
    node.process.kill()
    node.process.wait()


def _join(nodes: Sequence[ClusterNode], masters: int) -> None:
    """Make one cluster of servers that know nothing of each other."""
    for number, node in enumerate(nodes):
        wait_for(lambda node=node: _answers(node))  # type: ignore[misc]
        node.id = bytes(node.run("CLUSTER MYID")).decode("ascii")
        node.run("CLUSTER SET-CONFIG-EPOCH", number + 1)
        if number:
            node.run("CLUSTER MEET", nodes[0].host, nodes[0].tls_port or nodes[0].port, nodes[0].bus_port)
    for number, node in enumerate(nodes[:masters]):
        first, last = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
        node.run("CLUSTER ADDSLOTSRANGE", first, last)
    wait_for(lambda: all(int(node.state["cluster_known_nodes"]) == len(nodes) for node in nodes))
    for number, node in enumerate(nodes[masters:]):
        node.run("CLUSTER REPLICATE", nodes[number % masters].id)
    replicas = len(nodes) // masters - 1
    for master in nodes[:masters]:  # everybody must know whom a replica may replace
        wait_for(lambda id=master.id: all(len(node.run("CLUSTER REPLICAS", id)) == replicas for node in nodes))  # type: ignore[misc]
    for node in nodes[masters:]:
        wait_for(lambda node=node: node.client.info("replication").get("master_link_status") == "up")  # type: ignore[misc]


def _answers(node: ClusterNode) -> bool:
    try:
        return bool(node.client.ping())
    except redis.ConnectionError:
        if node.process.poll() is not None:
            raise RuntimeError(f"a server ended with {node.process.returncode}; see its log") from None
        return False
