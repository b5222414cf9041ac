"""Pairs of runs for the baseline's five causes (its section 7) and open questions (section 10).

Two runs tell what a cause costs where they differ in nothing but the setting that makes it. Hardly
any two do, so of all pairs the one with the fewest other settings is taken, and these are listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import gt, lt
from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.compare import NEW, OLD, aligned, gaps
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS
from wanreport.words import NBSP, gigabytes

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


def causes(frames: Frames) -> pd.DataFrame:
    """Find for each cause, machine and work the pair of runs that comes closest to removing it.

    Rows have the `cause`; `run_a`, which has it, and `run_b`, which has not; the setting that makes
    it, `changed`, both its values, `change`, and all else that differs, `together_with`; what
    :func:`gaps` has of them, of their overheads for :data:`OWN_RESIDENT`; and ``effect_s`` with its
    ends, the same in seconds of a step of the full model, taken for `scale` of these steps.
    """
    runs = compare.overhead(frames)
    known = _known(frames, runs)
    names = known.index.repeat(len(known)), np.tile(known.index, len(known))
    (a, b), (mine, theirs) = aligned(runs, *names), aligned(known, *names)
    differ, stream, rows = differences(mine, theirs), a.engine == "stream", []
    plain = a.prefetch.isna() | (a.prefetch == 1)
    here = plain & (a.group == b.group) & (differ.windows | ~stream)
    alike = (
        a[["name", "gpu_model", "tokens", "blocks"]] == b[["name", "gpu_model", "tokens", "blocks"]]
    )
    elsewhere = alike.all(axis=1) & plain & ~stream & (a.overhead + b.overhead).notna()
    for changed, (cause, more) in MADE_BY.items():
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
            change, *together = (
                f"{key} {' → '.join(_word(key, each.at[at, key]) for each in (mine, theirs))}"
                for key in [changed, *others.columns[others.loc[at]]]
            )
            change = change.removeprefix(changed).strip()
            rows.append((cause, changed, a.run[at], b.run[at], change, together))
    found = pd.DataFrame(
        rows, columns=["cause", "changed", "run_a", "run_b", "change", "together_with"]
    )
    a, b = aligned(runs, found.run_a, found.run_b)
    own = found.changed.isin(OWN_RESIDENT)
    gap, step = gaps(runs, found.run_a, found.run_b, own), a.resident_s.where(own, b.step_s)
    scale = BLOCKS * BRANCHES / (a.blocks * a.branches).astype(float)
    found = found.assign(
        name_a=a["name"], name_b=b["name"], machine_b=b.machine, scale=scale,
        **{f"effect{end}_s": scale * step * gap[f"difference{end}"] for end in ("", "_low", "_high")},
    ).join(gap)  # fmt: skip
    order = found.cause.map(CAUSES.index)
    found = found.assign(order=order).sort_values(["order", "changed", "machine", "work"])
    return found.drop(columns="order").reset_index(drop=True)


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
    runs = runs[runs.engine.isin((NEW, "sglang", "stream")) & runs.vram_budget_gb.isna()]
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


# Open questions ----------------------------------------------------------------------------------

MINUTES = 10
BENCH = f"python -m benchmarks --ranks 2 --budget-minutes {MINUTES} --tokens "
SETTINGS = {
    3: ("shard", False, "14040 --engines stream:slots=3 stream:slots=3,shard=true"),
    4: (
        "transfer",
        "bf16",
        "3120 --turns 2 --engines stream stream:transfer=packed stream:transfer=fp8",
    ),
    5: ("priority", 0, "14040 --engines stream:slots=3 stream:slots=3,priority=-1"),
    6: ("copy_streams", 1, "14040 --engines stream:slots=4 stream:slots=4,copy_streams=2"),
    7: ("windows", None, ""),
}
"""Questions about one setting of `stream`, its usual value, and a few cells that would answer it."""


def questions(frames: Frames) -> pd.DataFrame:
    """Answer the baseline's open questions, each by pairs of runs.

    A row for each pair, with `number`, 1 to 7, `one` and `two`, the names of the runs, and what
    :func:`compare.gaps` has of their steps. In question 2 the first ran over PCIe and the second
    over NVLink, and overheads over resident are compared. `exact` says whether the pair is what was
    asked for, or only near it. A question without an exact pair has a row without runs, with
    `command` and `minutes`, start included; "" and NaN where no engine does so.
    """
    runs = compare.overhead(frames)
    runs = runs[runs.latest & ~runs.again & ~runs.compiled & ~runs.cfg_parallel
                & runs.vram_budget_gb.isna()]  # fmt: skip
    found = pd.DataFrame(_answers(runs), columns=["number", "exact", "run_one", "run_two"])
    told = gaps(frames.runs, found.run_one, found.run_two, found.number == 2)
    names = {key: found[f"run_{key}"].map(frames.runs["name"]) for key in ("one", "two")}
    jobs = (f"campaign/480p-2gpu-{engine}" for engine in ("resident", NEW, *OLD))
    paths = f"for P in 0 1; do NCCL_P2P_DISABLE=$P {BENCH}10000 --engines {NEW}:prefetch=1; done"
    asks = {1: compare.to_measure(frames, *jobs), 2: {"command": paths, "minutes": 2 * MINUTES}} | {
        number: {"command": BENCH + cells, "minutes": MINUTES} if cells else
        {"command": "", "minutes": math.nan} for number, (*_, cells) in SETTINGS.items()
    }  # fmt: skip
    todo = [{"number": number, "exact": False, "run_one": None, **ask}
            for number, ask in asks.items() if number not in {*found.number[found.exact]}]  # fmt: skip
    todo = pd.DataFrame(todo, columns=["number", "exact", "run_one", "command", "minutes"])
    table = pd.concat([found.assign(**names, **told), todo])
    return table.sort_values(["number", "exact"], ascending=[True, False], kind="stable",
                             ignore_index=True)  # fmt: skip


def _answers(runs: pd.DataFrame) -> Iterator[tuple[int, bool, str, str]]:
    """Each question's number, whether the pair is just what was asked for, and the pair."""
    sides = ("_one", "_two")
    new = runs[runs.engine.isin((NEW, "sglang")) & (runs.prefetch.fillna(1) == 1)]
    on_two = new[(new.gpus == 2) & (new.engine == NEW)]
    olds = runs[runs.engine.isin(OLD)]
    for pair in on_two.merge(olds, on="group", suffixes=sides).itertuples():
        yield 1, pair.source_one == "job", pair.run_one, pair.run_two

    near = new[new.tokens.between(7_800, 14_040) & new.overhead.notna()]
    both = near[near.interconnect == "PCIe path"].merge(
        near[near.interconnect == "NVLink"], on=["gpu_model", "gpus", "tokens", "blocks"],
        suffixes=sides)  # fmt: skip
    both = both.copy()  # merged, it is in many pieces
    both["alike"] = sum((both[f"{name}_one"] == both[f"{name}_two"]).astype(int)
                        for name in ("engine", "branches"))  # fmt: skip
    both = both.sort_values(["tokens", "alike"], ascending=[True, False], kind="stable")
    for pair in both.drop_duplicates("tokens").itertuples():  # of each length the most alike
        yield 2, pair.tokens == 10_000 and pair.alike == 2, pair.run_one, pair.run_two

    streams = runs[runs.engine == "stream"]
    for pair in streams.merge(streams, on="group", suffixes=sides).itertuples():
        mine, theirs = pair.settings_one, pair.settings_two
        changed = {key for key in mine if mine[key] != theirs.get(key)}
        for number, (key, usual, _) in SETTINGS.items():
            # Windows follow the parts of a block, not the schedule, so they are only near it.
            others = changed - {key, "slots" if number == 7 else key}
            if key in changed and not others and theirs[key] == usual:
                # Question 4 asks for fewer bits; packed blocks are only near it.
                exact = number != 7 and mine[key] != "packed"
                yield number, exact, pair.run_one, pair.run_two
