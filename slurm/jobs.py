"""What slurm/submit.sh asks: which jobs to queue, and what became of those that were.

``slurm/logs/submitted`` keeps a line for each task: its id, and its params file.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from wanreport.jobs.job import Job, JobError, load_job
from wanreport.records import project
from wanreport.records.record import Found, best_record, find_records, stands

KEPT = Path("slurm/logs/submitted")
MARGIN_S = 1800  # for loading, rendering and the end before the limit


def queued() -> dict[str, str]:
    """The state of each task in the queue, by ``array_index``; none where there is no Slurm."""
    command = ["squeue", "--noheader", "--array", "--format=%F_%K %T"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def submitted() -> list[tuple[str, str]]:
    """Each task's id and params file, in the order of submission."""
    lines = KEPT.read_text("utf-8").splitlines() if KEPT.exists() else []
    return [(task, file) for task, file in (line.split("\t") for line in lines)]


def records() -> list[Found]:
    """All that tasks of this checkout have left."""
    return find_records(project.local_results(Path.cwd()))


def record_of(job: Job, found: list[Found]) -> dict[str, Any] | None:
    """The one among them that is of `job`, at the scale that it asks for."""
    scale = "tiny" if job.scale == "tiny" else "a14b"
    best = best_record(job, [item for item in found if item[1]["job"]["scale"] == scale])
    return best[1] if best else None


def gpus_of(job: Job) -> int:
    """How many GPUs a task asks Slurm for."""
    return 0 if job.scale == "tiny" else job.num_gpus


def groups(files: list[str]) -> None:
    """Print GPUs, minutes and files of each array, without jobs that are queued or finished."""
    states, found = queued(), records()
    busy = {file: task for task, file in submitted() if task in states}
    arrays: dict[int, list[tuple[str, Job]]] = {}
    for file in files:
        job = load_job(file)
        record = record_of(job, found)
        if file in busy:
            print(f"{job.name}: is in the queue as {busy[file]}", file=sys.stderr)
        elif record and stands(job, record):
            print(f"{job.name}: has a result, {record['status']}", file=sys.stderr)
        else:
            arrays.setdefault(gpus_of(job), []).append((file, job))
    for gpus, members in sorted(arrays.items()):
        longest = max(job.timeout_s for _, job in members)
        minutes = math.ceil((longest + MARGIN_S) / 60)
        print(gpus, minutes, *(file for file, _ in members), sep="\t")


def keep(array: str, files: list[str]) -> None:
    """Remember what was submitted."""
    with KEPT.open("a", encoding="utf-8") as kept:
        kept.writelines(f"{array}_{index}\t{file}\n" for index, file in enumerate(files))


def status() -> None:
    """Print each submitted task with its state in the queue and its job's record."""
    states, found = queued(), records()
    for task, file in submitted():
        try:
            record = record_of(load_job(file), found)
        except JobError as error:
            record = {"status": "unreadable", "reason": error.problems[0]}
        said = f"{record['status']} {record['reason']}".strip() if record else "no record"
        print(f"{task:<10} {states.get(task, 'ended'):<12} {Path(file).stem:<28} {said}")


if __name__ == "__main__":
    action, *words = sys.argv[1:]
    if action == "groups":
        groups(words)
    elif action == "keep":
        keep(words[0], words[1:])
    elif action == "gpus":
        print(gpus_of(load_job(words[0])))
    else:
        status()
