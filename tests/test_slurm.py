"""The batch scripts without a Slurm: what would be submitted, and what a task does."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.synthetic import ROOT
from wanreport.jobs.job import load_job, resolve_job
from wanreport.measure import jobs
from wanreport.measure.machine import host_memory
from wanreport.records.record import read_record, write_record

SCRIPTS, BASELINE = sorted((ROOT / "slurm").glob("*.s*")), ROOT / "params/baseline"
OURS = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable}"
# Stand-ins that keep their arguments, and some their environment. sbatch prints an id as on a
# federation; papermill also swallows the notebook.
PROGRAMS = {
    "wanreport": f'{OURS} -m wanreport "$@"',
    "python": f'{OURS} "$@"',
    "squeue": 'cat "$CALLS.queue" 2>/dev/null || true',
    "sbatch": """case "$*" in *--test-only*) exit "${REFUSED:-0}";; esac
    echo "$*" >> "$CALLS"; echo "$((100 + $(wc -l < "$CALLS")));cluster"
""",
    "jupytext": 'echo "jupytext $*" >> "$CALLS"; true',
    "papermill": """echo "papermill $*" >> "$CALLS"; env >> "$CALLS"
echo '{"cells": [{"cell_type": "code", "execution_count": '"${LAST:-1}"'}]}' > "$2"
exit ${PAPERMILL_STATUS:-0}""",
}
TINY = "scale: tiny\n"


class Tree:
    """A copy of what the scripts touch, with stand-ins for the programs that they call."""

    def __init__(self, root):
        self.root = root / "a checkout"  # a space, because people's folders have them
        self.bin, self.calls_file = root / "bin", root / "calls"
        shutil.copytree(ROOT / "slurm", self.root / "slurm", ignore=shutil.ignore_patterns("logs"))
        for folder in ("notebooks", "params/baseline", "slurm/logs"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "notebooks" / "job.py").touch()
        self.bin.mkdir()
        for name, text in PROGRAMS.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)

    def job(self, name, num_gpus=4, extra="", folder=Path()):
        path = self.root / "params/baseline" / folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"name: {name}\nengine: stream\nnum_gpus: {num_gpus}\n{extra}")
        return path

    def run(self, *words, cwd, **env):
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin"
        return subprocess.run(
            ["bash", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=60,
            check=False, env={**os.environ, "PATH": path, "CALLS": str(self.calls_file), **env},
        )  # fmt: skip

    def submit(self, *words, **env):
        return self.run("slurm/submit.sh", *words, cwd=self.root, **env)

    def task(self, *files, index=0, **env):
        env = {"SLURM_SUBMIT_DIR": str(self.root), "SLURM_ARRAY_TASK_ID": str(index), **env}
        script = shutil.copy(self.root / "slurm" / "jobs.sbatch", self.bin / "slurm_script")
        return self.run(script, *files, cwd=self.bin, **env)  # as from Slurm's spool

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_one_array_per_gpu_count_then_one_index_job_after_any(tree):
    shutil.rmtree(tree.root / "slurm/logs")  # which sbatch would need
    for name, gpus in (("a", 4), ("b", 6), ("c", 4), ("d", 4)):
        tree.job(name, gpus)
    dry = tree.submit("--dry-run")
    commands = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert [words[:2] for words in commands] == [["sbatch", "--parsable"]] * 3
    assert "--dependency=afterany:ID-OF-4GPU:ID-OF-6GPU" in commands[-1] and not tree.calls

    done = tree.submit()
    assert done.returncode == 0, done.stderr
    four, six, index = tree.calls
    alone = {"--exclusive", "--mem=0"}
    assert {"--gres=gpu:4", "--array=0-2", "--time=60", *alone} <= {*four.split()}
    assert four.endswith(" ".join(f"params/baseline/{name}.yaml" for name in "acd"))
    assert {"--gres=gpu:6", "--array=0-0", *alone} <= {*six.split()} and six.endswith("/b.yaml")
    assert "--dependency=afterany:101:102 " in index and "--gres" not in index
    assert index.endswith("slurm/index.sbatch") and (tree.root / "slurm/logs").is_dir()


def test_files_options_and_a_sites_settings_are_passed_on(tree, tmp_path):
    tree.job("not-asked-for", 2)
    (tree.root / "slurm" / "site.sh").write_text("GPU_TYPE=a100\nJOB_OPTIONS=(--nice=5)\n")
    mine = Path(shutil.move(tree.job("mine", 2), tmp_path))
    asked = ["mine.yaml", "--", "--partition=fast gpus", "--array=0-0%1"]
    done = tree.run(tree.root / "slurm/submit.sh", "--dry-run", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    array, index = (shlex.split(line) for line in done.stdout.splitlines())
    assert "--gres=gpu:a100:2" in array and (tree.root / array[-1]).resolve() == mine
    assert "--partition=fast gpus" in array and "--partition=fast gpus" in index
    assert array.index("--array=0-0%1") > array.index("--array=0-0") and "--nice=5" in array
    assert not [word for word in index if word.startswith(("--array", "--gres", "--nice"))]


def test_files_of_one_name_from_elsewhere_are_two_jobs(tree, tmp_path):
    files = [tree.job("x", gpus, folder=tmp_path / str(gpus)) for gpus in (1, 2)]
    for file in (*files, files[0]):
        assert tree.submit(file).returncode == 0
    copies = [tree.root / call.split()[-1] for call in tree.calls if "jobs.sbatch" in call]
    copied = sorted((tree.root / "params/submitted").rglob("*.yaml"))
    assert len(copied) == 2 and {*copied} == {*copies}
    assert [load_job(copy).num_gpus for copy in copies] == [1, 2, 1]
    assert len(jobs.load_jobs(copied, tree.root)) == 2, "nor does either keep a report from it"


def test_a_job_is_put_on_the_fewest_nodes_that_divide_it(tree):
    nodes = {2: 1, 4: 1, 6: 2, 7: 7, 8: 2, 9: 3, 10: 5}
    for gpus in nodes:
        tree.job(f"j{gpus}", gpus)
    commands = tree.submit("--dry-run", GPUS_PER_NODE="4").stdout.splitlines()[:-1]
    for (gpus, count), words in zip(nodes.items(), map(shlex.split, commands), strict=True):
        assert f"--gres=gpu:{gpus // count}" in words and gpus // count <= 4
        assert ({f"--nodes={count}", f"--ntasks={count}"} <= {*words}) == (count > 1)


def test_what_is_queued_is_left_out_and_what_is_refused_queues_nothing(tree):
    files = [tree.job("a", 4), tree.job("tiny", 2, TINY)]
    assert tree.submit(REFUSED="1").returncode != 0 and tree.calls == []
    assert tree.submit(THROTTLE="2").returncode == 0
    none, four, _ = tree.calls
    assert "--array=0-0%2" in none and "--gres=gpu:4" in four
    assert not [word for word in ("--gres", "--exclusive", "--mem=0") if word in none]
    Path(f"{tree.calls_file}.queue").write_text("102_0 RUNNING\n")
    assert tree.submit(files[0]).returncode == 0 and len(tree.calls) == 3
    assert "102_0      RUNNING" in tree.submit("--status").stdout


def test_one_bad_file_or_option_and_nothing_is_submitted(tree):
    tree.job("good")
    assert tree.submit("--partition=x").returncode == 2
    tree.job("bad", extra="heigth: 720\n")
    done = tree.submit()
    assert done.returncode != 0 and "bad.yaml" in done.stderr and "heigth" in done.stderr
    done = tree.submit("--help")
    assert done.returncode == 0 and "--dry-run" in done.stdout and "set -euo" not in done.stdout
    assert tree.calls == []


def test_a_task_runs_papermill_on_its_own_params_file(tree):
    files = [tree.job(name, extra=TINY) for name in ("a", "b")]
    done = tree.task(*files, index=1, SLURM_ARRAY_JOB_ID="77")
    assert done.returncode == 0, done.stderr
    papermill = next(call for call in tree.calls if call.startswith("papermill"))
    assert "/job.ipynb slurm/logs/b-77_1.ipynb" in papermill
    assert str(files[1]) in papermill and "-p scale" not in papermill
    variables = dict(call.split("=", 1) for call in tree.calls if "=" in call)
    assert variables["PYTHONNOUSERSITE"] == "1" and variables["JUPYTER_PATH"] == ""
    own = [variables[name] for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")]
    (scratch,) = {Path(folder).parent for folder in own}
    assert len(variables["TMPDIR"]) < 40 and not scratch.exists()  # gone when the task ends


def test_what_is_missing_here_is_for_the_job_to_tell(tree):
    """A task without its GPUs is not a rehearsal; one without its checkpoint leaves a record."""
    done = tree.task(tree.job("a", 4), CUDA_VISIBLE_DEVICES="")
    assert "torch sees 0" in done.stderr
    assert any("-p scale a14b" in call for call in tree.calls)  # which leaves a record and fails
    file = tree.job("a", extra=f"{TINY}checkpoint: nowhere/weights\n")
    for run, program in ((tree.task, "papermill"), (tree.submit, "jobs.sbatch")):
        tree.calls_file.unlink(missing_ok=True)
        done = run(file)
        assert done.returncode == 0 and "nowhere/weights" in done.stderr
        assert any(program in call for call in tree.calls)


def test_a_notebook_that_failed_or_was_killed_fails_its_task(tree):
    file = tree.job("a", extra=TINY)
    for env, status in ({"PAPERMILL_STATUS": "138"}, 138), ({"LAST": "null"}, 2):
        done = tree.task(file, **env)
        assert done.returncode == status and "slurm/logs/a-0_0.ipynb" in done.stdout + done.stderr


def test_a_task_needs_a_good_params_file_and_the_repository(tree, tmp_path):
    for extra in ("heigth: 720\n", '"x=1\\nprint(1)": 2\n'):
        done = tree.task(tree.job("a", extra=extra))
        assert done.returncode != 0 and "a.yaml" in done.stderr
    assert tree.task(tree.job("a"), index=1).returncode == 2
    assert tree.task("a.yaml", SLURM_SUBMIT_DIR=str(tmp_path)).returncode == 2
    assert tree.calls == []


# What Slurm reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["jobs", "index"])
def test_a_requeued_job_appends_to_its_log_and_has_time_for_its_longest_job(script):
    """And no site's partition is committed."""
    top = (ROOT / f"slurm/{script}.sbatch").read_text().partition("\nset ")[0].splitlines()
    options = [word for line in top if line.startswith("#SBATCH") for word in line.split()[1:]]
    assert {"--requeue", "--open-mode=append", "--nodes=1", "--ntasks=1"} <= {*options}
    given = dict(option.partition("=")[::2] for option in options)
    assert given["--output"].startswith("slurm/logs/%x-")
    assert not given.keys() & {"--partition", "--account", "--exclusive"}
    assert given.get("--mem") != "0"
    hours, minutes, _ = map(int, given["--time"].split(":"))
    longest = max(load_job(file).timeout_s for file in BASELINE.glob("*.yaml"))
    assert script == "index" or longest + 1800 <= hours * 3600 + minutes * 60


