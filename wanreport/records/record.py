"""Records: what one job gave on one machine, as JSON, written whole or not at all.

A record is a plain dictionary in the form of :class:`wanreport.records.files.Record`. Measuring
makes it, rendering reads it. A failed job is a record too, with the same top-level keys.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wanreport.jobs.job import BENCHMARK_VERSION, Job, job_hash
from wanreport.records.files import FileError, parse_record, read_json

RESULTS = "WANREPORT_RESULTS"
"""Set to look for records elsewhere, or, for published pages, among the committed ones alone."""

RESULTS_DIRS = [
    Path(folder) for folder in os.environ.get(RESULTS, "results:results/local").split(os.pathsep)
]
"""Where records are looked for: the committed ones, then those of runs on this machine."""

EARLIER = "earlier"  # the folder beside records for runs that later ones took over from
REUSABLE = frozenset({"ok", "oom"})
"""Statuses that measuring again would only repeat. What is unsupported for want of a checkpoint,
memory or GPUs may not be so the next time."""

RecordError = FileError
"""A record that cannot be read or written; the message names the file and the fix."""

Found = tuple[Path, dict[str, Any]]


def new_record(job: Job, **known: Any) -> dict[str, Any]:
    """A record of a resolved job with every top-level key; it failed unless `known` has a status.

    The keys have the order of the file.
    """
    return {
        "schema_version": 1, "benchmark_version": BENCHMARK_VERSION,
        "job": job.model_dump(mode="json"), "job_hash": job_hash(job),
        "status": "failed", "reason": "", "hint": "", "model": {}, "schedule": {}, "sglang": {},
        "machine": {}, "software": {}, "engine": {}, "started_at": "", "wall_s": 0.0,
        "cold_start_s": None, "iterations": [], "timeline": [], "traces": [], **known,
    }  # fmt: skip


def write_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Check `record` and write it to `path`; a reader sees the old record or the new.

    A result of the full model that another run left there is kept under ``earlier/``. Raises
    RecordError if it is not a record, or if the disk refuses it; nothing is changed then.
    """
    path = Path(path)
    parse_record(path, record)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with contextlib.suppress(RecordError):  # nothing there, or nothing usable
            old = read_record(path)
            result = old["status"] == "ok" and not is_rehearsal(old)
            if result and old["started_at"] != record["started_at"]:
                replace_file(_kept(path, old), path.read_bytes())
        replace_file(path, text)
    except OSError as error:
        kept = "nothing was lost: an earlier record stays as it was"
        raise RecordError(f"{path}: not written ({error.strerror or error}); {kept}") from error


def _kept(path: Path, record: Mapping[str, Any]) -> Path:
    when = re.sub(r"\W", "", record["started_at"].partition("+")[0])
    return path.parent / EARLIER / f"{path.stem}-{when}.json"


def put_back(path: Path, data: bytes) -> None:
    """Let a record's bytes take the place of a later run that failed."""
    replace_file(path, data)
    _kept(path, read_record(path)).unlink(missing_ok=True)


def replace_file(path: Path, data: str | bytes) -> None:
    """Write `data` to `path`, so that a reader sees the old file or the new, never a part."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            made = Path(folder) / path.name
            with made.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the error of a full disk name the file: a write knows a number and not the name."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = error.filename or str(path)
        raise


def read_record(path: str | Path) -> dict[str, Any]:
    """Read and check one record; raises RecordError for a file that is not one."""
    record = read_json(Path(path))
    parse_record(Path(path), record)
    return dict(record)


def record_path(root: str | Path, machine_slug: str, job_name: str, job_hash: str) -> Path:
    """``root/<machine>/<job>-<hash>.json``."""
    return Path(root) / machine_slug / f"{job_name}-{job_hash}.json"


def find_records(root: str | Path) -> list[Found]:
    """All records under ``root/<machine>/``, sorted by path; none if there is no such folder.

    Raises RecordError with every file that cannot be used: a record left out in silence would be a
    job missing from the report.
    """
    found, problems = [], []
    for path in sorted(Path(root).glob("*/[!.]*.json")):  # others are editors'
        try:
            found.append((path, read_record(path)))
        except RecordError as error:
            problems.append(str(error))
    if problems:
        raise RecordError("\n".join(problems))
    return found


def best_record(job: Job, records: Iterable[Found]) -> Found | None:
    """The record of the job's hash, at a scale at which it may run, that speaks best for it.

    The real scale goes before tiny; then what ran before what did not, and a result that stands
    before one to be tried again; then the job's own name, and the latest.
    """

    def rank(item: Found) -> tuple[Any, ...]:
        given, status = item[1]["job"], item[1]["status"]
        return (given["scale"] == "a14b", status == "ok", status in REUSABLE,
                given.get("name") == job.name, item[1]["started_at"], str(item[0]))  # fmt: skip

    hashes = job.hashes()
    return max((item for item in records if item[1]["job_hash"] in hashes), key=rank, default=None)


def is_rehearsal(record: Mapping[str, Any]) -> bool:
    """Whether times, memory and overlap say nothing about the full model on a GPU."""
    return record["job"].get("scale") != "a14b" or record["machine"].get("device") != "cuda"
