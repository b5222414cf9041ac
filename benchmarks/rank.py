"""One rank of a benchmark's process: attaches its engines and runs all shapes.

A process has one engine, or several that take turns. What it measured of a shape goes to
``OUT/row-<tokens>-<engine>-rank<r>.json`` at once, so that nothing is lost to what fails later.
"""

from __future__ import annotations

import json
import os
import sys
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
from wanreport.records.files import FIRST, name_of, parse_label
from wanreport.records.record import replace_file

from .peers import PEERS, Peer

EXPERT = EXPERTS[0]
STEPS = 27  # a schedule's, over which a plan weighs the first step and the switch
Inputs = tuple[Tensor, Guidance]
Make = Callable[[int], Expert]  # so many blocks, without weights


class Planned(Stream):
    """`stream` with a plan of its own for each shape, with room for so many blocks."""

    name = "planned"

    def __init__(self, *, room: int = DEFAULT_ROOM, transfer: str = "bf16") -> None:
        super().__init__(transfer=transfer)
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


class Lane:
    """One engine of the process, with an expert of its own."""

    def __init__(self, engine: Engine, make: Make, blocks: int, store: HostStore,
                 device: torch.device) -> None:  # fmt: skip
        self.engine, self.make, self.blocks = engine, make, blocks
        self.store, self.device, self.group = store, device, dist.group.WORLD
        self.plan: dict[str, Any] | None = None
        if not isinstance(engine, Planned):
            self.attach()

    def attach(self) -> None:
        self.expert = self.make(self.blocks)
        self.engine.attach({EXPERT: self.expert}, self.store, self.device, self.group)

    def prepare(self, inputs: Inputs, link: dict[str, Any] | None) -> None:
        """Take a shape's inputs; an engine with a plan for each shape is attached anew."""
        self.inputs = inputs
        if isinstance(self.engine, Planned):
            if self.plan:
                self.engine.detach()
            self.plan = self.engine.plan(Probe(self.make, self.store, self.group, *inputs), link)
            self.attach()

    def begin(self, steps: int) -> None:
        visits = self.inputs[1].visits(self.engine)
        self.engine.begin([EXPERT] * visits * steps)

    def steps(self, number: int) -> list[float]:
        """Seconds of denoising steps' passes, as the pipeline makes them; all have the same inputs.

        The last one's ``output`` is kept.
        """
        clock, timestep = StepClock(self.device), torch.tensor([900.0], device=self.device)
        latents, guidance = self.inputs
        for _ in range(number):
            with clock.step():
                self.output = predict(self.expert, self.engine, latents, timestep, guidance)
        return clock.seconds()

    def warm_up(self, steps: int, passes: int) -> None:
        """The first steps of a shape; afterwards it is known how many make a GPU hot."""
        self.begin(steps)
        self.steps(1)
        self.first = sha256(self.output)
        self.warm = hot_steps(self.steps(steps - 1)[-1], self.device, self.group)
        self.passes = max(passes, self.warm)  # short ones are more, for the clock wanders
        self.samples: list[float] = []
        self.sensors, self.counters = Sensors(self.device), Counters()

    def turn(self) -> None:
        """Some steps on a hot device, timed one by one; the first turn heats it."""
        sensors = Sensors(self.device)  # found before the GPU is hot: it must not wait then
        self.begin(self.warm + self.passes)
        self.steps(self.warm)
        self.warm = 1
        dist.barrier()
        before = self.engine.mover.counters + Counters()
        with sensors:
            self.samples += self.steps(self.passes)
        self.counters += self.engine.mover.counters - before
        self.sensors.readings += sensors.readings

    def row(self, alone: bool) -> dict[str, Any]:
        """What this rank measured; peaks of memory only where the process has no other engine."""
        if not self.output.isfinite().all():
            raise RuntimeError("the output is not finite, so its bits show nothing")
        engine = self.engine
        peer = engine if isinstance(engine, Peer) else None
        memory = peaks(self.device, peer.registered_bytes if peer else self.store.pinned_bytes)
        return {
            # On CPU no time is claimed, so none is kept.
            "samples_ms": [1e3 * s for s in self.samples] if self.device.type == "cuda" else [],
            "memory": memory if alone else dict.fromkeys(memory),
            "gpu": self.sensors.summary(),
            "shared_pinned_bytes": self.store.pinned_bytes if engine.shares_store else 0,
            "output_sha256": sha256(self.output),
            "first_output_sha256": self.first,
            "counters": None if peer else asdict(self.counters),
            "note": peer.note if peer else "",
            "plan": self.plan,
        }


