"""The baseline's facts as data, their arithmetic, and the page that is made from them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wanreport.baseline import FactError, Facts, load_facts
from wanreport.baseline.arithmetic import FormulaError, Quantity, evaluate, names
from wanreport.baseline.facts import DOCUMENT, SLOT
from wanreport.baseline.ledger import Ledger, load_ledger
from wanreport.jobs.flags import resolve_text

ROOT = Path(__file__).resolve().parents[2]
SEED = next(iter(sorted((ROOT.parent / "shared" / "seed").glob("*.txt"))), None)

needs_seed = pytest.mark.skipif(SEED is None, reason="the seed document is not at hand")


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def ledger(facts: Facts) -> Ledger:
    return load_ledger(facts)


# Against the document ----------------------------------------------------------------------------

# Digits anywhere, also inside words such as "H100" and "Wan2_2".
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)*")

LABELS: dict[str, set[str]] = {
    # Numbers of the document that state nothing, beside the headings' own.
    "7": {"1", "2", "3", "4", "5"},  # ranks of the causes
    "9.2": {"2"},  # H2D
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
        heading = re.match(r"#{2,3} (\d+(?:\.\d+)?)\.? (.*)", line)
        if heading:
            current, line = heading[1], heading[2]
        parts.setdefault(current, []).append(line)
    return {number: "\n".join(lines) for number, lines in parts.items()}


def said(facts: Facts, part: str) -> list[str]:
    """Every number that a section's facts give, and those of facts that its tables speak of."""
    texts = [text for f in facts.of_part(part) for text in (facts.text(f.id), f.cite)]
    texts += [facts.statement(fact.id) for fact in facts.of_part(part)]
    for layout in facts.parts[part].tables if part in facts.parts else []:
        for label in (layout["caption"], *layout["rows"].values(), *layout["columns"].values()):
            texts += map(facts.text, SLOT.findall(label))
    return [number for text in texts for number in numbers_in(text)]


@needs_seed
def test_every_number_of_the_document_has_a_fact_and_a_verdict(
    facts: Facts, ledger: Ledger
) -> None:
    assert set(ledger) == set(facts)
    missing = {
        part: sorted(lost)
        for part, text in seed_parts().items()
        if (lost := set(numbers_in(text)) - set(said(facts, part)) - LABELS.get(part, set()))
    }
    assert missing == {}


@needs_seed
@pytest.mark.parametrize("part", ["3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "6.1", "6.2", "8"])
def test_every_cell_of_a_table_of_numbers_has_a_fact_of_its_own(facts: Facts, part: str) -> None:
    rows = [line for line in seed_parts()[part].splitlines() if line.startswith("|")]
    cells = [cell for row in rows for cell in row.strip("|").split("|")[1:]]
    stated = Counter(number for cell in cells for number in numbers_in(cell))
    held = Counter(said(facts, part))
    assert not stated - held, "fewer facts than cells with that number"


@needs_seed
def test_a_fact_left_out_is_noticed(facts: Facts) -> None:
    fewer = Facts({k: v for k, v in facts.items() if k != "s3.4.over_short.old"}, facts.parts)
    lost = set(numbers_in(seed_parts()["3.4"])) - set(said(fewer, "3.4"))
    assert lost == {"936"}


@needs_seed
def test_no_number_is_invented(facts: Facts) -> None:
    """Every number that a fact holds stands in the document."""
    assert SEED is not None
    text = SEED.read_text(encoding="utf-8")
    stated = set(numbers_in(text)) | set(re.findall(r"\d+", text))
    spelled_out = {"s2.transformers", "s3.2.runs", "s8.gpus"}  # "dual", "single", "8 GPU" in a word
    invented = [
        fact.id
        for fact in facts.values()
        if isinstance(fact.value, Decimal)
        and str(abs(fact.value)) not in stated
        and fact.id not in spelled_out
    ]
    assert invented == []


@needs_seed
def test_sections_are_the_documents(facts: Facts) -> None:
    assert set(seed_parts()) - {"3", "4", "6", "9"} <= set(facts.parts)


# The data file -----------------------------------------------------------------------------------


def test_ids_are_unique_and_tell_their_section(facts: Facts) -> None:
    listed = re.findall(
        r"^  - \{id: ([^,]+),",
        "".join(path.read_text(encoding="utf-8") for path in DOCUMENT.glob("*.yaml")),
        re.MULTILINE,
    )
    assert len(listed) == len(set(listed)) == len(facts)
    for fact in facts.values():
        assert fact.id.startswith(f"s{fact.part}.")


def test_digits_are_kept_as_printed(facts: Facts) -> None:
    assert str(facts["s4.1.p90"].value) == "19.30"
    assert facts.text("s4.1.p90") == "19.30\u00a0GB/s"
    assert facts.text("s3.3.switch.delta") == "\u221228\u00a0s"
    assert facts.text("s4.1.band.high.share") == "<\u00a02\u00a0%"


def test_formulas_go_in_no_circle(facts: Facts) -> None:
    done: set[str] = set()

    def follow(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{name} follows from itself"
        if name not in done:
            for other in (n for n in names(facts[name].how) if n in facts):
                follow(other, (*above, name))
            done.add(name)

    for name in facts:
        follow(name, ())


def test_every_derived_number_has_a_formula_or_a_note(facts: Facts) -> None:
    bare = [
        fact.id
        for fact in facts.values()
        if fact.kind == "derived" and isinstance(fact.value, Decimal)
        if not fact.how and not fact.note
    ]
    assert bare == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{id: s1.a, kind: measured, statement: x, colour: red}", "unknown key colour"),
        ("{id: s1.a, kind: guess, statement: x}", "kind must be one of"),
        ("{id: s2.a, kind: measured, statement: x}", "starts with s1."),
        ("{id: s1.a, kind: measured, statement: x, value: true}", "number or text"),
        ("{id: s1.a, id: s1.b, kind: measured, statement: x}", "occurs twice"),
        ("{id: s1.a, kind: derived, statement: x, value: 1, how: s1.zz}", "no such fact"),
        ("{id: s1.a, kind: measured, statement: 'see {s1.zz}'}", "no such fact"),
    ],
)
def test_a_bad_fact_is_named(tmp_path: Path, entry: str, message: str) -> None:
    text = f"parts:\n- number: '1'\n  title: T\n  facts:\n  - {entry}\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FactError, match=re.escape(message)):
        load_facts(tmp_path)


def test_an_id_used_twice_is_refused(tmp_path: Path) -> None:
    fact = "  - {id: s1.a, kind: measured, statement: x}\n"
    (tmp_path / "a.yaml").write_text(f"parts:\n- number: '1'\n  title: T\n  facts:\n{fact}{fact}")
    with pytest.raises(FactError, match=r"s1\.a occurs twice"):
        load_facts(tmp_path)


def test_a_folder_without_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="no .yaml file"):
        load_facts(tmp_path)


