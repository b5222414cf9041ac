"""Profiles two steps around the switch: one trace a rank."""

import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from wanreport.engines import Engine
from wanreport.measure.ranks import NSYS

LENGTH = 2


class SwitchProfile:
    """Profiles two steps around the switch, after one that warms the profiler up.

    The gzipped trace goes to ``path``. ``steps`` are the indices of those that run, rising; if the
    ``switch`` is not among them, it is the third. A ``timeline`` is kept by the engine, too.
    """

    def __init__(self, path: Path, steps: Sequence[int], switch: int | None, engine: Engine,
                 *, timeline: bool) -> None:  # fmt: skip
        self.path, self.mover, self.timeline = path, engine.mover, timeline
        at = steps.index(switch) if switch is not None and switch in steps else 2
        first = min(max(at - 1, 0), max(len(steps) - LENGTH, 0))
        self.watched, self.begin = steps[first : first + LENGTH], steps[max(first - 1, 0)]
        self.nsys = bool(os.environ.get(NSYS)) and self.mover.cuda
        self._profiler: Any = None

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Around each step; ``watched`` ones are profiled."""
        watched = index in self.watched
        if self.nsys:
            with self._ranges(index) if watched else nullcontext():
                yield
            return
        if index == self.begin:
            plan = {"wait": 0, "warmup": int(not watched), "active": LENGTH, "repeat": 1}
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(**plan), on_trace_ready=self._export
            )
            self._profiler.start()
        self.mover.timeline.step = index if watched and self.timeline else None
        yield
        self.mover.timeline.step = None
        if self._profiler is not None:
            if self.mover.cuda:
                torch.cuda.synchronize()
            self._profiler.step()
            if index == self.watched[-1]:
                self._profiler.stop()
                self._profiler = None

    @contextmanager
    def _ranges(self, index: int) -> Iterator[None]:
        """Let Nsight Systems record a step, with NVTX ranges for it, its blocks and its copies."""
        timeline, nvtx = self.mover.timeline, torch.cuda.nvtx
        if index == self.watched[0]:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        timeline.step, timeline.nvtx = index, nvtx
        mark = nvtx.range_start(f"step {index}")
        yield
        torch.cuda.synchronize()
        nvtx.range_end(mark)
        timeline.step = timeline.nvtx = None
        if index == self.watched[-1]:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # the first rank to stop stops it for all
            torch.cuda.profiler.stop()

    def _export(self, profiler: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = self.path.with_suffix("")
        profiler.export_chrome_trace(str(plain))
        # The profiler notes where it wrote: this machine's affair.
        trace = plain.read_bytes().replace(os.fsencode(plain), os.fsencode(plain.name))
        # No time in the gzip header: the same trace gives the same bytes.
        self.path.write_bytes(gzip.compress(trace, 6, mtime=0))
        plain.unlink()
