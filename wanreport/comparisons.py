"""Tables and answers over many records: the baseline's comparisons A and B, and the overviews.

The shapes of the tables are the baseline's own (its sections 3.2, 3.3 and 9.3); its figures stand
beside as quoted numbers. A cell without a record says "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import lanes
from .answers import (
    STATUS_WORDS,
    Budget,
    Record,
    clean_budget,
    counters_agree,
    counters_derived,
    difference,
    each_job,
    engine_name,
    get,
    is_full_scale,
    iterations,
    job_name,
    latents,
    peak_memory,
    prefetch,
    ranks,
    repeats,
    sampled,
    sort_key,
    steady_seconds,
    switch_step,
)
from .benches import (
    Bench,
    benches,
    costs_table,
    extrapolations,
    fsdp_alone,
    in_short,
    runs_tables,
    signatures_table,
    steps_table,
    which_is_old,
)
from .cost import layerwise_held
from .record import is_rehearsal
from .tables import (
    MINUS,
    Cell,
    Column,
    Kind,
    code,
    counted,
    estimate,
    gigabytes,
    html_table,
    markdown,
    overhead,
    plain,
    seconds,
    signed,
    significant,
    tick,
)
from .verdicts import (
    NEW,
    OLD,
    Verdict,
    baseline_facts,
    between_runs,
    choose,
    comparable_groups,
    fact,
    is_baseline_workload,
    last_counters,
    per_step,
    quoted,
    runs_differ,
    steps_apart,
    tally,
    workload,
)

Reading = Callable[[Record], float | None]


@dataclass(frozen=True)
class Comparison:
    """A question over two engines or settings: the answer as Markdown, and its tables as HTML."""

    answer: str
    tables: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A row of a comparison: its name, how a record answers it, its unit, the baseline's facts.

    A `whole` row is over all steps of the schedule, and so extrapolated where only some ran. A
    `derived` one is computed from the record's settings.
    """

    what: str
    read: Reading
    unit: str = "s"
    quoted: str = ""
    whole: bool = False
    derived: bool = False

    def of(self, record: Record | None) -> float | None:
        return self.read(record) if record else None

    def cell(self, record: Record | None) -> Cell:
        value = self.of(record)
        if record is None or value is None:
            return Cell(None, text="not measured")
        guessed = self.whole and sampled(record)
        text = f"{significant(value, 4)} {self.unit}"
        title = f"extrapolated from {sampled(record)}" if guessed else None
        return Cell(
            value, text=text, kind="derived" if guessed or self.derived else None, title=title
        )


# A: old against new ------------------------------------------------------------------------------


def compare_old_and_new(bench: Bench | None) -> Comparison:
    """Comparison A on one bench: the new engine against both readings of the old one.

    On a bench the engines' own tables come first, and those that compare are left out where none
    of the old ones ran and the work is not the baseline's; jobs that were measured again come last.
    Without a bench the tables hold the baseline's figures alone.
    """
    new = bench.of(NEW) if bench else None
    olds = {old: bench.of(old) if bench else None for old in OLD}
    where = f"{bench.machine}; {bench.work}" if bench else "no machine yet"
    tables = [_old_new_table(f"{caption}: {where}", rows, new, olds) for caption, rows in _SECTIONS]
    answer = _gap_answer(new, olds)
    if bench:
        own, beside = [steps_table(bench), costs_table(bench)], any(olds.values())
        beside = beside or is_baseline_workload(bench.records[0])
        tables = [*own, signatures_table(bench), *tables] if beside else own
        tables += runs_tables(bench)
        said = [answer] * beside + [*fsdp_alone(bench), which_is_old(bench)]
        answer = f"#### {bench.work}\n\n{' '.join(said)}"
    return Comparison(answer, tuple(tables))


def _part(read: Callable[[Budget], float | None]) -> Reading:
    return lambda record: read(clean_budget(record)) if iterations(record, "clean") else None


def around_switch(side: int) -> Reading:
    """Return a reading of the median step before (-1) or after (1) the switch, in seconds."""

    def read(record: Record) -> float | None:
        at = switch_step(record)
        if at is None:
            return None
        samples = []
        for iteration in iterations(record, "clean"):
            steady = steady_seconds(record, iteration)
            samples += [s for i, s in steady.items() if (i < at if side < 0 else i > at)]
        return estimate(samples).median

    return read


