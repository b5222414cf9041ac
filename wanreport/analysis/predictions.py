"""What a job takes on more GPUs, predicted from what fewer GPUs of the same model were measured at.

With T tokens and H heads over N ranks the busiest rank has t = ⌈T/N⌉ tokens and h = ⌈H/N⌉ heads
(`ulysses.split_sizes`). One branch's windows in one block take

    pre, post   α t                linear: projections and feed-forward of its own tokens
    attend      β T² h / H         quadratic: all tokens of its own heads

with α at t and β at T interpolated between the token counts that one GPU was measured at. Both come
from windows that a plan of `stream` was made from, scaled to steps of `resident` of that length:
a probe is too short to slow a GPU's clocks. Of a longer step all that is not linear is attention.
What lies outside the blocks is linear in T and not shared out. Each visit has two all-to-alls, as
fast as on the same interconnect with fewer GPUs, or as assumed. The engines' loads lie on top by
:mod:`wanreport.planner.cost`'s formulas.

``predictions/<GPU model>-<n>gpu-<interconnect>.json`` holds such predictions, all that they were
computed from, and when: ``python -m tools.predict`` makes them before a run, and none is changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.analysis.rows import path_of
from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.planner.cost import Inputs, pass_seconds, predict
from wanreport.planner.plan import DEFAULT_ROOM, make_plan
from wanreport.records.files import FileError, read_json
from wanreport.records.record import EARLIER, RESULTS_DIRS

FOLDER, STREAM_JOB = "predictions", "params/campaign/480p-1gpu-stream.yaml"
# Of a record's machine (`measure.machine`), by the name that a prediction has for it.
INTERCONNECTS = {"nvlink": "NVLink", "host-memory": "host memory over PCIe (NCCL_P2P_DISABLE=1)"}
DTYPE, ELEMENT = "bfloat16", 2  # what all jobs to predict compute in, and its bytes
DATASHEET = {"NVIDIA H200": (450e9, 4.8e12), "NVIDIA H100 80GB HBM3": (450e9, 3.35e12)}
"""Bytes a second of NVLink, each direction, and of the GPU's own memory: NVIDIA's data sheets."""
COPIES = 11
"""Tensors of a rank's own tokens that a visit copies to pack and unpack its all-to-alls."""
ASSUMED = {"nvlink": "the data sheet's NVLink", "host-memory": "half of the link's rate",
           "swap": "rates of pageable memory"}  # fmt: skip
"""What is assumed where it was not measured. Over NVLink, copies beside all-to-alls do not touch.
Through host memory the ways out and in take turns, and copies beside them halve the rate again."""
MACHINE = ["gpu", "gpus", "interconnect", "made_at"]
TOLD = ["step_s", "overhead", "low_s", "high_s", "first_s", "switch_s", "total_s", "h2d_bytes",
        "all_to_all_bytes"]  # fmt: skip
TOLERANCE = 0.1
"""A prediction holds if the measured step is within this share of it: the rule since the first."""
JUDGED = ["job", "run", "engine", "prefetch", "cfg_parallel", "height", "tokens"]
SHORTEST = 32_760  # tokens of a video at 480p
MEASURED = ["kind", "value", "tokens", "ranks", "at", "path"]


class PredictionError(FileError):
    """What is missing for a prediction, or wrong with one; the message names the fix."""


class Known(NamedTuple):
    """What fewer GPUs of a model tell: its sizes, and all that was measured, the latest last.

    A value is, of the kind "windows", a plan's inputs; of "resident" a step's seconds, blocks and
    branches; of "pageable" bytes a second to the device and back; of "swap" the seconds that the
    first step and the switch take beyond others.
    """

    gpu: str
    model: Mapping[str, Any]
    measured: Sequence[Any]

    def of(self, kind: str, several: bool | None = None) -> list[Any]:
        """Rows of a kind, with :data:`MEASURED`; of `several` ranks or of one, if that is given."""
        rows = [row for row in self.measured if row.kind == kind]
        return [row for row in rows if several in (None, row.ranks > 1)]

    @property
    def base(self) -> Any:
        """The windows measured with the most ranks, the latest."""
        return max(self.of("windows"), key=lambda row: (row.ranks, row.at))


