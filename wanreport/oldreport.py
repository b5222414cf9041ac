"""`make report`: measure what is missing, render what is stale, write the index.

Every step leaves finished files behind, so that an interrupted run goes on where it stopped. What a
page was made from is hashed into the page; it is rendered again only when that changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from wanreport import index, local, predictions, render
from wanreport.answers import job_name, ranks
from wanreport.baseline.facts import DOCUMENT
from wanreport.job import Job, JobError, load_job
from wanreport.record import REUSABLE, put_back

WORKERS = 2
REPORTED = Path("params/baseline")
"""The jobs that a report measures; others in params/ get a page once they have a record."""


@dataclass(frozen=True)
class Task:
    """One page to make: a plain value, so that it can go to another process."""

    name: str
    script: Path
    parameters: Mapping[str, Any]
    page: render.Page
    html: Path
    ipynb: Path
    root: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a task; `problem` is empty for a good page."""

    name: str
    seconds: float
    problem: str = ""


# Jobs --------------------------------------------------------------------------------------------


def load_jobs(files: Sequence[Path], root: Path, *, lenient: bool = False) -> dict[Path, Job]:
    """Load all params files, or raise JobError with the problems of all of them.

    `lenient` leaves files with problems out.
    """
    jobs: dict[Path, Job] = {}
    problems: list[str] = []
    for file in files:
        shown = _within(file, root)
        try:
            jobs[shown] = load_job(file)
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


def params_files(root: Path) -> list[Path]:
    """All params files of the project, those of the report first."""
    first = sorted((root / REPORTED).glob("*.yaml"))
    return first + [file for file in sorted((root / "params").rglob("*.yaml")) if file not in first]


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
        _say(f"  {name:<24} {status:<12} {now - begun[0]:6.1f} s{why}")
        begun[0] = now
        if status in ("failed", "timeout"):
            failed.append(name)
            if record["hint"]:
                _say(f"  {'':<24} {record['hint']}")
            if path in stood:
                put_back(path, stood[path])
                _say(f"  {'':<24} The record of an earlier run stays.")

    results = results or local.local_results(root)
    machine = local.known_machine(results) or local.identify(results, log)
    found = local.all_records(root)
    missing = local.missing(jobs, [] if again else found, machine)
    stood = {path: path.read_bytes() for path, record in found if record["status"] in REUSABLE}
    if missing:
        _say(f"Measuring {len(missing)} of {len(jobs)} jobs; log: {_within(log, root)}")
        done = local.measure_jobs(missing, results, log, tell, sys.stderr, minutes)
        if left := [job.name for job in missing[len(done) :]]:
            rest = "name these alone the next time" if again else "run it again"
            _say(f"No time left for {', '.join(left)}: {rest}")
    return failed


# Pages -------------------------------------------------------------------------------------------


def shown(jobs: Mapping[Path, Job], root: Path, found: Sequence[local.Found]) -> dict[Path, Job]:
    """Those of `jobs` that have a page: the report's own, and whatever has a record."""
    machine = local.known_machine(local.local_results(root))
    return {
        file: job
        for file, job in jobs.items()
        if file.parent == REPORTED or local.spoken_for(job, found, machine)
    }


def plan(
    jobs: Mapping[Path, Job],
    root: Path,
    found: Sequence[local.Found],
    campaigns: Sequence[Path] = (),
) -> list[Task]:
    """Return every page that the jobs and notebooks call for, each with the hash of its inputs.

    `found` are the records at hand, `campaigns` the files of benchmarks.
    """
    machine = local.known_machine(local.local_results(root))
    notebooks = root / "notebooks"
    tasks = []
    for script in sorted(notebooks.glob("*.py")):
        if script.name == "job.py":
            continue
        # A notebook that reads records, or the baseline's facts, says so in its parameters; one
        # that reads campaigns calls for them.
        text = script.read_text(encoding="utf-8")
        reads = re.search(r"^results_dirs\s*=", text, re.MULTILINE)
        quotes = reads or re.search(r"^facts_path\s*=", text, re.MULTILINE)
        files = [path for path, _ in found] if reads else []
        files += [path for path, _ in local.all_earlier(root)] if "load_earlier(" in text else []
        files += campaigns if "load_campaigns(" in text else []
        files += predictions.files(root) if "curve.curves(" in text else []
        page = render.Page(
            notebook=f"notebooks/{script.name}",
            sources=(*(_within(path, root).as_posix() for path in files),
                     *(_data_files() if quotes else ())),
            links=(("All reports", "index.html"),),
        )  # fmt: skip
        tasks.append(_task(script.stem, script, {}, page, root, Path(f"{script.stem}.html"),
                           _digests(files)))  # fmt: skip
    script = notebooks / "job.py"
    for file, job in jobs.items() if script.is_file() else ():
        best = local.spoken_for(job, found, machine)
        page = render.Page(
            notebook="notebooks/job.py",
            parameters=best[1]["job"] if best else job.model_dump(mode="json"),
            record=best[1] if best else None,
            record_path=_within(best[0], root).as_posix() if best else "",
            links=(("All reports", "../index.html"),),
            repair=f"wanreport run {file}",
        )
        given = job.model_dump(mode="json", exclude_unset=True)
        tasks.append(_task(job.name, script, given, page, root, Path("jobs", f"{job.name}.html"),
                           _digests([best[0]] if best else [])))  # fmt: skip
        for slug, other in local.elsewhere(job, found, best).items():
            page = replace(
                page,
                parameters=other[1]["job"],
                record=other[1],
                record_path=_within(other[0], root).as_posix(),
                links=(("All reports", "../../index.html"),),
            )
            tasks.append(_task(f"{job.name} on {slug}", script, {**given, "machine": slug}, page,
                               root, Path("jobs", slug, f"{job.name}.html"),
                               _digests([other[0]])))  # fmt: skip
    return tasks


