"""The HTTP API, the web client's files, and the metrics, on a running server."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from bench.processes import Server
from tests.support import Answer, Person, http, new_id

KEY = {"X-API-Key": "a-key-for-the-tests"}


def cookie_of(answer: Answer) -> dict[str, str]:
    return {"Cookie": str(answer.headers["Set-Cookie"]).split(";")[0]}


def test_a_guest_session_comes_in_a_signed_cookie_and_as_a_token(server: Server) -> None:
    made = http(server.port, "POST", "/api/session", {"name": " Ada "})
    assert made.status == 201 and made.json["user"]["name"] == "Ada"
    sent = made.headers["Set-Cookie"]
    assert "HttpOnly" in sent and "SameSite=Lax" in sent and "Path=/" in sent and "Secure" not in sent
    again = http(server.port, "GET", "/api/session", headers=cookie_of(made))
    assert again.status == 200 and again.json["user"] == made.json["user"]
    renamed = http(server.port, "POST", "/api/session", {"name": "Grace"}, cookie_of(made))
    assert renamed.json["user"] == {"id": made.json["user"]["id"], "name": "Grace"}
    with Person(server.port, token=renamed.json["token"]) as person:
        assert person.user == renamed.json["user"]
    ended = http(server.port, "DELETE", "/api/session", headers=cookie_of(made))
    assert ended.status == 204 and 'tornadochat_session=""' in ended.headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"name": ""}, {}, 400),
        ({"name": "a\nb"}, {}, 400),
        ({}, {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"name=Ada", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"name": "Ada"}, {"Origin": "https://evil.example"}, 403),
    ],
)
def test_a_session_that_cannot_be_is_refused_in_words(
    server: Server, body: Any, headers: dict[str, str], status: int
) -> None:
    answer = http(server.port, "POST", "/api/session", body, headers)
    assert answer.status == status and answer.json["type"] == "error" and answer.json["message"]


def test_who_is_unknown_gets_401(server: Server) -> None:
    assert http(server.port, "GET", "/api/session").status == 401
    assert http(server.port, "GET", "/api/session?token=x").status == 401
    assert http(server.port, "GET", "/api/session", headers={"Cookie": "tornadochat_session=x"}).status == 401


def test_messages_are_paged_backwards_without_hole_or_repeat(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        ada.join(room)
        for number in range(95):
            ada.say(room, f"text {number}")
        ada.messages(95)
    seqs: list[int] = []
    before = 0
    while True:
        path = f"/api/rooms/{room}/messages?limit=20" + (f"&before={before}" if before else "")
        page = http(server.port, "GET", path).json
        seqs = [message["seq"] for message in page["messages"]] + seqs
        assert page["seq"] == 95 and page["room"] == room
        if not page["more"]:
            break
        before = page["messages"][0]["seq"]
    assert seqs == list(range(1, 96))


def test_a_room_without_messages_is_an_empty_page(server: Server, room: str) -> None:
    page = http(server.port, "GET", f"/api/rooms/{room}/messages").json
    assert page["messages"] == [] and page["more"] is False and page["seq"] == 0


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "before=0", "before=-1", "before=1.5"])
def test_a_page_that_cannot_be_is_refused(server: Server, room: str, query: str) -> None:
    assert http(server.port, "GET", f"/api/rooms/{room}/messages?{query}").status == 400


def test_another_server_posts_once_for_each_id(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        ada.join(room)
        message = {"id": new_id(), "text": "from a server", "user": {"id": "bot-1", "name": "Bot"}}
        first = http(server.port, "POST", f"/api/rooms/{room}/messages", message, KEY)
        again = http(server.port, "POST", f"/api/rooms/{room}/messages", message, KEY)
        other = http(server.port, "POST", f"/api/rooms/{room}/messages", {**message, "text": "other"}, KEY)
        assert (first.status, again.status, other.status) == (201, 200, 409)
        assert first.json == again.json and first.json["seq"] == 1
        assert ada.expect("message")["user"] == message["user"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/rooms/tea/messages", {"text": "x"}),
        ("DELETE", "/api/rooms/tea/members/u_1", None),
        ("DELETE", "/api/users/u_1/sessions", None),
    ],
)
def test_servers_need_the_key(server: Server, method: str, path: str, body: Any) -> None:
    assert http(server.port, method, path, body).status == 401
    assert http(server.port, method, path, body, {"X-API-Key": "wrong"}).status == 401
    assert http(server.port, method, path, body, {"Authorization": f"Bearer {KEY['X-API-Key']}"}).status in (
        201,
        204,
    )


def test_active_rooms_are_those_with_people(server: Server, room: str) -> None:
    with Person(server.port) as ada, Person(server.port) as bob:
        ada.join(room)
        bob.join(room)
        ada.expect("presence", people=2)
        for _ in range(40):
            rooms = {
                entry["room"]: entry["people"] for entry in http(server.port, "GET", "/api/rooms").json["rooms"]
            }
            if rooms.get(room) == 2:
                break
            ada.quiet(0.1)
        assert rooms.get(room) == 2


def test_cors_is_for_allowed_origins_alone(server: Server) -> None:
    own = f"http://127.0.0.1:{server.port}"
    allowed = http(server.port, "OPTIONS", "/api/session", headers={"Origin": own})
    assert allowed.status == 204 and allowed.headers["Access-Control-Allow-Origin"] == own
    assert "DELETE" in allowed.headers["Access-Control-Allow-Methods"]
    refused = http(server.port, "OPTIONS", "/api/session", headers={"Origin": "https://evil.example"})
    assert refused.status == 403 and refused.headers["Access-Control-Allow-Origin"] is None


def test_unknown_routes_and_methods_answer_in_json(server: Server) -> None:
    assert http(server.port, "GET", "/api/nothing").json["code"] == "not_found"
    assert http(server.port, "POST", "/healthz", {}).status == 405


def test_metrics_are_prometheus_text_of_all_workers(server: Server, room: str) -> None:
    with Person(server.port) as ada:
        ada.join(room)
        ada.say(room, "counted")
        ada.messages(1)
        ada.quiet(1.3)
        text = http(server.port, "GET", "/metrics").body.decode()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    wanted = {
        *(
            "connections",
            "worker_rooms",
            "messages",
            "deliveries",
            "sent_bytes",
            "received_bytes",
            "backlog_drops",
        ),
        *("publish_seconds", "loop_lag_seconds", "worker_restarts", "handshakes", "longest_hold_seconds"),
    }
    assert {f"tornadochat_{name}" for name in wanted} <= names | {name.removesuffix("_total") for name in names}
    assert "pid=" not in text


def test_health_and_readiness_answer(server: Server) -> None:
    assert http(server.port, "GET", "/healthz").json["status"] == "ok"
    ready = http(server.port, "GET", "/readyz")
    assert ready.status == 200 and ready.json == {"ready": True, "store": "up", "draining": False}


def test_the_web_client_is_served_safely_and_cached_by_its_hash(server: Server) -> None:
    page = http(server.port, "GET", "/")
    if page.status == 404:
        assert b"make webapp" in page.body
        pytest.skip("the web client is not built into this package")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy and "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff" and page.headers["Cache-Control"] == "no-cache"
    assert not re.search(rb"<script(?![^>]*src=)", page.body) and b"style=" not in page.body
    again = http(server.port, "GET", "/", headers={"If-None-Match": page.headers["ETag"]})
    assert again.status == 304
    for asset in re.findall(rb'(?:src|href)="(/assets/[^"]+)"', page.body):
        answer = http(server.port, "GET", asset.decode())
        assert answer.status == 200 and "immutable" in answer.headers["Cache-Control"]
    assert http(server.port, "GET", "/../../etc/passwd").status in (403, 404)


def test_the_openapi_document_describes_every_route(server: Server) -> None:
    document = http(server.port, "GET", "/api/openapi.json").json
    assert document == json.loads(files("tornadochat").joinpath("openapi.json").read_text())
    assert document["openapi"].startswith("3.1")
    from tornadochat import api

    described = set(document["paths"])
    served = set()
    for pattern, handler in api.routes():
        if handler is api.Unknown:
            continue
        path = pattern.replace("\\.", ".")
        for name in ("room", "user") if "rooms" in pattern else ("user",):
            path = path.replace("([^/]+)", "{" + name + "}", 1)
        served.add(path)
        for method in ("get", "post", "delete"):
            own = getattr(handler, method) is not getattr(api.Handler, method)
            assert (method in document["paths"][path]) is own, (path, method)
    assert described == served
