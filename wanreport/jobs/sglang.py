"""What SGLang 0.5.9 makes of a job's offload flags and of its model path.

Line numbers cite its ``multimodal_gen``. A model's settings follow from the *text* of its path: in
a folder with another name Wan2.2-T2V-A14B gets those of 1.3B, with flow shift 3 and not 12.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ARGS = "server_args.py"
RATIO = "boundary_ratio"
SWITCHES = ("dit_layerwise_offload", "dit_cpu_offload", "use_fsdp_inference")
ENGINE_FLAGS = {engine: dict(zip(SWITCHES, values, strict=False)) for engine, values in {
    "resident": [False, False], "swap": [False, True], "fsdp": [False, True, True],
    "layerwise": [True],
}.items()}  # fmt: skip
"""For each engine, job fields with which SGLang 0.5.9 arrives at that engine."""


@dataclass(frozen=True)
class SglangResolution:
    """The offload flags after SGLang's adjustments, for a Wan model on CUDA."""

    layerwise: bool
    cpu_offload: bool
    fsdp: bool
    prefetch_size: float  # below 1 a ratio of the layers, else a count
    engine: str | None  # what the flags amount to; None where wanreport has no such engine
    steps: list[str]  # the rules that fired, in order, each with its citation


def resolve(
    layerwise: bool | None, cpu_offload: bool | None, fsdp: bool, prefetch: float
) -> SglangResolution:
    """Resolve the flags as SGLang does for a Wan model on an NVIDIA GPU: exclusions come last."""
    cut = math.floor(prefetch) if prefetch > 1 else prefetch
    layered, offloaded = layerwise is not False, cpu_offload is not False
    rules = {
        f"dit_cpu_offload was not given: true for video ({ARGS}:440)": cpu_offload is None,
        f"dit_layerwise_offload was not given: true for Wan on CUDA ({ARGS}:555)":
            layerwise is None,
        f"dit_offload_prefetch_size {prefetch:g} is cut to {cut} ({ARGS}:1078)": cut != prefetch,
        f"layerwise offload turns use_fsdp_inference off ({ARGS}:1099)": layered and fsdp,
        f"dit_cpu_offload stays true, as line 440 decided before ({ARGS}:1101)":
            layered and offloaded,
    }  # fmt: skip
    fsdp = fsdp and not layered
    engines = {"layerwise": layered, "fsdp": fsdp and offloaded, None: fsdp, "swap": offloaded}
    engine = next((name for name, chosen in engines.items() if chosen), "resident")
    steps = [said for said, fired in rules.items() if fired]
    return SglangResolution(layered, offloaded, fsdp, float(cut), engine, steps)


def resolve_text(flags: str) -> SglangResolution:
    """Resolve flags written as on a command line; those not about offloading are passed over."""
    given = {key.replace("-", "_"): value for key, value in re.findall(r"--(\S+) (\S+)", flags)}
    layerwise, cpu, fsdp = ({"true": True, "false": False}.get(given.get(k, "")) for k in SWITCHES)
    return resolve(layerwise, cpu, bool(fsdp), float(given.get("dit_offload_prefetch_size", 0)))


def prefetch_layers(size: float, num_layers: int) -> int:
    """How many layers SGLang's layerwise offload holds ahead, 1 to `num_layers`.

    Below 1, `size` is a ratio of the layers after the first one; from 1 on it is a count
    (``layerwise_offload.py:421``, clamped at ``:42``). Halves round to even, as ``round`` does.
    """
    wanted = 1 + round(size * (num_layers - 1)) if size < 1 else int(size)
    return min(max(1, wanted), num_layers)


class ModelPathError(ValueError):
    """A model path that leads to no settings; the message says what to give instead."""


