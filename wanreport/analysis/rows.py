"""Turns files into rows of the frames: a job's record, and each row of a benchmark file.

Rows hold what a file says. What follows from several of them, such as the median step, is computed
from the frames (:mod:`wanreport.analysis.summary`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wanreport.records.files import (
    FIRST,
    LAST,
    PEERS,
    Bench,
    BenchRow,
    FileError,
    Gpu,
    Iteration,
    Machine,
    Record,
    Step,
    parse_label,
)

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each frame, by its name."""

MEMORY = ("allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes")
WORKLOAD = ("scale", "num_inference_steps", "sampled_steps", "cfg", "dtype", "compile", "seed",
            "checkpoint", "prompt", "negative_prompt", "guidance_scale",
            "guidance_scale_2")  # fmt: skip
MODEL = ("height", "width", "num_frames", "num_layers", "flow_shift", "boundary_ratio", "weights")
"""What must be equal, beside machine and torch, before two jobs' times are compared."""


def add_record(rows: Rows, run: str, r: Record) -> None:
    """Add the rows of one record; `run` is its file."""
    job, model, plan = r.job, r.model, r.engine.plan or {}
    engine = str(r.engine.name or job.get("engine") or "unknown")
    prefetch = r.engine.prefetch or r.sglang.get("prefetch_layers")
    prefetch = prefetch if engine == "layerwise" else None
    budget_gb = job.get("vram_budget_gb")
    setting = joined(f"prefetch {prefetch}" if prefetch is not None else "",
                     f"{budget_gb:g} GB budget" if budget_gb is not None else "")  # fmt: skip
    taken = plan["candidates"][plan["chosen"]] if plan else None
    longest = max((len(it.steps) for it in r.iterations), default=0)
    link = r.machine.link or {}
    rates = [link.get(f"{way}_pageable_together_gb_s") for way in ("h2d", "d2h")]
    work, program = _workload(r), (r.source or "").replace("sglang", "SGLang")
    rows["runs"].append({
        **_about(run, r.machine, r.software), "source": "job", "campaign": "", "label": "",
        # Runs of another program are compared among themselves, as if on a machine of their own.
        "machine": joined(_machine_name(r.machine), program), "program": program,
        "job": str(job.get("name", "unnamed job")), "job_hash": None if program else r.job_hash,
        "baseline_job": job.get("baseline_job"),
        "status": r.status, "reason": r.reason, "hint": r.hint, "rehearsal": r.is_rehearsal,
        "scale": job.get("scale"), "engine": engine, "setting": setting,
        "name": ("SGLang " if program else "") + joined(engine, setting), "peer": False,
        "again": False,
        "gpus": int(job.get("num_gpus") or 0), "tokens": model.tokens, "blocks": model.num_layers,
        "branches": 1 + bool(job.get("cfg", True)), "compiled": bool(job.get("compile")),
        "cfg_parallel": bool(job.get("enable_cfg_parallel")),
        # A job that ran out of memory may have no model yet: then what it asked for counts.
        "height": model.height or job.get("height"), "width": model.width or job.get("width"),
        "frames": model.num_frames or job.get("num_frames"),
        "steps_run": longest, "steps_whole": len(r.schedule.timesteps),
        "switch_step": r.schedule.switch_step, "flow_shift": model.flow_shift,
        "boundary_ratio": model.boundary_ratio, "work": _work(r, longest), "workload": work,
        # What two runs must share before their times are compared: all but the engine.
        "group": f"{r.machine.slug} {job.get('num_gpus')} {work}",
        "started": r.started_at, "wall_s": r.wall_s, "cold_start_s": r.cold_start_s,
        "prefetch": prefetch, "block_bytes": model.block_bytes, "expert_bytes": model.expert_bytes,
        "vram_budget_gb": budget_gb, "settings": taken["settings"] if taken else {},
        "link_gb_s": link.get("h2d_pinned_together_gb_s"),
        "gpu_memory_bytes": (r.machine.model_extra or {}).get("gpu_memory_bytes"),
        "pageable_rates": None if None in rates else rates, "plan_inputs": plan.get("inputs"),
        "planned_step_s": taken["predicted"]["step_s"] if taken else None,
        "planning_s": plan.get("planning_s"), "counters_derived": r.engine.counters_derived,
        "traces": len(r.traces), "profiled": any(it.kind == "profiled" for it in r.iterations),
    })  # fmt: skip
    for number, it in enumerate(r.iterations):
        key = {"run": run, "iteration": number, "kind": it.kind}
        rows["iterations"].append({
            **key, "decode_s": it.decode_s, "total_s": it.total_s, "latents": it.latents_sha256,
            "complete": len(it.steps) == longest > 0,
            **{name: _most(getattr(rank, name) for rank in it.memory or [] if rank)
               for name in MEMORY}, **_gpu_state(it.gpu or []),
        })  # fmt: skip
        rows["steps"] += [{**key, **_step(step, r.schedule.switch_step)} for step in it.steps]
        rows["counters"] += [{**key, **row} for row in _counters(it)]
    rows["events"] += [{"run": run, **event.model_dump(), "ms": event.end_ms - event.start_ms}
                       for event in r.timeline if event.end_ms is not None]  # fmt: skip


