"""The project's answer in numbers, and what it leaves out: what first screens say in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from wanreport.analysis import compare
from wanreport.analysis.asked import to_measure
from wanreport.analysis.frames import Frames
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root
from wanreport.words import ratio

PLACES = ("1 GPU", "NVLink", "PCIe path")
"""Where collectives run: nowhere, beside the link of the weights, on it."""


def place(runs: pd.DataFrame) -> pd.Series:
    """Name where each run's collectives go: one of :data:`PLACES`, or another interconnect."""
    return runs.interconnect.where(runs.gpus > 1, PLACES[0]).rename("place")


def answer(frames: Frames) -> pd.DataFrame:
    """Sum up :func:`compare.headline`: what each engine costs a step, wherever it was measured.

    Returns
    -------
    A row for each `place`, number of `gpus`, `height` and `engine`, with

    least, most
        The overhead over resident of the machines there, smallest and largest.
    claim
        "slower" where it is so on any of them, else what :func:`compare.overhead` claims of `most`.
    step_s, resident_s, step_n
        Of the machine where the overhead is largest.
    end_to_end
        What a whole clean iteration takes there over resident's, less 1.
    machines, boards_alike
        Short names; whether each ran on the same boards as its resident.
    """
    cost = compare.headline(frames)
    if cost.empty:
        return pd.DataFrame(columns=["place", "gpus", "height", "engine", "least", "most"])
    whole = frames.runs.end_to_end_s
    cost["end_to_end"] = cost.end_to_end_s / cost.reference.map(whole) - 1
    rows = []
    keys = [place(cost), "gpus", "height", "engine"]
    for key, group in cost.sort_values("overhead").groupby(keys):
        last = group.iloc[-1]
        rows.append({
            **dict(zip(("place", "gpus", "height", "engine"), key, strict=True)),
            "least": group.overhead.iloc[0], "most": last.overhead,
            "claim": "slower" if (group.claim == "slower").any() else last.claim,
            "step_s": last.step_s, "resident_s": last.resident_s, "step_n": last.step_n,
            "end_to_end": last.end_to_end, "run": last.run, "reference": last.reference,
            "machines": " and ".join(sorted(set(group.machine))),
            "boards_alike": bool(group.same_boards.all()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def quoted(found: pd.DataFrame, where: str, engine: str) -> str:
    """Write an engine's overhead at a place: "+6.5 % at 480p and 0 % at 720p (within noise)".

    "" where it was not measured.
    """
    parts = []
    for row in found[(found.place == where) & (found.engine == engine)].itertuples():
        several = dict.fromkeys((ratio(row.least), ratio(row.most)))
        doubt = {"within noise": " (within noise)", "no interval": f" ({row.step_n} steps only)"}
        parts.append(f"{' to '.join(several)} at {row.height}p{doubt.get(row.claim, '')}")
    return " and ".join(parts)


def not_measured(frames: Frames, root: Path | None = None) -> pd.DataFrame:
    """List what the question asks for and no run of the full model answers.

    Returns
    -------
    `what` is "baseline" (the baseline's own jobs), "NVLink" or "720p"; `jobs` how many of them,
    `gpus` how many GPUs they need (such as "4 and 6"), `command` and `minutes` what would measure
    them.
    """
    root = root or project_root()
    runs = frames.runs
    real = runs[~runs.rehearsal & runs.status.isin(["ok", "oom"])] if len(runs) else runs
    files = sorted((root / "params/baseline").glob("*.yaml"))
    jobs = {file: load_job(file) for file in files}
    done = set(real.baseline_job.dropna()) if len(real) else set()
    left = {file: job for file, job in jobs.items() if job.baseline_job not in done}
    wanted = {"baseline": [f"baseline/{file.stem}" for file in left]} if left else {}
    found = answer(frames)
    pair = ("resident", "layerwise", "stream")
    if not (found.place == "NVLink").any():
        wanted["NVLink"] = [f"campaign/480p-2gpu-{engine}" for engine in pair]
    if not (found.height == 720).any():
        wanted["720p"] = [f"campaign/720p-2gpu-{engine}-5steps" for engine in pair]
    rows = []
    for what, names in wanted.items():
        todo = to_measure(frames, *names, root=root)
        gpus = sorted({job.num_gpus for job in left.values()}) if what == "baseline" else [2]
        count = len({job.baseline_job for job in left.values()}) if what == "baseline" else 1
        rows.append({"what": what, "jobs": count, "gpus": " and ".join(map(str, gpus)),
                     "command": todo.command, "minutes": todo.minutes})  # fmt: skip
    return pd.DataFrame(rows, columns=["what", "jobs", "gpus", "command", "minutes"])


def without_record(frames: Frames, root: Path | None = None) -> pd.DataFrame:
    """List the params files whose job no record answers, in any state.

    `job`, `gpus`, `purpose`, `command`; `asked`, whether the baseline asks for it.
    """
    root = root or project_root()
    files = sorted((root / "params").glob("*/*.yaml"))
    known = set(frames.runs.job_hash.dropna()) if len(frames.runs) else set()
    jobs = [(file.relative_to(root), load_job(file)) for file in files]
    return pd.DataFrame([
        {"job": job.name, "gpus": job.num_gpus, "purpose": job.purpose,
         "command": f"wanreport run {file}", "asked": file.parent.name == "baseline"}
        for file, job in jobs if not known & set(job.hashes())
    ], columns=["job", "gpus", "purpose", "command", "asked"])  # fmt: skip
