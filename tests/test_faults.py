"""The driver of faults in a short form: every kind once, and a proof that nothing was lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.driver import Plan, run


@pytest.mark.slow
@pytest.mark.faults
def test_no_kind_of_fault_loses_doubles_or_disorders_anything(tmp_path: Path) -> None:
    plan = Plan(
        clients=40, rooms=5, seconds=0, faults=12, pause_seconds=1.0, freeze_seconds=6.0, workers=2, seed=3
    )
    report = asyncio.run(run(plan, tmp_path))
    told = "\n".join(report.lines())
    assert report.clean, told
    assert report.faults >= 12 and report.reconnects > 0, told
    assert report.verdict.acknowledged == report.verdict.messages > 200, told
    # A store restarted empty, and members that stalled while the log moved on, must have been told.
    assert report.verdict.told > 0, told
