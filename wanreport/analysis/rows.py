"""Turns files into rows of the frames: a job's record, and each row of a benchmark file.

Rows hold what a file says. What follows from several of them, such as the median step, is computed
from the frames (:mod:`wanreport.analysis.frames`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wanreport.records import files

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each frame, by its name."""
Ranks = Any  # a list with an entry for each rank, or None

MEMORY = ("allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes")
WORKLOAD = ("scale", "num_inference_steps", "sampled_steps", "cfg", "dtype", "compile", "seed",
            "checkpoint", "prompt", "negative_prompt", "guidance_scale",
            "guidance_scale_2")  # fmt: skip
MODEL = ("height", "width", "num_frames", "num_layers", "flow_shift", "boundary_ratio", "weights")
"""What must be equal, beside machine, torch and layout, before two jobs' times are compared."""


def add_record(rows: Rows, run: str, r: files.Record) -> None:
    """Add the rows of one record; `run` is its file."""
    job, model, plan, link = r.job, r.model, r.engine.plan, r.machine.link or {}
    engine, gpus = str(r.engine.name or job.get("engine")), int(job.get("num_gpus") or 0)
    ahead = r.engine.prefetch or r.sglang.get("prefetch_layers")
    prefetch, budget = ahead if engine == "layerwise" else None, job.get("vram_budget_gb")
    branches, compiled = 1 + bool(job.get("cfg", True)), bool(job.get("compile"))
    split = "CFG parallel" if job.get("enable_cfg_parallel") else ""
    limit = budget and f"{budget:g} GB budget"
    setting = _joined(prefetch and f"prefetch {prefetch}", limit, split)
    whole, ran = len(r.schedule.timesteps), max((len(it.steps) for it in r.iterations), default=0)
    alike = [r.software.torch, *map(job.get, WORKLOAD), *(getattr(model, key) for key in MODEL)]
    workload = json.dumps(alike + [split] * bool(split), default=str)
    size = f"{model.width}×{model.height}, {model.num_frames} frames"
    steps = f"{ran} of {whole} steps" if 0 < ran < whole else f"{whole} steps"
    work = _joined(size, branches == 1 and "one branch", compiled and "compiled", split, steps)
    program = (r.source or "").replace("sglang", "SGLang")
    taken = plan["candidates"][plan["chosen"]] if plan else None
    rates = [link.get(f"{way}_pageable_together_gb_s") for way in ("h2d", "d2h")]
    rows["runs"].append({
        **_about(run, r.machine, r.software, program), "source": "job",
        "job": str(job.get("name", "unnamed job")), "rehearsal": r.is_rehearsal,
        "engine": engine, "setting": setting, "prefetch": prefetch,
        "name": ("SGLang " if program else "") + _joined(engine, setting), "gpus": gpus,
        "cfg_parallel": bool(split), "branches": branches, "compiled": compiled,
        "work": work if model.width else "", "workload": workload,
        # What two runs must share before their times are compared: all but the engine.
        "group": f"{r.machine.slug} {gpus} {workload}",
        **_of(r, "job_hash", "status", "reason", "hint", "wall_s", "cold_start_s", "made_from"),
        **_of(model, "tokens", "flow_shift", "boundary_ratio", "block_bytes", "expert_bytes"),
        **{key: job.get(key) for key in ("baseline_job", "scale", "vram_budget_gb")},
        # A job that ran out of memory may have no model yet: then what it asked for counts.
        "height": model.height or job.get("height"), "width": model.width or job.get("width"),
        "frames": model.num_frames or job.get("num_frames"), "blocks": model.num_layers,
        "steps_run": ran, "steps_whole": whole, "switch_step": r.schedule.switch_step,
        "started": r.started_at, "link_gb_s": link.get("h2d_pinned_together_gb_s"),
        "gpu_memory_bytes": (r.machine.model_extra or {}).get("gpu_memory_bytes"),
        "settings": {"transfer": "bf16"} | taken["settings"] if taken else {},
        "planned_step_s": taken["predicted"]["step_s"] if taken else None,
        "plan_inputs": plan and plan.get("inputs"),
        "pageable_rates": None if None in rates else rates,
        "counters_derived": r.engine.counters_derived, "traces": len(r.traces),
        # What an imported run's first trace says of its copies.
        "traced": next((trace for trace in r.traces if trace.get("copies_ns")), None),
    })  # fmt: skip
    roles = {r.schedule.switch_step: "switch", 0: "first"}
    for number, it in enumerate(r.iterations):
        key = {"run": run, "iteration": number, "kind": it.kind}
        _add_iteration(
            rows, key, it.memory, it.gpu, it.counters, it.expected_counters,
            **_of(it, "decode_s", "total_s"), latents=it.latents_sha256,
            complete=len(it.steps) == ran > 0,
        )  # fmt: skip
        rows["steps"] += [
            {**key, "step": step.index, "role": roles.get(step.index, "steady"),
             **_of(step, "expert", "timestep"), "h2d_bytes": _most(step.h2d_bytes),
             "seconds": _most(step.seconds),  # a step takes as long as its slowest rank
             "h2d_bytes_all": sum(step.h2d_bytes) if step.h2d_bytes else None}
            for step in it.steps
        ]  # fmt: skip
    rows["events"] += [{"run": run, **event.model_dump(), "ms": event.end_ms - event.start_ms}
                       for event in r.timeline if event.end_ms is not None]  # fmt: skip


