"""A project in a folder of its own, where faults meet the commands that a user calls."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from wanreport.jobs.sglang import ENGINE_FLAGS
from wanreport.records.record import find_records

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"scale": "tiny", "num_gpus": 2, "num_inference_steps": 4, "decode": False,
         "profile": False}  # fmt: skip
LONG = {"num_inference_steps": 400}


def until(true: Callable[[], Any], seconds: float = 120.0, pause: float = 0.02) -> Any:
    """What a condition gives as soon as it holds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(pause)
    return found


def runs(pid: int) -> bool:
    """Whether a process is there, and not as a zombie that nobody has reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: Sequence[int]) -> bool:
    """Wait until none of these processes runs."""
    return bool(until(lambda: not any(map(runs, pids)), 60))


class Scene:
    def __init__(self, root: Path) -> None:
        self.root, self.tmp = root, root / "t"
        for folder in ("notebooks", "params/baseline", "results/local", "reports", "t"):
            (root / folder).mkdir(parents=True)

    def job(
        self, name: str, engine: str = "layerwise", folder: str = "params", **given: Any
    ) -> str:
        path = self.root / folder / f"{name}.yaml"
        fields = {"name": name, "engine": engine, **ENGINE_FLAGS.get(engine, {}), **QUICK, **given}
        seed = sum(name.encode())  # two jobs that ask for the same would share a record
        path.write_text(yaml.safe_dump(fields | {"seed": seed}), encoding="utf-8")
        return str(path)

    def start(
        self, *words: str | Path, prefix: Sequence[str] = (), **env: str
    ) -> subprocess.Popen[str]:
        """Start a command as a shell in a terminal would; without a program's name, wanreport's."""
        command = [*prefix, sys.executable, "-m", *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONPATH": str(ROOT), **env},
            start_new_session=True, encoding="utf-8", errors="replace",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *words: str | Path, **how: Any) -> tuple[int, str, str]:
        """Exit status, output and errors of a command that ends by itself; never a traceback."""
        process = self.start(*words, **how)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def ranks(self, name: str) -> list[int]:
        """The ranks of a job that has begun its steps."""

        def find() -> list[int]:
            for spec in self.tmp.glob("wanreport-job-*/spec.json"):
                made, progress = spec.read_text("utf-8"), spec.with_name("progress")
                ours = made and json.loads(made)["job"]["name"] == name
                if ours and progress.is_file() and "warmup" in progress.read_text("utf-8"):
                    pids = sorted(spec.parent.glob("rank*.pid"))
                    return [int(pid.read_text("utf-8")) for pid in pids]
            return []

        return list(until(find))

    def records(self) -> dict[str, dict[str, Any]]:
        found = find_records(self.root / "results/local")
        return {record["job"]["name"]: record for _, record in found}

    def left_over(self) -> list[str]:
        """What is half written, or was to be removed."""
        parts = [*(self.root / "results").rglob(".*"), *(self.root / "reports").rglob(".*")]
        return sorted(map(str, [*parts, *self.tmp.glob("wanreport-*")]))


def family(process: subprocess.Popen[str]) -> list[int]:
    """A command's processes, itself among them."""
    own = psutil.Process(process.pid)
    return [own.pid, *(child.pid for child in own.children(recursive=True))]


MOUNTS = (
    shutil.which("unshare") is not None
    and not subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    ).returncode
)


def full(*folders: Path | str, left: Path | None = None) -> list[str]:
    """What to put before a command so that it finds these folders full, and all else as it is.

    Each becomes a file system of its own that holds what the folder held. The command alone sees
    it; ``left`` gets the names that are there when it ends.
    """
    lines = ["set -e"]
    for folder in map(str, folders):
        copied = folder != "/dev/shm"
        lines += ["old=$(mktemp -d)", f'cp -a "{folder}/." $old/'] if copied else []
        lines += [f'mount -t tmpfs -o size=256k tmpfs "{folder}"']
        lines += [f'cp -a $old/. "{folder}/"', "rm -r $old"] if copied else []
        lines += [f'cat /dev/zero > "{folder}/.fill" 2>/dev/null || true']
    end = f'"$@" || code=$?; find {folders[0]} -type f > {left}; exit ${{code:-0}}'
    script = "\n".join([*lines, end if left else 'exec "$@"'])
    return ["unshare", "-rm", "sh", "-c", script, "sh"]
