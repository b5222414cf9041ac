"""Engines side by side, at the same work on the same machine.

A *bench* holds the full-scale records of one machine class, number of ranks and workload. Within
it engines are compared with each other, with `resident` and with the limit; the baseline's figures
stand beside as quoted numbers and enter no computation of ours.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .answers import (
    Record,
    budget,
    clean_budget,
    engine_label,
    engine_name,
    extrapolation,
    get,
    gpu_state,
    is_full_scale,
    iterations,
    job_name,
    latents,
    peak_memory,
    prefetch,
    ranks,
    sampled,
    sort_key,
    steady_seconds,
    step_seconds,
)
from .local import commit
from .record import EARLIER
from .tables import (
    Cell,
    Column,
    Kind,
    counted,
    gigabytes,
    html_table,
    markdown,
    overhead,
    seconds,
    significant,
    tick,
)
from .verdicts import (
    NEW,
    OLD,
    between_runs,
    claimed_from,
    comparable,
    comparable_groups,
    fact,
    quoted,
    runs_differ,
    steps_apart,
)


@dataclass(frozen=True)
class Bench:
    """Comparable full-scale records: of one machine class, ranks, software and workload.

    Attributes
    ----------
    records
        The latest run of each job.
    earlier
        Their earlier runs.
    """

    records: tuple[Record, ...]
    earlier: tuple[Record, ...] = ()

    @property
    def machine(self) -> str:
        return str(get(self.records[0], "machine", "class"))

    @property
    def work(self) -> str:
        """What all of them ran: "832×480, 81 frames, 1 rank"."""
        first = self.records[0]
        width, height = get(first, "model", "width"), get(first, "model", "height")
        frames = counted(get(first, "model", "num_frames"), "frame")
        parts = [f"{width}×{height}", frames, counted(ranks(first), "rank")]
        parts += ["one branch"] * (not get(first, "job", "cfg"))
        parts += ["compiled"] * bool(get(first, "job", "compile"))
        parts += [f"a sample of {sampled(first)}"] * bool(sampled(first))
        return ", ".join(parts)

    def of(self, engine: str, ahead: int | None = None) -> Record | None:
        """The latest record of an engine, of `ahead` prefetched layers if it prefetches."""
        if engine == NEW and ahead is None:
            ahead = int(fact("s9.2.prefetch.base"))
        fit = [r for r in self.records if engine_name(r) == engine and ahead in (None, prefetch(r))]
        return max(fit, key=lambda r: str(r.get("started_at")), default=None)

    def resident_of(self, record: Record) -> Record | None:
        """The run of `resident` to hold a record against: on the same boards, else the latest."""
        latest = self.of("resident")
        runs = [latest, *(r for r in reversed(self.earlier) if engine_name(r) == "resident")]
        return next((run for run in runs if run and same_boards(run, record)), latest)


def same_boards(one: Record, two: Record) -> bool:
    """Say whether two runs are known to be of the same GPUs."""
    mine, theirs = gpu_state(one), gpu_state(two)
    return mine is not None and theirs is not None and set(mine.boards) == set(theirs.boards)


def benches(records: Sequence[Record], earlier: Sequence[Record] = ()) -> list[Bench]:
    """Return the full-scale records with a clean iteration in comparable sets, by machine."""
    full = [r for r in records if is_full_scale(r) and iterations(r, "clean")]
    before = [r for r in earlier if is_full_scale(r) and iterations(r, "clean")]
    found = []
    for group in comparable_groups(full):
        for size in sorted({ranks(r) for r in group}):
            here = sorted((r for r in group if ranks(r) == size), key=sort_key)
            past = [r for r in before if comparable(r, here[0]) and ranks(r) == size]
            found.append(Bench(tuple(here), tuple(past)))
    return sorted(found, key=lambda bench: (bench.machine, bench.work))


def by_machine(
    records: Sequence[Record], earlier: Sequence[Record] = ()
) -> dict[str, list[Bench | None]]:
    """Return the benches of each machine; one without a machine and records where there is none."""
    found: dict[str, list[Bench | None]] = {}
    for bench in benches(records, earlier):
        found.setdefault(markdown(bench.machine), []).append(bench)
    return found or {"No machine yet": [None]}


# Engines side by side ----------------------------------------------------------------------------


def moved_per_step(record: Record, over_ranks: Callable[[list[int]], int] = max) -> float | None:
    """Return the bytes that the busiest rank copies to its device in a steady step, the median.

    With `sum` as `over_ranks` those of all ranks. None where the record does not have them step by
    step.
    """
    samples = []
    for iteration in iterations(record, "clean"):
        steady = steady_seconds(record, iteration)
        steps = [step for step in iteration["steps"] if step["index"] in steady]
        samples += [over_ranks(step["h2d_bytes"]) for step in steps if step.get("h2d_bytes")]
    return statistics.median(samples) if samples else None


def limit(record: Record, resident: Record | None) -> float | None:
    """Return the seconds that bound a steady step of an engine with these bytes.

    The larger of `resident`'s step and the bytes over the link's measured bandwidth, pinned, with
    all ranks copying at once. None where any of the three was not measured.
    """
    moved, rate = moved_per_step(record), get(record, "machine", "link", "h2d_pinned_together_gb_s")
    compute = clean_budget(resident).steady.median if resident else None
    if moved is None or not rate or compute is None:
        return None
    return max(compute, moved / (rate * 1e9))


def steps_table(bench: Bench) -> str:
    """Return each engine's steady step beside `resident` and the limit, and its bits, as HTML."""
    rows: list[dict[str, object]] = []
    for record in bench.records:
        resident = bench.resident_of(record)
        reference = clean_budget(resident).steady.median if resident else None
        steady, bound = clean_budget(record).steady, limit(record, resident)
        row: dict[str, object] = {
            "engine": engine_label(record),
            "step": Cell(steady.median, text=steady.text("s")),
            "limit": None if bound is None else Cell(bound, text=seconds(bound), kind="derived"),
        }
        for key, other in (("resident", reference), ("over", bound)):
            if steady.median is not None and other:
                ratio = steady.median / other
                said = _same(record, resident)
                row[key] = Cell(ratio, text=f"{significant(ratio, 4)} ×", kind="derived", note=said)
        if resident and record is not resident and latents(record):
            row["bits"] = tick(set(latents(record)) == set(latents(resident)))
        rows.append(row)
    return html_table(
        rows,
        [
            Column("engine", "engine", numeric=False),
            Column("step", "steady step, median [95 % interval]"),
            Column("resident", "to resident"),
            Column("limit", "limit"),
            Column("over", "to the limit"),
            Column("bits", "bits of resident", numeric=False),
        ],
        caption=f"Steady steps: {bench.machine}; {bench.work}",
        note="A steady step is neither first nor switch. The limit is the larger of resident's "
        "step and the bytes per step over the link's pinned bandwidth as this record measured it. "
        "Resident is its run on the same GPU, where the row says so, and else its latest run. "
        "Below 1: computing or the link was faster here than what the limit was taken from.",
    )