def add_bench(rows: Rows, file: str, path: Path, bench: files.Bench) -> None:
    """Add the rows of a benchmark file: each of its rows is a run of one iteration.

    Raises FileError if the file lies in another machine's folder.
    """
    said = bench.settings
    links: dict[int, float] = {}  # the slowest rank's, by tokens
    if bench.machine.slug != (folder := path.parent.parent.name):
        raise files.FileError(
            f"{path}: machine.slug is {bench.machine.slug}, and the folder is {folder}'s; move the"
            f" file to {bench.machine.slug}/benchmarks/"
        )
    for row in bench.rows:
        rates = [rank.link.h2d_pinned_together_gb_s for rank in row.ranks if rank.link]
        links |= {row.tokens: min(rates)} if rates and row.label == files.FIRST else {}
    for row in bench.rows:
        ranks, (name, given) = row.ranks, files.parse_label(row.label)
        engine, again = "stream" if name == "planned" else name, row.label == files.LAST
        parts = [f"{key.replace('_', ' ')} {value}" for key, value in given.items()]
        off = _most(r.latents_error and r.latents_error[-1] for r in row.ranks)
        setting = _joined(name == "planned" and name, *parts, off and "not exact")
        shown = _joined(engine, setting)
        if name in files.PEERS:
            setting = bench.peers[name].version if name in bench.peers else ""
            shown = f"{'SGLang' if name == 'sglang' else name} {setting}".strip()
        plan = ranks[0].plan if ranks else None
        digests = {d for rank in ranks for d in (rank.first_output_sha256, rank.output_sha256)}
        run, group = f"{file}#{row.tokens}/{row.label}", f"{file}#{row.tokens}"
        step = "a CFG step" if said.branches == 2 else "one branch"
        rows["runs"].append({
            **_about(run, bench.machine, bench.software), "source": "bench", "scale": "blocks",
            "campaign": path.stem, "rehearsal": said.device != "cuda", "again": again,
            "engine": engine, "setting": setting, "prefetch": given.get("prefetch"),
            "name": shown + " again" * again, **_of(said, "blocks", "branches"),
            "gpus": said.ranks, "compiled": said.compile,
            "work": f"{row.tokens:,} tokens, {said.blocks} blocks, {step}", "group": group,
            **_of(row, "label", "status", "reason", "tokens"), "commit": row.git_sha,
            "started": row.ended_at, "link_gb_s": links.get(row.tokens),
            "block_bytes": bench.bytes // said.blocks,
            "settings": vars(row.settings) if row.settings else {},
            "planned_step_s": plan and plan.candidates[plan.chosen].predicted.step_s,
            "plan_inputs": plan and plan.inputs,
            "latents": next(iter(digests)) if len(digests) == 1 else None,
            "repeats": len(digests) == 1 if digests else None,
            "latents_off_share": off,
        })  # fmt: skip
        key, memory = {"run": run, "iteration": 0, "kind": "clean"}, [rank.memory for rank in ranks]
        pinned = [each.pinned_bytes for each in memory if each.pinned_bytes]
        shared = ranks[0].shared_pinned_bytes * (len(pinned) - 1) if pinned else 0
        gpus, counters = [rank.gpu for rank in ranks], [rank.counters or {} for rank in ranks]
        # What ranks share of the host's pinned memory counts once.
        pinned_bytes = sum(pinned) - shared if pinned else None
        _add_iteration(rows, key, memory, gpus, counters, complete=False, pinned_bytes=pinned_bytes)
        moved = _moved(bench, row, name)
        samples = zip(*(rank.samples_ms for rank in ranks), strict=True)
        rows["steps"] += [{**key, "step": number, "role": "steady", "seconds": max(each) / 1e3,
                           "h2d_bytes": moved} for number, each in enumerate(samples)]  # fmt: skip


