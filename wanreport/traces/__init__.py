"""Traces from anywhere: any profiler's file to one DataFrame of events, and what copies did."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

from wanreport.records.files import FileError
from wanreport.traces import kineto, nsight
from wanreport.traces.events import Trace

FIX = ("give a JSON file of torch.profiler, gzipped or not, or what `nsys export --type sqlite`"
       " makes of a report")  # fmt: skip


def read(path: str | Path) -> Trace:
    """Read a trace of torch.profiler or of Nsight Systems; FileError, naming it, if it is none."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                return kineto.Reader(path).trace()
        address = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            return nsight.read(path, database)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (FileError, sqlite3.Error, pd.errors.DatabaseError) as error:
        raise FileError(f"{path}: {error}; {FIX}") from error
