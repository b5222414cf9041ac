"""Pairs of runs that differ in a setting: what it costs, by the runs that come closest to telling.

Two runs tell what a setting costs where they differ in nothing else. Hardly any two do, so of all
pairs the one with the fewest other settings is taken, and these are listed.
"""

from collections.abc import Callable
from operator import gt, lt
from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis.compare import NEW, OLD, aligned, overhead, told
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS, gap_difference
from wanreport.words import NBSP, gigabytes

ASKED: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "waits": ("sync", gt), "compiled": ("compile", gt), "allocations": ("alloc", gt),
    "gpus": ("contention", lambda a, b: b == 1),
    "interconnect": ("contention", lambda a, b: (a == "PCIe path") & (b == "NVLink")),
    "windows": ("contention", lt),  # none, timed
    "prefetch": ("late", lt), "engine": ("", lambda a, b: (a == NEW) & b.isin(OLD)),
    "shard": ("", gt), "transfer": ("", lambda a, b: b == "bf16"), "priority": ("", lt),
    "copy streams": ("", gt),
}  # fmt: skip
"""A setting, the baseline's cause that it makes (section 7), and whether the first of two runs has
more of it. Settings that make no cause are its open questions (section 10)."""
OWN_RESIDENT = ("compiled", "interconnect", "gpus")
"""Settings that make another step even without offload: runs are held against their `resident`."""
FOLLOWS = {"gpus": ["interconnect"], "shard": ["bytes", "waits"], "transfer": ["bytes", "waits"],
           "copy streams": ["waits"]}  # fmt: skip
"""What a setting changes itself."""
ALIKE = {"clock": SAME_CLOCKS, "bytes": 0.1, "allocations": 0.1, "waits": 0.1}
"""Shares by which these may differ and be alike; a sample begins or ends within a pass."""
BLOCKS, BRANCHES = 40, 2  # of a step of the full model, to which cells with fewer are scaled
SAME = ["engine", "gpus", "interconnect", "gpu_model", "torch", "compiled", "tokens", "blocks",
        "branches", "prefetch", "allocations", "waits"]  # fmt: skip
USUAL = {"slots": None, "residents": 0, "shard": False, "copy streams": 1, "priority": 0,
         "transfer": "bf16"}  # fmt: skip
"""Columns and settings of `stream` in which two runs may differ."""
WAITS = ["event_waits", "stream_waits", "host_syncs"]


