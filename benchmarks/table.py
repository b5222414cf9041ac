"""A benchmark's rows as tables of plain text; all that is derived from samples is computed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from wanreport.tables import EM_DASH, Estimate, estimate

FIRST, LAST = "resident", "resident again"
NOTES = {"swap": "moves weights only at a switch of experts, and here is none"}
HEADER = ("engine", "ms per step", "95 % interval", "n", "/ limit", "allocated GB", "reserved GB",
          "pinned GB", "bits", "note")  # fmt: skip
CPU_ONLY = "On CPU only bits are checked: no times are claimed, and none are kept."
ON_GPU = (
    "Median of n steps after warm-up, each with its slowest rank; below n = 6 there is no interval."
    " Peak device memory is the fullest rank's over the timed steps, pinned memory the host's."
    " The limit is that of a rank that copies every block by itself: an engine that keeps blocks"
    " or shares them out moves fewer bytes and can go below it. GB is 10^9 bytes."
)


def find(report: dict[str, Any], label: str, tokens: int) -> dict[str, Any] | None:
    """The row of an engine and a shape, if there is one."""
    rows = (r for r in report["rows"] if r["label"] == label and r["tokens"] == tokens)
    return next(rows, None)


def step_ms(row: dict[str, Any] | None) -> Estimate:
    """Milliseconds of a step, each counting with its slowest rank."""
    ranks = [rank["samples_ms"] for rank in row["ranks"]] if row else []
    return estimate(map(max, zip(*ranks, strict=True)))


def link(report: dict[str, Any], label: str = FIRST) -> float | None:
    """Bandwidth in GB/s that the slowest rank has while all copy, as ``label`` measured it."""
    links = [
        rank["link"]["h2d_pinned_together_gb_s"]
        for row in report["rows"]
        for rank in row["ranks"]
        if row["label"] == label and rank["link"]
    ]
    return min(links, default=None)


def limit(report: dict[str, Any], tokens: int) -> float | None:
    """Milliseconds that no engine can beat without moving fewer bytes: max(compute, transfer)."""
    resident, bandwidth = step_ms(find(report, FIRST, tokens)).median, link(report)
    if resident is None or bandwidth is None:
        return None
    return max(resident, report["bytes"] / bandwidth / 1e6)


def identical(report: dict[str, Any], row: dict[str, Any]) -> bool | None:
    """Whether the first and the last output, on every rank, are resident's; None if unknown."""
    reference = find(report, FIRST, row["tokens"])
    if not row["ranks"] or reference is None or not reference["ranks"]:
        return None
    wanted = reference["ranks"][0]["output_sha256"]
    keys = ("first_output_sha256", "output_sha256")
    return all(rank[key] == wanted for rank in row["ranks"] for key in keys)


def pinned_bytes(row: dict[str, Any]) -> int | None:
    """Pinned bytes of the host: what each rank has, but once what ranks share."""
    each = [rank["memory"]["pinned_bytes"] for rank in row["ranks"]]
    if not each or None in each:
        return None
    return sum(each) - row["ranks"][0]["shared_pinned_bytes"] * (len(each) - 1)


def tables(report: dict[str, Any], order: Sequence[str]) -> str:
    """One table a shape, and what its numbers mean."""
    software, device = report["software"], report["settings"]["device"]
    versions = {key: software[key] for key in ("torch", "diffusers")}
    versions |= {name: peer["version"] for name, peer in report["peers"].items()}
    source = ", ".join(f"{name} {version}" for name, version in versions.items())
    foot = f"{report['machine']['class']}; {source}.\n{ON_GPU if device == 'cuda' else CPU_ONLY}"
    shapes = sorted({row["tokens"] for row in report["rows"]})
    return "\n\n".join([*(_shape(report, tokens, order) for tokens in shapes), foot])


def _shape(report: dict[str, Any], tokens: int, order: Sequence[str]) -> str:
    settings, size = report["settings"], f"{report['bytes'] / 1e9:.4g} GB"
    lines = [
        f"{tokens:,} tokens; blocks: {settings['blocks']} ({size}); branches a step:"
        f" {settings['branches']}; ranks: {settings['ranks']};"
        f" segments: {'compiled' if settings['compile'] else 'eager'}"
    ]
    first, last = (step_ms(find(report, label, tokens)).median for label in (FIRST, LAST))
    top, before, after = limit(report, tokens), link(report), link(report, LAST)
    if top is not None:
        lines.append(
            f"limit {top:,.1f} ms = max(resident {first:,.1f} ms, {size} / {before:.1f} GB/s)"
        )
    if first and last and before and after:
        lines.append(
            f"drift from first to last: resident {last / first - 1:+.1%}, link"
            f" {after / before - 1:+.1%}"
        )
    rows = [row for label in order if (row := find(report, label, tokens))]
    return "\n".join(lines) + "\n\n" + _aligned([HEADER, *(_cells(report, r, top) for r in rows)])


def _cells(report: dict[str, Any], row: dict[str, Any], top: float | None) -> tuple[str, ...]:
    ms, memory = step_ms(row), [rank["memory"] for rank in row["ranks"]]
    note = NOTES.get(row["label"], row["ranks"][0]["note"] if row["ranks"] else "")
    return (
        row["label"],
        EM_DASH if ms.median is None else f"{ms.median:,.1f}",
        EM_DASH if ms.low is None else f"[{ms.low:,.1f}, {ms.high:,.1f}]",
        str(ms.n or EM_DASH),
        EM_DASH if ms.median is None or top is None else f"{ms.median / top:.3f}",
        _gigabytes(m["allocated_bytes"] for m in memory),
        _gigabytes(m["reserved_bytes"] for m in memory),
        _gigabytes([pinned_bytes(row)]),
        {True: "same", False: "DIFFERENT", None: EM_DASH}[identical(report, row)],
        note if row["ranks"] else f"{row['status']}: {row['reason']}",
    )


def _gigabytes(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known) / 1e9:.2f}" if known else EM_DASH


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
