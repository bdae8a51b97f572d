"""Starting servers for a measurement, and reading what they cost from /proc."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tornadochat.processes import end_with_parent

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 20.0
STOP_SECONDS = 20.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def loopback(host: str | None) -> tuple[str, int]:
    """Address and port of the server to load.

    Args:
        host: As Locust has it, like ``http://127.0.0.1:8000``.

    Raises:
        ValueError: It is not on this machine. A load of this size is for nobody else's server.
    """
    parts = urlsplit(host or "")
    name = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    try:
        address = ipaddress.IPv4Address(name)
    except ValueError:
        address = None
    if parts.scheme != "http" or address is None or not address.is_loopback:
        raise ValueError(f"the host must be http:// and within 127.0.0.0/8, not {host!r}")
    return str(address), parts.port or 80


def tree(pid: int) -> list[int]:
    """A process and all its descendants that are alive, the parent first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue[0])
        queue.extend(children.get(queue.pop(0), []))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that these processes have used so far, user and system.

    Nanoseconds of the scheduler where the kernel tells them, clock ticks elsewhere.
    """
    total = 0.0
    for pid in pids:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError, ValueError):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: its own pages, and its share of those it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no Pss line")


class KernelMemory(NamedTuple):
    """What the kernel has for TCP, and what is left of the memory.

    Attributes:
        sockets: TCP sockets in use, both ends of a connection within this machine.
        buffer_bytes: Their buffers.
        slab_bytes: All small objects of the kernel, sockets and files among them.
        available_bytes: What a program may still ask for.
    """

    sockets: int
    buffer_bytes: int
    slab_bytes: int
    available_bytes: int


def kernel_memory() -> KernelMemory:
    """A look at /proc/net/sockstat and /proc/meminfo."""
    sockets = buffers = 0
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            sockets = int(words[words.index("inuse") + 1])
            buffers = int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {words[0]: int(words[1]) * 1024 for words in lines}
    return KernelMemory(sockets, buffers, memory["Slab:"], memory["MemAvailable:"])


def command(pid: int) -> str:
    """Command line of a process, for telling workers and store apart; empty once it has ended."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return raw.replace(b"\0", b" ").decode("utf-8", "replace")


class Unavailable(RuntimeError):
    """Something cannot run here; the message is the reason."""


class Server:
    """A running tornadochat and its processes."""

    dialect = "tornadochat"  # of ``bench.dialects``

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def pids(self) -> list[int]:
        """Parent, workers and embedded store."""
        return tree(self.process.pid)

    @property
    def store(self) -> int | None:
        """Process id of the embedded store."""
        return next((pid for pid in self.pids if "valkey" in command(pid)), None)

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for pid in self.pids if pid not in (self.process.pid, self.store)]


@contextmanager
def running_server(
    data_dir: Path,
    *options: str,
    workers: int = 2,
    port: int = 0,
    scheme: str = "http",
    host: str = "127.0.0.1",
    wrapper: Sequence[str] = (),
    start_seconds: float = START_SECONDS,
    stop_seconds: float = STOP_SECONDS,
    tied: bool = False,
) -> Iterator[Server]:
    """Start the server on loopback, wait until every worker is ready, stop it at the end.

    Args:
        data_dir: Folder of its log and store.
        options: Of its command line.
        workers: How many.
        port: 0 for a free one.
        scheme: ``http`` or ``https``.
        host: Address to listen on.
        wrapper: Command that becomes the server, such as ``ip netns exec NAME``.
        start_seconds: Until it is ready, at most.
        stop_seconds: Until it has ended, at most.
        tied: It ends when this thread does, even by SIGKILL, before the context is left.

    Raises:
        RuntimeError: It ended, or was not ready within ``start_seconds``; its output is in the message.
    """
    port = port or free_port()
    log_path = data_dir / "server.log"
    data_dir.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                *(*wrapper, sys.executable, "-m", "tornadochat", f"--host={host}", f"--port={port}"),
                f"--workers={workers}",
                *(f"--data-dir={data_dir}", *options),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=data_dir,
            preexec_fn=(lambda: end_with_parent(parent, signal.SIGTERM)) if tied else None,
        )
    try:
        _wait_ready(process, f"{scheme}://{host}:{port}/readyz", log_path, start_seconds)
        yield Server(process, port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _wait_ready(process: subprocess.Popen[bytes], url: str, log_path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            # The certificate of a test's own server is nobody's business.
            context = ssl._create_unverified_context() if url.startswith("https") else None
            with urllib.request.urlopen(url, timeout=1, context=context) as answer:
                # One worker answers; the line with the address comes once all of them are ready.
                if answer.status == 200 and " is at http" in log_path.read_text("utf-8", "replace"):
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the server did not become ready:\n{log_path.read_text()}")
