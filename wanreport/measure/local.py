"""This machine: which records it already has, and the process that measures the missing ones.

Looking up a record must be cheap, so nothing here imports torch. What a machine *is* (its class,
its slug) only measuring can tell; it leaves the answer beside the records under a fingerprint that
needs no torch, and from then on a record is found without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from wanreport.jobs.job import Job, resolve_job
from wanreport.records import record as records
from wanreport.records.project import Found, write_atomically

LAUNCH = [sys.executable, "-m", "wanreport.measure.launch"]
"""The command that measures; it takes ``--root DIR`` and ``--json-job FILE``, as often as needed,
prints the path of each job's record as soon as that is written, and nothing else, to stdout."""

MACHINES = ".machines.json"
"""Which machine class has which fingerprint; hidden, so that no one takes it for a record."""

TIME_IS_UP = 75
"""Exit status of a measuring process that left jobs for another run (sysexits' EX_TEMPFAIL)."""

PROGRESS = "WANREPORT_PROGRESS"
"""Set for the measuring process when a person watches: its stderr then reaches a terminal."""

NO_MEASURING = "WANREPORT_NO_MEASURING"
"""Set for notebooks that are rendered after measuring: they read records and never start a job."""


class Machine(NamedTuple):
    """What is known of this machine without torch: its class as a file name, its usable GPUs."""

    slug: str
    gpus: int


# Which machine is this? --------------------------------------------------------------------------


def _gpu_names() -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    # The UUID tells one card from its twin; two machines of one class must look the same.
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID: .*)?$", done.stdout, re.MULTILINE)


def _visible_gpus(names: Sequence[str]) -> int:
    """How many of them CUDA_VISIBLE_DEVICES leaves; its first bad entry ends the list."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return len(names)
    count = 0
    for entry in allowed.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return min(count, len(names))


def fingerprint() -> str:
    """16 hex digits that are equal on machines of one class with the same GPUs in reach."""
    names = _gpu_names()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    facts = {
        "system": [platform.system(), platform.machine()],
        "cores": cores,
        "gpus": names,
        "visible": _visible_gpus(names),
        # The transport that these choose is a part of the machine's class.
        "nccl": {k: v for k, v in sorted(os.environ.items()) if k.startswith("NCCL_")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def known_machine(results: Path) -> Machine | None:
    """What measuring on this machine left in `results`; None before the first time."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads((results / MACHINES).read_text())[fingerprint()]
        return Machine(str(entry["slug"]), int(entry["gpus"]))
    return None


def identify(results: Path, log: Path) -> Machine | None:
    """Have a machine with GPUs, which only measuring can name, named before anything is measured.

    Records that came from another machine of its class can then be told from missing ones.
    """
    if _visible_gpus(_gpu_names()):
        log.parent.mkdir(parents=True, exist_ok=True)
        _launch([], results, log, {}, lambda path, record: None, None, math.inf)
    return known_machine(results)


def remember_machine(results: Path, slug: str, gpus: int) -> None:
    """Note in `results` that this machine is of class `slug` and that `gpus` GPUs are usable."""
    path = results / MACHINES
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    key, entry = fingerprint(), {"slug": slug, "gpus": gpus}
    if known.get(key) == entry:
        return
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**known, key: entry}, indent=1, sort_keys=True) + "\n")


def usable_gpus(machine: Machine | None) -> int:
    """GPUs that a job can get here: what torch counted, else what the driver lists."""
    return machine.gpus if machine else _visible_gpus(_gpu_names())


# Which record speaks for a job? ------------------------------------------------------------------


def reusable(job: Job, found: Sequence[Found], machine: Machine | None) -> Found | None:
    """This machine's own record of the resolved `job` that measuring again would only repeat."""
    if machine is None:
        return None
    best = records.best_record(job, _of_machine(found, machine.slug))
    return best if best and best[1]["status"] in records.REUSABLE else None


def spoken_for(job: Job, found: Sequence[Found], machine: Machine | None) -> Found | None:
    """The record that `job`'s page shows: the best at real scale anywhere, else this machine's.

    Another machine's rehearsal stands in only where this machine has no record at all, so that it
    never hides a failure here.
    """
    real = [item for item in found if item[1]["job"]["scale"] == "a14b"]
    here = _of_machine(found, machine.slug) if machine else []
    return records.best_record(job, [*real, *here]) or records.best_record(job, found)


def _of_machine(found: Sequence[Found], slug: str) -> list[Found]:
    return [item for item in found if item[0].parent.name == slug]


# Measuring ---------------------------------------------------------------------------------------


