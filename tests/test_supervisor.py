"""The parent's duties, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from bench import rolling
from bench.processes import Server, command, free_port, running_server, tree
from bench.wire import REQUEST
from tests.support import SLOWNESS, Person, dial, http, make_certificate, read_head, request_bytes

pytestmark = pytest.mark.faults
QUICK = f"--drain-seconds={0.3 * SLOWNESS:g}"


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait until something is so; returns how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds * SLOWNESS, "it did not become so in time"
        time.sleep(0.01)
    return time.monotonic() - begin


def gone(pids: list[int]) -> bool:
    """Whether none of these processes is left, not even as a zombie of somebody else."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def log_of(folder: Path) -> str:
    return (folder / "server.log").read_text()


def test_a_killed_worker_is_back_within_a_second_and_others_are_unaffected(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, "--debug-headers", workers=2) as server:
        people = [Person(server.port) for _ in range(20)]
        for person in people:
            person.join("tea")
        victim, survivor = server.workers
        os.kill(victim, signal.SIGKILL)
        took = wait_for(lambda: len(server.workers) == 2 and victim not in server.workers)
        assert took < 1.0 * SLOWNESS and survivor in server.workers
        stayed = []
        for person in people:
            try:
                person.say("tea", "still here?")
                person.expect("message", timeout=3)
                stayed.append(person)
            except ConnectionClosed:
                pass
        # Whoever was on the other worker noticed nothing; twenty on one of two are two in a million.
        assert 0 < len(stayed) < 20
        wait_for(lambda: all(http(server.port, "GET", "/readyz").status == 200 for _ in range(8)))
        for person in stayed:
            person.socket.close()


def test_a_worker_is_replaced_however_often(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=1) as server:
        for _ in range(12):
            (victim,) = server.workers
            wait_for(lambda: http_ready(server))
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda victim=victim: server.workers not in ([], [victim]), 2.0)  # type: ignore[misc]
        assert wait_for(lambda: http_ready(server)) < 3 * SLOWNESS


def http_ready(server: Server) -> bool:
    try:
        return http(server.port, "GET", "/readyz").status == 200
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_the_store_last(tmp_path: Path, number: int) -> None:
    with running_server(tmp_path, QUICK, workers=3) as server:
        with Person(server.port) as ada:
            ada.join("tea")
            pids = server.pids
            assert len(pids) == 5 and server.store is not None
            server.process.send_signal(number)
            assert server.process.wait(8 * SLOWNESS) == 0
        assert gone(pids)
    assert not (tmp_path / "store.sock").exists()


def test_a_terminals_ctrl_c_reaches_the_group_and_still_drains_in_order(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=2) as server:
        pids = server.pids
        for pid in (server.process.pid, *server.workers):
            with contextlib.suppress(ProcessLookupError):  # the parent may have ended it by then
                os.kill(pid, signal.SIGINT)
        assert server.process.wait(8 * SLOWNESS) == 0
        assert gone(pids) and "Traceback" not in log_of(tmp_path)


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=2) as server:
        pids = server.pids
        server.process.kill()
        server.process.wait()
        wait_for(lambda: gone(pids))
    with running_server(tmp_path, QUICK, workers=2) as again:
        assert again.store is not None


def test_sighup_replaces_every_worker_without_refusing_anybody(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=2) as server:
        before = server.workers
        server.process.send_signal(signal.SIGHUP)
        connects = 0
        deadline = time.monotonic() + 15 * SLOWNESS
        while set(before) & set(server.workers):
            try:
                with Person(server.port) as person:
                    person.join("tea", history=0)
            except ConnectionClosed as closed:  # it came in and was sent elsewhere
                assert closed.rcvd is not None and closed.rcvd.code == 1012
            connects += 1
            assert time.monotonic() < deadline
        wait_for(lambda: len(server.workers) == 2)
        assert connects > 0 and "all workers are replaced" in log_of(tmp_path)
        metrics = http(server.port, "GET", "/metrics").body.decode()
        assert "tornadochat_worker_restarts_total 2.0" in metrics


