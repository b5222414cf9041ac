"""A job file is either a job, or a list of everything that is wrong with it."""

import pickle
from pathlib import Path

import papermill.iorw
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wanreport import flags
from wanreport.job import (
    NOT_HASHED,
    Job,
    JobError,
    field_defaults,
    job_from_mapping,
    job_hash,
    load_job,
    resolve_job,
)

BASELINE = Path(__file__).parent.parent / "params" / "baseline"
GOOD = {"name": "good", "engine": "layerwise", "num_gpus": 2}


ROOT = Path(__file__).resolve().parents[1]


def make(**changes):
    return job_from_mapping({**GOOD, **changes})


def problems_of(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


# --- the baseline's jobs ---


@pytest.mark.parametrize(
    ("name", "engine", "gpus", "cluster_job", "prefetch"),
    [
        ("new-4gpu", "layerwise", 4, 1454665, 1),
        ("old-4gpu-fsdp", "fsdp", 4, 1454666, 1),
        ("old-4gpu-swap", "swap", 4, 1454666, 1),
        ("pure-4gpu", "resident", 4, 1454667, 1),
        ("new-6gpu", "layerwise", 6, 1454668, 1),
        ("old-6gpu-fsdp", "fsdp", 6, 1454669, 1),
        ("old-6gpu-swap", "swap", 6, 1454669, 1),
        ("new-4gpu-prefetch3", "layerwise", 4, 1454670, 3),
    ],
)
def test_each_baseline_job_is_the_job_it_stands_for(name, engine, gpus, cluster_job, prefetch):
    job = load_job(BASELINE / f"{name}.yaml")
    assert (job.engine, job.num_gpus, job.baseline_job) == (engine, gpus, cluster_job)
    assert (job.height, job.width, job.num_frames, job.num_inference_steps) == (720, 1280, 81, 27)
    assert job.cfg and job.decode and job.profile and job.purpose
    assert (job.warmup_iterations, job.clean_iterations) == (1, 1)
    assert job.sglang().engine == engine
    assert job.prefetch(40) == prefetch


def test_baseline_jobs_are_told_apart_by_name_and_by_hash():
    jobs = [load_job(path) for path in BASELINE.glob("*.yaml")]
    assert len(jobs) == 8
    assert len({job.name for job in jobs}) == len({job.hashes() for job in jobs}) == 8


@pytest.mark.parametrize("path", sorted(BASELINE.glob("*.yaml")), ids=lambda path: path.stem)
def test_papermill_reads_from_a_file_what_we_read(path):
    injected = papermill.iorw.read_yaml_file(str(path))
    assert job_from_mapping(injected) == load_job(path)


# --- problems ---


def test_all_problems_of_a_file_are_told_at_once_with_their_lines(tmp_path):
    problems = problems_of(
        tmp_path,
        "name: job\n"
        "engine: Swap\n"
        "num_gpus: 4.0\n"
        '"x\\nimport os": 1\n'
        "flow_shift: 1e-3\n"
        "heigth: 720\n"
        "width: 700\n"
        "num_frames: 80\n"
        "name: other\n",
    )
    assert problems == [
        "2: engine: 'Swap' is not one of 'resident', 'swap', 'fsdp', 'layerwise' or 'stream';"
        " did you mean swap?",
        "3: num_gpus: 4.0 is not a whole number; write 4",
        r"4: 'x\nimport os': is no identifier; remove it",
        "5: flow_shift: '1e-3' is text in YAML 1.1, not a number; write 1.0e-3",
        "6: heigth: is no field of a job; did you mean height?",
        "7: width: 700 is no multiple of 16 (VAE stride 8, patch size 2); write 688 or 704",
        "8: num_frames: 80 is not 1 more than a multiple of 4 (VAE stride in time); write 77 or 81",
        "9: name: is given twice, first on line 1; keep one of the two",
    ]


@pytest.mark.parametrize(
    ("line", "said", "mend"),
    [
        ("flow_shift: 1e-3", "is text in YAML 1.1, not a number", "write 1.0e-3"),
        ("flow_shift: 1E3", "is text in YAML 1.1", "write 1.0e+3"),
        ("flow_shift: 1.5e3", "is text in YAML 1.1", "write 1.5e+3"),
        ('flow_shift: "12.0"', "is text", "write 12.0, without quotes"),
        ("flow_shift: .inf", "not a finite number", "write a finite number"),
        ("flow_shift: .nan", "is nan", ""),
        ("flow_shift: true", "is the boolean true, not a number", "write a number"),
        ("flow_shift: 0", "is 0, out of range", "write more than 0"),
        ("boundary_ratio: 1.5", "out of range", "write at most 1"),
        ("seed: 1e3", "is text in YAML 1.1, not a whole number", "write 1000"),
        ("seed: 4.0", "4.0 is not a whole number", "write 4"),
        ("seed: 4.5", "4.5 is not a whole number", "write a whole number"),
        ("seed: yes", "yes is the boolean true in YAML 1.1", "write a whole number"),
        ("seed: -1", "out of range", "write at least 0"),
        ("seed: 18446744073709551616", "out of range", "write less than"),
        ("seed:", "is empty", "remove the line for the default (0)"),
        ("seed: [1]", "[1] is not a whole number", "write a whole number"),
        ("prompt: no", "no is the boolean false in YAML 1.1, not text", 'quote it: "no"'),
        ("prompt: 12", "12 is a number, not text", 'quote it: "12"'),
        ("prompt: 010", "010 is a number, not text", 'quote it: "010"'),
        ("prompt: {a: 1}", "is not text", "write text"),
        ("decode: 1", "1 is not true or false", "write true or false"),
        ('decode: "true"', "is text, not true or false", "write true, without quotes"),
        ("dtype: bf16", "is not one of 'bfloat16' or 'float32'", "did you mean bfloat16?"),
        ("scale: on", "on is the boolean true in YAML 1.1", "write one of 'auto'"),
        ("checkpoint: ''", "is empty", "remove the line for the default"),
        ("dit-layerwise-offload: true", "is no identifier", "did you mean dit_layerwise_offload?"),
        ("--num-frames: 81", "is no identifier", "did you mean num_frames?"),
        ("class: 1", "is no identifier", "remove it"),
        ("quantum: 1", "is no field of a job", "remove it (a job's fields: name, engine,"),
        ("1: 2", "is no name but of type int", "write the name of a job's field"),
        ("on: 2", "is no name but of type bool (YAML 1.1 reads on, off, yes and no", "write"),
        ("? [a]\n: 2", "is no name but of type list", "write the name"),
        ("<<: {seed: 1}", "is no identifier", "remove it"),
        ("seed: 1\nseed: 2", "is given twice, first on line 4", "keep one"),
        ("height: 712", "712 is no multiple of 16", "write 704 or 720"),
        ("num_frames: 80", "80 is not 1 more than a multiple of 4", "write 77 or 81"),
        ("sampled_steps: 4", "4, out of range", "write at least 5"),
        ("sampled_steps: 28", "28 of 27 steps are no sample", "write at most 27"),
        ("vram_budget_gb: 24.0", "24.0 is for the stream engine", "remove it"),
        ("vram_budget_gb: 0.0", "0.0, out of range", "write more than 0"),
        ("cache_dit: true", "measures without cache-dit", "remove it"),
        ("dit_layerwise_offload: true\ncache_dit: true", "SGLang refuses the two", "remove it"),
        ("dit_offload_prefetch_size: -1", "out of range", "write at least 0"),
        ("cfg: false\nguidance_scale_2: 3.0", "has no effect without guidance", "cfg: true"),
    ],
)
def test_each_mistake_is_named_with_its_place_and_mend(tmp_path, line, said, mend):
    problems = problems_of(tmp_path, f"name: job\nengine: layerwise\nnum_gpus: 2\n{line}\n")
    assert len(problems) == 1, problems
    assert problems[0][0] in "45" and said in problems[0] and mend in problems[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Job 1", "use lower-case letters, digits and hyphens: job-1"),
        ("../etc", "is no slug"),
        ("-f", "is no slug"),
        ("other", "is 'other', but the file's name says 'job'; write `name: job`"),
    ],
)
def test_the_name_is_a_slug_and_the_files_stem(tmp_path, name, said):
    (problem,) = problems_of(tmp_path, f"name: {name}\nengine: layerwise\nnum_gpus: 2\n")
    assert problem.startswith("1: name: ") and said in problem


