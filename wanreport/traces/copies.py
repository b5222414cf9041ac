"""What copies a trace holds: how many and of which kind, how fast, how many a step, of what.

GB is 10^9 bytes, so bytes over ns are GB/s. Copies without bytes, or that took no time, have no
rate. Each table has rows for each device of each trace; figures of incomplete steps are missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from wanreport.traces.events import Trace, named, rows_of, union

LINKS = {  # GB/s of 16 lanes in one direction, by the GPU's name
    r"GH200|GB[23]00": math.nan,  # not on PCIe
    r"H[128]00|H20\b|B[123]00|MI3\d\d|RTX PRO|RTX 50": 32 * 16 * 128 / 130 / 8,
    r"A100|A[1-4]0\b|A[2-6]000|L4|RTX [34]0|MI2\d\d": 16 * 16 * 128 / 130 / 8,
    r"V100|P100|T4|RTX 20|TITAN": 8 * 16 * 128 / 130 / 8,
}
BUCKETS = (0, 5, 20, math.inf)  # GB/s, each from its lower edge
SHARDS = (1, 2, 4, 6, 8)
TO_DEVICE, HOST = "HtoD", ("HtoD", "DtoH")
WAITS = r"(?:Stream|Device|Event|Ctx|Context)Synchronize"
HOW = ("blocking", "may block", "async", "unknown")


def copies_of(trace: Trace) -> pd.DataFrame:
    """Each copy with ``ns``, ``gb_s``, and ``how`` the host fares with it, by its call."""
    found = trace.events[trace.events.kind == "copy"]
    ns = found.end_ns - found.start_ns
    rate = found.bytes.astype("Float64").to_numpy(float, na_value=math.nan) / ns.where(ns > 0)
    calls = trace.events[trace.events.kind == "call"].sort_values(["thread", "start_ns"])
    calls = calls.assign(name=calls.name.astype(str))
    calls["next"] = calls.name.shift(-1).where(calls.thread == calls.thread.shift(-1), "")
    call = calls[["name", "next"]].reindex(found.call).fillna("").set_index(found.index)
    memcpy = call.name.str.contains("memcpy", case=False)
    blocks = ~call.name.str.contains("Async") | call.next.str.contains(WAITS)
    staged = ~found.memory.isin(["", "pinned"])  # an asynchronous call stages pageable memory
    known = memcpy | call.name.str.contains("GraphLaunch")
    how = np.select([memcpy & blocks, memcpy & staged, known], HOW[:3], HOW[3])
    return found.assign(ns=ns, gb_s=rate, how=how.astype(object))


def memcpy_calls(trace: Trace) -> pd.DataFrame:
    """Each call of the API for a copy, with its ``ns`` and the copy's device.

    A call that another one makes on the way is no call of its own.
    """
    events, calls = trace.events, calls_like(trace.events, "memcpy")
    calls = calls.sort_values(["thread", "start_ns", "ns"], ascending=[True, True, False])
    until = calls.groupby("thread").end_ns.cummax().groupby(calls.thread).shift(fill_value=-1)
    calls = calls[calls.end_ns > until]
    ran = events[events.call >= 0].drop_duplicates("call").set_index("call").device
    devices = ran.unique()
    device = calls.index.to_series().map(ran).fillna(devices[0] if len(devices) == 1 else -1)
    return calls.assign(device=device.astype(int))


def calls_like(events: pd.DataFrame, pattern: str, kind: str = "call") -> pd.DataFrame:
    """Calls in whose name a pattern is found, with their ``ns``; or events of another kind."""
    names = events.name.cat.categories
    names = names[names.str.contains(pattern, case=False)]
    found = events[(events.kind == kind) & events.name.isin(names)]
    return found.assign(ns=found.end_ns - found.start_ns)


def summary(traces: Iterable[Trace]) -> pd.DataFrame:
    """Count copies, calls and collectives: of each trace, and of each step (else missing)."""
    rows = []
    for trace in traces:
        facts, found, calls = trace.facts, copies_of(trace), memcpy_calls(trace)
        recorded = dict(trace.devices())
        called = bool((trace.events.kind == "call").any())
        steps = [(None, True), *trace.steps[["step", "complete"]].itertuples(index=False)]
        for device, events in recorded.items() or [(None, trace.events[:0])]:
            parts = [some if device is None else some[some.device == device]
                     for some in (found, calls, events)]  # fmt: skip
            for step, complete in steps:
                own, these, ran = (
                    some if step is None else some[(some.step == step).fillna(False)]
                    for some in parts
                )
                here = complete and bool(recorded)
                counts: dict[str, Any] = {"copies": len(own)}
                counts |= {how.replace(" ", "_"): (own.how == how).sum() for how in HOW}
                counts["host_device"] = own.direction.isin(HOST).sum()
                counts["collectives"] = (ran.kind == "collective").sum()
                counts = {key: int(n) if here else pd.NA for key, n in counts.items()}
                long = {f"calls_over_{us}us": int((these.ns > 1000 * us).sum())
                        if called and complete else pd.NA for us in (10, 100)}  # fmt: skip
                size = {"step": step, "size_bytes": facts["size_bytes"]}
                rows.append(named(trace, device) | size | counts | long)
    whole = ["rank", "device", "step", *(list(rows[0])[5:] if rows else [])]
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def rates(copies: pd.DataFrame) -> dict[str, Any]:
    """How fast some copies are: by time, by copy and by byte; NaN where none has a rate."""
    known = copies[copies.bytes.notna()]
    timed = known[known.ns > 0].sort_values("gb_s")
    nbytes, ns = int(known.bytes.sum()), int(known.ns.sum())
    busy = int(union(known, "direction").ns.sum())
    moved = timed.bytes.astype(float).cumsum()
    quantiles = {"median": 0.5, "p10": 0.1, "p90": 0.9}
    spent = timed.ns.groupby(pd.cut(timed.gb_s, BUCKETS, right=False), observed=False).sum()
    return {
        "copies": len(copies), "unsized": len(copies) - len(known),
        "zero_time": int((known.ns == 0).sum()), "bytes": nbytes, "ns": ns, "union_ns": busy,
        "weighted_gb_s": nbytes / ns if ns else math.nan,
        "throughput_gb_s": nbytes / busy if busy else math.nan,
        **{f"{name}_gb_s": float(timed.gb_s.quantile(q)) for name, q in quantiles.items()},
        **{f"{name}_by_bytes_gb_s": float(timed.gb_s[moved >= q * moved.max()].min())
           for name, q in quantiles.items()},
        **{f"share_{low}_{high}": float(time / ns) if ns else math.nan for (low, high), time in
           zip(((0, 5), (5, 20), (20, "up")), spent, strict=True)},
    }  # fmt: skip


def bandwidth(
    traces: Iterable[Trace], peak_gb_s: float | None = None, measured_gb_s: float | None = None
) -> pd.DataFrame:
    """Rates of copies by direction and memory, and what part of the link they use.

    ``of_peak`` while copying, ``of_peak_in_all`` over the trace's span, ``of_measured`` against
    what a benchmark of the link measured. They are missing between devices, where the peak is not
    known, and where the rate is above it: then the copy does not use that link.
    """
    rows = []
    for trace, names, events in rows_of(traces):
        found = copies_of(trace)
        peak = peak_gb_s or link(trace, names["device"])
        span = events.end_ns.max() - events.start_ns.min()
        by_direction = found[found.device == names["device"]].groupby("direction", observed=True)
        for direction, these in by_direction:
            kinds = [("all", these)] * (these.memory.nunique() > 1)
            for memory, some in [*these.groupby("memory", observed=True), *kinds]:
                row = rates(some)
                rate = row["throughput_gb_s"]
                fits = 1 if direction in HOST and rate <= peak else math.nan
                rows.append({
                    **names, "direction": direction, "memory": memory, **row,
                    "of_peak": fits * rate / peak,
                    "of_peak_in_all": fits * row["bytes"] / span / peak,
                    "of_measured": fits * rate / (measured_gb_s or math.nan),
                })  # fmt: skip
    return pd.DataFrame(rows)


def link(trace: Trace, device: int) -> float:
    """The peak of a GPU's PCIe link by its name, in GB/s; NaN where that is not known."""
    name = trace.facts["gpus"].get(device, "")
    return next((peak for pattern, peak in LINKS.items() if re.search(pattern, name)), math.nan)


