"""The derived files of the baseline are what the libraries give today."""

import json
from decimal import Decimal

import pytest

from tools.identify import matches
from wanreport.baseline.facts import DERIVED, quantity

SIZES = {
    "wan.blocks": 40, "wan.branches": 2, "wan.block.params": 351394304,
    "wan.expert.params": 14288491584, "wan.text_encoder.params": 5680910336,
    "wan.vae.params": 126892531,
}  # fmt: skip
TENSORS = [{"part": "text encoder", "name": "wi_0", "elements": 41943040}]


@pytest.mark.slow
def test_the_committed_files_are_derived_again(tmp_path):
    from tools import derive

    for path in derive.write(tmp_path):
        made = json.loads(path.read_text())
        committed = json.loads((DERIVED / path.name).read_text())
        assert committed.pop("versions", {}).keys() == made.pop("versions", {}).keys()
        assert made == committed


def test_a_transfer_is_found_whatever_it_is():
    for size, unit, what, read in (
        ("167.8", "MB", "wi_0 of the text encoder in fp32", "MB"),
        ("702.8", "MB", "block in bf16 or fp16", "MB"),
        ("670", "MB", "block in bf16 or fp16", "MiB"),
        ("28.58", "GB", "expert in bf16 or fp16", "GB"),
        ("175.7", "MB", "block in bf16 or fp16, 1 of 4 shards", "MB"),
    ):  # fmt: skip
        found = matches(quantity(Decimal(size), exact=False), unit, SIZES, TENSORS)[0]
        assert (found.what, found.unit, found.fits) == (what, read, True)
    assert not matches(quantity(Decimal("17.6"), exact=False), "GB", SIZES, TENSORS)[0].fits
