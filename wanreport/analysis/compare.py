"""Which runs are compared: those that count, pairs of them, how their setup differs, the answer."""

from typing import Any

import numpy as np
import pandas as pd

from wanreport.analysis.frames import Frames
from wanreport.analysis.rows import CFG_PARALLEL
from wanreport.analysis.stats import Runs, difference
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root
from wanreport.words import counted, ratio

Facts = Any  # `wanreport.baseline.facts.Facts`, which lies above: what the document says, by name
NEW, OLD = "layerwise", ("fsdp", "swap")
"""The baseline's new offload, and the two engines that may be its old one."""
WHERE = ["machine", "gpus", "height"]
CELL = ["machine", "branches", "tokens"]  # of a benchmark
PLACES = ("PCIe path", "NVLink", "1 GPU")
"""What collectives run over, those first that share the copies' link; one GPU has none."""


def overhead(frames: Frames) -> pd.DataFrame:
    """Pick the runs with a steady step at full scale: the only ones that times are compared of."""
    return frames.full_scale().dropna(subset="step_s")


def places(runs: pd.DataFrame) -> pd.Series:
    """Say what each run's collectives go over: its interconnect, or that it has one GPU."""
    return runs.interconnect.where(runs.gpus > 1, PLACES[-1])


def plain_jobs(runs: pd.DataFrame, *, every: bool = False, layouts: bool = False) -> pd.DataFrame:
    """Keep eager jobs of both branches without a budget, in bfloat16 by Ulysses alone.

    With `layouts` those with CFG parallelism and with packed transfers count, too.
    Of each the latest run counts, and only with prefetch 1, unless `every` does.
    """
    plain = (runs.source == "job") & ~runs.compiled & (runs.branches == 2)
    plain &= runs.vram_budget_gb.isna() & (layouts | ~runs.cfg_parallel & (runs.transfer == "bf16"))
    return runs[plain & (every | runs.latest & (runs.prefetch.fillna(1) == 1))]


def headline(frames: Frames) -> pd.DataFrame:
    """Pick the runs for the first screen: of each machine, GPUs, height and engine but `resident`.

    It is the latest plain job with prefetch 1; before it goes one whose reference ran on the same
    boards, one with `resident` again afterwards, and one with more engines on the same boards.
    """
    plain = plain_jobs(overhead(frames)).dropna(subset="overhead").query("engine != 'resident'")
    plain = plain.assign(beside=plain.groupby(["group", "boards"]).engine.transform("nunique"))
    plain = plain.sort_values(["same_boards", "bracketed", "beside", "steps_run", "started"])
    return plain.groupby([*WHERE, "engine"]).tail(1)


def told(one: Runs, two: Runs) -> dict[str, Any]:
    """Compare two runs' steps (:func:`difference`), with the larger drift known of both."""
    return {
        **difference(one, two, np.fmax(np.abs(one["drift"]), np.abs(two["drift"]))),
        "same_boards": (one["boards"] == two["boards"]) & (one["sm_mhz"] > 0),
        **{key: one[key] for key in (*WHERE, "work")},
        "run_one": one["run"], "run_two": two["run"],
    }  # fmt: skip


def nearest(ones: pd.DataFrame, others: pd.DataFrame, *on: str) -> list[pd.DataFrame]:
    """Pair runs that agree `on` some columns: one pair of each machine, GPUs, height and engine.

    The most steps count first, then the same boards, a `resident` on the same boards, the date.
    """
    where = [*WHERE, "engine"]
    keep = [*dict.fromkeys([*on, *where, "run", "boards", "same_boards", "steps_run", "started"])]
    both = ones[keep].merge(others[keep], on=[*on], suffixes=("", "_two"))
    order = both[both.run != both.run_two].assign(
        same=both.boards.astype(bool) & (both.boards == both.boards_two),
        beside=both.same_boards.eq(True).astype(int) + both.same_boards_two.eq(True),
    ).sort_values(["steps_run", "same", "beside", "started", "started_two"])  # fmt: skip
    picked = order.drop_duplicates(where, keep="last").sort_values(where)
    return aligned(ones, picked.run) + aligned(others, picked.run_two)


def aligned(runs: pd.DataFrame, *names: Any) -> list[pd.DataFrame]:
    """Runs by name, in tables with one index."""
    return [runs.loc[each].reset_index(drop=True) for each in names]


