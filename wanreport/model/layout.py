"""How the tensors of a unit lie in one flat buffer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ALIGN = 256  # bytes; what the device allocator guarantees, so views pick the same kernels


class Slice(NamedTuple):
    """Where one tensor lies in a unit's buffer."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int  # in bytes

    def of(self, buffer: Tensor, origin: int = 0) -> Tensor:
        """The tensor's view of a buffer whose first byte is byte ``origin`` of the unit."""
        start = self.offset - origin
        nbytes = self.shape.numel() * self.dtype.itemsize
        return buffer[start : start + nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Layout:
    """How a unit's tensors lie in its buffer."""

    slices: tuple[Slice, ...]  # of each parameter, matrices of a dtype first
    segments: dict[torch.dtype, tuple[int, int]]  # the byte range of each dtype
    nbytes: int  # of the whole buffer, alignment included

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        slices, segments, offset = [], {}, 0
        for dtype in dict.fromkeys(t.dtype for t in tensors.values()):
            start = offset
            for name, tensor in sorted(tensors.items(), key=lambda item: item[1].dim() != 2):
                if tensor.dtype == dtype:
                    slices.append(Slice(name, dtype, tensor.shape, offset))
                    offset += -(-tensor.nbytes // ALIGN) * ALIGN
            segments[dtype] = (start, offset)
        return cls(tuple(slices), segments, offset)
