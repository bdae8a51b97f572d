"""What the Python peers share: worker processes on one port, and rooms that Redis pub/sub joins together."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import redis.asyncio

from tornadochat.processes import end_with_parent, raise_file_limit

Member = TypeVar("Member")


class Options(NamedTuple):
    """What a peer's command line says."""

    port: int
    store: str
    workers: int


def run_workers(serve: Callable[[Options], Coroutine[Any, Any, None]], uvloop: bool = False) -> None:
    """Fork the worker processes and wait for them; they end with this process.

    Args:
        serve: Listens on the port with ``SO_REUSEPORT``, says ``told_ready``, and serves on.
        uvloop: Whether the peer's documentation recommends uvloop.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", default="", help="address of Redis, for peers that meet there")
    parser.add_argument("--workers", type=int, default=2)
    options = Options(**vars(parser.parse_args()))
    raise_file_limit()
    parent = os.getpid()
    children = []
    for _ in range(options.workers):
        pid = os.fork()
        if pid == 0:
            end_with_parent(parent, signal.SIGTERM)
            _run(serve(options), uvloop)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def _run(main: Coroutine[Any, Any, None], uvloop: bool) -> None:
    if uvloop:
        import uvloop as loops

        loops.run(main)
    else:
        asyncio.run(main)


def tell_ready() -> None:
    """Tell whoever started the peer that this worker listens; in one write, since all workers share the output."""
    os.write(sys.stdout.fileno(), b"ready\n")


class Rooms(Generic[Member]):
    """The members of each room of the only process that there is.

    Args:
        deliver: Called with the members of a room and one event for them.
    """

    def __init__(self, deliver: Callable[[set[Member], str], None]) -> None:
        self._deliver = deliver
        self._rooms: dict[str, set[Member]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish and deliver for as long as the context lasts."""
        yield

    async def join(self, room: str, member: Member) -> None:
        """Bring a member what is said in a room from now on."""
        self._rooms.setdefault(room, set()).add(member)

    def leave(self, member: Member) -> None:
        """Forget a member that is gone."""
        for members in self._rooms.values():
            members.discard(member)

    def publish(self, room: str, text: str) -> None:
        """Say something in a room; in order, without waiting."""
        self._say(room, json.dumps({"type": "message", "room": room, "text": text}, separators=(",", ":")))

    def _say(self, room: str, event: str) -> None:
        self._deliver(self._rooms.get(room, set()), event)


class RoomBus(Rooms[Member]):
    """This worker's members of each room, and the pub/sub that brings them what is said on any worker.

    Args:
        url: Address of Redis.
        deliver: Called with the members of a room and one event for them.
    """

    def __init__(self, url: str, deliver: Callable[[set[Member], str], None]) -> None:
        super().__init__(deliver)
        self._client = redis.asyncio.Redis.from_url(url, decode_responses=True)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        self._outbox: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish and deliver for as long as the context lasts."""
        await self._pubsub.subscribe("everybody")  # listen() ends where nothing is subscribed
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._publish())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
            await self._client.aclose()

    async def join(self, room: str, member: Member) -> None:
        """See ``Rooms``."""
        await super().join(room, member)
        if len(self._rooms[room]) == 1:
            await self._pubsub.subscribe(room)

    def _say(self, room: str, event: str) -> None:
        self._outbox.put_nowait((room, event))

    async def _publish(self) -> None:
        while True:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.publish(*await self._outbox.get())
            while not self._outbox.empty():
                pipeline.publish(*self._outbox.get_nowait())
            await pipeline.execute()

    async def _listen(self) -> None:
        async for message in self._pubsub.listen():
            super()._say(message["channel"], message["data"])


JOINED = '{"type":"joined"}'
