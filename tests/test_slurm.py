"""The batch scripts without a Slurm: what would be submitted, and what a task does."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wanreport.jobs.job import load_job

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "slurm").glob("*.s*"))
BATCH_SCRIPTS = [path for path in SCRIPTS if path.suffix == ".sbatch"]

WANREPORT = f"""#!/bin/sh
export PYTHONPATH={shlex.quote(str(ROOT))}
exec {shlex.quote(sys.executable)} -m wanreport "$@"
"""
# Prints an id as sbatch --parsable does on a federation, and keeps its arguments.
SBATCH = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
echo "$((100 + $(wc -l < "$CALLS")));cluster"
"""
# Stand-ins that keep their arguments and environment; papermill also swallows the notebook.
JUPYTEXT = '#!/bin/sh\necho "jupytext $*" >> "$CALLS"; echo NOTEBOOK\n'
PAPERMILL = """#!/bin/sh
echo "papermill $*" >> "$CALLS"
cat >> "$CALLS"
env >> "$CALLS"
echo '{"cells": [{"cell_type": "code", "execution_count": '"${LAST:-1}"'}]}' > "$2"
exit ${PAPERMILL_STATUS:-0}
"""


def write_job(path: Path, num_gpus: int, extra: str = "") -> Path:
    path.write_text(
        f"name: {path.stem}\nengine: resident\nnum_gpus: {num_gpus}\n"
        f"dit_layerwise_offload: false\ndit_cpu_offload: false\n{extra}"
    )
    return path


