"""Formulas over printed numbers, with what their rounding leaves open.

A formula is a Python expression in which ids stand for numbers and texts, such as
``100 * (s8.total.old / s8.total.new - 1)``. It is computed for the numbers as printed, and for
every combination of the smallest and largest that would have been printed so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from wanreport.jobs import sglang
from wanreport.jobs.schedule import flow_schedule, switch_step
from wanreport.jobs.settings import layerwise_held

ID = re.compile(r"(?<![\w.])(?:s\d+|wan)(?:\.\w+)+")
"""An id: a fact's, ``s3.2.denoise.new``, or a size's, ``wan.block.bytes``."""

DERIVED = Path(__file__).parent / "derived"
"""What ``make derive`` and ``make citations`` wrote, and the reviewed verdicts."""


class Outcome(StrEnum):
    """What may become of a fact, worst first."""

    FALSE = "contradicted"
    FALLS = "follows from a contradicted one"
    OPEN = "not measured"
    ELSEWHERE = "measured in another setup"
    UNKNOWN = "cannot be known"
    ROUNDING = "holds within rounding"
    HOLDS = "holds"

    @classmethod
    def worst(cls, outcomes: Iterable[Outcome]) -> Outcome:
        """The worst of some; unknown where there is none."""
        return min(outcomes, key=list(cls).index, default=cls.UNKNOWN)


class FactError(ValueError):
    """Data or a formula of the baseline that cannot be used; the message names it."""


class Quantity(NamedTuple):
    """A number and the interval that its rounding leaves open; ``low <= value <= high``."""

    value: float
    low: float
    high: float


def derived(name: str, folder: Path = DERIVED) -> dict[str, Any]:
    """The content of a derived file."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


def decimals_of(printed: Decimal) -> int:
    return max(0, -int(printed.as_tuple().exponent))


def quantity(printed: Decimal, exact: bool = False) -> Quantity:
    """A number as printed; half a unit of its last digit either way is open unless it is exact."""
    half = 0 if exact else Decimal(1).scaleb(-decimals_of(printed)) / 2
    return Quantity(*map(float, (printed, printed - half, printed + half)))


def compare(printed: Decimal, computed: Quantity, bound: str = "") -> Outcome:
    """Hold a printed number against a computed one; rounded or cut off, it never contradicts.

    With "<" or ">" for a bound, the number is only said to be below or above what is printed.
    """
    value, half = float(printed), 0.5 * 10.0 ** -decimals_of(printed) * (1 + 1e-9)
    if bound:
        fits = [end < value if bound == "<" else end > value for end in computed]
        return Outcome.HOLDS if fits[0] else Outcome.ROUNDING if any(fits) else Outcome.FALSE
    if abs(computed.value - value) <= half:
        return Outcome.HOLDS
    low, high = (value + half * (way if way * value < 0 else 2 * way) for way in (-1, 1))
    return Outcome.ROUNDING if computed.low < high and low < computed.high else Outcome.FALSE


def evaluate(formula: str, lookup: Callable[[str], Any], **scope: Any) -> Any:
    """Compute a formula over the quantities and texts that `lookup` gives for ids.

    Returns a quantity, or what a function in it gives. Raises FactError where Python cannot.
    """
    given = {name.replace(".", "__"): lookup(name) for name in ID.findall(formula)}
    ends = [dict.fromkeys(each) if isinstance(each, Quantity) else [each]
            for each in given.values()]  # fmt: skip
    source = ID.sub(lambda match: match[0].replace(".", "__"), formula.strip())
    scope |= {"__builtins__": {}, **FUNCTIONS}
    try:
        found = [eval(source, scope, dict(zip(given, values, strict=True)))
                 for values in product(*ends)]  # fmt: skip
    except (SyntaxError, NameError, TypeError, ArithmeticError, ValueError, KeyError) as why:
        raise FactError(f"{formula!r}: {why}") from None
    if isinstance(found[0], int | float):  # as each quantity names its value first, so here
        return Quantity(float(found[0]), min(found), max(found))
    return found[0]


