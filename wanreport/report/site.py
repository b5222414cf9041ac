"""`make report` and `make publish`: measure what is missing, and render what is stale.

Every step leaves finished files behind, so that an interrupted run goes on where it stopped. What a
page was made from is hashed into the page; it is rendered again only when that changes. A published
site shows the committed records alone, and nothing in it may tell of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import wanreport
from wanreport.analysis import frames
from wanreport.jobs.job import Job
from wanreport.measure.jobs import load_jobs, measure, say, within
from wanreport.records import project
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.render import make_pages
from wanreport.report.run import Page

REPORTED = Path("params/baseline")
"""The jobs that a report measures; others in params/ get a page once they have a record."""

NAMES = {"index": "Results", "postbenchmark": "Post-benchmark", "baseline": "Baseline"}
"""How the bar at the top calls notebooks, in its order."""


# Which pages there are ---------------------------------------------------------------------------


def plan(
    root: Path, jobs: Mapping[Path, Job], names: Sequence[str] = (), *, published: bool = False
) -> list[Page]:
    """Every page of a site, the long ones first, each with the hash of what it is made from.

    A job of the report without a record has a page too, unless the site is published; so has any
    job in `names`, also where the record that answers for it was measured under another name.
    """
    results = tuple(map(str, RESULTS_DIRS[:1] if published else RESULTS_DIRS))
    frames.cached.cache_clear()  # what was measured since counts too
    runs = frames.cached(results, root).runs
    data = _digests(root, results)
    scripts = {path.stem: path for path in (root / "notebooks").glob("*.py")}
    scripts.pop("trace", None)  # a page of anybody's own files, made by hand
    job = scripts.pop("job", None)
    stems = sorted(scripts, key=lambda stem: ([*NAMES, stem].index(stem), stem))
    commits = sorted({str(commit)[:12] for commit in runs.commit.dropna()}) if len(runs) else []
    facts = (("Commits measured", ", ".join(commits)),)
    pages = [Page(stem, scripts[stem], Path(), f"{stem}.html", facts=facts, files=tuple(data),
                  repair="") for stem in stems]  # fmt: skip
    pages += _job_pages(root, job, jobs, names, runs, data, published) if job else []
    links = tuple((NAMES.get(stem, stem), f"{stem}.html") for stem in stems)
    out = root / ("reports/published" if published else "reports")
    make = "wanreport publish" if published else "wanreport report"
    software = () if published else (("Rendered with", _software()),)
    rest = [] if published else [_package(), _libraries()]
    for number, page in enumerate(pages):
        text, given = page.script.read_text("utf-8"), dict(page.parameters)
        if re.search(r"^results_dirs\s*=", text, re.MULTILINE):
            given["results_dirs"] = list(results)
        told = tuple((name, value) for name, value in (*page.facts, *software) if value)
        known = [page.name, text, given, data, links, told, page.repair, *rest]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        pages[number] = replace(
            page, out=out / page.href, parameters=given, results=results, links=links, facts=told,
            inputs=digest, repair=page.repair or make,
        )  # fmt: skip
    return pages


def _job_pages(
    root: Path, script: Path, jobs: Mapping[Path, Job], names: Sequence[str], runs: Any,
    data: Sequence[str], published: bool,
) -> Iterator[Page]:  # fmt: skip
    """The page of each job on each machine that measured it, and of those without a record.

    Of one job at two scales the page shows the full one.
    """
    counting: list[Any] = []
    if len(runs):
        latest = runs[(runs.source == "job") & runs.latest].sort_values("rehearsal")
        latest = latest.drop_duplicates(["slug", "job"]).sort_values(["slug", "job"])
        counting = list(latest.itertuples())
    files = {job.name: file for file, job in jobs.items()}
    defaults = {name: field.get_default() for name, field in Job.model_fields.items()}
    for row in counting:
        kept = json.loads((root / row.run).read_text("utf-8"))["job"]
        given = {k: v for k, v in kept.items() if k in defaults and v != defaults[k]}
        commit = f"wanreport (commit {row.commit[:12]})" if isinstance(row.commit, str) else ""
        torch = f"torch {row.torch}" if row.torch else ""
        facts = (("Record", row.run), ("Measured", f"{row.started} on {row.machine_class}"),
                 ("Measured with", ", ".join(filter(None, [commit, torch]))))  # fmt: skip
        again = f"wanreport run {files[row.job]}" if row.job in files else ""
        if row.program:
            again = f"wanreport import {row.job} --log FILE --params FILE"
        yield Page(f"{row.job} on {row.slug}", script, Path(), f"jobs/{row.slug}/{row.job}.html",
                   {**given, "machine": row.slug}, facts=facts, repair=again,
                   files=tuple(line for line in data if line.startswith(f"{row.run} ")),
                   )  # fmt: skip
    ours = [row for row in counting if not row.program]
    hashes, named = {row.job_hash for row in ours}, {row.job for row in ours}
    for file, job in jobs.items() if not published else ():
        reported = file.parent == REPORTED and not hashes & set(job.hashes())
        if reported or job.name in names and job.name not in named:
            given = job.model_dump(mode="json", exclude_unset=True)
            href, again = f"jobs/none/{job.name}.html", f"wanreport run {file}"
            yield Page(job.name, script, Path(), href, given, repair=again)


def _digests(root: Path, results: Sequence[str]) -> list[str]:
    """Whatever data a page may read: path and SHA-256 of records, campaigns and predictions."""
    found = {path for folder in results for path in (root / folder).glob("*/**/*.json")}
    if len(results) == 1:  # those of this machine lie below the committed ones
        found -= set((root / RESULTS_DIRS[1]).rglob("*"))
    found |= {*(root / "predictions").glob("*.json"), *(root / "params").rglob("*.yaml")}
    own = {path.relative_to(root).as_posix(): path for path in found if path.name[0] != "."}
    return [f"{name} {hashlib.sha256(own[name].read_bytes()).hexdigest()}" for name in sorted(own)]


@cache
def _package() -> str:
    """Hash over everything in the package that could change a page: code, templates and data."""
    here = Path(wanreport.__file__).parent
    total = hashlib.sha256()
    for path in sorted(here.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(here)} ".encode() + path.read_bytes())
    return total.hexdigest()


@cache
def _libraries() -> list[str]:
    """Whatever is installed: which of it draws, formats and escapes is not for us to list."""
    return sorted({f"{found.name} {found.version}" for found in metadata.distributions()})


@cache
def _software() -> str:
    commit = project.commit(project.git_state())
    known = [f"wanreport {wanreport.__version__}" + (f" (commit {commit})" if commit else ""),
             f"python {platform.python_version()}"]  # fmt: skip
    names = ("nbconvert", "pandas", "seaborn", "matplotlib")
    return ", ".join([*known, *(f"{name} {metadata.version(name)}" for name in names)])


def is_stale(page: Page) -> bool:
    """Whether the page is missing, was made from something else, or is incomplete."""
    return f'name="wanreport-inputs" content="{page.inputs}"' not in _head(page.out)


def _head(path: Path) -> str:
    """The beginning of a page, where it says what it was made from; "" without a page."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096)
    return ""


