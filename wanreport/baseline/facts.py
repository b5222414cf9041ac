"""The facts of the baseline document: loading and wording them.

Each fact is one number or claim as the document states it, wrong or not. A number that follows
from others also carries the formula (`how`). Whether a fact is *true* is for the ledger.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from wanreport.baseline.arithmetic import Quantity, names
from wanreport.words import MINUS, NBSP

Kind = Literal["specification", "measured", "derived", "cited", "hypothesis", "prediction"]
DOCUMENT = Path(__file__).parent / "document"


class FactError(ValueError):
    """A data file that does not hold facts; the message names the file or the fact."""


@dataclass(frozen=True)
class Fact:
    """One number or claim of the document.

    Attributes
    ----------
    id, part : str
        ``s3.2.denoise.new`` and the section that it stands in, ``3.2``.
    statement : str
        The claim, or what the number is. ``{id}`` stands for another fact, here and in `value`.
    kind : Kind
        What the document rests it on.
    value : Decimal, str or None
        With the digits it was printed with; None for a claim without a value.
    unit : str
        The document's own unit.
    how : str
        Formula over ids that gives `value`; "" where the number stands for itself.
    cite : str
        The source that the document names.
    verified : bool or None
        Whether the document says it verified the claim; None where it does not say.
    approx, sign : bool
        Printed with "~", with "+".
    bound : str
        "<" or ">" where the document gives a bound.
    note : str
        About how the number came into the data file.
    """

    id: str
    part: str
    statement: str
    kind: Kind
    value: Decimal | str | None = None
    unit: str = ""
    how: str = ""
    cite: str = ""
    verified: bool | None = None
    approx: bool = False
    sign: bool = False
    bound: str = ""
    note: str = ""

    @property
    def quantity(self) -> Quantity:
        """The number with what its rounding leaves open. Counts and settings are exact."""
        if not isinstance(self.value, Decimal):
            raise FactError(f"{self.id} is not a number")
        whole = self.value == self.value.to_integral_value()
        given = self.kind == "specification" or (not self.unit and self.kind == "cited")
        if not self.approx and (given or (whole and not self.unit)):
            return Quantity.exact(self.value)
        return Quantity.rounded(self.value)

    def worded(self, number: Decimal, *, decimals: int | None = None) -> str:
        """Return a number in this fact's unit, with as many decimals as the fact has."""
        if decimals is None:
            decimals = decimals_of(self.value if isinstance(self.value, Decimal) else number)
        return quantity_text(number, self.unit, decimals, sign=self.sign)


@dataclass(frozen=True)
class Part:
    """A section or subsection: its number, its title, its tables as the data file lays them out."""

    number: str
    title: str
    tables: list[dict[str, Any]]


class Facts(Mapping[str, Fact]):
    """All facts by id, in the document's order, and the sections they stand in."""

    def __init__(self, facts: Mapping[str, Fact], parts: Mapping[str, Part]) -> None:
        self._facts = dict(facts)
        self.parts = dict(parts)

    def __getitem__(self, name: str) -> Fact:
        try:
            return self._facts[name]
        except KeyError:
            raise FactError(f"{name}: there is no such fact") from None

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def of_part(self, number: str) -> list[Fact]:
        """The facts of one section or subsection."""
        return [fact for fact in self.values() if fact.part == number]

    def replace(self, name: str, value: str) -> Facts:
        """Return the same facts with another value for one of them, to ask "what if"."""
        number = isinstance(self[name].value, Decimal)
        changed = dataclasses.replace(self[name], value=Decimal(value) if number else value)
        return Facts({**self._facts, name: changed}, self.parts)

    def number(self, name: str) -> float:
        """A fact's number, for a figure's axis."""
        return float(self[name].quantity.value)

    def text(self, name: str, _above: tuple[str, ...] = ()) -> str:
        """A fact's value as the document prints it, with its unit."""
        fact = self[name]
        if isinstance(fact.value, Decimal):
            sign = f"{fact.bound}{NBSP}" if fact.bound else ("~" if fact.approx else "")
            return sign + fact.worded(fact.value)
        return self.fill(fact.value or "", (*_above, name))

    def statement(self, name: str) -> str:
        """A fact's statement, with the facts in it as printed."""
        return self.fill(self[name].statement, (name,))

    def fill(self, text: str, _above: tuple[str, ...] = ()) -> str:
        """Put the facts as printed for every ``{id}`` in a text."""

        def printed(match: re.Match[str]) -> str:
            if match[1] in _above:
                raise FactError(f"{match[1]}: its text refers to itself")
            return self.text(match[1], _above)

        return SLOT.sub(printed, text)

    def origin(self, name: str) -> str:
        """Where a number comes from, for a tooltip: section, kind, source."""
        fact = self[name]
        words = f"§{fact.part}, {fact.kind}: {self.statement(name)}"
        if fact.cite:
            words += f"; {fact.cite}"
        return f"{words}; {fact.note}" if fact.note else words


