"""What a notebook calls: check its parameters, get the record and the frames, show what it found.

A notebook starts with ``job = setup(globals())`` (or ``parameters(globals())``, where it is not
about one job) in the first cell after its parameters and imports. From then on its output depends
on records alone: measuring writes to a log and prints nothing, and every run of a notebook shows
the same bytes.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from wanreport.analysis import frames
from wanreport.jobs.job import Job
from wanreport.measure import jobs
from wanreport.records import project
from wanreport.records import record as records
from wanreport.records.files import FileError
from wanreport.report import given, svg, tables
from wanreport.report.given import Stop
from wanreport.report.run import PAGE
from wanreport.words import gibibytes as gib
from wanreport.words import gigabytes as gb
from wanreport.words import interval, plain, ratio, seconds, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Stop", "frames_of", "gb", "gib", "interval", "legend", "md", "measure", "page", "parameters",
    "passed", "plain", "ratio", "seconds", "setup", "share", "show", "table",
]  # fmt: skip


def setup(namespace: dict[str, Any], source: str = "parameters") -> Job:
    """Check all that was injected into a job's notebook and return the job that it makes.

    Parameters
    ----------
    namespace
        The notebook's ``globals()``.
    source
        Where the parameters come from, for messages.

    Raises
    ------
    Stop
        With every problem, one per line.
    """
    job = given.job_of(namespace, source)
    if not os.environ.get(jobs.NO_MEASURING):
        signal.signal(signal.SIGTERM, jobs.terminate)
    _look()
    return job


def parameters(namespace: dict[str, Any], *allowed: str) -> None:
    """Check that a notebook that is not about one job was given none but `allowed` parameters.

    Raises
    ------
    Stop
        With every unknown name, one per line.
    """
    given.none_but(namespace, allowed)
    _look()


# Records -----------------------------------------------------------------------------------------


def measure(job: Job, machine: str | None = None) -> str | None:
    """Return the run that `job`'s page is about, an index of ``frames.runs``; None without one.

    Where there is no record, the job is measured first, unless the environment forbids it. That
    happens in another process, whose output goes to ``results/local/logs/<job>.log``. A job that
    cannot run here leaves a record too: its status, reason and hint say why. With `machine`, a
    folder of results/, it is that machine's record, and nothing is measured.

    Raises
    ------
    Stop
        If a record cannot be read, or `machine` has none of this job.
    """
    root = project.project_root()
    results = project.local_results(root)
    try:
        found, here = project.all_records(root), jobs.this_machine()
        may_measure = machine is None and not os.environ.get(jobs.NO_MEASURING)
        if may_measure and (missing := jobs.missing([job], found, here)):
            jobs.measure_jobs(missing, results, results / "logs" / f"{job.name}.log")
            frames.cached.cache_clear()
            found = project.all_records(root)
    except records.RecordError as error:
        raise Stop(str(error)) from None
    if machine is None:
        shown = jobs.spoken_for(job, found, here)
        return shown[0].relative_to(root).as_posix() if shown else None
    shown = records.best_record(job, [item for item in found if item[0].parent.name == machine])
    if shown is None:
        folders = ", ".join(sorted({path.parent.name for path, _ in found})) or "none"
        raise Stop(
            f"machine: {machine!r} has no record of {job.name}; remove it, or name one of the"
            f" folders that have records: {folders}"
        )
    return shown[0].relative_to(root).as_posix()


def passed(run: Any) -> None:
    """End a notebook that measures with an error unless `run` is ok, so that papermill fails too.

    A page is only read: there it does nothing.
    """
    if run.status != "ok" and not os.environ.get(jobs.NO_MEASURING):
        raise Stop(f"{run.job}: {run.status}: {run.reason}")


def frames_of(results_dirs: Sequence[str | Path] = records.RESULTS_DIRS) -> frames.Frames:
    """Return all that was measured, as tidy DataFrames.

    Raises
    ------
    Stop
        Naming every file that cannot be read.
    """
    try:
        return frames.cached(tuple(map(str, results_dirs)), project.project_root())
    except FileError as error:
        raise Stop(str(error)) from None


def page(run: Any) -> str | None:
    """Return the address of the page of a run's job, seen from the page being rendered.

    `run` is a row of ``frames.runs`` or its index. A row of a benchmark has no page: None.
    """
    path = PurePosixPath(run if isinstance(run, str) else run["run"])
    if path.suffix != ".json" or path.stem.count("-") < 1:
        return None
    folder = path.parent.parent if path.parent.name == records.EARLIER else path.parent
    job = re.sub(r"-[0-9a-f]{12}(-.*)?$", "", path.stem)
    up = "../" * os.environ.get(PAGE, "").count("/")
    return up + quote(f"jobs/{folder.name}/{job}.html")


# Showing -----------------------------------------------------------------------------------------


def md(text: str, look: Literal["", "answer", "trust"] = "") -> None:
    """Show Markdown: prose, a page's answer, or how far to trust it.

    What comes from records passes through :func:`plain` first.
    """
    html = f'<div class="{look}">\n\n{text}\n\n</div>' if look else text
    _display({"text/markdown": html, "text/plain": text})


def table(*args: Any, **options: Any) -> None:
    """Show a DataFrame; the parameters are those of :func:`wanreport.report.tables.table`."""
    made = tables.table(*args, **options)
    _display({"text/html": made.html, "text/plain": repr(made)})


def show(fig: Figure, caption: str, alt: str | None = None) -> None:
    """Show a figure as SVG and close it.

    Parameters
    ----------
    caption
        The sentence that the figure proves; plain text.
    alt
        What the figure shows, for those who cannot see it; the caption where nothing is given.
    """
    _display({"text/html": svg.figure(fig, caption, alt), "text/plain": f"(figure: {caption})"})
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


def legend() -> None:
    """Show how the four kinds of numbers are told apart."""
    _display(
        {
            "text/html": tables.rendered("legend.html.j2", meanings=tables.KINDS),
            "text/plain": ", ".join(tables.KINDS),
        }
    )


def _look() -> None:
    """Give JupyterLab the look that cells have on a page, which brings its own style sheet."""
    if given.ipython() is not None and PAGE not in os.environ:
        template = files("wanreport.report") / "template"
        cells = (template / "page.css").read_text("utf-8").partition("/* What cells show. */")[2]
        colours = (template / "lab.css").read_text("utf-8")
        _display({"text/html": f"<style>\n{colours}{cells}</style>", "text/plain": ""})


def _display(data: dict[str, str]) -> None:
    from IPython.display import display

    display(data, raw=True)
