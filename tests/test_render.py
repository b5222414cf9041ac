"""Notebooks to pages: what must never be published, and what a failure must look like."""

from __future__ import annotations

import base64
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
import synthetic
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wanreport import figures, render

EVIL = "<script>alert(1)</script>"
ROOT = Path(__file__).resolve().parents[1]
DOT = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

SCRIPT = """
# %% [markdown]
# # Small
#
# | wide | table |
# |---|---|
# | 1 | 2 |
#
# ## First
# ## Second
# ### Detail
# ## First
# %% tags=["parameters"]
word = ""
# %%
from wanreport.notebook import show, table
from wanreport.tables import html_table, markdown
from wanreport.answers import say
from matplotlib.figure import Figure
# %%
figure = Figure()
figure.add_subplot().plot([1, 3, 2])
show(figure, alt="A line that rises and falls")
table(html_table([{"a": word}], ["a"], caption=word))
say(markdown(word))
print(word, object())
word
"""


def write(folder: Path, text: str) -> Path:
    script = folder / "small.py"
    script.write_text(text)
    return script


def notebook(*cells: Any) -> Any:
    return new_notebook(cells=[new_markdown_cell("# Title"), *cells])


def shows(data: dict[str, str], **metadata: Any) -> Any:
    cell = new_code_cell("pass", execution_count=1)
    cell.outputs = [new_output("display_data", data, metadata=metadata)]
    return cell


def page_of(node: Any, folder: Path, page: render.Page | None = None, **options: Any) -> str:
    for number, cell in enumerate(node.cells):
        cell["id"] = f"cell-{number}"
    out = folder / "page.html"
    render.to_html(node, out, page or render.Page(notebook="notebooks/small.py"), **options)
    return out.read_text()


def visible(body: str) -> str:
    return BeautifulSoup(body, "html.parser").get_text()


# Executed notebooks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(execute: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One notebook, executed and rendered in two folders."""
    folders = []
    for name in ("one", "another"):
        folder = tmp_path_factory.mktemp(name)
        node, failure = execute(
            write(folder, SCRIPT), {"word": EVIL}, folder / "out.ipynb", cwd=folder
        )
        assert failure is None
        page = render.Page(notebook="notebooks/small.py", parameters={"word": EVIL})
        render.to_html(node, folder / "out.html", page)
        folders.append(folder)
    return folders


def test_the_same_notebook_gives_the_same_bytes(twice: list[Path]) -> None:
    for name in ("out.ipynb", "out.html"):
        one, other = ((folder / name).read_bytes() for folder in twice)
        assert one == other, name


def test_nothing_but_the_results_is_left_behind(twice: list[Path]) -> None:
    names = sorted(path.name for path in twice[0].iterdir())
    assert names == ["out.html", "out.ipynb", "small.py"]


def test_the_executed_notebook_is_tidy(twice: list[Path]) -> None:
    node = nbformat.read(twice[0] / "out.ipynb", as_version=4)
    nbformat.validate(node)
    assert [cell.id for cell in node.cells] == [f"cell-{n}" for n in range(len(node.cells))]
    assert set(node.metadata) == {"kernelspec", "language_info", "wanreport"}
    assert not re.search(r"0x[0-9a-f]{6}|/tmp/|start_time", nbformat.writes(node))


def test_a_hostile_parameter_is_only_text(twice: list[Path]) -> None:
    body = (twice[0] / "out.html").read_text()
    assert "<script" not in body
    assert visible(body).count(EVIL) >= 5


def test_a_page_loads_nothing(twice: list[Path]) -> None:
    soup = BeautifulSoup((twice[0] / "out.html").read_text(), "html.parser")
    for tag in soup.find_all(True):
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = str(tag.get(name) or "#")
            assert tag.name == "a" or value.startswith(("#", "data:")), tag
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": True})["content"]


