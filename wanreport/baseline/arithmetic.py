"""Arithmetic over printed numbers, with what their rounding leaves open.

A formula is a Python expression in which ids stand for numbers and texts, such as
``100 * (s8.total.old / s8.total.new - 1)``. It is computed for the numbers as printed, and for
every combination of the smallest and largest that would have been printed so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import product
from typing import Any, Literal, NamedTuple

ID = re.compile(r"(?<![\w.])(?:s\d+|wan)(?:\.\w+)+")
"""An id: a fact's, ``s3.2.denoise.new``, or a size's, ``wan.block.bytes``."""

ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod, ast.USub,
)  # fmt: skip

Outcome = Literal["contradicts", "follows", "open", "elsewhere", "unknown", "rounding", "holds"]


class FactError(ValueError):
    """Data or a formula of the baseline that cannot be used; the message names it."""


class Quantity(NamedTuple):
    """A number and the interval that its rounding leaves open; ``low <= value <= high``."""

    value: float
    low: float
    high: float


def quantity(printed: Decimal, exact: bool) -> Quantity:
    """A number as printed; half a unit of its last digit either way is open unless it is exact."""
    half = 0 if exact else half_unit(printed)
    return Quantity(*map(float, (printed, printed - half, printed + half)))


def half_unit(printed: Decimal) -> Decimal:
    """Half a unit of a number's last written digit: 0.005 for 19.30, 0.5 for 27."""
    return Decimal(1).scaleb(-decimals_of(printed)) / 2


def decimals_of(printed: Decimal) -> int:
    """Digits after the decimal point, as written."""
    return max(0, -int(printed.as_tuple().exponent))


def compare(printed: Decimal, computed: Quantity, bound: str = "") -> Outcome:
    """Hold a printed number against a computed one; rounded or cut off, it never contradicts.

    With "<" or ">" for a bound, the number is only said to be below or above what is printed.
    """
    value, half = float(printed), float(half_unit(printed)) * (1 + 1e-9)
    if bound:
        fits = [end < value if bound == "<" else end > value for end in computed]
        return "holds" if fits[0] else "rounding" if any(fits) else "contradicts"
    if abs(computed.value - value) <= half:
        return "holds"
    low, high = (value + half * (way if way * value < 0 else 2 * way) for way in (-1, 1))
    return "rounding" if computed.low < high and low < computed.high else "contradicts"


def names(formula: str) -> list[str]:
    """The ids in a formula, in order, each once."""
    return list(dict.fromkeys(ID.findall(formula)))


def evaluate(
    formula: str, lookup: Callable[[str], Any], functions: Mapping[str, Callable[..., Any]]
) -> Any:
    """Compute a formula over the quantities and texts that `lookup` gives for ids.

    Returns a quantity, or what a function in it gives. Raises FactError for anything but
    arithmetic and calls of `functions`, and for a division by zero.
    """
    ids = names(formula)
    source = ID.sub(lambda match: f"_{ids.index(match[0])}", formula.strip())
    given = [lookup(name) for name in ids]
    ends = [dict.fromkeys(each) if isinstance(each, Quantity) else [each] for each in given]
    try:
        tree = ast.parse(source, mode="eval")
        if bad := [node for node in ast.walk(tree) if not isinstance(node, ALLOWED)]:
            raise FactError(f"{type(bad[0]).__name__} is not arithmetic")
        code, scope = compile(tree, formula, "eval"), {"__builtins__": {}, **functions}
        found = [
            eval(code, scope, {f"_{n}": value for n, value in enumerate(values)})
            for values in product(*ends)
        ]  # as each quantity names its value first, so does the product
    except (SyntaxError, NameError, TypeError, ArithmeticError, ValueError, RecursionError) as why:
        raise FactError(f"{formula!r}: {why}") from None
    if isinstance(found[0], int | float):
        return Quantity(float(found[0]), min(found), max(found))
    return found[0]


def condition(text: str, compute: Callable[[str], Any]) -> tuple[Outcome, str]:
    """Hold one side of ``<=``, ``<`` or ``==`` against the other, or call a function that does.

    Returns the outcome and its working.
    """
    pieces = re.split(r"\s*(<=|<|==)\s*", text)
    if len(pieces) == 1:
        so, words = compute(text)
        return "holds" if so else "contradicts", words
    left, sign, right = pieces  # one comparison each
    gap = compute(f"({left}) - ({right})")
    fits = {"<=": lambda x, y: x <= 0, "<": lambda x, y: x < 0, "==": lambda x, y: x <= 0 <= y}
    so, touch = fits[sign](gap.value, gap.value), fits[sign](gap.low, gap.high)
    values = [f"{compute(side).value:,.4g}" for side in (left, right)]
    words = f"{values[0]} {sign} {values[1]}: {text}"
    return "holds" if so else "rounding" if touch else "contradicts", words
