"""The baseline's open checks (sections 9.2 and 6.1) and further ones, answered from records.

A check is a function from records to a :class:`Verdict`. "pass" means that the records agree with
what the baseline expected, "fail" that they contradict it, "not measured" that no record at hand
can tell. Checks of time, memory or overlap look only at full-scale GPU records; the others accept
any scale. A difference of times is claimed only where the 95 % intervals of the medians are apart
by more than two runs of one job may be (:func:`between_runs`).

What the baseline expected is looked up in its facts, never typed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from . import lanes
from .answers import (
    Record,
    clean_budget,
    counters_agree,
    counters_derived,
    difference,
    engine_name,
    file_name,
    get,
    gpu_state,
    is_full_scale,
    iterations,
    latents,
    peak_memory,
    prefetch,
    ranks,
    repeats,
    steady_seconds,
    step_seconds,
    switch_step,
)
from .tables import (
    Cell,
    Column,
    Estimate,
    counted,
    gigabytes,
    html_table,
    overhead,
    seconds,
    signed,
)

if TYPE_CHECKING:
    from .baseline import Facts

Status = Literal["pass", "fail", "not measured"]
NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new engine, and the two readings of what it calls the old one."""

MORE = "More clean iterations."

MARKS: dict[Status, str] = {"pass": "✓ pass", "fail": "✗ fail", "not measured": "– not measured"}


@dataclass(frozen=True)
class Verdict:
    """The answer to one check.

    `evidence` says in plain text what was seen, with absolute numbers; `records` names the files
    that it rests on; `next_step` says how to get an answer, or a better one.
    """

    check: str
    question: str
    status: Status
    evidence: str
    records: tuple[str, ...] = ()
    expected: str = ""
    next_step: str = ""
    machine: str = ""


# The baseline's own numbers ----------------------------------------------------------------------


@cache
def baseline_facts() -> Facts:
    """Return the facts of the baseline document."""
    from .baseline import load_facts

    return load_facts()


def quoted(name: str) -> Cell:
    """Return a fact of the baseline as printed, for a table; its tooltip says where it stands."""
    facts = baseline_facts()
    return Cell(name, text=facts.text(name), kind="quoted", title=facts.origin(name))


def fact(name: str) -> float:
    """Return a number of the baseline."""
    return baseline_facts().number(name)


def _expected(name: str) -> str:
    return baseline_facts().text(f"s9.2.{name}.expected")


# Choosing records --------------------------------------------------------------------------------


def workload(record: Record) -> tuple[object, ...]:
    """Return everything that must be equal before two records may be compared, but the engine.

    Machine class, ranks and software version are not in it.
    """
    keys = ("scale", "num_inference_steps", "sampled_steps", "cfg", "dtype", "compile", "seed",
            "checkpoint", "prompt", "negative_prompt", "guidance_scale",
            "guidance_scale_2")  # fmt: skip
    model_keys = ("height", "width", "num_frames", "num_layers", "flow_shift", "boundary_ratio",
                  "weights")  # fmt: skip
    return (
        *(get(record, "job", key) for key in keys),
        *(get(record, "model", key) for key in model_keys),
    )


def comparable(one: Record, two: Record) -> bool:
    """Say whether times of two records may be compared: one machine, software and workload."""
    return _alike(one) == _alike(two)


def _alike(record: Record) -> tuple[object, ...]:
    slug, torch = get(record, "machine", "slug"), get(record, "software", "torch")
    return slug, torch, *workload(record)


def is_baseline_workload(record: Record) -> bool:
    """Say whether the record is of the video, steps and flow shift that the baseline asks for."""
    return (
        get(record, "model", "height") == fact("s2.height")
        and get(record, "model", "width") == fact("s2.width")
        and get(record, "model", "num_frames") == fact("s2.frames")
        and get(record, "job", "num_inference_steps") == fact("s2.steps")
        and get(record, "model", "flow_shift") == fact("s2.flow_shift.new")
        and bool(get(record, "job", "cfg"))
    )


