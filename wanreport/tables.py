"""HTML tables, the words for numbers, and the few statistics that a report needs.

Every table of every page comes from :func:`html_table`, so that units, missing values, the kind of
a number (measured, derived, predicted, quoted) and escaping look the same everywhere. Nothing here
knows what a record is, and nothing needs more than the standard library.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["measured", "derived", "predicted", "quoted"]

KINDS: dict[Kind, str] = {
    "measured": "read from a record that a program wrote on the machine it names",
    "derived": "computed from other numbers by a formula",
    "predicted": "expected by a model, not observed",
    "quoted": "stated by the source document",
}

EM_DASH = "\u2014"
NBSP = "\u00a0"
MINUS = "\u2212"


@dataclass(frozen=True)
class Column:
    """One column: where its values are (`key`), its heading, and the unit below the heading.

    Numeric columns are set right-aligned with tabular figures.
    """

    key: str
    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Mark:
    """A sign behind a value that leads to where it is explained.

    `text` is what is seen, `words` what it means, `look` the colour: good, warn, bad or calm.
    """

    text: str
    href: str
    words: str
    look: Literal["good", "warn", "bad", "calm"] = "calm"

    @property
    def html(self) -> str:
        """The link."""
        return (
            f'<a class="mark {self.look}" href="{html.escape(self.href)}" '
            f'title="{html.escape(self.words)}" aria-label="{html.escape(self.words)}">'
            f"{html.escape(self.text)}</a>"
        )


@dataclass(frozen=True)
class Cell:
    """A value with its own wording, kind or tooltip, where the column's default will not do.

    `text` replaces the formatted value; `kind` marks a number that is of another kind than the
    table; `title` becomes the tooltip. `mark` follows the value, and `note` stands below both.
    `engine` gives the value that engine's colour.
    """

    value: object
    text: str | None = None
    kind: Kind | None = None
    title: str | None = None
    mark: Mark | None = None
    note: str = ""
    engine: str = ""


def html_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[Column | str],
    *,
    caption: str,
    note: str = "",
    kind: Kind | None = "measured",
) -> str:
    """Return one table as HTML; every piece of text in it is escaped.

    Parameters
    ----------
    rows
        One mapping per row, from column key to a plain value or a :class:`Cell`. A missing key and
        None both become an em dash that says "not measured" ("not reported" where quoted).
        The key ``id`` gives a row an anchor.
    columns
        The columns from left to right; a string stands for a text column of that name. The first
        column heads its row.
    caption
        What the table shows, plain text; also the accessible name of the scrollable box.
    note
        Plain text below the table: conditions, units, what is left out.
    kind
        The kind of the numbers in the table, unless a cell says otherwise. None for a table that
        has no numbers of one kind; it gets no badge.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    specs = [Column(c, c, numeric=False) if isinstance(c, str) else c for c in columns]
    head = "".join(_heading(column) for column in specs)
    body = "\n".join(
        (f'<tr id="{html.escape(str(row["id"]))}">' if "id" in row else "<tr>")
        + "".join(_cell(row.get(c.key), c, kind, first=i == 0) for i, c in enumerate(specs))
        + "</tr>"
        for row in rows
    )
    if not rows:
        body = f'<tr><td class="missing" colspan="{len(specs)}">nothing to show</td></tr>'
    label = html.escape(caption)
    badge, classes = "", "data"
    if kind is not None:
        badge = f' <span class="badge kind-{kind}" title="{html.escape(KINDS[kind])}">{kind}</span>'
        classes = f"data kind-{kind}"
    foot = f'\n<p class="table-note">{html.escape(note)}</p>' if note else ""
    return (
        f'<div class="table-box" tabindex="0" role="region" aria-label="{label}">\n'
        f'<table class="{classes}">\n'
        f"<caption>{label}{badge}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>{foot}\n</div>"
    )


