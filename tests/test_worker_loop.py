"""The worker's own loop: asyncio works on it as on any other, and what it handles itself is in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Coroutine
from typing import Any

import pytest

pytest.importorskip("tornadochat._poller", reason="the poller needs Linux' epoll")
from tornadochat._fastframe import OP_TEXT, encode_frame
from tornadochat._poller import Poller, Stream
from tornadochat._reactor import Reactor
from tornadochat.worker_loop import WorkerLoop, at_end_of_turn, open_stream


def run(work: Coroutine[Any, Any, Any], interval: float = 0.0) -> Any:
    with asyncio.Runner(loop_factory=lambda: WorkerLoop(interval)) as runner:
        return runner.run(asyncio.wait_for(work, 20))


class Noted(asyncio.Protocol):
    """Keeps what a stream brings."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Exception | None] = []
        self.news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)
        self.news.set()


async def until(noted: Noted, done: Any) -> None:
    while not done():
        noted.news.clear()
        await noted.news.wait()


def test_timers_tasks_threads_and_sockets_work_as_on_any_loop() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        loop.call_later(0.03, order.append, "later")
        loop.call_later(0.01, order.append, "sooner")
        loop.call_soon(order.append, "soon")
        assert await asyncio.to_thread(lambda: "thread") == "thread"
        await asyncio.sleep(0.05)
        assert order == ["soon", "sooner", "later"]
        server = await asyncio.start_server(lambda reader, writer: echo(reader, writer), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        big = os.urandom(1 << 20)
        writer.write(big)
        assert await reader.readexactly(len(big)) == big
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    run(work())


def test_a_signal_wakes_a_loop_that_waits_for_nothing() -> None:
    async def work() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stopped.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(stopped.wait(), 2)

    run(work())


def test_a_timer_is_in_time_while_a_stream_keeps_the_loop_in_its_turns() -> None:
    """Turns that concern the poller alone do not go back to asyncio; a timer that is due does."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        noted = Noted()
        stream = Stream(loop.poller, near.detach(), noted)  # type: ignore[attr-defined]
        ended = []
        loop.call_later(0.2, ended.append, True)

        def feed() -> None:
            while not ended:
                far.sendall(b"x")
                time.sleep(0.0005)

        feeding = asyncio.ensure_future(asyncio.to_thread(feed))
        begun = loop.time()
        await feeding
        assert loop.time() - begun < 2
        stream.abort()
        far.close()
        await until(noted, lambda: noted.lost)

    run(work(), interval=0.002)


@pytest.mark.parametrize("kind", ["unix", "tcp", "name"])
def test_a_stream_brings_all_bytes_in_order_and_tells_of_its_end(kind: str, tmp_path: Any) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        if kind == "unix":
            listener, place = socket.socket(socket.AF_UNIX), str(tmp_path / "sock")
            listener.bind(place)
            listener.listen()
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            place = ("localhost" if kind == "name" else "127.0.0.1", listener.getsockname()[1])  # type: ignore[assignment]
        listener.setblocking(False)
        noted = Noted()
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        stream = await open_stream(loop, noted, place)
        far, _ = await accepting
        sent = os.urandom(3 << 20)
        for at in range(0, len(sent), 700_000):  # more than the socket takes at once
            stream.write(sent[at : at + 700_000])
        got = b""
        while len(got) < len(sent):
            got += await loop.sock_recv(far, 1 << 16)
        assert got == sent
        await loop.sock_sendall(far, sent[:200_000])
        await until(noted, lambda: len(noted.data) == 200_000)
        assert noted.data == sent[:200_000]
        far.close()
        await until(noted, lambda: noted.lost)
        assert noted.lost == [None]
        stream.write(b"nobody reads this")  # no error: the end was told
        stream.abort()
        await asyncio.sleep(0)
        assert len(noted.lost) == 1
        listener.close()

    run(work())


def test_an_address_that_nobody_listens_at_is_an_error() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            place = listener.getsockname()
        with pytest.raises(OSError):
            await open_stream(asyncio.get_running_loop(), Noted(), place)
        with pytest.raises(OSError):
            await open_stream(asyncio.get_running_loop(), Noted(), "/nowhere/sock")

    run(work())


def test_a_protocol_that_fails_ends_its_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Noted):
        def data_received(self, data: bytes) -> None:
            raise ValueError("no")

    async def work() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        noted = Failing()
        await open_stream(loop, noted, listener.getsockname())
        far, _ = listener.accept()
        far.sendall(b"x")
        await until(noted, lambda: noted.lost)
        assert isinstance(noted.lost[0], ValueError)
        far.close()
        listener.close()

    run(work())
    assert "protocol failed" in caplog.text


def test_the_end_of_a_turn_comes_before_the_loop_waits() -> None:
    async def work() -> None:
        loop, order = asyncio.get_running_loop(), []
        at_end = at_end_of_turn(loop)

        def first() -> None:
            order.append("first")
            at_end(lambda: order.append("added meanwhile"))

        at_end(first)
        at_end(lambda: 1 / 0)  # logged, and the others are called all the same
        at_end(lambda: order.append("second"))
        await asyncio.sleep(0.01)
        assert order == ["first", "second", "added meanwhile"]

    run(work())


def test_any_other_loop_gets_the_plain_way() -> None:
    async def work() -> list[str]:
        loop, order = asyncio.get_running_loop(), []
        at_end_of_turn(loop)(lambda: order.append("called"))
        await asyncio.sleep(0)
        listener = socket.create_server(("127.0.0.1", 0))
        transport = await open_stream(loop, Noted(), listener.getsockname())
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
        await asyncio.sleep(0)
        listener.close()
        return order

    assert asyncio.run(work()) == ["called"]


def test_a_quiet_poller_does_not_nap_and_a_busy_one_does_between_two_turns() -> None:
    near, far = socket.socketpair()
    poller = Poller(0.002)
    poller.watch(near.fileno(), 1, False)
    far.send(b"x")
    turns = 0
    begun = time.monotonic()
    assert poller.wait(1.0)  # the first events of a quiet worker are handled at once
    assert time.monotonic() - begun < 0.015
    begun = time.monotonic()
    while time.monotonic() - begun < 0.3:
        poller.wait(1.0)
        turns += 1
    # Readable all the time: without pauses these would be tens of thousands, not 1,500 a second.
    assert turns < 1000
    poller.forget(near.fileno())
    near.close()
    far.close()


def test_an_interval_above_a_second_is_kept_as_well() -> None:
    near, far = socket.socketpair()
    poller = Poller(2.4)
    poller.watch(near.fileno(), 1, False)
    far.send(b"x")
    longest = 0.0
    for _ in range(100):  # busy after 20 events; the first pause ends at the next beat
        begun = time.monotonic()
        poller.wait(5.0)
        longest = max(longest, time.monotonic() - begun)
        if longest > 1:
            break
    assert longest > 1
    near.close()
    far.close()


class Steady(asyncio.Protocol):
    """A stream's protocol that always has more to read, and notes when it was read; in seconds after a beat."""

    def __init__(self, far: socket.socket, beat: float, poller: Poller) -> None:
        self._far, self._beat, self._poller = far, beat, poller
        self.read: list[float] = []
        self.settled: set[bool] = set()
        self.size = 30_000  # counts as enough events to be busy

    def data_received(self, data: bytes) -> None:
        at = time.monotonic() % self._beat
        self.read.append(at)
        if self._poller.settled:
            assert at > 0.1
        self.settled.add(self._poller.settled)
        self._far.send(bytes(self.size))

    def connection_lost(self, error: Exception | None) -> None:
        pass


class Paced:
    """A poller with a beat of half a second, a stream and a member who both always have something to say."""

    BEAT, SETTLE = 0.5, 0.15

    def __init__(self, late: bool = False) -> None:
        self.poller = Poller(0.005)
        (near, self.far), (member, self.member) = socket.socketpair(), socket.socketpair()
        near.setblocking(False)
        self.steady = Steady(self.far, self.BEAT, self.poller)
        self.stream = Stream(self.poller, near.detach(), self.steady, late)
        self.heard: list[float] = []
        limits = {"ping_seconds": 25, "pong_seconds": 20, "close_seconds": 5, "stuck_seconds": 30}
        sizes = dict.fromkeys(("max_backlog_bytes", "max_answer_bytes", "replay_bytes"), 65536)
        self.reactor = Reactor(
            on_text=self._on_text,
            on_closed=lambda *_: None,
            on_drained=lambda *_: None,
            on_gap=lambda *_: None,
            max_message_bytes=1000,
            poller=self.poller,
            **sizes,
            **limits,
        )
        self.reactor.attach(member.detach(), self)
        self.far.send(bytes(30_000))
        self._say()

    def _say(self) -> None:
        self.member.send(encode_frame(OP_TEXT, b"x", b"mask"))

    def _on_text(self, _owner: object, _payload: bytes) -> None:
        self.heard.append(time.monotonic() % self.BEAT)
        self._say()

    def run(self, seconds: float) -> None:
        """Forget what was, and go on for so long."""
        end = time.monotonic() + seconds
        self.steady.read.clear()
        self.heard.clear()
        while time.monotonic() < end:
            self.poller.wait(seconds)

    def close(self) -> None:
        self.reactor.close()
        self.stream.abort()
        self.far.close()
        self.member.close()


def moments(times: list[float], settle: float) -> set[int]:
    """In which third of a beat something was: 0 on it, 1 when it has settled, 2 after as long again."""
    return {min(2, int(at / settle)) for at in times}


@pytest.mark.parametrize("late", [False, True])
def test_a_paced_poller_hears_members_on_the_beat_and_streams_once_more(late: bool) -> None:
    paced, unanswered = Paced(late), False
    paced.run(0.2)
    assert len(paced.heard) > 10 and len(paced.steady.read) > 10  # busy, with turns of five milliseconds
    paced.poller.unanswered = lambda: unanswered
    paced.poller.pace(paced.BEAT, paced.SETTLE)
    paced.run(paced.BEAT)  # finds the beat
    paced.run(3 * paced.BEAT)
    assert moments(paced.heard, paced.SETTLE) == {0} and len(paced.heard) <= 4
    assert moments(paced.steady.read, paced.SETTLE) == {0, 1} and len(paced.steady.read) <= 8
    assert paced.steady.settled == {False, True}
    unanswered = True  # the store is slow
    paced.run(3 * paced.BEAT)
    assert moments(paced.heard, paced.SETTLE) == {0}
    assert moments(paced.steady.read, paced.SETTLE) == {0, 1, 2}
    paced.poller.pace(0.0, 0.0)
    paced.run(0.2)
    assert len(paced.heard) > 10
    paced.close()


def test_turns_are_as_usual_while_somebody_connects_and_keep_the_beat_again_after_that() -> None:
    paced = Paced()
    paced.poller.pace(paced.BEAT, paced.SETTLE)
    near, far = socket.socketpair()  # as a listening socket on which one comes after the other
    paced.poller.watch(near.fileno(), 1, False)
    far.send(b"x")
    paced.run(paced.BEAT)
    paced.run(0.2)
    assert len(paced.heard) > 10
    near.recv(1)
    paced.run(2 * paced.BEAT)  # one of them as usual, one to find the beat
    paced.run(2 * paced.BEAT)
    assert 1 <= len(paced.heard) <= 3
    paced.poller.forget(near.fileno())
    near.close()
    far.close()
    paced.close()


def test_a_timer_does_not_wait_for_a_beat() -> None:
    paced = Paced()
    paced.poller.pace(paced.BEAT, paced.SETTLE)
    paced.run(2 * paced.BEAT)
    for _ in range(5):
        begun = time.monotonic()
        paced.poller.wait(0.05)
        assert time.monotonic() - begun < 0.3
    paced.close()


def test_what_a_turn_left_unread_does_not_wait_for_a_beat() -> None:
    paced = Paced()
    paced.steady.size = 65_536  # a whole read, behind which there may be more
    paced.poller.pace(paced.BEAT, paced.SETTLE)
    paced.run(2 * paced.BEAT)
    assert len(paced.steady.read) > 100
    paced.close()


def test_a_queue_of_a_stream_is_written_between_two_beats() -> None:
    paced = Paced()
    paced.poller.pace(paced.BEAT, paced.SETTLE)
    paced.poller.unanswered = lambda: True
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    writer = Stream(paced.poller, near.detach(), Noted())
    written, got, late = bytes(2_000_000), 0, 0
    paced.run(2 * paced.BEAT)
    writer.write(written)
    while got < len(written):
        with contextlib.suppress(BlockingIOError):
            while part := far.recv(1 << 20):
                got += len(part)
        paced.poller.wait(0.05)
        late += 1
        assert late < 200
    assert late < 60  # a beat each would be more than a hundred
    writer.abort()
    far.close()
    paced.close()


def test_a_poller_counts_the_time_in_which_it_waits() -> None:
    poller = Poller()
    poller.wait(0)
    poller.poll()
    assert poller.waited_us == 0
    begun = time.monotonic()
    poller.wait(0.02)
    assert 15_000 < poller.waited_us <= (time.monotonic() - begun) * 1e6 + 1


def test_what_many_bytes_of_a_stream_bring_makes_a_worker_busy() -> None:
    """One read of many messages counts as many events, or pauses would make a busy worker look quiet."""

    async def work() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WorkerLoop)
        near, far = socket.socketpair()
        near.setblocking(False)
        noted = Noted()
        stream = Stream(loop.poller, near.detach(), noted)
        far.sendall(bytes(50_000))
        await until(noted, lambda: len(noted.data) == 50_000)
        begun = loop.time()
        await asyncio.sleep(0.001)  # the loop's own timers are late by a pause
        stream.abort()
        far.close()
        return loop.time() - begun

    # The pause ends at a beat of the clock, which may have been near: not ten times in a row.
    assert max(run(work(), interval=0.3) for _ in range(10)) > 0.05


def test_a_late_stream_is_read_after_the_end_of_what_else_came(tmp_path: Any) -> None:
    async def work() -> list[str]:
        loop, order = asyncio.get_running_loop(), []
        assert isinstance(loop, WorkerLoop)

        class Ordered(Noted):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

            def data_received(self, data: bytes) -> None:
                order.append(self.name)
                loop.poller.at_end(lambda: order.append(f"end of {self.name}"))
                super().data_received(data)

        pairs = [socket.socketpair() for _ in range(2)]
        ends = [Ordered("late"), Ordered("early")]
        streams = []
        for (near, far), noted, late in zip(pairs, ends, (True, False), strict=True):
            near.setblocking(False)
            far.send(b"x")
            streams.append(Stream(loop.poller, near.detach(), noted, late))
        await until(ends[0], lambda: ends[0].data)
        await asyncio.sleep(0)
        for stream, (_near, far) in zip(streams, pairs, strict=True):
            stream.abort()
            far.close()
        return order

    assert run(work()) == ["early", "end of early", "late", "end of late"]


def test_a_descriptor_that_epoll_refuses_is_closed(tmp_path: Any) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(PermissionError):
        Stream(Poller(), fd, Noted())
    with pytest.raises(OSError):
        os.fstat(fd)
