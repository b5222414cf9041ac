"""`stream` under lazy streams: the bits of `resident`, the counters of the formula, no race."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tests.models import make_experts, run_engine
from tests.races import LazyMover, WatchedStream
from tests.ranks import run_ranks
from wanreport.engines import Stream
from wanreport.engines.resident import Resident
from wanreport.jobs.settings import StreamSettings
from wanreport.model.weights import HostStore, RandomWeights

SMALL = {"size": (16, 16, 1), "num_layers": 5}
SOME = (700, 90_000, 3000)  # window quotas: a chunk, most of a tiny block, a chunk


def _watched(settings: StreamSettings, **options: Any) -> dict[str, Any]:
    engine = WatchedStream(settings)
    engine.fail_at = options.pop("fail_at", None)
    run = run_engine(engine, **(SMALL | options))
    assert isinstance(engine.mover, LazyMover)
    return run | {"races": engine.mover.races}


def _check(settings: StreamSettings, reference: dict[str, Any], **options: Any) -> None:
    run = _watched(settings, **options)
    assert not run["races"], (settings, run["races"][0])
    assert run["counters"] == run["expected"], settings
    for latents in run["latents"]:
        assert torch.equal(latents, reference["latents"][0]), settings


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
]


def _one_rank() -> None:
    """Slots and residents from few to more than there are blocks; then all other settings."""
    cases = [
        (StreamSettings(slots, residents, windows=windows), 3, True)
        for slots, residents, windows in zip((1, 2, 3, 2, 4, 2, 6, 3), (0, 0, 0, 1, 1, 3, 2, 4),
                                             [None, SOME] * 4, strict=True)
    ]  # fmt: skip
    cases += [(settings, 3, True) for settings in SETTINGS]
    # One expert only; one branch only.
    cases += [(settings, 1, True) for settings in SETTINGS[:3]]
    cases += [(settings, 3, False) for settings in SETTINGS[3:5]]
    references = {}
    for settings, steps, cfg in cases:
        options: dict[str, Any] = SMALL | {"steps": steps, "cfg": cfg}
        if (steps, cfg) not in references:
            references[steps, cfg] = run_engine(Resident(), iterations=1, **options)
        _check(settings, references[steps, cfg], **options)


def test_any_settings_give_the_bits_and_the_counters() -> None:
    run_ranks(_one_rank, 1)


def _ranks() -> None:
    options: dict[str, Any] = SMALL | {"steps": 3}
    reference = run_engine(Resident(), iterations=1, **options)
    for settings in (
        StreamSettings(2, 1, windows=SOME),
        StreamSettings(2, shard=True),
        StreamSettings(3, 1, shard=True, copy_streams=2),
        StreamSettings(2, 2, shard=True, windows=SOME),
        StreamSettings(3, shard=True, windows=SOME, copy_streams=2, branches_per_visit=1),
        StreamSettings(0, 5, shard=True),
        StreamSettings(both=True, shard=True),
    ):
        _check(settings, reference, **options)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_any_settings_give_the_bits_and_the_counters_on_several_ranks(size: int) -> None:
    run_ranks(_ranks, size)


# What a forgotten wait does ----------------------------------------------------------------------

SHARDED = StreamSettings(3, 1, shard=True)


def _deaf(settings: StreamSettings, lane: str) -> tuple[bool, int]:
    """Whether the bits are right, and the number of races, if the waits of a lane do nothing."""
    reference = run_engine(Resident(), **(SMALL | {"iterations": 1}))
    LazyMover.deaf = (lane,)
    run = _watched(settings)
    right = all(torch.equal(x, reference["latents"][0]) for x in run["latents"])
    return right, len(run["races"])


@pytest.mark.parametrize(
    ("settings", "lane", "what"),
    [
        (StreamSettings(), "compute", "a block does not wait for its load"),
        (SHARDED, "compute", "a block does not wait for its gather"),
        (StreamSettings(2, 1), "stream 1", "a load does not wait for its buffer"),
        (SHARDED, "stream 1", "a part does not wait for its buffer"),
        (SHARDED, "stream 2", "a gather does not wait for its part"),
    ],
)  # fmt: skip
def test_a_forgotten_wait_is_caught(settings: StreamSettings, lane: str, what: str) -> None:
    for right, races in run_ranks(_deaf, 2, settings, lane):
        assert races, what
        # A copy that starts too early does no harm here, where the host computes before it copies.
        assert not right or lane == "stream 1", what


# An iteration that is cut short ------------------------------------------------------------------


def _cut_short(settings: StreamSettings, visits: list[int], deaf: str = "") -> list[list[str]]:
    """The races after an iteration that ended in each of ``visits``; the bits must be right."""
    reference = run_engine(Resident(), **(SMALL | {"iterations": 1}))
    LazyMover.deaf = (deaf,)
    races = []
    for fail_at in visits:
        run = _watched(settings, fail_at=fail_at)
        (latents,) = run["latents"]
        assert torch.equal(latents, reference["latents"][0]), fail_at
        races.append(run["races"])
    return races


@pytest.mark.parametrize(
    "settings",
    [
        StreamSettings(2, 1),
        StreamSettings(3, windows=SOME, copy_streams=2),
        StreamSettings(3, 1, shard=True, windows=SOME),
    ],
)
def test_an_iteration_cut_short_leaves_the_engine_as_good_as_before(
    settings: StreamSettings,
) -> None:
    for races in run_ranks(_cut_short, 2, settings, [0, 7, 19]):
        assert not any(races)


def test_what_an_iteration_cut_short_left_under_way_must_be_waited_for() -> None:
    settings = StreamSettings(3, copy_streams=2)
    assert all(run_ranks(_cut_short, 1, settings, [7], "streams")[0])


# Settings and announcements ----------------------------------------------------------------------


def test_buffers_of_neighbours_differ_and_residents_are_spread() -> None:
    assert StreamSettings(2).places(4) == [0, 1, 0, 1]
    assert StreamSettings(2, 3).places(6) == [2, 0, 3, 1, 4, 0]
    assert StreamSettings(2, 3, spread=False).places(6) == [2, 3, 4, 0, 1, 0]
    assert StreamSettings(0, 9).places(3) == [0, 1, 2]
    for slots, residents in product((2, 3, 4), range(40)):
        settings = StreamSettings(slots, residents)
        places = settings.places(40)
        assert sorted(set(places)) == list(range(settings.buffers(40)))
        streamed = [place for place in places if place < min(slots, 40 - residents)]
        assert len(streamed) == 40 - residents
        assert all(a != b for a, b in zip(streamed, streamed[1:], strict=False))
        gaps = [i for i, place in enumerate(places) if place >= slots]
        if len(gaps) > 1:
            distances = {b - a for a, b in zip(gaps, gaps[1:], strict=False)}
            assert max(distances) - min(distances) <= 1


@pytest.mark.parametrize(
    "wrong",
    [{"slots": -1}, {"residents": -1}, {"copy_streams": 0}, {"branches_per_visit": 3},
     {"windows": (-1, 0, 0)}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        StreamSettings(**wrong)


def test_blocks_without_any_buffer_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 6 blocks have no buffer"):
        StreamSettings(0, 3).places(6)


def test_a_pass_that_was_not_announced_is_refused() -> None:
    experts = make_experts(num_layers=2)
    engine = Stream()
    engine.attach(experts, HostStore(experts, RandomWeights(0)), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="is no such pass"):
        engine.use("high_noise")
    engine.begin(["high_noise"])
    with pytest.raises(RuntimeError, match="pass 0 uses low_noise; what was .* is high_noise"):
        engine.use("low_noise")
    engine.begin([])
    with pytest.raises(RuntimeError, match="is no such pass"):
        engine.use("high_noise")


def test_addresses_never_change_and_the_loop_allocates_nothing() -> None:
    experts = make_experts(num_layers=3)
    engine = Stream(StreamSettings(2, 1))
    engine.attach(experts, HostStore(experts, RandomWeights(0)), torch.device("cpu"))
    addresses = [p.data_ptr() for e in experts.values() for p in e.parameters()]
    before = engine.mover.counters.allocations
    engine.begin(["high_noise", "low_noise", "low_noise"])
    for expert in ("high_noise", "low_noise", "low_noise"):
        engine.use(expert)
        for block in range(3):
            engine.before_block(expert, block)
            engine.after_block(expert, block)
    assert addresses == [p.data_ptr() for e in experts.values() for p in e.parameters()]
    assert engine.mover.counters.allocations == before
    assert engine.mover.counters.host_syncs == 2  # what lies outside the blocks, at attach
