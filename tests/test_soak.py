"""Two thousand connections for half a minute, and every single delivery counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.load import Load, Plan
from bench.processes import running_server


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
