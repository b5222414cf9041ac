"""The host store: one copy a host, laid out so that one copy a dtype moves a block."""

from pathlib import Path

import torch
import torch.distributed as dist

from tests.models import make_experts, make_store
from tests.ranks import in_ranks
from wanreport.model.weights import ALIGN, Layout, RandomWeights


def test_a_layout_keeps_dtypes_together_aligned_and_apart() -> None:
    sizes = {"a": (3, torch.bfloat16), "b": (5, torch.float32), "c": (300, torch.bfloat16)}
    layout = Layout.of({name: torch.empty(n, dtype=dtype) for name, (n, dtype) in sizes.items()})
    assert [piece.name for piece in layout.slices] == ["a", "c", "b"]
    assert all(piece.offset % ALIGN == 0 for piece in layout.slices)
    assert layout.segments == {torch.bfloat16: (0, 1024), torch.float32: (1024, 1280)}
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for number, piece in enumerate(layout.slices, 1):
        piece.of(buffer).fill_(number)
    for number, piece in enumerate(layout.slices, 1):
        start, _ = layout.segments[piece.dtype]
        assert (piece.of(buffer[start:], start) == number).all()


@in_ranks(3)
def test_ranks_share_one_copy_that_equals_a_private_one_and_no_descriptor_keeps_it_alive() -> None:
    experts = make_experts()
    shared, private = make_store(experts=experts, group=dist.group.WORLD), make_store()
    keys = list(shared.layouts)
    for key, layout in shared.layouts.items():
        for piece in layout.slices:
            assert torch.equal(piece.of(shared.buffer(*key)), piece.of(private.buffer(*key)))
    dist.barrier()
    if dist.get_rank() == 0:
        shared.buffer(*keys[3])[:4] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    dist.barrier()
    assert shared.buffer(*keys[3])[:4].tolist() == [1, 2, 3, 4]
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert sum("wanreport-weights" in link for link in links) == 1, "the mapping's own"


def test_random_weights_depend_on_the_name_and_the_seed_only() -> None:
    first, *others = (RandomWeights(seed) for seed in (0, 0, 1, 0))
    names = [("high_noise", "a.weight")] * 2 + [("low_noise", "a.weight")]
    out = [torch.empty(8, 8) for _ in range(4)]
    first.fill("high_noise", "a.weight", out[0])
    for source, name, each in zip(others, names, out[1:], strict=True):
        source.fill(*name, each)
    assert [torch.equal(out[0], each) for each in out[1:]] == [True, False, False]
