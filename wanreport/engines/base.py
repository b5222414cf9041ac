"""What all offload engines share: the protocol, the counters and the one way to move memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from operator import add, sub
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wanreport.model.clock import between, mark
from wanreport.model.expert import Expert, Watcher
from wanreport.model.layout import Layout
from wanreport.model.packed import PackedUnit
from wanreport.model.weights import HostStore


@dataclass
class Counters:
    """What an engine did, on one rank; bytes include a buffer's alignment."""

    h2d_copies: int = 0
    h2d_bytes: int = 0
    d2h_copies: int = 0
    d2h_bytes: int = 0
    allocations: int = 0  # device memory asked for, whether or not the allocator had it at hand
    event_waits: int = 0  # by a stream, …
    stream_waits: int = 0
    host_syncs: int = 0  # … and by the host
    unshards: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*map(sub, astuple(self), astuple(other)))

    def __mul__(self, times: int) -> "Counters":
        return Counters(*(value * times for value in astuple(self)))


class Timeline:
    """Begin and end of what runs; nothing is recorded until `step` is set.

    With ``nvtx`` (`torch.cuda.nvtx`) each event is a range for Nsight Systems, too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step: int | None = None
        self.nvtx: Any = None
        self.events: list[dict[str, Any]] = []  # rows, with marks in place of times

    def begin(self, lane: str, what: str, expert: str, block: int | None) -> dict[str, Any] | None:
        if self.step is None:
            return None
        event: dict[str, Any] = {"lane": lane, "what": what, "expert": expert, "block": block,
                                 "step": self.step, "start": mark(self.device)}  # fmt: skip
        if self.nvtx:
            started = self.nvtx.range_start(f"{what} {expert} {block}")
            event["range"] = partial(self.nvtx.range_end, started)
        self.events.append(event)
        return event

    def end(self, event: dict[str, Any] | None) -> None:
        if event is not None:
            if "range" in event:
                event.pop("range")()
            event["end"] = mark(self.device)

    @contextmanager
    def during(self, lane: str, what: str, expert: str, block: int | None) -> Iterator[None]:
        event = self.begin(lane, what, expert, block)
        try:
            yield
        finally:
            self.end(event)

    def rows(self) -> list[dict[str, Any]]:
        """All events in milliseconds since the first began."""
        rows = [event.copy() for event in self.events if "end" in event]
        if rows and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        marks = [(row.pop("start"), row.pop("end")) for row in rows]
        # Since the one that was recorded first, though another may have begun before.
        times = [[1e3 * between(marks[0][0], each) for each in pair] for pair in marks]
        origin = min((start for start, _ in times), default=0.0)
        for row, (start, end) in zip(rows, times, strict=True):
            row |= {"start_ms": round(start - origin, 4), "end_ms": round(end - origin, 4)}
        return rows


class Mover:
    """Allocates and copies for an engine, and counts every call.

    Elsewhere than on CUDA a second host buffer stands in for device memory, and streams and events
    are None: an engine makes the same calls, and its counters are as real as on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.counters = Counters()
        self.timeline = Timeline(device)

    @property
    def compute(self) -> Any:
        """The stream that the pipeline computes on."""
        return torch.cuda.current_stream(self.device) if self.cuda else None

    def stream(self, priority: int = 0) -> Any:
        """A stream for copies; a lower ``priority`` goes first."""
        return torch.cuda.Stream(self.device, priority=priority) if self.cuda else None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Have what is inside run on a stream."""
        return torch.cuda.stream(stream) if self.cuda else nullcontext()

    def event(self) -> Any:
        return torch.cuda.Event() if self.cuda else None

    def record(self, event: Any, stream: Any) -> Any:
        """Set ``event`` after all that the stream holds now; one event may be set again."""
        if self.cuda:
            event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """Have a stream wait for what ``event`` was last set to."""
        self.counters.event_waits += 1
        if self.cuda:
            stream.wait_event(event)

    def wait_stream(self, stream: Any, other: Any) -> None:
        """Have a stream wait for all that the other one holds now."""
        self.counters.stream_waits += 1
        if self.cuda:
            stream.wait_stream(other)

    def allocate(self, size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Elements in device memory, on the current stream."""
        self.counters.allocations += 1
        return torch.empty(size, dtype=dtype, device=self.device)

    def h2d(
        self, device_buffer: Tensor, host_buffer: Tensor, *, blocking: bool, goes_on: bool = False
    ) -> None:
        """Copy on the current stream; what ``goes_on`` is part of a copy that was counted."""
        device_buffer.copy_(host_buffer, non_blocking=not blocking)
        self.counters.h2d_copies += not goes_on
        self.counters.h2d_bytes += device_buffer.nbytes
        self.counters.host_syncs += blocking

    def all_gather(self, buffer: Tensor, part: Tensor, group: dist.ProcessGroup) -> None:
        """Fill ``buffer`` with each rank's ``part``, which lies in its own place in it already."""
        dist.all_gather_into_tensor(buffer, part, group=group)
        self.counters.unshards += 1

    def unpack(self, packed: Tensor, packing: PackedUnit | None, buffer: Tensor) -> None:
        """Fill ``buffer`` from a packed unit on the device, or one that would not shrink."""
        if packing:
            packing.unpack(packed, buffer)
        else:
            buffer[: packed.numel()].copy_(packed)

    def to_device(self, tensor: Tensor) -> Tensor:
        """``tensor.to(device)``, as a blocking move of a whole module does it."""
        # On one and the same device .to() copies nothing: a clone does the work.
        moved = tensor.to(self.device) if self.cuda else tensor.clone()
        self.counters += Counters(h2d_copies=1, h2d_bytes=tensor.nbytes, allocations=1,
                                  host_syncs=1)  # fmt: skip
        return moved

    def to_host(self, tensor: Tensor) -> Tensor:
        """``tensor.to("cpu")``, likewise."""
        moved = tensor.to("cpu") if self.cuda else tensor.clone()
        self.counters += Counters(d2h_copies=1, d2h_bytes=tensor.nbytes, host_syncs=1)
        return moved


