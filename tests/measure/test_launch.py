"""Whatever happens to a rank, a job ends in a record that says so."""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from wanreport.engines import ENGINES
from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.jobs.sglang import ENGINE_FLAGS
from wanreport.measure import fit, launch, ranks
from wanreport.model.expert import A14B, EXPERTS, Expert
from wanreport.model.weights import HostStore, RandomWeights
from wanreport.records.record import read_record

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"scale": "tiny", "num_inference_steps": 4, "decode": False}


def _job(engine: str = "layerwise", **changes: Any) -> Job:
    flags = ENGINE_FLAGS.get(engine, {})
    return Job(**{"name": "j", "engine": engine, "num_gpus": 2, **flags, **QUICK, **changes})


def _ran(folder: Path, job: Job, **how: Any) -> dict[str, Any]:
    """The record of a job that went well, with counters as they must be."""
    record = read_record(launch.run_job(job, folder, **how))
    assert record["status"] == "ok", record["reason"]
    for iteration in record["iterations"]:
        assert len(iteration["counters"]) == job.num_gpus
        assert iteration["counters"] == iteration["expected_counters"]
    return record


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_record_has_samples_of_every_rank_and_counters_equal_to_the_formula(
    engine: str, tmp_path: Path
) -> None:
    record = _ran(tmp_path, _job(engine, decode=True))
    assert record["job"]["scale"] == "tiny"
    assert [i["kind"] for i in record["iterations"]] == ["warmup", "clean", "profiled"]
    switch = record["schedule"]["switch_step"]
    ran = [[step["index"] for step in iteration["steps"]] for iteration in record["iterations"]]
    watched = [max(switch - 2, 0), switch - 1, switch]
    assert ran == [[0, switch], [0, 1, 2, 3], sorted({*watched})]  # what a page can show
    for iteration in record["iterations"]:
        assert all(len(step["seconds"]) == 2 for step in iteration["steps"])
        assert iteration["memory"][0]["allocated_bytes"] is None  # a CPU has no device memory
    assert all(iteration["video_sha256"] for iteration in record["iterations"])
    assert record["cold_start_s"] > 0
    assert record["iterations"][1]["steps"][-1]["expert"] == "low_noise"
    for trace in record["traces"]:
        (file,) = tmp_path.glob(f"*/{trace['path']}")
        assert file.stat().st_size == trace["bytes"]
        kineto = json.loads(gzip.decompress(file.read_bytes()))
        assert any("ProfilerStep" in event.get("name", "") for event in kineto["traceEvents"])
        assert "/" not in kineto["traceName"]
    assert [trace["rank"] for trace in record["traces"]] == [0, 1]
    lanes = {event["lane"] for event in record["timeline"]}
    assert {"compute", "collective"} <= lanes
    assert {event["step"] for event in record["timeline"]} == {switch - 1, switch}
    if engine in ("layerwise", "swap", "stream"):
        assert "copy" in lanes
    assert ("plan" in record["engine"]) == (engine == "stream")


def test_a_sampled_schedule_runs_its_own_steps_and_profiles_the_switch(tmp_path: Path) -> None:
    digests = set()
    for engine in ("resident", "layerwise", "stream"):
        job = _job(engine, num_gpus=1, num_inference_steps=16, sampled_steps=5)
        record = _ran(tmp_path, job)
        switch, times = (record["schedule"][key] for key in ("switch_step", "timesteps"))
        assert switch > 3  # so that steps before it are left out
        ran = {it["kind"]: [step["index"] for step in it["steps"]] for it in record["iterations"]}
        assert ran["warmup"] == [0, switch]
        assert ran["clean"] == [0, 1, switch - 1, switch, switch + 1]
        assert ran["profiled"] == [1, switch - 1, switch]
        assert {event["step"] for event in record["timeline"]} == {switch - 1, switch}
        for iteration in record["iterations"]:
            counted = iteration["counters"]
            assert counted == iteration["expected_counters"]
            moved = sum(step["h2d_bytes"][0] for step in iteration["steps"])
            assert engine == "resident" or moved == counted[0]["h2d_bytes"]
            assert all(times[step["index"]] == step["timestep"] for step in iteration["steps"])
        digests.add(record["iterations"][1]["latents_sha256"])
    assert len(digests) == 1


def test_a_budget_makes_room_in_proportion(tmp_path: Path) -> None:
    for budget, blocks in ((None, 2), (31.0, 6), (60.0, 12)):
        assert fit.blocks_in_budget(_job("stream", vram_budget_gb=budget), []) == blocks
    record = _ran(tmp_path, _job("stream", vram_budget_gb=31.0, num_gpus=1), plan_only=True)
    assert record["iterations"] == []
    plan = record["engine"]["plan"]
    assert plan["room"] == 6 and plan["planning_s"] > 0
    for candidate in plan["candidates"]:
        assert StreamSettings(**candidate["settings"]).buffers(6) <= 6
    inputs = plan["inputs"]
    assert inputs["ranks"] == 1 and inputs["sharded"] is None and inputs["collectives_s"] == 0
    assert inputs["local"]["rate"] > 0 and min(inputs["windows_s"]) > 0
    assert inputs["block_bytes"] == record["model"]["block_bytes"]


def test_a_branch_each_gives_the_bits_of_one_rank_with_both(tmp_path: Path) -> None:
    two = _ran(tmp_path, _job("stream", enable_cfg_parallel=True))
    one = _ran(tmp_path, _job("resident", num_gpus=1))
    for mine, other in zip(two["iterations"], one["iterations"], strict=True):
        assert mine["latents_sha256"] == other["latents_sha256"]
    inputs = two["engine"]["plan"]["inputs"]
    assert inputs["branches"] == 1 and inputs["ranks"] == 2 and inputs["collectives_s"] == 0


