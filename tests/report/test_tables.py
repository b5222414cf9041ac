"""DataFrames as HTML tables: units, kinds, missing values, links, and text that stays text."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbconvert.filters import markdown2html

from wanreport.report import style
from wanreport.report.tables import MOST_CARDS, table
from wanreport.words import interval, plain, share

HOSTILE = '<script>alert("1")</script> & "quotes" \'single\' <img src=x onerror=alert(1)>'
MINUS, NBSP = "\u2212", "\u00a0"


def soup(df, *columns, **options):
    options = {"caption": "c"} | options
    return BeautifulSoup(table(df, *columns, **options), "html.parser")


def cells(df, name, **options):
    """The texts of one column, which is not the first."""
    shown = soup(df.assign(first="x"), ["first", name], **options)
    return [td.get_text(" ", strip=True) for td in shown.select("tbody td")]


def test_a_table_is_semantic_and_scrolls_in_a_named_region():
    shown = soup(pd.DataFrame({"a": ["x"], "step_s": [1.5]}), caption="Sizes", note="n = 3")
    box = shown.find("div", class_="table-box")
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", "Sizes")
    assert shown.find("caption").get_text().split() == ["Sizes", "measured"]
    assert [th["scope"] for th in shown.select("thead th, tbody th")] == ["col", "col", "row"]
    assert shown.select_one("thead .unit").get_text() == "s"
    assert "style" not in shown.table.attrs  # it has no use but on a card
    card = soup(pd.DataFrame({"a": ["a word " * 10], "step_s": [1.5]}), {"a": "it's", "step_s": ""})
    assert card.select("div.cards") and card.table["style"] == "--c1:'it’s';--c2:'step, s';"
    wide = {f"a{n}": ["a word " * 10] for n in range(MOST_CARDS + 1)}
    assert not soup(pd.DataFrame(wide)).select("div.cards")
    assert shown.select_one(".table-note").get_text() == "n = 3"


def test_columns_pick_order_and_title():
    df = pd.DataFrame({"a_ms": [1.0], "b": ["x"], "c": [2]}, index=["ignored"])
    heads = [th.get_text() for th in soup(df, {"b": "Bee", "a_ms": ""}).select("thead th")]
    assert heads == ["Bee", "a ms"]
    with pytest.raises(KeyError, match="'d'"):
        table(df, ["d"], caption="c")
    with pytest.raises(KeyError, match="'d'"):
        table(df, ["b"], caption="c", links={"b": "d"})


@pytest.mark.parametrize(("name", "unit", "value", "text"), [
    ("step_s", "s", 4.5071, "4.507"), ("step_ms", "ms", 1226.2, "1,226"),
    ("peak_bytes", "GB", 60_840_000_000, "60.84"), ("peak_gib", "GiB", 1.344, "1.344"),
    ("link_gb_s", "GB/s", 54.85, "54.85"), ("sm_mhz", "MHz", 1905.0, "1,905"),
    ("power_w", "W", 686.29, "686.3"), ("hidden_pct", "%", 50.71, "50.71"),
    ("celsius", "°C", 63.0, "63"), ("difference_s", "s", 0.2714, "+0.2714"),
    ("difference_bytes", "GB", -2e9, f"{MINUS}2"), ("overhead", "", 0.0652, f"+6.5{NBSP}%"),
    ("drift_run", "", -0.0061, f"{MINUS}0.6{NBSP}%"), ("error", "", 0.47, f"+47{NBSP}%"),
    ("spread", "", 0.038, f"3.8{NBSP}%"), ("hidden_share", "", 0.507, f"50.7{NBSP}%"),
    ("beside_x", "×", 1.297, "1.297"), ("allowance", "", 0.029, f"±2.9{NBSP}%"),
    ("tokens", "", 32760, "32,760"), ("step_s", "s", 0.0, "0"),
])  # fmt: skip
def test_the_name_of_a_column_tells_its_unit(name, unit, value, text):
    shown = soup(pd.DataFrame({"first": ["x"], name: [value]}))
    assert shown.td.get_text() == text
    assert [u.get_text() for u in shown.select("thead .unit")] == ([unit] if unit else [])
    assert "num" in shown.td["class"]


@pytest.mark.parametrize(("values", "texts", "options"), [
    ([4.507, 4.8, 183.2], ["4.507", "4.800", "183.200"], {}),
    ([22.5, 31.0, 0.0012], ["22.50", "31.00", "0.00120"], {}),  # far below the others
    (["text", 4.50712, 7800, 0.5], ["text", "4.507", "7,800", "0.5000"], {}),
    (pd.array([1, 7800, None], dtype="Int64"), ["1", "7,800", "— not measured"], {}),
    ([1.0, 21.64, 0.1], ["1", "21.64", "0.1"], {"kind": "quoted"}),  # keep their digits
    ([True, False, None], ["✓ yes", "✗ no", "— not measured"], {}),
    (np.array([True]), ["✓ yes"], {}),
    ([["a", "b"], []], ["a, b", "— not measured"], {}),
    *(([nothing], [f"— {why}"], {"kind": kind})
      for nothing in (None, float("nan"), pd.NA, np.nan, pd.NaT)
      for kind, why in ((None, "not measured"), ("quoted", "not reported"))),
])  # fmt: skip
def test_values_as_text(values, texts, options):
    dtype = object if isinstance(values, list) else None
    df = pd.DataFrame({"x_s": pd.Series(values, dtype=dtype)})
    assert cells(df, "x_s", **options) == texts


def test_intervals_stand_below_their_value():
    df = pd.DataFrame({"step_s": [4.5071, 4.8], "step_low_s": [4.492, np.nan],
                       "step_high_s": [4.5214, np.nan], "step_n": [6, 3]})  # fmt: skip
    said = cells(df, "step_s", interval=["step_s"])
    assert said == [f"4.507 [4.492, 4.521] n{NBSP}={NBSP}6", f"4.800 n{NBSP}={NBSP}3"]
    head = soup(df.assign(step_n=6, a="x"), ["a", "step_s"], interval=["step_s"])
    units = [unit.get_text() for unit in head.select("thead .unit")]
    assert units == ["s", f"[95{NBSP}%], n{NBSP}={NBSP}6"]
    assert "n" not in head.small.get_text()
    df = pd.DataFrame({"overhead": [0.0652], "overhead_low": [-0.001], "overhead_high": [0.07]})
    (said,) = cells(df, "overhead", interval=["overhead"])
    assert said == f"+6.5{NBSP}% [{MINUS}0.1{NBSP}%, +7.0{NBSP}%]"


def test_kinds_differ_by_table_column_and_row():
    df = pd.DataFrame({"a": ["x", "y"], "b_s": [1.0, 2.0], "c_s": [3.0, 4.0],
                       "how": ["measured", "predicted"]})  # fmt: skip
    shown = soup(df, ["a", "b_s", "c_s"], kinds={"b_s": "how", "c_s": "quoted"})
    assert shown.table["class"] == ["data", "kind-measured"]
    looks = [[c for c in td["class"] if "kind" in c] for td in shown.select("tbody td")]
    assert looks == [[], ["kind-quoted"], ["kind-predicted"], ["kind-quoted"]]
    assert [b.get_text() for b in shown.select(".badge")] == ["measured", "quoted"]
    assert not soup(df, ["a"], kind=None).select(".badge")
    for wrong in ({"kind": "guessed"}, {"kinds": {"b_s": "guessed"}}):
        with pytest.raises(ValueError, match="guessed"):
            soup(df, **wrong)


def test_links_colours_badges_anchors_cards_and_folds():
    df = pd.DataFrame({"name": ["SGLang 0.5.23", "?"], "engine": ["sglang", "?"],
                       "to": ["jobs/x.html#a:b", None], "status": ["ok", "not measured"],
                       "key": ["row-1", "row-2"]})  # fmt: skip
    shown = soup(df, ["name", "status"], links={"name": "to"}, anchor="key", fold="More")
    assert [a["href"] for a in shown.select("a")] == ["jobs/x.html#a:b"]
    paint = [f"background:{colour}" for colour in (style.ENGINES["sglang"], style.FALLBACK)]
    assert [swatch["style"] for swatch in shown.select("th b")] == paint
    assert [badge["class"][1] for badge in shown.select("td .badge")] == ["ok", "not-measured"]
    assert [row["id"] for row in shown.select("details tbody tr")] == ["row-1", "row-2"]
    assert shown.select_one("details > summary").get_text() == "More"
    plain_ = soup(df[["name", "key"]])
    assert not plain_.select("b, a, details, .cards, [id]")
    assert soup(pd.DataFrame({"a": ["long " * 20]})).select(".cards")
    empty = soup(pd.DataFrame(), {"a": "A", "b": "B"}, empty="None.")
    assert (empty.td["colspan"], empty.td.get_text()) == ("2", "None.")


@pytest.mark.parametrize("rows", [1, 0])
def test_everything_is_escaped(rows):
    df = pd.DataFrame(dict.fromkeys(["a", "status", "id", "to", "kind"], [HOSTILE]))
    texts = dict.fromkeys(["caption", "note", "fold", "empty"], HOSTILE)
    shown = soup(df.head(rows), {"a": HOSTILE, "status": "s"}, anchor="id", links={"a": "to"},
                 kinds={"status": "kind"}, **texts)  # fmt: skip
    assert not shown.find_all(["script", "img"])
    assert not [name for tag in shown.find_all(True) for name in tag.attrs if name[:2] == "on"]


def test_words_for_prose():
    assert share(0.507) == f"50.7{NBSP}%" and share(1.0) == f"100{NBSP}%" and share(None) == "—"
    said = f"4.507{NBSP}s [4.492, 4.521], n{NBSP}={NBSP}24"
    assert interval(4.5071, 4.492, 4.5214, 24) == said
    assert interval(4.5071, np.nan, np.nan) == f"4.507{NBSP}s"


@pytest.mark.parametrize("text", [
    HOSTILE, "# heading", "1. item", "- item", "a_b_c*d*", "[x](javascript:alert(1))", "`code`",
    "https://x.org", "a\n\n# b", "a | b", "+ x", "=== ", "&lt;b&gt;", "é ü × –",
])  # fmt: skip
def test_plain_text_stays_plain_in_markdown(text):
    for markdown in (plain(text), f"before {plain(text)} after"):
        shown = BeautifulSoup(markdown2html(markdown), "html.parser")
        assert {tag.name for tag in shown.find_all(True)} <= {"p"}
        assert " ".join(text.split()) in shown.get_text()
