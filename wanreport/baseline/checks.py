"""What facts are held against, and how: ``checks.yaml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, model_validator

from wanreport.baseline.formulas import FactError

Kind = Literal["architecture", "identification", "schedule", "source", "datasheet", "published",
               "arithmetic", "measured"]  # fmt: skip
"""The kinds of checks. Where two contradict a number, the first of them says what is right."""

KINDS: tuple[str, ...] = get_args(Kind)
CHECKS = Path(__file__).with_name("checks.yaml")

Texts = Annotated[list[str], BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


class Check(BaseModel, extra="forbid"):
    """What some facts are held against: a number, conditions, another fact's verdict, or runs."""

    fact: Texts
    check: Kind | Literal[""] = ""  # "" where nothing can judge them; `why` says the reason
    how: str = ""
    holds: Texts = []
    repeats: str = ""
    by: list[str] | None = None  # the answers of our runs that bear on them
    why: str = ""
    instead: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Check:
        ways = [self.how, self.holds, self.repeats, self.by is not None]
        if sum(map(bool, ways)) != bool(self.check):
            raise ValueError(f"{self.fact}: a check needs one of how, holds, repeats, by")
        return self


class Conclusion(BaseModel, extra="forbid"):
    """One conclusion of the document in its words, the facts it needs, the answers of our runs."""

    name: str
    quote: str
    needs: list[str]
    by: list[str] = []


class Judging(BaseModel, extra="forbid"):
    """The content of the file. An id's beginning stands for all facts below it."""

    checks: list[Check]
    rests_on: dict[str, list[str]]  # what a fact needs, where formula and text do not name it
    conclusions: list[Conclusion]


def load_judging(path: Path = CHECKS) -> Judging:
    """Load what facts are held against. Raises FactError for what is not of this form."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        # A check with `of` is one for each of these, which takes the place of every @.
        content["checks"] = [
            json.loads(json.dumps(entry).replace("@", of))
            for entry in content["checks"]
            for of in entry.pop("of", [""])
        ]
        return Judging(**content)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise FactError(f"{path}: {error}") from None
