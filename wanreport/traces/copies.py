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
ALL_TO_ALL, MOST_TIMES = "SendRecv|AllToAll", 1000
HOW = ("blocking", "may_block", "async", "unknown")
BESIDE = ("hidden_ns", "hidden_alone_ns", "exposed_ns", "exposed_alone_ns", "in_collectives_ns",
          "outside_gb_s", "outside_n", "meeting_gb_s", "meeting_n", "inside_gb_s", "hidden_share",
          "in_collectives_share")  # fmt: skip
"""Of `rates`, what a summary has of copies to the device."""
WAITS = r"(?:Stream|Device|Event|Ctx|Context)Synchronize"
CALL = "^(?:cuda|hip|cu)"
SYNCS = CALL + r"(?:Stream|Event|Device|Ctx)(?:Synchronize|WaitEvent)"
ALLOCATIONS = CALL + r"(?:Malloc|Free|Host(?:Alloc|Free|Register|Unregister)|Mem\w*(?:Alloc|Free))"


def copies_of(trace: Trace) -> pd.DataFrame:
    """Each copy with its rate ``gb_s``, and ``how`` the host fares with it, by its call."""
    found = trace.events[trace.events.kind == "copy"]
    calls = trace.events[trace.events.kind == "call"].sort_values(["thread", "start_ns"])
    calls = calls.assign(name=calls.name.astype(str))
    calls["next"] = calls.name.shift(-1).where(calls.thread == calls.thread.shift(-1), "")
    call = calls[["name", "next"]].reindex(found.call).fillna("").set_index(found.index)
    memcpy = call.name.str.contains("memcpy", case=False)
    blocks = ~call.name.str.contains("Async") | call.next.str.contains(WAITS)
    staged = ~found.memory.isin(["", "pinned"])  # an asynchronous call stages pageable memory
    known = memcpy | call.name.str.contains("GraphLaunch")
    how = np.select([memcpy & blocks, memcpy & staged, known], HOW[:3], HOW[3])
    rate = found.bytes.to_numpy(float, na_value=math.nan) / found.ns.where(found.ns > 0)
    return found.assign(gb_s=rate, how=how.astype(object))


def memcpy_calls(trace: Trace) -> pd.DataFrame:
    """Each call of the API for a copy, with the copy's device; not those that such a call makes."""
    events = trace.events
    calls = events[(events.kind == "call") & like(events, "memcpy")]
    calls = calls.sort_values(["thread", "start_ns", "ns"], ascending=[True, True, False])
    until = calls.groupby("thread").end_ns.cummax().groupby(calls.thread).shift(fill_value=-1)
    calls = calls[calls.end_ns > until]
    ran = events[events.call >= 0].drop_duplicates("call").set_index("call").device
    lone = ran.iloc[0] if ran.nunique() == 1 else -1
    return calls.assign(device=calls.index.to_series().map(ran).fillna(lone).astype(int))


class Beside(Lanes):
    """A device's time axis, and in which of its pieces kernels compute and collectives run."""

    def __init__(self, ran: pd.DataFrame) -> None:
        super().__init__(ran)
        self.compute, self.met = (self.at(ran[ran.kind == k]) for k in ("kernel", "collective"))


