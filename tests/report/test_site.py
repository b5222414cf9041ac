"""`make report` and `make publish` in a small project, with a stand-in for what measures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bs4 import BeautifulSoup

from tests import stand_in, synthetic
from wanreport.jobs.job import JobError
from wanreport.measure import jobs
from wanreport.measure.jobs import load_jobs, measure
from wanreport.records.project import all_records
from wanreport.records.record import read_record
from wanreport.report import site

ROOT = Path(__file__).resolve().parents[2]
SLUG = stand_in.SLUG

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
machine = None
# %%
from wanreport.report import notebook
run = notebook.measure(notebook.setup(globals()), machine=machine)
status = notebook.frames_of(["results", "results/local"]).runs.status[run] if run else "none"
notebook.md(f"# {name} on {machine}\\n\\nIt was {status}.")
assert purpose != "fail", "as was asked"
"""
INDEX = """
# %% tags=["parameters"]
results_dirs = ["results", "results/local"]
# %%
from wanreport.report import notebook
runs = notebook.frames_of(results_dirs).runs
links = [f"[{run}]({notebook.page(run)})" for run in runs.index]
notebook.md(f"# Summary\\n\\n{' '.join(links)}")
"""


def add_job(project: Path, name: str, purpose: str = "") -> Path:
    file = project / "params/baseline" / f"{name}.yaml"
    seed = sum(name.encode())  # two jobs that ask for the same would share a record
    file.write_text(
        f'name: {name}\nengine: resident\nnum_gpus: 1\npurpose: "{purpose}"\nseed: {seed}\n'
        "dit_layerwise_offload: false\ndit_cpu_offload: false\n"
    )
    return file


def add_record(project: Path, name: str, slug: str, **changes: Any) -> Path:
    """Write a record of the full model to results/, as those are that one commits."""
    made = synthetic.record(name, scale="a14b", engine="resident", num_gpus=1,
                            machine={"slug": slug, "class": f"1x {slug}"}, **changes)  # fmt: skip
    synthetic.write([made], project / "results")
    return next((project / "results" / slug).glob(f"{name}-*.json"))


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one job and two notebooks, whose jobs are measured by the stand-in."""
    (project / "notebooks/job.py").write_text(JOB)
    (project / "notebooks/index.py").write_text(INDEX)
    add_job(project, "one")
    for name in ("run_job", "this_machine"):
        monkeypatch.setattr(jobs, name, getattr(stand_in, name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return project


@pytest.fixture
def unmade(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of pages that would be made; none is."""
    names: list[str] = []

    def note(pages: Any, *_: object) -> Iterator[Any]:
        names.extend(page.href for page in pages)
        return iter([])

    monkeypatch.setattr(site, "make_pages", note)
    return names


def pages(project: Path) -> dict[str, bytes]:
    reports = project / "reports"
    return {path.relative_to(reports).as_posix(): path.read_bytes()
            for path in sorted(reports.rglob("*")) if path.is_file()}  # fmt: skip


def words(page: bytes) -> str:
    return BeautifulSoup(page, "html.parser").get_text(" ")


# Which pages there are ---------------------------------------------------------------------------


