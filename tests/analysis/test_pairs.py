"""Which pair of runs stands for which cause or question, what else differs, and what it says."""

import pandas as pd
import pytest
import synthetic
from madeup import NAN, frames, on, run

from wanreport.analysis.frames import EMPTY
from wanreport.analysis.pairs import differences, pairs
from wanreport.baseline.ledger import questions

COUNTERS = ("allocations", "event_waits", "stream_waits", "host_syncs")
COUNTED = {"layerwise": (551.0, 19.0, 20.0, 0.0), "stream": (0.0, 39.6, 0.0, 0.0)}
TIMED = (0.0, 99.7, 0.0, 0.0)  # what stream counts with windows
CELL = {"blocks": 20, "branches": 1, "source": "bench"}
"""A row of a campaign over 20 blocks and one branch."""


def slots(step, number=3, windows=None, **changes):
    settings = {"slots": number, "residents": 0, "shard": False, "windows": windows,
                "branches_per_visit": 2, "copy_streams": 1, "priority": 0}  # fmt: skip
    return run("stream", step, name=f"stream, slots {number}", settings=settings, **changes)


def told(*rows, counted=False):
    """Pairs of runs, with counters or without."""
    said = {row["run"]: TIMED if row["settings"].get("windows") else COUNTED[row["engine"]]
            for row in rows if counted and row["engine"] in COUNTED}  # fmt: skip
    counters = {name: dict(zip(COUNTERS, found, strict=True)) for name, found in said.items()}
    return pairs(frames(*rows, counters=counters))


def of(found, changed):
    (row,) = found[found.changed == changed].itertuples()
    return row


def test_the_pair_with_the_fewest_other_settings_is_taken_and_these_are_listed():
    layerwise, plain = run("layerwise", 1.22, **CELL), slots(1.226, **CELL)
    windows = slots(1.13, 4, windows=(1, 2, 3), **CELL)
    found = told(run("resident", 1.13, **CELL), layerwise, plain, windows, slots(1.1, 2, **CELL),
                 counted=True)  # fmt: skip
    alloc, window = of(found, "allocations"), of(found, "windows")
    assert (alloc.run_a, alloc.run_b, alloc.change) == (layerwise["run"], plain["run"], "551 → 0")
    others = ["engine layerwise → stream", "prefetch 1 → none", "slots none → 3"]
    assert alloc.together_with == others
    assert (alloc.claim, alloc.cause) == ("within noise", "alloc")
    assert (window.run_a, window.run_b) == (plain["run"], windows["run"])
    assert window.together_with == ["waits 39.6 → 99.7", "slots 3 → 4"]
    assert window.claim == "slower" and window.difference == pytest.approx(0.096 / 1.13)
    assert window.scale == 4 and window.effect_s == pytest.approx(4 * 0.096)
    assert window.effect_low_s < window.effect_s < window.effect_high_s
    assert window.effect_low_s == pytest.approx(4 * 1.13 * window.difference_low)
    assert "waits" not in set(found.changed), "nothing waits less often than layerwise"
    # Windows hide every other cause.
    rows = run("resident", 4.5), run("layerwise", 4.8), slots(4.5, windows=(1, 2, 3))
    window = of(told(*rows, counted=True), "windows")
    assert window.scale == 1 and window.together_with[2].startswith("allocations")


def test_a_pair_of_one_setting_is_found_and_others_are_listed():
    rows = [run("resident"), run("layerwise", 21.0), run("layerwise", 20.0, prefetch=3)]
    late = of(told(*rows), "prefetch")
    assert late.together_with == [] and late.change == "1 → 3" and late.claim == "slower"
    assert late.scale == 1 and late.effect_s == pytest.approx(1.0)
    late = of(told(*rows[:2], rows[2] | {"boards": ("b",), "sm_mhz": 1700.0}), "prefetch")
    assert late.together_with == ["boards a → b", "clock 1600 → 1700"]
    assert late.claim == "within noise", "the clock may explain it"
    sizes = run("layerwise", h2d_step_bytes=54.8e9), slots(20.0, h2d_step_bytes=27.4e9)
    found = of(told(run("resident"), *sizes, counted=True), "allocations")
    assert {"bytes 54.8 GB → 27.4 GB", "branches a visit 1 → 2"} <= set(found.together_with)
    none = [run("resident"), run("layerwise", 21.0, prefetch=3), slots(20.0, vram_budget_gb=30.0)]
    assert told(*none, counted=True).empty and pairs(EMPTY).empty


def test_other_machines_are_held_against_their_own_resident():
    def pair(path, resident, layerwise, boards):
        where = {"machine": path, "interconnect": path, "group": path, "boards": tuple(boards)}
        return [on(len(boards), engine, step, **where)
                for engine, step in (("resident", resident), ("layerwise", layerwise))]  # fmt: skip

    on_pcie, alone = pair("PCIe path", 4.5, 4.8, "ab"), pair("", 6.8, 6.82, "a")
    gpus = of(told(*on_pcie, *alone), "gpus")
    assert (gpus.run_a, gpus.run_b) == (on_pcie[1]["run"], alone[1]["run"])
    assert (gpus.claim, gpus.cause) == ("slower", "contention")
    assert gpus.difference == pytest.approx(4.8 / 4.5 - 6.82 / 6.8)
    assert gpus.effect_s == pytest.approx(4.5 * gpus.difference)
    assert gpus.together_with == ["boards a b → a"], "the path goes with the GPUs"
    found = told(*on_pcie, *alone, *pair("NVLink", 3.7, 3.72, "cd"))
    assert set(found[found.changed == "gpus"].machine) == {"PCIe path"}, "not NVLink's"
    path = of(found, "interconnect")
    assert path.change == "PCIe path → NVLink" and path.machine_b == "NVLink"
    other = [each | {"gpu_model": "H200"} for each in alone]
    assert "gpus" not in set(told(*on_pcie, *other).changed)
    longer = {"h2d_step_bytes": 230e9}  # 4.6 s at 50 GB/s: its copies take that long on any path
    assert "gpus" not in set(told(on_pcie[0], on_pcie[1] | longer, *alone).changed)


