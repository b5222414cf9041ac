"""Engines on a real GPU: full-width blocks, real copies on a stream of their own."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.models import Runs, compiled, interrupted, make_experts, make_store, run_engine
from tests.races import LateMover
from tests.ranks import run_ranks
from wanreport.engines import ENGINES, Stream, base
from wanreport.jobs.settings import StreamSettings
from wanreport.model.clock import hot_steps
from wanreport.model.denoise import Guidance, latent_shape
from wanreport.model.expert import A14B, Expert, Segments
from wanreport.model.weights import HostStore
from wanreport.planner.plan import make_plan
from wanreport.planner.probe import Probe

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

# Full width, four blocks, two shapes: 480p and 720p frames, few of them.
WIDE = A14B | {"num_layers": 4}
SHAPES = {"480p": (480, 832, 5), "720p": (720, 1280, 5)}
LOCAL = [(2, 0, None), (3, 1, None), (2, 0, (10**8, 2 * 10**8, 10**8)), (0, 4, None)]
STREAMS = [
    StreamSettings(slots, residents, windows=windows, copy_streams=1 + residents % 2)
    for slots, residents, windows in LOCAL
] + [StreamSettings(2, 1, transfer="packed")]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("swap", {}),
    ("layerwise", {"prefetch": 1}),
    ("layerwise", {"prefetch": 3}),
    ("fsdp", {}),
    *(("stream", {"settings": settings}) for settings in STREAMS),
]
ONE_SHAPE = pytest.mark.parametrize("resident", ["480p"], indirect=True)
EACH = pytest.mark.parametrize(("engine", "options"), CASES)
RACING = [case for case in CASES if case[0] in ("layerwise", "stream")]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.cuda.set_device(0)
    store = f"file://{tmp_path_factory.mktemp('group') / 'rendezvous'}"
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    with torch.no_grad():
        yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def stores(group: None) -> Iterator[dict[str, HostStore]]:
    """By how blocks lie; filled and pinned once, for all runs of WIDE's blocks."""
    stores = {transfer: make_store(transfer, "cuda:0", experts=make_experts(**WIDE), pin=True)
              for transfer in ("bf16", "packed")}  # fmt: skip
    yield stores
    for store in stores.values():
        store.close()


def _run(engine: Any, shape: str = "480p", *, stores: Any = None, **how: Any) -> dict[str, Any]:
    """Run an engine, or one of its name."""
    made = ENGINES[engine]() if isinstance(engine, str) else engine
    how = {"store": stores and stores[made.transfer]} | how
    return run_engine(made, device="cuda", size=SHAPES[shape], **(WIDE | how))


@pytest.fixture(scope="module", params=SHAPES)
def resident(request: pytest.FixtureRequest, group: None) -> tuple[str, dict[str, Any]]:
    return request.param, _run("resident", request.param)


def _same(run: dict[str, Any], reference: dict[str, Any]) -> None:
    assert reference["latents"][0].isfinite().all()
    for latents in run["latents"]:
        assert torch.equal(latents, reference["latents"][0])
    assert run["counters"] == run["expected"]


@EACH
def test_bits_and_counters_on_the_device(engine, options, resident, stores):
    shape, reference = resident
    _same(_run(ENGINES[engine](**options), shape, stores=stores), reference)


@ONE_SHAPE
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("engine", "options"), RACING)
def test_bits_where_every_stream_is_late_at_random(
    engine, options, seed, resident, stores, monkeypatch
):
    monkeypatch.setattr(base, "Mover", lambda device: LateMover(device, seed))
    _same(_run(ENGINES[engine](**options), stores=stores), resident[1])


@ONE_SHAPE
@pytest.mark.parametrize("at", [5, 30])
@EACH
def test_an_exception_inside_a_block_leaves_the_engine_usable(
    engine, options, at, resident, stores
):
    run = _run(interrupted(engine, at, **options), stores=stores)
    assert len(run["latents"]) == 1
    assert torch.equal(run["latents"][0], resident[1]["latents"][0])


@ONE_SHAPE
@pytest.mark.parametrize("deaf", ["compute", "copies"])
def test_a_forgotten_wait_shows_where_every_stream_is_late(deaf, resident, stores, monkeypatch):
    monkeypatch.setattr(base, "Mover", lambda device: LateMover(device, 0, deaf))
    run = _run("stream", stores=stores)
    assert not all(torch.equal(x, resident[1]["latents"][0]) for x in run["latents"])


