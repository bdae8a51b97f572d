"""Two thousand connections for half a minute, and every single delivery counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import churn, stalled
from bench.load import Load, Plan
from bench.processes import running_server
from tests.support import SANITIZED, http


@pytest.mark.slow
def test_two_thousand_people_for_half_a_minute_get_each_message_once_and_in_order(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.5", workers=2) as server:
        plan = Plan(port=server.port, rooms=40, members=50, processes=1, prefix="soak")
        with Load(plan) as load:
            connected = load.connect(60)
            assert (connected.joined, connected.failed) == (2000, 0), connected.last_error
            load.idle(1.0)
            report = load.send(30.0, 150)
            assert report.closed == 0, report
    assert report.sent >= 4400
    assert report.delivered == report.expected == report.sent * 50
    assert (report.holes, report.repeats, report.errors) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps what was freed, and bytes around each object")
def test_members_who_do_not_read_cost_their_bound_and_the_others_nothing(tmp_path: Path) -> None:
    """The short form of ``python -m bench.stalled``, without its times."""
    with running_server(tmp_path, "--drain-seconds=0.5", "--max-backlog=262144", workers=1) as server:
        turn = stalled.measure(server, readers=20, stalled=40, rate=200, seconds=4.0, text_bytes=3000)
        assert turn.report.exact and turn.report.sent > 700
        # Some of it is the room's own recent events, and all of it is shared.
        assert turn.stalled_bytes < 262_144 + 100_000
        metrics = http(server.port, "GET", "/metrics").body.decode()
    (drops,) = re.findall(r"^tornadochat_backlog_drops_total.* (\d+)\.0$", metrics, re.MULTILINE)
    assert int(drops) > 0, "they were cut off"


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps what was freed, and bytes around each object")
def test_memory_comes_back_after_many_visits(tmp_path: Path) -> None:
    """The short form of ``python -m bench.churn``: rooms and people leave nothing behind, and what malloc holds
    unused goes back to the system."""
    options = ("--drain-seconds=0.5", "--subscription-grace-seconds=1")
    with running_server(tmp_path, *options, workers=1) as server:
        outcome = churn.measure(server, visits=6000, rooms=300, settle_seconds=24)
    assert outcome.made == 6000 and outcome.failed == 0
    assert outcome.growth < 1.15, outcome
