"""What formulas may call besides arithmetic: SGLang's rules, the schedule, texts held together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from wanreport.baseline.arithmetic import evaluate
from wanreport.jobs import sglang
from wanreport.jobs.schedule import switch_step
from wanreport.jobs.settings import layerwise_left

Said = tuple[bool, str]
"""Whether it is so, and how that comes about."""

PIPELINE = {"_class_name": "WanPipeline"}
"""Model index of both paths: neither need exist, as both hold the same pipeline."""


def of(evidence: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The functions by name; `evidence` has the schedules and what sizes were identified as."""
    schedules, sizes = evidence["schedule"]["schedules"], evidence["identified"]["sizes"]

    def switch(steps: float, shift: float, ratio: float) -> int:
        """The first step below the boundary, by the scheduler's own timesteps."""
        found = schedules.get(f"{shift:g}")
        if found is None or steps != evidence["schedule"]["steps"]:
            raise ValueError(f"add {steps:g} steps with flow shift {shift:g} to tools/derive.py,"
                             " and run `make derive`")  # fmt: skip
        return switch_step(found["timesteps"], ratio) or 0

    def shifts(formula: str) -> Said:
        """Whether a formula of the noise level gives the scheduler's own levels."""
        plain, largest = schedules["1"]["sigmas"], 0.0
        for shift, found in schedules.items():
            for sigma, shifted in list(zip(plain, found["sigmas"], strict=True))[1:-1]:
                given: Any = {"flow_shift": float(shift), "sigma": sigma}
                largest = max(largest, abs(evaluate(formula, str, given).value - shifted))
        # The committed levels have seven digits; shifting multiplies their error at most by 12.
        return (largest < 1e-5, f"largest difference {largest:.1e}")

    def identified(size: float, unit: str, part: str) -> Said:
        """Whether a transfer of a printed size can be a whole `part`."""
        found = sizes.get(f"{size:g} {unit}", {"whole": [], "best": ["run `make derive`"]})
        return (part in found["whole"], f"best matches: {'; '.join(found['best'])}")

    here = (shifts, identified, engine, resolved, stated, within, held, prefetch_layers)
    return {"switch_step": switch, **{f.__name__: f for f in here}}


def engine(flags: str, name: str) -> Said:
    """Whether SGLang 0.5.9 takes flags to an engine."""
    found = sglang.resolve_text(flags)
    return (found.engine == name, f"{flags!r} leads to {found.engine}: {'; '.join(found.steps)}")


def resolved(path: str, key: str, claimed: Any) -> Said:
    """Whether SGLang 0.5.9's registry gives a setting for a model's path."""
    settings = sglang.resolve_model(path, index=PIPELINE)
    found = getattr(settings, key)
    return (found == claimed, f"{'; '.join(settings.steps)}: {key} {found}")


def stated(text: Any, *others: Any) -> Said:
    """Whether a text's whole numbers all stand in others, "1439552-1439555" for four of them."""
    lost = _numbers(text) - set().union(*map(_numbers, others))
    return (not lost, f"not there: {sorted(lost)}" if lost else "the same there")


def _numbers(text: Any) -> set[int]:
    text = f"{text:g}" if isinstance(text, float) else text
    found = {int(number) for number in re.findall(r"\d+", text)}
    for first, last in re.findall(r"(\d{4,})-(\d{4,})", text):
        found |= set(range(int(first), int(last) + 1))
    return found


def within(text: str, part: str) -> Said:
    """Whether a path or a name stands in a text."""
    return (part.removeprefix("./") in text, part)


def held(prefetch: float, blocks: float) -> int:
    """The most blocks of both experts that `layerwise` has on the GPU at once.

    The running expert has those of this fetch and of the next, and block 0; the other one what its
    last pass left.
    """
    return 2 * int(prefetch) + 1 + len(layerwise_left(int(blocks), int(prefetch)))


def prefetch_layers(size: float, blocks: float) -> int:
    """How many layers ahead SGLang fetches."""
    return sglang.prefetch_layers(size, int(blocks))
