"""The page's section on peers: the crossover map, tables, plans and single settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import campaigns as made
from tests.reading import by_title
from wanreport import crossover, peers
from wanreport.answers import NotAnswerable
from wanreport.notebook import Stop, svg
from wanreport.peers import Found
from wanreport.tables import overhead

DEAR = {7800: 1.085, 14040: 1.024, 32760: 1.004, 75600: 1.001}
LONG = {7800: 194.1, 14040: 367.8, 32760: 1082.4, 75600: 3560.5}


def found(name: str = "one", **options: Any) -> list[Found]:
    return [(Path(f"results/x/benchmarks/{name}.json"), made.campaign(**options))]


def engines(here: list[Found]) -> dict[tuple[str, str], dict[str, str]]:
    (path, report), *_ = here
    return {(c["engine"], c["tokens"]): c for c in by_title(peers.engines_table(path, report))}


def test_each_engine_has_its_step_its_cost_and_its_limit() -> None:
    here = found()
    rows = engines(here)
    assert len(rows) == 3 * len(made.LABELS)
    one = rows["layerwise:prefetch=1", "7,800"]
    assert re.fullmatch(r"233\.0 ms \[232\.\d, 233\.\d\], n = 7", one["step"])
    assert one["to resident"] == "+20 %"
    assert one["to its limit"] == "0.958 × 243.3 ms, 13.36 GB"  # 19 blocks at 54.9 GB/s
    assert (one["device"], one["pinned"], one["bits"]) == ("1.406 GB", "14.06 GB", "✓")
    assert rows["diffusers (peer)", "7,800"]["to its limit"].endswith("256.1 ms, 14.06 GB")
    table = peers.engines_table(*here[0])
    assert 'class="engine engine-diffusers"' in table and 'class="engine engine-stream"' in table
    assert "14,040 tokens +0.2\u00a0%" in table and "the link 0\u00a0%" in table


def test_what_did_not_run_or_differs_shows() -> None:
    here = found(status={"sglang:prefetch=1": "absent"})
    rows = here[0][1]["rows"]
    next(r for r in rows if r["label"] == "fsdp")["ranks"][1]["output_sha256"] = "f" * 64
    shown = engines(here)
    assert shown["sglang:prefetch=1 (peer)", "7,800"]["note"] == "absent: made up: absent"
    assert shown["sglang:prefetch=1 (peer)", "7,800"]["step"].endswith("not measured")
    assert shown["fsdp", "7,800"]["bits"] == "✗ differs"


def test_without_resident_there_are_times_but_no_costs() -> None:
    here = found(status={"resident": "oom", "resident again": "oom"})
    assert engines(here)["planned", "7,800"]["to resident"].endswith("not measured")
    assert "not known, as resident did not run both first and last" in peers.engines_table(*here[0])
    assert "at 7,800 tokens stream, 195.2 ms." in crossover.draw(here)[1]
    assert "no cost is known" in crossover.answer(here)
    (table,) = crossover.tables(here)
    assert by_title(table)[0]["7,800 tokens"] == "oom"
    assert "how far the machine drifted is not known" in table


def test_on_a_cpu_there_are_bits_and_no_times() -> None:
    here = found(device="cpu", machine="CPU, 2 cores", transport=[], resident_ms={27: 123.456})
    row = engines(here)["planned", "27"]
    assert set(row) == {"engine", "tokens", "bits", "note"} and row["bits"] == "✓"
    assert "no times are claimed" in peers.engines_table(*here[0])
    assert "none: a CPU" in peers.conditions_table(*here[0])
    assert crossover.tables(here) == peers.foretold_tables(here) == []
    for refused in (
        crossover.draw, crossover.answer, peers.foretold_sentence, peers.ablation_tables
    ):  # fmt: skip
        with pytest.raises(NotAnswerable):
            refused(here)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "SHM/direct/direct"),
        ({"transport": []}, "its log names none"),
        ({"ranks": 1, "machine": made.H200}, "not in use"),
    ],
)
def test_the_conditions_say_what_was_measured_where(options: dict[str, Any], said: str) -> None:
    facts = {c["what"]: c["value"] for c in by_title(peers.conditions_table(*found(**options)[0]))}
    assert facts["transport of collectives"] == said
    assert facts["link, pinned, all ranks at once"] == "54.9 GB/s first, last 54.9 GB/s"
    assert "sglang 0.5.23" in facts["versions"] and facts["commit"] == "c" * 12
    assert facts["file"] == "results/x/benchmarks/one.json"


# The crossover map -------------------------------------------------------------------------------


def test_the_map_names_the_fastest_that_moves_weights_and_what_it_costs() -> None:
    keeps = "stream:slots=0,residents=20"  # all on the device: stands outside, as resident does
    here = found(factors={**made.LABELS, "planned": DEAR, "fsdp": 1.02, "swap": 1.0, keeps: 1.0},
                 resident_ms=LONG)  # fmt: skip
    (line,) = crossover.lines(here).values()
    assert [[row["label"] for row in shape.leaders] for shape in line] == [
        ["fsdp"], ["fsdp", "planned"], ["planned"], ["planned"]
    ]  # fmt: skip
    first, *_ = by_title(crossover.tables(here)[0])
    assert first["7,800 tokens"] == "194.2 ms 14.1 GB"
    rows = {c["engine"]: c for c in by_title(crossover.tables(here)[0])}
    assert rows["fsdp"]["14,040 tokens"] == "→ +2.0 % 375.3 ms, 1.41 GB"
    assert rows["planned"]["14,040 tokens"].startswith("→ +2.4 %")
    assert rows["planned"]["7,800 tokens"].startswith("+8.5 %")
    several = by_title(crossover.tables(found(factors=made.LABELS | made.ABLATED))[0])
    assert {c["engine"]: c["7,800 tokens"] for c in several}["stream"].startswith("→ +1.0 %")
    assert "drifted by 0.2\u00a0% at most" in crossover.tables(here)[0]
    said = crossover.answer(here).replace("\u00a0", " ")
    assert "costs +2.0 % over resident at 7,800 tokens and +0.1 % at 75,600" in said
    assert "falls below 1 % between 14,040 and 32,760 tokens" in said
    assert "The best peer's step beside our best: +19 % to +21 %, at 4 lengths" in said


def test_engines_that_samples_do_not_tell_apart_share_a_cell() -> None:
    """Two per cent apart, but with intervals of five."""
    here = found(factors={"resident": 1.0, "planned": 1.1, "sglang": 1.122})
    ranks = {r["label"]: r["ranks"] for r in reversed(here[0][1]["rows"])}
    for rank in ranks["sglang"]:
        rank["samples_ms"] = [t * (0.975 + 0.008 * i) for i, t in enumerate(rank["samples_ms"])]
    assert "at 7,800 tokens stream and sglang, +10" in crossover.draw(here)[1]
    for rank in [*ranks["sglang"], *ranks["planned"]]:  # five have no interval, and 2 % are much
        rank["samples_ms"] = rank["samples_ms"][1:6]
    assert "at 7,800 tokens stream, +10" in crossover.draw(here)[1]


def test_the_map_draws_each_cell_and_where_the_cost_falls_below_a_hundredth() -> None:
    here = found(factors={**made.LABELS, "planned": DEAR}, resident_ms=LONG)
    figure, words = crossover.draw(here)
    (axes,) = figure.axes
    texts = [text.get_text().replace("\u00a0", " ") for text in axes.texts]
    assert texts == ["+8.5 %", "+2.4 %", "+0.4 %", "+0.1 %"]
    assert "at 14,040 tokens stream, +2.4" in words
    assert "below 1 % from between 14,040 and 32,760 tokens" in words
    assert any(line.get_linewidth() == 3 for line in axes.lines)
    assert svg(figure) == svg(crossover.draw(here)[0])


@pytest.mark.parametrize(
    ("costs", "crossing", "said"),
    [
        ([1.5, 1.02, 1.000], (14040, 32760), "below 1 % between 14,040 and 32,760 tokens"),
        ([1.5, 1.02, 1.01], None, "where it falls below 1 % was not measured"),
        ([1.001, 1.001, 1.001], None, "below 1 % at every length measured"),
        ([1.02, 1.001, 1.02], None, "where it falls below 1 % was not measured"),
        ([1.02, 1.001, 1.0], (7800, 14040), "below 1 % between 7,800 and 14,040 tokens"),
    ],
)
def test_a_crossing_is_only_claimed_between_two_measurements(
    costs: list[float], crossing: tuple[int, int] | None, said: str
) -> None:
    factors = dict(zip((7800, 14040, 32760), costs, strict=True))
    here = found(factors={"resident": 1.0, "planned": factors})
    (line,) = crossover.lines(here).values()
    assert crossover.cheap_from(line) == crossing
    assert said in crossover.answer(here)


def test_campaigns_of_one_setting_make_one_line_and_each_shape_is_of_one_campaign() -> None:
    # Of fewer blocks more stay on the device: its lower cost is none of the deeper expert's.
    shallow = found("few", blocks=8, resident_ms={32760: 420.0, 75600: 1424.0},
                    factors={"resident": 1.0, "planned": 1.0})  # fmt: skip
    lines = crossover.lines([*found(), *shallow, *found(branches=2)])
    assert [len(line) for line in lines.values()] == [4, 3]
    first = next(iter(lines.values()))
    assert [s.report["settings"]["blocks"] for s in first] == [20, 20, 20, 8]
    assert list(lines)[0].endswith("2 ranks, 1 branch")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0123, "+1.2 %"), (-0.0004, "0 %"), (-0.02, "\u22122.0 %"), (0.0996, "+10 %"),
     (1.55, "+155 %")],
)  # fmt: skip
def test_differences_are_as_fine_as_the_machine_is_steady(share: float, text: str) -> None:
    assert overhead(share).replace("\u00a0", " ") == text


# Plans and single settings -----------------------------------------------------------------------


def test_plans_are_held_against_the_measured_step_and_the_best_fixed_setting() -> None:
    fixed = {"stream:slots=2": 1.0, "stream:slots=3": 1.1, "stream:slots=3,residents=16": 0.9}
    here = found(factors=made.LABELS | fixed)
    plans = peers.foretold(here)
    assert [plan.error for plan in plans] == [pytest.approx(0.02, abs=1e-3)] * 3
    # 19 buffers do not fit the plan's room of 4 blocks, so the third one is no rival.
    assert {plan.best["label"] for plan in plans if plan.best} == {"stream:slots=2"}
    assert plans[0].behind == pytest.approx(0.005)

    def said(factors: dict[str, float]) -> str:
        return peers.foretold_sentence(found(factors=factors)).replace("\u00a0", " ")

    text = said(made.LABELS | fixed)
    assert "Over 3 plans the prediction is off by 2.0 % in the median and by 2.0 % at worst" in text
    assert "slower in 3 of 3, in 3 of them with intervals apart; at most by 0.5 %" in text
    row = by_title(peers.foretold_tables(here)[0])[0]
    assert row["prediction"] == "+2.0 %"
    assert row["plan"] == "+0.5 % stream:slots=2: intervals apart"
    within = said(made.LABELS | {"stream:slots=2": 1.0049})
    assert "slower in 3 of 3, in none of them with intervals apart" in within
    assert "In none of 3 was the plan slower" in said(made.LABELS | {"stream:slots=2": 1.2})
    assert "No fixed setting" in said(made.LABELS)


def test_settings_are_compared_where_only_one_differs() -> None:
    here = found(factors=made.LABELS | made.ABLATED, resident_ms={7800: 194.1})
    rows = {c["what changed"]: c for c in by_title(peers.ablation_tables(here)[0])}
    assert set(rows) == {"windows: off → 65.5 kB + 131 kB + 65.5 kB", "copy_streams: 1 → 2",
                         "branches_per_visit: 2 → 1"}  # fmt: skip
    windows, streams, _ = sorted(rows.values(), key=lambda row: float(row["changed"].split()[0]))
    assert windows["change"] == "\u22128.2 % intervals apart"
    assert windows["base"].endswith("n = 7 stream:slots=3")
    assert streams["change"] == "0 % intervals overlap"
    assert streams["base"].endswith(made.BASE)
    two = {"resident": 1.0, "stream:slots=2": 1.0, "stream:slots=3,shard=true": 1.0}
    assert peers.ablations(found(factors=two)[0][1]) == [], "two differences are no ablation"


# Files -------------------------------------------------------------------------------------------


def test_a_project_has_its_campaigns_in_order(project: Path) -> None:
    for branches in (2, 1):
        made.write(made.campaign(branches=branches), project / "results", f"b{branches}")
    loaded = peers.load_campaigns(["results", "results/local"])
    slug = loaded[0][1]["machine"]["slug"]
    assert [path.as_posix() for path, _ in loaded] == [
        f"results/{slug}/benchmarks/{name}.json" for name in ("b1", "b2")
    ]
    (project / loaded[0][0]).write_text("{")
    with pytest.raises(Stop, match="b1.json: is no valid JSON"):
        peers.load_campaigns(["results"])
