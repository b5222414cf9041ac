"""The scaling curve on the page: what more GPUs were measured at, beside predictions made before.

Two predictions are judged: our own (:mod:`wanreport.predictions`), whose steady step must be
measured within :data:`TOLERANCE`, and that of the baseline's section 6.1, by its own words and
digits. Only a prediction of the same job that was made before the run is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from . import predictions
from .answers import (
    Record,
    clean_budget,
    engine_label,
    get,
    is_full_scale,
    iterations,
    ranks,
    sampled,
)
from .benches import moved_per_step
from .comparisons import around_switch
from .figures import ENGINE_COLOURS, Picture, gpus_curve
from .local import commit, project_root
from .notebook import Stop
from .scaling import INTERCONNECTS, PredictionError
from .tables import (
    Cell,
    Column,
    counted,
    fold,
    gigabytes,
    html_table,
    markdown,
    overhead,
    seconds,
    significant,
)
from .verdicts import (
    NEW,
    OLD,
    apart,
    baseline_facts,
    between_runs,
    fact,
    quoted,
    ratio_of,
    steps_apart,
)

TOLERANCE = 0.1
HELD = {True: "✓ held", False: "✗ did not hold", None: "– not measured"}
UNTOLD = "– not told: the samples support no difference"
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
    made: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    void: int = 0  # predictions that came after the run, or are of another job than its

    @property
    def title(self) -> str:
        (width, height, frames), wire = self.video, self.interconnect.partition(" (")[0]
        return f"{self.gpu}, {wire}; {width}×{height}, {counted(frames, 'frame')}"

    @property
    def keys(self) -> list[Key]:
        """Engines in the order of all pages, each with its numbers of GPUs."""
        order = list(ENGINE_COLOURS)
        found = set(self.records) | set(self.jobs)
        return sorted(found, key=lambda key: (order.index(key[0].split(",")[0]), *key))

    @property
    def main(self) -> dict[str, str]:
        """Engines by label, without those of deeper prefetch."""
        base = f"{NEW}, prefetch {fact('s9.2.prefetch.base'):.0f}"
        return {e: e.split(",")[0] for e, _ in self.keys if "," not in e or e == base}

    @property
    def counts(self) -> list[int]:
        return sorted({n for _, n in self.keys})

    @property
    def several(self) -> bool:
        """Whether there are numbers of several GPUs to compare."""
        return sum(n > 1 for n in self.counts) > 1

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
        """Whether our prediction held; None where there is none, or nothing measured."""
        measured, job = self.step(key), self.jobs.get(key)
        return abs(measured / job["step_s"] - 1) <= TOLERANCE if measured and job else None


def _video(job: Mapping[str, Any]) -> tuple[int, int, int]:
    return job["width"], job["height"], job["num_frames"]


def curves(records: Sequence[Record]) -> list[Curve]:
    """Return a curve for each GPU model, video and interconnect with several GPUs.

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
        return found.setdefault((gpu, video, wire), Curve(gpu, wire, video))

    for content in made:
        when = content["made_at"]
        for job in content["jobs"].values():
            ahead = f", prefetch {job['prefetch']}" if job["prefetch"] else ""
            here = curve(content["gpu"], INTERCONNECTS[content["interconnect"]], job)
            here.jobs[job["engine"] + ahead, content["gpus"]] = job | {"made_at": when}
            here.made.add(f"{when[:16]} UTC, commit {commit(content) or 'unknown'}")
            here.sources |= {source["path"] for source in content["measured"]}
    timed = [
        r
        for r in records
        if is_full_scale(r) and r["status"] == "ok" and iterations(r, "clean")
        and r["job"]["cfg"] and not r["job"]["compile"] and get(r, "job", "vram_budget_gb") is None
    ]  # fmt: skip
    timed.sort(key=lambda record: str(record["started_at"]))  # of several the latest stays
    for record in sorted(timed, key=lambda record: ranks(record) == 1):  # several GPUs come first
        machine, key = record["machine"], (engine_label(record), ranks(record))
        if key[1] > 1:
            curve(machine["gpu_name"], str(machine["interconnect"]), record["job"])
        for one in found.values():  # one GPU is a point of each interconnect
            if (one.gpu, one.video) == (machine["gpu_name"], _video(record["job"])) and (
                key[1] == 1 or one.interconnect == machine["interconnect"]
            ):
                one.records[key] = record
    for one in found.values():
        for key in one.records.keys() & one.jobs.keys():
            record, job = one.records[key], one.jobs[key]
            begun, foretold = record["started_at"], job["made_at"]
            before = datetime.fromisoformat(foretold) < datetime.fromisoformat(begun)
            if not before or job["job_hash"] != record["job_hash"]:
                del one.jobs[key]
                one.void += 1
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -key[1][0], key[2]))]