def choose(
    records: Sequence[Record],
    engine: str,
    *,
    gpus: int | None = None,
    ahead: int | None = None,
    timed: bool = True,
) -> Record | None:
    """Return the latest finished record of an engine, or None.

    `timed` asks for a full-scale GPU record of the baseline's workload; `ahead` is the number of
    prefetched layers, by default the baseline's own where the engine prefetches.
    """
    if engine == NEW and ahead is None:
        ahead = int(fact("s9.2.prefetch.base"))
    fit = [
        record
        for record in records
        if record.get("status") == "ok"
        and engine_name(record) == engine
        and gpus in (None, ranks(record))
        and ahead in (None, prefetch(record))
        and (not timed or (is_full_scale(record) and is_baseline_workload(record)))
        and iterations(record)
    ]
    return max(fit, key=lambda r: (str(r.get("started_at")), file_name(r)), default=None)


def comparable_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Return the finished records in groups that are comparable with each other."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.get("status") == "ok" and iterations(record):
            groups[tuple(map(str, _alike(record)))].append(record)
    return [groups[key] for key in sorted(groups)]


def _stand_ins(records: Sequence[Record]) -> list[Record]:
    """Return the records of the baseline's own cluster jobs."""
    return [record for record in records if get(record, "job", "baseline_job") is not None]


def _how_many(records: Sequence[Record]) -> str:
    """Return how many records there are, with their scales: "3 records (tiny)"."""
    scales = ", ".join(sorted({str(get(record, "job", "scale")) for record in records}))
    return f"{counted(len(records), 'record')} ({scales})"


def _names(*records: Record) -> tuple[str, ...]:
    return tuple(file_name(record) for record in records)


def _run(*names: str) -> str:
    jobs = ", ".join(f"params/baseline/{name}.yaml" for name in names)
    return f"Run {jobs} on a machine with enough GPUs (wanreport run, or slurm/)."


# The checks of section 9.2 -----------------------------------------------------------------------


def flow_shift_is_loaded(records: Sequence[Record]) -> Verdict:
    """Was the flow shift of A14B loaded, and not the 480p one? Any scale."""
    verdict = Verdict(
        "shift",
        f"Is flow shift {baseline_facts().text('s9.1.flow_shift')} loaded?",
        "not measured",
        "No record stands for one of the baseline's jobs and got as far as its model settings.",
        expected=_expected("shift"),
        next_step="Run any job of params/baseline/.",
    )
    known = [r for r in _stand_ins(records) if get(r, "model", "flow_shift") is not None]
    if not known:
        return verdict
    wrong = [r for r in known if get(r, "model", "flow_shift") != fact("s9.1.flow_shift")]
    shifts = sorted({get(r, "model", "flow_shift") for r in known})
    configs = sorted({str(get(r, "model", "config")) for r in known})
    how = sorted({str(get(r, "model", "how")) for r in known})
    return replace(
        verdict,
        status="fail" if wrong else "pass",
        evidence=f"Flow shift {', '.join(map(str, shifts))} in {_how_many(known)}; "
        f"configuration {', '.join(configs)} ({', '.join(how)} match).",
        records=_names(*(wrong or known)),
        next_step="Give the model path that ends with the hub's name." if wrong else "",
    )


def switch_is_scheduled(records: Sequence[Record]) -> Verdict:
    """Does the low-noise expert take over at the expected step index? Any scale."""
    facts = baseline_facts()
    verdict = Verdict(
        "switch",
        f"Does the schedule switch at step index {facts.text('s2.switch.new')} "
        f"({facts.text('s2.tqdm.new')} on the progress bar)?",
        "not measured",
        "No record of one of the baseline's jobs has a schedule.",
        expected=f"Step index {facts.text('s2.switch.new')}.",
        next_step="Run any job of params/baseline/.",
    )
    known = [r for r in _stand_ins(records) if iterations(r)]
    if not known:
        return verdict
    # What the schedule says, and which expert each step of each iteration really used.
    seen = {r_id: _switches(record) for r_id, record in enumerate(known)}
    wrong = [known[i] for i, found in seen.items() if found != {int(fact("s2.switch.new"))}]
    every = sorted({str(at) for found in seen.values() for at in found})
    return replace(
        verdict,
        status="fail" if wrong else "pass",
        evidence=f"Switch at index {', '.join(every)} by schedule and by the experts that ran, in "
        f"{_how_many(known)}.",
        records=_names(*(wrong or known)),
        next_step="Look at the flow shift of these records." if wrong else "",
    )


