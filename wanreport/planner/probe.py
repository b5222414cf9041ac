"""Measures on the machine what a plan rests on: a few blocks at the job's own shape.

Blocks run with all weights there first, which gives the length of windows and collectives. Then
they run again while a second engine, the *feeder*, loads other blocks as fast as it can on streams
of its own: how much longer all takes, and how many bytes arrive, tells what loads and collectives
cost each other. Noting each window's begin and end takes the host time, which shows where a GPU
waits for it: so windows are scaled to steps of the same blocks without notes.

All ranks must call each method; all get the same answer, that of the slowest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wanreport.engines import Stream
from wanreport.jobs.settings import SEGMENTS, StreamSettings
from wanreport.model.clock import StepClock, hot_steps, reset_peaks
from wanreport.model.denoise import Guidance, predict
from wanreport.model.expert import EXPERTS, Expert
from wanreport.model.weights import HostStore
from wanreport.planner.cost import Inputs, Route
from wanreport.planner.plan import make_plan, scaled

BLOCKS, PASSES = 4, 5
FED = 6  # blocks of a feeder: twice its slots, so that each is loaded every time
TRIAL_BLOCKS = 12  # a multiple of 2, 3 and 4 slots
LEAD = 100  # loads of a feeder that may wait in a GPU's queues, which hold a thousand launches
LEAST = 4  # blocks of an expert: one more than the slots of a feeder
TURN_S = 1.0  # a trial's turn takes about as long, or one step


@dataclass(frozen=True)
class Phases:
    """Seconds of one branch's windows and collectives in a block, of a pass's rest, of a step."""

    windows: tuple[float, float, float]
    collectives: float
    other: float
    step: float
    arrived: tuple[float, ...] = ()  # bytes that a feeder brought during each step


class _Timed(Stream):
    """Notes every window on the timeline, beside what an engine notes anyway."""

    _window: Any = None
    feed: Callable[[], object] | None = None  # called after each block

    def _turn_to(self, window: Any) -> None:
        self.mover.timeline.end(self._window)
        self._window = window

    def window(self, expert: str, block: int, segment: str) -> None:
        self._turn_to(None)
        super().window(expert, block, segment)
        self._turn_to(self.mover.timeline.begin("window", segment, expert, block))

    def collective(self, expert: str, block: int) -> AbstractContextManager[None]:
        self._turn_to(None)
        return super().collective(expert, block)

    def after_block(self, expert: str, block: int) -> None:
        self._turn_to(None)
        super().after_block(expert, block)
        if self.feed:
            self.feed()


class Probe:
    """Measures one job's shape on this machine.

    ``make`` gives the first expert with so many blocks, on the meta device; the ``store`` holds at
    least as many, and if they lie packed, so they travel. ``latents``, on the device, and
    ``guidance`` are as the job's own: on zeros a GPU draws less power, and runs up to ten per cent
    faster.
    """

    def __init__(
        self, make: Callable[[int], Expert], store: HostStore, group: dist.ProcessGroup | None,
        latents: Tensor, guidance: Guidance,
    ) -> None:  # fmt: skip
        self.name, self.make, self.store, self.group = EXPERTS[0], make, store, group
        self.blocks = len(store.units(self.name)) - 1
        if self.blocks < LEAST:
            raise ValueError(f"a plan needs {LEAST} blocks to load in turn, not {self.blocks}")
        self.latents, self.guidance, self.device = latents, guidance, latents.device
        self.timestep = torch.full((latents.shape[0],), 999.0, device=self.device)
        self.ranks = dist.get_world_size(group)
        self.plainest = StreamSettings(transfer=store.transfer)  # type: ignore[arg-type]
        # A rehearsal's times say nothing, so that one pass does.
        self.passes = PASSES if self.device.type == "cuda" else 1
        self._hot = 0  # steps before a measurement, not known yet

    def _attached(self, engine: Stream, blocks: int) -> Expert:
        expert = self.make(min(blocks, self.blocks))
        engine.attach({self.name: expert}, self.store, self.device, self.group)
        return expert

    def _slowest(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all ranks."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return [float(value) for value in tensor.tolist()]

    def _begin(self, engine: Stream, expert: Expert, warm: int, steps: int) -> Callable[[], Any]:
        """Announce steps, all ranks at once, run those that warm up, and return what runs one."""
        engine.begin([self.name] * self.guidance.visits(engine) * (warm + steps))
        dist.barrier(self.group)
        step = partial(predict, expert, engine, self.latents, self.timestep, self.guidance)
        for _ in range(warm):
            step()
        return step

    def plan(
        self, link: dict[str, Any] | None, steps: int, room: int
    ) -> tuple[dict[str, Any], StreamSettings]:
        """Measure, choose and try settings: what :func:`make_plan` returns."""
        return make_plan(self.inputs(link, steps), room, self.trial)

    def inputs(self, link: dict[str, Any] | None, steps: int) -> Inputs:
        """Measure what predictions need, but the ``link`` itself, if that was measured before."""
        layouts, gpu = self.store.layouts, torch.cuda if self.device.type == "cuda" else None
        # Bytes that this process can still take.
        free = gpu.mem_get_info()[0] + gpu.memory_reserved() - gpu.memory_allocated() if gpu else 0
        engine = _Timed(replace(self.plainest, slots=0, residents=BLOCKS))
        expert = self._attached(engine, BLOCKS)
        self._passes(engine, expert)  # compiles, connects, brings the weights
        warm = self._passes(engine, expert)
        self._hot = hot_steps(warm.step, self.device, self.group)
        reset_peaks(self.device)
        before = gpu.memory_allocated() if gpu else 0
        quiet = self._passes(engine, expert)
        peak = gpu.max_memory_allocated() if gpu else 0
        local, nbytes, unpack_s = self._route(False, engine, expert, quiet)
        sharded = self._route(True, engine, expert, quiet)[0] if self.ranks > 1 else None
        plain = self._turn(engine, expert, self.passes, warm=1)
        alone = min(plain / quiet.step, 1.0)
        engine.detach()
        activations, device_bytes = self._slowest([peak - before, -free])
        pre, attend, post = (alone * seconds for seconds in quiet.windows)
        return Inputs(
            blocks=self.blocks, block_bytes=layouts[self.name, 0].nbytes,
            outer_bytes=layouts[self.name, None].nbytes, ranks=self.ranks, steps=steps,
            branches=self.guidance.branches, other_s=quiet.other,
            windows_s=(pre, attend, post),
            collectives_s=alone * quiet.collectives,
            link=link["h2d_pinned_gb_s"] * 1e9 if link else local.rate, local=local,
            sharded=sharded, activation_bytes=int(activations), unpack_s=unpack_s,
            device_bytes=int(-device_bytes) if gpu else None, transfer=self.store.transfer,
            packed_bytes=nbytes if self.store.packing else None,
        )  # fmt: skip

    def _passes(
        self, engine: _Timed, expert: Expert, feeder: Stream | None = None, loads: int = 0
    ) -> Phases:
        """Run some passes on a hot device, beside so many loads of a feeder."""
        timeline = engine.mover.timeline
        timeline.events.clear()
        run = self._begin(engine, expert, self._hot, self.passes)
        timeline.step = 0
        if feeder is not None:
            feeder.mover.timeline = timeline
            # As blocks go, some each: a GPU's queues have no room for all of them at once.
            visits = self.passes * self.guidance.visits(engine) * engine.blocks
            feed, some = self._feed(feeder, loads), math.ceil(loads / visits)
            engine.feed = lambda: list(islice(feed, some))
            engine.feed()
        for _ in range(self.passes):
            with timeline.during("pass", "pass", self.name, None):
                run()
        engine.feed = timeline.step = None
        rows = timeline.rows()
        windows = [median(_lengths(rows, "window", segment)) for segment in SEGMENTS]
        meets = _lengths(rows, "collective")
        meeting = median(meets[::2]) + median(meets[1::2]) if expert.parallel.size > 1 else 0.0
        whole = _lengths(rows, "pass")
        outside = sum(whole) - sum(_lengths(rows, "compute"))  # a feeder's blocks are there too
        outside /= self.guidance.visits(engine) * self.passes
        arrived: list[float] = []
        if feeder is not None:
            at = [min(row["start_ms"] for row in rows if row["lane"] == "copy"), *_arrivals(rows)]
            spans = [(row["start_ms"], row["end_ms"]) for row in rows if row["lane"] == "pass"]
            loads_at = np.interp(spans, at, np.arange(len(at)))
            arrived = [float(each) * feeder.nbytes for each in np.diff(loads_at)[:, 0]]
        pre, attend, post, collectives, other, step, *less = self._slowest(
            [*windows, meeting, max(outside, 0.0), median(whole), *(-each for each in arrived)]
        )
        return Phases((pre, attend, post), collectives, other, step, tuple(-each for each in less))

    def _route(
        self, shard: bool, engine: _Timed, expert: Expert, quiet: Phases
    ) -> tuple[Route, int, float]:
        """Measure loads alone, then beside the blocks: the route, a load's bytes, its unpacking."""
        feeder = Stream(replace(self.plainest, slots=3 if shard else 2, shard=shard))
        self._attached(feeder, FED)
        list(self._feed(feeder, FED))  # connects
        timeline = feeder.mover.timeline
        timeline.step = 0
        dist.barrier(self.group)
        list(self._feed(feeder, 4 * FED))
        rows = timeline.rows()
        at = _arrivals(rows)
        unpacking = median(_lengths(rows, "unpack") or [0.0])
        slowest, unpack_s = self._slowest([(at[-1] - at[0]) / 1e3 / (len(at) - 1), unpacking])
        # Enough of them to outlast the passes, even where these take half as long again; long ones,
        # which mostly compute, take little longer.
        beside = self.passes * quiet.step / slowest
        loads = math.ceil(1.1 * beside + min(0.4 * beside, LEAD)) + FED
        busy = self._passes(engine, expert, feeder, loads)
        feeder.detach()
        visits = engine.blocks * self.guidance.branches
        return route(feeder.nbytes / slowest, quiet, busy, visits), feeder.nbytes, unpack_s

    def _feed(self, feeder: Stream, loads: int) -> Iterator[None]:
        """Load so many blocks or a few more, one a turn, on the feeder's own streams."""
        mover, passes = feeder.mover, -(-loads // feeder.blocks)
        aside = mover.stream()
        mover.wait_stream(aside, mover.compute)
        with mover.on(aside):
            feeder.begin([self.name] * passes)
        for _, block in product(range(passes), range(feeder.blocks)):
            with mover.on(aside):
                if block == 0:
                    feeder.use(self.name)
                feeder.before_block(self.name, block)
                feeder.after_block(self.name, block)
            yield

    def trial(self, rivals: Sequence[StreamSettings]) -> list[list[float]]:
        """Let two settings take turns, A B B A, on an expert of a few blocks: seconds of a step."""
        small = min(TRIAL_BLOCKS, self.blocks)
        engines = [Stream(scaled(settings, self.blocks, small)) for settings in rivals]
        experts = [self._attached(engine, small) for engine in engines]
        turns: list[list[float]] = [[], []]
        steps, warm = 1, 1 + math.ceil(self._hot * BLOCKS / small)
        for i in (0, 1, 0, 1, 1, 0):
            turns[i].append(self._turn(engines[i], experts[i], steps, warm))
            # The first turns connect, and tell how many steps one takes; a rehearsal's say nothing.
            if len(turns[i]) == 1 and self.device.type == "cuda":
                steps = max(steps, math.ceil(TURN_S / turns[i][0]))
            warm = 1
        for engine in engines:
            engine.detach()
        return [each[1:] for each in turns]

    def _turn(self, engine: Stream, expert: Expert, steps: int, warm: int) -> float:
        """Seconds of a step, the median of some, after others that bring what they start from."""
        run, clock = self._begin(engine, expert, warm, steps), StepClock(self.device)
        for _ in range(steps):
            with clock.step():
                run()
        (slowest,) = self._slowest([median(clock.seconds())])
        return slowest


def route(rate: float, quiet: Phases, busy: Phases, visits: int) -> Route:
    """What loads and computation cost each other, from both alone and together.

    ``rate`` are bytes a second of loads alone; in windows they are taken to be as fast. ``quiet``
    and ``busy`` are the same steps without loads, and with loads in flight all the time; a block
    is visited ``visits`` times in one. What arrives in collectives is what is left of a step's
    bytes beside its windows: a small difference, of which the median step counts.
    """
    windows, collectives = visits * sum(busy.windows), visits * busy.collectives
    beside, slowed = rate, 1.0
    if collectives:
        beside = (median(busy.arrived) - rate * windows) / collectives
        slowed = max(busy.collectives / quiet.collectives, 1.0)
    kept = max(sum(busy.windows) / sum(quiet.windows), 1.0)
    return Route(rate, min(max(beside, 0.0), rate), kept, slowed)


def _lengths(rows: Sequence[dict[str, Any]], lane: str, what: str | None = None) -> list[float]:
    """Seconds of each event of a lane, or of one kind of them."""
    return [(row["end_ms"] - row["start_ms"]) / 1e3 for row in rows
            if row["lane"] == lane and what in (None, row["what"])]  # fmt: skip


def _arrivals(rows: Sequence[dict[str, Any]]) -> list[float]:
    """When each load was there, in ms: the end of the last thing that happens to it."""
    lanes = {row["lane"] for row in rows}
    last = next(lane for lane in ("unpack", "gather", "copy") if lane in lanes)
    return sorted(row["end_ms"] for row in rows if row["lane"] == last)
