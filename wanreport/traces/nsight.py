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
COPY_KINDS = ("<unknown>", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH",
              "PtoP", "HtoD", "DtoH", "DtoD")  # fmt: skip
MEMORY_KINDS = ("Pageable", "Pinned", "Device", "Array", "Managed", "Device Static",
                "Managed Static", "Unknown")  # fmt: skip
SYNC_KINDS = ("Unknown", "Event Sync", "Stream Wait Event", "Stream Sync", "Context Sync")
COLUMNS = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"
VERSION = re.compile(r"_v\d+$")
NUMBERS = ("start", "end", "deviceId", "streamId", "globalPid", "globalTid", "correlationId",
           "bytes")  # fmt: skip


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
        for table, column in database.execute(COLUMNS):
            self.tables[table].add(column)
        self.strings: dict[Any, str] = dict(self._select("StringIds", "id", "value"))
        if not any(name.startswith((ACTIVITY, "NVTX_", "TARGET_INFO_")) for name in self.tables):
            raise FileError(
                f"{path}: holds no table of Nsight Systems; give what `nsys export --type sqlite`"
                " makes of a report"
            )

    def trace(self) -> Trace:
        """Read all tables."""
        rows = self.rows
        self._take(ACTIVITY + "KERNEL", "kernel", "shortName", "demangledName")
        self._take(ACTIVITY + "MEMCPY", "copy", "copyKind", "srcKind", "dstKind")
        self._take(ACTIVITY + "MEMSET", "memset")
        self._take(ACTIVITY + "RUNTIME", "call", "nameId")
        self._take(ACTIVITY + "SYNCHRONIZATION", "sync", "syncType")
        self._take(ACTIVITY + "OVERHEAD", "overhead", "nameId")
        self._take("NVTX_EVENTS", "step", "text", "textId")
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

    def _take(self, table: str, kind: str, *named: str) -> None:
        """Take the events of a table; `named` columns tell their names."""
        rows = self._select(table, *NUMBERS, *named)
        numbers = len(NUMBERS)
        while self.rows.size < MOST_EVENTS and (batch := list(islice(rows, AT_ONCE))):
            names = [self._name(kind, *row[numbers:]) for row in batch]
            if kind == "step":
                found = [bool(STEPS.fullmatch(name)) for name in names]
                batch, names = list(compress(batch, found)), list(compress(names, found))
            if not batch:
                continue
            columns = list(zip(*batch, strict=True))
            start, end, nbytes = (integers(columns[i], MISSING) for i in (0, 1, 7))
            device, stream, pid, tid, correlation = (integers(columns[i]) for i in range(2, 7))
            process = np.where(pid < 0, np.where(tid < 0, -1, tid & PROCESS), pid)
            self.rows.add(
                kind=kind, start_ns=start, end_ns=end, device=device,
                name=[self.rows.name(name) for name in names], stream=stream,
                process=process, thread=tid,
                bytes=np.where(nbytes < 0, MISSING, nbytes), correlation=correlation,
            )  # fmt: skip

    def _name(self, kind: str, first: Any = None, second: Any = None, third: Any = None) -> str:
        text = self.strings.get(first) or self.strings.get(second) or ""
        if kind == "copy":
            ends = [_of(MEMORY_KINDS, each) for each in (second, third)]
            return f"Memcpy {_of(COPY_KINDS, first)} ({ends[0]} -> {ends[1]})"
        if kind == "sync":
            return _of(SYNC_KINDS, first)
        if kind == "step":
            return first if isinstance(first, str) else text
        return VERSION.sub("", text) or kind


def _of(names: Sequence[str], number: Any) -> str:
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else "unknown"
