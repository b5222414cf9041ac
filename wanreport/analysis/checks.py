"""The baseline's open checks (its sections 9.2 and 6.1), answered from runs.

Checks of time, memory or overlap look at full-scale runs only: a rehearsal never passes one. A
difference of times is claimed by :mod:`wanreport.analysis.stats` or not at all. Where no run had
the setup that the baseline asks for, the nearest ones answer, and `setting` says what differs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.compare import NEW, OLD, WHERE, Facts
from wanreport.analysis.frames import Frames
from wanreport.analysis.overlap import shares
from wanreport.analysis.stats import SAME_CLOCKS, gap_difference
from wanreport.words import counted, gibibytes, ratio, seconds, share, signed, significant

FOUR, SHARED = "s9.1.new4.gpus", "PCIe path"
PARTLY, HARDLY = 0.05, 0.01  # hidden of copies' time by an engine that overlaps, and by another
NOTHING = {"status": "not measured", "runs": [], "machine": "", "setting": "", "measured": ""}
SAID = {True: "pass", False: "fail", "slower": "pass", "faster": "fail",
        "no interval": "not measured"}  # fmt: skip
"""A check's status by whether it passes, or by a claim where "slower" is right."""
Answers = Iterator[dict[str, Any]]


class _Data(NamedTuple):
    frames: Frames
    facts: Facts
    timed: pd.DataFrame  # jobs
    lanes: pd.DataFrame  # timelines

    def answer(self, status: Any, names: Sequence[str], measured: str, also: str = "",
               asked: str = FOUR) -> dict[str, Any]:  # fmt: skip
        """An answer for the last run's machine; `asked` is the fact with the number of GPUs."""
        runs = self.frames.runs.loc[[*names]]
        last, said = runs.iloc[-1], [also, compare.differs(self.facts, runs, asked)]
        if len(runs) > 1 and last.interconnect == "NVLink":  # of one run it does not count
            said.append(f"NVLink instead of the {SHARED}")
        return {"status": SAID.get(status, status), "machine": last.machine, "measured": measured,
                "runs": [*names], "setting": ", ".join(filter(None, said))}  # fmt: skip

    def pairs(self, other: str, ahead: int = 1) -> list[pd.DataFrame]:
        """Of each machine the new offload's run, and the nearest of another engine or prefetch."""
        runs = self.timed
        new = runs[runs.latest & (runs.engine == NEW) & (runs.prefetch == ahead)]
        others = runs[(runs.engine == other) & (runs.prefetch.fillna(1) == 1)]
        return compare.nearest(new, others, "group")


