"""Runs jobs and writes their records.

``python -m wanreport.measure.launch --root DIR --json-job FILE…`` prints each record's path.

Each job runs as one process a rank, and ends in one record, whatever happens to its ranks: this
process watches them and never holds a GPU or a collective itself. On GPUs torchrun starts the
ranks. On CPU they are forked from a small server that has imported torch once for all jobs.

The path of each record goes to stdout as soon as it is written, and nothing else; progress goes to
stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from wanreport.engines import ENGINES
from wanreport.jobs.job import Job, job_from_mapping
from wanreport.jobs.sglang import ModelPathError, resolve_model
from wanreport.measure import local
from wanreport.measure.machine import host_memory, machine, software
from wanreport.measure.worker import die_with_parent
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert
from wanreport.model.weights import (
    CheckpointError,
    CheckpointWeights,
    HostStore,
    Layout,
    RandomWeights,
)
from wanreport.planner.plan import MIN_ROOM, room
from wanreport.records.record import RecordError, new_record, record_path, write_record

WORKER = "wanreport.measure.worker"  # what a rank runs: `forked_main`, or the module by itself
HOST_OVERHEAD = 4 * 10**9  # bytes a rank takes on the host beside weights: CUDA, VAE, frames
GRACE = 45.0  # seconds that ranks get to end by themselves after one of them failed

HINTS = {
    "oom": "on the device: an engine that keeps fewer blocks there (layerwise), more GPUs, or fewer"
    " frames; on the host: fewer ranks, or a machine with more memory",
    "timeout": "raise timeout_s if the job was merely slow; else look at the ranks' logs for the"
    " rank that was not in the collective",
    "failed": "the ranks' logs say where (a kill from outside is often the kernel's out-of-memory"
    " killer); the next run measures this job again",
}


class Ranks(Protocol):
    """The processes of one job."""

    def exit_codes(self) -> list[int | None]:
        """Of each process; None while it runs, negative for a signal."""

    def kill(self) -> None: ...


class ForkedRanks:
    """Ranks on CPU, forked from a server that has the imports behind it."""

    def __init__(self, spec: Path, out: Path, world_size: int, module: str = WORKER) -> None:
        context = multiprocessing.get_context("forkserver")
        # Each rank imports this module too, as the main one; only the server pays for it.
        context.set_forkserver_preload(["wanreport.measure.launch", module])
        target = importlib.import_module(module).forked_main
        self.processes: list[Any] = []
        for rank in range(world_size):
            arguments = (str(spec), str(out), rank, world_size)
            self.processes.append(context.Process(target=target, args=arguments))
            self.processes[-1].start()

    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(GRACE)


class TorchrunRanks:
    """Ranks on the GPUs of this host."""

    def __init__(self, spec: Path, out: Path, world_size: int, module: str = WORKER) -> None:
        self.out, self.world_size = out, world_size
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={world_size}", "--redirects=3", f"--log-dir={out / 'logs'}",
            "-m", module, str(spec), str(out),
        ]  # fmt: skip
        # NCCL says only in its log which transport it chose.
        told = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(out / "nccl.%p.log")}
        with (out / "torchrun.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent, env=os.environ | told,
            )  # fmt: skip

    def exit_codes(self) -> list[int | None]:
        code = self.process.poll()
        if code is None:
            return [None] * self.world_size
        codes: list[int | None] = [0] * self.world_size
        # It lists the ranks that failed by themselves, not those that it ended because of them.
        log = (self.out / "torchrun.log").read_text(errors="replace")
        for rank, its in re.findall(
            r"rank\s*: (\d+) \(local_rank.*?exitcode\s*: (-?\d+)", log, re.S
        ):
            codes[int(rank)] = int(its)
        return codes

    def kill(self) -> None:
        # torchrun passes SIGTERM on; a rank that hangs in a kernel needs more.
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for rank in range(self.world_size):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.out / f"rank{rank}.pid").read_text())
                # A pid may be a stranger's by now.
                if os.fsencode(self.out) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


class Unsupported(Exception):
    """A job that this machine or this package cannot run; says why, and what would."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def run_job(job: Job, root: Path, *, plan_only: bool = False) -> Path:
    """Run one resolved job and write its record; with ``plan_only`` no more than its plan.

    Returns
    -------
    The record's path.

    Raises
    ------
    RecordError
        If the record could not be written.
    """
    started, begun = datetime.now(UTC), time.perf_counter()
    device = "cuda" if job.scale == "a14b" and torch.cuda.is_available() else "cpu"
    record = new_record(
        job,
        # One machine has one class, also for what it runs on its CPU for want of GPUs.
        machine=machine("cuda" if torch.cuda.is_available() else "cpu") | {"device": device},
        software=software(),
        started_at=started.isoformat(timespec="seconds"),
    )
    path = record_path(root, record["machine"]["slug"], job.name, record["job_hash"])
    with tempfile.TemporaryDirectory(prefix="wanreport-job-", ignore_cleanup_errors=True) as tmp:
        try:
            spec = _spec(job) | {"plan_only": plan_only}
            record["sglang"] = spec["sglang"]
            record["engine"] = spec["engine"]
            found = _measure(job, spec, Path(tmp))
            for key in ("link", "transport"):
                record["machine"][key] = found.pop(key, None)
            record["engine"]["plan"] = found.pop("plan", None)
        except Unsupported as error:
            found = {"status": "unsupported", "reason": str(error), "hint": error.hint}
        except Exception as error:
            traceback.print_exc()
            found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
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
    write_record(record, path)
    return path


