"""Made-up traces, and what they hold by slow code of its own: sets of nanoseconds, no arrays."""

from __future__ import annotations

import json
import random
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

COPIES = (("HtoD", "Pinned", "Device", 1, 1, 2), ("HtoD", "Pageable", "Device", 1, 0, 2),
          ("DtoH", "Device", "Pinned", 2, 2, 1), ("DtoD", "Device", "Device", 8, 2, 2))  # fmt: skip
OLD = {
    "kernel": "Kernel",
    "gpu_memcpy": "Memcpy",
    "gpu_memset": "Memset",
    "cuda_runtime": "Runtime",
}
SYNCS = ("cudaStreamSynchronize", "cudaStreamWaitEvent", "cudaDeviceSynchronize")
Event = dict[str, Any]


def event(cat: str, name: str, start: int, ns: int, pid: int = 9, **args: Any) -> Event:
    """One event whose times are whole ns, as Decimals of microseconds."""
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": args.get("stream", start),
            "ts": Decimal(start) / 1000, "dur": Decimal(ns) / 1000, "args": args}  # fmt: skip


def events(seed: int, base: int = 0, steps: int = 3, hip: bool = False) -> list[Event]:
    """Steps with calls and what they launched, in the order of a profiler's file."""
    rng, prefix = random.Random(seed), "hip" if hip else "cuda"
    host = [event("user_annotation", f"ProfilerStep#{4 + step}", base + 3000 * step, 2900)
            for step in range(steps)]  # fmt: skip
    made: list[Event] = []
    for number in range(1, 60):
        step = rng.randrange(steps)
        at = base + 3000 * step + rng.randrange(2800)
        ran, ns, stream = (
            at + rng.randrange(400),
            rng.choice([0, 1, 7, 80, 333]),
            rng.choice([7, 23]),
        )
        gpu = {"device": 0, "stream": stream, "correlation": number}
        name = rng.choice(["LaunchKernel", "MemcpyAsync", "Memcpy", "MemsetAsync", "sync"])
        if name == "sync":
            call = rng.choice(SYNCS).replace("cuda", prefix)
            made.append(event("cuda_runtime", call, at, rng.randrange(200_000), correlation=number))
            continue
        made.append(event("cuda_runtime", prefix + name, at, rng.choice([9, 10_001, 100_001]),
                          correlation=number if rng.random() < 0.9 else number + 1000))  # fmt: skip
        if "Memcpy" in name:
            way, source, target, *_ = rng.choice(COPIES)
            size = {"bytes": rng.choice([1, 4096, 10**6])} if rng.random() < 0.9 else {}
            made.append(event("gpu_memcpy", f"Memcpy {way} ({source} -> {target})", ran, ns, 0,
                              **gpu, **size))  # fmt: skip
        elif name == "LaunchKernel":
            kernel = rng.choice(["gemm", "ncclDevKernel_SendRecv", "void f<2>(int)"])
            made.append(event("kernel", kernel, ran, ns, 0, **gpu))
        else:
            made.append(event("gpu_memset", "Memset (Device)", ran, ns, 0, **gpu, bytes=4))
    rng.shuffle(made)
    return [*host, *made, {"ph": "i", "s": "g", "name": "Record Window End", "ts": Decimal(base)}]


class _Encoder(json.JSONEncoder):
    """Decimals as numbers with their own digits."""

    def default(self, value: Any) -> Any:
        return f"\0{value}\0"


def text(made: list[Event], form: str = "new") -> str:
    """The file: with categories of today, old ones, or as a bare list."""
    if form == "old":
        made = [each | {"cat": OLD.get(each.get("cat", ""), each.get("cat", ""))} for each in made]
    body = json.dumps(made, cls=_Encoder, indent=1 if form == "new" else None)
    body = body.replace('"\\u0000', "").replace('\\u0000"', "")
    if form == "bare":
        return body
    device = '{"id": 0, "name": "NVIDIA A100", "sm": 108}, {"id": 1, "name": "NVIDIA A100"}'
    return (f'{{"schemaVersion": 1, "deviceProperties": [{device}], "distributedInfo": '
            f'{{"backend": "nccl", "rank": 5}}, "traceEvents": {body}, "end": 1}}')  # fmt: skip


def ticks(some: list[Event]) -> set[int]:
    """Every nanosecond at which one of some events runs."""
    return {t for each in some for t in range(int(each["ts"] * 1000),
                                               int((each["ts"] + each["dur"]) * 1000))}  # fmt: skip


