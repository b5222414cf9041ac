"""Verdicts: each status of each check, and that a rehearsal never answers a question of time."""

from __future__ import annotations

import copy
import html
import re
from dataclasses import replace
from typing import Any

import pytest
import synthetic

from tests.reading import cells
from wanreport import answers, benches, comparisons, figures, jobpage, tables, verdicts

TIMED = {"spike-fsdp", "spike-swap", "slower-fsdp", "slower-swap", "scaling-fsdp",
         "scaling-swap", "pure", "prefetch", "overlap", "contention"}  # fmt: skip
ANY_SCALE = {"shift", "switch", "bits", "repeat", "formula"}


def judge(records: list[dict[str, Any]]) -> dict[str, verdicts.Verdict]:
    found = verdicts.baseline_checks(records) + verdicts.further_checks(records)
    return {verdict.check: verdict for verdict in found}


def statuses(records: list[dict[str, Any]]) -> dict[str, str]:
    return {check: verdict.status for check, verdict in judge(records).items()}


def test_without_records_nothing_is_measured_and_each_check_says_what_to_do() -> None:
    for verdict in judge([]).values():
        assert verdict.status == "not measured"
        assert verdict.evidence and verdict.next_step and verdict.expected
        assert verdict.records == ()


def test_rehearsals_answer_for_schedule_counters_bytes_and_bits_only() -> None:
    found = statuses(synthetic.all_jobs())
    assert {check for check, status in found.items() if status == "pass"} == ANY_SCALE
    assert {check for check, status in found.items() if status == "not measured"} == TIMED


@pytest.mark.parametrize(
    "options", [{"scale": "tiny"}, {"scale": "tiny", "device": "cuda"},
                {"scale": "a14b", "device": "cpu"}], ids=str)  # fmt: skip
def test_planted_times_of_a_rehearsal_change_nothing(options: dict[str, str]) -> None:
    """The very times that decide at full scale are ignored anywhere else."""
    jobs: list[dict[str, Any]] = []
    for name in synthetic.BASELINE:
        steady = 30.0 if name == "new-4gpu" else 10.0
        jobs.append(synthetic.record(name, steady_s=steady, switch_s=99.0, **options))  # type: ignore[arg-type]
    jobs.append(synthetic.record("pure-4gpu", status="oom", **options))  # type: ignore[arg-type]
    found = statuses(jobs)
    assert {check for check, status in found.items() if status == "not measured"} >= TIMED
    at_full_scale = statuses(
        [synthetic.record(r["job"]["name"], scale="a14b", switch_s=99.0,
                          steady_s=30.0 if r["job"]["name"] == "new-4gpu" else 10.0)
         for r in jobs[:-1]]
    )  # fmt: skip
    assert at_full_scale["slower-fsdp"] == at_full_scale["prefetch"] == "pass"


def test_full_scale_records_answer_almost_all() -> None:
    found = statuses(synthetic.all_jobs("a14b"))
    never_at_once_or_differs_nowhere = {"contention", "prefetch", "scaling-fsdp", "scaling-swap"}
    assert {c for c, s in found.items() if s == "not measured"} == never_at_once_or_differs_nowhere
    assert found["overlap"] == "pass"
    assert found["slower-fsdp"] == found["slower-swap"] == found["spike-swap"] == "pass"
    assert found["spike-fsdp"] == "fail"  # this one has no spike
    assert found["pure"] == "fail"  # it ran


def test_a_slower_engine_is_claimed_only_where_intervals_are_apart() -> None:
    new = synthetic.record("new-4gpu", scale="a14b", steady_s=20.0)
    old = synthetic.record("old-4gpu-fsdp", scale="a14b", steady_s=20.0)
    verdict = judge([new, old])["slower-fsdp"]
    assert verdict.status == "not measured"
    assert "not told apart" in verdict.evidence and "All steps" in verdict.evidence
    assert verdict.next_step == verdicts.MORE
    few = [synthetic.record(n, scale="a14b") for n in ("new-4gpu", "old-4gpu-fsdp")]
    for record in few:  # too few samples for an interval
        for iteration in record["iterations"]:
            iteration["steps"] = iteration["steps"][:5]
    assert verdicts.new_engine_is_slower("fsdp")(few).status == "not measured"
    faster = synthetic.record("new-4gpu", scale="a14b", steady_s=18.0)
    verdict = judge([faster, old])["slower-fsdp"]
    assert verdict.status == "fail"
    assert "faster" in verdict.evidence


