"""Which jobs there are, and measuring those that this machine has no record of."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wanreport.jobs.job import Job, JobError, load_job
from wanreport.measure import local
from wanreport.records import project
from wanreport.records.record import REUSABLE, put_back


def load_jobs(files: Sequence[Path], root: Path, *, lenient: bool = False) -> dict[Path, Job]:
    """Load all params files, or raise JobError with the problems of all of them.

    `lenient` leaves files with problems out.
    """
    jobs: dict[Path, Job] = {}
    problems: list[str] = []
    for file in files:
        try:
            jobs[within(file, root)] = load_job(file)
        except JobError as error:
            problems += error.problems
    names: dict[str, Path] = {}
    for file, job in jobs.items():
        if job.name in names:
            problems.append(f"{file}: name: {names[job.name]} has the same; rename one of them")
        names[job.name] = file
    if problems and not lenient:
        raise JobError([problem.replace(f"{root}/", "") for problem in problems])
    return jobs


def measure(
    jobs: Sequence[Job],
    root: Path,
    log: Path,
    results: Path | None = None,
    minutes: float = math.inf,
    *,
    again: bool = False,
) -> list[str]:
    """Measure those `jobs` that this machine has no record of; return the names that failed.

    Records go to `results`, by default the folder of runs on this machine. With `minutes`, no job
    is begun whose `timeout_s` would not fit in; such jobs are named, and the next call goes on.
    With `again` all of them are measured, whatever records there are; a run that fails leaves the
    record that stood there.
    """
    failed: list[str] = []
    begun = [time.monotonic()]

    def tell(path: Path, record: dict[str, Any]) -> None:
        name, status = record["job"]["name"], record["status"]
        now = time.monotonic()
        why = "" if status == "ok" else f"  {record['reason']}"
        say(f"  {name:<24} {status:<12} {now - begun[0]:6.1f} s{why}")
        begun[0] = now
        if status in ("failed", "timeout"):
            failed.append(name)
            if record["hint"]:
                say(f"  {'':<24} {record['hint']}")
            if path in stood:
                put_back(path, stood[path])
                say(f"  {'':<24} The record of an earlier run stays.")

    results = results or project.local_results(root)
    machine = local.known_machine(results) or local.identify(results, log)
    found = project.all_records(root)
    missing = local.missing(jobs, [] if again else found, machine)
    stood = {path: path.read_bytes() for path, record in found if record["status"] in REUSABLE}
    if missing:
        say(f"Measuring {len(missing)} of {len(jobs)} jobs; log: {within(log, root)}")
        done = local.measure_jobs(missing, results, log, tell, sys.stderr, minutes)
        if left := [job.name for job in missing[len(done) :]]:
            rest = "name these alone the next time" if again else "run it again"
            say(f"No time left for {', '.join(left)}: {rest}")
    return failed


def within(path: Path, root: Path) -> Path:
    """`path` relative to the project, where it lies inside."""
    resolved = path.resolve()
    return resolved.relative_to(root) if resolved.is_relative_to(root) else path


def say(text: str, *, error: bool = False) -> None:
    """Print a line at once, so that a log is never behind."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
