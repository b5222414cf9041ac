"""What a GPU's own sensors say of it while it computes: clock, power and temperature.

Under load it runs as fast as power limit and temperature allow, and two boards of one class differ
in that by a per cent or two: between two runs a difference counts only if their clocks are known.
"""

import hashlib
import threading
from contextlib import suppress
from statistics import median
from typing import Any, Self

import pynvml
import torch

PERIOD_S = 0.2
BUSY = 90  # per cent of the time with a kernel on the GPU; one that waits for copies clocks higher
FIELDS = ("sm_mhz", "power_w", "celsius")


class Sensors:
    """Reads the sensors of ``device`` five times a second, on a thread, within a ``with``."""

    def __init__(self, device: torch.device) -> None:
        # Per cent of the time with a kernel on the GPU, then SM clock in MHz, power in W, heat.
        self.readings: list[tuple[float, ...]] = []
        self.board, self._handle = "", None
        if device.type == "cuda":
            # Tells boards apart and names none. NVML's name of a board has a prefix more.
            uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
            self.board = hashlib.sha256(uuid.encode()).hexdigest()[:8]
            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def __enter__(self) -> Self:
        self._over, self._thread = threading.Event(), threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._handle is not None and not self._over.wait(PERIOD_S):
            try:
                self.readings.append((
                    pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu,
                    pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),
                    pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3,
                    pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),
                ))  # fmt: skip
            except pynvml.NVMLError_NotSupported:
                return
            except pynvml.NVMLError:  # once only, so the rest of the run is still read
                continue

    def summary(self) -> dict[str, Any] | None:
        """The board and medians while a kernel was there; None without such readings."""
        busy = [values for share, *values in self.readings if share >= BUSY]
        middle = map(median, zip(*busy, strict=True))
        known = {"board": self.board, "readings": len(busy)}
        return known | dict(zip(FIELDS, middle, strict=True)) if busy else None
