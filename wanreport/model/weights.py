"""Weights of the two experts in host memory: where they come from and how they lie.

A *unit* is what moves as one: a block (0, 1, …) or, as ``None``, all that an expert has outside
its blocks. The store keeps one flat buffer a unit, in which tensors of one dtype lie together:

    | bfloat16: attn1.to_q.weight | … | float32: scale_shift_table | … |

so an engine moves a block with one copy a dtype, or with one copy in all, and then points the
block's parameters into the copy. Buffers are filled when one is first asked for; `fsdp`, which
keeps its own shards, asks for single tensors and never fills any. Blocks can lie *packed*
(:mod:`wanreport.model.packed`), for an engine that unpacks them on the device.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from wanreport.model.checkpoint import FOLDERS, CheckpointError, audit, some
from wanreport.model.expert import Expert
from wanreport.model.layout import Layout
from wanreport.model.packed import PackedUnit, Rounded, pack

PACKERS = 4  # threads that pack; each has a whole block on the host and three on the device
PERIOD = 1_000_003  # a prime
Key = tuple[str, int | None]  # an expert and a unit of it


class RandomWeights:
    """Random weights of the right scale; a tensor's values depend on its name and the seed only.

    Values repeat after `PERIOD`, so that 57 GB are written at the speed of memory and no two rows
    of a matrix are alike.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fill(self, expert: str, name: str, out: Tensor) -> None:
        key, leaf = f"{self.seed}/{expert}/{name}", name.rpartition(".")[2]
        if leaf == "bias":
            out.zero_()
        elif out.dim() == 1:  # the gain of a norm
            out.fill_(1.0)
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            fan_in = out.shape[-1] if leaf == "scale_shift_table" else out[0].numel()
            values = torch.randn(min(out.numel(), PERIOD), generator=generator)
            values = (values * fan_in**-0.5).to(out.dtype)
            for piece in out.view(-1).split(PERIOD):
                piece.copy_(values[: piece.numel()])


class CheckpointWeights:
    """Weights from a local diffusers folder, read tensor by tensor; CheckpointError if unusable."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._stored = folder, audit(folder)

    def config(self, expert: str) -> dict[str, Any]:
        """Arguments of `diffusers.WanTransformer3DModel`; CheckpointError if tensors differ."""
        file = self.folder / FOLDERS[expert] / "config.json"
        raw = json.loads(file.read_text("utf-8"))
        config = {key: value for key, value in raw.items() if not key.startswith("_")}
        try:
            config |= {"patch_size": tuple(config["patch_size"])}
            model = Expert(expert, config, torch.bfloat16)
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{file}: {error!r}") from error
        wanted = {checkpoint_name(n): tuple(p.shape) for n, p in model.named_parameters()}
        stored = {name: each.shape for name, each in self._stored[FOLDERS[expert]].items()}
        if odd := sorted({name for name, _ in wanted.items() ^ stored.items()}):
            said = [
                f"{n} is {stored.get(n, 'absent')} there, {wanted.get(n, 'absent')} in the model"
                for n in odd
            ]
            raise CheckpointError(f"{file.parent}: {some(said)}")
        return config

    def fill(self, expert: str, name: str, out: Tensor) -> None:
        with safe_open(self._stored[FOLDERS[expert]][name].file, "pt") as opened:
            out.copy_(opened.get_tensor(name))


Source = RandomWeights | CheckpointWeights


def unit_parameters(expert: Expert, unit: int | None) -> dict[str, nn.Parameter]:
    """The parameters of a unit, by their name within the expert."""
    if unit is None:
        return {n: p for n, p in expert.named_parameters() if not n.startswith("blocks.")}
    return {f"blocks.{unit}.{n}": p for n, p in expert.blocks[unit].named_parameters()}


def checkpoint_name(name: str) -> str:
    """A parameter's name in a diffusers checkpoint, which knows no visits around blocks."""
    parts = name.split(".")
    return ".".join(parts[:2] + parts[3:]) if parts[0] == "blocks" else name


