"""The Python client, against a real server and against one that the test plays itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import tornado.web
import tornado.websocket

from bench.processes import Server
from tests.conftest import ROOT
from tests.support import SLOWNESS, Person, http
from tornadochat import client_room
from tornadochat.client import (
    Client,
    ClientClosed,
    CommandRefused,
    ConnectRefused,
    Hole,
    Message,
    Position,
    Presence,
    Room,
    RoomEvent,
    Typing,
    Unconfirmed,
)
from tornadochat.errors import ProtocolError
from tornadochat.resume import LAST_PAUSE_SECONDS, Track, backoff

SECONDS = 20


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; none may hang."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS * SLOWNESS):
            await story()

    asyncio.run(bounded())


def url(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}/ws"


async def take(room: Room, count: int, kind: type = Message) -> list[Any]:
    found: list[RoomEvent] = []
    async for event in room:
        if isinstance(event, kind):
            found.append(event)
            if len(found) == count:
                break
    return found


# The position --------------------------------------------------------------------------------------


def test_the_pause_doubles_up_to_half_a_minute_and_anything_below_is_as_likely() -> None:
    assert [backoff(attempt, lambda: 1.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff(10_000, lambda: 1.0) == LAST_PAUSE_SECONDS
    assert backoff(3, lambda: 0.0) == 0.0
    assert len({backoff(3) for _ in range(20)}) > 10


def test_the_position_moves_on_messages_resets_and_an_empty_join_only() -> None:
    track = Track(Position("aaaaaaaa", 5))
    assert not track.on_joined({"epoch": "bbbbbbbb", "seq": 7, "missing": 2, "truncated": False})
    assert track.position == ("aaaaaaaa", 5) and not track.caught_up
    assert track.on_message(6) and track.on_message(7)
    assert track.position == ("bbbbbbbb", 7) and track.caught_up
    assert not track.on_reset({"epoch": "cccccccc", "seq": 7, "truncated": False})
    assert track.position == ("cccccccc", 7)
    assert track.on_joined({"epoch": "cccccccc", "seq": 99, "missing": 0, "truncated": True})
    assert track.position == ("cccccccc", 99)
    assert (track.repeats, track.holes) == (0, 0)


def test_a_reset_to_smaller_numbers_leaves_nothing_to_wait_for() -> None:
    track = Track()
    track.on_joined({"epoch": "aaaaaaaa", "seq": 50, "missing": 0, "truncated": False})
    assert track.on_reset({"epoch": "bbbbbbbb", "seq": 0, "truncated": True})
    assert track.caught_up and track.on_message(1)
    assert (track.repeats, track.holes) == (0, 0)


def test_repeats_and_holes_are_counted() -> None:
    track = Track()
    track.on_joined({"epoch": "aaaaaaaa", "seq": 0, "missing": 0, "truncated": False})
    assert track.on_message(1) and not track.on_message(1) and track.on_message(3)
    assert (track.repeats, track.holes) == (1, 1)


# A real server -------------------------------------------------------------------------------------


def test_two_clients_talk(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada, Client(url(server), name="Bob") as bob:
            theirs = await bob.join(room)
            place = await (await ada.join(room)).send("Grüße")
            [message] = await take(theirs, 1)
            assert message == Message(room, *place, message.id, ada.user, "Grüße", message.ts)
            assert place.seq == 1 and theirs.track.position == place

    run(story)


def test_the_example_of_the_readme_repeats_what_is_said(server: Server) -> None:
    text = (ROOT / "README.md").read_text()
    example = text[text.index("```python\n") + len("```python\n") :].partition("```")[0]
    example = example.replace("ws://127.0.0.1:8000/ws", url(server)).replace("asyncio.run(main())", "")

    async def story() -> None:
        names: dict[str, Any] = {}
        exec(compile(example, "README.md", "exec"), names)
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join("lobby", history=0)
            echo = asyncio.create_task(names["main"]())
            await take(mine, 1)
            await mine.send("Once more")
            assert [each.text for each in await take(mine, 2)] == ["Once more", "Once more"]
            echo.cancel()
            await asyncio.wait([echo])

    run(story)


def test_presence_typing_and_who_come_typed(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            async with Client(url(server), name="Bob") as bob:
                theirs = await bob.join(room)
                async for event in mine:
                    if isinstance(event, Presence) and bob.user in event.joined:
                        break
                theirs.typing()
                assert await take(mine, 1, Typing) == [Typing(room, (bob.user,))]  # type: ignore[arg-type]
                users, people = await mine.who()
                assert people == 2 and set(users) == {ada.user, bob.user}

    run(story)


def test_a_guest_that_comes_back_with_its_session_is_the_same_user(server: Server) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as first:
            pass
        async with Client(url(server), token=first.session) as second:
            assert second.user == first.user

    run(story)


def test_a_lost_connection_is_made_again_and_nothing_is_missing(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            await mine.send("one")
            assert ada._connection is not None
            ada._connection.close()  # type: ignore[unreachable]
            await asyncio.to_thread(_say, server, room, 30)
            found = await take(mine, 31)
            assert [each.seq for each in found] == list(range(1, 32))
            assert ada.reconnects == 1 and (mine.track.repeats, mine.track.holes) == (0, 0)

    run(story)


def _say(server: Server, room: str, count: int) -> None:
    with Person(server.port, "Cid") as cid:
        cid.join(room)
        for number in range(count):
            cid.say(room, f"from Cid {number}")
        cid.messages(count)


def test_a_program_that_does_not_read_gets_everything_later(
    server: Server, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_room, "MAX_UNREAD", 20)

    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            places = [await mine.send(f"number {number}") for number in range(100)]
            assert [place.seq for place in places] == list(range(1, 101))
            assert len(mine._unread) <= 21
            found = await take(mine, 100)
            assert [each.text for each in found] == [f"number {number}" for number in range(100)]
            assert (mine.track.repeats, mine.track.holes) == (0, 0)

    run(story)


def test_history_has_what_was_said_before(server: Server, room: str) -> None:
    async def story() -> None:
        await asyncio.to_thread(_say, server, room, 30)
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room, history=5)
            first = (await take(mine, 5))[0].seq
            found, more = await ada.history(room, before=first, limit=10)
            assert [each.seq for each in found] == list(range(16, 26)) and more

    run(story)


def test_what_the_server_refuses_is_told(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            await mine.send("first", "an-id-of-my-own-1")
            assert (await mine.send("first", "an-id-of-my-own-1")).seq == 1
            with pytest.raises(CommandRefused, match="id_reused"):
                await mine.send("second", "an-id-of-my-own-1")
            with pytest.raises(CommandRefused, match="bad_text"):
                await mine.send(" ")
            with pytest.raises(ValueError, match="16 to 64"):
                await mine.send("third", "too-short")
            with pytest.raises(ProtocolError):
                await ada.join("")

    run(story)


def test_leaving_and_closing_end_what_waits(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            await mine.leave()
            with pytest.raises(ClientClosed):
                await mine.send("too late")
            assert [event async for event in mine] == []
            other = await ada.join(room)
            waiting = asyncio.create_task(take(other, 1))
        assert await waiting == []
        with pytest.raises(ClientClosed):
            await ada.join(room)

    run(story)


def test_a_session_that_was_ended_is_final(server: Server, room: str) -> None:
    async def story() -> None:
        async with Client(url(server), name="Ada") as ada:
            mine = await ada.join(room)
            assert ada.user is not None
            path, key = f"/api/users/{ada.user.id}/sessions", {"Authorization": "Bearer a-key-for-the-tests"}
            assert (await asyncio.to_thread(http, server.port, "DELETE", path, None, key)).status < 300
            with pytest.raises(ConnectRefused):
                await take(mine, 1)

    run(story)


def test_a_bad_token_is_refused_at_once(server: Server) -> None:
    async def story() -> None:
        with pytest.raises(ConnectRefused) as refused:
            await Client(url(server), token="nobody's").connect()
        assert refused.value.status == 401

    run(story)


def test_either_a_name_or_a_token() -> None:
    with pytest.raises(ValueError, match="either"):
        Client("ws://127.0.0.1/ws")


# A server that the test plays ----------------------------------------------------------------------


class Played(tornado.websocket.WebSocketHandler):
    """Welcomes, and gives each command to the test."""

    script: Callable[[Played, dict[str, Any]], None]
    connections: list[Played]

    def initialize(self, script: Any, connections: list[Played]) -> None:
        self.script, self.connections = script, connections

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.connections.append(self)
        user = {"id": "u_ada", "name": "Ada"}
        self.tell(type="welcome", user=user, session="s1", limits={})

    def on_message(self, message: str | bytes) -> None:
        self.script(self, json.loads(message))

    def tell(self, **event: Any) -> None:
        self.write_message(json.dumps(event))

    def let_in(self, seq: int = 0, missing: int = 0, truncated: bool = False) -> None:
        self.tell(
            type="joined", room="tea", epoch="aaaaaaaa", seq=seq, missing=missing, truncated=truncated, people=1
        )

    def say(self, seq: int, message_id: str) -> None:
        user = {"id": "u_ada", "name": "Ada"}
        self.tell(type="message", room="tea", seq=seq, id=message_id, user=user, text="hello", ts=1)


@asynccontextmanager
async def played(script: Callable[[Played, dict[str, Any]], None]) -> AsyncIterator[tuple[str, list[Played]]]:
    connections: list[Played] = []
    fields = {"script": script, "connections": connections}
    server = tornado.web.Application([("/ws", Played, fields)]).listen(0, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    try:
        yield f"ws://127.0.0.1:{port}/ws", connections
    finally:
        server.stop()
        for connection in connections:
            connection.close()
        await server.close_all_connections()


def test_a_send_is_tried_again_under_its_id_when_the_server_says_when() -> None:
    sends: list[str] = []

    def script(server: Played, command: dict[str, Any]) -> None:
        if command["type"] == "join":
            server.let_in()
        elif len(sends) < 2:
            sends.append(command["id"])
            code = "rate_limited" if len(sends) == 1 else "unavailable"
            server.tell(type="error", code=code, message="later", room="tea", id=command["id"], retry_after_ms=20)
        else:
            sends.append(command["id"])
            server.say(1, command["id"])

    async def story() -> None:
        async with played(script) as (address, _), Client(address, name="Ada") as ada:
            assert await (await ada.join("tea")).send("hello") == ("aaaaaaaa", 1)
            assert len(sends) == 3 and len(set(sends)) == 1

    run(story)


def test_what_comes_back_with_the_replay_is_not_sent_again() -> None:
    commands: list[dict[str, Any]] = []

    def script(server: Played, command: dict[str, Any]) -> None:
        commands.append(command)
        if command["type"] == "send":
            server.close()  # stored, but nobody hears of it
        elif len(server.connections) == 1:
            server.let_in()
        else:
            server.let_in(seq=1, missing=1)
            server.say(1, next(each["id"] for each in commands if each["type"] == "send"))

    async def story() -> None:
        async with played(script) as (address, _), Client(address, name="Ada") as ada:
            assert await (await ada.join("tea")).send("hello") == ("aaaaaaaa", 1)
            assert [each["type"] for each in commands] == ["join", "send", "join"]
            assert commands[2]["after"] == {"epoch": "aaaaaaaa", "seq": 0}

    run(story)


def test_behind_a_hole_an_old_message_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_room, "REPEAT_WINDOW_SECONDS", 0.0)
    commands: list[str] = []

    def script(server: Played, command: dict[str, Any]) -> None:
        commands.append(command["type"])
        if command["type"] == "send":
            server.close()
        elif len(server.connections) == 1:
            server.let_in()
        else:
            server.let_in(seq=90, truncated=True)

    async def story() -> None:
        async with played(script) as (address, _), Client(address, name="Ada") as ada:
            mine = await ada.join("tea")
            with pytest.raises(Unconfirmed):
                await mine.send("hello")
            assert await take(mine, 1, Hole) == [Hole("tea", "aaaaaaaa", 90)]
            assert commands == ["join", "send", "join"]

    run(story)


def test_the_pause_that_bye_asks_for_is_kept() -> None:
    def script(server: Played, command: dict[str, Any]) -> None:
        if len(server.connections) == 1:
            server.tell(type="bye", reason="drain", retry_after_ms=700)
            server.close(1012)
        else:
            server.let_in()

    async def story() -> None:
        async with played(script) as (address, connections), Client(address, name="Ada") as ada:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await ada.join("tea")
            assert loop.time() - began >= 0.7 and len(connections) == 2

    run(story)


def test_retry_now_does_not_wait() -> None:
    def script(server: Played, command: dict[str, Any]) -> None:
        if len(server.connections) == 1:
            server.tell(type="bye", reason="drain", retry_after_ms=60_000)
            server.close(1012)
        else:
            server.let_in()

    async def story() -> None:
        async with played(script) as (address, _), Client(address, name="Ada") as ada:
            joining = asyncio.create_task(ada.join("tea"))
            while ada.connected:
                await asyncio.sleep(0.01)
            ada.retry_now()
            await joining

    run(story)


def test_a_room_that_could_not_be_read_is_joined_again() -> None:
    joins: list[dict[str, Any]] = []

    def script(server: Played, command: dict[str, Any]) -> None:
        joins.append(command)
        if len(joins) == 2:
            server.tell(type="error", code="unavailable", message="m", room="tea", retry_after_ms=10)
            return
        server.let_in(seq=len(joins), missing=1 if len(joins) > 1 else 0)
        if len(joins) == 1:
            server.tell(type="gap", room="tea", epoch="aaaaaaaa", seq=1)
        else:
            server.say(2, "x" * 16)
            server.say(3, "y" * 16)

    async def story() -> None:
        async with played(script) as (address, _), Client(address, name="Ada") as ada:
            found = await take(await ada.join("tea"), 2)
            assert [each.seq for each in found] == [2, 3]
            assert [each.get("after") for each in joins[1:]] == [{"epoch": "aaaaaaaa", "seq": 1}] * 2

    run(story)


def test_a_server_that_is_silent_is_asked_and_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tornadochat.client.QUIET_SECONDS", 0.2)
    monkeypatch.setattr("tornadochat.client.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("tornadochat.client.LOOK_SECONDS", 0.05)
    pings: list[int] = []

    def script(server: Played, command: dict[str, Any]) -> None:
        if command["type"] == "ping":
            pings.append(len(server.connections))

    async def story() -> None:
        async with played(script) as (address, connections), Client(address, name="Ada"):
            while len(connections) < 2:
                await asyncio.sleep(0.01)
            assert pings[0] == 1

    run(story)