def _same(record: Record, resident: Record | None) -> str:
    """Say that `resident` ran on the GPUs of another record, where it is known to have."""
    if resident is None or record is resident or not same_boards(record, resident):
        return ""
    return "same GPU" if ranks(record) == 1 else "same GPUs"


def costs_table(bench: Bench) -> str:
    """Return what else each engine takes: switch, all steps, bytes and memory, as HTML."""
    rows: list[dict[str, object]] = []
    for record in bench.records:
        spent, peak, moved = clean_budget(record), peak_memory(record), moved_per_step(record)
        kind: Kind | None = "derived" if spent.left_out else None
        cold, planning = get(record, "cold_start_s"), get(record, "engine", "plan", "planning_s")
        aside = f", {seconds(planning)} for the plan" if planning else ""
        state = gpu_state(record)
        row: dict[str, object] = {
            "engine": engine_label(record),
            "clock": None if state is None else Cell(state.sm_mhz, text=state.text),
            "cold": None if cold is None else Cell(cold, text=seconds(cold) + aside),
            "first": seconds(spent.first),
            "switch": None if spent.switch is None else seconds(spent.switch),
            "all": Cell(spent.denoise, text=seconds(spent.denoise), kind=kind),
            "moved": None if moved is None else Cell(moved, text=gigabytes(moved)),
            "job": job_name(record),
        }
        for key, name in (("allocated_bytes", "peak"), ("pinned_bytes", "pinned")):
            row[name] = None if peak[key] is None else Cell(peak[key], text=gigabytes(peak[key]))
        rows.append(row)
    return html_table(
        rows,
        [
            Column("engine", "engine", numeric=False),
            Column("cold", "cold start"),
            Column("first", "first step"),
            Column("switch", "switch step"),
            Column("all", "all steps"),
            Column("moved", "to the device per step"),
            Column("peak", "peak allocated"),
            Column("pinned", "peak pinned"),
            Column("clock", "GPU under load: SM clock, power, temperature"),
            Column("job", "job", numeric=False),
        ],
        caption=f"What else they take: {bench.machine}; {bench.work}",
        note="Medians over clean iterations, but for the cold start: from loading weights to the "
        f"end of the very first step. {extrapolations(bench.records)}".rstrip(),
    )


