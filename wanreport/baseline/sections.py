"""The baseline's tables as HTML, laid out as its data files say.

A table's cell in row ``denoise`` and column ``new`` is the fact ``<prefix>.denoise.new``; the
column ``_`` stands for ``<prefix>.denoise`` itself. What is in no table is listed as claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, get_args

from wanreport.baseline.facts import MARKS, NBSP, Fact, Facts, Kind, quantity_text
from wanreport.flags import resolve
from wanreport.registry import ModelSettings, resolve_model
from wanreport.schedule import flow_schedule
from wanreport.tables import Cell, Column, html_table

MEANINGS: dict[Kind, str] = {
    "specification": "a setting, or something that was set up so",
    "measured": "read from a log or a trace by the document's authors",
    "derived": "follows from other facts; recomputed here wherever the document says from which",
    "cited": "taken from source code or from the pull request",
    "hypothesis": "an explanation or a guess that nothing had tested yet",
    "prediction": "expected of runs still to come, or asked of them",
}

EXAMPLES: dict[Kind, str] = {
    "specification": "s1.host_memory",
    "measured": "s3.2.denoise.new",
    "derived": "s3.2.denoise.delta",
    "cited": "s8.total.new",
    "hypothesis": "s7.sync.high",
    "prediction": "s9.2.prefetch.gain_high",
}
"""A fact of each kind, for the legend."""


def cell(facts: Facts, name: str) -> Cell | None:
    """One fact as a table cell: as printed, what it computes to, and where it comes from."""
    if name not in facts:
        return None
    check = facts.check(name)
    text = facts.text(name)
    if check:
        text += f"{NBSP if check.verdict == 'same' else ' '}{check.mark}"
    return Cell(text, kind=MARKS[facts[name].kind], title=facts.origin(name))


def numbers(facts: Facts, part: str) -> str:
    """The tables of one section, as HTML."""
    return "\n".join(_table(facts, part, layout) for layout in facts.parts[part].tables)


def cells(part: str, layout: Mapping[str, Any]) -> list[str]:
    """The ids that a table has room for, row by row; not each of them need be a fact."""
    prefix = layout.get("prefix", f"s{part}")
    return [
        f"{prefix}.{row}" if column == "_" else f"{prefix}.{row}.{column}"
        for row in layout["rows"]
        for column in layout["columns"]
    ]


def _table(facts: Facts, part: str, layout: Mapping[str, Any]) -> str:
    columns: dict[str, str] = layout["columns"]
    ids = iter(cells(part, layout))
    grid = {row: {column: next(ids) for column in columns} for row in layout["rows"]}
    rows: list[dict[str, object]] = [
        {
            "": facts.fill(layout["rows"][row]),
            **{column: cell(facts, name) for column, name in names.items()},
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


def claims(facts: Facts, part: str, caption: str = "What the section says besides") -> str:
    """The facts of a section that are in none of its tables, as one table."""
    shown = in_tables(facts, part)
    return fact_list(facts, [f for f in facts.of_part(part) if f.id not in shown], caption)


def fact_list(facts: Facts, listed: Iterable[Fact], caption: str) -> str:
    """A table of facts, one a row: claim, value, source, what the document verified, kind."""
    listed = list(listed)
    rows: list[dict[str, object]] = []
    for fact in listed:
        has_value = fact.value is not None
        rows.append(
            {
                "claim": facts.statement(fact.id),
                "value": cell(facts, fact.id) if has_value else Cell("", title="a claim"),
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


def legend(facts: Facts) -> str:
    """How each kind of fact looks, what it means, and how many there are."""
    rows: list[dict[str, object]] = [
        {
            "kind": kind,
            "example": cell(facts, EXAMPLES[kind]),
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
    note = (
        "✓ recomputed, and the same to the printed digits. "
        "≈ another number, which the rounding of the printed inputs can explain. "
        "≠ another number, which rounding cannot explain. "
        "Point at a number to see its section and its formula."
    )
    return html_table(rows, columns, caption="Kinds of facts", note=note, kind="quoted")


def recomputed(facts: Facts) -> str:
    """Every derived number that computes to another one than was printed."""
    rows: list[dict[str, object]] = [
        {
            "section": f"§{check.fact.part}",
            "what": facts.statement(check.fact.id),
            "printed": Cell(facts.text(check.fact.id), kind=MARKS[check.fact.kind]),
            "verdict": check.mark[0],
            "computed": Cell(check.text, kind="derived"),
            "range": Cell(check.range, kind="derived"),
            "how": check.fact.how,
        }
        for check in facts.checks()
        if check.verdict != "same"
    ]
    columns = [
        Column("section", "Section", numeric=False),
        Column("what", "Number", numeric=False),
        Column("printed", "Printed"),
        Column("verdict", "", numeric=False),
        Column("computed", "Computes to"),
        Column("range", "With rounding"),
        Column("how", "Formula", numeric=False),
    ]
    note = "With rounding: what the rounding of the printed inputs leaves open."
    caption = "Derived numbers that compute to another number than the one printed"
    return html_table(rows, columns, caption=caption, note=note, kind="quoted")


# What the package's own code says to the same questions ------------------------------------------


def registry_settings(facts: Facts) -> dict[str, ModelSettings]:
    """What SGLang 0.5.9 resolves the two model paths to, by column ("old", "new").

    Neither path need exist: the checkpoint's class name is given, as both hold the same pipeline.
    """
    index = {"_class_name": "WanPipeline"}
    return {
        column: resolve_model(facts.text(f"s2.path.{column}"), index=index)
        for column in ("old", "new")
    }


def registry_table(facts: Facts) -> str:
    """The two model paths resolved by the package's registry."""
    rows: list[dict[str, object]] = [
        {
            "path": facts.text(f"s2.path.{column}"),
            "config": settings.config,
            "how": settings.how,
            "flow_shift": settings.flow_shift,
            "steps": "; ".join(settings.steps),
        }
        for column, settings in registry_settings(facts).items()
    ]
    columns = [
        Column("path", "Model path", numeric=False),
        Column("config", "Configuration", numeric=False),
        Column("how", "Found by", numeric=False),
        Column("flow_shift", "flow_shift"),
        Column("steps", "How", numeric=False),
    ]
    caption = "What SGLang 0.5.9's registry makes of the two paths"
    return html_table(rows, columns, caption=caption, kind="derived")


