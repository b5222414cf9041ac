"""Lays the judged document out as DataFrames, for its notebook and for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from wanreport.baseline.facts import SLOT
from wanreport.baseline.judge import WORDS
from wanreport.baseline.ledger import Entry, Ledger

HOLDS, FALSE, FALLS, OPEN, UNKNOWN = OUTCOMES = (
    "holds", "contradicted", "follows from a contradicted one", "not measured in its setup",
    "cannot be known",
)  # fmt: skip
"""What became of a fact: exactly one of these, so that their counts add up."""
SIGNS = dict(zip(OUTCOMES, ["✓", "✗", "†", "…", ""], strict=True))
"""The mark behind a fact; without one where nothing can judge it."""
PLAIN = dict(zip(WORDS, [FALSE, OPEN, UNKNOWN, HOLDS, HOLDS], strict=True))
"""The outcome of a single check in the same words; rounding does no harm."""
GROUPS = CONTRADICTED, MEASURED, PAPER, NOT_YET = (
    "contradicted", "measured again", "consistent on paper only", "not measured in its setup",
)  # fmt: skip
"""What became of a conclusion, in the order in which they are listed."""


def rows(ledger: Ledger) -> pd.DataFrame:
    """List the ledger: a row for each fact, indexed by its id, in the document's order.

    Columns
    -------
    section, part, place
        3, "3.2", and "table" for a cell, "within" for a number in a heading or a text, or "claim".
    claim, printed, source, verified
        What the document says, its value alone, the source that it names, whether it verified it.
    outcome, sign, instead, judged, checks, working, href
        What became of it, what is right instead, both in words, the kinds of checks, how the
        outcome comes about, and a link to its row on the page, whose anchor is the id.
    """
    listed = []
    for name, entry in ledger.items():
        fact, became, instead = entry.fact, _outcome(entry), _instead(ledger, entry)
        says, printed = _marked(ledger, fact.statement), ledger.facts.text(name)
        because = f" ({', '.join(entry.rests_on)})" if entry.rests_on else ""
        listed.append({
            "fact": name, "section": int(fact.part.split(".")[0]), "part": fact.part,
            "place": "claim", "claim": f"{says}: {printed}" if printed else says,
            "printed": printed, "source": fact.cite, "verified": fact.verified,
            "outcome": became, "sign": SIGNS[became], "instead": instead,
            "judged": f"{SIGNS[became]} {became}{because}{'. Right: ' * bool(instead)}{instead}",
            "checks": _checks(entry), "working": _working(ledger, entry), "href": f"#{name}",
        })  # fmt: skip
    frame = pd.DataFrame(listed).set_index("fact", drop=False)
    layouts = [(part, each) for part, of in ledger.facts.parts.items() for each in of.tables]
    cells = [name for part, each in layouts for row in _cells(part, each) for name in row]
    texts = [ledger.facts[name].value for name in cells if name in ledger]
    frame.loc[frame.index.isin(SLOT.findall(str((layouts, texts)))), "place"] = "within"
    frame.loc[frame.index.isin(cells), "place"] = "table"
    return frame


def grids(ledger: Ledger, part: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Lay out a section's tables as the document has them: caption and table of each.

    The first column holds labels, each other one, ``X``, facts as printed with their marks, and
    ``X href`` the links of those that have one. ``attrs["facts"]`` lists the ids.
    """
    for layout in ledger.facts.parts[part].tables:
        cells = _cells(part, layout)
        labels = [_heading(ledger, label) for label in layout["rows"].values()]
        table: dict[str, list[Any]] = {layout["head"]: labels}
        for text, names in zip(layout["columns"].values(), zip(*cells, strict=True), strict=True):
            title = _heading(ledger, text)
            table[title] = [_fact(ledger, name) if name in ledger else None for name in names]
            table[f"{title} href"] = [_mark(ledger, name) and f"#{name}" for name in names]
        grid = pd.DataFrame(table)
        grid.attrs["facts"] = [name for row in cells for name in row if name in ledger]
        yield ledger.facts.fill(layout["caption"]), grid


def conclusions(ledger: Ledger) -> pd.DataFrame:
    """List the document's conclusions by group, with what is right and the fact that decides."""
    listed = []
    for one in ledger.judging.conclusions:
        needed, status = [ledger[name] for name in one.needs], ledger.status(one)
        decides = next((entry for entry in needed if entry.falls), needed[0]).fact.id
        stands = MEASURED if "measured" in _checks(*needed) else PAPER
        listed.append({
            "group": {"falls": CONTRADICTED, "open": NOT_YET}.get(status, stands),
            "conclusion": ledger.text(one.name), "says": ledger.text(one.says),
            "instead": ledger.text(one.instead if status == "falls" else one.but),
            "fact": decides, "href": f"#{decides}",
        })  # fmt: skip
    return pd.DataFrame(sorted(listed, key=lambda each: GROUPS.index(each["group"])))


def _outcome(entry: Entry) -> str:
    return FALLS if entry.rests_on else PLAIN[entry.outcome]


def _mark(ledger: Ledger, name: str) -> str | None:
    return SIGNS[_outcome(ledger[name])] if name in ledger else None


def _checks(*entries: Entry) -> str:
    return ", ".join(dict.fromkeys(v.check for e in entries for v in e.verdicts if v.check))


def _fact(ledger: Ledger, name: str) -> str:
    """Write a fact as printed, with its mark and those of the facts inside its text."""
    value = ledger.facts[name].value
    text = _marked(ledger, value) if isinstance(value, str) else ledger.facts.text(name)
    return f"{text} {_mark(ledger, name)}".strip()


def _marked(ledger: Ledger, text: str) -> str:
    return SLOT.sub(lambda match: _fact(ledger, match[1]), text)


def _heading(ledger: Ledger, text: str) -> str:
    """Write a heading with the marks of the facts in it at its end."""
    signs = dict.fromkeys(_mark(ledger, name) for name in SLOT.findall(text))
    return " ".join([ledger.facts.fill(text), *filter(None, signs)])


def _cells(part: str, layout: dict[str, Any]) -> list[list[str]]:
    """Name the fact of each cell, row by row; not each of them need exist."""
    prefix = layout.get("prefix", f"s{part}")
    ends = ["" if column == "_" else f".{column}" for column in layout["columns"]]
    return [[f"{prefix}.{row}{end}" for end in ends] for row in layout["rows"]]


def _instead(ledger: Ledger, entry: Entry) -> str:
    """Say what is right: a number (after "or" if that may be wrong as well) or a sentence."""
    if entry.other is None:
        return " ".join(verdict.instead for verdict in entry.verdicts if verdict.instead)
    return ("" if entry.decided else "or ") + ledger.number_text(entry.fact.id, entry.other)


def _working(ledger: Ledger, entry: Entry) -> str:
    """Say how the outcome comes about: a line for each verdict, and a size's other reading."""
    lines = []
    for verdict in entry.verdicts:
        named = f"{verdict.check} ({PLAIN[verdict.outcome]}): " if verdict.check else ""
        lines.append(named + ledger.text(verdict.working))  # what is open may hold templates
    binary = entry.fact.id in ledger.judging.binary
    return "\n".join(lines + [f"In binary units: {ledger.binary(entry.fact.id)}"] * binary)
