"""``wanreport import``: a run of SGLang's diffusion models, from its log, as a record beside ours.

Read is what SGLang 0.5.9 and 0.5.23 print and dump: the resolved ``server_args``, the parameters
of a request (0.5.9 prints them at debug level), a progress bar of steps, times of steps and stages,
peaks of memory, tracebacks, and the file of ``--perf-dump-path``. A log is streamed, and whatever
it holds becomes plain text. Peaks are those of rank 0, and GB in SGLang's words are GiB.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from wanreport.jobs.job import Job, job_from_mapping, load_job
from wanreport.jobs.schedule import flow_schedule, switch_step
from wanreport.jobs.sglang import prefetch_layers, resolve_model
from wanreport.records.files import FileError, read_json
from wanreport.records.record import new_record, record_path, write_record
from wanreport.traces import read

LONGEST_LINE, MOST_ITERATIONS, LONGEST_REASON = 1 << 20, 100, 600
SMOOTHING = 0.3  # of tqdm's rate, an exponential average
SPIKE = 1.5  # a step as long as so many others is one at which a whole expert moved
A14B = {"num_layers": 40, "block_bytes": 702_870_528, "outer_bytes": 520_530_176,
        "expert_bytes": 28_635_351_296}  # fmt: skip
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")
RANK = re.compile(r"^(?:\[rank\d+\]: ?|\d{1,3}: (?=\S))")
BAR = re.compile(r"^\s*\d{1,3}%\|.*?(\d{1,5})/(\d{1,5}) \[[\d:]+<[\d:?]+, +([\d.]+|\?)(s/it|it/s)")
NUMBER = r"(\d{1,12}(?:\.\d+)?)"
RAISED = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)(?::.*)?)$")
ENDED = {  # how a batch system or the kernel ended it: status, what the log says
    "timeout": re.compile(r"DUE TO TIME LIMIT"),
    "oom": re.compile(r"oom[-_]kill", re.IGNORECASE),
    "failed": re.compile(r"\bCANCELLED AT\b|\bSegmentation fault\b|exitcode: -?\d+|^Killed$"),
}


class Place(BaseModel, extra="forbid"):
    """Where a run was, which a log does not say: the file of ``--machine``."""

    gpu: str | None = None
    count: int | None = Field(None, ge=1)
    interconnect: str | None = None
    driver: str | None = None
    node: str | None = None
    sglang: str | None = None
    torch: str = ""


Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Timed(BaseModel):
    duration_ms: Milliseconds


class _Stage(_Timed):
    name: str
    duration_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Peak(BaseModel):
    peak_allocated_mb: float = Field(ge=0, allow_inf_nan=False)
    peak_reserved_mb: float = Field(ge=0, allow_inf_nan=False)


class PerfDump(BaseModel):
    """What is read of a file of ``--perf-dump-path``."""

    timestamp: str = ""
    total_duration_ms: Milliseconds | None = None
    steps: list[_Stage] = []
    denoise_steps_ms: list[_Timed] = Field(min_length=1, max_length=1000)
    memory_checkpoints: dict[str, _Peak] = {}


@dataclass
class Iteration:
    """One pass over the schedule, as a log has it; times in seconds, memory in bytes."""

    total: int = 0
    warmup: bool = False
    at: int = 0
    rates: dict[int, float] = field(default_factory=dict)  # by steps done, of the progress bar
    average_s: float | None = None
    total_s: float | None = None
    stages_s: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] | None = None
    dumped: list[float] | None = None

    @property
    def steps(self) -> list[float]:
        """Each step: of the perf dump, or what the bar's averages come from; else none."""
        if self.dumped or not self.total or [*self.rates] != [*range(1, self.total + 1)]:
            return self.dumped or []
        sums = [rate * (1 - (1 - SMOOTHING) ** n) for n, rate in self.rates.items()]
        found = [(now - (1 - SMOOTHING) * before) / SMOOTHING
                 for before, now in zip([0.0, *sums], sums, strict=False)]  # fmt: skip
        return [round(each, 4) for each in found] if min(found) > 0 else []

    @property
    def denoised(self) -> bool:
        return bool(self.average_s or self.dumped or self.total and self.at == self.total)