SLOT = re.compile(r"\{(s\d[\w.]*)\}")


def quantity_text(number: Decimal, unit: str, decimals: int, *, sign: bool = False) -> str:
    """Return a number with its unit: grouped digits, a true minus sign, a plus if asked for."""
    text = f"{number:+,.{decimals}f}" if sign else f"{number:,.{decimals}f}"
    text = text.replace("-", MINUS)
    if unit == "x":
        return f"{text}×"
    return f"{text}{NBSP}{unit.replace('us', 'µs')}" if unit else text


def decimals_of(value: Decimal) -> int:
    """Digits after the decimal point, as written."""
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


# Loading ------------------------------------------------------------------------------------------


class Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Keeps a number's digits (19.30 is not 19.3) and refuses a key that occurs twice."""


def _number(_: Any, node: yaml.ScalarNode) -> Decimal:
    return Decimal(node.value)


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    if doubled := [key for key in keys if keys.count(key) > 1]:
        raise FactError(f"line {node.start_mark.line + 1}: {doubled[0]} occurs twice")
    return dict(
        zip(keys, (loader.construct_object(v, deep=True) for _, v in node.value), strict=True)
    )


Loader.add_constructor("tag:yaml.org,2002:int", _number)
Loader.add_constructor("tag:yaml.org,2002:float", _number)
Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

_FIELDS = {field.name for field in dataclasses.fields(Fact)} - {"part"}


def load_facts(folder: Path | str | None = None) -> Facts:
    """Load the facts of every ``*.yaml`` in a folder, by default the package's own.

    Raises
    ------
    FactError
        For a file that cannot be read, an unknown key, a kind or an id that is not allowed, an
        id that occurs twice, and a formula or text that names no fact.
    """
    facts: dict[str, Fact] = {}
    parts: dict[str, Part] = {}
    paths = sorted(Path(folder or DOCUMENT).glob("*.yaml"))
    if not paths:
        raise FactError(f"{folder}: there is no .yaml file with facts in it")
    for path in paths:
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
            for part in content["parts"]:
                number = part["number"]
                parts[number] = Part(number, part["title"], part.get("tables", []))
                for entry in part["facts"]:
                    fact = _fact(entry, number)
                    if fact.id in facts:
                        raise FactError(f"{fact.id} occurs twice")
                    facts[fact.id] = fact
        except (OSError, yaml.YAMLError, KeyError, TypeError, FactError) as error:
            raise FactError(f"{path.name}: {error}") from None
    loaded = Facts(facts, parts)
    for fact in loaded.values():
        sizes = [name for name in names(fact.how) if name.startswith("wan.")]
        for name in [*names(fact.how), *SLOT.findall(f"{fact.statement} {fact.value}")]:
            if name not in loaded and name not in sizes:
                raise FactError(f"{fact.id}: {name}: there is no such fact")
    return loaded


def _fact(entry: dict[str, Any], part: str) -> Fact:
    name = entry.get("id", "?")
    if unknown := set(entry) - _FIELDS:
        raise FactError(f"{name}: unknown key {', '.join(sorted(unknown))}")
    if entry.get("kind") not in get_args(Kind):
        raise FactError(f"{name}: kind must be one of {', '.join(get_args(Kind))}")
    if not re.fullmatch(rf"s{re.escape(part)}(\.[a-z]\w*)+", name):
        raise FactError(f"{name}: an id of section {part} starts with s{part}.")
    if not isinstance(entry.get("value"), str | Decimal | None):
        raise FactError(f"{name}: the value must be a number or text; quote it")
    return Fact(part=part, **entry)
