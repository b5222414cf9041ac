"""Weights that cross the link as 8-bit floats: half of their bytes, and not the same weights.

Each row of a bfloat16 matrix, the weights of one output channel, becomes e4m3 with a scale of its
own, which takes the row's largest weight to e4m3's largest number. What else a unit has, such as
biases and float32, travels as it is. INT8 with a scale a row has the same bytes at the same places,
so it would be as fast: fp8 stands for it. Only the errors would differ.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wanreport.model.packed import edged, kernels

if TYPE_CHECKING:
    from wanreport.model.weights import Slice

E4M3 = torch.float8_e4m3fn
MOST = torch.finfo(E4M3).max


class Rounded:
    """How one unit with these tensors travels: their values one after another, scales behind."""

    def __init__(self, slices: Sequence["Slice"]) -> None:
        # Each tensor with its bytes in the rounded unit, and those of its scales if it has any.
        self.parts: list[tuple[Slice, slice, slice | None]] = []
        self.nbytes = 0

        def take(size: int) -> slice:
            start, self.nbytes = self.nbytes, self.nbytes + edged(size)
            return slice(start, start + size)

        for piece in slices:
            matrix = piece.dtype == torch.bfloat16 and len(piece.shape) == 2
            values = take(piece.shape.numel() * (1 if matrix else piece.dtype.itemsize))
            self.parts.append((piece, values, take(4 * piece.shape[0]) if matrix else None))

    def pack(self, unit: Tensor) -> Tensor:
        """Round a unit, uint8, on its own device."""
        packed = torch.zeros(self.nbytes, dtype=torch.uint8, device=unit.device)
        for piece, values, scales in self.parts:
            tensor = piece.of(unit)
            if scales:
                tensor = tensor.float()
                # Not divided by that number, for which a GPU takes a multiplication.
                scale = tensor.abs().amax(1, keepdim=True).clamp_min(1e-30) * (1 / MOST)
                packed[scales].view(torch.float32)[:, None].copy_(scale)
                tensor = (tensor / scale).to(E4M3)
            packed[values].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        return packed

    def unpack(self, packed: Tensor, out: Tensor) -> None:
        """Write the unit's tensors to ``out``, on the current stream, allocating nothing."""
        for piece, values, scales in self.parts:
            tensor = piece.of(out)
            if scales and kernels is not None and out.is_cuda:
                kernels.scale(packed[values], packed[scales].view(torch.float32), tensor)
            elif scales:
                tensor.copy_(packed[values].view(E4M3).view(piece.shape))
                tensor.mul_(packed[scales].view(torch.float32)[:, None])
            else:
                tensor.view(-1).view(torch.uint8).copy_(packed[values])
