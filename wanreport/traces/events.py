"""One form for any trace: `events`, a row for each thing that a GPU or a host thread did.

    kind         kernel, collective, copy, memset: on a GPU; call: of the CUDA or HIP API, on the
                 host; sync: a wait, as the GPU saw it; step; memory: the allocator's; overhead
    start_ns, end_ns    integers, half-open
    device, stream, process, thread    -1 where it has none
    bytes        of a copy, a memset or (signed) an allocation; missing where not recorded
    direction, memory   of a copy: HtoD, DtoH, DtoD, PtoP, ...; the host's side of it: pinned,
                 pageable, managed or unknown, and "" between devices
    call         the row of the API call that launched a GPU event, -1 if it is not in the file
    step         in which that call began; where there is none, in which the event itself did

Missing is never 0: what a file lacks is said by its `quality`, and figures of it are missing too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

KINDS = ("kernel", "collective", "copy", "memset", "call", "sync", "step", "memory", "overhead")
ON_GPU, KIND = KINDS[:4], pd.CategoricalDtype(KINDS)
MISSING = np.iinfo(np.int64).min
MOST_EVENTS = 4_000_000  # about 0.5 GB in memory; a profile of a few steps has a tenth of it
MOST_NAMES, LONGEST_NAME = 50_000, 300

COLLECTIVES = re.compile(r"nccl|rccl", re.IGNORECASE)
COPIES = re.compile(r"(?:Memcpy|Copy) ?(\w+?)to(\w+)(?: \((.+?) -> (.+?)\))?", re.IGNORECASE)
STEPS = re.compile(
    r"(?:ProfilerStep|(?:denois\w*?|inference)?[ _]?step|iteration)[ _#:]*(\d{1,9})", re.IGNORECASE
)
LAUNCHES = r"Launch(?!HostFunc)|Memcpy"
"""Calls that put something on a GPU. A memset is none of them, as one of nothing puts nothing."""

TIMES, LINK = ["start_ns", "end_ns"], ["process", "correlation"]
COLUMNS: dict[str, Any] = {
    "kind": KIND, "name": np.int32, "device": np.int64, "stream": np.int64,
    "process": np.int64, "thread": np.int64, "start_ns": np.int64, "end_ns": np.int64,
    "bytes": np.int64, "correlation": np.int64,
}  # fmt: skip


class Trace(NamedTuple):
    """One file."""

    events: pd.DataFrame
    steps: pd.DataFrame
    """``step``, ``name``, ``start_ns``, ``end_ns``, ``process``, ``launches`` and ``matched``
    (calls, and those with an event on a GPU), ``complete``."""
    quality: pd.DataFrame
    """What to know first: ``check``, ``count``, ``what``; ``bad`` where figures lack something."""
    facts: dict[str, Any]
    """``file``, ``format``, ``size_bytes``, ``rank``, ``events`` (in the file), ``gpus`` (names by
    device), ``finished`` (whether its end is there; None if its format does not say)."""

    def devices(self) -> Iterator[tuple[int, pd.DataFrame]]:
        """Each device with the events on it; none if the file holds nothing that ran on a GPU."""
        yield from self.events[self.events.kind.isin(ON_GPU)].groupby("device")


class Rows:
    """Batches of events, the names that they refer to by number, and notes."""

    def __init__(self) -> None:
        self.batches = [pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)]
        self.names: dict[str, int] = {}
        self.notes: list[tuple[str, int, bool, str]] = []
        self.size = self.odd = 0

    def name(self, name: str) -> int:
        """The number of a name; long ones are cut, and too many share one."""
        if (number := self.names.get(name)) is not None:
            return number
        short = name[:LONGEST_NAME].encode("utf-8", "replace").decode()
        short = short if len(self.names) < MOST_NAMES else "(other)"
        return self.names.setdefault(short, len(self.names))

    def add(self, **columns: Any) -> None:
        """Take a batch, without events that end before they begin or whose times are none."""
        batch = pd.DataFrame(columns)
        good = (batch.start_ns > MISSING) & (batch.end_ns >= batch.start_ns)
        self.batches.append(batch[good].astype(COLUMNS))
        self.size += int(good.sum())
        self.odd += int((~good).sum())

    def note(self, check: str, count: Any, what: str, bad: object = True) -> None:
        """Keep what is to know about the file, if there is any of it."""
        if count:
            self.notes.append((check, int(count), bool(bad), what))

    def trace(self, whole: bool, shift: int = 0, **facts: Any) -> Trace:
        """Make the trace; `whole`: the file has all that ran on a GPU; `shift`: its time 0."""
        events = pd.concat(self.batches, ignore_index=True)
        self.batches.clear()
        events[TIMES] += shift
        events["name"] = pd.Categorical.from_codes(events.name, [*self.names] or [""])
        _by_name(events)
        steps = _steps(events)
        events["call"] = _calls(events)
        step, by_time = _step_of(events, steps)
        events["step"] = pd.arrays.IntegerArray(step, step < 0)
        nbytes = events.bytes.to_numpy()
        events["bytes"] = pd.arrays.IntegerArray(nbytes, nbytes == MISSING)
        _complete(events, steps, whole)
        self._check(events, steps, by_time)
        quality = pd.DataFrame(self.notes, columns=["check", "count", "bad", "what"])
        return Trace(events, steps, quality.sort_values("bad", ascending=False), facts)

    def _check(self, events: pd.DataFrame, steps: pd.DataFrame, by_time: int) -> None:
        note, copies = self.note, events[events.kind == "copy"]
        note("times", self.odd, "events that have no times, or wrong ones, are left out")
        note("no GPU events", not events.kind.isin(ON_GPU).any(), "nothing that ran on a GPU is in"
             " the file: that there were no copies is not what this says")  # fmt: skip
        left = steps.step[~steps.complete]
        note("incomplete steps", len(left), "the file lacks what ran in steps "
             f"{', '.join(map(str, left))}; they have no figures")  # fmt: skip
        note("launches without GPU event", (steps.launches - steps.matched).sum(),
             f"of {steps.launches.sum():,} in steps", not steps.complete.all())  # fmt: skip
        note("copies without bytes", copies.bytes.isna().sum(), "left out of bytes and rates")
        note("copies of no time", (copies.start_ns == copies.end_ns).sum(), "left out of rates", 0)
        note("copies without call", (copies.call < 0).sum(), "whether they block is not known", 0)
        note("steps by time", by_time, "GPU events without call count for the step they ran in", 0)
        calls = events[events.kind == "call"]
        note("no calls", not len(calls), "calls of CUDA or HIP are not in the file: what blocks,"
             " waits or allocates is not known")  # fmt: skip
        calls = calls[calls.correlation > 0]
        note("correlations used twice", calls.duplicated(LINK).sum(),
             "the first call counts as the one that launched", 0)  # fmt: skip


def _by_name(events: pd.DataFrame) -> None:
    """What names tell: which kernels are collectives; where copies go, from which memory."""
    names, code = events.name.cat.categories, events.name.cat.codes
    collective = names.str.contains(COLLECTIVES)[code]
    events.loc[(events.kind == "kernel") & collective, "kind"] = "collective"
    told = pd.DataFrame([_copy(name) for name in names], columns=["direction", "memory"])
    for column in told:
        known = told[column].astype("category").iloc[code]
        events[column] = known.set_axis(events.index).where(events.kind == "copy")


def _copy(name: str) -> tuple[str, str]:
    if not (found := COPIES.match(name)):
        return "unknown", "unknown"
    source, target = (end[0].upper() for end in found.groups()[:2])
    side = found[3] if source == "H" else found[4] if target == "H" else ""
    side = (side or "").lower().removesuffix(" static")
    side = side if side in ("pinned", "pageable", "managed") else "unknown"
    return f"{source}to{target}", side if "H" in (source, target) else ""


def _steps(events: pd.DataFrame) -> pd.DataFrame:
    """The host's windows of steps, by their begin, each with a number of its own."""
    steps = events.loc[events.kind == "step", ["name", "process", *TIMES]].astype({"name": str})
    profilers = steps.name.str.startswith("ProfilerStep")
    steps = steps[profilers | ~profilers.any()].sort_values("start_ns", ignore_index=True)
    steps.insert(0, "step", steps.name.str.extract(r"(\d+)$")[0].astype("int32"))
    if steps.duplicated(["process", "step"]).any():
        steps["step"] = steps.groupby("process").cumcount().astype("int32")
    return steps


