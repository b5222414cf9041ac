"""Checks: each status of each check, and that a rehearsal never answers a question of time."""

from itertools import cycle
from pathlib import Path

import pytest
import synthetic
from madeup import frames, on, run

from wanreport.analysis.checks import CHECKS, checks
from wanreport.analysis.frames import EMPTY, of_record
from wanreport.baseline.facts import load_facts
from wanreport.records.files import parse_record
from wanreport.words import ratio

FACTS = load_facts()
ANY_SCALE = {"shift", "switch"}


def judged(found):
    return checks(found, FACTS).set_index("check")


def judge(*rows):
    return judged(frames(*rows))


@pytest.fixture
def read(tmp_path_factory):
    """Frames of made-up records."""
    return lambda *records: synthetic.load([*records], tmp_path_factory.mktemp("made"))


def test_without_runs_nothing_is_measured():
    found = checks(EMPTY, FACTS)
    assert list(found.check) == list(CHECKS) and set(found.status) == {"not measured"}
    assert set(found.runs.map(len)) == {0} and set(found.expected) <= set(FACTS)


@pytest.mark.parametrize("options", [
    {"scale": "tiny"}, {"scale": "tiny", "device": "cuda"}, {"scale": "a14b", "device": "cpu"},
])  # fmt: skip
def test_rehearsals_answer_for_the_schedule_only(read, options):
    """The very times that decide at full scale are ignored anywhere else."""
    records = [synthetic.record(n, steady_s=30.0 if n == "new-4gpu" else 10.0, switch_s=99.0,
                                **options) for n in synthetic.BASELINE]  # fmt: skip
    records.append(synthetic.record("pure-4gpu", seed=1, status="oom", **options))
    status = judged(read(*records)).status
    assert set(status.index[status == "pass"]) == ANY_SCALE
    assert set(status[status != "pass"]) == {"not measured"}


def test_full_scale_runs_answer_almost_all(read):
    found = judged(read(*synthetic.all_jobs("a14b")))
    by = {status: set(here.index) for status, here in found.groupby("status")}
    assert by == {
        "pass": {"slower-fsdp", "slower-swap", "spike-swap", "overlap", *ANY_SCALE},
        "fail": {"spike-fsdp", "pure"},  # this fsdp has no spike, and resident ran
        "within noise": {"prefetch", "scaling-fsdp", "scaling-swap"},
        "not measured": {"contention", "scaling-resident"},
    }
    assert set(found.setting[found.status.isin(["pass", "fail"])]) == {""}


@pytest.mark.parametrize(("check", "new", "other", "status"), [
    ("slower-fsdp", {"step": 20.1}, on(4, "fsdp"), "within noise"),
    ("slower-fsdp", {"step": 18.0}, on(4, "fsdp"), "fail"),
    ("slower-fsdp", {"step": 20.5}, on(4, "fsdp"), "pass"),
    ("slower-fsdp", {"step": 20.5, "sm_mhz": 1560}, on(4, "fsdp"), "within noise"),
    ("slower-fsdp", {"step": 20.5, "n": 5}, on(4, "fsdp"), "not measured"),
    *(("prefetch", {"step": step, "prefetch": 3}, on(4, "layerwise"), status)
      for step, status in ((19.0, "pass"), (20.0, "within noise"), (21.0, "fail"))),
])  # fmt: skip
def test_a_difference_is_claimed_only_beyond_noise(check, new, other, status):
    found = judge(on(4, "layerwise", **new), other).loc[check]
    assert found.status == status and len(found.runs) == 2 and found.setting == ""
    assert found.measured.startswith(ratio(new["step"] / 20 - 1))


@pytest.mark.parametrize(("on_six", "mhz", "status"), [
    (24.0, 1600, "pass"), (20.0, 1600, "fail"), (22.0, 1600, "within noise"),
    (22.5, 1700, "within noise"),  # clocks count either way
])  # fmt: skip
def test_the_gap_must_grow_with_the_gpus(on_six, mhz, status):
    rows = [on(4, "layerwise", 22.0, sm_mhz=mhz), on(4, "swap"), on(6, "layerwise", on_six),
            on(6, "swap")]  # fmt: skip
    found = judge(*rows).loc["scaling-swap"]
    assert (found.status, found.setting) == (status, "") and len(found.runs) == 4
    others = [row | {"gpu_model": "NVIDIA H200"} for row in rows[2:]]
    for some in (rows[:3], [*rows[:2], *others]):
        assert judge(*some).loc["scaling-swap"].runs == []


def test_the_nearest_setup_answers_and_says_so_until_one_has_what_was_asked():
    near = [run("layerwise", 6.8), run("swap", 6.7), on(2, "layerwise", 4.8, height=480),
            on(2, "swap", 4.4, height=480)]  # fmt: skip
    found = judge(*near)
    slower = found.loc["slower-swap"]
    assert set(slower.status) == {"pass"}
    assert list(slower.setting) == ["1 GPU instead of 4, 480p instead of 720p",
                                    "2 GPUs instead of 4, 480p instead of 720p"]  # fmt: skip
    scaling = found.loc["scaling-swap"]
    assert scaling.status == "pass" and len(scaling.runs) == 4
    assert scaling.setting.startswith("1 and 2 GPUs instead of 4 and 6")
    # Four GPUs at 720p settle it, both branches on all of them; over NVLink they do not.
    four = [on(4, "layerwise", 8.7), on(4, "swap", 8.4)]
    apart = [on(4, "layerwise", 7.0, cfg_parallel=True), on(4, "swap", 9.0, cfg_parallel=True)]
    slower = judge(*near, *four, *apart).loc["slower-swap"]
    own = slower[slower.setting == ""]
    assert own.status.tolist() == ["pass"]
    assert own.runs.iloc[0] == [row["run"] for row in four]
    linked = judge(*(row | {"interconnect": "NVLink"} for row in four)).loc["slower-swap"]
    assert linked.status == "pass" and "NVLink" in linked.setting


