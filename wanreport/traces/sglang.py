"""``wanreport import``: a run of SGLang's diffusion models, from its log, as a record beside ours.

What SGLang 0.5.9 and 0.5.23 print is read by :mod:`wanreport.traces.log`. Runs of SGLang are
compared among themselves: their record names the source, as do its folder and its file.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from wanreport.jobs.job import Job, job_from_mapping, load_job
from wanreport.jobs.schedule import flow_schedule, switch_step
from wanreport.jobs.sglang import resolve, resolve_model
from wanreport.records.files import FileError, parse_record, read_json
from wanreport.records.record import new_record, record_path, write_record
from wanreport.traces import copies, read
from wanreport.traces.log import Iteration, Log

SPIKE = 1.5  # a step as long as so many others is one at which a whole expert moved
A14B = {"num_layers": 40, "block_bytes": 702_870_528, "outer_bytes": 520_530_176,
        "expert_bytes": 28_635_351_296}  # fmt: skip
Some = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Time = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Place(BaseModel, extra="forbid"):
    """Where a run was, which a log does not say: the file of ``--machine``."""

    gpu_name: str | None = Field(None, alias="gpu")
    gpu_count: int = Field(0, ge=1, alias="count")
    interconnect: str | None = None
    driver: str | None = None
    node: str | None = None
    sglang: str | None = None  # its version, where the log does not name it


class _Timed(BaseModel):
    name: str = ""
    duration_ms: Time


class _Peak(BaseModel):
    reserved: Some = Field(alias="peak_reserved_mb")
    allocated: Some = Field(alias="peak_allocated_mb")


class PerfDump(BaseModel):
    """What is read of a file of ``--perf-dump-path``."""

    timestamp: datetime | None = None
    total_duration_ms: Time | None = None
    steps: list[_Timed] = []
    denoise_steps_ms: Annotated[list[_Timed], Field(min_length=1, max_length=1000)]
    memory_checkpoints: dict[str, _Peak] = {}


def import_run(
    name: str, log: Path, params: Path, out: Path, *, dump: Path | None = None,
    machine: Path | None = None, traces: Sequence[Path] = (), nsys: Path | None = None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Make the record of a run of SGLang below `out`; returns its path and itself.

    Traces are copied beside it; what they hold of copies is in the record. Raises FileError or
    JobError, naming the file and what contradicts the params file; then nothing is written.
    """
    given = load_job(params).model_dump(exclude_unset=True) | {"name": name, "scale": "a14b"}
    job, said = job_from_mapping(given, "NAME"), Log(log)
    try:
        content = yaml.safe_load(machine.read_bytes()) if machine else {}
        place = Place(**{str(key).lower(): value for key, value in content.items()})
        if 0 < place.gpu_count < job.num_gpus:
            raise ValueError(f"count is {place.gpu_count}, and {params} has {job.num_gpus} GPUs")
    except (OSError, yaml.YAMLError, AttributeError, ValueError) as error:
        keys = ", ".join(each.alias or key for key, each in Place.model_fields.items())
        raise FileError(f"{machine}: is not usable ({error}); it takes {keys}") from None
    shift = _checked(said, job, f"{log}:", params)
    began = _dumped(said, dump, job, params) if dump else None
    if began is None:
        began = datetime.fromtimestamp(log.stat().st_mtime, UTC)
        with suppress(ValueError):  # SGLang logs no year, and not every line has a time
            began = datetime.strptime(f"{began.year}-{said.began}", "%Y-%m-%dT%H:%M:%S")
    began = began.replace(tzinfo=began.tzinfo or UTC).astimezone(UTC)
    version = said.version or place.sglang
    source = f"sglang {version or ''}".strip()
    boards = f"{place.gpu_count}x " * bool(place.gpu_count) + (place.gpu_name or "unknown GPU")
    board = ", ".join(filter(None, [boards, place.interconnect, source]))
    slug = re.sub(r"[^a-z0-9]+", "-", board.lower()).strip("-")[:120]
    path = record_path(out, slug, name, f"{job.hashes()[0]}-{source.replace(' ', '-')}")
    kept = {file: _traced(said, job, file, number, path.stem)
            for number, file in enumerate([*traces, nsys] if nsys else traces)}  # fmt: skip
    record = new_record(
        job, source=source, started_at=began.isoformat(timespec="seconds"),
        **_filled(said, job, shift), **_outcome(said, job, params),
        machine={"class": board, "slug": slug, "device": "cuda",
                 **place.model_dump(exclude={"sglang"})},
        software={"torch": "", "sglang": version}, traces=[*kept.values()],
    )  # fmt: skip
    parse_record(path, record)
    for file, trace in kept.items():
        target = path.parent / trace["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return write_record(record, path), record


def _checked(said: Log, job: Job, log: str, params: Path) -> float:
    """Hold what the log says against the params file; return the flow shift."""
    args, asked, own = said.args, said.asked, said.args.get("pipeline_config")
    loaded = asked.get("flow_shift", own.get("flow_shift") if isinstance(own, dict) else None)
    wanted = job.flow_shift or resolve_model(job.model_path).flow_shift
    ran = [it for it in said.iterations if not it.warmup]
    steps = asked.get("infer_steps") or max((it.total for it in ran), default=0) or None
    # The resolved flags; 0.5.23 also lists components.
    layerwise, cpu = (
        bool(args.get(f"dit_{way}_offload"))
        or bool({"dit", "transformer", "all"} & {*(args.get(f"{way}_offload_components") or ())})
        for way in ("layerwise", "cpu")
    )
    fsdp = bool(args.get("use_fsdp_inference"))
    engine = resolve(layerwise, cpu, fsdp, 0).engine or "fsdp without CPU offload"
    pairs = {
        "flow_shift": (loaded, wanted), "num_gpus": (args.get("num_gpus"), job.num_gpus),
        "num_inference_steps": (steps, job.num_inference_steps),
        **{key: (asked.get(key), getattr(job, key)) for key in ("width", "height", "num_frames")},
        "engine": (engine if args else None, job.engine),
        (key := "dit_offload_prefetch_size"):
            (args.get(key) if job.engine == "layerwise" else None, job.dit_offload_prefetch_size),
    }  # fmt: skip
    problems = [f"{log} {key}: is {there}, and {here} in {params}; give this run's params file"
                for key, (there, here) in pairs.items() if there not in (None, here)]  # fmt: skip
    most = job.warmup_iterations + job.clean_iterations + job.profile
    if len(ran) > most:
        what = f"are {len(ran)}, and {params} has {most} (warm-up, clean, profiled)"
        problems.append(f"{log} iterations: {what}; correct its clean_iterations")
    if not args and not said.iterations and not said.errors:
        problems.append(f"{log} has nothing that SGLang prints: no server_args, step or traceback")
    if problems:
        raise FileError("\n".join(problems))
    return float(loaded or wanted)


def _dumped(said: Log, path: Path, job: Job, params: Path) -> datetime | None:
    """Give a perf dump's times and peaks to the iteration that it is of; return its time."""
    try:
        dump = PerfDump.model_validate(read_json(path, "give what --perf-dump-path named"))
    except ValidationError as error:
        raise FileError(f"{path}: is not a perf dump of SGLang 0.5.9 to 0.5.23: {error}") from None
    seconds = [each.duration_ms / 1e3 for each in dump.denoise_steps_ms]
    mean, ran = fmean(seconds), [it for it in said.iterations if not it.warmup]
    best = min(ran or [said.iteration()],
               key=lambda it: abs(it.average_s / mean - 1) if it.average_s else 0.04)  # fmt: skip
    for what, there, here in (("steps", len(seconds), job.num_inference_steps),
                              ("seconds a step", mean, best.average_s)):  # fmt: skip
        if here and abs(there / here - 1) > 0.05 * (what != "steps"):
            raise FileError(f"{path}: has {there:g} {what}, and {params} and the log {here:g}; give"
                            " the dump of this run")  # fmt: skip
    best.given, best.steps_from = [round(each, 6) for each in seconds], "perf dump"
    best.stages_s |= {stage.name: stage.duration_ms / 1e3 for stage in dump.steps}
    best.total_s = best.total_s or (dump.total_duration_ms or 0) / 1e3 or None
    if peaks := dump.memory_checkpoints.values():
        best.memory = {f"{kind}_bytes": round(2**20 * max(getattr(peak, kind) for peak in peaks))
                       for kind in _Peak.model_fields}  # fmt: skip
    return dump.timestamp


def _traced(said: Log, job: Job, file: Path, number: int, stem: str) -> dict[str, Any]:
    """What a record says of a trace: where it lies, and its copies (of the first device)."""
    trace = read(file)
    facts, steps, last = trace.facts, trace.steps, said.iterations[-1:]  # it is of the last one
    if last and not last[0].steps and len(steps) == job.num_inference_steps:
        last[0].given, last[0].steps_from = [*(steps.end_ns - steps.start_ns) / 1e9], "trace"
    rank = number if facts["rank"] is None else facts["rank"]
    whole = copies.summary([trace]).drop(columns=["file", "rank", "step", "size_bytes"])
    with file.open("rb") as data:
        zipped = ".gz" * (data.peek(2)[:2] == b"\x1f\x8b")
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    form = f"rank{rank}.json{zipped}" if facts["format"] == "Kineto" else "nsys.sqlite"
    return {"rank": rank, "path": f"traces/{stem}/{form}", "bytes": facts["size_bytes"],
            "sha256": digest, "steps": int(steps.complete.sum()),
            "contention": copies.contention(next(copies.devices(trace))[1]),
            **json.loads(whole.iloc[0].to_json())}  # fmt: skip


def _outcome(said: Log, job: Job, params: Path) -> dict[str, str]:
    """Status and reason: why a run ended that did not reach its end; and what to do."""
    last = next((it for it in reversed(said.iterations) if not it.warmup), Iteration())
    denoised = last.average_s or last.given or last.total and last.at == last.total
    if denoised and (last.total_s or not said.errors):  # what fails after that costs nothing
        return {"status": "ok"}
    at = f"at step {said.iterations[-1].at} of {job.num_inference_steps}" if said.iterations else \
        "before the first step"  # fmt: skip
    memory = [line for line in said.errors if "OutOfMemory" in line or "out of memory" in line]
    # The first one out of memory says how much was asked for, and the last line ended the run.
    lines = dict.fromkeys([*memory[:1], *said.errors[-1:], f"the log ends {at}"])
    hint = f"Run SGLang again, then: wanreport import {job.name} --log FILE --params {params}"
    status = "oom" if memory else said.status or "failed"
    return {"status": status, "reason": "; ".join(lines), "hint": hint}


def _filled(said: Log, job: Job, shift: float) -> dict[str, Any]:
    """Model, schedule, engine and iterations of a record."""
    settings = resolve_model(job.model_path)
    ratio = said.args.get("boundary_ratio") or job.boundary_ratio or settings.boundary_ratio
    timesteps = [float(t) for t in flow_schedule(job.num_inference_steps, shift).timesteps]
    planned = switch_step(timesteps, ratio)
    layers = job.prefetch(A14B["num_layers"])
    # Kinds follow the params file, but for what SGLang itself calls warm-up. A lone iteration
    # is a clean one, as of nothing else it would be of use.
    warm = any(it.warmup for it in said.iterations) or len(said.iterations) == 1
    kinds = chain(["warmup"] * (0 if warm else job.warmup_iterations),
                  ["clean"] * job.clean_iterations, repeat("profiled"))  # fmt: skip
    iterations = []
    for it in said.iterations:
        kind = "warmup" if it.warmup else next(kinds)
        seconds = it.steps if len(it.steps) == len(timesteps) else []
        switch = planned
        if job.engine == "swap" and kind != "warmup":  # the longest step but the first, if far off
            late = {step: n for n, step in enumerate(seconds[1:], 1)}
            switch = late[max(late)] if late and max(late) > SPIKE * median(seconds[1:]) else None
        iterations.append({
            "kind": kind,
            "steps": [{"index": n, "timestep": timesteps[n], "seconds": [each], "expert":
                       "high_noise" if switch is None or n < switch else "low_noise"}
                      for n, each in enumerate(seconds)],
            "decode_s": next((s for name, s in it.stages_s.items() if "Decod" in name), None),
            "total_s": it.total_s, "average_step_s": it.average_s, "stages_s": it.stages_s,
            "memory": [it.memory, *([None] * (job.num_gpus - 1))] if it.memory else None,
            "steps_from": it.steps_from if seconds else None,
        })  # fmt: skip
    return {
        "model": {
            **asdict(settings), **(A14B if "A14B" in settings.config else {}),
            "tokens": ((job.num_frames - 1) // 4 + 1) * (job.height // 16) * (job.width // 16),
            "height": job.height, "width": job.width, "num_frames": job.num_frames,
            "flow_shift": shift, "boundary_ratio": ratio, "weights": "of the checkpoint",
        },
        "schedule": {"timesteps": timesteps, "switch_step": planned},
        "sglang": {**asdict(job.sglang()), "prefetch_layers": layers},
        "engine": {"name": job.engine, "prefetch": layers if job.engine == "layerwise" else None},
        "iterations": iterations,
    }  # fmt: skip
