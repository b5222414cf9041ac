"""What the facts are held against: ``checks.yaml`` and ``conclusions.yaml``, which say how."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from wanreport.baseline.arithmetic import names
from wanreport.baseline.evidence import Evidence
from wanreport.baseline.facts import FactError, Facts, Loader

CHECKS: dict[str, str] = {
    "architecture": "follows from the model's configuration",
    "identification": "which weights a transfer of this size can be",
    "schedule": "what the scheduler itself does",
    "source": "what SGLang's releases say at the lines cited, or do with these settings",
    "published": "whether the pull request's figures fit together",
    "arithmetic": "totals, differences, ratios, and the same quantity stated twice",
    "measured": "what our own records say",
}
"""The kinds of checks. Where two contradict a number, the first of them says what is right."""

WAYS = ("how", "holds", "among", "repeats", "engine", "resolves", "size", "shifts")
HERE = Path(__file__).parent
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Check:
    """One thing that one fact is held against; exactly one of :data:`WAYS` is set."""

    fact: str
    check: str
    how: str = ""
    holds: str = ""
    among: list[str] = field(default_factory=list)
    repeats: str = ""
    engine: str = ""
    flags: str = ""
    resolves: bool = False
    size: str = ""
    claimed: str = ""
    shifts: bool = False
    why: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Measured:
    """Facts that records can test: by checks of the post-benchmark report, or by ones to come."""

    facts: list[str]
    by: list[str] = field(default_factory=list)
    needs: str = ""


@dataclass(frozen=True)
class Conclusion:
    """One conclusion of the document, the facts that it needs, and what is right instead."""

    name: str
    says: str
    needs: list[str]
    instead: str = ""
    but: str = ""


@dataclass(frozen=True)
class Judging:
    """The content of both files; every pattern is spelled out as ids.

    Attributes
    ----------
    rests_on
        Facts that a fact needs, where neither its formula nor its text names them.
    binary
        Facts whose MB or GB may be MiB or GiB.
    """

    checks: list[Check]
    measured: list[Measured]
    rests_on: dict[str, list[str]]
    binary: set[str]
    conclusions: list[Conclusion]


def load_judging(facts: Facts, evidence: Evidence, folder: Path = HERE) -> Judging:
    """Load what facts are held against.

    Raises
    ------
    FactError
        For a key, a kind of check or an id that does not exist, and a check without one way.
    """
    path = folder / "checks.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        checks = [check for entry in content["checks"] for check in _checks(entry, facts)]
        measured = [
            Measured(**{**entry, "facts": _spelled(entry["facts"], facts)})
            for entry in content["measured"]
        ]
        rests_on = {
            name: needed
            for pattern, needed in content["rests_on"].items()
            for name in _spelled([pattern], facts)
        }
        binary = set(_spelled(content["binary"], facts))
        path = folder / "conclusions.yaml"
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        judging = Judging(checks, measured, rests_on, binary, [Conclusion(**e) for e in content])
    except (OSError, yaml.YAMLError, KeyError, TypeError, FactError) as error:
        raise FactError(f"{path.name}: {error}") from None
    _check_names(judging, facts, evidence)
    return judging


def _spelled(patterns: Iterable[str], facts: Facts) -> list[str]:
    """Ids for patterns such as ``s6.2.*.vram``; one that matches nothing is an error."""
    found: list[str] = []
    for pattern in patterns:
        here = [name for name in facts if fnmatchcase(name, pattern)]
        if not here:
            raise FactError(f"{pattern}: there is no such fact")
        found += here
    return found


def _checks(entry: dict[str, Any], facts: Facts) -> list[Check]:
    """One check for each fact that the pattern matches; ``*`` elsewhere is what it stood for."""
    entry = dict(entry)
    pattern, allowed = entry.pop("fact"), entry.pop("of", None)
    regex = re.compile(re.escape(pattern).replace(r"\*", r"(\w+)"))
    made = []
    for name in _spelled([pattern], facts):
        match = regex.fullmatch(name)
        star = match[1] if match and match.groups() else ""
        if not match or (allowed and star not in allowed):
            continue

        def filled(value: Any, star: str = star) -> Any:
            if isinstance(value, list):
                return [filled(item) for item in value]
            # A product has a space before its sign.
            return re.sub(r"(?<=[.\w])\*", star, value) if isinstance(value, str) else value

        check = Check(name, **{key: filled(value) for key, value in entry.items()})
        if check.check not in CHECKS:
            raise FactError(f"{name}: check must be one of {', '.join(CHECKS)}")
        if sum(bool(getattr(check, way)) for way in WAYS) != 1:
            raise FactError(f"{name}: a check needs exactly one of {', '.join(WAYS)}")
        made.append(check)
    return made


def _check_names(judging: Judging, facts: Facts, evidence: Evidence) -> None:
    """Refuse an id that is neither a fact nor a size, wherever one is written."""
    said: list[tuple[str, list[str]]] = [
        ("checks.yaml: rests_on", sum(judging.rests_on.values(), []))
    ]
    for check in judging.checks:
        formulas = [check.how, check.holds, check.size, check.flags, check.repeats, *check.among]
        used = names(" ".join([*formulas, *_SLOT.findall(check.why + check.instead)]))
        said.append((f"checks.yaml: {check.fact}", used))
    for conclusion in judging.conclusions:
        texts = conclusion.name + conclusion.says + conclusion.instead + conclusion.but
        used = [*names(" ".join(_SLOT.findall(texts))), *conclusion.needs]
        said.append((f"conclusions.yaml: {conclusion.name}", used))
    said += [(fact.id, names(fact.how)) for fact in facts.values()]
    for where, used in said:
        for name in used:
            if name not in facts and name not in evidence.numbers:
                raise FactError(f"{where}: {name}: there is no such fact or size")