def checks(frames: Frames, facts: Facts, lanes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Answer all checks: a row for each, of time and memory a row for each machine that can tell.

    `status` is "pass", where the runs agree with the fact `expected`, "fail", "within noise", or
    "not measured"; `setting`, how the `runs` differ from what was asked for. `lanes` are the
    :func:`shares` of these frames, where they are known.
    """
    timed = compare.plain_jobs(compare.overhead(frames), every=True)
    data, rows = _Data(frames, facts, timed, shares(frames) if lanes is None else lanes), []
    for check, (expected, answer) in CHECKS.items():
        answers = list(answer(data))
        # Where a machine has what was asked for, what is near it tells no more.
        there = {each["machine"] for each in answers if not each["setting"]}
        answers = [a for a in answers if not a["setting"] or a["machine"] not in there]
        row = {"check": check, "expected": expected, **NOTHING}
        rows += [row | each for each in answers or [{}]]
    return pd.DataFrame(rows)


def _schedule(fact: str, data: _Data) -> Answers:
    """Hold the baseline's own jobs at any scale against a fact, else others at full scale.

    Of the switch: what the schedule says, and when steps of each iteration used the other expert.
    """
    steps = data.frames.steps
    runs = data.frames.runs.query("source == 'job' and flow_shift.notna()")
    own = runs[runs.baseline_job.notna()]
    chosen = own if len(own) else runs[~runs.rehearsal]
    values = chosen[["flow_shift"]]
    if fact == "s2.switch.new":
        low = steps.step.where(steps.expert == "low_noise").astype(float)
        first = low.groupby([steps.run, steps.iteration]).min().fillna(math.inf).groupby("run")
        values = chosen[["switch_step"]].astype(float).join(first.agg(["min", "max"]), how="inner")
    seen = ", ".join(f"{v:g}" for v in sorted({*values.to_numpy().ravel()} - {math.inf}))
    right = (values == data.facts.number(fact)).all(axis=1)
    if len(right):
        shown, names = f"{seen} in {counted(len(right), 'run')}", right.index[right == right.all()]
        differs = "" if len(own) else compare.differs(data.facts, chosen, FOUR)
        yield data.answer(bool(right.all()), names, shown) | {"machine": "", "setting": differs}


def _compared(other: str, data: _Data) -> Answers:
    deep = int(data.facts.number("s6.2.three.size")) if other == NEW else 1
    for gap in pd.DataFrame(compare.told(*data.pairs(other, deep))).itertuples():
        shown = f"{ratio(gap.difference)}, {signed(f'{gap.step_difference_s:+.2f}')} s a step"
        shorter = {"faster": True, "slower": False} if other == NEW else {}
        yield data.answer(shorter.get(gap.claim, gap.claim), [gap.run_one, gap.run_two], shown)


def _scaling(old: str, data: _Data) -> Answers:
    wanted = [int(data.facts.number(f"s9.1.new{n}.gpus")) for n in (4, 6)]
    news, olds = data.pairs(old)
    for at, new in news.iterrows():
        alike = (news.workload == new.workload) & (news.gpu_model == new.gpu_model)
        alike &= (news.gpus < new.gpus) & news.interconnect.isin(["", new.interconnect])
        for before in news.gpus[alike].sort_values().index[-1:]:
            pairs = [(news.loc[each], olds.loc[each]) for each in (before, at)]
            gap, gpus = gap_difference(*pairs[::-1]), [int(new.gpus) for new, _ in pairs]
            shown = f"{ratio(gap['gap_before'])} on {gpus[0]}, {ratio(gap['gap'])} on {gpus[1]}"
            also = f"{gpus[0]} and {gpus[1]} GPUs instead of {wanted[0]} and {wanted[1]}"
            also += f", which adds collectives ({new.interconnect})" if gpus[0] == 1 else ""
            names = [run.run for pair in pairs for run in pair]
            yield data.answer(gap["claim"], names, shown, also * (gpus != wanted), asked="")


def _spike(old: str, data: _Data) -> Answers:
    steady = data.frames.steps.query("kind == 'clean' and role == 'steady'").groupby("run").seconds
    runs = data.timed[data.timed.latest & data.timed.switch_s.notna() & (data.timed.engine == old)]
    runs = runs.assign(low=steady.min(), high=steady.max()).sort_values(["steps_run", "started"])
    for row in runs.groupby(WHERE).tail(1).itertuples():
        there = row.switch_step == data.facts.number("s2.switch.new")
        spike = there and bool(row.switch_s > row.high * (1 + SAME_CLOCKS))
        shown = f"{seconds(row.switch_s)}, other steps {seconds(row.low)} to {seconds(row.high)}"
        yield data.answer(spike, [row.run], shown)


def _pure(data: _Data) -> Answers:
    runs = compare.plain_jobs(data.frames.runs).query("engine == 'resident' and not rehearsal")
    # The GPU's memory counts, and not the host's.
    oom = (runs.status == "oom") & runs.reason.str.contains("CUDA|OutOfMemoryError")
    runs = runs.assign(oom=oom)[oom | (runs.status == "ok")]
    for row in runs.sort_values("started").groupby(WHERE).tail(1).itertuples():
        shown = "out of memory" if row.oom else f"{gibibytes(row.reserved_bytes)} reserved"
        yield data.answer(bool(row.oom), [row.run], shown)


def _overlap(data: _Data) -> Answers:
    for _, here in data.lanes.groupby(["machine", "gpus"]):
        here = here[here.engine.isin((NEW, *OLD)) & here.hidden.notna()]
        new = here.engine == NEW
        agree = (here.hidden >= PARTLY).where(new, here.hidden <= HARDLY).all()
        # The baseline expects something of both, so that one alone can only contradict it.
        status = False if not agree else "not measured" if new.all() else True
        shown = ", ".join(f"{share(row.hidden)} in {row.engine}" for row in here.itertuples())
        if new.any():
            also = "no copies of an old offload noted" * bool(new.all())
            yield data.answer(status, here.run, shown, also)


def _contention(data: _Data) -> Answers:
    for _, here in data.lanes.query("interconnect == @SHARED").groupby(["machine", "gpus"]):
        here = here[(here.beside_low + here.alone_low).notna()].sort_values("beside")
        longer = bool((here.beside_low > here.alone_high).any())
        shorter = bool((here.beside_high < here.alone_low).any())
        shown = [f"{significant(row.beside, 3)}× in {row.engine}"
                 + " (copies)" * (row.slowed == "copies") for row in here.itertuples()]  # fmt: skip
        status = "within noise" if longer == shorter else longer
        if len(here):
            yield data.answer(status, here.run, ", ".join(shown))


CHECKS: dict[str, tuple[str, Callable[[_Data], Answers]]] = {
    "shift": ("s9.2.shift.expected", partial(_schedule, "s9.1.flow_shift")),
    "switch": ("s2.switch.new", partial(_schedule, "s2.switch.new")),
    **{f"spike-{old}": ("s9.2.switch.expected", partial(_spike, old)) for old in OLD},
    **{f"slower-{old}": ("s9.2.slower.expected", partial(_compared, old)) for old in OLD},
    **{f"scaling-{old}": ("s6.1.new_grows", partial(_scaling, old)) for old in (*OLD, "resident")},
    "pure": ("s9.2.pure.expected", _pure),
    "prefetch": ("s9.2.prefetch.expected", partial(_compared, NEW)),
    "overlap": ("s9.2.overlap.expected", _overlap),
    "contention": ("s9.2.contention.expected", _contention),
}
"""The fact that holds the expectation, and what answers."""
