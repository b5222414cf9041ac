"""Made-up traces, and what they hold by slow code of its own: sets of nanoseconds, no arrays."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COPIES = (("HtoD", "Pinned", "Device", 1, 1, 2), ("HtoD", "Pageable", "Device", 1, 0, 2),
          ("DtoH", "Device", "Pinned", 2, 2, 1), ("DtoD", "Device", "Device", 8, 2, 2))  # fmt: skip
OLD = {"kernel": "Kernel", "gpu_memcpy": "Memcpy", "gpu_memset": "Memset",
       "cuda_runtime": "Runtime"}  # fmt: skip
ACTIVITY = "CUPTI_ACTIVITY_KIND_"
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
        ran, ns = at + rng.randrange(400), rng.choice([0, 1, 7, 80, 333])
        gpu = {"device": 0, "stream": rng.choice([7, 23]), "correlation": number}
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


def contended(overlaps: bool, shorter: float = 1.0, rounds: int = 8) -> list[Event]:
    """Rounds of a lone all-to-all, one with a copy beside it, and a lone copy, each once as long.

    Beside the other each takes 1.5 times as long, times `shorter`. Where it `overlaps`, a kernel
    computes beside the lone copies.
    """
    made = [event("user_annotation", "ProfilerStep#0", 0, 10_000 * rounds)]
    gpu = {"device": 0, "stream": 7}
    size = {"In msg nelems": 10**6, "dtype": "BFloat16"}
    for n in range(rounds):
        at, long = 10_000 * n, int(1500 * shorter)
        for start, ns, copy in ((0, 1000, 0), (3000, long, 0), (3000, long, 1), (8000, 1000, 1)):
            name = "Memcpy HtoD (Pinned -> Device)" if copy else "ncclDevKernel_SendRecv"
            more = {"bytes": 4000} if copy else size
            cat = "gpu_memcpy" if copy else "kernel"
            made.append(event(cat, name, at + start, ns, 0, **gpu, **more))
        made.append(event("kernel", "gemm", at + (8000 if overlaps else 6000), 900, 0, **gpu))
    return made


def text(made: list[Event], form: str = "new") -> str:
    """The file: with categories of today, old ones, or as a bare list."""
    if form == "old":
        made = [each | {"cat": OLD.get(each.get("cat", ""), each.get("cat", ""))} for each in made]
    body = json.dumps(made, default=lambda number: f"<{number}>", indent=(form == "new") or None)
    body = body.replace('"<', "").replace('>"', "")  # Decimals as numbers with their own digits
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
    names = sorted({each["name"] for each in spans})
    ways = {f"Memcpy {way} ({a} -> {b})": numbers for way, a, b, *numbers in COPIES}
    tables: dict[str, list[Event]] = defaultdict(list)
    tables["StringIds"] = [{"id": i, "value": f"{name}_v3020"} for i, name in enumerate(names)]
    for each in spans:
        args, start, code = each["args"], int(each["ts"] * 1000), names.index(each["name"])
        row = {"start": start, "end": start + int(each["dur"] * 1000)}
        linked = row | {"correlationId": args.get("correlation")}
        gpu = linked | {"globalPid": 1 << 24, "deviceId": 0, "streamId": args.get("stream")}
        kinds = zip(("copyKind", "srcKind", "dstKind"), ways.get(each["name"], ()), strict=False)
        thread = 1 << 24 | each["tid"] % 2**24
        table, columns = {
            "kernel": (f"{ACTIVITY}KERNEL", gpu | {"shortName": code}),
            "gpu_memcpy": (f"{ACTIVITY}MEMCPY", gpu | {"bytes": args.get("bytes")} | dict(kinds)),
            "gpu_memset": (f"{ACTIVITY}MEMSET", gpu | {"bytes": args.get("bytes")}),
            "cuda_runtime": (f"{ACTIVITY}RUNTIME", linked | {"globalTid": thread, "nameId": code}),
            "user_annotation": ("NVTX_EVENTS", row | {"text": each["name"], "globalTid": thread}),
        }[each["cat"]]
        tables[table].append(columns)
    with closing(sqlite3.connect(path)) as database:
        for table, rows in tables.items():
            pd.DataFrame(rows, dtype=object).to_sql(table, database, index=False)
