"""Times how a large trace is read: ``python -m tools.trace_speed`` makes one like a profiler's.

First come the host's operations, then calls and what they launched, by buffers out of order.
"""

import json
import random
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

STEPS, STEP_US = 217, 900_000  # 443 MB
SHAPES = {"Input Dims": [[1, 32760, 5120], [5120, 5120], []], "Input type": ["c10::BFloat16"] * 30}
READ = """
import re, sys, time
import wanreport.traces
from pathlib import Path
def peak():
    return int(re.search(rb"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_bytes())[1]) / 1024
Path("/proc/self/clear_refs").write_bytes(b"5")  # the peak from here on
before, begun, cpu = peak(), time.perf_counter(), time.process_time()
trace = wanreport.traces.read(sys.argv[1])
print({"seconds": round(time.perf_counter() - begun, 2), "imports_mib": round(before),
       "cpu_s": round(time.process_time() - cpu, 2), "above_mib": round(peak() - before),
       "rows": len(trace.events)})
"""


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> str:
    times = {"ph": "X", "ts": round(ts, 3), "dur": dur}
    return json.dumps({"cat": cat, "name": name, "pid": 0, "tid": 7, **times, "args": args})


def main() -> int:
    host: list[str] = []
    buffers: list[list[str]] = [[] for _ in range(400)]
    for step in range(STEPS):
        begin = 4_780_836_523_157.268 + STEP_US * step
        host.append(event("user_annotation", f"ProfilerStep#{step}", begin, STEP_US - 1))
        host += [event("cpu_op", f"aten::op_{i % 90}", begin + 370 * i, 41.125, **SHAPES)
                 for i in range(2400)]  # fmt: skip
        for number in range(1078 * step + 1, 1078 * (step + 1) + 1):
            at, copies = begin + 800 * (number % 1078), number % 7 == 0
            kind, call = ("gpu_memcpy", "MemcpyAsync") if copies else ("kernel", "LaunchKernel")
            name = "Memcpy HtoD (Pinned -> Device)" if copies else f"void kernel_{number % 300}()"
            buffers[number % 400] += [
                event("cuda_runtime", f"cuda{call}", at, 7.75, correlation=number),
                event(kind, name, at + 30, 512.031, correlation=number, device=0, bytes=9),
            ]
    random.Random(0).shuffle(buffers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        path.write_text('{"traceEvents": [' + ",\n".join(chain(host, *buffers)) + "]}", "utf-8")
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        return subprocess.run([sys.executable, "-c", READ, path], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
