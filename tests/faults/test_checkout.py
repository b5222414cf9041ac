"""A checkout that was moved or copied, is somebody else's, or was cloned with other line ends."""

import os
import shutil
import subprocess
import sys
import venv

import pytest

from tests.faults.scene import ROOT
from wanreport import __version__

JOB = "params/baseline/new-4gpu.yaml"
FILES = ("Makefile", "pyproject.toml", "constraints.txt", ".gitattributes", ".ci/run", JOB,
         "notebooks/job.py")  # fmt: skip


def run(root, *words, **env):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(words, cwd=root, env=clean | env, capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout with the environment that `make` leaves in it, and a commit."""
    root = tmp_path_factory.mktemp("checkout") / "made"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "wanreport", root / "wanreport",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-c", "core.autocrlf=false"]
    for words in (["init", "--quiet"], ["add", "-A"], ["commit", "--quiet", "-m", "x"]):
        assert run(root, *git, *words).returncode == 0
    venv.create(root / ".venv", symlinks=True)
    (packages,) = (root / ".venv").glob("lib/python*/site-packages")
    installed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "editable.pth").write_text("\n".join([str(root), *installed]))
    script = root / ".venv/bin/wanreport"
    script.write_text(f"#!{root}/.venv/bin/python\nfrom wanreport.cli import main\nexit(main())\n")
    script.chmod(0o755)
    (root / ".venv/.ready").write_text(f"{root}\n")
    return root


def test_a_checkout_that_was_copied_or_moved_runs_its_own_code(made, tmp_path):
    copied, first, moved = (tmp_path / name for name in ("copied", "first", r"m&v|d\now"))
    for each in (copied, first):
        shutil.copytree(made, each, symlinks=True)
    (copied / "wanreport/__init__.py").write_text('"""Other."""\n\n__version__ = "copied"\n')
    done = run(copied, ".venv/bin/wanreport", "check", JOB)
    assert done.returncode == 2 and f"{made}; `make report`" in done.stderr and not done.stdout
    done = run(copied, str(made / ".venv/bin/wanreport"), "check", JOB)
    assert done.returncode == 2 and f"{made}; in this folder run `python -m" in done.stderr
    run(first, "make", "report", "ARGS=--help")
    (first / ".venv/.ready").write_text("")  # as where it did not tell its place yet
    linked = tmp_path / "linked"
    shutil.copytree(copied, linked, ignore=shutil.ignore_patterns(".venv"))
    (linked / ".venv").symlink_to(first / ".venv")
    assert run(linked, "make", "report", "ARGS=--help").returncode == 0
    assert f"#!{first}/" in (first / ".venv/bin/wanreport").read_text()
    first.rename(moved)
    ready = [(root / ".venv/.ready").stat().st_mtime_ns for root in (copied, moved)]
    for root, version in ((copied, "copied"), (moved, __version__)):
        assert run(root, "make", "report", "ARGS=--help").returncode == 0
        done = run(root, ".venv/bin/wanreport", "check", JOB)
        assert done.returncode == 0 and JOB in done.stdout, done.stderr
        assert version in run(root, ".venv/bin/wanreport", "--version").stdout
    assert ready == [(root / ".venv/.ready").stat().st_mtime_ns for root in (copied, moved)]


def test_a_checkout_of_somebody_else_tells_its_commit(made):
    code = "from wanreport.records.project import git_state; print(git_state())"
    other = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    assert "dubious ownership" in run(made, "git", "status", **other).stderr
    commit = run(made, "git", "rev-parse", "HEAD").stdout.strip()
    assert commit in run(made, sys.executable, "-c", code, **other).stdout


def test_asking_git_for_the_commit_takes_no_lock(made):
    """It takes none, though it compares files that seem to have changed, and says if they have."""
    code = "from wanreport.records.project import git_state; print(git_state()['git_dirty'])"
    file, index = made / "Makefile", made / ".git/index"
    text, before = file.read_bytes(), index.stat()
    said = []
    for changed in (b"", b"# changed"):
        file.write_bytes(text + changed)
        said += run(made, sys.executable, "-c", code).stdout.split()
    file.write_bytes(text)
    assert said == ["False", "True"]
    assert (before.st_ino, before.st_mtime_ns) == (index.stat().st_ino, index.stat().st_mtime_ns)


def test_a_clone_that_asks_for_other_line_ends_has_the_same_bytes(made, tmp_path):
    run(tmp_path, "git", "clone", "--quiet", "-c", "core.autocrlf=true", str(made), "clone")
    for name in FILES:
        assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes()
