"""What a job takes on more GPUs, predicted from what fewer GPUs of the same model were measured at.

With T tokens and H heads over N ranks the busiest rank has t = ⌈T/N⌉ tokens and h = ⌈H/N⌉ heads
(`ulysses.split_sizes`). One branch's windows in one block take

    pre, post   α t                linear: projections and feed-forward of its own tokens
    attend      β T² h / H         quadratic: all tokens of its own heads

with α at t and β at T interpolated between the token counts that were measured, and constant beyond
them. Both come from windows that a plan of `stream` was made from (:class:`wanreport.cost.Inputs`),
scaled to steps of `resident` on one GPU where there are some of that length, as a probe is too
short to slow a GPU's clocks as a job does. Steps of other lengths add points: what one has beyond
its linear part is attention, and of one shorter than all windows, where attention is little, what
it has beyond that is linear. What lies outside the blocks is linear in T and is not shared out.

Between the windows of each visit lie two all-to-alls; :func:`all_to_all_bytes` follows from the
shape. Their speed is that of the same interconnect with fewer GPUs, or assumed, and then named so.
The engines' loads lie on top by :mod:`wanreport.cost`'s formulas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .answers import clean_budget, engine_name, get, is_full_scale, iterations, ranks
from .campaigns import FIRST, CampaignError, find_campaigns, step_ms
from .cost import Inputs, StreamSettings, pass_seconds, predict
from .job import Job
from .plan import DEFAULT_ROOM, make_plan
from .record import RESULTS_DIRS, RecordError, find_records

INTERCONNECTS = {"nvlink": "NVLink", "host-memory": "host memory over PCIe (NCCL_P2P_DISABLE=1)"}
"""Of a record's machine (`measure.machine`), by the name that a prediction has for it."""

DATASHEET = {"NVIDIA H200": (450e9, 4.8e12), "NVIDIA H100 80GB HBM3": (450e9, 3.35e12)}
"""Bytes a second of NVLink, each direction, and of the GPU's own memory: NVIDIA's data sheets."""

DTYPE, ELEMENT = "bfloat16", 2
"""What all jobs to predict compute in, and its bytes."""

STREAM_JOB = "params/campaign/480p-1gpu-stream.yaml"


class PredictionError(RecordError):
    """What is missing for a prediction, or wrong with one; the message names the mend."""


@dataclass(frozen=True)
class Windows:
    """What a plan was made from, at so many tokens and ranks."""

    tokens: int
    ranks: int
    inputs: Inputs


@dataclass(frozen=True)
class Step:
    """Seconds of a steady step of `resident` on one GPU, of so many blocks and branches."""

    tokens: int
    blocks: int
    branches: int
    seconds: float


@dataclass(frozen=True)
class Pageable:
    """Bytes a second to the device and back, of pageable memory with all ranks copying."""

    h2d: float
    d2h: float


@dataclass(frozen=True)
class Spikes:
    """Seconds that `swap` takes in a first step and in a switch beyond a steady one."""

    first_s: float
    switch_s: float


Measured = TypeVar("Measured", Windows, Step, Pageable, Spikes)