def _calls(events: pd.DataFrame) -> np.ndarray:
    """For each GPU event the row of the first call with its correlation; -1 for all others."""
    linked = events.loc[events.correlation > 0, ["kind", "start_ns", *LINK]]
    calls = linked[linked.kind == "call"].sort_values("start_ns", kind="stable")
    calls = calls.drop_duplicates(LINK)[LINK].reset_index(names="call")
    ran = linked[linked.kind.isin(ON_GPU)].reset_index(names="row").merge(calls, on=LINK)
    found = np.full(len(events), -1, np.int32)
    found[ran.row] = ran.call
    return found


def _step_of(events: pd.DataFrame, steps: pd.DataFrame) -> tuple[np.ndarray, int]:
    """The step of each row, -1 outside of all; and for how many GPU events their own time told."""
    found = np.full(len(events), -1, np.int32)
    for process, begun in events.groupby("process").start_ns if len(steps) else ():
        own = steps[steps.process == process]
        own = own if len(own) else steps
        last = np.searchsorted(own.start_ns, begun, "right") - 1
        inside = (last >= 0) & (begun < own.end_ns.to_numpy()[last])
        found[begun.index[inside]] = own.step.to_numpy()[last[inside]]
    on_gpu, launched = events.kind.isin(ON_GPU), events.call >= 0
    found[launched] = found[events.call[launched]]
    return found, int((on_gpu & ~launched & (found >= 0)).sum())


