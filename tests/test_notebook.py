"""What notebooks call: parameters, records, figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic
from matplotlib.figure import Figure

from wanreport import figures, local, notebook
from wanreport.job import field_defaults, job_from_mapping

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"name": "mine", "engine": "layerwise", "num_gpus": 4, "dit_layerwise_offload": True}


def namespace(**changes: Any) -> dict[str, Any]:
    return {"__name__": "__main__", "os": os, "Path": Path, **field_defaults(), **changes}


# Parameters --------------------------------------------------------------------------------------


def test_the_parameters_make_a_job() -> None:
    assert notebook.setup(namespace(**ASKED)) == job_from_mapping(ASKED)


def test_every_problem_is_told_without_a_traceback() -> None:
    with pytest.raises(notebook.Stop) as caught:
        notebook.setup(namespace(**{**ASKED, "heigth": 480, "num_gpus": "four", "seed": None}))
    text = str(caught.value)
    assert "heigth" in text
    assert "height" in text
    assert "num_gpus" in text
    assert "seed" in text
    assert caught.value._render_traceback_() == text.splitlines()


def test_a_required_parameter_that_nobody_gave_is_missing() -> None:
    with pytest.raises(notebook.Stop, match="engine"):
        notebook.setup(namespace(**{**ASKED, "engine": None}))


@pytest.mark.parametrize(
    "cell",
    ["setup = 5", "_hidden = 5", "x: int = 5", "Path = 5"],
    ids=["replaced by an import", "underscore", "annotated", "name of a class"],
)
def test_an_injected_name_cannot_hide(cell: str) -> None:
    # IPython keeps the source of every cell; the last one is the cell that calls setup.
    cells = ["", "name = None", f"# Parameters\n{cell}", "job = setup(globals())"]
    with pytest.raises(notebook.Stop, match=cell.split(":")[0].split(" ")[0]):
        notebook.setup(namespace(In=cells, **ASKED))


def test_the_cell_may_run_again_after_later_ones() -> None:
    names = namespace(**ASKED)
    job = notebook.setup(names)
    names["record"] = {"later": "cells"}
    names["job"] = job
    assert notebook.setup(names) == job


def test_other_notebooks_take_only_what_they_name() -> None:
    notebook.parameters({"results_dirs": []}, "results_dirs")
    with pytest.raises(notebook.Stop, match="results_dir: unknown.*takes only results_dirs"):
        notebook.parameters({"results_dir": []}, "results_dirs")
    with pytest.raises(notebook.Stop, match="takes no parameters"):
        notebook.parameters({"x": 1})


def plain_papermill(folder: Path, params: str) -> subprocess.CompletedProcess[str]:
    """The way of someone who has never heard of this package's commands."""
    (folder / "params").mkdir(exist_ok=True)
    file = folder / "params" / "mine.yaml"
    file.write_text(params)
    script = ROOT / "notebooks" / "job.py"
    bin_ = Path(sys.executable).parent
    return subprocess.run(
        f"{bin_}/jupytext --quiet --to ipynb -o - {script} |"
        f" {bin_}/papermill - out.ipynb -f {file} -k python3 --no-progress-bar",
        shell=True, cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{bin_}:{os.environ['PATH']}",
             local.NO_MEASURING: "1", "PYTHONNOUSERSITE": "1"},
    )  # fmt: skip


@pytest.mark.skipif(
    shutil.which("papermill", path=str(Path(sys.executable).parent)) is None,
    reason="needs papermill's command beside this Python",
)
def test_plain_papermill_fails_with_our_message(tmp_path: Path) -> None:
    done = plain_papermill(tmp_path, "name: mine\nengine: resident\nnum_gpus: 1\nheigth: 480\n")
    assert done.returncode != 0
    assert "heigth" in done.stderr
    assert "nothing was run" in done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    error = next(o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error")
    assert len(error["traceback"]) < 5


# Records -----------------------------------------------------------------------------------------


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(local.NO_MEASURING, raising=False)
    return project


def test_a_record_at_hand_is_not_measured_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = synthetic.record("new-4gpu")
    synthetic.write([record], project / "results/local")
    local.remember_machine(project / "results/local", record["machine"]["slug"], 0)
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    job = job_from_mapping({**record["job"], "scale": "auto"})
    assert notebook.measure(job) == record
    assert notebook.located(job)[0].parts[:2] == ("results", "local")
    assert capfd.readouterr() == ("", "")


def test_a_measuring_process_that_dies_leaves_a_record_that_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import os; os.write(2, b'out of luck\\n'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(local, "LAUNCH", [sys.executable, "-c", code])
    record = notebook.measure(job_from_mapping(ASKED))
    assert record["status"] == "failed"
    assert "SIGKILL" in record["reason"]
    assert "out of luck" in record["reason"]
    assert "results/local/logs/mine.log" in record["hint"]
    assert (project / "results/local/logs/mine.log").read_text() == "out of luck\n"
    assert capfd.readouterr() == ("", "")


def test_rendering_never_measures(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.NO_MEASURING, "1")
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    record = notebook.measure(job_from_mapping(ASKED), "params/mine.yaml")
    assert record["reason"] == "this job was not measured"
    assert "wanreport run params/mine.yaml" in record["hint"]
    assert not (project / "results").exists()


def test_a_broken_record_stops_the_notebook_with_its_name(project: Path) -> None:
    path = project / "results/some-machine/x.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(notebook.Stop, match="x.json"):
        notebook.all_records()


# Figures -----------------------------------------------------------------------------------------


def figure(colour: str = figures.INK) -> Figure:
    made = Figure(figsize=(4, 2))
    axes = made.add_subplot()
    axes.plot([1, 2, 3], [1, 3, 2], color=colour, clip_on=True)
    axes.set_title("a <title> & more", color=figures.INK)
    return made


def test_a_figure_is_the_same_string_every_time() -> None:
    assert notebook.svg(figure()) == notebook.svg(figure())


def test_ids_of_two_figures_never_meet() -> None:
    one, other = (notebook.svg(figure(colour)) for colour in ("#0072b2", "#d55e00"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, known in zip((one, other), ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
        assert used <= known


def test_the_ink_is_the_pages_own_and_colours_stay() -> None:
    text = notebook.svg(figure("#0072b2"))
    assert figures.INK not in text
    assert "#000000" not in text
    assert "currentColor" in text
    assert "#0072b2" in text


def test_a_figure_brings_no_style_sheet_no_metadata_and_no_ground() -> None:
    text = notebook.svg(figure())
    assert text.startswith("<svg")
    for unwanted in ("<style", "<metadata", "<!--", "DOCTYPE", "#ffffff"):
        assert unwanted not in text
    assert "a &lt;title&gt; &amp; more" in text  # text stays text


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_needs_words(alt: str) -> None:
    with pytest.raises(ValueError, match="alt"):
        notebook.show(figure(), alt=alt)
