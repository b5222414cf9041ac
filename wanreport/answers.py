"""What one record says, as numbers; :mod:`wanreport.jobpage` puts them into tables and words.

The functions read a record (see :mod:`wanreport.record`), which may belong to a job that failed
early: whatever is missing gives None or an empty list, never an error.

A rehearsal (tiny sizes or a CPU) answers for the schedule, counters, bytes and bits only. Asking it
for time or memory raises :class:`NotAnswerable`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .local import project_root
from .notebook import Stop
from .record import REUSABLE, RecordError, find_earlier, find_records, is_rehearsal, record_path
from .tables import Estimate, counted, estimate, markdown

Record = Mapping[str, Any]

COUNTERS: dict[str, str] = {
    "h2d_copies": "copies to the device",
    "h2d_bytes": "bytes to the device",
    "d2h_copies": "copies to the host",
    "d2h_bytes": "bytes to the host",
    "allocations": "buffers allocated",
    "event_waits": "waits for an event",
    "stream_waits": "waits for a stream",
    "host_syncs": "host synchronisations",
    "unshards": "units gathered from all ranks",
}

STATUS_WORDS = {
    "ok": "finished",
    "failed": "failed",
    "oom": "ran out of memory",
    "timeout": "did not finish in time",
    "unsupported": "cannot run",
}

ITERATION_WORDS = {"warmup": "warm-up", "clean": "clean", "profiled": "profiled"}


class NotAnswerable(Exception):
    """The record at hand cannot answer the question; the message says why, in plain text."""


@contextmanager
def or_say_why() -> Iterator[None]:
    """Show the reason as a sentence of the page where the block raises :class:`NotAnswerable`."""
    try:
        yield
    except NotAnswerable as why:
        say(f"*Not shown.* {markdown(why)}")


def say(text: str) -> None:
    """Show Markdown as part of the page; the caller has escaped what came from outside."""
    from IPython.display import Markdown, display  # only a notebook shows anything

    display(Markdown(text))


# Reading a record --------------------------------------------------------------------------------


def get(record: Record, *path: str, default: Any = None) -> Any:
    """Return `record[path[0]][path[1]]…`, or `default` where any part is missing or None."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def load_records(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return the records below the folders, in a fixed order.

    A relative folder is one of the project, wherever the notebook runs. A missing folder holds no
    records. Of several records of one job on one machine class and scale the latest counts, of
    those that failed only where no other is.

    Raises
    ------
    Stop
        Naming every file that cannot be read.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in _read(find_records, directories):
        key = sort_key(record)
        if key not in found or _counts(record) >= _counts(found[key]):
            found[key] = record
    return [found[key] for key in sorted(found)]


def _counts(record: Record) -> tuple[bool, str]:
    return record["status"] in REUSABLE, str(record["started_at"])


