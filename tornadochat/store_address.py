"""Where the store is: what ``--redis`` may say, and how a Sentinel is asked for the present primary.

    redis://[user:password@]host[:port][/database]
    rediss://...                                      the same over TLS (ssl_ca_certs=, ssl_certfile=, ...)
    unix:///path[?db=n]
    redis+sentinel://[user:password@]host[:26379][,host[:port]...]/service[/database]
    rediss+sentinel://...                             TLS to Sentinels and servers

URLs are read by redis-py; ``sentinel_username`` and ``sentinel_password`` among the query fields are for the
Sentinels, all other fields and the user for the servers.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url

from tornadochat.errors import StartError, Unavailable

SENTINEL = "+sentinel"
SENTINEL_PORT = 26379
# One Sentinel that does not answer must not keep a worker from asking the next one.
SENTINEL_SECONDS = 1.0


class Sentinels(NamedTuple):
    """Who knows which server is the primary.

    Attributes:
        hosts: Host and port of each.
        service: Name of the primary, as in ``sentinel monitor``.
        options: Arguments of redis-py for the connections to them.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    options: Mapping[str, Any]


class Address(NamedTuple):
    """Where a store is, and how to get in."""

    host: str
    port: int
    path: str  # of a unix socket; empty for TCP
    username: str
    password: str
    database: int
    tls: ssl.SSLContext | None
    options: Mapping[str, Any]  # arguments of redis-py
    sentinels: Sentinels | None = None

    @property
    def shown(self) -> str:
        """The address without its password, for logs."""
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels is not None:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels.hosts)
            return f"{scheme}{SENTINEL}://{hosts}/{self.sentinels.service}"
        return f"unix://{self.path}" if self.path else f"{scheme}://{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Read an address in one of the forms above.

    Raises:
        StartError: It is none of these, or names files that cannot be read.
    """
    try:
        if SENTINEL in url.partition("://")[0]:
            plain, hosts, service, sentinel_options = _split_sentinels(url)
        else:
            plain, hosts, service, sentinel_options = url, (), "", {}
        found: dict[str, Any] = dict(parse_url(plain))  # type: ignore[no-untyped-call]
        tls = plain.startswith("rediss://")
        context = _tls_context(found) if tls else None
        found.pop("connection_class", None)
        options = {**found, "ssl": True} if tls and hosts else found
        sentinels = None
        if hosts:
            over_tls = {name: value for name, value in options.items() if name.startswith("ssl")}
            sentinels = Sentinels(hosts, service, {**over_tls, **sentinel_options})
            options = {name: value for name, value in options.items() if name not in ("host", "port")}
        return Address(
            str(found.get("host", "127.0.0.1")),
            int(found.get("port", 6379)),
            str(found.get("path", "")),
            str(found.get("username", "") or ""),
            str(found.get("password", "") or ""),
            int(found.get("db", 0) or 0),
            context,
            options,
            sentinels,
        )
    except ValueError as error:
        raise StartError(f"--redis {_without_password(url)!r} cannot be read: {error}") from None


def _split_sentinels(url: str) -> tuple[str, tuple[tuple[str, int], ...], str, dict[str, str]]:
    """The same URL for a single server, the Sentinels, the service, and what only Sentinels are told."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("name the service behind the Sentinels, as in redis+sentinel://host:26379/mymaster")
    fields = parse_qsl(parts.query)
    options = {name.removeprefix("sentinel_"): value for name, value in fields if name.startswith("sentinel_")}
    rest = urlencode([(name, value) for name, value in fields if not name.startswith("sentinel_")])
    scheme = parts.scheme.removesuffix(SENTINEL)
    places = tuple(_host_and_port(each) for each in hosts.split(","))
    host = f"[{places[0][0]}]" if ":" in places[0][0] else places[0][0]
    plain = urlunsplit((scheme, f"{credentials}{at}{host}", f"/{database}" if database else "", rest, ""))
    return plain, places, service, options


def _host_and_port(text: str) -> tuple[str, int]:
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise ValueError("each Sentinel is host:port")
    return found.hostname, found.port or SENTINEL_PORT


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _tls_context(found: Any) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=found.get("ssl_ca_certs"))
        if found.get("ssl_certfile"):
            context.load_cert_chain(found["ssl_certfile"], found.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"--redis: the certificates named in the address cannot be read: {error}") from None
    if str(found.get("ssl_check_hostname", "true")).lower() in ("false", "no", "0"):
        context.check_hostname = False
    if str(found.get("ssl_cert_reqs", "required")).lower() in ("none", "cert_none"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# Clients of redis-py -------------------------------------------------------------------------------


class _SentinelPool(SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Asks for the primary with each new connection, and lets callers wait for a free one."""


def make_client(url: str, connections: int, seconds: float) -> redis.asyncio.Redis:
    """A client for what is not hot. It tries nothing twice: a command whose answer was lost may have run.

    Args:
        url: Of the store.
        connections: It makes at most; further callers wait.
        seconds: To connect, to wait for a connection, and for an answer.
    """
    address = parse_address(url)
    options: dict[str, Any] = {
        "max_connections": connections,
        "timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
    }
    if address.sentinels is None:
        return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, **options))
    manager = _manager(address.sentinels)
    pool = _SentinelPool(address.sentinels.service, manager, **address.options, **options)  # type: ignore[no-untyped-call]
    return redis.asyncio.Redis.from_pool(pool)


def make_sync_client(url: str, seconds: float) -> redis.Redis:
    """The same for a look before anything runs; connects with the first command."""
    address = parse_address(url)
    limits: dict[str, Any] = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    if address.sentinels is None:
        return redis.Redis.from_url(url, **limits)
    hosts, service, options = address.sentinels
    manager = redis.sentinel.Sentinel(hosts, sentinel_kwargs={**options, **limits})  # type: ignore[no-untyped-call]
    client: redis.Redis = manager.master_for(service, **address.options, **limits)  # type: ignore[no-untyped-call]
    return client


def _manager(sentinels: Sentinels) -> redis.asyncio.sentinel.Sentinel:
    limits = {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
    options = {**sentinels.options, **limits, "retry": Retry(NoBackoff(), 0)}
    return redis.asyncio.sentinel.Sentinel(sentinels.hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


async def find_primary(sentinels: Sentinels) -> tuple[str, int]:
    """Host and port of the server that the first Sentinel to answer calls the primary.

    Raises:
        Unavailable: None answers, or none knows one.
    """
    manager = _manager(sentinels)
    try:
        host, port = await manager.discover_master(sentinels.service)
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"the Sentinels name no primary: {error}") from None
    finally:
        for client in manager.sentinels:
            await client.aclose()
    return str(host), int(port)
