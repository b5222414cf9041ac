"""Jobs that run at the same time."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from wanreport.jobs.job import job_from_mapping
from wanreport.measure import jobs, ranks
from wanreport.measure.ranks import together


def job(name: str, steps: int, said: list[str], last: BaseException | None = None) -> Generator:
    said.append(f"{name} begins")
    try:
        for _ in range(steps):
            yield
        if last:
            raise last
    except SystemExit:
        said.append(f"{name} is told")  # and has time for its record
        raise
    finally:
        said.append(f"{name} ends")
    return name


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "POLL", 0)


def test_some_run_at_a_time_and_each_is_given_as_it_ends() -> None:
    said: list[str] = []
    jobs = [job("a", 3, said), job("b", 1, said), job("c", 1, said)]
    assert list(together(jobs, 2)) == ["b", "a", "c"]
    assert said == ["a begins", "b begins", "b ends", "c begins", "a ends", "c ends"]
    assert list(together(iter([job("a", 2, said), job("b", 0, said)]))) == ["a", "b"]
    assert list(together([], 2)) == []


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), ValueError()], ids=repr)
def test_what_ends_one_from_outside_ends_all(error: BaseException) -> None:
    said: list[str] = []
    jobs = [job("a", 9, said), job("b", 1, said, last=error), job("c", 9, said)]
    with pytest.raises(type(error)):
        list(together(jobs, 2))
    assert {"a ends", "b ends"} <= {*said} and "c begins" not in said
    assert ("a is told" in said) == isinstance(error, SystemExit)


@pytest.mark.parametrize(
    ("others", "count"),
    [([], 2), ([{"num_gpus": 4}], 2), ([{"num_gpus": 2}], 1), ([{"num_gpus": 1}], 1),
     ([{"num_gpus": 1, "scale": "tiny", "checkpoint": "x"}], 1)],
)  # fmt: skip
def test_full_jobs_and_those_of_a_checkpoint_run_alone(
    others: list[dict[str, Any]], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(jobs, "this_machine", lambda: jobs.Machine("2x", 2))
    monkeypatch.setattr(jobs, "measure_jobs", lambda *_, at_once, **__: seen.append(at_once) or [])
    small = {"num_gpus": 2, "scale": "tiny"}
    given = [{"name": f"j{n}", "engine": "stream", **each}
             for n, each in enumerate([small, *others, small])]  # fmt: skip
    made = [job_from_mapping(each) for each in given]
    assert jobs.measure(made, tmp_path, tmp_path / "log", at_once=2) == [] and seen == [count]
