"""Somebody or something ends a command, or one of its processes, while it measures."""

import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import jupytext
import psutil
import pytest

from tests.faults.scene import LONG, MOUNTS, ROOT, Scene, family, full, gone, runs, until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.xdist_group("killed")]
HOSTILE = {"GLOO_SOCKET_IFNAME": "ib7", "LC_ALL": "C", "PYTHONUTF8": "0"}


# A command that was ended, its processes, and the records and half-written files that it left.
Met = namedtuple("Met", "status err family records files")


def ended(scene, process, how):
    """End a command by a signal while it runs the job `last`."""
    scene.ranks("last")
    everyone = family(process)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=60)
    return Met(process.returncode, err, everyone, scene.records(), scene.left_over())


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def first(scene):
    """A report that measures four jobs, two at a time: all but one meet a fault."""
    for name, given in {"fine": {}, "hung": {"timeout_s": 9, **LONG}, "last": LONG,
                        "killed": {"num_inference_steps": 10}}.items():  # fmt: skip
        scene.job(name, folder="params/baseline", **given)
    process = scene.start("wanreport", "report")
    # A stopped rank is alive and silent, as one that hangs in a collective.
    os.kill(scene.ranks("hung")[1], signal.SIGSTOP)
    os.kill(scene.ranks("killed")[1], signal.SIGKILL)
    until(lambda: "hung" in scene.records())
    return ended(scene, process, signal.SIGINT)


@pytest.fixture(scope="module")
def second(scene, first):
    """The next command goes on, with all that a cluster may leave around, until it is killed.

    That is: a TMPDIR too long for a socket's name, an interface that is not here, a locale that
    knows no letters, and, where it may be mounted, a full /dev/shm and no room for traces.
    """
    (fine,) = scene.root.glob("results/local/*/fine-*.json")
    (fine.parent / "traces").mkdir()
    scene.tmp = scene.root / ("x" * 90)
    scene.tmp.mkdir()
    scene.job("closely", folder="params/baseline", num_gpus=1, profile=True)
    files = [scene.root / f"params/baseline/{name}.yaml"
             for name in ("fine", "killed", "closely", "last")]  # fmt: skip
    prefix = full("/dev/shm", fine.parent / "traces") if MOUNTS else []
    return ended(scene, scene.start("wanreport", "measure", *files, prefix=prefix, **HOSTILE),
                 signal.SIGKILL)  # fmt: skip


def test_a_killed_rank(scene, first, second):
    record = first.records["killed"]
    assert record["status"] == "failed" and "rank 1 was killed by SIGKILL" in record["reason"]
    assert "step" in record["reason"] and "logs" in record["hint"]
    assert list((scene.root / "results/local").glob("*/logs/killed-*/rank*.log"))
    assert second.records["killed"]["status"] == "ok"


def test_a_hung_collective(first):
    record = first.records["hung"]
    assert record["status"] == "timeout" and "timeout_s = 9" in record["reason"] and record["hint"]


def test_ctrl_c(first):
    assert first.status == 130 and len(first.err.splitlines()) == 2  # the terminal's ^C is one
    assert len(first.family) >= 4 and gone(first.family) and first.files == []
    assert first.records["fine"]["status"] == "ok" and "last" not in first.records


def test_a_killed_launcher(second):
    assert len(second.family) >= 4 and gone(second.family) and "last" not in second.records
    (kept,) = second.files  # the folder of the job that was running
    assert "wanreport-job-" in kept


def test_resume_in_hostile_surroundings(first, second):
    assert second.records["fine"] == first.records["fine"], "it is not measured again"
    record = second.records["closely"]
    assert record["status"] == "ok", second.err
    assert (record["traces"] == []) == MOUNTS == ("rank0.json.gz" in record["hint"])


def test_a_killed_kernel(tmp_path):
    """papermill runs a job's notebook, as somebody does by hand."""
    scene, book = Scene(tmp_path), tmp_path / "job.ipynb"
    shutil.copy(ROOT / "notebooks/job.py", tmp_path / "notebooks")
    jupytext.write(jupytext.read(ROOT / "notebooks/job.py"), book)
    words = ["-f", scene.job("job", **LONG), "-k", "python3", "--no-progress-bar"]
    process = scene.start("papermill", book, tmp_path / "out.ipynb", *words)
    try:
        scene.ranks("job")
        everyone = family(process)
        (kernel,) = (child for child in psutil.Process(process.pid).children()
                     if "ipykernel_launcher" in child.cmdline())  # fmt: skip
        kernel.kill()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and "Kernel died" in err
    assert gone(everyone) and scene.records() == {}
    assert [name for name in scene.left_over() if "wanreport-job-" not in name] == []


def cgroup():
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


def test_a_host_out_of_memory(tmp_path):
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


def test_two_commands_at_once(tmp_path):
    scene = Scene(tmp_path)
    jobs = [scene.job("one"), scene.job("two")]
    both = [scene.start("wanreport", "measure", *jobs) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    statuses = {name: record["status"] for name, record in scene.records().items()}
    assert statuses == {"one": "ok", "two": "ok"}
    assert scene.left_over() == []
