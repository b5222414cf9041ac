"""Prints a benchmark's rows as tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wanreport.analysis.stats import median_interval
from wanreport.records.files import FIRST
from wanreport.words import EM_DASH, significant

HEADER = ("engine", "ms per step", "95 % interval", "n", "/ resident", "allocated GB", "bits",
          "note")  # fmt: skip
CPU_ONLY = "On CPU only bits are checked: no times are claimed, and none are kept."
ON_GPU = (
    "Median of n steps after warm-up, each with its slowest rank; below n = 6 there is no interval."
    " Peak device memory is the fullest rank's over the timed steps. GB is 10^9 bytes."
)

Row = dict[str, Any]


def tables(report: dict[str, Any], order: Sequence[str]) -> str:
    """Write one table for each number of tokens, and what its numbers mean."""
    software, settings = report["software"], report["settings"]
    versions = {key: software[key] for key in ("torch", "diffusers")}
    versions |= {name: peer["version"] for name, peer in report["peers"].items()}
    source = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = []
    for tokens in sorted({row["tokens"] for row in report["rows"]}):
        here = {row["label"]: row for row in report["rows"] if row["tokens"] == tokens}
        head = (
            f"{tokens:,} tokens; blocks: {settings['blocks']} ({report['bytes'] / 1e9:.4g} GB);"
            f" branches a step: {settings['branches']}; ranks: {settings['ranks']};"
            f" segments: {'compiled' if settings['compile'] else 'eager'}"
        )
        rows = [_cells(here[label], here.get(FIRST)) for label in order if label in here]
        parts.append(head + "\n\n" + _aligned([HEADER, *rows]))
    means = ON_GPU if settings["device"] == "cuda" else CPU_ONLY
    return "\n\n".join([*parts, f"{report['machine']['class']}; {source}.\n{means}"])


def step_ms(row: Row | None) -> tuple[float, float, float, int]:
    """Compute median, interval and n of a row's steps in ms, each with its slowest rank."""
    ranks = [rank["samples_ms"] for rank in row["ranks"]] if row else []
    return median_interval(map(max, zip(*ranks, strict=True)))


def identical(row: Row, reference: Row | None) -> bool | None:
    """Say whether first and last outputs, on every rank, are resident's; None if unknown."""
    if not row["ranks"] or reference is None or not reference["ranks"]:
        return None
    wanted = reference["ranks"][0]["output_sha256"]
    keys = ("first_output_sha256", "output_sha256")
    return all(rank[key] == wanted for rank in row["ranks"] for key in keys)


def _cells(row: Row, resident: Row | None) -> tuple[str, ...]:
    median, low, high, n = step_ms(row)
    over = median / step_ms(resident)[0]
    peaks = [rank["memory"]["allocated_bytes"] for rank in row["ranks"]]
    note = row["ranks"][0]["note"] if row["ranks"] else f"{row['status']}: {row['reason']}"
    return (
        row["label"],
        EM_DASH if median != median else f"{median:,.1f}",
        EM_DASH if low != low else f"[{low:,.1f}, {high:,.1f}]",
        str(n or EM_DASH),
        significant(over),
        EM_DASH if not peaks or None in peaks else f"{max(peaks) / 1e9:.2f}",
        {True: "same", False: "DIFFERENT", None: EM_DASH}[identical(row, resident)],
        note,
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
