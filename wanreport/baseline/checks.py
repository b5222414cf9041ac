"""What facts are held against: ``checks.yaml`` and ``conclusions.yaml``, which say how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wanreport.baseline.arithmetic import names
from wanreport.baseline.facts import FactError, Facts, Loader, slots

Kind = Literal["architecture", "identification", "schedule", "source", "datasheet", "published",
               "arithmetic", "measured"]  # fmt: skip
"""The kinds of checks. Where two contradict a number, the first of them says what is right."""

KINDS: tuple[str, ...] = get_args(Kind)
HERE = Path(__file__).parent


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Entry):
    """One thing that one fact is held against: a number, conditions, or another fact's verdict."""

    fact: str
    check: Kind
    how: str = ""
    holds: list[str] = []
    repeats: str = ""
    why: str = ""
    instead: str = ""


class Group(_Entry):
    """Facts that runs bear on, `by` which answers; or that no source can judge, and `why`."""

    facts: list[str]
    by: list[str] = []
    why: str = ""


class Conclusion(_Entry):
    """One conclusion of the document in its words, the facts it needs, the answers of our runs."""

    name: str
    quote: str
    needs: list[str]
    by: list[str] = []


class Judging(_Entry):
    """The content of both files."""

    checks: list[Check]
    measured: list[Group]
    unknowable: list[Group]
    rests_on: dict[str, list[str]]  # what a fact needs, where formula and text do not name it
    conclusions: list[Conclusion]


def load_judging(facts: Facts, sizes: dict[str, float], folder: Path = HERE) -> Judging:
    """Load what facts are held against.

    Raises FactError for a key, a kind of check or an id that does not exist, and for a check that
    has not exactly one way.
    """
    file = ""
    try:
        file = "conclusions.yaml"
        conclusions = yaml.load((folder / file).read_text(encoding="utf-8"), Loader=Loader)
        file = "checks.yaml"
        content = yaml.load((folder / file).read_text(encoding="utf-8"), Loader=Loader)
        content["checks"] = [each for entry in content["checks"] for each in _each(entry, facts)]
        for group in (*content["measured"], *content["unknowable"]):
            group["facts"] = facts.below(group["facts"])
        rests_on = content["rests_on"].items()
        content["rests_on"] = {n: needs for start, needs in rests_on for n in facts.below([start])}
        judging = Judging(**content, conclusions=conclusions)
        for name in _used(judging):
            if name not in sizes:
                facts[name]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError, FactError) as error:
        raise FactError(f"{file}: {error}") from None
    return judging


def _each(entry: dict[str, Any], facts: Facts) -> Iterator[dict[str, Any]]:
    """A check for each of its facts, and for each of its `of` in the place of every @."""
    if sum(key in entry for key in ("how", "holds", "repeats")) != 1:
        raise FactError(f"{entry.get('fact')}: a check needs one of how, holds, repeats")
    for of in entry.get("of", [""]):
        one = {
            key: [item.replace("@", of) for item in ([value] if isinstance(value, str) else value)]
            for key, value in entry.items() if key != "of"
        }  # fmt: skip
        many = ("fact", "holds")
        single = {key: value[0] for key, value in one.items() if key not in many}
        for name in facts.below(one["fact"]):
            yield {"holds": one.get("holds", []), **single, "fact": name}


def _used(judging: Judging) -> Iterator[str]:
    """Every id that a check or a conclusion names."""
    for check in judging.checks:
        texts = [check.how, check.repeats, *check.holds, *slots(check.why + check.instead)]
        yield from names(" ".join(texts))
    for needs in (*judging.rests_on.values(), *(one.needs for one in judging.conclusions)):
        yield from needs
