"""A project in a folder of its own, where faults meet the commands that a user calls."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.synthetic import ROOT, quick
from wanreport.records.record import find_records

LONG = {"num_inference_steps": 400}


def until(true, seconds=120.0, pause=0.02):
    """What a condition gives as soon as it holds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(pause)
    return found


def runs(pid):
    """Whether a process is there, and not as a zombie that nobody has reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids):
    """Wait until none of these processes runs."""
    return until(lambda: not any(map(runs, pids)), 60)


class Scene:
    def __init__(self, root):
        self.root, self.tmp = root, root / "t"
        for folder in ("notebooks", "params/baseline", "results/local", "reports", "t"):
            (root / folder).mkdir(parents=True)

    def job(self, name, engine="layerwise", folder="params", **given):
        path = self.root / folder / f"{name}.yaml"
        seed = sum(name.encode())  # two jobs that ask for the same would share a record
        fields = quick(engine, name=name, seed=seed, **given).model_dump(exclude_unset=True)
        path.write_text(yaml.safe_dump(fields), encoding="utf-8")
        return str(path)

    def start(self, *words, prefix=(), **env):
        """Start a command as a shell in a terminal would; without a program's name, wanreport's."""
        command = [*prefix, sys.executable, "-m", *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONPATH": str(ROOT), **env},
            start_new_session=True, encoding="utf-8", errors="replace",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *words, **how):
        """Exit status, output and errors of a command that ends by itself; never a traceback."""
        process = self.start(*words, **how)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def ranks(self, name):
        """The ranks of a job that has begun its steps."""

        def find():
            for spec in self.tmp.glob("wanreport-job-*/spec.json"):
                made, progress = spec.read_text("utf-8"), spec.with_name("progress")
                ours = made and json.loads(made)["job"]["name"] == name
                if ours and progress.is_file() and "warmup" in progress.read_text("utf-8"):
                    pids = sorted(spec.parent.glob("rank*.pid"))
                    return [int(pid.read_text("utf-8")) for pid in pids]
            return []

        return until(find)

    def records(self):
        found = find_records(self.root / "results/local")
        return {record["job"]["name"]: record for _, record in found}

    def left_over(self):
        """What is half written, or was to be removed."""
        parts = [*(self.root / "results").rglob(".*"), *(self.root / "reports").rglob(".*")]
        return sorted(map(str, [*parts, *self.tmp.glob("wanreport-*")]))


def family(process):
    """A command's processes, itself among them."""
    own = psutil.Process(process.pid)
    return [own.pid, *(child.pid for child in own.children(recursive=True))]


MOUNTS = subprocess.call("unshare -rm mount -t tmpfs tmpfs /mnt 2>/dev/null", shell=True) == 0


def full(*folders, left=None):
    """What to put before a command so that it finds these folders full, and all else as it is.

    Each becomes a file system of its own that holds what the folder held. The command alone sees
    it; ``left`` gets the names that are there when it ends.
    """
    if not MOUNTS:
        pytest.skip("fills a file system of its own, and none may be mounted here")
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
