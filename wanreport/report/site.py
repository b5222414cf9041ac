"""`make report` and `make publish`: measure what is missing, and render what is stale.

Every step leaves finished files behind, so that an interrupted run goes on where it stopped. What a
page was made from is hashed into the page; it is rendered again only when that changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import wanreport
from wanreport.jobs.job import Job
from wanreport.measure.jobs import load_jobs, measure, say, within
from wanreport.records import project
from wanreport.records.record import RESULTS
from wanreport.report import render
from wanreport.report.workers import make_pages

WORKERS = 2
REPORTED = Path("params/baseline")
"""The jobs that a report measures; others in params/ get a page once they have a record."""

NAMES = {"index": "Results", "postbenchmark": "Post-benchmark", "baseline": "Baseline"}
"""How the bar at the top calls notebooks, in its order."""


@dataclass(frozen=True)
class Site:
    """Pages, where they are written, and the folders of the records that they show."""

    root: Path
    out: Path
    results: tuple[str, ...]
    published: bool = False
    """Whether the pages are for any reader, so that nothing in them may tell of this machine."""

    @property
    def environment(self) -> dict[str, str]:
        """What tells the package which records to show."""
        return {RESULTS: os.pathsep.join(self.results)}

    def shown(self, page: render.Page) -> str:
        """A page's path, as a person would type it."""
        return within(page.out, self.root).as_posix()


def local_site(root: Path) -> Site:
    """The pages of all records at hand."""
    return Site(root, root / "reports", ("results", "results/local"))


def published_site(root: Path) -> Site:
    """The pages of the committed records alone."""
    return Site(root, root / "reports/published", ("results",), published=True)


# Which pages there are ---------------------------------------------------------------------------


def plan(site: Site, jobs: Mapping[Path, Job], names: Sequence[str] = ()) -> list[render.Page]:
    """Every page of a site, the long ones first, each with the hash of what it is made from.

    A job of the report without a record has a page too, unless the site is published; so has any
    job in `names`, also where the record that answers for it was measured under another name.
    """
    from wanreport.analysis import frames

    scripts = {path.stem: path for path in sorted((site.root / "notebooks").glob("*.py"))}
    job_script = scripts.pop("job", None)
    scripts.pop("trace", None)  # a page of anybody's own files, made by hand
    stems = sorted(scripts, key=lambda stem: ([*NAMES, stem].index(stem), stem))
    links = tuple((NAMES.get(stem, stem), f"{stem}.html") for stem in stems)
    runs = frames.load(site.results, site.root).runs
    data = _digests(site)
    make = "wanreport publish" if site.published else "wanreport report"
    code = {"Commits measured": _listed(runs.commit)} if len(runs) else {}

    def page(name: str, script: Path, href: str, given: Mapping[str, Any], files: Sequence[str],
             facts: Mapping[str, str], repair: str = "") -> render.Page:  # fmt: skip
        if re.search(r"^results_dirs\s*=", script.read_text("utf-8"), re.MULTILINE):
            given = {**given, "results_dirs": list(site.results)}
        facts = {name: value for name, value in facts.items() if value}
        facts |= {} if site.published else {"Rendered with": _software()}
        known = [name, script.read_text("utf-8"), given, data, links, facts, repair]
        known += [] if site.published else [_package(), _libraries()]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return render.Page(name, script, site.out / href, href, given, links, tuple(facts.items()),
                           tuple(files), digest, repair or make)  # fmt: skip

    pages = [page(stem, scripts[stem], f"{stem}.html", {}, data, code) for stem in stems]
    if job_script is None:
        return pages
    sources = {job.name: file for file, job in jobs.items()}
    counts = runs[(runs.source == "job") & runs.latest] if len(runs) else runs
    # Of one job at two scales the full one has the page.
    rows = {(row.slug, row.job): row for row in counts.sort_values("rehearsal", ascending=False)
            .itertuples()} if len(runs) else {}  # fmt: skip
    hashes = {row.job_hash for row in rows.values()}
    for (slug, name), row in sorted(rows.items()):
        given = json.loads((site.root / row.run).read_text("utf-8"))["job"]
        facts = {"Record": row.run, "Measured": f"{row.started} on {row.machine_class}",
                 "Measured with": _measured_with(row)}  # fmt: skip
        own = [line for line in data if line.startswith(f"{row.run} ")]
        again = f"wanreport run {sources[name]}" if name in sources else ""
        pages.append(page(f"{name} on {slug}", job_script, f"jobs/{slug}/{name}.html",
                          {**_asked(given), "machine": slug}, own, facts, again))  # fmt: skip
    named = {name for _, name in rows}
    for file, job in jobs.items() if not site.published else ():
        reported = file.parent == REPORTED and not hashes & set(job.hashes())
        if reported or job.name in names and job.name not in named:
            given = job.model_dump(mode="json", exclude_unset=True)
            pages.append(page(job.name, job_script, f"jobs/none/{job.name}.html", given, [], {},
                              f"wanreport run {file}"))  # fmt: skip
    return pages


