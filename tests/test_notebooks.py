"""The job and post-benchmark notebooks, executed over made-up records."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jupytext
import pytest
import synthetic

from tests import campaigns as made
from wanreport import render
from wanreport.job import field_defaults

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SCRIPTS = [NOTEBOOKS / "job.py", NOTEBOOKS / "postbenchmark.py"]
EVIL = "<script>alert(1)</script> **bold** [x](javascript:1)"
Run = Callable[..., tuple[Any, render.Failure | None]]


@pytest.fixture(scope="module")
def run(execute: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Execute a notebook in a project of its own that holds the given records."""

    def in_project(
        script: str,
        records: list[dict[str, Any]],
        parameters: dict[str, Any],
        campaigns: Sequence[dict[str, Any]] = (),
    ) -> tuple[Any, render.Failure | None]:
        project = tmp_path_factory.mktemp("project")
        for folder in ("notebooks", "params"):
            (project / folder).mkdir()
        synthetic.write(records, project / "results")
        for number, campaign in enumerate(campaigns):
            made.write(campaign, project / "results", f"c{number}")
        return execute(NOTEBOOKS / script, parameters, project / "out.ipynb", cwd=project)

    return in_project


def parameters_of(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record["job"].items() if v is not None}


def shown(notebook: Any) -> list[str]:
    """What each cell shows, as text: prose, and of outputs their Markdown, HTML or alt text."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found.append(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            assert output.output_type == "display_data", output
            found += [data[kind] for kind in ("text/markdown", "text/html") if kind in data]
            if "image/svg+xml" in data:
                assert output.metadata["image/svg+xml"]["alt"].strip()
                found.append(output.metadata["image/svg+xml"]["alt"])
    return found


def figures_in(notebook: Any) -> int:
    return sum(
        "image/svg+xml" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def has_run(notebook: Any) -> bool:
    return all(
        cell.execution_count is not None
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip()
    )


# The scripts -------------------------------------------------------------------------------------


def parameters_cell(script: Path) -> dict[str, Any]:
    cells = [c for c in jupytext.read(script).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    body = ast.parse(cells[0].source).body
    assert all(isinstance(line, ast.Assign) for line in body)
    return {line.targets[0].id: ast.literal_eval(line.value) for line in body}  # type: ignore[attr-defined]


def test_the_job_notebooks_parameters_are_exactly_a_jobs_fields_and_whose_record() -> None:
    found = parameters_cell(NOTEBOOKS / "job.py")
    assert found.pop("machine", "") is None
    assert list(found.items()) == list(field_defaults().items())
    assert [type(v) for v in found.values()] == [type(v) for v in field_defaults().values()]


def test_the_postbenchmark_notebook_takes_only_its_folders() -> None:
    assert list(parameters_cell(NOTEBOOKS / "postbenchmark.py")) == ["results_dirs"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_names_its_kernel_and_no_versions_of_tools(script: Path) -> None:
    header = script.read_text().split("# ---")[1]
    assert "name: python3" in header
    assert "notebook_metadata_filter: -jupytext.text_representation.jupytext_version" in header
    assert "  jupytext_version" not in header


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_number_is_typed_into_prose(script: Path) -> None:
    names = r"SGLang 0\.5\.9|section 9\.2|rank 0"  # a version, a section, a name: no results
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\d", re.sub(names, "", cell.source)), cell.source


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cells_are_short_and_delegate(script: Path) -> None:
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 10, cell.source
            assert "def " not in cell.source


# The job's page ----------------------------------------------------------------------------------


def test_a_rehearsals_page_says_so_first_and_shows_no_times(run: Run, tmp_path: Path) -> None:
    record = synthetic.record(steady_s=123.456, switch_s=234.567, purpose=EVIL)
    notebook, failure = run("job.py", [record], parameters_of(record))
    assert failure is None and has_run(notebook)
    texts = shown(notebook)
    assert texts[0].startswith("# Rehearsal: new-4gpu")
    assert texts[1].startswith("**Rehearsal:**")
    page = "\n".join(texts)
    assert not re.search(r"123\.[45]|234\.[56]", page)
    assert page.count("says nothing about the GPU") == 3
    assert f"new-4gpu-{record['job_hash']}.json" in page.replace("&#45;", "-")
    assert "order" in page and "order, not time" in str(notebook)
    assert "Every counter on every rank equals the closed formula" in page
    assert figures_in(notebook) == 3  # schedule, bytes, order of events
    prose = "\n".join(texts[:-1])  # the last one is a block of code, which shows it as it is
    assert "<script" not in prose and "](javascript" not in prose
    to = tmp_path / "page.html"
    render.to_html(notebook, to, render.Page(notebook="notebooks/job.py"))
    assert "<script>alert" not in to.read_text()


def test_a_full_scale_page_has_every_picture(run: Run) -> None:
    record = synthetic.record("old-4gpu-swap", scale="a14b")
    notebook, failure = run("job.py", synthetic.all_jobs("a14b"), parameters_of(record))
    assert failure is None and has_run(notebook)
    texts = shown(notebook)
    assert texts[0] == "# old-4gpu-swap"
    assert "Not shown" not in "\n".join(texts)
    assert figures_in(notebook) == 6
    assert "n = 25" in texts[1]


@pytest.mark.parametrize("scale", ["a14b", "tiny"])
def test_a_page_of_stream_shows_its_plan_with_times_at_full_scale_only(
    run: Run, scale: str
) -> None:
    record = synthetic.record("s", scale=scale, engine="stream", num_gpus=2)
    notebook, failure = run("job.py", [record], parameters_of(record))
    assert failure is None and has_run(notebook)
    page = "\n".join(shown(notebook))
    assert "the plan took **" in page
    assert ("Predicted was a step of" in page) == (scale == "a14b")
    assert "What was to choose from" in str(notebook)


@pytest.mark.parametrize("status", ["oom", "failed"])
def test_a_page_of_a_job_that_did_not_run_says_so_first(run: Run, status: str) -> None:
    record = synthetic.record("pure-4gpu", scale="a14b", status=status, reason=f"why {EVIL}",
                              hint="use another engine")  # fmt: skip
    notebook, failure = run("job.py", [record], parameters_of(record))
    assert failure is None and has_run(notebook)
    texts = shown(notebook)
    word = {"oom": "Ran out of memory", "failed": "Failed"}[status]
    assert texts[0] == f"# {word}: pure-4gpu"
    assert texts[1].startswith("**This job")
    assert "why" in texts[1] and "use another engine" in texts[1]
    assert figures_in(notebook) == 0
    assert "<script" not in "\n".join(texts)


def test_a_job_that_was_never_measured_has_a_page(run: Run) -> None:
    notebook, failure = run("job.py", [], parameters_of(synthetic.record()))
    assert failure is None and has_run(notebook)
    assert shown(notebook)[0] == "# Did not run: new-4gpu"
    assert "not measured" in shown(notebook)[1]


def test_an_unknown_parameter_stops_the_notebook_before_anything_runs(run: Run) -> None:
    record = synthetic.record()
    notebook, failure = run("job.py", [record], {**parameters_of(record), "hieght": 480})
    assert failure is not None
    assert "hieght" in failure.what and "height" in failure.what
    assert figures_in(notebook) == 0


# The post-benchmark page -------------------------------------------------------------------------


def test_with_rehearsals_only_the_page_says_so_first(run: Run) -> None:
    records = [synthetic.record(name, steady_s=123.456) for name in synthetic.BASELINE]
    notebook, failure = run("postbenchmark.py", records, {})
    assert failure is None and has_run(notebook)
    texts = shown(notebook)
    assert texts[0].startswith("# Rehearsal:")
    assert texts[1].startswith("**Rehearsal:**")
    page = "\n".join(texts)
    assert not re.search(r"123\.[45]", page)
    assert figures_in(notebook) == 1  # bytes
    assert all(f">{name}<" in page for name in synthetic.BASELINE)


def test_with_full_scale_records_the_page_compares_times(run: Run) -> None:
    oom = synthetic.record("pure-4gpu", scale="a14b", status="oom")
    full = [r for r in synthetic.all_jobs("a14b") if r["job"]["name"] != "pure-4gpu"]
    notebook, failure = run("postbenchmark.py", [*full, oom, *synthetic.all_jobs()], {})
    assert failure is None and has_run(notebook)
    texts = shown(notebook)
    assert texts[0] == "# After the benchmarks"
    assert figures_in(notebook) == 2 * 2 + 1 + 1  # steps and memory on 4 and 6 GPUs; bytes; by GPUs
    assert "ran out of memory" in "\n".join(texts)


def test_campaigns_beside_peers_are_shown_and_never_taken_for_records(
    run: Run, tmp_path: Path
) -> None:
    measured = [
        made.campaign(factors=made.LABELS | made.ABLATED),
        made.campaign(branches=2, status={"fsdp": "oom", "sglang:prefetch=1": "absent"}),
        made.campaign(device="cpu", machine="CPU, 2 cores", transport=[], resident_ms={27: 1.0}),
    ]
    notebook, failure = run("postbenchmark.py", [], {}, measured)
    assert failure is None and has_run(notebook)
    page = "\n".join(shown(notebook))
    assert "0 records" in page and page.count("the fastest costs") == 2
    assert figures_in(notebook) == 1  # the crossover map
    for table in ("Cost over resident: 2x NVIDIA H200", "Plans, predicted against measured",
                  "Settings of stream, each alone", "Engines beside their peers: CPU, 2 cores",
                  "oom: made up: oom"):  # fmt: skip
        assert table in page, table
    for name in ("one", "two"):
        render.to_html(notebook, tmp_path / name, render.Page(notebook="notebooks/x.py"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_without_campaigns_each_part_says_so_in_a_sentence(run: Run) -> None:
    notebook, failure = run("postbenchmark.py", [], {})
    assert failure is None
    page = "\n".join(shown(notebook))
    assert "No campaign of engines beside their peers was measured on a GPU yet" in page
    assert "No campaign on a GPU has a row of planned" in page
    assert "No campaign on a GPU has two rows of stream" in page


def test_without_records_the_page_says_what_to_run(run: Run) -> None:
    notebook, failure = run("postbenchmark.py", [], {"results_dirs": ["nowhere"]})
    assert failure is None and has_run(notebook)
    page = "\n".join(shown(notebook))
    assert "0 records" in page
    assert "params/baseline/" in page


def test_an_unreadable_record_stops_the_page_with_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "broken.json").write_text("{")
    _, failure = run("postbenchmark.py", [], {"results_dirs": [str(tmp_path)]})
    assert failure is not None and "broken.json" in failure.what
    assert "Traceback" not in failure.what


def test_the_pages_render(run: Run, tmp_path: Path) -> None:
    notebook, _ = run("postbenchmark.py", synthetic.all_jobs(), {})
    page = render.Page(notebook="notebooks/postbenchmark.py")
    for name in ("one", "two"):
        render.to_html(notebook, tmp_path / name, page)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