class HostStore:
    """The host copy of both experts, filled from ``source``.

    With ``pin`` buffers are page-locked, at their exact size, for asynchronous copies to a GPU.
    Ranks of a ``group``, on one host, share one copy, each filling its part of it. That memory has
    no name in any file system: it is gone with the last process that maps it, however that ends.
    The device ``packing`` packs the blocks, once, as they are filled; None: they lie as they are.
    ``transfer`` is how: "packed", or "fp8" for rounded ones.
    """

    def __init__(
        self, experts: dict[str, Expert], source: Source, *, pin: bool = False,
        group: dist.ProcessGroup | None = None, packing: torch.device | None = None,
        transfer: str = "packed",
    ) -> None:  # fmt: skip
        self.source, self.pin, self.group, self.packing = source, pin, group, packing
        self.transfer = "bf16" if packing is None else transfer
        self.packings: dict[Key, PackedUnit] = {}  # of the units that lie packed
        self.layouts: dict[Key, Layout] = {
            (name, unit): Layout.of(unit_parameters(expert, unit))
            for name, expert in experts.items()
            for unit in (None, *range(len(expert.blocks)))
        }
        self._buffers: dict[Key, Tensor] = {}
        self._pins = ExitStack()

    def units(self, expert: str) -> list[int | None]:
        return [unit for name, unit in self.layouts if name == expert]

    def nbytes(self, expert: str) -> int:
        """Bytes of one expert's buffers."""
        return sum(self.layouts[expert, unit].nbytes for unit in self.units(expert))

    def buffer(self, expert: str, unit: int | None) -> Tensor:
        """A unit's flat buffer, uint8; the first call fills them all."""
        if not self._buffers:
            self._fill()
        return self._buffers[expert, unit]

    def _fill(self) -> None:
        size = dist.get_world_size(self.group) if self.group is not None else 1
        rank = dist.get_rank(self.group) if size > 1 else 0
        if size > 1:
            buffers = self._map_shared(rank)
        else:
            buffers = {key: torch.empty(layout.nbytes, dtype=torch.uint8)
                       for key, layout in self.layouts.items()}  # fmt: skip
        ranks = dist.get_world_size() if dist.is_initialized() else 1  # all of them fill at once
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        with ThreadPoolExecutor(min(threads, PACKERS) if self.packing else threads) as pool:
            mine = [*self.layouts][rank::size]
            list(pool.map(lambda key: self._fill_unit(key, buffers[key]), mine))
        if size > 1:
            found: list[Any] = [None] * size
            dist.all_gather_object(found, self.packings, group=self.group)
            self.packings = {key: packing for each in found for key, packing in each.items()}
        # The system gives memory as it is written to, so what packing saves was never taken.
        for key, packing in self.packings.items():
            buffers[key] = buffers[key][: packing.nbytes]
        if self.packing is not None and self.packing.type == "cuda":
            torch.cuda.empty_cache()
        if self.pin:
            self._pins = pinned(buffers.values())
        self._buffers = buffers

    def _fill_unit(self, key: Key, buffer: Tensor) -> None:
        layout, packs = self.layouts[key], self.packing is not None and key[1] is not None
        unit = torch.zeros(layout.nbytes, dtype=torch.uint8) if packs else buffer
        for piece in layout.slices:
            self.source.fill(key[0], checkpoint_name(piece.name), piece.of(unit))
        if not packs:
            return
        there, span = unit.to(self.packing), layout.segments.get(torch.bfloat16, (0, 0))
        found = Rounded.pack(there, layout) if self.transfer == "fp8" else pack(there, *span)
        if found:
            self.packings[key], unit = found
        buffer[: unit.numel()].copy_(unit)

    def _map_shared(self, rank: int) -> dict[Key, Tensor]:
        """Map one nameless file into every rank's memory."""
        sizes = [-(-layout.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
                 for layout in self.layouts.values()]  # fmt: skip
        place: list[Any] = [None]
        if rank == 0:
            file = os.memfd_create("wanreport-weights")
            os.ftruncate(file, sum(sizes))
            place[0] = f"/proc/{os.getpid()}/fd/{file}"
        dist.broadcast_object_list(place, group_src=0, group=self.group)
        other = os.open(place[0], os.O_RDWR)
        whole = torch.frombuffer(mmap.mmap(other, sum(sizes)), dtype=torch.uint8)
        os.close(other)
        dist.barrier(self.group)
        if rank == 0:
            os.close(file)
        parts = zip(self.layouts.items(), whole.split(sizes), strict=True)
        return {key: part[: layout.nbytes] for (key, layout), part in parts}

    def tensors(self, expert: str) -> Iterator[tuple[str, Tensor]]:
        """An expert's tensors one by one, each made when it is asked for and then forgotten."""
        for unit in self.units(expert):
            for piece in self.layouts[expert, unit].slices:
                value = torch.empty(piece.shape, dtype=piece.dtype)
                self.source.fill(expert, checkpoint_name(piece.name), value)
                yield piece.name, value

    @property
    def pinned_bytes(self) -> int:
        """Page-locked bytes that this rank maps; ranks of one host map the same ones."""
        return sum(b.numel() for b in self._buffers.values()) if self.pin else 0

    def close(self) -> None:
        """Let go of all buffers; memory goes when the last view of it does."""
        self._pins.close()
        self._buffers = {}


def pinned(buffers: Iterable[Tensor]) -> ExitStack:
    """Page-lock host buffers, at their exact size, until the stack that this returns is closed.

    torch's own pinned pool would round every buffer up to a power of two. A stack that is dropped
    undoes nothing: a process that fails must not wait for its GPU before it says why.
    """
    runtime: Any = torch.cuda.cudart()

    def unpin(at: int) -> None:
        torch.cuda.check_error(int(runtime.cudaHostUnregister(at)))

    with ExitStack() as pins:
        for buffer in buffers:
            at = buffer.data_ptr()
            torch.cuda.check_error(int(runtime.cudaHostRegister(at, buffer.numel(), 0)))
            pins.callback(unpin, at)
        return pins.pop_all()
