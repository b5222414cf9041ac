"""The scaling curve on the page: what more GPUs were measured at, beside predictions made before.

Two predictions are judged: our own (:mod:`wanreport.predictions`), whose steady step must be
measured within :data:`TOLERANCE`, and that of the baseline's section 6.1, by its own words and
digits. Only a prediction made before the run is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from . import predictions
from .answers import Record, clean_budget, get, is_full_scale, iterations, ranks
from .benches import engine_label, moved_per_step
from .comparisons import around_switch
from .figures import ENGINE_COLOURS, Picture, gpus_curve
from .local import project_root
from .notebook import Stop
from .scaling import INTERCONNECTS, PredictionError
from .tables import (
    Cell,
    Column,
    Kind,
    code,
    counted,
    gigabytes,
    html_table,
    markdown,
    percent,
    seconds,
)
from .verdicts import NEW, OLD, apart, baseline_facts, fact, quoted, ratio_of

TOLERANCE = 0.1
HELD = {True: "✓ held", False: "✗ did not hold", None: "– not measured"}
UNTOLD = "– not measured: the samples support no difference"
SIDES = {"new": NEW, "old": OLD[0]}
"""The baseline's sides of section 6.1, whose old one is FSDP's by its own words."""

Key = tuple[str, int]  # an engine's label, GPUs


@dataclass
class Curve:
    """One GPU model, interconnect and video: records and predictions by engine and GPUs."""

    gpu: str
    interconnect: str
    video: tuple[int, int, int]
    records: dict[Key, Record] = field(default_factory=dict)
    jobs: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    made: set[tuple[str, str]] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        (width, height, frames), wire = self.video, self.interconnect.partition(" (")[0]
        return f"{self.gpu}, {wire}; {width}×{height}, {counted(frames, 'frame')}"

    @property
    def kind(self) -> Kind:
        """Of the numbers that stand in its tables without a mark of their own."""
        return "measured" if any(n > 1 for _, n in self.records) else "predicted"

    @property
    def keys(self) -> list[Key]:
        """Engines in the order of all pages, each with its numbers of GPUs."""
        order = list(ENGINE_COLOURS)
        found = set(self.records) | set(self.jobs)
        return sorted(found, key=lambda key: (order.index(key[0].split(",")[0]), *key))

    @property
    def main(self) -> list[str]:
        """Labels of the engines, without those of deeper prefetch."""
        base = f"{NEW}, prefetch {fact('s9.2.prefetch.base'):.0f}"
        return list(dict.fromkeys(e for e, _ in self.keys if "," not in e or e == base))

    def step(self, key: Key) -> float | None:
        """Seconds of a measured steady step."""
        record = self.records.get(key)
        return clean_budget(record).steady.median if record else None

    def overhead(self, key: Key) -> float | None:
        """Of a measured steady step over resident's on as many GPUs of the same machine."""
        both = [key, ("resident", key[1])]
        slugs = {get(self.records.get(each, {}), "machine", "slug") for each in both}
        mine, base = (self.step(each) for each in both)
        return mine / base - 1 if mine and base and len(slugs) == 1 else None

    def held(self, key: Key) -> bool | None:
        """Whether our prediction held; None where nothing was measured or it was not made before.

        A prediction is of one job: its hash must be the record's.
        """
        record, job = self.records.get(key), self.jobs.get(key)
        measured = self.step(key)
        if record is None or job is None or measured is None:
            return None
        if job["job_hash"] != record["job_hash"] or not predictions.is_before(job, record):
            return None
        return abs(measured / job["step_s"] - 1) <= TOLERANCE


def _video(job: Mapping[str, Any]) -> tuple[int, int, int]:
    return job["width"], job["height"], job["num_frames"]


