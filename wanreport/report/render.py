"""Makes one self-contained HTML file of a notebook script.

A page loads nothing and runs nothing; the same notebook and records give the same bytes. A notebook
that fails still gives a page, whose first screen says what failed.

``python -m wanreport.report.render NOTEBOOK OUT [-p NAME VALUE]...`` makes one page by hand.
"""

from __future__ import annotations

import argparse
import html
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

import wanreport
from wanreport.records.record import RESULTS_DIRS, replace_file
from wanreport.report import notebook
from wanreport.report.run import CELL_TIMEOUT_S, Cell, Failure, Page, execute
from wanreport.report.tables import TEMPLATE, rendered

BOX = r'<div class="table-box" tabindex="0" role="region" aria-label="Table">\g<0></div>'


def make_pages(
    pages: Sequence[Page], cwd: Path, workers: int, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[tuple[Page, str, float]]:
    """Make pages, some at a time; yield each with its problem ("" for none) and its seconds."""
    warm()
    for page, cells, failure, seconds in execute(pages, cwd, workers, timeout_s):
        replace_file(page.out, to_html(page, cells, failure))
        at = f"cell {failure.cell}: " if failure and failure.cell else ""
        yield page, at + failure.what if failure else "", seconds


def make(page: Page, cwd: Path, timeout_s: float = CELL_TIMEOUT_S) -> str:
    """Make one page; return the problem, "" where all went well."""
    ((_, problem, _),) = make_pages([page], cwd, 1, timeout_s)
    return problem


def warm() -> None:
    """Do before there are forks what all notebooks need; nobody's own settings count."""
    matplotlib.use("agg")
    matplotlib.rcdefaults()
    Figure().savefig(io.StringIO(), format="svg")  # fonts are looked up at the first picture
    with suppress(notebook.Stop):  # which is for the notebook to show
        for count in (1, len(RESULTS_DIRS)):  # the committed records, and all
            notebook.frames_of(RESULTS_DIRS[:count])


def to_html(page: Page, cells: Sequence[Cell], failure: Failure | None = None) -> str:
    """Write the cells of a notebook that ran as a page."""
    shown = _shown(cells)
    body = rendered("cells.html.j2", cells=shown, markdown=_markdown, code=_highlighted)
    body = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", body)  # addresses differ from run to run
    body = re.sub(r"<table( border=\"1\" class=\"dataframe\")?>.*?</table>", BOX, body, flags=re.S)
    body, headings = _numbered(body)
    title = next((text for level, _, text in headings if level == 1), page.name)
    contents = [each for each in headings if each[0] in (2, 3)]
    # A job's parameters are shown as a params file, without those that choose among records.
    job = {k: v for k, v in page.parameters.items() if k not in ("machine", "results_dirs")}
    top = "../" * page.href.count("/")
    return rendered(
        "page.html.j2",
        body=body,
        code=_highlighted,
        contents=[*contents, (2, "provenance", "Provenance")] if len(contents) > 1 else [],
        css=(TEMPLATE / "page.css").read_text("utf-8"),
        failure=failure,
        heading="" if any(level == 1 for level, *_ in headings) else page.name,
        inputs="" if failure else page.inputs,
        links=[(text, top + to, to == page.href) for text, to in page.links],
        notebook=f"notebooks/{page.script.name}",
        page=page,
        parameters=yaml.safe_dump(job, sort_keys=False, allow_unicode=True) if job else "",
        title=title,
        version=wanreport.__version__,
    )


def _shown(cells: Sequence[Cell]) -> list[tuple[int, Cell, list[str]]]:
    """Number the cells to show, each with the code to unfold below it.

    Prose tagged "with-output" is left out where no code up to the next prose shows anything. Of
    code cells in a row all code unfolds below the last; set-up cells, which show nothing, join the
    code of the first that does.
    """
    kept: list[tuple[int, Cell]] = []
    shows = False
    for number, cell in reversed(list(enumerate(cells))):
        if cell.kind == "code":
            shows = shows or bool(cell.outputs)
        elif shows or "with-output" not in cell.tags:
            shows = False
        else:
            continue
        kept.insert(0, (number, cell))
    found, waiting = [], list[str]()
    for (number, cell), after in zip(kept, [*kept[1:], None], strict=False):
        folded: list[str] = []
        if cell.kind == "code" and cell.source:
            waiting.append(cell.source)
            shows = shows or bool(cell.outputs)
            if after is None or (after[1].kind != "code" and shows):
                folded, waiting = waiting, []
        found.append((number, cell, folded))
    return found


@cache
def _highlighted(source: str) -> str:
    """Colour a cell's code; kinds of words that no colour is for need no markup."""
    code = str(Highlight2HTML("ipython3")(source))
    return re.sub(r'<span class="(?:p|n|o|w)">([^<]*)</span>', r"\1", code)


def _markdown(text: str) -> str:
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    return str(MarkdownWithMath(renderer=renderer).render(text))


def _numbered(body: str) -> tuple[str, list[tuple[int, str, str]]]:
    """Give each heading a unique id; return the page and (level, id, text) of each."""
    headings: list[tuple[int, str, str]] = []
    taken = {*re.findall(r'\sid="([^"]*)"', re.sub(r"<h[1-6][^>]*>", "", body)), "provenance"}

    def number(match: re.Match[str]) -> str:
        level, attributes, inner = match.groups()
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        stem = name = re.sub(r"[^\w.-]+", "-", text).strip("-").lower() or "section"
        count = 1
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        headings.append((int(level), name, text))
        return f'<h{level} id="{name}">{inner}</h{level}>'

    return re.sub(r"<h([1-6])([^>]*)>(.*?)</h\1>", number, body, flags=re.S), headings


def main(argv: Sequence[str] | None = None) -> int:
    """Make one page by hand."""
    parser = argparse.ArgumentParser(prog="python -m wanreport.report.render")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    arguments = parser.parse_args(argv)
    given = {name: yaml.safe_load(value) for name, value in arguments.p}
    page = Page(arguments.notebook.stem, arguments.notebook, arguments.out, parameters=given)
    problem = make(page, Path.cwd())
    print(problem or arguments.out, file=sys.stderr if problem else sys.stdout)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
