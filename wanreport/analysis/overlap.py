"""What runs beside what: blocks, copies and collectives on the timelines of profiled runs.

A timeline has begin and end of each block, load and collective of rank 0 around the switch. On it

    hidden     time of copies in which a block computes and no collective runs
    a load     all parts of a block, copied one after the other; its rate is bytes over their time
    alone      an all-to-all beside which nothing is copied or gathered
    beside     one with a copy in flight for at least half of its time, and no gather

A copy counts until its step's last block ends: what comes after the noted steps is not noted. A
visit has two all-to-alls of different sizes, in turn, so each is held against the median of the
lone ones of its own size. What one GPU notes as collectives is left out.
"""

from collections.abc import Iterable
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import median_interval
from wanreport.traces.events import Lanes


def shares(frames: Frames) -> pd.DataFrame:
    """Measure the timeline of each profiled run at full scale, or the trace of an imported one.

    The runs' rows, with `steps` noted and their time, ``whole_ms``; ``copies_ms`` in which anything
    is copied, and the share `hidden` of it; ``rate_gb_s`` of loads, ``rate_outside_gb_s`` of those
    that meet no collective, ``rate_inside_gb_s``, an estimate of the others while beside one, if
    they elsewhere run as fast as the link alone; ``collectives_s``, all-to-alls a step, with
    packing and waiting; `beside`, how long one beside a copy takes over lone ones, whose median is
    1, with both intervals and numbers (``beside_``, ``alone_``); `slowed`, what these are times of:
    "all-to-alls", or of a trace without their sizes "copies", the other way.
    """
    runs, rows = frames.full_scale(), dict[str, dict[str, Any]]()
    links = runs.groupby("slug").link_gb_s.max()  # one measurement may be low
    for run, row in runs[runs.run.isin(frames.events.run)].iterrows():
        events = timeline(frames, row)
        if (events.lane == "compute").any():
            rows[run] = _measure(row, _in_ns(events), links[row.slug])
    rows |= {run: _of_trace(found) for run, found in runs.traced.dropna().items()}
    return runs.loc[list(rows)].join(pd.DataFrame.from_dict(rows, orient="index"))


def timeline(frames: Frames, run: Any) -> pd.DataFrame:
    """A run's events without releases, which take no time, and a lone GPU's collectives."""
    events = frames.events[(frames.events.run == run["run"]) & (frames.events.what != "release")]
    return events[(events.lane != "collective") | (run["gpus"] > 1)].sort_values("start_ms")


def crossings(events: pd.DataFrame) -> np.ndarray:
    """Find where a copy and a collective run at once: an array of begin and end, a row for each."""
    lanes, copy, meets = _lanes(_in_ns(events), "copy", "collective")
    changes = np.flatnonzero(np.diff(copy & meets, prepend=False, append=False))
    return np.asarray(lanes.edges[changes].reshape(-1, 2) / 1e6)


def _in_ns(events: pd.DataFrame) -> pd.DataFrame:
    """With times also in whole ns, so that equal ones are equal."""
    ns = (events[["start_ms", "end_ms"]] * 1e6).round().astype("int64")
    return events.assign(start_ns=ns.start_ms, end_ns=ns.end_ms)


def _lanes(events: pd.DataFrame, *names: str) -> tuple[Any, ...]:
    """A time axis cut at these events, and in which of its pieces each of some lanes is busy."""
    lanes = Lanes(events)
    return lanes, *(lanes.at(events[events.lane == name]) for name in names)