def test_a_text_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    entries = [
        {"id": f"s1.{a}", "kind": "cited", "statement": "x", "value": f"{{s1.{b}}}"}
        for a, b in ("ab", "ba")
    ]
    content = {"parts": [{"number": "1", "title": "T", "facts": entries}]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(FactError, match="refers to itself"):
        load_facts(tmp_path).text("s1.a")


# Arithmetic --------------------------------------------------------------------------------------

KNOWN = {"s1.a": Quantity.exact(6), "s1.b_c.new": Quantity.rounded(Decimal("0.50"))}


def value_of(formula: str) -> Decimal:
    return evaluate(formula, KNOWN.__getitem__, {"twice": lambda x: int(2 * x)}).value


def test_arithmetic() -> None:
    assert value_of("s1.a - s1.b_c.new * 3") == Decimal("4.50")
    assert value_of("-(s1.a + 1) / 2") == Decimal("-3.5")
    assert value_of("twice(s1.a) + 0.1 + 0.2") == Decimal("12.3")


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "s1.a +",
        "__import__('os')",
        "s1.a.__class__",
        "open('x')",
        "twice.__globals__",
        "twice(x=1)",
        "twice(*[1])",
        "(lambda: 1)()",
        "[1][0]",
        "{1: 2}",
        "'a' * 3",
        "True + 1",
        "1j",
        "2 ** 9 ** 9",
        "7 // 2",
        "7 % 2",
        "1 << 2",
        "1 if 2 else 3",
        "1 < 2",
        "1 and 2",
        "x := 1",
        "a + 1",
        "FACT0",
        "f'{1}'",
        "1; 2",
        "s1.a / (s1.a - 6)",
        "1" * 2000,
        "(" * 500 + "1" + ")" * 500,
    ],
)
def test_anything_but_arithmetic_is_refused(formula: str) -> None:
    with pytest.raises((FormulaError, KeyError)):
        value_of(formula)


@given(st.text(max_size=30))
def test_no_text_gets_past_the_evaluator(text: str) -> None:
    try:
        result = value_of(text)
    except (FormulaError, KeyError):
        return
    assert result.is_finite()


@given(*[st.decimals("-1000", "1000", places=2)] * 4, st.sampled_from("+-*/"))
def test_an_interval_holds_what_its_inputs_may_be(
    a: Decimal, b: Decimal, da: Decimal, db: Decimal, sign: str
) -> None:
    near = {name: Quantity.rounded(x) for name, x in (("s1.a", a), ("s1.b", b))}
    # any number that would have been printed so
    true = {
        name: Quantity.exact(x + d / 200000) for name, x, d in (("s1.a", a, da), ("s1.b", b, db))
    }
    try:
        held = evaluate(f"s1.a {sign} s1.b", near.__getitem__)
    except FormulaError:
        assert sign == "/"
        return
    value = evaluate(f"s1.a {sign} s1.b", true.__getitem__).value
    tiny = Decimal("1e-15")
    assert held.low - tiny <= value <= held.high + tiny


# Flags and imports -------------------------------------------------------------------------------


def test_the_flags_lead_where_sglang_leads_them() -> None:
    engines = {
        flags: resolve_text(flags).engine
        for flags in (
            "--dit-layerwise-offload true",
            "--dit-layerwise-offload false --num-gpus 6",
            "no offload flags",
            "--dit-offload-prefetch-size 3",
        )
    }
    assert list(engines.values()) == ["layerwise", "swap", "layerwise", "layerwise"]


def test_nothing_here_needs_torch() -> None:
    code = (
        "import sys, wanreport.baseline.page;"
        "sys.exit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
