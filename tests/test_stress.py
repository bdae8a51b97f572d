"""Locust's users see each promise that a server breaks, and a whole run is judged by what they saw."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from bench import native, stress
from bench.dialects import DIALECTS
from bench.processes import Server, free_port, loopback, tree
from bench.tally import Standing, Tally, quantiles, reckon
from tests.fake_chat import FAULTS, FakeChat
from tests.support import SLOWNESS

LOCUSTFILE = stress.LOCUSTFILE
needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None or importlib.util.find_spec("websocket") is None,
    reason="Locust comes with the extra bench",
)
RUN_SECONDS = 60 * SLOWNESS


# What follows from what was seen -------------------------------------------------------------------


def test_whoever_has_less_than_the_last_message_of_the_room_has_lost_it() -> None:
    standings = [Standing("tea", 0, 7, 7), Standing("tea", 2, 6, 4), Standing("milk", 0, 1, 1)]
    assert reckon(standings) == (7 + 5 + 1, 7 + 4 + 1, 7 + 1)
    expected, delivered, stored = reckon(standings)
    tally = Tally(users=3, joined=3, sent=8, expected=expected, delivered=delivered, stored=stored)
    assert (tally.lost, tally.doubled, tally.settled, tally.clean) == (1, 0, False, False)


def test_a_hole_counts_as_lost_though_the_last_message_came() -> None:
    expected, delivered, _stored = reckon([Standing("tea", 0, 5, 4), Standing("tea", 0, 5, 5)])
    assert Tally(expected=expected, delivered=delivered).lost == 1


def test_what_is_stored_more_often_than_it_was_sent_is_doubled() -> None:
    assert Tally(sent=3, stored=4).doubled == 1
    assert Tally(sent=3, stored=3, repeats=2).doubled == 2


@pytest.mark.parametrize(
    "wrong",
    ["misorders", "failed_connects", "failed_joins", "disconnected", "refused", "unconfirmed", "repeats"],
)
def test_a_run_with_one_thing_wrong_is_not_clean(wrong: str) -> None:
    fine = Tally(users=2, joined=2, sent=1, stored=1, expected=2, delivered=2)
    assert fine.clean
    setattr(fine, wrong, 1)
    assert not fine.clean


def test_tallies_of_processes_add_up_with_their_delays() -> None:
    parts = [
        Tally(users=1, sent=2, late_us=5, hold_seconds=3.0, deliveries={4: 1, 9: 2}).as_dict(),
        Tally(users=2, sent=3, late_us=9, hold_seconds=2.5, deliveries={9: 5}).as_dict(),
    ]
    whole = Tally.sum(json.loads(json.dumps(parts)))  # as they come from another process
    assert (whole.users, whole.sent, whole.late_us, whole.hold_seconds) == (3, 5, 9, 3.0)
    assert whole.deliveries == {4: 1, 9: 7}


def test_quantiles_come_from_the_classes_of_the_histogram() -> None:
    delays = native.load("_loadgen").Delays()
    for delay_us in [1000] * 90 + [50_000] * 9 + [900_000]:
        delays.note(delay_us)
    found = quantiles(delays.counts())
    assert found["p50"] == pytest.approx(1.0, rel=0.07)
    assert found["p95"] == found["p99"] == pytest.approx(50, rel=0.07)


def test_delays_are_taken_once_with_their_sum_and_bounds() -> None:
    delays = native.load("_loadgen").Delays()
    delays.note(10)
    delays.note(3000)
    counts, total, least, most = delays.take()
    assert (sum(counts.values()), total, least, most) == (2, 3010, 10, 3000)
    delays.note(7)
    assert delays.take() == ({7: 1}, 7, 7, 7)
    assert delays.take()[0] == {}
    assert sum(delays.counts().values()) == 3


# The native checks -----------------------------------------------------------------------------------


class Guests:
    """A native crowd on a fake server, with the few answers that a member gives."""

    def __init__(self, port: int, dialect: str = "tornadochat") -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.entered: list[int] = []
        self.lost: list[tuple[int, bool]] = []
        self.crowd = native.load("_loadgen").Crowd("127.0.0.1", port, DIALECTS[dialect], [], 50)
        self.crowd.listen(self._told, self.entered.append, lambda place, joined: self.lost.append((place, joined)))

    def _told(self, place: int, payload: bytes) -> None:
        event = json.loads(payload)
        self.events.append((place, event))
        if event["type"] == "welcome":
            self.crowd.send(place, json.dumps({"type": "join", "room": self.room}).encode())
        elif event["type"] == "joined":
            self.crowd.let_in(place, event["seq"] + 1, event["seq"])

    def come(self, room: str, count: int) -> list[int]:
        self.room = room
        index = self.crowd.add_room(room)
        places = [self.crowd.place(index) for _ in range(count)]
        for place in places:
            assert self.crowd.begin(place, "/ws?name=Ada")
        self.until(lambda: set(places) <= set(self.entered))
        return places

    def until(self, done: Any) -> None:
        deadline = time.monotonic() + 20 * SLOWNESS
        while not done():
            assert time.monotonic() < deadline, (self.events[-3:], self.lost, self.crowd.error())
            self.crowd.poll(20)

    def rest(self) -> None:
        for _ in range(10):
            self.crowd.poll(20)

    def say(self, place: int, times: int) -> None:
        for number in range(times):
            sent = self.crowd.sent
            assert self.crowd.say(place, f"a-message-of-the-test-{sent:04}-{number}")
            for _ in range(5):
                self.crowd.poll(10)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("none", {"holes": 0, "repeats": 0, "misorders": 0}),
        ("hole", {"holes": 2, "repeats": 0, "misorders": 0}),
        ("repeat", {"holes": 0, "repeats": 2, "misorders": 0}),
        ("misorder", {"holes": 0, "repeats": 0, "misorders": 2}),
    ],
)
def test_the_native_crowd_tells_each_fault_of_a_stream(fault: str, expected: dict[str, int]) -> None:
    with FakeChat() as chat:
        guests = Guests(chat.port)
        first, second = guests.come(f"tea-{FAULTS.index(fault)}", 2)
        guests.say(first, 5)
        guests.until(lambda: guests.crowd.delivered >= 10)
        crowd = guests.crowd
        assert {name: getattr(crowd, name) for name in expected} == expected
        assert [crowd.delivered_to(place) for place in (first, second)] == [5, 5]
        assert crowd.last_seq(second) == (6 if fault == "hole" else 5)
        assert crowd.waiting(first) == 0
        assert sum(crowd.deliveries.counts().values()) == 10
        crowd.close(first)
        crowd.close(second)
        assert not guests.lost, "who closes is not told that the connection was lost"


def test_a_sender_waits_for_its_own_copy_and_for_no_others() -> None:
    with FakeChat() as chat:
        guests = Guests(chat.port)
        first, second = guests.come(f"tea-{FAULTS.index('unconfirmed')}", 2)
        guests.say(second, 2)
        assert guests.crowd.confirmed == 2 and guests.crowd.waiting(second) == 0
        guests.say(first, 1)
        guests.say(second, 1)
        guests.rest()
        assert guests.crowd.waiting(first) > 0, "another's message does not confirm it"
        guests.crowd.confirm(first)
        assert guests.crowd.waiting(first) == 0


def test_a_place_can_be_opened_again_and_goes_on_behind_what_it_had() -> None:
    with FakeChat() as chat:
        guests = Guests(chat.port)
        first, second = guests.come("tea-0", 2)
        guests.say(first, 2)
        guests.until(lambda: guests.crowd.delivered_to(second) == 2)
        guests.crowd.close(second)
        assert not guests.crowd.is_joined(second) and guests.crowd.joined == 1
        assert guests.crowd.begin(second, "/ws?name=Ada")
        guests.until(lambda: guests.entered.count(second) == 2)
        guests.say(first, 1)
        guests.until(lambda: guests.crowd.delivered_to(second) == 3)
        assert (guests.crowd.holes, guests.crowd.repeats, guests.crowd.last_seq(second)) == (0, 0, 3)


def test_replayed_messages_have_delays_of_their_own() -> None:
    with FakeChat() as chat:
        guests = Guests(chat.port)
        first, second = guests.come("tea-0", 2)
        guests.crowd.let_in(second, 1, 1)  # as if the server were to replay the first message
        guests.say(first, 2)
        guests.until(lambda: guests.crowd.delivered == 4)
        assert sum(guests.crowd.replays.counts().values()) == 1
        assert sum(guests.crowd.deliveries.counts().values()) == 3


def test_delays_of_what_was_sent_since_the_count_began_are_told_apart() -> None:
    with FakeChat() as chat:
        guests = Guests(chat.port)
        first, _second = guests.come("tea-0", 2)
        guests.say(first, 1)
        guests.until(lambda: guests.crowd.delivered == 2)
        guests.crowd.count_anew()
        guests.say(first, 2)
        guests.until(lambda: guests.crowd.delivered == 4)
        assert sum(guests.crowd.counted.counts().values()) == 4
        assert sum(guests.crowd.deliveries.counts().values()) == 6
        assert guests.crowd.sent_by_room() == [2]


def test_a_connection_that_ends_is_told_to_its_owner_alone() -> None:
    with FakeChat(refusals=1) as chat:
        guests = Guests(chat.port)
        place = guests.crowd.place(guests.crowd.add_room("tea-0"))
        guests.room = "tea-0"
        assert guests.crowd.begin(place, "/ws?name=Ada")
        guests.until(lambda: guests.lost == [(place, False)])
        assert not guests.crowd.was_upgraded(place) and "503" in guests.crowd.error()
        (joined,) = guests.come("tea-0", 1)
    guests.until(lambda: guests.lost == [(place, False), (joined, True)])
    assert guests.crowd.was_upgraded(joined)


def test_places_that_are_not_there_are_refused() -> None:
    crowd = native.load("_loadgen").Crowd("127.0.0.1", 1, DIALECTS["tornadochat"], [], 1)
    place = crowd.place(crowd.add_room("tea"))
    with pytest.raises(IndexError):
        crowd.begin(place + 1)
    with pytest.raises(ValueError, match="capacity"):
        crowd.place(0)


# Sizes and addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["http://192.0.2.1:80", "http://example.org", "https://127.0.0.1", "", "127.0.0.1"]
)
def test_only_this_machine_is_loaded(host: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.0/8"):
        loopback(host)


def test_every_address_of_the_loopback_network_is_this_machine() -> None:
    assert loopback("http://127.9.8.7:81") == ("127.9.8.7", 81)
    assert loopback("http://localhost:8000") == ("127.0.0.1", 8000)


def test_workers_are_as_many_as_the_limit_of_files_asks_for() -> None:
    assert stress.server_workers(2_000, 20_000, 2)[0] == 2
    assert stress.server_workers(80_000, 20_000, 2)[0] == 5
    assert stress.server_workers(100_000, 20_000, 2)[0] == 6, "five would be full to the last file"
    assert "20,000 files" in stress.server_workers(80_000, 20_000, 2)[1]
    assert stress.server_workers(80_000, 1_000_000, 8)[0] == 8
    assert stress.load_workers(80_000, 20_000)[0] == 6
    assert stress.load_workers(10, 1_024)[0] == 2
    assert stress.load_workers(2_000, 1_024)[0] == 3


@needs_locust
def test_another_machine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        stress.main(["--host=http://192.0.2.1", f"--out={tmp_path}"])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    locust = run_locust(tmp_path, "DenseChatUser", "--host=http://192.0.2.1:80", "--headless", "-u1", "--hold=1")
    assert locust.code != 0 and "127.0.0.0/8" in locust.output


# Locust ----------------------------------------------------------------------------------------------


class Locust:
    """What a run of Locust left."""

    def __init__(self, folder: Path, code: int, output: str) -> None:
        self.code = code
        self.output = output
        progress = folder / "progress.jsonl"
        lines = [json.loads(line) for line in progress.read_text().splitlines()] if progress.exists() else []
        self.phases = [line["phase"] for line in lines if "phase" in line]
        self.outcome = Tally.sum(line["outcome"] for line in lines if "outcome" in line)
        self.failures = self._rows(folder, "failures")
        self.stats = {row["Name"]: row for row in self._rows(folder, "stats")}

    @staticmethod
    def _rows(folder: Path, name: str) -> list[dict[str, str]]:
        path = folder / f"locust_{name}.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def failed(self, name: str, what: str) -> int:
        """How often an entry failed for a reason that begins so."""
        found = (row for row in self.failures if row["Name"] == name and what in row["Error"])
        return sum(int(row["Occurrences"]) for row in found)


def command(folder: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "locust", "-f", str(LOCUSTFILE), *options),
        *(f"--csv={folder / 'locust'}", f"--progress={folder / 'progress.jsonl'}", "--only-summary"),
    ]


def run_locust(folder: Path, *options: str) -> Locust:
    done = subprocess.run(
        command(folder, *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * RUN_SECONDS,
        check=False,
    )
    return Locust(folder, done.returncode, done.stdout)


@needs_locust
@pytest.mark.slow
@pytest.mark.parametrize("user", ["DenseChatUser", "ChatUser"])
def test_each_broken_promise_is_a_failure_of_its_own_name(user: str, tmp_path: Path) -> None:
    with FakeChat(refusals=1, refused_joins=1) as chat:
        size = 2 * len(FAULTS)
        found = run_locust(
            *(tmp_path, user, f"--host=http://127.0.0.1:{chat.port}", "--headless", f"-u{size}", f"-r{size}"),
            *("--room-size=2", "--rooms-per-user=1", "--messages-per-minute=100", "--leave-share=0", "--hold=6"),
            "--settle=3",
        )
    assert found.code == 1, found.output
    assert found.phases == ["ramp", "hold", "settle", "ramp down", "end"], found.output
    # A message that comes too late is a hole until it comes; the epoll is asked once a second only.
    assert 2 <= found.failed("delivery", "hole: ") <= 4, found.failures
    assert found.failed("delivery", "repeat: ") == 2
    assert found.failed("delivery", "misorder: ") == 2
    assert found.failed("delivery", "lost: ") >= 2 + 1, "the two that miss a number, and the end of a room"
    assert found.failed("send", "not confirmed") >= 1
    assert found.failed("connect", "503") == 1
    assert found.failed("join", "refused: unavailable") == 1
    outcome = found.outcome
    assert (outcome.repeats, outcome.misorders) == (2, 2)
    assert (outcome.failed_connects, outcome.failed_joins, outcome.refused) == (1, 1, 1)
    assert found.outcome.lost == found.failed("delivery", "lost: ")
    assert not found.outcome.clean


@needs_locust
@pytest.mark.slow
@pytest.mark.parametrize("users", [["DenseChatUser"], ["ChatUser"], []], ids=["dense", "readable", "both"])
def test_users_talk_go_away_and_come_back_and_miss_nothing(
    users: list[str], server: Server, tmp_path: Path
) -> None:
    found = run_locust(
        *(tmp_path, *users, f"--host=http://127.0.0.1:{server.port}", "--headless", "-u40", "-r40"),
        *("--room-size=10", "--messages-per-minute=60", "--leave-share=0.3", "--away-seconds=1", "--hold=6"),
    )
    assert found.code == 0, found.output
    outcome = found.outcome
    assert outcome.clean and outcome.returns > 0 and outcome.sent > 50, outcome
    assert outcome.expected == outcome.delivered > outcome.sent * 5
    assert float(found.stats["delivery"]["Average Response Time"]) > 0
    requests = {name: int(found.stats[name]["Request Count"]) for name in ("connect", "join", "send", "delivery")}
    assert requests["connect"] == 40 + outcome.returns
    assert requests["send"] == outcome.sent
    if users:
        assert requests["join"] == requests["connect"] * (2 if "ChatUser" in users else 1)
    replayed = int(found.stats["replay"]["Request Count"]) if "replay" in found.stats else 0
    assert requests["delivery"] + replayed == outcome.delivered
    assert replayed > 0


@needs_locust
@pytest.mark.slow
def test_users_in_several_processes_are_counted_and_judged_together(server: Server, tmp_path: Path) -> None:
    found = run_locust(
        *(tmp_path, "DenseChatUser", f"--host=http://127.0.0.1:{server.port}", "--headless", "--processes=2"),
        *("-u200", "-r200", "--room-size=20", "--messages-per-minute=30", "--hold=5"),
    )
    assert found.code == 0, found.output
    assert found.outcome.clean and found.outcome.users == 200
    delivered = sum(
        int(found.stats[name]["Request Count"]) for name in ("delivery", "replay") if name in found.stats
    )
    assert delivered == found.outcome.delivered
    # Percentiles that the master has from its workers, by whole milliseconds, next to the exact ones.
    exact = quantiles(found.outcome.deliveries)["p95"]
    assert float(found.stats["delivery"]["95%"]) == pytest.approx(exact, rel=0.1, abs=1.0)


@contextmanager
def web_page(folder: Path, *options: str) -> Iterator[str]:
    port = free_port()
    with (folder / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            command(folder, f"--web-port={port}", "--web-host=127.0.0.1", *options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(RUN_SECONDS)


def fetch(url: str, fields: dict[str, Any] | None = None) -> str:
    data = urlencode(fields).encode() if fields is not None else None
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, data=data, timeout=RUN_SECONDS) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@needs_locust
@pytest.mark.slow
def test_the_web_page_starts_a_run_shows_it_and_stops_it(server: Server, tmp_path: Path) -> None:
    options = ("ChatUser", f"--host=http://127.0.0.1:{server.port}", "--messages-per-minute=60", "--room-size=5")
    with web_page(tmp_path, *options) as page:
        assert "messages_per_minute" in fetch(page), "the fields of the load are there"
        assert json.loads(fetch(f"{page}/swarm", {"user_count": 10, "spawn_rate": 10}))["success"]
        shown: dict[str, Any] = {}
        deadline = time.monotonic() + RUN_SECONDS
        while shown.get("delivery", {}).get("num_requests", 0) < 50:
            assert time.monotonic() < deadline, shown
            time.sleep(0.5)
            shown = {row["name"]: row for row in json.loads(fetch(f"{page}/stats/requests"))["stats"]}
        assert shown["delivery"]["num_failures"] == 0 and shown["delivery"]["avg_response_time"] > 0
        assert json.loads(fetch(f"{page}/stop", {}))["success"]
        found = Locust(tmp_path, 0, "")
        assert found.phases == ["ramp", "hold", "settle"]
        assert found.outcome.clean and found.outcome.delivered >= 50


# The whole run ---------------------------------------------------------------------------------------


def start_stress(*options: str) -> subprocess.Popen[str]:
    """Started as a shell starts it in the background: with SIGINT ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.stress", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def run_stress(*options: str) -> tuple[int, str]:
    process = start_stress(*options)
    try:
        output, _ = process.communicate(timeout=5 * RUN_SECONDS)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output


