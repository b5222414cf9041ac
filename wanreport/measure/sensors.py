"""What a GPU's own sensors say of it while it computes: clock, power and temperature.

A GPU under load runs as fast as its power limit and its temperature allow, and two boards of one
class differ in that by a per cent or two. So a difference between two runs counts only as far as
the clocks of their GPUs are known.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

import pynvml
import torch

PERIOD_S = 0.2
BUSY = 90  # per cent of the time with a kernel on the GPU; one that waits for copies clocks higher


class Reading(NamedTuple):
    """Per cent of the time with a kernel on the GPU; SM clock in MHz, power in W, heat in °C."""

    busy: int
    sm_mhz: int
    power_w: float
    celsius: int


class Sensors:
    """Reads the sensors of ``device`` five times a second, on a thread, within a ``with``."""

    def __init__(self, device: torch.device) -> None:
        self.readings: list[Reading] = []
        self.board, self._handle = _find(device)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sensors:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._handle is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(PERIOD_S):
            try:
                self.readings.append(_read(self._handle))
            except pynvml.NVMLError_NotSupported:
                return
            except pynvml.NVMLError:  # once only, so the rest of the run is still read
                continue

    def summary(self) -> dict[str, Any] | None:
        """Medians while a kernel was there, and which board it was; None without such readings.

        ``board`` tells boards apart and names none: it is the beginning of a hash.
        """
        busy = [reading for reading in self.readings if reading.busy >= BUSY]
        if not busy:
            return None
        middle = {key: median(getattr(r, key) for r in busy) for key in Reading._fields[1:]}
        return {"board": self.board, "readings": len(busy), **middle}


@functools.cache
def _init() -> None:
    pynvml.nvmlInit()


def _find(device: torch.device) -> tuple[str, Any]:
    """Board and handle of a device; without NVML, or of another kind of device, neither."""
    if device.type != "cuda":
        return "", None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        _init()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except pynvml.NVMLError:
        return "", None
    return hashlib.sha256(uuid.encode()).hexdigest()[:8], handle


def _read(handle: Any) -> Reading:
    return Reading(
        pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    )
