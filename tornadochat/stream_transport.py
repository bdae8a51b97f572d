"""The second transport: members over Tornado's IOStream, for TLS and for systems without epoll.

Same place and same promises as ``_reactor`` (see ``transport``), at several times its cost. Frames
are decoded and encoded by ``_fastframe`` here too; only reading, writing and the queues differ.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tornado.iostream import IOStream, StreamClosedError

from tornadochat._fastframe import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    FrameDecoder,
    encode_close,
    encode_frame,
)
from tornadochat.errors import FrameError

if TYPE_CHECKING:
    from tornadochat._fastframe import Batch, Deflater
    from tornadochat.transport import OnClosed, OnDrained, OnGap, OnText

log = logging.getLogger("tornadochat")

READ_BYTES = 64 * 1024
# What the kernel takes beyond a peer's window; see ``_reactor``.
UNSENT_BYTES = 128 * 1024
# Presence and typing are not worth queueing behind more than this; the next ones are absolute again.
PLAIN_BACKLOG_BYTES = 64 * 1024


class Limits(NamedTuple):
    """Bounds of each connection; bytes and seconds, as the options of the same names."""

    max_message_bytes: int
    max_backlog_bytes: int
    max_answer_bytes: int
    replay_bytes: int
    ping_seconds: float
    pong_seconds: float
    close_seconds: float
    stuck_seconds: float


class Queued(NamedTuple):
    """Bytes that wait for the socket."""

    data: bytes
    channel: StreamChannel | None  # None for answers and control frames, which are never dropped
    first_seq: int
    replayed: bool


class Entry:
    """One connection's place in one channel."""

    __slots__ = ("live", "next_seq")

    def __init__(self, next_seq: int, live: bool) -> None:
        self.next_seq = next_seq
        self.live = live


class StreamTransport:
    """All members of this worker that talk through an IOStream."""

    def __init__(
        self,
        limits: Limits,
        *,
        on_text: OnText,
        on_closed: OnClosed,
        on_drained: OnDrained,
        on_gap: OnGap,
        deflater: Deflater | None = None,
    ) -> None:
        self.limits = limits
        self.deflater = deflater
        self.on_text, self.on_closed = on_text, on_closed
        self.on_drained, self.on_gap = on_drained, on_gap
        self.on_work_left: Callable[[], None] | None = None
        self.members: set[StreamConnection] = set()
        self.deliveries = self.messages_received = 0
        self.bytes_sent = self.bytes_received = self.backlog_drops = self.gaps = 0

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self.members)

    def attach(self, stream: IOStream, owner: Any, deflates: bool = False) -> StreamConnection:
        """Take over a stream whose handshake is answered; ``start`` begins to read it."""
        stream.set_nodelay(True)  # batches are made here already
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        connection = StreamConnection(self, stream, owner, deflates)
        self.members.add(connection)
        return connection

    def channel(self, key: Any) -> StreamChannel:
        """See ``transport.Transport``."""
        return StreamChannel(self, key)

    def tick(self, now: float) -> None:
        """See ``transport.Transport``."""
        for connection in tuple(self.members):
            connection.check_time(now)

    def close(self) -> None:
        """See ``transport.Transport``."""
        for connection in tuple(self.members):
            connection.abort()


