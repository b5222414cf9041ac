"""Pictures: what is on them, that they hold for few and odd rows, and that they are repeatable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from wanreport.analysis import compare, overlap
from wanreport.analysis.frames import Frames, load
from wanreport.report import figures
from wanreport.report.style import ENGINES, inline
from wanreport.words import ratio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def frames() -> Frames:
    return load(["results"], ROOT)


@pytest.fixture(scope="module")
def two_gpus(frames: Frames) -> pd.DataFrame:
    """The runs of one job by engine."""
    runs = frames.runs[frames.runs.latest & (frames.runs.source == "job")]
    runs = runs[(runs.gpus == 2) & (runs.height == 480)]
    return runs.drop_duplicates("engine").set_index("engine", drop=False)


def costs(*rows: tuple[str, str, float], **columns: Any) -> pd.DataFrame:
    data = pd.DataFrame(rows, columns=["machine", "engine", "overhead"])
    return data.assign(
        **{"overhead_low": data.overhead - 0.01, "overhead_high": data.overhead + 0.01,
           "claim": "slower", "height": 480, **columns}
    )  # fmt: skip


def texts(figure: Figure) -> str:
    found = figure.findobj(match=lambda each: hasattr(each, "get_text"))
    return "|".join(text.get_text() for text in found)


def bars(axes: Any) -> dict[str, float]:
    """Widths of filled bars by the row that they are on."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return {
        names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width()
        for bar in axes.patches if bar.get_facecolor()[3]
    }  # fmt: skip


def test_overhead_has_a_group_for_each_machine_and_a_bar_for_each_engine() -> None:
    df = costs(("2× B", "layerwise", 0.065), ("2× B", "stream", 0.006), ("1× A", "fsdp", 0.137))
    figure = figures.overhead(df)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1× A", "2× B"]
    assert bars(figure.axes[1]) == pytest.approx({"layerwise": 6.5, "stream": 0.6})
    assert all(ratio(value) in texts(figure) for value in df.overhead)
    for bar in [bar for axes in figure.axes for bar in axes.patches]:
        assert any(same_color(bar.get_facecolor(), paint) for paint in ENGINES.values())
    two = costs(("A", "stream", 0.006), ("A", "stream", 0.01)).assign(height=[480, 720])
    titles = [axes.get_title(loc="left") for axes in figures.overhead(two).axes]
    assert titles == ["A, 480p", "A, 720p"]


def test_overhead_says_how_sure_it_is_and_what_is_predicted() -> None:
    df = costs(("A", "stream", 0.006), ("A", "swap", -0.006), claim=["within noise", "no interval"])
    df.loc[1, ["overhead_low", "overhead_high"]] = float("nan")
    ahead = costs(("A", "fsdp", 0.08))[["machine", "engine", "overhead", "height"]]
    figure = figures.overhead(df, predicted=ahead)
    (axes,) = figure.axes
    assert bars(axes) == pytest.approx({"stream": 0.6, "swap": -0.6})
    hollow = [bar.get_width() for bar in axes.patches if not bar.get_facecolor()[3]]
    assert hollow == pytest.approx([8])
    for said in ("within noise", "no interval", "not measured"):
        assert texts(figure).count(said) == 1
    spans = [list(path.vertices[:, 0]) for path in axes.collections[0].get_paths()]
    assert pytest.approx([-0.4, 1.6]) in spans


def test_timelines_shade_where_copies_meet_all_to_alls(frames: Frames, two_gpus: Any) -> None:
    cuts = [overlap.excerpt(frames, two_gpus.run[name]) for name in ("layerwise", "stream")]
    figure = figures.timelines(*cuts)
    shaded = [sum(same_color(patch.get_facecolor()[:3], figures.CLASH) for patch in axes.patches)
              for axes in figure.axes]  # fmt: skip
    assert shaded == [len(overlap.crossings(cuts[0])), 0] and shaded[0] > 0
    assert {axes.get_xlim() for axes in figure.axes} == {(0, max(c.end_ms.max() for c in cuts))}
    for axes in figure.axes:
        lanes = [label.get_text() for label in axes.get_yticklabels()]
        assert lanes == [figures.LANES[lane] for lane in ("compute", "copy", "collective")]


def test_unpacking_has_a_lane_above_all_to_alls(frames: Frames, two_gpus: Any) -> None:
    events = overlap.excerpt(frames, two_gpus.run["stream"])
    unpacked = events[events.lane == "copy"].assign(lane="unpack")
    axes = figures.timelines(pd.concat([events, unpacked])).axes[0]
    shown = [figures.LANES[lane] for lane in ("compute", "copy", "unpack", "collective")]
    assert [label.get_text() for label in axes.get_yticklabels()] == shown


