"""Predictions for more GPUs: the committed ones still follow from their sources, and are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wanreport.analysis import predictions, scaling
from wanreport.analysis.frames import Frames, load
from wanreport.job import load_job

ROOT = Path(__file__).resolve().parents[2]
FILES = predictions.load(ROOT)
TIMES = ("step_s", "low_s", "high_s", "first_s", "switch_s", "total_s", "overhead", "h2d_bytes",
         "all_to_all_bytes")  # fmt: skip
A14B = json.loads(
    next((ROOT / "results/1x-nvidia-h200").glob("480p-1gpu-stream-b*.json")).read_text()
)["model"]


@pytest.fixture(scope="module")
def frames() -> Frames:
    return load(["results"], ROOT)


def known_of(content: dict[str, Any]) -> scaling.Known:
    sources = [
        scaling.Source(**each | {"value": scaling.Inputs.of(each["value"])})
        if each["kind"] == "windows"
        else scaling.Source(**each)
        for each in content["measured"]
    ]
    return scaling.Known(content["gpu"], A14B, sources)


@pytest.mark.parametrize(
    "content", FILES, ids=[f"{c['gpu']}-{c['gpus']}-{c['interconnect']}" for c in FILES]
)
def test_committed_predictions_follow_from_their_sources(content: dict[str, Any]) -> None:
    known = known_of(content)
    for name, told in content["jobs"].items():
        job = load_job(ROOT / f"params/campaign/{name}.yaml")
        found = scaling.predict_job(known, job, content["interconnect"])
        assert {key: found[key] for key in TIMES} == pytest.approx(
            {key: told[key] for key in TIMES}
        )


def test_all_to_all_bytes_of_two_ranks() -> None:
    # 4 tensors (q, k, v, out), half of the heads for half of the tokens, 256 bytes a head.
    assert scaling.all_to_all_bytes(32760, 40, 256, 2) == 4 * 256 * 16380 * 20
    assert scaling.all_to_all_bytes(32760, 40, 256, 1) == 0


def test_what_is_measured_already_is_not_predicted(frames: Frames) -> None:
    jobs = [load_job(ROOT / "params/campaign/480p-2gpu-layerwise.yaml")]
    with pytest.raises(scaling.PredictionError, match="480p-2gpu-layerwise"):
        predictions.predict(ROOT, frames, jobs, "NVIDIA H100 80GB HBM3", "host-memory")


def test_a_gpu_without_a_record_of_stream_cannot_be_predicted(frames: Frames) -> None:
    with pytest.raises(scaling.PredictionError, match="480p-1gpu-stream.yaml"):
        scaling.gather(ROOT, frames, "NVIDIA B200", 2, "nvlink")


def test_a_written_prediction_is_never_changed(tmp_path: Path) -> None:
    path = predictions.write(tmp_path, FILES[0])
    before = path.read_bytes()
    with pytest.raises(scaling.PredictionError, match=path.name):
        predictions.write(tmp_path, FILES[0])
    assert path.read_bytes() == before
    assert predictions.load(tmp_path) == [FILES[0]]
    path.write_text('{"schema": 2}')
    with pytest.raises(scaling.PredictionError, match=path.name):
        predictions.load(tmp_path)


def test_a_prediction_is_judged_by_later_runs_only(frames: Frames) -> None:
    told = predictions.judged(frames, FILES)
    assert len(told) == sum(len(content["jobs"]) for content in FILES)
    met = told[told.run.notna()].set_index("job")
    assert {"720p-2gpu-layerwise-5steps", "720p-2gpu-stream-5steps"} <= set(met.index)
    assert (met.error == met.predicted_s / met.measured_s - 1).all()
    started = frames.runs.started[list(met.run)]
    assert (started.to_numpy() > met.made_at.to_numpy()).all()
    late = [{**content, "made_at": "2100-01-01T00:00:00+00:00"} for content in FILES]
    assert predictions.judged(frames, late).run.isna().all()


def test_the_curve_has_measured_and_predicted_points(frames: Frames) -> None:
    found = predictions.curve(frames, FILES)
    assert set(found.kind) == {"measured", "predicted"}
    assert found[found.kind == "predicted"].gpus.max() == 8
    assert not found.duplicated(["gpus", "engine", "name", "gpu_model", "interconnect", "height",
                                 "kind"]).any()  # fmt: skip
