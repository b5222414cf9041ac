"""Traces from anywhere: any profiler's file to one DataFrame of events, and what copies did."""

from __future__ import annotations

from pathlib import Path

from wanreport.records.files import FileError
from wanreport.traces import kineto, nsight
from wanreport.traces.events import Trace


def read(path: str | Path) -> Trace:
    """Read a trace of torch.profiler (JSON, gzipped or not) or of Nsight Systems (SQLite).

    Raises FileError, naming the file and what to do, where it holds no trace.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            exported = file.read(16) == b"SQLite format 3\0"
        return nsight.read(path) if exported else kineto.Reader(path).trace()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