def _switches(record: Record) -> set[int | None]:
    found = {switch_step(record)}
    for iteration in iterations(record):
        low = [s["index"] for s in iteration["steps"] if s.get("expert") == "low_noise"]
        found.add(min(low) if low else None)
    return found


def old_engine_spikes(old: str) -> Callable[[Sequence[Record]], Verdict]:
    """Return the check whether the old engine's longest step is the switch. Full scale only."""

    def check(records: Sequence[Record]) -> Verdict:
        facts = baseline_facts()
        gpus = int(fact("s9.1.old4.gpus"))
        verdict = Verdict(
            f"spike-{old}",
            f"Is the old engine's spike ({old}) at the switch, {facts.text('s2.tqdm.new')} on the "
            "progress bar?",
            "not measured",
            f"There is no full-scale GPU record of {old} on {gpus} GPUs.",
            expected=_expected("switch"),
            next_step=_run(f"old-4gpu-{old}"),
        )
        record = choose(records, old, gpus=gpus)
        at = switch_step(record) if record else None
        if record is None or at is None:
            return verdict
        clean = iterations(record, "clean")
        if not clean:
            return verdict
        times = step_seconds(clean[0])
        rest = list(steady_seconds(record, clean[0]).values())
        spike = times[at] > max(rest)
        return replace(
            verdict,
            status="pass" if spike and at == fact("s2.switch.new") else "fail",
            evidence=f"Step index {at} takes {seconds(times[at])}; the {len(rest)} steps that are "
            f"neither first nor switch take {seconds(min(rest))} to {seconds(max(rest))}.",
            records=_names(record),
            next_step="",
        )

    return check


def new_engine_is_slower(old: str) -> Callable[[Sequence[Record]], Verdict]:
    """Return the check whether layerwise is slower than an old engine. Full scale only."""

    def check(records: Sequence[Record]) -> Verdict:
        gpus = int(fact("s9.1.new4.gpus"))
        verdict = Verdict(
            f"slower-{old}",
            f"Is the new offload still slower than the old one ({old}) on {gpus} GPUs?",
            "not measured",
            "It needs full-scale GPU records of both engines, on one machine class.",
            expected=_expected("slower"),
            next_step=_run("new-4gpu", f"old-4gpu-{old}"),
        )
        one, two = choose(records, NEW, gpus=gpus), choose(records, old, gpus=gpus)
        if one is None or two is None or not comparable(one, two):
            return verdict
        if not (iterations(one, "clean") and iterations(two, "clean")):
            return verdict
        new, other = clean_budget(one), clean_budget(two)
        order = steps_apart(one, two)
        gap = difference(new.denoise, other.denoise)
        claim = {
            1: "The new one's steps are slower.",
            -1: "The new one's steps are faster.",
            0: f"They are not told apart. {runs_differ(one, two)}",
        }[order]
        return replace(
            verdict,
            status=_status(order),
            evidence=f"All steps: new {seconds(new.denoise)}, {old} {seconds(other.denoise)} "
            f"({signed(new.denoise, other.denoise, 's')}, {overhead(gap)}). Other "
            f"steps: new {new.steady.text('s')}; {old} {other.steady.text('s')}. {claim}",
            records=_names(one, two),
            next_step=_more(one, two) if order == 0 else "",
        )

    return check


