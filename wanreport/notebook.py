"""What the notebooks call: check the parameters, get the record, show figures and tables.

A notebook starts with ``job = setup(globals())`` in the first cell after its parameters and
imports. From then on its output depends on records alone: measuring writes to a log and prints
nothing, and figures come out as the same bytes every time.
"""

from __future__ import annotations
import __future__ as future

import ast
import contextlib
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wanreport import local
from wanreport import record as records
from wanreport.job import Job, JobError, field_defaults, job_from_mapping, resolve_job

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_READY = "_wanreport_ready"


class Stop(Exception):
    """Ends a notebook with a message for its reader in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


# Parameters --------------------------------------------------------------------------------------


def setup(namespace: dict[str, Any], source: str = "parameters") -> Job:
    """Check everything that was injected into the notebook and return the job that it makes.

    papermill accepts any name and any type, so that a misspelt key would silently measure
    something else. Here every name that the notebook defines up to this call must be a field
    of a job.

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
    defaults = field_defaults()
    given = _injected(namespace)
    given.pop("machine", None)  # says which record to show, not what to measure
    # A required field that nobody set still has the None of the parameters cell.
    required = {name for name, field in Job.model_fields.items() if field.is_required()}
    unset = {name for name in required if given.get(name, None) is None}
    # In JupyterLab this cell runs again after later ones have defined names of their own.
    names = [n for n in given if n in defaults or not namespace.get(_READY)]
    try:
        job = job_from_mapping({n: given[n] for n in names if n not in unset}, source=source)
    except JobError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise Stop(f"These parameters do not make a job; nothing was run.\n{problems}") from None
    namespace[_READY] = True
    return job


def parameters(namespace: dict[str, Any], *allowed: str) -> None:
    """Check that a notebook which is not about one job was given none but `allowed` parameters.

    Raises
    ------
    Stop
        With every unknown name, one per line.
    """
    given = _injected(namespace)
    unknown = sorted(set(given) - set(allowed))
    if unknown and not namespace.get(_READY):
        takes = f"takes only {', '.join(allowed)}" if allowed else "takes no parameters"
        raise Stop(
            "\n".join(f"parameters: {name}: unknown; this notebook {takes}" for name in unknown)
        )
    namespace[_READY] = True


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
    names = []
    for cell in cells:
        with contextlib.suppress(SyntaxError, ValueError, TypeError):
            for node in ast.parse(cell).body:
                targets = node.targets if isinstance(node, ast.Assign) else []
                names += [target.id for target in targets if isinstance(target, ast.Name)]
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.append(node.target.id)
    return [name for name in names if name != _READY]


def _ipython() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


# Records -----------------------------------------------------------------------------------------


def measure(job: Job, source: str = "", machine: str | None = None) -> dict[str, Any]:
    """Return the record that `job`'s page is about, measuring first where there is none.

    With `machine`, a folder of results/, it is that machine's record, and nothing is measured.

    Measuring happens in another process, whose output goes to ``results/local/logs/<job>.log``.
    Nothing is printed, so that the first and any later run of a notebook give the same page. A
    job that cannot be measured gives a record too: its status, reason and hint say why.
    """
    return located(job, source, machine)[1]


def located(job: Job, source: str = "", machine: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Like :func:`measure`, with the record's path (relative to the project) before it."""
    root = local.project_root()
    if machine is not None:
        here = [item for item in all_records() if item[0].parent.name == machine]
        if best := records.best_record(job, here):
            return best
        known = ", ".join(sorted({path.parent.name for path, _ in all_records()})) or "none"
        raise Stop(
            f"machine: {machine!r} has no record of {job.name}; remove it, or name one of the"
            f" folders that have records: {known}"
        )
    if not os.environ.get(local.NO_MEASURING):
        results = local.local_results(root)
        try:
            missing = local.missing([job], local.all_records(root), local.known_machine(results))
            if missing:
                local.measure_jobs(missing, results, results / "logs" / f"{job.name}.log")
        except records.RecordError as error:
            raise Stop(str(error)) from None
    found = local.spoken_for(job, all_records(), local.known_machine(local.local_results(root)))
    if found:
        return found
    unmeasured = records.new_record(
        resolve_job(job, gpus=0),
        reason="this job was not measured",
        hint=f"Run: wanreport run {source or f'params/.../{job.name}.yaml'}",
    )
    return Path(), unmeasured


def all_records() -> list[tuple[Path, dict[str, Any]]]:
    """Every record at hand, with paths relative to the project, in a fixed order."""
    root = local.project_root()
    try:
        return [(path.relative_to(root), record) for path, record in local.all_records(root)]
    except records.RecordError as error:
        raise Stop(str(error)) from None


# Showing -----------------------------------------------------------------------------------------


def show(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Display a figure as SVG.

    Parameters
    ----------
    fig
        A matplotlib figure; it is closed afterwards, so that nothing displays it a second time.
    alt
        What the figure shows, for those who cannot see it: its message, not its title.
    caption
        A line below the figure; plain text.
    """
    if not alt or not alt.strip():
        raise ValueError("show() needs alt: one sentence that says what the figure shows")
    from IPython.display import display

    display(
        {"image/svg+xml": svg(fig), "text/plain": alt},
        metadata={"image/svg+xml": {"alt": alt, "caption": caption}},
        raw=True,
    )
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


def table(html: str) -> None:
    """Display HTML from :mod:`wanreport.tables`. Escape everything that goes in."""
    from IPython.display import display

    caption = re.search(r'aria-label="([^"]*)"', html)
    plain = f"(table: {caption[1]})" if caption else "(HTML)"
    display({"text/html": str(html), "text/plain": plain}, raw=True)


def svg(fig: Figure) -> str:
    """Return a figure as an SVG whose ink is the text colour of the page around it.

    The same figure gives the same string: no date, no random ids. Ids are made unique to the
    figure, since all figures of a page share one name space.
    """
    import matplotlib

    from wanreport import figures

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "wanreport", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    out = buffer.getvalue()
    out = out[out.index("<svg") :].strip()
    out = re.sub(r"\s*<metadata>.*?</metadata>", "", out, flags=re.DOTALL)
    # Its one rule would apply to the whole page, whose own style sheet says it for figures.
    out = re.sub(r'\s*<style type="text/css">.*?</style>', "", out, flags=re.DOTALL)
    out = re.sub(r"\s*<!--.*?-->", "", out, flags=re.DOTALL)
    out = re.sub(r"(font: [^;'\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", out)
    ink = "|".join(re.escape(colour) for colour in (figures.INK, "#000000", "black"))
    out = re.sub(rf"(fill|stroke): (?:{ink})(?=[;\"])", r"\1: currentColor", out)
    mark = "f" + hashlib.sha256(out.encode()).hexdigest()[:8]
    out = re.sub(r'\bid="', f'id="{mark}-', out)
    out = re.sub(r'\bxlink:href="#', f'href="#{mark}-', out)
    return re.sub(r"url\(#", f"url(#{mark}-", out)
