"""The crossover map: at how many tokens which engine is fastest, and what it costs over resident.

An engine is in it if it moves weights in a steady step: `resident`, `swap` and settings that keep
every block on the device are what the others are held against. A cost is a step over that of the
first run of `resident` in the same campaign, less 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from . import campaigns
from .answers import NotAnswerable
from .campaigns import PEERS, Campaign, Row, name_of, step_ms
from .figures import ENGINE_MARKERS, INK, WIDTH, Picture, draw_axes, draw_legend, engine_colour
from .peers import OVERLAP, Found, claim, engine_cell, off, order, timed, words
from .tables import (
    Cell,
    Column,
    counted,
    gigabytes,
    html_table,
    markdown,
    overhead,
    significant,
)

CHEAP = 0.01
"""A cost over resident below which streaming is as good as free: 1 %."""


@dataclass(frozen=True)
class Shape:
    """A length of sequence in one campaign, with the rows that move weights, the fastest first."""

    file: str
    report: Campaign
    tokens: int
    rows: Sequence[Row]

    def text(self, row: Row) -> str:
        """A row's cost, or its step where resident did not run."""
        cost = campaigns.cost(self.report, row)
        return f"{significant(_ms(row), 4)} ms" if cost is None else overhead(cost)

    @property
    def leaders(self) -> list[Row]:
        """The fastest row and those as fast: within 1 % of it, or with intervals that overlap."""
        best = self.rows[0]
        most = _ms(best) * (1 + CHEAP)
        return [r for r in self.rows if _ms(r) <= most or claim(r, best) == OVERLAP]


def _ms(row: Row) -> float:
    return step_ms(row).median or 0.0


def lines(found: Sequence[Found]) -> dict[str, list[Shape]]:
    """Return the shapes of each machine, ranks and branches, by rising tokens.

    Each is of one campaign: of several the one with most blocks, and the last by name.
    """
    groups: dict[str, dict[int, Shape]] = {}
    for path, report in sorted(timed(found), key=lambda item: item[1]["settings"]["blocks"]):
        for tokens in campaigns.shapes(report):
            here = [row for row in report["rows"] if row["tokens"] == tokens]
            rows = [row for row in here if step_ms(row).n and campaigns.moved(report, row)]
            if rows:
                rows.sort(key=lambda row: (_ms(row), row["label"]))
                shape = Shape(path.as_posix(), report, tokens, rows)
                groups.setdefault(words(report), {})[tokens] = shape
    return {name: [line[n] for n in sorted(line)] for name, line in sorted(groups.items())}


def lines_or_refuse(found: Sequence[Found]) -> dict[str, list[Shape]]:
    """Return :func:`lines`; raises NotAnswerable where nothing was measured."""
    if not (there := lines(found)):
        raise NotAnswerable("No campaign of engines beside their peers was measured on a GPU yet.")
    return there


def _costs(line: Sequence[Shape]) -> list[tuple[int, float]]:
    """Tokens and the fastest engine's cost, where resident ran too."""
    each = [(shape.tokens, campaigns.cost(shape.report, shape.rows[0])) for shape in line]
    return [(tokens, cost) for tokens, cost in each if cost is not None]


def cheap_from(line: Sequence[Shape]) -> tuple[int, int] | None:
    """Return the two shapes between which the cost falls below 1 % for good, if there are two."""
    crossed = None
    for (fewer, dear), (more, cheap) in pairwise(_costs(line)):
        if cheap >= CHEAP:
            crossed = None
        elif dear >= CHEAP:
            crossed = fewer, more
    return crossed


def answer(found: Sequence[Found]) -> str:
    """Return what the map says of each line, as Markdown; NotAnswerable as :func:`draw`."""
    there = lines_or_refuse(found).items()
    return "\n".join(
        f"- **{markdown(name)}**: {_cost_said(line)}.{_peers_said(line)}" for name, line in there
    )


def _cost_said(line: Sequence[Shape]) -> str:
    if not (costs := _costs(line)):
        return "resident was not measured, so no cost is known"
    (fewest, dear), (most, cheap) = costs[0], costs[-1]
    text = f"the fastest costs {overhead(dear)} over resident at {fewest:,} tokens"
    if most > fewest:
        text += f" and {overhead(cheap)} at {most:,}"
    if crossed := cheap_from(line):
        return f"{text}; the cost falls below 1 % between {crossed[0]:,} and {crossed[1]:,} tokens"
    if cheap < CHEAP:
        return f"{text}; it is below 1 % at every length measured"
    return f"{text}; where it falls below 1 % was not measured"


def _peers_said(line: Sequence[Shape]) -> str:
    behind = []
    for shape in line:
        steps: dict[bool, float] = {}  # the fastest ones, by whether it is a peer's
        for row in shape.rows:
            steps.setdefault(name_of(row["label"]) in PEERS, _ms(row))
        if len(steps) == 2:
            behind.append(steps[True] / steps[False] - 1)
    if not behind:
        return " No peer was measured beside it."
    ends = " to ".join(dict.fromkeys(map(overhead, (min(behind), max(behind)))))
    lengths = counted(len(behind), "length")
    return f" The best peer's step beside our best: {ends}, at {lengths}."


