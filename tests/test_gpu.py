"""Engines on a real GPU: full-width blocks, real copies on a stream of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.models import run_engine
from wanreport import weights
from wanreport.engines import ENGINES
from wanreport.wan import A14B

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

# Full width, four blocks, two shapes: 480p and 720p frames, few of them.
WIDE = A14B | {"num_layers": 4}
SHAPES = {"480p": (480, 832, 5), "720p": (720, 1280, 5)}
CASES = [("swap", 1), ("layerwise", 1), ("layerwise", 3), ("fsdp", 1)]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.cuda.set_device(0)
    store = f"file://{tmp_path_factory.mktemp('group') / 'rendezvous'}"
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    with torch.no_grad():
        yield
    dist.destroy_process_group()


def _run(engine: str, prefetch: int, shape: str) -> dict[str, Any]:
    return run_engine(ENGINES[engine](prefetch=prefetch), device="cuda", size=SHAPES[shape], **WIDE)


@pytest.fixture(scope="module", params=SHAPES)
def resident(request: pytest.FixtureRequest, group: None) -> tuple[str, dict[str, Any]]:
    return request.param, _run("resident", 1, request.param)


@pytest.mark.parametrize(("engine", "prefetch"), CASES)
def test_bits_and_counters_on_the_device(
    engine: str, prefetch: int, resident: tuple[str, dict[str, Any]]
) -> None:
    shape, reference = resident
    run = _run(engine, prefetch, shape)
    assert reference["latents"][0].isfinite().all()
    for latents in run["latents"]:
        assert torch.equal(latents, reference["latents"][0])
    assert run["counters"] == run["expected"]


@pytest.mark.parametrize("engine", ["resident", "swap", "layerwise", "fsdp"])
def test_attach_run_detach_leaves_no_memory_behind(
    engine: str, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[int, int] = {}
    runtime = torch.cuda.cudart()

    class Counting:
        def cudaHostRegister(self, pointer: int, nbytes: int, flags: int) -> Any:  # noqa: N802
            registered[pointer] = nbytes
            return runtime.cudaHostRegister(pointer, nbytes, flags)

        def cudaHostUnregister(self, pointer: int) -> Any:  # noqa: N802
            del registered[pointer]
            return runtime.cudaHostUnregister(pointer)

    monkeypatch.setattr(weights, "_runtime", Counting)

    def used() -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize()
        pool = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
        return torch.cuda.memory_allocated(), pool + sum(registered.values())

    _run(engine, 1, "480p")
    before = used()
    for _ in range(3):
        _run(engine, 1, "480p")
    assert used() == before
