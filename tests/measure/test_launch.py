"""What a job's record holds, and why a job that failed did. tests/faults has more of the latter."""

import gzip
import json
import time
from unittest.mock import Mock

import pytest
import torch

from tests.synthetic import quick
from wanreport.engines import ENGINES
from wanreport.jobs.settings import StreamSettings
from wanreport.measure import fit, jobs, machine, ranks
from wanreport.model.expert import A14B, EXPERTS, Expert
from wanreport.model.weights import HostStore, RandomWeights


def _ran(folder, job, **how):
    """The record of a job that went well, with counters as they must be; and the steps that ran."""
    ((_, record),) = jobs.measure_jobs([job], folder, folder / "log", **how)
    assert record["status"] == "ok", record["reason"]
    for iteration in record["iterations"]:
        assert len(iteration["counters"]) == job.num_gpus
        assert iteration["counters"] == iteration["expected_counters"]
    ran = {each["kind"]: [step["index"] for step in each["steps"]] for each in record["iterations"]}
    return record, ran


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_record_has_samples_of_every_rank_and_counters_equal_to_the_formula(engine, tmp_path):
    record, ran = _ran(tmp_path, quick(engine, decode=True, profile=True))
    switch = record["schedule"]["switch_step"]
    watched = {max(switch - 2, 0), switch - 1, switch}  # what a page can show
    whole = {"warmup": [0, switch], "clean": [0, 1, 2, 3], "profiled": sorted(watched)}
    assert ran == whole and list(ran) == list(whole) and record["job"]["scale"] == "tiny"
    for iteration in record["iterations"]:
        assert all(len(step["seconds"]) == 2 for step in iteration["steps"])
        assert iteration["memory"][0]["allocated_bytes"] is None  # a CPU has no device memory
        assert iteration["video_sha256"]
    assert record["cold_start_s"] > 0
    assert record["iterations"][1]["steps"][-1]["expert"] == "low_noise"
    assert [trace["rank"] for trace in record["traces"]] == [0, 1]
    for trace in record["traces"]:
        (file,) = tmp_path.glob(f"*/{trace['path']}")
        kineto = json.loads(gzip.decompress(file.read_bytes()))
        assert any("ProfilerStep" in event.get("name", "") for event in kineto["traceEvents"])
        assert file.stat().st_size == trace["bytes"] and "/" not in kineto["traceName"]
    wanted = {"compute", "collective", *["copy"] * (engine in ("layerwise", "swap", "stream"))}
    assert wanted <= {event["lane"] for event in record["timeline"]}
    assert {event["step"] for event in record["timeline"]} == {switch - 1, switch}
    assert ("plan" in record["engine"]) == (engine == "stream")


def test_a_sampled_schedule_runs_its_own_steps_and_profiles_the_switch(tmp_path):
    digests = set()
    for engine in ("resident", "layerwise", "stream"):
        sampled = {"num_inference_steps": 16, "sampled_steps": 5, "profile": True}
        record, ran = _ran(tmp_path, quick(engine, num_gpus=1, **sampled))
        switch, times = (record["schedule"][key] for key in ("switch_step", "timesteps"))
        assert switch > 3  # so that steps before it are left out
        sample = [0, 1, switch - 1, switch, switch + 1]
        assert ran == {"warmup": [0, switch], "clean": sample, "profiled": sample[1:4]}
        assert {event["step"] for event in record["timeline"]} == {switch - 1, switch}
        for iteration in record["iterations"]:
            moved = sum(step["h2d_bytes"][0] for step in iteration["steps"])
            assert engine == "resident" or moved == iteration["counters"][0]["h2d_bytes"]
            assert all(times[step["index"]] == step["timestep"] for step in iteration["steps"])
        digests.add(record["iterations"][1]["latents_sha256"])
    assert len(digests) == 1


