"""`make report` and `make publish`: measure what is missing, and render what is stale.

Every step leaves finished files behind, so that an interrupted run goes on where it stopped. What a
page was made from is hashed into the page; it is rendered again only when that changes. A published
site shows the committed records alone, and nothing in it may tell of this machine.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import wanreport
from wanreport.analysis import frames
from wanreport.jobs.job import Job, field_defaults
from wanreport.measure.jobs import load_jobs, measure, say, within
from wanreport.records import project
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.render import Page, make_pages

REPORTED = Path("params/baseline")  # what a report measures; other jobs have a page once measured
BY_HAND = ("job", "trace")  # for a record each, and for files of anybody's
NAMES = {"index": "Results", "postbenchmark": "Post-benchmark", "baseline": "Baseline"}


def plan(
    root: Path, jobs: Mapping[Path, Job], names: Sequence[str] = (), *, published: bool = False
) -> list[Page]:
    """Every page of a site, the long ones first, each with the hash of what it is made from.

    A job has a page for each machine that measured it. A job of the report without a record has a
    page too, unless the site is published; so has any job in `names`, also where the record that
    answers for it was measured under another name.
    """
    folders = tuple(map(str, RESULTS_DIRS[:1] if published else RESULTS_DIRS))
    make, site = ("publish", "reports/published") if published else ("report", "reports")
    frames.cached.cache_clear()  # what was measured since counts too
    runs = frames.cached(folders, root).runs
    data, code = _digests(root, folders), "" if published else _code()
    scripts = {path.stem: path for path in (root / "notebooks").glob("*.py")}
    stems = [stem for stem in (*NAMES, *sorted({*scripts} - {*NAMES, *BY_HAND})) if stem in scripts]
    links = tuple((NAMES.get(stem, stem), f"{stem}.html") for stem in stems)

    def page(
        href: str, given: Mapping[str, Any], facts: Mapping[str, str], files: Sequence[str],
        repair: str = f"wanreport {make}",
    ) -> Page:  # fmt: skip
        script = scripts["job" if "/" in href else href.removesuffix(".html")]
        known = [href, _sha(script), given, data, links, facts, repair, code]
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        return Page(script, root / site / href, href, given, folders, links, facts, files, digest,
                    repair)  # fmt: skip

    commits = ", ".join(sorted({commit[:12] for commit in runs.commit.dropna()}))
    pages = [page(f"{stem}.html", {"results_dirs": list(folders)},
                  {"Commits measured": commits or "none"}, data) for stem in stems]  # fmt: skip
    if "job" not in scripts:
        return pages
    again = {job.name: f"wanreport run {file}" for file, job in jobs.items()}
    defaults = field_defaults()
    counting = runs[(runs.source == "job") & runs.latest].sort_values("rehearsal")
    counting = counting.drop_duplicates(["slug", "job"])  # of a job at two scales the full one
    for row in counting.sort_values(["slug", "job"]).itertuples():
        kept = json.loads((root / row.run).read_text("utf-8"))["job"].items()
        given = {key: value for key, value in kept if key in defaults and value != defaults[key]}
        facts = {"Record": row.run, "Measured": f"{row.started} on {row.machine_class}"}
        if isinstance(row.commit, str):
            facts["Measured with"] = f"commit {row.commit[:12]}, torch {row.torch}"
        imported = f"wanreport import {row.job} --log FILE --params FILE"
        repair = imported if row.program else again.get(row.job, f"wanreport {make}")
        files = [line for line in data if line.startswith(f"{row.run} ")]
        href = f"jobs/{row.slug}/{row.job}.html"
        pages.append(page(href, given | {"machine": row.slug}, facts, files, repair))
    ours = counting[counting.program == ""]
    for file, job in jobs.items() if not published else ():
        reported = file.parent == REPORTED and not set(ours.job_hash) & set(job.hashes())
        if reported or job.name in set(names) - set(ours.job):
            given = job.model_dump(mode="json", exclude_unset=True)
            pages.append(page(f"jobs/none/{job.name}.html", given, {}, (), again[job.name]))
    return pages


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(root: Path, folders: Sequence[str]) -> list[str]:
    """Whatever data a page may read: path and SHA-256 of records, campaigns and predictions."""
    found = {path.relative_to(root).as_posix(): path
             for folder in (*folders, "predictions", "params")
             for path in (root / folder).rglob("*")
             if path.suffix in (".json", ".yaml") and path.name[0] != "."}  # fmt: skip
    # Runs on this machine lie below the committed ones.
    others = tuple(f"{folder}/" for folder in map(str, RESULTS_DIRS) if folder not in folders)
    return [f"{name} {_sha(found[name])}" for name in sorted(found) if not name.startswith(others)]


def _code() -> str:
    """Whatever else could change a page: the package's files, and all else installed."""
    here = Path(wanreport.__file__).parent
    files = [path for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    installed = {f"{found.name} {found.version}" for found in metadata.distributions()}
    return " ".join([*(f"{path.relative_to(here)} {_sha(path)}" for path in sorted(files)),
                     *sorted(installed)])  # fmt: skip


def is_stale(page: Page) -> bool:
    """Whether the page is missing, was made from something else, or is incomplete."""
    return f'name="wanreport-inputs" content="{page.inputs}"' not in _head(page.out)


def _head(path: Path) -> str:
    """The beginning of a page, where it says what it was made from; "" without a page."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096)
    return ""


def report(
    root: Path, *, only: Sequence[Path] = (), measuring: bool = True, workers: int = 2
) -> int:
    """Bring reports/ up to date and return the exit status.

    With `only`, some params files, just their jobs are measured and have their pages made. Without
    `measuring`, jobs without a record stay so. Raises JobError before anything runs, with the
    problems of all params files.
    """
    asked, failed = load_jobs(only, root), list[str]()
    # A draft beside it must not keep a job from running.
    files = sorted((root / "params").rglob("*.yaml"))
    jobs = {**load_jobs(files, root, lenient=bool(only) or not measuring), **asked}
    if measuring:
        wanted = asked or {f: j for f, j in jobs.items() if f.parent == REPORTED}
        name = only[0].stem if len(only) == 1 else "report"
        log = project.local_results(root) / "logs" / f"{name}.log"
        failed = measure(list(wanted.values()), root, log, at_once=workers)
    names = [job.name for job in asked.values()]
    pages = plan(root, jobs, names)
    if not asked:
        _remove_others(root / "reports", pages)
    pages = [page for page in pages if not asked or page.parameters.get("name") in names]
    return _render(root, pages, [*filter(is_stale, pages)], workers, failed)


def publish(root: Path, workers: int = 2) -> int:
    """Write the pages of the committed records to reports/published/; return the exit status."""
    pages = plan(root, load_jobs(sorted((root / "params").rglob("*.yaml")), root), published=True)
    _remove_others(root / "reports/published", pages)
    return _render(root, pages, pages, workers)


def _remove_others(out: Path, pages: Sequence[Page]) -> None:
    """Remove pages that are no more: a reader would take them for results."""
    for path in {*out.glob("*.html"), *out.glob("jobs/**/*.html")} - {page.out for page in pages}:
        if "wanreport-inputs" in _head(path):
            path.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


def _render(
    root: Path, pages: Sequence[Page], due: Sequence[Page], workers: int, failed: Sequence[str] = ()
) -> int:
    begun, bad = time.monotonic(), 0
    for page, problem, seconds in make_pages(due, root, workers):
        bad += bool(problem)
        what = " ".join(problem.split())[:300] or f"rendered, {seconds:.1f} s"
        say(f"  {within(page.out, root)}: {what}", file=sys.stderr if problem else sys.stdout)
    said = [f"{len(due)} of {len(pages)} pages rendered" if due else "nothing has changed"]
    said += [f"{bad} incomplete"] * bool(bad)
    said += [f"{len(failed)} failed to measure: {', '.join(failed)}"] * bool(failed)
    first = within(pages[0].out, root) if pages else "no page"
    say(f"{first}: {'; '.join(said)} ({time.monotonic() - begun:.1f} s)")
    return int(bool(bad or failed))