class Log:
    """What a log says, taken line by line."""

    def __init__(self, path: Path) -> None:
        self.args: dict[str, Any] = {}
        self.asked: dict[str, float] = {}
        self.iterations: list[Iteration] = []
        self.before: dict[str, float] = {}  # stages ahead of an iteration
        self.warming, self.tracing, self.sampling = False, False, False
        self.errors: list[str] = []
        self.status, self.version = "", ""
        self.times: list[str] = []
        patterns = {
            self._args: r"server_args: (\{.*\})\s*$", self._asking: r"(Sampling params:)",
            self._warm: r"(Processing warmup req)", self._stage: rf"\[(\w+)\] finished in {NUMBER} s",
            self._warmed: rf"[Ww]armup req.* processed in {NUMBER} s",
            self._average: rf"average time per step: {NUMBER} s",
            self._made: rf"Pixel data generated successfully in {NUMBER} s",
            self._memory: rf"GPU memory: (?:peak=)?{NUMBER} GB, (?:Peak )?allocated[:=] ?{NUMBER} GB",
            self._named: r"(?i)\bsglang(?: version)?[ =:-]{1,3}v?(\d+\.\d+\.\d+\w*)",
        }  # fmt: skip
        self.patterns = {react: re.compile(pattern) for react, pattern in patterns.items()}
        for line in _lines(path):
            self._line(line)

    def _line(self, line: str) -> None:
        if bar := BAR.match(line):
            self._bar(int(bar[1]), int(bar[2]), bar[3], bar[4])
            return
        if time := re.search(r"\b(\d\d-\d\d) (\d\d:\d\d:\d\d)\b", line[:60]):
            self.times = [*self.times[:1], f"{time[1]}T{time[2]}"]
        if self.sampling:
            found = re.match(rf" +(\w+): {NUMBER}$", line)
            self.asked |= {found[1]: float(found[2])} if found else {}
            self.sampling = "output_file_path:" not in line
        for react, pattern in self.patterns.items():
            if found := pattern.search(line):
                react(*found.groups())
        for status, pattern in ENDED.items():
            if pattern.search(line):
                self.status, self.errors = self.status or status, [*self.errors[:9], line.strip()]
        if "Traceback (most recent call last)" in line:
            self.tracing = True
        elif self.tracing and (raised := RAISED.match(line)):
            self.tracing, self.errors = False, [*self.errors[:9], raised[1]]

    def _new(self, total: int = 0) -> Iteration:
        if len(self.iterations) >= MOST_ITERATIONS:
            raise FileError(f"more than {MOST_ITERATIONS} iterations; give the log of one job")
        self.iterations.append(Iteration(total, self.warming, stages_s=self.before))
        self.before = {}
        return self.iterations[-1]

    def _last(self) -> Iteration:
        return self.iterations[-1] if self.iterations else self._new()

    def _bar(self, at: int, total: int, rate: str, unit: str) -> None:
        last = self.iterations[-1] if self.iterations else None
        if last is None or last.total not in (0, total) or at < last.at or last.total_s:
            last = self._new()
        last.total, last.at = total, at
        if rate != "?" and float(rate) > 0 and at <= total:
            last.rates.setdefault(at, float(rate) if unit == "s/it" else 1 / float(rate))

    def _args(self, text: str) -> None:
        try:
            self.args = dict(json.loads(text))
        except (ValueError, RecursionError):
            raise FileError("server_args cannot be read as JSON; is a line cut?") from None

    def _asking(self, _: str) -> None:
        self.sampling = True

    def _warm(self, _: str) -> None:
        self.warming = True

    def _warmed(self, seconds: str) -> None:
        warm = self._last() if self.iterations and self._last().warmup else self._new()
        warm.total_s, self.warming, self.errors = float(seconds), False, []

    def _average(self, seconds: str) -> None:
        last = self._last()
        last = self._new() if last.average_s or last.warmup or last.total_s else last
        last.average_s = float(seconds)

    def _stage(self, name: str, seconds: str) -> None:
        last = self.iterations[-1] if self.iterations else None
        decodes = "Decod" in name
        if last is None or last.warmup or not decodes and "DenoisingStage" in last.stages_s:
            self.before[name] = float(seconds)
        else:
            last.stages_s[name] = float(seconds)

    def _made(self, seconds: str) -> None:
        self._last().total_s, self.errors, self.status = float(seconds), [], ""

    def _memory(self, reserved: str, allocated: str) -> None:
        peaks = {"reserved_bytes": reserved, "allocated_bytes": allocated}
        self._last().memory = {key: round(float(gib) * 2**30) for key, gib in peaks.items()}

    def _named(self, version: str) -> None:
        self.version = self.version or version


