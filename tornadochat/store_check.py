"""One look at the user's store before anything is forked: is it there, and may it be used?"""

from __future__ import annotations

import logging

import redis

from tornadochat.errors import StartError, StoreRefused
from tornadochat.redis_link import check_info
from tornadochat.store_address import make_sync_client, parse_address

log = logging.getLogger("tornadochat")

CHECK_SECONDS = 3.0


def check_store(url: str) -> None:
    """Refuse a store that must not be used; one that cannot be reached yet is waited for later.

    Raises:
        StartError: The address cannot be read, the password is wrong, or the store is too old or may
            evict keys.
    """
    address = parse_address(url)
    client = make_sync_client(url, CHECK_SECONDS)
    try:
        if not check_info(client.info()).primary:
            log.warning("the store at %s is a replica; starting anyway, and waiting for a primary", address.shown)
    except StoreRefused as error:
        raise StartError(str(error)) from None
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise StartError(f"the store at {address.shown} does not let us in: {error}") from None
    except (redis.RedisError, OSError) as error:
        log.warning(
            "the store at %s cannot be reached: %s; starting anyway, and trying again", address.shown, error
        )
    finally:
        client.close()
