"""The limit of the system that ends growth first is the one that the start warns of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tornadochat.system_limits import MEMBER_BYTES, backlog_advice, first_bound

GIB = 1 << 30


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def roomy(tmp_path: Path) -> Path:
    """A /proc in which nothing is scarce."""
    write(tmp_path, "sys/fs/file-nr", "1000\t0\t9000000\n")
    write(tmp_path, "sys/net/netfilter/nf_conntrack_count", "500\n")
    write(tmp_path, "sys/net/netfilter/nf_conntrack_max", "8000500\n")
    write(tmp_path, "sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    write(tmp_path, "sys/net/core/somaxconn", "4096\n")
    write(tmp_path, "meminfo", f"MemTotal: 99 kB\nMemAvailable:   {64 * GIB // 1024} kB\n")
    return tmp_path


def bound_of(root: Path, **changed: object) -> tuple[int, str]:
    values = {"workers": 4, "files": 1_048_576, "capacity": 1_048_476, "chosen": False, "proxied": False}
    found = first_bound(**{**values, **changed}, root=root)  # type: ignore[arg-type]
    return found.members, str(found)


def test_files_of_a_worker(roomy: Path) -> None:
    members, text = bound_of(roomy, files=20_000, capacity=19_900)
    assert members == 4 * 19_900
    assert "79,600 members" in text and "20,000 files" in text and "LimitNOFILE" in text and "--workers" in text


def test_an_option_is_told_as_the_reason_where_it_was_given(roomy: Path) -> None:
    members, text = bound_of(roomy, capacity=500, chosen=True)
    assert members == 2000 and "--max-connections" in text


def test_files_of_the_system(roomy: Path) -> None:
    write(roomy, "sys/fs/file-nr", "1000\t0\t50000\n")
    members, text = bound_of(roomy)
    assert members == 49_000 and "fs.file-max" in text


def test_tracked_connections_count_only_where_something_is_tracked(roomy: Path) -> None:
    write(roomy, "sys/net/netfilter/nf_conntrack_max", "65536\n")
    members, text = bound_of(roomy)
    assert members == 65_536 - 500 and "nf_conntrack_max" in text
    write(roomy, "sys/net/netfilter/nf_conntrack_count", "0\n")
    assert "nf_conntrack_max" not in bound_of(roomy)[1]


def test_ports_count_behind_a_proxy_on_this_machine(roomy: Path) -> None:
    members, text = bound_of(roomy, proxied=True)
    assert members == 28_232 and "ip_local_port_range" in text


def test_memory(roomy: Path) -> None:
    write(roomy, "meminfo", "MemAvailable:   600000 kB\n")
    members, text = bound_of(roomy)
    assert members == 600_000 * 1024 // MEMBER_BYTES and "0.6 GiB" in text


def test_without_proc_the_workers_own_limit_is_told(tmp_path: Path) -> None:
    assert bound_of(tmp_path, files=1024, capacity=924)[0] == 4 * 924
    assert backlog_advice(tmp_path) is None


@pytest.mark.parametrize(("value", "told"), [("4096", False), ("1024", False), ("128", True)])
def test_a_short_backlog_is_told(roomy: Path, value: str, told: bool) -> None:
    write(roomy, "sys/net/core/somaxconn", value)
    advice = backlog_advice(roomy)
    assert (advice is not None and "net.core.somaxconn" in advice) is told