def test_a_page_has_its_landmarks(twice: list[Path]) -> None:
    soup = BeautifulSoup((twice[0] / "out.html").read_text(), "html.parser")
    assert soup.html["lang"] == "en"
    assert soup.title.string == "Small"
    assert soup.find("a", class_="skip")["href"] == "#main"
    assert soup.find("main", id="main")
    figure = soup.find(class_="plot")
    assert figure["role"] == "img"
    assert figure["aria-label"] == "A line that rises and falls"
    assert soup.find("footer").h2.get_text() == "Provenance"


def test_contents_lead_to_headings_with_ids_of_their_own(twice: list[Path]) -> None:
    soup = BeautifulSoup((twice[0] / "out.html").read_text(), "html.parser")
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    for toc in soup.select(".toc-side, .toc-top"):
        links = toc.find_all("a")
        assert [a.get_text() for a in links] == [
            "First", "Second", "Detail", "First", "Provenance"
        ]  # fmt: skip
        assert len({a["href"] for a in links}) == 5
        assert all(soup.find(id=a["href"][1:]).get_text() == a.get_text() for a in links)


def test_code_is_folded_and_set_up_does_not_stand_above_the_title(twice: list[Path]) -> None:
    soup = BeautifulSoup((twice[0] / "out.html").read_text(), "html.parser")
    folded = soup.find_all("details", class_="code")
    assert len(folded) == 1  # the parameters and imports joined the cell that shows something
    assert not folded[0].has_attr("open")
    assert 'word = ""' in folded[0].get_text()
    assert "show(figure" in folded[0].get_text()


def test_every_table_scrolls_in_a_box_of_its_own(twice: list[Path]) -> None:
    soup = BeautifulSoup((twice[0] / "out.html").read_text(), "html.parser")
    assert len(soup.find_all("table")) == 2
    for table in soup.find_all("table"):
        assert len(table.find_parents(class_="table-box")) == 1


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed or crashed"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import time; time.sleep(60)", "longer than 3 s"),
    ],
    ids=["killed", "exception", "hung"],
)
def test_a_failed_notebook_says_so_first_and_keeps_what_it_had(
    cell: str, what: str, execute: Callable[..., Any], tmp_path: Path
) -> None:
    before, after = "print('shown before')", "print('never shown')"
    text = "\n".join(f"# %%\n{c}" for c in (before, cell, after)) + "\n# %% [markdown]\n# # Late\n"
    out = tmp_path / "out.ipynb"
    node, failure = execute(write(tmp_path, text), {}, out, cwd=tmp_path, timeout_s=3)
    assert failure is not None
    assert what in failure.what
    assert failure.cell == 2
    assert "shown before" in out.read_text()
    body = page_of(node, tmp_path, render.Page(title="small", repair="wanreport run x"),
                   failure=failure)  # fmt: skip
    words = visible(body)
    assert words.index("This page is incomplete: cell 2") < words.index("shown before")
    assert what in words
    assert cell in words
    assert "wanreport run x" in words
    assert "never shown" not in words
    assert "Late" not in words


