"""Checks what was injected into a notebook: papermill accepts any name and any type.

A misspelt key would silently measure something else. So every name that a notebook defines before
it calls in here must be a known parameter.
"""

from __future__ import annotations
import __future__ as future

import ast
import contextlib
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from wanreport.jobs.job import Job, JobError, field_defaults, job_from_mapping

_READY = "_wanreport_ready"


class Stop(Exception):
    """Ends a notebook with a message for its reader in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def job_of(namespace: dict[str, Any], source: str) -> Job:
    """Return the job that a notebook's names make; `source` says in messages where they come from.

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
    required = [name for name, field in Job.model_fields.items() if field.is_required()]
    unset = {name for name in required if given.get(name) is None}
    try:
        job = job_from_mapping({n: v for n, v in given.items() if n not in unset}, source=source)
    except JobError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise Stop(f"These parameters do not make a job; nothing was run.\n{problems}") from None
    namespace[_READY] = True
    return job


def none_but(namespace: dict[str, Any], allowed: Iterable[str]) -> None:
    """Check that a notebook was given no other than the `allowed` parameters.

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
    namespace[_READY] = True


def _injected(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The names that the notebook's cells have defined so far, with their values."""
    hidden = set(getattr(ipython(), "user_ns_hidden", ()))
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


def ipython() -> Any:
    """Return the shell that runs this notebook; None in a plain process."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None
