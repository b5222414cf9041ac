"""Medians with intervals, and the rule for when two runs differ.

Needs the standard library only, so that measuring programs can use it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SAME_CLOCKS = 0.01
UNKNOWN_CLOCKS = SAME_CLOCKS + 0.04
"""Below these shares no difference between two runs' steady steps is claimed. They are allowances:
`resident` drifts by up to one per cent within one campaign, and two runs of it on one class of
machine lay 3.8 per cent apart."""


class Median(NamedTuple):
    """A median of `n` samples with its 95 % interval; NaN where `n` is too small for one."""

    median: float
    low: float
    high: float
    n: int


class Run(NamedTuple):
    """What telling two runs apart needs: the steady step, and the SM clock in MHz or NaN."""

    step: Median
    sm_mhz: float


def median_interval(samples: Iterable[float]) -> Median:
    """Compute the median and its distribution-free 95 % interval.

    The interval is the pair of order statistics x_(k), x_(n+1-k) with the largest k for which
    P(Binomial(n, 1/2) < k) <= 2.5 % (David & Nagaraja, Order Statistics, section 7.1). It assumes
    independent samples and nothing about their distribution. Below six samples there is none.
    """
    ordered = sorted(float(sample) for sample in samples if not math.isnan(sample))
    n = len(ordered)
    if n == 0:
        return Median(math.nan, math.nan, math.nan, 0)
    half = n // 2
    median = ordered[half] if n % 2 else (ordered[half - 1] + ordered[half]) / 2
    below, k = 0, 0
    while True:
        below += math.comb(n, k)  # how many of the 2**n outcomes have at most k successes
        if below * 40 > 2**n:
            break
        k += 1
    if k == 0:
        return Median(median, math.nan, math.nan, n)
    return Median(median, ordered[k - 1], ordered[n - k], n)


def apart(one: Median, two: Median, allowance: float = 0.0) -> int:
    """Compare two medians: 1 where `one` lies above `two`, -1 below, 0 where nothing is claimed.

    They are apart where their intervals are, by more than the share `allowance`. Without an
    interval nothing is claimed.
    """
    if math.isnan(one.low + one.high + two.low + two.high):
        return 0
    more = 1 + allowance
    return 1 if one.low > two.high * more else -1 if one.high * more < two.low else 0


def allowance(one: Run, two: Run, *, drift: float = 0.0, either_way: bool = False) -> float:
    """Compute the share below which no difference between two runs' steps is claimed.

    A clock counts only where it may explain the difference: where the run of the longer step has
    the slower one. With `either_way` it always counts, as where two differences are compared. A
    clock that was not read is an unknown one, never an equal one.

    Parameters
    ----------
    drift
        By what share the same work drifted while both ran, where that was measured. Where it is
        more than the allowance for equal clocks, it takes its place.
    """
    least = max(SAME_CLOCKS, 0.0 if math.isnan(drift) else abs(drift))
    if not (one.sm_mhz > 0 and two.sm_mhz > 0):
        return max(UNKNOWN_CLOCKS, least)
    if either_way:
        slow, fast = sorted((one.sm_mhz, two.sm_mhz))
        return least + fast / slow - 1
    clocks = two.sm_mhz / one.sm_mhz
    longer = one.step.median >= two.step.median
    return least + max(0.0, clocks - 1 if longer else 1 / clocks - 1)
