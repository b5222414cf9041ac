"""Compares runs: overhead over resident, the limit, same bits, repeated runs.

Each function takes :class:`~wanreport.analysis.frames.Frames` or its `runs`, and returns a
DataFrame with a row for each run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import Median, Run, allowance, apart

CLAIMS = {1: "slower", 0: "within noise", -1: "faster"}

COMPARED = ("resident_s", "overhead", "overhead_low", "overhead_high", "allowance", "claim",
            "same_boards", "bracketed", "limit_s", "over_limit", "same_bits")  # fmt: skip
"""Columns that :func:`overhead` adds, all missing where a run has no reference."""

Row = Any  # a row of `runs`


def as_run(row: Row) -> Run:
    """The part of a run's row that telling two runs apart needs."""
    step = Median(row["step_s"], row["step_low_s"], row["step_high_s"], row["step_n"])
    clock = row["sm_mhz"]
    return Run(step, math.nan if clock is None else float(clock))


def timed(frames: Frames) -> pd.DataFrame:
    """Runs with a steady step at full scale: the only ones that times are compared of."""
    runs = frames.full_scale()
    return runs[runs.step_s.notna()] if len(runs) else runs


def references(frames: Frames) -> pd.Series:
    """Find the run of `resident` that each timed run is held against, by run; None without one.

    In a benchmark file it is the file's first one at the same number of tokens. Of jobs it is one
    on the same boards, the latest; else the latest on that class of machine.
    """
    runs = timed(frames)[["group", "engine", "again", "latest", "started", "boards"]]
    found: dict[str, str | None] = {}
    for _, group in runs.groupby("group"):
        residents = group[(group.engine == "resident") & ~group.again]
        residents = residents.sort_values(["latest", "started"], ascending=False)
        on = dict(zip(residents.index, residents.boards, strict=True))
        for run, boards, latest in zip(group.index, group.boards, group.latest, strict=True):
            same = [each for each, theirs in on.items() if boards and boards == theirs]
            if run in on and latest:
                same = [run]
            found[run] = next(iter(same or on), None)
    return pd.Series(found, dtype=object, name="reference")


def drift(frames: Frames) -> pd.Series:
    """Compute by what share `resident` moved while each run was measured, by run; NaN if unknown.

    In a benchmark file that is the closing run of `resident` over the first, less 1. Of jobs it is
    the spread of `resident`'s runs on the same boards, where there are several.
    """
    runs = timed(frames)[["group", "engine", "again", "source", "step_s", "boards"]]
    found = pd.Series(math.nan, index=runs.index, name="drift")
    for _, group in runs.groupby("group"):
        residents = group[group.engine == "resident"]
        if group.source.iloc[0] == "bench":
            first, last = residents[~residents.again].step_s, residents[residents.again].step_s
            if len(first) and len(last):
                found[group.index] = last.iloc[0] / first.iloc[0] - 1
            continue
        for boards, here in residents.groupby("boards"):
            if boards and len(here) > 1:
                alike = group.boards == boards
                found[group.index[alike]] = here.step_s.max() / here.step_s.min() - 1
    return found


def overhead(frames: Frames) -> pd.DataFrame:
    """Compare each timed run's steady step with `resident`'s.

    Returns
    -------
    The runs' rows, with

    reference
        The run of `resident` that it is held against (:func:`references`).
    resident_s
        Its steady step.
    overhead, overhead_low, overhead_high
        The step over resident's, less 1, and the least and the most that both intervals allow.
    allowance
        The share below which no difference is claimed (:func:`wanreport.analysis.stats.allowance`).
    claim
        "slower", "faster", "within noise", or "no interval" where a run has fewer than six steps.
    same_boards, drift
        Whether both ran on the same GPUs, and by how much resident moved meanwhile (:func:`drift`).
    bracketed
        Whether resident ran again on the same boards after the first time.
    limit_s, over_limit
        What no engine can beat with the same bytes: the larger of resident's step and of the bytes
        of a step over the link's measured bandwidth; and the step over it.
    same_bits
        Whether its latents, or a benchmark's outputs, have resident's bits.
    """
    runs = timed(frames).copy()
    if runs.empty:
        return runs
    runs["reference"] = references(frames)
    runs["drift"] = drift(frames)
    known = runs.to_dict("index")
    rows = [_against(row, known) for row in known.values()]
    return runs.join(pd.DataFrame(rows, index=runs.index, columns=[*COMPARED]))


