"""What a probe concludes from what it measured."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic import plan_inputs
from wanreport.jobs.settings import StreamSettings
from wanreport.planner.cost import Route, predict
from wanreport.planner.probe import LEAST, Phases, Probe, _arrivals, route

WINDOWS = (3e-3, 5e-3, 6e-3)
QUIET = Phases(WINDOWS, 1e-3, 0.0, 0.0)


@given(
    st.floats(1e9, 1e11), st.floats(0.0, 1.0), st.floats(1.0, 2.0), st.floats(1.0, 3.0),
    st.floats(1e-4, 1e-1),
)  # fmt: skip
def test_what_the_cost_model_says_of_loads_all_the_time_gives_back_its_route(
    rate: float, share: float, windows: float, collectives: float, collective_s: float
) -> None:
    true, visits = Route(rate, share * rate, windows, collectives), 80  # 40 blocks, two branches
    slow = visits * windows * sum(WINDOWS), visits * collectives * collective_s
    arrived = true.rate * slow[0] + true.collective_rate * slow[1]
    pre, attend, post = (windows * s for s in WINDOWS)
    # One odd step, in which little or much arrived, must not count.
    steps = (arrived, arrived, 0.0, arrived, 3 * arrived)
    busy = Phases((pre, attend, post), collectives * collective_s, 0.0, 0.0, steps)
    found = route(rate, replace(QUIET, collectives=collective_s), busy, visits)
    assert found.window_factor == pytest.approx(windows)
    assert found.collective_factor == pytest.approx(collectives)
    exact = 1e-6 * rate * (1 + slow[0] / slow[1])
    assert found.collective_rate == pytest.approx(true.collective_rate, abs=exact)
    # And that step is what the model predicts for as many bytes.
    inputs = plan_inputs(windows_s=WINDOWS, collectives_s=collective_s, other_s=0.0, local=found,
                         block_bytes=int(arrived / 40))  # fmt: skip
    assert predict(inputs, StreamSettings()).step_s == pytest.approx(sum(slow), rel=1e-4)


def test_neither_noise_nor_one_rank_makes_a_route_faster_than_alone_or_a_window_shorter() -> None:
    alone = replace(QUIET, collectives=0.0)
    busy = Phases((2.9e-3, 5e-3, 6e-3), 0.9e-3, 0.0, 0.0, (1e12,))
    for quiet, seen in ((alone, alone), (QUIET, busy)):
        assert route(5e10, quiet, seen, 8) == Route(5e10, 5e10, 1.0, 1.0)
    assert route(5e10, QUIET, replace(busy, arrived=(0.0,)), 8).collective_rate == 0.0


def test_a_plan_needs_blocks_to_load_in_turn() -> None:
    store: Any = SimpleNamespace(units=lambda _: range(LEAST), transfer="bf16")  # one is no block
    given: Any = None
    with pytest.raises(ValueError, match=f"{LEAST} blocks .* {LEAST - 1}"):
        Probe(given, store, None, torch.zeros(1), given)


def test_a_sharded_load_is_there_when_its_gather_ends() -> None:
    copies = [{"lane": "copy", "end_ms": t} for t in (2.0, 1.0)]
    assert _arrivals(copies) == [1.0, 2.0]
    assert _arrivals([*copies, {"lane": "gather", "end_ms": 5.0}]) == [5.0]
