"""Our forward and our loop, against `diffusers.WanPipeline` as the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.models import make_experts
from wanreport.jobs.job import Job
from wanreport.measure.jobs import run_job
from wanreport.measure.worker import TINY_VIDEO
from wanreport.model.clock import sha256
from wanreport.model.denoise import decode, latent_shape, make_scheduler
from wanreport.model.expert import A14B, Expert
from wanreport.model.weights import Layout


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
    job = Job(
        name="oracle", engine="layerwise", num_gpus=1, scale="tiny", checkpoint=str(checkpoint),
        model_path=str(checkpoint), prompt="a red panda", negative_prompt="bicycle",
        warmup_iterations=0, profile=False, num_inference_steps=9,
    )  # fmt: skip
    record = json.loads(run_job(job, tmp_path).read_text())
    assert record["status"] == "ok", record["reason"]
    said = [record["model"][k] for k in ("weights", "prompt_embeds", "how", "flow_shift")]
    assert said == ["checkpoint", "encoded", "partial", 12.0]
    assert record["schedule"]["switch_step"] == 6
    torch.set_num_threads(1)  # as a rank
    latents, frames = _reference(checkpoint, 12.0)
    iteration = record["iterations"][0]
    assert iteration["latents_sha256"] == sha256(latents.float())
    assert iteration["video_sha256"] == sha256(frames)
    assert frames.isfinite().all()


def test_a14b_has_the_size_the_field_knows() -> None:
    """14.3 billion parameters an expert; a block of 0.70 GB in bfloat16."""
    expert = Expert("high_noise", A14B, torch.bfloat16)
    assert sum(p.numel() for p in expert.parameters()) == 14_288_491_584
    layout = Layout.of(dict(expert.blocks[0].named_parameters()))
    assert layout.nbytes == sum(p.nbytes for p in expert.blocks[0].parameters())  # no padding
    assert round(layout.nbytes / 1e9, 2) == 0.70


def test_dtypes_follow_diffusers() -> None:
    parameters = make_experts()["high_noise"].named_parameters()
    wide = [name for name, each in parameters if each.dtype == torch.float32]
    for part, kept in {"scale_shift_table": True, "norm2": True, "time_embedder": True,
                       "norm_q": False, "ffn": False}.items():  # fmt: skip
        assert any(part in name for name in wide) == kept, part
