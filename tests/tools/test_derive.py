"""The derived files of the baseline are what the libraries give today."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wanreport.baseline.evidence import DERIVED


@pytest.mark.slow
@pytest.mark.parametrize("name", ["architecture", "schedule"])
def test_the_committed_file_is_derived_again(name: str) -> None:
    from tools import derive

    made: dict[str, Any] = getattr(derive, name)()
    committed = json.loads((DERIVED / f"{name}.json").read_text(encoding="utf-8"))
    assert committed.pop("versions").keys() == made.pop("versions").keys()
    assert json.loads(json.dumps(made)) == committed
