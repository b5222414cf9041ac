"""Where blocks lie and when they move: `stream`'s settings, and what `layerwise` holds."""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

SEGMENTS = ("pre", "attend", "post")
SENT = {"bf16": 1.0, "packed": 0.75, "fp8": 0.5}
"""How blocks may cross the link, and about what share of their bytes does."""
RING = 2
"""Staging buffers where that is not all: one is unpacked while the next copy is under way."""
Count = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True, config={"extra": "forbid"})
class StreamSettings:
    """How the `stream` engine moves weights; raises ValueError for a setting that cannot be."""

    # Device buffers that the streamed blocks take in turn; a block's buffer is always the same. If
    # a multiple of them streams, the last blocks of a pass never wait for the first.
    slots: Count = 2
    residents: Count = 0  # blocks of the active expert that have a device buffer of their own, ...
    spread: bool = True  # ... evenly over the stack; False: they are its first blocks
    both: bool = False  # each expert has all its blocks on the device: nothing streams
    shard: bool = False  # each rank copies its part of a block, and the ranks gather it
    # Bytes that may be copied in each of a branch's windows, (pre, attend, post); what does not fit
    # goes when a block needs it. None: a copy starts as soon as its buffer is free.
    windows: tuple[Count, Count, Count] | None = None
    branches_per_visit: Literal[1, 2] = 2  # 2: both branches of guidance run while a block is there
    # Device streams that loads take in turn, and their priority; lower goes first.
    copy_streams: Annotated[int, Field(ge=1, strict=True)] = 1
    priority: int = 0
    # As blocks are; or in fewer bytes, which are unpacked on the device from one of `RING` staging
    # buffers. fp8 rounds to 8-bit floats, so that the latents are others.
    transfer: Literal["bf16", "packed", "fp8"] = "bf16"

    @property
    def packs(self) -> bool:
        """Whether blocks cross the link in fewer bytes than they have."""
        return self.transfer != "bf16"

    def places(self, blocks: int) -> list[int]:
        """The device buffer of each block of an expert: slots come first, then residents' own."""
        streamed = 0 if self.both else max(blocks - self.residents, 0)
        slots = min(self.slots, streamed)
        if streamed and not slots:
            raise ValueError(f"{streamed} of {blocks} blocks need slots")
        # How many of the first blocks stream: of none, of one, and so on up to all.
        first = [n * streamed // blocks if self.spread else max(n - blocks + streamed, 0)
                 for n in range(blocks + 1)]  # fmt: skip
        return [before % slots if after > before else slots + block - before
                for block, (before, after) in enumerate(pairwise(first))]  # fmt: skip

    def buffers(self, blocks: int) -> int:
        """Number of device buffers, each for one block."""
        return (1 + self.both) * len({*self.places(blocks)})

    def moving(self, blocks: int) -> int:
        """Blocks that are loaded in every pass: those that share their slot with another one."""
        return sum(users for users in Counter(self.places(blocks)).values() if users > 1)


def layerwise_left(blocks: int, prefetch: int) -> set[int]:
    """Blocks that `layerwise` leaves on the device after a pass: block 0, which is never released,
    and those of the next pass that the last request came to after they had run (SGLang 0.5.9,
    runtime/utils/layerwise_offload.py).
    """
    depth = min(max(1, prefetch), blocks)
    return {0} | {
        ahead % blocks
        for block in range(0, blocks, depth)
        for ahead in range(block + depth, block + 2 * depth)
        if ahead >= blocks and ahead % blocks < block
    }


def layerwise_held(blocks: int, prefetch: int, *, switch: bool) -> int:
    """Most blocks, of both experts together, that `layerwise` has on the device at once.

    Of the expert that runs: the p about to run, the p requested as the first of these ran, and
    block 0, unless they go round to it. Of the other: its first p or, after a ``switch``, what
    :func:`layerwise_left` says.
    """
    depth = min(max(1, prefetch), blocks)
    running = min(blocks, 2 * depth + (3 * depth <= blocks))
    return running + max(depth, len(layerwise_left(blocks, prefetch)) if switch else 0)
