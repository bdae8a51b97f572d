"""Token buckets and what each address may do."""

from __future__ import annotations

import pytest

from tornadochat.limits import MAX_ADDRESSES, AddressCounts, AddressRates, TokenBucket, is_loopback, resolve
from tornadochat.settings import Settings


def test_a_bucket_lets_a_burst_pass_and_then_its_rate() -> None:
    bucket = TokenBucket(10, 20)
    assert [bucket.take(100.0) for _ in range(20)] == [0.0] * 20
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.11) == 0.0
    assert bucket.take(100.11) == pytest.approx(0.09)
    assert [bucket.take(1000.0) for _ in range(20)] == [0.0] * 20
    assert bucket.take(1000.0) > 0


def test_zero_is_no_limit_and_defaults_spare_loopback() -> None:
    assert TokenBucket.of(0) is None
    assert resolve(Settings(), "messages_per_second", "127.0.0.9") == 0
    assert resolve(Settings(), "messages_per_second", "192.0.2.1") == 20
    assert resolve(Settings(messages_per_second=3), "messages_per_second", "127.0.0.9") == 3
    assert resolve(Settings(messages_per_second=0), "messages_per_second", "192.0.2.1") == 0


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False)],
)
def test_loopback_addresses_are_known(address: str, wanted: bool) -> None:
    assert is_loopback(address) is wanted


def test_connections_of_an_address_are_counted() -> None:
    counts = AddressCounts(Settings(max_connections_per_address=2))
    for _ in range(2):
        assert counts.may_add("127.0.0.1")
        counts.add("127.0.0.1")
    assert not counts.may_add("127.0.0.1") and counts.may_add("127.0.0.2")
    counts.remove("127.0.0.1")
    assert counts.may_add("127.0.0.1")


def test_the_table_of_addresses_is_bounded() -> None:
    rates = AddressRates(Settings(handshakes_per_second=1), "handshakes_per_second")
    for number in range(MAX_ADDRESSES + 100):
        rates.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
    assert len(rates._buckets) == MAX_ADDRESSES
