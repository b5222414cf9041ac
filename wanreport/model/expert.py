"""The two experts of Wan2.2-T2V-A14B, with a forward of our own around diffusers' modules.

One forward of an expert makes one *visit* per block, with one or two branch states (the cond and
uncond halves of classifier-free guidance). A visit runs, branch by branch,

    pre ── all-to-all ── attend ── all-to-all ── post
    norm, QKV, RoPE      attention               projection, cross-attention, feed-forward

Collectives, and the windows in which an engine may move weights, lie only between these three
segments. The segments are plain functions of a block and its tensors, so that one compiled copy
of each serves all blocks. The arithmetic is `diffusers.WanTransformerBlock.forward`'s, operation
by operation: on one rank the results are the same bits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import no_init_weights
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from torch import Tensor, nn

from wanreport.model.ulysses import SequenceParallel

EXPERTS = ("high_noise", "low_noise")

A14B: dict[str, Any] = {
    "num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824,
    "text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16,
    "patch_size": (1, 2, 2), "rope_max_seq_len": 1024, "eps": 1e-6, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
# The same architecture and code paths, small enough for six ranks on a laptop.
TINY = A14B | {"num_layers": 6, "num_attention_heads": 20, "attention_head_dim": 6, "ffn_dim": 162,
               "text_dim": 64, "freq_dim": 32}  # fmt: skip


class Watcher:
    """What the loop and an expert announce while they run; every engine is one."""

    branches_per_visit = 1

    def begin(self, passes: Sequence[str]) -> None:
        """An iteration is next; ``passes`` are the experts of all its forward passes, in order."""

    def use(self, expert: str) -> None:
        """A forward pass of this expert is next."""

    def before_block(self, expert: str, block: int) -> None: ...
    def after_block(self, expert: str, block: int) -> None: ...
    def window(self, expert: str, block: int, segment: str) -> None:
        """The segment that comes next; no collective is in flight until it ends."""

    def collective(self, expert: str, block: int) -> AbstractContextManager[Any]:
        """Around each all-to-all of a block."""
        return nullcontext()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(x)


def pre(
    block: WanTransformerBlock, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, QKV and RoPE of a block's self-attention.

    ``hidden`` is ``[batch, tokens, dim]``, ``modulation`` ``[batch, 6, dim]``, the projected
    timestep embedding; ``cos`` and ``sin`` are rotary frequencies, ``[1, tokens, 1, head_dim]``.
    Returns q, k and v, each ``[batch, tokens, heads, head_dim]``.
    """
    shift, scale, *_ = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)
    normed = (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    attn = block.attn1
    q, k, v = attn.norm_q(attn.to_q(normed)), attn.norm_k(attn.to_k(normed)), attn.to_v(normed)
    q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention, ``[batch, tokens, heads, head_dim]`` in and out."""
    return dispatch_attention_fn(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)


def post(
    block: WanTransformerBlock, hidden: Tensor, attended: Tensor, text: Tensor, modulation: Tensor
) -> Tensor:
    """Output projection, cross-attention and feed-forward of a block.

    ``hidden`` and ``modulation`` are what `pre` got, ``attended`` is ``[batch, tokens, heads,
    head_dim]``, ``text`` ``[batch, text tokens, dim]``. Returns what ``hidden`` has become.
    """
    table = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)
    _, _, gate, shift_ff, scale_ff, gate_ff = table
    out = attended.flatten(2, 3).type_as(hidden)
    for layer in block.attn1.to_out:
        out = layer(out)
    hidden = (hidden.float() + out * gate).type_as(hidden)
    normed = block.norm2(hidden.float()).type_as(hidden)
    hidden = hidden + block.attn2(normed, text, None, None)
    normed = (block.norm3(hidden.float()) * (1 + scale_ff) + shift_ff).type_as(hidden)
    return (hidden.float() + block.ffn(normed).float() * gate_ff).type_as(hidden)


@dataclass
class Segments:
    """The three segments of a visit, eager or compiled."""

    pre: Callable[..., Any] = pre
    attend: Callable[..., Any] = attend
    post: Callable[..., Any] = post

    @classmethod
    def compiled(cls, backend: str = "inductor") -> "Segments":
        # Weights are inputs of the functions, so 40 blocks share one graph of each. And Inductor
        # must not pick the kernels of reductions by their speed on the day: they round differently,
        # so the bits would change from one process to the next under one and the same engine.
        options = {"deterministic": True} if backend == "inductor" else None
        how: dict[str, Any] = {"backend": backend, "dynamic": False, "options": options}
        return cls(*(torch.compile(f, **how) for f in (pre, attend, post)))


class Visit(nn.Module):
    """One block, for one or two branch states: what the hooks of engines and peers surround."""

    def __init__(self, block: WanTransformerBlock, index: int) -> None:
        super().__init__()
        self.block, self.index = block, index

    def forward(self, hiddens: list[Tensor], run: Callable[..., list[Tensor]]) -> list[Tensor]:
        return run(self.block, self.index, hiddens)


class Expert(nn.Module):
    """One transformer of the pair, ``"high_noise"`` or ``"low_noise"``.

    ``config`` are keyword arguments of `diffusers.WanTransformer3DModel`. The module is built on
    the meta device and in its final dtypes, ``dtype`` but for what diffusers keeps in float32;
    weights come from an engine.
    """

    def __init__(self, name: str, config: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.dtype = name, dtype
        with torch.device("meta"), no_init_weights():
            model = WanTransformer3DModel(**config)
        self.config = model.config
        self.patch_embedding = model.patch_embedding
        self.condition_embedder = model.condition_embedder
        self.blocks = nn.ModuleList(Visit(block, i) for i, block in enumerate(model.blocks))
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.scale_shift_table = model.scale_shift_table
        # Frequencies are computed, not loaded: real tensors from the start.
        self.rope = WanRotaryPosEmbed(
            config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"]
        )
        kept = set(WanTransformer3DModel._keep_in_fp32_modules or ())
        for parameter_name, parameter in self.named_parameters():
            wide = kept.intersection(parameter_name.split("."))
            parameter.data = parameter.data.to(torch.float32 if wide else dtype)
            parameter.requires_grad_(False)
        self.segments = Segments()
        self.parallel = SequenceParallel()

    def forward(
        self, latents: Tensor, timestep: Tensor, texts: Sequence[Tensor], watcher: Watcher
    ) -> list[Tensor]:
        """Predict the flow of one or two branches: a tensor each, in the shape of ``latents``.

        These are ``[batch, channels, frames, height, width]`` in the expert's dtype, ``timestep``
        is ``[batch]`` in units of the training schedule (0 to 1000), and ``texts`` has one
        embedding a branch, ``[batch, text tokens, text_dim]``.
        """
        batch, _, *size = latents.shape
        patch, parallel, segments = self.config["patch_size"], self.parallel, self.segments
        cos, sin = (parallel.shard(f, 1) for f in self.rope(latents))
        hidden = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        tokens = hidden.shape[1]
        hidden = parallel.shard(hidden, 1)

        conditions = [self.condition_embedder(timestep, text, None) for text in texts]
        branches = [(c[1].unflatten(1, (6, -1)), c[2]) for c in conditions]

        def visited(block: WanTransformerBlock, index: int, hiddens: list[Tensor]) -> list[Tensor]:
            out, at = [], (self.name, index)
            for hidden, (modulation, text) in zip(hiddens, branches, strict=True):
                watcher.window(*at, "pre")
                q, k, v = segments.pre(block, hidden, modulation, cos, sin)
                with watcher.collective(*at):
                    q, k, v = parallel.to_heads(q, k, v, tokens)
                watcher.window(*at, "attend")
                attended = segments.attend(q, k, v)
                with watcher.collective(*at):
                    attended = parallel.to_tokens(attended, block.attn1.heads)
                watcher.window(*at, "post")
                out.append(segments.post(block, hidden, attended, text, modulation))
            return out

        hiddens = [hidden] * len(branches)
        for index, visit in enumerate(self.blocks):
            watcher.before_block(self.name, index)
            hiddens = visit(hiddens, visited)
            watcher.after_block(self.name, index)

        grid, outputs = [n // p for n, p in zip(size, patch, strict=True)], []
        for hidden, (temb, *_) in zip(hiddens, conditions, strict=True):
            shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
            out = (self.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
            out = parallel.gather(self.proj_out(out), 1, tokens)
            out = out.reshape(batch, *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
            outputs.append(out.flatten(6, 7).flatten(4, 5).flatten(2, 3))
        return outputs
