"""What is read around steps: seconds, peak memory, hashes of results."""

import hashlib
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HOT_S = 2.0


def sha256(tensor: Tensor) -> str:
    """Of a tensor's bytes; FloatingPointError if not all are finite, for NaN equals any NaN."""
    if odd := tensor.numel() - int(tensor.isfinite().sum()):
        raise FloatingPointError(f"{odd} of {tensor.numel()} values are NaN or infinite")
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(data.tobytes()).hexdigest()


def hot_steps(step_s: float, device: torch.device, group: dist.ProcessGroup | None) -> int:
    """How many steps bring a GPU to the clocks that it keeps; none are needed elsewhere.

    An H200 that was idle ran its first half second 10 % faster than it could go on. ``step_s`` are
    this rank's seconds of a step; all ranks get the same answer and must ask.
    """
    if device.type != "cuda":
        return 0
    slowest = torch.tensor(step_s, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    return math.ceil(HOT_S / float(slowest))


def mark(device: torch.device) -> Any:
    """Now: an event on a GPU's current stream, the host's clock elsewhere."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds from one mark to another; a GPU must have come to both."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


class StepClock:
    """Seconds of each step on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[Any, Any]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        start = mark(self.device)
        yield
        self._marks.append((start, mark(self.device)))

    def seconds(self) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return [between(*marks) for marks in self._marks]


def reset_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.reset_peak_host_memory_stats()


def peaks(device: torch.device, store_pinned_bytes: int) -> dict[str, int | None]:
    """Peak memory since `reset_peaks`; the resident set of the process since it began, in bytes.

    Pinned memory is the store's, which ranks of one host share, and this rank's part of torch's
    own pool.
    """
    gpu: Any = torch.cuda if device.type == "cuda" else None
    pool = int(gpu.host_memory_stats().get("allocated_bytes.peak", 0)) if gpu else 0
    return {
        "allocated_bytes": gpu and gpu.max_memory_allocated(device),
        "reserved_bytes": gpu and gpu.max_memory_reserved(device),
        "pinned_bytes": gpu and store_pinned_bytes + pool,
        "host_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
