"""Makes one self-contained HTML file of a notebook script.

A page loads nothing and runs nothing; the same notebook and records give the same bytes. A notebook
that fails still gives a page, whose first screen says what failed.

``python -m wanreport.report.render NOTEBOOK OUT [-p NAME VALUE]...`` makes one page by hand.
"""

from __future__ import annotations

import argparse
import html
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import wanreport
from wanreport.records.project import write_atomically
from wanreport.records.record import RESULTS_DIRS
from wanreport.report.run import CELL_TIMEOUT_S, Failure, execute

TEMPLATE = Path(__file__).parent / "template"
BOX = r'<div class="table-box" tabindex="0" role="region" aria-label="Table">\g<0></div>'


@dataclass(frozen=True)
class Page:
    """A page to make: a plain value, so that it can go to another process."""

    name: str
    """For messages, and the heading of a page whose notebook shows none."""
    script: Path
    """The notebook, in jupytext's percent format."""
    out: Path
    """The file to write, …"""
    href: str = "index.html"
    """… and its path within the site, for links."""
    parameters: Mapping[str, Any] | None = None
    """What is injected into the notebook."""
    links: tuple[tuple[str, str], ...] = ()
    """Text and path within the site, for the bar at the top."""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values, for the footer, …"""
    files: tuple[str, ...] = ()
    """… and the files that the page was made from."""
    inputs: str = ""
    """Hash over everything that the page was made from; pages of failed notebooks have none."""
    repair: str = "wanreport report"
    """The command that makes this page again."""


def make(page: Page, cwd: Path, timeout_s: float = CELL_TIMEOUT_S) -> str:
    """Run a page's notebook and write the page; return the problem, "" where all went well."""
    notebook, failure = execute(page.script, page.parameters or {}, cwd, page.href, timeout_s)
    write_atomically(page.out, to_html(notebook, page, failure))
    at = f"cell {failure.cell}: " if failure and failure.cell else ""
    return at + failure.what if failure else ""


def to_html(notebook: Any, page: Page, failure: Failure | None = None) -> str:
    """Write an executed notebook as a page; what stands after a failed cell is left out."""
    top = "../" * page.href.count("/")
    # A job's parameters are shown as a params file, without those that choose among records.
    job = {k: v for k, v in (page.parameters or {}).items() if k not in ("machine", "results_dirs")}
    shown = notebook.copy()
    shown.cells = _kept(notebook.cells[: failure.shown] if failure else notebook.cells)
    context = {
        "css": (TEMPLATE / "page.css").read_text(encoding="utf-8"),
        "version": wanreport.__version__,
        "inputs": "" if failure else page.inputs,
        "links": [(text, top + to, to == page.href) for text, to in page.links],
        "page": page,
        "notebook": f"notebooks/{page.script.name}",
        "failure": failure,
        "folds": _folded(shown.cells),
        "parameters": yaml.safe_dump(job, sort_keys=False, allow_unicode=True) if job else "",
    }
    body, _ = _exporter().from_notebook_node(shown, resources={"wanreport": context})
    heading = "" if "<h1" in body else f"<h1>{html.escape(page.name)}</h1>"
    body = body.replace("<!--title-->", heading)
    body = re.sub(r"<table( border=\"1\" class=\"dataframe\")?>.*?</table>", BOX, body, flags=re.S)
    body, headings = _numbered(body)
    title = next((text for level, _, text in headings if level == 1), page.name)
    entries = [f'<li class="level-{level}"><a href="#{name}">{html.escape(text)}</a></li>'
               for level, name, text in headings if level in (2, 3)]  # fmt: skip
    if len(entries) > 2:
        body = body.replace("<!--contents-->", "\n".join(entries))
    else:  # a short page needs no contents, and its layout keeps the column
        body = re.sub(r'<(nav|details) class="toc .*?</\1>', "<div></div>", body, flags=re.S)
    return body.replace("<title></title>", f"<title>{html.escape(title)}</title>", 1).strip() + "\n"