def measure_jobs(
    jobs: Sequence[Job],
    results: Path,
    log: Path,
    on_record: Callable[[Path, dict[str, Any]], None] = lambda path, record: None,
    echo: IO[str] | None = None,
    minutes: float = math.inf,
    *,
    plan_only: bool = False,
) -> list[Found]:
    """Measure resolved `jobs` in one process and return a record for each, in the same order.

    With `plan_only` no more than the plan of each is measured. With `minutes`, a job whose
    `timeout_s` would not fit in is not begun, and has no record. Where that process dies, the job
    it was at gets a failed record that names `log`, and a new process goes on with the rest. `echo`
    receives the progress that is meant for a person. An interrupt ends the process with all its
    ranks and goes on to the caller; records written so far stay.

    Raises
    ------
    RecordError
        If not even a failed record could be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    done: dict[str, Found] = {}
    rest, empty_runs, end = list(jobs), 0, time.monotonic() + 60 * minutes
    while rest:
        before = len(done)
        left = (end - time.monotonic()) / 60
        status = _launch(rest, results, log, done, on_record, echo, left, plan_only)
        rest = [job for job in rest if job.name not in done]
        if status == TIME_IS_UP:
            break
        empty_runs = 0 if len(done) > before else empty_runs + 1
        # One death is the first job's own; two without any record in between are everybody's.
        lost, rest = (rest, []) if empty_runs > 1 else (rest[:1], rest[1:])
        for job in lost:
            done[job.name] = _lost(job, results, log, status)
            on_record(*done[job.name])
    return [done[job.name] for job in jobs if job.name in done]


def _launch(
    jobs: Sequence[Job],
    results: Path,
    log: Path,
    done: dict[str, Found],
    on_record: Callable[[Path, dict[str, Any]], None],
    echo: IO[str] | None,
    minutes: float,
    plan_only: bool = False,
) -> int:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    progress = {PROGRESS: "1"} if echo and echo.isatty() else {}
    with tempfile.TemporaryDirectory(prefix="wanreport-") as folder:
        command = [*LAUNCH, "--root", str(results), f"--minutes={minutes}"]
        command += ["--plan-only"] * plan_only
        for job in jobs:
            file = Path(folder) / f"{job.name}.json"
            file.write_text(job.model_dump_json())
            command += ["--json-job", str(file)]
        with _own_group(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **progress},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            tee = threading.Thread(target=_tee, args=(process.stderr, log, echo), daemon=True)
            tee.start()
            assert process.stdout is not None
            for line in process.stdout:
                found = _announced(os.fsdecode(line).strip(), jobs)
                if found:
                    done[found[1]["job"]["name"]] = found
                    on_record(*found)
            status = process.wait()
            tee.join(timeout=5)
            return status


def _tee(source: IO[bytes], log: Path, echo: IO[str] | None) -> None:
    """Copy `source` to the log line by line, and to a person's terminal as it comes."""
    line = b""
    # A full disk or a closed terminal must not stop the reading: the writer would block for good.
    refused = (OSError, ValueError)
    with log.open("ab", buffering=0) as file:
        while chunk := os.read(source.fileno(), 65536):
            if echo and echo.isatty():
                with contextlib.suppress(*refused):
                    echo.write(chunk.decode(errors="replace"))
                    echo.flush()
            *whole, line = (line + chunk).split(b"\n")
            for text in whole:  # of a progress bar only the last state is kept
                with contextlib.suppress(*refused):
                    file.write(text.rstrip(b"\r").rsplit(b"\r", 1)[-1] + b"\n")
        with contextlib.suppress(*refused):
            file.write(line.rsplit(b"\r", 1)[-1])


def _announced(line: str, jobs: Sequence[Job]) -> Found | None:
    """The record whose path launch has just printed; None for any other line."""
    if not line.endswith(".json"):
        return None
    try:
        record = records.read_record(line)
    except records.RecordError:
        return None
    mine = {(job.name, job.hashes()[0]) for job in jobs}
    known = (record["job"].get("name"), record["job_hash"]) in mine
    return (Path(line), record) if known else None


@contextlib.contextmanager
def _own_group(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a session of its own, and never leave any of it behind.

    Ctrl-C then reaches only us, and we end the command: first as Ctrl-C would have done, so that
    it can write what it has, then for good, ranks included.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        for kind, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            if process.poll() is not None and kind != signal.SIGKILL:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, kind)
            # A second Ctrl-C means: go on to the next, harder kind.
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(patience)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def _lost(job: Job, results: Path, log: Path, status: int) -> Found:
    """Write and return the failed record of a job whose measuring process left none."""
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
        hint = "A kill from outside is often the kernel's out-of-memory killer (see dmesg)"
    else:
        how, hint = f"ended with exit status {status}", "The reason is in the log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = f"; the last line of its log: {lines[-1].strip()[:300]}" if lines else ""
    machine = known_machine(results)
    record = records.new_record(
        job,
        status="failed",
        reason=f"the measuring process {how} before it wrote a record{last}",
        hint=f"{hint}; the whole log is {_short(log)}. The next run measures this job again.",
    )
    slug = machine.slug if machine else "unknown-machine"
    path = records.record_path(results, slug, job.name, record["job_hash"])
    records.write_record(record, path)
    return path, record


def missing(jobs: Sequence[Job], found: Sequence[Found], machine: Machine | None) -> list[Job]:
    """Those of `jobs` (scale may be auto) that have no reusable record here, resolved."""
    gpus = usable_gpus(machine)
    resolved = [resolve_job(job, gpus=gpus) for job in jobs]
    return [job for job in resolved if reusable(job, found, machine) is None]


# Which code? ------------------------------------------------------------------------------------


# Files -------------------------------------------------------------------------------------------


def _short(path: Path) -> str:
    """`path` as a person would type it here."""
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)
