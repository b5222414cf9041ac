"""Tables, words for numbers, statistics, and text that must not become markup."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from wanreport import tables
from wanreport.tables import Cell, Column, estimate, html_table

HOSTILE = '<script>alert("1")</script> & "quotes" \'single\' <img src=x onerror=alert(1)>'


def parse(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def test_a_table_is_semantic_and_scrolls_in_a_named_region() -> None:
    soup = parse(html_table([{"a": "x", "b": 1}], ["a", Column("b", "B", "GB")], caption="Sizes"))
    box = soup.find("div", class_="table-box")
    assert box is not None
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", "Sizes")
    assert soup.find("caption").get_text().startswith("Sizes")
    assert [th["scope"] for th in soup.select("thead th")] == ["col", "col"]
    assert soup.select_one("tbody th")["scope"] == "row"
    assert soup.select_one("thead .unit").get_text() == "GB"
    assert "kind-measured" in soup.table["class"]


@pytest.mark.parametrize("place", ["caption", "note", "heading", "unit", "value", "text", "title"])
def test_everything_is_escaped(place: str) -> None:
    texts = dict.fromkeys(("caption", "note", "heading", "unit", "value", "text", "title"), "x")
    texts[place] = HOSTILE
    special = Cell(1, text=texts["text"], title=texts["title"])
    html = html_table(
        [{"k": "first", "v": texts["value"], "w": special}],
        ["k", Column("v", texts["heading"], texts["unit"]), Column("w", "W")],
        caption=texts["caption"],
        note=texts["note"],
    )

    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    tags = Tags()
    tags.feed(html)
    assert not {"script", "img"} & tags.seen
    assert HOSTILE in parse(html).get_text() or place == "title"
    if place == "title":
        assert parse(html).find(title=HOSTILE) is not None


def test_a_missing_value_says_why() -> None:
    def said(kind: tables.Kind) -> str:
        html = html_table([{"a": "x"}], ["a", Column("b", "B")], caption="c", kind=kind)
        cell = parse(html).td
        assert "missing" in cell["class"]
        return cell.get_text()

    assert said("measured") == "— not measured"
    assert said("quoted") == "— not reported"
    html = html_table([{"a": Cell(None, text="no record")}], ["a"], caption="c")
    assert "no record" in html


def test_a_cell_of_another_kind_is_marked() -> None:
    row = {"a": "x", "b": Cell(1, kind="quoted")}
    html = html_table([row], ["a", Column("b", "B")], caption="c")
    assert "kind-quoted" in parse(html).td["class"]
    with pytest.raises(ValueError, match="kind must be one of"):
        html_table([], ["a"], caption="c", kind="guessed")  # type: ignore[arg-type]


def test_a_table_of_no_kind_has_no_badge() -> None:
    html = html_table([{"a": "x", "b": Cell(1, kind="quoted")}], ["a", "b"], caption="c", kind=None)
    soup = parse(html)
    assert soup.table["class"] == ["data"] and soup.caption.get_text() == "c"
    assert "kind-quoted" in soup.td["class"]


def test_a_table_without_rows_says_so() -> None:
    assert "nothing to show" in html_table([], ["a", "b"], caption="c")


def test_the_legend_names_every_kind() -> None:
    soup = parse(tables.kind_legend())
    assert {b.get_text() for b in soup.select(".badge")} == set(tables.KINDS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (-3, "−3"),
        (21.6, "21.60"),
        (12345.678, "12,346"),
        (0.000123456, "0.0001235"),
        (0.0, "0"),
        ([1, "a"], "1, a"),
    ],
)
def test_plain_values(value: object, text: str) -> None:
    assert tables.plain(value) == text


def test_units_are_always_written() -> None:
    assert tables.gigabytes(22_880_000_000) == "22.88 GB"
    assert tables.gibibytes(22_880_000_000) == "21.31 GiB"
    assert tables.gigabytes(0) == "0 B"
    assert tables.gigabytes(999) == "999 B"
    assert tables.gigabytes(40_960) == "40.96 kB"
    assert tables.seconds(21.6) == "21.60 s"
    assert tables.seconds(0.0123) == "12.30 ms"
    assert tables.overhead(0.091) == "+9.1\u00a0%" and tables.overhead(-0.123) == "−12\u00a0%"
    assert tables.overhead(1e-6) == "0\u00a0%"
    assert tables.counted(1, "copy", "copies") == "1 copy"
    assert tables.counted(2, "copy", "copies") == "2 copies"


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [
        (2.77656, 2.78543, "−0.009 s"),
        (6.4980, 6.4603, "+0.038 s"),
        (9.9996, 9.1234, "+0.88 s"),  # shown as 10.00 and 9.123
        (113.97, 89.07, "+24.9 s"),
        (1234.5, 12345.6, "−11,111 s"),
        (0.0123456, 20.0, "−19.99 s"),
        (21.6001, 21.6, "0.00 s"),
        (3.0, 0.0, "+3.000 s"),
        (0.0, 0.0, "0 s"),
    ],
)
def test_a_difference_is_no_finer_than_what_it_is_of(new: float, old: float, text: str) -> None:
    assert tables.signed(new, old, "s") == text


def test_a_difference_has_the_digits_and_the_unit_that_are_asked_for() -> None:
    assert tables.signed(1.2345, 1.2, "", 3) == "+0.03"
    assert tables.signed(2.0, 1.2345, "GB", 2) == "+0.8 GB"


@given(st.floats(min_value=1e-6, max_value=1e12), st.integers(min_value=1, max_value=6))
def test_rounding_keeps_the_value(value: float, digits: int) -> None:
    text = tables.significant(value, digits)
    assert "e" not in text
    read = float(text.replace(",", ""))
    assert math.isclose(read, value, rel_tol=0.51 * 10 ** (1 - digits), abs_tol=1e-9)


def coverage(n: int, k: int) -> float:
    """Probability that the pair of k-th order statistics of n samples encloses the median."""
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n


@pytest.mark.parametrize("n", range(1, 60))
def test_the_interval_covers_at_least_95_per_cent_and_no_narrower_one_does(n: int) -> None:
    found = estimate(float(i) for i in range(1, n + 1))
    assert found.n == n
    assert found.median == (n + 1) / 2
    if found.low is None or found.high is None:
        assert coverage(n, 1) < 0.95
        return
    k = int(found.low)
    assert found.high == n + 1 - k
    assert coverage(n, k) >= 0.95 > coverage(n, k + 1)


def test_an_estimate_names_n_and_gives_no_interval_where_there_is_none() -> None:
    assert estimate([]).median is None
    assert estimate([3.0, 1.0, 2.0]).text() == "2.000 s, n = 3"
    assert estimate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).text("s", 2) == "3.5 s [1.0, 6.0], n = 6"


def rendered(markdown: str) -> BeautifulSoup:
    from nbconvert.filters import markdown2html

    return parse(markdown2html(markdown))


HOSTILE_MARKDOWN = [
    HOSTILE,
    "# heading",
    "- item",
    "1. item",
    "a\n\n# b",
    "*a* _b_ **c** `d` ~~e~~",
    "[text](javascript:alert(1)) ![x](y)",
    "<https://example.invalid> https://example.invalid",
    "$x$ \\(y\\)",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "``` \ncode",
    "&lt;b&gt;",
    "a_b_c",
    "---",
    "===",
    "> quote",
]


@pytest.mark.parametrize("text", HOSTILE_MARKDOWN)
def test_escaped_text_shows_as_it_is_in_prose(text: str) -> None:
    for shown in (tables.markdown(text), f"**Said.** {tables.markdown(text)} and on"):
        soup = rendered(shown)
        assert {tag.name for tag in soup.find_all(True)} <= {"p", "strong"}
        assert " ".join(text.split()) in soup.get_text()


@pytest.mark.parametrize("text", [*HOSTILE_MARKDOWN, "`", "a``b`", "`a`"])
def test_inline_code_shows_as_it_is(text: str) -> None:
    soup = rendered(f"Run {tables.code(text)} now.")
    assert {tag.name for tag in soup.find_all(True)} <= {"p", "code"}
    assert soup.code.get_text().strip() == " ".join(text.split())