def measure(lanes: Sequence[Lane], warmup: int, passes: int, turns: int) -> list[dict[str, Any]]:
    """Warm up and time one shape with each engine; they take turns, there and back again."""
    for lane in lanes:
        lane.warm_up(warmup, passes)
    reset_peaks(lanes[0].device)
    for turn in range(turns):
        for lane in lanes[:: -1 if turn % 2 else 1]:
            lane.turn()
    return [lane.row(alone=len(lanes) == 1) for lane in lanes]


def make_inputs(expert: Expert, grid: Sequence[int], branches: int, device: torch.device) -> Inputs:
    """Latents and texts of a shape; ``grid`` is its tokens as frames × height × width."""
    generator = torch.Generator().manual_seed(0)
    size = [n * p for n, p in zip(grid, expert.config["patch_size"], strict=True)]
    latents = torch.randn(1, expert.config["in_channels"], *size, generator=generator).to(device)
    words = TEXT_TOKENS if device.type == "cuda" else worker.TINY_TEXT_TOKENS
    texts = torch.randn(2, 1, words, expert.config["text_dim"], generator=generator)
    cond, uncond = texts.to(device, expert.dtype)
    return latents, Guidance(cond, uncond if branches == 2 else None, {EXPERT: 4.0})


def attached(spec: dict[str, Any], make: Make, device: torch.device) -> list[Lane]:
    """The engines of ``spec["engines"]``; those that read host memory alike share one store."""
    stores: dict[Any, HostStore] = {}
    lanes = []
    for label in spec["engines"]:
        engine = make_engine(label)
        packs = isinstance(engine, Stream) and engine.settings.transfer == "packed"
        key: Any = engine.pins_store, engine.shares_store, packs
        if isinstance(engine, Peer):
            engine.code, key = spec["code"][engine.name], label  # it closes its store
        if key not in stores:
            stores[key] = HostStore(
                {EXPERT: make(spec["blocks"])}, RandomWeights(),
                pin=device.type == "cuda" and engine.pins_store,
                group=dist.group.WORLD if engine.shares_store else None,
                packing=device if packs else None,
            )  # fmt: skip
        lanes.append(Lane(engine, make, spec["blocks"], stores[key], device))
    return lanes


def run(spec: dict[str, Any], out: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Run all shapes of ``spec["grids"]`` with the engines of ``spec["engines"]``."""
    device = torch.device(f"cuda:{rank}" if spec["device"] == "cuda" else "cpu")
    worker.connect(device, out, rank, world_size, spec["timeout_s"])
    parallel = SequenceParallel(dist.group.WORLD)
    segments = Segments.compiled() if spec["compile"] else Segments()

    def make(blocks: int) -> Expert:
        expert = make_expert(spec["device"], blocks)
        expert.parallel, expert.segments = parallel, segments
        return expert

    linked = {FIRST, Planned.name} & set(map(name_of, spec["engines"]))
    link = measure_link(device, dist.group.WORLD) if linked else None
    lanes = attached(spec, make, device)
    for tokens, grid in spec["grids"]:
        if rank == 0:
            (out / "progress").write_text(f"{tokens:,} tokens")
        if spec["compile"]:
            torch._dynamo.reset()  # its limit of recompilations is meant for one shape
        inputs = make_inputs(make(1), grid, spec["branches"], device)
        for lane in lanes:
            lane.prepare(inputs, link)
        rows = measure(lanes, spec["warmup"], spec["passes"], spec["turns"])
        for number, row in enumerate(rows):
            path = out / f"row-{tokens}-{number}-rank{rank}.json"
            replace_file(path, json.dumps(row | {"link": link}))
    for lane in lanes:
        lane.engine.detach()
    for lane in lanes:
        lane.store.close()
    return {}


main = partial(worker.main, run=run)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