def _average_step(record: Record) -> float | None:
    clean = iterations(record, "clean")
    steps = len(get(record, "schedule", "timesteps", default=[]))
    return clean_budget(record).denoise / steps if clean and steps else None


def _peak(record: Record) -> float | None:
    peak = peak_memory(record)["allocated_bytes"]
    return None if peak is None else peak / 1e9


def _free(record: Record) -> float | None:
    peak, room = _peak(record), get(record, "machine", "gpu_memory_bytes")
    return None if peak is None or room is None else room / 1e9 - peak


_SECTIONS: list[tuple[str, list[_Row]]] = [
    (
        "End to end",
        [
            _Row("denoising", _part(lambda b: b.denoise), quoted="s3.2.denoise", whole=True),
            _Row("average step", _average_step, quoted="s3.2.step", whole=True),
            _Row("decoding", _part(lambda b: b.decode), quoted="s3.2.decode"),
            _Row("total", _part(lambda b: b.total), quoted="s3.2.total", whole=True),
            _Row("peak GPU memory, allocated", _peak, "GB", "s3.2.peak"),
            _Row("GPU memory free at the peak", _free, "GB", "s3.2.free"),
        ],
    ),
    (
        "Per step",
        [
            _Row("first step", _part(lambda b: b.first), quoted="s3.3.first"),
            _Row("median step before the switch", around_switch(-1), quoted="s3.3.early"),
            _Row("switch step", _part(lambda b: b.switch), quoted="s3.3.switch"),
            _Row("median step after the switch", around_switch(1), quoted="s3.3.late"),
            _Row("median of both", _part(lambda b: b.steady.median), quoted="s3.3.steady"),
        ],
    ),
    (
        "Time budget",
        [
            _Row("first step", _part(lambda b: b.first), quoted="s3.3.budget.first"),
            _Row("switch step", _part(lambda b: b.switch), quoted="s3.3.budget.switch"),
            _Row(
                "other steps",
                _part(lambda b: b.steady_total),
                quoted="s3.3.budget.other",
                whole=True,
            ),
            _Row("decoding", _part(lambda b: b.decode), quoted="s3.3.budget.decode"),
            _Row(
                "all of these",
                _part(lambda b: b.denoise + (b.decode or 0.0)),
                quoted="s3.3.budget.total",
                whole=True,
            ),
        ],
    ),
]


def _old_new_table(
    caption: str, rows: Sequence[_Row], new: Record | None, olds: dict[str, Record | None]
) -> str:
    body: list[dict[str, object]] = []
    for row in rows:
        cells: dict[str, object] = {"what": row.what, "new": row.cell(new)}
        for old, record in olds.items():
            cells[old] = row.cell(record)
            cells[f"delta {old}"] = _delta(row, new, record)
        for side in ("new", "old", "delta"):
            cells[f"baseline {side}"] = quoted(f"{row.quoted}.{side}")
        body.append(cells)
    return html_table(
        body,
        [
            Column("what", "part", numeric=False),
            Column("new", "new: layerwise"),
            *(Column(old, f"old: {old}") for old in olds),
            *(Column(f"delta {old}", f"layerwise {MINUS} {old}") for old in olds),
            Column("baseline new", "baseline, new"),
            Column("baseline old", "baseline, old"),
            Column("baseline delta", "baseline, difference"),
        ],
        caption=caption,
        note="Clean iterations, each step of its slowest rank. The baseline's columns are quoted: "
        "single profiled runs with another flow shift, so that its switch falls elsewhere. What it "
        f"calls old is either of two engines. {extrapolations([new, *olds.values()])}".rstrip(),
        kind="measured" if new or any(olds.values()) else None,
    )


def _delta(row: _Row, one: Record | None, two: Record | None) -> Cell:
    new, old = row.of(one), row.of(two)
    if new is None or old is None:
        return Cell(None, text="not measured")
    share = f" ({overhead(difference(new, old))})" if old else ""
    return Cell(new - old, text=signed(new, old, row.unit) + share, kind="derived")