class StreamConnection:
    """See ``transport.Connection``."""

    __slots__ = (
        "_answer_bytes",
        "_closing_since",
        "_decoder",
        "_gapped",
        "_heard",
        "_may_read",
        "_ping_at",
        "_progress",
        "_queue",
        "_replay_bytes",
        "_room_bytes",
        "_stream",
        "_task",
        "_told_code",
        "_transport",
        "_writing",
        "channels",
        "closed",
        "deflates",
        "owner",
        "replaying",
    )

    def __init__(self, transport: StreamTransport, stream: IOStream, owner: Any, deflates: bool) -> None:
        now = time.monotonic()
        self.owner = owner
        self.closed = False
        self.deflates = deflates and transport.deflater is not None
        self.channels: set[StreamChannel] = set()
        self._transport = transport
        self._stream = stream
        self._decoder = FrameDecoder(transport.limits.max_message_bytes, deflates=deflates)
        self._queue: deque[Queued] = deque()
        self._answer_bytes = self._room_bytes = self._replay_bytes = 0
        self._gapped: set[StreamChannel] = set()
        self.replaying = False  # ``on_drained`` is owed
        self._writing = False
        self._heard = self._progress = now
        # The first ping comes at a random point of the interval, so that pings spread by themselves.
        self._ping_at = now + random.uniform(0, transport.limits.ping_seconds)
        self._closing_since: float | None = None
        self._told_code = 0
        self._task: asyncio.Task[None] | None = None
        self._may_read = asyncio.Event()
        self._may_read.set()

    # Reading -----------------------------------------------------------------------------------

    def start(self, received: bytes) -> None:
        """Handle what came behind the handshake, then read until the end."""
        self._task = asyncio.ensure_future(self._read(received))

    async def _read(self, data: bytes) -> None:
        try:
            while not self.closed:
                if data:
                    self._heard = time.monotonic()
                    self._transport.bytes_received += len(data)
                    self._feed(data)
                await self._may_read.wait()
                if not self.closed:
                    data = await self._stream.read_bytes(READ_BYTES, partial=True)
        except StreamClosedError:
            self._finish(1006, "")
        except Exception:
            log.exception("a member's handler failed; its connection is closed")
            self.close(1011, "internal error")

    def _feed(self, data: bytes) -> None:
        try:
            for opcode, payload in self._decoder.feed(data):
                self._handle(opcode, payload)
                if self.closed:
                    return
            self._decoder.feed(b"")
        except FrameError as error:
            self.close(error.code, error.reason)

    def _handle(self, opcode: int, payload: bytes) -> None:
        if opcode == OP_CLOSE:
            self._on_close_frame(payload)
        elif self._closing_since is not None:
            return
        elif opcode == OP_TEXT:
            self._transport.messages_received += 1
            self._transport.on_text(self.owner, payload)
        elif opcode == OP_BINARY:
            self.close(1003, "text messages only")
        elif opcode == OP_PING:
            self._answer(encode_frame(OP_PONG, payload))

    def _on_close_frame(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if payload else 1005
        reason = payload[2:].decode("utf-8")
        if self._closing_since is None:
            self._answer(encode_close(1000 if code == 1005 else code))
        self._told_code = code
        self._closing_since = time.monotonic()
        if self._writing:
            return  # the echo goes out first; check_time ends what never drains
        self._finish(code, reason)

    # Writing -----------------------------------------------------------------------------------

    def send_text(self, payload: bytes) -> None:
        """See ``transport.Connection``."""
        if self._closing_since is None:
            self._answer(encode_frame(OP_TEXT, payload))

    def _answer(self, data: bytes) -> None:
        if self.closed:
            return
        if self._answer_bytes + len(data) > self._transport.limits.max_answer_bytes:
            if self._closing_since is None:
                self._queue.clear()
                self._answer_bytes = self._room_bytes = self._replay_bytes = 0
                self.close(1013, "answers are not being read")
            return
        self._answer_bytes += len(data)
        self._enqueue(Queued(data, None, 0, False))

    def send_event(self, channel: StreamChannel, data: bytes, first_seq: int, replayed: bool) -> None:
        """Queue room events; above the backlog's bound they become a gap."""
        if self._closing_since is not None or self.closed:
            return
        self._room_bytes += len(data)
        if replayed:
            self._replay_bytes += len(data)
        self._enqueue(Queued(data, channel, first_seq, replayed))
        if self._room_bytes > self._transport.limits.max_backlog_bytes:
            self._drop_room_events()

    @property
    def backlog(self) -> int:
        """Bytes that wait for the socket."""
        return self._answer_bytes + self._room_bytes

    @property
    def replay_in_flight(self) -> int:
        """Replayed bytes that wait for the socket."""
        return self._replay_bytes

    def _drop_room_events(self) -> None:
        kept: deque[Queued] = deque()
        for item in self._queue:
            if item.channel is None:
                kept.append(item)
                continue
            self._transport.backlog_drops += 1
            self._room_bytes -= len(item.data)
            self._replay_bytes -= len(item.data) if item.replayed else 0
            entry = item.channel.entries.get(self)
            if item.first_seq and entry is not None:
                if item.channel not in self._gapped:
                    self._gapped.add(item.channel)
                    entry.next_seq = item.first_seq
                entry.live = False
        self._queue = kept

    def _enqueue(self, item: Queued) -> None:
        self._queue.append(item)
        if not self._writing:
            self._progress = time.monotonic()
            self._write_next()

    def _write_next(self) -> None:
        """Write one item; the stream calls back when the socket has taken it whole."""
        if not self._queue or self.closed:
            return
        item = self._queue.popleft()
        self._writing = True
        try:
            written = self._stream.write(item.data)
        except StreamClosedError:
            self._finish(1006, "")
            return
        written.add_done_callback(lambda future: self._wrote(future, item))

    def _wrote(self, future: asyncio.Future[None], item: Queued) -> None:
        self._writing = False
        if future.exception() is not None:
            self._finish(1006, "")
            return
        size, limits = len(item.data), self._transport.limits
        self._progress = time.monotonic()
        self._transport.bytes_sent += size
        if item.channel is None:
            self._answer_bytes = max(0, self._answer_bytes - size)
        else:
            self._room_bytes -= size
            self._replay_bytes -= size if item.replayed else 0
        self._write_next()
        if not self._writing and self._told_code:
            self._finish(self._told_code, "")
        elif not self._writing and self._gapped:
            self._tell_gaps()
        if self.replaying and not self.closed and self._replay_bytes <= limits.replay_bytes // 2:
            self.replaying = False
            self._transport.on_drained(self.owner)

    def _tell_gaps(self) -> None:
        gapped, self._gapped, self.replaying = self._gapped, set(), False
        found = [(channel.key, channel.entries[self].next_seq) for channel in gapped if self in channel.entries]
        self._transport.gaps += len(found)
        if found:
            self._transport.on_gap(self.owner, found)

    # The end -----------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """See ``transport.Connection``."""
        if held:
            self._may_read.clear()
        else:
            self._may_read.set()

    def close(self, code: int, reason: str = "") -> None:
        """See ``transport.Connection``."""
        if self.closed or self._closing_since is not None:
            return
        self._answer(encode_close(code, reason))
        self._closing_since = time.monotonic()

    def abort(self) -> None:
        """See ``transport.Connection``."""
        self._finish(1006, "")

    def _finish(self, code: int, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._queue.clear()
        self._transport.members.discard(self)
        self._stream.close()
        try:
            self._transport.on_closed(self.owner, code, reason)
        except Exception:
            log.exception("the handler of a closed connection failed")
        for channel in tuple(self.channels):
            channel.leave(self)

    def check_time(self, now: float) -> None:
        """Ping a silent peer, end one that vanished, is stuck, or does not answer a close."""
        limits = self._transport.limits
        if self._closing_since is not None:
            if now - self._closing_since > limits.close_seconds:
                self._finish(1006, "")
        elif self._writing:
            # What the socket takes the peer has read: it lives, until it takes nothing for too long.
            if now - self._progress > limits.stuck_seconds:
                self.close(1013, "the connection is stuck")
        elif now - self._heard > limits.ping_seconds + limits.pong_seconds:
            self._finish(1006, "")
        elif now >= self._ping_at:
            self._ping_at = max(now, self._heard) + limits.ping_seconds
            self._answer(encode_frame(OP_PING, b""))


class StreamChannel:
    """See ``transport.Channel``."""

    __slots__ = ("_transport", "entries", "key")

    busy = False  # a fan-out only queues, so it is never cut

    def __init__(self, transport: StreamTransport, key: Any) -> None:
        self.key = key
        self.entries: dict[StreamConnection, Entry] = {}
        self._transport = transport

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return (connection.owner for connection in tuple(self.entries))

    def __contains__(self, connection: Any) -> bool:
        return connection in self.entries

    def join(self, connection: StreamConnection, next_seq: int, live: bool) -> None:
        """See ``transport.Channel``."""
        self.entries[connection] = Entry(next_seq, live)
        connection.channels.add(self)

    def leave(self, connection: StreamConnection) -> None:
        """See ``transport.Channel``."""
        if self.entries.pop(connection, None) is not None:
            connection.channels.discard(self)

    def next_seq(self, connection: StreamConnection) -> int:
        """See ``transport.Channel``."""
        return self.entries[connection].next_seq

    def silent(self, connection: StreamConnection) -> bool:
        """See ``transport.Channel``."""
        return not self.entries[connection].live

    def replay(self, connection: StreamConnection, batch: Batch) -> int:
        """See ``transport.Channel``."""
        entry = self.entries[connection]
        if batch.last_seq >= entry.next_seq:
            data = self._form(batch, connection.deflates).frames(entry.next_seq)
            self._send(connection, entry, batch, data, replayed=True)
            if connection.replay_in_flight > self._transport.limits.replay_bytes // 2:
                connection.replaying = True
        return connection.replay_in_flight

    def in_flight(self, connection: StreamConnection) -> int:
        """See ``transport.Channel``."""
        return connection.replay_in_flight

    def set_live(self, connection: StreamConnection, next_seq: int) -> None:
        """See ``transport.Channel``."""
        entry = self.entries[connection]
        entry.next_seq, entry.live = next_seq, True

    def set_silent(self, connection: StreamConnection) -> None:
        """See ``transport.Channel``."""
        self.entries[connection].live = False

    def broadcast(self, batch: Batch) -> None:
        """See ``transport.Channel``."""
        wholes: dict[bool, bytes] = {}  # plain and compressed, each made once and only if somebody wants it
        for connection, entry in tuple(self.entries.items()):
            deflates = connection.deflates
            if deflates not in wholes:
                wholes[deflates] = self._form(batch, deflates).frames()
            data = wholes[deflates]
            if not batch.first_seq:
                if connection.backlog <= PLAIN_BACKLOG_BYTES:
                    connection.send_event(self, data, 0, False)
            elif entry.live and batch.last_seq >= entry.next_seq:
                if entry.next_seq > batch.first_seq:
                    data = self._form(batch, deflates).frames(entry.next_seq)
                self._send(connection, entry, batch, data, False)

    def _form(self, batch: Batch, deflates: bool) -> Batch:
        deflater = self._transport.deflater
        return deflater.deflate(batch) if deflates and deflater is not None else batch

    def reset(self, notice: Batch, next_seq: int) -> None:
        """See ``transport.Channel``."""
        data = notice.frames()
        for connection, entry in tuple(self.entries.items()):
            if entry.live:
                connection.send_event(self, data, 0, False)
                entry.next_seq = next_seq

    def _send(self, connection: StreamConnection, entry: Entry, batch: Batch, data: bytes, replayed: bool) -> None:
        first_seq = max(entry.next_seq, batch.first_seq)
        entry.next_seq = batch.last_seq + 1
        self._transport.deliveries += batch.last_seq - first_seq + 1
        connection.send_event(self, data, first_seq, replayed)
