"""Movers that bring races to light: one on CPU that knows of them, one on CUDA that provokes them.

On CPU, what a copy stream holds runs at the last moment that the events allow, and its target is
poisoned from the first one on, so that whoever reads without waiting computes with NaN. Beside
that every stream has a vector clock: two accesses to a buffer, one of them a write, that no chain
of events orders are a race, even where this run happened to get away with it.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wanreport.engines import Stream, base
from wanreport.engines.base import Mover


@dataclass(eq=False)
class Lane:
    """A stream: what it has still to do, and how much of every stream is over before its next."""

    name: str
    work: list[Callable[[], Any]] = field(default_factory=list)
    begun: int = 0  # of its work
    clock: Counter[str] = field(default_factory=Counter)

    def run(self, until: int) -> None:
        while self.begun < until:
            self.begun += 1
            self.work[self.begun - 1]()


@dataclass(eq=False)
class Mark:
    """An event: where it was last recorded."""

    lane: Lane | None = None
    until: int = 0
    clock: Counter[str] = field(default_factory=Counter)


class LazyMover(Mover):
    """Streams as lazy as a device may make them; the waits of the lanes in `deaf` do nothing."""

    deaf: tuple[str, ...] = ()

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.races: list[str] = []
        self.lanes = [Lane("compute")]
        self.current = self.compute
        # The last of each stream since the last write, by storage.
        self._writes, self._reads = (defaultdict[int, Counter[str]](Counter) for _ in range(2))

    @property
    def compute(self) -> Lane:
        return self.lanes[0]

    def stream(self, priority: int = 0) -> Lane:
        self.lanes.append(Lane(f"stream {len(self.lanes)}"))
        return self.lanes[-1]

    @contextmanager
    def on(self, stream: Lane) -> Iterator[None]:  # type: ignore[override]
        before, self.current = self.current, stream
        yield
        self.current = before

    def event(self) -> Mark:
        return Mark()

    def record(self, event: Mark, stream: Lane) -> Mark:
        event.lane, event.until, event.clock = stream, len(stream.work), stream.clock.copy()
        return event

    def wait(self, stream: Lane, event: Mark) -> None:
        self.counters.event_waits += 1
        if stream.name not in self.deaf and event.lane is not None:
            self._follow(stream, event)

    def wait_stream(self, stream: Lane, other: Lane) -> None:
        self.counters.stream_waits += 1
        if "streams" not in self.deaf:
            self._follow(stream, self.record(Mark(), other))

    def _follow(self, stream: Lane, mark: Mark) -> None:
        stream.clock |= mark.clock  # the later of each
        other, until = mark.lane, mark.until  # as they are now: an event may be set again
        self._do(stream, lambda: other and other.run(until))

    def _do(self, stream: Lane, work: Callable[[], Any]) -> None:
        """Compute does it at once, any other stream when somebody waits for it."""
        if stream is self.compute:
            work()
        else:
            stream.work.append(work)

    def touch(self, tensor: Tensor, *, write: bool) -> None:
        """Note an access to a tensor's storage by the current stream, and whom it races with."""
        lane, key = self.current, tensor.untyped_storage().data_ptr()
        others = self._writes[key] | self._reads[key] if write else self._writes[key]
        for name, time in others.items():
            if name != lane.name and lane.clock[name] < time:
                self.races.append(f"{lane.name} {'writes' if write else 'reads'} beside {name}")
        lane.clock[lane.name] += 1
        now = Counter({lane.name: lane.clock[lane.name]})
        if write:
            self._writes[key], self._reads[key] = now, Counter()
        else:
            self._reads[key] |= now

    def h2d(self, device_buffer: Tensor, host_buffer: Tensor, **how: Any) -> None:
        self.touch(device_buffer, write=True)
        if how["blocking"] or self.current is self.compute:
            return super().h2d(device_buffer, host_buffer, **how)
        device_buffer.fill_(0xFF)  # NaN as bfloat16 and as float32
        self.current.work.append(lambda: device_buffer.copy_(host_buffer))
        self.counters.h2d_copies += not how["goes_on"]
        self.counters.h2d_bytes += device_buffer.numel()
        return None

    def unpack(self, packed: Tensor, packing: Any, buffer: Tensor) -> None:
        self.touch(packed, write=False)
        self.touch(buffer, write=True)
        buffer.fill_(0xFF)

        def work() -> None:
            with suppress(IndexError):  # positions that are not there yet
                Mover.unpack(self, packed, packing, buffer)

        self.current.work.append(work)

    def all_gather(self, buffer: Tensor, part: Tensor, group: dist.ProcessGroup) -> None:
        self.touch(buffer, write=True)
        self.counters.unshards += 1
        self._do(self.current, lambda: dist.all_gather_into_tensor(buffer, part, group=group))


class LateMover(Mover):
    """On CUDA: streams are late at random, and the target of a copy is poisoned first.

    ``deaf`` names whose waits for events do nothing, ``compute`` or ``copies``; these are never
    late themselves, so that they run into what the others have still to do.
    """

    CYCLES = 40_000_000  # some 20 ms, longer than a block of the tests takes to compute or to copy

    def __init__(self, device: torch.device, seed: int, deaf: str = "") -> None:
        super().__init__(device)
        self.random, self.deaf = random.Random(seed), deaf

    def _is_deaf(self, stream: Any) -> bool:
        return self.deaf == ("compute" if stream == self.compute else "copies")

    def _sleep(self, stream: Any) -> None:
        if not self._is_deaf(stream):
            with self.on(stream):
                torch.cuda._sleep(self.random.randrange(self.CYCLES))

    def record(self, event: Any, stream: Any) -> Any:
        self._sleep(stream)  # so that what comes before an event ends long after it was issued
        return super().record(event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        if self._is_deaf(stream):
            self.counters.event_waits += 1
        else:
            super().wait(stream, event)
        self._sleep(stream)

    def h2d(self, device_buffer: Tensor, host_buffer: Tensor, **how: Any) -> None:
        device_buffer.fill_(0xFF)
        if not how["blocking"]:
            self._sleep(torch.cuda.current_stream())
        super().h2d(device_buffer, host_buffer, **how)

    def unpack(self, packed: Tensor, packing: Any, buffer: Tensor) -> None:
        buffer.fill_(0xFF)
        self._sleep(torch.cuda.current_stream())
        super().unpack(packed, packing, buffer)


class WatchedStream(Stream):
    """Tells its mover what a block reads, from the beginning of its visit to the end.

    ``fail_at`` is a use (a block's visit, counted from 0 in the first iteration) that raises.
    """

    fail_at: int | None = None
    visits = 0

    def attach(self, *arguments: Any) -> None:
        base.Mover = LazyMover  # type: ignore[misc]
        try:
            super().attach(*arguments)
        finally:
            base.Mover = Mover  # type: ignore[misc]

    def _touch(self, expert: str, block: int) -> None:
        parameter = next(self.experts[expert].blocks[block].parameters())
        self.mover.touch(parameter, write=False)  # type: ignore[attr-defined]

    def before_block(self, expert: str, block: int) -> None:
        super().before_block(expert, block)
        self._touch(expert, block)
        self.visits += 1
        if self.visits - 1 == self.fail_at:
            raise InterruptedError("planted")

    def after_block(self, expert: str, block: int) -> None:
        self._touch(expert, block)
        super().after_block(expert, block)
