"""The baseline document as data: its facts, and what they are held against (``checks.yaml``).

Each fact is one number or claim as the document states it, wrong or not. A number that follows
from others also carries the formula (`how`). Whether a fact is *true* is for the ledger.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator

from wanreport.baseline.formulas import FactError, Quantity, decimals_of, quantity
from wanreport.words import MINUS, NBSP

DOCUMENT = Path(__file__).parent / "document"
CHECKS = Path(__file__).with_name("checks.yaml")
SLOT = re.compile(r"\{([^{}:]+):?(\.\df)?\}")

Kind = Literal["architecture", "identification", "schedule", "source", "datasheet", "published",
               "arithmetic", "measured"]  # fmt: skip
"""The kinds of checks. Where two contradict a number, the first of them says what is right."""
KINDS: tuple[str, ...] = get_args(Kind)
Texts = Annotated[list[str], BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


class Fact(BaseModel, extra="forbid", frozen=True, strict=True):
    """One number or claim of the document."""

    id: str  # "s3.2.denoise.new"
    part: str = ""  # the section that it stands in, "3.2"
    statement: str  # the claim, or what the number is; {id} is another fact, here and in `value`
    kind: Literal["specification", "measured", "derived", "cited", "hypothesis", "prediction"]
    value: Decimal | str = ""  # with the digits it was printed with
    unit: str = ""
    how: str = ""  # formula over ids that gives `value`, …
    check: Kind = "arithmetic"  # … and of which kind that check is
    cite: str = ""  # the source that the document names
    approx: bool = False  # printed with "~"
    sign: bool = False  # printed with "+"
    bound: Literal["", "<", ">"] = ""
    note: str = ""  # about how the number came into the data file
    quote: str = ""  # the document's own words: the sentence or the table's row

    @property
    def number(self) -> Decimal:
        """The number as printed. Raises FactError where there is none."""
        if isinstance(self.value, str):
            raise FactError(f"{self.id} is not a number")
        return self.value

    @property
    def quantity(self) -> Quantity:
        """The number with what its rounding leaves open. Counts and settings are exact."""
        count = not self.unit and (self.kind == "cited" or self.number % 1 == 0)
        return quantity(self.number, not self.approx and (count or self.kind == "specification"))

    def worded(self, number: float | Decimal) -> str:
        """Write a number in this fact's form, with a decimal more where that hides a difference."""
        sign, unit = "+" if self.sign else "", self.unit.replace("us", "µs")
        decimals, same = decimals_of(self.number), math.isclose(number, self.number)
        if not same and f"{number:.{decimals}f}" == f"{self.number:.{decimals}f}":
            decimals += 1
        end = "×" if unit == "x" else f"{NBSP}{unit}" if unit else ""
        return f"{number:{sign},.{decimals}f}".replace("-", MINUS) + end


class Facts(dict[str, Fact]):
    """All facts by id, in the document's order."""

    def __missing__(self, name: str) -> Fact:
        raise FactError(f"{name}: no such fact")

    def below(self, starts: Iterable[str]) -> list[str]:
        """Ids for ids and for beginnings of ids, such as ``s6.2`` for all of that section."""
        return [name for start in starts for name in
                [name for name in self if f"{name}.".startswith(f"{start}.")] or [self[start].id]
                ]  # fmt: skip

    def number(self, name: str) -> float:
        """A fact's number, for a figure's axis."""
        return float(self[name].number)

    def text(self, name: str) -> str:
        """A fact's value as the document prints it, with its unit."""
        fact = self[name]
        if isinstance(fact.value, str):
            return self.fill(fact.value)
        sign = f"{fact.bound}{NBSP}" if fact.bound else "~" if fact.approx else ""
        return sign + fact.worded(fact.value)

    def fill(self, text: str, compute: Callable[[str], Quantity] | None = None) -> str:
        """Put facts as printed for ``{id}``, and computed numbers for ``{formula:.1f}``."""

        def put(slot: re.Match[str]) -> str:
            if compute is None or slot[1] in self:
                return self.text(slot[1])
            return format(compute(slot[1]).value, f",{slot[2] or '.0f'}").replace("-", MINUS)

        return SLOT.sub(put, text)


class Check(BaseModel, extra="forbid"):
    """What facts (or all below a beginning) are held against; ``checks.yaml`` explains the keys."""

    fact: Texts = []
    check: Kind | Literal[""] = ""  # "" where nothing can judge them; `why` says the reason
    how: str = ""
    holds: Texts = []
    repeats: str = ""
    by: list[str] | None = None
    why: str = ""
    instead: str = ""


class _Loader(yaml.CSafeLoader):
    """Keeps a number's digits: 19.30 is not 19.3."""


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _, node: Decimal(node.value))


@contextmanager
def _content(path: Path) -> Iterator[Any]:
    """The content of a YAML file; what is wrong with it is a FactError that names the file."""
    try:
        yield yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise FactError(f"{path}: {error}") from None


def load_facts(folder: Path | str | None = None) -> Facts:
    """Load the facts of every ``*.yaml`` in a folder, by default the package's own.

    Raises FactError for a file that cannot be read, an unknown key or kind, and an id that does not
    fit its section or occurs twice.
    """
    facts = Facts()
    for path in sorted(Path(folder or DOCUMENT).glob("*.yaml")):
        with _content(path) as content:
            for part, entry in ((p, entry) for p in content["parts"] for entry in p["facts"]):
                # The document's words are those of the longest beginning of the id.
                quotes = {start: text for start, text in part.get("quotes", {}).items()
                          if f"{entry['id']}.".startswith(f"{start}.")}  # fmt: skip
                quote = quotes[max(quotes, key=len)] if quotes else ""
                fact = Fact(part=part["number"], quote=quote, **entry)
                if fact.id in facts or not fact.id.startswith(f"s{fact.part}."):
                    raise FactError(f"{fact.id} occurs twice, or elsewhere")
                facts[fact.id] = fact
    if not facts:
        raise FactError(f"{folder}: no facts in *.yaml")
    return facts


def load_checks(path: Path = CHECKS) -> dict[str, Any]:
    """Load ``checks.yaml``: `checks`, what a fact `rests_on`, and `conclusions`, as it says."""
    with _content(path) as content:
        # A check with `of` is one for each of these, which takes the place of every @.
        checks = [json.loads(json.dumps(check).replace("@", of))
                  for check in content["checks"] for of in check.pop("of", [""])]  # fmt: skip
        return {**content, "checks": [Check(**check) for check in checks]}
