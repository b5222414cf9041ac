"""Notebook scripts to HTML pages: execute with papermill, tidy, convert with nbconvert.

A page is one file that loads nothing: no script, no font, no image from anywhere else, and a
content security policy that says so to the browser. The same notebook and records give the same
bytes. A notebook that fails still gives a page, whose first screen says what failed.
"""

from __future__ import annotations

import copy
import html
import json
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import wanreport
from wanreport.local import commit, git_state, write_atomically

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = Path(__file__).parent / "template"
CELL_TIMEOUT_S = 900
NO_ALT = "No description has been provided for this image"
"""What nbconvert writes where an image has no alternative text."""

_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RenderError(Exception):
    """A page that must not be published as it is; the message says why, and what to mend."""


@dataclass(frozen=True)
class Failure:
    """Why a notebook did not run to its end.

    Attributes
    ----------
    what, advice
        What went wrong, and what to do about it.
    cell
        Which cell of the script, counted from 1 with prose; None if no cell is to blame.
    source
        That cell's code.
    shown
        How many cells of the executed notebook, which has one more for the given parameters, belong
        on the page; None for all.
    """

    what: str
    advice: str
    cell: int | None = None
    source: str = ""
    shown: int | None = None


@dataclass(frozen=True)
class Page:
    """What a page says beside its notebook.

    Attributes
    ----------
    title
        For the browser's tab; the notebook's first heading if empty.
    notebook
        The notebook's script, as a person would type its path.
    parameters
        Shown as YAML that can be given to ``papermill -f`` or ``wanreport run`` again.
    record, record_path
        The record that a job's page is about.
    sources
        Further records that the page was made from.
    inputs
        Hash over everything that the page was made from.
    links
        Pairs of text and target (relative to the page) for the bar at the top.
    repair
        The command that makes this page again.
    """

    title: str = ""
    notebook: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    record_path: str = ""
    sources: tuple[str, ...] = ()
    inputs: str = ""
    links: tuple[tuple[str, str], ...] = ()
    repair: str = "wanreport report"


# Execute -----------------------------------------------------------------------------------------


def execute(
    script: Path,
    parameters: Mapping[str, Any],
    out: Path,
    *,
    cwd: Path,
    timeout_s: int = CELL_TIMEOUT_S,
) -> tuple[NotebookNode, Failure | None]:
    """Run the notebook in `script` (jupytext's percent format) and write it to `out` (.ipynb).

    Returns the tidied notebook, as far as it got, and why it got no further. `out` is replaced
    only when the notebook has ended, whichever way. A cell may take `timeout_s`. A notebook run so
    reads records and measures nothing.
    """
    import jupytext
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

    from wanreport import kernel

    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = dict(_KERNEL)
    nbformat.validate(_stable_ids(notebook))
    failure: Failure | None = None
    ran: list[NotebookNode] = []

    class Keeping(NBClientEngine):
        """papermill's own engine; the notebook stays at hand when its kernel dies.

        papermill would write the whole notebook twice for every cell, to the same end.
        """

        @classmethod
        def execute_managed_notebook(cls, manager: Any, kernel_name: str, **options: Any) -> Any:
            ran.append(manager.nb)
            return super().execute_managed_notebook(manager, kernel_name, **options)

    papermill_engines.register("wanreport", Keeping)
    with (
        tempfile.TemporaryDirectory(prefix="wanreport-") as folder,
        kernel.home(Path(folder)) as config,
    ):
        try:
            papermill.execute_notebook(
                notebook,
                None,
                parameters=dict(parameters),
                engine_name="wanreport",
                kernel_name="python3",
                progress_bar=False,
                cwd=cwd,
                start_timeout=180,
                execution_timeout=timeout_s,
                shutdown_kernel="immediate",
                config=config,
            )
        except PapermillExecutionError as error:
            failure = _raised(error)
        except DeadKernelError:
            failure = Failure(
                "The notebook's kernel was killed or crashed.",
                "Most often that is the out-of-memory killer: free memory and try again."
                " In a batch job, ask for more." + kernel.last_words(Path(folder)),
            )
        except CellTimeoutError:
            failure = Failure(
                f"A cell took longer than {timeout_s} s and was stopped.",
                "See what the cell waits for.",
            )
        except RuntimeError as error:  # nbclient: "Kernel didn't respond in 180 seconds"
            failure = Failure(
                f"The notebook's kernel did not start: {error}",
                "Try again." + kernel.last_words(Path(folder)),
            )
    notebook = ran[0] if ran else notebook
    # papermill puts a banner above a notebook that failed; the page has a better one.
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    at = _first_unfinished(notebook)
    if failure is None and at is not None:
        # papermill reports success for a notebook whose kernel has gone.
        failure = Failure(
            "The notebook stopped before its end, and papermill gave no reason.",
            "Its kernel is likely to have been killed: free memory and try again.",
        )
    if failure is not None and failure.cell is None and at is not None:
        before = notebook.cells[:at]
        given = sum("injected-parameters" in cell.metadata.get("tags", []) for cell in before)
        source = notebook.cells[at].source
        failure = replace(failure, cell=at + 1 - given, source=source, shown=at + 1)
    tidy = _tidy(notebook)
    tidy.metadata["wanreport"] = {"parameters": json.loads(json.dumps(dict(parameters)))}
    if failure is not None:
        tidy.metadata["wanreport"]["failure"] = failure.what
    write_atomically(out, nbformat.writes(tidy) + "\n")
    return tidy, failure


