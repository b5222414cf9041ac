"""Turns files into rows of the frames: a job's record, and each row of a benchmark file.

Rows hold what a file says. What follows from several of them, such as the median step, is computed
from the frames (:mod:`wanreport.analysis.frames`).
"""

import json
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

from wanreport.records import files

Rows = dict[str, list[dict[str, Any]]]
"""Rows of each frame, by its name."""
MEMORY = ("allocated_bytes", "reserved_bytes", "pinned_bytes", "host_rss_bytes")
GPU = ("sm_mhz", "power_w", "celsius")
CFG_PARALLEL = "CFG parallel"  # in names and works
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
    split = CFG_PARALLEL if job.get("enable_cfg_parallel") else ""
    setting = [prefetch and f"prefetch {prefetch}", budget and f"{budget:g} GB budget",
               (job.get("transfer") == "packed") and "packed", split]  # fmt: skip
    whole, ran = len(r.schedule.timesteps), max((len(it.steps) for it in r.iterations), default=0)
    alike = [r.software.torch, *map(job.get, WORKLOAD), *(getattr(model, key) for key in MODEL)]
    workload = json.dumps(alike + [split] * bool(split), default=str)
    size = f"{model.width}×{model.height}, {model.num_frames} frames"
    steps = f"{ran} of {whole} steps" if 0 < ran < whole else f"{whole} steps"
    work = _joined(size, branches == 1 and "one branch", compiled and "compiled", split, steps)
    program = (r.source or "").replace("sglang", "SGLang")
    rates = [link.get(f"{way}_pageable_together_gb_s") for way in ("h2d", "d2h")]
    columns = {
        "source": "job", "job": str(job.get("name", "unnamed job")), "rehearsal": r.is_rehearsal,
        "engine": engine, "prefetch": prefetch, "program": program, "gpus": gpus,
        "name": "SGLang " * bool(program) + _joined(engine, *setting),
        "cfg_parallel": bool(split), "branches": branches, "compiled": compiled,
        "work": work if model.width else "", "workload": workload,
        # What two runs must share before their times are compared: all but the engine.
        "group": f"{r.machine.slug} {gpus} {workload}",
        **_of(r, "job_hash", "status", "reason", "hint", "wall_s", "cold_start_s"),
        **_of(model, "tokens", "flow_shift", "boundary_ratio", "block_bytes", "expert_bytes"),
        **{key: job.get(key) for key in ("baseline_job", "scale", "vram_budget_gb", "dtype")},
        "model": model.model_dump(),
        # A job that ran out of memory may have no model yet: then what it asked for counts.
        "height": model.height or job.get("height"), "width": model.width or job.get("width"),
        "frames": model.num_frames or job.get("num_frames"), "blocks": model.num_layers,
        "steps_run": ran, "steps_whole": whole, "switch_step": r.schedule.switch_step,
        "started": r.started_at, "link_gb_s": link.get("h2d_pinned_together_gb_s"),
        "gpu_memory_bytes": (r.machine.model_extra or {}).get("gpu_memory_bytes"),
        "pageable_rates": None if None in rates else rates,
        "counters_derived": r.engine.counters_derived, "traces": len(r.traces),
        # What an imported run's first trace says of its copies.
        "traced": next((trace for trace in r.traces if trace.get("copies_ns")), None),
    }  # fmt: skip
    _add(rows, run, r, plan, r.iterations, columns)
    rows["events"] += [{"run": run, **event.model_dump(), "ms": event.end_ms - event.start_ms}
                       for event in r.timeline if event.end_ms is not None]  # fmt: skip