def test_scripts_are_clean_stop_at_the_first_error_and_never_use_srun():
    for path in SCRIPTS:
        commands = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert "set -euo pipefail" in commands or "example" in path.name
        assert not [line for line in commands if "srun" in line.split("#")[0].split()]
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if not (shellcheck := shutil.which("shellcheck", path=places)):
        pytest.skip("no shellcheck: pip install -e '.[dev]'")
    done = subprocess.run([shellcheck, *SCRIPTS, ROOT / ".ci/run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Under a batch system ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proc", "names", "job"),
    [("0::/job/step\n", ("memory.max", "memory.current"), "job"),
     ("5:memory:/job/step\n", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "memory/job")],
)  # fmt: skip
def test_memory_is_the_least_of_all_cgroups_around(proc, names, job, tmp_path):
    (tmp_path / job / "step").mkdir(parents=True)
    (tmp_path / "proc").write_text(proc)
    for folder, limit in ((tmp_path / job, "1000"), (tmp_path / job / "step", "max")):
        (folder / names[0]).write_text(limit)
        (folder / names[1]).write_text("400")
    assert host_memory(tmp_path / "proc", tmp_path) == {"total": 1000, "available": 600}


def test_sigterm_leaves_a_record_and_never_replaces_a_result(tree, tmp_path, monkeypatch):
    job = resolve_job(load_job(tree.job("a", 1, TINY)), gpus=0)
    monkeypatch.setattr(jobs, "_measured", Mock(side_effect=SystemExit(143)))
    for key, value in (("JOB_ID", "78"), ("ARRAY_JOB_ID", "77"), ("ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(f"SLURM_{key}", value)
    with pytest.raises(SystemExit):
        jobs.measure_jobs([job], tmp_path / "results", tmp_path / "log")
    (path,) = (tmp_path / "results").glob("*/*.json")
    record = read_record(path)
    assert (record["status"], record["software"]["slurm_job"]) == ("failed", "77_3")
    assert "143" in record["reason"]
    write_record(record | {"status": "ok"}, path)
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        jobs.measure_jobs([job], tmp_path / "results", tmp_path / "log")
    assert path.read_bytes() == before