def _asked(job: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record's job that say something, as a params file would."""
    defaults = {name: field.get_default() for name, field in Job.model_fields.items()}
    return {k: v for k, v in job.items() if k in defaults and v != defaults[k]}


def _measured_with(row: Any) -> str:
    commit = f"wanreport (commit {row.commit[:12]})" if isinstance(row.commit, str) else ""
    return ", ".join(filter(None, [commit, f"torch {row.torch}" if row.torch else ""]))


def _listed(commits: Any) -> str:
    return ", ".join(sorted({str(commit)[:12] for commit in commits.dropna()}))


def _digests(site: Site) -> list[str]:
    """Whatever data a page may read: path and SHA-256 of records, campaigns and predictions."""
    found = [path for folder in site.results for path in (site.root / folder).glob("*/**/*.json")]
    found += [*(site.root / "predictions").glob("*.json"), *(site.root / "params").rglob("*.yaml")]
    own = {path.relative_to(site.root).as_posix(): path for path in found
           if not path.name.startswith(".")}  # fmt: skip
    return [f"{name} {hashlib.sha256(own[name].read_bytes()).hexdigest()}" for name in sorted(own)
            if not (site.published and name.startswith("results/local/"))]  # fmt: skip


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
    names = ("papermill", "nbconvert", "pandas", "seaborn", "matplotlib")
    own = f"wanreport {wanreport.__version__}"
    if commit := project.commit(project.git_state()):
        own += f" (commit {commit})"
    known = [own, f"python {platform.python_version()}"]
    return ", ".join([*known, *(f"{name} {metadata.version(name)}" for name in names)])


def is_stale(page: render.Page) -> bool:
    """Whether the page is missing, was made from something else, or is incomplete."""
    try:
        with page.out.open(encoding="utf-8", errors="replace") as file:
            return f'name="wanreport-inputs" content="{page.inputs}"' not in file.read(4096)
    except OSError:
        return True


def _remove_others(site: Site, pages: Sequence[render.Page]) -> None:
    """Remove pages that are no more: a reader would take them for results."""
    mine = {page.out for page in pages}
    for path in [*site.out.glob("*.html"), *site.out.glob("jobs/**/*.html")]:
        if path not in mine and "wanreport-inputs" in path.read_text("utf-8", "replace")[:4096]:
            path.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


# The whole ---------------------------------------------------------------------------------------


def report(
    root: Path,
    *,
    only: Sequence[Path] = (),
    pages: Sequence[str] = (),
    measuring: bool = True,
    force: bool = False,
    workers: int = WORKERS,
) -> int:
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
    files = sorted((root / "params").rglob("*.yaml"))
    with _as_exit(signal.SIGTERM):
        asked = load_jobs(only, root)
        # A draft beside it must not keep a job from running.
        jobs = {**load_jobs(files, root, lenient=bool(only)), **asked}
        wanted = asked or {f: j for f, j in jobs.items() if f.parent == REPORTED}
        failed: list[str] = []
        if measuring:
            name = only[0].stem if len(only) == 1 else "report"
            log = project.local_results(root) / "logs" / f"{name}.log"
            failed = measure(list(wanted.values()), root, log)
        names = [job.name for job in asked.values()]
        return _render(local_site(root), jobs, names, pages, force, workers, failed)


def publish(root: Path, workers: int = WORKERS) -> int:
    """Write the pages of the committed records to reports/published/; return the exit status."""
    with _as_exit(signal.SIGTERM):
        jobs = load_jobs(sorted((root / "params").rglob("*.yaml")), root)
        return _render(published_site(root), jobs, (), (), True, workers, [])


def _render(
    site: Site, jobs: Mapping[Path, Job], names: Sequence[str], hrefs: Sequence[str], force: bool,
    workers: int, failed: Sequence[str],
) -> int:  # fmt: skip
    begun = time.monotonic()
    pages = plan(site, jobs, names)
    if not names and not hrefs:
        _remove_others(site, pages)
    mine = [page for page in pages if (not names or (page.parameters or {}).get("name") in names)
            and (not hrefs or page.href in hrefs)]  # fmt: skip
    due = [page for page in mine if force or is_stale(page)]
    if due:
        say(f"Rendering {len(due)} of {len(pages)} pages")
    bad = 0
    for page, problem, seconds in make_pages(due, site.root, site.environment, workers):
        if problem:
            bad += 1
            say(f"  {site.shown(page)}: {_brief(problem)}", error=True)
        else:
            say(f"  {page.name:<24} {'rendered':<12} {seconds:6.1f} s")
    said = [f"{len(due)} of {len(pages)} pages rendered" if due else "nothing has changed"]
    said += [f"{bad} incomplete"] if bad else []
    said += [f"{len(failed)} failed to measure: {', '.join(failed)}"] if failed else []
    first = site.shown(mine[0]) if mine else "no page"
    say(f"{first}: {'; '.join(said)} ({time.monotonic() - begun:.1f} s)")
    return 1 if bad or failed else 0


@contextlib.contextmanager
def _as_exit(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the block like an exception, so that what it has started is ended too."""
    try:
        before = signal.signal(number, lambda *_: sys.exit(128 + number))
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"
