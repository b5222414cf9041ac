"""A column's values as text: its unit from the end of its name, its decimals from its numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Real
from statistics import median
from typing import Any

import pandas as pd

from wanreport.words import EM_DASH, MINUS, NBSP, ratio, share, significant

UNITS = {"_gb_s": "GB/s", "_bytes": "GB", "_gib": "GiB", "_mhz": "MHz", "_pct": "%", "_min": "min",
         "celsius": "°C", "_gb": "GB", "_ms": "ms", "_s": "s", "_w": "W", "_x": "×"}  # fmt: skip
DIFFERENCES = {"overhead", "difference", "drift", "error"}  # words in names: signed numbers
SHARES = {"spread", "allowance", "share"}  # both are per cent where the name has no unit


def parts(name: str) -> tuple[str, str]:
    """What a column is called, and the end of its name that tells the unit."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    return name.removesuffix(end) or name, end


def gone(value: Any) -> bool:
    """Tell whether a value is missing."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def is_number(value: Any) -> bool:
    """Tell whether a value is a number; a missing one and a truth value are not."""
    return isinstance(value, Real) and not pd.api.types.is_bool(value) and not gone(value)


def texts(
    name: str, values: Sequence[Any], like: Sequence[Any] = (), *, exact: bool = False
) -> list[str]:
    """Each value as text; the numbers of a column get the decimals that the middle one needs.

    `like` are numbers to take the decimals from; `exact` ones, such as quoted ones, keep their own.
    """
    stem, unit = parts(name)
    scale = 1e9 if unit == "_bytes" else 1
    numbers = [abs(float(value)) / scale for value in like or values if is_number(value)]
    whole = all(float(v) % scale == 0 for v in [*like, *values] if is_number(v))
    decimals = len(significant(median(numbers or [1.0]) or 1.0).partition(".")[2])
    mixed = not all(is_number(value) or gone(value) for value in values)
    words = set(stem.split("_"))
    signed = bool(words & DIFFERENCES)

    def text(value: Any) -> str:
        if gone(value):
            return EM_DASH
        if pd.api.types.is_bool(value):
            return "✓" if value else "✗"
        if not is_number(value):
            items = value if isinstance(value, list | tuple) else [value]
            return ", ".join(map(str, items)) or EM_DASH
        if not unit and signed:
            return ratio(float(value))
        if not unit and words & SHARES:
            return ("±" if "allowance" in words else "") + share(float(value))
        number = float(value) / scale
        said = f"{number:,.{decimals if number and not whole else 0}f}"
        if exact:
            said = f"{number:,.10g}"
        elif mixed:
            said = f"{number:,.0f}" if number.is_integer() else significant(number)
        elif number and not whole and len(re.sub(r"\D", "", said).lstrip("0")) < 2:
            said = significant(number, 3)  # far below the others
        return ("+" if signed and number > 0 else "") + said.replace("-", MINUS)

    return [text(value) for value in values]


def bounds(name: str, df: pd.DataFrame) -> tuple[str, list[str]]:
    """What the heading says of a column's intervals, and each interval, with n where n varies."""
    stem, end = parts(name)
    lows, highs = (
        texts(name, list(df[f"{stem}_{side}{end}"]), list(df[name])) for side in ("low", "high")
    )
    pairs = [f"[{a}, {b}]" * (EM_DASH not in (a, b)) for a, b in zip(lows, highs, strict=True)]
    ns = list(df[f"{stem}_n"]) if f"{stem}_n" in df else [None] * len(df)
    said = ["" if gone(n) else f"n{NBSP}={NBSP}{n}" for n in ns]
    if len(every := set(said) - {""}) < 2:
        return ", ".join([f"[95{NBSP}%]", *every]), pairs
    return f"[95{NBSP}%]", [f"{pair} {n}".strip() for pair, n in zip(pairs, said, strict=True)]
