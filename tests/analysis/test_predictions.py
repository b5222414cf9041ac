"""Predictions for more GPUs: the committed ones still follow from their sources, and are judged."""

import json
import re
from dataclasses import asdict
from functools import partial
from itertools import chain, count

import pandas as pd
import pytest
import synthetic
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from tools import predict
from wanreport.analysis import compare, predictions
from wanreport.jobs.job import load_job, resolve_job
from wanreport.model.ulysses import SequenceParallel, split_sizes
from wanreport.planner.cost import Route

FILES = predictions.load(ROOT)
STREAM = next((ROOT / "results/1x-nvidia-h200").glob("480p-1gpu-stream-b*.json"))
A14B = json.loads(STREAM.read_text())["model"]


@pytest.mark.parametrize("content", FILES)
def test_committed_predictions_follow_from_their_sources(content):
    rows = pd.DataFrame(content["measured"]).itertuples()
    known = predictions.Known(content["gpu"], A14B, [*rows])
    for name, told in content["jobs"].items():
        job = load_job(ROOT / f"params/campaign/{name}.yaml")
        found = predictions.predict_job(known, job, content["interconnect"])
        for key in (*predictions.TOLD, "engine", "prefetch", "tokens"):
            assert found[key] == pytest.approx(told[key]), key
        # A setting that came later has its default in older predictions.
        settings = json.loads(json.dumps(found["settings"]))
        assert settings == (told["settings"] and {"transfer": "bf16"} | told["settings"])


def test_a_prediction_is_judged_by_later_runs_only():
    ran = compare.overhead(synthetic.committed())
    told = predictions.judged(ran, FILES)
    assert len(told) == sum(len(content["jobs"]) for content in FILES)
    met = told[told.run.notna()].set_index("job")
    assert {"720p-2gpu-layerwise-5steps", "720p-2gpu-stream-5steps"} <= set(met.index)
    assert (ran.started[list(met.run)].to_numpy() > met.made_at.to_numpy()).all()
    assert (met.error == met.predicted_s / met.measured_s - 1).all()
    assert (met.held == ((met.measured_s / met.predicted_s - 1).abs() <= 0.1)).all()
    early, late = ([{**content, "made_at": f"{year}-01-01T00:00:00+00:00"} for content in FILES]
                   for year in (2000, 2100))  # fmt: skip
    assert predictions.judged(ran, early).run.notna().sum() >= len(met)
    late = predictions.judged(ran, late)
    assert late.run.isna().all() and not late.held.any()


def test_a_written_prediction_is_never_changed(tmp_path):
    path = predict.write(tmp_path, FILES[0])
    before = path.read_bytes()
    with pytest.raises(predictions.PredictionError, match=path.name):
        predict.write(tmp_path, FILES[0])
    assert path.read_bytes() == before
    other = {**FILES[0], "jobs": {"other": {"job_hash": "another job's"}}}
    assert predict.write(tmp_path, other).stem == f"{path.stem}-2"
    assert predictions.load(tmp_path) == [other, FILES[0]]


GPU, LINK, ROW = "NVIDIA H200", 50e9, 128 * 2  # bytes of a token's head
T480, T720 = 32_760, 75_600
WINDOWS, OTHER = (0.016, 0.032, 0.024), 0.01
ONE = {"gpu_name": GPU, "gpu_count": 1, "interconnect": None, "class": "1x NVIDIA H200",
       "slug": "1x-nvidia-h200"}  # fmt: skip
NVLINK = {"gpu_name": GPU, "gpu_count": 8, "interconnect": "NVLink",
          "class": "8x NVIDIA H200, NVLink", "slug": "8x-nvidia-h200-nvlink"}  # fmt: skip
BLOCK, EXPERT = synthetic.BLOCK["a14b"], 40 * synthetic.BLOCK["a14b"] + synthetic.OUTER["a14b"]
NUMBERS = count()


