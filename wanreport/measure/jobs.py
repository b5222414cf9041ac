"""Which jobs there are, which record speaks for each, and measuring those without one here."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wanreport.jobs.job import Job, JobError, load_job, resolve_job
from wanreport.measure import machine
from wanreport.measure.launch import run_job
from wanreport.records.project import all_records, local_results
from wanreport.records.record import EARLIER, Found, best_record, naming, read_record, stands

NO_MEASURING = "WANREPORT_NO_MEASURING"
"""Set for notebooks that are rendered after measuring: they read records and never start a job."""


class Machine(NamedTuple):
    """A machine's class as a file name, and its usable GPUs."""

    slug: str
    gpus: int


def this_machine() -> Machine:
    """Name the class of this machine, and count its GPUs."""
    here = machine.machine()
    return Machine(here["slug"], here["gpu_count"])


def load_jobs(files: Sequence[Path], root: Path, *, lenient: bool = False) -> dict[Path, Job]:
    """Load all params files, or raise JobError with the problems of all of them.

    `lenient` leaves files with problems out.
    """
    jobs, names, problems = dict[Path, Job](), dict[str, Path](), list[str]()
    for file in files:
        mine = within(file, root)
        try:
            job = jobs[mine] = load_job(file)
        except JobError as error:
            problems += error.problems
            continue
        other = names.setdefault(job.name, mine)
        # What slurm/submit.sh has copied may have any name.
        if other != mine and not mine.is_relative_to("params/submitted"):
            problems.append(f"{file}: name: {other} has the same; rename one of them")
    if problems and not lenient:
        raise JobError(problem.replace(f"{root}/", "") for problem in problems)
    return jobs


def spoken_for(job: Job, found: Sequence[Found], here: Machine) -> Found | None:
    """The record that `job`'s page shows: the best at real scale anywhere, else this machine's.

    Another machine's rehearsal stands in only where this machine has no record at all, so that it
    never hides a failure here.
    """
    found = [item for item in found if not item[1].get("source")]  # of other programs
    mine = [(path, record) for path, record in found
            if record["job"]["scale"] == "a14b" or path.parent.name == here.slug]  # fmt: skip
    return best_record(job, mine) or best_record(job, found)


def missing(jobs: Sequence[Job], found: Sequence[Found], here: Machine) -> list[Job]:
    """Those of `jobs`, resolved, without a record here that measuring again would only repeat."""
    mine = [item for item in found if item[0].parent.name == here.slug]
    resolved = [resolve_job(job, gpus=here.gpus) for job in jobs]
    return [job for job in resolved
            if not best_record(job, [one for one in mine if stands(job, one[1])])]  # fmt: skip


def measure(
    jobs: Sequence[Job], root: Path, log: Path, results: Path | None = None,
    minutes: float = math.inf, *, again: bool = False,
) -> list[str]:  # fmt: skip
    """Measure those `jobs` that this machine has no record of; return the names that failed.

    Records go to `results`, by default the folder of runs on this machine. With `again` all are
    measured, whatever records there are; a run that fails leaves the record that stood there.
    """
    failed: list[str] = []

    def tell(path: Path, record: dict[str, Any]) -> None:
        name, status = record["job"]["name"], record["status"]
        lines = [f"{name:<24} {status:<12} {record['wall_s']:6.1f} s  {record['reason']}".rstrip()]
        lines += [record["hint"]] * (status != "ok" and bool(record["hint"]))
        lines += ["The record of an earlier run stays."] * (path.parent.name == EARLIER)
        say("  " + f"\n{'':<27}".join(lines))
        if status in ("failed", "timeout", "non-finite"):
            failed.append(name)

    left = missing(jobs, [] if again else all_records(root), this_machine())
    if left:
        say(f"Measuring {len(left)} of {len(jobs)} jobs; log: {within(log, root)}")
        done = measure_jobs(left, results or local_results(root), log, tell, minutes)
        if late := [job.name for job in left if job.name not in done]:
            rest = "name these alone the next time" if again else "run it again"
            say(f"No time left for {', '.join(late)}: {rest}")
    return failed


def measure_jobs(
    jobs: Sequence[Job], results: Path, log: Path,
    on_record: Callable[[Path, dict[str, Any]], None] = lambda path, record: None,
    minutes: float = math.inf, *, plan_only: bool = False,
) -> dict[str, Found]:  # fmt: skip
    """Measure resolved `jobs` one after another; return each one's record by its name.

    With `plan_only` no more than the plan of each is measured. With `minutes`, a job whose
    `timeout_s` would not fit in is not begun, and has no record. An interrupt ends the job with all
    its ranks; records written so far stay. Raises RecordError if one could not be written.
    """
    done: dict[str, Found] = {}
    end = time.monotonic() + 60 * minutes
    log.parent.mkdir(parents=True, exist_ok=True)
    with naming(log), log.open("w", encoding="utf-8") as file:
        for job in jobs:
            if time.monotonic() + job.timeout_s > end:
                print(f"{job.name}: no time left for it in this run", file=file, flush=True)
                continue
            path = run_job(job, results, plan_only=plan_only, log=file)
            done[job.name] = path, read_record(path)
            on_record(*done[job.name])
    return done


def within(path: Path, root: Path) -> Path:
    """`path` relative to the project, where it lies inside."""
    resolved = path.resolve()
    return resolved.relative_to(root) if resolved.is_relative_to(root) else path


def terminate(*_: object) -> None:
    """Make SystemExit of the first SIGTERM; a second one must not disturb writing the record."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def say(text: str, *, error: bool = False) -> None:
    """Print a line at once, so that a log is never behind."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