def draw(found: Sequence[Found], *, width: float = WIDTH) -> Picture:
    """Draw tokens × setting: the fastest engines as colours and markers, the cost as text.

    Raises NotAnswerable where nothing was measured.
    """
    there = lines_or_refuse(found)
    every = sorted({shape.tokens for line in there.values() for shape in line})
    logs = [math.log(tokens) for tokens in every]
    ends = [(b - a) / 2 for a, b in pairwise(logs)] or [0.5]
    edges = [logs[0] - ends[0], *((a + b) / 2 for a, b in pairwise(logs)), logs[-1] + ends[-1]]
    figure, axes = draw_axes(width, 1.2 + 0.66 * len(there))
    engines, said = set(), []
    for y, (name, line) in enumerate(there.items()):
        for shape in line:
            left, right = edges[(column := every.index(shape.tokens)) : column + 2]
            names = list(dict.fromkeys(campaigns.engine_of(row["label"]) for row in shape.leaders))
            engines.update(names)
            part = (right - left) / len(names)
            for x, engine in enumerate(names):
                colour = engine_colour(engine)
                axes.add_patch(
                    Rectangle((left + x * part, y - 0.43), part, 0.86, color=(colour, 0.25), lw=0)
                )
                axes.plot(left + (x + 0.5) * part, y - 0.17, ENGINE_MARKERS.get(engine, "o"),
                          color=colour, markersize=6)  # fmt: skip
            axes.add_patch(Rectangle((left, y - 0.43), right - left, 0.86, fill=False, ec=INK))
            text = shape.text(shape.rows[0])
            axes.annotate(text, ((left + right) / 2, y + 0.2), ha="center", va="center",
                          fontsize=7.5, color=INK)  # fmt: skip
            said.append(f"{name}: at {shape.tokens:,} tokens {' and '.join(names)}, {text}")
        if crossed := cheap_from(line):
            axes.plot([sum(map(math.log, crossed)) / 2] * 2, [y - 0.5, y + 0.5], color=INK,
                      linewidth=3)  # fmt: skip
            said.append(f"{name}: below 1 % from between {crossed[0]:,} and {crossed[1]:,} tokens")
    axes.set_yticks(
        range(len(there)),
        ["\n".join(part for text in name.split("; ") for part in wrap(text, 26)) for name in there],
    )
    axes.set_xticks(logs, [f"{tokens:,}" for tokens in every], rotation=40, ha="right")
    axes.set(
        xlabel="tokens, logarithmic; in a cell: cost over resident", xlim=(edges[0], edges[-1])
    )
    axes.set_ylim(len(there) - 0.45, -0.55)
    handles: list[Artist] = [
        Line2D([], [], color=engine_colour(engine), marker=ENGINE_MARKERS.get(engine, "o"),
               linestyle="", label=engine + (" (peer)" if engine in PEERS else ""))
        for engine in sorted(engines)
    ]  # fmt: skip
    if any(map(cheap_from, there.values())):
        handles.append(Line2D([], [], color=INK, linewidth=3, label="below 1 % from here on"))
    draw_legend(axes, handles=handles, ncols=4)
    return figure, f"The fastest engine that moves weights, cost over resident. {'. '.join(said)}."


def tables(found: Sequence[Found]) -> list[str]:
    """Return each line of the map as numbers, engine × tokens, as HTML."""
    return [_table(name, line) for name, line in lines(found).items()]


def _table(name: str, line: Sequence[Shape]) -> str:
    rows: dict[str, dict[str, object]] = {}
    for shape in line:
        resident = campaigns.find(shape.report, campaigns.FIRST, shape.tokens)
        for row in shape.rows if resident is None else [resident, *shape.rows]:
            step = f"{significant(_ms(row), 4)} ms"
            peak = gigabytes(campaigns.peak(row, "allocated"), 3)
            if row is not resident:
                arrow = "→ " if row in shape.leaders else ""
                text = arrow + shape.text(row)
                cell = Cell(_ms(row), text=text, note=f"{step}, {peak}", kind="derived")
            elif resident["ranks"]:
                cell = Cell(_ms(row), text=step, note=peak)
            else:
                cell = Cell(None, text=row["status"])
            label = row["label"]
            label = "stream" if name_of(label) == "stream" else label
            # Of several settings of stream the fastest, which comes first.
            cells = rows.setdefault(label, {"engine": engine_cell(label)})
            cells.setdefault(str(shape.tokens), cell)
    drifts = [abs(by) for s in line if (by := campaigns.drift(s.report, s.tokens)) is not None]
    drifted = "Resident did not run again at the end, so how far the machine drifted is not known."
    if drifts:
        drifted = f"From its first run to its last resident drifted by {off(max(drifts))} at most."
    numbers = sorted({step_ms(row).n for shape in line for row in shape.rows})
    files = sorted({shape.file for shape in line})
    return html_table(
        [rows[label] for label in sorted(rows, key=order)],
        [
            Column("engine", "engine", numeric=False),
            *(Column(str(shape.tokens), f"{shape.tokens:,} tokens",
                     counted(shape.report["settings"]["blocks"], "block")) for shape in line),
        ],
        caption=f"Cost over resident: {name}",
        note="Below a cost stand the step and the fullest rank's peak of device memory. → is the "
        "fastest that moves weights, and each that is within 1 % of it or whose interval overlaps "
        f"its own. Of stream's fixed settings the fastest is shown. {drifted} Medians of n = "
        f"{', '.join(map(str, numbers))} steps; from "
        f"{', '.join(files)}.",
    )  # fmt: skip