def rates(copies: pd.DataFrame, beside: Beside, link_gb_s: float | None = None) -> dict[str, Any]:
    """How fast some copies of a device are, and what runs beside them.

    ``bytes``; ``ns``, all times added up; ``union_ns``, in which any copy runs, and of this
    ``hidden_ns``, in which a kernel computes, ``exposed_ns``, in which none does (not to say that
    anything waits), ``in_collectives_ns``, and the former two ``alone``, without the latter.
    ``weighted_gb_s`` is bytes over ns, ``throughput_gb_s`` over union_ns; quantiles are by copy and
    ``by_bytes``; shares are of ns, or of union_ns. Copies that meet no collective are ``outside``,
    ``meeting`` others; ``inside_gb_s`` is an estimate of their rate while beside one, if they
    elsewhere run at `link_gb_s`, the link's own rate.
    """
    compute, met = beside.compute, beside.met
    timed = copies[copies.bytes.notna() & (copies.ns > 0)].sort_values("gb_s")
    timed = timed.assign(inside=beside.within(timed, met))
    copying, moved = beside.at(copies), timed.bytes.astype(float).cumsum()
    parts = {"union": True, "hidden": compute, "hidden_alone": compute & ~met, "exposed": ~compute,
             "exposed_alone": ~compute & ~met, "in_collectives": met}  # fmt: skip
    found: dict[str, Any] = {f"{name}_ns": beside.ns(copying & at) for name, at in parts.items()}
    nbytes, ns, union = int(copies.bytes.sum()), int(copies.ns.sum()), found["union_ns"]
    found |= {"bytes": nbytes, "ns": ns, "zero_time": int((copies.ns == 0).sum())}
    found |= {"weighted_gb_s": _over(nbytes, ns), "throughput_gb_s": _over(nbytes, union)}
    for name, q in {"median": 0.5, "p10": 0.1, "p90": 0.9}.items():
        found[f"{name}_gb_s"] = float(timed.gb_s.quantile(q))
        found[f"{name}_by_bytes_gb_s"] = float(timed.gb_s[moved >= q * moved.max()].min())
    spent = timed.ns.groupby(pd.cut(timed.gb_s, BUCKETS, right=False), observed=False).sum()
    for name, time in zip(("0_5", "5_20", "20_up"), spent, strict=True):
        found[f"share_{name}"] = _over(time, ns)
    for name in ("hidden", "in_collectives"):
        found[f"{name}_share"] = _over(found[f"{name}_ns"], union)
    for name, meets in {"outside": False, "meeting": True}.items():
        some = timed[(timed.inside > 0) == meets]
        found |= {f"{name}_gb_s": _over(some.bytes.sum(), some.ns.sum()), f"{name}_n": len(some)}
    inside = some.inside.sum()
    left = some.bytes.sum() - (link_gb_s or math.nan) * (some.ns.sum() - inside)
    return found | {"inside_gb_s": max(_over(left, inside), 0)}


