"""TLS in one thread, for clients that read and write in two.

``websockets.sync`` does, and OpenSSL's connections must not be used by two threads at a time (openssl-threads(7)):
one handshake of about a thousand then got no answer, from whatever server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading

READ_BYTES = 64 * 1024
# What waits here hides little of what a test wants to see pile up at the server.
WAITING_BYTES = 64 * 1024
# For a peer that does not answer the end of TLS.
SHUTDOWN_SECONDS = 1.0


def tls_socket(host: str, port: int) -> socket.socket:
    """A socket whose other end is a TLS server; ends with it. The certificate is not checked.

    Raises:
        OSError: The server cannot be reached, or its handshake fails.
    """
    near, far = socket.socketpair()
    connected = threading.Event()
    problems: list[OSError] = []

    async def carry() -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with far:
            try:
                server = await asyncio.open_connection(
                    host, port, ssl=context, limit=WAITING_BYTES, ssl_shutdown_timeout=SHUTDOWN_SECONDS
                )
            except OSError as error:
                problems.append(error)
                return
            finally:
                connected.set()
            client = await asyncio.open_connection(sock=far, limit=WAITING_BYTES)
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(client[0], server[1]))
                both.create_task(_carry(server[0], client[1]))

    threading.Thread(target=asyncio.run, args=(carry(),), name="TLS", daemon=True).start()
    connected.wait()
    if problems:
        near.close()
        raise problems[0]
    return near


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """From one to the other, until one of them ends; that ends the way back too."""
    writer.transport.set_write_buffer_limits(WAITING_BYTES)
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
