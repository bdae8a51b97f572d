"""``python -m pytest bench/micro --benchmark-only``: one batch to every member of a room, over socketpairs.

The far ends are emptied between two rounds, outside of what is measured.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tornadochat._fastframe import Batch, encode_events
from tornadochat._reactor import Channel, Reactor
from tornadochat.processes import raise_file_limit

BODY = b'{"type":"message","room":"lobby","user":"u-17","name":"Ada","text":"Who is coming to tea?","time":1}'
ROUNDS = 200


def make_reactor() -> Reactor:
    """A reactor with the server's own limits, told of nothing."""
    return Reactor(
        on_text=lambda owner, payload: None,
        on_closed=lambda owner, code, reason: None,
        on_drained=lambda owner: None,
        on_gap=lambda owner, rooms: None,
        max_message_bytes=1 << 17,
        max_backlog_bytes=1 << 20,
        max_answer_bytes=1 << 18,
        replay_bytes=1 << 18,
        ping_seconds=25,
        pong_seconds=20,
        close_seconds=5,
        stuck_seconds=30,
    )


@contextmanager
def room_of(reactor: Reactor, members: int) -> Iterator[tuple[Channel, list[socket.socket]]]:
    """A room and the far ends of its members."""
    channel, far_ends = reactor.channel("lobby"), []
    for _ in range(members):
        near, far = socket.socketpair()
        far.setblocking(False)
        far_ends.append(far)
        channel.join(reactor.attach(near.detach(), object()), 1, True)
    try:
        yield channel, far_ends
    finally:
        for far in far_ends:
            far.close()


@pytest.mark.parametrize("members", [100, 1000])
def test_broadcast_a_message_to_a_room(benchmark: BenchmarkFixture, members: int) -> None:
    raise_file_limit()
    with closing(make_reactor()) as reactor, room_of(reactor, members) as (channel, far_ends):
        seq = 0

        def empty() -> tuple[tuple[Any, ...], dict[str, Any]]:
            nonlocal seq
            seq += 1
            for far in far_ends if seq > 1 else ():
                far.recv(1 << 16)
            return (encode_events(seq, [BODY]),), {}

        def broadcast(batch: Batch) -> None:
            channel.broadcast(batch)
            while channel.walked_seq < batch.last_seq:
                reactor.poll()

        benchmark.pedantic(broadcast, setup=empty, rounds=ROUNDS)
        assert reactor.deliveries == seq * members