@pytest.mark.parametrize("key", ["name", "engine", "num_gpus"])
@pytest.mark.parametrize("given", [{}, {"value": None}], ids=["absent", "null"])
def test_a_required_field_is_missed_whether_absent_or_null(key, given):
    mapping = {k: v for k, v in GOOD.items() if k != key} | dict.fromkeys(
        [key] if given else [], None
    )
    with pytest.raises(JobError, match=f"^here: {key}: is missing; add a line") as caught:
        job_from_mapping(mapping, source="here")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name: is missing"),
        ("- a\n- b\n", "1: cannot be read as YAML: this is no list of `key: value` lines"),
        ("num_gpus:4\n", "mind the space after the colon"),
        ("name: 'x\n", "cannot be read as YAML"),
        ("a: 1\n---\nb: 2\n", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "1: cannot be read as YAML"),
        ("a: !!int x\n", "1: cannot be read as YAML: a value cannot be read"),
        ("a: " + "[" * 5000, "cannot be read as YAML"),
    ],
    ids=["empty", "list", "no-space", "quote", "two-documents", "python-tag", "bad-int", "deep"],
)
def test_a_file_that_is_no_flat_yaml_is_refused_with_the_place(tmp_path, text, said):
    assert said in problems_of(tmp_path, text)[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(JobError, match="gone.yaml: cannot be read"):
        load_job(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"prompt: caf\xe9\n")
    with pytest.raises(JobError, match="is not UTF-8 text"):
        load_job(tmp_path / "latin.yaml")


def test_a_key_of_code_cannot_write_to_the_terminal_either():
    with pytest.raises(JobError) as caught:
        job_from_mapping({**GOOD, "x\x1b[2J\nimport os": 1})
    assert caught.value.problems == [
        r"injected parameters: 'x\x1b[2J\nimport os': is no identifier; remove it"
    ]


@given(st.dictionaries(st.text() | st.integers(), st.none() | st.text() | st.integers()))
def test_any_mapping_gives_a_job_or_problems_of_one_line_each(mapping):
    try:
        assert isinstance(job_from_mapping(mapping), Job)
    except JobError as error:
        assert error.problems
        assert all(len(problem.splitlines()) == 1 for problem in error.problems)
        assert str(error) == "\n".join(error.problems)
        assert pickle.loads(pickle.dumps(error)).problems == error.problems


# --- engines and flags ---


@pytest.mark.parametrize("engine", sorted(flags.ENGINE_FLAGS))
def test_the_flags_named_for_an_engine_make_a_job_of_it(engine):
    assert make(engine=engine, **flags.ENGINE_FLAGS[engine]).sglang().engine == engine


def test_an_engine_that_sglang_would_not_choose_is_an_error_whose_mend_works():
    with pytest.raises(JobError) as caught:
        make(engine="resident")
    assert "resolves this job's flags to layerwise" in str(caught.value)
    mend = str(caught.value).partition("for this engine write ")[2]
    job = make(engine="resident", **yaml.safe_load(mend.replace("`", "").replace(", ", "\n")))
    assert job.engine == "resident"


def test_stream_is_not_sglangs_and_takes_none_of_its_flags():
    assert make(engine="stream", vram_budget_gb=24).sglang().engine == "layerwise"
    with pytest.raises(JobError) as caught:
        make(engine="stream", dit_layerwise_offload=True, use_fsdp_inference=True)
    first, second = caught.value.problems
    assert "dit_layerwise_offload: true is SGLang's, which has no engine stream; remove it" in first
    assert "use_fsdp_inference: true is SGLang's" in second


def test_fsdp_without_cpu_offload_has_no_engine():
    with pytest.raises(JobError, match="FSDP without CPU offload"):
        make(
            engine="fsdp",
            dit_layerwise_offload=False,
            use_fsdp_inference=True,
            dit_cpu_offload=False,
        )


def test_cache_dit_is_refused_without_layerwise_too_as_nothing_here_implements_it():
    with pytest.raises(JobError, match="without cache-dit"):
        make(engine="swap", dit_layerwise_offload=False, cache_dit=True)


def test_a_prefetch_size_is_for_the_layerwise_engine_only():
    with pytest.raises(JobError, match="dit_offload_prefetch_size: 3 is for the layerwise"):
        make(engine="swap", dit_layerwise_offload=False, dit_offload_prefetch_size=3)


# --- the model ---


def test_a_job_made_in_python_is_held_to_the_same_rules():
    with pytest.raises(ValidationError, match="no multiple of 16"):
        Job(**GOOD, height=100)
    with pytest.raises(ValidationError):
        Job(**GOOD).height = 480  # frozen


def test_a_whole_number_is_welcome_where_a_number_is_wanted():
    job = make(dit_offload_prefetch_size=3, flow_shift=12)
    assert isinstance(job.dit_offload_prefetch_size, float)
    assert job_hash(resolve_job(job, gpus=2)) == job_hash(
        resolve_job(make(dit_offload_prefetch_size=3.0, flow_shift=12.0), gpus=2)
    )


def test_defaults_are_the_fields_in_order_and_none_where_required():
    defaults = field_defaults()
    assert list(defaults) == list(Job.model_fields)
    assert [key for key in GOOD if defaults[key] is None] == list(GOOD)
    assert job_from_mapping({**defaults, **GOOD}) == job_from_mapping(GOOD)


@pytest.mark.parametrize(
    ("scale", "gpus", "resolved"),
    [
        ("auto", 2, "a14b"),
        ("auto", 8, "a14b"),
        ("auto", 1, "tiny"),
        ("auto", 0, "tiny"),
        ("tiny", 8, "tiny"),
        ("a14b", 0, "a14b"),
    ],
)
def test_scale_is_decided_by_the_gpus_unless_given(scale, gpus, resolved):
    assert resolve_job(make(scale=scale), gpus=gpus).scale == resolved


def test_hash_needs_a_resolved_scale():
    with pytest.raises(ValueError, match="resolve_job"):
        job_hash(make())


CHANGES = {
    "name": "other",
    "engine": "swap",
    "num_gpus": 3,
    "purpose": "p",
    "baseline_job": 1,
    "model_path": "m",
    "checkpoint": "c",
    "scale": "a14b",
    "height": 480,
    "width": 832,
    "num_frames": 77,
    "num_inference_steps": 28,
    "sampled_steps": 8,
    "flow_shift": 3.0,
    "boundary_ratio": 0.9,
    "guidance_scale": 1.5,
    "guidance_scale_2": 1.5,
    "cfg": False,
    "decode": False,
    "prompt": "p",
    "negative_prompt": "n",
    "seed": 1,
    "dtype": "float32",
    "compile": True,
    "vram_budget_gb": 24.0,
    "warmup_iterations": 2,
    "clean_iterations": 2,
    "profile": False,
    "timeout_s": 60,
    "dit_layerwise_offload": True,
    "dit_cpu_offload": True,
    "use_fsdp_inference": True,
    "dit_offload_prefetch_size": 3.0,
    "cache_dit": True,
}


@pytest.mark.parametrize("field", list(Job.model_fields))
def test_hash_changes_with_what_is_measured_and_with_nothing_else(field):
    job = make(scale="tiny")
    other = job.model_copy(update={field: CHANGES[field]})
    assert other != job
    assert (job_hash(other) == job_hash(job)) == (field in NOT_HASHED)


def test_a_field_that_came_later_leaves_the_hash_of_jobs_without_it() -> None:
    """Records of before must still be found; this is the hash of one."""
    job = load_job(ROOT / "params/campaign/480p-1gpu-layerwise.yaml")
    assert job.hashes() == ("ccf44b2e1300",)


def test_a_job_can_be_found_at_either_scale_while_it_is_open():
    job = make()
    assert job.hashes() == tuple(job_hash(make(scale=scale)) for scale in ("a14b", "tiny"))
    assert make(scale="tiny").hashes() == job.hashes()[1:]


def test_a_date_is_text_as_it_is_for_papermill(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("name: good\nengine: layerwise\nnum_gpus: 2\npurpose: 2026-02-13\n")
    assert load_job(path).purpose == "2026-02-13"
    assert papermill.iorw.read_yaml_file(str(path))["purpose"] == "2026-02-13"
