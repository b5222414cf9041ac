"""The baseline's page: every fact once, one outcome each, and links that lead somewhere."""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import pytest

from wanreport.baseline import Facts, load_facts, page
from wanreport.baseline.ledger import Ledger, load_ledger


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def ledger(facts: Facts) -> Ledger:
    return load_ledger(facts)


@pytest.fixture(scope="module")
def rows(ledger: Ledger) -> pd.DataFrame:
    return page.rows(ledger)


def grids(ledger: Ledger) -> list[tuple[str, pd.DataFrame]]:
    return [(part, grid) for part in ledger.facts.parts for _, grid in page.grids(ledger, part)]


def test_every_fact_has_one_row_and_one_anchor(facts: Facts, rows: pd.DataFrame) -> None:
    assert list(rows.fact) == list(facts)
    assert rows.anchor.is_unique and rows.anchor.str.fullmatch(r"[a-z0-9-]+").all()
    assert (rows.href == "#" + rows.anchor).all()
    assert (rows.printed == [facts.text(name) for name in facts]).all()
    assert rows.statement.all() and rows.working.all()


def test_all_sections_of_the_document_are_there(rows: pd.DataFrame) -> None:
    assert sorted(set(rows.section)) == list(range(12))


def test_outcomes_add_up(ledger: Ledger, rows: pd.DataFrame) -> None:
    counts = rows.outcome.value_counts()
    assert set(counts.index) == set(page.OUTCOMES) and counts.sum() == len(rows)
    assert counts[page.FALSE] == ledger.tally["contradicts"]
    assert counts[page.FALLS] == sum(bool(entry.rests_on) for entry in ledger.values())
    standing = {name for name, entry in ledger.items() if not entry.rests_on}
    for outcome in ("open", "unknown"):
        expected = {name for name in standing if ledger[name].outcome == outcome}
        assert set(rows.index[rows.outcome == page.PLAIN[outcome]]) == expected
    assert (rows.sign != "").sum() == (rows.outcome != page.UNKNOWN).sum()


@pytest.mark.parametrize(
    ("name", "outcome", "instead"),
    [
        ("s3.2.denoise.delta", page.HOLDS, ""),
        ("s3.2.step.old", page.FALSE, "26.45\u00a0s"),
        ("s4.1.data", page.FALSE, "or 100.8\u00a0GB"),
        ("s6.1.new_all.g4", page.FALLS, "219.3\u00a0GB"),
        ("s10.streams", page.OPEN, ""),
        ("s1.cluster", page.UNKNOWN, ""),
    ],
)
def test_outcome_and_what_is_right_instead(
    rows: pd.DataFrame, name: str, outcome: str, instead: str
) -> None:
    assert (rows.outcome[name], rows.instead[name]) == (outcome, instead)


def test_what_a_fact_depends_on_is_contradicted(rows: pd.DataFrame) -> None:
    depends = rows.depends[rows.outcome == page.FALLS].str.split(", ").explode()
    assert len(depends) and (rows.outcome[list(depends)] == page.FALSE).all()
    assert (rows.depends[rows.outcome != page.FALLS] == "").all()


def test_no_template_is_left_in_any_text(rows: pd.DataFrame, ledger: Ledger) -> None:
    texts = [rows.statement, rows.printed, rows.instead, rows.working]
    texts += [page.conclusions(ledger)[name] for name in ("conclusion", "says", "instead")]
    for text in pd.concat(texts):
        assert "{=" not in text and "{s" not in text


def test_each_table_cell_links_to_its_own_fact(ledger: Ledger, rows: pd.DataFrame) -> None:
    linked = []
    for part, grid in grids(ledger):
        for column in (name for name in grid if f"{name} href" in grid):
            for text, href in grid[[column, f"{column} href"]].dropna().itertuples(index=False):
                row = rows[rows.href == href].iloc[0]
                assert row.part == part
                if isinstance(ledger.facts[row.fact].value, Decimal):
                    assert text == f"{row.printed} {row.sign}".strip()
                linked.append(row.fact)
    assert len(linked) == len(set(linked))
    assert set(linked) == set(rows.index[rows.place == "table"])


def test_a_fact_in_no_table_is_a_claim_or_inside_a_text(ledger: Ledger, rows: pd.DataFrame) -> None:
    assert set(rows.place) == {"table", "within", "claim"}
    for row in rows[rows.place == "within"].itertuples():
        tables = page.grids(ledger, row.part)
        texts = [[caption, *grid, *grid.fillna("").to_numpy().flat] for caption, grid in tables]
        assert any(row.printed in text for text in sum(texts, [])), row.fact


def test_numbers_inside_a_text_carry_their_own_mark(ledger: Ledger) -> None:
    _, causes = next(page.grids(ledger, "7"))
    signs = [page.SIGNS[page.FALLS], *[page.SIGNS[page.FALSE]] * 3]
    assert [c for c in causes.Mechanism[0] if c in page.SIGNS.values()] == signs


def test_conclusions_are_grouped_and_lead_to_what_decides(
    ledger: Ledger, rows: pd.DataFrame
) -> None:
    found = page.conclusions(ledger)
    assert len(found) == len(ledger.judging.conclusions)
    assert list(found.group) == sorted(found.group, key=page.GROUPS.index)
    assert set(found.href) <= set(rows.href)
    fallen = found[found.group == page.CONTRADICTED]
    assert rows.outcome[list(fallen.fact)].isin([page.FALSE, page.FALLS]).all()
    assert fallen.instead.all()
    counts = found.group.value_counts()
    assert counts[page.CONTRADICTED] == 8


def test_a_planted_error_moves_a_conclusion(facts: Facts) -> None:
    planted = page.conclusions(load_ledger(facts.replace("s3.2.denoise.old", "700.0")))
    group = planted.group[planted.fact.str.startswith("s3.2.denoise")]
    assert list(group) == [page.CONTRADICTED]