def curves(records: Sequence[Record]) -> list[Curve]:
    """Return a curve for each GPU model, interconnect and video with several GPUs.

    Raises
    ------
    Stop
        Naming a prediction's file that cannot be read.
    """
    try:
        made = predictions.load(project_root())
    except PredictionError as error:
        raise Stop(str(error)) from None
    found: dict[tuple[Any, ...], Curve] = {}

    def curve(gpu: str, wire: str, job: Mapping[str, Any]) -> Curve:
        video = _video(job)
        return found.setdefault((gpu, wire, video), Curve(gpu, wire, video))

    for content in made:
        for job in content["jobs"].values():
            ahead = f", prefetch {job['prefetch']}" if job["prefetch"] else ""
            here = curve(content["gpu"], INTERCONNECTS[content["interconnect"]], job)
            here.jobs[job["engine"] + ahead, content["gpus"]] = {
                **job, "made_at": content["made_at"]
            }  # fmt: skip
            here.made.add((content["made_at"][:16], str(content["git_sha"])[:12]))
            here.sources |= {source["path"] for source in content["measured"]}
    timed = [
        r
        for r in records
        if is_full_scale(r) and r["status"] == "ok" and iterations(r, "clean")
        and r["job"]["cfg"] and not r["job"]["compile"] and get(r, "job", "vram_budget_gb") is None
    ]  # fmt: skip
    timed.sort(key=lambda record: str(record["started_at"]))  # of several the latest stays
    for record in timed:
        if ranks(record) > 1:
            machine = record["machine"]
            here = curve(machine["gpu_name"], str(machine["interconnect"]), record["job"])
            here.records[engine_label(record), ranks(record)] = record
    for record in (r for r in timed if ranks(r) == 1):  # a point of each interconnect
        for one in found.values():
            if (one.gpu, one.video) == (record["machine"]["gpu_name"], _video(record["job"])):
                one.records[engine_label(record), 1] = record
    return [found[key] for key in sorted(found)]


def at_hand(found: Sequence[Curve]) -> str:
    """Return how many curves there are, as Markdown."""
    if found:
        return f"One for each GPU model, interconnect and video: {counted(len(found), 'curve')}."
    return (
        "Nothing was measured on several GPUs at full scale, and nothing predicted: "
        "`wanreport predict` says which record is missing."
    )


def answer(curve: Curve) -> str:
    """Return in Markdown what was measured, and which predictions held."""
    most = max((n for _, n in curve.records), default=0)
    said = f"Measured on up to {counted(most, 'GPU')}. " if most > 1 else ""
    if most <= 2:
        said += f"**Nothing was measured {'beyond that' if most > 1 else 'on several GPUs yet'}:** "
        said += "the rest is prediction. " if curve.jobs else "nor was anything predicted. "
    if curve.jobs:
        when = "; ".join(f"{at}, commit {commit}" for at, commit in sorted(curve.made))
        said += f"Our predictions were made at {markdown(when)} (UTC), from "
        said += f"{', '.join(code(path) for path in sorted(curve.sources))}. "
    judged = [held for key in curve.jobs if (held := curve.held(key)) is not None]
    if judged:
        said += (
            f"Of our predictions that were measured since, {sum(judged)} of {len(judged)} held"
            f" within {percent(TOLERANCE, 2)}. "
        )
    late = [key for key, job in curve.jobs.items() if key in curve.records
            and not predictions.is_before(job, curve.records[key])]  # fmt: skip
    if late:
        said += f"{counted(len(late), 'prediction')} came after the run and counts for nothing. "
    return f"### {markdown(curve.title)}\n\n{said}".rstrip()


def tables(curve: Curve) -> list[str]:
    """Return all tables of a curve as HTML."""
    found = [steps_table(curve), bytes_table(curve), claims_table(curve)]
    eight = int(fact("s8.gpus"))
    if curve.interconnect == INTERCONNECTS["nvlink"] and any(n == eight for _, n in curve.keys):
        found.append(reference_table(curve, eight))
    return [*found, *([origins_table(curve)] if curve.jobs else [])]


def _table(
    curve: Curve, rows: Mapping[str, Callable[[int], Cell | None]], *, caption: str, note: str
) -> str:
    """A table with a column for each number of GPUs; each row gives its cells."""
    counts = sorted({n for _, n in curve.keys})
    return html_table(
        [{"what": what, **{str(n): cell(n) for n in counts}} for what, cell in rows.items()],
        [
            Column("what", "engine", numeric=False),
            *(Column(str(n), counted(n, "GPU")) for n in counts),
        ],
        caption=f"{caption}: {curve.title}",
        note=note,
        kind=curve.kind,
    )


def steps_table(curve: Curve) -> str:
    """Return steady steps by engine and GPUs with the verdict on our predictions, as HTML."""

    def cell(label: str, n: int) -> Cell | None:
        record, job = curve.records.get((label, n)), curve.jobs.get((label, n))
        measured = curve.step((label, n))
        if record is None or not measured:
            if job is None:
                return None
            text = _more(f"{seconds(job['step_s'])} [{_range(job)}]", job["overhead"])
            return Cell(job["step_s"], text, "predicted")
        text, note = _more(clean_budget(record).steady.text(), curve.overhead((label, n))), ""
        if job:
            off = percent(measured / job["step_s"] - 1, signed=True)
            note = f"predicted {_more(seconds(job['step_s']), job['overhead'])}; off {off}: "
            note += HELD[curve.held((label, n))]
        return Cell(measured, text, title=_range(job) if job else None, note=note)

    return _table(
        curve,
        {label: partial(cell, label) for label, _ in curve.keys},
        caption="Steady step, and what it takes over resident",
        note=f"Held is what was measured within {percent(TOLERANCE, 2)} of a prediction for the "
        "same job that was made before the run. The range of a prediction is that of all-to-alls "
        "that take no time, and twice the time.",
    )