def runs_tables(bench: Bench) -> list[str]:
    """Return what a job gave each time that it was measured, as HTML; [] where once was all."""
    again = set(map(job_name, bench.earlier)) & set(map(job_name, bench.records))
    runs = [r for r in (*bench.earlier, *bench.records) if job_name(r) in again]
    rows: list[dict[str, object]] = []
    for record in sorted(runs, key=lambda r: (job_name(r), str(r["started_at"]))):
        steady, state = clean_budget(record).steady, gpu_state(record)
        row: dict[str, object] = {
            "job": job_name(record),
            "step": Cell(steady.median, text=steady.text("s")),
            "clock": None if state is None else Cell(state.sm_mhz, text=state.text),
            "board": None if state is None else " ".join(state.boards),
            "when": record["started_at"].partition("+")[0].replace("T", " "),
            "commit": commit(record["software"]) or "unknown",
        }
        rows.append(row)
    if not rows:
        return []
    columns = [
        Column("job", "job", numeric=False),
        Column("step", "steady step", "median [95 % interval]"),
        Column("clock", "GPU under load", "SM clock, power, temperature"),
        Column("board", "GPU", numeric=False),
        Column("when", "started, UTC", numeric=False),
        Column("commit", "commit", numeric=False),
    ]
    medians = {
        name: [clean_budget(r).steady.median or 0 for r in runs if job_name(r) == name]
        for name in again
    }
    spread = max(max(those) / min(those) - 1 for those in medians.values() if min(those))
    note = (
        f"The medians of one job's runs lie up to {overhead(spread).lstrip('+')} apart. The last "
        f"run of each job is the one that other tables show; of the earlier ones, which lie below "
        f"{EARLIER}/, they use resident's, where it ran on the same GPU."
    )
    title = f"The same job, measured again: {bench.machine}; {bench.work}"
    return [html_table(rows, columns, caption=title, note=note)]


def in_short(bench: Bench) -> str:
    """Return the bench in a sentence, as Markdown: each engine's steady step against resident's."""
    latest = bench.of("resident")
    parts = [f"resident {clean_budget(latest).steady.text('s')} per step"] if latest else []
    least: list[float] = []
    for record in bench.records:
        steady, resident = clean_budget(record).steady, bench.resident_of(record)
        reference = clean_budget(resident).steady if resident else None
        if record is latest or steady.median is None:
            continue
        if resident and reference and reference.median:
            ratio, same = steady.median / reference.median - 1, _same(record, resident)
            if same and resident is not latest:
                same = f"of {seconds(reference.median)} on the {same}"
            parts.append(f"{engine_label(record)}: {overhead(ratio)}{same and f' ({same})'}")
            least.append(between_runs(resident, record))
        else:
            parts.append(f"{engine_label(record)}: {steady.text('s')} per step")
    said = [f"{markdown(bench.machine)}; {bench.work}: {'; '.join(parts)}."]
    if least:
        said.append(f"{claimed_from(max(least))} between runs.")
    if any(map(bench.of, OLD)):
        said.append(which_is_old(bench).partition(" (")[0].rstrip(".") + ".")
    return " ".join(said)


