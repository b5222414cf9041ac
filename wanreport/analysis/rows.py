"""Turns files into rows of the frames: a job's record, and each row of a benchmark file.

Rows hold what a file says. What follows from several of them, such as the median step, is computed
from the frames (:mod:`wanreport.analysis.summary`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wanreport.records import files

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each frame, by its name."""

MEMORY = ("allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes")
WORKLOAD = ("scale", "num_inference_steps", "sampled_steps", "cfg", "dtype", "compile", "seed",
            "checkpoint", "prompt", "negative_prompt", "guidance_scale",
            "guidance_scale_2")  # fmt: skip
MODEL = ("height", "width", "num_frames", "num_layers", "flow_shift", "boundary_ratio", "weights")
"""What must be equal, beside machine, torch and layout, before two jobs' times are compared."""


def add_record(rows: Rows, run: str, r: files.Record) -> None:
    """Add the rows of one record; `run` is its file."""
    job, model, plan, link = r.job, r.model, r.engine.plan or {}, r.machine.link or {}
    engine, gpus = str(r.engine.name or job.get("engine")), int(job.get("num_gpus") or 0)
    ahead = r.engine.prefetch or r.sglang.get("prefetch_layers")
    prefetch, budget = ahead if engine == "layerwise" else None, job.get("vram_budget_gb")
    branches, compiled = 1 + bool(job.get("cfg", True)), bool(job.get("compile"))
    split = "CFG parallel" if job.get("enable_cfg_parallel") else ""
    limit = f"{budget:g} GB budget" if budget else ""
    setting = _joined(prefetch and f"prefetch {prefetch}", limit, split)
    whole, ran = len(r.schedule.timesteps), max((len(it.steps) for it in r.iterations), default=0)
    alike = [r.software.torch, *map(job.get, WORKLOAD), *map(model.model_dump().get, MODEL)]
    workload = json.dumps(alike + [split] * bool(split), default=str)
    size = f"{model.width}×{model.height}, {model.num_frames} frames"
    steps = f"{ran} of {whole} steps" if 0 < ran < whole else f"{whole} steps"
    work = _joined(size, branches == 1 and "one branch", compiled and "compiled", split, steps)
    program = (r.source or "").replace("sglang", "SGLang")
    taken = plan["candidates"][plan["chosen"]] if plan else None
    rates = [link.get(f"{way}_pageable_together_gb_s") for way in ("h2d", "d2h")]
    rows["runs"].append({
        **_about(run, r.machine, r.software, program), "source": "job", "campaign": "", "label": "",
        "job": str(job.get("name", "unnamed job")), "job_hash": r.job_hash,
        "baseline_job": job.get("baseline_job"), "scale": job.get("scale"),
        "status": r.status, "reason": r.reason, "hint": r.hint, "rehearsal": r.is_rehearsal,
        "engine": engine, "setting": setting, "again": False,
        "name": ("SGLang " if program else "") + _joined(engine, setting),
        "gpus": gpus, "cfg_parallel": bool(split), "branches": branches, "compiled": compiled,
        "tokens": model.tokens, "blocks": model.num_layers,
        # A job that ran out of memory may have no model yet: then what it asked for counts.
        "height": model.height or job.get("height"), "width": model.width or job.get("width"),
        "frames": model.num_frames or job.get("num_frames"),
        "steps_run": ran, "steps_whole": whole, "switch_step": r.schedule.switch_step,
        "flow_shift": model.flow_shift, "boundary_ratio": model.boundary_ratio,
        "work": work if model.width else "", "workload": workload,
        # What two runs must share before their times are compared: all but the engine.
        "group": f"{r.machine.slug} {gpus} {workload}",
        "started": r.started_at, "wall_s": r.wall_s, "cold_start_s": r.cold_start_s,
        "prefetch": prefetch, "vram_budget_gb": budget,
        "settings": taken["settings"] if taken else {},
        "block_bytes": model.block_bytes, "expert_bytes": model.expert_bytes,
        "link_gb_s": link.get("h2d_pinned_together_gb_s"),
        "gpu_memory_bytes": (r.machine.model_extra or {}).get("gpu_memory_bytes"),
        "pageable_rates": None if None in rates else rates, "plan_inputs": plan.get("inputs"),
        "planned_step_s": taken["predicted"]["step_s"] if taken else None,
        "counters_derived": r.engine.counters_derived, "traces": len(r.traces),
        # What an imported run's first trace says of its copies.
        "traced": next((trace for trace in r.traces if trace.get("copies_ns")), None),
        "latents": None, "repeats": None,
    })  # fmt: skip
    for number, it in enumerate(r.iterations):
        key = {"run": run, "iteration": number, "kind": it.kind}
        rows["iterations"].append({
            **key, "decode_s": it.decode_s, "total_s": it.total_s, "latents": it.latents_sha256,
            "complete": len(it.steps) == ran > 0, **_gpu_state(it.gpu or []),
            **{name: _most(getattr(rank, name) for rank in it.memory or [] if rank)
               for name in MEMORY},
        })  # fmt: skip
        roles = {r.schedule.switch_step: "switch", 0: "first"}
        rows["steps"] += [
            {**key, "step": step.index, "role": roles.get(step.index, "steady"),
             "expert": step.expert, "timestep": step.timestep,
             "seconds": _most(step.seconds),  # a step takes as long as its slowest rank
             "h2d_bytes": _most(step.h2d_bytes),
             "h2d_bytes_all": sum(step.h2d_bytes) if step.h2d_bytes else None}
            for step in it.steps
        ]  # fmt: skip
        measured, expected = it.counters or [], it.expected_counters or []
        expected = expected if len(expected) == len(measured) else [{}] * len(measured)
        rows["counters"] += [
            {**key, "rank": rank, "counter": counter, "measured": value,
             "formula": formulas.get(counter)}
            for rank, (found, formulas) in enumerate(zip(measured, expected, strict=True))
            for counter, value in found.items()
        ]  # fmt: skip
    rows["events"] += [{"run": run, **event.model_dump(), "ms": event.end_ms - event.start_ms}
                       for event in r.timeline if event.end_ms is not None]  # fmt: skip


