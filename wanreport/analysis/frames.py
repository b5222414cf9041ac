"""Reads everything measured into a few tidy DataFrames: the currency of all pages.

    runs        a row for each run: one job's record, or one row of a benchmark file
    steps       a row for each step of each iteration (each sample of a benchmark)
    iterations  a row for each iteration: decoding, memory, the GPU's state, digests
    counters    a row for each iteration, rank and counter, with the closed formula's value
    events      a row for each interval on a profiled iteration's timeline, rank 0

Column names end in their unit; ``_gb_s`` are 10^9 bytes a second. Whatever was not measured is
NaN, NA or None, never 0. `run`, the path of the file (with ``#tokens/label`` for a benchmark's
row), identifies a run in all of them. Beside what files say (:mod:`wanreport.analysis.rows`)
`runs` has, of clean iterations and of the busiest rank,

    step_s, step_low_s, step_high_s, step_n   the median steady step, neither first nor switch
    first_s, switch_s, decode_s, denoise_s, steady_s, end_to_end_s   other parts of the schedule
    h2d_step_bytes, h2d_step_bytes_all, h2d_schedule_bytes   to the device, a steady step or in all
    latents, repeats        what all complete iterations end in; whether several do, and agree
    formula_ok              whether all counters equal their closed formula; None without one
    latest                  whether it is its job's run that counts
    reference, resident_s   the run of `resident` that it is held against, and its step: of the
                            same work, on the same boards if there is one
    overhead, overhead_low, overhead_high, allowance, claim   :func:`stats.difference` from it
    drift, bracketed        by what share resident moved meanwhile, and whether that is known
    limit_s, over_limit     the longer of resident's step, with what unpacking takes by itself, and
                            of moving the bytes; a step over it
    same_boards, same_bits  whether both ran on the same GPUs, and have the same bits
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from wanreport.analysis.rows import GPU, MEMORY, Rows, add_bench, add_record
from wanreport.analysis.stats import difference, median_interval
from wanreport.jobs.job import Job
from wanreport.records import files
from wanreport.records.project import project_root
from wanreport.records.record import EARLIER, REUSABLE, new_record

WHOLE = ("iteration", "step", "rank", "gpus", "tokens", "blocks", "branches", "height", "width",
         "frames", "steps_run", "steps_whole", "switch_step", "prefetch", "block_bytes",
         "expert_bytes", "step_n", "traces", "baseline_job", "block")  # fmt: skip
"""Columns of whole numbers; with gaps they would turn into fractions."""
UNITS = ("_s", "_bytes", "_mhz", "_w", "_gb", "celsius")
"""How columns of other numbers end; one without any value would hold None, and not NaN."""
KEY = ("run", "iteration", "kind")
COLUMNS = {
    "steps": (*KEY, "step", "role", "expert", "timestep", "seconds", "h2d_bytes", "h2d_bytes_all"),
    "iterations": (*KEY, "decode_s", "total_s", "latents", "complete", *MEMORY, *GPU, "boards"),
    "counters": (*KEY, "rank", "counter", "measured", "formula"),
    "events": ("run", "lane", "what", "expert", "block", "step", "start_ms", "end_ms", "ms"),
}  # fmt: skip


class Frames(NamedTuple):
    """All that was measured."""

    runs: pd.DataFrame
    steps: pd.DataFrame
    iterations: pd.DataFrame
    counters: pd.DataFrame
    events: pd.DataFrame

    def full_scale(self) -> pd.DataFrame:
        """Runs that may answer for time, memory and overlap: finished, on GPUs, in full width."""
        return self.runs[(self.runs.status == "ok") & ~self.runs.rehearsal]


def load(directories: Sequence[str | Path], root: Path | None = None) -> Frames:
    """Read all records and benchmark files below folders of `root`, by default the project.

    Raises FileError naming every file that cannot be used, as no run may be missing in silence.
    """
    root, problems = root or project_root(), []
    rows: Rows = {name: [] for name in Frames._fields}
    for folder in dict.fromkeys(root / each for each in directories):
        found = [*folder.glob("*/[!.]*.json"), *folder.glob(f"*/{EARLIER}/[!.]*.json")]
        for path in [*sorted(found), *sorted(folder.glob("*/benchmarks/[!.]*.json"))]:
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            try:
                if path.parent.name == "benchmarks":
                    add_bench(rows, name, path, files.read_bench(path)[0])
                else:
                    add_record(rows, name, files.parse_record(path, files.read_json(path)))
            except files.FileError as error:
                problems.append(str(error))
    if problems:
        raise files.FileError("\n".join(problems))
    return _frames(rows) if rows["runs"] else EMPTY


cached = lru_cache(maxsize=2)(load)  # once for the same folders, as a tuple, in one process


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
    runs = _summed_up(Frames(made[0].set_index("run", drop=False), *made[1:]))
    # Machines that share a short name get their full class: other NCCL settings, say. One GPU has
    # no use for these.
    several = runs.groupby("machine").slug.transform("nunique") > 1
    runs["machine"] = runs.machine.mask(several & (runs.gpus > 1), runs.machine_class)
    # Of each job's runs on a machine the latest counts, a failed one only where there is no other.
    jobs = runs[runs.source == "job"]
    order = jobs.assign(counts=jobs.status.isin(list(REUSABLE))).sort_values(["counts", "started"])
    last = order.groupby(["slug", "scale", "job"]).tail(1).index
    runs["latest"] = runs.index.isin(last) | (runs.source == "bench")
    return Frames(against_resident(runs).copy(), *made[1:])  # joins columns: quicker look-ups


def _summed_up(frames: Frames) -> pd.DataFrame:
    """Add to each run what follows from its rows in the other frames."""
    runs, steps, iterations, counters, _ = frames
    clean = steps[(steps.kind == "clean") & steps.seconds.notna()]
    steady = clean[clean.role == "steady"].groupby("run")
    step, nothing = steady.seconds.agg(median_interval), median_interval([])
    medians = pd.DataFrame([step.get(run, nothing) for run in runs.index], runs.index,
                           ["step_s", "step_low_s", "step_high_s", "step_n"])  # fmt: skip
    each = iterations.set_index(["run", "iteration"])
    quiet, job = each[each.kind == "clean"], runs.source == "job"
    moved = steady[["h2d_bytes", "h2d_bytes_all"]].median()
    found = runs.join([
        medians, moved.set_axis(["h2d_step_bytes", "h2d_step_bytes_all"], axis=1),
        _whole(clean, quiet, runs.steps_whole).groupby("run").median(),
        each.groupby("run")[[*MEMORY]].max(), quiet.groupby("run")[[*GPU]].median(),
    ])  # fmt: skip
    boards = quiet.groupby("run").boards.first()
    found["boards"] = [boards.get(run, ()) for run in found.index]
    # A campaign repeats one step: it has no schedule.
    found["h2d_schedule_bytes"] = found.h2d_schedule_bytes.where(job, found.h2d_step_bytes)

    ends = each.latents[each.complete.astype(bool) & each.latents.notna()].groupby("run")
    same = ends.nunique() == 1
    found["latents"] = found.latents.where(~job, ends.last().where(same))
    found["repeats"] = found.repeats.where(~job, same.where(ends.size() > 1).astype(object))
    right = (counters.measured == counters.formula).groupby(counters.run).all()
    known = counters.formula.notna().groupby(counters.run).all()
    told = known.reindex(found.index, fill_value=False) & ~found.counters_derived
    found["formula_ok"] = right.reindex(found.index).astype(object).where(told, None)
    return found


def _whole(clean: pd.DataFrame, iterations: pd.DataFrame, planned: pd.Series) -> pd.DataFrame:
    """Times and bytes of the whole schedule, by run and iteration; missing without a first step."""
    by = clean.groupby(["run", "iteration"])
    roles = clean.pivot_table(index=["run", "iteration"], columns="role", values="seconds")
    roles = roles.reindex(columns=["first", "switch", "steady"]).astype(float)
    left = planned.reindex(by.size().index, level="run") - by.size()
    left = left.astype(float).clip(lower=0).fillna(0)
    typical = clean[clean.role == "steady"].groupby(["run", "iteration"]).h2d_bytes.median()
    moved = by.h2d_bytes.agg(lambda column: column.sum(skipna=False))
    found = pd.DataFrame({
        "first_s": roles["first"], "switch_s": roles.switch,
        "denoise_s": by.seconds.sum() + (left * roles.steady).where(left > 0, 0.0),
        "h2d_schedule_bytes": moved + (left * typical).where(left > 0, 0.0),
    }).where(roles["first"].notna())  # fmt: skip
    found["steady_s"] = found.denoise_s - found.first_s - found.switch_s.fillna(0)
    found = found.join(iterations[["decode_s", "total_s"]], how="outer")
    whole = found.pop("total_s").where(left == 0)
    return found.assign(end_to_end_s=whole.fillna(found.denoise_s + found.decode_s.fillna(0)))


def against_resident(runs: pd.DataFrame) -> pd.DataFrame:
    """Add to each finished run at full scale how it compares with `resident`."""
    timed = runs[(runs.status == "ok") & ~runs.rehearsal & runs.step_s.notna()]
    boards = timed.group + " " + timed.boards.map(" ".join)
    resident = timed[timed.engine == "resident"].sort_values(["latest", "started"], ascending=False)
    first, again = resident[~resident.again], resident[resident.again].groupby("group").step_s
    of_group, beside = first.groupby("group"), first[first.boards.astype(bool)].groupby(boards)
    reference = boards.map(beside.run.first()).fillna(timed.group.map(of_group.run.first()))
    reference = reference.mask(timed.latest & timed.run.isin(first.run), timed.run)
    spread = (beside.step_s.max() / beside.step_s.min() - 1).where(beside.size() > 1)
    drift = timed.group.map(again.first() / of_group.step_s.first() - 1).fillna(boards.map(spread))
    found = timed.assign(reference=reference, drift=drift, bracketed=drift.notna())
    found = found[reference.notna()]
    theirs = runs.loc[found.reference].set_axis(found.index)
    gaps = pd.DataFrame(difference(found, theirs, found.drift), found.index)
    gaps.columns = gaps.columns.str.replace(r"^difference", "overhead", regex=True)
    found = found.join(gaps[["overhead", "overhead_low", "overhead_high", "allowance", "claim"]])
    copying = found.h2d_step_bytes / (found.link_gb_s * 1e9)
    found["resident_s"] = theirs.step_s
    unpacking = (found.h2d_step_bytes * _unpack_s(found)).mask(found.transfer == "bf16", 0.0)
    found["limit_s"] = (theirs.step_s + unpacking).clip(lower=copying).where(copying.notna())
    found["over_limit"] = found.step_s / found.limit_s
    found["same_boards"] = found.boards.astype(bool) & (found.boards == theirs.boards)
    known = found.latents.notna() & theirs.latents.notna()
    same = (found.latents == theirs.latents).astype(object).where(known, None)
    found["same_bits"] = same.mask(found.repeats.eq(False), False)
    return runs.join(found[[name for name in found if name not in runs]])


def _unpack_s(runs: pd.DataFrame) -> pd.Series:
    """Seconds that unpacking takes for each byte that a rank copies, as plans of the file have it.

    Missing where the file has no plan with that transfer.
    """
    inputs = pd.DataFrame([each or {} for each in runs.plan_inputs], runs.index)
    inputs = inputs.reindex(columns=["unpack_s", "packed_bytes"]).astype(float)
    of_byte = (inputs.unpack_s / inputs.packed_bytes).groupby([runs.file, runs.transfer])
    shared = runs.gpus.where([each.get("shard", False) for each in runs.settings], 1)
    return of_byte.transform("median") * shared.astype(float)


NOTHING = new_record(Job(name="none", engine="resident", num_gpus=1, scale="tiny"))
EMPTY = Frames(*(f[:0] for f in of_record(files.Record.model_validate(NOTHING))))
"""Frames of nothing measured, with all columns."""