def condition(text: str, compute: Callable[[str], Any]) -> tuple[Outcome, str]:
    """Hold one side of ``<=``, ``<`` or ``==`` against the other, or call a function that does."""
    pieces = re.split(r"\s*(<=|<|==)\s*", text)
    if len(pieces) == 1:
        so, words = compute(text)
        return Outcome.HOLDS if so else Outcome.FALSE, words
    left, sign, right = pieces  # one comparison each
    gap = compute(f"({left}) - ({right})")
    fits = {"<=": lambda x, y: x <= 0, "<": lambda x, y: x < 0, "==": lambda x, y: x <= 0 <= y}
    so, touch = fits[sign](gap.value, gap.value), fits[sign](gap.low, gap.high)
    values = [f"{compute(side).value:,.4g}" for side in (left, right)]
    words = f"{values[0]} {sign} {values[1]}: {text}"
    return Outcome.HOLDS if so else Outcome.ROUNDING if touch else Outcome.FALSE, words


# What formulas may call. What holds a claim against a source says whether it is so, and how that
# comes about.


def shifts(formula: str) -> tuple[bool, str]:
    """Whether a formula of the noise level gives the scheduler's own levels."""
    plain = flow_schedule(27, 1).sigmas[1:-1]
    largest = max(
        abs(evaluate(formula, str, flow_shift=shift, sigma=sigma).value - shifted)
        for shift in (3, 5, 8, 12)
        for sigma, shifted in zip(plain, flow_schedule(27, shift).sigmas[1:-1], strict=False)
    )
    return largest < 1e-6, f"largest difference {largest:.1e}"


def identified(size: float, unit: str, part: str) -> tuple[bool, str]:
    """Whether a transfer of a printed size can be a whole `part`."""
    # Of what else would have been printed so, nothing is asked.
    found = derived("identified")["sizes"].get(f"{size:g} {unit}", {"whole": [], "best": []})
    return part in found["whole"], f"best matches: {'; '.join(found['best'])}"


def engine(flags: str, name: str) -> tuple[bool, str]:
    """Whether SGLang 0.5.9 takes flags to an engine."""
    found = sglang.resolve_text(flags)
    return found.engine == name, f"{flags!r} leads to {found.engine}: {'; '.join(found.steps)}"


def resolved(path: str, key: str, claimed: Any) -> tuple[bool, str]:
    """Whether SGLang 0.5.9's registry gives a setting for the path of such a pipeline."""
    settings = sglang.resolve_model(path, index={"_class_name": "WanPipeline"})
    found = getattr(settings, key)
    return found == claimed, f"{'; '.join(settings.steps)}: {key} {found}"


def stated(*texts: Any) -> tuple[bool, str]:
    """Whether a text's whole numbers all stand in others, "1439552-1439555" for four of them."""
    texts = tuple(f"{text:g}" if isinstance(text, float) else text for text in texts)
    runs = (re.findall(r"(\d+)(?:(?<=\d{4})-(\d{4,}))?", text) for text in texts)
    first, *others = [{n for a, b in each for n in range(int(a), int(b or a) + 1)} for each in runs]
    lost = first.difference(*others)
    return not lost, f"not there: {sorted(lost)}" if lost else "the same there"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{each.__name__: each for each in (shifts, identified, engine, resolved, stated)},
    "ordered": lambda first, last: (first <= last, f"{first} <= {last}"),
    "within": lambda text, part: (part.removeprefix("./") in text, part),
    "held": lambda ahead, blocks: layerwise_held(int(blocks), int(ahead), switch=True),
    "prefetch_layers": lambda size, blocks: sglang.prefetch_layers(size, int(blocks)),
    "switch_step": lambda steps, shift, ratio: switch_step(
        flow_schedule(int(steps), shift).timesteps, ratio),
}  # fmt: skip
