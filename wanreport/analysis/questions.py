"""The open questions of the baseline's section 10: which runs answer them, and what would."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import NEW, OLD, to_measure
from wanreport.analysis.frames import Frames

QUESTIONS: dict[int, tuple[str, ...]] = {
    1: ("campaign/480p-2gpu-layerwise", "campaign/480p-2gpu-swap", "campaign/480p-2gpu-fsdp"),
    2: ("--tokens 10000 --engines layerwise:prefetch=1 planned",),
    3: ("--tokens 14040 --engines stream:slots=3 stream:slots=3,shard=true",),
    4: (),
    5: ("--tokens 14040 --engines stream:slots=3 stream:slots=3,priority=-1",),
    6: ("--tokens 14040 --engines stream:slots=4 stream:slots=4,copy_streams=2",),
    7: (),
}
"""Jobs or campaigns that would answer a question; nothing where no engine does what it asks for."""

MINUTES = 10
"""Given to a campaign of a few cells, start included."""


def questions(frames: Frames) -> pd.DataFrame:
    """Collect what answers the baseline's open questions (its section 10).

    Returns
    -------
    A row for each run that tells of one, with `number`, 1 to 7, and the columns of
    :func:`compare.overhead`; `exact` says whether it is what was asked for, or only near it. A
    question without an exact run has a row without a run, with `command` and `minutes`; "" and NaN
    where no engine does what it asks for.
    """
    cost, rows = compare.overhead(frames), []
    if "overhead" in cost:
        cost = cost[cost.overhead.notna() & ~cost.again & (cost.engine != "resident")]
        best = cost[cost.index.isin(compare.headline(frames).index)]
        default = cost.engine.isin((NEW, "sglang")) & (cost.prefetch.fillna(1) == 1)
        several = cost.gpus > 1

        def using(name: str, usual: Any) -> pd.Series:
            return pd.Series([(s or {}).get(name) or usual for s in cost.settings], cost.index)

        chosen = {
            1: (best[best.engine.isin((NEW, *OLD)) & (best.gpus == 2)],
                best[(best.engine == NEW) & (best.gpus != 2)]),
            2: (cost[default & several & (cost.tokens == 10_000)],
                cost[default & (cost.source == "bench") & cost.tokens.between(7_800, 14_040)]),
            3: (cost[using("shard", False).astype(bool)], cost[:0]),
            5: (cost[using("priority", 0) != 0], cost[:0]),
            6: (cost[using("copy_streams", 1) > 1], cost[:0]),
            7: (cost[:0], cost[using("windows", None).notna()]),
        }  # fmt: skip
        for number, both in chosen.items():
            for exact, found in zip((True, False), both, strict=True):
                rows += found.assign(number=number, exact=exact).to_dict("records")
    for number in QUESTIONS.keys() - {row["number"] for row in rows if row["exact"]}:
        rows.append({"number": number, "exact": False, **_todo(frames, QUESTIONS[number])})
    return pd.DataFrame(rows).sort_values("number", kind="stable", ignore_index=True)


def _todo(frames: Frames, asked: tuple[str, ...]) -> dict[str, Any]:
    if not asked:
        return {"command": "", "minutes": math.nan}
    if asked[0].startswith("--"):
        command = f"python -m benchmarks --ranks 2 {asked[0]} --budget-minutes {MINUTES}"
        return {"command": command, "minutes": float(MINUTES)}
    return to_measure(frames, *asked)._asdict()
