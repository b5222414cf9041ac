"""`stream` under lazy streams: the bits of `resident`, the counters of the formula, no race."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from tests.models import Runs, make_experts, make_store
from tests.races import LazyMover, WatchedStream
from tests.ranks import in_ranks, run_ranks
from wanreport.engines import Resident, Stream
from wanreport.jobs.settings import StreamSettings
from wanreport.model.weights import RandomWeights

SOME = (700, 45_000, 3000)  # window quotas: a chunk, most of a small block, a chunk
SHARDED = StreamSettings(3, 1, shard=True)
PACKED = StreamSettings(2, 1, transfer="packed")
PARTS = StreamSettings(2, shard=True, windows=SOME, transfer="packed")
ROUNDED = [StreamSettings(2, 1, transfer="fp8"),
           StreamSettings(2, shard=True, windows=SOME, transfer="fp8")]  # fmt: skip


class Rounding(RandomWeights):
    """Weights as fp8 brings them: of each output channel's largest, the nearest e4m3 share."""

    def fill(self, expert: str, name: str, out: torch.Tensor) -> None:
        super().fill(expert, name, out)
        if name.startswith("blocks.") and out.dim() == 2 and out.dtype == torch.bfloat16:
            scales = out.float().abs().amax(1, keepdim=True) * (1 / 448)
            out.copy_((out.float() / scales).to(torch.float8_e4m3fn).float() * scales)


class Watched(Runs):
    """Runs `stream` with lazy streams beside `resident`, both of 5 small blocks."""

    def __init__(self) -> None:
        super().__init__(size=(16, 16, 1), num_layers=5)
        self.references: dict[str, torch.Tensor] = {}

    def reference(self, **how: Any) -> torch.Tensor:
        key = str(sorted(how.items()))
        if key not in self.references:
            self.references[key] = self(Resident(), **how | {"iterations": 1})["latents"][0]
        return self.references[key]

    def stream(
        self, settings: StreamSettings, fail_at: int | None = None, **how: Any
    ) -> tuple[bool, list[str], dict[str, Any]]:
        """Whether the bits are right in every iteration, the races, and the run."""
        engine = WatchedStream(settings)
        engine.fail_at = fail_at
        run, reference = self(engine, **how), self.reference(**how)
        right = [torch.equal(latents, reference) for latents in run["latents"]]
        return bool(right) and all(right), engine.mover.races, run  # type: ignore[attr-defined]

    def check(self, *each: StreamSettings, **how: Any) -> None:
        for settings in each:
            right, races, run = self.stream(settings, **how)
            assert not races, (settings, races[0])
            assert run["counters"] == run["expected"], settings
            assert right, settings


SETTINGS = [
    StreamSettings(0, 5),
    StreamSettings(both=True),
    StreamSettings(2, 2, spread=False),
    StreamSettings(3, 1, branches_per_visit=1),
    StreamSettings(2, branches_per_visit=1, windows=SOME),
    StreamSettings(2, 1, copy_streams=2, priority=-1),
    StreamSettings(3, copy_streams=2, windows=SOME),
    StreamSettings(2, windows=(0, 0, 0)),
    StreamSettings(2, windows=(1, 10**9, 0)),
    PACKED,
    StreamSettings(3, branches_per_visit=1, windows=SOME, copy_streams=2, transfer="packed"),
    StreamSettings(both=True, transfer="packed"),
]
# Slots and residents from few to more than there are blocks.
SETTINGS += [StreamSettings(slots, residents, windows=windows) for slots, residents, windows in
             zip((1, 2, 3, 2, 4, 2, 6, 3), (0, 0, 0, 1, 1, 3, 2, 4), [None, SOME] * 4, strict=True)
             ]  # fmt: skip
ON_SEVERAL = [
    StreamSettings(2, 1, windows=SOME),
    StreamSettings(2, shard=True),
    StreamSettings(3, 1, shard=True, copy_streams=2),
    StreamSettings(2, 2, shard=True, windows=SOME),
    StreamSettings(3, shard=True, windows=SOME, copy_streams=2, branches_per_visit=1),
    StreamSettings(0, 5, shard=True),
    StreamSettings(both=True, shard=True),
    PACKED,
    PARTS,
    StreamSettings(3, 1, shard=True, copy_streams=2, transfer="packed"),
]


def _one_rank() -> None:
    watched = Watched()
    watched.check(*SETTINGS)
    watched.check(*SETTINGS[:3], steps=1)  # one expert only
    watched.check(*SETTINGS[3:5], cfg=False)  # one branch only


def _two_ranks() -> None:
    Watched().check(*ON_SEVERAL)


def _uneven_shards() -> None:
    Watched().check(SHARDED, ON_SEVERAL[4], PARTS, iterations=1)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "size"), [(_one_rank, 1), (_two_ranks, 2), (_uneven_shards, 3)])
