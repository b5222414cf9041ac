"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Where a number is contradicted, whatever follows from it
is computed again with the right one; what would then have been printed differently *follows from*
it. A number contradicts another only where rounding or cutting off cannot explain it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis.frames import EMPTY, Frames
from wanreport.baseline import formulas
from wanreport.baseline.facts import KINDS, SLOT, Check, Fact, Facts, load_checks, load_facts
from wanreport.baseline.formulas import DERIVED, ID, FactError, Outcome, Quantity, derived
from wanreport.baseline.measured import answers

FOUND = {
    "holds": Outcome.HOLDS, "misplaced": Outcome.HOLDS, "unknown": Outcome.UNKNOWN,
    "contradicts": Outcome.FALSE, "pass": Outcome.HOLDS, "fail": Outcome.FALSE,
}  # fmt: skip
"""By what ``source.json`` or an answer of runs says. A claim may be right in other lines."""


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
    """A fact's verdicts, and what follows from them and from what it rests on."""

    verdicts: list[Verdict]
    outcome: Outcome  # the worst of the verdicts, or that it follows from a contradicted fact
    rests_on: list[str]  # the contradicted facts because of which it cannot stand as printed
    other: Quantity | None  # what the number should be; None where it stands
    decided: bool  # whether `other` is right, and not only what another place leads to


