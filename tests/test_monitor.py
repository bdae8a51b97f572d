"""The monitor of a long run: what it reads of processes and of the kernel, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import monitor
from bench.processes import kernel_memory
from tests.support import SLOWNESS

BUSY = "import sys\nprint('up', flush=True)\nkept = bytearray(30 << 20)\nwhile True: kept[::4096] = kept[::4096]"


def test_a_busy_process_and_its_memory_are_seen_and_it_may_end_meanwhile(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib comes with the extra bench")
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None and busy.stdout.readline() == b"up\n"
        groups = {"busy": [busy.pid], "idle": [os.getpid()], "nobody": []}
        with monitor.Monitor(tmp_path, lambda: groups, 0.05) as seen:
            seen.mark("work")
            deadline = time.monotonic() + 20 * SLOWNESS
            while time.monotonic() < deadline and not any(
                one.cores["busy"] > 0.1 and one.pss["busy"] > 30 << 20 for one in seen.samples
            ):
                time.sleep(0.05)
            seen.mark("kill")
            busy.kill()
            busy.wait()
            gone = len(seen.samples)
            while time.monotonic() < deadline and (
                len(seen.samples) < gone + 3 or seen.samples[-1].pss["busy"] > 0
            ):
                time.sleep(0.05)
    text = monitor.write_results(tmp_path, "a small run", {"members": 12345, "share": 0.5, "fine": True}, seen)

    work, kill = seen.phases()
    assert (work.name, kill.name) == ("work", "kill")
    assert 0.1 < work.peak_cores["busy"] < 1.5 and work.pss_bytes["busy"] > 30 << 20
    assert kill.pss_bytes["busy"] == 0 and seen.samples[-1].cores["busy"] == 0
    assert all(one.pss["nobody"] == 0 and one.available_bytes > 0 for one in seen.samples)
    rows = list(csv.DictReader((tmp_path / "samples.csv").read_text().splitlines()))
    assert len(rows) == len(seen.samples) and seen.errors == 0
    assert float(rows[0]["seconds"]) < float(rows[-1]["seconds"])
    assert int(rows[-1]["busy_pss_bytes"]) == 0 and float(rows[0]["busy_cores"]) >= 0
    assert "members  12,345\nshare    0.5\nfine     True\n" in text
    assert json.loads((tmp_path / "summary.json").read_text())["facts"]["members"] == 12345
    for name in ("cpu.svg", "memory.svg", "sockets.svg"):
        assert ">kill<" in (tmp_path / name).read_text()


def test_the_kernels_sockets_are_counted() -> None:
    before = kernel_memory()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pairs = [socket.create_connection(listening.getsockname()) for _ in range(50)]
        during = kernel_memory().sockets
        for pair in pairs:
            pair.close()
    # Others of this machine open and close sockets too, but not as many at a time.
    assert during >= before.sockets + 25
    assert before.slab_bytes > 1 << 20 and before.available_bytes > 1 << 20


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = monitor.new_folder("million", tmp_path)
    assert folder.is_dir() and folder.name.endswith("-million") and folder.parent == tmp_path
