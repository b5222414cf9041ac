"""Made-up traces, and what they hold by slow code of its own: sets of nanoseconds, no arrays."""

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
WAYS = {f"Memcpy {way} ({a} -> {b})": numbers for way, a, b, *numbers in COPIES}
PINNED, PAGEABLE = [*WAYS][:2]
OLD = {"kernel": "Kernel", "gpu_memcpy": "Memcpy", "gpu_memset": "Memset",
       "cuda_runtime": "Runtime"}  # fmt: skip
KERNELS = ("gemm", "ncclDevKernel_SendRecv", "void f<2>(int)")
SYNCS = ("cudaStreamSynchronize", "cudaStreamWaitEvent", "cudaDeviceSynchronize")
Event = dict[str, Any]


def put(folder: Path, body: str | bytes | list[Event], name: str = "t.json") -> Path:
    """A file in a folder: of text or bytes, or of a bare list of events."""
    body = text(body, "bare") if isinstance(body, list) else body
    (folder / name).write_bytes(body.encode() if isinstance(body, str) else body)
    return folder / name


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
        at = base + 3000 * rng.randrange(steps) + rng.randrange(2800)
        ran, ns = at + rng.randrange(400), rng.choice([0, 1, 7, 80, 333])
        gpu = {"device": 0, "stream": rng.choice([7, 23]), "correlation": number}
        name = rng.choice(["LaunchKernel", "MemcpyAsync", "Memcpy", "MemsetAsync", "sync"])
        if name == "sync":
            call = rng.choice(SYNCS).replace("cuda", prefix)
            made.append(event("cuda_runtime", call, at, rng.randrange(200_000), correlation=number))
            continue
        made.append(event("cuda_runtime", prefix + name, at, rng.choice([9, 10_001, 100_001]),
                          correlation=number if rng.random() < 0.9 else number + 1000))  # fmt: skip
        cat, what, size = "gpu_memset", "Memset", {"bytes": 4}
        if name == "LaunchKernel":
            cat, what, size = "kernel", rng.choice(KERNELS), {}
        elif "Memcpy" in name:
            cat, what = "gpu_memcpy", rng.choice([*WAYS])
            size = {"bytes": rng.choice([1, 4096, 10**6])} if rng.random() < 0.9 else {}
        made.append(event(cat, what, ran, ns, 0, **gpu, **size))
    rng.shuffle(made)
    return [*host, *made, {"ph": "i", "s": "g", "name": "Record Window End", "ts": Decimal(base)}]


def contended(overlaps: bool, shorter: float = 1.0, rounds: int = 8) -> list[Event]:
    """Rounds of a lone all-to-all, one with a copy beside it, and a lone copy, each once as long.

    Beside the other each takes 1.5 times as long, times `shorter`. Where it `overlaps`, a kernel
    computes beside the lone copies.
    """
    made = [event("user_annotation", "ProfilerStep#0", 0, 10_000 * rounds)]
    gpu, long = {"device": 0, "stream": 7}, int(1500 * shorter)
    copy = ("gpu_memcpy", PINNED, {"bytes": 4000})
    sent = ("kernel", "ncclDevKernel_SendRecv", {"In msg nelems": 10**6, "dtype": "BFloat16"})
    gemm = ("kernel", "gemm", {})
    for at in range(0, 10_000 * rounds, 10_000):
        for (cat, name, more), start, ns in (
            (sent, 0, 1000), (sent, 3000, long), (copy, 3000, long), (copy, 8000, 1000),
            (gemm, 8000 if overlaps else 6000, 900),
        ):  # fmt: skip
            made.append(event(cat, name, at + start, ns, 0, **gpu, **more))
    return made


def text(made: list[Event], form: str = "new") -> str:
    """The file: with categories of today, old ones, or as a bare list."""
    if form == "old":
        made = [each | {"cat": OLD.get(each.get("cat", ""), each.get("cat", ""))} for each in made]
    body = json.dumps(made, default=lambda number: f"<{number}>", indent=(form == "new") or None)
    body = body.replace('"<', "").replace('>"', "")  # Decimals as numbers with their own digits
    device = '{"id": 0, "name": "NVIDIA A100", "sm": 108}, {"id": 1, "name": "NVIDIA A100"}'
    return body if form == "bare" else (
        f'{{"schemaVersion": 1, "deviceProperties": [{device}], "distributedInfo": '
        f'{{"backend": "nccl", "rank": 5}}, "traceEvents": {body}, "end": 1}}')  # fmt: skip


def ticks(some: list[Event]) -> set[int]:
    """Every nanosecond at which one of some events runs."""
    return {t for each in some for t in range(int(each["ts"] * 1000),
                                               int((each["ts"] + each["dur"]) * 1000))}  # fmt: skip


