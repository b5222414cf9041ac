"""What copies to the device run beside: kernels that compute, collectives, nothing; and what waits.

Of a device, with H its copies from the host, C its kernels and N its collectives, each a union:

    hidden             H where C runs; of it hidden_alone where no collective runs either
    exposed            H where C does not run; of it exposed_alone where N does not either
    in_collectives     H where N runs

A copy without a kernel beside it is exposed, which is not to say that anything waits for it. A step
has the copies that it launched, and they may run beside what another step launched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from wanreport.traces.copies import TO_DEVICE, calls_like, copies_of
from wanreport.traces.events import ON_GPU, Lanes, Trace, rows_of, union

CALL = "^(?:cuda|hip|cu)"
SYNCS = CALL + r"(?:Stream|Event|Device|Ctx)(?:Synchronize|WaitEvent)"
ALLOCATIONS = CALL + r"(?:Malloc|Free|Host(?:Alloc|Free|Register|Unregister)|Mem\w*(?:Alloc|Free))"


def overlap(traces: Iterable[Trace], link_gb_s: float | None = None) -> pd.DataFrame:
    """Time of copies to the device, hidden and exposed, in ns: of each trace and complete step.

    Shares are of the copies' time, and missing where nothing is copied. Rates: ``outside_gb_s`` of
    copies that meet no collective, ``meeting_gb_s`` of those that do; ``inside_gb_s`` is an
    estimate for these while beside one, if they elsewhere run at `link_gb_s`, the link's own rate.
    """
    tables = []
    for trace, names, events in rows_of(traces):
        copies = copies_of(trace)
        copies = copies[(copies.device == names["device"]) & (copies.direction == TO_DEVICE)]
        lanes = Lanes(events)
        compute, met = (lanes.at(events[events.kind == k]) for k in ("kernel", "collective"))
        masks = {
            "hidden": compute, "hidden_alone": compute & ~met, "exposed": ~compute,
            "exposed_alone": ~compute & ~met, "in_collectives": met,
        }  # fmt: skip
        copies = copies.assign(inside_ns=lanes.within(copies, met))
        complete = trace.steps.step[trace.steps.complete]
        for whole in (True, False):
            some, ran = (
                each.assign(step=-1) if whole else each[each.step.isin(complete)]
                for each in (copies, events)
            )
            pieces, steps = union(some, "step"), ran.groupby("step")
            table = pd.DataFrame({"span_ns": steps.end_ns.max() - steps.start_ns.min()})
            for kind in ("kernel", "collective"):
                busy = union(ran[ran.kind == kind], "step")
                table[f"{kind}s_ns"] = busy.groupby("step").ns.sum()
            table["copies_ns"] = pieces.groupby("step").ns.sum()
            for name, mask in masks.items():
                inside = pd.Series(lanes.within(pieces, mask), pieces.index)
                table[f"{name}_ns"] = inside.groupby(pieces.step).sum()
            table = table.fillna(0).astype("Int64").join(_rates(some, link_gb_s))
            tables.append(table.assign(**names).reset_index())
    if not tables:
        return pd.DataFrame()
    found = pd.concat(tables, ignore_index=True)
    found["step"] = found.step.mask(found.step < 0)
    for name in ("hidden", "in_collectives"):
        found[f"{name}_share"] = found[f"{name}_ns"] / found.copies_ns.replace(0, pd.NA)
    first = ["file", "rank", "device", "step"]
    return found[first + [name for name in found if name not in first]]


def _rates(copies: pd.DataFrame, link_gb_s: float | None) -> pd.DataFrame:
    timed = copies[copies.bytes.notna() & (copies.ns > 0)]
    timed = timed.assign(bytes=timed.bytes.astype(float), copies=1)
    columns, meets = ["copies", "bytes", "ns", "inside_ns"], timed.inside_ns > 0
    out, met = (timed[rows].groupby("step")[columns].sum() for rows in (~meets, meets))
    left = met.bytes - (link_gb_s or np.nan) * (met.ns - met.inside_ns)
    return pd.DataFrame({
        "outside_gb_s": out.bytes / out.ns, "outside_n": out.copies,
        "meeting_gb_s": met.bytes / met.ns, "meeting_n": met.copies,
        "inside_gb_s": (left / met.inside_ns).clip(lower=0),
    }).astype({"outside_n": "Int64", "meeting_n": "Int64"})  # fmt: skip


def stalls(traces: Iterable[Trace]) -> pd.DataFrame:
    """Calls by which the host waits, or has a stream wait (cudaStreamWaitEvent: only enqueued).

    Number, time and how much of that nothing ran on any GPU, within the span of what did; and how
    many a complete step.
    """
    return _by_name(traces, SYNCS)


def churn(traces: Iterable[Trace]) -> pd.DataFrame:
    """Calls that allocate or free memory, as :func:`stalls`; no row where none was seen.

    Also ``[memory]``, what PyTorch's allocator gave out and took back, if the profile recorded it;
    ``bytes`` are both together.
    """
    return _by_name(traces, ALLOCATIONS)


def _by_name(traces: Iterable[Trace], pattern: str) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for trace in traces:
        events = trace.events
        calls = calls_like(events, pattern)
        if pattern == ALLOCATIONS:
            calls = pd.concat([calls, calls_like(events, "", "memory")])
        ran = events[events.kind.isin(ON_GPU)]
        lanes = Lanes(pd.concat([ran, calls]))
        middle = (lanes.edges[:-1] >= ran.start_ns.min()) & (lanes.edges[1:] <= ran.end_ns.max())
        idle = middle & ~lanes.at(ran)
        steps = trace.steps.step[trace.steps.complete]
        for name, some in calls.groupby("name", observed=True):
            waits = union(some, "thread")
            rows.append({
                "file": trace.facts["file"], "rank": trace.facts["rank"], "call": name,
                "calls": len(some), "ns": some.ns.sum(), "over_100us": (some.ns > 1e5).sum(),
                "idle_ns": int(lanes.within(waits, idle).sum()) if len(ran) else pd.NA,
                "per_step": some.step.isin(steps).sum() / (len(steps) or np.nan),
                "bytes": some.bytes.abs().sum() if some.bytes.notna().any() else pd.NA,
            })  # fmt: skip
    columns = ["file", "rank", "call", "calls", "ns", "over_100us", "idle_ns", "per_step", "bytes"]
    return pd.DataFrame(rows, columns=columns).sort_values("ns", ascending=False, ignore_index=True)
