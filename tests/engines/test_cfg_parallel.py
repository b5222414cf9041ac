"""CFG parallelism: each half of the ranks runs one branch, and no bit differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models import Runs, run_engine
from tests.ranks import run_ranks
from wanreport.engines import ENGINES
from wanreport.jobs.settings import StreamSettings
from wanreport.model.ulysses import cfg_groups

CASES: list[tuple[str, dict[str, Any]]] = [
    ("resident", {}), ("swap", {}), ("fsdp", {}), ("layerwise", {"prefetch": 2}),
    ("stream", {"settings": StreamSettings(2, 1)}),
    ("stream", {"settings": StreamSettings(3, shard=True)}),
    ("stream", {"settings": StreamSettings(2, shard=True, transfer="packed")}),
]  # fmt: skip


def _all(cfg_parallel: bool) -> list[dict[str, Any]]:
    run = Runs(num_layers=4, iterations=1, cfg_parallel=cfg_parallel)
    return [run(ENGINES[name](**options)) for name, options in CASES]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_latents_are_those_of_half_the_ranks_with_both_branches(ranks: int) -> None:
    reference = run_ranks(_all, ranks // 2, False)[0]
    for found in run_ranks(_all, ranks, True):
        for case, mine, whole in zip(CASES, found, reference, strict=True):
            for one, other in zip(mine["latents"], whole["latents"], strict=True):
                assert torch.equal(one, other), case
            assert mine["counters"] == mine["expected"], case


def _copied(cfg_parallel: bool) -> int:
    engine = ENGINES["layerwise"](prefetch=1)
    found = run_engine(engine, cfg_parallel=cfg_parallel, size=(16, 16, 1))
    return int(found["counters"][-1].h2d_bytes)


def test_a_rank_brings_each_block_once_a_step_instead_of_twice() -> None:
    both, one = run_ranks(_copied, 2, False)[0], run_ranks(_copied, 2, True)[0]
    assert one == pytest.approx(both / 2, rel=0.1)


def _groups() -> tuple[list[int], list[int]]:
    import torch.distributed as dist

    row, pair = cfg_groups()
    return dist.get_process_group_ranks(row), dist.get_process_group_ranks(pair)


def test_a_branch_has_half_of_the_ranks_and_each_has_its_like() -> None:
    assert run_ranks(_groups, 4) == [([0, 1], [0, 2]), ([0, 1], [1, 3]), ([2, 3], [0, 2]),
                                     ([2, 3], [1, 3])]  # fmt: skip
    with pytest.raises(AssertionError, match="even number of ranks"):
        run_ranks(_groups, 3)
