"""The baseline document as data: its facts, and the arithmetic over them.

Each fact is one number or claim as the document states it, wrong or not. A number that follows
from others also carries the formula (`how`). Whether a fact is *true* is for the ledger.

A formula is a Python expression in which ids stand for numbers and texts, such as
``100 * (s8.total.old / s8.total.new - 1)``. It is computed for the numbers as printed, and for
every combination of the smallest and largest that would have been printed so.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, BeforeValidator

from wanreport.jobs import sglang
from wanreport.jobs.schedule import flow_schedule, switch_step
from wanreport.jobs.settings import layerwise_held
from wanreport.words import MINUS, NBSP

DOCUMENT, CHECKS = (Path(__file__).with_name(name) for name in ("document", "checks.yaml"))
DERIVED = Path(__file__).with_name("derived")
"""What ``make derive`` and ``make citations`` wrote, and the reviewed verdicts."""
SLOT = re.compile(r"\{([^{}:]+):?(\.\df)?\}")
ID = re.compile(r"(?<![\w.])(?:s\d+|wan)(?:\.\w+)+")
"""An id: a fact's, ``s3.2.denoise.new``, or a size's, ``wan.block.bytes``."""
Kind = Literal["architecture", "identification", "schedule", "source", "datasheet", "published",
               "arithmetic", "measured"]  # fmt: skip
"""The kinds of checks. Where two contradict a number, the first of them says what is right."""
KINDS: tuple[str, ...] = get_args(Kind)
Texts = Annotated[list[str], BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


class FactError(ValueError):
    """Data or a formula of the baseline that cannot be used; the message names it."""


class Outcome(StrEnum):
    """What may become of a fact, worst first."""

    FALSE = "contradicted"
    FALLS = "follows from a contradicted one"
    OPEN = "not measured"
    ELSEWHERE = "measured in another setup"
    UNKNOWN = "cannot be known"
    ROUNDING = "holds within rounding"
    HOLDS = "holds"

    @classmethod
    def worst(cls, outcomes: "Iterable[Outcome]") -> "Outcome":
        """The worst of some; unknown where there is none."""
        return min(outcomes, key=list(cls).index, default=cls.UNKNOWN)


class Quantity(NamedTuple):
    """A number and the interval that its rounding leaves open; ``low <= value <= high``."""

    value: float
    low: float
    high: float


def quantity(printed: Decimal, exact: bool = False) -> Quantity:
    """A number as printed; half a unit of its last digit either way is open unless it is exact."""
    half = 0 if exact else Decimal(1).scaleb(-_decimals(printed)) / 2
    return Quantity(*map(float, (printed, printed - half, printed + half)))


def _decimals(printed: Decimal) -> int:
    return max(0, -int(printed.as_tuple().exponent))


def compare(printed: Decimal, computed: Quantity, bound: str = "") -> Outcome:
    """Hold a printed number against a computed one; rounded or cut off, it never contradicts."""
    value, half = float(printed), 0.5 * 10.0 ** -_decimals(printed) * (1 + 1e-9)
    if bound:  # it is only said to be below or above what is printed
        fits = [end < value if bound == "<" else end > value for end in computed]
        return Outcome.HOLDS if fits[0] else Outcome.ROUNDING if any(fits) else Outcome.FALSE
    if abs(computed.value - value) <= half:
        return Outcome.HOLDS
    low, high = (value + half * (way if way * value < 0 else 2 * way) for way in (-1, 1))
    return Outcome.ROUNDING if computed.low < high and low < computed.high else Outcome.FALSE


def evaluate(formula: str, lookup: Callable[[str], Any], **scope: Any) -> Any:
    """Compute a formula over the quantities and texts that `lookup` gives for ids.

    Returns a quantity, or what a function in it gives. Raises FactError where Python cannot.
    """
    given = {name.replace(".", "__"): lookup(name) for name in ID.findall(formula)}
    ends = [dict.fromkeys(each) if isinstance(each, Quantity) else [each]
            for each in given.values()]  # fmt: skip
    source = ID.sub(lambda match: match[0].replace(".", "__"), formula.strip())
    scope |= {"__builtins__": {}, **FUNCTIONS}
    try:
        found = [eval(source, scope, dict(zip(given, values, strict=True)))
                 for values in product(*ends)]  # fmt: skip
    except (SyntaxError, NameError, TypeError, ArithmeticError, ValueError, KeyError) as why:
        raise FactError(f"{formula!r}: {why}") from None
    if isinstance(found[0], int | float):  # as each quantity names its value first, so here
        return Quantity(float(found[0]), min(found), max(found))
    return found[0]


def condition(text: str, compute: Callable[[str], Any]) -> tuple[Outcome, str]:
    """Hold one side of ``<=``, ``<`` or ``==`` against the other, or call a function that does."""
    left, *pieces = re.split(r"\s*(<=|<|==)\s*", text)
    if not pieces:
        so, words = compute(text)
        return Outcome.HOLDS if so else Outcome.FALSE, words
    sign, right = pieces  # one comparison each
    gap = compute(f"({left}) - ({right})")
    fits = {"<=": lambda x, y: x <= 0, "<": lambda x, y: x < 0, "==": lambda x, y: x <= 0 <= y}
    so, touch = fits[sign](gap.value, gap.value), fits[sign](gap.low, gap.high)
    words = f"{compute(left).value:,.4g} {sign} {compute(right).value:,.4g}: {text}"
    return Outcome.HOLDS if so else Outcome.ROUNDING if touch else Outcome.FALSE, words


# What formulas may call. What holds a claim against a source says whether it is so, and how that
# comes about.


def derived(name: str, folder: Path = DERIVED) -> dict[str, Any]:
    """The content of a derived file."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