def add_bench(rows: Rows, file: str, path: Path, bench: files.Bench) -> None:
    """Add the rows of a benchmark file: each of its rows is a run of one iteration."""
    said = bench.settings
    if bench.machine.slug != (folder := path.parent.parent.name):
        raise files.FileError(
            f"{path}: machine.slug is {bench.machine.slug}, and the folder is {folder}'s; move the"
            f" file to {bench.machine.slug}/benchmarks/"
        )
    links: dict[int, float] = {}  # that of the slowest rank, by tokens
    for row in bench.rows:
        if row.label == files.FIRST:
            rates = [rank.link.h2d_pinned_together_gb_s for rank in row.ranks if rank.link]
            links |= {row.tokens: min(rates)} if rates else {}
    for row in bench.rows:
        name, given = files.parse_label(row.label)
        engine, again = "stream" if name == "planned" else name, row.label == files.LAST
        parts = [f"{key.replace('_', ' ')} {value}" for key, value in given.items()]
        setting = _joined(name == "planned" and name, *parts)
        shown = _joined(engine, setting)
        if name in files.PEERS:
            setting = bench.peers[name].version if name in bench.peers else ""
            shown = f"{'SGLang' if name == 'sglang' else name} {setting}".strip()
        plan = row.ranks[0].plan if row.ranks else None
        pinned = [rank.memory.pinned_bytes for rank in row.ranks if rank.memory.pinned_bytes]
        shared = row.ranks[0].shared_pinned_bytes if row.ranks else 0
        digests = {d for rank in row.ranks for d in (rank.first_output_sha256, rank.output_sha256)}
        run = f"{file}#{row.tokens}/{row.label}"
        key = {"run": run, "iteration": 0, "kind": "clean"}
        step = "a CFG step" if said.branches == 2 else "one branch"
        work = f"{row.tokens:,} tokens, {said.blocks} blocks, {step}"
        rows["runs"].append({
            **_about(run, bench.machine, bench.software), "source": "bench",
            "commit": row.git_sha, "campaign": path.stem, "label": row.label, "job": "",
            "status": row.status, "reason": row.reason, "hint": "", "scale": "blocks",
            "rehearsal": said.device != "cuda", "engine": engine, "setting": setting,
            "name": shown + " again" * again, "again": again, "gpus": said.ranks,
            "cfg_parallel": False, "tokens": row.tokens, "blocks": said.blocks,
            "branches": said.branches, "compiled": said.compile, "work": work,
            "workload": f"{bench.software.torch} {row.tokens} {said.blocks} {said.branches}"
            f" {said.compile}", "group": f"{file}#{row.tokens}", "started": row.ended_at,
            "prefetch": given.get("prefetch"), "link_gb_s": links.get(row.tokens),
            "settings": row.settings.__dict__ if row.settings else {},
            "block_bytes": bench.bytes // said.blocks, "plan_inputs": plan and plan.inputs,
            "planned_step_s": plan and plan.candidates[plan.chosen].predicted.step_s,
            "pageable_rates": None, "steps_whole": None,
            "counters_derived": False, "traces": 0,
            "latents": next(iter(digests)) if len(digests) == 1 else None,
            "repeats": len(digests) == 1 if digests else None,
        })  # fmt: skip
        rows["iterations"].append({
            **key, "complete": False, **_gpu_state([rank.gpu for rank in row.ranks]),
            **{name: _most(getattr(rank.memory, name) for rank in row.ranks) for name in MEMORY},
            # What ranks share of the host's pinned memory counts once.
            "pinned_bytes": sum(pinned) - shared * (len(pinned) - 1) if pinned else None,
        })  # fmt: skip
        moved = _moved(bench, row, name)
        samples = zip(*(rank.samples_ms for rank in row.ranks), strict=True)
        rows["steps"] += [{**key, "step": number, "role": "steady", "seconds": max(each) / 1e3,
                           "h2d_bytes": moved} for number, each in enumerate(samples)]  # fmt: skip
        rows["counters"] += [
            {**key, "rank": rank, "counter": counter, "measured": value, "formula": None}
            for rank, each in enumerate(row.ranks)
            for counter, value in (each.counters or {}).items()
        ]


