"""What runs beside what: a record's timeline, of device events around the switch.

A profiled iteration notes begin and end of every block, load and collective of rank 0. On these
lanes

    hidden     time of copies in which a block computes: inside a block's run and, with several
               ranks, in no collective
    a load     all parts of a block that go one after the other; its rate is bytes over their time
    alone      an all-to-all beside which nothing is copied or gathered
    beside     one with a copy in flight for at least half of its time, and no gather

A copy counts until its step's last block ends: between steps the profiler stops the device, and
what comes after the noted steps is not noted. A visit has two all-to-alls of different sizes, in
turn, so each is held against the median of those of its own size that run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from .answers import NotAnswerable, Record, engine_label, get, is_full_scale, job_name
from .tables import Cell, Column, Estimate, estimate, html_table, seconds, significant

Row = Mapping[str, Any]
Span = tuple[float, float]


@dataclass(frozen=True)
class Lanes:
    """What a timeline tells; times in milliseconds, over all steps that it holds.

    Attributes
    ----------
    steps
        How many of them.
    whole
        From the first block's begin to the last one's end, in each step, together.
    copies, hidden
        Time in which anything is copied, and the part of it in which a block computes.
    rates
        GB/s (10^9 bytes a second) of loads.
    collectives
        Time of all-to-alls; none with one rank, where each is nothing but its name.
    alone, beside
        How long an all-to-all takes without and with a copy in flight, over the median without.
    """

    steps: int
    whole: float
    copies: float
    hidden: float
    rates: Estimate
    collectives: float
    alone: Estimate
    beside: Estimate

    @property
    def share(self) -> float | None:
        """Of the copies' time that is hidden; None where nothing is copied."""
        return self.hidden / self.copies if self.copies else None


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that touch made one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def common(ones: Sequence[Span], others: Sequence[Span]) -> float:
    """Length of what lies in both of two merged lists."""
    length, position = 0.0, 0
    for start, end in ones:
        while position < len(others) and others[position][1] <= start:
            position += 1
        at = position
        while at < len(others) and others[at][0] < end:
            length += min(end, others[at][1]) - max(start, others[at][0])
            at += 1
    return length


def read(record: Record) -> Lanes:
    """Read the timeline of a record at full scale.

    Raises
    ------
    NotAnswerable
        If it has none, or is a rehearsal, whose copies are no copies to a device.
    """
    if not is_full_scale(record):
        raise NotAnswerable("A rehearsal copies to no device.")
    rows = [row for row in get(record, "timeline", default=[]) if row.get("end_ms") is not None]
    blocks = spans_of(rows, "compute")
    if not blocks:
        raise NotAnswerable("The job recorded no timeline; only a profiled iteration has one.")
    steps = {
        step: spans_of([row for row in rows if row["step"] == step], "compute")
        for step in sorted({row["step"] for row in rows if row["lane"] == "compute"})
    }
    last = {step: max(end for _, end in spans) for step, spans in steps.items()}
    copies = merged(
        (row["start_ms"], min(row["end_ms"], last[row["step"]]))
        for row in rows
        if row["lane"] == "copy" and row["what"] != "release"
        and row["start_ms"] < last.get(row["step"], 0)
    )  # fmt: skip
    several = get(record, "job", "num_gpus") > 1
    collectives = spans_of(rows, "collective") if several else []
    alone, beside = _beside(rows, copies) if several else ([], [])
    hidden = common(copies, merged(blocks)) - common(copies, merged(collectives))
    return Lanes(
        steps=len(steps),
        whole=sum(last[step] - min(start for start, _ in steps[step]) for step in steps),
        copies=length_of(copies),
        hidden=max(hidden, 0.0),
        rates=estimate(_rates(record, rows)),
        collectives=length_of(merged(collectives)),
        alone=estimate(alone),
        beside=estimate(beside),
    )


def spans_of(rows: Iterable[Row], lane: str) -> list[Span]:
    """Begin and end of what a lane holds."""
    # A release is a point in time: it takes the place of no copy.
    return [
        (row["start_ms"], row["end_ms"])
        for row in rows
        if row["lane"] == lane and row["what"] != "release"
    ]


def length_of(spans: Iterable[Span]) -> float:
    """Their lengths together."""
    return sum(end - start for start, end in spans)


