"""What notebooks call: parameters, records, frames, and what they show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbconvert.filters import markdown2html
from synthetic import ROOT

from wanreport.analysis import frames
from wanreport.jobs.job import job_from_mapping
from wanreport.measure import jobs
from wanreport.records.record import RESULTS_DIRS
from wanreport.report import notebook
from wanreport.report.notebook import PAGE
from wanreport.report.tables import MOST_CARDS

ASKED = {"name": "mine", "engine": "layerwise", "num_gpus": 4, "dit_layerwise_offload": True}


def namespace(*cells, **names):
    """Names as after these cells and, before them, one that assigns `names`."""
    given = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    return {"In": ["", given, *cells, "job = setup(globals())"], **names}


@pytest.fixture
def shown(monkeypatch):
    """What the notebook displays."""
    outputs = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: outputs.append(data))
    return outputs


def test_the_parameters_make_a_job_also_when_cells_run_again(shown):
    names = namespace("%matplotlib inline", **ASKED, machine="1x-h100")
    job = notebook.setup(names)
    assert job == job_from_mapping(ASKED)
    names["In"] += ["record = 1", "num_gpus = 2", "setup(globals())"]
    names |= {"record": 1, "num_gpus": 2}
    assert notebook.setup(names) == job.model_copy(update={"num_gpus": 2})


def test_every_problem_is_told_without_a_traceback():
    with pytest.raises(notebook.Stop) as caught:
        wrong = {"heigth": 480, "num_gpus": "four", "seed": None, "engine": None}
        notebook.setup(namespace(**{**ASKED, **wrong}))
    text = str(caught.value)
    said = set(re.findall(r"\w+", text))
    assert {"heigth", "height", "num_gpus", "seed", "engine"} <= said, "also what was meant"
    assert caught.value._render_traceback_() == text.splitlines()


@pytest.mark.parametrize("name", ["setup", "_hidden", "Path"])
def test_an_injected_name_cannot_hide(name):
    for cell in (f"{name} = 5", f"{name}: int = 5"):
        with pytest.raises(notebook.Stop, match=name):
            notebook.setup(namespace(cell, **ASKED))


def test_other_notebooks_take_only_what_they_name(shown):
    notebook.parameters(namespace(results_dirs=[]), "results_dirs")
    with pytest.raises(notebook.Stop, match=r"\bx\b(.|\n)*\by\b.*\bresults_dirs\b"):
        notebook.parameters(namespace(x=1, y=2), "results_dirs")


def test_plain_papermill_fails_with_our_message(tmp_path):
    """The way of someone who has never heard of this package's commands."""
    (tmp_path / "mine.yaml").write_text("name: mine\nengine: resident\nheigth: 480\n")
    done = subprocess.run(
        f"{sys.executable} -m jupytext --quiet --to ipynb -o - {ROOT}/notebooks/job.py |"
        f" {sys.executable} -m papermill - out.ipynb -f mine.yaml --no-progress-bar",
        shell=True, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), jobs.NO_MEASURING: "1",
             "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "heigth" in done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    error = next(o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error")
    assert error["ename"] == "Stop" and len(error["traceback"]) < 5


@pytest.fixture
def project(project, monkeypatch):
    monkeypatch.delenv(jobs.NO_MEASURING, raising=False)
    frames.cached.cache_clear()
    return project


def test_rendering_and_a_job_with_a_record_measure_nothing(project, monkeypatch, capfd):
    monkeypatch.setattr(jobs, "running", None)
    with monkeypatch.context() as rendering:
        rendering.setenv(jobs.NO_MEASURING, "1")
        assert notebook.measure(job_from_mapping(ASKED)) is None
    assert not (project / "results").exists()
    record = synthetic.record("new-4gpu")
    synthetic.write([record], project / "results/local")
    here = jobs.Machine(record["machine"]["slug"], 0)
    monkeypatch.setattr(jobs, "this_machine", lambda: here)
    run = notebook.measure(job_from_mapping({**record["job"], "scale": "auto"}))
    assert run.startswith("results/local/")
    assert notebook.frames_of(RESULTS_DIRS).runs.loc[run].job == "new-4gpu"
    assert capfd.readouterr() == ("", "")


