"""The baseline's five causes (its section 7), each by the runs that come closest to removing it.

Two runs tell what a cause costs where they differ in nothing but the setting that makes it. Hardly
any two do, so of all pairs the one with the fewest other settings is taken, and these are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from operator import gt, lt
from typing import Any

import pandas as pd

from wanreport.analysis.compare import Facts, aligned, gaps, overhead
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS
from wanreport.words import gigabytes

CAUSES = ["sync", "compile", "alloc", "contention", "late"]
"""In the baseline's order, by the names of its facts."""
MADE_BY: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "waits": ("sync", gt), "compiled": ("compile", gt), "allocations": ("alloc", gt),
    "prefetch": ("late", lt), "windows": ("contention", lt),  # none, timed
    "interconnect": ("contention", lambda one, two: (one, two) == ("PCIe path", "NVLink")),
    "gpus": ("contention", lambda one, two: two == 1),
}  # fmt: skip
"""The setting that makes a cause, and whether the first of two runs has more of it."""
OWN_RESIDENT = ("compiled", "interconnect", "gpus")
"""Settings that make another step even without offload: runs are held against their `resident`."""
ALIKE = {"clock": SAME_CLOCKS, "bytes": 0.1, "allocations": 0.1, "waits": 0.1}
"""Shares by which these may differ and be alike; a sample begins or ends within a pass."""
BLOCKS, BRANCHES = 40, 2
"""Of a step of the full model, to which cells with fewer are scaled."""
SAME = ["engine", "gpus", "interconnect", "gpu_model", "torch", "compiled", "tokens", "blocks",
        "branches", "prefetch", "allocations", "waits"]  # fmt: skip
USUAL = {"slots": None, "residents": 0, "shard": False, "copy streams": 1, "priority": 0}
"""Columns and settings of `stream` in which two runs may differ."""
WAITS = ["event_waits", "stream_waits", "host_syncs"]
COLUMNS = ["changed", "run_a", "run_b", "change", "together_with"]

Known = dict[str, Any]  # a run's row, or every setting of it in which two runs may differ


def causes(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Find for each cause, machine and work the pair of runs that comes closest to removing it.

    Rows of the `cause` (its `number`, and the baseline's guess of what it costs in a step, from
    ``estimate_low_s`` to ``estimate_high_s``) with `run_a`, which has it, and `run_b`, which has
    not, their `name_a`, `name_b`, `machine`, `machine_b`, and the first one's `work`; the setting
    that makes the cause, `changed`, both its values, `change`, and all else that differs,
    `together_with`. ``difference`` with its ends and claim is by how much a step of `run_a` is
    longer for all of that, as a share of `run_b`'s; for a setting of :data:`OWN_RESIDENT`, by how
    much its overhead over its own resident is larger. ``effect_s`` with its ends is the same in
    seconds of a step of the full model, which is taken for `scale` of these steps.
    """
    runs, rows = overhead(frames), []
    for (a, mine), (b, theirs) in product(_known(frames, runs), repeat=2):
        changes = differences(mine, theirs)
        for changed in _removed(a, b, changes):
            own = (changed, "interconnect") if changed == "gpus" else (changed,)
            others = [_shown(name, *both) for name, both in changes.items() if name not in own]
            change = _shown("", *changes[changed])
            rows.append((changed, a["run"], b["run"], change, others))
    found = pd.DataFrame(rows, columns=COLUMNS)
    a, b = aligned(runs, found.run_a, found.run_b)
    work = [found.changed, a.machine, a.cfg_parallel, a.tokens, a.blocks]
    first = found.together_with.map(len).groupby(work).idxmin().sort_values()
    found, a, b = (each.loc[first].reset_index(drop=True) for each in (found, a, b))
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


def _removed(a: Known, b: Known, changes: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """Settings that make a cause and of which the first run has more, if the two tell of it."""
    if pd.notna(a["prefetch"]) and a["prefetch"] != 1:
        return
    timed, stream = "windows" in changes, a["engine"] == "stream"
    here = a["group"] == b["group"] and (timed or not stream)
    elsewhere = not stream and pd.notna(a["overhead"] + b["overhead"]) and all(
        a[key] == b[key] for key in ("name", "gpu_model", "tokens", "blocks"))  # fmt: skip
    for name, (_, more) in MADE_BY.items():
        # What windows take away is contention: beside it no other cause is to be seen.
        told = elsewhere if name in OWN_RESIDENT else here and timed in (False, name == "windows")
        # Where copies have the link to themselves, no contention goes away.
        told &= name != "gpus" or a["interconnect"] == "PCIe path"
        if told and None not in changes.get(name, [None]) and more(*changes[name]):
            yield name


def differences(one: Known, two: Known) -> dict[str, tuple[Any, Any]]:
    """The settings of two runs that are not the same (:data:`ALIKE`), with both values.

    Boards and clocks that are not known are not the same; what neither run has is.
    """
    found = {}
    for name, mine in one.items():
        theirs = two[name]
        if mine is None or theirs is None:
            same = mine is theirs and name not in ("boards", "clock")
        elif name in ALIKE:
            same = max(mine, theirs) <= min(mine, theirs) * (1 + ALIKE[name])
        else:
            same = mine == theirs
        if not same:
            found[name] = mine, theirs
    return found


def _shown(name: str, *values: Any) -> str:
    """ "waits 158 → 77": a setting with its two values."""

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(value)
        if name == "bytes":
            return gigabytes(value, 3).replace("\u00a0", " ")
        if isinstance(value, float):
            return f"{value:.{4 if value >= 1e3 else 3}g}"
        return {"None": "none", "False": "none", "True": "yes"}.get(str(value), str(value))

    return f"{name} {' → '.join(map(word, values))}".strip()


def _known(frames: Frames, runs: pd.DataFrame) -> list[tuple[Known, Known]]:
    """The runs that may be one of a pair, each with its settings."""
    counters = frames.counters.query("kind == 'clean' and rank == 0")
    steps = frames.steps.groupby(["run", "iteration"]).size().rename("steps")
    counters = counters.join(steps, on=["run", "iteration"]).drop_duplicates(["run", "counter"])
    a_step = (counters.measured / counters.steps).groupby([counters.run, counters.counter]).first()
    a_step = a_step.unstack().reindex(columns=["allocations", *WAITS]).astype(float)
    runs = runs[runs.engine.isin(("layerwise", "sglang", "stream")) & runs.vram_budget_gb.isna()]
    runs = runs.join(a_step.assign(waits=a_step[WAITS].sum(axis=1, min_count=1)))
    found = []
    for row in runs.to_dict("records"):
        chosen = row["settings"]
        known = {
            **{name: row[name] for name in SAME},
            **{name: chosen.get(name.replace(" ", "_"), usual) for name, usual in USUAL.items()},
            "windows": "timed" if chosen.get("windows") else "none",
            "branches a visit": min(chosen.get("branches_per_visit", 1), row["branches"]),
            "bytes": row["h2d_step_bytes"], "boards": row["boards"] or None, "clock": row["sm_mhz"],
        }  # fmt: skip
        found.append((row, {k: None if v is pd.NA or v != v else v for k, v in known.items()}))
    return found
