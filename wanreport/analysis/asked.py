"""The setup that the baseline document asks for, and what it would take to measure the rest."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root

NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new offload, and the two engines that may be its old one."""

Row = Any  # a row of `runs`, or any mapping of its columns


class Facts(Protocol):
    """The numbers of the baseline document, by the id of the fact."""

    def number(self, name: str) -> float: ...


class ToDo(NamedTuple):
    """A command that would measure what is missing, and how many minutes it takes at most."""

    command: str
    minutes: float


def differs(facts: Facts, runs: pd.DataFrame, gpus: str = "") -> str:
    """Say how runs differ from the setup asked for; "" where they do not.

    Parameters
    ----------
    gpus
        The fact that gives the number of GPUs asked for; any number will do without.

    Returns
    -------
    Text such as "2 GPUs instead of 4, 480p instead of 720p".
    """
    found = []
    if gpus and (there := _others(runs.gpus, facts.number(gpus))):
        found.append(f"{there} {'GPU' if there == '1' else 'GPUs'} instead of {_one(facts, gpus)}")
    if there := _others(runs.height, facts.number("s2.height"), "p"):
        found.append(f"{there} instead of {_one(facts, 's2.height')}p")
    if there := _others(runs.frames, facts.number("s2.frames")):
        found.append(f"{there} frames instead of {_one(facts, 's2.frames')}")
    return ", ".join(found)


def _others(values: pd.Series, asked: float, unit: str = "") -> str:
    return " and ".join(f"{int(value)}{unit}" for value in sorted(set(values.dropna()) - {asked}))


def _one(facts: Facts, name: str) -> str:
    return f"{facts.number(name):.0f}"


def to_measure(frames: Frames, *params: str, root: Path | None = None) -> ToDo:
    """Name the command that measures some jobs, and the minutes that it takes.

    Parameters
    ----------
    params
        Params files below ``params/`` without their ending: ``campaign/480p-2gpu-swap``.

    Returns
    -------
    Minutes are those that the job took on some machine before, else its ``timeout_s``; NaN where
    the folder has no such file.
    """
    root = root or project_root()
    files = [f"params/{name}.yaml" for name in params]
    if not all((root / file).is_file() for file in files):
        return ToDo(f"wanreport measure {' '.join(files)}", math.nan)
    runs = frames.full_scale()
    known = dict(zip(runs.job, runs.wall_s, strict=True)) if len(runs) else {}
    took = sum(known.get(Path(file).stem) or _timeout_s(root / file) for file in files)
    return ToDo(f"wanreport measure {' '.join(files)}", math.ceil(took / 60))


@lru_cache
def _timeout_s(params: Path) -> int:
    return load_job(params).timeout_s


def plain_jobs(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep jobs that count and did what the baseline asks for, but for their size.

    Both branches, eager, without a memory budget.
    """
    if runs.empty:
        return runs
    return runs[
        (runs.source == "job") & runs.latest & ~runs.compiled & (runs.branches == 2)
        & runs.vram_budget_gb.isna()
    ]  # fmt: skip


def nearest(ones: pd.DataFrame, others: pd.DataFrame) -> list[tuple[Row, Row]]:
    """Pair comparable runs: of each machine, number of GPUs and height the pair to look at.

    The one with the most steps; of these one on the same boards, then the one whose runs have
    their `resident` on the same boards, then the latest.
    """
    found: dict[tuple[Any, ...], tuple[Any, Row, Row]] = {}
    for (_, one), (_, two) in product(ones.iterrows(), others.iterrows()):
        if one.group != two.group or one.run == two.run:
            continue
        same = bool(one.boards) and one.boards == two.boards
        beside = sum(row.get("same_boards") == True for row in (one, two))  # noqa: E712
        rank = one.steps_run, same, beside, one.started, two.started
        key = one.machine, one.gpus, one.height
        if key not in found or rank > found[key][0]:
            found[key] = rank, one, two
    return [pair[1:] for _, pair in sorted(found.items(), key=lambda item: item[0])]
