"""Made-up rows of the frames, for tests of what is computed from them."""

from itertools import count

import pandas as pd

from wanreport.analysis.frames import EMPTY, WHOLE, against_resident

NAN = float("nan")
_NUMBERS = count()


def run(engine, step=20.0, *, n=6, **changes):
    """A run: a job of the full model on one GPU. Its interval is 0.1 % of the step either way."""
    off = 0.001 if n >= 6 else NAN
    row = {
        "run": f"results/m/{engine}-{next(_NUMBERS)}.json", "engine": engine, "name": engine,
        "status": "ok", "reason": "", "rehearsal": False, "source": "job", "campaign": "",
        "job": engine, "group": "g", "workload": "w", "work": "some work", "again": False,
        "latest": True, "started": "2026-01-01", "machine": "1× H100", "slug": "m",
        "gpu_model": "H100", "interconnect": "", "torch": "2.11", "gpus": 1, "boards": ("a",),
        "sm_mhz": 1600.0, "height": 480, "frames": 81, "tokens": 32_760, "blocks": 40,
        "branches": 2, "compiled": False, "cfg_parallel": False, "baseline_job": None,
        "steps_run": 8, "steps_whole": 27, "switch_step": 18, "switch_s": NAN, "flow_shift": NAN,
        "prefetch": 1 if engine == "layerwise" else None, "vram_budget_gb": NAN, "settings": {},
        "step_s": step, "step_low_s": step * (1 - off), "step_high_s": step * (1 + off),
        "step_n": n, "wall_s": 100.0, "h2d_step_bytes": 0.0, "link_gb_s": 50.0, "latents": "bits",
        "traced": None, "file": "results/m/f.json", "transfer": "bf16", "plan_inputs": None,
        "repeats": None, "formula_ok": None, "allocated_bytes": 9e9, "reserved_bytes": 9e9,
    }  # fmt: skip
    return row | changes


def on(gpus, engine, step=20.0, **changes):
    """A run at 720p of GPUs on the PCIe path."""
    where = {"gpus": gpus, "machine": f"{gpus}× H100, PCIe path", "interconnect": "PCIe path",
             "height": 720, "group": f"{gpus} {changes.get('cfg_parallel')}"}  # fmt: skip
    return run(engine, step, **where | changes)


def frames(*rows, counters=None):
    """Frames of these runs; `counters` by run, of one step."""
    runs = pd.DataFrame(rows).set_index("run", drop=False)
    runs = runs.astype({name: "Int64" for name in WHOLE if name in runs} | {"sm_mhz": float})
    key = {"iteration": 0, "kind": "clean"}
    steps = [{**key, "run": row["run"], "step": 1, "role": "steady", "expert": "high_noise",
              "seconds": row["step_s"]} for row in rows]  # fmt: skip
    counted = [{**key, "run": name, "rank": 0, "counter": counter, "measured": value}
               for name, found in (counters or {}).items()
               for counter, value in found.items()]  # fmt: skip
    return EMPTY._replace(
        runs=against_resident(runs), steps=pd.DataFrame(steps),
        counters=pd.DataFrame(counted) if counted else EMPTY.counters,
    )  # fmt: skip
