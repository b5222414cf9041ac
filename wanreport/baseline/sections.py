"""The baseline's sections as HTML: its tables, laid out as its data files say, and prose.

A table's cell in row ``denoise`` and column ``new`` is the fact ``<prefix>.denoise.new``; the
column ``_`` stands for ``<prefix>.denoise`` itself. What is in no table is listed as claims. Every
judged fact carries a mark that leads to its row of the ledger.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, get_args

from wanreport.baseline.facts import MARKS, SLOT, CssKind, Facts, Kind
from wanreport.baseline.judge import COMPUTED, WORDS, Outcome
from wanreport.baseline.ledger import Ledger
from wanreport.tables import Cell, Column, Mark, html_table

MEANINGS: dict[Kind, str] = {
    "specification": "a setting, or something that was set up so",
    "measured": "read from a log or a trace by the document's authors",
    "derived": "follows from other facts",
    "cited": "taken from source code or from the pull request",
    "hypothesis": "an explanation or a guess that nothing had tested yet",
    "prediction": "expected of runs still to come, or asked of them",
}

SIGNS: dict[Outcome, tuple[str, Literal["good", "warn", "bad", "calm"]]] = {
    "contradicts": ("≠", "bad"),
    "open": ("…", "calm"),
    "unknown": ("?", "calm"),
    "rounding": ("≈", "good"),
    "holds": ("✓", "good"),
}
RESTS = "†"


def anchor(name: str) -> str:
    """The id of a fact's row in the ledger."""
    return name.replace(".", "-").replace("_", "-")


def mark(ledger: Ledger, name: str) -> Mark | None:
    """The sign for a judged fact, a link to its working; None where nothing could judge it."""
    entry = ledger[name]
    if not entry.judged:
        return None
    sign, look = SIGNS[entry.outcome]
    words = f"{name}: {WORDS[entry.outcome]}"
    if entry.rests_on:
        rests = f"rests on {', '.join(entry.rests_on)}"
        return Mark(sign + RESTS, f"#{anchor(name)}", f"{words}, {rests}", "warn")
    return Mark(sign, f"#{anchor(name)}", words, look)


def cell(ledger: Ledger, name: str) -> Cell | None:
    """One fact as a table cell: as printed, with its mark, and the other unit where in doubt."""
    facts = ledger.facts
    if name not in facts:
        return None
    return Cell(
        facts.text(name),
        kind=MARKS[facts[name].kind],
        title=facts.origin(name),
        mark=mark(ledger, name),
        note=ledger.binary(name) if name in ledger.judging.binary else "",
    )


def say(ledger: Ledger, text: str) -> str:
    """Return prose with numbers in it as HTML, each looking as its kind does everywhere.

    ``{id}`` is a fact as printed, with its mark; ``{= formula | unit | decimals}`` is computed
    here. An empty line starts a new paragraph, and ``**words**`` are strong; all other text is
    escaped.
    """
    # Not Markdown: its converters take an inline element and its words for separate things.
    said = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text, quote=False))
    said = COMPUTED.sub(lambda match: _computed(ledger, html.unescape(match[1])), said)
    said = SLOT.sub(lambda match: _stated(ledger, match[1]), said)
    return "\n".join(f"<p>{part.strip()}</p>" for part in said.split("\n\n") if part.strip())


def _stated(ledger: Ledger, name: str) -> str:
    facts, sign = ledger.facts, mark(ledger, name)
    words = _span(facts.text(name), MARKS[facts[name].kind], facts.origin(name))
    return words + (sign.html if sign else "")


def _computed(ledger: Ledger, slot: str) -> str:
    words, formula = ledger.worded(slot)
    return _span(words, "derived", f"computed here: {formula}")


def _span(words: str, look: CssKind, title: str) -> str:
    tag = "em" if look == "derived" else "span"
    return f'<{tag} class="kind-{look}" title="{html.escape(title)}">{html.escape(words)}</{tag}>'


def numbers(ledger: Ledger, part: str) -> str:
    """The tables of one section, as HTML."""
    layouts = ledger.facts.parts[part].tables
    return "\n".join(_table(ledger, part, layout) for layout in layouts)


