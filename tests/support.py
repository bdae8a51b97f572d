"""A chat client for the tests on the ``websockets`` package: somebody else's codec judges ours."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from websockets.sync.client import ClientConnection, connect

from tests.tunnel import tls_socket
from tornadochat.acceptor import MAX_FIELDS

# How many times slower than usual everything is; time-outs grow by it. A debugger or a sanitizer sets it.
SLOWNESS = float(os.environ.get("CHAT_TEST_SLOWNESS", "1"))
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

_numbers = itertools.count(1)


def new_id() -> str:
    """An id that no other message of this run has."""
    return f"test-{time.time_ns():020d}-{next(_numbers)}"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and 127.0.0.1 that signs itself, and its key, for two days."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Person:
    """One connection; every event is kept, in order."""

    def __init__(
        self,
        port: int,
        name: str = "Ada",
        *,
        token: str = "",
        tls: bool = False,
        path: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        query = f"token={quote(token)}" if token else f"name={quote(name)}"
        # Entered by hand: a person's connection lives as long as its test wants.
        self.socket: ClientConnection = connect(
            f"ws://{host}:{port}{path or '/ws?' + query}",
            sock=tls_socket(host, port) if tls else None,
            max_size=None,
            compression=None,
            ping_interval=None,
        ).__enter__()
        self.events: list[dict[str, Any]] = []
        self.welcome = self.expect("welcome")
        self.user = self.welcome["user"]

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def command(self, **fields: Any) -> None:
        """Send one command."""
        self.socket.send(json.dumps(fields))

    def read(self, timeout: float = 5.0) -> dict[str, Any]:
        """The next event.

        Raises:
            TimeoutError: None came.
        """
        event: dict[str, Any] = json.loads(self.socket.recv(timeout))
        self.events.append(event)
        return event

    def expect(self, kind: str, timeout: float = 5.0, **fields: Any) -> dict[str, Any]:
        """The next event of a kind (with these fields); others are passed over."""
        deadline = time.monotonic() + timeout * SLOWNESS
        while True:
            try:
                event = self.read(max(0.01, deadline - time.monotonic()))
            except TimeoutError as error:
                error.add_note(f"{kind} {fields} did not come; what came last: {self.events[-5:]}")
                raise
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items()):
                return event

    def quiet(self, seconds: float) -> list[dict[str, Any]]:
        """Events that come within some time."""
        deadline = time.monotonic() + seconds
        found = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                found.append(self.read(left))
            except TimeoutError:
                break
        return found

    def join(self, room: str, **fields: Any) -> dict[str, Any]:
        """Join and return ``joined``."""
        self.command(type="join", room=room, **fields)
        return self.expect("joined", room=room)

    def say(self, room: str, text: str, message_id: str = "") -> str:
        """Send a message; returns its id."""
        message_id = message_id or new_id()
        self.command(type="send", room=room, id=message_id, text=text)
        return message_id

    def messages(self, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """The next messages, other events passed over."""
        return [self.expect("message", timeout) for _ in range(count)]


class Answer:
    """An HTTP answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def http(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """One request; an error status is an answer too."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, method=method)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=10 * SLOWNESS) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 section 1.3
# Headers with which a handshake is left to Tornado's HTTP server: so many are too many for the acceptor.
LEFT_TO_THE_SERVER = {"X": ["1"] * MAX_FIELDS}


def request_bytes(
    path: str = "/ws?name=Raw", *, method: str = "GET", version: str = "HTTP/1.1", **changed: Any
) -> bytes:
    """A handshake; headers are changed by name (``_`` for ``-``), left out by None, repeated by a list."""
    headers: dict[str, Any] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    lines = [f"{method} {path} {version}"]
    for name, value in headers.items():
        for single in value if isinstance(value, list) else [value]:
            if single is not None:
                lines.append(f"{name}: {single}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def dial(port: int) -> socket.socket:
    """A plain TCP connection."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10 * SLOWNESS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_head(sock: socket.socket) -> bytes:
    """Bytes up to the end of an HTTP head."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1)
        if not piece:
            break
        data += piece
    return data


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer closes."""
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def join_when_served(person: Person, room: str, **fields: Any) -> dict[str, Any]:
    """Join a room whose store has just been replaced: a worker that has not heard of it yet says so, and is asked
    again."""
    deadline = time.monotonic() + 15 * SLOWNESS
    while True:
        person.command(type="join", room=room, **fields)
        while (event := person.read(5 * SLOWNESS))["type"] not in ("joined", "error"):
            pass
        if event["type"] == "joined":
            return event
        assert event["code"] == "unavailable" and time.monotonic() < deadline, event
        time.sleep(0.2)


def check_loss_is_announced(ada: Person, bob: Person, port: int, room: str, epoch: str, lost: str) -> None:
    """The store of a room lost all but its first message: a new epoch says so to everybody.

    Args:
        epoch: Of the room before.
        lost: Id of a message, ``lost 0``, that was stored second; its sender tries again, as it may: the server
            that knew it is gone.
    """
    ada.say(room, "lost 0", lost)
    reset = bob.expect("reset")
    assert (reset["truncated"], reset["seq"]) == (True, 1) and reset["epoch"] != epoch
    again = bob.expect("message")
    assert (again["seq"], again["id"]) == (2, lost)
    for seq, truncated in ((1, False), (3, True)):
        with Person(port) as late:
            joined = join_when_served(late, room, after={"epoch": epoch, "seq": seq})
            assert (joined["truncated"], joined["epoch"]) == (truncated, reset["epoch"])
