"""This machine: its class, its GPUs as the driver lists them, its memory, its software.

Nothing here imports torch: looking for a record must be cheap.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml

from wanreport import __version__
from wanreport.records.project import git_state

# Environment that changes how NCCL talks, and so belongs in a record.
P2P = "NCCL_P2P_DISABLE"
NCCL_SETTINGS = (P2P, "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE",
                 "NCCL_ALGO", "NCCL_PROTO", "NCCL_MAX_NCHANNELS", "NCCL_IB_DISABLE")  # fmt: skip


def gpus() -> list[Any]:
    """NVML handles of the GPUs that CUDA_VISIBLE_DEVICES leaves; none without a driver.

    As for CUDA, an entry is an index or the beginning of a UUID, and the first bad one ends the
    list.
    """
    try:
        pynvml.nvmlInit()
        there = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
        if allowed is None:
            return there
        names = {str(i): handle for i, handle in enumerate(there)}
        uuids = [(pynvml.nvmlDeviceGetUUID(handle), handle) for handle in there]
    except pynvml.NVMLError:
        return []
    visible: list[Any] = []
    for entry in map(str.strip, allowed.split(",")):
        like = [handle for uuid, handle in uuids if entry and uuid.startswith(entry)]
        if entry not in names and len(like) != 1:
            break
        visible.append(names[entry] if entry in names else like[0])
    return visible


def class_of(
    gpu_name: str, count: int, interconnect: str | None, nccl: Mapping[str, str]
) -> tuple[str, str]:
    """Name a class of machines by its GPUs and by what connects them; and as a folder's name."""
    others = [f"{key}={value}" for key, value in nccl.items() if key != P2P]
    label = ", ".join([f"{count}x {gpu_name}", *filter(None, [interconnect, *others])])
    return label, re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def machine(device: str = "") -> dict[str, Any]:
    """Describe the machine by hardware and interconnect, never by a host name.

    Parameters
    ----------
    device
        ``"cuda"`` or ``"cpu"``: what the ranks run on; by default what there is. A class is the
        same whatever a job runs on, so it is given only where GPUs are not to be looked at.
    """
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {
        "class": f"CPU, {cores} cores ({platform.machine()})",
        "slug": f"cpu-{cores}c-{platform.machine()}",
        "device": device or "cpu",
        "gpu_name": None, "gpu_count": 0, "gpu_memory_bytes": None, "driver": None,
        "interconnect": None, "pcie": None,
        "host_memory_bytes": host_memory()["total"],
        "cpu_model": _cpu_model(),
        "cpu_cores": cores,
        "nccl": {key: os.environ[key] for key in NCCL_SETTINGS if key in os.environ},
        "link": None, "transport": None,
    }  # fmt: skip
    handles = [] if device == "cpu" else gpus()
    if not handles:
        return found
    name, wire = pynvml.nvmlDeviceGetName(handles[0]), interconnect(handles)
    label, slug = class_of(name, len(handles), wire, found["nccl"])
    return found | {
        "class": label,
        "slug": slug,
        "device": "cuda",
        "gpu_name": name,
        "gpu_count": len(handles),
        "gpu_memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handles[0]).total,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "interconnect": wire,
        "pcie": {
            "generation": str(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handles[0])),
            "width": str(pynvml.nvmlDeviceGetMaxPcieLinkWidth(handles[0])),
        },
    }


def interconnect(handles: list[Any]) -> str | None:
    """What collectives of these GPUs run over; None for one."""
    if len(handles) < 2:
        return None
    if os.environ.get(P2P) == "1":
        return f"host memory over PCIe ({P2P}=1)"
    try:
        status = pynvml.nvmlDeviceGetP2PStatus(
            handles[0], handles[1], pynvml.NVML_P2P_CAPS_INDEX_NVLINK
        )
    except pynvml.NVMLError:
        return "unknown interconnect"
    return "NVLink" if status == pynvml.NVML_P2P_STATUS_OK else "PCIe"


def host_memory(
    proc: Path = Path("/proc/self/cgroup"), base: Path = Path("/sys/fs/cgroup")
) -> dict[str, int]:
    """Total and available host memory in bytes, the least of the machine's and its cgroups'."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for folder in _cgroups(proc, base):
        v1 = folder.is_relative_to(base / "memory")
        names = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
        try:
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in names)
        except (OSError, ValueError):
            continue  # no such hierarchy, or "max"
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return {"total": total, "available": available}


def _cgroups(proc: Path, base: Path) -> Iterator[Path]:
    """The memory cgroups of this process, its own and all around it, of version 1 or 2."""
    lines = proc.read_text().splitlines() if proc.exists() else []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds == "" or "memory" in kinds.split(","):
            root = base / "memory" if kinds else base
            own = root / path.lstrip("/")
            yield from (each for each in (own, *own.parents) if each.is_relative_to(root))


def software() -> dict[str, Any]:
    """Versions that a result depends on, as far as they are known without torch."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "diffusers")},
        "cuda": None, "nccl": None, "wanreport": __version__, **git_state(),
        **({"slurm_job": job} if (job := os.environ.get("SLURM_JOB_ID")) else {}),
    }  # fmt: skip


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None)
