"""Runs a job and writes its record, whatever happens to its ranks. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from wanreport.jobs.job import Job, located
from wanreport.measure import machine, ranks
from wanreport.measure.ranks import Unsupported
from wanreport.records.project import project_root
from wanreport.records.record import naming, new_record, record_path, replace_file, write_record

HINTS = {
    "oom": "on the device: an engine that keeps fewer blocks there (layerwise), more GPUs, or fewer"
    " frames; on the host: fewer ranks, or a machine with more memory",
    "timeout": "raise timeout_s if the job was merely slow; else look at the ranks' logs for the"
    " rank that was not in the collective",
    "non-finite": "the same job with `engine: resident` tells whether the weights or the engine are"
    " at fault",
    "failed": "the ranks' logs say where (a kill from outside is often the kernel's out-of-memory"
    " killer); the next run measures this job again",
}


def run_job(job: Job, root: Path, *, plan_only: bool = False, log: TextIO | None = None) -> Path:
    """Run one resolved job and return its record's path; with ``plan_only`` no more than its plan.

    ``log`` takes a line an iteration and tracebacks; by default stderr does. Raises RecordError if
    the record could not be written.
    """
    started, begun = datetime.now(UTC), time.perf_counter()
    here = machine.machine()
    record = new_record(
        job,
        # One machine has one class, also for what it runs on its CPU for want of GPUs.
        machine=here | {"device": here["device"] if job.scale == "a14b" else "cpu"},
        software=machine.software(),
        sglang=asdict(job.sglang()),
        engine={"name": job.engine},
        started_at=started.isoformat(timespec="seconds"),
    )
    path = record_path(root, here["slug"], job.name, record["job_hash"])
    stopped: SystemExit | None = None
    with tempfile.TemporaryDirectory(prefix="wanreport-job-", ignore_cleanup_errors=True) as folder:
        out = Path(folder)
        try:
            with naming(out):
                placed = located(job, project_root())
                found = _measured(placed, here["gpu_count"], out, plan_only, log)
        except Unsupported as error:
            found = {"status": "unsupported", "reason": str(error), "hint": error.hint}
        except SystemExit as error:  # of SIGTERM, as at a batch system's limit
            stopped = error
            found = {"status": "failed", "reason": f"ended from outside (exit {error.code})"}
        except Exception as error:
            with suppress(OSError):  # the log's own disk may be the full one
                traceback.print_exc(file=log)
            found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        for part in ("machine", "software", "sglang", "engine"):
            record[part] |= found.pop(part, {})
        record |= found | {"wall_s": round(time.perf_counter() - begun, 3)}
        try:
            if record["status"] == "ok":
                record["traces"] = _keep_traces(out, path)
            elif record["status"] != "unsupported":
                record["hint"] = f"{HINTS[record['status']]} ({_keep_logs(out, path)})"
        except OSError as error:  # a full disk must not cost the result too
            record["hint"] = f"traces and logs could not be kept: {error}"
    path = write_record(record, path)
    if stopped:
        raise stopped
    return path


def _measured(
    job: Job, gpus: int, out: Path, plan_only: bool, log: TextIO | None
) -> dict[str, Any]:
    """What the ranks found, as parts of a record."""
    if job.scale == "a14b" and gpus < job.num_gpus:
        raise Unsupported(
            f"full scale needs {job.num_gpus} GPUs and this machine has {gpus}",
            "run it where there are enough, or set scale: tiny for a rehearsal",
        )
    nodes = machine.nodes()
    if job.num_gpus % nodes:
        raise Unsupported(
            f"{job.num_gpus} ranks are not as many on each of {nodes} nodes",
            f"ask for a number of nodes that divides {job.num_gpus}",
        )
    spec, progress = out / "spec.json", Progress(job.name, out / "progress", log)
    given = {"job": job.model_dump(mode="json"), "plan_only": plan_only}
    spec.write_text(json.dumps(given | {"host_free": machine.host_memory()["available"]}), "utf-8")
    deadline = time.monotonic() + job.timeout_s
    with progress.bar:
        kind = "cpu" if job.scale == "tiny" and nodes == 1 else "cuda"
        begun = ranks.KINDS[kind](spec, out, job.num_gpus)
        results, codes = ranks.watch(begun, out, job.num_gpus, deadline, progress.update)
    if not all(result and result["status"] == "ok" for result in results):
        return ranks.failure(job.timeout_s, results, codes, progress.last)
    found = _merge([result for result in results if result])
    found["machine"]["transport"] = ranks.transport(out)
    return found


def _merge(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of all ranks': lists where ranks differ, rank 0's word for the rest."""

    def merged(parts: Sequence[dict[str, Any]], *keys: str) -> dict[str, Any]:
        return parts[0] | {key: [part[key] for part in parts] for key in keys}

    iterations = []
    for parts in zip(*(result["iterations"] for result in results), strict=True):
        whole = merged(parts, "counters", "expected_counters", "memory", "gpu")
        rows = zip(*(part["steps"] for part in parts), strict=True)
        iterations.append(whole | {"steps": [merged(row, "seconds", "h2d_bytes") for row in rows]})
    return results[0] | {"iterations": iterations}


def _keep_traces(out: Path, record: Path) -> list[dict[str, Any]]:
    """Keep traces beside the record; their paths are relative to the record's folder."""
    kept = []
    for source in (*out.glob("traces/rank*.json.gz"), *out.glob("nsys.sqlite")):
        data, path = source.read_bytes(), f"traces/{record.stem}/{source.name}"
        replace_file(record.parent / path, data)
        digest = hashlib.sha256(data).hexdigest()
        rank = int(re.sub(r"\D", "", source.name) or 0)  # one export holds all ranks
        kept.append({"rank": rank, "path": path, "bytes": len(data), "sha256": digest})
    return sorted(kept, key=lambda trace: trace["rank"])


def _keep_logs(out: Path, record: Path) -> str:
    """Keep the ranks' logs of a failed job beside its record; says where."""
    folder = record.parent / "logs" / record.stem
    shutil.rmtree(folder, ignore_errors=True)
    for source in out.rglob("*.log"):
        if data := source.read_bytes():
            replace_file(folder / "-".join(source.relative_to(out).parts[-3:]), data)
    return f"logs: {folder.relative_to(record.parent)}, beside this record"


class Progress:
    """Follows rank 0: a bar for a person at a terminal, one line an iteration for a log."""

    def __init__(self, name: str, path: Path, log: TextIO | None) -> None:
        self.name, self.path, self.log = name, path, log
        self.bar = tqdm(disable=None, leave=False)  # None: shown at a terminal only
        self.last, self._read, self._iteration = "not started", 0, ""

    def update(self) -> None:
        """Show what rank 0 has said since the last time."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        for line in lines[self._read :]:
            self.last, *numbers = line.split()
            if numbers:
                iteration, step, steps = numbers
                kind, done = f"{self.last} iteration", int(step) + 1
                self.last = f"{kind}, step {done} of {steps}"
                if iteration != self._iteration:
                    self._iteration = iteration
                    self.bar.set_description(f"{self.name}: {kind}")
                    self.bar.reset(int(steps))
                    print(f"{self.name}: {kind}", file=self.log or sys.stderr, flush=True)
                self.bar.update(done - self.bar.n)
        self._read = len(lines)
