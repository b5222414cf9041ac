"""Sums up a run's steps, iterations and counters, and holds it against `resident`.

These are the numbers of `frames.runs` that no file says.
"""

from __future__ import annotations

import pandas as pd

from wanreport.analysis.rows import MEMORY
from wanreport.analysis.stats import difference, median_interval

STEP = ["step_s", "step_low_s", "step_high_s", "step_n"]
OVERHEAD = {"difference": "overhead", "difference_low": "overhead_low",
            "difference_high": "overhead_high", "allowance": "allowance",
            "claim": "claim"}  # fmt: skip


def summed_up(
    runs: pd.DataFrame, steps: pd.DataFrame, iterations: pd.DataFrame, counters: pd.DataFrame
) -> pd.DataFrame:
    """Add to each run what follows from its rows in the other frames.

    Times are those of clean iterations: medians where there are several. Memory (``_bytes``) is the
    peak of all ranks and iterations.

    step_s, step_low_s, step_high_s, step_n
        A steady step, neither the first nor the switch: its median with interval and n.
    first_s, switch_s, decode_s; denoise_s, steady_s, end_to_end_s; h2d_schedule_bytes
        The first step, the switch, decoding; the whole schedule, its steady steps, both with
        decoding; the bytes that the busiest rank copies to its device. A step that did not run
        counts as the mean of the steady ones that did; its bytes as their median, since the step
        before the switch may load ahead.
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
    step, nothing = steady.seconds.agg(median_interval), median_interval([])
    medians = pd.DataFrame([step.get(run, nothing) for run in runs.index], runs.index, STEP)
    moved = steady[["h2d_bytes", "h2d_bytes_all"]].median()
    each = iterations.set_index(["run", "iteration"])
    quiet = each[each.kind == "clean"]
    found = runs.join([
        medians, moved.set_axis(["h2d_step_bytes", "h2d_step_bytes_all"], axis=1),
        _whole(clean, quiet, runs.steps_whole).groupby("run").median(),
        each.groupby("run")[[*MEMORY]].max(),
        quiet.groupby("run")[["sm_mhz", "power_w", "celsius"]].median(),
    ])  # fmt: skip
    boards, job = quiet.groupby("run").boards.first(), found.source == "job"
    found["boards"] = [boards.get(run, ()) for run in found.index]
    # A campaign repeats one step: it has no schedule.
    found["h2d_schedule_bytes"] = found.h2d_schedule_bytes.where(job, found.h2d_step_bytes)

    ends = each.latents[each.complete.astype(bool) & each.latents.notna()].groupby("run")
    same = ends.nunique() == 1
    found["latents"] = found.latents.where(~job, ends.last().where(same))
    found["repeats"] = found.repeats.where(~job, same.where(ends.size() > 1).astype(object))
    right = (counters.measured == counters.formula).groupby(counters.run).all()
    known = counters.formula.notna().groupby(counters.run).all()
    told = known.reindex(found.index, fill_value=False) & ~found.counters_derived
    found["formula_ok"] = right.reindex(found.index).astype(object).where(told, None)
    return found


def _whole(clean: pd.DataFrame, iterations: pd.DataFrame, planned: pd.Series) -> pd.DataFrame:
    """Times and bytes of the whole schedule, by run and iteration; missing without a first step."""
    by = clean.groupby(["run", "iteration"])
    roles = clean.pivot_table(index=["run", "iteration"], columns="role", values="seconds")
    roles = roles.reindex(columns=["first", "switch", "steady"]).astype(float)
    first, left = roles["first"], planned.reindex(by.size().index, level="run") - by.size()
    left = left.astype(float).clip(lower=0).fillna(0)
    typical = clean[clean.role == "steady"].groupby(["run", "iteration"]).h2d_bytes.median()
    moved = by.h2d_bytes.agg(lambda column: column.sum(skipna=False))
    found = pd.DataFrame({
        "first_s": first, "switch_s": roles.switch,
        "denoise_s": by.seconds.sum() + (left * roles.steady).where(left > 0, 0.0),
        "h2d_schedule_bytes": moved + (left * typical).where(left > 0, 0.0),
    }).where(first.notna())  # fmt: skip
    found["steady_s"] = found.denoise_s - first - found.switch_s.fillna(0)
    found = found.join(iterations[["decode_s", "total_s"]], how="outer")
    whole = found.pop("total_s").where(left == 0)
    return found.assign(end_to_end_s=whole.fillna(found.denoise_s + found.decode_s.fillna(0)))


def against_resident(runs: pd.DataFrame) -> pd.DataFrame:
    """Add to each finished run at full scale how it compares with `resident`.

    reference, resident_s
        The run of `resident` that it is held against, and its steady step. In a benchmark file that
        is the file's first one at the same number of tokens; of jobs, of the same work and layout,
        one on the same boards, the latest; else the latest on that class of machine.
    overhead, overhead_low, overhead_high, allowance, claim
        The step over resident's, less 1, as :func:`wanreport.analysis.stats.difference` has it.
    drift, bracketed
        By what share resident moved meanwhile, and whether that is known. In a benchmark file it is
        its closing run over the first, less 1; of jobs the spread of its runs on the same boards.
    limit_s, over_limit
        What no engine can beat with the same bytes: the larger of resident's step and of the bytes
        of a step over the link's measured bandwidth; and the step over it.
    same_boards, same_bits
        Whether both ran on the same GPUs, and have the same latents, or a benchmark's outputs.
    """
    timed = runs[(runs.status == "ok") & ~runs.rehearsal & runs.step_s.notna()]
    boards = timed.group + " " + timed.boards.map(" ".join)
    resident = timed[timed.engine == "resident"].sort_values(["latest", "started"], ascending=False)
    first, again = resident[~resident.again], resident[resident.again].groupby("group").step_s
    of_group, beside = first.groupby("group"), first[first.boards.astype(bool)].groupby(boards)
    reference = boards.map(beside.run.first()).fillna(timed.group.map(of_group.run.first()))
    reference = reference.mask(timed.latest & timed.run.isin(first.run), timed.run)
    spread = (beside.step_s.max() / beside.step_s.min() - 1).where(beside.size() > 1)
    drift = timed.group.map(again.first() / of_group.step_s.first() - 1).fillna(boards.map(spread))
    found = timed.assign(reference=reference, drift=drift, bracketed=drift.notna())
    found = found[reference.notna()]
    theirs = runs.loc[found.reference].set_axis(found.index)
    pairs = zip(found.to_dict("records"), theirs.to_dict("records"), strict=True)
    gaps = [difference(one, two, one["drift"]) for one, two in pairs]
    found = found.join(pd.DataFrame(gaps, found.index, [*OVERHEAD]).rename(columns=OVERHEAD))
    copying = found.h2d_step_bytes / (found.link_gb_s * 1e9)
    found["resident_s"] = theirs.step_s
    found["limit_s"] = theirs.step_s.clip(lower=copying).where(copying.notna())
    found["over_limit"] = found.step_s / found.limit_s
    found["same_boards"] = found.boards.astype(bool) & (found.boards == theirs.boards)
    known = found.latents.notna() & theirs.latents.notna()
    same = (found.latents == theirs.latents).astype(object).where(known, None)
    found["same_bits"] = same.mask(found.repeats.eq(False), False)
    return runs.join(found[[name for name in found if name not in runs]])
