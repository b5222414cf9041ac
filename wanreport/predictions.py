"""Predictions as files: made before a run, never changed, shown beside what was measured.

``predictions/<GPU model>-<n>gpu-<interconnect>.json`` holds what :mod:`wanreport.scaling` predicts
for jobs on so many GPUs, all that it was computed from, and when.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .answers import get, is_full_scale, iterations
from .job import Job, resolve_job
from .local import Found, git_state, write_atomically
from .scaling import INTERCONNECTS, PredictionError, gather, predict_job
from .tables import counted, gigabytes, percent, seconds

FOLDER = "predictions"
SCHEMA = 1
KEYS = {"schema", "gpu", "gpus", "interconnect", "made_at", "git_sha", "jobs", "measured"}
"""What each file has, among others."""


def gpu_models(found: Iterable[Found]) -> list[str]:
    """The GPU models of the records of the full model."""
    return sorted({str(r["machine"].get("gpu_name")) for _, r in found if is_full_scale(r)})


def predict(
    root: Path, jobs: Sequence[Job], gpu: str, interconnect: str, found: Sequence[Found]
) -> dict[str, Any]:
    """Predict jobs on one number of GPUs; return the file's content.

    Raises
    ------
    PredictionError
        If a job was measured already on such a machine, or if measurements are missing.
    """
    full = [resolve_job(job, gpus=job.num_gpus) for job in jobs]
    (number,) = {job.num_gpus for job in full}
    for job in full:
        if past := _measured(job, gpu, interconnect, found):
            raise PredictionError(
                f"{job.name}: was measured on {gpu} over {INTERCONNECTS[interconnect]} already"
                f" ({past}); a prediction is made before the run, so leave this job out"
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
        "measured": known.sources(),
    }


def _measured(job: Job, gpu: str, interconnect: str, found: Iterable[Found]) -> Path | None:
    """The full-scale record of a job on such a machine, if there is one."""
    for path, record in found:
        machine = record["machine"]
        wire = machine.get("interconnect") == INTERCONNECTS[interconnect] or job.num_gpus == 1
        here = machine.get("gpu_name") == gpu and wire and is_full_scale(record)
        if here and record["job_hash"] in job.hashes() and iterations(record):
            return path
    return None


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
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text)
    return path


def _slug(content: Mapping[str, Any]) -> str:
    model = re.sub(r"[^a-z0-9]+", "-", str(content["gpu"]).lower()).strip("-")
    return f"{model}-{content['gpus']}gpu-{content['interconnect']}"


def files(root: Path) -> list[Path]:
    """The predictions that there are."""
    return sorted((root / FOLDER).glob("*.json"))


def load(root: Path) -> list[dict[str, Any]]:
    """Read all predictions; raises PredictionError naming a file that is none."""
    return [_load(path) for path in files(root)]


def _load(path: Path) -> dict[str, Any]:
    mend = "it is never edited: restore it from git"
    try:
        content = json.loads(path.read_bytes())
        lacks = sorted(KEYS - set(content))
        fits = not lacks and content["schema"] == SCHEMA and _slug(content) == path.stem
    except (ValueError, TypeError, OSError) as error:
        raise PredictionError(f"{path}: is no readable prediction ({error}); {mend}") from None
    if not fits:
        what = f"lacks {', '.join(lacks)}" if lacks else "is of another schema or machine"
        raise PredictionError(f"{path}: {what}; {mend}")
    return dict(content)


def lines(content: Mapping[str, Any]) -> list[str]:
    """A prediction as lines of text."""
    rows = [("job", "steady step", "[range]", "to resident", "first", "switch", "all steps",
             "H2D/GPU", "H2D in all", "all-to-all/GPU")]  # fmt: skip
    for name, job in content["jobs"].items():
        rows.append(
            (name, seconds(job["step_s"]), f"[{seconds(job['low_s'])}, {seconds(job['high_s'])}]",
             over(job["overhead"]), seconds(job["first_s"]),
             seconds(job["switch_s"]), seconds(job["total_s"]), gigabytes(job["h2d_bytes"]),
             gigabytes(job["h2d_bytes"] * content["gpus"]), gigabytes(job["all_to_all_bytes"]))
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


def over(share: float | None) -> str:
    """An overhead in words, to a tenth of a per cent."""
    return percent(None if share is None else round(share, 3), signed=True)


def is_before(content: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether the prediction was made before the record's run began."""
    return datetime.fromisoformat(content["made_at"]) < datetime.fromisoformat(
        str(get(record, "started_at"))
    )
