"""Medians with intervals, and the rule for when two runs differ. Needs no pandas."""

import math
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

import numpy as np

SAME_CLOCKS = 0.01
UNKNOWN_CLOCKS = SAME_CLOCKS + 0.04
"""Below these shares no difference between two runs' steady steps is claimed. They are allowances:
`resident` drifts by up to one per cent within one campaign, and two runs of it on one class of
machine lay 3.8 per cent apart."""
Runs = Any
"""A row of `frames.runs`, or a table: then results are columns, and both tables have one index."""


class Median(NamedTuple):
    """A median of `n` samples with its 95 % interval; NaN where `n` is too small for one."""

    median: float
    low: float
    high: float
    n: int


def median_interval(samples: Iterable[float]) -> Median:
    """Compute the median and its distribution-free 95 % interval.

    It is the pair of order statistics x_(k), x_(n+1-k) with the largest k for which P(Binomial(n,
    1/2) < k) <= 2.5 % (David & Nagaraja, Order Statistics, section 7.1), for independent samples.
    """
    ordered = sorted(float(sample) for sample in samples if not math.isnan(sample))
    n, k, fewer = len(ordered), 0, 1
    while fewer * 40 <= 2**n:  # so many of the 2**n outcomes have at most k successes
        k += 1
        fewer += math.comb(n, k)
    ends = (ordered[k - 1], ordered[n - k]) if k else (math.nan, math.nan)
    return Median(median(ordered) if ordered else math.nan, *ends, n)


def allowance(one: Runs, two: Runs, *, drift: Any = 0.0, either_way: bool = False) -> Any:
    """Compute the share below which no difference between two runs' steps is claimed.

    A clock counts where the run of the longer step has the slower one, with `either_way` always.
    One that was not read is unknown, never equal. If `drift`, by what share the same work drifted
    meanwhile, is more than the allowance for equal clocks, it takes its place.
    """
    least = np.fmax(SAME_CLOCKS, np.abs(drift))
    mine, theirs = (np.where(run["sm_mhz"] > 0, run["sm_mhz"], np.nan) for run in (one, two))
    slower = np.where(one["step_s"] >= two["step_s"], theirs / mine, mine / theirs)
    slower = np.maximum(slower, 1 / slower if either_way else 1)
    unknown = np.maximum(least, UNKNOWN_CLOCKS)
    return np.where(np.isnan(slower), unknown, least + (slower - 1))[()]


def difference(one: Runs, two: Runs, drift: Any = 0.0) -> dict[str, Any]:
    """Compare two runs' steady steps: `one` over `two`, less 1, with interval and claim.

    ``difference`` is a share, ``step_difference_s`` in seconds (``low_s`` to ``high_s``). `claim`
    is "slower", "faster", "within noise", or "no interval" with fewer than six steps.
    """
    return {
        **_told(_over(one, two), Median(1, 1, 1, 1), allowance(one, two, drift=drift)),
        "step_difference_s": one["step_s"] - two["step_s"],
        "low_s": one["step_low_s"] - two["step_high_s"],
        "high_s": one["step_high_s"] - two["step_low_s"],
    }


def gap_difference(many: tuple[Runs, Runs], few: tuple[Runs, Runs]) -> dict[str, Any]:
    """Compare two pairs' gaps, ``gap`` and ``gap_before``: "slower" where the first is wider.

    Clocks count either way: they may have widened one or narrowed the other.
    """
    wide, narrow = _over(*many), _over(*few)
    share = allowance(*many, either_way=True) + allowance(*few, either_way=True)
    return {"gap": wide.median - 1, "gap_before": narrow.median - 1, **_told(wide, narrow, share)}


def _over(one: Runs, two: Runs) -> Median:
    low, high = one["step_low_s"] / two["step_high_s"], one["step_high_s"] / two["step_low_s"]
    return Median(one["step_s"] / two["step_s"], low, high, one["step_n"])


def _told(one: Median, two: Median, share: Any) -> dict[str, Any]:
    """Claim a difference where intervals are apart by more than a share."""
    claims = {"no interval": np.isnan(one.low + two.low),
              "slower": one.low > two.high * (1 + share),
              "faster": one.high * (1 + share) < two.low}  # fmt: skip
    return {
        "difference": one.median - two.median, "difference_low": one.low - two.high,
        "difference_high": one.high - two.low, "allowance": share,
        "claim": np.select([*claims.values()], [*claims], "within noise").astype(object)[()],
    }  # fmt: skip
