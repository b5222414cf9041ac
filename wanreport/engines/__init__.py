"""The offload engines, one file each, by name."""

from wanreport.engines.base import Counters, Engine, Shape
from wanreport.engines.fsdp import Fsdp
from wanreport.engines.layerwise import Layerwise
from wanreport.engines.resident import Resident
from wanreport.engines.stream import Stream
from wanreport.engines.swap import Swap

ENGINES: dict[str, type[Engine]] = {e.name: e for e in (Resident, Swap, Fsdp, Layerwise, Stream)}

__all__ = ["ENGINES", "Counters", "Engine", "Fsdp", "Layerwise", "Resident", "Shape", "Stream",
           "Swap"]  # fmt: skip