def gap_grows_with_gpus(old: str) -> Callable[[Sequence[Record]], Verdict]:
    """Return the check whether layerwise loses more to an old engine on more GPUs. Full scale only.

    The gap is the ratio of the medians of steady steps; it differs where the ranges that their
    95 % intervals leave open are apart by more than the runs may be.
    """

    def check(records: Sequence[Record]) -> Verdict:
        few, many = int(fact("s9.1.new4.gpus")), int(fact("s9.1.new6.gpus"))
        verdict = Verdict(
            f"scaling-{old}",
            f"Does the new offload lose more to the old one ({old}) on {many} GPUs than on {few}?",
            "not measured",
            "It needs full-scale GPU records of both engines on both numbers of GPUs.",
            expected=baseline_facts().statement("s6.1.new_grows"),
            next_step=_run("new-4gpu", "new-6gpu", f"old-4gpu-{old}", f"old-6gpu-{old}"),
        )
        used = [choose(records, engine, gpus=n) for n in (few, many) for engine in (NEW, old)]
        found = [record for record in used if record and iterations(record, "clean")]
        if len(found) < len(used) or not all(comparable(found[0], record) for record in found):
            return verdict
        steps = [clean_budget(record).steady for record in found]
        gaps = [ratio_of(new, other) for new, other in (steps[:2], steps[2:])]
        allowed = sum(between_runs(*pair, either_way=True) for pair in (found[:2], found[2:]))
        order = apart(gaps[1], gaps[0], allowed)
        return replace(
            verdict,
            status=_status(order),
            evidence=f"On {few} GPUs new {steps[0].text('s')}, {old} {steps[1].text('s')}; "
            f"on {many} new {steps[2].text('s')}, {old} {steps[3].text('s')}. "
            f"{claimed_from(allowed)} of the two gaps.",
            records=_names(*found),
            next_step=MORE if order == 0 else "",
        )

    return check


def ratio_of(one: Estimate, two: Estimate) -> Estimate:
    """Return the ratio of two medians, with the range that both intervals leave open."""
    if one.median is None or two.median is None:
        return Estimate(0, None)
    low = one.low / two.high if one.low and two.high else None
    high = one.high / two.low if one.high and two.low else None
    return Estimate(min(one.n, two.n), one.median / two.median, low, high)


def resident_runs_out_of_memory(records: Sequence[Record]) -> Verdict:
    """Does the model fit without offload? Full scale only."""
    gpus = int(fact("s9.2.pure.gpus"))
    verdict = Verdict(
        "pure",
        f"Without offload, does the job run out of memory on {gpus} GPUs?",
        "not measured",
        "There is no full-scale GPU record of the resident engine that ran or ran out of memory.",
        expected=_expected("pure"),
        next_step=_run("pure-4gpu"),
    )
    ended = [
        r
        for r in records
        if is_full_scale(r)
        and engine_name(r) == "resident"
        and ranks(r) == gpus
        and _asks_for_the_baselines_video(r)
        and (r.get("status") == "ok" or _is_device_oom(r))
    ]
    if not ended:
        return verdict
    record = max(ended, key=lambda r: (str(r.get("started_at")), file_name(r)))
    room = get(record, "machine", "gpu_memory_bytes")
    size = f" A GPU has {gigabytes(room)}." if room else ""
    if record["status"] == "oom":
        evidence = f"Out of memory: {record.get('reason')}"
    else:
        peak = peak_memory(record)["allocated_bytes"]
        evidence = "It ran to its end." + (f" Peak allocated {gigabytes(peak)}." if peak else "")
    return replace(
        verdict,
        status="pass" if record["status"] == "oom" else "fail",
        evidence=evidence + size,
        records=_names(record),
        next_step="",
    )


def _asks_for_the_baselines_video(record: Record) -> bool:
    """Say so by the job alone: a job that ran out of memory may have no model yet."""
    wanted = {"height": "s2.height", "width": "s2.width", "num_frames": "s2.frames"}
    return all(get(record, "job", key) == fact(name) for key, name in wanted.items())


def _is_device_oom(record: Record) -> bool:
    """Say whether the GPU's memory ran out, and not the host's."""
    reason = str(record.get("reason"))
    return record.get("status") == "oom" and ("CUDA" in reason or "OutOfMemoryError" in reason)


