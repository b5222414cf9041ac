"""A job: what to run, checked before anything runs.

A job is a flat YAML file, read with the rules of papermill's ``-f`` (YAML 1.1). All its problems
are reported at once; each names the file and the key, what is wrong and what to write instead.
"""

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from wanreport.jobs import sglang
from wanreport.jobs.schedule import MIN_SAMPLE

BENCHMARK_VERSION = 1  # part of a job's hash, so that a change of method asks for new records
NOT_HASHED = {"name", "purpose", "baseline_job", "timeout_s"}  # no part of what is measured
# Younger than the first records; by default they mean what a job without them meant.
HASHED_IF_GIVEN = ("vram_budget_gb", "transfer", "enable_cfg_parallel")
CHOSEN = ("flow_shift", "boundary_ratio", "guidance_scale", "guidance_scale_2")  # else the model's
PREFETCH = "dit_offload_prefetch_size"
FLAGS = (*sglang.SWITCHES, PREFETCH)  # in the order of `sglang.resolve`
Size = Annotated[int, Field(ge=16, multiple_of=16)]  # VAE stride 8, patch size 2


class JobError(ValueError):
    """All `problems` of a job, each as one line: ``FILE: KEY: what is wrong; what to do``."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = [*problems]
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Job(BaseModel, strict=True, frozen=True, extra="forbid", allow_inf_nan=False,
          protected_namespaces=()):  # fmt: skip
    """One benchmark job. A field's None means that the model's registry entry decides."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)
    engine: Literal["resident", "swap", "fsdp", "layerwise", "stream"]
    num_gpus: int = Field(ge=1, le=64)
    purpose: str = ""
    baseline_job: int | None = Field(default=None, ge=1)
    model_path: str = Field(default="Wan-AI/Wan2.2-T2V-A14B-Diffusers", min_length=1)
    checkpoint: str | None = Field(default=None, min_length=1)
    scale: Literal["auto", "a14b", "tiny"] = "auto"
    height: Size = 720
    width: Size = 1280
    num_frames: int = Field(default=81, ge=1)
    num_inference_steps: int = Field(default=27, ge=1, le=1000)
    sampled_steps: int | None = Field(default=None, ge=MIN_SAMPLE)
    flow_shift: float | None = Field(default=None, gt=0)
    boundary_ratio: float | None = Field(default=None, ge=0, le=1)
    guidance_scale: float | None = Field(default=None, ge=0)
    guidance_scale_2: float | None = Field(default=None, ge=0)
    cfg: bool = True
    decode: bool = True
    prompt: str = "A red panda rides a bicycle along a canal in the rain."
    negative_prompt: str = ""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = False
    vram_budget_gb: float | None = Field(default=None, gt=0)
    transfer: Literal["bf16", "packed"] = "bf16"
    warmup_iterations: int = Field(default=1, ge=0)
    clean_iterations: int = Field(default=1, ge=1)
    profile: bool = True
    timeout_s: int = Field(default=1800, ge=1)
    dit_layerwise_offload: bool | None = None
    dit_cpu_offload: bool | None = None
    use_fsdp_inference: bool = False
    enable_cfg_parallel: bool = False
    dit_offload_prefetch_size: float = Field(default=0.0, ge=0)
    cache_dit: Literal[False] = False  # it would change what is computed

    def sglang(self) -> sglang.SglangResolution:
        """What SGLang 0.5.9 makes of this job's flags."""
        return sglang.resolve(*(getattr(self, key) for key in FLAGS))

    def prefetch(self, num_layers: int) -> int:
        """Layers held ahead by the layerwise engine for an expert of `num_layers`."""
        return sglang.prefetch_layers(self.sglang().prefetch_size, num_layers)

    def hashes(self) -> tuple[str, ...]:
        """The identities of this job's records: one, or one for each scale if still auto."""
        scales = ("a14b", "tiny") if self.scale == "auto" else (self.scale,)
        return tuple(job_hash(self.model_copy(update={"scale": scale})) for scale in scales)


def field_defaults() -> dict[str, Any]:
    """The fields of a job in order, each with its default; None where one must be given."""
    return {name: None if field.is_required() else field.default
            for name, field in Job.model_fields.items()}  # fmt: skip


def resolve_job(job: Job, *, gpus: int) -> Job:
    """`job` with its scale decided for a machine with so many GPUs; an explicit scale stays."""
    scale = ("a14b" if gpus >= job.num_gpus else "tiny") if job.scale == "auto" else job.scale
    return job.model_copy(update={"scale": scale})


def located(job: Job, root: Path) -> Job:
    """`job` with `~`, `$VAR` and relative paths resolved, to run it; records keep the file's."""
    placed = {}
    for key in ("checkpoint", "model_path"):
        text = getattr(job, key) or ""
        path = root / os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 it never raises
        if text and (key == "checkpoint" or text[0] in "~$./" or path.exists()):  # no hub's name
            placed[key] = str(path)
    return job.model_copy(update=placed)


def model_settings(job: Job) -> dict[str, Any]:
    """The model's settings of a :func:`located` job: its own, else those that SGLang would take.

    Raises ModelPathError, or another ValueError for a ``model_index.json`` that is damaged.
    """
    file = Path(job.checkpoint or "", "model_index.json")
    index = json.loads(file.read_text("utf-8")) if job.checkpoint and file.is_file() else None
    found = asdict(sglang.resolve_model(job.model_path, index=index))
    found |= {key: own for key in CHOSEN if (own := getattr(job, key)) is not None}
    return {key: found[key] for key in ("config", "how", *CHOSEN)}


