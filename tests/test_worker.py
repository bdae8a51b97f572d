"""What ties a worker's parts together, where no other test sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import SLOWNESS
from tornadochat import identity, presence, worker
from tornadochat.auth import load_secrets
from tornadochat.errors import Unavailable
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
