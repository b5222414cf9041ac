"""What timelines tell, against timelines whose answers are worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanreport.analysis import overlap
from wanreport.analysis.frames import Frames, load

ROOT = Path(__file__).resolve().parents[2]
BYTES = 702_870_528
GB = BYTES / 1e9

GOLDEN = {  # frozen name: column
    **{key: key for key in ("steps", "whole_ms", "copies_ms", "hidden_ms", "rate_gb_s", "alone_n",
                            "beside", "beside_low", "beside_high", "beside_n",
                            "collectives_share")},
    "hidden_share": "hidden", "collectives_s_step": "collectives_s", "rate_gb_s_n": "rate_n",
}  # fmt: skip


def event(lane: str, what: str, block: int, start: float, end: float, step: int = 0) -> Any:
    return {"run": "r", "lane": lane, "what": what, "expert": "high_noise", "block": block,
            "step": step, "start_ms": start, "end_ms": end, "ms": end - start}  # fmt: skip


def frames(events: list[Any], **changes: Any) -> Frames:
    row = {"run": "r", "status": "ok", "rehearsal": False, "gpus": 4, "blocks": 40, "branches": 1,
           "block_bytes": BYTES, "settings": {}, "link_gb_s": 50.0, "slug": "m", "machine": "4×",
           "engine": "layerwise", "name": "layerwise, prefetch 1", "traced": None,
           } | changes  # fmt: skip
    runs = pd.DataFrame([row]).set_index("run", drop=False)
    empty = pd.DataFrame({"run": []})
    return Frames(runs, empty, empty, empty, pd.DataFrame(events) if events else empty)


def told(events: list[Any], **changes: Any) -> Any:
    return overlap.shares(frames(events, **changes)).loc["r"]


def visits(beside: float = 12.0, number: int = 20) -> list[Any]:
    """Visits of 100 ms with all-to-alls of 10 and 5 ms; in each second one a copy makes it longer.

    The copy begins with the first all-to-all and takes 20 ms.
    """
    rows = []
    for i in range(number):
        at, slow = 100.0 * i, i % 2
        rows += [
            event("compute", "block", i, at, at + 100),
            event("collective", "all_to_all", i, at + 20, at + 20 + (beside if slow else 10)),
            event("collective", "all_to_all", i, at + 60, at + 65),
        ]
        if slow:
            rows.append(event("copy", "load", i + 1, at + 20, at + 40))
            rows.append(event("copy", "release", i, at + 100, at + 100))
    return rows


def test_hidden_is_what_runs_beside_a_block_and_no_collective() -> None:
    found = told(
        [
            event("compute", "block", 0, 0, 100),
            event("compute", "block", 1, 110, 200, step=1),
            event("collective", "all_to_all", 0, 20, 30),
            event("copy", "load", 1, 10, 40),  # 20 of 30 ms hidden
            event("copy", "load", 2, 95, 115),  # until its step ends: 5 of 5 ms
        ]
    )
    assert (found.copies_ms, found.hidden_ms, found.hidden) == (35, 25, 25 / 35)
    assert (found.steps, found.whole_ms, found.collectives_s) == (2, 190, 0.005)
    assert found.collectives_share == 10 / 190
    assert found.rate_gb_s == pytest.approx(GB * (1 / 0.03 + 1 / 0.02) / 2)


def test_the_rate_beside_collectives_is_what_the_link_alone_leaves() -> None:
    found = told(
        [
            event("compute", "block", 0, 0, 200),
            event("collective", "all_to_all", 0, 20, 30),
            event("copy", "load", 1, 10, 40),
            event("copy", "load", 2, 100, 120),
        ]
    )
    assert found.inside_n == 1
    assert found.rate_outside_gb_s == pytest.approx(GB / 0.02)
    assert found.rate_inside_gb_s == pytest.approx((GB - 50 * 0.02) / 0.01)


def test_collectives_beside_copies_are_held_against_those_of_their_size() -> None:
    found = told(visits())
    assert found.beside == pytest.approx(1.2)
    assert (found.alone_n, found.beside_n) == (30, 10)


def test_parts_of_a_load_are_one_load_and_cut_ones_do_not_count() -> None:
    rows = [event("compute", "block", 0, 0, 100)]
    for block, starts in ((1, (0, 10)), (2, (20, 30)), (3, (40, 50)), (4, (60, 70))):
        rows += [event("copy", "load", block, at, at + 4) for at in starts]
    found = told(rows, settings={"windows": [1, 2, 3], "shard": True})
    assert found.rate_n == 2 and found.rate_gb_s == pytest.approx(GB / 4 / 0.008)


def test_loads_that_share_the_link_have_no_rate_of_their_own() -> None:
    rows = [event("compute", "block", 0, 0, 100)]
    rows += [event("copy", "load", block, 10 * block, 10 * block + 20) for block in range(1, 5)]
    assert told(rows, settings={"copy_streams": 2}).rate_n == 0


def test_an_all_to_all_beside_a_gather_is_neither_alone_nor_beside_a_copy() -> None:
    gathers = [event("gather", "all_gather", i, 100.0 * i + 19, 100.0 * i + 25) for i in range(20)]
    found = told([*visits(), *gathers])
    assert (found.alone_n, found.beside_n) == (20, 0)


def test_an_all_to_all_that_hardly_meets_a_copy_is_left_out() -> None:
    rows = [r | {"start_ms": r["start_ms"] + 11} if r["what"] == "load" else r for r in visits()]
    found = told(rows)
    assert (found.alone_n, found.beside_n) == (30, 0)


def test_one_gpu_has_no_collectives() -> None:
    found = told(visits(), gpus=1)
    assert found.hidden_ms == found.copies_ms == 200
    assert found.beside_n == found.alone_n == found.inside_n == 0
    assert math.isnan(found.collectives_s) and math.isnan(found.collectives_share)
    assert "collective" not in set(overlap.excerpt(frames(visits(), gpus=1), "r").lane)


def test_rehearsals_and_runs_without_blocks_have_no_row() -> None:
    assert overlap.shares(frames([])).empty
    assert overlap.shares(frames(visits(), rehearsal=True)).empty
    assert overlap.shares(frames([event("copy", "load", 0, 0, 1)])).empty
    assert math.isnan(told([event("compute", "block", 0, 0, 1)]).hidden)


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda s: (s[0], sum(s))))


@settings(deadline=None, max_examples=50)
@given(SPANS, SPANS)
def test_what_two_lanes_share_is_counted_as_on_a_grid(ones: Any, others: Any) -> None:
    def grid(spans: Any) -> set[int]:
        return {at for start, end in spans for at in range(start, end)}

    rows = [event("copy", "load", 0, *span) for span in ones]
    rows += [event("collective", "all_to_all", 0, *span) for span in others]
    table = pd.DataFrame(rows or [event("other", "", 0, 0, 0)])
    both = grid(ones) & grid(others)
    spans = overlap.crossings(table)
    assert grid(spans.astype(int)) == both
    assert (np.diff(spans.ravel()) > 0).all()


def test_an_excerpt_holds_equal_work_of_one_branch_visits_and_two() -> None:
    for branches, passes, expected in ((2, 2, 4), (2, 1, 2), (1, 1, 4)):
        rows = [event("compute", "block", i, 100.0 * (20 * p + i), 100.0 * (20 * p + i + 1))
                for p in range(passes) for i in range(20)]  # fmt: skip
        found = overlap.excerpt(frames(rows, blocks=20, branches=branches), "r")
        assert len(found[found.lane == "compute"]) == expected
        assert (found.start_ms.min(), found.end_ms.max()) == (0, 100 * expected)
        assert 0 not in set(found.block) and (found.name == "layerwise, prefetch 1").all()


def test_an_excerpt_cuts_what_crosses_its_ends() -> None:
    rows = [event("compute", "block", i, 100.0 * i, 100.0 * (i + 1)) for i in range(3)]
    rows += [event("copy", "load", 2, 50, 120), event("copy", "load", 3, 190, 230)]
    found = overlap.excerpt(frames(rows, blocks=3), "r", blocks=1)
    assert found[["start_ms", "end_ms"]].to_numpy().tolist() == [[0, 20], [0, 100], [90, 100]]
    assert overlap.excerpt(frames([event("copy", "load", 0, 0, 1)]), "r").empty


def test_committed_records_tell_what_they_told_before() -> None:
    shares = overlap.shares(load(["results"], ROOT))
    lines = json.loads((ROOT / "tests/golden/values.json").read_text())
    compared = 0
    for line in lines:
        for key, value in line["values"].items():
            column = GOLDEN.get(key.removeprefix("lanes."))
            if key.startswith("lanes.") and column:
                assert shares.loc[line["file"], column] == pytest.approx(value, rel=1e-9), key
                compared += 1
    assert compared == 59
