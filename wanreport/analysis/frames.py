"""Reads everything measured into a few tidy DataFrames: the currency of all pages.

    runs        a row for each run: one job's record, or one row of a benchmark file
    steps       a row for each step of each iteration (each sample of a benchmark)
    iterations  a row for each iteration: decoding, memory, the GPU's state, digests
    counters    a row for each iteration, rank and counter, with the closed formula's value
    events      a row for each interval on a profiled iteration's timeline, rank 0

Column names end in their unit: ``_s``, ``_ms``, ``_bytes``, ``_gb_s`` (10^9 bytes a second),
``_mhz``, ``_w``. Whatever was not measured is NaN, NA or None, never 0. `run`, the path of the file
(with ``#tokens/label`` for a benchmark's row), identifies a run in all of them. What `runs` has is
told in :mod:`wanreport.analysis.rows` and :mod:`wanreport.analysis.summary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis.rows import MEMORY, Rows, add_bench, add_record
from wanreport.analysis.summary import against_resident, summed_up
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
        return self.runs[(self.runs.status == "ok") & ~self.runs.rehearsal]


KEY = ("run", "iteration", "kind")
COLUMNS = {
    "steps": (*KEY, "step", "role", "expert", "timestep", "seconds", "h2d_bytes", "h2d_bytes_all"),
    "iterations": (*KEY, "decode_s", "total_s", "latents", "complete", *MEMORY, "sm_mhz", "power_w",
                   "celsius", "boards"),
    "counters": (*KEY, "rank", "counter", "measured", "formula"),
    "events": ("run", "lane", "what", "expert", "block", "step", "start_ms", "end_ms", "ms"),
}  # fmt: skip


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
        for path in [*record_files(folder), *bench_files(folder)]:
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                if path.parent.name == "benchmarks":
                    add_bench(rows, name, path, read_bench(path)[0])
                else:
                    content = read_json(path, "delete it and measure again")
                    add_record(rows, name, parse_record(path, content))
            except FileError as error:
                problems.append(str(error))
    if problems:
        raise FileError("\n".join(problems))
    return _frames(rows) if rows["runs"] else EMPTY


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


def _frames(rows: Rows) -> Frames:
    def frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
        made = pd.DataFrame(rows, columns=COLUMNS.get(name))
        kinds = {name: "float64" for name in made if name.endswith(UNITS)}
        return made.astype(kinds | {name: "Int64" for name in WHOLE if name in made})

    runs, *others = (frame(name, found) for name, found in rows.items())
    runs = summed_up(runs.set_index("run", drop=False), *others[:3])
    # Machines that share a short name get their full class: other NCCL settings, say.
    several = runs.groupby("machine").slug.transform("nunique") > 1
    runs["machine"] = runs.machine.mask(several, runs.machine_class)
    # Of each job's runs on a machine the latest counts, a failed one only where there is no other.
    jobs = runs[runs.source == "job"]
    order = jobs.assign(counts=jobs.status.isin(list(REUSABLE))).sort_values(["counts", "started"])
    last = order.groupby(["slug", "scale", "job"]).tail(1).index
    runs["latest"] = runs.index.isin(last) | (runs.source == "bench")
    return Frames(against_resident(runs), *others)


EMPTY = Frames(*(frame[:0] for frame in of_record(Record.model_validate(
    {"schema_version": 1, "benchmark_version": 0, "job": {"scale": "tiny"}, "job_hash": "",
     "status": "failed", "reason": "Nothing ran.", "hint": "", "started_at": "", "wall_s": 0.0,
     "cold_start_s": None, "iterations": [], "timeline": [], "traces": []}
    | {part: {} for part in ("model", "schedule", "sglang", "machine", "software", "engine")}
))))  # fmt: skip
"""Frames of nothing measured, with all columns."""