def _gap_answer(new: Record | None, olds: dict[str, Record | None]) -> str:
    """Say whether the gap of the steps grew, shrank or turned round, as Markdown."""
    before = fact("s3.3.steady.percent") / 100
    stated = quoted("s3.3.steady.percent").text or ""
    parts = []
    for old, record in olds.items():
        mine = clean_budget(new).steady if new else None
        theirs = clean_budget(record).steady if record else None
        if not (mine and theirs and mine.median and theirs.median):
            parts.append(f"against {old} not measured")
            continue
        gap = difference(mine.median, theirs.median)
        assert new and record
        if steps_apart(new, record) == 0:
            verdict = f"not told apart. {runs_differ(new, record)}".rstrip(".")
        elif gap < 0:
            verdict = "it turned round"
        else:
            assert None not in (mine.low, mine.high, theirs.low, theirs.high)
            allowed = between_runs(new, record, either_way=True)
            low = difference(mine.low or 0, theirs.high or 1) - allowed
            high = difference(mine.high or 0, theirs.low or 1) + allowed
            # The baseline's own gap has no interval, so only ours is set against it.
            verdict = "it is wider" if low > before else "it is narrower"
            if low <= before <= high:
                verdict = "no other than the baseline's, as far as the two runs tell"
        parts.append(
            f"against {old} {overhead(gap)} ({mine.text('s')} and {theirs.text('s')}): {verdict}"
        )
    asked = baseline_facts().text("s9.3.a.gap")
    same = "" if new is None or is_baseline_workload(new) else " (of another video than here)"
    return (
        f"The gap per step{same}, which the baseline gives as {markdown(stated)} "
        f"(in its section 9.3 as {markdown(asked)}): {'; '.join(parts)}."
    )


# B: deep against shallow prefetch ----------------------------------------------------------------


def compare_prefetch(records: Sequence[Record]) -> Comparison:
    """Comparison B: the deeper prefetch against the default one, on each bench that has both."""
    deep, base = int(fact("s6.2.three.size")), int(fact("s9.2.prefetch.base"))
    answers, tables = [], []
    both = [bench for bench in benches(records) if bench.of(NEW, deep) and bench.of(NEW, base)]
    found: list[Bench | None] = [*both] or [None]
    for bench in found:
        one, two = (bench.of(NEW, ahead) if bench else None for ahead in (deep, base))
        where = f"{bench.machine}; {bench.work}" if bench else "no machine yet"
        tables.append(_prefetch_table(where, one, two, deep, base))
        answers.append(_prefetch_answer(where, one, two))
    # Counters are comparable at any scale: take the largest at hand.
    gpus = int(fact("s9.1.prefetch3.gpus"))
    for scale in ("a14b", "tiny"):
        here = [r for r in records if get(r, "job", "scale") == scale]
        one = choose(here, NEW, gpus=gpus, ahead=deep, timed=False)
        two = choose(here, NEW, gpus=gpus, ahead=base, timed=False)
        if one and two and workload(one) == workload(two):
            tables.append(_prefetch_counters(one, two, deep, base, scale))
            break
    return Comparison("\n\n".join(answers), tuple(tables))


def _prefetch_table(
    where: str, one: Record | None, two: Record | None, deep: int, base: int
) -> str:
    low, high = quoted("s9.2.prefetch.gain_low"), quoted("s9.2.prefetch.gain_high")
    gain = Cell(low.value, text=f"{low.text} to {high.text} less", kind="predicted")
    vram = quoted("s9.3.b.vram")
    rows = [
        (_Row("median step", _part(lambda b: b.steady.median)), gain),
        (_Row("denoising", _part(lambda b: b.denoise), whole=True), Cell("", text="")),
        (
            _Row("peak GPU memory, allocated", _peak, "GB"),
            Cell(vram.value, text=vram.text, kind="predicted", title=vram.title),
        ),
        (_Row("of that, blocks held at once", _held, "GB", derived=True), Cell("", text="")),
    ]
    body: list[dict[str, object]] = []
    for row, expected in rows:
        body.append(
            {
                "what": row.what,
                "deep": row.cell(one),
                "base": row.cell(two),
                "delta": _delta(row, one, two),
                "expected": expected,
            }
        )
    note = "Needs full-scale GPU records of both."
    if one and two:
        more, fewer = _blocks(one), _blocks(two)
        note = (
            f"At most {more} blocks against {fewer}, {more - fewer} more and not {deep - base}: "
            "blocks are requested in batches as long as the prefetch, so that up to two batches "
            "are there at once, beside block 0, which is never released, and what the other "
            "expert keeps."
        )
    return html_table(
        body,
        [
            Column("what", "part", numeric=False),
            Column("deep", f"prefetch {deep}"),
            Column("base", f"prefetch {base}"),
            Column("delta", "difference"),
            Column("expected", "baseline expects"),
        ],
        caption=f"Prefetch {deep} against {base}: {where}",
        note=note,
        kind="measured" if one or two else None,
    )