def facts_of(folder: Path) -> dict[str, Any]:
    (results,) = folder.iterdir()
    return dict(json.loads((results / "summary.json").read_text())["facts"])


@needs_locust
@pytest.mark.slow
def test_two_thousand_locust_users_are_there_at_once_and_miss_nothing(tmp_path: Path) -> None:
    """The short form of ``make stress``."""
    pytest.importorskip("matplotlib", reason="Matplotlib comes with the extra bench")
    code, output = run_stress("--users=2000", "--hold=10", "--spawn-rate=500", f"--out={tmp_path}")
    assert code == 0, output
    facts = facts_of(tmp_path)
    assert (facts["users"], facts["joined"], facts["failed connects"]) == (2000, 2000, 0)
    assert (facts["lost"], facts["doubled"], facts["not confirmed"]) == (0, 0, 0)
    assert facts["sent"] > 250 and facts["delivered"] == facts["expected deliveries"] > facts["sent"] * 25
    assert 0 < facts["delivery p50, ms"] <= facts["delivery p95, ms"] <= facts["delivery p99, ms"]
    assert all(facts[f"{name}, cores"] > 0 for name in ("workers", "store", "generators"))
    (results,) = tmp_path.iterdir()
    names = {path.name for path in results.iterdir()}
    assert {"locust.html", "locust_stats.csv", "locust_stats_history.csv", "samples.csv", "summary.txt"} <= names
    assert {"cpu.svg", "memory.svg"} <= names


