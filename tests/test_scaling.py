"""Predictions for more GPUs: exact where they can be worked out by hand, honest everywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests import campaigns
from tests.reading import beside
from wanreport import cli, curve, local, measure, predictions, report, scaling, verdicts
from wanreport.cost import Route
from wanreport.job import Job, load_job, resolve_job
from wanreport.scaling import PredictionError, all_to_all_bytes, gather, predict_job, tokens_of
from wanreport.tables import gigabytes, overhead, seconds, significant
from wanreport.ulysses import SequenceParallel, split_sizes

ROOT = Path(__file__).resolve().parents[1]
GPU = "NVIDIA H200"
ONE = {"gpu_name": GPU, "gpu_count": 1, "interconnect": None, "class": "1x NVIDIA H200",
       "slug": "1x-nvidia-h200"}  # fmt: skip
LINK = 50e9
ROW = 128 * 2  # bytes of a token's head
CAMPAIGN = ROOT / "params/campaign"
T480, T720 = 32_760, 75_600
WINDOWS, OTHER = (0.016, 0.032, 0.024), 0.01


def job(name: str = "720p-4gpu-resident") -> Job:
    return load_job(CAMPAIGN / f"{name}.yaml")


def one_gpu(
    engine: str, tokens: int = T480, machine: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """A record of one GPU, or of as many as ``machine`` and ``num_gpus`` say."""
    options = {"num_gpus": 1, "scale": "a14b", "profile": False} | options
    size = {"height": 480, "width": 832} if tokens == T480 else {}
    name = f"{'480p' if size else '720p'}-{options['num_gpus']}gpu-{engine}"
    made = synthetic.record(name, engine=engine, machine=ONE | (machine or {}), **size, **options)
    made["model"]["tokens"] = tokens
    return made


def streamed(tokens: int = T480, windows: Any = WINDOWS, **inputs: Any) -> dict[str, Any]:
    """A record of stream on one GPU: a plan's inputs are what predictions start from."""
    given = {"ranks": 1, "collectives_s": 0.0, "other_s": OTHER, "link": LINK,
             "local": Route(LINK, LINK), "sharded": None} | inputs  # fmt: skip
    machine = ONE if given["ranks"] == 1 else NVLINK
    made = one_gpu("stream", tokens, num_gpus=given["ranks"], machine=machine)
    made["engine"]["plan"]["inputs"] = asdict(synthetic.plan_inputs(windows_s=windows, **given))
    return made


NVLINK = {"gpu_name": GPU, "gpu_count": 8, "interconnect": "NVLink",
          "class": "8x NVIDIA H200, NVLink", "slug": "8x-nvidia-h200-nvlink"}  # fmt: skip


