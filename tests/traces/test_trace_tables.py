"""The tables of traces: what blocks, how fast, what a step moves, runs beside and may be."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.traces.madeup import PAGEABLE, PINNED, Event, event, events, put, text
from wanreport.analysis import frames
from wanreport.analysis.overlap import shares
from wanreport.report import render
from wanreport.traces import copies as c
from wanreport.traces import read
from wanreport.traces.events import Trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Trace:
    """A trace of two steps, whose times are easy to follow."""
    return traced(tmp_path, [
        event("user_annotation", "ProfilerStep#1", 0, 1000),
        event("user_annotation", "ProfilerStep#2", 1000, 1000),
        *pair(1, 10, "cudaMemcpyAsync", PINNED, 100, 100, bytes=2000),
        *pair(2, 20, "cudaLaunchKernel", "gemm", 150, 150),
        *pair(3, 40, "cudaLaunchKernel", "ncclDevKernel_AllGather", 160, 20),
        # launched by the first step, runs in the second
        *pair(4, 900, "cudaMemcpyAsync", PAGEABLE, 1100, 50, bytes=100),
        *pair(5, 1100, "cudaMemcpyAsync", PINNED, 1200, 200, bytes=4000),
        event("cuda_runtime", "cudaStreamSynchronize", 1180, 400, correlation=6),
        *pair(7, 1700, "cudaMemcpy", PINNED, 1710, 10, bytes=40),
        *pair(8, 1750, "cudaLaunchKernel", "gemm", 1760, 40),
        event("cuda_runtime", "cudaMalloc", 1800, 7, correlation=9),
        {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": 1, "args": {"Bytes": -8}},
    ])  # fmt: skip


def pair(
    number: int, at: int, call: str, name: str, begin: int, ns: int, **more: int
) -> list[Event]:
    """A call and what it launched."""
    cat = "gpu_memcpy" if "Memcpy" in name else "kernel"
    gpu = {"device": 0, "stream": 23 if more else 7, "correlation": number, **more}
    launch = event("cuda_runtime", call, at, 10, correlation=number)
    return [launch, event(cat, name, begin, ns, 0, **gpu)]


def traced(folder: Path, some: list[Event]) -> Trace:
    """The trace of some events, all calls of which are of one thread."""
    one = {"tid": 1}
    some = [one | e | (one if e.get("cat") == "cuda_runtime" else {}) for e in some]
    return read(put(folder, text(some)))


def test_what_copies_are_to_the_host_and_run_beside(made: Trace) -> None:
    copies = c.copies_of(made).set_index("correlation")
    assert dict(copies.how) == {1: "async", 4: "may_block", 5: "blocking", 7: "blocking"}
    rows = c.summary([made], link_gb_s=21)
    counted = ["step", "copies", *c.HOW, "host_device", "kernels", "collectives"]
    assert rows[counted].fillna(-1).to_numpy().tolist() == [
        [-1, 4, 2, 1, 1, 0, 4, 3, 1], [1, 2, 0, 1, 1, 0, 2, 2, 1], [2, 2, 2, 0, 0, 0, 2, 1, 0]
    ]  # fmt: skip
    timed = ["copies_ns", "hidden_ns", "hidden_alone_ns", "exposed_ns", "exposed_alone_ns",
             "in_collectives_ns", "kernels_ns", "collectives_ns"]  # fmt: skip
    assert rows[timed].to_numpy().tolist() == [
        [360, 50, 30, 310, 310, 20, 190, 20], [150, 50, 30, 100, 100, 20, 150, 20],
        [210, 0, 0, 210, 210, 0, 40, 0]
    ]  # fmt: skip
    whole = rows.iloc[0]
    assert whole.meeting_gb_s == 20 and whole.outside_gb_s == pytest.approx(4140 / 260)
    assert whole.inside_gb_s == pytest.approx((2000 - 21 * 80) / 20)
    assert pd.isna(rows.meeting_gb_s[2]) and pd.isna(c.summary([made]).inside_gb_s[0])


def test_steps_that_lack_something_have_no_figures(tmp_path: Path) -> None:
    kept = [e for e in events(4) if e.get("cat") != "kernel" or e["ts"] * 1000 > 3000]
    trace = traced(tmp_path, kept)
    rows = c.summary([trace]).set_index("step")[["copies", "hidden_ns"]]
    assert not trace.steps.complete.iloc[0] and rows[rows.index.isna()].notna().all(axis=None)
    assert rows[rows.index == 4].isna().all(axis=None)


def test_bandwidth_by_memory_and_of_the_link(made: Trace) -> None:
    rows = c.bandwidth([made], measured_gb_s=25).set_index("memory")
    assert rows.copies.to_dict() == {"pageable": 1, "pinned": 3, "all": 4}
    found = rows.loc["pinned", ["weighted_gb_s", "of_peak", "of_measured"]]
    assert [*found] == pytest.approx([6040 / 310 / each for each in (1, c.link(made, 0), 25)])
    assert rows.share_20_up["all"] == pytest.approx(300 / 360)
    # Half of all bytes go at 20 GB/s or less, and a tenth of copies at no more than 2.6 GB/s.
    assert rows.median_by_bytes_gb_s["all"] == rows.p10_by_bytes_gb_s["all"] == 20
    assert rows.p10_gb_s["all"] == pytest.approx(np.percentile([20, 2, 20, 4], 10))
    assert c.bandwidth([made], peak_gb_s=10).of_peak.isna().sum() == 2  # faster than such a link
    for gpu, peak in {"NVIDIA H100 PCIe": 63.015, "NVIDIA A100": 31.508, "Tesla V100": 15.754,
                      "NVIDIA GH200": np.nan, "Another": np.nan}.items():  # fmt: skip
        made.facts["gpus"][0] = gpu
        assert c.link(made, 0) == pytest.approx(peak, rel=1e-4, nan_ok=True)


def test_what_a_step_moves_waits_for_and_allocates(made: Trace) -> None:
    rows = c.budget([made], measured_gb_s=10).set_index("scenario")
    assert set(rows.step_bytes) == {6140 / 2} and set(rows.compute_ns) == {190 / 2}
    assert rows.ns["measured"] == pytest.approx(307) and rows.share["measured"] == 307 / 95
    assert rows.rate_gb_s["observed"] == pytest.approx(6140 / 360)
    waits = c.waits([made]).iloc[0][["call", "calls", "ns", "per_step", "idle_ns"]]
    assert [*waits] == ["cudaStreamSynchronize", 1, 400, 0.5, 200]  # a copy runs for 200 of it
    rows = c.waits([made], c.ALLOCATIONS).set_index("call")
    assert rows.calls.to_dict() == {"cudaMalloc": 1, "[memory]": 1} and rows.bytes["[memory]"] == 8


def test_which_tensors_a_copy_can_be(tmp_path: Path) -> None:
    derived = json.loads((ROOT / "wanreport/baseline/derived/architecture.json").read_text())
    block, dim, ffn = c.TENSORS["a block"], 5120, 13824
    assert block == derived["numbers"]["wan.block.bytes"] == 702_870_528
    matrices, vectors = 8 * dim**2 + 2 * dim * ffn, 13 * dim + ffn
    tables = c.TENSORS["block scale_shift_table"] + 2 * c.TENSORS["norm2 weight or bias"]
    assert block == 2 * (matrices + vectors) + tables and tables == 4 * 8 * dim
    sizes = [702_706_688, 26_214_400, 5]
    some = [each for i, size in enumerate(sizes, 1)
            for each in pair(i, 9, "cudaMemcpy", PINNED, i, 1, bytes=size)]  # fmt: skip
    rows = c.tensors([traced(tmp_path, some)]).set_index("bytes")
    assert rows.tensor[sizes[0]] == "a block's weights of 16 bits"
    assert rows.candidates[sizes[1]] > 1 and "1 of 2 shards" in rows.tensor[sizes[1]]
    assert pd.isna(rows.tensor[5]) and rows.candidates[5] == 0


# Traces of the committed runs --------------------------------------------------------------------

RUNS = frames.load([ROOT / "results"], ROOT)
TRACED = {run: (ROOT / run).parent / "traces" / Path(run).stem for run in RUNS.runs.index}
TRACED = {run: at for run, at in TRACED.items() if at.exists() and "2gpu-layerwise" in run}


@pytest.mark.parametrize("run", TRACED)
def test_a_trace_agrees_with_the_runs_own_events(run: str) -> None:
    """Copies to 0.1 %; what they run beside to half a point, once packing counts as it does there.

    The run's own events have the kernels that pack and unpack an all-to-all within it.
    """
    own, trace = shares(RUNS).loc[run], read(TRACED[run] / "rank0.json.gz")
    assert c.summary([trace]).copies_ns[0] / 1e6 == pytest.approx(own.copies_ms, rel=1e-3)
    _, lanes = next(c.devices(trace))
    kernels = lanes.ran[lanes.ran.kind.isin(["kernel", "collective"])]
    kernels = kernels.sort_values("start_ns", ignore_index=True)
    at = np.flatnonzero((kernels.kind == "collective") & kernels.name.str.contains("SendRecv"))
    into = kernels.name.str.contains("sdpa").to_numpy()[at + 1]  # attention follows
    start, end = at - np.where(into, 4, 0), at + np.where(into, 0, 1)
    wide = pd.DataFrame({"start_ns": kernels.start_ns.to_numpy()[start],
                         "end_ns": kernels.end_ns.to_numpy()[end]})  # fmt: skip
    copying = lanes.at(lanes.down)
    apart = lanes.ns(copying & ~lanes.at(wide)) / lanes.ns(copying)
    assert apart == pytest.approx(own.hidden, abs=5e-3)
    assert (wide.end_ns - wide.start_ns).sum() / 2e9 == pytest.approx(own.collectives_s, rel=5e-3)


def test_the_notebook_makes_a_page_of_any_trace(tmp_path: Path, made: Trace) -> None:
    cut = put(tmp_path, text(events(0)[:4], "bare")[:-9], "cut.json")
    for files, wrong in (([made.facts["file"], str(cut)], ""), ("none.json", "none.json")):
        script, out = ROOT / "notebooks/trace.py", tmp_path / "page.html"
        failed = render.make(render.Page(script, out, parameters={"files": files}), ROOT)
        assert wrong in failed and bool(failed) == bool(wrong)
