"""How a plan reads: on a job's page, and on the command line before there is a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .answers import NotAnswerable, Record, clean_budget, get, is_full_scale, iterations
from .cost import Inputs
from .job import Job
from .plan import describe, make_plan, room
from .record import is_rehearsal
from .tables import Cell, Column, counted, gigabytes, html_table, overhead, seconds

SHAPE = ("num_gpus", "height", "width", "num_frames", "cfg", "dtype", "compile")
"""Fields that a job shares with another whose measured inputs hold for it too."""


TIMES = (
    "All times are those of a step; its limit is the longer of computing with all weights there "
    "and of moving its bytes over the link. A trial runs a part of the blocks, so that trials "
    "compare only with one another. "
)


def plan_sentence(record: Record) -> str:
    """Return what was chosen and why, as Markdown."""
    plan = get(record, "engine", "plan", default={})
    if not plan:
        return "This engine has no settings to choose, or the job ended before it chose."
    found = plan["candidates"]
    chosen = found[plan["chosen"]]
    budget = get(record, "job", "vram_budget_gb")
    given = "No budget was given" if budget is None else f"The budget is {budget:g} GB"
    text = (
        f"{given}, which makes room for {counted(plan['room'], 'block')} beside what lies outside "
        f"the blocks. Of {counted(len(found), 'candidate')} the plan took **"
        f"{describe(chosen['settings'])}**, "
    )
    if plan["by"] == "trial":
        best = describe(found[0]["settings"])
        text += f"as a trial of the two best overruled the prediction, which was {best}."
    elif plan["trial"]:
        text += "as predicted, and a trial of the two best agreed."
    else:
        text += "as predicted; no other way of moving blocks came close enough for a trial."
    if not is_full_scale(record):
        return f"{text} In a rehearsal the times behind it say nothing, and are not shown."
    measured = _measured(record)
    if measured is not None:
        off = overhead(chosen["predicted"]["step_s"] / measured - 1)
        text += (
            f" Predicted was a step of {seconds(chosen['predicted']['step_s'])}, measured"
            f" {seconds(measured)} (prediction {off}), the median of the clean steps that are"
            " neither first nor switch."
        )
    return text


def plan_table(record: Record) -> str:
    """Return the candidates with their predictions, as HTML."""
    plan = get(record, "engine", "plan", default={})
    if not plan:
        raise NotAnswerable("There is no plan.")
    timed = is_full_scale(record)
    tried = {entry["candidate"]: entry["step_s"] for entry in plan["trial"]}

    def row(index: int, candidate: Mapping[str, Any]) -> dict[str, object]:
        chosen, predicted = index == plan["chosen"], candidate["predicted"]
        cells: dict[str, object] = {
            "settings": ("→ " if chosen else "") + describe(candidate["settings"]),
            "weights_bytes": _cell(predicted["weights_bytes"], gigabytes),
        }
        if timed:
            cells |= {
                key: _cell(predicted[key], seconds)
                for key in ("step_s", "first_s", "switch_s", "limit_s")
            }
            cells["trial"] = _cell(tried.get(index), seconds, measured=True)
        return cells

    columns = [Column("settings", "settings", numeric=False)]
    if timed:
        columns += [
            Column("step_s", "step"),
            Column("limit_s", "limit"),
            Column("first_s", "first"),
            Column("switch_s", "switch"),
            Column("trial", "trial"),
        ]
    columns.append(Column("weights_bytes", "device"))
    return html_table(
        [row(i, candidate) for i, candidate in enumerate(plan["candidates"])],
        columns,
        caption="What was to choose from, the best predicted first",
        kind="predicted",
        note="The arrow marks what was chosen. "
        + (TIMES if timed else "")
        + "Device is the memory that weights take there.",
    )


def _cell(value: float | None, text: Any, *, measured: bool = False) -> Cell | None:
    if value is None:
        return None
    return Cell(value, text=text(value), kind="measured" if measured else None)


def _measured(record: Record) -> float | None:
    """Seconds of a steady step; None where that was not measured at full scale."""
    if not is_full_scale(record) or not iterations(record, "clean"):
        return None
    return clean_budget(record).steady.median


def lines(plan: Mapping[str, Any], *, timed: bool) -> list[str]:
    """A plan as lines of text, the chosen candidate marked; ``timed`` shows its seconds."""
    found = [f"room for {counted(plan['room'], 'block')}"]
    heads = ["step", "limit", "first", "switch"] if timed else []
    found.append("  " + "".join(f"{head:<11}" for head in [*heads, "weights"]) + "settings")
    for index, candidate in enumerate(plan["candidates"]):
        predicted = candidate["predicted"]
        words = [seconds(predicted[f"{head}_s"]) for head in heads]
        words.append(gigabytes(predicted["weights_bytes"]))
        mark = "> " if index == plan["chosen"] else "  "
        found.append(
            mark + "".join(f"{word:<11}" for word in words) + describe(candidate["settings"])
        )
    tried = [seconds(entry["step_s"]) for entry in plan["trial"]] if timed else []
    why = f"chosen by {plan['by']}"
    return [*found, why + (f"; steps in the trial: {' and '.join(tried)}" if tried else "")]


def from_records(
    job: Job, found: Iterable[tuple[Path, Record]]
) -> tuple[Path, dict[str, Any]] | None:
    """The plan for ``job`` from what a record of its shape was planned with, and that record.

    Of several the latest counts. There is no trial.
    """
    fit = [
        (str(record["started_at"]), str(path), path, record["engine"]["plan"]["inputs"])
        for path, record in found
        if get(record, "engine", "plan", "inputs") and not is_rehearsal(record)
        and all(record["job"].get(key) == getattr(job, key) for key in SHAPE)
    ]  # fmt: skip
    if not fit:
        return None
    *_, path, stored = max(fit, key=lambda entry: entry[:2])
    inputs = Inputs.of({**stored, "steps": job.num_inference_steps})
    blocks = room(job.vram_budget_gb, inputs.block_bytes, inputs.outer_bytes)
    return path, make_plan(inputs, blocks)[0]
