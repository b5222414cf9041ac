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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from wanreport.jobs.job import Job, located
from wanreport.jobs.sglang import ModelPathError, resolve_model
from wanreport.measure import machine, ranks
from wanreport.records.project import project_root
from wanreport.records.record import (
    RecordError,
    new_record,
    read_record,
    record_path,
    write_record,
)

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


class Unsupported(Exception):
    """A job that this machine or this package cannot run; says why, and what would."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def run_job(job: Job, root: Path, *, plan_only: bool = False, log: TextIO | None = None) -> Path:
    """Run one resolved job and write its record; with ``plan_only`` no more than its plan.

    ``log`` takes a line an iteration and tracebacks; by default stderr does.

    Returns the record's path; raises RecordError if it could not be written.
    """
    started, begun = datetime.now(UTC), time.perf_counter()
    here, sglang = machine.machine(), job.sglang()
    record = new_record(
        job,
        # One machine has one class, also for what it runs on its CPU for want of GPUs.
        machine=here | {"device": here["device"] if job.scale == "a14b" else "cpu"},
        software=machine.software(),
        sglang={
            **{key: getattr(sglang, key) for key in
               ("layerwise", "cpu_offload", "fsdp", "prefetch_size", "engine")},
            "steps": list(sglang.steps),
        },
        engine={"name": job.engine},
        started_at=started.isoformat(timespec="seconds"),
    )  # fmt: skip
    path = record_path(root, record["machine"]["slug"], job.name, record["job_hash"])
    stopped: SystemExit | None = None
    with tempfile.TemporaryDirectory(prefix="wanreport-job-", ignore_cleanup_errors=True) as tmp:
        try:
            placed = located(job, project_root())
            settings = _settings(placed, here["gpu_count"])
            found = _measured(placed, settings, Path(tmp), plan_only, log)
        except Unsupported as error:
            found = {"status": "unsupported", "reason": str(error), "hint": error.hint}
        except SystemExit as error:  # of SIGTERM, as at a batch system's limit
            stopped = error
            found = {"status": "failed", "reason": f"ended from outside (exit {error.code})"}
        except Exception as error:
            traceback.print_exc(file=log)
            found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        for part in ("machine", "software", "sglang", "engine"):
            record[part] |= found.pop(part, {})
        record |= found
        record["wall_s"] = round(time.perf_counter() - begun, 3)
        try:
            if record["status"] == "ok":
                record["traces"] = _keep_traces(Path(tmp), path)
            elif record["status"] != "unsupported":
                logs = _keep_logs(Path(tmp), path)
                record["hint"] = f"{HINTS[record['status']]} ({logs})"
        except OSError as error:  # a full disk must not cost the result too
            record["hint"] = f"traces and logs could not be kept: {error}"
    if not (stopped and _is_ok(path)):
        write_record(record, path)
    if stopped:
        raise stopped
    return path


def _is_ok(path: Path) -> bool:
    try:
        return bool(read_record(path)["status"] == "ok")
    except RecordError:  # nothing, or nothing usable
        return False


def _settings(job: Job, gpus: int) -> dict[str, Any]:
    """The model's settings; what rules a job out without starting its ranks is found here."""
    if job.scale == "a14b" and gpus < job.num_gpus:
        raise Unsupported(
            f"full scale needs {job.num_gpus} GPUs and this machine has {gpus}",
            "run it where there are enough, or set scale: tiny for a rehearsal",
        )
    if job.scale == "tiny" and job.checkpoint:
        weights = Path(job.checkpoint).glob("transformer*/*.safetensors")
        size = sum(file.stat().st_size for file in weights)
        free = machine.host_memory()["available"]
        if size > free / 2:
            raise Unsupported(
                f"the checkpoint's experts take {size / 1e9:.1f} GB and this machine has"
                f" {free / 1e9:.1f} GB of memory free; a rehearsal runs a checkpoint as it is",
                "leave out `checkpoint` to rehearse with small random weights",
            )
    listing = Path(job.checkpoint or "") / "model_index.json"
    try:
        index = json.loads(listing.read_text()) if job.checkpoint and listing.is_file() else None
        found = resolve_model(job.model_path, index=index)
    except (ModelPathError, OSError, ValueError) as error:
        raise Unsupported(str(error), "point `checkpoint` at a complete folder") from error
    return {
        "config": found.config,
        "how": found.how,
        **{
            key: getattr(found, key) if getattr(job, key) is None else getattr(job, key)
            for key in ("flow_shift", "boundary_ratio", "guidance_scale", "guidance_scale_2")
        },
    }


