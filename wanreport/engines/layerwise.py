"""`layerwise`: blocks stream to the device while earlier ones compute.

    compute  | 0 |    1    |    2    | … |   n-1   | 0 |    1    | …
    copy     | 1 |    2    |    3    | … | (0 is there) | 1 | 2 | …
               ↑ starts after what was enqueued before it on the compute stream

Faithful to SGLang 0.5.9 (runtime/utils/layerwise_offload.py), with prefetch p: before block i runs
the compute stream waits for that block's own event; if p divides i, blocks i+p … i+2p-1 (modulo n)
are requested, each into a fresh flat buffer a dtype, on a copy stream that first waits for the
compute stream. After its run a block's parameters point at one-element stubs; block 0 is never
released. Nothing is ever copied back. The two branches of classifier-free guidance are two passes,
so each block but the first is copied twice a step.

Not modelled: with ``dit_cpu_offload`` left at its default SGLang 0.5.9 also moves the whole module
with ``.to()`` at the switch, to the host and back, with what it holds of the blocks at that moment
(pipelines_core/stages/denoising.py:852-865); here what lies outside the blocks stays on the device.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wanreport.engines.base import Counters, Engine, Shape, bound
from wanreport.jobs.settings import layerwise_left


class Layerwise(Engine):
    name = "layerwise"

    def _attach(self) -> None:
        self.copies = self.mover.stream()
        self.bound: dict[str, list[list[nn.Parameter]]] = {}  # each block's parameters
        self.loaded: dict[str, set[int]] = {name: set() for name in self.experts}  # on the device
        self.events: dict[tuple[str, int], Any] = {}  # of copies that no block has waited for
        for name, expert in self.experts.items():
            self._hold(name, None)
            device, layouts = self.mover.device, self.store.layouts
            blocks = range(len(expert.blocks))
            self.bound[name] = [bound(expert, layouts[name, i], device) for i in blocks]
            for block in blocks:
                self._stub(name, block)
            self._prepare(name)

    def _prepare(self, expert: str) -> None:
        for index in range(self._depth(expert)):
            self._prefetch(expert, index, blocking=True)
        self.mover.wait_stream(self.mover.compute, self.copies)

    def _depth(self, expert: str) -> int:
        return min(max(1, self.prefetch), len(self.bound[expert]))

    def _prefetch(self, expert: str, index: int, *, blocking: bool = False) -> None:
        if index in self.loaded[expert]:
            return
        mover, host = self.mover, self.store.buffer(expert, index)
        layout = self.store.layouts[expert, index]
        mover.wait_stream(self.copies, mover.compute)
        pieces: dict[torch.dtype, Tensor] = {}
        with mover.on(self.copies), mover.timeline.during("copy", "load", expert, index):
            for dtype, (start, stop) in layout.segments.items():
                pieces[dtype] = mover.allocate(stop - start)
                mover.h2d(pieces[dtype], host[start:stop], blocking=blocking)
        self.events[expert, index] = mover.record(mover.event(), self.copies)
        for piece, parameter in zip(layout.slices, self.bound[expert][index], strict=True):
            parameter.data = piece.of(pieces[piece.dtype], layout.segments[piece.dtype][0])
        self.loaded[expert].add(index)

    def _stub(self, expert: str, block: int) -> None:
        """Have a block's parameters point at one element each."""
        for parameter in self.bound[expert][block]:
            parameter.data = self.mover.allocate(1, parameter.dtype)

    def before_block(self, expert: str, block: int) -> None:
        depth = self._depth(expert)
        if block == 0:
            self._prepare(expert)
        if (expert, block) in self.events:  # None where there are no streams
            self.mover.wait(self.mover.compute, self.events[expert, block])
        if block % depth == 0:
            for index in range(block + depth, block + 2 * depth):
                self._prefetch(expert, index % len(self.bound[expert]))
        super().before_block(expert, block)

    def after_block(self, expert: str, block: int) -> None:
        super().after_block(expert, block)
        self.events.pop((expert, block), None)
        if block == 0:
            return
        self._stub(expert, block)
        self.loaded[expert].discard(block)

    def detach(self) -> None:
        super().detach()
        self.bound, self.events = {}, {}

    def expected(self, shape: Shape, iteration: int) -> Counters:
        """Each pass releases every block but the first once, and loads as many.

        The very first one of an expert finds those of attach instead of those that a pass leaves.
        """
        n, block = len(shape.layouts) - 1, shape.layouts[1]
        p = min(max(1, self.prefetch), n)
        dtypes, parameters = len(block.segments), len(block.slices)
        left, first, counters = layerwise_left(n, p), iteration == 0, Counters()
        for passes in filter(None, shape.passes.values()):
            released = passes * (n - 1)
            loaded = released + first * (len(left) - p)
            counters += Counters(
                h2d_copies=loaded * dtypes,
                h2d_bytes=loaded * block.nbytes,
                allocations=loaded * dtypes + released * parameters,
                event_waits=released + first,  # block 0 has an event only after its one load
                stream_waits=loaded + passes,
                host_syncs=(passes - first) * len(set(range(p)) - left) * dtypes,
            )
        return counters