def layouts(frames: Frames) -> pd.DataFrame:
    """Compare CFG parallelism with Ulysses over all GPUs: a row for each machine, size and engine.

    Each ``overhead`` is over resident of the same layout.
    """
    plain = plain_jobs(overhead(frames), layouts=True).query("gpus > 1 and transfer == 'bf16'")
    split = plain.cfg_parallel
    cfg, ulysses = nearest(plain[split], plain[~split], *WHERE, "engine", "frames")
    sides = {f"{name}_{side}": runs[name] for side, runs in (("cfg", cfg), ("ulysses", ulysses))
             for name in ("step_s", "overhead")}  # fmt: skip
    return pd.DataFrame({**told(cfg, ulysses), "engine": cfg.engine, **sides})


def layout_cells(frames: Frames) -> pd.DataFrame:
    """Compare both layouts in benchmarks: a row for each run with CFG parallelism.

    It is held against the same engine and settings in its campaign; without that it is left out. Of
    several campaigns the newest counts.
    """
    runs = overhead(frames).query("source == 'bench' and not again")
    runs = runs.assign(what=runs["name"].str.replace(f", {CFG_PARALLEL}", ""))
    ulysses, cfg = (some.set_index(["file", "tokens", "what"], drop=False) for some in
                    (runs[~runs.cfg_parallel], runs[runs.cfg_parallel]))  # fmt: skip
    cfg = cfg[cfg.index.isin(ulysses.index)]
    ulysses = ulysses[~ulysses.index.duplicated()].loc[cfg.index]
    found = cfg.assign(**difference(cfg, ulysses, ulysses.drift), ulysses_s=ulysses.step_s,
                       n=np.minimum(cfg.step_n, ulysses.step_n))  # fmt: skip
    where = ["machine", "tokens", "what", "branches", "blocks"]
    newest = found.reset_index(drop=True).sort_values([*where, "started"])
    return newest.drop_duplicates(where, keep="last")


def differs(facts: Facts, runs: pd.DataFrame, gpus: str = "") -> str:
    """Say how runs differ from what was asked: "2 GPUs instead of 4, 480p instead of 720p".

    `gpus` is the fact with the number of GPUs; any will do without.
    """
    said, size = [], [("height", "s2.height", "p"), ("frames", "s2.frames", " frames")]
    for column, fact, unit in [("gpus", gpus, " GPUs")] * bool(gpus) + size:
        asked = facts.number(fact)
        if len(other := runs[column][runs[column] != asked].dropna()):
            there = " and ".join(map(str, sorted(set(other)))) + unit
            there = "1 GPU" if there == "1 GPUs" else there
            some = f" in {len(other)} of {len(runs)} runs" if len(other) < len(runs) else ""
            said.append(f"{there} instead of {asked:.0f}{unit if unit == 'p' else ''}{some}")
    board = facts.text("s1.gpu").split()[0]  # its memory decides what fits
    others = sorted({gpu.split()[1] for gpu in runs.gpu_model.dropna() if board not in gpu})
    said += [f"{' and '.join(others)} instead of {board}"] * bool(others)
    return ", ".join(said)


def counting(frames: Frames) -> pd.DataFrame:
    """Pick the benchmarks' runs that count: of each :data:`CELL` those of one campaign, in bfloat16
    by Ulysses alone.

    First goes one with `stream` and others, then one that `resident` closes, then the latest.
    """
    runs = overhead(frames).query("source == 'bench' and not again and engine != 'resident'")
    runs = runs[(runs.transfer == "bf16") & ~runs.cfg_parallel]
    by, streams = runs.groupby("group"), (runs.engine == "stream").groupby(runs.group)
    order = runs.assign(
        whole=(by.engine.transform("nunique") > 1) & streams.transform("any"),
        closed=runs.bracketed.eq(True), at=by.started.transform("max"),
    ).sort_values(["whole", "closed", "at"])  # fmt: skip
    return runs[runs.group.isin(order.drop_duplicates(CELL, keep="last").group)]


