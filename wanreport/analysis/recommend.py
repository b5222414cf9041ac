"""What to run on a machine: layout, engine, transfer and memory budget, and the next best.

Every way to make a video of 81 frames that fits on its GPUs counts with the seconds of its whole
schedule, without decoding: as measured on such a machine where it was, else as
:mod:`wanreport.analysis.scaling` and the planner predict it. Whatever is within :data:`ALIKE` of the
fastest is as fast; of that the way that needs the least memory goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis.compare import overhead, plain_jobs
from wanreport.analysis.frames import Frames
from wanreport.analysis.predictions import gather
from wanreport.analysis.rows import path_of
from wanreport.analysis.scaling import ASSUMED, INTERCONNECTS, Known, predict_job
from wanreport.jobs.job import Job
from wanreport.jobs.settings import SENT, layerwise_held
from wanreport.planner.cost import Inputs
from wanreport.planner.plan import DEFAULT_ROOM, MIN_ROOM, candidates, room

SIZES = {480: 832, 720: 1280}
ALIKE = 0.01  # by more differ runs of one job on other boards
GAIN = 0.005  # packed blocks must bring more, for what unpacking takes from computing
USABLE = 0.95  # of a GPU's memory; the rest is CUDA's, NCCL's or between allocations
WAY = ["layout", "engine", "transfer", "needs_bytes", "total_s", "step_s", "kind", "rests_on"]


def recommend(
    root: Path, frames: Frames, gpu: str, gpus: int, interconnect: str, vram_gb: float | None = None
) -> pd.DataFrame:
    """Choose for a number of GPUs of a model; each has ``vram_gb``, by default the model's memory.

    Two rows a `height`, the better one first, with `machine`, `place` and :data:`WAY`. The memory
    that a way takes, ``needs_bytes``, is the budget to give. Raises PredictionError where
    measurements are missing.
    """
    known, path = gather(root, frames, gpu, gpus + 1, interconnect), INTERCONNECTS[interconnect]
    here = frames.runs[frames.runs.gpu_model == gpu]
    free = USABLE * (vram_gb * 1e9 if vram_gb else here.gpu_memory_bytes.max())
    runs = plain_jobs(overhead(frames), layouts=True)
    runs = runs[(runs.gpu_model == gpu) & (runs.gpus == gpus) & (runs.frames == 81)
                & (runs.prefetch.fillna(1) == 1) & ~runs.setting.str.contains("packed")]  # fmt: skip
    runs = runs[(gpus == 1) | (runs.interconnect == path_of(path))].sort_values("started")
    found: dict[Any, dict[str, Any]] = {}
    for height, cfg in product(SIZES, (False, True)[: 2 - gpus % 2]):
        for way in _ways(known, gpus, height, cfg, interconnect, free):
            found[height, cfg, way["engine"], way["transfer"], way.pop("blocks")] = way
    for run in runs.itertuples():
        at = (run.height, run.cfg_parallel, run.engine, "bf16",
              DEFAULT_ROOM if run.engine == "stream" else 0)  # fmt: skip
        if at in found:
            found[at] |= {"needs_bytes": run.allocated_bytes, "total_s": run.denoise_s,
                          "step_s": run.step_s, "kind": "measured", "rests_on": run.file}  # fmt: skip
    layouts = ("Ulysses" if gpus > 1 else "", "CFG parallel" + " and Ulysses" * (gpus > 2))
    table = pd.DataFrame([{"height": height, "layout": layouts[cfg], **way}
                          for (height, cfg, *_), way in found.items()])  # fmt: skip
    table = table[table.needs_bytes <= free]
    as_fast = table.groupby("height").total_s.transform("min") * (1 + ALIKE)
    table["seconds"] = table.total_s.clip(lower=as_fast)
    best = table.sort_values(["height", "seconds", "needs_bytes"]).groupby("height").head(2)
    name = f"{gpus}× {gpu}" + f", {path_of(path)}" * (gpus > 1)
    place = best.groupby("height").cumcount() + 1
    return best[["height", *WAY]].assign(machine=name, place=place)


def _ways(
    known: Known, gpus: int, height: int, cfg: bool, interconnect: str, free: float
) -> Iterator[dict[str, Any]]:
    """Each engine as predicted; `stream` in next to no memory and in all that is free."""
    basis = known.base.path
    if gpus > 1 and known.base.ranks == 1:
        basis += f"; {ASSUMED[interconnect]}"

    def told(engine: str) -> dict[str, Any]:
        given = {"engine": engine, "num_gpus": gpus, "height": height, "width": SIZES[height]}
        job = Job.model_validate({"name": engine, "enable_cfg_parallel": cfg, **given})
        return predict_job(known, job, interconnect)

    stream = told("stream")
    inputs = Inputs.of(stream["inputs"])
    block, outer, most = inputs.block_bytes, inputs.outer_bytes, inputs.blocks * inputs.block_bytes
    each = [Inputs.of(row.value).activation_bytes * row.ranks / row.tokens
            for row in known.of("windows")]  # fmt: skip
    working = max(each) * stream["tokens"] / (gpus // 2 if cfg else gpus)
    held = {"resident": 2 * most, "swap": most, "fsdp": 2 * most / gpus + 2 * block,
            "layerwise": layerwise_held(inputs.blocks, 1, switch=True) * block}  # fmt: skip
    for engine, nbytes in held.items():
        one = told(engine)
        yield {"engine": engine, "transfer": "bf16", "needs_bytes": nbytes + 2 * outer + working,
               "blocks": 0, "total_s": one["total_s"], "step_s": one["step_s"],
               "kind": "predicted", "rests_on": basis}  # fmt: skip
    plain: dict[int, float] = {}
    for place, transfer in product((0, 1), ("bf16", "packed")):
        blocks = room((free - working) / 1e9, block, outer, transfer) if place else DEFAULT_ROOM
        sent = int(SENT[transfer] * block) if transfer == "packed" else None
        best = candidates(replace(inputs, transfer=transfer, packed_bytes=sent), blocks)[0]
        total = best.predicted.total(inputs.steps)
        if blocks < MIN_ROOM or best.settings.both or total > plain.get(place, total):
            continue
        plain[place] = total * (1 - GAIN)
        yield {"engine": "stream", "transfer": transfer, "blocks": blocks, "total_s": total,
               "needs_bytes": best.predicted.weights_bytes + working, "kind": "predicted",
               "step_s": best.predicted.step_s, "rests_on": basis}  # fmt: skip
