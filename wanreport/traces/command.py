"""``wanreport trace FILE...``: what traces hold, as tables of text and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.records.record import replace_file
from wanreport.traces import copies, read
from wanreport.traces.copies import calls_like
from wanreport.traces.events import Lanes, Trace, in_ms, union
from wanreport.traces.overlap import ALLOCATIONS, SYNCS, churn, overlap, stalls

KEYS = {  # of a direction: in JSON, and in `rates`
    "no_bytes": "unsized", "bytes": "bytes", "sum_dur_ns": "ns", "busy_union_ns": "union_ns",
    "weighted_gbps": "weighted_gb_s", "median_gbps": "median_gb_s", "p10_gbps": "p10_gb_s",
    "p90_gbps": "p90_gb_s", "zero_dur": "zero_time", "time_share_0_5": "share_0_5",
    "time_share_5_20": "share_5_20",
}  # fmt: skip


def run(
    files: Sequence[Path], out: Path | None, peak: float | None = None, link: float | None = None
) -> int:
    """Print the tables of traces, what to know about the files first, and write JSON to `out`."""
    traces = [read(path) for path in files]
    for trace in traces:
        facts = {key: value for key, value in trace.facts.items() if key not in ("file", "gpus")}
        print(f"{trace.facts['file']}\n  {', '.join(f'{k} {v}' for k, v in facts.items())}")
        for row in trace.quality.itertuples():
            print(f"  {'!' if row.bad else '-'} {row.check}: {row.count:,}; {row.what}")
    tables = {
        "Summary": copies.summary(traces), "Bandwidth": copies.bandwidth(traces, peak, link),
        "Bytes a step": copies.budget(traces, peak, link), "Overlap": overlap(traces, link),
        "Waits": stalls(traces), "Allocations": churn(traces),
        "Which tensor": copies.tensors(traces, copies.wan_tensors()).head(20),
    }  # fmt: skip
    for title, table in tables.items():
        print(f"\n{title}\n{_text(table)}")
    if out is not None:
        names = [path.name for path in files]
        keys = names if len({*names}) == len(names) else [str(path) for path in files]
        content = dict(zip(keys, map(summarised, traces), strict=True))
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        replace_file(out, (text + "\n").encode())
    return 0


def _text(table: pd.DataFrame) -> str:
    if table.empty:
        return "  nothing recorded"
    shown = in_ms(table).assign(file=table.file.map(lambda file: Path(file).name))
    for name in shown.columns[shown.columns.str.endswith("bytes")]:
        shown[name] = shown[name].astype("Float64") / 1e9
    shown = shown.rename(columns=lambda name: re.sub("bytes$", "gb", name)).astype(object)
    style: dict[str, Any] = {"na_rep": "-", "float_format": "{:,.4g}".format}
    shown = shown.where(shown.notna(), "-")
    if len(shown.columns) > 12:  # too wide for a terminal
        return str(shown.T.to_string(header=False, **style))
    return str(shown.to_string(index=False, **style))


def summarised(trace: Trace) -> dict[str, Any]:
    """What a trace holds, in ns, bytes and GB/s; by device where there are several.

    None stands for what is not recorded, or not defined.
    """
    events, gpus = trace.events, trace.facts["gpus"]
    devices = {str(device): _of_device(trace, device, ran) for device, ran in trace.devices()}
    calls, copied = copies.memcpy_calls(trace), events[events.kind == "copy"]
    found: dict[str, Any] = {
        "format": trace.facts["format"], "size_bytes": trace.facts["size_bytes"],
        "rank": trace.facts["rank"], "events": trace.facts["events"],
        "device0": gpus[min(gpus)] if gpus else None,
        "record_window_end": trace.facts["finished"],
        "quality": trace.quality.to_dict("records"),
        **(next(iter(devices.values())) if len(devices) == 1 else {"devices": devices}),
        "memcpy_calls": {
            "count": len(calls), "gt10us": int((calls.ns > 10_000).sum()),
            "gt100us": int((calls.ns > 100_000).sum()), "total_ns": int(calls.ns.sum()),
        } if (events.kind == "call").any() else None,
        "sync_calls": _by_name(calls_like(events, SYNCS)),
        "sync_events": _by_name(calls_like(events, "", "sync")),
        "alloc_calls": _by_name(calls_like(events, ALLOCATIONS)),
        "steps": [[name, end - start] for name, start, end in
                  trace.steps[["name", "start_ns", "end_ns"]].itertuples(index=False)],
        "incomplete_steps": trace.steps.name[~trace.steps.complete].tolist(),
        "memcpy_without_runtime_call": int((copied.call < 0).sum()) if devices else None,
    }  # fmt: skip
    return found


def _of_device(trace: Trace, device: int, ran: pd.DataFrame) -> dict[str, Any]:
    kinds = {kind: ran[ran.kind == kind] for kind in ("kernel", "collective")}
    unions = {kind: union(some, "device") for kind, some in kinds.items()}
    lanes = Lanes(ran)
    at = {kind: lanes.at(some) for kind, some in kinds.items()}
    both = int(lanes.within(unions["collective"], at["kernel"]).sum())
    busy = {kind: int(some.ns.sum()) for kind, some in unions.items()}
    own = copies.copies_of(trace)
    own = own[own.device == device]
    names = own.name.value_counts()
    found: dict[str, Any] = {
        "kernels": sum(map(len, kinds.values())), "nccl_kernels": len(kinds["collective"]),
        "compute_busy_ns": busy["kernel"], "nccl_busy_ns": busy["collective"],
        "compute_and_nccl_ns": both,
        "hta_style_comm_overlap_pct": round(100 * both / busy["collective"], 2)
        if busy["collective"] else None,
        "memcpy_by_name": {name: {"count": int(n)} for name, n in names.items() if n},
    }  # fmt: skip
    for direction, some in own.groupby("direction", observed=True):
        known = some[some.bytes.notna()]
        rate = {key: None if pd.isna(rate) else rate for key, rate in copies.rates(some).items()}
        pieces = union(known, "device")
        found[str(direction)] = {
            "count": len(known), **{key: rate[name] for key, name in KEYS.items()},
            **{f"overlap_{name}_ns": int(lanes.within(pieces, at[kind]).sum())
               for name, kind in (("compute", "kernel"), ("nccl", "collective"))},
            "memory": {str(k): int(n) for k, n in some.memory.value_counts().items() if n},
            "sizes": [[int(size), int(n)] for size, n in known.bytes.value_counts()[:20].items()],
        }  # fmt: skip
    return found


def _by_name(calls: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(name): {"count": len(ns), "total_ns": int(ns.sum()), "gt100us": int((ns > 1e5).sum())}
        for name, ns in calls.groupby("name", observed=True).ns
    }
