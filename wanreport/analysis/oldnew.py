"""The new offload against the old one, in the shapes of the baseline's sections 3.2 and 3.3.

The new one is `layerwise`; what the baseline calls old may be `swap` or `fsdp` (:func:`which_old`).
End to end is one clean iteration over the whole schedule, decoding included: without the warm-up
and without loading the model. Steps that a job left out count as the mean of its steady ones.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import NEW, OLD, Facts, Row, nearest, plain_jobs
from wanreport.analysis.frames import Frames

GIB = 2**30
WHERE = ("machine", "gpus", "height", "work", "engine", "name", "run")
TOLD = ("difference", "difference_low", "difference_high", "allowance", "claim")
SHAPES = {
    "s3.2": {"denoise": "denoise_s", "step": "average_s", "decode": "decode_s",
             "total": "end_to_end_s"},
    "s3.3": {"first": "first_s", "early": "early_s", "switch": "switch_s", "late": "late_s",
             "steady": "step_s"},
    "s3.3.budget": {"first": "first_s", "switch": "switch_s", "other": "steady_s",
                    "decode": "decode_s", "total": "sum_s"},
}  # fmt: skip
"""The baseline's tables, by the names of its facts: a row each, and the column of ours."""

SAMPLED = ("denoise", "step", "total", "other")
"""Rows that are sums over the schedule, so extrapolated where a job left steps out."""


