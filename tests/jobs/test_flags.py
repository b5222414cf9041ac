"""SGLang 0.5.9's offload flags come out as its own code brings them out."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanreport.jobs.flags import ENGINE_FLAGS, FlagsError, prefetch_layers, resolve

BOOLS = (None, False, True)


@pytest.mark.parametrize(
    ("layerwise", "cpu_offload", "fsdp", "cache_dit", "engine"),
    [
        (None, None, False, False, "layerwise"),  # no flags at all
        (True, None, False, False, "layerwise"),
        (True, False, True, False, "layerwise"),
        (False, None, False, False, "swap"),  # the baseline's "old": not FSDP
        (False, True, False, False, "swap"),
        (False, None, True, False, "fsdp"),
        (False, False, True, False, None),
        (False, False, False, False, "resident"),
        (None, False, False, False, "layerwise"),  # --dit-cpu-offload false alone changes nothing
        (None, None, False, True, "swap"),
    ],
)
def test_flags_amount_to_an_engine(layerwise, cpu_offload, fsdp, cache_dit, engine):
    assert resolve(layerwise, cpu_offload, fsdp, 0.0, cache_dit).engine == engine


def test_layerwise_keeps_cpu_offload_on_for_it_is_decided_before_layerwise_is_looked_at():
    found = resolve(True, None, True, 0.0, False)
    assert (found.layerwise, found.cpu_offload, found.fsdp) == (True, True, False)
    assert [step.split("server_args.py:")[1][:4].rstrip(")") for step in found.steps] == [
        "440",
        "1099",
        "1101",
    ]


def test_flags_given_in_full_leave_nothing_to_explain():
    assert resolve(False, False, False, 0.0, False).steps == []


def test_layerwise_with_cache_dit_is_refused():
    with pytest.raises(FlagsError, match="1107"):
        resolve(True, None, False, 0.0, True)


def test_a_negative_prefetch_size_is_refused_only_with_layerwise():
    with pytest.raises(FlagsError, match="1093"):
        resolve(True, None, False, -1.0, False)
    assert resolve(False, None, False, -1.0, False).prefetch_size == -1.0


@pytest.mark.parametrize(
    ("size", "kept", "explained"),
    [(2.7, 2.0, True), (3, 3.0, False), (1.0, 1.0, False), (0.2, 0.2, False), (0.5, 0.5, True)],
)
def test_a_count_of_layers_is_cut_to_a_whole_one(size, kept, explained):
    found = resolve(True, False, False, size, False)
    assert found.prefetch_size == kept
    assert bool(found.steps) is explained


@pytest.mark.parametrize("flags", list(itertools.product(BOOLS, BOOLS, (False, True))))
def test_resolving_again_changes_nothing(flags):
    once = resolve(*flags, 2.5, False)
    twice = resolve(once.layerwise, once.cpu_offload, once.fsdp, once.prefetch_size, False)
    assert (twice.layerwise, twice.cpu_offload, twice.fsdp, twice.prefetch_size, twice.engine) == (
        once.layerwise,
        once.cpu_offload,
        once.fsdp,
        once.prefetch_size,
        once.engine,
    )


@pytest.mark.parametrize("engine", sorted(ENGINE_FLAGS))
def test_the_flags_listed_for_an_engine_lead_to_it(engine):
    given = {"dit_layerwise_offload": None, "dit_cpu_offload": None, "use_fsdp_inference": False}
    given |= ENGINE_FLAGS[engine]
    assert resolve(*given.values(), 0.0, False).engine == engine


@pytest.mark.parametrize(
    ("size", "layers"),
    [(0.0, 1), (0.2, 9), (0.5, 21), (0.99, 40), (1.0, 1), (3, 3), (3.9, 3), (40, 40), (99, 40)],
)
def test_prefetch_size_is_a_ratio_below_one_and_a_count_from_there(size, layers):
    assert prefetch_layers(size, 40) == layers


sizes = st.floats(min_value=0, max_value=1e6)


@given(sizes, st.integers(1, 100))
def test_prefetch_is_never_less_than_one_layer_nor_more_than_all(size, layers):
    assert 1 <= prefetch_layers(size, layers) <= layers


@given(sizes, sizes, st.integers(1, 100))
def test_prefetch_grows_with_its_size_within_ratios_and_within_counts(a, b, layers):
    small, large = sorted((a, b))
    if (small < 1) == (large < 1):
        assert prefetch_layers(small, layers) <= prefetch_layers(large, layers)


@pytest.mark.parametrize("size", [-1, -0.1, float("nan"), float("inf")])
def test_what_is_not_a_prefetch_size_is_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        prefetch_layers(size, 40)
    with pytest.raises(ValueError, match="0"):
        prefetch_layers(1, 0)
