"""The notebooks, run whole and rendered: over the committed records, and over made-up ones."""

import ast
import json

import jupytext
import pytest
from bs4 import BeautifulSoup

from tests import synthetic
from tests.synthetic import ROOT, committed
from wanreport.analysis.compare import answer, quoted, without_record
from wanreport.jobs.job import field_defaults
from wanreport.report import render
from wanreport.words import ratio

EVIL = "<script>alert(1)</script> **bold** [x](javascript:1)"


def page(cwd, notebook, **given):
    """The page that a notebook makes of the records below a folder."""
    out = cwd / "page.html" if cwd != ROOT else ROOT / ".cache" / f"test-{notebook}.html"
    out.parent.mkdir(exist_ok=True)
    href = "jobs/slug/job.html" if notebook == "job" else f"{notebook}.html"
    assert render.make(render.Page(ROOT / f"notebooks/{notebook}.py", out, href, given), cwd) == ""
    return BeautifulSoup(out.read_text("utf-8"), "html.parser")


def project(folder, records):
    """A project with some records, and the params files of this one."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "params").symlink_to(ROOT / "params")
    synthetic.write(records, folder / "results")
    return folder


def job_page(cwd, record):
    """The page of a record's job, on the record's machine."""
    given = {key: value for key, value in record["job"].items() if value is not None}
    return page(cwd, "job", **given, machine=record["machine"]["slug"])


def sections(soup):
    return {heading["id"] for heading in soup.select("main h2")}


def first_screen(soup):
    """All text before the first section."""
    return " ".join(reversed(soup.select("main h2")[0].find_all_previous(string=True)))


MEASURED = {"time", "memory", "what-moved", "bits", "what-ran"}


def test_the_parameters_of_a_jobs_page_are_the_fields_of_a_job_and_whose_record():
    cells = jupytext.read(ROOT / "notebooks/job.py").cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    found = {line.targets[0].id: ast.literal_eval(line.value)
             for line in ast.parse(cell.source).body}  # fmt: skip
    assert found.pop("machine", "") is None
    assert repr(found) == repr(field_defaults()), "in this order, of these types"


@pytest.fixture(scope="module")
def runs():
    """The committed runs of jobs that count."""
    found = committed().runs
    return found[(found.source == "job") & found.latest]


def test_the_report_runs_whole_on_the_committed_records():
    soup = page(ROOT, "postbenchmark", results_dirs=["results"])
    assert len(soup.find_all("h1")) == 1
    # Predictions are held against later runs of the same job, each of which has its page.
    (caption,) = [each for each in soup.select("caption") if "predictions" in each.text]
    links = [link["href"] for link in caption.find_parent("table").select("tbody th a")]
    assert len(links) >= 14 and all("2gpu" in link or "4gpu" in link for link in links)


def test_the_report_needs_no_more_than_the_runs_that_it_compares(tmp_path, runs):
    pair = runs.query("interconnect == 'PCIe path' and height == 480")
    root = project(tmp_path, [])
    for run in pair.run[pair.engine.isin(["resident", "layerwise", "stream"])]:
        (root / run).parent.mkdir(parents=True, exist_ok=True)
        (root / run).symlink_to(ROOT / run)
    soup = page(root, "postbenchmark", results_dirs=["results"])
    assert soup.select(".answer") and "the-checks" in sections(soup)
    with pytest.raises(AssertionError):
        page(project(tmp_path / "none", []), "postbenchmark", results_dirs=["results"])


def test_the_index_opens_with_the_answer_and_has_a_row_for_each_committed_job(runs):
    index = page(ROOT, "index", results_dirs=["results"])
    names = [child["class"][-1] for child in index.select(".answer, figure.figure, .trust")]
    assert names[:3] == ["answer", "figure", "trust"]
    found, told = answer(committed()), first_screen(index)
    assert all(quoted(found, place, "layerwise") in told for place in found.place)
    left = without_record(committed().runs).dropna(subset="baseline_job").gpus
    assert f"{' and '.join(map(str, sorted(set(left))))} GPUs" in told, "what was not measured"
    links = {link["href"] for link in index.select("td a, th a")}
    assert {f"jobs/{row.slug}/{row.job}.html" for row in runs.itertuples()} <= links


KINDS = {
    "two GPUs": "engine == 'layerwise' and gpus == 2 and height == 480",
    "with a plan": "engine == 'stream' and gpus == 1",
    "counts derived": "engine == 'fsdp'",
    "the reference": "engine == 'resident' and gpus == 2",
    "too few steps for an interval": "step_n < 6",
    "decoded, its reference not": "job == '480p-2gpu-stream-one-expert' and gpus == 2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_committed_jobs_page_answers_first(kind, runs):
    row = runs[runs.status == "ok"].query(KINDS[kind]).iloc[0]
    record = json.loads((ROOT / row.run).read_text("utf-8"))
    soup = job_page(ROOT, record)
    assert row.job in soup.h1.text and row.machine in soup.h1.text
    assert soup.select(".answer") and soup.select(".trust")
    assert f"{row.step_s:.3f}"[:4] in first_screen(soup)
    if row.engine != "resident":  # a sum is held against one of the same parts
        other = committed().runs.loc[row.reference]
        over = f"({ratio(row.end_to_end_s / other.end_to_end_s - 1)})"
        assert (over in first_screen(soup)) == ((row.decode_s > 0) == (other.decode_s > 0))
    assert sections(soup) >= MEASURED
    assert ("the-plan" in sections(soup)) == (row.engine == "stream")
    assert ("around-the-switch" in sections(soup)) == bool(row.traces)
    # Its pictures: steps that ran, the schedule's switch, whole runs, memory, bytes a step.
    steps, schedule, whole, memory = (plot.get_text("|") for plot in soup.select(".plot")[:4])
    assert f"steady {row.step_s:#.3g} s" in steps and "high-noise expert" in schedule
    assert f"{row.end_to_end_s:.0f} s" in whole and f"{row.allocated_bytes / 1e9:.1f} / " in memory
    if row.engine == "layerwise":
        moved = soup.select(".plot")[4].get_text("|").split("|")
        assert f"{row.h2d_schedule_bytes / row.steps_whole / 1e9:.3g}" in moved


def test_a_rehearsal_says_so_first_and_shows_no_times(tmp_path):
    record = synthetic.record()
    soup = job_page(project(tmp_path, [record]), record)
    assert soup.h1.text.startswith("Rehearsal")
    assert not {unit.text.strip() for unit in soup.select("th .unit")} & {"s", "ms", "MHz"}
    assert {"what-ran", "what-moved", "bits"} <= sections(soup)
    assert not {"time", "memory", "runs-of-the-same-job"} & sections(soup)


@pytest.mark.parametrize("status", ["failed", "oom", "unsupported"])
def test_a_job_without_a_result_says_why_and_what_to_do(tmp_path, status):
    record = synthetic.record("pure-4gpu", scale="a14b", status=status, reason="too big",
                              hint="a bigger one")  # fmt: skip
    soup = job_page(project(tmp_path, [record]), record)
    assert "too big" in first_screen(soup) and "a bigger one" in first_screen(soup)
    assert not sections(soup) & MEASURED
    assert any("pure-4gpu" in block.text for block in soup.select("main .prose pre"))


def test_a_job_without_a_record_names_the_command(tmp_path):
    soup = page(project(tmp_path, []), "job", name="new-4gpu", engine="layerwise", num_gpus=4)
    assert "params/baseline/new-4gpu.yaml" in first_screen(soup)
    assert not sections(soup) & MEASURED


def tables_below(soup, heading):
    found = soup.select("table.data")
    return [table for table in found if table.find_previous("h2")["id"] == heading]


def test_the_index_keeps_failures_and_rehearsals_apart(tmp_path):
    records = [
        *(synthetic.record(name, scale="a14b") for name in ("pure-4gpu", "new-4gpu")),
        synthetic.record("new-6gpu", scale="a14b", status="oom", reason="too big", hint="smaller"),
        synthetic.record("old-4gpu-swap"),
    ]
    soup = page(project(tmp_path, records), "index", results_dirs=["results"])
    (runs,), (failed, *_), (small,) = (
        tables_below(soup, heading) for heading in ("runs", "jobs-without-a-result", "rehearsals")
    )
    assert len(runs.select("tr")) == 3 and "old-4gpu-swap" not in runs.text
    assert "new-6gpu" in failed.text and "smaller" in failed.text
    assert "old-4gpu-swap" in small.text


@pytest.mark.parametrize("names", [[], ["new-4gpu"]], ids=["none", "a rehearsal"])
def test_the_index_says_that_nothing_was_measured(tmp_path, names):
    records = [synthetic.record(name) for name in names]
    soup = page(project(tmp_path, records), "index", results_dirs=["results"])
    assert not soup.select("figure, .answer")
    assert len(tables_below(soup, "jobs-without-a-result")) == 2


def test_what_a_record_says_is_text_and_no_markup(tmp_path):
    records = [
        synthetic.record("new-4gpu", scale="a14b", purpose=EVIL, machine={"cpu_model": EVIL}),
        synthetic.record("pure-4gpu", scale="a14b", status="failed", reason=EVIL, hint=EVIL),
    ]
    root = project(tmp_path, records)
    pages = [job_page(root, record) for record in records]
    for made in [page(root, "index", results_dirs=["results"]), *pages]:
        assert not made.select("script") and not made.select('a[href^="javascript"]')
        assert "alert(1)" in made.text
