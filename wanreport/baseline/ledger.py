"""The ledger: a verdict on every fact of the baseline document, with its working.

A number that follows from others carries its formula (`how`); ``checks.yaml`` says what else it is
held against, and which claims rest on it. Where a number is contradicted, whatever follows from it
is computed again with the right one; what would then have been printed differently *follows from*
it. A number contradicts another only where rounding or cutting off cannot explain it.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis import compare, overlap
from wanreport.analysis.checks import checks
from wanreport.analysis.frames import EMPTY, Frames
from wanreport.analysis.pairs import pairs
from wanreport.baseline import facts as data
from wanreport.baseline.facts import ID, SLOT, Check, Fact, FactError, Facts, Outcome, Quantity
from wanreport.words import gibibytes, gigabytes, ratio, seconds, share

SIGNS = {Outcome.HOLDS: "✓", Outcome.FALSE: "✗", Outcome.FALLS: "†", Outcome.ELSEWHERE: "◦",
         Outcome.OPEN: "…", Outcome.UNKNOWN: ""}  # fmt: skip
"""The mark behind a fact, by what became of it: exactly one of these, so that counts add up."""
FOUND = {"holds": Outcome.HOLDS, "misplaced": Outcome.HOLDS, "unknown": Outcome.UNKNOWN,
         "contradicts": Outcome.FALSE, "pass": Outcome.HOLDS, "fail": Outcome.FALSE}  # fmt: skip
"""By what ``source.json`` or an answer of runs says. A claim may be right in other lines."""
COLUMNS = ["by", "measured", "machine", "setting", "status", "runs"]
QUESTIONS = {"engine": 1, "interconnect": 2, "shard": 3, "transfer": 4, "priority": 5,
             "copy streams": 6, "windows": 7}  # fmt: skip
"""The open questions (section 10) by the setting in which their pairs of runs differ."""


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
        self.compute = partial(data.evaluate, lookup=self.lookup)
        self.text = partial(facts.fill, compute=self.compute)
        self._rests_on = {name: needs for start, needs in evidence["rests_on"].items()
                          for name in facts.below([start])}  # fmt: skip
        self._verdicts: dict[str, list[Verdict]] = {name: [] for name in facts}
        self._judge(Check(fact=[fact.id], check=fact.check, how=fact.how)
                    for fact in facts.values() if fact.how)  # fmt: skip
        for cited in evidence["source"]["citations"]:
            lines = [f"{cited['cite']}: {cited['working']}"]
            lines += [f"{quote['version']}, {quote['lines']}: {' '.join(quote['text'].split())}"
                      for quote in cited["quotes"]]  # fmt: skip
            verdict = Verdict("source", FOUND[cited["outcome"]], "\n".join(lines))
            self._verdicts[facts[cited["fact"]].id].append(verdict)
        # What others repeat comes before them; what runs say does not count there.
        self._judge(sorted(evidence["checks"], key=lambda c: (c.by is not None, bool(c.repeats))))
        for name in facts:
            self[name]

    def _judge(self, checks: Iterable[Check]) -> None:
        for check in checks:
            for name in self.facts.below(check.fact):
                self._verdicts[name] += self._judged(self.facts[name], check)

    def __missing__(self, name: str) -> Entry:
        """Say what follows for a fact from the verdicts on it and on what it rests on."""
        fact, verdicts = self.facts[name], self._verdicts[name]
        uses = {used: self[used] for used in ID.findall(fact.how) if used in self.facts}
        follows = {used: entry for used, entry in uses.items()
                   if entry.outcome == Outcome.FALSE or entry.other}  # fmt: skip
        wrong = [verdict for verdict in verdicts if verdict.outcome == Outcome.FALSE]
        right = min((verdict for verdict in wrong if verdict.value), default=None,
                    key=lambda verdict: data.KINDS.index(verdict.check))  # fmt: skip
        other = right.value if right else None
        if follows and not right:
            known = {used: entry.other for used, entry in uses.items() if entry.other}
            again = data.evaluate(fact.how, lambda id: known.get(id) or self.lookup(id))
            if data.compare(fact.number, again, fact.bound) == Outcome.FALSE:
                other = again
        rests_on: list[str] = []
        if not wrong:
            rests_on += self._rests_on.get(name, [])
            # Other numbers that leave this one as printed do it no harm.
            if other or not all(entry.other for entry in follows.values()):
                rests_on += follows
            if isinstance(fact.value, str):
                rests_on += [slot[0] for slot in SLOT.findall(f"{fact.statement} {fact.value}")]
        roots = [root for used in rests_on for root in (
            [used] if self[used].outcome == Outcome.FALSE else self[used].rests_on)]  # fmt: skip
        outcome = Outcome.FALLS if roots else Outcome.worst(v.outcome for v in verdicts)
        decided = not right.elsewhere if right else all(each.decided for each in follows.values())
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
            outcome = data.compare(fact.number, computed, fact.bound)
            yield Verdict(kind, outcome, words.strip(), computed, other and check.how != fact.how)
        else:
            held = [data.condition(text, self.compute) for text in check.holds]
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
            outcome = FOUND.get("" if row.setting else row.status, Outcome.ELSEWHERE)
            words = ", ".join(filter(None, [row.machine, row.setting]))
            yield Verdict("measured", outcome, f"{row.measured} ({words}).", runs=tuple(row.runs))
        if seen.empty:
            words = "No run." + f" To measure: {todo}." * bool(todo)
            yield Verdict("measured", Outcome.OPEN, words)

    def became(self, name: str) -> tuple[Outcome, str]:
        """What became of a fact, where rounding does no harm, and what is right instead."""
        entry = self[name]
        instead = " ".join(verdict.instead for verdict in entry.verdicts if verdict.instead)
        if entry.other:
            instead = "or " * (not entry.decided) + self.facts[name].worded(entry.other.value)
        return Outcome.HOLDS if entry.outcome == Outcome.ROUNDING else entry.outcome, instead

    def differences(self, folder: Path = data.DERIVED) -> list[str]:
        """How the verdicts differ from the committed ones: one line a fact, none if they agree."""
        old, new = data.derived("verdicts", folder)["verdicts"], self.summaries()
        return [f"{name}: committed {old.get(name)!r}, computed {new.get(name)!r}"
                for name in old | new if old.get(name) != new.get(name)]  # fmt: skip

    def summaries(self) -> dict[str, str]:
        """What became of every fact, and because of which, as ``verdicts.json`` keeps it."""
        return {name: ": ".join(filter(None, [self[name].outcome, ", ".join(self[name].rests_on)]))
                for name in self.facts}  # fmt: skip


def load_ledger(facts: Facts | None = None, frames: Frames = EMPTY) -> Ledger:
    """The ledger of the package's own data, or of other facts; FactError where they do not fit."""
    facts = facts or data.load_facts()
    files = {name: data.derived(name) for name in ("architecture", "source")}
    return Ledger(facts, data.load_checks() | files, answers(frames, facts))


