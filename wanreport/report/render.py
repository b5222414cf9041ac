"""Runs notebook scripts, and makes one self-contained HTML file of each.

Each runs in a fork of this process, which has imported all that it needs, so it starts at once; and
whatever becomes of it, this process lives on to say so: a notebook that fails still gives a page,
whose first screen says what failed. A page loads nothing and runs nothing; the same notebook and
records give the same bytes.

``python -m wanreport.report.render NOTEBOOK OUT [-p NAME VALUE]...`` makes one page by hand.
"""

import argparse
import gc
import html
import io
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import jupytext
import matplotlib
import yaml
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

import wanreport.report.figures  # for notebooks: imported here, no fork has to
from wanreport.measure.jobs import NO_MEASURING
from wanreport.measure.ranks import die_with_parent
from wanreport.records.record import RESULTS_DIRS, replace_file
from wanreport.report.notebook import PAGE, Stop, frames_of
from wanreport.report.tables import TEMPLATES, rendered

BOX = r'<div class="table-box" tabindex="0" role="region" aria-label="Table">\g<0></div>'
CELL_TIMEOUT_S = 900.0

_FORK = multiprocessing.get_context("fork")
_parsed = cache(partial(jupytext.reads, fmt="py:percent"))  # one script makes many pages


@dataclass(frozen=True)
class Page:
    script: Path  # in jupytext's percent format
    out: Path  # the file to write
    href: str = "index.html"  # its path within the site, for links
    parameters: Mapping[str, Any] = field(default_factory=dict)  # injected into the notebook
    results: Sequence[str] = tuple(map(str, RESULTS_DIRS))  # folders whose records it may show
    links: Sequence[tuple[str, str]] = ()  # text and path, for the bar at the top
    facts: Mapping[str, str] = field(default_factory=dict)  # for the footer
    files: Sequence[str] = ()  # what the page was made from, and
    inputs: str = ""  # a hash over it all; pages of failed notebooks show none
    repair: str = "wanreport report"  # the command that makes this page again


def make(page: Page, cwd: Path, timeout_s: float = CELL_TIMEOUT_S) -> str:
    """Make one page; return the problem, "" where all went well."""
    ((_, problem, _),) = make_pages([page], cwd, timeout_s=timeout_s)
    return problem