def _against(row: Row, runs: dict[Any, Row]) -> dict[str, Any]:
    if row["reference"] is None:
        return {}
    resident = runs[row["reference"]]
    gap = difference(row, resident, row["drift"])
    copying = row["h2d_step_bytes"] / (row["link_gb_s"] * 1e9)
    limit = max(resident["step_s"], copying) if pd.notna(copying) else math.nan
    known = pd.notna(row["latents"]) and pd.notna(resident["latents"])
    bits = bool(row["latents"] == resident["latents"]) if known else None
    return {
        "resident_s": resident["step_s"],
        "overhead": gap["difference"],
        "overhead_low": gap["difference_low"], "overhead_high": gap["difference_high"],
        "allowance": gap["allowance"], "claim": gap["claim"],
        "same_boards": bool(row["boards"]) and row["boards"] == resident["boards"],
        "bracketed": not math.isnan(row["drift"]),
        "limit_s": limit, "over_limit": row["step_s"] / limit,
        "same_bits": False if row["repeats"] is False else bits,
    }  # fmt: skip


def difference(one: Row, two: Row, drift: float = 0.0) -> dict[str, Any]:
    """Compare two runs' steady steps: `one` over `two`, less 1, with interval and claim.

    `one` and `two` are rows of `runs`. ``step_difference_s`` is the difference in seconds, from
    ``low_s`` to ``high_s``.
    """
    mine, theirs, over = as_run(one).step, as_run(two).step, _ratio(one, two)
    share = allowance(as_run(one), as_run(two), drift=drift)
    return {
        "difference": over.median - 1,
        "difference_low": over.low - 1, "difference_high": over.high - 1,
        "step_difference_s": mine.median - theirs.median,
        "low_s": mine.low - theirs.high, "high_s": mine.high - theirs.low,
        "allowance": share, "claim": _claim(mine, theirs, share),
    }  # fmt: skip


def _claim(one: Median, two: Median, share: float) -> str:
    known = not math.isnan(one.low + two.low)
    return CLAIMS[apart(one, two, share)] if known else "no interval"


def pair_drift(one: Row, two: Row) -> float:
    """The larger drift known of two rows of :func:`overhead`; 0 where none is."""
    return max((abs(row["drift"]) for row in (one, two) if row["drift"] == row["drift"]), default=0)


def gap_difference(many: tuple[Row, Row], few: tuple[Row, Row]) -> dict[str, Any]:
    """Compare two gaps: by how much more of a step one pair of runs is apart than another.

    Each pair is rows of `runs`, and its gap the first one's steady step over the second one's.
    Clocks count either way, as they may have widened one gap or narrowed the other.

    Returns
    -------
    ``gap`` and ``gap_before`` of both pairs, less 1; ``difference`` of the two with
    ``difference_low`` and ``difference_high``, ``allowance``, and ``claim`` for the first gap:
    "slower" where it is the wider one.
    """
    wide, narrow = _ratio(*many), _ratio(*few)
    share = sum(allowance(as_run(one), as_run(two), either_way=True) for one, two in (many, few))
    return {
        "gap": wide.median - 1, "gap_before": narrow.median - 1,
        "difference": wide.median - narrow.median,
        "difference_low": wide.low - narrow.high, "difference_high": wide.high - narrow.low,
        "allowance": share, "claim": _claim(wide, narrow, share),
    }  # fmt: skip


