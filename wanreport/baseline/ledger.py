"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Where a number is contradicted, whatever follows from it
is computed again with the right one; what would then have been printed differently *follows from*
it. A number contradicts another only where rounding or cutting off cannot explain it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from wanreport.analysis.frames import EMPTY, Frames
from wanreport.baseline import functions
from wanreport.baseline.arithmetic import (
    ID,
    FormulaError,
    Outcome,
    Quantity,
    condition,
    evaluate,
    half_unit,
    names,
)
from wanreport.baseline.checks import KINDS, Check, Conclusion, Judging, load_judging
from wanreport.baseline.evidence import DERIVED, Evidence, load_evidence, read
from wanreport.baseline.facts import Fact, FactError, Facts, load_facts, slots
from wanreport.baseline.measured import answers

WORDS: dict[Outcome, str] = {
    "contradicts": "contradicted",
    "open": "not measured",
    "elsewhere": "measured in another setup",
    "unknown": "cannot be known",
    "rounding": "holds within rounding",
    "holds": "holds",
}
"""The outcomes, worst first: a fact's own is the worst of its verdicts."""

FOLLOWS = "follows from a contradicted one"
Status = Literal["contradicted", "re-measured", "consistent on paper only"]


@dataclass(frozen=True)
class Verdict:
    """What one check says of one fact."""

    check: str  # its kind; "" for a fact that nothing can judge
    outcome: Outcome
    working: str  # how the outcome comes about
    value: Quantity | None = None  # what the number should be; None for a claim
    elsewhere: bool = False  # whether `value` is only another place's: either may be wrong
    instead: str = ""  # what is right instead of a contradicted claim
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A fact with all verdicts on it."""

    fact: Fact
    verdicts: list[Verdict]
    rests_on: list[str]  # the contradicted facts because of which it cannot stand as printed
    other: Quantity | None  # what the number should be; None where it stands
    decided: bool  # whether `other` is right, and not only what another place leads to

    @property
    def outcome(self) -> Outcome:
        """The worst of the verdicts."""
        return worst(verdict.outcome for verdict in self.verdicts)

    @property
    def falls(self) -> bool:
        """Whether the fact cannot stand as printed."""
        return self.outcome == "contradicts" or bool(self.rests_on)

    @property
    def became(self) -> str:
        """What became of it, in one of the words of :data:`WORDS`, or :data:`FOLLOWS`."""
        return FOLLOWS if self.rests_on else WORDS[self.outcome]


class Ledger(dict[str, Entry]):
    """The verdicts on all facts, by the fact's id, in the document's order."""

    def __init__(
        self, facts: Facts, evidence: Evidence, judging: Judging, told: pd.DataFrame
    ) -> None:
        self.facts, self.evidence, self.judging, self.answers = facts, evidence, judging, told
        self.functions = functions.of(evidence)
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        for name, fact in facts.items():
            if fact.how:
                kind = "published" if fact.part == "8" else "arithmetic"
                kind = "schedule" if "switch_step" in fact.how else kind
                self._verdicts[name].append(self._number(fact, kind, fact.how))
        for citation in evidence.source["citations"]:
            self._verdicts[facts[citation["fact"]].id].append(_cited(citation))
        for check in sorted(judging.checks, key=lambda check: bool(check.repeats)):
            self._verdicts[check.fact].append(self._checked(check))
        for group in (*judging.measured, *judging.unknowable):
            reason = [Verdict("", "unknown", group.why)]
            found = reason if group.why else list(self._measured(group.by))
            for name in group.facts:
                self._verdicts[name] += found
        self._others: dict[str, Quantity | None] = {}
        for name, fact in facts.items():
            rests = [] if self._contradicted(name) else self._rests_on(name)
            self[name] = Entry(
                fact, self._verdicts[name], rests, self._other(name), self._decided(name)
            )

    def status(self, conclusion: Conclusion) -> Status:
        """What became of a conclusion: by the facts that it needs, and by whether runs answer."""
        if any(self[name].falls for name in conclusion.needs):
            return "contradicted"
        return "re-measured" if len(self.seen(conclusion.by)) else "consistent on paper only"

    def seen(self, by: Iterable[str]) -> pd.DataFrame:
        """What runs say to some questions; a row for each machine."""
        here = self.answers[self.answers.by.isin(list(by))]
        return here[here.runs.str.len() > 0]

    def summaries(self) -> dict[str, str]:
        """What became of every fact, and because of which, as ``verdicts.json`` keeps it."""
        return {name: f"{entry.became}: {', '.join(entry.rests_on)}".removesuffix(": ")
                for name, entry in self.items()}  # fmt: skip

    def lookup(self, name: str) -> Quantity | str:
        """What an id stands for: a size, a number as printed, a date as its day, a text."""
        if name in self.evidence.numbers:
            return Quantity(*[self.evidence.numbers[name]] * 3)
        value = self.facts[name].value
        if isinstance(value, Decimal):
            return self.facts[name].quantity
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value or ""):
            return Quantity(*[date.fromisoformat(value or "").toordinal()] * 3)
        return self.facts.text(name)

    def compute(self, formula: str) -> Any:
        """Compute a formula over the numbers as printed, and over the model's sizes."""
        return evaluate(formula, self.lookup, self.functions)

    def text(self, text: str) -> str:
        """Put facts as printed for ``{id}`` and computed numbers for ``{formula:.1f}``."""
        return self.facts.fill(text, compute=self.compute)

    def number_text(self, name: str, number: Quantity) -> str:
        """A number beside a printed one, with a decimal more where it would look the same."""
        fact, text = self.facts[name], self.facts[name].worded(number.value)
        same = text == fact.worded(fact.number) and not math.isclose(number.value, fact.number)
        return fact.worded(number.value, 1) if same else text

    # Checks --------------------------------------------------------------------------------------

    def _checked(self, check: Check) -> Verdict:
        fact, why = self.facts[check.fact], self.text(check.why)
        if check.repeats:
            outcome = worst(verdict.outcome for verdict in self._verdicts[check.repeats])
            return Verdict(check.check, outcome, f"{why} See {check.repeats}.".strip())
        if check.how:
            # No formula says what a measurement should have been.
            other = fact.kind == "measured" or check.check in ("arithmetic", "published")
            return self._number(fact, check.check, check.how, why, elsewhere=other)
        try:
            held = [condition(text, self.lookup, self.functions) for text in check.holds]
        except FormulaError as error:
            raise FactError(f"{fact.id}: {error}") from None
        outcome = worst(each.outcome for each in held)
        shown = "; ".join(each.words for each in held)
        instead = self.text(check.instead) if outcome == "contradicts" else ""
        return Verdict(check.check, outcome, f"{why} {shown}.".strip(), instead=instead)

    def _number(
        self, fact: Fact, check: str, formula: str, why: str = "", *, elsewhere: bool = False
    ) -> Verdict:
        """A printed number beside what a formula gives."""
        try:
            computed: Quantity = self.compute(formula)
        except FormulaError as error:
            raise FactError(f"{fact.id}: {error}") from None

        def digits(match: re.Match[str]) -> str:
            value = self.lookup(match[0])
            return f"{value.value:,.12g}" if isinstance(value, Quantity) else value

        steps = f"{ID.sub(digits, formula)} = " if re.search(r"[-+*/(]", formula) else ""
        words = f"{why} {steps}{self.number_text(fact.id, computed)}. Formula: {formula}."
        return Verdict(check, compare(fact, computed), words.strip(), computed, elsewhere)

    def _measured(self, by: list[str]) -> Iterator[Verdict]:
        """What runs say, or what it would take; those of another setup decide nothing."""
        decides: dict[str, Outcome] = {"pass": "holds", "fail": "contradicts"}
        seen = self.seen(by)
        for row in seen.itertuples():
            outcome = "elsewhere" if row.setting else decides.get(row.status, "open")
            words = ", ".join(filter(None, [row.machine, row.setting]))
            yield Verdict("measured", outcome, f"{row.measured} ({words}).", runs=tuple(row.runs))
        if seen.empty:
            asked = self.answers[self.answers.by.isin(by)].command
            todo = next((command for command in asked if command), "")
            yield Verdict("measured", "open", f"No run. {todo and f'To measure: {todo}.'}".strip())

    # What follows --------------------------------------------------------------------------------

    def _contradicted(self, name: str) -> bool:
        return any(v.outcome == "contradicts" for v in self._verdicts.get(name, []))

    def _correction(self, name: str) -> Verdict | None:
        """Of the verdicts that contradict a number, the one that says what is right."""
        wrong = [v for v in self._verdicts[name] if v.outcome == "contradicts" and v.value]
        return min(wrong, key=lambda v: KINDS.index(v.check), default=None)

    def _other(self, name: str) -> Quantity | None:
        """The number that should stand in place of the printed one, or could; None if it stands."""
        if name in self.facts and name not in self._others:
            self._others[name] = None  # ends a circle
            fact = self.facts[name]
            if correction := self._correction(name):
                self._others[name] = correction.value
            elif self._follows_from(name):
                again = evaluate(fact.how, lambda n: self._other(n) or self.lookup(n),
                                 self.functions)  # fmt: skip
                self._others[name] = again if compare(fact, again) == "contradicts" else None
        return self._others.get(name)

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
        fact, follows = self.facts[name], self._follows_from(name)
        inputs = list(self.judging.rests_on.get(name, []))
        # Other numbers that leave this one as printed do it no harm.
        if self._other(name) or not all(self._other(other) for other in follows):
            inputs += follows
        if not isinstance(fact.value, Decimal):
            inputs += slots(f"{fact.statement} {fact.value}")
        found = [
            [other] if self._contradicted(other) else self._rests_on(other, (*above, name))
            for other in inputs if other not in (*above, name)
        ]  # fmt: skip
        return list(dict.fromkeys(sum(found, [])))