def resolved_flags(flags: str) -> tuple[str, list[str]]:
    """The engine that a job's printed flags lead to in SGLang 0.5.9, and the rules that fired.

    Flags that are not about offloading are passed over; text without flags means none.
    """
    words = flags.split()
    given = {
        word: value
        for word, value in zip(words, [*words[1:], ""], strict=True)
        if word.startswith("--")
    }
    truth = {"true": True, "false": False}
    result = resolve(
        truth.get(given.get("--dit-layerwise-offload", "")),
        truth.get(given.get("--dit-cpu-offload", "")),
        truth.get(given.get("--use-fsdp-inference", ""), False),
        float(given.get("--dit-offload-prefetch-size", 0)),
        False,
    )
    return result.engine or "none", result.steps


def flags_table(facts: Facts) -> str:
    """The flags of the jobs to come, and the engine that SGLang 0.5.9 arrives at with them."""
    layout = facts.parts["9.1"].tables[0]
    rows: list[dict[str, object]] = []
    for row, label in layout["rows"].items():
        engine, steps = resolved_flags(facts.text(f"s9.1.{row}.flags"))
        rows.append(
            {
                "job": label,
                "flags": cell(facts, f"s9.1.{row}.flags"),
                "engine": engine,
                "steps": "; ".join(steps),
            }
        )
    columns = [
        Column("job", "Job", numeric=False),
        Column("flags", "Flags, as printed", numeric=False),
        Column("engine", "Engine they lead to", numeric=False),
        Column("steps", "Rules that fired", numeric=False),
    ]
    caption = "What SGLang 0.5.9 makes of the flags as printed"
    return html_table(rows, columns, caption=caption, kind="derived")


def schedule_table(facts: Facts) -> str:
    """The switch, computed for both shifts: the last step before it and the first one after."""
    boundary = facts.number("s5.5.boundary")
    steps = int(facts.number("s2.steps"))
    rows: list[dict[str, object]] = []
    for name in ("s5.5.shift.low", "s5.5.shift.high"):
        times = flow_schedule(steps, facts.number(name)).timesteps
        switch = next(i for i, time in enumerate(times) if time < boundary)
        rows.append(
            {
                "shift": cell(facts, name),
                "switch": switch,
                "before": times[switch - 1],
                "after": times[switch],
                "second": quantity_text(Decimal(100 * (steps - switch)) / steps, "%", 0),
            }
        )
    columns = [
        Column("shift", "flow_shift", numeric=False),
        Column("switch", "Switch step"),
        Column("before", "Timestep before it"),
        Column("after", "Timestep at it"),
        Column("second", "Steps from there on"),
    ]
    caption = f"Where the timesteps fall below {facts.text('s5.5.boundary')}"
    return html_table(rows, columns, caption=caption, kind="derived")
