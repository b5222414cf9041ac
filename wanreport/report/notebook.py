"""What a notebook calls: check its parameters, get the record and the frames, show what it found.

A notebook starts with ``job = setup(globals())`` (or ``parameters(globals())``, where it is not
about one job). From then on its output depends on records alone: measuring writes to a log and
prints nothing, and every run of a notebook shows the same bytes.
"""

import ast
import os
import re
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from wanreport.analysis import frames
from wanreport.jobs.job import Job, JobError, field_defaults, job_from_mapping
from wanreport.measure import jobs
from wanreport.records import project
from wanreport.records.files import FileError
from wanreport.records.record import EARLIER, RESULTS_DIRS, best_record, read_record
from wanreport.report import style, tables

PAGE = "WANREPORT_PAGE"
"""Set for a notebook that becomes a page: the page's path in its site, for links from it."""
CELLS = "/* What cells show. */"  # from here on a page's style sheet is JupyterLab's too
READY = "_wanreport_ready"  # set in a notebook whose parameters have been checked


class Stop(Exception):
    """Ends a notebook with a message for its reader in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def setup(namespace: dict[str, Any]) -> Job:
    """Return the job that a notebook's parameters make; raises Stop with every problem."""
    names = _given(namespace, field_defaults()) - {"machine"}  # whose record, not what to measure
    try:
        job = job_from_mapping({name: namespace.get(name) for name in sorted(names)}, "parameters")
    except JobError as error:
        raise Stop("\n".join(["No job, so nothing was run:", *error.problems])) from None
    if not os.environ.get(jobs.NO_MEASURING):
        signal.signal(signal.SIGTERM, jobs.terminate)
    _ready(namespace)
    return job


def parameters(namespace: dict[str, Any], *allowed: str) -> None:
    """Check that a notebook was given none but `allowed` parameters; raises Stop naming others."""
    if unknown := sorted(_given(namespace, allowed) - set(allowed)):
        takes = f"unknown; remove it, or give one of {', '.join(allowed)}"
        raise Stop("\n".join(f"parameters: {name}: {takes}" for name in unknown))
    _ready(namespace)


def _given(namespace: dict[str, Any], known: Iterable[str]) -> set[str]:
    """Names that the notebook's cells have assigned before the one that calls us.

    papermill injects any name, and a misspelt one would silently measure something else. An import
    may have replaced it since, so the cells tell. In JupyterLab the cell may run again, after later
    ones: then only `known` names count.
    """
    names: set[str] = set()
    for cell in namespace["In"][:-1]:
        with suppress(SyntaxError):  # a cell with a magic
            found = (node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name))
            names |= {node.id for node in found if isinstance(node.ctx, ast.Store)}
    return names & set(known) if READY in namespace else names


def _ready(namespace: dict[str, Any]) -> None:
    """Set the look of pictures, and in JupyterLab that of cells, for which a page has its own."""
    namespace[READY] = True
    style.theme()
    if PAGE not in os.environ:
        lab = (style.TEMPLATE / "lab.css").read_text("utf-8")
        cells = (style.TEMPLATE / "page.css").read_text("utf-8").partition(CELLS)[2]
        display({"text/html": f"<style>\n{lab}{cells}</style>", "text/plain": ""}, raw=True)


def measure(job: Job, machine: str | None = None) -> str | None:
    """Return the run that `job`'s page is about, an index of ``frames.runs``; None without one.

    Where there is no record, the job is measured first, unless the environment forbids it, with a
    log in ``results/local/logs/``. A job that cannot run here leaves a record too. With `machine`,
    a folder of results/, it is that machine's record, and nothing is measured. Raises Stop if a
    record cannot be read, or `machine` has none of this job.
    """
    root = project.project_root()
    try:
        if machine is not None:
            every = [file for here in RESULTS_DIRS for file in (root / here).glob("*/[!.]*.json")]
            mine = [(file, read_record(file)) for file in every if file.parent.name == machine]
            if (shown := best_record(job, mine)) is None:
                known = ", ".join(sorted({file.parent.name for file in every})) or "none"
                raise Stop(f"machine: {machine!r} has no record of {job.name}; these have: {known}")
        else:
            found, here = project.all_records(root), jobs.this_machine()
            due = jobs.missing([job], found, here)
            if due and not os.environ.get(jobs.NO_MEASURING):
                results = project.local_results(root)
                jobs.measure_jobs(due, results, results / "logs" / f"{job.name}.log")
                frames.cached.cache_clear()
                found = project.all_records(root)
            shown = jobs.spoken_for(job, found, here)
    except FileError as error:
        raise Stop(str(error)) from None
    return jobs.within(shown[0], root).as_posix() if shown else None


def frames_of(results_dirs: Sequence[str | Path]) -> frames.Frames:
    """Return all that was measured, as DataFrames; raises Stop naming files that are no records."""
    try:
        return frames.cached(tuple(map(str, results_dirs)), project.project_root())
    except FileError as error:
        raise Stop(str(error)) from None


def page(run: str) -> str | None:
    """Return the address of a run's job's page from the page being rendered; None of a benchmark's.

    `run` is an index of ``frames.runs``: the path of a record, maybe one in ``earlier/``.
    """
    record = rf".*?([^/]+)/(?:{EARLIER}/)?([^/]+?)-[0-9a-f]{{12}}(?:-[^/]+)?\.json"
    if not (found := re.fullmatch(record, run)):
        return None
    return "../" * os.environ.get(PAGE, "").count("/") + quote(f"jobs/{found[1]}/{found[2]}.html")


def md(text: str, look: Literal["", "answer", "trust"] = "") -> None:
    """Show Markdown: prose, a page's answer, or how far to trust it.

    What comes from records passes through :func:`wanreport.words.plain` first.
    """
    html = f'<div class="{look}">\n\n{text}\n\n</div>' if look else text
    display({"text/markdown": html, "text/plain": text}, raw=True)


def table(*args: Any, **options: Any) -> None:
    """Show a DataFrame; the parameters are those of :func:`wanreport.report.tables.table`."""
    html, text = tables.table(*args, **options), f"(table: {options['caption']})"
    display({"text/html": html, "text/plain": text}, raw=True)


def show(figure: Figure, caption: str) -> None:
    """Show a figure as SVG, with the sentence that it proves, and close it."""
    svg, inches = style.inline(figure), figure.get_figwidth()
    html = tables.rendered("figure.html.j2", svg=svg, inches=inches, caption=caption)
    display({"text/html": html, "text/plain": f"(figure: {caption})"}, raw=True)
    plt.close(figure)
