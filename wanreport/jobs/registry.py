"""Model settings for a model path, found as SGLang 0.5.9 finds them.

SGLang decides by the *text* of the path (``multimodal_gen/registry.py``): the whole
path against the names it knows, then the path's last component, and then a list of words to look
for in the path and in the checkpoint's class name. What the folder really holds plays no part in
it, and symlinks are not followed. So a copy of Wan2.2-T2V-A14B in a folder with another name gets
the settings of the first Wan model registered, the 1.3B one for 480p: flow shift 3, not 12.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple


class ModelPathError(ValueError):
    """A model path that leads to no settings; the message says what to give instead."""


@dataclass(frozen=True)
class ModelSettings:
    """What SGLang 0.5.9 would run a model with.

    Attributes
    ----------
    config : str
        SGLang's name of the pipeline's configuration.
    how : {"exact", "partial", "detector"}
        How the path led there.
    flow_shift, guidance_scale : float or None
        None for models other than Wan.
    boundary_ratio : float or None
        Where the experts switch; None for a model with a single one.
    guidance_scale_2 : float or None
        Guidance of the low-noise expert.
    steps : list of str
        How the settings were found, in order, with citations.
    """

    config: str
    how: Literal["exact", "partial", "detector"]
    flow_shift: float | None
    boundary_ratio: float | None
    guidance_scale: float | None
    guidance_scale_2: float | None
    steps: list[str]


class _Entry(NamedTuple):
    """One registration: names on the hub, detectors, and for Wan models the settings.

    A detector is a string of words. It fires where all of them occur.
    """

    config: str
    hub: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    flow_shift: float | None = None
    boundary_ratio: float | None = None
    guidance: tuple[float | None, float | None] = (None, None)


# In SGLang's order: the first entry with a detector that fires wins. Models other than Wan are left
# out, but for those whose detectors are asked before Wan's own.
# flow_shift and boundary_ratio: configs/pipeline_configs/wan.py; guidance: configs/sample/wan.py.
_REGISTRY = (
    _Entry("LTX2PipelineConfig", (), ("ltx video", "ltx-2")),
    _Entry("HunyuanConfig", ("hunyuanvideo-community/HunyuanVideo",), ("hunyuan",)),
    _Entry("WanT2V480PConfig", ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",), ("wanpipeline",),
           3.0, None, (3.0, None)),
    _Entry("TurboWanT2V480PConfig", ("IPostYellow/TurboWan2.1-T2V-1.3B-Diffusers",), (),
           8.0, None, (3.0, None)),
    _Entry("WanT2V720PConfig", ("Wan-AI/Wan2.1-T2V-14B-Diffusers",), (), 5.0, None, (5.0, None)),
    _Entry("TurboWanT2V480PConfig", ("IPostYellow/TurboWan2.1-T2V-14B-Diffusers",
           "IPostYellow/TurboWan2.1-T2V-14B-720P-Diffusers"), (), 8.0, None, (5.0, None)),
    _Entry("WanI2V480PConfig", ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",), ("wanimagetovideo",),
           3.0, None, (5.0, None)),
    _Entry("WanI2V720PConfig", ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",), (),
           5.0, None, (5.0, None)),
    _Entry("TurboWanI2V720Config", ("IPostYellow/TurboWan2.2-I2V-A14B-Diffusers",), (),
           8.0, 0.9, (3.5, 3.5)),
    _Entry("WanI2V480PConfig", ("weizhou03/Wan2.1-Fun-1.3B-InP-Diffusers",), (),
           3.0, None, (6.0, None)),
    _Entry("Wan2_2_TI2V_5B_Config", ("Wan-AI/Wan2.2-TI2V-5B-Diffusers",), (),
           5.0, None, (5.0, None)),
    _Entry("FastWan2_2_TI2V_5B_Config", ("FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
           "FastVideo/FastWan2.2-TI2V-5B-Diffusers"), (), 5.0, None, (5.0, None)),
    _Entry("Wan2_2_T2V_A14B_Config", ("Wan-AI/Wan2.2-T2V-A14B-Diffusers",), (),
           12.0, 0.875, (4.0, 3.0)),
    _Entry("Wan2_2_I2V_A14B_Config", ("Wan-AI/Wan2.2-I2V-A14B-Diffusers",), (),
           5.0, 0.9, (3.5, 3.5)),
    _Entry("FastWan2_1_T2V_480P_Config", ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers",), (),
           8.0, None, (3.0, None)),
)  # fmt: skip


def resolve_model(model_path: str, *, index: Mapping[str, Any] | None = None) -> ModelSettings:
    """The settings that SGLang 0.5.9 would take for `model_path`. Never asks the network.

    Parameters
    ----------
    model_path : str
        A name on the hub, or a local folder in diffusers' format.
    index : mapping, optional
        What the checkpoint's ``model_index.json`` would hold where there is no such folder.

    Raises
    ------
    ModelPathError
        If nothing matches, or a folder's ``model_index.json`` is missing or unreadable.
    """
    if Path(model_path).exists():
        index = _read_index(model_path)
    entry, how, steps = _find(model_path, index)
    boundary_ratio = entry.boundary_ratio
    if index is not None and index.get("boundary_ratio") is not None:
        boundary_ratio = _ratio(model_path, index["boundary_ratio"])
        steps.append(
            f"boundary_ratio {boundary_ratio} from the checkpoint's model_index.json"
            " (composed_pipeline_base.py:216)"
        )
    guidance, guidance_2 = entry.guidance
    if guidance is not None and guidance_2 is None:
        guidance_2 = guidance
        steps.append("one guidance scale for both experts (schedule_batch.py:268)")
    return ModelSettings(
        config=entry.config,
        how=how,
        flow_shift=entry.flow_shift,
        boundary_ratio=boundary_ratio,
        guidance_scale=guidance,
        guidance_scale_2=guidance_2,
        steps=steps,
    )


def _find(
    model_path: str, index: Mapping[str, Any] | None
) -> tuple[_Entry, Literal["exact", "partial", "detector"], list[str]]:
    by_name = {name: entry for entry in _REGISTRY for name in entry.hub}
    if model_path in by_name:
        entry = by_name[model_path]
        step = f"{model_path!r} is a registered name: {entry.config} (registry.py:249)"
        return entry, "exact", [step]
    steps = [f"{model_path!r} is not a registered name (registry.py:249)"]

    last = _last_component(model_path.lower())
    for name in sorted(by_name, key=len, reverse=True):
        if _last_component(name.lower()) == last:
            entry = by_name[name]
            steps.append(f"its last component is that of {name}: {entry.config} (registry.py:260)")
            return entry, "partial", steps
    steps.append(f"no registered name ends with {last!r} (registry.py:260)")

    if index is None:
        raise ModelPathError(
            f"model_path {model_path!r} is neither a name that SGLang 0.5.9 knows nor a folder;"
            " give a diffusers folder, or Wan-AI/Wan2.2-T2V-A14B-Diffusers"
            " (nothing is downloaded)"
        )
    class_name = str(index.get("_class_name", "")).lower()
    for entry in _REGISTRY:
        for detector in entry.detectors:
            for what, text in (("path", model_path.lower()), ("class name", class_name)):
                if all(word in text for word in detector.split()):
                    steps.append(
                        f"the {what} {text!r} matches the detector {detector!r}:"
                        f" {entry.config} (registry.py:277)"
                    )
                    return entry, "detector", steps
    raise ModelPathError(
        f"model_path {model_path!r} (class name {class_name!r}) matches none of SGLang 0.5.9's"
        " detectors; let the folder's name be the model's name on the hub, such as"
        " Wan2.2-T2V-A14B-Diffusers"
    )


def _last_component(path: str) -> str:
    return path.rstrip("/").split("/")[-1] if "/" in path else path


def _read_index(folder: str) -> dict[str, Any]:
    path = Path(folder) / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelPathError(
            f"{path}: cannot be read ({error.strerror or error}); model_path must be a folder in"
            " diffusers' format, with model_index.json in it"
        ) from error
    except ValueError as error:
        raise ModelPathError(f"{path}: is not valid JSON ({error}); copy it again") from error
    if not isinstance(index, dict):
        raise ModelPathError(f"{path}: does not hold a JSON object; copy it again")
    return index


def _ratio(model_path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ModelPathError(
            f"{model_path}/model_index.json: boundary_ratio is {value!r}; it must be a number"
            " from 0 to 1"
        )
    return float(value)
