"""Which runs are compared: those that count, pairs of them, and how their setup differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import Row, difference, gap_difference
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root

NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new offload, and the two engines that may be its old one."""
WHERE = ["machine", "gpus", "height"]
PREFETCH = ["machine", "work", "deep", "base", "deep_s", "base_s", "difference", "claim",
            "same_boards", "step_difference_s", "allocated_difference_bytes"]  # fmt: skip


class Facts(Protocol):
    """What the baseline document says, by the id of the fact."""

    def number(self, name: str) -> float: ...
    def text(self, name: str) -> str: ...


def overhead(frames: Frames) -> pd.DataFrame:
    """Pick the runs with a steady step at full scale: the only ones that times are compared of."""
    runs = frames.full_scale()
    return runs[runs.step_s.notna()]


def plain_jobs(runs: pd.DataFrame, *, earlier: bool = False, layouts: bool = False) -> pd.DataFrame:
    """Keep jobs that did what the baseline asks for, but for their size; maybe earlier runs too.

    Both branches, eager, without a memory budget; on all GPUs, or with `layouts` in either layout.
    """
    plain = (runs.source == "job") & ~runs.compiled & (runs.branches == 2)
    plain &= runs.vram_budget_gb.isna() & (runs.latest | earlier)
    return runs[plain & (layouts | ~runs.cfg_parallel)]


def headline(frames: Frames) -> pd.DataFrame:
    """Pick the runs for the first screen: the full model, each engine's run that counts.

    The latest plain job with prefetch 1, but for `resident`, by machine, GPUs and resolution. An
    overhead whose reference ran on the same boards goes before one that did not, and one with
    `resident` again afterwards before both.
    """
    plain = plain_jobs(overhead(frames))
    plain = plain[plain.overhead.notna() & (plain.engine != "resident")]
    order = ["same_boards", "bracketed", "steps_run", "started"]
    plain = plain[plain.prefetch.fillna(1) == 1].sort_values(order)
    return plain.groupby([*WHERE, "engine"]).tail(1)


# Pairs of runs -----------------------------------------------------------------------------------


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """List a table's rows."""
    return [row for _, row in runs.iterrows()]


def told(one: Row, two: Row) -> dict[str, Any]:
    """Compare two runs' steps (:func:`difference`), with the larger drift known of both.

    Also whether both had the same boards, the first one's machine and work, and which runs.
    """
    return {
        **difference(one, two, max(0.0, abs(one["drift"]), abs(two["drift"]))),  # NaN is no more
        "same_boards": bool(one["boards"]) and one["boards"] == two["boards"],
        **{key: one[key] for key in (*WHERE, "work")},
        "run_one": one["run"], "run_two": two["run"],
    }  # fmt: skip


def over_resident(runs: pd.DataFrame, one: Row, two: Row) -> dict[str, Any]:
    """Compare two runs' overheads, each over its own `resident` (:func:`gap_difference`)."""
    return gap_difference((one, runs.loc[one["reference"]]), (two, runs.loc[two["reference"]]))


def nearest(
    ones: pd.DataFrame, others: pd.DataFrame, on: Sequence[str] = ("group",)
) -> list[tuple[Row, Row]]:
    """Pair runs that agree `on` some columns: one pair of each machine, GPUs, height and engine.

    The most steps count first, then the same boards, a `resident` on the same boards, the date.
    """
    where = [*WHERE, "engine"]
    keep = [*dict.fromkeys([*on, *where, "run", "boards", "same_boards", "steps_run", "started"])]
    both = ones[keep].merge(others[keep], on=[*on], suffixes=("", "_two"))
    both = both[both.run != both.run_two]
    order = both.assign(
        same=both.boards.astype(bool) & (both.boards == both.boards_two),
        beside=both.same_boards.eq(True).astype(int) + both.same_boards_two.eq(True),
    ).sort_values(["steps_run", "same", "beside", "started", "started_two"])
    picked = order.drop_duplicates(where, keep="last").sort_values(where)
    pairs = rows_of(ones.loc[picked.run]), rows_of(others.loc[picked.run_two])
    return list(zip(*pairs, strict=True))


