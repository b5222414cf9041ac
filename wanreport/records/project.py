"""The project's folder: its root, its records, its commit."""

import functools
import os
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

from wanreport.records.record import RESULTS_DIRS, Found, find_records
from wanreport.records.record import project_root as project_root


def local_results(root: Path) -> Path:
    """Where measuring on this machine writes."""
    return root / RESULTS_DIRS[-1]


def all_records(root: Path) -> list[Found]:
    """Every record at hand, the committed ones first. Raises RecordError as find_records does."""
    return [found for folder in RESULTS_DIRS for found in find_records(root / folder)]


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit and whether the tree differs from it: what the environment states, else git."""
    if stated := os.environ.get("WANREPORT_GIT_SHA"):
        # What is said about changes holds for the commit that is said, and for no other.
        known = {"0": False, "1": True}.get(os.environ.get("WANREPORT_GIT_DIRTY", ""))
        return {"git_sha": stated, "git_dirty": known}
    # It is read whoever owns it: we run its code already. A lock would stay if we were killed.
    git = ["git", "-c", "safe.directory=*", "-C", str(Path(__file__).parent)]
    asked = "ls-files --error-unmatch __init__.py", "rev-parse HEAD", "status --porcelain -uno"
    bare = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:  # we may be installed in another repository
        _, sha, changed = (
            check_output([*git, *each.split()], env=bare, stderr=DEVNULL) for each in asked
        )
    except (OSError, CalledProcessError):
        return {"git_sha": None, "git_dirty": None}
    return {"git_sha": sha.decode().strip(), "git_dirty": bool(changed)}
