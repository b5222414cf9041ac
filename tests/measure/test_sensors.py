"""What a GPU's sensors say, read by a NVML that a test plays."""

import itertools
import json
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pynvml
import pytest
import torch

from tests.faults.scene import until
from tests.synthetic import ROOT
from wanreport.measure import sensors
from wanreport.measure.sensors import Sensors

# Boards as nvidia-smi named them, in the order of the ranks of a committed record.
BOARDS = [
    "GPU-688b41d1-efb8-83c1-279c-40354758603c", "GPU-62291714-4e49-e119-c816-35374905f080",
    "GPU-2e6520ac-618f-393e-2e7c-cb6cd90692de", "GPU-f54605ba-cfb1-0388-4779-a853db3604a0",
]  # fmt: skip
RECORD = "4x-nvidia-h100-80gb-hbm3-host-memory*/720p-4gpu-resident-8steps-*.json"
# Idle at a high clock, then under load; (per cent busy, MHz, mW, °C).
SCRIPT = [(0, 1980, 120_000, 40), (100, 1600, 700_000, 60), (97, 1590, 690_000, 61),
          (100, 1610, 698_000, 62)]  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """Plays a GPU that goes through SCRIPT, and lists what was asked for."""
    asked, turn, now = [], itertools.cycle(SCRIPT), []

    def busy(handle):
        now[:] = next(turn)
        return SimpleNamespace(gpu=now[0])

    plays = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: asked.append(uuid) or "handle",
        "nvmlDeviceGetUtilizationRates": busy,
        "nvmlDeviceGetClockInfo": lambda handle, kind: now[1],
        "nvmlDeviceGetPowerUsage": lambda handle: now[2],
        "nvmlDeviceGetTemperature": lambda handle, kind: now[3],
    }
    for name, play in plays.items():
        monkeypatch.setattr(pynvml, name, play)
    properties = SimpleNamespace(uuid="0123-4567")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(sensors, "PERIOD_S", 0.001)
    return asked


def _watch(enough, device="cuda"):
    with Sensors(torch.device(device)) as watched:
        until(lambda: enough(watched), 30, 0.001)
    assert not watched._thread.is_alive()
    return watched


def test_medians_are_those_of_a_busy_gpu(gpu):
    watched = _watch(lambda watched: len(watched.readings) >= 4)
    watched.readings = watched.readings[:4]
    summary = watched.summary()
    board = summary.pop("board")
    assert summary == {"sm_mhz": 1600, "power_w": 698.0, "celsius": 61, "readings": 3}
    assert gpu == ["GPU-0123-4567"] and len(board) == 8 and "0123" not in board
    watched.readings = watched.readings[:1]
    assert watched.summary() is None, "it was never busy"
    on_cpu = _watch(lambda watched: True, "cpu")
    assert on_cpu.summary() is None and on_cpu.board == ""


@pytest.mark.parametrize("prefix", ["", "GPU-"])  # torch's own word, and NVML's
def test_a_board_has_the_hash_that_committed_records_have(prefix, gpu, monkeypatch):
    (file,) = (ROOT / "results").glob(RECORD)
    recorded = json.loads(file.read_text("utf-8"))["iterations"][0]["gpu"]
    named = iter(SimpleNamespace(uuid=prefix + board.removeprefix("GPU-")) for board in BOARDS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: next(named))
    found = [Sensors(torch.device("cuda", rank)).board for rank in range(4)]
    assert found == [each["board"] for each in recorded] and gpu == BOARDS


@pytest.mark.parametrize(
    ("call", "error", "times"),
    [("nvmlInit", "NVML_ERROR_LIBRARY_NOT_FOUND", 1),
     ("nvmlDeviceGetPowerUsage", "NVML_ERROR_NOT_SUPPORTED", 1),
     ("nvmlDeviceGetPowerUsage", "NVML_ERROR_TIMEOUT", 5)],
)  # fmt: skip
def test_a_sensor_that_fails_once_is_read_again_and_one_that_is_not_there_is_not(
    call, error, times, gpu, monkeypatch
):
    failed, escaped = Mock(side_effect=pynvml.NVMLError(getattr(pynvml, error))), []
    monkeypatch.setattr(pynvml, call, failed)
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    watched = _watch(lambda watched: failed.call_count >= times)
    assert failed.call_count >= times and not escaped and watched.summary() is None
    assert (times > 1 or failed.call_count == 1) and bool(gpu) is (call != "nvmlInit")
