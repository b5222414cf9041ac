"""A job file is either a job, or a list of everything that is wrong with it."""

import pickle
import re
from pathlib import Path
from typing import get_args

import papermill.iorw
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wanreport.jobs import job as data
from wanreport.jobs.job import Job, JobError, job_from_mapping, job_hash, load_job

PARAMS = Path(__file__).resolve().parents[2] / "params"
GOOD = {"name": "good", "engine": "layerwise", "num_gpus": 2}
FILE = "name: job\nengine: layerwise\nnum_gpus: 2\n"


def make(**changes):
    return job_from_mapping(GOOD | changes)


def problems(given, source="injected parameters"):
    """The key of each problem of a mapping or a file; each line is ``FILE: KEY: problem; fix``."""
    with pytest.raises(JobError) as caught:
        load_job(given) if given == source else job_from_mapping(given)
    found = [line.removeprefix(f"{source}: ").split(": ", 1) for line in caught.value.problems]
    assert all(line.startswith(f"{source}: ") for line in caught.value.problems)
    assert len(dict(found)) == len(found)
    return dict(found)


def problems_of(path, text):
    path.write_text(text)
    return problems(path, path)


def test_each_baseline_job_is_the_job_it_stands_for():
    jobs = [load_job(path) for path in (PARAMS / "baseline").glob("*.yaml")]
    assert {(j.name, j.engine, j.num_gpus, j.baseline_job, j.prefetch(40)) for j in jobs} == {
        ("new-4gpu", "layerwise", 4, 1454665, 1), ("new-6gpu", "layerwise", 6, 1454668, 1),
        ("old-4gpu-fsdp", "fsdp", 4, 1454666, 1), ("old-6gpu-fsdp", "fsdp", 6, 1454669, 1),
        ("old-4gpu-swap", "swap", 4, 1454666, 1), ("old-6gpu-swap", "swap", 6, 1454669, 1),
        ("pure-4gpu", "resident", 4, 1454667, 1),
        ("new-4gpu-prefetch3", "layerwise", 4, 1454670, 3),
    }  # fmt: skip
    for job in jobs:
        assert job.engine == job.sglang().engine and job.purpose
        assert job.cfg and job.decode and job.profile
        shape = job.height, job.width, job.num_frames, job.num_inference_steps
        assert (*shape, job.warmup_iterations, job.clean_iterations) == (720, 1280, 81, 27, 1, 1)
    every = [load_job(path) for path in PARAMS.rglob("*.yaml")]
    assert len({job.name for job in every}) == len({job.hashes() for job in every}) == len(every)


def test_papermill_reads_from_a_file_what_we_read(tmp_path):
    dated = tmp_path / "job.yaml"
    dated.write_text(FILE + "purpose: 2026-02-13\n")  # a date is text for papermill
    for path in (dated, *(PARAMS / "baseline").glob("*.yaml")):
        assert job_from_mapping(papermill.iorw.read_yaml_file(str(path))) == load_job(path)


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    text = 'name: job\nengine: Swap\nnum_gpus: 4.0\n"x\\nimport os": 1\nflow_shift: 1e-3\n'
    text += "heigth: 720\nwidth: 700\nnum_frames: 80\ncfg: false\nguidance_scale: 3.0\nname: o\n"
    found = problems_of(tmp_path / "job.yaml", text)
    fixes = {
        "engine": "swap", "num_gpus": "integer", r"'x\nimport os'": "", "flow_shift": "number",
        "'heigth'": "height", "width": "16", "num_frames": "77 or 81",
        "guidance_scale": "cfg: true", "'name'": "",
    }  # fmt: skip
    assert found.keys() == fixes.keys()
    assert all(fix in found[key] for key, fix in fixes.items())


@pytest.mark.parametrize(("key", "values", "fix"), [
    ("flow_shift", ["1e-3", '"0.001"', ".nan", "true", "[1]"], "number"),
    ("flow_shift", ["0"], "0"), ("boundary_ratio", ["1.5"], "1"),
    ("seed", ["1e3", "1000.0", "'4.5'", "yes"], "integer"), ("seed", [""], "seed:"),
    ("seed", ["-1", str(2**64)], ""), ("prompt", ["no", "12", "{a: 1}"], "string"),
    ("checkpoint", ["''"], "1"), ("decode", ["1", '"true"'], "boolean"),
    ("dtype", ["bf16"], "bfloat16"), ("scale", ["on", "large"], "'auto', 'a14b' or 'tiny'"),
    ("'quantum'", ["1"], "name, engine, num_gpus"), ("height", ["712", "8"], "16"),
    ("sampled_steps", ["4"], "5"), ("sampled_steps", ["28"], "27"), ("'1'", ["1"], ""),
    ("num_frames", ["80", "78"], "77 or 81"), ("'seed'", ["1\nseed: 2"], "one"),
    ("vram_budget_gb", ["24.0"], "remove"), ("cache_dit", ["true"], "False"),
    ("negative_prompt", ["blurred\ncfg: false"], "cfg: true"), ("'class'", ["1"], ""),
    ("'dit-layerwise-offload'", ["1"], "dit_layerwise_offload?"), ("'<<'", ["{seed: 1}"], ""),
])  # fmt: skip
def test_each_mistake_is_told_with_its_key_and_fix(tmp_path, key, values, fix):
    for value in values:
        text = FILE + key.strip("'") + f": {value}\n"
        ((told, problem),) = problems_of(tmp_path / "job.yaml", text).items()
        assert told == key and fix in problem, value


