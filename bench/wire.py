"""The few bytes of WebSocket that a benchmark needs that holds its sockets itself."""

from __future__ import annotations

import json
import struct

REQUEST = (
    b"GET /ws?name=Ada HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(**command: object) -> bytes:
    """A masked text frame with a command; the mask is zero (RFC 6455 section 5.3 does not forbid it)."""
    payload = json.dumps(command).encode()
    if len(payload) < 126:
        return struct.pack(">BB4x", 0x81, 0x80 | len(payload)) + payload
    return struct.pack(">BBH4x", 0x81, 0x80 | 126, len(payload)) + payload
