"""What a job takes on more GPUs, predicted from what fewer GPUs of the same model were measured at.

With T tokens and H heads over N ranks the busiest rank has t = ⌈T/N⌉ tokens and h = ⌈H/N⌉ heads
(`ulysses.split_sizes`). One branch's windows in one block take

    pre, post   α t                linear: projections and feed-forward of its own tokens
    attend      β T² h / H         quadratic: all tokens of its own heads

with α at t and β at T interpolated between the token counts that one GPU was measured at, and
constant beyond them. Both come from windows that a plan of `stream` was made from
(:class:`~wanreport.planner.cost.Inputs`), scaled to steps of `resident` of the same length where
there are some: a probe is too short to slow a GPU's clocks as a job does. Of a longer step all that
is not linear is attention. What lies outside the blocks is linear in T and not shared out.

Between the windows of each visit lie two all-to-alls; :func:`all_to_all_bytes` follows from the
shape. Their speed is that of the same interconnect with fewer GPUs, or assumed, and then named so.
The engines' loads lie on top by :mod:`wanreport.planner.cost`'s formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wanreport.analysis.sources import DTYPE, INTERCONNECTS, Known, PredictionError
from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.planner.cost import Inputs, pass_seconds, predict
from wanreport.planner.plan import DEFAULT_ROOM, make_plan
from wanreport.words import counted

DATASHEET = {"NVIDIA H200": (450e9, 4.8e12), "NVIDIA H100 80GB HBM3": (450e9, 3.35e12)}
"""Bytes a second of NVLink, each direction, and of the GPU's own memory: NVIDIA's data sheets."""

ELEMENT = 2  # bytes of what all jobs to predict compute in

COPIES = 11
"""Tensors of a rank's own tokens that a visit copies to pack and unpack its all-to-alls:
q, k and v by stack, reshape and cat (`ulysses.to_heads`); reshape and cat (`to_tokens`)."""


def tokens_of(job: Job) -> int:
    """Length of a video's sequence: the VAE's strides are 4 and 8, a patch is 2 latents wide."""
    return ((job.num_frames - 1) // 4 + 1) * (job.height // 16) * (job.width // 16)


def sharers(job: Job) -> int:
    """Number of GPUs that share a branch's tokens: half of them under CFG parallelism."""
    return job.num_gpus // 2 if job.enable_cfg_parallel else job.num_gpus


