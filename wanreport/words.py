"""Puts numbers into words, and text into Markdown. Standard library only."""

from __future__ import annotations

import math
import re

EM_DASH = "\u2014"
NBSP = "\u00a0"
MINUS = "\u2212"


def significant(value: float | None, digits: int = 4) -> str:
    """Round to `digits` significant digits; digits left of the decimal point are never dropped.

    Zeros on the right are kept, so that the numbers of a column show the same precision. An em dash
    stands for None and NaN.
    """
    if value is None or not math.isfinite(value):
        return EM_DASH
    if value == 0:
        return "0"
    return signed(f"{value:,.{_decimals(value, digits)}f}")


def _decimals(value: float, digits: int) -> int:
    rounded = float(f"{value:.{digits - 1}e}")  # 9.9996 takes the decimals of 10.00
    return min(max(0, digits - 1 - math.floor(math.log10(abs(rounded)))), 9)


def signed(text: str) -> str:
    """Set a real minus sign in front of a negative number."""
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def seconds(value: float | None, digits: int = 4) -> str:
    """Write a duration given in seconds, with its unit: ms below a tenth of a second."""
    if value is None or not math.isfinite(value):
        return EM_DASH
    if value != 0 and abs(value) < 0.1:
        return f"{significant(value * 1e3, digits)}{NBSP}ms"
    return f"{significant(value, digits)}{NBSP}s"


def gigabytes(count: float | None, digits: int = 4) -> str:
    """Write bytes in GB, which is 10^9 bytes (MB, kB or B where it is small)."""
    return _bytes(count, digits, 1000, ("B", "kB", "MB", "GB"))


def gibibytes(count: float | None, digits: int = 4) -> str:
    """Write bytes in GiB, which is 2^30 bytes (MiB, KiB or B where it is small)."""
    return _bytes(count, digits, 1024, ("B", "KiB", "MiB", "GiB"))


def _bytes(count: float | None, digits: int, base: int, names: tuple[str, ...]) -> str:
    if count is None or not math.isfinite(count):
        return EM_DASH
    power = 0
    while power < len(names) - 1 and abs(count) >= base ** (power + 1):
        power += 1
    number = f"{count:,.0f}" if power == 0 else significant(count / base**power, digits)
    return f"{signed(number)}{NBSP}{names[power]}"


def ratio(share: float | None) -> str:
    """Write a difference in per cent, signed, with one decimal at most: finer is within drift."""
    if share is None or not math.isfinite(share):
        return EM_DASH
    text = f"{share:+.1%}" if abs(share) < 0.0995 else f"{share:+.0%}"
    text = "0%" if not float(text[:-1]) else text
    return text.replace("-", MINUS).replace("%", f"{NBSP}%")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun in the right form: "1 record", "2 records"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def share(part: float | None) -> str:
    """Write a part of a whole in per cent, unsigned: "50.7 %"."""
    if part is None or not math.isfinite(part):
        return EM_DASH
    return signed(f"{part:.1%}").replace(".0%", "%").replace("%", f"{NBSP}%")


def interval(
    value: float, low: float | None, high: float | None, n: int | None = None, unit: str = "s"
) -> str:
    """Write a value with its 95 % interval and n: "4.507 s [4.492, 4.521], n = 24"."""
    said = f"{significant(value)}{NBSP}{unit}".rstrip(NBSP)
    if None not in (low, high) and EM_DASH not in (bounds := (significant(low), significant(high))):
        said += f" [{', '.join(bounds)}]"
    return said if n is None or n != n else f"{said}, n{NBSP}={NBSP}{n}"


def plain(text: object) -> str:
    """Escape text for Markdown: no markup, no HTML, no link, one line.

    Whatever a record or a params file says passes through here before it enters prose.
    """
    line = " ".join(str(text).split())
    markup = re.compile(r"[^\w\s.,;/()=%+\-\u0080-\U0010ffff]|_", re.ASCII)
    safe = markup.sub(lambda match: f"&#{ord(match[0])};", line)
    if safe[:1] in {"-", "+", "="} or safe[:1].isdigit():
        safe = f"&#{ord(safe[0])};{safe[1:]}"  # not a list or the underline of a heading
    return safe
