"""What copies a trace holds: how many, how fast, of what; what runs beside them; and what waits.

GB is 10^9 bytes, so bytes over ns are GB/s. Copies without bytes, or that took no time, have no
rate. Tables have rows for each device of each trace; figures of incomplete steps are missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from wanreport.traces.events import ON_GPU, Lanes, Trace, like

LINKS = {  # GB/s of 16 lanes in one direction, by the GPU's name
    r"GH200|GB[23]00": math.nan,  # not on PCIe
    r"H[128]00|H20\b|B[123]00|MI3\d\d|RTX PRO|RTX 50": 32 * 16 * 128 / 130 / 8,
    r"A100|A[1-4]0\b|A[2-6]000|L4|RTX [34]0|MI2\d\d": 16 * 16 * 128 / 130 / 8,
    r"V100|P100|T4|RTX 20|TITAN": 8 * 16 * 128 / 130 / 8,
}
BUCKETS = (0, 5, 20, math.inf)  # GB/s, each from its lower edge
SHARDS = (1, 2, 4, 6, 8)
TO_DEVICE, HOST = "HtoD", ("HtoD", "DtoH")
HOW = ("blocking", "may block", "async", "unknown")
WAITS = r"(?:Stream|Device|Event|Ctx|Context)Synchronize"
CALL = "^(?:cuda|hip|cu)"
SYNCS = CALL + r"(?:Stream|Event|Device|Ctx)(?:Synchronize|WaitEvent)"
ALLOCATIONS = CALL + r"(?:Malloc|Free|Host(?:Alloc|Free|Register|Unregister)|Mem\w*(?:Alloc|Free))"


def copies_of(trace: Trace) -> pd.DataFrame:
    """Each copy with its rate ``gb_s``, and ``how`` the host fares with it, by its call."""
    found = trace.events[trace.events.kind == "copy"]
    rate = found.bytes.astype("Float64").to_numpy(float, na_value=math.nan)
    calls = trace.events[trace.events.kind == "call"].sort_values(["thread", "start_ns"])
    calls = calls.assign(name=calls.name.astype(str))
    calls["next"] = calls.name.shift(-1).where(calls.thread == calls.thread.shift(-1), "")
    call = calls[["name", "next"]].reindex(found.call).fillna("").set_index(found.index)
    memcpy = call.name.str.contains("memcpy", case=False)
    blocks = ~call.name.str.contains("Async") | call.next.str.contains(WAITS)
    staged = ~found.memory.isin(["", "pinned"])  # an asynchronous call stages pageable memory
    known = memcpy | call.name.str.contains("GraphLaunch")
    how = np.select([memcpy & blocks, memcpy & staged, known], HOW[:3], HOW[3])
    return found.assign(gb_s=rate / found.ns.where(found.ns > 0), how=how.astype(object))


def memcpy_calls(trace: Trace) -> pd.DataFrame:
    """Each call of the API for a copy, with the copy's device; not those that such a call makes."""
    events = trace.events
    calls = events[(events.kind == "call") & like(events, "memcpy")]
    calls = calls.sort_values(["thread", "start_ns", "ns"], ascending=[True, True, False])
    until = calls.groupby("thread").end_ns.cummax().groupby(calls.thread).shift(fill_value=-1)
    calls = calls[calls.end_ns > until]
    ran = events[events.call >= 0].drop_duplicates("call").set_index("call").device
    devices = ran.unique()
    device = calls.index.to_series().map(ran).fillna(devices[0] if len(devices) == 1 else -1)
    return calls.assign(device=device.astype(int))


def busy(events: pd.DataFrame) -> int:
    """The time in which any of some events runs, in ns."""
    lanes = Lanes(events)
    return int(lanes.lengths[lanes.at(events)].sum())


