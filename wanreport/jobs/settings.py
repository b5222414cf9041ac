"""Where blocks lie and when they move: `stream`'s settings, and what `layerwise` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SEGMENTS = ("pre", "attend", "post")
SENT = {"bf16": 1.0, "packed": 0.75, "fp8": 0.5}
"""How blocks may cross the link, and about what share of their bytes does."""
RING = 2
"""Staging buffers where that is not all: one is unpacked while the next copy is under way."""


@dataclass(frozen=True)
class StreamSettings:
    """How the `stream` engine moves weights."""

    slots: int = 2
    """Device buffers that the streamed blocks take in turn; a block's buffer is always the same.
    With a multiple of ``slots`` streamed blocks the last ones of a pass never wait for the first.
    """
    residents: int = 0
    """Blocks of the active expert that have a device buffer of their own, …"""
    spread: bool = True
    """… evenly over the stack; False: they are its first blocks."""
    both: bool = False
    """Each expert has all its blocks on the device, in buffers of its own: nothing streams."""
    shard: bool = False
    """Each rank copies its part of a block from the host, and the ranks gather it."""
    windows: tuple[int, int, int] | None = None
    """Bytes that may be copied in each of a branch's windows, (pre, attend, post); what does not
    fit goes when a block needs it. None: a copy starts as soon as its buffer is free."""
    branches_per_visit: int = 2
    """2: both branches of classifier-free guidance run while a block is there; 1: a pass each."""
    copy_streams: int = 1
    """Device streams that loads take in turn, …"""
    priority: int = 0
    """… and their priority; lower goes first."""
    transfer: Literal["bf16", "packed", "fp8"] = "bf16"
    """How blocks cross the link: as they are; in three quarters of their bytes, which arrive in one
    of `RING` staging buffers and are unpacked on the device; or likewise in half of them, rounded
    to 8-bit floats, so that the latents are others."""

    def __post_init__(self) -> None:
        windows = (0, 0, 0) if self.windows is None else self.windows
        if (min(self.slots, self.residents, self.copy_streams - 1, *windows) < 0
                or len(windows) != 3 or self.branches_per_visit not in (1, 2)
                or self.transfer not in SENT):  # fmt: skip
            raise ValueError(
                "slots, residents and streams are not negative, branches_per_visit is 1 or 2,"
                f" windows three sizes, transfer {', '.join(SENT)}: {self}"
            )

    @property
    def packs(self) -> bool:
        """Whether blocks cross the link otherwise than as they lie on the device."""
        return self.transfer != "bf16"

    def places(self, blocks: int) -> list[int]:
        """The device buffer of each block of an expert: slots come first, then residents' own."""
        streamed, slots = self._streamed(blocks)
        places = []
        for block in range(blocks):
            before = (
                block * streamed // blocks if self.spread else max(block - blocks + streamed, 0)
            )
            after = (
                (block + 1) * streamed // blocks if self.spread else block - blocks + streamed + 1
            )
            places.append(before % slots if after > before else slots + block - before)
        return places

    def _streamed(self, blocks: int) -> tuple[int, int]:
        """Blocks without a buffer of their own, and the slots they need; ValueError if none."""
        streamed = 0 if self.both else max(blocks - self.residents, 0)
        if streamed and not self.slots:
            raise ValueError(f"{streamed} of {blocks} blocks need slots")
        return streamed, min(self.slots, streamed)

    def buffers(self, blocks: int) -> int:
        """Number of device buffers, each for one block."""
        streamed, slots = self._streamed(blocks)
        return (2 if self.both else 1) * (blocks - streamed + slots)

    def moving(self, blocks: int) -> int:
        """Blocks that are loaded in every pass: those that share their slot with another one."""
        streamed, slots = self._streamed(blocks)
        return min(streamed, 2 * (streamed - slots))

    def loads(self, blocks: int, passes: Mapping[str, int], iteration: int) -> int:
        """Blocks loaded in one iteration, with so many passes over each expert.

        Those that share a slot are loaded in every pass, all others in an expert's first one,
        unless they are still there: each expert has its own buffers, or only one ever runs.
        """
        runs = [number for number in passes.values() if number]
        arrivals = len(runs) if iteration == 0 or (len(runs) > 1 and not self.both) else 0
        moving = self.moving(blocks)
        return moving * sum(runs) + (blocks - moving) * arrivals


def layerwise_left(blocks: int, prefetch: int) -> set[int]:
    """Blocks that `layerwise` leaves on the device after a pass over an expert of ``blocks``.

    They are block 0, which is never released, and those first blocks of the next pass that the
    last request came to after they had run (SGLang 0.5.9, runtime/utils/layerwise_offload.py).
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

    Of the expert that runs they are a batch of p blocks that are about to run, the p that were
    requested as the first of these ran, and block 0, unless they go round to it. The other expert
    has its first p blocks from when the engine was attached, or where it ran before (with a
    ``switch`` in the schedule) what :func:`layerwise_left` says.
    """
    depth = min(max(1, prefetch), blocks)
    running = min(blocks, 2 * depth + (3 * depth <= blocks))
    return running + max(depth, len(layerwise_left(blocks, prefetch)) if switch else 0)
