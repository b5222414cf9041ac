"""Makes pages in warm processes, several at a time: each has imported what pages need."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from wanreport.report import render

_SPAWN = multiprocessing.get_context("spawn")
_KILLED = "its process was killed, most often for want of memory; run again, with --workers 1"
_FIXED = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}  # no threads where there is a fork


def make_pages(
    pages: Sequence[render.Page], root: Path, environment: Mapping[str, str], workers: int
) -> Iterator[tuple[render.Page, str, float]]:
    """Make pages and yield each as it ends, with its problem ("" for none) and its seconds.

    A process that dies takes down no page but its own. If the caller stops before the end, nothing
    goes on running.
    """
    todo = list(reversed(pages))
    busy: dict[Connection, tuple[Any, render.Page, float]] = {}
    idle: list[tuple[Connection, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wanreport-", ignore_cleanup_errors=True) as folder:
        try:
            while todo or busy:
                while todo and len(busy) < workers:
                    pipe, process = idle.pop() if idle else _start(root, environment, folder)
                    page = todo.pop()
                    busy[pipe] = process, page, time.monotonic()
                    with contextlib.suppress(ConnectionError):  # it died: seen below
                        pipe.send(page)
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    process, page, begun = busy.pop(ready)
                    problem = _KILLED
                    with contextlib.suppress(EOFError, ConnectionError):
                        problem = ready.recv()
                        idle.append((ready, process))
                    yield page, problem, time.monotonic() - begun
        finally:
            for process in [each for each, *_ in busy.values()] + [each for _, each in idle]:
                process.kill()  # a notebook ends itself when its parent has gone
                process.join()


def _start(root: Path, environment: Mapping[str, str], folder: str) -> tuple[Connection, Any]:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_work, args=(there, root, folder))
    before = dict(os.environ)
    os.environ.update({**_FIXED, **environment})  # it reads some before it reads its arguments
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    there.close()
    return here, process


def _work(pipe: Connection, root: Path, folder: str) -> None:
    """Make the pages that come until there are no more."""
    tempfile.tempdir = folder  # the parent removes it, even if this process is killed
    # Ctrl-C reaches the whole foreground group; ending this process is for the parent to decide.
    signal.signal(signal.SIGINT, lambda *_: None)
    os.chdir(root)
    render.warm()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            page = pipe.recv()
            try:
                problem = render.make(page, root)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            pipe.send(problem)
