"""The event loop of a worker: asyncio's own, with the worker's epoll for a selector.

Whatever concerns members and the store alone is handled inside ``select`` (see ``_poller``) and never
becomes a callback of asyncio; everything else (HTTP, timers, tasks) works as on any loop. The loop's
public methods are all that is used: ``select`` returns when one of them gave the loop something to do.

``publisher`` and ``redis_link`` ask this module for what such a loop can do, and get the plain asyncio
way on any other loop (tests, systems without epoll).
"""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, TypeVarTuple

try:
    from tornadochat._poller import Poller, Stream
except ImportError:  # systems without epoll
    Poller = None  # type: ignore[assignment, misc]

Args = TypeVarTuple("Args")


class PollerSelector(selectors.BaseSelector):
    """A ``Poller`` in the form that asyncio wants."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See ``selectors.BaseSelector``."""
        fd = fd_of(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self.poller.watch(fd, epoll_events(events), False)
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See ``selectors.BaseSelector``."""
        key = self._keys.pop(fd_of(fileobj))
        self.poller.forget(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See ``selectors.BaseSelector``."""
        former = self._keys[fd_of(fileobj)]
        if events != former.events:
            self.poller.watch(former.fd, epoll_events(events), True)
        key = self._keys[former.fd] = former._replace(events=events, data=data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See ``selectors.BaseSelector``; handles members and the store meanwhile."""
        found = self.poller.wait(timeout)
        if not found:
            return []
        keys, ready = self._keys, []
        for fd, events in found:
            key = keys.get(fd)
            if key is not None:  # else it was let go of in the same turn
                ready.append((key, selector_events(events) & key.events))
        return ready

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """See ``selectors.BaseSelector``."""
        return self._keys[fd_of(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """See ``selectors.BaseSelector``; by descriptor."""
        return self._keys

    def close(self) -> None:
        """See ``selectors.BaseSelector``."""
        self._keys.clear()


class WorkerLoop(asyncio.SelectorEventLoop):
    """See the module. To be made in the process that runs it: an epoll must not be shared by a fork.

    Args:
        turn_interval: See ``Poller``.
    """

    def __init__(self, turn_interval: float = 0.0) -> None:
        self.poller = Poller(turn_interval)
        super().__init__(PollerSelector(self.poller))

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """See ``asyncio.AbstractEventLoop``."""
        self.poller.interrupted = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See ``asyncio.AbstractEventLoop``."""
        self.poller.interrupted = True  # it may be due before what the selector waits for
        return super().call_at(when, callback, *args, context=context)


def new_loop(turn_interval: float = 0.0) -> asyncio.AbstractEventLoop:
    """The loop of a worker: a ``WorkerLoop`` where there is epoll, else asyncio's."""
    return asyncio.new_event_loop() if Poller is None else WorkerLoop(turn_interval)


def at_end_of_turn(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], object]], object]:
    """How to call something back once everything that came with this turn of the loop is handled."""
    return loop.poller.at_end if isinstance(loop, WorkerLoop) else loop.call_soon


async def open_stream(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.Protocol,
    address: str | tuple[str, int],
    tls: Any = None,
    late: bool = False,
) -> Any:
    """Connect; on a ``WorkerLoop`` without TLS the socket is read and written by its poller.

    Args:
        loop: The running one.
        protocol: Gets ``data_received`` and ``connection_lost``.
        address: Path of a unix socket, or host and port.
        tls: An ``ssl.SSLContext``, or None.
        late: See ``Stream``; any other loop reads it as it comes.

    Returns:
        Something with ``write(bytes)`` and ``abort()``.

    Raises:
        OSError: It cannot be reached.
    """
    if not isinstance(loop, WorkerLoop) or tls is not None:
        if isinstance(address, str):
            return (await loop.create_unix_connection(lambda: protocol, address))[0]
        return (await loop.create_connection(lambda: protocol, *address, ssl=tls))[0]
    sock = await _connected(loop, address)
    return Stream(loop.poller, sock.detach(), protocol, late)


async def _connected(loop: asyncio.AbstractEventLoop, address: str | tuple[str, int]) -> socket.socket:
    """A connected non-blocking socket; the first address of a name that answers."""
    if isinstance(address, str):
        places: list[Any] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address)]
    else:
        places = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
    problem: OSError = OSError(f"no address was found for {address!r}")
    for family, kind, number, _name, place in places:
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, place)
        except OSError as error:
            problem = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def fd_of(fileobj: Any) -> int:
    """The descriptor of a number or a file.

    Raises:
        ValueError: It has none.
    """
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if not isinstance(fd, int) or fd < 0:
        raise ValueError(f"{fileobj!r} has no descriptor")
    return fd


def epoll_events(events: int) -> int:
    """What epoll is asked for."""
    reads, writes = events & selectors.EVENT_READ, events & selectors.EVENT_WRITE
    return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)


def selector_events(events: int) -> int:
    """What epoll says; an error or a hang-up wakes readers and writers, as in ``selectors``."""
    reads = selectors.EVENT_READ if events & ~select.EPOLLOUT else 0
    return reads | (selectors.EVENT_WRITE if events & ~select.EPOLLIN else 0)
