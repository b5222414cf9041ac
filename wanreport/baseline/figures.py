"""The baseline's figures. Each takes the facts and returns ``(Figure, alt_text)``.

Only stated values are drawn: an average over a range of steps is a bar over that range, never a
series of invented samples. Numbers in a figure are written as the document prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wanreport.baseline.facts import Facts
from wanreport.figures import ENGINE_COLOURS, INK, WIDTH, Picture
from wanreport.schedule import flow_schedule

NEW, OLD = ENGINE_COLOURS["layerwise"], ENGINE_COLOURS["fsdp"]
"""Colours of the new and the old offload: those of the engines that stand for them."""

LOW, HIGH = "#8a6fc9", "#3a8fa8"
"""Colours of the two flow shifts."""


def per_step(facts: Facts) -> Picture:
    """Time of each step (§3.3): stated steps as points, stated averages as bars over their range.

    The axis is broken between the steady steps and the two slow ones.
    """
    fig = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes: Sequence[Axes] = fig.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    high, low = axes
    for side, color, shift in (("new", NEW, -0.12), ("old", OLD, 0.12)):
        for part in ("first", "switch"):
            _point(axes, facts, f"s3.3.{part}.step", f"s3.3.{part}.{side}", color, shift)
        for part in ("early", "late"):
            _bar(axes, facts, f"s3.3.{part}", side, color)
    slow = facts.number("s3.3.switch.old")
    high.set_ylim(slow * 0.8, facts.number("s3.3.first.new") * 1.12)
    steady = [facts.number(f"s3.3.{p}.{s}") for p in ("early", "late") for s in ("new", "old")]
    low.set_ylim(min(steady) - 0.6, max(*steady, facts.number("s3.3.switch.new")) + 0.6)
    _broken(high, low)
    _switch_line(axes, facts.number("s3.3.switch.step"))
    low.set_xlabel("step, as the progress bar counts")
    fig.supylabel("seconds per step", color=INK, fontsize=9)
    low.set_xticks([1, 5, 10, 15, 20, 25, int(facts.number("s3.3.late.last"))])
    _key(high, (("new offload", NEW), ("old offload", OLD)))
    for ax in axes:
        _plain(ax)
    alt = (
        "Step {s3.3.first.step} takes {s3.3.first.new} with the new and {s3.3.first.old} with the "
        "old offload. At step {s3.3.switch.step}, the switch, the old one rises to "
        "{s3.3.switch.old} while the new one stays at {s3.3.switch.new}. Before and after it the "
        "new one averages {s3.3.early.new} and {s3.3.late.new}, the old one {s3.3.early.old} and "
        "{s3.3.late.old}."
    )
    return fig, facts.fill(alt)


def bytes_per_step(facts: Facts) -> Picture:
    """Bytes over PCIe in one step against the number of GPUs (§6.1), each and all together."""
    fig = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes: Sequence[Axes] = fig.subplots(1, 2)
    columns = ("g2", "g4", "g6")
    gpus = [facts.number(f"s6.1.gpus.{column}") for column in columns]
    for ax, which, title in (
        (axes[0], "each", "H2D per GPU"),
        (axes[1], "all", "all PCIe traffic"),
    ):
        for side, color, above in (("new", NEW, True), ("old", OLD, False)):
            names = [f"s6.1.{side}_{which}.{column}" for column in columns]
            values = [facts.number(name) for name in names]
            # Dashed, as nothing here was measured.
            ax.plot(gpus, values, "o--", color=color, linewidth=1.4, markersize=6)
            rises = values[-1] > values[0]
            for x, value, name in zip(gpus, values, names, strict=True):
                ax.annotate(
                    facts.text(name), (x, value), xytext=(0, 7 if above else -14),
                    textcoords="offset points", fontsize=8, color=color,
                    ha="right" if rises else "center",
                )  # fmt: skip
        top = max(facts.number(f"s6.1.new_{which}.{column}") for column in columns)
        ax.set_ylim(-0.12 * top, top * 1.2)
        ax.set_xlim(min(gpus) - 1.1, max(gpus) + 0.7)
        ax.set_xticks(gpus)
        ax.set_xlabel("GPUs")
        ax.set_title(title, fontsize=10, color=INK)
        _plain(ax)
    axes[0].set_ylabel("GB per step")
    _key(axes[0], (("new offload", NEW), ("old offload (FSDP)", OLD)), at="center right")
    alt = (
        "From {s6.1.gpus.g2} to {s6.1.gpus.g6} GPUs the new offload stays at {s6.1.new_each.g6} "
        "per GPU, so its total grows from {s6.1.new_all.g2} to {s6.1.new_all.g6}. The old one "
        "falls from {s6.1.old_each.g2} to {s6.1.old_each.g6} per GPU and its total stays at "
        "{s6.1.old_all.g6}."
    )
    return fig, facts.fill(alt)


def schedules(facts: Facts) -> Picture:
    """Timesteps for both shifts, computed, with the boundary and where each falls below it."""
    fig = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    ax = fig.subplots()
    steps = int(facts.number("s2.steps"))
    boundary = facts.number("s5.5.boundary")
    switches = []
    for which, color in (("low", LOW), ("high", HIGH)):
        times = flow_schedule(steps, facts.number(f"s5.5.shift.{which}")).timesteps
        ax.plot(range(steps), times, "o", color=color, markersize=4)
        switch = next(i for i, time in enumerate(times) if time < boundary)
        switches.append(switch)
        ax.plot([switch], [times[switch]], "o", color=color, markersize=9, markerfacecolor="none")
        ax.annotate(
            f"step {switch}", (switch, times[switch]), xytext=(-4, -18), ha="right",
            textcoords="offset points", fontsize=9, color=color,
        )  # fmt: skip
    ax.axhline(boundary, color=INK, linewidth=1)
    ax.text(steps - 1, boundary + 12, f"boundary {facts.text('s5.5.boundary')}",
            ha="right", va="bottom", fontsize=8, color=INK)  # fmt: skip
    ax.set_xlabel("step, counted from zero")
    ax.set_ylabel("timestep")
    ax.set_ylim(0, facts.number("s5.5.train_timesteps") * 1.06)
    labels = [f"flow_shift {facts.text(f's5.5.shift.{which}')}" for which in ("low", "high")]
    _key(ax, ((labels[0], LOW), (labels[1], HIGH)), at="lower left")
    _plain(ax)
    alt = (
        "Timesteps fall from the first step to the last, at first slowly and then faster, and more "
        "slowly with flow_shift {s5.5.shift.high} than with {s5.5.shift.low}. They fall below the "
        f"boundary of {{s5.5.boundary}} at step {switches[1]} and at step {switches[0]}."
    )
    return fig, facts.fill(alt)


# Drawing -----------------------------------------------------------------------------------------


def _point(
    axes: Sequence[Axes], facts: Facts, step: str, name: str, color: str, shift: float
) -> None:
    """One stated step, drawn on every axis; the limits decide where it is seen."""
    x, y = facts.number(step) + shift, facts.number(name)
    for ax in axes:
        ax.plot([x], [y], "o", color=color, markersize=7, clip_on=True)
        ax.annotate(
            facts.text(name), (x, y), xytext=(7, 4 if shift < 0 else -4),
            textcoords="offset points", ha="left", va="center", fontsize=8, color=color,
            annotation_clip=True,
        )  # fmt: skip


def _bar(axes: Sequence[Axes], facts: Facts, group: str, side: str, color: str) -> None:
    """A stated average over a range of steps."""
    first, last = facts.number(f"{group}.first"), facts.number(f"{group}.last")
    name = f"{group}.{side}"
    y = facts.number(name)
    for ax in axes:
        ax.plot([first - 0.4, last + 0.4], [y, y], color=color, linewidth=4, alpha=0.8,
                solid_capstyle="butt")  # fmt: skip
        ax.annotate(
            f"{facts.text(name)} on average", ((first + last) / 2, y), color=color, fontsize=8,
            xytext=(0, 6), textcoords="offset points", ha="center",
            annotation_clip=True,
        )  # fmt: skip


def _switch_line(axes: Sequence[Axes], step: float) -> None:
    for ax in axes:
        ax.axvline(step, color=INK, alpha=0.16, linewidth=8, zorder=0)
    axes[0].annotate("switch", (step, 0.97), xycoords=("data", "axes fraction"), ha="center",
                     va="top", fontsize=8, color=INK)  # fmt: skip


def _broken(high: Axes, low: Axes) -> None:
    """Show that the vertical axis is broken between two axes."""
    high.spines["bottom"].set_visible(False)
    high.tick_params(bottom=False)
    slant: dict[str, Any] = {
        "marker": [(-1, -0.5), (1, 0.5)],
        "markersize": 9,
        "linestyle": "none",
        "mew": 1,
    }
    high.plot([0], [0], transform=high.transAxes, color=INK, clip_on=False, **slant)
    low.plot([0], [1], transform=low.transAxes, color=INK, clip_on=False, **slant)


def _key(ax: Axes, entries: Sequence[tuple[str, str]], *, at: str = "upper right") -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=label) for label, color in entries]
    ax.legend(handles=handles, frameon=False, fontsize=8, labelcolor=INK, loc=at)


def _plain(ax: Axes) -> None:
    """Neutral axes that a page can recolour, with a light grid and no box."""
    for side, spine in ax.spines.items():
        spine.set_color(INK)
        if side in {"top", "right"}:
            spine.set_visible(False)
    ax.tick_params(colors=INK, labelsize=8)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=INK, alpha=0.2, linewidth=0.7)
