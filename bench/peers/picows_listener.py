"""``python -m bench.peers.picows_listener``: picows (Cython) on uvloop, redis-py between two processes."""

from __future__ import annotations

import asyncio
import json

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.peers.serving import JOINED, Options, RoomBus, run_workers, tell_ready


class Chat(WSListener):
    """One member."""

    def __init__(self, bus: RoomBus[WSTransport]) -> None:
        super().__init__()
        self.bus = bus

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            command = json.loads(frame.get_payload_as_utf8_text())
            if command["type"] == "join":
                asyncio.ensure_future(self.join(transport, command["room"]))
            else:
                self.bus.publish(command["room"], command["text"])

    async def join(self, transport: WSTransport, room: str) -> None:
        await self.bus.join(room, transport)
        transport.send(WSMsgType.TEXT, JOINED.encode())

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.bus.leave(transport)


def deliver(members: set[WSTransport], event: str) -> None:
    """The same event to each of them."""
    payload = event.encode()
    for member in members:
        member.send(WSMsgType.TEXT, payload)


async def serve(options: Options) -> None:
    """One worker."""
    bus = RoomBus[WSTransport](options.store, deliver)

    def accept(_request: WSUpgradeRequest) -> Chat:
        return Chat(bus)

    async with bus.running():
        server = await ws_create_server(accept, "127.0.0.1", options.port, reuse_port=True, backlog=4096)
        tell_ready()
        await server.serve_forever()


if __name__ == "__main__":
    run_workers(serve, uvloop=True)
