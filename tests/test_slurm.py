"""The batch scripts without a Slurm: what would be submitted, and what a task does."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wanreport.jobs.job import load_job, resolve_job
from wanreport.measure import launch
from wanreport.measure.machine import host_memory
from wanreport.records.record import read_record, write_record

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "slurm").glob("*.s*"))
BATCH_SCRIPTS = [path for path in SCRIPTS if path.suffix == ".sbatch"]

# Stand-ins that keep their arguments, and some their environment. sbatch prints an id as on a
# federation; papermill also swallows the notebook.
PROGRAMS = {
    "wanreport": f'PYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m wanreport "$@"',
    "python": f'PYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"',
    "squeue": 'cat "$CALLS.queue" 2>/dev/null || true',
    "sbatch": """case "$*" in *--test-only*) exit "${REFUSED:-0}";; esac
    echo "$*" >> "$CALLS"; echo "$((100 + $(wc -l < "$CALLS")));cluster"
""",
    "jupytext": 'echo "jupytext $*" >> "$CALLS"; true',
    "papermill": """echo "papermill $*" >> "$CALLS"; env >> "$CALLS"
echo '{"cells": [{"cell_type": "code", "execution_count": '"${LAST:-1}"'}]}' > "$2"
exit ${PAPERMILL_STATUS:-0}""",
}


class Tree:
    """A copy of what the scripts touch, with stand-ins for the programs that they call."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a checkout"  # a space, because people's folders have them
        self.bin, self.calls_file = root / "bin", root / "calls"
        self.params = self.root / "params" / "baseline"
        shutil.copytree(ROOT / "slurm", self.root / "slurm", ignore=shutil.ignore_patterns("logs"))
        for folder in ("notebooks", "params/baseline"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "notebooks" / "job.py").touch()
        self.bin.mkdir()
        for name, text in PROGRAMS.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)

    def job(self, name: str, num_gpus: int = 4, extra: str = "") -> Path:
        path = self.params / f"{name}.yaml"
        path.write_text(
            f"name: {name}\nengine: resident\nnum_gpus: {num_gpus}\n"
            f"dit_layerwise_offload: false\ndit_cpu_offload: false\n{extra}"
        )
        return path

    def run(self, *words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin"
        return subprocess.run(
            ["bash", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=60,
            check=False, env={**os.environ, "PATH": path, "CALLS": str(self.calls_file), **env},
        )  # fmt: skip

    def submit(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("slurm/submit.sh", *words, cwd=self.root, **env)

    def task(self, *files: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        (self.root / "slurm" / "logs").mkdir(exist_ok=True)
        env = {"SLURM_SUBMIT_DIR": str(self.root), **env}
        script = shutil.copy(self.root / "slurm" / "jobs.sbatch", self.bin / "slurm_script")
        return self.run(script, *files, cwd=self.bin, **env)  # as from Slurm's spool

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_one_array_per_gpu_count_then_one_index_job_after_any(tree: Tree) -> None:
    for name, gpus in (("a", 4), ("b", 6), ("c", 4), ("d", 4)):
        tree.job(name, gpus)
    done = tree.submit()
    assert done.returncode == 0, done.stderr
    four, six, index = tree.calls
    assert {"--gres=gpu:4", "--array=0-2", "--time=60"} <= {*four.split()}
    assert four.endswith(" ".join(f"params/baseline/{name}.yaml" for name in "acd"))
    assert {"--gres=gpu:6", "--array=0-0"} <= {*six.split()} and six.endswith("/b.yaml")
    assert "--dependency=afterany:101:102 " in index and "--gres" not in index
    assert index.endswith("slurm/index.sbatch")
    assert (tree.root / "slurm" / "logs").is_dir()

    # A dry run prints the commands and calls nothing.
    done = tree.submit("--dry-run")
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[:2] for words in commands] == [["sbatch", "--parsable"]] * 3
    assert "--dependency=afterany:ID-OF-4GPU:ID-OF-6GPU" in commands[-1]
    assert len(tree.calls) == 3


def test_files_options_and_the_gpu_type_are_passed_on(tree: Tree, tmp_path: Path) -> None:
    tree.job("not-asked-for", 2)
    mine = Path(shutil.move(tree.job("mine", 2), tmp_path))
    done = tree.run(
        tree.root / "slurm" / "submit.sh", "--dry-run", "mine.yaml", "--", "--partition=fast gpus",
        "--array=0-0%1", cwd=tmp_path, GPU_TYPE="h100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs, index = (shlex.split(line) for line in done.stdout.splitlines())
    assert "--gres=gpu:h100:2" in jobs and (tree.root / jobs[-1]).resolve() == mine
    assert "--partition=fast gpus" in jobs and "--partition=fast gpus" in index
    assert jobs.index("--array=0-0%1") > jobs.index("--array=0-0")
    assert not [word for word in index if word.startswith(("--array", "--gres"))]


def test_what_is_queued_is_left_out_and_what_is_refused_queues_nothing(tree: Tree) -> None:
    files = [tree.job("a", 4), tree.job("tiny", 2, "scale: tiny\n")]
    assert tree.submit(REFUSED="1").returncode != 0
    assert tree.calls == []
    assert tree.submit(THROTTLE="2").returncode == 0
    none, four, _ = tree.calls
    assert "--gres" not in none and "--array=0-0%2" in none and "--gres=gpu:4" in four
    Path(f"{tree.calls_file}.queue").write_text("102_0 RUNNING\n")
    assert tree.submit(files[0]).returncode == 0
    assert len(tree.calls) == 3
    assert "102_0      RUNNING" in tree.submit("--status").stdout


def test_a_site_has_a_file_of_its_own_and_files_from_elsewhere_are_copied(
    tree: Tree, tmp_path: Path
) -> None:
    mine = shutil.move(tree.job("mine", 2), tmp_path)
    (tree.root / "slurm" / "site.sh").write_text("GPU_TYPE=a100\nJOB_OPTIONS=(--nice=5)\n")
    assert tree.submit(mine).returncode == 0
    jobs, index = tree.calls
    assert "--gres=gpu:a100:2" in jobs and "--nice=5" in jobs and "--nice" not in index
    assert jobs.endswith("params/submitted/mine.yaml")
    assert (tree.root / "params/submitted/mine.yaml").exists()


def test_a_task_without_the_gpus_that_it_needs_fails_before_papermill(tree: Tree) -> None:
    done = tree.task(tree.job("a", 4), SLURM_ARRAY_TASK_ID="0", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "torch sees 0" in done.stderr
    assert tree.calls == []


def test_one_bad_file_or_option_and_nothing_is_submitted(tree: Tree) -> None:
    tree.job("good")
    assert tree.submit("--partition=x").returncode == 2
    tree.job("bad", extra="heigth: 720\n")
    done = tree.submit()
    assert done.returncode != 0 and "bad.yaml" in done.stderr and "heigth" in done.stderr
    assert tree.calls == []
    done = tree.submit("--help")
    assert done.returncode == 0 and "--dry-run" in done.stdout and "set -euo" not in done.stdout


def test_a_task_runs_papermill_on_its_own_params_file(tree: Tree) -> None:
    files = [tree.job(name, extra="scale: tiny\n") for name in ("a", "b")]
    done = tree.task(*files, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="77")
    assert done.returncode == 0, done.stderr
    papermill = next(call for call in tree.calls if call.startswith("papermill"))
    assert "/job.ipynb slurm/logs/b-77_1.ipynb" in papermill
    assert str(files[1]) in papermill
    variables = dict(call.split("=", 1) for call in tree.calls if "=" in call)
    assert variables["PYTHONNOUSERSITE"] == "1"
    own = [variables[name] for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")]
    assert len(variables["TMPDIR"]) < 40
    (scratch,) = {Path(folder).parent for folder in own}
    assert not scratch.exists()  # removed when the task ends


@pytest.mark.parametrize(
    ("env", "status"), [({"PAPERMILL_STATUS": "138"}, 138), ({"LAST": "null"}, 2)]
)
def test_a_notebook_that_failed_or_was_killed_fails_its_task(
    tree: Tree, env: dict[str, str], status: int
) -> None:
    done = tree.task(tree.job("a", extra="scale: tiny\n"), SLURM_ARRAY_TASK_ID="0", **env)
    assert done.returncode == status
    assert "slurm/logs/a-0_0.ipynb" in done.stdout + done.stderr


@pytest.mark.parametrize("extra", ["heigth: 720\n", "seed: 1e-3\n", '"x=1\\nprint(1)": 2\n'])
def test_a_task_refuses_a_bad_params_file_before_papermill(tree: Tree, extra: str) -> None:
    done = tree.task(tree.job("a", extra=extra), SLURM_ARRAY_TASK_ID="0")
    assert done.returncode != 0 and "a.yaml" in done.stderr
    assert tree.calls == []


def test_a_task_needs_a_params_file_and_the_repository(tree: Tree, tmp_path: Path) -> None:
    assert tree.task(tree.job("a"), SLURM_ARRAY_TASK_ID="1").returncode == 2
    assert tree.task("a.yaml", SLURM_SUBMIT_DIR=str(tmp_path)).returncode == 2
    assert tree.calls == []


# What Slurm reads --------------------------------------------------------------------------------


def directives(path: Path) -> list[str]:
    """The #SBATCH options that Slurm would read: those above the first command."""
    options = []
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            options += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    return options


def test_the_time_limit_is_well_above_the_jobs_own() -> None:
    limit = next(o for o in directives(ROOT / "slurm/jobs.sbatch") if o.startswith("--time="))
    hours, minutes, _ = map(int, limit.removeprefix("--time=").split(":"))
    jobs = [load_job(file) for file in (ROOT / "params/baseline").glob("*.yaml")]
    assert max(job.timeout_s for job in jobs) + 1800 <= hours * 3600 + minutes * 60


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda path: path.name)
def test_a_requeued_job_appends_to_its_log_and_no_real_partition_is_committed(path: Path) -> None:
    options = directives(path)
    assert {"--requeue", "--open-mode=append", "--nodes=1", "--ntasks=1"} <= {*options}
    assert [o for o in options if o.startswith("--output=slurm/logs/%x-")]
    assert not [o for o in options if o.startswith(("--partition", "--account"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error_and_never_use_srun(path: Path) -> None:
    commands = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert "set -euo pipefail" in commands or "example" in path.name
    assert not [line for line in commands if "srun" in line.split("#")[0].split()]


def test_scripts_are_clean_by_shellcheck() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck: pip install -e '.[dev]'")
    scripts = [*map(str, SCRIPTS), str(ROOT / ".ci" / "run")]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Under a batch system ----------------------------------------------------------------------------


def test_memory_is_the_least_of_all_cgroups_around(tmp_path: Path) -> None:
    for proc, names, base in (
        ("0::/job/step\n", ("memory.max", "memory.current"), tmp_path / "two"),
        ("5:memory:/job/step\n", ("memory.limit_in_bytes", "memory.usage_in_bytes"),
         tmp_path / "one"),
    ):  # fmt: skip
        job = base / ("memory/job" if "5:" in proc else "job")
        (job / "step").mkdir(parents=True)
        (tmp_path / "proc").write_text(proc)
        for folder, limit in ((job, "1000"), (job / "step", "max")):
            (folder / names[0]).write_text(limit)
            (folder / names[1]).write_text("400")
        assert host_memory(tmp_path / "proc", base) == {"total": 1000, "available": 600}


def test_sigterm_leaves_a_record_and_never_replaces_a_result(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*_: object) -> None:
        raise SystemExit(143)

    job = resolve_job(load_job(tree.job("a", 1, "scale: tiny\n")), gpus=0)
    monkeypatch.setattr(launch, "_measured", terminated)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(SystemExit):
        launch.run_job(job, tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*/*.json")
    record = read_record(path)
    assert (record["status"], record["software"]["slurm_job"]) == ("failed", "77")
    assert "143" in record["reason"]

    write_record(record | {"status": "ok"}, path)
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        launch.run_job(job, tmp_path / "results")
    assert path.read_bytes() == before