def slow(made: list[Event]) -> dict[str, Any]:
    """What :func:`wanreport.traces.command.summarised` must say."""
    spans: dict[str, list[Event]] = defaultdict(list)
    for each in made:
        spans[each.get("cat", "")].append(each)
    kernels, copies, calls = (spans[cat] for cat in ("kernel", "gpu_memcpy", "cuda_runtime"))
    nccl = [each for each in kernels if "nccl" in each["name"]]
    busy = {"compute": ticks([k for k in kernels if k not in nccl]), "nccl": ticks(nccl)}
    ns = [int(c["dur"] * 1000) for c in calls if "Memcpy" in c["name"]]
    linked = {c["args"]["correlation"] for c in calls}
    names = [c["name"] for c in copies]
    found: dict[str, Any] = {
        "events": len(made), "device0": "NVIDIA A100", "record_window_end": True,
        "kernels": len(kernels), "nccl_kernels": len(nccl),
        "compute_busy_ns": len(busy["compute"]), "nccl_busy_ns": len(busy["nccl"]),
        "compute_and_nccl_ns": len(busy["compute"] & busy["nccl"]),
        "memcpy_by_name": {name: {"count": names.count(name)} for name in names},
        "memcpy_calls": {"count": len(ns), "gt10us": sum(n > 10_000 for n in ns),
                         "gt100us": sum(n > 100_000 for n in ns), "total_ns": sum(ns)},
        "memcpy_without_runtime_call": sum(c["args"]["correlation"] not in linked for c in copies),
        "steps": [[s["name"], int(s["dur"] * 1000)] for s in spans["user_annotation"]],
    }  # fmt: skip
    for way in {name.split()[1] for name in names}:
        own = [c for c in copies if c["name"].split()[1] == way]
        known = [c for c in own if "bytes" in c["args"]]
        found[way] = rates([(c["args"]["bytes"], int(c["dur"] * 1000)) for c in known]) | {
            "no_bytes": len(own) - len(known), "busy_union_ns": len(ticks(known)),
            **{f"overlap_{k}_ns": len(ticks(known) & ran) for k, ran in busy.items()},
        }  # fmt: skip
    return found


def rates(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """Of copies, by their bytes and ns."""
    each = [(size / ns, ns) for size, ns in pairs if ns]
    total, spent = (sum(numbers) for numbers in zip((0, 0), *pairs, strict=True))
    gb_s = [rate for rate, _ in each]
    result = {"count": len(pairs), "bytes": total, "sum_dur_ns": spent,
              "zero_dur": len(pairs) - len(each),
              "weighted_gbps": total / spent if spent else None}  # fmt: skip
    for name, q in (("median", 50), ("p10", 10), ("p90", 90)):
        result[f"{name}_gbps"] = float(np.percentile(gb_s, q)) if gb_s else None
    for low, high in ((0, 5), (5, 20)):
        time = sum(ns for rate, ns in each if low <= rate < high)
        result[f"time_share_{low}_{high}"] = time / spent if spent else None
    return result


def sqlite(path: Path, made: list[Event]) -> Path:
    """The same events as an export of Nsight Systems, in tables that have no other columns."""
    spans = [each for each in made if each["ph"] == "X"]
    names = sorted({each["name"] for each in spans})
    tables: dict[str, list[Event]] = defaultdict(list)
    tables["StringIds"] = [{"id": i, "value": f"{name}_v3020"} for i, name in enumerate(names)]
    for each in spans:
        args, start, code = each["args"], int(each["ts"] * 1000), names.index(each["name"])
        row = {"start": start, "end": start + int(each["dur"] * 1000)}
        linked = row | {"correlationId": args.get("correlation")}
        gpu = linked | {"globalPid": 1 << 24, "deviceId": 0, "streamId": args.get("stream")}
        kinds = zip(("copyKind", "srcKind", "dstKind"), WAYS.get(each["name"], ()), strict=False)
        thread = {"globalTid": 1 << 24 | each["tid"] % 2**24}
        table, columns = {
            "kernel": ("KERNEL", gpu | {"shortName": code}),
            "gpu_memcpy": ("MEMCPY", gpu | {"bytes": args.get("bytes")} | dict(kinds)),
            "gpu_memset": ("MEMSET", gpu | {"bytes": args.get("bytes")}),
            "cuda_runtime": ("RUNTIME", linked | thread | {"nameId": code}),
            "user_annotation": ("NVTX", row | thread | {"text": each["name"]}),
        }[each["cat"]]
        table = "NVTX_EVENTS" if table == "NVTX" else f"CUPTI_ACTIVITY_KIND_{table}"
        tables[table].append(columns)
    with closing(sqlite3.connect(path)) as database:
        for table, rows in tables.items():
            pd.DataFrame(rows, dtype=object).to_sql(table, database, index=False)
    return path
