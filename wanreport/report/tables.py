"""A DataFrame as an accessible HTML table.

A column's unit is the end of its name, as in all frames: ``step_s`` is in seconds, ``peak_bytes``
in bytes and shown in GB. All text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from wanreport.report import style
from wanreport.words import EM_DASH, NBSP, ratio, share, signed, significant

TEMPLATE = Path(__file__).parent / "template"

Kind = Literal["measured", "derived", "predicted", "quoted"]
KINDS: dict[str, str] = {
    "measured": "read from a record that a program wrote on the machine it names",
    "derived": "computed from other numbers by a formula",
    "predicted": "expected by a model, not observed",
    "quoted": "stated by the source document",
}
LONG = 48  # characters; a table with longer text is read as cards on a phone

UNITS = {"_gb_s": "GB/s", "_bytes": "GB", "_gib": "GiB", "_mhz": "MHz", "_pct": "%", "_min": "min",
         "celsius": "°C", "_gb": "GB", "_ms": "ms", "_s": "s", "_w": "W", "_x": "×"}  # fmt: skip
DIFFERENCES = {"overhead", "difference", "drift", "error"}  # words in names: signed numbers
SHARES = {"spread", "allowance", "share"}  # both are per cent where the name has no unit


def table(
    df: pd.DataFrame, columns: Mapping[str, str] | Sequence[str] | None = None, *, caption: str,
    note: str = "", kind: Kind | None = "measured", kinds: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None, interval: Iterable[str] = (), fold: str = "",
    empty: str = "Nothing to show.", anchor: str = "",
) -> str:  # fmt: skip
    """Make an HTML table of a DataFrame, whose first column heads each row.

    `columns` names those to show, in order, with their titles; all by default. `caption` is the
    conclusion as a sentence, `note` what it rests on. `kind` is that of all numbers, and `kinds`
    that of single columns where it differs; the name of another column there says that this one
    tells it row by row. `links` names, for a column, the one with its targets. A column in
    `interval` such as ``step_s`` is shown with ``step_low_s``, ``step_high_s`` and ``step_n``. The
    table unfolds from the text of `fold`, says `empty` where it has no rows, and takes ids of rows
    from the column `anchor`.

    Raises KeyError if the DataFrame lacks a column, and ValueError if a kind is unknown.
    """
    titles = dict(columns if isinstance(columns, Mapping) else dict.fromkeys(columns or df, ""))
    kinds, links = kinds or {}, links or {}
    if wrong := {kind, *kinds.values()} - {None, *KINDS, *df.columns}:
        raise ValueError(f"kinds are {', '.join(KINDS)}, or name a column; got {wrong}")
    if not len(df.columns):
        df = pd.DataFrame(columns=[*titles])
    pairs = [_column(df, name, title, kind, kinds.get(name, ""), links.get(name), name in interval)
             for name, title in titles.items()]  # fmt: skip
    words = [c["text"] for head, cells in pairs for c in cells if not head["numeric"]]
    return rendered(
        "table.html.j2", caption=caption, note=note, kind=kind, meanings=KINDS, fold=fold,
        empty=empty, heads=[head for head, _ in pairs],
        rows=list(zip(*(cells for _, cells in pairs), strict=True)),
        ids=list(df[anchor]) if anchor else [], cards=any(len(text) > LONG for text in words),
    )  # fmt: skip


def rendered(template: str, **values: Any) -> str:
    """Fill one of this room's templates; whatever is not marked as safe there is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATE)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _column(
    df: pd.DataFrame, name: str, title: str, kind: str | None, own: str, link: str | None,
    interval: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """What the template needs of a column's heading, and of each of its cells."""
    values, (stem, unit) = list(df[name]), _parts(name)
    numeric = any(map(_is_number, values)) and all(_is_number(v) or _gone(v) for v in values)
    said, between = _bounds(name, df) if interval else ("", [""] * len(df))
    head = {
        "title": title or stem.replace("_", " "), "numeric": numeric, "interval": said,
        "unit": UNITS.get(unit, "") if numeric or all(map(_gone, values)) else "",
        "kind": own if own in KINDS else "", "badge": name in ("status", "verdict"),
    }  # fmt: skip
    kinds = [own or kind] * len(df) if own in ("", *KINDS) else df[own]
    engines = df.engine if name in ("engine", "name") and "engine" in df else [None] * len(df)
    cells = zip(_texts(name, values, exact="quoted" in (kind, own)), between, kinds,
                df[link] if link else [None] * len(df), engines, strict=True)  # fmt: skip
    return head, [
        {"text": text, "bounds": bounds, "kind": each or "", "own": own and each != kind,
         "href": "" if _gone(href) else href,
         "colour": "" if engine is None else style.colour(engine)}
        for text, bounds, each, href, engine in cells
    ]  # fmt: skip


