"""Predicts what jobs take on more GPUs: ``python -m tools.predict [--write] [PARAMS ...]``.

What it writes to ``predictions/`` is made before a run and never changed; what is predicted later
for other jobs on such a machine goes beside it, with a number at the end of its name.
"""

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis import frames
from wanreport.analysis.predictions import (
    ASSUMED,
    FOLDER,
    INTERCONNECTS,
    MACHINE,
    TOLD,
    PredictionError,
    gather,
    load,
    predict_job,
    runs_on,
)  # fmt: skip
from wanreport.cli import ended
from wanreport.jobs.job import Job, resolve_job
from wanreport.measure.jobs import load_jobs
from wanreport.records.project import git_state
from wanreport.records.record import RESULTS_DIRS, replace_file


def predict(
    root: Path, found: frames.Frames, jobs: Sequence[Job], gpu: str, interconnect: str
) -> dict[str, Any]:
    """Predict jobs on one number of GPUs; return the file's content.

    Raises PredictionError if a job was measured on such a machine, or if measurements are missing.
    """
    full = [resolve_job(job, gpus=job.num_gpus) for job in jobs]
    (number,) = {job.num_gpus for job in full}
    here = runs_on(found.full_scale(), gpu, interconnect)
    past = dict(zip(here.job_hash, here.file, strict=True))
    for job in full:
        if file := past.get(job.hashes()[0]):
            raise PredictionError(f"{job.name}: was measured already ({file}); leave it out")
    known = gather(found, gpu, number, interconnect)
    assumed = [interconnect] * (known.base.ranks == 1) + ["swap"] * (not known.of("swap"))
    return {
        "schema": 1, "gpu": gpu, "gpus": number, "interconnect": interconnect,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"), **git_state(),
        "jobs": {job.name: predict_job(known, job, interconnect) for job in full},
        "assumed": [ASSUMED[each] for each in assumed],
        "measured": [row._asdict()
                     | {"sha256": hashlib.sha256((root / row.path).read_bytes()).hexdigest()}
                     for row in known.measured],
    }  # fmt: skip


def write(root: Path, content: Mapping[str, Any]) -> Path:
    """Write a prediction's file, beside those of other jobs on such a machine.

    Raises PredictionError if one of its jobs was predicted for this machine: that is never changed.
    """
    same = [each for each in load(root) if all(each[key] == content[key] for key in MACHINE[:3])]
    new = {job["job_hash"] for job in content["jobs"].values()}
    model = re.sub(r"[^a-z0-9]+", "-", content["gpu"].lower()).strip("-")
    slug = f"{model}-{content['gpus']}gpu-{content['interconnect']}"
    for name, job in (item for each in same for item in each["jobs"].items()):
        if job["job_hash"] in new:
            raise PredictionError(f"{slug}.json: {name} was predicted already; leave it out")
    path = root / FOLDER / f"{slug}{f'-{len(same) + 1}' if same else ''}.json"
    replace_file(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def lines(content: Mapping[str, Any]) -> list[str]:
    """Write a prediction as lines of text: seconds, bytes, and what it rests on."""
    jobs = pd.DataFrame.from_dict(content["jobs"], orient="index")[TOLD]
    return [", ".join(str(content[key]) for key in MACHINE),
            jobs.to_string(float_format="{:.4g}".format),
            "from " + ", ".join(dict.fromkeys(row["path"] for row in content["measured"])),
            *content["assumed"]]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Predict for each GPU model and interconnect; returns as `wanreport` does."""
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("params", type=Path, nargs="*", help="default: params/campaign/")
    parser.add_argument("--gpu", help="GPU model (default: all that have records)")
    parser.add_argument("--interconnect", choices=[*INTERCONNECTS], help="default: each")
    parser.add_argument("--write", action="store_true", help="keep it, for good")
    given = parser.parse_args(argv)
    return ended("tools.predict", lambda root: _run(given, root))


def _run(given: argparse.Namespace, root: Path) -> int:
    files = given.params or sorted((root / "params/campaign").glob("*.yaml"))
    jobs = [job for job in load_jobs(files, root).values() if job.scale != "tiny"]
    found = frames.load(RESULTS_DIRS, root)
    gpus = {given.gpu} if given.gpu else {*found.full_scale().gpu_model}
    wires = [given.interconnect] if given.interconnect else [*INTERCONNECTS]
    asked = list(itertools.product(sorted(gpus), sorted({j.num_gpus for j in jobs} - {1}), wires))
    if not asked:
        raise PredictionError("nothing to predict: give params for several GPUs, or --gpu")
    problems = dict[str, None]()
    for model, size, wire in asked:
        try:
            these = [job for job in jobs if job.num_gpus == size]
            content = predict(root, found, these, model, wire)
            print("\n".join(lines(content)))
            if given.write:
                print(f"  written: {write(root, content).relative_to(root)}")
        except PredictionError as error:
            if str(error) not in problems:
                print(error, file=sys.stderr)
            problems[str(error)] = None
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
