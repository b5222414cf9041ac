"""What `results/` holds: records of jobs, and files of ``python -m benchmarks --json``.

Both are pydantic models, validated whenever a file is read or written. What was added to a format
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


class _Part(BaseModel):
    """Keys that are read; others describe further, and are kept."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, validate_by_name=True
    )


_Kind = TypeVar("_Kind", bound=BaseModel)

# Both kinds --------------------------------------------------------------------------------------

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Memory(_Part):
    """Peaks of one rank, in bytes; None where there is no device."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    pinned_bytes: int | None = None
    host_rss_bytes: int | None = None


class Gpu(_Part):
    """Medians of one rank's GPU while a kernel ran; `board` tells boards apart and names none."""

    board: str
    sm_mhz: Positive
    power_w: float
    celsius: float


class Machine(_Part):
    """The machine's class, by hardware and interconnect."""

    class_: str = Field("", alias="class")
    slug: str = ""
    device: str | None = None
    gpu_name: str | None = None
    gpu_count: int = 0
    interconnect: str | None = None
    link: dict[str, Any] | None = None


class Software(_Part):
    torch: str = ""
    git_sha: str | None = None
    git_dirty: bool | None = None


def read_json(path: Path, fix: str) -> Any:
    """Read one JSON file; raises FileError that names it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not valid JSON ({error}); {fix}") from None


def _validate(model: type[_Kind], path: Path, content: object, fix: str) -> _Kind:
    try:
        return model.model_validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        problems = [f"{_where(each['loc'])}: {each['msg'].lower()}" for each in error.errors()]
    except (TypeError, ValueError) as error:  # what JSON cannot hold
        problems = [str(error)]
    raise FileError(f"{path}: is not usable; {fix}\n  " + "\n  ".join(problems))


def _where(location: Sequence[str | int]) -> str:
    """A place in a file as one writes it: ``rows[3].ranks[0].samples_ms``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


# Records of jobs ---------------------------------------------------------------------------------


class Step(_Part):
    """One step; each list has a value for each rank."""

    index: Annotated[int, Field(ge=0)]
    expert: str
    timestep: float
    seconds: list[Positive] = []
    h2d_bytes: list[int] = []


class Iteration(_Part):
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


class Event(_Part):
    """What rank 0's device did around the switch, in ms of the profiled iteration."""

    lane: str
    what: str
    expert: str
    block: int | None  # None: the event is of a whole expert
    step: int
    start_ms: float
    end_ms: float | None


class Model(_Part):
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


class Schedule(_Part):
    timesteps: list[float] = []
    switch_step: int | None = None


class EngineUsed(_Part):
    name: str | None = None
    prefetch: int | None = None
    counters_derived: bool = False
    plan: dict[str, Any] | None = None


class Record(_Part):
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
    source: str | None = None  # what ran it, where that was not wanreport: "sglang 0.5.9"

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
        return self.job["scale"] != "a14b" or self.machine.device != "cuda"


def parse_record(path: Path, content: object) -> Record:
    """Validate a record; raises FileError that names its file and each key that is wrong."""
    return _validate(Record, path, content, "delete it and measure the job again, or restore it")


# Files of the benchmarks -------------------------------------------------------------------------


class BenchSettings(_Part):
    device: Literal["cuda", "cpu"]
    ranks: Count
    blocks: Count
    branches: Annotated[int, Field(ge=1, le=2)]
    compile: bool


class _Link(_Part):
    h2d_pinned_gb_s: Positive
    h2d_pinned_together_gb_s: Positive


class _Candidate(_Part):
    settings: StreamSettings
    predicted: Prediction


class _Plan(_Part):
    inputs: dict[str, Any]
    candidates: list[_Candidate]
    chosen: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _has_what_it_chose(self) -> Self:
        if self.chosen >= len(self.candidates):
            raise ValueError(f"chosen {self.chosen} is not a candidate")
        return self