def summary(traces: Iterable[Trace], link_gb_s: float | None = None) -> pd.DataFrame:
    """Count and time copies: of each trace as a whole, then of each step, by the call they are of.

    Returns
    -------
    file, rank, device, step, size_bytes
        `step` is missing for the whole; `size_bytes` is the file's.
    copies, blocking, may_block, async, unknown, host_device, collectives
        Copies, by how the host fares with them, those from and to the host; collectives.
    calls_over_10us, calls_over_100us
        Calls for copies that took longer.
    down_bytes, copies_ns, hidden_ns, hidden_alone_ns, exposed_ns, exposed_alone_ns
        Copies to the device: their bytes and the time in which any runs; hidden where a kernel
        computes, exposed where none does, `alone` where no collective runs either. Exposed is
        not to say that anything waits for them. What runs beside may be another step's.
    in_collectives_ns, hidden_share, in_collectives_share
        The time of copies beside collectives; shares are of copies_ns.
    outside_gb_s, outside_n, meeting_gb_s, meeting_n, inside_gb_s
        Rates of copies that meet no collective, and of those that do; of these while beside one,
        an estimate, if they elsewhere run at `link_gb_s`, the link's own rate.
    span_ns, kernels_ns, collectives_ns
        From the first to the last of what ran; the time in which any of them runs.
    """
    rows: list[dict[str, Any]] = []
    for trace in traces:
        copies, calls, known = copies_of(trace), memcpy_calls(trace), {*trace.events.kind}
        steps = [(None, True), *trace.steps[["step", "complete"]].itertuples(index=False)]
        nothing = {"file": trace.facts["file"], "rank": trace.facts["rank"], "device": None}
        for names, ran in [*trace.devices()] or [(nothing, trace.events[:0])]:
            for step, complete in steps:
                rows.append(names | {"step": step, "size_bytes": trace.facts["size_bytes"]})
                own, called, here = (
                    some[(some.device == names["device"]) & ((some.step == step).fillna(False) if
                         step is not None else True)] for some in (copies, calls, ran)
                )  # fmt: skip
                if complete and "call" in known:
                    called = calls if names["device"] is None else called
                    rows[-1] |= {f"calls_over_{us}us": (called.ns > 1000 * us).sum()
                                 for us in (10, 100)}  # fmt: skip
                if complete and len(ran):
                    rows[-1] |= _counted(own, here) | _beside(own, ran, link_gb_s)
    columns = pd.Index(_counted(copies[:0], ran[:0]) | _beside(copies[:0], ran[:0], None)
                       if rows else ())  # fmt: skip
    first = ["file", "rank", "device", "step", "size_bytes", "calls_over_10us", "calls_over_100us"]
    table = pd.DataFrame(rows, columns=[*first, *columns])
    whole = [name for name in table if not name.endswith(("_gb_s", "file"))]
    return table.astype(dict.fromkeys(whole, "Int64")).assign(
        **{f"{name}_share": table[f"{name}_ns"] / table.copies_ns.replace(0, math.nan)
           for name in ("hidden", "in_collectives")})  # fmt: skip


def _counted(copies: pd.DataFrame, ran: pd.DataFrame) -> dict[str, Any]:
    return {
        "copies": len(copies), **{how.replace(" ", "_"): (copies.how == how).sum() for how in HOW},
        "host_device": copies.direction.isin(HOST).sum(),
        "collectives": (ran.kind == "collective").sum(),
        "span_ns": ran.end_ns.max() - ran.start_ns.min() if len(ran) else 0,
        "kernels_ns": busy(ran[ran.kind == "kernel"]),
        "collectives_ns": busy(ran[ran.kind == "collective"]),
    }  # fmt: skip


def _beside(copies: pd.DataFrame, ran: pd.DataFrame, link_gb_s: float | None) -> dict[str, Any]:
    copies = copies[copies.direction == TO_DEVICE]
    near = ran[(ran.end_ns > copies.start_ns.min()) & (ran.start_ns < copies.end_ns.max())]
    lanes = Lanes(near)
    copying, compute, met = (
        lanes.at(some)
        for some in (copies, near[near.kind == "kernel"], near[near.kind == "collective"])
    )
    times = {
        "copies": copying, "hidden": copying & compute, "hidden_alone": copying & compute & ~met,
        "exposed": copying & ~compute, "exposed_alone": copying & ~compute & ~met,
        "in_collectives": copying & met,
    }  # fmt: skip
    timed = copies[copies.bytes.notna() & (copies.ns > 0)]
    timed = timed.assign(inside_ns=lanes.within(timed, met))
    outside, meeting = (timed[(timed.inside_ns > 0) == meets] for meets in (False, True))
    inside = meeting.inside_ns.sum()
    left = meeting.bytes.sum() - (link_gb_s or math.nan) * (meeting.ns.sum() - inside)
    return {
        "down_bytes": copies.bytes.sum(),
        **{f"{name}_ns": lanes.lengths[where].sum() for name, where in times.items()},
        "outside_gb_s": _over(outside.bytes.sum(), outside.ns.sum()), "outside_n": len(outside),
        "meeting_gb_s": _over(meeting.bytes.sum(), meeting.ns.sum()), "meeting_n": len(meeting),
        "inside_gb_s": max(_over(left, inside), 0),
    }  # fmt: skip


