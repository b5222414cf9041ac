"""`swap`: the active expert is on the device, the other one in host memory.

    compute  | step k-1 |                                   | step k (switch) | …
    copy                | high_noise → host | low_noise → device |
                          both blocking, tensor by tensor

At the first step and at the switch a whole expert is moved by a blocking ``.to()``, and the one
that leaves is copied back to the host although nothing changed it. In between nothing moves. This
is what SGLang 0.5.9 does with ``dit_cpu_offload`` and without layerwise offload
(runtime/pipelines_core/stages/denoising.py:837-865): the host copy is pageable, and memory for
the expert that returns is allocated anew each time.
"""

from wanreport.engines.base import Counters, Engine, Shape


class Swap(Engine):
    name = "swap"
    pins_store = shares_store = False

    def _attach(self) -> None:
        self.active: str | None = None
        for expert in self.experts.values():
            expert.rope.to("cpu")
        self._hold_on_host()  # the only host copy from here on, as after a plain load

    def use(self, expert: str) -> None:
        if expert == self.active:
            return
        timeline = self.mover.timeline
        if self.active is not None:
            with timeline.during("copy", "switch", self.active, None):
                self.experts[self.active]._apply(self.mover.to_host)
        with timeline.during("copy", "switch", expert, None):
            self.experts[expert]._apply(self.mover.to_device)
        self.active = expert

    def expected(self, shape: Shape, iteration: int) -> Counters:
        """Each use of an expert brings it in, and all but the very first send one out."""
        sizes = [piece.shape.numel() * piece.dtype.itemsize
                 for layout in shape.layouts for piece in layout.slices]  # fmt: skip
        n, nbytes = len(sizes) + len(shape.buffers), sum(sizes) + sum(shape.buffers)
        one = Counters(h2d_copies=n, h2d_bytes=nbytes, allocations=n, host_syncs=n)
        other = Counters(d2h_copies=n, d2h_bytes=nbytes, host_syncs=n)
        used = [expert for expert, passes in shape.passes.items() if passes]
        # With one expert in use it stays between iterations; with two, each use is a swap.
        arrivals = len(used) if iteration == 0 or len(used) > 1 else 0
        departures = arrivals - (iteration == 0 and arrivals > 0)
        return one * arrivals + other * departures
