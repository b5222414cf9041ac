"""Bandwidth of the link between host and device memory, by plain copies.

It is what every engine's bytes must pass through, so each record carries it: alone, and with all
ranks copying at once, since GPUs may share a root port or the host's memory.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wanreport.model.weights import pinned

NBYTES = 1 << 29  # most of a block of A14B
COPIES = 5


def measure_link(device: torch.device, group: dist.ProcessGroup | None) -> dict[str, Any] | None:
    """Copy a buffer to and fro, from pinned and from pageable memory, on all ranks of ``group``.

    Returns the same on every rank, or None without a GPU: ``nbytes`` of one copy; ``samples`` in
    GB/s of rank 0 alone and of each rank together; and their medians, ``h2d_pinned_gb_s`` alone and
    ``h2d_pinned_together_gb_s`` of the slowest rank.
    """
    if device.type != "cuda":
        return None
    there = torch.empty(NBYTES, dtype=torch.uint8, device=device)
    here = torch.ones(NBYTES, dtype=torch.uint8)  # ones, not empty: its pages must be there
    found: dict[str, Any] = {"nbytes": NBYTES, "samples": {}}
    for key in ("h2d_pageable", "d2h_pageable", "h2d_pinned", "d2h_pinned"):
        pair = (there, here) if key.startswith("h2d") else (here, there)
        with pinned([here] if key.endswith("pinned") else []):
            alone: list[Any] = [_copies(*pair) if dist.get_rank(group) == 0 else None]
            dist.broadcast_object_list(alone, src=0, group=group)
            dist.barrier(group)
            together: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(together, _copies(*pair), group=group)
        found["samples"][key] = {"alone": alone[0], "together": together}
        found[f"{key}_gb_s"] = round(median(alone[0]), 3)
        found[f"{key}_together_gb_s"] = round(min(map(median, together)), 3)
    return found


def _copies(target: Tensor, source: Tensor) -> list[float]:
    """GB/s of each copy but the first, which warms up."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(COPIES + 2)]
    for mark in marks:
        mark.record()
        if mark is not marks[-1]:
            target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in zip(marks[1:-1], marks[2:], strict=True)]
    return [round(target.numel() / time / 1e6, 3) for time in times]
