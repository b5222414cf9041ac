"""Lays the judged document out as DataFrames, for its notebook and for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from wanreport.baseline.facts import MARKS, SLOT
from wanreport.baseline.judge import WORDS
from wanreport.baseline.ledger import Entry, Ledger

HOLDS, FALSE, FALLS, OPEN, UNKNOWN = OUTCOMES = (
    "holds", "contradicted", "follows from a contradicted one", "not yet measured",
    "cannot be known",
)  # fmt: skip
"""What became of a fact: exactly one of these, so that their counts add up."""
SIGNS = dict(zip(OUTCOMES, ["✓", "✗", "†", "…", ""], strict=True))
"""The mark behind a fact; without one where nothing can judge it."""
PLAIN = dict(zip(WORDS, [FALSE, OPEN, UNKNOWN, HOLDS, HOLDS], strict=True))
"""The outcome of a single check in the same words; rounding does no harm."""
GROUPS = CONTRADICTED, MEASURED, PAPER, NOT_YET = (
    "contradicted", "measured again", "consistent on paper only", "not yet measured",
)  # fmt: skip
"""What became of a conclusion."""


def rows(ledger: Ledger) -> pd.DataFrame:
    """List the ledger: a row for each fact, indexed by its id, in the document's order.

    Columns
    -------
    section, part, place
        Where it stands: 3, "3.2", and "table" for a cell of a table, "within" for a number inside
        a table's headings or another fact's text, else "claim".
    statement, printed, kind, look, source, verified
        What the document says, the value as printed, and what the document rests it on.
    outcome, sign, depends, instead, checks, working
        What became of it, the contradicted facts that it follows from, what is right instead, the
        kinds of checks, and how the outcome comes about.
    anchor, href
        The id of its row on the page, and a link there.
    """
    listed = []
    for name, entry in ledger.items():
        fact, became = entry.fact, _outcome(entry)
        listed.append({
            "fact": name, "section": int(fact.part.split(".")[0]), "part": fact.part,
            "place": "claim", "statement": _marked(ledger, fact.statement),
            "printed": ledger.facts.text(name), "kind": fact.kind, "look": MARKS[fact.kind],
            "source": fact.cite, "verified": fact.verified, "outcome": became,
            "sign": SIGNS[became], "depends": ", ".join(entry.rests_on),
            "instead": _instead(ledger, entry), "working": _working(ledger, entry),
            "checks": _checks(entry), "anchor": _anchor(name), "href": f"#{_anchor(name)}",
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

    The first column holds the rows' labels. The others hold facts as printed with their marks, and
    for each column ``X`` there is a column ``X href`` of links to the ledger.
    """
    for layout in ledger.facts.parts[part].tables:
        head, *titles = [
            _heading(ledger, text) for text in (layout["head"], *layout["columns"].values())
        ]
        table = []
        for label, cells in zip(layout["rows"].values(), _cells(part, layout), strict=True):
            found = {head: _heading(ledger, label)}
            for title, name in zip(titles, cells, strict=True):
                if name in ledger:
                    found |= {title: _fact(ledger, name), f"{title} href": f"#{_anchor(name)}"}
            table.append(found)
        columns = [head, *titles, *(f"{title} href" for title in titles)]
        yield ledger.facts.fill(layout["caption"]), pd.DataFrame(table, columns=columns)


def conclusions(ledger: Ledger) -> pd.DataFrame:
    """List the document's conclusions by :data:`GROUPS`: what it says, and what is right.

    `checks` names the kinds of checks of the facts that it needs; `href` leads to the one that
    decides.
    """
    listed = []
    for one in ledger.judging.conclusions:
        needed = [ledger[name] for name in one.needs]
        decides = next((entry for entry in needed if entry.falls), needed[0]).fact.id
        by, status = _checks(*needed), ledger.status(one)
        stands = MEASURED if "measured" in by else PAPER
        listed.append({
            "group": {"falls": CONTRADICTED, "open": NOT_YET}.get(status, stands),
            "conclusion": ledger.text(one.name), "says": ledger.text(one.says), "checks": by,
            "instead": ledger.text(one.instead if status == "falls" else one.but),
            "fact": decides, "href": f"#{_anchor(decides)}",
        })  # fmt: skip
    frame = pd.DataFrame(listed)
    return frame.sort_values("group", key=lambda group: group.map(GROUPS.index), kind="stable")


def _outcome(entry: Entry) -> str:
    return FALLS if entry.rests_on else PLAIN[entry.outcome]


def _checks(*entries: Entry) -> str:
    return ", ".join(dict.fromkeys(v.check for e in entries for v in e.verdicts if v.check))


def _anchor(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


def _fact(ledger: Ledger, name: str) -> str:
    """Write a fact as printed, with its mark and those of the facts inside its text."""
    value = ledger.facts[name].value
    text = _marked(ledger, value) if isinstance(value, str) else ledger.facts.text(name)
    return f"{text} {SIGNS[_outcome(ledger[name])]}".strip()


def _marked(ledger: Ledger, text: str) -> str:
    return SLOT.sub(lambda match: _fact(ledger, match[1]), text)


def _heading(ledger: Ledger, text: str) -> str:
    """Write a heading with the marks of the facts in it at its end."""
    signs = dict.fromkeys(SIGNS[_outcome(ledger[name])] for name in SLOT.findall(text))
    return " ".join([ledger.facts.fill(text), *filter(None, signs)])


def _cells(part: str, layout: dict[str, Any]) -> list[list[str]]:
    """Name the fact of each cell, row by row; not each of them need exist."""
    prefix = layout.get("prefix", f"s{part}")
    ends = ["" if column == "_" else f".{column}" for column in layout["columns"]]
    return [[f"{prefix}.{row}{end}" for end in ends] for row in layout["rows"]]


def _instead(ledger: Ledger, entry: Entry) -> str:
    """Say what is right: a number, after "or" where either may be wrong, or a sentence."""
    if entry.other is None:
        return " ".join(verdict.instead for verdict in entry.verdicts if verdict.instead)
    return ("" if entry.decided else "or ") + ledger.number_text(entry.fact.id, entry.other)


def _working(ledger: Ledger, entry: Entry) -> str:
    """Say how the outcome comes about: a line for each verdict, and a size's other reading."""
    lines = []
    for verdict in entry.verdicts:
        named = f" ({WORDS[verdict.outcome]})" if len(entry.verdicts) > 1 else ""
        start = f"{verdict.check}{named}: " if verdict.check else ""
        lines.append(start + ledger.text(verdict.working))  # what is open may hold templates
    if entry.fact.id in ledger.judging.binary:
        lines.append(f"In binary units: {ledger.binary(entry.fact.id)}")
    return "\n".join(lines)
