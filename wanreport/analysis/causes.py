"""The baseline's five causes (its section 7), each by the runs that come closest to removing it.

Two runs tell what a cause costs where they differ in nothing but the setting that makes it. Hardly
any two do, so of all pairs the one with the fewest other settings is taken, and these are listed.
A pair without any other is found in the same way, as soon as it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import Facts, Row, to_measure
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS
from wanreport.words import gigabytes

CAUSES = {"sync": ("waits",), "compile": ("compiled",), "alloc": ("allocations",),
          "contention": ("windows", "interconnect", "gpus"), "late": ("prefetch",)}  # fmt: skip
"""The causes, in the baseline's order and by the names of its facts, and what removes each."""

OWN_RESIDENT = ("compiled", "interconnect", "gpus")
"""Settings that make another step even without offload: runs are held against their `resident`."""

ALIKE = {"clock": SAME_CLOCKS, "bytes": 0.1, "allocations": 0.1, "waits": 0.1}
"""Shares by which these may differ and be alike; a sample begins or ends within a pass."""

BLOCKS, BRANCHES = 40, 2
"""Of a step of the full model, to which cells with fewer are scaled."""

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
    changed, change, together_with, single
        The setting that makes the cause, its two values, every other setting in which the runs
        differ as "name before → after", and whether there is none.
    effect_s, effect_low_s, effect_high_s
        By how much a step of `run_a` is longer for all of that, with what both intervals allow. For
        a setting of :data:`OWN_RESIDENT`: by how much it is further from its own `resident`.
    difference, difference_low, difference_high, allowance, claim
        The same as a share of `run_b`'s step, or of `resident`'s.
    scale, step_effect_s, step_effect_low_s, step_effect_high_s
        How many of these steps a step of the full model is taken for, and the effect times that: an
        extrapolation where `scale` is not 1.
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
            cause = next(cause for cause, names in CAUSES.items() if changed in names)
            found[key] = {
                "cause": cause, "changed": changed, "change": _shown("", *changes[changed]),
                "together_with": others, "single": not others, **_effect(a, b, changed, cost),
            }  # fmt: skip
    rows = [dict.fromkeys(("run_a", "run_b")) | row for row in (*found.values(), *_missing(frames))]
    table = pd.DataFrame(rows).assign(
        number=lambda t: [list(CAUSES).index(cause) + 1 for cause in t.cause],
        estimate_low_s=lambda t: [facts.number(f"s7.{cause}.low") for cause in t.cause],
        estimate_high_s=lambda t: [facts.number(f"s7.{cause}.high") for cause in t.cause],
    )
    return table.sort_values(["number", "changed", "machine", "work"], ignore_index=True)


def _candidates(frames: Frames, cost: pd.DataFrame
                ) -> Iterator[tuple[Row, Row, str, dict[str, tuple[Any, Any]]]]:  # fmt: skip
    """Pairs of comparable runs of which only the first has a cause; its setting; what differs."""
    alike = ("name", "gpu_model", "tokens", "blocks")
    for (a, mine), (b, theirs) in product(_known(frames, cost), repeat=2):
        if mine["prefetch"] not in (1, None):
            continue  # the baseline asks about the default
        here = a["group"] == b["group"]
        elsewhere = all(a[key] == b[key] for key in alike) and a["engine"] != "stream"
        if not (here or elsewhere):
            continue
        changes = differences(mine, theirs)
        # What windows take away is contention: beside it no other cause is to be seen.
        here = here and ("windows" in changes or a["engine"] != "stream")
        for changed, both in changes.items():
            if changed in OWN_RESIDENT:
                fits = elsewhere and pd.notna(a["overhead"] + b["overhead"])
            else:
                fits = here and changed == "windows" if "windows" in changes else here
            if fits and _has_cause(changed, *both):
                yield a, b, changed, changes