def compare(fact: Fact, computed: Quantity) -> Outcome:
    """Hold a printed number against a computed one; rounded or cut off, it never contradicts."""
    printed, half = float(fact.number), float(half_unit(fact.number)) * (1 + 1e-9)
    if fact.bound:
        way = 1 if fact.bound == "<" else -1
        best = min(way * computed.low, way * computed.high)
        if way * computed.value < way * printed:
            return "holds"
        return "rounding" if best < way * printed else "contradicts"
    if abs(computed.value - printed) <= half:
        return "holds"
    low, high = (printed + half * (way if way * printed < 0 else 2 * way) for way in (-1, 1))
    return "rounding" if computed.low < high and low < computed.high else "contradicts"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of some outcomes; unknown where there is none."""
    found = set(outcomes)
    return next((outcome for outcome in WORDS if outcome in found), "unknown")


def _cited(citation: dict[str, Any]) -> Verdict:
    """A citation as it was looked up in SGLang's releases."""
    lines = [f"{citation['cite']}: {citation['working']}"]
    lines += [f"{q['version']}, {q['lines']}: {' '.join(q['text'].split())}"
              for q in citation["quotes"]]  # fmt: skip
    # A claim may be right although its code stands in other lines.
    outcome: Outcome = "holds" if citation["outcome"] == "misplaced" else citation["outcome"]
    return Verdict("source", outcome, "\n".join(lines))


def load_ledger(
    facts: Facts | None = None, frames: Frames = EMPTY, derived: Path = DERIVED
) -> Ledger:
    """The ledger of the package's own data, of other facts where these are given.

    Raises FactError or EvidenceError for data that is damaged, missing or does not fit together.
    """
    facts, evidence = facts or load_facts(), load_evidence(derived)
    judging = load_judging(facts, evidence.numbers)
    return Ledger(facts, evidence, judging, answers(frames, facts))


def differences(ledger: Ledger, derived: Path = DERIVED) -> list[str]:
    """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
    (committed,), computed = read(derived, "verdicts", "verdicts"), ledger.summaries()
    return [
        f"{name}: committed {committed.get(name)!r}, computed {computed.get(name)!r}"
        for name in dict.fromkeys([*committed, *computed])
        if committed.get(name) != computed.get(name)
    ]
