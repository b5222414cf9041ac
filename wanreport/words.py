"""Puts numbers into words, and text into Markdown; an em dash stands for None and NaN."""

import math
import re
from functools import partial

EM_DASH = "\u2014"
NBSP = "\u00a0"
MINUS = "\u2212"
UNITS = {1000: ("B", "kB", "MB", "GB"), 1024: ("B", "KiB", "MiB", "GiB")}


def significant(value: float | None, digits: int = 4) -> str:
    """Round to `digits` significant digits, or to a whole number where that has more."""
    if value is None or not math.isfinite(value):
        return EM_DASH
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 9.9996 takes the decimals of 10.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return signed(f"{value:,.{min(max(decimals, 0), 9)}f}")


def signed(text: str) -> str:
    """Set a real minus sign in front of a negative number."""
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def seconds(value: float | None, digits: int = 4) -> str:
    """Write a duration given in seconds, with its unit: ms below a tenth of a second."""
    short = bool(value) and abs(value or 0) < 0.1
    said = significant(value * 1e3 if value and short else value, digits)
    return said if said == EM_DASH else f"{said}{NBSP}{'ms' if short else 's'}"


def gigabytes(count: float | None, digits: int = 4, base: int = 1000) -> str:
    """Write bytes in GB, which is 10^9 bytes (MB, kB or B where it is small)."""
    if count is None or not math.isfinite(count):
        return EM_DASH
    power = sum(abs(count) >= base**n for n in (1, 2, 3))
    number = significant(count / base**power, digits) if power else signed(f"{count:,.0f}")
    return f"{number}{NBSP}{UNITS[base][power]}"


gibibytes = partial(gigabytes, base=1024)
"""Write bytes in GiB, which is 2^30 bytes (MiB, KiB or B where it is small)."""


def ratio(share: float | None) -> str:
    """Write a difference in per cent, signed, with one decimal at most: finer is within drift."""
    if share is None or not math.isfinite(share):
        return EM_DASH
    text = f"{share:+.1%}" if abs(share) < 0.0995 else f"{share:+.0%}"
    return signed(text if float(text[:-1]) else "0%").replace("%", f"{NBSP}%")


def share(part: float | None) -> str:
    """Write a part of a whole in per cent, unsigned: "50.7 %"."""
    if part is None or not math.isfinite(part):
        return EM_DASH
    return signed(f"{part:.1%}").replace(".0%", "%").replace("%", f"{NBSP}%")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun in the right form: "1 record", "2 records"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def interval(value: float, low: float | None, high: float | None, n: int | None = None) -> str:
    """Write seconds with their 95 % interval and n: "4.507 s [4.492, 4.521], n = 24"."""
    bounds = significant(low), significant(high)
    said = f"{significant(value)}{NBSP}s" + f" [{', '.join(bounds)}]" * (EM_DASH not in bounds)
    return said if n is None or n != n else f"{said}, n{NBSP}={NBSP}{n}"


def plain(text: object) -> str:
    """Escape text of a record or a params file for Markdown: one line, no markup, HTML or link."""
    line = " ".join(str(text).split())
    marks = r"(?a)[^\w\s.,;/()=%+\-\u0080-\U0010ffff]|_"
    marks += r"|^[-+=\d]"  # which begin a list, or underline a heading
    return re.sub(marks, lambda match: f"&#{ord(match[0])};", line)