@pytest.mark.parametrize(
    ("new", "clocks", "status", "why"),
    [
        (20.5, (1600, 1600), "pass", ""),
        (20.5, (1560, 1600), "not measured", "1,560 and 1,600 MHz"),
        (20.5, (None, 1600), "not measured", "not both say"),
        (20.7, (None, None), "not measured", "not both say"),
        (20.7, (1650, 1600), "pass", ""),  # a faster clock makes no step longer
        (21.5, (None, None), "pass", ""),
        (18.5, (None, 1600), "fail", ""),
    ],
)
def test_runs_are_told_apart_beyond_what_their_clocks_explain(
    new: float, clocks: tuple[int | None, int | None], status: str, why: str
) -> None:
    records = [
        synthetic.record(name, scale="a14b", steady_s=steady, sm_mhz=mhz)
        for name, steady, mhz in zip(
            ("new-4gpu", "old-4gpu-fsdp"), (new, 20.0), clocks, strict=True
        )
    ]
    verdict = judge(records)["slower-fsdp"]
    assert verdict.status == status and why in verdict.evidence
    assert ("not told apart" in verdict.evidence) == bool(why)


@pytest.mark.parametrize(
    ("on_six", "status"), [(24.0, "pass"), (20.0, "fail"), (22.0, "not measured")]
)
def test_the_gap_must_grow_with_the_gpus(on_six: float, status: str) -> None:
    steady = {"new-4gpu": 22.0, "old-4gpu-swap": 20.0, "new-6gpu": on_six, "old-6gpu-swap": 20.0}
    jobs = [synthetic.record(n, scale="a14b", steady_s=s) for n, s in steady.items()]
    verdict = judge(jobs)["scaling-swap"]
    assert verdict.status == status and len(verdict.records) == 4
    assert judge(jobs[:3])["scaling-swap"].records == ()
    moved = synthetic.record("old-6gpu-swap", scale="a14b", machine={"slug": "x", "class": "x"})
    assert judge([*jobs[:3], moved])["scaling-swap"].records == ()


def test_clocks_count_either_way_where_two_gaps_are_compared() -> None:
    runs = {"new-4gpu": (21.0, 1700.0), "old-4gpu-swap": (20.0, 1600.0),
            "new-6gpu": (16.0, 1600.0), "old-6gpu-swap": (14.5, 1600.0)}  # fmt: skip
    jobs = [
        synthetic.record(name, scale="a14b", steady_s=step, sm_mhz=mhz)
        for name, (step, mhz) in runs.items()
    ]
    assert verdicts.between_runs(*jobs[:2]) == pytest.approx(0.01)
    assert verdicts.between_runs(*jobs[:2], either_way=True) == pytest.approx(0.0725)
    assert judge(jobs)["scaling-swap"].status == "not measured", "1.12 and 1.10 at equal clocks"
    assert "the longer step at the faster clock" in verdicts.runs_differ(*jobs[:2])
    assert "faster clock" not in verdicts.runs_differ(*jobs[2:])


def test_prefetch_without_a_difference_is_not_measured() -> None:
    def status(steady_s: float) -> str:
        deep = synthetic.record("new-4gpu-prefetch3", scale="a14b", steady_s=steady_s)
        base = synthetic.record("new-4gpu", scale="a14b", steady_s=20.0)
        return statuses([deep, base])["prefetch"]

    assert [status(s) for s in (19.0, 20.0, 21.0)] == ["pass", "not measured", "fail"]


def test_engines_are_compared_only_at_the_same_workload_and_machine() -> None:
    new = synthetic.record("new-4gpu", scale="a14b")
    old_torch = synthetic.record("old-4gpu-fsdp", scale="a14b")
    old_torch["software"]["torch"] = "2.12.0"
    for changed in (
        synthetic.record("old-4gpu-fsdp", scale="a14b", compile=True),
        synthetic.record("old-4gpu-fsdp", scale="a14b", height=480, width=832),
        synthetic.record("old-4gpu-fsdp", scale="a14b", machine={"slug": "other", "class": "x"}),
        synthetic.record("old-6gpu-fsdp", scale="a14b"),
        old_torch,
    ):
        assert judge([new, changed])["slower-fsdp"].status == "not measured"
        found = compared([new, changed])
        assert len(found) == 2
        for one in found:
            assert "against fsdp not measured" in one.answer
            assert cells(one.tables[0])[0][4] == "not measured"  # the difference


