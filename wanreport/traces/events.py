"""One form for any trace: `events`, a row for each thing that a GPU or a host thread did.

    kind         kernel, collective, copy, memset: on a GPU; call: of the CUDA or HIP API, on the
                 host; sync: a wait, as the GPU saw it; step; memory: the allocator's
    start_ns, end_ns, ns    integers; an event ends before end_ns
    device, stream, process, thread    -1 where it has none
    bytes        of a copy, a memset, what a collective sends or (signed) an allocation
    direction, memory   of a copy: HtoD, DtoH, DtoD, PtoP, ...; the host's side of it: pinned,
                 pageable, managed or unknown, and "" between devices
    call         the row of the API call that launched a GPU event, -1 if it is not in the file
    step         in which that call began; where there is none, in which the event itself did

Missing is never 0: what a file lacks is said by its `quality`, and figures of it are missing too.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

KINDS = ("kernel", "collective", "copy", "memset", "call", "sync", "step", "memory")
ON_GPU, KIND = KINDS[:4], pd.CategoricalDtype(KINDS)
MISSING = -(1 << 63)
MOST_EVENTS = 4_000_000  # about 0.5 GB in memory; a profile of a few steps has a tenth of it
MOST_NAMES, LONGEST_NAME = 50_000, 300

COPIES = re.compile(r"(?:Memcpy|Copy) ?(\w+?)to(\w+)(?: \((.+?) -> (.+?)\))?", re.IGNORECASE)
STEPS = re.compile(r"(?i)(?:(?:profiler|denois\w*|inference)?[ _]?step|iteration)[ _#:]*(\d{1,9})")
LAUNCHES = r"Launch(?!HostFunc)|Memcpy"  # onto a GPU; not Memset: one of nothing puts nothing there

TIMES, LINK = ["start_ns", "end_ns"], ["process", "correlation"]
NUMBERS = ["device", "stream", "process", "thread", *TIMES, "bytes", "correlation"]
COLUMNS: dict[str, Any] = {"kind": np.int8, "name": np.int32, **dict.fromkeys(NUMBERS, np.int64)}


class Trace(NamedTuple):
    """One file.

    `steps` are the host's: ``step``, ``name``, ``process``, times, how many GPU events they
    ``launched``, of which so many are ``lost``, and if all but 1 % are there: ``complete``.
    `quality` is what to know first: ``check``, ``count``, ``what``; ``bad`` where figures lack
    something. `facts` are ``file``, ``format``, ``size_bytes``, ``rank``, ``events`` (in the file),
    ``gpus`` (names by device), ``finished`` (whether its end is there; None if it does not say).
    """

    events: pd.DataFrame
    steps: pd.DataFrame
    quality: pd.DataFrame
    facts: dict[str, Any]


class Rows:
    """Batches of columns, the names that they refer to by number, and notes."""

    def __init__(self) -> None:
        self.columns = {name: bytearray() for name in COLUMNS}
        self.names: dict[str, int] = {}
        self.notes: list[tuple[str, int, bool, str]] = []
        self.size = self.odd = 0

    def add(self, name: Sequence[str], **columns: Any) -> None:
        """Take a batch, without what ends before it begins; too many names share one."""
        numbers, names = dict[str, int](), self.names
        for each in dict.fromkeys(name):  # in their order: a set has none
            short = each[:LONGEST_NAME].encode("utf-8", "replace").decode()
            short = short if short in names or len(names) < MOST_NAMES else "(other)"
            numbers[each] = names.setdefault(short, len(names))
        columns["name"] = np.array([numbers[each] for each in name])
        start, end = columns["start_ns"], columns["end_ns"]
        good = np.asarray((start > MISSING) & (end >= start))
        for column, kind in COLUMNS.items():
            values = np.broadcast_to(np.asarray(columns[column], kind), good.shape)
            self.columns[column] += values[good].tobytes()
        self.size += int(good.sum())
        self.odd += int((~good).sum())

    def note(self, check: str, count: Any, what: str, bad: object = True) -> None:
        """Keep what is to know about the file, if there is any of it."""
        if count:
            self.notes.append((check, int(count), bool(bad), what))

    def trace(self, file: Path, whole: bool, shift: int = 0, **facts: Any) -> Trace:
        """Make the trace; `whole`: the file has all that ran on a GPU; `shift`: its time 0."""
        note = self.note
        events = pd.DataFrame({name: np.frombuffer(self.columns[name], kind)
                               for name, kind in COLUMNS.items()}, copy=False)  # fmt: skip
        events["kind"] = pd.Categorical.from_codes(events.kind, dtype=KIND)
        events[TIMES] += shift
        events["ns"] = events.end_ns - events.start_ns
        events["name"] = pd.Categorical.from_codes(events.name, [*self.names] or [""])
        events.loc[(events.kind == "kernel") & like(events, "nccl|rccl"), "kind"] = "collective"
        parts = pd.Series(events.name.cat.categories, dtype="string").str.extract(COPIES)
        source, target = (parts[end].str[0].str.upper() for end in (0, 1))
        way = (source + "to" + target).fillna("unknown")
        side = parts[2].where(source == "H", parts[3]).str.lower().str.removesuffix(" static")
        side = side.where(side.isin(["pinned", "pageable", "managed"]), "unknown")
        side = side.where(way.str.contains("H|unknown"), "")
        for column, told in {"direction": way, "memory": side}.items():
            known = told.astype("category").iloc[events.name.cat.codes].set_axis(events.index)
            events[column] = known.where(events.kind == "copy")
        nbytes = events.bytes.to_numpy()
        events["bytes"] = pd.arrays.IntegerArray(nbytes, nbytes == MISSING)
        _link(events)
        steps = _steps(events, whole)
        left = steps.step[~steps.complete]
        # Only the columns that are looked at: a copy of all would be the peak of memory.
        ran = events.loc[events.kind.isin(ON_GPU), ["call", "step"]]
        copies, calls = events[events.kind == "copy"], events.loc[events.kind == "call", LINK]
        note("times", self.odd, "left out, as they have no times or wrong ones")
        note("no GPU events", ran.empty, "which is not to say that there were no copies")
        note("incomplete steps", len(left), f"{', '.join(map(str, left))} have no figures")
        launches = f"of {steps.launched.sum():,} in steps"
        note("launches without GPU event", steps.lost.sum(), launches, len(left))
        note("copies without bytes", copies.bytes.isna().sum(), "left out of bytes and rates")
        note("copies of no time", (copies.ns == 0).sum(), "left out of rates", bad=False)
        note("copies without call", (copies.call < 0).sum(), "may block or not", False)
        note("steps by time", ((ran.call < 0) & ran.step.notna()).sum(),
             "GPU events without call count for the step they ran in", bad=False)  # fmt: skip
        note("no calls", calls.empty, "so what blocks, waits or allocates is not known")
        note("correlations used twice", calls[calls.correlation > 0].duplicated(LINK).sum(),
             "the first call counts as the one that launched", bad=False)  # fmt: skip
        quality = pd.DataFrame(self.notes, columns=["check", "count", "bad", "what"])
        facts |= {"file": str(file), "size_bytes": file.stat().st_size}
        return Trace(events, steps, quality.sort_values("bad", ascending=False), facts)


def like(events: pd.DataFrame, pattern: str) -> np.ndarray:
    """Tell which events have a pattern in their name."""
    names = events.name.cat
    return np.asarray(names.categories.str.contains(pattern, case=False)[names.codes])


def _link(events: pd.DataFrame) -> None:
    """Set for each GPU event the row of the first call with its correlation; -1 for all others."""
    linked, launching = events.correlation > 0, events.kind == "call"
    begun = events.start_ns[linked & launching].sort_values(kind="stable")
    calls = events.loc[begun.index, LINK].drop_duplicates().reset_index(names="call")
    ran = events.loc[linked & events.kind.isin(ON_GPU), LINK].reset_index(names="row")
    ran = ran.merge(calls, on=LINK)
    events["call"] = np.int32(-1)
    events.loc[ran.row, "call"] = ran.call.to_numpy(np.int32)


def _steps(events: pd.DataFrame, whole: bool) -> pd.DataFrame:
    """Set each event's step; returns the steps."""
    steps = events.loc[events.kind == "step", ["name", "process", *TIMES]].astype({"name": str})
    profilers = steps.name.str.startswith("ProfilerStep")
    steps = steps[profilers | ~profilers.any()].sort_values("start_ns", ignore_index=True)
    steps.insert(0, "step", steps.name.str.extract(r"(\d+)$")[0].astype("int32"))
    if steps.duplicated(["process", "step"]).any():
        steps["step"] = steps.groupby("process").cumcount().astype("int32")
    found = np.full(len(events), -1, np.int32)
    for process, begun in events.groupby("process").start_ns if len(steps) else ():
        own = steps[(steps.process == process) | ~(steps.process == process).any()]
        last = np.searchsorted(own.start_ns, begun, "right") - 1
        inside = (last >= 0) & (begun < own.end_ns.to_numpy()[last])
        found[begun.index[inside]] = own.step.to_numpy()[last[inside]]
    called = events.call >= 0
    found[called] = found[events.call[called]]
    events["step"] = pd.arrays.IntegerArray(found, found < 0)
    launches = events[(events.kind == "call") & (events.correlation > 0) & like(events, LAUNCHES)]
    alone = launches[~launches.index.isin(events.call)]
    for name, each in {"launched": launches, "lost": alone}.items():
        steps[name] = steps.step.map(each.step.value_counts()).fillna(0).astype(int)
    ran = steps.step.isin(events.step[events.kind.isin(ON_GPU)])
    return steps.assign(complete=whole & ran & (steps.lost <= steps.launched / 100))