def _measured(
    job: Job, settings: dict[str, Any], out: Path, plan_only: bool, log: TextIO | None
) -> dict[str, Any]:
    """What the ranks found, as parts of a record."""
    spec = {"job": job.model_dump(mode="json"), "settings": settings, "plan_only": plan_only,
            "host_free": machine.host_memory()["available"]}  # fmt: skip
    (out / "spec.json").write_text(json.dumps(spec))
    deadline = time.monotonic() + job.timeout_s
    progress = Progress(job, out / "progress", log)
    start = ranks.KINDS["cpu" if job.scale == "tiny" else "cuda"]
    try:
        begun = start(out / "spec.json", out, job.num_gpus)
        results, codes = ranks.watch(begun, out, job.num_gpus, deadline, progress.update)
    finally:
        progress.close()
    if not all(result and result["status"] == "ok" for result in results):
        # The codes from before our own kill: what we ended says nothing about the cause.
        return ranks.failure(job.timeout_s, results, codes, progress.last)
    found = _merge([result for result in results if result])
    found["machine"] |= {"link": found.pop("link"), "transport": ranks.transport(out)}
    found["engine"]["plan"] = found.pop("plan", None)
    return found


def _merge(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of all ranks': lists where ranks differ, rank 0's word for the rest."""
    merged = dict(results[0])
    merged["iterations"] = []
    for parts in zip(*(result["iterations"] for result in results), strict=True):
        iteration = dict(parts[0])
        for key in ("counters", "expected_counters", "memory", "gpu"):
            iteration[key] = [part[key] for part in parts]
        iteration["steps"] = [
            {**steps[0], **{key: [step[key] for step in steps] for key in ("seconds", "h2d_bytes")}}
            for steps in zip(*(part["steps"] for part in parts), strict=True)
        ]
        merged["iterations"].append(iteration)
    return merged


def _keep_traces(out: Path, record: Path) -> list[dict[str, Any]]:
    """Move traces beside the record; their paths are relative to the record's folder."""
    kept = []
    folder = record.parent / "traces" / record.stem
    for source in sorted((out / "traces").glob("rank*.json.gz")) + sorted(out.glob("nsys.sqlite")):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / source.name
        part = target.with_suffix(".part")
        try:
            shutil.copyfile(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        kept.append({
            # One export holds all ranks.
            "rank": int(re.sub(r"\D", "", source.name) or 0),
            "path": str(target.relative_to(record.parent)),
            "bytes": target.stat().st_size,
            "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        })  # fmt: skip
    return sorted(kept, key=lambda trace: trace["rank"])


def _keep_logs(out: Path, record: Path) -> str:
    """Keep the ranks' logs of a failed job beside its record; says where."""
    folder = record.parent / "logs" / record.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(out.rglob("*.log")):
        if source.stat().st_size:
            shutil.copyfile(source, folder / "-".join(source.relative_to(out).parts[-3:]))
    return f"logs: {folder.relative_to(record.parent)}, beside this record"


class Progress:
    """A bar for a person at a terminal; one line an iteration for a log."""

    def __init__(self, job: Job, path: Path, log: TextIO | None) -> None:
        self.job, self.path, self.last = job, path, "not started"
        self.log, self.bar = log, None if not sys.stderr.isatty() else tqdm(leave=False)
        self._read, self._iteration = 0, ""

    def update(self) -> None:
        """Show what rank 0 has said since the last time."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        for words in map(str.split, lines[self._read :]):
            self.last = " ".join(words)
            if len(words) == 4:
                kind, iteration, step, steps = words
                self.last = f"{kind} iteration, step {int(step) + 1} of {steps}"
                self._show(kind, iteration, int(step) + 1, int(steps))
        self._read = len(lines)

    def _show(self, kind: str, iteration: str, done: int, steps: int) -> None:
        if iteration != self._iteration:
            self._iteration = iteration
            print(f"{self.job.name}: {kind} iteration", file=self.log or sys.stderr, flush=True)
            if self.bar is not None:
                self.bar.set_description(f"{self.job.name}: {kind}")
                self.bar.reset(total=steps)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
