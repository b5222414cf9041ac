"""The host store: one copy a host, laid out so that one copy a dtype moves a block."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models import make_experts
from tests.ranks import run_ranks
from wanreport.model.weights import ALIGN, HostStore, Layout, RandomWeights


def test_a_layout_keeps_dtypes_together_aligned_and_apart() -> None:
    tensors = {
        "a": torch.empty(3, dtype=torch.bfloat16),
        "b": torch.empty(5, dtype=torch.float32),
        "c": torch.empty(300, dtype=torch.bfloat16),
    }
    layout = Layout.of(tensors)
    assert [piece.name for piece in layout.slices] == ["a", "c", "b"]
    assert all(piece.offset % ALIGN == 0 for piece in layout.slices)
    assert layout.segments == {torch.bfloat16: (0, 1024), torch.float32: (1024, 1280)}
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for number, piece in enumerate(layout.slices, 1):
        piece.of(buffer).fill_(number)
    for number, piece in enumerate(layout.slices, 1):
        assert (piece.of(buffer) == number).all()
        start, _ = layout.segments[piece.dtype]
        segment = buffer[start:]
        assert torch.equal(piece.of(segment, start), piece.of(buffer))


def _shared() -> tuple[list[int], bool]:
    """What a write of rank 0 looks like to this rank; whether the store equals a private one."""
    import torch.distributed as dist

    experts = make_experts()
    shared = HostStore(experts, RandomWeights(0), group=dist.group.WORLD)
    private = HostStore(experts, RandomWeights(0))
    keys = list(shared.layouts)
    same = all(
        torch.equal(piece.of(shared.buffer(*key)), piece.of(private.buffer(*key)))
        for key in keys
        for piece in shared.layouts[key].slices
    )
    dist.barrier()
    if dist.get_rank() == 0:
        shared.buffer(*keys[3])[:4] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    dist.barrier()
    return shared.buffer(*keys[3])[:4].tolist(), same


def test_ranks_share_one_copy_that_equals_a_private_one() -> None:
    for seen, same in run_ranks(_shared, 3):
        assert same
        assert seen == [1, 2, 3, 4]


def _leftovers() -> int:
    import torch.distributed as dist

    store = HostStore(make_experts(), RandomWeights(0), group=dist.group.WORLD)
    store.buffer("high_noise", 0)
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("wanreport-weights" in str(link) for link in links)


def test_no_descriptor_keeps_shared_memory_alive() -> None:
    assert run_ranks(_leftovers, 2) == [1, 1]  # the mapping's own, and no other
