"""Campaign files made up for tests, as ``python -m benchmarks --json`` writes them.

Their times are invented; settings, plans and predictions come from the package's own planner.
"""

import hashlib
import json
import math
import re

from tests.synthetic import plan_inputs
from wanreport.analysis.rows import MEMORY
from wanreport.planner.plan import make_plan
from wanreport.records.files import PEERS, parse_label, stream_settings

BLOCK, BLOCKS = 702_986_240, 20
PCIE = "2x NVIDIA H200, host memory over PCIe (NCCL_P2P_DISABLE=1)"
LABELS = {"resident": 1.0, "fsdp": 1.3, "layerwise:prefetch=1": 1.2, "planned": 1.005,
          "diffusers": 1.6, "sglang:prefetch=1": 1.21, "resident again": 1.002}  # fmt: skip


def campaign(*, device="cuda", machine=PCIE, ranks=2, branches=1, resident_ms=None, factors=None):
    """A campaign of 20 blocks.

    `resident_ms` are milliseconds of resident's step by tokens, and `factors` how many times as
    long a label's step takes; all else follows from the label.
    """
    resident_ms = resident_ms or {7800: 194.1, 14040: 367.8, 32760: 1082.4}
    settings = {"device": device, "ranks": ranks, "blocks": BLOCKS, "branches": branches,
                "compile": False}  # fmt: skip
    cuda, slug = device == "cuda", re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    rows = []
    for label, factor in (factors or LABELS).items():
        for tokens, ms in resident_ms.items():
            each = [_rank(label, factor * ms, settings, rank) for rank in range(ranks)]
            rows.append({
                "label": label, "tokens": tokens, "status": "ok", "reason": "", "ranks": each,
                "settings": stream_settings(label, each), "git_sha": "c" * 40,
                "ended_at": "2026-03-01T12:00:00+00:00",
            })  # fmt: skip
    return {
        "schema_version": 2, "settings": settings, "bytes": BLOCK * BLOCKS, "rows": rows,
        "machine": {"class": machine, "slug": slug, "gpu_name": "NVIDIA H200" if cuda else None,
                    "gpu_count": ranks if cuda else 0, "driver": "580" if cuda else None,
                    "nccl": {"NCCL_P2P_DISABLE": "1"} if machine == PCIE else {}},
        "software": {"python": "3.12.3", "torch": "2.11.0", "diffusers": "0.42.1", "cuda": "13.0",
                     "nccl": "2.28.9", "wanreport": "0.1.0"},
        "peers": {"diffusers": {"version": "0.42.1"}, "sglang": {"version": "0.5.23"}},
    }  # fmt: skip


def _rank(label, ms, settings, rank):
    cuda, blocks, ranks = settings["device"] == "cuda", settings["blocks"], settings["ranks"]
    (name, given), branches, plan = parse_label(label), settings["branches"], None
    samples = [ms * (1 + 0.0005 * math.sin(7 * i + rank)) for i in range(7)] if cuda else []
    digest = hashlib.sha256(b"all alike").hexdigest()
    copied = {"resident": 0, "swap": 0, "fsdp": blocks / ranks, "layerwise": blocks - 1}
    h2d = int(copied.get(name, blocks) * BLOCK * branches) * len(samples)
    if name == "planned":
        inputs = plan_inputs(blocks=blocks, block_bytes=BLOCK, ranks=ranks, branches=branches)
        plan, _ = make_plan(inputs, given.get("room", 4), lambda rivals: [[1.0]] * len(rivals))
        plan["candidates"][plan["chosen"]]["predicted"]["step_s"] = ms / 1e3 * 1.02
        plan = json.loads(json.dumps(plan))
    held = {"resident": blocks, "planned": 4, "stream": 3}.get(name, 2) * BLOCK
    sizes = (held, held, BLOCK * blocks, 1) if cuda else (None, None, None, 1)
    read = {"board": "0a1b2c3d", "sm_mhz": 1605, "power_w": 698.5, "celsius": 66}
    link = {"h2d_pinned_gb_s": 55.4, "h2d_pinned_together_gb_s": 54.9}
    return {
        "samples_ms": samples, "memory": dict(zip(MEMORY, sizes, strict=True)), "note": "",
        "gpu": read if samples else None, "shared_pinned_bytes": BLOCK * blocks if cuda else 0,
        "output_sha256": digest, "first_output_sha256": digest, "plan": plan,
        "counters": None if name in PEERS else {"h2d_bytes": h2d},
        "link": link if cuda and name in ("resident", "planned") else None,
    }  # fmt: skip


def write(report, root, name="peers"):
    """Write a campaign where it belongs below a results folder; return its path."""
    path = root / report["machine"]["slug"] / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))
    return path
