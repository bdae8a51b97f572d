"""One look at the user's store before anything is forked: is it there, and may it be used?"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import redis

from tornadochat.errors import StartError, StoreRefused
from tornadochat.redis_link import check_info
from tornadochat.slot_map import SLOTS, View, view_of
from tornadochat.store_address import make_sync_client, make_sync_node, parse_address

if TYPE_CHECKING:
    from tornadochat.slot_map import Place
    from tornadochat.store_address import Address

log = logging.getLogger("tornadochat")

CHECK_SECONDS = 3.0


def check_store(url: str) -> None:
    """Refuse a store that must not be used; one that cannot be reached yet is waited for later.

    Raises:
        StartError: The address cannot be read, the password is wrong, or the store is too old, may evict
            keys, or is a cluster where the address speaks of a single server, or the other way round.
    """
    address = parse_address(url)
    try:
        if address.cluster:
            _check_cluster(address)
        else:
            with contextlib.closing(make_sync_client(url, CHECK_SECONDS)) as client:
                _check_server(client, address)
    except StoreRefused as error:
        raise StartError(f"the store at {address.shown} cannot be used: {error}") from None
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise StartError(f"the store at {address.shown} does not let us in: {error}") from None
    except (redis.RedisError, OSError) as error:
        log.warning(
            "the store at %s cannot be reached: %s; starting anyway, and trying again", address.shown, error
        )


def _check_server(client: redis.Redis, address: Address) -> None:
    info: Any = client.info()
    if not check_info(info, address.cluster).primary:
        log.warning("the store at %s is a replica; starting anyway, and waiting for a primary", address.shown)


def _check_cluster(address: Address) -> None:
    """Look at every master; one that is away comes back, or its replica takes its place."""
    view = _view(address)
    masters = {owner for owner in view.owners if owner is not None}
    for place in sorted(masters):
        node = address.node(place)
        with contextlib.closing(make_sync_node(address, place, CHECK_SECONDS)) as client:
            try:
                _check_server(client, node)
                _check_coverage(client, node)
            except StoreRefused as error:
                raise StartError(f"the store at {node.shown} cannot be used: {error}") from None
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                log.warning("the master at %s cannot be reached: %s; its rooms have to wait", node.shown, error)
    missing = view.owners.count(None)
    if missing:
        log.warning("%d of %d slots of the cluster have no master; their rooms have to wait", missing, SLOTS)
    elif not view.well:
        log.warning("the cluster at %s is down; starting anyway, and waiting for it", address.shown)


def _check_coverage(client: redis.Redis, node: Address) -> None:
    with contextlib.suppress(redis.ResponseError):  # it may not tell us
        found: Any = client.config_get("cluster-require-full-coverage")
        if found.get("cluster-require-full-coverage") == "yes":
            log.warning(
                "the server at %s has cluster-require-full-coverage yes: "
                "while one master is away no room of any other is served",
                node.shown,
            )


def _view(address: Address) -> View:
    """What the first of the named servers to answer knows of the cluster."""
    problem: Exception = OSError("no server is named")
    for place in address.nodes:
        with contextlib.closing(make_sync_node(address, place, CHECK_SECONDS)) as client:
            try:
                return _view_at(client, place)
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                problem = error
    raise problem


def _view_at(client: redis.Redis, place: Place) -> View:
    info: Any = client.info()
    check_info(info, cluster=True)
    state: Any = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    ranges: Any = client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    return view_of(state, ranges, place)