@pytest.mark.parametrize("tls", [False, True])
def test_who_has_connected_is_answered_although_the_worker_ends(tmp_path: Path, tls: bool) -> None:
    """A worker without members ended at once, and cut off who had connected and was about to ask."""
    options, wrap = [QUICK], contextlib.nullcontext
    if tls:
        certificate, key = make_certificate(tmp_path)
        options += [f"--certfile={certificate}", f"--keyfile={key}"]
        wrap = functools.partial(
            ssl.create_default_context(cafile=certificate).wrap_socket, server_hostname="localhost"
        )
    with running_server(tmp_path, *options, workers=1, scheme="https" if tls else "http") as server:
        (worker,) = server.workers
        files = Path(f"/proc/{worker}/fd")
        before = len(list(files.iterdir()))
        with dial(server.port) as plain, wrap(plain) as slow:
            wait_for(lambda: len(list(files.iterdir())) > before)  # it says nothing, so this takes a second
            os.kill(worker, signal.SIGTERM)
            time.sleep(0.5)
            slow.sendall(REQUEST)
            received = b""
            while b"\x03\xf4" not in received:  # close code 1012 of RFC 6455 section 7.4
                part = slow.recv(4096)
                assert part, received
                received += part
            assert received.startswith(b"HTTP/1.1 101 ") and b'"drain"' in received


def test_who_has_said_nothing_yet_is_let_in_by_the_next_worker(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=1) as server, dial(server.port) as slow:
        (worker,) = server.workers
        os.kill(worker, signal.SIGTERM)
        wait_for(lambda: gone([worker]))
        slow.sendall(REQUEST)
        received = b""
        while b'"welcome"' not in received:
            part = slow.recv(4096)
            assert part, received
            received += part
        assert received.startswith(b"HTTP/1.1 101 ")


def test_a_request_that_is_under_way_is_answered_although_the_worker_ends(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=1) as server, dial(server.port) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
        slow.sendall(
            b"POST /api/session HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"
        )
        time.sleep(0.2)  # its head has come
        os.kill(server.workers[0], signal.SIGTERM)
        time.sleep(0.5)
        slow.sendall(b'"name": "Ada"}')
        assert slow.recv(4096).startswith(b"HTTP/1.1 201 ")


def test_no_connect_is_refused_while_the_workers_are_replaced_again_and_again(tmp_path: Path) -> None:
    """The short form of ``python -m bench.rolling``."""
    with running_server(tmp_path, QUICK, workers=2) as server:
        outcomes = asyncio.run(rolling.measure(server, tmp_path / "server.log", connects=1000, restarts=2))
        assert set(outcomes) == {"ok"} and outcomes.total() >= 1000


def test_a_worker_that_is_killed_while_it_is_replaced_does_not_stop_the_others(tmp_path: Path) -> None:
    """The rolling restart waited for ever for the drain of a worker that was gone, and no other one began."""
    script = tmp_path / "slow_start.py"
    script.write_text(
        "import logging, signal, sys, time\n"
        "from tornadochat.settings import Settings\n"
        "from tornadochat.supervisor import Supervisor\n"
        "from pathlib import Path\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "def worker(*, tell, generation, **given):\n"
        "    time.sleep(0.5 if generation else 0)\n"
        "    tell('ready 1')\n"
        "    signal.pause()\n"
        f"settings = Settings(port=0, workers=2, data_dir=Path({str(tmp_path / 'data')!r}))\n"
        "sys.exit(Supervisor(settings, worker, lambda text: print('up', flush=True)).run())\n"
    )
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdout=subprocess.PIPE, stderr=output, text=True
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        first, second = (pid for pid in tree(process.pid) if pid != process.pid and "slow_start" in command(pid))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(tree(process.pid)) == 5)  # two workers, the store, the parent, a successor
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: "all workers are replaced" in log.read_text())
        assert gone([first, second]) and log.read_text().count("has drained") == 1
    finally:
        process.terminate()
        process.communicate(timeout=15 * SLOWNESS)


def test_a_worker_that_somebody_tells_to_end_has_a_successor_at_once(tmp_path: Path) -> None:
    with running_server(tmp_path, "--drain-seconds=3", workers=1) as server:
        (before,) = server.workers
        with Person(server.port) as ada, dial(server.port) as stubborn:
            stubborn.sendall(request_bytes())
            read_head(stubborn)  # answers no close frame, so that the drain takes its whole time
            ada.join("tea")
            os.kill(before, signal.SIGTERM)
            began = time.monotonic()
            wait_for(lambda: len(server.workers) == 2)
            with Person(server.port) as bob:  # who had to wait for the whole drain
                bob.join("tea")
                assert time.monotonic() - began < 2.5
            assert ada.expect("bye")["reason"] == "drain"
        wait_for(lambda: gone([before]), 8)
        assert len(server.workers) == 1 and "has drained" in log_of(tmp_path)


def test_a_process_that_ends_while_it_is_looked_at_has_no_command_line() -> None:
    """A store that had just died broke the look for its successor."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert command(ended.pid) == ""
    assert "python" in command(os.getpid())


def test_the_embedded_store_is_started_again_when_it_dies(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=1) as server:
        first = server.store
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server.store not in (None, first))
        wait_for(lambda: http_ready(server))


def start(*options: str) -> subprocess.CompletedProcess[str]:
    """Start a server that should end by itself."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "tornadochat", *options],
        capture_output=True,
        text=True,
        timeout=20 * SLOWNESS,
    )


