"""What facts are held against: files that ``make`` and ``baseline check`` wrote.

    architecture.json   sizes of the model and of what crosses the link, large tensors
    schedule.json       timesteps and noise levels of diffusers' scheduler
    source.json         the document's citations, looked up in SGLang's releases
    verdicts.json       the reviewed verdicts, which ``wanreport baseline check`` compares with

They are committed, so that a page needs neither torch nor a network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

SCHEMA = 1
DERIVED = Path(__file__).parent / "derived"
WRITTEN_BY = {
    "architecture.json": "make derive",
    "schedule.json": "make derive",
    "source.json": "make citations",
    "verdicts.json": "wanreport baseline check --accept",
}
"""What writes each file."""


class EvidenceError(ValueError):
    """A derived file that is missing or damaged; the message names it and says what writes it."""


@dataclass(frozen=True)
class Evidence:
    """The derived files as one.

    Attributes
    ----------
    numbers
        Sizes and counts of the model by id, ``wan.block.bytes``; exact.
    tensors
        The model's large tensors: part, name, elements, count.
    steps
        Denoising steps of the schedules.
    schedules
        By flow shift (``"12"``): timesteps and noise levels.
    source
        The content of source.json.
    versions
        Of the libraries that everything was derived with.
    """

    numbers: dict[str, Decimal]
    tensors: list[dict[str, Any]]
    steps: int
    schedules: dict[str, dict[str, list[float]]]
    source: dict[str, Any]
    versions: dict[str, str]


def load_evidence(folder: Path = DERIVED) -> Evidence:
    """Load what was derived. Raises EvidenceError for a file that is missing or damaged."""
    architecture = read(folder / "architecture.json", "numbers", "tensors", "versions")
    schedule = read(folder / "schedule.json", "steps", "schedules", "versions")
    return Evidence(
        numbers={name: Decimal(value) for name, value in architecture["numbers"].items()},
        tensors=architecture["tensors"],
        steps=schedule["steps"],
        schedules=schedule["schedules"],
        source=read(folder / "source.json", "releases", "files", "citations"),
        versions={**schedule["versions"], **architecture["versions"]},
    )


def read(path: Path, *keys: str) -> dict[str, Any]:
    """Read one derived file that must have these keys."""
    fix = f"run `{WRITTEN_BY[path.name]}`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror or error}; {fix}") from None
    except ValueError as error:
        raise EvidenceError(f"{path}: no valid JSON ({error}); {fix}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise EvidenceError(f"{path}: not of schema {SCHEMA}; {fix}")
    if missing := [key for key in keys if key not in content]:
        raise EvidenceError(f"{path}: lacks {', '.join(missing)}; {fix}")
    return content
