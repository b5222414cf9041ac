"""Computes what the baseline's ledger needs of torch, diffusers and transformers: ``make derive``.

Rendering imports none of them, so their answers are committed: ``baseline/derived/*.json``, each
with the versions of the libraries that gave it. Everything is built on the meta device, without a
weight.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from tools.identify import identified
from wanreport.baseline.facts import DERIVED
from wanreport.engines import ENGINES, Counters, Shape
from wanreport.model.denoise import VAE, latent_shape
from wanreport.model.expert import A14B, EXPERTS, Expert
from wanreport.model.weights import HostStore
from wanreport.records.record import replace_file

UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""Configuration of the pipeline's text encoder, that of google/umt5-xxl."""

VIDEO = {"height": 720, "width": 1280, "num_frames": 81}
BRANCHES = 2
RANKS = (2, 4, 6)

SMALLEST = 1_000_000
"""Elements of the smallest tensor that is listed; no transfer spoken of is as small."""
LARGE = 25_000_000
"""Elements above which a tensor of four-byte numbers is more than 100 MB, the baseline's limit."""


def write(folder: Path = DERIVED) -> list[Path]:
    """Derive everything and write it; returns the files."""
    paths = []
    sizes = architecture()
    found = identified(sizes["numbers"], sizes.pop("tensors"))
    derived = {"architecture": sizes, "identified": {"schema": 1, "sizes": found}}
    for name, content in derived.items():
        paths.append(folder / f"{name}.json")
        text = json.dumps(content, indent=1)
        # A list of numbers reads better on one line.
        text = re.sub(r"\[[\d\s.,]+\]", lambda m: "[" + " ".join(m[0][1:-1].split()) + "]", text)
        replace_file(paths[-1], text + "\n")
    return paths


def _versions(*names: str) -> dict[str, str]:
    return {name: metadata.version(name).partition("+")[0] for name in names}


def architecture() -> dict[str, Any]:
    """Sizes of the model and of what crosses the link.

    Returns
    -------
    ``numbers`` by id (parameters, bytes, counts; per step with both branches), and ``tensors``:
    the large ones of every component, alike ones together.
    """
    experts = {name: Expert(name, A14B, torch.bfloat16) for name in EXPERTS}
    first = experts[EXPERTS[0]]
    with torch.device("meta"):
        text_encoder = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
        vae = AutoencoderKLWan(**VAE)
    _, _, frames, height, width = latent_shape(**VIDEO)
    t, h, w = A14B["patch_size"]
    tokens = (frames // t) * (height // h) * (width // w)
    dim = A14B["num_attention_heads"] * A14B["attention_head_dim"]
    numbers = {
        "experts": len(experts),
        "blocks": len(first.blocks),
        "heads": A14B["num_attention_heads"],
        "dim": dim,
        "tokens": tokens,
        "branches": BRANCHES,
        "block.params": _elements(first.blocks[0].parameters()),
        "block.bytes": _bytes(first.blocks[0].parameters()),
        "expert.params": _elements(first.parameters()),
        "expert.bytes": _bytes(first.parameters()),
        "text_encoder.params": _elements(text_encoder.parameters()),
        "text_encoder.feed_forward.params": UMT5_XXL["d_model"] * UMT5_XXL["d_ff"],
        "vae.params": _elements(vae.parameters()),
        "train_timesteps": UniPCMultistepScheduler().config.num_train_timesteps,
    }
    for ranks in RANKS:
        # A rank keeps its own part of what it exchanges: (N - 1)/N of its 1/N of the tokens leave.
        tensor = tokens * dim * torch.bfloat16.itemsize * (ranks - 1) // ranks**2
        numbers[f"all_to_all.tensor.g{ranks}"] = tensor
        numbers[f"all_to_all.layer.g{ranks}"] = 4 * tensor  # q, k, v and the output
        numbers[f"all_to_all.step.g{ranks}"] = 4 * tensor * len(first.blocks) * BRANCHES
    numbers |= _moved(experts)
    for part, module in (("expert", first), ("text_encoder", text_encoder)):
        large = _large(module)
        numbers |= {f"{part}.large.count": len(large), f"{part}.large.params": sum(large)}
    parts = {"block": first.blocks[0], "expert": first, "text encoder": text_encoder, "VAE": vae}
    return {
        "schema": 1,
        "versions": _versions("torch", "diffusers", "transformers"),
        "numbers": {f"wan.{key}": value for key, value in numbers.items()},
        "tensors": [row for part, module in parts.items() for row in _tensors(part, module)],
    }


def _moved(experts: dict[str, Expert]) -> dict[str, int]:
    """The engines' own closed formulas: a steady step, and the switch."""
    store = HostStore(experts, None)  # type: ignore[arg-type]  # nothing is ever filled
    name, expert = next(iter(experts.items()))

    def counted(engine: str, ranks: int, passes: dict[str, int]) -> Counters:
        shape = Shape(
            layouts=[store.layouts[name, unit] for unit in store.units(name)],
            buffers=tuple(b.numel() * b.element_size() for b in expert.buffers()),
            passes=passes,
            world_size=ranks,
        )
        return ENGINES[engine]().expected(shape, 0)

    found = {}
    layerwise = counted("layerwise", 4, {name: 2 * BRANCHES}) - counted(
        "layerwise", 4, {name: BRANCHES}
    )
    for key in ("h2d_copies", "h2d_bytes", "allocations", "event_waits", "stream_waits",
                "host_syncs"):  # fmt: skip
        found[f"layerwise.step.{key}"] = getattr(layerwise, key)
    for ranks in RANKS:
        step = counted("fsdp", ranks, {name: BRANCHES})
        found[f"fsdp.step.h2d_bytes.g{ranks}"] = step.h2d_bytes
        found[f"fsdp.step.h2d_copies.g{ranks}"] = step.h2d_copies
    found["swap.switch.h2d_bytes"] = counted("swap", 4, {name: BRANCHES}).h2d_bytes
    return found


def _elements(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _large(module: nn.Module) -> list[int]:
    """Elements of a module's large tensors; as in SGLang, q, k, v of a text encoder are one."""
    sizes: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        sizes[re.sub(r"(?<=SelfAttention\.)[qkv]\b", "qkv", name)] += parameter.numel()
    return [size for size in sizes.values() if size > LARGE]


def _tensors(part: str, module: nn.Module) -> list[dict[str, Any]]:
    """The large tensors of a module; those whose names differ by a number only are one row."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.numel() < SMALLEST or (part == "expert" and name.startswith("blocks.")):
            continue
        name = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).removeprefix("block.")
        row = rows.setdefault(
            (name, parameter.numel()),
            {"part": part, "name": name, "elements": parameter.numel(), "count": 0},
        )
        row["count"] += 1
    return list(rows.values())


if __name__ == "__main__":
    print(*write(), sep="\n")