def _has_cause(changed: str, one: Any, two: Any) -> bool:
    """Whether a setting makes a cause, and of two values the first more of it."""
    if one is None or two is None or not any(changed in names for names in CAUSES.values()):
        return False
    if changed in ("windows", "interconnect"):
        return (one, two) in (("none", "timed"), ("PCIe path", "NVLink"))
    return bool(one < two if changed == "prefetch" else one > two)


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of two runs that are not the same (:data:`ALIKE`), with both values.

    Boards and clocks that are not known are not the same; what neither run has is.
    """
    return {name: (one[name], two[name]) for name in one
            if not _same(name, one[name], two[name])}  # fmt: skip


def _same(name: str, one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two and name not in ("boards", "clock")
    if name in ALIKE:
        return bool(max(one, two) <= min(one, two) * (1 + ALIKE[name]))
    return bool(one == two)


def _shown(name: str, *values: Any) -> str:
    """ "waits 158 → 77": a setting with its two values."""

    def word(value: Any) -> str:
        if isinstance(value, (bool, tuple)) or value is None:
            return " ".join(value) if isinstance(value, tuple) else "yes" if value else "none"
        if name == "bytes":
            return gigabytes(value, 3).replace("\u00a0", " ")
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return f"{name} {' → '.join(map(word, values))}".strip()


def _counts(frames: Frames) -> pd.DataFrame:
    """Allocations and waits of a step, on rank 0, by run; NaN where they were not counted."""
    columns = ["allocations", "event_waits", "stream_waits", "host_syncs"]
    if frames.counters.empty:
        return pd.DataFrame(columns=["allocations", "waits"], dtype=float)
    counters = frames.counters[(frames.counters.kind == "clean") & (frames.counters["rank"] == 0)]
    steps = frames.steps.groupby(["run", "iteration"]).size().rename("steps")
    counters = counters.join(steps, on=["run", "iteration"]).drop_duplicates(["run", "counter"])
    counts = counters.set_index(["run", "counter"]).eval("measured / steps").unstack()
    counts = counts.reindex(columns=columns).astype(float)
    waits = counts[columns[1:]].sum(axis=1, min_count=1)
    return pd.DataFrame({"allocations": counts.allocations, "waits": waits})


def _known(frames: Frames, cost: pd.DataFrame) -> list[tuple[Row, dict[str, Any]]]:
    """The runs that may be one of a pair, each with every setting in which two may differ."""
    if "overhead" not in cost:
        return []
    counts = _counts(frames)
    runs = cost[cost.engine.isin(("layerwise", "sglang", "stream")) & cost.vram_budget_gb.isna()]
    found = []
    for row in runs.join(counts).to_dict("records"):
        chosen = row["settings"] or {}
        known = {
            **{name: row[name] for name in ("engine", "gpus", "interconnect", "gpu_model", "torch",
               "compiled", "tokens", "blocks", "branches", "prefetch", "allocations", "waits")},
            "slots": chosen.get("slots"), "residents": chosen.get("residents", 0),
            "shard": chosen.get("shard", False), "copy streams": chosen.get("copy_streams", 1),
            "priority": chosen.get("priority", 0),
            "windows": "timed" if chosen.get("windows") else "none",
            "branches a visit": min(chosen.get("branches_per_visit", 1), row["branches"]),
            "bytes": row["h2d_step_bytes"], "boards": row["boards"] or None, "clock": row["sm_mhz"],
        }  # fmt: skip
        found.append((row, {k: None if v is pd.NA or v != v else v for k, v in known.items()}))
    return found


def _effect(a: Row, b: Row, changed: str, cost: pd.DataFrame) -> dict[str, Any]:
    if changed in OWN_RESIDENT:
        pairs = [(row, cost.loc[row["reference"]]) for row in (a, b)]
        told = compare.gap_difference(pairs[0], pairs[1])
        effect = [a["resident_s"] * told[f"difference{end}"] for end in ("", "_low", "_high")]
    else:
        told = compare.difference(a, b, compare.pair_drift(a, b))
        effect = [told[name] for name in ("step_difference_s", "low_s", "high_s")]
    ends = {
        f"{key}_{end}": row[key] for end, row in (("a", a), ("b", b)) for key in ("run", "name")
    }
    scale = BLOCKS / a["blocks"] * BRANCHES / a["branches"]
    by_name = dict(zip(("effect_s", "effect_low_s", "effect_high_s"), effect, strict=True))
    shares = ("difference", "difference_low", "difference_high", "allowance", "claim")
    return {
        **ends, "machine": a["machine"], "machine_b": b["machine"], "work": a["work"],
        "scale": scale, **by_name,
        **{f"step_{name}": scale * value for name, value in by_name.items()},
        **{key: told[key] for key in shares},
    }  # fmt: skip


def _missing(frames: Frames) -> Iterator[dict[str, Any]]:
    """A row for each of :data:`PAIRS` that no machine has measured whole."""
    runs = frames.full_scale()
    machines = runs.groupby(["interconnect", "machine"]).job.agg(set) if len(runs) else {}
    for cause, path, jobs in PAIRS:
        if not any(path in ("", there) and done.issuperset(jobs)
                   for (there, _), done in dict(machines).items()):  # fmt: skip
            todo = to_measure(frames, *(f"campaign/{job}" for job in jobs))
            yield {"cause": cause, "machine": path, "work": "", "changed": "", **todo._asdict()}
