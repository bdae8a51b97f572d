"""One room with very many members on one worker: every delivery once and in order, and the others are served
meanwhile."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from bench.load import Load, Plan
from bench.processes import running_server
from tests.support import Person, http

pytestmark = pytest.mark.slow
MEMBERS = 12_000


def longest_hold(port: int) -> float:
    """Seconds, from the metrics."""
    found = re.search(
        r"^tornadochat_longest_hold_seconds\S* (\S+)$", http(port, "GET", "/metrics").body.decode(), re.M
    )
    assert found is not None
    return float(found[1])


def test_a_huge_room_holds_nobody_up(tmp_path: Path, room: str) -> None:
    with (
        running_server(tmp_path, "--drain-seconds=0.2", workers=1) as server,
        Load(Plan(port=server.port, rooms=1, members=MEMBERS, prefix="huge")) as load,
    ):
        assert load.connect().joined == MEMBERS
        load.idle(1.0)
        waits: list[float] = []
        stopped = threading.Event()

        def talk_elsewhere() -> None:
            """Commands of another room, and new connections, while fan-outs go on."""
            while not stopped.is_set():
                begin = time.monotonic()
                with Person(server.port, "Bob") as bob:
                    bob.join(room, history=0)  # unread events would keep its closing waiting
                    bob.say(room, "hello")
                    bob.expect("message")
                waits.append(time.monotonic() - begin)

        talking = threading.Thread(target=talk_elsewhere)
        talking.start()
        report = load.send(4.0, 5.0)
        stopped.set()
        talking.join(20)
        hold = longest_hold(server.port)
    assert report.exact and report.sent == 20 and report.delivered == 20 * MEMBERS
    # A fan-out takes several times the 10 ms that it may hold the loop; both by the same clock.
    assert hold < report.p99_ms / 1000 / 2, f"{hold * 1000:.0f} ms of {report.p99_ms:.0f}"
    # So there were several turns of the others within each of them.
    assert len(waits) > report.sent / 2 and max(waits) < 5
