"""One rank of a benchmark's process: attaches its engines and runs all shapes.

What it measured of a shape goes to ``OUT/rows-<tokens>-rank<r>.json`` at once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.peers import PEERS, Peer
from wanreport.engines import ENGINES, Counters, Engine, Stream
from wanreport.measure import worker
from wanreport.measure.fit import measure_link
from wanreport.measure.sensors import Sensors
from wanreport.model.clock import StepClock, hot_steps, peaks, reset_peaks, sha256
from wanreport.model.denoise import TEXT_TOKENS, Guidance, make_scheduler, predict
from wanreport.model.expert import A14B, EXPERTS, TINY, Expert
from wanreport.model.ulysses import SequenceParallel, cfg_groups
from wanreport.model.weights import HostStore, RandomWeights
from wanreport.planner.plan import DEFAULT_ROOM
from wanreport.planner.probe import Probe
from wanreport.records.files import CFG, parse_label
from wanreport.records.record import replace_file

EXPERT = EXPERTS[0]
STEPS = 27  # a schedule's, over which a plan weighs the first step and the switch
PASSES, WARMUP = 7, 2  # steps timed and before; on a GPU 2 s of both, or more
DENOISED, FLOW_SHIFT = 8, 12.0  # a schedule over which latents of rounded weights drift off
Inputs = tuple[Tensor, Guidance]


class Planned(Stream):
    """`stream` as planned for each shape, so that nothing but the transfer can be asked for."""

    name = "planned"

    def __init__(self, *, transfer: str = "bf16") -> None:
        super().__init__(transfer=transfer)


KNOWN: dict[str, type[Engine]] = {**ENGINES, Planned.name: Planned, **PEERS}


def make_engine(label: str) -> Engine:
    """The engine or peer that ``name:key=value,…`` means; ValueError if there is none."""
    try:
        name, settings = parse_label(label)
        settings.pop(CFG, None)
        return KNOWN[name](**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {error}") from None


def make_expert(device: str, blocks: int, group: dist.ProcessGroup | None = None) -> Expert:
    """The benchmark's expert, without weights: A14B's widths on a GPU, small ones on CPU."""
    config = {**(A14B if device == "cuda" else TINY), "num_layers": blocks}
    expert = Expert(EXPERT, config, torch.bfloat16)
    if dist.is_initialized():
        expert.parallel = SequenceParallel(group or dist.group.WORLD)
    return expert


class Lane:
    """One engine of the process, with an expert of its own and a store, maybe another's too.

    With CFG parallelism ``split`` are the groups of :func:`wanreport.model.ulysses.cfg_groups`.
    """

    def __init__(self, engine: Engine, blocks: int, stores: dict[Any, HostStore],
                 device: torch.device, split: Sequence[Any] = (None, None)) -> None:  # fmt: skip
        self.engine, self.blocks, self.device = engine, blocks, device
        group, self.pair = split
        self.make: Callable[[int], Expert] = partial(make_expert, device.type, group=group)
        self.peer = engine if isinstance(engine, Peer) else None
        self.plan: dict[str, Any] | None = None
        # A peer closes its store.
        key = self.peer or (engine.pins_store, engine.shares_store, engine.transfer)
        if key not in stores:
            experts = {EXPERT: self.make(blocks)}
            stores[key] = worker.store_for(engine, experts, RandomWeights(), device)
        self.store = stores[key]
        if not isinstance(engine, Planned):
            self.attach()

    def attach(self) -> None:
        self.expert = self.make(self.blocks)
        self.engine.attach({EXPERT: self.expert}, self.store, self.device, dist.group.WORLD)

    def start(self, inputs: Inputs, link: dict[str, Any] | None) -> None:
        """Take a shape's inputs, plan if needed, and see how many steps make a GPU hot."""
        self.latents, guidance = inputs
        self.guidance = replace(guidance, pair=self.pair)
        if isinstance(self.engine, Planned):
            if self.plan:
                self.engine.detach()
            probe = Probe(self.make, self.store, dist.group.WORLD, self.latents, self.guidance)
            self.plan, self.engine.settings = probe.plan(link, STEPS, DEFAULT_ROOM)
            self.attach()
        self.begin(WARMUP)
        self.steps(1)
        self.first = sha256(self.output)
        self.warm = hot_steps(self.steps(WARMUP - 1)[-1], self.device, dist.group.WORLD)
        # Short ones are more, for the clock wanders; on CPU they show bits alone.
        self.passes = max(PASSES, self.warm) if self.device.type == "cuda" else 1
        self.samples: list[float] = []
        self.sensors, self.counters = Sensors(self.device), Counters()

    def begin(self, steps: int) -> None:
        self.engine.begin([EXPERT] * self.guidance.visits(self.engine) * steps)

    def steps(self, number: int) -> list[float]:
        """Seconds of steps' passes on the same inputs; the last one's ``output`` is kept."""
        clock, timestep = StepClock(self.device), torch.tensor([900.0], device=self.device)
        for _ in range(number):
            with clock.step():
                self.output = predict(
                    self.expert, self.engine, self.latents, timestep, self.guidance)  # fmt: skip
        return clock.seconds()

    def turn(self) -> None:
        """Some steps on a hot device, timed one by one; the first turn heats it."""
        self.begin(self.warm + self.passes)
        self.steps(self.warm)
        self.warm = 1
        dist.barrier()
        before = self.engine.mover.counters + Counters()
        with self.sensors:
            self.samples += self.steps(self.passes)
        self.counters += self.engine.mover.counters - before

    def denoised(self) -> list[Tensor]:
        """The latents after each step of a short schedule."""
        scheduler, latents, found = make_scheduler(FLOW_SHIFT), self.latents, []
        scheduler.set_timesteps(DENOISED, device=self.device)
        self.begin(DENOISED)
        for t in scheduler.timesteps:
            noise = predict(self.expert, self.engine, latents, t.expand(1), self.guidance)
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
            found.append(latents)
        return found

    def row(self, alone: bool) -> dict[str, Any]:
        """What this rank measured; peaks of memory only where the process has no other engine."""
        peer, pinned = self.peer, self.store.pinned_bytes
        memory = peaks(self.device, peer.registered_bytes if peer else pinned)
        return {
            # On CPU no time is claimed, so none is kept.
            "samples_ms": [1e3 * s for s in self.samples] if self.device.type == "cuda" else [],
            "memory": memory if alone else dict.fromkeys(memory), "plan": self.plan,
            "gpu": self.sensors.summary(), "note": peer.note if peer else "",
            "shared_pinned_bytes": pinned if self.engine.shares_store else 0,
            "output_sha256": sha256(self.output), "first_output_sha256": self.first,
            "counters": None if peer else asdict(self.counters),
        }  # fmt: skip


