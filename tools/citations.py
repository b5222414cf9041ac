"""Checks the baseline's source citations against the releases of SGLang: ``make citations``.

``citations.yaml`` says what must stand in the cited lines. Each release is asked whether its lines
say it, and where the code is if they do not. A citation that fits no release may still be right,
for the document read a repository, not a wheel. It is taken for right where one shift in lines
carries most of its file's cited places, and its own, from a release beside the state that was
read; or, with no such shift, where the code stands above the cited lines in one of the two
releases around that state and below them in the other.
"""

import hashlib
import json
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from wanreport.baseline.facts import DERIVED, Fact, FactError, Facts, load_facts
from wanreport.records.record import replace_file

ENTRIES = Path(__file__).with_name("citations.yaml")
SOURCE = DERIVED / "source.json"
PACKAGE = "sglang/multimodal_gen/"
REACH = 100
"""Most lines from one piece of evidence to the next."""

CITE = re.compile(r"(\w+\.py)(?::(\d[\d,\s-]*))?")
_WHEEL = re.compile(r"sglang-(\d+(?:\.\d+)*(?:\.post\d+)?)-.*\.whl")

Span = tuple[int, int]  # first and last line, counted from 1


class CitationError(ValueError):
    """Wheels or a data file that cannot be used; the message names the file."""


