"""Runs engines one after the other, each in processes of its own, and keeps what they measured."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wanreport.measure import launch
from wanreport.measure.machine import machine, software
from wanreport.model.weights import Layout, unit_parameters
from wanreport.records.files import (
    BENCH_SCHEMA,
    FIRST,
    LAST,
    FileError,
    name_of,
    read_bench,
    stream_settings,
)
from wanreport.records.project import git_state, write_atomically

from .peers import PEERS, Missing
from .rank import make_expert
from .table import identical, step_ms

SETTINGS = ("device", "ranks", "blocks", "branches", "compile", "warmup")
VERSIONS = ("python", "torch", "diffusers", "cuda", "nccl")
TIMEOUT_S = 600.0  # for all shapes of an engine
SETTLED = ("ok", "oom", "needs a GPU")  # what a resumed campaign does not try again


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
            "machine": machine(arguments.device),
            "software": software(),
            "peers": {},
            "rows": [],
        }
        self.missing: dict[str, Missing] = {}
        self.code: dict[str, dict[str, Any]] = {}
        for name in PEERS.keys() & set(map(name_of, arguments.engines)):
            try:
                code = PEERS[name].find(arguments.sglang, arguments.device)
            except Missing as reason:
                self.missing[name] = reason
                continue
            self.code[name] = code
            # Where it lies is this machine's affair.
            self.report["peers"][name] = {k: v for k, v in code.items() if k != "folder"}
        self.order = list(dict.fromkeys([FIRST, *arguments.engines, LAST]))
        self.done: set[tuple[str, int]] = set()
        self.until = time.monotonic() + 60 * arguments.budget_minutes

    def resume(self, path: Path) -> None:
        """Take over the rows of an earlier call.

        Raises
        ------
        ValueError
            If its rows cannot be compared with this call's; says what differs.
        """
        try:
            earlier = read_bench(path)[1]
        except FileError as error:
            raise ValueError(str(error)) from None
        theirs, mine = _conditions(earlier), _conditions(self.report)
        for key, value in mine.items():
            if theirs[key] != value:
                raise ValueError(
                    f"{path}: {key} was {theirs[key]!r} and is {value!r} now; give the same, or"
                    " another --json"
                )
        self.report["rows"] = earlier["rows"]
        self.report["peers"] = earlier["peers"] | self.report["peers"]
        self.done = {(r["label"], r["tokens"]) for r in earlier["rows"] if r["status"] in SETTLED}
        if any(self._pending(label) for label in self.order):
            # What closes a campaign comes after all that it measured.
            self.done = {key for key in self.done if key[0] != LAST}

    def run(self) -> None:
        """Run what is pending; what a time budget or a signal leaves gets rows that say so."""
        try:
            self._run()
        except (KeyboardInterrupt, SystemExit):
            known = {(row["label"], row["tokens"]) for row in self.report["rows"]}
            for label in self.order:
                left = [tokens for tokens in self._pending(label) if (label, tokens) not in known]
                self._end(label, left, "not run", "interrupted")
            raise

    def _run(self) -> None:
        for label in self.order:
            missing = self.missing.get(name_of(label))
            while pending := self._pending(label):
                if missing:
                    self._end(label, pending, missing.status, str(missing))
                elif time.monotonic() > self.until:
                    self._end(label, pending, "not run", "time budget")
                else:
                    self._start(label, pending)

    def _pending(self, label: str) -> list[int]:
        return [tokens for tokens in self.arguments.tokens if (label, tokens) not in self.done]

    def _start(self, label: str, pending: Sequence[int]) -> None:
        """Run an engine's processes; afterwards at least one of ``pending`` has ended."""
        cuda, count = self.arguments.device == "cuda", self.arguments.ranks
        spec = self.report["settings"] | {
            "engine": label.removesuffix(" again"),
            "code": self.code.get(name_of(label)),
            "grids": [[tokens, grid(tokens)] for tokens in pending],
            "passes": self.arguments.passes,
            "timeout_s": TIMEOUT_S,
        }
        with tempfile.TemporaryDirectory(prefix="wanreport-bench-") as folder:
            out = Path(folder)
            (out / "spec.json").write_text(json.dumps(spec))

            def collect() -> None:
                for tokens in self._pending(label):
                    files = [out / f"row-{tokens}-rank{rank}.json" for rank in range(count)]
                    if all(file.is_file() for file in files):
                        parts = [json.loads(file.read_text()) for file in files]
                        self._end(label, [tokens], "ok", "", parts, launch.transport(out))

            deadline = min(time.monotonic() + TIMEOUT_S, self.until)
            start = launch.TorchrunRanks if cuda else launch.ForkedRanks
            ranks = start(out / "spec.json", out, count, "benchmarks.rank")
            results, codes = launch.watch(ranks, out, count, deadline, collect)
            collect()
            left = self._pending(label)
            if left and time.monotonic() > self.until and not any(results):
                self._end(label, left, "not run", "time budget")
            elif left:
                progress = out / "progress"
                at = progress.read_text() if progress.is_file() else "attach"
                found = launch.failure(TIMEOUT_S, results, codes, at)
                logs = "\n".join(f.read_text(errors="replace") for f in sorted(out.rglob("*.log")))
                # The other shapes get new processes; without attaching none of them would run.
                ended = left if at == "attach" else left[:1]
                self._end(label, ended, found["status"], found["reason"], (),
                          launch.transport(out), logs[-4000:])  # fmt: skip

    def _end(
        self, label: str, shapes: Sequence[int], status: str, reason: str,
        ranks: Sequence[dict[str, Any]] = (), transport: Sequence[str] = (), log: str = "",
    ) -> None:  # fmt: skip
        """Enter a row for each shape and write the JSON."""
        for tokens in shapes:
            row = {
                "label": label, "tokens": tokens, "grid": grid(tokens), "status": status,
                "reason": reason, "ranks": list(ranks), "log": log,
                "transport": list(transport), "settings": stream_settings(label, ranks),
                **git_state(),
                "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            rows = [r for r in self.report["rows"] if (r["label"], r["tokens"]) != (label, tokens)]
            self.report["rows"] = [*rows, row]
            self.done.add((label, tokens))
            median, low, high, n = step_ms(row)
            took = f"{median:,.1f} ms [{low:,.1f}, {high:,.1f}], n = {n}, " if n else ""
            said = f"{took}{status} {reason}".strip()
            print(f"{label}, {tokens:,} tokens: {said}", file=sys.stderr, flush=True)
        if self.arguments.json:
            text = json.dumps(self.report, indent=1, allow_nan=False) + "\n"
            write_atomically(self.arguments.json, text)

    def wrong(self) -> bool:
        """Whether an engine failed, or on CPU gave other bits than resident."""
        cpu = self.arguments.device == "cpu"
        first = {row["tokens"]: row for row in self.report["rows"] if row["label"] == FIRST}
        return any(
            row["status"] in ("failed", "oom", "timeout")
            or (cpu and identical(row, first.get(row["tokens"])) is False)
            for row in self.report["rows"]
        )


def _conditions(report: dict[str, Any]) -> dict[str, Any]:
    """What must be alike for rows to be compared."""
    about = {key: report["machine"][key] for key in ("class", "driver", "nccl")}
    versions = {key: report["software"][key] for key in VERSIONS}
    return {**report["settings"], **about, **versions}
