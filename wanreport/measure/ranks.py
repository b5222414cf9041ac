"""The ranks of a job: how they are started, watched and ended. Nothing here imports torch.

On GPUs torchrun starts them. On CPU they are forked from a small server, which imports torch once
for all jobs of this process. A rank leaves ``rank<r>.json`` in the job's folder. Everything that is
started dies with what started it, so that no rank outlives this process, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

WORKER = "wanreport.measure.worker"
NSYS = "WANREPORT_NSYS"
"""Set to the program of Nsight Systems: ranks on GPUs run under it, and it records what is profiled
in place of torch's profiler, as both cannot."""
UNDER_NSYS = ("profile", "--trace=cuda,nvtx", "--sample=none", "--cuda-graph-trace=node",
              "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--kill=none",
              "--export=sqlite", "--force-overwrite=true")  # fmt: skip
GRACE = 15.0  # seconds that ranks get to end by themselves after one of them failed
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ForkedRanks:
    """Ranks on CPU, forked from a server that has the imports behind it."""

    def __init__(self, spec: Path, out: Path, world_size: int, module: str = WORKER) -> None:
        context = multiprocessing.get_context("forkserver")
        # What this program's main module imports, each rank would import again.
        context.set_forkserver_preload(["__main__", module])
        self.processes = [
            context.Process(target=_forked, args=(module, str(spec), str(out), rank, world_size))
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def exit_codes(self) -> list[int | None]:
        """Of each process; None while it runs, negative for a signal."""
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(GRACE)


def _forked(module: str, spec: str, out: str, rank: int, world_size: int) -> None:
    """A forked rank, whose output goes to its own log."""
    log = os.open(Path(out) / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    gc.freeze()  # the server's imports are no garbage, and stay shared if nobody counts them
    importlib.import_module(module).main(spec, out, rank, world_size)


def _die_with_launcher() -> None:
    """End this rank with the process that asked for it; its parent is the server, which stays."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class TorchrunRanks:
    """Ranks on the GPUs of this host."""

    def __init__(self, spec: Path, out: Path, world_size: int, module: str = WORKER) -> None:
        self.out, self.world_size = out, world_size
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={world_size}", "--redirects=3", f"--log-dir={out / 'logs'}",
            "-m", module, str(spec), str(out),
        ]  # fmt: skip
        if nsys := os.environ.get(NSYS):
            command = [nsys, *UNDER_NSYS, f"--output={out / 'nsys'}", *command]
        # NCCL says only in its log which transport it chose.
        told = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(out / "nccl.%p.log")}
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        with (out / "torchrun.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent, env=os.environ | told | {"PYTHONPATH": path},
                # Ctrl-C then reaches only us, and we end them.
                start_new_session=True,
            )  # fmt: skip

    def exit_codes(self) -> list[int | None]:
        code = self.process.poll()
        if code is None:
            return [None] * self.world_size
        codes: list[int | None] = [0] * self.world_size
        # It lists the ranks that failed by themselves, not those that it ended because of them.
        log = (self.out / "torchrun.log").read_text(errors="replace")
        for rank, its in re.findall(
            r"rank\s*: (\d+) \(local_rank.*?exitcode\s*: (-?\d+)", log, re.S
        ):
            codes[int(rank)] = int(its)
        return codes

    def kill(self) -> None:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and all ranks before it
            family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()  # which it passes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for process in (self.process, *family):  # a rank that hangs in a kernel needs more
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, GRACE)  # the next job needs their memory


KINDS: dict[str, Any] = {"cpu": ForkedRanks, "cuda": TorchrunRanks}
"""How ranks are started on a kind of device; each takes spec, folder, number and module."""


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch(
    ranks: ForkedRanks | TorchrunRanks,
    out: Path,
    world_size: int,
    deadline: float,
    update: Callable[[], None],
) -> tuple[list[dict[str, Any] | None], list[int | None]]:
    """Wait for ranks and end those that outlive a failed one or ``deadline`` (`time.monotonic`).

    Returns
    -------
    What each rank left in ``out``, and the exit codes from before any was ended by us: those say
    nothing about the cause.
    """
    try:
        while True:
            codes = ranks.exit_codes()
            update()
            if all(code is not None for code in codes) or time.monotonic() > deadline:
                break
            results = [_result(out, rank) for rank in range(world_size)]
            if any(codes) or any(r and r["status"] != "ok" for r in results):
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.05)
    finally:
        ranks.kill()
    return [_result(out, rank) for rank in range(world_size)], codes


def _result(out: Path, rank: int) -> dict[str, Any] | None:
    path = out / f"rank{rank}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def transport(out: Path) -> list[str]:
    """What NCCL's channels between ranks go over, as its log says: "P2P/CUMEM", "SHM/direct"."""
    logs = "".join(log.read_text(errors="replace") for log in out.glob("nccl.*.log"))
    return sorted(set(re.findall(r"Channel .* via (\S+)", logs)))


def failure(
    timeout_s: float,
    results: Sequence[dict[str, Any] | None],
    codes: Sequence[int | None],
    last: str,
) -> dict[str, Any]:
    """Status and reason of ranks that did not end well: the first cause, not its echoes.

    ``results`` are what each rank left, where failures say when (``at``), and ``codes`` the exit
    codes from before the launcher ended the rest; ``last`` is the last progress there was.
    """
    told = sorted((r["at"], k) for k, r in enumerate(results) if r and r["status"] != "ok")
    first = [k for _, k in told]
    # A rank that ran out of memory or refused the job knows more than one that died.
    sure = [k for k in first if (results[k] or {}).get("status") in ("oom", "unsupported")]
    died = [k for k, code in enumerate(codes) if code and results[k] is None]
    # By SIGTERM torchrun ends the ranks that outlive one: a cause only where nothing else is one.
    died = [k for k in died if codes[k] != -signal.SIGTERM] or ([] if told else died)
    died.sort(key=lambda k: codes[k] or 0)  # signals first
    if died and not sure:
        code = codes[died[0]] or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        reason = f"rank {died[0]} {how} without a result"
        return {"status": "failed", "reason": f"{reason} ({last})"}
    for rank in sure or first:
        result = results[rank] or {}
        if result["status"] == "unsupported":
            return {key: result[key] for key in ("status", "reason", "hint")}
        return {"status": result["status"], "reason": f"rank {rank}: {result['reason']} ({last})"}
    if None in codes:
        reason = f"not done within timeout_s = {timeout_s:g} s"
        return {"status": "timeout", "reason": f"{reason} ({last})"}
    return {"status": "failed", "reason": f"the ranks ended without a result ({last})"}
