"""Reads everything measured into a few tidy DataFrames: the currency of all pages.

    runs        a row for each run: one job's record, or one row of a benchmark file
    steps       a row for each step of each iteration (each sample of a benchmark)
    iterations  a row for each iteration: decoding, memory, the GPU's state, digests
    counters    a row for each iteration, rank and counter, with the closed formula's value
    events      a row for each interval on a profiled iteration's timeline, rank 0

Column names end in their unit: ``_s``, ``_ms``, ``_bytes``, ``_gb_s`` (10^9 bytes a second),
``_mhz``, ``_w``. Whatever was not measured is NaN, NA or None, never 0. `run`, the path of the file
(with ``#tokens/label`` for a benchmark's row), identifies a run in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis.rows import MEMORY, Rows, add_bench, add_record
from wanreport.analysis.summary import summed_up
from wanreport.records.files import (
    FileError,
    Record,
    bench_files,
    parse_record,
    read_bench,
    read_json,
)
from wanreport.records.project import project_root
from wanreport.records.record import EARLIER, REUSABLE

WHOLE = ("iteration", "step", "rank", "gpus", "tokens", "blocks", "branches", "height", "width",
         "frames", "steps_run", "steps_whole", "switch_step", "prefetch", "block_bytes",
         "expert_bytes", "step_n", "traces", "baseline_job", "block")  # fmt: skip
"""Columns of whole numbers; with gaps they would turn into fractions."""

UNITS = ("_s", "_bytes", "_mhz", "_w", "_gb", "celsius")
"""How columns of other numbers end; one without any value would hold None, and not NaN."""


class Frames(NamedTuple):
    """All that was measured; see the module's docstring."""

    runs: pd.DataFrame
    steps: pd.DataFrame
    iterations: pd.DataFrame
    counters: pd.DataFrame
    events: pd.DataFrame

    def full_scale(self) -> pd.DataFrame:
        """Runs that may answer for time, memory and overlap: finished, on GPUs, in full width."""
        runs = self.runs
        return runs[(runs.status == "ok") & ~runs.rehearsal] if len(runs) else runs


STATE = ("sm_mhz", "power_w", "celsius", "boards")
KEY = ("run", "iteration", "kind")
COLUMNS = {
    "runs": ("run",),
    "steps": (*KEY, "step", "role", "expert", "timestep", "seconds", "h2d_bytes", "h2d_bytes_all"),
    "iterations": (*KEY, "decode_s", "total_s", "latents", "complete", *MEMORY, *STATE),
    "counters": (*KEY, "rank", "counter", "measured", "formula"),
    "events": ("run", "lane", "what", "expert", "block", "step", "start_ms", "end_ms", "ms"),
}
EMPTY = Frames(*(pd.DataFrame(columns=pd.Index(COLUMNS[name])) for name in Frames._fields))
"""Frames of nothing measured."""


def load(directories: Sequence[str | Path], root: Path | None = None) -> Frames:
    """Read all records and benchmark files below some folders.

    Parameters
    ----------
    directories
        Folders such as ``results``; relative ones are below `root`. A missing one holds nothing.
    root
        The project's folder; by default the one around the current folder.

    Raises
    ------
    FileError
        Naming every file that cannot be used: one left out in silence would be a run missing from
        the report.
    """
    root = root or project_root()
    rows: Rows = {name: [] for name in Frames._fields}
    problems: list[str] = []
    for folder in dict.fromkeys(root / each for each in directories):
        for path in record_files(folder):
            try:
                record = parse_record(path, read_json(path, "delete it and measure again"))
                add_record(rows, _relative(path, root), record)
            except FileError as error:
                problems.append(str(error))
        for path in bench_files(folder):
            try:
                add_bench(rows, _relative(path, root), path, read_bench(path)[0])
            except FileError as error:
                problems.append(str(error))
    if problems:
        raise FileError("\n".join(problems))
    return _frames(rows)


def of_record(record: Record) -> Frames:
    """Make frames of one record that is in no file, as of a job that was not measured."""
    rows: Rows = {name: [] for name in Frames._fields}
    add_record(rows, "", record)
    return _frames(rows)


@lru_cache(maxsize=2)
def cached(directories: tuple[str, ...], root: Path | None = None) -> Frames:
    """:func:`load`, once for the same folders in one process."""
    return load(directories, root)


def record_files(folder: Path) -> list[Path]:
    """Records below a results folder: of each machine, and its earlier runs, sorted."""
    found = [*folder.glob("*/*.json"), *folder.glob(f"*/{EARLIER}/*.json")]
    return sorted(path for path in found if not path.name.startswith("."))


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _frames(rows: Rows) -> Frames:
    runs, steps, iterations, counters, events = (_frame(name, rows[name]) for name in rows)
    if runs.empty:
        return EMPTY
    runs = summed_up(runs.set_index("run", drop=False), steps, iterations, counters)
    return Frames(_latest(_distinct(runs)), steps, iterations, counters, events)


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=None if name == "runs" and rows else COLUMNS[name])
    kinds = {name: "float64" for name in frame if name.endswith(UNITS)}
    return frame.astype(kinds | {name: "Int64" for name in WHOLE if name in frame})


def _distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """Give machines that share a short name their full class: other NCCL settings, say."""
    shared = runs.groupby("machine").slug.nunique()
    same = runs.machine.isin(list(shared[shared > 1].index))
    runs.loc[same, "machine"] = runs.machine_class[same]
    return runs


def _latest(runs: pd.DataFrame) -> pd.DataFrame:
    """Mark of each job's runs on a machine the one that counts.

    That is the latest, of those that failed only where no other is there. Rows of benchmarks all
    count.
    """
    jobs = runs[runs.source == "job"]
    order = jobs.assign(counts=jobs.status.isin(list(REUSABLE))).sort_values(["counts", "started"])
    last = order.groupby(["slug", "scale", "job"]).tail(1).index
    runs["latest"] = runs.index.isin(last) | (runs.source == "bench")
    return runs