def _run_compiled(engine: Any, **how: Any) -> dict[str, Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = _run(engine, segments=Segments.compiled(), **how)
    assert compiled() == {"graphs": 3, "graph_breaks": 0}
    return run


@pytest.fixture(scope="module")
def resident_compiled(group: None) -> dict[str, Any]:
    return _run_compiled("resident")


@EACH
def test_compiled_segments_are_one_graph_each_and_give_the_bits_of_resident(
    engine, options, resident_compiled, stores
):
    _same(_run_compiled(ENGINES[engine](**options), stores=stores), resident_compiled)


def test_a_plan_is_made_and_its_engine_gives_the_bits_of_resident(group: None) -> None:
    wide = A14B | {"num_layers": 6}

    def make(blocks: int) -> Expert:
        return Expert("high_noise", A14B | {"num_layers": blocks}, torch.bfloat16)

    store = make_store(experts={"high_noise": make(6)}, pin=True)
    latents = torch.randn(latent_shape(*SHAPES["480p"]), device="cuda")
    texts = [torch.randn(1, 512, 4096, device="cuda").bfloat16() for _ in range(2)]
    probe = Probe(make, store, dist.group.WORLD, latents, Guidance(*texts, {"high_noise": 4.0}))
    inputs = probe.inputs(None, 27)
    assert min(inputs.windows_s) > 0 and inputs.other_s >= 0
    assert 0 <= inputs.local.collective_rate <= inputs.local.rate
    assert inputs.activation_bytes > 0 and inputs.device_bytes > 0
    plan, settings = make_plan(inputs, 3, probe.trial)
    assert len(plan["trial"]) in (0, 2)
    store.close()
    _same(_run(Stream(settings), **wide), _run("resident", **wide))


def test_steps_heat_a_gpu_for_two_seconds_and_nothing_else(group: None) -> None:
    assert hot_steps(0.3, torch.device("cuda"), dist.group.WORLD) == 7
    assert hot_steps(0.3, torch.device("cpu"), None) == 0


def _several(late: bool) -> None:
    """All engines, and all ways to stream, over the ranks of one host, in each rank."""
    run = Runs(device="cuda", size=SHAPES["480p"], steps=3, **WIDE)
    reference = run(ENGINES["resident"]())
    engines: list[tuple[str, dict[str, Any]]] = [
        ("stream", {"settings": replace(settings, shard=shard)})
        for shard in (False, True)
        for settings in STREAMS
    ]
    if not late:
        engines += [case for case in CASES if case[0] != "stream"]
    else:
        base.Mover = lambda device: LateMover(device, dist.get_rank())  # type: ignore
    for name, options in engines:
        _same(run(ENGINES[name](**options)), reference)
    run.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_bits_and_counters_on_several_devices(size: int, late: bool) -> None:
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs; torch sees {torch.cuda.device_count()}")
    run_ranks(_several, size, late, backend="nccl")


@pytest.mark.parametrize("engine", list(ENGINES))
def test_attach_run_detach_leaves_no_memory_behind(engine, group, monkeypatch):
    registered: dict[int, int] = {}
    runtime = torch.cuda.cudart()

    class Counting:
        def cudaHostRegister(self, pointer: int, nbytes: int, flags: int) -> Any:  # noqa: N802
            registered[pointer] = nbytes
            return runtime.cudaHostRegister(pointer, nbytes, flags)

        def cudaHostUnregister(self, pointer: int) -> Any:  # noqa: N802
            del registered[pointer]
            return runtime.cudaHostUnregister(pointer)

        def __getattr__(self, name: str) -> Any:  # what torch itself asks for
            return getattr(runtime, name)

    monkeypatch.setattr(torch.cuda, "cudart", Counting)

    def used() -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize()
        pool = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
        return torch.cuda.memory_allocated(), pool + sum(registered.values())

    # Narrow, so that twenty stores are soon filled; what may leak is the same.
    few: dict[str, Any] = {"num_attention_heads": 8, "ffn_dim": 4096, "num_layers": 2}
    few |= {"steps": 3, "iterations": 1}
    _run(engine, **few)
    before = used()
    for _ in range(20):
        _run(engine, **few)
    assert used() == before
