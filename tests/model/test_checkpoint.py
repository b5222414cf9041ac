"""Checkpoints: the bits of diffusers from a good one; what is wrong with others, said by file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import save_checkpoint
from tests.ranks import run_ranks
from tests.synthetic import quick
from wanreport import cli
from wanreport.jobs.job import load_job, located
from wanreport.measure.jobs import measure_jobs
from wanreport.measure.worker import TINY_VIDEO
from wanreport.model.checkpoint import CheckpointError
from wanreport.model.clock import sha256
from wanreport.model.denoise import decode, encode_prompts, latent_shape, make_scheduler, make_vae
from wanreport.model.expert import EXPERTS
from wanreport.model.weights import CheckpointWeights

WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE, TWO = f"transformer/{WEIGHTS}", f"transformer_2/{WEIGHTS}"
TENSOR = "blocks.0.attn1.to_q.weight"
CPU = torch.device("cpu")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one, saved once."""
    folder = tmp_path_factory.mktemp("hub") / "Wan-AI" / "Wan2.2-T2V-A14B-Diffusers"
    save_checkpoint(folder)
    return folder


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "Wan2.2-T2V-A14B-Diffusers"))


def ran(folder: Path, results: Path, **changes: Any) -> dict[str, Any]:
    """The record of a small job with a checkpoint."""
    made = {"engine": "resident", "num_gpus": 1, "num_inference_steps": 2}
    made |= {"checkpoint": str(folder), "model_path": str(folder)} | changes
    return measure_jobs([quick(**made)], results, results / "log")[0][1]


def tensors(made: Callable[[Any], torch.Tensor], name: str = TENSOR) -> Damage:
    """Write a file's tensors, or those of a folder's weights, again, one of them another."""

    def change(file: Path) -> None:
        file = file / WEIGHTS if file.is_dir() else file
        found = load_file(file)
        found[name] = made(found)
        save_file(found, file)

    return change


def text(content: str) -> Damage:
    return lambda file: file.write_text(content)


def said(**changes: Any) -> Damage:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def sharded(file: Path) -> None:
    index = {"weight_map": {"not.there": file.name}}
    Path(f"{file}.index.json").write_text(json.dumps(index))


POINTER = text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("model_index.json", text("{"), ""),
        ("model_index.json", said(_class_name="WanVACEPipeline"), "WanVACEPipeline"),
        ("transformer/config.json", Path.unlink, ""),
        ("text_encoder/config.json", said(architectures=["T5EncoderModel"]), "T5EncoderModel"),
        ("scheduler/scheduler_config.json", said(_class_name="FlowMatchEuler"), "FlowMatchEuler"),
        ("tokenizer/tokenizer_config.json", Path.unlink, ""),
        ("tokenizer/tokenizer.json", POINTER, "LFS"),
        ("text_encoder/model.safetensors", POINTER, "LFS"),
        (f"vae/{WEIGHTS}", cut, ""),
        (ONE, Path.unlink, ""),
        (ONE, sharded, "not.there"),
        (TWO, tensors(lambda t: t[TENSOR].to(torch.float8_e4m3fn)), TENSOR),
        (TWO, tensors(lambda t: t[TENSOR].to(torch.int8)), TENSOR),
        # What the model does not ask for so: a scale too, or instead, or another shape.
        ("transformer_2", tensors(lambda _: torch.ones(1), f"{TENSOR}_scale"), f"{TENSOR}_scale"),
        ("transformer_2", tensors(lambda t: t.pop(TENSOR), f"{TENSOR}_scale"), TENSOR),
        ("transformer_2", tensors(lambda t: t[TENSOR][:1].clone()), TENSOR),
    ],
)
def test_a_file_that_is_missing_damaged_or_of_another_kind_is_named(
    broken: Path, name: str, damage: Damage, word: str
) -> None:
    weights = CheckpointWeights(broken)
    assert all(weights.config(expert)["patch_size"] == (1, 2, 2) for expert in EXPERTS)
    damage(broken / name)
    with pytest.raises(CheckpointError) as caught:
        CheckpointWeights(broken).config(EXPERTS[1])
    assert str(broken / name) in str(caught.value) and word in str(caught.value)


def test_a_damaged_checkpoint_is_a_record_with_all_problems(broken: Path, tmp_path: Path) -> None:
    shutil.rmtree(broken / "transformer_2")
    cut(broken / ONE)
    record = ran(broken, tmp_path / "results")
    assert record["status"] == "unsupported" and record["hint"]
    assert all(str(broken / part) in record["reason"] for part in (ONE, "transformer_2"))