def at_hand(found: Sequence[Curve]) -> str:
    """Return as Markdown when our predictions were made."""
    if made := sorted(set().union(*(one.made for one in found))):
        return f"Our predictions were made at {markdown('; '.join(made))}."
    return "There is no prediction of ours: `wanreport predict` says which record is missing."


def answer(curve: Curve) -> str:
    """Return in Markdown what was measured and predicted, and which predictions held."""
    most = max((n for _, n in curve.records), default=0)
    said = [f"Measured on up to {counted(most, 'GPU')}."] if most > 1 else []
    if most <= 2:
        what = "beyond that" if most > 1 else "on several GPUs yet"
        rest = "the rest is prediction." if curve.jobs else "nor was anything predicted."
        said.append(f"**Nothing was measured {what}:** {rest}")
    judged = [held for key in curve.jobs if (held := curve.held(key)) is not None]
    if judged:
        said.append(
            f"Of our predictions that were measured since, {sum(judged)} of {len(judged)} held"
            f" within {TOLERANCE * 100:.0f} %."
        )
    if curve.void:
        what = counted(curve.void, "prediction")
        said.append(f"Left out, as made after the run or for another job: {what}.")
    claims = (("new_grows", NEW, 1), ("old_shrinks", OLD[0], -1)) if curve.several else ()
    return "\n".join([" ".join(said), "", *(_claim(curve, f"s6.1.{c[0]}", *c[1:]) for c in claims)])


def _claim(curve: Curve, name: str, engine: str, wanted: int) -> str:
    """What the baseline expects of an overhead (`wanted` 1: it grows), the verdict, and ours."""
    label = next((label for label, each in curve.main.items() if each == engine), engine)
    seen = {n: o for n in curve.counts if n > 1 and (o := curve.overhead((label, n))) is not None}
    verdict = HELD[None]
    if len(seen) > 1:
        pairs = [[curve.records[e, n] for e in (label, "resident")] for n in (min(seen), max(seen))]
        few, many = (ratio_of(*(clean_budget(r).steady for r in pair)) for pair in pairs)
        order = apart(many, few, sum(between_runs(*pair, either_way=True) for pair in pairs))
        verdict = HELD[order == wanted] if order else UNTOLD
    told = {n: curve.jobs[label, n]["overhead"] for n in curve.counts if (label, n) in curve.jobs}
    found = [
        f"{what} {label} takes over resident "
        + ", ".join(f"{overhead(share)} on {counted(n, 'GPU')}" for n, share in shares.items())
        + "."
        for what, shares in (("Measured,", seen), ("We predict that", told)) if shares
    ]  # fmt: skip
    said = (
        f"- The baseline predicts: “{markdown(baseline_facts().statement(name))}.” **{verdict}.**"
    )
    return " ".join([said, *found])


def tables(curve: Curve) -> list[str]:
    """Return the steps of a curve, and folded all else, as HTML."""
    more = [bytes_table(curve)]
    eight = int(fact("s8.gpus"))
    if curve.interconnect == INTERCONNECTS["nvlink"] and eight in curve.counts:
        more.append(reference_table(curve, eight))
    if curve.jobs:
        more.append(origins_table(curve))
    return [steps_table(curve), fold("Bytes, and what predictions rest on", *more)]


