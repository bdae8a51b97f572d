"""The largest size that is held, found with few and costly trials: short ones first, then one long proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# The search ends when the smallest size that was not held is within this factor of the largest one that was.
PRECISION = 1.05
# One halving (in logarithms) of the first step up ends within the precision; `start` is to be near the end.
GROWTH = PRECISION**2
# After a proof that failed the next one is tried so much lower: a long load shows more than a short one.
STEP_DOWN = 0.93
# Then the short trials were worth nothing, and more minutes would not help.
PROOFS = 4


class Found(NamedTuple):
    """What a search found.

    Attributes:
        size: The largest size whose proof was held, 0 for none.
        tried: The largest size that a short trial held; above ``size`` where its proof was not held.
        capped: Whether nothing larger was allowed to be tried.
    """

    size: int
    tried: int
    capped: bool


def largest(
    trial: Callable[[int], bool],
    proof: Callable[[int], bool],
    start: int,
    unit: int,
    cap: int,
    growth: float = GROWTH,
) -> Found:
    """Go up from ``start`` until a trial is not held (or down until one is), halve, then prove the best.

    What is held need not be monotone: a trial that was spoilt only makes the answer smaller, one that was lucky
    is found out by the proof.

    Args:
        trial: Whether a size is held for a short time.
        proof: Whether it is held for the whole time; tried for ever smaller sizes, at most ``PROOFS`` times.
        start: First size.
        unit: Sizes are multiples of it.
        cap: No larger size can be.
        growth: Factor of a step up or down, above 1.
    """

    def rounded(size: float) -> int:
        return max(unit, min(round(size / unit), cap // unit) * unit)

    top = rounded(cap)
    good, bad, size = 0, 0, rounded(start)
    while not (good and bad) and good != top and bad != unit:
        if trial(size):
            good = size
            size = rounded(max(size * growth, size + unit))
        else:
            bad = size
            size = rounded(min(size / growth, size - unit))
    while good and bad > max(good * PRECISION, good + unit):
        middle = rounded((good * bad) ** 0.5)
        if middle in (good, bad):
            break
        if trial(middle):
            good = middle
        else:
            bad = middle
    size = good
    for _ in range(PROOFS):
        if not size or proof(size):
            break
        size = rounded(size * STEP_DOWN) if size > unit else 0
    else:
        size = 0
    return Found(size, good, size == top)
