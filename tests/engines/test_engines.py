"""Engines move weights: the same bits as `resident`, and the counters that the formulas say."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessRaisedException
from torch.multiprocessing.reductions import StorageWeakRef

from tests.models import Runs, compiled, interrupted, make_experts, make_store, run_engine
from tests.ranks import in_ranks, run_ranks
from wanreport.engines import ENGINES, Counters, Fsdp, Layerwise
from wanreport.jobs.settings import StreamSettings, layerwise_held, layerwise_left
from wanreport.model.expert import Segments
from wanreport.model.ulysses import cfg_groups
from wanreport.model.weights import RandomWeights

APART = {"settings": StreamSettings(residents=1, branches_per_visit=1)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("resident", {}),
    ("swap", {}),
    ("fsdp", {}),
    ("layerwise", {"prefetch": 1}),
    ("layerwise", {"prefetch": 3}),
    ("stream", {}),
    ("stream", APART),
    ("stream", {"settings": StreamSettings(2, 1, windows=(9000, 20_000, 1000), shard=True)}),
    ("stream", {"settings": StreamSettings(2, 1, shard=True, transfer="packed")}),
]
SMALL: dict[str, Any] = {"num_layers": 4, "steps": 2}  # one of each expert
STEPS: dict[str, Any] = {"steps": 3}  # and a second one, which finds its expert there


def _resident() -> torch.Tensor:
    return run_engine(ENGINES["resident"](), iterations=1, **SMALL | STEPS)["latents"][0]


def _all_engines(iterations: int, reference: torch.Tensor, cfg_parallel: bool) -> None:
    run = Runs(iterations=iterations, cfg_parallel=cfg_parallel, **SMALL | STEPS)
    for name, options in CASES:
        found = run(ENGINES[name](**options))
        assert set(found["experts"]) == {"high_noise", "low_noise"}, "must cross the switch"
        for latents in found["latents"]:
            assert torch.equal(latents, reference), (name, options)
        assert found["counters"] == found["expected"], (name, options)
        apart = name != "stream" or options == APART
        assert found["visits"] == (2 if apart and not cfg_parallel else 1), (name, options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "iterations", "cfg_parallel"),
    [(1, 2, False), (2, 2, False), (6, 1, False), (2, 1, True), (4, 1, True)],
)
def test_every_engine_gives_the_bits_of_resident(size: int, iterations: int, cfg_parallel: bool):
    """With CFG parallelism those of half of the ranks, with both branches on each."""
    assert {name for name, _ in CASES} == set(ENGINES)
    reference = run_ranks(_resident, size // 2 if cfg_parallel else size)[0]
    assert reference.isfinite().all()
    run_ranks(_all_engines, size, iterations, reference, cfg_parallel)


def _groups() -> list[list[int]]:
    return [dist.get_process_group_ranks(group) for group in cfg_groups()]


def test_a_branch_has_half_of_the_ranks_and_each_has_its_like() -> None:
    assert run_ranks(_groups, 4) == [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]],
                                     [[2, 3], [1, 3]]]  # fmt: skip
    with pytest.raises(ProcessRaisedException, match="ValueError.* 3"):
        run_ranks(_groups, 3)


@in_ranks(1)
def test_a_compiled_segment_is_one_graph_for_all_blocks_and_engines() -> None:
    """Some engines change parameters with every load; a graph must not care, nor for whom it is."""
    segments = Segments.compiled(backend="eager")
    run = Runs(size=(32, 32, 5), iterations=1, segments=segments, **SMALL)
    for name, options in CASES:
        run(ENGINES[name](**options))
        assert compiled() == {"graphs": 3, "graph_breaks": 0}, (name, options)


class _Watched(Layerwise):
    """Notes the most blocks there ever are, and those that each expert's last pass leaves."""

    most = 0

    def before_block(self, expert: str, block: int) -> None:
        super().before_block(expert, block)
        self.most = max(self.most, sum(map(len, self.loaded.values())))

    def after_block(self, expert: str, block: int) -> None:
        super().after_block(expert, block)
        self.left = self.loaded[expert].copy()  # the last one asked for ends a pass