@dataclass(frozen=True)
class Shape:
    """What the closed formulas of the counters need to know of an expert and a job."""

    layouts: Sequence[Layout]  # of what lies outside the blocks, then of each block: all are alike
    buffers: tuple[int, ...]  # bytes of each that is not a parameter, which a module move takes too
    passes: dict[str, int]  # of each expert in one iteration, in order of use
    world_size: int = 1
    branches: int = 1  # branch states that go through one pass


def bound(expert: Expert, layout: Layout, device: torch.device) -> list[nn.Parameter]:
    """A unit's parameters, put in place of those on the meta device, to be pointed into buffers."""
    parameters = []
    for piece in layout.slices:
        path, _, leaf = piece.name.rpartition(".")
        empty = torch.empty(0, dtype=piece.dtype, device=device)
        parameters.append(nn.Parameter(empty, requires_grad=False))
        expert.get_submodule(path).register_parameter(leaf, parameters[-1])
    return parameters


class Engine(Watcher, ABC):
    """Where block weights live and when they move.

    Life: `attach`; for each iteration `begin`, then for each forward pass of an expert `use` and,
    for each block, `before_block`, `window`\\* and `after_block`; `detach`. An engine moves
    weights; it never changes arithmetic.
    """

    name: ClassVar[str]
    counters_derived: ClassVar[bool] = False
    pins_store: ClassVar[bool] = True
    shares_store: ClassVar[bool] = True
    transfer: str = "bf16"  # how its blocks lie in the store

    def __init__(self, *, prefetch: int = 1) -> None:
        self.prefetch = prefetch

    def attach(
        self, experts: dict[str, Expert], store: HostStore, device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        """Take over the weights of ``experts``, which are on the meta device until now."""
        self.mover, self.experts, self.store, self.group = Mover(device), experts, store, group
        for expert in experts.values():
            expert.rope.to(device)
        self._attach()

    @abstractmethod
    def _attach(self) -> None: ...

    def _bind(self, expert: str, unit: int | None, buffer: Tensor) -> None:
        """Have a unit lie in ``buffer`` for good, on whatever device that is."""
        layout = self.store.layouts[expert, unit]
        parameters = bound(self.experts[expert], layout, buffer.device)
        for piece, parameter in zip(layout.slices, parameters, strict=True):
            parameter.data = piece.of(buffer)

    def _hold(self, expert: str, unit: int | None) -> None:
        """Bring a unit to the device for good."""
        host = self.store.buffer(expert, unit)
        buffer = self.mover.allocate(host.numel())
        self.mover.h2d(buffer, host, blocking=True)
        self._bind(expert, unit, buffer)

    def _hold_on_host(self) -> None:
        """Have all parameters lie in the store's buffers, and keep no other hold of these."""
        for expert in self.experts:
            for unit in self.store.units(expert):
                self._bind(expert, unit, self.store.buffer(expert, unit))
        self.store.close()

    def before_block(self, expert: str, block: int) -> None:
        self._running = self.mover.timeline.begin("compute", "block", expert, block)

    def after_block(self, expert: str, block: int) -> None:
        self.mover.timeline.end(self._running)

    def collective(self, expert: str, block: int) -> AbstractContextManager[Any]:
        return self.mover.timeline.during("collective", "all_to_all", expert, block)

    def detach(self) -> None:
        """Give back all device memory. The experts are spent: build new ones to attach again."""
        if self.mover.cuda:
            torch.cuda.synchronize(self.mover.device)
        for expert in self.experts.values():
            expert.rope.to("cpu")
            for module in expert.modules():
                module._parameters.clear()
        self.experts = {}

    def host_bytes(self, layouts: Sequence[Layout], ranks: int) -> int:
        """Bytes of host memory that the weights take on a host with all ``ranks`` of a job."""
        return sum(layout.nbytes for layout in layouts) * (1 if self.shares_store else ranks)

    @abstractmethod
    def expected(self, shape: Shape, iteration: int) -> Counters:
        """What the counters of one iteration (0, 1, …) must be, by closed formula."""
