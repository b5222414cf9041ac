"""Whether a checkpoint's folder is whole, found out before anything runs. Nothing here needs torch.

The files that count are those that diffusers and transformers would read: an index of shards where
there is one, else the one file of the component's name, and no other file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    hint = "point `checkpoint` at a complete folder, as `WanPipeline.save_pretrained` writes it"


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def audit(folder: Path) -> dict[str, dict[str, Stored]]:
    """The tensors of each component by their names, from the headers of its files.

    Raises CheckpointError with all that is missing, damaged or of another kind.
    """
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
                found[sub] = _tensors(folder / sub / weights, texts)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return found


def _json_files(folder: Path, listing: str) -> dict[str, dict[str, Any]]:
    """The contents of a component's JSON files, of which ``listing`` must be one."""
    files = [file for file in sorted(folder.glob("*")) if file.is_file()]
    if folder / listing not in files:
        raise CheckpointError(f"{folder / listing}: is not there")
    texts = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                if opened.read(len(LFS)) == LFS:
                    raise CheckpointError(f"{file}: is a pointer of Git LFS; run `git lfs pull`")
            if file.suffix == ".json":
                texts[file.name] = dict(json.loads(file.read_text("utf-8")))
        except (OSError, TypeError, ValueError) as error:
            named = isinstance(error, CheckpointError)
            raise error if named else CheckpointError(f"{file}: {error}") from None
    return texts


def _tensors(file: Path, texts: dict[str, dict[str, Any]]) -> dict[str, Stored]:
    """Names and places of the tensors in a component's weights: one file, or shards."""
    index = file.with_name(f"{file.name}.index.json")
    places = dict(texts.get(index.name, {}).get("weight_map", {}))
    found: dict[str, Stored] = {}
    for shard in sorted({*places.values()} or {file.name}):
        found |= _header(file.with_name(shard))
    for name, shard in places.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{index}: {name} is not in {shard}")
    return found


def _header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, "np") as opened:
            found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            dtypes = {name: tensor.get_dtype() for name, tensor in found.items()}
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if odd := [f"{name} of {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS]:
        raise CheckpointError(f"{file}: holds {_some(odd)}; quantised weights are not read")
    return {name: Stored(file, shape) for name, shape in shapes.items()}


def match(
    folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse tensors, by name and shape, that are not just those that a model asks for."""
    if lacks := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{folder}: lacks {_some(lacks)}")
    if others := sorted(name for name, shape in found.items() if wanted.get(name) != shape):
        raise CheckpointError(
            f"{folder}: has tensors that the model lacks, or of other shapes: {_some(others)}"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
