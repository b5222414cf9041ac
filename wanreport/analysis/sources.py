"""What runs tell of a GPU model: the measured values that predictions start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.planner.cost import Inputs
from wanreport.records.files import FileError
from wanreport.records.record import EARLIER, RESULTS_DIRS

INTERCONNECTS = {"nvlink": "NVLink", "host-memory": "host memory over PCIe (NCCL_P2P_DISABLE=1)"}
"""Of a record's machine (`measure.machine`), by the name that a prediction has for it."""

DTYPE = "bfloat16"
"""What all jobs to predict compute in."""

STREAM_JOB = "params/campaign/480p-1gpu-stream.yaml"


class PredictionError(FileError):
    """What is missing for a prediction, or wrong with one; the message names the fix."""


@dataclass(frozen=True)
class Source:
    """One measured value and the file that it is from.

    ``value`` is by ``kind``

    windows
        :class:`wanreport.planner.cost.Inputs` of a plan
    resident
        seconds of a steady step, its blocks, its branches
    pageable
        bytes a second to the device and back, pageable memory, all ranks copying
    swap
        seconds that `swap`'s first step and its switch take beyond a steady one
    """

    kind: str
    value: Any
    tokens: int
    ranks: int
    at: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Known:
    """What fewer GPUs of a model tell: its sizes, and all that was measured, the latest last."""

    gpu: str
    model: Mapping[str, Any]
    sources: list[Source]

    def of(self, kind: str) -> list[Source]:
        """What was measured of a kind."""
        return [source for source in self.sources if source.kind == kind]

    @property
    def alone(self) -> dict[int, Inputs]:
        """Windows that one GPU was measured at, by tokens, the shortest first."""
        found = {s.tokens: s.value for s in self.of("windows") if s.ranks == 1}
        return dict(sorted(found.items()))


def gather(root: Path, frames: Frames, gpu: str, below: int, interconnect: str) -> Known:
    """Collect what committed runs tell of a GPU model with fewer GPUs than ``below``.

    Rehearsals tell nothing, nor do compiled jobs or earlier runs; several GPUs only on the
    ``interconnect``.

    Raises
    ------
    PredictionError
        Naming what is missing.
    """
    sources: list[Source] = []
    model: Mapping[str, Any] = {}
    aside = (f"{RESULTS_DIRS[1]}/", f"/{EARLIER}/")
    here = runs_on(frames.full_scale(), gpu, interconnect)
    for row in sorted(here, key=lambda row: (row.source, row.file)):
        if row.gpus >= below or row.compiled or row.program:
            continue
        if any(each in row.file for each in aside):
            continue
        data = (root / row.file).read_bytes()
        note = partial(
            Source, tokens=int(row.tokens), ranks=int(row.gpus), at=row.started, path=row.file,
            sha256=hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        if row.source == "job":
            record = json.loads(data)
            if record["job"]["dtype"] != DTYPE:
                continue
            model = record["model"]
        if row.plan_inputs:
            sources.append(note("windows", Inputs.of(row.plan_inputs)))
        if row.pageable_rates:
            sources.append(note("pageable", [rate * 1e9 for rate in row.pageable_rates]))
        if row.engine == "resident" and not row.again and row.step_s > 0:
            sources.append(note("resident", (row.step_s, int(row.blocks), int(row.branches))))
        if row.engine == "swap" and row.source == "job" and row.switch_s > 0:
            spikes = [max(s - row.step_s, 0.0) for s in (row.first_s, row.switch_s)]
            sources.append(note("swap", spikes))
    known = Known(gpu, model, sorted(sources, key=lambda source: source.at))
    if not model or not known.alone:
        raise PredictionError(
            f"{gpu}: no committed record of stream on one GPU says how long windows take;"
            f" on it run `wanreport measure --results {RESULTS_DIRS[0]} {STREAM_JOB}`"
        )
    return known


def runs_on(runs: pd.DataFrame, gpu: str, interconnect: str) -> list[Any]:
    """Pick the rows of `runs` that are of a GPU model, on one GPU or over the interconnect.

    PCIe between GPUs is another interconnect than host memory.
    """
    wire = INTERCONNECTS[interconnect]
    here = [row for row in runs.itertuples() if row.gpu_model == gpu]
    return [row for row in here if row.gpus == 1 or wire in row.machine_class]
