"""The crossover map: at how many tokens which engine is fastest, and what it costs over resident.

An engine is in it if it moves weights in a steady step: `resident`, `swap` and settings that keep
every block on the device are what the others are held against. Costs are to the first run of
`resident` in the same campaign.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from .answers import NotAnswerable
from .campaigns import (
    PEERS,
    Campaign,
    Row,
    drift,
    engine_of,
    identical,
    moved,
    peak,
    ratio,
    step_ms,
)
from .figures import ENGINE_MARKERS, INK, WIDTH, Picture, draw_axes, draw_legend, engine_colour
from .peers import ABSENT, Found, engine_cell, setting, timed, words
from .tables import Cell, Column, counted, gigabytes, html_table, percent, significant, tick
from .verdicts import apart

CHEAP = 0.01
"""A cost over resident below which streaming is as good as free: 1 %."""


@dataclass(frozen=True)
class Spot:
    """The fastest engine at a shape; ``cost`` is its step over resident's, less 1."""

    name: str
    report: Campaign
    row: Row
    cost: float | None
    rival: tuple[Campaign, Row] | None

    @property
    def tokens(self) -> int:
        return int(self.row["tokens"])


def spots(found: Sequence[Found]) -> dict[str, list[Spot]]:
    """Return the fastest engines of each machine, ranks and branches, by rising tokens.

    Where several campaigns have a shape, the one that costs least over its own resident counts.
    """
    groups: dict[tuple[object, ...], list[tuple[int, float, float, str, Campaign, Row]]] = {}
    for path, report in timed(found):
        for row in report["rows"]:
            ms, over = step_ms(row).median, ratio(report, row)
            if ms is not None and moved(report, row):
                entry = (row["tokens"], over or math.inf, ms, path.stem, report, row)
                groups.setdefault(setting(report), []).append(entry)
    lines = {}
    for entries in groups.values():
        line = []
        for tokens in sorted({entry[0] for entry in entries}):
            here = sorted((e for e in entries if e[0] == tokens), key=lambda e: (*e[1:4],))
            _, over, _, name, report, row = here[0]
            others = (e[4:] for e in here if engine_of(e[5]["label"]) != engine_of(row["label"]))
            cost = over - 1 if math.isfinite(over) else None
            line.append(Spot(name, report, row, cost, next(others, None)))
        lines[words(entries[0][4])] = line
    return lines


def cheap_from(line: Sequence[Spot]) -> tuple[int, int, float] | None:
    """Return where the cost falls below 1 % for good: the shapes around it and the tokens between.

    The tokens are interpolated, linear in their logarithm. None unless measurements bracket them.
    """
    costs = [(spot.tokens, spot.cost) for spot in line if spot.cost is not None]
    crossed = None
    for (fewer, dear), (more, cheap) in pairwise(costs):
        if dear >= CHEAP > cheap:
            share = (dear - CHEAP) / (dear - cheap)
            crossed = fewer, more, fewer * (more / fewer) ** share
        elif cheap >= CHEAP:
            crossed = None
    return crossed


def _text(cost: float | None) -> str:
    return "no resident" if cost is None else percent(cost, 2, signed=True)