def test_each_machine_has_its_own_verdict_on_time() -> None:
    there = {"slug": "2x-h200", "class": "2x NVIDIA H200, NVLink"}
    records = [
        *(synthetic.record(n, scale="a14b") for n in ("new-4gpu", "old-4gpu-fsdp")),
        synthetic.record("new-4gpu", scale="a14b", machine=there, steady_s=5.0),
        synthetic.record("old-4gpu-fsdp", scale="a14b", machine=there, steady_s=6.0),
    ]
    found = {
        v.machine: v.status for v in verdicts.baseline_checks(records) if v.check == "slower-fsdp"
    }
    assert found == {synthetic.GPUS["class"]: "pass", there["class"]: "fail"}


def test_out_of_memory_is_a_result_and_unsupported_is_none() -> None:
    def status(status: str, reason: str = "CUDA out of memory", **changes: Any) -> str:
        record = synthetic.record(
            "pure-4gpu", scale="a14b", status=status, reason=reason, **changes
        )
        return statuses([record])["pure"]

    assert status("oom") == status("oom", "OutOfMemoryError") == "pass"
    assert status("oom", "MemoryError: host") == "not measured"
    assert status("oom", height=480, width=832) == "not measured"
    assert status("unsupported") == status("failed") == status("timeout") == "not measured"


def test_a_wrong_flow_shift_fails_both_schedule_checks() -> None:
    record = synthetic.record()
    record["model"]["flow_shift"] = 3.0
    record["schedule"]["switch_step"] = 9
    found = judge([record])
    assert found["shift"].status == found["switch"].status == "fail"
    assert "3.0" in found["shift"].evidence


def test_an_expert_that_ran_at_another_step_than_scheduled_fails() -> None:
    record = synthetic.record()
    record["iterations"][1]["steps"][17]["expert"] = "low_noise"
    assert judge([record])["switch"].status == "fail"


def test_one_changed_bit_fails_and_names_the_ranks() -> None:
    records = synthetic.all_jobs()
    odd = synthetic.record("old-6gpu-swap", latents="other bits")
    records = [r for r in records if r["job"]["name"] != "old-6gpu-swap"] + [odd]
    verdict = judge(records)["bits"]
    assert verdict.status == "fail"
    assert "Different: fsdp, layerwise, swap on 6 ranks" in verdict.evidence


def test_fsdp_on_a_gpu_may_differ_and_that_is_said() -> None:
    records = [
        *(synthetic.record(n, scale="a14b") for n in ("new-4gpu", "old-4gpu-swap")),
        synthetic.record("old-4gpu-fsdp", scale="a14b", latents="other kernels"),
    ]
    verdict = judge(records)["bits"]
    assert verdict.status == "pass"
    assert "but for fsdp" in verdict.evidence


def test_an_iteration_that_does_not_repeat_fails() -> None:
    record = synthetic.record()
    record["iterations"][2]["latents_sha256"] = "0" * 64
    assert judge([record])["repeat"].status == "fail"


@pytest.mark.parametrize("counter", ["event_waits", "d2h_copies", "h2d_bytes"])
def test_one_wrong_counter_is_found(counter: str) -> None:
    record = synthetic.record()
    for counters in record["iterations"][-1]["counters"]:
        counters[counter] += 1
    verdict = judge([record])["formula"]
    assert verdict.status == "fail"
    assert verdict.records == (answers.file_name(record),)


def test_derived_counters_are_not_called_equal() -> None:
    verdict = judge([synthetic.record("old-4gpu-fsdp")])["formula"]
    assert verdict.status == "not measured"
    assert "derived: fsdp" in verdict.evidence


def test_failed_records_never_break_a_check_or_a_table() -> None:
    records = [
        synthetic.record(name, scale=scale, status=status)
        for name in synthetic.BASELINE
        for scale in ("tiny", "a14b")
        for status in ("failed", "oom", "timeout", "unsupported")
    ]
    for record in records[::3]:
        record["machine"] = {}
    judge(records)
    compared(records)
    comparisons.compare_prefetch(records)
    html = "".join(comparisons.jobs_tables(records))
    assert html.count('<th scope="row">new-4gpu</th>') == 8
    comparisons.counters_table(records)
    assert comparisons.bits_tables(records) == []


# Comparisons A and B -----------------------------------------------------------------------------


def compared(records: list[dict[str, Any]]) -> list[comparisons.Comparison]:
    """Comparison A on every bench that the records make."""
    found = benches.by_machine(records).values()
    each = [comparisons.compare_old_and_new(bench) for here in found for bench in here]
    return [replace(one, tables=one.tables[-3:]) for one in each]  # the engines' own come first


def test_comparison_a_without_full_scale_records_shows_only_the_baseline() -> None:
    (found,) = compared(synthetic.all_jobs())
    assert len(found.tables) == 3
    for table in found.tables:
        for row in cells(table):
            assert row[1:6] == ["not measured"] * 5
            assert all(row[6:])
    assert found.answer.count("not measured") == 2


