"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Where a number is contradicted, whatever follows from it
is computed again with the right one; what would then have been printed differently *rests on* it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wanreport.analysis.checks import checks
from wanreport.analysis.frames import EMPTY, Frames
from wanreport.baseline.arithmetic import Quantity, evaluate, names
from wanreport.baseline.checks import CHECKS, Check, Conclusion, Judging, load_judging
from wanreport.baseline.evidence import DERIVED, Evidence, load_evidence, read
from wanreport.baseline.facts import SLOT, Fact, FactError, Facts, Kind, load_facts
from wanreport.baseline.judge import WORDS, Judge, Outcome, Verdict, compare, worst

UNKNOWN: dict[Kind, str] = {
    "specification": "A setting or a name; nothing else at hand bears on it.",
    "measured": "A measurement of which only this is given.",
    "derived": "The document does not say from what it follows.",
    "cited": "The document names no place to look it up.",
    "hypothesis": "A guess that nothing at hand can test.",
    "prediction": "An expectation that nothing at hand can test.",
}
"""Why a fact without a check cannot be judged."""

FROM_STATUS: dict[str, Outcome] = {"pass": "holds", "fail": "contradicts"}
"""What a check's status says of a fact; of one that is too close to tell, nothing."""
Status = Literal["falls", "stands", "open"]


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
        return worst(verdict.outcome for verdict in self.verdicts)

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


class Ledger(Judge, Mapping[str, Entry]):
    """The verdicts on all facts, by the fact's id, in the document's order.

    Parameters
    ----------
    frames
        Runs that the *measured* checks may look at.
    """

    def __init__(
        self,
        facts: Facts,
        evidence: Evidence,
        judging: Judging,
        frames: Frames = EMPTY,
    ) -> None:
        super().__init__(facts, evidence)
        self.judging = judging
        asked = list(checks(frames, facts).itertuples())
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        for name, fact in facts.items():
            if fact.how:
                self._verdicts[name].append(self.recomputed(fact))
        for citation in evidence.source["citations"]:
            if citation["fact"] not in facts:
                raise FactError(f"source.json: {citation['fact']}: there is no such fact")
            self._verdicts[citation["fact"]].append(_cited(citation))
        for check in judging.checks:
            made = self._repeated(check) if check.repeats else self.judge(check)
            self._verdicts[check.fact].append(made)
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

    def _repeated(self, check: Check) -> Verdict:
        outcome = worst(verdict.outcome for verdict in self._verdicts[check.repeats])
        why = self.text(check.why) or "The same claim."
        return Verdict(check.check, outcome, f"{why} See {check.repeats}.")

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
                                 self.functions)  # fmt: skip
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
            inputs += SLOT.findall(f"{fact.statement} {fact.value}")
        found = []
        for other in inputs:
            if other in above or other == name:
                continue
            found += [other] if self._contradicted(other) else self._rests_on(other, (*above, name))
        return list(dict.fromkeys(found))


def _cited(citation: Mapping[str, Any]) -> Verdict:
    """A citation as it was looked up in SGLang's releases."""
    quotes = "".join(
        f"\n{quote['version']}, {quote['lines']}: {' '.join(quote['text'].split())}"
        for quote in citation["quotes"]
    )
    return Verdict(
        "source", citation["outcome"], f"{citation['cite']}: {citation['working']}{quotes}"
    )


def _measured(by: Sequence[str], needs: str, asked: Sequence[Any]) -> Iterator[Verdict]:
    """What runs say, or what it would take; runs of another setup than asked for decide nothing."""
    if needs:
        yield Verdict("measured", "open", needs)
    for answer in (answer for answer in asked if answer.check in by):
        outcome: Outcome = "open" if answer.setting else FROM_STATUS.get(answer.status, "open")
        seen = "; ".join(filter(None, [answer.measured, answer.machine, answer.setting]))
        runs = f" Records: {', '.join(answer.runs)}." if answer.runs else ""
        words = f"{answer.question} {answer.status.capitalize()}{seen and f': {seen}'}.{runs}"
        yield Verdict("measured", outcome, words)


def load_ledger(
    facts: Facts | None = None,
    frames: Frames = EMPTY,
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
    return Ledger(facts, evidence, load_judging(facts, evidence), frames)


def differences(ledger: Ledger, derived: Path = DERIVED) -> list[str]:
    """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
    committed = read(derived / "verdicts.json", "verdicts")["verdicts"]
    computed = ledger.summaries()
    return [
        f"{name}: committed {committed.get(name)!r}, computed {computed.get(name)!r}"
        for name in dict.fromkeys([*committed, *computed])
        if committed.get(name) != computed.get(name)
    ]