def test_compiling_is_held_against_eager_each_with_its_own_resident():
    eager = [run("resident", 6.6), run("layerwise", 6.61)]
    compiled = [row | {"compiled": True, "group": "c"}
                for row in (run("resident", 5.7), run("layerwise", 6.0))]  # fmt: skip
    row = of(told(*eager, *compiled), "compiled")
    assert (row.run_a, row.run_b) == (compiled[1]["run"], eager[1]["run"])
    assert (row.together_with, row.claim, row.change) == ([], "slower", "yes → none")


@pytest.mark.parametrize(("one", "two", "names"), [
    ({}, {}, set()), ({}, {"clock": 1610.0, "waits": 108.0}, set()),
    ({}, {"clock": 1640.0, "waits": 120.0}, {"clock", "waits"}),
    (dict.fromkeys(["boards", "clock"], NAN),) * 2 + ({"boards", "clock"},),
    ({}, {"waits": NAN, "slots": 2}, {"waits", "slots"}),
])  # fmt: skip
def test_what_is_not_known_of_a_run_is_not_the_same(one, two, names):
    known = {"boards": ("a",), "clock": 1600.0, "waits": 100.0, "slots": NAN, "bytes": 1.0,
             "allocations": NAN}  # fmt: skip
    differ = differences(*(pd.DataFrame([known | each], dtype=object) for each in (one, two)))
    assert set(differ.columns[differ.iloc[0]]) == names


def test_each_transfer_is_held_against_bf16_and_its_fewer_bytes_follow_from_it():
    rows = [run("resident"), *(slots(step) | {"h2d_step_bytes": moved} for step, moved in
                               ((20.0, 14e9), (18.0, 10.5e9), (19.0, 7e9)))]  # fmt: skip
    for row, transfer in zip(rows[2:], ("packed", "fp8"), strict=True):
        row["settings"]["transfer"] = transfer
    found = told(*rows).query("changed == 'transfer'")
    assert sorted(found.change) == ["fp8 → bf16", "packed → bf16"]
    assert found.together_with.tolist() == [[], []]
    # They tell of no cause, and not of windows.
    others = [run("layerwise", 22.0), slots(17.0, windows=(1, 2, 3))]
    assert {"allocations", "windows"} <= set(told(*rows, *others, counted=True).changed)
    found = told(rows[0], *rows[2:], *others, counted=True)
    assert not {row["run"] for row in rows[2:]} & {*found.run_a, *found.run_b}
    # Nor of another setting, unless both runs travel alike.
    rows[3]["settings"]["shard"] = True
    assert "shard" not in set(told(*rows).changed)


@pytest.mark.parametrize(("changed", "value"), [
    ("shard", True), ("priority", -1), ("copy_streams", 2), ("transfer", "fp8"),
])  # fmt: skip
def test_one_setting_of_stream_is_a_pair(changed, value):
    without, with_it = slots(20.0), slots(19.0)
    with_it["settings"][changed] = value
    found = of(told(run("resident"), without, with_it), changed.replace("_", " "))
    assert found.together_with == [] and found.cause == "" and found.claim == "faster"
    assert (found.run_a, found.run_b) == (with_it["run"], without["run"])


def test_the_new_offload_is_held_against_both_old_ones_on_two_gpus():
    rows = [on(2, engine) for engine in ("resident", "layerwise", "swap", "fsdp")]
    apart = [on(2, engine, cfg_parallel=True) for engine in ("layerwise", "swap")]
    four = [on(4, engine) for engine in ("layerwise", "swap")]
    found = told(*rows, *apart, *four).query("changed == 'engine'")
    assert sorted(found.change) == ["layerwise → fsdp", "layerwise → swap", "layerwise → swap"]
    assert set(found.machine) == {"2× H100, PCIe path"}


def test_the_committed_runs():
    """What they say; runs that come later may find closer pairs."""
    found = pairs(synthetic.committed())
    pcie = found[found.machine == "2× H100, PCIe path"]
    gpus = of(pcie[pcie.source == "job"], "gpus")
    assert gpus.claim == "slower" and 0.2 < gpus.effect_low_s < gpus.effect_high_s < 0.35
    parts = pcie.query("changed == 'gpus' and source == 'bench'")
    assert set(parts.name_a) == {"SGLang 0.5.23"} and set(parts.claim) == {"slower"}
    late = of(found[found.machine == "1× H100"], "prefetch")
    assert late.together_with == [] and late.claim == "within noise"
    # Measured with a setting of NCCL, which one GPU has no use for: it is no other machine.
    assert "1× H100" in set(found.machine[found.changed == "transfer"])
    jobs = pcie.query("changed == 'engine' and source == 'job' and height == 480")
    claims = jobs.set_index("change").claim.to_dict()
    assert claims == {"layerwise → fsdp": "within noise", "layerwise → swap": "slower"}
    asked = questions(found)
    assert {1, 2, 7} <= set(asked.number)
    assert asked[asked.number == 2].tokens.between(7_800, 14_040).all()
    assert asked[asked.number == 7].name_a.str.startswith("stream").all()