def _task(
    name: str,
    script: Path,
    given: Mapping[str, Any],
    page: render.Page,
    root: Path,
    where: Path,
    sources: Sequence[str],
) -> Task:
    said = [page.sources, page.record_path, page.repair, page.links, dict(page.parameters)]
    known = [
        name, script.read_text(encoding="utf-8"), dict(given), list(sources), said,
        _package(), _libraries(), render.versions(), local.git_state(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    reports = root / "reports"
    return Task(
        name=name,
        script=script,
        parameters=given,
        page=replace(page, inputs=digest),
        html=reports / where,
        ipynb=reports / "notebooks" / Path(*where.parts[1:] or where.parts).with_suffix(".ipynb"),
        root=root,
    )


def _data_files() -> list[str]:
    """The baseline's facts and what they are held against, as the repository has them."""
    baseline = DOCUMENT.parent
    found = [path for path in baseline.rglob("*") if path.suffix in (".yaml", ".json")]
    return [f"wanreport/baseline/{path.relative_to(baseline).as_posix()}" for path in sorted(found)]


def _digests(files: Sequence[Path]) -> list[str]:
    return [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]


@cache
def _package() -> str:
    """Hash over everything in the package that could change a page: code, templates and data."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(here.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(here)} ".encode() + path.read_bytes())
    return total.hexdigest()


@cache
def _libraries() -> list[str]:
    """Whatever is installed: which of it draws, formats and escapes is not for us to list."""
    return sorted({f"{found.name} {found.version}" for found in metadata.distributions()})


def is_stale(task: Task) -> bool:
    """Whether the page is missing or was made from something else."""
    return _inputs_of(task.html) != task.page.inputs


def _inputs_of(page: Path) -> str | None:
    """The hash in a page; "" if its notebook failed, None if there is no page."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            found = re.search(
                r'name="wanreport-inputs" content="(\w*)"|'
                r'content="(\w*)" name="wanreport-inputs"',
                file.read(4096),
            )
    except OSError:
        return None
    return (found[1] or found[2] or "") if found else None


def make_page(task: Task) -> Outcome:
    """Execute and render one page. Whatever goes wrong ends up on the page and in the outcome."""
    begun = time.monotonic()
    page = task.page
    try:
        notebook, failure = render.execute(task.script, task.parameters, task.ipynb, cwd=task.root)
        # A page without the hash of its inputs is stale: the next run tries again.
        page = page if failure is None else replace(page, inputs="")
        try:
            render.to_html(notebook, task.html, page, failure)
        except render.RenderError as error:
            failure = render.Failure(
                str(error), f"Mend {page.notebook}. The notebook as it ran is"
                f" {_within(task.ipynb, task.root)}."
            )  # fmt: skip
            page = replace(page, inputs="", title=page.title or task.name)
            render.to_html(render.blank(page), task.html, page, failure)
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return Outcome(task.name, time.monotonic() - begun, f"{error.strerror or error}{name}")
    problem = ""
    if failure:
        at = f"cell {failure.cell}: " if failure.cell else ""
        problem = at + failure.what
    return Outcome(task.name, time.monotonic() - begun, problem)


def make_pages(tasks: Sequence[Task], workers: int = WORKERS) -> list[Outcome]:
    """Make pages in processes of their own and say what became of each as it ends."""
    outcomes: list[Outcome] = []
    if not tasks:
        return outcomes
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        pool = ProcessPoolExecutor(
            min(workers, len(tasks)), multiprocessing.get_context("spawn"), _begin_worker, (folder,)
        )
        try:
            waiting = {pool.submit(make_page, task): task for task in tasks}
            for future in as_completed(waiting):
                outcomes.append(_outcome(future, waiting[future]))
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()  # a kernel ends itself when its parent has gone
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
    return outcomes


def _outcome(future: Future[Outcome], task: Task) -> Outcome:
    try:
        outcome = future.result()
    except BrokenProcessPool:
        why = "the rendering process was killed, most often for want of memory"
        outcome = Outcome(task.name, 0.0, f"{why}; run again, with --workers 1")
    if outcome.problem:
        _say(f"  {task.name:<24} FAILED       {_brief(outcome.problem)}")
    else:
        _say(f"  {task.name:<24} {'rendered':<12} {outcome.seconds:6.1f} s")
    return outcome


def _begin_worker(folder: str) -> None:
    tempfile.tempdir = folder  # the parent removes it, even if this process is killed
    # Ctrl-C reaches the whole foreground group; ending the workers is for the parent to decide.
    # A handler, since "ignore" would be passed on to the kernels.
    signal.signal(signal.SIGINT, lambda *_: None)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


# The index ---------------------------------------------------------------------------------------


def write_index(
    jobs: Mapping[Path, Job], root: Path, found: Sequence[local.Found], tasks: Sequence[Task]
) -> Path:
    """Write reports/index.html over all jobs, also those that have a record but no params file."""
    reports = root / "reports"
    machine = local.known_machine(local.local_results(root))
    rows = []
    for job in jobs.values():
        best = local.spoken_for(job, found, machine)
        rows.append(_row(job.name, job.engine, job.num_gpus, best[1] if best else None, reports))
        for slug, other in local.elsewhere(job, found, best).items():
            rows.append(_row(job.name, job.engine, job.num_gpus, other[1], reports, slug))
    named = {job.name for job in jobs.values()}
    others = {job_name(record): record for _, record in found if job_name(record) not in named}
    for name, record in sorted(others.items()):
        rows.append(_row(name, str(record["job"].get("engine")), ranks(record), record, reports))
    pages = [
        (task.name, task.html.relative_to(reports).as_posix(), _inputs_of(task.html) == "")
        for task in tasks
        if task.html.parent == reports and task.html.is_file()
    ]
    out = reports / "index.html"
    body = index.index_html(rows, pages)
    if not out.is_file() or out.read_text(encoding="utf-8") != body:
        local.write_atomically(out, body)
    return out


def _row(
    name: str, engine: str, gpus: int, record: dict[str, Any] | None, reports: Path,
    folder: str = "",
) -> index.Row:  # fmt: skip
    page = reports / "jobs" / folder / f"{name}.html"
    inputs = _inputs_of(page)
    href = "" if inputs is None else page.relative_to(reports).as_posix()
    return index.Row(name, engine, gpus, record, href, page_failed=inputs == "")


# The whole ---------------------------------------------------------------------------------------


def report(
    root: Path,
    *,
    only: Sequence[Path] = (),
    measuring: bool = True,
    force: bool = False,
    workers: int = WORKERS,
) -> int:
    """Bring reports/ up to date and return the exit status.

    Parameters
    ----------
    only
        Params files: measure these and make their pages alone. All of the report's otherwise.
    measuring
        Whether jobs without a record are measured first.
    force
        Render pages that are up to date, too.

    Raises
    ------
    JobError
        Before anything runs, with the problems of all params files.
    wanreport.record.RecordError
        If a record cannot be read or written.
    """
    begun = time.monotonic()
    files = params_files(root)
    with _as_exit(signal.SIGTERM):
        asked = load_jobs(only, root)
        # A draft beside it must not keep a job from running.
        jobs = {**load_jobs(files, root, lenient=bool(only)), **asked}
        wanted = asked or {f: j for f, j in jobs.items() if f.parent == REPORTED}
        failed: list[str] = []
        if measuring:
            name = only[0].stem if len(only) == 1 else "report"
            log = local.local_results(root) / "logs" / f"{name}.log"
            failed = measure(list(wanted.values()), root, log)
        found = local.all_records(root)
        pages = shown(jobs, root, found) | wanted
        tasks = plan(pages, root, found, local.all_campaigns(root))
        names = {job.name for job in asked.values()}
        due = [t for t in tasks if (t.name in names or not asked) and (force or is_stale(t))]
        if due:
            _say(f"Rendering {len(due)} of {len(tasks)} pages")
        outcomes = make_pages(due, workers)
        out = write_index(pages, root, found, tasks)
    bad = [outcome for outcome in outcomes if outcome.problem]
    said = [f"{len(due)} of {len(tasks)} pages rendered" if due else "nothing has changed"]
    said += [f"{len(bad)} incomplete"] if bad else []
    said += [f"{len(failed)} failed to measure: {', '.join(failed)}"] if failed else []
    _say(f"{_within(out, root)}: {'; '.join(said)} ({time.monotonic() - begun:.1f} s)")
    for outcome in sorted(bad, key=lambda outcome: outcome.name):
        task = next(task for task in tasks if task.name == outcome.name)
        _say(f"{_within(task.html, root)}: {_brief(outcome.problem)}", error=True)
    return 1 if bad or failed else 0


@contextlib.contextmanager
def _as_exit(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the block like an exception, so that what it has started is ended too."""
    try:
        before = signal.signal(number, _exit_on_signal)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


def _within(path: Path, root: Path) -> Path:
    """`path` relative to the project, where it lies inside."""
    resolved = path.resolve()
    return resolved.relative_to(root) if resolved.is_relative_to(root) else path


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
