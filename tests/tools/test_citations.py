"""The baseline's source citations: what the check finds in wheels, and what it found."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tools import citations
from tools.citations import CITE, PACKAGE, CitationError, Entry
from wanreport.baseline import Fact, Facts, load_facts

ROOT = Path(__file__).resolve().parents[2]
SEED = next(iter(sorted((ROOT.parent / "shared" / "seed").glob("*.txt"))), None)
WHEELS = ROOT / ".cache" / "wheels"
COMMITTED: dict[str, Any] = json.loads(citations.SOURCE.read_text(encoding="utf-8"))
VERDICTS = {citation["fact"]: citation for citation in COMMITTED["citations"]}
ENTRIES = {entry.fact: entry for entry in citations.load_entries()}

needs_wheels = pytest.mark.skipif(
    not list(WHEELS.glob("*.whl")), reason="SGLang's wheels are not at hand: make citations"
)


def code(**lines: str) -> str:
    """A file of 60 lines; ``at12="x = 1"`` puts that into line 12."""
    text = {int(name.removeprefix("at")): line for name, line in lines.items()}
    return "\n".join(text.get(number, f"# {number}") for number in range(1, 61))


def pack(folder: Path, version: str, **files: str) -> Path:
    """A wheel with Python files of these names below the package."""
    folder.mkdir(exist_ok=True)
    path = folder / f"sglang-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(f"{PACKAGE}__init__.py", (2026, 1, 31, 0, 0, 0)), "")
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(f"{PACKAGE}run/{name}.py", (2026, 1, 2, 0, 0, 0)), text)
    return path


def claim(cite: str, *says: str, name: str = "s5.a", **more: Any) -> tuple[Fact, Entry]:
    """A fact that cites lines, and the one piece of evidence that each of them must hold."""
    fact = Fact(id=name, part="5", statement="", kind="cited", cite=cite)
    file = "run/" + cite.split(".py")[0] + ".py"
    return fact, Entry(fact=name, file=file, says=[[piece] for piece in says], **more)


def derive(folder: Path, *claims: tuple[Fact, Entry]) -> dict[str, Any]:
    facts = Facts({fact.id: fact for fact, _ in claims})
    return citations.derive_source(folder, facts, [entry for _, entry in claims])


def verdict(folder: Path, *claims: tuple[Fact, Entry]) -> dict[str, Any]:
    """The verdict on the first of some claims."""
    found = derive(folder, *claims)["citations"][0]
    assert isinstance(found, dict)
    return found


# Where code stands --------------------------------------------------------------------------------

LINES = ["def a():", "    x = 1", "    return x", "def b():", "    x = 1", "    return x"]


@pytest.mark.parametrize(
    ("pieces", "places"),
    [
        (["x = 1"], [(2, 2), (5, 5)]),
        (["x = 1", "return x"], [(2, 3), (5, 6)]),
        (["return x", "x = 1"], [(3, 5)]),
        (["x = 1", "y"], []),
        # context makes a place unique but is not part of it
        (["… def b(", "x = 1"], [(5, 5)]),
        (["x = 1", "… def b("], [(2, 2)]),
    ],
)
def test_evidence_is_found_line_by_line_and_in_order(
    pieces: list[str], places: list[citations.Span]
) -> None:
    assert citations.find(LINES, pieces) == places


@pytest.mark.parametrize(
    ("cite", "spans"),
    [("a.py:7", [(7, 7)]), ("a.py:7-9, 12", [(7, 9), (12, 12)]), ("a.py (no import)", []),
     ("a.py:80,157,200", [(80, 80), (157, 157), (200, 200)]),
     ("a.py:202-205 (docstring)", [(202, 205)])],
)  # fmt: skip
def test_the_lines_are_read_from_the_citation(cite: str, spans: list[citations.Span]) -> None:
    assert citations.cited_lines(claim(cite)[0]) == ("a.py", spans)


# Outcomes -----------------------------------------------------------------------------------------

X, Y, Z = "x = 1", "y = 2", "z = 3"
CASES: dict[str, tuple[dict[str, dict[str, str]], dict[str, str], list[str]]] = {
    # lines of each release, code by the place that cites it, outcomes
    "as cited": ({"1.0": {"at10": X}, "1.1": {"at12": X}}, {"10": X}, ["holds"]),
    "above the cited lines in one, below in the next": (
        {"1.0": {"at10": X}, "1.1": {"at30": X}}, {"20": X}, ["holds"]),
    "not between them": ({"1.0": {"at10": X}, "1.1": {"at30": X}}, {"31": X}, ["misplaced"]),
    "one shift for the whole file": (
        {"1.0": {"at30": X, "at35": Y, "at40": Z}, "1.1": {"at25": X, "at33": Y, "at39": Z}},
        {"10": X, "15": Y, "20": Z}, ["holds"] * 3),
    "a line beside that shift": (
        {"1.0": {"at30": X, "at35": Y, "at40": Z}, "1.1": {"at25": X, "at33": Y, "at39": Z}},
        {"11": X, "15": Y, "20": Z}, ["misplaced", "holds", "holds"]),
    "code between two places that stayed did not move": (
        {"1.0": {"at10": X, "at20": Y, "at30": Z}, "1.1": {"at15": X, "at26": Y, "at36": Z}},
        {"23": Y, "15": X, "36": Z}, ["misplaced", "holds", "holds"]),
    "code in other lines of every release": (
        {"1.0": {"at10": X}, "1.1": {"at10": X}}, {"40": X}, ["misplaced"]),
    "code that is nowhere": ({"1.0": {}}, {"40": X}, ["contradicts"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_what_becomes_of_a_citation(tmp_path: Path, case: str) -> None:
    releases, claims, outcomes = CASES[case]
    for version, lines in releases.items():
        pack(tmp_path, version, a=code(**lines))
    made = [claim(f"a.py:{at}", says, name=f"s5.{says[0]}") for at, says in claims.items()]
    found = derive(tmp_path, *made)["citations"]
    assert [citation["outcome"] for citation in found] == outcomes


def test_a_citation_says_where_its_code_is(tmp_path: Path) -> None:
    pack(tmp_path, "0.5.9", a=code(at10="    x = 1"))
    pack(tmp_path, "0.5.10", a=code(at12="    x = 1", at40="something else"))
    here = verdict(tmp_path, claim("a.py:10", X))
    assert here["fits"] == ["0.5.9"]
    assert here["moved"] == [{"version": "0.5.10", "lines": "12"}]
    assert here["quotes"] == [{"version": "0.5.9", "lines": "10", "text": "    x = 1"}]
    wrong = verdict(tmp_path, claim("a.py:40", X))
    assert {"version": "0.5.10", "lines": "40", "text": "something else"} in wrong["quotes"]


def test_evidence_must_lie_within_the_cited_lines(tmp_path: Path) -> None:
    pack(tmp_path, "1.0", a=code(at10=X, at12=Y))
    for cite, outcome in (("a.py:10-12", "holds"), ("a.py:10-11", "misplaced")):
        fact, entry = claim(cite, X)
        both = entry.model_copy(update={"says": [[X, Y]]})
        assert verdict(tmp_path, (fact, both))["outcome"] == outcome


def test_a_file_may_be_in_no_release_or_must_lack_words(tmp_path: Path) -> None:
    pack(tmp_path, "1.0", b=code(at50="# a distant relative"))
    found = verdict(tmp_path, claim("a.py:40", X))
    assert (found["outcome"], found["quotes"]) == ("unknown", [])
    pack(tmp_path, "1.1", a=code(at40=X), b=code(at50="import torch.dist as d"))
    assert verdict(tmp_path, claim("a.py:40", X))["fits"] == ["1.1"]
    found = verdict(tmp_path, claim("b.py (no dist import)", lacks=["dist"]))
    assert (found["outcome"], found["fits"]) == ("holds", ["1.0"])


def test_a_claim_that_means_something_else_is_overruled_only_by_code_that_is_there(
    tmp_path: Path,
) -> None:
    pack(tmp_path, "1.0", a=code(at10="x = 1"), b=code(at7="x = None"))
    more = {"note": "It is undone later ({undo}).", "outcome": "contradicts"}
    found = verdict(tmp_path, claim("a.py:10", "x", shown={"undo": ["run/b.py", "None"]}, **more))
    assert (found["outcome"], found["fits"]) == ("contradicts", ["1.0"])
    assert found["working"].endswith("It is undone later (b.py:7 in 1.0).")
    lost = claim("a.py:10", "x", shown={"undo": ["run/b.py", "nothing"]}, **more)
    assert verdict(tmp_path, lost)["outcome"] == "holds"


def test_a_fact_that_cites_nothing_holds_by_code_of_our_choice(tmp_path: Path) -> None:
    pack(tmp_path, "1.0", a=code(at10="x = 1"), b=code(at7="y = 2"))
    cited = claim("a.py:10", "x")
    fact, entry = claim("b.py:1", "x", name="s5.b", outcome="holds", note="{y}")
    fact = fact.model_copy(update={"cite": ""})
    for code_there, outcome in (("y = 2", "holds"), ("y = 3", "unknown")):
        shown = {"says": [], "shown": {"y": ["run/b.py", code_there]}}
        found = derive(tmp_path, cited, (fact, entry.model_copy(update=shown)))
        assert found["citations"][1]["outcome"] == outcome
        assert [file["path"] for file in found["files"]] == ["run/a.py"]


def test_files_that_fit_different_releases_place_the_source_between_them(tmp_path: Path) -> None:
    for version, x, y in (("0.5.10", 14, 20), ("0.5.9", 10, 18), ("0.5.9.post1", 12, 20)):
        pack(tmp_path, version, a=code(**{f"at{x}": X}), b=code(**{f"at{y}": Y}))
    found = derive(tmp_path, claim("a.py:10", "x"), claim("b.py:20", "y", name="s5.b"))
    assert found["state"] == "between 0.5.9 and 0.5.9.post1"
    assert [file["fits"] for file in found["files"]] == [["0.5.9"], ["0.5.9.post1", "0.5.10"]]
    releases = found["releases"]
    assert [release["version"] for release in releases] == ["0.5.9", "0.5.9.post1", "0.5.10"]
    assert releases[0]["built"] == "2026-01-31"
    assert re.fullmatch("[0-9a-f]{64}", releases[0]["sha256"])


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sglang-1.0-py3-none-any.whl", "numpy-2.0-py3-none-any.whl"])
def test_wheels_that_cannot_be_used_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CitationError, match=re.escape(str(tmp_path))):
        derive(tmp_path, claim("a.py:1", "x"))  # an empty folder
    (tmp_path / name).write_text("<html>not found</html>")
    with pytest.raises(CitationError, match=re.escape(name)):
        derive(tmp_path, claim("a.py:1", "x"))
    path = pack(tmp_path / "two", "1.0", a=code())
    path.with_name("sglang-1.0-cp311-linux.whl").write_bytes(path.read_bytes())
    with pytest.raises(CitationError, match=r"1\.0"):
        derive(path.parent, claim("a.py:1", "x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "run/b.py"}, "s5.a cites a.py, not run/b.py"),
        ({"says": []}, "cites 1 places"),
        ({"lacks": ["dist"]}, "`lacks` is for a file cited without lines"),
        ({"fact": "s5.b"}, "s5.b: there is no such fact"),
    ],
)
def test_an_entry_that_does_not_fit_its_fact_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    pack(tmp_path, "1.0", a=code())
    fact, entry = claim("a.py:1", "x")
    with pytest.raises(ValueError, match=re.escape(words)):
        derive(tmp_path, (fact, entry.model_copy(update=change)))


# The committed result -----------------------------------------------------------------------------


def test_every_fact_that_cites_a_file_has_a_verdict() -> None:
    cited = {fact.id: fact.cite for fact in load_facts().values() if CITE.match(fact.cite)}
    given = {name: found["cite"] for name, found in VERDICTS.items() if found["cite"]}
    assert given == cited and list(ENTRIES) == list(VERDICTS)


@pytest.mark.skipif(SEED is None, reason="the seed document is not at hand")
def test_every_citation_of_the_document_is_covered() -> None:
    assert SEED is not None
    text = SEED.read_text(encoding="utf-8").split("## 11.")[0]  # §11 lists files of its own
    facts = load_facts()
    held = [citations.cited_lines(facts[name]) for name in VERDICTS if VERDICTS[name]["cite"]]
    stated = [claim(match[0].strip(", "))[0] for match in CITE.finditer(text)]
    assert len(stated) == len(held)
    assert all(citations.cited_lines(fact) in held for fact in stated)


def test_the_committed_file_is_consistent() -> None:
    versions = [release["version"] for release in COMMITTED["releases"]]
    used = {entry.file for entry in ENTRIES.values() if entry.says or entry.lacks}
    assert {file["path"] for file in COMMITTED["files"]} == used
    for name, citation in VERDICTS.items():
        moved = {moved["version"] for moved in citation["moved"]}
        assert citation["outcome"] in ("holds", "misplaced", "contradicts", "unknown")
        assert set(citation["fits"]) <= set(versions) - moved
        quoted = "\n".join(quote["text"] for quote in citation["quotes"])
        for pieces in ENTRIES[name].says:
            assert not moved or any(p in quoted for p in pieces if not p.startswith("…")), name
    fetched = re.search(r"^SGLANG := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert fetched and fetched[1].split() == versions


@pytest.fixture(scope="module")
def releases() -> list[citations.Release]:
    files = {entry.file for entry in ENTRIES.values()}
    shown = {place[0] for entry in ENTRIES.values() for place in entry.shown.values()}
    return citations.read_releases(WHEELS, files | shown)


@needs_wheels
def test_the_committed_file_is_derived_again(tmp_path: Path) -> None:
    citations.main([str(WHEELS)], tmp_path / "source.json")
    assert (tmp_path / "source.json").read_bytes() == citations.SOURCE.read_bytes()


@needs_wheels
@pytest.mark.parametrize("name", [name for name in VERDICTS if ":" in VERDICTS[name]["cite"]])
def test_a_wrong_line_is_noticed_and_harms_no_other(
    name: str, releases: list[citations.Release]
) -> None:
    facts = load_facts()
    file, lines = facts[name].cite.split(":")
    wrong = re.sub(r"\d+", lambda number: str(int(number[0]) + 200), lines)
    changed = facts[name].model_copy(update={"cite": f"{file}:{wrong}"})
    trial = citations.Trial(Facts({**facts, name: changed}), list(ENTRIES.values()), releases)
    verdicts = {c.fact.id: trial.citation(c) for c in trial.citations}
    assert verdicts[name]["outcome"] != "holds"
    assert verdicts[name]["fits"] == [] and trial.state == COMMITTED["state"]
    others = VERDICTS.keys() - {name}
    assert {other: verdicts[other]["outcome"] for other in others} == {
        other: VERDICTS[other]["outcome"] for other in others
    }
