"""Reads SQLite exports of Nsight Systems, which are opened read-only.

Tables are exported only where they hold something, so any of them may be missing; and so may
columns, which differ between versions. Times are in ns since the capture began.
"""

import sqlite3
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from wanreport.records.files import FileError
from wanreport.traces.events import KINDS, MISSING, MOST_EVENTS, STEPS, Rows, Trace

PROCESS = ~0xFFFFFF  # of a global thread's number, the part that is its process'
ACTIVITY = "CUPTI_ACTIVITY_KIND_"
TABLES = {  # by the kind of event: the table, and its columns that tell an event's name
    "kernel": (ACTIVITY + "KERNEL", "shortName", "demangledName"),
    "copy": (ACTIVITY + "MEMCPY", "copyKind", "srcKind", "dstKind"),
    "memset": (ACTIVITY + "MEMSET",), "call": (ACTIVITY + "RUNTIME", "nameId"),
    "sync": (ACTIVITY + "SYNCHRONIZATION", "syncType"),
    "step": ("NVTX_EVENTS", "text", "textId"),
}  # fmt: skip
MEMORY = dict(enumerate(("Pageable", "Pinned", "Device", "Array", "Managed", "Device Static",
                         "Managed Static")))  # fmt: skip
CODES: dict[str, dict[int, str]] = {
    "copyKind": dict(enumerate(("<unknown>", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA",
                                "DtoD", "HtoH", "PtoP", "HtoD", "DtoH", "DtoD"))),
    "srcKind": MEMORY, "dstKind": MEMORY,
    "syncType": dict(enumerate(("Unknown", "Event Sync", "Stream Wait Event", "Stream Sync",
                                "Context Sync"))),
}  # fmt: skip
NUMBERS = {"start": "start_ns", "end": "end_ns", "bytes": "bytes", "deviceId": "device",
           "streamId": "stream", "globalPid": "process", "globalTid": "thread",
           "correlationId": "correlation"}  # fmt: skip


def read(path: Path, database: sqlite3.Connection) -> Trace:
    """Read an export, opened as a database."""
    database.text_factory = lambda text: text.decode("utf-8", "replace")
    there = {tuple(pair) for pair in database.execute(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c")}  # fmt: skip
    tables = {table for table, _ in there}
    if not any(table.startswith((ACTIVITY, "NVTX_", "TARGET_INFO_")) for table in tables):
        raise FileError("holds no table of Nsight Systems")

    def select(table: str, *columns: str) -> Any:
        """Rows of a table, by batches; None where it lacks a column, -1 or none for numbers."""
        asked = []
        for name in columns:
            none = MISSING if NUMBERS.get(name, "").endswith(("_ns", "bytes")) else -1
            known = f'"{name}"' if (table, name) in there else "NULL"
            number = f"CASE typeof({known}) WHEN 'integer' THEN {known} ELSE {none} END"
            asked.append(f'{number if name in NUMBERS else known} AS "{name}"')
        query = f'SELECT {", ".join(asked)} FROM "{table}"'
        return pd.read_sql(query, database, chunksize=50_000) if table in tables else ()

    rows, strings = Rows(), dict[Any, str]()
    for some in select("StringIds", "id", "value"):
        strings |= zip(some.id, some.value, strict=True)
    for kind, (table, *named) in TABLES.items():
        for batch in select(table, *NUMBERS, *named):
            if rows.size >= MOST_EVENTS:
                break
            batch["name"] = _names(kind, batch[named], strings)
            if kind == "step":
                batch = batch[batch.name.str.fullmatch(STEPS)]
            batch = batch[["name", *NUMBERS]].rename(columns=NUMBERS)
            own = (batch.thread & PROCESS).where(batch.thread >= 0, -1)
            rows.add(**batch.assign(
                kind=KINDS.index(kind), process=batch.process.where(batch.process >= 0, own),
                bytes=batch.bytes.where(batch.bytes >= 0, MISSING)))  # fmt: skip
    full = rows.size >= MOST_EVENTS
    rows.note("too many events", full, f"only the first {rows.size:,} were read")
    for some in select("DIAGNOSTIC_EVENT", "severity", "text"):
        for severity, text in some[some.severity.isin([2, 3])].itertuples(index=False):
            rows.note("profiler", 1, str(text)[:300], severity == 3)  # else a warning
    graphs = sum(map(len, select(ACTIVITY + "GRAPH_TRACE", "start")))
    rows.note("graphs traced whole", graphs, "copies inside of them are not in the file;"
              " record with --cuda-graph-trace=node")  # fmt: skip
    gpus = {int(number): str(name) for some in select("TARGET_INFO_GPU", "id", "name")
            for number, name in some.itertuples(index=False)}  # fmt: skip
    return rows.trace(path, whole=not full, format="Nsight Systems", rank=None, finished=None,
                      events=rows.size + rows.odd, gpus=gpus)  # fmt: skip


def _names(kind: str, codes: pd.DataFrame, strings: dict[Any, str]) -> pd.Series:
    """Events' names by what their table has of them."""
    said = [codes[name] if name == "text" else codes[name].map(CODES.get(name, strings))
            for name in codes]  # fmt: skip
    if kind == "copy":
        way, source, target = (each.fillna("unknown") for each in said)
        return "Memcpy " + way + " (" + source + " -> " + target + ")"
    name = reduce(pd.Series.fillna, said, pd.Series(None, codes.index, object))
    return name.fillna(kind).astype(str).str.replace(r"_v\d+$", "", regex=True)
