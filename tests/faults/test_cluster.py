"""What a batch system does to tasks, on a Slurm of two nodes, both on this machine."""

from pathlib import Path

import psutil
import pytest

from tests.faults import test_batch
from tests.faults.test_batch import CONF, Slurm, port, until

slurm = test_batch.slurm
pytestmark = [*test_batch.pytestmark, pytest.mark.faults, pytest.mark.timeout(600)]
LONG = {"scale": "tiny", "clean_iterations": 2000}
NODES = ("n1", "n2")


class Cluster(Slurm):
    """Two slurmd under two names, without GPUs."""

    def __init__(self, folder):
        super().__init__(folder)
        ours = ("NodeName", "Partition", "GresTypes", "Slurmd")
        lines = [line for line in CONF.splitlines() if not line.startswith(ours)]
        for key in ("PidFile", "LogFile", "SpoolDir"):
            lines.append(f"Slurmd{key}={{dir}}/slurmd-%n.{key}")
        for name in NODES:
            where = f"NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port()}"
            lines.append(f"NodeName={name} {where} CPUs=2 RealMemory=9000 State=UNKNOWN")
            (folder / f"slurmd-{name}.SpoolDir").mkdir()
        nodes = f"Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
        lines.append(f"PartitionName=all {nodes}")
        text = "\n".join(lines).format(dir=folder, host=self.host, ctld=port())
        (folder / "slurm.conf").write_text(f"{text}\n")
        (folder / "gres.conf").unlink()
        self.host = NODES[0]

    def start(self):
        super().start()
        self._daemon("slurmd", "-D", "-N", NODES[1])
        until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split() == ["idle"] * 2)

    def task(self, *words):
        """Submit a task, or several, as a user would by hand: options and files; the job's id."""
        (self.root / "slurm/logs").mkdir(exist_ok=True)
        options = [word for word in words if word.startswith("--")]
        files = [word for word in words if word not in options]
        done = self.run("sbatch", "--parsable", *options, "slurm/jobs.sbatch", *files)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def begun(slurm, name):
    """Wait until a job has begun its iterations."""
    until(lambda: f"{name}: clean iteration" in slurm.log(), 240)


def over(slurm):
    until(lambda: not slurm.queue(), 240)


def test_the_time_limit(slurm):
    file = slurm.job("late", **LONG)
    slurm.task(file, "--time=1", "--signal=B:TERM@30", "--job-name=late")
    over(slurm)
    assert slurm.ended()["late"] in ("TIMEOUT", "FAILED"), slurm.log()
    record = slurm.records()["late"]
    assert record["status"] == "failed" and "143" in str(record["reason"])


def test_requeue(slurm):
    """A task that is put back begins again and ends well; the next one measures nothing."""
    file = slurm.job("again", scale="tiny", clean_iterations=60)
    task = slurm.task(file, "--job-name=again")
    begun(slurm, "again")
    assert slurm.run("scontrol", "requeue", task).returncode == 0
    until(lambda: "try 2" in slurm.log("again"), 240)
    over(slurm)
    assert slurm.ended()["again"] == "COMPLETED", slurm.log("again")
    (path,) = slurm.root.glob("results/local/*/again-*.json")
    assert slurm.records()["again"]["status"] == "ok"
    before = path.read_bytes()
    slurm.task(file, "--job-name=thrice")
    over(slurm)
    assert slurm.ended()["thrice"] == "COMPLETED" and path.read_bytes() == before


def test_a_dead_array_task(slurm):
    """The kernel of one task is killed: that task fails, and the other one ends well."""
    files = [slurm.job("dead", **LONG), slurm.job("alive", scale="tiny", clean_iterations=3)]
    slurm.task(files[0], files[1], "--array=0-1", "--job-name=array")
    begun(slurm, "dead")
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, here = process.info["cmdline"] or (), process.info["cwd"] == str(slurm.root)
        if here and any("logs/dead-" in word for word in words):  # papermill
            for kernel in process.children():
                kernel.kill()
    over(slurm)
    states = slurm.ended()
    assert (states["array_0"], states["array_1"]) == ("FAILED", "COMPLETED"), slurm.log()
    assert "dead" not in slurm.records() and slurm.records()["alive"]["status"] == "ok"
    assert slurm.submit("--status").returncode == 0


def test_a_missing_checkpoint_has_a_page(slurm):
    file = slurm.job("absent", scale="tiny", checkpoint="nowhere/weights")
    assert slurm.submit(file).returncode == 0
    over(slurm)
    assert slurm.ended()["wanreport-0gpu_0"] == "FAILED"
    assert slurm.ended()["wanreport-index"] == "COMPLETED"
    (page,) = slurm.root.glob("reports/jobs/*/absent.html")
    text = page.read_text("utf-8")
    assert "nowhere/weights" in text and "unsupported" in text
    index = (slurm.root / "reports/index.html").read_text("utf-8")
    assert "absent.html" in index and "nowhere/weights" in index


def test_ranks_on_two_nodes(slurm):
    """Four ranks, two on each node, share a host store a node and give the bits of one node."""
    how = {"engine": "layerwise", "dit_layerwise_offload": True, "num_gpus": 4, "scale": "tiny"}
    files = [slurm.job(name, clean_iterations=15, timeout_s=500, **how)
             for name in ("alone", "across")]  # fmt: skip
    slurm.task(files[0], "--job-name=alone")
    over(slurm)
    (alone,) = slurm.root.glob("results/local/*/alone-*.json")
    one = slurm.records()["alone"]
    alone.rename(slurm.dir / "alone.json")  # else its record would be across's too
    two = ["--nodes=2", "--ntasks=2", "--cpus-per-task=2", "--mem=4G"]
    slurm.task(files[1], "--job-name=across", *two)
    begun(slurm, "across")
    stores = {name: set() for name in NODES}
    ranks = 0
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "wanreport.measure.worker" in words and "torch.distributed.run" not in words:
            if process.environ().get("SLURM_CONF") != slurm.env["SLURM_CONF"]:
                continue
            maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            inodes = {line.split()[4] for line in maps if "wanreport-weights" in line}
            stores[process.environ()["SLURMD_NODENAME"]] |= inodes
            ranks += 1
    over(slurm)
    assert slurm.ended()["across"] == "COMPLETED", slurm.log("across")
    assert ranks == 4 and [len(each) for each in stores.values()] == [1, 1]
    assert stores["n1"] != stores["n2"]
    found = slurm.records()["across"]
    assert found["status"] == "ok"
    bits = [[it["latents_sha256"] for it in each["iterations"]] for each in (one, found)]
    assert bits[0] == bits[1]
    assert not [*slurm.root.glob("slurm/logs/nodes-*")]


def test_more_gpus_than_a_node_has(slurm):
    file = slurm.job("big", scale="a14b")
    done = slurm.submit(file)
    assert done.returncode != 0 and "GPUS_PER_NODE" in done.stderr and not slurm.queue()
