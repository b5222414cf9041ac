"""`resident`: both experts stay on the device.

    compute  | 0 | 1 | 2 | … | n-1 | 0 | 1 | …
    copy     (nothing: everything came at attach)

The reference of every comparison, and what a GPU with room for 2 × 28.6 GB would do.
"""

from wanreport.engines.base import Counters, Engine, Shape


class Resident(Engine):
    name = "resident"

    def _attach(self) -> None:
        for expert in self.experts:
            for unit in self.store.units(expert):
                self._hold(expert, unit)
        self.store.close()  # nothing comes from the host again

    def expected(self, shape: Shape, iteration: int) -> Counters:
        """Nothing moves after attach."""
        return Counters()
