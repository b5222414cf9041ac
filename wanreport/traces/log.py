"""Reads what SGLang's diffusion models print, 0.5.9 and 0.5.23 alike.

That is the resolved ``server_args``, the parameters of a request (0.5.9 prints them at debug
level), a progress bar of steps, times of steps and stages, peaks of memory (of rank 0, where GB
are GiB) and tracebacks. A log is streamed, and whatever it holds becomes plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanreport.records.files import FileError

LONGEST_LINE, MOST_ITERATIONS, LONGEST_ERROR = 1 << 20, 100, 300
SMOOTHING = 0.3  # of tqdm's rate, an exponential average
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\x20-\x7e\xa0-\u1fff\u2030-\u2064\u2070-\ud7ff]")
RANK = re.compile(r"^(?:\[rank\d+\]: ?|\d{1,3}: (?=\S))")
BAR = re.compile(r"\s*\d{1,3}%\|.*?(\d{1,5})/(\d{1,5}) \[[\d:]+<[\d:?]+, +([\d.]+|\?)(s/it|it/s)")
NUMBER = r"(\d{1,12}(?:\.\d+)?)"
SAYS = {name: re.compile(pattern) for name, pattern in {
    "args": r"server_args: (\{.*\})\s*$", "asking": r"Sampling params:()",
    "warming": r"Processing warmup req()", "warmed": rf"armup req.* processed in {NUMBER} s",
    "average_s": rf"average time per step: {NUMBER} s",
    "stage": rf"\[(\w+) *\] finished in {NUMBER} s",
    "total_s": rf"Pixel data generated successfully in {NUMBER} s",
    "peaks": rf"GPU memory: (?:peak=)?{NUMBER} GB, (?:Peak )?allocated[:=] ?{NUMBER} GB",
    "peak_mb": rf"Memory usage - Max peak: {NUMBER} MB",
    "version": r"(?i)\bsglang(?: version)?[ =:-]{1,3}v?(\d+\.\d+\.\d+\w*)",
    "began": r"^\[?(\d\d-\d\d \d\d:\d\d:\d\d)\b", "traceback": r"Traceback \(most recent call l()",
}.items()}  # fmt: skip
RAISED = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)(?::.*)?$")
ENDED = {  # how a batch system or the kernel ended it: status, what the log says
    "timeout": re.compile(r"DUE TO TIME LIMIT"),
    "oom": re.compile(r"oom[-_]kill", re.IGNORECASE),
    "failed": re.compile(r"\bCANCELLED AT\b|Segmentation fault|^Killed\b"),
}


@dataclass
class Iteration:
    """One pass over the schedule, as a log has it; times in seconds, memory in bytes."""

    warmup: bool = False
    stages_s: dict[str, float] = field(default_factory=dict)
    total: int = 0  # steps, …
    at: int = 0  # … and how many are done
    rates: dict[int, float] = field(default_factory=dict)  # of the progress bar, by steps done
    average_s: float | None = None
    total_s: float | None = None
    memory: dict[str, int] | None = None
    dumped: list[float] | None = None

    @property
    def denoised(self) -> bool:
        """Whether all steps are done."""
        return bool(self.average_s or self.dumped or (self.total and self.at == self.total))

    @property
    def steps(self) -> list[float]:
        """Each step's time: of the perf dump, or what the bar's averages come from; else none."""
        if self.dumped or not self.total or [*self.rates] != [*range(1, self.total + 1)]:
            return self.dumped or []
        sums = [rate * (1 - (1 - SMOOTHING) ** n) for n, rate in self.rates.items()]
        found = [(now - (1 - SMOOTHING) * before) / SMOOTHING
                 for before, now in zip([0.0, *sums[:-1]], sums, strict=True)]  # fmt: skip
        return [round(each, 4) for each in found] if min(found) > 0 else []


class Log:
    """What a log says: `args`, `asked` (of a request), `iterations`, `errors`, `version`, ….

    Raises
    ------
    FileError
        Naming the file, where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.args: dict[str, Any] = {}
        self.asked: dict[str, float] = {}
        self.iterations: list[Iteration] = []
        self.errors: list[str] = []
        self.status = self.version = self.began = ""
        self.before: dict[str, float] = {}  # stages ahead of an iteration
        self.warming = self.asking = self.traceback = False
        try:
            for line in _lines(path):
                self._take(line)
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error

    def add(self) -> Iteration:
        """Begin an iteration."""
        if len(self.iterations) >= MOST_ITERATIONS:
            raise FileError(f"{self.path}: has over {MOST_ITERATIONS} iterations; give one job's")
        self.iterations.append(Iteration(self.warming, self.before))
        self.before = {}
        return self.iterations[-1]

    def _take(self, line: str) -> None:
        last = self.iterations[-1] if self.iterations else None
        if bar := BAR.match(line):
            self._bar(last, int(bar[1]), int(bar[2]), bar[3], bar[4])
            return
        if self.asking:
            found = re.fullmatch(rf" +(\w+): {NUMBER}", line)
            self.asked |= {found[1]: float(found[2])} if found else {}
            self.asking = "output_file_path:" not in line
        for name, pattern in SAYS.items():
            if found := pattern.search(line):
                self._said(name, last, *found.groups())
        ended = [status for status, pattern in ENDED.items() if pattern.search(line)]
        self.status = self.status or next(iter(ended), "")
        if ended or self.traceback and RAISED.match(line):
            self.traceback, self.errors = False, [*self.errors[:9], line.strip()[:LONGEST_ERROR]]

    def _bar(self, last: Iteration | None, at: int, total: int, rate: str, unit: str) -> None:
        if last is None or last.total not in (0, total) or at < last.at or last.total_s:
            last = self.add()
        last.total, last.at = total, at
        if rate != "?" and at <= total and float(rate) > 0:
            last.rates.setdefault(at, float(rate) if unit == "s/it" else 1 / float(rate))

    def _said(self, name: str, last: Iteration | None, text: str, more: str = "") -> None:
        match name:
            case "args":
                try:
                    self.args = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise FileError(f"{self.path}: server_args is no JSON ({error})") from None
            case "version" | "began":
                setattr(self, name, getattr(self, name) or text.replace(" ", "T"))
            case "asking" | "warming" | "traceback":
                setattr(self, name, True)
            case "stage":
                over = last is None or last.warmup or "DenoisingStage" in last.stages_s
                later = over and not (last and "Decod" in text)
                (self.before if later or last is None else last.stages_s)[text] = float(more)
            case "average_s":
                over = last is None or last.warmup or bool(last.average_s or last.total_s)
                (self.add() if over or last is None else last).average_s = float(text)
            case "peaks" | "peak_mb":
                last, unit = last or self.add(), 2**20 if name == "peak_mb" else 2**30
                keys = zip(("reserved_bytes", "allocated_bytes"), (text, more), strict=True)
                found = {key: round(float(each) * unit) for key, each in keys if each}
                last.memory = last.memory or found
            case _:  # one is over, and whatever went wrong before did it no harm
                last = last if last and last.warmup == (name == "warmed") else self.add()
                last.total_s, self.errors, self.status = float(text), [], ""
                self.warming = False


def _lines(path: Path) -> Iterator[str]:
    """A log's lines without control characters; a progress bar's are parted by returns."""
    with path.open("rb") as file:
        while data := file.readline(LONGEST_LINE):
            for part in data.decode("utf-8", "replace").rstrip("\n").split("\r"):
                yield RANK.sub("", CONTROL.sub("", part))
