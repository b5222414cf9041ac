"""Which record speaks for a job here, which jobs are still to be measured, which code ran."""

from pathlib import Path

import pytest

from tests import synthetic
from wanreport.jobs.job import JobError, job_from_mapping
from wanreport.measure import jobs, machine, ranks
from wanreport.measure.ranks import together
from wanreport.records import project as ours


def test_a_commit_is_what_the_environment_states(monkeypatch):
    by_git = ours.git_state.__wrapped__()
    monkeypatch.setenv("WANREPORT_GIT_DIRTY", "1")
    assert ours.git_state.__wrapped__() == by_git, "without its commit it says nothing"
    monkeypatch.setenv("WANREPORT_GIT_SHA", "abc")
    for dirty, expected in {"0": False, "1": True, "": None, "perhaps": None}.items():
        monkeypatch.setenv("WANREPORT_GIT_DIRTY", dirty)
        assert ours.git_state.__wrapped__() == {"git_sha": "abc", "git_dirty": expected}


def test_no_rehearsal_of_another_machine_hides_this_ones_failure():
    here = synthetic.record("new-4gpu", status="failed", reason="x")
    other = synthetic.record("new-4gpu", machine={**here["machine"], "slug": "elsewhere"})
    real = synthetic.record("new-4gpu", scale="a14b")
    found = [(Path(r["machine"]["slug"]) / "r.json", r) for r in (here, other)]
    job = job_from_mapping({**here["job"], "scale": "auto"})
    mine, there = jobs.Machine(here["machine"]["slug"], 0), jobs.Machine("elsewhere", 0)
    assert jobs.spoken_for(job, found, mine) == found[0]
    assert jobs.spoken_for(job, found, jobs.Machine("third", 0)) == found[1]
    assert jobs.missing([job], found, mine) and not jobs.missing([job], found, there)
    found.append((Path(real["machine"]["slug"]) / "r.json", real))
    assert jobs.spoken_for(job, found, mine) == found[2]


def test_two_files_of_one_name_are_named(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text("name: x\nengine: stream\nnum_gpus: 1\n")
    files = sorted(tmp_path.glob("*/x.yaml"))
    assert len(jobs.load_jobs([files[0], files[0]], tmp_path)) == 1
    assert len(jobs.load_jobs(files, tmp_path, lenient=True)) == 2
    with pytest.raises(JobError, match=r"b/x\.yaml: name: .*a/x\.yaml"):
        jobs.load_jobs(files, tmp_path)


def test_a_job_that_does_not_fit_into_the_time_left_is_not_begun(tmp_path):
    log, told = tmp_path / "log", []
    both = [synthetic.quick("stream", name=name, num_gpus=1, timeout_s=seconds)
            for name, seconds in (("long", 3600), ("short", 240))]  # fmt: skip
    done = jobs.measure_jobs(both, tmp_path, log, minutes=5, tell=told.append)
    assert [line.split()[:2] for line in told] == [["long", "no"], ["short", "ok"]]
    said = log.read_text().splitlines()
    assert [record["job"]["name"] for _, record in done] == ["short"]
    assert len([x for x in said if "short: warmup iteration" in x]) == 1
    assert jobs.measure_jobs(both, tmp_path, log, minutes=0) == []
    assert [path.name.split("-")[0] for path in tmp_path.glob("*/*.json")] == ["short"]


def test_a_failure_is_not_hidden_by_a_later_job_of_its_name(tmp_path, monkeypatch):
    done = [(tmp_path, {"job": {"name": "x"}, "status": status}) for status in ("failed", "ok")]
    monkeypatch.setattr(jobs, "measure_jobs", lambda *_, **__: done)
    job = synthetic.quick("stream", name="x", num_gpus=1)
    assert jobs.measure([job], tmp_path, tmp_path / "log", again=True) == ["x"]


def test_gpus_that_torch_does_not_see_are_told_in_one_line_and_not_remembered(
    project, monkeypatch, capsys
):
    """With an old driver NVML lists GPUs and torch has none: that is not a rehearsal."""
    here = machine.machine() | {"gpu_count": 1, "device": "cuda", "slug": "1x-old"}
    monkeypatch.setattr(machine, "machine", lambda: here)
    monkeypatch.setitem(ranks.KINDS, "cuda", ranks.ForkedRanks)
    monkeypatch.setattr(jobs, "HINTS", {})  # of a failure, which this is not
    job = job_from_mapping({"name": "j", "engine": "stream", "num_gpus": 1})
    for _ in range(2):
        assert jobs.measure([job], project, project / "log") == []
        line = next(x for x in capsys.readouterr().out.splitlines() if " j " in x)
        assert "unsupported" in line and "torch sees 0 of 1 GPUs" in line


# Jobs that run at the same time -------------------------------------------------------------------


def running(name, steps, said, last=None):
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


def test_some_run_at_a_time_and_each_is_given_as_it_ends():
    said = []
    three = [running("a", 3, said), running("b", 1, said), running("c", 1, said)]
    assert list(together(three, 2)) == ["b", "a", "c"]
    assert said == ["a begins", "b begins", "b ends", "c begins", "a ends", "c ends"]
    assert list(together(iter([running("a", 2, said), running("b", 0, said)]))) == ["a", "b"]
    assert list(together([], 2)) == []


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), ValueError()], ids=repr)
def test_what_ends_one_from_outside_ends_all(error):
    said = []
    three = [running("a", 9, said), running("b", 1, said, last=error), running("c", 9, said)]
    with pytest.raises(type(error)):
        list(together(three, 2))
    assert {"a ends", "b ends"} <= {*said} and "c begins" not in said
    assert ("a is told" in said) == isinstance(error, SystemExit)


@pytest.mark.parametrize(
    ("others", "count"),
    [([], 2), ([{"num_gpus": 4}], 2), ([{"num_gpus": 2}], 1), ([{"num_gpus": 1}], 1),
     ([{"num_gpus": 1, "scale": "tiny", "checkpoint": "x"}], 1)],
)  # fmt: skip
def test_full_jobs_and_those_of_a_checkpoint_run_alone(others, count, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "this_machine", lambda: jobs.Machine("2x", 2))
    monkeypatch.setattr(jobs, "measure_jobs", lambda *_, at_once, **__: seen.append(at_once) or [])
    small = {"num_gpus": 2, "scale": "tiny"}
    made = [job_from_mapping({"name": f"j{n}", "engine": "stream", **each})
            for n, each in enumerate([small, *others, small])]  # fmt: skip
    assert jobs.measure(made, tmp_path, tmp_path / "log", at_once=2) == [] and seen == [count]
