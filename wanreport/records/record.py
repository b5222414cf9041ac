"""Records: what one job gave on one machine, as JSON, written whole or not at all.

It is a dictionary in the form of :class:`wanreport.records.files.Record`, also of a failed job.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wanreport.jobs.job import BENCHMARK_VERSION, Job, job_hash, located
from wanreport.records.files import FileError, parse_record, read_json

RESULTS_DIRS = [*map(Path, os.environ.get("WANREPORT_RESULTS", "results:results/local").split(":"))]
"""Where records are looked for: the committed ones first, last those that measuring writes."""
EARLIER = "earlier"  # the folder beside records for runs that do not speak for their job any more
REUSABLE = {"ok": 2, "oom": 1}  # statuses that are results, by how much they tell
RecordError = FileError
Found = tuple[Path, dict[str, Any]]


def new_record(job: Job, **known: Any) -> dict[str, Any]:
    """A record of a resolved job with every key, in the order of the file; it failed by default."""
    return {
        "schema_version": 1, "benchmark_version": BENCHMARK_VERSION,
        "job": job.model_dump(mode="json"), "job_hash": job_hash(job),
        "status": "failed", "reason": "", "hint": "", "model": {}, "schedule": {}, "sglang": {},
        "machine": {}, "software": {}, "engine": {}, "started_at": "", "wall_s": 0.0,
        "cold_start_s": None, "iterations": [], "timeline": [], "traces": [],
        **({"made_from": _files_of(job)} if job.checkpoint else {}), **known,
    }  # fmt: skip


def project_root() -> Path:
    """The folder with notebooks/ and params/: the current one, a parent, or ours."""
    here = Path.cwd().resolve()
    known = (here, *here.parents, Path(__file__).resolve().parents[2])
    parts = ("notebooks", "params")
    return next((each for each in known if all((each / part).is_dir() for part in parts)), here)


def _files_of(job: Job) -> str | None:
    """A digest of the checkpoint's files: names, sizes and times; None where there are none."""
    folder = Path(located(job, project_root()).checkpoint or "")
    files = sorted(file for pattern in ("*.json", "[!.]*/*") for file in folder.glob(pattern))
    stats = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns)
             for file in files if file.is_file()]  # fmt: skip
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16] if stats else None


def stands(job: Job, record: Mapping[str, Any]) -> bool:
    """Whether measuring `job` again would only repeat this record of it.

    It is a result, and the job's weights are those that it was made from. What ended a job for want
    of something outside of it (memory of the host, GPUs, a checkpoint) may be there the next time.
    """
    made_from = record.get("made_from")
    if made_from and job.checkpoint and _files_of(job) not in (None, made_from):
        return False
    device = "OutOfMemoryError" in record["reason"]  # torch's, of a device alone
    return record["status"] == "ok" or (record["status"] == "oom" and device)


def write_record(record: Mapping[str, Any], path: str | Path) -> Path:
    """Check `record` and write it to `path`; a reader sees the old record or the new.

    A result of the full model that another run left there moves to ``earlier/``. If that is better
    than this one, it stays, and this one goes to ``earlier/``. Returns where it was written. Raises
    RecordError if it is not a record, or if the disk refuses it; nothing is changed then.
    """
    path = target = Path(path)
    parse_record(path, record)

    def earlier(started_at: str) -> Path:
        when = re.sub(r"\W", "", started_at.partition("+")[0])
        return path.parent / EARLIER / f"{path.stem}-{when}.json"

    try:
        with contextlib.suppress(RecordError):  # nothing there, or nothing usable
            old = parse_record(path, read_json(path))
            if REUSABLE.get(old.status, 0) > REUSABLE.get(record["status"], 0):
                target = earlier(record["started_at"])
            elif (old.status == "ok" and not old.is_rehearsal
                  and old.started_at != record["started_at"]):  # fmt: skip
                replace_file(earlier(old.started_at), path.read_bytes())
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        replace_file(target, text + "\n")
    except OSError as error:
        why = f"{error.strerror or error}; an earlier record stays"
        raise RecordError(f"{path}: not written ({why})") from error
    return target


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = error.filename or str(path)
        raise


def read_record(path: str | Path) -> dict[str, Any]:
    """Read and check one record; raises RecordError for a file that is not one."""
    record: dict[str, Any] = read_json(Path(path))
    parse_record(Path(path), record)
    return record


def record_path(root: str | Path, machine_slug: str, job_name: str, job_hash: str) -> Path:
    """``root/<machine>/<job>-<hash>.json``."""
    return Path(root) / machine_slug / f"{job_name}-{job_hash}.json"


def find_records(root: str | Path) -> list[Found]:
    """All records under ``root/<machine>/``, sorted; RecordError names all that are unusable."""
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

    The real scale goes before tiny; then what tells more; then the job's own name, and the latest.
    """

    def rank(item: Found) -> tuple[Any, ...]:
        path, record = item
        given, tells = record["job"], REUSABLE.get(record["status"], 0)
        own = given.get("name") == job.name
        return given["scale"] == "a14b", tells, own, record["started_at"], str(path)

    hashes = job.hashes()
    return max((item for item in records if item[1]["job_hash"] in hashes), key=rank, default=None)
