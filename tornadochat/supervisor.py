"""The parent process: sockets, the embedded store, the workers, and what signals do to them.

After ``cli``, before ``worker``. It serves nobody itself and holds no loop, no connection and no epoll,
so that nothing is shared by accident with what it forks. Every fork goes through
``tornado.process.fork_processes``, which the parent leaves again as soon as all children exist: left to
itself it would sit in ``os.wait()``, pass no signal on and give up after 100 restarts.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import tornado.process
from tornado.process import cpu_count, fork_processes

from tornadochat import __version__, metrics, system_limits
from tornadochat.embedded import EmbeddedStore
from tornadochat.errors import StartError
from tornadochat.handover import Handover
from tornadochat.handshake import in_networks, parse_networks
from tornadochat.homes import Homes
from tornadochat.listening import check_port_free, listen
from tornadochat.processes import end_with_parent, raise_file_limit
from tornadochat.store_check import check_store

if TYPE_CHECKING:
    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

WorkerMain = Callable[..., int]
# After the drain a worker still flushes what it has published; then it is killed.
KILL_AFTER_DRAIN_SECONDS = 5.0
# A slot whose worker dies before it was ever ready waits this long, twice as long each time.
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.1, 10.0
# The embedded store is looked at this often besides on SIGCHLD.
WATCH_SECONDS = 0.5
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


# The parent tries to leave ``fork_processes`` this often once all children exist.
LEAVE_SECONDS = 0.005


class _Forked(Exception):
    """Raised by a signal handler to leave ``fork_processes``; the last child sends SIGUSR1."""


class Child:
    """One worker process.

    Attributes:
        pid: Of the process.
        pipe: Read end of its status pipe: lines as ``worker.run`` writes them, end of file when it is gone.
        ready: Whether it accepts connections.
        leaving: Whether it was told to drain.
    """

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.pipe = pipe
        self.ready = False
        self.leaving = False

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Slot:
    """A listening socket and the workers on it: one, or two while one replaces the other."""

    def __init__(self, index: int, sock: socket.socket) -> None:
        self.index = index
        self.sock: socket.socket | None = sock
        self.children: list[Child] = []
        self.generation = 0
        self.failures = 0
        self.retry_at: float | None = None


class Supervisor:
    """See the module.

    Args:
        settings: Of the whole server.
        worker_main: Entry point of a worker, see ``worker.run``.
        announce: Prints what a person should know once the chat can be opened.
    """

    def __init__(
        self, settings: Settings, worker_main: WorkerMain, announce: Callable[[str], None] = print
    ) -> None:
        self.settings = settings
        self._worker_main = worker_main
        self._announce = announce
        self._slots: list[Slot] = []
        self._homes: Homes | None = None
        self._handover: Handover | None = None
        self._store: EmbeddedStore | None = None
        self._store_url = settings.redis
        self._metrics_dir: Path | None = None
        self._rolling: list[Slot] = []
        self._stopping_until: float | None = None
        self._announced = False
        self._forking = self._all_forked = False
        self._wakeup: tuple[int, int] | None = None
        self._port = settings.port
        self._files = 0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status.

        Raises:
            StartError: It cannot start; the message says what to change. Nothing is left running.
        """
        self._files = raise_file_limit()
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._port = check_port_free(self.settings.host, self.settings.port)
            self._start_store()
            self._metrics_dir = metrics.prepare()
            stack.callback(shutil.rmtree, self._metrics_dir, ignore_errors=True)
            count = self.settings.workers or cpu_count()
            self._slots = [Slot(index, listen(self.settings.host, self._port)) for index in range(count)]
            if self.settings.gather and count > 1 and hasattr(select, "epoll"):  # else nobody can move
                self._homes, self._handover = Homes(count), Handover(count)
            self._catch_signals()
            gc.collect()
            gc.freeze()  # what the parent has made stays in pages that the workers share
            self._fork(self._slots, self.settings.workers)
            self._watch()
        return 0

    def _start_store(self) -> None:
        if self.settings.redis:
            check_store(self.settings.redis)
            return
        self._store = EmbeddedStore(self.settings.data_dir, self.settings.durable)
        self._store_url = self._store.start()

    def _end(self) -> None:
        """Whatever happened: no worker is left, and the store ends last."""
        for slot in self._slots:
            for child in slot.children:
                child.signal(signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
            if slot.sock is not None:
                slot.sock.close()
        if self._handover is not None:
            self._handover.close()
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for descriptor in self._wakeup:
                os.close(descriptor)
            self._wakeup = None
        if self._store is not None:
            self._store.stop()

    # Forking ---------------------------------------------------------------------------------------

    def _fork(self, slots: list[Slot], count: int = 1) -> None:
        """Start one worker on each of these slots, ``count`` in number; 0 is one for each core, as
        ``fork_processes`` has it. In a worker this does not return."""
        parent = os.getpid()
        pipes = [os.pipe() for _ in slots]
        self._forking, self._all_forked = True, False
        # Until the parent has left; see ``_leave_fork``.
        signal.setitimer(signal.ITIMER_REAL, LEAVE_SECONDS, LEAVE_SECONDS)
        number = None
        with contextlib.suppress(_Forked, RuntimeError, SystemExit):
            try:
                # A death before the parent has left ends the wait as well.
                number = fork_processes(count, max_restarts=0)
            finally:
                self._forking = False
        if number is not None:
            self._become_worker(slots, number, pipes, parent)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for slot, (reader, writer) in zip(slots, pipes, strict=True):
            os.close(writer)
            self._adopt(slot, reader)

    def _adopt(self, slot: Slot, reader: int) -> None:
        """Learn a child's process id, the first thing that it writes."""
        slot.generation += 1
        slot.retry_at = None
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(reader, 1)
            if not piece:
                break
            line += piece
        if not line.strip().isdigit():
            os.close(reader)
            self._schedule_retry(slot)
            return
        os.set_blocking(reader, False)
        slot.children.append(Child(int(line), reader))

    def _become_worker(self, slots: list[Slot], number: int, pipes: list[tuple[int, int]], parent: int) -> None:
        status = 1
        try:
            end_with_parent(parent)
            slot, writer = slots[number], pipes[number][1]
            os.write(writer, b"%d\n" % os.getpid())
            if number == len(slots) - 1:
                os.kill(parent, signal.SIGUSR1)
            self._shed(slot, pipes, writer)
            assert slot.sock is not None and self._metrics_dir is not None
            status = self._worker_main(
                settings=self.settings,
                slot=slot.index,
                sock=slot.sock,
                store_url=self._store_url,
                metrics_dir=self._metrics_dir,
                tell=lambda text: os.write(writer, text.encode("utf-8") + b"\n"),
                generation=slot.generation,
                homes=self._homes,
                handover=self._handover,
            )
        except StartError as error:
            log.error("worker %d cannot start: %s", number, error)
        except BaseException:
            log.exception("worker %d failed", number)
        finally:
            # No cleanup of what belongs to the parent: its store, its folder, its sockets.
            logging.shutdown()
            os._exit(status)

    def _shed(self, slot: Slot, pipes: list[tuple[int, int]], writer: int) -> None:
        """Let go, in a worker, of what only the parent needs."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C and a closed terminal reach the whole process group; the parent alone decides.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        mine = {descriptor for pair in pipes for descriptor in pair} - {writer}
        mine.update(child.pipe for other in self._slots for child in other.children)
        mine.update(self._wakeup or ())
        for descriptor in mine:
            os.close(descriptor)
        for other in self._slots:
            if other is not slot and other.sock is not None:
                other.sock.close()

    # Signals ---------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        reader, writer = os.pipe()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        self._wakeup = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, lambda _number, _frame: None)
        for number in (signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, self._leave_fork)

    def _leave_fork(self, number: int, frame: FrameType | None) -> None:
        self._all_forked = self._all_forked or number == signal.SIGUSR1
        # Within a fork's own callbacks Python would swallow it, and print a traceback; the alarm
        # comes again.
        waits = frame is not None and frame.f_code.co_filename == tornado.process.__file__
        if self._forking and self._all_forked and waits:
            raise _Forked

    def _watch(self) -> None:
        """Handle signals, deaths and messages of the workers until everything has ended."""
        assert self._wakeup is not None
        reader = self._wakeup[0]
        while any(slot.children for slot in self._slots) or self._stopping_until is None:
            pipes = {child.pipe: (slot, child) for slot in self._slots for child in slot.children}
            poll = select.poll()  # select.select ends at 1,024 descriptors
            for descriptor in (reader, *pipes):
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(self._pause() * 1000):
                if descriptor == reader:
                    self._handle_signals(os.read(reader, 4096))
                elif descriptor in pipes:
                    self._hear(*pipes[descriptor])
            self._reap()
            self._act()

    def _pause(self) -> float:
        now = time.monotonic()
        times = [slot.retry_at for slot in self._slots if slot.retry_at is not None]
        if self._stopping_until is not None:
            times.append(self._stopping_until)
        return max(0.0, min([WATCH_SECONDS, *(at - now for at in times)]))

    def _handle_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop()
            elif number == signal.SIGHUP and self._stopping_until is None and not self._rolling:
                log.info("replacing the workers one after the other")
                self._rolling = list(self._slots)
                self._replace_next()

    def _stop(self) -> None:
        children = [child for slot in self._slots for child in slot.children]
        if self._stopping_until is not None:
            log.warning("asked twice: ending at once")
            self._stopping_until = time.monotonic()
            return
        log.info("ending; members get %g s to move elsewhere", self.settings.drain_seconds)
        self._stopping_until = time.monotonic() + self.settings.drain_seconds + KILL_AFTER_DRAIN_SECONDS
        for child in children:
            child.leaving = True
            child.signal(signal.SIGTERM)

    # Workers ---------------------------------------------------------------------------------------

    def _hear(self, slot: Slot, child: Child) -> None:
        try:
            said = os.read(child.pipe, 4096)
        except BlockingIOError:
            return
        for line in said.decode("utf-8").splitlines():
            word, _, rest = line.partition(" ")
            if word == "ready" and not child.ready:
                child.ready = True
                slot.failures = 0
                self._on_ready(slot, child, rest)
            elif word == "draining" and not child.leaving:
                # Somebody else told it to: connections must not wait until it is gone.
                child.leaving = True
                if self._stopping_until is None and child is slot.children[-1]:
                    self._fork([slot])

    def _on_ready(self, slot: Slot, child: Child, capacity: str) -> None:
        for older in slot.children[: slot.children.index(child)]:
            older.leaving = True
            older.signal(signal.SIGTERM)
        if slot.children == [child]:
            self._replaced(slot)
        if not self._announced and all(any(child.ready for child in other.children) for other in self._slots):
            self._announced = True
            self._announce(self._banner(capacity))
            self._warn_of_limits(int(capacity))

    def _warn_of_limits(self, capacity: int) -> None:
        """Say which limit of the system is met first, unless it is far away."""
        settings = self.settings
        bound = system_limits.first_bound(
            workers=len(self._slots),
            files=self._files,
            capacity=capacity,
            chosen=bool(settings.max_connections),
            proxied=in_networks("127.0.0.1", parse_networks(settings.trusted_proxies)),
        )
        if bound.members < system_limits.PLENTY:
            log.warning("%s", bound)
        if advice := system_limits.backlog_advice():
            log.warning("%s", advice)

    def _replaced(self, slot: Slot) -> None:
        """The slot has one worker, and it is ready: a rolling restart goes on with the next slot."""
        if self._rolling[:1] == [slot]:
            self._rolling.pop(0)
            self._replace_next()

    def _banner(self, capacity: str) -> str:
        settings = self.settings
        scheme = "https" if settings.tls else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{host}]" if ":" in host else host
        store = f"embedded, in {settings.data_dir}"
        if settings.redis:
            from tornadochat.store_address import parse_address

            store = parse_address(settings.redis).shown
        lines = [
            f"tornadochat {__version__} is at {scheme}://{host}:{self._port}/",
            f"  workers: {len(self._slots)}, each with room for {capacity} members",
            f"  store:   {store}",
        ]
        if settings.host in ("127.0.0.1", "::1", "localhost"):
            lines.append("  Only this machine can open it; --host 0.0.0.0 opens it to others.")
        return "\n".join(lines)

    def _reap(self) -> None:
        for slot in self._slots:
            for child in tuple(slot.children):
                try:
                    pid, status = os.waitpid(child.pid, os.WNOHANG)
                except ChildProcessError:
                    pid, status = child.pid, -1  # fork_processes has waited for it
                if pid:
                    slot.children.remove(child)
                    os.close(child.pipe)
                    self._on_death(slot, child, status)

    def _on_death(self, slot: Slot, child: Child, status: int) -> None:
        if self._stopping_until is not None:
            return
        if self._homes is not None and not any(other.ready and not other.leaving for other in slot.children):
            self._homes.shut_out(slot.index)  # until there is a successor
        if child.leaving:
            log.info("worker %d (process %d) has drained", slot.index, child.pid)
        else:
            log.warning("worker %d (process %d) %s", slot.index, child.pid, _how(status))
            if slot in self._rolling and not child.ready:
                log.error("the replacement stops here: the new worker did not start")
                self._rolling = []
        if slot.children:
            if slot.children[-1].ready:
                self._replaced(slot)
        elif child.ready:
            self._fork([slot])
        else:
            self._schedule_retry(slot)

    def _schedule_retry(self, slot: Slot) -> None:
        """A worker did not start: let no connection wait for it, and try again later."""
        if slot.sock is not None and len(self._slots) > 1:
            slot.sock.close()
            slot.sock = None
        if self._homes is not None and self._handover is not None and not slot.children:
            self._homes.shut_out(slot.index)
            self._handover.empty(slot.index)
        pause = min(FIRST_BACKOFF_SECONDS * 2**slot.failures, LAST_BACKOFF_SECONDS)
        slot.failures = min(slot.failures + 1, 20)
        slot.retry_at = time.monotonic() + pause
        log.error("worker %d could not start; trying again in %.1f s", slot.index, pause)

    def _replace_next(self) -> None:
        """Start a successor on the next slot; its predecessor drains once it is ready."""
        while self._rolling and self._rolling[0].sock is None:
            self._rolling.pop(0)
        if self._rolling:
            self._fork([self._rolling[0]])
        else:
            log.info("all workers are replaced")

    def _act(self) -> None:
        """What is due by the clock."""
        now = time.monotonic()
        if self._stopping_until is not None:
            if now >= self._stopping_until:
                for slot in self._slots:
                    for child in slot.children:
                        log.warning("worker %d did not end in time; it is killed", slot.index)
                        child.signal(signal.SIGKILL)
            return
        for slot in self._slots:
            if slot.retry_at is not None and slot.retry_at <= now:
                self._retry(slot)
        if self._store is not None and not self._store.alive():
            log.error("the embedded store has died; it is started again")
            try:
                self._store.restart()
            except StartError as error:
                log.error("%s", error)

    def _retry(self, slot: Slot) -> None:
        if slot.sock is None:
            try:
                slot.sock = listen(self.settings.host, self._port)
            except StartError as error:
                log.error("%s", error)
                self._schedule_retry(slot)
                return
        self._fork([slot])


def _how(status: int) -> str:
    if status == -1:
        return "has ended"
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with status {os.WEXITSTATUS(status)}"