def fsdp_alone(bench: Bench) -> list[str]:
    """Say in a sentence what `fsdp` does not hide at one rank; [] where that is not known."""
    fsdp = bench.of("fsdp")
    resident = bench.resident_of(fsdp) if fsdp else None
    if fsdp is None or resident is None or ranks(fsdp) > 1:
        return []
    moved, rate = moved_per_step(fsdp), get(fsdp, "machine", "link", "h2d_pinned_together_gb_s")
    slow, quick = clean_budget(fsdp).steady.median, clean_budget(resident).steady.median
    if not (moved and rate and slow and quick):
        return []
    longer = "longer" if slow > quick else "shorter"
    return [
        "At one rank FSDP2 (torch 2.11 to 2.13) copies on the stream that computes: "
        f"{gigabytes(moved)} at the link's {significant(rate, 3)} GB/s take "
        f"{seconds(moved / (rate * 1e9))}, and fsdp's step is {seconds(abs(slow - quick))} "
        f"{longer} than resident's. {runs_differ(fsdp, resident)}"
    ]


def extrapolations(records: Sequence[Record | None]) -> str:
    """Return how sums over the schedule were extrapolated, where any were."""
    return next((said for r in records if r and (said := extrapolation(r))), "")


def samples_table(records: Sequence[Record]) -> str:
    """Return what a sample of the steps tells of a schedule that ran whole, as HTML.

    Of each full-size record of a whole schedule that has a record of a sample beside it, alike in
    all else: the sum over its steps, what those of them that the sample has extrapolate to, and
    what the sampled record extrapolates to.
    """
    clean = [r for r in records if is_full_scale(r) and iterations(r, "clean")]
    rows: list[dict[str, object]] = []
    for whole, some in itertools.product(clean, clean):
        if sampled(whole) or not sampled(some) or engine_label(whole) != engine_label(some):
            continue
        if ranks(whole) != ranks(some):
            continue
        unsampled = some["job"] | {"sampled_steps": whole["job"]["sampled_steps"]}
        if not comparable(whole, {**some, "job": unsampled}):
            continue
        all_of_it, elsewhere = iterations(whole, "clean")[0], iterations(some, "clean")[0]
        chosen = step_seconds(elsewhere)
        steps = [step for step in all_of_it["steps"] if step["index"] in chosen]
        measured = budget(whole, all_of_it).denoise
        row: dict[str, object] = {
            "machine": get(whole, "machine", "class"),
            "engine": engine_label(whole),
            "whole": Cell(measured, text=seconds(measured)),
            "n": Cell(len(chosen), text=counted(len(chosen), "step")),
            "jobs": f"{job_name(whole)}; {job_name(some)}",
        }
        for key, found in (
            ("same", budget(whole, {**all_of_it, "steps": steps})),
            ("other", budget(some, elsewhere)),
        ):
            share = found.denoise / measured - 1
            said = f"{seconds(found.denoise)} ({overhead(share)})"
            row[key] = Cell(found.denoise, text=said, kind="derived")
        rows.append(row)
    columns = [
        Column("machine", "machine", numeric=False),
        Column("engine", "engine", numeric=False),
        Column("whole", "all steps"),
        Column("n", "sample"),
        Column("same", "of the same run"),
        Column("other", "of a sampled run"),
        Column("jobs", "records", numeric=False),
    ]
    caption = "What a sample of the steps tells of all"
    note = (
        "Sums over the schedule of the first clean iteration, n = 1. The same run's sample is those"
        " of its steps that the sampled run has, extrapolated as everywhere. The sampled run's sum"
        " may differ by its clocks too, and by the first step where only one had a warm-up."
    )
    return html_table(rows, columns, caption=caption, note=note)


# Which engine is the baseline's "old offload"? ---------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """How an engine shows itself in times and memory.

    Attributes
    ----------
    steady
        Of the steady step, over layerwise's, less 1.
    spike
        Of the switch step, over the engine's own steady step, less 1.
    memory
        Peak allocated memory above layerwise's, in experts.
    """

    steady: float
    spike: float
    memory: float


def baseline_signatures(expert_bytes: float) -> tuple[Signature, Signature]:
    """Return the signatures of the baseline's old and of its new offload, from its figures."""

    def of(side: str) -> Signature:
        steady, new = fact(f"s3.3.steady.{side}"), fact("s3.3.steady.new")
        peak = fact(f"s3.2.peak.{side}") - fact("s3.2.peak.new")
        spike = fact(f"s3.3.switch.{side}") / steady - 1
        return Signature(steady / new - 1, spike, peak * 1e9 / expert_bytes)

    return of("old"), of("new")