@pytest.mark.parametrize("temporary", ["", "t" * 60], ids=["a fork", "no room for sockets"])
def test_the_kernel_is_this_python_and_leaves_home_alone(
    temporary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if temporary:
        (tmp_path / temporary).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / temporary))
    home = tmp_path / "home"
    fake = home / ".local/share/jupyter/kernels/python3"
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x"}')
    settings = home / ".config/matplotlib/matplotlibrc"
    settings.parent.mkdir(parents=True)
    settings.write_text("lines.linewidth: 77\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    before = sorted(home.rglob("*"))
    script = write(
        tmp_path,
        '# %% tags=["parameters"]\nexe = ""\n'
        "# %%\nimport sys, matplotlib.font_manager\n"
        "assert sys.executable == exe, sys.executable\n"
        "assert matplotlib.rcParams['lines.linewidth'] != 77\n",
    )
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        node, failure = pool.submit(
            render.execute, script, {"exe": sys.executable}, tmp_path / "{odd} out.ipynb",
            cwd=tmp_path,
        ).result()  # fmt: skip
    assert failure is None
    assert not any(cell.outputs for cell in node.cells)  # no word of a font list being made
    assert sorted(home.rglob("*")) == before


LEAVE = """
# %%
import os, sys, matplotlib, pydantic
left = os.environ["LEFT"] = sys.left = pydantic.left = "here"
matplotlib.rcParams["lines.linewidth"] = 77
os.chdir("/")
"""
FIND = """
# %%
import os, sys
assert "matplotlib.figure" in sys.modules  # a fork of a process that has imported it
assert "wanreport.figures" not in sys.modules  # so that its errors are the notebook's own
import matplotlib, pydantic
assert matplotlib.rcParams["lines.linewidth"] != 77
assert "left" not in globals() and "LEFT" not in os.environ
assert not hasattr(sys, "left") and not hasattr(pydantic, "left")
assert os.getcwd() != "/"
"""


def test_a_notebook_leaves_nothing_to_the_next(execute: Callable[..., Any], tmp_path: Path) -> None:
    for text in (LEAVE, FIND):
        _, failure = execute(write(tmp_path, text), {}, tmp_path / "out.ipynb", cwd=tmp_path)
        assert failure is None, failure


def test_what_a_notebook_began_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        "# %%\nimport os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "pathlib.Path('part').write_text(f'{os.getpid()} {child.pid}')\n"
        "os.rename('part', 'pids')\ntime.sleep(600)\n",
    )
    driver = tmp_path / "driver.py"
    driver.write_text(
        "from pathlib import Path\nfrom wanreport import render\nif __name__ == '__main__':\n"
        "    render.execute(Path('small.py'), {}, Path('out.ipynb'), cwd=Path.cwd())\n"
    )
    with tempfile.TemporaryDirectory() as short:  # long names leave no room for sockets
        process = subprocess.Popen(
            [sys.executable, str(driver)], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": short},
        )  # fmt: skip
        while not (tmp_path / "pids").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        deadline = time.monotonic() + 30
        while running := [pid for pid in pids if is_running(pid)]:
            assert time.monotonic() < deadline, running
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not done.stdout.startswith("Z")  # nobody may be left to collect it


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (shows({"text/html": EVIL}), "cell 2: <script> has no place"),
        (shows({"text/markdown": EVIL}), "cell 2: <script> has no place"),
        (new_markdown_cell(EVIL), "cell 2: <script> has no place"),
        (shows({"text/html": "<b onclick='x()'>b</b>"}), "onclick would run a script"),
        (shows({"text/html": "<a href=' java\tscript:x()'>b</a>"}), "neither web, mail"),
        (shows({"text/html": "<a href='//example.org'>b</a>"}), "neither web, mail"),
        (shows({"text/html": "<iframe srcdoc='x'></iframe>"}), "<iframe> has no place"),
        (shows({"text/html": "<img alt='x' src='https://example.org/x.png'>"}), "would load"),
        (shows({"text/html": "<link rel=stylesheet href='x.css'>"}), "would load"),
        (shows({"text/html": "<p style='background: url(x.png)'>x</p>"}), "style would load"),
        (shows({"text/html": "<style>@import 'x.css'</style>"}), "style sheet would load"),
        (shows({"text/html": "<meta http-equiv=refresh content='0;x'>"}), "lead elsewhere"),
        (shows({"image/svg+xml": "<svg><script>x()</script></svg>"},
               **{"image/svg+xml": {"alt": "x"}}), "<script> has no place"),
        (shows({"image/svg+xml": "<svg></svg>"}), "no alternative text"),
        (shows({"image/svg+xml": "<svg></svg>"}, **{"image/svg+xml": {"alt": " "}}),
         "no alternative text"),
        (shows({"image/png": DOT}), "no alternative text"),
        (new_markdown_cell("![](data:image/gif;base64," + DOT + ")"), "no alternative text"),
        (new_markdown_cell("### Deep"), "jumps from level 1 to 3"),
        (new_markdown_cell("# Another"), "one first-level heading"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_report_is_refused(cell: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(render.RenderError) as caught:
        page_of(notebook(cell), tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_all_problems_of_a_page_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(render.RenderError) as caught:
        page_of(notebook(shows({"text/html": EVIL}), shows({"image/png": DOT})), tmp_path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_refused_page_leaves_the_one_before(tmp_path: Path) -> None:
    before = page_of(notebook(), tmp_path)
    with pytest.raises(render.RenderError):
        page_of(notebook(shows({"text/html": EVIL})), tmp_path)
    assert (tmp_path / "page.html").read_text() == before


def test_javascript_and_widgets_are_left_out(tmp_path: Path) -> None:
    cell = shows({"application/javascript": "alert(1)", "text/plain": "nothing to see"})
    body = page_of(notebook(cell), tmp_path)
    assert "alert" not in body
    assert "nothing to see" in body


def test_pictures_with_text_are_kept(tmp_path: Path) -> None:
    cell = shows({"image/png": DOT}, **{"image/png": {"alt": 'a "dot"'}})
    soup = BeautifulSoup(page_of(notebook(cell), tmp_path), "html.parser")
    assert soup.img["alt"] == 'a "dot"'
    assert base64.b64decode(soup.img["src"].split(",")[1])


# Around the notebook -----------------------------------------------------------------------------


def test_the_provenance_names_record_code_and_versions(tmp_path: Path) -> None:
    record = synthetic.record("new-4gpu")
    page = render.Page(
        notebook="notebooks/job.py", parameters=record["job"], record=record,
        record_path="results/x/y.json", inputs="ab12", sources=("results/a.json",),
    )  # fmt: skip
    body = page_of(notebook(), tmp_path, page)
    footer = BeautifulSoup(body, "html.parser").footer
    words = footer.get_text()
    for expected in (
        "notebooks/job.py", "results/x/y.json", record["job_hash"], record["machine"]["class"],
        record["software"]["torch"], record["software"]["git_sha"][:12], "nbconvert",
        "results/a.json", "ab12",
    ):  # fmt: skip
        assert expected in words
    assert yaml.safe_load(footer.find("pre", class_="copy").get_text()) == record["job"]
    assert 'name="wanreport-inputs"' in body[:4096]


def test_a_page_without_a_heading_gets_one(tmp_path: Path) -> None:
    soup = BeautifulSoup(
        page_of(new_notebook(), tmp_path, render.Page(title="a *b* <c>")), "html.parser"
    )
    assert soup.h1.get_text() == "a *b* <c>"
    assert soup.title.string == "a *b* <c>"


def test_a_failure_of_a_rehearsal_says_that_it_is_one(tmp_path: Path) -> None:
    page = render.Page(title="x", record=synthetic.record("new-4gpu"))
    failure = render.Failure("it broke <b>", "mend it")
    words = visible(page_of(new_notebook(), tmp_path, page, failure=failure))
    assert "it broke <b>" in words
    assert "is a rehearsal" in words


def test_engines_have_one_colour_in_figures_and_pages() -> None:
    css = (render.TEMPLATE / "page.css").read_text()
    assert dict(re.findall(r"--engine-(\w+): (#\w+);", css)) == figures.ENGINE_COLOURS


@pytest.mark.browser
def test_a_failed_page_passes_in_a_browser(browser: Any, tmp_path: Path) -> None:
    from test_pages import CHECKS

    failed = shows({"text/plain": "x" * 300})
    what, source = "first line " + "y" * 300 + "\nsecond", "z = " + "1" * 300
    failure = render.Failure(what, "mend it", 2, source)
    page = render.Page(
        title="Failed", notebook="notebooks/small.py", parameters={"prompt": "w" * 300},
        record=synthetic.record("new-4gpu"), record_path="results/" + "r" * 200,
    )  # fmt: skip
    page_of(notebook(failed), tmp_path, page, failure=failure)
    for check in CHECKS:
        assert not check(browser, tmp_path / "page.html"), check.__name__
