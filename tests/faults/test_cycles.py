"""Nothing grows, however often engines come and go."""

import gc
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.models import run_engine
from tests.ranks import in_ranks
from wanreport.engines import ENGINES, Stream
from wanreport.jobs.settings import StreamSettings

SMALL = {"size": (16, 16, 1), "num_layers": 2, "steps": 2, "iterations": 1}


def _held():
    """What this rank holds."""
    dist.barrier()  # until then gloo's threads hold what the last collective exchanged
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
                for each in tensors if each.device.type == "cpu"}  # fmt: skip
    own = psutil.Process()
    maps = Path("/proc/self/maps").read_text("utf-8")
    return {"bytes": sum(storages.values()), "mappings": maps.count("wanreport-weights"),
            "descriptors": own.num_fds(), "threads": own.num_threads()}  # fmt: skip


@pytest.mark.faults
@in_ranks(2)
def test_twenty_cycles_leave_nothing():
    made = [*ENGINES.values(), lambda prefetch: Stream(StreamSettings(2, transfer="packed"))]
    for make in made:
        for cycle in range(20):
            run_engine(make(prefetch=1), **SMALL)
            if cycle == 1:
                before = _held()
        assert _held() == before
