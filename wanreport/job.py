"""A job: what to run, checked before anything runs.

A job is a flat YAML file, the format of papermill's ``-f``, and is read with the same rules
(YAML 1.1), so that the notebook and the command line see the same values. Every problem of a
file is reported at once; each says where it is, what is wrong and what to write instead.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import keyword
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wanreport import flags
from wanreport.schedule import MIN_SAMPLE

BENCHMARK_VERSION = 1
"""What is measured; part of a job's hash, so that a change of method asks for new records."""

NOT_HASHED = ("name", "purpose", "baseline_job", "timeout_s")
"""Fields that say nothing about what is measured."""

HASHED_IF_GIVEN = ("vram_budget_gb",)
"""Fields younger than the first records, whose None means what a job without them meant."""

Size = Annotated[int, Field(ge=16)]

_REPR = reprlib.Repr()  # escapes control characters and bounds the length
_REPR.maxstring = _REPR.maxother = 80


class JobError(ValueError):
    """Everything that is wrong with a job.

    Attributes
    ----------
    problems : list of str
        One line each: ``FILE:LINE: KEY: what is wrong; what to do``.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Job(BaseModel):
    """One benchmark job. A field's None means that the model's registry entry decides."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

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
    seed: int = Field(default=0, ge=0, lt=2**63)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = False
    vram_budget_gb: float | None = Field(default=None, gt=0)
    warmup_iterations: int = Field(default=1, ge=0)
    clean_iterations: int = Field(default=1, ge=1)
    profile: bool = True
    timeout_s: int = Field(default=1800, ge=1)
    dit_layerwise_offload: bool | None = None
    dit_cpu_offload: bool | None = None
    use_fsdp_inference: bool = False
    dit_offload_prefetch_size: float = Field(default=0.0, ge=0)
    cache_dit: bool = False

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Job:
        found = [problem.text() for problem in _cross_field(self.model_dump())]
        if found:
            raise ValueError("\n".join(found))
        return self

    def sglang(self) -> flags.SglangResolution:
        """What SGLang 0.5.9 makes of this job's flags."""
        return _resolve_flags(self.model_dump())

    def prefetch(self, num_layers: int) -> int:
        """Layers held ahead by the layerwise engine for an expert of `num_layers`."""
        return flags.prefetch_layers(self.sglang().prefetch_size, num_layers)

    def hashes(self) -> tuple[str, ...]:
        """The identities of this job's records: one, or one for each scale if still auto."""
        scales = ("a14b", "tiny") if self.scale == "auto" else (self.scale,)
        return tuple(job_hash(self.model_copy(update={"scale": scale})) for scale in scales)


def field_defaults() -> dict[str, Any]:
    """The fields of a job in order, each with its default; None where one must be given."""
    return {
        name: None if field.is_required() else field.default
        for name, field in Job.model_fields.items()
    }


def resolve_job(job: Job, *, gpus: int) -> Job:
    """`job` with its scale decided for a machine with `gpus` GPUs.

    An explicit scale stays, even where the GPUs do not suffice for it: that such a job is
    unsupported is a result for measuring to record.
    """
    if job.scale != "auto":
        return job
    return job.model_copy(update={"scale": "a14b" if gpus >= job.num_gpus else "tiny"})


