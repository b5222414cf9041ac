"""Weights on the host: one copy a host, and packed ones are the bits that went in."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.models import make_experts, make_store
from tests.ranks import in_ranks
from wanreport.engines.base import Mover
from wanreport.model import packed
from wanreport.model.layout import ALIGN, Layout
from wanreport.model.packed import E4M3, LANES, Rounded, pack
from wanreport.model.weights import RandomWeights


def test_a_layout_keeps_dtypes_together_aligned_and_apart() -> None:
    sizes = {"a": (3, torch.bfloat16), "b": (5, torch.float32), "c": (300, torch.bfloat16)}
    layout = Layout.of({name: torch.empty(n, dtype=dtype) for name, (n, dtype) in sizes.items()})
    assert [piece.name for piece in layout.slices] == ["a", "c", "b"]
    assert all(piece.offset % ALIGN == 0 for piece in layout.slices)
    assert layout.segments == {torch.bfloat16: (0, 1024), torch.float32: (1024, 1280)}
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for number, piece in enumerate(layout.slices, 1):
        piece.of(buffer).fill_(number)
    for number, piece in enumerate(layout.slices, 1):
        start, _ = layout.segments[piece.dtype]
        assert (piece.of(buffer[start:], start) == number).all()


@in_ranks(3)
def test_ranks_share_one_copy_that_equals_a_private_one_and_no_descriptor_keeps_it_alive() -> None:
    experts = make_experts()
    shared, private = make_store(experts=experts, group=dist.group.WORLD), make_store()
    keys = list(shared.layouts)
    for key, layout in shared.layouts.items():
        for piece in layout.slices:
            assert torch.equal(piece.of(shared.buffer(*key)), piece.of(private.buffer(*key)))
    dist.barrier()
    if dist.get_rank() == 0:
        shared.buffer(*keys[3])[:4] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    dist.barrier()
    assert shared.buffer(*keys[3])[:4].tolist() == [1, 2, 3, 4]
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert sum("wanreport-weights" in link for link in links) == 1, "the mapping's own"


def test_random_weights_depend_on_the_name_and_the_seed_only() -> None:
    first, *others = (RandomWeights(seed) for seed in (0, 0, 1, 0))
    names = [("high_noise", "a.weight")] * 2 + [("low_noise", "a.weight")]
    out = [torch.empty(8, 8) for _ in range(4)]
    first.fill("high_noise", "a.weight", out[0])
    for source, name, each in zip(others, names, out[1:], strict=True):
        source.fill(*name, each)
    assert [torch.equal(out[0], each) for each in out[1:]] == [True, False, False]


# Packed -------------------------------------------------------------------------------------------

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KERNELS = packed.kernels if DEVICE == "cuda" or INTERPRETED else None
BEFORE, VALUES, AFTER = 256, 128 * 9, 512
STOP = BEFORE + 2 * VALUES


def bits(
    *, least: int = 108, exponents: int = 12, odd: Tensor | None = None, every: int = 40,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """A unit whose values have some exponents from ``least`` on; some are those of ``odd``."""
    made = torch.Generator().manual_seed(seed)
    unit = torch.randint(0, 256, (STOP + AFTER,), generator=made, dtype=torch.uint8)
    words = unit[BEFORE:STOP].view(torch.int16)
    exponent = torch.randint(least, least + exponents, (VALUES,), generator=made)
    words.copy_(words & ~(255 << 7) | (exponent << 7))
    if odd is not None:
        words[::every] = odd[torch.arange(len(words[::every])) % len(odd)]
    return unit


# Zeros, denormals, the least and greatest normals, infinities and NaN, of both signs.
SPECIAL = torch.tensor([0, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF], dtype=torch.int16)
SPECIAL = torch.cat([SPECIAL, SPECIAL | -0x8000])
UNITS = {
    "usual": bits(),
    "special values": bits(odd=SPECIAL),
    "every exponent": bits(odd=(torch.arange(256) << 7).to(torch.int16)),
    **{f"all {word}": bits(odd=SPECIAL[i : i + 1], every=1) for i, word in enumerate(SPECIAL)},
    **{f"15 exponents from {least}": bits(least=least, exponents=15) for least in (0, 1, 127, 241)},
}


def same(unit: Tensor) -> float | None:
    """Its packed size against its own, once it is known that the bits come back; None if raw."""
    found = pack(unit, BEFORE, STOP)
    if found is None:
        return None
    packing, small = found
    assert small.numel() == packing.nbytes < unit.numel()
    out = torch.full_like(unit, 0xFF)
    packing.unpack(small, out)
    assert torch.equal(out, unit)
    if KERNELS is not None:
        out = torch.full_like(unit, 0xFF).to(DEVICE)
        *parts, _ = packing._cut(small.to(DEVICE))
        KERNELS.unpack(packing.base * LANES, out[BEFORE:STOP], *parts)
        assert torch.equal(out[BEFORE:STOP].cpu(), unit[BEFORE:STOP])
    return small.numel() / unit.numel()


@pytest.mark.parametrize("unit", UNITS)
def test_every_bit_comes_back(unit: str) -> None:
    size = same(UNITS[unit])
    assert size is not None and size < 0.95


@given(st.integers(0, 200), st.integers(1, 56), st.integers(0, 9))
def test_what_is_packed_is_smaller_and_what_would_not_shrink_stays(least, exponents, seed):
    assert (same(bits(least=least, exponents=exponents, seed=seed)) is None) == (exponents > 16)


def test_normal_weights_take_three_quarters() -> None:
    values = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0)).bfloat16()
    unit = values.view(torch.uint8)
    found = pack(unit, 0, unit.numel())
    assert found is not None
    assert found[0].nbytes / unit.numel() == pytest.approx(0.75, abs=1e-3)
    assert pack(unit, 0, 0) is None, "no bfloat16 in it"


@pytest.mark.skipif(KERNELS is None, reason="needs Triton, and a GPU or its interpreter")
@pytest.mark.parametrize("columns", [1, 37, 5120])
def test_every_bit_of_scaled_numbers_is_as_torch_rounds(columns: int) -> None:
    made = torch.Generator().manual_seed(columns)
    numbers = torch.arange(300 * columns).remainder(256).to(torch.uint8)
    scales = torch.randn(300, generator=made).exp2() * 10.0 ** torch.arange(-30, 30, 0.2)
    scales[-2:] = torch.tensor([torch.inf, torch.nan])
    exact, out = torch.empty(2, 300, columns, dtype=torch.bfloat16)
    exact.copy_(numbers.view(E4M3).view(300, columns)).mul_(scales[:, None])
    there = out.to(DEVICE)
    assert KERNELS is not None
    starts = columns * torch.arange(301, dtype=torch.int32)
    given = [each.to(DEVICE) for each in (numbers, scales, starts)]
    KERNELS.scale(*given, there, math.gcd(16, columns))
    out.copy_(there)
    assert torch.equal(out.isnan(), exact.isnan())
    assert torch.equal(out.nan_to_num(), exact.nan_to_num())


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.skipif(DEVICE == "cuda", reason="the tests above ran the kernels themselves")
def test_the_kernels_give_the_bits_of_the_reference_when_interpreted() -> None:
    this = [sys.executable, "-m", "pytest", "-q", "-n0", "-k", "every_bit", __file__]
    found = subprocess.run(this, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


class _Odd(RandomWeights):
    """One block of uniformly random bits, which does not shrink."""

    def fill(self, expert: str, name: str, out: Tensor) -> None:
        super().fill(expert, name, out)
        if name.startswith("blocks.1.") and out.dtype == torch.bfloat16:
            made = torch.Generator().manual_seed(1)
            out.view(torch.int16).random_(-(2**15), 2**15, generator=made)


@pytest.mark.parametrize("shared", [False, True])
@in_ranks(2)
def test_a_store_packs_blocks_and_leaves_what_does_not_shrink(shared: bool) -> None:
    # Widths where packing saves what it may.
    experts = make_experts(attention_head_dim=12, ffn_dim=96)
    how: dict[str, Any] = {"source": _Odd(0), "experts": experts}
    how["group"] = dist.group.WORLD if shared else None
    plain, store = make_store(**how), make_store("packed", **how)
    for key, layout in store.layouts.items():
        small, packing = store.buffer(*key), store.packings.get(key)
        assert (packing is None) == (key[1] in (None, 1))
        assert not packing or small.numel() < 0.85 * layout.nbytes
        out = torch.empty(layout.nbytes, dtype=torch.uint8)
        Mover(torch.device("cpu")).unpack(small, packing, out)
        for piece in layout.slices:
            mine, theirs = (piece.of(each).view(torch.uint8) for each in (out, plain.buffer(*key)))
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fp8_takes_half_keeps_what_is_no_matrix_and_errs_by_a_sixteenth_at_most(device) -> None:
    made = torch.Generator().manual_seed(0)
    tensors = {
        "wide": torch.randn(256, 512, generator=made).bfloat16(),
        "bias": torch.randn(300, generator=made).bfloat16(),
        "table": torch.randn(6, 8, generator=made),
        "odd": torch.tensor([[0.0, 0.0, 0.0], [-448.0, 1.0, 2.0], [7e-30, 0.0, 0.0]]).bfloat16(),
    }
    layout = Layout.of(tensors)
    unit, out = (torch.zeros(layout.nbytes, dtype=torch.uint8) for _ in range(2))
    for piece in layout.slices:
        piece.of(unit).copy_(tensors[piece.name])
    rounded, found = Rounded.pack(unit.to(device), layout)
    small = found.cpu()
    assert torch.equal(small, Rounded.pack(unit, layout)[1]), "a GPU rounds alike"
    assert small.numel() == rounded.nbytes == pytest.approx(256 * 512 + 4 * 256, rel=0.02)
    there = out.to(device)
    rounded.unpack(small.to(device), there)
    out.copy_(there)
    found = {piece.name: piece.of(out) for piece in layout.slices}
    assert all(torch.equal(found[name], tensors[name]) for name in ("bias", "table", "odd"))
    wide, mine = tensors["wide"].float(), found["wide"].float()
    most = wide.abs().amax(1, keepdim=True)
    # Half of a step of three bits, of the number or of the least that is not denormal.
    assert ((mine - wide).abs() <= 1.01 * torch.maximum(wide.abs(), most * 2**-6 / 448) / 16).all()
    assert torch.equal(mine.abs().amax(1, keepdim=True), most), "the largest stays"