def _blocks(record: Record) -> int:
    """Return how many blocks layerwise holds at once, of both experts."""
    return layerwise_held(
        get(record, "model", "num_layers"),
        prefetch(record) or 1,
        switch=switch_step(record) is not None,
    )


def _held(record: Record) -> float:
    return _blocks(record) * float(get(record, "model", "block_bytes")) / 1e9


def _prefetch_answer(machine: str, one: Record | None, two: Record | None) -> str:
    if one is None or two is None:
        return (
            f"**{markdown(machine)}.** Not measured: it needs full-scale GPU records of both. "
            "Whether it is the synchronisation that shrinks needs their traces too."
        )
    a, b = clean_budget(one).steady, clean_budget(two).steady
    said = {
        -1: "the deeper prefetch makes steps shorter",
        1: "the deeper prefetch makes steps longer",
        0: "they are not told apart",
    }[steps_apart(one, two)]
    return (
        f"**{markdown(machine)}.** {a.text('s')} per step against {b.text('s')}: {said}. "
        f"{runs_differ(one, two)} Whether it is the synchronisation that changes needs "
        "traces: not measured."
    )


def _prefetch_counters(one: Record, two: Record, deep: int, base: int, scale: str) -> str:
    a, b = last_counters(one) or {}, last_counters(two) or {}
    words = {
        "h2d_bytes": "bytes to the device",
        "h2d_copies": "copies to the device",
        "event_waits": "waits for an event",
        "stream_waits": "waits for a stream",
        "host_syncs": "host synchronisations",
        "allocations": "buffers allocated",
    }

    def cell(key: str, value: int) -> Cell:
        text = gigabytes(value) if key.endswith("_bytes") else plain(value)
        return Cell(value, text=text, title=f"{value:,}")

    def delta(key: str) -> str:
        if key.endswith("_bytes"):
            return signed(a[key] / 1e9, b[key] / 1e9, "GB")
        return signed(a[key], b[key], "", 1)  # whole numbers, shown as they are

    return html_table(
        [
            {
                "what": what,
                "deep": cell(key, a[key]),
                "base": cell(key, b[key]),
                "same": "✓" if a[key] == b[key] else delta(key),
            }
            for key, what in words.items()
            if key in a and key in b
        ],
        [
            Column("what", "counter", numeric=False),
            Column("deep", f"prefetch {deep}"),
            Column("base", f"prefetch {base}"),
            Column("same", "equal"),
        ],
        caption=f"What changes with the prefetch, per rank and iteration (scale {scale})",
    )


# Overviews ---------------------------------------------------------------------------------------


