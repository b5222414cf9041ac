"""Times the offload engines beside their peers, on the same blocks and shapes.

Each engine has processes of its own, one a rank. `resident` runs first and last, to show how far
the machine drifted, and once with CFG parallelism if others do. With --turns all engines are in one
process and take turns there and back (A B B A), for gaps of a few per cent. Rows are written as
they end.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import PEERS
from benchmarks.rank import make_engine, make_expert
from wanreport.analysis.stats import Median, median_interval
from wanreport.cli import FEW, ended
from wanreport.jobs.job import JobError
from wanreport.measure import machine
from wanreport.measure import ranks as processes
from wanreport.measure.worker import software
from wanreport.model.layout import Layout
from wanreport.model.weights import unit_parameters
from wanreport.records import files
from wanreport.records.project import git_state
from wanreport.records.record import replace_file

DEFAULTS = {"cuda": ("3120,7800,14040,32760", 20), "cpu": ("27,40", 6)}  # tokens, blocks
ENGINES_AND_PEERS = [
    "resident", "swap", "fsdp", "layerwise:prefetch=1", "layerwise:prefetch=3", "stream", "planned",
    "diffusers", "sglang:prefetch=1", "sglang:prefetch=2",  # 2: SGLang's own choice for A14B
]  # fmt: skip
SETTINGS = ("device", "ranks", "blocks", "branches")
# What rows must share to be compared.
ALIKE = {"settings": (*SETTINGS, "compile"), "machine": ("class", "driver", "nccl"),
         "software": ("python", "torch", "diffusers", "cuda", "nccl")}  # fmt: skip
TIMEOUT_S = 600.0  # for all shapes of a process, and for each turn as much again
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

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        labels = [files.reference(label) for label in given.engines]
        self.order = [*dict.fromkeys([files.FIRST, *labels, *given.engines, files.LAST])]
        self.code: dict[str, dict[str, str]] = {}
        self.missing: dict[str, str] = {}  # label -> why its peer cannot run
        for label in self.order:
            if peer := PEERS.get(name := files.parse_label(label)[0]):
                try:
                    self.code[name] = peer.find(given.sglang, given.device)
                except LookupError as reason:
                    self.missing[label] = str(reason)
        block = Layout.of(unit_parameters(make_expert(given.device, 1), 0))
        self.report: dict[str, Any] = {
            "schema_version": 2,
            "settings": {key: getattr(given, key) for key in SETTINGS} | {"compile": False},
            "bytes": block.nbytes * given.blocks,
            "machine": machine.machine(given.device),
            "software": machine.software() | software(),
            # Where a peer's code lies is this machine's affair.
            "peers": {name: {key: value for key, value in code.items() if key != "folder"}
                      for name, code in self.code.items()},
        }  # fmt: skip
        self.rows: dict[tuple[str, int], Row] = {}
        self.done: set[tuple[str, int]] = set()
        self.until = time.monotonic() + 60 * given.budget_minutes
        if given.json and given.json.exists():
            self._resume(files.read_bench(given.json)[1])

    def _resume(self, earlier: dict[str, Any]) -> None:
        """Take over an earlier call's rows; JobError if they cannot be compared with ours."""
        for part, key in ((part, key) for part, keys in ALIKE.items() for key in keys):
            was, now = earlier[part][key], self.report[part][key]
            if was != now:
                said = f"{key} was {was!r}, is {now!r} now; give the same, or another --json"
                raise JobError([f"{self.given.json}: {said}"])
        self.rows = {(row["label"], row["tokens"]): row for row in earlier["rows"]}
        self.report["peers"] = earlier["peers"] | self.report["peers"]
        self.done = {key for key, row in self.rows.items() if row["status"] in ("ok", "oom")}
        if not self.given.turns and self._pending(self.order):
            # What closes a campaign comes after all that it measured.
            self.done = {key for key in self.done if key[0] != files.LAST}

    def run(self) -> int:
        """Run what is pending, engine by engine or all in turn, until the time budget is used.

        Returns 1 if an engine failed, or on CPU gave other bits than resident; else 0.
        """
        for label in self.order:
            for tokens in self._pending([label]):
                if label in self.missing:
                    self._end(label, tokens, "absent", self.missing[label])
                elif (label, tokens) not in self.rows:
                    # Replaced by what comes of it; what the budget or a signal leaves stays.
                    self._end(label, tokens, "not run", "the call ended before")
        here = [label for label in self.order if label not in self.missing]
        for labels in [here] if self.given.turns else [[label] for label in here]:
            while (pending := self._pending(labels)) and time.monotonic() < self.until:
                self._start(labels, pending)
        bad = {"failed", "oom", "timeout", "non-finite"} & {r["status"] for r in self.rows.values()}
        inexact = [row for (label, n), row in self.rows.items()
                   if identical(row, self.rows.get((files.reference(label), n))) is False
                   and "latents_error" not in row["ranks"][0]]  # fmt: skip
        return int(bool(bad or self.given.device == "cpu" and inexact))

    def _pending(self, labels: Sequence[str]) -> list[int]:
        """The shapes that one of these engines has not run."""
        return [n for n in self.given.tokens if {(label, n) for label in labels} - self.done]

    def _start(self, labels: Sequence[str], pending: Sequence[int]) -> None:
        """Run the processes of some engines; afterwards at least one of ``pending`` has ended."""
        device, count, turns = self.given.device, self.given.ranks, self.given.turns
        timeout_s = TIMEOUT_S * (1 + turns)
        spec = self.report["settings"] | {
            "engines": labels, "code": self.code, "turns": turns or 1, "timeout_s": timeout_s,
            "grids": [[n, grid(n)] for n in pending],
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="wanreport-bench-") as folder:
            out, progress = Path(folder), Path(folder) / "progress"

            def collect() -> None:
                for n in self._pending(labels):
                    there = [out / f"rows-{n}-rank{rank}.json" for rank in range(count)]
                    if all(file.is_file() for file in there):
                        parts = [json.loads(file.read_text("utf-8")) for file in there]
                        for label, *ranks in zip(labels, *parts, strict=True):
                            self._end(label, n, "ok", ranks=ranks, out=out)

            deadline = min(time.monotonic() + timeout_s, self.until)
            results, codes = next(processes.together([processes.watching(
                device, "benchmarks.rank", spec, out, count, deadline, collect)]))  # fmt: skip
            collect()
            left = self._pending(labels)
            if left and (any(results) or time.monotonic() < self.until):
                at = progress.read_text("utf-8") if progress.is_file() else "attach"
                found = processes.failure(timeout_s, results, codes, at)
                # The other shapes get new processes; without attaching none of them would run.
                for label, n in product(labels, left if at == "attach" else left[:1]):
                    self._end(label, n, found["status"], found["reason"], out=out)

    def _end(self, label: str, tokens: int, status: str, reason: str = "",
             ranks: Sequence[Row] = (), out: Path | None = None) -> None:  # fmt: skip
        """Enter a row and write the JSON."""
        logs = sorted(out.rglob("*.log")) if out and not ranks else []
        row = {
            "label": label, "tokens": tokens, "grid": grid(tokens), "status": status,
            "reason": reason, "ranks": list(ranks),
            "log": "\n".join(file.read_text("utf-8", "replace") for file in logs)[-4000:],
            "transport": processes.transport(out) if out else [], "turns": self.given.turns,
            "settings": files.stream_settings(label, ranks), **git_state(),
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        self.rows.pop((label, tokens), None)
        self.rows[label, tokens] = row
        if status != "not run":
            self.done.add((label, tokens))
            print(self.line(row), flush=True)
        if self.given.json:
            report = self.report | {"rows": [*self.rows.values()]}
            replace_file(self.given.json, json.dumps(report, indent=1, allow_nan=False) + "\n")

    def line(self, row: Row) -> str:
        """A row as a line: milliseconds a step, beside resident's, the bits, and a note."""
        took, (median, low, high, n) = row["status"], step_ms(row)
        first = self.rows.get((files.reference(row["label"]), row["tokens"]))
        if n:
            of = median / step_ms(first or row).median
            took = f"{median:,.1f} [{low:,.1f}, {high:,.1f}] ms, n = {n}, {of:.3f} of {files.FIRST}"
        bits = {True: "same bits", False: "OTHER BITS", None: ""}[identical(row, first)]
        note = row["ranks"][0]["note"] if row["ranks"] else row["reason"]
        said = f"{row['tokens']:,} tokens", row["label"], took, bits, note
        return "; ".join(filter(None, said))


def step_ms(row: Row) -> Median:
    """Median, interval and n of a row's steps in ms, each with its slowest rank."""
    return median_interval(map(max, zip(*(r["samples_ms"] for r in row["ranks"]), strict=True)))


def identical(row: Row, reference: Row | None) -> bool | None:
    """Whether first and last outputs, on every rank, are resident's; None if unknown."""
    if not (row["ranks"] and reference and reference["ranks"]):
        return None
    keys = ("first_output_sha256", "output_sha256")
    found = {rank[key] for rank in row["ranks"] for key in keys}
    return found == {reference["ranks"][0]["output_sha256"]}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--device", choices=tuple(DEFAULTS), default="cuda" if gpus else "cpu",
        help="cpu: small widths, bits only, no times")  # fmt: skip
    add("--ranks", **FEW, default=1, help="Ulysses ranks, one GPU each (default 1)")
    add("--tokens", metavar="N,N,…", help="lengths of the sequence")
    add("--blocks", **FEW, help="blocks of the expert; A14B has 40 (default 20)")
    add("--branches", type=int, choices=(1, 2), default=1, help="2: a step with guidance")
    add("--engines", nargs="+", metavar="NAME[:KEY=VALUE,…]", default=ENGINES_AND_PEERS,
        help="default: " + " ".join(ENGINES_AND_PEERS)
             + "; with enable_cfg_parallel=true each branch has half of the ranks")  # fmt: skip
    add("--sglang", metavar="DIR", help="folder of its package, if it is not installed")
    add("--turns", **FEW, default=0, help="of each engine, all in one process; best even")
    add("--budget-minutes", type=float, default=math.inf, help="what is left then is not run")
    add("--json", type=Path, help="where the rows go; a call goes on with what is there")
    given = parser.parse_args(argv)
    tokens, blocks = DEFAULTS[given.device]
    given.blocks = given.blocks or blocks
    try:
        if machine.nodes() > 1:
            raise ValueError("benchmarks run on one node: unset WANREPORT_NODES")
        if given.device == "cuda" and given.ranks > gpus:
            raise ValueError(f"--ranks {given.ranks}: torch sees {gpus} GPUs here")
        given.tokens = sorted({int(n) for n in (given.tokens or tokens).split(",")})
        for n in given.tokens:
            if n < 1 or max(grid(n)) > 1024:  # what rotary embeddings reach
                raise ValueError(f"--tokens {n}: no video has this many; give a multiple of 1560")
        for label in given.engines:
            if make_engine(label).transfer == "fp8" and not given.turns:
                raise ValueError(f"{label} is not exact; give --turns, to see by how much")
            if files.CFG in label and (given.ranks % 2 or given.branches == 1):
                raise ValueError(f"{label} needs --branches 2 and an even number of --ranks")
    except ValueError as error:
        parser.error(str(error))
    return given


def main(argv: Sequence[str] | None = None) -> int:
    given = parse(argv)
    return ended("benchmarks", lambda _: Campaign(given).run())


if __name__ == "__main__":
    sys.exit(main())
