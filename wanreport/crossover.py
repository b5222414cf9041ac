"""The crossover map: at how many tokens which engine is fastest, and what it costs over resident.

An engine is in it if it moves weights in a steady step: `resident`, `swap` and settings that keep
every block on the device are what the others are held against. Costs are to the first run of
`resident` in the same campaign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from textwrap import wrap

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

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
from .peers import (
    ABSENT,
    Found,
    bytes_cell,
    claim,
    engine_cell,
    percent_cell,
    step_cell,
    timed,
    words,
)
from .tables import MINUS, Cell, Column, counted, html_table, significant, tick

CHEAP = 0.01
"""A cost over resident below which streaming is as good as free: 1 %."""


@dataclass(frozen=True)
class Spot:
    """An engine at a shape, in the campaign ``name``; ``rival`` is the fastest other engine."""

    name: str
    report: Campaign
    row: Row
    rival: Spot | None = None

    @property
    def tokens(self) -> int:
        return int(self.row["tokens"])

    @property
    def cost(self) -> float | None:
        """Its step over resident's, less 1."""
        over = ratio(self.report, self.row)
        return None if over is None else over - 1

    @property
    def text(self) -> str:
        """Its cost, or its step where resident did not run.

        With one decimal at most: what is finer lies within the machine's drift.
        """
        if self.cost is None:
            return f"{significant(step_ms(self.row).median or 0.0, 4)} ms"
        text = f"{self.cost:+.1%}" if abs(self.cost) < 0.0995 else f"{self.cost:+.0%}"
        return text.replace("-", MINUS).replace("%", " %")


def spots(found: Sequence[Found]) -> dict[str, list[Spot]]:
    """Return the fastest engines of each machine, ranks and branches, by rising tokens.

    Where several campaigns have a shape, the one that costs least over its own resident counts.
    """
    groups: dict[str, dict[int, list[Spot]]] = {}
    for path, report in timed(found):
        for row in report["rows"]:
            if step_ms(row).n and moved(report, row):
                line = groups.setdefault(words(report), {})
                line.setdefault(row["tokens"], []).append(Spot(path.stem, report, row))
    return {name: [_fastest(line[tokens]) for tokens in sorted(line)]
            for name, line in groups.items()}  # fmt: skip


def _fastest(here: Sequence[Spot]) -> Spot:
    def rank(spot: Spot) -> tuple[float, float, str]:
        step = step_ms(spot.row).median or 0.0
        return math.inf if spot.cost is None else spot.cost, step, spot.name

    first, *others = sorted(here, key=rank)
    engine = engine_of(first.row["label"])
    rivals = (spot for spot in others if engine_of(spot.row["label"]) != engine)
    return replace(first, rival=next(rivals, None))


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


