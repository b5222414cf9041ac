"""The ranks of a job: how they are started, watched and ended. Nothing here imports torch.

On GPUs torchrun starts them; on CPU they are forked from a small server, which imports torch once.
A rank finds ``spec.json`` in its job's folder and leaves ``rank<r>.json`` there, whatever happens;
it ends with what started it.
"""

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from wanreport.measure.machine import nodes

NSYS = "WANREPORT_NSYS"
"""Set to the program of Nsight Systems: ranks on GPUs run under it, and it records what is profiled
in place of torch's profiler, as both cannot."""
UNDER_NSYS = ("profile", "--trace=cuda,nvtx", "--sample=none", "--cuda-graph-trace=node",
              "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--kill=none",
              "--export=sqlite", "--force-overwrite=true")  # fmt: skip
START = "wanreport.measure.start"  # to import in ranks alone
POLL = 0.05  # seconds between two looks at ranks
GRACE = 15.0  # seconds that ranks get to end by themselves after one of them failed
LONGEST = 60  # of a folder for sockets, whose whole paths may have 107 characters
SURE = ("oom", "unsupported")  # a rank that says so knows more than one that died
# What an error says of itself -> the status that it gives a job.
MARKS = {"MemoryError": "oom", "out of memory": "oom", "Timed out": "timeout",
         "Watchdog caught collective operation timeout": "timeout",
         "FloatingPointError": "non-finite"}  # fmt: skip


class Unsupported(Exception):
    """A job that this machine or this package cannot run: the reason, and a hint at what would."""


def outcome(error: BaseException) -> dict[str, Any]:
    """The status, reason and hint that an error gives a job, in a rank or outside of them."""
    if isinstance(error, Unsupported):
        return {"status": "unsupported"} | dict(zip(("reason", "hint"), error.args, strict=True))
    said = f"{type(error).__name__}: {str(error).strip()}"
    if isinstance(error, SystemExit):  # of SIGTERM, as at a batch system's limit
        said = f"ended from outside (exit {error.code})"
    status = next((status for mark, status in MARKS.items() if mark in said), "failed")
    first, _, rest = said.partition("\n")
    cause = rest.partition("Last error:")[2]  # NCCL's
    return {"status": status, "reason": " ".join([first, *cause.split()])}


class ForkedRanks:
    """Ranks on CPU, forked from a server that has the imports behind it."""

    def __init__(self, out: Path, world_size: int, module: str) -> None:
        if len(kept := tempfile.gettempdir()) > LONGEST:  # then the server's socket goes elsewhere
            tempfile.tempdir = "/tmp"
            multiprocessing.util.get_temp_dir()  # which is asked once
            tempfile.tempdir = kept
        context = multiprocessing.get_context("forkserver")
        # What this program's main module imports, each rank would import again.
        context.set_forkserver_preload([START, "__main__", module])
        self.processes = [context.Process(target=_forked, args=(module, str(out), rank, world_size))
                          for rank in range(world_size)]  # fmt: skip
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


def _forked(module: str, out: str, rank: int, world_size: int) -> None:
    """A forked rank, whose output goes to its own log."""
    log = os.open(Path(out) / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def die_with_launcher() -> None:  # the parent is the server, which stays
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die_with_launcher, daemon=True).start()
    importlib.import_module(START).start(module, out, rank, world_size)


class TorchrunRanks:
    """Ranks on the GPUs of this host, or of all nodes of this Slurm job, where srun starts them."""

    def __init__(self, out: Path, world_size: int, module: str) -> None:
        self.log, self.world_size = out / "torchrun.log", world_size
        self.nodes, start, meet = nodes(), list[str](), ["--standalone"]
        if self.nodes > 1:
            with socket.create_server(("", 0)) as server:
                at = f"{socket.gethostname()}:{server.getsockname()[1]}"
            start = ["srun", f"--nodes={self.nodes}", f"--ntasks={self.nodes}", "--overlap",
                     "--cpu-bind=none", "--kill-on-bad-exit=1"]  # fmt: skip
            meet = [f"--nnodes={self.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={at}"]
        if nsys := os.environ.get(NSYS):
            start = [nsys, *UNDER_NSYS, f"--output={out / 'nsys'}", *start]
        path = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
        # NCCL says only in its log which transport it chose.
        told = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(out / "nccl.%h.%p.log"),
                "PYTHONPATH": os.pathsep.join(path)}  # fmt: skip
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [*start, sys.executable, "-m", "torch.distributed.run", *meet,
                 f"--nproc-per-node={world_size // self.nodes}", "--redirects=3",
                 f"--log-dir={out / 'logs'}", "-m", START, module, str(out)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent, env=os.environ | told,
                start_new_session=True,  # Ctrl-C then reaches only us, and we end them
            )  # fmt: skip

    def exit_codes(self) -> list[int | None]:
        code = self.process.poll()
        codes: list[int | None] = [None if code is None else 0] * self.world_size
        # It lists the ranks that failed by themselves, not those that it ended.
        listed = r"rank\s*: (\d+) \(local_rank.*?exitcode\s*: (-?\d+)"
        log = "" if code is None else self.log.read_text("utf-8", "replace")
        for rank, its in re.findall(listed, log, re.DOTALL):
            codes[int(rank)] = int(its)
        return codes

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and all ranks before it
            if self.nodes > 1:  # what is on other nodes only srun can end
                self.process.terminate()
                psutil.wait_procs([self.process], GRACE)
            family = [self.process, *self.process.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, GRACE)  # the next job needs their memory


