"""The index: every job has a row, and says in it what it may say."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic
from bs4 import BeautifulSoup

from tests.reading import beside
from wanreport import index


def row(name: str, record: dict[str, Any] | None, **more: Any) -> index.Row:
    engine, gpus, _, _ = synthetic.BASELINE[name]
    return index.Row(name, engine, gpus, record, f"jobs/{name}.html", **more)


def page(*rows: index.Row, pages: tuple[tuple[str, str, bool], ...] = ()) -> BeautifulSoup:
    return BeautifulSoup(index.index_html(rows, pages), "html.parser")


def said(soup: BeautifulSoup, name: str) -> str:
    return " ".join(beside(str(soup), name))


def test_an_index_of_rehearsals_says_so_first() -> None:
    soup = page(*(row(n, synthetic.record(n)) for n in ("new-4gpu", "pure-4gpu")))
    assert soup.main.get_text().strip().startswith("Rehearsal.")
    mixed = page(
        row("new-4gpu", synthetic.record("new-4gpu")),
        row("pure-4gpu", synthetic.record("pure-4gpu", scale="a14b")),
    )
    assert not mixed.main.get_text().strip().startswith("Rehearsal.")
    cannot = synthetic.record("new-4gpu", status="unsupported")
    assert not page(row("new-4gpu", cannot)).main.get_text().strip().startswith("Rehearsal.")


def test_a_rehearsal_shows_no_time_and_no_memory() -> None:
    soup = page(row("new-4gpu", synthetic.record("new-4gpu")))
    heads = [th.get_text(" ") for th in soup.find_all("th", scope="col")]
    assert not any("Step" in head or "memory" in head for head in heads)
    assert "equal" in said(soup, "new-4gpu")


def test_full_scale_shows_step_memory_and_bytes() -> None:
    soup = page(row("new-4gpu", synthetic.record("new-4gpu", scale="a14b")))
    assert "n\u00a0=\u00a0" in soup.get_text()
    assert said(soup, "new-4gpu").count("GB") == 2


def test_bits_are_compared_with_resident_in_the_same_setting() -> None:
    soup = page(
        row("new-4gpu", synthetic.record("new-4gpu")),
        row("old-4gpu-swap", synthetic.record("old-4gpu-swap", latents="others")),
        row("pure-4gpu", synthetic.record("pure-4gpu")),
        row("new-6gpu", synthetic.record("new-6gpu")),
        row("old-6gpu-swap", synthetic.record("old-6gpu-swap")),
    )
    assert "identical" in said(soup, "new-4gpu")
    assert "differ" in said(soup, "old-4gpu-swap")
    assert "reference" in said(soup, "pure-4gpu")
    assert "no resident run; identical to 1 other" in said(soup, "new-6gpu")


@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "unsupported"])
def test_a_job_that_failed_keeps_its_row_with_reason_and_hint(status: str) -> None:
    record = synthetic.record("new-4gpu", status=status, reason="<b>why</b>", hint="do this")
    soup = page(row("new-4gpu", record), row("new-6gpu", None))
    text = said(soup, "new-4gpu")
    assert "<b>why</b>" in text
    assert "do this" in text
    assert soup.find("span", class_=["badge", status])
    assert "wanreport run" in said(soup, "new-6gpu")
    assert "2 jobs: 1" in soup.main.get_text()


def test_pages_are_linked_and_a_failed_one_says_so() -> None:
    soup = page(pages=(("baseline", "baseline.html", False), ("extra", "extra.html", True)))
    cards = {a["href"]: a.get_text(" ") for a in soup.select(".cards a")}
    assert set(cards) == {"baseline.html", "extra.html", "#jobs"}
    assert "incomplete" in cards["extra.html"]
