"""A Slurm of two nodes, both on this machine."""

from __future__ import annotations

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
        lines += [f"Slurmd{key}={{dir}}/slurmd-%n.{key}" for key in ("PidFile", "LogFile", "SpoolDir")]
        lines += [f"NodeName={name} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port()} CPUs=2"
                  " RealMemory=9000 State=UNKNOWN" for name in NODES]  # fmt: skip
        lines += [f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"]
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

    def task(self, file: str, *options: str) -> str:
        """Submit one task as a user would by hand; its id."""
        (self.root / "slurm/logs").mkdir(exist_ok=True)
        done = self.run("sbatch", "--parsable", *options, "slurm/jobs.sbatch", file)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def running() -> Iterator[Cluster]:
    made = Cluster(Path(subprocess.check_output(["mktemp", "-d", "/tmp/wr-XXXXXX"], text=True).strip()))
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.dir, ignore_errors=True)