def shifts(formula: str) -> tuple[bool, str]:
    """Whether a formula of the noise level gives the scheduler's own levels."""
    levels = {shift: flow_schedule(27, shift).sigmas[1:-1] for shift in (1, 3, 5, 8, 12)}
    largest = max(abs(evaluate(formula, str, flow_shift=shift, sigma=sigma).value - shifted)
                  for shift, those in levels.items()
                  for sigma, shifted in zip(levels[1], those, strict=True))  # fmt: skip
    return largest < 1e-6, f"largest difference {largest:.1e}"


def identified(size: float, unit: str, part: str) -> tuple[bool, str]:
    """Whether a transfer of a printed size can be a whole `part`."""
    found = derived("identified")["sizes"].get(f"{size:g} {unit}", {"whole": [], "best": []})
    return part in found["whole"], f"best matches: {'; '.join(found['best'])}"


def engine(flags: str, name: str) -> tuple[bool, str]:
    """Whether SGLang 0.5.9 takes flags to an engine."""
    found = sglang.resolve_text(flags)
    return found.engine == name, f"{flags!r} leads to {found.engine}: {'; '.join(found.steps)}"


def resolved(path: str, key: str, claimed: Any) -> tuple[bool, str]:
    """Whether SGLang 0.5.9's registry gives a setting for the path of such a pipeline."""
    settings = sglang.resolve_model(path, index={"_class_name": "WanPipeline"})
    found = getattr(settings, key)
    return found == claimed, f"{'; '.join(settings.steps)}: {key} {found}"


def stated(*texts: Any) -> tuple[bool, str]:
    """Whether a text's whole numbers all stand in others, "1439552-1439555" for four of them."""
    texts = tuple(f"{text:g}" if isinstance(text, float) else text for text in texts)
    runs = (re.findall(r"(\d+)(?:(?<=\d{4})-(\d{4,}))?", text) for text in texts)
    first, *others = [{n for a, b in each for n in range(int(a), int(b or a) + 1)} for each in runs]
    lost = first.difference(*others)
    return not lost, f"not there: {sorted(lost)}" if lost else "the same there"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{each.__name__: each for each in (shifts, identified, engine, resolved, stated)},
    "ordered": lambda first, last: (first <= last, f"{first} <= {last}"),
    "within": lambda text, part: (part.removeprefix("./") in text, part),
    "held": lambda ahead, blocks: layerwise_held(int(blocks), int(ahead), switch=True),
    "prefetch_layers": lambda size, blocks: sglang.prefetch_layers(size, int(blocks)),
    "switch_step": lambda steps, shift, ratio: switch_step(
        flow_schedule(int(steps), shift).timesteps, ratio),
}  # fmt: skip


class Fact(BaseModel, extra="forbid", frozen=True, strict=True):
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
        sign, decimals = "+" if self.sign else "", _decimals(self.number)
        same = math.isclose(number, self.number)
        if not same and f"{number:.{decimals}f}" == f"{self.number:.{decimals}f}":
            decimals += 1
        unit = {"": "", "x": "×", "us": f"{NBSP}µs"}.get(self.unit, f"{NBSP}{self.unit}")
        return f"{number:{sign},.{decimals}f}".replace("-", MINUS) + unit


class Facts(dict[str, Fact]):
    """All facts by id, in the document's order."""

    def __missing__(self, name: str) -> Fact:
        raise FactError(f"{name}: no such fact")

    def below(self, starts: Iterable[str]) -> list[str]:
        """Ids for ids and for beginnings of ids, such as ``s6.2`` for all of that section."""
        found = ([start] if start in self else [at for at in self if at.startswith(f"{start}.")]
                 or [self[start].id] for start in starts)  # fmt: skip
        return [name for names in found for name in names]

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

    fact: Texts
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
    """Load the facts of a folder's ``*.yaml``, by default the package's; raises FactError."""
    facts = Facts()
    for path in sorted(Path(folder or DOCUMENT).glob("*.yaml")):
        with _content(path) as content:
            for part, entry in ((p, entry) for p in content["parts"] for entry in p["facts"]):
                # The document's words are those of the longest beginning of the id.
                quotes = {"": "", **part.get("quotes", {})}
                start = max(s for s in quotes if f"{entry['id']}.".startswith(f"{s}." * bool(s)))
                fact = Fact(part=part["number"], quote=quotes[start], **entry)
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
