"""What ties a worker's parts together, where no other test sees it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support import LEFT_TO_THE_SERVER, SLOWNESS, request_bytes
from tornadochat import identity, presence, worker
from tornadochat.auth import load_secrets
from tornadochat.errors import Unavailable
from tornadochat.listening import listen
from tornadochat.protocol import User
from tornadochat.settings import Settings


def test_the_secret_is_put_back_however_often_the_store_fails(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that gave up after one try left the making of a new secret to its successor, and everybody
    had to sign in again."""
    failures = 2

    async def sometimes(store: Any, settings: Settings, known: Sequence[str] = ()) -> tuple[list[str], bool]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable("the connection was lost")
        return await load_secrets(store, settings, known)

    async def scenario() -> None:
        one = worker.Worker(Settings(redis_prefix="worker-secret"), 0, store_url, tmp_path, 1)
        keeping = asyncio.create_task(one.identity.keep())
        await asyncio.wait_for(one.identity.known.wait(), 5 * SLOWNESS)
        assert one.authenticator is not None
        [secret] = one.authenticator.secrets
        await one.broker.redis.delete("worker-secret:secret", "worker-secret:secrets")
        monkeypatch.setattr(identity, "load_secrets", sometimes)
        one._on_status(True, lambda room: True)
        async with asyncio.timeout(5 * SLOWNESS):
            while await one.broker.redis.get("worker-secret:secret") is None:
                await asyncio.sleep(0.01)
        assert one.authenticator.secrets == [secret]
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await one.broker.close()

    asyncio.run(scenario())


def test_after_the_store_was_away_nobody_counts_as_gone_before_all_can_have_beaten(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker to come back told everybody that the people of all others had left."""
    monkeypatch.setattr(presence, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(presence, "SETTLE_SECONDS", 0.3)

    async def scenario() -> None:
        settings = Settings(redis_prefix="worker-away")
        one, other = (worker.Worker(settings, slot, store_url, tmp_path, 1) for slot in range(2))
        await one.broker.start()
        await other.presence._beat_once()
        other.presence.join("tea", User("u_other", "Other"))
        await other.presence._write()
        await one.presence.load("tea")
        assert one.presence.people("tea") == 1
        await asyncio.sleep(0.4)  # nobody could beat
        await one.presence._beat_once()
        assert one.presence.people("tea") == 1
        await other.presence._beat_once()
        await one.presence._beat_once()
        assert one.presence.people("tea") == 1
        for _ in range(5):  # the other one is gone for good
            await asyncio.sleep(0.1)
            await one.presence._beat_once()
        assert one.presence.people("tea") == 0
        for each in (one, other):
            await each.broker.close()

    asyncio.run(scenario())


FAULTS = {
    "nothing of a handshake fails": None,
    "no descriptor is left": ("os.dup", OSError(errno.EMFILE, "Too many open files")),
    "the check fails": ("tornadochat.handshake.check_upgrade", RuntimeError("a fault")),
    "the member cannot be made": ("tornadochat.protocol.welcome", RuntimeError("a fault")),
}


@pytest.mark.parametrize("further", [{}, LEFT_TO_THE_SERVER])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_handshake_that_fails_leaves_nothing_behind(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, further: dict[str, Any]
) -> None:
    """The descriptor stayed open, the address counted for ever, and the client waited for an answer."""

    async def scenario() -> None:
        settings = Settings(redis_prefix="worker-door", max_connections_per_address=1)
        one = worker.Worker(settings, 0, store_url, tmp_path, 1)
        keeping = asyncio.create_task(one.identity.keep())
        await asyncio.wait_for(one.identity.known.wait(), 5 * SLOWNESS)
        listening = listen("127.0.0.1", 0)
        one.gateway.listen(listening)

        async def knock() -> bytes:
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            with contextlib.closing(writer):
                writer.write(request_bytes(**further))
                with contextlib.suppress(ConnectionResetError):
                    return await asyncio.wait_for(reader.read(4096), 5 * SLOWNESS)
            return b""

        found = FAULTS[fault]
        files = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            if found is not None:
                patch.setattr(found[0], Mock(side_effect=found[1]))
            answer = await knock()
        if answer.startswith(b"HTTP/1.1 101 "):  # this way it is not needed
            one.members.pop().connection.abort()
        one.reactor.poll()
        async with asyncio.timeout(5 * SLOWNESS):
            while len(os.listdir("/proc/self/fd")) > len(files):
                await asyncio.sleep(0.01)
        assert not one.members and not one.gateway.server.owed
        assert (await knock()).startswith(b"HTTP/1.1 101 ")  # its address has room for one
        one.gateway.stop()
        listening.close()
        for member in tuple(one.members):
            member.connection.abort()
        one.reactor.poll()
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await one.broker.close()

    asyncio.run(scenario())
