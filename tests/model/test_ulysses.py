"""Sequence parallelism changes layouts and nothing else.

One rank gives the bits of diffusers (test_checkpoint.py); more ranks must agree with one.
"""

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tests.models import run_engine
from tests.ranks import run_ranks
from wanreport.engines import Resident
from wanreport.model.ulysses import SequenceParallel, split_sizes


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_split_sizes_cover_everything_as_evenly_as_possible(total: int, parts: int) -> None:
    sizes = split_sizes(total, parts)
    assert (sum(sizes), len(sizes)) == (total, parts)
    assert max(sizes) - min(sizes) <= 1
    assert split_sizes(40, 6) == [7, 7, 7, 7, 6, 6]


def _round_trip(batch: int, tokens: int, heads: int) -> None:
    parallel = SequenceParallel(dist.group.WORLD)
    whole = torch.arange(batch * tokens * heads * 4.0).view(batch, tokens, heads, 4)
    mine = parallel.shard(whole, 1)
    found = parallel.to_heads(mine, mine + 0.25, mine + 0.5, tokens)
    wanted = whole.split(split_sizes(heads, parallel.size), 2)[parallel.rank]
    for got, more in zip(found, (0.0, 0.25, 0.5), strict=True):
        assert torch.equal(got, wanted + more)
    back = parallel.to_tokens(found[0], heads)
    assert torch.equal(back, mine)
    assert torch.equal(parallel.gather(back, 1, tokens), whole)


def _latents(whole: torch.Tensor | None) -> torch.Tensor:
    for shape in ((1, 63, 40), (2, 12, 6), (1, 7, 8)):
        _round_trip(*shape)
    found = run_engine(Resident(), iterations=1, steps=2, num_layers=2, dtype=torch.float32)
    latents: torch.Tensor = found["latents"][0]
    assert whole is None or (latents - whole).norm() / whole.norm() <= 1e-5
    return latents


def test_any_number_of_ranks_agrees_with_one_and_round_trips_are_exact() -> None:
    (one,) = run_ranks(_latents, 1, None)
    for size in (2, 3, 4, 6):
        ranks = run_ranks(_latents, size, one)
        assert all(torch.equal(latents, ranks[0]) for latents in ranks)
