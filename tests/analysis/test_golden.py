"""The frames give the values that tables gave before they were built on frames."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wanreport.analysis import compare
from wanreport.analysis.frames import Frames, load

ROOT = Path(__file__).resolve().parents[2]
LINES = json.loads((ROOT / "tests/golden/values.json").read_text())
SAME = 1e-9

JOB = {
    **{key: key for key in (
        "step_s", "first_s", "switch_s", "denoise_s", "decode_s", "cold_start_s",
        "allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes", "sm_mhz", "power_w",
        "celsius", "overhead", "allowance", "limit_s", "same_bits", "same_boards", "repeats",
    )},
    "step_low_s": "step_low_s", "step_high_s": "step_high_s", "step_n": "step_n",
    "total_s": "end_to_end_s", "h2d_bytes_step": "h2d_step_bytes",
    "h2d_bytes_step_all_ranks": "h2d_step_bytes_all", "limit_ratio": "over_limit",
    "counters_agree": "formula_ok", "predicted_step_s": "planned_step_s",
    "reference": "reference", "link_together_gb_s": "link_gb_s",
}  # fmt: skip
BENCH = {
    "n": "step_n", "cost": "overhead", "h2d_bytes_step": "h2d_step_bytes", "drift": "drift",
    "limit_ratio": "over_limit", "same_bits": "same_bits", "allocated_bytes": "allocated_bytes",
    "reserved_bytes": "reserved_bytes", "pinned_bytes": "pinned_bytes", "sm_mhz": "sm_mhz",
    "power_w": "power_w", "celsius": "celsius", "status": "status",
}  # fmt: skip
BENCH_MS = {"step_ms": "step_s", "step_low_ms": "step_low_s", "step_high_ms": "step_high_s",
            "limit_ms": "limit_s", "predicted_ms": "planned_step_s"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(then: Frames) -> pd.DataFrame:
    """Their runs, compared with resident where they can be."""
    cost = compare.overhead(then)
    new = [column for column in cost if column not in then.runs]
    return then.runs.join(cost[new])


@pytest.fixture(scope="module")
def then(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """The records that were there then, and no later one, under their names of then."""
    root = tmp_path_factory.mktemp("then")
    names = {line["file"] for line in LINES if line["source"] in ("job", "bench")}
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        now = ROOT / name
        # Where a later run took a record's place, the record moved to earlier/.
        moved = sorted(now.parent.glob(f"earlier/{now.stem}-*.json"))
        stood = [path for path in moved if str(path.relative_to(ROOT)) not in names]
        (root / name).symlink_to((stood or [now])[0])
    return load(["results"], root)


def compared(runs: pd.DataFrame, line: dict[str, Any]) -> list[tuple[str, object, object]]:
    """Each value of a line that the frames have too: its name, then and now."""
    if line["source"] == "job":
        run, names = line["file"], [(key, column, 1.0) for key, column in JOB.items()]
    else:
        run = f"{line['file']}#{line['tokens']}/{line['label']}"
        names = [(key, column, 1.0) for key, column in BENCH.items()]
        names += [(key, column, 1e3) for key, column in BENCH_MS.items()]
    if run not in runs.index:
        return []
    row, found = runs.loc[run], line["values"]
    return [(key, found[key], _scaled(row[column], factor)) for key, column, factor in names
            if found.get(key) is not None]  # fmt: skip


def _scaled(value: Any, factor: float) -> object:
    return value if factor == 1.0 else float(value) * factor


@pytest.mark.parametrize("source", ["job", "bench"])
def test_values_are_those_of_before(runs: pd.DataFrame, source: str) -> None:
    lines = [line for line in LINES if line["source"] == source]
    pairs = [
        (line["file"], line["label"], *pair) for line in lines for pair in compared(runs, line)
    ]
    assert len(pairs) > 500, "nothing was compared"
    differ = [pair for pair in pairs if not _same(*pair[3:])]
    assert differ == []


def _same(before: object, now: object) -> bool:
    if isinstance(before, bool | str):
        return before == now
    assert isinstance(before, int | float)
    return math.isclose(float(before), float(now), rel_tol=SAME, abs_tol=1e-12)  # type: ignore[arg-type]


def test_bytes_of_a_step_are_those_of_the_whole_schedule(then: Frames) -> None:
    """Before, a sample's bytes were divided by the sampled steps: 7.159 GB a step for swap."""
    whole = then.runs.h2d_schedule_bytes / then.runs.steps_whole / 1e9
    swaps = whole[(then.runs.engine == "swap") & then.runs.latest]
    assert [round(value, 2) for value in swaps] == [2.12] * 3
    one_expert = whole[(then.runs.vram_budget_gb == 30) & then.runs.latest]
    assert [round(value, 2) for value in one_expert] == [2.08]
