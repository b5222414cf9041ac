"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Outcomes come from intervals: a number contradicts
another only where the rounding of everything printed cannot explain it. Where a number is
contradicted, whatever follows from it is computed again with the right one; what would then have
been printed differently *rests on* it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wanreport import verdicts as answers
from wanreport.baseline.arithmetic import ID, FormulaError, Quantity, evaluate, half_unit, names
from wanreport.baseline.checks import CHECKS, Check, Conclusion, Judging, load_judging
from wanreport.baseline.evidence import DERIVED, Evidence, load_evidence, read
from wanreport.baseline.facts import (
    NBSP,
    Fact,
    FactError,
    Facts,
    Kind,
    decimals_of,
    load_facts,
    quantity_text,
)
from wanreport.baseline.identify import UNITS, Match, matches
from wanreport.flags import prefetch_layers, resolve_text
from wanreport.registry import resolve_model
from wanreport.schedule import switch_step

Outcome = Literal["contradicts", "open", "unknown", "rounding", "holds"]

WORDS: dict[Outcome, str] = {
    "contradicts": "contradicts",
    "open": "not yet measured",
    "unknown": "cannot be known",
    "rounding": "holds within rounding",
    "holds": "holds",
}
"""The outcomes, worst first: a fact's own is the worst of its verdicts."""

UNKNOWN: dict[Kind, str] = {
    "specification": "A setting or a name; nothing else at hand bears on it.",
    "measured": "A measurement of which only this is given.",
    "derived": "The document does not say from what it follows.",
    "cited": "The document names no place to look it up.",
    "hypothesis": "A guess that nothing at hand can test.",
    "prediction": "An expectation that nothing at hand can test.",
}
"""Why a fact without a check cannot be judged."""

FROM_ANSWER: dict[answers.Status, Outcome] = {
    "pass": "holds",
    "fail": "contradicts",
    "not measured": "open",
}
Status = Literal["falls", "stands", "open"]


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


@dataclass(frozen=True)
class Entry:
    """A fact with all verdicts on it.

    Attributes
    ----------
    rests_on
        The contradicted facts because of which it cannot stand as printed.
    other
        What the number should be, or is where `decided` is false; None where it stands.
    decided
        Whether `other` is right, and not only what follows from another place of the document.
    """

    fact: Fact
    verdicts: tuple[Verdict, ...]
    rests_on: tuple[str, ...]
    other: Quantity | None
    decided: bool

    @property
    def outcome(self) -> Outcome:
        """The worst of the verdicts."""
        return _worst(verdict.outcome for verdict in self.verdicts)

    @property
    def falls(self) -> bool:
        """Whether the fact cannot stand as printed."""
        return self.outcome == "contradicts" or bool(self.rests_on)

    @property
    def judged(self) -> bool:
        """Whether any check says anything about the fact."""
        return any(verdict.check for verdict in self.verdicts) or bool(self.rests_on)

    @property
    def summary(self) -> str:
        """Outcome and what it rests on, as committed."""
        rests = f", rests on {', '.join(self.rests_on)}" if self.rests_on else ""
        return WORDS[self.outcome] + rests


