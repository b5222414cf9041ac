"""Which jobs there are, which record speaks for each, and measuring those without one here.

A job ends in a record, whatever happens to its ranks. Nothing here imports torch.
"""

import hashlib
import math
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from wanreport.jobs.job import Job, JobError, load_job, located, resolve_job
from wanreport.measure import machine, ranks
from wanreport.measure.ranks import Unsupported
from wanreport.records import record as kept
from wanreport.records.project import all_records, local_results, project_root

NO_MEASURING = "WANREPORT_NO_MEASURING"
"""Set for notebooks that are rendered after measuring: they read records and never start a job."""
HINTS = {
    "oom": "on the device: layerwise, more GPUs or fewer frames; on the host: fewer ranks",
    "timeout": "raise timeout_s, or see in the logs which rank was not in the collective",
    "non-finite": "run it with `engine: resident`: are the weights at fault, or the engine?",
    "failed": "the logs say where; SIGKILL is often the kernel's, for want of memory; run it again",
}
Running = Generator[None, None, Path]
say = partial(print, flush=True)  # at once, so that a log is never behind


class Machine(NamedTuple):
    """A machine's class as a file name, and its usable GPUs."""

    slug: str
    gpus: int


def this_machine() -> Machine:
    here = machine.machine()
    return Machine(here["slug"], here["gpu_count"])


def load_jobs(files: Sequence[Path], root: Path, *, lenient: bool = False) -> dict[Path, Job]:
    """Load all params files; raises JobError with all problems, or `lenient` leaves files out."""
    jobs, names, problems = dict[Path, Job](), dict[str, Path](), list[str]()
    for file in files:
        mine = within(file, root)
        try:
            jobs[mine] = load_job(file)
            other = names.setdefault(file.stem, mine)
            # What slurm/submit.sh has copied may have any name.
            if other != mine and not mine.is_relative_to("params/submitted"):
                problems.append(f"{file}: name: {other} has the same; rename one of them")
        except JobError as error:
            problems += error.problems
    if problems and not lenient:
        raise JobError(problem.replace(f"{root}/", "") for problem in problems)
    return jobs


def spoken_for(job: Job, found: Sequence[kept.Found], here: Machine) -> kept.Found | None:
    """The record that `job`'s page shows: the best at real scale anywhere, else this machine's.

    Another machine's rehearsal stands in only where it hides no failure here.
    """
    found = [item for item in found if not item[1].get("source")]  # of other programs
    mine = [(path, record) for path, record in found
            if record["job"]["scale"] == "a14b" or path.parent.name == here.slug]  # fmt: skip
    return kept.best_record(job, mine) or kept.best_record(job, found)


def missing(jobs: Sequence[Job], found: Sequence[kept.Found], here: Machine) -> list[Job]:
    """Those of `jobs`, resolved, without a record here that measuring again would only repeat."""
    mine = [record for path, record in found if path.parent.name == here.slug]
    resolved = [resolve_job(job, gpus=here.gpus) for job in jobs]
    return [job for job in resolved if not any(
        record["job_hash"] in job.hashes() and kept.stands(job, record) for record in mine
    )]  # fmt: skip


def measure(
    jobs: Sequence[Job], root: Path, log: Path, results: Path | None = None,
    minutes: float = math.inf, *, again: bool = False, at_once: int = 1,
) -> list[str]:  # fmt: skip
    """Measure those `jobs` that this machine has no record of; return the names that failed.

    Records go to `results`, by default this machine's. With `again` all are measured.
    """
    if not (left := missing(jobs, [] if again else all_records(root), this_machine())):
        return []
    say(f"Measuring {len(left)} of {len(jobs)} jobs; log: {within(log, root)}")
    if any(job.scale == "a14b" or job.checkpoint for job in left):
        at_once = 1  # only rehearsals' times say nothing
    if at_once > 1:  # so that none is left alone at the end
        left.sort(key=lambda job: -job.num_gpus)
    folder, bad = results or local_results(root), ("failed", "timeout", "non-finite")
    done = measure_jobs(left, folder, log, minutes, tell=say, at_once=at_once)
    return [record["job"]["name"] for _, record in done if record["status"] in bad]


def measure_jobs(
    jobs: Sequence[Job], results: Path, log: Path, minutes: float = math.inf, *,
    tell: Callable[[str], None] = lambda line: None, plan_only: bool = False, at_once: int = 1,
) -> list[kept.Found]:  # fmt: skip
    """Measure resolved `jobs`, `at_once` of them; return their records as they ended.

    With `plan_only` no more than the plan of each is measured. A job whose `timeout_s` would not
    fit into `minutes` is not begun, and has no record. Raises RecordError if one was not written.
    """
    done, end = list[kept.Found](), time.monotonic() + 60 * minutes

    def begun(file: TextIO) -> Iterator[Running]:
        for job in jobs:
            if time.monotonic() + job.timeout_s > end:
                later = "run it again (with --again name these alone); what is done is kept"
                tell(f"  {job.name:<24} no time left: {later}")
            else:
                yield running(job, results, log=file, plan_only=plan_only)

    log.parent.mkdir(parents=True, exist_ok=True)
    with kept.naming(log), log.open("w", encoding="utf-8") as file:
        for path in ranks.together(begun(file), at_once):
            record = kept.read_record(path)
            name, status = record["job"]["name"], record["status"]
            done.append((path, record))
            took = f"{record['wall_s']:6.1f} s"
            lines = [f"{name:<24} {status:<12} {took}  {record['reason']}".rstrip()]
            lines += [record["hint"]] * (status != "ok" and bool(record["hint"]))
            lines += ["The record of an earlier run stays."] * (path.parent.name == kept.EARLIER)
            tell("  " + f"\n{'':<27}".join(lines))
    return done


