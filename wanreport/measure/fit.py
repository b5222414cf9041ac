"""What a rank finds out before it takes memory: whether weights are there, and whether they fit.

Each function raises :class:`~wanreport.measure.launch.Unsupported` where the job cannot run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wanreport.engines import Engine
from wanreport.jobs.settings import RING
from wanreport.measure.launch import Unsupported
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert
from wanreport.model.weights import (
    CheckpointWeights,
    HostStore,
    Layout,
    RandomWeights,
    Source,
)
from wanreport.planner.plan import MIN_ROOM, room

HOST_OVERHEAD = 4 * 10**9  # bytes a rank takes on the host beside weights: CUDA, VAE, frames


def weights_of(
    checkpoint: Path | None, seed: int, *, tiny: bool
) -> tuple[Source, dict[str, dict[str, Any]]]:
    """Where weights come from, and each expert's configuration."""
    if checkpoint is None:
        return RandomWeights(seed), dict.fromkeys(EXPERTS, TINY if tiny else A14B)
    weights = CheckpointWeights(checkpoint)
    return weights, {name: weights.config(name) for name in EXPERTS}


def blocks_in_budget(job: Mapping[str, Any], layouts: Sequence[Layout]) -> int:
    """How many blocks ``vram_budget_gb`` holds on the device.

    ``layouts`` are the job's own. A rehearsal asks about the full model's, and takes its share.
    """
    rehearsal = job["scale"] == "tiny" and not job["checkpoint"]
    if rehearsal:
        config, dtype = A14B | {"num_layers": 1}, getattr(torch, job["dtype"])
        whole = {name: Expert(name, config, dtype) for name in EXPERTS}
        layouts = list(HostStore(whole, RandomWeights()).layouts.values())
    outer, block, budget_gb = layouts[0].nbytes, layouts[1].nbytes, job["vram_budget_gb"]
    blocks = room(budget_gb, block, outer, job["transfer"])
    if blocks < MIN_ROOM:
        least = (2 * outer + (MIN_ROOM + RING * (job["transfer"] == "packed")) * block) / 1e9
        raise Unsupported(
            f"vram_budget_gb {budget_gb} holds {blocks} blocks, and streaming needs"
            f" {MIN_ROOM} beside what lies outside the blocks",
            f"give at least {math.ceil(least * 10) / 10} GB, or leave the budget out",
        )
    if rehearsal:
        blocks = max(blocks * TINY["num_layers"] // A14B["num_layers"], MIN_ROOM)
    return blocks


def require_host_memory(engine: Engine, layouts: Sequence[Layout], ranks: int, free: int) -> None:
    """Refuse a job whose host copy of the weights does not fit, before anything is allocated.

    ``free`` bytes there were before the ranks began, so that all of them decide alike.
    """
    needed = engine.host_bytes(layouts, ranks) + ranks * HOST_OVERHEAD
    if needed > free:
        raise Unsupported(
            f"{type(engine).__name__.lower()} on {ranks} GPUs keeps {needed / 1e9:.1f} GB in host"
            f" memory and {free / 1e9:.1f} GB are free: {(needed - free) / 1e9:.1f} GB are missing",
            "run it with more memory (on SLURM: --mem), with fewer GPUs, or with an engine whose"
            " host copy all ranks share (resident, layerwise)",
        )
