"""`resident`: both experts stay on the device.

    compute  | 0 | 1 | 2 | … | n-1 | 0 | 1 | …
    copy     (nothing: everything came at attach)

The reference of every comparison, and what a GPU with room for 2 × 28.6 GB would do.
"""

from __future__ import annotations

from .base import Bound, Counters, Engine, Shape


class Resident(Engine):
    name = "resident"

    def _attach(self) -> None:
        for expert_name, expert in self.experts.items():
            for unit in self.store.units(expert_name):
                host = self.store.buffer(expert_name, unit)
                buffer = self.mover.allocate(host.numel())
                self.mover.h2d(buffer, host, blocking=True)
                layout = self.store.layouts[expert_name, unit]
                Bound(expert, layout, self.mover.device).point_into(buffer)
        self.store.close()  # nothing comes from the host again

    @classmethod
    def expected(cls, shape: Shape, iteration: int, prefetch: int) -> Counters:
        """Nothing moves after attach."""
        return Counters()
