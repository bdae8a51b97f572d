"""The reactor on real sockets: order, exactness, and what members cost who do not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reactor_bench import MASK, Bench, Owner, body, seqs, take
from tornadochat._fastframe import (
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    FrameDecoder,
    encode_close,
    encode_events,
    encode_frame,
    encode_plain,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def tcp_member(bench: Bench, receive_bytes: int) -> tuple[socket.socket, socket.socket, Any]:
    """The far end of a TCP connection, a second handle on the near one, and the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    mine = near.dup()
    return far, mine, bench.reactor.attach(near.detach(), Owner())


def test_small_batches_do_not_wait_for_the_peers_acknowledgement() -> None:
    """With Nagle's algorithm one delivery in a hundred came 40 ms late."""
    bench = Bench()
    far, mine, _ = tcp_member(bench, 65536)
    with far, mine:
        assert mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    bench.close()


def test_nothing_is_read_from_a_connection_that_is_held() -> None:
    bench = Bench()
    far, connection, owner = bench.member()
    far.send(encode_frame(OP_TEXT, b"before", MASK))
    bench.turn()
    connection.hold(True)
    connection.hold(True)
    far.send(encode_frame(OP_TEXT, b"behind", MASK))
    connection.send_text(b"x" * 500_000)  # what goes out goes on, and asks for the socket to be watched
    bench.turn()
    while far.recv(1 << 20) and connection.backlog:
        bench.turn()
    assert owner.texts == [b"before"]
    connection.hold(False)
    bench.turn()
    assert owner.texts == [b"before", b"behind"]
    bench.close()
    connection.hold(True)  # of a connection that is gone means nothing


def test_the_kernel_holds_little_for_a_peer_that_does_not_read() -> None:
    """It took megabytes before the reactor saw that somebody had stopped reading."""
    bench = Bench(max_backlog_bytes=1 << 30)
    far, mine, connection = tcp_member(bench, 4096)
    channel = bench.reactor.channel("tea")
    channel.join(connection, 1, True)
    with far, mine:
        for number in range(100):
            channel.broadcast(encode_events(1 + 20 * number, [b'{"text":"%s"}' % (b"x" * 4000)] * 20))
        assert bench.reactor.bytes_sent < 500_000, "of eight megabytes"
    bench.close()


# Reading -------------------------------------------------------------------------------------------


def test_pipelined_messages_arrive_in_order(bench: Bench) -> None:
    far, _, owner = bench.member()
    far.send(b"".join(encode_frame(OP_TEXT, b"%d" % i, MASK) for i in range(100)))
    bench.turn()
    assert owner.texts == [b"%d" % i for i in range(100)]


def test_a_message_may_come_one_byte_at_a_time(bench: Bench) -> None:
    far, _, owner = bench.member()
    for byte in encode_frame(OP_TEXT, b"hello", MASK):
        far.send(bytes((byte,)))
        bench.turn(1)
    assert owner.texts == [b"hello"]


def test_bytes_behind_the_handshake_are_handled_first(bench: Bench) -> None:
    far, connection, owner = bench.member()
    far.send(encode_frame(OP_TEXT, b"second", MASK))
    connection.feed(encode_frame(OP_TEXT, b"first", MASK))
    bench.turn()
    assert owner.texts == [b"first", b"second"]


def test_a_ping_is_answered_with_its_payload(bench: Bench) -> None:
    far, _, _ = bench.member()
    far.send(encode_frame(OP_PING, b"payload", MASK))
    bench.turn()
    assert take(far) == [(OP_PONG, b"payload")]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x05Hello", 1002),
        (b"\xc1\x80" + MASK, 1002),
        (encode_frame(OP_TEXT, b"\xff", MASK), 1007),
        (encode_frame(2, b"binary", MASK), 1003),
        (b"\x81\xff\x00\x00\x00\x01\x00\x00\x00\x00" + MASK, 1009),
    ],
)
def test_a_breach_closes_with_its_code(bench: Bench, sent: bytes, code: int) -> None:
    far, connection, owner = bench.member()
    far.send(encode_frame(OP_TEXT, b"before", MASK) + sent)
    bench.turn()
    ((opcode, payload),) = take(far)
    assert (opcode, int.from_bytes(payload[:2], "big")) == (OP_CLOSE, code)
    assert owner.texts == [b"before"] and connection.closed
    far.close()
    bench.turn()
    assert owner.ends == [(code, "")]


