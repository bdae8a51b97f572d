"""Where the store is: what ``--redis`` may say, how a Sentinel is asked for the present primary, and the
clients of redis-py.

    redis://[user:password@]host[:port][/database]
    rediss://...                                      the same over TLS (ssl_ca_certs=, ssl_certfile=, ...)
    unix:///path[?db=n]
    redis+sentinel://[user:password@]host[:26379][,host[:port]...]/service[/database]
    rediss+sentinel://...                             TLS to Sentinels and servers
    redis+cluster://[user:password@]host[:6379][,host[:port]...]
    rediss+cluster://...                              servers of a Redis Cluster; they tell of the others

URLs are read by redis-py; ``sentinel_username`` and ``sentinel_password`` among the query fields are for the
Sentinels, all other fields and the user for the servers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.exceptions
import redis.retry
import redis.sentinel
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url

from tornadochat.errors import StartError, Unavailable

SENTINEL, CLUSTER = "+sentinel", "+cluster"
SENTINEL_PORT, REDIS_PORT = 26379, 6379
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
    cluster: bool = False
    nodes: tuple[tuple[str, int], ...] = ()  # of a cluster, those that were named

    def node(self, place: tuple[str, int]) -> Address:
        """One server of the cluster, with the same way in."""
        return self._replace(host=place[0], port=place[1], nodes=())

    @property
    def shown(self) -> str:
        """The address without its password, for logs."""
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels is not None:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels.hosts)
            return f"{scheme}{SENTINEL}://{hosts}/{self.sentinels.service}"
        if self.nodes:
            return f"{scheme}{CLUSTER}://{','.join(f'{host}:{port}' for host, port in self.nodes)}"
        return f"unix://{self.path}" if self.path else f"{scheme}://{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Read an address in one of the forms above.

    Raises:
        StartError: It is none of these, or names files that cannot be read.
    """
    scheme = url.partition("://")[0]
    many, cluster = scheme.endswith((SENTINEL, CLUSTER)), scheme.endswith(CLUSTER)
    try:
        plain, hosts, service, fields = _split_hosts(url, cluster) if many else (url, (), "", {})
        found: dict[str, Any] = dict(parse_url(plain))  # type: ignore[no-untyped-call]
        tls = plain.startswith("rediss://")
        context = _tls_context(found) if tls else None
        found.pop("connection_class", None)
        options = {**found, "ssl": True} if tls and many else found
        sentinels = None
        if many:
            options = {name: value for name, value in options.items() if name not in ("host", "port")}
        if many and not cluster:
            over_tls = {name: value for name, value in options.items() if name.startswith("ssl")}
            sentinels = Sentinels(hosts, service, {**over_tls, **fields})
        return Address(
            str(found.get("host", "127.0.0.1")),
            int(found.get("port", REDIS_PORT)),
            str(found.get("path", "")),
            str(found.get("username", "") or ""),
            str(found.get("password", "") or ""),
            int(found.get("db", 0) or 0),
            context,
            options,
            sentinels,
            cluster,
            hosts if cluster else (),
        )
    except ValueError as error:
        raise StartError(f"--redis {_without_password(url)!r} cannot be read: {error}") from None


def _split_hosts(url: str, cluster: bool) -> tuple[str, tuple[tuple[str, int], ...], str, dict[str, str]]:
    """The same URL for a single server, all servers named, the service, and what only Sentinels are told."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    first, _, second = parts.path.strip("/").partition("/")
    service, database = ("", first) if cluster else (first, second)
    if cluster and database not in ("", "0"):
        raise ValueError("a cluster has no databases; write redis+cluster://host:6379,host:6379")
    if not cluster and not service:
        raise ValueError("name the service behind the Sentinels, as in redis+sentinel://host:26379/mymaster")
    fields = parse_qsl(parts.query)
    options = {name.removeprefix("sentinel_"): value for name, value in fields if name.startswith("sentinel_")}
    rest = urlencode([(name, value) for name, value in fields if not name.startswith("sentinel_")])
    port = REDIS_PORT if cluster else SENTINEL_PORT
    places = tuple(_host_and_port(each, port) for each in hosts.split(","))
    host = f"[{places[0][0]}]" if ":" in places[0][0] else places[0][0]
    if cluster:
        host = f"{host}:{places[0][1]}"
    path = f"/{database}" if database and not cluster else ""
    plain = urlunsplit((parts.scheme.partition("+")[0], f"{credentials}{at}{host}", path, rest, ""))
    return plain, places, service, options


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise ValueError(f"each server is host:port, unlike {text!r}")
    return found.hostname, found.port or port


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


class _ClusterPipeline(redis.asyncio.cluster.ClusterPipeline):
    """Raises what every other client raises."""

    async def execute(self, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return await super().execute(*arguments, **options)
        except redis.exceptions.RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from None


class _Cluster(redis.asyncio.RedisCluster):
    """Lets callers wait for a free connection, and raises what every other client raises."""

    def __init__(self, connections: int, seconds: float, **options: Any) -> None:
        # A pipeline takes one connection of each node besides.
        super().__init__(max_connections=2 * connections, **options)
        self._free = asyncio.Semaphore(connections)
        self._seconds = seconds

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(self._seconds), self._free:
                return await super().execute_command(*arguments, **options)
        except TimeoutError:
            raise redis.TimeoutError("the cluster did not answer in time") from None
        except redis.exceptions.RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from None

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> _ClusterPipeline:
        return _ClusterPipeline(self, transaction)  # type: ignore[abstract]


def make_client(url: str, connections: int, seconds: float) -> redis.asyncio.Redis:
    """A client for what is not hot. It tries nothing twice: a command whose answer was lost may have run.

    Args:
        url: Of the store.
        connections: It makes at most (to each master of a cluster twice as many); further callers wait.
        seconds: To connect, to wait for a connection, and for an answer.

    Returns:
        Of a cluster a ``RedisCluster``, which has the same commands; all keys of one must be of one slot.
    """
    address = parse_address(url)
    limits: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
    }
    if address.cluster:
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.nodes]
        cluster = _Cluster(
            connections, seconds, startup_nodes=nodes, require_full_coverage=False, **address.options, **limits
        )
        return cast("redis.asyncio.Redis", cluster)
    options: dict[str, Any] = {"max_connections": connections, "timeout": seconds, **limits}
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


def make_sync_node(address: Address, place: tuple[str, int], seconds: float) -> redis.Redis:
    """The same for one server of a cluster."""
    limits: dict[str, Any] = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    retry = redis.retry.Retry(NoBackoff(), 0)
    return redis.Redis(host=place[0], port=place[1], retry=retry, **address.options, **limits)


def make_node(address: Address, place: tuple[str, int], seconds: float) -> redis.asyncio.Redis:
    """A client for one question to one server of a cluster."""
    limits: dict[str, Any] = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    retry = Retry(NoBackoff(), 0)
    return redis.asyncio.Redis(host=place[0], port=place[1], retry=retry, **address.options, **limits)


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