def _lines(path: Path) -> Iterator[str]:
    """A log's lines without control characters; a progress bar's are parted by returns."""
    with path.open("rb") as file:
        while data := file.readline(LONGEST_LINE):
            for part in data.decode("utf-8", "replace").rstrip("\n").split("\r"):
                yield RANK.sub("", CONTROL.sub("", part))


def import_run(
    name: str, log: Path, params: Path, out: Path, *, dump: Path | None = None,
    machine: Path | None = None, traces: Sequence[Path] = (), nsys: Path | None = None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Make the record of a run of SGLang below `out`; returns its path and itself.

    Raises
    ------
    FileError, JobError
        Naming the file and what contradicts the params file; then nothing is written.
    """
    job = load_job(params)
    job = job_from_mapping({**job.model_dump(exclude_unset=True), "name": name, "scale": "a14b"},
                           "NAME")  # fmt: skip
    place = _place(machine)
    try:
        said = Log(log)
        shift = _check(said, job, params)
        notes = _kinds(said, job, params)
    except OSError as error:
        raise FileError(f"{log}: cannot be read ({error.strerror or error})") from error
    except FileError as error:
        raise FileError(f"{log}: {error}") from None
    began = _take_dump(said, dump, job, params) if dump else ""
    if place.count and place.count < job.num_gpus:
        raise FileError(f"{machine}: count is {place.count}, and {params} has {job.num_gpus} GPUs")
    version = said.version or place.sglang or ""
    source = f"sglang {version}".strip()
    record = new_record(job, source=source, notes=notes, **_outcome(said, job),
                        machine=_machine(place, source), wall_s=0.0,
                        software={"torch": place.torch, "sglang": version or None})  # fmt: skip
    _fill(record, said, job, shift)
    year = datetime.fromtimestamp(log.stat().st_mtime, UTC).year
    record["started_at"] = began or (f"{year}-{said.times[0]}" if said.times else f"{year}-01-01")
    stem = f"{record['job_hash']}-{source.replace(' ', '-')}"
    path = record_path(out, record["machine"]["slug"], name, stem)
    files = [*enumerate(traces), *([("nsys", nsys)] if nsys else [])]
    found = [(read(file).facts["rank"], rank, file) for rank, file in files]  # all are traces
    for known, rank, file in found:
        record["traces"].append(_kept(file, rank if known is None else known, path))
    write_record(record, path)
    return path, record


def _place(path: Path | None) -> Place:
    if path is None:
        return Place()
    try:
        content = yaml.safe_load(path.read_bytes())
        return Place(**{str(key).lower(): value for key, value in (content or {}).items()})
    except (OSError, yaml.YAMLError, AttributeError, ValidationError) as error:
        keys = ", ".join(Place.model_fields)
        raise FileError(f"{path}: is not usable ({error}); it takes {keys}") from None


def _check(said: Log, job: Job, params: Path) -> float:
    """Hold what the log says against the params file; return the flow shift."""
    args, asked = said.args, said.asked
    own = args.get("pipeline_config") if isinstance(args.get("pipeline_config"), dict) else {}
    loaded = asked.get("flow_shift", (own or {}).get("flow_shift"))
    wanted = job.flow_shift or resolve_model(job.model_path).flow_shift
    steps = asked.get("infer_steps") or max(
        (it.total for it in said.iterations if not it.warmup and it.total > 1), default=None)  # fmt: skip
    pairs = {
        "flow_shift": (loaded, wanted), "num_inference_steps": (steps, job.num_inference_steps),
        "num_gpus": (args.get("num_gpus"), job.num_gpus), "engine": (_engine(args), job.engine),
        **{key: (asked.get(key), getattr(job, key)) for key in ("width", "height", "num_frames")},
        "dit_offload_prefetch_size": (
            args.get("dit_offload_prefetch_size") if job.engine == "layerwise" else None,
            job.dit_offload_prefetch_size),
    }  # fmt: skip
    problems = [f"{key} is {there} in the log and {here} in {params}; give the params file of"
                " this run" for key, (there, here) in pairs.items() if there not in (None, here)]  # fmt: skip
    if problems:
        raise FileError("\n  ".join(problems))
    if not args and not said.iterations and not said.errors:
        raise FileError("holds nothing that SGLang prints: no server_args, steps or traceback")
    return float(loaded or wanted)


def _engine(args: dict[str, Any]) -> str | None:
    """The engine that the resolved flags amount to; None where the log has none."""
    if not args:
        return None
    parts = {"dit", "transformer", "all"}

    def chosen(key: str, listed: str) -> bool:
        return bool(args.get(key)) or bool(parts & {*map(str, args.get(listed) or ())})

    engines = {
        "layerwise": chosen("dit_layerwise_offload", "layerwise_offload_components"),
        "fsdp": bool(args.get("use_fsdp_inference")),
        "swap": chosen("dit_cpu_offload", "cpu_offload_components"), "resident": True,
    }  # fmt: skip
    return next(engine for engine, on in engines.items() if on)


def _kinds(said: Log, job: Job, params: Path) -> list[str]:
    """Check the number of iterations, and say what is to know; see :func:`_kind_of`."""
    planned = _planned(said, job)
    ran = [it for it in said.iterations if not it.warmup]
    if len(ran) > len(planned):
        raise FileError(f"holds {len(ran)} iterations, and {params} has {len(planned)} (warm-up,"
                        " clean, profiled); correct warmup_iterations or clean_iterations")  # fmt: skip
    notes = [] if said.version else ["the log does not name SGLang's version"]
    if len(ran) < len(planned):
        notes.append(f"the log holds {len(ran)} of {len(planned)} iterations")
    return notes


def _planned(said: Log, job: Job) -> list[Literal["warmup", "clean", "profiled"]]:
    """The kinds of iterations in their order, but for those that SGLang calls warm-up itself."""
    own = any(it.warmup for it in said.iterations)
    alone = len(said.iterations) == 1  # of a lone one nothing else would be of use
    kinds: list[Literal["warmup", "clean", "profiled"]] = ["clean"] * job.clean_iterations
    kinds += ["profiled"] if job.profile else []
    return kinds if own or alone else [*(["warmup"] * job.warmup_iterations), *kinds]  # type: ignore[list-item]


def _take_dump(said: Log, path: Path, job: Job, params: Path) -> str:
    """Give a perf dump's times and peaks to the iteration that it is of; return its time."""
    content = read_json(path, "give the file that --perf-dump-path named")
    try:
        dump = PerfDump.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise FileError(f"{path}: is no perf dump of SGLang 0.5.9 to 0.5.23: {error}") from None
    seconds = [each.duration_ms / 1e3 for each in dump.denoise_steps_ms]
    if len(seconds) != job.num_inference_steps:
        raise FileError(f"{path}: has {len(seconds)} steps, and {params} num_inference_steps"
                        f" {job.num_inference_steps}; give the dump of this run")  # fmt: skip
    ran = [it for it in said.iterations if not it.warmup] or [said._new()]
    apart = {n: abs(it.average_s / fmean(seconds) - 1) for n, it in enumerate(ran) if it.average_s}
    best = min(apart, key=lambda n: apart[n], default=len(ran) - 1)
    if apart and apart[best] > 0.05:
        raise FileError(f"{path}: a step takes {fmean(seconds):.3f} s in it, and in the log"
                        f" {ran[best].average_s} s; give the dump of this run")  # fmt: skip
    ran[best].dumped = [round(each, 6) for each in seconds]
    ran[best].stages_s |= {stage.name: stage.duration_ms / 1e3 for stage in dump.steps}
    if dump.total_duration_ms and ran[best].total_s is None:
        ran[best].total_s = dump.total_duration_ms / 1e3
    if peaks := dump.memory_checkpoints.values():
        ran[best].memory = {
            "reserved_bytes": round(max(peak.peak_reserved_mb for peak in peaks) * 2**20),
            "allocated_bytes": round(max(peak.peak_allocated_mb for peak in peaks) * 2**20),
        }
    return re.sub(r"[^\w:.+-]", "", dump.timestamp)[:40]


def _outcome(said: Log, job: Job) -> dict[str, str]:
    """Status, reason and hint: why a run ended that did not reach its end."""
    ran = [it for it in said.iterations if not it.warmup]
    whole = ran and ran[-1].denoised and not said.errors
    if whole or sum(it.total_s is not None for it in ran) >= len(_planned(said, job)):
        return {"status": "ok", "reason": "", "hint": ""}
    at = said.iterations[-1] if said.iterations else None
    where = f"the log ends at step {at.at} of {at.total or job.num_inference_steps}" if at else \
        "the log ends before the first step"  # fmt: skip
    memory = [line for line in said.errors if "OutOfMemory" in line or "out of memory" in line]
    status = "oom" if memory else said.status or "failed"
    # The first one out of memory says how much was asked for, and the last line ended the run.
    lines = dict.fromkeys([*memory[:1], *said.errors[-1:], where])
    return {"status": status, "reason": "; ".join(lines)[:LONGEST_REASON],
            "hint": "Read SGLang's log, run it again and import that log."}  # fmt: skip


def _machine(place: Place, source: str) -> dict[str, Any]:
    """The machine's class: never one of ours, as SGLang's runs are compared among themselves."""
    count = f"{place.count}x " if place.count else ""
    board = f"{count}{place.gpu or 'unknown GPU'}"
    name = ", ".join(filter(None, [board, place.interconnect, source]))
    return {
        "class": name, "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:120],
        "device": "cuda", "gpu_name": place.gpu, "gpu_count": place.count or 0,
        "interconnect": place.interconnect, "driver": place.driver, "node": place.node,
    }  # fmt: skip


def _fill(record: dict[str, Any], said: Log, job: Job, shift: float) -> None:
    """Model, schedule, engine and iterations of a record."""
    settings = resolve_model(job.model_path)
    ratio = said.args.get("boundary_ratio") or job.boundary_ratio or settings.boundary_ratio
    timesteps = [float(t) for t in flow_schedule(job.num_inference_steps, shift).timesteps]
    planned = switch_step(timesteps, ratio)
    model = {key: value for key, value in asdict(settings).items() if key != "steps"}
    latent = ((job.num_frames - 1) // 4 + 1) * (job.height // 16) * (job.width // 16)
    record["model"] = {
        **model, **(A14B if settings.config == "Wan2_2_T2V_A14B_Config" else {}),
        "tokens": latent, "height": job.height, "width": job.width, "num_frames": job.num_frames,
        "flow_shift": shift, "boundary_ratio": ratio, "weights": "checkpoint",
    }  # fmt: skip
    layers = prefetch_layers(job.dit_offload_prefetch_size, A14B["num_layers"])
    record["sglang"] = {**asdict(job.sglang()), "prefetch_layers": layers}
    record["engine"] = {"name": job.engine, "counters_derived": False,
                        "prefetch": layers if job.engine == "layerwise" else None}  # fmt: skip
    record["schedule"] = {"timesteps": timesteps, "switch_step": planned}
    kinds: Iterator[str] = iter(_planned(said, job))
    for it in said.iterations:
        kind = "warmup" if it.warmup else next(kinds)
        seconds = it.steps if len(it.steps) == len(timesteps) else []
        switch = _seen(seconds) if job.engine == "swap" and kind != "warmup" else planned
        record["iterations"].append({
            "kind": kind,
            "steps": [{"index": n, "timestep": timesteps[n], "seconds": [each], "expert":
                       "low_noise" if switch is not None and n >= switch else "high_noise"}
                      for n, each in enumerate(seconds)],
            "decode_s": next((s for name, s in it.stages_s.items() if "Decod" in name), None),
            "total_s": it.total_s, "average_step_s": it.average_s, "stages_s": it.stages_s,
            "memory": [it.memory, *([None] * (job.num_gpus - 1))] if it.memory else None,
            "steps_from": "perf dump" if it.dumped else "progress bar" if seconds else None,
        })  # fmt: skip


def _seen(seconds: list[float]) -> int | None:
    """Where the times say that an expert came: the longest step but the first, if it is a spike."""
    late = range(1, len(seconds))
    longest = max(late, key=lambda n: seconds[n], default=0)
    return longest if longest and seconds[longest] > SPIKE * median(seconds[1:]) else None


def _kept(file: Path, rank: int | str, record: Path) -> dict[str, Any]:
    """Copy a trace beside the record, gzipped unless it is an export of Nsight Systems."""
    name = "nsys.sqlite" if rank == "nsys" else f"rank{rank}.json.gz"
    path = record.parent / "traces" / record.stem / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, path.open("wb") as target:
        plain = name.endswith(".gz") and source.read(2) != b"\x1f\x8b"
        source.seek(0)
        with gzip.GzipFile("", "wb", fileobj=target, mtime=0) if plain else target as sink:
            shutil.copyfileobj(source, sink)
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return {"rank": rank, "path": path.relative_to(record.parent).as_posix(),
            "bytes": path.stat().st_size, "sha256": digest}  # fmt: skip
