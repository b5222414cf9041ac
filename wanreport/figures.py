"""Pictures of records, each with an alternative text that states what the picture shows.

Every function takes records and returns ``(Figure, alt_text)``; nothing touches pyplot's global
state, and sizes are keyword-only. Text, axes and rules are drawn in :data:`INK` on a transparent
ground: the renderer replaces that one colour by the page's own text colour, so that a figure fits
a light and a dark page. The engine colours are the same in every figure; they are told apart by
people with colour-vision deficiencies, keep a contrast of at least 3:1 on white and on near-black,
and are never the only cue.

A record that cannot answer raises :class:`wanreport.answers.NotAnswerable`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .answers import (
    COUNTERS,
    MEMORY_KEYS,
    NotAnswerable,
    Record,
    budgets,
    clean_budget,
    counters_derived,
    each_job,
    engine_name,
    extrapolation,
    full_scale_or_refuse,
    get,
    is_full_scale,
    iteration_names,
    iterations,
    iterations_or_refuse,
    job_name,
    moved,
    peak_memory,
    ranks,
    sampled,
    step_seconds,
    switch_step,
)
from .lanes import common, length_of, merged, spans_of
from .tables import counted, gigabytes, plain, seconds, significant

INK = "#5b6470"

ENGINE_COLOURS: dict[str, str] = {
    "resident": "#0764af",
    "swap": "#b96c92",
    "fsdp": "#30a854",
    "layerwise": "#de6200",
    "stream": "#0f94ff",
    "diffusers": "#cc0024",  # from here on peers
    "sglang": "#8a00fc",
}

ENGINE_MARKERS = {"resident": "s", "swap": "D", "fsdp": "^", "layerwise": "o", "stream": "v",
                  "diffusers": "P", "sglang": "X"}  # fmt: skip

WIDTH = 7.2  # inches; with the font sizes below this still reads at a phone's width
NEAR_SWITCH = 4  # block visits shown on each side of the switch in a timeline

Picture = tuple[Figure, str]


def engine_colour(name: str) -> str:
    """Return an engine's colour; INK for an engine that this package does not know."""
    return ENGINE_COLOURS.get(name, INK)


# What ran (any scale) ----------------------------------------------------------------------------


def schedule(record: Record, *, width: float = WIDTH, height: float = 2.8) -> Picture:
    """Draw the timestep of each step, which expert runs it, and where the switch lies."""
    times = get(record, "schedule", "timesteps", default=[])
    if not times:
        raise NotAnswerable("No schedule was recorded before the job ended.")
    figure, axes = draw_axes(width, height)
    at = switch_step(record)
    _shade_experts(axes, len(times), at)
    axes.step(range(len(times)), times, where="mid", color=INK, linewidth=0.8, alpha=0.6)
    colour = engine_colour(engine_name(record))
    axes.plot(range(len(times)), times, "o", color=colour, markersize=4.5)
    ratio = get(record, "model", "boundary_ratio")
    boundary = None if ratio is None else ratio * 1000  # the schedulers' own training timesteps
    if boundary is not None:
        axes.axhline(boundary, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"boundary {boundary:g}",
            (len(times) - 0.6, boundary),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=INK,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step index", ylabel="timestep", xlim=(-0.6, len(times) - 0.4))
    axes.set_ylim(0, max(times) * 1.18)
    alt = (
        f"Timesteps of the {len(times)} denoising steps, from {times[0]:g} down to {times[-1]:g}. "
    )
    if at is None:
        alt += "One expert runs all of them."
    else:
        alt += (
            f"The high-noise expert runs steps 0 to {at - 1}, the low-noise expert steps {at} to "
            f"{len(times) - 1}: the switch is at step index {at}, the first whose timestep, "
            f"{times[at]:g}, is below the boundary"
            + (f" of {boundary:g}." if boundary is not None else ".")
        )
    return figure, alt


def moved_bytes(record: Record, *, width: float = WIDTH) -> Picture:
    """Draw the bytes to the device and back of each iteration beside the closed formula.

    Of several ranks the one that moved most is drawn.
    """
    rows = [row for row in moved(record) if row.counter.endswith("_bytes")]
    if not rows:
        raise NotAnswerable("The record has no counters of bytes.")
    figure, axes = draw_axes(width, 0.7 + 0.42 * len(rows))
    colour = engine_colour(engine_name(record))
    divisor, unit = _unit(max([*[max(row.measured) for row in rows], 1]))
    labels = []
    for y, row in enumerate(rows):
        value = max(row.measured)
        back = row.counter.startswith("d2h")
        axes.barh(
            y, value / divisor, height=0.62, facecolor=colour, alpha=0.45 if back else 0.85,
            edgecolor=colour, hatch="////" if back else None, linewidth=0,
        )  # fmt: skip
        if row.formula is not None:
            formula = max(row.formula) / divisor
            axes.plot([formula, formula], [y - 0.42, y + 0.42], color=INK, linewidth=2)
        _value_label(axes, value / divisor, y, gigabytes(value))
        labels.append(f"{row.iteration}, {'to host' if back else 'to device'}")
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} per rank; the upright stroke is the closed formula")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
    agree = [None if counters_derived(record) else row.agrees for row in rows]
    said = "; ".join(
        f"{row.iteration} {gigabytes(max(row.measured))} {COUNTERS[row.counter][6:]}"
        for row in rows
    )
    verdict = (
        "All equal the closed formula."
        if all(agree)
        else "They are derived, not counted, or have no formula to compare with."
        if None in agree
        else "Not all equal the closed formula."
    )
    return figure, f"Bytes moved per rank by engine {engine_name(record)}: {said}. {verdict}"


