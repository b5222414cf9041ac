"""What `results/` holds: records of jobs, and files of ``python -m benchmarks --json``.

Both are pydantic models, validated whenever a file is read or written. They name what is read, and
what is older than a key lacks it; whatever else a file has is kept.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from wanreport.jobs.job import Job
from wanreport.jobs.settings import StreamSettings
from wanreport.planner.cost import Prediction

FIRST, LAST = "resident", "resident again"
PEERS = ("diffusers", "sglang")
CFG = "enable_cfg_parallel"  # a label's setting that is the ranks' and not the engine's
KNOWN = (*get_args(Job.model_fields["engine"].annotation), "planned", *PEERS)
"""Names that a label may have, in the order of tables; "planned" is `stream` with a plan."""
LEAST_SAMPLES = 5  # of a rank on a GPU
FIX = "restore it, or delete it and measure again"


class FileError(Exception):
    """Files that cannot be used; the message names each, the key and the fix."""


def read_json(path: Path, fix: str = FIX) -> Any:
    """Read one JSON file; raises FileError that names it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is not valid JSON ({error}); {fix}") from None


def _validate(model: type[BaseModel], path: Path, content: object) -> Any:
    """Validate a file's content; raises FileError that names the file and each key."""
    try:
        return model.model_validate_json(json.dumps(content, allow_nan=False))
    except ValidationError as error:
        # A place as one writes it: ``rows[3].ranks[0].samples_ms``.
        problems = [re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, each["loc"])))
                    + f": {each['msg'].lower()}" for each in error.errors()]  # fmt: skip
    except (TypeError, ValueError) as error:  # what JSON cannot hold
        problems = [str(error)]
    raise FileError(f"{path}: is not usable; {FIX}\n  " + "\n  ".join(problems))


class _Part(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    pass


class Machine(_Part):
    class_: str = Field("", alias="class")  # by hardware and interconnect
    slug: str = ""
    device: str | None = None
    gpu_name: str | None = None
    gpu_count: int = 0
    interconnect: str | None = None
    link: dict[str, Any] | None = None


class Software(_Part):
    torch: str = ""
    git_sha: str | None = None  # the project's
    git_dirty: bool | None = None


class Memory(_Part):  # peaks of one rank, in bytes; None where there is no device
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    pinned_bytes: int | None = None
    host_rss_bytes: int | None = None


class Gpu(_Part):  # medians while a kernel ran; `board` tells boards apart and names none
    board: str
    sm_mhz: float
    power_w: float
    celsius: float


class Step(_Part):
    index: int
    expert: str
    timestep: float
    seconds: list[float] = []  # of each rank
    h2d_bytes: list[int] = []


class Iteration(_Part):  # one pass over the schedule; lists have an entry for each rank
    kind: Literal["warmup", "clean", "profiled"]
    steps: list[Step] = []
    decode_s: float | None = None
    total_s: float | None = None
    counters: list[dict[str, int]] | None = None
    expected_counters: list[dict[str, int | None]] | None = None
    memory: list[Memory | None] | None = None
    gpu: list[Gpu | None] | None = None
    latents_sha256: str | None = None


class Event(_Part):  # of rank 0's device around the switch, in ms of the profiled iteration
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
    status: Literal["ok", "failed", "oom", "timeout", "non-finite", "unsupported"]
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
    made_from: str | None = None  # of which files of a checkpoint, as a digest

    @property
    def is_rehearsal(self) -> bool:
        """Whether times, memory and overlap say nothing about the full model on a GPU."""
        return self.job.get("scale") != "a14b" or self.machine.device != "cuda"


def parse_record(path: Path, content: object) -> Record:
    """Validate a record; raises FileError that names its file and each key that is wrong."""
    return _validate(Record, path, content)


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value,…`` into a name and settings; ValueError if it cannot be."""
    name, _, rest = label.removesuffix(" again").partition(":")
    if name not in KNOWN:
        raise ValueError(f"no engine {name!r}; there are {', '.join(KNOWN)}")
    # A comma within brackets is a list's.
    pairs = [part.split("=") for part in re.split(r",(?![^\[]*\])", rest) if part]
    try:
        given = {key: yaml.safe_load(value) for key, value in pairs}
        if given.get(CFG, True) is not True:
            raise ValueError(f"{CFG} is true or left out")
        return name, given
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{error}; write NAME:KEY=VALUE,…") from None


def reference(label: str) -> str:
    """The label of `resident` in the same layout."""
    return f"{FIRST}:{CFG}=true" if CFG in label else FIRST


def stream_settings(label: str, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row's settings of `stream`, JSON-ready: its plan's choice, or what its label says."""
    if ranks and (plan := ranks[0]["plan"]):
        return dict(plan["candidates"][plan["chosen"]]["settings"])
    name, given = parse_label(label)
    for other in ("prefetch", CFG):  # any label may have them; `stream` has no use for them
        given.pop(other, None)
    return asdict(StreamSettings(**given)) if name == "stream" else None


class BenchSettings(_Part):
    device: Literal["cuda", "cpu"]
    ranks: int
    blocks: int
    branches: Literal[1, 2]
    compile: bool


class _Link(_Part):
    h2d_pinned_together_gb_s: float


class _Candidate(_Part):
    predicted: Prediction


class _Plan(_Part):
    inputs: dict[str, Any]
    candidates: list[_Candidate]
    chosen: int


class BenchRank(_Part):
    samples_ms: list[float]
    memory: Memory
    gpu: Gpu | None = None
    shared_pinned_bytes: int
    output_sha256: str
    first_output_sha256: str
    counters: dict[str, int] | None
    link: _Link | None
    plan: _Plan | None
    latents_error: list[float] | None = None  # by step, over resident's; None where exact


class BenchRow(_Part):  # one engine at one number of tokens
    label: Annotated[str, AfterValidator(lambda label: parse_label(label) and label)]
    tokens: int
    status: Literal["ok", "failed", "oom", "timeout", "non-finite", "absent", "needs a GPU",
                    "not run"]  # fmt: skip
    reason: str
    ranks: list[BenchRank]
    settings: StreamSettings | None  # of stream only
    git_sha: str | None
    ended_at: str


class _Peer(_Part):
    version: str


class Bench(_Part):
    """One campaign of ``python -m benchmarks``: a row for each engine and number of tokens."""

    schema_version: Literal[2]
    settings: BenchSettings
    bytes: int
    machine: Machine
    software: Software
    peers: dict[str, _Peer]
    rows: Annotated[list[BenchRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Self:
        times = Counter((row.label, row.tokens) for row in self.rows)
        problems = [f"rows: {key} stands there twice" for key, count in times.items() if count > 1]
        least = LEAST_SAMPLES if self.settings.device == "cuda" else 0
        for i, row in enumerate(self.rows):
            found = [len(rank.samples_ms) for rank in row.ranks]
            ranks = self.settings.ranks if row.status == "ok" else 0
            if len(found) != ranks or len({*found}) > 1 or min(found, default=least) < least:
                problems.append(f"rows[{i}].ranks: {len(found)} of {ranks}, samples_ms {found}, "
                                f"not {least} or more alike")  # fmt: skip
        if problems:
            raise ValueError("; ".join(problems))
        return self


def read_bench(path: Path) -> tuple[Bench, dict[str, Any]]:
    """Read one benchmark file, as model and as plain JSON; FileError names each wrong key."""
    found = read_json(path)
    return _validate(Bench, path, found), found
