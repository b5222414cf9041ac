"""A DataFrame as an accessible HTML table.

A column's unit is the end of its name, as in all frames: ``step_s`` is in seconds, ``peak_bytes``
in bytes and shown in GB. All text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader

from wanreport.report import style
from wanreport.report.units import UNITS, bounds, gone, is_number, parts, texts
from wanreport.words import EM_DASH

Kind = Literal["measured", "derived", "predicted", "quoted"]

KINDS: dict[str, str] = {
    "measured": "read from a record that a program wrote on the machine it names",
    "derived": "computed from other numbers by a formula",
    "predicted": "expected by a model, not observed",
    "quoted": "stated by the source document",
}

BADGES = ("status", "verdict")
MISSING = {"quoted": "not reported", "predicted": "not predicted"}
LONG = 48  # characters; a table with longer text is read as cards on a phone


class Table(NamedTuple):
    """One table as HTML, which JupyterLab shows."""

    html: str
    caption: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"(table: {self.caption})"


def table(
    df: pd.DataFrame,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    *,
    caption: str,
    note: str = "",
    kind: Kind | None = "measured",
    kinds: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    interval: Iterable[str] = (),
    fold: str = "",
    empty: str = "Nothing to show.",
    anchor: str = "",
) -> Table:
    """Make an HTML table of a DataFrame, whose first column heads each row.

    Parameters
    ----------
    columns
        Names of the columns to show, in order, with their titles; all by default.
    caption, note
        The conclusion as a sentence, and what it rests on: n, source, conditions. Plain text.
    kind, kinds
        The kind of all numbers, and of single columns where it differs. In `kinds`, the name of
        another column says that this one tells the kind row by row.
    links
        For a column, the column with its targets. Only relative and web addresses become links.
    interval
        Columns such as ``step_s`` to show with ``step_low_s``, ``step_high_s`` and ``step_n``.
    fold
        Text of the line that the table unfolds from.
    empty
        What to say where there are no rows.
    anchor
        The column that gives each row its id.

    Raises
    ------
    KeyError
        If the DataFrame lacks a column that was asked for.
    ValueError
        If a kind is unknown.
    """
    titles = dict(columns if isinstance(columns, Mapping) else dict.fromkeys(columns or df, ""))
    kinds, links, intervals = dict(kinds or {}), dict(links or {}), set(interval)
    if wrong := {kind, *kinds.values()} - {None, *KINDS, *df.columns}:
        raise ValueError(f"kinds are {', '.join(KINDS)}, or name a column; got {wrong}")
    if not len(df.columns):
        df = pd.DataFrame(columns=[*titles])
    pairs = [_column(df, name, title, kind, kinds.get(name), links.get(name), name in intervals)
             for name, title in titles.items()]  # fmt: skip
    words = [c["text"] for head, cells in pairs for c in cells if not head["numeric"]]
    html = rendered(
        "table.html.j2", caption=caption, note=note, kind=kind, meanings=KINDS, fold=fold,
        empty=empty, heads=[head for head, _ in pairs],
        rows=list(zip(*(cells for _, cells in pairs), strict=True)),
        ids=list(df[anchor]) if anchor else [], cards=any(len(text) > LONG for text in words),
    )  # fmt: skip
    return Table(html, caption)


def rendered(template: str, **values: Any) -> str:
    """Fill one of this room's templates; whatever is not marked as safe there is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    room = PackageLoader("wanreport.report", "template")
    return Environment(loader=room, autoescape=True, trim_blocks=True, lstrip_blocks=True)


# A column ----------------------------------------------------------------------------------------


def _column(
    df: pd.DataFrame, name: str, title: str, kind: str | None, own: str | None, link: str | None,
    interval: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """What the template needs of a column's heading, and of each of its cells."""
    values, (stem, end) = list(df[name]), parts(name)
    count = len(values)
    each = [own or kind] * count if own is None or own in KINDS else list(df[own])
    shown = texts(name, values, exact=kind == "quoted" or own == "quoted")
    said, between = bounds(name, df) if interval else ("", [""] * count)
    targets = list(df[link]) if link else [None] * count
    engines = list(df["engine"]) if name in ("engine", "name") and "engine" in df else []
    numeric = any(map(is_number, values)) and all(is_number(v) or gone(v) for v in values)
    head = {
        "title": title or stem.replace("_", " "), "numeric": numeric, "interval": said,
        "unit": UNITS.get(end, "") if numeric or all(map(gone, values)) else "",
        "kind": own if own in KINDS else "",
    }  # fmt: skip
    return head, [
        {
            "text": text, "bounds": between[i], "href": _href(targets[i]),
            "missing": MISSING.get(str(each[i]), "not measured") if text == EM_DASH else "",
            "tick": {"✓": "yes", "✗": "no"}.get(text, ""),
            "kind": each[i] if own and each[i] != kind else "",
            "badge": re.sub(r"\W+", "-", text.lower()) if name in BADGES else "",
            "colour": style.colour(str(engines[i])) if engines else "",
        }
        for i, text in enumerate(shown)
    ]  # fmt: skip


def _href(target: Any) -> str:
    """A link's target; nothing where it would be neither relative nor on the web."""
    scheme = re.match(r"\s*([^/?#]*?):", str(target))
    web = scheme is None or scheme[1].lower() in ("http", "https")
    return str(target) if not gone(target) and web else ""
