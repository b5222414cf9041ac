"""Records made up for tests: of the full model on GPUs, and of a rehearsal on a CPU.

Their numbers are invented, but they hang together as real ones do: jobs pass the checks, schedules
and flags are resolved by the package, counters follow the engines' formulas (simplified), and a
record passes :func:`wanreport.records.record.write_record`.
"""

import hashlib
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from wanreport.analysis import frames
from wanreport.analysis.rows import MEMORY
from wanreport.jobs.job import job_from_mapping, load_job, model_settings, resolve_job
from wanreport.jobs.schedule import flow_schedule, sampled_steps, switch_step
from wanreport.jobs.sglang import ENGINE_FLAGS
from wanreport.planner.cost import Inputs, Route
from wanreport.planner.plan import make_plan, room
from wanreport.records.record import new_record, record_path, write_record

ROOT = Path(__file__).resolve().parents[1]
BLOCK = {"a14b": 702_000_000, "tiny": 40_960}
LAYERS = {"a14b": 40, "tiny": 8}
OUTER = {"a14b": 500_000_000, "tiny": 8_192}
CPU = {"class": "CPU, 2 cores (x86_64)", "slug": "cpu-2c-x86_64"}
STEADY = {"layerwise": 21.6, "fsdp": 19.8, "swap": 19.7, "resident": 19.5, "stream": 19.6}
BASELINE = {path.stem: load_job(path) for path in sorted(ROOT.glob("params/baseline/*.yaml"))}
RATES = {"h2d_pinned": 54.9, "d2h_pinned": 53.1, "h2d_pageable": 9.8, "d2h_pageable": 7.2}
LINK = {f"{key}{how}_gb_s": rate for key, rate in RATES.items() for how in ("", "_together")}
MACHINES = {
    "cuda": {"class": "4x NVIDIA H100 PCIe, no NVLink", "slug": "4x-nvidia-h100-pcie",
        "gpu_name": "NVIDIA H100 PCIe", "gpu_count": 4, "gpu_memory_bytes": 85_000_000_000,
        "interconnect": "PCIe", "link": LINK, "nccl": {"NCCL_P2P_DISABLE": "1"},
    },
    "cpu": CPU | {"gpu_name": None, "gpu_count": 0, "link": None, "nccl": {}},
}  # fmt: skip
SIZES = {
    "a14b": {"head_dim": 128, "tokens": 75_600},
    "tiny": {"head_dim": 4, "tokens": 24, "height": 48, "width": 64, "num_frames": 5},
}


def quick(engine="layerwise", **changes):
    """A job that is soon over, of two ranks; `changes` are further fields."""
    given = {"name": "j", "engine": engine, "num_gpus": 2, "scale": "tiny", "profile": False,
             "num_inference_steps": 4, "decode": False, **ENGINE_FLAGS.get(engine, {})}  # fmt: skip
    return job_from_mapping(given | changes)


