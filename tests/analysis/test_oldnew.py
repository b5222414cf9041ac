"""Old against new, memory, prefetch and the open questions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from madeup import frames, run
from wanreport.analysis.oldnew import GIB, memory, old_new, prefetch, which_old

from wanreport.analysis.frames import EMPTY, Frames, load
from wanreport.analysis.questions import questions
from wanreport.baseline.facts import Facts, load_facts

ROOT = Path(__file__).resolve().parents[2]
PCIE = "2× H100, PCIe path"


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def committed() -> Frames:
    return load(["results"], ROOT)


def value(found: Any, quantity: str, section: str = "s3.2") -> Any:
    (row,) = found[(found.section == section) & (found.quantity == quantity)].itertuples()
    return row


def test_the_baselines_tables_with_both_readings_of_old(facts: Facts) -> None:
    resident, new = run("resident", 20.0), run("layerwise", 21.0)
    swap = run("swap", 20.5, first_s=50.0, switch_s=45.0, denoise_s=600.0, end_to_end_s=603.0)
    found = old_new(frames(resident, new, swap), facts)
    assert len(found) == 14 and set(found.section) == {"s3.2", "s3.3", "s3.3.budget"}
    total = value(found, "total")
    assert (total.resident_s, total.new_s, total.swap_s) == (543.0, 570.0, 603.0)
    assert total.minus_swap_s == -33.0 and pd.isna(total.claim_swap), "one value: no interval"
    steady = value(found, "steady", "s3.3")
    assert (steady.claim_swap, steady.boards_swap) == ("slower", True)
    assert pd.isna(steady.claim_fsdp) and pd.isna(steady.boards_fsdp)
    assert math.isnan(total.fsdp_s) and math.isnan(total.minus_fsdp_s)
    assert (total.baseline_new_s, total.baseline_old_s, total.baseline_minus_s) == (
        845.9,
        761.1,
        84.8,
    )
    assert total.decoded and total.run_new == new["run"]
    silent = old_new(frames(resident, new | {"decode_s": math.nan}, swap), facts)
    assert not silent.decoded.any() and value(silent, "total", "s3.3.budget").new_s == 567.0
    assert value(found, "step").swap_s == pytest.approx(600 / 27)
    switch = value(found, "switch", "s3.3")
    assert (switch.new_s, switch.swap_s) == (21.0, 45.0)
    assert value(found, "early", "s3.3").new_s == 21.0
    assert math.isnan(value(found, "late", "s3.3").new_s), "no step after the switch ran"
    assert value(found, "total", "s3.3.budget").swap_s == 603.0
    alone = old_new(frames(resident, new, swap | {"group": "other"}), facts)
    assert alone.swap_s.isna().all()
    assert old_new(EMPTY, facts).empty


def test_peaks_are_reserved_gibibytes_beside_the_baselines(facts: Facts) -> None:
    found = memory(
        frames(run("resident", reserved_bytes=61 * GIB, gpu_memory_bytes=79 * GIB)), facts
    )
    assert found.name.tolist() == ["baseline, new", "baseline, old", "resident"]
    assert found.reserved_gib.tolist() == [22.88, 61.25, 61.0]
    assert found.free_gib.tolist() == [56.77, 18.40, 18.0]
    assert len(memory(EMPTY, facts)) == 2


def test_the_old_offload_is_told_by_its_signature(facts: Facts) -> None:
    expert = 28_589_252_608  # bytes of one expert of the model
    new = run("layerwise", 21.6, reserved_bytes=23e9, expert_bytes=expert)
    swap = run("swap", 19.8, switch_s=50.0, reserved_bytes=23e9 + expert, expert_bytes=expert)
    fsdp = run("fsdp", 24.0, reserved_bytes=20e9, expert_bytes=expert)
    few = run("swap", 19.8, n=3, switch_s=50.0, reserved_bytes=60e9, expert_bytes=expert,
              height=720, group="large")  # fmt: skip
    large = [run(e, 21.0, n=3, height=720, group="large") for e in ("resident", "layerwise")]
    found = which_old(frames(run("resident"), new, swap, fsdp, few, *large), facts)
    old = found.set_index("name").loc["baseline, old"]
    assert old.memory_experts == pytest.approx((61.25 - 22.88) * GIB / expert, rel=1e-6)
    assert round(old.memory_experts, 2) == 1.44, "reserved GiB, and not GB"
    assert old.difference == pytest.approx(19.8 / 21.6 - 1)
    assert old.spike == pytest.approx(50 / 19.8 - 1)
    rows = found[found.machine != ""].set_index(["name", "height"])
    assert (rows.old["swap", 480], rows.old["fsdp", 480]) == (True, False)
    assert rows.old["swap", 720] is None, "no interval"
    assert which_old(EMPTY, facts).name.tolist() == ["baseline, new", "baseline, old"]


@pytest.mark.parametrize(("steady", "mhz", "same"), [(20.5, None, True), (21.5, None, False),
                                                     (20.5, 1600.0, False)])  # fmt: skip
def test_longer_by_less_than_is_claimed_is_as_the_old_one(
    facts: Facts, steady: float, mhz: float | None, same: bool
) -> None:
    swap = run("swap", steady, switch_s=50.0, sm_mhz=mhz, reserved_bytes=50e9)
    rows = [run("resident"), run("layerwise", 20.0), swap]
    found = which_old(frames(*rows), facts).set_index("name")
    assert found.old["swap"] is same


def test_prefetch_shows_steps_and_memory(facts: Facts) -> None:
    base = run("layerwise", 20.0)
    deep = run("layerwise", 19.0, prefetch=3, allocated_bytes=15e9)
    (row,) = prefetch(frames(run("resident"), base, deep), facts).itertuples()
    assert (row.deep_s, row.base_s, row.claim, row.same_boards) == (19.0, 20.0, "faster", True)
    assert row.step_difference_s == pytest.approx(-1.0)
    assert row.allocated_difference_bytes == 6e9
    assert prefetch(frames(base), facts).empty and prefetch(EMPTY, facts).empty


def test_questions_are_answered_or_say_what_would_answer_them() -> None:
    found = questions(EMPTY)
    assert found.number.tolist() == [1, 2, 3, 4, 5, 6, 7] and not found.exact.any()
    commands = dict(zip(found.number, found.command, strict=True))
    assert commands[1].startswith("wanreport measure params/campaign/480p-2gpu-")
    assert all("python -m benchmarks" in commands[n] for n in (2, 3, 5, 6))
    assert commands[4] == commands[7] == "", "no engine does so"
    assert found.minutes.isna().tolist() == [n in (4, 7) for n in range(1, 8)]

    def stream(**settings: Any) -> Any:
        usual = {"slots": 3, "copy_streams": 1, "priority": 0, "shard": False, "windows": None}
        return run("stream", settings=usual | settings)

    rows = [run("resident", gpus=2), run("layerwise", gpus=2), run("swap", gpus=2), stream(),
            stream(shard=True), stream(priority=-1), stream(copy_streams=2),
            stream(windows=(1, 2, 3), slots=4)]  # fmt: skip
    found = questions(frames(*rows))
    exact = found[found.exact].set_index("number")
    assert exact[["run_one", "run_two"]].to_numpy().tolist() == [
        [rows[1]["run"], rows[2]["run"]],
        *([rows[n]["run"], rows[3]["run"]] for n in (4, 5, 6)),
    ]
    assert exact.index.tolist() == [1, 3, 5, 6] and set(exact.claim) == {"within noise"}
    near = found[~found.exact].set_index("number")
    assert near.run_one.dropna().to_dict() == {7: rows[7]["run"]}
    assert set(near[near.run_one.isna()].index) == {2, 4, 7}


@pytest.mark.parametrize(("tokens", "engine", "exact"), [
    (10_000, "sglang", True), (10_000, "layerwise", False), (14_040, "sglang", False),
])  # fmt: skip
def test_two_paths_are_compared_by_their_overheads(tokens: int, engine: str, exact: bool) -> None:
    cells = [
        run(name, step, tokens=tokens, source="bench", group=path, interconnect=path, gpus=2)
        for path, of in (("PCIe path", "sglang"), ("NVLink", engine))
        for name, step in (("resident", 1.0), (of, 1.3 if path == "PCIe path" else 1.1))
    ]
    (row,) = questions(frames(*cells)).query("number == 2 and run_one.notna()").itertuples()
    assert (row.exact, row.claim) == (exact, "slower")
    assert (row.gap, row.gap_before) == (pytest.approx(0.3), pytest.approx(0.1))
    assert row.difference == pytest.approx(0.2)


def test_the_committed_runs(facts: Facts, committed: Frames) -> None:
    found = old_new(committed, facts)
    total = value(found[(found.machine == PCIE) & (found.height == 480)], "total")
    assert (total.swap_s, total.resident_s) == (
        pytest.approx(183.43, 1e-3),
        pytest.approx(124.9, 1e-3),
    )
    swap = which_old(committed, facts).query("name == 'swap' and height == 480")
    assert set(swap.machine) == {"1× H100", "1× H200", PCIE} and swap.old.all()
    (h100,) = prefetch(committed, facts).query("machine == '1× H100'").itertuples()
    assert h100.claim == "within noise" and h100.same_boards
    assert h100.allocated_difference_bytes == pytest.approx(5.62e9, rel=1e-3)
    asked = questions(committed)
    assert PCIE in set(asked[(asked.number == 1) & asked.exact].machine)
    assert set(asked.number) == set(range(1, 8))
