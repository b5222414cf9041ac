"""The baseline's facts as data, the words they are taken from, and their arithmetic."""

import re
from collections import Counter
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanreport.baseline import facts as data
from wanreport.baseline.facts import FactError, Facts, Outcome, Quantity, load_facts, quantity

SEED = next(Path(__file__).resolve().parents[3].glob("shared/seed/*.txt"), None)
TEXT = SEED.read_text(encoding="utf-8") if SEED else ""
FACTS = load_facts()
needs_seed = pytest.mark.skipif(SEED is None, reason="the seed document is not at hand")

HOLDS, ROUNDING, FALSE = Outcome.HOLDS, Outcome.ROUNDING, Outcome.FALSE
LABELS = {
    # Numbers of the document that state nothing, beside the headings' own.
    "7": {"1", "2", "3", "4", "5"},  # ranks of the causes
    "9.2": {"2", "3", "4", "12.0", "18", "19"},  # H2D; what other sections state
    "9.3": {"2"},  # H2D
}


def numbers_in(text):
    """Digits anywhere, also inside words such as "H100" and "Wan2_2"."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)*", text)
    return [token.rstrip(",").replace(",", "") for token in found]


def seed_parts():
    """The document's text by section number, without the headings' own numbers."""
    pieces = re.split(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", TEXT, flags=re.MULTILINE)
    return {"0": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def said(part, facts=FACTS):
    """Every number that a section's facts give."""
    here = [fact for fact in facts.values() if fact.part == part]
    texts = [text for f in here for text in (facts.text(f.id), f.cite, facts.fill(f.statement))]
    return [number for text in texts for number in numbers_in(text)]