class Ledger(Mapping[str, Entry]):
    """The verdicts on all facts, by the fact's id, in the document's order.

    Parameters
    ----------
    records
        What the *measured* checks may look at.
    """

    def __init__(
        self,
        facts: Facts,
        evidence: Evidence,
        judging: Judging,
        records: Sequence[answers.Record] = (),
    ) -> None:
        self.facts, self.evidence, self.judging = facts, evidence, judging
        self._functions: dict[str, Callable[..., int]] = {
            "switch_step": self._switch_step,
            "prefetch_layers": lambda size, layers: prefetch_layers(float(size), int(layers)),
            "remainder": lambda number, divisor: int(number % divisor),
        }
        asked = [*answers.baseline_checks(records), *answers.further_checks(records)]
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        for name, fact in facts.items():
            if fact.how:
                self._verdicts[name].append(self._recomputed(fact))
        for citation in evidence.source["citations"]:
            if citation["fact"] not in facts:
                raise FactError(f"source.json: {citation['fact']}: there is no such fact")
            self._verdicts[citation["fact"]].append(_cited(citation))
        for check in judging.checks:
            self._verdicts[check.fact].append(self._judge(check))
        for question in judging.measured:
            for name in question.facts:
                self._verdicts[name] += _measured(question.by, question.needs, asked)
        self._others: dict[str, Quantity | None] = {}
        self._entries = {name: self._entry(name) for name in facts}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    # Numbers and words ---------------------------------------------------------------------------

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
        return evaluate(formula, self.lookup, self._functions)

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

    # What the page asks --------------------------------------------------------------------------

    @cached_property
    def tally(self) -> dict[Outcome, int]:
        """How many facts have each outcome."""
        found = [entry.outcome for entry in self.values()]
        return {outcome: found.count(outcome) for outcome in WORDS}

    def status(self, conclusion: Conclusion) -> Status:
        """Whether a conclusion of the document can stand, by the facts that it needs."""
        entries = [self[name] for name in conclusion.needs]
        if any(entry.falls for entry in entries):
            return "falls"
        weak = {"open", "unknown"}
        return "open" if any(entry.outcome in weak for entry in entries) else "stands"

    def summaries(self) -> dict[str, str]:
        """Every fact's outcome in words, as ``verdicts.json`` keeps them."""
        return {name: entry.summary for name, entry in self.items()}

    # Checks --------------------------------------------------------------------------------------

    def _recomputed(self, fact: Fact) -> Verdict:
        """A fact's own formula."""
        kind = "published" if fact.part == "8" else "arithmetic"
        return self._held(fact, "schedule" if "switch_step" in fact.how else kind, fact.how)

    def _judge(self, check: Check) -> Verdict:
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
        elif check.repeats:
            outcome = _worst(v.outcome for v in self._verdicts[check.repeats])
            working = f"The same claim as {check.repeats}; see there."
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
        outcome = _worst(found)
        signs = {"<=": "≤", ">=": "≥", "==": "="}
        says = " ".join(signs.get(piece, piece) for piece in pieces)
        shown = [quantity_text(side.value, "", _digits(side.value)) for side in sides]
        values = "".join(
            f"{signs.get(p, p)} " if i % 2 else f"{shown[i // 2]} " for i, p in enumerate(pieces)
        ).strip()
        return outcome, f"Needs {values}, which is {_so(outcome)}. Formula: {says}."

    def _identified(self, check: Check, why: str) -> Verdict:
        """Which weights a transfer of this size can be, and whether the claimed ones are."""
        unit = check.unit or self.facts[check.size].unit
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
        return Verdict(
            "identification", outcome, f"{why} {working}".strip(), instead=self.text(check.instead)
        )

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
        worst = Decimal(0)
        for shift, schedule in self.evidence.schedules.items():
            for level, shifted in zip(plain[1:-1], schedule["sigmas"][1:-1], strict=True):
                known = {"s0.shift": Quantity.exact(Decimal(shift)),
                         "s0.sigma": Quantity.exact(Decimal(str(level)))}  # fmt: skip
                named = formula.replace("flow_shift", "s0.shift").replace("sigma", "s0.sigma")
                got = evaluate(named, known.__getitem__).value
                worst = max(worst, abs(got - Decimal(str(shifted))))
        # The committed levels have seven digits; shifting multiplies their error at most by 12.
        outcome: Outcome = "holds" if worst < Decimal("1e-5") else "contradicts"
        return outcome, f"Largest difference from the scheduler's own noise levels: {worst:.1e}."

    def _switch_step(self, steps: Decimal, shift: Decimal, ratio: Decimal) -> int:
        schedule = self.evidence.schedules.get(f"{shift.normalize():f}")
        if schedule is None or steps != self.evidence.steps:
            raise FormulaError(
                f"no schedule of {steps} steps with flow shift {shift} was derived; add it to "
                "wanreport/derive.py and run `wanreport baseline derive`"
            )
        step = switch_step(schedule["timesteps"], float(ratio))
        if step is None:
            raise FormulaError("no step lies below the boundary")
        return step

    # What follows --------------------------------------------------------------------------------

    def _entry(self, name: str) -> Entry:
        fact = self.facts[name]
        found = self._verdicts[name] or [Verdict("", "unknown", UNKNOWN[fact.kind])]
        rests = () if self._contradicted(name) else tuple(self._rests_on(name))
        return Entry(fact, tuple(found), rests, self._other(name), self._decided(name))

    def _contradicted(self, name: str) -> bool:
        return any(v.outcome == "contradicts" for v in self._verdicts.get(name, []))

    def _correction(self, name: str) -> Verdict | None:
        """Of the verdicts that contradict a number, the one that says what is right."""
        wrong = [v for v in self._verdicts[name] if v.outcome == "contradicts" and v.value]
        return min(wrong, key=lambda v: list(CHECKS).index(v.check), default=None)

    def _other(self, name: str) -> Quantity | None:
        """The number that should stand in place of the printed one, or could; None if it stands."""
        if name not in self.facts:
            return None
        if name not in self._others:
            self._others[name] = None  # ends a circle
            fact = self.facts[name]
            if correction := self._correction(name):
                self._others[name] = correction.value
            elif self._follows_from(name):
                again = evaluate(fact.how, lambda n: self._other(n) or self.lookup(n),
                                 self._functions)  # fmt: skip
                if compare(fact, again) == "contradicts":
                    self._others[name] = again
        return self._others[name]

    def _decided(self, name: str) -> bool:
        if correction := self._correction(name):
            return not correction.elsewhere
        return all(self._decided(other) for other in self._follows_from(name))

    def _follows_from(self, name: str) -> list[str]:
        """Facts in a number's formula that cannot stand as printed."""
        used = names(self.facts[name].how)
        return [other for other in used if self._contradicted(other) or self._other(other)]

    def _rests_on(self, name: str, above: tuple[str, ...] = ()) -> list[str]:
        """The contradicted facts because of which this one cannot stand, each once."""
        fact = self.facts[name]
        inputs = list(self.judging.rests_on.get(name, []))
        follows = self._follows_from(name)
        # Other numbers that leave this one as printed do it no harm.
        if self._other(name) or not all(self._other(other) for other in follows):
            inputs += follows
        if not isinstance(fact.value, Decimal):
            inputs += re.findall(r"\{(s\d[\w.]*)\}", f"{fact.statement} {fact.value}")
        found = []
        for other in inputs:
            if other in above or other == name:
                continue
            found += [other] if self._contradicted(other) else self._rests_on(other, (*above, name))
        return list(dict.fromkeys(found))


