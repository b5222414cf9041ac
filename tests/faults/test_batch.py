"""The batch scripts on a real Slurm of one node, which lives as long as these tests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.faults import scene
from tests.faults.scene import ROOT

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.faults,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="starts Slurm's daemons, and so must be root"),
]

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
AuthInfo=socket={dir}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/jobcomp
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=9000 Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
JOB = {"engine": "resident", "num_gpus": 1, "num_frames": 5, "num_inference_steps": 2, "height": 64,
       "width": 64, "profile": False, "decode": False, "warmup_iterations": 0,
       "dit_layerwise_offload": False, "dit_cpu_offload": False}  # fmt: skip
until = partial(scene.until, pause=0.25)


def port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Slurm:
    """The daemons in a folder, and a checkout to submit from."""

    def __init__(self, folder):
        self.dir, self.root, self.daemons = folder, folder / "checkout", []
        self.host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        values = {"host": self.host, "dir": folder, "ctld": port(), "slurmd": port()}
        (folder / "slurm.conf").write_text(CONF.format(**values, cpus=os.cpu_count()))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path,
                    "PYTHONPATH": str(self.root)}  # fmt: skip
        for name in ("slurm", "notebooks", "wanreport", "params/campaign"):
            others = ("logs", "site.sh", "postbenchmark.py", "baseline.py", "__pycache__")
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns(*others))

    def start(self):
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.dir.chmod(0o755)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        paths = [f"--{option}={self.dir}/munge.{end}" for option, end in files.items()]
        self._daemon("munged", "--foreground", "--force", *paths)
        until((self.dir / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", self.host)
        until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T").stdout)

    def _daemon(self, *words):
        with (self.dir / f"{words[0]}.out").open("w") as log:
            self.daemons.append(
                subprocess.Popen(words, env=self.env, stdout=log, stderr=log, cwd=self.dir)
            )

    def stop(self):
        self.run("scancel", "--user=root")
        until(lambda: not self.queue(), 45)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *words):
        return subprocess.run(
            words, env=self.env, cwd=self.root, capture_output=True, text=True, timeout=120
        )

    def submit(self, *words):
        return self.run("slurm/submit.sh", *words)

    def queue(self):
        return self.run("squeue", "--noheader").stdout

    def job(self, name, folder="params/baseline", **fields):
        path = self.root / folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"name": name, **JOB, **fields}))
        return str(path)

    def ended(self):
        """The last state of each job and array task, as Slurm kept it."""
        path, found = self.dir / "jobcomp", {}
        for line in path.read_text().splitlines() if path.exists() else []:
            pairs = dict(word.split("=", 1) for word in line.split() if "=" in word)
            name = "_".join(filter(None, [pairs["Name"], pairs.get("ArrayTaskId")]))
            found[name] = pairs["JobState"]
        return found

    def records(self):
        paths = (self.root / "results" / "local").glob("*/*.json")
        return {made["job"]["name"]: made for made in (json.loads(p.read_text()) for p in paths)}

    def log(self, name=""):
        """What tasks have written to their logs, or that of one job."""
        paths = self.root.glob(f"slurm/logs/{name}*.log")
        return "\n".join(path.read_text() for path in paths)


@pytest.fixture(scope="module")
def slurm(request):
    """A module's cluster, or the one of this module."""
    kind = getattr(request.module, "Cluster", Slurm)
    made = kind(Path(tempfile.mkdtemp(prefix="wr-", dir="/tmp")))  # a socket's path must be short
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.dir, ignore_errors=True)


def test_states_records_and_the_queue(slurm):
    """One submission: a result, a failure, GPUs that torch does not see, and one cancelled."""
    good = slurm.job("good", "elsewhere", scale="tiny")
    bad = slurm.job("bad", scale="tiny", seed=1, timeout_s=1)
    blind = slurm.job("blind", scale="a14b")
    long = slurm.job("long", scale="tiny", clean_iterations=2000)
    (slurm.root / "params" / "draft.yaml").write_text("a: [\n")

    refused = slurm.submit(blind, "--", "--gres=gpu:9")
    assert refused.returncode != 0 and not slurm.queue()

    done = slurm.submit(good, bad, blind, long)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing" in slurm.submit(bad, blind, long).stdout  # they are in the queue

    until(lambda: "long: clean iteration" in slurm.log(), 120)
    slurm.run("scancel", "--name=wanreport-0gpu")
    until(lambda: not slurm.queue(), 120)

    states, records = slurm.ended(), slurm.records()
    assert states == {
        "wanreport-0gpu_0": "COMPLETED", "wanreport-0gpu_1": "FAILED",
        "wanreport-0gpu_2": "CANCELLED", "wanreport-1gpu_0": "FAILED",
        "wanreport-index": "COMPLETED",
    }, slurm.log()  # fmt: skip
    assert records["good"]["status"] == "ok"
    assert records["bad"]["status"] == "timeout"
    assert records["long"]["status"] == "failed" and "143" in records["long"]["reason"]
    assert records["blind"]["status"] == "unsupported" and "torch sees 0" in slurm.log()
    tasks = [records[name]["software"]["slurm_job"] for name in ("good", "bad", "long", "blind")]
    assert all("_" in task for task in tasks) and len(set(tasks)) == 4
    index = (slurm.root / "reports" / "index.html").read_text()
    assert all(name in index for name in ("good", "bad", "long", "blind"))

    assert "Nothing" in slurm.submit(good).stdout
    status = slurm.submit("--status").stdout
    assert all(name in status for name in ("good", "bad", "blind", "long"))
