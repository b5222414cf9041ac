"""The baseline's page as a whole: what stands and what falls, and the ledger itself."""

from __future__ import annotations

from textwrap import shorten

from wanreport.baseline.checks import CHECKS, Conclusion
from wanreport.baseline.facts import MARKS
from wanreport.baseline.judge import WORDS
from wanreport.baseline.ledger import Entry, Ledger, Status
from wanreport.baseline.sections import RESTS, SIGNS, anchor, mark, say
from wanreport.tables import Cell, Column, html_table

STATUSES: dict[Status, tuple[str, str]] = {
    "stands": ("✓ stands", "Stand"),
    "falls": ("✗ falls", "Fall"),
    "open": ("… open", "Open"),
}
"""The statuses of a conclusion: its own word, and the one for all of them."""


def first_screen(ledger: Ledger) -> str:
    """What a reader must know first, as HTML: which conclusions stand, and how the facts fell."""
    found = [(ledger.status(one), ledger.text(one.name)) for one in ledger.judging.conclusions]
    lines = []
    for status, (_, title) in STATUSES.items():
        names = [name for own, name in found if own == status]
        if names:
            lines.append(f"**{title} ({len(names)} of {len(found)}):** {' · '.join(names)}.")
    tally = ledger.tally
    more = sum(bool(entry.rests_on) for entry in ledger.values())
    lines.append(
        f"**The facts.** Of {len(ledger)} numbers and claims {tally['holds']} hold and "
        f"{tally['rounding']} hold within rounding; {tally['contradicts']} are contradicted, by "
        f"other places of the document, by the model or by SGLang's code, and {more} more rest on "
        f"those. {tally['open']} were never measured; {tally['unknown']} cannot be known from the "
        "document, most of them names, settings and single measurements."
    )
    return say(ledger, "\n\n".join(lines))


def conclusions_table(ledger: Ledger) -> str:
    """Each conclusion with its status, what it needs and what is right instead."""
    order = list(STATUSES)
    ranked = sorted(ledger.judging.conclusions, key=lambda one: order.index(ledger.status(one)))
    rows: list[dict[str, object]] = [_conclusion(ledger, one) for one in ranked]
    columns = [
        Column("name", "Conclusion", numeric=False),
        Column("status", "", numeric=False),
        Column("instead", "What is right instead, or limits it", numeric=False),
    ]
    note = (
        "A conclusion falls where something that it needs is contradicted; there may be other "
        "reasons for it. Marks lead to the facts that decide, and their working."
    )
    table = html_table(
        rows, columns, caption="The document's conclusions", note=note, kind="derived"
    )
    return f'<div class="stacked conclusions">{table}</div>'


def _conclusion(ledger: Ledger, one: Conclusion) -> dict[str, object]:
    status = ledger.status(one)
    entries = [ledger[name] for name in one.needs]
    decides = next((e for e in entries if e.falls), entries[0])
    text = ledger.text(one.instead if status == "falls" else one.but)
    return {
        "name": Cell(
            ledger.text(one.name),
            mark=mark(ledger, decides.fact.id),
            note=ledger.text(one.says),
        ),
        "status": STATUSES[status][0],
        "instead": Cell(text, text=text),
    }


def legend(ledger: Ledger) -> str:
    """The marks, their meaning, and how many facts carry each."""
    rows: list[dict[str, object]] = [
        {"sign": SIGNS[outcome][0], "words": words, "facts": ledger.tally[outcome]}
        for outcome, words in WORDS.items()
    ]
    rests = sum(bool(entry.rests_on) for entry in ledger.values())
    words = "follows from something contradicted, and cannot stand as printed either"
    rows.append({"sign": f"behind another mark: {RESTS}", "words": words, "facts": rests})
    columns = [
        Column("sign", "Mark", numeric=False),
        Column("words", "Verdict", numeric=False),
        Column("facts", "Facts"),
    ]
    note = "Facts that nothing could judge carry no mark in the sections; they stand in the ledger."
    return html_table(rows, columns, caption="Marks", note=note, kind="derived")


def checks_table(ledger: Ledger) -> str:
    """The kinds of checks, and how their verdicts fell."""
    given = [verdict for entry in ledger.values() for verdict in entry.verdicts]
    rows: list[dict[str, object]] = [
        {"check": check, "meaning": meaning}
        | {o: sum(v.check == check and v.outcome == o for v in given) for o in WORDS}
        for check, meaning in CHECKS.items()
    ]
    columns: list[Column | str] = [
        Column("check", "Check", numeric=False),
        Column("meaning", "Against what", numeric=False),
        *(Column(outcome, f"{SIGNS[outcome][0]} {outcome}") for outcome in reversed(WORDS)),
    ]
    versions = ", ".join(f"{name} {v}" for name, v in ledger.evidence.versions.items())
    note = f"Numbers of verdicts; a fact may have several. Sizes and schedule: {versions}."
    return html_table(rows, columns, caption="Checks", note=note, kind="derived")