def _raised(error: Any) -> Failure:
    """What a cell's exception says; the cell that raised it is found by the caller."""
    name, value = str(error.ename), _ANSI.sub("", str(error.evalue)).strip()
    if name == "Stop":  # notebook.Stop is written for the reader
        return Failure(value, "Mend what it names and run again.")
    return Failure(f"{name}: {value}" if value else name, "The traceback is below, at that cell.")


def _first_unfinished(notebook: NotebookNode) -> int | None:
    """Index of the cell at which a notebook stopped; None if every code cell has run.

    papermill marks a killed cell and all that follow as completed, so its marks do not count.
    """
    ran = None
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            return index
        if cell.execution_count is None:
            # The kernel numbers a cell before it runs it: one without a start was never begun.
            began = cell.metadata.get("papermill", {}).get("start_time")
            return index if began or ran is None else ran
        ran = index
    return None


def _stable_ids(notebook: NotebookNode) -> NotebookNode:
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def _tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop whatever differs between two equal runs: ids, times, paths, versions, addresses."""
    _stable_ids(notebook)
    notebook.metadata = type(notebook.metadata)(
        kernelspec=dict(_KERNEL),
        language_info={"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py"},
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(cell.metadata)({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [_anonymous(line) for line in output.traceback]
            elif output.output_type == "stream":
                output.text = _anonymous(output.text)
            elif "text/plain" in output.get("data", {}):
                output.data["text/plain"] = _anonymous(output.data["text/plain"])
    return notebook


def _anonymous(text: str) -> str:
    text = re.sub(r"(/\S*)?/ipykernel_\d+/\d+\.py", "cell", text)
    return re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)


# Convert -----------------------------------------------------------------------------------------


def to_html(notebook: NotebookNode, out: Path, page: Page, failure: Failure | None = None) -> None:
    """Write `notebook` as one self-contained HTML file.

    Raises
    ------
    RenderError
        If an image has no alternative text, headings skip a level, or something in the notebook
        would run a script or load a file. `out` is then as it was.
    """
    body, _ = _exporter().from_notebook_node(
        _presentable(notebook, page, failure), resources={"wanreport": _context(page, failure)}
    )
    body, headings = _outline(_boxed(body))
    side = _contents(
        headings,
        '<nav class="toc toc-side" aria-label="Contents"><p class="toc-title">Contents</p>{}</nav>',
    )
    top = _contents(
        headings,
        '<details class="toc toc-top"><summary>Contents</summary>'
        '<nav aria-label="Contents, folded">{}</nav></details>',
    )
    title = page.title or next((text for level, _, text in headings if level == 1), "wanreport")
    body = (
        body.replace("<!--toc-side-->", side)
        .replace("<!--toc-top-->", top)
        .replace("<title></title>", f"<title>{html.escape(title)}</title>", 1)
    )
    check_page(body)
    write_atomically(out, body.rstrip() + "\n")


@cache
def _exporter() -> Any:
    """nbconvert's, once a process: it compiles its templates for the first page."""
    from nbconvert.exporters import HTMLExporter

    return HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        exclude_anchor_links=True,
        embed_images=True,
    )


def blank(page: Page) -> NotebookNode:
    """A notebook with nothing but a heading, for a page whose own cannot be shown."""
    import nbformat

    return _stable_ids(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {_plain_heading(page)}")])
    )


def _plain_heading(page: Page) -> str:
    from wanreport.tables import markdown

    return markdown(page.title or Path(page.notebook).stem or "Report")


