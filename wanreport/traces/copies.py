"""What copies a trace holds: how many, how fast, of what; what runs beside them; and what waits.

GB is 10^9 bytes, so bytes over ns are GB/s. Copies without bytes, or that took no time, have no
rate. Tables have rows for each device of each trace; figures of incomplete steps are missing.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
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
SHARES = {"share_0_5": (0, 5), "share_5_20": (5, 20), "share_20_up": (20, math.inf)}  # by GB/s
HOST = ("HtoD", "DtoH")
MOST_TIMES = 1000
HOW = ("blocking", "may_block", "async", "unknown")
WAITS = r"(?:Stream|Device|Event|Ctx|Context)Synchronize"
CALL = "^(?:cuda|hip|cu)"
SYNCS = CALL + r"(?:Stream|Event|Device|Ctx)(?:Synchronize|WaitEvent)"
ALLOCATIONS = CALL + r"(?:(?:Host|Mem\w*|M)?(?:Alloc|Free)|Host(?:Un)?Register)|^\[memory\]"
# What an expert of Wan2.2-T2V-A14B can be copied by, in bytes: 16 bits but where it says 32.
TENSORS = json.loads(Path(__file__).with_name("tensors.json").read_text("utf-8"))


def copies_of(trace: Trace) -> pd.DataFrame:
    """Each copy with its rate ``gb_s``, and ``how`` the host fares with it, by its call."""
    found = trace.events[trace.events.kind == "copy"]
    calls = trace.events[trace.events.kind == "call"].sort_values(["thread", "start_ns"])
    calls = calls.assign(name=calls.name.astype(str))
    calls["next"] = calls.groupby("thread").name.shift(-1)
    call = calls[["name", "next"]].reindex(found.call).fillna("").set_index(found.index)
    memcpy = call.name.str.contains("memcpy", case=False)
    blocks = ~call.name.str.contains("Async") | call.next.str.contains(WAITS)
    staged = ~found.memory.isin(["", "pinned"])  # an asynchronous call stages pageable memory
    known = memcpy | call.name.str.contains("GraphLaunch")
    how = np.select([memcpy & blocks, memcpy & staged, known], HOW[:3], HOW[3])
    rate = found.bytes.to_numpy(float, na_value=math.nan) / found.ns.where(found.ns > 0)
    return found.assign(gb_s=rate, how=how.astype(object))


def memcpy_calls(trace: Trace) -> pd.DataFrame:
    """Each call of the API for a copy, but for those that such a call makes."""
    calls = trace.events[(trace.events.kind == "call") & like(trace.events, "memcpy")]
    calls = calls.sort_values(["thread", "start_ns", "ns"], ascending=[True, True, False])
    until = calls.groupby("thread").end_ns.cummax().groupby(calls.thread).shift(fill_value=-1)
    return calls[calls.end_ns > until]


class Device(Lanes):
    """What a device ran, its copies, and when its kernels compute and its collectives run."""

    def __init__(self, trace: Trace, number: int | None, *found: pd.DataFrame) -> None:
        self.ran, self.copies = (each[each.device == number] for each in found)
        super().__init__(self.ran)
        self.names = {name: trace.facts[name] for name in ("file", "rank")} | {"device": number}
        self.down = self.copies[self.copies.direction == "HtoD"]
        kinds = (self.ran[self.ran.kind == kind] for kind in ("kernel", "collective"))
        self.compute, self.met = map(self.at, kinds)


def devices(*traces: Trace) -> Iterator[tuple[Trace, Device]]:
    """Yield each trace's devices; one with the number None if nothing ran on any."""
    for trace in traces:
        found = trace.events[trace.events.kind.isin(ON_GPU)], copies_of(trace)
        for number in sorted({*found[0].device}) or [None]:
            yield trace, Device(trace, number, *found)


