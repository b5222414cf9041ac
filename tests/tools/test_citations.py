"""The baseline's source citations: what the check finds in wheels, and what it found."""

import json
import re
import zipfile

import pytest
from synthetic import ROOT

from tools import citations
from tools.citations import CITE, PACKAGE, CitationError, Entry
from wanreport.baseline.facts import Fact, Facts, load_facts

SEED = next((ROOT.parent / "shared" / "seed").glob("*.txt"), None)
WHEELS = ROOT / ".cache" / "wheels"
COMMITTED = json.loads(citations.SOURCE.read_text(encoding="utf-8"))
VERDICTS = {citation["fact"]: citation for citation in COMMITTED["citations"]}
ENTRIES = {entry.fact: entry for entry in citations.load_entries()}


def pack(folder, version, **files):
    """A wheel with Python files of 60 lines below the package; these hold some code."""
    folder.mkdir(exist_ok=True)
    path = folder / f"sglang-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(f"{PACKAGE}__init__.py", (2026, 1, 31, 0, 0, 0)), "")
        for name, lines in files.items():
            text = "\n".join(lines.get(number, f"# {number}") for number in range(1, 61))
            wheel.writestr(zipfile.ZipInfo(f"{PACKAGE}run/{name}.py", (2026, 1, 2, 0, 0, 0)), text)
    return path


def claim(cite, *says, name="s5.a", **more):
    """A fact that cites lines, and the pieces of evidence that these must hold in this order."""
    fact = Fact(id=name, part="5", statement="", kind="cited", cite=cite)
    held = {"file": f"run/{cite.split('.py')[0]}.py", "says": [list(says)] if says else []}
    return fact, Entry(fact=name, **held | more)


def derive(folder, *claims):
    facts = Facts({fact.id: fact for fact, _ in claims})
    return citations.derive_source(folder, facts, [entry for _, entry in claims])


X, Y, Z = "x = 1", "y = 2", "z = 3"
APART = {"1.0": {"a": {10: X}}, "1.1": {"a": {30: X}}}
BOTH = {"1.0": {"a": {10: X, 12: Y}}}
SHIFTED = {"1.0": {"a": {30: X, 35: Y, 40: Z}}, "1.1": {"a": {25: X, 33: Y, 39: Z}}}
LACKS = {"a.py (none)": {"lacks": ["dist"]}}
UNDONE = {"a.py:10": {"says": [[X]], "shown": {"undo": ["run/b.py", "None"]},
                      "note": "Undone ({undo}).", "outcome": "contradicts"}}  # fmt: skip