def test_comparison_a_has_the_baselines_rows_with_both_readings_of_old() -> None:
    found, other = compared(synthetic.all_jobs("a14b"))  # on 4 and on 6 GPUs
    assert len(found.tables) == len(other.tables) == 3
    denoising = cells(found.tables[0])[0]
    record = synthetic.record("new-4gpu", scale="a14b")
    new = sum(max(step["seconds"]) for step in record["iterations"][1]["steps"])
    assert denoising[:2] == ["denoising", f"{new:.1f} s"]
    facts = verdicts.baseline_facts()
    printed = [facts.text(f"s3.2.denoise.{side}") for side in ("new", "old", "delta")]
    assert denoising[6:] == [text.replace("\u00a0", " ") for text in printed]
    peak = cells(found.tables[0])[4]
    assert peak[1:4] == ["22.88 GB", "70.00 GB", "61.25 GB"]
    switch = cells(found.tables[1])[2]
    assert switch[3] == "49.70 s"


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [(24.0, 20.0, "wider"), (20.5, 20.0, "narrower"), (18.0, 20.0, "turned round"),
     (20.0, 20.0, "not told apart"), (21.82, 20.0, "no other")],
)  # fmt: skip
def test_comparison_a_says_where_the_gap_went(new: float, old: float, words: str) -> None:
    records = [
        synthetic.record("new-4gpu", scale="a14b", steady_s=new),
        synthetic.record("old-4gpu-fsdp", scale="a14b", steady_s=old),
    ]
    assert words in compared(records)[0].answer


def test_steps_before_and_after_the_switch_are_told_apart() -> None:
    record = synthetic.record("new-4gpu", scale="a14b")
    for step in record["iterations"][1]["steps"]:
        step["seconds"] = [{True: 1.0, False: 3.0}[step["index"] < 18]] * 4
    record["iterations"][1]["steps"][0]["seconds"] = [50.0] * 4
    record["iterations"][1]["steps"][18]["seconds"] = [70.0] * 4
    rows = {row[0]: row[1] for row in cells(compared([record])[0].tables[1])}
    assert rows["first step"] == "50.00 s"
    assert rows["median step before the switch"] == "1.000 s"
    assert rows["switch step"] == "70.00 s"
    assert rows["median step after the switch"] == "3.000 s"


def test_comparison_b_compares_counters_at_any_scale_and_times_at_full_scale() -> None:
    tiny = comparisons.compare_prefetch(synthetic.all_jobs())
    assert "Not measured" in tiny.answer
    assert "not measured" in tiny.tables[0]
    assert "scale tiny" in tiny.tables[1]
    full = comparisons.compare_prefetch(
        [
            synthetic.record("new-4gpu", scale="a14b", steady_s=22.0),
            synthetic.record("new-4gpu-prefetch3", scale="a14b", steady_s=21.0),
        ]
    )
    assert "shorter" in full.answer
    assert "scale a14b" in full.tables[1]
    rows = {row[0]: row[1:] for row in cells(full.tables[0])}
    block = synthetic.BLOCK["a14b"] / 1e9
    held = rows["of that, blocks held at once"]
    assert held[:2] == [f"{12 * block:.3f} GB", f"{4 * block:.3f} GB"]
    assert held[2].startswith(f"+{8 * block:.3f} GB")
    assert rows["peak GPU memory, allocated"][2].startswith(f"+{8 * block:.2f} GB")
    assert "At most 12 blocks against 4, 8 more and not 2" in full.tables[0]


def test_counters_have_a_row_for_each_machine_only_where_they_differ() -> None:
    classes = ("4x one", "4x two", "4x three")
    records = [
        synthetic.record("new-4gpu", scale="a14b", machine={"class": name, "slug": name[3:]})
        for name in classes
    ]
    jobs = [row[0] for row in cells(comparisons.counters_table(records))]
    assert jobs == ["new-4gpu"]
    for rank in records[1]["iterations"][-1]["counters"]:
        rank["event_waits"] += 1
    table = comparisons.counters_table([*records, synthetic.record("new-4gpu")])
    jobs = [row[:2] for row in cells(table)]
    alike, other = "new-4gpu on 4x one and 4x three", "new-4gpu on 4x two"
    assert jobs == [[alike, "a14b"], [other, "a14b"], ["new-4gpu", "tiny"]]
    assert "named only where its numbers differ" in table


