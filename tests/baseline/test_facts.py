"""The baseline's facts as data, the words they are taken from, and their arithmetic."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from wanreport.baseline import FactError, Facts, load_facts
from wanreport.baseline.formulas import Quantity, condition, evaluate, quantity

ROOT = Path(__file__).resolve().parents[2]
SEED = next(iter(sorted((ROOT.parent / "shared" / "seed").glob("*.txt"))), None)

needs_seed = pytest.mark.skipif(SEED is None, reason="the seed document is not at hand")


# Against the document ----------------------------------------------------------------------------

# Digits anywhere, also inside words such as "H100" and "Wan2_2".
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)*")

LABELS: dict[str, set[str]] = {
    # Numbers of the document that state nothing, beside the headings' own.
    "7": {"1", "2", "3", "4", "5"},  # ranks of the causes
    "9.2": {"2", "3", "4", "12.0", "18", "19"},  # H2D; what other sections state
    "9.3": {"2"},  # H2D
}


def numbers_in(text: str) -> list[str]:
    return [token.rstrip(",").replace(",", "") for token in NUMBER.findall(text)]


def seed_parts() -> dict[str, str]:
    """The document's text by section number, without the headings' own numbers."""
    assert SEED is not None
    parts: dict[str, list[str]] = {"0": []}
    current = "0"
    for line in SEED.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#{2,3} (\d+(?:\.\d+)?)\.? (.*)", line):
            current, line = heading[1], heading[2]
        parts.setdefault(current, []).append(line)
    return {number: "\n".join(lines) for number, lines in parts.items()}


def said(facts: Facts, part: str) -> list[str]:
    """Every number that a section's facts give."""
    here = [fact for fact in facts.values() if fact.part == part]
    texts = [text for f in here for text in (facts.text(f.id), f.cite, facts.fill(f.statement))]
    return [number for text in texts for number in numbers_in(text)]


@needs_seed
def test_every_number_of_the_document_has_a_fact(facts: Facts) -> None:
    missing = {
        part: sorted(lost)
        for part, text in seed_parts().items()
        if (lost := set(numbers_in(text)) - set(said(facts, part)) - LABELS.get(part, set()))
    }
    assert missing == {}
    fewer = Facts({k: v for k, v in facts.items() if k != "s3.4.over_short.old"})
    assert set(numbers_in(seed_parts()["3.4"])) - set(said(fewer, "3.4")) == {"936"}


@needs_seed
@pytest.mark.parametrize("part", ["3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "6.1", "6.2", "8"])
def test_every_cell_of_a_table_of_numbers_has_a_fact_of_its_own(facts: Facts, part: str) -> None:
    rows = [line for line in seed_parts()[part].splitlines() if line.startswith("|")]
    cells = [cell for row in rows[1:] for cell in row.strip("|").split("|")[1:]]
    # The factor of "540s (21.6s x 25)" is the row's own.
    stated = Counter(n for cell in cells for n in numbers_in(re.sub(r" x \d+", "", cell)))
    assert not stated - Counter(said(facts, part)), "fewer facts than cells with that number"


@needs_seed
def test_every_fact_stands_beside_the_documents_own_words(facts: Facts) -> None:
    """A number stands in them, too."""
    assert SEED is not None
    text = SEED.read_text(encoding="utf-8")
    spelled_out = {"s2.transformers", "s3.2.runs"}  # "dual", "single"
    for fact in facts.values():
        assert fact.quote and fact.quote in text, fact.id
        if isinstance(fact.value, Decimal) and fact.id not in spelled_out:
            there = [*numbers_in(fact.quote), *re.findall(r"\d+", fact.quote)]
            assert str(abs(fact.value)) in there, fact.id


# The data file -----------------------------------------------------------------------------------


def test_digits_are_kept_as_printed(facts: Facts) -> None:
    assert str(facts["s4.1.p90"].value) == "19.30"
    assert facts.text("s4.1.p90") == "19.30\u00a0GB/s"
    assert facts.text("s3.3.switch.delta") == "\u221228\u00a0s"
    assert facts.text("s4.1.band.high.share") == "<\u00a02\u00a0%"


def test_every_derived_number_has_a_formula_or_a_note(facts: Facts) -> None:
    derived = [fact for fact in facts.values() if fact.kind == "derived"]
    numbers = [fact for fact in derived if isinstance(fact.value, Decimal)]
    assert [fact.id for fact in numbers if not fact.how and not fact.note] == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{id: s1.a, kind: measured, statement: x, colour: red}", "colour"),
        ("{id: s1.a, kind: guess, statement: x}", "kind"),
        ("{id: s2.a, kind: measured, statement: x}", "s2.a"),
        ("{id: s1.a, kind: measured, statement: x, value: true}", "value"),
        ("{id: s1.b, kind: cited, statement: x}, {id: s1.b, kind: cited, statement: x}", "s1.b"),
    ],
)
def test_a_bad_fact_is_named(tmp_path: Path, entry: str, message: str) -> None:
    text = f"parts:\n- number: '1'\n  title: T\n  facts: [{entry}]\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FactError, match=re.escape(message)):
        load_facts(tmp_path)
    with pytest.raises(FactError, match=re.escape(str(tmp_path / "none"))):
        load_facts(tmp_path / "none")


def test_an_id_or_its_beginning_names_facts(facts: Facts) -> None:
    assert facts.below(["s6.2.three"]) == [f"s6.2.three.{x}" for x in
                                           ("size", "layers", "vram", "effect")]  # fmt: skip
    assert facts.below(["s2.steps"]) == ["s2.steps"]
    with pytest.raises(FactError, match=r"s2\.step:"):
        facts.below(["s2.step"])


# Arithmetic --------------------------------------------------------------------------------------

KNOWN = {"s1.a": Quantity(6, 6, 6), "s1.b_c.new": quantity(Decimal("0.50"), exact=False)}


def compute(formula: str) -> Any:
    return evaluate(formula, KNOWN.__getitem__, twice=lambda x: 2 * x)


def test_arithmetic() -> None:
    assert compute("s1.a - s1.b_c.new * 3").value == 4.5
    assert compute("-(s1.a + 1) / 2").value == -3.5
    assert compute("twice(s1.a) % 5 + 1e2").value == 102


@pytest.mark.parametrize(
    ("text", "outcome"),
    [("s1.a <= 6", "holds"), ("s1.a < 6", "contradicts"), ("s1.b_c.new == 0.5", "holds"),
     ("s1.b_c.new == 0.504", "rounding"), ("s1.b_c.new < 0.498", "rounding"),
     ("s1.b_c.new == 0.51", "contradicts")],
)  # fmt: skip
def test_conditions_know_what_rounding_leaves_open(text: str, outcome: str) -> None:
    assert condition(text, compute)[0] == outcome


@pytest.mark.parametrize(
    "formula", ["s1.a +", "__import__('os')", "open('x')", "a + 1", "s1.a / (s1.a - 6)"]
)
def test_what_cannot_be_computed_is_named(formula: str) -> None:
    with pytest.raises(FactError, match=re.escape(formula)):
        compute(formula)


def test_a_text_in_braces_is_a_fact_or_computed(facts: Facts) -> None:
    text = "{s2.steps}, {s1.a * 1000}, {s1.b_c.new / 4:.2f}"
    assert facts.fill(text, compute) == "27, 6,000, 0.12"
