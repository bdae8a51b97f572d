"""A reactor on real sockets, whose far ends the test holds."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tornadochat._fastframe import OP_TEXT, FrameDecoder

reactor_module = pytest.importorskip("tornadochat._reactor", reason="the reactor needs Linux' epoll")
Poller = pytest.importorskip("tornadochat._poller").Poller
MASK = b"\x37\xfa\x21\x3d"


class Owner:
    """Stands for a member; notes what happens to it."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.ends: list[tuple[int, str]] = []
        self.gaps: list[list[tuple[Any, int]]] = []
        self.drained = 0
        self.on_text: Callable[[bytes], None] | None = None


class Bench:
    """A reactor and the far ends of its sockets."""

    def __init__(self, **changed: Any) -> None:
        limits: dict[str, Any] = {
            "max_message_bytes": 1 << 20,
            "max_backlog_bytes": 64 * 1024,
            "max_answer_bytes": 16 * 1024,
            "replay_bytes": 16 * 1024,
            "ping_seconds": 25,
            "pong_seconds": 20,
            "close_seconds": 5,
            "stuck_seconds": 30,
        }
        limits.update(changed)
        self.poller = Poller()
        self.reactor = reactor_module.Reactor(
            poller=self.poller,
            on_text=self._text,
            on_closed=lambda owner, code, reason: owner.ends.append((code, reason)),
            on_drained=self._drained,
            on_gap=lambda owner, rooms: owner.gaps.append(list(rooms)),
            **limits,
        )
        self.far: list[socket.socket] = []

    def _text(self, owner: Owner, payload: bytes) -> None:
        owner.texts.append(payload)
        if owner.on_text is not None:
            owner.on_text(payload)

    def _drained(self, owner: Owner) -> None:
        owner.drained += 1

    def member(self, small: bool = False, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, Any, Owner]:
        """A connected pair: the far end, the connection, its owner."""
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        if small:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.setblocking(False)
        owner = Owner()
        connection = self.reactor.attach(near.detach(), owner)
        self.far.append(far)
        return far, connection, owner

    def turn(self, times: int = 3) -> None:
        """Let the reactor handle what there is."""
        for _ in range(times):
            while self.reactor.poll():
                pass

    def close(self) -> None:
        self.reactor.close()
        for sock in self.far:
            sock.close()


def take(sock: socket.socket, decoder: FrameDecoder | None = None) -> list[tuple[int, bytes]]:
    """Frames that are there."""
    decoder = decoder or FrameDecoder(1 << 24, require_mask=False)
    frames: list[tuple[int, bytes]] = []
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return frames
        if not data:
            return frames
        frames += decoder.feed(data)


def seqs(frames: list[tuple[int, bytes]]) -> list[int]:
    return [json.loads(payload)["seq"] for opcode, payload in frames if opcode == OP_TEXT]


def body(size: int = 10) -> bytes:
    return b'{"text":"%s"}' % (b"x" * size)