def _table(
    curve: Curve, rows: Mapping[str, Callable[[int], Cell | None]], *, caption: str, note: str
) -> str:
    """A table with a column for each number of GPUs; each row gives its cells."""
    return html_table(
        [{"what": what, **{str(n): cell(n) for n in curve.counts}} for what, cell in rows.items()],
        [
            Column("what", "engine", numeric=False),
            *(Column(str(n), counted(n, "GPU")) for n in curve.counts),
        ],
        caption=f"{caption}: {curve.title}",
        note=note,
        kind="measured" if curve.records else "predicted",
    )


def steps_table(curve: Curve) -> str:
    """Return steady steps by engine and GPUs with the verdict on our predictions, as HTML."""

    def cell(label: str, n: int) -> Cell | None:
        key = label, n
        job, measured, share = curve.jobs.get(key), curve.step(key), curve.overhead(key)
        if job is None and not measured:
            return None
        note = "" if share is None else overhead(share)
        if share and not steps_apart(curve.records[key], curve.records["resident", n]):
            note = "not told apart"
        if job:
            told, extra = seconds(job["step_s"]), overhead(job["overhead"])
            if not measured:
                extra += f"; {significant(job['low_s'], 3)}–{seconds(job['high_s'], 3)}"
                return Cell(job["step_s"], told, "predicted", note=extra)
            off = overhead(measured / job["step_s"] - 1)
            note += f"; predicted {told}, {extra}; off by {off}: {HELD[curve.held(key)]}"
        text = clean_budget(curve.records[key]).steady.text()
        return Cell(measured, text, note=note.removeprefix("; "))

    return _table(
        curve,
        {label: partial(cell, label) for label, _ in curve.keys},
        caption="Steady step",
        note="Below each: what it takes over resident, if measured where the two are told apart. A "
        "prediction's range is that of all-to-alls that take no time, and twice the time; it held "
        f"if a step within {TOLERANCE * 100:.0f} % was measured after it was made. A measured step "
        "has its 95 % interval.",
    )


def bytes_table(curve: Curve) -> str:
    """Return the bytes of a steady step by engine and GPUs beside the baseline's, as HTML."""
    facts = baseline_facts()

    def moved(label: str, n: int) -> tuple[float | None, float | None]:
        """To the busiest GPU, and to all."""
        record = curve.records.get((label, n))
        each, every = (moved_per_step(record, of) if record else None for of in (max, sum))
        return each, every

    def ours(label: str, n: int) -> Cell | None:
        job, (each, every) = curve.jobs.get((label, n)), moved(label, n)
        told = job["h2d_bytes"] if job else None
        if each is not None and every is not None:
            note = "" if told is None else f"; predicted {gigabytes(told)}"
            return Cell(each, gigabytes(each), note=f"{gigabytes(every)} in all{note}")
        if told is None:
            return None
        return Cell(told, gigabytes(told), "predicted", note=f"{gigabytes(n * told)} in all")

    def theirs(side: str, label: str, n: int) -> Cell:
        names = [f"s6.1.{side}_{scope}.g{n}" for scope in ("each", "all")]
        if names[0] not in facts:
            return Cell("", "")
        known = [facts[name].quantity for name in names]
        seen = [nbytes for nbytes in moved(label, n) if nbytes is not None]
        fits = [float(k.low) <= b / 1e9 <= float(k.high) for k, b in zip(known, seen, strict=False)]
        held = all(fits) if seen else None
        each, every = (quoted(name) for name in names)
        return replace(each, note=f"{every.text} in all; {HELD[held]}")

    def wire(n: int) -> Cell | None:
        told = next((job["all_to_all_bytes"] for (_, m), job in curve.jobs.items() if m == n), None)
        return None if told is None else Cell(told, gigabytes(told), "predicted")

    def their_wire(n: int) -> Cell:
        return quoted(f"s6.1.ulysses.g{n}") if f"s6.1.ulysses.g{n}" in facts else Cell("", "")

    rows: dict[str, Callable[[int], Cell | None]] = {}
    for label, engine in curve.main.items():
        if engine not in ("resident", "swap"):  # they bring nothing in a steady step
            rows[label] = partial(ours, label)
        for side in (side for side, name in SIDES.items() if name == engine):
            rows[f"baseline's {side} offload"] = partial(theirs, side, label)
    rows |= {"all-to-alls": wire, "baseline's all-to-alls": their_wire}
    return _table(
        curve,
        rows,
        caption="Bytes of a steady step, to each GPU and in all",
        note="A figure of the baseline held if what was measured rounds to it. Its all-to-alls are "
        "each GPU's, of how many it does not say; ours are those of a step, of the busiest rank, "
        "from the shape: records do not count them.",
    )


