"""One check of one fact: its outcome and its working.

Outcomes come from intervals: a number contradicts another only where the rounding of everything
printed cannot explain it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal

from wanreport.baseline.arithmetic import ID, FormulaError, Quantity, evaluate, half_unit
from wanreport.baseline.checks import Check
from wanreport.baseline.evidence import Evidence
from wanreport.baseline.facts import NBSP, Fact, FactError, Facts, decimals_of, quantity_text
from wanreport.baseline.identify import UNITS, Match, matches
from wanreport.jobs.flags import prefetch_layers, resolve_text
from wanreport.jobs.registry import resolve_model
from wanreport.jobs.schedule import switch_step

Outcome = Literal["contradicts", "open", "unknown", "rounding", "holds"]

WORDS: dict[Outcome, str] = {
    "contradicts": "contradicts",
    "open": "not yet measured",
    "unknown": "cannot be known",
    "rounding": "holds within rounding",
    "holds": "holds",
}
"""The outcomes, worst first: a fact's own is the worst of its verdicts."""

COMPUTED = re.compile(r"\{=([^{}]*)\}")
PIPELINE = {"_class_name": "WanPipeline"}
"""Model index of both paths: neither need exist, as both hold the same pipeline."""


@dataclass(frozen=True)
class Verdict:
    """What one check says of one fact.

    Attributes
    ----------
    check
        The kind of check, a key of :data:`CHECKS`; "" for a fact that nothing checks.
    working
        How the outcome comes about, plain text.
    value
        What the number should be by this check; None for a claim.
    elsewhere
        Whether `value` is only what the document says in another place: either may be wrong.
    instead
        What is right instead of a contradicted claim.
    """

    check: str
    outcome: Outcome
    working: str
    value: Quantity | None = None
    elsewhere: bool = False
    instead: str = ""


