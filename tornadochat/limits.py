"""How often somebody may do something: token buckets, and counts for each address.

Used by ``member`` for commands and by ``gateway`` for connections and requests. Pure: the time comes
in with each call.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING

from tornadochat.settings import DEFAULT_RATES

if TYPE_CHECKING:
    from tornadochat.homes import Homes
    from tornadochat.settings import Settings

# A bucket holds this many seconds of its rate: short bursts pass, a steady flood does not.
BURST_SECONDS = 2.0
# Addresses remembered for their rate. The one longest unseen is forgotten first; its bucket would be
# full again by then unless more than this many addresses come within BURST_SECONDS.
MAX_ADDRESSES = 65_536


def resolve(settings: Settings, name: str, address: str) -> float:
    """The limit of this name for one address; 0 for none.

    An option that is not given has its documented default, which spares loopback addresses: a load
    test from the same machine meets no limit that nobody asked for.
    """
    given = getattr(settings, name)
    if given is not None:
        return float(given)
    return 0.0 if is_loopback(address) else DEFAULT_RATES[name]


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own (127.0.0.0/8, ::1, or a unix socket)."""
    if address.startswith("127.") or address in ("::1", ""):
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


class TokenBucket:
    """So many tokens a second, and a burst.

    Args:
        rate: Tokens a second, above 0.
        burst: Tokens that a full bucket holds; at least 1.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._tokens = self.burst
        self._at = 0.0

    @classmethod
    def of(cls, rate: float) -> TokenBucket | None:
        """A bucket of ``rate`` with the usual burst; None where 0 stands for no limit."""
        return cls(rate, rate * BURST_SECONDS) if rate > 0 else None

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take tokens; returns 0, or the seconds to wait where there are too few (none are taken)."""
        if self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens >= tokens:
            self._tokens -= tokens
            return 0.0
        return (tokens - self._tokens) / self.rate


class AddressRates:
    """A token bucket for each address, bounded to ``MAX_ADDRESSES``."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """Count one; returns 0, or the seconds after which the address may try again."""
        bucket = self._buckets.get(address)
        if bucket is None:
            made = TokenBucket.of(resolve(self._settings, self._name, address))
            if made is None:
                return 0.0
            bucket = self._buckets[address] = made
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(address)
        return bucket.take(now)


class AddressCounts:
    """Open connections of each address; as many entries as addresses that have one.

    Args:
        settings: Of the server.
        homes: Where members move from worker to worker: all workers together let in so many times the limit.
    """

    def __init__(self, settings: Settings, homes: Homes | None = None) -> None:
        self._settings = settings
        self._homes = homes
        self._open: dict[str, int] = {}

    def may_add(self, address: str) -> bool:
        """Whether an address may have one more connection."""
        limit = resolve(self._settings, "max_connections_per_address", address)
        if not limit:
            return True
        if self._homes is not None:
            return self._homes.address_total(address) < limit * self._homes.slots
        return self._open.get(address, 0) < limit

    def add(self, address: str) -> None:
        """Count a connection."""
        self._open[address] = self._open.get(address, 0) + 1
        if self._homes is not None:
            self._homes.count_address(address, 1)

    def remove(self, address: str) -> None:
        """A connection that was counted is gone."""
        if self._homes is not None:
            self._homes.count_address(address, -1)
        count = self._open.get(address, 0) - 1
        if count > 0:
            self._open[address] = count
        else:
            self._open.pop(address, None)
