"""Reads traces of torch.profiler: Kineto's JSON, gzipped or not, whole or cut off.

The file passes through a buffer and is never held whole. A batch of events that ends between two
events is decoded at once, into typed structures; where that fails, the batch is gone through event
by event, and what is no event is skipped. So a file that ends anywhere gives all complete events.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal, DecimalException
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from wanreport.records.files import FileError
from wanreport.traces.events import KIND, MISSING, MOST_EVENTS, ON_GPU, STEPS, Rows, Trace

CHUNK, BATCH = 1 << 20, 4 << 20
MOST_BETWEEN = 16 << 20  # bytes that may pass without an event; real ones have a few thousand
MOST_AROUND = 1 << 20  # bytes kept of what stands before and after the events
LATEST = 4 * 10**15  # microseconds since 1970: beyond the year 2090 no time is one
EXACT = 2.0**43  # below, a float of microseconds with three decimals stands for one time in ns
DAY = 86_400 * 10**9  # no event of a profile is longer

BEGIN = re.compile(rb'\A(?:\xef\xbb\xbf)?\s*\[|"traceEvents"\s*:\s*\[')
BETWEEN = re.compile(rb'(?<=\})\s*,\s*(?=\{\s*")')
AGAIN = re.compile(
    r'\}\s*(?:,\s*(?=\{\s*"(?:ph|name|cat|pid|ts|args)"\s*:)|(?=\]\s*(?:,\s*"\w+"\s*:|\}?\s*\Z)))'
)
GAP = re.compile(r"[\s,\x00]*")
CATEGORIES = {  # the profiler writes what it has of a GPU before the "end"
    "kernel": "kernel", "memcpy": "copy", "memset": "memset", "runtime": "call",
    "driver": "call", "cuda_sync": "sync", "cpu_instant_event": "memory",
    "user_annotation": "step", "operator": "step", "trace": "end",
    "": "end",
}  # fmt: skip
LOST = (  # what the profiler says of events that it did not keep, and if steps may lack them
    (r"Exceeded max GPU buffer count", "the profiler's buffers were full; it stopped there", True),
    (r"CUPTI stopped early\? = [1-9]", "the profiler stopped early", True),
    (r"Out-of-range = ([1-9]\d*)", "lay outside the recorded window and were dropped", False),
)

Number = int | float | str | None
WIDTHS: dict[Number, int] = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "BFloat16": 2, "Half": 2,
                             "Char": 1, "Byte": 1}  # fmt: skip


class _Args(msgspec.Struct, gc=False):
    device: Number = -1
    stream: Number = -1
    correlation: Number = -1
    bytes: Number = MISSING
    allocated: Number = msgspec.field(default=MISSING, name="Bytes")
    to: Number = msgspec.field(default=-1, name="inDevice")  # a copy between GPUs has this alone
    sent: Number = msgspec.field(default=MISSING, name="In msg nelems")  # of a collective
    dtype: Number = ""


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = -1
    tid: int | str = -1
    ts: Any = None
    dur: Any = None
    args: _Args | None = None


NO_ARGS = _Args()
FLOATS = msgspec.json.Decoder(list[_Event])
DECIMALS = msgspec.json.Decoder(list[_Event], float_hook=Decimal)
ONE = json.JSONDecoder(parse_float=Decimal)
WRONG = (msgspec.MsgspecError, ValueError, RecursionError, DecimalException)


class Reader:
    """One file; what is lost of a damaged one is said in the trace's quality."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.chunks = path, Rows(), self._inflated()
        self.threads: dict[tuple[int | str, int | str], int] = {}
        self.buffer = bytearray()
        self.count = self.skipped = self.size = 0  # events, what is none, bytes of JSON
        self.past_gpu = self.finished = self.phases = self.over = self.damaged = False

    def _inflated(self) -> Iterator[bytes]:
        """The file's bytes, inflated where it is gzipped; never more than a chunk at once."""
        with self.path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if zipped else raw
            try:
                yield from iter(partial(file.read1, CHUNK), b"")
            except EOFError:
                self.rows.note("gzip cut", 1, f"the gzip stream stops at byte {raw.tell():,}")
            except (gzip.BadGzipFile, zlib.error) as error:
                self.damaged = True
                what = f"the gzip stream is damaged before byte {raw.tell():,} ({error});"
                self.rows.note("corrupt", 1, f"{what} any number of it may be wrong")

    def _more(self) -> bool:
        chunk = next(self.chunks, b"")
        self.size += len(chunk)
        self.buffer += chunk
        return bool(chunk)

    def trace(self) -> Trace:
        """Read the file from its begin to its end."""
        while not (found := BEGIN.search(self.buffer)):
            if len(self.buffer) > MOST_BETWEEN or not self._more():
                raise self._no_trace(f'no "traceEvents" in its first {self.size:,} bytes')
        end = found.end()
        del found  # it holds the buffer
        around = self.buffer[: min(end, MOST_AROUND)]
        del self.buffer[:end]
        wanted, idle, last = BATCH, 0, False
        while not (last or self.over or self.rows.size >= MOST_EVENTS):
            last = not self._more()
            if len(self.buffer) < wanted and not last:
                continue
            before, done = self.count, self._batch(last)
            del self.buffer[:done]
            wanted = BATCH if done else 2 * len(self.buffer)
            idle = 0 if self.count > before else idle + done
            if idle + len(self.buffer) > MOST_BETWEEN:
                raise self._no_trace(f"more than {MOST_BETWEEN:,} bytes of it are not events")
        inside = "inside an event" if self.buffer.strip(b"\0 \t\r\n,") else "after an event"
        while self.over and self._more():
            del self.buffer[2 * MOST_AROUND :]
        around += self.buffer[: 2 * MOST_AROUND] if self.over else b""
        odd = self.count or self.skipped or (self.buffer and b"traceEvents" not in around)
        if odd and not self.phases:
            raise self._no_trace("its list holds no events")
        return self._told(inside, around.decode("utf-8", "replace"))

    def _batch(self, last: bool) -> int:
        """Take the buffer's events up to the last complete one; returns its bytes done with."""
        near = max(0, len(self.buffer) - (1 << 16))
        if not last and (gaps := [gap.span() for gap in BETWEEN.finditer(self.buffer, near)]):
            with suppress(*WRONG):
                data = b"".join((b"[", memoryview(self.buffer)[: gaps[-1][0]], b"]"))
                events = FLOATS.decode(data)
                if any(type(event.ts) is float and event.ts >= EXACT for event in events):
                    events = DECIMALS.decode(data)
                self._keep(events)
                return gaps[-1][1]
        return self._one_by_one(last)

    def _one_by_one(self, last: bool) -> int:
        text, at = self.buffer.decode("utf-8", "surrogateescape"), 0
        events: list[_Event] = []
        while (at := GAP.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            if text[at] == "]":
                self.over, at = True, at + 1
                break
            end = None
            try:
                value, end = ONE.raw_decode(text, at)
                events.append(msgspec.convert(value, _Event))
            except WRONG:
                if end is None:
                    if not last and len(text) - at < CHUNK:
                        break  # the rest of it may be on its way
                    if (following := AGAIN.search(text, at + 1)) is None:
                        break
                    end = following.end()
                self.skipped += 1
            at = end
        self._keep(events)
        return len(text[:at].encode("utf-8", "surrogateescape"))

    def _keep(self, all_events: list[_Event]) -> None:
        """Keep the events that are of use."""
        self.count += len(all_events)
        self.phases |= bool(all_events and all_events[0].ph)
        events, kinds = [], []
        for event in all_events:
            kind = _kind(event.cat)
            if kind == "end":
                self.finished |= event.name == "Record Window End"
                self.past_gpu |= self.finished or event.cat == "Trace"
            elif kind == "memory" or event.ph == "X" and kind and (
                kind != "step" or STEPS.fullmatch(event.name)
            ):  # fmt: skip
                events.append(event)
                kinds.append(kind)
        if not events:
            return
        kind, threads = pd.Series(kinds, dtype=KIND), self.threads
        args = [event.args or NO_ARGS for event in events]
        names, pids, tids, starts, lengths = (
            [*map(attrgetter(key), events)] for key in ("name", "pid", "tid", "ts", "dur")
        )
        device, stream, correlation, nbytes, allocated, to, sent = (
            integers([*map(attrgetter(key), args)]) for key in _Args.__struct_fields__[:-1]
        )
        width = np.array([WIDTHS.get(each.dtype, 0) for each in args])
        sends = (width > 0) & (sent > 0) & (sent < 1 << 56)
        start, length = _ns(starts), np.where(kind == "memory", 0, _ns(lengths))
        fine = (start != MISSING) & (length >= 0) & (length <= DAY)
        self.rows.add(
            names, kind=kind, start_ns=start, end_ns=np.where(fine, start + length, MISSING),
            device=np.select([device >= 0, to >= 0, kind.isin(ON_GPU)],
                             [device, to, integers(pids)], -1),
            stream=np.maximum(stream, -1), correlation=np.maximum(correlation, -1), process=0,
            thread=[threads.setdefault(each, len(threads))
                    for each in zip(pids, tids, strict=True)],
            bytes=np.select([sends, nbytes >= 0, kind == "memory"],
                            [sent * width, nbytes, allocated], MISSING),
        )  # fmt: skip

    def _told(self, inside: str, around: str) -> Trace:
        """Make the trace; what stands around the events tells more of it."""
        note, full = self.rows.note, self.rows.size >= MOST_EVENTS
        cut = not self.over and not full
        note("too many events", full, f"only the first {self.rows.size:,} of use were read")
        note("cut", cut, f"the file ends {inside}, after {self.count:,} complete events and"
             f" {self.size:,} bytes of JSON")  # fmt: skip
        note("skipped", self.skipped, "what was not an event is left out")
        for pattern, what, bad in LOST:
            if found := re.search(pattern, around):
                note("dropped", int(found[1][:18]) if found.groups() else 1, what, bad)
        base = re.search(r'"baseTimeNanoseconds"\s*:\s*"?(\d{1,19})', around)
        rank = re.search(r'"rank"\s*:\s*"?(\d{1,9})', around)
        rank = rank or re.search(r"rank[-_]?(\d{1,9})", self.path.name)
        gpus = re.findall(r'"id"\s*:\s*(\d{1,9})\s*,\s*"name"\s*:\s*"([^"]*)"', around)
        return self.rows.trace(
            self.path, format="Kineto", finished=self.finished,
            whole=(self.past_gpu or not (cut or full)) and not self.damaged,
            shift=min(int(base[1]), LATEST * 1000) if base else 0, events=self.count,
            rank=int(rank[1]) if rank else None,
            gpus={int(number): name for number, name in gpus},
        )  # fmt: skip

    def _no_trace(self, why: str) -> FileError:
        return FileError(
            f"{self.path}: is not a trace ({why}); give a JSON file of torch.profiler,"
            " gzipped or not, or an SQLite export of Nsight Systems"
        )


@lru_cache(1000)
def _kind(category: str) -> str:
    """The kind of events of a category: a new one or an old, of CUDA or of HIP."""
    name = category.lower()
    return CATEGORIES.get(name, CATEGORIES.get(name.rpartition("_")[2] or "?", ""))


def integers(values: Sequence[Any]) -> np.ndarray:
    """An array of integers, with MISSING for what is none."""
    try:
        return np.array(values, np.int64)
    except (TypeError, ValueError, OverflowError):
        good = (v if type(v) is int and abs(v) < 1 << 62 else MISSING for v in values)
        return np.fromiter(good, np.int64)


def _ns(microseconds: Sequence[Any]) -> np.ndarray:
    """Times in integer nanoseconds, exactly; MISSING for what is none."""
    with suppress(ValueError, OverflowError):
        times = np.array(microseconds)
        most = {"i": LATEST, "f": EXACT}.get(times.dtype.kind)
        if times.ndim == 1 and most and (np.abs(times) < most).all():
            whole = times.astype(np.int64)
            return whole * 1000 + np.rint((times - whole) * 1000).astype(np.int64)
    found = np.full(len(microseconds), MISSING)
    for at, value in enumerate(microseconds):
        with suppress(TypeError, ValueError, DecimalException):  # no number, or NaN
            if abs(number := Decimal(value)) < LATEST:
                found[at] = int((number * 1000).to_integral_value())
    return found
