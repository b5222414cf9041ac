"""Turns a benchmark file into rows of the frames."""

from __future__ import annotations

from pathlib import Path

from wanreport.analysis.rows import MEMORY, Rows, about, bench_name, gpu_state
from wanreport.analysis.stats import median_interval
from wanreport.records.files import FIRST, LAST, PEERS, Bench, BenchRow, FileError, parse_label


def add_bench(rows: Rows, file: str, path: Path, bench: Bench) -> None:
    folder = path.parent.parent.name
    if bench.machine.slug != folder:
        raise FileError(
            f"{path}: machine.slug is {bench.machine.slug}, and the folder is {folder}'s; move the"
            f" file to {bench.machine.slug}/benchmarks/"
        )
    said = bench.settings
    residents = {row.tokens: row for row in bench.rows if row.label == FIRST and row.ranks}
    for row in bench.rows:
        name, given = parse_label(row.label)
        engine = "stream" if name == "planned" else name
        again = row.label == LAST
        version = bench.peers[name].version if name in bench.peers else ""
        setting = _bench_setting(row, name, version)
        run = f"{file}#{row.tokens}/{row.label}"
        per_rank = [rank.samples_ms for rank in row.ranks]
        samples = [max(each) / 1e3 for each in zip(*per_rank, strict=True)]
        step, moved = median_interval(samples), _moved(bench, row, name)
        plan = row.ranks[0].plan if row.ranks else None
        digests = {d for rank in row.ranks for d in (rank.first_output_sha256, rank.output_sha256)}
        first = residents.get(row.tokens)
        links = [rank.link.h2d_pinned_together_gb_s for r in (first,) if r for rank in r.ranks
                 if rank.link]  # fmt: skip
        rows["runs"].append({
            **about(run, bench.machine, bench.software), "source": "bench",
            "campaign": path.stem, "label": row.label, "job": "", "status": row.status,
            "reason": row.reason, "hint": "",
            "profiled": False, "counters_derived": False, "traces": 0,
            "rehearsal": said.device != "cuda",
            "scale": "blocks", "engine": engine, "setting": setting,
            "name": bench_name(engine, setting) + (" again" if again else ""),
            "peer": name in PEERS, "again": again, "gpus": said.ranks, "tokens": row.tokens,
            "blocks": said.blocks, "branches": said.branches, "compiled": said.compile,
            "work": f"{row.tokens:,} tokens, {said.blocks} blocks, "
            + ("a CFG step" if said.branches == 2 else "one branch"),
            "workload": f"{bench.software.torch} {row.tokens} {said.blocks} {said.branches}"
            f" {said.compile}", "group": f"{file}#{row.tokens}", "started": row.ended_at,
            "prefetch": given.get("prefetch"),
            "settings": row.settings.__dict__ if row.settings else {},
            "link_gb_s": min(links, default=None),
            "step_s": step.median, "step_low_s": step.low, "step_high_s": step.high,
            "step_n": step.n, "h2d_step_bytes": moved, "h2d_schedule_bytes": moved,
            "plan_inputs": plan.inputs if plan else None, "pageable_rates": None,
            "planned_step_s": plan.candidates[plan.chosen].predicted.step_s if plan else None,
            "block_bytes": bench.bytes // said.blocks,
            **{key: max((value for rank in row.ranks
                         if (value := getattr(rank.memory, key)) is not None), default=None)
               for key in MEMORY},
            "pinned_bytes": _pinned(row),
            **gpu_state([[rank.gpu for rank in row.ranks]]),
            "latents": next(iter(digests)) if len(digests) == 1 else None,
            "repeats": len(digests) == 1 if digests else None, "commit": row.git_sha,
            "dirty": row.git_dirty, "note": row.ranks[0].note if row.ranks else "",
        })  # fmt: skip
        rows["steps"] += [
            {"run": run, "iteration": 0, "kind": "clean", "step": number, "role": "steady",
             "seconds": seconds, "h2d_bytes": moved}
            for number, seconds in enumerate(samples)
        ]  # fmt: skip
        rows["counters"] += [
            {"run": run, "iteration": 0, "kind": "clean", "rank": rank, "counter": counter,
             "measured": value, "formula": None}
            for rank, each in enumerate(row.ranks)
            for counter, value in (each.counters or {}).items()
        ]  # fmt: skip


def _bench_setting(row: BenchRow, name: str, version: str) -> str:
    """The settings that a label gives, as people read them."""
    _, given = parse_label(row.label)
    shown = {k: v for k, v in given.items() if name not in PEERS}
    parts = ["planned"] if name == "planned" else []
    parts += [f"{key.replace('_', ' ')} {value}" for key, value in shown.items()]
    return ", ".join([*parts, *filter(None, [version])])


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
    known = [value for value in each if value is not None]
    if not known or len(known) < len(each):
        return None
    return sum(known) - row.ranks[0].shared_pinned_bytes * (len(each) - 1)
