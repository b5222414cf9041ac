"""Small models for tests: experts with random weights, and a whole checkpoint folder."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wanreport.engines import ENGINES, Counters, Engine, Shape
from wanreport.model.denoise import TINY_VAE, Guidance, denoise, latent_shape, make_scheduler
from wanreport.model.expert import EXPERTS, TINY, Expert, Segments
from wanreport.model.ulysses import SequenceParallel, cfg_groups
from wanreport.model.weights import HostStore, RandomWeights

SCALES = {"high_noise": 4.0, "low_noise": 3.0}
NARROW = TINY | {"num_attention_heads": 7, "attention_head_dim": 8, "ffn_dim": 64}
"""Narrower than a rehearsal's, as bfloat16 is slow on a CPU; no world size divides 7 heads, and a
block still shrinks when it is packed."""
_MADE: dict[tuple[Any, ...], bytes] = {}


def make_experts(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> dict[str, Expert]:
    """Both experts, on the meta device; built once, and copied, as that is five times faster."""
    key = (dtype, *sorted(changes.items()))
    if key not in _MADE:
        made = {name: Expert(name, NARROW | changes, dtype) for name in EXPERTS}
        _MADE[key] = pickle.dumps(made)
    copy: dict[str, Expert] = pickle.loads(_MADE[key])
    return copy


def run_engine(
    engine: Engine,
    *,
    steps: int = 3,
    iterations: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    cfg: bool = True,
    cfg_parallel: bool = False,
    seed: int = 0,
    size: tuple[int, int, int] = (48, 48, 9),  # 27 tokens, which no world size divides either
    device: str = "cpu",
    segments: Segments | None = None,
    store: HostStore | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Attach, run and detach on this rank; latents, counters and what they should be.

    A ``store`` is the caller's, for many runs; without one the run has its own.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    experts = make_experts(dtype, **changes)
    row, pair = cfg_groups() if cfg_parallel else (group, None)
    for expert in experts.values():
        expert.parallel, expert.segments = SequenceParallel(row), segments or Segments()
    shared = group if engine.shares_store else None
    pin, own = device == "cuda" and engine.pins_store, store is None
    packing = None
    if packs(engine):  # by threads, which do not know this one's device
        packing = torch.empty(0, device=device).device
    source = RandomWeights(seed)
    store = store or HostStore(experts, source, pin=pin, group=shared, packing=packing,
                               transfer=engine.transfer)  # fmt: skip
    first = experts[EXPERTS[0]]
    engine.attach(experts, store, torch.device(device), group)
    generator = torch.Generator().manual_seed(1)
    width = first.config["text_dim"]
    texts = [torch.randn(1, 16, width, generator=generator).to(device, dtype) for _ in range(2)]
    noise = torch.randn(latent_shape(*size), generator=generator).to(device)
    guidance = Guidance(texts[0], texts[1] if cfg else None, SCALES, pair)
    result: dict[str, Any] = {"latents": [], "counters": [], "expected": []}
    for iteration in range(iterations):
        names: list[str] = []

        def on_step(index: int, expert: str, timestep: float, names: list[str] = names) -> Any:
            names.append(expert)
            return contextlib.nullcontext()

        before = engine.mover.counters + Counters()
        try:
            latents = denoise(
                experts, engine, make_scheduler(12.0), noise, guidance,
                steps=steps, boundary=875, on_step=on_step,
            )  # fmt: skip
        except InterruptedError:  # planted by a test: the engine must be as good as before
            continue
        visits = -(-guidance.branches // engine.branches_per_visit)
        shape = Shape(
            blocks=len(first.blocks),
            block=store.layouts[first.name, 0],
            outer=store.layouts[first.name, None],
            buffers=tuple(b.numel() * b.element_size() for b in first.buffers()),
            passes={name: names.count(name) * visits for name in EXPERTS},
            world_size=dist.get_world_size() if group else 1,
            branches=guidance.branches // visits,
        )
        result["latents"].append(latents)
        result["counters"].append(engine.mover.counters - before)
        result["expected"].append(engine.expected(shape, iteration))
        result["experts"] = names
    engine.detach()
    if own:
        store.close()
    return result


def packs(engine: Engine) -> bool:
    """Whether an engine asks for packed weights."""
    return engine.transfer != "bf16"


class Runs:
    """Runs engines in a rank over all kinds of stores, each filled once."""

    def __init__(self, **how: Any) -> None:
        self.how, self.cuda = how, how.get("device") == "cuda"
        self.packing = torch.empty(0, device=how.get("device", "cpu")).device
        self.experts = make_experts(**{k: v for k, v in how.items() if k in NARROW})
        self.stores: dict[Any, HostStore] = {}

    def __call__(self, engine: Engine, **how: Any) -> dict[str, Any]:
        pin = self.cuda and engine.pins_store
        key = engine.shares_store, engine.transfer, pin
        if key not in self.stores:
            self.stores[key] = HostStore(
                self.experts, RandomWeights(0), pin=pin, transfer=engine.transfer,
                group=dist.group.WORLD if engine.shares_store else None,
                packing=self.packing if packs(engine) else None)  # fmt: skip
        return run_engine(engine, **({"store": self.stores[key]} | self.how | how))

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def interrupted(name: str, at: int, **options: Any) -> Engine:
    """An engine whose segment number ``at`` since attach raises within its block."""

    class Interrupted(ENGINES[name]):  # type: ignore[misc, valid-type]
        begun = 0

        def window(self, expert: str, block: int, segment: str) -> None:
            super().window(expert, block, segment)
            self.begun += 1
            if self.begun == at:
                raise InterruptedError("planted")

    return Interrupted(**options)


def save_checkpoint(folder: Path) -> None:
    """Write a tiny, complete Wan2.2 checkpoint in diffusers' format."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(7)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "panda", "rides", "bicycle"]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(8), strict=True)), "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = UMT5Config(
        vocab_size=8, d_model=NARROW["text_dim"], d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    pipe = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(encoder),
        vae=AutoencoderKLWan(**TINY_VAE),
        scheduler=make_scheduler(3.0),
        transformer=WanTransformer3DModel(**NARROW),
        transformer_2=WanTransformer3DModel(**NARROW),
        boundary_ratio=0.875,
    )
    pipe.save_pretrained(folder)
