"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Where a number is contradicted, whatever follows from it
is computed again with the right one; what would then have been printed differently *follows from*
it. A number contradicts another only where rounding or cutting off cannot explain it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis.frames import EMPTY, Frames
from wanreport.baseline.checks import KINDS, Check, Judging, load_judging
from wanreport.baseline.facts import SLOT, Fact, Facts, load_facts
from wanreport.baseline.formulas import (
    DERIVED,
    ID,
    Outcome,
    Quantity,
    compare,
    condition,
    derived,
    evaluate,
    names,
)
from wanreport.baseline.measured import answers

WORDS: dict[Outcome, str] = {
    "contradicts": "contradicted",
    "follows": "follows from a contradicted one",
    "open": "not measured",
    "elsewhere": "measured in another setup",
    "unknown": "cannot be known",
    "rounding": "holds within rounding",
    "holds": "holds",
}
"""The outcomes, worst first: a fact's own is the worst of its verdicts."""


class Verdict(NamedTuple):
    """What one check says of one fact."""

    check: str  # its kind; "" for a fact that nothing can judge
    outcome: Outcome
    working: str  # how the outcome comes about
    value: Quantity | None = None  # what the number should be; None for a claim
    elsewhere: bool = False  # whether `value` is only another place's: either may be wrong
    instead: str = ""  # what is right instead of a contradicted claim
    runs: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A fact with all verdicts on it."""

    fact: Fact
    verdicts: list[Verdict]
    outcome: Outcome  # the worst of the verdicts, or "follows"
    rests_on: list[str]  # the contradicted facts because of which it cannot stand as printed
    other: Quantity | None  # what the number should be; None where it stands
    decided: bool  # whether `other` is right, and not only what another place leads to

    @property
    def falls(self) -> bool:
        """Whether the fact cannot stand as printed."""
        return self.outcome in ("contradicts", "follows")


class Ledger(dict[str, Entry]):
    """The verdicts on all facts, by the fact's id, those first that others rest on."""

    def __init__(
        self, facts: Facts, evidence: dict[str, Any], judging: Judging, told: pd.DataFrame
    ) -> None:
        self.facts, self.evidence, self.judging, self.answers = facts, evidence, judging, told
        self.sizes = evidence["architecture"]["numbers"]
        self._rests_on = {name: needs for start, needs in judging.rests_on.items()
                          for name in facts.below([start])}  # fmt: skip
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        for name, fact in facts.items():
            if fact.how:
                kind = "published" if fact.part == "8" else "arithmetic"
                kind = "schedule" if "switch_step" in fact.how else kind
                self._verdicts[name].append(self._number(fact, kind, fact.how))
        for citation in evidence["source"]["citations"]:
            self._verdicts[facts[citation["fact"]].id].append(_cited(citation))
        # What others repeat comes before them; what runs say does not count there.
        for check in sorted(judging.checks, key=lambda c: (c.by is not None, bool(c.repeats))):
            for name in facts.below(check.fact):
                self._verdicts[name] += self._checked(facts[name], check)
        for name in facts:
            self[name]

    def __missing__(self, name: str) -> Entry:
        """Say what follows for a fact from the verdicts on it and on what it rests on."""
        fact, verdicts = self.facts[name], self._verdicts[name]
        uses = [self[used] for used in names(fact.how) if used in self.facts]
        follows = [entry for entry in uses if entry.outcome == "contradicts" or entry.other]
        wrong = [verdict for verdict in verdicts if verdict.outcome == "contradicts"]
        valued = [verdict for verdict in wrong if verdict.value]
        right = min(valued, key=lambda verdict: KINDS.index(verdict.check), default=None)
        other = right.value if right else None
        if follows and not right:
            again = evaluate(fact.how, self._right)
            other = again if compare(fact.number, again, fact.bound) == "contradicts" else None
        rests_on = [] if wrong else list(self._rests_on.get(name, []))
        # Other numbers that leave this one as printed do it no harm.
        if not wrong and (other or not all(entry.other for entry in follows)):
            rests_on += [entry.fact.id for entry in follows]
        if not wrong and not isinstance(fact.value, Decimal):
            rests_on += [slot[0] for slot in SLOT.findall(f"{fact.statement} {fact.value}")]
        roots = [[used] if self[used].outcome == "contradicts" else self[used].rests_on
                 for used in rests_on]  # fmt: skip
        decided = not right.elsewhere if right else all(entry.decided for entry in follows)
        outcome = "follows" if any(roots) else worst(verdict.outcome for verdict in verdicts)
        found = list(dict.fromkeys(sum(roots, [])))
        self[name] = Entry(fact, verdicts, outcome, found, other, decided)
        return self[name]

    def seen(self, by: Iterable[str]) -> pd.DataFrame:
        """What runs say to some questions; a row for each machine."""
        here = self.answers[self.answers.by.isin(list(by))]
        return here[here.runs.str.len() > 0]

    def summaries(self) -> dict[str, str]:
        """What became of every fact, and because of which, as ``verdicts.json`` keeps it."""
        found = ((name, self[name]) for name in self.facts)
        return {name: f"{WORDS[entry.outcome]}: {', '.join(entry.rests_on)}".removesuffix(": ")
                for name, entry in found}  # fmt: skip

    def lookup(self, name: str) -> Quantity | str:
        """What an id stands for: a size, a number as printed, a date as its day, a text."""
        value = self.sizes[name] if name in self.sizes else self.facts[name].value
        if isinstance(value, Decimal):
            return self.facts[name].quantity
        if re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
            value = date.fromisoformat(str(value)).toordinal()
        return Quantity(*[value] * 3) if isinstance(value, int) else self.facts.text(name)

    def _right(self, name: str) -> Quantity | str:
        """What an id should stand for."""
        return (self[name].other if name in self.facts else None) or self.lookup(name)

    def compute(self, formula: str) -> Any:
        """Compute a formula over the numbers as printed, and over the model's sizes."""
        return evaluate(formula, self.lookup)

    def text(self, text: str) -> str:
        """Put facts as printed for ``{id}`` and computed numbers for ``{formula:.1f}``."""
        return self.facts.fill(text, compute=self.compute)

    def _checked(self, fact: Fact, check: Check) -> list[Verdict]:
        """What one entry of ``checks.yaml`` says of a fact."""
        why, instead = self.text(check.why), self.text(check.instead)
        if check.by is not None:
            return list(self._measured(check.by))
        if check.how:
            # No formula says what a measurement should have been.
            other = fact.kind == "measured" or check.check in ("arithmetic", "published")
            return [self._number(fact, check.check, check.how, why, elsewhere=other)]
        held = [condition(text, self.compute) for text in check.holds]
        outcome = worst(each for each, _ in held)
        words = f"{why} {'; '.join(working for _, working in held)}." if held else why
        if check.repeats:
            repeated = self._verdicts[self.facts[check.repeats].id]
            outcome = worst(verdict.outcome for verdict in repeated)
            words = f"{why} See {check.repeats}."
        shown = instead if outcome == "contradicts" else ""
        return [Verdict(check.check, outcome, words.strip(), instead=shown)]

    def _number(
        self, fact: Fact, check: str, formula: str, why: str = "", *, elsewhere: bool = False
    ) -> Verdict:
        """A printed number beside what a formula gives."""

        def digits(match: re.Match[str]) -> str:
            value = self.lookup(match[0])
            return f"{value.value:,.12g}" if isinstance(value, Quantity) else value

        computed: Quantity = self.compute(formula)
        steps = f"{ID.sub(digits, formula)} = " if re.search(r"[-+*/(]", formula) else ""
        words = f"{why} {steps}{fact.worded(computed.value)}. Formula: {formula}."
        outcome = compare(fact.number, computed, fact.bound)
        return Verdict(check, outcome, words.strip(), computed, elsewhere)

    def _measured(self, by: list[str]) -> Iterator[Verdict]:
        """What runs say, or what it would take; of another setup only where none is as asked."""
        decides: dict[str, Outcome] = {
            "pass": "holds", "fail": "contradicts", "not measured": "open"
        }  # fmt: skip
        seen = self.seen(by)
        own = seen.by[(seen.setting == "") & seen.status.isin(decides)]
        for row in seen[(seen.setting == "") | ~seen.by.isin(own)].itertuples():
            outcome = "elsewhere" if row.setting else decides.get(row.status, "elsewhere")
            words = ", ".join(filter(None, [row.machine, row.setting]))
            yield Verdict("measured", outcome, f"{row.measured} ({words}).", runs=tuple(row.runs))
        if seen.empty:
            asked = self.answers[self.answers.by.isin(by)].command
            todo = next((f" To measure: {command}." for command in asked if command), "")
            yield Verdict("measured", "open", f"No run.{todo}")


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of some outcomes; unknown where there is none."""
    return min(outcomes, key=list(WORDS).index, default="unknown")


def _cited(citation: dict[str, Any]) -> Verdict:
    """A citation as it was looked up in SGLang's releases."""
    lines = [f"{citation['cite']}: {citation['working']}"]
    lines += [f"{q['version']}, {q['lines']}: {' '.join(q['text'].split())}"
              for q in citation["quotes"]]  # fmt: skip
    # A claim may be right although its code stands in other lines.
    outcome: Outcome = "holds" if citation["outcome"] == "misplaced" else citation["outcome"]
    return Verdict("source", outcome, "\n".join(lines))


def load_ledger(facts: Facts | None = None, frames: Frames = EMPTY) -> Ledger:
    """The ledger of the package's own data, of other facts where these are given.

    Raises FactError for data that is damaged, missing or does not fit together.
    """
    facts = facts or load_facts()
    evidence = {name: derived(name) for name in ("architecture", "source")}
    return Ledger(facts, evidence, load_judging(), answers(frames, facts))


def differences(ledger: Ledger, folder: Path = DERIVED) -> list[str]:
    """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
    committed, computed = derived("verdicts", folder)["verdicts"], ledger.summaries()
    return [
        f"{name}: committed {committed.get(name)!r}, computed {computed.get(name)!r}"
        for name in dict.fromkeys([*committed, *computed])
        if committed.get(name) != computed.get(name)
    ]