def _moved(bench: files.Bench, row: files.BenchRow, name: str) -> float | None:
    """Bytes that the busiest rank must copy to its device in a steady step.

    By `stream`'s settings where it has any, else as the engine counted. What a peer moves is not
    counted; taken is that each of its branches brings every block.
    """
    said = bench.settings
    if row.settings:
        passes = -(-said.branches // row.settings.branches_per_visit)
        block = bench.bytes / said.blocks / (said.ranks if row.settings.shard else 1)
        return passes * row.settings.moving(said.blocks) * block
    if name in files.PEERS:
        return float(bench.bytes * said.branches)
    brought = [rank.counters["h2d_bytes"] / len(rank.samples_ms)
               for rank in row.ranks if rank.counters and rank.samples_ms]  # fmt: skip
    return max(brought, default=None)


# What both kinds share ---------------------------------------------------------------------------


def _about(run: str, machine: files.Machine, software: Any, program: str = "") -> dict[str, Any]:
    """Which run it is, and on what: a machine's short name is like "2× H100, PCIe path".

    H100 alone is the SXM board with 80 GB of HBM3; other boards keep the rest of their name. Runs
    of another program are compared among themselves, as if on a machine of their own.
    """
    path = path_of(machine.interconnect or "") if machine.gpu_count > 1 else ""
    board = (machine.gpu_name or "").removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")
    short = _joined(f"{machine.gpu_count}× {board}", path) if board else machine.class_
    return {
        "run": run, "file": run.partition("#")[0], "program": program,
        "machine": _joined(short or "unknown machine", program), "machine_class": machine.class_,
        "slug": machine.slug, "interconnect": path, "gpu_model": machine.gpu_name,
        "torch": software.torch, "commit": software.git_sha,
    }  # fmt: skip


def path_of(interconnect: str) -> str:
    """Name an interconnect, as records have it, in short: "NVLink", "PCIe path"."""
    return "PCIe path" if "PCIe" in interconnect else interconnect


def _gpu_state(ranks: Sequence[files.Gpu | None]) -> dict[str, Any]:
    """How the GPUs ran: what the rank with the slowest clock read, and all boards."""
    read = [rank for rank in ranks if rank]
    if not read or len(read) < len(ranks):
        return {"boards": ()}
    slowest = min(read, key=lambda rank: (rank.sm_mhz, rank.power_w, rank.celsius))
    return {"sm_mhz": slowest.sm_mhz, "power_w": slowest.power_w, "celsius": slowest.celsius,
            "boards": tuple(sorted(rank.board for rank in read))}  # fmt: skip


def _most(values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def _joined(*parts: str | bool | None) -> str:
    """Join with commas what is there."""
    return ", ".join(str(part) for part in parts if part)