class Lanes:
    """One time axis, cut at every begin and end of some events; all in integers."""

    def __init__(self, events: pd.DataFrame) -> None:
        self.edges = np.unique(events[TIMES].to_numpy())
        self.lengths = np.diff(self.edges)

    def at(self, events: pd.DataFrame) -> np.ndarray:
        """Tell for each piece between two cuts whether any of these events is there."""
        times, begins = (np.sort(events[name]) for name in TIMES), self.edges[:-1]
        begun, over = (np.searchsorted(each, begins, "right") for each in times)
        return np.asarray(begun > over)

    def ns(self, pieces: np.ndarray) -> int:
        """How long some pieces are together."""
        return int(self.lengths[pieces].sum())

    def within(self, events: pd.DataFrame, pieces: np.ndarray) -> np.ndarray:
        """How much of each event pieces cover."""
        until = np.concatenate([[0], np.cumsum(self.lengths * pieces)])
        start, end = (until[np.searchsorted(self.edges, events[name])] for name in TIMES)
        return np.asarray(end - start)


def in_ms(table: pd.DataFrame) -> pd.DataFrame:
    """A table with all its ns in ms, to be read by people."""
    names = {name: f"{name[:-2] or 'time_'}ms" for name in table if name.endswith("ns")}
    times = {name: table[name].astype("Float64") / 1e6 for name in names}
    return table.assign(**times).rename(columns=names)