def test_the_matrix_of_digests_has_a_column_for_each_number_of_ranks() -> None:
    (table,) = comparisons.bits_tables(synthetic.all_jobs())
    rows = {row[0]: row[1:] for row in cells(table)}
    assert rows["all equal"] == ["✓", "✓"]
    assert rows["resident"][1] == "no record"
    assert rows["fsdp"][0] == rows["swap"][0] != rows["fsdp"][1]


def test_the_summary_says_first_that_there_are_only_rehearsals() -> None:
    tiny, full = synthetic.all_jobs(), synthetic.all_jobs("a14b")
    assert comparisons.title(tiny).startswith("# Rehearsal:")
    assert comparisons.first_screen(tiny, [], []).startswith("**Rehearsal:**")
    assert "8 records, all finished" in comparisons.first_screen(tiny, [], [])
    tallies = comparisons.first_screen(
        full, verdicts.baseline_checks(full), verdicts.further_checks(full)
    )
    assert "Of the baseline's checks: 6 pass, 2 fail, 4 not measured" in tallies
    assert "of the engines' own checks: 3 pass" in tallies
    assert comparisons.title([]) == "# After the benchmarks"
    assert "Rehearsal" not in comparisons.title([*tiny, *full])
    assert not comparisons.first_screen([*tiny, *full], [], []).startswith("**Rehearsal:**")


# One record --------------------------------------------------------------------------------------


def test_a_record_is_told_in_words_at_both_scales() -> None:
    tiny, full = synthetic.record(), synthetic.record(scale="a14b")
    assert jobpage.title(tiny) == "# Rehearsal: new-4gpu"
    assert jobpage.first_screen(tiny).startswith("**Rehearsal:**")
    assert " s " not in jobpage.headline(tiny) and "GB" not in jobpage.headline(tiny)
    assert "n = 25" in jobpage.headline(full)
    assert "22.88 GB" in jobpage.headline(full)
    assert "All counters equal" in jobpage.trust(full)


def test_the_title_says_first_that_a_job_did_not_run() -> None:
    for scale in ("tiny", "a14b"):
        record = synthetic.record(scale=scale, status="oom")
        assert jobpage.title(record) == "# Ran out of memory: new-4gpu"
        assert "**Rehearsal" not in jobpage.first_screen(record)
    record["machine"] = {}
    assert jobpage.title(record) == "# Did not run: new-4gpu"


def test_a_rehearsal_is_not_told_twice() -> None:
    words = jobpage.trust(synthetic.record())
    assert "counters" not in words and "bits" not in words
    assert "Random weights: the video shows noise." in words


def test_rows_about_gpus_are_left_out_without_any() -> None:
    tiny, full = (jobpage.machine_table(synthetic.record(scale=s)) for s in ("tiny", "a14b"))
    rows = re.findall(r'<th scope="row">(.*?)</th>', full)
    assert "NCCL transport" in rows and "host to device, pinned host memory" in rows
    for row in rows:
        assert (f">{row}</th>" in tiny) == (row in jobpage.ANYWHERE)
    assert ">generation 5, 16 lanes<" in full
    assert "54.90 GB/s; 43.92 GB/s each with all at once" in full


def test_trust_tells_of_differences_and_uncommitted_changes() -> None:
    record = synthetic.record(scale="a14b")
    record["software"]["git_dirty"] = True
    record["iterations"][0]["counters"][0]["h2d_copies"] += 1
    record["iterations"][1]["latents_sha256"] = "f" * 64
    words = jobpage.trust(record)
    assert "counters differ" in words and "did not end in the same bits" in words
    assert "uncommitted" in words
    assert "copies to the device" in jobpage.counters_sentence(record)
    assert "✗ differs" in jobpage.moved_table(record)


def test_hostile_text_in_a_record_stays_text() -> None:
    evil = "<script>alert(1)</script> [x](javascript:1) `c`"
    record = synthetic.record(status="failed", reason=evil, hint=evil)
    record["job"]["purpose"] = evil
    record["machine"]["class"] = evil
    for words in (jobpage.first_screen(record), jobpage.failure(record), jobpage.asked(record)):
        assert "<script" not in words and "](" not in words
    assert "<script" not in "".join(comparisons.jobs_tables([record]))
    assert "<script" not in jobpage.machine_table(record)


def test_every_sentence_and_table_survives_a_record_that_knows_nothing() -> None:
    record = synthetic.record(status="failed")
    for key in ("model", "schedule", "sglang", "machine", "software", "engine"):
        record[key] = {}
    for tell in (jobpage.first_screen, jobpage.sglang_sentence, jobpage.settings_sentence,
                 jobpage.schedule_sentence, jobpage.bits_sentence, jobpage.traces_sentence,
                 jobpage.counters_sentence, jobpage.reproduce, jobpage.request_table,
                 jobpage.machine_table):  # fmt: skip
        assert tell(record)
    for refuse in (jobpage.moved_table, jobpage.budget_table, jobpage.memory_table,
                   jobpage.bits_table):  # fmt: skip
        with pytest.raises(answers.NotAnswerable):
            refuse(record)


