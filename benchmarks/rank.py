"""One rank of a benchmark's process: attaches its engines and runs all shapes.

A process has one engine, or several that take turns. What it measured of a shape goes to
``OUT/row-<tokens>-<engine>-rank<r>.json`` at once, so that nothing is lost to what fails later.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from wanreport.records.files import FIRST, parse_label
from wanreport.records.record import replace_file

from .peers import PEERS, Peer

EXPERT = EXPERTS[0]
STEPS = 27  # a schedule's, over which a plan weighs the first step and the switch
Inputs = tuple[Tensor, Guidance]


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


class Lane:
    """One engine of the process, with an expert of its own."""

    def __init__(
        self, engine: Engine, make: Callable[[int], Expert], blocks: int, store: HostStore,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.engine, self.make, self.blocks = engine, make, blocks
        self.store, self.device, self.group = store, device, dist.group.WORLD
        self.plan: dict[str, Any] | None = None
        if not isinstance(engine, Planned):
            self.attach()

    def attach(self) -> None:
        begun, self.expert = time.perf_counter(), self.make(self.blocks)
        self.engine.attach({EXPERT: self.expert}, self.store, self.device, self.group)
        self.attach_s = time.perf_counter() - begun

    def prepare(self, inputs: Inputs, link: dict[str, Any] | None) -> None:
        """Take a shape's inputs; an engine with a plan for each shape is attached anew."""
        self.inputs = inputs
        if isinstance(self.engine, Planned):
            if self.plan:
                self.engine.detach()
            self.plan = self.engine.plan(Probe(self.make, self.store, self.group, *inputs), link)
            self.attach()

    def step(self) -> Tensor:
        """A denoising step's passes, as the pipeline makes them; the same inputs each time."""
        latents, guidance = self.inputs
        timestep = torch.tensor([900.0], device=self.device)
        return predict(self.expert, self.engine, latents, timestep, guidance)

    def begin(self, steps: int) -> None:
        branches = 1 if self.inputs[1].uncond is None else 2
        self.engine.begin([EXPERT] * -(-branches // self.engine.branches_per_visit) * steps)

    def warm_up(self, steps: int, passes: int) -> None:
        """The first steps of a shape; afterwards it is known how many make a GPU hot."""
        self.begin(steps)
        clock, outputs = StepClock(self.device), []
        for _ in range(steps):
            with clock.step():
                outputs.append(self.step())
        self.samples: list[float] = []
        self.first, self.warmup = sha256(outputs[0]), clock.seconds()
        self.warm = hot_steps(self.warmup[-1], self.device, self.group)
        self.passes = max(passes, self.warm)  # short ones are more, for the clock wanders
        self.sensors, self.wall, self.counters = Sensors(self.device), 0.0, Counters()

    def turn(self) -> None:
        """Some steps on a hot device, timed one by one; the first turn heats it."""
        sensors = Sensors(self.device)  # found before the GPU is hot: it must not wait then
        self.begin(self.warm + self.passes)
        for _ in range(self.warm):
            self.step()
        self.warm = 1
        dist.barrier()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, begun = self.engine.mover.counters + Counters(), time.perf_counter()
        clock = StepClock(self.device)
        with sensors:
            for _ in range(self.passes):
                with clock.step():
                    self.output = self.step()
            self.samples += clock.seconds()
            self.wall += time.perf_counter() - begun
        self.counters = self.counters + (self.engine.mover.counters - before)
        self.sensors.readings += sensors.readings

    def row(self, alone: bool) -> dict[str, Any]:
        """What this rank measured; peaks of memory only where the process has no other engine."""
        if not self.output.isfinite().all():
            raise RuntimeError("the output is not finite, so its bits show nothing")
        cuda, engine = self.device.type == "cuda", self.engine
        pinned = engine.registered_bytes if isinstance(engine, Peer) else self.store.pinned_bytes
        memory = peaks(self.device, pinned)
        return {
            # On CPU no time is claimed, so none is kept.
            "samples_ms": [1e3 * s for s in self.samples] if cuda else [],
            "warmup_ms": [1e3 * s for s in self.warmup] if cuda else [],
            "wall_ms_per_step": 1e3 * self.wall / len(self.samples) if cuda else None,
            "memory": memory if alone else dict.fromkeys(memory),
            "gpu": self.sensors.summary(),
            "shared_pinned_bytes": self.store.pinned_bytes if engine.shares_store else 0,
            "output_sha256": sha256(self.output),
            "first_output_sha256": self.first,
            "counters": None if isinstance(engine, Peer) else asdict(self.counters),
            "attach_s": self.attach_s,
            "note": getattr(engine, "note", ""),
            "plan": self.plan,
        }


def in_turn(engines: int, turns: int) -> list[int]:
    """Which engine has each turn: all of them, there and back again."""
    return [i for turn in range(turns) for i in range(engines)[:: -1 if turn % 2 else 1]]


def measure(lanes: Sequence[Lane], warmup: int, passes: int, turns: int) -> list[dict[str, Any]]:
    """Warm up and time one shape with each engine."""
    for lane in lanes:
        lane.warm_up(warmup, passes)
    reset_peaks(lanes[0].device)
    for i in in_turn(len(lanes), turns):
        lanes[i].turn()
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


@contextmanager
def attached(
    spec: dict[str, Any], make: Callable[[int], Expert], device: torch.device
) -> Iterator[list[Lane]]:
    """The engines of ``spec["engines"]``; those that read host memory alike share one store."""
    stores: dict[Any, HostStore] = {}
    lanes, cuda = [], device.type == "cuda"
    for label in spec["engines"]:
        engine = make_engine(label)
        key: Any = engine.pins_store, engine.shares_store
        if isinstance(engine, Peer):
            engine.code, key = spec["code"][engine.name], label  # it closes its store
        if key not in stores:
            shared = dist.group.WORLD if engine.shares_store else None
            stores[key] = HostStore({EXPERT: make(spec["blocks"])}, RandomWeights(),
                                    pin=cuda and engine.pins_store, group=shared)  # fmt: skip
        lanes.append(Lane(engine, make, spec["blocks"], stores[key], device))
    yield lanes
    for lane in lanes:
        lane.engine.detach()
    for store in stores.values():
        store.close()


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

    names = {parse_label(label)[0] for label in spec["engines"]}
    link = measure_link(device, dist.group.WORLD) if names & {FIRST, Planned.name} else None
    with attached(spec, make, device) as lanes:
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
                text = json.dumps(row | {"link": link})
                replace_file(out / f"row-{tokens}-{number}-rank{rank}.json", text.encode())
    return {}


main = partial(worker.main, run=run)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
