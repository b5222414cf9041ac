"""Makes one self-contained HTML file of a notebook script.

A page loads nothing and runs nothing; the same notebook and records give the same bytes. A notebook
that fails still gives a page, whose first screen says what failed.

``python -m wanreport.report.render NOTEBOOK OUT [-p NAME VALUE]...`` makes one page by hand.
"""

from __future__ import annotations

import argparse
import html
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

import wanreport
from wanreport.records.record import RESULTS_DIRS, replace_file
from wanreport.report import notebook
from wanreport.report.run import CELL_TIMEOUT_S, Page, execute
from wanreport.report.tables import rendered

BOX = r'<div class="table-box" tabindex="0" role="region" aria-label="Table">\g<0></div>'


def make_pages(
    pages: Sequence[Page], cwd: Path, workers: int = 1, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[tuple[Page, str, float]]:
    """Make pages, some at a time; yield each with its problem ("" for none) and its seconds."""
    matplotlib.use("agg")
    matplotlib.rcdefaults()  # nobody's own settings count
    Figure().savefig(io.StringIO(), format="svg")  # fonts are looked up at the first picture
    with suppress(notebook.Stop):  # which is for the notebook to show
        for count in (1, len(RESULTS_DIRS)):  # the committed records, and all
            notebook.frames_of(RESULTS_DIRS[:count])
    for page, cells, failure, seconds in execute(pages, cwd, workers, timeout_s):
        replace_file(page.out, to_html(page, cells, failure))
        yield page, failure, seconds


def make(page: Page, cwd: Path, timeout_s: float = CELL_TIMEOUT_S) -> str:
    """Make one page; return the problem, "" where all went well."""
    ((_, problem, _),) = make_pages([page], cwd, timeout_s=timeout_s)
    return problem


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


def _shown(cells: Sequence[Any]) -> list[tuple[int, Any, list[str]]]:
    """Number the cells to show, each with the code to unfold below it.

    The code below a piece of prose unfolds after its last output; where it shows nothing, it joins
    the code of the next that does. Prose tagged "with-output" is left out where its code shows
    nothing.
    """
    parts: list[list[tuple[int, Any]]] = [[]]
    for each in enumerate(cells):
        if each[1].cell_type == "markdown":
            parts.append([])
        parts[-1].append(each)
    found, waiting = [], list[str]()
    for part in filter(None, parts):
        shows = any(cell.get("outputs") for _, cell in part)
        waiting += [cell.source for _, cell in part if cell.cell_type == "code" and cell.source]
        if shows or "with-output" not in part[0][1].metadata.get("tags", []):
            found += [(number, cell, list[str]()) for number, cell in part]
        if shows:
            found[-1][2].extend(waiting)
            waiting = []
    return [*found, (len(cells), {"cell_type": "code"}, waiting)]


@cache
def _highlighted(source: str) -> str:
    """Colour a cell's code; kinds of words that no colour is for need no markup."""
    code = str(Highlight2HTML("ipython3")(source))
    return re.sub(r'<span class="(?:p|n|o|w)">([^<]*)</span>', r"\1", code)


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
        names = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
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
