"""The open questions: which pairs of runs answer them, and what would."""

from __future__ import annotations

from pathlib import Path

import pytest
from madeup import frames, run

from wanreport.analysis.frames import EMPTY, load
from wanreport.analysis.questions import questions

ROOT = Path(__file__).resolve().parents[2]


def test_questions_without_runs_say_what_would_answer_them() -> None:
    found = questions(EMPTY)
    assert found.number.tolist() == [1, 2, 3, 4, 5, 6, 7] and not found.exact.any()
    commands = dict(zip(found.number, found.command, strict=True))
    assert commands[1].startswith("wanreport measure params/campaign/480p-2gpu-")
    assert all("python -m benchmarks" in commands[n] for n in (2, 3, 4, 5, 6))
    assert commands[7] == "", "no engine does so"
    assert found.minutes.isna().tolist() == [n == 7 for n in range(1, 8)]


def test_questions_are_answered_by_pairs_that_differ_in_what_is_asked() -> None:
    usual = {"slots": 3, "copy_streams": 1, "priority": 0, "shard": False, "windows": None}
    others = [{}, {"shard": True}, {"priority": -1}, {"copy_streams": 2},
              {"windows": (1, 2, 3), "slots": 4}]  # fmt: skip
    rows = [run(engine, gpus=2) for engine in ("resident", "layerwise", "swap")]
    rows += [run("stream", settings=usual | other) for other in others]
    apart = [run(engine, gpus=2, cfg_parallel=True, group="c") for engine in ("layerwise", "swap")]
    found, names = questions(frames(*rows, *apart)), [row["run"] for row in rows]
    exact = found[found.exact].set_index("number")
    assert exact[["run_one", "run_two"]].to_numpy().tolist() == [
        names[1:3], *([names[n], names[3]] for n in (4, 5, 6))
    ]  # fmt: skip
    assert exact.index.tolist() == [1, 3, 5, 6] and set(exact.claim) == {"within noise"}
    near = found[~found.exact].set_index("number")
    assert near.run_one.dropna().to_dict() == {7: names[7]}
    assert set(near[near.run_one.isna()].index) == {2, 4, 7}


@pytest.mark.parametrize(("tokens", "engine", "exact"), [
    (10_000, "sglang", True), (10_000, "layerwise", False), (14_040, "sglang", False),
])  # fmt: skip
def test_two_paths_are_compared_by_their_overheads(tokens: int, engine: str, exact: bool) -> None:
    cells = [
        run(name, step, tokens=tokens, source="bench", group=path, interconnect=path, gpus=2)
        for path, of in (("PCIe path", "sglang"), ("NVLink", engine))
        for name, step in (("resident", 1.0), (of, 1.3 if path == "PCIe path" else 1.1))
    ]
    (row,) = questions(frames(*cells)).query("number == 2 and run_one.notna()").itertuples()
    assert (row.exact, row.claim) == (exact, "slower")
    assert (row.gap, row.gap_before) == (pytest.approx(0.3), pytest.approx(0.1))
    assert row.difference == pytest.approx(0.2)


def test_the_committed_runs() -> None:
    asked = questions(load(["results"], ROOT))
    assert "2× H100, PCIe path" in set(asked[(asked.number == 1) & asked.exact].machine)
    assert set(asked.number) == set(range(1, 8))