def prefetch_helps(records: Sequence[Record]) -> Verdict:
    """Does a deeper prefetch shorten the steps? Full scale only."""
    deep, base = int(fact("s6.2.three.size")), int(fact("s9.2.prefetch.base"))
    gpus = int(fact("s9.1.prefetch3.gpus"))
    verdict = Verdict(
        "prefetch",
        f"Does prefetching {deep} layers make steps shorter than {base}?",
        "not measured",
        f"It needs full-scale GPU records of layerwise with {deep} and with {base} on {gpus} GPUs.",
        expected=_expected("prefetch"),
        next_step=_run("new-4gpu", "new-4gpu-prefetch3"),
    )
    one = choose(records, NEW, gpus=gpus, ahead=deep)
    two = choose(records, NEW, gpus=gpus, ahead=base)
    if one is None or two is None or not comparable(one, two):
        return verdict
    if not (iterations(one, "clean") and iterations(two, "clean")):
        return verdict
    with_deep, with_base = clean_budget(one).steady, clean_budget(two).steady
    if with_deep.median is None or with_base.median is None:
        return verdict
    order = steps_apart(one, two)
    untold = f"They are not told apart. {runs_differ(one, two)}"
    claim = {-1: "Shorter.", 1: "Longer.", 0: untold}[order]
    return replace(
        verdict,
        status=_status(-order),
        evidence=f"Steps with {deep}: {with_deep.text('s')}; with {base}: {with_base.text('s')}; "
        f"gain {signed(with_base.median, with_deep.median, 's')} per step. {claim}",
        records=_names(one, two),
        next_step=_more(one, two) if order == 0 else "",
    )


PARTLY, HARDLY = 0.05, 0.01
"""Shares of copies' time that are hidden: of an engine that overlaps, and of one that does not."""

PROFILED = "It needs full-scale GPU records with a profiled iteration, whose events lie on lanes"


def copies_overlap_compute(records: Sequence[Record]) -> Verdict:
    """Do copies overlap compute on the GPU's timeline: the new engine's, and not the old one's?"""
    verdict = Verdict(
        "overlap",
        "Do copies to the device overlap compute on the GPU's timeline?",
        "not measured",
        f"{PROFILED}, of {NEW}.",
        expected=_expected("overlap"),
        next_step="Run the jobs with profile: true on GPUs.",
    )
    found = [(r, told) for r, told in lanes.read_all(records) if engine_name(r) in (NEW, *OLD)]
    if not any(engine_name(record) == NEW for record, _ in found):
        return verdict
    agree = [
        (told.share or 0) >= PARTLY if engine_name(record) == NEW else (told.share or 0) <= HARDLY
        for record, told in found
    ]
    shares = "; ".join(f"{lanes.origin(r)} {lanes.per_cent(told.share or 0)}" for r, told in found)
    return replace(
        verdict,
        status="pass" if all(agree) else "fail",
        evidence=f"Of the time of copies a block computes in: {shares}. Partly is "
        f"{lanes.per_cent(PARTLY)} or more, not at all {lanes.per_cent(HARDLY)} or less.",
        records=_names(*(record for record, _ in found)),
        next_step="",
    )


def copies_contend_for_pcie(records: Sequence[Record]) -> Verdict:
    """Do copies slow down collectives that take the same way, over PCIe?"""
    verdict = Verdict(
        "contention",
        "Do copies to the device and collectives contend for PCIe?",
        "not measured",
        f"{PROFILED}, from several GPUs that talk over PCIe.",
        expected=_expected("contention"),
        next_step="Run the jobs with profile: true on such GPUs; NCCL_P2P_DISABLE=1 makes any so.",
    )
    found = [
        (record, told)
        for record, told in lanes.read_all(records)
        if told.beside.n
        and "PCIe" in str(get(record, "machine", "interconnect"))
    ]  # fmt: skip
    if not found:
        return verdict
    orders = {apart(told.beside, told.alone) for _, told in found}
    order = 0 if {1, -1} <= orders else max(orders, key=abs)
    times = "; ".join(f"{lanes.origin(r)} {told.beside.text('×', 3)}" for r, told in found)
    return replace(
        verdict,
        status=_status(order),
        evidence=f"An all-to-all beside a copy takes, against one alone: {times}.",
        records=_names(*(record for record, _ in found)),
        next_step="" if order else MORE,
    )


