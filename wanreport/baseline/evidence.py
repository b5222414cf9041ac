"""Reads what facts are held against: files that ``make`` and ``baseline check`` wrote.

    architecture.json   sizes of the model and of what crosses the link
    schedule.json       timesteps and noise levels of diffusers' scheduler, by flow shift
    identified.json     which weights a transfer of a stated size can be
    source.json         the document's citations, looked up in SGLang's releases
    verdicts.json       the reviewed verdicts, which ``wanreport baseline check`` compares with

They are committed, so that a page needs neither torch nor a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wanreport.baseline.arithmetic import FactError

SCHEMA = 1
DERIVED = Path(__file__).parent / "derived"
WRITTEN_BY = {"source": "make citations", "verdicts": "wanreport baseline check --accept"}
"""What writes a file, where that is not ``make derive``."""


def load_evidence(folder: Path = DERIVED) -> dict[str, Any]:
    """Load all but the verdicts, by file. Raises FactError for what is missing or damaged."""
    names = ("architecture", "schedule", "identified", "source")
    return {name: read(name, folder) for name in names}


def read(name: str, folder: Path = DERIVED) -> dict[str, Any]:
    """What one derived file holds; the error names what writes it."""
    path = folder / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = WRITTEN_BY.get(name, "make derive")
        raise FactError(f"{path}: {error!r}; run `{fix}`") from None