def budget(
    traces: Iterable[Trace], peak_gb_s: float | None = None, measured_gb_s: float | None = None
) -> pd.DataFrame:
    """What copying a step's bytes takes at the link's peak, as measured and as observed.

    Bytes to the device and time in which kernels compute are means over complete steps.
    """
    rows = []
    for trace, names, events in rows_of(traces):
        steps = trace.steps.step[trace.steps.complete]
        own = copies_of(trace)
        own = own[(own.device == names["device"]) & (own.direction == TO_DEVICE)]
        kernels = events[(events.kind == "kernel") & events.step.isin(steps)]
        count = len(steps) or math.nan
        nbytes = int(own.bytes[own.step.isin(steps)].sum()) / count
        compute = int(union(kernels, "step").ns.sum()) / count
        scenarios = {"peak": peak_gb_s or link(trace, names["device"]),
                     "measured": measured_gb_s or math.nan,
                     "observed": rates(own)["weighted_gb_s"]}  # fmt: skip
        for scenario, rate in scenarios.items():
            share = nbytes / rate / compute if compute else math.nan
            rows.append({**names, "scenario": scenario, "rate_gb_s": rate, "steps": len(steps),
                         "step_bytes": nbytes, "ns": nbytes / rate, "compute_ns": compute,
                         "share": share})  # fmt: skip
    return pd.DataFrame(rows)


