"""The command line: what it says, and with which status it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wanreport import cli
from wanreport.measure import local
from wanreport.report import site

ROOT = Path(__file__).resolve().parents[1]
GOOD = """
name: good
engine: resident
num_gpus: 1
dit_layerwise_offload: false
dit_cpu_offload: false
"""


def test_check_says_what_a_job_resolves_to(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_gpu_names", list)
    file = project / "params/baseline/good.yaml"
    file.write_text(GOOD)
    assert cli.main(["check", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("params/baseline/good.yaml: resident on 1 GPU")
    assert "scale tiny" in out
    assert "SGLang's flags give resident" in out
    assert not (project / "results").exists()


def test_check_tells_all_problems_of_all_files(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = project / "one.yaml", project / "two.yaml"
    one.write_text("name: one\nengine: resident\nnum_gpus: 0\nheigth: 480\n")
    two.write_text('name: two\n"import os; os.abort()": 1\n')
    assert cli.main(["check", str(one), str(two), "missing.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for expected in ("one.yaml", "num_gpus", "heigth", "two.yaml", "os.abort", "missing.yaml"):
        assert expected in captured.err
    assert "Nothing was run." in captured.err


@pytest.mark.parametrize("command", ["run", "measure", "check"])
def test_a_bad_file_is_no_traceback(command: str, project: Path) -> None:
    (project / "x.yaml").write_text("name: x\nengine: warp\n")
    done = subprocess.run(
        [sys.executable, "-m", "wanreport", command, "x.yaml"], cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_record_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = project / "results/some-machine/x.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    assert cli.main(["report", "--no-measure"]) == 1
    assert "some-machine/x.json" in capsys.readouterr().err


def test_the_disk_and_the_keyboard_are_no_tracebacks(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> int:
            raise error

        monkeypatch.setattr(site, "report", fail)

    raises(OSError(28, "No space left on device", "reports/x"))
    assert cli.main(["report"]) == 1
    assert capsys.readouterr().err == "wanreport: reports/x: No space left on device\n"
    raises(KeyboardInterrupt())
    assert cli.main(["report"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_index_alone(project: Path) -> None:
    (project / "params/baseline/good.yaml").write_text(GOOD)
    for name in ("index", "other"):
        (project / f"notebooks/{name}.py").write_text(f"# %% [markdown]\n# # {name}\n")
    assert cli.main(["index"]) == 0
    assert [path.name for path in (project / "reports").rglob("*.html")] == ["index.html"]


def test_commands_start_without_what_they_may_not_need() -> None:
    code = (
        "import sys, wanreport.cli\n"
        "heavy = {'torch', 'nbconvert', 'papermill', 'matplotlib', 'IPython', 'jupytext'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["nonsense"], ["report", "--workers", "0"], ["run"]])
def test_wrong_usage_is_explained(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: wanreport" in capsys.readouterr().err
