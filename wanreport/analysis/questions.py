"""The open questions of the baseline's section 10: the pairs of runs that answer them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.compare import NEW, OLD
from wanreport.analysis.frames import Frames

JOBS = [f"campaign/480p-2gpu-{engine}" for engine in ("resident", NEW, *OLD)]
MINUTES = 10
BENCH = f"python -m benchmarks --ranks 2 --budget-minutes {MINUTES} --tokens "
CAMPAIGNS = {
    2: f"for P in 0 1; do NCCL_P2P_DISABLE=$P {BENCH}10000 --engines layerwise:prefetch=1; done",
    3: f"{BENCH}14040 --engines stream:slots=3 stream:slots=3,shard=true",
    4: f"{BENCH}3120 --turns 2 --engines stream stream:transfer=packed stream:transfer=fp8",
    5: f"{BENCH}14040 --engines stream:slots=3 stream:slots=3,priority=-1",
    6: f"{BENCH}14040 --engines stream:slots=4 stream:slots=4,copy_streams=2",
}
"""What would answer a question: a few cells each, in :data:`MINUTES`, start included."""
SETTINGS = {3: ("shard", False), 4: ("transfer", "bf16"), 5: ("priority", 0),
            6: ("copy_streams", 1), 7: ("windows", None)}  # fmt: skip
"""Questions about one setting of `stream`, and its usual value."""


def questions(frames: Frames) -> pd.DataFrame:
    """Answer the baseline's open questions (its section 10), each by pairs of runs.

    A row for each pair, with `number`, 1 to 7, `one` and `two`, the names of the runs, and what
    :func:`compare.gaps` has of their steps. In question 2 the first ran over PCIe and the second
    over NVLink, and overheads over resident are compared. `exact` says whether the pair is what was
    asked for, or only near it. A question without an exact pair has a row without runs, with
    `command` and `minutes`; "" and NaN where no engine does so.
    """
    runs = compare.overhead(frames)
    runs = runs[runs.latest & ~runs.again & ~runs.compiled & ~runs.cfg_parallel
                & runs.vram_budget_gb.isna()]  # fmt: skip
    found = pd.DataFrame(_answers(runs), columns=["number", "exact", "run_one", "run_two"])
    told = compare.gaps(frames.runs, found.run_one, found.run_two, found.number == 2)
    names = {key: found[f"run_{key}"].map(frames.runs["name"]) for key in ("one", "two")}
    table = found.assign(**names, **told)
    todo = []
    for number in set(range(1, 8)) - {*found.number[found.exact]}:
        minutes = MINUTES * (1 + (number == 2)) if number in CAMPAIGNS else math.nan
        ask = {"command": CAMPAIGNS.get(number, ""), "minutes": minutes}
        ask = compare.to_measure(frames, *JOBS) if number == 1 else ask
        todo.append({"number": number, "exact": False, "run_one": None, **ask})
    table = pd.concat([table, pd.DataFrame(todo, columns=["number", "exact", "run_one", *ask])])
    return table.sort_values(["number", "exact"], ascending=[True, False], kind="stable",
                             ignore_index=True)  # fmt: skip


def _answers(runs: pd.DataFrame) -> Iterator[tuple[int, bool, str, str]]:
    """Each question's number, whether the pair is just what was asked for, and the pair."""

    def pairs(ones: pd.DataFrame, others: pd.DataFrame, *on: str) -> pd.DataFrame:
        return ones.merge(others, on=[*on] or ["group"], suffixes=("_one", "_two"))

    new = runs[runs.engine.isin((NEW, "sglang")) & (runs.prefetch.fillna(1) == 1)]
    on_two = new[(new.gpus == 2) & (new.engine == NEW)]
    for pair in pairs(on_two, runs[runs.engine.isin(OLD)]).itertuples():
        yield 1, pair.source_one == "job", pair.run_one, pair.run_two

    near = new[new.tokens.between(7_800, 14_040) & new.overhead.notna()]
    paths = [near[near.interconnect == path] for path in ("PCIe path", "NVLink")]
    both = pairs(*paths, "gpu_model", "gpus", "tokens", "blocks")
    same = (both[f"{name}_one"] == both[f"{name}_two"] for name in ("engine", "branches"))
    both = both.copy().assign(alike=sum(each.astype(int) for each in same))
    both = both.sort_values(["tokens", "alike"], ascending=[True, False], kind="stable")
    for pair in both.drop_duplicates("tokens").itertuples():  # of each length the most alike
        yield 2, pair.tokens == 10_000 and pair.alike == 2, pair.run_one, pair.run_two

    streams = runs[runs.engine == "stream"]
    for pair in pairs(streams, streams).itertuples():
        mine, theirs = pair.settings_one, pair.settings_two
        changed = {key for key in mine if mine[key] != theirs.get(key)}
        for number, (key, usual) in SETTINGS.items():
            # Windows follow the parts of a block, not the schedule, so they are only near it.
            others = changed - {key, "slots" if number == 7 else key}
            if key in changed and not others and theirs[key] == usual:
                # Question 4 asks for fewer bits; packed blocks are only near it.
                exact = number != 7 and mine[key] != "packed"
                yield number, exact, pair.run_one, pair.run_two