def _more(text: str, overhead: float | None) -> str:
    """A step's text with its overhead, where there is one to speak of."""
    return text if round(overhead or 0.0, 3) == 0 else f"{text}; {predictions.over(overhead)}"


def _range(job: Mapping[str, Any]) -> str:
    return f"{seconds(job['low_s'])}, {seconds(job['high_s'])}"


def bytes_table(curve: Curve) -> str:
    """Return the bytes of a steady step by engine and GPUs beside the baseline's, as HTML."""
    facts = baseline_facts()

    def moved(label: str, scope: str, n: int) -> float | None:
        record = curve.records.get((label, n))
        return None if record is None else moved_per_step(record, max if scope == "each" else sum)

    def ours(label: str, scope: str, n: int) -> Cell | None:
        job, seen = curve.jobs.get((label, n)), moved(label, scope, n)
        told = None if job is None else job["h2d_bytes"] * (n if scope == "all" else 1)
        if seen is None:
            return Cell(told, gigabytes(told), "predicted") if told is not None else None
        return Cell(seen, gigabytes(seen), note=f"predicted {gigabytes(told)}" * (told is not None))

    def theirs(name: str, seen: Callable[[int], float | None], n: int) -> Cell:
        if f"{name}.g{n}" not in facts:
            return Cell("", text="")
        low, high = (getattr(facts[f"{name}.g{n}"].quantity, end) for end in ("low", "high"))
        value = seen(n)
        held = None if value is None else float(low) <= value / 1e9 <= float(high)
        return replace(quoted(f"{name}.g{n}"), note=HELD[held])

    def wire(n: int) -> Cell | None:
        told = next((job["all_to_all_bytes"] for (_, m), job in curve.jobs.items() if m == n), None)
        return told if told is None else Cell(told, gigabytes(told), "predicted")

    rows: dict[str, Callable[[int], Cell | None]] = {}
    for label, engine in {label: label.split(",")[0] for label in curve.main}.items():
        side = next((side for side, name in SIDES.items() if name == engine), None)
        for scope, words in (("each", "to each GPU"), ("all", "to all GPUs")):
            if engine in ("resident", "swap"):  # they bring nothing in a steady step
                continue
            rows[f"{engine}, {words}"] = partial(ours, label, scope)
            if side:
                see = partial(moved, label, scope)
                rows[f"baseline's {side}, {words}"] = partial(theirs, f"s6.1.{side}_{scope}", see)
    rows["all-to-alls, each GPU"] = wire
    rows["baseline's all-to-alls"] = partial(theirs, "s6.1.ulysses", lambda n: None)
    return _table(
        curve,
        rows,
        caption="Bytes of a steady step",
        note="A figure of the baseline held if what was measured rounds to it. Of how many "
        "all-to-alls its bytes are it does not say; ours are those of a step, of the busiest rank, "
        "from the shape: records do not count them.",
    )


def claims_table(curve: Curve) -> str:
    """Return the verdicts on what the baseline expects of more GPUs, as HTML."""
    facts = baseline_facts()
    rows: list[dict[str, object]] = []
    for side, name, wanted in (("new", "s6.1.new_grows", 1), ("old", "s6.1.old_shrinks", -1)):
        label = next((name for name in curve.main if name.split(",")[0] == SIDES[side]), "")
        counts = [n for (engine, n) in curve.keys if engine == label and n > 1]
        both = [n for n in counts if curve.overhead((label, n)) is not None]
        told = [f"{n}: {predictions.over(curve.jobs[label, n]['overhead'])}"
                for n in counts if (label, n) in curve.jobs]  # fmt: skip
        seen = [f"{n}: {predictions.over(curve.overhead((label, n)))}" for n in both]
        rows.append(
            {
                "claim": Cell(name, text=facts.statement(name), kind="quoted"),
                "engine": label or SIDES[side],
                "seen": Cell(len(seen) or None, "; ".join(seen) or None, "derived"),
                "told": Cell(len(told) or None, "; ".join(told) or None, "predicted"),
                "verdict": _grows(curve, label, both, wanted),
            }
        )
    return html_table(
        rows,
        [
            Column("claim", "the baseline's prediction", numeric=False),
            Column("engine", "engine", numeric=False),
            Column("seen", "over resident, by GPUs", numeric=False),
            Column("told", "our prediction", numeric=False),
            Column("verdict", "verdict", numeric=False),
        ],
        caption=f"What more GPUs were to do: {curve.title}",
        note="Judged between the fewest and the most GPUs, from two on, that have both the engine "
        "and resident; only where the 95 % intervals of both ratios are apart.",
    )


