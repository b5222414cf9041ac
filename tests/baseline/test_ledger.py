"""The ledger: each kind of check with an error planted, what follows from it, and what runs say."""

import json
import re

import pytest
import synthetic

from wanreport import cli
from wanreport.baseline.facts import CHECKS, KINDS, FactError, Facts, Outcome, compare, load_checks
from wanreport.baseline.ledger import Ledger, load_ledger

HOLDS, ROUNDING, FALSE = Outcome.HOLDS, Outcome.ROUNDING, Outcome.FALSE


def verdict(ledger, name, check):
    """The first verdict of a kind on a fact."""
    return next(v for v in ledger[name].verdicts if v.check == check)


def changed_ledger(ledger, name, value):
    """The ledger of the same facts but one."""
    fact = ledger.facts[name]
    new = fact.model_copy(update={"value": type(fact.value)(value)})
    return Ledger(Facts(ledger.facts | {name: new}), ledger.evidence, ledger.answers)


@pytest.mark.parametrize(("changed", "value", "judged", "check", "before", "after"), [
    # a difference, a percentage, an average, the same quantity in two places
    ("s3.2.denoise.new", "800.0", "s3.2.denoise.delta", "arithmetic", HOLDS, FALSE),
    ("s3.2.step.old", "26.42", "s3.2.step.old", "arithmetic", ROUNDING, FALSE),
    ("s3.4.async.new", "2000", "s4.2.async", "arithmetic", HOLDS, FALSE),
    ("s3.2.jobs", "1417509 / 1417599", "s3.2.jobs", "arithmetic", HOLDS, FALSE),
    ("s0.date", "2026-02-16", "s0.date", "arithmetic", FALSE, HOLDS),
    # what follows from the model
    ("s2.params", "15", "s2.params", "architecture", HOLDS, FALSE),
    ("s6.1.new_each.g4", "54.8", "s6.1.new_each.g4", "architecture", FALSE, HOLDS),
    ("s6.1.gpus.g4", "3", "s6.1.gpus.g4", "architecture", HOLDS, FALSE),
    ("s9.3.b.vram", "5.6", "s9.3.b.vram", "architecture", FALSE, HOLDS),
    ("s4.1.large", "1276", "s5.2.swap", "architecture", HOLDS, FALSE),
    ("s3.4.nccl.new", "18284", "s3.4.nccl.new", "architecture", HOLDS, FALSE),
    # a datasheet, the scheduler
    ("s1.memory_type", "HBM2e", "s1.memory_type", "datasheet", FALSE, HOLDS),
    ("s2.flow_shift.old", "5.0", "s2.switch.old", "schedule", HOLDS, FALSE),
    ("s5.5.formula", "flow_shift * sigma", "s5.5.formula", "schedule", HOLDS, FALSE),
    ("s3.3.switch.step", "11", "s3.3.switch.step", "schedule", HOLDS, FALSE),
    # SGLang's registry and flags, the pull request
    ("s2.config.old", "WanT2V720PConfig", "s2.config.old", "source", HOLDS, FALSE),
    ("s2.flow_shift.new", "8.0", "s2.flow_shift.new", "source", HOLDS, FALSE),
    ("s9.1.new4.flags", "--dit-layerwise-offload false", "s9.1.new4.config", "source",
     HOLDS, FALSE),
    ("s9.1.pure4.flags", "--dit-layerwise-offload false --dit-cpu-offload false",
     "s9.1.pure4.config", "source", FALSE, HOLDS),
    ("s8.first.new", "9.0", "s8.first.speedup", "published", HOLDS, FALSE),
])  # fmt: skip
def test_a_changed_fact_changes_the_verdict(ledger, changed, value, judged, check, before, after):
    assert verdict(ledger, judged, check).outcome == before
    planted = changed_ledger(ledger, changed, value)
    assert verdict(planted, judged, check).outcome == after


def test_what_is_not_measured_is_computed_from_the_runs(ledger, measured):
    """Compilation, both prefetch sizes and stream have records, of another setup than asked for."""
    assert {name for name in measured if measured[name].outcome == Outcome.OPEN} == {
        "s6.2.five.effect", "s6.2.ratio.effect"
    }  # fmt: skip
    for name in ("s7.compile.low", "s7.late.low", "s7.contention.low", "s9.2.prefetch.gain_low"):
        assert verdict(ledger, name, "measured").outcome == Outcome.OPEN
        seen = [v for v in measured[name].verdicts if v.check == "measured"]
        assert all(v.runs and v.outcome == Outcome.ELSEWHERE for v in seen)


