"""Finds which weights a transfer of a stated size can be, for ``make derive``.

Candidates are every large tensor, every layer, block, expert and component of the pipeline, in
every dtype that weights come in, whole or as one of N shards. Each is held against the stated size
twice, since a document's MB may be 10**6 or 2**20 bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from wanreport.baseline.facts import Quantity, quantity

SIZES = (("167.8", "MB"), ("670", "MB"), ("17.6", "GB"))
"""The sizes of which the document says what they are: its s4.1.typical, s5.1.layer_vram, s6.1."""

DTYPES = {"bf16 or fp16": 2, "fp32": 4, "fp8": 1}
SHARDS = (1, 2, 4, 6, 8)
UNITS: dict[str, tuple[int, str, int]] = {
    "MB": (10**6, "MiB", 2**20),
    "GB": (10**9, "GiB", 2**30),
}
"""A printed unit: its bytes, the unit that may have been meant, and that one's bytes."""


class Match(NamedTuple):
    """A candidate beside a stated size."""

    what: str  # "block in fp32, 1 of 4 shards"
    part: str  # what it is of, "block"
    whole: bool  # whether it is all of that
    nbytes: float
    unit: str  # in which the stated size is read
    mismatch: float  # its size less the stated size as read, in bytes
    fits: bool  # whether the printed digits can stand for it


def identified(
    numbers: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Say of each of :data:`SIZES` its three best matches, and what it can be the whole of."""
    found = {}
    for value, unit in SIZES:
        every = matches(quantity(Decimal(value), exact=False), unit, numbers, tensors)
        # Which of two equal tensors it is, no size can tell.
        distinct = list({(m.nbytes, m.unit): m for m in reversed(every)}.values())[::-1]
        found[f"{value} {unit}"] = {
            "whole": sorted({m.part for m in every if m.fits and m.whole and m.unit == unit}),
            "best": [
                f"{m.what}, {m.nbytes:,.0f} bytes (read in {m.unit}: "
                f"{'fits' if m.fits else f'{m.mismatch:+,.0f} bytes'})"
                for m in distinct[:3]
            ],
        }
    return found


def matches(
    size: Quantity, unit: str, numbers: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]
) -> list[Match]:
    """Every candidate for a size printed in MB or GB, best match first.

    Those that fit stand first; among them whole ones before shards, and the unit as printed before
    the one that may have been meant. The others follow by their relative mismatch.
    """
    factor, other, other_factor = UNITS[unit]
    found = [
        Match(what, part, whole, nbytes, name, nbytes - size.value * per,
              size.low * per <= nbytes <= size.high * per)
        for what, part, whole, nbytes in _candidates(numbers, tensors)
        for name, per in ((unit, factor), (other, other_factor))
    ]  # fmt: skip
    return sorted(
        found,
        key=lambda m: (not m.fits, m.fits and (not m.whole, m.unit != unit),
                       abs(m.mismatch) / m.nbytes),
    )  # fmt: skip


def _candidates(
    numbers: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, bool, float]]:
    blocks = numbers["wan.blocks"] * numbers["wan.block.params"]
    wholes = {
        "block": numbers["wan.block.params"],
        "all blocks of an expert": blocks,
        "all blocks of an expert, for both branches": blocks * numbers["wan.branches"],
        "expert": numbers["wan.expert.params"],
        "both experts": 2 * numbers["wan.expert.params"],
        "text encoder": numbers["wan.text_encoder.params"],
        "VAE": numbers["wan.vae.params"],
    }
    parts = [(name, name, True, size) for name, size in wholes.items()]
    for row in tensors:
        parts.append((f"{row['name']} of the {row['part']}", row["part"], False, row["elements"]))
    for words, part, whole, elements in parts:
        for dtype, width in DTYPES.items():
            for shards in SHARDS:
                share = f", 1 of {shards} shards" if shards > 1 else ""
                nbytes = elements * width / shards
                yield f"{words} in {dtype}{share}", part, whole and shards == 1, nbytes
