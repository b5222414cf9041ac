"""What facts are held against: files that ``make`` and ``baseline check`` wrote.

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
from typing import Any, NamedTuple

SCHEMA = 1
DERIVED = Path(__file__).parent / "derived"
WRITTEN_BY = {
    "source": "make citations",
    "verdicts": "wanreport baseline check --accept",
}
"""What writes a file, where that is not ``make derive``."""


class EvidenceError(ValueError):
    """A derived file that is missing or damaged; the message names it and says what writes it."""


class Evidence(NamedTuple):
    """The derived files as one."""

    numbers: dict[str, float]  # sizes and counts of the model by id, "wan.block.bytes"
    steps: int
    schedules: dict[str, dict[str, list[float]]]
    sizes: dict[str, dict[str, Any]]  # by size as printed, "167.8 MB"
    source: dict[str, Any]
    versions: dict[str, str]  # of the libraries that sizes and schedules were derived with


def load_evidence(folder: Path = DERIVED) -> Evidence:
    """Load what was derived. Raises EvidenceError for a file that is missing or damaged."""
    numbers, versions = read(folder, "architecture", "numbers", "versions")
    steps, schedules, more = read(folder, "schedule", "steps", "schedules", "versions")
    (sizes,) = read(folder, "identified", "sizes")
    keys = ("state", "releases", "files", "citations")
    source = dict(zip(keys, read(folder, "source", *keys), strict=True))
    return Evidence(numbers, steps, schedules, sizes, source, {**more, **versions})


def read(folder: Path, name: str, *keys: str) -> list[Any]:
    """What one derived file has under some keys."""
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA}")
        return [content[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = WRITTEN_BY.get(name, "make derive")
        raise EvidenceError(f"{path}: {error!r}; run `{fix}`") from None