def test_the_close_handshake_echoes_the_code_and_ends(bench: Bench) -> None:
    far, _, owner = bench.member()
    far.send(encode_close(1000, "bye", MASK))
    bench.turn()
    assert take(far) == [(OP_CLOSE, b"\x03\xe8")]
    assert far.recv(10) == b"" and owner.ends == [(1000, "")]
    assert bench.reactor.connections == 0


def test_a_close_without_a_code_is_answered_without_one(bench: Bench) -> None:
    far, _, owner = bench.member()
    far.send(b"\x88\x80" + MASK)
    bench.turn()
    assert take(far) == [(OP_CLOSE, b"")] and owner.ends == [(1005, "")]


def test_a_peer_that_vanishes_without_a_close_is_told_once(bench: Bench) -> None:
    far, _, owner = bench.member()
    far.close()
    bench.turn()
    assert owner.ends == [(1006, "")]


def test_a_handler_that_fails_costs_its_own_connection_only(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    far, _, owner = bench.member()
    other_far, _, other = bench.member()
    owner.on_text = lambda payload: 1 / 0  # type: ignore[assignment, return-value]
    far.send(encode_frame(OP_TEXT, b"boom", MASK))
    other_far.send(encode_frame(OP_TEXT, b"fine", MASK))
    bench.turn()
    ((opcode, payload),) = take(far)
    assert (opcode, payload[:2]) == (OP_CLOSE, (1011).to_bytes(2, "big"))
    assert other.texts == [b"fine"] and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("way", ["abort", "close"])
def test_a_handler_may_end_any_connection(bench: Bench, way: str) -> None:
    pairs = [bench.member() for _ in range(10)]
    for _far, connection, owner in pairs:
        owner.on_text = lambda payload, own=connection: [  # type: ignore[assignment, misc]
            getattr(other, way)(*((1000,) if way == "close" else ())) for _, other, _ in pairs
        ]
    for far, _, _ in pairs:
        far.send(encode_frame(OP_TEXT, b"a", MASK) + encode_frame(OP_TEXT, b"b", MASK))
    bench.turn()
    assert sum(len(owner.texts) for _, _, owner in pairs) == 1
    for _, connection, _ in pairs:
        assert connection.closed
        connection.send_text(b"ignored")
        connection.close(1000)


@pytest.mark.parametrize("name", ["feed", "send", "send_text"])
def test_none_is_refused_where_bytes_are_wanted(bench: Bench, name: str) -> None:
    _, connection, _ = bench.member()
    with pytest.raises(TypeError):
        getattr(connection, name)(None)


# Fan-out -------------------------------------------------------------------------------------------


def test_every_member_gets_each_event_once_and_in_order(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    pairs = [bench.member() for _ in range(20)]
    for _, connection, _ in pairs:
        channel.join(connection, 1, True)
    for first in range(1, 31, 3):
        channel.broadcast(encode_events(first, [body(), body(), body()]))
    bench.turn()
    for far, connection, _ in pairs:
        assert seqs(take(far)) == list(range(1, 31))
        assert channel.next_seq(connection) == 31
    assert bench.reactor.deliveries == 20 * 30 and channel.walked_seq == 30


def test_a_member_starts_at_its_own_next_seq(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, _ = bench.member()
    channel.join(connection, 3, True)
    channel.broadcast(encode_events(1, [body()] * 4))
    channel.broadcast(encode_events(5, [body()]))
    channel.broadcast(encode_events(4, [body()] * 2))
    assert seqs(take(far)) == [3, 4, 5]


def test_silent_members_are_passed_by_and_caught_up_by_replay(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, _ = bench.member()
    channel.join(connection, 1, False)
    old, new = encode_events(1, [body()] * 3), encode_events(4, [body()] * 2)
    channel.broadcast(new)
    assert take(far) == [] and channel.silent(connection)
    assert channel.replay(connection, old) == 0
    channel.replay(connection, new)
    channel.set_live(connection, 6)
    channel.broadcast(encode_events(6, [body()]))
    assert seqs(take(far)) == [1, 2, 3, 4, 5, 6]


def test_short_writes_lose_and_double_nothing(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, owner = bench.member(small=True)
    channel.join(connection, 1, True)
    decoder, received = FrameDecoder(1 << 20, require_mask=False), []
    for seq in range(1, 201):
        channel.broadcast(encode_events(seq, [body(700)]))
        if seq % 3 == 0:
            received += take(far, decoder)
            bench.turn(1)
    while len(received) < 200:
        bench.turn(1)
        received += take(far, decoder)
    assert seqs(received) == list(range(1, 201)) and owner.gaps == []


def test_what_waits_is_shared_and_not_copied(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    pairs = [bench.member(small=True) for _ in range(5)]
    for _, connection, _ in pairs:
        channel.join(connection, 1, True)
        while not connection.backlog:
            connection.send_text(b"x" * 1000)
    batch = encode_events(1, [body(500)])
    assert batch.references == 1
    channel.broadcast(batch)
    assert batch.references == 1 + 5
    decoders = [FrameDecoder(1 << 20, require_mask=False) for _ in pairs]
    for _ in range(50):
        for (far, _, _), decoder in zip(pairs, decoders, strict=True):
            take(far, decoder)
        bench.turn(1)
    assert batch.references == 1


def test_above_the_backlog_events_become_a_gap_and_join_fills_it(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, owner = bench.member(small=True)
    channel.join(connection, 1, True)
    batches = [encode_events(seq, [body(1000)]) for seq in range(1, 301)]
    for batch in batches:
        channel.broadcast(batch)
        assert connection.backlog <= 64 * 1024
    assert channel.silent(connection) and owner.gaps == []
    connection.send_text(b'{"type":"pong"}')
    decoder, received = FrameDecoder(1 << 20, require_mask=False), []
    for _ in range(200):
        received += take(far, decoder)
        bench.turn(1)
        if owner.gaps:
            break
    received += take(far, decoder)
    ((gap,),) = owner.gaps
    got = [payload for _, payload in received]
    assert got[-1] == b'{"type":"pong"}'
    reached = seqs(received[:-1])
    assert gap == ("tea", reached[-1] + 1) and reached == list(range(1, len(reached) + 1))
    # Nothing comes until it joins again; then all that was missing, once.
    channel.broadcast(encode_events(301, [body()]))
    assert take(far, decoder) == []
    channel.join(connection, gap[1], False)
    again: list[int] = []
    for batch in [*batches, encode_events(301, [body()])]:
        while channel.replay(connection, batch) > 16 * 1024:
            again += seqs(take(far, decoder))
            bench.turn(1)
    channel.set_live(connection, 302)
    for _ in range(50):
        again += seqs(take(far, decoder))
        bench.turn(1)
    assert reached + again == list(range(1, 302))


def test_answers_are_never_dropped_but_bounded(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, owner = bench.member(small=True)
    channel.join(connection, 1, True)
    sent = 0
    while not connection.closed:
        connection.send_text(b"%06d" % sent + b"a" * 500)
        sent += 1
        assert sent < 1000
    decoder, received = FrameDecoder(1 << 20, require_mask=False), []
    for _ in range(100):
        received += take(far, decoder)
        bench.turn(1)
    opcode, payload = received[-1]
    assert (opcode, payload[:2]) == (OP_CLOSE, (1013).to_bytes(2, "big"))


def test_replay_tells_when_it_has_drained(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, owner = bench.member(small=True)
    channel.join(connection, 1, False)
    in_flight = 0
    seq = 1
    while in_flight <= 16 * 1024:
        in_flight = channel.replay(connection, encode_events(seq, [body(1000)]))
        seq += 1
    assert owner.drained == 0
    decoder = FrameDecoder(1 << 20, require_mask=False)
    for _ in range(100):
        take(far, decoder)
        bench.turn(1)
    assert owner.drained == 1 and connection.backlog == 0


def test_plain_events_pass_by_whoever_has_much_waiting() -> None:
    bench = Bench(max_answer_bytes=1 << 20)
    channel = bench.reactor.channel("tea")
    far, connection, _ = bench.member(small=True)
    channel.join(connection, 1, True)
    while connection.backlog < 80_000:
        connection.send_text(b"x" * 5000)
    before = connection.backlog
    channel.broadcast(encode_plain([b'{"type":"typing"}']))
    assert connection.backlog == before
    bench.close()


def test_a_reset_comes_in_order_and_moves_everyone(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    far, connection, _ = bench.member()
    channel.join(connection, 1, True)
    channel.broadcast(encode_events(1, [body()] * 5))
    channel.reset(encode_plain([b'{"type":"reset","seq":0}']), 3)
    channel.broadcast(encode_events(3, [body()]))
    assert seqs(take(far)) == [1, 2, 3, 4, 5, 0, 3]


def test_sockets_that_die_during_a_fan_out_are_closed_behind_it(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    pairs = [bench.member() for _ in range(100)]
    for _, connection, _ in pairs:
        channel.join(connection, 1, True)
    for far, _, _ in pairs[::3]:
        far.close()
    channel.broadcast(encode_events(1, [body()]))
    channel.broadcast(encode_events(2, [body()]))
    bench.turn()
    assert bench.reactor.connections == len(channel) == 66
    for far, _, owner in pairs:
        assert bool(owner.ends) == (far.fileno() == -1)


# Time ----------------------------------------------------------------------------------------------


def test_a_silent_peer_is_pinged_within_the_interval_and_ended_without_an_answer() -> None:
    bench = Bench(ping_seconds=20, pong_seconds=10)
    far, _, owner = bench.member()
    begin = time.monotonic()
    pinged_at = ended_at = None
    for second in range(1, 60):
        bench.reactor.tick(begin + second)
        if pinged_at is None and (OP_PING, b"") in take(far):
            pinged_at = second
        if owner.ends:
            ended_at = second
            break
    assert pinged_at is not None and pinged_at <= 22
    assert ended_at is not None and 9 <= ended_at - pinged_at <= 13 and owner.ends == [(1006, "")]
    bench.close()


def test_any_byte_counts_as_life() -> None:
    bench = Bench(ping_seconds=5, pong_seconds=5)
    far, connection, owner = bench.member()
    begin = time.monotonic()
    for second in range(1, 120):
        bench.reactor.tick(begin + second)
        for opcode, payload in take(far):
            if opcode == OP_PING:
                # The reactor's own clock has not moved, so the answer must come in real time.
                far.send(encode_frame(OP_PONG, payload, MASK)[:1])
                far.send(encode_frame(OP_PONG, payload, MASK)[1:])
                bench.turn(1)
        if second > 8:
            break
    assert owner.ends == [] and not connection.closed
    bench.close()


def test_a_slow_reader_that_is_alive_is_not_taken_for_a_vanished_one() -> None:
    bench = Bench(ping_seconds=5, pong_seconds=5, stuck_seconds=1000)
    far, connection, owner = bench.member(small=True)
    for _ in range(16):
        connection.send_text(b"x" * 900)
    begin = time.monotonic()
    pinged = False
    for second in range(1, 60):
        bench.reactor.tick(begin + second)
        if second % 6 == 0 and connection.backlog:
            far.recv(900)
        elif not connection.backlog:
            pinged = pinged or b"\x89\x00" in far.recv(1 << 16)
        bench.turn(1)
        if pinged:
            break
        assert not connection.closed
    assert owner.ends == []
    bench.close()


def test_first_pings_are_spread_over_the_interval() -> None:
    bench = Bench(ping_seconds=20)
    pairs = [bench.member() for _ in range(400)]
    begin = time.monotonic()
    counts = []
    for second in range(1, 23):
        bench.reactor.tick(begin + second)
        counts.append(sum(len(take(far)) for far, _, _ in pairs))
    assert sum(counts) == 400 and max(counts) < 80
    bench.close()


def test_a_stuck_member_is_closed_with_1013() -> None:
    bench = Bench(stuck_seconds=10, close_seconds=3)
    channel = bench.reactor.channel("tea")
    _, connection, owner = bench.member(small=True)
    channel.join(connection, 1, True)
    for seq in range(1, 30):
        channel.broadcast(encode_events(seq, [body(1000)]))
    begin = time.monotonic()
    for second in range(1, 9):
        bench.reactor.tick(begin + second)
    assert not connection.closed
    for second in range(9, 20):
        bench.reactor.tick(begin + second)
    assert owner.ends == [(1013, "")]
    bench.close()


def test_a_peer_that_does_not_answer_a_close_is_ended() -> None:
    bench = Bench(close_seconds=3)
    _, connection, owner = bench.member()
    connection.close(1000)
    begin = time.monotonic()
    bench.reactor.tick(begin + 1)
    assert owner.ends == []
    for second in range(2, 7):
        bench.reactor.tick(begin + second)
    assert owner.ends == [(1000, "")]
    bench.close()


def test_stalled_members_leave_the_others_alone(bench: Bench) -> None:
    channel = bench.reactor.channel("tea")
    pairs = [bench.member(small=i % 10 == 0) for i in range(500)]
    for _, connection, _ in pairs:
        channel.join(connection, 1, True)
    decoders = [FrameDecoder(1 << 20, require_mask=False) for _ in pairs]
    received: list[list[int]] = [[] for _ in pairs]
    for seq in range(1, 201):
        channel.broadcast(encode_events(seq, [body(500)]))
        bench.turn(1)
        for i, (far, connection, _) in enumerate(pairs):
            assert connection.backlog <= 64 * 1024
            if i % 10:
                received[i] += seqs(take(far, decoders[i]))
    assert all(found == list(range(1, 201)) for i, found in enumerate(received) if i % 10)
    assert sum(channel.silent(connection) for _, connection, _ in pairs) == 50
