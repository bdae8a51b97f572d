"""The benchmarks that run in one process do the work that they measure."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import hiredis
import pytest

from bench import command, deflate, native, receive
from tornadochat._fastframe import published_header

memory = pytest.importorskip("bench.memory", reason="the reactor needs Linux' epoll")


def test_a_module_is_compiled_again_when_a_declaration_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator went on with the former layout of the poller's class."""
    for name in ("HERE", "BUILD", "DECLARATIONS"):
        monkeypatch.setattr(native, name, tmp_path)
    (tmp_path / "_twice.pyx").write_text("from shared cimport ANSWER\nanswer = ANSWER\n")
    compiled = Mock(wraps=native._compile)
    monkeypatch.setattr(native, "_compile", compiled)
    declaration = tmp_path / "shared.pxd"
    for times, seconds in ((1, -60), (1, -60), (2, 60)):
        declaration.write_text(f"cdef enum:\n    ANSWER = {42 * times}\n")
        changed = time.time() + seconds
        os.utime(declaration, (changed, changed))
        monkeypatch.delitem(sys.modules, "_twice", raising=False)
        assert native.load("_twice").answer == 42 and compiled.call_count == times
    monkeypatch.delitem(sys.modules, "_twice")


def test_what_is_measured_of_receiving_reaches_the_rooms() -> None:
    async def work() -> None:
        for rooms in (1, 50):
            bench = receive.Bench(rooms)
            for _ in range(3):
                assert bench.take(200) > 0
            assert [room.flushed_seq for room in bench.rooms] == [600 // rooms] * rooms
            assert bench.hub.events_delivered == 600

    asyncio.run(work())


def test_what_is_measured_of_a_command_is_written_for_the_store_and_answered() -> None:
    async def work() -> None:
        talk = command.Talk(20)
        there, back = command.turn(talk)
        assert there > 0 and back > 0
        reader = hiredis.Reader()
        reader.feed(talk.writer.data)
        sent = []
        while (found := reader.gets()) is not False:
            sent.append(found)
        assert len(sent) == 20
        assert all(each[0] == b"EVALSHA" and each[-1].startswith(b'{"type":"message"') for each in sent)
        assert talk.rules.stored == 20 and talk.link.waiting == 0
        await talk.publisher.close()

    asyncio.run(work())


def test_each_layer_of_a_member_is_told_and_their_sum() -> None:
    found = memory.measure(400, 50)
    assert len(found) == 7 and found[-1][0] == "all"
    assert found[-1][1] == pytest.approx(sum(size for _, size in found[:-1]))


def test_the_cost_of_compression_is_told_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    deflate.main(["--sizes", "300", "--levels", "1"])
    assert "text of 300 characters, level 1: frame of" in capsys.readouterr().out


def test_a_published_batch_of_the_benchmark_is_one() -> None:
    async def work() -> None:
        reader = hiredis.Reader()
        reader.feed(receive.Bench(3).read(3))
        kind, _channel, payload = reader.gets()
        assert kind == b"message" and published_header(payload) == (receive.EPOCH, 1, 1)

    asyncio.run(work())