@needs_locust
@pytest.mark.slow
def test_servers_without_numbers_are_judged_by_counts(tmp_path: Path) -> None:
    for module in ("matplotlib", "uvloop"):
        pytest.importorskip(module, reason=f"{module} comes with the extra bench")
    options = ("--peer=websockets", "--users=60", "--room-size=20", "--messages-per-minute=60", "--hold=4")
    code, output = run_stress(*options, f"--out={tmp_path}")
    assert code == 0, output
    facts = facts_of(tmp_path)
    assert facts["sent"] > 150 and facts["lost"] == facts["doubled"] == facts["not confirmed"] == 0
    assert facts["delivered"] == facts["expected deliveries"] > 20 * 120


@needs_locust
@pytest.mark.slow
def test_a_run_in_which_something_was_lost_fails(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib comes with the extra bench")
    with FakeChat() as chat:
        code, output = run_stress(
            *(f"--host=http://127.0.0.1:{chat.port}", f"--users={4 * len(FAULTS)}", "--room-size=2", "--hold=4"),
            *("--messages-per-minute=100", "--settle=3", f"--out={tmp_path}"),
        )
    assert code == 1, output
    facts = facts_of(tmp_path)
    assert facts["lost"] > 0 and facts["doubled"] > 0 and facts["out of order"] > 0 and facts["not confirmed"] > 0


@needs_locust
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_broken_off_leaves_nobody_behind(number: signal.Signals, tmp_path: Path) -> None:
    process = start_stress("--users=4", "--hold=600", "--workers=1", "--settle=1", f"--out={tmp_path}")
    assert process.stdout is not None
    assert any(line.endswith("hold\n") for line in process.stdout), "it has come to its middle"
    pids = tree(process.pid)[1:]
    assert len(pids) == 6, "a server with its worker and store, a master and two workers of Locust"
    process.send_signal(number)
    process.wait(2 * RUN_SECONDS)
    process.stdout.close()
    assert process.returncode != 0
    deadline = time.monotonic() + RUN_SECONDS
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