def summary(traces: Iterable[Trace], link_gb_s: float | None = None) -> pd.DataFrame:
    """Count and time copies: of each trace as a whole, then of each step, by the call they are of.

    `step` is missing for the whole. ``calls_over_10us`` and ``_100us`` count calls for copies;
    `copies` are ``blocking``, ``may_block``, ``async`` or ``unknown`` to the host; `kernels` are of
    any kind. ``span_ns`` is from the first to the last of what ran, ``kernels_ns`` the time in
    which any computes, ``both_ns`` in which a collective runs, too. The rest is of copies to the
    device: ``copies_ns``, in which any runs, and of this ``hidden_ns``, in which a kernel of any
    step computes, ``exposed_ns``, in which none does (not to say that anything waits),
    ``in_collectives_ns``, and the former two ``alone``, without the latter. Copies that meet no
    collective are ``outside``, others ``meeting``; ``inside_gb_s`` estimates their rate while
    beside one, if they elsewhere run at `link_gb_s`, the link's own rate.
    """
    rows = []
    for trace, device in devices(*traces):
        calls = memcpy_calls(trace)
        if len(device.ran) < trace.events.kind.isin(ON_GPU).sum():  # others are not its own
            calls = calls[calls.index.isin(device.ran.call)]
        every = calls, device.copies, device.ran
        for step, complete in [(None, True), *trace.steps[["step", "complete"]].to_numpy()]:
            own = every if step is None else [each[each.step == step] for each in every]
            row = device.names | {"step": step, "size_bytes": trace.facts["size_bytes"]}
            rows.append(row | (_counted(device, link_gb_s, *own) if complete else {}))
    table = pd.DataFrame(rows)
    table.loc[table.device.isna(), table.columns[7:]] = None
    whole = [name for name in table if not name.endswith(("_gb_s", "_share", "file"))]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _counted(device: Device, link: float | None, *own_rows: pd.DataFrame) -> dict[str, Any]:
    calls, copies, ran = own_rows
    down = copies[copies.direction == "HtoD"]
    copying, computes, meets = device.at(down), device.compute, device.met
    own, own_met = (device.at(ran[ran.kind == kind]) for kind in ("kernel", "collective"))
    pieces = {
        "kernels": own, "collectives": own_met, "both": own & own_met, "copies": copying,
        "hidden": copying & computes, "hidden_alone": copying & computes & ~meets,
        "exposed": copying & ~computes, "exposed_alone": copying & ~computes & ~meets,
        "in_collectives": copying & meets,
    }  # fmt: skip
    ns = {f"{name}_ns": device.ns(at) for name, at in pieces.items()}
    kinds, span = ran.kind.value_counts(), ran.end_ns.max() - ran.start_ns.min()
    timed = down[down.bytes.notna() & (down.ns > 0)]
    inside = pd.Series(device.within(timed, meets), timed.index)
    apart, meeting = timed[inside == 0], timed[inside > 0]
    left = meeting.bytes.sum() - (link or math.nan) * (meeting.ns.sum() - inside.sum())
    return {
        **{f"calls_over_{us}us": (calls.ns > 1000 * us).sum() for us in (10, 100)},
        "copies": len(copies), **{how: (copies.how == how).sum() for how in HOW},
        "host_device": copies.direction.isin(HOST).sum(),
        "kernels": kinds["kernel"] + kinds["collective"], "collectives": kinds["collective"],
        "span_ns": span if len(ran) else 0, "down_bytes": down.bytes.sum(), **ns,
        "outside_gb_s": _over(apart.bytes.sum(), apart.ns.sum()),
        "meeting_gb_s": _over(meeting.bytes.sum(), meeting.ns.sum()), "meeting_n": len(meeting),
        "inside_gb_s": max(_over(left, inside.sum()), 0),
        **{f"{name}_share": _over(ns[f"{name}_ns"], ns["copies_ns"])
           for name in ("hidden", "in_collectives")},
    }  # fmt: skip


