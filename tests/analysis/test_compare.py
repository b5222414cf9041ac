"""When two runs differ beyond noise, what each is held against, and which are paired."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from madeup import NAN, frames, on, run

from tests import campaigns
from wanreport.analysis import compare, stats
from wanreport.analysis.frames import EMPTY, load
from wanreport.analysis.stats import SAME_CLOCKS, UNKNOWN_CLOCKS, allowance, difference
from wanreport.baseline.facts import load_facts
from wanreport.words import ratio

FACTS = load_facts()
CLOCKS = st.sampled_from([NAN, 1500.0, 1600.0, 1980.0])


def of(step, mhz=1600.0, **more):
    return run("swap", step, sm_mhz=mhz, **more)


def claim(one, two, drift=0.0):
    return str(difference(one, two, drift)["claim"])


@pytest.mark.parametrize(("samples", "median"), [
    ([3, 1, 2, 6, 5, 4], (3.5, 1, 6, 6)), (range(1, 26), (13, 8, 18, 25)),
    ([1, 2, 3, 4, NAN, 5], (3, NAN, NAN, 5)), ([], (NAN, NAN, NAN, 0)),
])  # fmt: skip
def test_the_interval_of_a_median_is_a_pair_of_its_samples(samples, median):
    assert stats.median_interval(samples) == pytest.approx(median, nan_ok=True)


@pytest.mark.parametrize(("step", "mhz", "theirs", "told"), [
    (20.5, 1600, 1600, "slower"),
    (20.1, 1600, 1600, "within noise"),  # within the drift of one run
    (20.5, 1560, 1600, "within noise"),  # the longer step had the slower clock
    (20.7, 1650, 1600, "slower"),  # a faster clock makes no step longer
    (22.5, 1740, 1575, "slower"),  # an engine 12.5 % slower, at a clock 10 % faster
    (20.7, NAN, 1600, "within noise"),  # an unknown clock equals none
    (20.7, NAN, NAN, "within noise"), (21.5, NAN, NAN, "slower"), (18.5, NAN, 1600, "faster"),
    (18.5, 1600, 0.0, "faster"),  # nor is one that was read as nothing
])  # fmt: skip
def test_a_difference_is_claimed_beyond_what_clocks_explain(step, mhz, theirs, told):
    one, two, other = of(step, mhz), of(20.0, theirs), {"slower": "faster", "faster": "slower"}
    assert claim(one, two) == told and claim(two, one) == other.get(told, told)


def test_clocks_explain_in_one_direction_only_but_for_gaps_and_drift_in_both():
    slow, fast = of(21.0, 1700.0), of(20.0, 1600.0)
    assert allowance(slow, fast) == allowance(fast, slow) == pytest.approx(SAME_CLOCKS)
    assert allowance(slow, fast, either_way=True) == pytest.approx(SAME_CLOCKS + 0.0625)
    assert allowance(of(21.0), of(20.0, 1700.0)) == pytest.approx(SAME_CLOCKS + 0.0625)
    assert allowance(of(21, NAN), fast) == allowance(fast, of(21, NAN)) == UNKNOWN_CLOCKS
    assert allowance(of(21, NAN), fast, either_way=True) == UNKNOWN_CLOCKS
    # Measured drift takes the place of the usual one where it is more.
    one, two = of(20.5), of(20.0)
    assert allowance(one, two, drift=0.03) == allowance(one, two, drift=-0.03) == 0.03
    assert allowance(one, two, drift=0.002) == allowance(one, two, drift=NAN) == SAME_CLOCKS
    assert claim(one, two) == "slower" and claim(one, two, drift=0.03) == "within noise"


@given(st.lists(st.tuples(*[st.floats(10, 30), CLOCKS] * 2), min_size=1))
def test_no_order_depends_on_who_is_named_first_and_tables_say_what_rows_say(pairs):
    ones, others = [of(*pair[:2]) for pair in pairs], [of(*pair[2:]) for pair in pairs]
    for one, two in zip(ones, others, strict=True):
        assert {claim(one, two), claim(two, one)} in ({"within noise"}, {"slower", "faster"})
    table = pd.DataFrame(difference(pd.DataFrame(ones), pd.DataFrame(others)))
    rows = [difference(one, two) for one, two in zip(ones, others, strict=True)]
    pd.testing.assert_frame_equal(table, pd.DataFrame(rows), check_dtype=False)


def test_two_gaps_are_compared_with_clocks_either_way():
    few, wide = (of(21.0), of(20.0)), (of(16.5), of(14.5))
    found, same = stats.gap_difference(wide, few), stats.gap_difference(few, few)
    assert found["claim"] == "slower" and found["gap_before"] == pytest.approx(0.05)
    assert found["difference"] == pytest.approx(16.5 / 14.5 - 1.05)
    assert stats.gap_difference(wide, (of(21.0, 1700.0), of(20.0)))["claim"] == "within noise"
    assert same["claim"] == "within noise" and same["difference"] == 0
    assert stats.gap_difference((of(21.0, n=3), of(20.0)), few)["claim"] == "no interval"


def told(*rows):
    """What runs have over resident, in the order given."""
    return compare.overhead(frames(*rows)).reindex([row["run"] for row in rows])


def test_overhead_is_over_resident_with_what_both_intervals_leave_open():
    rows = [run("resident"), run("layerwise", 21.0), run("fsdp", 21.0, n=3)]
    _, row, few = told(*rows).itertuples()
    assert (row.reference, row.resident_s) == (rows[0]["run"], 20.0)
    gap = difference(rows[1], rows[0])
    assert gap["step_difference_s"] == pytest.approx(1.0) and gap["low_s"] < 1.0 < gap["high_s"]
    assert row.overhead == pytest.approx(0.05) and row.claim == "slower"
    assert row.overhead_low == pytest.approx(21 * 0.999 / (20 * 1.001) - 1)
    assert row.same_boards and not row.bracketed and few.claim == "no interval"


def test_resident_on_the_same_boards_goes_first_then_the_latest():
    residents = [run("resident", boards=(at,), latest=at == "c", started=at) for at in "abc"]
    others = [run("layerwise", 22.5, boards=boards) for boards in (("a",), ("c",), ("d",), ())]
    found = told(*residents, *others)
    a, _, c = (each["run"] for each in residents)
    assert found.reference.tolist()[2:] == [c, a, c, c, c], "the one that counts is its own"
    assert found.same_boards.tolist()[3:] == [True, True, False, False]


def test_runs_of_other_work_and_rehearsals_are_no_reference():
    mine = run("layerwise", 21.0)
    others = [run("resident", **how) for how in
              ({"group": "other"}, {"rehearsal": True}, {"status": "failed"})]  # fmt: skip
    assert told(mine, *others).iloc[0][["reference", "overhead", "claim"]].isna().all()
    assert told(mine, run("resident")).overhead.notna().all()
    assert compare.overhead(EMPTY).empty


def test_resident_again_at_the_end_gives_a_campaigns_drift():
    rows = [run("resident", source="bench"), run("layerwise", 20.5, source="bench"),
            run("resident", 20.6, source="bench", again=True)]  # fmt: skip
    cost = told(*rows[:2])
    assert cost.drift.isna().all() and not cost.bracketed.any() and cost.claim.iloc[1] == "slower"
    cost = told(*rows)
    assert cost.drift.tolist() == [pytest.approx(0.03)] * 3 and cost.bracketed.all()
    assert cost.claim.iloc[1] == "within noise", "resident moved as much"
    assert (cost.reference == rows[0]["run"]).all()
    assert compare.told(cost.iloc[1], cost.iloc[0])["allowance"] == pytest.approx(0.03)


def test_residents_on_the_same_boards_give_a_jobs_drift():
    rows = [run("resident", 20.0, latest=False), run("resident", 20.6),
            run("layerwise", 21.0), run("layerwise", 21.0, boards=("b",))]  # fmt: skip
    here, there = (row for _, row in told(*rows)[2:].iterrows())
    assert here.drift == pytest.approx(0.03) and math.isnan(there.drift)
    assert compare.told(there, here)["allowance"] > 0.02


def test_the_limit_is_compute_or_the_link_and_bits_are_residents():
    moved = [{"h2d_step_bytes": 5e9}, {"h2d_step_bytes": 1000e9}, {"link_gb_s": NAN}]
    found = told(run("resident", 10.0), *(run("layerwise", 21.0, **how) for how in moved))
    assert found.limit_s.tolist()[1:3] == [10.0, 20.0] and math.isnan(found.limit_s.iloc[3])
    assert found.over_limit.iloc[2] == pytest.approx(1.05)
    # Unpacking takes 5 ms a block of half a GB by itself, and a sharded block is whole by then.
    plan = {"unpack_s": 5e-3, "packed_bytes": 5 * 10**8}  # without one it is not known
    packed = {"transfer": "packed", "h2d_step_bytes": 5e9, "gpus": 2}
    ways = [{"plan_inputs": plan}, {}, {"settings": {"shard": True}}, {"h2d_step_bytes": 1e12},
            {"file": "another"}, {"transfer": "bf16"}]  # fmt: skip
    found = told(run("resident", 10.0), *(run("stream", 21.0, **packed | way) for way in ways))
    assert found.limit_s.tolist()[1:] == pytest.approx(
        [10.05, 10.05, 10.1, 20.0, NAN, 10.0], nan_ok=True)  # fmt: skip
    rows = [run("resident"), run("layerwise"), run("swap", latents="x"),
            run("stream", repeats=False), run("fsdp", latents=None)]  # fmt: skip
    assert told(*rows).same_bits.tolist()[1:] == [True, False, False, None]


def test_the_headline_takes_each_engines_run_that_has_its_resident_beside_it():
    rows = [run("resident"), run("layerwise", 21.0), run("layerwise", boards=("b",), started="3"),
            run("layerwise", prefetch=3), run("stream", vram_budget_gb=30.0),
            run("swap", latest=False), run("fsdp", compiled=True),
            run("layerwise", cfg_parallel=True)]  # fmt: skip
    assert compare.headline(frames(*rows)).run.tolist() == [rows[1]["run"]]
    rows = [run("resident", boards=boards) for boards in (("a",), ("b",))]
    rows += [run("layerwise", 21.0), run("swap"), run("swap", boards=("b",), started="2027")]
    beside = compare.headline(frames(*rows)).set_index("engine").run
    assert beside.swap == rows[3]["run"], "the same boards as layerwise go before the date"
    assert compare.headline(EMPTY).empty and compare.answer(EMPTY).empty


def test_layouts_are_compared_engine_by_engine_and_held_against_their_own_resident():
    steps = {"resident": (8.4, 7.6), "layerwise": (8.7, 7.62), "stream": (8.41, 8.4)}
    rows = [on(4, engine, step, cfg_parallel=apart)
            for engine, both in steps.items()
            for step, apart in zip(both, (False, True), strict=True)]  # fmt: skip
    found = compare.layouts(frames(*rows, on(2, "resident", 12.0))).set_index("engine")
    assert found.claim.to_dict() == {
        "resident": "faster", "layerwise": "faster", "stream": "within noise"
    }  # fmt: skip
    layerwise = found.loc["layerwise"]
    assert (layerwise.step_s_cfg, layerwise.step_s_ulysses) == (7.62, 8.7)
    assert layerwise.difference == pytest.approx(7.62 / 8.7 - 1)
    assert layerwise.overhead_cfg == pytest.approx(7.62 / 7.6 - 1)
    assert layerwise.overhead_ulysses == pytest.approx(8.7 / 8.4 - 1)
    assert compare.layouts(frames(*rows[::2])).empty and compare.layouts(EMPTY).empty
    packed = run("stream", transfer="packed", started="3")
    found = compare.headline(frames(run("resident"), run("stream", started="2"), packed))
    assert found.transfer.tolist() == ["bf16"]


def test_both_layouts_of_a_campaign_are_compared_engine_by_engine(tmp_path):
    """They are cells of their own: Ulysses' resident is no reference for the others, and stream
    with CFG parallelism no rival of engines without."""
    apart = {"resident": 0.6, "layerwise:prefetch=1": 0.66, "planned": 0.61, "fsdp": 0.7,
             "sglang:prefetch=1": 0.65}  # fmt: skip
    steps = {label.replace(":", ":enable_cfg_parallel=true,") if ":" in label
             else label + ":enable_cfg_parallel=yes": factor
             for label, factor in apart.items()}  # fmt: skip
    both = {"resident": 1.0, "layerwise:prefetch=1": 1.2, "planned": 1.01,
            "sglang:prefetch=1": 1.3, "resident again": 1.0}  # fmt: skip
    campaigns.write(campaigns.campaign(factors=both | steps, branches=2), tmp_path)
    found = load([tmp_path])
    cells = compare.layout_cells(found)
    assert len(cells) == 12 and set(cells.claim) == {"faster"}, "fsdp has no counterpart"
    here = cells[cells.tokens == 7800].set_index("engine")
    assert here.difference.to_dict() == pytest.approx(
        {"layerwise": 0.66 / 1.2 - 1, "resident": 0.6 - 1, "sglang": 0.65 / 1.3 - 1,
         "stream": 0.61 / 1.01 - 1})  # fmt: skip
    assert here.overhead.to_dict() == pytest.approx(
        {"layerwise": 0.1, "resident": 0.0, "sglang": 0.65 / 0.6 - 1, "stream": 0.61 / 0.6 - 1}
    )
    assert not compare.rivals(found).cfg_parallel.any() and len(compare.rivals(found)) == 6
    assert compare.layout_cells(EMPTY).empty
    whole = found.runs[found.runs.label == "sglang:prefetch=1"].h2d_step_bytes.iloc[0]
    assert 2 * here.h2d_step_bytes.sglang == whole, "a rank runs one branch"


def test_each_number_of_gpus_has_its_answer_and_more_than_two_are_named():
    rows = [on(gpus, engine, step) for gpus in (2, 4)
            for engine, step in (("resident", 20.0), ("layerwise", 20.0 + gpus / 5))]  # fmt: skip
    found = compare.answer(frames(*rows))
    assert found.gpus.tolist() == [2, 4] and set(found.place) == {"PCIe path"}
    said = compare.quoted(found, "PCIe path", "layerwise")
    assert said.startswith(f"{ratio(0.02)} to {ratio(0.04)}") and "720p on 4 GPUs" in said
    assert compare.quoted(found[found.gpus == 2], "PCIe path", "layerwise") == ratio(0.02)
    assert compare.quoted(found, "NVLink", "layerwise") == ""
    short = compare.answer(frames(*rows, on(8, "resident", 20.0), on(8, "layerwise", 30.0, n=3)))
    assert compare.quoted(short, "PCIe path", "layerwise") == said, "too few steps do not count"
    assert compare.sizes(short) == " and ".join(f"720p on {n} GPUs" for n in (2, 4, 8))
    assert compare.quoted(short[short.gpus == 8], "PCIe path", "layerwise") != ""
    assert compare.claimed(found, "layerwise") == "slower (PCIe path)"
    level = found.assign(claim=found.claim.where(found.gpus == 4, "within noise"))
    said = "slower (PCIe path); within noise (PCIe path at 720p on 2 GPUs)"
    assert compare.claimed(level, "layerwise") == said


@pytest.mark.parametrize(("rows", "gpus", "said"), [
    ([{"gpus": 4}, {"gpus": 4, "height": 720}], "s9.1.new4.gpus",
     "480p instead of 720p in 1 of 2 runs"),
    ([{"gpus": 4, "height": 720}], "s9.1.new4.gpus", ""),
    ([{"height": 720}], "s9.1.new4.gpus", "1 GPU instead of 4"), ([{"height": 720}], "", ""),
    ([{"height": 720, "gpu_model": "NVIDIA H200"}], "", "H200 instead of H100"),
])  # fmt: skip
def test_a_setting_says_how_many_runs_differ(rows, gpus, said):
    runs = frames(*(run("swap", **row) for row in rows)).runs
    assert compare.differs(FACTS, runs, gpus) == said


WHOLE = {"resident": 1.0, "sglang:prefetch=1": 1.3, "sglang:prefetch=3": 1.2, "planned": 1.01,
         "stream:slots=2": 1.5, "stream:transfer=packed": 0.9, "resident again": 1.0}  # fmt: skip
CUT = {"sglang:prefetch=1": 0.5, "planned": 1.01}


@pytest.mark.parametrize(("changes", "ours", "said"), [
    ({"fsdp": 1.0}, "planned", "than SGLang 0.5.23 in 3 of 3 cells, than fsdp in 0 of 3 cells, "
     "than layerwise with prefetch 1 in 3 of 3 cells, and slower in none"),
    ({"fsdp": 0.9}, "planned", "than SGLang 0.5.23 in 3 of 3 cells, than fsdp in 0 of 3 cells, "
     "than layerwise with prefetch 1 in 3 of 3 cells, and slower than fsdp in 3 cells"),
    ({"planned": None, "fsdp": 1.5}, "stream:slots=2", "than SGLang 0.5.23 in 0 of 3 cells, than "
     "fsdp in 0 of 3 cells, than layerwise with prefetch 1 in 0 of 3 cells, and slower than SGLang "
     "0.5.23 in 3 cells, than layerwise with prefetch 1 in 3 cells"),
])  # fmt: skip
def test_rivals_are_held_against_stream_in_the_latest_whole_campaign(tmp_path, changes, ours, said):
    one = {"layerwise:prefetch=1": 1.2, **WHOLE, **changes}
    one = {label: factor for label, factor in one.items() if factor}
    made = {"early": (1, WHOLE | {"sglang:prefetch=3": 0.5}), "counts": (2, one),
            "cut": (3, {"resident": 1.0} | CUT), "without resident": (4, CUT),
            "alone": (5, {"resident": 1.0, "planned": 1.0, "resident again": 1.0})}  # fmt: skip
    for name, (day, factors) in made.items():
        report = campaigns.campaign(factors=factors)
        for row in report["rows"]:
            row["ended_at"] = f"2026-03-0{day}T12:00:00+00:00"
        campaigns.write(report, tmp_path, name)
    found = compare.rivals(load([tmp_path]))
    assert set(found.campaign) == {"counts"} and len(found) == 9
    assert set(found.label[found.engine == "sglang"]) == {"sglang:prefetch=3"}, "its fastest"
    assert found.ours.str.endswith(f"/{ours}").all()
    assert compare.beaten(found) == f"faster {said}"
