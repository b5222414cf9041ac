"""Lays the ledger out as a DataFrame, for the baseline's notebook and for the command line."""

from __future__ import annotations

import re

import pandas as pd

from wanreport.baseline.formulas import Outcome
from wanreport.baseline.ledger import Ledger

UNKNOWN, ELSEWHERE, OPEN = Outcome.UNKNOWN, Outcome.ELSEWHERE, Outcome.OPEN
HOLDS, FALSE, FALLS = Outcome.HOLDS, Outcome.FALSE, Outcome.FALLS
SIGNS = {HOLDS: "✓", FALSE: "✗", FALLS: "†", ELSEWHERE: "◦", OPEN: "…", UNKNOWN: ""}
"""The mark behind a fact; without one where nothing can judge it."""
OUTCOMES = [*SIGNS]
"""What became of a fact: exactly one of these, so that their counts add up."""


def rows(ledger: Ledger) -> pd.DataFrame:
    """List the ledger: a row for each fact, indexed by its id, in the document's order.

    `quote`, `claim` and `printed` are what the document says in its own words and in ours, and its
    value alone; `outcome`, `sign`, `instead` and `judged` what became of it, the mark for that,
    what is right instead, and both in words; `checks`, `working` and `run` the kinds of checks, how
    the outcome comes about, and a run that it rests on. `href` leads to its row on the page.
    """
    listed = []
    for name, fact in ledger.facts.items():
        entry, verdicts, printed = ledger[name], ledger[name].verdicts, ledger.facts.text(name)
        became = HOLDS if entry.outcome == Outcome.ROUNDING else entry.outcome  # which does no harm
        instead = " ".join(verdict.instead for verdict in verdicts if verdict.instead)
        if entry.other:
            instead = ("" if entry.decided else "or ") + fact.worded(entry.other.value)
        because = f" ({', '.join(entry.rests_on)})" if entry.rests_on else ""
        working = [f"{v.check} ({v.outcome}): " * (v.check not in ("", "measured")) + v.working
                   for v in verdicts]  # fmt: skip
        listed.append({
            "fact": name, "section": int(fact.part.split(".")[0]), "printed": printed,
            "quote": re.sub(r"\*\*|`", "", fact.quote),
            "outcome": became, "sign": SIGNS[became], "instead": instead,
            "claim": f"{ledger.facts.fill(fact.statement)}{': ' * bool(printed)}{printed}",
            "judged": f"{SIGNS[became]} {became}{because}{'. Right: ' * bool(instead)}{instead}",
            "checks": ", ".join(dict.fromkeys(v.check for v in verdicts if v.check)),
            "working": "\n".join(working), "href": f"#{name}",
            "run": next((run for verdict in verdicts for run in verdict.runs), None),
        })  # fmt: skip
    return pd.DataFrame(listed).set_index("fact", drop=False)
