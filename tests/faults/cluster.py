"""A Slurm of two nodes, both on this machine."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.test_slurm_real import CONF, Slurm, port, until

NODES = ("n1", "n2")


class Cluster(Slurm):
    """Two slurmd under two names, without GPUs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ours = ("NodeName", "Partition", "GresTypes", "Slurmd")
        lines = [line for line in CONF.splitlines() if not line.startswith(ours)]
        for key in ("PidFile", "LogFile", "SpoolDir"):
            lines.append(f"Slurmd{key}={{dir}}/slurmd-%n.{key}")
        for name in NODES:
            where = f"NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port()}"
            lines.append(f"NodeName={name} {where} CPUs=2 RealMemory=9000 State=UNKNOWN")
        nodes = f"Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
        lines.append(f"PartitionName=all {nodes}")
        text = "\n".join(lines).format(dir=folder, host=self.host, ctld=port())
        (folder / "slurm.conf").write_text(f"{text}\n")
        (folder / "gres.conf").unlink()
        for name in NODES:
            (folder / f"slurmd-{name}.SpoolDir").mkdir()
        self.host = NODES[0]

    def start(self) -> None:
        super().start()
        self._daemon("slurmd", "-D", "-N", NODES[1])
        until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split() == ["idle"] * 2)

    def task(self, *words: str) -> str:
        """Submit a task, or several, as a user would by hand: files, and options; the job's id."""
        (self.root / "slurm/logs").mkdir(exist_ok=True)
        files = [word for word in words if not word.startswith("--")]
        options = [word for word in words if word.startswith("--")]
        done = self.run("sbatch", "--parsable", *options, "slurm/jobs.sbatch", *files)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def log(self, name: str = "") -> str:
        """What tasks have written to their logs, or that of one job."""
        paths = self.root.glob(f"slurm/logs/{name}*.log")
        return "\n".join(path.read_text("utf-8") for path in paths)


@contextmanager
def running() -> Iterator[Cluster]:
    made = Cluster(
        Path(subprocess.check_output(["mktemp", "-d", "/tmp/wr-XXXXXX"], text=True).strip())
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.dir, ignore_errors=True)
