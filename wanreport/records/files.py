"""Checks what `results/` holds: records of jobs, and files of ``python -m benchmarks --json``.

Both kinds are pydantic models, validated once, when a file is read. What was added to a format
later is optional, so that older files stay readable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.planner.cost import Prediction

FIRST, LAST = "resident", "resident again"
PEERS = ("diffusers", "sglang")
KNOWN = (*get_args(Job.model_fields["engine"].annotation), "planned", *PEERS)
"""Names that a label may have, in the order of tables; "planned" is `stream` with a plan."""
BENCH_SCHEMA = 2
LEAST_SAMPLES = 5


class FileError(Exception):
    """Files that cannot be used; the message names each, the key and the fix."""


class _Open(BaseModel):
    """Keys that are read; others describe further, and are kept."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, validate_by_name=True
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_Kind = TypeVar("_Kind", bound=BaseModel)

# Both kinds --------------------------------------------------------------------------------------

Seconds = Annotated[float, Field(gt=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Memory(_Open):
    """Peaks of one rank, in bytes; None where there is no device."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    pinned_bytes: int | None = None
    host_rss_bytes: int | None = None


class Gpu(_Open):
    """Medians of one rank's GPU while a kernel ran; `board` tells boards apart and names none."""

    board: str
    sm_mhz: Annotated[float, Field(gt=0)]
    power_w: float
    celsius: float


class Machine(_Open):
    """The machine's class, by hardware and interconnect."""

    class_: str = Field("", alias="class")
    slug: str = ""
    device: str | None = None
    gpu_name: str | None = None
    gpu_count: int = 0
    interconnect: str | None = None
    link: dict[str, Any] | None = None


class Software(_Open):
    torch: str = ""
    git_sha: str | None = None
    git_dirty: bool | None = None


# Records of jobs ---------------------------------------------------------------------------------


class Step(_Open):
    """One step; each list has a value for each rank."""

    index: Annotated[int, Field(ge=0)]
    expert: str
    timestep: float
    seconds: list[Seconds] = []
    h2d_bytes: list[int] = []


class Iteration(_Open):
    """One pass over the schedule; lists have an entry for each rank."""

    kind: Literal["warmup", "clean", "profiled"]
    steps: list[Step] = []
    decode_s: float | None = None
    total_s: float | None = None
    counters: list[dict[str, int]] | None = None
    expected_counters: list[dict[str, int | None]] | None = None
    memory: list[Memory | None] | None = None
    gpu: list[Gpu | None] | None = None
    latents_sha256: str | None = None


class Event(_Open):
    """What rank 0's device did around the switch, in ms of the profiled iteration."""

    lane: str
    what: str
    expert: str
    block: int | None  # None: the event is of a whole expert
    step: int
    start_ms: float
    end_ms: float | None


class Model(_Open):
    tokens: int | None = None
    num_layers: int | None = None
    block_bytes: int | None = None
    expert_bytes: int | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    flow_shift: float | None = None
    boundary_ratio: float | None = None
    weights: str | None = None


class Schedule(_Open):
    timesteps: list[float] = []
    switch_step: int | None = None


class EngineUsed(_Open):
    name: str | None = None
    prefetch: int | None = None
    counters_derived: bool = False
    plan: dict[str, Any] | None = None


class Record(_Open):
    """One job's result on one machine; empty parts where the job failed before them."""

    schema_version: Literal[1]
    benchmark_version: int
    job: dict[str, Any]
    job_hash: str
    status: Literal["ok", "failed", "oom", "timeout", "unsupported"]
    reason: str
    hint: str
    model: Model
    schedule: Schedule
    sglang: dict[str, Any]
    machine: Machine
    software: Software
    engine: EngineUsed
    started_at: str
    wall_s: float
    cold_start_s: float | None
    iterations: list[Iteration]
    timeline: list[Event]
    traces: list[dict[str, Any]]

    @model_validator(mode="after")
    def _says_why_and_at_which_scale(self) -> Self:
        if self.status != "ok" and not self.reason:
            raise ValueError(f"its status is {self.status!r}, and no reason is given")
        if self.job.get("scale") not in ("a14b", "tiny"):
            raise ValueError("its job has no resolved scale")
        return self

    @property
    def is_rehearsal(self) -> bool:
        """Whether times, memory and overlap say nothing about the full model on a GPU."""
        return self.job.get("scale") != "a14b" or self.machine.device != "cuda"


def parse_record(path: Path, content: object) -> Record:
    """Validate the content of a record's file.

    Raises
    ------
    FileError
        Naming the file and each key that is wrong.
    """
    return _validate(Record, path, content, "delete it and measure the job again, or restore it")


def _validate(model: type[_Kind], path: Path, content: object, fix: str) -> _Kind:
    try:
        return model.model_validate_json(json.dumps(content))
    except (ValidationError, ValueError) as error:
        problems = _problems_of(error)
    raise FileError(f"{path}: is not usable; {fix}\n  " + "\n  ".join(problems))


def _problems_of(error: Exception) -> list[str]:
    if not isinstance(error, ValidationError):
        return [str(error)]
    return [f"{_where(each['loc'])}: {each['msg'].lower()}" for each in error.errors()]


def _where(location: Sequence[str | int]) -> str:
    """A place in a file as one writes it: ``rows[3].ranks[0].samples_ms``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def read_json(path: Path, fix: str) -> Any:
    """Read one JSON file; raises FileError that names it."""
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not valid JSON ({error}); {fix}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


# Files of the benchmarks -------------------------------------------------------------------------


class BenchSettings(_Strict):
    device: Literal["cuda", "cpu"]
    ranks: Annotated[int, Field(ge=1)]
    blocks: Annotated[int, Field(ge=1)]
    branches: Annotated[int, Field(ge=1, le=2)]
    compile: bool
    warmup: Annotated[int, Field(ge=1)]


class _Link(_Open):
    h2d_pinned_gb_s: Annotated[float, Field(gt=0)]
    h2d_pinned_together_gb_s: Annotated[float, Field(gt=0)]


class _Candidate(_Strict):
    settings: StreamSettings
    predicted: Prediction


class _Plan(_Strict):
    inputs: dict[str, Any]
    room: int
    candidates: list[_Candidate]
    chosen: Annotated[int, Field(ge=0)]
    by: Literal["prediction", "trial"]
    trial: list[dict[str, Any]]


class BenchRank(_Strict):
    samples_ms: list[Seconds]
    warmup_ms: list[Seconds]
    wall_ms_per_step: float | None
    memory: Memory
    gpu: Gpu | None = None
    shared_pinned_bytes: int
    output_sha256: Digest
    first_output_sha256: Digest
    counters: dict[str, int] | None
    attach_s: float
    link: _Link | None
    note: str
    plan: _Plan | None


class BenchRow(_Strict):
    label: Annotated[str, Field(min_length=1)]
    tokens: Annotated[int, Field(ge=1)]
    grid: tuple[int, int, int]
    status: Literal["ok", "failed", "oom", "timeout", "absent", "needs a GPU", "not run"]
    reason: str
    ranks: list[BenchRank]
    log: str
    transport: list[str]
    settings: StreamSettings | None  # of stream only
    turns: list[int] | None = None  # in the order of a process with several engines
    git_sha: str | None
    git_dirty: bool | None
    ended_at: str


class _Peer(_Open):
    version: str


class Bench(_Strict):
    """One campaign of ``python -m benchmarks``: a row for each engine and number of tokens."""

    schema_version: int
    settings: BenchSettings
    bytes: Annotated[int, Field(ge=1)]
    machine: Machine
    software: Software
    peers: dict[str, _Peer]
    rows: Annotated[list[BenchRow], Field(min_length=1)]


def read_bench(path: Path) -> tuple[Bench, dict[str, Any]]:
    """Read and check one benchmark file; return the model and the plain JSON.

    Raises
    ------
    FileError
        Naming the file and each key that is wrong.
    """
    fix = "restore it from git, or measure it again with python -m benchmarks --json"
    found = read_json(path, fix)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != BENCH_SCHEMA:
        raise FileError(
            f"{path}: schema_version is {version!r}, and this version of wanreport reads"
            f" {BENCH_SCHEMA}; {fix}"
        )
    bench = _validate(Bench, path, found, fix)
    if problems := list(_contradictions(found)):
        raise FileError(f"{path}: is not usable; {fix}\n  " + "\n  ".join(problems))
    return bench, found


def _contradictions(bench: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong although each key for itself is right."""
    seen = set()
    for index, row in enumerate(bench["rows"]):
        key = row["label"], row["tokens"]
        for where, what in _wrong(bench, row):
            yield f"rows[{index}] ({row['label']}).{where}: {what}"
        if key in seen:
            yield f"rows[{index}] ({row['label']}): stands there twice for {row['tokens']} tokens"
        seen.add(key)


def _wrong(bench: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of a row that contradict other ones, and how."""
    settings, ranks = bench["settings"], row["ranks"]
    try:
        name = name_of(row["label"])
        if math.prod(row["grid"]) != row["tokens"]:
            yield "grid", f"{row['grid']} are not {row['tokens']} tokens"
        if row["status"] != "ok" and (ranks or not row["reason"]):
            yield "status", f"{row['status']} needs a reason, and has no ranks"
        for plan in filter(None, (rank["plan"] for rank in ranks)):
            if plan["chosen"] >= len(plan["candidates"]):
                yield "ranks", f"plan.chosen {plan['chosen']} is not a candidate"
                return
        if row["settings"] != stream_settings(row["label"], ranks):
            yield "settings", "are not those of its label or plan"
    except (TypeError, ValueError) as error:
        yield "label", str(error)
        return
    if row["status"] != "ok":
        return
    numbers = {len(rank["samples_ms"]) for rank in ranks}
    cuda = settings["device"] == "cuda"
    if len(ranks) != settings["ranks"]:
        yield "ranks", f"are {len(ranks)}, and settings.ranks {settings['ranks']}"
    elif len(numbers) != 1 or (min(numbers) < LEAST_SAMPLES if cuda else max(numbers)):
        wanted = f"{LEAST_SAMPLES} or more, the same on each rank" if cuda else "none on a CPU"
        yield "ranks", f"have {sorted(numbers)} samples_ms; there must be {wanted}"
    if cuda and name == FIRST and None in [rank["link"] for rank in ranks]:
        yield "ranks", "link is missing, and every limit rests on it"
    if name in PEERS and name not in bench["peers"]:
        yield "label", f"peers.{name} is missing, which says what was run"
    if name not in PEERS and None in [rank["counters"] for rank in ranks]:
        yield "ranks", "counters are missing, which every engine has"


def bench_files(root: Path) -> list[Path]:
    """The files ``<machine>/benchmarks/<name>.json`` below a results folder, sorted."""
    found = root.glob("*/benchmarks/*.json")
    return sorted(path for path in found if not path.name.startswith("."))


# Labels ------------------------------------------------------------------------------------------


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value,…`` into a name and settings.

    Raises
    ------
    ValueError
        If it has another form, or if there is no such engine.
    """
    name, _, rest = label.removesuffix(" again").partition(":")
    if name not in KNOWN:
        raise ValueError(f"no engine {name!r}; there are {', '.join(KNOWN)}")
    # A comma within brackets is a list's.
    pairs = [part.split("=") for part in re.split(r",(?![^\[]*\])", rest) if part]
    try:
        return name, {key: yaml.safe_load(value) for key, value in pairs}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{error}; the form is NAME:KEY=VALUE,KEY=VALUE") from None


def name_of(label: str) -> str:
    """A label without settings; "planned" and "stream" are one engine in two ways."""
    return parse_label(label)[0]


def stream_settings(label: str, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row's settings of `stream`, JSON-ready: its plan's choice, or what its label says."""
    name, given = parse_label(label)
    if ranks and ranks[0]["plan"]:
        plan = ranks[0]["plan"]
        return dict(plan["candidates"][plan["chosen"]]["settings"])
    if name != "stream":
        return None
    given.pop("prefetch", None)  # every engine takes it; `stream` has no use for it
    return json.loads(json.dumps(asdict(StreamSettings(**given))))
