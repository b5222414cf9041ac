"""The frames give the values that tables gave before they were built on frames."""

import json
from collections import Counter

import pytest
from synthetic import ROOT

from wanreport.analysis import overlap
from wanreport.analysis.frames import load

LINES = [line for line in json.loads((ROOT / "tests/golden/values.json").read_text())
         if line["source"] in ("job", "bench")]  # fmt: skip
COLUMNS = {  # by the name that a value had
    **{key: key for key in (
        "step_s", "step_low_s", "step_high_s", "step_n", "first_s", "switch_s", "denoise_s",
        "decode_s", "cold_start_s", "allocated_bytes", "reserved_bytes", "pinned_bytes", "drift",
        "host_rss_bytes", "sm_mhz", "power_w", "celsius", "overhead", "allowance", "limit_s",
        "same_bits", "same_boards", "repeats", "reference", "status",
    )},
    "total_s": "end_to_end_s", "h2d_bytes_step": "h2d_step_bytes", "cost": "overhead",
    "h2d_bytes_step_all_ranks": "h2d_step_bytes_all", "limit_ratio": "over_limit",
    "counters_agree": "formula_ok", "predicted_step_s": "planned_step_s", "n": "step_n",
    "link_together_gb_s": "link_gb_s", "step_ms": "step_s", "step_low_ms": "step_low_s",
    "step_high_ms": "step_high_s", "limit_ms": "limit_s", "predicted_ms": "planned_step_s",
    **{f"lanes.{key}": key for key in (
        "steps", "whole_ms", "copies_ms", "hidden_ms", "rate_gb_s", "alone_n", "beside",
        "beside_low", "beside_high", "beside_n", "collectives_share",
    )},
    "lanes.hidden_share": "hidden", "lanes.collectives_s_step": "collectives_s",
    "lanes.rate_gb_s_n": "rate_n",
}  # fmt: skip


@pytest.fixture(scope="module")
def then(tmp_path_factory):
    """The records that were there then, and no later one, under their names of then."""
    root = tmp_path_factory.mktemp("then")
    names = {line["file"] for line in LINES}
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        now = ROOT / name
        # Where a later run took a record's place, the record moved to earlier/.
        moved = sorted(now.parent.glob(f"earlier/{now.stem}-*.json"))
        stood = [path for path in moved if str(path.relative_to(ROOT)) not in names]
        (root / name).symlink_to((stood or [now])[0])
    return load(["results"], root)


def test_values_are_those_of_before(then):
    shares, compared = overlap.shares(then), Counter()
    for line in LINES:
        bench = f"#{line['tokens']}/{line['label']}" if line["source"] == "bench" else ""
        for key in line["values"].keys() & COLUMNS.keys():
            before, run, told = line["values"][key], line["file"] + bench, key.startswith("lanes.")
            if told or run in then.runs.index:
                now = (shares if told else then.runs).at[run, COLUMNS[key]]
                if not isinstance(before, bool | str):
                    before /= 1e3 if bench and key.endswith("_ms") else 1
                    before = pytest.approx(before, rel=1e-9, abs=1e-12)
                assert now == before, (run, key)
                compared["lanes" if told else line["source"]] += 1
    assert compared["job"] > 500 and compared["bench"] > 500 and compared["lanes"] == 59


def test_bytes_of_a_step_are_those_of_the_whole_schedule(then):
    """Before, a sample's bytes were divided by the sampled steps: 7.159 GB a step for swap."""
    whole = then.runs.h2d_schedule_bytes / then.runs.steps_whole / 1e9
    swaps = whole[(then.runs.engine == "swap") & then.runs.latest]
    assert [round(value, 2) for value in swaps] == [2.12] * 3
    one_expert = whole[(then.runs.vram_budget_gb == 30) & then.runs.latest]
    assert [round(value, 2) for value in one_expert] == [2.08]