def _ratio(one: Row, two: Row) -> Median:
    """The ratio of two medians, with what both intervals leave open."""
    mine, theirs = as_run(one).step, as_run(two).step
    return Median(mine.median / theirs.median, mine.low / theirs.high, mine.high / theirs.low,
                  min(mine.n, theirs.n))  # fmt: skip


def headline(frames: Frames) -> pd.DataFrame:
    """Pick the runs for the first screen: the full model, each engine's run that counts.

    :func:`overhead` of the latest run of each full-model job (eager, both branches, prefetch 1),
    `resident` left out, by machine and resolution. An overhead whose reference ran on the same
    boards goes before one that did not, and one with `resident` again afterwards before both.
    """
    cost = overhead(frames)
    if cost.empty or cost.overhead.isna().all():
        return cost[:0]
    plain = cost[
        (cost.source == "job") & cost.latest & cost.overhead.notna() & ~cost.compiled
        & ~cost.cfg_parallel
        & (cost.engine != "resident") & (cost.prefetch.fillna(1) == 1)
        & cost.vram_budget_gb.isna() & (cost.branches == 2)
    ]  # fmt: skip
    order = plain.sort_values(["same_boards", "bracketed", "steps_run", "started"])
    return order.groupby(["machine", "height", "engine"]).tail(1)


def spread(frames: Frames) -> pd.DataFrame:
    """Compute how far the medians of repeated runs lie apart: a row for each repeated job.

    ``spread`` is the largest over the smallest median, less 1; ``interval`` the widest interval
    within one run, as a share of its median.
    """
    runs = timed(frames)
    rows = []
    for _, group in runs[runs.source == "job"].groupby(["group", "job"]) if len(runs) else ():
        if len(group) > 1:
            width = ((group.step_high_s - group.step_low_s) / 2 / group.step_s).max()
            rows.append({
                "machine": group.machine.iloc[0], "name": group["name"].iloc[0],
                "work": group.work.iloc[0], "runs": len(group),
                "boards": len(set(group.boards) - {()}),
                "least_s": group.step_s.min(), "most_s": group.step_s.max(),
                "spread": group.step_s.max() / group.step_s.min() - 1, "interval": width,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["machine", "name", "work", "runs", "boards", "least_s",
                                       "most_s", "spread", "interval"])  # fmt: skip


def bits(frames: Frames) -> pd.DataFrame:
    """Compare latents within each group of comparable jobs, rehearsals included.

    A row for each group with two engines or more: ``engines`` by name, ``each`` the runs, ``same``
    whether all have the same bits, ``differ`` the names of those that have others than most. `fsdp`
    does not decide what is usual: for the buffers that it gathers into, a GPU may choose other
    kernels.
    """
    runs = frames.runs
    if runs.empty:
        return runs
    jobs = runs[(runs.source == "job") & (runs.status == "ok") & runs.latents.notna()]
    rows = []
    for _, group in jobs.groupby("group"):
        if group.engine.nunique() < 2:
            continue
        others = group[group.engine != "fsdp"]
        usual = (others if len(others) else group).latents.mode().iloc[0]
        odd = group[group.latents != usual]
        rows.append({
            "machine": group.machine.iloc[0], "work": group.work.iloc[0],
            "gpus": group.gpus.iloc[0], "rehearsal": bool(group.rehearsal.iloc[0]),
            "engines": ", ".join(sorted(set(group["name"]))), "runs": len(group),
            "each": list(group.index),
            "same": odd.empty, "differ": ", ".join(sorted(set(odd["name"]))),
        })  # fmt: skip
    return pd.DataFrame(rows)


def predicted(frames: Frames) -> pd.DataFrame:
    """Compare each plan's predicted step with the measured one, full-model jobs included.

    ``error`` is predicted over measured, less 1.
    """
    runs = timed(frames)
    if "planned_step_s" not in runs:
        return runs
    planned = runs[runs.planned_step_s.notna()].copy()
    planned["error"] = (planned.planned_step_s / planned.step_s - 1).astype(np.float64)
    return planned
