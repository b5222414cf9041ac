"""Runs notebook scripts, several at a time, each in a fork of this process.

A fork has imported all that a notebook needs, so it starts at once; and whatever becomes of it,
this process lives on to say so on the page.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import jupytext
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from wanreport.measure.jobs import NO_MEASURING
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.notebook import PAGE, Stop

CELL_TIMEOUT_S = 900.0

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Page:
    """A page to make: a notebook, and what is said around it."""

    name: str  # for messages, and the heading of a page whose notebook shows none
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


@dataclass
class Cell:
    """A cell of a notebook; `outputs` are texts by MIME type, as IPython displays them."""

    kind: str
    source: str
    tags: tuple[str, ...] = ()
    outputs: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """Why a notebook did not run to its end, and what to do about it.

    `cell` counts the script's cells from 1, prose included.
    """

    what: str
    advice: str
    cell: int = 0
    source: str = ""


Ran = tuple[Page, list[Cell], Failure | None, float]


def execute(
    pages: Sequence[Page], cwd: Path, workers: int = 1, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[Ran]:
    """Run the notebooks of pages; yield each as it ends: page, cells, failure if any, seconds.

    Of a notebook that fails these are the cells up to the one that did. A cell may take
    `timeout_s`. Notebooks run so read records and measure nothing. If the caller stops before the
    end, nothing goes on running.
    """
    todo, busy = list(reversed(pages)), list[_Run]()
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        try:
            while todo or busy:
                while todo and len(busy) < workers:
                    page = todo.pop()
                    try:
                        cells = _cells(page.script.read_text("utf-8"), page.parameters)
                    except Exception as error:  # not a notebook at all: the page says so
                        what = f"{type(error).__name__}: {error}"
                        yield page, [], Failure(what, f"Fix {page.script.name}."), 0.0
                    else:
                        busy.append(_Run(page, cells, cwd, folder))
                patience = min((run.heard for run in busy), default=0) + timeout_s
                wait([run.pipe for run in busy], max(0, patience - time.monotonic()))
                for run in list(busy):
                    if run.over(timeout_s):
                        busy.remove(run)
                        yield run.end()
        finally:
            for run in busy:
                run.end()


def _cells(text: str, parameters: Mapping[str, Any]) -> list[Cell]:
    """A script's cells, with parameters injected after those that it sets itself."""
    cells = [Cell(*each) for each in _parsed(text)]
    if parameters:
        at = next((n for n, cell in enumerate(cells, 1) if "parameters" in cell.tags), 0)
        lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
        cells.insert(at, Cell("code", "\n".join(lines), ("injected",)))
    return cells


@cache
def _parsed(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    cells = jupytext.reads(text, "py:percent").cells
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))) for cell in cells]


class _Run:
    """A notebook in its fork, seen from here."""

    def __init__(self, page: Page, cells: list[Cell], cwd: Path, folder: str) -> None:
        self.page, self.cells = page, cells
        self.code = [n for n, cell in enumerate(cells) if cell.kind == "code" and cell.source]
        self.failure: Failure | None = None
        self.done = 0
        self.begun = self.heard = time.monotonic()
        self.pipe, there = _FORK.Pipe(duplex=False)
        sources = [cells[n].source for n in self.code]
        self.process = _FORK.Process(target=_run_cells, args=(there, page, sources, cwd, folder))
        self.process.start()
        there.close()

    def over(self, timeout_s: float) -> bool:
        """Take what has come; tell whether the notebook has ended, one way or another."""
        if self.pipe.poll() and self.done < len(self.code):
            try:
                self.cells[self.code[self.done]].outputs, self.failure = self.pipe.recv()
                self.done += self.failure is None
                self.heard = time.monotonic()
            except (EOFError, ConnectionError):
                self.process.join(10)
                self.failure = _died(self.process.exitcode or 0)
        elif time.monotonic() > self.heard + timeout_s:
            what = f"This cell took longer than {timeout_s:g} s."
            self.failure = Failure(what, "See what it waits for.")
        return self.failure is not None or self.done == len(self.code)

    def end(self) -> Ran:
        """End the fork with all that it has begun, and say what came of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        cells, failure = self.cells, self.failure
        if failure:
            at = self.code[self.done]
            number = at + 1 - sum("injected" in cell.tags for cell in cells[:at])
            failure = Failure(failure.what, failure.advice, number, cells[at].source)
            cells = cells[: at + 1]
        return self.page, cells, failure, time.monotonic() - self.begun


def _died(status: int) -> Failure:
    if status < 0:
        what = f"The notebook's process was killed by {signal.Signals(-status).name}."
        return Failure(what, "Most often it takes more memory: free some, or ask for more.")
    what = f"The notebook's process ended with exit status {status}."
    return Failure(what, "See what this cell calls.")


# In the fork -------------------------------------------------------------------------------------


def _run_cells(
    pipe: Connection, page: Page, sources: Sequence[str], cwd: Path, folder: str
) -> None:
    """Run cells until one fails; send the outputs of each, and what failed."""
    os.setsid()  # Ctrl-C is for the parent, and a kill reaches whatever a cell has started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = folder  # the parent removes it, even if this process is killed
    os.environ.update({NO_MEASURING: "1", PAGE: page.href})
    RESULTS_DIRS[:] = map(Path, page.results)
    os.chdir(cwd)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(
        config=config, ipython_dir=tempfile.mkdtemp(), colors="nocolor"
    )
    shell._showtraceback = _print_error  # type: ignore[assignment,method-assign]
    shell.display_pub = shown = CapturingDisplayPublisher()
    shell.display_trap.hook = CapturingDisplayHook(shell, shown.outputs)
    for source in sources:
        shown.outputs.clear()
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            ran = shell.run_cell(source, store_history=True)
        outputs = [each["data"] for each in shown.outputs]
        outputs[:0] = [{"text/plain": out.getvalue()}] if out.getvalue() else []
        outputs += [{"stderr": err.getvalue()}] if err.getvalue() else []
        error = ran.error_before_exec or ran.error_in_exec
        pipe.send((outputs, error and _raised(error)))
        if error:
            return


def _print_error(kind: type, error: BaseException, lines: Sequence[str]) -> None:
    print(*lines, sep="\n", file=sys.stderr)


def _raised(error: BaseException) -> Failure:
    if isinstance(error, Stop):  # written for the reader
        return Failure(str(error), "Fix what it names and run again.")
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    return Failure(what, "Read the traceback below, at that cell.")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
