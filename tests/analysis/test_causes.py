"""Which pair of runs stands for which cause, what else differs in it, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from madeup import frames, run

from wanreport.analysis.causes import causes, differences
from wanreport.analysis.frames import EMPTY, load
from wanreport.baseline.facts import Facts, load_facts

ROOT = Path(__file__).resolve().parents[2]
LAYERWISE = {"allocations": 551.0, "event_waits": 19.0, "stream_waits": 20.0, "host_syncs": 0.0}
STREAM = {"allocations": 0.0, "event_waits": 39.6, "stream_waits": 0.0, "host_syncs": 0.0}
TIMED = {"allocations": 0.0, "event_waits": 99.7, "stream_waits": 0.0, "host_syncs": 0.0}


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


def cell(engine: str, step: float, **changes: Any) -> Any:
    """A row of a campaign over 20 blocks and one branch."""
    return run(engine, step, **{"blocks": 20, "branches": 1, "source": "bench", **changes})


def slots(step: float, number: int = 3, windows: Any = None, **more: Any) -> Any:
    settings = {"slots": number, "residents": 0, "shard": False, "windows": windows,
                "branches_per_visit": 2, "copy_streams": 1, "priority": 0} | more  # fmt: skip
    return cell("stream", step, name=f"stream, slots {number}", settings=settings)


def of(found: pd.DataFrame, changed: str) -> Any:
    (row,) = found[found.changed == changed].itertuples()
    return row


def test_the_pair_with_the_fewest_other_settings_is_taken_and_these_are_listed(
    facts: Facts,
) -> None:
    resident, layerwise = cell("resident", 1.13), cell("layerwise", 1.22)
    plain, windows = slots(1.226), slots(1.13, 4, windows=(1, 2, 3))
    two = slots(1.1, 2, residents=2)
    counters = {layerwise["run"]: LAYERWISE, plain["run"]: STREAM, two["run"]: STREAM,
                windows["run"]: TIMED}  # fmt: skip
    found = causes(frames(resident, layerwise, plain, windows, two, counters=counters), facts)
    alloc = of(found, "allocations")
    assert (alloc.run_a, alloc.run_b, alloc.change) == (layerwise["run"], plain["run"], "551 → 0")
    assert alloc.together_with == [
        "engine layerwise → stream", "prefetch 1 → none", "slots none → 3"
    ]  # fmt: skip
    assert alloc.claim == "within noise" and alloc.cause == "alloc"
    window = of(found, "windows")
    assert (window.run_a, window.run_b) == (plain["run"], windows["run"])
    assert window.together_with == ["waits 39.6 → 99.7", "slots 3 → 4"]
    assert window.claim == "slower" and window.difference == pytest.approx(0.096 / 1.13)
    assert window.scale == 4 and window.effect_s == pytest.approx(4 * 0.096)
    assert window.effect_low_s < window.effect_s < window.effect_high_s
    assert window.effect_low_s == pytest.approx(4 * 1.13 * window.difference_low)
    assert "waits" not in set(found.changed), "nothing waits less often than layerwise"
    assert (alloc.number, alloc.estimate_low_s) == (3, facts.number("s7.alloc.low"))


def test_windows_hide_every_other_cause(facts: Facts) -> None:
    layerwise, windows = run("layerwise", 4.8), slots(4.5, windows=(1, 2, 3))
    windows |= {"blocks": 40, "branches": 2, "source": "job"}
    counters = {layerwise["run"]: LAYERWISE, windows["run"]: STREAM}
    found = causes(frames(run("resident", 4.5), layerwise, windows, counters=counters), facts)
    assert set(found.changed) == {"windows"} and of(found, "windows").scale == 1
    assert any(other.startswith("allocations") for other in of(found, "windows").together_with)


def test_a_pair_of_one_setting_is_found(facts: Facts) -> None:
    one, three = run("layerwise", 21.0), run("layerwise", 20.0, prefetch=3)
    late = of(causes(frames(run("resident"), one, three), facts), "prefetch")
    assert late.together_with == [] and late.change == "1 → 3"
    assert late.claim == "slower" and late.difference == pytest.approx(0.05)
    assert late.scale == 1 and late.effect_s == pytest.approx(1.0)
    far = three | {"boards": ("b",), "sm_mhz": 1700.0}
    late = of(causes(frames(run("resident"), one, far), facts), "prefetch")
    assert late.together_with == ["boards a → b", "clock 1600 → 1700"]
    assert late.claim == "within noise", "the clock may explain it"


def test_other_machines_are_held_against_their_own_resident(facts: Facts) -> None:
    def pair(gpus: int, path: str, resident: float, layerwise: float, **more: Any) -> list[Any]:
        where = {"gpus": gpus, "interconnect": path, "group": f"{gpus}{path}",
                 "machine": f"{gpus}× H100, {path}", "boards": tuple("abcd"[:gpus])}  # fmt: skip
        return [run(engine, step, **{**where, **more})
                for engine, step in (("resident", resident), ("layerwise", layerwise))]  # fmt: skip

    on_pcie, alone = pair(2, "PCIe path", 4.5, 4.8), pair(1, "", 6.8, 6.82)
    found = causes(frames(*on_pcie, *alone), facts)
    gpus = of(found, "gpus")
    assert (gpus.run_a, gpus.run_b) == (on_pcie[1]["run"], alone[1]["run"])
    assert gpus.claim == "slower" and gpus.cause == "contention"
    assert gpus.difference == pytest.approx(4.8 / 4.5 - 6.82 / 6.8)
    assert gpus.effect_s == pytest.approx(4.5 * gpus.difference)
    assert gpus.together_with == ["boards a b → a"], "the path goes with the GPUs"
    nvlink = pair(2, "NVLink", 3.7, 3.72, boards=("c", "d"))
    found = causes(frames(*on_pcie, *alone, *nvlink), facts)
    assert set(found[found.changed == "gpus"].machine) == {"2× H100, PCIe path"}, "not NVLink's"
    path = of(found, "interconnect")
    assert path.change == "PCIe path → NVLink" and path.machine_b == "2× H100, NVLink"
    other = [each | {"gpu_model": "H200"} for each in alone]
    assert "gpus" not in set(causes(frames(*on_pcie, *other), facts).changed)


def test_compiling_is_held_against_eager_each_with_its_own_resident(facts: Facts) -> None:
    eager = [run("resident", 6.6), run("layerwise", 6.61)]
    compiled = [
        run(e, s, compiled=True, group="c") for e, s in (("resident", 5.7), ("layerwise", 6.0))
    ]
    row = of(causes(frames(*eager, *compiled), facts), "compiled")
    assert (row.run_a, row.run_b) == (compiled[1]["run"], eager[1]["run"])
    assert row.together_with == [] and row.claim == "slower" and row.change == "yes → none"


def test_what_is_not_known_of_a_run_is_not_the_same() -> None:
    known = {"engine": "stream", "boards": ("a",), "clock": 1600.0, "waits": 100.0, "slots": None}
    assert differences(known, known) == {}
    assert differences(known, known | {"clock": 1610.0, "waits": 108.0}) == {}
    assert set(differences(known, known | {"clock": 1640.0, "waits": 120.0})) == {"clock", "waits"}
    blind = known | {"boards": None, "clock": None}
    assert set(differences(blind, blind)) == {"boards", "clock"}
    assert set(differences(known, known | {"waits": None, "slots": 2})) == {"waits", "slots"}


def test_sizes_read_as_sizes(facts: Facts) -> None:
    layerwise = run("layerwise", h2d_step_bytes=54.8e9)
    stream = slots(20.0) | {"blocks": 40, "branches": 2, "source": "job", "h2d_step_bytes": 27.4e9}
    rows = {layerwise["run"]: LAYERWISE, stream["run"]: STREAM}
    found = causes(frames(run("resident"), layerwise, stream, counters=rows), facts)
    assert "bytes 54.8 GB → 27.4 GB" in of(found, "allocations").together_with
    assert "branches a visit 1 → 2" in of(found, "allocations").together_with


def test_runs_with_a_budget_and_deeper_prefetches_make_no_other_pair(facts: Facts) -> None:
    rows = [run("resident"), run("layerwise", 21.0, prefetch=3),
            slots(20.0) | {"blocks": 40, "branches": 2, "vram_budget_gb": 30.0}]  # fmt: skip
    counters = {rows[1]["run"]: LAYERWISE, rows[2]["run"]: STREAM}
    assert causes(frames(*rows, counters=counters), facts).empty and causes(EMPTY, facts).empty


def test_the_committed_runs(facts: Facts) -> None:
    """What they say of the causes; runs that come later may find closer pairs."""
    found = causes(load(["results"], ROOT), facts)
    pcie = found[found.machine == "2× H100, PCIe path"]
    gpus = of(pcie, "gpus")
    assert gpus.claim == "slower" and 0.2 < gpus.effect_low_s < gpus.effect_high_s < 0.35
    window = pcie[(pcie.changed == "windows") & pcie.work.str.startswith("32,760")].iloc[0]
    assert window.claim == "slower" and "slots 3 → 4" in window.together_with
    late = of(found[found.machine == "1× H100"], "prefetch")
    assert late.together_with == [] and late.claim == "within noise"
    alloc = pcie[(pcie.changed == "allocations") & pcie.work.str.contains("one branch")]
    assert len(alloc) == 3 and set(alloc.claim) == {"within noise"}
