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
e4m3's largest number. A unit's matrices lie together, which one kernel restores:

    | e4m3, one after another | a scale a row | where each row begins | the rest |
      a byte a value            4 bytes         4 bytes

INT8 with a scale a row has the same bytes at the same places, so it would be as fast: fp8 stands
for it. Only the errors would differ.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

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


class Parts(NamedTuple):
    """Views of a packed unit; the first two are int32, ``[2, words]`` and ``[words]``."""

    bytes: Tensor
    codes: Tensor
    positions: Tensor
    values: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Fewer(ABC):
    """A unit of which the bytes from ``start`` to ``stop`` become fewer; the rest stays."""

    start: int
    stop: int
    whole: int  # bytes of the unit as it is

    @property
    @abstractmethod
    def _sizes(self) -> tuple[int, ...]:
        """Bytes of each part of the smaller unit, but of the rest, which is the last."""

    @property
    def nbytes(self) -> int:
        """Bytes of the smaller unit."""
        return sum(map(edged, self._sizes)) + edged(self.whole - self.stop + self.start)

    def _cut(self, small: Tensor) -> list[Tensor]:
        """Views of the parts of a smaller unit, uint8 and ``nbytes`` long or longer."""
        found, at = [], 0
        for size in (*self._sizes, self.whole - self.stop + self.start):
            found.append(small[at : at + size])
            at += edged(size)
        return found

    def _put(self, rest: Tensor, out: Tensor) -> None:
        out[: self.start].copy_(rest[: self.start])
        out[self.stop : self.whole].copy_(rest[self.start :])

    @abstractmethod
    def unpack(self, small: Tensor, out: Tensor) -> None:
        """Write the unit's bytes to ``out``, uint8, on the current stream of their device."""


@dataclass(frozen=True)
class Packing(Fewer):
    """How one unit is packed."""

    base: int  # the exponent of code 0
    escapes: int  # values whose exponent has no code

    @property
    def _sizes(self) -> tuple[int, ...]:
        values = (self.stop - self.start) // 2
        return values, values // 2, 4 * self.escapes, 2 * self.escapes

    def parts(self, packed: Tensor) -> Parts:
        signs, codes, positions, values, rest = self._cut(packed)
        return Parts(
            signs.view(torch.int32).view(2, -1), codes.view(torch.int32),
            positions.view(torch.int32), values.view(torch.int16), rest,
        )  # fmt: skip

    def unpack(self, small: Tensor, out: Tensor) -> None:
        parts, base = self.parts(small), self.base * LANES
        self._put(parts.rest, out)
        values = out[self.start : self.stop]
        if kernels is not None and out.is_cuda:
            kernels.unpack(parts, base, values)
        else:
            unpack_by_torch(parts, base, values)


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
    packed = torch.zeros(packing.nbytes, dtype=torch.uint8, device=unit.device)
    parts, found = packing.parts(packed), []
    for quarter, word in enumerate(words):
        signs = (word & 0x007F007F) | (word >> 8 & LANES)
        parts.bytes[quarter // 2] |= signs << 8 * (quarter % 2)
        codes = _exponents(word) - base
        escaped = (codes < 0) | (codes >= CODES)
        codes.masked_fill_(escaped, CODES)
        parts.codes.bitwise_or_(codes.view(torch.int32) << 4 * quarter)
        found.append(escaped.nonzero().squeeze(1) + quarter * codes.numel())
    positions = torch.cat(found)
    parts.positions.copy_(positions)
    parts.values.copy_(words.view(torch.int16).view(-1)[positions])
    parts.rest.copy_(torch.cat([unit[:start], unit[stop:]]))
    return packing, packed


def _exponents(words: Tensor) -> Tensor:
    """Both exponents of each word, int16."""
    return (words >> 7 & 0x00FF00FF).view(torch.int16)


def unpack_by_torch(parts: Parts, base: int, out: Tensor) -> None:
    """What the kernels do, in plain operations; ``base`` is in both halves of a word."""
    for quarter, word in enumerate(out.view(torch.int32).view(4, -1)):
        signs = parts.bytes[quarter // 2] >> 8 * (quarter % 2)
        exponents = ((parts.codes >> 4 * quarter & 0x000F000F) << 7) + base
        word.copy_((signs & 0x007F007F) | (signs & LANES) << 8 | exponents)
    out.view(torch.int16)[parts.positions.long()] = parts.values


@dataclass(frozen=True)
class Rounded(Fewer):
    """How one unit is rounded: its matrices, which lie from ``start`` to ``stop``."""

    matrices: tuple[Slice, ...]

    @classmethod
    def of(cls, layout: Layout) -> "Rounded":
        found = [each for each in layout.slices if each.dtype == torch.bfloat16]
        found = [each for each in found if len(each.shape) == 2]
        stops = [each.offset + 2 * each.shape.numel() for each in found]
        return cls(*(found[0].offset, stops[-1]) if found else (0, 0), layout.nbytes, (*found,))

    @property
    def _sizes(self) -> tuple[int, ...]:
        rows = sum(each.shape[0] for each in self.matrices)
        return (self.stop - self.start) // 2, 4 * rows, 4 * (rows + 1)

    def pack(self, unit: Tensor) -> Tensor:
        """Round a unit, uint8, on its own device."""
        small = torch.zeros(self.nbytes, dtype=torch.uint8, device=unit.device)
        numbers, scales, starts, rest = self._cut(small)
        found: tuple[list[Tensor], list[Tensor]] = [], []
        for piece in self.matrices:
            tensor, at = piece.of(unit).float(), (piece.offset - self.start) // 2
            # Not divided by `MOST`, for which a GPU takes a multiplication.
            scale = tensor.abs().amax(1, keepdim=True).clamp_min(1e-30) * (1 / MOST)
            tensor = (tensor / scale).to(E4M3)
            numbers[at : at + tensor.numel()].copy_(tensor.view(-1).view(torch.uint8))
            found[0].append(scale.view(-1))
            found[1].append(at + piece.shape[1] * torch.arange(piece.shape[0]))
        if found[0]:
            scales.view(torch.float32).copy_(torch.cat(found[0]))
            found[1].append(torch.tensor([numbers.numel()]))
            starts.view(torch.int32).copy_(torch.cat(found[1]))
        rest.copy_(torch.cat([unit[: self.start], unit[self.stop :]]))
        return small

    def unpack(self, small: Tensor, out: Tensor) -> None:
        numbers, scales, starts, rest = self._cut(small)
        self._put(rest, out)
        if self.matrices and kernels is not None and out.is_cuda:
            step = math.gcd(16, *(each.shape[1] for each in self.matrices))
            kernels.scale(numbers, scales, starts, out[self.start : self.stop], step)
            return
        row = 0
        for piece in self.matrices:
            tensor, at = piece.of(out), (piece.offset - self.start) // 2
            values = numbers[at : at + tensor.numel()].view(E4M3)
            scale = scales.view(torch.float32)[row : (row := row + piece.shape[0])]
            tensor.copy_(values.view(piece.shape)).mul_(scale[:, None])
