"""Runs a function in several ranks, forked from this process, which has imported torch."""

import gc
import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist

# Where there are GPUs ranks are forked from a server.
multiprocessing.set_forkserver_preload(["benchmarks.rank", "tests.models", "hypothesis"])


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, backend: str = "gloo"
) -> list[Any]:
    """``function(*args)`` in each rank of a new group; the results in rank order."""
    # CUDA does not outlive a fork, and what is imported here may have begun to use it.
    how = "spawn" if backend != "gloo" else "forkserver" if torch.cuda.is_available() else "fork"
    context: Any = multiprocessing.get_context(how)
    results, pipes, processes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(world_size):
            mine, theirs = context.Pipe(duplex=False)
            given = function, folder, rank, world_size, theirs, args, backend
            processes.append(context.Process(target=_rank, args=given))
            processes[-1].start()
            theirs.close()
            pipes.append(mine)
        try:
            for rank, pipe in enumerate(pipes):
                assert pipe.poll(120), f"rank {rank} gave no result in time"
                ok, value = pipe.recv()
                assert ok, f"rank {rank}:\n{value}"
                results.append(torch.load(io.BytesIO(value), weights_only=False))
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    return results


def in_ranks(world_size: int) -> Callable[..., Any]:
    """Have a test run in each of so many ranks; what it asks for must be parameters."""

    def make(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(**given: Any) -> None:
            run_ranks(run, world_size, *given.values())  # by its name a rank finds this one

        return run

    return make


def _rank(
    function: Any, folder: str, rank: int, world_size: int, pipe: Any, args: Any, backend: str
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    gc.freeze()  # what was imported is not looked through for garbage, nor copied for that
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank) if backend == "nccl" else None
    try:
        if device is not None:
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size,
            timeout=timedelta(seconds=100), device_id=device,
        )  # fmt: skip
        buffer = io.BytesIO()
        torch.save(unwrap(function)(*args), buffer)  # by value: the rank is gone when it is read
        pipe.send((True, buffer.getvalue()))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        os._exit(0)