def facts_table(rows: Sequence[tuple[str, object]], *, caption: str, note: str = "") -> str:
    """Return a table of names and values, as HTML; None values say so."""
    return html_table(
        [{"what": what, "value": value} for what, value in rows],
        [Column("what", "what", numeric=False), Column("value", "value", numeric=False)],
        caption=caption,
        note=note,
    )


def fold(summary: str, *tables: str) -> str:
    """Return tables that open on demand, with or without JavaScript, as HTML."""
    inside = "\n".join(tables)
    return f'<details class="fold"><summary>{html.escape(summary)}</summary>\n{inside}\n</details>'


def _heading(column: Column) -> str:
    unit = f' <span class="unit">{html.escape(column.unit)}</span>' if column.unit else ""
    number = ' class="num"' if column.numeric else ""
    return f'<th scope="col"{number}>{html.escape(column.title)}{unit}</th>'


def _cell(content: object, column: Column, kind: Kind | None, *, first: bool) -> str:
    cell = content if isinstance(content, Cell) else Cell(content)
    own_kind = cell.kind or kind
    classes = ["num"] if column.numeric else []
    title = cell.title or ""
    if cell.value is None:
        why = cell.text or ("not reported" if own_kind == "quoted" else "not measured")
        classes.append("missing")
        if cell.text is None:
            # A dash keeps a sparse table readable; the words are there for tooltips and readers.
            title = title or why
            text = f'{EM_DASH}<span class="visually-hidden"> {why}</span>'
        else:
            text = html.escape(cell.text)
    else:
        text = html.escape(cell.text if cell.text is not None else plain(cell.value))
    if cell.engine:
        text = f'<span class="engine engine-{html.escape(cell.engine)}">{text}</span>'
    if cell.mark:
        text += f"{NBSP}{cell.mark.html}"
    if cell.note:
        text += f'<span class="margin">{html.escape(cell.note)}</span>'
    if cell.kind is not None:
        classes.append(f"kind-{cell.kind}")
        title = title or cell.kind
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    if title:
        attributes += f' title="{html.escape(title)}"'
    return f'<th scope="row"{attributes}>{text}</th>' if first else f"<td{attributes}>{text}</td>"


def kind_legend() -> str:
    """Return the legend that tells the four kinds of numbers apart, as one HTML paragraph."""
    items = " ".join(
        f'<span class="badge kind-{kind}">{kind}</span> {html.escape(meaning)}.'
        for kind, meaning in KINDS.items()
    )
    return f'<p class="kind-legend">{items}</p>'


# Words for numbers -------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Return a value as a reader wants it: grouped integers, four significant digits, yes or no."""
    if value is None:
        return EM_DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _sign(f"{value:,}")
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)


def significant(value: float, digits: int) -> str:
    """Return `value` rounded to `digits` significant digits, never in exponent form below 1e15.

    Digits left of the decimal point are never dropped, and zeros on the right are kept, so that
    numbers of one column show the same precision.
    """
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    return _sign(f"{value:,.{_decimals(value, digits)}f}")


def _decimals(value: float, digits: int) -> int:
    rounded = float(f"{value:.{digits - 1}e}")  # 9.9996 takes the decimals of 10.00
    return min(max(0, digits - 1 - math.floor(math.log10(abs(rounded)))), 9)


def seconds(value: float | None, digits: int = 4) -> str:
    """Return a duration given in seconds, with its unit: ms below a tenth of a second."""
    if value is None:
        return EM_DASH
    if value != 0 and abs(value) < 0.1:
        return f"{significant(value * 1e3, digits)} ms"
    return f"{significant(value, digits)} s"


def gigabytes(count: float | None, digits: int = 4) -> str:
    """Return bytes in GB, which is 10**9 bytes (MB, kB or B where it is small)."""
    return _bytes(count, digits, 1000, ("B", "kB", "MB", "GB"))


def gibibytes(count: float | None, digits: int = 4) -> str:
    """Return bytes in GiB, which is 2**30 bytes (MiB, KiB or B where it is small)."""
    return _bytes(count, digits, 1024, ("B", "KiB", "MiB", "GiB"))


