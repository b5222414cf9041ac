"""What a timeline tells, against timelines whose answers are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from tests.reading import cells
from wanreport import comparisons, lanes, verdicts
from wanreport.answers import NotAnswerable

GB = 702_870_528 / 1e9


def row(lane: str, what: str, block: int, start: float, end: float, step: int = 0) -> Any:
    where = {"expert": "high_noise", "block": block, "step": step}
    return {"lane": lane, "what": what, **where, "start_ms": start, "end_ms": end}


def record(rows: list[Any], job: str = "new-4gpu", **machine: Any) -> dict[str, Any]:
    made = synthetic.record(job, scale="a14b")
    made["timeline"] = rows
    made["model"]["block_bytes"] = 702_870_528
    made["machine"] |= machine
    return made


def visits(beside: float = 12.0, number: int = 20) -> list[Any]:
    """Visits of 100 ms with all-to-alls of 10 and 5 ms; in each second one a copy makes it longer.

    The copy begins with the first all-to-all and takes 20 ms.
    """
    rows = []
    for i in range(number):
        at, slow = 100.0 * i, i % 2
        rows += [
            row("compute", "block", i, at, at + 100),
            row("collective", "all_to_all", i, at + 20, at + 20 + (beside if slow else 10)),
            row("collective", "all_to_all", i, at + 60, at + 65),
        ]
        if slow:
            rows.append(row("copy", "load", i + 1, at + 20, at + 40))
            rows.append(row("copy", "release", i, at + 100, at + 100))
    return rows


def test_hidden_is_what_runs_beside_a_block_and_no_collective() -> None:
    told = lanes.read(
        record(
            [
                row("compute", "block", 0, 0, 100),
                row("compute", "block", 1, 110, 200, step=1),
                row("collective", "all_to_all", 0, 20, 30),
                row("copy", "load", 1, 10, 40),  # 20 of 30 ms hidden
                row("copy", "load", 2, 95, 115),  # until its step ends: 5 of 5 ms
            ]
        )
    )
    assert (told.copies, told.hidden, told.share) == (35, 25, 25 / 35)
    assert (told.steps, told.whole, told.collectives) == (2, 190, 10)
    assert told.rates.median == pytest.approx(GB * (1 / 0.03 + 1 / 0.02) / 2)


def test_collectives_beside_copies_are_held_against_those_of_their_size() -> None:
    told = lanes.read(record(visits()))
    assert told.alone.median == 1 and told.alone.n == 30
    assert told.beside.median == pytest.approx(1.2) and told.beside.n == 10


def test_parts_of_a_load_are_one_load_and_cut_ones_do_not_count() -> None:
    rows = [row("compute", "block", 0, 0, 100)]
    for block, starts in ((1, (0, 10)), (2, (20, 30)), (3, (40, 50)), (4, (60, 70))):
        rows += [row("copy", "load", block, at, at + 4) for at in starts]
    made = record(rows, "new-4gpu")
    settings: dict[str, Any] = {"windows": [1, 2, 3], "shard": True}
    made["engine"]["plan"] = {"chosen": 0, "candidates": [{"settings": settings}]}
    told = lanes.read(made)
    assert told.rates.n == 2 and told.rates.median == pytest.approx(GB / 4 / 0.008)


def test_loads_that_share_the_link_have_no_rate_of_their_own() -> None:
    rows = [row("compute", "block", 0, 0, 100)]
    rows += [row("copy", "load", block, 10 * block, 10 * block + 20) for block in range(1, 5)]
    made = record(rows)
    made["engine"]["plan"] = {"chosen": 0, "candidates": [{"settings": {"copy_streams": 2}}]}
    assert lanes.read(made).rates.n == 0


def test_an_all_to_all_beside_a_gather_is_neither_alone_nor_beside_a_copy() -> None:
    gathers = [row("gather", "all_gather", i, 100.0 * i + 19, 100.0 * i + 25) for i in range(20)]
    told = lanes.read(record([*visits(), *gathers]))
    assert (told.alone.n, told.beside.n) == (20, 0)


def test_an_all_to_all_that_hardly_meets_a_copy_is_left_out() -> None:
    rows = [r | {"start_ms": r["start_ms"] + 11} if r["what"] == "load" else r for r in visits()]
    told = lanes.read(record(rows))
    assert (told.alone.n, told.beside.n) == (30, 0)


def test_one_rank_has_no_collectives() -> None:
    made = record(visits())
    made["job"]["num_gpus"] = 1
    told = lanes.read(made)
    assert told.hidden == told.copies == 200 and told.collectives == told.beside.n == 0


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.0099, "1 %"), (0, "0 %")]
)
def test_a_share_that_is_not_all_does_not_read_as_all(share: float, text: str) -> None:
    assert lanes.per_cent(share) == text


def test_a_rehearsal_or_no_timeline_tells_nothing() -> None:
    with pytest.raises(NotAnswerable, match="rehearsal"):
        lanes.read(synthetic.record("new-4gpu"))
    with pytest.raises(NotAnswerable, match="profiled"):
        lanes.read(record([]))
    assert lanes.read_all([record([]), record([row("compute", "block", 0, 0, 1)])]) == []


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda s: (s[0], sum(s))))


@given(SPANS, SPANS)
def test_what_is_common_is_counted_as_on_a_grid(ones: Any, others: Any) -> None:
    def grid(spans: Any) -> set[int]:
        return {at for start, end in spans for at in range(start, end)}

    found = lanes.common(lanes.merged(ones), lanes.merged(others))
    assert found == len(grid(ones) & grid(others))


# Verdicts ----------------------------------------------------------------------------------------


def status(records: list[dict[str, Any]], check: str) -> verdicts.Verdict:
    return next(v for v in verdicts.baseline_checks(records) if v.check == check)


def test_overlap_holds_where_the_new_engines_copies_are_hidden_and_the_olds_are_not() -> None:
    blocking = [row("copy", "switch", 0, 0, 50), row("compute", "block", 0, 50, 100)]
    new, old = record(visits()), record(blocking, "old-4gpu-swap")
    assert status([new, old], "overlap").status == status([new], "overlap").status == "pass"
    assert status([old], "overlap").status == "not measured"
    beside = [row("compute", "block", 0, 0, 100), *blocking[:1]]
    assert status([new, record(beside, "old-4gpu-swap")], "overlap").status == "fail"
    runs = [row("compute", "block", 0, 0, 10), row("compute", "block", 1, 20, 30)]
    apart = record([*runs, row("copy", "load", 1, 10, 20)])
    found = status([apart], "overlap")
    assert found.status == "fail" and "0 %" in found.evidence
    hair = record([row("compute", "block", 0, 0, 10), row("copy", "load", 1, 9.9, 30),
                   row("compute", "block", 1, 30, 40)])  # fmt: skip
    assert status([hair], "overlap").status == "fail"


@pytest.mark.parametrize(
    ("beside", "interconnect", "expected"),
    [
        (12.0, "host memory over PCIe", "pass"),
        (10.0, "host memory over PCIe", "not measured"),
        (9.0, "host memory over PCIe", "fail"),
        (12.0, "NVLink", "not measured"),  # which is another way than that of copies
        (12.0, "unknown interconnect", "not measured"),
    ],
)
def test_contention_is_judged_where_collectives_go_over_pcie(
    beside: float, interconnect: str, expected: str
) -> None:
    made = record(visits(beside), interconnect=interconnect)
    assert status([made], "contention").status == expected


def test_records_that_contradict_one_another_show_no_contention() -> None:
    made = [record(visits(beside), interconnect="PCIe") for beside in (12.0, 9.0)]
    found = status(made, "contention")
    assert found.status == "not measured" and found.next_step == verdicts.MORE


def test_the_page_answers_what_the_baseline_asks_of_timelines() -> None:
    compared = comparisons.compare_lanes([record(visits())])
    rate, share, hidden = compared.answer.splitlines()
    assert "35.1 GB/s" in rate and "16 % of a step" in share and "40 % of the time" in hidden
    (found,) = cells(compared.tables[0])
    assert "1.20 × [1.20, 1.20], n = 10" in found
    alone = record(visits())
    alone["job"]["num_gpus"] = 1
    (found,) = cells(comparisons.compare_lanes([alone]).tables[0])
    assert found.count("none") == 3
    nothing = comparisons.compare_lanes([])
    assert nothing.answer.count("Not measured") == 3 and nothing.tables == ()
