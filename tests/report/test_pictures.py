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
           "claim": "slower", "height": 480, "gpus": data.machine.str[0].astype(int),
           "interconnect": data.machine.str.partition(", ")[2], **columns}
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


def marks(axes: Axes) -> dict[str, float]:
    """Where filled marks are, by the row that they are in."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return {
        names[round(float(line.get_ydata()[0]))]: float(line.get_xdata()[0])
        for line in axes.lines
        if line.get_transform() == axes.transData and line.get_markerfacecolor() != "none"
    }  # fmt: skip


def test_overhead_has_a_row_for_each_setup_and_a_mark_for_each_engine() -> None:
    df = costs(("2× B, PCIe path", "layerwise", 0.065), ("1× A", "fsdp", 0.137))
    (axes,) = (figure := figures.overhead(df)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "PCIe path", "2× B, 480p", "1 GPU", "1× A, 480p",
    ]  # fmt: skip
    assert marks(axes) == pytest.approx({"2× B, 480p": 6.5, "1× A, 480p": 13.7})
    assert all(ratio(value) in texts(figure) for value in df.overhead)
    for line in axes.lines[:2]:
        assert any(same_color(line.get_color(), paint) for paint in ENGINES.values())
    two = costs(("1× A", "stream", 0.006), ("1× A", "stream", 0.01), height=[480, 720])
    assert [*marks(figures.overhead(two).axes[0])] == ["1× A, 480p", "1× A, 720p"]


def test_overhead_says_how_sure_it_is_and_what_is_predicted() -> None:
    df = costs(("1× A", "stream", 0.006), ("1× A", "swap", -0.006), ("1× A", "layerwise", 0.07),
               claim=["within noise", "no interval", "slower"])  # fmt: skip
    df.loc[1, ["overhead_low", "overhead_high"]] = float("nan")
    ahead = costs(("1× A", "fsdp", 0.08)).drop(columns=["claim", "overhead_low", "overhead_high"])
    (axes,) = (figure := figures.overhead(df, predicted=ahead)).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [float(line.get_xdata()[0]) for line in hollow] == pytest.approx([8])
    shown = {text.get_text(): text.get_weight() for text in axes.texts}
    assert shown[ratio(0.07)] == "bold" and shown[ratio(0.006)] == "normal"
    assert {f"({ratio(0.08)})", f"{ratio(-0.006)} *"} <= {*shown}
    spans = [list(path.vertices[:, 0]) for lines in axes.collections for path in lines.get_paths()]
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