CASES = {
    # each release's files with their code, claims by the place that they cite, outcomes
    "as cited": ({"1.0": {"a": {10: X}}, "1.1": {"a": {12: X}}}, {"a.py:10": X}, ["holds"]),
    "above the cited lines in one, below in the next": (APART, {"a.py:20": X}, ["holds"]),
    "not between them": (APART, {"a.py:31": X}, ["misplaced"]),
    "one shift for the whole file": (
        SHIFTED, {"a.py:10": X, "a.py:15": Y, "a.py:20": Z}, ["holds"] * 3),
    "a line beside that shift": (
        SHIFTED, {"a.py:11": X, "a.py:15": Y, "a.py:20": Z}, ["misplaced", "holds", "holds"]),
    "code between two places that stayed did not move": (
        {"1.0": {"a": {10: X, 20: Y, 30: Z}}, "1.1": {"a": {15: X, 26: Y, 36: Z}}},
        {"a.py:23": Y, "a.py:15": X, "a.py:36": Z}, ["misplaced", "holds", "holds"]),
    "code in other lines of every release": (
        {"1.0": {"a": {10: X}}, "1.1": {"a": {10: X}}}, {"a.py:40": X}, ["misplaced"]),
    "code that is nowhere": ({"1.0": {"a": {}}}, {"a.py:40": X}, ["contradicts"]),
    "all evidence within the lines": (BOTH, {"a.py:10-12": f"{X} … {Y}"}, ["holds"]),
    "some evidence beside them": (BOTH, {"a.py:10-11": f"{X} … {Y}"}, ["misplaced"]),
    "a file in no release": ({"1.0": {"b": {}}}, {"a.py:40": X}, ["unknown"]),
    "words that a file lacks": ({"1.0": {"a": {5: "# a distant relative"}}}, LACKS, ["holds"]),
    "words that it has": ({"1.0": {"a": {5: "import dist"}}}, LACKS, ["contradicts"]),
    "overruled by code that is there": (
        {"1.0": {"a": {10: X}, "b": {7: "x = None"}}}, UNDONE, ["contradicts"]),
    "not by code that is not": ({"1.0": {"a": {10: X}, "b": {}}}, UNDONE, ["holds"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_what_becomes_of_a_citation(tmp_path, case):
    releases, claims, outcomes = CASES[case]
    for version, files in releases.items():
        pack(tmp_path, version, **files)
    made = [claim(cite, name=f"s5.{number}",
                  **(says if isinstance(says, dict) else {"says": [says.split(" … ")]}))
            for number, (cite, says) in enumerate(claims.items())]  # fmt: skip
    found = derive(tmp_path, *made)["citations"]
    assert [citation["outcome"] for citation in found] == outcomes
    assert "overruled" not in case or found[0]["working"].endswith("Undone (b.py:7 in 1.0).")


def test_files_that_fit_different_releases_place_the_source_between_them(tmp_path):
    for version, x, y in (("0.5.10", 14, 20), ("0.5.9", 10, 18), ("0.5.9.post1", 12, 20)):
        pack(tmp_path, version, a={x: X}, b={y: Y})
    found = derive(tmp_path, claim("a.py:10", X), claim("b.py:20", Y, name="s5.b"))
    assert found["state"] == "between 0.5.9 and 0.5.9.post1"
    assert [file["fits"] for file in found["files"]] == [["0.5.9"], ["0.5.9.post1", "0.5.10"]]
    releases = found["releases"]
    assert [release["version"] for release in releases] == ["0.5.9", "0.5.9.post1", "0.5.10"]
    assert releases[0]["built"] == "2026-01-31"
    assert re.fullmatch("[0-9a-f]{64}", releases[0]["sha256"])


@pytest.mark.parametrize("name", ["sglang-1.0-py3-none-any.whl", "numpy-2.0-py3-none-any.whl"])
def test_wheels_that_cannot_be_used_are_named(tmp_path, name):
    with pytest.raises(CitationError, match=re.escape(str(tmp_path))):
        derive(tmp_path, claim("a.py:1", X))  # an empty folder
    (tmp_path / name).write_text("<html>not found</html>")
    with pytest.raises(CitationError, match=re.escape(name)):
        derive(tmp_path, claim("a.py:1", X))
    path = pack(tmp_path / "two", "1.0", a={})
    path.with_name("sglang-1.0-cp311-linux.whl").write_bytes(path.read_bytes())
    with pytest.raises(CitationError, match=r"1\.0"):
        derive(path.parent, claim("a.py:1", X))


def test_every_citation_of_the_document_has_a_verdict():
    facts = load_facts()
    cited = {fact.id: fact.cite for fact in facts.values() if CITE.match(fact.cite)}
    given = {name: found["cite"] for name, found in VERDICTS.items() if found["cite"]}
    assert given == cited and list(ENTRIES) == list(VERDICTS)
    if SEED:
        text = SEED.read_text(encoding="utf-8").split("## 11.")[0]  # §11 lists files of its own
        stated = [citations.cited_lines(claim(match[0].strip(", "))[0])
                  for match in CITE.finditer(text)]  # fmt: skip
        held = [citations.cited_lines(facts[name]) for name in given]
        assert len(stated) == len(held) and all(lines in held for lines in stated)


def test_the_committed_file_is_consistent():
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


@pytest.mark.skipif(
    not list(WHEELS.glob("*.whl")), reason="SGLang's wheels are not at hand: make citations"
)
def test_the_committed_file_is_derived_again(tmp_path):
    citations.main([str(WHEELS)], tmp_path / "source.json")
    assert (tmp_path / "source.json").read_bytes() == citations.SOURCE.read_bytes()
