"""The baseline's page: every fact once, one outcome each, and links that lead somewhere."""

from __future__ import annotations

import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from wanreport.baseline import Facts, load_facts, page
from wanreport.baseline.facts import DOCUMENT
from wanreport.baseline.ledger import Ledger, load_ledger
from wanreport.report import render

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def ledger(facts: Facts) -> Ledger:
    return load_ledger(facts)


@pytest.fixture(scope="module")
def rows(ledger: Ledger) -> pd.DataFrame:
    return page.rows(ledger)


def test_every_fact_has_one_row_and_one_anchor(facts: Facts, rows: pd.DataFrame) -> None:
    assert list(rows.fact) == list(facts)
    assert rows.fact.is_unique and (rows.href == "#" + rows.fact).all()
    assert (rows.printed == [facts.text(name) for name in facts]).all()
    assert rows.claim.all() and rows.working.all()


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


def test_what_a_fact_depends_on_is_contradicted(ledger: Ledger, rows: pd.DataFrame) -> None:
    for row in rows[rows.outcome == page.FALLS].itertuples():
        named = ledger[row.fact].rests_on
        assert (rows.outcome[list(named)] == page.FALSE).all()
        assert all(name in row.judged for name in named)


def test_no_template_is_left_in_any_text(rows: pd.DataFrame, ledger: Ledger) -> None:
    texts = [rows.claim, rows.printed, rows.instead, rows.working]
    texts += [page.conclusions(ledger)[name] for name in ("conclusion", "says", "instead")]
    for text in pd.concat(texts):
        assert "{=" not in text and "{s" not in text


def test_each_table_cell_has_its_mark_and_links_to_its_own_fact(
    ledger: Ledger, rows: pd.DataFrame
) -> None:
    shown, linked = [], []
    for part in ledger.facts.parts:
        for _, grid in page.grids(ledger, part):
            shown += grid.attrs["facts"]
            for column in (name for name in grid if f"{name} href" in grid):
                cells = grid[[column, f"{column} href"]].dropna()
                for text, href in cells[cells.iloc[:, 1] != ""].itertuples(index=False):
                    row = rows[rows.href == href].iloc[0]
                    assert row.part == part and text.endswith(row.sign)
                    if isinstance(ledger.facts[row.fact].value, Decimal):
                        assert text == f"{row.printed} {row.sign}"
                    linked.append(row.fact)
    table = rows[rows.place == "table"]
    assert len(shown) == len(set(shown)) and set(shown) == set(table.index)
    assert len(linked) == len(set(linked))
    assert set(linked) == set(table.index[table.outcome != page.UNKNOWN])


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


# The notebook ------------------------------------------------------------------------------------


def rendered(out: Path, **parameters: Any) -> BeautifulSoup:
    script = ROOT / "notebooks/baseline.py"
    made = render.Page("baseline", script, out, "baseline.html", parameters)
    assert render.make(made, ROOT) == ""
    return BeautifulSoup(out.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def soup(tmp_path_factory: pytest.TempPathFactory) -> BeautifulSoup:
    return rendered(tmp_path_factory.mktemp("page") / "page.html")


def test_the_page_begins_with_the_answer_and_one_picture(soup: BeautifulSoup) -> None:
    heading = soup.h2
    assert heading is not None
    before = [tag for tag in heading.find_all_previous(["svg", "table", "div"])]
    assert [tag.name for tag in before].count("svg") == 1 and soup.table not in before
    assert [" ".join(tag["class"]) for tag in before if tag.name == "div"]
    counts = page.conclusions(load_ledger()).group.value_counts()
    answer = soup.select_one(".answer")
    assert answer is not None and soup.select_one(".trust") is not None
    assert answer.text.strip().startswith(f"{counts[page.CONTRADICTED]} of its {counts.sum()}")


def test_the_page_has_all_sections_of_the_document(facts: Facts, soup: BeautifulSoup) -> None:
    found = dict(
        match.groups()
        for tag in soup.find_all(["h2", "h3"])
        if (match := re.fullmatch(r"(\d+(?:\.\d+)?)\.? (.*)", tag.text))
    )
    assert [number for number in found if "." not in number] == [str(n) for n in range(1, 12)]
    for number, part in facts.parts.items():
        assert number == "0" or found[number] == part.title


def test_every_fact_has_its_row_in_the_ledger_once(rows: pd.DataFrame, soup: BeautifulSoup) -> None:
    ids = [str(tag["id"]) for tag in soup.find_all("tr", id=True)]
    assert ids == list(rows.fact)
    links = {str(tag["href"])[1:] for tag in soup.select('a[href^="#s"]')}
    shown = rows[(rows.place == "claim") | (rows.place == "table") & (rows.sign != "")]
    assert set(shown.fact) <= links & set(ids)


def bare(text: str) -> str:
    """A text without marks and with single spaces."""
    return " ".join(re.sub(r"\s*[✓✗†…]", "", text).split())


def test_every_fact_is_shown_in_its_section(rows: pd.DataFrame, soup: BeautifulSoup) -> None:
    ledger = soup.find("h2", string="Ledger")
    assert ledger is not None
    cells = [cell for table in ledger.find_all_previous("table") for cell in table(["td", "th"])]
    links = {str(link["href"]) for cell in cells for link in cell("a")}
    texts = {bare(cell.text) for cell in cells}
    table, claims = rows[rows.place == "table"], rows[rows.place == "claim"]
    assert set(table.href[table.sign != ""]) | set(claims.href) <= links
    assert {bare(text) for text in table.printed} | {bare(text) for text in claims.claim} <= texts


@pytest.mark.slow
def test_a_changed_fact_changes_the_page(soup: BeautifulSoup, tmp_path: Path) -> None:
    shutil.copytree(DOCUMENT, tmp_path / "facts")
    path = tmp_path / "facts/03-benchmarks.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("denoise.old, value: 714.1", "denoise.old, value: 700.0"))
    changed = rendered(tmp_path / "page.html", facts_path=str(tmp_path / "facts"))
    row = changed.find("tr", id="s3.2.denoise.delta")
    assert row is not None and "+88.2\u00a0s" in row.text
    assert "+88.2\u00a0s" not in soup.text


def test_the_page_can_be_made_without_records(tmp_path: Path, soup: BeautifulSoup) -> None:
    bare = rendered(tmp_path / "page.html", results_dirs=[str(tmp_path)])
    assert len(bare.find_all("tr", id=True)) == len(soup.find_all("tr", id=True))
