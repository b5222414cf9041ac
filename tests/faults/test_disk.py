"""Files that find no room, and files that are not what they should be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import synthetic
from tests.faults.scene import MOUNTS, ROOT, Scene, full

CHECK = ["wanreport", "check", *sorted(map(str, (ROOT / "params").rglob("*.yaml")))]
PREDICT = ["tools.predict", "--gpu", "NVIDIA H100 80GB HBM3", "--interconnect", "nvlink",
           "params/campaign/720p-6gpu-stream.yaml"]  # fmt: skip


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def refused(scene, folder, file, *words):
    """A command finds ``folder`` full: one line names ``file`` in it, and all is as it was."""
    before, left = {*contents(folder)}, scene.root / "left"
    code, _, err = scene.run(*words, prefix=full(folder, left=left))
    assert code != 0
    (said,) = [line for line in err.splitlines() if "No space left on device" in line]
    assert file in said
    found = {os.path.relpath(line, folder) for line in left.read_text("utf-8").splitlines()}
    assert found - {".fill"} == before, "no part of a file"


def test_no_room_for_a_page(scene):
    (scene.root / "notebooks/index.py").write_text(INDEX)
    (scene.root / "reports/mine.html").write_text("mine")
    refused(scene, scene.root / "reports", "reports/index.html",
            "wanreport", "report", "--no-measure")  # fmt: skip


def test_no_room_for_a_prediction(scene):
    for name in ("predictions", "params/campaign"):
        (scene.root / name).mkdir()
    shutil.copy(ROOT / "params/campaign/480p-2gpu-stream.yaml", scene.root / "params/campaign")
    for file in (ROOT / "results").glob("1x-*h200*/480p-1gpu-*.json"):
        (scene.root / "results" / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, scene.root / "results" / file.parent.name)
    refused(scene, scene.root / "predictions", "predictions/nvidia-h200",
            "tools.predict", "--gpu", "NVIDIA H200", "--write")  # fmt: skip


def test_no_room_for_a_traces_figures(scene):
    trace = next((ROOT / "results").glob("*/traces/*/rank0.json.gz"))
    refused(scene, scene.root / "reports", "figures.json",
            "wanreport", "trace", trace, "--json", scene.root / "reports/figures.json")  # fmt: skip


@pytest.mark.faults
def test_no_room_for_a_record(scene):
    local = scene.root / "results/local"
    job = scene.job("job", "resident", num_gpus=1)
    synthetic.write([synthetic.record("other", engine="resident", num_gpus=1)], local)
    (local / "logs").mkdir()
    (local / "logs/measure.log").write_text("")
    refused(scene, local, "results/local/", "wanreport", "measure", job)


@pytest.mark.faults
def test_no_room_for_benchmarks(scene):
    words = ["--device", "cpu", "--tokens", "27", "--blocks", "2", "--engines", "swap"]
    path = scene.root / "reports/bench.json"
    refused(scene, path.parent, "bench.json", "benchmarks", *words, "--json", path)
    assert scene.run("benchmarks", *words, "--json", path)[0] == 0 and path.is_file()


@pytest.mark.faults
def test_files_may_not_be_that_large(scene):
    """As under ``ulimit -f``."""
    job = scene.job("job", "resident", num_gpus=1)
    prefix = ["sh", "-c", 'ulimit -f 2; exec "$@"', "sh"]
    code, _, err = scene.run("wanreport", "measure", job, prefix=prefix)
    assert code == 1 and "/job-" in err and "File too large" in err
    assert scene.records() == {} and scene.left_over() == []


@pytest.mark.parametrize("words", [CHECK, PREDICT], ids=["check", "predict"])
def test_a_full_disk_or_a_reader_that_has_enough_behind_the_output(words):
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
    with Path("/dev/full").open("w") as sink:
        done = subprocess.run(command, stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"{words[0]}: standard output: ")
    assert len(done.stderr.splitlines()) == 1


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "other": lambda data: b"[1, 2]\n",
    "typed": lambda data: data.replace(b'"status": "ok"', b'"status": 7'),
}


@pytest.mark.parametrize("words", [["measure"], ["report", "--no-measure"]])
def test_damaged_records(scene, words):
    (scene.root / "notebooks/index.py").write_text(INDEX)
    good = synthetic.record("good", engine="resident", num_gpus=1)
    synthetic.write([good], scene.root / "results/local")
    (path,) = (scene.root / "results/local").glob("*/good-*.json")
    for name, damage in DAMAGE.items():
        path.with_name(f"{name}.json").write_bytes(damage(path.read_bytes()))
    before = contents(scene.root / "results")
    params = [scene.job("job")] if words == ["measure"] else []
    code, _, err = scene.run("wanreport", *words, *params)
    assert code == 1 and all(f"/{name}.json" in err for name in DAMAGE) and "/good-" not in err
    assert contents(scene.root / "results") == before


INDEX = """
# %%
from wanreport.report import notebook
notebook.md("# Summary\\n\\nHere.")
"""


@pytest.mark.skipif(not MOUNTS, reason="mounts a folder of its own, which is not allowed here")
@pytest.mark.faults
def test_a_user_without_a_name_in_a_checkout_that_is_read_only(scene):
    job, own = scene.job("job", "resident", num_gpus=1), scene.root.parent / "own"
    own.mkdir(exist_ok=True)
    script = (
        f'mount --bind "{scene.root}" "{scene.root}" && '
        f'mount -o remount,bind,ro "{scene.root}" && cd "{scene.root}" && '
        'exec unshare --user --map-user=54321 --map-group=54321 env -u HOME "$@"'
    )
    how = {"prefix": ["unshare", "-rm", "sh", "-c", script, "sh"], "TMPDIR": str(own)}
    code, _, err = scene.run("wanreport", "measure", job, **how)
    assert code == 1 and "results/local" in err and len(err.splitlines()) == 1
    how["WANREPORT_RESULTS"] = f"results:{own}"
    code, _, err = scene.run("wanreport", "measure", job, **how)
    assert code == 0 and len([*own.glob("*/job-*.json")]) == 1, err
