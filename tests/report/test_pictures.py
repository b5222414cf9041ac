"""Pictures: what is on them, that they hold for few and odd rows, and that they are repeatable."""

import re
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from tests.synthetic import committed
from wanreport.analysis import compare, overlap
from wanreport.report import figures
from wanreport.report.style import ENGINES, inline
from wanreport.words import ratio


@pytest.fixture(scope="module")
def two_gpus() -> pd.DataFrame:
    """The runs of one job by engine."""
    runs = committed().runs.query("latest and source == 'job' and gpus == 2 and height == 480")
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


def rows(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def marks(axes: Axes, *, hollow: bool = False) -> dict[str, float]:
    """Where filled marks are, by the row that they are in; or hollow ones."""
    (points,) = axes.findobj(PathCollection)
    filled = zip(points.get_offsets(), points.get_facecolor()[:, 3] > 0, strict=True)
    return {rows(axes)[round(y)]: float(x) for (x, y), fill in filled if fill != hollow}


def test_overhead_has_a_row_for_each_setup_and_a_mark_for_each_engine() -> None:
    df = costs(("2× B, PCIe path", "layerwise", 0.065), ("1× A", "fsdp", 0.137))
    (axes,) = (figure := figures.overhead(df)).axes
    assert rows(axes) == ["PCIe path", "2× B, 480p", "1 GPU", "1× A, 480p"]
    assert marks(axes) == pytest.approx({"2× B, 480p": 6.5, "1× A, 480p": 13.7})
    assert all(ratio(value) in texts(figure) for value in df.overhead)
    assert texts(figure).split("|").count("–") == 2, "each ran one engine of two"
    paints = [ENGINES[name] for name in df.engine]
    (points,) = axes.findobj(PathCollection)
    assert same_color(points.get_facecolor(), paints) and same_color(points.get_edgecolor(), paints)
    assert len({path.vertices.tobytes() for path in points.get_paths()}) == 2, "a marker for each"
    two = costs(("1× A", "stream", 0.006), ("1× A", "stream", 0.01), height=[480, 720])
    assert [*marks(figures.overhead(two).axes[0])] == ["1× A, 480p", "1× A, 720p"]


def test_overhead_says_how_sure_it_is_and_what_is_predicted() -> None:
    df = costs(("1× A", "stream", 0.006), ("1× A", "swap", -0.006), ("1× A", "layerwise", 0.07),
               claim=["within noise", "no interval", "slower"])  # fmt: skip
    df.loc[1, ["overhead_low", "overhead_high"]] = float("nan")
    ahead = costs(("1× A", "fsdp", 0.08)).drop(columns=["claim", "overhead_low", "overhead_high"])
    (axes,) = (figure := figures.overhead(df, predicted=ahead)).axes
    assert marks(axes, hollow=True) == pytest.approx({"1× A, 480p": 8})
    shown = {text.get_text(): text.get_weight() for text in axes.texts}
    assert shown[ratio(0.07)] == "bold" and shown[ratio(0.006)] == "normal"
    assert {f"({ratio(0.08)})", f"{ratio(-0.006)} *"} <= {*shown}
    spans = [list(path.vertices[:, 0]) for lines in axes.collections for path in lines.get_paths()]
    assert pytest.approx([-0.4, 1.6]) in spans


def cut(run: str) -> pd.DataFrame:
    """A few blocks of a run's timeline."""
    row, times = committed().runs.loc[run], ["start_ms", "end_ms"]
    events = overlap.timeline(committed(), row)
    start = events.start_ms[(events.lane == "compute") & (events.block == 35)].iloc[0]
    events = events[(events.start_ms >= start) & (events.end_ms < start + 250)].copy()
    events[times] -= start
    return events.assign(engine=row.engine, name=row["name"], branches=1)


def test_timelines_shade_where_copies_meet_all_to_alls(two_gpus: pd.DataFrame) -> None:
    cuts = [cut(two_gpus.run[name]) for name in ("layerwise", "stream")]
    figure = figures.timelines(*cuts)
    shaded = [sum(same_color(patch.get_facecolor()[:3], figures.CLASH) for patch in axes.patches)
              for axes in figure.axes]  # fmt: skip
    assert shaded == [len(overlap.crossings(cuts[0])), 0] and shaded[0] > 0
    assert {axes.get_xlim() for axes in figure.axes} == {(0, max(c.end_ms.max() for c in cuts))}
    shown = [figures.LANES[lane] for lane in ("compute", "copy", "collective")]
    assert [rows(axes) for axes in figure.axes] == [shown, shown]
    last = cuts[0][cuts[0].lane == "copy"].tail(1).assign(end_ms=3e4)
    (axes,) = figures.timelines(pd.concat([cuts[0], last])).axes
    assert not any(text.get_text() for text in axes.texts), "no room for numbers of blocks"
    unpacked = cuts[1][cuts[1].lane == "copy"].assign(lane="unpack")
    axes = figures.timelines(pd.concat([cuts[1], unpacked])).axes[0]
    assert rows(axes) == [*shown[:2], figures.LANES["unpack"], shown[2]]
    shares = overlap.shares(committed())
    alone = cut(shares.index[shares.gpus == 1][0])
    assert rows(figures.timelines(alone).axes[0]) == shown[:2], "no lane of collectives"


def test_the_same_rows_give_the_same_bytes(two_gpus: pd.DataFrame) -> None:
    events, costs = cut(two_gpus.run["layerwise"]), compare.headline(committed())
    for draw, rows in ((figures.timelines, events), (figures.overhead, costs)):
        first, second = (inline(draw(rows)) for _ in range(2))
        assert first == re.sub(r"(f\w{6})-2-", r"\1-1-", second)  # dashes and clip paths have ids
