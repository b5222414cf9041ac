"""The ledger: each kind of check with an error planted, what follows from it, and its page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
import synthetic
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wanreport import cli
from wanreport.baseline import FactError, Facts, load_facts
from wanreport.baseline.arithmetic import Quantity, evaluate
from wanreport.baseline.checks import CHECKS, HERE, load_judging
from wanreport.baseline.evidence import DERIVED, Evidence, EvidenceError, load_evidence
from wanreport.baseline.facts import Fact
from wanreport.baseline.identify import matches
from wanreport.baseline.judge import Verdict, compare
from wanreport.baseline.ledger import Ledger, differences, load_ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return load_evidence()


@pytest.fixture(scope="module")
def ledger(facts: Facts) -> Ledger:
    return load_ledger(facts)


def verdict(ledger: Ledger, name: str, check: str) -> Verdict:
    """The one verdict of a kind on a fact."""
    return next(v for v in ledger[name].verdicts if v.check == check)


def changed_ledger(ledger: Ledger, name: str, value: str) -> Ledger:
    """The ledger of the same facts but one."""
    return Ledger(ledger.facts.replace(name, value), ledger.evidence, ledger.judging)


# An error planted for each kind of check ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "value", "judged", "check", "before", "after"),
    [
        # a difference, a percentage, an average, the same quantity in two places
        ("s3.2.denoise.new", "800.0", "s3.2.denoise.delta", "arithmetic", "holds", "contradicts"),
        ("s3.2.total.percent", "11.3", "s3.2.total.percent", "arithmetic", "holds", "contradicts"),
        ("s3.2.step.old", "26.45", "s3.2.step.old", "arithmetic", "contradicts", "holds"),
        ("s3.3.early.new", "23.0", "s3.3.steady.new", "arithmetic", "holds", "contradicts"),
        ("s3.4.async.new", "2000", "s4.2.async", "arithmetic", "holds", "contradicts"),
        ("s3.2.total.new", "800.0", "s3.2.total.new", "arithmetic", "holds", "contradicts"),
        ("s3.2.jobs", "1417509 / 1417599", "s3.2.jobs", "arithmetic", "holds", "contradicts"),
        ("s0.date", "2026-02-16", "s0.date", "arithmetic", "contradicts", "holds"),
        # what follows from the model
        ("s2.params", "15", "s2.params", "architecture", "holds", "contradicts"),
        ("s5.1.layer_params", "360", "s5.1.layer_params", "architecture", "holds", "contradicts"),
        ("s5.1.layer_vram", "703", "s5.1.layer_vram", "architecture", "contradicts", "holds"),
        ("s6.1.new_each.g4", "54.8", "s6.1.new_each.g4", "architecture", "contradicts", "holds"),
        ("s6.1.old_each.g6", "9.6", "s6.1.old_each.g6", "architecture", "contradicts", "holds"),
        ("s6.1.ulysses.g4", "145", "s6.1.ulysses.g4", "architecture", "contradicts", "holds"),
        ("s6.1.gpus.g4", "3", "s6.1.gpus.g4", "architecture", "holds", "contradicts"),
        ("s6.2.three.vram", "3.5", "s6.2.three.vram", "architecture", "contradicts", "holds"),
        ("s9.3.b.vram", "2.8", "s9.3.b.vram", "architecture", "contradicts", "holds"),
        ("s4.1.large", "1276", "s4.1.large", "architecture", "holds", "contradicts"),
        ("s4.1.large", "1276", "s5.2.swap", "architecture", "holds", "contradicts"),
        ("s4.1.data", "100.8", "s4.1.data", "architecture", "contradicts", "holds"),
        ("s4.2.async", "2301", "s4.2.async", "architecture", "holds", "contradicts"),
        ("s4.2.async_data", "1522", "s4.2.async_data", "architecture", "contradicts", "holds"),
        ("s7.calls.pre", "158", "s7.calls.pre", "architecture", "contradicts", "holds"),
        ("s7.calls.post", "0", "s7.calls.post", "architecture", "contradicts", "holds"),
        ("s3.4.nccl.old", "17285", "s3.4.nccl.new", "architecture", "holds", "holds"),
        ("s3.4.nccl.new", "18284", "s3.4.nccl.new", "architecture", "holds", "contradicts"),
        ("s3.4.nccl.new", "8642", "s3.4.nccl.new", "architecture", "holds", "contradicts"),
        # which weights
        ("s4.1.typical", "702.8", "s4.1.typical_layers", "identification", "contradicts", "holds"),
        # the scheduler
        ("s2.flow_shift.old", "5.0", "s2.switch.old", "schedule", "holds", "contradicts"),
        ("s5.5.formula", "flow_shift * sigma", "s5.5.formula", "schedule", "holds", "contradicts"),
        ("s3.3.switch.step", "11", "s3.3.switch.step", "schedule", "holds", "contradicts"),
        # SGLang's registry and flags
        ("s2.config.old", "WanT2V720PConfig", "s2.config.old", "source", "holds", "contradicts"),
        ("s2.flow_shift.new", "8.0", "s2.flow_shift.new", "source", "holds", "contradicts"),
        ("s9.1.new4.flags", "--dit-layerwise-offload false", "s9.1.new4.config", "source",
         "holds", "contradicts"),
        ("s9.1.pure4.flags", "--dit-layerwise-offload false --dit-cpu-offload false",
         "s9.1.pure4.config", "source", "contradicts", "holds"),
        # the pull request
        ("s8.first.new", "9.0", "s8.first.speedup", "published", "holds", "contradicts"),
        ("s8.total.old", "148.0", "s8.total.old", "published", "holds", "contradicts"),
        ("s8.late.last", "27", "s8.late.last", "published", "holds", "contradicts"),
    ],
)  # fmt: skip
def test_a_changed_fact_changes_the_verdict(
    ledger: Ledger, changed: str, value: str, judged: str, check: str, before: str, after: str
) -> None:
    assert verdict(ledger, judged, check).outcome == before
    planted = changed_ledger(ledger, changed, value)
    assert verdict(planted, judged, check).outcome == after
    assert (planted[judged].verdicts != ledger[judged].verdicts) == (before != after)
    if planted[judged].summary != ledger[judged].summary:
        assert f"{judged}: committed" in "\n".join(differences(planted))


def citation(**changes: Any) -> dict[str, Any]:
    return {
        "fact": "s5.1.layer0", "cite": "layerwise_offload.py:212", "outcome": "holds",
        "fits": ["0.5.9"], "working": "The lines say so.", "moved": [],
        "quotes": [{"version": "0.5.9", "lines": "212", "text": "  if x <= 0:\n    return"}],
    } | changes  # fmt: skip


def with_source(evidence: Evidence, *citations: dict[str, Any]) -> Evidence:
    source = {"schema": 1, "releases": [], "files": [], "citations": list(citations)}
    return dataclasses.replace(evidence, source=source)


@pytest.mark.parametrize("outcome", ["holds", "contradicts", "unknown"])
def test_source_verdicts_are_taken_over(facts: Facts, evidence: Evidence, outcome: str) -> None:
    found = with_source(evidence, citation(outcome=outcome))
    entry = Ledger(facts, found, load_judging(facts, found))["s5.1.layer0"]
    assert entry.outcome == outcome
    words = entry.verdicts[0].working
    assert "layerwise_offload.py:212: The lines say so." in words
    assert "0.5.9, 212: if x <= 0: return" in words


def test_a_citation_of_no_fact_is_refused(facts: Facts, evidence: Evidence) -> None:
    found = with_source(evidence, citation(fact="s5.1.nothing"))
    with pytest.raises(FactError, match=r"source\.json: s5\.1\.nothing"):
        Ledger(facts, found, load_judging(facts, found))


def test_records_answer_what_they_can(facts: Facts, ledger: Ledger, tmp_path: Path) -> None:
    asked = ("s9.2.slower.expected", "s9.2.pure.expected", "s6.1.new_grows", "s9.1.flow_shift")
    for name in asked:
        assert verdict(ledger, name, "measured").outcome == "open"
    jobs = [job for job in synthetic.all_jobs("a14b") if job["job"]["name"] != "new-6gpu"]
    jobs.append(synthetic.record("new-6gpu", scale="a14b", steady_s=30.0))
    measured = load_ledger(facts, synthetic.load(jobs, tmp_path))
    assert verdict(measured, "s9.2.slower.expected", "measured").outcome == "holds"
    assert verdict(measured, "s9.2.pure.expected", "measured").outcome == "contradicts"
    assert verdict(measured, "s6.1.new_grows", "measured").outcome == "holds"
    words = verdict(measured, "s9.1.flow_shift", "measured").working
    assert "4x-nvidia-h100-pcie/new-4gpu-" in words
    assert measured["s7.sync.low"].outcome == "open"  # no check can tell yet
    assert {ledger.status(c) for c in ledger.judging.conclusions if c.needs == ["s6.1.new_grows"]
            } == {"open"}  # fmt: skip
    assert {measured.status(c) for c in ledger.judging.conclusions if c.needs == ["s6.1.new_grows"]
            } == {"stands"}  # fmt: skip


def test_a_rehearsal_answers_no_question_of_time(facts: Facts, tmp_path: Path) -> None:
    rehearsed = load_ledger(facts, synthetic.load(synthetic.all_jobs(), tmp_path))
    assert rehearsed["s9.1.flow_shift"].outcome == "holds"
    assert rehearsed["s9.2.slower.expected"].outcome == "open"


# Rounding -----------------------------------------------------------------------------------------

digits = st.decimals("0.1", "1000", places=6)
formulas = st.sampled_from(
    ["s1.a + s1.b", "s1.a - s1.b", "s1.a / s1.b", "s1.a * s1.b", "100 * (s1.a / s1.b - 1)",
     "(3 * s1.a + 5 * s1.b) / 8", "s1.a / 27", "1000000 * s1.a / s1.b"]
)  # fmt: skip


@given(digits, digits, formulas, *[st.integers(0, 3)] * 3)
def test_rounding_alone_never_contradicts(
    a: Decimal, b: Decimal, formula: str, places_a: int, places_b: int, places: int
) -> None:
    """Numbers that were exact before somebody printed them are never said to disagree."""

    def printed(value: Decimal, places: int) -> Decimal:
        return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)

    exact = {"s1.a": Quantity.exact(a), "s1.b": Quantity.exact(b)}
    rounded = {
        "s1.a": Quantity.rounded(printed(a, places_a)),
        "s1.b": Quantity.rounded(printed(b, places_b)),
    }
    if rounded["s1.b"].low <= 0:
        return  # printed as zero: no quotient is known
    stated = printed(evaluate(formula, exact.__getitem__).value, places)
    fact = Fact("s1.c", "1", "x", "derived", value=stated, unit="s")
    assert compare(fact, evaluate(formula, rounded.__getitem__)) in ("holds", "rounding")


def test_what_rounding_cannot_explain_contradicts() -> None:
    a, b = Quantity.rounded(Decimal("714.1")), Quantity.exact(27)
    for stated, outcome in (("26.44", "contradicts"), ("26.45", "holds"), ("26.4", "holds")):
        fact = Fact("s1.c", "1", "x", "derived", value=Decimal(stated), unit="s")
        assert compare(fact, a / b) == outcome


@pytest.mark.parametrize(
    ("bound", "computed", "outcome"),
    [("<", "1.9", "holds"), ("<", "2.04", "rounding"), ("<", "2.1", "contradicts"),
     (">", "2.1", "holds"), (">", "1.96", "rounding"), (">", "1.9", "contradicts")],
)  # fmt: skip
def test_a_bound_is_held_against_what_rounding_leaves_open(
    bound: str, computed: str, outcome: str
) -> None:
    fact = Fact("s1.c", "1", "x", "derived", value=Decimal(2), unit="%", bound=bound)
    value, half = Decimal(computed), Decimal("0.05")
    assert compare(fact, Quantity(value, value - half, value + half)) == outcome


# What follows from a contradicted number ----------------------------------------------------------


def test_what_follows_is_computed_again(ledger: Ledger) -> None:
    entry = ledger["s6.1.new_all.g4"]
    assert entry.outcome == "holds" and entry.falls
    assert entry.rests_on == ("s6.1.new_each.g4",)
    each = ledger["s6.1.new_each.g4"].other
    assert each and entry.other and entry.decided
    assert entry.other.value == 4 * each.value


def test_a_contradiction_that_changes_no_digit_does_no_harm(ledger: Ledger) -> None:
    assert ledger["s3.2.step.old"].falls and not ledger["s3.2.step.delta"].rests_on


def test_two_places_that_differ_leave_it_open_which_is_right(ledger: Ledger) -> None:
    for name in ("s4.1.data", "s4.1.mean"):
        assert ledger[name].other and not ledger[name].decided
    assert ledger["s4.1.mean"].rests_on == ("s4.1.data",)


def test_claims_rest_on_what_they_need(ledger: Ledger) -> None:
    assert "s4.3.peak.bytes" in ledger["s4.3.conclusion"].rests_on  # from the data file
    assert ledger["s7.alloc.mechanism"].rests_on == ("s7.calls.prefetch", "s7.calls.release")
    assert "s4.1.slow_share" in ledger["s4.1.diagnosis"].rests_on
    mended = changed_ledger(ledger, "s4.1.slow_share", "69")
    assert "s4.1.slow_share" not in mended["s4.1.diagnosis"].rests_on


def test_a_conclusion_follows_its_facts(ledger: Ledger) -> None:
    def status(judged: Ledger, fact: str) -> str:
        return next(judged.status(c) for c in judged.judging.conclusions if fact in c.needs)

    assert status(ledger, "s3.2.denoise.percent") == "stands"
    planted = changed_ledger(ledger, "s3.2.denoise.old", "700.0")
    assert status(planted, "s3.2.denoise.percent") == "falls"
    assert status(ledger, "s9.2.prefetch.gain_low") == "open"


# Identification -----------------------------------------------------------------------------------


def test_a_transfer_is_found_whatever_it_is(evidence: Evidence) -> None:
    def best(size: str, unit: str) -> tuple[str, str, bool]:
        found = matches(Quantity.rounded(Decimal(size)), unit, evidence.numbers, evidence.tensors)
        return found[0].what, found[0].unit, found[0].fits

    feed_forward = "DenseReluDense.wi_0.weight of the text encoder in fp32"
    assert best("167.8", "MB")[0].endswith(feed_forward) and best("167.8", "MB")[1:] == ("MB", True)
    assert best("670", "MB") == ("block in bf16 or fp16", "MiB", True)
    assert best("28.58", "GB") == ("expert in bf16 or fp16", "GB", True)
    assert best("175.7", "MB") == ("block in bf16 or fp16, 1 of 4 shards", "MB", True)
    assert not best("17.6", "GB")[2]


def test_the_traces_add_up_at_four_bytes_a_parameter(ledger: Ledger) -> None:
    """Why bytes contradict BF16 while counts hold: both traces at once, to the last digit."""
    visits = "s2.steps * wan.branches * (wan.blocks - 1)"
    for name, large in (
        ("s4.1.data", "3 * wan.expert.large.params + s4.2.data * 250000000"),
        ("s4.2.async_data", f"{visits} * wan.block.params + 2 * wan.text_encoder.large.params"),
    ):
        at_four_bytes = ledger.compute(f"4 * ({large}) / 1000000000")
        assert compare(ledger.facts[name], at_four_bytes) == "holds"
        assert ledger[name].outcome == "contradicts" and not ledger[name].decided
        words = verdict(ledger, name, "architecture").working
        assert f"they are {ledger.facts.text(name)}, as printed" in words


@pytest.mark.parametrize("name", ["s5.1.events", "s8.total.old", "s2.cause.no_detector"])
def test_no_verdict_turns_on_a_reading(ledger: Ledger, name: str) -> None:
    """What holds in one reading of the words is not contradicted."""
    assert ledger[name].outcome == "holds"


def test_what_is_right_instead_is_said_only_where_it_is_wrong(ledger: Ledger) -> None:
    assert verdict(ledger, "s4.1.typical_layers", "identification").instead
    mended = changed_ledger(ledger, "s4.1.typical", "702.8")
    assert not verdict(mended, "s4.1.typical_layers", "identification").instead


def test_the_units_are_told_apart(ledger: Ledger) -> None:
    assert ledger.binary("s5.1.layer_vram") == "670\u00a0MiB = 703\u00a0MB"
    assert ledger.binary("s3.2.peak.new") == "22.88\u00a0GiB = 24.57\u00a0GB"
    assert ledger.binary("s3.2.denoise.new") == ""


# The data that facts are held against -------------------------------------------------------------


def test_the_committed_verdicts_are_those_computed(ledger: Ledger) -> None:
    assert differences(ledger) == []


def test_every_fact_has_an_entry_with_a_reason(facts: Facts, ledger: Ledger) -> None:
    assert list(ledger) == list(facts)
    assert {fact.part for fact in facts.values()} == set(facts.parts)
    assert all(v.working for entry in ledger.values() for v in entry.verdicts)
    assert {v.check for entry in ledger.values() for v in entry.verdicts} == {*CHECKS, ""}


def test_no_number_is_typed_into_what_is_said() -> None:
    texts = [
        entry.get(key, "")
        for file in ("checks.yaml", "conclusions.yaml")
        for content in [yaml.safe_load((HERE / file).read_text(encoding="utf-8"))]
        for entry in (content["checks"] + content["measured"] if "checks" in content else content)
        for key in ("name", "says", "why", "instead", "but", "needs")
        if isinstance(entry.get(key, ""), str)
    ]
    names = r"§\d+(\.\d+)?|SGLang \d[\d.]*|\w+\.py:\d+|fp32|BF16|PCIe \d\.0|N - 1|1/N"
    # What PCIe 5.0 is, stands in no document of ours.
    link = "32 GT/s a lane with 130 bits for 128; 16 lanes"
    for text in texts:
        prose = re.sub(names, "", re.sub(r"\{[^{}]*\}", "", text.replace(link, "")))
        assert not re.search(r"\d", prose), text


def planted(folder: Path, file: str, change: Callable[[str], str]) -> Path:
    """A copy of the package's data with one file changed."""
    for name in ("checks.yaml", "conclusions.yaml"):
        shutil.copy(HERE / name, folder)
    path = folder / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{fact: s9.9.nothing, check: arithmetic, how: s2.steps}", "s9.9.nothing: there is no"),
        ("{fact: s2.steps, check: guess, how: s2.steps}", "check must be one of"),
        ("{fact: s2.steps, check: arithmetic}", "exactly one of"),
        ("{fact: s2.steps, check: arithmetic, how: s2.steps, holds: 1 < 2}", "exactly one of"),
        ("{fact: s2.steps, check: arithmetic, how: s2.stepz}", "checks.yaml: s2.steps: s2.stepz"),
        ("{fact: s2.steps, check: arithmetic, how: wan.weight}", "wan.weight: there is no"),
        ("{fact: s2.steps, check: arithmetic, how: s2.steps, why: '{s2.x}'}", "s2.x: there is no"),
        ("{fact: s2.steps, check: arithmetic, how: s2.steps, because: x}", "because"),
    ],
)
def test_a_bad_check_is_named(
    tmp_path: Path, facts: Facts, evidence: Evidence, line: str, message: str
) -> None:
    folder = planted(
        tmp_path, "checks.yaml", lambda t: t.replace("checks:\n", f"checks:\n- {line}\n", 1)
    )
    with pytest.raises(FactError, match=re.escape(message)) as error:
        load_judging(facts, evidence, folder)
    assert "checks.yaml" in str(error.value)