@cache
def _exporter() -> Any:
    """nbconvert's, once a process: it compiles its templates for the first page."""
    from nbconvert.exporters import HTMLExporter, TemplateExporter
    from nbconvert.filters import Highlight2HTML

    class Exporter(HTMLExporter):
        """Without a second parsing of the page, which takes longer than all the rest."""

        def from_notebook_node(self, nb: Any, resources: Any = None, **_: Any) -> Any:
            self.register_filter("highlight_code", Highlight2HTML("ipython3", parent=self))
            return TemplateExporter.from_notebook_node(self, nb, resources)

    folders = [str(TEMPLATE.parent)]
    return Exporter(template_name=TEMPLATE.name, extra_template_basedirs=folders,
                    exclude_anchor_links=True)  # fmt: skip


def _kept(cells: Sequence[Any]) -> list[Any]:
    """Leave out prose tagged "with-output" where no code up to the next prose shows anything."""
    kept: list[Any] = []
    shows = False
    for cell in reversed(cells):
        if cell.cell_type == "code":
            shows = shows or bool(cell.outputs)
        elif shows or "with-output" not in cell.metadata.get("tags", []):
            shows = False
        else:
            continue
        kept.append(cell)
    return kept[::-1]


def _folded(cells: Sequence[Any]) -> dict[str, list[str]]:
    """Which code unfolds below which cell: of cells in a row, all below the last.

    Set-up cells, which show nothing, join the code of the first that does.
    """
    folds: dict[str, list[str]] = {}
    waiting: list[str] = []
    shows = False
    for cell, following in zip(cells, [*cells, None][1:], strict=True):
        if cell.cell_type == "code" and cell.source:
            waiting.append(cell.source)
            shows = shows or bool(cell.outputs)
            if following is None or (following.cell_type != "code" and (shows or folds)):
                folds[cell.id], waiting = waiting, []
    return folds


def _numbered(body: str) -> tuple[str, list[tuple[int, str, str]]]:
    """Give each heading a unique id; return the page and (level, id, text) of each."""
    headings: list[tuple[int, str, str]] = []
    taken = set(re.findall(r'\sid="([^"]*)"', re.sub(r"<h[1-6][^>]*>", "", body)))

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
        rest = re.sub(r'\sid="[^"]*"', "", attributes)
        return f'<h{level} id="{name}"{rest}>{inner}</h{level}>'

    return re.sub(r"<h([1-6])([^>]*)>(.*?)</h\1>", number, body, flags=re.S), headings


def warm() -> None:
    """Import what pages need, and read the records, so that forks have it."""
    os.environ.setdefault("MPLBACKEND", "agg")
    import IPython.core.interactiveshell  # noqa: F401
    import jupytext  # noqa: F401
    import papermill.parameterize  # noqa: F401

    _exporter()
    with suppress(Exception):  # an error in a module or a record is for the notebook to show
        import matplotlib
        import seaborn  # noqa: F401
        from matplotlib.figure import Figure

        from wanreport.report import notebook

        matplotlib.rcdefaults()  # nobody's own settings
        Figure().savefig(io.StringIO(), format="svg")  # fonts are looked up at the first picture
        for count in (1, len(RESULTS_DIRS)):  # the committed records, and all
            notebook.frames_of(RESULTS_DIRS[:count])


def main(argv: Sequence[str] | None = None) -> int:
    """Make one page by hand."""
    parser = argparse.ArgumentParser(prog="python -m wanreport.report.render")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    arguments = parser.parse_args(argv)
    given = {name: yaml.safe_load(value) for name, value in arguments.p}
    warm()
    page = Page(arguments.notebook.stem, arguments.notebook, arguments.out, parameters=given)
    problem = make(page, Path.cwd())
    print(problem or arguments.out, file=sys.stderr if problem else sys.stdout)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