def _grows(curve: Curve, label: str, counts: Sequence[int], wanted: int) -> str:
    """Whether an overhead grows (`wanted` 1) or shrinks (-1) from the fewest GPUs to the most."""
    if len(counts) < 2:
        return HELD[None]
    few, many = (
        ratio_of(*(clean_budget(curve.records[engine, n]).steady for engine in (label, "resident")))
        for n in (min(counts), max(counts))
    )
    order = apart(many, few)
    return HELD[order == wanted] if order else UNTOLD


def reference_table(curve: Curve, number: int) -> str:
    """Return the shape of the baseline's section 8 on as many GPUs as it has, as HTML."""
    parts = ("first", "early", "switch", "late", "total")
    labels = [label for label in curve.main if (label, number) in curve.keys]
    rows: list[dict[str, object]] = [
        {"part": _part_words(part), **{side: quoted(f"s8.{part}.{side}") for side in SIDES}}
        for part in parts
    ]
    told = {"first": "first_s", "early": "step_s", "switch": "switch_s", "late": "step_s",
            "total": "total_s"}  # fmt: skip
    for label in labels:
        record, job = curve.records.get((label, number)), curve.jobs.get((label, number))
        for row, part in zip(rows, parts, strict=True):
            if record:
                spent = clean_budget(record)
                value = {
                    "first": spent.first, "early": around_switch(-1)(record),
                    "switch": spent.switch, "late": around_switch(1)(record),
                    "total": spent.denoise,
                }[part]  # fmt: skip
                guessed = part == "total" and spent.left_out
                row[label] = Cell(value, seconds(value), "derived" if guessed else None)
            elif job:
                row[label] = Cell(job[told[part]], text=seconds(job[told[part]]), kind="predicted")
    return html_table(
        rows,
        [
            Column("part", "part", numeric=False),
            Column("new", "baseline, new"),
            Column("old", "baseline, old"),
            *(Column(label, label) for label in labels),
        ],
        caption=f"As in the baseline's section 8, on {counted(number, 'GPU')}: {curve.title}",
        note="Where there is no record, our prediction stands.",
    )


def _part_words(part: str) -> str:
    def at(name: str) -> str:
        return f"{fact(name):.0f}"

    if part in ("early", "late"):
        return f"steps {at(f's8.{part}.first')} to {at(f's8.{part}.last')}, each"
    return "all steps" if part == "total" else f"step {at(f's8.{part}.step')}"


def origins_table(curve: Curve) -> str:
    """Return what predictions rest on, measured or assumed, as HTML."""
    rests: dict[str, set[int]] = {}
    for (_, n), job in sorted(curve.jobs.items(), key=lambda item: item[0][1]):
        for word in job["from"]:
            rests.setdefault(word, set()).add(n)
    return html_table(
        [{"word": word, "gpus": sorted(counts)} for word, counts in rests.items()],
        [Column("word", "what", numeric=False), Column("gpus", "GPUs", numeric=False)],
        caption=f"What our predictions rest on: {curve.title}",
        note="A prediction's file has all values taken from records, and each record's SHA-256.",
        kind=None,
    )


def pictures(curve: Curve) -> list[Picture]:
    """Return the curve as a picture: steps, and overheads, by GPUs."""
    keys = [key for key in curve.keys if key[0] in curve.main]
    if not any(n > 1 for _, n in keys):
        return []
    jobs = {key: job for key in keys if (job := curve.jobs.get(key))}
    counts = [n for n in (2, 4, 6) if f"s6.1.new_all.g{n}" in baseline_facts()]
    at = fact("s9.1.new4.gpus")
    traffic = {n: fact(f"s6.1.new_all.g{n}") for n in counts}
    scale = fact("s3.3.steady.percent") / 100 / traffic[int(at)]
    return [
        gpus_curve(
            title=curve.title,
            measured={key: step for key in keys if (step := curve.step(key))},
            predicted={key: job["step_s"] for key, job in jobs.items()},
            over={key: over for key in keys if (over := curve.overhead(key)) is not None},
            expected={key: job["overhead"] for key, job in jobs.items()},
            baseline={n: scale * v for n, v in traffic.items() if n in {n for _, n in keys}},
        )
    ]
