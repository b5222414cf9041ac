"""The denoising schedule of diffusers' ``UniPCMultistepScheduler``, without torch."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

TRAIN_TIMESTEPS = 1000
MIN_SAMPLE = 5  # steps: the first two, the switch and its neighbours


class Schedule(NamedTuple):
    """Timesteps, one a step, falling; noise levels, exact float32 values, and their final 0."""

    timesteps: list[int]
    sigmas: list[float]


def flow_schedule(steps: int, shift: float) -> Schedule:
    """The schedule of `steps` denoising steps at flow shift `shift`."""
    import numpy as np  # only here: what needs no schedule starts sooner

    sigmas = np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:-1]
    # Towards 1: a larger shift spends more steps at high noise.
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    # The solver takes log(1 - sigma), so diffusers keeps the first level, which is 1, just below 1:
    # the first timestep is 999 for this reason.
    sigmas[0] -= 1e-6
    timesteps = (sigmas * TRAIN_TIMESTEPS).astype(np.int64)
    return Schedule(timesteps.tolist(), np.append(sigmas, 0).astype(np.float32).tolist())


def switch_step(
    timesteps: Sequence[float], boundary_ratio: float | None, scale: int = TRAIN_TIMESTEPS
) -> int | None:
    """Index of the low-noise expert's first step, below the boundary; None if there is none."""
    boundary = (boundary_ratio or 0) * scale
    return next((index for index, t in enumerate(timesteps) if t < boundary), None)


def sampled_steps(steps: int, switch: int | None, count: int | None) -> list[int]:
    """Indices of the `count` steps (None: all) that a job runs of a schedule, rising.

    The first two, the switch and its neighbours, then in turn the next ones after the switch and
    after the first, so that steady steps of both experts follow one another as in a whole run.
    """
    near = [switch, switch - 1, switch + 1] if switch else []
    late = range(switch + 2 if switch else 1, steps)
    chosen = [0, 1, *near, *chain(*zip_longest(late, range(2, steps)))]
    unique = dict.fromkeys(i for i in chosen if i is not None and 0 <= i < steps)
    return sorted([*unique][:count])
