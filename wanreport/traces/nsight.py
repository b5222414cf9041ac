"""Reads SQLite exports of Nsight Systems, which are opened read-only.

Tables are exported only where they hold something, so any of them may be missing; and so may
columns, which differ between versions. Times are in ns since the capture began.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
CODES = {"copyKind": COPY_KINDS, "srcKind": MEMORY_KINDS, "dstKind": MEMORY_KINDS,
         "syncType": SYNC_KINDS}  # fmt: skip
NUMBERS = {"start": "start_ns", "end": "end_ns", "bytes": "bytes", "deviceId": "device",
           "streamId": "stream", "globalPid": "process", "globalTid": "thread",
           "correlationId": "correlation"}  # fmt: skip
GAPS = ("start_ns", "end_ns", "bytes")  # missing where there is none
FIX = "give what `nsys export --type sqlite` makes of a report"


def read(path: Path) -> Trace:
    """Read an export."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _read(path, database)
    except sqlite3.Error as error:
        raise FileError(f"{path}: cannot be read as SQLite ({error}); {FIX}") from error


def _read(path: Path, database: sqlite3.Connection) -> Trace:
    database.text_factory = lambda text: text.decode("utf-8", "replace")
    tables: dict[str, set[str]] = defaultdict(set)
    columns = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"
    for table, column in database.execute(columns):
        tables[table].add(column)
    if not any(name.startswith((ACTIVITY, "NVTX_", "TARGET_INFO_")) for name in tables):
        raise FileError(f"{path}: holds no table of Nsight Systems; {FIX}")

    def select(table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a table; None where it lacks a column, and none where it is not there."""
        if table in tables:
            asked = (f'"{name}"' if name in tables[table] else "NULL" for name in columns)
            yield from database.execute(f"SELECT {', '.join(asked)} FROM {table}")

    rows, strings = Rows(), dict(select("StringIds", "id", "value"))
    for kind, (table, *named) in TABLES.items():
        found = select(table, *NUMBERS, *named)
        while rows.size < MOST_EVENTS and (taken := list(islice(found, AT_ONCE))):
            batch = pd.DataFrame(taken, columns=[*NUMBERS.values(), *named], dtype=object)
            name = _names(kind, batch[named], strings)
            if kind == "step":
                batch, name = (some[name.str.fullmatch(STEPS)] for some in (batch, name))
            numbers = {column: integers(batch[column], MISSING if column in GAPS else -1)
                       for column in NUMBERS.values()}  # fmt: skip
            pid, thread, nbytes = (numbers.pop(key) for key in ("process", "thread", "bytes"))
            own = np.where(thread < 0, -1, thread & PROCESS)
            rows.add(name, kind=kind, thread=thread, process=np.where(pid < 0, own, pid),
                     bytes=np.where(nbytes < 0, MISSING, nbytes), **numbers)  # fmt: skip
    full = rows.size >= MOST_EVENTS
    rows.note("too many events", full, f"only the first {rows.size:,} were read")
    for severity, text in select("DIAGNOSTIC_EVENT", "severity", "text"):
        if severity in (2, 3):  # warning, error
            rows.note("profiler", 1, str(text)[:300], severity == 3)
    graphs = sum(1 for _ in select(ACTIVITY + "GRAPH_TRACE", "start"))
    rows.note("graphs traced whole", graphs, "copies inside of them are not in the file;"
              " record with --cuda-graph-trace=node")  # fmt: skip
    gpus = select("TARGET_INFO_GPU", "id", "name")
    return rows.trace(
        path, whole=not full, format="Nsight Systems", rank=None, events=rows.size + rows.odd,
        finished=None, gpus={int(i): str(name) for i, name in gpus if isinstance(i, int)},
    )  # fmt: skip


def _names(kind: str, codes: pd.DataFrame, strings: Mapping[Any, str]) -> pd.Series:
    """Events' names by what their table has of them."""
    said = []
    for column, code in codes.items():
        known = dict(enumerate(CODES[column])) if column in CODES else strings
        found = code.map(known).astype(object)
        unknown = code if column == "text" else "unknown" if column in CODES else ""
        said.append(found.where(found.notna(), unknown).fillna("").astype(str))
    if kind == "copy":
        return "Memcpy " + said[0] + " (" + said[1] + " -> " + said[2] + ")"
    name = pd.Series("", codes.index)
    for each in said:
        name = name.where(name != "", each)
    return name.str.replace(r"_v\d+$", "", regex=True).replace("", kind)
