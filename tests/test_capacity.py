"""How many users a system holds: the search, the rule, the table, and what other generators' reports say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import agreement, capacity, peers, report, search, users
from bench.processes import Unavailable
from bench.users import Trial


def a_trial(size: int = 1000, **changed: Any) -> Trial:
    """A trial that holds, but for what is changed."""
    deliveries = size * 50 // 3
    trial = Trial(
        users=size,
        seconds=20.0,
        workers=2,
        generators=1,
        joined=size,
        failed=0,
        connect_seconds=1.0,
        sent=size // 3 + 1,
        expected=deliveries,
        delivered=deliveries,
        p50_ms=2.0,
        p95_ms=4.0,
        p99_ms=9.0,
        server_cores=0.5,
        machine_cores=0.6,
        pss_bytes=2000.0,
    )
    return replace(trial, **changed)


class Machine:
    """Holds up to a size for a short time and up to another for a long one; remembers what was tried."""

    def __init__(self, short: int, long: int = 10**9, spoilt: tuple[int, ...] = ()) -> None:
        self.tried: list[int] = []
        self.proved: list[int] = []
        self._short, self._long, self._spoilt = short, long, spoilt

    def trial(self, size: int) -> bool:
        self.tried.append(size)
        return size <= self._short and len(self.tried) - 1 not in self._spoilt

    def proof(self, size: int) -> bool:
        self.proved.append(size)
        return size <= min(self._short, self._long)

    def search(self, start: int, cap: int = 100_000, growth: float = search.GROWTH) -> search.Found:
        return search.largest(self.trial, self.proof, start, 50, cap, growth)


@pytest.mark.parametrize("most", [50, 130, 1_000, 7_777, 63_000, 99_999])
@pytest.mark.parametrize("start", [50, 1_000, 60_000, 100_000])
@pytest.mark.parametrize("growth", [1.1, 2.0])
def test_the_largest_size_is_found_from_any_start(most: int, start: int, growth: float) -> None:
    machine = Machine(most)
    found = machine.search(start, growth=growth)
    assert found.size <= most < max(found.size * search.PRECISION, found.size + 50) + 50
    assert found.size % 50 == 0 and found.size == found.tried and not found.capped
    assert machine.proved == [found.size]


def test_near_the_start_few_trials_are_needed() -> None:
    machine = Machine(60_500)
    assert machine.search(60_000).size == 60_000
    assert machine.tried == [60_000, 66_150, 63_000]


def test_what_no_larger_size_can_follow_is_tried_and_proved_once() -> None:
    machine = Machine(10**9)
    assert machine.search(19_900, cap=19_900) == search.Found(19_900, 19_900, True)
    assert (machine.tried, machine.proved) == ([19_900], [19_900])


def test_what_is_held_for_a_short_time_only_is_lowered() -> None:
    machine = Machine(63_000, long=56_000)
    found = machine.search(60_000)
    assert machine.proved == [63_000, 58_600, 54_500]
    assert found == search.Found(54_500, 63_000, False)


def test_a_search_gives_up_after_some_proofs() -> None:
    machine = Machine(60_000, long=0)
    assert machine.search(60_000).size == 0
    assert len(machine.proved) == search.PROOFS


def test_nothing_is_held_where_not_even_one_room_is() -> None:
    machine = Machine(0)
    assert machine.search(200) == search.Found(0, 0, False)
    assert machine.tried == [200, 150, 100, 50] and machine.proved == []


def test_a_spoilt_trial_makes_the_answer_smaller_and_no_more() -> None:
    machine = Machine(60_000, spoilt=(1,))
    found = machine.search(50_000)
    assert 50_000 <= found.size <= 60_000 and machine.proved == [found.size]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"failed": 3, "joined": 997}, "3 connects failed"),
        ({"joined": 900}, "900 of 1,000 joined in 1 s"),
        ({"disconnected": 2, "joined": 998}, "2 users disconnected"),
        ({"sent": 300}, "messages refused"),
        ({"delivered": 16_500}, "1.00% of the deliveries lost"),
        ({"delivered": 16_667}, "deliveries wrong"),
        ({"wrong": 1}, "deliveries wrong"),
        ({"p95_ms": 1000.0}, "p95 1,000 ms"),
    ],
)
def test_each_part_of_the_rule_is_told_by_its_name(changed: dict[str, Any], why: str) -> None:
    assert users.complaint(a_trial(**changed)) == why


@pytest.mark.parametrize(
    ("changed", "whose"),
    [
        ({}, ""),
        ({"busiest_generator": 0.99}, "the generator's process was full"),
        ({"machine_cores": 1.98}, "all 2 cores were full: server 0.50, store 0.00, generator 0.00"),
        ({"late_ms": 300.0}, "the generator sent up to 300 ms late"),
    ],
)
def test_a_limit_of_the_generator_or_the_machine_is_told(changed: dict[str, Any], whose: str) -> None:
    assert users.whose_limit(a_trial(**changed), 2) == whose


def up_to(limits: dict[str, int]) -> Callable[[str, int, float, int], Trial]:
    """Makes trials without a server; more than the limit are slow."""

    def run(system: str, size: int, seconds: float, workers: int) -> Trial:
        slow = {"p95_ms": 1500.0, "machine_cores": 2.0} if size > limits[system] else {}
        return a_trial(size, seconds=seconds, workers=workers, sent=round(size / 60 * seconds), **slow)

    return run


def test_a_row_says_what_stopped_it() -> None:
    tried = up_to({"socketio": 42_000, "tornado-single": 10**6})
    row = capacity.measure("socketio", 40_000, 1.1, (20.0, 180.0), 20_000, 2, try_users=tried)
    assert row.users == 41_950 and row.proof is not None and row.proof.seconds == 180
    assert row.proof.workers == 3  # a worker may open 20,000 files
    assert row.limit.startswith("at 44,000: p95 1,500 ms; all 2 cores were full")
    row = capacity.measure("tornado-single", 19_900, 1.1, (20.0, 180.0), 20_000, 2, try_users=tried)
    assert (row.users, row.limit) == (19_900, "20,000 open files of one process")
    row = capacity.measure("tornado-single", 19_900, 1.1, (20.0, 180.0), 20_000, 2, 500, try_users=tried)
    assert (row.users, row.limit) == (500, "nothing larger was tried")


def test_the_files_of_a_process_give_the_number_of_workers() -> None:
    assert [capacity.workers_for(n, 20_000, 2, False) for n in (50, 38_000, 60_000, 100_000)] == [2, 2, 4, 6]
    assert capacity.workers_for(60_000, 20_000, 2, True) == 1


def some_capacity() -> capacity.Capacity:
    machine = {"cores": "2", "memory": "8 GiB", "system": "Linux", "python": "3.11"}
    proof = a_trial(19_900)
    rows = {
        "tornado-single": capacity.Row("tornado-single", 19_900, "20,000 files", proof, (proof,)),
        "socketio": capacity.Row("socketio", 0, "", None, (), "node or npm is not installed"),
    }
    return capacity.Capacity(machine, "2026-01-02", 20_000, rows)


def test_results_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    found = some_capacity()
    found.save(tmp_path / "day" / "capacity.json")
    assert capacity.Capacity.load(tmp_path / "day" / "capacity.json") == found


def test_earlier_results_are_merged_and_written_into_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "CHECKOUT", tmp_path)
    document = tmp_path / "docs" / "scale.md"
    document.parent.mkdir()
    document.write_text(f"before\n{capacity.BEGIN}\nold\n{capacity.END}\nafter\n")
    first, second = some_capacity(), some_capacity()
    first.rows.pop("tornado-single")
    second.rows["socketio"] = replace(second.rows["socketio"], users=60_000, proof=a_trial(60_000), skipped="")
    for number, found in enumerate((first, second)):
        found.save(tmp_path / f"{number}.json")
    arguments = ["--read", str(tmp_path / "0.json"), str(tmp_path / "1.json"), "--write-docs"]
    assert capacity.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| Socket.IO cluster + Redis adapter | 60,000 | - | 2 | 2 / 4 / 9 | 0.50 | 0.00 | 120,000 |" in text
    assert text.index("Socket.IO cluster") < text.index("Tornado WebSocketHandler, one process")
    assert "19,900" in capsys.readouterr().out


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.md"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no marks"):
        report.write_between(path, (capacity.BEGIN, capacity.END), ["new"])
    assert path.read_text() == "nothing\n"


def test_the_documents_of_this_checkout_have_the_marks() -> None:
    text = (capacity.CHECKOUT / "docs" / "scale.md").read_text()
    for mark in (capacity.BEGIN, capacity.END, agreement.BEGIN, agreement.END):
        assert text.count(mark) == 1, mark


ARTILLERY = {
    "aggregate": {
        "counters": {"vusers.created": 100, "chat.joined": 100, "chat.sent": 100, "chat.delivered": 5000},
        "summaries": {
            "socketio.response_time": {"p50": 0.5, "p95": 2.2, "p99": 4.8},
            "chat.delay": {"p50": 2.7, "p95": 5.9, "p99": 11.6, "count": 5000},
        },
    }
}


def test_artillerys_report_is_read() -> None:
    seen = agreement.artillery_seen(ARTILLERY, 3.5)
    assert seen == agreement.Seen("Artillery", 100, 100, 5000, 5000, 2.7, 5.9, 11.6, 3.5)
    assert seen.exact(100) and not seen.exact(101) and not replace(seen, delivered=4999).exact(100)


def test_artillery_that_delivered_nothing_says_why() -> None:
    counters = {"vusers.created": 100, "errors.connect_error": 100}
    with pytest.raises(Unavailable, match=r"errors\.connect_error"):
        agreement.artillery_seen({"aggregate": {"counters": counters, "summaries": {}}}, 0.0)


STATISTICS = """Type,Name,Request Count,Failure Count,50%,95%,99%
chat,delivery,5000,0,3,6,12
chat,join,100,0,5,9,15
,Aggregated,5100,0,3,6,12
"""


def test_locusts_report_is_read() -> None:
    outcome = {"joined": 100, "sent": 100, "expected": 5000, "delivered": 5000, "users": 100}
    progress = "\n".join(json.dumps(line) for line in ({"phase": "hold"}, {"outcome": outcome}))
    seen = agreement.locust_seen(progress, STATISTICS, 1.5)
    assert seen == agreement.Seen("Locust", 100, 100, 5000, 5000, 3.0, 6.0, 12.0, 1.5)
    assert "| Locust | 100 | 100 | 5,000 | 5,000 | 3.0 / 6.0 / 12.0 | 300 |" in agreement.table([seen])
    with pytest.raises(Unavailable):
        agreement.locust_seen('{"phase": "hold"}', STATISTICS, 1.5)


def test_no_lock_file_names_a_registry() -> None:
    for name in ("artillery", "peers/socketio"):
        text = (capacity.CHECKOUT / "bench" / name / "package-lock.json").read_text()
        assert '"resolved"' not in text and '"integrity"' in text, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tornado-single", "tornadochat", "socketio-single"])
def test_a_trial_of_each_kind_of_system_counts_every_delivery(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "socketio-single" and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node is not installed")
    monkeypatch.setattr(users, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(users, "WARM_SECONDS", 1.0)
    monkeypatch.setattr(users, "MESSAGES_A_SECOND", 0.5)
    try:
        trial = users.run(name, 100, 2.0, 1)
    except Unavailable as error:
        if "npm ci" in str(error):
            pytest.skip(f"Socket.IO's packages cannot be had here: {error}")
        raise
    assert trial.joined == 100 and trial.failed == 0 and trial.sent in range(98, 101), trial
    assert trial.delivered == trial.expected == 50 * trial.sent, trial
    assert trial.server_cores > 0 and trial.generator_cores > 0 and trial.pss_bytes > 0, trial
    assert (trial.store_cores > 0) == (name == "tornadochat"), trial


def test_a_system_that_cannot_run_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    out = tmp_path / "capacity.json"
    assert capacity.main(["--systems=socketio-single", f"--out={out}"]) == 1
    assert "node or npm" in capacity.Capacity.load(out).rows["socketio-single"].skipped
    assert peers.PEERS["socketio-single"].single