def contention(ran: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """How long all-to-alls take beside copies, and copies beside all-to-alls, over lone ones.

    Of what a device ran, by ``all-to-alls`` and ``copies`` (from and to the host): the first 1,000
    times of each that runs ``alone``, or ``beside`` the other, over the median of lone ones of its
    name and bytes. An all-to-all must be beside copies for half of its time; a copy, which takes
    longer, only meet one. What meets other collectives or has no bytes recorded is left out.
    """
    lanes, met = Lanes(ran), ran[ran.kind == "collective"]
    exchange = like(met, ALL_TO_ALL)
    sides = {"all-to-alls": met[exchange], "copies": ran[ran.direction.isin(HOST)]}
    others = lanes.at(met[~exchange])
    found = {}
    for (name, some), least in zip(sides.items(), (0.5, 0), strict=True):
        (other,) = (each for key, each in sides.items() if key != name)
        some = some[some.bytes.notna() & (some.ns > 0) & (lanes.within(some, others) == 0)]
        shared = lanes.within(some, lanes.at(other))
        groups = some.ns.where(shared == 0).groupby([some.name, some.bytes], observed=True)
        times = (some.ns / groups.transform("median")).round(4)
        found[name] = {
            "alone": times[shared == 0].dropna().tolist()[:MOST_TIMES],
            "beside": times[shared > least * some.ns].dropna().tolist()[:MOST_TIMES],
        }
    return found


def _over(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def summary(traces: Iterable[Trace], link_gb_s: float | None = None) -> pd.DataFrame:
    """Count and time copies: of each trace as a whole, then of each step, by the call they are of.

    `step` is missing for the whole; `size_bytes` is the file's. ``calls_over_10us`` and ``_100us``
    count calls for copies; `copies` are ``blocking``, ``may_block``, ``async`` or ``unknown`` to
    the host, and ``host_device`` are from or to it; `kernels` are of any kind. ``span_ns`` is from
    the first to the last of what ran, ``kernels_ns`` the time in which any computes, ``both_ns`` in
    which a collective runs, too. What follows is of copies to the device: ``down_bytes``, and
    :func:`rates` with ``copies_ns`` for the union. What runs beside may be another step's.
    """
    rows = []
    for trace, names, beside, ran, copies in _by_device(traces):
        calls = memcpy_calls(trace)
        every = (calls if ran.empty else calls[calls.device == names["device"]]), copies, ran
        steps = [(None, True), *trace.steps[["step", "complete"]].itertuples(index=False)]
        for step, complete in steps:
            own = [some if step is None else some[(some.step == step).fillna(False)]
                   for some in every]  # fmt: skip
            counts = _counted(beside, link_gb_s, *own) if complete else {}
            rows.append(names | {"step": step, "size_bytes": trace.facts["size_bytes"]} | counts)
    table = pd.DataFrame(rows)
    table.loc[table.device.isna(), table.columns[7:]] = None
    whole = [name for name in table if not name.endswith(("_gb_s", "_share", "file"))]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _by_device(traces: Iterable[Trace]) -> Iterator[tuple[Trace, Any, Beside, Any, Any]]:
    """Yield each trace's devices: what names one, its time axis, what it ran, its copies."""
    for trace in traces:
        copies = copies_of(trace)
        for names, ran in trace.devices():
            yield trace, names, Beside(ran), ran, copies[copies.device == names["device"]]


def _counted(
    beside: Beside, link: float | None, calls: pd.DataFrame, copies: pd.DataFrame, ran: pd.DataFrame
) -> dict[str, Any]:
    down = rates(copies[copies.direction == TO_DEVICE], beside, link)
    compute, met = (beside.at(ran[ran.kind == kind]) for kind in ("kernel", "collective"))
    kinds = ran.kind.value_counts()
    return {
        **{f"calls_over_{us}us": (calls.ns > 1000 * us).sum() for us in (10, 100)},
        "copies": len(copies), **{how: (copies.how == how).sum() for how in HOW},
        "host_device": copies.direction.isin(HOST).sum(),
        "kernels": kinds["kernel"] + kinds["collective"], "collectives": kinds["collective"],
        "span_ns": ran.end_ns.max() - ran.start_ns.min() if len(ran) else 0,
        "kernels_ns": beside.ns(compute), "collectives_ns": beside.ns(met),
        "both_ns": beside.ns(compute & met), "down_bytes": down["bytes"],
        "copies_ns": down["union_ns"], **{name: down[name] for name in BESIDE},
    }  # fmt: skip


def bandwidth(
    traces: Iterable[Trace], peak_gb_s: float | None = None, measured_gb_s: float | None = None
) -> pd.DataFrame:
    """:func:`rates` of copies by direction and memory, and what part of the link they use.

    ``of_peak`` while copying, ``of_peak_in_all`` over the trace's span, ``of_measured`` against
    what a benchmark of the link measured. They are missing between devices, where the peak is not
    known, and where the rate is above it: then the copy does not use that link. Copies without
    bytes are ``unsized`` and in no other column but ``copies``.
    """
    rows: list[dict[str, Any]] = []
    for trace, names, beside, ran, copies in _by_device(traces):
        peak, span = (
            peak_gb_s or link(trace, names["device"]),
            ran.end_ns.max() - ran.start_ns.min(),
        )
        for direction, these in copies.groupby("direction", observed=True):
            kinds = [("all", these)] * (these.memory.nunique() > 1)
            for memory, some in [*these.groupby("memory", observed=True), *kinds]:
                found = rates(some[some.bytes.notna()], beside)
                rate = found["throughput_gb_s"]
                fits = rate if direction in HOST and rate <= peak else math.nan
                rows.append({
                    **names, "direction": direction, "memory": memory, "copies": len(some),
                    "unsized": some.bytes.isna().sum(), **found, "of_peak": fits / peak,
                    "of_peak_in_all": fits * found["union_ns"] / span / peak,
                    "of_measured": fits / (measured_gb_s or math.nan),
                })  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["device", "direction"])


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
    rows: list[dict[str, Any]] = []
    for trace, names, _, _, copies in _by_device(traces):
        own = copies[(copies.direction == TO_DEVICE) & copies.bytes.notna()]
        steps = summary([trace]).dropna(subset=["device", "step", "copies"])
        steps = steps[steps.device == names["device"]]
        nbytes, compute = (_over(steps[key].sum(), len(steps)) for key in
                           ("down_bytes", "kernels_ns"))  # fmt: skip
        scenarios = {"peak": peak_gb_s or link(trace, names["device"]),
                     "measured": measured_gb_s or math.nan,
                     "observed": _over(own.bytes.sum(), own.ns.sum())}  # fmt: skip
        rows += [{**names, "scenario": scenario, "rate_gb_s": rate, "steps": len(steps),
                  "step_bytes": nbytes, "ns": nbytes / rate, "compute_ns": compute,
                  "share": _over(nbytes / rate, compute)} for scenario, rate in scenarios.items()
                 if names["device"] is not None]  # fmt: skip
    return pd.DataFrame(rows)


def waits(traces: Iterable[Trace], pattern: str = SYNCS) -> pd.DataFrame:
    """Calls by which the host waits, or has a stream wait (cudaStreamWaitEvent: only enqueued).

    Or calls of :data:`ALLOCATIONS`; then also ``[memory]``, what PyTorch's allocator gave out and
    took back, if the profile recorded it. Number, time and how much of that nothing ran on any
    GPU, within the span of what did; how many a complete step; bytes. No row where none was seen.
    """
    rows: list[dict[str, Any]] = []
    for trace in traces:
        events, steps = trace.events, trace.steps.step[trace.steps.complete]
        calls = events[(events.kind == "call") & like(events, pattern)
                       | (events.kind == "memory") & (pattern == ALLOCATIONS)]  # fmt: skip
        ran = events[events.kind.isin(ON_GPU)]
        lanes = Lanes(pd.concat([ran, calls]))
        middle = (lanes.edges[:-1] >= ran.start_ns.min()) & (lanes.edges[1:] <= ran.end_ns.max())
        idle = middle & ~lanes.at(ran)
        for name, some in calls.groupby("name", observed=True):
            waiting = [lanes.ns(lanes.at(own) & idle) for _, own in some.groupby("thread")]
            rows.append({
                "file": trace.facts["file"], "rank": trace.facts["rank"], "call": name,
                "calls": len(some), "ns": some.ns.sum(), "over_100us": (some.ns > 1e5).sum(),
                "idle_ns": sum(waiting) if len(ran) else pd.NA,
                "per_step": _over(some.step.isin(steps).sum(), len(steps)),
                "bytes": some.bytes.abs().sum(min_count=1),
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


def tensors(traces: Iterable[Trace]) -> pd.DataFrame:
    """Copies to the device by size, with every tensor of Wan's that has this size, or a shard.

    ``candidates`` are how many those are; ``tensor`` is missing where there is none. Equal sizes
    are no proof.
    """
    parts = [wan_tensors().assign(shards=shards) for shards in SHARDS]
    parts = pd.concat(parts).query("bytes % shards == 0")
    named = parts.tensor + parts.shards.map(lambda n: f", 1 of {n} shards" if n > 1 else "")
    named = named.groupby(parts.bytes // parts.shards).agg(tensor=" / ".join, candidates="size")
    keys = ["file", "rank", "device", "bytes"]
    copied = [copies[copies.direction == TO_DEVICE].assign(**names)[keys]
              for _, names, _, _, copies in _by_device(traces)]  # fmt: skip
    found = pd.concat(copied).dropna(subset="bytes").groupby(keys, dropna=False).size()
    found = found.rename("copies").reset_index().join(named, on="bytes")
    found["total_bytes"] = found.bytes * found.copies
    found["candidates"] = found.candidates.fillna(0).astype(int)
    return found.sort_values("total_bytes", ascending=False, ignore_index=True)
