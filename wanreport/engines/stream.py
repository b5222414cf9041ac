"""`stream`: every block has one fixed place on the device, and loads go round it.

    compute     | 0: cond uncond | 1: cond uncond | 2: cond uncond | 3: …
    copy        | 1   | 2   |      3   |            4   |            5 …
                              ↑ 0 is done: its slot is free
    gather      (sharded)  | 1   | 2   |      3   |            4   | …

An expert's block i has one buffer on the device, the same for both experts: its own if the block
is *resident*, else one of the slots, which the streamed blocks take in turn. Parameters are bound
to the buffers once, at attach, so addresses never change; the loop allocates nothing and never
makes the host wait.

The pipeline says at the start of an iteration which experts its passes use. Hence all loads are
known: a *use* (pass, block) needs one where its buffer holds anything else. Loads go out in order
of use. One waits for the last use of its buffer (the buffer's ``free`` event), and the use waits
for its load (``ready``); nothing else waits. So a resident block is loaded when its expert first
comes to it, behind the blocks before it, and the other expert's block takes its place as soon as
its last use is over: neither the first step nor the switch has a stop of its own.

With *windows* a load is cut into chunks that start only where no collective is in flight: at each
window the copy stream waits for the window's start and then takes no more than the window's quota
of bytes. What is left when a block is needed goes at once.

With *shard* each rank copies its part of a block into its place in the buffer, and the ranks gather
the block in place, on a stream and a process group of their own, while the next part is copied.

With *packed* transfers a block comes in three quarters of its bytes, or as *fp8* in half of them,
into one of a few staging buffers, and is unpacked from there into its own, on one more stream:

    compute     | 0: cond uncond | 1: cond uncond | 2: …
    copy        | 1       | 2       | 3       | 4
    unpack                | 1 |            | 2 |        each once its slot is free

A copy waits for its staging buffer to be unpacked (``drained``) and no longer for the slot. What is
gathered are packed parts, and quotas of windows are packed bytes.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from wanreport.engines.base import Counters, Engine, Shape
from wanreport.jobs.settings import RING, SEGMENTS, SENT, StreamSettings
from wanreport.model.layout import ALIGN, Layout
from wanreport.model.weights import PACKERS

FIRST = -1  # priority of unpacking: it is short, and a block waits for it


class Load(NamedTuple):
    """A block to bring: for which use, into which buffer, and how many uses must be over first."""

    use: int
    buffer: int
    expert: str
    block: int
    after: int


class Stream(Engine):
    name = "stream"
    branches_per_visit = 2

    def __init__(
        self, settings: StreamSettings | None = None, *, prefetch: int = 1, **changes: Any
    ) -> None:
        super().__init__(prefetch=prefetch)
        self.settings = settings or StreamSettings(**changes)
        self.branches_per_visit = self.settings.branches_per_visit
        self.transfer = self.settings.transfer

    def _attach(self) -> None:
        settings, mover, store = self.settings, self.mover, self.store
        self.packed = settings.packs
        if settings.transfer != store.transfer:
            raise ValueError(f"transfer is {settings.transfer}, the host store's {store.transfer}")
        self.ranks = dist.get_world_size(self.group) if settings.shard and self.group else 1
        self.rank = dist.get_rank(self.group) if self.ranks > 1 else 0
        # A group of its own: its gathers and the pipeline's collectives do not wait in one line.
        self.gathering = dist.new_group() if self.ranks > 1 else None
        self.blocks = max(len(expert.blocks) for expert in self.experts.values())
        self.places = settings.places(self.blocks)
        self.sizes = {  # bytes of each block on the link
            (name, block): store.buffer(name, block).numel()
            for name in self.experts
            for block in range(self.blocks)
        }
        self.nbytes = max(self.sizes.values())
        arriving = self.ranks * self._part(self.nbytes)
        whole = max(store.layouts[key].nbytes for key in self.sizes)
        self.buffers = [
            mover.allocate(whole if self.packed else arriving)
            for _ in range(settings.buffers(self.blocks))
        ]
        self.staging = [mover.allocate(arriving) for _ in range(RING * self.packed)]
        for name in self.experts:
            self._hold(name, None)
            for block in range(self.blocks):
                self._bind(name, block, self.buffers[self._place(name, block)])
        self.copies = [mover.stream(settings.priority) for _ in range(settings.copy_streams)]
        self.gathers = [mover.stream(settings.priority)] if self.gathering else []
        self.unpacks = [mover.stream(FIRST)] if self.packed else []
        self.free, self.ready, self.drained = (
            [mover.event() for _ in each] for each in (self.buffers, self.buffers, self.staging)
        )
        self.opened, self.there = mover.event(), mover.event()
        self._held: list[tuple[str, int] | None] = [None] * len(self.buffers)
        self._arriving: set[int] = set()  # buffers whose load nothing has waited for yet
        self._passes, self._pass, self._staged = list[str](), -1, 0
        if self.gathering:  # connects the ranks now, not in the first step
            target = (self.staging or self.buffers)[0]
            mover.all_gather(target, self._own(target), self.gathering)

    def _part(self, nbytes: int) -> int:
        """Each rank's share of a block on the link, padded."""
        return -(-nbytes // (self.ranks * ALIGN)) * ALIGN

    def _own(self, buffer: Tensor) -> Tensor:
        """This rank's part of what is gathered in a buffer."""
        part = buffer.numel() // self.ranks
        return buffer[self.rank * part : (self.rank + 1) * part]

    def _place(self, expert: str, block: int) -> int:
        second = self.settings.both and expert != next(iter(self.experts))
        return self.places[block] + self.blocks * second

    def begin(self, passes: Sequence[str]) -> None:
        mover = self.mover
        # What an iteration cut short left under way.
        for stream in (*self.copies, *self.gathers, *self.unpacks):
            mover.wait_stream(mover.compute, stream)
        for event in (*self.free, *self.drained):
            mover.record(event, mover.compute)
        self._arriving.clear()
        self._passes, self._loads = list(passes), deque(self._all_loads(passes))
        # The pass that runs, uses that are over, bytes sent of the first load, turn of the streams.
        self._pass, self._done, self._sent, self._turn = -1, 0, 0, 0

    def _all_loads(self, passes: Sequence[str]) -> list[Load]:
        held, over = list(self._held), [0] * len(self.buffers)
        loads, use = [], 0
        for expert in passes:
            for block in range(self.blocks):
                buffer = self._place(expert, block)
                if held[buffer] != (expert, block):
                    loads.append(Load(use, buffer, expert, block, over[buffer]))
                    held[buffer] = (expert, block)
                use += 1
                over[buffer] = use
        return loads

    def use(self, expert: str) -> None:
        self._pass += 1
        announced = self._passes[self._pass : self._pass + 1]
        if announced != [expert]:
            raise RuntimeError(f"pass {self._pass} uses {expert}; begin() announced {announced}")
        if self.settings.windows is None:
            self._send()

    def before_block(self, expert: str, block: int) -> None:
        mover, buffer = self.mover, self._place(expert, block)
        self._send(through=self._pass * self.blocks + block)
        if buffer in self._arriving:
            mover.wait(mover.compute, self.ready[buffer])
            self._arriving.discard(buffer)
        super().before_block(expert, block)

    def after_block(self, expert: str, block: int) -> None:
        super().after_block(expert, block)
        self.mover.record(self.free[self._place(expert, block)], self.mover.compute)
        self._done = self._pass * self.blocks + block + 1
        if self.settings.windows is None:
            self._send()

    def window(self, expert: str, block: int, segment: str) -> None:
        if self.settings.windows is not None:
            self.mover.record(self.opened, self.mover.compute)
            for stream in self.copies:
                self.mover.wait(stream, self.opened)
            self._send(quota=self.settings.windows[SEGMENTS.index(segment)])

    def _send(self, quota: float = math.inf, through: float = math.inf) -> None:
        """Have the copy streams load what is next, as far as buffers are free.

        They send ``quota`` bytes at most, of which all ranks count the padded part, so that they
        gather alike, and nothing for uses beyond ``through``.
        """
        while self._loads and quota > 0:
            load = self._loads[0]
            if load.after > self._done or load.use > through:
                return
            part = self._part(self.sizes[load.expert, load.block])
            size = int(min(part - self._sent, quota))
            self._copy(load, part, size)
            quota -= size
            if self._sent == part:
                self._arrive(load, part)

    def _copy(self, load: Load, part: int, size: int) -> None:
        """Copy the next ``size`` bytes of this rank's part of a block."""
        mover, stream, first = self.mover, self.copies[self._turn], self._sent == 0
        target, event = self.buffers[load.buffer], self.free[load.buffer]
        if self.packed:
            target, event = self.staging[self._staged], self.drained[self._staged]
        if first:
            self._held[load.buffer] = None  # until all of it is there
            mover.wait(stream, event)
        start = self.rank * part + self._sent
        # Padding is not copied.
        stop = max(start, min(start + size, self.sizes[load.expert, load.block]))
        self._sent += size
        host = self.store.buffer(load.expert, load.block)[start:stop]
        with mover.on(stream), mover.timeline.during("copy", "load", load.expert, load.block):
            mover.h2d(target[start:stop], host, blocking=False, goes_on=not first)

    def _arrive(self, load: Load, part: int) -> None:
        """All of the next load is on its way: have its use wait for it, and turn to the next."""
        mover, stream, buffer = self.mover, self.copies[self._turn], self.buffers[load.buffer]
        arriving = (self.staging[self._staged] if self.packed else buffer)[: self.ranks * part]
        key = load.expert, load.block
        if self.gathering:
            stream = self._next(stream, self.gathers[0])
            with mover.on(stream), mover.timeline.during("gather", "all_gather", *key):
                mover.all_gather(arriving, self._own(arriving), self.gathering)
        if self.packed:
            stream = self._next(stream, self.unpacks[0])
            mover.wait(stream, self.free[load.buffer])
            with mover.on(stream), mover.timeline.during("unpack", "unpack", *key):
                mover.unpack(arriving[: self.sizes[key]], self.store.packings.get(key), buffer)
            mover.record(self.drained[self._staged], stream)
            self._staged = (self._staged + 1) % RING
        mover.record(self.ready[load.buffer], stream)
        self._held[load.buffer] = key
        self._arriving.add(load.buffer)
        self._loads.popleft()
        self._sent, self._turn = 0, (self._turn + 1) % len(self.copies)

    def _next(self, stream: Any, other: Any) -> Any:
        """Have the ``other`` stream go on where one has got to; return it."""
        self.mover.record(self.there, stream)
        self.mover.wait(other, self.there)
        return other

    def detach(self) -> None:
        super().detach()
        self.buffers, self.staging = [], []
        if self.gathering:
            dist.destroy_process_group(self.gathering)
            self.gathering = None

    def host_bytes(self, layouts: Sequence[Layout], ranks: int) -> int:
        """As every engine's; packed, a share of it and what is being packed."""
        whole = int(super().host_bytes(layouts, ranks) * SENT[self.settings.transfer])
        packing = ranks * PACKERS * max(layout.nbytes for layout in layouts)
        return whole + self.settings.packs * packing

    def expected(self, shape: Shape, iteration: int) -> Counters:
        """A load is one copy: it waits for its buffer, a gather for it, a block for all that.

        A packed one is waited for once more, and so is the buffer that it goes on to.
        """
        settings, gathers, loads, nbytes = self.settings, self.ranks > 1, 0, 0
        used = [name for name, passes in shape.passes.items() if passes]
        # Blocks with a buffer of their own come once, unless they are still there.
        arrives = iteration == 0 or (len(used) > 1 and not settings.both)
        for (name, block), size in self.sizes.items():
            shared, part = self.places.count(self.places[block]) > 1, self._part(size)
            times = shape.passes[name] if shared else arrives * (name in used)
            loads += times
            nbytes += times * min(part, max(size - self.rank * part, 0))
        visits = shape.branches * self.blocks * sum(shape.passes.values())
        windows = 0 if settings.windows is None else len(SEGMENTS) * visits
        return Counters(
            h2d_copies=loads,
            h2d_bytes=nbytes,
            event_waits=loads * (2 + gathers + 2 * self.packed) + windows * settings.copy_streams,
            stream_waits=settings.copy_streams + gathers + self.packed,
            unshards=loads * gathers,
        )
