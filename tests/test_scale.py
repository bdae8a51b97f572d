"""The long runs at a small size: as many members as fit, reconnect storms, and growth with its plan."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as websockets_serve

from bench import growth, load, million, native, storm
from bench.dialects import DIALECTS
from bench.load import Load, Plan, sources_for
from bench.processes import running_server
from tests.support import SLOWNESS

pytest.importorskip("matplotlib", reason="Matplotlib comes with the extra bench")


@pytest.mark.slow
def test_a_small_million_joins_rests_talks_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(million, "SETTLE_SECONDS", 2.0)
    monkeypatch.setattr(million, "LAST_SECONDS", 2.0)
    told = ("--members=600", "--room-size=60", "--files=420", "--rate=50", "--seconds=3", "--idle-seconds=1")
    assert million.main([*told, f"--out={tmp_path}"]) == 0, capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    facts = json.loads((folder / "summary.json").read_text())["facts"]
    assert facts["workers"] > 2 and facts["generators"] > 2, "since a process may open so few files"
    assert facts["joined"] == 600 and facts["failed"] == facts["lost"] == facts["doubled"] == 0
    assert facts["delivered"] == facts["messages"] * 60 and facts["messages"] >= 140
    assert {path.name for path in folder.glob("*.svg")} == {"cpu.svg", "memory.svg", "sockets.svg"}


def test_a_ramp_ends_where_memory_does(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", workers=1) as server:
        plan = Plan(port=server.port, rooms=2, members=50, floor_bytes=1 << 60)
        with Load(plan) as running:
            report = running.connect(20)
    assert report.low_memory and report.joined == report.begun == 0
    assert million.why_stopped(report, 100, 1536) == "less than 1536 MiB of memory were left"


def test_a_ramp_that_only_fails_is_given_up() -> None:
    with Load(Plan(port=1, rooms=10, members=100)) as running:
        report = running.connect(20)
    assert report.joined == 0 and load.MAX_FAILED < report.failed <= report.begun < 1000
    assert million.why_stopped(report, 1000, 0).startswith("connections failed: ")


def test_a_million_is_spread_over_processes_by_their_files(tmp_path: Path) -> None:
    size = million.size_of(1_000_000, 1000, 20_000)
    assert size == million.Size(1000, 1000, 53, 53) and size.members == 1_000_000
    assert million.size_of(2500, 1000, 20_000) == million.Size(2, 1000, 1, 1)
    with pytest.raises(ValueError, match="does not fit"):
        million.size_of(10_000, 1000, 1100)
    for number, share in ((0, [0, 3, 0, 3]), (1, [1, 1]), (2, [2, 2])):
        assert Plan(0, rooms=4, members=2, processes=3, whole_rooms=True).share(number) == share
    assert len(set(sources_for(1_000_000))) == 100 and sources_for(5) == ("127.0.0.2",)


def test_what_stops_a_million_first_is_told(tmp_path: Path) -> None:
    for name, text in (
        ("sys/fs/file-nr", "1000 0 2001000\n"),
        ("sys/fs/epoll/max_user_watches", "5000000\n"),
        ("sys/net/netfilter/nf_conntrack_count", "10\n"),
        ("sys/net/netfilter/nf_conntrack_max", "262144\n"),
        ("meminfo", "MemTotal: 99 kB\nMemAvailable: 20000000 kB\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    size = million.size_of(1_000_000, 1000, 20_000)
    found = million.limits(size, 1 << 30, tmp_path)
    assert [limit.members for limit in found[:2]] == [262_134, 1_000_000]
    assert "the firewall tracks" in found[0].reason
    (tmp_path / "sys/net/netfilter/nf_conntrack_count").write_text("0\n")
    assert "file-max" in million.limits(size, 1 << 30, tmp_path)[0].reason, "nobody tracks"


@pytest.mark.slow
@pytest.mark.faults
def test_who_is_cut_off_comes_back_and_misses_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=0.2", "--debug-headers", workers=3) as server:
        plan = Plan(port=server.port, rooms=10, members=30, resumes=True, whole_rooms=True, processes=2)
        with Load(plan) as running:
            assert running.connect(30).joined == 300
            one_stays = storm.measure(server, running, 50.0, 1)
            assert one_stays.exact and one_stays.killed == 2, one_stays
            assert 0 < one_stays.cut < 300 and one_stays.probes_failed == 0 and one_stays.probes > 10
            assert 0 < one_stays.times["50%"] <= one_stays.times["99%"] <= one_stays.times["100%"]
            assert one_stays.stayed_p99_ms > 0 and one_stays.stored > 100
            none_stays = storm.measure(server, running, 50.0, None)
            assert none_stays.exact and (none_stays.killed, none_stays.cut) == (3, 300), none_stays


@pytest.mark.slow
def test_growth_is_measured_and_written_between_its_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scale.md").write_text(f"# How it grows\n\n{growth.BEGIN}\nold\n{growth.END}\n")
    assert growth.main(["--small", "--seconds=1", "--write-docs", f"--docs={tmp_path}"]) == 0
    text = (tmp_path / "scale.md").read_text()
    assert text.startswith("# How it grows\n") and "old" not in text and text.endswith(f"\n\n{growth.END}\n")
    assert "- store's commands, a second: " in text and "(plots/growth-users.svg)" in text
    assert "</svg>" in (tmp_path / "plots" / "growth-users.svg").read_text()
    assert "### By users" in capsys.readouterr().out


def a_point(x: float, worker_us: float, store_us: float = 30.0, pss_bytes: int = 10**8) -> growth.Point:
    """One with 100 messages a second."""
    return growth.Point(
        x=x,
        users=1000,
        messages=100.0,
        deliveries=5000.0,
        worker_cores=worker_us * 100 / 1e6,
        store_cores=store_us * 100 / 1e6,
        commands=800.0 * x,
        pss_bytes=pss_bytes,
        p99_ms=5.0,
        exact=True,
    )


def test_costs_and_the_plan_follow_from_the_lines() -> None:
    # 100 us for a message, 50 for each worker that it wakes, 5 for each member; two workers, or 100 members.
    found = {
        "workers": [a_point(n, 100 + 50 * n + 500, store_us=30 + 4 * n) for n in (1, 2, 4, 8)],
        "room size": [a_point(n, 100 + 100 + 5 * n) for n in (10, 20, 40)],
        "users": [a_point(n, 1, pss_bytes=50_000_000 + 1200 * n) for n in (1000, 2000, 5000)],
        "rate": [a_point(n, 1) for n in (1, 2)],
    }
    costs = growth.costs_of(found)
    assert costs == pytest.approx((100, 50, 5, 30, 4, 1200, 25_000_000, 800), rel=1e-6)
    led = growth.fleet_for(1_000_000, 50, 10_000, costs, affinity=True)
    assert led.worker_cores == pytest.approx(4.0) and led.workers == 7 and led.spread == 1
    drawn = growth.fleet_for(1_000_000, 50, 10_000, costs, affinity=False)
    assert drawn.workers > led.workers and 1 < drawn.spread < 50
    assert drawn.worker_cores <= drawn.workers * growth.MAX_SHARE
    assert led.shards == 1 and drawn.store_cores > led.store_cores
    text = growth.plan_text(costs, 20_000)
    assert "833,333 deliveries a second" in text and "1. " in text and "(50 by files)" in text


def test_a_room_that_cannot_be_read_just_now_is_asked_for_again() -> None:
    """The load generator joins as a client does: when it is told to."""
    refusal = '{"type":"error","code":"unavailable","message":"-","room":"load-0","retry_after_ms":50}'
    joined = '{"type":"joined","room":"load-0","epoch":"e","seq":4,"truncated":false,"missing":0,"people":1}'
    asked: list[str] = []

    def serve(connection: ServerConnection) -> None:
        for text in connection:
            asked.append(str(text))
            connection.send(refusal if len(asked) == 1 else joined)

    with websockets_serve(serve, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        swarm = native.load("_loadgen").Swarm(*server.socket.getsockname(), DIALECTS["tornadochat"], ["load-0"], 1)
        swarm.connect(0, True)
        deadline = time.monotonic() + 10 * SLOWNESS
        while not swarm.joined and time.monotonic() < deadline:
            swarm.run(0.02)
        assert (swarm.joined, swarm.retries, swarm.errors, swarm.failed) == (1, 1, 0, 0)
        assert len(asked) == 2 and asked[0] == asked[1] and swarm.heads() == [(0, 4)]
        del swarm
        server.shutdown()