def load_earlier(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return the runs of the full model that later ones took over from in :func:`load_records`.

    All that finished are there once, by machine class, scale, job name and when they were started.
    """

    def key(record: Record) -> tuple[object, ...]:
        return *sort_key(record), str(record["started_at"])

    latest = {key(record) for record in load_records(directories)}
    runs = [*_read(find_earlier, directories), *_read(find_records, directories)]
    found = {key(r): r for r in runs if r["status"] == "ok" and not is_rehearsal(r)}
    return [found[each] for each in sorted(found.keys() - latest)]


def _read(
    find: Callable[[Path], list[tuple[Path, dict[str, Any]]]], directories: Sequence[str | Path]
) -> list[dict[str, Any]]:
    try:
        return [record for folder in directories for _, record in find(project_root() / folder)]
    except RecordError as error:
        raise Stop(str(error)) from None


def sort_key(record: Record) -> tuple[str, str, str]:
    """Return what a record is filed under: machine class, scale and job name."""
    return (
        get(record, "machine", "slug", default=""),
        get(record, "job", "scale", default=""),
        job_name(record),
    )


def job_name(record: Record) -> str:
    """Return the name of the record's job."""
    return str(get(record, "job", "name", default="unnamed job"))


def each_job(
    records: Sequence[Record], read: Callable[[Record], object]
) -> list[tuple[str, Record]]:
    """Return the jobs by name, each with a record of it, in the order of the records.

    A job that reads the same on all its machines is there once. One that does not is there for
    each reading, and the name says on which machines.
    """
    jobs: dict[tuple[object, ...], list[tuple[object, list[Record]]]] = {}
    for record in records:
        job = get(record, "job", "scale"), ranks(record), engine_name(record), job_name(record)
        readings, mine = jobs.setdefault(job, []), read(record)
        same = next((those for reading, those in readings if reading == mine), None)
        if same is None:
            readings.append((mine, [record]))
        else:
            same.append(record)

    def where(those: Sequence[Record]) -> str:
        names = [str(get(r, "machine", "class", default="unknown machine")) for r in those]
        return " and ".join(names)

    return [
        (job_name(one[0]) if len(readings) == 1 else f"{job_name(one[0])} on {where(one)}", one[0])
        for readings in jobs.values()
        for _, one in readings
    ]


def file_name(record: Record) -> str:
    """Return the name of the record's file below a results folder: `MACHINE/JOB-HASH.json`."""
    slug = get(record, "machine", "slug", default="unknown")
    path = record_path(Path(), slug, job_name(record), get(record, "job_hash", default=""))
    return path.as_posix()


def engine_name(record: Record) -> str:
    """Return the engine that ran, or was to run."""
    return str(get(record, "engine", "name") or get(record, "job", "engine", default="unknown"))


def prefetch(record: Record) -> int | None:
    """Return how many layers `layerwise` keeps ahead; None where the engine does not prefetch."""
    if engine_name(record) != "layerwise":
        return None
    found = get(record, "engine", "prefetch") or get(record, "sglang", "prefetch_layers")
    return None if found is None else int(found)


def engine_label(record: Record) -> str:
    """Return the engine and its setting: "layerwise, prefetch 3", "stream, room for 30 GB"."""
    ahead, room = prefetch(record), get(record, "job", "vram_budget_gb")
    parts = [engine_name(record)]
    parts += [] if ahead is None else [f"prefetch {ahead}"]
    parts += [] if room is None else [f"room for {room:g} GB"]
    return ", ".join(parts)


def ranks(record: Record) -> int:
    """Return the number of ranks, which is the Ulysses degree."""
    return int(get(record, "job", "num_gpus", default=0))


def is_full_scale(record: Record) -> bool:
    """Say whether the record may answer for time, memory and overlap: A14B sizes on real GPUs."""
    return (
        not is_rehearsal(record)
        and get(record, "job", "scale") == "a14b"
        and get(record, "machine", "device") == "cuda"
    )


def full_scale_or_refuse(record: Record, what: str) -> None:
    """Raise NotAnswerable unless the record is a full-scale one; `what` begins the sentence."""
    if not is_full_scale(record):
        raise NotAnswerable(
            f"{what} of a rehearsal says nothing about the GPU and is not a result. "
            f"The raw samples are in the record {file_name(record)}."
        )


def iterations(record: Record, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the iterations that have steps, all or those of one kind."""
    return [
        iteration
        for iteration in get(record, "iterations", default=[])
        if iteration.get("steps") and kind in (None, iteration.get("kind"))
    ]


def iteration_names(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each iteration: its kind, numbered where the kind occurs twice."""
    kinds = [ITERATION_WORDS.get(str(it.get("kind")), str(it.get("kind"))) for it in found]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: i + 1].count(kind)}"
        for i, kind in enumerate(kinds)
    ]


def iterations_or_refuse(record: Record) -> list[dict[str, Any]]:
    """Return the iterations that ran; raise NotAnswerable where none did."""
    found = iterations(record)
    if not found:
        status = STATUS_WORDS.get(str(record.get("status")), "did not run")
        raise NotAnswerable(f"The job {status} before an iteration was complete.")
    return found


def step_seconds(iteration: Mapping[str, Any]) -> dict[int, float]:
    """Return the seconds of each step that ran, by its index: those of the slowest rank."""
    return {
        int(step["index"]): max(step["seconds"])
        for step in iteration["steps"]
        if step.get("seconds")
    }


def sampled(record: Record) -> str:
    """Return "8 of 27 steps" where a job ran a sample of its schedule, else ""."""
    steps, ran = len(get(record, "schedule", "timesteps", default=[])), steps_run(record)
    return f"{ran} of {counted(steps, 'step')}" if ran < steps else ""