# Further checks, any scale -----------------------------------------------------------------------


def engines_give_the_same_bits(records: Sequence[Record]) -> Verdict:
    """Do all engines give bit-identical latents at one world size?"""
    verdict = Verdict(
        "bits",
        "Do all engines end in the same bits, at each number of ranks?",
        "not measured",
        "It needs records of two engines, alike in machine, software, workload and ranks.",
        expected="An engine moves weights and never changes arithmetic.",
        next_step="Run two jobs of params/baseline/ with the same number of GPUs.",
    )
    same, differ, excused, used = [], [], [], []
    for group in comparable_groups(records):
        for number in sorted({ranks(r) for r in group}):
            here = [r for r in group if ranks(r) == number and latents(r)]
            engines = sorted({engine_name(r) for r in here})
            if len(engines) < 2:
                continue
            used += here
            what = f"{', '.join(engines)} on {counted(number, 'rank')}"
            if len(_digests(here)) == 1:
                same.append(what)
            elif get(here[0], "machine", "device") == "cuda" and (
                len(_digests([r for r in here if engine_name(r) != "fsdp"])) == 1
            ):
                excused.append(what)
            else:
                differ.append(what)
    if not used:
        return verdict
    evidence = [f"Equal: {'; '.join(same)}."] if same else []
    evidence += [f"Different: {'; '.join(differ)}."] if differ else []
    if excused:
        evidence.append(
            f"Equal but for fsdp, for whose gathered buffers a GPU may choose other kernels: "
            f"{'; '.join(excused)}."
        )
    return replace(
        verdict,
        status="fail" if differ else "pass",
        evidence=" ".join(evidence),
        records=_names(*used),
        next_step="See the table of digests for the engine that differs." if differ else "",
    )


def _digests(records: Sequence[Record]) -> set[str]:
    return {digest for record in records for digest in latents(record)}


def iterations_repeat(records: Sequence[Record]) -> Verdict:
    """Do the iterations of each record end in the same bits?"""
    known = [r for r in records if repeats(r) is not None]
    wrong = [r for r in known if not repeats(r)]
    return Verdict(
        "repeat",
        "Does every job end in the same bits in each of its iterations?",
        "fail" if wrong else "pass" if known else "not measured",
        f"{len(known) - len(wrong)} of {_how_many(known)} with two or more iterations."
        if known
        else "No record has two iterations.",
        records=_names(*(wrong or known)),
        expected="The same seed gives the same bits.",
        next_step="" if known else "Run any job with its warm-up and clean iterations.",
    )


def counters_equal_formulas(records: Sequence[Record]) -> Verdict:
    """Do all counters equal the closed formula of their engine?"""
    known = [r for r in records if counters_agree(r) is not None]
    wrong = [r for r in known if not counters_agree(r)]
    derived = sorted({engine_name(r) for r in records if counters_derived(r)})
    left_out = f" Left out, because they are derived: {', '.join(derived)}." if derived else ""
    return Verdict(
        "formula",
        "Do copies, bytes, allocations and waits equal the closed formula?",
        "fail" if wrong else "pass" if known else "not measured",
        (
            f"{len(known) - len(wrong)} of {_how_many(known)}, every counter of every "
            f"rank and iteration.{left_out}"
            if known
            else f"No record has counters that were really counted.{left_out}"
        ),
        records=_names(*(wrong or known)),
        expected="Equal: what an engine does follows from sizes, steps and branches.",
        next_step="" if known else "Run any job.",
    )


# All of them -------------------------------------------------------------------------------------

