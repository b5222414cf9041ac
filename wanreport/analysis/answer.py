"""The project's answer in numbers, and what it leaves out: what first screens say in words."""

from __future__ import annotations

import pandas as pd

from wanreport.analysis.compare import headline, places
from wanreport.analysis.frames import Frames
from wanreport.jobs.job import load_job
from wanreport.records.project import project_root
from wanreport.words import counted, ratio

KEYS = ["place", "gpus", "height", "engine"]


def answer(frames: Frames) -> pd.DataFrame:
    """Sum up :func:`headline`: what each engine costs a step, wherever it was measured.

    For each `place` (:func:`places`), number of `gpus`, `height` and `engine`
    the row of the machine with the largest overhead; `least` and `most` of all `machines`; and
    `claim`, "slower" where it is so on any.
    """
    cost = headline(frames)
    by = cost.assign(place=places(cost), most=cost.overhead).sort_values("overhead").groupby(KEYS)
    return by.tail(1).set_index(KEYS).sort_index().assign(
        least=by.overhead.min(),
        claim=by.claim.agg(lambda all_: "slower" if "slower" in set(all_) else all_.iloc[-1]),
        machines=by.machine.agg(lambda names: " and ".join(sorted(set(names)))),
    ).reset_index()  # fmt: skip


def quoted(found: pd.DataFrame, where: str, engine: str) -> str:
    """Write what an engine costs at a place: "+4.1 % to +18 %, the most at 480p on 4 GPUs"."""
    here = found[(found.place == where) & (found.engine == engine)].sort_values("most")
    size = here.height.map("{}p on ".format) + here.gpus.map(lambda gpus: counted(gpus, "GPU"))
    few = here.claim == "no interval"
    said, told = f"{', '.join(size[few])}: too few steps to tell", here[~few]
    if told.empty:
        return said if len(here) else ""
    most = " to ".join(dict.fromkeys((ratio(told.least.min()), ratio(told.most.max()))))
    if not (told.claim == "slower").any():
        most += ", within noise"
    elif len(told) > 1:
        most += f", the most at {size[told.index[-1]]}"
    return most + f" ({said})" * bool(few.any())


def claimed(found: pd.DataFrame, engine: str) -> str:
    """Write where an engine was slower, and where within noise: "slower (PCIe path)"."""
    told = found[(found.engine == engine) & (found.claim != "no interval")]
    slower = (told.claim == "slower").groupby(told.place).any()
    where = {"slower": slower.index[slower], "within noise": slower.index[~slower]}
    return "; ".join(f"{said} ({', '.join(at)})" for said, at in where.items() if len(at))


def not_measured(frames: Frames) -> pd.DataFrame:
    """List what the question asks for and no run of the full model answers.

    `what` is "baseline" (its own `jobs`, and on how many `gpus`: "4 and 6"), "NVLink" or "720p".
    """
    found, runs = answer(frames), frames.runs
    known = {*runs.baseline_job[~runs.rehearsal & runs.status.isin(["ok", "oom"])]}
    files = (project_root() / "params/baseline").glob("*.yaml")
    left = {job.baseline_job: job.num_gpus for job in map(load_job, files)}
    gpus = {job: number for job, number in left.items() if job not in known}
    rows = [
        ("baseline", len(gpus), " and ".join(map(str, sorted({*gpus.values()}))), not gpus),
        ("NVLink", 0, "", (found.place == "NVLink").any()),
        ("720p", 0, "", (found.height == 720).any()),
    ]
    table = pd.DataFrame(rows, columns=["what", "jobs", "gpus", "known"])
    return table[~table.pop("known")].reset_index(drop=True)


def without_record(frames: Frames) -> pd.DataFrame:
    """List the params files whose job no record answers, in any state.

    `job`, `gpus`, `purpose`, `command`; `asked`, whether the baseline asks for it.
    """
    root, known = project_root(), set(frames.runs[frames.runs.program == ""].job_hash.dropna())
    files = sorted((root / "params").glob("*/*.yaml"))
    return pd.DataFrame([
        {"job": job.name, "gpus": job.num_gpus, "purpose": job.purpose,
         "command": f"wanreport run {file.relative_to(root)}",
         "asked": file.parent.name == "baseline"}
        for file, job in zip(files, map(load_job, files), strict=True)
        if not known & set(job.hashes())
    ], columns=["job", "gpus", "purpose", "command", "asked"])  # fmt: skip
