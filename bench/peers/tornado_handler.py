"""``python -m bench.peers.tornado_handler``: Tornado's own WebSocketHandler, redis-py between two processes.

Tornado's documentation: one process for each core, each with a listening socket of its own. Without ``--store``
it is one process that needs no Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

from bench.peers.serving import JOINED, Options, RoomBus, Rooms, run_workers, tell_ready


class Chat(tornado.websocket.WebSocketHandler):
    """One member."""

    def initialize(self, bus: Rooms[Chat]) -> None:
        self.bus = bus

    async def on_message(self, message: str | bytes) -> None:
        command = json.loads(message)
        if command["type"] == "join":
            await self.bus.join(command["room"], self)
            await self.write_message(JOINED)
        else:
            self.bus.publish(command["room"], command["text"])

    def on_close(self) -> None:
        self.bus.leave(self)


def deliver(members: set[Chat], event: str) -> None:
    """The same event to each of them."""
    for member in members:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):  # on_close takes it out
            member.write_message(event)


async def serve(options: Options) -> None:
    """One worker."""
    bus: Rooms[Chat] = RoomBus(options.store, deliver) if options.store else Rooms(deliver)
    async with bus.running():
        application = tornado.web.Application([("/", Chat, {"bus": bus})], websocket_ping_interval=30)
        server = tornado.httpserver.HTTPServer(application)
        server.add_sockets(tornado.netutil.bind_sockets(options.port, "127.0.0.1", backlog=4096, reuse_port=True))
        tell_ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    run_workers(serve)
