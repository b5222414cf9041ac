"""The frames give the values that tables gave before they were built on frames."""

import json
from collections import Counter

import pytest
from synthetic import ROOT

from wanreport.analysis import overlap
from wanreport.analysis.frames import load

LINES = [line for line in json.loads((ROOT / "tests/golden/values.json").read_text())
         if line["source"] in ("job", "bench")]  # fmt: skip
COLUMNS = {  # of values that had another name
    "total_s": "end_to_end_s", "h2d_bytes_step": "h2d_step_bytes", "cost": "overhead",
    "h2d_bytes_step_all_ranks": "h2d_step_bytes_all", "limit_ratio": "over_limit",
    "counters_agree": "formula_ok", "link_together_gb_s": "link_gb_s", "rate_gb_s_n": "rate_n",
    "predicted_step_s": "planned_step_s", "predicted_ms": "planned_step_s",
    "hidden_share": "hidden", "collectives_s_step": "collectives_s",
    **dict.fromkeys(["boards", "claim", "engine"], ""),  # which were worded otherwise
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
        for key, before in line["values"].items():
            run, name, told = line["file"] + bench, key.removeprefix("lanes."), "lanes." in key
            table = shares if told else then.runs
            column = COLUMNS.get(name, name.replace("_ms", "_s") if bench else name)
            if column in table and (told or run in table.index):
                if not isinstance(before, bool | str):
                    before /= 1e3 if bench and key.endswith("_ms") else 1
                    before = pytest.approx(before, rel=1e-9, abs=1e-12)
                assert table.at[run, column] == before, (run, key)
                compared["lanes" if told else line["source"]] += 1
    assert compared == {"job": 940, "bench": 1807, "lanes": 63}, "none is left out"


def test_bytes_of_a_step_are_those_of_the_whole_schedule(then):
    """Before, a sample's bytes were divided by the sampled steps: 7.159 GB a step for swap."""
    whole = then.runs.h2d_schedule_bytes / then.runs.steps_whole / 1e9
    swaps = whole[(then.runs.engine == "swap") & then.runs.latest]
    assert [round(value, 2) for value in swaps] == [2.12] * 3
    one_expert = whole[(then.runs.vram_budget_gb == 30) & then.runs.latest]
    assert [round(value, 2) for value in one_expert] == [2.08]