def test_the_whole_way_and_a_second_time(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_record(project, "one", "gpu-a")
    assert site.report(project) == 0
    first = pages(project)
    assert set(first) == {"index.html", f"jobs/{SLUG}/one.html", "jobs/gpu-a/one.html"}
    assert f"results/local/{SLUG}/one-" in words(first["index.html"])
    assert "It was ok." in words(first[f"jobs/{SLUG}/one.html"])
    for name, page in first.items():
        for link in BeautifulSoup(page, "html.parser").select("a[href]"):
            target = str(link["href"]).partition("#")[0]
            assert (project / "reports" / name).parent.joinpath(target).exists(), (name, link)

    # Nothing has changed: nothing is measured, executed or written.
    monkeypatch.setattr(jobs, "run_job", None)
    before = {name: (project / "reports" / name).stat().st_mtime_ns for name in first}
    assert site.report(project) == 0
    assert "rendered" not in capsys.readouterr().out.splitlines()[-1]
    assert pages(project) == first
    assert {n: (project / "reports" / n).stat().st_mtime_ns for n in first} == before


def test_every_record_that_counts_has_a_page_and_so_has_a_job_without_one(
    project: Path, unmade: list[str]
) -> None:
    add_job(project, "two")
    add_record(project, "two", "gpu-a", seed=sum(b"two"))
    add_record(project, "two", "gpu-b", seed=sum(b"two"))
    add_record(project, "unlisted", "gpu-a")
    (project / "params/campaign").mkdir()
    add_job(project, "later").rename(project / "params/campaign/later.yaml")
    assert site.report(project, measuring=False) == 0
    assert unmade == ["index.html", "jobs/gpu-a/two.html", "jobs/gpu-a/unlisted.html",
                      "jobs/gpu-b/two.html", "jobs/none/one.html"]  # fmt: skip


def test_a_job_that_is_asked_for_has_its_page_alone(project: Path, unmade: list[str]) -> None:
    add_job(project, "draft").write_text("name: draft\nengine: ???\n")
    assert site.report(project, only=[project / "params/baseline/one.yaml"]) == 0
    assert unmade == [f"jobs/{SLUG}/one.html"]
    # A file that asks for the same under another name has a page as well.
    other = project / "other.yaml"
    text = (project / "params/baseline/one.yaml").read_text()
    other.write_text(text.replace("name: one", "name: other"))
    unmade.clear()
    assert site.report(project, only=[other]) == 0
    assert unmade == ["jobs/none/other.html"]


def stale(project: Path) -> set[str]:
    jobs = load_jobs(sorted((project / "params").rglob("*.yaml")), project)
    return {page.href for page in site.plan(project, jobs) if site.is_stale(page)}


def test_only_what_depends_on_a_change_is_stale(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = add_record(project, "one", "gpu-a")
    one, every = {"jobs/gpu-a/one.html"}, {"jobs/gpu-a/one.html", "index.html"}
    add_job(project, "one").unlink()
    assert site.report(project, workers=1) == 0
    assert stale(project) == set()
    script = project / "notebooks/index.py"
    text = script.read_text()
    script.write_text(text + "\n# %% [markdown]\n# More.\n")
    assert stale(project) == {"index.html"}
    script.write_text(text)
    record.write_text(record.read_text().replace('"wall_s"', ' "wall_s"'))
    assert stale(project) == every
    record.write_text(record.read_text().replace(' "wall_s"', '"wall_s"'))
    assert stale(project) == set()
    (project / "reports/jobs/gpu-a/one.html").unlink()
    assert stale(project) == one
    for what in ("_libraries", "_package"):
        with monkeypatch.context() as patch:
            patch.setattr(site, what, lambda: ["another"])
            assert stale(project) == every
    other = record.with_name(f"two-{record.stem.split('-')[-1]}.json")
    record.rename(other)
    assert stale(project) == every


def test_pages_that_are_no_more_are_removed(project: Path, unmade: list[str]) -> None:
    old = project / "reports/jobs/gone/x.html"
    old.parent.mkdir(parents=True)
    kept = [project / "reports/mine.html", project / "reports/published/x.html"]
    kept[1].parent.mkdir()
    for path in (old, kept[1]):
        path.write_text('<meta name="wanreport-inputs" content="">')
    kept[0].write_text("not made by a report")
    assert site.report(project, measuring=False) == 0
    assert not old.parent.exists()
    assert all(path.exists() for path in kept)


# What goes wrong ---------------------------------------------------------------------------------


def test_all_problems_of_all_files_come_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "run_job", None)
    add_job(project, "bad").write_text("name: bad\nengine: fast\nnum_gpus: 1e-3\n")
    add_job(project, "worse").write_text("name: worse\n")
    with pytest.raises(JobError) as caught:
        site.report(project)
    text = "\n".join(caught.value.problems)
    for expected in ("baseline/bad.yaml", "engine", "num_gpus", "baseline/worse.yaml"):
        assert expected in text
    assert str(project) not in text
    assert not (project / "results").exists()
    assert not (project / "reports").exists()


def test_no_page_that_fails_ends_the_report(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that raises, and a process that is killed."""
    bad = {"odd": "as was asked", "killed": "SIGKILL"}
    for name in bad:
        add_job(project, name, purpose="fail" * (name == "odd"))
    text = (
        "# %%\nimport os, signal\nif name == 'killed':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (project / "notebooks/job.py").write_text(JOB.replace("# %%\nfrom", f"{text}from"))
    assert site.report(project) == 1
    found = pages(project)
    said = capsys.readouterr().err
    for page, what in bad.items():
        (line,) = [line for line in said.splitlines() if f"/{page}.html" in line]
        assert what in line and what in words(found[f"jobs/{SLUG}/{page}.html"])
    # The next run tries them again, and only them.
    assert stale(project) == {f"jobs/{SLUG}/{name}.html" for name in bad}


def test_a_job_whose_process_dies_fails_and_the_rest_goes_on(
    project: Path, unmade: list[str]
) -> None:
    add_job(project, "killed", purpose="dies")
    add_job(project, "two", purpose="unsupported")
    assert site.report(project) == 1
    found = {record["job"]["name"]: record for _, record in all_records(project)}
    assert {name: record["status"] for name, record in found.items()} == {
        "one": "ok", "killed": "failed", "two": "unsupported",
    }  # fmt: skip
    assert "SIGKILL" in found["killed"]["reason"]
    assert len(unmade) == 4
    # What failed and what could not run here is tried again: the reason may be gone.
    every = list(load_jobs(sorted((project / "params").rglob("*.yaml")), project).values())
    again = jobs.missing(every, all_records(project), jobs.this_machine())
    assert {job.name for job in again} == {"killed", "two"}


def test_what_has_a_record_is_measured_if_asked_for_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = add_job(project, "one")
    one = list(load_jobs([file], project).values())
    log = project / "results/local/logs/x.log"
    assert measure(one, project, log) == []

    def fails(job: Any, root: Path, **_: Any) -> Path:
        return stand_in.run_job(job.model_copy(update={"purpose": "dies"}), root)

    monkeypatch.setattr(jobs, "run_job", fails)
    assert measure(one, project, log) == [], "as there was nothing to measure"
    (before,) = (path.read_bytes() for path, _ in all_records(project))
    assert measure(one, project, log, again=True) == ["one"]
    assert [path.read_bytes() for path, _ in all_records(project)] == [before]


def driven(project: Path) -> subprocess.Popen[str]:
    """`wanreport report` in a process of its own."""
    driver = project / "driver.py"
    driver.write_text(
        "import signal, sys\nfrom tests import stand_in\nfrom wanreport import cli\n"
        "from wanreport.measure import jobs\n"
        "jobs.run_job, jobs.this_machine = stand_in.run_job, stand_in.this_machine\n"
        # A shell's background job starts with Ctrl-C ignored, and so may these tests.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n    sys.exit(cli.main(['report', '--workers', '1']))\n"
    )
    return subprocess.Popen(
        [sys.executable, str(driver)], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "TMPDIR": str(project / "tmp")},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> int:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return int(path.read_text())


def test_ctrl_c_keeps_what_is_measured_and_the_next_run_goes_on(project: Path) -> None:
    (project / "tmp").mkdir()
    add_job(project, "two", purpose="hangs")
    results = project / "results/local"
    process = driven(project)
    pid = wait_for(results / "pid", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not psutil.pid_exists(pid)
    (kept,) = (results / SLUG).glob("one-*.json")
    before = kept.stat().st_mtime_ns
    assert read_record(kept)["status"] == "ok"
    (results / "go").touch()
    process = driven(project)
    assert process.communicate() and process.returncode == 0
    assert kept.stat().st_mtime_ns == before
    assert (project / f"reports/jobs/{SLUG}/two.html").is_file()


def test_a_signal_ends_pages_that_are_being_made(project: Path) -> None:
    (project / "tmp").mkdir()
    (project / "notebooks/index.py").write_text(
        "# %%\nimport os, time\nfrom pathlib import Path\nPath('part').write_text(str(os.getpid()))"
        "\nos.rename('part', 'pid')\ntime.sleep(600)\n"
    )
    process = driven(project)
    pid = wait_for(project / "pid", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (project / "reports/index.html").exists()
    assert list((project / "tmp").iterdir()) == []


# Published ---------------------------------------------------------------------------------------


def test_published_pages_show_committed_records_and_nothing_of_the_machine(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_record(project, "one", "gpu-a", seed=sum(b"one"))
    add_job(project, "two")
    assert site.publish(project, workers=1) == 0
    first = pages(project)
    assert set(first) == {"published/index.html", "published/jobs/gpu-a/one.html"}

    # Another machine: another folder, a rehearsal of its own, another commit, other libraries.
    other = tmp_path_factory.mktemp("other") / "place"
    shutil.copytree(project, other)
    shutil.rmtree(other / "reports")
    made = synthetic.record("one", scale="a14b", engine="resident", num_gpus=1, seed=sum(b"one"),
                            machine={"slug": "gpu-a", "class": "1x gpu-a"})  # fmt: skip
    synthetic.write([{**made, "started_at": "2099-01-01T00:00:00+00:00"}], other / "results/local")
    for name in ("_libraries", "_package", "_software"):
        monkeypatch.setattr(site, name, lambda: ["another"])
    monkeypatch.chdir(other)
    assert site.publish(other, workers=1) == 0
    assert pages(other) == first
    for page in first.values():
        for private in (str(project), socket.gethostname(), "matplotlib 3", "2099"):
            assert private.encode() not in page
    commit = json.loads(next(project.glob("results/gpu-a/*.json")).read_text())["software"]
    assert commit["git_sha"][:12] in words(first["published/jobs/gpu-a/one.html"])