def overhead(share: float) -> str:
    """Return a difference in per cent, with one decimal at most: finer is within the drift."""
    text = f"{share:+.1%}" if abs(share) < 0.0995 else f"{share:+.0%}"
    text = "0%" if not float(text[:-1]) else text
    return text.replace("-", MINUS).replace("%", f"{NBSP}%")


def signed(new: float, old: float, unit: str, digits: int = 4) -> str:
    """Return by how much `new` differs from `old`, with sign and unit, as in "+1.84 s".

    It is no finer than either of them where both are shown with `digits` significant digits.
    """
    shown = [_decimals(value, digits) for value in (new, old) if value]
    text = f"{new - old:+,.{min(shown, default=0)}f} {unit}".rstrip()
    return _sign(text if any(digit in text for digit in "123456789") else text[1:])


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form: "1 record", "2 records"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _bytes(count: float | None, digits: int, base: int, names: tuple[str, ...]) -> str:
    if count is None:
        return EM_DASH
    power = 0
    while power < len(names) - 1 and abs(count) >= base ** (power + 1):
        power += 1
    if power == 0:
        return f"{_sign(f'{count:,.0f}')} {names[0]}"
    return f"{significant(count / base**power, digits)} {names[power]}"


def _sign(text: str) -> str:
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


# Statistics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A median of `n` samples with its 95 % interval; the bounds are None where n is too small."""

    n: int
    median: float | None
    low: float | None = None
    high: float | None = None

    def text(self, unit: str = "s", digits: int = 4) -> str:
        """Return it as words: "21.6 s [21.5, 21.8], n = 25"; without an interval only the n."""
        if self.median is None:
            return EM_DASH
        middle = f"{significant(self.median, digits)} {unit}"
        if self.low is None or self.high is None:
            return f"{middle}, n = {self.n}"
        bounds = f"[{significant(self.low, digits)}, {significant(self.high, digits)}]"
        return f"{middle} {bounds}, n = {self.n}"


def estimate(samples: Iterable[float]) -> Estimate:
    """Return the median and its distribution-free 95 % interval.

    The interval is the pair of order statistics x_(k), x_(n+1-k) with the largest k for which
    P(Binomial(n, 1/2) < k) <= 2.5 % (David & Nagaraja, Order Statistics, section 7.1). It needs no
    assumption about the distribution but independent samples; below six samples no such pair
    exists, and then there is no interval.
    """
    ordered = sorted(float(sample) for sample in samples)
    n = len(ordered)
    if n == 0:
        return Estimate(0, None)
    half = n // 2
    median = ordered[half] if n % 2 else (ordered[half - 1] + ordered[half]) / 2
    below, k = 0, 0
    while True:
        below += math.comb(n, k)  # how many of the 2**n outcomes have at most k successes
        if below * 40 > 2**n:
            break
        k += 1
    if k == 0:
        return Estimate(n, median)
    return Estimate(n, median, ordered[k - 1], ordered[n - k])


def tick(answer: bool | None) -> str | None:
    """Return a mark for whether two things are the same; None where that is not known."""
    return None if answer is None else "✓" if answer else "✗ differs"


# Text that goes into Markdown --------------------------------------------------------------------

_MARKDOWN = re.compile(r"[^\w\s.,;/()=%+\-\u0080-\U0010ffff]|_", re.ASCII)


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, no link, one line.

    Anything a record or a params file says passes through here before it enters prose.
    Punctuation becomes character references, which no Markdown parser takes for markup.
    """
    line = " ".join(str(text).split())
    safe = _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", line)
    if safe[:1] in {"-", "+", "="} or safe[:1].isdigit():
        safe = f"&#{ord(safe[0])};{safe[1:]}"  # not a list, a heading's underline or an item number
    return safe


def code(text: object) -> str:
    """Return text as inline code for Markdown; nothing in it can end the code early.

    It uses backticks and not a <code> tag, since nbconvert closes every inline tag at once.
    """
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
