"""A benchmark's rows as tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wanreport import campaigns
from wanreport.tables import EM_DASH

HEADER = ("engine", "ms per step", "95 % interval", "n", "/ limit", "allocated GB",
          "reserved GB", "pinned GB", "moved GB", "bits", "note")  # fmt: skip
CPU_ONLY = "On CPU only bits are checked: no times are claimed, and none are kept."
ON_GPU = (
    "Median of n steps after warm-up, each with its slowest rank; below n = 6 there is no interval."
    " Peak device memory is the fullest rank's over the timed steps, pinned memory the host's."
    " The limit of an engine is the larger of resident's step and of what it moves per step and"
    " rank over the link; of a peer, whose copies are not counted, every block in each branch."
    " GB is 10^9 bytes."
)


def tables(report: dict[str, Any], order: Sequence[str]) -> str:
    """One table a shape, and what its numbers mean."""
    software, device = report["software"], report["settings"]["device"]
    versions = {key: software[key] for key in ("torch", "diffusers")}
    versions |= {name: peer["version"] for name, peer in report["peers"].items()}
    source = ", ".join(f"{name} {version}" for name, version in versions.items())
    foot = f"{report['machine']['class']}; {source}.\n{ON_GPU if device == 'cuda' else CPU_ONLY}"
    return "\n\n".join(
        [*(_shape(report, tokens, order) for tokens in campaigns.shapes(report)), foot]
    )


def _shape(report: dict[str, Any], tokens: int, order: Sequence[str]) -> str:
    settings, size = report["settings"], f"{report['bytes'] / 1e9:.4g} GB"
    lines = [
        f"{tokens:,} tokens; blocks: {settings['blocks']} ({size}); branches a step:"
        f" {settings['branches']}; ranks: {settings['ranks']};"
        f" segments: {'compiled' if settings['compile'] else 'eager'}"
    ]
    before, after, later = (
        campaigns.link(report),
        campaigns.link(report, campaigns.LAST),
        campaigns.drift(report, tokens),
    )
    if before:
        lines[0] += f"; link: {before:.1f} GB/s"
    if later is not None and before and after:
        lines.append(
            f"drift from first to last: resident {later:+.1%}, link {after / before - 1:+.1%}"
        )
    rows = [row for label in order if (row := campaigns.find(report, label, tokens))]
    return "\n".join(lines) + "\n\n" + _aligned([HEADER, *(_cells(report, row) for row in rows)])


def _cells(report: dict[str, Any], row: Any) -> tuple[str, ...]:
    ms, top = campaigns.step_ms(row), campaigns.limit(report, row)
    return (
        row["label"],
        EM_DASH if ms.median is None else f"{ms.median:,.1f}",
        EM_DASH if ms.low is None else f"[{ms.low:,.1f}, {ms.high:,.1f}]",
        str(ms.n or EM_DASH),
        EM_DASH if ms.median is None or top is None else f"{ms.median / top:.3f}",
        _gigabytes(campaigns.peak(row, "allocated")),
        _gigabytes(campaigns.peak(row, "reserved")),
        _gigabytes(campaigns.pinned_bytes(row)),
        _gigabytes(campaigns.moved(report, row)),
        {True: "same", False: "DIFFERENT", None: EM_DASH}[campaigns.identical(report, row)],
        campaigns.note(row),
    )


def _gigabytes(value: float | None) -> str:
    return EM_DASH if value is None else f"{value / 1e9:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