def pairs(frames: Frames) -> pd.DataFrame:
    """Find for each setting asked about, machine and work the pair that comes closest to telling.

    `run_a` has more of what is `changed`, and so the `cause`; `change` are both its values,
    `together_with` all else that differs; then what is :func:`told` of both, of their overheads for
    :data:`OWN_RESIDENT`. ``effect_s`` is for a step of the full model, `scale` of these steps.
    """
    runs = overhead(frames)
    known = _known(frames, runs)
    names = known.index.repeat(len(known)), np.tile(known.index, len(known))
    (a, b), (mine, theirs) = aligned(runs, *names), aligned(known, *names)
    differ, stream, rows = differences(mine, theirs), a.engine == "stream", []
    plain = (a.prefetch.fillna(1) == 1) & ~a.engine.isin(OLD)
    here, both = plain & (a.group == b.group), stream & (b.engine == "stream")
    alike = ["gpu_model", "tokens", "blocks", "name"]
    elsewhere = plain & ~stream & a[alike].eq(b[alike]).all(axis=1)
    elsewhere &= (a.overhead + b.overhead).notna()
    for changed, (cause, more) in ASKED.items():
        # What windows take away is contention: beside it no other cause is to be seen. And blocks
        # travel alike, unless that is what was changed.
        same = here & (~differ.transfer | (changed == "transfer"))
        which = {"windows": same, "engine": here & ~stream & (a.gpus == 2)}.get(
            changed, ~differ.windows & same & (~stream if cause else both))  # fmt: skip
        which = (elsewhere if changed in OWN_RESIDENT else which) & differ[changed]
        which &= b.engine.isin(OLD) == (changed == "engine")
        # Where copies have the link to themselves, or take longer than computing anyway, it is not
        # contention that goes away.
        shared = (a.interconnect == "PCIe path") & ~(a.limit_s > a.resident_s)
        which &= shared | (changed != "gpus")
        which &= more(mine[changed], theirs[changed])
        others = differ[which].drop(columns=[changed, *FOLLOWS.get(changed, ())])
        work = [a.loc[which, key] for key in ("machine", "cfg_parallel", "tokens", "blocks")]
        sides = theirs[which].engine, mine[which].transfer
        for at in others.sum(axis=1).groupby([*work, *sides]).idxmin():
            change, *together = (
                f"{key} {' → '.join(_word(key, each.at[at, key]) for each in (mine, theirs))}"
                for key in [changed, *others.columns[others.loc[at]]]
            )
            change = change.removeprefix(changed).strip()
            rows.append((cause, changed, a.run[at], b.run[at], change, together))
    columns = ["cause", "changed", "run_a", "run_b", "change", "together_with"]
    found = pd.DataFrame(rows, columns=columns)
    a, b = aligned(runs, found.run_a, found.run_b)
    own, gap = found.changed.isin(OWN_RESIDENT), pd.DataFrame(told(a, b))
    over = [(each, runs.loc[each.reference].set_axis(each.index)) for each in (a[own], b[own])]
    wide = pd.DataFrame(gap_difference(*over)).drop(columns=["gap", "gap_before"])
    gap.loc[own, [*wide]] = wide
    step = a.resident_s.where(own, b.step_s)
    scale = BLOCKS * BRANCHES / (a.blocks * a.branches).astype(float)
    effects = {f"effect{end}_s": scale * step * gap[f"difference{end}"]
               for end in ("", "_low", "_high")}  # fmt: skip
    return found.assign(name_a=a["name"], name_b=b["name"], machine_b=b.machine, scale=scale,
                        tokens=a.tokens, source=a.source, **effects).join(gap)  # fmt: skip


def differences(ones: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Tell in which settings pairs of runs are not the same (:data:`ALIKE`).

    Boards and clocks that are not known are not the same; what neither run has is.
    """
    same = ones.eq(others) | (ones.isna() & others.isna())
    for name, most in ALIKE.items():
        mine, theirs = (each[name].astype(float) for each in (ones, others))
        same[name] |= np.maximum(mine, theirs) <= np.minimum(mine, theirs) * (1 + most)
    return ~same | ones[["boards", "clock"]].isna().reindex(columns=same.columns, fill_value=False)


def _word(name: str, value: Any) -> str:
    """One of the values in "waits 158 → 77"."""
    if isinstance(value, tuple):
        return " ".join(value)
    if value is False or pd.isna(value):
        return "none"
    if name == "bytes":
        return gigabytes(value, 3).replace(NBSP, " ")
    if isinstance(value, float):
        return f"{value:.{4 if value >= 1e3 else 3}g}"
    return "yes" if value is True else str(value)


def _known(frames: Frames, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that may be one of a pair, with every setting in which two may differ."""
    steps = frames.steps.groupby(["run", "iteration"]).size().rename("steps")
    counted = frames.counters.query("kind == 'clean' and rank == 0")
    counted = counted.drop_duplicates(["run", "counter"]).join(steps, on=["run", "iteration"])
    a_step = counted.assign(a_step=counted.measured / counted.steps)
    a_step = a_step.pivot(index="run", columns="counter", values="a_step")
    a_step = a_step.reindex(columns=["allocations", *WAITS]).astype(float)
    engines = (NEW, "sglang", "stream", *OLD)
    runs = runs[runs.engine.isin(engines) & runs.vram_budget_gb.isna() & ~runs.again]
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
