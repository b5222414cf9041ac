"""Figures say what they show, refuse what a record cannot answer, and are legible everywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import synthetic

from wanreport import figures
from wanreport.answers import NotAnswerable

ENGINES = {"new-4gpu": "layerwise", "old-4gpu-fsdp": "fsdp", "old-4gpu-swap": "swap",
           "pure-4gpu": "resident"}  # fmt: skip
TIMED = [figures.per_step, figures.time_budget, figures.memory]
ANY_SCALE = [figures.schedule, figures.moved_bytes, figures.timeline]


def svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    return out.getvalue()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("draw", [*TIMED, *ANY_SCALE], ids=lambda draw: draw.__name__)
def test_every_figure_draws_a_full_scale_record(
    draw: Callable[..., figures.Picture], name: str
) -> None:
    figure, alt = draw(synthetic.record(name, scale="a14b"))
    assert len(alt) > 40
    assert "None" not in alt and "nan" not in alt
    assert figures.INK in svg(figure)


@pytest.mark.parametrize("draw", ANY_SCALE, ids=lambda draw: draw.__name__)
def test_a_rehearsal_shows_order_counts_and_bytes(draw: Callable[..., figures.Picture]) -> None:
    figure, alt = draw(synthetic.record())
    text = svg(figure) + alt
    assert "milliseconds" not in text and "seconds" not in text


@pytest.mark.parametrize("draw", TIMED, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    "options", [{"scale": "tiny"}, {"scale": "tiny", "device": "cuda"},
                {"scale": "a14b", "device": "cpu"}], ids=str)  # fmt: skip
def test_time_and_memory_of_a_rehearsal_are_refused(
    draw: Callable[..., figures.Picture], options: dict[str, str]
) -> None:
    record = synthetic.record(**options)
    with pytest.raises(NotAnswerable, match=f"new-4gpu-{record['job_hash']}.json"):
        draw(record)


@pytest.mark.parametrize("draw", [*TIMED, *ANY_SCALE], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "unsupported"])
def test_a_job_that_did_not_run_is_refused_with_a_reason(
    draw: Callable[..., figures.Picture], status: str
) -> None:
    with pytest.raises(NotAnswerable):
        draw(synthetic.record(scale="a14b", status=status))


def test_the_schedule_names_the_switch() -> None:
    _, alt = figures.schedule(synthetic.record())
    assert "switch is at step index 18" in alt
    assert "from 999" in alt


def test_the_time_per_step_names_the_spike() -> None:
    _, alt = figures.per_step(synthetic.record("old-4gpu-swap", scale="a14b", switch_s=50.0))
    assert "index 18, takes 50.00 s" in alt
    assert "n = 25" in alt


def test_moved_bytes_says_whether_the_formula_holds() -> None:
    record = synthetic.record()
    assert "All equal the closed formula." in figures.moved_bytes(record)[1]
    record["iterations"][1]["expected_counters"][2]["h2d_bytes"] += 1
    assert "Not all equal" in figures.moved_bytes(record)[1]


def test_a_rehearsals_timeline_has_order_and_says_so() -> None:
    figure, alt = figures.timeline(synthetic.record())
    assert "order, not time" in svg(figure) or "order, not time" in str(figure.axes[0].get_xlabel())
    assert alt.startswith("Order of events")
    assert "begin a block or more ahead" in alt


def test_a_timeline_claims_no_overlap() -> None:
    for name in ENGINES:
        _, alt = figures.timeline(synthetic.record(name, scale="a14b"))
        assert "%" not in alt and "while no block runs" not in alt


def test_a_timeline_says_how_long_copies_ran_beside_collectives() -> None:
    record = synthetic.record("s", scale="a14b", engine="stream", num_gpus=2)
    _, alt = figures.timeline(record)
    assert "ms, 0 ms of that beside a collective" in alt
    at = record["schedule"]["switch_step"]
    first = next(e for e in record["timeline"] if e["lane"] == "collective" and e["step"] == at)
    record["timeline"].append({**first, "lane": "copy", "what": "load"})
    assert f"{first['end_ms'] - first['start_ms']:.2f} ms of that" in figures.timeline(record)[1]
    alone = synthetic.record("s", scale="a14b", engine="stream", num_gpus=1)
    assert "beside a collective" not in figures.timeline(alone)[1]


def test_engines_are_drawn_side_by_side() -> None:
    names = ("new-4gpu", "old-4gpu-swap")
    records = [synthetic.record(name, scale="a14b", sampled_steps=8) for name in names]
    figure, alt = figures.steps_side_by_side(records)
    assert "old-4gpu-swap: first step 19.70 s, at the switch 49.70 s" in alt
    assert "8 of 27 steps ran" in alt
    lines = [line for line in figure.axes[0].lines if line.get_label() in names]
    assert len(lines) == 2
    for line in lines:  # broken where steps did not run
        assert [x for x, y in line.get_xydata() if y != y] == [16.0]
    _, alt = figures.memory_side_by_side(records)
    assert "new-4gpu 22.88 GB; old-4gpu-swap 61.25 GB" in alt


def test_comparisons_take_only_what_can_be_compared() -> None:
    tiny, full = synthetic.all_jobs(), synthetic.all_jobs("a14b")
    assert "new-4gpu on 4 ranks" in figures.compare_moved(tiny)[1]
    assert "at scale tiny" in figures.compare_moved(tiny)[1]
    both = figures.compare_moved([*tiny, *full])[1]  # one scale a figure
    assert "at scale a14b" in both and both == figures.compare_moved(full)[1]
    with pytest.raises(NotAnswerable):
        figures.compare_moved([])


def on_two_machines() -> list[dict[str, Any]]:
    other = {"class": "4x NVIDIA H200", "slug": "4x-nvidia-h200"}
    return [synthetic.record("new-4gpu", scale="a14b", machine=m) for m in ({}, other)]


def test_a_job_that_moves_as_much_on_every_machine_has_one_bar() -> None:
    figure, alt = figures.compare_moved(on_two_machines())
    assert len(figure.axes[0].patches) == 1
    assert "new-4gpu on 4 ranks" in alt and "H200" not in alt


def test_machines_are_named_where_a_job_does_not_move_as_much_on_each() -> None:
    records = on_two_machines()
    for rank in records[1]["iterations"][-1]["counters"]:
        rank["h2d_bytes"] *= 2
    figure, alt = figures.compare_moved(records)
    labels = [" ".join(tick.get_text().split()) for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["new-4gpu on 4x NVIDIA H100 PCIe, no NVLink (4 ranks)",
                      "new-4gpu on 4x NVIDIA H200 (4 ranks)"]  # fmt: skip
    assert all(label.removesuffix(" (4 ranks)") in alt for label in labels)


def test_the_same_record_draws_the_same_figure() -> None:
    def draw() -> str:
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "x"}):
            out = io.StringIO()
            figure, _ = figures.timeline(synthetic.record())
            figure.savefig(out, format="svg", metadata={"Date": None})
            return out.getvalue()

    assert draw() == draw()


def test_nothing_touches_the_global_state_of_pyplot() -> None:
    import subprocess
    import sys

    code = (
        "import sys, wanreport.figures, wanreport.verdicts, wanreport.comparisons; "
        "assert not {'torch', 'diffusers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Colours -----------------------------------------------------------------------------------------


def channels(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))  # type: ignore[return-value]


def luminance(colour: str) -> float:
    r, g, b = channels(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


# Linear RGB as people without one kind of cone see it (Machado, Oliveira & Fernandes 2009, table 1,
# severity 1.0).
DEFICIENCIES = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
               (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
               (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
               (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def lab(linear: tuple[float, float, float]) -> tuple[float, float, float]:
    r, g, b = linear
    xyz = (0.4124 * r + 0.3576 * g + 0.1805 * b, 0.2126 * r + 0.7152 * g + 0.0722 * b,
           0.0193 * r + 0.1192 * g + 0.9505 * b)  # fmt: skip
    f = [
        max(v / w, 0) ** (1 / 3) if v / w > 0.008856 else 7.787 * v / w + 16 / 116
        for v, w in zip(xyz, (0.9505, 1.0, 1.089), strict=True)
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("ground", ["#ffffff", "#111318"])
@pytest.mark.parametrize("engine", [*figures.ENGINE_COLOURS, "ink"])
def test_colours_are_legible_on_white_and_near_black(engine: str, ground: str) -> None:
    colour = figures.ENGINE_COLOURS.get(engine, figures.INK)
    assert re.fullmatch("#[0-9a-f]{6}", colour)
    assert contrast(colour, ground) >= 3


@pytest.mark.parametrize("eyes", DEFICIENCIES)
def test_engines_can_be_told_apart_by_everybody(eyes: str) -> None:
    def seen(colour: str) -> tuple[float, float, float]:
        c = channels(colour)
        return lab(tuple(sum(m * v for m, v in zip(row, c, strict=True))
                         for row in DEFICIENCIES[eyes]))  # type: ignore[arg-type]  # fmt: skip

    for one, two in combinations(figures.ENGINE_COLOURS, 2):
        a, b = seen(figures.ENGINE_COLOURS[one]), seen(figures.ENGINE_COLOURS[two])
        apart = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        assert apart >= 20, f"{one} and {two} look alike ({apart:.1f})"
    assert len(set(figures.ENGINE_MARKERS.values())) == len(figures.ENGINE_MARKERS)
