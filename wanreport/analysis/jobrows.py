"""Turns a job's record into rows of the frames."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from wanreport.analysis.rows import MEMORY, Rows, about, engine_setting, gpu_state, joined
from wanreport.analysis.stats import median_interval
from wanreport.records.files import Iteration, Record, Step

WORKLOAD = ("scale", "num_inference_steps", "sampled_steps", "cfg", "dtype", "compile", "seed",
            "checkpoint", "prompt", "negative_prompt", "guidance_scale",
            "guidance_scale_2")  # fmt: skip
MODEL = ("height", "width", "num_frames", "num_layers", "flow_shift", "boundary_ratio", "weights")
"""What must be equal, beside machine and torch, before two jobs' times are compared."""


def add_record(rows: Rows, run: str, r: Record) -> None:
    job, model, plan = r.job, r.model, r.engine.plan
    engine = str(r.engine.name or job.get("engine") or "unknown")
    prefetch = (
        r.engine.prefetch or r.sglang.get("prefetch_layers") if engine == "layerwise" else None
    )
    setting = engine_setting(engine, prefetch, job.get("vram_budget_gb"))
    settings = plan["candidates"][plan["chosen"]]["settings"] if plan else {}
    longest = max((len(it.steps) for it in r.iterations), default=0)
    parts = [_add_iteration(rows, run, n, r, it, longest) for n, it in enumerate(r.iterations)]
    clean = [one for one, it in zip(parts, r.iterations, strict=True)
             if it.kind == "clean" and it.steps]  # fmt: skip
    digests = {one["latents"] for one in parts if one["complete"] and one["latents"]}
    complete = [one for one in parts if one["complete"] and one["latents"]]
    checks = {one["formula_ok"] for one in parts if one["steps"]}
    work = _work(r, longest)
    rows["runs"].append({
        **about(run, r.machine, r.software), "source": "job", "campaign": "", "label": "",
        "job": str(job.get("name", "unnamed job")), "job_hash": r.job_hash,
        "baseline_job": job.get("baseline_job"),
        "status": r.status, "reason": r.reason, "hint": r.hint, "rehearsal": r.is_rehearsal,
        "scale": job.get("scale"), "engine": engine, "setting": setting,
        "name": joined(engine, setting), "peer": False, "again": False,
        "gpus": int(job.get("num_gpus") or 0), "tokens": model.tokens, "blocks": model.num_layers,
        "branches": 1 + bool(job.get("cfg", True)), "compiled": bool(job.get("compile")),
        # A job that ran out of memory may have no model yet: then what it asked for counts.
        "height": model.height or job.get("height"), "width": model.width or job.get("width"),
        "frames": model.num_frames or job.get("num_frames"),
        "steps_run": longest, "steps_whole": len(r.schedule.timesteps),
        "switch_step": r.schedule.switch_step, "flow_shift": model.flow_shift,
        "boundary_ratio": model.boundary_ratio,
        "work": work, "workload": _workload(r), "group": _group(r),
        "started": r.started_at, "wall_s": r.wall_s,
        "cold_start_s": r.cold_start_s, "prefetch": prefetch,
        "block_bytes": model.block_bytes, "expert_bytes": model.expert_bytes,
        "vram_budget_gb": job.get("vram_budget_gb"), "settings": settings,
        "link_gb_s": (r.machine.link or {}).get("h2d_pinned_together_gb_s"),
        "gpu_memory_bytes": (r.machine.model_extra or {}).get("gpu_memory_bytes"),
        "pageable_rates": _pageable(r.machine.link), "plan_inputs": (plan or {}).get("inputs"),
        "planned_step_s": _planned(plan), "planning_s": (plan or {}).get("planning_s"),
        **_times(clean), **_memory(parts), **gpu_state([one["gpu"] for one in clean]),
        "latents": next(iter(digests)) if len(digests) == 1 else None,
        "repeats": len(digests) == 1 if len(complete) > 1 else None,
        "formula_ok": None if r.engine.counters_derived or not checks or None in checks
        else all(checks),
        "counters_derived": r.engine.counters_derived,
        "traces": len(r.traces), "profiled": any(it.kind == "profiled" for it in r.iterations),
    })  # fmt: skip
    for event in r.timeline:
        if event.end_ms is not None:
            rows["events"].append(
                {"run": run, **event.model_dump(), "ms": event.end_ms - event.start_ms}
            )


def _work(r: Record, ran: int) -> str:
    """What a job ran: "832×480, 81 frames, 8 of 27 steps"; "" where it did not get that far."""
    if not r.model.width:
        return ""
    whole = len(r.schedule.timesteps)
    return joined(
        f"{r.model.width}×{r.model.height}", f"{r.model.num_frames} frames",
        "" if r.job.get("cfg", True) else "one branch", "compiled" if r.job.get("compile") else "",
        f"{ran} of {whole} steps" if 0 < ran < whole else f"{whole} steps",
    )  # fmt: skip


def _workload(r: Record) -> str:
    """The work itself: what two runs share on any machine, however many GPUs it has."""
    job, model = r.job, r.model.model_dump()
    alike = [r.software.torch, *(job.get(key) for key in WORKLOAD), *(model[key] for key in MODEL)]
    return json.dumps(alike, default=str)


def _group(r: Record) -> str:
    """What two runs must share before their times are compared, all but the engine."""
    return f"{r.machine.slug} {r.job.get('num_gpus')} {_workload(r)}"


