"""What a rank finds out before it takes memory: the model's settings, its weights, what fits.

Each function raises :class:`~wanreport.measure.ranks.Unsupported` where the job cannot run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wanreport.engines import Engine
from wanreport.jobs.job import Job, model_settings
from wanreport.jobs.settings import RING
from wanreport.measure.ranks import Unsupported
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert
from wanreport.model.weights import CheckpointWeights, HostStore, Layout, RandomWeights, Source
from wanreport.planner.plan import MIN_ROOM, room

HOST_OVERHEAD = 4 * 10**9  # bytes a rank takes on the host beside weights: CUDA, VAE, frames


def model_of(job: Job) -> tuple[dict[str, Any], Source, dict[str, dict[str, Any]]]:
    """The model's settings (the job's own, else SGLang's), its weights, each expert's config."""
    try:
        settings = model_settings(job)
        if not job.checkpoint:
            config = TINY if job.scale == "tiny" else A14B
            return settings, RandomWeights(job.seed), dict.fromkeys(EXPERTS, config)
        weights = CheckpointWeights(Path(job.checkpoint))
        return settings, weights, {name: weights.config(name) for name in EXPERTS}
    except (OSError, ValueError, KeyError) as error:
        raise Unsupported(str(error), "point `checkpoint` at a complete folder") from error


def blocks_in_budget(job: Job, layouts: Sequence[Layout]) -> int:
    """How many blocks ``vram_budget_gb`` holds on the device.

    ``layouts`` are the job's own. A rehearsal asks about the full model's, and takes its share.
    """
    rehearsal = job.scale == "tiny" and not job.checkpoint
    if rehearsal:
        config, dtype = A14B | {"num_layers": 1}, getattr(torch, job.dtype)
        whole = {name: Expert(name, config, dtype) for name in EXPERTS}
        layouts = list(HostStore(whole, RandomWeights()).layouts.values())
    outer, block = layouts[0].nbytes, layouts[1].nbytes
    blocks = room(job.vram_budget_gb, block, outer, job.transfer)
    if blocks < MIN_ROOM:
        least = (2 * outer + (MIN_ROOM + RING * (job.transfer == "packed")) * block) / 1e9
        raise Unsupported(
            f"vram_budget_gb {job.vram_budget_gb} holds {blocks} blocks, and streaming needs"
            f" {MIN_ROOM} beside what lies outside the blocks",
            f"give at least {math.ceil(least * 10) / 10} GB, or leave the budget out",
        )
    if rehearsal:
        blocks = max(blocks * TINY["num_layers"] // A14B["num_layers"], MIN_ROOM)
    return blocks


def require_host_memory(
    engine: Engine, layouts: Sequence[Layout], ranks: int, free: int, *, rehearsal: bool = False,
    nodes: int = 1,
) -> None:  # fmt: skip
    """Refuse a job whose host copy of the weights does not fit, before anything is allocated.

    ``free`` bytes there were before the ranks began, so that all of them decide alike. In a
    rehearsal host memory stands in for each rank's device, too. Each node has an equal share.
    """
    each = sum(layout.nbytes for layout in layouts) if rehearsal else HOST_OVERHEAD
    whole = engine.host_bytes(layouts, ranks)
    needed = (whole if engine.shares_store else whole // nodes) + ranks // nodes * each
    if needed > free:
        on, why, fix = (
            "GPUs", "", "run it with more memory (on SLURM: --mem), with fewer GPUs, or with an"
            " engine whose host copy all ranks share (resident, layerwise)",
        ) if not rehearsal else (
            "ranks without a GPU", "; a rehearsal runs a checkpoint as it is",
            "leave out `checkpoint` to rehearse with small random weights",
        )  # fmt: skip
        raise Unsupported(
            f"{engine.name} on {ranks} {on} keeps {needed / 1e9:.1f} GB in host memory and"
            f" {free / 1e9:.1f} GB are free: {(needed - free) / 1e9:.1f} GB are missing{why}",
            fix,
        )