def test_a_budget_makes_room_in_proportion(tmp_path):
    for budget, blocks in ((None, 2), (31.0, 6), (60.0, 12)):
        assert fit.blocks_in_budget(quick("stream", vram_budget_gb=budget), []) == blocks
    job = quick("stream", vram_budget_gb=31.0, num_gpus=1, profile=True)
    record, ran = _ran(tmp_path, job, plan_only=True)
    plan, inputs = record["engine"]["plan"], record["engine"]["plan"]["inputs"]
    assert ran == {} and plan["room"] == 6
    for candidate in plan["candidates"]:
        assert StreamSettings(**candidate["settings"]).buffers(6) <= 6
    assert inputs["ranks"] == 1 and inputs["sharded"] is None and inputs["collectives_s"] == 0
    assert inputs["local"]["rate"] > 0 and min(inputs["windows_s"]) > 0
    assert inputs["block_bytes"] == record["model"]["block_bytes"]


def test_a_branch_each_gives_the_bits_of_one_rank_with_both(tmp_path):
    two, _ = _ran(tmp_path, quick("stream", enable_cfg_parallel=True, profile=True))
    one, _ = _ran(tmp_path, quick("resident", num_gpus=1, profile=True))
    bits = [[each["latents_sha256"] for each in record["iterations"]] for record in (one, two)]
    assert bits[0] == bits[1]
    inputs = two["engine"]["plan"]["inputs"]
    assert inputs["branches"] == 1 and inputs["ranks"] == 2 and inputs["collectives_s"] == 0


@pytest.mark.parametrize(
    ("nodes", "changes", "reason", "hint"),
    [(1, {"engine": "stream", "vram_budget_gb": 2.0}, "2.0 holds 1 blocks", "at least 2.5 GB"),
     (1, {"scale": "a14b", "num_gpus": 64}, "64 GPUs", "scale: tiny"),
     (1, {"model_path": "x/y"}, "x/y", "`model_path`"),
     (1, {"checkpoint": "nowhere/w"}, "nowhere/w", "`checkpoint`"),
     (2, {"num_gpus": 3}, "3 ranks", "divides 3")],
)  # fmt: skip
def test_what_cannot_run_here_says_what_would(nodes, changes, reason, hint, tmp_path, monkeypatch):
    monkeypatch.setenv(machine.NODES, str(nodes))
    ((_, record),) = jobs.measure_jobs([quick(**changes)], tmp_path, tmp_path / "log")
    assert record["status"] == "unsupported"
    assert reason in record["reason"] and hint in record["hint"]


def test_host_memory_is_asked_for_before_it_is_taken():
    experts = {name: Expert(name, A14B, torch.bfloat16) for name in EXPERTS}
    layouts = list(HostStore(experts, RandomWeights()).layouts.values())
    store = 57_270_702_592  # both experts of A14B in bfloat16, as aligned buffers
    two, four = 2 * fit.HOST_OVERHEAD, 4 * fit.HOST_OVERHEAD
    for name, ranks_, nodes, needed in (
        ("layerwise", 4, 1, store + four), ("layerwise", 4, 2, store + two),  # one for a node
        ("swap", 4, 1, 4 * store + four), ("swap", 4, 2, 2 * store + two),  # one each
        ("fsdp", 4, 1, 87_598_661_888 + four),  # shards, rounded up to powers of two
        ("layerwise", 1, 1, 2 * store),  # a rehearsal: the ranks' copy, and a rank's device
    ):  # fmt: skip
        how = {"nodes": nodes, "rehearsal": ranks_ == 1}
        asked = ENGINES[name](prefetch=1), layouts, ranks_
        fit.require_host_memory(*asked, needed, **how)
        with pytest.raises(ranks.Unsupported) as refused:
            fit.require_host_memory(*asked, needed - 100_000_000, **how)
        reason, hint = refused.value.args
        assert " 0.1 GB" in reason and ("each node" in reason) == (nodes > 1)
        assert ("`checkpoint`" if ranks_ == 1 else "--mem") in hint


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_srun_starts_a_torchrun_on_each_node(nodes, tmp_path, monkeypatch):
    begin = Mock()
    monkeypatch.setenv(machine.NODES, str(nodes))
    monkeypatch.setattr(ranks.psutil, "Popen", begin)
    monkeypatch.delenv(ranks.NSYS, raising=False)
    ranks.TorchrunRanks(tmp_path, 8, "module")
    begin.assert_called_once()
    (words,) = begin.call_args.args
    assert f"--nproc-per-node={8 // nodes}" in words
    assert words[-4:] == ["-m", "wanreport.measure.start", "module", str(tmp_path)]
    assert (words[0] == "srun") == (f"--nnodes={nodes}" in words) == (nodes > 1)
    assert ({f"--nodes={nodes}", f"--ntasks={nodes}"} <= {*words}) == (nodes > 1)