def all_to_all_bytes(tokens: int, heads: int, row: int, ranks: int) -> int:
    """Bytes that the busiest rank sends or receives in a visit's two all-to-alls.

    ``row`` are the bytes of one token's head. To its heads a rank brings q, k and v of all other
    tokens, and gives its tokens' other heads; the way back moves one tensor (`ulysses.to_heads`,
    `to_tokens`). Of each all-to-all the fuller direction counts.
    """
    sizes = [[-(-(total - rank) // ranks) for rank in range(ranks)] for total in (tokens, heads)]
    most = max(max(t * (heads - h), (tokens - t) * h) for t, h in zip(*sizes, strict=True))
    return 4 * row * most


Windows = Callable[[int, int], tuple[float, float, float]]
"""Seconds of one branch's windows in one block, (pre, attend, post), by tokens and ranks."""

# From fewer GPUs to more -------------------------------------------------------------------------


def _curve(points: Mapping[int, float]) -> Callable[[int], float]:
    """What lies between the points, linearly, and beyond them the nearest."""
    xs = sorted(points)
    return lambda x: float(np.interp(x, xs, [points[n] for n in xs]))


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
    tokens, gpus, model = tokens_of(job), job.num_gpus, known.model
    number = sharers(job)
    heads, row = model["num_heads"], model["head_dim"] * ELEMENT
    windows, rest, words = _alone(known, tokens, number)
    waiting, said = _waiting(known, windows, rest) if number > 1 else (1.0, [])
    words += said
    base = max(known.of("windows"), key=lambda source: (source.ranks, source.at))
    local, branches = base.value.local, 1 + (job.cfg and not job.enable_cfg_parallel)
    at_once = f"measured with {counted(base.ranks, 'GPU')} copying"
    at_once += f", assumed for {gpus} at once" if gpus > base.ranks else ""
    words.append(f"weights: {local.rate / 1e9:.3g} GB/s to each GPU, {at_once}")
    collectives, sharded = 0.0, None
    if gpus > 1:
        wire = _wire(known, interconnect, local.rate)
        moved = all_to_all_bytes(tokens, heads, row, number)
        packed = wire.copied if number > 1 else 0.0
        collectives = moved / wire.rate + packed * -(-tokens // number) * heads * row
        local = replace(local, collective_rate=local.rate * wire.left,
                        collective_factor=wire.factor)  # fmt: skip
        part, gathered = 1 / gpus / local.rate, (gpus - 1) / gpus / wire.rate
        # On one link a part's copy and the gather of another take turns; on two they overlap.
        rate = 1 / (part + gathered if interconnect == "host-memory" else max(part, gathered))
        sharded = replace(local, rate=rate, collective_rate=rate * wire.left)
        words += wire.words
    pre, attend, post = windows(tokens, number)
    return Inputs(
        blocks=model["num_layers"],
        block_bytes=model["block_bytes"],
        outer_bytes=model["outer_bytes"],
        ranks=gpus,
        branches=branches,
        steps=job.num_inference_steps,
        windows_s=(waiting * pre, waiting * attend, waiting * post),
        collectives_s=collectives,
        other_s=branches * rest(tokens) * tokens,
        link=base.value.link,
        local=local,
        sharded=sharded,
    ), words


def _alone(
    known: Known, tokens: int, number: int
) -> tuple[Windows, Callable[[int], float], list[str]]:
    """What one GPU tells: the length of windows, the rest's seconds a token, and in words how."""
    alone, heads = known.alone, known.model["num_heads"]
    rest = _curve({n: w.other_s / w.branches / n for n, w in alone.items()})
    visits = {}  # seconds of one branch in one block
    for source in known.of("resident"):
        (step, blocks, branches), n = source.value, source.tokens
        if source.ranks == 1:
            visits[n] = (step / branches - rest(n) * n) / blocks
    pre, attend, post, factors = {}, {}, {}, {}
    for n, w in alone.items():
        factor = visits[n] / sum(w.windows_s) if n in visits else 1.0
        pre[n], attend[n], post[n] = (
            factor * s / n**p for s, p in zip(w.windows_s, (1, 2, 1), strict=True)
        )
        if n in visits:
            factors[n] = factor
    for n in sorted(n for n in visits if n > max(alone)):
        attend[n] = (visits[n] / n - _curve(pre)(n) - _curve(post)(n)) / n
    if wrong := [n for n, each in attend.items() if each <= 0]:
        files = ", ".join(s.path for s in known.of("resident") if s.tokens in wrong)
        raise PredictionError(
            f"{known.gpu}: a step of resident at {wrong[0]:,} tokens ({files}) is too short beside"
            " what stream measured; measure one of them again"
        )

    def windows(tokens: int, ranks: int) -> tuple[float, float, float]:
        t, h = -(-tokens // ranks), -(-heads // ranks)
        attended = _curve(attend)(tokens) * tokens**2 * h / heads
        return _curve(pre)(t) * t, attended, _curve(post)(t) * t

    t = -(-tokens // number)
    words = [_from("pre and post", list(pre), t), _from("attention", list(attend), tokens)]
    if factors:
        times = " to ".join(dict.fromkeys(f"{f(factors.values()):.3f}" for f in (min, max)))
        at = _ends(factors, " to ")
        words.append(f"windows at {at} tokens: times {times}, as resident's steps")
    return windows, rest, words


def _waiting(
    known: Known, windows: Windows, rest: Callable[[int], float]
) -> tuple[float, list[str]]:
    """How many times as long windows take with several GPUs: waiting ones clock up.

    It is what `resident` took beside all-to-alls over what follows from one GPU, in the latest run
    whose all-to-alls are known; 1 without one.
    """
    exchanges = {(s.tokens, s.ranks): s.value.collectives_s for s in known.of("windows")}
    found = [s for s in known.of("resident") if s.ranks > 1 and (s.tokens, s.ranks) in exchanges]
    if not found:
        return 1.0, []
    (step, blocks, branches), at = found[-1].value, (found[-1].tokens, found[-1].ranks)
    visit = (step / branches - rest(at[0]) * at[0]) / blocks - exchanges[at]
    factor = visit / sum(windows(*at))
    return factor, [f"windows beside all-to-alls: times {factor:.3f}, as with {at[1]} GPUs"]


def _ends(numbers: Iterable[int], word: str) -> str:
    """The least and the largest number, if they are two."""
    return word.join(dict.fromkeys(f"{pick(numbers):,}" for pick in (min, max)))


def _from(what: str, at: list[int], wanted: int) -> str:
    """Say whether a cost was measured at this many tokens, or follows from others."""
    if wanted in at:
        return f"{what}: measured at {wanted:,} tokens"
    near = [*sorted(n for n in at if n < wanted)[-1:], *sorted(n for n in at if n > wanted)[:1]]
    how = "scaled" if len(near) == 1 else "interpolated"
    return f"{what}: {how} to {wanted:,} tokens from {_ends(near, ' and ')}"


@dataclass(frozen=True)
class Wire:
    """An interconnect: what it is like, and in words what that rests on."""

    rate: float  # bytes a second of a collective
    copied: float  # seconds a byte of a rank's own tokens, packed and unpacked, beside that
    left: float  # share of its rate that a load beside a collective keeps
    factor: float  # how much longer the collective takes then
    words: list[str]


def _wire(known: Known, interconnect: str, link: float) -> Wire:
    """As measured with the most ranks, packing included, else as assumed."""
    several = [source for source in known.of("windows") if source.ranks > 1]
    if several:
        best = max(several, key=lambda source: (source.ranks, source.at))
        row = known.model["head_dim"] * ELEMENT
        moved = all_to_all_bytes(best.tokens, known.model["num_heads"], row, best.ranks)
        rate, route = moved / best.value.collectives_s, best.value.local
        said = f"all-to-alls: {rate / 1e9:.3g} GB/s, measured with {best.ranks} GPUs"
        return Wire(rate, 0.0, route.collective_rate / route.rate, route.collective_factor, [said])
    if known.gpu not in DATASHEET:
        raise PredictionError(
            f"{known.gpu}: nothing tells how fast its GPUs exchange bytes; it needs a committed"
            f" record of stream on 2 of them over {INTERCONNECTS[interconnect]}, or an entry in"
            " wanreport.analysis.scaling.DATASHEET"
        )
    nvlink, memory = DATASHEET[known.gpu]
    copied = 2 * COPIES / memory  # each is read and written
    packing = f"packing: assumed, {COPIES} copies at the data sheet's {memory / 1e12:g} TB/s"
    if interconnect == "nvlink":
        said = f"all-to-alls: assumed, the data sheet's {nvlink / 1e9:g} GB/s each way"
        apart = "copies beside all-to-alls, gathers of fsdp beside both: assumed not to touch"
        return Wire(nvlink, copied, 1.0, 1.0, [said, packing, apart])
    said = (
        f"all-to-alls: assumed, {link / 2e9:.3g} GB/s, half the measured link, as what goes out to"
        " host memory and what comes in are taken to take turns on it"
    )
    apart = "copies beside all-to-alls: assumed, each has half of the link"
    return Wire(link / 2, copied, 0.5, 2.0, [said, packing, apart])


# Engines -----------------------------------------------------------------------------------------


def predict_job(known: Known, job: Job, interconnect: str) -> dict[str, Any]:
    """Predict one job; JSON-ready.

    ``resident`` takes what it computes, and so does ``swap`` but for the first step and the switch,
    where one expert goes to pageable memory and the other comes from there. ``layerwise`` brings
    all blocks but the first in each branch's pass, ``fsdp`` the whole expert, 1/N of it over the
    link and the rest from the other ranks; ``stream`` what its plan says. The range of the step is
    that of all-to-alls that take no time at all, and twice the time.

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
    # How the cost model sees an engine; `stream` as its plan would have it.
    settings = StreamSettings(shard=job.engine == "fsdp", branches_per_visit=1)
    if job.engine == "stream":
        settings = make_plan(inputs, DEFAULT_ROOM)[1]
    passes = -(-inputs.branches // settings.branches_per_visit)
    nbytes = {
        "layerwise": (inputs.blocks - 1) * inputs.block_bytes,
        "fsdp": inputs.blocks * inputs.block_bytes + inputs.outer_bytes,
        "stream": settings.moving(inputs.blocks) * inputs.block_bytes,
    }.get(job.engine, 0)

    def step(collectives: float = 1.0, nbytes: int = nbytes) -> float:
        given = replace(inputs, collectives_s=collectives * inputs.collectives_s)
        return passes * pass_seconds(given, settings, nbytes) + inputs.other_s

    first = switch = step()
    if job.engine == "stream":
        found = predict(inputs, settings)
        first, switch = found.first_s, found.switch_s
    if job.engine == "swap":
        spikes, said = _spikes(known, inputs)
        first, switch, words = first + spikes[0], switch + spikes[1], [*words, said]
    row, number = known.model["head_dim"] * ELEMENT, job.num_gpus
    exchanged = all_to_all_bytes(tokens_of(job), known.model["num_heads"], row, sharers(job))
    return {
        "engine": job.engine,
        "prefetch": job.prefetch(inputs.blocks) if job.engine == "layerwise" else None,
        "cfg_parallel": job.enable_cfg_parallel,
        "job_hash": job.hashes()[0],
        **{key: getattr(job, key) for key in ("width", "height", "num_frames")},
        "tokens": tokens_of(job),
        "step_s": step(),
        "low_s": step(0.0),
        "high_s": step(2.0),
        "first_s": first,
        "switch_s": switch,
        "total_s": first + switch + max(inputs.steps - 2, 0) * step(),
        "overhead": step() / step(nbytes=0) - 1,
        "h2d_bytes": passes * -(-nbytes // (number if settings.shard else 1)),
        "all_to_all_bytes": inputs.branches * inputs.blocks * exchanged,
        "settings": asdict(settings) if job.engine == "stream" else None,
        "inputs": asdict(inputs),
        "from": words,
    }


def _spikes(known: Known, inputs: Inputs) -> tuple[tuple[float, float], str]:
    """What `swap` adds to the first step and to the switch, in seconds, and where that is from."""
    if spikes := known.of("swap"):
        return spikes[-1].value, "move of an expert: assumed, as long as measured with fewer GPUs"
    if not (rates := known.of("pageable")):
        raise PredictionError(
            f"{known.gpu}: no committed record has its link's bandwidth to pageable memory; measure"
            " any job on it again"
        )
    expert = inputs.blocks * inputs.block_bytes + inputs.outer_bytes
    both = sum(expert / rate for rate in rates[-1].value)
    said = "move of an expert: assumed, as fast for all GPUs at once as a pageable copy for fewer"
    return (both, both), said