def asked(name, **changes):
    job = load_job(ROOT / f"params/campaign/{name}.yaml").model_copy(update=changes)
    return resolve_job(job, gpus=64)


def measured(engine, tokens=T480, gpus=1, **options):
    size = {"height": 480, "width": 832} if tokens == T480 else {}
    name = f"{'480p' if size else '720p'}-{gpus}gpu-{engine}"
    made = synthetic.record(
        name, engine=engine, num_gpus=gpus, scale="a14b", profile=False, seed=next(NUMBERS),
        machine=ONE if gpus == 1 else NVLINK, **size, **options,
    )  # fmt: skip
    made["model"]["tokens"] = tokens
    return made


def streamed(**inputs):
    """A record of stream: a plan's inputs are what predictions start from."""
    given = {"ranks": 1, "collectives_s": 0.0, "other_s": OTHER, "link": LINK,
             "local": Route(LINK, LINK), "sharded": None} | inputs  # fmt: skip
    made = measured("stream", gpus=given["ranks"])
    made["engine"]["plan"]["inputs"] = asdict(synthetic.plan_inputs(windows_s=WINDOWS, **given))
    return made


def resident(tokens, step):
    """A record whose every step is of just this length."""
    made = measured("resident", tokens)
    for one in chain.from_iterable(iteration["steps"] for iteration in made["iterations"]):
        one["seconds"] = [step]
    return made


@pytest.fixture
def after(tmp_path):
    """What predicts a job after some more measurements."""

    def predicted(found, name, wire="nvlink", gpu=GPU, **changes):
        job = asked(name, **changes)
        known = predictions.gather(found, gpu, max(job.num_gpus, 2), wire)
        return predictions.predict_job(known, job, wire)

    return lambda *more: partial(predicted, synthetic.load([*more], tmp_path))


@given(st.integers(100, 80_000), st.integers(1, 8))
def test_all_to_alls_move_what_the_busiest_rank_gives_or_gets(tokens, ranks):
    sizes = zip(split_sizes(40, ranks), split_sizes(tokens, ranks), strict=True)
    ways = [(t * (40 - h) * ROW, (tokens - t) * h * ROW) for h, t in sizes]
    fullest = max(max(3 * out, 3 * home) + max(home, out) for out, home in ways)
    assert predictions.all_to_all_bytes(tokens, 40, ROW, ranks) == fullest