def timeline(record: Record, *, width: float = WIDTH, height: float = 2.9) -> Picture:
    """Draw what compute, copies and collectives did around the switch, on rank 0.

    At full scale the axis is time in milliseconds. Of a rehearsal it is the order in which things
    began, since its times say nothing about a GPU.
    """
    events = _around_switch(record)
    timed = is_full_scale(record)
    lanes = [lane for lane in ("compute", "copy", "gather", "collective") if any(
        event["lane"] == lane for event in events)]  # fmt: skip
    figure, axes = draw_axes(width, height)
    own = engine_colour(engine_name(record))
    colours = {"compute": INK, "copy": own, "gather": own, "collective": INK}
    origin = min(event["start_ms"] for event in events)
    starts = []
    for order, event in enumerate(events):
        start = event["start_ms"] - origin if timed else float(order)
        length = event["end_ms"] - event["start_ms"] if timed else 0.85
        starts.append(start)
        release = event["what"] == "release"
        axes.barh(
            lanes.index(event["lane"]), length, left=start, height=0.6,
            facecolor="none" if release else colours[event["lane"]],
            alpha=0.45 if event["lane"] in ("gather", "collective") else 0.85,
            edgecolor=colours[event["lane"]], linewidth=0.8 if release or timed else 0.4,
            hatch="xxxx" if event["what"] == "switch" else None,
        )  # fmt: skip
        if event["what"] in ("block", "load") and event["block"] is not None and len(events) < 90:
            axes.annotate(
                str(event["block"]), (start + length / 2, lanes.index(event["lane"]) - 0.38),
                ha="center", va="bottom", fontsize=6.5, color=INK,
            )  # fmt: skip
    at = _first_of_switch(record, events)
    if at is not None:
        axes.axvline(starts[at], color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.annotate(
            "switch", (starts[at], len(lanes) - 0.45), xytext=(3, 0),
            textcoords="offset points", fontsize=8, color=INK, va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.3, -0.75)
    axes.set_xlabel("milliseconds" if timed else "order of events (order, not time)")
    keys = [
        Patch(
            facecolor="none" if what == "release" else colours["copy"], edgecolor=colours["copy"],
            hatch="xxxx" if what == "switch" else None, label=label,
        )
        for what, label in (("load", "load of a block"), ("release", "release of a block"),
                            ("switch", "move of an expert"))
        if any(event["what"] == what for event in events)
    ]  # fmt: skip
    if keys:
        draw_legend(axes, handles=keys)
    kinds = {"block": "block run", "load": "load", "release": "release", "switch": "expert move",
             "all_to_all": "all-to-all", "all_gather": "gather"}  # fmt: skip
    tally = ", ".join(
        counted(number, word)
        for what, word in kinds.items()
        if (number := sum(event["what"] == what for event in events))
    )
    alt = (
        f"{'Timeline' if timed else 'Order of events'} around the switch on rank 0, engine "
        f"{engine_name(record)}: {tally}. "
    )
    if counters_derived(record):
        return figure, f"{alt}Its copies are hidden in the library and not shown."
    beside = _collisions(events) if timed and ranks(record) > 1 else ""
    return figure, (alt + _loads_finding(events) + beside).strip()


def _collisions(events: Sequence[Mapping[str, Any]]) -> str:
    """Return for how much of their time copies ran beside a collective."""
    copies, collectives = (merged(spans_of(events, lane)) for lane in ("copy", "collective"))
    copied = length_of(copies)
    if not copied or not collectives:
        return ""
    beside = common(copies, collectives)
    return f" Copies run for {plain(copied)} ms, {plain(beside)} ms of that beside a collective."


def _around_switch(record: Record) -> list[dict[str, Any]]:
    """Return the events from a few block runs before the switch to a few after, by start."""
    events = sorted(
        (event for event in get(record, "timeline", default=[]) if event.get("end_ms") is not None),
        key=lambda event: (event["start_ms"], event["end_ms"], event["lane"]),
    )
    if not events:
        raise NotAnswerable("The job recorded no timeline; only a profiled iteration has one.")
    at = _first_of_switch(record, events)
    if at is None:
        return events[:80]
    blocks = [i for i, event in enumerate(events) if event["what"] == "block"]
    before = [i for i in blocks if i < at][-NEAR_SWITCH:]
    after = [i for i in blocks if i >= at][: NEAR_SWITCH + 1]
    return events[(before or [0])[0] : (after or [len(events)])[-1]]


def _first_of_switch(record: Record, events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the position of the first event of the step at which the low-noise expert begins."""
    at = switch_step(record)
    return next((i for i, event in enumerate(events) if event.get("step") == at), None)


def _loads_finding(events: Sequence[Mapping[str, Any]]) -> str:
    """Return what the order of the events shows about the copies; it holds at every scale."""
    loads = [e for e in events if e["lane"] == "copy" and e["what"] in ("load", "switch")]
    if not loads:
        return "No weights are copied."
    runs = [e for e in events if e["what"] == "block"]
    if not any(load["what"] == "load" for load in loads):
        return ""
    ahead = known = 0
    for load in loads:
        run = next(
            (
                r
                for r in runs
                if (r["expert"], r["block"]) == (load["expert"], load["block"])
                and r["start_ms"] >= load["start_ms"]
            ),
            None,
        )
        if run is not None:
            known += 1
            ahead += any(load["start_ms"] <= r["start_ms"] < run["start_ms"] for r in runs)
    if not known:
        return "The loads shown are for blocks that run later than the part shown."
    return f"{ahead} of {known} loads whose block is shown begin a block or more ahead."


# Time and memory (full scale only) ---------------------------------------------------------------


def per_step(record: Record, *, width: float = WIDTH, height: float = 3.3) -> Picture:
    """Draw each iteration's time per step, experts shaded and the switch marked.

    A first step that is far above all others (compilation, first loads) is cut off and labelled.
    """
    full_scale_or_refuse(record, "The time per step")
    found = iterations_or_refuse(record)
    figure, axes = draw_axes(width, height)
    colour = engine_colour(engine_name(record))
    times = [step_seconds(iteration) for iteration in found]
    at = switch_step(record)
    length = len(get(record, "schedule", "timesteps", default=[]))
    _shade_experts(axes, length, at)
    first_ones = [steps[0] for steps in times]
    top = 1.25 * max([s for steps in times for i, s in steps.items() if i] or first_ones)
    styles = {"warmup": (":", 0.7), "clean": ("-", 1.0), "profiled": ("--", 0.7)}
    for name, iteration, steps in zip(iteration_names(found), found, times, strict=True):
        line, alpha = styles.get(iteration["kind"], ("-", 1.0))
        _step_line(
            axes, {i: min(s, top) for i, s in steps.items()}, linestyle=line, color=colour,
            alpha=alpha, marker=ENGINE_MARKERS.get(engine_name(record), "o"), label=name,
        )  # fmt: skip
        if steps[0] > top:
            axes.annotate(
                f"{name}: {seconds(steps[0])} ↑", (0, top), xytext=(5, -3),
                textcoords="offset points", va="top", fontsize=8, color=INK,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step index", ylabel="seconds per step (slowest rank)")
    axes.set_xlim(-0.6, length - 0.4)
    axes.set_ylim(0, top * 1.12)
    draw_legend(axes)
    clean = clean_budget(record)
    alt = (
        f"Seconds per step of {job_name(record)}. In clean iterations the steps that are neither "
        f"first nor switch take {clean.steady.text('s')}"
    )
    if clean.switch is not None and clean.steady.median:
        ratio = clean.switch / clean.steady.median
        alt += (
            f"; the switch step, index {at}, takes {seconds(clean.switch)}, "
            f"{significant(ratio, 3)} times as long"
        )
    ran = f" Of these {sampled(record)} ran." if sampled(record) else ""
    return (
        figure,
        f"{alt}. The first step of the first iteration takes {seconds(times[0][0])}.{ran}",
    )


_PARTS = (("first step", "////", 0.9), ("switch step", "xxxx", 0.9),
          ("other steps", None, 0.55), ("decode", "----", 0.25))  # fmt: skip


def time_budget(record: Record, *, width: float = WIDTH) -> Picture:
    """Draw where the time of each iteration went."""
    bars = list(budgets(record).items())
    colour = engine_colour(engine_name(record))
    figure, axes = draw_axes(width, 1.1 + 0.5 * len(bars))
    for y, (_, spent) in enumerate(bars):
        left = 0.0
        values = (spent.first, spent.switch or 0.0, spent.steady_total, spent.decode or 0.0)
        for (_, hatch, alpha), value in zip(_PARTS, values, strict=True):
            axes.barh(
                y, value, left=left, height=0.62, facecolor=colour, alpha=alpha,
                hatch=hatch, edgecolor=INK, linewidth=0.5,
            )  # fmt: skip
            left += value
        _value_label(axes, left, y, seconds(left))
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.14)
    handles = [
        Patch(facecolor=INK, alpha=alpha, hatch=hatch, edgecolor=INK, label=name)
        for name, hatch, alpha in _PARTS
    ]
    draw_legend(axes, handles=handles, ncols=4)
    said = "; ".join(
        f"{name}: first step {seconds(spent.first)}"
        + (f", switch step {seconds(spent.switch)}" if spent.switch is not None else "")
        + f", other steps {seconds(spent.steady_total)}"
        + (f", decode {seconds(spent.decode)}" if spent.decode is not None else "")
        for name, spent in bars
    )
    return figure, f"Where the time went. {said}. {extrapolation(record)}".rstrip()


def memory(record: Record, *, width: float = WIDTH) -> Picture:
    """Draw the peaks of GPU and host memory, of the fullest rank, and the GPU's capacity."""
    peaks = peak_memory(record)
    bars = [
        (what, key, value) for key, what in MEMORY_KEYS.items() if (value := peaks[key]) is not None
    ]
    if not bars:
        raise NotAnswerable("The job ended before any memory was recorded.")
    colour = engine_colour(engine_name(record))
    figure, axes = draw_axes(width, 0.8 + 0.36 * len(bars))
    for y, (_, key, value) in enumerate(bars):
        host = not key.startswith(("allocated", "reserved"))
        axes.barh(
            y, value / 1e9, height=0.62, facecolor=colour, alpha=0.4 if host else 0.85,
            hatch="////" if host else None, edgecolor=INK, linewidth=0.4,
        )  # fmt: skip
        _value_label(axes, value / 1e9, y, gigabytes(value))
    _memory_axis(axes, [name for name, _, _ in bars], record)
    capacity = get(record, "machine", "gpu_memory_bytes")
    said = "; ".join(f"{name} {gigabytes(value)}" for name, _, value in bars)
    room = f" One GPU has {gigabytes(capacity)}." if capacity else ""
    return figure, f"Peak memory: {said}.{room}"


# Several records ---------------------------------------------------------------------------------


def side_by_side(records: Sequence[Record]) -> list[Picture]:
    """Draw comparable records beside one another: their steps, and their memory."""
    return [steps_side_by_side(records), memory_side_by_side(records)] if records else []


def steps_side_by_side(
    records: Sequence[Record], *, width: float = WIDTH, height: float = 3.3
) -> Picture:
    """Draw the seconds of each step of comparable records, the median over clean iterations."""
    figure, axes = draw_axes(width, height)
    at = switch_step(records[0])
    _shade_experts(axes, len(get(records[0], "schedule", "timesteps", default=[])), at)
    said, top = [], 0.0
    for number, record in enumerate(records):
        each = [step_seconds(iteration) for iteration in iterations(record, "clean")]
        middle = {i: statistics.median(steps[i] for steps in each) for i in each[0]}
        engine, top = engine_name(record), max(top, *middle.values())
        _step_line(
            axes, middle, color=engine_colour(engine), marker=ENGINE_MARKERS.get(engine, "o"),
            linestyle=("-", "--", ":")[number % 3], label=job_name(record),
        )  # fmt: skip
        last = f", at the switch {seconds(middle[at])}" if at in middle else ""
        said.append(f"{job_name(record)}: first step {seconds(middle[0])}{last}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step index", ylabel="seconds per step (slowest rank)")
    axes.set_ylim(0, 1.25 * top)
    draw_legend(axes)
    ran = f" Of these {sampled(records[0])} ran." if sampled(records[0]) else ""
    return figure, f"Seconds per step, engines side by side. {'; '.join(said)}.{ran}"


def _step_line(axes: Axes, times: Mapping[int, float], **look: Any) -> None:
    """Draw one iteration's steps; where steps did not run, the line is broken."""
    line: dict[int, float] = {}
    for index in times:
        if index and index - 1 not in times:
            line[index - 1] = float("nan")
        line[index] = times[index]
    axes.plot(list(line), list(line.values()), markersize=4, linewidth=1.2, **look)


def memory_side_by_side(records: Sequence[Record], *, width: float = WIDTH) -> Picture:
    """Draw the peak of allocated GPU memory of comparable records, and the GPU's capacity."""
    bars = [
        (job_name(record), engine_name(record), peak)
        for record in records
        if (peak := peak_memory(record)["allocated_bytes"]) is not None
    ]
    if not bars:
        raise NotAnswerable("None of these jobs has its GPU memory recorded.")
    figure, axes = draw_axes(width, 0.8 + 0.36 * len(bars))
    for y, (_, engine, peak) in enumerate(bars):
        axes.barh(y, peak / 1e9, height=0.62, facecolor=engine_colour(engine), alpha=0.85)
        _value_label(axes, peak / 1e9, y, gigabytes(peak))
    said = "; ".join(f"{name} {gigabytes(peak)}" for name, _, peak in bars)
    _memory_axis(axes, [name for name, _, _ in bars], records[0])
    return figure, f"Peak of allocated GPU memory, of the fullest rank: {said}."


def _memory_axis(axes: Axes, names: Sequence[str], record: Record) -> None:
    """Name the bars, and mark what one GPU of the record's machine has."""
    capacity = get(record, "machine", "gpu_memory_bytes")
    if capacity:
        axes.axvline(capacity / 1e9, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    note = "; dashed: the GPU's capacity" if capacity else ""
    axes.set_xlabel(f"peak of the fullest rank, GB{note}")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.2)


def compare_moved(records: Sequence[Record], *, width: float = WIDTH) -> Picture:
    """Draw how many experts' worth of bytes each rank copies to its device per step.

    Only the full model is drawn, or the tiny one where there is nothing else: a tiny model has
    fewer blocks beside its outer weights, so its shares are others. A job that moves as much on
    several machines has one bar.
    """
    counted_ones = [record for record in records if experts_per_step(record) is not None]
    scales = {str(get(record, "job", "scale")) for record in counted_ones}
    scale = "a14b" if "a14b" in scales else "tiny"
    drawn = [record for record in counted_ones if get(record, "job", "scale") == scale]
    bars = [
        (ranks(record), engine_name(record), name, experts_per_step(record) or 0.0)
        for name, record in each_job(drawn, experts_per_step)
    ]
    if not bars:
        raise NotAnswerable("No record has counters to compare.")
    bars.sort()
    figure, axes = draw_axes(width, 0.8 + 0.36 * len(bars))
    for y, (_, engine, _, worth) in enumerate(bars):
        axes.barh(y, worth, height=0.62, facecolor=engine_colour(engine), alpha=0.85)
        _value_label(axes, worth, y, significant(worth, 3))
    labels = [fill(f"{name} ({counted(number, 'rank')})", 36) for number, _, name, _ in bars]
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"bytes to the device per step and rank, in whole experts (scale {scale})")
    axes.set_xlim(0, max(axes.get_xlim()[1], 0.01) * 1.16)
    said = "; ".join(
        f"{name} on {counted(number, 'rank')}: {significant(worth, 3)}"
        for number, _, name, worth in bars
    )
    alt = f"Bytes to the device per step and rank, in whole experts, at scale {scale}. {said}."
    return figure, alt


def experts_per_step(record: Record) -> float | None:
    """Return the bytes to the device per step and rank over the bytes of one expert.

    It is taken from the last iteration, when nothing is loaded for the first time any more; of
    several ranks the one that moved most counts. None where the record has no counters.
    """
    size, found = get(record, "model", "expert_bytes"), iterations(record)
    counters = found[-1].get("counters") if found else None
    if not size or not counters:
        return None
    return float(max(rank["h2d_bytes"] for rank in counters) / len(found[-1]["steps"]) / size)


def gpus_curve(
    *,
    title: str,
    measured: Mapping[tuple[str, int], float],
    predicted: Mapping[tuple[str, int], float],
    over: Mapping[tuple[str, int], float],
    expected: Mapping[tuple[str, int], float],
) -> Picture:
    """Draw seconds of a steady step and its overhead over resident against the number of GPUs.

    Parameters
    ----------
    measured, predicted, over, expected
        By engine's label and GPUs: seconds, and shares of resident's step.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained", facecolor="none")
    upper, lower = figure.subplots(2, 1, sharex=True, subplot_kw={"facecolor": "none"})
    labels = list(dict.fromkeys(label for label, _ in [*measured, *predicted]))
    looks: dict[str, dict[str, Any]] = {
        label: {"color": engine_colour(engine), "marker": ENGINE_MARKERS.get(engine, "o")}
        for label in labels for engine in [label.partition(",")[0]]
    }  # fmt: skip

    def line(values: Mapping[tuple[str, int], float], label: str) -> dict[int, float]:
        return {n: value for (name, n), value in sorted(values.items()) if name == label}

    for axes, seen, told, scale in ((upper, measured, predicted, 1), (lower, over, expected, 100)):
        _bare(axes)
        for label, look in looks.items():
            for values, how in (
                (told, {"linestyle": "--", "linewidth": 1.2, "color": look["color"]}),
                (seen, {"linestyle": "", "markersize": 6, **look}),
            ):
                points = line(values, label)
                axes.plot(list(points), [scale * value for value in points.values()], **how)
    lower.set_xticks(sorted({n for _, n in [*measured, *predicted]}))
    lower.set(xlabel="GPUs", ylabel="over resident, %")
    low, high = lower.get_ylim()
    lower.set_ylim(min(low, -1), max(high, 5))  # a fraction of a per cent must not look large
    upper.set_ylabel("seconds per steady step")
    upper.set_ylim(0)
    handles = [Line2D([], [], linewidth=1.2, label=label, markersize=6, linestyle="--", **look)
               for label, look in looks.items()]  # fmt: skip
    draw_legend(upper, handles=handles, ncols=3, title="lines: predicted; marks: measured")

    def say(values: Mapping[tuple[str, int], float], scale: float, unit: str) -> str:
        return "; ".join(
            f"{label} " + ", ".join(f"{n}: {significant(scale * v, 3)}" for n, v in points.items())
            for label in labels if (points := line(values, label))
        ) + f" {unit}" if values else "nothing"  # fmt: skip

    return figure, (
        f"Steady step and overhead over resident by number of GPUs, {title}. "
        f"Measured: {say(measured, 1, 's')}; over resident {say(over, 100, '%')}. "
        f"Predicted: {say(predicted, 1, 's')}; over resident {say(expected, 100, '%')}."
    )


# Drawing -----------------------------------------------------------------------------------------


def draw_axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Leave only the left and the lower axis, in the colour of the page's text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)


def _shade_experts(axes: Axes, steps: int, at: int | None) -> None:
    """Shade the low-noise expert's steps and name both experts at the top."""
    if at is None:
        return
    axes.axvspan(at - 0.5, steps - 0.4, facecolor=INK, alpha=0.09, linewidth=0)
    axes.axvline(at - 0.5, color=INK, linewidth=1.1)
    for middle, text in (((at - 1) / 2, "high noise"), ((at + steps - 1) / 2, "low noise")):
        axes.annotate(
            text, (middle, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top",
            fontsize=8, color=INK,
        )  # fmt: skip


def _value_label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, color=INK
    )


def draw_legend(axes: Axes, **options: Any) -> None:
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8, labelcolor=INK,
        **({"ncols": 3} | options),
    )  # fmt: skip


def _unit(most: float) -> tuple[float, str]:
    for divisor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= divisor:
            return divisor, unit
    return 1.0, "B"
