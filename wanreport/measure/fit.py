"""What a rank finds out before it takes memory: the model, its weights, what fits, its link."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from wanreport.engines import Engine
from wanreport.jobs.job import Job, model_settings
from wanreport.jobs.settings import RING
from wanreport.measure.ranks import Unsupported
from wanreport.model import weights
from wanreport.model.clock import StepClock
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert
from wanreport.model.layout import Layout
from wanreport.planner.plan import MIN_ROOM, room

HOST_OVERHEAD = 4 * 10**9  # bytes a rank takes on the host beside weights: CUDA, VAE, frames
NBYTES = 1 << 29  # most of a block of A14B
COPIES = 5  # copies of so many bytes each


def model_of(job: Job) -> tuple[dict[str, Any], weights.Source, dict[str, dict[str, Any]]]:
    """The model's settings (the job's own, else SGLang's), its weights, each expert's config."""
    try:
        settings = model_settings(job)
        if not job.checkpoint:
            config = TINY if job.scale == "tiny" else A14B
            return settings, weights.RandomWeights(job.seed), dict.fromkeys(EXPERTS, config)
        found = weights.CheckpointWeights(Path(job.checkpoint))
        return settings, found, {name: found.config(name) for name in EXPERTS}
    except (OSError, ValueError, KeyError) as error:
        key = "checkpoint" if job.checkpoint else "model_path"
        raise Unsupported(str(error), f"repair what `{key}` names, or name another") from error


def blocks_in_budget(job: Job, layouts: Sequence[Layout]) -> int:
    """How many blocks ``vram_budget_gb`` holds on the device; in a rehearsal a share of those."""
    rehearsal = job.scale == "tiny" and not job.checkpoint
    if rehearsal:
        whole = Expert(EXPERTS[0], A14B | {"num_layers": 1}, getattr(torch, job.dtype))
        layouts = [Layout.of(weights.unit_parameters(whole, unit)) for unit in (None, 0)]
    outer, block = layouts[0].nbytes, layouts[1].nbytes
    blocks = room(job.vram_budget_gb, block, outer, job.transfer)
    if blocks < MIN_ROOM:
        least = (2 * outer + (MIN_ROOM + RING * (job.transfer == "packed")) * block) / 1e9
        raise Unsupported(
            f"vram_budget_gb {job.vram_budget_gb} holds {blocks} blocks beside what lies outside of"
            f" them; streaming needs {MIN_ROOM}",
            f"give at least {math.ceil(least * 10) / 10} GB, or leave the budget out",
        )
    share = blocks * TINY["num_layers"] // A14B["num_layers"]
    return max(share, MIN_ROOM) if rehearsal else blocks


def require_host_memory(
    engine: Engine, layouts: Sequence[Layout], ranks: int, free: int, *,
    rehearsal: bool = False, nodes: int = 1,
) -> None:  # fmt: skip
    """Refuse a job whose weights do not fit into the ``free`` bytes that a host had before.

    In a rehearsal, of a checkpoint as it is, host memory stands in for each rank's device, too.
    """
    each = sum(layout.nbytes for layout in layouts) if rehearsal else HOST_OVERHEAD
    whole = engine.host_bytes(layouts, ranks)
    needed = (whole if engine.shares_store else whole // nodes) + ranks // nodes * each
    if needed > free:
        more = "give it more memory (SLURM: --mem), fewer GPUs, or resident or layerwise"
        less = "leave out `checkpoint` to rehearse with small random weights"
        raise Unsupported(
            f"{engine.name} on {ranks} {'ranks' if rehearsal else 'GPUs'} keeps"
            f" {needed / 1e9:.1f} GB in host memory{' of each node' * (nodes > 1)}, and"
            f" {free / 1e9:.1f} GB are free: {(needed - free) / 1e9:.1f} GB are missing",
            less if rehearsal else more,
        )  # fmt: skip


def measure_link(device: torch.device, group: dist.ProcessGroup | None) -> dict[str, Any] | None:
    """Copy a buffer to and fro, from pinned and from pageable memory; None without a GPU.

    Every rank returns ``nbytes`` of one copy; ``samples`` in GB/s of rank 0 alone and of each rank
    together; and their medians: ``*_gb_s`` alone, ``*_together_gb_s`` of the slowest rank.
    """
    if device.type != "cuda":
        return None
    there = torch.empty(NBYTES, dtype=torch.uint8, device=device)
    here = torch.ones(NBYTES, dtype=torch.uint8)  # ones, not empty: its pages must be there
    found: dict[str, Any] = {"nbytes": NBYTES, "samples": {}}
    for key in ("h2d_pageable", "d2h_pageable", "h2d_pinned", "d2h_pinned"):
        each = (there, here, device) if key.startswith("h2d") else (here, there, device)
        with weights.pinned([here] if key.endswith("pinned") else []):
            alone: list[Any] = [_copies(*each) if dist.get_rank(group) == 0 else None]
            dist.broadcast_object_list(alone, src=0, group=group)
            dist.barrier(group)
            together: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(together, _copies(*each), group=group)
        found["samples"][key] = {"alone": alone[0], "together": together}
        found[f"{key}_gb_s"] = round(median(alone[0]), 3)
        found[f"{key}_together_gb_s"] = round(min(map(median, together)), 3)
    return found


def _copies(target: torch.Tensor, source: torch.Tensor, device: torch.device) -> list[float]:
    """GB/s of each copy but the first, which warms up."""
    clock = StepClock(device)
    for _ in range(COPIES + 1):
        with clock.step():
            target.copy_(source, non_blocking=True)
    return [round(target.numel() / time / 1e9, 3) for time in clock.seconds()[1:]]
