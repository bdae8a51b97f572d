"""The comparison with other servers: counts are exact, tables and documents say what was found."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compare, load, peers, report, store_floor, systems
from bench.results import Joining, Pair, Results, Sample, Saturation, quartiles
from bench.saturation import complaint


def a_sample(cpu_us: float = 5.0, delivered: int = 1000, p99_ms: float = 3.0, rate: float = 200.0) -> Sample:
    return Sample(rate, 100, 1000, delivered, 0, 0, cpu_us, 1.0, p99_ms, 0.0)


def some_results() -> Results:
    return Results(
        machine={"cores": "2", "memory": "8 GiB", "system": "Linux", "python": "3.11"},
        pairs=[Pair("sparse", "websockets", a_sample(cpu), a_sample(2 * cpu, delivered=900)) for cpu in (4, 5, 6)],
        joinings=[Joining("tornadochat", "10 rooms of 100", 1000, 300.0, 2048.0)],
        saturations=[
            Saturation("10 rooms of 100", 100, "tornadochat", 9000.0, "slow", (a_sample(), a_sample(rate=400.0)))
        ],
        skipped={"nchan in 10 rooms of 100": "nginx is not installed"},
    )


@pytest.mark.slow
def test_every_delivery_of_ours_and_of_a_peer_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvloop", reason="uvloop comes with the extra bench")
    for name in ("REST_SECONDS", "WARM_SECONDS"):
        monkeypatch.setattr(systems, name, 0.1)
    monkeypatch.setattr(load, "DRAIN_SECONDS", 0.3)
    out = tmp_path / "compare.json"
    others = "--systems=floor,floor-store,websockets,tornado"
    assert compare.main(["--shapes=tiny", others, "--pairs=1", "--seconds=1", f"--out={out}"]) == 0
    results = Results.load(out)
    assert [pair.system for pair in results.pairs] == ["floor", "floor-store", "websockets", "tornado"]
    for pair in results.pairs[2:]:
        for sample in (pair.ours, pair.other):
            assert sample.sent in (49, 50), sample  # the last one is due at the very end
            assert sample.delivered == sample.expected == 4 * sample.sent and sample.exact, sample
    assert not results.skipped and len(results.joinings) == 3
    assert "| websockets + Redis |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_floor_with_a_store_delivers_what_was_published_once() -> None:
    found = store_floor.measure(rooms=3, members=4, rate=50, seconds=1, frame_bytes=200)
    assert found.deliveries == 4 * 50
    assert found.workers_us > 0


def test_the_floor_with_a_store_takes_as_many_rooms_as_its_channels_can_tell() -> None:
    with pytest.raises(ValueError, match="1 to 65,536, not 65,537"):
        store_floor.measure(rooms=65537, members=1, rate=1, seconds=1, frame_bytes=200)


def test_a_worker_of_a_peer_tells_that_it_is_ready_in_one_write() -> None:
    """Two writes of two workers that share an unbuffered output could mix, and the peer never became ready."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.settimeout(20)
    with reader, writer:
        script = "from bench.peers.serving import tell_ready; tell_ready()"
        subprocess.run([sys.executable, "-u", "-c", script], stdout=writer, check=True, timeout=20)
        assert reader.recv(100) == b"ready\n"  # a datagram is what one write brought


def test_results_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    results = some_results()
    results.save(tmp_path / "some.json")
    assert Results.load(tmp_path / "some.json") == results


def test_runs_of_one_machine_are_read_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = some_results(), some_results()
    second.pairs = [Pair("sparse", "picows", a_sample(4), a_sample(8))]
    second.skipped = {"socketio in 10 rooms of 100": "Node is not installed"}
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for results, path in zip((first, second), paths, strict=True):
        results.save(path)
    assert compare.main(["--read", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    for told in (
        "| websockets + Redis |",
        "| picows + Redis |",
        "nginx is not installed",
        "Node is not installed",
    ):
        assert told in printed
    second.machine["cores"] = "8"
    with pytest.raises(ValueError, match="different machines"):
        Results.together([first, second])


def test_quartiles_are_those_of_the_pairs() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert quartiles([7]) == (7, 7, 7)


def test_the_table_has_medians_ratios_and_losses() -> None:
    assert report.pairs_table(some_results().pairs).splitlines()[2:] == [
        "| **tornadochat** | 5.00 | 1 | 1.0 | 3.0 | none |",
        "| websockets + Redis | 10.00 | 0.50 (0.50-0.50) | 1.0 | 3.0 | 10.00% |",
    ]


def test_a_document_keeps_what_is_outside_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_docs(some_results(), path, ["plots/cpu-10x100.svg"])
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("### sparse") == 1 and "![cpu 10x100](plots/cpu-10x100.svg)" in text
    assert "900,000 (slow)" in text and "nginx is not installed" in text


def test_plots_are_the_same_bytes_for_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra bench")
    from bench import plots

    results = some_results()
    results.joinings.append(Joining("tornadochat", "50 rooms of 100", 5000, 300.0, 2000.0))
    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["cpu-10x100.svg", "latency-10x100.svg", "memory.svg"]
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.draw(results, tmp_path)] == before


def test_what_was_measured_at_one_place_alone_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra bench")
    from bench import plots

    results = some_results()
    results.saturations.clear()
    assert plots.draw(results, tmp_path) == []


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (a_sample(), ""),
        (a_sample(delivered=999), "late or lost"),
        (a_sample(p99_ms=300.0), "slow"),
        (a_sample(rate=500.0), "refuses messages"),
    ],
)
def test_a_load_that_is_not_held_is_told_by_its_reason(sample: Sample, why: str) -> None:
    assert complaint(sample, seconds=0.5) == why


def test_a_peer_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(peers.Unavailable, match="node or npm"), peers.start("socketio"):
        pass
