"""The baseline's five causes (its section 7), each by the runs that come closest to removing it.

Two runs tell what a cause costs where they differ in nothing but the setting that makes it. Hardly
any two do, so of all pairs the one with the fewest other settings is taken, and these are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import Facts, Row, over_resident, to_measure, told
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS
from wanreport.words import gigabytes

CAUSES = ["sync", "compile", "alloc", "contention", "late"]
"""In the baseline's order, by the names of its facts."""
MADE_BY = {"waits": "sync", "compiled": "compile", "allocations": "alloc", "prefetch": "late",
           **dict.fromkeys(("windows", "interconnect", "gpus"), "contention")}  # fmt: skip
"""The setting that makes a cause."""
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

ONE, TWO = "480p-1gpu-layerwise", "480p-2gpu-layerwise"
PAIRS = (
    ("sync", "", (ONE, "480p-1gpu-stream")),
    ("compile", "", (ONE, "480p-1gpu-resident", f"{ONE}-compiled", "480p-1gpu-resident-compiled")),
    ("alloc", "", (ONE, "480p-1gpu-stream")),
    ("contention", "PCIe path", (TWO, "480p-2gpu-resident", "480p-2gpu-stream")),
    ("contention", "NVLink", (TWO, "480p-2gpu-resident")),
    ("late", "", (ONE, f"{ONE}-prefetch3")),
    ("late", "PCIe path", (TWO, f"{TWO}-prefetch3")),
)
"""Jobs that tell of a cause, to run on one machine; and the path between its GPUs if it counts."""


