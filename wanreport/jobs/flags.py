"""SGLang 0.5.9's offload flags, resolved as its own code resolves them.

Line numbers cite ``multimodal_gen/runtime/server_args.py`` of SGLang 0.5.9. The order there
decides the outcome: offload defaults are filled in first, the platform's defaults follow, and
the rules of mutual exclusion come last, when some of what they test for can no longer happen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ENGINE_FLAGS: dict[str, dict[str, bool]] = {
    "resident": {"dit_layerwise_offload": False, "dit_cpu_offload": False},
    "swap": {"dit_layerwise_offload": False, "dit_cpu_offload": True},
    "fsdp": {
        "dit_layerwise_offload": False,
        "dit_cpu_offload": True,
        "use_fsdp_inference": True,
    },
    "layerwise": {"dit_layerwise_offload": True},
}
"""For each engine, job fields with which SGLang 0.5.9 arrives at that engine."""


class FlagsError(ValueError):
    """SGLang itself would refuse this combination of flags."""


@dataclass(frozen=True)
class SglangResolution:
    """What SGLang 0.5.9 makes of the offload flags for a Wan model on CUDA.

    Attributes
    ----------
    layerwise, cpu_offload, fsdp : bool
        The flags after SGLang's adjustments.
    prefetch_size : float
        ``dit_offload_prefetch_size`` after flooring; a ratio below 1, else a count of layers.
    engine : str or None
        The engine these flags amount to; None where wanreport has none for them.
    steps : list of str
        The rules that fired, in order, each with its citation.
    """

    layerwise: bool
    cpu_offload: bool
    fsdp: bool
    prefetch_size: float
    engine: str | None
    steps: list[str]


def resolve(
    layerwise: bool | None,
    cpu_offload: bool | None,
    fsdp: bool,
    prefetch: float,
    cache_dit: bool,
) -> SglangResolution:
    """Resolve the flags as SGLang 0.5.9 does for a Wan video model on an NVIDIA GPU.

    Raises
    ------
    FlagsError
        Where SGLang raises: a negative prefetch size, or cache-dit, with layerwise offload.
    """
    steps: list[str] = []

    # _adjust_offload. A GPU below 30 GB and a video task on a larger one come to the same.
    if cpu_offload is None:
        cpu_offload = True
        steps.append("dit_cpu_offload was not given: true for a video model (server_args.py:440)")

    # _adjust_platform_specific
    if layerwise is None and cache_dit:
        steps.append(
            "dit_layerwise_offload was not given: stays off, as cache-dit is on"
            " (server_args.py:544)"
        )
    elif layerwise is None:
        layerwise = True
        steps.append(
            "dit_layerwise_offload was not given: true for a Wan model on CUDA (server_args.py:555)"
        )

    # _validate_offload
    if prefetch > 1 and not float(prefetch).is_integer():
        floored = float(math.floor(prefetch))
        steps.append(
            f"dit_offload_prefetch_size {prefetch:g} is not a whole number of layers:"
            f" cut to {floored:g} (server_args.py:1078)"
        )
        prefetch = floored
    if 0.5 <= prefetch < 1:
        steps.append(
            f"dit_offload_prefetch_size {prefetch:g}: SGLang advises against half the layers or"
            " more (server_args.py:1085)"
        )
    if layerwise:
        if prefetch < 0:
            raise FlagsError(
                "dit_offload_prefetch_size is negative, which SGLang refuses with layerwise"
                " offload (server_args.py:1093)"
            )
        if fsdp:
            fsdp = False
            steps.append(
                "use_fsdp_inference is turned off by layerwise offload (server_args.py:1099)"
            )
        if cpu_offload:
            steps.append(
                "dit_cpu_offload stays true: layerwise offload turns it off only where it is"
                " still undecided (server_args.py:1101), and line 440 has decided it by then"
            )
        if cache_dit:
            raise FlagsError(
                "cache-dit may reuse blocks whose weights layerwise offload has released, so"
                " SGLang refuses the two together (server_args.py:1107)"
            )
    return SglangResolution(
        layerwise=bool(layerwise),
        cpu_offload=cpu_offload,
        fsdp=fsdp,
        prefetch_size=float(prefetch),
        engine=_engine(bool(layerwise), cpu_offload, fsdp),
        steps=steps,
    )


def resolve_text(flags: str) -> SglangResolution:
    """Resolve flags written as on a command line; those not about offloading are passed over."""
    words = flags.split()
    given = {
        word: value
        for word, value in zip(words, [*words[1:], ""], strict=True)
        if word.startswith("--")
    }
    truth = {"true": True, "false": False}
    return resolve(
        truth.get(given.get("--dit-layerwise-offload", "")),
        truth.get(given.get("--dit-cpu-offload", "")),
        truth.get(given.get("--use-fsdp-inference", ""), False),
        float(given.get("--dit-offload-prefetch-size", 0)),
        False,
    )


def _engine(layerwise: bool, cpu_offload: bool, fsdp: bool) -> str | None:
    if layerwise:
        return "layerwise"
    if fsdp:
        return "fsdp" if cpu_offload else None
    return "swap" if cpu_offload else "resident"


def prefetch_layers(size: float, num_layers: int) -> int:
    """How many layers SGLang's layerwise offload holds ahead, 1 to `num_layers`.

    Below 1, `size` is a ratio of the layers after the first one; from 1 on it is a count
    (``layerwise_offload.py:421``, clamped at ``:42``). Halves round to even, as ``round`` does.

    Raises
    ------
    ValueError
        If `size` is negative or not finite, or there is no layer.
    """
    if not math.isfinite(size) or size < 0:
        raise ValueError(f"a prefetch size of {size} is neither a ratio nor a count of layers")
    if num_layers < 1:
        raise ValueError(f"{num_layers} layers cannot be prefetched")
    wanted = 1 + round(size * (num_layers - 1)) if size < 1 else int(size)
    return min(max(1, wanted), num_layers)