# Which tensor ------------------------------------------------------------------------------------


def wan_tensors() -> pd.DataFrame:
    """What an expert of Wan2.2-T2V-A14B can be copied by: ``tensor``, ``bytes``.

    Weights are of 16 bits, but for those that stay in 32.
    """
    dim, ffn, text = 5120, 13824, 4096
    square = dim * dim
    sizes = {  # numbers, bytes of each, how often in a block
        "attention q, k, v or out": (square, 2, 8), "ffn.net.0 or ffn.net.2": (dim * ffn, 2, 2),
        "a block's bias or q, k norm": (dim, 2, 13), "ffn.net.0 bias": (ffn, 2, 1),
        "block scale_shift_table": (6 * dim, 4, 1), "norm2 weight or bias": (dim, 4, 2),
        "patch_embedding or proj_out": (64 * dim, 2, 0), "proj_out bias": (64, 2, 0),
        "time_embedder.linear_1": (256 * dim, 4, 0), "time_embedder.linear_2": (square, 4, 0),
        "time_proj": (6 * square, 2, 0), "time_proj bias": (6 * dim, 2, 0),
        "text_embedder.linear_1": (dim * text, 2, 0), "text_embedder.linear_2": (square, 2, 0),
        "scale_shift_table": (2 * dim, 4, 0),
    }  # fmt: skip
    table = {name: count * width for name, (count, width, _) in sizes.items()}
    for width in (2, 4):
        parts = [n * w * often for n, w, often in sizes.values() if w == width]
        table[f"a block's weights of {8 * width} bits"] = sum(parts)
    table["a block"] = sum(n * w * often for n, w, often in sizes.values())
    return pd.DataFrame(table.items(), columns=["tensor", "bytes"])


def tensors(traces: Iterable[Trace], inventory: pd.DataFrame) -> pd.DataFrame:
    """Copies to the device by size, with every tensor that has this size, whole or sharded.

    ``candidates`` are how many those are; ``tensor`` is missing where there is none. Equal sizes
    are no proof.
    """
    whole = [(size // n, f"{name}, 1 of {n} shards" if n > 1 else name) for n in SHARDS
             for name, size in zip(inventory.tensor, inventory.bytes, strict=True)
             if size % n == 0]  # fmt: skip
    named = pd.DataFrame(whole, columns=["bytes", "tensor"]).groupby("bytes").tensor
    named = named.agg(tensor=" / ".join, candidates="size")
    rows = []
    for trace in traces:
        own = trace.events[(trace.events.kind == "copy") & (trace.events.direction == TO_DEVICE)]
        counts = own.groupby(["device", "bytes"]).size().rename("copies").reset_index()
        rows.append(counts.assign(file=trace.facts["file"], rank=trace.facts["rank"]))
    found = pd.concat(rows, ignore_index=True).join(named, on="bytes")
    found["total_bytes"] = found.bytes * found.copies
    found["candidates"] = found.candidates.fillna(0).astype(int)
    return found.sort_values("total_bytes", ascending=False, ignore_index=True)