def rivals(frames: Frames) -> pd.DataFrame:
    """Hold other engines and peers against `stream` in the same campaign: the run `ours`.

    That is a planned one if there is any. `claim` is the rival's, of several settings the fastest.
    """
    runs = counting(frames)
    stream = runs.engine == "stream"
    ours = runs[stream].sort_values("label", key=lambda label: label != "planned")
    ours = ours.drop_duplicates("group").set_index("group")
    found = runs[~stream & runs.group.isin(ours.index)].sort_values("step_s")
    found = found.drop_duplicates(["group", "name"]).sort_values([*CELL, "engine", "name"])
    beside = ours.loc[found.group].set_axis(found.index)
    return found.assign(ours=beside.run, claim=difference(found, beside, found.drift)["claim"])


def beaten(found: pd.DataFrame) -> str:
    """Write in how many cells `stream` was faster than its :func:`rivals`, and in how many slower.

    "faster than SGLang 0.5.23 in 13 of 24 cells, and slower in none".
    """
    by = [(name.replace(", ", " with ", 1), [*each.claim]) for name, each in found.groupby("name")]
    won = [f"than {name} in {c.count('slower')} of {counted(len(c), 'cell')}" for name, c in by]
    lost = [f"than {name} in {counted(n, 'cell')}" for name, c in by if (n := c.count("faster"))]
    return f"faster {', '.join(won)}, and slower {', '.join(lost) or 'in none'}"


def answer(frames: Frames) -> pd.DataFrame:
    """Sum up :func:`headline`: what each engine costs a step, wherever it was measured.

    For each `place` (:func:`places`), number of `gpus`, `height` and `engine` the row of the
    machine with the largest overhead, with the `least`, and "slower" as `claim` if it is on any.
    """
    cost, keys = headline(frames), ["place", "gpus", "height", "engine"]
    by = cost.assign(place=places(cost)).sort_values("overhead").groupby(keys)
    return by.tail(1).set_index(keys).sort_index().assign(
        least=by.overhead.min(),
        claim=by.claim.agg(lambda all_: "slower" if "slower" in set(all_) else all_.iloc[-1]),
    ).reset_index()  # fmt: skip


def quoted(found: pd.DataFrame, where: str, engine: str) -> str:
    """Write what an engine costs at a place: "+4.1 % to +18 %, the most at 480p on 4 GPUs".

    Runs of too few steps count only where there are no others.
    """
    here = found[(found.place == where) & (found.engine == engine)].sort_values("overhead")
    sure = here[here.claim != "no interval"]
    if sure.empty:
        return "too few steps to tell" if len(here) else ""
    most = " to ".join(dict.fromkeys((ratio(sure.least.min()), ratio(sure.overhead.max()))))
    tail = f", the most at {sizes(sure.tail(1))}" * (len(sure) > 1)
    return most + (tail if (sure.claim == "slower").any() else ", within noise")


def sizes(found: pd.DataFrame) -> str:
    """Write which sizes these are: "720p on 2 GPUs and 720p on 4 GPUs"."""
    rows = found.sort_values(["height", "gpus"]).itertuples()
    said = (f"{row.height:.0f}p on {counted(row.gpus, 'GPU')}" for row in rows)
    return " and ".join(dict.fromkeys(said))


def claimed(found: pd.DataFrame, engine: str) -> str:
    """Write where an engine was slower; all else counts as within noise: "slower (PCIe path)"."""
    sure = found[(found.engine == engine) & (found.claim != "no interval")]
    slower = (sure.claim == "slower").groupby(sure.place).transform("any")
    even = sure[slower & (sure.claim != "slower")].groupby("place")
    level = [*sure.place[~slower].unique(), *(f"{at} at {sizes(rows)}" for at, rows in even)]
    where = {"slower": sure.place[slower].unique(), "within noise": level}
    return "; ".join(f"{said} ({', '.join(at)})" for said, at in where.items() if len(at))


def without_record(runs: pd.DataFrame) -> pd.DataFrame:
    """List the params files whose job none of our runs answers.

    `job`, `gpus`, `purpose`, `command`; `baseline_job`, where the baseline asks for it.
    """
    root, known = project_root(), set(runs.job_hash[runs.program == ""].dropna())
    files = {file: load_job(file) for file in sorted((root / "params").glob("*/*.yaml"))}
    rows = [(job.name, job.num_gpus, job.purpose, f"wanreport run {file.relative_to(root)}",
             job.baseline_job if file.parent.name == "baseline" else None)
            for file, job in files.items() if not known & set(job.hashes())]  # fmt: skip
    return pd.DataFrame(rows, columns=["job", "gpus", "purpose", "command", "baseline_job"])