def test_the_transport_is_read_from_nccls_own_words(tmp_path):
    said = [
        f"host:17:42 [0] NCCL INFO Channel 0{n}/0 : 0[0] -> 1[1] via {way}\n"
        for n, way in enumerate(("SHM/direct/direct", "P2P/CUMEM", "SHM/direct/direct"))
    ]
    (tmp_path / "nccl.17.log").write_text("".join([*said, "host:17:42 [0] NCCL INFO Connected\n"]))
    assert ranks.transport(tmp_path) == ["P2P/CUMEM", "SHM/direct/direct"]
    assert ranks.transport(tmp_path / "nothing") == []


# Why a job failed ---------------------------------------------------------------------------------

KILLED = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def test_torchrun_says_which_rank_was_killed(tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text(KILLED)
    monkeypatch.setattr(ranks, "GRACE", 2.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    until = time.monotonic() + 100
    begun = ranks.watching("cuda", "killed", {}, tmp_path, 2, until, lambda: None)
    results, codes = next(ranks.together([begun]))
    found = ranks.failure(100, results, codes, "step 3")
    assert found["status"] == "failed" and "rank 1 was killed by SIGKILL" in found["reason"]


OOM = {"status": "oom", "reason": "CUDA out of memory", "at": 1}
ECHO = {"status": "failed", "reason": "RuntimeError: Connection closed by peer", "at": 2}
WRONG = {"status": "failed", "reason": "ValueError: x", "at": 1}
LATE = {"status": "timeout", "reason": "Timed out waiting", "at": 2}


@pytest.mark.parametrize(
    ("results", "codes", "status", "words"),
    [([None, OOM], [None, 1], "oom", "rank 1: CUDA"),
     ([ECHO, None], [1, -11], "failed", "rank 1 was killed by SIGSEGV"),
     ([ECHO, WRONG], [1, 1], "failed", "rank 1: ValueError"),
     ([None, WRONG], [0, 1], "failed", "rank 1: ValueError"),
     ([None, WRONG], [None, 1], "failed", "rank 1: ValueError"),
     ([None, WRONG], [-15, 1], "failed", "rank 1: ValueError"),
     ([None, None], [None, -9], "failed", "rank 1 was killed by SIGKILL"),
     ([None, None], [-15, -9], "failed", "rank 1 was killed by SIGKILL"),
     ([None, None], [-15, 1], "failed", "rank 1 exited with 1"),
     ([None, None], [-15, None], "failed", "rank 0 was killed by SIGTERM"),
     ([LATE, None], [1, -9], "failed", "rank 1 was killed"),
     ([None, None], [None, None], "timeout", "timeout_s"),
     ([None, None], [0, 0], "failed", "without a result")],
)  # fmt: skip
def test_the_first_cause_is_named_and_not_its_echo(results, codes, status, words):
    found = ranks.failure(60, results, codes, "step 3")
    assert found["status"] == status
    assert words in found["reason"] and "step 3" in found["reason"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom"), (MemoryError(), "oom"),
     (RuntimeError("CUDA error: out of memory\nat x"), "oom"), (SystemExit(143), "failed"),
     (RuntimeError("Watchdog caught collective operation timeout: x"), "timeout"),
     (FloatingPointError("3 of 4"), "non-finite"), (ValueError("x"), "failed"),
     (ranks.Unsupported("x", "y"), "unsupported")],
    ids=repr,
)  # fmt: skip
def test_an_error_gives_a_job_its_status(error, status):
    found = ranks.outcome(error)
    assert found["status"] == status and len(found["reason"].splitlines()) == 1
    assert not error.args or str(error.args[0]).split("\n")[0] in found["reason"]
    assert found.get("hint") == ("y" if status == "unsupported" else None)
