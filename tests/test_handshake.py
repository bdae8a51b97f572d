"""The opening handshake without a socket, and who is behind a proxy."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from tornadochat.errors import HandshakeError
from tornadochat.handshake import (
    Request,
    check_upgrade,
    client_of,
    in_networks,
    origin_allowed,
    parse_networks,
    response_bytes,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def headers(**changed: Any) -> HTTPHeaders:
    made = HTTPHeaders()
    found: dict[str, Any] = {
        "Host": "chat.example.org",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    found.update({name.replace("_", "-"): value for name, value in changed.items()})
    for name, value in found.items():
        for single in value if isinstance(value, list) else [value]:
            if single is not None:
                made.add(name, single)
    return made


def check(method: str = "GET", version: str = "HTTP/1.1", **changed: Any) -> Any:
    request = Request(method, version, "/ws", "", headers(**changed), "192.0.2.1", False)
    return check_upgrade(request, secure=False, allow_origin=[])


def test_the_example_of_the_rfc_is_accepted() -> None:
    upgrade = check()
    assert upgrade.accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" and upgrade.subprotocol is None
    assert response_bytes(upgrade) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_the_subprotocol_is_chosen_only_where_it_is_offered() -> None:
    assert check(Sec_WebSocket_Protocol="other, tornadochat.v1").subprotocol == "tornadochat.v1"
    assert check(Sec_WebSocket_Protocol="other").subprotocol is None


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (405, {"method": "POST"}),
        (505, {"version": "HTTP/1.0"}),
        (400, {"Host": None}),
        (400, {"Host": ["a", "b"]}),
        (426, {"Upgrade": None}),
        (426, {"Upgrade": "h2c"}),
        (426, {"Connection": "keep-alive"}),
        (426, {"Sec_WebSocket_Version": "8"}),
        (426, {"Sec_WebSocket_Version": None}),
        (426, {"Sec_WebSocket_Version": ["13", "13"]}),
        (400, {"Sec_WebSocket_Key": None}),
        (400, {"Sec_WebSocket_Key": [KEY, KEY]}),
        (400, {"Sec_WebSocket_Key": "c2hvcnQ="}),
        (400, {"Sec_WebSocket_Key": "not base64 at all!!!!!=="}),
        (400, {"Sec_WebSocket_Key": ""}),
        (403, {"Origin": "https://evil.example"}),
        (403, {"Origin": ["http://chat.example.org", "http://chat.example.org"]}),
        (403, {"Origin": "null"}),
    ],
)
def test_what_breaks_the_rfc_is_refused_with_a_status(status: int, changed: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError) as found:
        check(**changed)
    assert found.value.status == status and found.value.message
    if status == 426 and any("Version" in name for name in changed):
        assert found.value.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize(
    ("origin", "secure", "allowed", "wanted"),
    [
        ("http://chat.example.org", False, [], True),
        ("HTTP://Chat.Example.org", False, [], True),
        ("http://chat.example.org:80", False, [], True),
        ("https://chat.example.org", False, [], False),
        ("https://chat.example.org", True, [], True),
        ("http://chat.example.org:8080", False, [], False),
        ("http://chat.example.org.evil.net", False, [], False),
        ("https://other.example", False, ["https://other.example"], True),
        ("https://other.example", False, ["https://OTHER.example/"], True),
        ("https://else.example", False, ["https://other.example"], False),
        ("https://else.example", False, ["*"], True),
        ("http://[::1", False, [], False),
    ],
)
def test_origins_are_compared_by_scheme_host_and_port(
    origin: str, secure: bool, allowed: list[str], wanted: bool
) -> None:
    assert origin_allowed(headers(Origin=origin), secure=secure, allow_origin=allowed) is wanted


def test_forwarded_headers_are_believed_from_trusted_proxies_only() -> None:
    trusted = parse_networks(["10.0.0.0/8", "192.0.2.7"])
    sent = headers(X_Forwarded_For="1.1.1.1, 203.0.113.9, 10.1.1.1", X_Forwarded_Proto="https")
    assert client_of("198.51.100.1", False, sent, trusted) == ("198.51.100.1", False)
    assert client_of("10.2.3.4", False, sent, trusted) == ("203.0.113.9", True)
    assert client_of("192.0.2.7", False, headers(), trusted) == ("192.0.2.7", False)
    assert client_of("10.2.3.4", False, headers(X_Forwarded_For="rubbish"), trusted) == ("10.2.3.4", False)
    assert client_of("::ffff:10.2.3.4", False, sent, trusted).address == "203.0.113.9"


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError):
        parse_networks(["10.0.0.0/40"])
    assert not in_networks("no address", parse_networks(["0.0.0.0/0"]))