def signature(record: Record, new: Record) -> Signature | None:
    """Return an engine's signature beside that of `new`; None where a part was not measured."""
    mine, theirs = clean_budget(record), clean_budget(new)
    peaks = [peak_memory(r)["allocated_bytes"] for r in (record, new)]
    size = get(record, "model", "expert_bytes")
    if not (mine.steady.median and theirs.steady.median and mine.switch and size):
        return None
    if peaks[0] is None or peaks[1] is None:
        return None
    return Signature(
        mine.steady.median / theirs.steady.median - 1,
        mine.switch / mine.steady.median - 1,
        (peaks[0] - peaks[1]) / size,
    )


def _like_old(record: Record, new: Record, found: Signature) -> dict[str, bool]:
    """Say of each part of the signature whether it is as the baseline's old offload has it."""
    old, layerwise = baseline_signatures(get(record, "model", "expert_bytes"))

    def nearer(value: float, one: float, other: float) -> bool:
        return abs(value - one) < abs(value - other)

    return {
        # How much faster depends on the machine; that the old one was not slower does not.
        "steady": steps_apart(record, new) <= 0,
        "spike": nearer(found.spike, old.spike, layerwise.spike),
        "memory": nearer(found.memory, old.memory, layerwise.memory),
    }


def which_is_old(bench: Bench) -> str:
    """Return which engines behave as the baseline's old offload did, as a sentence in Markdown."""
    new = bench.of(NEW)
    judged = {
        engine_label(record): _like_old(record, new, found)
        for record in bench.records
        if new and engine_name(record) != NEW and (found := signature(record, new))
    }
    if not set(OLD) & set(judged):
        return (
            "Which engine behaves as the baseline's old offload did cannot be told yet: neither "
            f"{' nor '.join(OLD)} was measured beside {NEW}."
        )
    alike = [name for name, likeness in judged.items() if all(likeness.values())]
    words = {"steady": "steady step", "spike": "switch step", "memory": "peak memory"}
    unlike = [
        f"{name} differs in {' and '.join(words[k] for k, same in likeness.items() if not same)}"
        for name, likeness in judged.items()
        if name not in alike
    ]
    first = f"**{' and '.join(alike)}**" if alike else "No engine"
    rest = f" ({'; '.join(unlike)})" if unlike else ""
    return f"{first} behaves here as the baseline's old offload did{rest}."


def signatures_table(bench: Bench) -> str:
    """Return the engines' signatures beside those of the baseline's two offloads, as HTML."""
    new, parts = bench.of(NEW), ("steady", "spike", "memory")
    size = get(bench.records[0], "model", "expert_bytes", default=0)
    rows: list[dict[str, object]] = []
    if new and size:
        for side, theirs in zip(("old", "new"), baseline_signatures(size), strict=True):
            origin = quoted(f"s3.3.steady.{side}").title
            cells = {
                key: Cell(
                    getattr(theirs, key), text=_part(theirs, key), kind="quoted", title=origin
                )
                for key in parts
            }
            rows.append({"engine": f"the baseline's {side} offload", **cells})
    for record in bench.records:
        found = signature(record, new) if new else None
        if new is None or found is None:
            continue
        like = {} if engine_name(record) == NEW else _like_old(record, new, found)
        row: dict[str, object] = {"engine": engine_label(record)}
        for key in parts:
            mark = {True: " ✓", False: " ✗", None: ""}[like.get(key)]
            row[key] = Cell(getattr(found, key), text=_part(found, key) + mark, kind="derived")
        rows.append(row)
    return html_table(
        rows,
        [
            Column("engine", "engine", numeric=False),
            Column("steady", "steady step against layerwise"),
            Column("spike", "switch step against steady step"),
            Column("memory", "peak memory above layerwise's"),
        ],
        caption=f"Who behaves as the old offload did: {bench.machine}; {bench.work}",
        note="✓ as the old one: not found slower than layerwise in the steady state; at the switch "
        "and in memory nearer to the old one's figure than to the new one's. A difference that is "
        "less than is claimed between two runs counts as none. The baseline's rows are computed "
        "from the figures it states.",
        kind=None,
    )


def _part(of: Signature, key: str) -> str:
    value = getattr(of, key)
    if key == "memory":
        return f"{significant(value, 3)} experts"
    return overhead(value)
