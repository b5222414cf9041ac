"""Reads traces of torch.profiler: Kineto's JSON, gzipped or not, whole or cut off.

The file passes through a buffer and is never held whole. A batch of events that ends between two
events is decoded at once, into typed structures; where that fails, the batch is gone through event
by event, and what is not an event is skipped. So a file that ends anywhere gives all complete
events.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal, DecimalException
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wanreport.records.files import FileError
from wanreport.traces.events import KINDS, MISSING, MOST_EVENTS, STEPS, Rows, Trace

BATCH = 1 << 18  # bytes at once: all that is made of them stays in the processor's cache
LONGEST = 1 << 20  # bytes of one event
MOST_BETWEEN = 16 << 20  # bytes that may pass without an event; real ones have a few thousand
MOST_AROUND = 1 << 20  # bytes kept of what stands before and after the events
LATEST = 4 * 10**15  # microseconds since 1970: beyond the year 2090 no time is one
EXACT = 2.0**43  # below, a float of microseconds with three decimals stands for one time in ns
DAY = 86_400 * 10**9  # no event of a profile is longer

BEGIN = re.compile(rb'\A(?:\xef\xbb\xbf)?\s*\[|"traceEvents"\s*:\s*\[')
LAST = re.compile(rb'.*\}\s*(,)\s*(?=\{\s*")', re.DOTALL)  # the last place between two events
AGAIN = re.compile(
    r'\}\s*(?:,\s*(?=\{\s*"(?:ph|name|cat|pid|ts|args)"\s*:)|(?=\]\s*(?:,\s*"\w+"\s*:|\}?\s*\Z)))'
)
GAP = re.compile(r"[\s,\x00]*")
CALL, STEP, MEMORY, END = *map(KINDS.index, ("call", "step", "memory")), len(KINDS)
CATEGORIES = {  # the profiler writes what it has of a GPU before the end
    "kernel": 0, "memcpy": KINDS.index("copy"), "memset": KINDS.index("memset"),
    "runtime": CALL, "driver": CALL, "cuda_sync": KINDS.index("sync"), "cpu_instant_event": MEMORY,
    "user_annotation": STEP, "operator": STEP, "trace": END, "": END,
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
DIGITS = msgspec.json.Decoder(list[_Event], float_hook=str)  # slower
ONE = json.JSONDecoder(parse_float=str, parse_constant=str)
WRONG = (msgspec.MsgspecError, ValueError, RecursionError)


class Reader:
    """One file; what is lost of a damaged one is said in the trace's quality."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.decoder = path, Rows(), FLOATS
        self.count = self.skipped = self.size = 0  # events, what is none, bytes of JSON
        self.past_gpu = self.finished = self.phases = self.over = self.damaged = False

    def _inflated(self) -> Iterator[bytes]:
        """Yield a batch of the file each time, inflated where it is gzipped."""
        with self.path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            file = gzip.GzipFile(fileobj=raw) if zipped else raw
            try:
                while chunk := file.read1(BATCH):
                    self.size += len(chunk)
                    yield chunk
            except EOFError:
                self.rows.note("gzip cut", 1, f"the gzip stream stops at byte {raw.tell():,}")
            except (gzip.BadGzipFile, zlib.error) as error:
                self.damaged = True
                self.rows.note("corrupt", 1, f"before byte {raw.tell():,} of gzip ({error}); any"
                               " number of it may be wrong")  # fmt: skip

    def trace(self) -> Trace:
        """Read the file from its begin to its end."""
        chunks, buffer = self._inflated(), b""
        while not (found := BEGIN.search(buffer, max(0, len(buffer) - 2 * BATCH))):
            if len(buffer) > MOST_BETWEEN or not (chunk := next(chunks, b"")):
                raise FileError(f'is not a trace: no "traceEvents" in {self.size:,} bytes')
            buffer += chunk
        seen = found.end()  # where the last event ended
        around, buffer = buffer[: min(seen, MOST_AROUND)], buffer[seen:]
        for chunk in chain(chunks, [b""]):
            before = self.count
            buffer = self._batch(buffer + chunk, last=not chunk)
            seen = seen if self.count == before else self.size - len(buffer)
            if self.size - seen > MOST_BETWEEN:
                raise FileError(f"is not a trace: over {MOST_BETWEEN:,} bytes of it are not events")
            if self.over or self.rows.size >= MOST_EVENTS:
                break
        if self.over:
            for chunk in chunks:
                buffer = (buffer + chunk)[: 2 * MOST_AROUND]
            around += buffer
        if not self.phases and (self.count or self.skipped or b"traceEvents" not in around):
            raise FileError("is not a trace: its list holds no events")
        return self._told(around.decode("utf-8", "replace"))

    def _batch(self, buffer: bytes, last: bool) -> bytes:
        """Take the buffer's events up to the last complete one; returns what is left of it."""
        if not last and (gap := LAST.match(buffer, max(0, len(buffer) - (1 << 16)))):
            data = b"[" + buffer[: gap.start(1)] + b"]"
            for decoder in (self.decoder, DIGITS):
                with suppress(*WRONG):
                    self._keep(decoder.decode(data))
                    self.decoder = decoder
                    return buffer[gap.end() :]
        text, at = buffer.decode("utf-8", "surrogateescape"), 0
        events: list[_Event] = []
        while (at := GAP.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            if text[at] == "]":
                self.over, at = True, at + 1
                break
            end = 0
            try:
                value, end = ONE.raw_decode(text, at)
                events.append(msgspec.convert(value, _Event))
            except WRONG:
                if not end:
                    again = AGAIN.search(text, at + 1)
                    if not again or not last and len(text) - at < LONGEST:
                        break  # the rest of it may be on its way
                    end = again.end()
                self.skipped += 1
            at = end
        self._keep(events)
        return text[at:].encode("utf-8", "surrogateescape")

    def _keep(self, events: list[_Event]) -> None:
        """Keep the events that are of use; ValueError where a float does not tell a time."""
        some = [
            each for each in events if (kind := _kind(each.cat)) is not None
            and (each.ph == "X" if kind < STEP else self._of_use(each, kind))
        ]  # fmt: skip
        names, pids, tids, starts, lengths = (
            [*map(attrgetter(key), some)] for key in ("name", "pid", "tid", "ts", "dur")
        )
        start, ns, pid, tid = _ns(starts), _ns(lengths), integers(pids), integers(tids)
        self.count += len(events)
        self.phases |= bool(events and events[0].ph)
        args = [each.args or NO_ARGS for each in some]
        device, stream, correlation, nbytes, allocated, to, sent = (
            integers([*map(attrgetter(key), args)]) for key in _Args.__struct_fields__[:-1]
        )
        kinds = np.array([_kind(each.cat) for each in some], np.int8)
        ns[kinds == MEMORY] = 0
        fine = (ns >= 0) & (ns <= DAY)
        width = integers([WIDTHS.get(each.dtype, 0) for each in args])
        sent = np.where((sent > 0) & (sent < 1 << 56), sent, 0) * width
        self.rows.add(
            names, kind=kinds, start_ns=start, end_ns=np.where(fine, start + ns, MISSING),
            device=np.where(device >= 0, device, np.where((to >= 0) | (kinds >= CALL), to, pid)),
            stream=np.maximum(stream, -1), correlation=np.maximum(correlation, -1), process=0,
            thread=(pid << 32) ^ tid,
            bytes=np.where(sent > 0, sent, np.where(nbytes >= 0, nbytes, allocated)),
        )  # fmt: skip

    def _of_use(self, event: _Event, kind: int) -> bool:
        if kind == END:
            self.finished |= event.name == "Record Window End"
            self.past_gpu |= self.finished or event.cat == "Trace"
        step = event.ph == "X" and kind == STEP and STEPS.fullmatch(event.name)
        return bool(kind == MEMORY or step)

    def _told(self, around: str) -> Trace:
        """Make the trace; what stands around the events tells more of it."""
        note, full = self.rows.note, self.rows.size >= MOST_EVENTS
        cut = not self.over and not full
        note("too many events", full, f"only the first {self.rows.size:,} of use were read")
        note("cut", cut, f"the file ends after {self.count:,} complete events, and {self.size:,}"
             " bytes of JSON")  # fmt: skip
        note("skipped", self.skipped, "what was not an event is left out")
        for pattern, what, bad in LOST:
            if found := re.search(pattern, around):
                note("dropped", int(found[1][:18]) if found.lastindex else 1, what, bad)
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


@lru_cache(1000)
def _kind(category: str) -> int | None:
    """The kind of events of a category: a new one or an old, of CUDA or of HIP."""
    name = category.lower()
    return CATEGORIES.get(name, CATEGORIES.get(name.rpartition("_")[2] or "?"))


def integers(values: Sequence[Any]) -> np.ndarray:
    """An array of integers, with MISSING for what is none."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except (TypeError, ValueError, OverflowError):
        good = (v if type(v) is int and abs(v) < 1 << 62 else MISSING for v in values)
        return np.fromiter(good, np.int64, len(values))


def _ns(microseconds: Sequence[Any]) -> np.ndarray:
    """Times in integer ns, MISSING for what is none; ValueError where a float is not exact."""
    kinds = {*map(type, microseconds)}
    if kinds <= {int, float}:
        with suppress(OverflowError):
            floats = np.fromiter(microseconds, np.float64, len(microseconds))
            if (np.abs(floats) < EXACT).all():
                whole = floats.astype(np.int64)
                return whole * 1000 + np.rint((floats - whole) * 1000).astype(np.int64)
        if float in kinds:
            raise ValueError
    return np.array([_exact(str(each)) for each in microseconds])


def _exact(digits: str) -> int:
    try:
        time = Decimal(digits)
        return round(time * 1000) if abs(time) < LATEST else MISSING
    except (ValueError, DecimalException):
        return MISSING
