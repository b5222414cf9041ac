"""This machine, without torch: its class, its GPUs by the driver, its memory, its software."""

import os
import platform
import re
from collections.abc import Mapping
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
NODES = "WANREPORT_NODES"
"""Set to the number of a Slurm job's nodes: its ranks are on all of them, as many on each."""


def nodes() -> int:
    return int(os.environ.get(NODES, "1"))


def gpus() -> list[Any]:
    """NVML handles of the GPUs that CUDA_VISIBLE_DEVICES leaves; none without a driver.

    As for CUDA, an entry is an index or the beginning of a UUID; the first bad one ends the list.
    """
    try:
        pynvml.nvmlInit()
        there = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in there]
    except pynvml.NVMLError:
        return []
    if (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return there
    visible: list[Any] = []
    for entry in map(str.strip, allowed.split(",")):
        like = [handle for index, (handle, uuid) in enumerate(zip(there, uuids, strict=True))
                if entry and (entry == str(index) or uuid.startswith(entry))]  # fmt: skip
        if len(like) != 1:
            break
        visible += like
    return visible


def class_of(
    gpu_name: str, count: int, interconnect: str | None, nccl: Mapping[str, str]
) -> tuple[str, str]:
    """Name a class of machines by its GPUs and by what connects them; and as a folder's name."""
    # One GPU has no collectives that they could change.
    others = [f"{key}={value}" for key, value in nccl.items() if key != P2P and count > 1]
    label = ", ".join([f"{count}x {gpu_name}", *filter(None, [interconnect, *others])])
    return label, re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def machine(device: str = "") -> dict[str, Any]:
    """Describe the machine by hardware and interconnect, never by a host name.

    Its class has no part in how many cores a job got. With `device` "cpu" no GPU is looked at.
    """
    model = re.search(r"^model name\s*: (.*)", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    nccl = {key: os.environ[key] for key in NCCL_SETTINGS if key in os.environ}
    found: dict[str, Any] = {
        "class": f"CPU ({platform.machine()})", "slug": f"cpu-{platform.machine()}",
        "device": "cpu", "gpu_name": None, "gpu_count": 0, "gpu_memory_bytes": None,
        "driver": None, "interconnect": None, "pcie": None,
        "host_memory_bytes": host_memory()["total"],
        "cpu_model": model[1] if model else platform.processor() or None,
        "cpu_cores": len(os.sched_getaffinity(0)), "nccl": nccl, "link": None, "transport": None,
    }  # fmt: skip
    if device == "cpu" or not (handles := gpus()):
        return found
    first, count, wire = handles[0], len(handles) * nodes(), None  # what collectives run over
    if nodes() > 1:
        wire = f"network between {nodes()} nodes"
    elif count > 1 and os.environ.get(P2P) == "1":
        wire = f"host memory over PCIe ({P2P}=1)"
    elif count > 1:
        try:
            nvlink = pynvml.nvmlDeviceGetP2PStatus(*handles[:2], pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            wire = "NVLink" if nvlink == pynvml.NVML_P2P_STATUS_OK else "PCIe"
        except pynvml.NVMLError:
            wire = "unknown interconnect"
    name = pynvml.nvmlDeviceGetName(first)
    label, slug = class_of(name, count, wire, nccl)
    lanes = {"generation": str(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(first)),
             "width": str(pynvml.nvmlDeviceGetMaxPcieLinkWidth(first))}  # fmt: skip
    return found | {
        "class": label, "slug": slug, "device": "cuda", "gpu_name": name, "gpu_count": count,
        "gpu_memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(first).total,
        "driver": pynvml.nvmlSystemGetDriverVersion(), "interconnect": wire, "pcie": lanes,
    }  # fmt: skip


def host_memory(
    proc: Path = Path("/proc/self/cgroup"), base: Path = Path("/sys/fs/cgroup")
) -> dict[str, int]:
    """Total and available host memory in bytes, the least of the machine's and all its cgroups'."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for _, kinds, path in (line.split(":", 2) for line in _text(proc).splitlines()):
        if kinds and "memory" not in kinds.split(","):
            continue
        names = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
        root = base / "memory" if kinds else base
        own = root / path.lstrip("/")
        for folder in (each for each in (own, *own.parents) if each.is_relative_to(root)):
            limit, used = (_text(folder / f"memory.{name}").strip() for name in names)
            if limit.isdigit() and used:  # there is such a hierarchy, and not "max"
                total = min(total, int(limit))
                available = min(available, max(int(limit) - int(used), 0))
    return {"total": total, "available": available}


def _text(path: Path) -> str:
    """What the system says in a file; "" where it has none."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def software() -> dict[str, Any]:
    """Versions that a result depends on, as far as they are known without torch."""
    ids = [os.environ.get(f"SLURM_{key}") for key in ("ARRAY_JOB_ID", "ARRAY_TASK_ID")]
    slurm = "_".join(filter(None, ids)) or os.environ.get("SLURM_JOB_ID")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "diffusers")},
        "cuda": None, "nccl": None, "wanreport": __version__, **git_state(),
        **({"slurm_job": slurm} if slurm else {}),
    }  # fmt: skip