def releases_table(ledger: Ledger) -> str:
    """Which SGLang releases each cited file can have been read from."""
    rows: list[dict[str, object]] = [
        {"file": one["file"], "fits": ", ".join(one["fits"]) or "none", "why": one["conclusion"]}
        for one in ledger.evidence.source["files"]
    ]
    columns = [
        Column("file", "File", numeric=False),
        Column("fits", "Releases that fit", numeric=False),
        Column("why", "What follows", numeric=False),
    ]
    looked = [release["version"] for release in ledger.evidence.source["releases"]]
    state = ledger.evidence.source.get("state", "not found")
    note = f"Looked at: {', '.join(looked) or 'none'}. The state that was read: {state}."
    caption = "The SGLang release that each file was read from"
    table = html_table(rows, columns, caption=caption, note=note, kind="derived")
    return f'<div class="stacked">{table}</div>'


def ledger_table(ledger: Ledger) -> str:
    """The whole ledger: every fact with its verdict, its number put right, and the working."""
    rows: list[dict[str, object]] = [
        {
            "id": anchor(name),
            "fact": Cell(ledger.facts.statement(name), note=f"{name}, {entry.fact.kind}"),
            "printed": Cell(
                ledger.facts.text(name) or "a claim",
                kind=MARKS[entry.fact.kind],
                note=ledger.binary(name) if name in ledger.judging.binary else "",
            ),
            "verdict": _verdict(entry),
            "other": Cell(_other(ledger, name), kind="derived"),
            "working": _working(entry),
        }
        for name, entry in ledger.items()
    ]
    columns = [
        Column("fact", "Fact", numeric=False),
        Column("printed", "Printed", numeric=False),
        Column("verdict", "Verdict", numeric=False),
        Column("other", "Should be", numeric=False),
        Column("working", "Working", numeric=False),
    ]
    note = (
        "Should be: with “or” where two places of the document differ and either may be wrong. "
        "Formulas name facts by their ids and sizes of the model by wan.*. GB is 10⁹ bytes and GiB "
        "2³⁰; below a size in doubt stands what it is if the binary unit was meant."
    )
    table = html_table(rows, columns, caption="The ledger", note=note, kind=None)
    return f'<div class="stacked ledger">{table}</div>'


def _verdict(entry: Entry) -> Cell:
    text = f"{SIGNS[entry.outcome][0]} {WORDS[entry.outcome]}"
    rests = f"{RESTS} rests on {', '.join(entry.rests_on)}" if entry.rests_on else ""
    return Cell(text, note=rests)


def _other(ledger: Ledger, name: str) -> str:
    entry = ledger[name]
    if entry.other is None:
        return ""
    return ("" if entry.decided else "or ") + ledger.number_text(name, entry.other)


def _working(entry: Entry) -> str:
    several = len(entry.verdicts) > 1
    lines = [f"Instead: {verdict.instead}" for verdict in entry.verdicts if verdict.instead]
    for verdict in entry.verdicts:
        outcome = f" ({WORDS[verdict.outcome]})" if several else ""
        lines.append((f"{verdict.check}{outcome}: " if verdict.check else "") + verdict.working)
    return "\n".join(lines)


# On a terminal ------------------------------------------------------------------------------------


def plain_table(ledger: Ledger) -> str:
    """The ledger as text, one line a fact, and how the verdicts fell."""
    width = max(len(name) for name in ledger)
    lines = []
    for name, entry in ledger.items():
        sign = SIGNS[entry.outcome][0] + (RESTS if entry.rests_on else " ")
        printed = shorten(ledger.facts.text(name) or "a claim", 24, placeholder="…")
        instead = next((v.instead for v in entry.verdicts if v.instead), "")
        other = _other(ledger, name) or shorten(instead, 60, placeholder="…")
        line = f"{sign} {name:<{width}}  {printed:<24}  {entry.summary}"
        lines.append(f"{line}  → {other}" if other else line)
    fell = ", ".join(f"{WORDS[outcome]} {number}" for outcome, number in ledger.tally.items())
    return "\n".join([*lines, "", f"{len(ledger)} facts: {fell}"])