def _presentable(notebook: NotebookNode, page: Page, failure: Failure | None) -> NotebookNode:
    """A copy that ends where the notebook failed and starts with a heading in any case."""
    notebook = copy.deepcopy(notebook)
    if failure is not None and failure.shown is not None:
        # Prose after a failure would speak of pictures that are not there.
        del notebook.cells[failure.shown :]
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("data", {}).get("text/markdown", ""))
            texts.append(output.get("data", {}).get("text/html", "").replace("<h1", "# "))
    if not any(re.search(r"^\s{0,3}# ", text, re.MULTILINE) for text in texts):
        notebook.cells[:0] = blank(page).cells
        notebook.cells[0]["id"] = "cell-title"
    _gather_code(notebook.cells)
    return notebook


def _gather_code(cells: Sequence[NotebookNode]) -> None:
    """Give each cell the code that its page unfolds below it, as `metadata.code`.

    Code that shows nothing joins that of the next cell that does, or of the last one before prose;
    a page would else begin with a row of folded set-up cells above its heading.
    """
    waiting: list[NotebookNode] = []
    titled = False

    def unfold(cell: NotebookNode) -> None:
        sources = [one.source for one in waiting if "hide" not in one.metadata.get("tags", [])]
        cell.metadata["code"] = [source for source in sources if source.strip()]
        waiting.clear()

    for cell in cells:
        if cell.cell_type == "code":
            waiting.append(cell)
            if cell.outputs:
                unfold(cell)
                titled = True
        elif cell.cell_type == "markdown":
            if waiting and titled:
                unfold(waiting[-1])
            titled = True
    if waiting:
        unfold(waiting[-1])


def _context(page: Page, failure: Failure | None) -> dict[str, Any]:
    """What the template reads."""
    from wanreport.record import is_rehearsal

    return {
        "title": "",  # filled in when the headings are known
        "inputs": page.inputs,
        "version": wanreport.__version__,
        "css": (TEMPLATE / "page.css").read_text(encoding="utf-8"),
        "links": [{"text": text, "href": href} for text, href in page.links],
        "notebook": page.notebook,
        "repair": page.repair,
        "failure": failure and asdict(failure),
        "rehearsal": bool(page.record) and is_rehearsal(page.record or {}),
        "facts": provenance(page),
        "sources": list(page.sources),
        "parameters": as_yaml(page.parameters),
    }