def test_another_file_beside_the_weights_is_not_read(broken: Path) -> None:
    found = load_file(broken / ONE)
    ema = {name: torch.zeros_like(each) for name, each in found.items()}
    save_file(ema, broken / ONE.replace(".safetensors", "_ema.safetensors"))
    out = torch.empty_like(found[TENSOR])
    CheckpointWeights(broken).fill("high_noise", TENSOR, out)
    assert torch.equal(out, found[TENSOR])


@pytest.mark.parametrize(
    ("name", "load"),
    [("text_encoder/model.safetensors", lambda folder: encode_prompts(folder, ["a"], CPU)),
     (f"vae/{WEIGHTS}", lambda folder: make_vae({}, folder, CPU, 0))],
)  # fmt: skip
def test_no_tensor_of_text_encoder_or_vae_is_made_up(broken: Path, name: str, load: Damage) -> None:
    load(broken)
    first = max(load_file(broken / name), key=len)
    tensors(lambda t: t.pop(first), f"x.{first}")(broken / name)
    with pytest.raises(CheckpointError, match=first):
        load(broken)


def test_what_is_not_finite_has_a_status_and_no_hash(broken: Path, tmp_path: Path) -> None:
    for odd in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="1 of 2"):
            sha256(torch.tensor([1.0, odd]))
    tensors(lambda t: t[TENSOR].fill_(float("nan")))(broken / ONE)
    record = ran(broken, tmp_path / "results")
    assert record["status"] == "non-finite" and record["iterations"] == []
    assert "NaN" in record["reason"] and "resident" in record["hint"]


def test_paths_in_params_are_expanded_and_must_be_there(project, checkpoint, monkeypatch, capsys):
    hub, name = checkpoint.parent, checkpoint.name
    monkeypatch.setenv("HOME", str(hub))
    monkeypatch.setenv("HUB", str(hub.parent))
    (project / "weights").symlink_to(hub)
    monkeypatch.chdir(project / "params")
    file = project / "params/baseline/good.yaml"

    def check(**paths: str) -> int:
        keys = {"name": "good", "engine": "layerwise", "num_gpus": 1} | paths
        file.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        return cli.main(["check", str(file)])

    for root, folder in {"~": hub, "$HUB/Wan-AI": hub, "weights": project / "weights"}.items():
        path = f"{root}/{name}"
        assert check(checkpoint=path, model_path=path) == 0
        out = capsys.readouterr().out
        assert out.count(str(folder / name)) == 2 and "flow_shift 12" in out
        job = load_job(file)
        assert job.checkpoint == path, "what is hashed and recorded is what the file says"
        assert located(job, project).checkpoint == str(folder / name)
    for key in ("checkpoint", "model_path"):
        assert check(**{key: "$HUB/nowhere"}) == 1
        err = capsys.readouterr().err
        assert "good.yaml" in err and str(hub.parent / "nowhere") in err


def _reference(checkpoint: Path, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(
        checkpoint, dtype={"vae": torch.float32, "default": torch.bfloat16}
    )
    pipe.scheduler = make_scheduler(shift, checkpoint)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(latent_shape(**TINY_VIDEO), generator=torch.Generator().manual_seed(0))
    how = {
        "prompt": "a red panda", "negative_prompt": "bicycle", "guidance_scale": 4.0,
        "guidance_scale_2": 3.0, "latents": noise, **TINY_VIDEO,
    }  # fmt: skip
    # Our decoding is the pipeline's own, up to what its post-processing starts from.
    frames = decode(pipe.vae, pipe(**how, num_inference_steps=1, output_type="latent").frames)
    video = pipe(**how, num_inference_steps=1, output_type="pt").frames
    assert torch.equal(pipe.video_processor.postprocess_video(frames, output_type="pt"), video)
    latents = pipe(**how, num_inference_steps=9, output_type="latent").frames
    return latents, decode(pipe.vae, latents)


def test_latents_and_video_are_bit_identical_to_diffusers_over_all_steps(checkpoint, tmp_path):
    record = ran(checkpoint, tmp_path, engine="layerwise", prompt="a red panda", decode=True,
                 negative_prompt="bicycle", warmup_iterations=0,
                 num_inference_steps=9, dit_layerwise_offload=None)  # fmt: skip
    assert record["status"] == "ok", record["reason"]
    said = [record["model"][k] for k in ("weights", "prompt_embeds", "how", "flow_shift")]
    assert said == ["checkpoint", "encoded", "partial", 12.0]
    assert record["schedule"]["switch_step"] == 6
    ((latents, frames),) = run_ranks(_reference, 1, checkpoint, 12.0)
    iteration = record["iterations"][0]
    assert iteration["latents_sha256"] == sha256(latents.float())
    assert iteration["video_sha256"] == sha256(frames)
    assert frames.isfinite().all()