def test_any_settings_give_the_bits_and_the_counters(run: Callable[[], None], size: int) -> None:
    run_ranks(run, size)


FORGOTTEN = [
    (StreamSettings(), "compute"),  # a block does not wait for its load
    (SHARDED, "compute"),  # a block does not wait for its gather
    (StreamSettings(2, 1), "stream 1"),  # a load does not wait for its buffer
    (SHARDED, "stream 1"),  # a part does not wait for its buffer
    (SHARDED, "stream 2"),  # a gather does not wait for its part
    (PACKED, "compute"),  # a block does not wait to be unpacked
    (PACKED, "stream 1"),  # a copy does not wait for its staging buffer
    (PACKED, "stream 2"),  # unpacking does not wait for the copy, nor for the block's buffer
    (PARTS, "stream 2"),  # a gather does not wait for its packed part
    (PARTS, "stream 3"),  # unpacking does not wait for the gather
]


@in_ranks(2)
def test_a_forgotten_wait_is_caught() -> None:
    watched = Watched()
    for settings, lane in FORGOTTEN:
        LazyMover.deaf = (lane,)
        right, races, _ = watched.stream(settings, iterations=1)
        assert races, (settings, lane)
        # A copy that starts too early does no harm here, where the host computes before it copies.
        assert not right or lane == "stream 1", (settings, lane)


@in_ranks(2)
def test_fp8_gives_the_bits_of_rounded_weights_and_no_others() -> None:
    watched, bits = Watched(), Watched().reference()
    store = make_store(source=Rounding(0), experts=make_experts(num_layers=5))
    watched.references["[]"] = watched(Resident(), iterations=1, store=store)["latents"][0]
    watched.check(*ROUNDED)
    assert not torch.equal(watched.reference(), bits)


@in_ranks(2)
def test_an_iteration_cut_short_leaves_the_engine_as_good_as_before() -> None:
    watched, late = Watched(), StreamSettings(3, windows=SOME, copy_streams=2)
    sharded = StreamSettings(3, 1, shard=True, windows=SOME)
    for settings in (StreamSettings(2, 1), late, sharded, PACKED, PARTS):
        for visit in (0, 7, 19):
            right, races, run = watched.stream(settings, fail_at=visit)
            assert len(run["latents"]) == 1 and right and not races, (settings, visit)
    LazyMover.deaf = ("streams",)  # what was under way must be waited for
    right, races, _ = watched.stream(StreamSettings(3, copy_streams=2), fail_at=7)
    assert right and races


def test_buffers_of_neighbours_differ_and_residents_are_spread() -> None:
    assert StreamSettings(2, 3).places(6) == [2, 0, 3, 1, 4, 0]
    assert StreamSettings(2, 3, spread=False).places(6) == [2, 3, 4, 0, 1, 0]
    assert StreamSettings(0, 9).places(3) == [0, 1, 2]
    with pytest.raises(ValueError, match="3 of 6"):
        StreamSettings(0, 3).places(6)
    for slots, residents in product((2, 3, 4), range(40)):
        settings = StreamSettings(slots, residents)
        places = settings.places(40)
        assert sorted(set(places)) == list(range(settings.buffers(40)))
        streamed = [place for place in places if place < min(slots, 40 - residents)]
        assert len(streamed) == 40 - residents
        assert all(a != b for a, b in pairwise(streamed))
        distances = {b - a for a, b in pairwise(i for i, p in enumerate(places) if p >= slots)}
        assert max(distances, default=0) - min(distances, default=0) <= 1


def test_an_unannounced_pass_is_refused_and_nothing_but_copies_happens_in_the_loop() -> None:
    experts, engine = make_experts(num_layers=3), Stream(StreamSettings(2, 1))
    engine.attach(experts, make_store(experts=experts), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="pass 0"):
        engine.use("high_noise")
    engine.begin(["high_noise"])
    with pytest.raises(RuntimeError, match="low_noise.*high_noise"):
        engine.use("low_noise")
    addresses = [p.data_ptr() for e in experts.values() for p in e.parameters()]
    before = engine.mover.counters.allocations
    passes = ["high_noise", "low_noise", "low_noise"]
    engine.begin(passes)
    for expert, block in product(range(3), range(3)):
        if block == 0:
            engine.use(passes[expert])
        engine.before_block(passes[expert], block)
        engine.after_block(passes[expert], block)
    with pytest.raises(RuntimeError, match="pass 3"):
        engine.use("low_noise")
    assert addresses == [p.data_ptr() for e in experts.values() for p in e.parameters()]
    assert engine.mover.counters.allocations == before
    assert engine.mover.counters.host_syncs == 2  # what lies outside the blocks, at attach


@pytest.mark.parametrize(
    "wrong",
    [{"slots": -1}, {"residents": -1}, {"copy_streams": 0}, {"branches_per_visit": 3},
     {"windows": (-1, 0, 0)}, {"slots": 0, "residents": 3}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        StreamSettings(**wrong).places(6)
