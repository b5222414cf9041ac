"""The offload engines, one file each, by name."""

from .base import Counters, Engine, Shape
from .fsdp import Fsdp
from .layerwise import Layerwise
from .resident import Resident
from .stream import Stream
from .swap import Swap

ENGINES: dict[str, type[Engine]] = {e.name: e for e in (Resident, Swap, Fsdp, Layerwise, Stream)}

__all__ = ["ENGINES", "Counters", "Engine", "Fsdp", "Layerwise", "Resident", "Shape", "Stream",
           "Swap"]  # fmt: skip
