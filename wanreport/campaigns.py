"""Campaigns: what ``python -m benchmarks --json`` measured, and what follows from its samples.

A campaign is a plain dictionary, as its file ``results/<machine>/benchmarks/<name>.json`` holds it:
settings, machine, software and the peers' versions, and a row for each engine and shape with the
raw samples of each rank. `read_campaign` refuses a file that is not all of that. All that tables
derive from samples is computed here, for the command line and for the page alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .cost import Prediction, StreamSettings
from .job import Job
from .tables import Estimate, estimate

FIRST, LAST = "resident", "resident again"
PEERS = ("diffusers", "sglang")
KNOWN = (*get_args(Job.model_fields["engine"].annotation), "planned", *PEERS)
"""Names that a label may have, in the order of tables; "planned" is `stream` with a plan."""
SCHEMA_VERSION = 2
LEAST_SAMPLES = 5

Campaign = Mapping[str, Any]
Row = Mapping[str, Any]


class CampaignError(Exception):
    """Files that are no campaigns; the message names each with the key and the mend."""


# What a file must hold ---------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Described(BaseModel):
    """Keys that are read; others describe further, and are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Settings(_Strict):
    device: Literal["cuda", "cpu"]
    ranks: Annotated[int, Field(ge=1)]
    blocks: Annotated[int, Field(ge=1)]
    branches: Annotated[int, Field(ge=1, le=2)]
    compile: bool
    warmup: Annotated[int, Field(ge=1)]


class _Machine(_Described):
    class_: str = Field(alias="class")
    slug: str
    gpu_name: str | None
    gpu_count: int
    driver: str | None
    nccl: dict[str, str]


class _Software(_Described):
    python: str
    torch: str
    diffusers: str
    cuda: str | None
    nccl: str | None
    wanreport: str


class _Peer(_Described):
    version: str


class _Memory(_Strict):
    allocated_bytes: int | None
    reserved_bytes: int | None
    pinned_bytes: int | None
    host_rss_bytes: int


class _Gpu(_Strict):
    board: str
    readings: Annotated[int, Field(ge=1)]
    sm_mhz: Annotated[float, Field(gt=0)]
    power_w: float
    celsius: float


class _Link(_Described):
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


_Samples = list[Annotated[float, Field(gt=0)]]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Rank(_Strict):
    samples_ms: _Samples
    warmup_ms: _Samples
    wall_ms_per_step: float | None
    memory: _Memory
    gpu: _Gpu | None = None
    shared_pinned_bytes: int
    output_sha256: _Digest
    first_output_sha256: _Digest
    counters: dict[str, int] | None
    attach_s: float
    link: _Link | None
    note: str
    plan: _Plan | None


class _Row(_Strict):
    label: Annotated[str, Field(min_length=1)]
    tokens: Annotated[int, Field(ge=1)]
    grid: tuple[int, int, int]
    status: Literal["ok", "failed", "oom", "timeout", "absent", "needs a GPU", "not run"]
    reason: str
    ranks: list[_Rank]
    log: str
    transport: list[str]
    settings: StreamSettings | None  # of stream only
    git_sha: str | None
    git_dirty: bool | None
    ended_at: str


class _Campaign(_Strict):
    schema_version: int
    settings: _Settings
    bytes: Annotated[int, Field(ge=1)]
    machine: _Machine
    software: _Software
    peers: dict[str, _Peer]
    rows: Annotated[list[_Row], Field(min_length=1)]


def read_campaign(path: Path) -> dict[str, Any]:
    """Read and check one file.

    Raises
    ------
    CampaignError
        Naming the file and each key that is wrong.
    """
    mend = "restore it from git, or measure it again with python -m benchmarks --json"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CampaignError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise CampaignError(f"{path}: is no valid JSON ({error}); {mend}") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise CampaignError(
            f"{path}: schema_version is {version!r}, and this version of wanreport reads"
            f" {SCHEMA_VERSION}; {mend}"
        )
    try:
        _Campaign.model_validate_json(json.dumps(found))
        problems = list(_problems(found))
    except ValidationError as error:
        problems = [f"{_where(e['loc'])}: {e['msg'].lower()}" for e in error.errors()]
    if problems:
        raise CampaignError(f"{path}: is no result of python -m benchmarks; {mend}\n  "
                            + "\n  ".join(problems))  # fmt: skip
    return found


def _where(location: Sequence[str | int]) -> str:
    """A place in a file as one writes it: ``rows[3].ranks[0].samples_ms``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def _problems(report: Campaign) -> Iterator[str]:
    """What is wrong although each key for itself is right."""
    seen = set()
    for index, row in enumerate(report["rows"]):
        key = row["label"], row["tokens"]
        for where, what in _wrong(report, row):
            yield f"rows[{index}] ({row['label']}).{where}: {what}"
        if key in seen:
            yield f"rows[{index}] ({row['label']}): stands there twice for {row['tokens']} tokens"
        seen.add(key)


def _wrong(report: Campaign, row: Row) -> Iterator[tuple[str, str]]:
    """Keys of a row that contradict other ones, and how."""
    settings, ranks = report["settings"], row["ranks"]
    try:
        name = name_of(row["label"])
        if math.prod(row["grid"]) != row["tokens"]:
            yield "grid", f"{row['grid']} are not {row['tokens']} tokens"
        if row["status"] != "ok" and (ranks or not row["reason"]):
            yield "status", f"{row['status']} needs a reason, and has no ranks"
        for plan in filter(None, (rank["plan"] for rank in ranks)):
            if plan["chosen"] >= len(plan["candidates"]):
                yield "ranks", f"plan.chosen {plan['chosen']} is no candidate"
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
    if name in PEERS and name not in report["peers"]:
        yield "label", f"peers.{name} is missing, which says what was run"
    if name not in PEERS and None in [rank["counters"] for rank in ranks]:
        yield "ranks", "counters are missing, which every engine has"


def campaign_files(root: Path) -> list[Path]:
    """The files ``<machine>/benchmarks/<name>.json`` below a results folder, sorted."""
    found = root.glob("*/benchmarks/*.json")
    return sorted(path for path in found if not path.name.startswith("."))


def find_campaigns(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All campaigns below a results folder, by path.

    Raises
    ------
    CampaignError
        Naming every file that cannot be used, or lies in another machine's folder.
    """
    found, problems = [], []
    for path in campaign_files(root):
        try:
            report = read_campaign(path)
        except CampaignError as error:
            problems.append(str(error))
            continue
        slug, folder = report["machine"]["slug"], path.parent.parent.name
        if slug == folder:
            found.append((path, report))
        else:
            problems.append(
                f"{path}: machine.slug is {slug}, and the folder is {folder}'s; move the file to"
                f" {slug}/benchmarks/"
            )
    if problems:
        raise CampaignError("\n".join(problems))
    return found


