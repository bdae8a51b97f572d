"""``python -m bench.peers.python_socketio``: python-socketio on uvicorn, its Redis manager between processes."""

from __future__ import annotations

import socket
from typing import Any

import socketio
import uvicorn

from bench.peers.serving import Options, run_workers, tell_ready


def application(store: str) -> socketio.ASGIApp:
    """The chat, WebSocket only: with long polling a balancer with sticky sessions would be needed."""
    manager = socketio.AsyncRedisManager(store)
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, transports=["websocket"])

    @server.on("join")
    async def join(session: str, room: str) -> None:
        await server.enter_room(session, room)

    @server.on("send")
    async def send(_session: str, message: dict[str, Any]) -> None:
        event = {"room": message["room"], "text": message["text"]}
        await server.emit("message", event, room=message["room"])

    return socketio.ASGIApp(server, on_startup=tell_ready)


async def serve(options: Options) -> None:
    """One worker."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", options.port))
    config = uvicorn.Config(application(options.store), log_level="warning", access_log=False, backlog=4096)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    run_workers(serve, uvloop=True)