def _measure(row: Any, events: pd.DataFrame, link: float) -> dict[str, Any]:
    settings, blocks = row.settings, events[events.lane == "compute"].groupby("step")
    whole = (blocks.end_ms.max() - blocks.start_ms.min()).sum()
    last = events.step.map(blocks.end_ns.max()).where(events.lane == "copy", events.end_ns.max())
    counted = events.assign(end_ns=np.minimum(events.end_ns, last))[events.start_ns < last]
    lanes, copy, meets, gather, compute = _lanes(counted, "copy", "collective", "gather", "compute")
    spans = (copy & compute & ~meets, copy, meets)
    hidden, copies, collectives = (lanes.ns(pieces) / 1e6 for pieces in spans)

    parts, (axis, met) = events[events.what == "load"], _lanes(events, "collective")
    parts = parts.assign(inside_ms=axis.within(parts, met) / 1e6)
    loads = parts.groupby(_visits(parts, ["expert", "block"]))[["ms", "inside_ms"]].sum()
    if settings.get("windows"):
        loads = loads[1:-1]  # of these, other parts may lie in steps that were not noted
    if settings.get("copy_streams", 1) > 1:
        loads = loads[:0]  # loads share the link, so the time of one is not its own
    sent = (row.plan_inputs or {}).get("packed_bytes") or row.block_bytes
    nbytes = sent / (row.gpus if settings.get("shard") else 1)
    loads = loads[loads.ms > 0].assign(gb_s=nbytes / 1e6 / loads.ms)
    outside, inside = loads[loads.inside_ms == 0], loads[loads.inside_ms > 0]
    left = (inside.gb_s * inside.ms - link * (inside.ms - inside.inside_ms)) / inside.inside_ms

    found = counted[counted.lane == "collective"]
    size = found.groupby(_visits(found, ["step", "expert", "block"])).cumcount() % 2
    copied, gathered = (lanes.within(found, pieces) / 1e6 for pieces in (copy, gather))
    alone = (copied == 0) & (gathered == 0)
    near = (copied > 0) & (copied >= found.ms / 2) & (gathered == 0)
    times = found.ms / size.map(found.ms[alone].groupby(size[alone]).median())
    return _row(
        len(blocks), whole, copies, hidden, collectives if row.gpus > 1 else nan,
        times[near], times[alone], slowed="all-to-alls", rate_n=len(loads), inside_n=len(inside),
        rate_gb_s=loads.gb_s.median(), rate_outside_gb_s=outside.gb_s.median(),
        rate_inside_gb_s=left.median(),
    )  # fmt: skip


def _of_trace(found: dict[str, Any]) -> dict[str, Any]:
    """What a trace tells of the same: of all its copies, as it does not name blocks."""
    # Copies tell of contention where the file does not have the collectives' sizes.
    told = {key: each for key, each in found.get("contention", {}).items() if all(each.values())}
    slowed, times = next(iter(told.items()), ("", {"beside": [], "alone": []}))
    names = ("span_ns", "copies_ns", "hidden_alone_ns", "collectives_ns")
    whole, copies, hidden, met = (found[name] / 1e6 for name in names)
    return _row(
        found["steps"], whole, copies, hidden, met or nan, times["beside"], times["alone"],
        slowed=slowed, rate_n=found["copies"], inside_n=found["meeting_n"],
        rate_gb_s=found["down_bytes"] / found["copies_ns"],
        rate_outside_gb_s=found["outside_gb_s"], rate_inside_gb_s=found["inside_gb_s"],
    )  # fmt: skip


def _row(
    steps: int, whole: float, copies: float, hidden: float, collectives: float,
    beside: Iterable[float], alone: Iterable[float], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Columns of :func:`shares`, from times in ms and ratios of times."""
    near, lone = median_interval(beside), median_interval(alone)
    return {
        "steps": steps, "whole_ms": whole, "copies_ms": copies, "hidden_ms": hidden,
        "hidden": hidden / copies if copies else nan,
        "collectives_s": collectives / 1e3 / (steps or nan),
        "collectives_share": collectives / whole, "beside": near.median, "beside_low": near.low,
        "beside_high": near.high, "beside_n": near.n, "alone_low": lone.low,
        "alone_high": lone.high, "alone_n": lone.n, **more,
    }  # fmt: skip


def _visits(events: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Number runs of events, in order, that are of one block."""
    return (events[keys] != events[keys].shift()).any(axis=1).cumsum()
