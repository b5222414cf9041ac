"""Sums up a run's steps, iterations and counters: the numbers of `frames.runs`."""

from __future__ import annotations

import pandas as pd

from wanreport.analysis.rows import MEMORY
from wanreport.analysis.stats import Median, median_interval


def summed_up(
    runs: pd.DataFrame, steps: pd.DataFrame, iterations: pd.DataFrame, counters: pd.DataFrame
) -> pd.DataFrame:
    """Add to each run what follows from its rows in the other frames.

    Times are those of clean iterations: medians where there are several. Memory is the peak of all
    ranks and iterations.

    Returns
    -------
    `runs` with

    step_s, step_low_s, step_high_s, step_n
        A steady step, neither the first nor the switch: its median with interval and n.
    first_s, switch_s, decode_s
        The first step, the switch, decoding.
    denoise_s, steady_s, end_to_end_s, h2d_schedule_bytes
        The whole schedule, its steady steps, both with decoding, and the bytes that the busiest
        rank copies to its device. A step that did not run counts as the mean of the steady ones
        that did; its bytes as their median, since the step before the switch may load ahead.
    h2d_step_bytes, h2d_step_bytes_all
        Bytes of a steady step to the device: of the busiest rank, of all ranks.
    sm_mhz, power_w, celsius, boards
        How the GPUs ran: those of the rank with the slowest clock, and which boards they are.
    latents, repeats
        The digest that all complete iterations end in, and whether there are several and all agree.
    formula_ok
        Whether all counters equal their closed formula; None where some have none.
    """
    clean = steps[(steps.kind == "clean") & steps.seconds.notna()]
    steady = clean[clean.role == "steady"].groupby("run")
    step = steady.seconds.agg(median_interval)
    names = ["step_s", "step_low_s", "step_high_s", "step_n"]
    nothing = median_interval([])
    medians = [step.get(run, nothing) for run in runs.index]
    found = runs.join(pd.DataFrame(medians, runs.index, Median._fields).set_axis(names, axis=1))
    moved = steady[["h2d_bytes", "h2d_bytes_all"]].median()
    found = found.join(moved.set_axis(["h2d_step_bytes", "h2d_step_bytes_all"], axis=1))
    each = iterations.set_index(["run", "iteration"])
    quiet = each[each.kind == "clean"]
    whole = _whole(clean, quiet, runs.steps_whole).groupby("run").median()
    found = found.join(whole).join(each.groupby("run")[[*MEMORY]].max())
    found = found.join(quiet.groupby("run")[["sm_mhz", "power_w", "celsius"]].median())
    boards = quiet.groupby("run").boards.first()
    found["boards"] = [boards.get(run, ()) for run in found.index]
    bench = found.source == "bench"  # a campaign repeats one step: it has no schedule
    found.loc[bench, "h2d_schedule_bytes"] = found.h2d_step_bytes[bench]
    return _agreement(found, each, counters)


def _whole(clean: pd.DataFrame, iterations: pd.DataFrame, planned: pd.Series) -> pd.DataFrame:
    """Times and bytes of the whole schedule, by run and iteration; missing without a first step."""
    by = clean.groupby(["run", "iteration"])
    roles = clean.pivot_table(index=["run", "iteration"], columns="role", values="seconds")
    first, switch, mean = (
        roles[role] if role in roles else by.seconds.sum() * float("nan")
        for role in ("first", "switch", "steady")
    )
    left = planned.reindex(by.size().index, level="run").astype(float) - by.size()
    typical = clean[clean.role == "steady"].groupby(["run", "iteration"]).h2d_bytes.median()
    denoise = (by.seconds.sum() + (left * mean).where(left > 0, 0.0)).where(first.notna())
    moved = by.h2d_bytes.agg(lambda column: column.sum(skipna=False))
    decode, total = iterations.decode_s, iterations.total_s
    return pd.DataFrame({
        "first_s": first, "switch_s": switch, "steady_s": denoise - first - switch.fillna(0),
        "decode_s": decode, "denoise_s": denoise,
        "end_to_end_s": total.where(left == 0).fillna(denoise + decode.fillna(0)),
        "h2d_schedule_bytes": (moved + (left * typical).where(left > 0, 0.0)).where(first.notna()),
    })  # fmt: skip


def _agreement(
    runs: pd.DataFrame, iterations: pd.DataFrame, counters: pd.DataFrame
) -> pd.DataFrame:
    """Whether a run's iterations end in the same bits, and its counters equal their formulas."""
    ends = iterations[iterations.complete & iterations.latents.notna()].groupby("run").latents
    kinds, number, last = ends.nunique(), ends.size(), ends.last()
    known = counters.assign(
        known=counters.formula.notna(), same=counters.measured == counters.formula
    )
    known = known.groupby("run")[["known", "same"]].all()
    job = runs.source == "job"
    runs["latents"] = runs.get("latents", pd.Series(index=runs.index, dtype=object)).where(
        ~job, last.where(kinds == 1).reindex(runs.index)
    )
    repeats = (kinds == 1).where(number > 1).reindex(runs.index).astype(object)
    runs["repeats"] = runs.get("repeats", pd.Series(index=runs.index, dtype=object)).where(
        ~job, repeats
    )
    told = known.known.reindex(runs.index, fill_value=False) & ~runs.counters_derived
    runs["formula_ok"] = known.same.reindex(runs.index).astype(object).where(told, None)
    return runs
