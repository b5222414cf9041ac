"""Tables of one job's page, as DataFrames made from its record and from the frames."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from wanreport.analysis.frames import Frames, of_record
from wanreport.jobs.job import Job, resolve_job
from wanreport.planner.plan import describe
from wanreport.records.files import Record, parse_record, read_json
from wanreport.records.project import project_root
from wanreport.records.record import new_record
from wanreport.words import EM_DASH, gibibytes, gigabytes, significant

COUNTERS = {
    "h2d_bytes": "to the device", "d2h_bytes": "to the host", "h2d_copies": "copies to the device",
    "d2h_copies": "copies to the host", "allocations": "device allocations",
    "event_waits": "waits for an event", "stream_waits": "waits for a stream",
    "host_syncs": "waits of the host", "unshards": "gathers of shards",
}  # fmt: skip
LINKS = ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")


def opened(job: Job, run: str | None, frames: Frames) -> tuple[Record, pd.Series]:
    """Read the record of a run, and its row of ``frames.runs``.

    Without a run both are of a job that was not measured: their hint says how to.
    """
    root = project_root()
    if run is not None:
        return parse_record(root / run, read_json(root / run, "")), frames.runs.loc[run]
    file = next((p.relative_to(root) for p in root.glob(f"params/*/{job.name}.yaml")), Path())
    gpus = "a GPU" if job.num_gpus == 1 else f"{job.num_gpus} GPUs"
    record = parse_record(file, new_record(
        resolve_job(job, gpus=job.num_gpus), reason="This job has no record.",
        hint=f"On a machine with {gpus}, run: wanreport run {file}"))  # fmt: skip
    return record, of_record(record).runs.iloc[0]


def asked(record: Record) -> pd.DataFrame:
    """Put what the job asks for beside what ran: `what`, `asked` and `ran`, as text."""
    job, model = record.job, record.model.model_dump()
    size = "{width}×{height}, {num_frames} frames"
    videos = [size.format(**of) if of.get("width") else None for of in (job, model)]
    ranks = [len(step.seconds) for each in record.iterations for step in each.steps]
    return pd.DataFrame([
        ("engine", job.get("engine"), record.engine.name),
        ("GPUs or ranks", job.get("num_gpus"), max(ranks, default=None)),
        ("video", *videos),
        ("denoising steps", job.get("num_inference_steps"), len(record.schedule.timesteps) or None),
        ("weights", job.get("checkpoint") or "random, exact shapes", model["weights"]),
        ("blocks of an expert", None, model["num_layers"]),
        ("tokens", None, model["tokens"] and f"{model['tokens']:,}"),
        ("size of a block", None, model["block_bytes"] and gigabytes(model["block_bytes"])),
        ("size of an expert", None, model["expert_bytes"] and gigabytes(model["expert_bytes"])),
    ], columns=["what", "asked", "ran"], dtype=object).dropna(thresh=2)  # fmt: skip


def moved(frames: Frames, run: str | None) -> pd.DataFrame:
    """Put counters beside the closed formula: a row for each that is not zero throughout.

    `measured` and `formula` are those of the last clean iteration's busiest rank, `equal` holds for
    all ranks and iterations.
    """
    found = frames.counters[frames.counters.run == run]
    found = found.assign(equal=(found.measured == found.formula).where(found.formula.notna(), None))
    last = found.iteration[found.kind == "clean"].max()
    last = found.iteration.max() if pd.isna(last) else last
    table = found[found.iteration == last].groupby("counter")[["measured", "formula"]].max()
    equal = found.groupby("counter").equal
    table["equal"] = equal.agg(lambda each: None if each.isna().any() else bool(each.all()))
    table = table[(table[["measured", "formula"]] > 0).any(axis=1)]
    return table.assign(what=table.index.map(COUNTERS)).reset_index()


def around_switch(frames: Frames, run: str | None, blocks: int = 3) -> pd.DataFrame:
    """Cut the last blocks before the switch and the first after it out of a run's timeline.

    Events as of :func:`wanreport.analysis.overlap.excerpt`; empty without a timeline.
    """
    events = frames.events[frames.events.run == run]
    visits = events[events.lane == "compute"].sort_values("start_ms")
    if visits.empty:
        return visits
    row = frames.runs.loc[run]
    before = int((visits.step < row.switch_step).sum())
    some = visits.iloc[max(0, before - blocks) : before + blocks]
    start, end = some.start_ms.min(), some.end_ms.max()
    shown = (events.end_ms > start) & (events.start_ms < end) & (events.what != "release")
    cut = events[shown & ((events.lane != "collective") | (row.gpus > 1))]
    times = cut[["start_ms", "end_ms"]].clip(start, end) - start
    return cut.assign(**times, ms=times.end_ms - times.start_ms, block=cut.block.astype("Int64"),
                      **row[["engine", "name"]], branches=1)  # fmt: skip


def plan(record: Record) -> pd.DataFrame:
    """List what `stream` could choose from, best predicted first; empty for other engines.

    ``settings`` in words; ``step_s``, ``limit_s``, ``first_s``, ``switch_s``, ``weights_bytes``
    predicted; ``trial_s`` measured over a part of the blocks; whether it was `chosen`.
    """
    found = record.engine.plan or {"candidates": [], "trial": [], "chosen": 0}
    tried = {one["candidate"]: one["step_s"] for one in found["trial"]}
    return pd.DataFrame(
        {"settings": describe(one["settings"]), **one["predicted"], "trial_s": tried.get(number),
         "chosen": number == found["chosen"]}
        for number, one in enumerate(found["candidates"])
    )  # fmt: skip


def machine(record: Record) -> pd.DataFrame:
    """Describe the machine and the software that made a record: `what` and `value`, as text."""
    kept, software = record.machine.model_dump(), record.software.model_dump()
    link, pcie = kept["link"] or {}, kept.get("pcie") or {}
    values = {
        "machine class": kept["class_"], "GPU": kept["gpu_name"],
        "GPU memory": gibibytes(kept.get("gpu_memory_bytes")),
        "host memory": gibibytes(kept.get("host_memory_bytes")),
        "interconnect": kept["interconnect"],
        "PCIe": pcie.get("width") and f"generation {pcie['generation']}, {pcie['width']} lanes",
        **{f"link, {way.replace('_', ' ')}": f"{significant(link.get(f'{way}_gb_s'))} GB/s; each"
           f" GPU, all at once, {significant(link.get(f'{way}_together_gb_s'))} GB/s"
           for way in LINKS if link},
        "NCCL settings": ", ".join(f"{k}={v}" for k, v in (kept.get("nccl") or {}).items()),
        "NCCL transport": ", ".join(kept.get("transport") or []),
        "driver": kept.get("driver"), "processor": kept.get("cpu_model"),
        **{key: software.get(key) for key in ("python", "torch", "diffusers", "cuda", "nccl")},
        "commit": (software["git_sha"] or "") + ", changed" * bool(software["git_dirty"]),
        "started": record.started_at,
    }  # fmt: skip
    rows = [(what, value) for what, value in values.items() if value not in (None, "", EM_DASH)]
    return pd.DataFrame(rows, columns=["what", "value"])