def _beside(rows: Sequence[Row], copies: Sequence[Span]) -> tuple[list[float], list[float]]:
    """Lengths of all-to-alls alone and beside copies, over the median of their size alone."""
    gathers = merged(spans_of(rows, "gather"))
    sizes: dict[int, dict[bool, list[float]]] = {n: {False: [], True: []} for n in (0, 1)}
    visits = sorted(
        (row for row in rows if row["lane"] == "collective"), key=lambda row: row["start_ms"]
    )
    for _, visit in groupby(visits, lambda row: (row["step"], row["expert"], row["block"])):
        for number, row in enumerate(visit):
            span = row["start_ms"], row["end_ms"]
            length, copied = span[1] - span[0], common([span], copies)
            if not common([span], gathers) and (not copied or copied >= length / 2):
                sizes[number % 2][copied > 0].append(length)
    alone: list[float] = []
    beside: list[float] = []
    for found in sizes.values():
        usual = median(found[False]) if found[False] else 0.0
        if usual:
            alone += [length / usual for length in found[False]]
            beside += [length / usual for length in found[True]]
    return alone, beside


def _rates(record: Record, rows: Sequence[Row]) -> list[float]:
    """GB/s of each load of a block that the timeline holds from its first part to its last."""
    plan = get(record, "engine", "plan", default=None)
    settings = plan["candidates"][plan["chosen"]]["settings"] if plan else {}
    share = get(record, "job", "num_gpus") if settings.get("shard") else 1
    if settings.get("copy_streams", 1) > 1:
        return []  # loads share the link, so the time of one is not its own
    loads = sorted((r for r in rows if r["what"] == "load"), key=lambda row: row["start_ms"])
    parts = [list(some) for _, some in groupby(loads, lambda row: (row["expert"], row["block"]))]
    if settings.get("windows"):
        parts = parts[1:-1]  # of these, other parts may lie in steps that were not noted
    nbytes = get(record, "model", "block_bytes") / share
    return [
        nbytes / 1e6 / length for some in parts if (length := length_of(spans_of(some, "copy"))) > 0
    ]


def read_all(records: Iterable[Record]) -> list[tuple[Record, Lanes]]:
    """The records at full scale whose timeline shows copies, with what it tells."""
    found = []
    for record in records:
        try:
            lanes = read(record)
        except NotAnswerable:
            continue
        if lanes.copies:
            found.append((record, lanes))
    return found


def table(found: Iterable[tuple[Record, Lanes]]) -> str:
    """Return what the timelines tell, a row for each, as HTML."""
    rows: list[dict[str, object]] = []
    for record, lanes in found:
        link = get(record, "machine", "link", "h2d_pinned_together_gb_s")
        row: dict[str, object] = {
            "engine": engine_label(record),
            "machine": get(record, "machine", "class"),
            "rate": _gb_s(lanes.rates),
            "link": None if link is None else Cell(link, text=f"{significant(link, 3)} GB/s"),
            "rest": seconds((lanes.copies - lanes.hidden) / lanes.steps / 1e3),
            "hidden": Cell(lanes.share, text=per_cent(lanes.share or 0)),
            "job": job_name(record),
        }
        if lanes.collectives:
            row["collectives"] = seconds(lanes.collectives / lanes.steps / 1e3)
            share = lanes.collectives / lanes.whole
            row["share"] = Cell(share, text=per_cent(share))
            row["beside"] = Cell(lanes.beside.median, text=lanes.beside.text("×", 3))
        elif get(record, "job", "num_gpus") == 1:
            row |= dict.fromkeys(("collectives", "share", "beside"), Cell(None, text="none"))
        rows.append(row)
    return html_table(
        rows,
        [
            Column("engine", "engine", numeric=False),
            Column("machine", "machine", numeric=False),
            Column("rate", "a load, median [95 % interval]"),
            Column("link", "the link alone"),
            Column("hidden", "copies hidden"),
            Column("rest", "the others, per step"),
            Column("collectives", "all-to-alls per step"),
            Column("share", "of the step"),
            Column("beside", "one beside a copy, to alone"),
            Column("job", "job", numeric=False),
        ],
        caption="Lanes around the switch",
        kind="derived",
        note="From device events of rank 0 in the steps that the profiled iteration noted, each "
        "from its first block to its last. Hidden is the time of copies in which a block computes "
        "and no collective runs; the others are not all waited for. A load is what this rank "
        "copies of a block. An all-to-all includes packing and waiting for slower ranks. The link "
        "alone is what the record measured without computing, all ranks copying at once.",
    )


def _gb_s(rates: Estimate) -> Cell:
    return Cell(rates.median, text=rates.text("GB/s", 3) if rates.n else None)


def per_cent(share: float) -> str:
    """A share in words; one that is not all does not read as all."""
    return "100 %" if share > 1 - 1e-6 else f"{min(round(100 * share, 1), 99.9):g} %"


def origin(record: Record) -> str:
    """A record in few words: "layerwise, prefetch 1 on 2x NVIDIA H200"."""
    return f"{engine_label(record)} on {get(record, 'machine', 'class')}"