def _work(r: Record, ran: int) -> str:
    """What a job ran: "832×480, 81 frames, 8 of 27 steps"; "" where it did not get that far."""
    if not r.model.width:
        return ""
    whole = len(r.schedule.timesteps)
    return joined(
        f"{r.model.width}×{r.model.height}", f"{r.model.num_frames} frames",
        "" if r.job.get("cfg", True) else "one branch", "compiled" if r.job.get("compile") else "",
        "CFG parallel" if r.job.get("enable_cfg_parallel") else "",
        f"{ran} of {whole} steps" if 0 < ran < whole else f"{whole} steps",
    )  # fmt: skip


def _workload(r: Record) -> str:
    """The work itself: what two runs share on any machine, however many GPUs it has."""
    job, model = r.job, r.model.model_dump()
    alike = [r.software.torch, *(job.get(key) for key in WORKLOAD), *(model[key] for key in MODEL)]
    layout = ["CFG parallel"] if job.get("enable_cfg_parallel") else []
    return json.dumps(alike + layout, default=str)


def _step(step: Step, switch: int | None) -> dict[str, Any]:
    role = "first" if step.index == 0 else "switch" if step.index == switch else "steady"
    return {
        "step": step.index, "role": role, "expert": step.expert, "timestep": step.timestep,
        "seconds": _most(step.seconds),  # a step takes as long as its slowest rank
        "h2d_bytes": _most(step.h2d_bytes),
        "h2d_bytes_all": sum(step.h2d_bytes) if step.h2d_bytes else None,
    }  # fmt: skip


def _counters(it: Iteration) -> Iterator[dict[str, Any]]:
    measured, expected = it.counters or [], it.expected_counters or []
    for rank, found in enumerate(measured):
        formula = expected[rank] if len(expected) == len(measured) else {}
        for counter, value in found.items():
            yield {"rank": rank, "counter": counter, "measured": value,
                   "formula": formula.get(counter)}  # fmt: skip


