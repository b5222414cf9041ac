"""Runs notebook scripts, several at a time, each in a fork of this process.

A fork has imported all that a notebook needs, so it starts at once; and whatever becomes of it,
this process lives on to say so on the page.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import jupytext
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from wanreport.measure.jobs import NO_MEASURING
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.notebook import PAGE, Stop

CELL_TIMEOUT_S = 900.0
INJECTED = "injected"  # the id of the cell with a page's parameters

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
"""A page, the cells of its notebook, why it did not run to its end ("" if it did), seconds.

The outputs of a cell are texts by MIME type. Of a notebook that failed the last cell is the one
that did.
"""


def execute(
    pages: Sequence[Page], cwd: Path, workers: int = 1, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[Ran]:
    """Run the notebooks of pages, and yield each as it ends.

    A cell may take `timeout_s`. Notebooks run so read records and measure nothing. If the caller
    stops before the end, nothing goes on running.
    """
    todo, busy = list(reversed(pages)), dict[Any, _Run]()
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        try:
            while todo or busy:
                while todo and len(busy) < workers:
                    run = _Run(todo.pop(), cwd, folder, timeout_s)
                    busy[run.pipe] = run
                for pipe in wait(busy):
                    if busy[pipe].has_ended():
                        yield busy.pop(pipe).end()
        finally:
            for run in busy.values():
                run.end()


@cache
def _cells(text: str) -> list[Any]:
    return list(jupytext.reads(text, "py:percent").cells)


class _Run:
    """A notebook in its fork, seen from here."""

    def __init__(self, page: Page, cwd: Path, folder: str, timeout_s: float) -> None:
        self.page, self.timeout_s, self.begun = page, timeout_s, time.monotonic()
        self.cells = deepcopy(_cells(page.script.read_text("utf-8")))
        if page.parameters:  # after those that the script sets itself, as papermill does
            tagged = ["parameters" in cell.metadata.get("tags", []) for cell in self.cells]
            lines = ["# Parameters", *(f"{name} = {v!r}" for name, v in page.parameters.items())]
            cell = deepcopy(_cells("\n".join(["# %%", *lines]))[0])
            cell.id = INJECTED
            self.cells.insert(tagged.index(True) + 1 if True in tagged else 0, cell)
        self.todo = [cell for cell in self.cells if cell.cell_type == "code" and cell.source]
        self.failure = ""
        self.pipe, there = _FORK.Pipe(duplex=False)
        sources = [cell.source for cell in self.todo]
        given = (there, page, sources, cwd, folder, timeout_s)
        self.process = _FORK.Process(target=_run_cells, args=given)
        self.process.start()
        there.close()

    def has_ended(self) -> bool:
        """Take what has come; tell whether the notebook has ended, one way or another."""
        try:
            self.todo[0].outputs, self.failure = self.pipe.recv()
            self.todo = self.todo[not self.failure :]
        except (EOFError, OSError):
            self.process.join(10)
            if self.todo:  # else it is a notebook without code
                self.failure = _death(self.process.exitcode or 0, self.timeout_s)
            return True
        return not self.todo or bool(self.failure)

    def end(self) -> Ran:
        """End the fork with all that it has begun, and say what came of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        cells = self.cells[: self.cells.index(self.todo[0]) + 1] if self.failure else self.cells
        return self.page, cells, self.failure, time.monotonic() - self.begun


def _death(status: int, timeout_s: float) -> str:
    if status == -signal.SIGALRM:
        return f"This cell took longer than {timeout_s:g} s."
    if status < 0:
        return f"The notebook's process was killed by {signal.Signals(-status).name}."
    return f"The notebook's process ended with exit status {status}."


# In the fork -------------------------------------------------------------------------------------


def _run_cells(
    pipe: Connection, page: Page, sources: Sequence[str], cwd: Path, folder: str, timeout_s: float
) -> None:
    """Run cells until one fails; send the outputs of each, and what failed."""
    os.setsid()  # Ctrl-C is for the parent, and a kill reaches whatever a cell has started
    tempfile.tempdir = folder  # the parent removes it, even if this process is killed
    os.environ.update({NO_MEASURING: "1", PAGE: page.href})
    RESULTS_DIRS[:] = map(Path, page.results)
    os.chdir(cwd)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(
        config=config, ipython_dir=tempfile.mkdtemp(), colors="nocolor"
    )
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends this process
    with shell.display_trap:
        for source in sources:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            with capture_output() as shown:
                ran = shell.run_cell(source, store_history=True)
            outputs = [{"text/plain": shown.stdout}, *(each.data for each in shown.outputs),
                       {"stderr": shown.stderr}]  # fmt: skip
            problem = _problem(ran.error_before_exec or ran.error_in_exec)
            pipe.send(([each for each in outputs if any(each.values())], problem))
            if problem:
                return


def _problem(error: BaseException | None) -> str:
    if error is None or isinstance(error, Stop):  # written for the reader
        return str(error or "")
    return f"{type(error).__name__}: {error}".removesuffix(": ")
