"""The cost model of `stream`, and what a probe concludes from what it measured for it."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tests.models import NARROW, make_experts, make_store
from tests.ranks import in_ranks
from tests.synthetic import plan_inputs
from wanreport.engines import Stream
from wanreport.jobs.settings import RING, StreamSettings
from wanreport.model.denoise import Guidance, latent_shape
from wanreport.planner import probe
from wanreport.planner.cost import Inputs, Route, predict

seconds = st.floats(1e-4, 0.5)
factors = st.floats(1.0, 3.0)
LINK = {"windows_s": (1e-9,) * 3, "collectives_s": 0.0, "other_s": 0.0, "ranks": 1,
        "local": Route(54e9, 54e9), "sharded": None}  # fmt: skip
SLACK = 1 + 1e-9


@st.composite
def cases(draw):
    ranks, link = draw(st.integers(1, 8)), draw(st.floats(1e9, 1e11))

    def route(most):
        rate = draw(st.floats(most / 10, most))
        return Route(rate, draw(st.floats(0.0, rate)), draw(factors), draw(factors))

    inputs = plan_inputs(
        blocks=draw(st.integers(1, 40)), ranks=ranks, branches=draw(st.integers(1, 2)),
        windows_s=(draw(seconds), draw(seconds), draw(seconds)),
        collectives_s=draw(seconds) if ranks > 1 else 0.0, other_s=draw(seconds), link=link,
        local=route(link), sharded=route(link * ranks) if ranks > 1 else None,
    )  # fmt: skip
    settings = StreamSettings(
        slots=draw(st.integers(2, 5)), residents=draw(st.integers(0, inputs.blocks)),
        shard=ranks > 1 and draw(st.booleans()), windows=draw(st.sampled_from([None, (1, 1, 1)])),
        branches_per_visit=draw(st.integers(1, 2)),
    )  # fmt: skip
    return inputs, settings


@given(cases(), st.floats(1.0, 10.0))
def test_no_step_is_below_its_limit_and_a_faster_route_or_windows_never_cost_time(case, times):
    inputs, settings = case
    assert Inputs(**json.loads(json.dumps(asdict(inputs)))) == inputs
    found = predict(inputs, settings)
    assert found.limit_s <= found.step_s * SLACK
    assert found.step_s <= min(found.first_s, found.switch_s) * SLACK
    faster = {key: route and replace(route, rate=times * route.rate,
                                     collective_rate=times * route.collective_rate)
              for key, route in (("local", inputs.local), ("sharded", inputs.sharded))}  # fmt: skip
    better = predict(replace(inputs, **faster), settings)
    assert better.step_s <= found.step_s * SLACK and better.first_s <= found.first_s * SLACK
    # Where windows are not slowed, keeping to them is free.
    inputs = replace(inputs, local=replace(inputs.local, window_factor=1.0))
    free, timed = (replace(settings, shard=False, windows=w) for w in (None, (1, 1, 1)))
    assert predict(inputs, timed).step_s <= predict(inputs, free).step_s * SLACK


@given(cases())
def test_residents_never_cost_time_and_take_their_memory(case):
    inputs, settings = case
    found = [predict(inputs, replace(settings, residents=n)) for n in range(inputs.blocks + 1)]
    for fewer, more in pairwise(found):
        assert more.step_s <= fewer.step_s * SLACK
        assert more.weights_bytes >= fewer.weights_bytes
    # All resident: nothing moves, in windows or not, sharded or not.
    passes = inputs.branches // min(settings.branches_per_visit, inputs.branches)
    visits = inputs.blocks * inputs.branches
    compute = visits * (sum(inputs.windows_s) + inputs.collectives_s) + passes * inputs.other_s
    assert found[-1].step_s == pytest.approx(compute) == found[-1].limit_s


@given(cases())
def test_time_is_continuous_in_the_bytes_of_a_block(case):
    """Over all its regimes: hidden in windows, beside collectives, waited for."""
    inputs, settings = case
    route, visits = inputs.route(settings), inputs.visits(settings)
    windows, collectives = visits * sum(inputs.windows_s), visits * inputs.collectives_s
    # More than is ever hidden: what a pass brings if everything takes its longest.
    step = 9 * (windows + collectives) * route.rate / 300 / inputs.blocks
    sizes = (int(step * i) for i in range(1, 301))
    found = [predict(replace(inputs, block_bytes=size), settings).step_s for size in sizes]
    # A byte costs at most what one costs that is waited for, or that makes all others wait.
    disturbed = (route.window_factor - 1) * windows + (route.collective_factor - 1) * collectives
    slope = 1 / route.rate + disturbed / (windows * route.rate)
    passes = inputs.branches // min(settings.branches_per_visit, inputs.branches)
    most = passes * settings.moving(inputs.blocks) * (step + 1) * slope * (1 + 1e-6)
    for one, more in pairwise(found):
        assert one * (1 - 1e-9) <= more <= one + most


def test_packed_transfers_move_fewer_bytes_and_hold_staging_buffers_beside():
    small = plan_inputs().block_bytes * 3 // 4
    inputs = plan_inputs(packed_bytes=small, unpack_s=1e-3, **LINK)
    plain, packed = (predict(inputs, StreamSettings(transfer=t)) for t in ("bf16", "packed"))
    assert packed.step_s == pytest.approx(0.75 * plain.step_s)
    assert packed.limit_s == pytest.approx(40 * small / inputs.link)
    assert packed.first_s - packed.step_s == pytest.approx(small / 54e9 + 1e-3)
    assert packed.weights_bytes - plain.weights_bytes == RING * small


@pytest.mark.parametrize(
    ("settings", "share"), [({}, 1), ({"branches_per_visit": 1}, 2), ({"residents": 20}, 0.5)]
)
def test_a_step_that_only_moves_bytes_takes_as_long_as_the_link_needs(settings, share):
    inputs = plan_inputs(**LINK)
    step_s = predict(inputs, StreamSettings(**settings)).step_s
    assert step_s == pytest.approx(share * 40 * inputs.block_bytes / 54e9, rel=1e-4)


def test_collisions_with_collectives_cost_what_was_measured():
    """Loads all the time: every collective takes half as long again."""
    windows, collectives = 80 * 14e-3, 80 * 4.4e-3
    inputs = plan_inputs(local=Route(50e9, 0.0, 1.0, 1.5), other_s=0.0,
                         block_bytes=int(50e9 * windows / 40))  # fmt: skip
    for quotas, factor in ((None, 1.5), ((1, 1, 1), 1.0)):
        found = predict(inputs, StreamSettings(windows=quotas))
        assert found.step_s == pytest.approx(windows + factor * collectives)


def test_with_room_for_one_expert_the_switch_costs_nothing_where_its_bytes_fit_into_a_step():
    slow = plan_inputs(windows_s=(0.05, 0.09, 0.075), collectives_s=0.028)
    for inputs in (slow, plan_inputs()):
        found = predict(inputs, StreamSettings(0, 40))
        assert found.switch_s == pytest.approx(found.step_s)
    # Where the link is slower, the two steps together bring the expert's bytes.
    link = replace(plan_inputs(), local=Route(10e9, 0.0))
    found = predict(link, StreamSettings(0, 40))
    fits = 10e9 * 80 * 14e-3
    assert found.switch_s == pytest.approx(found.step_s + (40 * link.block_bytes - 2 * fits) / 10e9)


# What a probe concludes ---------------------------------------------------------------------------

WINDOWS = (3e-3, 5e-3, 6e-3)
QUIET = probe.Phases(WINDOWS, 1e-3, 0.0, 0.0)


@given(st.floats(1e9, 1e11), st.floats(0.0, 1.0), factors, factors, st.floats(1e-4, 1e-1))
def test_what_constant_loads_cost_gives_back_the_route(rate, share, windows, collectives, alone_s):
    true, visits = Route(rate, share * rate, windows, collectives), 80  # 40 blocks, two branches
    slow = visits * windows * sum(WINDOWS), visits * collectives * alone_s
    arrived = true.rate * slow[0] + true.collective_rate * slow[1]
    pre, attend, post = (windows * s for s in WINDOWS)
    # One odd step, in which little or much arrived, must not count.
    steps = (arrived, arrived, 0.0, arrived, 3 * arrived)
    busy = probe.Phases((pre, attend, post), collectives * alone_s, 0.0, 0.0, steps)
    found = probe.route(rate, replace(QUIET, collectives=alone_s), busy, visits)
    assert found.window_factor == pytest.approx(windows)
    assert found.collective_factor == pytest.approx(collectives)
    exact = 1e-6 * rate * (1 + slow[0] / slow[1])
    assert found.collective_rate == pytest.approx(true.collective_rate, abs=exact)
    # And that step is what the model predicts for as many bytes.
    inputs = plan_inputs(windows_s=WINDOWS, collectives_s=alone_s, other_s=0.0, local=found,
                         block_bytes=int(arrived / 40))  # fmt: skip
    assert predict(inputs, StreamSettings()).step_s == pytest.approx(sum(slow), rel=1e-4)


def test_neither_noise_nor_one_rank_makes_a_route_faster_than_alone_or_a_window_shorter():
    alone = replace(QUIET, collectives=0.0)
    busy = probe.Phases((2.9e-3, 5e-3, 6e-3), 0.9e-3, 0.0, 0.0, (1e12,))
    for quiet, seen in ((alone, alone), (QUIET, busy)):
        assert probe.route(5e10, quiet, seen, 8) == Route(5e10, 5e10, 1.0, 1.0)
    assert probe.route(5e10, QUIET, replace(busy, arrived=(0.0,)), 8).collective_rate == 0.0


def test_a_plan_needs_blocks_to_load_in_turn():
    store = SimpleNamespace(units=lambda _: range(4), transfer="bf16")  # one is no block
    with pytest.raises(ValueError, match="4 blocks .* 3"):
        probe.Probe(None, store, None, torch.zeros(1), None)


def test_a_sharded_load_is_there_when_its_gather_ends():
    copies = [{"lane": "copy", "end_ms": t} for t in (2.0, 1.0)]
    assert probe._arrivals(copies) == [1.0, 2.0]
    assert probe._arrivals([*copies, {"lane": "gather", "end_ms": 5.0}]) == [5.0]


@pytest.mark.parametrize("shard", [False, True])
@in_ranks(2)
def test_a_probe_feeds_loads_as_blocks_go_and_they_outlast_them(shard: bool) -> None:
    """All at once they would not fit into the queues of a GPU, and the host would wait for them."""
    store = make_store("fp8", experts=make_experts(num_layers=6))
    texts = [torch.randn(1, 16, NARROW["text_dim"]).bfloat16() for _ in range(2)]
    made = probe.Probe(
        lambda blocks: make_experts(num_layers=blocks)["high_noise"], store, dist.group.WORLD,
        torch.randn(latent_shape(48, 48, 9)), Guidance(*texts, {"high_noise": 4.0}),
    )  # fmt: skip
    engine = probe._Timed(replace(made.plainest, slots=0, residents=probe.BLOCKS))
    feeder = Stream(replace(made.plainest, slots=3 if shard else 2, shard=shard))
    expert, _ = made._attached(engine, probe.BLOCKS), made._attached(feeder, probe.FED)
    loads = 5 * probe.BLOCKS
    made._passes(engine, expert)  # brings the blocks that compute
    assert len(made._passes(engine, expert, feeder, loads).arrived) == made.passes
    rows = engine.mover.timeline.rows()
    copies, windows = ([row["start_ms"] for row in rows if row["lane"] == lane]
                       for lane in ("copy", "window"))  # fmt: skip
    assert len(copies) >= loads and copies[0] < windows[0]
    ahead = [sum(copy < window for copy in copies) for window in windows]
    assert max(np.diff(ahead)) <= 5 < ahead[-1] < len(copies)
