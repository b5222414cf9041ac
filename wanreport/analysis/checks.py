"""The baseline's open checks (its sections 9.2 and 6.1) and further ones, answered from runs.

Checks of time, memory or overlap look at full-scale runs only: a rehearsal never passes one. A
difference of times is claimed by :mod:`wanreport.analysis.stats` or not at all. Where no run had
the setup that the baseline asks for, the nearest ones answer, and `setting` says what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.compare import NEW, OLD, Facts, rows_of
from wanreport.analysis.frames import Frames
from wanreport.analysis.overlap import shares
from wanreport.analysis.stats import SAME_CLOCKS, Median, Row, apart, gap_difference
from wanreport.words import counted, gibibytes, ratio, seconds, share, signed, significant

FOUR = "s9.1.new4.gpus"
PARTLY, HARDLY = 0.05, 0.01
"""Shares of copies' time that are hidden: of an engine that overlaps, and of one that does not."""
SHARED = "PCIe path"

Answers = Iterator[dict[str, Any]]


class _Data(NamedTuple):
    """What checks look at: all frames, the baseline's numbers, timed jobs, measured timelines."""

    frames: Frames
    facts: Facts
    timed: pd.DataFrame
    lanes: pd.DataFrame


def checks(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Answer all checks: a row for each, of time and memory a row for each machine that can tell.

    Columns are `check`; `expected`, the fact that holds the expectation; `status`: "pass", the runs
    agree with it, "fail", they contradict it, "within noise", they are too close to tell, or "not
    measured"; `machine`, or "" where it is of any; `measured`, the answer as text; the `runs` and
    `setting`, how they differ from what was asked for; until some machine has answered just that,
    `command` and `minutes`, what would measure it, at most so long.
    """
    timed = compare.plain_jobs(compare.overhead(frames), earlier=True)
    data, rows = _Data(frames, facts, timed, shares(frames)), []
    for check, (expected, jobs, answer) in (BASELINE | FURTHER).items():
        answers = list(answer(data))
        # Where a machine has what was asked for, what is near it tells no more.
        there = {each["machine"] for each in answers if not each["setting"]}
        answers = [a for a in answers if not a["setting"] or a["machine"] not in there]
        settled = any(a["status"] in ("pass", "fail") and not a["setting"] for a in answers)
        todo = {} if settled or not jobs else compare.to_measure(frames, *jobs.split())
        row = {"check": check, "expected": expected, "status": "not measured", "runs": [],
               **dict.fromkeys(("machine", "setting", "measured", "command"), ""),
               "minutes": math.nan}  # fmt: skip
        rows += [row | todo | each for each in answers or [{}]]
    return pd.DataFrame(rows)


def _answer(data: _Data, status: str, rows: list[Row], measured: str, also: str = "",
            gpus: str = FOUR) -> dict[str, Any]:  # fmt: skip
    """An answer for the last row's machine; `gpus` is the fact with the number asked for."""
    linked = len(rows) > 1 and rows[-1].interconnect == "NVLink"  # of one run it does not count
    path = f"NVLink instead of the {SHARED}" if linked else ""
    differs = compare.differs(data.facts, pd.DataFrame(rows), gpus)
    setting = ", ".join(filter(None, [also, differs, path]))
    return {"status": status, "machine": rows[-1].machine, "measured": measured,
            "runs": [row.run for row in rows], "setting": setting}  # fmt: skip


def _holds(right: pd.Series, seen: str = "", setting: str = "") -> Answers:
    """An answer that holds for all runs, or fails for some: then these are its runs."""
    wrong, many = list(right.index[~right]), counted(len(right), "run")
    if len(right):
        yield {"status": "fail" if wrong else "pass", "setting": setting, "machine": "",
               "runs": wrong or [*right.index],
               "measured": f"{seen} in {many}" if seen else f"{right.sum()} of {many}"}  # fmt: skip


def _judged(claim: str, wanted: str) -> str:
    """The status of a difference of times whose claim should be `wanted`."""
    others = {"within noise": "within noise", "no interval": "not measured", wanted: "pass"}
    return others.get(claim, "fail")


def _last(runs: pd.DataFrame, *first: str) -> list[Row]:
    """Pick of each machine, number of GPUs and height the last run, in the order of `first`."""
    return rows_of(runs.sort_values([*first, "started"]).groupby(compare.WHERE).tail(1))


# The schedule and the engines, at any scale ------------------------------------------------------


def _schedule(fact: str, data: _Data) -> Answers:
    """Hold runs against a fact: of the baseline's own jobs, else of those at full scale.

    Of the switch: what the schedule says, and when steps of each iteration used the other expert.
    """
    runs, steps = (
        data.frames.runs.query("source == 'job' and flow_shift.notna()"),
        data.frames.steps,
    )
    own = runs[runs.baseline_job.notna()]
    chosen = own if len(own) else runs[~runs.rehearsal]
    values = chosen[["flow_shift"]]
    if fact == "s2.switch.new":
        low = steps.step.where(steps.expert == "low_noise").astype(float)
        ends = low.groupby([steps.run, steps.iteration]).min().fillna(math.inf).groupby("run")
        values = pd.DataFrame(
            {"planned": chosen.switch_step, "first": ends.min(), "last": ends.max()}
        )
        values = values.loc[chosen.index[chosen.index.isin(steps.run)]].astype(float)
    seen = ", ".join(f"{v:g}" for v in sorted(set(values.to_numpy().ravel()) - {math.inf}))
    setting = "" if len(own) else compare.differs(data.facts, chosen, FOUR)
    yield from _holds((values == data.facts.number(fact)).all(axis=1), seen, setting)


def _bits(data: _Data) -> Answers:
    """Compare latents within each group of comparable jobs of two engines or more.

    `fsdp` decides nothing at full scale: for the buffers that it gathers into, a GPU may choose
    other kernels.
    """
    runs = data.frames.runs
    jobs = runs[(runs.source == "job") & (runs.status == "ok") & runs.latents.notna()]
    jobs = jobs[jobs.groupby("group").engine.transform("nunique") > 1]
    counts = jobs.rehearsal | (jobs.engine != "fsdp")
    same = jobs[counts].groupby("group").latents.nunique() == 1
    excused = jobs.groupby("group").latents.nunique().gt(1) & same
    if len(same):
        yield {"status": "pass" if same.all() else "fail", "setting": "", "machine": "",
               "runs": [*jobs.index[jobs.group.map(same) == same.all()]],
               "measured": f"{same.sum()} of {counted(len(same), 'group')}"
               + ", but for fsdp" * bool(excused.any())}  # fmt: skip


def _every(column: str, data: _Data) -> Answers:
    runs = data.frames.runs
    return _holds(runs[column][runs.source == "job"].dropna().astype(bool))


# Times -------------------------------------------------------------------------------------------


def _pairs(data: _Data, other: str, ahead: int = 1) -> list[tuple[Row, Row]]:
    """Of each machine the new offload's run, and the nearest one of another engine or prefetch."""
    runs = data.timed
    new = runs[runs.latest & (runs.engine == NEW) & (runs.prefetch == ahead)]
    return compare.nearest(new, runs[(runs.engine == other) & (runs.prefetch.fillna(1) == 1)])


def _compared(wanted: str, other: str, data: _Data) -> Answers:
    deep = int(data.facts.number("s6.2.three.size")) if other == NEW else 1
    for one, two in _pairs(data, other, deep):
        gap, less = compare.told(one, two), one.step_s - two.step_s
        shown = f"{ratio(gap['difference'])}, {signed(f'{less:+.2f}')} s a step"
        yield _answer(data, _judged(gap["claim"], wanted), [one, two], shown)


def _scaling(old: str, data: _Data) -> Answers:
    wanted = [int(data.facts.number(f"s9.1.new{n}.gpus")) for n in (4, 6)]
    pairs = _pairs(data, old)
    for wide in pairs:
        new, many = wide[0], int(wide[0].gpus)
        alike = [pair for pair in pairs if pair[0].gpus < many
                 and pair[0].workload == new.workload and pair[0].gpu_model == new.gpu_model
                 and pair[0].interconnect in ("", new.interconnect)]  # fmt: skip
        for narrow in sorted(alike, key=lambda pair: pair[0].gpus)[-1:]:
            gap, few = gap_difference(wide, narrow), int(narrow[0].gpus)
            also = f"{few} and {many} GPUs instead of {wanted[0]} and {wanted[1]}"
            also += f", which adds collectives ({new.interconnect})" if few == 1 else ""
            shown = f"{ratio(gap['gap_before'])} on {few}, {ratio(gap['gap'])} on {many}"
            yield _answer(data, _judged(gap["claim"], "slower"), [*narrow, *wide], shown,
                          also * ([few, many] != wanted), gpus="")  # fmt: skip


def _spike(old: str, data: _Data) -> Answers:
    runs, steps = data.timed, data.frames.steps
    steady = steps[(steps.kind == "clean") & (steps.role == "steady")].groupby("run").seconds
    runs = runs.assign(low=steady.min(), high=steady.max())
    for row in _last(runs[runs.latest & (runs.engine == old) & runs.switch_s.notna()], "steps_run"):
        there = row.switch_step == data.facts.number("s2.switch.new")
        spike = there and row.switch_s > row.high * (1 + SAME_CLOCKS)
        shown = f"{seconds(row.switch_s)}, other steps {seconds(row.low)} to {seconds(row.high)}"
        yield _answer(data, "pass" if spike else "fail", [row], shown)


# Memory and overlap ------------------------------------------------------------------------------


def _pure(data: _Data) -> Answers:
    runs = compare.plain_jobs(data.frames.runs)
    # The GPU's memory counts, and not the host's.
    oom = (runs.status == "oom") & runs.reason.str.contains("CUDA|OutOfMemoryError")
    runs = runs.assign(oom=oom)[~runs.rehearsal & (oom | (runs.status == "ok"))]
    for row in _last(runs[runs.engine == "resident"]):
        shown = "out of memory" if row.oom else f"{gibibytes(row.reserved_bytes)} reserved"
        yield _answer(data, "pass" if row.oom else "fail", [row], shown)


def _overlap(data: _Data) -> Answers:
    for _, here in data.lanes.groupby(["machine", "gpus"]):
        here = here[here.hidden.notna() & here.engine.isin((NEW, *OLD))]
        new, old = here[here.engine == NEW].hidden, here[here.engine != NEW].hidden
        if len(new):
            agree = (new >= PARTLY).all() and (old <= HARDLY).all()
            # The baseline expects something of both, so that one alone can only contradict it.
            status = "fail" if not agree else "pass" if len(old) else "not measured"
            shown = ", ".join(f"{share(row.hidden)} in {row.engine}" for row in here.itertuples())
            also = "" if len(old) else "no copies of an old offload noted"
            yield _answer(data, status, rows_of(here), shown, also)


def _contention(data: _Data) -> Answers:
    lanes = data.lanes[data.lanes.interconnect == SHARED]
    for _, here in lanes.groupby(["machine", "gpus"]):
        rows = rows_of(here[here.beside_n > 0].sort_values("beside"))
        orders = [
            apart(Median(row.beside, row.beside_low, row.beside_high, row.beside_n),
                  Median(1, row.alone_low, row.alone_high, row.alone_n)) for row in rows
        ]  # fmt: skip
        if rows:
            order = 0 if {1, -1} <= {*orders} else max(orders, key=abs)
            status = {1: "pass", -1: "fail"}.get(order, "within noise")
            shown = ", ".join(f"{significant(row.beside, 3)}× in {row.engine}" for row in rows)
            yield _answer(data, status, rows, shown)


def _jobs(*engines: str, gpus: str = "4") -> str:
    return " ".join(f"campaign/720p-{n}gpu-{engine}" for n in gpus for engine in engines)


OWN, BOTH = "baseline/new-4gpu", "baseline/old-4gpu-fsdp baseline/old-4gpu-swap"
BASELINE: dict[str, tuple[str, str, Callable[[_Data], Answers]]] = {
    "shift": ("s9.2.shift.expected", _jobs(NEW), partial(_schedule, "s9.1.flow_shift")),
    "switch": ("s2.switch.new", _jobs(NEW), partial(_schedule, "s2.switch.new")),
    **{f"spike-{old}": ("s9.2.switch.expected", _jobs(old), partial(_spike, old)) for old in OLD},
    **{f"slower-{old}": ("s9.2.slower.expected", _jobs(NEW, old),
                         partial(_compared, "slower", old)) for old in OLD},
    **{f"scaling-{old}": ("s6.1.new_grows", _jobs(NEW, old, gpus="46"), partial(_scaling, old))
       for old in (*OLD, "resident")},
    "pure": ("s9.2.pure.expected", _jobs("resident"), _pure),
    "prefetch": ("s9.2.prefetch.expected", _jobs(NEW, f"{NEW}-prefetch3"),
                 partial(_compared, "faster", NEW)),
    "overlap": ("s9.2.overlap.expected", f"{OWN} {BOTH}", _overlap),
    "contention": ("s9.2.contention.expected", OWN, _contention),
}  # fmt: skip
"""The fact that holds the expectation, jobs that would tell, and what answers."""
FURTHER: dict[str, tuple[str, str, Callable[[_Data], Answers]]] = {
    "bits": ("", "", _bits), "repeat": ("", "", partial(_every, "repeats")),
    "formula": ("", "", partial(_every, "formula_ok")),
}  # fmt: skip
"""Checks of the engines themselves; all others are the baseline's."""
