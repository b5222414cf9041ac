"""The new offload against the old one, in the shapes of the baseline's sections 3.2 and 3.3.

The new one is `layerwise`; what the baseline calls old may be `swap` or `fsdp` (:func:`which_old`).
End to end is one clean iteration over the whole schedule: without the warm-up and without loading
the model, with decoding where the job decoded. Steps that a job left out count as the mean of its
steady ones.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import NEW, OLD, Facts, Row, nearest, plain_jobs, told
from wanreport.analysis.frames import Frames

GIB = 2**30
SIDES = ("new", "old")
PREFETCH = ["machine", "work", "deep", "base", "deep_s", "base_s", "difference", "claim",
            "same_boards", "allocated_difference_bytes"]  # fmt: skip
WHERE = ["machine", "gpus", "height", "work"]
SHAPES = pd.DataFrame(
    [(section, *row) for section, rows in {
        "s3.2": [("denoise", "denoise_s"), ("step", "average_s"), ("decode", "decode_s"),
                 ("total", "end_to_end_s")],
        "s3.3": [("first", "first_s"), ("early", "early_s"), ("switch", "switch_s"),
                 ("late", "late_s"), ("steady", "step_s")],
        "s3.3.budget": [("first", "first_s"), ("switch", "switch_s"), ("other", "steady_s"),
                        ("decode", "decode_s"), ("total", "sum_s")],
    }.items() for row in rows], columns=["section", "quantity", "column"],
)  # fmt: skip
"""The baseline's tables, by the names of its facts: a row each, and the column of ours."""


