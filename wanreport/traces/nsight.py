"""Reads SQLite exports of Nsight Systems, which are opened read-only.

Tables are exported only where they hold something, so any of them may be missing; and so may
columns, which differ between versions. Times are in ns since the capture began.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from wanreport.records.files import FileError
from wanreport.traces.events import MISSING, MOST_EVENTS, STEPS, Rows, Trace, integers

MAGIC = b"SQLite format 3\0"
AT_ONCE = 50_000
PROCESS = ~0xFFFFFF  # of a global thread's number, the part that is its process'
ACTIVITY = "CUPTI_ACTIVITY_KIND_"
TABLES = {  # by the kind of event: the table, and its columns that tell an event's name
    "kernel": (ACTIVITY + "KERNEL", "shortName", "demangledName"),
    "copy": (ACTIVITY + "MEMCPY", "copyKind", "srcKind", "dstKind"),
    "memset": (ACTIVITY + "MEMSET",),
    "call": (ACTIVITY + "RUNTIME", "nameId"),
    "sync": (ACTIVITY + "SYNCHRONIZATION", "syncType"),
    "overhead": (ACTIVITY + "OVERHEAD", "nameId"),
    "step": ("NVTX_EVENTS", "text", "textId"),
}
COPY_KINDS = ("<unknown>", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH",
              "PtoP", "HtoD", "DtoH", "DtoD")  # fmt: skip
MEMORY_KINDS = ("Pageable", "Pinned", "Device", "Array", "Managed", "Device Static",
                "Managed Static", "Unknown")  # fmt: skip
SYNC_KINDS = ("Unknown", "Event Sync", "Stream Wait Event", "Stream Sync", "Context Sync")
NUMBERS = ("start", "end", "bytes", "deviceId", "streamId", "globalPid", "globalTid",
           "correlationId")  # fmt: skip


def read(path: Path) -> Trace:
    """Read an export."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _Reader(path, database).trace()
    except sqlite3.Error as error:
        raise FileError(
            f"{path}: cannot be read as an SQLite export of Nsight Systems ({error});"
            " export it again: nsys export --type sqlite"
        ) from error


class _Reader:
    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self.database, self.rows = path, database, Rows()
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        self.tables: dict[str, set[str]] = defaultdict(set)
        columns = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"
        for table, column in database.execute(columns):
            self.tables[table].add(column)
        if not any(name.startswith((ACTIVITY, "NVTX_", "TARGET_INFO_")) for name in self.tables):
            raise FileError(
                f"{path}: holds no table of Nsight Systems; give what `nsys export --type sqlite`"
                " makes of a report"
            )

    def trace(self) -> Trace:
        """Read all tables."""
        rows, strings = self.rows, dict(self._select("StringIds", "id", "value"))
        for kind, (table, *named) in TABLES.items():
            found = self._select(table, *NUMBERS, *named)
            while rows.size < MOST_EVENTS and (batch := list(islice(found, AT_ONCE))):
                names = [_name(kind, strings, *row[len(NUMBERS) :]) for row in batch]
                if kind == "step":
                    steps = [bool(STEPS.fullmatch(name)) for name in names]
                    batch, names = list(compress(batch, steps)), list(compress(names, steps))
                if batch:
                    self._take(kind, batch, names)
        full = rows.size >= MOST_EVENTS
        rows.note("too many events", full, f"only the first {rows.size:,} were read")
        for severity, text in self._select("DIAGNOSTIC_EVENT", "severity", "text"):
            if severity in (2, 3):  # warning, error
                rows.note("profiler", 1, str(text)[:300], severity == 3)
        graphs = sum(1 for _ in self._select(ACTIVITY + "GRAPH_TRACE", "start"))
        rows.note("graphs traced whole", graphs, "copies inside of them are not in the file;"
                  " record with --cuda-graph-trace=node")  # fmt: skip
        gpus = self._select("TARGET_INFO_GPU", "id", "name")
        return rows.trace(
            whole=not full, file=str(self.path), format="Nsight Systems", rank=None,
            size_bytes=self.path.stat().st_size, events=rows.size + rows.odd, finished=None,
            gpus={int(number): str(name) for number, name in gpus if isinstance(number, int)},
        )  # fmt: skip

    def _select(self, table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a table; None where it lacks a column, and none where it is not there."""
        if table in self.tables:
            have = self.tables[table]
            asked = ", ".join(f'"{name}"' if name in have else "NULL" for name in columns)
            yield from self.database.execute(f"SELECT {asked} FROM {table}")

    def _take(self, kind: str, batch: list[tuple[Any, ...]], names: list[str]) -> None:
        columns = list(zip(*batch, strict=True))
        start, end, nbytes = (integers(column, MISSING) for column in columns[:3])
        device, stream, pid, tid, correlation = map(integers, columns[3 : len(NUMBERS)])
        process = np.where(pid < 0, np.where(tid < 0, -1, tid & PROCESS), pid)
        self.rows.add(
            kind=kind, name=[self.rows.name(name) for name in names], start_ns=start, end_ns=end,
            bytes=np.where(nbytes < 0, MISSING, nbytes), device=device, stream=stream,
            process=process, thread=tid, correlation=correlation,
        )  # fmt: skip


def _name(kind: str, strings: dict[Any, str], *codes: Any) -> str:
    """An event's name by what its table has of it."""

    def one(names: Sequence[str], number: Any) -> str:
        known = isinstance(number, int) and 0 <= number < len(names)
        return names[number] if known else "unknown"

    match kind:
        case "copy":
            ends = [one(MEMORY_KINDS, code) for code in codes[1:]]
            return f"Memcpy {one(COPY_KINDS, codes[0])} ({ends[0]} -> {ends[1]})"
        case "sync":
            return one(SYNC_KINDS, codes[0])
        case "step" if isinstance(codes[0], str):
            return codes[0]
    text = next((strings[code] for code in codes if strings.get(code)), "")
    return re.sub(r"_v\d+$", "", text) or kind