def cells(part: str, layout: Mapping[str, Any]) -> list[str]:
    """The ids that a table has room for, row by row; not each of them need be a fact."""
    prefix = layout.get("prefix", f"s{part}")
    return [
        f"{prefix}.{row}" if column == "_" else f"{prefix}.{row}.{column}"
        for row in layout["rows"]
        for column in layout["columns"]
    ]


def _table(ledger: Ledger, part: str, layout: Mapping[str, Any]) -> str:
    facts = ledger.facts
    columns: dict[str, str] = layout["columns"]
    ids = iter(cells(part, layout))
    grid = {row: {column: next(ids) for column in columns} for row in layout["rows"]}
    rows: list[dict[str, object]] = [
        {
            "": facts.fill(layout["rows"][row]),
            **{column: cell(ledger, name) for column, name in names.items()},
        }
        for row, names in grid.items()
    ]
    heads = [Column("", layout["head"], numeric=False)]
    for column, title in columns.items():
        held = [facts[names[column]] for names in grid.values() if names[column] in facts]
        count = sum(isinstance(fact.value, Decimal) for fact in held)
        numeric = 3 * count >= 2 * len(held)  # a word or two among numbers may stand on the right
        heads.append(Column(column, facts.fill(title), numeric=numeric))
    return html_table(rows, heads, caption=facts.fill(layout["caption"]), kind="quoted")


def in_tables(facts: Facts, part: str) -> set[str]:
    """The ids that a section's tables show, in a cell or inside a text."""
    shown: set[str] = set()
    for layout in facts.parts[part].tables:
        here = [name for name in cells(part, layout) if name in facts]
        texts = [layout["caption"], *layout["rows"].values(), *layout["columns"].values()]
        texts += [str(facts[name].value) for name in here]
        shown.update(here)
        shown.update(name for name in facts if any(f"{{{name}}}" in text for text in texts))
    return shown


def claims(ledger: Ledger, part: str, caption: str = "What the section says besides") -> str:
    """The facts of a section that are in none of its tables: claim, value, source, kind."""
    facts = ledger.facts
    shown = in_tables(facts, part)
    listed = [fact for fact in facts.of_part(part) if fact.id not in shown]
    rows: list[dict[str, object]] = []
    for fact in listed:
        has_value = fact.value is not None
        rows.append(
            {
                "claim": facts.statement(fact.id)
                if has_value
                else Cell(facts.statement(fact.id), mark=mark(ledger, fact.id)),
                "value": cell(ledger, fact.id) if has_value else Cell("", title="a claim"),
                "source": fact.cite or "",
                "verified": "" if fact.verified is None else "yes" if fact.verified else "no",
                "kind": Cell(fact.kind, kind=MARKS[fact.kind], title=MEANINGS[fact.kind]),
            }
        )
    columns: list[Column | str] = [Column("claim", "Claim", numeric=False)]
    if any(fact.value is not None for fact in listed):
        columns.append(Column("value", "Value", numeric=False))
    if any(fact.cite for fact in listed):
        columns.append(Column("source", "Source named", numeric=False))
    if any(fact.verified is not None for fact in listed):
        columns.append(Column("verified", "Verified, it says", numeric=False))
    columns.append(Column("kind", "Kind", numeric=False))
    return html_table(rows, columns, caption=caption, kind="quoted")


def legend(ledger: Ledger) -> str:
    """How each kind of fact looks, what it means, and how many there are."""
    facts = ledger.facts
    example = {fact.kind: fact.id for fact in reversed([*facts.values()]) if fact.unit}
    rows: list[dict[str, object]] = [
        {
            "kind": kind,
            "example": Cell(facts.text(example[kind]), kind=MARKS[kind]),
            "meaning": MEANINGS[kind],
            "count": sum(fact.kind == kind for fact in facts.values()),
        }
        for kind in get_args(Kind)
    ]
    columns = [
        Column("kind", "Kind", numeric=False),
        Column("example", "For example", numeric=False),
        Column("meaning", "Meaning", numeric=False),
        Column("count", "Facts"),
    ]
    return html_table(rows, columns, caption="Kinds of facts", kind="quoted")
