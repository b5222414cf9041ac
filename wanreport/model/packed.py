"""Weights that cross the link in fewer bytes: *packed* bit by bit the same, or rounded to *fp8*.

A bfloat16 is a sign, 8 bits of exponent and 7 of mantissa. The weights of a block have few
exponents: 15 neighbouring ones cover all but some in ten thousand. So a *packed* unit holds

    | signs and mantissas | exponents − base | positions of escapes | their values | the rest |
      a byte a value        4 bits a value     4 bytes each           2 bytes each

where ``base`` is the least of the 15. Code 15 is an escape: the value itself stands in the list.
Tensors of another dtype, the rest, travel as they are, and so does all of a unit that would not
shrink. Hence any weights arrive exactly, NaN and denormals too.

So that one 32-bit operation decodes two values, values are taken in words of two, and the words in
four quarters. Word j of all quarters lies together: its exponents are one word, nibbles 0 to 3 for
the low halves and 4 to 7 for the high ones; its signs and mantissas are one word for quarters 0 and
1 and another for 2 and 3, bytes in the order low, low, high, high.

A unit in *fp8* takes half of its bytes and is not the same: each row of a bfloat16 matrix, the
weights of one output channel, becomes e4m3 with a scale that takes the row's largest weight to
e4m3's largest number. A unit's matrices lie together, so that one kernel restores them all:

    | e4m3, one after another | a scale a row | where each row begins | the rest |
      a byte a value            4 bytes         4 bytes

INT8 with a scale a row has the same bytes at the same places, so it would be as fast: fp8 stands
for it. Only the errors would differ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wanreport.model.layout import Layout, Slice

try:
    from wanreport.model import kernels
except ImportError:  # without Triton, as on machines without a GPU
    kernels = None  # type: ignore[assignment]

CODES = 15
E4M3 = torch.float8_e4m3fn
MOST = torch.finfo(E4M3).max
LANES = 0x00800080  # the lowest bit of both exponents of a word, or the sign of both bytes


def edged(size: int) -> int:
    """Bytes that a part takes: the next begins at a multiple of 16, as a GPU's widest loads do."""
    return -(-size // 16) * 16


@dataclass(frozen=True)
class PackedUnit(ABC):
    """How one unit becomes smaller: its bytes from ``start`` to ``stop`` do; the rest stays."""

    start: int
    stop: int
    whole: int  # bytes of the unit as it is

    @property
    @abstractmethod
    def _parts(self) -> tuple[tuple[int, torch.dtype], ...]:
        """What the smaller unit holds before its rest: bytes, and what they are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the smaller unit."""
        rest = self.whole - self.stop + self.start
        return sum(edged(size) for size, _ in self._parts) + edged(rest)

    def _cut(self, small: Tensor) -> list[Tensor]:
        """Views of the parts and the rest of a smaller unit, uint8 and ``nbytes`` or longer."""
        found, at = [], 0
        for size, dtype in (*self._parts, (self.whole - self.stop + self.start, torch.uint8)):
            found.append(small[at : at + size].view(dtype))
            at += edged(size)
        return found

    def _begin(self, unit: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A smaller unit that has the rest of this one, and views of its other parts, zeros."""
        small = torch.zeros(self.nbytes, dtype=torch.uint8, device=unit.device)
        *parts, rest = self._cut(small)
        rest.copy_(torch.cat([unit[: self.start], unit[self.stop :]]))
        return small, parts

    def _put(self, rest: Tensor, out: Tensor) -> None:
        out[: self.start].copy_(rest[: self.start])
        out[self.stop : self.whole].copy_(rest[self.start :])

    @abstractmethod
    def unpack(self, small: Tensor, out: Tensor) -> None:
        """Write the unit's bytes to ``out``, uint8, on the current stream of their device."""


@dataclass(frozen=True)
class Packing(PackedUnit):
    """How one unit is packed."""

    base: int  # the exponent of code 0
    escapes: int  # values whose exponent has no code

    @property
    def _parts(self) -> tuple[tuple[int, torch.dtype], ...]:
        values, escapes = (self.stop - self.start) // 2, self.escapes
        return ((values, torch.int32), (values // 2, torch.int32), (4 * escapes, torch.int32),
                (2 * escapes, torch.int16))  # fmt: skip

    def unpack(self, small: Tensor, out: Tensor) -> None:
        *parts, rest = self._cut(small)
        self._put(rest, out)
        decode = kernels.unpack if kernels is not None and out.is_cuda else unpack_by_torch
        decode(self.base * LANES, out[self.start : self.stop], *parts)


def pack(unit: Tensor, start: int, stop: int) -> tuple[Packing, Tensor] | None:
    """Pack a unit, bfloat16 from ``start`` to ``stop``: how, and the bytes; None if no fewer."""
    if start == stop:
        return None
    words = unit[start:stop].view(torch.int32).view(4, -1)
    counts = sum(torch.bincount(_exponents(word), minlength=256) for word in words)
    covered = counts.unfold(0, CODES, 1).sum(1).tolist()  # type: ignore[union-attr]
    base = max(range(len(covered)), key=covered.__getitem__)
    escapes = (stop - start) // 2 - covered[base]
    packing = Packing(start, stop, unit.numel(), base, escapes)
    if packing.nbytes >= unit.numel():
        return None
    packed, (signs, codes, positions, values) = packing._begin(unit)
    found = []
    for quarter, word in enumerate(words):
        sign = (word & 0x007F007F) | (word >> 8 & LANES)
        signs.view(2, -1)[quarter // 2] |= sign << 8 * (quarter % 2)
        code = _exponents(word) - base
        escaped = (code < 0) | (code >= CODES)
        code.masked_fill_(escaped, CODES)
        codes.bitwise_or_(code.view(torch.int32) << 4 * quarter)
        found.append(escaped.nonzero().squeeze(1) + quarter * code.numel())
    positions.copy_(torch.cat(found))
    values.copy_(words.view(torch.int16).view(-1)[positions.long()])
    return packing, packed


def _exponents(words: Tensor) -> Tensor:
    """Both exponents of each word, int16."""
    return (words >> 7 & 0x00FF00FF).view(torch.int16)


def unpack_by_torch(
    base: int, out: Tensor, signs: Tensor, codes: Tensor, positions: Tensor, values: Tensor
) -> None:
    """What the kernels do, in plain operations; ``base`` is in both halves of a word."""
    for quarter, word in enumerate(out.view(torch.int32).view(4, -1)):
        sign = signs.view(2, -1)[quarter // 2] >> 8 * (quarter % 2)
        exponents = ((codes >> 4 * quarter & 0x000F000F) << 7) + base
        word.copy_((sign & 0x007F007F) | (sign & LANES) << 8 | exponents)
    out.view(torch.int16)[positions.long()] = values


@dataclass(frozen=True)
class Rounded(PackedUnit):
    """How one unit, which has matrices, is rounded: these lie from ``start`` to ``stop``."""

    matrices: tuple[Slice, ...]

    @property
    def _parts(self) -> tuple[tuple[int, torch.dtype], ...]:
        values, rows = (self.stop - self.start) // 2, sum(each.shape[0] for each in self.matrices)
        return (values, E4M3), (4 * rows, torch.float32), (4 * (rows + 1), torch.int32)

    def _each(self, numbers: Tensor, scales: Tensor) -> Iterator[tuple[Slice, Tensor, Tensor]]:
        """Each matrix with its numbers, e4m3, and its scales, a column."""
        row = 0
        for piece in self.matrices:
            at = (piece.offset - self.start) // 2
            found = numbers[at : at + piece.shape.numel()].view(piece.shape)
            yield piece, found, scales[row : row + piece.shape[0], None]
            row += piece.shape[0]

    @classmethod
    def pack(cls, unit: Tensor, layout: Layout) -> tuple["Rounded", Tensor]:
        """Round a unit, uint8, on its own device: how, and the bytes."""
        found = [s for s in layout.slices if s.dtype == torch.bfloat16 and len(s.shape) == 2]
        start, stop = found[0].offset, found[-1].offset + 2 * found[-1].shape.numel()
        rounded = cls(start, stop, layout.nbytes, (*found,))
        small, (*parts, starts) = rounded._begin(unit)
        begins = []
        for piece, numbers, scales in rounded._each(*parts):
            tensor, first = piece.of(unit).float(), (piece.offset - start) // 2
            # Not divided by `MOST`, for which a GPU takes a multiplication.
            scales.copy_(tensor.abs().amax(1, keepdim=True).clamp_min(1e-30) * (1 / MOST))
            numbers.copy_(tensor / scales)
            begins.append(first + piece.shape[1] * torch.arange(piece.shape[0]))
        starts.copy_(torch.cat([*begins, torch.tensor([parts[0].numel()])]))
        return rounded, small

    def unpack(self, small: Tensor, out: Tensor) -> None:
        numbers, scales, starts, rest = self._cut(small)
        self._put(rest, out)
        if kernels is not None and out.is_cuda:
            step = math.gcd(16, *(each.shape[1] for each in self.matrices))
            kernels.scale(numbers, scales, starts, out[self.start : self.stop], step)
            return
        for piece, values, scale in self._each(numbers, scales):
            piece.of(out).copy_(values).mul_(scale)