# What runs say. Rehearsals of our own port tell nothing of SGLang's time, memory or overlap.


def answers(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Collect all that runs say: a row for each question (`by`) and machine, as of :func:`checks`.

    The `status` is "told" where a number is all that was asked for.
    """
    real = frames.runs.run[~frames.runs.rehearsal]
    frames = Frames(*(frame[frame.run.isin(real)] for frame in frames))
    setup = frames.runs[[*compare.WHERE, "frames", "gpu_model", "source"]]
    found = checks(frames, facts, lanes := overlap.shares(frames)).rename(columns={"check": "by"})
    engine = (found.by.str.extract("-(.+)")[0] + ": ").fillna("")
    rows = found.assign(measured=engine + found.measured).to_dict("records")
    for by, words, *names in _told(frames, lanes):
        runs = setup.loc[names]
        said = ["part of the model" * bool((runs.source == "bench").any()),
                compare.differs(facts, runs, "" if by[0] == "q" else "s9.1.new4.gpus")]  # fmt: skip
        rows.append({"by": by, "measured": words, "machine": runs.machine.iloc[0], "runs": names,
                     "setting": ", ".join(filter(None, said)), "status": "told"})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def questions(found: pd.DataFrame) -> pd.DataFrame:
    """Pick of :func:`pairs` those that answer an open question, with its `number`.

    A length is near what was asked for from 7,800 to 14,040 tokens; windows follow the parts of a
    block, not the schedule, but between two runs of `stream` they are near it.
    """
    found = found.assign(number=found.changed.map(QUESTIONS)).dropna(subset="number")
    near = found.tokens.between(7_800, 14_040).where(found.number == 2, True)
    near &= (found.number != 7) | (found.name_a.str[:6] == found.name_b.str[:6])
    return found[near].astype({"number": int}).sort_values("number", kind="stable")


def _told(frames: Frames, lanes: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """The name of each question that runs answer, the answer in words, and the runs."""
    found = pairs(frames)
    for row in found[found.cause != ""].itertuples():
        beside = f", together with {', '.join(row.together_with)}" if row.together_with else ""
        words = f"{row.changed} {row.change}: {seconds(row.effect_s, 3)} a step, {row.claim}"
        yield f"cause-{row.cause}", f"{words} ({row.work}{beside})", row.run_a, row.run_b
    # What an engine costs a step over resident weights: with NVLink by jobs, if there are any.
    cost, every = compare.overhead(frames), frames.full_scale()
    best = compare.headline(frames).sort_index()
    linked = cost[(cost.interconnect == "NVLink") & cost.engine.isin(("sglang", "layerwise"))
                  & cost.overhead.notna()]  # fmt: skip
    jobs = linked.source == "job"
    linked = linked[jobs | ~jobs.any()].assign(by="nvlink")
    for row in pd.concat([best.assign(by="cost-" + best.engine), linked]).itertuples():
        where = f"{row.height}p" if row.source == "job" else f"{row.name}, {row.work}"
        words = f"{ratio(row.overhead)} over resident, {row.claim} ({where})"
        yield row.by, words, row.run, row.reference
    for row in questions(found).itertuples():
        words = f"{row.name_a} over {row.name_b}, {row.work}: {ratio(row.difference)}, {row.claim}"
        yield f"question-{row.number}", words, row.run_a, row.run_b
    for row in found.query("changed == 'prefetch' and source == 'job'").itertuples():
        base, deep = every.allocated_bytes[[row.run_a, row.run_b]]
        yield "prefetch-memory", f"{gigabytes(deep - base, 3)} more allocated", row.run_b, row.run_a
    # What single jobs say: memory, bytes and times of their copies, the first step.
    for row in compare.plain_jobs(every).itertuples():
        words = f"{row.name}: {gibibytes(row.reserved_bytes, 3)} reserved"
        yield f"memory-{row.engine}", words, row.run
        if row.engine == "layerwise":
            yield "bytes", f"{gigabytes(row.h2d_step_bytes, 3)} a step", row.run
    for row in lanes.query("engine == 'layerwise'").itertuples():
        yield "rate", f"{row.rate_gb_s:.1f} GB/s", row.run
        if row.collectives_share > 0:
            words = f"all-to-all takes {share(row.collectives_share)} of a step"
            yield "collectives", words, row.run
    # Where a process compiles, its first step takes long; later ones are in the runs.
    first = frames.steps[frames.steps.kind == "warmup"].groupby("run").seconds.first()
    for row in every[every.compiled & every.run.isin(first.index)].itertuples():
        times = f"first step {seconds(first[row.run], 3)}, later {seconds(row.step_s, 3)}"
        yield "first-step", f"{row.name}: {times}", row.run
