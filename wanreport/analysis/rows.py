"""What rows of all kinds of file share: names for machines and engines, and the GPU's state."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from wanreport.records.files import PEERS, Gpu, Machine

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each frame, by its name."""

MEMORY = ("allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes")


def machine_name(machine: Machine) -> str:
    """Name a machine in short: "2× H100, PCIe path"; "CPU, 2 cores (x86_64)" without a GPU.

    H100 alone is the SXM board with 80 GB of HBM3; other boards keep the rest of their name.
    """
    if not machine.gpu_name:
        return machine.class_ or "unknown machine"
    board = machine.gpu_name.removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")
    path = path_name(machine)
    return f"{machine.gpu_count}× {board}" + (f", {path}" if path else "")


def path_name(machine: Machine) -> str:
    """Name how a machine's GPUs exchange data: "NVLink", "PCIe path"; "" for one GPU or none."""
    if machine.gpu_count < 2 or not machine.interconnect:
        return ""
    return path_of(machine.interconnect)


def path_of(interconnect: str) -> str:
    """Name an interconnect, as records have it, in short."""
    return "PCIe path" if "PCIe" in interconnect else interconnect


def engine_setting(engine: str, prefetch: int | None, room_gb: float | None) -> str:
    parts = [f"prefetch {prefetch}"] if engine == "layerwise" and prefetch is not None else []
    parts += [f"{room_gb:g} GB budget"] if room_gb is not None else []
    return ", ".join(parts)


def joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def about(run: str, machine: Machine, software: Any) -> dict[str, Any]:
    return {
        "run": run, "file": run.partition("#")[0],
        "machine": machine_name(machine), "machine_class": machine.class_, "slug": machine.slug,
        "interconnect": path_name(machine), "gpu_model": machine.gpu_name,
        "torch": software.torch, "commit": software.git_sha, "dirty": software.git_dirty,
    }  # fmt: skip


def gpu_state(by_iteration: Iterable[Sequence[Gpu | None]]) -> dict[str, Any]:
    """How the GPUs ran: of each rank the median over iterations, of these the slowest clock's."""
    by_rank = list(zip(*by_iteration, strict=False))
    if not by_rank or any(one is None for reads in by_rank for one in reads):
        return {"sm_mhz": None, "power_w": None, "celsius": None, "boards": ()}
    middle = [
        [statistics.median(getattr(one, key) for one in reads if one) for key in
         ("sm_mhz", "power_w", "celsius")] for reads in by_rank
    ]  # fmt: skip
    boards = tuple(sorted(reads[0].board for reads in by_rank if reads[0]))
    return dict(zip(("sm_mhz", "power_w", "celsius"), min(middle), strict=True)) | {
        "boards": boards
    }


def bench_name(engine: str, setting: str) -> str:
    """Name a row: "stream, slots 3"; a peer with its version, "SGLang 0.5.23"."""
    if engine in PEERS:
        return f"{'SGLang' if engine == 'sglang' else engine} {setting}".strip()
    return joined(engine, setting)
