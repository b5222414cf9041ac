"""Runs engines, each in processes of its own or all in turn, and keeps what they measured."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from wanreport.analysis.stats import median_interval
from wanreport.measure import machine
from wanreport.measure import ranks as processes
from wanreport.measure.worker import software
from wanreport.model.weights import Layout, unit_parameters
from wanreport.records.files import BENCH_SCHEMA, FIRST, LAST, name_of, read_bench, stream_settings
from wanreport.records.project import git_state
from wanreport.records.record import replace_file

from .peers import PEERS, Missing
from .rank import make_expert

SETTINGS = ("device", "ranks", "blocks", "branches", "compile", "warmup")
VERSIONS = ("python", "torch", "diffusers", "cuda", "nccl")
TIMEOUT_S = 600.0  # for all shapes of a process, and for each turn as much again
SETTLED = ("ok", "oom", "needs a GPU")  # what a resumed campaign does not try again
Row = dict[str, Any]


def grid(tokens: int) -> tuple[int, int, int]:
    """A video's tokens as frames × height × width: Wan's own sizes where they fit."""
    for height, width in ((30, 52), (45, 80)):  # 480p, 720p
        if tokens % (height * width) == 0 and tokens // (height * width) <= 21:
            return tokens // (height * width), height, width
    height = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    return 1, height, tokens // height


class Campaign:
    """What the command line asks for; ``report`` is what the JSON holds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        block = Layout.of(unit_parameters(make_expert(arguments.device, arguments.blocks), 0))
        self.report: dict[str, Any] = {
            "schema_version": BENCH_SCHEMA,
            "settings": {key: getattr(arguments, key) for key in SETTINGS},
            "bytes": block.nbytes * arguments.blocks,
            "machine": machine.machine(arguments.device),
            "software": machine.software() | software(),
            "peers": {},
            "rows": [],
        }
        self.missing: dict[str, Missing] = {}
        self.code: dict[str, dict[str, Any]] = {}
        for name in PEERS.keys() & set(map(name_of, arguments.engines)):
            try:
                self.code[name] = code = PEERS[name].find(arguments.sglang, arguments.device)
            except Missing as reason:
                self.missing[name] = reason
                continue
            # Where it lies is this machine's affair.
            self.report["peers"][name] = {k: v for k, v in code.items() if k != "folder"}
        self.order = list(dict.fromkeys([FIRST, *arguments.engines, LAST]))
        self.done: set[tuple[str, int]] = set()
        self.until = time.monotonic() + 60 * arguments.budget_minutes

    def resume(self, path: Path) -> None:
        """Take over an earlier call's rows; ValueError if they cannot be compared with ours."""
        earlier = read_bench(path)[1]
        theirs, mine = _conditions(earlier), _conditions(self.report)
        for key in mine:
            if theirs[key] != mine[key]:
                fix = "give the same, or another --json"
                raise ValueError(f"{path}: {key} was {theirs[key]!r}, is {mine[key]!r} now; {fix}")
        self.report["rows"] = earlier["rows"]
        self.report["peers"] = earlier["peers"] | self.report["peers"]
        self.done = {(r["label"], r["tokens"]) for r in earlier["rows"] if r["status"] in SETTLED}
        if not self.arguments.turns and self._pending(*self.order):
            # What closes a campaign comes after all that it measured.
            self.done = {key for key in self.done if key[0] != LAST}

    def run(self) -> None:
        """Run what is pending, engine by engine or all in turn, until the time budget is used."""
        here = [label for label in self.order if name_of(label) not in self.missing]
        for label in self.order:
            missing = self.missing.get(name_of(label))
            for tokens in self._pending(label):
                if missing:
                    self._end(label, tokens, missing.status, str(missing))
                elif self._row(label, tokens) is None:
                    # Replaced by what comes of it; what the budget or a signal leaves stays.
                    self._end(label, tokens, "not run", "the call ended before")
        for labels in [here] if self.arguments.turns else [[label] for label in here]:
            while (pending := self._pending(*labels)) and time.monotonic() < self.until:
                self._start(labels, pending)

    def _pending(self, *labels: str) -> list[int]:
        """The shapes that one of these engines has not run."""
        asked = self.arguments.tokens
        return [tokens for tokens in asked if {(label, tokens) for label in labels} - self.done]

    def _start(self, labels: Sequence[str], pending: Sequence[int]) -> None:
        """Run the processes of some engines; afterwards at least one of ``pending`` has ended."""
        count, turns = self.arguments.ranks, self.arguments.turns
        timeout_s = TIMEOUT_S * (1 + turns)
        spec = self.report["settings"] | {
            "engines": [label.removesuffix(" again") for label in labels],
            "code": self.code,
            "grids": [[tokens, grid(tokens)] for tokens in pending],
            "passes": self.arguments.passes,
            "turns": turns or 1,
            "timeout_s": timeout_s,
        }
        with tempfile.TemporaryDirectory(prefix="wanreport-bench-") as folder:
            out = Path(folder)
            (out / "spec.json").write_text(json.dumps(spec))

            def collect() -> None:
                for tokens in self._pending(*labels):
                    files = [out / f"row-{tokens}-{i}-rank{rank}.json"
                             for i in range(len(labels)) for rank in range(count)]  # fmt: skip
                    if all(file.is_file() for file in files):
                        parts = [json.loads(file.read_text()) for file in files]
                        for i, label in enumerate(labels):
                            mine = parts[i * count : (i + 1) * count]
                            self._end(label, tokens, "ok", ranks=mine, out=out)

            deadline = min(time.monotonic() + timeout_s, self.until)
            start = processes.KINDS[spec["device"]]
            ranks = start(out / "spec.json", out, count, "benchmarks.rank")
            results, codes = processes.watch(ranks, out, count, deadline, collect)
            collect()
            left = self._pending(*labels)
            if left and (any(results) or time.monotonic() < self.until):
                progress = out / "progress"
                at = progress.read_text() if progress.is_file() else "attach"
                found = processes.failure(timeout_s, results, codes, at)
                # The other shapes get new processes; without attaching none of them would run.
                for label, tokens in product(labels, left if at == "attach" else left[:1]):
                    self._end(label, tokens, found["status"], found["reason"], out=out)

    def _end(self, label: str, tokens: int, status: str, reason: str = "",
             ranks: Sequence[Row] = (), out: Path | None = None) -> None:  # fmt: skip
        """Enter a row and write the JSON."""
        logs = sorted(out.rglob("*.log")) if out and not ranks else []
        row = {
            "label": label, "tokens": tokens, "grid": grid(tokens), "status": status,
            "reason": reason, "ranks": list(ranks),
            "log": "\n".join(file.read_text(errors="replace") for file in logs)[-4000:],
            "transport": processes.transport(out) if out else [],
            "turns": self.arguments.turns,
            "settings": stream_settings(label, ranks), **git_state(),
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        before = self._row(label, tokens)
        self.report["rows"] = [each for each in self.report["rows"] if each is not before] + [row]
        if status != "not run":
            self.done.add((label, tokens))
            print(self.line(row), flush=True)
        if self.arguments.json:
            text = json.dumps(self.report, indent=1, allow_nan=False) + "\n"
            replace_file(self.arguments.json, text)

    def line(self, row: Row) -> str:
        """A row as a line: milliseconds a step, beside resident's, the bits, and a note."""
        first, (median, low, high, n) = self._row(FIRST, row["tokens"]), step_ms(row)
        took = f"{median:,.1f} [{low:,.1f}, {high:,.1f}] ms, n = {n}" if n else row["status"]
        over = f"{median / step_ms(first)[0]:.3f} of resident" if n and first else ""
        bits = {True: "same bits", False: "OTHER BITS", None: ""}[identical(row, first)]
        note = row["ranks"][0]["note"] if row["ranks"] else row["reason"]
        said = [f"{row['tokens']:,} tokens", row["label"], took, over, bits, note]
        return "; ".join(filter(None, said))

    def _row(self, label: str, tokens: int) -> Row | None:
        rows = self.report["rows"]
        return next((r for r in rows if (r["label"], r["tokens"]) == (label, tokens)), None)

    def wrong(self) -> bool:
        """Whether an engine failed, or on CPU gave other bits than resident."""
        cpu = self.arguments.device == "cpu"
        return any(
            row["status"] in ("failed", "oom", "timeout", "non-finite")
            or (cpu and identical(row, self._row(FIRST, row["tokens"])) is False)
            for row in self.report["rows"]
        )


def step_ms(row: Row) -> tuple[float, float, float, int]:
    """Median, interval and n of a row's steps in ms, each with its slowest rank."""
    return median_interval(map(max, zip(*(r["samples_ms"] for r in row["ranks"]), strict=True)))


def identical(row: Row, reference: Row | None) -> bool | None:
    """Whether first and last outputs, on every rank, are resident's; None if unknown."""
    if not row["ranks"] or reference is None or not reference["ranks"]:
        return None
    wanted = reference["ranks"][0]["output_sha256"]
    keys = ("first_output_sha256", "output_sha256")
    return all(rank[key] == wanted for rank in row["ranks"] for key in keys)


def _conditions(report: dict[str, Any]) -> dict[str, Any]:
    """What must be alike for rows to be compared."""
    about = {key: report["machine"][key] for key in ("class", "driver", "nccl")}
    versions = {key: report["software"][key] for key in VERSIONS}
    return {**report["settings"], **about, **versions}