def add_bench(rows: Rows, file: str, path: Path, bench: files.Bench) -> None:
    """Add the rows of a benchmark file: each of its rows is a run of one iteration.

    Raises FileError if the file lies in another machine's folder.
    """
    said, slug = bench.settings, bench.machine.slug
    if slug != path.parent.parent.name:
        raise files.FileError(f"{path}: machine.slug is {slug}; move it to {slug}/benchmarks/")
    rates = {row.tokens: [rank.link.h2d_pinned_together_gb_s for rank in row.ranks if rank.link]
             for row in bench.rows if row.label == files.FIRST}  # fmt: skip
    for row in bench.rows:
        ranks, (name, given) = row.ranks, files.parse_label(row.label)
        given = {"prefetch": 1} | given if name == "layerwise" else given  # its default
        planned, again = name == "planned", row.label == files.LAST
        split = CFG_PARALLEL if given.pop(files.CFG, False) else ""
        engine = "stream" if planned else name
        parts = [key.replace("_", " ") + ("" if isinstance(value, list) else f" {value}")
                 for key, value in given.items()]  # fmt: skip
        off = _most(rank.latents_error and rank.latents_error[-1] for rank in ranks)
        shown = _joined(engine, planned and name, *parts, split, off and "not exact")
        if name in bench.peers:
            shown = f"{name.replace('sglang', 'SGLang')} {bench.peers[name].version}"
            shown = _joined(shown, split)
        digests = {d for rank in ranks for d in (rank.first_output_sha256, rank.output_sha256)}
        step = "a CFG step" if said.branches == 2 else "one branch"
        columns = {
            "source": "bench", "scale": "blocks", "campaign": path.stem, "program": "",
            "rehearsal": said.device != "cuda", "again": again, "engine": engine,
            "prefetch": given.get("prefetch"), "name": shown + " again" * again,
            **_of(said, "blocks", "branches"), "gpus": said.ranks, "compiled": said.compile,
            "work": _joined(f"{row.tokens:,} tokens, {said.blocks} blocks, {step}", split),
            "cfg_parallel": bool(split), "group": f"{file}#{row.tokens}{split}",
            **_of(row, "label", "status", "reason", "tokens"),
            "commit": row.git_sha, "started": row.ended_at,
            "link_gb_s": min(rates.get(row.tokens, ()), default=None),  # the slowest rank's
            "block_bytes": bench.bytes // said.blocks,
            "settings": vars(row.settings) if row.settings else {},
            "latents": next(iter(digests)) if len(digests) == 1 else None,
            "repeats": len(digests) == 1 if digests else None, "latents_off_share": off,
        }  # fmt: skip
        moved = _moved(bench, row, name)
        samples = zip(*(rank.samples_ms for rank in ranks), strict=True)
        steps = [files.Step.model_construct(
            index=number, expert=None, timestep=None, seconds=[ms / 1e3 for ms in each],
            h2d_bytes=[] if moved is None else [moved] * len(ranks),
        ) for number, each in enumerate(samples)]  # fmt: skip
        memory = [rank.memory for rank in ranks]
        if pinned := [each.pinned_bytes for each in memory if each.pinned_bytes]:
            # What ranks share of the host's counts once.
            nbytes = sum(pinned) - ranks[0].shared_pinned_bytes * (len(pinned) - 1)
            memory = [each.model_copy(update={"pinned_bytes": nbytes}) for each in memory]
        whole = files.Iteration.model_construct(
            kind="clean", steps=steps, memory=memory, gpu=[rank.gpu for rank in ranks],
            counters=[rank.counters or {} for rank in ranks],
        )  # fmt: skip
        plan = ranks[0].plan.model_dump() if ranks and ranks[0].plan else None
        _add(rows, f"{file}#{row.tokens}/{row.label}", bench, plan, [whole], columns)