@pytest.mark.parametrize(
    ("changes", "reason", "hint"),
    [({"engine": "stream", "vram_budget_gb": 2.0}, "2.0 holds 1 blocks", "at least 2.5 GB"),
     ({"scale": "a14b", "num_gpus": 64}, "64 GPUs", "scale: tiny"),
     ({"model_path": "x/y"}, "x/y", "checkpoint"),
     ({"checkpoint": "nowhere/w", "scale": "tiny"}, "nowhere/w", "checkpoint")],
)  # fmt: skip
def test_what_cannot_run_here_says_what_would(
    changes: dict[str, Any], reason: str, hint: str, tmp_path: Path
) -> None:
    record = read_record(launch.run_job(_job(**changes), tmp_path))
    assert record["status"] == "unsupported"
    assert reason in record["reason"] and hint in record["hint"]


def test_host_memory_is_asked_for_before_it_is_taken() -> None:
    experts = {name: Expert(name, A14B, torch.bfloat16) for name in EXPERTS}
    layouts = list(HostStore(experts, RandomWeights()).layouts.values())
    store = 57_270_702_592  # both experts of A14B in bfloat16, as aligned buffers
    rank = fit.HOST_OVERHEAD
    needs = {
        "layerwise": store + 4 * rank,  # one copy for all ranks
        "swap": 4 * (store + rank),  # one each
        "fsdp": 87_598_661_888 + 4 * rank,  # shards, rounded up to powers of two
    }
    for name, needed in needs.items():
        engine = ENGINES[name](prefetch=1)
        fit.require_host_memory(engine, layouts, 4, needed)
        with pytest.raises(launch.Unsupported, match=r"0\.1 GB") as refused:
            fit.require_host_memory(engine, layouts, 4, needed - 100_000_000)
        assert "--mem" in refused.value.hint and "4 GPUs" in str(refused.value)
    rehearsed = 2 * store  # the copy that ranks share, and the device of one
    fit.require_host_memory(ENGINES["layerwise"](prefetch=1), layouts, 1, rehearsed, rehearsal=True)
    with pytest.raises(launch.Unsupported, match=r"114\.5 GB") as refused:
        fit.require_host_memory(ENGINES["layerwise"](prefetch=1), layouts, 1, 0, rehearsal=True)
    assert "`checkpoint`" in refused.value.hint and "--mem" not in refused.value.hint


def test_the_transport_is_read_from_nccls_own_words(tmp_path: Path) -> None:
    (tmp_path / "nccl.17.log").write_text(
        "host:17:42 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via SHM/direct/direct\n"
        "host:17:42 [0] NCCL INFO Channel 01/0 : 1[1] -> 0[0] via P2P/CUMEM\n"
        "host:17:42 [0] NCCL INFO Connected all rings\n"
    )
    assert ranks.transport(tmp_path) == ["P2P/CUMEM", "SHM/direct/direct"]
    assert ranks.transport(tmp_path / "nothing") == []


def test_a_bar_names_the_job_and_its_iteration(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("loading\nclean 1 4 8\n")
    log = io.StringIO()
    progress = launch.Progress("j", tmp_path / "progress", log)
    progress.update()
    assert {"j", "clean"} <= {*re.findall(r"\w+", str(progress.bar.desc))}
    assert progress.last.endswith("5 of 8") and len(log.getvalue().splitlines()) == 1


KILLED = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def test_torchrun_says_which_rank_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun = ranks.TorchrunRanks(tmp_path / "spec", tmp_path, 2, "killed")
    end = time.monotonic() + 100
    results, codes = ranks.watch(begun, tmp_path, 2, end, lambda: None)
    found = ranks.failure(100, results, codes, "step 3")
    assert found["status"] == "failed" and "rank 1 was killed by SIGKILL" in found["reason"]


def _told(status: str, reason: str, at: float) -> dict[str, Any]:
    return {"status": status, "reason": reason, "at": at}


ECHO = "RuntimeError: Connection closed by peer"


@pytest.mark.parametrize(
    ("results", "codes", "status", "words"),
    [
        ([None, _told("oom", "CUDA out of memory", 1)], [None, 1], "oom", "rank 1: CUDA"),
        ([_told("failed", ECHO, 2), None], [1, -11], "failed", "rank 1 was killed by SIGSEGV"),
        ([_told("failed", ECHO, 2), _told("failed", "CheckpointError: x", 1)], [1, 1], "failed",
         "rank 1: CheckpointError"),
        ([None, _told("failed", "ValueError: x", 1)], [0, 1], "failed", "rank 1: ValueError"),
        ([None, _told("failed", "ValueError: x", 1)], [None, 1], "failed", "rank 1: ValueError"),
        ([None, None], [None, -9], "failed", "rank 1 was killed by SIGKILL"),
        ([None, None], [-15, -9], "failed", "rank 1 was killed by SIGKILL"),
        ([None, None], [-15, 1], "failed", "rank 1 exited with 1"),
        ([None, _told("failed", "ValueError: x", 1)], [-15, 1], "failed", "rank 1: ValueError"),
        ([None, None], [-15, None], "failed", "rank 0 was killed by SIGTERM"),
        ([_told("timeout", "Timed out waiting", 2), None], [1, -9], "failed", "rank 1 was killed"),
        ([None, None], [None, None], "timeout", "timeout_s"),
        ([None, None], [0, 0], "failed", "without a result"),
    ],
)  # fmt: skip
def test_the_first_cause_is_named_and_not_its_echo(
    results: list[Any], codes: list[int | None], status: str, words: str
) -> None:
    found = ranks.failure(60, results, codes, "step 3")
    assert found["status"] == status
    assert words in found["reason"]
    assert "step 3" in found["reason"]
