"""The planner of `stream`: what it must prefer where all is clear, and how a plan reads."""

import json
import re
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests import synthetic
from tests.synthetic import plan_inputs
from wanreport import cli
from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.measure.jobs import Machine
from wanreport.planner import plan as planner
from wanreport.planner.cost import Inputs, Route
from wanreport.planner.plan import CHUNK, candidates, make_plan, window_quotas

ALONE = {"ranks": 1, "collectives_s": 0.0, "local": Route(54e9, 54e9), "sharded": None}
NVLINK = {"local": Route(54e9, 54e9), "sharded": Route(100e9, 90e9, 1.02, 1.05)}
FEW_TOKENS = {"windows_s": (5e-4, 5e-4, 1e-3), "collectives_s": 3e-4}


def best(room=4, **changes):
    return candidates(plan_inputs(**changes), room)[0].settings


def test_the_best_way_is_the_obvious_one_where_all_is_clear():
    assert best().windows is not None, "collectives share the link: copies keep to windows"
    settings = best(**NVLINK)
    assert settings.windows is None and not settings.shard, "nothing collides: the plainest wins"
    assert best(**NVLINK | FEW_TOKENS).shard, "transfer is all, gathers are fast: in parts"
    slow = NVLINK | FEW_TOKENS | {"sharded": Route(50e9, 50e9)}
    assert not best(**slow).shard, "gathers no faster than the link are not worth it"
    assert {c.kind for c in candidates(plan_inputs(**ALONE), 4)} == {(False, False)}


def test_candidates_come_in_order_and_keep_to_the_room():
    """In that of their predictions, but for what is alike: there the plainer comes first."""
    totals = [c.predicted.total(27) for c in candidates(plan_inputs(), 15)]
    assert all(a <= b * 1.001 for a, b in pairwise(totals))
    assert len({round(total, 2) for total in totals}) > 2
    for blocks in range(2, 90):
        for settings in (candidate.settings for candidate in candidates(plan_inputs(), blocks)):
            assert settings.buffers(40) <= blocks
            # A pass's last block never shares its slot with the first of the next one.
            assert not settings.slots or (40 - settings.residents) % settings.slots == 0


def test_what_fits_stays():
    assert best(40, **NVLINK | {"sharded": None}) == StreamSettings(0, 40)
    for blocks in (40, 79, 80):
        assert best(blocks).residents == 40 and best(blocks).both == (blocks == 80)
    assert best(30, **ALONE | FEW_TOKENS) == StreamSettings(2, 28)


def test_what_the_device_cannot_hold_is_left_out():
    inputs = plan_inputs(device_bytes=9 * 10**9)  # 4 of them are activations, 1 is outer
    assert all(c.predicted.device_bytes <= 9 * 10**9 for c in candidates(inputs, 6))
    (least,) = candidates(plan_inputs(device_bytes=1), 80)
    assert least.settings.both, "one is left, so that the job can say that it ran out of memory"


def test_quotas_are_windows_less_a_margin_unless_the_link_is_too_slow_for_them():
    slow = plan_inputs(windows_s=(0.03, 0.05, 0.06))
    for quota, seconds in zip(window_quotas(slow, StreamSettings(3)), slow.windows_s, strict=True):
        assert 0 <= quota - 0.9 * seconds * 54e9 < CHUNK
    fast = plan_inputs(windows_s=(1e-3, 1e-3, 2e-3))
    # Where a collective suffers more than a block that waits, nothing is pushed into one.
    bad = replace(fast, local=Route(54e9, 1e9, 1.0, 1.5))
    for inputs, settings, total in (
        (fast, StreamSettings(2), fast.block_bytes / 2),
        (fast, StreamSettings(2, 20), 0.9 * 4e-3 * 54e9),  # half as much to bring in a visit fits
        (bad, StreamSettings(2), 0.9 * 4e-3 * 54e9),
    ):
        assert 0 <= sum(window_quotas(inputs, settings)) - total <= 3 * CHUNK