def _moved(bench: files.Bench, row: files.BenchRow, name: str) -> float | None:
    """Bytes that the busiest rank must copy to its device in a steady step.

    By `stream`'s settings where blocks travel as they are, else as counted; of a peer, that each
    branch brings every block.
    """
    said = bench.settings
    branches = 1 if files.CFG in row.label else said.branches  # of a rank
    if row.settings and not row.settings.packs:
        passes = -(-branches // row.settings.branches_per_visit)
        block = bench.bytes / said.blocks / (said.ranks if row.settings.shard else 1)
        return passes * row.settings.moving(said.blocks) * block
    if name in files.PEERS:
        return float(bench.bytes * branches)
    return _most(rank.counters["h2d_bytes"] / len(rank.samples_ms)
                 for rank in row.ranks if rank.counters and rank.samples_ms)  # fmt: skip


def _add(
    rows: Rows, run: str, file: files.Record | files.Bench, plan: Any,
    iterations: list[files.Iteration], columns: dict[str, Any],
) -> None:  # fmt: skip
    """Add a run and its iterations.

    A machine's short name is like "2× H100, PCIe path". H100 alone is the SXM board; other boards
    keep the rest of their name. Runs of another program are compared among themselves, as on
    another machine. Of the GPUs counts what the one with the slowest clock read.
    """
    machine, chosen = file.machine, plan and plan["candidates"][plan["chosen"]]
    path = path_of(machine.interconnect or "") if machine.gpu_count > 1 else ""
    board = (machine.gpu_name or "").removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")
    short = _joined(f"{machine.gpu_count}× {board}", path) if board else machine.class_
    settings = columns.get("settings", chosen["settings"] if chosen else {})
    rows["runs"].append({
        "run": run, "file": run.partition("#")[0], "machine_class": machine.class_,
        "machine": _joined(short or "unknown machine", columns["program"]),
        "slug": machine.slug, "interconnect": path, "gpu_model": machine.gpu_name,
        "torch": file.software.torch, "commit": file.software.git_sha,
        "planned_step_s": chosen and chosen["predicted"]["step_s"],
        "plan_inputs": plan and plan.get("inputs"),
        "settings": settings, "transfer": settings.get("transfer", "bf16"),
        # What only one kind has.
        **dict.fromkeys(("campaign", "label", "job", "hint", "dtype"), ""), "traces": 0,
        **dict.fromkeys(("again", "cfg_parallel", "counters_derived"), False),
        **dict.fromkeys(("latents", "repeats", "latents_off_share", "traced")),
        **dict.fromkeys(("pageable_rates", "steps_whole", "model")), **columns,
    })  # fmt: skip
    most = max((len(it.steps) for it in iterations), default=0)
    roles = {columns["switch_step"]: "switch", 0: "first"} if "job" in columns else {}
    for number, it in enumerate(iterations):
        key, read = {"run": run, "iteration": number, "kind": it.kind}, it.gpu or []
        gpus = [gpu for gpu in read if gpu and None not in read]
        slowest = min(gpus, key=attrgetter(*GPU), default=None)
        rows["iterations"].append({
            **key, **(_of(slowest, *GPU) if slowest else {}),
            "boards": tuple(sorted(gpu.board for gpu in gpus)),
            **_of(it, "decode_s", "total_s"), "latents": it.latents_sha256,
            "complete": len(it.steps) == most > 0,
            **{name: _most(getattr(rank, name) for rank in it.memory or [] if rank)
               for name in MEMORY},
        })  # fmt: skip
        rows["counters"] += [
            {**key, "rank": rank, "counter": name, "measured": value,
             "formula": it.expected_counters[rank].get(name) if it.expected_counters else None}
            for rank, found in enumerate(it.counters or []) for name, value in found.items()
        ]  # fmt: skip
        rows["steps"] += [
            {**key, "step": step.index, "role": roles.get(step.index, "steady"),
             **_of(step, "expert", "timestep"), "h2d_bytes": _most(step.h2d_bytes),
             "seconds": _most(step.seconds),  # a step takes as long as its slowest rank
             "h2d_bytes_all": sum(step.h2d_bytes) if step.h2d_bytes else None}
            for step in it.steps
        ]  # fmt: skip


def path_of(interconnect: str) -> str:
    """Name an interconnect, as records have it, in short: "NVLink", "PCIe path"."""
    return "PCIe path" if "PCIe" in interconnect else interconnect


def _of(part: object, *names: str) -> dict[str, Any]:
    """Columns that are called as in the file."""
    return {name: getattr(part, name) for name in names}


def _most(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _joined(*parts: str | bool | None) -> str:
    """Join with commas what is there."""
    return ", ".join(str(part) for part in parts if part)