def job_hash(job: Job) -> str:
    """12 hex digits that identify what a job measures; ValueError if its scale is still "auto"."""
    if job.scale == "auto":
        raise ValueError(f"{job.name}: no scale yet; resolve_job() first")
    unset = {key for key in HASHED_IF_GIVEN if getattr(job, key) == field_defaults()[key]}
    content = job.model_dump(mode="json", exclude=NOT_HASHED | unset)
    content["benchmark_version"] = BENCHMARK_VERSION
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_job(path: str | Path) -> Job:
    """Read and check the job in the YAML file at `path`; raises JobError with all problems."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise yaml.YAMLError("no `key: value` lines (a space follows each colon)")
        entries = [(str(key.value), loader.construct_document(each)) for key, each in root.value]
    # A value that does not suit its tag, as in `!!int x`, raises what PyYAML stumbles over.
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError,
            RecursionError) as error:  # fmt: skip
        what, fix = " ".join(str(error).split()), "write `key: value` lines in UTF-8"
        raise JobError([f"{path}: cannot be read: {what}; {fix}"]) from None
    times, values, stem = Counter(key for key, _ in entries), dict(entries), Path(path).stem
    problems = {f"{key!r:.80}": "is there twice; keep one" for key in times if times[key] > 1}
    if not problems and values.get("name", stem) != stem:
        fix = f"write `name: {stem}` or rename the file"
        problems["name"] = f"is not the file's name; {fix}"
    return job_from_mapping(values, str(path), **problems)


def job_from_mapping(
    mapping: Mapping[Any, Any], source: str = "injected parameters", **known: str
) -> Job:
    """Check the job in `mapping`; raises JobError with all problems, also those `known` by key."""
    values, errors = {str(key): value for key, value in mapping.items()}, list[ErrorDetails]()
    try:
        job = Job.model_validate(values)
    except ValidationError as failed:
        errors = failed.errors()
    wrong = {error["loc"][0] for error in errors}
    right = {k: v for k, v in (field_defaults() | values).items() if k not in wrong}
    problems = dict(map(_problem, errors)) | dict(_contradictions(right)) | known
    if problems:
        raise JobError(f"{source}: {key}: {problem}" for key, problem in problems.items())
    return job


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; a date is text, as where papermill reads parameters."""


_Loader.add_constructor(  # type: ignore[type-var]
    "tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)  # fmt: skip


def _contradictions(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key, problem and fix of what single fields do not show; a wrong field is not in `given`."""
    frames, steps, gpus = map(given.get, ("num_frames", "num_inference_steps", "num_gpus"))
    if frames and frames % 4 != 1:
        below = (frames - 1) // 4 * 4 + 1
        yield "num_frames", f"is not 4n + 1; write {below} or {below + 4}"
    if steps and (given.get("sampled_steps") or 0) > steps:
        yield "sampled_steps", f"is more than all; write at most {steps}, or remove it"
    for key in ("guidance_scale", "guidance_scale_2", "negative_prompt", "enable_cfg_parallel"):
        if given.get("cfg") is False and given.get(key):
            yield key, "needs guidance; remove it, or write `cfg: true`"
    if given.get("cfg") and given.get("enable_cfg_parallel") and gpus and gpus % 2:
        fix = f"remove it, or write `num_gpus: {gpus + 1}`"
        yield "enable_cfg_parallel", f"cannot halve {gpus} GPUs; {fix}"
    if (engine := given.get("engine")) is None:
        return
    # What is set for another engine, and an engine that SGLang would not choose.
    takers = dict.fromkeys(sglang.SWITCHES, list(sglang.ENGINE_FLAGS))
    takers |= {PREFETCH: ["layerwise"], "vram_budget_gb": ["stream"], "transfer": ["stream"]}
    for key, engines in takers.items():
        if engine not in engines and given.get(key) not in (None, Job.model_fields[key].default):
            yield key, f"is for {', '.join(engines)}, not {engine}; remove it"
    if engine in sglang.ENGINE_FLAGS and given.keys() >= {*FLAGS}:
        found = sglang.resolve(*(given[key] for key in FLAGS)).engine
        wanted = {sglang.SWITCHES[2]: False, **sglang.ENGINE_FLAGS[engine]}
        lines = [f"`{k}: {json.dumps(v)}`" for k, v in wanted.items() if given[k] is not v]
        if found != engine:
            yield "engine", f"is {engine}, but SGLang 0.5.9 runs {found}; write {', '.join(lines)}"


def _problem(error: ErrorDetails) -> tuple[str, str]:
    """The key of one of pydantic's errors, what is wrong and what to do."""
    key, kind, value = str(error["loc"][0]), error["type"], error["input"]
    if kind == "missing" or (key in Job.model_fields and value is None):
        return key, f"is missing; write `{key}: ...`"
    if kind == "extra_forbidden":
        meant = difflib.get_close_matches(key.replace("-", "_").lower(), Job.model_fields, n=1)
        fix = f"did you mean {meant[0]}?" if meant else f"use {', '.join(Job.model_fields)}"
        return f"{key!r:.80}", f"is not a field; {fix}"
    should = error["msg"].removeprefix("Input ").removeprefix("String ")
    # YAML 1.1 surprises.
    hint = " (1e-3 and quotes are text; yes, no, on, off are true or false)"
    return key, f"is {value!r:.80}; it {should}{hint * kind.endswith('_type')}"
