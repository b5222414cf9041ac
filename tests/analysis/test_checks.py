"""Checks: each status of each check, and that a rehearsal never answers a question of time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic

from wanreport.analysis.checks import FURTHER, checks
from wanreport.analysis.frames import EMPTY, load
from wanreport.baseline.facts import Facts, load_facts
from wanreport.words import ratio

ROOT = Path(__file__).resolve().parents[2]
TIMED = {"spike-fsdp", "spike-swap", "slower-fsdp", "slower-swap", "scaling-fsdp", "scaling-swap",
         "scaling-resident", "pure", "prefetch", "overlap", "contention"}  # fmt: skip
ANY_SCALE = {"shift", "switch", "bits", "repeat", "formula"}
STATUSES = {"pass", "fail", "within noise", "not measured"}

Judge = Callable[[list[dict[str, Any]]], pd.DataFrame]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture
def judge(tmp_path: Path, facts: Facts) -> Judge:
    """Answers from made-up records, by check; the last of several machines'."""
    calls = iter(range(99))

    def answers(records: list[dict[str, Any]]) -> pd.DataFrame:
        frames = synthetic.load(records, tmp_path / str(next(calls)))
        return checks(frames, facts).set_index("check")

    return answers


def a14b(name: str, **how: Any) -> dict[str, Any]:
    """A record at full scale, without its timeline."""
    return synthetic.record(name, scale="a14b", **how) | {"timeline": []}


def small(engine: str, gpus: int, steady_s: float, board: str = "a", **how: Any) -> dict[str, Any]:
    """A record at 480p, on a machine with so many GPUs."""
    record = a14b(f"x-{engine}-{gpus}{board}", engine=engine, num_gpus=gpus, steady_s=steady_s,
                  height=480, width=832, **how)  # fmt: skip
    record["machine"] |= {"slug": f"{gpus}x", "class": f"{gpus}x", "gpu_count": gpus}
    for iteration in record["iterations"]:
        for rank, read in enumerate(iteration["gpu"]):
            read["board"] = f"{board}{rank}"
    return record


def later(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"started_at": "2026-04-01T12:00:00Z"}


def test_without_runs_nothing_is_measured_and_each_check_says_what_to_do(facts: Facts) -> None:
    found = checks(EMPTY, facts)
    assert set(found.check) == TIMED | ANY_SCALE and set(found.status) == {"not measured"}
    assert set(found.runs.map(len)) == {0}
    baseline = found[~found.check.isin(FURTHER)]
    assert baseline.command.str.match("wanreport measure params/").all()
    assert (baseline.minutes > 0).all() and set(baseline.expected) <= set(facts)


def test_rehearsals_answer_for_schedule_counters_and_bits_only(judge: Judge) -> None:
    status = judge(synthetic.all_jobs()).status
    assert set(status[status == "pass"].index) == ANY_SCALE
    assert set(status[status == "not measured"].index) == TIMED


@pytest.mark.parametrize(
    "options", [{"scale": "tiny"}, {"scale": "tiny", "device": "cuda"},
                {"scale": "a14b", "device": "cpu"}], ids=str)  # fmt: skip
def test_times_of_rehearsals_decide_nothing(judge: Judge, options: dict[str, str]) -> None:
    """The very times that decide at full scale are ignored anywhere else."""
    steady = {name: 30.0 if name == "new-4gpu" else 10.0 for name in synthetic.BASELINE}
    planted = [synthetic.record(name, steady_s=seconds, switch_s=99.0, **options)  # type: ignore[arg-type]
               for name, seconds in steady.items()]  # fmt: skip
    planted.append(synthetic.record("pure-4gpu", status="oom", **options))  # type: ignore[arg-type]
    assert set(judge(planted).status[sorted(TIMED)]) == {"not measured"}
    status = judge([a14b(n, steady_s=s, switch_s=99.0) for n, s in steady.items()]).status
    assert status["slower-fsdp"] == status["prefetch"] == "pass"


def test_full_scale_runs_answer_almost_all(judge: Judge) -> None:
    found = judge(synthetic.all_jobs("a14b"))
    by = {status: set(found.index[found.status == status]) for status in STATUSES}
    assert by == {
        "pass": {"slower-fsdp", "slower-swap", "spike-swap", "overlap", *ANY_SCALE},
        "fail": {"spike-fsdp", "pure"},  # this fsdp has no spike, and resident ran
        "within noise": {"prefetch", "scaling-fsdp", "scaling-swap"},
        "not measured": {"contention", "scaling-resident"},
    }
    settled = found[found.status.isin(["pass", "fail"])]
    assert set(settled.setting) == {""} and set(settled.command) == {""}