def test_corrections_agree_with_our_own_runs(measured):
    runs = synthetic.committed().runs
    runs = runs[(runs.engine == "layerwise") & (runs.gpus == 1) & ~runs.compiled & runs.latest]
    runs = runs[(runs.source == "job") & (runs.job != "480p-1gpu-layerwise-whole")]
    peaks = runs.groupby(["machine", "prefetch"]).allocated_bytes.max().unstack()
    deeper, more = (measured[name].other.value for name in ("s9.3.b.vram", "s6.2.three.vram"))
    assert ((peaks[3] - peaks[1]) / 1e9).tolist() == pytest.approx([deeper] * 2, rel=1e-3)
    block = measured.evidence["architecture"]["numbers"]["wan.block.bytes"] / 1e9
    assert more - deeper == pytest.approx(block)


def test_records_answer_what_they_can(ledger, tmp_path):
    jobs = [job for job in synthetic.all_jobs("a14b") if job["job"]["name"] != "new-6gpu"]
    jobs.append(synthetic.record("new-6gpu", scale="a14b", steady_s=30.0))
    made = load_ledger(frames=synthetic.load(jobs, tmp_path))
    rehearsed = load_ledger(frames=synthetic.load(synthetic.all_jobs(), tmp_path / "rehearsed"))
    assert rehearsed.summaries() == ledger.summaries()
    for name, outcome in {"s9.2.slower.expected": HOLDS, "s9.2.pure.expected": FALSE,
                          "s6.1.new_grows": HOLDS, "s9.1.flow_shift": HOLDS}.items():  # fmt: skip
        assert verdict(ledger, name, "measured").outcome == Outcome.OPEN
        assert outcome in {v.outcome for v in made[name].verdicts if v.check == "measured"}
    runs = verdict(made, "s9.1.flow_shift", "measured").runs
    assert any("4x-nvidia-h100-pcie/new-4gpu-" in run for run in runs)


def test_a_conclusion_falls_with_a_fact_that_it_needs(measured, ledger):
    def fallen(judged):
        return {one["name"] for one in judged.evidence["conclusions"] for name in one["needs"]
                if judged[name].outcome in (FALSE, Outcome.FALLS)}  # fmt: skip

    planted = changed_ledger(ledger, "s3.2.denoise.old", "700.0")
    assert len(fallen(ledger)) == 8 and "Sync stalls cost most" in fallen(ledger)
    assert fallen(planted) - fallen(ledger) == {"The new offload is slower"}
    asked = {one["name"]: one.get("by", []) for one in ledger.evidence["conclusions"]}
    assert len(measured.seen(asked["The new offload is slower"]))
    assert ledger.seen(sum(asked.values(), [])).empty


def test_runs_in_the_setup_asked_for_decide_alone(measured):
    """One GPU's +1 % and two GPUs' +7 % say nothing more once four GPUs have answered."""
    for name in ("s9.2.slower.expected", "s9.2.switch.expected"):
        assert {v.outcome for v in measured[name].verdicts} == {Outcome.HOLDS}
        assert {run.split("/")[1][:2] for v in measured[name].verdicts if v.working[:2] != "18"
                for run in v.runs} == {"4x"}  # fmt: skip
    assert measured["s10.two_gpus"].outcome == Outcome.ELSEWHERE


def test_what_follows_is_computed_again(ledger):
    entry, each = ledger["s6.1.new_all.g4"], ledger["s6.1.new_each.g4"].other
    assert (entry.outcome, entry.rests_on) == (Outcome.FALLS, ["s6.1.new_each.g4"])
    assert each and entry.other and entry.decided
    assert entry.other.value == 4 * each.value
    # two places that differ leave it open which is right
    for name in ("s4.1.data", "s4.1.mean"):
        assert ledger[name].other and not ledger[name].decided
    assert ledger["s4.1.mean"].rests_on == ["s4.1.data"]
    assert ledger["s7.alloc.mechanism"].rests_on == ["s7.calls.prefetch", "s7.calls.release"]
    assert "s4.1.slow_share" in ledger["s4.1.diagnosis"].rests_on
    fixed = changed_ledger(ledger, "s4.1.slow_share", "69")
    assert "s4.1.slow_share" not in fixed["s4.1.diagnosis"].rests_on


