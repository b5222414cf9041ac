"""This machine: what it is, which record speaks for a job on it, which code it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import synthetic
from wanreport.jobs.job import job_from_mapping
from wanreport.measure import local
from wanreport.records import project

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("sha", "dirty", "expected"),
    [("abc", "0", False), ("abc", "1", True), ("abc", None, None), ("abc", "perhaps", None)],
)
def test_a_commit_is_what_the_environment_states(
    sha: str, dirty: str | None, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANREPORT_GIT_SHA", sha)
    if dirty is None:
        monkeypatch.delenv("WANREPORT_GIT_DIRTY", raising=False)
    else:
        monkeypatch.setenv("WANREPORT_GIT_DIRTY", dirty)
    assert project.git_state.__wrapped__() == {"git_sha": sha, "git_dirty": expected}


def test_a_clean_tree_that_is_stated_without_its_commit_says_nothing_of_gits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANREPORT_GIT_SHA", "WANREPORT_GIT_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    by_git = project.git_state.__wrapped__()
    monkeypatch.setenv("WANREPORT_GIT_SHA", "")
    for stated in "01":
        monkeypatch.setenv("WANREPORT_GIT_DIRTY", stated)
        assert project.git_state.__wrapped__() == by_git


def test_a_commit_reads_the_same_everywhere() -> None:
    said = [project.commit({"git_sha": "0123456789abcdef", "git_dirty": d}) for d in (False, True)]
    assert said == ["0123456789ab", "0123456789ab, with uncommitted changes"]
    kept = {"git_sha": "0123456789abcdef", "git_dirty": None}
    assert project.commit(kept) == "0123456789ab, changes not recorded"
    assert project.commit({"git_sha": None, "git_dirty": None}) is None


def test_a_machine_with_gpus_is_named_before_there_is_any_folder_for_its_log(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = project / "results/local"
    log = results / "logs/x.log"
    assert local.identify(results, log) is None  # no GPU: nothing is started
    assert not results.exists()
    lister = project / "bin/nvidia-smi"
    lister.parent.mkdir()
    lister.write_text("#!/bin/sh\necho 'GPU 0: a GPU (UUID: 1)'\n")
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", str(lister.parent), prepend=":")
    stand_in = project / "stand_in.py"  # for the process that measures
    code = f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r})"
    code += "; from wanreport.measure import local"
    code += "; root = Path(sys.argv[sys.argv.index('--root') + 1])"
    stand_in.write_text(f"{code}; local.remember_machine(root, 'x', 0)")
    monkeypatch.setattr(local, "LAUNCH", [sys.executable, str(stand_in)])
    assert local.identify(results, log) == ("x", 0)
    assert log.is_file()


def test_a_machine_is_known_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA H100 PCIe"] * 2
    monkeypatch.setattr(local, "_gpu_names", lambda: list(names))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.known_machine(tmp_path) is None
    local.remember_machine(tmp_path, "2x-h100", 2)
    assert local.known_machine(tmp_path) == local.Machine("2x-h100", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert local.known_machine(tmp_path) is None
    assert local.usable_gpus(None) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert local.usable_gpus(None) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.usable_gpus(None) == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert local.known_machine(tmp_path) is None  # another transport is another class
    assert list(tmp_path.iterdir()) == [tmp_path / local.MACHINES]
    assert json.loads((tmp_path / local.MACHINES).read_text())


def test_no_rehearsal_of_another_machine_hides_this_ones_failure(tmp_path: Path) -> None:
    here, other = synthetic.record("new-4gpu", status="failed", reason="x"), None
    other = synthetic.record("new-4gpu", machine={**here["machine"], "slug": "elsewhere"})
    real = synthetic.record("new-4gpu", scale="a14b")
    found = [(Path(r["machine"]["slug"]) / "r.json", r) for r in (here, other)]
    job = job_from_mapping({**here["job"], "scale": "auto"})
    machine = local.Machine(here["machine"]["slug"], 0)
    assert local.spoken_for(job, found, machine) == found[0]
    assert local.spoken_for(job, found, None) == found[1]
    found.append((Path(real["machine"]["slug"]) / "r.json", real))
    assert local.spoken_for(job, found, machine) == found[2]