class Ledger(dict[str, Entry]):
    """The verdicts on all facts, by the fact's id, those first that others rest on.

    `evidence` holds the derived files and the content of ``checks.yaml``; `told` what runs say.
    """

    def __init__(self, facts: Facts, evidence: dict[str, Any], told: pd.DataFrame) -> None:
        self.facts, self.evidence, self.answers = facts, evidence, told
        self.compute = partial(formulas.evaluate, lookup=self.lookup)
        self.text = partial(facts.fill, compute=self.compute)
        self._rests_on = {name: needs for start, needs in evidence["rests_on"].items()
                          for name in facts.below([start])}  # fmt: skip
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        for fact in facts.values():
            if fact.how:
                own = Check(check=fact.check, how=fact.how)
                self._verdicts[fact.id] += self._judged(fact, own)
        for cited in evidence["source"]["citations"]:
            quotes = [f"{quote['version']}, {quote['lines']}: {' '.join(quote['text'].split())}"
                      for quote in cited["quotes"]]  # fmt: skip
            working = "\n".join([f"{cited['cite']}: {cited['working']}", *quotes])
            verdict = Verdict("source", FOUND[cited["outcome"]], working)
            self._verdicts[facts[cited["fact"]].id].append(verdict)
        # What others repeat comes before them; what runs say does not count there.
        for check in sorted(evidence["checks"], key=lambda c: (c.by is not None, bool(c.repeats))):
            for name in facts.below(check.fact):
                self._verdicts[name] += self._judged(facts[name], check)
        for name in facts:
            self[name]

    def __missing__(self, name: str) -> Entry:
        """Say what follows for a fact from the verdicts on it and on what it rests on."""
        fact, verdicts = self.facts[name], self._verdicts[name]
        uses = {used: self[used] for used in ID.findall(fact.how) if used in self.facts}
        follows = {used: entry for used, entry in uses.items()
                   if entry.outcome == Outcome.FALSE or entry.other}  # fmt: skip
        wrong = [verdict for verdict in verdicts if verdict.outcome == Outcome.FALSE]
        right = min((verdict for verdict in wrong if verdict.value), default=None,
                    key=lambda verdict: KINDS.index(verdict.check))  # fmt: skip
        other = right.value if right else None
        if follows and not right:
            right_ones = {used: entry.other for used, entry in uses.items()}
            again = formulas.evaluate(fact.how, lambda id: right_ones.get(id) or self.lookup(id))
            contradicts = formulas.compare(fact.number, again, fact.bound) == Outcome.FALSE
            other = again if contradicts else None
        rests_on: list[str] = []
        if not wrong:
            rests_on += self._rests_on.get(name, [])
            # Other numbers that leave this one as printed do it no harm.
            if other or not all(entry.other for entry in follows.values()):
                rests_on += follows
            if isinstance(fact.value, str):
                rests_on += [slot[0] for slot in SLOT.findall(f"{fact.statement} {fact.value}")]
        roots = [root for used in rests_on for root in
                 ([used] if self[used].outcome == Outcome.FALSE else self[used].rests_on)
                 ]  # fmt: skip
        outcome = Outcome.FALLS if roots else Outcome.worst(v.outcome for v in verdicts)
        decided = (not right.elsewhere if right else
                   all(entry.decided for entry in follows.values()))  # fmt: skip
        self[name] = Entry(verdicts, outcome, [*dict.fromkeys(roots)], other, decided)
        return self[name]

    def seen(self, by: Iterable[str]) -> pd.DataFrame:
        """What runs say to some questions; a row for each machine."""
        return self.answers[self.answers.by.isin([*by]) & (self.answers.runs.str.len() > 0)]

    def lookup(self, name: str) -> Quantity | str:
        """What an id stands for: a size, a number as printed, a text."""
        sizes = self.evidence["architecture"]["numbers"]
        if name in sizes:
            return Quantity(*[sizes[name]] * 3)
        text = isinstance(self.facts[name].value, str)
        return self.facts.text(name) if text else self.facts[name].quantity

    def _judged(self, fact: Fact, check: Check) -> Iterator[Verdict]:
        """What one check says of a fact."""
        kind, why, instead = check.check, self.text(check.why), self.text(check.instead)
        ways = [check.by is not None, check.how, check.holds, check.repeats]
        if sum(map(bool, ways)) != bool(kind):
            raise FactError(f"{fact.id}: a check needs one of how, holds, repeats, by")
        if check.by is not None:
            yield from self._measured(check.by, check.why)
        elif check.how:

            def digits(match: re.Match[str]) -> str:
                value = self.lookup(match[0])
                return f"{value.value:,.12g}" if isinstance(value, Quantity) else value

            computed = self.compute(check.how)
            steps = f"{ID.sub(digits, check.how)} = " if re.search(r"[-+*/(]", check.how) else ""
            words = f"{why} {steps}{fact.worded(computed.value)}. Formula: {check.how}."
            # No formula says what a measurement should have been.
            other = fact.kind == "measured" or kind in ("arithmetic", "published")
            outcome = formulas.compare(fact.number, computed, fact.bound)
            yield Verdict(kind, outcome, words.strip(), computed, other and check.how != fact.how)
        else:
            held = [formulas.condition(text, self.compute) for text in check.holds]
            if check.repeats:
                name = self.facts[check.repeats].id
                held = [(each.outcome, f"See {name}") for each in self._verdicts[name]]
            outcome = Outcome.worst(each for each, _ in held)
            words = "; ".join(dict.fromkeys(each for _, each in held))
            shown = instead if outcome == Outcome.FALSE else ""
            yield Verdict(kind, outcome, f"{why} {words}{'.' * bool(words)}".strip(), instead=shown)

    def _measured(self, by: list[str], todo: str) -> Iterator[Verdict]:
        """What runs say, or what it would take; of another setup only where none is as asked."""
        seen = self.seen(by)
        own = seen.by[(seen.setting == "") & seen.status.isin(FOUND)]
        for row in seen[(seen.setting == "") | ~seen.by.isin(own)].itertuples():
            outcome = Outcome.ELSEWHERE if row.setting else FOUND.get(row.status, Outcome.ELSEWHERE)
            words = ", ".join(filter(None, [row.machine, row.setting]))
            yield Verdict("measured", outcome, f"{row.measured} ({words}).", runs=tuple(row.runs))
        if seen.empty:
            yield Verdict(
                "measured", Outcome.OPEN, "No run." + f" To measure: {todo}." * bool(todo)
            )

    def differences(self, folder: Path = DERIVED) -> list[str]:
        """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
        old, new = derived("verdicts", folder)["verdicts"], self.summaries()
        return [f"{name}: committed {old.get(name)!r}, computed {new.get(name)!r}"
                for name in old | new if old.get(name) != new.get(name)]  # fmt: skip

    def summaries(self) -> dict[str, str]:
        """What became of every fact, and because of which, as ``verdicts.json`` keeps it."""
        return {name: ": ".join(filter(None, [self[name].outcome, ", ".join(self[name].rests_on)]))
                for name in self.facts}  # fmt: skip


def load_ledger(facts: Facts | None = None, frames: Frames = EMPTY) -> Ledger:
    """The ledger of the package's own data, of other facts where these are given.

    Raises FactError for data that is damaged, missing or does not fit together.
    """
    facts = facts or load_facts()
    evidence = load_checks() | {name: derived(name) for name in ("architecture", "source")}
    return Ledger(facts, evidence, answers(frames, facts))
