"""Pictures of tidy frames: each function takes DataFrames and returns a matplotlib Figure.

An engine has its colour and marker in all of them (:mod:`wanreport.report.style`). What was
measured is solid, what was predicted is hollow. Values stand beside their marks; captions are the
notebook's. A picture of one notebook is drawn there.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from wanreport.analysis.compare import PLACES, places
from wanreport.analysis.overlap import crossings
from wanreport.report.style import ENGINES, INK, MARKERS, NARROW, WIDTH, colour
from wanreport.words import ratio

CLASH = "#d6455d"  # the colour of what gets into each other's way
DASHES = (0, (4, 3))
COLUMN = 46  # points between the columns of numbers beside a picture
LANES = {"compute": "blocks", "copy": "copies", "gather": "gathers", "unpack": "unpacking",
         "collective": "all-to-alls"}  # fmt: skip


def overhead(df: pd.DataFrame, predicted: pd.DataFrame | None = None) -> Figure:
    """Draw overhead over resident: a row for each setup, a mark and a column for each engine.

    Columns machine, interconnect, gpus, height, engine, claim, overhead, overhead_low and
    overhead_high. Whiskers are intervals; bold is slower or faster, the rest within noise; a star
    says that there are too few steps for an interval, a dash that it was not measured. Of
    `predicted` claim and interval do not count: it is hollow and in brackets.
    """
    ahead = df[:0] if predicted is None else predicted
    every = pd.concat([df, ahead.assign(claim="predicted")], ignore_index=True)
    engines = [engine for engine in ENGINES if engine in {*every.engine}]
    where = places(every)
    every["place"] = pd.Categorical(where, [*PLACES, *sorted({*where} - {*PLACES})])
    every["setup"] = every.machine.str.partition(",")[0] + every.height.map(", {}p".format)
    names: list[str] = []
    for (place, setup), some in every.groupby(["place", "setup"], observed=True):
        names += [place] * (place not in names) + [setup]
        every.loc[some.index, "row"] = len(names) - 1
    every["column"] = every.engine.map(engines.index) + 1
    every["y"] = every.row + 0.36 * ((every.column - 0.5) / len(engines) - 0.5)
    every["percent"] = 100 * every.overhead
    axes = (figure := Figure(figsize=(NARROW, 0.75 + 0.24 * len(names)))).subplots()
    axes.hlines(every.y, 100 * every.overhead_low, 100 * every.overhead_high,
                every.engine.map(colour), linewidth=1.8, zorder=1)  # fmt: skip
    every["fill"] = every.engine.where(every.claim != "predicted", "none")
    sns.scatterplot(every, x="percent", y="y", hue="fill", palette={**ENGINES, "none": "none"},
                    style="engine", markers=MARKERS, s=30, linewidth=1.4, legend=False,
                    edgecolor=[*every.engine.map(colour)], ax=axes)  # fmt: skip
    text: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8.5,
                            "xycoords": ("axes fraction", "data")}  # fmt: skip
    cells = dict.fromkeys(product(every.row.unique(), every.column.unique()), ("–", "normal"))
    for each in every.itertuples():
        said = {"predicted": "({})", "no interval": "{} *"}.get(each.claim, "{}")
        weight = "bold" if each.claim in ("slower", "faster") else "normal"
        cells[each.row, each.column] = said.format(ratio(each.overhead)), weight
    for (row, column), (said, weight) in cells.items():
        axes.annotate(said, (1, row), (COLUMN * column, 0), va="center", weight=weight, **text)
    for column, engine in enumerate(engines, 1):
        axes.annotate(engine, (1, 1), (COLUMN * column, 4), **text | {"xycoords": "axes fraction"})
        beyond = offset_copy(axes.transAxes, figure, COLUMN * column - 6, 20, "points")
        axes.plot(1, 1, MARKERS[engine], color=colour(engine), transform=beyond, clip_on=False)
    rows(axes, names)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in {*where} else "normal")
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("steady step over resident's, %")
    return figure


def timelines(*events: pd.DataFrame) -> Figure:
    """Draw what blocks, copies and all-to-alls did, one excerpt above another on one time axis.

    Columns as of :func:`wanreport.analysis.overlap.timeline`, with times from 0, engine, name and
    the `branches` of a visit. Where a copy and an all-to-all run at once, both are shaded.
    """
    height = sum(0.3 + 0.45 * some.lane.nunique() for some in events)
    figure = Figure(figsize=(WIDTH, 0.5 + height))
    panels = figure.subplots(len(events), 1, sharex="col", squeeze=False).flat
    for axes, some in zip(panels, events, strict=True):
        _lanes(axes, some)
        begins = some[some.lane == "compute"].groupby("expert").start_ms.min()
        if switches := len(begins) > 1:
            axes.axvline(begins["low_noise"], color=INK, linestyle=DASHES)
        axes.set_title(some.name.iloc[0] + " (dashed: the switch)" * switches)
        if {"collective", "copy"} <= set(some.lane):
            spans, copied = crossings(some), some.ms[some.lane == "copy"].sum()
            for start, end in spans:
                axes.axvspan(start, end, 0.02, 0.64, facecolor=CLASH, alpha=0.4, linewidth=0)
            text = f"{np.diff(spans).sum():.0f} of {copied:.0f} ms of copies beside an all-to-all"
            axes.set_title(text, loc="right", fontweight="normal")
    axes.set_xlabel("milliseconds")
    axes.set_xlim(0, max(some.end_ms.max() for some in events))
    return figure


def _lanes(axes: Axes, events: pd.DataFrame) -> None:
    shown = [lane for lane in LANES if lane in set(events.lane)]
    for y, lane in enumerate(shown):
        some, weights = events[events.lane == lane], lane in ("copy", "gather", "unpack")
        spans = list(zip(some.start_ms, some.end_ms - some.start_ms, strict=True))
        paint = (INK, 0.25 if lane == "compute" else 0.65)
        axes.broken_barh(spans, (y - 0.3, 0.6), edgecolor=INK, linewidth=0.6,
                         facecolor=colour(some.engine.iloc[0]) if weights else paint,
                         hatch="//" if weights else None)  # fmt: skip
        for row in some.itertuples() if lane == "compute" and len(some) <= 20 else ():
            room = (row.end_ms - row.start_ms) / events.end_ms.max()
            text = f"block {row.block}" if room > 0.1 else f"{row.block}" * bool(room > 0.02)
            text += ", both branches" if room > 0.3 and row.branches == 2 else ""
            axes.text((row.start_ms + row.end_ms) / 2, y, text, ha="center", va="center")
    rows(axes, [LANES[lane] for lane in shown])


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a horizontal picture, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_ylabel("")
    axes.tick_params(axis="y", length=0)
    axes.yaxis.grid(False)
    axes.xaxis.grid(True)
    axes.spines["left"].set_visible(False)


def beside(axes: Axes, x: float, y: float, text: str, away: float = 5) -> None:
    """Write to the right of a mark, `away` from it in points."""
    axes.annotate(text, (x, y), xytext=(away, 0), textcoords="offset points", va="center")
