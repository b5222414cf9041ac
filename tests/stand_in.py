"""Stands in for measuring: a made-up record; a job's purpose says how it behaves."""

from pathlib import Path
from typing import Any

from tests import synthetic
from wanreport.jobs.job import Job, job_hash
from wanreport.measure.jobs import Machine, Running
from wanreport.records.record import record_path, write_record

SLUG = synthetic.CPU["slug"]
SAYS = {
    "unsupported": {"status": "unsupported", "reason": "too big", "hint": "get a bigger one"},
    "oom": {"status": "oom", "reason": "CUDA out of memory"},
    "dies": {"status": "failed", "reason": "rank 0 was killed by SIGKILL"},
}


def this_machine() -> Machine:
    return Machine(SLUG, 0)


def running(job: Job, root: Path, **_: Any) -> Running:
    yield
    record = synthetic.record(job.name, engine=job.engine, num_gpus=job.num_gpus)
    record |= {"job": job.model_dump(mode="json"), "job_hash": job_hash(job)}
    path = record_path(root, SLUG, job.name, record["job_hash"])
    return write_record(record | SAYS.get(job.purpose, {}), path)
