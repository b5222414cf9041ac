"""A DataFrame as an accessible HTML table.

A column's unit is the end of its name, as in all frames: ``step_s`` is in seconds, ``peak_bytes``
in bytes and shown in GB. All text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from numbers import Real
from statistics import median
from typing import Any, Literal, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader

from wanreport.report import style
from wanreport.words import EM_DASH, MINUS, NBSP, ratio, share, significant

Kind = Literal["measured", "derived", "predicted", "quoted"]

KINDS: dict[str, str] = {
    "measured": "read from a record that a program wrote on the machine it names",
    "derived": "computed from other numbers by a formula",
    "predicted": "expected by a model, not observed",
    "quoted": "stated by the source document",
}

UNITS = {"_gb_s": "GB/s", "_bytes": "GB", "_gib": "GiB", "_mhz": "MHz", "_pct": "%", "_min": "min",
         "celsius": "°C", "_gb": "GB", "_ms": "ms", "_s": "s", "_w": "W"}  # fmt: skip
DIFFERENCES = ("overhead", "difference", "drift", "error")  # in s with a unit, else signed per cent
SHARES = ("spread", "allowance", "share")
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
    lacking = [c for c in [*titles, *links, *links.values(), *intervals] if c not in df]
    if lacking and (len(df) or len(df.columns)):
        raise KeyError(f"the table {caption!r} has no column {', '.join(map(repr, lacking))}")
    if wrong := {kind, *kinds.values()} - {None, *KINDS, *df.columns}:
        raise ValueError(f"kinds are {', '.join(KINDS)}, or name a column; got {wrong}")
    data = df.reset_index(drop=True)
    pairs = [_column(data, name, title, kind, kinds.get(name), links.get(name), name in intervals)
             for name, title in titles.items()]  # fmt: skip
    words = [c["text"] for head, cells in pairs for c in cells if not head["numeric"]]
    html = rendered(
        "table.html.j2", caption=caption, note=note, kind=kind, meanings=KINDS, fold=fold,
        empty=empty, heads=[head for head, _ in pairs],
        rows=list(zip(*(cells for _, cells in pairs), strict=True)),
        ids=list(data[anchor]) if anchor else [], cards=any(len(text) > LONG for text in words),
    )  # fmt: skip
    return Table(html, caption)


def rendered(template: str, **values: Any) -> str:
    """Fill one of this room's templates; whatever is not marked as safe there is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    room = PackageLoader("wanreport.report", "template")
    return Environment(loader=room, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def css() -> str:
    """Return the part of the pages' style sheet that is about what cells show."""
    sheet = files("wanreport.report").joinpath("template/page.css").read_text(encoding="utf-8")
    return sheet.partition("/* What cells show. */")[2]


def legend() -> str:
    """Return the legend of the four kinds of numbers as HTML."""
    return rendered("legend.html.j2", meanings=KINDS)


# A column ----------------------------------------------------------------------------------------


def _column(
    data: pd.DataFrame, name: str, title: str, kind: str | None, own: str | None,
    link: str | None, interval: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """What the template needs of a column's heading, and of each of its cells."""
    values = list(data[name]) if name in data else []
    each = list(data[own]) if own is not None and own not in KINDS else [own or kind] * len(values)
    said, bounds = _bounds(name, data) if interval else ("", [""] * len(values))
    numeric = any(map(_is_number, values)) and all(_is_number(v) or _gone(v) for v in values)
    head = {
        "title": title or _stem(name).replace("_", " "),
        "unit": _unit(name) if numeric or all(map(_gone, values)) else "",
        "numeric": numeric, "kind": own if own in KINDS else "", "interval": said,
    }  # fmt: skip
    texts = _texts(name, values, exact=kind == "quoted" or own == "quoted")
    targets = list(data[link]) if link else [None] * len(values)
    engines = list(data["engine"]) if name in ("engine", "name") and "engine" in data else []
    return head, [
        {
            "text": text, "bounds": bounds[i], "href": _href(targets[i]),
            "missing": MISSING.get(str(each[i]), "not measured") if text == EM_DASH else "",
            "tick": {"✓": "yes", "✗": "no"}.get(text, ""),
            "kind": each[i] if own and each[i] != kind else "",
            "badge": re.sub(r"\W+", "-", text.lower()) if name in BADGES else "",
            "colour": style.colour(str(engines[i])) if engines else "",
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip


def _suffix(name: str) -> str:
    return next((end for end in UNITS if name.endswith(end)), "")


def _stem(name: str) -> str:
    return name.removesuffix(_suffix(name)) or name


def _unit(name: str) -> str:
    return UNITS.get(_suffix(name), "")


def _gone(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not pd.api.types.is_bool(value) and not _gone(value)


def _texts(
    name: str, values: Sequence[Any], like: Sequence[Any] = (), *, exact: bool = False
) -> list[str]:
    """Each value as text; the numbers of a column get the decimals that the middle one needs.

    `like` are numbers to take the decimals from; `exact` ones, such as quoted ones, keep their own.
    """
    stem, unit, scale = _stem(name), _unit(name), 1e9 if name.endswith("_bytes") else 1
    numbers = [abs(float(value)) / scale for value in like or values if _is_number(value)]
    whole = all(number.is_integer() for number in numbers)
    decimals = len(significant(median(numbers or [1.0]) or 1.0).partition(".")[2])
    signed = stem.startswith(DIFFERENCES)

    def text(value: Any) -> str:
        if _gone(value):
            return EM_DASH
        if pd.api.types.is_bool(value):
            return "✓" if value else "✗"
        if not _is_number(value):
            items = value if isinstance(value, list | tuple) else [value]
            return ", ".join(map(str, items)) or EM_DASH
        if not unit and signed:
            return ratio(float(value))
        if not unit and stem.startswith(SHARES):
            return ("±" if stem.startswith("allowance") else "") + share(float(value))
        number = float(value) / scale
        said = f"{number:,.{0 if whole or not number else decimals}f}"
        if exact:
            said = f"{number:,.10g}"
        elif number and not whole and len(re.sub(r"\D", "", said).lstrip("0")) < 2:
            said = significant(number, 3)  # far below the others
        return ("+" if signed and number > 0 else "") + said.replace("-", MINUS)

    return [text(value) for value in values]


def _bounds(name: str, data: pd.DataFrame) -> tuple[str, list[str]]:
    """What the heading says of a column's intervals, and each interval, with n where n varies."""
    stem, end = _stem(name), _suffix(name)
    low, high = (
        _texts(name, list(data[f"{stem}_{side}{end}"]), list(data[name]))
        for side in ("low", "high")
    )
    ns = list(data[f"{stem}_n"]) if f"{stem}_n" in data else [None] * len(data)
    known = {n for n in ns if not _gone(n)}
    every = f", n{NBSP}={NBSP}{known.pop()}" if len(known) == 1 else ""
    return f"[95{NBSP}%]{every}", [
        (f"[{a}, {b}]" if EM_DASH not in (a, b) else "")
        + ("" if _gone(n) or every else f" n{NBSP}={NBSP}{n}")
        for a, b, n in zip(low, high, ns, strict=True)
    ]


def _href(target: Any) -> str:
    """A link's target; nothing where it would be neither relative nor on the web."""
    scheme = re.match(r"\s*([^/?#]*?):", str(target))
    web = scheme is None or scheme[1].lower() in ("http", "https")
    return str(target) if not _gone(target) and web else ""
