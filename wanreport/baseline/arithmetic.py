"""Arithmetic over named numbers, with the rounding of the inputs carried along.

A formula is text such as ``100 * (s8.total.old / s8.total.new - 1)``. It may hold ids, decimal
numbers, ``+ - * /``, brackets and calls of the functions it is given; anything else is refused,
and nothing is ever passed to Python's own evaluation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

ID = re.compile(r"(?<![\w.])(?:s\d+|wan)(?:\.\w+)+")
"""An id inside a formula: a fact's, ``s3.2.denoise.new``, or a size's, ``wan.block.bytes``."""

MAX_LENGTH = 1000


class FormulaError(ValueError):
    """A formula that is not arithmetic, or that cannot be computed."""


@dataclass(frozen=True)
class Quantity:
    """A number and the interval that its rounding leaves open; ``low <= value <= high``."""

    value: Decimal
    low: Decimal
    high: Decimal

    @classmethod
    def exact(cls, value: Decimal | int) -> Quantity:
        """A number that was not rounded."""
        number = Decimal(value)
        return cls(number, number, number)

    @classmethod
    def rounded(cls, value: Decimal) -> Quantity:
        """A number known to its last digit: half a unit of it either way is open."""
        half = half_unit(value)
        return cls(value, value - half, value + half)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.low + other.low, self.high + other.high)

    def __sub__(self, other: Quantity) -> Quantity:
        return self + -other

    def __neg__(self) -> Quantity:
        return Quantity(-self.value, -self.high, -self.low)

    def __mul__(self, other: Quantity) -> Quantity:
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Quantity(self.value * other.value, min(ends), max(ends))

    def __truediv__(self, other: Quantity) -> Quantity:
        if other.low <= 0 <= other.high:
            raise FormulaError("division by a number that may be zero")
        ends = [a / b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Quantity(self.value / other.value, min(ends), max(ends))


def half_unit(value: Decimal) -> Decimal:
    """Half a unit of a number's last written digit: 0.005 for 19.30, 0.5 for 27."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise FormulaError(f"{value} is not a finite number")
    return Decimal(1).scaleb(min(exponent, 0)) / 2


Function = Callable[..., int]
"""Takes Decimals and returns a whole number."""


def names(formula: str) -> list[str]:
    """The ids in a formula or a text, in order, each once."""
    return list(dict.fromkeys(ID.findall(formula)))


def evaluate(
    formula: str,
    lookup: Callable[[str], Quantity],
    functions: Mapping[str, Function] | None = None,
) -> Quantity:
    """Compute a formula.

    Parameters
    ----------
    formula
        Arithmetic over ids.
    lookup
        Gives the number that an id stands for.
    functions
        What the formula may call, by name. They see the values alone, and their result is exact.

    Raises
    ------
    FormulaError
        If it is anything but such arithmetic, or divides by zero.
    """
    if len(formula) > MAX_LENGTH:
        raise FormulaError(f"a formula of {len(formula)} characters is too long")
    ids = names(formula)
    # An id's dots and digits are no Python name; a placeholder is, so that ast can parse it.
    source = ID.sub(lambda match: f"FACT{ids.index(match[0])}", formula)
    if "FACT" in formula:
        raise FormulaError(f"{formula!r} is not arithmetic over facts")
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise FormulaError(f"{formula!r} is not a formula") from None
    placeholders = {f"FACT{number}": name for number, name in enumerate(ids)}

    def compute(node: ast.AST) -> Quantity:
        match node:
            case ast.Expression(body=body):
                return compute(body)
            case ast.Name(id=name) if name in placeholders:
                return lookup(placeholders[name])
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return Quantity.exact(Decimal(ast.get_source_segment(source, node) or "NaN"))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -compute(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return compute(left) + compute(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return compute(left) - compute(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return compute(left) * compute(right)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return compute(left) / compute(right)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in (
                functions or {}
            ):
                values = [compute(arg).value for arg in args]
                return Quantity.exact((functions or {})[name](*values))
        raise FormulaError(f"{formula!r} holds {type(node).__name__}, which is not arithmetic")

    try:
        return compute(tree)
    except (ArithmeticError, TypeError, RecursionError) as error:
        raise FormulaError(f"{formula!r} cannot be computed: {error}") from None
