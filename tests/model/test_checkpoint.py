"""Checkpoints that are damaged, or not what they seem: said before anything runs, by file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wanreport import cli
from wanreport.jobs.job import Job, load_job, located
from wanreport.measure.jobs import run_job
from wanreport.model.checkpoint import CheckpointError, audit
from wanreport.model.clock import sha256
from wanreport.model.denoise import encode_prompts, make_vae
from wanreport.model.weights import CheckpointWeights
from wanreport.records.record import read_record

WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE, TWO = f"transformer/{WEIGHTS}", f"transformer_2/{WEIGHTS}"
TENSOR = "blocks.0.attn1.to_q.weight"
CPU = torch.device("cpu")


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "Wan2.2-T2V-A14B-Diffusers"))


def job_of(folder: Path) -> Job:
    return Job(name="j", engine="resident", num_gpus=1, scale="tiny", checkpoint=str(folder),
               model_path=str(folder), decode=False, profile=False, num_inference_steps=2,
               dit_layerwise_offload=False, dit_cpu_offload=False)  # fmt: skip


def change(file: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write a file's tensors again, changed in place."""
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def to(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda file: change(file, lambda t: t.update({TENSOR: t[TENSOR].to(dtype)}))


def said(**changes: Any) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def sharded(file: Path) -> None:
    names = dict.fromkeys(["not.there"], file.name)
    Path(f"{file}.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("model_index.json", lambda file: file.write_text("{"), ""),
        ("model_index.json", said(_class_name="WanVACEPipeline"), "WanVACEPipeline"),
        ("transformer/config.json", Path.unlink, ""),
        ("text_encoder/config.json", said(architectures=["T5EncoderModel"]), "T5EncoderModel"),
        ("scheduler/scheduler_config.json", said(_class_name="FlowMatchEulerDiscreteScheduler"),
         "FlowMatchEuler"),
        ("tokenizer/tokenizer_config.json", Path.unlink, ""),
        ("tokenizer/tokenizer.json", pointer, "LFS"),
        ("text_encoder/model.safetensors", pointer, "LFS"),
        (f"vae/{WEIGHTS}", cut, ""),
        (ONE, Path.unlink, ""),
        (ONE, sharded, "not.there"),
        (TWO, to(torch.float8_e4m3fn), TENSOR),
        (TWO, to(torch.int8), TENSOR),
    ],
)  # fmt: skip
def test_the_audit_names_a_file_that_is_missing_damaged_or_of_another_kind(
    broken: Path, name: str, damage: Callable[[Path], object], word: str
) -> None:
    assert audit(broken).keys() == {"transformer", "transformer_2", "text_encoder", "vae"}
    damage(broken / name)
    with pytest.raises(CheckpointError) as caught:
        audit(broken)
    assert str(broken / name) in str(caught.value) and word in str(caught.value)


def test_a_damaged_checkpoint_is_a_record_with_all_problems(broken: Path, tmp_path: Path) -> None:
    shutil.rmtree(broken / "transformer_2")
    cut(broken / ONE)
    record = read_record(run_job(job_of(broken), tmp_path / "results"))
    assert record["status"] == "unsupported" and record["hint"]
    assert all(str(broken / part) in record["reason"] for part in (ONE, "transformer_2"))


@pytest.mark.parametrize(
    "how",
    [
        lambda t: t.update({f"{TENSOR}_scale": torch.ones(1)}),
        lambda t: t.update({f"{TENSOR}_scale": t.pop(TENSOR)}),
        lambda t: t.update({TENSOR: t[TENSOR][:1].clone()}),
    ],
    ids=["a scale too", "a scale instead", "another shape"],
)
def test_tensors_that_the_model_does_not_ask_for_so_are_refused_by_name(
    broken: Path, how: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    change(broken / TWO, how)
    weights = CheckpointWeights(broken)
    assert weights.config("high_noise")["patch_size"] == (1, 2, 2)
    with pytest.raises(CheckpointError, match=rf"transformer_2.*{TENSOR}"):
        weights.config("low_noise")


def test_another_file_beside_the_weights_is_not_read(broken: Path) -> None:
    ema = {name: torch.zeros_like(each) for name, each in load_file(broken / ONE).items()}
    save_file(ema, broken / ONE.replace(".safetensors", "_ema.safetensors"))
    wanted = load_file(broken / ONE)[TENSOR]
    out = torch.empty_like(wanted)
    CheckpointWeights(broken).fill("high_noise", TENSOR, out)
    assert torch.equal(out, wanted)


def test_no_tensor_of_text_encoder_or_vae_is_made_up(broken: Path) -> None:
    load: dict[str, Callable[[], object]] = {
        "text_encoder/model.safetensors": lambda: encode_prompts(broken, ["a"], CPU),
        f"vae/{WEIGHTS}": lambda: make_vae({}, broken, CPU, 0),
    }
    for name, run in load.items():
        run()
        first = max(load_file(broken / name), key=len)
        change(broken / name, lambda t, first=first: t.update({f"x.{first}": t.pop(first)}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=first):
            run()


def test_what_is_not_finite_has_a_status_and_no_hash(broken: Path, tmp_path: Path) -> None:
    for odd in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="1 of 2"):
            sha256(torch.tensor([1.0, odd]))
    change(broken / ONE, lambda t: t[TENSOR].fill_(float("nan")))
    record = read_record(run_job(job_of(broken), tmp_path / "results"))
    assert record["status"] == "non-finite" and record["iterations"] == []
    assert "NaN" in record["reason"] and "resident" in record["hint"]


def test_paths_in_params_are_expanded_and_must_be_there(
    project: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub = checkpoint.parent
    monkeypatch.setenv("HOME", str(hub))
    monkeypatch.setenv("HUB", str(hub.parent))
    (project / "weights").symlink_to(hub)
    monkeypatch.chdir(project / "params")
    file = project / "params/baseline/good.yaml"
    for text, folder in {"~": hub, "$HUB/Wan-AI": hub, "weights": project / "weights"}.items():
        path = f"{text}/{checkpoint.name}"
        file.write_text(
            f"name: good\nengine: layerwise\nnum_gpus: 1\ncheckpoint: {path}\nmodel_path: {path}\n"
        )
        assert cli.main(["check", str(file)]) == 0
        out = capsys.readouterr().out
        assert out.count(str(folder / checkpoint.name)) == 2 and "flow_shift 12" in out
        job = load_job(file)
        assert job.checkpoint == path, "what is hashed and recorded is what the file says"
        assert located(job, project).checkpoint == str(folder / checkpoint.name)
    for key in ("checkpoint", "model_path"):
        file.write_text(f"name: good\nengine: layerwise\nnum_gpus: 1\n{key}: $HUB/nowhere\n")
        assert cli.main(["check", str(file)]) == 1
        err = capsys.readouterr().err
        assert "good.yaml" in err and str(hub.parent / "nowhere") in err
