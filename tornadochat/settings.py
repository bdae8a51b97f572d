"""Every option of the server, with its unit, its default and the reason for that default.

Read by every module, written by ``cli`` alone. Nothing here does I/O. A limit of 0 means "no
limit" wherever the help text says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

KIB = 1024
MIB = 1024 * KIB


def default_data_dir() -> Path:
    """Where the embedded store lives: ``tornadochat`` below XDG_STATE_HOME (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "tornadochat"


def option(default: Any, text: str, group: str, flag: str = "") -> Any:
    """A dataclass field that ``cli`` turns into ``--name`` and ``TORNADOCHAT_NAME``.

    ``flag`` is the name there where it is not the field's; units then stand in the help text.
    """
    metadata = {"help": text, "group": group, "flag": flag}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """One immutable value for a whole server; made once, before any process is forked."""

    # Where the server listens and how many processes it is.
    port: int = option(8000, "TCP port to listen on", "server")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 or :: opens the chat to others", "server")
    workers: int = option(0, "worker processes; 0 is one for each core", "server")
    drain_seconds: float = option(5.0, "time that members get to move elsewhere when a worker stops", "server")
    data_dir: Path = option(default_data_dir, "folder of the embedded store", "server")
    certfile: str = option("", "PEM file with the certificate chain; turns TLS on", "server")
    keyfile: str = option("", "PEM file with the certificate's private key", "server")
    trusted_proxies: list[str] = option(
        [], "networks whose X-Forwarded-For and X-Forwarded-Proto are believed", "server"
    )
    allow_origin: list[str] = option(
        [], "further origins that may connect and call /api, like https://chat.example.org; * for any", "server"
    )
    metrics_allow: list[str] = option([], "networks besides loopback that may read /metrics", "server")
    debug_headers: bool = option(
        False, "answer every HTTP request and handshake with X-Worker, the worker's slot", "server"
    )

    # The store.
    redis: str = option(
        "",
        "address of a Redis 7 or Valkey: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://; "
        "empty: embedded",
        "store",
    )
    redis_prefix: str = option("tornadochat", "namespace of every key and channel", "store")
    durable: bool = option(False, "embedded store: fsync every write instead of once a second", "store")
    history: int = option(1000, "messages that a room's log keeps at least", "store")
    history_seconds: int = option(120, "age in seconds that a room's log keeps at least", "store")
    # A busy room's two minutes may be long; a log beyond this is a Redis that runs out of memory.
    history_bytes: int = option(16 * MIB, "bytes of one room's log, at most", "store")
    history_ttl_seconds: int = option(
        7 * 86400, "seconds that a room's log lives after its last member left", "store", "history_ttl"
    )
    repeat_window_seconds: int = option(600, "seconds for which a repeated send is recognised, at least", "store")
    # Rotated earlier above this, so that a flooded room cannot fill the store with ids.
    repeat_entries: int = option(100_000, "ids remembered for each room, at most", "store")

    # Who may come in.
    auth: str = option("guest", "guest: a name is enough; required: only your own JWTs", "identity")
    session_secret: str = option(
        "", "secret that signs sessions; empty makes one and keeps it in the store", "identity"
    )
    session_seconds: int = option(30 * 86400, "life of a session; renewed when half of it is over", "identity")
    jwt_key: str = option("", "shared secret of your JWTs (HS256, at least 32 bytes)", "identity")
    jwt_key_file: str = option("", "PEM public key or JWKS file of your JWTs (RS256, EdDSA)", "identity")
    jwt_audience: str = option("", "aud that your JWTs must carry; empty checks none", "identity")
    api_key: str = option("", "secret of servers that post and moderate by HTTP; empty turns that off", "identity")

    # Limits for each member and address. None is "the documented default, which spares loopback".
    max_connections: int = option(0, "connections of one worker; 0 is what the file limit allows", "limits")
    max_connections_per_address: int | None = option(
        None,
        "connections of one address to one worker; default 1000, loopback spared unless given; 0 no limit",
        "limits",
    )
    handshakes_per_second: float | None = option(
        None,
        "new connections of one address to one worker; default 50, loopback spared unless given; 0 no limit",
        "limits",
    )
    commands_per_second: float | None = option(
        None,
        "commands of any kind of one member; default 100, loopback spared unless given; 0 no limit",
        "limits",
    )
    messages_per_second: float | None = option(
        None, "messages of one member; default 20, loopback spared unless given; 0 no limit", "limits"
    )
    joins_per_second: float | None = option(
        None, "joins of one member; default 20, loopback spared unless given; 0 no limit", "limits"
    )
    typing_per_second: float | None = option(
        None, "typing notices of one member; default 2, loopback spared unless given; 0 no limit", "limits"
    )
    api_requests_per_second: float | None = option(
        None,
        "/api requests of one address to one worker; default 20, loopback spared unless given; 0 no limit",
        "limits",
    )
    max_rooms_per_member: int = option(100, "rooms that one member may be in; 0 no limit", "limits")
    max_text_chars: int = option(4000, "characters of one text", "limits")
    max_text_bytes: int = option(16 * KIB, "UTF-8 bytes of one text", "limits")
    # A text of max_text_bytes may arrive escaped as \\uXXXX: up to six bytes for each.
    max_message_bytes: int = option(128 * KIB, "bytes of one WebSocket message from a client", "limits")

    # Time-outs, in seconds.
    handshake_seconds: float = option(10.0, "time for the HTTP request of the handshake", "time-outs")
    join_seconds: float = option(30.0, "time from the handshake to the first join; 0 no limit", "time-outs")
    ping_seconds: float = option(25.0, "silence after which a member is pinged", "time-outs")
    # ping_seconds + pong_seconds stays below 60: a vanished peer is noticed within a minute.
    pong_seconds: float = option(20.0, "silence after a ping that ends the connection", "time-outs")
    close_seconds: float = option(5.0, "wait for the peer's close frame", "time-outs")
    stuck_seconds: float = option(
        30.0, "time that a member may leave its socket full", "time-outs", "stuck_timeout"
    )
    publish_seconds: float = option(5.0, "time that a send waits for the store", "time-outs")

    # The hot path.
    batch_window_ms: float = option(
        10.0,
        "milliseconds in which a busy room writes once, up to 2.4 times as many on a busy worker; 0: no waiting",
        "tuning",
        "batch_window",
    )
    compression: bool = option(False, "permessage-deflate for clients that offer it", "tuning")
    compression_level: int = option(1, "level of zlib, 1 (fast) to 9 (small)", "tuning")
    compression_min_bytes: int = option(128, "bytes of an event below which it is not compressed", "tuning")
    # Every worker that has members of a room takes in what is said there, so this is worth it from a few workers
    # on. But a worker that dies takes whole rooms along, and a room has one core until it has 2,000 members.
    gather: bool = option(
        False, "bring the members of a room together on one worker; for more workers than cores", "tuning"
    )
    # A message waits for it twice at most, at its sender's worker and at its readers'. Where a worker's turns keep
    # the beat of its busy rooms (``hub.BEAT_WINDOWS``), whatever comes waits for that beat instead.
    turn_interval_ms: float = option(
        5.0,
        "milliseconds between two turns of a worker with more than 2,000 events a second; 0 for none",
        "tuning",
        "turn_interval",
    )
    max_backlog_bytes: int = option(1 * MIB, "bytes of unsent room events of one member", "tuning", "max_backlog")
    # Answers and control frames are not dropped; a member that asks faster than it reads ends with 1013.
    max_answer_bytes: int = option(256 * KIB, "bytes of unsent answers of one member", "tuning")
    replay_bytes: int = option(256 * KIB, "bytes of history in flight to one member", "tuning")
    ring_bytes: int = option(
        128 * KIB, "bytes of recent events that a worker keeps of each of its rooms", "tuning"
    )
    # Eight rings of a busy server's hundred hottest rooms; beyond it the quietest rooms read the log again.
    ring_total_bytes: int = option(64 * MIB, "bytes of recent events that a worker keeps of all rooms", "tuning")
    # A message waits in memory while the store is away; 5 s of a busy worker's sends fit in this.
    publish_queue: int = option(20_000, "messages of one worker that wait for the store", "tuning")
    subscription_grace_seconds: float = option(
        10.0, "a room stays subscribed this long after its last member left", "tuning"
    )
    log_level: str = option("info", "debug, info, warning or error", "server")

    @property
    def replay_in_flight_bytes(self) -> int:
        """``replay_bytes``, but so little that a replay never overruns the backlog: at most a quarter of it
        is in flight, and one batch of the ring comes on top (``ring_batch_bytes``)."""
        return min(self.replay_bytes, max(1, self.max_backlog_bytes // 4))

    @property
    def ring_batch_bytes(self) -> int:
        """``ring_bytes``, but at most half of the backlog."""
        return min(self.ring_bytes, max(1, self.max_backlog_bytes // 2))

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS itself."""
        return bool(self.certfile)


# What a limit of None stands for: (default, applied to loopback addresses?). A load test from this
# machine meets none of them; an option that is given applies to everyone.
DEFAULT_RATES: dict[str, float] = {
    "max_connections_per_address": 1000,
    "handshakes_per_second": 50,
    "commands_per_second": 100,
    "messages_per_second": 20,
    "joins_per_second": 20,
    "typing_per_second": 2,
    "api_requests_per_second": 20,
}

OPTION_FIELDS = fields(Settings)


def flag_of(name: str) -> str:
    """Name of a field's option on the command line, with underscores."""
    return Settings.__dataclass_fields__[name].metadata["flag"] or name