def _spec(job: Job) -> dict[str, Any]:
    """What the ranks need to know; every reason not to start them is found here."""
    gpus = torch.cuda.device_count()
    if job.scale == "a14b" and gpus < job.num_gpus:
        raise Unsupported(
            f"full scale needs {job.num_gpus} GPUs and this machine has {gpus}",
            "run it where there are enough, or set scale: tiny for a rehearsal",
        )
    if job.cache_dit:
        raise Unsupported(
            "cache-dit skips blocks, which changes the result; no engine here does that",
            "set cache_dit: false",
        )
    if job.scale == "tiny" and job.checkpoint:
        weights = Path(job.checkpoint).glob("transformer*/*.safetensors")
        size = sum(file.stat().st_size for file in weights)
        free = host_memory()["available"]
        if size > free / 2:
            raise Unsupported(
                f"the checkpoint's experts take {size / 1e9:.1f} GB and this machine has"
                f" {free / 1e9:.1f} GB of memory free; a rehearsal runs a checkpoint as it is",
                "leave out `checkpoint` to rehearse with small random weights",
            )
    index, layers = None, (TINY if job.scale == "tiny" else A14B)["num_layers"]
    try:
        if job.checkpoint:
            layers = CheckpointWeights(job.checkpoint).config("high_noise")["num_layers"]
            listing = Path(job.checkpoint) / "model_index.json"
            index = json.loads(listing.read_text()) if listing.is_file() else None
        settings = resolve_model(job.model_path, index=index)
    except (CheckpointError, ModelPathError, OSError, ValueError, KeyError) as error:
        raise Unsupported(str(error), "point `checkpoint` at a complete folder") from error
    resolved = {
        "config": settings.config,
        "how": settings.how,
        **{
            key: getattr(settings, key) if getattr(job, key) is None else getattr(job, key)
            for key in ("flow_shift", "boundary_ratio", "guidance_scale", "guidance_scale_2")
        },
    }
    for key in ("flow_shift", "guidance_scale"):
        if resolved[key] is None:
            raise Unsupported(
                f"model_path {job.model_path!r} resolves to {settings.config}, which has no {key}",
                f"give {key} in the job, or the path of a Wan text-to-video model",
            )
    if job.scale == "a14b":
        _require_host_memory(job)
    sglang, prefetch = job.sglang(), job.prefetch(layers)
    return {
        "job": job.model_dump(mode="json"),
        "settings": resolved,
        "prefetch": prefetch,
        "room": _room(job) if job.engine == "stream" else None,
        "sglang": {
            "layerwise": sglang.layerwise,
            "cpu_offload": sglang.cpu_offload,
            "fsdp": sglang.fsdp,
            "prefetch_size": sglang.prefetch_size,
            "engine": sglang.engine,
            "steps": list(sglang.steps),
            "prefetch_layers": prefetch,
        },
        "engine": {
            "name": job.engine,
            "prefetch": prefetch,
            "branches_per_visit": ENGINES[job.engine].branches_per_visit,
            "counters_derived": ENGINES[job.engine].counters_derived,
        },
    }


def _layouts(job: Job, **changes: Any) -> list[Layout]:
    """Layouts of the experts' units at full size, or as in the job's checkpoint."""
    config = A14B
    if job.checkpoint:
        config = CheckpointWeights(job.checkpoint).config("high_noise")
    dtype = getattr(torch, job.dtype)
    experts = {name: Expert(name, config | changes, dtype) for name in EXPERTS}
    return list(HostStore(experts, RandomWeights()).layouts.values())


