"""The command line: ``wanreport report|publish|run|measure|check|plan|predict|index|baseline``.

Only measuring needs torch, and it runs in a process of its own. Only rendering and predicting need
pandas, and import it when they run. So every command starts at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import wanreport
from wanreport.baseline import FactError
from wanreport.baseline.evidence import DERIVED, SCHEMA, EvidenceError
from wanreport.jobs.job import Job, JobError, resolve_job
from wanreport.measure import local
from wanreport.measure.missing import load_jobs, measure
from wanreport.planner import plan
from wanreport.records import project
from wanreport.records.record import RESULTS_DIRS, RecordError, is_rehearsal
from wanreport.words import counted

INTERCONNECTS = ("nvlink", "host-memory")
WORKERS = 2

AGAIN = "interrupted; finished records and pages are kept, and running it again goes on from there"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 where all went well, 1 failure, 2 bad input, 130 interrupt."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except JobError as error:
        print("\n".join(error.problems), file=sys.stderr)
        print("Nothing was run.", file=sys.stderr)
        return 2
    except (RecordError, FactError, EvidenceError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"wanreport: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nwanreport: {AGAIN}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wanreport", description=wanreport.__doc__)
    parser.add_argument("--version", action="version", version=f"wanreport {wanreport.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "report", help="measure what is missing, render what is stale: reports/index.html"
    )
    command.add_argument(
        "--no-measure", action="store_true", help="render from the records at hand only"
    )
    command.add_argument("--force", action="store_true", help="render all pages, changed or not")
    _add_workers(command)
    command.set_defaults(command=_report)

    command = commands.add_parser(
        "publish", help="render the committed records alone, as pages to commit: reports/published"
    )
    _add_workers(command)
    command.set_defaults(command=_publish)

    command = commands.add_parser("run", help="measure one job if needed and render its page")
    command.add_argument("params", type=Path, nargs="+", help="params file (YAML)")
    command.add_argument("--force", action="store_true", help="render the page, changed or not")
    command.set_defaults(command=_run)

    command = commands.add_parser("measure", help="measure jobs that have no record here; no pages")
    command.add_argument("params", type=Path, nargs="+", help="params files (YAML)")
    command.add_argument(
        "--minutes", type=float, default=math.inf, metavar="N",
        help="begin no job whose timeout_s would not fit in; run it again to go on",
    )  # fmt: skip
    command.add_argument(
        "--results", type=Path, metavar="DIR",
        help="where records go (default: results/local; results/ is for those to commit)",
    )  # fmt: skip
    command.add_argument(
        "--again", action="store_true",
        help="measure also what has a record here; of the full model the earlier run is kept",
    )  # fmt: skip
    command.set_defaults(command=_measure)

    command = commands.add_parser("check", help="say what params files resolve to; run nothing")
    command.add_argument("params", type=Path, nargs="+", help="params files (YAML)")
    command.set_defaults(command=_check)

    command = commands.add_parser("plan", help="say how stream would move weights; run no job")
    command.add_argument("params", type=Path, nargs="+", help="params files (YAML)")
    command.set_defaults(command=_plan)

    command = commands.add_parser(
        "predict", help="say what jobs will take on more GPUs, from records of fewer; run no job"
    )
    command.add_argument(
        "params", type=Path, nargs="*",
        help="params files (default: those of params/campaign/ for several GPUs)",
    )  # fmt: skip
    command.add_argument("--gpu", metavar="NAME", help="GPU model (default: all that have records)")
    command.add_argument("--interconnect", choices=INTERCONNECTS, help="default: each")
    command.add_argument(
        "--write", action="store_true", help="keep it in predictions/, where it is never changed"
    )
    command.set_defaults(command=_predict)

    command = commands.add_parser("index", help="render reports/index.html from what is at hand")
    command.set_defaults(command=_index)

    command = commands.add_parser("baseline", help="the verdicts on the baseline's facts")
    actions = command.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser(
        "check", help="print the ledger; fail where it differs from the committed verdicts"
    )
    action.add_argument("--accept", action="store_true", help="write the verdicts as they are now")
    action.set_defaults(command=_baseline_check)
    return parser


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers", type=_positive, default=WORKERS, metavar="N",
        help="pages made at a time (default: %(default)s)",
    )  # fmt: skip


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _report(arguments: argparse.Namespace) -> int:
    from wanreport.report import site

    return site.report(
        project.project_root(),
        measuring=not arguments.no_measure,
        force=arguments.force,
        workers=arguments.workers,
    )


def _publish(arguments: argparse.Namespace) -> int:
    from wanreport.report import site

    return site.publish(project.project_root(), arguments.workers)


def _run(arguments: argparse.Namespace) -> int:
    from wanreport.report import site

    return site.report(project.project_root(), only=arguments.params, force=arguments.force)


def _measure(arguments: argparse.Namespace) -> int:
    root = project.project_root()
    jobs = load_jobs(arguments.params, root)
    log = project.local_results(root) / "logs" / "measure.log"
    failed = measure(
        list(jobs.values()), root, log, arguments.results, arguments.minutes, again=arguments.again
    )
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _check(arguments: argparse.Namespace) -> int:
    root = project.project_root()
    jobs = load_jobs(arguments.params, root)
    gpus = local.usable_gpus(local.known_machine(project.local_results(root)))
    for file, job in jobs.items():
        print(f"{file}: {_resolved(job, gpus)}")
    return 0


def _resolved(job: Job, gpus: int) -> str:
    here = resolve_job(job, gpus=gpus)
    sglang = job.sglang()
    return (
        f"{job.engine} on {job.num_gpus} GPUs, {job.width}x{job.height}, {job.num_frames} frames,"
        f" {job.num_inference_steps} steps; SGLang's flags give {sglang.engine};"
        f" here, with {gpus} GPUs: scale {here.scale}, hash {here.hashes()[0]}"
    )


def _plan(arguments: argparse.Namespace) -> int:
    root = project.project_root()
    jobs = load_jobs(arguments.params, root)
    others = [
        f"{file}: engine: {job.engine} has no settings to choose; `plan` is for stream"
        for file, job in jobs.items() if job.engine != "stream"
    ]  # fmt: skip
    if others:
        raise JobError(others)
    results = project.local_results(root)
    gpus = local.usable_gpus(local.known_machine(results))
    real = [item for item in project.all_records(root) if not is_rehearsal(item[1])]
    unknown = 0
    for file, job in jobs.items():
        print(f"{file}: {_resolved(job, gpus)}")
        here = resolve_job(job, gpus=gpus)
        if job.scale == "tiny" or here.scale == "a14b" and gpus >= job.num_gpus:
            with tempfile.TemporaryDirectory(prefix="wanreport-plan-") as folder:
                log = results / "logs" / f"{job.name}-plan.log"
                (_, record), *_ = local.measure_jobs([here], Path(folder), log, plan_only=True)
            made, timed = record["engine"].get("plan"), not is_rehearsal(record)
            if not made:
                print(f"{record['reason']}; {record['hint']}", file=sys.stderr)
                unknown = 1
                continue
            print("measured here" if timed else "a rehearsal, whose times say nothing")
        elif found := plan.from_records(job, real):
            path, made = found
            timed = True
            print(f"from what was measured for {path.relative_to(root)}")
        else:
            print(
                f"no plan: it needs {job.num_gpus} GPUs here, or a record of stream at this shape"
                " from a machine that has them; for a rehearsal of the planner set scale: tiny",
                file=sys.stderr,
            )
            unknown = 1
            continue
        print("\n".join(plan.lines(made, timed=timed)))
    return unknown


def _predict(arguments: argparse.Namespace) -> int:
    from wanreport.analysis import frames, predictions

    root = project.project_root()
    given = arguments.params or sorted((root / "params/campaign").glob("*.yaml"))
    jobs = [job for job in load_jobs(given, root).values() if job.scale != "tiny"]
    sizes = sorted({job.num_gpus for job in jobs} - {1})
    found = frames.load(RESULTS_DIRS, root)
    models = {row.gpu_model for row in found.full_scale().itertuples()}
    models = {arguments.gpu} if arguments.gpu else models
    wires = [arguments.interconnect] if arguments.interconnect else list(INTERCONNECTS)
    problems = (
        []
        if sizes and models
        else ["nothing to predict: give params files for several GPUs, or --gpu"]
    )
    for model, size, wire in itertools.product(sorted(models), sizes, wires):
        asked = [job for job in jobs if job.num_gpus == size]
        try:
            content = predictions.predict(root, found, asked, model, wire)
            print("\n".join(predictions.lines(content)))
            if arguments.write:
                print(f"  written: {predictions.write(root, content).relative_to(root)}")
        except predictions.PredictionError as error:
            problems.append(str(error))
    print("\n".join(dict.fromkeys(problems)), file=sys.stderr, end="\n" * bool(problems))
    return 1 if problems else 0


def _index(_: argparse.Namespace) -> int:
    from wanreport.report import site

    return site.report(project.project_root(), pages=["index.html"], measuring=False)


def _baseline_check(arguments: argparse.Namespace) -> int:
    from wanreport.analysis import frames
    from wanreport.baseline import ledger, page

    # Committed records alone: what is committed must not depend on who looks.
    judged = ledger.load_ledger(frames=frames.load(RESULTS_DIRS[:1]))
    rows = page.rows(judged)
    for row in rows.itertuples():
        print(f"{row.sign or ' '} {row.fact:<44} {shorten(row.printed, 24):<24} {row.instead[:60]}")
    print(", ".join(f"{count} {outcome}" for outcome, count in rows.outcome.value_counts().items()))
    path = DERIVED / "verdicts.json"
    if arguments.accept:
        content = {"schema": SCHEMA, "verdicts": judged.summaries()}
        project.write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return 0
    if found := ledger.differences(judged, DERIVED):
        print("\n".join(["", *found]), file=sys.stderr)
        accept = "wanreport baseline check --accept"
        print(
            f"{counted(len(found), 'verdict')} differ from {path.name}; if they are right, run "
            f"`{accept}` and commit it",
            file=sys.stderr,
        )
    return 1 if found else 0
