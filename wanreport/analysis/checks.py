"""The baseline's open checks (its sections 9.2 and 6.1) and further ones, answered from runs.

Checks of time, memory or overlap look at full-scale runs only: a rehearsal never passes one. A
difference of times is claimed by :mod:`wanreport.analysis.stats` or not at all. Where no run had
the setup that the baseline asks for, the nearest ones answer, and `setting` says what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wanreport.analysis import compare, overlap
from wanreport.analysis.asked import NEW, OLD, Facts, Row, differs, nearest, plain_jobs, to_measure
from wanreport.analysis.frames import Frames
from wanreport.analysis.stats import SAME_CLOCKS, Median, apart
from wanreport.words import counted, gibibytes, ratio, seconds, significant

STATUSES = ("pass", "fail", "within noise", "not measured")
FURTHER = ("bits", "repeat", "formula")
"""Checks of the engines themselves; all others are the baseline's."""
PARTLY, HARDLY = 0.05, 0.01
"""Shares of copies' time that are hidden: of an engine that overlaps, and of one that does not."""
TEXT = ["machine", "measured", "unit", "claim", "setting", "command"]
COLUMNS = ["check", "question", "status", "expected", "runs", "value", "low", "high", "minutes",
           *TEXT]  # fmt: skip

Answer = dict[str, Any]


class _Data(NamedTuple):
    """What checks look at: all frames, the baseline's numbers, timed jobs that count, timelines."""

    frames: Frames
    facts: Facts
    timed: pd.DataFrame
    lanes: pd.DataFrame


class _Ask(NamedTuple):
    """A check: its question, the fact that holds the expectation, and the jobs as asked for."""

    check: str
    question: str
    expected: str
    jobs: tuple[str, ...]
    answers: Callable[[_Data], Iterator[Answer]]


def checks(frames: Frames, facts: Facts) -> pd.DataFrame:
    """Answer all checks: a row for each, of time and memory a row for each machine that can tell.

    Returns
    -------
    check, question, machine
        A stable name, what is asked, and the machine; "" where it is of any.
    status
        "pass": the runs agree with what the baseline expects; "fail": they contradict it; "within
        noise": they are too close to tell; "not measured": no run can tell.
    measured, value, low, high, unit
        The answer as text and as numbers, in `unit`.
    claim
        Of times: "slower", "faster", "within noise", or "no interval" below six steps.
    expected
        The fact that holds the expectation; "" for the checks of :data:`FURTHER`.
    setting, runs
        How the runs differ from what was asked for, "" where they do not; the runs.
    command, minutes
        What would measure it as asked for, and how long that takes at most.
    """
    timed = plain_jobs(compare.overhead(frames))
    data = _Data(frames, facts, timed, overlap.shares(frames))
    rows = []
    for ask in _asks(facts):
        todo = to_measure(frames, *ask.jobs)._asdict() if ask.jobs else {}
        answers = list(ask.answers(data)) if len(frames.runs) else []
        # Where a machine has what was asked for, what is near it tells no more.
        there = {answer.get("machine") for answer in answers if not answer.get("setting")}
        answers = [a for a in answers if not a.get("setting") or a.get("machine") not in there]
        for answer in answers or [{"status": "not measured"}]:
            settled = answer["status"] in ("pass", "fail") and not answer.get("setting")
            row = {"check": ask.check, "question": ask.question, "expected": ask.expected,
                   "runs": [], **dict.fromkeys(TEXT, "")}  # fmt: skip
            rows.append(row | answer | ({} if settled else todo))
    numbers = ["value", "low", "high", "minutes"]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def _asks(facts: Facts) -> list[_Ask]:
    def number(name: str) -> str:
        return f"{facts.number(name):g}"

    four, six = number("s9.1.new4.gpus"), number("s9.1.new6.gpus")
    at, bar, deep = number("s2.switch.new"), number("s2.tqdm.new"), number("s6.2.three.size")

    def jobs(*engines: str, gpus: tuple[str, ...] = (four,)) -> tuple[str, ...]:
        return tuple(f"campaign/720p-{n}gpu-{engine}" for n in gpus for engine in engines)

    return [
        _Ask("shift", f"Is flow shift {number('s9.1.flow_shift')} loaded?", "s9.2.shift.expected",
             jobs(NEW), _shift),
        _Ask("switch", f"Does the schedule switch at step {at} ({bar} on the progress bar)?",
             "s2.switch.new", jobs(NEW), _switch),
        *(_Ask(f"spike-{e}", f"Is the old offload's spike ({e}) at step {bar} on the progress bar?",
               "s9.2.switch.expected", jobs(e), partial(_spike, e)) for e in OLD),
        *(_Ask(f"slower-{e}", f"Is layerwise still slower than {e} on {four} GPUs?",
               "s9.2.slower.expected", jobs(NEW, e), partial(_slower, e)) for e in OLD),
        *(_Ask(f"scaling-{e}", f"Does layerwise lose more to {e} on {six} GPUs than on {four}?",
               "s6.1.new_grows", jobs(NEW, e, gpus=(four, six)), partial(_scaling, e))
          for e in (*OLD, "resident")),
        _Ask("pure", f"Does the job run out of memory on {four} GPUs without offload?",
             "s9.2.pure.expected", jobs("resident"), _pure),
        _Ask("prefetch", f"Does prefetching {deep} layers make steps shorter?",
             "s9.2.prefetch.expected", jobs(NEW, f"{NEW}-prefetch{deep}"), _prefetch),
        _Ask("overlap", "Do copies to the device overlap compute?", "s9.2.overlap.expected",
             ("baseline/new-4gpu", *(f"baseline/old-4gpu-{e}" for e in OLD)), _overlap),
        _Ask("contention", "Do copies to the device and collectives contend for PCIe?",
             "s9.2.contention.expected", ("baseline/new-4gpu",), _contention),
        _Ask("bits", "Do all engines end in the same bits, at each number of GPUs?", "", (), _bits),
        _Ask("repeat", "Does each job end in the same bits in each of its iterations?", "", (),
             partial(_all, "repeats")),
        _Ask("formula", "Do counted copies, bytes, allocations and waits equal the formulas?", "",
             (), partial(_all, "formula_ok")),
    ]  # fmt: skip


