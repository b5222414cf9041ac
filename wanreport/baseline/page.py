"""Lays the ledger out as DataFrames, for the baseline's notebook and for the command line."""

from __future__ import annotations

import pandas as pd

from wanreport.baseline.ledger import WORDS, Ledger

HOLDS, FALSE, FALLS = WORDS["holds"], WORDS["contradicts"], WORDS["follows"]
ELSEWHERE, OPEN, UNKNOWN = WORDS["elsewhere"], WORDS["open"], WORDS["unknown"]
SIGNS = {HOLDS: "✓", FALSE: "✗", FALLS: "†", ELSEWHERE: "◦", OPEN: "…", UNKNOWN: ""}
"""The mark behind a fact; without one where nothing can judge it."""
OUTCOMES = [*SIGNS]
"""What became of a fact: exactly one of these, so that their counts add up."""
GROUPS = CONTRADICTED, MEASURED, PAPER = (
    "contradicted", "re-measured", "consistent on paper only"
)  # fmt: skip
"""What became of a conclusion, in the order in which they are listed."""


def rows(ledger: Ledger) -> pd.DataFrame:
    """List the ledger: a row for each fact, indexed by its id, in the document's order.

    `quote`, `claim` and `printed` are what the document says in its own words and in ours, and its
    value alone; `outcome`, `sign`, `instead` and `judged` what became of it, the mark for that,
    what is right instead, and both in words; `checks`, `working` and `run` the kinds of checks, how
    the outcome comes about, and a run that it rests on. `href` leads to its row on the page.
    """
    listed = []
    for name, fact in ledger.facts.items():
        entry, printed = ledger[name], ledger.facts.text(name)
        # Rounding does no harm.
        became = HOLDS if entry.outcome == "rounding" else WORDS[entry.outcome]
        instead = " ".join(verdict.instead for verdict in entry.verdicts if verdict.instead)
        if entry.other:
            instead = ("" if entry.decided else "or ") + fact.worded(entry.other.value)
        because = f" ({', '.join(entry.rests_on)})" if entry.rests_on else ""
        working = [f"{v.check} ({WORDS[v.outcome]}): " * (v.check not in ("", "measured"))
                   + v.working for v in entry.verdicts]  # fmt: skip
        listed.append({
            "fact": name, "section": int(fact.part.split(".")[0]), "quote": _plain(fact.quote),
            "printed": printed,
            "claim": ": ".join(filter(None, [ledger.facts.fill(fact.statement), printed])),
            "outcome": became, "sign": SIGNS[became], "instead": instead,
            "judged": f"{SIGNS[became]} {became}{because}{'. Right: ' * bool(instead)}{instead}",
            "checks": ", ".join(dict.fromkeys(v.check for v in entry.verdicts if v.check)),
            "working": "\n".join(working), "href": f"#{name}",
            "run": next((run for verdict in entry.verdicts for run in verdict.runs), None),
        })  # fmt: skip
    return pd.DataFrame(listed).set_index("fact", drop=False)


def conclusions(ledger: Ledger) -> pd.DataFrame:
    """List the document's conclusions by group.

    A row for each: its `group`, by the facts that it needs and by whether runs answer, its `name`,
    its `quote`, what our runs gave (`ours`), and the `fact` that decides.
    """
    listed = []
    for one in ledger.judging.conclusions:
        seen = ledger.seen(one.by)
        decides = next((name for name in one.needs if ledger[name].falls), one.needs[0])
        ours = [f"{measured} ({', '.join(sorted(set(some.machine)))})"
                for measured, some in seen.groupby("measured", sort=False)]  # fmt: skip
        group = CONTRADICTED if ledger[decides].falls else MEASURED if len(seen) else PAPER
        listed.append({
            "group": group, "name": one.name, "quote": _plain(one.quote),
            "ours": "; ".join(ours), "fact": decides, "href": f"#{decides}",
        })  # fmt: skip
    return pd.DataFrame(sorted(listed, key=lambda each: GROUPS.index(each["group"])))


def _plain(quote: str) -> str:
    """The document's words without its Markdown."""
    return quote.replace("**", "").replace("`", "")
