"""Other projects' block offloading in the place of an engine.

A peer gets the same expert, in host memory, and attaches its own hooks. Its code runs unmodified.
"""

import hashlib
import importlib
import sys
import types
from abc import abstractmethod
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.hooks import apply_group_offloading

from wanreport.engines import Counters, Engine, Shape


class Peer(Engine):
    """An engine whose weights are moved by somebody else's hooks."""

    pins_store = False
    code: dict[str, str]  # what `find` found
    note = ""
    registered_bytes = 0  # pinned by the peer itself, outside of torch's pool

    @staticmethod
    @abstractmethod
    def find(where: str | None, device: str) -> dict[str, str]:
        """What identifies the peer's code; LookupError if it cannot run here, with the fix."""

    def expected(self, shape: Shape, iteration: int) -> Counters:
        raise NotImplementedError  # a peer's copies are not counted


class Diffusers(Peer):
    """diffusers' group offloading, set as its documentation recommends for streaming blocks."""

    name = "diffusers"

    @staticmethod
    def find(where: str | None, device: str) -> dict[str, str]:
        if find_spec("accelerate") is None:
            raise LookupError("diffusers' hooks need accelerate: pip install accelerate")
        return {"version": diffusers.__version__}

    def _attach(self) -> None:
        self._hold_on_host()
        (expert,), cuda = self.experts.values(), self.mover.cuda
        apply_group_offloading(
            expert, onload_device=self.mover.device, offload_device=torch.device("cpu"),
            offload_type="block_level", num_blocks_per_group=1, non_blocking=cuda,
            use_stream=cuda, record_stream=cuda,
        )  # fmt: skip
        moves = "moves what lies outside the blocks to the device and back in each pass"
        self.note = moves if cuda else "its hooks run, without streams"


class Sglang(Peer):
    """SGLang's `LayerwiseOffloadManager`."""

    name = "sglang"

    @staticmethod
    def find(where: str | None, device: str) -> dict[str, str]:
        """Look in the folder ``where``, or if None where Python does, without importing it."""
        fix = "pip install --no-deps --target DIR sglang==0.5.23, then --sglang DIR"
        spec = None if where else find_spec("sglang")
        folder = Path(where or (spec and spec.origin and Path(spec.origin).parents[1]) or ".")
        files = sorted((folder / "sglang/multimodal_gen").rglob("layerwise_offload.py"))
        if not files:
            raise LookupError(f"no sglang/multimodal_gen with layerwise offload in {folder}; {fix}")
        distributions = metadata.distributions(name="sglang", path=[str(folder)])
        version = next((d.version for d in distributions), "of unknown version")
        if device != "cuda":
            raise LookupError(f"SGLang {version} is there; its manager works on GPUs only")
        return {
            "folder": str(folder.resolve()),
            "module": ".".join(files[0].relative_to(folder).with_suffix("").parts),
            "version": version,
            "sha256": hashlib.sha256(files[0].read_bytes()).hexdigest(),
        }

    def _attach(self) -> None:
        self._hold_on_host()
        (expert,) = self.experts.values()
        # Its import turns cuDNN's attention off for all; every row must use the same kernels.
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        manager = self._manager()(
            model=expert, layers_attr_str="blocks", num_layers=len(expert.blocks), enabled=True,
            pin_cpu_memory=True, prefetch_size=self.prefetch,
        )  # fmt: skip
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        if not manager.enabled:
            raise RuntimeError("SGLang's manager turned itself off on this machine")
        expert.to(self.mover.device)  # 0.5.9 leaves what lies outside the blocks to its caller
        blocks = [list(block.values()) for block in manager._consolidated_cpu_weights.values()]
        pinned = [bool(block) and all(b.is_pinned() for b in block) for block in blocks]
        # Later versions register memory of their own, earlier ones use torch's pool.
        pool = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
        own = sum(b.nbytes for block in blocks for b in block if b.is_pinned())
        self.registered_bytes = max(0, own - pool)
        if not all(pinned):
            self.note = f"pinned only {sum(pinned)} of {len(pinned)} blocks for want of host memory"

    def _manager(self) -> Any:
        """Import the manager without the server around it; it and all that it calls is unmodified.

        Not SGLang's own are the two packages' ``__init__``, which would load the server, and
        ``ServerArgs``, which the manager's module names in annotations.
        """
        for name in ("sglang", "sglang.multimodal_gen"):
            package = types.ModuleType(name)
            package.__path__ = [str(Path(self.code["folder"], *name.split(".")))]
            sys.modules[name] = package
        arguments = types.ModuleType("sglang.multimodal_gen.runtime.server_args")
        arguments.__dict__["ServerArgs"] = type("ServerArgs", (), {})
        sys.modules[arguments.__name__] = arguments
        return importlib.import_module(self.code["module"]).LayerwiseOffloadManager


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Diffusers, Sglang)}