def _remove_others(out: Path, pages: Sequence[Page]) -> None:
    """Remove pages that are no more: a reader would take them for results."""
    mine = {page.out for page in pages}
    for path in [*out.glob("*.html"), *out.glob("jobs/**/*.html")]:
        if path not in mine and "wanreport-inputs" in _head(path):
            path.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


# The whole ---------------------------------------------------------------------------------------


def report(
    root: Path, *, only: Sequence[Path] = (), pages: Sequence[str] = (), measuring: bool = True,
    force: bool = False, workers: int = 2,
) -> int:  # fmt: skip
    """Bring reports/ up to date and return the exit status.

    Parameters
    ----------
    only
        Params files: measure these and make their pages alone. All of the report's otherwise.
    pages
        Paths within reports/ of the only pages to make; all otherwise.
    measuring
        Whether jobs without a record are measured first.
    force
        Render pages that are up to date, too.

    Raises
    ------
    JobError
        Before anything runs, with the problems of all params files.
    wanreport.records.record.RecordError
        If a record cannot be read or written.
    """
    asked = load_jobs(only, root)
    # A draft beside it must not keep a job from running.
    files = sorted((root / "params").rglob("*.yaml"))
    jobs = {**load_jobs(files, root, lenient=bool(only) or not measuring), **asked}
    wanted = asked or {f: j for f, j in jobs.items() if f.parent == REPORTED}
    failed: list[str] = []
    if measuring:
        name = only[0].stem if len(only) == 1 else "report"
        log = project.local_results(root) / "logs" / f"{name}.log"
        failed = measure(list(wanted.values()), root, log)
    names = [job.name for job in asked.values()]
    planned = plan(root, jobs, names)
    if not asked and not pages:
        _remove_others(root / "reports", planned)
    mine = [page for page in planned if (not asked or page.parameters.get("name") in names)
            and (not pages or page.href in pages)]  # fmt: skip
    return _render(root, mine, len(planned), force, workers, failed)


def publish(root: Path, workers: int = 2) -> int:
    """Write the pages of the committed records to reports/published/; return the exit status."""
    pages = plan(root, load_jobs(sorted((root / "params").rglob("*.yaml")), root), published=True)
    _remove_others(root / "reports/published", pages)
    return _render(root, pages, len(pages), True, workers, [])


def _render(
    root: Path, mine: Sequence[Page], all_: int, force: bool, workers: int, failed: Sequence[str]
) -> int:
    begun = time.monotonic()
    due = [page for page in mine if force or is_stale(page)]
    if due:
        say(f"Rendering {len(due)} of {all_} pages")
    bad = 0
    for page, problem, seconds in make_pages(due, root, workers):
        bad += bool(problem)
        if problem:
            where = within(page.out, root)
            say(f"  {where}: {' '.join(problem.split())[:300]}", error=True)
        else:
            say(f"  {page.name:<24} {'rendered':<12} {seconds:6.1f} s")
    said = [f"{len(due)} of {all_} pages rendered" if due else "nothing has changed"]
    said += [f"{bad} incomplete"] if bad else []
    said += [f"{len(failed)} failed to measure: {', '.join(failed)}"] if failed else []
    first = within(mine[0].out, root) if mine else "no page"
    say(f"{first}: {'; '.join(said)} ({time.monotonic() - begun:.1f} s)")
    return 1 if bad or failed else 0