def write(root: Path, *records: dict[str, Any]) -> Path:
    for folder in ("notebooks", "params/campaign"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    synthetic.write(list(records), root / "results")
    return root


def campaign(name: str, machine: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A record of one of the campaign's jobs, made after any prediction."""
    asked = job(name)
    made = synthetic.record(
        name, engine=asked.engine, num_gpus=asked.num_gpus, scale="a14b", profile=False,
        machine=NVLINK | (machine or {}), sampled_steps=8,
        dit_offload_prefetch_size=asked.dit_offload_prefetch_size, **options,
    )  # fmt: skip
    return made | {"job": asked.model_dump(mode="json"), "job_hash": asked.hashes()[0],
                   "started_at": "2222-01-01T00:00:00+00:00"}  # fmt: skip


def predicted(root: Path, name: str, wire: str = "nvlink") -> dict[str, Any]:
    asked = resolve_job(job(name), gpus=64)
    return predict_job(gather(root, GPU, asked.num_gpus, wire), asked, wire)


# The formulas ------------------------------------------------------------------------------------


def test_a_videos_tokens_are_wans() -> None:
    assert tokens_of(job("480p-1gpu-resident")) == T480
    assert tokens_of(job()) == T720


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("tokens", [T720, 32_761])
def test_all_to_alls_move_what_the_busiest_rank_gives_or_gets(tokens: int, ranks: int) -> None:
    heads, own = split_sizes(40, ranks), split_sizes(tokens, ranks)
    fullest = 0
    for h, t in zip(heads, own, strict=True):
        out, home = t * (40 - h) * ROW, (tokens - t) * h * ROW
        fullest = max(fullest, max(3 * out, 3 * home) + max(home, out))
    assert all_to_all_bytes(tokens, 40, ROW, ranks) == fullest


@pytest.mark.parametrize("gpus, heads", [(4, 10), (6, 7)])  # 40 heads do not divide by 6
def test_a_step_is_what_arithmetic_says(tmp_path: Path, gpus: int, heads: int) -> None:
    found = predicted(write(tmp_path, streamed()), f"720p-{gpus}gpu-resident")
    t, scale = T720 // gpus, T720 / T480
    linear, attention = (0.016 + 0.024) * t / T480, 0.032 * scale**2 * heads / 40
    moved = all_to_all_bytes(T720, 40, ROW, gpus)
    wire = moved / 450e9 + 2 * 11 / 4.8e12 * t * 40 * ROW
    step = 2 * 40 * (linear + attention + wire) + OTHER * scale
    assert found["step_s"] == pytest.approx(step)
    assert (found["low_s"], found["high_s"]) == pytest.approx((step - 80 * wire, step + 80 * wire))
    assert found["total_s"] == pytest.approx(27 * step)
    assert found["h2d_bytes"] == found["overhead"] == 0
    assert found["all_to_all_bytes"] == 80 * moved


def test_packing_copies_as_many_tensors_as_ulysses_does(monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten

    class Counting(TorchDispatchMode):
        copied = 0

        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **kwargs or {})
            copies = func._overloadpacket in (aten.stack, aten.cat, aten.clone)
            self.copied += out.numel() if copies else 0
            return out

    monkeypatch.setattr(torch.distributed, "all_to_all_single", lambda *_, **__: None)
    ranks = SequenceParallel()
    ranks.size, ranks.rank = 4, 0
    q = torch.zeros(1, 100, 8, 16)
    with Counting() as seen:
        ranks.to_heads(q, q, q, 400)
        ranks.to_tokens(torch.zeros(1, 2, 400, 16).transpose(1, 2), 8)  # as attention returns it
    assert seen.copied == scaling.COPIES * q.numel()


def test_one_gpu_is_predicted_as_it_was_measured(tmp_path: Path) -> None:
    long = (0.04, 0.2, 0.06)
    write(tmp_path, streamed(), streamed(T720, long, other_s=0.03))
    known = gather(tmp_path, GPU, 2, "nvlink")
    for name, windows in (("480p-1gpu-resident", WINDOWS), ("720p-2gpu-resident", long)):
        one = resolve_job(job(name), gpus=8).model_copy(update={"num_gpus": 1})
        assert predict_job(known, one, "nvlink")["inputs"]["windows_s"] == pytest.approx(windows)
    more = predicted(tmp_path, "720p-2gpu-resident")
    pre, attend, _ = more["inputs"]["windows_s"]
    assert attend == pytest.approx(0.1) and "attention: measured at 75,600 tokens" in more["from"]
    assert min(0.016 / T480, 0.04 / T720) < pre / 37_800 < max(0.016 / T480, 0.04 / T720)


def resident(tokens: int, step: float) -> dict[str, Any]:
    """A record whose every step is of just this length."""
    made = one_gpu("resident", tokens, seed=tokens)
    made["job"]["name"] = f"resident-{tokens}"
    for iteration in made["iterations"]:
        for one in iteration["steps"]:
            one["seconds"] = [step]
    return made


def test_windows_are_scaled_to_a_step_of_their_length(tmp_path: Path) -> None:
    """A probe is short, and the GPU's clocks are then higher than in a job."""
    write(tmp_path, streamed(), resident(T480, 1.1 * 80 * sum(WINDOWS) + OTHER))
    hot = predicted(tmp_path, "720p-4gpu-resident")
    cold = predicted(write(tmp_path / "cold", streamed()), "720p-4gpu-resident")
    assert hot["inputs"]["windows_s"] == pytest.approx(
        [1.1 * seconds for seconds in cold["inputs"]["windows_s"]]
    )
    assert "windows at 32,760 tokens: times 1.100, as resident's steps" in hot["from"]


def test_rows_of_a_campaign_are_measurements_too(tmp_path: Path) -> None:
    write(tmp_path, streamed())
    step = 20 * 0.25 + OTHER / 2 * T720 / T480  # 20 blocks, one branch
    report = campaigns.campaign(
        machine="1x NVIDIA H200", ranks=1, resident_ms={T720: 1e3 * step},
        factors={"resident": 1.0, "layerwise": 0.1, "resident again": 0.1},
    )  # fmt: skip
    (samples,) = (row["ranks"][0] for row in report["rows"] if row["label"] == "resident")
    samples["samples_ms"] = [1e3 * step] * 7
    path = campaigns.write(report, tmp_path / "results")
    found = predicted(tmp_path, "720p-4gpu-resident")
    assert found["inputs"]["windows_s"][1] == pytest.approx((0.25 - 0.04 * T720 / T480) / 4)
    planned = campaigns.campaign(machine="1x NVIDIA H200", ranks=1, resident_ms={T720: 1.0},
                                 factors={"planned": 1.0})  # fmt: skip
    campaigns.write(planned, tmp_path / "results")
    attended = synthetic.plan_inputs().windows_s[1] / 4
    for when, expected in (("2001", attended), ("2222", 0.2 / 4)):  # of several the latest counts
        late = streamed(T720, (0.04, 0.2, 0.06)) | {"started_at": f"{when}-01-01T00:00:00+00:00"}
        write(tmp_path, late)
        windows = predicted(tmp_path, "720p-4gpu-resident")["inputs"]["windows_s"]
        assert windows[1] == pytest.approx(expected)
    path.write_text("{}")
    with pytest.raises(PredictionError, match=r"peers\.json.*measure it again"):
        predicted(tmp_path, "720p-4gpu-resident")


def test_host_memory_is_shared_by_collectives_and_copies(tmp_path: Path) -> None:
    write(tmp_path, streamed())
    fast, slow = (predicted(tmp_path, "720p-4gpu-layerwise", w) for w in scaling.INTERCONNECTS)
    assert fast["overhead"] == 0  # copies hide behind computation, and touch nothing else
    inputs = slow["inputs"]
    assert inputs["local"] == asdict(Route(LINK, LINK / 2, 1.0, 2.0))
    wire = 4 * ROW * 18_900 * 30 / (LINK / 2) + 2 * 11 / 4.8e12 * 18_900 * 40 * ROW
    assert inputs["collectives_s"] == pytest.approx(wire)
    # While loads are in flight, which is for D / M of a pass, collectives take twice as long.
    share = 39 * synthetic.BLOCK["a14b"] / (40 * LINK * (sum(inputs["windows_s"]) + wire))
    base = predicted(tmp_path, "720p-4gpu-resident", "host-memory")
    assert slow["step_s"] - base["step_s"] == pytest.approx(80 * wire * share) and share < 1
    stream = predicted(tmp_path, "720p-4gpu-stream", "host-memory")
    assert stream["settings"]["windows"] is not None  # its plan keeps out of the collectives
    assert stream["overhead"] < slow["overhead"]


def test_a_link_too_slow_for_the_bytes_sets_the_pace(tmp_path: Path) -> None:
    write(tmp_path, streamed(local=Route(5e9, 5e9), link=5e9))
    found = predicted(tmp_path, "720p-8gpu-layerwise")
    assert found["h2d_bytes"] == 2 * 39 * synthetic.BLOCK["a14b"]
    assert found["step_s"] == pytest.approx(found["h2d_bytes"] / 5e9 + found["inputs"]["other_s"])
    assert found["overhead"] > 0


def test_fsdp_brings_a_share_and_gathers_the_rest(tmp_path: Path) -> None:
    write(tmp_path, streamed())
    expert = 40 * synthetic.BLOCK["a14b"] + synthetic.OUTER["a14b"]
    for gpus in (2, 4):
        found = predicted(tmp_path, f"720p-{gpus}gpu-fsdp")
        assert found["h2d_bytes"] == 2 * -(-expert // gpus)
    both = predicted(tmp_path, "720p-4gpu-fsdp", "host-memory")["inputs"]
    block_s = 1 / 4 / LINK + 3 / 4 / (LINK / 2)
    assert both["sharded"]["rate"] == pytest.approx(1 / block_s)


def test_swap_pays_at_the_first_step_and_the_switch(tmp_path: Path) -> None:
    write(tmp_path, streamed())
    found = predicted(tmp_path, "720p-4gpu-swap")
    expert = 40 * synthetic.BLOCK["a14b"] + synthetic.OUTER["a14b"]
    link = synthetic.record(scale="a14b")["machine"]["link"]
    spike = sum(expert / link[f"{way}_pageable_together_gb_s"] / 1e9 for way in ("h2d", "d2h"))
    assert found["switch_s"] - found["step_s"] == pytest.approx(spike)
    assert found["first_s"] == found["switch_s"]
    assert found["overhead"] == 0
    write(tmp_path, one_gpu("swap", steady_s=7.0, switch_s=17.0))
    found = predicted(tmp_path, "720p-4gpu-swap")
    assert found["switch_s"] - found["step_s"] == pytest.approx(10, abs=0.1)
    assert any("as measured" in word for word in found["from"])


def test_an_interconnect_measured_with_two_gpus_replaces_what_was_assumed(tmp_path: Path) -> None:
    shared = Route(LINK, LINK / 4, 1.0, 1.5)
    two = streamed(ranks=2, windows=(0.008, 0.01, 0.012), collectives_s=0.01, local=shared,
                   sharded=shared)  # fmt: skip
    write(tmp_path, streamed(), two)
    found = predicted(tmp_path, "720p-4gpu-resident")
    rate = all_to_all_bytes(T480, 40, ROW, 2) / 0.01
    moved = all_to_all_bytes(T720, 40, ROW, 4)
    assert found["inputs"]["collectives_s"] == pytest.approx(moved / rate)
    assert found["inputs"]["local"]["collective_factor"] == 1.5
    assert any("measured with 2 GPUs" in word for word in found["from"])
    weights = "weights: 50 GB/s to each GPU, measured with 2 GPUs copying, assumed for 4 at once"
    assert weights in found["from"]
    # Windows are one GPU's, which resident's steps correct: those of a probe on several are not.
    assert found["inputs"]["windows_s"][1] == pytest.approx(0.032 * (T720 / T480) ** 2 / 4)
    # Over another interconnect, and for no more GPUs than it had, it says nothing.
    assert "assumed" in str(predicted(tmp_path, "720p-4gpu-resident", "host-memory")["from"])
    assert "assumed" in str(predicted(tmp_path, "720p-2gpu-resident")["from"])


@settings(deadline=None, max_examples=40)
@given(
    windows=st.tuples(*[st.floats(1e-3, 1.0)] * 3),
    rate=st.floats(1e9, 1e11),
    gpus=st.sampled_from([2, 4, 6, 8]),
    wire=st.sampled_from(list(scaling.INTERCONNECTS)),
)
def test_no_engine_is_predicted_below_resident(
    windows: Any, rate: float, gpus: int, wire: str
) -> None:
    inputs = synthetic.plan_inputs(windows_s=windows, ranks=1, local=Route(rate, rate), link=rate)
    where = {"tokens": T480, "ranks": 1, "at": "", "path": "", "sha256": ""}
    measured = {"windows": inputs, "pageable": (1e9, 1e9)}
    sources = [scaling.Source(kind, value, **where) for kind, value in measured.items()]
    known = scaling.Known(GPU, streamed()["model"], sources)
    for engine in ("layerwise", "fsdp", "stream", "swap"):
        found = predict_job(known, resolve_job(job(f"720p-{gpus}gpu-{engine}"), gpus=64), wire)
        assert found["overhead"] >= -1e-9
        assert found["low_s"] * (1 - 1e-9) <= found["step_s"] <= found["high_s"] * (1 + 1e-9)
        assert found["first_s"] >= found["step_s"] * (1 - 1e-9)


# What may be an input ----------------------------------------------------------------------------


def test_steps_that_contradict_windows_are_refused(tmp_path: Path) -> None:
    write(tmp_path, streamed(), resident(T720, 1.0))
    with pytest.raises(PredictionError, match=r"resident-75600.*too short.*measure one of them"):
        predicted(tmp_path, "720p-4gpu-resident")


@pytest.mark.parametrize(
    "where, change",
    [
        ("machine", {"device": "cpu"}),
        ("machine", {"gpu_name": "NVIDIA H100 80GB HBM3"}),
        ("job", {"scale": "tiny"}),
        ("job", {"compile": True}),
        ("", {"status": "failed", "reason": "made up"}),
    ],
)
def test_rehearsals_and_other_machines_are_no_inputs(
    tmp_path: Path, where: str, change: dict[str, Any]
) -> None:
    record = streamed()
    (record[where] if where else record).update(change)
    with pytest.raises(PredictionError, match=f"{GPU}: .*480p-1gpu-stream"):
        predicted(write(tmp_path, record), "720p-4gpu-resident")


@pytest.mark.parametrize(
    "change", [{"compile": True}, {"dtype": "float32"}, {"cfg": False}, {"vram_budget_gb": 20.0}]
)
def test_jobs_of_another_kind_than_the_campaigns_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    known = gather(write(tmp_path, streamed()), GPU, 4, "nvlink")
    other = resolve_job(job("720p-4gpu-stream"), gpus=8).model_copy(update=change)
    with pytest.raises(PredictionError, match="720p-4gpu-stream: .*leave this one out"):
        predict_job(known, other, "nvlink")


def test_a_gpu_without_a_data_sheet_needs_two_of_them(tmp_path: Path) -> None:
    unknown = streamed()
    unknown["machine"]["gpu_name"] = "GPU X"
    write(tmp_path, unknown)
    known = gather(tmp_path, "GPU X", 4, "nvlink")
    with pytest.raises(PredictionError, match="GPU X: .*2 of them over NVLink"):
        predict_job(known, resolve_job(job(), gpus=8), "nvlink")


# Files -------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, streamed())
    for name in ("720p-4gpu-resident", "720p-4gpu-layerwise", "480p-1gpu-stream"):
        text = (CAMPAIGN / f"{name}.yaml").read_text()
        (tmp_path / "params/campaign" / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_keeps_when_asked_and_never_changes_what_it_kept(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict"]) == 0
    out = capsys.readouterr().out
    for expected in ("NVIDIA H200, 4 GPUs, NVLink", "host memory over PCIe", "720p-4gpu-layerwise",
                     "assumed, the data sheet's 450 GB/s"):  # fmt: skip
        assert expected in out
    assert not (project / "predictions").exists()
    assert cli.main(["predict", "--write", "--interconnect", "nvlink"]) == 0
    path = project / "predictions/nvidia-h200-4gpu-nvlink.json"
    (content,) = predictions.load(project)
    assert path.is_file() and list(content["jobs"]) == ["720p-4gpu-layerwise", "720p-4gpu-resident"]
    source = next(s for s in content["measured"] if s["kind"] == "windows")
    assert source["path"].startswith("results/1x-nvidia-h200/480p-1gpu-stream-")
    kept = (project / source["path"]).read_bytes()
    assert source["sha256"] == hashlib.sha256(kept).hexdigest()
    assert tuple(source["value"]["windows_s"]) == WINDOWS
    content_before = path.read_bytes()
    write(project, streamed(windows=(0.1, 0.1, 0.1)))
    assert cli.main(["predict", "--write", "--interconnect", "nvlink"]) == 1
    assert "never changed" in capsys.readouterr().err and path.read_bytes() == content_before


def test_what_was_measured_is_not_predicted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project, campaign("720p-4gpu-layerwise"))
    assert cli.main(["predict", "--write"]) == 1
    err = capsys.readouterr().err
    assert "720p-4gpu-layerwise: was measured" in err and "leave this job out" in err
    assert [p.name for p in predictions.files(project)] == ["nvidia-h200-4gpu-host-memory.json"]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--gpu", "GPU X"], "GPU X: no committed record of stream"),
        (["params/campaign/missing.yaml"], "missing.yaml: cannot be read"),
        (["params/campaign/480p-1gpu-stream.yaml"], "give params files for several GPUs"),
    ],
)
def test_what_is_missing_is_said(
    project: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "--write", *words]) != 0
    assert expected in capsys.readouterr().err
    assert not (project / "predictions").exists()


def test_a_spoilt_prediction_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--write", "--interconnect", "nvlink"]) == 0
    path = project / "predictions/nvidia-h200-4gpu-nvlink.json"
    content = json.loads(path.read_text())
    for text in ("{", json.dumps({"schema": 1}), json.dumps(content | {"gpus": 6})):
        path.write_text(text)
        with pytest.raises(PredictionError, match=r"4gpu-nvlink\.json.*restore it from git"):
            predictions.load(project)


# The page ----------------------------------------------------------------------------------------


NAMES = ["720p-2gpu-resident", "720p-2gpu-layerwise", "720p-4gpu-resident", "720p-4gpu-layerwise",
         "720p-4gpu-layerwise-prefetch3", "720p-4gpu-fsdp", "720p-8gpu-layerwise",
         "720p-8gpu-swap"]  # fmt: skip


@pytest.fixture
def made(project: Path) -> Path:
    """A project with predictions over NVLink."""
    for name in NAMES:
        text = (CAMPAIGN / f"{name}.yaml").read_text()
        (project / "params/campaign" / f"{name}.yaml").write_text(text)
    assert cli.main(["predict", "--write", "--interconnect", "nvlink"]) == 0
    return project


def told(root: Path, name: str) -> dict[str, Any]:
    return next(c["jobs"][name] for c in predictions.load(root) if name in c["jobs"])


def test_without_measurements_the_page_shows_predictions_and_says_so(made: Path) -> None:
    (one,) = curve.curves([synthetic.record("new-4gpu"), synthetic.record("new-6gpu")])
    assert not one.records  # as they are rehearsals
    said = curve.answer(one)
    assert "Nothing was measured on several GPUs yet:** the rest is prediction" in said
    assert "Our predictions were made at" in curve.at_hand([one])
    assert "which record is missing" in curve.at_hand([])
    statement = verdicts.baseline_facts().statement("s6.1.new_grows")
    assert f"“{statement}.” **– not measured.** We predict that layerwise" in said
    steps, folded = curve.tables(one)
    for html in (steps, folded):
        assert "kind-predicted" in html and "kind-measured" not in html and "✓" not in html
    assert beside(folded, "baseline's new offload")[0].endswith("– not measured")
    assert beside(folded, "the switch")[:2] == ["~3.29 s", "~31.3 s"]
    spike = told(made, "720p-8gpu-swap")["switch_s"]
    assert beside(folded, "the switch")[2] == seconds(spike)
    assert beside(folded, "attention: scaled to 75,600 tokens from 32,760") == ["2, 4, 8"]
    assert "480p-1gpu-stream-" in folded
    ((_, alt),) = curve.pictures(one)
    fsdp = told(made, "720p-4gpu-fsdp")["step_s"]
    assert "Measured: nothing" in alt and f"fsdp 4: {significant(fsdp, 3)}" in alt


@pytest.mark.parametrize("factor, held", [(1.08, True), (0.92, True), (1.12, False), (0.88, False)])
def test_a_prediction_holds_within_its_tolerance(made: Path, factor: float, held: bool) -> None:
    key = ("layerwise, prefetch 1", 4)
    record = campaign(
        "720p-4gpu-layerwise", steady_s=factor * told(made, "720p-4gpu-layerwise")["step_s"]
    )
    (one,) = curve.curves([record])
    assert one.held(key) is held
    assert curve.HELD[held] in beside(curve.steps_table(one), key[0])[1]
    assert f"{int(held)} of 1 held" in curve.answer(one)
    # Made after the run, of another job, or of another interconnect it is no prediction.
    late = record | {"started_at": "2001-01-01T00:00:00+00:00"}
    for other in (late, record | {"job_hash": "0" * 12}):
        (one,) = curve.curves([other])
        assert one.held(key) is None and key not in one.jobs
        assert "made after the run or for another job: 1 prediction." in curve.answer(one)
        assert "held" not in beside(curve.steps_table(one), key[0])[1]
    quicker = campaign("720p-4gpu-resident", steady_s=0.95 * one.step(key))
    (one,) = curve.curves([record, quicker])
    assert " +4.9 %; predicted" in beside(curve.steps_table(one), key[0])[1]
    near = campaign("720p-4gpu-resident", steady_s=0.995 * one.step(key))
    (one,) = curve.curves([record, near])
    assert " not told apart; predicted" in beside(curve.steps_table(one), key[0])[1]
    apart = campaign("720p-4gpu-layerwise", {"interconnect": "PCIe"})
    assert [c.held(key) for c in curve.curves([apart])] == [None, None]
    assert [len(c.records) for c in curve.curves([apart])] == [0, 1]


@pytest.mark.parametrize("moved, held", [(17.6e9, True), (17.61e9, True), (54.8e9, False)])
def test_the_baselines_bytes_hold_if_what_was_measured_rounds_to_them(
    made: Path, moved: float, held: bool
) -> None:
    record = campaign("720p-4gpu-layerwise")
    for iteration in record["iterations"]:
        for step in iteration["steps"]:
            step["h2d_bytes"] = [moved] * 4
    (one,) = curve.curves([record])
    html = curve.bytes_table(one)
    assert beside(html, "baseline's new offload")[1].endswith(curve.HELD[held])
    each = beside(html, "layerwise, prefetch 1")[1]
    assert each.startswith(f"{gigabytes(moved)} {gigabytes(4 * moved)} in all; predicted")


@pytest.mark.parametrize(
    "few, many, verdict",
    [(1.02, 1.08, "✓ held"), (1.08, 1.02, "✗ did not hold"), (1.05, 1.05, curve.UNTOLD)],
)
def test_an_overhead_that_grows_is_told_from_one_that_shrinks(
    made: Path, few: float, many: float, verdict: str
) -> None:
    records = [
        campaign(f"720p-{n}gpu-{engine}", steady_s=base * (over if engine == "layerwise" else 1))
        for n, base, over in ((2, 12.0, few), (4, 6.0, many))
        for engine in ("resident", "layerwise")
    ]
    (one,) = curve.curves(records)
    said = curve.answer(one)
    assert f"**{verdict}.** Measured, layerwise" in said
    shares = f"{overhead(few - 1)} on 2 GPUs, {overhead(many - 1)} on 4 GPUs."
    assert shares in said
    for record in records:  # on two machines they cannot be compared
        record["machine"] |= {"slug": f"{record['job']['engine']}-machine"}
    assert "Measured, layerwise" not in curve.answer(curve.curves(records)[0])


def test_the_checks_of_the_baseline_read_the_campaigns_records() -> None:
    steady = {"layerwise": 6.4, "layerwise-prefetch3": 6.2, "fsdp": 6.1, "swap": 6.0,
              "resident": 5.9}  # fmt: skip
    records = [campaign(f"720p-4gpu-{name}", steady_s=s) for name, s in steady.items()]
    found = {verdict.check: verdict for verdict in verdicts.baseline_checks(records)}
    for check in ("spike-swap", "slower-fsdp", "slower-swap", "pure", "prefetch"):
        assert found[check].status != "not measured", check
        assert found[check].machine == NVLINK["class"]


def test_interconnects_are_called_as_records_call_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = subprocess.CompletedProcess([], 0, "     GPU0 GPU1\nGPU0   X   NV18\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: seen)
    monkeypatch.delenv(measure.P2P, raising=False)
    assert measure._interconnect(2) == scaling.INTERCONNECTS["nvlink"]
    monkeypatch.setenv(measure.P2P, "1")
    assert measure._interconnect(2) == scaling.INTERCONNECTS["host-memory"]


def test_a_prediction_makes_the_page_stale(project: Path) -> None:
    shutil.copytree(ROOT / "notebooks", project / "notebooks", dirs_exist_ok=True)

    def inputs() -> str:
        tasks = report.plan({}, project, local.all_records(project))
        return next(task.page.inputs for task in tasks if task.name == "postbenchmark")

    before = inputs()
    assert cli.main(["predict", "--write"]) == 0
    assert inputs() != before