KINDS: dict[str, Any] = {"cpu": ForkedRanks, "cuda": TorchrunRanks}
"""How ranks are started on a kind of device; each takes a folder, their number and a module."""


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of linux/prctl.h


def watching(
    kind: str, module: str, spec: dict[str, Any], out: Path, world_size: int, deadline: float,
    update: Callable[[], None],
) -> Generator[None, None, tuple[list[dict[str, Any] | None], list[int | None]]]:  # fmt: skip
    """Start ranks; end those that outlive a failed one or ``deadline`` (`time.monotonic`).

    Yields after each look at them. Returns what each rank left in ``out``, and the exit codes from
    before any was ended by us.
    """

    def results() -> list[dict[str, Any] | None]:
        files = [out / f"rank{rank}.json" for rank in range(world_size)]
        return [json.loads(f.read_text("utf-8")) if f.is_file() else None for f in files]

    (out / "spec.json").write_text(json.dumps(spec), "utf-8")
    ranks = KINDS[kind](out, world_size, module)
    try:
        while True:
            codes = ranks.exit_codes()
            update()
            if None not in codes or time.monotonic() > deadline:
                break
            if any(codes) or any(found and found["status"] != "ok" for found in results()):
                deadline = min(deadline, time.monotonic() + GRACE)
            yield
    finally:
        ranks.kill()
    return results(), codes


def together(begun: Iterable[Generator[None, None, Any]], at_once: int = 1) -> Iterator[Any]:
    """What each of these returns, as they end, while `at_once` run. A signal ends all of them."""
    waiting, active = iter(begun), list[Generator[None, None, Any]]()
    try:
        while active := [*active, *islice(waiting, at_once - len(active))]:
            for each in list(active):
                try:
                    next(each)
                except StopIteration as ended:
                    active.remove(each)
                    yield ended.value
            time.sleep(POLL)
    except BaseException as error:
        for each in active:  # of which one may have ended by it
            with contextlib.suppress(SystemExit):
                if isinstance(error, SystemExit):
                    each.throw(SystemExit(error.code))
            each.close()
        raise


def transport(out: Path) -> list[str]:
    """What NCCL's channels between ranks go over, as its log says: "P2P/CUMEM", "SHM/direct"."""
    logs = "".join(log.read_text("utf-8", "replace") for log in out.glob("nccl.*.log"))
    return sorted(set(re.findall(r"Channel .* via (\S+)", logs)))


def failure(
    timeout_s: float, results: Sequence[dict[str, Any] | None], codes: Sequence[int | None],
    last: str,
) -> dict[str, Any]:  # fmt: skip
    """Status and reason of ranks that were watched: the first cause, not its echoes."""
    told = sorted((r["status"] not in SURE, r["at"], rank, r)
                  for rank, r in enumerate(results) if r and r["status"] != "ok")  # fmt: skip
    died = sorted((code, rank) for rank, code in enumerate(codes) if code and not results[rank])
    # By SIGTERM torchrun ends the ranks that outlive one: a cause only where nothing else is one.
    died = [each for each in died if each[0] != -signal.SIGTERM] or ([] if told else died)
    status, reason = "failed", "the ranks ended without a result"
    if told and not (told[0][0] and died):
        _, _, rank, result = told[0]
        if result["status"] == "unsupported":
            return {key: result[key] for key in ("status", "reason", "hint")}
        status, reason = result["status"], f"rank {rank}: {result['reason']}"
    elif died:  # signals come first
        code, rank = died[0]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        reason = f"rank {rank} {how} without a result"
    elif None in codes:
        status, reason = "timeout", f"not done within timeout_s = {timeout_s:g} s"
    return {"status": status, "reason": f"{reason} ({last})"}
