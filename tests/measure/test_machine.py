"""What a machine is called: by its driver, as its records already are."""

import json
import os
from types import SimpleNamespace

import pynvml
import pytest

from tests.synthetic import ROOT
from wanreport.measure import machine

DRIVER = {
    "nvmlInit": lambda: None,
    "nvmlDeviceGetCount": lambda: 3,
    "nvmlDeviceGetHandleByIndex": lambda i: i,
    "nvmlDeviceGetUUID": lambda handle: ["GPU-aa", "GPU-ab", "GPU-b"][handle],
    "nvmlDeviceGetName": lambda _: "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=85 * 10**9),
    "nvmlSystemGetDriverVersion": lambda: "550.54",
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda _: 5,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda _: 16,
    "nvmlDeviceGetP2PStatus": lambda *_: pynvml.NVML_P2P_STATUS_OK,
}


def test_a_class_follows_from_what_the_driver_and_the_environment_say():
    records = sorted((ROOT / "results").glob("[0-9]*/*.json"))
    for path in records:
        known = json.loads(path.read_text())["machine"]
        facts = (known["gpu_name"], known["gpu_count"], known["interconnect"], known["nccl"])
        assert machine.class_of(*facts) == (known["class"], known["slug"]), path
        assert known["slug"] == path.parent.name
    assert records


@pytest.fixture
def driver(monkeypatch):
    """A driver with three H100s that talk over NVLink; sets variables of the environment."""
    for name, answer in DRIVER.items():
        monkeypatch.setattr(pynvml, name, answer)
    for name in ("CUDA_VISIBLE_DEVICES", *machine.NCCL_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(
    ("allowed", "there"),
    [("", []), ("1", [1]), ("2,0", [2, 0]), ("0,-1,1", [0]), ("0,7,1", [0]), ("GPU-ab", [1]),
     ("GPU-a", []), ("GPU-b,0", [2, 0]), (None, [0, 1, 2])],
)  # fmt: skip
def test_gpus_are_those_that_cuda_would_see(driver, allowed, there):
    if allowed is not None:
        driver("CUDA_VISIBLE_DEVICES", allowed)
    assert machine.gpus() == there


def test_interconnect_and_settings_are_part_of_the_class_and_cores_are_not(driver, monkeypatch):
    assert machine.machine()["slug"] == "3x-nvidia-h100-80gb-hbm3-nvlink"
    driver("NCCL_P2P_DISABLE", "1")
    driver("NCCL_NVLS_ENABLE", "0")
    driver("CUDA_VISIBLE_DEVICES", "0,1")
    here = machine.machine()
    folder = "2x-nvidia-h100-80gb-hbm3-host-memory-over-pcie-nccl-p2p-disable-1-nccl-nvls-enable-0"
    assert here["slug"] == folder and (ROOT / "results" / folder).is_dir()
    assert here["pcie"] == {"generation": "5", "width": "16"} and here["device"] == "cuda"
    driver("CUDA_VISIBLE_DEVICES", "2")
    assert machine.machine()["slug"] == "1x-nvidia-h100-80gb-hbm3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv(machine.NODES, "2")  # with as many GPUs each
    there = machine.machine()
    assert (there["gpu_count"], there["interconnect"]) == (4, "network between 2 nodes")
    on_cpu = []
    for cores in (1, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n))
        on_cpu.append(machine.machine("cpu"))
    assert [here.pop("cpu_cores") for here in on_cpu] == [1, 64] and on_cpu[0] == on_cpu[1]
    assert on_cpu[0]["slug"].startswith("cpu-")
