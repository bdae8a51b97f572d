"""Members of a room on one worker: the same chat, on real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bench.processes import Server, running_server
from bench.wire import REQUEST, frame
from tests.support import SLOWNESS, Person, dial, http, make_certificate, new_id, read_head

KEY = "a-key-for-the-tests"
OPTIONS = ("--gather=true", "--drain-seconds=0.3", f"--api-key={KEY}")


@pytest.fixture(scope="module")
def gathering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("gathering"), *OPTIONS, workers=3) as server:
        yield server


def metric(server: Server, name: str) -> float:
    """A metric of all workers together."""
    text = http(server.port, "GET", "/metrics").body.decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"tornadochat_{name} ")))


def places(server: Server) -> float:
    """In how many workers there are rooms, each room counted; it is counted once a second."""
    time.sleep(1.5)
    return metric(server, "worker_rooms")


def test_a_room_is_on_one_worker_and_rooms_are_on_all(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, *OPTIONS, workers=3) as server:
        people = [Person(server.port, f"P{number}") for number in range(30)]
        for person in people:
            assert person.join(room)["room"] == room
        for number, person in enumerate(people):
            person.say(room, f"I am {number}")
            person.expect("message", text=f"I am {number}")
        for person in people:
            if person is not people[-1]:
                person.expect("message", text="I am 29")
            texts = [event["text"] for event in person.events if event["type"] == "message"]
            assert texts == [f"I am {number}" for number in range(30)]
        assert places(server) == 1
        # The kernel spreads connections over three workers: that all thirty came in at one will not be.
        assert metric(server, "members_gathered_total") > 0
        others = [Person(server.port) for _ in range(12)]
        for number, person in enumerate(others):
            person.join(f"{room}-{number // 2}")
        assert places(server) == 7 and min(connections_of(server, pid) for pid in server.workers) > 0
        for person in (*people, *others):
            person.socket.close()


def connections_of(server: Server, pid: int) -> int:
    """TCP connections of one process that are not the listening one."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(entry))
        except OSError:
            continue
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[3] == "01" and f"socket:[{line.split()[9]}]" in inodes)


def test_what_comes_behind_the_join_moves_along_in_its_order(gathering: Server, room: str) -> None:
    for number in range(8):  # some of these come in at another worker
        with dial(gathering.port) as sock, Person(gathering.port) as other:
            sock.sendall(REQUEST)
            assert read_head(sock).startswith(b"HTTP/1.1 101 ")
            other.join(room, history=0)
            texts = [f"{number}: {part}" for part in ("a", "b", "c")]
            sends = b"".join(frame(type="send", room=room, id=new_id(), text=text) for text in texts)
            whole = frame(type="join", room=room) + sends + frame(type="ping")
            sock.sendall(whole[:-3])
            time.sleep(0.05)
            sock.sendall(whole[-3:])  # the end of a frame whose beginning has moved
            assert [other.expect("message", room=room)["text"] for _ in texts] == texts
            received = b""
            while b'"pong"' not in received:
                received += (part := sock.recv(65536))
                assert part
            assert received.count(b'"welcome"') == received.count(b'"joined"') == 1


def test_members_with_compression_move_and_those_with_tls_stay(tmp_path: Path, room: str) -> None:
    certificate, key = make_certificate(tmp_path)
    with (
        running_server(tmp_path / "plain", *OPTIONS, "--compression", workers=3) as server,
        contextlib.ExitStack() as stack,
    ):
        url = f"ws://127.0.0.1:{server.port}/ws?name=Ada"
        sockets = [stack.enter_context(connect(url, compression="deflate")) for _ in range(9)]
        for sock in sockets:
            sock.send(json.dumps({"type": "join", "room": room}))
            while json.loads(sock.recv(5 * SLOWNESS))["type"] != "joined":
                pass
        sockets[0].send(json.dumps({"type": "send", "room": room, "id": new_id(), "text": "long " * 200}))
        for sock in sockets:
            while json.loads(sock.recv(5 * SLOWNESS))["type"] != "message":
                pass
        assert places(server) == 1
    options = (*OPTIONS, f"--certfile={certificate}", f"--keyfile={key}")
    with running_server(tmp_path / "tls", *options, workers=3, scheme="https") as server:
        people = [Person(server.port, tls=True) for _ in range(9)]
        for person in people:
            person.join(room)
        people[0].say(room, "hello")
        for person in people:
            person.expect("message", text="hello")
            person.socket.close()


def test_a_session_that_is_ended_ends_whoever_has_moved(gathering: Server, room: str) -> None:
    people = [Person(gathering.port, f"P{number}") for number in range(6)]
    for person in people:
        person.join(room)
    for person in people:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert (
            http(gathering.port, "DELETE", f"/api/users/{person.user['id']}/sessions", headers=headers).status
            < 300
        )
        assert person.expect("bye")["reason"] == "session_ended"
        with pytest.raises(ConnectionClosed):
            person.expect("never")


def test_a_worker_that_dies_takes_its_rooms_along_and_has_them_again(tmp_path: Path, room: str) -> None:
    with running_server(tmp_path, *OPTIONS, workers=2) as server:
        people = [Person(server.port) for _ in range(10)]
        for person in people:
            person.join(room)
        people[0].say(room, "before")
        seqs = {person.expect("message", text="before")["seq"] for person in people}
        home = max(server.workers, key=lambda pid: connections_of(server, pid))
        os.kill(home, signal.SIGKILL)
        for person in people:
            with pytest.raises(ConnectionClosed):
                person.expect("never")
        again = [Person(server.port) for _ in range(10)]
        for person in again:
            person.join(room, history=10)
            assert person.expect("message", text="before")["seq"] in seqs
        again[0].say(room, "after")
        for person in again:
            person.expect("message", text="after")
            person.socket.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_who_joins_while_workers_are_replaced_is_let_in_or_sent_elsewhere(
    tmp_path: Path, room: str, number: int
) -> None:
    """SIGHUP to the parent, or SIGTERM to one worker, which keeps its inbox until there is a successor."""
    with running_server(tmp_path, *OPTIONS, workers=2) as server:
        before = server.workers
        os.kill(server.process.pid if number == signal.SIGHUP else before[0], number)
        replaced = set(before) if number == signal.SIGHUP else {before[0]}
        joined = 0
        deadline = time.monotonic() + 15 * SLOWNESS
        while replaced & set(server.workers) or joined < 20:
            try:
                with Person(server.port) as person:
                    person.join(f"{room}-{joined % 5}", history=0)
                    joined += 1
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code == 1012
            assert time.monotonic() < deadline
        assert "Traceback" not in (tmp_path / "server.log").read_text()
        people = [Person(server.port) for _ in range(10)]
        for person in people:
            person.join(room)
        people[0].say(room, "after")
        for person in people:
            person.expect("message", text="after")
            person.socket.close()


def test_who_waits_for_the_store_stays_until_the_answer_has_come(gathering: Server, room: str) -> None:
    """A send before the join asks the store whether it was stored once; its answer comes to that worker."""
    for _ in range(6):
        with Person(gathering.port) as person:
            person.command(type="send", room=room, id=new_id(), text="too early")
            person.command(type="join", room=room)
            answers = {"joined": "", "error": ""}
            while not all(answers.values()):
                event = person.read()
                answers[event["type"]] = event.get("code", event["type"])
            assert answers["error"] == "not_joined"