class Tree:
    """A copy of what the scripts touch, with stand-ins for the programs that they call."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a checkout"  # a space, because people's folders have them
        self.bin = root / "bin"
        self.calls_file = root / "calls"
        self.params = self.root / "params" / "baseline"
        shutil.copytree(ROOT / "slurm", self.root / "slurm", ignore=shutil.ignore_patterns("logs"))
        (self.root / "notebooks").mkdir()
        (self.root / "notebooks" / "job.py").touch()
        self.params.mkdir(parents=True)
        self.bin.mkdir()
        self.program("wanreport", WANREPORT)
        self.program(
            "python",
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"\n',
        )

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(
        self, *command: str | Path, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.root,
            env={
                **os.environ,
                "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
                "CALLS": str(self.calls_file),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def submit(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", self.root / "slurm" / "submit.sh", *arguments, **env)

    def task(self, *files: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        (self.root / "slurm" / "logs").mkdir(exist_ok=True)
        env = {"SLURM_SUBMIT_DIR": str(self.root), **env}
        script = shutil.copy(self.root / "slurm" / "jobs.sbatch", self.bin / "slurm_script")
        return self.run("bash", script, *files, cwd=self.bin, **env)  # as from Slurm's spool

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_one_array_per_gpu_count_then_one_index_job_after_any(tree: Tree) -> None:
    for name, gpus in (("a", 4), ("b", 6), ("c", 4), ("d", 4)):
        write_job(tree.params / f"{name}.yaml", gpus)
    tree.program("sbatch", SBATCH)
    done = tree.submit()
    assert done.returncode == 0, done.stderr
    four, six, index = tree.calls
    assert "--gres=gpu:4 --array=0-2 slurm/jobs.sbatch" in four
    assert four.endswith(" ".join(f"params/baseline/{name}.yaml" for name in "acd"))
    assert "--gres=gpu:6 --array=0-0 slurm/jobs.sbatch params/baseline/b.yaml" in six
    assert "--dependency=afterany:101:102 " in index
    assert "afterok" not in index
    assert index.endswith("slurm/index.sbatch")
    assert "--gres" not in index
    assert (tree.root / "slurm" / "logs").is_dir()


def test_a_dry_run_prints_the_commands_and_needs_no_slurm(tree: Tree) -> None:
    write_job(tree.params / "a.yaml", 4)
    write_job(tree.params / "b.yaml", 6)
    tree.program("sbatch", "#!/bin/sh\nexit 1\n")
    done = tree.submit("--dry-run")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[:2] for words in commands] == [["sbatch", "--parsable"]] * 3
    assert "--dependency=afterany:ID-OF-4GPU:ID-OF-6GPU" in commands[-1]


def test_files_options_and_the_gpu_type_are_passed_on(tree: Tree, tmp_path: Path) -> None:
    write_job(tree.params / "not-asked-for.yaml", 2)
    mine = write_job(tmp_path / "mine.yaml", 2)
    done = tree.run(
        *["bash", tree.root / "slurm" / "submit.sh", "--dry-run", "mine.yaml"],
        *["--", "--partition=fast gpus"],
        cwd=tmp_path,
        GPU_TYPE="h100",
    )
    assert done.returncode == 0, done.stderr
    jobs, index = (shlex.split(line) for line in done.stdout.splitlines())
    assert "--gres=gpu:h100:2" in jobs
    assert [(tree.root / jobs[-1]).resolve()] == [mine]
    assert "--partition=fast gpus" in jobs
    assert "--partition=fast gpus" in index


def test_one_bad_file_and_nothing_is_submitted(tree: Tree) -> None:
    write_job(tree.params / "good.yaml", 4)
    write_job(tree.params / "bad.yaml", 4, extra="heigth: 720\n")
    tree.program("sbatch", SBATCH)
    done = tree.submit()
    assert done.returncode != 0
    assert "bad.yaml" in done.stderr
    assert "heigth" in done.stderr
    assert tree.calls == []


def test_an_unknown_option_of_the_submit_script_is_refused(tree: Tree) -> None:
    done = tree.submit("--partition=x")
    assert done.returncode == 2
    assert "after --" in done.stderr


def test_help_explains_the_submit_script(tree: Tree) -> None:
    done = tree.submit("--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
    assert "set -euo" not in done.stdout


def test_a_task_runs_papermill_on_its_own_params_file(tree: Tree) -> None:
    files = [write_job(tree.params / f"{name}.yaml", 4) for name in ("a", "b")]
    tree.program("jupytext", JUPYTEXT)
    tree.program("papermill", PAPERMILL)
    done = tree.task(*files, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="77")
    assert done.returncode == 0, done.stderr
    papermill = next(call for call in tree.calls if call.startswith("papermill"))
    assert papermill.startswith("papermill - slurm/logs/b-77_1.ipynb")
    assert str(files[1]) in papermill
    assert "NOTEBOOK" in tree.calls  # what jupytext wrote reached papermill
    variables = dict(call.split("=", 1) for call in tree.calls if "=" in call)
    assert variables["PYTHONNOUSERSITE"] == "1"
    own = [variables[name] for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")]
    scratch = {Path(folder).parent for folder in own}
    assert len(scratch) == 1
    assert not scratch.pop().exists()  # removed when the task ends


def test_a_failed_notebook_fails_its_task(tree: Tree) -> None:
    job = write_job(tree.params / "a.yaml", 4)
    tree.program("jupytext", JUPYTEXT)
    tree.program("papermill", PAPERMILL)
    done = tree.task(job, SLURM_ARRAY_TASK_ID="0", PAPERMILL_STATUS="138")
    assert done.returncode == 138
    assert "slurm/logs/a-0_0.ipynb" in done.stdout


def test_a_killed_kernel_fails_its_task(tree: Tree) -> None:
    job = write_job(tree.params / "a.yaml", 4)
    tree.program("jupytext", JUPYTEXT)
    tree.program("papermill", PAPERMILL)
    done = tree.task(job, SLURM_ARRAY_TASK_ID="0", LAST="null")
    assert done.returncode == 2
    assert "slurm/logs/a-0_0.ipynb ended before its last cell" in done.stderr


def test_the_time_limit_is_well_above_the_jobs_own() -> None:
    limit = next(o for o in directives(ROOT / "slurm/jobs.sbatch") if o.startswith("--time="))
    hours, minutes, _ = map(int, limit.removeprefix("--time=").split(":"))
    jobs = [load_job(file) for file in (ROOT / "params/baseline").glob("*.yaml")]
    assert max(job.timeout_s for job in jobs) + 1800 <= hours * 3600 + minutes * 60


@pytest.mark.parametrize("extra", ["heigth: 720\n", "seed: 1e-3\n", '"x=1\\nprint(1)": 2\n'])
def test_a_task_refuses_a_bad_params_file_before_papermill(tree: Tree, extra: str) -> None:
    job = write_job(tree.params / "a.yaml", 4, extra=extra)
    tree.program("papermill", PAPERMILL)
    done = tree.task(job, SLURM_ARRAY_TASK_ID="0")
    assert done.returncode != 0
    assert "a.yaml" in done.stderr
    assert tree.calls == []


def test_a_task_without_a_params_file_says_so(tree: Tree) -> None:
    done = tree.task(write_job(tree.params / "a.yaml", 4), SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 2
    assert "array task 1 has no params file" in done.stderr


def test_a_task_outside_the_repository_says_so(tree: Tree, tmp_path: Path) -> None:
    done = tree.task("a.yaml", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "submit from the repository's folder" in done.stderr


def directives(path: Path) -> list[str]:
    """The #SBATCH options that Slurm would read: those above the first command."""
    options = []
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            options += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    return options


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda path: path.name)
def test_a_requeued_batch_job_appends_to_its_log(path: Path) -> None:
    assert {"--requeue", "--open-mode=append", "--nodes=1", "--ntasks=1"} <= set(directives(path))
    output = next(o for o in directives(path) if o.startswith("--output="))
    assert output.startswith("--output=slurm/logs/%x-")


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda path: path.name)
def test_no_real_partition_or_account_is_committed(path: Path) -> None:
    assert not [o for o in directives(path) if o.startswith(("--partition", "--account"))]
    assert "##SBATCH --partition=EDIT" in path.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error_and_never_use_srun(path: Path) -> None:
    commands = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert "set -euo pipefail" in commands
    assert not [line for line in commands if "srun" in line.split("#")[0].split()]


def test_scripts_are_clean_by_shellcheck() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck: pip install -e '.[dev]'")
    done = subprocess.run(
        [shellcheck, *map(str, SCRIPTS), str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