Check = Callable[[Sequence[Record]], Verdict]

BASELINE_CHECKS: list[tuple[Check, bool]] = [
    (flow_shift_is_loaded, False),
    (switch_is_scheduled, False),
    *((old_engine_spikes(old), True) for old in OLD),
    *((new_engine_is_slower(old), True) for old in OLD),
    *((gap_grows_with_gpus(old), True) for old in OLD),
    (resident_runs_out_of_memory, True),
    (prefetch_helps, True),
    (copies_overlap_compute, True),
    (copies_contend_for_pcie, True),
]
"""The baseline's checks; True where only full-scale GPU records may answer."""

FURTHER_CHECKS: list[tuple[Check, bool]] = [
    (engines_give_the_same_bits, False),
    (iterations_repeat, False),
    (counters_equal_formulas, False),
]


def baseline_checks(records: Sequence[Record]) -> list[Verdict]:
    """Return the verdicts on the baseline's own checks (sections 9.2 and 6.1)."""
    return _verdicts(BASELINE_CHECKS, records)


def further_checks(records: Sequence[Record]) -> list[Verdict]:
    """Return the verdicts on what else the records can tell."""
    return _verdicts(FURTHER_CHECKS, records)


def _verdicts(checks: Sequence[tuple[Check, bool]], records: Sequence[Record]) -> list[Verdict]:
    """Run the checks; one that is about time or memory runs once for each machine class."""
    machines = sorted({str(get(r, "machine", "slug")) for r in records if is_full_scale(r)})
    found = []
    for check, per_machine in checks:
        if not (per_machine and machines):
            found.append(check(records))
            continue
        each = []
        for slug in machines:
            here = [r for r in records if get(r, "machine", "slug") == slug and is_full_scale(r)]
            name = str(get(here[0], "machine", "class"))
            each.append(replace(check(here), machine=name))
        # A machine that cannot tell needs no row beside one that can.
        told = [verdict for verdict in each if verdict.status != "not measured"]
        found += told or [replace(each[0], machine="")]
    return found


def verdict_table(verdicts: Sequence[Verdict], *, caption: str, evidence: bool = True) -> str:
    """Return verdicts as an HTML table, with or without what they rest on."""
    columns: list[Column | str] = [
        Column("question", "check", numeric=False),
        Column("status", "verdict", numeric=False),
    ]
    if any(verdict.machine for verdict in verdicts):
        columns.append(Column("machine", "machine", numeric=False))
    if evidence:
        columns += [
            Column("evidence", "evidence", numeric=False),
            Column("expected", "expected", numeric=False),
            Column("records", "records", numeric=False),
        ]
    rows: list[dict[str, object]] = [
        {
            "question": verdict.question,
            "status": MARKS[verdict.status],
            "machine": verdict.machine or Cell("", text="any"),
            "evidence": verdict.evidence
            + (f" Next: {verdict.next_step}" * bool(verdict.next_step)),
            "expected": Cell(verdict.expected, kind="predicted"),
            "records": _few(verdict.records),
        }
        for verdict in verdicts
    ]
    return html_table(
        rows,
        columns,
        caption=caption,
        note="Pass: the records agree with what was expected. Fail: they contradict it.",
        kind=None,
    )


def _few(files: Sequence[str]) -> Cell:
    """Return the first jobs' names; the tooltip has all files."""
    jobs = sorted({file.rpartition("/")[2].rpartition("-")[0] for file in files})
    text = ", ".join(jobs[:3]) + (f" and {len(jobs) - 3} more" if len(jobs) > 3 else "")
    return Cell(text, text=text or "none", title="\n".join(sorted(set(files))) or None)


def tally(verdicts: Sequence[Verdict]) -> str:
    """Return how the verdicts fell, in words: "3 pass, 1 fail, 6 not measured"."""
    return ", ".join(f"{sum(v.status == status for v in verdicts)} {status}" for status in MARKS)


# Small helpers -----------------------------------------------------------------------------------