def jobs_tables(records: Sequence[Record]) -> list[str]:
    """Return one row for each record, failed ones too, in a table for each machine and scale."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=sort_key):
        key = (
            str(get(record, "machine", "class", default="unknown machine")),
            str(get(record, "job", "scale")),
        )
        groups.setdefault(key, []).append(record)
    return [_jobs_table(groups[key], *key) for key in sorted(groups, key=lambda k: (k[1], k[0]))]


def _jobs_table(records: Sequence[Record], machine: str, scale: str) -> str:
    rows: list[dict[str, object]] = []
    for record in records:
        row: dict[str, object] = {
            "job": job_name(record),
            "engine": engine_name(record),
            "ranks": ranks(record),
            "status": STATUS_WORDS.get(str(record.get("status")), str(record.get("status"))),
            "switch": switch_step(record),
            "formula": Cell("", text="derived", kind="derived")
            if counters_derived(record) and iterations(record)
            else tick(counters_agree(record)),
            "bits": tick(repeats(record)),
            "reason": Cell("", text=str(record.get("reason") or "")),
        }
        if is_full_scale(record) and iterations(record, "clean"):
            spent, peak = clean_budget(record), peak_memory(record)["allocated_bytes"]
            row["step"] = Cell(spent.steady.median, text=seconds(spent.steady.median))
            kind: Kind | None = "derived" if spent.left_out else None
            row["total"] = Cell(spent.total, text=seconds(spent.total), kind=kind)
            row["peak"] = Cell(peak, text=gigabytes(peak))
        rows.append(row)
    timed = any(is_full_scale(record) for record in records)
    times = [
        Column("step", "median step"),
        Column("total", "iteration"),
        Column("peak", "peak allocated"),
    ]
    reasons = any(record.get("reason") for record in records)
    return html_table(
        rows,
        [
            Column("job", "job", numeric=False),
            Column("engine", "engine", numeric=False),
            Column("ranks", "ranks"),
            Column("status", "status", numeric=False),
            *(times if timed else []),
            Column("switch", "switch at index"),
            Column("formula", "counters = formula", numeric=False),
            Column("bits", "iterations equal", numeric=False),
            *([Column("reason", "reason", numeric=False)] if reasons else []),
        ],
        caption=f"Jobs on {machine}, scale {scale}",
        note=extrapolations([r for r in records if is_full_scale(r)])
        if timed
        else "A rehearsal: it has no times or memory to report.",
        kind="measured" if any(map(iterations, records)) else None,
    )


def bits_tables(records: Sequence[Record]) -> list[str]:
    """Return a matrix of latents' digests, engine × ranks, for each set of comparable records."""
    return [_bits_table(g) for g in comparable_groups([r for r in records if latents(r)])]


def _bits_table(records: Sequence[Record]) -> str:
    sizes = sorted({ranks(r) for r in records})
    digests = {
        (engine, size): sorted(
            {d for r in records if (engine_name(r), ranks(r)) == (engine, size) for d in latents(r)}
        )
        for engine in sorted({engine_name(r) for r in records})
        for size in sizes
    }
    rows: list[dict[str, object]] = []
    for engine in sorted({engine for engine, _ in digests}):
        row: dict[str, object] = {"engine": engine}
        for size in sizes:
            found = digests[engine, size]
            row[str(size)] = (
                Cell(1, text=", ".join(d[:8] for d in found), title=" ".join(found))
                if found
                else Cell(None, text="no record")
            )
        rows.append(row)
    last: dict[str, object] = {"engine": "all equal"}
    for size in sizes:
        column = [found for (_, n), found in digests.items() if n == size and found]
        last[str(size)] = (
            tick(len({d for found in column for d in found}) == 1)
            if len(column) > 1
            else Cell(None, text="one engine only")
        )
    first = records[0]
    return html_table(
        [*rows, last],
        [
            Column("engine", "engine", numeric=False),
            *(Column(str(size), counted(size, "rank"), numeric=False) for size in sizes),
        ],
        caption=f"Latents by engine and ranks: {get(first, 'machine', 'class')}, "
        f"scale {get(first, 'job', 'scale')}",
        note="The first 8 hexadecimal digits of the SHA-256; the tooltip has all. Kernels may work "
        "otherwise on shards of another size, so only columns must agree.",
    )


def counters_table(records: Sequence[Record]) -> str:
    """Return what each engine does per step and rank in its last iteration, as HTML."""
    rows: list[dict[str, object]] = []
    found = [record for record in records if per_step(record) is not None]
    found.sort(key=lambda r: (str(get(r, "job", "scale")), job_name(r), *sort_key(r)))
    for name, record in each_job(found, per_step):
        row: dict[str, object] = {
            "job": name,
            "scale": get(record, "job", "scale"),
            "engine": engine_name(record),
            "ranks": ranks(record),
        }
        for key, value in (per_step(record) or {}).items():
            text = gigabytes(value) if key.endswith("_bytes") else significant(value, 3)
            row[key] = Cell(value, text=text, kind="derived" if counters_derived(record) else None)
        rows.append(row)
    return html_table(
        rows,
        [
            Column("job", "job", numeric=False),
            Column("scale", "scale", numeric=False),
            Column("engine", "engine", numeric=False),
            Column("ranks", "ranks"),
            Column("h2d_copies", "copies to device"),
            Column("h2d_bytes", "bytes to device"),
            Column("d2h_copies", "copies to host"),
            Column("d2h_bytes", "bytes to host"),
            Column("allocations", "allocations"),
            Column("event_waits", "event waits"),
            Column("host_syncs", "host syncs"),
            Column("unshards", "gathers"),
        ],
        caption="Per step and rank: copies, bytes, allocations and waits",
        note="The last iteration over its number of steps, of the rank that copied most. A job's "
        "machines are named only where its numbers differ between them. A tiny record's bytes are "
        "those of its small weights.",
        kind=None,
    )


