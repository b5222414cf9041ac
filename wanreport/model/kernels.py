"""The kernels that unpack weights on a GPU; Triton is where torch has a GPU.

`_decode` has a program on every multiprocessor: alone that brings all that the GPU's memory can,
and beside matrix products on another stream fewer programs never made a step shorter. `_scale` has
one for each row; fewer took two to four times as long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 4096  # of a quarter, that a program decodes at once
WARPS = 16
ESCAPES = 1024
ROW = 1024  # numbers of a row, that a program scales at once


@triton.jit
def _word(signs, codes, base):  # type: ignore[no-untyped-def]
    exponents = ((codes & 0x000F000F) << 7) + base
    return (signs & 0x007F007F) | ((signs & 0x00800080) << 8) | exponents


@triton.jit
def _decode(signs, codes, out, quarter, base, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    for first in range(tl.program_id(0) * WORDS, quarter, tl.num_programs(0) * WORDS):
        at = first + tl.arange(0, WORDS)
        here = at < quarter
        code = tl.load(codes + at, mask=here, eviction_policy="evict_first")
        one = tl.load(signs + at, mask=here, eviction_policy="evict_first")
        two = tl.load(signs + quarter + at, mask=here, eviction_policy="evict_first")
        tl.store(out + at, _word(one, code, base), mask=here)
        tl.store(out + quarter + at, _word(one >> 8, code >> 4, base), mask=here)
        tl.store(out + 2 * quarter + at, _word(two, code >> 8, base), mask=here)
        tl.store(out + 3 * quarter + at, _word(two >> 8, code >> 12, base), mask=here)


@triton.jit(do_not_specialize=["count"])
def _patch(positions, values, out, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = at < count
    where = tl.load(positions + at, mask=here, other=0)
    tl.store(out + where, tl.load(values + at, mask=here), mask=here)


@triton.jit
def _scale(numbers, scales, starts, out, STEP: tl.constexpr, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    scale = tl.load(scales + row)
    begin = tl.multiple_of(tl.load(starts + row), STEP)
    end = tl.multiple_of(tl.load(starts + row + 1), STEP)
    for first in range(begin, end, WORDS):
        at = first + tl.arange(0, WORDS)
        here = at < end
        code = tl.load(numbers + at, mask=here, eviction_policy="evict_first").to(tl.int32)
        # e4m3 by hand, as not every GPU has it. Its bits where a float32 has them, denormals too,
        # are a number that is too small by the difference of the biases, 127 - 7.
        number = ((code << 24 >> 4) & -0x78100000).to(tl.float32, bitcast=True) * 2.0**120
        number = tl.where((code & 0x7F) == 0x7F, float("nan"), number)
        product = number * scale
        # To the nearest bfloat16, of two as near to the even one.
        word = product.to(tl.int32, bitcast=True)
        word = tl.where(product == product, (word + 0x7FFF + (word >> 16 & 1)) >> 16, 0x7FC0)
        tl.store(out + at, word, mask=here)


def _programs(out: Tensor) -> int:
    if not out.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(out.device).multi_processor_count)


def scale(numbers: Tensor, scales: Tensor, starts: Tensor, out: Tensor, step: int) -> None:
    """Write rows of e4m3 numbers, times their float32 scales, as bfloat16.

    Row i lies from the i-th of ``starts``, int32, to the next, which are multiples of ``step``.
    """
    _scale[(starts.numel() - 1,)](numbers.view(torch.uint8), scales, starts, out.view(torch.int16),
                                  STEP=step, WORDS=ROW, num_warps=4)  # fmt: skip


def unpack(
    base: int, out: Tensor, signs: Tensor, codes: Tensor, positions: Tensor, values: Tensor
) -> None:
    """As :func:`wanreport.model.packed.unpack_by_torch`, on the current stream."""
    _decode[(_programs(out),)](signs, codes, out.view(torch.int32), codes.numel(), base,
                               WORDS=WORDS, num_warps=WARPS)  # fmt: skip
    if escapes := positions.numel():
        _patch[(triton.cdiv(escapes, ESCAPES),)](
            positions, values, out.view(torch.int16), escapes, SIZE=ESCAPES
        )