def test_where_packing_was_measured_all_ways_are_packed_and_quotas_are_packed_bytes():
    fast = plan_inputs(windows_s=(1e-3, 1e-3, 2e-3))
    packed = replace(fast, transfer="packed", packed_bytes=fast.block_bytes * 3 // 4)
    for blocks in (2, 4, 20, 40, 80):
        ways = candidates(packed, blocks)
        assert {c.settings.transfer for c in ways} == {"packed"}
        assert {"packed" in planner.describe(asdict(c.settings)) for c in ways} == {blocks < 80}
    settings = StreamSettings(2, transfer="packed")
    few, many = (sum(window_quotas(inputs, settings)) for inputs in (packed, fast))
    assert 0 <= few - 0.75 * many <= 6 * CHUNK


@pytest.mark.parametrize(("budget", "blocks", "transfer"), [
    (None, 4, "bf16"), (1.0 + 4 * 0.7, 4, "bf16"), (1.0 + 4 * 0.7 - 1e-6, 3, "bf16"),
    (0.5, 0, "bf16"), (1.0 + 4 * 0.7, 2, "packed"), (1.0 + 4 * 0.7, 2, "fp8"),
])  # fmt: skip
def test_the_room_is_what_the_budget_leaves_beside_the_rest(budget, blocks, transfer):
    assert planner.room(budget, 700_000_000, 500_000_000, transfer) == blocks


def test_a_trial_runs_a_smaller_model_with_the_same_share_of_residents():
    for (slots, residents), fewer in {(2, 20): 6, (3, 1): 0, (0, 40): 12, (3, 16): 3}.items():
        found = planner.scaled(StreamSettings(slots, residents, shard=True), 40, 12)
        assert found == StreamSettings(slots, fewer, shard=True)


@pytest.mark.parametrize(("second", "wins"), [
    ([1.0, 1.8], True), ([1.9, 1.9], False), ([1.885, 1.885], True),
    ([1.0, 2.0], False),  # turns of one setting differ as much as the two medians
])  # fmt: skip
def test_a_trial_of_the_two_best_ways_overrules_the_prediction_with_a_clear_word(second, wins):
    trial = Mock(return_value=[[2.1, 1.9], second])
    plan, settings = make_plan(plan_inputs(), 4, trial)
    (asked,) = trial.call_args.args
    assert asked[0].windows and not asked[1].windows
    assert settings == asked[wins] and plan["by"] == ("trial" if wins else "prediction")
    assert plan["candidates"][plan["chosen"]]["settings"] == asdict(settings)
    assert [entry["step_s"] for entry in plan["trial"]] == [2.0, sum(second) / 2]
    assert plan["trial"][1]["turns_s"] == second
    assert Inputs(**json.loads(json.dumps(plan))["inputs"]) == plan_inputs()


@pytest.mark.parametrize(("given", "blocks"), [({}, 80), ({}, 40), (ALONE, 2)])
def test_nothing_is_tried_where_the_prediction_is_clear_or_nothing_moves(given, blocks):
    assert make_plan(plan_inputs(**given), blocks, lambda _: 1 / 0)[0]["trial"] == []


def _record(scale="a14b", **changes):
    return synthetic.record("s", scale=scale, engine="stream", num_gpus=2, **changes)


def test_a_record_of_the_same_shape_gives_a_plan_for_another_budget():
    job = Job(name="other", engine="stream", num_gpus=2, vram_budget_gb=60.0)
    made = [_record(), _record(), _record(height=480), synthetic.record(scale="a14b")]
    made[1]["started_at"] = "9999"
    found = [(Path(str(i)), record) for i, record in enumerate(made)]
    path, plan = planner.from_records(job, found) or (None, {})
    assert path == Path("1")
    assert plan["candidates"][0]["settings"]["both"]
    assert planner.from_records(job, found[2:]) is None
    assert planner.from_records(job.model_copy(update={"transfer": "packed"}), found) is None


def test_a_plan_is_from_here_from_a_record_or_says_what_is_missing(project, capsys, monkeypatch):
    monkeypatch.setattr(cli, "this_machine", lambda: Machine("cpu", 0))

    def plan(text):
        (project / "j.yaml").write_text(f"name: j\nnum_gpus: 2\n{text}\n")
        return cli.main(["plan", str(project / "j.yaml")]), *capsys.readouterr()

    status, _, error = plan("engine: layerwise")
    assert status == 2 and "j.yaml: engine: " in error
    status, _, error = plan("engine: stream")
    assert status == 1 and "2 GPUs" in error
    synthetic.write([_record()], project / "results")
    status, out, _ = plan("engine: stream")
    assert status == 0 and "results/4x-nvidia-h100-pcie/s-" in out
    assert re.search("\n> .*\xa0m?s .*\n  .*\xa0m?s ", out), "times, the chosen one marked"

    rehearse = Mock(return_value=[(Path(), _record("tiny"))])
    monkeypatch.setattr(cli, "measure_jobs", rehearse)
    status, out, _ = plan("engine: stream\nscale: tiny")
    ((job,), *_), how = rehearse.call_args
    assert how == {"plan_only": True} and job.scale == "tiny"
    assert status == 0 and "rehearsal" in out and "\n> " in out
    assert not re.search("\xa0m?s ", out), "no times"
