"""What a record says of the code that wrote it."""

from __future__ import annotations

import pytest

from wanreport import local


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
    assert local.git_state.__wrapped__() == {"git_sha": sha, "git_dirty": expected}


def test_a_clean_tree_that_is_stated_without_its_commit_says_nothing_of_gits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANREPORT_GIT_SHA", "WANREPORT_GIT_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    by_git = local.git_state.__wrapped__()
    monkeypatch.setenv("WANREPORT_GIT_SHA", "")
    for stated in "01":
        monkeypatch.setenv("WANREPORT_GIT_DIRTY", stated)
        assert local.git_state.__wrapped__() == by_git


def test_a_commit_reads_the_same_everywhere() -> None:
    said = [local.commit({"git_sha": "0123456789abcdef", "git_dirty": d}) for d in (False, True)]
    assert said == ["0123456789ab", "0123456789ab, with uncommitted changes"]
    kept = {"git_sha": "0123456789abcdef", "git_dirty": None}
    assert local.commit(kept) == "0123456789ab, changes not recorded"
    assert local.commit({"git_sha": None, "git_dirty": None}) is None