def _of(data: _Data, status: str, rows: list[Row], gpus: str, *, also: str = "", **values: Any
        ) -> Answer:  # fmt: skip
    """An answer for the last row's machine; `gpus` is the fact with the number asked for."""
    setting = ", ".join(filter(None, [also, differs(data.facts, pd.DataFrame(rows), gpus)]))
    return {"status": status, "machine": rows[-1].machine, "setting": setting,
            "runs": [row.run for row in rows], **values}  # fmt: skip


def _holds(right: pd.Series, seen: str = "", setting: str = "", noun: str = "run") -> Answer:
    """An answer that holds for all runs, or fails for some: then these are its runs."""
    wrong, many = list(right.index[~right]), counted(len(right), noun)
    return {
        "status": "fail" if wrong else "pass", "setting": setting, "runs": wrong or [*right.index],
        "measured": f"{seen} in {many}" if seen else f"{right.sum()} of {many}",
        "value": right.sum(), "unit": f"of {many}",
    }  # fmt: skip


# The schedule, at any scale ----------------------------------------------------------------------


def _stand_ins(data: _Data, runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Runs of the baseline's own jobs, at any scale; else of other jobs, and how they differ."""
    own, full = runs[runs.baseline_job.notna()], runs[~runs.rehearsal]
    return (own, "") if len(own) else (full, differs(data.facts, full, "s9.1.new4.gpus"))


def _shift(data: _Data) -> Iterator[Answer]:
    runs = data.frames.runs
    runs, setting = _stand_ins(data, runs[(runs.source == "job") & runs.flow_shift.notna()])
    if len(runs):
        seen = ", ".join(f"{shift:g}" for shift in sorted(set(runs.flow_shift)))
        yield _holds(runs.flow_shift == data.facts.number("s9.1.flow_shift"), seen, setting)


def _switch(data: _Data) -> Iterator[Answer]:
    runs, steps = data.frames.runs, data.frames.steps
    runs, setting = _stand_ins(data, runs[(runs.source == "job") & runs.index.isin(steps.run)])
    if runs.empty:
        return
    # What the schedule says, and which expert each step of each iteration really used.
    low = steps[steps.expert == "low_noise"].groupby(["run", "iteration"]).step.min()
    every = low.reindex(steps.groupby(["run", "iteration"]).size().index)
    both = [runs.switch_step, every[every.index.isin(runs.index, level="run")]]
    wanted = int(data.facts.number("s2.switch.new"))
    wrong = [(each != wanted).fillna(True).groupby(level=0).any() for each in both]
    seen = sorted({int(step) for each in both for step in each.dropna()})
    yield _holds(~(wrong[0] | wrong[1]), ", ".join(map(str, seen)), setting)


# Times -------------------------------------------------------------------------------------------


def _pairs(data: _Data, other: str, ahead: int = 1) -> list[tuple[Row, Row]]:
    """Of each machine the new offload's run, and the nearest one of another engine or prefetch."""
    runs, base = data.timed, int(data.facts.number("s9.2.prefetch.base"))
    new = runs[(runs.engine == NEW) & (runs.prefetch == ahead)]
    return nearest(new, runs[(runs.engine == other) & (runs.prefetch.fillna(base) == base)])


def _spike(old: str, data: _Data) -> Iterator[Answer]:
    runs, steps = data.timed, data.frames.steps
    runs = runs[(runs.engine == old) & runs.switch_s.notna()].sort_values(["steps_run", "started"])
    for _, row in runs.groupby(["machine", "gpus", "height"]).tail(1).iterrows():
        clean = steps[(steps.run == row.run) & (steps.kind == "clean")]
        clean = clean[clean.iteration == clean.iteration.min()].set_index("role").seconds
        rest, switch = clean[["steady"]], clean["switch"]
        low, high = rest.min(), rest.max()
        there = row.switch_step == data.facts.number("s2.switch.new")
        spike = there and switch > high * (1 + SAME_CLOCKS)
        shown = f"{seconds(switch)}, other steps {seconds(low)} to {seconds(high)}"
        yield _of(data, "pass" if spike else "fail", [row], "s9.1.old4.gpus", value=switch,
                  low=low, high=high, unit="s", measured=shown)  # fmt: skip


def _slower(old: str, data: _Data) -> Iterator[Answer]:
    for pair in _pairs(data, old):
        told = compare.difference(*pair, compare.pair_drift(*pair))
        yield _of(data, _status(told, "slower"), [*pair], "s9.1.new4.gpus", **_share(told),
                  measured=ratio(told["difference"]))  # fmt: skip


def _scaling(old: str, data: _Data) -> Iterator[Answer]:
    pairs = _pairs(data, old)
    asked = [int(data.facts.number(f"s9.1.new{n}.gpus")) for n in (4, 6)]
    for wide in pairs:
        alike = [pair for pair in pairs
                 if pair[0].gpus < wide[0].gpus and pair[0].workload == wide[0].workload
                 and pair[0].gpu_model == wide[0].gpu_model
                 and pair[0].interconnect in ("", wide[0].interconnect)]  # fmt: skip
        for narrow in sorted(alike, key=lambda pair: pair[0].gpus)[-1:]:
            told = compare.gap_difference(wide, narrow)
            few, many = int(narrow[0].gpus), int(wide[0].gpus)
            gpus = f"{few} and {many} GPUs instead of {asked[0]} and {asked[1]}"
            shown = f"{ratio(told['gap_before'])} on {few}, {ratio(told['gap'])} on {many}"
            yield _of(data, _status(told, "slower"), [*narrow, *wide], "", **_share(told),
                      measured=shown, also="" if [few, many] == asked else gpus)  # fmt: skip


def _prefetch(data: _Data) -> Iterator[Answer]:
    for pair in _pairs(data, NEW, int(data.facts.number("s6.2.three.size"))):
        told = compare.difference(*pair, compare.pair_drift(*pair))
        yield _of(data, _status(told, "faster"), [*pair], "s9.1.prefetch3.gpus",
                  value=told["step_difference_s"], low=told["low_s"], high=told["high_s"],
                  unit="s", claim=told["claim"],
                  measured=f"{seconds(told['step_difference_s'], 3)} a step")  # fmt: skip


def _status(told: dict[str, Any], wanted: str) -> str:
    claim = told["claim"]
    if claim in ("slower", "faster"):
        return "pass" if claim == wanted else "fail"
    return "not measured" if claim == "no interval" else "within noise"


def _share(told: dict[str, Any]) -> Answer:
    value, low, high = (100 * told[f"difference{end}"] for end in ("", "_low", "_high"))
    return {"value": value, "low": low, "high": high, "unit": "%", "claim": told["claim"]}


# Memory and overlap ------------------------------------------------------------------------------


def _pure(data: _Data) -> Iterator[Answer]:
    runs = plain_jobs(data.frames.runs)
    # The GPU's memory counts, and not the host's.
    oom = (runs.status == "oom") & runs.reason.str.contains("CUDA|OutOfMemoryError")
    runs = runs.assign(oom=oom)[~runs.rehearsal & (oom | (runs.status == "ok"))]
    runs = runs[runs.engine == "resident"].sort_values("started")
    for _, row in runs.groupby(["machine", "gpus", "height"]).tail(1).iterrows():
        shown = "out of memory" if row.oom else f"{gibibytes(row.reserved_bytes)} reserved"
        yield _of(data, "pass" if row.oom else "fail", [row], "s9.2.pure.gpus", unit="GiB",
                  value=row.reserved_bytes / 2**30, measured=shown)  # fmt: skip


def _overlap(data: _Data) -> Iterator[Answer]:
    found = data.lanes
    found = found[found.hidden.notna() & found.engine.isin((NEW, *OLD))] if len(found) else found
    for _, here in found.groupby(["machine", "gpus"]) if len(found) else ():
        new = here[here.engine == NEW]
        agree = np.where(here.engine == NEW, here.hidden >= PARTLY, here.hidden <= HARDLY)
        rows = [row for _, row in here.iterrows()]
        if len(new):
            shown = ", ".join(f"{100 * row.hidden:.1f} % in {row['name']}" for row in rows)
            yield _of(data, "pass" if agree.all() else "fail", rows, "s9.1.new4.gpus", unit="%",
                      value=100 * new.hidden.iloc[-1], measured=shown,
                      also="" if len(here) > len(new) else "new offload only")  # fmt: skip


def _contention(data: _Data) -> Iterator[Answer]:
    found = data.lanes
    found = (
        found[(found.beside_n > 0) & (found.interconnect == "PCIe path")] if len(found) else found
    )
    for _, here in found.groupby(["machine", "gpus"]) if len(found) else ():
        rows = [row for _, row in here.sort_values("beside").iterrows()]
        orders = {
            apart(Median(row.beside, row.beside_low, row.beside_high, row.beside_n),
                  Median(1, row.alone_low, row.alone_high, row.alone_n)) for row in rows
        }  # fmt: skip
        order = 0 if {1, -1} <= orders else max(orders, key=abs)
        shown = ", ".join(f"{significant(row.beside, 3)}× in {row['name']}" for row in rows)
        yield _of(data, {1: "pass", -1: "fail"}.get(order, "within noise"), rows,
                  "s9.1.new4.gpus", value=rows[-1].beside, low=rows[-1].beside_low,
                  high=rows[-1].beside_high, unit="×", claim=compare.CLAIMS[order],
                  measured=shown)  # fmt: skip


# The engines, at any scale -----------------------------------------------------------------------


def _bits(data: _Data) -> Iterator[Answer]:
    found = compare.bits(data.frames)
    if len(found):
        # For the buffers that fsdp gathers into, a GPU may choose other kernels.
        excused = (found.differ == "fsdp") & ~found.rehearsal
        right = found.same | excused
        shown = found if right.all() else found[~right]
        answer = _holds(right, noun="group")
        answer["runs"] = [run for runs in shown.each for run in runs]
        answer["measured"] += ", but for fsdp" if excused.any() else ""
        yield answer


def _all(column: str, data: _Data) -> Iterator[Answer]:
    runs = data.frames.runs
    known = runs[(runs.source == "job") & runs[column].notna()]
    if len(known):
        yield _holds(known[column].astype(bool))
