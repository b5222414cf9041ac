"""Predictions as files: made before a run, never changed, shown beside what was measured.

``predictions/<GPU model>-<n>gpu-<interconnect>.json`` holds what :mod:`wanreport.scaling` predicts
for jobs on so many GPUs, all that it was computed from, and when.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .answers import is_full_scale, iterations
from .job import Job, resolve_job
from .local import Found, git_state, write_atomically
from .scaling import INTERCONNECTS, PredictionError, gather, predict_job
from .tables import counted, gigabytes, overhead, seconds

FOLDER = "predictions"
SCHEMA = 1


def predict(
    root: Path, jobs: Sequence[Job], gpu: str, interconnect: str, found: Iterable[Found]
) -> dict[str, Any]:
    """Predict jobs on one number of GPUs; return the file's content.

    Raises
    ------
    PredictionError
        If a job was measured already on such a machine, or if measurements are missing.
    """
    full = [resolve_job(job, gpus=job.num_gpus) for job in jobs]
    (number,) = {job.num_gpus for job in full}
    wire = INTERCONNECTS[interconnect]
    here = {
        record["job_hash"]: path
        for path, record in found
        if (record["machine"].get("gpu_name"), record["machine"].get("interconnect")) == (gpu, wire)
        and is_full_scale(record) and iterations(record)
    }  # fmt: skip
    for job in full:
        if past := here.get(job.hashes()[0]):
            raise PredictionError(
                f"{job.name}: was measured on {gpu} over {wire} already ({past}); a prediction is"
                " made before the run, so leave this job out"
            )
    known = gather(root, gpu, number, interconnect)
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
    """Write a prediction's file.

    Raises
    ------
    PredictionError
        If there is one already: it stays as it is.
    """
    path = root / FOLDER / f"{_slug(content)}.json"
    if path.exists():
        raise PredictionError(
            f"{path.relative_to(root)}: was made at {_load(path)['made_at']} and is never changed,"
            " as it must stand beside what is measured later"
        )
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
        if (content["schema"], _slug(content)) != (SCHEMA, path.stem):
            raise ValueError("it is of another schema or machine")
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise PredictionError(
            f"{path}: is no readable prediction ({error!r}); restore it from git"
        ) from None
    return content


def lines(content: Mapping[str, Any]) -> list[str]:
    """A prediction as lines of text."""
    rows = [("job", "steady step", "[range]", "to resident", "first", "switch", "all steps",
             "H2D/GPU", "H2D in all", "all-to-all/GPU")]  # fmt: skip
    for name, job in content["jobs"].items():
        times = [seconds(job[f"{key}_s"]) for key in ("step", "first", "switch", "total")]
        brought = job["h2d_bytes"]
        rows.append(
            (name, times[0], f"[{seconds(job['low_s'])}, {seconds(job['high_s'])}]",
             overhead(job["overhead"]), *times[1:], gigabytes(brought),
             gigabytes(brought * content["gpus"]), gigabytes(job["all_to_all_bytes"]))
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    where = f"{content['gpu']}, {counted(content['gpus'], 'GPU')}"
    said = dict.fromkeys(word for job in content["jobs"].values() for word in job["from"])
    return [
        f"{where}, {INTERCONNECTS[content['interconnect']]}",
        *("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
          for row in rows),
        *(f"  {word}" for word in said),
    ]  # fmt: skip
