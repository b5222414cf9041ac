"""Predictions as files: made before a run, never changed, judged by what was measured later.

``predictions/<GPU model>-<n>gpu-<interconnect>.json`` holds what :mod:`wanreport.analysis.scaling`
predicts for jobs on so many GPUs, all that it was computed from, and when. What is predicted later
for other jobs on such a machine goes beside it, with a number at the end of its name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis.compare import overhead
from wanreport.analysis.frames import Frames
from wanreport.analysis.rows import path_of
from wanreport.analysis.scaling import ASSUMED, DTYPE, INTERCONNECTS, Known, predict_job
from wanreport.analysis.scaling import PredictionError as PredictionError
from wanreport.jobs.job import Job, resolve_job
from wanreport.records.files import FileError, read_json
from wanreport.records.project import git_state
from wanreport.records.record import EARLIER, RESULTS_DIRS, replace_file
from wanreport.words import gigabytes, ratio, seconds

FOLDER = "predictions"
STREAM_JOB = "params/campaign/480p-1gpu-stream.yaml"
TOLERANCE = 0.1
"""A prediction holds if the measured step is within this share of it: the rule since the first."""
MEASURED = ["kind", "value", "tokens", "ranks", "at", "path", "sha256"]
MACHINE = ["gpu", "gpus", "interconnect", "made_at"]
TIMES = ["low_s", "high_s", "first_s", "switch_s", "total_s", "h2d_bytes", "all_to_all_bytes"]
TOLD = [*MACHINE, "job", "run", "engine", "prefetch", "cfg_parallel", "height", "tokens",
        "predicted_s", "predicted_overhead", *TIMES]  # fmt: skip


def predict(
    root: Path, frames: Frames, jobs: Sequence[Job], gpu: str, interconnect: str
) -> dict[str, Any]:
    """Predict jobs on one number of GPUs; return the file's content.

    Raises PredictionError if a job was measured on such a machine, or if measurements are missing.
    """
    full = [resolve_job(job, gpus=job.num_gpus) for job in jobs]
    (number,) = {job.num_gpus for job in full}
    here = _runs_on(frames.full_scale(), gpu, interconnect)
    past = dict(zip(here.job_hash, here.file, strict=True))
    for job in full:
        if file := past.get(job.hashes()[0]):
            raise PredictionError(f"{job.name}: was measured already ({file}); leave it out")
    known = gather(root, frames, gpu, number, interconnect)
    assumed = [interconnect] * (known.base.ranks == 1) + ["swap"] * (not known.of("swap"))
    return {
        "schema": 1, "gpu": gpu, "gpus": number, "interconnect": interconnect,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"), **git_state(),
        "jobs": {job.name: predict_job(known, job, interconnect) for job in full},
        "assumed": [ASSUMED[each] for each in assumed],
        "measured": known.measured.to_dict("records"),
    }  # fmt: skip


def gather(root: Path, frames: Frames, gpu: str, below: int, interconnect: str) -> Known:
    """Collect what committed runs tell of a GPU model with fewer GPUs than ``below``.

    Those are eager, by Ulysses alone, the latest, and of several GPUs on the ``interconnect``.
    Raises PredictionError if no windows are known.
    """
    here, rows, model = _runs_on(frames.full_scale(), gpu, interconnect), [], {}
    here = here[(here.gpus < below) & ~here.compiled & ~here.cfg_parallel]
    others = "|".join([f"/{EARLIER}/", *(f"^{folder}/" for folder in RESULTS_DIRS[1:])])
    here = here[~here.file.str.contains(others)]
    for row in here.sort_values(["source", "file"], kind="stable").itertuples():
        data, job = (root / row.file).read_bytes(), row.source == "job"
        if job:
            record = json.loads(data)
            if record["job"]["dtype"] != DTYPE:
                continue
            model = record["model"]
        step, values = row.step_s, {"windows": row.plan_inputs}
        if row.pageable_rates:
            values["pageable"] = [rate * 1e9 for rate in row.pageable_rates]
        if row.engine == "resident" and not row.again and step > 0:
            values["resident"] = [step, int(row.blocks), int(row.branches)]
        if row.engine == "swap" and job and row.switch_s > 0:
            values["swap"] = [max(spike - step, 0.0) for spike in (row.first_s, row.switch_s)]
        sha256 = hashlib.sha256(data).hexdigest()
        rows += [[kind, value, row.tokens, row.gpus, row.started, row.file, sha256]
                 for kind, value in values.items() if value]  # fmt: skip
    known = Known(gpu, model, pd.DataFrame(rows, columns=MEASURED).sort_values("at", kind="stable"))
    if not model or not known.of("windows", several=False):
        command = f"wanreport measure --results {RESULTS_DIRS[0]} {STREAM_JOB}"
        raise PredictionError(f"{gpu}: no record of stream on one GPU; on it run `{command}`")
    return known


def _runs_on(runs: pd.DataFrame, gpu: str, interconnect: str) -> pd.DataFrame:
    """Pick our runs on a GPU model, on one GPU or over just this interconnect."""
    wired = runs.machine_class.str.contains(INTERCONNECTS[interconnect], regex=False)
    return runs[(runs.gpu_model == gpu) & (runs.program == "") & ((runs.gpus == 1) | wired)]


def write(root: Path, content: Mapping[str, Any]) -> Path:
    """Write a prediction's file, beside those of other jobs on such a machine.

    Raises PredictionError if one of its jobs was predicted for this machine: that is never changed.
    """
    same = [each for each in load(root) if all(each[key] == content[key] for key in MACHINE[:3])]
    new = {job["job_hash"] for job in content["jobs"].values()}
    model = re.sub(r"[^a-z0-9]+", "-", content["gpu"].lower()).strip("-")
    slug = f"{model}-{content['gpus']}gpu-{content['interconnect']}"
    for each in same:
        if here := [name for name, job in each["jobs"].items() if job["job_hash"] in new]:
            raise PredictionError(f"{slug}.json: {here[0]} was predicted already; leave it out")
    path = root / FOLDER / f"{slug}{f'-{len(same) + 1}' if same else ''}.json"
    replace_file(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def load(root: Path) -> list[dict[str, Any]]:
    """Read all predictions; raises FileError naming a file that is none."""
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        content = read_json(path)
        if not isinstance(content, dict) or not {*MACHINE, "jobs"} <= set(content):
            raise FileError(f"{path}: is not a prediction; restore it from git")
        found.append(content)
    return found


def lines(content: Mapping[str, Any]) -> list[str]:
    """Write a prediction as lines of text."""
    jobs = pd.DataFrame.from_dict(content["jobs"], orient="index")
    written = {"step_s": seconds, "overhead": ratio, **dict.fromkeys(TIMES[:5], seconds),
               **dict.fromkeys(TIMES[5:], gigabytes)}  # fmt: skip
    measured = pd.DataFrame(content["measured"])[["kind", "tokens", "ranks", "path"]]
    where = f"{content['gpu']}, {content['gpus']} GPUs, {INTERCONNECTS[content['interconnect']]}"
    return [where, jobs.to_string(columns=[*written], formatters=written), "from",
            measured.to_string(index=False), *content["assumed"]]  # fmt: skip


def judged(frames: Frames, predictions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Hold every prediction against the latest `run` that was made after it on such a machine.

    `error` is the predicted step over the measured one less 1; `held`, whether that one is within
    :data:`TOLERANCE` of the prediction.
    """
    ran, rows = overhead(frames), []
    ran = ran.assign(at=pd.to_datetime(ran.started, utc=True, format="ISO8601")).sort_values("at")
    for content in predictions:
        here = _runs_on(ran, content["gpu"], content["interconnect"])
        here = here[here["at"] > pd.Timestamp(content["made_at"])]
        last = dict(zip(here.job_hash, here.run, strict=True))
        rows += [
            {"cfg_parallel": False, **job, "job": name, "run": last.get(job["job_hash"]),
             "predicted_s": job["step_s"], "predicted_overhead": job["overhead"],
             **{key: content[key] for key in MACHINE}}
            for name, job in content["jobs"].items()
        ]  # fmt: skip
    table = pd.DataFrame(rows, columns=TOLD)
    seen = ran.reindex(table.run)[["step_s", "overhead"]].set_axis(table.index)
    error = table.predicted_s / seen.step_s - 1
    return table.assign(
        interconnect=table.interconnect.map(INTERCONNECTS).map(path_of), measured_s=seen.step_s,
        overhead=seen.overhead, error=error, held=(1 / (1 + error) - 1).abs() <= TOLERANCE,
    )  # fmt: skip
