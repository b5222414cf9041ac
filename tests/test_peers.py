"""The page's section on peers: tables, the crossover map, plans and single settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from tests import campaigns as made
from wanreport import crossover, peers
from wanreport.answers import NotAnswerable
from wanreport.notebook import Stop, svg
from wanreport.peers import Found

DEAR = {7800: 1.085, 14040: 1.024, 32760: 1.004, 75600: 1.001}
LONG = {7800: 194.1, 14040: 367.8, 32760: 1082.4, 75600: 3560.5}


def found(**options: Any) -> list[Found]:
    return [(Path("results/x/benchmarks/one.json"), made.campaign(**options))]


def cells(table: str) -> list[dict[str, str]]:
    """Rows of a table, as text by heading."""
    soup = BeautifulSoup(table, "html.parser")
    heads = [head.find(string=True).strip() for head in soup.select("thead th")]  # type: ignore[union-attr]
    return [
        dict(zip(heads, [c.get_text(" ") for c in line.find_all(["th", "td"])], strict=True))
        for line in soup.select("tbody tr")
    ]


def engines(here: list[Found]) -> dict[tuple[str, str], dict[str, str]]:
    (path, report), *_ = here
    return {(c["engine"], c["tokens"]): c for c in cells(peers.engines_table(path, report))}


def test_each_engine_has_its_step_its_ratios_and_its_limit() -> None:
    here = found()
    rows = engines(here)
    assert len(rows) == 3 * len(made.LABELS)
    one = rows["layerwise:prefetch=1", "7,800"]
    assert re.fullmatch(r"233\.0 ms \[232\.\d, 233\.\d\], n = 7", one["step"])
    assert one["to resident"] == "1.200, 1.198 ×"
    assert one["moved"] == "13.36 GB"
    assert one["to its limit"] == "0.958 × of 243.3 ms"  # 19 blocks at 54.9 GB/s
    assert (one["device"], one["pinned"], one["bits"]) == ("1.406 GB", "14.06 GB", "✓")
    peer = rows["diffusers (peer)", "7,800"]
    assert peer["moved"] == "14.06 GB"
    table = peers.engines_table(*here[0])
    assert 'class="engine engine-diffusers"' in table and 'class="engine engine-stream"' in table
    assert "14,040 tokens +0.20 %" in table and "the link 0 %" in table


def test_what_did_not_run_is_a_row_with_its_reason() -> None:
    rows = engines(found(status={"sglang:prefetch=1": "absent", "fsdp": "oom"}))
    assert rows["sglang:prefetch=1 (peer)", "7,800"]["note"] == "absent: made up: absent"
    assert rows["fsdp", "7,800"]["note"] == "oom: made up: oom"
    assert rows["fsdp", "7,800"]["step"].endswith("not measured")


def test_without_resident_there_are_times_but_no_ratios() -> None:
    here = found(status={"resident": "not run", "resident again": "not run"})
    assert engines(here)["planned", "7,800"]["to resident"].endswith("not measured")
    assert "not measured, as resident did not run first and last" in peers.engines_table(*here[0])
    _, words = crossover.draw(here)
    assert "at 7,800 tokens planned, 195.2 ms;" in words


def test_other_bits_show() -> None:
    here = found()
    rows = here[0][1]["rows"]
    next(r for r in rows if r["label"] == "fsdp")["ranks"][1]["output_sha256"] = "f" * 64
    assert engines(here)["fsdp", "7,800"]["bits"] == "✗ differs"


def test_on_a_cpu_there_are_bits_and_no_times() -> None:
    here = found(device="cpu", machine="CPU, 2 cores", transport=[], resident_ms={27: 123.456})
    row = engines(here)["planned", "27"]
    assert set(row) == {"engine", "tokens", "bits", "note"} and row["bits"] == "✓"
    assert "no times are claimed" in peers.engines_table(*here[0])
    assert "*Not measured.*" in peers.at_hand(here) and "*Not measured.*" in peers.at_hand([])
    assert peers.foretold(here) == [] and peers.foretold_tables(here) == []
    for refused in (crossover.draw, peers.foretold_sentence, peers.ablation_tables):
        with pytest.raises(NotAnswerable):
            refused(here)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "SHM/direct/direct (through host memory)"),
        ({"transport": ["P2P/CUMEM"]}, "P2P/CUMEM (from GPU to GPU)"),
        ({"transport": None}, "was not recorded"),
        ({"transport": []}, "its log names no transport"),
        ({"ranks": 1, "machine": made.H200}, "one rank, no collectives"),
    ],
)
def test_the_conditions_say_what_collectives_went_over(options: dict[str, Any], said: str) -> None:
    table = peers.conditions_table(*found(**options)[0])
    assert said in table
    for fact in ("580; 13.0", "54.9 GB/s first, last 54.9 GB/s", "sglang 0.5.23", "c" * 12,
                 "results/x/benchmarks/one.json"):  # fmt: skip
        assert fact in table


# The crossover map -------------------------------------------------------------------------------


def test_the_map_names_the_fastest_that_moves_weights_and_what_it_costs() -> None:
    keeps = "stream:slots=0,residents=20"  # all on the device: stands outside, as resident does
    here = found(factors={**made.LABELS, "planned": DEAR, "fsdp": 1.02, "swap": 1.0, keeps: 1.0},
                 resident_ms=LONG)  # fmt: skip
    (line,) = crossover.spots(here).values()
    assert [(s.tokens, s.row["label"]) for s in line] == [
        (7800, "fsdp"), (14040, "fsdp"), (32760, "planned"), (75600, "planned")
    ]  # fmt: skip
    assert [round(s.cost or 0, 3) for s in line] == [0.02, 0.02, 0.004, 0.001]
    table = cells(crossover.tables(here)[0])
    assert table[0]["fastest"] == "fsdp" and table[0]["over resident"] == "+2.0 %"
    assert table[0]["next engine"] == "planned +8.5 % intervals apart"
    assert table[2]["campaign"] == "one, 20 blocks"


def test_the_map_draws_each_cell_and_where_the_cost_falls_below_a_hundredth() -> None:
    here = found(factors={**made.LABELS, "planned": DEAR}, resident_ms=LONG)
    figure, words = crossover.draw(here)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["+8.5 %", "+2.4 %", "+0.4 %", "+0.1 %"]
    assert "at 14,040 tokens planned, +2.4 % over resident" in words
    assert "falls below 1 % between 14,040 and 32,760 tokens, interpolated at 25,000" in words
    assert any(line.get_linewidth() == 3 for line in axes.lines)
    assert "25,000" in crossover.tables(here)[0]
    assert svg(figure) == svg(crossover.draw(here)[0])


@pytest.mark.parametrize(
    ("costs", "crossing"),
    [
        ([1.5, 1.02, 1.000], (14040, 32760)),
        ([1.5, 1.02, 1.01], None),
        ([1.001, 1.001, 1.001], None),
        ([1.02, 1.001, 1.02], None),
        ([1.02, 1.001, 1.0], (7800, 14040)),
    ],
)
def test_a_crossing_is_only_claimed_between_two_measurements(
    costs: list[float], crossing: tuple[int, int] | None
) -> None:
    factors = dict(zip((7800, 14040, 32760), costs, strict=True))
    here = found(factors={"resident": 1.0, "planned": factors})
    (line,) = crossover.spots(here).values()
    cheap = crossover.cheap_from(line)
    assert (cheap and cheap[:2]) == crossing
    if cheap:
        assert cheap[0] < cheap[2] < cheap[1]


def test_campaigns_of_one_setting_make_one_line_of_the_map() -> None:
    longest = made.campaign(blocks=8, resident_ms={75600: 1424.0})
    here = [*found(), (Path("e.json"), longest), *found(branches=2)]
    lines = crossover.spots(here)
    assert [len(line) for line in lines.values()] == [4, 3]
    first = next(iter(lines.values()))
    assert [s.report["settings"]["blocks"] for s in first] == [20, 20, 20, 8]
    assert list(lines)[0].endswith("2 ranks, 1 branch")


# Plans and single settings -----------------------------------------------------------------------


def test_plans_are_held_against_the_measured_step_and_the_best_fixed_setting() -> None:
    fixed = {"stream:slots=2": 1.0, "stream:slots=3": 1.1, "stream:slots=3,residents=16": 0.9}
    here = found(factors=made.LABELS | fixed)
    plans = peers.foretold(here)
    assert [plan.error for plan in plans] == [pytest.approx(0.02, abs=1e-3)] * 3
    # 19 buffers do not fit the plan's room of 4 blocks, so the third one is no rival.
    assert {plan.best["label"] for plan in plans if plan.best} == {"stream:slots=2"}
    assert plans[0].behind == pytest.approx(0.005)
    said = peers.foretold_sentence(here)
    assert "Over 3 cells the prediction is off by 2.0 % in the median and by 2.0 % at worst" in said
    assert "In 3 of 3 the plan was slower than the best fixed setting beside it, at most by" in said
    row = cells(peers.foretold_tables(here)[0])[0]
    assert row["prediction"].strip() == "+2.0 %"
    assert row["plan"].split()[:2] == ["+0.50", "%"]
    better = peers.foretold_sentence(found(factors=made.LABELS | {"stream:slots=2": 1.2}))
    assert "In none of 3 was the plan slower" in better
    assert "No fixed setting" in peers.foretold_sentence(found())


def test_settings_are_compared_where_only_one_differs() -> None:
    here = found(factors=made.LABELS | made.ABLATED, resident_ms={7800: 194.1})
    rows = {c["what changed"]: c for c in cells(peers.ablation_tables(here)[0])}
    assert {what.replace("\u00a0", " ") for what in rows} == {
        "windows: 65.5 kB + 131 kB + 65.5 kB → off", "copy_streams: 1 → 2",
        "branches_per_visit: 2 → 1",
    }  # fmt: skip
    by_key = {what.partition(":")[0]: row for what, row in rows.items()}
    assert by_key["windows"]["change"] == "+8.9 % intervals apart"
    assert by_key["copy_streams"]["change"] == "+0.0099 % intervals overlap"
    assert {row["the base"] for row in rows.values()} == {made.BASE}


def test_two_differences_at_once_are_no_ablation() -> None:
    two = {"resident": 1.0, "stream:slots=2": 1.0, "stream:slots=3,shard=true": 1.0}
    assert peers.ablations(found(factors=two)[0][1]) == []
    # Of two alike the one nearer to the defaults is the base.
    pair = {"stream:slots=2,priority=-1": 1.0, "stream:slots=2": 1.0}
    (base, _, key), *_ = peers.ablations(found(factors=pair)[0][1])
    assert (key, base["label"]) == ("priority", "stream:slots=2")


# Files -------------------------------------------------------------------------------------------


def test_a_project_has_its_campaigns_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    for branches in (2, 1):
        made.write(made.campaign(branches=branches), tmp_path / "results", f"b{branches}")
    loaded = peers.load_campaigns(["results", "results/local"])
    slug = loaded[0][1]["machine"]["slug"]
    assert [path.as_posix() for path, _ in loaded] == [
        f"results/{slug}/benchmarks/{name}.json" for name in ("b1", "b2")
    ]
    assert [len(here) for here in peers.by_machine(loaded).values()] == [2]
    (tmp_path / loaded[0][0]).write_text("{")
    with pytest.raises(Stop, match="b1.json: is no valid JSON"):
        peers.load_campaigns(["results"])