def test_a_name_is_lower_case_and_the_files_and_what_is_required_is_there(tmp_path):
    for name in ("Job 1", "../etc", "-f", "other"):
        assert problems_of(tmp_path / "job.yaml", FILE.replace("job", name)).keys() == {"name"}
        assert name == "other" or problems(GOOD | {"name": name}).keys() == {"name"}
    for key in GOOD:
        for mapping in ({k: v for k, v in GOOD.items() if k != key}, GOOD | {key: None}):
            assert problems(mapping).keys() == {key}


@pytest.mark.parametrize("text", [
    "- a\n- b\n", "num_gpus:4\n", "name: 'x", "---\n---\nb: 2\n", "a: " + "[" * 1500, "\0",
    "a: !!python/object/apply:os.system [ls]", "a: !!int x", "a: !!bool x", "caf\xe9: 1", None,
], ids=str)  # fmt: skip
def test_what_is_not_flat_yaml_is_refused(tmp_path, text):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert problems(path, path).keys() == {"cannot be read"}


@given(st.dictionaries(st.text() | st.integers(), st.none() | st.text() | st.integers()))
def test_any_mapping_gives_a_job_or_problems_of_one_line_each(mapping):
    try:
        assert isinstance(job_from_mapping(mapping), Job)
    except JobError as error:
        assert error.problems and str(error) == "\n".join(error.problems)
        assert all(len(problem.splitlines()) == 1 for problem in error.problems)
        assert pickle.loads(pickle.dumps(error)).problems == error.problems


@pytest.mark.parametrize("fsdp_alone", [False, True])
@pytest.mark.parametrize("engine", ["resident", "swap", "fsdp"])
def test_the_fix_for_an_engine_that_sglang_would_not_choose_works(engine, fsdp_alone):
    given = {"dit_layerwise_offload": False, "use_fsdp_inference": True, "dit_cpu_offload": False}
    given = {"engine": engine, **(given if fsdp_alone else {})}
    fixes = problems(GOOD | given)
    lines = "\n".join(re.findall("`(.*?)`", fixes.pop("engine")))
    assert not fixes and make(**(given | yaml.safe_load(lines))).sglang().engine == engine


def test_a_setting_of_another_engine_is_refused():
    assert make(engine="stream", vram_budget_gb=24).sglang().engine == "layerwise"
    swap = {"engine": "swap", "dit_layerwise_offload": False}
    for engine, other in (
        (swap, {"dit_offload_prefetch_size": 3}), (swap, {"transfer": "packed"}),
        ({"num_gpus": 3}, {"enable_cfg_parallel": True}),
        ({"engine": "stream"}, {"dit_layerwise_offload": True, "use_fsdp_inference": True}),
    ):  # fmt: skip
        assert problems(GOOD | engine | other).keys() == other.keys()


def test_defaults_are_the_fields_in_order_and_a_whole_number_is_a_number():
    defaults = data.field_defaults()
    assert list(defaults) == list(Job.model_fields)
    assert [key for key in GOOD if defaults[key] is None] == list(GOOD)
    assert job_from_mapping({**defaults, **GOOD}) == make() == job_from_mapping(make().model_dump())
    whole, same = ({"dit_offload_prefetch_size": n, "flow_shift": 4 * n} for n in (3, 3.0))
    assert make(**whole).hashes() == make(**same).hashes()


def test_scale_is_decided_by_the_gpus_unless_given():
    assert [data.resolve_job(make(), gpus=gpus).scale for gpus in (1, 2)] == ["tiny", "a14b"]
    for scale in ("tiny", "a14b"):
        assert {data.resolve_job(make(scale=scale), gpus=gpus).scale for gpus in (0, 8)} == {scale}
    with pytest.raises(ValueError, match="resolve_job"):
        job_hash(make())


@pytest.mark.parametrize("field", list(Job.model_fields))
def test_hash_changes_with_what_is_measured_and_with_nothing_else(field):
    job = make(scale="tiny")
    old, annotation = getattr(job, field), Job.model_fields[field].annotation
    kind, *others = get_args(annotation) or [annotation]
    new = "x" if kind is str else others[0] if isinstance(kind, str) else not old
    if kind in (int, float):
        new = (old or 0) + kind(1)
    other = job.model_copy(update={field: new})
    assert other != job
    unmeasured = {"name", "purpose", "baseline_job", "timeout_s"}
    assert (job_hash(other) == job_hash(job)) == (field in unmeasured)


def test_hashes_of_committed_records_stay():
    """Records of before must still be found, at either scale while the scale is open."""
    job = load_job(PARAMS / "campaign/480p-1gpu-layerwise.yaml")
    assert job.hashes() == ("ccf44b2e1300",)
    tiny = tuple(job_hash(make(scale=scale)) for scale in ("a14b", "tiny"))
    assert make().hashes() == tiny and make(scale="tiny").hashes() == tiny[1:]