def _complete(events: pd.DataFrame, steps: pd.DataFrame, whole: bool) -> None:
    """Tell which steps have what they launched; those of a cut file may lack anything."""
    names = events.name.cat.categories
    launching = (events.kind == "call") & (events.correlation > 0)
    launching &= events.name.isin(names[names.str.contains(LAUNCHES)])
    for column, rows in (("launches", launching),
                         ("matched", launching & events.index.isin(events.call))):  # fmt: skip
        counts = events.step[rows].value_counts()
        steps[column] = steps.step.map(counts).fillna(0).astype(int)
    lacking = steps.launches - steps.matched
    ran = steps.step.isin(events.step[events.kind.isin(ON_GPU)])
    steps["complete"] = whole & ran & (lacking <= steps.launches / 100)


def integers(values: Sequence[Any], missing: int = -1) -> np.ndarray:
    """An array of integers, with `missing` for what is none."""
    try:
        return np.array(values, np.int64)
    except (TypeError, ValueError, OverflowError):
        good = (v if type(v) is int and abs(v) < 1 << 62 else missing for v in values)
        return np.fromiter(good, np.int64)


# Times -------------------------------------------------------------------------------------------


class Lanes:
    """One time axis, cut at every begin and end of some events; all in integers."""

    def __init__(self, events: pd.DataFrame) -> None:
        self.edges = np.unique(events[TIMES].to_numpy())
        self.lengths = np.diff(self.edges)

    def at(self, events: pd.DataFrame) -> np.ndarray:
        """Tell for each piece between two cuts whether any of these events is there."""
        begun, over = (
            np.searchsorted(np.sort(events[name].to_numpy()), self.edges[:-1], "right")
            for name in TIMES
        )
        return np.asarray(begun > over)

    def within(self, events: pd.DataFrame, pieces: np.ndarray) -> np.ndarray:
        """How much of each event pieces cover."""
        until = np.concatenate([[0], np.cumsum(self.lengths * pieces)])
        start, end = (until[np.searchsorted(self.edges, events[name])] for name in TIMES)
        return np.asarray(end - start)


def union(events: pd.DataFrame, by: str) -> pd.DataFrame:
    """The times at which any event of a group runs, as intervals apart: `by`, and ``ns`` each."""
    rows = events[[by, *TIMES]].dropna().sort_values([by, "start_ns"], ignore_index=True)
    until = rows.groupby(by).end_ns.cummax().groupby(rows[by]).shift(fill_value=MISSING)
    number = (rows.start_ns > until).cumsum()
    found = rows.groupby(number).agg({by: "first", "start_ns": "min", "end_ns": "max"})
    return found.assign(ns=found.end_ns - found.start_ns)


def in_ms(table: pd.DataFrame) -> pd.DataFrame:
    """A table with all its ns in ms, to be read by people."""
    names = {name: name[:-2] + "ms" for name in table if name.endswith("_ns")}
    names |= {"ns": "time_ms"} if "ns" in table else {}
    times = {name: table[name].astype("Float64") / 1e6 for name in names}
    return table.assign(**times).rename(columns=names)


def named(trace: Trace, device: int | None) -> dict[str, Any]:
    """What tells a row of a table apart: file, rank, device."""
    return {"file": trace.facts["file"], "rank": trace.facts["rank"], "device": device}


def rows_of(traces: Iterable[Trace]) -> Iterator[tuple[Trace, dict[str, Any], pd.DataFrame]]:
    """Each device of each trace: the trace, what names it, and the events on it."""
    for trace in traces:
        for device, events in trace.devices():
            yield trace, named(trace, device), events