@pytest.mark.parametrize(
    ("new", "clocks", "status"),
    [
        (20.0, (1600, 1600), "within noise"),
        (18.0, (1600, 1600), "fail"),
        (20.5, (1600, 1600), "pass"),
        (20.5, (1560, 1600), "within noise"),
        (20.7, (None, None), "within noise"),
        (21.5, (None, None), "pass"),
    ],
)
def test_a_slower_engine_is_claimed_only_beyond_what_clocks_explain(
    judge: Judge, new: float, clocks: tuple[int | None, int | None], status: str
) -> None:
    runs = {"new-4gpu": new, "old-4gpu-fsdp": 20.0}
    jobs = [a14b(n, steady_s=s, sm_mhz=mhz)
            for (n, s), mhz in zip(runs.items(), clocks, strict=True)]  # fmt: skip
    found = judge(jobs).loc["slower-fsdp"]
    assert found.status == status and len(found.runs) == 2
    assert found.measured.startswith(ratio(new / 20 - 1))


def test_too_few_steps_have_no_interval_and_make_no_claim(judge: Judge) -> None:
    few = [a14b(n) for n in ("new-4gpu", "old-4gpu-fsdp")]
    for record in few:
        for iteration in record["iterations"]:
            iteration["steps"] = iteration["steps"][:5]
    found = judge(few).loc["slower-fsdp"]
    assert found.status == "not measured" and found.command and len(found.runs) == 2


@pytest.mark.parametrize(("on_six", "mhz", "status"), [
    (24.0, 1600, "pass"), (20.0, 1600, "fail"), (22.0, 1600, "within noise"),
    (22.5, 1700, "within noise"),  # clocks count either way
])  # fmt: skip
def test_the_gap_must_grow_with_the_gpus(
    judge: Judge, on_six: float, mhz: float, status: str
) -> None:
    jobs = [a14b("new-4gpu", steady_s=22.0, sm_mhz=mhz), a14b("old-4gpu-swap", steady_s=20.0),
            a14b("new-6gpu", steady_s=on_six), a14b("old-6gpu-swap", steady_s=20.0)]  # fmt: skip
    found = judge(jobs).loc["scaling-swap"]
    assert found.status == status and len(found.runs) == 4 and found.setting == ""
    assert judge(jobs[:3]).loc["scaling-swap"].runs == []
    for record in jobs[2:]:
        record["machine"] |= {"slug": "x", "class": "x", "gpu_name": "NVIDIA H200"}
    assert judge(jobs).loc["scaling-swap"].runs == []


def test_the_nearest_setup_answers_and_says_so_until_one_has_what_was_asked(judge: Judge) -> None:
    runs = [("layerwise", 1, 6.8), ("swap", 1, 6.7), ("layerwise", 2, 4.8), ("swap", 2, 4.4)]
    jobs = [small(*run) for run in runs]
    found = judge(jobs)
    slower = found.loc["slower-swap"].set_index("machine")
    assert set(slower.status) == {"pass"} and slower.command.str.len().gt(0).all()
    assert list(slower.setting) == ["1 GPU instead of 4, 480p instead of 720p",
                                    "2 GPUs instead of 4, 480p instead of 720p"]  # fmt: skip
    scaling = found.loc["scaling-swap"]
    assert scaling.status == "pass" and len(scaling.runs) == 4
    assert scaling.setting.startswith("1 and 2 GPUs instead of 4 and 6")
    assert found.loc["shift"].status == "pass" and "480p" in found.loc["shift"].setting
    # Four GPUs at 720p settle it, both branches on all of them; over NVLink they do not.
    four = [a14b(f"x-{engine}", engine=engine, num_gpus=4, steady_s=s, sampled_steps=8)
            for engine, s in (("layerwise", 8.7), ("swap", 8.4))]  # fmt: skip
    apart = [a14b(f"y-{engine}", engine=engine, num_gpus=4, steady_s=s, enable_cfg_parallel=True)
             for engine, s in (("layerwise", 7.0), ("swap", 9.0))]  # fmt: skip
    slower = judge([*jobs, *four, *apart]).loc["slower-swap"]
    own = slower[slower.setting == ""]
    assert own.status.tolist() == ["pass"] and set(slower.command) == {""}
    assert all("x-" in run for run in own.runs.iloc[0])
    for record in four:
        record["machine"] |= {"interconnect": "NVLink", "slug": "n", "class": "4x, NVLink"}
    linked = judge(four).loc["slower-swap"]
    assert linked.status == "pass" and "NVLink" in linked.setting and linked.command