class BenchRank(_Part):
    samples_ms: list[Positive]
    memory: Memory
    gpu: Gpu | None = None
    shared_pinned_bytes: int
    output_sha256: Digest
    first_output_sha256: Digest
    counters: dict[str, int] | None
    link: _Link | None
    note: str
    plan: _Plan | None


class BenchRow(_Part):
    label: str
    tokens: Count
    grid: tuple[int, int, int]
    status: Literal["ok", "failed", "oom", "timeout", "absent", "needs a GPU", "not run"]
    reason: str
    ranks: list[BenchRank]
    settings: StreamSettings | None  # of stream only
    turns: int = 0  # engines in one process, there and back in the order of rows; 0: one each
    git_sha: str | None
    git_dirty: bool | None
    ended_at: str

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if math.prod(self.grid) != self.tokens:
            raise ValueError(f"grid {self.grid} is not {self.tokens} tokens")
        if self.status != "ok" and (self.ranks or not self.reason):
            raise ValueError(f"status {self.status} needs a reason, and has no ranks")
        plan = self.ranks[0].plan if self.ranks else None
        chosen = plan.candidates[plan.chosen].settings if plan else _settings_in(self.label)
        if self.settings != chosen:
            raise ValueError("settings are not those of its label or plan")
        return self


class _Peer(_Part):
    version: str


class Bench(_Part):
    """One campaign of ``python -m benchmarks``: a row for each engine and number of tokens."""

    schema_version: Literal[2]
    settings: BenchSettings
    bytes: Count
    machine: Machine
    software: Software
    peers: dict[str, _Peer]
    rows: Annotated[list[BenchRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Self:
        problems = [f"rows[{i}] ({row.label}): {what}" for i, row in enumerate(self.rows)
                    for what in self._missing(row)]  # fmt: skip
        keys = [(row.label, row.tokens) for row in self.rows]
        problems += [f"{key} stands there twice" for key in set(keys) if keys.count(key) > 1]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _missing(self, row: BenchRow) -> Iterator[str]:
        """What a row that ran must have, by the campaign's settings."""
        name, cuda = name_of(row.label), self.settings.device == "cuda"
        numbers = {len(rank.samples_ms) for rank in row.ranks}
        if row.status != "ok":
            return
        if len(row.ranks) != self.settings.ranks:
            yield f"ranks are {len(row.ranks)}, and settings.ranks {self.settings.ranks}"
        elif len(numbers) > 1 or (min(numbers) < LEAST_SAMPLES if cuda else max(numbers)):
            wanted = f"{LEAST_SAMPLES} or more, the same on each rank" if cuda else "none on a CPU"
            yield f"samples_ms are {sorted(numbers)}; there must be {wanted}"
        if cuda and name == FIRST and None in [rank.link for rank in row.ranks]:
            yield "link is missing, and every limit rests on it"
        if name in PEERS and name not in self.peers:
            yield f"peers.{name} is missing, which says what was run"
        if name not in PEERS and None in [rank.counters for rank in row.ranks]:
            yield "counters are missing, which every engine has"


def read_bench(path: Path) -> tuple[Bench, dict[str, Any]]:
    """Read and check one benchmark file; return the model and the plain JSON.

    Raises
    ------
    FileError
        Naming the file and each key that is wrong.
    """
    fix = "restore it from git, or measure it again with python -m benchmarks --json"
    found = read_json(path, fix)
    return _validate(Bench, path, found, fix), found


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


def _settings_in(label: str) -> StreamSettings | None:
    """The settings of `stream` that a label gives; None for other engines."""
    name, given = parse_label(label)
    given.pop("prefetch", None)  # every engine takes it; `stream` has no use for it
    if isinstance(given.get("windows"), list):
        given["windows"] = tuple(given["windows"])
    return StreamSettings(**given) if name == "stream" else None


def stream_settings(label: str, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row's settings of `stream`, JSON-ready: its plan's choice, or what its label says."""
    if ranks and (plan := ranks[0]["plan"]):
        return dict(plan["candidates"][plan["chosen"]]["settings"])
    settings = _settings_in(label)
    return None if settings is None else json.loads(json.dumps(asdict(settings)))