class Judge:
    """Holds facts against each other and against what was derived."""

    def __init__(self, facts: Facts, evidence: Evidence) -> None:
        self.facts, self.evidence = facts, evidence
        self.functions: dict[str, Callable[..., int]] = {
            "switch_step": self._switch_step,
            "prefetch_layers": lambda size, layers: prefetch_layers(float(size), int(layers)),
            "remainder": lambda number, divisor: int(number % divisor),
        }

    def lookup(self, name: str) -> Quantity:
        """The number that an id stands for: a size, a fact as printed, a date as its day."""
        if name in self.evidence.numbers:
            return Quantity.exact(self.evidence.numbers[name])
        value = self.facts[name].value
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            return Quantity.exact(date.fromisoformat(value).toordinal())
        return self.facts[name].quantity

    def compute(self, formula: str) -> Quantity:
        """Compute a formula over the numbers as printed, and over the model's sizes."""
        return evaluate(formula, self.lookup, self.functions)

    def text(self, text: str) -> str:
        """Put facts as printed for ``{id}`` and numbers for ``{= formula | unit | decimals}``."""
        computed = COMPUTED.sub(lambda match: self.worded(match[1])[0], text)
        return self.facts.fill(computed)

    def worded(self, slot: str) -> tuple[str, str]:
        """The words for a computed number, and its formula."""
        formula, unit, decimals = (piece.strip() for piece in slot.split("|"))
        return quantity_text(self.compute(formula).value, unit, int(decimals)), formula

    def number_text(self, name: str, number: Quantity) -> str:
        """A number beside a printed one, with a decimal more where it would look the same."""
        fact = self.facts[name]
        text = fact.worded(number.value)
        if fact.value != number.value and text == fact.worded(computed_of(fact)):
            text = fact.worded(number.value, decimals=decimals_of(computed_of(fact)) + 1)
        return text

    def binary(self, name: str) -> str:
        """What a size is if the printed MB or GB was meant as MiB or GiB: "670 MiB = 703 MB"."""
        fact = self.facts[name]
        if fact.unit not in UNITS or not isinstance(fact.value, Decimal):
            return ""
        factor, other, other_factor = UNITS[fact.unit]
        decimals = decimals_of(fact.value)
        meant = quantity_text(fact.value, other, decimals)
        return f"{meant} = {quantity_text(fact.value * other_factor / factor, fact.unit, decimals)}"

    # Checks --------------------------------------------------------------------------------------

    def recomputed(self, fact: Fact) -> Verdict:
        """A fact's own formula."""
        kind = "published" if fact.part == "8" else "arithmetic"
        return self._held(fact, "schedule" if "switch_step" in fact.how else kind, fact.how)

    def judge(self, check: Check) -> Verdict:
        """A check from the data file, all but one that repeats another fact's."""
        fact, why = self.facts[check.fact], self.text(check.why)
        if check.how:
            verdict = self._held(fact, check.check, check.how, why)
            # No formula says what a measurement should have been.
            other = fact.kind == "measured" or check.check in ("arithmetic", "published")
            return replace(verdict, elsewhere=other)
        instead = self.text(check.instead)
        if check.size:
            return self._identified(check, why)
        if check.holds:
            outcome, working = self._compared(check.holds)
        elif check.among:
            numbers = set(re.findall(r"\d+", " ".join(map(self.facts.text, check.among))))
            lost = sorted(set(re.findall(r"\d+", self.facts.text(fact.id))) - numbers)
            outcome = "contradicts" if lost else "holds"
            places = ", ".join(f"§{self.facts[name].part}" for name in check.among)
            working = f"Not in {places}: {', '.join(lost)}." if lost else f"As in {places}."
        elif check.engine:
            outcome, working = self._flags(check)
        elif check.resolves:
            outcome, working = self._resolves(fact)
        else:
            outcome, working = self._shifts(str(fact.value))
        return Verdict(check.check, outcome, f"{why} {working}".strip(),
                       instead=instead if outcome == "contradicts" else "")  # fmt: skip

    def _held(self, fact: Fact, check: str, formula: str, why: str = "") -> Verdict:
        """A printed number beside what a formula gives."""
        try:
            computed = self.compute(formula)
        except (FormulaError, FactError) as error:
            raise FactError(f"{fact.id}: {error}") from None
        outcome = compare(fact, computed)
        steps = f"{self._values(formula)} = " if re.search(r"[-+*/(]", formula) else ""
        words = f"{why} {steps}{self.number_text(fact.id, computed)}".strip()
        if outcome != "holds" and computed.low != computed.high:
            decimals = decimals_of(computed_of(fact)) + 1
            low, high = (fact.worded(e, decimals=decimals) for e in (computed.low, computed.high))
            words += f" ({low.split(NBSP)[0]} to {high} with rounding)"
        if outcome == "contradicts":
            words += f"; the printed {self.facts.text(fact.id)} is {self._off(fact, computed)}"
        return Verdict(check, outcome, f"{words}. Formula: {formula}.", value=computed)

    def _off(self, fact: Fact, computed: Quantity) -> str:
        """By how much a printed number is off."""
        printed = computed_of(fact)
        gap = printed - computed.value
        decimals = decimals_of(printed) + (abs(gap) < half_unit(printed) * 2)
        way = "more" if gap > 0 else "less"
        if fact.unit == "%":
            return f"{abs(gap):.{decimals}f} percentage points {way}"
        size = quantity_text(abs(gap), fact.unit, decimals)
        share = f" ({100 * abs(gap / computed.value):.3g}{NBSP}%)" if computed.value else ""
        return f"{size}{share} {way}"

    def _values(self, formula: str) -> str:
        """A formula with the numbers in the place of their ids."""

        def digits(match: re.Match[str]) -> str:
            if match[0] in self.facts:
                return f"{computed_of(self.facts[match[0]]):,}"
            return f"{self.evidence.numbers[match[0]]:,}"

        return ID.sub(digits, formula)

    def _compared(self, condition: str) -> tuple[Outcome, str]:
        """Hold "a <= b < c" against the intervals; its pairs one by one, the worst counts."""
        pieces = re.split(r"\s*(<=|>=|==|<|>)\s*", condition)
        sides = [self.compute(piece) for piece in pieces[::2]]
        found: list[Outcome] = []
        for left, sign, right in zip(sides, pieces[1::2], sides[1:], strict=False):
            if sign in (">", ">="):
                left, right = right, left
            touch = left.low <= right.high and (sign != "==" or right.low <= left.high)
            strict = sign in ("<", ">") and left.low == left.high == right.low == right.high
            exactly = {"==": left.value == right.value}.get(
                sign, left.value < right.value or (left.value == right.value and not strict)
            )
            found.append("holds" if exactly else "rounding" if touch and not strict
                         else "contradicts")  # fmt: skip
        outcome = worst(found)
        signs = {"<=": "≤", ">=": "≥", "==": "="}
        says = " ".join(signs.get(piece, piece) for piece in pieces)
        shown = [quantity_text(side.value, "", _digits(side.value)) for side in sides]
        values = "".join(
            f"{signs.get(p, p)} " if i % 2 else f"{shown[i // 2]} " for i, p in enumerate(pieces)
        ).strip()
        return outcome, f"Needs {values}, which is {_so(outcome)}. Formula: {says}."

    def _identified(self, check: Check, why: str) -> Verdict:
        """Which weights a transfer of this size can be, and whether the claimed ones are."""
        unit = self.facts[check.size].unit
        size = self.compute(check.size)
        found = matches(size, unit, self.evidence.numbers, self.evidence.tensors)
        claimed = [m for m in found if m.part == check.claimed and m.whole]
        right = [m for m in claimed if m.fits and m.unit == unit]
        stated = quantity_text(size.value, "", _digits(size.value))
        best = _distinct(found)[: 1 if right else 3]
        listed = "; ".join(self._match(stated, match) for match in best)
        own = f" Nearest of the {check.claimed}: {self._match(stated, claimed[0])}."
        working = f"Best matches: {listed}.{'' if claimed[0] in best else own}"
        outcome: Outcome = "holds" if right else "contradicts"
        instead = "" if right else self.text(check.instead)
        return Verdict("identification", outcome, f"{why} {working}".strip(), instead=instead)

    def _match(self, stated: str, match: Match) -> str:
        sign = "+" if match.mismatch > 0 else ""
        off = quantity_text(match.mismatch, "bytes", 0)
        size = quantity_text(match.nbytes, "bytes", 0)
        fit = "fits the printed digits" if match.fits else f"{sign}{off}"
        return f"{match.what}, {size} (read as {stated} {match.unit}: {fit})"

    def _flags(self, check: Check) -> tuple[Outcome, str]:
        resolved = resolve_text(self.facts.text(check.flags))
        rules = "; ".join(resolved.steps) or "no rule changes them"
        same = resolved.engine == check.engine
        words = f"The flags {self.facts.text(check.flags)!r} lead SGLang 0.5.9 to"
        outcome: Outcome = "holds" if same else "contradicts"
        return outcome, f"{words} {resolved.engine} ({rules})."

    def _resolves(self, fact: Fact) -> tuple[Outcome, str]:
        """A model setting beside what SGLang 0.5.9's registry makes of the path."""
        _, key, column = fact.id.split(".")
        settings = resolve_model(self.facts.text(f"s2.path.{column}"), index=PIPELINE)
        found = getattr(settings, key)
        same = str(fact.value) == str(found)
        return "holds" if same else "contradicts", f"{'; '.join(settings.steps)}: {key} {found}."

    def _shifts(self, formula: str) -> tuple[Outcome, str]:
        """The formula of the shifted noise level, over the scheduler's own levels."""
        plain = self.evidence.schedules["1"]["sigmas"]
        largest = Decimal(0)
        for shift, schedule in self.evidence.schedules.items():
            for level, shifted in zip(plain[1:-1], schedule["sigmas"][1:-1], strict=True):
                known = {"s0.shift": Quantity.exact(Decimal(shift)),
                         "s0.sigma": Quantity.exact(Decimal(str(level)))}  # fmt: skip
                named = formula.replace("flow_shift", "s0.shift").replace("sigma", "s0.sigma")
                got = evaluate(named, known.__getitem__).value
                largest = max(largest, abs(got - Decimal(str(shifted))))
        # The committed levels have seven digits; shifting multiplies their error at most by 12.
        outcome: Outcome = "holds" if largest < Decimal("1e-5") else "contradicts"
        return outcome, f"Largest difference from the scheduler's own noise levels: {largest:.1e}."

    def _switch_step(self, steps: Decimal, shift: Decimal, ratio: Decimal) -> int:
        schedule = self.evidence.schedules.get(f"{shift.normalize():f}")
        if schedule is None or steps != self.evidence.steps:
            raise FormulaError(
                f"no schedule of {steps} steps with flow shift {shift} was derived; add it to "
                "tools/derive.py and run `make derive`"
            )
        step = switch_step(schedule["timesteps"], float(ratio))
        if step is None:
            raise FormulaError("no step lies below the boundary")
        return step