def test_a_bad_conclusion_is_named(tmp_path: Path, facts: Facts, evidence: Evidence) -> None:
    folder = planted(
        tmp_path, "conclusions.yaml", lambda t: t.replace("needs: [", "needs: [s0.x, ", 1)
    )
    with pytest.raises(FactError, match=r"conclusions\.yaml: .*s0\.x: there is no"):
        load_judging(facts, evidence, folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("source.json", None, r"source\.json: No such file.*make citations"),
        ("architecture.json", "{", r"architecture\.json: no valid JSON.*make derive"),
        ("schedule.json", '{"schema": 2}', r"schedule\.json: not of schema 1.*make derive"),
        ("schedule.json", '{"schema": 1}', r"schedule\.json: lacks steps"),
    ],
)
def test_missing_or_damaged_evidence_says_what_writes_it(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    for path in DERIVED.glob("*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "source.json").write_text(json.dumps(with_source_file()))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(EvidenceError, match=message):
        load_evidence(tmp_path)


def with_source_file() -> dict[str, Any]:
    return {"schema": 1, "releases": [], "files": [], "citations": [citation()]}


def test_a_schedule_that_was_not_derived_says_so(ledger: Ledger) -> None:
    with pytest.raises(FactError, match=r"s2\.switch\.old: no schedule.*make derive"):
        changed_ledger(ledger, "s2.flow_shift.old", "4.0")


# The command line ---------------------------------------------------------------------------------


@pytest.fixture
def committed(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed verdicts, as a copy that may be changed; no records."""
    monkeypatch.setattr(cli, "DERIVED", project)
    return Path(shutil.copy(DERIVED / "verdicts.json", project))


def test_check_prints_the_ledger(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["baseline", "check"]) == 0
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if re.match(r". s\d", line)]) == 429
    assert re.search(r"^✗ s3\.2\.step\.old +26\.44.s +26\.45.s$", out, re.MULTILINE)
    assert err == ""


def test_check_fails_where_a_verdict_differs(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(committed.read_text(encoding="utf-8"))
    content["verdicts"]["s3.2.step.old"] = "holds"
    content["verdicts"]["s3.2.gone"] = "holds"
    committed.write_text(json.dumps(content))
    assert cli.main(["baseline", "check"]) == 1
    err = capsys.readouterr().err
    assert "s3.2.step.old: committed 'holds', computed 'contradicts'" in err
    assert "s3.2.gone: committed 'holds', computed None" in err
    assert "2 verdicts differ" in err and "--accept" in err
    assert cli.main(["baseline", "check", "--accept"]) == 0
    assert committed.read_bytes() == (DERIVED / "verdicts.json").read_bytes()
    assert cli.main(["baseline", "check"]) == 0


def test_missing_verdicts_are_named(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed.unlink()
    assert cli.main(["baseline", "check"]) == 1
    assert "baseline check --accept" in capsys.readouterr().err