def test_a_rehearsal_of_another_job_stands_for_no_job_of_the_baseline(judge: Judge) -> None:
    job = synthetic.record("x", engine="layerwise", num_gpus=2)
    assert judge([job]).status[["shift", "switch"]].tolist() == ["not measured"] * 2


@pytest.mark.parametrize(
    ("steady_s", "status"), [(19.0, "pass"), (20.0, "within noise"), (21.0, "fail")]
)
def test_the_deeper_prefetch_must_make_steps_shorter(
    judge: Judge, steady_s: float, status: str
) -> None:
    jobs = [a14b("new-4gpu-prefetch3", steady_s=steady_s), a14b("new-4gpu", steady_s=20.0)]
    assert judge(jobs).status["prefetch"] == status


def test_engines_are_compared_only_at_the_same_work_and_machine(judge: Judge) -> None:
    old_torch = a14b("old-4gpu-fsdp")
    old_torch["software"]["torch"] = "2.12.0"
    for changed in (
        a14b("old-4gpu-fsdp", compile=True),
        a14b("old-4gpu-fsdp", height=480, width=832),
        a14b("old-4gpu-fsdp", machine={"slug": "other", "class": "x"}),
        a14b("old-6gpu-fsdp"),
        old_torch,
    ):
        assert judge([a14b("new-4gpu"), changed]).status["slower-fsdp"] == "not measured"


def test_each_machine_has_its_own_answer(judge: Judge) -> None:
    there = {"slug": "2x-h200", "class": "2x NVIDIA H200, NVLink", "gpu_name": "NVIDIA H200"}
    found = judge([
        a14b("new-4gpu"), a14b("old-4gpu-fsdp"),
        a14b("new-4gpu", machine=there, steady_s=5.0),
        a14b("old-4gpu-fsdp", machine=there, steady_s=6.0),
    ]).loc["slower-fsdp"]  # fmt: skip
    assert sorted(found.status) == ["fail", "pass"] and found.machine.nunique() == 2


def test_runs_on_the_same_boards_count_even_if_a_later_one_ran(judge: Judge) -> None:
    jobs = [small("layerwise", 4, 20.0), small("swap", 4, 20.0)]
    found = judge([*jobs, later(small("layerwise", 4, 30.0, board="b"))]).loc["slower-swap"]
    assert found.status == "within noise" and "x-layerwise-4a" in found.runs[0]
    jobs = [small("resident", 1, 10.0), small("layerwise", 1, 10.1),
            small("resident", 2, 5.0), small("layerwise", 2, 5.5)]  # fmt: skip
    found = judge([*jobs, later(small("resident", 2, 5.4, board="b"))]).loc["scaling-resident"]
    assert found.measured.endswith(f"{ratio(0.1)} on 2") and found.status == "pass"


@pytest.mark.parametrize(("status", "reason", "height", "expected"), [
    ("oom", "CUDA out of memory", 720, ("pass", "")),
    ("oom", "OutOfMemoryError", 720, ("pass", "")),
    ("oom", "MemoryError: host", 720, ("not measured", "")),
    ("oom", "CUDA out of memory", 480, ("pass", "480p instead of 720p")),
    ("unsupported", "CUDA", 720, ("not measured", "")),
    ("failed", "CUDA", 720, ("not measured", "")),
    ("timeout", "CUDA", 720, ("not measured", "")),
])  # fmt: skip
def test_out_of_memory_is_a_result_and_unsupported_is_none(
    judge: Judge, status: str, reason: str, height: int, expected: tuple[str, str]
) -> None:
    size = {"height": height, "width": {720: 1280, 480: 832}[height]}
    found = judge([a14b("pure-4gpu", status=status, reason=reason, **size)]).loc["pure"]
    assert (found.status, found.setting) == expected


# Values in a record that are wrong ---------------------------------------------------------------