def _room(job: Job) -> int:
    """How many blocks the job's budget holds on the device; in a rehearsal in proportion."""
    outer, block, *_ = (layout.nbytes for layout in _layouts(job, num_layers=1))
    blocks = room(job.vram_budget_gb, block, outer)
    if blocks < MIN_ROOM:
        least = (2 * outer + MIN_ROOM * block) / 1e9
        raise Unsupported(
            f"vram_budget_gb {job.vram_budget_gb} holds {blocks} blocks, and streaming needs"
            f" {MIN_ROOM} beside what lies outside the blocks",
            f"give at least {math.ceil(least * 10) / 10} GB, or leave the budget out",
        )
    if job.scale == "tiny" and not job.checkpoint:
        blocks = max(blocks * TINY["num_layers"] // A14B["num_layers"], MIN_ROOM)
    return blocks


def _require_host_memory(job: Job) -> None:
    """Refuse a job whose host copy of the weights does not fit, before anything is allocated."""
    engine = ENGINES[job.engine]
    needed = engine.host_bytes(_layouts(job), job.num_gpus) + job.num_gpus * HOST_OVERHEAD
    free = host_memory()["available"]
    if needed > free:
        raise Unsupported(
            f"engine {job.engine} on {job.num_gpus} GPUs keeps {needed / 1e9:.1f} GB in host memory"
            f" and {free / 1e9:.1f} GB are free: {(needed - free) / 1e9:.1f} GB are missing",
            "run it with more memory (on SLURM: --mem), with fewer GPUs, or with an engine whose"
            " host copy all ranks share (resident, layerwise)",
        )


def _measure(job: Job, spec: dict[str, Any], out: Path) -> dict[str, Any]:
    spec_file = out / "spec.json"
    spec_file.write_text(json.dumps(spec))
    world_size = job.num_gpus
    start = ForkedRanks if job.scale == "tiny" else TorchrunRanks
    deadline = time.monotonic() + job.timeout_s
    progress = Progress(job, out / "progress")
    try:
        ranks: Ranks = start(spec_file, out, world_size)
        results, codes = watch(ranks, out, world_size, deadline, progress.update)
    finally:
        progress.close()
    if all(result and result["status"] == "ok" for result in results):
        return _merge([result for result in results if result]) | {"transport": transport(out)}
    # The codes from before our own kill: what we ended says nothing about the cause.
    return failure(job.timeout_s, results, codes, progress.last)


def watch(
    ranks: Ranks, out: Path, world_size: int, deadline: float, update: Callable[[], None]
) -> tuple[list[dict[str, Any] | None], list[int | None]]:
    """Wait for ranks and end those that outlive a failed one or ``deadline`` (`time.monotonic`).

    Returns
    -------
    What each rank left in ``out``, and the exit codes from before any was ended by us: those say
    nothing about the cause.
    """
    parent = os.getppid()
    try:
        while True:
            codes = ranks.exit_codes()
            update()
            if all(code is not None for code in codes):
                break
            results = [_result(out, rank) for rank in range(world_size)]
            if any(codes) or any(r and r["status"] != "ok" for r in results):
                deadline = min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline:
                break
            if os.getppid() != parent:  # who asked for this is gone
                raise KeyboardInterrupt
            time.sleep(0.05)
    finally:
        ranks.kill()
    return [_result(out, rank) for rank in range(world_size)], codes


def transport(out: Path) -> list[str]:
    """What NCCL's channels between ranks go over, as its log says: "P2P/CUMEM", "SHM/direct"."""
    logs = "".join(log.read_text(errors="replace") for log in out.glob("nccl.*.log"))
    return sorted(set(re.findall(r"Channel .* via (\S+)", logs)))


def _result(out: Path, rank: int) -> dict[str, Any] | None:
    path = out / f"rank{rank}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def failure(
    timeout_s: float,
    results: Sequence[dict[str, Any] | None],
    codes: Sequence[int | None],
    last: str,
) -> dict[str, Any]:
    """Status and reason of ranks that did not end well: the first cause, not its echoes.

    Parameters
    ----------
    timeout_s
        The time that they had, in seconds.
    results
        What each rank left, if anything; failures say when (``at``).
    codes
        Exit code of each rank before the launcher ended the rest; None for one that still ran.
    last
        The last progress there was.
    """
    told = sorted((r["at"], k) for k, r in enumerate(results) if r and r["status"] != "ok")
    first = [k for _, k in told]
    memory = [k for k in first if (results[k] or {}).get("status") == "oom"]
    died = [k for k, code in enumerate(codes) if code and results[k] is None]
    # By SIGTERM torchrun ends the ranks that outlive one: a cause only where there is no other.
    died = [k for k in died if codes[k] != -signal.SIGTERM] or ([] if told else died)
    died.sort(key=lambda k: codes[k] or 0)  # signals first
    if died and not memory:
        code = codes[died[0]] or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        reason = f"rank {died[0]} {how} without a result"
        return {"status": "failed", "reason": f"{reason} ({last})"}
    for rank in memory or first:
        result = results[rank] or {}
        return {"status": result["status"], "reason": f"rank {rank}: {result['reason']} ({last})"}
    if None in codes:
        reason = f"not done within timeout_s = {timeout_s:g} s"
        return {"status": "timeout", "reason": f"{reason} ({last})"}
    return {"status": "failed", "reason": f"the ranks ended without a result ({last})"}


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
    for source in sorted((out / "traces").glob("rank*.json.gz")):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / source.name
        part = target.with_suffix(".part")
        try:
            shutil.copyfile(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        kept.append(
            {
                "rank": int(source.name.removeprefix("rank").split(".")[0]),
                "path": str(target.relative_to(record.parent)),
                "bytes": target.stat().st_size,
                "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
            }
        )
    return sorted(kept, key=lambda trace: trace["rank"])


def _keep_logs(out: Path, record: Path) -> str:
    """Keep the ranks' logs of a failed job beside its record; says where."""
    folder = record.parent / "logs" / record.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(out.rglob("*.log")):
        if source.stat().st_size:
            name = "-".join(source.relative_to(out).parts[-3:])
            shutil.copyfile(source, folder / name)
    return f"logs: {folder.relative_to(record.parent)}, beside this record"


class Progress:
    """A bar for a person, one line an iteration for a log."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job, self.path, self.last = job, path, "not started"
        self.bar: tqdm[Any] | None = None
        self.person = bool(os.environ.get(local.PROGRESS)) or sys.stderr.isatty()
        self._read, self._iteration = 0, ""

    def update(self) -> None:
        if not self.path.is_file():
            return
        lines = self.path.read_text().splitlines()
        for line in lines[self._read :]:
            self._show(line.split())
        self._read = len(lines)

    def _show(self, words: list[str]) -> None:
        if len(words) != 4:
            self.last = " ".join(words)
            return
        kind, iteration, step, steps = words
        self.last = f"{kind} iteration, step {int(step) + 1} of {steps}"
        if not self.person:
            if iteration != self._iteration:
                print(f"{self.job.name}: {kind} iteration", file=sys.stderr, flush=True)
        else:
            if self.bar is None or iteration != self._iteration:
                self.close()
                self.bar = tqdm(total=int(steps), desc=f"{self.job.name}: {kind}", leave=False)
            self.bar.update(int(step) + 1 - self.bar.n)
        self._iteration = iteration

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wanreport.measure.launch", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the records")
    parser.add_argument("--json-job", type=Path, action="append", default=[], metavar="FILE",
                        help="a resolved job as JSON; may be given again")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="begin no job whose timeout_s would not fit in")  # fmt: skip
    parser.add_argument("--plan-only", action="store_true",
                        help="choose the settings of stream, and stop there")  # fmt: skip
    begun, arguments = time.monotonic(), parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    jobs = [job_from_mapping(json.loads(f.read_text()), source=str(f)) for f in arguments.json_job]
    gpus = torch.cuda.device_count()
    here = machine("cuda" if gpus else "cpu")
    local.remember_machine(arguments.root, here["slug"], gpus)
    worst = 0
    for job in jobs:
        if time.monotonic() - begun + job.timeout_s > arguments.minutes * 60:
            print(f"{job.name}: no time left for it in this run", file=sys.stderr)
            worst = worst or local.TIME_IS_UP
            continue
        try:
            print(run_job(job, arguments.root, plan_only=arguments.plan_only), flush=True)
        except RecordError as error:
            print(error, file=sys.stderr)
            worst = 1
        except KeyboardInterrupt:
            print(f"{job.name}: interrupted; records written so far stay", file=sys.stderr)
            return 130
    return worst


if __name__ == "__main__":
    sys.exit(main())