def _over(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def rates(copies: pd.DataFrame) -> dict[str, Any]:
    """How fast some copies are: by time, by copy and by byte; NaN where none has a rate."""
    known = copies[copies.bytes.notna()]
    timed = known[known.ns > 0].sort_values("gb_s")
    nbytes, ns, union = int(known.bytes.sum()), int(known.ns.sum()), busy(known)
    moved = timed.bytes.astype(float).cumsum()
    quantiles = {"median": 0.5, "p10": 0.1, "p90": 0.9}
    spent = timed.ns.groupby(pd.cut(timed.gb_s, BUCKETS, right=False), observed=False).sum()
    return {
        "copies": len(copies), "unsized": len(copies) - len(known),
        "zero_time": int((known.ns == 0).sum()), "bytes": nbytes, "ns": ns, "union_ns": union,
        "weighted_gb_s": _over(nbytes, ns), "throughput_gb_s": _over(nbytes, union),
        **{f"{name}_gb_s": float(timed.gb_s.quantile(q)) for name, q in quantiles.items()},
        **{f"{name}_by_bytes_gb_s": float(timed.gb_s[moved >= q * moved.max()].min())
           for name, q in quantiles.items()},
        **{f"share_{name}": _over(time, ns)
           for name, time in zip(("0_5", "5_20", "20_up"), spent, strict=True)},
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
    for trace, names, ran, found in _copies_by_device(traces):
        peak, span = (
            peak_gb_s or link(trace, names["device"]),
            ran.end_ns.max() - ran.start_ns.min(),
        )
        for direction, these in found.groupby("direction", observed=True):
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


def _copies_by_device(traces: Iterable[Trace]) -> Iterator[tuple[Trace, Any, Any, Any]]:
    for trace in traces:
        found = copies_of(trace)
        for names, ran in trace.devices():
            yield trace, names, ran, found[found.device == names["device"]]


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
    for trace, names, _, found in _copies_by_device(traces):
        steps = summary([trace])
        steps = steps[steps.step.notna() & steps.copies.notna() & (steps.device == names["device"])]
        nbytes, compute = (_over(steps[name].sum(), len(steps)) for name in
                           ("down_bytes", "kernels_ns"))  # fmt: skip
        observed = rates(found[found.direction == TO_DEVICE])["weighted_gb_s"]
        peak = peak_gb_s or link(trace, names["device"])
        scenarios = {"peak": peak, "measured": measured_gb_s or math.nan, "observed": observed}
        rows += [{**names, "scenario": scenario, "rate_gb_s": rate, "steps": len(steps),
                  "step_bytes": nbytes, "ns": nbytes / rate, "compute_ns": compute,
                  "share": _over(nbytes / rate, compute)}
                 for scenario, rate in scenarios.items()]  # fmt: skip
    return pd.DataFrame(rows)


def waits(traces: Iterable[Trace], pattern: str = SYNCS) -> pd.DataFrame:
    """Calls by which the host waits, or has a stream wait (cudaStreamWaitEvent: only enqueued).

    Or calls of :data:`ALLOCATIONS`; then also ``[memory]``, what PyTorch's allocator gave out and
    took back, if the profile recorded it. Number, time and how much of that nothing ran on any
    GPU, within the span of what did; how many a complete step; bytes. No row where none was seen.
    """
    rows: list[dict[str, Any]] = []
    for trace in traces:
        events, names = trace.events, {key: trace.facts[key] for key in ("file", "rank")}
        calls = events[(events.kind == "call") & like(events, pattern)
                       | (events.kind == "memory") & (pattern == ALLOCATIONS)]  # fmt: skip
        ran = events[events.kind.isin(ON_GPU)]
        lanes = Lanes(pd.concat([ran, calls]))
        middle = (lanes.edges[:-1] >= ran.start_ns.min()) & (lanes.edges[1:] <= ran.end_ns.max())
        idle = middle & ~lanes.at(ran)
        steps = trace.steps.step[trace.steps.complete]
        for name, some in calls.groupby("name", observed=True):
            waiting = [lanes.at(own) & idle for _, own in some.groupby("thread")]
            rows.append({
                **names, "call": name, "calls": len(some), "ns": some.ns.sum(),
                "over_100us": (some.ns > 1e5).sum(), "idle_ns":
                sum(int(lanes.lengths[where].sum()) for where in waiting) if len(ran) else pd.NA,
                "per_step": _over(some.step.isin(steps).sum(), len(steps)),
                "bytes": some.bytes.abs().sum() if some.bytes.notna().any() else pd.NA,
            })  # fmt: skip
    columns = ["file", "rank", "call", "calls", "ns", "over_100us", "idle_ns", "per_step", "bytes"]
    return pd.DataFrame(rows, columns=columns).sort_values("ns", ascending=False, ignore_index=True)


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
    parts = {w: sum(n * each * often for n, each, often in sizes.values() if each == w)
             for w in (2, 4)}  # fmt: skip
    table |= {f"a block's weights of {8 * width} bits": size for width, size in parts.items()}
    table["a block"] = sum(parts.values())
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
    parts = [found[found.direction == TO_DEVICE].assign(**names)
             for _, names, _, found in _copies_by_device(traces)]  # fmt: skip
    keys = ["file", "rank", "device", "bytes"]
    copied = pd.concat(parts) if parts else pd.DataFrame(columns=keys)
    found = copied.groupby(keys, dropna=False).size().rename("copies").reset_index()
    found = found.dropna(subset="bytes").join(named, on="bytes")
    found["total_bytes"] = found.bytes * found.copies
    found["candidates"] = found.candidates.fillna(0).astype(int)
    return found.sort_values("total_bytes", ascending=False, ignore_index=True)
