"""The highest rate that a system holds: nobody loses anything, and 99 of 100 deliveries come within 250 ms."""

from __future__ import annotations

from bench.results import Sample, Saturation
from bench.systems import Seat

MAX_P99_MS = 250.0
# Above that the generator itself was too slow, and says nothing of the server.
MAX_LATE_MS = 150.0
# Of the messages that were due, how many must have left.
MIN_SENT = 0.98
# Three halvings of a doubling (in logarithms) end within 9 % of the limit.
HALVINGS = 3
LOWEST_RATE = 1.0
HIGHEST_RATE = 200_000.0
# A machine that others use too spoils a load now and then.
TRIES = 2


def complaint(sample: Sample, seconds: float) -> str:
    """Why a load was not held, in a word or two; empty where it was."""
    if sample.sent < MIN_SENT * sample.rate * seconds:
        return "refuses messages"
    if sample.disconnected:
        return "disconnects"
    if not sample.exact:
        return "late or lost"
    if sample.p99_ms >= MAX_P99_MS:
        return "generator too slow" if sample.late_ms > MAX_LATE_MS else "slow"
    return ""


def highest_rate(seat: Seat, seconds: float) -> Saturation:
    """Double the rate until it is not held, then go halfway back and forth.

    Raises:
        Unavailable: The system cannot be opened any more.
    """
    samples: list[Sample] = []
    limit = "nothing higher was tried"

    def holds(rate: float) -> bool:
        nonlocal limit
        for _ in range(TRIES):
            samples.append(seat.send(rate, seconds))
            why = complaint(samples[-1], seconds)
            if not why:
                return True
        limit = why
        return False

    good, bad = 0.0, seat.shape.rate / 4
    while bad <= HIGHEST_RATE and holds(bad):
        good, bad = bad, bad * 2
    while not good and bad / 2 >= LOWEST_RATE:  # not even the first one
        if holds(bad / 2):
            good = bad / 2
        else:
            bad /= 2
    for _ in range(HALVINGS if good else 0):
        middle = (good * bad) ** 0.5
        if holds(middle):
            good = middle
        else:
            bad = middle
    return Saturation(seat.shape.layout, seat.shape.members, seat.name, good, limit, tuple(samples))
