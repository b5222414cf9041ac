"""The setup that the baseline document asks for, and what it would take to measure the rest."""

from __future__ import annotations

import math
from typing import Any, Protocol

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.frames import Frames
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root

NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new offload, and the two engines that may be its old one."""

Row = Any  # a row of `runs`


class Facts(Protocol):
    """The numbers of the baseline document, by the id of the fact."""

    def number(self, name: str) -> float: ...


def differs(facts: Facts, runs: pd.DataFrame, gpus: str = "") -> str:
    """Say how runs differ from the setup asked for: "2 GPUs instead of 4, 480p instead of 720p".

    "" where they do not. `gpus` is the fact with the number of GPUs asked for; any will do without.
    """
    said = []
    for column, fact, unit in (("gpus", gpus, " GPUs"), ("height", "s2.height", "p"),
                               ("frames", "s2.frames", " frames")):  # fmt: skip
        wanted = facts.number(fact) if fact else math.nan
        other = runs[column][runs[column] != wanted].dropna()
        if fact and len(other):
            there = " and ".join(map(str, sorted(set(other)))) + unit
            there = "1 GPU" if there == "1 GPUs" else there
            some = f" in {len(other)} of {len(runs)} runs" if len(other) < len(runs) else ""
            said.append(f"{there} instead of {wanted:.0f}{unit if unit == 'p' else ''}{some}")
    return ", ".join(said)


def to_measure(frames: Frames, *params: str) -> dict[str, Any]:
    """Name the `command` that measures some jobs, and the `minutes` that it takes at most.

    `params` are files below ``params/`` without their ending. Minutes are those that the job took
    on some machine before, else its ``timeout_s``; NaN where the folder has no such file.
    """
    files = [f"params/{name}.yaml" for name in params]
    paths, runs = [project_root() / file for file in files], frames.full_scale()
    known = dict(zip(runs.job, runs.wall_s, strict=True)) if len(runs) else {}
    took = sum(known.get(path.stem) or (load_job(path).timeout_s if path.is_file() else math.nan)
               for path in paths)  # fmt: skip
    return {"command": f"wanreport measure {' '.join(files)}",
            "minutes": math.nan if math.isnan(took) else math.ceil(took / 60)}  # fmt: skip


def plain_jobs(runs: pd.DataFrame, *, earlier: bool = False) -> pd.DataFrame:
    """Keep jobs that did what the baseline asks for, but for their size; maybe earlier runs too.

    Both branches, eager, without a memory budget.
    """
    if runs.empty:
        return runs
    plain = (runs.source == "job") & ~runs.compiled & (runs.branches == 2)
    return runs[plain & runs.vram_budget_gb.isna() & (runs.latest | earlier)]


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """List a table's rows."""
    return [row for _, row in runs.iterrows()]


def told(one: Row, two: Row) -> dict[str, Any]:
    """Compare two rows of :func:`compare.overhead`: ``difference`` with its claim, and which."""
    return {
        **compare.difference(one, two, compare.pair_drift(one, two)),
        "same_boards": bool(one["boards"]) and one["boards"] == two["boards"],
        **{key: one[key] for key in ("machine", "gpus", "height", "work")},
        "run_one": one["run"], "run_two": two["run"],
    }  # fmt: skip


def over_resident(cost: pd.DataFrame, one: Row, two: Row) -> dict[str, Any]:
    """Compare the overheads of two rows of :func:`compare.overhead`, each over its `resident`."""
    pairs = [(row, cost.loc[row["reference"]]) for row in (one, two)]
    return compare.gap_difference(pairs[0], pairs[1])


def nearest(ones: pd.DataFrame, others: pd.DataFrame) -> list[tuple[Row, Row]]:
    """Pair rows of :func:`compare.overhead`: of each machine, number of GPUs and height one pair.

    The most steps count first, then the same boards, a `resident` on the same boards, the date.
    """
    if ones.empty or others.empty:
        return []
    where = ["machine", "gpus", "height"]
    both = ones.merge(others, on="group", suffixes=("", "_two")).query("run != run_two")
    order = both.assign(
        same=both.boards.astype(bool) & (both.boards == both.boards_two),
        beside=both.same_boards.eq(True).astype(int) + both.same_boards_two.eq(True),
    ).sort_values(["steps_run", "same", "beside", "started", "started_two"])
    picked = order.drop_duplicates(where, keep="last").sort_values(where)
    return list(
        zip(rows_of(ones.loc[picked.run]), rows_of(others.loc[picked.run_two]), strict=True)
    )
