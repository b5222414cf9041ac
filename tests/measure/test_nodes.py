"""The arithmetic of jobs on several nodes. tests/faults/test_cluster.py runs one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wanreport.engines import ENGINES
from wanreport.jobs.job import Job
from wanreport.measure import fit, jobs, machine, ranks

GB = 10**9


class Block:
    """What is asked of a layout: its size."""

    nbytes = 40 * GB


@pytest.mark.parametrize(
    ("engine", "nodes", "needed"),
    [("layerwise", 1, 80 + 4 * 4), ("layerwise", 2, 80 + 2 * 4),  # a copy for each node's ranks
     ("swap", 1, 4 * 80 + 4 * 4), ("swap", 2, 2 * 80 + 2 * 4)],  # one each
)  # fmt: skip
def test_each_node_needs_room_for_its_own_ranks(engine: str, nodes: int, needed: int) -> None:
    asked: Any = ENGINES[engine](prefetch=1), [Block(), Block()], 4
    fit.require_host_memory(*asked, needed * GB, nodes=nodes)
    with pytest.raises(ranks.Unsupported, match=r" 1\.0 GB are missing") as refused:
        fit.require_host_memory(*asked, (needed - 1) * GB, nodes=nodes)
    assert ("each node" in str(refused.value)) == (nodes > 1)


def test_ranks_are_as_many_on_each_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.NODES, "2")
    odd = Job(name="j", engine="stream", num_gpus=3, scale="tiny")
    ((_, record),) = jobs.measure_jobs([odd], tmp_path, tmp_path / "log")
    assert record["status"] == "unsupported" and "3" in record["reason"] and record["hint"]


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_srun_starts_a_torchrun_on_each_node(
    nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.NODES, str(nodes))
    begun: list[list[str]] = []

    def keep(command: list[str], **_: Any) -> subprocess.Popen[bytes]:
        begun.append(command)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(ranks.psutil, "Popen", keep)
    monkeypatch.delenv(ranks.NSYS, raising=False)
    ranks.TorchrunRanks(tmp_path / "spec", tmp_path, 8).process.wait()
    (words,) = begun
    assert f"--nproc-per-node={8 // nodes}" in words and str(tmp_path / "spec") in words
    assert (words[0] == "srun") == (f"--nnodes={nodes}" in words) == (nodes > 1)
    assert ({f"--nodes={nodes}", f"--ntasks={nodes}"} <= {*words}) == (nodes > 1)