COMPUTED = re.compile(r"\{=([^{}]*)\}")
PIPELINE = {"_class_name": "WanPipeline"}
"""Model index of both paths: neither need exist, as both hold the same pipeline."""


def compare(fact: Fact, computed: Quantity) -> Outcome:
    """Hold a printed number against a computed one; rounding alone never contradicts."""
    printed = computed_of(fact)
    if fact.bound:
        return "holds" if (computed.value < printed) == (fact.bound == "<") else "contradicts"
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


def _worst(outcomes: Iterable[Outcome]) -> Outcome:
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


def _cited(citation: Mapping[str, Any]) -> Verdict:
    """A citation as it was looked up in SGLang's releases."""
    quotes = "".join(
        f"\n{quote['version']}, {quote['lines']}: {' '.join(quote['text'].split())}"
        for quote in citation["quotes"]
    )
    return Verdict(
        "source", citation["outcome"], f"{citation['cite']}: {citation['working']}{quotes}"
    )


def _measured(by: Sequence[str], needs: str, asked: Sequence[answers.Verdict]) -> Iterator[Verdict]:
    """What records say: the answers of the post-benchmark report, or what it would take."""
    if needs:
        yield Verdict("measured", "open", needs)
    for name in by:
        for answer in (one for one in asked if one.check == name):
            where = f" ({answer.machine})" if answer.machine else ""
            records = f" Records: {', '.join(answer.records)}." if answer.records else ""
            words = f"{answer.question} {answer.evidence}{where}{records}"
            yield Verdict("measured", FROM_ANSWER[answer.status], words)


def load_ledger(
    facts: Facts | None = None,
    records: Sequence[answers.Record] = (),
    derived: Path = DERIVED,
) -> Ledger:
    """The ledger of the package's own data, of other facts where these are given.

    Raises
    ------
    FactError, EvidenceError
        For data that is damaged, missing or does not fit together.
    """
    facts = facts or load_facts()
    evidence = load_evidence(derived)
    return Ledger(facts, evidence, load_judging(facts, evidence), records)


def differences(ledger: Ledger, derived: Path = DERIVED) -> list[str]:
    """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
    committed = read(derived / "verdicts.json", "verdicts")["verdicts"]
    computed = ledger.summaries()
    return [
        f"{name}: committed {committed.get(name)!r}, computed {computed.get(name)!r}"
        for name in dict.fromkeys([*committed, *computed])
        if committed.get(name) != computed.get(name)
    ]
