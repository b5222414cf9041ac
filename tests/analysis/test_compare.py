"""How runs are told apart, and what each is held against."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from madeup import NAN, frames, run

from wanreport.analysis import compare
from wanreport.analysis.frames import EMPTY
from wanreport.analysis.stats import (
    SAME_CLOCKS,
    UNKNOWN_CLOCKS,
    Median,
    Run,
    allowance,
    apart,
    median_interval,
)


def of(step: float, mhz: float = 1600.0, off: float = 0.001) -> Run:
    return Run(Median(step, step * (1 - off), step * (1 + off), 6), mhz)


def steps_apart(one: Run, two: Run, drift: float = 0.0) -> int:
    return apart(one.step, two.step, allowance(one, two, drift=drift))


# Medians ------------------------------------------------------------------------------------------


def test_the_interval_of_a_median_is_a_pair_of_its_samples() -> None:
    assert median_interval([3, 1, 2, 6, 5, 4]) == Median(3.5, 1, 6, 6)
    assert median_interval(range(1, 26)) == Median(13, 8, 18, 25)
    five = median_interval([1, 2, 3, 4, NAN, 5])
    assert (five.median, five.n) == (3, 5) and math.isnan(five.low) and math.isnan(five.high)
    assert median_interval([]).n == 0 and math.isnan(median_interval([]).median)


def test_medians_are_apart_where_their_intervals_are() -> None:
    low, high = Median(1, 0.9, 1.1, 6), Median(1.3, 1.2, 1.4, 6)
    assert (apart(high, low), apart(low, high), apart(low, low)) == (1, -1, 0)
    assert apart(high, low, 0.05) == 1 and apart(high, low, 0.1) == apart(low, high, 0.1) == 0
    assert apart(high, Median(1, NAN, NAN, 3)) == 0


# Telling two runs apart ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "clocks", "told"),
    [
        (20.5, (1600, 1600), 1),
        (20.1, (1600, 1600), 0),  # within the drift of one run
        (20.5, (1560, 1600), 0),  # the longer step had the slower clock
        (20.7, (1650, 1600), 1),  # a faster clock makes no step longer
        (22.5, (1740, 1575), 1),  # an engine 12.5 % slower, at a clock 10 % faster
        (20.7, (NAN, 1600), 0),  # an unknown clock is no equal one
        (20.7, (NAN, NAN), 0),
        (21.5, (NAN, NAN), 1),
        (18.5, (NAN, 1600), -1),
        (18.5, (1600, 0.0), -1),  # nor is one that was read as nothing
    ],
)
def test_a_difference_is_claimed_beyond_what_clocks_explain(
    step: float, clocks: tuple[float, float], told: int
) -> None:
    one, two = of(step, clocks[0]), of(20.0, clocks[1])
    assert steps_apart(one, two) == told and steps_apart(two, one) == -told


def test_clocks_explain_in_one_direction_only_but_where_gaps_are_compared() -> None:
    slow, fast = of(21.0, 1700.0), of(20.0, 1600.0)
    assert allowance(slow, fast) == allowance(fast, slow) == pytest.approx(SAME_CLOCKS)
    assert allowance(slow, fast, either_way=True) == pytest.approx(SAME_CLOCKS + 0.0625)
    explained = of(21.0, 1600.0), of(20.0, 1700.0)
    assert allowance(*explained) == pytest.approx(SAME_CLOCKS + 0.0625)
    assert allowance(of(21, NAN), fast) == allowance(fast, of(21, NAN)) == UNKNOWN_CLOCKS
    assert allowance(of(21, NAN), fast, either_way=True) == UNKNOWN_CLOCKS


def test_measured_drift_takes_the_place_of_the_usual_one_where_it_is_more() -> None:
    one, two = of(20.5), of(20.0)
    assert allowance(one, two, drift=0.03) == allowance(one, two, drift=-0.03) == 0.03
    assert allowance(one, two, drift=0.002) == allowance(one, two, drift=NAN) == SAME_CLOCKS
    assert steps_apart(one, two) == 1 and steps_apart(one, two, drift=0.03) == 0


@given(*[st.floats(10, 30), st.sampled_from([NAN, 1500.0, 1600.0, 1980.0])] * 2)
def test_no_order_depends_on_who_is_named_first(a: float, ma: float, b: float, mb: float) -> None:
    assert steps_apart(of(a, ma), of(b, mb)) == -steps_apart(of(b, mb), of(a, ma))


# Overhead -----------------------------------------------------------------------------------------


def told(*rows: Any) -> Any:
    return compare.overhead(frames(*rows))


def test_overhead_is_over_resident_with_what_both_intervals_leave_open() -> None:
    resident, layerwise = run("resident", 20.0), run("layerwise", 21.0)
    row = told(resident, layerwise).loc[layerwise["run"]]
    assert row.reference == resident["run"] and row.resident_s == 20.0
    assert row.overhead == pytest.approx(0.05) and row.claim == "slower"
    assert row.overhead_low == pytest.approx(21 * 0.999 / (20 * 1.001) - 1)
    assert row.same_boards and not row.bracketed and row.same_bits
    few = run("layerwise", 21.0, n=3)
    assert told(resident, few).loc[few["run"]].claim == "no interval"


def test_resident_on_the_same_boards_goes_first_then_the_latest() -> None:
    earlier = run("resident", 20.0, boards=("a",), latest=False, started="2026-01-01")
    middle = run("resident", 21.0, boards=("b",), latest=False, started="2026-01-02")
    last = run("resident", 22.0, boards=("c",), started="2026-01-03")
    on_a, on_c, on_d, unknown = (
        run("layerwise", 22.5, boards=boards) for boards in (("a",), ("c",), ("d",), ())
    )
    found = told(earlier, middle, last, on_a, on_c, on_d, unknown).reference
    assert found[on_a["run"]] == earlier["run"]
    assert found[on_c["run"]] == found[on_d["run"]] == found[unknown["run"]] == last["run"]
    assert found[last["run"]] == last["run"], "the one that counts is held against itself"
    swapped = told(earlier, last, on_d).same_boards
    assert not swapped[on_d["run"]]


def test_runs_of_other_work_and_rehearsals_are_no_reference() -> None:
    mine = run("layerwise", 21.0)
    others = [run("resident", group="other"), run("resident", rehearsal=True),
              run("resident", status="failed")]  # fmt: skip
    found = told(mine, *others)
    assert found.loc[mine["run"]].reference is None and math.isnan(found.overhead[mine["run"]])
    assert told(mine, run("resident")).overhead.notna().all()
    assert compare.overhead(EMPTY).empty


def test_resident_again_at_the_end_gives_a_campaigns_drift() -> None:
    rows = [run("resident", 20.0, source="bench"), run("layerwise", 20.5, source="bench")]
    cost = told(*rows)
    assert cost.drift.isna().all() and not cost.bracketed.any()
    assert cost.claim[rows[1]["run"]] == "slower"
    rows.append(run("resident", 20.6, source="bench", again=True))
    cost = told(*rows)
    assert cost.drift.tolist() == [pytest.approx(0.03)] * 3 and cost.bracketed.all()
    assert cost.claim[rows[1]["run"]] == "within noise", "resident moved as much"
    assert (cost.reference == rows[0]["run"]).all()
    assert compare.pair_drift(cost.iloc[0], cost.iloc[1]) == pytest.approx(0.03)


def test_residents_on_the_same_boards_give_a_jobs_drift() -> None:
    again = [run("resident", step, latest=latest) for step, latest in ((20.0, False), (20.6, True))]
    here, there = run("layerwise", 21.0), run("layerwise", 21.0, boards=("b",))
    drift = told(*again, here, there).drift
    assert drift[here["run"]] == pytest.approx(0.03) and math.isnan(drift[there["run"]])


def test_the_limit_is_compute_or_the_link_whichever_takes_longer() -> None:
    resident = run("resident", 10.0)
    light, heavy = (run("layerwise", 21.0, h2d_step_bytes=size) for size in (5e9, 1000e9))
    without = run("layerwise", 21.0, link_gb_s=NAN)
    found = told(resident, light, heavy, without)
    assert found.limit_s[[light["run"], heavy["run"]]].tolist() == [10.0, 20.0]
    assert found.over_limit[heavy["run"]] == pytest.approx(1.05)
    assert math.isnan(found.limit_s[without["run"]])


def test_bits_are_residents_unless_one_differs_or_does_not_repeat() -> None:
    rows = [run("resident"), run("layerwise"), run("swap", latents="x"),
            run("stream", repeats=False), run("fsdp", latents=None)]  # fmt: skip
    assert told(*rows).same_bits.tolist()[1:] == [True, False, False, None]


# Differences --------------------------------------------------------------------------------------


def test_a_difference_has_seconds_shares_and_a_claim() -> None:
    found = compare.difference(run("layerwise", 21.0), run("swap", 20.0))
    assert found["difference"] == pytest.approx(0.05) and found["claim"] == "slower"
    assert found["step_difference_s"] == pytest.approx(1.0)
    assert found["low_s"] < 1.0 < found["high_s"]
    assert compare.difference(run("swap"), run("swap", 20.1))["claim"] == "within noise"
    assert compare.difference(run("swap"), run("swap", n=3))["claim"] == "no interval"
    drifted = compare.difference(run("layerwise", 21.0), run("swap", 20.0), 0.06)
    assert drifted["claim"] == "within noise"


def test_two_gaps_are_compared_with_clocks_either_way() -> None:
    few = run("layerwise", 21.0), run("swap", 20.0)
    wide = compare.gap_difference((run("layerwise", 16.5), run("swap", 14.5)), few)
    assert wide["claim"] == "slower" and wide["gap"] > wide["gap_before"]
    assert wide["difference"] == pytest.approx(16.5 / 14.5 - 1.05)
    fast = run("layerwise", 21.0, sm_mhz=1700.0), run("swap", 20.0)
    noisy = compare.gap_difference((run("layerwise", 16.5), run("swap", 14.5)), fast)
    assert noisy["claim"] == "within noise"
    same = compare.gap_difference(few, few)
    assert same["claim"] == "within noise" and same["difference"] == 0
    short = run("layerwise", 21.0, n=3), run("swap", 20.0)
    assert compare.gap_difference(short, few)["claim"] == "no interval"


def test_repeated_runs_have_a_spread_beside_the_interval_within_one() -> None:
    rows = [run("resident", 20.0, off=0.002), run("resident", 20.76, latest=False, boards=("b",)),
            run("layerwise"), run("resident", 30.0, group="other")]  # fmt: skip
    (row,) = compare.spread(frames(*rows)).to_dict("records")
    assert (row["name"], row["runs"], row["boards"]) == ("resident", 2, 2)
    assert row["spread"] == pytest.approx(0.038) and row["interval"] == pytest.approx(0.002)


def test_the_headline_takes_each_engines_run_that_has_its_resident_beside_it() -> None:
    resident = run("resident", 20.0)
    here = run("layerwise", 21.0)
    elsewhere = run("layerwise", 23.0, boards=("b",), started="2026-02-02")
    left_out = [run("layerwise", 19.0, prefetch=3), run("stream", 19.0, vram_budget_gb=30.0),
                run("swap", 19.0, latest=False), run("fsdp", 19.0, compiled=True)]  # fmt: skip
    found = compare.headline(frames(resident, here, elsewhere, *left_out))
    assert found.run.tolist() == [here["run"]]
    assert compare.headline(EMPTY).empty


def test_same_bits_within_each_group_of_engines() -> None:
    def bits(*rows: Any) -> Any:
        return compare.bits(frames(*rows))

    alike = run("resident"), run("layerwise")
    (row,) = bits(*alike).to_dict("records")
    assert row["same"] and row["differ"] == "" and row["each"] == [each["run"] for each in alike]
    odd = bits(*alike, run("swap", latents="x")).iloc[0]
    assert not odd.same and odd.differ == "swap"
    for latents in ("a", "z"):  # whichever digest sorts first
        assert bits(run("swap"), run("fsdp", latents=latents)).iloc[0].differ == "fsdp"
    assert bits(run("swap"), run("swap")).empty and compare.bits(EMPTY).empty


def test_a_plan_is_held_against_what_was_measured() -> None:
    found = compare.predicted(frames(run("stream", 20.0, planned_step_s=19.0), run("swap")))
    assert found.error.tolist() == [pytest.approx(-0.05)]