def old_new(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Hold `layerwise` against both readings of the old offload: a row for each figure and machine.

    Returns
    -------
    section, quantity, machine, gpus, height, work
        Which of the baseline's rows, by the names of its facts (:data:`SHAPES`); where ours ran.
    resident_s, new_s, swap_s, fsdp_s, baseline_new_s, baseline_old_s, baseline_minus_s
        Ours, in seconds, NaN where not measured; what the baseline printed.
    minus_swap_s, minus_fsdp_s, claim_swap, claim_fsdp, boards_swap, boards_fsdp
        The new one less the old one; what is claimed of that (None but for steady steps: an
        iteration has one first step, one switch, one total); whether both had the same boards.
    decoded, run_resident, run_new, run_swap, run_fsdp
        Whether the job decoded, as the baseline's did; the runs.
    """
    times, parts = _times(frames), []
    for new, beside in _groups(frames):
        here = SHAPES.assign(**new[WHERE], decoded=pd.notna(new.decode_s))
        runs = {"resident": new.reference, "new": new.run, **beside.run}
        for side in ("resident", "new", *OLD):
            here[f"run_{side}"] = run = runs.get(side)
            here[f"{side}_s"] = times.loc[run, here.column].to_numpy(float) if run else math.nan
        for old in OLD:
            gap = told(new, beside.loc[old]) if old in runs else {}
            here[f"minus_{old}_s"] = here.new_s - here[f"{old}_s"]
            here[f"boards_{old}"] = gap.get("same_boards")
            here[f"claim_{old}"] = here.quantity.map({"steady": gap.get("claim")})
        parts.append(here)
    table = pd.concat(parts or [SHAPES[:0]], ignore_index=True).drop(columns="column")
    for end, side in (("new", "new"), ("old", "old"), ("minus", "delta")):
        names = table.section + "." + table.quantity + f".{side}"
        table[f"baseline_{end}_s"] = names.map(facts.number)
    return table


def _times(frames: Frames) -> pd.DataFrame:
    """The runs' times: those of their rows, and what the baseline's tables have besides."""
    runs, steady = frames.runs, frames.steps.query("kind == 'clean' and role == 'steady'")
    if runs.empty:
        return runs
    halves = steady.groupby(["expert", "run"]).seconds.median()
    return runs.assign(
        average_s=runs.denoise_s / runs.steps_whole, sum_s=runs.denoise_s + runs.decode_s.fillna(0),
        early_s=halves.get("high_noise"), late_s=halves.get("low_noise"),
    )  # fmt: skip


def _groups(frames: Frames) -> list[tuple[Row, pd.DataFrame]]:
    """Of each machine and height the run of `layerwise`, and those comparable to it by engine."""
    runs = compare.headline(frames)
    if runs.empty:
        return []
    others = runs[runs.engine != NEW].set_index("engine", drop=False)
    news = runs[runs.engine == NEW].sort_values(["machine", "height"])
    return [(new, others[others.group == new.group]) for _, new in news.iterrows()]


def _baselines(**columns: list[float]) -> pd.DataFrame:
    """The baseline's own rows, new and old: they have no machine."""
    names = {"machine": "", "engine": "", "name": ["baseline, new", "baseline, old"]}
    return pd.DataFrame(names | columns)


def memory(frames: Frames, facts: Facts) -> pd.DataFrame:
    """List peaks of GPU memory beside the baseline's, which are SGLang's: reserved, in GiB.

    The latest run of each engine and machine after the baseline's own (without a machine), with
    ``reserved_gib``, by the allocator at the peak, and ``free_gib``, what was left of the GPU.
    """
    peak, free = ([facts.number(f"s3.2.{name}.{side}") for side in SIDES]
                  for name in ("peak", "free"))  # fmt: skip
    quoted = _baselines(reserved_gib=peak, free_gib=free)
    runs = plain_jobs(frames.full_scale())
    if runs.empty:
        return quoted
    last = runs.sort_values("started").groupby(["machine", "height", "name"]).tail(1)
    last = last.assign(reserved_gib=last.reserved_bytes / GIB,
                       free_gib=(last.gpu_memory_bytes - last.reserved_bytes) / GIB)  # fmt: skip
    return pd.concat([quoted, last.sort_values(["machine", "height", "reserved_bytes"])],
                     ignore_index=True)  # fmt: skip


def which_old(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Tell which of our engines behaves as the baseline's old offload.

    Returns
    -------
    A row for each engine and machine, after the baseline's own (without a machine), with
    ``difference``, `claim` and ``same_boards`` of its steady step over `layerwise`'s; ``spike``,
    the switch over its own steady step, less 1; ``memory_experts``, peak reserved memory above
    `layerwise`'s, in experts; and `old`, whether it is not claimed to be slower than `layerwise`
    and lies in both others nearer to the old offload than to the new one: None where too few steps
    ran to tell.
    """
    size = frames.runs.get("expert_bytes", pd.Series(dtype=float)).max()
    steady, switch, peak = (
        np.array([facts.number(f"{name}.{side}") for side in SIDES])
        for name in ("s3.3.steady", "s3.3.switch", "s3.2.peak")
    )
    quoted = _baselines(difference=steady / steady[0] - 1, spike=switch / steady - 1,
                        memory_experts=(peak - peak[0]) * GIB / size)  # fmt: skip
    middle, rows = quoted[["spike", "memory_experts"]].mean(), []
    for new, beside in _groups(frames):
        for _, row in beside.iterrows():
            above = row.reserved_bytes - new.reserved_bytes
            found = {**row[["engine", "name", "run"]], **told(row, new),
                     "spike": row.switch_s / row.step_s - 1,
                     "memory_experts": above / row.expert_bytes}  # fmt: skip
            old = all(found[each] > middle[each] for each in middle.index)
            old = old and found["claim"] != "slower"
            rows.append(found | {"old": None if old and found["claim"] == "no interval" else old})
    return pd.concat([quoted, pd.DataFrame(rows)], ignore_index=True)


def prefetch(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Compare the deeper prefetch with the default: a row for each machine that has both.

    What :func:`told` has of their steps, and ``allocated_difference_bytes``.
    """
    runs = plain_jobs(compare.overhead(frames))
    runs = runs[runs.engine == NEW] if len(runs) else runs
    deep, base = (facts.number(name) for name in ("s6.2.three.size", "s9.2.prefetch.base"))
    pairs = nearest(runs[runs.prefetch == deep], runs[runs.prefetch == base]) if len(runs) else []
    return pd.DataFrame([{
        **told(one, two), "deep": one.prefetch, "base": two.prefetch,
        "deep_s": one.step_s, "base_s": two.step_s,
        "allocated_difference_bytes": one.allocated_bytes - two.allocated_bytes,
    } for one, two in pairs], columns=None if pairs else PREFETCH)  # fmt: skip
