"""The open questions of the baseline's section 10: the pairs of runs that answer them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.compare import NEW, OLD, rows_of, told
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import Row

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
COLUMNS = ["number", "exact", "one", "two", "machine", "work", "difference", "claim", "run_one",
           "run_two", "command", "minutes"]  # fmt: skip
SETTINGS = {3: ("shard", False), 4: ("transfer", "bf16"), 5: ("priority", 0),
            6: ("copy_streams", 1), 7: ("windows", None)}  # fmt: skip
"""Questions about one setting of `stream`, and its usual value."""


def questions(frames: Frames) -> pd.DataFrame:
    """Answer the baseline's open questions (its section 10), each by pairs of runs.

    A row for each pair, with `number`, 1 to 7, `one` and `two`, the names of the runs, and what
    :func:`told` has of their steps. In question 2 the first ran over PCIe and the second over
    NVLink, and ``difference`` is that of their overheads over resident. `exact` says whether the
    pair is what was asked for, or only near it. A question without an exact pair has a row without
    runs, with `command` and `minutes`; "" and NaN where no engine does so.
    """
    runs = compare.overhead(frames)
    runs = runs[runs.latest & ~runs.again & ~runs.compiled & ~runs.cfg_parallel
                & runs.vram_budget_gb.isna()]  # fmt: skip
    rows = [
        {"number": number, "exact": exact, "one": one["name"], "two": two["name"],
         **told(one, two), **(compare.over_resident(frames.runs, one, two) if number == 2 else {})}
        for number, exact, one, two in _answers(runs)
    ]  # fmt: skip
    for number in set(range(1, 8)) - {row["number"] for row in rows if row["exact"]}:
        minutes = MINUTES * (1 + (number == 2)) if number in CAMPAIGNS else math.nan
        todo = {"command": CAMPAIGNS.get(number, ""), "minutes": minutes}
        rows.append({"number": number, "exact": False, "run_one": None,
                     **(compare.to_measure(frames, *JOBS) if number == 1 else todo)})  # fmt: skip
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*dict.fromkeys([*COLUMNS, *table])])
    return table.sort_values(["number", "exact"], ascending=[True, False], kind="stable",
                             ignore_index=True)  # fmt: skip


def _answers(runs: pd.DataFrame) -> Iterator[tuple[int, bool, Row, Row]]:
    """Each question's number, whether the pair is just what was asked for, and the pair."""

    def pairs(ones: pd.DataFrame, others: pd.DataFrame, *on: str) -> Iterator[tuple[Row, Row]]:
        both = ones.merge(others, on=[*on] or "group")
        return zip(rows_of(runs.loc[both.run_x]), rows_of(runs.loc[both.run_y]), strict=True)

    new = runs[runs.engine.isin((NEW, "sglang")) & (runs.prefetch.fillna(1) == 1)]
    on_two = new[(new.gpus == 2) & (new.engine == NEW)]
    for one, two in pairs(on_two, runs[runs.engine.isin(OLD)]):
        yield 1, one.source == "job", one, two

    near = new[new.tokens.between(7_800, 14_040) & new.overhead.notna()]
    paths = [near[near.interconnect == path] for path in ("PCIe path", "NVLink")]
    best: dict[int, tuple[int, Row, Row]] = {}  # of each length the pair that is most alike
    for one, two in pairs(*paths, "gpu_model", "gpus", "tokens", "blocks"):
        alike = int(one.engine == two.engine) + int(one.branches == two.branches)
        if alike > best.get(one.tokens, (-1,))[0]:
            best[one.tokens] = alike, one, two
    for tokens, (alike, one, two) in sorted(best.items()):
        yield 2, tokens == 10_000 and alike == 2, one, two

    streams = runs[runs.engine == "stream"]
    for one, two in pairs(streams, streams):
        changed = {key for key in one.settings if one.settings[key] != two.settings.get(key)}
        for number, (key, usual) in SETTINGS.items():
            # Windows follow the parts of a block, not the schedule, so they are only near it.
            others = changed - {key, "slots"} if number == 7 else changed - {key}
            if key in changed and not others and two.settings[key] == usual:
                # Question 4 asks for fewer bits; packed blocks are only near it.
                yield number, number != 7 and one.settings[key] != "packed", one, two
