"""Times how a large trace is read: ``python -m benchmarks.traces`` makes one like a profiler's.

It has what torch.profiler writes, in its order: first all of the host's operations, then calls and
what they launched, buffer by buffer and not in order of time. Reading has a process of its own;
memory is its peak above what its imports take.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUFFERS, KERNELS, STEP_US = 400, 300, 900_000
SHAPES = {"Input Dims": [[1, 32760, 5120], [5120, 5120], [5120], []], "Input Strides": [
    [167731200, 5120, 1], [1, 5120], [1], []], "Input type": ["c10::BFloat16"] * 3 + ["Scalar"],
    "Concrete Inputs": ["", "", "", "1"], "Record function id": 0, "Module Hierarchy":
    "WanTransformer3DModel.blocks.7.attn1.processor/forward(7): linear" * 2}  # fmt: skip
READ = """
import json, re, sys, time
import wanreport.traces
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before, begun = peak(), time.perf_counter()
trace = wanreport.traces.read(sys.argv[1])
print(json.dumps({"seconds": round(time.perf_counter() - begun, 2), "imports_mib": round(before),
                  "above_mib": round(peak() - before), "rows": len(trace.events),
                  "bytes": int(trace.events.bytes[trace.events.kind == "copy"].sum()),
                  "steps": int(trace.steps.complete.sum())}))
"""


def event(cat: str, name: str, ts: float, dur: float, pid: int = 7, **args: Any) -> dict[str, Any]:
    """One event of a duration."""
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": 7, "ts": round(ts, 3),
            "dur": dur, "args": args}  # fmt: skip


def events(steps: int) -> Iterator[dict[str, Any]]:
    """A trace of some steps."""
    buffers: list[list[dict[str, Any]]] = [[] for _ in range(BUFFERS)]
    number = 0
    for step in range(steps):
        begin = 4_780_836_523_157.268 + STEP_US * step
        yield event("user_annotation", f"ProfilerStep#{step}", begin, STEP_US - 1)
        for i in range(2400):
            yield event("cpu_op", f"aten::op_{i % 90}", begin + 370 * i, 41.125,
                        7, **{"External id": i, "Ev Idx": i}, **SHAPES)  # fmt: skip
        for i in range(288):
            yield event("cpu_instant_event", "[memory]", begin + 3000 * i, 0, Bytes=512 * i) | {
                "ph": "i"
            }
        for i in range(1078):
            at, number = begin + 800 * i, number + 1
            args = {"External id": number, "correlation": number}
            buffer, copies = buffers[number % BUFFERS], i % 7 == 0
            call = "cudaMemcpyAsync" if copies else "cudaLaunchKernel"
            buffer.append(event("cuda_runtime", call, at, 7.75, **args))
            buffer += [{"ph": end, "id": number, "pid": 7, "tid": 7, "ts": round(at, 3),
                        "cat": "ac2g", "name": "ac2g"} for end in "sf"]  # fmt: skip
            args |= {"device": 0, "context": 1, "stream": 23 if copies else 7}
            if copies:
                name = "Memcpy HtoD (Pinned -> Device)"
                ran = event("gpu_memcpy", name, at + 30, 512.031, 0, **args, bytes=10**6 + i)
            else:
                name = f"void at::native::kernel_{i % KERNELS}<float, std::array<char*, 2ul>>(int)"
                ran = event("kernel", name, at + 30, 512.031, 0, **args, grid=[5120, 1, 1],
                            **{"registers per thread": 32, "shared memory": 0})  # fmt: skip
            buffer.append(ran)
    random.Random(0).shuffle(buffers)
    for each in buffers:
        yield from each
    yield {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 1}


def main() -> int:
    """Make a trace, read it, say how long that took and how much memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("--steps", type=int, default=205, help="2.2 MB of JSON each (default 205)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with path.open("w") as file:
            file.write('{"schemaVersion": 1, "traceEvents": [')
            for i, each in enumerate(events(arguments.steps)):
                file.write(",\n" * bool(i) + json.dumps(each))
            file.write("]}")
        print(f"{path.stat().st_size / 1e6:.0f} MB, {i + 1:,} events")
        return subprocess.run([sys.executable, "-c", READ, path], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