@in_ranks(1)
def test_layerwise_copies_and_holds_as_many_blocks_as_the_formulas_say_for_any_depth() -> None:
    for blocks in (1, 2, 5, 7):
        run = Runs(num_layers=blocks, size=(16, 16, 1), num_attention_heads=1)
        for prefetch, switch in product((1, 2, 3, 4, 9), (True, False)):
            case, engine = (blocks, prefetch, switch), _Watched(prefetch=prefetch)
            found = run(engine, steps=3 if switch else 1, cfg=prefetch % 2 == 0)
            assert len(set(found["experts"])) == 1 + switch
            assert found["counters"] == found["expected"], case
            assert engine.most == layerwise_held(blocks, prefetch, switch=switch), case
            assert engine.left == layerwise_left(blocks, prefetch), case
            last = found["counters"][-1]
            assert last.d2h_copies == last.d2h_bytes == 0, "it never copies back"
            if prefetch == 1:  # each of 3 passes copies all blocks but the first, in two dtypes
                assert last.h2d_copies == (3 if switch else 1) * (blocks - 1) * 2


@in_ranks(1)
def test_an_exception_inside_a_block_leaves_the_engine_usable() -> None:
    """In the first visit, in a stack's last block and beyond the switch; then it runs again."""
    run = Runs(size=(32, 32, 5), **SMALL)
    reference = run(ENGINES["resident"](), iterations=1)["latents"][0]
    for name, options in CASES:
        apart = name != "stream" or options == APART
        segments = 2 * 4 * 3 * (2 if apart else 1)  # steps, blocks, a block's segments, branches
        for at in (1, segments // 2 - 1, segments - 9):
            found = run(interrupted(name, at, **options))
            assert len(found["latents"]) == 1, f"{name} {options} was not cut short at {at}"
            assert torch.equal(found["latents"][0], reference), (name, options, at)


class _Forgetful(Layerwise):
    """Planted error: one block's copy never happens, and it computes with another's weights."""

    def _prefetch(self, expert: str, index: int, *, blocking: bool = False) -> None:
        if index == 3 and 2 in self.loaded[expert]:
            for mine, other in zip(self.bound[expert][3], self.bound[expert][2], strict=True):
                mine.data = other.data
        else:
            super()._prefetch(expert, index, blocking=blocking)


@in_ranks(1)
def test_the_comparison_of_bits_and_counters_can_fail() -> None:
    how: dict[str, Any] = {"iterations": 1, **SMALL}
    good, bad = run_engine(Layerwise(), **how), run_engine(_Forgetful(), **how)
    assert good["counters"] == good["expected"] and bad["counters"] != bad["expected"]
    store = make_store(source=RandomWeights(1), experts=make_experts(num_layers=4))
    other = run_engine(Layerwise(), store=store, **how)
    for found in (bad, other):
        assert not torch.equal(good["latents"][0], found["latents"][0])


def test_resident_bytes_arrive_once_at_attach() -> None:
    experts, engine = make_experts(), ENGINES["resident"]()
    store = make_store(experts=experts)
    total = sum(store.nbytes(name) for name in experts)
    engine.attach(experts, store, torch.device("cpu"))
    copies = 2 * (len(experts["high_noise"].blocks) + 1)
    assert engine.mover.counters == Counters(
        h2d_copies=copies, h2d_bytes=total, allocations=copies, host_syncs=copies)  # fmt: skip


def _fsdp() -> None:
    experts, engine, size = make_experts(), Fsdp(), dist.get_world_size()
    store, expert = make_store(experts=experts), experts["high_noise"]
    full = sum(p.nbytes for p in expert.parameters())
    engine.attach(experts, store, torch.device("cpu"), dist.group.WORLD)
    assert not store._buffers  # no flat copy beside the shards
    shards = [p.to_local().untyped_storage() for e in experts.values() for p in e.parameters()]
    local = sum(p.to_local().untyped_storage().nbytes() for p in expert.parameters())
    assert local < 1.3 * full / size, "its share, and padding"
    for unit in (0, None):
        module = expert if unit is None else expert.blocks[unit]
        group = module._get_fsdp_state()._fsdp_param_group
        held = sum(p._sharded_param_data.nbytes for p in group.fsdp_params)
        assert Fsdp._unshard(store.layouts["high_noise", unit], size).h2d_bytes == held
    watched = [StorageWeakRef(shard) for shard in shards]
    del shards, module, group
    expert.blocks[0].unshard()
    assert not any(shard.expired() for shard in watched)
    engine.detach()
    assert all(shard.expired() for shard in watched), "though others still hold the experts"


@pytest.mark.parametrize("size", [1, 4])
def test_fsdp_holds_its_own_padded_shards_until_it_detaches(size: int) -> None:
    run_ranks(_fsdp, size)