def running(job: Job, root: Path, *, log: TextIO, plan_only: bool) -> Running:
    """Run one resolved job, or only plan it; yields meanwhile; returns its record's path."""
    begun, here, stopped = time.perf_counter(), machine.machine(), None
    record = kept.new_record(
        job,
        # One machine has one class, also for what it runs on its CPU for want of GPUs.
        machine=here | {"device": here["device"] if job.scale == "a14b" else "cpu"},
        software=machine.software(), sglang=asdict(job.sglang()), engine={"name": job.engine},
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    path = kept.record_path(root, here["slug"], job.name, record["job_hash"])
    with tempfile.TemporaryDirectory(prefix="wanreport-job-", ignore_cleanup_errors=True) as folder:
        out = Path(folder)
        try:
            with kept.naming(out):
                placed = located(job, project_root())
                found = yield from _measured(placed, here["gpu_count"], out, plan_only, log)
        except (Exception, SystemExit) as error:
            found, stopped = ranks.outcome(error), error
            if isinstance(error, Exception) and found["status"] != "unsupported":
                with suppress(OSError):  # the log's own disk may be the full one
                    traceback.print_exc(file=log)
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
    path = kept.write_record(record, path)
    if isinstance(stopped, SystemExit):
        raise stopped
    return path


def _measured(
    job: Job, gpus: int, out: Path, plan_only: bool, log: TextIO
) -> Generator[None, None, dict[str, Any]]:
    """What the ranks found, as parts of a record: lists where they differ, else rank 0's word."""
    nodes, count, tiny = machine.nodes(), job.num_gpus, job.scale == "tiny"
    if not tiny and gpus < count:
        hint = "run it where there are enough, or set scale: tiny for a rehearsal"
        raise Unsupported(f"full scale needs {count} GPUs and this machine has {gpus}", hint)
    if count % nodes:
        hint = f"ask for a number of nodes that divides {count}"
        raise Unsupported(f"{count} ranks are not as many on each of {nodes} nodes", hint)
    spec = {"job": job.model_dump(mode="json"), "plan_only": plan_only,
            "host_free": machine.host_memory()["available"]}  # fmt: skip
    progress, said, deadline = out / "progress", ["not started"], time.monotonic() + job.timeout_s
    kind = "cpu" if tiny and nodes == 1 else "cuda"

    def follow() -> None:
        """Show what rank 0 says: all to a person at a terminal, and what is new to the log."""
        lines = progress.read_text("utf-8").splitlines() if progress.is_file() else []
        for line in lines[len(said) - 1 :]:
            bar.set_description_str(f"{job.name}: {line}")
            part = line.partition(",")[0]
            if part != said[-1].partition(",")[0]:
                print(f"{job.name}: {part}", file=log, flush=True)
            said.append(line)

    # None: shown at a terminal only.
    with tqdm(bar_format="{desc} [{elapsed}]", disable=None, leave=False) as bar:
        results, codes = yield from ranks.watching(
            kind, "wanreport.measure.worker", spec, out, count, deadline, follow
        )
    whole = [result for result in results if result and result["status"] == "ok"]
    if len(whole) < count:
        return ranks.failure(job.timeout_s, results, codes, said[-1])

    def merged(parts: Sequence[dict[str, Any]], *keys: str) -> dict[str, Any]:
        return parts[0] | {key: [part[key] for part in parts] for key in keys}

    found = whole[0] | {"iterations": []}
    for parts in zip(*(result["iterations"] for result in whole), strict=True):
        rows = zip(*(part["steps"] for part in parts), strict=True)
        steps = {"steps": [merged(row, "seconds", "h2d_bytes") for row in rows]}
        each = merged(parts, "counters", "expected_counters", "memory", "gpu")
        found["iterations"].append(each | steps)
    found["machine"]["transport"] = ranks.transport(out)
    return found


def _keep_traces(out: Path, record: Path) -> list[dict[str, Any]]:
    """Keep traces beside the record; their paths are relative to the record's folder."""
    found: list[dict[str, Any]] = []
    for source in (*out.glob("traces/rank*.json.gz"), *out.glob("nsys.sqlite")):
        data, path = source.read_bytes(), f"traces/{record.stem}/{source.name}"
        kept.replace_file(record.parent / path, data)
        rank = int(re.sub(r"\D", "", source.name) or 0)  # one export holds all ranks
        found.append({"rank": rank, "path": path, "bytes": len(data),
                     "sha256": hashlib.sha256(data).hexdigest()})  # fmt: skip
    return sorted(found, key=lambda trace: trace["rank"])


def _keep_logs(out: Path, record: Path) -> str:
    """Keep the ranks' logs of a failed job beside its record; says where."""
    folder = f"logs/{record.stem}"
    shutil.rmtree(record.parent / folder, ignore_errors=True)
    for source in out.rglob("*.log"):
        if data := source.read_bytes():
            name = "-".join(source.relative_to(out).parts[-4:])
            kept.replace_file(record.parent / folder / name, data)
    return f"logs: {folder}, beside this record"


def within(path: Path, root: Path) -> Path:
    """`path` relative to the project, where it lies inside."""
    resolved = path.resolve()
    return resolved.relative_to(root) if resolved.is_relative_to(root) else path


def terminate(*_: object) -> None:
    """Make SystemExit of the first SIGTERM; a second one must not disturb writing the record."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)