# The first screen --------------------------------------------------------------------------------


def only_rehearsals(records: Sequence[Record]) -> bool:
    """Say whether something ran, but nothing of the full model on GPUs."""
    return any(map(iterations, records)) and not any(map(is_full_scale, records))


def title(records: Sequence[Record]) -> str:
    """Return the page's heading as Markdown; without a full-scale record its first word says so."""
    return (
        "# Rehearsal: after the benchmarks"
        if only_rehearsals(records)
        else "# After the benchmarks"
    )


def first_screen(
    records: Sequence[Record],
    asked: Sequence[Verdict],
    further: Sequence[Verdict],
    earlier: Sequence[Record] = (),
) -> str:
    """Return what a reader must know first, as Markdown.

    `asked` are the verdicts on the baseline's checks, `further` those on the engines' own;
    `earlier` are runs that the records took over from.
    """
    finished = sum(record.get("status") == "ok" for record in records)
    full = [record for record in records if is_full_scale(record)]
    machines = sorted({str(get(r, "machine", "class", default="unknown")) for r in records})
    parts = []
    if only_rehearsals(records):
        parts.append(
            "**Rehearsal:** no record at hand is of the full model on GPUs. What follows answers "
            "for the schedule, counters, bytes and bits, and leaves every question about time, "
            "memory or overlap open."
        )
    parts += [
        "**Asked.** Do the baseline's expectations hold in new measurements, and how do its old "
        "and new offload compare with the right flow shift?",
        f"**At hand.** {counted(len(records), 'record')}"
        + (f", {'all' if finished == len(records) else finished} finished; " if records else "; ")
        + f"{len(full)} of the full model on GPUs, "
        f"{counted(sum(map(is_rehearsal, records)), 'rehearsal')}. "
        f"Machines: {markdown('; '.join(machines) or 'none')}.",
        f"**Came out.** Of the baseline's checks: {tally(asked)}; of the engines' own checks: "
        f"{tally(further)}.",
    ]
    if found := benches(records, earlier):
        parts.append("\n".join(f"* {in_short(bench)}" for bench in found))
    return "\n\n".join(parts)


def compare_lanes(records: Sequence[Record]) -> Comparison:
    """Answer comparison C from the lanes of profiled iterations."""
    facts = baseline_facts()
    # The statements begin with the comparison's letter, which the section's heading has already.
    asked = [facts.statement(f"s9.3.c.{name}") for name in ("bandwidth", "ulysses", "overlap")]
    asked = [statement.partition(": ")[2] or statement for statement in asked]
    found = lanes.read_all(records)
    several = [(record, told) for record, told in found if told.collectives]
    new = [(record, told) for record, told in found if engine_name(record) == NEW]
    answers = [
        [f"{lanes.origin(r)} {told.rates.text('GB/s', 3)}" for r, told in new if told.rates.n],
        [f"{lanes.origin(r)} {lanes.per_cent(told.collectives / told.whole)} of a step"
         for r, told in several],
        [f"{lanes.origin(r)} in {lanes.per_cent(told.share or 0)} of the time of copies"
         for r, told in new],
    ]  # fmt: skip
    lines = [
        f"* {markdown(question[:1].upper() + question[1:])} "
        + (f"**{markdown('; '.join(said))}.**" if said else "**Not measured.**")
        for question, said in zip(asked, answers, strict=True)
    ]
    if not found:
        lines.append(
            "\nThere is no timeline of a full-scale GPU job. To get one, run jobs with "
            f"{code('profile: true')} on a machine with enough GPUs."
        )
    return Comparison("\n".join(lines), (lanes.table(found),) if found else ())
