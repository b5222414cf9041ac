"""Notebooks to pages: what a page must hold, and what a failure must look like."""

import os
import re
import subprocess
import sys
import tempfile

import psutil
import pytest
import yaml
from bs4 import BeautifulSoup

from tests.faults.scene import ROOT, gone, until
from wanreport.report import render
from wanreport.report.render import Page

EVIL = "<script>alert(1)</script>"

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
name = "x"
machine = None
# %%
import pandas as pd
from matplotlib.figure import Figure
from wanreport.report.notebook import md, show, table
from wanreport.words import plain
# %% [markdown] tags=["with-output"]
# ## Nothing
# %%
nothing = word
# %% [markdown] tags=["with-output"]
# ## Something
# %%
figure = Figure()
figure.add_subplot().plot([1, 3, 2])
show(figure, word)
table(pd.DataFrame({"a": [word], "b": [1.5]}), caption=word, note=word)
md(plain(word))
print(word, object())
word
"""


def write(folder, text):
    script = folder / "small.py"
    script.write_text(text)
    return script


def made(folder, text, timeout_s=60, **given):
    """The problem and the parsed page of a notebook."""
    out = folder / "small.html"
    page = Page(write(folder, text), out, parameters=given, inputs="ab12", repair="wanreport run x")
    return render.make(page, folder, timeout_s), BeautifulSoup(out.read_text(), "html.parser")


def by_hand(folder, *words, **env):
    """The command that makes a page of a notebook, begun."""
    command = [sys.executable, "-m", "wanreport.report.render", "small.py", "out.html", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **env})  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    given = {"word": EVIL, "name": "y", "machine": "m"}
    problem, soup = made(tmp_path_factory.mktemp("small"), SCRIPT, **given)
    assert problem == ""
    return soup


def test_the_same_notebook_gives_the_same_bytes(tmp_path):
    """Here and in a process whose sets have another order."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    script = write(there, SCRIPT)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    process = by_hand(there, "-p", "word", EVIL, PYTHONHASHSEED=seed)
    page = Page(write(here, SCRIPT), here / "out.html", parameters={"word": EVIL})
    assert render.make(page, here) == "" and process.wait(60) == 0
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()}
                     for folder in (here, there))  # fmt: skip
    assert first == second and set(first) == {"out.html", script.name}
    assert not re.search(rb"0x[0-9a-f]{6}|/tmp/", first["out.html"])


def test_a_page_loads_nothing_runs_nothing_and_takes_a_hostile_parameter_as_text(small):
    assert small.get_text().count(EVIL) >= 5
    assert not small.find_all(["script", "iframe", "object", "embed", "base", "form"])
    for tag in small.find_all(True):
        for name, value in tag.attrs.items():
            assert not name.startswith("on"), tag
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert tag.name == "a" or str(value).startswith(("#", "data:")), tag
    styles = " ".join(tag.get_text() for tag in small.find_all("style"))
    assert "@import" not in styles and "url(" not in styles.replace("url(#", "")
    assert "default-src 'none'" in small.find("meta", {"http-equiv": True})["content"]


def test_a_page_has_its_landmarks_and_contents(small):
    assert small.html["lang"] == "en"
    assert small.title.string == small.h1.get_text() == "Small"
    assert small.find("a", class_="skip")["href"] == "#main"
    assert small.find("main", id="main") and small.find("footer").h2
    assert small.find("meta", {"name": "wanreport-inputs"})["content"] == "ab12"
    ids = [tag["id"] for tag in small.find_all(id=True)]
    assert len(ids) == len(set(ids))
    for contents in small.select(".toc-side, .toc-top"):
        links = {a["href"][1:]: a.get_text() for a in contents.find_all("a")}
        assert {href: small.find(id=href).get_text() for href in links} == links
        names = ["First", "Second", "Detail", "First", "Something", "Provenance"]
        assert [*links.values()] == names


def test_code_is_folded_tables_scroll_and_the_footer_gives_a_params_file(small):
    (fold,) = small.find_all("details", class_="code")
    assert not fold.has_attr("open")
    for joined in ('word = ""', "import pandas", "nothing = word", "show(figure"):
        assert joined in fold.get_text()
    assert len(small.find_all("table")) == 2
    for table in small.find_all("table"):
        (box,) = table.find_parents(class_="table-box")
        assert box["tabindex"] == "0" and box["aria-label"]
    given = yaml.safe_load(small.find("pre", class_="copy").get_text())
    assert given == {"word": EVIL, "name": "y"}


