"""``wanreport trace FILE...``: what traces hold, as tables of text and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.records.record import replace_file
from wanreport.traces import copies, read
from wanreport.traces.events import Trace, in_ms, like

KEYS = {  # of a direction: in JSON, and of `copies.bandwidth`
    "no_bytes": "unsized", "bytes": "bytes", "sum_dur_ns": "ns", "busy_union_ns": "union_ns",
    "weighted_gbps": "weighted_gb_s", "median_gbps": "median_gb_s", "p10_gbps": "p10_gb_s",
    "p90_gbps": "p90_gb_s", "zero_dur": "zero_time", "time_share_0_5": "share_0_5",
    "time_share_5_20": "share_5_20", "overlap_compute_ns": "hidden_ns",
    "overlap_nccl_ns": "in_collectives_ns",
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
        "Copies": copies.summary(traces, link),
        "Bandwidth": copies.bandwidth(traces, peak, link),
        "Bytes a step": copies.budget(traces, peak, link),
        "Waits": copies.waits(traces), "Allocations": copies.waits(traces, copies.ALLOCATIONS),
        "Which tensor": copies.tensors(traces).head(20),
    }  # fmt: skip
    for title, table in tables.items():
        shown = in_ms(table).assign(file=[Path(file).name for file in table.get("file", ())])
        shown = shown if len(shown.columns) < 13 else shown.T  # too wide for a terminal
        text = shown.astype(object).where(shown.notna(), "-").to_string(
            float_format="{:,.4g}".format, header=shown.columns[0] == "file")  # fmt: skip
        print(f"\n{title}\n{'  nothing recorded' if table.empty else text}")
    if out is not None:
        names = [path.name for path in files]
        keys = names if len({*names}) == len(names) else [str(path) for path in files]
        content = dict(zip(keys, map(summarised, traces), strict=True))
        replace_file(out, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return 0


def summarised(trace: Trace) -> dict[str, Any]:
    """What a trace holds, in ns, bytes and GB/s; None is for what is not recorded or defined."""
    events, gpus, steps = trace.events, trace.facts["gpus"], trace.steps
    own, rates, found = copies.copies_of(trace), copies.bandwidth([trace]), copies.summary([trace])
    devices: dict[str, dict[str, Any]] = {}
    for row in found[found.step.isna() & found.device.notna()].to_dict("records"):
        here, met, both = row["device"], row["collectives_ns"], row["both_ns"]
        mine, speeds = own[own.device == here], rates[rates.device == here].groupby("direction")
        devices[str(here)] = {
            "kernels": row["kernels"], "nccl_kernels": row["collectives"],
            "compute_busy_ns": row["kernels_ns"], "nccl_busy_ns": met, "compute_and_nccl_ns": both,
            "hta_style_comm_overlap_pct": round(100 * both / met, 2) if met else None,
            "memcpy_by_name": {name: {"count": n} for name, n in _counts(mine.name)},
        } | {str(rate["direction"]): {
            "count": rate["copies"] - rate["unsized"],
            **{key: None if pd.isna(rate[name]) else rate[name] for key, name in KEYS.items()},
            "memory": dict(_counts(mine.memory[mine.direction == rate["direction"]])),
            "sizes": [[int(size), n] for size, n in
                      _counts(mine.bytes[mine.direction == rate["direction"]].dropna())[:20]],
        } for rate in speeds.tail(1).to_dict("records")}  # fmt: skip
    memcpys, calls = copies.memcpy_calls(trace), events[events.kind == "call"]
    by_name = {"sync_calls": calls[like(calls, copies.SYNCS)],
               "sync_events": events[events.kind == "sync"],
               "alloc_calls": calls[like(calls, copies.ALLOCATIONS)]}  # fmt: skip
    return {
        **{key: trace.facts[key] for key in ("format", "size_bytes", "rank", "events")},
        "device0": gpus[min(gpus)] if gpus else None,
        "record_window_end": trace.facts["finished"],
        "quality": trace.quality.to_dict("records"),
        **(next(iter(devices.values())) if len(devices) == 1 else {"devices": devices}),
        "memcpy_calls": _timed(memcpys.ns) | {"gt10us": int((memcpys.ns > 1e4).sum())}
            if len(calls) else None,
        **{key: {str(name): _timed(ns) for name, ns in some.groupby("name", observed=True).ns}
           for key, some in by_name.items()},
        "steps": [[*step] for step in (steps.end_ns - steps.start_ns).set_axis(steps.name).items()],
        "incomplete_steps": steps.name[~steps.complete].tolist(),
        "memcpy_without_runtime_call":
            int((events.call[events.kind == "copy"] < 0).sum()) if devices else None,
    }  # fmt: skip


def _counts(values: pd.Series) -> list[tuple[Any, int]]:
    return [(value, int(n)) for value, n in values.value_counts().items() if n]


def _timed(ns: pd.Series) -> dict[str, int]:
    return {"count": len(ns), "total_ns": int(ns.sum()), "gt100us": int((ns > 1e5).sum())}
