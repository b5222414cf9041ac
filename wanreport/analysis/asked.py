"""The setup that the baseline document asks for, and what it would take to measure the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root

NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new offload, and the two engines that may be its old one."""

Row = Any  # a row of `runs`


class Facts(Protocol):
    """The numbers of the baseline document, by the id of the fact."""

    def number(self, name: str) -> float: ...


class ToDo(NamedTuple):
    """A command that would measure what is missing, and how many minutes it takes at most."""

    command: str
    minutes: float


def differs(facts: Facts, runs: pd.DataFrame, gpus: str = "") -> str:
    """Say how runs differ from the setup asked for: "2 GPUs instead of 4, 480p instead of 720p".

    "" where they do not. `gpus` is the fact with the number of GPUs asked for; any will do without.
    """
    said = []
    for column, fact, unit in (("gpus", gpus, " GPUs"), ("height", "s2.height", "p"),
                               ("frames", "s2.frames", " frames")):  # fmt: skip
        wanted = facts.number(fact) if fact else math.nan
        other = runs[column].dropna()
        other = other[other != wanted]
        if fact and len(other):
            there = " and ".join(map(str, sorted(set(other))))
            there += " GPU" if (there, column) == ("1", "gpus") else unit
            some = f" in {len(other)} of {len(runs)} runs" if len(other) < len(runs) else ""
            said.append(f"{there} instead of {wanted:.0f}{unit if unit == 'p' else ''}{some}")
    return ", ".join(said)


def to_measure(frames: Frames, *params: str, root: Path | None = None) -> ToDo:
    """Name the command that measures some jobs, and the minutes that it takes.

    `params` are files below ``params/`` without their ending. Minutes are those that the job took
    on some machine before, else its ``timeout_s``; NaN where the folder has no such file.
    """
    root = root or project_root()
    files = [f"params/{name}.yaml" for name in params]
    runs = frames.full_scale()
    known = dict(zip(runs.job, runs.wall_s, strict=True)) if len(runs) else {}
    took = sum(known.get(Path(file).stem) or _timeout_s(root / file) for file in files)
    minutes = math.nan if math.isnan(took) else math.ceil(took / 60)
    return ToDo(f"wanreport measure {' '.join(files)}", minutes)


def _timeout_s(params: Path) -> float:
    return load_job(params).timeout_s if params.is_file() else math.nan


def plain_jobs(runs: pd.DataFrame, *, earlier: bool = False) -> pd.DataFrame:
    """Keep jobs that did what the baseline asks for, but for their size; maybe earlier runs too.

    Both branches, eager, without a memory budget.
    """
    if runs.empty:
        return runs
    plain = (runs.source == "job") & ~runs.compiled & (runs.branches == 2)
    return runs[plain & runs.vram_budget_gb.isna() & (runs.latest | earlier)]


def nearest(ones: pd.DataFrame, others: pd.DataFrame) -> list[tuple[Row, Row]]:
    """Pair rows of :func:`compare.overhead`: of each machine, number of GPUs and height one pair.

    The one with the most steps; of these one on the same boards, then the one whose runs have
    their `resident` on the same boards, then the latest runs.
    """
    if ones.empty or others.empty:
        return []
    both = ones.merge(others, on="group", suffixes=("", "_two"))
    both = both[both.run != both.run_two]
    boards = zip(both.boards, both.boards_two, strict=True)
    both["same"] = [bool(one) and one == two for one, two in boards]
    both["beside"] = both.same_boards.eq(True).astype(int) + both.same_boards_two.eq(True)
    order = both.sort_values(["steps_run", "same", "beside", "started", "started_two"])
    where = ["machine", "gpus", "height"]
    picked = order.drop_duplicates(where, keep="last").sort_values(where)
    return [(ones.loc[row.run], others.loc[row.run_two]) for row in picked.itertuples()]