class Entry(BaseModel):
    """What a citation must find; ``citations.yaml`` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fact: str
    file: str
    says: list[list[str]] = []
    lacks: list[str] = []
    note: str = ""
    shown: dict[str, list[str]] = {}
    outcome: Literal["contradicts", "unknown", "holds"] | None = None


def load_entries(path: Path = ENTRIES) -> list[Entry]:
    """Load the data file; every problem names it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[Entry]).validate_python(content["citations"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise CitationError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Release:
    """A wheel: lines of its files by path below `PACKAGE`; `built` is the day it was made."""

    version: str
    wheel: str
    sha256: str
    built: str
    files: Mapping[str, Sequence[str]]


def read_release(wheel: Path, files: Iterable[str]) -> Release:
    """Read the named files straight out of a wheel; those that it lacks are left out."""
    if not (named := _WHEEL.fullmatch(wheel.name)):
        raise CitationError(f"{wheel}: not named like the wheel of an SGLang release")
    try:
        data = wheel.read_bytes()
        with zipfile.ZipFile(wheel) as archive:
            dates = {item.filename: item.date_time[:3] for item in archive.infolist()}
            held = [file for file in files if PACKAGE + file in dates]
            texts = {f: archive.read(PACKAGE + f).decode().splitlines() for f in held}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise CitationError(f"{wheel}: not a readable wheel ({error}); fetch it again") from None
    if not any(name.startswith(PACKAGE) for name in dates):
        raise CitationError(f"{wheel}: holds no {PACKAGE}")
    built = "{:04}-{:02}-{:02}".format(*max(dates.values()))
    return Release(named[1], wheel.name, hashlib.sha256(data).hexdigest(), built, texts)


def read_releases(wheels: Path, files: Iterable[str]) -> list[Release]:
    """Read every wheel of a folder, oldest version first."""
    files = sorted(set(files))
    releases = [read_release(path, files) for path in sorted(wheels.glob("*.whl"))]
    if not releases:
        raise CitationError(f"{wheels}: there is no wheel in it; `make citations` fetches them")
    if doubled := [v for v, n in Counter(r.version for r in releases).items() if n > 1]:
        raise CitationError(f"{wheels}: more than one wheel of {', '.join(doubled)}; keep one")
    return sorted(releases, key=lambda r: [int(n) for n in re.findall(r"\d+", r.version)])


# Where code stands --------------------------------------------------------------------------------


def find(lines: Sequence[str], pieces: Sequence[str]) -> list[Span]:
    """Return where the pieces stand in this order, each in a line of its own: first and last line.

    Pieces after "…" must be there but do not count. The shortest place for each end.
    """
    counted = [i for i, piece in enumerate(pieces) if not piece.startswith("…")] or [0]
    wanted = [piece.removeprefix("…").strip() for piece in pieces]
    places: dict[int, Span] = {}
    for start, line in enumerate(lines, 1):
        at = [start] if wanted and wanted[0] in line else []
        for piece in wanted[1:] if at else []:
            below = range(at[-1] + 1, min(at[-1] + REACH, len(lines)) + 1)
            at.extend([n for n in below if piece in lines[n - 1]][:1] or [at[-1]])
        if at and len(set(at)) == len(wanted):
            places[at[-1]] = (at[counted[0]], at[counted[-1]])
    return sorted(set(places.values()))


@dataclass(frozen=True)
class Citation:
    """A citation and what each release has for it.

    `places` says for each release and each cited place where its evidence stands; `marks`, where
    that or at least its context stands.
    """

    entry: Entry
    fact: Fact
    cited: list[Span]
    says: list[bool]
    places: list[list[list[Span]]]
    marks: list[list[list[Span]]]

    def shifts(self, release: int) -> list[set[int]]:
        """For each cited place, by how many lines a release's code must move to lie in it."""
        return [
            {k for first, last in spots for k in range(start - first, end - last + 1)}
            for (start, end), spots in zip(self.cited, self.places[release], strict=True)
        ]

    def brackets(self, before: int, after: int) -> bool:
        """Do the cited lines lie between the code's places in two releases?"""
        for n, (start, end) in enumerate(self.cited):
            near = self.marks[before][n] + self.marks[after][n]
            ways = [k for first, last in near for k in (start - first, end - last)]
            if not ways or not min(ways) <= 0 <= max(ways):
                return False
        return bool(self.cited)


def cited_lines(fact: Fact) -> tuple[str, list[Span]]:
    """Return the file that a fact cites and the lines, as (first, last) for each place."""
    if not (match := CITE.match(fact.cite)):
        return "", []
    ends = [part.strip().split("-") for part in (match[2] or "").split(",") if part.strip()]
    return match[1], [(int(end[0]), int(end[-1])) for end in ends]


def read_citation(entry: Entry, facts: Facts, releases: Sequence[Release]) -> Citation:
    """Look a citation up in every release."""
    fact = facts[entry.fact]
    file, cited = cited_lines(fact)
    if not file:
        return Citation(entry, fact, [], [], [], [])
    if Path(entry.file).name != file:
        raise CitationError(f"{ENTRIES.name}: {fact.id} cites {file}, not {entry.file}")
    if len(cited) != len(entry.says) or bool(cited) == bool(entry.lacks):
        raise CitationError(
            f"{ENTRIES.name}: {fact.id} cites {len(cited)} places; `says` needs one entry for each,"
            " and `lacks` is for a file cited without lines"
        )
    texts = [release.files.get(entry.file, []) for release in releases]
    places = [[find(text, pieces) for pieces in entry.says] for text in texts]
    context = [[p[1:] for p in pieces if p.startswith("…")] for pieces in entry.says]
    marks = [
        [spots or find(text, pieces) for spots, pieces in zip(here, context, strict=True)]
        for text, here in zip(texts, places, strict=True)
    ]
    citation = Citation(entry, fact, cited, [], places, marks)
    word = re.compile(rf"\b({'|'.join(entry.lacks)})\b")
    for n, text in enumerate(texts):
        lacks = bool(text) and not any(map(word.search, text))
        citation.says.append(all(0 in k for k in citation.shifts(n)) if cited else lacks)
    return citation


def common_shift(file: Iterable[Citation], release: int) -> int:
    """Return the shift that carries most of a file's citations from a release, or 0.

    It must carry two citations of different lines, and more than half of those that it could.
    """
    carried: dict[int, set[str]] = defaultdict(set)
    for citation in file:
        for shift in set.intersection(*citation.shifts(release) or [set()]):
            carried[shift].add(str(citation.cited))
    best = max(carried, key=lambda k: (len(carried[k]), -abs(k)), default=0)
    most = max(1, len(set().union(*carried.values())) / 2)
    return best if carried and len(carried[best]) > most else 0


def states(citation: Citation, file: Sequence[Citation]) -> set[int]:
    """Return the states that a citation can be of: 2n is release n, 2n + 1 lies behind it."""
    found = {2 * n for n, says in enumerate(citation.says) if says}
    for n in range(len(citation.says) - 1):
        beside = {m: common_shift(file, m) for m in (n, n + 1) if all(citation.shifts(m))}
        ways = [all(k in shifts for shifts in citation.shifts(m)) for m, k in beside.items() if k]
        pinned = any(_pinned(citation, file, m) for m in (n, n + 1))
        bracketed = not ways and not pinned and citation.brackets(n, n + 1)
        if found & {2 * n, 2 * n + 2} or any(ways) or bracketed:
            found.add(2 * n + 1)
    return found


def _pinned(citation: Citation, file: Sequence[Citation], release: int) -> bool:
    """Is a place between two that the release has as cited? Then its code is not elsewhere."""
    kept = [s for c in file for s, k in zip(c.cited, c.shifts(release), strict=True) if 0 in k]
    return any(
        min(kept, default=place) < place < max(kept, default=place)
        for place, shifts in zip(citation.cited, citation.shifts(release), strict=True)
        if shifts and 0 not in shifts
    )


# Verdicts -----------------------------------------------------------------------------------------


def _lines(spans: Iterable[Span]) -> str:
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)


class Trial:
    """All citations before all releases; `read` are the states that most of them can be of."""

    def __init__(self, facts: Facts, entries: Sequence[Entry], releases: list[Release]) -> None:
        self.releases = releases
        self.citations = [read_citation(entry, facts, releases) for entry in entries]
        self.files: dict[str, list[Citation]] = defaultdict(list)
        for citation in self.citations:
            if citation.says:
                self.files[citation.entry.file].append(citation)
        self.states = {c.fact.id: states(c, self.files[c.entry.file])
                       for c in self.citations if c.says}  # fmt: skip
        votes = Counter(state for found in self.states.values() for state in found)
        self.read = {state for state in votes if votes[state] == max(votes.values())}
        known = self.read or {0, 2 * len(releases) - 2}
        self.ends = sorted({min(known) // 2, (max(known) + 1) // 2})
        """The releases that the state which was read lies between, or is."""
        self.state = ("between " if len(self.ends) > 1 else "") + self.names(self.ends)

    def names(self, releases: Sequence[int]) -> str:
        """Versions in words: one, two, or a row of them."""
        names = [self.releases[n].version for n in releases]
        row = len(names) > 2 and releases[-1] - releases[0] == len(names) - 1
        return f"{names[0]} to {names[-1]}" if row else " and ".join(names)

    def file(self, path: str) -> dict[str, Any]:
        """Which releases have all lines that are cited of a file, or what state can have them."""
        citations = self.files[path]
        fits = [n for n in range(len(self.releases)) if all(c.says[n] for c in citations)]
        words = "No release has all cited lines, nor can they be those of the state that was read."
        if fits:
            words = f"All cited lines are those of {self.names(fits)}."
        elif set.intersection(*(self.states[c.fact.id] for c in citations)) & self.read:
            words = f"No release has all cited lines; they can be those of a state {self.state}."
        for n in [] if fits else self.ends:
            if shift := common_shift(citations, n):
                way = f"{abs(shift)} lines further {'down' if shift < 0 else 'up'}"
                words += f" {self.names([n])} has most of the code {way}."
        versions = [self.releases[n].version for n in fits]
        return {"file": Path(path).name, "path": path, "fits": versions, "conclusion": words}

    def citation(self, citation: Citation) -> dict[str, Any]:
        """The verdict on one citation."""
        entry = citation.entry
        if not citation.says:
            return self.uncited(citation)
        fits = [n for n, says in enumerate(citation.says) if says]
        moved = {
            n: [spots[0] for spots in here]
            for n, here in enumerate(citation.places)
            if citation.cited and n not in fits and all(len(spots) == 1 for spots in here)
        }
        near = [n for n in self.ends if n in moved] or list(moved)[-1:]
        note, shown = self.note(entry)
        outcome, words = "contradicts", "Found as cited in no release."
        if not any(entry.file in release.files for release in self.releases):
            outcome, words = "unknown", "None of the releases has the file."
        elif fits:
            outcome, words = "holds", f"Found as cited in {self.names(fits)}."
        elif self.states[citation.fact.id] & self.read:
            outcome = "holds"
            words = f"Found as cited in no release, but a state {self.state} can have it there."
        elif near:
            outcome = "misplaced"
        if near:
            places = (f"{_lines(moved[n])} in {self.names([n])}" for n in near)
            words += f" Elsewhere: {' and '.join(places)}."
        quoted = [] if fits else [(n, span) for n in near for span in moved[n]]
        if fits or outcome in ("contradicts", "misplaced"):
            n = ([n for n in fits if n in self.ends] or fits or self.ends)[-1]
            quoted += [(n, span) for span in citation.cited]
        if entry.outcome and shown and outcome in ("holds", "misplaced"):
            outcome = entry.outcome
        return {
            "fact": citation.fact.id,
            "cite": citation.fact.cite,
            "outcome": outcome,
            "fits": [self.releases[n].version for n in fits],
            "working": f"{words} {note}".strip(),
            "quotes": [self.quote(entry.file, *place) for place in quoted],
            "moved": [{"version": self.names([n]), "lines": _lines(moved[n])} for n in moved],
        }

    def uncited(self, citation: Citation) -> dict[str, Any]:
        """The verdict on a fact that cites no lines, by code of our own choice."""
        note, shown = self.note(citation.entry)
        outcome = citation.entry.outcome if shown else "unknown"
        return {"fact": citation.fact.id, "cite": citation.fact.cite, "outcome": outcome,
                "fits": [], "working": note, "quotes": [], "moved": []}  # fmt: skip

    def quote(self, file: str, n: int, span: Span) -> dict[str, str]:
        """The first three lines of a place."""
        first, last = span[0], min(span[1], span[0] + 2)
        text = "\n".join(self.releases[n].files.get(file, [])[first - 1 : last])
        return {"version": self.names([n]), "lines": _lines([(first, last)]), "text": text}

    def note(self, entry: Entry) -> tuple[str, bool]:
        """A citation's note with the places that it rests on, and whether all of them are there."""
        said: dict[str, str] = {}
        for name, (file, *pieces) in entry.shown.items():
            for n in self.ends:
                if spots := find(self.releases[n].files.get(file, []), pieces):
                    said[name] = f"{Path(file).name}:{_lines(spots[:1])} in {self.names([n])}"
        text = re.sub(r"\{(\w+)\}", lambda m: said.get(m[1], "not found"), entry.note)
        return text, len(said) == len(entry.shown)


def derive_source(
    wheels: Path, facts: Facts | None = None, entries: Sequence[Entry] | None = None
) -> dict[str, Any]:
    """Check every source citation of the baseline against a folder of SGLang wheels.

    Returns what ``derived/source.json`` holds: the releases with their hashes, the state of the
    source that was read, a conclusion for each file and a verdict on each citation. Raises
    CitationError for a folder without wheels, a file that is none, and entries that fit no fact.
    """
    entries = load_entries() if entries is None else entries
    files = {e.file for e in entries} | {shown[0] for e in entries for shown in e.shown.values()}
    trial = Trial(facts or load_facts(), entries, read_releases(Path(wheels), files))
    return {
        "schema": 1,
        "releases": [{k: v for k, v in vars(r).items() if k != "files"} for r in trial.releases],
        "state": trial.state,
        "files": [trial.file(file) for file in trial.files],
        "citations": [trial.citation(citation) for citation in trial.citations],
    }


def main(arguments: Sequence[str], path: Path = SOURCE) -> None:
    """``python -m tools.citations WHEELS`` writes the committed file again."""
    if len(arguments) != 1:
        sys.exit("usage: python -m tools.citations WHEELS")
    try:
        source = derive_source(Path(arguments[0]))
    except (CitationError, FactError) as error:
        sys.exit(f"citations: {error}")
    replace_file(path, (json.dumps(source, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"{path}: {len(source['citations'])} citations; the source read: {source['state']}")


if __name__ == "__main__":
    main(sys.argv[1:])
