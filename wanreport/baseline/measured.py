"""What our runs say to the document's claims, each with the setup it was measured in.

Rehearsals of our own port say nothing of SGLang's time, memory or overlap, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from wanreport.analysis import compare, overlap
from wanreport.analysis.causes import causes
from wanreport.analysis.checks import checks
from wanreport.analysis.compare import differs, plain_jobs
from wanreport.analysis.frames import Frames
from wanreport.analysis.questions import questions
from wanreport.baseline.facts import Facts
from wanreport.words import gibibytes, gigabytes, ratio, seconds, share

COLUMNS = ["by", "measured", "machine", "setting", "status", "runs", "command"]

Row = dict[str, Any]


def answers(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Collect all that runs say: a row for each question and machine.

    `by` is the name of the question; `measured` the answer in words; `setting` how the runs differ
    from the document's, "" where they do not; `status` as of :func:`checks`, "told" where a number
    is all that was asked for; `command` what would measure it.
    """
    if len(frames.runs):
        real = frames.runs.run[~frames.runs.rehearsal]
        frames = Frames(*(frame[frame.run.isin(real)] for frame in frames))
    rows = []
    for row in checks(frames, facts).to_dict("records"):
        engine = row["check"].partition("-")[2]
        words = f"{engine}: {row['measured']}" if engine else row["measured"]
        rows.append({**row, "by": row["check"], "measured": words})
    if len(frames.runs):
        told = [*_causes(frames, facts), *_costs(frames), *_questions(frames),
                *_memory(frames, facts), *_timelines(frames), *_first(frames)]  # fmt: skip
        rows += [{**row, "setting": _setting(frames, facts, row)} for row in told]
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _setting(frames: Frames, facts: Facts, row: Row) -> str:
    runs = frames.runs.loc[row["runs"]]
    part = "part of the model" if (runs.source == "bench").any() else ""
    gpus = "" if row["by"].startswith("question") else "s9.1.new4.gpus"
    return ", ".join(filter(None, [part, differs(facts, runs, gpus)]))


def _told(by: str, measured: str, row: Any, *runs: str) -> Row:
    return {"by": by, "measured": measured, "machine": row.machine, "status": "told",
            "runs": [*runs] or [row.run], "command": ""}  # fmt: skip


def _causes(frames: Frames, facts: Facts) -> Iterator[Row]:
    for row in causes(frames, facts).itertuples():
        beside = f", together with {', '.join(row.together_with)}" if row.together_with else ""
        words = (f"{row.changed} {row.change}: {seconds(row.effect_s, 3)} a step, {row.claim}"
                 f" ({row.work}{beside})")  # fmt: skip
        yield _told(f"cause-{row.cause}", words, row, row.run_a, row.run_b)


def _costs(frames: Frames) -> Iterator[Row]:
    """What an engine costs a step over resident weights."""
    cost = compare.overhead(frames)
    best = cost[cost.index.isin(compare.headline(frames).index)]
    peer = cost.engine.isin(("sglang", "layerwise")) & cost.overhead.notna()
    linked = cost[(cost.interconnect == "NVLink") & peer]
    linked = linked[(linked.source == "job") | ~(linked.source == "job").any()]
    both = pd.concat([best.assign(by="cost-" + best.engine), linked.assign(by="nvlink")])
    for row in both.itertuples():
        where = f"{row.height}p" if row.source == "job" else f"{row.name}, {row.work}"
        words = f"{ratio(row.overhead)} over resident, {row.claim} ({where})"
        yield _told(row.by, words, row, row.run, row.reference)


def _questions(frames: Frames) -> Iterator[Row]:
    for row in questions(frames).itertuples():
        by = f"question-{row.number}"
        if not isinstance(row.run_one, str):
            yield {"by": by, "status": "not measured", "runs": [], "command": row.command}
        else:
            words = f"{row.one} over {row.two}, {row.work}: {ratio(row.difference)}, {row.claim}"
            yield _told(by, words, row, row.run_one, row.run_two)


def _memory(frames: Frames, facts: Facts) -> Iterator[Row]:
    """What the deeper prefetch takes, and the peaks of both offloads."""
    for row in compare.prefetch(frames, facts).itertuples():
        more = gigabytes(row.allocated_difference_bytes, 3)
        yield _told("prefetch-memory", f"{more} more allocated", row, row.run_one, row.run_two)
    runs = plain_jobs(frames.full_scale())
    for row in runs[runs.prefetch.fillna(1) == 1].itertuples() if len(runs) else ():
        peak = f"{row.name}: {gibibytes(row.reserved_bytes, 3)} reserved"
        yield _told(f"memory-{row.engine}", peak, row)
        if row.engine == "layerwise":
            yield _told("bytes", f"{gigabytes(row.h2d_step_bytes, 3)} a step", row)


def _timelines(frames: Frames) -> Iterator[Row]:
    found = overlap.shares(frames)
    for row in found[found.engine == "layerwise"].itertuples() if len(found) else ():
        yield _told("rate", f"{row.rate_gb_s:.1f} GB/s", row)
        if row.collectives_share > 0:
            taken = share(row.collectives_share)
            yield _told("collectives", f"all-to-all takes {taken} of a step", row)


def _first(frames: Frames) -> Iterator[Row]:
    """What the first step of a process takes where it compiles; later ones are in the runs."""
    runs, steps = frames.full_scale(), frames.steps
    first = steps[steps.kind == "warmup"].groupby("run").seconds.first()
    for row in runs[runs.compiled & runs.run.isin(first.index)].itertuples():
        times = seconds(first[row.run], 3), seconds(row.step_s, 3)
        yield _told("first-step", f"{row.name}: first step {times[0]}, later {times[1]}", row)
