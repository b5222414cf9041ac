"""Small models for tests: experts with random weights, and a whole checkpoint folder."""

import contextlib
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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


def make_store(transfer: str = "bf16", device: str = "cpu", source: Any = None, *,
               experts: dict[str, Expert] | None = None, **how: Any) -> HostStore:  # fmt: skip
    """A filled host store of both experts, or of others."""
    # By threads, which do not know this one's device.
    packing = None if transfer == "bf16" else torch.empty(0, device=device).device
    return HostStore(experts or make_experts(), source or RandomWeights(0), packing=packing,
                     transfer=transfer, **how)  # fmt: skip


def run_engine(
    engine: Engine, *, steps: int = 3, iterations: int = 2, dtype: torch.dtype = torch.bfloat16,
    cfg: bool = True, cfg_parallel: bool = False, device: str = "cpu",
    size: tuple[int, int, int] = (48, 48, 9),  # 27 tokens, which few world sizes divide either
    segments: Segments | None = None, store: HostStore | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Attach, run and detach on this rank; latents, counters and what they should be.

    A ``store`` is the caller's, for many runs; without one the run has its own.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    experts = make_experts(dtype, **changes)
    row, pair = cfg_groups() if cfg_parallel else (group, None)
    for expert in experts.values():
        expert.parallel, expert.segments = SequenceParallel(row), segments or Segments()
    own, first = store is None, experts[EXPERTS[0]]
    if store is None:
        how = {"pin": device == "cuda" and engine.pins_store, "experts": experts}
        how["group"] = group if engine.shares_store else None
        store = make_store(engine.transfer, device, **how)
    engine.attach(experts, store, torch.device(device), group)
    generator, width = torch.Generator().manual_seed(1), first.config["text_dim"]
    texts = [torch.randn(1, 16, width, generator=generator).to(device, dtype) for _ in range(2)]
    noise = torch.randn(latent_shape(*size), generator=generator).to(device)
    guidance = Guidance(texts[0], texts[1] if cfg else None, SCALES, pair)
    visits = guidance.visits(engine)
    result: dict[str, Any] = {"latents": [], "counters": [], "expected": [], "visits": visits}
    for iteration in range(iterations):
        on_step = Mock(return_value=contextlib.nullcontext())
        before = engine.mover.counters + Counters()
        try:
            latents = denoise(experts, engine, make_scheduler(12.0), noise, guidance, steps=steps,
                              boundary=950, on_step=on_step)  # fmt: skip
        except InterruptedError:  # planted by a test: the engine must be as good as before
            continue
        names = [expert for (_, expert, _), _ in on_step.call_args_list]
        shape = Shape(
            layouts=[store.layouts[first.name, unit] for unit in store.units(first.name)],
            buffers=tuple(b.numel() * b.element_size() for b in first.buffers()),
            passes={name: names.count(name) * visits for name in EXPERTS},
            world_size=dist.get_world_size() if group else 1,
            branches=guidance.branches // visits,
        )  # fmt: skip
        result["latents"].append(latents)
        result["counters"].append(engine.mover.counters - before)
        result["expected"].append(engine.expected(shape, iteration))
        result["experts"] = names
    engine.detach()
    if own:
        store.close()
    return result


class Runs:
    """Runs engines in a rank over all kinds of stores, each filled once."""

    def __init__(self, **how: Any) -> None:
        self.how, self.device = how, how.get("device", "cpu")
        self.stores: dict[Any, HostStore] = {}

    def __call__(self, engine: Engine, **how: Any) -> dict[str, Any]:
        pin = self.device != "cpu" and engine.pins_store
        key = engine.shares_store, engine.transfer, pin
        if key not in self.stores and "store" not in how:
            experts = make_experts(**{k: v for k, v in self.how.items() if k in NARROW})
            group = dist.group.WORLD if engine.shares_store else None
            self.stores[key] = make_store(
                engine.transfer, self.device, experts=experts, group=group, pin=pin)  # fmt: skip
        return run_engine(engine, **({"store": self.stores.get(key)} | self.how | how))

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def compiled() -> dict[str, int]:
    """How many graphs torch.compile has made in this process, and how often it broke one.

    A segment that compiles once is one graph; each further one is a break or a recompilation.
    """
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values())}  # fmt: skip


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
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    encoder = UMT5Config(
        vocab_size=8, d_model=NARROW["text_dim"], d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
        text_encoder=UMT5EncoderModel(encoder), vae=AutoencoderKLWan(**TINY_VAE),
        scheduler=make_scheduler(3.0), transformer=WanTransformer3DModel(**NARROW),
        transformer_2=WanTransformer3DModel(**NARROW), boundary_ratio=0.875,
    ).save_pretrained(folder)  # fmt: skip