def record(
    name="new-4gpu", *, scale="tiny", device=None, status="ok", reason="", hint="", steady_s=None,
    switch_s=None, machine=None, **changes,
):  # fmt: skip
    """A record of one of the baseline's jobs, or of any, if `changes` gives engine and num_gpus.

    It ran on a CPU at "tiny" and on GPUs at "a14b", unless `device` says otherwise; with a status
    other than "ok" it has no iterations. Those of as many ranks have the same bits. `changes` are
    further fields of the job.
    """
    device = device or ("cuda" if scale == "a14b" else "cpu")
    given = BASELINE[name].model_dump(exclude_unset=True) if name in BASELINE else {"num_gpus": 4}
    given |= ENGINE_FLAGS.get(changes.get("engine"), {}) | {"name": name, "scale": scale}
    job = resolve_job(job_from_mapping(given | changes), gpus=64)
    layers, block, cuda = LAYERS[scale], BLOCK[scale], device == "cuda"
    made = new_record(
        job,
        status=status,
        reason=reason or ("" if status == "ok" else f"made up: {status}"),
        hint=hint,
        started_at="2026-03-01T12:00:00Z",
        wall_s=100.0,
        sglang=asdict(job.sglang()) | {"prefetch_layers": job.prefetch(layers)},
        machine={"device": device, "cpu_model": "made up"} | MACHINES[device] | (machine or {}),
        software={"torch": "2.13.0", "git_sha": "0123456789abcdef", "git_dirty": False},
    )
    if status != "ok":
        return made
    settings = model_settings(job)
    timesteps = flow_schedule(job.num_inference_steps, settings["flow_shift"]).timesteps
    at = switch_step(timesteps, settings["boundary_ratio"])
    made["schedule"] = {"timesteps": [float(t) for t in timesteps], "switch_step": at}
    made["model"] = settings | {
        "num_layers": layers, "num_heads": 40, "weights": "random", "prompt_embeds": "random",
        "block_bytes": block, "expert_bytes": OUTER[scale] + layers * block, "height": job.height,
        "width": job.width, "num_frames": job.num_frames, **SIZES[scale],
    }  # fmt: skip
    made["engine"] = {"name": job.engine, "prefetch": job.prefetch(layers),
                      "counters_derived": job.engine == "fsdp"}  # fmt: skip
    made["cold_start_s"] = 250.0
    steady = steady_s or (STEADY[job.engine] if scale == "a14b" else 0.02)
    spike = switch_s or (steady + 30 if job.engine == "swap" else steady)
    kinds = ["warmup"] * job.warmup_iterations + ["clean"] * job.clean_iterations
    read = {"readings": 99, "sm_mhz": 1600.0, "power_w": 690.0, "celsius": 62}
    gpu = [{**read, "board": f"{rank:08x}"} if cuda else None for rank in range(job.num_gpus)]
    made["iterations"] = [_iteration(made, kind, steady, spike) | {"gpu": gpu}
                          for kind in kinds + ["profiled"] * job.profile]  # fmt: skip
    if job.engine == "stream":
        inputs = plan_inputs(
            blocks=layers, block_bytes=block, outer_bytes=OUTER[scale], ranks=job.num_gpus,
            windows_s=(0.05, 0.09, 0.075), collectives_s=0.028,
        )  # fmt: skip
        blocks = room(job.vram_budget_gb, BLOCK["a14b"], OUTER["a14b"])
        plan, _ = make_plan(inputs, blocks, lambda rivals: [[4.0 - s.shard] for s in rivals])
        made["engine"]["plan"] = plan
    made["timeline"] = _timeline(job.engine, layers, at or 1, 250.0 if scale == "a14b" else 0.5)
    made["traces"] = [
        {"rank": rank, "path": f"traces/{name}-{made['job_hash']}/rank{rank}.json.gz",
         "bytes": 1_234_567, "sha256": hashlib.sha256(f"{name}{rank}".encode()).hexdigest()}
        for rank in range(job.num_gpus if job.profile else 0)
    ]  # fmt: skip
    return made


def all_jobs(scale="tiny", **options):
    """A record of each of the baseline's jobs."""
    return [record(name, scale=scale, **options) for name in BASELINE]


def write(records, root):
    """Write records where `find_records` finds them; return `root`."""
    for one in records:
        slug, job = one["machine"]["slug"], one["job"]["name"]
        write_record(one, record_path(root, slug, job, one["job_hash"]))
    return root


def load(records, root):
    """Frames of records, written below `root` and read."""
    write(records, root / "results")
    return frames.load(["results"], root)


def committed():
    """Frames of the committed records, read once."""
    return frames.cached(("results",), ROOT)


def plan_inputs(**changes):
    """Two GPUs whose collectives share the link with copies, at 14,040 tokens."""
    shared = Route(54e9, 20e9, 1.0, 1.5)
    made = Inputs(
        blocks=40, block_bytes=BLOCK["a14b"], outer_bytes=OUTER["a14b"], ranks=2, branches=2,
        steps=27, windows_s=(3e-3, 5e-3, 6e-3), collectives_s=4.4e-3, other_s=5e-3, link=54.9e9,
        local=shared, sharded=Route(30e9, 10e9, 1.1, 2.0), activation_bytes=4 * 10**9,
        device_bytes=80 * 10**9,
    )  # fmt: skip
    return replace(made, **changes)