def draw(found: Sequence[Found], *, width: float = WIDTH) -> Picture:
    """Draw tokens × setting: the fastest engine as colour and marker, its cost as text.

    Raises NotAnswerable where nothing was measured.
    """
    lines = spots(found)
    if not lines:
        raise NotAnswerable(ABSENT)
    every = sorted({spot.tokens for line in lines.values() for spot in line})
    logs = [math.log(tokens) for tokens in every]
    ends = [(b - a) / 2 for a, b in pairwise(logs)] or [0.5]
    edges = [logs[0] - ends[0], *((a + b) / 2 for a, b in pairwise(logs)), logs[-1] + ends[-1]]
    figure, axes = draw_axes(width, 1.2 + 0.66 * len(lines))
    engines, said = set(), []
    for y, (name, line) in enumerate(lines.items()):
        for spot in line:
            left, right = edges[(column := every.index(spot.tokens)) : column + 2]
            engines.add(engine := engine_of(spot.row["label"]))
            colour, middle = engine_colour(engine), (left + right) / 2
            axes.add_patch(Rectangle(
                (left, y - 0.43), right - left, 0.86, facecolor=(colour, 0.2), linewidth=1.2,
                edgecolor=(colour, 0.9), linestyle="--" if engine in PEERS else "-"))  # fmt: skip
            axes.plot(middle, y - 0.17, ENGINE_MARKERS.get(engine, "o"), color=colour, markersize=6)
            axes.annotate(spot.text, (middle, y + 0.2), ha="center", va="center",
                          fontsize=7.5, color=INK)  # fmt: skip
        if cheap := cheap_from(line):
            axes.plot([math.log(cheap[2])] * 2, [y - 0.5, y + 0.5], color=INK, linewidth=3)
        said.append(f"{name}: {'; '.join(map(_say, line))}{_say_cheap(cheap)}")
    axes.set_yticks(
        range(len(lines)),
        ["\n".join(part for text in name.split("; ") for part in wrap(text, 26)) for name in lines],
    )
    axes.set_xticks(logs, [f"{tokens:,}" for tokens in every], rotation=40, ha="right")
    axes.set(
        xlabel="tokens, logarithmic; in a cell: cost over resident", xlim=(edges[0], edges[-1])
    )
    axes.set_ylim(len(lines) - 0.45, -0.55)
    handles: list[Artist] = [
        Line2D([], [], color=engine_colour(engine), marker=ENGINE_MARKERS.get(engine, "o"),
               linestyle="", label=engine + (" (peer)" if engine in PEERS else ""))
        for engine in sorted(engines)
    ]  # fmt: skip
    if any(map(cheap_from, lines.values())):
        handles.append(Line2D([], [], color=INK, linewidth=3, label="below 1 % from here on"))
    draw_legend(axes, handles=handles, ncols=4)
    return figure, f"Which engine that moves weights is fastest. {'. '.join(said)}."


def _say(spot: Spot) -> str:
    over = "" if spot.cost is None else " over resident"
    return f"at {spot.tokens:,} tokens {spot.row['label']}, {spot.text}{over}"


def _say_cheap(cheap: tuple[int, int, float] | None) -> str:
    if cheap is None:
        return ""
    fewer, more, at = cheap
    return (
        f"; the cost falls below 1 % between {fewer:,} and {more:,} tokens, interpolated at "
        f"{float(f'{at:.2g}'):,.0f}"
    )


def tables(found: Sequence[Found]) -> list[str]:
    """Return each line of the map as numbers, as HTML."""
    columns = [
        Column("tokens", "tokens"),
        Column("engine", "fastest", numeric=False),
        Column("cost", "over resident"),
        Column("drift", "drift of resident"),
        Column("step", "step", "median [95 % interval], n"),
        Column("next", "next engine", numeric=False),
        Column("peak", "device"),
        Column("bits", "bits", numeric=False),
        Column("file", "campaign", numeric=False),
    ]
    note = (
        "What keeps all weights on the device, as resident does, stands outside. Device is the"
        " fullest rank's allocated peak. "
    )
    found_none = "; that the cost falls below 1 % is not bracketed by measurements"
    return [
        html_table(
            [_cells(spot) for spot in line],
            columns,
            caption=f"The crossover map as numbers: {name}",
            note=f"{note}{(_say_cheap(cheap_from(line)) or found_none)[2:].capitalize()}.",
        )
        for name, line in spots(found).items()
    ]


def _cells(spot: Spot) -> dict[str, object]:
    blocks, rival = spot.report["settings"]["blocks"], None
    if other := spot.rival:
        its = other.row["label"]
        text, said = f"{its} {other.text}", claim(spot.row, other.row)
        rival = replace(engine_cell(its), text=text, note=said)
    return {
        "tokens": spot.tokens,
        "engine": engine_cell(spot.row["label"]),
        "cost": None if spot.cost is None else Cell(spot.cost, text=spot.text, kind="derived"),
        "drift": percent_cell(drift(spot.report, spot.tokens)),
        "step": step_cell(spot.row),
        "next": rival,
        "peak": bytes_cell(peak(spot.row, "allocated")),
        "bits": tick(identical(spot.report, spot.row)),
        "file": f"{spot.name}, {counted(blocks, 'block')}",
    }
