"""`make report` in a small project, with a stand-in for the process that measures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic
from bs4 import BeautifulSoup

from wanreport import local, predictions, report
from wanreport.baseline.facts import DOCUMENT
from wanreport.job import JobError
from wanreport.record import read_record

ROOT = Path(__file__).resolve().parents[1]
SLUG = synthetic.CPU["slug"]

JOB = """
# %% tags=["parameters"]
name = None
engine = None
num_gpus = None
purpose = ""
scale = "auto"
seed = 0
dit_layerwise_offload = None
dit_cpu_offload = None
# %%
from IPython.display import Markdown, display
from wanreport import notebook
job = notebook.setup(globals())
record = notebook.measure(job)
display(Markdown(f"# {job.name}\\n\\nIt was {record['status']}."))
assert job.purpose != "fail", "as was asked"
"""
SUMMARY = """
# %% tags=["parameters"]
results_dirs = ["results"]
# %%
from IPython.display import Markdown, display
from wanreport import notebook
names = [record["job"]["name"] for _, record in notebook.all_records()]
display(Markdown(f"# Summary\\n\\nKnown: {', '.join(names)}."))
"""
STAND_IN = '''
"""Writes a made-up record for each job; a job's purpose says how it behaves."""
import json, os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import synthetic
from wanreport import local
from wanreport.job import job_from_mapping, job_hash
from wanreport.record import record_path, write_record
root = Path(sys.argv[sys.argv.index("--root") + 1])
local.remember_machine(root, {slug!r}, 0)
for file in [b for a, b in zip(sys.argv, sys.argv[1:]) if a == "--json-job"]:
    job = job_from_mapping(json.loads(Path(file).read_text()))
    print(f"at {{job.name}}", file=sys.stderr, flush=True)
    if job.purpose == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.purpose == "hangs" and not (root / "go").exists():
        (root / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    record = synthetic.record(job.name, engine=job.engine, num_gpus=job.num_gpus)
    if job.purpose == "unsupported":
        record |= {{"status": "unsupported", "reason": "too <big>", "hint": "get a bigger one"}}
    record |= {{"job": job.model_dump(mode="json"), "job_hash": job_hash(job)}}
    path = record_path(root, {slug!r}, job.name, record["job_hash"])
    write_record(record, path)
    print(path, flush=True)
'''
FLAGS = {
    "layerwise": "dit_layerwise_offload: true",
    "resident": "dit_layerwise_offload: false\ndit_cpu_offload: false",
}


def add_job(project: Path, name: str, purpose: str = "", engine: str = "resident") -> Path:
    file = project / "params/baseline" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode())  # two jobs that ask for the same would share a record
    file.write_text(
        f'name: {name}\nengine: {engine}\nnum_gpus: 1\npurpose: "{purpose}"\nseed: {seed}\n'
        f"{FLAGS[engine]}\n"
    )
    return file


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one job and two notebooks, whose jobs are measured by the stand-in."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/job.py").write_text(JOB)
    (tmp_path / "notebooks/summary.py").write_text(SUMMARY)
    add_job(tmp_path, "one")
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.format(tests=str(ROOT / "tests"), root=str(ROOT), slug=SLUG))
    monkeypatch.setattr(local, "LAUNCH", [sys.executable, str(stand_in)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(project: Path, **options: Any) -> int:
    """`make report`, with one process for the pages: each takes seconds to start."""
    return report.report(project, workers=1, **options)


def files(project: Path) -> dict[str, bytes]:
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted((project / "reports").rglob("*"))
        if path.is_file()
    }


def words(page: Path) -> str:
    return BeautifulSoup(page.read_text(), "html.parser").get_text(" ")


def test_the_whole_way_and_a_second_time(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.report(project) == 0
    assert "one" in capsys.readouterr().out
    first = files(project)
    assert set(first) == {
        "reports/index.html", "reports/jobs/one.html", "reports/summary.html",
        "reports/notebooks/one.ipynb", "reports/notebooks/summary.ipynb",
    }  # fmt: skip
    shown = words(project / "reports/summary.html")
    assert "Known: one." in shown
    assert f"results/local/{SLUG}/one-" in shown
    assert "wanreport/baseline/document/03-benchmarks.yaml" in shown
    index = BeautifulSoup(first["reports/index.html"], "html.parser")
    targets = {a["href"] for a in index.find_all("a")}
    assert {"summary.html", "jobs/one.html"} <= targets

    # Nothing has changed: nothing is measured, executed or written.
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    monkeypatch.setattr(report, "make_page", None)
    before = {path: (project / path).stat().st_mtime_ns for path in first}
    assert render(project) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert files(project) == first
    assert {path: (project / path).stat().st_mtime_ns for path in first} == before


def test_each_machine_with_a_full_scale_record_has_a_page_of_the_job(project: Path) -> None:
    job = report.load_jobs(report.params_files(project), project)[Path("params/baseline/one.yaml")]
    fields = job.model_dump(mode="json", exclude={"scale", "purpose"})
    made = [
        synthetic.record(scale="a14b", machine={"slug": slug, "class": f"1x {slug}"}, **fields)
        for slug in ("gpu-a", "gpu-b")
    ]
    synthetic.write(made, project / "results")
    assert render(project, measuring=False) == 0
    best, other = "reports/jobs/one.html", "reports/jobs/gpu-a/one.html"
    found = files(project)
    assert {best, other, "reports/notebooks/gpu-a/one.ipynb"} <= set(found)
    assert "results/gpu-b/one-" in words(project / best)
    assert "results/gpu-a/one-" in words(project / other)
    page = BeautifulSoup(found[other], "html.parser")
    for link in page.find_all("a", href=True):  # from one folder further down
        if not link["href"].startswith(("#", "http")):
            assert (project / other).parent.joinpath(link["href"]).resolve().is_file(), link
    index = BeautifulSoup(found["reports/index.html"], "html.parser")
    assert {"jobs/one.html", "jobs/gpu-a/one.html"} <= {a["href"] for a in index.find_all("a")}


def test_a_machine_with_gpus_is_named_before_there_is_any_folder_for_its_log(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = project / "results/local"
    log = results / "logs/x.log"
    assert local.identify(results, log) is None  # no GPU: nothing is started
    assert not results.exists()
    lister = project / "bin/nvidia-smi"
    lister.parent.mkdir()
    lister.write_text("#!/bin/sh\necho 'GPU 0: a GPU (UUID: 1)'\n")
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", str(lister.parent), prepend=":")
    assert local.identify(results, log) == (SLUG, 0)
    assert log.is_file()


def test_only_what_depends_on_a_change_is_stale(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(project, "two")
    assert render(project) == 0

    def stale() -> set[str]:
        jobs = report.load_jobs(report.params_files(project), project)
        tasks = report.plan(jobs, project, local.all_records(project))
        return {task.name for task in tasks if report.is_stale(task)}

    assert stale() == set()
    record = next((project / "results/local" / SLUG).glob("one-*.json"))
    text = record.read_text()
    record.write_text(text.replace('"wall_s"', ' "wall_s"'))
    assert stale() == {"one", "summary"}
    record.write_text(text)
    assert stale() == set()
    script = project / "notebooks/summary.py"
    script.write_text(script.read_text() + "\n# %% [markdown]\n# More.\n")
    assert stale() == {"summary"}
    add_job(project, "two", purpose="another one")  # a purpose is shown, not measured
    assert stale() == {"two", "summary"}
    assert render(project) == 0
    (project / "results/kept").mkdir()
    record.rename(project / "results/kept" / record.name)  # the pages name its place
    assert stale() == {"one", "summary"}
    (project / "results/kept" / record.name).rename(record)
    assert stale() == set()
    (project / "reports/jobs/one.html").unlink()
    assert stale() == {"one"}
    monkeypatch.setattr(report, "_libraries", lambda: ["mistune 0.1"])
    assert stale() == {"one", "two", "summary"}


def test_each_notebook_names_and_depends_on_what_it_reads() -> None:
    record: list[local.Found] = [(ROOT / "README.md", {})]  # any file: its name and bytes count
    with_it, without = (
        {task.name: task.page for task in report.plan({}, ROOT, found)} for found in (record, [])
    )
    assert set(with_it) == {"baseline", "postbenchmark"}
    assert with_it["postbenchmark"].inputs != without["postbenchmark"].inputs
    assert "README.md" in with_it["postbenchmark"].sources
    assert with_it["baseline"].inputs != without["baseline"].inputs
    files = list(without["baseline"].sources)
    # What the project itself has of these lies in its own tree.
    more = {path.relative_to(ROOT).as_posix() for path in predictions.files(ROOT)}
    more |= {path.relative_to(ROOT).as_posix() for path, _ in local.all_earlier(ROOT)}
    assert set(without["postbenchmark"].sources) == {*files, *more}
    wanted = {f"wanreport/baseline/document/{p.name}" for p in DOCUMENT.glob("*.yaml")}
    wanted |= {"wanreport/baseline/checks.yaml", "wanreport/baseline/derived/architecture.json"}
    assert wanted <= set(files)
    assert all((ROOT / file).is_file() for file in files)
    campaign = [ROOT / "CITATION.cff"]  # any file again
    beside = {task.name: task.page for task in report.plan({}, ROOT, [], campaign)}
    assert "CITATION.cff" in beside["postbenchmark"].sources
    assert beside["postbenchmark"].inputs != without["postbenchmark"].inputs
    assert beside["baseline"].inputs == without["baseline"].inputs


def test_all_problems_of_all_files_come_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    add_job(project, "bad").write_text("name: bad\nengine: fast\nnum_gpus: 1e-3\n")
    add_job(project, "worse").write_text("name: worse\n")
    with pytest.raises(JobError) as caught:
        render(project)
    text = "\n".join(caught.value.problems)
    for expected in ("baseline/bad.yaml", "engine", "num_gpus", "baseline/worse.yaml"):
        assert expected in text
    assert str(project) not in text
    assert not (project / "results").exists()
    assert not (project / "reports").exists()


def test_a_draft_does_not_keep_another_job_from_running(project: Path) -> None:
    add_job(project, "draft").write_text("name: draft\nengine: ???\n")
    assert render(project, only=[project / "params/baseline/one.yaml"]) == 0
    assert (project / "reports/jobs/one.html").is_file()
    assert not (project / "reports/summary.html").exists()


def test_two_files_with_one_name_are_refused(project: Path) -> None:
    other = project / "params/campaign/one.yaml"
    other.parent.mkdir()
    other.write_text((project / "params/baseline/one.yaml").read_text())
    with pytest.raises(JobError, match="rename one of them"):
        render(project)


def test_a_job_whose_process_dies_fails_and_the_rest_goes_on(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(project, "killed", purpose="dies")
    add_job(project, "two", purpose="unsupported")
    assert render(project) == 1
    out = capsys.readouterr().out
    assert re.search(r"killed +failed .*SIGKILL", out)
    assert "results/local/logs/report.log" in out
    statuses = {r["job"]["name"]: r["status"] for _, r in local.all_records(project)}
    assert statuses == {"one": "ok", "killed": "failed", "two": "unsupported"}
    shown = words(project / "reports/index.html")
    assert "SIGKILL" in shown
    assert "too <big>" in shown
    assert "get a bigger one" in shown
    assert "It was failed." in words(project / "reports/jobs/killed.html")
    # A failed job is measured again, one that cannot run here is not.
    jobs = list(report.load_jobs(report.params_files(project), project).values())
    machine = local.known_machine(project / "results/local")
    again = local.missing(jobs, local.all_records(project), machine)
    assert [job.name for job in again] == ["killed"]


def test_a_launcher_that_cannot_start_fails_every_job_soon(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LAUNCH", [sys.executable, "-c", "import nothing_of_this_name"])
    for name in ("two", "three"):
        add_job(project, name)
    failed = report.measure(
        list(report.load_jobs(report.params_files(project), project).values()),
        project, project / "results/local/logs/x.log",
    )  # fmt: skip
    assert sorted(failed) == ["one", "three", "two"]
    for _, record in local.all_records(project):
        assert "nothing_of_this_name" in record["reason"]


def test_what_has_a_record_is_measured_if_asked_for_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = list(report.load_jobs(report.params_files(project), project).values())
    log = project / "results/local/logs/x.log"
    assert report.measure(jobs, project, log) == []
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    assert report.measure(jobs, project, log) == [], "as there was nothing to measure"
    (before,) = (path.read_bytes() for path, _ in local.all_records(project))
    assert report.measure(jobs, project, log, again=True) == ["one"]
    assert [path.read_bytes() for path, _ in local.all_records(project)] == [before]


def test_a_failed_notebook_leaves_a_page_an_index_and_a_bad_status(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(project, "odd", purpose="fail")
    assert render(project) == 1
    captured = capsys.readouterr()
    assert "reports/jobs/odd.html: cell 3: AssertionError: as was asked" in captured.err
    assert "as was asked" in words(project / "reports/jobs/odd.html")
    assert "page incomplete" in words(project / "reports/index.html")
    assert (project / "reports/jobs/one.html").is_file()
    # The next run tries it again, and only it.
    jobs = report.load_jobs(report.params_files(project), project)
    tasks = report.plan(jobs, project, local.all_records(project))
    assert {task.name for task in tasks if report.is_stale(task)} == {"odd"}


def test_a_notebook_that_must_not_be_published_leaves_a_page_that_says_so(project: Path) -> None:
    script = project / "notebooks/summary.py"
    script.write_text(SUMMARY + "display({'text/html': '<script>x()</script>'}, raw=True)\n")
    assert render(project) == 1
    page = project / "reports/summary.html"
    assert "<script" not in page.read_text()
    assert "escape what comes from outside" in words(page)
    assert "summary.ipynb" in words(page)


def test_a_record_without_a_params_file_stays_in_the_index(project: Path) -> None:
    synthetic.write([synthetic.record("new-6gpu", scale="a14b")], project / "results")
    assert render(project) == 0
    shown = words(project / "reports/index.html")
    assert "new-6gpu" in shown
    assert "Full scale" in shown
    assert "Everything measured below" not in shown


def test_without_measuring_a_job_is_shown_as_not_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LAUNCH", ["false"])
    assert render(project, measuring=False) == 0
    assert "not measured" in words(project / "reports/index.html")
    assert "It was failed." in words(project / "reports/jobs/one.html")
    assert not (project / "results").exists()


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(project: Path) -> None:
    add_job(project, "two", purpose="hangs")
    driver = project / "driver.py"
    driver.write_text(
        "import signal, sys\nfrom wanreport import cli, local\n"
        # A shell's background job starts with Ctrl-C ignored, and so may these tests.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"local.LAUNCH = [sys.executable, {str(project / 'stand_in.py')!r}]\n"
        "if __name__ == '__main__':\n    sys.exit(cli.main(['report']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    results = project / "results/local"
    process = subprocess.Popen(
        [sys.executable, str(driver)], cwd=project, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (results / "pid").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "running it again goes on" in err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int((results / "pid").read_text()), 0)
    kept = next((results / SLUG).glob("one-*.json"))
    before = kept.stat().st_mtime_ns
    assert read_record(kept)["status"] == "ok"

    (results / "go").touch()
    done = subprocess.run(
        [sys.executable, str(driver)], cwd=project, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Measuring 1 of 2 jobs" in done.stdout
    assert kept.stat().st_mtime_ns == before
    assert (project / "reports/jobs/two.html").is_file()


def test_a_full_disk_is_told_and_the_old_page_stays(
    project: Path, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert render(project) == 0
    page = project / "reports/summary.html"
    before = page.read_bytes()
    jobs = report.load_jobs(report.params_files(project), project)
    tasks = report.plan(jobs, project, local.all_records(project))
    task = next(task for task in tasks if task.name == "summary")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(page))

    monkeypatch.setattr("wanreport.render.write_atomically", full)
    ran = execute(task.script, task.parameters, task.ipynb, cwd=project)
    monkeypatch.setattr("wanreport.render.execute", lambda *_, **__: ran)
    assert "No space left on device" in report.make_page(task).problem
    assert page.read_bytes() == before


# This machine ------------------------------------------------------------------------------------


def test_a_machine_is_known_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA H100 PCIe"] * 2
    monkeypatch.setattr(local, "_gpu_names", lambda: list(names))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.known_machine(tmp_path) is None
    local.remember_machine(tmp_path, "2x-h100", 2)
    assert local.known_machine(tmp_path) == local.Machine("2x-h100", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert local.known_machine(tmp_path) is None
    assert local.usable_gpus(None) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert local.usable_gpus(None) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.usable_gpus(None) == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert local.known_machine(tmp_path) is None  # another transport is another class
    assert list(tmp_path.iterdir()) == [tmp_path / local.MACHINES]
    assert json.loads((tmp_path / local.MACHINES).read_text())


def test_no_rehearsal_of_another_machine_hides_this_ones_failure(tmp_path: Path) -> None:
    here, other = synthetic.record("new-4gpu", status="failed", reason="x"), None
    other = synthetic.record("new-4gpu", machine={**here["machine"], "slug": "elsewhere"})
    real = synthetic.record("new-4gpu", scale="a14b")
    found = [(Path(r["machine"]["slug"]) / "r.json", r) for r in (here, other)]
    from wanreport.job import job_from_mapping

    job = job_from_mapping({**here["job"], "scale": "auto"})
    machine = local.Machine(here["machine"]["slug"], 0)
    assert local.spoken_for(job, found, machine) == found[0]
    assert local.spoken_for(job, found, None) == found[1]
    found.append((Path(real["machine"]["slug"]) / "r.json", real))
    assert local.spoken_for(job, found, machine) == found[2]