def wrong_shift(record: dict[str, Any]) -> None:
    record["model"]["flow_shift"] = 3.0
    record["schedule"]["switch_step"] = 9


def experts(steps: slice, expert: str, record: dict[str, Any]) -> None:
    for step in record["iterations"][1]["steps"][steps]:
        step["expert"] = expert


def other_bits(record: dict[str, Any]) -> None:
    record["iterations"][2]["latents_sha256"] = "0" * 64


def wrong_count(counter: str, record: dict[str, Any]) -> None:
    for counters in record["iterations"][-1]["counters"]:
        counters[counter] += 1


@pytest.mark.parametrize(("edit", "failed"), [
    (wrong_shift, {"shift", "switch"}), (other_bits, {"repeat"}),
    (partial(experts, slice(17, 18), "low_noise"), {"switch"}),  # too early
    (partial(experts, slice(None), "high_noise"), {"switch"}),  # never
    *((partial(wrong_count, counter), {"formula"})
      for counter in ("event_waits", "d2h_copies", "h2d_bytes")),
])  # fmt: skip
def test_one_wrong_value_in_a_record_is_found(judge: Judge, edit: Any, failed: set[str]) -> None:
    record = synthetic.record()
    edit(record)
    found = judge([record])
    assert set(found.index[found.status == "fail"]) == failed
    assert all(len(found.runs[check]) == 1 for check in failed)


def test_one_changed_bit_fails_and_names_the_runs(judge: Judge) -> None:
    records = [r for r in synthetic.all_jobs() if r["job"]["name"] != "old-6gpu-swap"]
    found = judge([*records, synthetic.record("old-6gpu-swap", latents="other bits")]).loc["bits"]
    assert (found.status, found.measured) == ("fail", "1 of 2 groups")
    assert len(found.runs) == 3 and all("6gpu" in run for run in found.runs)


def test_fsdp_on_a_gpu_may_differ(judge: Judge) -> None:
    same = [a14b(n) for n in ("new-4gpu", "old-4gpu-swap")]
    odd = a14b("old-4gpu-fsdp", latents="other kernels")
    assert judge([*same, odd]).status["bits"] == judge([same[0], odd]).status["bits"] == "pass"
    assert judge([same[0], a14b("old-4gpu-swap", latents="x")]).status["bits"] == "fail"


def test_derived_counters_are_not_called_equal(judge: Judge) -> None:
    assert judge([synthetic.record("old-4gpu-fsdp")]).status["formula"] == "not measured"


def test_failed_runs_never_break_a_check(judge: Judge) -> None:
    for status in ("failed", "oom", "timeout", "unsupported"):
        records = [synthetic.record(name, scale=scale, status=status)
                   for name in synthetic.BASELINE for scale in ("tiny", "a14b")]  # fmt: skip
        for record in records[::3]:
            record["machine"] = {"slug": f"unknown-{record['job']['name']}"}
        assert set(judge(records).status) <= STATUSES


def test_what_an_old_offload_hides_must_be_known_to_pass(judge: Judge) -> None:
    """The baseline expects something of both offloads: the new one alone can only fail."""
    both = [synthetic.record(n, scale="a14b") for n in ("new-4gpu", "old-4gpu-swap")]
    assert judge(both).status["overlap"] == "pass"
    alone = judge(both[:1]).loc["overlap"]
    assert alone.status == "not measured" and alone.setting and alone.command


def test_the_committed_runs(facts: Facts) -> None:
    """What they say of the checks; runs that come later may only add rows."""
    found = checks(load(["results"], ROOT), facts).set_index(["check", "machine"])
    told = {
        ("slower-swap", "2× H100, PCIe path"): "pass", ("slower-fsdp", "1× H100"): "fail",
        ("spike-swap", "2× H100, PCIe path"): "pass", ("spike-fsdp", "1× H200"): "fail",
        ("scaling-resident", "2× H100, PCIe path"): "pass",
        ("overlap", "2× H100, PCIe path"): "not measured",
        ("contention", "2× H100, PCIe path"): "pass",
        ("pure", "1× H100"): "fail", ("prefetch", "1× H100"): "within noise",
        ("bits", ""): "pass", ("repeat", ""): "pass", ("formula", ""): "pass",
    }  # fmt: skip
    assert {key: set(found.loc[[key]].status) for key in told} == {k: {v} for k, v in told.items()}