def add_bench(rows: Rows, file: str, path: Path, bench: Bench) -> None:
    """Add the rows of a benchmark file: each of its rows is a run of one iteration."""
    if bench.machine.slug != (folder := path.parent.parent.name):
        raise FileError(
            f"{path}: machine.slug is {bench.machine.slug}, and the folder is {folder}'s; move the"
            f" file to {bench.machine.slug}/benchmarks/"
        )
    said = bench.settings
    firsts = {row.tokens: row for row in bench.rows if row.label == FIRST and row.ranks}
    for row in bench.rows:
        name, given = parse_label(row.label)
        engine, again = "stream" if name == "planned" else name, row.label == LAST
        run, setting = f"{file}#{row.tokens}/{row.label}", _setting(bench, name, given)
        shown = f"{'SGLang' if name == 'sglang' else name} {setting}".strip()
        shown = shown if name in PEERS else joined(engine, setting)
        plan = row.ranks[0].plan if row.ranks else None
        digests = {d for rank in row.ranks for d in (rank.first_output_sha256, rank.output_sha256)}
        first = firsts.get(row.tokens)
        links = [rank.link.h2d_pinned_together_gb_s for rank in (first.ranks if first else ())
                 if rank.link]  # fmt: skip
        key = {"run": run, "iteration": 0, "kind": "clean"}
        rows["runs"].append({
            **_about(run, bench.machine, bench.software), "source": "bench", "program": "",
            "campaign": path.stem, "label": row.label, "job": "", "status": row.status,
            "reason": row.reason, "hint": "", "rehearsal": said.device != "cuda",
            "scale": "blocks", "engine": engine, "setting": setting,
            "name": shown + (" again" if again else ""),
            "peer": name in PEERS, "again": again, "gpus": said.ranks, "tokens": row.tokens,
            "blocks": said.blocks, "branches": said.branches, "compiled": said.compile,
            "cfg_parallel": False, "steps_whole": None,
            "work": f"{row.tokens:,} tokens, {said.blocks} blocks, "
            + ("a CFG step" if said.branches == 2 else "one branch"),
            "workload": f"{bench.software.torch} {row.tokens} {said.blocks} {said.branches}"
            f" {said.compile}", "group": f"{file}#{row.tokens}", "started": row.ended_at,
            "prefetch": given.get("prefetch"),
            "settings": row.settings.__dict__ if row.settings else {},
            "link_gb_s": min(links, default=None), "block_bytes": bench.bytes // said.blocks,
            "plan_inputs": plan.inputs if plan else None, "pageable_rates": None,
            "planned_step_s": plan.candidates[plan.chosen].predicted.step_s if plan else None,
            "counters_derived": False, "traces": 0, "profiled": False,
            "commit": row.git_sha, "dirty": row.git_dirty,
            "note": row.ranks[0].note if row.ranks else "",
            "latents": next(iter(digests)) if len(digests) == 1 else None,
            "repeats": len(digests) == 1 if digests else None,
        })  # fmt: skip
        rows["iterations"].append({
            **key, "complete": False,
            **{name: _most(getattr(rank.memory, name) for rank in row.ranks) for name in MEMORY},
            "pinned_bytes": _pinned(row), **_gpu_state([rank.gpu for rank in row.ranks]),
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


def _setting(bench: Bench, name: str, given: dict[str, Any]) -> str:
    """The settings that a label gives, as people read them; of a peer its version."""
    if name in PEERS:
        return bench.peers[name].version if name in bench.peers else ""
    said = (f"{key.replace('_', ' ')} {value}" for key, value in given.items())
    return joined("planned" if name == "planned" else "", *said)


def _moved(bench: Bench, row: BenchRow, name: str) -> float | None:
    """Bytes that the busiest rank must copy to its device in a steady step.

    By `stream`'s settings where it has any, else as the engine counted. What a peer moves is not
    counted; taken is that each of its branches brings every block.
    """
    said = bench.settings
    if not row.ranks:
        return None
    if row.settings:
        passes = -(-said.branches // row.settings.branches_per_visit)
        block = bench.bytes / said.blocks / (said.ranks if row.settings.shard else 1)
        return passes * row.settings.moving(said.blocks) * block
    if name in PEERS:
        return float(bench.bytes * said.branches)
    steps = len(row.ranks[0].samples_ms)
    brought = [rank.counters["h2d_bytes"] for rank in row.ranks if rank.counters]
    return max(brought) / steps if steps and brought else None


def _pinned(row: BenchRow) -> int | None:
    """Pinned bytes of the host: what each rank has, but once what ranks share."""
    each = [rank.memory.pinned_bytes for rank in row.ranks]
    if not each or None in each:
        return None
    return sum(filter(None, each)) - row.ranks[0].shared_pinned_bytes * (len(each) - 1)


# What both kinds share ---------------------------------------------------------------------------


def _about(run: str, machine: Machine, software: Any) -> dict[str, Any]:
    return {
        "run": run, "file": run.partition("#")[0],
        "machine": _machine_name(machine), "machine_class": machine.class_, "slug": machine.slug,
        "interconnect": _path_name(machine), "gpu_model": machine.gpu_name,
        "torch": software.torch, "commit": software.git_sha, "dirty": software.git_dirty,
    }  # fmt: skip


def _machine_name(machine: Machine) -> str:
    """Name a machine in short: "2× H100, PCIe path"; "CPU, 2 cores (x86_64)" without a GPU.

    H100 alone is the SXM board with 80 GB of HBM3; other boards keep the rest of their name.
    """
    if not machine.gpu_name:
        return machine.class_ or "unknown machine"
    board = machine.gpu_name.removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")
    return joined(f"{machine.gpu_count}× {board}", _path_name(machine))


def _path_name(machine: Machine) -> str:
    """Name how a machine's GPUs exchange data: "NVLink", "PCIe path"; "" for one GPU or none."""
    if machine.gpu_count < 2 or not machine.interconnect:
        return ""
    return path_of(machine.interconnect)


def path_of(interconnect: str) -> str:
    """Name an interconnect, as records have it, in short."""
    return "PCIe path" if "PCIe" in interconnect else interconnect


def _gpu_state(ranks: Sequence[Gpu | None]) -> dict[str, Any]:
    """How the GPUs ran: what the rank with the slowest clock read, and all boards."""
    read = [rank for rank in ranks if rank]
    if not read or len(read) < len(ranks):
        return {"sm_mhz": None, "power_w": None, "celsius": None, "boards": ()}
    slowest = min(read, key=lambda rank: (rank.sm_mhz, rank.power_w, rank.celsius))
    return {"sm_mhz": slowest.sm_mhz, "power_w": slowest.power_w, "celsius": slowest.celsius,
            "boards": tuple(sorted(rank.board for rank in read))}  # fmt: skip


def _most(values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def joined(*parts: str) -> str:
    """Join the parts that are not empty with commas."""
    return ", ".join(part for part in parts if part)
