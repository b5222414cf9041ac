"""Clocks, memory, profiles and the description of the machine: what a record says was measured."""

from __future__ import annotations

import gzip
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch

from wanreport import __version__
from wanreport.engines import Engine
from wanreport.records.project import git_state

# Environment that changes how NCCL talks, and so belongs in a record.
P2P = "NCCL_P2P_DISABLE"
NCCL_SETTINGS = (P2P, "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE",
                 "NCCL_ALGO", "NCCL_PROTO", "NCCL_MAX_NCHANNELS", "NCCL_IB_DISABLE")  # fmt: skip


class SwitchProfile:
    """Profiles two steps around the switch, after one that warms the profiler up.

    Parameters
    ----------
    path
        Where the trace goes, gzipped; it appears under that name only when it is complete.
    steps
        Indices of the steps that run, rising.
    switch
        Index of the switch, if it runs; else the third step is taken for it.
    """

    LENGTH = 2

    def __init__(
        self, path: Path, steps: Sequence[int], switch: int | None, engine: Engine, *,
        timeline: bool,
    ) -> None:  # fmt: skip
        self.path, self.engine, self.timeline = path, engine, timeline
        at = steps.index(switch) if switch is not None and switch in steps else 2
        first = min(max(at - 1, 0), max(len(steps) - self.LENGTH, 0))
        self.watched = steps[first : first + self.LENGTH]
        self.begin = steps[max(first - 1, 0)]
        self._profiler: Any = None

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        if index == self.begin:
            warm = index not in self.watched
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    wait=0, warmup=int(warm), active=self.LENGTH, repeat=1
                ),
                on_trace_ready=self._export,
            )
            self._profiler.start()
        if index in self.watched and self.timeline:
            self.engine.mover.timeline.step = index
        try:
            yield
        finally:
            self.engine.mover.timeline.step = None
        if self._profiler is not None:
            if self.engine.mover.cuda:
                torch.cuda.synchronize()
            self._profiler.step()
            if index == self.watched[-1]:
                self.close()

    def close(self) -> None:
        """Stop where the schedule ended before the two steps did."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _export(self, profiler: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = self.path.with_suffix("")
        profiler.export_chrome_trace(str(plain))
        # The profiler notes where it wrote: this machine's affair.
        trace = plain.read_bytes().replace(os.fsencode(plain), os.fsencode(plain.name))
        part = self.path.with_suffix(".part")
        # No time in the gzip header: the same trace gives the same bytes.
        part.write_bytes(gzip.compress(trace, 6, mtime=0))
        plain.unlink()
        part.replace(self.path)


def software() -> dict[str, Any]:
    """Versions that a result depends on."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "wanreport": __version__,
        **git_state(),
    }


def machine(device: str) -> dict[str, Any]:
    """The machine's class, by hardware and interconnect; never a host name.

    Parameters
    ----------
    device
        ``"cuda"`` or ``"cpu"``: what the ranks run on.
    """
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {
        "class": f"CPU, {cores} cores ({platform.machine()})",
        "slug": f"cpu-{cores}c-{platform.machine()}",
        "device": device,
        "gpu_name": None,
        "gpu_count": 0,
        "gpu_memory_bytes": None,
        "driver": None,
        "interconnect": None,
        "pcie": None,
        "host_memory_bytes": host_memory()["total"],
        "cpu_model": _cpu_model(),
        "cpu_cores": cores,
        "nccl": {key: os.environ[key] for key in NCCL_SETTINGS if key in os.environ},
        "link": None,
        "transport": None,
    }
    if device != "cuda":
        return found
    properties = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    link = _interconnect(count)
    others = [f"{key}={value}" for key, value in found["nccl"].items() if key != P2P]
    label = ", ".join([f"{count}x {properties.name}", *filter(None, [link, *others])])
    return found | {
        "class": label,
        "slug": re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-"),
        "gpu_name": properties.name,
        "gpu_count": count,
        "gpu_memory_bytes": properties.total_memory,
        "driver": _nvidia_smi("driver_version"),
        "interconnect": link,
        "pcie": {
            "generation": _nvidia_smi("pcie.link.gen.max"),
            "width": _nvidia_smi("pcie.link.width.max"),
        },
    }


def host_memory() -> dict[str, int]:
    """Total and available host memory in bytes, the smaller of the machine's and the cgroup's."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes",
         "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):  # fmt: skip
        try:
            limit = int(Path(limit_file).read_text())
            used = int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue  # no such hierarchy, or "max"
        if limit < total:
            total, available = limit, min(available, limit - used)
    return {"total": total, "available": available}


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None)


def _nvidia_smi(query: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def _interconnect(count: int) -> str | None:
    """What collectives of ``count`` GPUs run over."""
    if count < 2:
        return None
    if os.environ.get(P2P) == "1":
        return f"host memory over PCIe ({P2P}=1)"
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown interconnect"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    rows = [line for line in plain.splitlines() if re.match(r"GPU\d+\s", line)]
    return "NVLink" if rows and re.search(r"\bNV\d+\b", rows[0]) else "PCIe"