def steps_run(record: Record) -> int:
    """Return how many steps the longest iterations ran."""
    return max((len(iteration["steps"]) for iteration in iterations(record)), default=0)


def switch_step(record: Record) -> int | None:
    """Return the index of the first step that uses the low-noise expert."""
    found = get(record, "schedule", "switch_step")
    return None if found is None else int(found)


# Time (full scale only) --------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """Where an iteration's time went, in seconds; `steady` are the steps but first and switch.

    `left_out` steps did not run. Each is counted as the mean of the steady ones in
    `steady_total`, and so in `denoise` and `total`.
    """

    first: float
    switch: float | None
    steady: Estimate
    left_out: int
    steady_total: float
    decode: float | None
    denoise: float
    total: float


def budget(record: Record, iteration: Mapping[str, Any]) -> Budget:
    """Split an iteration's time as the baseline does: first step, switch step, others, decode."""
    full_scale_or_refuse(record, "The time")
    times = step_seconds(iteration)
    at = switch_step(record)
    steady = list(steady_seconds(record, iteration).values())
    left_out = len(get(record, "schedule", "timesteps", default=[])) - len(times)
    if left_out and not steady:
        raise NotAnswerable("An iteration with no steady step tells nothing of the whole schedule.")
    steady_total = sum(steady) + (statistics.fmean(steady) * left_out if left_out else 0.0)
    switch = times.get(at) if at else None
    decode = iteration.get("decode_s")
    denoise = times[0] + (switch or 0.0) + steady_total
    total = iteration.get("total_s")
    return Budget(
        first=times[0],
        switch=switch,
        steady=estimate(steady),
        left_out=left_out,
        steady_total=steady_total,
        decode=decode,
        denoise=denoise,
        total=denoise + (decode or 0.0) if left_out or total is None else total,
    )


def budgets(record: Record) -> dict[str, Budget]:
    """Return the budget of each iteration that has one, by the iteration's name.

    The warm-up of a sampled schedule runs its first step and the switch only, and has none.
    """
    full_scale_or_refuse(record, "The time")
    found = iterations_or_refuse(record)
    each = {}
    for name, iteration in zip(iteration_names(found), found, strict=True):
        with contextlib.suppress(NotAnswerable):
            each[name] = budget(record, iteration)
    return each


def extrapolation(record: Record) -> str:
    """Return how sums over the schedule were extrapolated, as a sentence; "" if they were not."""
    ran = sampled(record)
    if not ran:
        return ""
    return (
        f"Only {ran} ran: sums over the schedule are extrapolated, each step that did not run "
        "counted as the mean of those that are neither first nor switch."
    )


def steady_seconds(record: Record, iteration: Mapping[str, Any]) -> dict[int, float]:
    """Return the seconds of the steps that are neither first nor switch, by their index."""
    full_scale_or_refuse(record, "The time")
    left_out = {0, switch_step(record)}
    return {i: s for i, s in step_seconds(iteration).items() if i not in left_out}


def clean_budget(record: Record) -> Budget:
    """Return the budget of the clean iterations: the medians over them where there are several."""
    full_scale_or_refuse(record, "The time")
    clean = iterations(record, "clean")
    if not clean:
        raise NotAnswerable(f"{job_name(record)} has no clean iteration, only warm-up or profiled.")
    each = [budget(record, iteration) for iteration in clean]
    steady = [s for iteration in clean for s in steady_seconds(record, iteration).values()]
    switches = [b.switch for b in each if b.switch is not None]
    decodes = [b.decode for b in each if b.decode is not None]
    return Budget(
        first=statistics.median(b.first for b in each),
        switch=statistics.median(switches) if switches else None,
        steady=estimate(steady),
        left_out=max(b.left_out for b in each),
        steady_total=statistics.median(b.steady_total for b in each),
        decode=statistics.median(decodes) if decodes else None,
        denoise=statistics.median(b.denoise for b in each),
        total=statistics.median(b.total for b in each),
    )


MEMORY_KEYS: dict[str, str] = {
    "allocated_bytes": "GPU, allocated",
    "reserved_bytes": "GPU, reserved",
    "pinned_bytes": "host, pinned",
    "host_rss_bytes": "host, resident set",
}