def compare(fact: Fact, computed: Quantity) -> Outcome:
    """Hold a printed number against a computed one; rounding alone never contradicts."""
    printed = computed_of(fact)
    if fact.bound:
        below = fact.bound == "<"
        if (computed.value < printed) == below:
            return "holds"
        best = computed.low if below else -computed.high
        return "rounding" if best < (printed if below else -printed) else "contradicts"
    half = half_unit(printed)
    if abs(computed.value - printed) <= half:
        return "holds"
    overlap = computed.low <= printed + half and printed - half <= computed.high
    return "rounding" if overlap else "contradicts"


def computed_of(fact: Fact) -> Decimal:
    """A fact's number as printed. Raises FactError where it is none."""
    if not isinstance(fact.value, Decimal):
        raise FactError(f"{fact.id} is not a number")
    return fact.value


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of some outcomes; unknown where there is none."""
    found = set(outcomes)
    return next((outcome for outcome in WORDS if outcome in found), "unknown")


def _so(outcome: Outcome) -> str:
    return {"holds": "so", "rounding": "so within rounding"}.get(outcome, "not so")


def _digits(number: Decimal) -> int:
    """Decimals that leave about four digits."""
    return 0 if number == number.to_integral_value() else max(0, 3 - number.adjusted())


def _distinct(found: Sequence[Match]) -> list[Match]:
    """One match for each size and reading: which of two equal tensors it is, no size can tell."""
    seen: dict[tuple[Decimal, str], Match] = {}
    for match in found:
        seen.setdefault((match.nbytes, match.unit), match)
    return list(seen.values())