def test_a_second_server_on_the_same_port_says_so_and_ends(tmp_path: Path) -> None:
    with running_server(tmp_path / "a", QUICK, workers=1) as server:
        second = start("--port", str(server.port), "--data-dir", str(tmp_path / "b"))
        assert second.returncode == 1 and f"port {server.port}" in second.stderr
        assert "--port" in second.stderr and http_ready(server)


def test_a_second_server_on_the_same_data_folder_says_so_and_ends(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=1) as server:
        second = start("--port", str(free_port()), "--data-dir", str(tmp_path))
        assert second.returncode == 1 and "--data-dir" in second.stderr and http_ready(server)


def test_an_unreachable_redis_is_waited_for(tmp_path: Path) -> None:
    port, redis_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "tornadochat", f"--port={port}", "--workers=1", QUICK),
            f"--redis=redis://127.0.0.1:{redis_port}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def healthy() -> bool:
            try:
                return bool(http(port, "GET", "/healthz").json["store"] == "down")
            except OSError:
                return False

        wait_for(healthy, 10)
        assert http(port, "GET", "/readyz").status == 503
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=10 * SLOWNESS)
    assert "cannot be reached" in output and process.returncode == 0


def test_a_worker_that_cannot_start_is_retried_with_back_off(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import sys, logging\n"
        "from tornadochat.settings import Settings\n"
        "from tornadochat.supervisor import Supervisor\n"
        "from pathlib import Path\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "def worker(**given):\n"
        "    raise RuntimeError('no luck today')\n"
        f"settings = Settings(port=0, workers=1, data_dir=Path({str(tmp_path / 'data')!r}))\n"
        "sys.exit(Supervisor(settings, worker).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-P", str(script)], stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    pids = tree(process.pid)
    process.terminate()
    _, output = process.communicate(timeout=15 * SLOWNESS)
    assert process.returncode == 0 and gone(pids)
    tries = output.count("no luck today")
    assert 3 <= tries <= 12 and "trying again in 0.1 s" in output and "trying again in 0.8 s" in output


def test_a_signal_that_a_fork_hook_swallows_does_not_hang_the_parent(tmp_path: Path) -> None:
    script = tmp_path / "slow_hook.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from tornadochat.settings import Settings\n"
        "from tornadochat.supervisor import Supervisor\n"
        "from pathlib import Path\n"
        "os.register_at_fork(after_in_parent=lambda: time.sleep(0.3))\n"
        "def worker(*, tell, **given):\n"
        "    tell('ready 1')\n"
        "    signal.pause()\n"
        f"settings = Settings(port=0, workers=1, data_dir=Path({str(tmp_path / 'data')!r}))\n"
        "sys.exit(Supervisor(settings, worker, lambda text: print('up', flush=True)).run())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 10)[0] and process.stdout.readline() == "up\n"
        process.terminate()
        process.communicate(timeout=10 * SLOWNESS)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_the_start_line_says_where_it_is_and_how_to_open_it(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, workers=2) as server:
        log = log_of(tmp_path)
        assert f"http://127.0.0.1:{server.port}/" in log and "workers: 2" in log
        assert str(tmp_path) in log and "--host 0.0.0.0" in log
        assert all("tornadochat" in command(pid) for pid in server.workers)


def test_the_fork_is_left_from_its_wait_and_not_from_a_forks_own_callbacks() -> None:
    """Python swallows what a handler raises there, and prints a traceback that nobody can help."""
    import tornado.process

    from tornadochat.settings import Settings
    from tornadochat.supervisor import Supervisor, _Forked

    supervisor = Supervisor(Settings(), lambda *_: 0)
    supervisor._forking = True
    supervisor._leave_fork(signal.SIGUSR1, sys._getframe())
    frames = []

    def noted(*_: object) -> None:
        frames.append(sys._getframe(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tornado.process, "gen_log", type("Log", (), {"info": noted})())
        patch.setattr(tornado.process.os, "fork", lambda: 0)
        patch.setattr(tornado.process, "_task_id", None)
        tornado.process.fork_processes(1)
    with pytest.raises(_Forked):
        supervisor._leave_fork(signal.SIGALRM, frames[0])


def test_a_start_warns_of_the_limit_that_is_met_first(tmp_path: Path) -> None:
    with running_server(tmp_path, QUICK, "--max-connections=50", workers=2):
        wait_for(lambda: "what ends first" in log_of(tmp_path))
        assert "room for 100 members at once; what ends first is --max-connections of 50" in log_of(tmp_path)
