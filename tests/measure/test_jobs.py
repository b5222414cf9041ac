"""This machine: what it is, which record speaks for a job on it, which code it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import synthetic
from wanreport.jobs.job import job_from_mapping
from wanreport.measure import jobs
from wanreport.records import project


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


def test_no_rehearsal_of_another_machine_hides_this_ones_failure(tmp_path: Path) -> None:
    here, other = synthetic.record("new-4gpu", status="failed", reason="x"), None
    other = synthetic.record("new-4gpu", machine={**here["machine"], "slug": "elsewhere"})
    real = synthetic.record("new-4gpu", scale="a14b")
    found = [(Path(r["machine"]["slug"]) / "r.json", r) for r in (here, other)]
    job = job_from_mapping({**here["job"], "scale": "auto"})
    machine = jobs.Machine(here["machine"]["slug"], 0)
    assert jobs.spoken_for(job, found, machine) == found[0]
    assert jobs.spoken_for(job, found, jobs.Machine("third", 0)) == found[1]
    found.append((Path(real["machine"]["slug"]) / "r.json", real))
    assert jobs.spoken_for(job, found, machine) == found[2]