def causes(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Find for each cause, machine and work the pair of runs that comes closest to removing it.

    Returns
    -------
    number, cause, estimate_low_s, estimate_high_s
        The cause, and the baseline's guess of what it costs in a step.
    run_a, run_b, name_a, name_b, machine, machine_b, work
        The run that has the cause, and the one that has not; machine and work are of the first.
    changed, change, together_with
        The setting that makes the cause, its two values, and all else that differs.
    difference, difference_low, difference_high, allowance, claim
        By how much a step of `run_a` is longer for all of that, as a share of `run_b`'s. For a
        setting of :data:`OWN_RESIDENT`: by how much its overhead over its own `resident` is larger.
    scale, effect_s, effect_low_s, effect_high_s
        The same in seconds of a step of the full model, which is taken for `scale` of these steps.
    command, minutes
        In rows without runs: what would measure the pair.
    """
    cost = compare.overhead(frames)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for a, b, changed, changes in _candidates(frames, cost):
        own = (changed, "interconnect") if changed == "gpus" else (changed,)
        others = [_shown(name, *both) for name, both in changes.items() if name not in own]
        key = changed, a["machine"], a["tokens"], a["blocks"]
        if key not in found or len(others) < len(found[key]["together_with"]):
            found[key] = {
                "cause": MADE_BY[changed], "changed": changed, "machine": a["machine"],
                "change": _shown("", *changes[changed]), "together_with": others,
                "run_a": a["run"], "run_b": b["run"], "name_a": a["name"], "name_b": b["name"],
                "machine_b": b["machine"], "work": a["work"], **_effect(a, b, changed, cost),
            }  # fmt: skip
    table = pd.DataFrame([*found.values(), *_missing(frames)])
    table["number"] = table.cause.map(CAUSES.index) + 1
    for end in ("low", "high"):
        table[f"estimate_{end}_s"] = ("s7." + table.cause + f".{end}").map(facts.number)
    return table.sort_values(["number", "changed", "machine", "work"], ignore_index=True)


def _candidates(frames: Frames, cost: pd.DataFrame
                ) -> Iterator[tuple[Row, Row, str, dict[str, tuple[Any, Any]]]]:  # fmt: skip
    """Pairs of comparable runs of which only the first has a cause; its setting; what differs."""
    for (a, mine), (b, theirs) in product(_known(frames, cost), repeat=2):
        changes = differences(mine, theirs)
        here = a["group"] == b["group"] and ("windows" in changes or a["engine"] != "stream")
        elsewhere = a["engine"] != "stream" and all(
            a[key] == b[key] for key in ("name", "gpu_model", "tokens", "blocks"))  # fmt: skip
        for changed in [name for name in changes if name in MADE_BY]:
            if changed in OWN_RESIDENT:
                fits = elsewhere and pd.notna(a["overhead"] + b["overhead"])
            else:  # what windows take away is contention: beside it no other cause is to be seen
                fits = here and changed == ("windows" if "windows" in changes else changed)
            if fits and mine["prefetch"] in (1, None) and _has_cause(changed, mine, theirs):
                yield a, b, changed, changes


def _has_cause(changed: str, mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether the setting makes a cause, and of the two the first has more of it."""
    one, two = mine[changed], theirs[changed]
    if one is None or two is None:
        return False
    if changed in ("windows", "interconnect"):
        return (one, two) in (("none", "timed"), ("PCIe path", "NVLink"))
    if changed == "gpus" and mine["interconnect"] != "PCIe path":
        return False  # where copies have the link to themselves, one GPU takes no contention away
    return bool(one < two if changed == "prefetch" else one > two)


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of two runs that are not the same (:data:`ALIKE`), with both values.

    Boards and clocks that are not known are not the same; what neither run has is.
    """

    def same(name: str, mine: Any, theirs: Any) -> bool:
        if mine is None or theirs is None:
            return mine is theirs and name not in ("boards", "clock")
        if name in ALIKE:
            return bool(max(mine, theirs) <= min(mine, theirs) * (1 + ALIKE[name]))
        return bool(mine == theirs)

    return {name: (one[name], two[name]) for name in one if not same(name, one[name], two[name])}


def _shown(name: str, *values: Any) -> str:
    """ "waits 158 → 77": a setting with its two values."""

    def word(value: Any) -> str:
        if isinstance(value, (bool, tuple)) or value is None:
            return " ".join(value) if isinstance(value, tuple) else "yes" if value else "none"
        if name == "bytes":
            return gigabytes(value, 3).replace("\u00a0", " ")
        return f"{value:.{4 if value >= 1e3 else 3}g}" if isinstance(value, float) else str(value)

    return f"{name} {' → '.join(map(word, values))}".strip()


def _known(frames: Frames, cost: pd.DataFrame) -> list[tuple[Row, dict[str, Any]]]:
    """The runs that may be one of a pair, each with every setting in which two may differ."""
    if "overhead" not in cost:
        return []
    runs = cost[cost.engine.isin(("layerwise", "sglang", "stream")) & cost.vram_budget_gb.isna()]
    found = []
    for row in runs.join(_counts(frames)).to_dict("records"):
        chosen = row["settings"] or {}
        known = {
            **{name: row[name] for name in SAME},
            **{name: chosen.get(name.replace(" ", "_"), usual) for name, usual in USUAL.items()},
            "windows": "timed" if chosen.get("windows") else "none",
            "branches a visit": min(chosen.get("branches_per_visit", 1), row["branches"]),
            "bytes": row["h2d_step_bytes"], "boards": row["boards"] or None, "clock": row["sm_mhz"],
        }  # fmt: skip
        found.append((row, {k: None if v is pd.NA or v != v else v for k, v in known.items()}))
    return found


def _counts(frames: Frames) -> pd.DataFrame:
    """Allocations and waits of a step, on rank 0, by run; NaN where they were not counted."""
    counters = frames.counters.query("kind == 'clean' and rank == 0")
    steps = frames.steps.groupby(["run", "iteration"]).size().rename("steps")
    counters = counters.join(steps, on=["run", "iteration"]).drop_duplicates(["run", "counter"])
    each = (counters.measured / counters.steps).groupby([counters.counter, counters.run]).first()
    each = each.unstack(0).reindex(columns=["allocations", *WAITS]).astype(float)
    return pd.DataFrame({"allocations": each.allocations,
                         "waits": each[WAITS].sum(axis=1, min_count=1)})  # fmt: skip


def _effect(a: Row, b: Row, changed: str, cost: pd.DataFrame) -> dict[str, Any]:
    own = changed in OWN_RESIDENT
    gap, unit = (over_resident(cost, a, b), a["resident_s"]) if own else (told(a, b), b["step_s"])
    scale = BLOCKS / a["blocks"] * BRANCHES / a["branches"]
    effects = {f"effect{end}_s": scale * unit * gap[f"difference{end}"]
               for end in ("", "_low", "_high")}  # fmt: skip
    return {**gap, "scale": scale, **effects}


def _missing(frames: Frames) -> Iterator[dict[str, Any]]:
    """A row for each of :data:`PAIRS` that no machine has measured whole."""
    runs = frames.full_scale()
    done = runs.groupby(["interconnect", "machine"]).job.agg(set) if len(runs) else {}
    for cause, path, jobs in PAIRS:
        there = [ran for (here, _), ran in done.items() if path in ("", here)]
        if not any(ran.issuperset(jobs) for ran in there):
            todo = to_measure(frames, *(f"campaign/{job}" for job in jobs))
            yield {"cause": cause, "machine": path, "work": "", "changed": "", "run_a": None,
                   **todo}  # fmt: skip
