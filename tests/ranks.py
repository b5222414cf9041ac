"""Runs a function in several ranks, forked from this process, which has imported torch."""

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

LONGEST_S = 120.0
# Where there are GPUs ranks are forked from a server.
multiprocessing.set_forkserver_preload(["benchmarks.rank", "tests.models", "hypothesis"])


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, backend: str = "gloo"
) -> list[Any]:
    """``function(*args)`` in each rank of a new group; the results in rank order.

    The first rank that fails ends the others, and its traceback is in the exception.
    """
    # CUDA does not outlive a fork, and what is imported here may have begun to use it.
    how = "spawn" if backend != "gloo" else "forkserver" if torch.cuda.is_available() else "fork"
    with tempfile.TemporaryDirectory() as folder:
        given = function, folder, world_size, args, backend
        ranks: Any = start_processes(
            _rank, given, world_size, join=False, daemon=True, start_method=how
        )
        end = time.monotonic() + LONGEST_S
        try:
            while not ranks.join(1.0):
                assert time.monotonic() < end, "a rank gave no result in time"
        finally:
            for process in ranks.processes:
                process.kill()
        return [torch.load(f"{folder}/{n}", weights_only=False) for n in range(world_size)]


def in_ranks(world_size: int) -> Callable[..., Any]:
    """Have a test run in each of so many ranks; what it asks for must be parameters."""

    def make(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(**given: Any) -> None:
            run_ranks(run, world_size, *given.values())  # by its name a rank finds this one

        return run

    return make


def _rank(rank: int, function: Any, folder: str, world_size: int, args: Any, backend: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    gc.freeze()  # what was imported is not looked through for garbage, nor copied for that
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size,
        timeout=timedelta(seconds=100), device_id=device,
    )  # fmt: skip
    try:
        torch.save(unwrap(function)(*args), f"{folder}/{rank}")
    except BaseException as error:  # torch tells of Exceptions alone, and pytest's are not
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    os._exit(0)
