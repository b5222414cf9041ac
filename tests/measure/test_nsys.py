"""Ranks under Nsight Systems, with a stand-in for `nsys`; and what it is told to record."""

import hashlib
from types import SimpleNamespace

import torch

from tests.synthetic import ROOT, quick
from wanreport.cli import main
from wanreport.engines.base import Timeline
from wanreport.measure import jobs, ranks
from wanreport.measure.profile import SwitchProfile

STAND_IN = """#!/bin/sh
for word; do case $word in --output=*) out=${word#--output=};; esac; done
echo "$@" > %s
while [ "$1" = profile ] || [ "${1#--}" != "$1" ]; do shift; done
"$@"; code=$?
echo export > "$out.sqlite"
exit $code
"""


def test_a_job_through_torchrun_under_a_stand_in_leaves_samples_of_its_ranks_and_an_export(
    tmp_path, monkeypatch
):
    nsys, told = tmp_path / "nsys", tmp_path / "told"
    nsys.write_text(STAND_IN % told)
    nsys.chmod(0o755)
    monkeypatch.setenv(ranks.NSYS, str(nsys))
    monkeypatch.setitem(ranks.KINDS, "cpu", ranks.TorchrunRanks)
    job, results = quick("resident"), tmp_path / "results"
    ((path, record),) = jobs.measure_jobs([job], results, tmp_path / "log")
    assert record["status"] == "ok", record["reason"]
    assert all(len(step["seconds"]) == 2 for step in record["iterations"][1]["steps"])
    (trace,) = record["traces"]
    data = (path.parent / trace["path"]).read_bytes()
    assert data == b"export\n" and trace["sha256"] == hashlib.sha256(data).hexdigest()
    assert {"--capture-range=cudaProfilerApi", "--export=sqlite"} <= {*told.read_text().split()}


def test_without_nsys_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["measure", "--nsys", f"{ROOT}/params/baseline/new-4gpu.yaml"]) == 1
    assert "nsys" in capsys.readouterr().err


def test_only_profiled_steps_are_captured_with_ranges_for_steps_and_blocks(tmp_path, monkeypatch):
    said = []
    nvtx = SimpleNamespace(range_start=lambda name: said.append(name) or name,
                           range_end=lambda name: said.append(f"end {name}"))  # fmt: skip
    profiler = SimpleNamespace(start=lambda: said.append("on"), stop=lambda: said.append("off"))
    for name, stand_in in (("nvtx", nvtx), ("profiler", profiler), ("synchronize", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setenv(ranks.NSYS, "nsys")
    timeline = Timeline(torch.device("cpu"))
    engine = SimpleNamespace(mover=SimpleNamespace(timeline=timeline, cuda=True))
    profile = SwitchProfile(tmp_path / "t", range(6), 3, engine, timeline=False)
    for index in range(6):
        with profile.step(index), timeline.during("compute", "block", "high_noise", 7):
            pass
    block = "block high_noise 7"
    steps = [[f"step {n}", block, f"end {block}", f"end step {n}"] for n in (2, 3)]
    assert said == ["on", *steps[0], *steps[1], "off"]
    assert [row["step"] for row in timeline.rows()] == [2, 3]
