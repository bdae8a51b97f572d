"""Real stores and real servers for the tests; ``bench`` is importable, the checkout's package is not.

The tests run against the installed package, so the checkout itself stays off the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Speed is not tested by time: a busy machine generates its examples slowly, and that is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent

_links = tempfile.TemporaryDirectory(prefix="tornadochat-tests-")
for _name in ("bench", "tests"):
    os.symlink(ROOT / _name, Path(_links.name) / _name)
sys.path.insert(0, _links.name)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_links.name, os.environ.get("PYTHONPATH"))))

from bench.processes import Server, running_server  # noqa: E402
from tornadochat.embedded import EmbeddedStore, find_binary  # noqa: E402


def _redis_server(folder: Path) -> Iterator[str]:
    """Debian's redis-server on a unix socket, for what must work on Redis 7.0 too."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed; `apt-get install redis-server`")
    path = folder / "redis.sock"
    process = subprocess.Popen(
        [
            binary,
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not path.exists():
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session", params=["valkey", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real store: the embedded Valkey, and Debian's Redis where it is installed."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "redis":
        yield from _redis_server(folder)
        return
    store = EmbeddedStore(folder)
    yield store.start()
    store.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with two workers and an embedded store, for all tests that do it no harm."""
    find_binary()
    folder = tmp_path_factory.mktemp("server")
    options = ("--debug-headers", "--api-key=a-key-for-the-tests", "--drain-seconds=1")
    with running_server(folder, *options, workers=2) as running:
        yield running


_counter = iter(range(1_000_000))


@pytest.fixture
def room() -> str:
    """A room that no other test uses."""
    return f"room-{os.getpid()}-{next(_counter)}"