def test_code_keeps_its_words_and_strings_alone_have_their_colour(tmp_path):
    cell = """f"{x / 60:.0f} min" + 'class="s1"'"""
    _, soup = made(tmp_path, f"# %%\nx = 1\n# %%\n{cell}\n")
    (code,) = [pre for pre in soup.select(".highlight pre") if "min" in pre.text]
    assert code.text.strip() == cell
    assert [each.text for each in code.select("i")] == ['f"{', ':.0f} min"', "'class=\"s1\"'"]


@pytest.mark.parametrize(("cell", "what"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ("import os; os._exit(3)", "exit status 3"), ("import time; time.sleep(60)", "longer than 2 s"),
    ("1 / 0", "ZeroDivisionError: division by zero"), ("1 /", "SyntaxError"),
    ("x = '\0'", "null byte"), ("import sys; sys.exit('enough')", "SystemExit: enough"),
    ("from wanreport.report.notebook import Stop\nraise Stop('<b>no</b>')", "<b>no</b>"),
])  # fmt: skip
def test_a_failed_notebook_says_so_first_and_keeps_what_it_had(cell, what, tmp_path, monkeypatch):
    cells = ("print('shown before')", cell, "print('never shown')")
    text = "\n".join(f"# %%\n{each}" for each in cells) + "\n# %% [markdown]\n# # Late\n"
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    problem, soup = made(tmp_path, text, timeout_s=2, word="given")
    assert not list((tmp_path / "t").iterdir())
    assert problem.startswith("cell 2: ") and what in problem
    main = soup.find("main")
    assert what in main.find(class_="message").get_text()
    for said in (cell.split("\n")[0], "cell 2", "wanreport run x"):
        assert said in main.find(class_="callout").get_text()
    words = main.get_text()
    assert words.index(what) < words.index("shown before")
    assert "never shown" not in words and "Late" not in words
    assert soup.select('meta[name="wanreport-inputs"][content=""]'), "so that it is made again"


def test_a_file_that_is_no_script_has_its_failure_page_beside_others(tmp_path):
    bad, good = tmp_path / "bad.py", write(tmp_path, "# %%\n'fine'\n")
    bad.write_bytes("# %%\n'é'".encode("latin-1"))
    pages = [Page(script, script.with_suffix(".html"), inputs="ab") for script in (bad, good)]
    problems = {page.script: said for page, said, _ in render.make_pages(pages, tmp_path)}
    assert "bad.py" in problems[bad] and problems[good] == ""
    failed, fine = (BeautifulSoup(page.out.read_text(), "html.parser") for page in pages)
    assert "fine" in fine.get_text() and fine.h1.string == fine.title.string == "small"
    assert "bad.py" in failed.select_one(".callout .message").get_text()
    assert failed.select('meta[name="wanreport-inputs"][content=""]')


LEAVE = """
# %%
import os, sys, matplotlib
assert not hasattr(sys, "left") and "LEFT" not in os.environ and os.getcwd() != "/"
assert matplotlib.rcParams["lines.linewidth"] != 77
os.environ["LEFT"] = sys.left = "here"
matplotlib.rcParams["lines.linewidth"] = 77
os.chdir("/")
"""


def test_a_notebook_leaves_nothing_to_the_next(tmp_path):
    assert [made(tmp_path, LEAVE)[0] for _ in range(2)] == ["", ""]


def test_a_notebook_ends_with_the_process_that_runs_it(tmp_path):
    write(tmp_path, "# %%\nimport time, pathlib\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    process = by_hand(tmp_path, TMPDIR=str(tmp_path))
    until((tmp_path / "begun").exists)
    (notebook,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert gone([notebook.pid])


SHOWS = """
# %% tags=["parameters"]
n = 1
# %%
from IPython.display import HTML, Markdown, display
print("one")
display(Markdown("**two**"), HTML("<b>three</b>"))
[n, None]
# %%
import pandas as pd
pd.DataFrame({"a": [n]})
"""


def test_papermill_by_hand_gives_the_same_outputs(tmp_path, monkeypatch):
    import jupytext
    import papermill

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    script = write(tmp_path, SHOWS)
    how = {"language": "python", "kernel_name": "python3", "progress_bar": False}
    theirs = papermill.execute_notebook(jupytext.read(script), None, {"n": 2}, **how).cells
    ours = []
    monkeypatch.setattr(render, "to_html", lambda _, cells, problem: ours.extend(cells) or problem)
    assert render.make(Page(script, tmp_path / "out", parameters={"n": 2}), tmp_path) == ""
    theirs = [cell for cell in theirs if "injected-parameters" not in cell.metadata.get("tags", [])]
    for one, other in zip(ours, theirs, strict=True):
        shown = [o.get("data", {"text/plain": o.get("text")}) for o in other.get("outputs", [])]
        assert one.get("outputs", []) == shown
