"""What a notebook calls: check its parameters, get the record and the frames, show what it found.

A notebook starts with ``job = setup(globals())`` (or ``parameters(globals())``, where it is not
about one job) in the first cell after its parameters and imports. From then on its output depends
on records alone: measuring writes to a log and prints nothing, and every run of a notebook shows
the same bytes.
"""

from __future__ import annotations
import __future__ as future

import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from wanreport import local
from wanreport import record as records
from wanreport.analysis import frames
from wanreport.files import FileError
from wanreport.job import Job, JobError, field_defaults, job_from_mapping
from wanreport.report import svg, tables
from wanreport.report.run import PAGE
from wanreport.words import gibibytes as gib
from wanreport.words import gigabytes as gb
from wanreport.words import interval, plain, ratio, seconds, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Stop", "frames_of", "gb", "gib", "interval", "legend", "md", "measure", "page", "parameters",
    "plain", "ratio", "seconds", "setup", "share", "show", "table",
]  # fmt: skip

_READY = "_wanreport_ready"

_LAB = """:root {
  --paper: var(--jp-layout-color0, Canvas); --raised: var(--jp-layout-color1, Canvas);
  --ink: var(--jp-content-font-color1, CanvasText); --line: var(--jp-border-color2, GrayText);
  --muted: var(--jp-content-font-color2, GrayText);
  --accent: var(--jp-content-link-color, LinkText);
}
"""  # the page's colours, from JupyterLab's


class Stop(Exception):
    """Ends a notebook with a message for its reader in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


# Parameters --------------------------------------------------------------------------------------


def setup(namespace: dict[str, Any], source: str = "parameters") -> Job:
    """Check all that was injected into a job's notebook and return the job that it makes.

    papermill accepts any name and any type, so a misspelt key would silently measure something
    else. Here every name that the notebook defines up to this call must be a field of a job.

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
    given = _injected(namespace)
    given.pop("machine", None)  # says which record to show, not what to measure
    # In JupyterLab this cell runs again after later ones have defined names of their own.
    if namespace.get(_READY):
        given = {name: given[name] for name in given if name in field_defaults()}
    # A required field that nobody set still has the None of the parameters cell.
    unset = {n for n, field in Job.model_fields.items() if field.is_required() and not given.get(n)}
    try:
        job = job_from_mapping({n: v for n, v in given.items() if n not in unset}, source=source)
    except JobError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise Stop(f"These parameters do not make a job; nothing was run.\n{problems}") from None
    _begin(namespace)
    return job


def parameters(namespace: dict[str, Any], *allowed: str) -> None:
    """Check that a notebook that is not about one job was given none but `allowed` parameters.

    Raises
    ------
    Stop
        With every unknown name, one per line.
    """
    unknown = sorted(set(_injected(namespace)) - set(allowed))
    if unknown and not namespace.get(_READY):
        takes = f"takes only {', '.join(allowed)}" if allowed else "takes no parameters"
        problem = "parameters: {}: unknown, remove it; this notebook " + takes
        raise Stop("\n".join(map(problem.format, unknown)))
    _begin(namespace)


def _injected(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The names that the notebook's cells have defined so far, with their values."""
    hidden = set(getattr(_ipython(), "user_ns_hidden", ()))
    found = {
        name: value
        for name, value in namespace.items()
        if name not in hidden
        and not name.startswith("_")
        and not callable(value)
        and not isinstance(value, ModuleType | type(future.annotations))
    }
    # An injected name that an import has since replaced, or that starts with an underscore, is not
    # in the namespace any more; the cells' sources still tell.
    if not namespace.get(_READY):
        for name in _assigned(list(namespace.get("In", ()))[:-1]):  # not the cell that calls us
            found.setdefault(name, namespace.get(name))
    return found


def _assigned(cells: Iterable[str]) -> list[str]:
    """Names that the cells assign at their top level."""
    targets: list[ast.expr] = []
    for cell in cells:
        with contextlib.suppress(SyntaxError, ValueError, TypeError):
            for node in ast.parse(cell).body:
                targets += node.targets if isinstance(node, ast.Assign) else []
                targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for each in targets if isinstance(each, ast.Name) and each.id != _READY]


def _begin(namespace: dict[str, Any]) -> None:
    """Note that the parameters are checked, and give JupyterLab the look that a page has."""
    namespace[_READY] = True
    if _ipython() is not None and PAGE not in os.environ:
        _display({"text/html": f"<style>{_LAB}{tables.css()}</style>", "text/plain": ""})


def _ipython() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


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
    root = local.project_root()
    results = local.local_results(root)
    try:
        here, known = local.all_records(root), local.known_machine(results)
        may_measure = machine is None and not os.environ.get(local.NO_MEASURING)
        if may_measure and (missing := local.missing([job], here, known)):
            local.measure_jobs(missing, results, results / "logs" / f"{job.name}.log")
            frames.cached.cache_clear()
            here, known = local.all_records(root), local.known_machine(results)
    except records.RecordError as error:
        raise Stop(str(error)) from None
    if machine is None:
        found = local.spoken_for(job, here, known)
        return found[0].relative_to(root).as_posix() if found else None
    found = records.best_record(job, [item for item in here if item[0].parent.name == machine])
    if found is None:
        folders = ", ".join(sorted({path.parent.name for path, _ in here})) or "none"
        raise Stop(
            f"machine: {machine!r} has no record of {job.name}; remove it, or name one of the"
            f" folders that have records: {folders}"
        )
    return found[0].relative_to(root).as_posix()


def frames_of(results_dirs: Sequence[str | Path] = records.RESULTS_DIRS) -> frames.Frames:
    """Return all that was measured, as tidy DataFrames.

    Raises
    ------
    Stop
        Naming every file that cannot be read.
    """
    try:
        return frames.cached(tuple(map(str, results_dirs)))
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
    _display({"text/html": tables.legend(), "text/plain": ", ".join(tables.KINDS)})


def _display(data: dict[str, str]) -> None:
    from IPython.display import display

    display(data, raw=True)