def test_packing_copies_as_many_tensors_as_ulysses_does(monkeypatch):
    class Counting(TorchDispatchMode):
        copied = 0

        def __torch_dispatch__(self, func, _, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            aten = torch.ops.aten
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
    assert seen.copied == predictions.COPIES * q.numel()


@pytest.mark.parametrize("gpus, heads", [(4, 10), (6, 7)])  # 40 heads do not divide by 6
def test_a_step_is_what_arithmetic_says(after, gpus, heads):
    found = after(streamed())(f"720p-{gpus}gpu-resident")
    t, scale = T720 // gpus, T720 / T480
    linear, attention = (0.016 + 0.024) * t / T480, 0.032 * scale**2 * heads / 40
    moved = predictions.all_to_all_bytes(T720, 40, ROW, gpus)
    wire = moved / 450e9 + 2 * 11 / 4.8e12 * t * 40 * ROW
    step = 2 * 40 * (linear + attention + wire) + OTHER * scale
    assert found["step_s"] == pytest.approx(step)
    assert (found["low_s"], found["high_s"]) == pytest.approx((step - 80 * wire, step + 80 * wire))
    assert found["total_s"] == pytest.approx(27 * step)
    assert found["h2d_bytes"] == found["overhead"] == 0
    assert found["all_to_all_bytes"] == 80 * moved


def test_a_branch_each_takes_half_the_step_and_two_have_no_all_to_all(after):
    predicted = after(streamed())
    one = predicted("480p-1gpu-layerwise")
    two = predicted("480p-2gpu-layerwise", "host-memory", enable_cfg_parallel=True)
    assert two["step_s"] == pytest.approx(one["step_s"] / 2)
    assert two["h2d_bytes"] == one["h2d_bytes"] / 2
    assert two["all_to_all_bytes"] == 0 < two["inputs"]["sharded"]["rate"]
    four = predicted("720p-4gpu-resident", enable_cfg_parallel=True)
    assert four["step_s"] == pytest.approx(predicted("720p-2gpu-resident")["step_s"] / 2)


def test_windows_are_scaled_to_a_step_of_their_length(after):
    """A probe is short, and the GPU's clocks are then higher than in a job."""
    cold = after(streamed())("720p-4gpu-resident")["inputs"]["windows_s"]
    hot = after(resident(T480, 1.1 * 80 * sum(WINDOWS) + OTHER))("720p-4gpu-resident")
    assert hot["inputs"]["windows_s"] == pytest.approx([1.1 * each for each in cold])
    with pytest.raises(predictions.PredictionError, match="720p-1gpu-resident"):
        after(resident(T720, 1.0))("720p-4gpu-resident")


def test_bytes_set_the_pace_of_a_slow_link_and_fsdp_brings_a_share(after):
    predicted = after(streamed(local=Route(5e9, 5e9), link=5e9))
    found = predicted("720p-8gpu-layerwise")
    assert found["h2d_bytes"] == 2 * 39 * BLOCK and found["overhead"] > 0
    assert found["step_s"] == pytest.approx(found["h2d_bytes"] / 5e9 + found["inputs"]["other_s"])
    for gpus in (2, 4):
        assert predicted(f"720p-{gpus}gpu-fsdp")["h2d_bytes"] == 2 * -(-EXPERT // gpus)


def test_swap_pays_at_the_first_step_and_the_switch(after):
    found = after(streamed())("720p-4gpu-swap")
    link = synthetic.record(scale="a14b")["machine"]["link"]
    spike = sum(EXPERT / link[f"{way}_pageable_together_gb_s"] / 1e9 for way in ("h2d", "d2h"))
    assert found["switch_s"] - found["step_s"] == pytest.approx(spike)
    assert found["first_s"] == found["switch_s"] and found["overhead"] == 0
    found = after(measured("swap", steady_s=7.0, switch_s=17.0))("720p-4gpu-swap")
    assert found["switch_s"] - found["step_s"] == pytest.approx(10, abs=0.1)


@settings(max_examples=20)
@given(
    windows=st.tuples(*[st.floats(1e-3, 1.0)] * 3), rate=st.floats(1e9, 1e11), apart=st.booleans(),
    gpus=st.sampled_from([2, 4, 6, 8]), wire=st.sampled_from(list(predictions.INTERCONNECTS)),
)  # fmt: skip
def test_no_engine_is_predicted_below_resident(windows, rate, apart, gpus, wire):
    inputs = synthetic.plan_inputs(windows_s=windows, ranks=1, local=Route(rate, rate), link=rate)
    values = {"windows": asdict(inputs), "pageable": (1e9, 1e9)}
    rows = [(kind, value, T480, 1, "", "") for kind, value in values.items()]
    table = pd.DataFrame(rows, columns=predictions.MEASURED)
    known = predictions.Known(GPU, A14B, [*table.itertuples()])
    jobs = (asked(f"720p-{gpus}gpu-{engine}", enable_cfg_parallel=apart)
            for engine in ("resident", "layerwise", "fsdp", "stream", "swap"))  # fmt: skip
    resident, *others = (predictions.predict_job(known, job, wire) for job in jobs)
    for found in others:
        assert found["overhead"] >= -1e-9 and found["step_s"] >= resident["step_s"] * (1 - 1e-9)
        assert found["low_s"] * (1 - 1e-9) <= found["step_s"] <= found["high_s"] * (1 + 1e-9)
        assert found["first_s"] >= found["step_s"] * (1 - 1e-9)


@pytest.mark.parametrize("change", [
    {"machine": {"device": "cpu"}}, {"machine": {"gpu_name": "NVIDIA H100 80GB HBM3"}},
    {"job": {"scale": "tiny"}}, {"job": {"compile": True}}, {"job": {"dtype": "float32"}},
    {"job": {"enable_cfg_parallel": True}}, {"status": "failed", "reason": "made up"},
], ids=str)  # fmt: skip
def test_rehearsals_and_other_machines_are_not_measurements(after, change):
    record = streamed()
    record |= {k: record[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(predictions.PredictionError, match=GPU):
        after(record)("720p-4gpu-resident")


def test_jobs_of_another_kind_are_refused(after):
    predicted = after(streamed())
    for change in {"compile": True, "dtype": "float32", "cfg": False, "vram_budget_gb": 20}.items():
        with pytest.raises(predictions.PredictionError, match="720p-4gpu-stream"):
            predicted("720p-4gpu-stream", **dict([change]))


def test_pcie_between_gpus_is_not_host_memory_and_an_unknown_gpu_needs_two(after):
    two, unknown = streamed(ranks=2, local=Route(LINK, 1.0, 1.0, 9.0)), streamed()
    two["machine"] |= {"interconnect": "PCIe", "class": "2x NVIDIA H200, PCIe", "slug": "2x-pcie"}
    unknown["machine"]["gpu_name"] = "GPU X"
    predicted = after(streamed(), two, unknown)
    found = predicted("720p-4gpu-resident", "host-memory")
    assert found["inputs"]["local"]["collective_factor"] == 2.0
    with pytest.raises(predictions.PredictionError, match="GPU X"):
        predicted("720p-4gpu-resident", gpu="GPU X")


def test_the_command_writes_once_and_leaves_out_what_was_measured(project, capsys):
    (project / "params/campaign").mkdir()
    for name in ("720p-4gpu-resident", "720p-4gpu-layerwise"):
        path = f"params/campaign/{name}.yaml"
        (project / path).write_text((ROOT / path).read_text())
    assert predict.main([]) == 1  # nothing is measured
    synthetic.write([streamed()], project / "results")
    assert predict.main([]) == 0 and not predictions.load(project)
    assert "720p-4gpu-layerwise" in capsys.readouterr().out
    write_it = ["--write", "--interconnect", "nvlink"]
    assert predict.main(write_it) == 0
    (content,) = predictions.load(project)
    assert list(content["jobs"]) == ["720p-4gpu-layerwise", "720p-4gpu-resident"]
    assert content["measured"][-1]["path"].startswith("results/1x-nvidia-h200/480p-1gpu-stream-")
    assert predict.main(write_it) == 1
    # What was measured since, here and not committed, is not predicted again.
    job, late = asked("720p-4gpu-layerwise"), measured("layerwise", T720, 4)
    late |= {"job": job.model_dump(mode="json"), "job_hash": job.hashes()[0]}
    synthetic.write([late], project / "results/local")
    (path,) = project.glob("predictions/*")
    path.unlink()
    assert predict.main(write_it) == 1 and not predictions.load(project)
    said = r"720p-4gpu-layerwise: .*720p-4gpu-layerwise-\w+\.json"  # the job, and the record
    assert re.search(said, capsys.readouterr().err)


def test_of_several_gpus_steps_as_long_as_a_video_count_if_there_are_any():
    found, asked = synthetic.committed(), ("NVIDIA H200", 3, "host-memory")
    known = predictions.gather(found, *asked)
    several = [row.tokens for row in known.measured if row.ranks > 1]
    assert known.base.ranks == 2 and min(several) == predictions.SHORTEST
    shortest = min(row.tokens for row in known.measured)
    assert shortest < predictions.SHORTEST, "of one GPU all lengths count"
    runs = found.runs[(found.runs.gpus == 1) | (found.runs.tokens < predictions.SHORTEST)]
    known = predictions.gather(found._replace(runs=runs), *asked)
    assert known.base.ranks == 2 and known.base.tokens < predictions.SHORTEST