# Values as text ----------------------------------------------------------------------------------


def _parts(name: str) -> tuple[str, str]:
    """What a column is called, and the end of its name that tells the unit."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    return name.removesuffix(end) or name, end


def _gone(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and value is not True and value is not False and value == value


def _texts(
    name: str, values: Sequence[Any], like: Sequence[Any] = (), *, exact: bool = False
) -> list[str]:
    """Each value as text; the numbers of a column get the decimals that the middle one needs.

    `like` are numbers to take the decimals from; `exact` ones, such as quoted ones, keep their own.
    """
    stem, unit = _parts(name)
    words, scale = set(stem.split("_")), 1e9 if unit == "_bytes" else 1
    numbers = [abs(float(value)) / scale for value in like or values if _is_number(value)]
    decimals = len(significant(median(numbers or [1.0]) or 1.0).partition(".")[2])
    whole = all(float(v) % scale == 0 for v in [*like, *values] if _is_number(v))
    mixed = not all(_is_number(value) or _gone(value) for value in values)

    def number(value: float) -> str:
        if not unit and words & DIFFERENCES:
            return ratio(value)
        if not unit and words & SHARES:
            return "±" * ("allowance" in words) + share(value)
        value /= scale
        said = f"{value:,.{decimals if value and not whole else 0}f}"
        if exact:
            said = f"{value:,.10g}"
        elif mixed:
            said = f"{value:,.0f}" if value.is_integer() else significant(value)
        elif value and not whole and len(re.sub(r"\D", "", said).lstrip("0")) < 2:
            said = significant(value, 3)  # far below the others
        return "+" * (value > 0 and bool(words & DIFFERENCES)) + signed(said)

    return [number(float(value)) if _is_number(value) else _said(value) for value in values]


def _said(value: Any) -> str:
    """What is not a number, as text."""
    if isinstance(value, bool | np.bool_):
        return "✓" if value else "✗"
    items = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(item) for item in items if not _gone(item)) or EM_DASH


def _bounds(name: str, df: pd.DataFrame) -> tuple[str, list[str]]:
    """What the heading says of a column's intervals, and each interval, with n where n varies."""
    stem, unit = _parts(name)
    ends = [_texts(name, list(df[f"{stem}_{side}{unit}"]), list(df[name]))
            for side in ("low", "high")]  # fmt: skip
    pairs = [f"[{low}, {high}]" * (EM_DASH not in (low, high))
             for low, high in zip(*ends, strict=True)]  # fmt: skip
    ns = df[f"{stem}_n"] if f"{stem}_n" in df else [None] * len(df)
    said = ["" if _gone(n) else f"n{NBSP}={NBSP}{n}" for n in ns]
    if len(every := set(said) - {""}) < 2:
        return ", ".join([f"[95{NBSP}%]", *every]), pairs
    return f"[95{NBSP}%]", [f"{pair} {n}".strip() for pair, n in zip(pairs, said, strict=True)]
