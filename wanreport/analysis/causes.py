"""The baseline's five causes (its section 7), each by the runs that come closest to removing it.

Two runs tell what a cause costs where they differ in nothing but the setting that makes it. Hardly
any two do, so of all pairs the one with the fewest other settings is taken, and these are listed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import and_, gt, lt
from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis.compare import Facts, aligned, gaps, overhead
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS
from wanreport.words import gigabytes

CAUSES = ["sync", "compile", "alloc", "contention", "late"]  # the baseline's order and names
MADE_BY: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "waits": ("sync", gt), "compiled": ("compile", gt), "allocations": ("alloc", gt),
    "prefetch": ("late", lt), "windows": ("contention", lt),  # none, timed
    "interconnect": ("contention", lambda a, b: (a == "PCIe path") & (b == "NVLink")),
    "gpus": ("contention", lambda a, b: b == 1),
}  # fmt: skip
"""The setting that makes a cause, and whether the first of two runs has more of it."""
OWN_RESIDENT = ("compiled", "interconnect", "gpus")
"""Settings that make another step even without offload: runs are held against their `resident`."""
ALIKE = {"clock": SAME_CLOCKS, "bytes": 0.1, "allocations": 0.1, "waits": 0.1}
"""Shares by which these may differ and be alike; a sample begins or ends within a pass."""
BLOCKS, BRANCHES = 40, 2  # of a step of the full model, to which cells with fewer are scaled
SAME = ["engine", "gpus", "interconnect", "gpu_model", "torch", "compiled", "tokens", "blocks",
        "branches", "prefetch", "allocations", "waits"]  # fmt: skip
USUAL = {"slots": None, "residents": 0, "shard": False, "copy streams": 1, "priority": 0}
"""Columns and settings of `stream` in which two runs may differ."""
WAITS = ["event_waits", "stream_waits", "host_syncs"]

COLUMNS = ["changed", "run_a", "run_b", "change", "together_with"]


def causes(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Find for each cause, machine and work the pair of runs that comes closest to removing it.

    Rows have the `cause`, its `number` and the baseline's guess (``estimate_low_s`` to
    ``estimate_high_s``); `run_a`, which has it, and `run_b`, which has not; the setting that makes
    it, `changed`, both its values, `change`, and all else that differs, `together_with`; what
    :func:`gaps` has of them, of their overheads for :data:`OWN_RESIDENT`; and ``effect_s`` with its
    ends, the same in seconds of a step of the full model, taken for `scale` of these steps.
    """
    runs = overhead(frames)
    known = _known(frames, runs)
    names = known.index.repeat(len(known)), np.tile(known.index, len(known))
    (a, b), (mine, theirs) = aligned(runs, *names), aligned(known, *names)
    differ, stream, rows = differences(mine, theirs), a.engine == "stream", []
    plain = a.prefetch.isna() | (a.prefetch == 1)
    here = plain & (a.group == b.group) & (differ.windows | ~stream)
    alike = (a[key] == b[key] for key in ("name", "gpu_model", "tokens", "blocks"))
    elsewhere = reduce(and_, alike, plain & ~stream & (a.overhead + b.overhead).notna())
    for changed, (_, more) in MADE_BY.items():
        # What windows take away is contention: beside it no other cause is to be seen.
        alone = here & (~differ.windows | (changed == "windows"))
        told = (elsewhere if changed in OWN_RESIDENT else alone) & differ[changed]
        # Where copies have the link to themselves, no contention goes away.
        told &= (a.interconnect == "PCIe path") | (changed != "gpus")
        told &= more(mine[changed], theirs[changed])
        own = [changed, "interconnect"] if changed == "gpus" else [changed]
        others = differ[told].drop(columns=own)
        work = [a.loc[told, key] for key in ("machine", "cfg_parallel", "tokens", "blocks")]
        for at in others.sum(axis=1).groupby(work).idxmin():
            shown = {key: _shown(key, mine.at[at, key], theirs.at[at, key])
                     for key in [changed, *others.columns[others.loc[at]]]}  # fmt: skip
            change = shown.pop(changed).removeprefix(changed).strip()
            rows.append((changed, a.run[at], b.run[at], change, [*shown.values()]))
    found = pd.DataFrame(rows, columns=COLUMNS)
    a, b = aligned(runs, found.run_a, found.run_b)
    own = found.changed.isin(OWN_RESIDENT)
    gap = gaps(runs, found.run_a, found.run_b, own)
    found = found.assign(
        cause=found.changed.map(lambda name: MADE_BY[name][0]), name_a=a["name"], name_b=b["name"],
        machine_b=b.machine, scale=BLOCKS * BRANCHES / (a.blocks * a.branches).astype(float),
    ).join(gap)  # fmt: skip
    for end in ("", "_low", "_high"):
        step = a.resident_s.where(own, b.step_s)
        found[f"effect{end}_s"] = found.scale * step * gap[f"difference{end}"]
    for end in ("low", "high"):
        found[f"estimate_{end}_s"] = ("s7." + found.cause + f".{end}").map(facts.number)
    found["number"] = found.cause.map(CAUSES.index) + 1
    return found.sort_values(["number", "changed", "machine", "work"], ignore_index=True)


def differences(ones: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Tell in which settings pairs of runs are not the same (:data:`ALIKE`).

    Boards and clocks that are not known are not the same; what neither run has is.
    """
    same = ones.eq(others) | (ones.isna() & others.isna())
    for name, most in ALIKE.items():
        mine, theirs = (each[name].astype(float) for each in (ones, others))
        same[name] |= np.maximum(mine, theirs) <= np.minimum(mine, theirs) * (1 + most)
    return ~same | ones[["boards", "clock"]].isna().reindex(columns=same.columns, fill_value=False)


def _shown(name: str, *values: Any) -> str:
    """ "waits 158 → 77": a setting with its two values."""

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(value)
        if value is False or pd.isna(value):
            return "none"
        if name == "bytes":
            return gigabytes(value, 3).replace("\u00a0", " ")
        if isinstance(value, float):
            return f"{value:.{4 if value >= 1e3 else 3}g}"
        return "yes" if value is True else str(value)

    return f"{name} {' → '.join(map(word, values))}"


def _known(frames: Frames, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that may be one of a pair, with every setting in which two may differ."""
    counters = frames.counters.query("kind == 'clean' and rank == 0")
    steps = frames.steps.groupby(["run", "iteration"]).size().rename("steps")
    counters = counters.join(steps, on=["run", "iteration"]).drop_duplicates(["run", "counter"])
    a_step = (counters.measured / counters.steps).groupby([counters.run, counters.counter]).first()
    a_step = a_step.unstack().reindex(columns=["allocations", *WAITS]).astype(float)
    runs = runs[runs.engine.isin(("layerwise", "sglang", "stream")) & runs.vram_budget_gb.isna()]
    runs = runs.join(a_step.assign(waits=a_step[WAITS].sum(axis=1, min_count=1)))
    chosen = {name: [settings.get(name.replace(" ", "_"), usual) for settings in runs.settings]
              for name, usual in USUAL.items()}  # fmt: skip
    visits = [settings.get("branches_per_visit", 1) for settings in runs.settings]
    visits = np.minimum(np.array(visits, int), runs.branches.astype(int))
    known = runs[SAME].assign(
        **chosen, windows=["timed" if each.get("windows") else "none" for each in runs.settings],
        **{"branches a visit": visits}, bytes=runs.h2d_step_bytes,
        boards=runs.boards.where(runs.boards.astype(bool)), clock=runs.sm_mhz,
    )  # fmt: skip
    return known.astype(object).where(known.notna(), np.nan)