def runs_on(runs: pd.DataFrame, gpu: str, interconnect: str) -> pd.DataFrame:
    """Pick our runs on a GPU model, on one GPU or over just this interconnect."""
    wired = runs.machine_class.str.contains(INTERCONNECTS[interconnect], regex=False)
    return runs[(runs.gpu_model == gpu) & (runs.program == "") & ((runs.gpus == 1) | wired)]


def gather(frames: Frames, gpu: str, below: int, interconnect: str) -> Known:
    """Collect what committed runs tell of a GPU model with fewer GPUs than ``below``.

    Those are eager, in bfloat16 by Ulysses alone, the latest, and of several GPUs on the
    ``interconnect``, as long as a video if any are. Raises PredictionError without windows.
    """
    here, rows = runs_on(frames.full_scale(), gpu, interconnect), list[list[Any]]()
    here = here[(here.gpus < below) & ~here.compiled & ~here.cfg_parallel]
    here = here[here.transfer == "bf16"]  # other windows have unpacking beside them
    others = "|".join([f"/{EARLIER}/", *(f"^{folder}/" for folder in RESULTS_DIRS[1:])])
    here = here[~here.file.str.contains(others) & here.dtype.isin([DTYPE, ""])]
    for row in here.sort_values(["source", "file"], kind="stable").itertuples():
        step, values = row.step_s, {"windows": row.plan_inputs}
        if row.pageable_rates:
            values["pageable"] = [rate * 1e9 for rate in row.pageable_rates]
        if row.engine == "resident" and not row.again and step > 0:
            values["resident"] = [step, int(row.blocks), int(row.branches)]
        if row.engine == "swap" and row.switch_s > 0:
            values["swap"] = [max(spike - step, 0.0) for spike in (row.first_s, row.switch_s)]
        rows += [[kind, value, row.tokens, row.gpus, row.started, row.file]
                 for kind, value in values.items() if value]  # fmt: skip
    measured = pd.DataFrame(rows, columns=MEASURED).sort_values("at", kind="stable")
    long = measured[(measured.ranks == 1) | (measured.tokens >= SHORTEST)]
    if len(long.query("kind == 'windows' and ranks > 1")):
        measured = long
    known = Known(gpu, next(iter(here.model.dropna()), {}), [*measured.itertuples(index=False)])
    if not known.model or not known.of("windows", several=False):
        command = f"wanreport measure --results {RESULTS_DIRS[0]} {STREAM_JOB}"
        raise PredictionError(f"{gpu}: no record of stream on one GPU; on it run `{command}`")
    return known


def load(root: Path) -> list[dict[str, Any]]:
    """Read all predictions; raises FileError naming a file that is none."""
    files, fix = sorted((root / FOLDER).glob("*.json")), "restore it from git"
    found = {path: read_json(path, fix) for path in files}
    for path, content in found.items():
        if not isinstance(content, dict) or not {*MACHINE, "jobs"} <= set(content):
            raise FileError(f"{path}: is not a prediction; {fix}")
    return [*found.values()]


