"""Pictures: what is on them, that they hold for few and odd rows, and that they are repeatable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from wanreport.analysis import overlap
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


def bars(axes: Axes) -> dict[str, float]:
    """Widths of filled bars by the row that they are on."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return {
        names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width()
        for bar in axes.patches if bar.get_facecolor()[3]
    }  # fmt: skip


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_overhead_has_a_group_for_each_machine_and_a_bar_for_each_engine() -> None:
    df = costs(("2× B", "layerwise", 0.065), ("2× B", "stream", 0.006), ("1× A", "fsdp", 0.137))
    figure = figures.overhead(df)
    assert titles(figure) == ["1× A", "2× B"]
    assert bars(figure.axes[1]) == pytest.approx({"layerwise": 6.5, "stream": 0.6})
    assert all(ratio(value) in texts(figure) for value in df.overhead)
    for bar in [bar for axes in figure.axes for bar in axes.patches]:
        assert any(same_color(bar.get_facecolor(), paint) for paint in ENGINES.values())
    two = costs(("A", "stream", 0.006), ("A", "stream", 0.01), height=[480, 720])
    assert titles(figures.overhead(two)) == ["A, 480p", "A, 720p"]


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


def test_a_bar_without_a_number_says_so() -> None:
    (axes,) = (figure := Figure()).subplots(1, 1, squeeze=False).flat
    df = pd.DataFrame({"name": ["a", "b"], "engine": "stream", "size": [None, 2.0]}, dtype=object)
    figures.bars(axes, df, df["size"].astype(float), ["nan", "2.0"])
    assert texts(figure).count("?") == 1 and bars(axes)["b"] == 2


def lanes(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_timelines_shade_where_copies_meet_all_to_alls(frames: Frames, two_gpus: Any) -> None:
    cuts = [overlap.excerpt(frames, two_gpus.run[name]) for name in ("layerwise", "stream")]
    figure = figures.timelines(*cuts)
    shaded = [sum(same_color(patch.get_facecolor()[:3], figures.CLASH) for patch in axes.patches)
              for axes in figure.axes]  # fmt: skip
    assert shaded == [len(overlap.crossings(cuts[0])), 0] and shaded[0] > 0
    assert {axes.get_xlim() for axes in figure.axes} == {(0, max(c.end_ms.max() for c in cuts))}
    shown = [figures.LANES[lane] for lane in ("compute", "copy", "collective")]
    assert [lanes(axes) for axes in figure.axes] == [shown, shown]


def test_timelines_of_one_gpu_of_unpacking_and_of_a_rehearsal(
    frames: Frames, two_gpus: Any
) -> None:
    shares = overlap.shares(frames)
    alone = overlap.excerpt(frames, shares.index[shares.gpus == 1][0])
    assert len(lanes(figures.timelines(alone).axes[0])) == 2, "no lane of collectives"
    events = overlap.excerpt(frames, two_gpus.run["stream"])
    axes = figures.timelines(events, timed=False).axes[0]
    assert axes.get_xlim()[1] == pytest.approx(len(events), abs=2), "in order, not in time"
    unpacked = events[events.lane == "copy"].assign(lane="unpack")
    axes = figures.timelines(pd.concat([events, unpacked])).axes[0]
    assert lanes(axes) == [
        figures.LANES[each] for each in ("compute", "copy", "unpack", "collective")
    ]


def test_the_same_rows_give_the_same_bytes(frames: Frames, two_gpus: pd.DataFrame) -> None:
    cut = overlap.excerpt(frames, two_gpus.run["layerwise"])
    first, second = (inline(figures.timelines(cut)) for _ in range(2))
    assert first == second.replace("n2-", "")  # dashes and clip paths have ids
