"""DataFrames as HTML tables: units, kinds, missing values, links, and text that stays text."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag

from wanreport.report import style
from wanreport.report.tables import table
from wanreport.words import interval, plain, share

HOSTILE = '<script>alert("1")</script> & "quotes" \'single\' <img src=x onerror=alert(1)>'
MINUS, NBSP = "\u2212", "\u00a0"


def soup(df: pd.DataFrame, *columns: Any, **options: Any) -> BeautifulSoup:
    options = {"caption": "c"} | options
    return BeautifulSoup(table(df, *columns, **options), "html.parser")


def cells(df: pd.DataFrame, name: str, **options: Any) -> list[str]:
    """The texts of one column, which is not the first."""
    shown = soup(df.assign(first="x"), ["first", name], **options)
    return [td.get_text(" ", strip=True) for td in shown.select("tbody td")]


def one(found: Tag | None) -> Tag:
    assert found is not None
    return found


def test_a_table_is_semantic_and_scrolls_in_a_named_region() -> None:
    shown = soup(pd.DataFrame({"a": ["x"], "step_s": [1.5]}), caption="Sizes", note="n = 3")
    box = one(shown.find("div", class_="table-box"))
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", "Sizes")
    assert one(shown.find("caption")).get_text().split() == ["Sizes", "measured"]
    assert [th["scope"] for th in shown.select("thead th")] == ["col", "col"]
    assert one(shown.select_one("tbody th"))["scope"] == "row"
    assert one(shown.select_one("thead .unit")).get_text() == "s"
    assert one(shown.td)["data-label"] == "step, s"
    assert one(shown.select_one(".table-note")).get_text() == "n = 3"
    assert not shown.find_all(["script", "style"])


def test_columns_pick_order_and_title() -> None:
    df = pd.DataFrame({"a_ms": [1.0], "b": ["x"], "c": [2]}, index=["ignored"])
    heads = [th.get_text() for th in soup(df, {"b": "Bee", "a_ms": ""}).select("thead th")]
    assert heads == ["Bee", "a ms"]
    with pytest.raises(KeyError, match="'d'"):
        table(df, ["d"], caption="c")
    with pytest.raises(KeyError, match="'d'"):
        table(df, ["b"], caption="c", links={"b": "d"})


@pytest.mark.parametrize(
    ("name", "unit", "value", "text"),
    [
        ("step_s", "s", 4.5071, "4.507"),
        ("step_ms", "ms", 1226.2, "1,226"),
        ("peak_bytes", "GB", 60_840_000_000, "60.84"),
        ("peak_gib", "GiB", 1.344, "1.344"),
        ("link_gb_s", "GB/s", 54.85, "54.85"),
        ("sm_mhz", "MHz", 1905.0, "1,905"),
        ("power_w", "W", 686.29, "686.3"),
        ("hidden_pct", "%", 50.71, "50.71"),
        ("celsius", "°C", 63.0, "63"),
        ("difference_s", "s", 0.2714, "+0.2714"),
        ("difference_bytes", "GB", -2e9, f"{MINUS}2"),
        ("overhead", "", 0.0652, f"+6.5{NBSP}%"),
        ("drift_run", "", -0.0061, f"{MINUS}0.6{NBSP}%"),
        ("error", "", 0.47, f"+47{NBSP}%"),
        ("spread", "", 0.038, f"3.8{NBSP}%"),
        ("hidden_share", "", 0.507, f"50.7{NBSP}%"),
        ("beside_x", "×", 1.297, "1.297"),
        ("allowance", "", 0.029, f"±2.9{NBSP}%"),
        ("tokens", "", 32760, "32,760"),
        ("step_s", "s", 0.0, "0"),
    ],
)
def test_the_name_of_a_column_tells_its_unit(name: str, unit: str, value: float, text: str) -> None:
    shown = soup(pd.DataFrame({"first": ["x"], name: [value]}))
    assert one(shown.td).get_text() == text
    assert [u.get_text() for u in shown.select("thead .unit")] == ([unit] if unit else [])
    assert "num" in one(shown.td)["class"]


def test_a_column_shows_one_number_of_decimals() -> None:
    assert cells(pd.DataFrame({"x_s": [4.507, 4.8, 183.2]}), "x_s") == ["4.507", "4.800", "183.200"]
    # far below the others
    assert cells(pd.DataFrame({"x_s": [22.5, 31.0, 0.0012]}), "x_s")[-1] == "0.00120"
    mixed = pd.DataFrame({"x": ["text", 4.50712, 7800, 0.5]}, dtype=object)
    assert cells(mixed, "x") == ["text", "4.507", "7,800", "0.5000"]
    whole = pd.DataFrame({"n": pd.array([1, None, 7800], dtype="Int64")})
    assert cells(whole, "n")[::2] == ["1", "7,800"]


def test_quoted_numbers_keep_their_digits() -> None:
    df = pd.DataFrame({"x_s": [1.0, 21.64, 0.1]})
    assert cells(df, "x_s", kind="quoted") == ["1", "21.64", "0.1"]


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA, np.nan, pd.NaT])
def test_a_missing_value_says_why(nothing: Any) -> None:
    df = pd.DataFrame({"a": ["x"], "b_s": pd.Series([nothing], dtype=object)})
    for kind, why in ((None, "not measured"), ("quoted", "not reported")):
        cell = one(soup(df, kind=kind).td)
        assert cell.get_text(" ").split(maxsplit=1) == ["—", why]
        assert "missing" in cell["class"]
        assert one(cell.span)["class"] == ["visually-hidden"]


def test_yes_and_no_are_marks_with_words() -> None:
    assert cells(pd.DataFrame({"b": [True, False]}), "b") == ["✓ yes", "✗ no"]
    assert cells(pd.DataFrame({"b": np.array([True])}), "b") == ["✓ yes"]
    assert cells(pd.DataFrame({"b": [True, None]}, dtype=object), "b")[1].startswith("—")


def test_intervals_stand_below_their_value() -> None:
    df = pd.DataFrame({"step_s": [4.5071, 4.8], "step_low_s": [4.492, np.nan],
                       "step_high_s": [4.5214, np.nan], "step_n": [6, 3]})  # fmt: skip
    said = cells(df, "step_s", interval=["step_s"])
    assert said == [f"4.507 [4.492, 4.521] n{NBSP}={NBSP}6", f"4.800 n{NBSP}={NBSP}3"]
    head = soup(df.assign(step_n=6, a="x"), ["a", "step_s"], interval=["step_s"])
    assert [u.get_text() for u in head.select("thead .unit")] == [
        "s", f"[95{NBSP}%], n{NBSP}={NBSP}6"
    ]  # fmt: skip
    assert "n" not in one(head.select_one(".bounds")).get_text()
    df = pd.DataFrame({"overhead": [0.0652], "overhead_low": [-0.001], "overhead_high": [0.07]})
    assert cells(df, "overhead", interval=["overhead"]) == [
        f"+6.5{NBSP}% [{MINUS}0.1{NBSP}%, +7.0{NBSP}%]"
    ]


def test_kinds_differ_by_table_column_and_row() -> None:
    df = pd.DataFrame({"a": ["x", "y"], "b_s": [1.0, 2.0], "c_s": [3.0, 4.0],
                       "how": ["measured", "predicted"]})  # fmt: skip
    shown = soup(df, ["a", "b_s", "c_s"], kinds={"b_s": "how", "c_s": "quoted"})
    assert one(shown.table)["class"] == ["data", "kind-measured"]
    looks = [[c for c in td["class"] if "kind" in c] for td in shown.select("tbody td")]
    assert looks == [[], ["kind-quoted"], ["kind-predicted"], ["kind-quoted"]]
    assert [b.get_text() for b in shown.select(".badge")] == ["measured", "quoted"]
    assert not soup(df, ["a"], kind=None).select(".badge")
    with pytest.raises(ValueError, match="guessed"):
        table(df, caption="c", kind="guessed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guessed"):
        table(df, caption="c", kinds={"b_s": "guessed"})


def test_links_lead_to_pages() -> None:
    df = pd.DataFrame({"a": ["u", "v"], "to": ["jobs/x.html#a:b", None]})
    shown = soup(df, ["a"], links={"a": "to"})
    assert [a["href"] for a in shown.select("a")] == ["jobs/x.html#a:b"]
    assert [th.get_text() for th in shown.select("tbody th")] == ["u", "v"]


def test_engines_have_their_colour() -> None:
    df = pd.DataFrame({"name": ["SGLang 0.5.23", "?"], "engine": ["sglang", "?"]})
    shown = [swatch["style"] for swatch in soup(df, ["name"]).select(".swatch")]
    assert shown == [f"background:{c}" for c in (style.ENGINES["sglang"], style.FALLBACK)]
    assert not soup(df[["name"]]).select(".swatch")


def test_a_status_is_a_badge() -> None:
    df = pd.DataFrame({"a": ["x", "y"], "status": ["ok", "not measured"]})
    badges = soup(df, kind=None).select("td .badge")
    assert [badge["class"][1] for badge in badges] == ["ok", "not-measured"]


def test_long_text_is_read_as_cards_on_a_phone() -> None:
    assert soup(pd.DataFrame({"a": ["long " * 20]})).select(".cards")
    assert not soup(pd.DataFrame({"a": ["short"]})).select(".cards")


def test_a_table_folds_is_empty_and_has_anchors() -> None:
    df = pd.DataFrame({"a": ["x"], "key": ["row-1"]})
    folded = soup(df, ["a"], fold="More", anchor="key")
    assert one(folded.select_one("details > summary")).get_text() == "More"
    assert one(folded.select_one("details tbody tr"))["id"] == "row-1"
    empty = soup(pd.DataFrame(), {"a": "A", "b": "B"}, empty="None.")
    assert (one(empty.td)["colspan"], one(empty.td).get_text()) == ("2", "None.")


@pytest.mark.parametrize(
    "place", ["caption", "note", "title", "value", "row", "fold", "empty", "anchor", "link", "kind"]
)
def test_everything_is_escaped(place: str) -> None:
    text = dict.fromkeys(
        ("caption", "note", "title", "value", "row", "fold", "empty", "anchor", "link", "kind"), "x"
    ) | {place: HOSTILE}
    df = pd.DataFrame({"a": [text["row"]], "status": [text["value"]], "id": [text["anchor"]],
                       "to": [text["link"]], "kind": [text["kind"]]})  # fmt: skip
    html = table(
        df.head(0 if place == "empty" else 1), {"a": text["title"], "status": "s"},
        caption=text["caption"], note=text["note"], fold=text["fold"], empty=text["empty"],
        anchor="id", links={"a": "to"}, kinds={"status": "kind"},
    )  # fmt: skip

    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    tags = Tags()
    tags.feed(html)
    assert not {"script", "img"} & tags.seen


def test_words_for_prose() -> None:
    assert share(0.507) == f"50.7{NBSP}%" and share(1.0) == f"100{NBSP}%" and share(None) == "—"
    said = interval(4.5071, 4.492, 4.5214, 24)
    assert said == f"4.507{NBSP}s [4.492, 4.521], n{NBSP}={NBSP}24"
    assert interval(4.5071, math.nan, math.nan) == f"4.507{NBSP}s"


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "# heading", "1. item", "- item", "a_b_c*d*", "[x](javascript:alert(1))", "`code`",
     "https://x.org", "a\n\n# b", "a | b", "+ x", "=== ", "&lt;b&gt;", "é ü × –"],
)  # fmt: skip
def test_plain_text_stays_plain_in_markdown(text: str) -> None:
    from nbconvert.filters import markdown2html

    for markdown in (plain(text), f"before {plain(text)} after"):
        shown = BeautifulSoup(markdown2html(markdown), "html.parser")
        assert {tag.name for tag in shown.find_all(True)} <= {"p"}
        assert " ".join(text.split()) in shown.get_text()
