"""One rank of one engine's process: attaches it once and runs all its shapes.

Each shape leaves ``OUT/row-<tokens>-rank<r>.json`` as soon as it is done, so that nothing measured
is lost to what fails later.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wanreport.engines import ENGINES, Counters, Engine, Stream
from wanreport.measure import worker
from wanreport.measure.link import measure_link
from wanreport.measure.sensors import Sensors
from wanreport.model.clock import StepClock, hot_steps, peaks, reset_peaks, sha256
from wanreport.model.denoise import TEXT_TOKENS, Guidance, predict
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert, Segments
from wanreport.model.ulysses import SequenceParallel
from wanreport.model.weights import HostStore, RandomWeights
from wanreport.planner.plan import DEFAULT_ROOM, make_plan
from wanreport.planner.probe import Probe
from wanreport.records.files import parse_label
from wanreport.records.record import replace_file

from .peers import PEERS, Peer

EXPERT = EXPERTS[0]
STEPS = 27  # a schedule's, over which a plan weighs the first step and the switch


class Planned(Stream):
    """`stream` with a plan of its own for each shape, with room for so many blocks."""

    name = "planned"

    def __init__(self, *, room: int = DEFAULT_ROOM) -> None:
        super().__init__()
        self.room = room

    def plan(self, probe: Probe, link: dict[str, Any] | None) -> dict[str, Any]:
        rate = link["h2d_pinned_gb_s"] * 1e9 if link else None
        plan, self.settings = make_plan(probe.inputs(rate, STEPS), self.room, probe.trial)
        return plan


KNOWN: dict[str, type[Engine]] = {**ENGINES, Planned.name: Planned, **PEERS}


def make_engine(label: str) -> Engine:
    """The engine or peer that ``name:key=value,…`` means; ValueError if there is none."""
    try:
        name, settings = parse_label(label)
        return KNOWN[name](**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {error}") from None


def make_expert(device: str, blocks: int) -> Expert:
    """The benchmark's expert, without weights: A14B's widths on a GPU, small ones on CPU."""
    config = {**(A14B if device == "cuda" else TINY), "num_layers": blocks}
    return Expert(EXPERT, config, torch.bfloat16)


def run(spec: dict[str, Any], out: Path, rank: int, world_size: int) -> dict[str, Any]:
    cuda = spec["device"] == "cuda"
    device, engine = torch.device(f"cuda:{rank}" if cuda else "cpu"), make_engine(spec["engine"])
    worker.connect(device, out, rank, world_size, spec["timeout_s"])
    group = dist.group.WORLD
    parallel = SequenceParallel(group)
    segments = Segments.compiled() if spec["compile"] else Segments()

    def make(blocks: int) -> Expert:
        expert = make_expert(spec["device"], blocks)
        expert.parallel, expert.segments = parallel, segments
        return expert

    expert, planned = make(spec["blocks"]), isinstance(engine, Planned)
    shared = group if engine.shares_store else None
    pin = cuda and engine.pins_store
    store = HostStore({EXPERT: expert}, RandomWeights(), pin=pin, group=shared)
    link = measure_link(device, group) if planned or spec["engine"] == "resident" else None
    if isinstance(engine, Peer):
        engine.code = spec["code"]

    def attach() -> float:
        started = time.perf_counter()
        engine.attach({EXPERT: expert}, store, device, group)
        return time.perf_counter() - started

    attach_s = 0.0 if planned else attach()
    for tokens, grid in spec["grids"]:
        if rank == 0:
            (out / "progress").write_text(f"{tokens:,} tokens")
        inputs, plan = _inputs(expert, grid, spec["branches"], device), None
        if isinstance(engine, Planned):
            plan = engine.plan(Probe(make, store, group, *inputs), link)
            expert = make(spec["blocks"])
            attach_s = attach()
        row = _measure(engine, expert, store, inputs, spec, device)
        row |= {"attach_s": attach_s, "link": link, "note": getattr(engine, "note", "")}
        row["plan"] = plan
        replace_file(out / f"row-{tokens}-rank{rank}.json", json.dumps(row).encode())
        if planned:
            engine.detach()
    if not planned:
        engine.detach()
    store.close()
    return {}


def _measure(
    engine: Engine, expert: Expert, store: HostStore, inputs: tuple[Tensor, Guidance],
    spec: dict[str, Any], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Warm up and time one shape."""
    if spec["compile"]:
        torch._dynamo.reset()  # its limit of recompilations is meant for one shape
    step = _step(engine, expert, inputs)
    visits = -(-spec["branches"] // engine.branches_per_visit)
    engine.begin([EXPERT] * visits * spec["warmup"])
    cuda, warm, clock = device.type == "cuda", StepClock(device), StepClock(device)
    with warm.step():
        first = step()
    for _ in range(spec["warmup"] - 1):
        with warm.step():
            step()
    warmup = warm.seconds()
    hot = hot_steps(warmup[-1], device, dist.group.WORLD)
    passes = max(spec["passes"], hot)  # short ones are more, for the clock wanders
    sensors = Sensors(device)  # found before the GPU is hot: it must not wait then
    engine.begin([EXPERT] * visits * (hot + passes))
    for _ in range(hot):
        step()
    dist.barrier()
    if cuda:
        torch.cuda.synchronize(device)
    reset_peaks(device)
    before, begun = engine.mover.counters + Counters(), time.perf_counter()
    with sensors:
        for _ in range(passes):
            with clock.step():
                output = step()
        seconds = clock.seconds()
        wall = time.perf_counter() - begun
    registered = engine.registered_bytes if isinstance(engine, Peer) else store.pinned_bytes
    memory = peaks(device, registered)
    if not output.isfinite().all():
        raise RuntimeError("the output is not finite, so its bits show nothing")
    return {
        # On CPU no time is claimed, so none is kept.
        "samples_ms": [1e3 * s for s in seconds] if cuda else [],
        "warmup_ms": [1e3 * s for s in warmup] if cuda else [],
        "wall_ms_per_step": 1e3 * wall / passes if cuda else None,
        "memory": memory,
        "gpu": sensors.summary(),
        "shared_pinned_bytes": store.pinned_bytes if engine.shares_store else 0,
        "output_sha256": sha256(output),
        "first_output_sha256": sha256(first),
        "counters": None if isinstance(engine, Peer) else asdict(engine.mover.counters - before),
    }


def _inputs(
    expert: Expert, grid: Sequence[int], branches: int, device: torch.device
) -> tuple[Tensor, Guidance]:
    """Latents and texts of a shape; ``grid`` is its tokens as frames × height × width."""
    generator = torch.Generator().manual_seed(0)
    size = [n * p for n, p in zip(grid, expert.config["patch_size"], strict=True)]
    latents = torch.randn(1, expert.config["in_channels"], *size, generator=generator).to(device)
    words = TEXT_TOKENS if device.type == "cuda" else worker.TINY_TEXT_TOKENS
    texts = torch.randn(2, 1, words, expert.config["text_dim"], generator=generator)
    cond, uncond = texts.to(device, expert.dtype)
    return latents, Guidance(cond, uncond if branches == 2 else None, {EXPERT: 4.0})


def _step(engine: Engine, expert: Expert, inputs: tuple[Tensor, Guidance]) -> Callable[[], Tensor]:
    """A denoising step's passes, the way the pipeline makes them; the same inputs each time."""
    latents, guidance = inputs
    timestep = torch.tensor([900.0], device=latents.device)
    return lambda: predict(expert, engine, latents, timestep, guidance)


forked_main = partial(worker.forked_main, run=run)


if __name__ == "__main__":
    worker.main(
        sys.argv[1], sys.argv[2], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), run
    )
