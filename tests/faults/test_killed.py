"""Somebody or something ends a command, or one of its processes, while it measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.faults.scene import LONG, MOUNTS, ROOT, Scene, family, full, gone, runs, until

pytestmark = pytest.mark.xdist_group("killed")
HOSTILE = {"GLOO_SOCKET_IFNAME": "ib7", "LC_ALL": "C", "PYTHONUTF8": "0"}


class Met(NamedTuple):
    """What the first command met, and what came of it."""

    scene: Scene
    family: list[int]  # of processes, when the command itself was killed
    records: dict[str, dict[str, Any]]
    files: list[str]  # that were half written then


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Met:
    """One command that measures four jobs: the last three each meet a fault."""
    scene = Scene(tmp_path_factory.mktemp("killed"))
    long = [scene.job("hung", timeout_s=9, **LONG), scene.job("cut", **LONG)]
    short = [scene.job("fine"), scene.job("killed", num_inference_steps=10)]
    process = scene.start("wanreport", "measure", *short, *long)
    os.kill(scene.ranks("killed")[1], signal.SIGKILL)
    # A stopped rank is alive and silent, as one that hangs in a collective.
    os.kill(scene.ranks("hung")[1], signal.SIGSTOP)
    scene.ranks("cut")
    everyone = family(process)
    process.kill()
    process.communicate()
    return Met(scene, everyone, scene.records(), scene.left_over())


def test_a_killed_rank(met: Met) -> None:
    record = met.records["killed"]
    assert record["status"] == "failed" and "rank 1 was killed by SIGKILL" in record["reason"]
    assert "step" in record["reason"] and "logs" in record["hint"]
    assert list((met.scene.root / "results/local").glob("*/logs/killed-*/rank*.log"))


def test_a_hung_collective(met: Met) -> None:
    record = met.records["hung"]
    assert record["status"] == "timeout" and "timeout_s = 9" in record["reason"] and record["hint"]


def test_a_killed_launcher(met: Met) -> None:
    assert len(met.family) >= 4 and gone(met.family)
    assert met.records["fine"]["status"] == "ok" and "cut" not in met.records
    (kept,) = met.files  # the folder of the job that was running
    assert "wanreport-job-" in kept


def test_ctrl_c_and_resume_in_hostile_surroundings(met: Met) -> None:
    """Ctrl-C in the second command; the third goes on, with all that a cluster may leave around.

    That is: a TMPDIR too long for a socket's name, an interface that is not here, a locale that
    knows no letters, and, where it may be mounted, a full /dev/shm and no room for traces.
    """
    scene, folder = met.scene, met.scene.root / "results/local/cpu-x86_64"
    (fine,) = folder.parent.glob("*/fine-*.json")
    folder, before = fine.parent, fine.stat().st_mtime_ns
    for left in scene.tmp.glob("wanreport-job-*"):
        left.rename(left.with_name(f"old-{left.name}"))
    names = [scene.job(name) for name in ("fine", "second")]
    names += [scene.job("killed", num_inference_steps=10)]
    process = scene.start("wanreport", "measure", *names)
    scene.ranks("killed")
    everyone = family(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert gone(everyone) and scene.left_over() == []
    records = scene.records()
    assert records["second"]["status"] == "ok" and records["killed"]["status"] == "failed"

    names += [scene.job("traced", num_gpus=1, profile=True)]
    (folder / "traces").mkdir(exist_ok=True)
    long = scene.root / ("x" * 90)
    long.mkdir()
    prefix = full("/dev/shm", folder / "traces") if MOUNTS else []
    code, _, err = scene.run(
        "wanreport", "measure", *names, prefix=prefix, **HOSTILE, TMPDIR=str(long)
    )
    assert code == 0, err
    records = scene.records()
    assert {records[name]["status"] for name in ("fine", "second", "killed", "traced")} == {"ok"}
    assert fine.stat().st_mtime_ns == before, "it is not measured again"
    if MOUNTS:
        assert records["traced"]["traces"] == [] and "rank0.json.gz" in records["traced"]["hint"]
    else:
        assert len(records["traced"]["traces"]) == 1


@contextmanager
def papermill(scene: Scene, name: str) -> Iterator[subprocess.Popen[str]]:
    """papermill on a job's notebook, as somebody runs it by hand, until the job has begun."""
    scene.root.joinpath("notebooks/job.py").write_bytes((ROOT / "notebooks/job.py").read_bytes())
    book = scene.root / "job.ipynb"
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "-o", book,
                    ROOT / "notebooks/job.py"], check=True)  # fmt: skip
    words = ["-f", scene.job(name, **LONG), "-k", "python3", "--no-progress-bar"]
    process = scene.start("papermill", book, scene.root / "out.ipynb", *words)
    try:
        scene.ranks(name)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_kernel(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with papermill(scene, "job") as process:
        everyone = family(process)
        (kernel,) = (child for child in psutil.Process(process.pid).children()
                     if "ipykernel_launcher" in child.cmdline())  # fmt: skip
        kernel.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Kernel died" in err
    assert gone(everyone) and scene.records() == {}
    assert [name for name in scene.left_over() if "wanreport-job-" not in name] == []


def cgroup() -> Path | None:
    """A new memory cgroup, where we may make one."""
    for base in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        try:
            made = Path(base) / f"wanreport-{os.getpid()}"
            made.mkdir()
            if [*made.glob("memory.limit_in_bytes"), *made.glob("memory.max")]:
                return made
            made.rmdir()
        except OSError:
            continue
    return None


@pytest.mark.faults
def test_a_host_out_of_memory(tmp_path: Path) -> None:
    group = cgroup()
    if group is None:
        pytest.skip("makes a memory cgroup, which is not allowed here")
    scene = Scene(tmp_path)
    try:
        process = scene.start("wanreport", "measure", scene.job("job", **LONG))
        rank = scene.ranks("job")[1]
        (limit,) = [*group.glob("memory.limit_in_bytes"), *group.glob("memory.max")]
        limit.write_text("200000")
        (group / "cgroup.procs").write_text(str(rank))
        until(lambda: not runs(rank), 60)
        process.communicate(timeout=60)
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), 60)
        group.rmdir()
    record = scene.records()["job"]
    assert record["status"] == "failed" and "rank 1 was killed by SIGKILL" in record["reason"]
    assert "memory" in record["hint"] and process.returncode == 1


@pytest.mark.faults
def test_two_commands_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    jobs = [scene.job("one"), scene.job("two")]
    both = [scene.start("wanreport", "measure", *jobs) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert {name: made["status"] for name, made in scene.records().items()} == {
        "one": "ok", "two": "ok"
    }  # fmt: skip
    assert scene.left_over() == []
