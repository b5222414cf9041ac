"""Runs notebook scripts, several at a time, each in a fork of this process.

A fork has imported all that a notebook needs, so it starts at once; and whatever becomes of it,
this process lives on to say so on the page.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import jupytext
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from wanreport.measure.jobs import NO_MEASURING
from wanreport.measure.ranks import die_with_parent
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.notebook import PAGE, Stop

CELL_TIMEOUT_S = 900.0

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Page:
    """A page to make: a notebook, and what is said around it."""

    script: Path  # in jupytext's percent format
    out: Path  # the file to write
    href: str = "index.html"  # its path within the site, for links
    parameters: Mapping[str, Any] = field(default_factory=dict)  # injected into the notebook
    results: tuple[str, ...] = tuple(map(str, RESULTS_DIRS))  # folders whose records it may show
    links: tuple[tuple[str, str], ...] = ()  # text and path, for the bar at the top
    facts: tuple[tuple[str, str], ...] = ()  # names and values, for the footer
    files: tuple[str, ...] = ()  # what the page was made from, and
    inputs: str = ""  # a hash over it all; pages of failed notebooks show none
    repair: str = "wanreport report"  # the command that makes this page again


Ran = tuple[Page, list[Any], str, float]
"""A page, its notebook's cells, why it did not run to its end ("" if it did), seconds.

The outputs of a cell are texts by MIME type. Of a notebook that failed the last cell is the one
that did; a file that is not a notebook has none.
"""


def execute(
    pages: Sequence[Page], cwd: Path, workers: int = 1, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[Ran]:
    """Run the notebooks of pages, and yield each as it ends.

    A cell may take `timeout_s`. Notebooks run so read records and measure nothing. If the caller
    stops before the end, nothing goes on running.
    """
    todo, busy = list(reversed(pages)), dict[Any, Any]()
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        try:
            while todo or busy:
                while todo and len(busy) < workers:
                    page, begun = todo.pop(), time.monotonic()
                    try:
                        cells, shown = _cells(page), Path(folder, str(len(todo)))
                    except Exception as error:  # not text, or its header is not YAML
                        yield page, [], f"{page.script.name}: not a script, fix it: {error}", 0.0
                        continue
                    sources = [cell.source for cell in _code(cells)]
                    given = (page, sources, cwd, shown, timeout_s)
                    process = _FORK.Process(target=_run_cells, args=given)
                    process.start()
                    busy[process.sentinel] = process, page, cells, shown, begun
                for ended in wait(busy):
                    process, page, cells, shown, begun = busy.pop(ended)
                    _kill(process)
                    failure = _outcome(cells, shown, process.exitcode, timeout_s)
                    yield page, cells, failure, time.monotonic() - begun
        finally:
            for process, *_ in busy.values():
                _kill(process)


@cache
def _parsed(script: str) -> list[Any]:
    return list(jupytext.reads(script, "py:percent").cells)


def _cells(page: Page) -> list[Any]:
    """The cells of a script; a page's parameters come after its own, as papermill has it."""
    cells = deepcopy(_parsed(page.script.read_text("utf-8")))
    given = "\n".join(f"{name} = {value!r}" for name, value in page.parameters.items())
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if given and tagged:
        tagged[0].source += f"\n\n# Parameters\n{given}"
    elif given and code:
        code[0].source = f"{given}\n{code[0].source}"
    return cells


def _code(cells: Sequence[Any]) -> list[Any]:
    return [cell for cell in cells if cell.cell_type == "code" and cell.source]


def _kill(process: Any) -> None:
    """End a fork with all that it has begun."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _outcome(cells: list[Any], shown: Path, status: int, timeout_s: float) -> str:
    """Give cells what they have shown, cut off those that did not run, and say why."""
    todo, failure = _code(cells), ""
    with suppress(OSError, EOFError, pickle.UnpicklingError), shown.open("rb") as file:
        while todo and not failure:
            todo[0].outputs, failure = pickle.load(file)
            todo = todo[not failure :]
    if not todo:
        return ""
    if status == -signal.SIGALRM:
        failure = f"This cell took longer than {timeout_s:g} s."
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    del cells[cells.index(todo[0]) + 1 :]
    return f"cell {len(cells)}: {failure or f'Its process ended with {how}.'}"


# In the fork -------------------------------------------------------------------------------------


def _run_cells(
    page: Page, sources: Sequence[str], cwd: Path, shown: Path, timeout_s: float
) -> None:
    """Run cells until one fails; write the outputs of each, and what failed."""
    die_with_parent()
    os.setsid()  # Ctrl-C is for the parent, and a kill reaches whatever a cell has started
    tempfile.tempdir = str(shown.parent)  # the parent removes it, even if this process is killed
    os.environ.update({NO_MEASURING: "1", PAGE: page.href})
    RESULTS_DIRS[:] = map(Path, page.results)
    os.chdir(cwd)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(
        config=config, ipython_dir=tempfile.mkdtemp(), colors="nocolor"
    )
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends this process
    with shell.display_trap, shown.open("wb", buffering=0) as file:
        for source in sources:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            with capture_output() as caught:
                ran = shell.run_cell(source, store_history=True)
            outputs = [{"text/plain": caught.stdout}, *(each.data for each in caught.outputs),
                       {"stderr": caught.stderr}]  # fmt: skip
            error = ran.error_before_exec or ran.error_in_exec
            problem = str(error or "")
            if error and not isinstance(error, Stop):  # which is written for the reader
                problem = f"{type(error).__name__}: {error}".removesuffix(": ")
            file.write(pickle.dumps(([each for each in outputs if any(each.values())], problem)))
            if problem:
                break
    os._exit(0)  # whatever a cell has left running