def apart(one: Estimate, two: Estimate, allowed: float = 0.0) -> int:
    """Return 1 where `one` lies above `two` and their 95 % intervals are apart, -1 below, else 0.

    Apart is what differs by more than the share `allowed`. Without an interval there is no claim:
    0.
    """
    if None in (one.low, one.high, two.low, two.high):
        return 0
    assert one.low is not None and one.high is not None
    assert two.low is not None and two.high is not None
    more = 1 + allowed
    return 1 if one.low > two.high * more else -1 if one.high * more < two.low else 0


SAME_CLOCKS = 0.01
UNKNOWN_CLOCKS = SAME_CLOCKS + 0.04
"""Below these shares no difference between two runs' steady steps is claimed. They are allowances:
`resident` drifts by up to one per cent within one campaign, and two runs of it on one class of
machine lay 3.8 per cent apart."""


def between_runs(one: Record, two: Record, *, either_way: bool = False) -> float:
    """Return the share below which no difference between two runs' steps is claimed.

    A clock counts only where it may explain the difference: the run of the longer step has the
    slower one. With `either_way` it always does, as where two differences are compared.
    """
    mine, theirs = gpu_state(one), gpu_state(two)
    if mine is None or theirs is None:
        return UNKNOWN_CLOCKS
    if either_way:
        slow, fast = sorted((mine.sm_mhz, theirs.sm_mhz))
        return SAME_CLOCKS + fast / slow - 1
    return SAME_CLOCKS + max(0.0, _faster_by(one, two, theirs.sm_mhz / mine.sm_mhz))


def _faster_by(one: Record, two: Record, clocks: float) -> float:
    """By what share the shorter step's run had the faster clock; `clocks` are two's to one's."""
    longer = (clean_budget(one).steady.median or 0) >= (clean_budget(two).steady.median or 0)
    return clocks - 1 if longer else 1 / clocks - 1


def steps_apart(one: Record, two: Record) -> int:
    """Return :func:`apart` of two runs' steady steps, by more than :func:`between_runs`."""
    return apart(clean_budget(one).steady, clean_budget(two).steady, between_runs(one, two))


def runs_differ(one: Record, two: Record) -> str:
    """Say below which difference nothing is claimed of two runs, and why."""
    mine, theirs = gpu_state(one), gpu_state(two)
    if mine and theirs:
        clocks = f"{mine.sm_mhz:,.0f} and {theirs.sm_mhz:,.0f} MHz"
        boards = "on the same" if set(mine.boards) == set(theirs.boards) else "not on the same"
        why = f"their GPUs ran at {clocks}, {boards} boards"
        if _faster_by(one, two, theirs.sm_mhz / mine.sm_mhz) < 0:
            why += ", the longer step at the faster clock"
    else:
        why = "not both say at which clock their GPU ran"
    return f"{claimed_from(between_runs(one, two))} of the two runs: {why}."


def claimed_from(share: float) -> str:
    """Begin a sentence on the share below which nothing is claimed."""
    return f"No difference below {overhead(share).lstrip('+')} is claimed"


def _more(one: Record, two: Record) -> str:
    """Say what would tell the steps of two runs apart that are not."""
    if apart(clean_budget(one).steady, clean_budget(two).steady) == 0:
        return MORE
    return "Run both again in one go, on one machine."


def _status(order: int) -> Status:
    """Return the verdict on an order that was expected to be 1; no order is no evidence."""
    return "pass" if order > 0 else "fail" if order < 0 else "not measured"


def last_counters(record: Record) -> dict[str, Any] | None:
    """Return the counters of the last iteration, of the rank that copied most; None without."""
    found = iterations(record)
    counters = (found[-1].get("counters") or []) if found else []
    return max(counters, key=lambda rank: rank["h2d_bytes"], default=None)


def per_step(record: Record) -> dict[str, float] | None:
    """Return the last iteration's counters per step, of the rank that copied most."""
    counters = last_counters(record)
    if counters is None:
        return None
    steps = len(iterations(record)[-1]["steps"])
    return {key: value / steps for key, value in counters.items()}
