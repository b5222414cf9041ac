"""Sequence parallelism changes layouts and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models import run_engine
from tests.ranks import run_ranks
from wanreport.engines import Resident
from wanreport.model.ulysses import SequenceParallel, split_sizes


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_split_sizes_cover_everything_as_evenly_as_possible(total: int, parts: int) -> None:
    sizes = split_sizes(total, parts)
    assert sum(sizes) == total
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


def test_forty_heads_over_six_ranks() -> None:
    assert split_sizes(40, 6) == [7, 7, 7, 7, 6, 6]


def _round_trip(batch: int, tokens: int, heads: int) -> bool:
    import torch.distributed as dist

    parallel = SequenceParallel(dist.group.WORLD)
    whole = torch.arange(batch * tokens * heads * 4.0).view(batch, tokens, heads, 4)
    mine = parallel.shard(whole, 1)
    q, k, v = parallel.to_heads(mine, mine + 0.25, mine + 0.5, tokens)
    start = sum(split_sizes(heads, parallel.size)[: parallel.rank])
    wanted = whole[:, :, start : start + split_sizes(heads, parallel.size)[parallel.rank]]
    assert torch.equal(q, wanted)
    assert torch.equal(k, wanted + 0.25)
    assert torch.equal(v, wanted + 0.5)
    back = parallel.to_tokens(q, heads)
    assert torch.equal(back, mine)
    assert torch.equal(parallel.gather(back, 1, tokens), whole)
    return True


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize(("batch", "tokens", "heads"), [(1, 63, 40), (2, 12, 6), (1, 7, 8)])
def test_round_trip_is_exact_for_sizes_that_do_not_divide(
    size: int, batch: int, tokens: int, heads: int
) -> None:
    assert all(run_ranks(_round_trip, size, batch, tokens, heads))


def _latents(steps: int) -> torch.Tensor:
    run = run_engine(Resident(), steps=steps, iterations=1, dtype=torch.float32)
    return run["latents"][0]


@pytest.fixture(scope="module")
def one_rank() -> torch.Tensor:
    return run_ranks(_latents, 1, 3)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_ranks_agree_with_one_rank_in_float32(size: int, one_rank: torch.Tensor) -> None:
    ranks = run_ranks(_latents, size, 3)
    for latents in ranks:
        error = (latents - one_rank).norm() / one_rank.norm()
        assert error <= 1e-5
    assert all(torch.equal(latents, ranks[0]) for latents in ranks)


def _against_diffusers() -> tuple[torch.Tensor, torch.Tensor]:
    """One forward of one expert: ours, and diffusers' model with its own Ulysses."""
    import torch.distributed as dist
    from diffusers import ContextParallelConfig, WanTransformer3DModel

    from tests.models import make_experts
    from wanreport.model.expert import TINY
    from wanreport.model.weights import HostStore, RandomWeights, checkpoint_name

    size = dist.get_world_size()
    experts = make_experts(torch.float32)
    store, engine = HostStore(experts, RandomWeights(0)), Resident()
    expert = experts["high_noise"]
    expert.parallel = SequenceParallel(dist.group.WORLD)
    engine.attach(experts, store, torch.device("cpu"), dist.group.WORLD)
    model = WanTransformer3DModel(**TINY)
    state = {checkpoint_name(n): p for n, p in expert.named_parameters()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not missing.missing_keys
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)  # 32 tokens
    text = torch.randn(1, 16, TINY["text_dim"], generator=generator)
    time = torch.tensor([900.0])
    ours = expert(latents, time, [text], engine)[0]
    # diffusers counts accelerators to place a rank; gloo ranks need none.
    torch.accelerator.device_count = lambda: 1
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=size))
    model.set_attention_backend("native")
    theirs = model(latents, time, text, return_dict=False)[0]
    return ours, theirs


@pytest.mark.parametrize("size", [2, 4])
def test_agrees_with_diffusers_context_parallelism(size: int) -> None:
    for ours, theirs in run_ranks(_against_diffusers, size):
        assert (ours - theirs).norm() / theirs.norm() <= 1e-5
