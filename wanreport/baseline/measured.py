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

Told = tuple[str, str, str, list[str]]
"""A question's name, the answer in words, the machine, and the runs."""


def answers(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Collect all that runs say: a row for each question and machine.

    `by` is the name of the question; `measured` the answer in words; `setting` how the runs differ
    from the document's, "" where they do not; `status` as of :func:`checks`, "told" where a number
    is all that was asked for; `command` what would measure it.
    """
    rows: list[dict[str, Any]] = []
    if len(frames.runs):
        real = frames.runs.run[~frames.runs.rehearsal]
        frames = Frames(*(frame[frame.run.isin(real)] for frame in frames))
    for row in checks(frames, facts).to_dict("records"):
        engine = row["check"].partition("-")[2]
        words = f"{engine}: {row['measured']}" if engine else row["measured"]
        rows.append({**row, "by": row["check"], "measured": words})
    if len(frames.runs):
        for row in questions(frames).query("run_one.isna()").itertuples():
            rows.append({"by": f"question-{row.number}", "status": "not measured", "runs": [],
                         "command": row.command})  # fmt: skip
        for by, words, machine, names in [*_pairs(frames, facts), *_single(frames, facts)]:
            runs = frames.runs.loc[names]
            part = "part of the model" if (runs.source == "bench").any() else ""
            gpus = "" if by.startswith("question") else "s9.1.new4.gpus"
            setting = ", ".join(filter(None, [part, differs(facts, runs, gpus)]))
            rows.append({"by": by, "measured": words, "machine": machine, "setting": setting,
                         "status": "told", "runs": names, "command": ""})  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _pairs(frames: Frames, facts: Facts) -> Iterator[Told]:
    """What two runs say beside one another."""
    for row in causes(frames, facts).query("run_a.notna()").itertuples():
        beside = f", together with {', '.join(row.together_with)}" if row.together_with else ""
        words = (f"{row.changed} {row.change}: {seconds(row.effect_s, 3)} a step, {row.claim}"
                 f" ({row.work}{beside})")  # fmt: skip
        yield f"cause-{row.cause}", words, row.machine, [row.run_a, row.run_b]
    # What an engine costs a step over resident weights: with NVLink by jobs, if there are any.
    cost = compare.overhead(frames)
    if "overhead" in cost:
        best = cost[cost.index.isin(compare.headline(frames).index)]
        peer = cost.engine.isin(("sglang", "layerwise")) & cost.overhead.notna()
        linked = cost[(cost.interconnect == "NVLink") & peer]
        linked = linked[(linked.source == "job") | ~(linked.source == "job").any()]
        both = pd.concat([best.assign(by="cost-" + best.engine), linked.assign(by="nvlink")])
        for row in both.itertuples():
            where = f"{row.height}p" if row.source == "job" else f"{row.name}, {row.work}"
            words = f"{ratio(row.overhead)} over resident, {row.claim} ({where})"
            yield row.by, words, row.machine, [row.run, row.reference]
    for row in questions(frames).query("run_one.notna()").itertuples():
        words = f"{row.one} over {row.two}, {row.work}: {ratio(row.difference)}, {row.claim}"
        yield f"question-{row.number}", words, row.machine, [row.run_one, row.run_two]
    for row in compare.prefetch(frames, facts).itertuples():
        words = f"{gigabytes(row.allocated_difference_bytes, 3)} more allocated"
        yield "prefetch-memory", words, row.machine, [row.run_one, row.run_two]


def _single(frames: Frames, facts: Facts) -> Iterator[Told]:
    """What single jobs say: memory, bytes and times of their copies, the first step."""
    every = frames.full_scale()
    runs = plain_jobs(every)
    for row in runs[runs.prefetch.fillna(1) == 1].itertuples() if len(runs) else ():
        words = f"{row.name}: {gibibytes(row.reserved_bytes, 3)} reserved"
        yield f"memory-{row.engine}", words, row.machine, [row.run]
        if row.engine == "layerwise":
            yield "bytes", f"{gigabytes(row.h2d_step_bytes, 3)} a step", row.machine, [row.run]
    found = overlap.shares(frames)
    for row in found[found.engine == "layerwise"].itertuples() if len(found) else ():
        yield "rate", f"{row.rate_gb_s:.1f} GB/s", row.machine, [row.run]
        if row.collectives_share > 0:
            words = f"all-to-all takes {share(row.collectives_share)} of a step"
            yield "collectives", words, row.machine, [row.run]
    # Where a process compiles, its first step takes long; later ones are in the runs.
    first = frames.steps[frames.steps.kind == "warmup"].groupby("run").seconds.first()
    for row in every[every.compiled & every.run.isin(first.index)].itertuples():
        times = seconds(first[row.run], 3), seconds(row.step_s, 3)
        words = f"{row.name}: first step {times[0]}, later {times[1]}"
        yield "first-step", words, row.machine, [row.run]