def test_timelines_of_one_gpu_and_of_a_rehearsal(frames: Frames, two_gpus: Any) -> None:
    shares = overlap.shares(frames)
    alone = overlap.excerpt(frames, shares.index[shares.gpus == 1][0])
    assert len(figures.timelines(alone).axes[0].get_yticklabels()) == 2, "no lane of collectives"
    events = overlap.excerpt(frames, two_gpus.run["stream"])
    axes = figures.timelines(events, timed=False).axes[0]
    assert axes.get_xlim()[1] == pytest.approx(len(events), abs=2), "in order, not in time"


def test_steps_that_did_not_run_have_no_mark_and_no_line(frames: Frames, two_gpus: Any) -> None:
    some = frames.steps[frames.steps.run == two_gpus.run["swap"]]
    axes = figures.steps(some, engine="swap", whole=27).axes[0]
    marks = [line for line in axes.lines if line.get_marker() != "None"]
    assert sum(len(line.get_xdata()) for line in marks) == len(some)
    assert {line.get_linestyle() for line in marks} == {"None"}
    labels = {text.get_text().split(" ")[0] for text in axes.texts}
    assert {"first", "switch", "steady"} <= labels


def test_a_step_far_above_all_clean_ones_is_cut_off_and_labelled() -> None:
    rows = [("warmup", "first", 100.0), ("clean", "first", 2.0), ("clean", "steady", 1.0)]
    df = pd.DataFrame(rows, columns=["kind", "role", "seconds"])
    figure = figures.steps(df.assign(step=[0, 0, 1], expert="high_noise"), engine="stream", whole=2)
    assert figure.axes[0].get_ylim()[1] < 3 and texts(figure).count("100") == 1


def test_the_budget_adds_up_and_tells_what_did_not_run(two_gpus: pd.DataFrame) -> None:
    axes, hatch = figures.budget(two_gpus).axes[0], figures.PARTS["left"][1]
    for row, run in enumerate(two_gpus.itertuples()):
        mine = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        ends = [bar.get_x() + bar.get_width() for bar in mine]
        (left,) = (bar.get_width() for bar in mine if bar.get_hatch() == hatch)
        assert max(ends) == pytest.approx(run.end_to_end_s)
        steady = run.steps_whole - 2
        assert left == pytest.approx(run.steady_s * (1 - (run.steps_run - 2) / steady))


def test_bytes_a_step_are_over_the_whole_schedule(two_gpus: pd.DataFrame) -> None:
    swap = bars(figures.moved(two_gpus).axes[0])["swap"]
    assert swap == pytest.approx(two_gpus.h2d_schedule_bytes["swap"] / 27e9)


def test_memory_of_rows_that_lack_some() -> None:
    df = pd.DataFrame([{"name": "a", "engine": "stream", "allocated_bytes": 7e9,
                        "reserved_bytes": None, "pinned_bytes": None}])  # fmt: skip
    figure = figures.memory(df)
    assert texts(figure).count("?") == 2 and len(figure.axes) == 2


def test_each_campaign_has_its_line(frames: Frames) -> None:
    cost = compare.overhead(frames)
    cost = cost[(cost.source == "bench") & (cost.engine != "resident")]
    figure = figures.lines(cost)
    keys = cost.groupby(["machine", "branches", "name", "campaign"])
    drawn = [line for axes in figure.axes for line in axes.lines]
    assert len(drawn) == len(keys)
    assert sum(len(line.get_xdata()) for line in drawn) == len(cost)
    filled = [line.get_markerfacecolor() != "none" for line in drawn]
    assert sum(filled) == keys.bracketed.all().sum()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(cost.name)


def test_scaling_tells_measured_and_predicted_apart() -> None:
    rows = [(gpus, kind, gpus / 100) for kind in ("measured", "predicted") for gpus in (2, 4, 8)]
    df = pd.DataFrame(rows, columns=["gpus", "kind", "overhead"]).assign(engine="fsdp")
    (axes,) = figures.scaling(df).axes
    measured, predicted = axes.lines
    assert measured.get_linestyle() == "None" and predicted.get_linestyle() != "None"
    assert predicted.get_markerfacecolor() == "none" != measured.get_markerfacecolor()
    assert [text.get_text() for text in axes.texts] == [f"fsdp {ratio(0.08)}"]


def test_the_schedule_marks_the_switch() -> None:
    df = pd.DataFrame({"step": range(4), "timestep": [999.0, 950, 800, 300],
                       "expert": ["high_noise"] * 2 + ["low_noise"] * 2})  # fmt: skip
    (axes,) = figures.schedule(df, boundary=875).axes
    assert [1.5, 1.5] in [list(line.get_xdata()) for line in axes.lines]
    assert len(axes.texts) == 3
    (one,) = figures.schedule(df.assign(expert="high_noise"), boundary=875).axes
    assert len(one.texts) == 1


def test_the_same_rows_give_the_same_bytes(frames: Frames, two_gpus: pd.DataFrame) -> None:
    cut = overlap.excerpt(frames, two_gpus.run["layerwise"])
    for draw in (lambda: figures.timelines(cut), lambda: figures.memory(two_gpus)):
        assert inline(draw()) == inline(draw()).replace("n2-", "")  # dashes and clip paths have ids
