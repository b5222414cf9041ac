"""Reads what SGLang's diffusion models print, 0.5.9 and 0.5.23 alike.

That is the resolved ``server_args``, the parameters of a request (0.5.9 prints them at debug
level), a progress bar of steps, times of steps and stages, peaks of memory (of rank 0, where GB
are GiB) and tracebacks. A log is streamed, and whatever it holds becomes plain text.
"""

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from wanreport.records.files import FileError

LONGEST_LINE, MOST_ITERATIONS, LONGEST_ERROR = 1 << 20, 100, 300
SMOOTHING = 0.3  # of tqdm's rate, an exponential average
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\x20-\x7e\xa0-\u1fff\u2030-\u2064\u2070-\ud7ff]")
RANK = re.compile(r"^(?:\[rank\d+\]: ?|\d{1,3}: (?=\S))")
NUMBER = r"(\d{1,12}(?:\.\d+)?)"
SAYS = {name: re.compile(pattern) for name, pattern in {
    "bar": r"^\s*\d{1,3}%\|.*?(\d{1,5})/(\d{1,5}) \[[\d:]+<[\d:?]+, +([\d.]+|\?)(s/it|it/s)",
    "args": r"server_args: (\{.*\})\s*$", "warming": r"(Processing warmup req)",
    "asked": rf"^ +(width|height|num_frames|infer_steps|flow_shift): {NUMBER}\s*$",
    "stage": rf"\[(\w+) *\] finished in {NUMBER} s",
    "average_s": rf"average time per step: {NUMBER} s",
    "total_s": rf"Pixel data generated successfully in {NUMBER} s",
    "warmed": rf"armup req.* processed in {NUMBER} s",
    "peaks": rf"GPU memory: (?:peak=)?{NUMBER} GB, (?:Peak )?allocated[:=] ?{NUMBER} GB",
    "peak_mb": rf"Memory usage - Max peak: {NUMBER} MB",
    "version": r"(?i)\bsglang(?: version)?[ =:-]{1,3}v?(\d+\.\d+\.\d+\w*)",
    "began": r"^\[?(\d\d-\d\d \d\d:\d\d:\d\d)\b", "traceback": r"(Traceback) \(most recent call l",
}.items()}  # fmt: skip
ORDER = ("bar", "average_s", "Denois", "Decod", "total_s", "warmed")
"""What an iteration prints, stages by the begin of their names: back in this order is the next."""
RAISED = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)(?::.*)?$")
ENDED = {  # how a batch system or the kernel ended it: status, what the log says
    "timeout": re.compile(r"DUE TO TIME LIMIT"),
    "oom": re.compile(r"oom[-_]kill", re.IGNORECASE),
    "failed": re.compile(r"\bCANCELLED AT\b|Segmentation fault|^Killed\b"),
}


@dataclass
class Iteration:
    """One pass over the schedule; times in seconds, memory in bytes."""

    warmup: bool = False
    stages_s: dict[str, float] = field(default_factory=dict)
    seen: int = 0  # how far in `ORDER`
    total: int = 0  # steps, …
    at: int = 0  # … and how many are done
    rates: dict[int, float] = field(default_factory=dict)  # of the progress bar, by steps done
    average_s: float | None = None
    total_s: float | None = None
    memory: dict[str, int] | None = None
    given: list[float] = field(default_factory=list)  # steps' times, of another file
    steps_from: str = "progress bar"

    @property
    def steps(self) -> list[float]:
        """Each step's time: of another file, or what the bar's averages come from; else none."""
        if self.given or not self.total or [*self.rates] != [*range(1, self.total + 1)]:
            return self.given
        sums = [rate * (1 - (1 - SMOOTHING) ** n) for n, rate in self.rates.items()]
        found = [(now - (1 - SMOOTHING) * last) / SMOOTHING for last, now in pairwise([0.0, *sums])]
        return [round(each, 4) for each in found] if min(found) > 0 else []


class Log:
    """What a log says: `args`, `asked`, `iterations`, `errors`, …; raises FileError."""

    def __init__(self, path: Path) -> None:
        self.path, self.args, self.asked = path, dict[str, Any](), dict[str, float]()
        self.iterations, self.errors = list[Iteration](), list[str]()
        self.status = self.version = self.began = self.warming = self.traceback = ""
        self.before: dict[str, float] = {}  # stages ahead of an iteration
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                while line := file.readline(LONGEST_LINE):  # a progress bar's end with returns
                    self._read(RANK.sub("", CONTROL.sub("", line)))
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or error
            raise FileError(f"{path}: cannot be read as a log of SGLang ({why})") from error

    def iteration(self, name: str = "", again: bool = False) -> Iteration:
        """The iteration that prints something of `ORDER` now; the last one for anything else."""
        place, last = ORDER.index(name) if name else 0, self.iterations[-1:]
        if not last or again or name and place < last[0].seen + (name == "average_s"):
            last = [Iteration(bool(self.warming), self.before)]
            self.iterations, self.before = self.iterations + last, {}
            if len(self.iterations) > MOST_ITERATIONS:
                raise ValueError(f"over {MOST_ITERATIONS} iterations; give one job's")
        last[0].seen = max(place, last[0].seen)
        return last[0]

    def _read(self, line: str) -> None:
        for name, pattern in SAYS.items():
            if found := pattern.search(line):
                self._take(name, *found.groups())
        ended = next((each for each in ENDED if ENDED[each].search(line)), "")
        self.status = self.status or ended
        if ended or self.traceback and RAISED.match(line):
            self.traceback = ""
            self.errors = [*self.errors[:9], line.strip()[:LONGEST_ERROR]]

    def _take(self, name: str, said: str, *more: str) -> None:
        match name:
            case "bar":
                at, total, (rate, unit) = int(said), int(more[0]), more[1:]
                last = (self.iterations or [Iteration()])[-1]
                last = self.iteration(name, at < last.at or last.total not in (0, total))
                last.at, last.total = at, total
                if rate != "?" and at <= total and float(rate) > 0:
                    last.rates.setdefault(at, float(rate) if unit == "s/it" else 1 / float(rate))
            case "args":
                try:
                    self.args = json.loads(said)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"server_args is not JSON: {error}") from None
            case "asked":
                self.asked[said] = float(more[0])
            case "stage":
                own = [each for each in ORDER if each in said]
                (self.iteration(own[0]).stages_s if own else self.before)[said] = float(more[0])
            case "average_s":
                self.iteration(name).average_s = float(said)
            case "peaks" | "peak_mb":
                size, last = 2**20 if name == "peak_mb" else 2**30, self.iteration()
                found = zip(("reserved_bytes", "allocated_bytes"), (said, *more), strict=False)
                last.memory = last.memory or {key: round(float(n) * size) for key, n in found}
            case "total_s" | "warmed":
                self.iteration(name).total_s = float(said)
                # One is over, and whatever went wrong before did it no harm.
                self.errors, self.status, self.warming = [], "", ""
            case _:
                setattr(self, name, getattr(self, name) or said.replace(" ", "T"))