def prefetch(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Compare the deeper prefetch with the default: a row for each machine that has both.

    What :func:`told` has of their steps, and ``allocated_difference_bytes``.
    """
    runs = plain_jobs(overhead(frames))
    runs = runs[runs.engine == NEW]
    deep, base = (facts.number(name) for name in ("s6.2.three.size", "s9.2.prefetch.base"))
    pairs = nearest(runs[runs.prefetch == deep], runs[runs.prefetch == base])
    return pd.DataFrame([
        {**told(one, two), "deep": one.prefetch, "base": two.prefetch,
         "deep_s": one.step_s, "base_s": two.step_s,
         "allocated_difference_bytes": one.allocated_bytes - two.allocated_bytes}
        for one, two in pairs
    ], columns=None if pairs else PREFETCH)  # fmt: skip


def layouts(frames: Frames) -> pd.DataFrame:
    """Compare CFG parallelism with Ulysses over all GPUs: a row for each machine, size and engine.

    What :func:`told` has of their steps, the `engine`, and of both (``_cfg``, ``_ulysses``) the
    ``step_s`` and the ``overhead`` over resident of the same layout, with its ``claim``.
    """
    plain = plain_jobs(overhead(frames), layouts=True)
    plain = plain[(plain.gpus > 1) & (plain.prefetch.fillna(1) == 1)]
    ones, others = plain[plain.cfg_parallel], plain[~plain.cfg_parallel]
    pairs = nearest(ones, others, [*WHERE, "engine", "frames"])
    return pd.DataFrame([
        {"engine": one.engine, **told(one, two),
         **{f"{name}_{layout}": row[name] for name in ("step_s", "overhead", "claim")
            for layout, row in (("cfg", one), ("ulysses", two))}}
        for one, two in pairs
    ], columns=None if pairs else [*WHERE, "engine", "run_one", "run_two", "claim"])  # fmt: skip


# The setup that was asked for --------------------------------------------------------------------


def differs(facts: Facts, runs: pd.DataFrame, gpus: str = "") -> str:
    """Say how runs differ from the setup asked for: "2 GPUs instead of 4, 480p instead of 720p".

    "" where they do not. `gpus` is the fact with the number of GPUs asked for; any will do without.
    """
    said, wanted = [], {"height": ("s2.height", "p"), "frames": ("s2.frames", " frames")}
    for column, (fact, unit) in (({"gpus": (gpus, " GPUs")} if gpus else {}) | wanted).items():
        asked = facts.number(fact)
        other = runs[column][runs[column] != asked].dropna()
        if len(other):
            there = " and ".join(map(str, sorted(set(other)))) + unit
            there = "1 GPU" if there == "1 GPUs" else there
            some = f" in {len(other)} of {len(runs)} runs" if len(other) < len(runs) else ""
            said.append(f"{there} instead of {asked:.0f}{unit if unit == 'p' else ''}{some}")
    board = facts.text("s1.gpu").split()[0]  # its memory decides what fits
    others = sorted({gpu.split()[1] for gpu in runs.gpu_model.dropna() if board not in gpu})
    if others:
        said.append(f"{' and '.join(others)} instead of {board}")
    return ", ".join(said)


def to_measure(frames: Frames, *params: str) -> dict[str, Any]:
    """Name the `command` that measures some jobs, and the `minutes` that it takes at most.

    `params` are files below ``params/`` without their ending. Minutes are those that the job took
    on some machine before, else its ``timeout_s``; NaN where the folder has no such file.
    """
    files, took = [f"params/{name}.yaml" for name in params], 0.0
    known = frames.full_scale().set_index("job").wall_s.groupby("job").last()
    for path in (project_root() / file for file in files):
        limit = load_job(path).timeout_s if path.is_file() else math.nan
        took += known.get(path.stem, limit)
    return {"command": f"wanreport measure {' '.join(files)}",
            "minutes": math.nan if math.isnan(took) else math.ceil(took / 60)}  # fmt: skip