def judged(runs: pd.DataFrame, files: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Every prediction, beside the latest of the runs that began after it on such a machine.

    `error` is the predicted step over the measured one, less 1.
    """
    began, told = pd.to_datetime(runs.started, utc=True, format="ISO8601"), []
    runs = runs.assign(began=began).sort_values("began")
    for file in files:
        here = runs_on(runs, file["gpu"], file["interconnect"])
        here = here[here.began > pd.Timestamp(file["made_at"])]
        last = dict(zip(here.job_hash, here.run, strict=True))
        told += [{"cfg_parallel": False, **job, **{key: file[key] for key in MACHINE},
                  "job": name, "run": last.get(job["job_hash"])}
                 for name, job in file["jobs"].items()]  # fmt: skip
    table = pd.DataFrame(told, columns=[*MACHINE, *TOLD, *JUDGED])
    seen = runs.reindex(table.run)[["step_s", "overhead"]].set_axis(table.index)
    error = table.step_s / seen.step_s - 1
    return table.assign(
        interconnect=table.interconnect.map(INTERCONNECTS).map(path_of), measured_s=seen.step_s,
        predicted_s=table.pop("step_s"), predicted_overhead=table.overhead, overhead=seen.overhead,
        error=error, held=(1 / (1 + error) - 1).abs() <= TOLERANCE,
    )  # fmt: skip


def all_to_all_bytes(tokens: int, heads: int, row: int, ranks: int) -> int:
    """Bytes that the busiest rank sends or receives in a visit's two all-to-alls.

    ``row`` are the bytes of one token's head. q, k and v go out and one tensor comes back; of each
    way the fuller direction counts.
    """
    sizes = [[-(-(total - rank) // ranks) for rank in range(ranks)] for total in (tokens, heads)]
    most = max(max(t * (heads - h), (tokens - t) * h) for t, h in zip(*sizes, strict=True))
    return 4 * row * most


def predict_job(known: Known, job: Job, interconnect: str) -> dict[str, Any]:
    """Predict one job; JSON-ready. In ``low_s`` and ``high_s`` all-to-alls take no time, and twice.

    ``swap`` takes what ``resident`` does, but moves two experts at the first step and the switch.
    A pass of ``layerwise`` brings all blocks but the first, of ``fsdp`` the whole expert, 1/N of it
    over the link, of ``stream`` what its plan says. Raises PredictionError for a job of another
    kind, or if measurements are missing or contradict.
    """
    if job.dtype != DTYPE or job.compile or not job.cfg or job.vram_budget_gb is not None:
        raise PredictionError(f"{job.name}: compile, dtype, cfg, vram_budget_gb: leave them out")
    # The VAE's strides are 4 and 8, a patch is 2 latents wide.
    tokens = ((job.num_frames - 1) // 4 + 1) * (job.height // 16) * (job.width // 16)
    inputs, exchanged = _inputs(known, job, tokens, interconnect)
    # How the cost model sees an engine; `stream` as its plan would have it.
    settings = StreamSettings(shard=job.engine == "fsdp", branches_per_visit=1)
    if job.engine == "stream":
        settings = make_plan(inputs, DEFAULT_ROOM)[1]
    passes = -(-inputs.branches // settings.branches_per_visit)
    expert = inputs.blocks * inputs.block_bytes + inputs.outer_bytes
    nbytes = {
        "layerwise": (inputs.blocks - 1) * inputs.block_bytes, "fsdp": expert,
        "stream": settings.moving(inputs.blocks) * inputs.block_bytes,
    }.get(job.engine, 0)  # fmt: skip

    def step(collectives: float = 1.0, nbytes: int = nbytes) -> float:
        given = replace(inputs, collectives_s=collectives * inputs.collectives_s)
        return passes * pass_seconds(given, settings, nbytes) + inputs.other_s

    first = switch = step()
    if job.engine == "stream":
        found = predict(inputs, settings)
        first, switch = found.first_s, found.switch_s
    if job.engine == "swap":
        spikes = [row.value for row in known.of("swap")]
        spikes = spikes or [[sum(expert / rate for rate in row.value)] * 2
                            for row in known.of("pageable")]  # fmt: skip
        if not spikes:
            raise PredictionError(f"{known.gpu}: no rates of pageable memory; measure a job on it")
        first, switch = first + spikes[-1][0], switch + spikes[-1][1]
    return {
        **job.model_dump(include={"engine", "width", "height", "num_frames"}),
        "cfg_parallel": job.enable_cfg_parallel, "job_hash": job.hashes()[0], "tokens": tokens,
        "prefetch": job.prefetch(inputs.blocks) if job.engine == "layerwise" else None,
        "step_s": step(), "low_s": step(0.0), "high_s": step(2.0), "first_s": first,
        "switch_s": switch, "total_s": first + switch + max(inputs.steps - 2, 0) * step(),
        "overhead": step() / step(nbytes=0) - 1,
        "h2d_bytes": passes * -(-nbytes // (job.num_gpus if settings.shard else 1)),
        "all_to_all_bytes": inputs.branches * inputs.blocks * exchanged,
        "settings": asdict(settings) if job.engine == "stream" else None, "inputs": asdict(inputs),
    }  # fmt: skip


def _inputs(known: Known, job: Job, tokens: int, interconnect: str) -> tuple[Inputs, int]:
    """What a plan for ``job`` would be made from, and bytes of a visit's all-to-alls."""
    gpus, best, plan = job.num_gpus, known.base, Inputs(**known.base.value)
    heads, row = known.model["num_heads"], known.model["head_dim"] * ELEMENT
    # Of those that share a branch's tokens.
    number, branches = (gpus // 2, 1) if job.enable_cfg_parallel else (gpus, 2)
    windows, rest, waiting = _alone(known)
    exchanged, collectives = all_to_all_bytes(tokens, heads, row, number), 0.0
    local, sharded = plan.local, None
    if gpus > 1:
        # A collective's bytes a second, packing included or seconds for it, the share of its rate
        # that a load beside one keeps, and how much longer the collective takes then.
        if best.ranks > 1:
            rate = all_to_all_bytes(best.tokens, heads, row, best.ranks) / plan.collectives_s
            left, factor, copied = local.collective_rate / local.rate, local.collective_factor, 0.0
        elif known.gpu in DATASHEET:
            nvlink, memory = DATASHEET[known.gpu]
            copied = 2 * COPIES / memory  # each is read and written
            apart = interconnect == "nvlink"
            rate, left, factor = (nvlink, 1.0, 1.0) if apart else (local.rate / 2, 0.5, 2.0)
        else:
            where = f"stream on 2 GPUs over {INTERCONNECTS[interconnect]}"
            raise PredictionError(f"{known.gpu}: is not in DATASHEET; measure {where}")
        if number > 1:
            collectives = exchanged / rate + copied * -(-tokens // number) * heads * row
        local = replace(local, collective_rate=local.rate * left, collective_factor=factor)
        part, gathered = 1 / gpus / local.rate, (gpus - 1) / gpus / rate
        # On one link a part's copy and the gather of another take turns; on two they overlap.
        rate = 1 / (part + gathered if interconnect == "host-memory" else max(part, gathered))
        sharded = replace(local, rate=rate, collective_rate=rate * left)
    pre, attend, post = (waiting ** (number > 1) * each for each in windows(tokens, number))
    return Inputs(
        blocks=known.model["num_layers"], block_bytes=known.model["block_bytes"], ranks=gpus,
        branches=branches, outer_bytes=plan.outer_bytes, steps=job.num_inference_steps,
        link=plan.link, collectives_s=collectives, other_s=branches * rest(tokens) * tokens,
        windows_s=(pre, attend, post), local=local, sharded=sharded,
    ), exchanged  # fmt: skip


def _curve(points: Mapping[int, float]) -> Callable[[int], float]:
    """What lies between the points, linearly, and beyond them the nearest."""
    xs = sorted(points)
    return lambda x: float(np.interp(x, xs, [points[n] for n in xs]))


def _alone(known: Known) -> tuple[Callable[[int, int], list[float]], Callable[[int], float], float]:
    """What one GPU tells: windows by tokens and ranks, the rest's seconds a token, and waiting.

    That is how many times as long windows take with several GPUs, as waiting ones clock up: what
    `resident` took beside all-to-alls, where these are known, over what follows from one GPU.
    """
    alone = {row.tokens: Inputs(**row.value) for row in known.of("windows", several=False)}
    rest = _curve({n: w.other_s / w.branches / n for n, w in alone.items()})

    def visit(row: Any) -> float:
        """Seconds of one branch in one block, of a step of `resident`."""
        step, blocks, branches = row.value
        return float((step / branches - rest(row.tokens) * row.tokens) / blocks)

    visits = {row.tokens: visit(row) for row in known.of("resident", several=False)}
    factors = {n: visits[n] / sum(w.windows_s) if n in visits else 1.0 for n, w in alone.items()}
    pre, attend, post = (
        {n: factors[n] * w.windows_s[part] / n**power for n, w in alone.items()}
        for part, power in enumerate((1, 2, 1))
    )
    for n in sorted(n for n in visits if n > max(alone)):
        attend[n] = (visits[n] / n - _curve(pre)(n) - _curve(post)(n)) / n
    if wrong := [n for n, each in attend.items() if each <= 0]:
        files = ", ".join(row.path for row in known.of("resident") if row.tokens in wrong)
        raise PredictionError(f"{files}: a step of resident is too short; measure it again")
    curves, heads, waiting = [*map(_curve, (pre, attend, post))], known.model["num_heads"], 1.0

    def windows(tokens: int, ranks: int) -> list[float]:
        t, part = -(-tokens // ranks), -(-heads // ranks) / heads
        scale = ((t, t), (tokens, tokens**2 * part), (t, t))
        return [curve(at) * by for curve, (at, by) in zip(curves, scale, strict=True)]

    exchanges = {(row.tokens, row.ranks): row.value["collectives_s"] for row in known.of("windows")}
    for row in known.of("resident", several=True):
        if (at := (row.tokens, row.ranks)) in exchanges:
            waiting = (visit(row) - exchanges[at]) / sum(windows(*at))
    return windows, rest, waiting
