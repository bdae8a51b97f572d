"""A TCP proxy in front of the store, or of anything, that does harm when it is told to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

CHUNK = 65536

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Carries bytes between whoever connects and what ``dial`` reaches.

    Attributes:
        delay_seconds: Each piece waits so long, in order; 0 for not at all.
        port: TCP port of 127.0.0.1.
    """

    def __init__(self, dial: Dial, draw: random.Random) -> None:
        self.delay_seconds = 0.0
        self.port = 0
        self._dial = dial
        self._draw = draw
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._truncating = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End everything."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Close every connection at once."""
        for pair in tuple(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def truncate(self) -> None:
        """Let each connection carry a part of its next piece, then close it."""
        self._truncating = len(self._pairs)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await self._dial()
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, there_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._pairs.discard(pair)
            for each in pair:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(CHUNK):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self._truncating:
                self._truncating -= 1
                writer.write(piece[: self._draw.randrange(len(piece))])
                await writer.drain()
                raise ConnectionResetError("truncated")
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError("ended")
