"""Text-to-video with two experts: the denoising loop and the decoder.

The loop is `diffusers.WanPipeline.__call__`'s, operation by operation, around experts whose
weights an engine moves. Every rank runs it on the whole latents; only the experts shard.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from torch import Tensor

from wanreport.model.checkpoint import CheckpointError
from wanreport.model.expert import Expert, Watcher

# Channels of the latents, and the VAE's compression of frames and of height and width.
VAE: dict[str, Any] = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
TINY_VAE: dict[str, Any] = VAE | {"base_dim": 8, "num_res_blocks": 1}
TEMPORAL, SPATIAL = 4, 8
TEXT_TOKENS = 512


def latent_shape(height: int, width: int, num_frames: int) -> tuple[int, int, int, int, int]:
    """Shape of the latents of one video, ``(1, channels, frames, height, width)``."""
    frames = (num_frames - 1) // TEMPORAL + 1
    return 1, VAE["z_dim"], frames, height // SPATIAL, width // SPATIAL


def make_scheduler(flow_shift: float, folder: Path | None = None) -> UniPCMultistepScheduler:
    """UniPC with flow sigmas; a checkpoint's own settings are kept but for the shift."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction",
            "flow_shift": flow_shift, "num_train_timesteps": 1000}  # fmt: skip
    if folder is not None:
        return UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler", **flow)
    return UniPCMultistepScheduler(**flow)


@dataclass
class Guidance:
    """Classifier-free guidance of each expert; without ``uncond`` there is one branch.

    With a ``pair`` (:func:`wanreport.model.ulysses.cfg_groups`) its first rank runs cond, its
    second one uncond, and the two exchange what they predict.
    """

    cond: Tensor
    uncond: Tensor | None
    scales: dict[str, float]
    pair: dist.ProcessGroup | None = None

    def texts(self) -> list[Tensor]:
        """The embeddings of the branches that this rank runs."""
        texts = [self.cond] if self.uncond is None else [self.cond, self.uncond]
        return texts if self.pair is None else [texts[dist.get_rank(self.pair)]]

    @property
    def branches(self) -> int:
        """How many branches this rank runs."""
        return len(self.texts())

    def visits(self, engine: Watcher) -> int:
        """How often this rank visits each block in a step."""
        return -(-self.branches // engine.branches_per_visit)


@torch.no_grad()
def predict(
    expert: Expert, engine: Watcher, latents: Tensor, timestep: Tensor, guidance: Guidance
) -> Tensor:
    """One step's noise prediction, ``latents``' shape, in the expert's dtype."""
    texts = guidance.texts()
    x, branches = latents.to(expert.dtype), []
    for first in range(0, len(texts), engine.branches_per_visit):
        engine.use(expert.name)
        group = texts[first : first + engine.branches_per_visit]
        branches += expert(x, timestep, group, engine)
    if guidance.uncond is None:
        return branches[0]
    if guidance.pair is not None:
        mine = branches[0].contiguous()
        branches = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(branches, mine, group=guidance.pair)
    cond, uncond = branches
    return uncond + guidance.scales[expert.name] * (cond - uncond)


@torch.no_grad()
def denoise(
    experts: dict[str, Expert], engine: Watcher, scheduler: UniPCMultistepScheduler,
    latents: Tensor, guidance: Guidance, *, steps: int, boundary: float | None,
    on_step: Callable[[int, str, float], Any], run: Container[int] | None = None,
) -> Tensor:  # fmt: skip
    """Denoise ``latents`` over the whole schedule; return them, float32.

    They begin as ``[1, channels, frames, height, width]``, float32 noise on the engine's device.
    Below the timestep ``boundary`` the low-noise expert runs; None: never. ``on_step``, given step
    index, expert and timestep, makes the context of a step. Only steps with indices in ``run`` run,
    all by default; in the others no expert does and the scheduler is given a flow of zero, so that
    the steps that run are the schedule's own.
    """
    scheduler.set_timesteps(steps, device=latents.device)
    scheduler.set_begin_index(0)
    # Known on the host before the loop, so that no step waits for the device to tell it.
    times = scheduler.timesteps.tolist()
    names = ["high_noise" if boundary is None or t >= boundary else "low_noise" for t in times]
    run = range(len(names)) if run is None else run
    visits = guidance.visits(engine)
    engine.begin([name for i, name in enumerate(names) if i in run for _ in range(visits)])
    for index, (name, timestep) in enumerate(zip(names, scheduler.timesteps, strict=True)):
        if index not in run:
            still = torch.zeros_like(latents, dtype=experts["high_noise"].dtype)
            latents = scheduler.step(still, timestep, latents, return_dict=False)[0]
            continue
        with on_step(index, name, times[index]):
            each = timestep.expand(latents.shape[0])
            noise = predict(experts[name], engine, latents, each, guidance)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    return latents


def _loaded(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model whose tensors are just those in ``folder``, none of them made up for want of one."""
    model, found = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if problems := [f"{key}: {', '.join(map(str, found[key]))}" for key in keys if found[key]]:
        raise CheckpointError(f"{folder}: {'; '.join(problems):.300}")
    return model


def make_vae(config: dict[str, Any], folder: Path | None, device: torch.device, seed: int) -> Any:
    """The decoder, from a checkpoint's ``vae`` folder or with random weights, in float32."""
    if folder is not None:
        vae = _loaded(AutoencoderKLWan, folder / "vae", torch.float32)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = AutoencoderKLWan(**config)
    return vae.eval().requires_grad_(False).to(device)


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Video of ``latents``, ``[1, 3, frames, height, width]`` in about -1…1."""
    latents = latents.to(vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)
    return vae.decode(latents / inverse + mean, return_dict=False)[0]


@torch.no_grad()
def encode_prompts(folder: Path, prompts: list[str], device: torch.device) -> list[Tensor]:
    """Text embeddings, ``[1, 512, text_dim]`` each, from a checkpoint's own text encoder."""
    from diffusers import WanPipeline
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = _loaded(UMT5EncoderModel, folder / "text_encoder", torch.bfloat16)
    encoder = encoder.to(device)  # before the engine needs the room; freed on return
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    pipe = WanPipeline(tokenizer, encoder, None, None, None, None)
    how = {"do_classifier_free_guidance": False, "max_sequence_length": TEXT_TOKENS}
    return [pipe.encode_prompt(prompt, device=device, **how)[0] for prompt in prompts]
