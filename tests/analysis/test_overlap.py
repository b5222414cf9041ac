"""What timelines tell, against timelines whose answers are worked out by hand."""

import math

import madeup
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from madeup import run

from wanreport.analysis import overlap

BYTES = 702_870_528
GB = BYTES / 1e9
WHAT = {"compute": "block", "collective": "all_to_all", "copy": "load", "gather": "all_gather"}


def frames(*events, **changes):
    """Frames of a run, and of its events: lane, block, start and end in ms."""
    row = run("layerwise", run="r", **{"gpus": 4, "block_bytes": BYTES} | changes)
    table = pd.DataFrame(events, columns=["lane", "block", "start_ms", "end_ms"])
    table = table.assign(run="r", what=table.lane.map(WHAT), expert="high_noise", step=0,
                         ms=table.end_ms - table.start_ms)  # fmt: skip
    return madeup.frames(row)._replace(events=table)


def told(*events, **changes):
    return overlap.shares(frames(*events, **changes)).loc["r"]


def visits(late=0.0):
    """20 visits of 100 ms with all-to-alls of 10 and 5 ms; in each second one a copy of 20 ms.

    It begins with the first all-to-all or `late`, which takes 12 ms then.
    """
    rows = []
    for i in range(20):
        at = 100.0 * i
        rows += [("compute", i, at, at + 100), ("collective", i, at + 20, at + 30 + 2 * (i % 2)),
                 ("collective", i, at + 60, at + 65)]  # fmt: skip
        rows += [("copy", i + 1, at + 20 + late, at + 40 + late)] * (i % 2)
    return rows


def test_hidden_is_what_runs_beside_a_block_and_no_collective():
    events = frames(
        ("compute", 0, 0, 100), ("compute", 1, 110, 200), ("collective", 0, 20, 30),
        ("copy", 1, 10, 40),  # 20 of 30 ms hidden
        ("copy", 2, 95, 115),  # until its step ends: 5 of 5 ms
    )  # fmt: skip
    events.events.loc[1, "step"] = 1
    found = overlap.shares(events).loc["r"]
    assert (found.copies_ms, found.hidden_ms, found.hidden) == (35, 25, 25 / 35)
    assert (found.steps, found.whole_ms, found.collectives_s) == (2, 190, 0.005)
    assert found.collectives_share == 10 / 190
    assert found.rate_gb_s == pytest.approx(GB * (1 / 0.03 + 1 / 0.02) / 2)


def test_the_rate_beside_collectives_is_what_the_link_alone_leaves():
    found = told(("compute", 0, 0, 200), ("collective", 0, 20, 30), ("copy", 1, 10, 40),
                 ("copy", 2, 100, 120))  # fmt: skip
    assert found.inside_n == 1
    assert found.rate_outside_gb_s == pytest.approx(GB / 0.02)
    assert found.rate_inside_gb_s == pytest.approx((GB - 50 * 0.02) / 0.01)


def test_collectives_beside_copies_are_held_against_those_of_their_size():
    found = told(*visits())
    assert found.beside == pytest.approx(1.2)
    assert (found.alone_n, found.beside_n) == (30, 10)
    late = told(*visits(late=11))
    assert (late.alone_n, late.beside_n) == (30, 0), "those that hardly meet a copy are left out"
    gathers = [("gather", i, 100.0 * i + 19, 100.0 * i + 25) for i in range(20)]
    found = told(*visits(), *gathers)
    assert (found.alone_n, found.beside_n) == (20, 0), "neither alone nor beside a copy"


def test_parts_of_a_load_are_one_load_and_cut_ones_do_not_count():
    rows = [("compute", 0, 0, 100)]
    rows += [("copy", 1 + at // 20, at, at + 4) for at in range(0, 80, 10)]
    found = told(*rows, settings={"windows": [1, 2, 3], "shard": True})
    assert found.rate_n == 2 and found.rate_gb_s == pytest.approx(GB / 4 / 0.008)
    assert told(*rows, settings={"copy_streams": 2}).rate_n == 0, "loads share the link"


def test_one_gpu_has_no_collectives_and_rehearsals_and_runs_without_blocks_no_row():
    found = told(*visits(), gpus=1)
    assert found.hidden_ms == found.copies_ms == 200
    assert found.beside_n == found.alone_n == found.inside_n == 0
    assert math.isnan(found.collectives_s) and math.isnan(found.collectives_share)
    assert math.isnan(told(("compute", 0, 0, 1)).hidden)
    for none in (frames(), frames(*visits(), rehearsal=True), frames(("copy", 0, 0, 1))):
        assert overlap.shares(none).empty


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda s: (s[0], sum(s))))


@settings(deadline=None, max_examples=50)
@given(SPANS, SPANS)
def test_what_two_lanes_share_is_counted_as_on_a_grid(ones, others):
    def grid(spans):
        return {at for start, end in spans for at in range(start, end)}

    rows = [("copy", 0, *span) for span in ones]
    rows += [("collective", 0, *span) for span in others]
    spans = overlap.crossings(frames(*rows or [("other", 0, 0, 0)]).events)
    assert grid(spans.astype(int)) == grid(ones) & grid(others)
    assert (np.diff(spans.ravel()) > 0).all()
