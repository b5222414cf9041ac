"""The index page: all pages, and all jobs with their status and headline figures at a glance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wanreport
from wanreport import answers, render
from wanreport.answers import Record
from wanreport.record import is_rehearsal
from wanreport.tables import EM_DASH, NBSP, Column, counted, gigabytes

KNOWN_PAGES = {
    "baseline": (
        "Baseline",
        "The frozen analysis that this started from, with a verdict on each of its numbers.",
    ),
    "postbenchmark": (
        "Post-benchmark",
        "What the records at hand confirm, refute or leave open, check by check.",
    ),
}

_WORDS = {**answers.STATUS_WORDS, "": "not measured"}


@dataclass(frozen=True)
class Row:
    """One job of the index: its record, if it has one, and its page, if that was made."""

    name: str
    engine: str
    gpus: int
    record: Record | None
    href: str = ""
    page_failed: bool = False


FULL_SCALE = (
    Column("step", "Step", "median of clean iterations"),
    Column("peak", "Peak GPU memory", "allocated, fullest rank"),
    Column("moved", "To the device", "per step, busiest rank"),
)
REHEARSAL = (
    Column("counters", "Counters", "against the closed formula", numeric=False),
    Column("latents", "Latents", "against resident, same ranks", numeric=False),
    Column("moved", "To the device", "per iteration, busiest rank"),
)


def index_html(rows: Sequence[Row], pages: Sequence[tuple[str, str, bool]]) -> str:
    """Return the index page.

    Parameters
    ----------
    rows
        The jobs; each is shown, whatever became of it.
    pages
        Name, link and whether it failed, of each page that is not about one job.
    """
    import jinja2

    measured = [row.record for row in rows if row.record and answers.iterations(row.record)]
    cards = []
    for name, href, failed in pages:
        title, text = KNOWN_PAGES.get(name, (name, ""))
        cards.append(
            {
                "href": href,
                "title": title,
                "text": "This page is incomplete: its notebook failed." if failed else text,
            }
        )
    cards.append(
        {
            "href": "#jobs",
            "title": "Jobs",
            "text": "One page for each benchmark job: what was asked, what ran, what moved.",
        }
    )
    context = {
        "title": "Streaming the weights of Wan2.2-T2V-A14B",
        "version": wanreport.__version__,
        "inputs": "",
        "css": (render.TEMPLATE / "page.css").read_text(encoding="utf-8"),
        "all_rehearsal": bool(measured) and all(is_rehearsal(record) for record in measured),
        "cards": cards,
        "summary": _summary(rows),
        "sections": _sections(rows),
        "facts": render.provenance(render.Page()),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(render.TEMPLATE), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    body = environment.get_template("overview.html.j2").render(page=context)
    render.check_page(body)
    return re.sub(r"\n{2,}", "\n", body) + "\n"


def _summary(rows: Sequence[Row]) -> str:
    words = [_WORDS[_status(row)] for row in rows]
    counts = [
        f"{words.count(word)} {word}" for word in dict.fromkeys(_WORDS.values()) if word in words
    ]
    return f"{counted(len(rows), 'job')}: {', '.join(counts) or 'none yet'}."


def _status(row: Row) -> str:
    return str(row.record["status"]) if row.record else ""


def _sections(rows: Sequence[Row]) -> list[dict[str, Any]]:
    full = [row for row in rows if row.record and not is_rehearsal(row.record)]
    rehearsed = [row for row in rows if row.record and is_rehearsal(row.record)]
    missing = [row for row in rows if not row.record]
    sections = []
    if full:
        sections.append({
            "title": "Full scale",
            "columns": FULL_SCALE,
            "rows": [_entry(row, _full_scale) for row in full],
            "note": "Median with a 95 % interval of the steps that are neither first nor switch.",
        })  # fmt: skip
    if rehearsed:
        records = [row.record for row in rehearsed if row.record]
        sections.append({
            "title": "Rehearsals",
            "columns": REHEARSAL,
            "rows": [_entry(row, lambda record: _rehearsal(record, records)) for row in rehearsed],
            "note": "Bytes are those of the tiny model.",
        })  # fmt: skip
    if missing:
        sections.append({
            "title": "Not measured yet",
            "columns": (Column("todo", "What to do", numeric=False),),
            "rows": [_entry(row, lambda record: []) for row in missing],
            "note": "",
        })  # fmt: skip
    return sections


def _entry(row: Row, figures: Any) -> dict[str, Any]:
    status, record = _status(row), row.record or {}
    why = status != "ok"
    reason, hint = str(record.get("reason", "")), str(record.get("hint", ""))
    if not record:
        reason, hint = "No record at hand.", f"wanreport run params/…/{row.name}.yaml"
    return {
        "name": row.name,
        "href": row.href,
        "engine": row.engine,
        "gpus": row.gpus,
        "machine": _ran_on(record),
        "status": "failed" if row.page_failed else status,
        "status_words": _WORDS[status] + ", page incomplete" * row.page_failed,
        "why": why,
        "reason": reason,
        "hint": hint,
        "figures": [] if why else figures(record),
    }


def _ran_on(record: Record) -> str:
    if not record:
        return EM_DASH
    machine = answers.get(record, "machine", "class", default="unknown machine")
    scale = record["job"]["scale"]
    if record["status"] == "unsupported":
        return f"did not run ({machine})"
    return f"{'A14B' if scale == 'a14b' else scale}, {machine}"


def _full_scale(record: Record) -> list[str]:
    try:
        step = answers.clean_budget(record).steady.text("s").replace(" ", NBSP)
        step = step.replace(f"{NBSP}[", " [")  # the interval may go to a line of its own
        memory = gigabytes(answers.peak_memory(record)["allocated_bytes"])
    except answers.NotAnswerable:
        step = memory = EM_DASH
    moved, steps = _to_device(record)
    return [step, memory, gigabytes(moved / steps) if moved is not None and steps else EM_DASH]


def _rehearsal(record: Record, others: Sequence[Record]) -> list[str]:
    agree = answers.counters_agree(record)
    counters = {True: "equal", False: "DIFFER", None: "no formula"}[agree]
    if answers.counters_derived(record):
        counters = "derived, not counted"
    moved, _ = _to_device(record)
    return [counters, _same_bits(record, others), gigabytes(moved)]


def _to_device(record: Record) -> tuple[int | None, int]:
    """Bytes that the busiest rank copied to its device in one iteration, and that one's steps.

    The last clean iteration is taken: it is the one without profiler and first loads.
    """
    found = answers.iterations(record, "clean") or answers.iterations(record)
    if not found:
        return None, 0
    ranks = [rank["h2d_bytes"] for rank in found[-1].get("counters") or [] if "h2d_bytes" in rank]
    return (max(ranks) if ranks else None), len(found[-1]["steps"])


_ENGINE_FIELDS = {
    "name", "purpose", "baseline_job", "timeout_s", "engine", "dit_layerwise_offload",
    "dit_cpu_offload", "use_fsdp_inference", "dit_offload_prefetch_size", "cache_dit",
    "warmup_iterations", "clean_iterations", "profile",
}  # fmt: skip


def _same_bits(record: Record, others: Sequence[Record]) -> str:
    """Whether the latents are those of the resident engine in the same setting, or of others."""
    if record["job"]["engine"] == "resident":
        return "is the reference"

    def setting(of: Record) -> tuple[Any, ...]:
        job = {k: v for k, v in of["job"].items() if k not in _ENGINE_FIELDS}
        return sorted(job.items(), key=str), answers.get(of, "machine", "slug")

    peers = [
        other for other in others
        if other["job"]["engine"] != record["job"]["engine"]
        and other["status"] == "ok" and setting(other) == setting(record)
    ]  # fmt: skip
    resident = [other for other in peers if other["job"]["engine"] == "resident"]
    mine = set(answers.latents(record))
    same = bool(mine) and all(set(answers.latents(other)) == mine for other in resident or peers)
    if resident:
        return "identical" if same else "DIFFER"
    ranks = counted(answers.ranks(record), "rank")
    if not peers:
        return f"nothing to compare with on {ranks}"
    return f"no resident run; identical to {counted(len(peers), 'other')}" if same else "DIFFER"