def test_engines_are_compared_only_at_the_same_work_and_machine():
    changes = [{}, {}, {"compile": True}, {"height": 480, "width": 832}, {"num_gpus": 6},
               {"machine": {"slug": "other"}}, {"enable_cfg_parallel": True}]  # fmt: skip
    made = [synthetic.record(scale="a14b", **each) for each in changes]
    made[1]["software"]["torch"] = "2.12.0"
    one, *others = (of_record(parse_record(Path(), each)).runs.group.iloc[0] for each in made)
    assert len({one, *others}) == 7
    rows = [on(4, "layerwise", 22.0, group=one), on(4, "swap", group=others[0])]
    assert judge(*rows).status["slower-swap"] == "not measured"


def test_each_machine_has_its_own_answer_by_runs_on_the_same_boards():
    other = {"machine": "other", "group": "o"}
    rows = [on(4, "layerwise", 22.0), on(4, "swap"), on(4, "layerwise", 5.0, **other),
            on(4, "swap", 6.0, **other)]  # fmt: skip
    found = judge(*rows).loc["slower-swap"]
    assert sorted(found.status) == ["fail", "pass"] and found.machine.nunique() == 2
    older = {"latest": False, "started": "2025"}
    rows = [on(4, "swap"), on(4, "layerwise", **older), on(4, "layerwise", 30.0, boards=("b",))]
    assert judge(*rows).status["slower-swap"] == "pass", "of the new offload the latest counts"
    rows = [on(4, "layerwise"), on(4, "swap", **older), on(4, "swap", 15.0, boards=("b",))]
    found = judge(*rows).loc["slower-swap"]
    assert found.status == "within noise" and found.runs[1] == rows[1]["run"]


@pytest.mark.parametrize(("status", "reason", "height", "expected"), [
    ("oom", "CUDA out of memory", 720, ["pass", ""]),
    ("oom", "OutOfMemoryError", 720, ["pass", ""]),
    ("oom", "MemoryError: host", 720, ["not measured", ""]),
    ("oom", "CUDA out of memory", 480, ["pass", "480p instead of 720p"]),
    *((bad, "CUDA", 720, ["not measured", ""]) for bad in ("unsupported", "failed", "timeout")),
])  # fmt: skip
def test_out_of_memory_is_a_result_and_unsupported_is_none(status, reason, height, expected):
    found = judge(on(4, "resident", status=status, reason=reason, height=height)).loc["pure"]
    assert found[["status", "setting"]].tolist() == expected


def experts(record, steps, expert):
    for step in record["iterations"][1]["steps"][steps]:
        step["expert"] = expert


@pytest.mark.parametrize(("edit", "failed"), [
    (lambda r: r["model"].update(flow_shift=3.0), "shift"),
    (lambda r: r["schedule"].update(switch_step=9), "switch"),
    (lambda r: experts(r, slice(17, 18), "low_noise"), "switch"),  # too early
    (lambda r: experts(r, slice(None), "high_noise"), "switch"),  # never
    (lambda r: r["iterations"][2].update(latents_sha256="0" * 64), "repeats"),
    (lambda r: r["iterations"][-1]["counters"][0].update(event_waits=1), "formula_ok"),
    (lambda r: r["iterations"][-1]["counters"][-1].update(d2h_copies=99), "formula_ok"),
])  # fmt: skip
def test_one_wrong_value_in_a_record_is_found(read, edit, failed):
    record = synthetic.record()
    edit(record)
    found = read(record)
    wrong = judged(found).query("status == 'fail'")
    own = {name for name in ("repeats", "formula_ok") if not found.runs[name].iloc[0]}
    assert {*wrong.index, *own} == {failed} and set(wrong.runs.map(len)) <= {1}


def test_derived_counters_are_not_called_equal(read):
    assert read(synthetic.record("old-4gpu-fsdp")).runs.formula_ok.tolist() == [None]


def test_one_offload_alone_other_jobs_and_failures_settle_nothing(read):
    """The baseline expects something of both offloads' overlap: the new one alone can only fail."""
    alone = judged(read(synthetic.record(scale="a14b"))).loc["overlap"]
    assert alone.status == "not measured" and alone.setting
    job = synthetic.record("x", engine="layerwise", num_gpus=2)
    assert judged(read(job)).status[["shift", "switch"]].tolist() == ["not measured"] * 2
    bad = cycle(("failed", "oom", "timeout", "unsupported"))
    records = [synthetic.record(name, scale=scale, status=next(bad))
               for scale in ("tiny", "a14b") for name in synthetic.BASELINE]  # fmt: skip
    assert "fail" not in set(judged(read(*records)).status)


def test_committed_runs_end_in_the_same_bits_and_count_as_the_formulas_say():
    jobs = synthetic.committed().runs.query("source == 'job'")
    # For the buffers that fsdp gathers into, a GPU may choose other kernels.
    bits = jobs[jobs.engine != "fsdp"].groupby("group").latents.nunique()
    assert bits.max() == 1 and jobs.repeats.dropna().all() and jobs.formula_ok.dropna().all()