def _iteration(made, kind, steady, spike):
    job, times, at = made["job"], made["schedule"]["timesteps"], made["schedule"]["switch_step"]
    ranks = range(job["num_gpus"])

    def time(step, rank):
        base = spike if step == at else steady * (1 + 0.002 * (step % 5))
        return (base * 8 if kind == "warmup" and step == 0 else base) - 0.0001 * rank

    ran, latents = sampled_steps(len(times), at, job["sampled_steps"]), "the same bits"
    if kind == "warmup" and len(ran) < len(times):
        ran, latents = [0, at], f"{latents}, warming up"
    counters = [_counters(made) for _ in ranks]
    moved = counters[0]["h2d_bytes"] // len(ran) if job["engine"] in ("layerwise", "fsdp") else 0
    steps = [
        {"index": i, "expert": "high_noise" if at is None or i < at else "low_noise",
         "timestep": times[i], "seconds": [round(time(i, rank), 6) for rank in ranks],
         "h2d_bytes": [moved] * len(ranks)}
        for i in sorted(ran)
    ]  # fmt: skip
    decode = steady * 1.2 if job["decode"] else None
    sizes = (None, None, None, 900_000_000)
    if made["machine"]["device"] == "cuda":
        peak = 23 if job["engine"] == "layerwise" else 70
        sizes = tuple(each * 10**9 for each in (peak, peak + 2, 57, 60))
    digest = hashlib.sha256(f"{latents}, {len(ranks)} ranks".encode()).hexdigest()
    return {
        "kind": kind, "steps": steps, "decode_s": decode,
        "total_s": sum(max(step["seconds"]) for step in steps) + (decode or 0),
        "counters": counters, "expected_counters": [{**each} for each in counters],
        "memory": [dict(zip(MEMORY, sizes, strict=True)) for _ in ranks], "latents_sha256": digest,
    }  # fmt: skip


def _counters(made):
    """One rank's counters in an iteration, after the engines' formulas, simplified."""
    engine, model, steps = made["job"]["engine"], made["model"], len(made["schedule"]["timesteps"])
    loads = {"resident": 0, "swap": 2}.get(engine, steps) * model["num_layers"]
    back = loads // 2 * (engine == "swap")
    return {
        "h2d_copies": loads, "h2d_bytes": loads * model["block_bytes"], "d2h_copies": back,
        "d2h_bytes": back * model["block_bytes"], "allocations": loads, "event_waits": loads,
        "stream_waits": 0, "host_syncs": 0, "unshards": loads * (engine == "fsdp"),
    }  # fmt: skip


def _timeline(engine, layers, at, visit):
    """Two steps around the switch with a visit, two all-to-alls and a load per block."""
    parts = [
        ("compute", "block", 0.0, 1.0),
        *(("collective", "all_to_all", start, start + 0.05) for start in (0.2, 0.6)),
    ]
    parts += {
        "layerwise": [("copy", "load", 0, 0.1), ("copy", "release", 1, 1)],
        "stream": [("copy", "load", start, start + 0.1) for start in (0.25, 0.65)],
        "swap": [("copy", "switch", 0.2, 0.25)],  # hidden by no block alone
    }.get(engine, [])  # fmt: skip
    return [
        {"lane": lane, "what": what, "block": (block + (what == "load")) % layers, "step": step,
         "expert": "high_noise" if step < at else "low_noise",
         "start_ms": round((now + start) * visit, 4), "end_ms": round((now + end) * visit, 4)}
        for now, (step, block) in enumerate(product((at - 1, at), [*range(layers)] * 2))
        for lane, what, start, end in parts
    ]  # fmt: skip