def slow(made: list[Event]) -> dict[str, Any]:
    """What :func:`wanreport.traces.command.summarised` must say."""
    spans = [each for each in made if each["ph"] == "X"]
    kernels = [each for each in spans if each["cat"] == "kernel"]
    nccl = [each for each in kernels if "nccl" in each["name"]]
    busy = {"compute": ticks([k for k in kernels if k not in nccl]), "nccl": ticks(nccl)}
    both = len(busy["compute"] & busy["nccl"])
    copies = [each for each in spans if each["cat"] == "gpu_memcpy"]
    calls = [each for each in spans if each["cat"] == "cuda_runtime"]
    ns = [int(c["dur"] * 1000) for c in calls if "Memcpy" in c["name"]]
    linked = {c["args"]["correlation"] for c in calls}
    found: dict[str, Any] = {
        "events": len(made), "device0": "NVIDIA A100", "record_window_end": True,
        "kernels": len(kernels), "nccl_kernels": len(nccl),
        "compute_busy_ns": len(busy["compute"]), "nccl_busy_ns": len(busy["nccl"]),
        "compute_and_nccl_ns": both,
        "memcpy_by_name": {
            name: {"count": sum(c["name"] == name for c in copies)}
            for name in {c["name"] for c in copies}
        },
        "memcpy_calls": {"count": len(ns), "gt10us": sum(n > 10_000 for n in ns),
                         "gt100us": sum(n > 100_000 for n in ns), "total_ns": sum(ns)},
        "memcpy_without_runtime_call": sum(c["args"]["correlation"] not in linked for c in copies),
        "steps": [[s["name"], int(s["dur"] * 1000)] for s in spans if "ProfilerStep" in s["name"]],
    }  # fmt: skip
    for way in {c["name"].split()[1] for c in copies}:
        own = [c for c in copies if c["name"].split()[1] == way]
        known = [c for c in own if "bytes" in c["args"]]
        found[way] = rates(known) | {
            "no_bytes": len(own) - len(known), "busy_union_ns": len(ticks(known)),
            **{f"overlap_{k}_ns": len(ticks(known) & ran) for k, ran in busy.items()},
        }  # fmt: skip
    return found


def rates(known: list[Event]) -> dict[str, Any]:
    pairs = [(c["args"]["bytes"], int(c["dur"] * 1000)) for c in known]
    each = [(size / ns, ns) for size, ns in pairs if ns]
    spent, gb_s = sum(ns for _, ns in pairs), [rate for rate, _ in each]
    result: dict[str, Any] = {
        "count": len(pairs), "bytes": sum(size for size, _ in pairs), "sum_dur_ns": spent,
        "zero_dur": len(pairs) - len(each),
        "weighted_gbps": sum(size for size, _ in pairs) / spent if spent else None,
    }  # fmt: skip
    for name, q in (("median", 50), ("p10", 10), ("p90", 90)):
        result[f"{name}_gbps"] = float(np.percentile(gb_s, q)) if gb_s else None
    for low, high in ((0, 5), (5, 20)):
        time = sum(ns for rate, ns in each if low <= rate < high)
        result[f"time_share_{low}_{high}"] = time / spent if spent else None
    return result


def sqlite(path: Path, made: list[Event]) -> None:
    """The same events as an export of Nsight Systems, in tables that have no other columns."""
    spans = [each for each in made if each["ph"] == "X"]
    strings = {name: i for i, name in enumerate(sorted({each["name"] for each in spans}))}
    kinds = {f"Memcpy {way} ({a} -> {b})": numbers for way, a, b, *numbers in COPIES}

    def row(each: Event, *more: Any) -> tuple[Any, ...]:
        args, start = each["args"], int(each["ts"] * 1000)
        return (start, start + int(each["dur"] * 1000), args.get("correlation"),
                *((1 << 24, 0, args["stream"]) if "stream" in args else ()), *more)  # fmt: skip

    rows: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        "KERNEL": ("globalPid, deviceId, streamId, shortName", []),
        "MEMCPY": ("globalPid, deviceId, streamId, bytes, copyKind, srcKind, dstKind", []),
        "MEMSET": ("globalPid, deviceId, streamId, bytes", []),
        "RUNTIME": ("globalTid, nameId", []),
    }  # fmt: skip
    for each in spans:
        size = each["args"].get("bytes")
        code = strings[each["name"]]
        match each["cat"]:
            case "kernel":
                rows["KERNEL"][1].append(row(each, code))
            case "gpu_memcpy":
                rows["MEMCPY"][1].append(row(each, size, *kinds[each["name"]]))
            case "gpu_memset":
                rows["MEMSET"][1].append(row(each, size))
            case "cuda_runtime":
                rows["RUNTIME"][1].append(row(each, 1 << 24 | each["tid"] % 2**24, code))
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE StringIds (id, value)")
        for name, i in strings.items():
            database.execute("INSERT INTO StringIds VALUES (?, ?)", (i, f"{name}_v3020"))
        for name, (columns, values) in rows.items():
            table = f"CUPTI_ACTIVITY_KIND_{name}"
            database.execute(f'CREATE TABLE {table} (start, "end", correlationId, {columns})')
            marks = ", ".join("?" * (3 + columns.count(",") + 1))
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
        database.execute('CREATE TABLE NVTX_EVENTS (start, "end", text, globalTid)')
        for each in spans:
            if each["cat"] == "user_annotation":
                start = int(each["ts"] * 1000)
                database.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?)",
                                 (start, start + 2900, each["name"], 1 << 24 | 1))  # fmt: skip
    database.close()
