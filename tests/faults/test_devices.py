"""Faults that only GPUs have."""

import subprocess
import sys

import pytest
import torch

from tests.faults.scene import Scene, full

pytestmark = [pytest.mark.gpu, pytest.mark.faults, pytest.mark.timeout(900)]
FULL_SIZE = {"scale": "a14b", "height": 64, "width": 64, "num_frames": 5}
HOLD = """
import sys, torch
free = torch.cuda.mem_get_info()[0]
held = torch.empty(free - 20 * 10**9, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_device_out_of_memory(tmp_path):
    """Another process leaves 20 GB of the GPU: too little for the experts, enough for layers."""
    scene = Scene(tmp_path)
    jobs = [scene.job("large", "resident", **FULL_SIZE | {"num_gpus": 1}),
            scene.job("small", "layerwise", **FULL_SIZE | {"num_gpus": 1})]  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        code, _, err = scene.run("wanreport", "measure", *jobs)
    finally:
        other.kill()
    records = scene.records()
    assert records["large"]["status"] == "oom" and records["large"]["hint"]
    assert "OutOfMemoryError" in records["large"]["reason"]
    assert records["small"]["status"] == "ok", err


def test_a_full_dev_shm(tmp_path):
    """NCCL keeps what ranks exchange there, where GPUs do not reach each other.

    Newer ones do so only where CUDA cannot share host memory, or may not.
    """
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    scene = Scene(tmp_path)
    job = scene.job("job", "layerwise", **FULL_SIZE)
    code, _, err = scene.run("wanreport", "measure", job, prefix=full("/dev/shm"),
                             NCCL_P2P_DISABLE="1", NCCL_CUMEM_HOST_ENABLE="0")  # fmt: skip
    record = scene.records()["job"]
    assert record["status"] == "failed" and "/dev/shm" in record["reason"], err
    assert code == 1
