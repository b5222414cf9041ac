"""Bandwidth of the link between host and device memory, by plain copies.

It is what every engine's bytes must pass through, so each record carries it: alone, and with all
ranks copying at once, since GPUs may share a root port or the host's memory.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wanreport.model.weights import pinned

NBYTES = 1 << 29  # most of a block of A14B
COPIES = 5


def measure_link(device: torch.device, group: dist.ProcessGroup | None) -> dict[str, Any] | None:
    """Copy a buffer to and fro, from pinned and from pageable host memory.

    All ranks of ``group`` (None: of the default one) must call it. Rank 0 copies alone first, then
    all copy at once.

    Returns
    -------
    The same on every rank, or None without a GPU: ``nbytes`` of one copy; ``samples`` in GB/s as
    ``{direction_memory: {"alone": [...], "together": [[...] of each rank]}}``; and for each
    direction and memory its median alone, as ``h2d_pinned_gb_s``, and with all ranks at once that
    of the slowest, as ``h2d_pinned_together_gb_s``.
    """
    if device.type != "cuda":
        return None
    ranks = dist.get_world_size(group)
    there = torch.empty(NBYTES, dtype=torch.uint8, device=device)
    here = torch.ones(NBYTES, dtype=torch.uint8)  # ones, not empty: its pages must be there
    found: dict[str, Any] = {"nbytes": NBYTES, "samples": {}}
    for memory in ("pageable", "pinned"):
        with pinned([here] if memory == "pinned" else []):
            for direction in ("h2d", "d2h"):
                pair = (there, here) if direction == "h2d" else (here, there)
                alone: list[Any] = [_copies(*pair) if dist.get_rank(group) == 0 else None]
                dist.broadcast_object_list(alone, src=0, group=group)
                dist.barrier(group)
                mine, together = _copies(*pair), [None] * ranks
                dist.all_gather_object(together, mine, group=group)
                key = f"{direction}_{memory}"
                found["samples"][key] = {"alone": alone[0], "together": together}
                found[f"{key}_gb_s"] = round(statistics.median(alone[0]), 3)
                slowest = min(statistics.median(rank or []) for rank in together)
                found[f"{key}_together_gb_s"] = round(slowest, 3)
    return found


def _copies(target: Tensor, source: Tensor) -> list[float]:
    """GB/s of each copy but the first, which warms up."""
    marks = []
    for _ in range(COPIES + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source, non_blocking=True)
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    nbytes = target.numel()
    return [round(nbytes / start.elapsed_time(end) / 1e6, 3) for start, end in marks[1:]]
