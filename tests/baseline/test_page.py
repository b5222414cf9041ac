"""The baseline's page: every fact once, one outcome each, and links that lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from wanreport.baseline import page
from wanreport.baseline.facts import DOCUMENT
from wanreport.baseline.ledger import Ledger
from wanreport.report import render

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(ledger: Ledger) -> pd.DataFrame:
    return page.rows(ledger)


def test_every_fact_has_one_row_one_anchor_and_one_outcome(
    ledger: Ledger, rows: pd.DataFrame
) -> None:
    facts = ledger.facts
    assert list(rows.fact) == list(facts) and (rows.href == "#" + rows.fact).all()
    assert (rows.printed == [facts.text(name) for name in facts]).all()
    assert rows.claim.all() and rows.working.all() and rows.quote.all()
    assert sorted(set(rows.section)) == list(range(12)) and len(rows) == 429
    assert set(rows.outcome) <= set(page.OUTCOMES)
    assert ((rows.sign != "") == (rows.outcome != page.UNKNOWN)).all()
    for row in rows.itertuples():
        named, contradicted = ledger[row.fact].rests_on, row.outcome == page.FALSE
        assert bool(named) == (row.outcome == page.FALLS)
        assert (rows.outcome[named] == page.FALSE).all()
        assert all(name in row.judged for name in named)
        assert contradicted == any(v.outcome == page.FALSE for v in ledger[row.fact].verdicts)
    for name, outcome, instead in (
        ("s3.2.denoise.delta", page.HOLDS, ""),
        ("s3.2.step.old", page.HOLDS, ""),
        ("s4.1.data", page.FALSE, "or 100.8\u00a0GB"),
        ("s6.1.new_all.g4", page.FALLS, "219.3\u00a0GB"),
        ("s6.1.old_each.g6", page.FALSE, "9.6\u00a0GB"),
        ("s9.3.b.vram", page.FALSE, "+5.6\u00a0GB"),
        ("s10.streams", page.OPEN, ""),
        ("s1.cluster", page.UNKNOWN, ""),
    ):
        assert (rows.outcome[name], rows.instead[name]) == (outcome, instead)


def rendered(out: Path, **parameters: Any) -> BeautifulSoup:
    script = ROOT / "notebooks/baseline.py"
    made = render.Page(script, out, "baseline.html", parameters)
    assert render.make(made, ROOT) == ""
    return BeautifulSoup(out.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def soup(tmp_path_factory: pytest.TempPathFactory) -> BeautifulSoup:
    return rendered(tmp_path_factory.mktemp("page") / "page.html")


def test_the_page_begins_with_the_answer_and_one_picture(
    ledger: Ledger, soup: BeautifulSoup
) -> None:
    heading, answer = soup.h2, soup.select_one(".answer")
    assert heading is not None and answer is not None and soup.select_one(".trust") is not None
    before = heading.find_all_previous(["svg", "table"])
    assert [tag.name for tag in before].count("svg") == 1 and soup.table not in before
    assert answer.text.split()[:4] == ["8", "of", "its", str(len(ledger.evidence["conclusions"]))]


def test_every_fact_has_its_row_once_and_every_link_leads_to_one(
    rows: pd.DataFrame, soup: BeautifulSoup
) -> None:
    def bare(text: str) -> str:
        return " ".join(text.replace("\u200b", "").split())  # the places where long words may break

    shown = soup.find_all("tr", id=True)
    assert [str(tag["id"]) for tag in shown] == list(rows.fact)
    assert {str(tag["href"])[1:] for tag in soup.select('a[href^="#s"]')} <= set(rows.fact)
    assert all(bare(rows.quote[str(row["id"])]) in bare(row.text) for row in shown)
    text = " ".join(tag.text for tag in soup.select("table, p, figcaption, summary"))
    assert not re.search(r"\{=|\{s\d|\{wan|:\.\df\}", text), "a template is left"


@pytest.mark.slow
def test_a_changed_fact_changes_the_page_and_no_records_are_needed(
    soup: BeautifulSoup, tmp_path: Path
) -> None:
    shutil.copytree(DOCUMENT, tmp_path / "facts")
    path = tmp_path / "facts/03-benchmarks.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("denoise.old, value: 714.1", "denoise.old, value: 700.0"))
    given = {"facts_path": str(tmp_path / "facts"), "results_dirs": [str(tmp_path)]}
    changed = rendered(tmp_path / "page.html", **given)
    row = changed.find("tr", id="s3.2.denoise.delta")
    assert row is not None and "+88.2\u00a0s" in row.text
    assert "+88.2\u00a0s" not in soup.text
    assert len(changed.find_all("tr", id=True)) == len(soup.find_all("tr", id=True))
