"""`fsdp`: PyTorch's FSDP2 with its parameters offloaded to host memory.

    compute     | root | 0 | 1 | 2 | …        at several ranks
    all-gather  |  0   | 1 | 2 | 3 | …      every unit, every pass
    copy        |  0   | 1 | 2 | 3 | …      this rank's 1/N of each tensor

At one rank there is nothing to gather, and FSDP2 (torch 2.11 to 2.13, `wait_for_unshard` of
``_fully_shard/_fsdp_param_group.py``) copies on the stream that computes, hiding nothing:

    compute     | root | copy 0 | 0 | copy 1 | 1 | copy 2 | 2 | …

Each block, and the expert around them, is sharded with `fully_shard` and
``CPUOffloadPolicy(pin_memory=True)``, as SGLang 0.5.9 does with ``use_fsdp_inference``
(runtime/loader/fsdp_load.py:179-198, where a mixed-precision policy comes on top). Its own shards
are the only host copy: they are made tensor by tensor from the source, and a full tensor is never
kept.

FSDP2 copies inside its own hooks, out of our sight, so the copies are derived: a unit is unsharded
once a visit, and each time all of this rank's (padded) shards cross the link. The engine checks
that a unit was really sharded before and that the visit really found it whole.
"""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from wanreport.engines.base import Counters, Engine, Shape
from wanreport.model.layout import Layout


class Fsdp(Engine):
    name = "fsdp"
    counters_derived = True
    pins_store = False

    def _attach(self) -> None:
        cuda, layouts = self.mover.cuda, self.store.layouts
        if self.group is None:
            raise ValueError("fsdp needs a process group, also for a single rank")
        mesh = DeviceMesh.from_group(self.group, self.mover.device.type)
        policy = CPUOffloadPolicy(pin_memory=cuda)
        self._copied: dict[str, list[Counters]] = {}  # by an unshard of the outer unit, of a block
        for name, expert in self.experts.items():
            for block in expert.blocks:
                fully_shard(block, mesh=mesh, offload_policy=policy, reshard_after_forward=True)
            fully_shard(expert, mesh=mesh, offload_policy=policy, reshard_after_forward=True)
            rope = expert._modules.pop("rope")  # holds real values already
            expert.to_empty(device="cpu")
            expert.add_module("rope", rope)
            shards: dict[str, Any] = dict(expert.named_parameters())
            for key, full in self.store.tensors(name):
                # This rank's rows, cut as FSDP2 cuts.
                chunks, rank = torch.chunk(full, mesh.size(), dim=0), mesh.get_local_rank()
                if rank < len(chunks):
                    shards[key].to_local().copy_(chunks[rank])
            copied = [self._unshard(layouts[name, unit], mesh.size()) for unit in (None, 0)]
            self._copied[name] = copied

    def detach(self) -> None:
        self._reshard()
        modules = [module for expert in self.experts.values() for module in expert.modules()]
        super().detach()
        # FSDP2 hangs its shards on the modules, by hooks and in circles; who still holds a spent
        # expert must not hold its memory.
        for module in modules:
            vars(module).clear()
        gc.collect()
        if self.mover.cuda:
            torch.cuda.synchronize(self.mover.device)
            torch._C._host_emptyCache()  # or torch's pool would keep it page-locked

    @staticmethod
    def _shards(layout: Layout, world_size: int) -> list[int]:
        """Bytes of one rank's shards of a unit; dimension 0 is padded to equal parts."""
        return [
            -(-piece.shape[0] // world_size) * piece.shape[1:].numel() * piece.dtype.itemsize
            for piece in layout.slices
        ]

    @classmethod
    def _unshard(cls, layout: Layout, world_size: int) -> Counters:
        """What one unshard of a unit copies on one rank."""
        shards = cls._shards(layout, world_size)
        return Counters(h2d_copies=len(shards), h2d_bytes=sum(shards), unshards=1)

    def host_bytes(self, layouts: Sequence[Layout], ranks: int) -> int:
        """Shards, each rounded up to a power of two: that is how torch's pinned pool allocates."""
        shards = [nbytes for layout in layouts for nbytes in self._shards(layout, ranks)]
        return ranks * sum(1 << (nbytes - 1).bit_length() for nbytes in shards)

    def begin(self, passes: Sequence[str]) -> None:
        self._reshard()

    def _reshard(self) -> None:
        """Give up what an iteration that was cut short left whole."""
        for expert in self.experts.values():
            for module in (*expert.blocks, expert):
                module.reshard()

    def use(self, expert: str) -> None:
        self.mover.counters += self._copied[expert][0]

    def _whole(self, expert: str, block: int) -> bool:
        return not isinstance(next(self.experts[expert].blocks[block].parameters()), DTensor)

    def before_block(self, expert: str, block: int) -> None:
        if self._whole(expert, block):
            raise RuntimeError(f"block {block} of {expert} is whole before its visit")
        self.mover.counters += self._copied[expert][1]
        super().before_block(expert, block)

    def window(self, expert: str, block: int, segment: str) -> None:
        if not self._whole(expert, block):
            raise RuntimeError(f"block {block} of {expert} is still sharded in its visit")

    def expected(self, shape: Shape, iteration: int) -> Counters:
        """Every pass unshards the expert's outer unit and each block once."""
        units = (self._unshard(layout, shape.world_size) for layout in shape.layouts)
        return sum(units, Counters()) * sum(shape.passes.values())
