"""What to run on a machine: layout, engine, transfer and memory budget, and the runner-up.

Every way to make a video of 81 frames that fits on the GPUs counts with the seconds of its whole
schedule, without decoding: as measured on such a machine where it was, else as predicted by
:mod:`wanreport.analysis.predictions` and the planner, relative to `resident` where that was
measured. Whatever is within :data:`ALIKE` of the fastest is as fast. Of that goes first what was
measured, and then the way that needs the least memory.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis import predictions as predicted
from wanreport.analysis.compare import overhead, plain_jobs
from wanreport.analysis.frames import Frames, load
from wanreport.analysis.rows import CFG_PARALLEL, path_of
from wanreport.jobs.job import Job
from wanreport.jobs.settings import SENT, layerwise_held
from wanreport.planner.cost import Inputs
from wanreport.planner.plan import DEFAULT_ROOM, MIN_ROOM, candidates, room
from wanreport.records.record import RESULTS_DIRS
from wanreport.words import gigabytes, seconds

SIZES = {480: 832, 720: 1280}
ALIKE = 0.01  # runs of one job on other boards differ by more
GAIN = 0.005  # packed blocks must bring more, for what unpacking takes from computing
USABLE = 0.95  # of a GPU's memory; the rest is CUDA's, NCCL's or between allocations
KEY = ["height", "cfg", "engine", "transfer", "blocks"]
VALUES = ["needs_bytes", "total_s", "step_s", "kind", "rests_on"]


def recommend(
    frames: Frames, gpu: str, gpus: int, wire: str, vram_gb: float | None = None
) -> pd.DataFrame:
    """Choose for a number of GPUs of a model; each has ``vram_gb``, by default the model's memory.

    Two rows a `height`, the better one first, with `place`, `layout`, `engine`, `transfer` and
    :data:`VALUES`; ``needs_bytes``, all that a way takes on the device, is the budget to give.
    Raises PredictionError where measurements are missing.
    """
    known = predicted.gather(frames, gpu, gpus + 1, wire)
    memory = frames.runs.gpu_memory_bytes[frames.runs.gpu_model == gpu].max()
    free = USABLE * (memory if vram_gb is None else vram_gb * 1e9)
    assumed = f"; {predicted.ASSUMED[wire]}" * (gpus > 1 and known.base.ranks == 1)
    ways = [(height, cfg, *way, "predicted", known.base.path + assumed)
            for height, cfg in product(SIZES, (False, True)[: 2 - gpus % 2])
            for way in _ways(known, gpus, height, cfg, wire, free)]  # fmt: skip
    table = pd.DataFrame(ways, columns=KEY + VALUES).set_index(KEY)
    ran, path = plain_jobs(overhead(frames), layouts=True), path_of(predicted.INTERCONNECTS[wire])
    ran = ran[(ran.gpu_model == gpu) & (ran.gpus == gpus) & ran.interconnect.isin(["", path])]
    ran = ran[ran.frames == 81].sort_values("started")
    seen = ran.assign(
        cfg=ran.cfg_parallel, blocks=DEFAULT_ROOM * (ran.engine == "stream"), kind="measured",
        needs_bytes=ran.allocated_bytes, total_s=ran.denoise_s, rests_on=ran.file,
    ).astype({"height": int}).drop_duplicates(KEY, keep="last").set_index(KEY)[VALUES]  # fmt: skip
    seen = seen[seen.index.isin(table.index)]
    for at, row in seen.query("engine == 'resident'").iterrows():
        # The others cost of it what was predicted.
        times, others = ["total_s", "step_s"], (*at[:2], slice(None))
        table.loc[others, times] *= (row[times] / table.loc[at, times]).to_numpy(float)
        table.loc[others, "rests_on"] += f"; {row.rests_on}"
    table.loc[seen.index] = seen
    table = table[table.needs_bytes <= free].reset_index()
    as_fast = table.groupby("height").total_s.transform("min") * (1 + ALIKE)
    table = table.assign(rank=table.total_s.clip(lower=as_fast)).sort_values(
        ["height", "rank", "kind", "needs_bytes"], kind="stable"
    ).drop_duplicates(["height", "cfg", "engine", "transfer"])  # fmt: skip
    table = table.groupby("height").head(2).reset_index(drop=True)
    layouts = {False: "Ulysses" if gpus > 1 else "one GPU",
               True: CFG_PARALLEL + " and Ulysses" * (gpus > 2)}  # fmt: skip
    return table.assign(layout=table.cfg.map(layouts), place=table.groupby("height").cumcount() + 1)


def _ways(
    known: predicted.Known, gpus: int, height: int, cfg: bool, wire: str, free: float
) -> Iterator[tuple[Any, ...]]:
    """Engine, transfer, room in blocks, bytes on the device, seconds of a video and of a step.

    `stream` has next to no memory, or all that is free.
    """
    asked = {"num_gpus": gpus, "height": height, "width": SIZES[height], "enable_cfg_parallel": cfg}
    jobs = [Job.model_validate({"name": engine, "engine": engine, **asked})
            for engine in ("stream", "resident", "layerwise", "swap", "fsdp")]  # fmt: skip
    told = {job.name: predicted.predict_job(known, job, wire) for job in jobs}
    inputs = Inputs(**told["stream"]["inputs"])
    block, outer = inputs.block_bytes, inputs.outer_bytes
    each = [Inputs(**row.value).activation_bytes * row.ranks / row.tokens
            for row in known.of("windows")]  # fmt: skip
    working = max(each) * told["stream"]["tokens"] / (gpus // 2 if cfg else gpus)
    for budget in (None, (free - working) / 1e9):
        least = inf
        for transfer in ("bf16", "packed"):
            blocks = room(budget, block, outer, transfer)
            sent = int(SENT[transfer] * block) if transfer == "packed" else None
            best = candidates(replace(inputs, transfer=transfer, packed_bytes=sent), blocks)[0]
            total = best.predicted.total(inputs.steps)
            if blocks >= MIN_ROOM and not best.settings.both and total < least:
                needs = best.predicted.weights_bytes + working
                yield "stream", transfer, blocks, needs, total, best.predicted.step_s
            least = total * (1 - GAIN)
    expert = inputs.blocks * block
    held = {"resident": 2 * expert, "swap": expert, "fsdp": 2 * expert / gpus + 2 * block,
            "layerwise": layerwise_held(inputs.blocks, 1, switch=True) * block}  # fmt: skip
    for engine, nbytes in held.items():
        one = told[engine]
        yield engine, "bf16", 0, nbytes + 2 * outer + working, one["total_s"], one["step_s"]


def run(root: Path, gpus: int, vram_gb: float | None) -> int:
    """Print what to run on each GPU model and interconnect; 1 where any is missing."""
    found, problems = load(RESULTS_DIRS, root), []
    models = sorted({*found.full_scale().gpu_model})
    for gpu, wire in product(models, [*predicted.INTERCONNECTS][: 1 + (gpus > 1)]):
        try:
            ways = recommend(found, gpu, gpus, wire, vram_gb)
        except predicted.PredictionError as error:
            problems.append(str(error))
            continue
        where = f"{gpus}× {gpu}, {wire}" if gpus > 1 else gpu
        problems += [f"{where}: {height}p: nothing fits; give more GPUs, or more memory of each"
                     for height in SIZES if height not in set(ways.height)]  # fmt: skip
        if len(ways):
            columns = ["height", "place", "layout", "engine", "transfer", *VALUES]
            written = {"total_s": seconds, "step_s": seconds, "needs_bytes": gigabytes}
            print(where, ways[columns].to_string(index=False, formatters=written), sep="\n")
    if not models:
        problems.append(f"no records; on a GPU run: wanreport measure {predicted.STREAM_JOB}")
    print(*dict.fromkeys(problems), sep="\n", end="\n" * bool(problems), file=sys.stderr)
    return int(bool(problems))
