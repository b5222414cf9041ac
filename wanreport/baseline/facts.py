"""The facts of the baseline document: loading, wording and recomputing them.

Each fact is one number or claim as the document states it, wrong or not. A number that follows
from others also carries the formula (`how`), and :meth:`Facts.check` holds what the formula gives
against what was printed. Whether a fact is *true* is no question for this module.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from wanreport.baseline.arithmetic import FormulaError, Quantity, evaluate, half_unit, names
from wanreport.flags import prefetch_layers
from wanreport.schedule import flow_schedule, switch_step
from wanreport.tables import MINUS

Kind = Literal["specification", "measured", "derived", "cited", "hypothesis", "prediction"]
CssKind = Literal["measured", "derived", "predicted", "quoted"]

MARKS: dict[Kind, CssKind] = {
    "specification": "quoted",
    "cited": "quoted",
    "measured": "measured",
    "derived": "derived",
    "hypothesis": "predicted",
    "prediction": "predicted",
}
"""How a kind of fact looks: one of the four looks that all reports share."""

DOCUMENT = Path(__file__).parent / "document"
NBSP = "\u00a0"


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
            decimals = _decimals(self.value if isinstance(self.value, Decimal) else number)
        return quantity_text(number, self.unit, decimals, sign=self.sign)


@dataclass(frozen=True)
class Check:
    """What a fact's formula gives, beside what the document printed.

    `verdict` is "same" (to the printed digits), "rounding" (another number, but one that the
    rounding of the inputs can explain) or "differs".
    """

    fact: Fact
    computed: Quantity
    verdict: Literal["same", "rounding", "differs"]

    @property
    def text(self) -> str:
        """The computed number in words, with a decimal more where it would look the same."""
        printed = self.fact.value
        assert isinstance(printed, Decimal)
        text = self.fact.worded(self.computed.value)
        if self.verdict != "same" and text == self.fact.worded(printed):
            text = self.fact.worded(self.computed.value, decimals=_decimals(printed) + 1)
        return text

    @property
    def range(self) -> str:
        """What the rounding of the inputs leaves open, with a decimal more than was printed."""
        printed = self.fact.value
        assert isinstance(printed, Decimal)
        decimals = _decimals(printed) + 1
        ends = (self.computed.low, self.computed.high)
        low, high = (self.fact.worded(end, decimals=decimals) for end in ends)
        return low if low == high else f"{low.split(NBSP)[0]} to {high}"

    @property
    def mark(self) -> str:
        """What stands beside the printed number."""
        return {
            "same": "✓",
            "rounding": f"≈ computes to {self.text}",
            "differs": f"≠ computes to {self.text}",
        }[self.verdict]


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
        changed = dataclasses.replace(self[name], value=Decimal(value))
        return Facts({**self._facts, name: changed}, self.parts)

    def number(self, name: str) -> float:
        """A fact's number, for a figure's axis."""
        return float(self[name].quantity.value)

    def compute(self, formula: str) -> Quantity:
        """Compute a formula over the numbers as they were printed."""
        return evaluate(formula, lambda name: self[name].quantity, FUNCTIONS)

    def check(self, name: str) -> Check | None:
        """Recompute a fact; None where it has no formula."""
        fact = self[name]
        if not fact.how:
            return None
        try:
            return Check(fact, computed := self.compute(fact.how), _verdict(fact, computed))
        except (FormulaError, FactError) as error:
            raise FactError(f"{name}: {error}") from None

    def checks(self) -> list[Check]:
        """Every number that follows from others, recomputed."""
        return [check for name in self if (check := self.check(name)) is not None]

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

        return _SLOT.sub(printed, text)

    def say(self, text: str) -> str:
        """Return prose with numbers in it as HTML, each looking as its kind does everywhere.

        ``{id}`` is a fact as printed, followed by what it computes to where that is another
        number; ``{= formula | unit | decimals}`` is computed here. An empty line starts a new
        paragraph, and ``**words**`` are strong; all other text is escaped.
        """
        # Not Markdown: its converters take an inline element and its words for separate things.
        said = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text, quote=False))
        said = _COMPUTED.sub(self._said_computed, _SLOT.sub(self._said_fact, said))
        return "\n".join(f"<p>{part.strip()}</p>" for part in said.split("\n\n") if part.strip())

    def _said_fact(self, match: re.Match[str]) -> str:
        fact, check = self[match[1]], self.check(match[1])
        words = self.text(fact.id)
        if check and check.verdict != "same":
            words = f"{words} ({check.mark})"
        return _span(words, MARKS[fact.kind], self.origin(fact.id))

    def _said_computed(self, match: re.Match[str]) -> str:
        formula, unit, decimals = (piece.strip() for piece in match[1].split("|"))
        words = quantity_text(self.compute(formula).value, unit, int(decimals))
        return _span(words, "derived", f"computed here: {formula}")

    def origin(self, name: str) -> str:
        """Where a number comes from, for a tooltip: section, kind, formula, source."""
        fact = self[name]
        words = f"§{fact.part}, {fact.kind}: {self.statement(name)}"
        if check := self.check(name):
            words += f"; {fact.how} = {check.text}"
        if fact.cite:
            words += f"; {fact.cite}"
        return f"{words}; {fact.note}" if fact.note else words


_SLOT = re.compile(r"\{(s\d[\w.]*)\}")
_COMPUTED = re.compile(r"\{=([^{}]*)\}")


def _span(words: str, look: CssKind, title: str) -> str:
    tag = "em" if look == "derived" else "span"
    return f'<{tag} class="kind-{look}" title="{html.escape(title)}">{html.escape(words)}</{tag}>'


def quantity_text(number: Decimal, unit: str, decimals: int, *, sign: bool = False) -> str:
    """Return a number with its unit: grouped digits, a true minus sign, a plus if asked for."""
    text = f"{number:+,.{decimals}f}" if sign else f"{number:,.{decimals}f}"
    text = text.replace("-", MINUS)
    if unit == "x":
        return f"{text}×"
    return f"{text}{NBSP}{unit.replace('us', 'µs')}" if unit else text


def _decimals(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _verdict(fact: Fact, computed: Quantity) -> Literal["same", "rounding", "differs"]:
    printed = fact.value
    assert isinstance(printed, Decimal)
    if fact.bound:
        return "same" if (computed.value < printed) == (fact.bound == "<") else "differs"
    half = half_unit(printed)
    if abs(computed.value - printed) <= half:
        return "same"
    overlap = computed.low <= printed + half and printed - half <= computed.high
    return "rounding" if overlap else "differs"


# What formulas may call ---------------------------------------------------------------------------


def _switch_step(steps: Decimal, shift: Decimal, boundary_ratio: Decimal) -> int:
    step = switch_step(flow_schedule(int(steps), float(shift)).timesteps, float(boundary_ratio))
    if step is None:
        raise FormulaError("no step lies below the boundary")
    return step


def _prefetch_layers(size: Decimal, layers: Decimal) -> int:
    return prefetch_layers(float(size), int(layers))


FUNCTIONS: dict[str, Callable[..., int]] = {
    "switch_step": _switch_step,
    "prefetch_layers": _prefetch_layers,
}
"""Index of the first step of the second expert, and layers ahead for a prefetch size."""


# Loading ------------------------------------------------------------------------------------------


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
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


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

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
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
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
        for name in [*names(fact.how), *_SLOT.findall(f"{fact.statement} {fact.value}")]:
            if name not in loaded:
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