def draw(found: Sequence[Found], *, width: float = WIDTH) -> Picture:
    """Draw tokens × setting: the fastest engine as colour and marker, its cost as text.

    Raises NotAnswerable where nothing was measured.
    """
    lines = spots(found)
    if not lines:
        raise NotAnswerable(ABSENT)
    every = sorted({spot.tokens for line in lines.values() for spot in line})
    logs = [math.log(tokens) for tokens in every]
    gap = min((b - a for a, b in pairwise(logs)), default=0.7)
    edges = [logs[0] - gap / 2, *((a + b) / 2 for a, b in pairwise(logs)), logs[-1] + gap / 2]
    figure, axes = draw_axes(width, 1.3 + 0.72 * len(lines))
    engines, said = set(), []
    for y, (name, line) in enumerate(lines.items()):
        for spot in line:
            column = every.index(spot.tokens)
            left, right = edges[column], edges[column + 1]
            engine = engine_of(spot.row["label"])
            colour = engine_colour(engine)
            engines.add(engine)
            axes.add_patch(Rectangle(
                (left, y - 0.42), right - left, 0.84, facecolor=(colour, 0.2), linewidth=0.8,
                edgecolor=(colour, 0.9), hatch="///" if engine in PEERS else None))  # fmt: skip
            axes.plot(logs[column], y - 0.18, ENGINE_MARKERS.get(engine, "o"), color=colour,
                      markersize=6.5)  # fmt: skip
            axes.annotate(_text(spot.cost), (logs[column], y + 0.2), ha="center", va="center",
                          fontsize=7.5, color=INK)  # fmt: skip
        cheap = cheap_from(line)
        if cheap:
            at = math.log(cheap[2])
            axes.plot([at, at], [y - 0.5, y + 0.5], color=INK, linewidth=2, linestyle=(0, (3, 1.5)))
        said.append(f"{name}: {'; '.join(map(_say, line))}{_say_cheap(cheap)}")
    axes.set_yticks(range(len(lines)), ["\n".join(textwrap.wrap(name, 26)) for name in lines])
    axes.set_xticks(logs, [f"{tokens:,}" for tokens in every], rotation=40, ha="right")
    axes.set(xlabel="tokens, logarithmic", xlim=(edges[0], edges[-1]))
    axes.set_ylim(len(lines) - 0.45, -0.55)
    handles: list[Artist] = [
        Line2D([], [], color=engine_colour(engine), marker=ENGINE_MARKERS.get(engine, "o"),
               linestyle="", label=engine + (" (peer)" if engine in PEERS else ""))
        for engine in sorted(engines)
    ]  # fmt: skip
    handles.append(Patch(facecolor="none", edgecolor="none", label="%: cost over resident"))
    if any(map(cheap_from, lines.values())):
        handles.append(Line2D([], [], color=INK, linewidth=2, linestyle=(0, (3, 1.5)),
                              label="below 1 % from here"))  # fmt: skip
    draw_legend(axes, handles=handles)
    return figure, f"Which engine that moves weights is fastest. {'. '.join(said)}."


def _say(spot: Spot) -> str:
    return f"at {spot.tokens:,} tokens {spot.row['label']}, {_text(spot.cost)} over resident"


def _say_cheap(cheap: tuple[int, int, float] | None) -> str:
    if cheap is None:
        return ""
    fewer, more, at = cheap
    return (
        f"; the cost falls below 1 % between {fewer:,} and {more:,} tokens, interpolated at "
        f"{significant(at, 2)}"
    )


def table(found: Sequence[Found]) -> str:
    """Return the map as numbers, as HTML."""
    rows: list[dict[str, object]] = []
    for name, line in spots(found).items():
        for spot in line:
            step, blocks = step_ms(spot.row), spot.report["settings"]["blocks"]
            allocated, shift = peak(spot.row, "allocated"), drift(spot.report, spot.tokens)
            row: dict[str, object] = {
                "where": name,
                "tokens": spot.tokens,
                "engine": engine_cell(spot.row["label"]),
                "cost": Cell(spot.cost, text=_text(spot.cost), kind="derived"),
                "step": Cell(step.median, text=f"{step.text('ms')}"),
                "drift": shift if shift is None else Cell(shift, kind="derived",
                                                          text=percent(shift, 2, signed=True)),
                "peak": None if allocated is None else Cell(allocated, text=gigabytes(allocated)),
                "bits": tick(identical(spot.report, spot.row)),
                "file": f"{spot.name}, {counted(blocks, 'block')}",
            }  # fmt: skip
            row["next"] = _rival(spot)
            rows.append(row)
    cheap = [f"{name}{said}" for name, line in spots(found).items()
             if (said := _say_cheap(cheap_from(line)))]  # fmt: skip
    return html_table(
        rows,
        [
            Column("where", "machine", numeric=False),
            Column("tokens", "tokens"),
            Column("engine", "fastest", numeric=False),
            Column("cost", "over resident"),
            Column("step", "step", "median [95 % interval], n"),
            Column("drift", "drift of resident"),
            Column("next", "next engine", numeric=False),
            Column("peak", "peak device"),
            Column("bits", "bits of resident", numeric=False),
            Column("file", "campaign", numeric=False),
        ],
        caption="The crossover map as numbers",
        note="Resident and whatever keeps all weights on the device stand outside. "
        + (". ".join(cheap) + "." if cheap else "No fall of the cost below 1 % is bracketed."),
    )


def _rival(spot: Spot) -> Cell | None:
    """The fastest row of another engine, and whether the samples tell it from the first."""
    if spot.rival is None:
        return None
    report, row = spot.rival
    mine, its, over = step_ms(spot.row), step_ms(row), ratio(report, row)
    claim = "intervals apart" if apart(mine, its) else "not told apart"
    cost = _text(None if over is None else over - 1)
    return Cell(row["label"], text=f"{row['label']} {cost}", note=claim,
                engine=engine_of(row["label"]))  # fmt: skip