def job_hash(job: Job) -> str:
    """12 hex digits that identify what a resolved job measures.

    Raises
    ------
    ValueError
        If the job's scale is still "auto".
    """
    if job.scale == "auto":
        raise ValueError(f"job {job.name} has no scale yet: resolve_job() it before job_hash()")
    content = {
        "benchmark_version": BENCHMARK_VERSION,
        **job.model_dump(mode="json", exclude=set(NOT_HASHED)),
    }
    for key in HASHED_IF_GIVEN:
        if content[key] is None:
            del content[key]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_job(path: str | Path) -> Job:
    """Read and check the job in the YAML file at `path`.

    Raises
    ------
    JobError
        With every problem of the file.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise JobError([f"{source}: cannot be read ({error.strerror or error})"]) from error
    except UnicodeDecodeError as error:
        raise JobError([f"{source}: is not UTF-8 text; save it as UTF-8"]) from error
    try:
        entries = _read_entries(text)
    except yaml.YAMLError as error:
        raise JobError([_yaml_problem(source, error)]) from error
    return _check(entries, source, stem=Path(path).stem)


def job_from_mapping(mapping: Mapping[str, Any], source: str = "injected parameters") -> Job:
    """Check the job in `mapping`, such as the parameters injected into a notebook.

    Raises
    ------
    JobError
        With every problem of the mapping.
    """
    return _check([_Entry(key, value) for key, value in mapping.items()], source)


class _Entry(NamedTuple):
    """One ``key: value``, with the line and the plain text it came from where it had any."""

    key: Any
    value: Any
    line: int | None = None
    raw: str | None = None


class _Problem(NamedTuple):
    key: str
    what: str
    mend: str
    line: int | None = None

    def text(self, source: str = "job") -> str:
        where = source if self.line is None else f"{source}:{self.line}"
        return f"{where}: {self.key}: {self.what}; {self.mend}"


# --- reading YAML as papermill does ---


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without dates, which is how papermill reads parameters."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_entries(text: str) -> list[_Entry]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise yaml.MarkedYAMLError(
                problem="this is no list of `key: value` lines (mind the space after the colon)",
                problem_mark=root.start_mark,
            )
        return [_entry(loader, key, value) for key, value in root.value]
    except RecursionError:
        raise yaml.YAMLError("the values are nested too deeply") from None
    finally:
        loader.dispose()


def _entry(loader: _Loader, key_node: yaml.Node, value_node: yaml.Node) -> _Entry:
    plain = isinstance(value_node, yaml.ScalarNode) and value_node.style is None
    try:
        # `<<` would merge another mapping, which a flat job has no use for
        merge = key_node.tag == "tag:yaml.org,2002:merge"
        key = "<<" if merge else loader.construct_object(key_node, deep=True)
        value = loader.construct_object(value_node, deep=True)
    except ValueError as error:  # such as `!!int x`
        raise yaml.MarkedYAMLError(
            problem=f"a value cannot be read ({error})", problem_mark=value_node.start_mark
        ) from error
    return _Entry(key, value, key_node.start_mark.line + 1, value_node.value if plain else None)


def _yaml_problem(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    where = source if mark is None else f"{source}:{mark.line + 1}"
    return f"{where}: cannot be read as YAML: {what}; write one `key: value` a line"


# --- checks ---


def _check(entries: list[_Entry], source: str, stem: str | None = None) -> Job:
    by_key: dict[str, _Entry] = {}
    problems: list[_Problem] = []
    for entry in entries:
        problem = _key_problem(entry, by_key)
        if problem:
            problems.append(problem)
        else:
            by_key[entry.key] = entry
    missing = [
        _Problem(name, "is missing", f"add a line `{name}: ...`", _line(by_key, name))
        for name, field in Job.model_fields.items()
        if field.is_required() and (name not in by_key or by_key[name].value is None)
    ]
    problems += missing
    bad = {problem.key for problem in missing}
    values = {key: entry.value for key, entry in by_key.items()}
    job = None
    try:
        job = Job.model_validate(values)
    except ValidationError as failed:
        for error in failed.errors():
            # An error without a place is _agrees_with_itself's, and found again below. It runs
            # only on a job whose fields are all well, and all problems are to be told at once.
            key = str(error["loc"][0]) if error["loc"] else ""
            if key and key not in bad:
                problems.append(_field_problem(by_key[key], error))
                bad.add(key)
    for found in _cross_field({**field_defaults(), **values}, bad):
        problems.append(found._replace(line=_line(by_key, found.key)))
    if stem is not None and "name" not in bad and values["name"] != stem:
        what = f"is {values['name']!r}, but the file's name says {stem!r}"
        mend = f"write `name: {stem}` or rename the file"
        problems.append(_Problem("name", what, mend, _line(by_key, "name")))
    if problems or job is None:
        problems.sort(key=lambda problem: (problem.line is None, problem.line or 0))
        raise JobError(problem.text(source) for problem in problems)
    return job


def _line(by_key: Mapping[str, _Entry], key: str) -> int | None:
    return by_key[key].line if key in by_key else None


def _key_problem(entry: _Entry, seen: Mapping[str, _Entry]) -> _Problem | None:
    key, names = entry.key, list(Job.model_fields)
    if not isinstance(key, str):
        what = f"is no name but of type {type(key).__name__}"
        if isinstance(key, bool):
            what += " (YAML 1.1 reads on, off, yes and no as booleans)"
        return _Problem(_show(key), what, "write the name of a job's field", entry.line)
    close = difflib.get_close_matches(key.lstrip("-").replace("-", "_").lower(), names, n=1)
    did_you_mean = f"did you mean {close[0]}?" if close else ""
    if not key.isidentifier() or keyword.iskeyword(key):
        # papermill writes `KEY = value` into a notebook, so such a key would be run as code
        mend = did_you_mean or "remove it"
        return _Problem(_show(key), "is no identifier", mend, entry.line)
    if key in seen:
        first = seen[key].line
        what = "is given twice" + (f", first on line {first}" if first else "")
        return _Problem(key, what, "keep one of the two", entry.line)
    if key not in names:
        mend = did_you_mean or f"remove it (a job's fields: {', '.join(names)})"
        return _Problem(key, "is no field of a job", mend, entry.line)
    return None


def _cross_field(values: Mapping[str, Any], bad: Iterable[str] = ()) -> Iterator[_Problem]:
    """What single fields cannot show; rules about a field in `bad` are left out."""
    broken = set(bad)

    def fine(*keys: str) -> bool:
        return broken.isdisjoint(keys)

    for key in ("height", "width"):
        if fine(key) and values[key] % 16:
            below = values[key] // 16 * 16
            what = f"{values[key]} is no multiple of 16 (VAE stride 8, patch size 2)"
            yield _Problem(key, what, f"write {below} or {below + 16}")
    if fine("num_frames") and (values["num_frames"] - 1) % 4:
        below = (values["num_frames"] - 1) // 4 * 4 + 1
        what = f"{values['num_frames']} is not 1 more than a multiple of 4 (VAE stride in time)"
        yield _Problem("num_frames", what, f"write {below} or {below + 4}")
    if fine("sampled_steps", "num_inference_steps") and values["sampled_steps"] is not None:
        sampled, steps = values["sampled_steps"], values["num_inference_steps"]
        if sampled > steps:
            mend = f"write at most {steps}, or remove it to run them all"
            yield _Problem("sampled_steps", f"{sampled} of {steps} steps are no sample", mend)
    if fine("cfg") and values["cfg"] is False:
        for key in ("guidance_scale", "guidance_scale_2", "negative_prompt"):
            if fine(key) and values[key] not in (None, ""):
                mend = "remove it, or write `cfg: true`"
                yield _Problem(key, "has no effect without guidance", mend)
    if fine("engine", "dit_offload_prefetch_size") and values["engine"] != "layerwise":
        size = values["dit_offload_prefetch_size"]
        if size:
            what = f"{size} is for the layerwise engine, and this job's is {values['engine']}"
            yield _Problem("dit_offload_prefetch_size", what, "remove it")
    if fine("engine", "vram_budget_gb") and values["engine"] != "stream":
        budget = values["vram_budget_gb"]
        if budget is not None:
            what = f"{budget} is for the stream engine, and this job's is {values['engine']}"
            yield _Problem("vram_budget_gb", what, "remove it")
    if fine(
        "engine",
        "dit_layerwise_offload",
        "dit_cpu_offload",
        "use_fsdp_inference",
        "dit_offload_prefetch_size",
        "cache_dit",
    ):
        yield from _flag_problems(values)


def _flag_problems(values: Mapping[str, Any]) -> Iterator[_Problem]:
    if values["cache_dit"]:
        what = "wanreport measures without cache-dit, which changes what is computed"
        try:
            _resolve_flags(values)
        except flags.FlagsError as error:
            what = str(error)
        yield _Problem("cache_dit", what, "remove it")
    engine = values["engine"]
    if engine not in flags.ENGINE_FLAGS:
        for key in ("dit_layerwise_offload", "dit_cpu_offload", "use_fsdp_inference"):
            if values[key] not in (None, Job.model_fields[key].default):
                what = f"{_yaml(values[key])} is SGLang's, which has no engine {engine}"
                yield _Problem(key, what, "remove it")
        return
    found = _resolve_flags({**values, "cache_dit": False})
    if found.engine == engine:
        return
    unknown = "FSDP without CPU offload, for which there is no engine"
    what = (
        f"is {engine}, but SGLang 0.5.9 resolves this job's flags to {found.engine or unknown}"
        f" (dit_layerwise_offload {_yaml(found.layerwise)}, dit_cpu_offload"
        f" {_yaml(found.cpu_offload)}, use_fsdp_inference {_yaml(found.fsdp)})"
    )
    wanted = {"use_fsdp_inference": False, **flags.ENGINE_FLAGS[engine]}
    needed = ", ".join(
        f"`{key}: {_yaml(flag)}`" for key, flag in wanted.items() if values[key] is not flag
    )
    yield _Problem("engine", what, f"for this engine write {needed}")


def _resolve_flags(values: Mapping[str, Any]) -> flags.SglangResolution:
    return flags.resolve(
        layerwise=values["dit_layerwise_offload"],
        cpu_offload=values["dit_cpu_offload"],
        fsdp=values["use_fsdp_inference"],
        prefetch=values["dit_offload_prefetch_size"],
        cache_dit=values["cache_dit"],
    )


# --- words for what pydantic finds in a field ---

_LOOKS_LIKE_A_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def _field_problem(entry: _Entry, error: Any) -> _Problem:
    what, mend = _words(entry, error)
    return _Problem(entry.key, what, mend, entry.line)


def _words(entry: _Entry, error: Any) -> tuple[str, str]:
    value, kind, context = entry.value, error["type"], error.get("ctx", {})
    shown = _show(value)
    wanted = {
        "bool_type": "true or false",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "literal_error": f"one of {context.get('expected')}",
    }.get(kind)
    if wanted:
        return _wrong_type(entry, kind, wanted, str(context.get("expected", "")))
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "more than"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "less than"),
    }
    if kind in bounds:
        name, word = bounds[kind]
        return f"is {shown}, out of range", f"write {word} {context[name]}"
    if kind == "finite_number":
        return f"is {shown}, not a finite number", "write a finite number"
    if kind == "string_pattern_mismatch":
        slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
        mend = "use lower-case letters, digits and hyphens" + (f": {slug}" if slug else "")
        return f"is {shown}, which is no slug", mend
    if kind == "string_too_short":
        return "is empty", "write a value, or remove the line for the default"
    return f"is {shown}: {error['msg']}", "correct it"


def _wrong_type(entry: _Entry, kind: str, wanted: str, expected: str) -> tuple[str, str]:
    value, raw = entry.value, entry.raw
    text_wanted = kind in ("string_type", "literal_error")
    if value is None:
        default = field_defaults()[entry.key]
        return "is empty", f"write {wanted}, or remove the line for the default ({_yaml(default)})"
    if isinstance(value, bool):
        what = f"is the boolean {_yaml(value)}, not {wanted}"
        if raw is not None and raw.lower() != _yaml(value):
            what = f"{raw} is the boolean {_yaml(value)} in YAML 1.1, not {wanted}"
        if kind == "string_type":
            return what, f'quote it: "{raw or _yaml(value)}"'
        return what, f"write {wanted}"
    if isinstance(value, str) and kind in ("int_type", "float_type", "int_from_float"):
        mend = _as_yaml_number(value, whole=kind != "float_type")
        if mend:
            quoted = ", without quotes" if mend == value else ""
            return f"{_show(value)} is text in YAML 1.1, not {wanted}", f"write {mend}{quoted}"
    if isinstance(value, str) and kind == "bool_type" and value.lower() in ("true", "false"):
        return f"{_show(value)} is text, not {wanted}", f"write {value.lower()}, without quotes"
    if isinstance(value, float) and kind in ("int_type", "int_from_float") and value.is_integer():
        return f"{value} is not {wanted}", f"write {value:.0f}"
    if isinstance(value, int | float) and kind == "string_type":
        return f"{raw or value} is a number, not {wanted}", f'quote it: "{raw or value}"'
    what = f"{_show(value)} is not {wanted}"
    if text_wanted and isinstance(value, str):
        close = difflib.get_close_matches(value.lower(), re.findall(r"'([^']*)'", expected), n=1)
        if close:
            return what, f"did you mean {close[0]}?"
    return what, f"write {wanted}"


def _as_yaml_number(text: str, *, whole: bool) -> str | None:
    """`text` as YAML 1.1 would read it as a number, which wants a point and a signed exponent."""
    text = text.strip()
    if not _LOOKS_LIKE_A_NUMBER.fullmatch(text):
        return None
    if whole:
        return f"{float(text):.0f}" if float(text).is_integer() else None
    mantissa, letter, exponent = text.lower().partition("e")
    if "." not in mantissa and letter:
        mantissa += ".0"
    if exponent and exponent[0] not in "+-":
        exponent = "+" + exponent
    return mantissa + letter + exponent


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _show(value: object) -> str:
    return _REPR.repr(value)
