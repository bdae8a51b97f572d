"""The embedded store: one for each folder, private, durable, and gone with its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from tests.support import SLOWNESS
from tornadochat.embedded import EmbeddedStore
from tornadochat.errors import StartError


def test_its_data_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    for expected in (None, b"kept"):
        store = EmbeddedStore(tmp_path)
        with redis.Redis.from_url(store.start()) as client:
            assert client.get("key") == expected
            client.set("key", "kept")
            assert client.config_get("appendonly")["appendonly"] == "yes"
            assert client.config_get("appendfsync")["appendfsync"] == "everysec"
            assert client.config_get("port")["port"] == "0"
        store.stop()
        assert not store.alive() and not (tmp_path / "store.sock").exists()


def test_durable_syncs_every_write(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, durable=True)
    with redis.Redis.from_url(store.start()) as client:
        assert client.config_get("appendfsync")["appendfsync"] == "always"
    store.stop()


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "new" / "folder")
    store.start()
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "folder" / "store.sock").stat().st_mode) == 0o700
    store.stop()


def test_a_second_one_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    store.start()
    with pytest.raises(StartError, match="another tornadochat uses"):
        EmbeddedStore(tmp_path).start()
    store.stop()
    again = EmbeddedStore(tmp_path)
    again.start()
    again.stop()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be used"):
        EmbeddedStore(tmp_path / "file" / "below").start()


def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("name-" * 10)
    store = EmbeddedStore(folder)
    with redis.Redis.from_url(store.start()) as client:
        assert client.ping()
    assert len(store.url) < 108
    store.stop()


def test_data_that_cannot_be_read_is_told_with_the_stores_own_words(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    store.start()
    store.stop()
    for path in (tmp_path / "appendonlydir").glob("*.manifest"):
        path.write_text("rubbish\n")
    with pytest.raises(StartError, match=r"store\.log"):
        EmbeddedStore(tmp_path).start()


PARENT = """
import sys, time
from pathlib import Path
from tornadochat.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.start()
print(store.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.faults
def test_it_ends_with_a_parent_that_is_killed_and_the_next_one_starts(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert os.getsid(pid) == pid, "a session of its own, out of reach of the terminal"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    store = EmbeddedStore(tmp_path)
    store.start()  # at once, while the orphan may still be ending
    deadline = time.monotonic() + 5 * SLOWNESS
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert store.alive()
    store.stop()


@pytest.mark.faults
def test_one_that_died_is_started_again_on_its_data(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, durable=True)
    with redis.Redis.from_url(store.start()) as client:
        client.set("key", "kept")
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    while store.alive():
        time.sleep(0.01)
    store.restart()
    with redis.Redis.from_url(store.url) as client:
        assert client.get("key") == b"kept"
    store.stop()