def _moved(bench: files.Bench, row: files.BenchRow, name: str) -> float | None:
    """Bytes that the busiest rank must copy to its device in a steady step.

    By `stream`'s settings where blocks travel as they are, else as counted; of a peer, that each
    branch brings every block.
    """
    said = bench.settings
    if row.settings and not row.settings.packs:
        passes = -(-said.branches // row.settings.branches_per_visit)
        block = bench.bytes / said.blocks / (said.ranks if row.settings.shard else 1)
        return passes * row.settings.moving(said.blocks) * block
    if name in files.PEERS:
        return float(bench.bytes * said.branches)
    return _most(rank.counters["h2d_bytes"] / len(rank.samples_ms)
                 for rank in row.ranks if rank.counters and rank.samples_ms)  # fmt: skip


# What both kinds share ---------------------------------------------------------------------------


def _about(run: str, machine: files.Machine, software: Any, program: str = "") -> dict[str, Any]:
    """Which run it is, and on what: a machine's short name is like "2× H100, PCIe path".

    H100 alone is the SXM board; other boards keep the rest of their name. Runs of another program
    are compared among themselves, as on another machine. The last columns only one kind has.
    """
    path = path_of(machine.interconnect or "") if machine.gpu_count > 1 else ""
    board = (machine.gpu_name or "").removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")
    short = _joined(f"{machine.gpu_count}× {board}", path) if board else machine.class_
    return {
        "run": run, "file": run.partition("#")[0], "program": program,
        "machine": _joined(short or "unknown machine", program), "machine_class": machine.class_,
        "slug": machine.slug, "interconnect": path, "gpu_model": machine.gpu_name,
        "torch": software.torch, "commit": software.git_sha,
        **dict.fromkeys(("campaign", "label", "job", "hint"), ""), "traces": 0,
        **dict.fromkeys(("again", "cfg_parallel", "counters_derived"), False),
        **dict.fromkeys(("latents", "repeats", "latents_off_share", "traced")),
        **dict.fromkeys(("pageable_rates", "steps_whole")),
    }  # fmt: skip


def path_of(interconnect: str) -> str:
    """Name an interconnect, as records have it, in short: "NVLink", "PCIe path"."""
    return "PCIe path" if "PCIe" in interconnect else interconnect


def _add_iteration(
    rows: Rows, key: dict[str, Any], memory: Ranks, gpus: Ranks, counters: Ranks,
    formulas: Ranks = None, **more: Any,
) -> None:  # fmt: skip
    """Add an iteration and its counters; of the GPUs what the one with the slowest clock read."""
    read: dict[str, Any] = {"boards": ()}
    if gpus and None not in gpus:
        slowest = min(gpus, key=lambda rank: (rank.sm_mhz, rank.power_w, rank.celsius))
        boards = tuple(sorted(rank.board for rank in gpus))
        read = {**_of(slowest, "sm_mhz", "power_w", "celsius"), "boards": boards}
    most = {name: _most(getattr(rank, name) for rank in memory or [] if rank) for name in MEMORY}
    rows["iterations"].append({**key, **most, **read, **more})
    for rank, found in enumerate(counters or []):
        said = formulas[rank] if formulas else {}
        rows["counters"] += [{**key, "rank": rank, "counter": name, "measured": value,
                              "formula": said.get(name)}
                             for name, value in found.items()]  # fmt: skip


def _of(part: object, *names: str) -> dict[str, Any]:
    """Columns that are called as in the file."""
    return {name: getattr(part, name) for name in names}


def _most(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _joined(*parts: str | bool | None) -> str:
    """Join with commas what is there."""
    return ", ".join(str(part) for part in parts if part)
