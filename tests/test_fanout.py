"""Fan-outs to a room so large that they are cut and go on, and what comes meanwhile."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reactor_bench import MASK, Bench, Owner, body, seqs, take
from tornadochat._fastframe import OP_TEXT, FrameDecoder, encode_events, encode_frame, encode_plain

BIG = 6000


@pytest.fixture
def big() -> Iterator[tuple[Bench, Any, list[tuple[socket.socket, Any, Owner]]]]:
    bench = Bench()
    channel = bench.reactor.channel("big")
    pairs = [bench.member() for _ in range(BIG)]
    for _, connection, _ in pairs:
        channel.join(connection, 1, True)
    yield bench, channel, pairs
    bench.close()


def cut_fan_out(bench: Bench, channel: Any, seq: int = 1) -> int:
    """Broadcast events until a fan-out is cut half-way; the seq of the one on its way."""
    channel.broadcast(encode_events(seq, [body()]))
    while channel.walked_seq == seq or channel.busy:
        if channel.busy:  # the one before has taken all the time of this turn
            bench.turn()
        seq += 1
        channel.broadcast(encode_events(seq, [body()]))
    return seq


def test_a_big_fan_out_is_cut_and_order_is_kept_for_all(big: Any) -> None:
    bench, channel, pairs = big
    called: list[bool] = []
    bench.reactor.on_work_left = lambda: called.append(True)
    channel.broadcast(encode_events(1, [body()]))
    channel.broadcast(encode_events(2, [body()]))
    assert channel.walked_seq < 2 and called
    # Half-way: some leave, some come, one of the leavers comes back.
    leavers = [pairs[i] for i in range(0, BIG, 7)]
    for _, connection, _ in leavers:
        channel.leave(connection)
    newcomer_far, newcomer, _ = bench.member()
    channel.join(newcomer, 3, True)
    back_far, back, _ = leavers[3]
    channel.join(back, 3, True)
    assert len(channel) == BIG - len(leavers) + 2
    answered, _, asker = bench.member()
    answered.send(encode_frame(OP_TEXT, b"between", MASK))
    bench.turn(1)
    assert asker.texts == [b"between"]
    channel.broadcast(encode_events(3, [body()]))
    bench.turn()
    assert not channel.busy and channel.walked_seq == 3
    gone = {id(connection) for _, connection, _ in leavers}
    for far, connection, _ in pairs:
        if id(connection) not in gone:
            assert seqs(take(far)) == [1, 2, 3]
    assert seqs(take(newcomer_far)) == [3]
    assert seqs(take(back_far))[-1] == 3


def test_a_batch_gets_on_a_walk_under_way(big: Any) -> None:
    """It waited for the end of the lap before, and so took up to two laps to reach everybody."""
    bench, channel, pairs = big
    last, connection, _ = bench.member(kind=socket.SOCK_SEQPACKET)  # a record for each call of send()
    channel.join(connection, 1, True)
    under_way = cut_fan_out(bench, channel)
    channel.broadcast(encode_events(under_way + 1, [body()] * 2))
    channel.broadcast(encode_events(under_way + 3, [body()]))
    bench.turn()
    assert channel.walked_seq == under_way + 3 and not channel.busy
    decoder = FrameDecoder(1 << 24, require_mask=False)
    records = [seqs(decoder.feed(last.recv(1 << 16))) for _ in range(under_way)]
    assert records == [*([seq] for seq in range(1, under_way)), list(range(under_way, under_way + 4))]
    assert all(seqs(take(far)) == list(range(1, under_way + 4)) for far, _, _ in pairs)


def test_a_walk_rests_where_more_than_one_batch_is_on(big: Any) -> None:
    """A room that is told more than it can be told at once would fill its worker."""
    bench, channel, _ = big
    rests = 0
    under_way = cut_fan_out(bench, channel)
    for seq in range(under_way + 1, under_way + 11):
        channel.broadcast(encode_events(seq, [body()]))
        before = bench.reactor.bytes_sent
        bench.poller.wait(0)
        rests += bench.reactor.bytes_sent == before
    assert rests
    for _ in range(10):
        bench.turn()
        under_way = cut_fan_out(bench, channel, channel.walked_seq + 1)
        while channel.walked_seq < under_way:
            before = bench.reactor.bytes_sent
            bench.poller.wait(0)
            assert bench.reactor.bytes_sent > before  # that of a single one does not


def test_so_many_get_on_a_walk_and_the_others_wait(big: Any) -> None:
    bench, channel, pairs = big
    under_way = cut_fan_out(bench, channel)
    for seq in range(under_way + 1, under_way + 30):
        assert channel.busy == (seq >= under_way + 16)
        channel.broadcast(encode_events(seq, [body()]))
    channel.broadcast(encode_plain([b'{"type":"typing","seq":0}']))
    channel.reset(encode_plain([b'{"type":"reset","seq":-1}']), 1)
    channel.broadcast(encode_events(1, [body()]))
    bench.turn()
    assert not channel.busy
    assert all(seqs(take(far)) == [*range(1, under_way + 30), 0, -1, 1] for far, _, _ in pairs)


def test_a_reset_that_waits_is_not_for_who_came_since(big: Any) -> None:
    """It took whoever had come since back to its seq, and the same events came again."""
    bench, channel, pairs = big
    far, connection, _ = pairs[0]
    epoch_end = cut_fan_out(bench, channel)
    channel.broadcast(encode_events(epoch_end + 1, [body()]))
    channel.reset(encode_plain([b'{"type":"reset","seq":-1}']), 1)
    channel.broadcast(encode_events(1, [body()]))
    new_far, new, _ = bench.member()
    channel.join(new, 2, True)
    channel.join(connection, 1, False)
    assert channel.replay(connection, encode_events(1, [body()])) == 0
    channel.set_live(connection, 2)
    channel.broadcast(encode_events(2, [body()]))
    bench.turn()
    assert seqs(take(new_far)) == [2]
    assert seqs(take(far))[-2:] == [1, 2]
    assert seqs(take(pairs[1][0]))[-4:] == [epoch_end + 1, -1, 1, 2]


def test_a_room_that_more_than_half_have_left_takes_nothing_on_its_walk(big: Any) -> None:
    """A walk that never ends would never free their places."""
    bench, channel, pairs = big
    under_way = cut_fan_out(bench, channel)
    assert not channel.busy
    for _, connection, _ in pairs[: BIG * 2 // 3]:
        channel.leave(connection)
    assert channel.busy
    channel.broadcast(encode_events(under_way + 1, [body()]))
    bench.turn()
    assert not channel.busy and len(channel) == BIG - BIG * 2 // 3
    assert all(seqs(take(far)) == list(range(1, under_way + 2)) for far, _, _ in pairs[BIG * 2 // 3 :])


@pytest.mark.parametrize("seed", range(3))
def test_everybody_gets_everything_once_and_in_order_whoever_comes_and_goes(big: Any, seed: int) -> None:
    """Batches, notices and resets get on and wait, members come and go, some read nothing for a while."""
    bench, channel, pairs = big
    chance, head, sent = random.Random(seed), 0, []
    staying = pairs[:: BIG // 50]
    slow = [bench.member(small=True) for _ in range(20)]
    for _, connection, _ in slow:
        channel.join(connection, 1, True)
    others = [pair for pair in pairs if pair not in staying]
    since: list[tuple[socket.socket, int]] = []  # who came later, and what had been sent by then
    laps = 0
    for _ in range(150):
        kind = chance.randrange(12)
        if kind < 7:
            count = chance.randint(1, 3)
            channel.broadcast(encode_events(head + 1, [body(chance.randrange(300))] * count))
            sent += range(head + 1, head + count + 1)
            head += count
        elif kind == 7 and not channel.busy:
            channel.broadcast(encode_plain([b'{"type":"typing","seq":-1}']))
            sent.append(-1)
        elif kind == 8:
            channel.reset(encode_plain([b'{"type":"reset","seq":-2}']), head + 5)
            sent.append(-2)
            head += 4
        elif kind == 9:
            for _ in range(min(len(others), chance.randrange(400))):
                channel.leave(others.pop(chance.randrange(len(others)))[1])
        elif kind == 10:
            far, connection, _ = bench.member()
            channel.join(connection, head + 1, True)
            since.append((far, len(sent)))
        else:
            laps += bench.reactor.poll()
    assert laps and head > 50
    bench.turn()
    assert not channel.busy and channel.walked_seq == head
    assert all(seqs(take(far)) == sent for far, _, _ in staying)
    for far, before in since:  # typing that was under way may still reach who comes
        found = [seq for seq in seqs(take(far)) if seq != -1]
        assert found == [seq for seq in sent[before:] if seq != -1]
    for far, connection, owner in slow:
        received: list[tuple[int, bytes]] = []
        decoder = FrameDecoder(1 << 24, require_mask=False)
        while connection.backlog:
            received += take(far, decoder)
            bench.turn(1)
        received += take(far, decoder)
        assert seqs(received) == sent and not owner.gaps


def test_who_reads_nothing_is_told_of_the_gap_behind_what_came_together(big: Any) -> None:
    bench, channel, pairs = big
    far, connection, owner = bench.member(small=True)
    channel.join(connection, 1, True)
    channel.broadcast(encode_events(1, [body(3000)]))
    for seq in range(2, 17):
        channel.broadcast(encode_events(seq, [body(6000)]))
    assert not channel.silent(connection)
    bench.turn()
    assert channel.silent(connection)
    decoder, found = FrameDecoder(1 << 24, require_mask=False), []
    while connection.backlog:
        found += seqs(take(far, decoder))
        bench.turn(1)
    found += seqs(take(far, decoder))
    assert 0 < len(found) < 16 and found == list(range(1, len(found) + 1))
    assert owner.gaps == [[("big", len(found) + 1)]]
    assert seqs(take(pairs[0][0])) == list(range(1, 17))


def test_a_room_that_is_dropped_during_its_fan_out_harms_nobody(big: Any) -> None:
    bench, channel, pairs = big
    channel.broadcast(encode_events(1, [body()]))
    for _, connection, _ in pairs[: BIG // 2]:
        connection.abort()
    del channel
    big_list = list(pairs)
    bench.turn()
    assert bench.reactor.connections == BIG - BIG // 2
    for _, connection, _ in big_list[BIG // 2 :]:
        connection.send_text(b"still here")