def test_the_slowest_rank_makes_a_steps_time() -> None:
    record = copy.deepcopy(synthetic.record(scale="a14b"))
    record["iterations"][1]["steps"][3]["seconds"] = [1.0, 9.0, 2.0, 3.0]
    assert answers.step_seconds(record["iterations"][1])[3] == 9.0


def test_several_clean_iterations_give_medians() -> None:
    record = synthetic.record(scale="a14b", clean_iterations=3)
    for iteration, first in zip(answers.iterations(record, "clean"), (1, 5, 100), strict=True):
        iteration["steps"][0]["seconds"] = [float(first)] * 4
    spent = answers.clean_budget(record)
    assert spent.first == 5.0
    assert spent.steady.n == 75


def test_records_are_found_once_and_in_order(tmp_path: Any) -> None:
    records = synthetic.all_jobs()
    synthetic.write(records, tmp_path / "a")
    synthetic.write(records[:2], tmp_path / "b")
    found = answers.load_records([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert [r["job"]["name"] for r in found] == sorted(synthetic.BASELINE)


def test_the_latest_record_of_a_job_counts(tmp_path: Any) -> None:
    old, new = synthetic.record(), synthetic.record(seed=1)
    old["started_at"] = "2026-02-01T12:00:00Z"
    synthetic.write([new], tmp_path / "a")
    synthetic.write([old], tmp_path / "b")
    (found,) = answers.load_records([tmp_path / "a", tmp_path / "b"])
    assert found["started_at"] == new["started_at"]


def test_a_failure_never_stands_for_a_job_that_has_a_result(tmp_path: Any) -> None:
    first, second = synthetic.record(scale="a14b"), synthetic.record(scale="a14b")
    failed = synthetic.record(scale="a14b", status="failed")
    for day, one, folder in ((1, first, "a"), (2, second, "b"), (3, failed, "c")):
        one["started_at"] = f"2026-01-0{day}T12:00:00+00:00"
        synthetic.write([one], tmp_path / folder)
    folders = [tmp_path / folder for folder in "abc"]
    (found,) = answers.load_records(folders)
    assert found["started_at"] == second["started_at"]
    (earlier,) = answers.load_earlier(folders)
    assert earlier["started_at"] == first["started_at"]
    assert answers.load_earlier([tmp_path / "c"]) == []


def test_a_sampled_schedule_is_extrapolated_and_says_so_wherever_it_is_shown() -> None:
    whole = synthetic.record("old-4gpu-swap", scale="a14b", switch_s=50.0)
    some = synthetic.record("old-4gpu-swap", scale="a14b", switch_s=50.0, sampled_steps=8)
    one, two = answers.clean_budget(whole), answers.clean_budget(some)
    assert (one.left_out, two.left_out) == (0, 19)
    assert two.first == one.first and two.switch == one.switch == 50.0
    assert two.denoise == pytest.approx(one.denoise, rel=0.005)
    assert list(answers.budgets(some)) == ["clean", "profiled"]  # the warm-up has no steady step
    said = "Only 8 of 27 steps ran"
    assert said in jobpage.budget_table(some) and said not in jobpage.budget_table(whole)
    assert "both extrapolated from 8 of 27 steps" in jobpage.headline(some)
    assert "extrapolated" not in jobpage.headline(whole)
    assert said in figures.time_budget(some)[1]
    assert "Of these 8 of 27 steps ran" in figures.per_step(some)[1]
    assert "8 of 27 steps" in jobpage.request_table(some)
    (comparison,) = compared([some, synthetic.record("new-4gpu", scale="a14b", sampled_steps=8)])
    assert all(said in table for table in comparison.tables[::2])
    assert 'title="extrapolated from 8 of 27 steps' in comparison.tables[0]
    assert answers.repeats(some) is True  # though its warm-up ended elsewhere
    assert not verdicts.comparable(whole, some)


# Engines side by side ----------------------------------------------------------------------------


def bench(**engines: dict[str, Any]) -> benches.Bench:
    names = {"layerwise": "new-4gpu", "fsdp": "old-4gpu-fsdp", "swap": "old-4gpu-swap",
             "resident": "pure-4gpu"}  # fmt: skip
    records = [synthetic.record(names[e], scale="a14b", **how) for e, how in engines.items()]
    (found,) = benches.benches(records)
    return found


def test_the_limit_is_compute_or_the_link_whichever_takes_longer() -> None:
    found = bench(resident={"steady_s": 10.0}, layerwise={"steady_s": 11.0})
    layerwise, resident = found.of("layerwise"), found.of("resident")
    assert layerwise and resident
    moved = benches.moved_per_step(layerwise)
    assert moved and benches.moved_per_step(resident) == 0
    assert benches.limit(layerwise, resident) == pytest.approx(10.0, rel=0.01)
    layerwise["machine"]["link"]["h2d_pinned_together_gb_s"] = moved / 1e9 / 20
    assert benches.limit(layerwise, resident) == pytest.approx(20.0)
    assert benches.limit(resident, resident) == pytest.approx(10.0, rel=0.01)
    assert benches.limit(layerwise, None) is None
    layerwise["machine"]["link"] = None
    assert benches.limit(layerwise, resident) is None
    row = next(r for r in cells(benches.steps_table(found)) if r[0].startswith("layerwise"))
    assert row[2] == "1.100 × same GPUs" and "—" in row[3]


def test_a_cold_start_says_what_of_it_the_plan_took() -> None:
    found = bench(resident={}, layerwise={})
    layerwise = found.of("layerwise")
    assert layerwise
    layerwise["cold_start_s"] = 39.3
    layerwise["engine"]["plan"] = {"planning_s": 20.1}
    starts = {row[0]: row[1] for row in cells(benches.costs_table(found))}
    assert starts["layerwise, prefetch 1"] == "39.30 s, 20.10 s for the plan"
    assert "plan" not in starts["resident"]


def test_bits_that_differ_from_residents_show_in_the_engines_table() -> None:
    found = bench(resident={}, layerwise={}, swap={"latents": "other bits"})
    bits = {row[0]: row[5] for row in cells(benches.steps_table(found))}
    assert bits["layerwise, prefetch 1"] == "✓" and bits["swap"] == "✗ differs"


def test_the_old_offload_is_told_by_its_signature() -> None:
    engines = bench(
        layerwise={"steady_s": 21.6},
        swap={"steady_s": 19.8, "switch_s": 50.0},
        fsdp={"steady_s": 24.0, "switch_s": 24.0},
    )
    said = benches.which_is_old(engines)
    assert said.startswith("**swap** behaves here as the baseline's old offload did (fsdp differs")
    assert "steady step and switch step" in said
    rows = {row[0]: row[1:] for row in cells(benches.signatures_table(engines))}
    assert rows["the baseline's old offload"] == ["−8.3 %", "+153 %", "1.34 experts"]
    assert [text[-1] for text in rows["swap"]] == ["✓"] * 3
    quick = bench(layerwise={}, swap={"switch_s": 20.0})
    assert benches.which_is_old(quick).startswith("No engine behaves here")
    assert "(swap differs in switch step)" in benches.which_is_old(quick)
    for alone in (bench(layerwise={}), bench(layerwise={}, resident={})):
        assert "neither fsdp nor swap was measured" in benches.which_is_old(alone)
        assert "old offload" not in benches.in_short(alone)
    elsewhere = bench(layerwise={"height": 480, "width": 832})
    assert len(comparisons.compare_old_and_new(elsewhere).tables) == 2, "nothing to compare with"
    assert "swap** behaves here as the baseline's old offload did." in benches.in_short(engines)


def test_a_step_that_is_longer_by_less_than_is_claimed_of_runs_is_as_the_old_one() -> None:
    def mark(steady_s: float, sm_mhz: float | None) -> str:
        swap = {"steady_s": steady_s, "switch_s": 50.0, "sm_mhz": sm_mhz}
        found = bench(layerwise={"steady_s": 20.0}, swap=swap)
        return {row[0]: row[1][-1] for row in cells(benches.signatures_table(found))}["swap"]

    assert mark(20.5, sm_mhz=None) == "✓", "2.5 per cent may be the clocks"
    assert mark(21.5, sm_mhz=None) == "✗"
    assert mark(20.5, sm_mhz=1600) == "✗"


def test_at_one_rank_the_page_says_what_fsdp_does_not_hide() -> None:
    def both(gpus: int) -> benches.Bench:
        records = [
            synthetic.record(f"x-{engine}", scale="a14b", engine=engine, num_gpus=gpus, steady_s=s)
            for engine, s in (("fsdp", 22.0), ("resident", 20.0))
        ]
        records[0]["machine"]["link"]["h2d_pinned_together_gb_s"] = 50.0
        (found,) = benches.benches(records)
        return found

    moved = benches.moved_per_step(both(1).records[0])
    assert moved and moved > 50e9, "a step brings the expert twice"
    (said,) = benches.fsdp_alone(both(1))
    assert f"take {tables.seconds(moved / 50e9)}, and fsdp's step is 2.0" in said
    assert "longer than resident's. No difference below 1.0\xa0% is claimed" in said
    assert said in comparisons.compare_old_and_new(both(1)).answer
    assert benches.fsdp_alone(both(2)) == [], "gathered beside it"


def test_engines_are_called_by_their_setting() -> None:
    stream = synthetic.record("new-4gpu", engine="stream")
    assert answers.engine_label(stream) == "stream"
    stream["job"]["vram_budget_gb"] = 30.0
    assert answers.engine_label(stream) == "stream, room for 30 GB"
    assert answers.engine_label(synthetic.record("new-4gpu")) == "layerwise, prefetch 1"


def test_runs_on_one_gpu_are_held_against_each_other() -> None:
    def run(name: str, day: int, board: str, steady_s: float) -> dict[str, Any]:
        made = synthetic.record(name, scale="a14b", steady_s=steady_s)
        made["started_at"] = f"2026-01-0{day}T12:00:00+00:00"
        for iteration in made["iterations"]:
            for read in iteration["gpu"]:
                read["board"] = board
        return made

    earlier, latest = run("pure-4gpu", 1, "a" * 8, 20.0), run("pure-4gpu", 2, "b" * 8, 25.0)
    layerwise, swap = run("new-4gpu", 1, "a" * 8, 20.2), run("old-4gpu-swap", 1, "c" * 8, 26.0)
    other = synthetic.record("pure-4gpu", scale="a14b", seed=1)  # other work
    (found,) = benches.benches([latest, layerwise, swap], [earlier, other])
    assert found.earlier == (earlier,)
    crashed = earlier | {"iterations": []}
    assert benches.benches([latest], [crashed])[0].earlier == ()
    assert found.resident_of(layerwise) is earlier
    assert found.resident_of(swap) is latest and found.resident_of(latest) is latest
    rows = {row[0]: row for row in cells(benches.steps_table(found))}
    assert rows["layerwise, prefetch 1"][2] == "1.010 × same GPUs"
    assert rows["swap"][2] == "1.040 ×" and rows["resident"][2] == "1.000 ×"
    said = html.unescape(benches.in_short(found))
    said = said.replace("\xa0", " ")
    step = tables.seconds(answers.clean_budget(earlier).steady.median or 0).replace("\xa0", " ")
    assert f"layerwise, prefetch 1: +1.0 % (of {step} on the same GPUs)" in said
    assert said in html.unescape(
        comparisons.first_screen([latest, layerwise, swap], [], [], [earlier])
    ).replace("\xa0", " ")

    (table,) = benches.runs_tables(found)
    assert table == comparisons.compare_old_and_new(found).tables[-1]
    assert [row[0] for row in cells(table)] == ["pure-4gpu"] * 2
    assert [row[4] for row in cells(table)] == ["2026-01-01 12:00:00", "2026-01-02 12:00:00"]
    assert "up to 25\xa0% apart" in table
    assert benches.runs_tables(benches.benches([latest])[0]) == []
    assert benches.runs_tables(benches.benches([swap], [earlier])[0]) == [], "no run to hold it to"


def test_a_sample_of_a_schedule_is_held_against_the_whole() -> None:
    whole = synthetic.record("old-4gpu-swap", scale="a14b", switch_s=50.0)
    some = synthetic.record("old-4gpu-swap", scale="a14b", switch_s=50.0, sampled_steps=8)
    (step,) = (s for s in whole["iterations"][1]["steps"] if s["index"] == 10)
    assert 10 not in answers.step_seconds(answers.iterations(some, "clean")[0]), "so not seen"
    step["seconds"] = [100.0] * 4
    table = benches.samples_table([whole, some])
    ((_machine, engine, measured, n, same, other, _jobs),) = cells(table)
    assert (engine, n) == ("swap", "8 steps")
    assert float(measured.split()[0]) > 600 and "(−" in same and "(−" in other
    nothing = benches.samples_table([])
    assert benches.samples_table([whole]) == nothing
    fewer = synthetic.record("old-4gpu-swap", scale="a14b", sampled_steps=8, num_gpus=2)
    assert benches.samples_table([whole, fewer]) == nothing, "of other ranks"
    slower = synthetic.record("new-4gpu", scale="a14b", sampled_steps=8)
    assert benches.samples_table([whole, slower]) == nothing
