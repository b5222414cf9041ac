"""Lays the ledger out as DataFrames, for the baseline's notebook and for the command line."""

from __future__ import annotations

from typing import get_args

import pandas as pd

from wanreport.baseline.ledger import FOLLOWS, WORDS, Entry, Ledger, Status

OUTCOMES = HOLDS, FALSE, FALLS, ELSEWHERE, OPEN, UNKNOWN = (
    WORDS["holds"], WORDS["contradicts"], FOLLOWS, WORDS["elsewhere"], WORDS["open"],
    WORDS["unknown"],
)  # fmt: skip
"""What became of a fact: exactly one of these, so that their counts add up."""
SIGNS = dict(zip(OUTCOMES, ["✓", "✗", "†", "◦", "…", ""], strict=True))
"""The mark behind a fact; without one where nothing can judge it."""
GROUPS = CONTRADICTED, MEASURED, PAPER = get_args(Status)
"""What became of a conclusion, in the order in which they are listed."""


def rows(ledger: Ledger) -> pd.DataFrame:
    """List the ledger: a row for each fact, indexed by its id, in the document's order.

    Columns
    -------
    section, part
        3 and "3.2".
    quote, claim, printed
        What the document says in its own words and in ours, and its value alone.
    outcome, sign, instead, judged
        What became of it, the mark for that, what is right instead, and both in words.
    checks, working, run, href
        The kinds of checks, how the outcome comes about, a run that it rests on, and a link to its
        row on the page, whose anchor is the id.
    """
    listed = []
    for name, entry in ledger.items():
        says, printed = ledger.facts.fill(entry.fact.statement), ledger.facts.text(name)
        became, instead = outcome(entry), _instead(ledger, entry)
        because = f" ({', '.join(entry.rests_on)})" if entry.rests_on else ""
        runs = [run for verdict in entry.verdicts for run in verdict.runs]
        working = [f"{v.check} ({WORDS[v.outcome]}): {v.working}"
                   if v.check not in ("", "measured") else v.working
                   for v in entry.verdicts]  # fmt: skip
        listed.append({
            "fact": name, "section": int(entry.fact.part.split(".")[0]), "part": entry.fact.part,
            "quote": plain(entry.fact.quote), "printed": printed,
            "claim": f"{says}: {printed}" if printed else says,
            "outcome": became, "sign": SIGNS[became], "instead": instead,
            "judged": f"{SIGNS[became]} {became}{because}{'. Right: ' * bool(instead)}{instead}",
            "checks": ", ".join(dict.fromkeys(v.check for v in entry.verdicts if v.check)),
            "working": "\n".join(working), "run": runs[0] if runs else None, "href": f"#{name}",
        })  # fmt: skip
    return pd.DataFrame(listed).set_index("fact", drop=False)


def conclusions(ledger: Ledger) -> pd.DataFrame:
    """List the document's conclusions by group.

    A row for each, with its `name`, its `quote`, what our runs gave (`ours`), and the `fact` that
    decides.
    """
    listed = []
    for one in ledger.judging.conclusions:
        needed, seen = [ledger[name] for name in one.needs], ledger.seen(one.by)
        decides = next((entry for entry in needed if entry.falls), needed[0]).fact.id
        ours = [f"{measured} ({', '.join(sorted(set(some.machine)))})"
                for measured, some in seen.groupby("measured", sort=False)]  # fmt: skip
        listed.append({
            "group": ledger.status(one), "name": one.name, "quote": plain(one.quote),
            "ours": "; ".join(ours), "fact": decides, "href": f"#{decides}",
        })  # fmt: skip
    return pd.DataFrame(sorted(listed, key=lambda each: GROUPS.index(each["group"])))


def outcome(entry: Entry) -> str:
    """What became of a fact, one of :data:`OUTCOMES`; rounding does no harm."""
    return HOLDS if entry.became == WORDS["rounding"] else entry.became


def plain(quote: str) -> str:
    """The document's words without its Markdown."""
    return quote.replace("**", "").replace("`", "")


def _instead(ledger: Ledger, entry: Entry) -> str:
    """Say what is right: a number (after "or" if that may be wrong as well) or a sentence."""
    if entry.other is None:
        return " ".join(verdict.instead for verdict in entry.verdicts if verdict.instead)
    return ("" if entry.decided else "or ") + ledger.number_text(entry.fact.id, entry.other)
