"""`make report` and `make publish` in a small project, with a stand-in for what measures."""

import shutil
import socket
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tests import stand_in, synthetic
from tests.faults.test_disk import contents
from wanreport.jobs.job import load_job
from wanreport.measure import jobs
from wanreport.measure.jobs import load_jobs, measure
from wanreport.records.project import all_records
from wanreport.records.record import read_record
from wanreport.report import site

SLUG = stand_in.SLUG

JOB = """
# %% tags=["parameters"]
name = machine = None
# %%
from wanreport.report import notebook
run = notebook.measure(notebook.setup(globals()), machine=machine)
status = notebook.frames_of(["results", "results/local"]).runs.status[run] if run else "none"
notebook.md(f"# {name} on {machine}\\n\\nIt was {status}.")
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


def add_job(project, name, purpose=""):
    file = project / "params/baseline" / f"{name}.yaml"
    seed = sum(name.encode())  # two jobs that ask for the same would share a record
    file.write_text(f"""{{name: {name}, engine: resident, num_gpus: 1, purpose: "{purpose}",
        seed: {seed}, dit_layerwise_offload: false, dit_cpu_offload: false}}""")
    return file


def add_record(project, name, slug):
    """Write a record of the full model to results/, as those are that one commits."""
    machine = {"slug": slug, "class": f"1x {slug}"}
    made = synthetic.record(name, scale="a14b", engine="resident", num_gpus=1, machine=machine,
                            seed=sum(name.encode()))  # fmt: skip
    synthetic.write([made], project / "results")
    return next((project / "results" / slug).glob(f"{name}-*.json"))


@pytest.fixture
def project(project, monkeypatch):
    """A project with one job and two notebooks, whose jobs are measured by the stand-in."""
    (project / "notebooks/job.py").write_text(JOB)
    (project / "notebooks/index.py").write_text(INDEX)
    add_job(project, "one")
    for name in ("running", "this_machine"):
        monkeypatch.setattr(jobs, name, getattr(stand_in, name))
    return project


@pytest.fixture
def unmade(monkeypatch):
    """Names of pages that would be made; none is."""
    names = []

    def note(pages, *_):
        names.extend(page.href for page in pages)
        return iter([])

    monkeypatch.setattr(site, "make_pages", note)
    return names


def words(page):
    return BeautifulSoup(page, "html.parser").get_text(" ")


def stale(project):
    jobs = load_jobs(sorted((project / "params").rglob("*.yaml")), project)
    return {page.href for page in site.plan(project, jobs) if site.is_stale(page)}


def test_the_whole_way_and_a_second_time(project, monkeypatch, capsys):
    add_record(project, "one", "gpu-a")
    assert site.report(project) == 0
    first = contents(project / "reports")
    assert set(first) == {"index.html", f"jobs/{SLUG}/one.html", "jobs/gpu-a/one.html"}
    assert f"results/local/{SLUG}/one-" in words(first["index.html"])
    assert "It was ok." in words(first[f"jobs/{SLUG}/one.html"])
    for name, page in first.items():
        for link in BeautifulSoup(page, "html.parser").select("a[href]"):
            target = str(link["href"]).partition("#")[0]
            assert (project / "reports" / name).parent.joinpath(target).exists(), (name, link)

    # Nothing has changed: nothing is measured, executed or written.
    monkeypatch.setattr(jobs, "running", None)
    before = {path: path.stat().st_mtime_ns for path in (project / "reports").rglob("*")}
    assert site.report(project) == 0
    assert "rendered" not in capsys.readouterr().out.splitlines()[-1]
    assert contents(project / "reports") == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_records_that_count_and_jobs_without_one_have_a_page(project, unmade, monkeypatch):
    for name, slug in (("two", "gpu-a"), ("two", "gpu-b"), ("unlisted", "gpu-a")):
        add_record(project, name, slug)
    add_job(project, "two")
    (project / "params/campaign").mkdir()
    add_job(project, "later").rename(project / "params/campaign/later.yaml")
    assert site.report(project, measuring=False) == 0
    assert unmade == ["index.html", "jobs/gpu-a/two.html", "jobs/gpu-a/unlisted.html",
                      "jobs/gpu-b/two.html", "jobs/none/one.html"]  # fmt: skip
    monkeypatch.setattr(site, "RESULTS_DIRS", [Path("results")])
    assert site.report(project, measuring=False) == 0 and unmade[:5] == unmade[5:]


def test_a_job_that_is_asked_for_has_its_page_alone(project, unmade):
    add_job(project, "draft").write_text("name: draft\nengine: ???\n")
    one = project / "params/baseline/one.yaml"
    # A file that asks for the same under another name has a page as well.
    other = project / "other.yaml"
    other.write_text(one.read_text().replace("name: one", "name: other"))
    assert site.report(project, only=[one]) == site.report(project, only=[other]) == 0
    assert unmade == [f"jobs/{SLUG}/one.html", "jobs/none/other.html"]


def test_only_what_depends_on_a_change_is_stale(project, monkeypatch):
    record = add_record(project, "one", "gpu-a")
    script, one = project / "notebooks/index.py", "jobs/gpu-a/one.html"
    add_job(project, "one").unlink()
    assert site.report(project, workers=1) == 0
    for file, due in ((script, {"index.html"}), (record, {one, "index.html"})):
        text = file.read_text()
        file.write_text(text + "\n")
        assert stale(project) == due
        file.write_text(text)
        assert stale(project) == set()
    (project / "reports" / one).unlink()
    assert stale(project) == {one}
    monkeypatch.setattr(site, "_code", lambda: "another")
    assert stale(project) == {one, "index.html"}


def test_pages_that_are_no_more_are_removed(project, unmade):
    reports = project / "reports"
    old, mine, published = (reports / f"{n}/x.html" for n in ("jobs/gone", "mine", "published"))
    for path in (old, mine, published):
        path.parent.mkdir(parents=True)
        path.write_text('<meta name="wanreport-inputs" content="">' * (path != mine))
    assert site.report(project, measuring=False) == 0
    assert not old.parent.exists() and mine.exists() and published.exists()


def test_a_job_whose_process_dies_fails_and_the_rest_goes_on(project, unmade):
    status = {"one": "ok", "killed": "failed", "two": "unsupported"}
    add_job(project, "killed", purpose="dies")
    add_job(project, "two", purpose="unsupported")
    assert site.report(project) == 1
    found = {record["job"]["name"]: record["status"] for _, record in all_records(project)}
    assert found == status and len(unmade) == 4


def test_what_has_a_record_is_measured_if_asked_for_again(project, monkeypatch):
    one, log = [load_job(add_job(project, "one"))], project / "results/local/logs/x.log"
    assert measure(one, project, log) == []
    (before,) = (path.read_bytes() for path, _ in all_records(project))
    monkeypatch.setitem(stand_in.SAYS, "", stand_in.SAYS["dies"])
    assert measure(one, project, log) == [], "as there was nothing to measure"
    assert measure(one, project, log, again=True) == ["one"]
    assert [path.read_bytes() for path, _ in all_records(project)] == [before]


def test_published_pages_tell_nothing_of_the_machine(project, tmp_path_factory, monkeypatch):
    record = read_record(add_record(project, "one", "gpu-a"))
    add_job(project, "two")
    assert site.publish(project, workers=1) == 0
    first = contents(project / "reports")
    assert set(first) == {"published/index.html", "published/jobs/gpu-a/one.html"}
    assert record["software"]["git_sha"][:12] in words(first["published/index.html"])

    # Another machine: another folder, a later run of its own, other code and libraries.
    other = tmp_path_factory.mktemp("other") / "place"
    shutil.copytree(project, other)
    shutil.rmtree(other / "reports")
    later = {**record, "started_at": "2099-01-01T00:00:00+00:00"}
    synthetic.write([later], other / "results/local")
    monkeypatch.setattr(site, "_code", lambda: "another")
    monkeypatch.chdir(other)
    assert site.publish(other, workers=1) == 0
    assert contents(other / "reports") == first
    for page in first.values():
        for private in (str(project), socket.gethostname(), "matplotlib 3", "2099"):
            assert private.encode() not in page
