"""A DataFrame as an accessible HTML table.

A column's unit is the end of its name, as in all frames: ``step_s`` is in seconds, ``peak_bytes``
in bytes and shown in GB. All text is escaped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from wanreport.report import style
from wanreport.report.style import TEMPLATE
from wanreport.words import EM_DASH, NBSP, ratio, share, signed, significant

Kind = Literal["measured", "derived", "predicted", "quoted"]
KINDS: dict[str, str] = {
    "measured": "read from a record that a program wrote on the machine it names",
    "derived": "computed from other numbers by a formula",
    "predicted": "expected by a model, not observed",
    "quoted": "stated by the source document",
}
TEMPLATES = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True,
                        lstrip_blocks=True)  # fmt: skip
LONG = 48  # characters; a table with longer text is read as cards on a phone, …
MOST_CARDS = 12  # … unless it has more columns: the style sheet names so many

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
        raise ValueError(f"kinds are {', '.join(KINDS)}, or a column's name; got {wrong}")
    if not len(df.columns):
        df = pd.DataFrame(columns=[*titles])
    made = [_column(df, name, kinds.get(name) or kind, name in interval) for name in titles]
    texts = [text for column in made if not column["numeric"] for text in column["texts"]]
    return rendered(
        "table.html.j2", caption=caption, note=note, kind=kind, kinds=kinds, meanings=KINDS,
        fold=fold, empty=empty, columns=made, titles=titles, rows=range(len(df)),
        hrefs={name: ["" if _gone(to) else to for to in df[link]] for name, link in links.items()},
        ids=df[anchor].tolist() if anchor else [],
        cards=len(titles) <= MOST_CARDS and any(len(text) > LONG for text in texts),
    )  # fmt: skip


def rendered(template: str, **values: Any) -> str:
    """Fill one of this room's templates; whatever is not marked as safe there is escaped."""
    return TEMPLATES.get_template(template).render(**values)


def _column(df: pd.DataFrame, name: str, kind: str | None, interval: bool) -> dict[str, Any]:
    """What the template needs of a column's heading, and lists of what it needs of its cells."""
    stem, unit = _parts(name)
    columns = [name, *[f"{stem}_{end}{unit}" for end in ("low", "high")] * interval]
    texts, *ends = _texts(name, [list(df[each]) for each in columns], exact=kind == "quoted")
    numbers = [value for value in df[name] if not _gone(value)]
    numeric = all(map(_is_number, numbers))
    column = {
        "name": name, "stem": stem.replace("_", " "), "texts": texts,
        "numeric": numeric and bool(numbers), "unit": UNITS.get(unit, "") if numeric else "",
        "kinds": [kind] * len(df) if kind in (None, *KINDS) else list(df[kind]),
    }  # fmt: skip
    if name in ("engine", "name") and "engine" in df:
        column["colours"] = ["" if _gone(each) else style.colour(each) for each in df.engine]
    if interval:
        ns = df[f"{stem}_n"] if f"{stem}_n" in df else [None] * len(df)
        said = ["" if _gone(n) else f"n{NBSP}={NBSP}{n}" for n in ns]
        alike = len(every := set(said) - {""}) < 2  # then the heading says it
        column["interval"] = ", ".join([f"[95{NBSP}%]", *(every if alike else ())])
        column["bounds"] = [
            (f"[{low}, {high}]" * (EM_DASH not in (low, high)) + f" {n}" * (not alike)).strip()
            for low, high, n in zip(*ends, said, strict=True)
        ]
    return column


def _parts(name: str) -> tuple[str, str]:
    """What a column is called, and the end of its name that tells the unit."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    return name.removesuffix(end) or name, end


def _gone(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and value is not True and value is not False and value == value


def _texts(name: str, columns: Sequence[Sequence[Any]], *, exact: bool) -> list[list[str]]:
    """Each value of columns as text; numbers get the decimals that the first one's middle needs.

    `exact` ones, such as quoted ones, keep their own.
    """
    stem, unit = _parts(name)
    words, scale = set(stem.split("_")), 1e9 if unit == "_bytes" else 1
    numbers = [abs(float(value)) / scale for value in columns[0] if _is_number(value)]
    decimals = len(significant(median(numbers or [1]) or 1).partition(".")[2])
    whole = all(float(v) % scale == 0 for values in columns for v in values if _is_number(v))
    mixed = not all(_is_number(value) or _gone(value) for value in columns[0])

    def text(value: Any) -> str:
        if not _is_number(value):
            if isinstance(value, bool | np.bool_):
                return "✓" if value else "✗"
            items = value if isinstance(value, list | tuple) else [value]
            return ", ".join(str(item) for item in items if not _gone(item)) or EM_DASH
        if not unit and words & DIFFERENCES:
            return ratio(value)
        if not unit and words & SHARES:
            return "±" * ("allowance" in words) + share(value)
        value = float(value) / scale
        said = f"{value:,.{decimals if value and not whole else 0}f}"
        if exact:
            said = f"{value:,.10g}"
        elif mixed:
            said = f"{value:,.0f}" if value.is_integer() else significant(value)
        elif value and not whole and len(re.sub(r"\D", "", said).lstrip("0")) < 2:
            said = significant(value, 3)  # far below the others
        return "+" * (value > 0 and bool(words & DIFFERENCES)) + signed(said)

    return [[*map(text, values)] for values in columns]