# Labels ------------------------------------------------------------------------------------------


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """Name and settings that ``name:key=value,…`` gives.

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


def engine_of(label: str) -> str:
    """The engine or peer behind a label: what has a colour."""
    name = name_of(label)
    return "stream" if name == "planned" else name


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


# What follows from samples -----------------------------------------------------------------------


def shapes(report: Campaign) -> list[int]:
    """The lengths of sequence, in tokens."""
    return sorted({row["tokens"] for row in report["rows"]})


def find(report: Campaign, label: str, tokens: int) -> Row | None:
    """The row of an engine and a shape, if there is one."""
    rows = (r for r in report["rows"] if r["label"] == label and r["tokens"] == tokens)
    return next(rows, None)


def step_ms(row: Row | None) -> Estimate:
    """Milliseconds of a step, each counting with its slowest rank."""
    ranks = [rank["samples_ms"] for rank in row["ranks"]] if row else []
    return estimate(map(max, zip(*ranks, strict=True)))


def link(report: Campaign, label: str = FIRST) -> float | None:
    """Bandwidth in GB/s that the slowest rank has while all copy, as ``label`` measured it."""
    links = [
        rank["link"]["h2d_pinned_together_gb_s"]
        for row in report["rows"]
        for rank in row["ranks"]
        if row["label"] == label and rank["link"]
    ]
    return min(links, default=None)


def cost(report: Campaign, row: Row, label: str = FIRST) -> float | None:
    """A step over that of ``label``, by default the first run of `resident`, less 1."""
    mine, other = step_ms(row).median, step_ms(find(report, label, row["tokens"])).median
    return None if mine is None or other is None else mine / other - 1


def drift(report: Campaign, tokens: int) -> float | None:
    """How much longer a step of `resident` took at the end than at the beginning, less 1."""
    last = find(report, LAST, tokens)
    return cost(report, last) if last else None


def moved(report: Campaign, row: Row) -> float | None:
    """Bytes that the busiest rank must copy to its device in a steady step.

    By `stream`'s settings where it has any, else as the engine counted. What a peer moves is not
    counted; taken is that each of its branches brings every block.
    """
    settings = report["settings"]
    if not row["ranks"]:
        return None
    if row["settings"]:
        stream = StreamSettings(**row["settings"])
        passes = -(-settings["branches"] // stream.branches_per_visit)
        block = report["bytes"] / settings["blocks"] / (settings["ranks"] if stream.shard else 1)
        return passes * stream.moving(settings["blocks"]) * block
    if name_of(row["label"]) in PEERS:
        return float(report["bytes"] * settings["branches"])
    steps = len(row["ranks"][0]["samples_ms"])
    return max(rank["counters"]["h2d_bytes"] for rank in row["ranks"]) / steps if steps else None


def limit(report: Campaign, row: Row) -> float | None:
    """Milliseconds of a step that an engine cannot beat with the bytes that it moves.

    That is the larger of the first run of `resident` and of the bytes over the link's bandwidth,
    both as measured in that run.
    """
    resident, bandwidth = step_ms(find(report, FIRST, row["tokens"])).median, link(report)
    nbytes = moved(report, row)
    if resident is None or bandwidth is None or nbytes is None:
        return None
    return max(resident, nbytes / bandwidth / 1e6)


def identical(report: Campaign, row: Row) -> bool | None:
    """Whether the first and the last output, on every rank, are resident's; None if unknown."""
    reference = find(report, FIRST, row["tokens"])
    if not row["ranks"] or reference is None or not reference["ranks"]:
        return None
    wanted = reference["ranks"][0]["output_sha256"]
    keys = ("first_output_sha256", "output_sha256")
    return all(rank[key] == wanted for rank in row["ranks"] for key in keys)


def peak(row: Row, key: str) -> int | None:
    """Peak of a kind of device memory, "allocated" or "reserved", of the fullest rank, in bytes."""
    each = [rank["memory"][f"{key}_bytes"] for rank in row["ranks"]]
    return max((value for value in each if value is not None), default=None)


def pinned_bytes(row: Row) -> int | None:
    """Pinned bytes of the host: what each rank has, but once what ranks share."""
    each = [rank["memory"]["pinned_bytes"] for rank in row["ranks"]]
    if not each or None in each:
        return None
    return sum(each) - row["ranks"][0]["shared_pinned_bytes"] * (len(each) - 1)


def note(row: Row) -> str:
    """What a reader must know of a row: why it did not run, or the engine's own word."""
    if not row["ranks"]:
        return f"{row['status']}: {row['reason']}"
    if name_of(row["label"]) == "swap":
        return "moves weights only at a switch of experts, and here is none"
    return str(row["ranks"][0]["note"])