def _pageable(link: dict[str, Any] | None) -> list[float] | None:
    """Bandwidth to the device and back, pageable memory, all ranks copying."""
    ways = ("h2d_pageable_together_gb_s", "d2h_pageable_together_gb_s")
    return [link[way] for way in ways] if link and all(way in link for way in ways) else None


def _planned(plan: Mapping[str, Any] | None) -> float | None:
    return plan["candidates"][plan["chosen"]]["predicted"]["step_s"] if plan else None


def _add_iteration(
    rows: Rows, run: str, number: int, r: Record, it: Iteration, longest: int
) -> dict[str, Any]:  # fmt: skip
    switch = r.schedule.switch_step
    key = {"run": run, "iteration": number, "kind": it.kind}
    steps = [{**key, **_step(step, switch)} for step in it.steps]
    rows["steps"] += steps
    counters = list(_counters(it))
    rows["counters"] += [{**key, **row} for row in counters]
    known = [row["formula"] is not None and row["measured"] == row["formula"] for row in counters]
    one = {
        **key, "decode_s": it.decode_s, "total_s": it.total_s, "latents": it.latents_sha256,
        "complete": len(it.steps) == longest > 0,
        **{name: _peak(it, name) for name in MEMORY},
        "formula_ok": None if not counters or any(row["formula"] is None for row in counters)
        else all(known),
        "gpu": it.gpu or [],
    }  # fmt: skip
    state = gpu_state([it.gpu or []])
    rows["iterations"].append({k: v for k, v in {**one, **state}.items() if k != "gpu"})
    return {**one, "steps": [s for s in steps if s["seconds"]], "whole": len(r.schedule.timesteps)}


def _step(step: Step, switch: int | None) -> dict[str, Any]:
    role = "first" if step.index == 0 else "switch" if step.index == switch else "steady"
    return {
        "step": step.index, "role": role, "expert": step.expert, "timestep": step.timestep,
        "seconds": max(step.seconds, default=None),  # a step takes as long as its slowest rank
        "h2d_bytes": max(step.h2d_bytes, default=None),
        "h2d_bytes_all": sum(step.h2d_bytes) if step.h2d_bytes else None,
    }  # fmt: skip


def _counters(it: Iteration) -> Iterator[dict[str, Any]]:
    measured, expected = it.counters or [], it.expected_counters or []
    for rank, found in enumerate(measured):
        formula = expected[rank] if len(expected) == len(measured) else {}
        for counter, value in found.items():
            yield {"rank": rank, "counter": counter, "measured": value,
                   "formula": formula.get(counter)}  # fmt: skip


def _peak(it: Iteration, key: str) -> int | None:
    values = [getattr(rank, key) for rank in it.memory or [] if rank is not None]
    return max((value for value in values if value is not None), default=None)


def _memory(iterations: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Peaks over ranks and iterations."""
    return {
        key: max((it[key] for it in iterations if it[key] is not None), default=None)
        for key in MEMORY
    }


def _times(clean: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Times of the clean iterations, in seconds; medians where there are several.

    ``step_s`` is a steady step: neither the first nor the switch. Sums over the schedule
    (``denoise_s``, ``end_to_end_s`` with decoding, ``h2d_schedule_bytes``) count each step that did
    not run as the mean of the steady ones that did (of bytes: the median).
    """
    each = [_budget(it) for it in clean]
    steady = [s for it in clean for s in it["steps"] if s["role"] == "steady"]
    step = median_interval(s["seconds"] for s in steady)
    moved = [s["h2d_bytes"] for s in steady if s["h2d_bytes"] is not None]
    moved_all = [s["h2d_bytes_all"] for s in steady if s["h2d_bytes_all"] is not None]
    return {
        "step_s": step.median, "step_low_s": step.low, "step_high_s": step.high, "step_n": step.n,
        **{key: _median(one[key] for one in each) for key in BUDGET},
        "h2d_step_bytes": _median(moved), "h2d_step_bytes_all": _median(moved_all),
    }  # fmt: skip


BUDGET = ("first_s", "switch_s", "steady_s", "decode_s", "denoise_s", "end_to_end_s",
          "h2d_schedule_bytes")  # fmt: skip


def _budget(it: Mapping[str, Any]) -> dict[str, float | None]:
    steps, whole = it["steps"], it["whole"]
    first, switch = (
        next((s for s in steps if s["role"] == role), None) for role in ("first", "switch")
    )
    steady = [s for s in steps if s["role"] == "steady"]
    left_out = whole - len(steps)
    if not first or (left_out and not steady):
        return dict.fromkeys(BUDGET)

    def total(key: str, typical: Callable[[list[float]], float]) -> float | None:
        values = [s[key] for s in steps]
        if any(value is None for value in values):
            return None
        others = [s[key] for s in steady]
        return sum(values) + (typical(others) * left_out if left_out else 0)

    denoise = total("seconds", statistics.fmean)
    assert denoise is not None
    others = (first["seconds"], switch["seconds"] if switch else 0.0)
    measured = it["total_s"] if not left_out else None
    return {
        "first_s": first["seconds"], "switch_s": switch["seconds"] if switch else None,
        "steady_s": denoise - sum(others), "decode_s": it["decode_s"], "denoise_s": denoise,
        "end_to_end_s": measured or denoise + (it["decode_s"] or 0.0),
        # The step before the switch may load ahead: the median step does not.
        "h2d_schedule_bytes": total("h2d_bytes", statistics.median),
    }  # fmt: skip


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