def peak_memory(record: Record) -> dict[str, int | None]:
    """Return the peaks in bytes over ranks and iterations, by the record's own keys."""
    full_scale_or_refuse(record, "The memory use")
    peaks: dict[str, int | None] = {}
    for key in MEMORY_KEYS:
        values = [
            rank[key]
            for iteration in iterations(record)
            for rank in iteration.get("memory") or []
            if rank and rank.get(key) is not None
        ]
        peaks[key] = max(values) if values else None
    return peaks


@dataclass(frozen=True)
class Gpu:
    """How the GPUs ran while they computed: medians over clean iterations, of the slowest rank.

    `boards` are the beginnings of hashes, which tell boards apart and name none.
    """

    boards: tuple[str, ...]
    sm_mhz: float
    power_w: float
    celsius: float

    @property
    def text(self) -> str:
        """In words: "1,605 MHz, 698 W, 66 °C"."""
        return f"{self.sm_mhz:,.0f} MHz, {self.power_w:,.0f} W, {self.celsius:.0f} °C"


def gpu_state(record: Record) -> Gpu | None:
    """Return how a record's GPUs ran; None where no sensors were read."""
    clean = [iteration.get("gpu") or [] for iteration in iterations(record, "clean")]
    return gpu_of(list(zip(*clean, strict=False)))


def gpu_of(by_rank: Sequence[Sequence[Mapping[str, Any] | None]]) -> Gpu | None:
    """Return how the GPUs ran by what each rank read, once or more; None where one did not."""
    known = [[one for one in read if one] for read in by_rank]
    if not known or [len(read) for read in known] != [len(read) for read in by_rank]:
        return None
    keys = ("sm_mhz", "power_w", "celsius")
    middle = [[statistics.median(one[key] for one in read) for key in keys] for read in known]
    return Gpu(tuple(read[0]["board"] for read in known), *min(middle))


# What moved, and bits (any scale) ----------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """One counter of one iteration: its value on each rank, and what the closed formula says."""

    iteration: str
    counter: str
    measured: tuple[int, ...]
    formula: tuple[int, ...] | None

    @property
    def agrees(self) -> bool | None:
        """Whether every rank equals the formula; None where the record has no formula."""
        return None if self.formula is None else self.measured == self.formula


def moved(record: Record) -> list[Moved]:
    """Return every counter of every iteration beside the closed formula, in the order they ran."""
    found = iterations_or_refuse(record)
    rows = []
    for name, iteration in zip(iteration_names(found), found, strict=True):
        counted_ranks = iteration.get("counters") or []
        expected = iteration.get("expected_counters") or []
        for counter in COUNTERS:
            if not counted_ranks or any(counter not in rank for rank in counted_ranks):
                continue
            has_formula = len(expected) == len(counted_ranks) and all(
                rank.get(counter) is not None for rank in expected
            )
            rows.append(
                Moved(
                    name,
                    counter,
                    tuple(rank[counter] for rank in counted_ranks),
                    tuple(rank[counter] for rank in expected) if has_formula else None,
                )
            )
    return rows


def counters_derived(record: Record) -> bool:
    """Say whether the engine's counters come from a formula because its copies are hidden."""
    return bool(get(record, "engine", "counters_derived", default=False))


def counters_agree(record: Record) -> bool | None:
    """Say whether every counter equals its closed formula; None where that was not counted."""
    if counters_derived(record) or not iterations(record):
        return None
    results = [row.agrees for row in moved(record)]
    return None if None in results or not results else all(results)


def latents(record: Record) -> list[str]:
    """Return the SHA-256 of the latents of each iteration that ran all it was to, in order.

    The warm-up of a sampled schedule runs fewer steps, and so ends elsewhere.
    """
    return [
        str(iteration["latents_sha256"])
        for iteration in iterations(record)
        if iteration.get("latents_sha256") and len(iteration["steps"]) == steps_run(record)
    ]


def repeats(record: Record) -> bool | None:
    """Say whether all iterations ended in the same bits; None where fewer than two did end."""
    found = latents(record)
    return len(set(found)) == 1 if len(found) > 1 else None


def difference(new: float, old: float) -> float:
    """Return the relative difference of two positive numbers: 0.1 where `new` is 10 % more."""
    return new / old - 1