@dataclass(frozen=True)
class ModelSettings:
    """What SGLang would run a model with."""

    config: str  # SGLang's name of the pipeline's configuration
    flow_shift: float
    boundary_ratio: float | None  # where the experts switch; None for a model with one
    guidance_scale: float
    guidance_scale_2: float
    how: str = ""  # the path led there: "exact", "partial" or "detector"
    steps: tuple[str, ...] = ()  # in order, with citations


# The models of Wan-AI that SGLang registers, by their names on the hub. Flow shift and boundary
# ratio: configs/pipeline_configs/wan.py; guidance: configs/sample/wan.py.
_MODELS = {f"Wan-AI/{name}-Diffusers": ModelSettings(*settings) for name, settings in {
    "Wan2.1-T2V-1.3B": ("WanT2V480PConfig", 3.0, None, 3.0, 3.0),
    "Wan2.1-T2V-14B": ("WanT2V720PConfig", 5.0, None, 5.0, 5.0),
    "Wan2.1-I2V-14B-480P": ("WanI2V480PConfig", 3.0, None, 5.0, 5.0),
    "Wan2.1-I2V-14B-720P": ("WanI2V720PConfig", 5.0, None, 5.0, 5.0),
    "Wan2.2-TI2V-5B": ("Wan2_2_TI2V_5B_Config", 5.0, None, 5.0, 5.0),
    "Wan2.2-T2V-A14B": ("Wan2_2_T2V_A14B_Config", 12.0, 0.875, 4.0, 3.0),
    "Wan2.2-I2V-A14B": ("Wan2_2_I2V_A14B_Config", 5.0, 0.9, 3.5, 3.5),
}.items()}  # fmt: skip

# Looked for in this order in the path and in the checkpoint's class name; "": not a Wan model.
_DETECTORS = {"ltx-2": "", "hunyuan": "", "wanpipeline": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
              "wanimagetovideo": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"}  # fmt: skip


def resolve_model(model_path: str, *, index: Mapping[str, Any] | None = None) -> ModelSettings:
    """The settings that SGLang would take for a name on the hub, or for a checkpoint's folder.

    Without the folder `index` stands for its ``model_index.json``. Raises ModelPathError if nothing
    matches, or the index is missing or unusable.
    """
    file = Path(model_path) / "model_index.json"
    try:
        read = json.loads(file.read_bytes()) if Path(model_path).exists() else index
        kind, ratio = (None, None) if read is None else map(read.get, ("_class_name", RATIO))
        if ratio is not None and not (type(ratio) in (int, float) and 0 <= ratio <= 1):
            raise ValueError(f"{RATIO} is {ratio!r}, and not a number from 0 to 1")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelPathError(f"{file}: {error}; copy the checkpoint again") from error
    path, text = repr(model_path), "" if read is None else f"{model_path} {kind}".lower()
    word = next((word for word in _DETECTORS if word in text), "")
    end = model_path.lower().rstrip("/").split("/")[-1]
    partial = [name for name in _MODELS if name.lower().endswith(f"/{end}")]
    if model_path in _MODELS:
        name, how, steps = model_path, "exact", [f"{path} is a registered name (registry.py:249)"]
    elif partial:
        name, how = partial[0], "partial"
        steps = [f"{path} ends like {name} (registry.py:260)"]
    elif name := _DETECTORS.get(word, ""):
        how = "detector"
        steps = [f"{path} is not registered, nor is its end (registry.py:249, :260)",
                 f"path or class name ({kind}) contain {word!r} (registry.py:277)"]  # fmt: skip
    else:
        raise ModelPathError(
            f"model_path {path} ({kind or 'no folder'}) is not a Wan model; give a diffusers folder"
            f" named as on the hub, or one of {', '.join(_MODELS)}; nothing is downloaded"
        )
    if ratio is not None:
        steps += [f"{RATIO} {ratio:g} is the checkpoint's (composed_pipeline_base.py:216)"]
    found = replace(_MODELS[name], how=how, steps=tuple(steps))
    return found if ratio is None else replace(found, boundary_ratio=float(ratio))