def measure(
    lanes: Sequence[Lane], inputs: Inputs, link: dict[str, Any] | None, turns: int
) -> list[dict[str, Any]]:
    """Warm up and time one shape with each engine; they take turns, there and back again."""
    for lane in lanes:
        lane.start(inputs, link)
    reset_peaks(lanes[0].device)
    for turn in range(turns):
        for lane in lanes[:: -1 if turn % 2 else 1]:
            lane.turn()
    rows = [lane.row(alone=len(lanes) == 1) | {"link": link} for lane in lanes]
    denoised = cache(Lane.denoised)
    for row, lane in zip(rows, lanes, strict=True):
        if lane.engine.transfer == "fp8":
            exact = next(each for each in lanes if each.pair is lane.pair)  # resident
            pairs = zip(denoised(lane), denoised(exact), strict=True)
            errors = [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs]
            said = f"not exact: latents are off by {errors[-1]:.2%} after {DENOISED} steps"
            row |= {"latents_error": errors, "note": said}
    return rows


def make_inputs(grid: Sequence[int], branches: int, device: torch.device) -> Inputs:
    """Latents and texts of a shape; ``grid`` is its tokens as frames × height × width."""
    expert, generator = make_expert(device.type, 1), torch.Generator().manual_seed(0)
    size = [n * p for n, p in zip(grid, expert.config["patch_size"], strict=True)]
    latents = torch.randn(1, expert.config["in_channels"], *size, generator=generator).to(device)
    words = TEXT_TOKENS if device.type == "cuda" else worker.TINY_TEXT_TOKENS
    texts = torch.randn(2, 1, words, expert.config["text_dim"], generator=generator)
    cond, uncond = texts.to(device, expert.dtype)
    return latents, Guidance(cond, uncond if branches == 2 else None, {EXPERT: 4.0})


def run(spec: dict[str, Any], out: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Run all shapes of ``spec["grids"]`` with the engines of ``spec["engines"]``."""
    device = torch.device(f"cuda:{rank}" if spec["device"] == "cuda" else "cpu")
    worker.connect(device, out, rank, world_size, spec["timeout_s"])
    link = measure_link(device, dist.group.WORLD)
    stores: dict[Any, HostStore] = {}
    whole, lanes = (None, None), []
    split = cfg_groups() if CFG in "".join(spec["engines"]) else whole
    for label in spec["engines"]:
        engine = make_engine(label)
        if isinstance(engine, Peer):
            engine.code = spec["code"][engine.name]
        layout = split if CFG in label else whole
        lanes.append(Lane(engine, spec["blocks"], stores, device, layout))
    for tokens, grid in spec["grids"]:
        if rank == 0:
            (out / "progress").write_text(f"{tokens:,} tokens", "utf-8")
        rows = measure(lanes, make_inputs(grid, spec["branches"], device), link, spec["turns"])
        replace_file(out / f"rows-{tokens}-rank{rank}.json", json.dumps(rows))
    for lane in lanes:
        lane.engine.detach()
    for store in stores.values():
        store.close()
    return {}


main = partial(worker.main, run=run)
