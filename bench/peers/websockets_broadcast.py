"""``python -m bench.peers.websockets_broadcast``: the ``websockets`` library, redis-py between two processes.

Its documentation: ``broadcast()`` for a room, Redis between processes, uvloop for speed.
"""

from __future__ import annotations

import asyncio
import json

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.asyncio.server import serve as serve_websockets

from bench.peers.serving import JOINED, Options, RoomBus, run_workers, tell_ready


async def serve(options: Options) -> None:
    """One worker."""
    bus = RoomBus[ServerConnection](options.store, broadcast)

    async def chat(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                command = json.loads(message)
                if command["type"] == "join":
                    await bus.join(command["room"], connection)
                    await connection.send(JOINED)
                else:
                    bus.publish(command["room"], command["text"])
        finally:
            bus.leave(connection)

    async with (
        bus.running(),
        serve_websockets(chat, "127.0.0.1", options.port, reuse_port=True, backlog=4096),
    ):
        tell_ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    run_workers(serve, uvloop=True)