def old_new(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Hold `layerwise` against both readings of the old offload: a row for each figure and machine.

    Returns
    -------
    section, quantity
        Which of the baseline's tables and rows, by the names of its facts (:data:`SHAPES`).
    machine, gpus, height, work
        Where and what our runs ran.
    resident_s, new_s, swap_s, fsdp_s
        Ours, in seconds; NaN where not measured.
    minus_swap_s, minus_fsdp_s, difference_swap, difference_fsdp
        The new one less the old one, in seconds and as a share of the old one. Whether steady steps
        may be told apart is in :func:`which_old`.
    baseline_new_s, baseline_old_s, baseline_minus_s
        What the baseline printed.
    extrapolated, decoded
        Whether steps that did not run are in it; whether the job decoded, as the baseline's did.
    run_resident, run_new, run_swap, run_fsdp
        The runs.
    """
    rows = []
    for new, olds in _groups(frames):
        runs = {"resident": frames.runs.loc[new.reference], "new": new, **olds}
        ours = {side: _columns(frames, run) for side, run in runs.items()}
        for section, shape in SHAPES.items():
            for quantity, column in shape.items():
                values = {side: ours[side][column] if side in ours else math.nan
                          for side in ("resident", "new", *OLD)}  # fmt: skip
                quoted = {end: facts.number(f"{section}.{quantity}.{side}") for end, side in
                          (("new", "new"), ("old", "old"), ("minus", "delta"))}  # fmt: skip
                rows.append({
                    "section": section, "quantity": quantity,
                    **{key: new[key] for key in WHERE[:4]},
                    **{f"{side}_s": value for side, value in values.items()},
                    **{f"minus_{old}_s": values["new"] - values[old] for old in OLD},
                    **{f"difference_{old}": values["new"] / values[old] - 1 for old in OLD},
                    **{f"baseline_{end}_s": value for end, value in quoted.items()},
                    "extrapolated": quantity in SAMPLED and bool(new.steps_run < new.steps_whole),
                    "decoded": pd.notna(new.decode_s),
                    **{f"run_{side}": run.run for side, run in runs.items()},
                })  # fmt: skip
    return pd.DataFrame(rows)


def _groups(frames: Frames) -> list[tuple[Row, dict[str, Row]]]:
    """Of each machine and height the run of `layerwise`, and those of the old engines beside it."""
    runs = compare.headline(frames)
    found = []
    every = runs[runs.engine == NEW] if "overhead" in runs else runs[:0]
    for _, new in every.sort_values(["machine", "height"]).iterrows() if len(every) else ():
        beside = runs[(runs.group == new.group) & runs.engine.isin(OLD)]
        found.append((new, {row.engine: row for _, row in beside.iterrows()}))
    return found


def _columns(frames: Frames, run: Row) -> dict[str, float]:
    """A run's times: those of its row, and what the baseline's tables have besides."""
    steps = frames.steps[(frames.steps.run == run.run) & (frames.steps.kind == "clean")]
    steady = steps[steps.role == "steady"].groupby("expert").seconds.median()
    decode = 0.0 if pd.isna(run.decode_s) else run.decode_s
    return {
        **run.to_dict(), "average_s": run.denoise_s / run.steps_whole,
        "early_s": steady.get("high_noise", math.nan), "sum_s": run.denoise_s + decode,
        "late_s": steady.get("low_noise", math.nan),
    }  # fmt: skip


def memory(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Compare peaks of GPU memory with the baseline's, which are SGLang's: reserved, in GiB.

    Returns
    -------
    A row for each engine and machine, after the baseline's own (without a machine), with

    reserved_gib, free_gib
        Reserved by the allocator at the peak, and what was left of the GPU.
    allocated_bytes, pinned_bytes
        Of these in use by tensors at the peak; the host's pinned memory.
    """
    rows: list[dict[str, Any]] = [
        {"machine": "", "engine": "", "name": f"baseline, {side}",
         "reserved_gib": facts.number(f"s3.2.peak.{side}"),
         "free_gib": facts.number(f"s3.2.free.{side}")} for side in ("new", "old")
    ]  # fmt: skip
    runs = plain_jobs(frames.full_scale())
    if len(runs):
        last = runs.sort_values("started").groupby(["machine", "height", "name"]).tail(1)
        keep = [*WHERE, "allocated_bytes", "pinned_bytes"]
        rows += last.sort_values(["machine", "height", "reserved_bytes"]).assign(
            reserved_gib=last.reserved_bytes / GIB,
            free_gib=(last.gpu_memory_bytes - last.reserved_bytes) / GIB,
        )[[*keep, "reserved_gib", "free_gib"]].to_dict("records")  # fmt: skip
    return pd.DataFrame(rows)


def which_old(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Tell which of our engines behaves as the baseline's old offload.

    Returns
    -------
    A row for each engine and machine, after the baseline's own (without a machine), with

    difference, difference_low, difference_high, allowance, claim
        The steady step over `layerwise`'s, less 1.
    spike
        The switch step over the engine's own steady step, less 1.
    memory_experts
        Peak reserved memory above `layerwise`'s, in experts.
    like_steady, like_spike, like_memory, old
        Whether each is as the old one has it: not claimed to be slower than `layerwise`; at the
        switch and in memory nearer to the old one's figure than to the new one's. Then all three.
        None where too few steps ran to tell.
    """
    size = frames.runs.get("expert_bytes", pd.Series(dtype=float)).max()
    baseline = {}
    for side in ("new", "old"):
        steady = facts.number(f"s3.3.steady.{side}")
        above = facts.number(f"s3.2.peak.{side}") - facts.number("s3.2.peak.new")
        baseline[side] = {
            "machine": "", "engine": "", "name": f"baseline, {side}",
            "difference": steady / facts.number("s3.3.steady.new") - 1,
            "spike": facts.number(f"s3.3.switch.{side}") / steady - 1,
            "memory_experts": above * GIB / size,
        }  # fmt: skip

    def like(name: str, value: float) -> bool:
        new, old = baseline["new"][name], baseline["old"][name]
        return bool(abs(value - old) < abs(value - new))

    rows = list(baseline.values())
    every = compare.headline(frames)
    for new, _ in _groups(frames):
        for _, row in every[(every.group == new.group) & (every.engine != NEW)].iterrows():
            told = compare.difference(row, new, compare.pair_drift(row, new))
            found = {
                **{key: row[key] for key in WHERE}, **{key: told[key] for key in TOLD},
                "spike": row.switch_s / row.step_s - 1,
                "memory_experts": (row.reserved_bytes - new.reserved_bytes) / row.expert_bytes,
            }  # fmt: skip
            slow = None if told["claim"] == "no interval" else told["claim"] == "slower"
            near = [like(name, found[name]) for name in ("spike", "memory_experts")]
            likes = [None if slow is None else not slow, *near]
            found |= dict(zip(("like_steady", "like_spike", "like_memory"), likes, strict=True))
            rows.append(
                found | {"old": None if None in likes and False not in likes else all(likes)}
            )
    return pd.DataFrame(rows)


def prefetch(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Compare the deeper prefetch with the default: a row for each machine that has both.

    Steps with ``difference``, ``step_difference_s`` (negative: shorter), their bounds and `claim`;
    ``end_to_end_difference_s``; ``allocated_difference_bytes`` and ``reserved_difference_bytes``;
    ``expected_s`` to ``expected_most_s`` and ``expected_bytes``, the changes the baseline expects.
    """
    runs = plain_jobs(compare.timed(frames))
    rows = []
    if len(runs):
        runs = runs.assign(drift=compare.drift(frames))
        deep, base = (runs[(runs.engine == NEW) & (runs.prefetch == int(facts.number(name)))]
                      for name in ("s6.2.three.size", "s9.2.prefetch.base"))  # fmt: skip
        for one, two in nearest(deep, base):
            rows.append({
                **{key: one[key] for key in WHERE[:4]},
                "deep": one.prefetch, "base": two.prefetch, "deep_s": one.step_s,
                "base_s": two.step_s, **compare.difference(one, two, compare.pair_drift(one, two)),
                "end_to_end_difference_s": one.end_to_end_s - two.end_to_end_s,
                **{f"{kind}_difference_bytes": one[f"{kind}_bytes"] - two[f"{kind}_bytes"]
                   for kind in ("allocated", "reserved")},
                "expected_s": -facts.number("s9.2.prefetch.gain_low"),
                "expected_most_s": -facts.number("s9.2.prefetch.gain_high"),
                "expected_bytes": 1e9 * facts.number("s9.3.b.vram"),
                "same_boards": bool(one.boards) and one.boards == two.boards,
                "run_deep": one.run, "run_base": two.run,
            })  # fmt: skip
    return pd.DataFrame(rows)