@dataclass
class Known:
    """What fewer GPUs of a model tell: its sizes, and what was measured, the latest last."""

    gpu: str
    model: Mapping[str, Any] = field(default_factory=dict)
    measured: list[tuple[Any, str, str]] = field(default_factory=list)

    def note(self, path: Path, root: Path, what: object) -> None:
        """Keep a measured value with its file's path and SHA-256."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.measured.append((what, path.relative_to(root).as_posix(), digest))

    def of(self, kind: type[Measured]) -> list[Measured]:
        """All that was measured of a kind."""
        return [what for what, _, _ in self.measured if isinstance(what, kind)]

    def path(self, wanted: object) -> str:
        """The file that a measured value is from."""
        return next(path for what, path, _ in self.measured if what is wanted)

    def sources(self) -> list[dict[str, Any]]:
        """Everything measured with the file it is from, JSON-ready."""
        return [
            {"path": path, "sha256": digest, "kind": type(what).__name__.lower(), **asdict(what)}
            for what, path, digest in self.measured
        ]


def tokens_of(job: Job) -> int:
    """Length of a video's sequence: the VAE's strides are 4 and 8, a patch is 2 latents wide."""
    return ((job.num_frames - 1) // 4 + 1) * (job.height // 16) * (job.width // 16)


def all_to_all_bytes(tokens: int, heads: int, row: int, ranks: int) -> int:
    """Bytes that the busiest rank sends or receives in a visit's two all-to-alls.

    ``row`` are the bytes of one token's head. To its heads a rank brings q, k and v of all other
    tokens, and gives its tokens' other heads; the way back moves one tensor (`ulysses.to_heads`,
    `to_tokens`). Of each all-to-all the fuller direction counts; links carry both at once.
    """
    sizes = [[-(-(total - rank) // ranks) for rank in range(ranks)] for total in (tokens, heads)]
    return (
        4 * row * max(max(t * (heads - h), (tokens - t) * h) for t, h in zip(*sizes, strict=True))
    )


def gather(root: Path, gpu: str, below: int, interconnect: str) -> Known:
    """Read what committed records tell of a GPU model with fewer GPUs than ``below``.

    Rehearsals tell nothing, nor do compiled jobs; several GPUs only on the ``interconnect``.

    Raises
    ------
    PredictionError
        Naming what is missing, or a campaign's file that cannot be read.
    """
    known, folder = Known(gpu), root / RESULTS_DIRS[0]

    def fits(machine: Mapping[str, Any], number: int) -> bool:
        wire = number == 1 or machine.get("interconnect") == INTERCONNECTS[interconnect]
        return machine.get("gpu_name") == gpu and number < below and wire

    try:
        campaigns = find_campaigns(folder)
    except CampaignError as error:
        raise PredictionError(str(error)) from None
    for path, report in campaigns:
        said, number = report["settings"], report["settings"]["ranks"]
        timed = said["device"] == "cuda" and not said["compile"]
        for row in report["rows"] if timed and fits(report["machine"], number) else ():
            tokens, middle = row["tokens"], step_ms(row).median
            plan = row["ranks"][0]["plan"] if row["ranks"] else None
            if plan:
                known.note(path, root, Windows(tokens, number, Inputs.of(plan["inputs"])))
            elif row["label"] == FIRST and number == 1 and middle:
                step = Step(tokens, said["blocks"], said["branches"], middle / 1e3)
                known.note(path, root, step)
    for path, record in sorted(find_records(folder), key=lambda found: found[1]["started_at"]):
        number, job = ranks(record), record["job"]
        if not is_full_scale(record) or not fits(record["machine"], number):
            continue
        if record["status"] != "ok" or job["compile"] or job["dtype"] != DTYPE:
            continue
        known.model = record["model"]
        tokens = record["model"]["tokens"]
        if stored := get(record, "engine", "plan", "inputs"):
            known.note(path, root, Windows(tokens, number, Inputs.of(stored)))
        if link := get(record, "machine", "link"):
            rates = (link[f"{way}_pageable_together_gb_s"] * 1e9 for way in ("h2d", "d2h"))
            known.note(path, root, Pageable(*rates))
        spent = clean_budget(record) if iterations(record, "clean") else None
        if spent is None or spent.steady.median is None:
            continue
        middle = spent.steady.median
        if engine_name(record) == "resident" and number == 1:
            blocks, branches = record["model"]["num_layers"], 1 + bool(job["cfg"])
            known.note(path, root, Step(tokens, blocks, branches, middle))
        if engine_name(record) == "swap" and spent.switch is not None:
            more = (max(seconds - middle, 0.0) for seconds in (spent.first, spent.switch))
            known.note(path, root, Spikes(*more))
    if not known.of(Windows) or not known.model:
        raise PredictionError(
            f"{gpu}: no committed record of stream with fewer GPUs says how long"
            f" windows take; on it run `wanreport measure --results {RESULTS_DIRS[0]} {STREAM_JOB}`"
        )
    return known


# From fewer GPUs to more -------------------------------------------------------------------------


def _curve(points: Mapping[int, float]) -> Callable[[int], float]:
    """What lies between the points, linearly, and beyond them the nearest."""
    known = sorted(points.items())
    xs, ys = [x for x, _ in known], [y for _, y in known]
    return lambda x: float(np.interp(x, xs, ys))


def inputs_for(known: Known, job: Job, interconnect: str) -> tuple[Inputs, list[str]]:
    """What a plan for ``job`` would be made from, as its ranks are expected to measure it.

    Returns
    -------
    The inputs, and in words what they come from and what was assumed.

    Raises
    ------
    PredictionError
        If nothing tells the interconnect's speed, or measured steps contradict measured windows.
    """
    tokens, number, model = tokens_of(job), job.num_gpus, known.model
    heads, row = model["num_heads"], model["head_dim"] * ELEMENT
    measured, steps = known.of(Windows), {step.tokens: step for step in known.of(Step)}
    rest = _curve({w.tokens: w.inputs.other_s / w.inputs.branches / w.tokens for w in measured})
    visits = {
        n: (step.seconds / step.branches - rest(n) * n) / step.blocks for n, step in steps.items()
    }
    pre, attend, post, words = {}, {}, {}, []
    for w in measured:
        n, t, h = w.tokens, -(-w.tokens // w.ranks), -(-heads // w.ranks)
        scale = 1.0
        if w.ranks == 1 and n in visits:
            scale = visits[n] / sum(w.inputs.windows_s)
            words.append(f"windows at {n:,} tokens: times {scale:.3f}, as resident's steps there")
        first, second, third = (scale * seconds for seconds in w.inputs.windows_s)
        pre[t], attend[n], post[t] = first / t, second * heads / h / n**2, third / t
    shortest, seen = min(pre), set(attend)
    for n in sorted(set(visits) - seen):
        if n < shortest:
            share = (visits[n] / n - attend[min(seen)] * n) / (pre[shortest] + post[shortest])
            pre[n], post[n] = share * pre[shortest], share * post[shortest]
        else:
            attend[n] = (visits[n] / n - _curve(pre)(n) - _curve(post)(n)) / n
    for n, step in steps.items():
        if not min(pre.get(n, 1), attend.get(n, 1)) > 0:
            raise PredictionError(
                f"{known.gpu}: a step of resident at {n:,} tokens ({known.path(step)}) is too short"
                " beside what stream measured; measure one of them again"
            )
    t, h = -(-tokens // number), -(-heads // number)
    attended = _curve(attend)(tokens) * tokens**2 * h / heads
    windows = (_curve(pre)(t) * t, attended, _curve(post)(t) * t)
    words += [_from("pre and post", list(pre), t), _from("attention", list(attend), tokens)]
    base = max(reversed(measured), key=lambda w: w.ranks)  # of several the latest
    local, branches = base.inputs.local, 1 + job.cfg
    collectives, sharded = 0.0, None
    if number > 1:
        wire, moved = _wire(known, interconnect), all_to_all_bytes(tokens, heads, row, number)
        collectives = moved / wire.rate + wire.copied * t * heads * row
        local = replace(local, collective_rate=local.rate * wire.left,
                        collective_factor=wire.factor)  # fmt: skip
        part, gathered = 1 / number / local.rate, (number - 1) / number / wire.rate
        # On one link a part's copy and the gather of another take turns; on two they overlap.
        rate = 1 / (part + gathered if interconnect == "host-memory" else max(part, gathered))
        sharded = replace(local, rate=rate, collective_rate=rate * wire.left)
        words += wire.words
    return Inputs(
        blocks=model["num_layers"],
        block_bytes=model["block_bytes"],
        outer_bytes=model["outer_bytes"],
        ranks=number,
        branches=branches,
        steps=job.num_inference_steps,
        windows_s=windows,
        collectives_s=collectives,
        other_s=branches * rest(tokens) * tokens,
        link=base.inputs.link,
        local=local,
        sharded=sharded,
    ), words


def _from(what: str, at: list[int], wanted: int) -> str:
    """Say whether a cost was measured at this many tokens, or follows from others."""
    if wanted in at:
        return f"{what}: measured at {wanted:,} tokens"
    below, above = [n for n in at if n < wanted], [n for n in at if n > wanted]
    words = " and ".join(f"{n:,}" for n in (max(below, default=0), min(above, default=0)) if n)
    how = "interpolated" if below and above else "scaled"
    return f"{what}: {how} to {wanted:,} tokens from {words}"


@dataclass(frozen=True)
class Wire:
    """An interconnect.

    Attributes
    ----------
    rate, copied
        Bytes a second of a collective, and its seconds a byte of a rank's own tokens beside that.
    left, factor
        What a load beside a collective keeps of its rate, and how much longer that takes then.
    words
        What this rests on.
    """

    rate: float
    copied: float
    left: float
    factor: float
    words: list[str]


def _wire(known: Known, interconnect: str) -> Wire:
    """As measured with the most ranks, else as assumed.

    Packing a rank's q, k, v and unpacking what comes back copies 8 tensors within the device
    (`ulysses.to_heads`: stack and cat of 3 each; `to_tokens`: reshape and cat), each read and
    written. A measured rate holds that already.
    """
    several = [w for w in known.of(Windows) if w.ranks > 1]
    if several:
        best = max(reversed(several), key=lambda w: w.ranks)
        row = known.model["head_dim"] * ELEMENT
        moved = all_to_all_bytes(best.tokens, known.model["num_heads"], row, best.ranks)
        rate, route = moved / best.inputs.collectives_s, best.inputs.local
        left = route.collective_rate / route.rate
        said = f"all-to-alls: {rate / 1e9:.3g} GB/s, measured with {best.ranks} GPUs"
        return Wire(rate, 0.0, left, route.collective_factor, [said])
    if known.gpu not in DATASHEET:
        raise PredictionError(
            f"{known.gpu}: nothing tells how fast its GPUs exchange bytes; it needs a committed"
            f" record of stream on 2 of them over {INTERCONNECTS[interconnect]}, or an entry in"
            " wanreport.scaling.DATASHEET"
        )
    nvlink, memory = DATASHEET[known.gpu]
    copied = 2 * 8 / memory
    packing = f"packing: assumed, 8 copies at the data sheet's {memory / 1e12:g} TB/s"
    if interconnect == "nvlink":
        said = f"all-to-alls: assumed, the data sheet's {nvlink / 1e9:g} GB/s each way"
        apart = "copies beside collectives: assumed not to touch, on links of their own"
        return Wire(nvlink, copied, 1.0, 1.0, [said, packing, apart])
    half = known.of(Windows)[-1].inputs.local.rate / 2
    said = (
        f"all-to-alls: assumed, {half / 1e9:.3g} GB/s, half the measured link, as each byte passes"
        " it into host memory and out again"
    )
    apart = "copies beside collectives: assumed, each has half of the link"
    return Wire(half, copied, 0.5, 2.0, [said, packing, apart])


# Engines -----------------------------------------------------------------------------------------


def predict_job(known: Known, job: Job, interconnect: str) -> dict[str, Any]:
    """Predict one job; JSON-ready.

    ``resident`` takes what it computes, and so does ``swap`` but for the first step and the switch,
    where one expert goes to pageable memory and the other comes from there. ``layerwise`` brings
    all blocks but the first in each branch's pass, ``fsdp`` the whole expert, 1/N of it over the
    link and the rest from the other ranks; ``stream`` what its plan says. The range of the step is
    that of collectives that take no time at all, and twice the time.

    Returns
    -------
    Seconds (``step_s``, ``low_s``, ``high_s``, ``first_s``, ``switch_s``, ``total_s`` of the whole
    schedule), ``overhead`` over resident, bytes of a step that a rank brings from the host
    (``h2d_bytes``) and exchanges in all-to-alls (``all_to_all_bytes``), ``settings`` of `stream`,
    the ``inputs`` and where they come ``from``.
    """
    if job.dtype != DTYPE or job.compile or not job.cfg or job.vram_budget_gb is not None:
        raise PredictionError(
            f"{job.name}: only jobs in {DTYPE} and with guidance, not compiled and without a"
            " memory budget, are predicted; leave this one out"
        )
    inputs, words = inputs_for(known, job, interconnect)
    settings = _settings(job, inputs)
    step, first, switch = _seconds(known, job, inputs, settings)
    low, high = (
        _seconds(known, job, replace(inputs, collectives_s=inputs.collectives_s * k), settings)[0]
        for k in (0, 2)
    )
    if job.engine == "swap":
        words.append(_spikes(known, inputs)[1])
    resident = _seconds(known, job.model_copy(update={"engine": "resident"}), inputs, settings)[0]
    row, heads = known.model["head_dim"] * ELEMENT, known.model["num_heads"]
    visits = inputs.branches * inputs.blocks
    return {
        "engine": job.engine,
        "prefetch": job.prefetch(inputs.blocks) if job.engine == "layerwise" else None,
        "job_hash": job.hashes()[0],
        "width": job.width,
        "height": job.height,
        "num_frames": job.num_frames,
        "tokens": tokens_of(job),
        "step_s": step,
        "low_s": low,
        "high_s": high,
        "first_s": first,
        "switch_s": switch,
        "total_s": first + switch + max(inputs.steps - 2, 0) * step,
        "overhead": step / resident - 1,
        "h2d_bytes": _brought(inputs, job.engine, settings),
        "all_to_all_bytes": visits
        * all_to_all_bytes(tokens_of(job), heads, row, job.num_gpus)
        * (job.num_gpus > 1),
        "settings": asdict(settings) if job.engine == "stream" else None,
        "inputs": asdict(inputs),
        "from": words,
    }


def _settings(job: Job, inputs: Inputs) -> StreamSettings:
    """How the cost model sees an engine; `stream` as its plan would have it."""
    if job.engine == "stream":
        return make_plan(inputs, DEFAULT_ROOM)[1]
    return StreamSettings(shard=job.engine == "fsdp", branches_per_visit=1)


def _passes(inputs: Inputs, settings: StreamSettings) -> int:
    return inputs.branches // min(settings.branches_per_visit, inputs.branches)


def _per_pass(inputs: Inputs, engine: str, settings: StreamSettings) -> int:
    """Bytes that all ranks together bring for one copy of the weights, in a pass."""
    return {
        "layerwise": (inputs.blocks - 1) * inputs.block_bytes,
        "fsdp": inputs.blocks * inputs.block_bytes + inputs.outer_bytes,
        "stream": settings.moving(inputs.blocks) * inputs.block_bytes,
    }.get(engine, 0)


def _brought(inputs: Inputs, engine: str, settings: StreamSettings) -> int:
    """Bytes that each rank copies from the host in a steady step."""
    share = inputs.ranks if settings.shard else 1
    return _passes(inputs, settings) * -(-_per_pass(inputs, engine, settings) // share)


def _seconds(
    known: Known, job: Job, inputs: Inputs, settings: StreamSettings
) -> tuple[float, float, float]:
    """A steady step, the first one and the switch."""
    if job.engine == "stream":
        found = predict(inputs, settings)
        return found.step_s, found.first_s, found.switch_s
    nbytes = _per_pass(inputs, job.engine, settings)
    step = _passes(inputs, settings) * pass_seconds(inputs, settings, nbytes) + inputs.other_s
    first, switch = _spikes(known, inputs)[0] if job.engine == "swap" else (0.0, 0.0)
    return step, step + first, step + switch


def _spikes(known: Known, inputs: Inputs) -> tuple[tuple[float, float], str]:
    """What `swap` adds to the first step and to the switch, in seconds, and where that is from."""
    if spikes := known.of(Spikes):
        said = "move of an expert: as measured with fewer GPUs"
        return (spikes[-1].first_s, spikes[-1].switch_s), said
    if not (rates := known.of(Pageable)):
        raise PredictionError(
            f"{known.gpu}: no committed record has its link's bandwidth to pageable memory; measure"
            " any job on it again"
        )
    expert = inputs.blocks * inputs.block_bytes + inputs.outer_bytes
    both = expert / rates[-1].h2d + expert / rates[-1].d2h
    said = "move of an expert: assumed, as fast for all GPUs at once as a pageable copy for fewer"
    return (both, both), said
