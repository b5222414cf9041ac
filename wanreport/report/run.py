"""Runs the cells of a notebook script in a fork of this process, with what it has imported.

A start takes no time, and whatever becomes of a notebook, this process lives on to say so on its
page. Parameters are injected as papermill does it, so ``papermill`` by hand gives the same outputs.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from wanreport.measure.jobs import NO_MEASURING

CELL_TIMEOUT_S = 900.0
PAGE = "WANREPORT_PAGE"
"""Set for a notebook that becomes a page: the page's path in its site, for links from it."""

_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Failure:
    """Why a notebook did not run to its end, and what to do about it.

    `cell` counts the script's cells from 1, prose included; `shown` is how many cells of the
    executed notebook, which may hold injected parameters too, belong on the page.
    """

    what: str
    advice: str
    cell: int = 0
    source: str = ""
    shown: int = 0


def execute(
    script: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    href: str = "index.html",
    timeout_s: float = CELL_TIMEOUT_S,
) -> tuple[Any, Failure | None]:
    """Run a notebook script in a fork; return the notebook, and why it got no further, if so.

    A cell may take `timeout_s`. A notebook run so reads records and measures nothing.
    """
    import jupytext

    try:
        notebook = _parameterized(jupytext.read(script), parameters)
    except Exception as error:  # not a notebook at all: the page says so
        empty = jupytext.reads("", "py:percent")
        return empty, Failure(f"{type(error).__name__}: {error}", f"Fix {script.name}.")
    code = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source]
    sources = [notebook.cells[n].source for n in code]
    done, problem = 0, None
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as home:
        here, there = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_run_cells, args=(there, sources, cwd, href, home))
        child.start()
        there.close()
        try:
            while done < len(code) and problem is None:
                ready = wait([here, child.sentinel], timeout_s)
                if here in ready and (outputs := _received(here)) is not None:
                    cell = notebook.cells[code[done]]
                    cell.outputs, cell.execution_count = outputs, done + 1
                    problem = _raised(outputs)
                    done += problem is None
                elif ready:
                    child.join(10)
                    problem = _died(child.exitcode or 0)
                else:
                    problem = Failure(f"This cell took longer than {timeout_s:g} s.",
                                      "See what it waits for.")  # fmt: skip
        finally:
            assert child.pid is not None
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.join()
            here.close()
    if problem is None:
        return notebook, None
    at = code[done]
    given = sum("injected-parameters" in c.metadata.get("tags", []) for c in notebook.cells[:at])
    where = {"cell": at + 1 - given, "source": sources[done], "shown": at + 1}
    return notebook, replace(problem, **where)


def _parameterized(notebook: Any, parameters: Mapping[str, Any]) -> Any:
    from papermill.parameterize import parameterize_notebook

    notebook.metadata = type(notebook.metadata)(kernelspec=dict(_KERNEL), papermill={})
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    if parameters:
        notebook = parameterize_notebook(notebook, dict(parameters))
    del notebook.metadata["papermill"]
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def _received(pipe: Connection) -> list[Any] | None:
    with suppress(EOFError, ConnectionError):
        return list(pipe.recv())
    return None


def _raised(outputs: Sequence[Any]) -> Failure | None:
    for output in outputs:
        if output.output_type == "error":
            if output.ename == "Stop":  # written for the reader
                return Failure(output.evalue, "Fix what it names and run again.")
            what = f"{output.ename}: {output.evalue}" if output.evalue else output.ename
            return Failure(what, "Read the traceback below, at that cell.")
    return None


def _died(status: int) -> Failure:
    if status < 0:
        what = f"The notebook's process was killed by {signal.Signals(-status).name}."
        return Failure(what, "Most often it takes more memory: free some, or ask for more.")
    return Failure(f"The notebook's process ended with exit status {status}.",
                   "See what this cell calls.")  # fmt: skip


# In the fork -------------------------------------------------------------------------------------


def _run_cells(pipe: Connection, sources: Sequence[str], cwd: Path, href: str, home: str) -> None:
    """Run cells until one fails; send the outputs of each."""
    os.setsid()  # Ctrl-C is for the parent, and a kill reaches whatever a cell has started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update({NO_MEASURING: "1", PAGE: href})
    os.chdir(cwd)
    shell, outputs = _shell(home)
    for source in sources:
        outputs.clear()
        with (
            redirect_stdout(_Stream("stdout", outputs)),
            redirect_stderr(_Stream("stderr", outputs)),
        ):
            ran = shell.run_cell(source, store_history=True)
        pipe.send(list(outputs))
        if not ran.success:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _shell(home: str) -> tuple[Any, list[Any]]:
    """IPython as a kernel has it, and the list that its outputs go to."""
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from nbformat.v4 import new_output
    from traitlets import Type
    from traitlets.config import Config

    outputs: list[Any] = []

    def anonymous(data: dict[str, Any]) -> dict[str, Any]:
        return {kind: _anonymous(v) if kind == "text/plain" else v for kind, v in data.items()}

    class Publisher(DisplayPublisher):
        def publish(self, data: Any, metadata: Any = None, *_: Any, **__: Any) -> None:
            outputs.append(new_output("display_data", anonymous(data), metadata=metadata or {}))

    class Hook(DisplayHook):
        def write_output_prompt(self) -> None:
            pass

        def finish_displayhook(self) -> None:
            pass

        def write_format_data(self, data: Any, metadata: Any = None) -> None:
            said = {"metadata": metadata or {}, "execution_count": self.prompt_count}
            outputs.append(new_output("execute_result", anonymous(data), **said))

    class Shell(InteractiveShell):
        displayhook_class = Type(Hook)
        display_pub_class = Type(Publisher)

        def _showtraceback(self, kind: Any, error: Any, lines: Sequence[str]) -> None:
            trace = [_anonymous(line) for line in lines]
            said = {"ename": kind.__name__, "evalue": str(error), "traceback": trace}
            outputs.append(new_output("error", **said))

    config = Config({"HistoryManager": {"enabled": False}})
    shell = Shell.instance(config=config, ipython_dir=home, colors="nocolor")
    return shell, outputs


class _Stream(io.TextIOBase):
    """What a cell prints, among its other outputs."""

    def __init__(self, name: str, outputs: list[Any]) -> None:
        self.stream, self.outputs = name, outputs

    def write(self, text: str) -> int:
        from nbformat.v4 import new_output

        last = self.outputs[-1] if self.outputs else {}
        if last.get("name") != self.stream:
            self.outputs.append(new_output("stream", name=self.stream, text=""))
        self.outputs[-1].text = _anonymous(self.outputs[-1].text + text)
        return len(text)


def _anonymous(text: str) -> str:
    """Without the addresses of objects, which differ from run to run."""
    return re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)
