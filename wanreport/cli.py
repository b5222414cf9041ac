"""The command line: `wanreport --help`.

Every command starts at once: only ranks import torch, only what makes tables pandas.
"""

import argparse
import errno
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import wanreport
from wanreport.baseline.facts import DERIVED, FactError
from wanreport.jobs.job import Job, JobError, located, model_settings, resolve_job
from wanreport.jobs.sglang import ModelPathError
from wanreport.measure import jobs as ours
from wanreport.measure import ranks
from wanreport.measure.jobs import load_jobs, measure, measure_jobs, this_machine
from wanreport.model.checkpoint import CheckpointError, audit
from wanreport.planner import plan
from wanreport.records import project
from wanreport.records.files import parse_record
from wanreport.records.record import RESULTS_DIRS, RecordError, replace_file
from wanreport.words import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 where all went well, 1 failure, 2 bad input, 130 interrupt."""
    parser = argparse.ArgumentParser(prog="wanreport", description=wanreport.__doc__)
    parser.add_argument("--version", action="version", version=f"wanreport {wanreport.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, says, options) in COMMANDS.items():
        command = commands.add_parser(name, help=says)
        for option, how in options.items():
            command.add_argument(option, **how)
        command.set_defaults(command=run)
    given = parser.parse_args(argv)
    return ended(parser.prog, lambda root: int(given.command(given, root)))


def ended(program: str, run: Callable[[Path], int]) -> int:
    """Run a program in the project; returns its exit status, and says in a line what ended it."""
    # A batch system's end is as orderly as Ctrl-C: ranks end, and what is half written goes.
    signal.signal(signal.SIGTERM, ours.terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know every letter
        sys.stdout.reconfigure(errors="backslashreplace")
    root, code = project.project_root(), Path(wanreport.__file__).parent
    try:
        if (own := root / code.name).is_dir() and not own.samefile(code):
            repair = "in this folder run `python -m wanreport`, or once `pip install -e .`"
            if root / ".venv" in (Path(sys.prefix), *Path(sys.argv[0]).resolve().parents):
                repair = "`make report` repairs that"
            raise JobError([f"{root}: this runs the code of {code.parent}; {repair}"])
        status = run(root)
        sys.stdout.flush()  # it would fail after the end, where nobody sees to it
        return status
    except JobError as error:
        print(*error.problems, "Nothing was run.", sep="\n", file=sys.stderr)
        return 2
    except (RecordError, FactError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if not where and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its rest would fail at the end
            if error.errno == errno.EPIPE:  # as of `| head`, which has what it wanted
                return 0
            where = "standard output: "
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        kept = "what is written is kept, and running it again goes on from there"
        print(f"\n{program}: interrupted; {kept}", file=sys.stderr)
        return 130
    return 1


def few(text: str) -> int:
    """A number from 1 to 64, as an option takes it."""
    if not (text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 to 64")
    return int(text)


def _site() -> Any:
    from wanreport.report import site

    return site


def _run(given: Namespace, root: Path) -> int:
    """Measure jobs and make their pages; 1 if a job is not ok, after the pages of all are made."""
    status = int(_site().report(root, only=given.params))
    found, here = project.all_records(root), this_machine()
    for job in load_jobs(given.params, root).values():
        path, record = ours.spoken_for(job, found, here) or (None, {"status": "ok"})
        if record["status"] != "ok":
            print(f"{job.name}: {record['status']}: {path}", file=sys.stderr)
            status = 1
    return status


def _measure(given: Namespace, root: Path) -> int:
    jobs = list(load_jobs(given.params, root).values())
    log = project.local_results(root) / "logs" / "measure.log"
    if given.nsys:
        if not (nsys := shutil.which("nsys")):
            raise RecordError("--nsys: nsys is not on the PATH; install Nsight Systems, or add it")
        os.environ[ranks.NSYS] = nsys
    if failed := measure(jobs, root, log, given.results, given.minutes, again=given.again):
        print(f"{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _check(given: Namespace, root: Path) -> int:
    """Say what jobs resolve to; 1, at which batch scripts go on, if a model is not usable here."""
    status = 0
    for file, job in load_jobs(given.params, root).items():
        placed = located(job, root)
        model = placed.model_path
        try:
            if Path(model).is_absolute() and not Path(model).is_dir():
                raise ModelPathError(f"model_path: {model} is not there")
            if placed.checkpoint:  # all whose files are looked at
                audit(Path(placed.checkpoint))
                model += f", checkpoint {placed.checkpoint}"
            shift = model_settings(placed)["flow_shift"]
            print(f"{file}: {_resolved(job)}; {model}, flow_shift {shift:g}")
        except (CheckpointError, ModelPathError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            status = 1
    return status


def _resolved(job: Job) -> str:
    here = resolve_job(job, gpus=(gpus := this_machine().gpus))
    asked, there = counted(job.num_gpus, "GPU"), counted(gpus, "GPU")
    return (
        f"{job.engine} on {asked}, {job.width}x{job.height}, {job.num_frames} frames,"
        f" {job.num_inference_steps} steps; SGLang's flags give {job.sglang().engine};"
        f" here, with {there}: scale {here.scale}, hash {here.hashes()[0]}"
    )


def _trace(given: Namespace, _: Path) -> int:
    from wanreport.traces import command

    return command.run(given.files, given.json, given.peak, given.link)


def _import(given: Namespace, root: Path) -> int:
    from wanreport.traces import sglang

    path, record = sglang.import_run(
        given.name, given.log, given.params, given.out or project.local_results(root),
        dump=given.perf_dump, machine=given.machine, traces=given.trace, nsys=given.nsys,
    )  # fmt: skip
    print(path, f"{record['source']}: {record['status']} {record['reason']}".strip(), sep="\n  ")
    for it in record["iterations"]:
        print(f"  {it['kind']}: {len(it['steps'])} steps timed ({it['steps_from']})")
    return 0


def _plan(given: Namespace, root: Path) -> int:
    if bool(given.gpus) == bool(given.params) or (given.vram_gb and not given.gpus):
        raise JobError(["plan: give params files, or --gpus N, with or without --vram-gb G"])
    if given.gpus:
        from wanreport.analysis import recommend

        return recommend.run(root, given.gpus, given.vram_gb)
    jobs, status = load_jobs(given.params, root), 0
    if others := {file: job.engine for file, job in jobs.items() if job.engine != "stream"}:
        raise JobError(f"{f}: engine: is {e}; `plan` is for stream" for f, e in others.items())
    for file, job in jobs.items():
        print(f"{file}: {_resolved(job)}")
        where, made, timed = _planned(job, root)
        print(where, file=sys.stdout if made else sys.stderr)
        print("\n".join(plan.lines(made, timed=timed) if made else []))
        status |= not made
    return status


def _planned(job: Job, root: Path) -> tuple[str, dict[str, Any] | None, bool]:
    """Where a plan comes from or why there is none, the plan, and whether its times count."""
    gpus = this_machine().gpus
    if job.scale == "tiny" or gpus >= job.num_gpus:
        here = resolve_job(job, gpus=gpus)
        log = project.local_results(root) / "logs" / f"{job.name}-plan.log"
        with tempfile.TemporaryDirectory(prefix="wanreport-plan-") as folder:
            ((path, record),) = measure_jobs([here], Path(folder), log, plan_only=True)
        made, timed = record["engine"].get("plan"), not parse_record(path, record).is_rehearsal
        said = "measured here" if timed else "a rehearsal, whose times say nothing"
        return said if made else f"{record['reason']}; {record['hint']}", made, timed
    real = [item for item in project.all_records(root) if not parse_record(*item).is_rehearsal]
    if found := plan.from_records(job, real):
        return f"from what was measured for {found[0].relative_to(root)}", found[1], True
    needs = f"{counted(job.num_gpus, 'GPU')} here, or a record of stream at this shape from as many"
    return f"no plan: it needs {needs}; to rehearse the planner set scale: tiny", None, False


def _baseline(given: Namespace, _: Path) -> int:
    from wanreport.analysis import frames
    from wanreport.baseline.ledger import SIGNS, load_ledger

    # Committed records alone: what is committed must not depend on who looks.
    judged = load_ledger(frames=frames.load(RESULTS_DIRS[:1]))
    counts: Counter[str] = Counter()
    for name in judged.facts:
        outcome, instead = judged.became(name)
        printed, counts[outcome] = shorten(judged.facts.text(name), 24), counts[outcome] + 1
        print(f"{SIGNS[outcome] or ' '} {name:<44} {printed:<24} {instead[:60]}")
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    if given.accept:
        content = {"schema": 1, "verdicts": judged.summaries()}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        replace_file(DERIVED / "verdicts.json", text)
    elif differ := judged.differences(DERIVED):
        accept = "if they are right, run `wanreport baseline check --accept` and commit it"
        print("", *differ, f"{len(differ)} differ; {accept}", sep="\n", file=sys.stderr)
        return 1
    return 0


FILE, YES = {"type": Path}, {"action": "store_true"}
PARAMS = {"params": FILE | {"nargs": "+", "help": "params files (YAML)"}}
FEW: dict[str, Any] = {"type": few, "metavar": "N"}
WORKERS = {"--workers": FEW | {"default": 2, "help": "pages made, and rehearsals run, at a time"}}
RATE = {"type": float, "metavar": "GB/S"}
COMMANDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "report": (
        lambda given, root: _site().report(
            root, measuring=not given.no_measure, workers=given.workers),
        "measure what is missing, render what is stale: reports/index.html",
        WORKERS | {"--no-measure": YES | {"help": "render from the records at hand only"}}),
    "publish": (lambda given, root: _site().publish(root, given.workers),
                "render the committed records alone, to commit: reports/published", WORKERS),
    "run": (_run, "measure jobs if needed and render their pages", PARAMS),
    "measure": (_measure, "measure jobs that have no record here; no pages", {
        **PARAMS,
        "--minutes": {"type": float, "default": math.inf, "help":
                      "begin no job whose timeout_s would not fit in; run it again to go on"},
        "--results": FILE | {"help": "where records go (default: results/local)"},
        "--nsys": YES | {"help": "run ranks on GPUs under Nsight Systems; keep its export"},
        "--again": YES | {"help": "also what has a record; of the full model that is kept"}}),
    "check": (_check, "say what params files resolve to; run nothing", PARAMS),
    "plan": (_plan, "say how stream would move weights, or what to run; run no job", {
        "params": PARAMS["params"] | {"nargs": "*"},
        "--gpus": FEW | {"help": "what to run on N GPUs, from records"},
        "--vram-gb": {"type": float, "metavar": "G", "help": "of each (default: its model's)"}}),
    "trace": (_trace, "say what traces of torch.profiler or Nsight Systems hold of copies", {
        "files": FILE | {"nargs": "+", "help": "JSON (maybe gzipped), or SQLite exports"},
        "--json": FILE | {"help": "write the figures here too"},
        "--peak": RATE | {"help": "of the link to the host (default: by the GPU's name)"},
        "--link": RATE | {"help": "what a benchmark of that link measured"}}),
    "import": (_import, "make a record of a run of SGLang from its log", {
        "name": {"help": "of the run: the beginning of the record's name"},
        "--log": FILE | {"required": True, "help": "what SGLang printed"},
        "--params": FILE | {"required": True, "help": "the job that it ran"},
        "--perf-dump": FILE | {"help": "of SGLang's --perf-dump-path"},
        "--trace": FILE | {"nargs": "+", "default": [], "help": "of torch.profiler, by rank"},
        "--nsys": FILE | {"help": "an SQLite export of Nsight Systems"},
        "--machine": FILE | {"help": "YAML: gpu, count, interconnect, driver, node, sglang"},
        "--out": FILE | {"help": "default: results/local"}}),
    "baseline": (
        _baseline, "print the verdicts; fail where they differ from the committed ones",
        {"action": {"choices": ["check"]},
         "--accept": YES | {"help": "write the verdicts as they are now"}}),
}  # fmt: skip
