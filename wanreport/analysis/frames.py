"""Reads everything measured into a few tidy DataFrames: the currency of all pages.

    runs        a row for each run: one job's record, or one row of a benchmark file
    steps       a row for each step of each iteration (each sample of a benchmark)
    iterations  a row for each iteration: decoding, memory, the GPU's state, digests
    counters    a row for each iteration, rank and counter, with the closed formula's value
    events      a row for each interval on a profiled iteration's timeline, rank 0

Column names end in their unit: ``_s``, ``_ms``, ``_bytes``, ``_gb_s`` (10^9 bytes a second),
``_mhz``, ``_w``. Whatever was not measured is NaN, NA or None, never 0. `run`, the path of the file
(with ``#tokens/label`` for a benchmark's row), identifies a run in all of them. Modules `rows` and
`summary` say what else `runs` has; here it gets ``latest``, whether a run is the one that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from wanreport.analysis.rows import MEMORY, Rows, add_bench, add_record
from wanreport.analysis.summary import against_resident, summed_up
from wanreport.records import files
from wanreport.records.project import project_root
from wanreport.records.record import EARLIER, REUSABLE

WHOLE = ("iteration", "step", "rank", "gpus", "tokens", "blocks", "branches", "height", "width",
         "frames", "steps_run", "steps_whole", "switch_step", "prefetch", "block_bytes",
         "expert_bytes", "step_n", "traces", "baseline_job", "block")  # fmt: skip
"""Columns of whole numbers; with gaps they would turn into fractions."""
UNITS = ("_s", "_bytes", "_mhz", "_w", "_gb", "celsius")
"""How columns of other numbers end; one without any value would hold None, and not NaN."""
KEY = ("run", "iteration", "kind")
COLUMNS = {
    "steps": (*KEY, "step", "role", "expert", "timestep", "seconds", "h2d_bytes", "h2d_bytes_all"),
    "iterations": (*KEY, "decode_s", "total_s", "latents", "complete", *MEMORY, "sm_mhz", "power_w",
                   "celsius", "boards"),
    "counters": (*KEY, "rank", "counter", "measured", "formula"),
    "events": ("run", "lane", "what", "expert", "block", "step", "start_ms", "end_ms", "ms"),
}  # fmt: skip


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


def load(directories: Sequence[str | Path], root: Path | None = None) -> Frames:
    """Read all records and benchmark files below some folders, such as ``results``.

    Relative folders are below `root`, by default the project; a missing one holds nothing. Raises
    FileError naming every file that cannot be used: one left out in silence would be a run missing
    from the report.
    """
    root, problems = root or project_root(), []
    rows: Rows = {name: [] for name in Frames._fields}
    for folder in dict.fromkeys(root / each for each in directories):
        found = [*folder.glob("*/*.json"), *folder.glob(f"*/{EARLIER}/*.json")]
        records = sorted(path for path in found if not path.name.startswith("."))
        for path in [*records, *files.bench_files(folder)]:
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                if path.parent.name == "benchmarks":
                    add_bench(rows, name, path, files.read_bench(path)[0])
                else:
                    content = files.read_json(path, "delete it and measure again")
                    add_record(rows, name, files.parse_record(path, content))
            except files.FileError as error:
                problems.append(str(error))
    if problems:
        raise files.FileError("\n".join(problems))
    return _frames(rows) if rows["runs"] else EMPTY


@lru_cache(maxsize=2)
def cached(directories: tuple[str, ...], root: Path | None = None) -> Frames:
    """:func:`load`, once for the same folders in one process."""
    return load(directories, root)


def of_record(record: files.Record) -> Frames:
    """Make frames of one record that is in no file, as of a job that was not measured."""
    rows: Rows = {name: [] for name in Frames._fields}
    add_record(rows, "", record)
    return _frames(rows)


def _frames(rows: Rows) -> Frames:
    made = []
    for name, found in rows.items():
        frame = pd.DataFrame(found, columns=COLUMNS.get(name))
        kinds = {each: "float64" for each in frame if each.endswith(UNITS)}
        made.append(frame.astype(kinds | {each: "Int64" for each in WHOLE if each in frame}))
    runs = summed_up(made[0].set_index("run", drop=False), *made[1:4])
    # Machines that share a short name get their full class: other NCCL settings, say.
    several = runs.groupby("machine").slug.transform("nunique") > 1
    runs["machine"] = runs.machine.mask(several, runs.machine_class)
    # Of each job's runs on a machine the latest counts, a failed one only where there is no other.
    jobs = runs[runs.source == "job"]
    order = jobs.assign(counts=jobs.status.isin(list(REUSABLE))).sort_values(["counts", "started"])
    last = order.groupby(["slug", "scale", "job"]).tail(1).index
    runs["latest"] = runs.index.isin(last) | (runs.source == "bench")
    return Frames(against_resident(runs), *made[1:])


EMPTY = Frames(*(frame[:0] for frame in of_record(files.Record.model_validate(
    {"schema_version": 1, "benchmark_version": 0, "job": {"scale": "tiny"}, "job_hash": "",
     "status": "failed", "reason": "Nothing ran.", "hint": "", "started_at": "", "wall_s": 0.0,
     "cold_start_s": None, "iterations": [], "timeline": [], "traces": []}
    | {part: {} for part in ("model", "schedule", "sglang", "machine", "software", "engine")}
))))  # fmt: skip
"""Frames of nothing measured, with all columns."""