def test_the_traces_add_up_at_four_bytes_a_parameter(ledger):
    """Why bytes contradict BF16 while counts hold: both traces at once, to the last digit."""
    visits = "s2.steps * wan.branches * (wan.blocks - 1)"
    for name, large in (
        ("s4.1.data", "3 * wan.expert.large.params + s4.2.data * 250000000"),
        ("s4.2.async_data", f"{visits} * wan.block.params + 2 * wan.text_encoder.large.params"),
    ):
        at_four_bytes = ledger.compute(f"4 * ({large}) / 1000000000")
        assert compare(ledger.facts[name].number, at_four_bytes) == HOLDS
        assert ledger[name].outcome == FALSE and not ledger[name].decided


def test_the_committed_verdicts_are_those_computed(measured):
    assert measured.differences() == []
    assert changed_ledger(measured, "s3.2.step.old", "26.42").differences()


def test_every_fact_is_judged_or_has_the_reason_why_nothing_can(ledger):
    for name, entry in ledger.items():
        reasons = [v for v in entry.verdicts if not v.check]
        assert entry.verdicts and all(v.working for v in entry.verdicts), name
        assert len(reasons) == (0 if any(v.check for v in entry.verdicts) else 1), name
    assert {v.check for entry in ledger.values() for v in entry.verdicts} == {*KINDS, ""}
    todo = {by: check.why for check in ledger.evidence["checks"] for by in check.by or []}
    commands = {by: why.split()[0] for by, why in todo.items() if why}
    assert set(commands.values()) == {"wanreport", "python", "for"}
    assert {f"question-{number}" for number in range(1, 7)} <= set(commands)


@pytest.mark.parametrize(("line", "message"), [
    ("{fact: s9.9.nothing, check: arithmetic, how: s2.steps}", "s9.9.nothing"),
    ("{fact: s2.steps, check: guess, how: s2.steps}", "check"),
    ("{fact: s2.steps, check: arithmetic}", "s2.steps"),
    ("{fact: s2.steps, check: arithmetic, how: s2.steps, holds: 1 < 2}", "s2.steps"),
    ("{fact: s2.steps, check: arithmetic, how: s2.stepz}", "s2.stepz"),
    ("{fact: s2.steps, check: arithmetic, how: wan.weight}", "wan.weight"),
    ("{fact: s2.steps, check: arithmetic, repeats: s2.x}", "s2.x"),
    ("{fact: s2.steps, check: arithmetic, how: s2.steps, why: '{s2.x}'}", "s2.x"),
    ("{fact: s2.steps, check: arithmetic, holds: 1 < 2, instead: '{s2.x}'}", "s2.x"),
    ("{fact: s2.steps, check: arithmetic, how: s2.steps, because: x}", "because"),
])  # fmt: skip
def test_a_bad_check_is_named(tmp_path, ledger, line, message):
    path = tmp_path / "checks.yaml"
    text = CHECKS.read_text(encoding="utf-8")
    path.write_text(text.replace("\nchecks:\n", f"\nchecks:\n- {line}\n", 1))
    with pytest.raises(FactError, match=re.escape(message)):
        Ledger(ledger.facts, ledger.evidence | load_checks(path), ledger.answers)


def test_check_prints_the_ledger_and_what_differs(project, monkeypatch, capsys):
    monkeypatch.setattr(cli, "DERIVED", project)
    committed = project / "verdicts.json"
    assert cli.main(["baseline", "check", "--accept"]) == 0  # without any record
    capsys.readouterr()
    assert cli.main(["baseline", "check"]) == 0
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if re.match(r". s\d", line)]) == 429
    assert re.search(r"^✗ s6\.1\.new_each\.g4 +17\.6.GB +54\.8.GB$", out, re.MULTILINE)
    assert err == ""
    content = json.loads(committed.read_bytes())
    content["verdicts"] |= {"s3.2.step.old": "holds", "s3.2.gone": "holds"}
    committed.write_text(json.dumps(content))
    assert cli.main(["baseline", "check"]) == 1
    err = capsys.readouterr().err
    assert "s3.2.step.old" in err and "s3.2.gone" in err and "--accept" in err
