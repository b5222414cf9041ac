"""Engines move weights: the same bits as `resident`, and the counters that the formulas say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef

from tests.models import interrupted, make_experts, run_engine
from tests.ranks import run_ranks
from wanreport.engines import ENGINES, Counters, Fsdp, Layerwise
from wanreport.jobs.settings import StreamSettings, layerwise_held, layerwise_left
from wanreport.model.clock import compiled
from wanreport.model.expert import Segments
from wanreport.model.weights import HostStore, RandomWeights

CASES: list[tuple[str, dict[str, Any]]] = [
    ("resident", {}),
    ("swap", {}),
    ("fsdp", {}),
    ("layerwise", {"prefetch": 1}),
    ("layerwise", {"prefetch": 3}),
    ("stream", {}),
    ("stream", {"settings": StreamSettings(residents=3, branches_per_visit=1)}),
    ("stream", {"settings": StreamSettings(slots=3, shard=True, copy_streams=2)}),
    ("stream", {"settings": StreamSettings(residents=2, windows=(9000, 20_000, 1000), shard=True)}),
]


def test_every_engine_is_among_the_cases() -> None:
    assert {name for name, _ in CASES} == set(ENGINES)


def _all_engines(steps: int) -> list[dict[str, Any]]:
    return [run_engine(ENGINES[name](**options), steps=steps) for name, options in CASES]


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_every_engine_gives_the_bits_of_resident(size: int) -> None:
    for runs in run_ranks(_all_engines, size, 3):
        reference = runs[0]["latents"][0]
        assert reference.isfinite().all()
        assert set(runs[0]["experts"]) == {"high_noise", "low_noise"}, "must cross the switch"
        for case, run in zip(CASES, runs, strict=True):
            for latents in run["latents"]:
                assert torch.equal(latents, reference), case
            assert run["counters"] == run["expected"], case


def _compiled() -> list[dict[str, int]]:
    """Graphs made, and broken, in two iterations with every engine."""
    found = []
    for name, options in CASES:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        segments = Segments.compiled(backend="eager")  # graphs only, no kernels
        run_engine(
            ENGINES[name](**options), steps=3, size=(32, 32, 5), segments=segments, num_layers=4
        )
        found.append(compiled())
    return found


def test_a_compiled_segment_is_one_graph_for_all_blocks_under_every_engine() -> None:
    """Some engines change parameters with every load; a graph must not care."""
    for case, found in zip(CASES, run_ranks(_compiled, 1)[0], strict=True):
        assert found == {"graphs": 3, "graph_breaks": 0}, case


def _layerwise(blocks: int, prefetch: int, cfg: bool) -> dict[str, Any]:
    return run_engine(
        Layerwise(prefetch=prefetch), iterations=3, num_layers=blocks, cfg=cfg, size=(16, 16, 1)
    )


def _many_layerwise() -> list[tuple[tuple[int, int, bool], dict[str, Any]]]:
    cases = [(n, p, cfg) for n in (1, 2, 5, 6) for p in (1, 2, 3, 4, 6, 9) for cfg in (True, False)]
    return [(case, _layerwise(*case)) for case in cases]


def test_layerwise_counters_follow_the_formula_for_any_depth() -> None:
    for case, run in run_ranks(_many_layerwise, 1)[0]:
        assert run["counters"] == run["expected"], case


def test_layerwise_never_copies_back_and_never_releases_block_0() -> None:
    run = run_ranks(_layerwise, 1, 6, 1, True)[0]
    for counters in run["counters"][1:]:
        assert counters.d2h_copies == counters.d2h_bytes == 0
        # 4 steps of 2 branches, each pass copies all blocks but the first, in two dtypes
        assert counters.h2d_copies == 4 * 2 * (6 - 1) * 2


class _Watched(Layerwise):
    """Notes the most blocks there ever are, and those that each expert's last pass leaves."""

    most = 0

    def before_block(self, expert: str, block: int) -> None:
        super().before_block(expert, block)
        self.most = max(self.most, sum(len(state.loaded) for state in self.blocks.values()))

    def after_block(self, expert: str, block: int) -> None:
        super().after_block(expert, block)
        self.left = self.blocks[expert].loaded.copy()  # the last one asked for ends a pass


def _watched() -> list[tuple[tuple[int, int, bool], int, set[int]]]:
    found = []
    for case in [
        (n, p, s) for n in (1, 2, 5, 7, 9) for p in (1, 2, 3, 4, 9) for s in (True, False)
    ]:
        blocks, prefetch, switch = case
        engine = _Watched(prefetch=prefetch)
        run = run_engine(
            engine, steps=3 if switch else 1, num_layers=blocks, cfg=False, size=(16, 16, 1)
        )
        assert len(set(run["experts"])) == 1 + switch
        found.append((case, engine.most, engine.left))
    return found


def test_layerwise_holds_as_many_blocks_as_the_formula_says() -> None:
    for case, most, left in run_ranks(_watched, 1)[0]:
        blocks, prefetch, switch = case
        assert most == layerwise_held(blocks, prefetch, switch=switch), case
        assert left == layerwise_left(blocks, prefetch), case


