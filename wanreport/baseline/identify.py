"""Which weights a transfer of a stated size can be.

Candidates are every large tensor, every layer, block, expert and component of the pipeline, in
every dtype that weights come in, whole or as one of N shards. Each is held against the stated size
twice, since a document's MB may be 10**6 or 2**20 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wanreport.baseline.arithmetic import Quantity

DTYPES = {"bf16 or fp16": 2, "fp32": 4, "fp8": 1}
SHARDS = (1, 2, 4, 6, 8)
UNITS: dict[str, tuple[int, str, int]] = {
    "MB": (10**6, "MiB", 2**20),
    "GB": (10**9, "GiB", 2**30),
}
"""A printed unit: its bytes, the unit that may have been meant, and that one's bytes."""


@dataclass(frozen=True)
class Match:
    """A candidate beside a stated size.

    Attributes
    ----------
    what
        The candidate in words: "block in bf16 or fp16, 1 of 4 shards".
    part
        What it is of: "block", "text encoder", …
    whole
        Whether it is all of its part, and no shard.
    nbytes
        Its size.
    unit
        The unit in which the stated size is read.
    mismatch
        Its size less the stated size as read, in bytes.
    fits
        Whether the printed digits can stand for it.
    """

    what: str
    part: str
    whole: bool
    nbytes: Decimal
    unit: str
    mismatch: Decimal
    fits: bool


def matches(
    size: Quantity,
    unit: str,
    numbers: Mapping[str, Decimal],
    tensors: Sequence[Mapping[str, Any]],
) -> list[Match]:
    """Every candidate for a size printed in MB or GB, best match first.

    Those that fit stand first; among them whole ones before shards, and the unit as printed before
    the one that may have been meant. The others follow by their relative mismatch. Candidates of
    one size keep the order of :func:`_candidates`, from the more to the less likely.
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
    numbers: Mapping[str, Decimal], tensors: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, bool, Decimal]]:
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
        words = f"{row['name']} of the {row['part']}"
        parts.append((words, row["part"], False, Decimal(row["elements"])))
    for words, part, whole, elements in parts:
        for dtype, width in DTYPES.items():
            for shards in SHARDS:
                share = f", 1 of {shards} shards" if shards > 1 else ""
                yield f"{words} in {dtype}{share}", part, whole and shards == 1, (
                    elements * width / shards
                )  # fmt: skip
