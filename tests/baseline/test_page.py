"""The baseline's page: every fact once, one outcome each, and links that lead somewhere."""

import re
import shutil

import pytest

from tests.report.test_notebooks import page
from tests.synthetic import ROOT
from wanreport.baseline.facts import DOCUMENT, Outcome
from wanreport.baseline.ledger import SIGNS


def test_every_fact_has_one_outcome_and_what_is_right_instead(ledger):
    for name, entry in ledger.items():
        outcome, _ = ledger.became(name)
        assert outcome in SIGNS and bool(entry.rests_on) == (outcome == Outcome.FALLS)
        assert all(ledger[root].outcome == Outcome.FALSE for root in entry.rests_on)
        contradicted = any(v.outcome == Outcome.FALSE for v in entry.verdicts)
        assert contradicted == (outcome == Outcome.FALSE)
    for name, outcome, instead in (
        ("s3.2.denoise.delta", Outcome.HOLDS, ""), ("s3.2.step.old", Outcome.HOLDS, ""),
        ("s4.1.data", Outcome.FALSE, "or 100.8\u00a0GB"),
        ("s6.1.new_all.g4", Outcome.FALLS, "219.3\u00a0GB"),
        ("s6.1.old_each.g6", Outcome.FALSE, "9.6\u00a0GB"),
        ("s9.3.b.vram", Outcome.FALSE, "+5.6\u00a0GB"), ("s10.streams", Outcome.OPEN, ""),
        ("s1.cluster", Outcome.UNKNOWN, ""),
    ):  # fmt: skip
        assert ledger.became(name) == (outcome, instead)


@pytest.fixture(scope="module")
def soup():
    return page(ROOT, "baseline")


def test_the_page_begins_with_the_answer_and_one_picture(ledger, soup):
    before = soup.h2.find_all_previous(["svg", "table"])
    assert [tag.name for tag in before].count("svg") == 1 and soup.table not in before
    words = soup.select_one(".answer").text.split()
    assert words[:4] == ["8", "of", "its", str(len(ledger.evidence["conclusions"]))]
    assert soup.select_one(".trust")


def test_every_fact_has_its_row_once_and_every_link_leads_to_one(ledger, soup):
    def bare(text):  # without the places where long words may break, and markup
        return " ".join(re.sub(r"\u200b|\*\*|`", "", text).split())

    facts, shown = ledger.facts, {row["id"]: row for row in soup.find_all("tr", id=True)}
    assert list(shown) == list(facts) and len(facts) == 429 == len(soup.find_all("tr", id=True))
    for name, row in shown.items():
        _, quote, claim, judged, working = (bare(each.text) for each in row.find_all(["th", "td"]))
        assert quote == bare(facts[name].quote) and claim.endswith(bare(facts.text(name)))
        assert working and all(root in judged for root in ledger[name].rests_on)
    assert {tag["href"][1:] for tag in soup.select('a[href^="#s"]')} <= set(facts)
    text = " ".join(tag.text for tag in soup.select("table, p, figcaption, summary"))
    assert not re.search(r"\{=|\{s\d|\{wan|:\.\df\}", text), "a template is left"


@pytest.mark.slow
def test_a_changed_fact_changes_the_page_and_no_records_are_needed(soup, tmp_path):
    facts = shutil.copytree(DOCUMENT, tmp_path / "facts")
    path = facts / "03-benchmarks.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("denoise.old, value: 714.1", "denoise.old, value: 700.0"))
    given = {"facts_path": str(facts), "results_dirs": [str(tmp_path)]}
    changed = page(ROOT, "baseline", **given)
    row = changed.find("tr", id="s3.2.denoise.delta")
    assert "+88.2\u00a0s" in row.text and "+88.2\u00a0s" not in soup.text
    assert len(changed.find_all("tr", id=True)) == len(soup.find_all("tr", id=True))