def as_yaml(parameters: Mapping[str, Any]) -> str:
    """Parameters as a params file."""
    if not parameters:
        return ""
    return yaml.safe_dump(
        dict(parameters), sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def provenance(page: Page) -> list[tuple[str, str]]:
    """What stands behind a page, as pairs of name and value, in reading order."""
    rows = [("Notebook", page.notebook)]
    record = page.record
    if record:
        software, machine = record["software"], record["machine"]
        job = f"{record['job'].get('name')}, hash {record['job_hash']}, status {record['status']}"
        rows += [
            ("Record", page.record_path or "none"),
            ("Job", job),
            (
                "Measured",
                f"{record['started_at'] or 'time unknown'}"
                f" on {machine.get('class') or 'a machine that left no description'}",
            ),
            ("Measured with", _software(software)),
        ]
    rows += [
        ("Rendered with", _software({**versions(), **git_state()})),
        ("Inputs", f"SHA-256 {page.inputs}" if page.inputs else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _software(known: Mapping[str, Any]) -> str:
    names = [n for n in known if n not in ("git_sha", "git_dirty") and known[n]]
    code = f" (commit {said})" if (said := commit(known)) else ""
    order = sorted(names, key=lambda name: name != "wanreport")
    return ", ".join(f"{n} {known[n]}{code if n == 'wanreport' else ''}" for n in order)


@cache
def versions() -> dict[str, str]:
    """Versions of what turns records into pages."""
    names = ("papermill", "jupytext", "nbconvert", "matplotlib")
    return {
        "wanreport": wanreport.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


# Headings and checks -----------------------------------------------------------------------------

Heading = tuple[int, str, str]
_HEADING = re.compile(r"<h([1-6])([^>]*)>(.*?)</h\1>", re.DOTALL)


def _outline(body: str) -> tuple[str, list[Heading]]:
    """Give every heading an id of its own; return the page and (level, id, text) of each."""
    headings: list[Heading] = []
    taken: set[str] = set(re.findall(r'\sid="(cell-[^"]*|main)"', body))

    def number(match: re.Match[str]) -> str:
        level, attributes, inner = int(match[1]), match[2], match[3]
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        own = re.search(r'\sid="([^"]*)"', attributes)
        stem = re.sub(r"[^\w.:-]+", "-", html.unescape(own[1]) if own else text).strip("-")
        name, count = stem or "section", 1
        while name in taken:
            count += 1
            name = f"{stem or 'section'}-{count}"
        taken.add(name)
        headings.append((level, name, text))
        rest = re.sub(r'\sid="[^"]*"', "", attributes)
        return f'<h{level} id="{name}"{rest}>{inner}</h{level}>'

    return _HEADING.sub(number, body), headings


def _boxed(body: str) -> str:
    """Put tables that came from Markdown or pandas into a box of their own that scrolls."""
    return re.sub(
        r'<table(?![^>]*class="data\b).*?</table>',
        r'<div class="table-box" tabindex="0" role="region" aria-label="Table">\g<0></div>',
        body,
        flags=re.DOTALL,
    )


def _contents(headings: Sequence[Heading], frame: str) -> str:
    """A table of contents of the second and third level; nothing for a page of one section."""
    entries = [heading for heading in headings if heading[0] in (2, 3)]
    if len(entries) < 3:
        return "<div></div>" if "toc-side" in frame else ""  # the layout keeps its column
    lines, depth = ["<ol>"], 2
    for level, name, text in entries:
        if level > depth:
            lines.append("<ol>")
        elif level < depth:
            lines.append("</li></ol></li>")
        elif len(lines) > 1:
            lines.append("</li>")
        depth = level
        lines.append(f'<li><a href="#{html.escape(name)}">{html.escape(text)}</a>')
    lines.append("</li></ol></li></ol>" if depth == 3 else "</li></ol>")
    return frame.format("".join(lines))


def check_page(body: str) -> None:
    """Refuse a page that is not self-contained, could run a script, or cannot be read by all.

    Raises
    ------
    RenderError
        With every problem, one per line.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    problems = []
    levels = [(int(h.name[1]), h.get_text().strip()) for h in soup.find_all(re.compile("^h[1-6]$"))]
    if [level for level, _ in levels].count(1) != 1 or levels[0][0] != 1:
        tops = [text for level, text in levels if level == 1]
        problems.append(f"a page needs one first-level heading, before all others; it has {tops}")
    for (before, _), (level, text) in pairwise(levels):
        if level > before + 1:
            problems.append(f"heading {text!r} jumps from level {before} to {level}")
    for tag in soup.find_all(True):
        problems += [f"{_where(tag)}: {problem}" for problem in _faults(tag)]
    if problems:
        raise RenderError("\n".join(problems))


_ACTIVE = {"script", "iframe", "frame", "object", "embed", "applet", "base", "form", "portal"}
_LOADING = {"src", "srcset", "data", "poster", "background", "xlink:href", "action", "formaction"}


def _faults(tag: Any) -> list[str]:
    faults = []
    if tag.name in _ACTIVE:
        faults.append(f"<{tag.name}> has no place in a report; escape what comes from outside")
    if tag.name == "meta" and str(tag.get("http-equiv", "")).lower() == "refresh":
        faults.append("a page must not lead elsewhere by itself")
    if tag.name == "img" and str(tag.get("alt") or "").strip() in ("", NO_ALT):
        faults.append("an image has no alternative text; use wanreport.notebook.show(fig, alt=...)")
    if tag.get("role") == "img" and not str(tag.get("aria-label") or "").strip():
        faults.append("a figure has no alternative text; use wanreport.notebook.show(fig, alt=...)")
    for name, value in tag.attrs.items():
        # Browsers ignore white space and control characters in front of and within a scheme.
        text = re.sub(r"[\x00-\x20]", "", str(value)).lower()
        if name.lower().startswith("on"):
            faults.append(f"attribute {name} would run a script")
        elif name == "href" and tag.name == "a":
            scheme = re.match(r"([a-z][a-z0-9+.-]*):", text)
            if text.startswith("//") or (scheme and scheme[1] not in ("http", "https", "mailto")):
                faults.append(f"a link to {str(value)[:60]!r} is neither web, mail nor relative")
        elif name in _LOADING or name == "href":
            if not text.startswith(("data:image/", "data:,", "#")):
                faults.append(f"it would load {str(value)[:80]!r}; a report is one file")
        elif name == "style" and _loads(text):
            faults.append("its style would load a file; a report is one file")
    if tag.name == "style" and _loads(tag.get_text().lower()):
        faults.append("a style sheet would load a file; a report is one file")
    return faults


def _loads(css: str) -> bool:
    return "@import" in css or bool(re.search(r"url\((?!['\"]?(#|data:image/))", css))


def _where(tag: Any) -> str:
    cell = tag if "cell" in (tag.get("class") or []) else tag.find_parent(class_="cell")
    number = re.fullmatch(r"cell-(\d+)", str(cell.get("id"))) if cell else None
    return f"executed cell {int(number[1]) + 1}" if number else "the page"