def bandwidth(
    traces: Iterable[Trace], peak_gb_s: float | None = None, measured_gb_s: float | None = None
) -> pd.DataFrame:
    """How fast copies are, by direction and memory, and what part of the link they use.

    ``weighted_gb_s`` is over ``ns``, all times added up, ``throughput_gb_s`` over ``union_ns``, in
    which any copy runs; quantiles are by copy and ``by_bytes``, shares of ns by rate. ``of_peak``
    is while copying, ``of_peak_in_all`` over the trace's span; they are missing between devices,
    where the peak is not known, and where the rate is above it: then the copy does not use that
    link. Copies without bytes are ``unsized`` and in no other column but ``copies``.
    """
    rows: list[dict[str, Any]] = []
    for trace, device in devices(*traces):
        peak = peak_gb_s or link(trace, device.names["device"])
        span = device.ran.end_ns.max() - device.ran.start_ns.min()
        for direction, these in device.copies.groupby("direction", observed=True):
            kinds = [("all", these)] * (these.memory.nunique() > 1)
            for memory, some in [*these.groupby("memory", observed=True), *kinds]:
                sized, at = some[some.bytes.notna()], device.at(some[some.bytes.notna()])
                union, nbytes, ns = device.ns(at), int(sized.bytes.sum()), int(sized.ns.sum())
                timed = sized[sized.ns > 0].sort_values("gb_s")
                moved = timed.bytes.astype(float).cumsum()
                rate = _over(nbytes, union)
                fits = rate if direction in HOST and rate <= peak else math.nan
                row = {
                    **device.names, "direction": direction, "memory": memory, "copies": len(some),
                    "unsized": len(some) - len(sized), "bytes": nbytes, "ns": ns,
                    "weighted_gb_s": _over(nbytes, ns), "zero_time": (sized.ns == 0).sum(),
                }  # fmt: skip
                for name, q in {"median": 0.5, "p10": 0.1, "p90": 0.9}.items():
                    row[f"{name}_gb_s"] = timed.gb_s.quantile(q)
                    row[f"{name}_by_bytes_gb_s"] = timed.gb_s[moved >= q * moved.max()].min()
                for name, (low, high) in SHARES.items():
                    row[name] = _over(timed.ns[timed.gb_s.between(low, high, "left")].sum(), ns)
                rows.append(row | {
                    "throughput_gb_s": rate, "union_ns": union,
                    "hidden_ns": device.ns(at & device.compute),
                    "in_collectives_ns": device.ns(at & device.met),
                    "of_peak": fits / peak, "of_measured": fits / (measured_gb_s or math.nan),
                    "of_peak_in_all": fits * union / span / peak,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["device", "direction"])


def link(trace: Trace, device: int) -> float:
    """The peak of a GPU's PCIe link by its name, in GB/s; NaN where that is not known."""
    name = trace.facts["gpus"].get(device, "")
    return next((peak for pattern, peak in LINKS.items() if re.search(pattern, name)), math.nan)


def budget(
    traces: Iterable[Trace], peak_gb_s: float | None = None, measured_gb_s: float | None = None
) -> pd.DataFrame:
    """How long a step's bytes take at peak, measured and observed rate; means of complete steps."""
    rows: list[dict[str, Any]] = []
    for trace, device in devices(*traces):
        steps, own = trace.steps.step[trace.steps.complete], device.down.dropna(subset="bytes")
        kernels = device.ran[device.ran.kind == "kernel"]
        busy = [device.ns(device.at(kernels[kernels.step == step])) for step in steps]
        compute = _over(sum(busy), len(steps))
        nbytes = _over(own.bytes[own.step.isin(steps)].sum(), len(steps))
        rates = {"peak": peak_gb_s or link(trace, device.names["device"]),
                 "measured": measured_gb_s or math.nan,
                 "observed": _over(own.bytes.sum(), own.ns.sum())}  # fmt: skip
        rows += [{**device.names, "scenario": scenario, "rate_gb_s": rate, "steps": len(steps),
                  "step_bytes": nbytes, "ns": nbytes / rate, "compute_ns": compute,
                  "share": _over(nbytes / rate, compute)}
                 for scenario, rate in rates.items() if len(device.ran)]  # fmt: skip
    return pd.DataFrame(rows)


def contention(lanes: Device) -> dict[str, dict[str, list[float]]]:
    """How long all-to-alls take beside copies, and copies beside all-to-alls, over lone ones.

    Of what a device ran: times of the first that run ``alone``, or ``beside`` the other, over the
    median of lone ones of the same name and bytes. An all-to-all must be beside copies for half of
    its time; a copy, which takes longer, only meet one. What meets other collectives is left out.
    """
    ran, met = lanes.ran, lanes.ran[lanes.ran.kind == "collective"]
    exchange, found = like(met, "SendRecv|AllToAll"), {}
    others, both = lanes.at(met[~exchange]), (met[exchange], ran[ran.direction.isin(HOST)])
    for name, (some, other), least in (("all-to-alls", both, 0.5), ("copies", both[::-1], 0.0)):
        some = some[some.bytes.notna() & (some.ns > 0) & (lanes.within(some, others) == 0)]
        shared = lanes.within(some, lanes.at(other))
        groups = some.ns.where(shared == 0).groupby([some.name, some.bytes], observed=True)
        times = (some.ns / groups.transform("median")).round(4)
        parts = {"alone": shared == 0, "beside": shared > least * some.ns}
        found[name] = {part: times[at].dropna().tolist()[:MOST_TIMES] for part, at in parts.items()}
    return found


def waits(traces: Iterable[Trace], pattern: str = SYNCS) -> pd.DataFrame:
    """Calls by which the host waits, or has a stream wait (cudaStreamWaitEvent: only enqueued).

    Or of :data:`ALLOCATIONS`, with ``[memory]``, what PyTorch's allocator gave out and took back.
    ``idle_ns`` is how much of their time nothing ran on any GPU, within the span of what did.
    """
    columns = ["file", "rank", "call", "calls", "ns", "over_100us", "idle_ns", "per_step", "bytes"]
    rows: list[list[Any]] = []
    for trace in traces:
        events, steps = trace.events, trace.steps.step[trace.steps.complete]
        calls = events[events.kind.isin(["call", "memory"]) & like(events, pattern)]
        ran = events[events.kind.isin(ON_GPU)]
        lanes = Lanes(pd.concat([ran, calls]))
        middle = (lanes.edges[:-1] >= ran.start_ns.min()) & (lanes.edges[1:] <= ran.end_ns.max())
        idle = middle & ~lanes.at(ran)
        for name, some in calls.groupby("name", observed=True):
            waiting = sum(lanes.ns(lanes.at(own) & idle) for _, own in some.groupby("thread"))
            rows.append([
                trace.facts["file"], trace.facts["rank"], name, len(some), some.ns.sum(),
                (some.ns > 1e5).sum(), waiting if len(ran) else pd.NA,
                _over(some.step.isin(steps).sum(), len(steps)), some.bytes.abs().sum(min_count=1),
            ])  # fmt: skip
    return pd.DataFrame(rows, columns=columns).sort_values("ns", ascending=False, ignore_index=True)


def tensors(traces: Iterable[Trace]) -> pd.DataFrame:
    """Copies to the device by size, with all of :data:`TENSORS` that have it, whole or a shard."""
    parts = [(size // n, tensor + f", 1 of {n} shards" * (n > 1)) for n in (1, 2, 4, 6, 8)
             for tensor, size in TENSORS.items() if size % n == 0]  # fmt: skip
    named = pd.DataFrame(parts, columns=["bytes", "tensor"])
    named = named.groupby("bytes").tensor.agg(tensor=" / ".join, candidates="size")
    keys = ["file", "rank", "device", "bytes"]
    copied = [device.down.assign(**device.names)[keys] for _, device in devices(*traces)]
    found = pd.concat(copied).dropna(subset="bytes").groupby(keys, dropna=False).size()
    found = found.rename("copies").reset_index().join(named, on="bytes")
    found["total_bytes"] = found.bytes * found.copies
    found["candidates"] = found.candidates.fillna(0).astype(int)
    return found.sort_values("total_bytes", ascending=False, ignore_index=True)


def _over(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan
