"""Predictions as files: made before a run, never changed, judged by what was measured later.

``predictions/<GPU model>-<n>gpu-<interconnect>.json`` holds what :mod:`wanreport.analysis.scaling`
predicts for jobs on so many GPUs, all that it was computed from, and when. What is predicted later
for other jobs on such a machine goes beside it, with a number at the end of its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.frames import Frames
from wanreport.analysis.rows import path_of
from wanreport.analysis.scaling import predict_job
from wanreport.analysis.sources import INTERCONNECTS, PredictionError, gather, runs_on
from wanreport.jobs.job import Job, resolve_job
from wanreport.records.project import git_state, write_atomically
from wanreport.words import counted, gigabytes, ratio, seconds

FOLDER = "predictions"
SCHEMA = 1
TOLERANCE = 0.1
"""A prediction holds if the measured step is within this share of it: the rule since the first."""

SAME = ("engine", "prefetch", "height", "tokens", "low_s", "high_s", "first_s", "switch_s",
        "total_s", "h2d_bytes", "all_to_all_bytes")  # fmt: skip
"""What :func:`judged` takes from a prediction as it is."""


def predict(
    root: Path, frames: Frames, jobs: Sequence[Job], gpu: str, interconnect: str
) -> dict[str, Any]:
    """Predict jobs on one number of GPUs; return the file's content.

    Raises
    ------
    PredictionError
        If a job was measured already on such a machine, or if measurements are missing.
    """
    full = [resolve_job(job, gpus=job.num_gpus) for job in jobs]
    (number,) = {job.num_gpus for job in full}
    here = runs_on(frames.full_scale(), gpu, interconnect)
    past = {row.job_hash: row.file for row in here if row.source == "job"}
    for job in full:
        if job.hashes()[0] in past:
            raise PredictionError(
                f"{job.name}: was measured on {gpu} over {INTERCONNECTS[interconnect]} already"
                f" ({past[job.hashes()[0]]}); a prediction is made before the run, so leave this"
                " job out"
            )
    known = gather(root, frames, gpu, number, interconnect)
    return {
        "schema": SCHEMA,
        "gpu": gpu,
        "gpus": number,
        "interconnect": interconnect,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **git_state(),
        "jobs": {job.name: predict_job(known, job, interconnect) for job in full},
        "measured": [asdict(source) for source in known.sources],
    }


def write(root: Path, content: Mapping[str, Any]) -> Path:
    """Write a prediction's file, beside those of other jobs on such a machine.

    Raises
    ------
    PredictionError
        If one of its jobs was predicted for this machine already: that stays as it is.
    """
    slug, told = _slug(content), [each for each in load(root) if _slug(each) == _slug(content)]
    new = {job["job_hash"] for job in content["jobs"].values()}
    for each in told:
        if here := [name for name, job in each["jobs"].items() if job["job_hash"] in new]:
            raise PredictionError(
                f"{FOLDER}/{slug}.json: {here[0]} was predicted at {each['made_at']}, and that is"
                " never changed, as it must stand beside what is measured later; leave it out"
            )
    path = root / FOLDER / f"{slug}{f'-{len(told) + 1}' if told else ''}.json"
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def _slug(content: Mapping[str, Any]) -> str:
    model = re.sub(r"[^a-z0-9]+", "-", content["gpu"].lower()).strip("-")
    return f"{model}-{content['gpus']}gpu-{content['interconnect']}"


def files(root: Path) -> list[Path]:
    """The predictions that there are."""
    return sorted((root / FOLDER).glob("*.json"))


def load(root: Path) -> list[dict[str, Any]]:
    """Read all predictions; raises PredictionError naming a file that is none."""
    return [_load(path) for path in files(root)]


def _load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        stem = re.sub(r"-\d+$", "", path.stem)
        if (content["schema"], _slug(content)) != (SCHEMA, stem):
            raise ValueError("it is of another schema or machine")
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise PredictionError(
            f"{path}: cannot be read as a prediction ({error!r}); restore it from git"
        ) from None
    return content


def lines(content: Mapping[str, Any]) -> list[str]:
    """Write a prediction as lines of text."""
    rows = [
        {"job": name, "steady step": seconds(job["step_s"]),
         "range": f"[{seconds(job['low_s'])}, {seconds(job['high_s'])}]",
         "to resident": ratio(job["overhead"]), "first": seconds(job["first_s"]),
         "switch": seconds(job["switch_s"]), "all steps": seconds(job["total_s"]),
         "H2D/GPU": gigabytes(job["h2d_bytes"]),
         "all-to-all/GPU": gigabytes(job["all_to_all_bytes"])}
        for name, job in content["jobs"].items()
    ]  # fmt: skip
    said = dict.fromkeys(word for job in content["jobs"].values() for word in job["from"])
    where = f"{content['gpu']}, {counted(content['gpus'], 'GPU')}"
    return [
        f"{where}, {INTERCONNECTS[content['interconnect']]}",
        pd.DataFrame(rows).to_string(index=False),
        *(f"  {word}" for word in said),
    ]


def judged(frames: Frames, predictions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Hold every prediction against the runs that were made after it.

    Returns
    -------
    A row for each job predicted: gpu, gpus, interconnect, job, engine, prefetch, height, tokens,
    made_at; predicted_s with low_s and high_s, first_s, switch_s, total_s, predicted_overhead,
    h2d_bytes and all_to_all_bytes a step and GPU. Where its job ran later on such a machine also
    run, measured_s, overhead, ``error``, the predicted step over the measured one less 1,
    ``inside``, whether what was measured lies in the range, and ``held``, whether it is within
    :data:`TOLERANCE` of the prediction. Of several such runs the latest counts.
    """
    runs = compare.overhead(frames)
    rows = []
    for content in predictions:
        machine = {"gpu": content["gpu"], "gpus": content["gpus"], "made_at": content["made_at"],
                   "interconnect": path_of(INTERCONNECTS[content["interconnect"]])}  # fmt: skip
        here = runs_on(runs, content["gpu"], content["interconnect"])
        for name, job in content["jobs"].items():
            row = machine | {"job": name} | {key: job[key] for key in SAME}
            row |= {"predicted_s": job["step_s"], "predicted_overhead": job["overhead"],
                    "cfg_parallel": job.get("cfg_parallel", False)}  # fmt: skip
            later = [run for run in here if run.job_hash == job["job_hash"]
                     and _when(run.started) > _when(content["made_at"])]  # fmt: skip
            for run in sorted(later, key=lambda run: _when(run.started))[-1:]:
                step = run.step_s
                row |= {"run": run.run, "measured_s": step, "overhead": run.overhead,
                        "error": job["step_s"] / step - 1,
                        "inside": job["low_s"] <= step <= job["high_s"],
                        "held": abs(step / job["step_s"] - 1) <= TOLERANCE}  # fmt: skip
            rows.append(row)
    columns = ["gpu", "gpus", "interconnect", "job", *SAME, "cfg_parallel", "made_at",
               "predicted_s", "predicted_overhead", "run", "measured_s", "overhead", "error",
               "inside", "held"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def curve(frames: Frames, predictions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """List overhead over resident by number of GPUs, measured and predicted.

    Columns gpus, engine, name, overhead, kind ("measured" or "predicted"), gpu_model, interconnect,
    height. Measured are the runs of :func:`compare.headline`; of predictions the latest counts.
    """
    found = compare.headline(frames)
    keep = ["gpus", "engine", "name", "overhead", "gpu_model", "interconnect", "height"]
    parts = [found[keep].assign(kind="measured")] if "overhead" in found else []
    told = judged(frames, predictions)
    if len(told):
        told = told[(told.engine != "resident") & (told.prefetch.fillna(1) == 1)]
        told = told[~told.cfg_parallel.astype(bool)]
        told = told.rename(columns={"gpu": "gpu_model"}).assign(name=told.engine, kind="predicted")
        told["overhead"] = told.predicted_overhead
        told = told.sort_values("made_at").drop_duplicates([*keep[:2], *keep[4:]], keep="last")
        parts.append(told[[*keep, "kind"]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*keep, "kind"])
