"""Which limit of the system ends the growth of this server first: files, conntrack, ports or memory (Linux).

Used by ``supervisor`` once all workers are ready. Only reads /proc (proc_sys_fs(5), proc_sys_net(5),
proc_meminfo(5)); a figure that is not there, as on another system, is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# What a member costs when idle: less than 2 KiB in its worker, and about 4 KiB for one end of a TCP
# connection in the kernel (docs/scale.md).
MEMBER_BYTES = 6 * 1024
# Above it a limit is nobody's first worry, and a start says nothing.
PLENTY = 1_000_000
# Thousands who come back at once wait here while their handshakes are answered.
MIN_BACKLOG = 1024


class Bound(NamedTuple):
    """A limit of the system.

    Attributes:
        members: That there can be at once, all workers of this machine together.
        name: What is used up then.
        advice: What to change.
    """

    members: int
    name: str
    advice: str

    def __str__(self) -> str:
        return f"room for {self.members:,} members at once; what ends first is {self.name}: {self.advice}"


def first_bound(
    *, workers: int, files: int, capacity: int, chosen: bool, proxied: bool, root: Path = Path("/proc")
) -> Bound:
    """The limit that is met first.

    Args:
        workers: Worker processes.
        files: That each of them may open.
        capacity: Members that each of them lets in.
        chosen: Whether ``capacity`` was given as an option, rather than being what the files allow.
        proxied: Whether a proxy on this machine connects for the members, from ports of this machine.
        root: Where proc is mounted.
    """
    bounds = [_slots(workers, files, capacity, chosen)]
    bounds += filter(None, [_all_files(root), _tracked(root), _ports(root) if proxied else None, _memory(root)])
    return min(bounds)


def backlog_advice(root: Path = Path("/proc")) -> str | None:
    """What to say about connections that wait to be accepted; None where there is room for enough."""
    found = _number(root / "sys/net/core/somaxconn")
    if found is None or found >= MIN_BACKLOG:
        return None
    return (
        f"only {found:,} new connections can wait for each worker, others are refused or tried again after a "
        f"second: sysctl -w net.core.somaxconn=4096 net.ipv4.tcp_max_syn_backlog=8192"
    )


def _slots(workers: int, files: int, capacity: int, chosen: bool) -> Bound:
    if chosen:
        return Bound(workers * capacity, f"--max-connections of {capacity:,} for each worker", "raise it")
    return Bound(
        workers * capacity,
        f"the {files:,} files that a worker process may open",
        "raise the hard limit (LimitNOFILE= in systemd, nofile in limits.conf), or give more --workers",
    )


def _all_files(root: Path) -> Bound | None:
    try:
        used, _, limit = map(int, (root / "sys/fs/file-nr").read_text().split())
    except (OSError, ValueError):
        return None
    return Bound(max(0, limit - used), f"the {limit:,} files of the whole system", "raise fs.file-max by sysctl")


def _tracked(root: Path) -> Bound | None:
    """Connections that the firewall tracks; where nothing is tracked, the limit is nobody's."""
    folder = root / "sys/net/netfilter"
    used, limit = _number(folder / "nf_conntrack_count"), _number(folder / "nf_conntrack_max")
    if not used or limit is None:
        return None
    return Bound(
        max(0, limit - used),
        f"the {limit:,} connections that the firewall tracks",
        "raise net.netfilter.nf_conntrack_max by sysctl, or do not track the chat's port (notrack)",
    )


def _ports(root: Path) -> Bound | None:
    try:
        first, last = map(int, (root / "sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return None
    return Bound(
        last - first + 1,
        f"the {last - first + 1:,} ports from which a proxy on this machine connects",
        "widen net.ipv4.ip_local_port_range by sysctl, or let the proxy connect from or to several addresses",
    )


def _memory(root: Path) -> Bound | None:
    try:
        lines = (root / "meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return Bound(free // MEMBER_BYTES, f"the {free / 2**30:.1f} GiB of memory that are free", "add memory")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
