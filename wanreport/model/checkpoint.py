"""Whether a checkpoint's folder is whole, found out before anything runs. Nothing here needs torch.

The files that count are those that diffusers and transformers would read: an index of shards where
there is one, else the one file of the component's name, and no other file beside it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

FOLDERS = {"high_noise": "transformer", "low_noise": "transformer_2"}
_DIFFUSERS = "diffusion_pytorch_model.safetensors"
COMPONENTS = {
    "": ("model_index.json", "WanPipeline", None),
    **{sub: ("config.json", "WanTransformer3DModel", _DIFFUSERS) for sub in FOLDERS.values()},
    "text_encoder": ("config.json", "UMT5EncoderModel", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json", None, None),
    "vae": ("config.json", "AutoencoderKLWan", _DIFFUSERS),
    "scheduler": ("scheduler_config.json", "UniPCMultistepScheduler", None),
}
"""The parts of a folder: the file that describes each, the class that must stand there, and the
file of its weights."""
FLOATS = ("BF16", "F16", "F32", "F64")
LFS = b"version https://git-lfs"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names each file and what is wrong with it."""


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def audit(folder: Path) -> dict[str, dict[str, Stored]]:
    """Each component's tensors by name, from files' headers; CheckpointError has all problems."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not there")
    problems: list[str] = []
    found: dict[str, dict[str, Stored]] = {}
    for sub, (listing, kind, weights) in COMPONENTS.items():
        try:
            texts = _json_files(folder / sub, listing)
            said = texts[listing].get("_class_name") or texts[listing].get("architectures")
            if kind and said not in (kind, [kind]):
                raise CheckpointError(f"{folder / sub / listing}: is of {said}; only {kind} is run")
            if weights:
                index = texts.get(f"{weights}.index.json", {})
                found[sub] = _tensors(folder / sub / weights, dict(index.get("weight_map", {})))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return found


def _json_files(folder: Path, listing: str) -> dict[str, dict[str, Any]]:
    """The contents of a component's JSON files, of which ``listing`` must be one."""
    texts = {}
    for file in filter(Path.is_file, sorted(folder.glob("*"))):
        try:
            with file.open("rb") as opened:
                if opened.read(len(LFS)) == LFS:
                    raise ValueError("is a pointer of Git LFS; run `git lfs pull`")
            if file.suffix == ".json":
                texts[file.name] = dict(json.loads(file.read_text("utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: {error}") from None
    if listing not in texts:
        raise CheckpointError(f"{folder / listing}: is not there")
    return texts


def _tensors(file: Path, places: dict[str, str]) -> dict[str, Stored]:
    """Names and places of the tensors in a component's weights: one file, or an index's shards."""
    found: dict[str, Stored] = {}
    for shard in sorted({*places.values()} or {file.name}):
        path = file.with_name(shard)
        try:
            with safe_open(path, "np") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                dtypes = {name: part.get_dtype() for name, part in parts.items()}
                found |= {n: Stored(path, tuple(part.get_shape())) for n, part in parts.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        if odd := [f"{name} of {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS]:
            raise CheckpointError(f"{path}: holds {some(odd)}; quantised weights are not read")
    for name, shard in places.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{file}.index.json: {name} is not in {shard}")
    return found


def some(names: list[str]) -> str:
    """The first names of many."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
