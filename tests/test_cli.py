"""The command line: what it says, and with which status it ends."""

import os
import subprocess
import sys

import pytest

from tests import stand_in
from wanreport import cli
from wanreport.measure import jobs

GOOD = """
name: good
engine: resident
num_gpus: 1
dit_layerwise_offload: false
dit_cpu_offload: false
"""


def test_check_says_what_a_job_resolves_to_and_knows_any_letter(project):
    file = project / "prüfung" / "good.yaml"
    file.parent.mkdir()
    file.write_text(f"{GOOD}negative_prompt: 色调艳丽\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "wanreport", "check", file], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C",
             "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr and b"fung/good.yaml: resident" in done.stdout
    assert b"scale tiny" in done.stdout and b"give resident" in done.stdout
    assert not (project / "results").exists()


@pytest.mark.parametrize("command", ["run", "measure", "check", "report"])
def test_all_problems_of_all_files_come_before_anything_runs(command, project, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "running", None)
    one, two = (project / f"params/baseline/{name}.yaml" for name in ("one", "two"))
    one.write_text("name: one\nengine: warp\nnum_gpus: 0\nheigth: 480\n")
    two.write_text('name: two\n"import os; os.abort()": 1\n')
    given = [*map(str, (one, two)), "missing.yaml"] if command != "report" else []
    assert cli.main([command, *given]) == 2
    out, err = capsys.readouterr()
    words = ["one.yaml: engine: ", "num_gpus", "heigth", "two.yaml", "os.abort", *given[2:]]
    assert not out and all(word in err for word in words)
    assert given or str(project) not in err
    assert not (project / "results").exists() and not (project / "reports").exists()


def test_check_tells_of_every_model_that_is_not_here(project, capsys):
    extra = {"good": "", "one": "checkpoint: nowhere/one\n", "two": "checkpoint: nowhere/two\n",
             "x": "model_path: a/b\nflow_shift: 3.0\n"}  # fmt: skip
    for name, lines in extra.items():
        (project / f"{name}.yaml").write_text(GOOD.replace("good", name) + lines)
    assert cli.main(["check", *(f"{name}.yaml" for name in extra)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("good.yaml: ") and len(err.splitlines()) == 3
    assert all(word in err for word in ("nowhere/one", "nowhere/two", "x.yaml: model_path"))


@pytest.mark.parametrize("words", [[], ["x.yaml", "--gpus", "2"], ["x.yaml", "--vram-gb", "24"]])
def test_a_plan_of_nothing_or_of_two_things_says_what_to_give(words, project, capsys):
    assert cli.main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and "--gpus N" in err and "--vram-gb" in err


@pytest.mark.parametrize("purpose", ["", "unsupported", "oom", "dies"])
def test_run_makes_record_and_page_and_fails_unless_the_job_is_ok(
    purpose, project, capsys, monkeypatch
):
    for name in ("running", "this_machine"):
        monkeypatch.setattr(jobs, name, getattr(stand_in, name))
    monkeypatch.setattr(cli, "this_machine", stand_in.this_machine)
    (project / "params/good.yaml").write_text(f"{GOOD}purpose: {purpose!r}\n")
    (project / "notebooks/job.py").write_text("# %% [markdown]\n# # A page\n")
    for _ in range(2):  # the second time there may be a record
        assert cli.main(["run", "params/good.yaml"]) == bool(purpose)
        assert bool(purpose) == ("good" in capsys.readouterr().err)
    assert len(list(project.glob("results/local/*/good-*.json"))) == 1
    assert len(list(project.glob("reports/jobs/*/good.html"))) == 1


@pytest.mark.parametrize("words", [[], ["nonsense"], ["report", "--workers", "0"], ["run"],
                                   ["plan", "--gpus", "0"]])  # fmt: skip
def test_wrong_usage_is_explained(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: wanreport" in capsys.readouterr().err