@needs_seed
def test_every_number_of_the_document_has_a_fact():
    for part, text in seed_parts().items():
        assert set(numbers_in(text)) <= {*said(part), *LABELS.get(part, ())}, part
        if part in ("3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "6.1", "6.2", "8"):
            # Of tables of numbers each cell has a fact of its own.
            rows = [line for line in text.splitlines() if line.startswith("|")]
            cells = [cell for row in rows[1:] for cell in row.strip("|").split("|")[1:]]
            # The factor of "540s (21.6s x 25)" is the row's own.
            stated = Counter(n for cell in cells for n in numbers_in(re.sub(r" x \d+", "", cell)))
            assert not stated - Counter(said(part)), part
    fewer = Facts({k: v for k, v in FACTS.items() if k != "s3.4.over_short.old"})
    assert set(numbers_in(seed_parts()["3.4"])) - set(said("3.4", fewer)) == {"936"}


@needs_seed
def test_every_fact_stands_beside_the_documents_own_words():
    """A number stands in them, too."""
    spelled_out = {"s2.transformers", "s3.2.runs"}  # "dual", "single"
    for fact in FACTS.values():
        assert fact.quote and fact.quote in TEXT, fact.id
        if isinstance(fact.value, Decimal) and fact.id not in spelled_out:
            there = [*numbers_in(fact.quote), *re.findall(r"\d+", fact.quote)]
            assert str(abs(fact.value)) in there, fact.id
            assert fact.kind != "derived" or fact.how or fact.note, fact.id


def test_numbers_are_worded_as_printed():
    for name, text in {"s4.1.p90": "19.30\u00a0GB/s", "s3.3.switch.delta": "\u221228\u00a0s",
                       "s4.1.band.high.share": "<\u00a02\u00a0%"}.items():  # fmt: skip
        assert FACTS.text(name) == text
    three = [f"s6.2.three.{each}" for each in ("size", "layers", "vram", "effect")]
    assert FACTS.below(["s6.2.three", "s2.steps"]) == [*three, "s2.steps"]
    with pytest.raises(FactError, match=r"s2\.step:"):
        FACTS.below(["s2.step"])
    filled = FACTS.fill("{s2.steps}, {s1.a * 1000}, {s1.b_c.new / 4:.2f}", compute)
    assert filled == "27, 6,000, 0.12"


@pytest.mark.parametrize(("entry", "message"), [
    ("{id: s1.a, kind: measured, statement: x, colour: red}", "colour"),
    ("{id: s1.a, kind: guess, statement: x}", "kind"),
    ("{id: s2.a, kind: measured, statement: x}", "s2.a"),
    ("{id: s1.a, kind: measured, statement: x, value: true}", "value"),
    ("{id: s1.b, kind: cited, statement: x}, {id: s1.b, kind: cited, statement: x}", "s1.b"),
])  # fmt: skip
def test_a_bad_fact_is_named(tmp_path, entry, message):
    (tmp_path / "a.yaml").write_text(f"parts:\n- number: '1'\n  facts: [{entry}]\n")
    with pytest.raises(FactError, match=f"a.yaml(?s:.*){re.escape(message)}"):
        load_facts(tmp_path)
    with pytest.raises(FactError, match=re.escape(str(tmp_path / "none"))):
        load_facts(tmp_path / "none")


KNOWN = {"s1.a": Quantity(6, 6, 6), "s1.b_c.new": quantity(Decimal("0.50"))}


def compute(formula):
    return data.evaluate(formula, KNOWN.__getitem__, twice=lambda x: 2 * x)


@pytest.mark.parametrize(("text", "outcome"), [
    ("s1.a <= 6", HOLDS), ("s1.a < 6", FALSE), ("s1.b_c.new == 0.5", HOLDS),
    ("s1.b_c.new == 0.504", ROUNDING), ("s1.b_c.new < 0.498", ROUNDING),
    ("s1.b_c.new == 0.51", FALSE), ("s1.a - s1.b_c.new * 3 == 4.5", HOLDS),
    ("-(s1.a + 1) / 2 == -3.5", HOLDS), ("twice(s1.a) % 5 + 1e2 == 102", HOLDS),
])  # fmt: skip
def test_conditions_know_what_rounding_leaves_open(text, outcome):
    assert data.condition(text, compute)[0] == outcome


def test_what_cannot_be_computed_is_named():
    for formula in ("s1.a +", "__import__('os')", "open('x')", "a + 1", "s1.a / (s1.a - 6)"):
        with pytest.raises(FactError, match=re.escape(formula)):
            compute(formula)


digits = st.decimals("0.1", "1000", places=6)
formulas = st.sampled_from(
    ["s1.a + s1.b", "s1.a - s1.b", "s1.a / s1.b", "s1.a * s1.b", "100 * (s1.a / s1.b - 1)",
     "(3 * s1.a + 5 * s1.b) / 8", "s1.a / 27", "1000000 * s1.a / s1.b"]
)  # fmt: skip


@given(digits, digits, formulas, *[st.integers(0, 3)] * 3)
def test_rounding_alone_never_contradicts(a, b, formula, places_a, places_b, places):
    """Numbers that were exact before somebody printed them are never said to disagree."""

    def printed(value, places):
        return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)

    exact = {"s1.a": quantity(a, exact=True), "s1.b": quantity(b, exact=True)}
    rounded = {"s1.a": quantity(printed(a, places_a)), "s1.b": quantity(printed(b, places_b))}
    if rounded["s1.b"].low <= 0:
        return  # printed as zero: no quotient is known
    value = data.evaluate(formula, exact.__getitem__).value
    again = data.evaluate(formula, rounded.__getitem__)
    assert data.compare(printed(Decimal(repr(value)), places), again) in (HOLDS, ROUNDING)


@pytest.mark.parametrize(("bound", "printed", "computed", "outcome"), [
    # 714.1 / 27 is 26.448; the document prints 26.44
    *(("", printed, (26.448, 26.4463, 26.4499), outcome) for printed, outcome in {
        "26.45": HOLDS, "26.4": HOLDS, "26.44": ROUNDING, "26": HOLDS, "26.43": FALSE,
        "26.46": FALSE}.items()),
    ("<", "2", (1.9, 1.85, 1.95), HOLDS),
    ("<", "2", (2.04, 1.99, 2.09), ROUNDING),
    ("<", "2", (2.1, 2.05, 2.15), FALSE),
])  # fmt: skip
def test_a_number_may_be_cut_off_and_a_bound_has_a_side(bound, printed, computed, outcome):
    value, low, high = computed
    assert data.compare(Decimal(printed), Quantity(value, low, high), bound) == outcome
    other = bound.replace("<", ">")
    assert data.compare(-Decimal(printed), Quantity(-value, -high, -low), other) == outcome