def reference_table(curve: Curve, number: int) -> str:
    """Return the shape of the baseline's section 8 on as many GPUs as it has, as HTML."""
    parts: dict[str, tuple[str, str, Callable[[Record], float | None]]] = {
        "first": (f"step {fact('s8.first.step'):.0f}", "first_s", lambda r: clean_budget(r).first),
        "early": ("each step before the switch", "step_s", around_switch(-1)),
        "switch": ("the switch", "switch_s", lambda r: clean_budget(r).switch),
        "late": ("each step after the switch", "step_s", around_switch(1)),
        "total": ("all steps", "total_s", lambda r: clean_budget(r).denoise),
    }
    labels = [label for label in curve.main if (label, number) in curve.keys]

    def cell(label: str, part: str) -> Cell:
        record, (_, key, read) = curve.records.get((label, number)), parts[part]
        if record is None:
            told = curve.jobs[label, number][key]
            return Cell(told, seconds(told), "predicted")
        guessed = part == "total" and sampled(record)
        return Cell(value := read(record), seconds(value), "derived" if guessed else None)

    return html_table(
        [
            {
                "part": words,
                **{side: quoted(f"s8.{part}.{side}") for side in SIDES},
                **{label: cell(label, part) for label in labels},
            }
            for part, (words, *_) in parts.items()
        ],
        [
            Column("part", "part", numeric=False),
            *(Column(side, f"baseline, {side}") for side in SIDES),
            *(Column(label, label) for label in labels),
        ],
        caption=f"As in the baseline's section 8, on {counted(number, 'GPU')}: {curve.title}",
        note="Where there is no record, our prediction stands. All steps are extrapolated where "
        "only some ran.",
        kind="measured" if any(n == number for _, n in curve.records) else "predicted",
    )


def origins_table(curve: Curve) -> str:
    """Return what predictions rest on, measured or assumed, as HTML."""
    rests: dict[str, set[int]] = {}
    for (_, n), job in curve.jobs.items():
        for word in job["from"]:
            rests.setdefault(word, set()).add(n)
    return html_table(
        [{"word": word, "gpus": sorted(counts)} for word, counts in sorted(rests.items())],
        [Column("word", "what", numeric=False), Column("gpus", "GPUs", numeric=False)],
        caption=f"What our predictions rest on: {curve.title}",
        note=f"Measured in {', '.join(sorted(curve.sources))}. A prediction's file has all values "
        "taken from these, and the SHA-256 of each.",
        kind=None,
    )


def pictures(curve: Curve) -> list[Picture]:
    """Return steps and overheads by GPUs as a picture, where there are two numbers of GPUs."""
    keys = [key for key in curve.keys if key[0] in curve.main]
    if not curve.several:
        return []
    jobs = {key: job for key in keys if (job := curve.jobs.get(key))}
    return [
        gpus_curve(
            title=curve.title,
            measured={key: step for key in keys if (step := curve.step(key))},
            predicted={key: job["step_s"] for key, job in jobs.items()},
            over={key: over for key in keys if (over := curve.overhead(key)) is not None},
            expected={key: job["overhead"] for key, job in jobs.items()},
        )
    ]