def test_what_a_measurement_leaves_is_in_the_frames(project, capfd):
    assert notebook.frames_of(RESULTS_DIRS).runs.empty
    job = job_from_mapping(ASKED | {"scale": "a14b", "num_gpus": 64})  # more than there are
    run = notebook.measure(job)
    row = notebook.frames_of(RESULTS_DIRS).runs.loc[run]
    assert row.status == "unsupported" and "64" in row.reason
    assert (project / "results/local/logs/mine.log").exists()
    assert capfd.readouterr() == ("", "")


def test_a_machine_has_its_own_record_or_none_and_a_broken_one_stops(project):
    record = synthetic.record("new-4gpu")
    synthetic.write([record], project / "results")
    job, slug = job_from_mapping({**record["job"], "scale": "auto"}), record["machine"]["slug"]
    run = notebook.measure(job, machine=slug)
    assert Path(run).parts[:2] == ("results", slug)
    with pytest.raises(notebook.Stop, match=f"nowhere(.|\n)*{slug}"):
        notebook.measure(job, machine="nowhere")
    path = project / "results/some-machine/x.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(notebook.Stop, match="x.json"):
        notebook.frames_of(RESULTS_DIRS)
    with pytest.raises(notebook.Stop, match="x.json"):
        notebook.measure(job_from_mapping(ASKED))


@pytest.mark.parametrize(("run", "href"), [
    ("results/1x-h100/480p-1gpu-swap-605b621cbafb.json", "jobs/1x-h100/480p-1gpu-swap.html"),
    ("results/local/cpu-2/a-b-605b621cbafb.json", "jobs/cpu-2/a-b.html"),
    ("results/m/earlier/a-605b621cbafb-2026-11-25T01-02.json", "jobs/m/a.html"),
    ("results/m/benchmarks/two.json#7800/planned", None),
])  # fmt: skip
def test_a_run_has_its_jobs_page(run, href, monkeypatch):
    monkeypatch.delenv(PAGE, raising=False)
    assert notebook.page(run) == href
    monkeypatch.setenv(PAGE, "jobs/m/other.html")
    assert notebook.page(run) == (href and f"../../{href}")


def test_prose_tables_and_pictures_are_shown(shown):
    figure = Figure(figsize=(4, 2))
    figure.add_subplot().plot([1, 3])
    notebook.md("**x**", look="answer")
    notebook.table(pd.DataFrame({"a": [1]}), caption="c")
    notebook.show(figure, 'A <b>"caption"</b>.')
    answer = BeautifulSoup(markdown2html(shown[0]["text/markdown"]), "html.parser")
    assert answer.select("div.answer > p > strong")
    assert "<table" in shown[1]["text/html"]
    picture = BeautifulSoup(shown[2]["text/html"], "html.parser")
    (caption,), (image,) = picture.select("figure > figcaption"), picture.select('[role="img"]')
    assert caption.get_text() == image["aria-label"] == 'A <b>"caption"</b>.'
    assert image.svg and "4.0in" in str(image["style"])


def test_jupyterlab_gets_the_look_of_cells_and_a_page_does_not(shown, monkeypatch):
    monkeypatch.delenv(PAGE, raising=False)
    notebook.parameters(namespace())
    css = shown[0]["text/html"]
    assert {".table-box", ".badge", ".figure"} <= set(re.findall(r"^\.[\w-]+", css, re.M))
    assert not {"body", "html", "main", "a"} & set(re.findall(r"^\w+", css, re.M))
    used = set(re.findall(r"var\((--(?!jp)\w+)", css))
    there = {"--inches", *(f"--c{n}" for n in range(2, 1 + MOST_CARDS))}  # of a picture, a table
    assert there <= used <= {*re.findall(r"(--\w+):", css), *there}
    monkeypatch.setenv(PAGE, "index.html")
    notebook.parameters(namespace())
    assert len(shown) == 1
