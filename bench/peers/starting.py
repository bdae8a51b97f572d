"""Starts a peer with a store of its own, waits until all its workers listen, and ends everything by process id."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import node_packages
from bench.processes import Unavailable, free_port, tree
from tornadochat.embedded import find_binary
from tornadochat.processes import end_with_parent

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
START_SECONDS = 20.0
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one peer runs: its port, its store and a folder for its files."""

    port: int
    store_socket: Path
    store_port: int
    folder: Path
    workers: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One system to compare with.

    Attributes:
        title: Name and kind, for people.
        dialect: What it speaks, see ``bench.dialects``.
        command: Makes the command line that starts it.
        uses_store: Whether its workers meet in Redis.
        tells_ready: Whether each worker prints ``ready``; else its port is tried.
        single: Whether it is one process, however many workers are asked for.

    ``command`` raises ``Unavailable`` where the peer cannot run.
    """

    title: str
    dialect: str
    command: Callable[[Place], list[str]]
    uses_store: bool = True
    tells_ready: bool = True
    single: bool = False


@dataclass(slots=True)
class RunningPeer:
    """A peer that serves, and its processes."""

    dialect: str
    port: int
    roots: list[int]
    store: int | None

    @property
    def pids(self) -> list[int]:
        """All its processes, the store's included."""
        return [pid for root in self.roots for pid in tree(root)]


def _python(module: str, *needed: str, with_store: bool = True) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise Unavailable(f"the Python packages {', '.join(missing)} are not installed")
        options = [f"--port={place.port}", f"--workers={place.workers}"]
        if with_store:
            options.append(f"--store=unix://{place.store_socket}")
        return [sys.executable, "-m", f"bench.peers.{module}", *options]

    return command


def _socketio(place: Place) -> list[str]:
    node, folder = node_packages.install(HERE / "socketio")
    return [node, str(folder / "server.js"), str(place.port), str(place.store_socket), str(place.workers)]


def _socketio_single(place: Place) -> list[str]:
    node, folder = node_packages.install(HERE / "socketio")
    return [node, str(folder / "single.js"), str(place.port)]


def _nchan(with_redis: bool) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None or not NCHAN_MODULE.exists():
            raise Unavailable("nginx with the nchan module is not installed")
        values = {
            "module": str(NCHAN_MODULE),
            "workers": str(place.workers),
            "user": getpass.getuser(),
            "port": str(place.port),
            "upstream": f"upstream store {{ nchan_redis_server redis://127.0.0.1:{place.store_port}; }}"
            if with_redis
            else "",
            "pass": "nchan_redis_pass store;" if with_redis else "",
        }
        text = (HERE / "nginx.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        (place.folder / "nginx.conf").write_text(text)
        return [nginx, "-p", str(place.folder), "-c", "nginx.conf", "-e", "stderr"]

    return command


PEERS = {
    "nchan": Peer("nchan (nginx, C)", "nchan", _nchan(False), uses_store=False, tells_ready=False),
    "nchan-redis": Peer("nchan (nginx, C) + Redis", "nchan", _nchan(True), tells_ready=False),
    "picows": Peer("picows + Redis", "plain", _python("picows_listener", "picows", "uvloop")),
    "websockets": Peer("websockets + Redis", "plain", _python("websockets_broadcast", "websockets", "uvloop")),
    "socketio": Peer("Socket.IO cluster + Redis adapter (Node)", "socketio", _socketio),
    "socketio-single": Peer(
        "Socket.IO, one process (Node)", "socketio", _socketio_single, uses_store=False, single=True
    ),
    "tornado": Peer("Tornado WebSocketHandler + Redis", "plain", _python("tornado_handler")),
    "tornado-single": Peer(
        "Tornado WebSocketHandler, one process",
        "plain",
        _python("tornado_handler", with_store=False),
        uses_store=False,
        single=True,
    ),
    "python-socketio": Peer(
        "python-socketio, uvicorn + Redis", "socketio", _python("python_socketio", "socketio", "uvicorn", "uvloop")
    ),
}


@contextmanager
def start(name: str, workers: int = 2) -> Iterator[RunningPeer]:
    """Start one of ``PEERS`` and its store on loopback; both have ended when the context is left.

    Raises:
        Unavailable: It cannot run here.
        RuntimeError: It ended, or was not ready within 20 seconds; its output is in the message.
    """
    peer = PEERS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tornadochat-peer-")))
        workers = 1 if peer.single else workers
        place = Place(free_port(), folder / "store.sock", free_port(), folder, workers)
        command = peer.command(place)
        store = stack.enter_context(_store(place)) if peer.uses_store else None
        log = folder / "peer.log"
        pid = stack.enter_context(_process(command, log, CHECKOUT if peer.tells_ready else folder))
        _wait(pid, log, lambda: _is_ready(peer, place, log))
        yield RunningPeer(peer.dialect, place.port, [pid] if store is None else [pid, store], store)


@contextmanager
def _store(place: Place) -> Iterator[int]:
    """A Valkey without a file, the same binary as the embedded store."""
    log = place.folder / "store.log"
    command = [
        *(str(find_binary()), "--port", str(place.store_port), "--bind", "127.0.0.1"),
        *("--unixsocket", str(place.store_socket), "--save", "", "--appendonly", "no"),
    ]
    with _process(command, log, place.folder) as pid:
        _wait(pid, log, place.store_socket.exists)
        yield pid


@contextmanager
def _process(command: list[str], log: Path, folder: Path) -> Iterator[int]:
    """A process in a group of its own, which is ended whole."""
    parent = os.getpid()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent, signal.SIGTERM),
        )
    try:
        yield process.pid
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """First the leader, which ends its workers; then, by force, what is left of the group."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_ready(peer: Peer, place: Place, log: Path) -> bool:
    if peer.tells_ready:
        return log.read_text(errors="replace").split().count("ready") >= place.workers
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", place.port)) == 0


def _wait(pid: int, log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        alive = Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()
        if not alive or time.monotonic() > deadline:
            raise RuntimeError(f"the peer did not become ready:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)