# In the first visit, within a stack, in a stack's last block and beyond the switch, where 3 steps
# of 6 blocks with 3 segments each are 54 for an expert's branches together and 108 in turn.
CUTS = (1, 23, 53, 100)


def _cut_short() -> list[list[dict[str, Any]]]:
    how: dict[str, Any] = {"steps": 3, "size": (32, 32, 5)}
    runs = [[run_engine(ENGINES["resident"](), **how)]]
    for name, options in CASES:
        runs.append([run_engine(interrupted(name, at, **options), **how) for at in CUTS])
    return runs


def test_an_exception_inside_a_block_leaves_the_engine_usable() -> None:
    (reference,), *runs = run_ranks(_cut_short, 1)[0]
    for case, cuts in zip(CASES, runs, strict=True):
        for at, run in zip(CUTS, cuts, strict=True):
            assert len(run["latents"]) == 1, f"{case} was not cut short at {at}"
            assert torch.equal(run["latents"][0], reference["latents"][0]), (case, at)


def test_different_weights_give_different_latents() -> None:
    """The comparison of bits above can fail."""
    runs = [run_ranks(_seeded, 1, seed)[0] for seed in (0, 1)]
    assert not torch.equal(*runs)


def _seeded(seed: int) -> torch.Tensor:
    return run_engine(ENGINES["layerwise"](), iterations=1, seed=seed)["latents"][0]


def test_an_engine_that_forgets_a_copy_is_caught() -> None:
    """Planted error: a block whose copy never happens changes the bits and the counters."""
    good, bad = run_ranks(_forgetful, 1)[0]
    assert not torch.equal(good["latents"][0], bad["latents"][0])
    assert bad["counters"] != bad["expected"]


class _Forgetful(Layerwise):
    def _prefetch(self, expert: str, index: int, *, blocking: bool = False) -> None:
        if index == 3 and 2 in self.blocks[expert].loaded:
            stale = self.blocks[expert].bound[2].parameters
            for mine, other in zip(self.blocks[expert].bound[3].parameters, stale, strict=True):
                mine.data = other.data
            return
        super()._prefetch(expert, index, blocking=blocking)


def _forgetful() -> list[dict[str, Any]]:
    return [run_engine(engine(), iterations=1) for engine in (Layerwise, _Forgetful)]


def test_resident_bytes_arrive_once_at_attach() -> None:
    experts = make_experts()
    store = HostStore(experts, RandomWeights(0))
    engine = ENGINES["resident"]()
    engine.attach(experts, store, torch.device("cpu"))
    total = sum(store.nbytes(name) for name in experts)
    assert engine.mover.counters == Counters(
        h2d_copies=2 * (6 + 1), h2d_bytes=total, allocations=2 * (6 + 1), host_syncs=2 * (6 + 1)
    )


def test_fsdp_keeps_only_its_own_shards() -> None:
    for share in run_ranks(_fsdp_share, 4):
        assert share < 0.3  # a quarter, and padding


def _fsdp_share() -> float:
    experts = make_experts()
    store = HostStore(experts, RandomWeights(0))
    full = sum(p.numel() * p.element_size() for p in experts["high_noise"].parameters())
    ENGINES["fsdp"]().attach(experts, store, torch.device("cpu"), dist.group.WORLD)
    assert not store._buffers  # no flat copy beside the shards
    local = sum(p.to_local().untyped_storage().nbytes() for p in experts["high_noise"].parameters())
    return local / full


def test_fsdp_lets_go_of_its_shards_while_others_still_hold_the_experts() -> None:
    ((before, after),) = run_ranks(_fsdp_shards_held, 1)
    assert before > 0 and after == 0


def _fsdp_shards_held() -> tuple[int, int]:
    """How many shards there are before and after an engine detaches in the midst of a block."""
    experts, engine = make_experts(), Fsdp()
    engine.attach(
        experts, HostStore(experts, RandomWeights(0)), torch.device("cpu"), dist.group.WORLD
    )
    shards = [
        StorageWeakRef(p.to_local().untyped_storage())
        for expert in experts.values()
        for p in expert.parameters()
    ]

    def held() -> int:
        return sum(not shard.expired() for shard in shards)

    before = held()
    experts["high_noise"].blocks[0].unshard()
    engine.detach()
    return before, held()


def _fsdp_bytes() -> list[tuple[int, int]]:
    """For a block and for what is around the blocks: bytes by formula, and as FSDP2 holds them."""
    experts = make_experts()
    store = HostStore(experts, RandomWeights(0))
    engine = Fsdp()
    engine.attach(experts, store, torch.device("cpu"), dist.group.WORLD)
    expert, pairs = experts["high_noise"], []
    for unit in (0, None):
        module = expert if unit is None else expert.blocks[unit]
        group = module._get_fsdp_state()._fsdp_param_group
        held = sum(p._sharded_param_data.nbytes for p in group.fsdp_params)
        layout = store.layouts["high_noise", unit]
        pairs.append((Fsdp._unshard(layout, dist.get_world_size()).h2d_bytes, held))
    return pairs


@pytest.mark.parametrize("size", [2, 6])
def test_fsdp_bytes_are_those_of_its_own_padded_shards(size: int) -> None:
    for pairs in run_ranks(_fsdp_bytes, size):
        for formula, held in pairs:
            assert formula == held