def make_pages(
    pages: Sequence[Page], cwd: Path, workers: int = 1, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[tuple[Page, str, float]]:
    """Make pages, some at a time; yield each with its problem ("" for none) and its seconds.

    A cell may take `timeout_s`. Notebooks run so read records and measure nothing. If the caller
    stops before the end, nothing goes on running.
    """
    matplotlib.use("agg")
    matplotlib.rcdefaults()  # nobody's own settings count
    Figure().savefig(io.StringIO(), format="svg")  # fonts are looked up at the first picture
    for name in TEMPLATES.list_templates(["j2"]):
        TEMPLATES.get_template(name)  # compiled here, so that no fork has to
    with suppress(Stop):  # which is for the notebook to show
        for count in (1, len(RESULTS_DIRS)):  # the committed records, and all
            frames_of(RESULTS_DIRS[:count])
    todo, busy = list(reversed(pages)), dict[Any, Any]()
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        try:
            while todo or busy:
                while todo and len(busy) < workers:
                    page, begun = todo.pop(), time.monotonic()
                    try:
                        cells, shown = _cells(page), Path(folder, str(len(todo)))
                    except Exception as error:  # it is not text, say
                        problem = f"{page.script.name}: not a script, fix it: {error}"
                        replace_file(page.out, to_html(page, [], problem))
                        yield page, problem, 0.0
                        continue
                    sources = [cell.source for cell in _code(cells)]
                    given = (page, sources, cwd, shown, timeout_s)
                    process = _FORK.Process(target=_run_cells, args=given)
                    process.start()
                    busy[process.sentinel] = process, page, cells, shown, begun
                for ended in wait(busy):
                    process, page, cells, shown, begun = busy.pop(ended)
                    _kill(process)
                    problem = _outcome(cells, shown, process.exitcode, timeout_s)
                    replace_file(page.out, to_html(page, cells, problem))
                    yield page, problem, time.monotonic() - begun
        finally:
            for process, *_ in busy.values():
                _kill(process)


def _cells(page: Page) -> list[Any]:
    """The cells of a script; a page's parameters come after its own, as papermill has it."""
    cells = deepcopy(_parsed(page.script.read_text("utf-8")).cells)
    given = "\n".join(f"{name} = {value!r}" for name, value in page.parameters.items())
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if given and tagged:
        tagged[0].source += f"\n\n# Parameters\n{given}"
    elif given and code:
        code[0].source = f"{given}\n{code[0].source}"
    return list(cells)


def _code(cells: Sequence[Any]) -> list[Any]:
    return [cell for cell in cells if cell.cell_type == "code" and cell.source]


def _kill(process: Any) -> None:
    """End a fork with all that it has begun."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _outcome(cells: list[Any], shown: Path, status: int, timeout_s: float) -> str:
    """Give cells what they have shown, as texts by MIME type; cut off the rest, and say why."""
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


def _run_cells(
    page: Page, sources: Sequence[str], cwd: Path, shown: Path, timeout_s: float
) -> None:
    """In the fork: run cells until one fails; write the outputs of each, and what failed."""
    die_with_parent()
    gc.freeze()  # what is imported is not looked through for garbage
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


def to_html(page: Page, cells: Sequence[Any], failure: str = "") -> str:
    """Write the cells of a notebook that ran as a page."""
    body = rendered("cells.html.j2", cells=_shown(cells), markdown=_markdown, code=_highlighted)
    body = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", body)  # addresses differ from run to run
    body = re.sub(r"<table( border=\"1\" class=\"dataframe\")?>.*?</table>", BOX, body, flags=re.S)
    body, headings = _numbered(body)
    # A job's parameters are shown as a params file, without those that choose among records.
    job = {k: v for k, v in page.parameters.items() if k not in ("machine", "results_dirs")}
    return rendered(
        "page.html.j2", page=page, body=body, headings=headings, failure=failure,
        failed=_highlighted(cells[-1].source) if failure and cells else "",
        parameters=yaml.safe_dump(job, sort_keys=False, allow_unicode=True) if job else "",
        version=wanreport.__version__,
    )  # fmt: skip


def _shown(cells: Sequence[Any]) -> Iterator[tuple[int, Any, list[str]]]:
    """Number the cells to show, each with the code to unfold below it.

    The code below a piece of prose unfolds after its last output; where it shows nothing, it joins
    the code of the next that does. Prose tagged "with-output" is left out where its code shows
    nothing.
    """
    starts = [at for at, cell in enumerate(cells) if cell.cell_type == "markdown" or at == 0]
    waiting: list[str] = []
    for start, end in itertools.pairwise([*starts, len(cells)]):
        part = cells[start:end]
        waiting += [cell.source for cell in _code(part)]
        shows = any(cell.get("outputs") for cell in part)
        if shows or "with-output" not in part[0].metadata.get("tags", []):
            for number, cell in enumerate(part, start):
                yield number, cell, waiting if shows and number == end - 1 else []
        waiting = [] if shows else waiting
    yield len(cells), {"cell_type": "code"}, waiting


@cache
def _highlighted(source: str) -> str:
    """Colour a cell's code; what has no colour needs no markup, and a string's parts are one."""
    code = str(Highlight2HTML("ipython3")(source))
    code = re.sub(r'<span class="(?:p|n|o|w|nb|nf|nn)">([^<]*)</span>', r"\1", code)
    strings = r'(?:<span class="s[12adi]?">[^<]*</span>)+'  # a page has thousands: <i> is short
    return re.sub(strings, lambda spans: f"<i>{re.sub('<[^>]*>', '', spans[0])}</i>", code)


@cache
def _markdown(text: str) -> str:
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    return str(MarkdownWithMath(renderer=renderer).render(text))


def _numbered(body: str) -> tuple[str, list[tuple[int, str, str]]]:
    """Give each heading a unique id; return the page and (level, id, text) of each."""
    headings: list[tuple[int, str, str]] = []
    taken = {*re.findall(r'\sid="([^"]*)"', re.sub(r"<h[1-6][^>]*>", "", body)), "provenance"}

    def number(match: re.Match[str]) -> str:
        level, inner = match.groups()
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        stem = re.sub(r"[^\w.-]+", "-", text).strip("-").lower() or "section"
        names = (f"{stem}-{count}" if count > 1 else stem for count in itertools.count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        headings.append((int(level), name, text))
        return f'<h{level} id="{name}">{inner}</h{level}>'

    return re.sub(r"<h([1-6])[^>]*>(.*?)</h\1>", number, body, flags=re.S), headings


def main() -> int:
    """Make one page by hand."""
    parser = argparse.ArgumentParser(prog="python -m wanreport.report.render")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    given = parser.parse_args()
    parameters = {name: yaml.safe_load(value) for name, value in given.p}
    problem = make(Page(given.notebook, given.out, parameters=parameters), Path.cwd())
    print(problem or given.out, file=sys.stderr if problem else sys.stdout)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
