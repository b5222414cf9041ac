"""The schedule is diffusers', without torch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanreport.jobs.schedule import MIN_SAMPLE, flow_schedule, sampled_steps, switch_step


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 27, 40, 50, 100, 1000])
def test_schedule_is_exactly_that_of_diffusers(steps, shift):
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    theirs.set_timesteps(steps)
    ours = flow_schedule(steps, shift)
    assert ours.timesteps == theirs.timesteps.tolist()
    assert ours.sigmas == theirs.sigmas.tolist()  # float32 values in both


def test_a_step_at_the_boundary_still_belongs_to_the_high_noise_expert():
    for shift, index in ((3.0, 9), (12.0, 18)):  # of 27
        timesteps = flow_schedule(27, shift).timesteps
        assert switch_step(timesteps, 0.875) == index
        assert timesteps[index - 1] >= 875 > timesteps[index]
    for ratio, index in {None: None, 0.0: None, 0.4: None, 0.5: 2, 0.9: 1, 1.0: 0}.items():
        assert switch_step([900, 500, 400], ratio) == index


@given(st.integers(1, 100), st.floats(1, 20), st.floats(0, 1))
def test_the_switch_parts_the_steps_in_two(steps, shift, ratio):
    times = flow_schedule(steps, shift).timesteps
    assert times == sorted(times, reverse=True) and times[0] == 999
    switch = switch_step(times, ratio)
    low = [t < ratio * 1000 for t in times]
    assert low == [switch is not None and i >= switch for i in range(steps)]


@given(st.integers(1, 60), st.floats(1, 20), st.integers(MIN_SAMPLE, 60))
def test_a_sample_has_the_first_steps_and_the_switch_with_its_neighbours(steps, shift, count):
    switch = switch_step(flow_schedule(steps, shift).timesteps, 0.875)
    sample = sampled_steps(steps, switch, count)
    assert sample == sorted(set(sample)) and len(sample) == min(count, steps)
    assert set(sample) <= set(range(steps))
    wanted = {0, 1} | ({switch - 1, switch, switch + 1} if switch else set())
    assert {index for index in wanted if 0 <= index < steps} <= set(sample)


def test_a_sample_grows_on_both_sides_of_the_switch():
    assert sampled_steps(27, 18, 8) == [0, 1, 2, 17, 18, 19, 20, 21]
    assert sampled_steps(27, 18, None) == list(range(27))
