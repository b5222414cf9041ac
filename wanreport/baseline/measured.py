"""What our runs say to the document's claims, each with the setup it was measured in.

Rehearsals of our own port say nothing of SGLang's time, memory or overlap, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from wanreport.analysis import compare, overlap
from wanreport.analysis.checks import checks
from wanreport.analysis.frames import Frames
from wanreport.analysis.pairs import pairs
from wanreport.baseline.facts import Facts
from wanreport.words import gibibytes, gigabytes, ratio, seconds, share

COLUMNS = ["by", "measured", "machine", "setting", "status", "runs"]
QUESTIONS = {"engine": 1, "interconnect": 2, "shard": 3, "transfer": 4, "priority": 5,
             "copy streams": 6, "windows": 7}  # fmt: skip
"""The open questions (section 10) by the setting in which their pairs of runs differ."""


def answers(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Collect all that runs say: a row for each question and machine.

    `by` is the name of the question; `measured` the answer in words; `setting` how the runs differ
    from the document's, "" where they do not; `status` as of :func:`checks`, "told" where a number
    is all that was asked for.
    """
    real = frames.runs.run[~frames.runs.rehearsal]
    frames = Frames(*(frame[frame.run.isin(real)] for frame in frames))
    rows = checks(frames, facts).rename(columns={"check": "by"}).to_dict("records")
    for row in rows:
        engine = row["by"].partition("-")[2]
        row["measured"] = f"{engine}: " * bool(engine) + row["measured"]
    for by, words, *names in _told(frames):
        runs = frames.runs.loc[names]
        part = "part of the model" if (runs.source == "bench").any() else ""
        differs = compare.differs(facts, runs, "" if by[0] == "q" else "s9.1.new4.gpus")
        setting = ", ".join(filter(None, [part, differs]))
        rows.append({"by": by, "measured": words, "machine": runs.machine.iloc[0], "runs": names,
                     "setting": setting, "status": "told"})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def questions(found: pd.DataFrame) -> pd.DataFrame:
    """Pick of :func:`pairs` those that answer an open question, with its `number`.

    A length is near what was asked for from 7,800 to 14,040 tokens; windows follow the parts of a
    block, not the schedule, but between two runs of `stream` they are near it.
    """
    found = found.assign(number=found.changed.map(QUESTIONS)).dropna(subset="number")
    near = found.tokens.between(7_800, 14_040).where(found.number == 2, True)
    near &= (found.number != 7) | (found.name_a.str[:6] == found.name_b.str[:6])
    return found[near].astype({"number": int}).sort_values("number", kind="stable")


def _told(frames: Frames) -> Iterator[tuple[str, ...]]:
    """The name of each question that runs answer, the answer in words, and the runs."""
    found = pairs(frames)
    for row in found[found.cause != ""].itertuples():
        beside = f", together with {', '.join(row.together_with)}" if row.together_with else ""
        words = f"{row.changed} {row.change}: {seconds(row.effect_s, 3)} a step, {row.claim}"
        yield f"cause-{row.cause}", f"{words} ({row.work}{beside})", row.run_a, row.run_b
    # What an engine costs a step over resident weights: with NVLink by jobs, if there are any.
    cost, every = compare.overhead(frames), frames.full_scale()
    best, job = cost[cost.index.isin(compare.headline(frames).index)], cost.source == "job"
    linked = cost[(cost.interconnect == "NVLink") & cost.engine.isin(("sglang", "layerwise"))
                  & cost.overhead.notna()]  # fmt: skip
    linked = linked[job[linked.index] | ~job[linked.index].any()].assign(by="nvlink")
    for row in pd.concat([best.assign(by="cost-" + best.engine), linked]).itertuples():
        where = f"{row.height}p" if row.source == "job" else f"{row.name}, {row.work}"
        words = f"{ratio(row.overhead)} over resident, {row.claim} ({where})"
        yield row.by, words, row.run, row.reference
    for row in questions(found).itertuples():
        words = f"{row.name_a} over {row.name_b}, {row.work}: {ratio(row.difference)}, {row.claim}"
        yield f"question-{row.number}", words, row.run_a, row.run_b
    for row in found.query("changed == 'prefetch' and source == 'job'").itertuples():
        base, deep = every.allocated_bytes[[row.run_a, row.run_b]]
        yield "prefetch-memory", f"{gigabytes(deep - base, 3)} more allocated", row.run_b, row.run_a
    # What single jobs say: memory, bytes and times of their copies, the first step.
    runs = compare.plain_jobs(every)
    for row in runs[runs.prefetch.fillna(1) == 1].itertuples():
        words = f"{row.name}: {gibibytes(row.reserved_bytes, 3)} reserved"
        yield f"memory-{row.engine}", words, row.run
        if row.engine == "layerwise":
            yield "bytes", f"{gigabytes(row.h2d_step_bytes, 3)} a step", row.run
    for row in overlap.shares(frames).query("engine == 'layerwise'").itertuples():
        yield "rate", f"{row.rate_gb_s:.1f} GB/s", row.run
        if row.collectives_share > 0:
            words = f"all-to-all takes {share(row.collectives_share)} of a step"
            yield "collectives", words, row.run
    # Where a process compiles, its first step takes long; later ones are in the runs.
    first = frames.steps[frames.steps.kind == "warmup"].groupby("run").seconds.first()
    for row in every[every.compiled & every.run.isin(first.index)].itertuples():
        times = f"first step {seconds(first[row.run], 3)}, later {seconds(row.step_s, 3)}"
        yield "first-step", f"{row.name}: {times}", row.run
