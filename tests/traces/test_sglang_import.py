"""Runs of SGLang: made-up logs of all six jobs become records, and hostile ones clear errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.traces.madeup import contended, events, put, sqlite, text
from wanreport.analysis import frames, overlap
from wanreport.analysis.checks import checks
from wanreport.baseline.facts import load_facts
from wanreport.cli import main
from wanreport.jobs.job import load_job
from wanreport.measure import jobs
from wanreport.records.files import FileError
from wanreport.records.record import find_records, read_record
from wanreport.traces import copies, read
from wanreport.traces.log import Log
from wanreport.traces.sglang import import_run

ROOT = Path(__file__).resolve().parents[2]
LOGS, PARAMS = Path(__file__).parent / "sglang", ROOT / "params/baseline"
THREE = ["warmup", "clean", "profiled"]
JOBS = {  # status, kinds of iterations, where the clean one's steps are from, GiB reserved
    "new-4gpu": ("ok", THREE, "perf dump", 22.27),
    "old-4gpu-swap": ("ok", THREE, "progress bar", 44.31),
    "new-4gpu-prefetch3": ("ok", THREE, "progress bar", 22.27),
    "pure-4gpu": ("oom", [], None, None),
    "new-6gpu": ("ok", THREE[:2], "perf dump", 22.27),
    "old-6gpu-fsdp": ("failed", THREE[:2], None, None),
}
REASONS = {"pure-4gpu": "OutOfMemoryError: CUDA out of memory", "old-6gpu-fsdp": "11 of 27"}
PLACE = "gpu: NVIDIA H100 PCIe\ncount: 8\ninterconnect: PCIe\nsglang: 0.5.9\n"
ANSWERED = {"shift": "pass", "switch": "pass", "spike-swap": "pass", "slower-swap": "pass",
            "pure": "pass", "prefetch": "within noise", "overlap": "pass",
            "contention": "pass"}  # fmt: skip
"""What the six made-up logs, with traces of two, say to the checks of the baseline's §9.2."""


def taken(job: str, out: Path, log: str | bytes | None = None, **more: Any) -> dict[str, Any]:
    """The record of a log, of a job's own one where none is given."""
    path = LOGS / f"{job}.log" if log is None else put(out, log, "given.log")
    return import_run("mine", path, PARAMS / f"{job}.yaml", out / "records", **more)[1]


def refused(match: str, out: Path, job: str = "new-4gpu", **more: Any) -> None:
    with pytest.raises(FileError, match=match):
        taken(job, out, **more)
    assert not (out / "records").exists()


def said(job: str = "new-4gpu") -> str:
    return (LOGS / f"{job}.log").read_bytes().decode()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six jobs, imported by one command each; two of those on four GPUs with a trace."""
    out = tmp_path_factory.mktemp("imported")
    place = put(out, PLACE, "place.yaml")
    for job in JOBS:
        files = {"--log": LOGS / f"{job}.log", "--params": PARAMS / f"{job}.yaml",
                 "--machine": place, "--out": out / "results"}  # fmt: skip
        if (dump := LOGS / f"{job}.perf.json").exists():
            files["--perf-dump"] = dump
        if job in ("new-4gpu", "old-4gpu-swap"):
            files["--trace"] = put(out, text(contended(job == "new-4gpu")), f"{job}.json")
        given = [str(each) for pair in files.items() for each in pair]
        assert main(["import", f"cluster-{job}", *given]) == 0
    return out / "results"


@pytest.mark.parametrize("job", JOBS)
def test_each_jobs_log_is_a_record(imported: Path, job: str) -> None:
    status, kinds, source, reserved = JOBS[job]
    (path,) = imported.glob(f"*/cluster-{job}-????????????-*.json")
    record, version = read_record(path), "0.5.23" if "6gpu" in job else "0.5.9"
    assert record["source"] == f"sglang {version}" and path.stem.endswith(f"-sglang-{version}")
    assert "sglang" in path.parent.name
    assert len(record["started_at"]) == len("2026-09-21T14:14:52+00:00"), "as our own runs' are"
    assert record["job_hash"] == load_job(PARAMS / f"{job}.yaml").hashes()[0]
    assert (record["status"], [it["kind"] for it in record["iterations"]]) == (status, kinds)
    assert record["model"]["flow_shift"] == 12 and record["schedule"]["switch_step"] == 18
    if source:
        clean = record["iterations"][1]
        seconds = [step["seconds"][0] for step in clean["steps"]]
        assert clean["steps_from"] == source and len(seconds) == 27
        assert clean["memory"][0]["reserved_bytes"] == pytest.approx(reserved * 2**30, rel=1e-3)
        assert clean["decode_s"] == pytest.approx(7.8)
        assert sum(seconds) == pytest.approx(27 * clean["average_step_s"], rel=1e-3)
    if status != "ok":
        assert REASONS[job] in record["reason"] and "\x1b" not in record["reason"]
        assert f"wanreport import cluster-{job} " in record["hint"]


def test_steps_of_a_progress_bar_are_those_that_its_averages_come_from() -> None:
    for it in Log(LOGS / "new-4gpu.log").iterations[1:]:
        wanted = [21.6 * (1 + 0.003 * ((i * 7) % 5)) for i in range(27)]
        assert it.steps == pytest.approx(wanted, abs=0.03)


def test_the_checks_are_answered_from_them(imported: Path) -> None:
    found = frames.load([ROOT / "results", imported], ROOT)
    rows = found.runs[found.runs.program != ""]
    assert len(rows) == 6 and rows.latest.all()
    assert not set(rows.machine) & set(found.runs.machine[found.runs.program == ""])
    told = checks(found, load_facts())
    mine = told[told.machine.str.endswith("SGLang 0.5.9") | (told.machine == "")]
    mine = mine[mine.check.isin([*ANSWERED])].set_index("check").status
    assert mine.to_dict() == ANSWERED
    alone = checks(frames.load([imported], ROOT), load_facts()).set_index("check")
    assert alone.status[[*ANSWERED]].to_dict() == ANSWERED
    assert len(alone.runs["contention"]) == len(alone.runs["overlap"]) == 2
    # What the traces hold.
    own = overlap.shares(found).loc[rows.index[rows.traces > 0]].set_index("job")
    whole = copies.summary([read(imported.parent / "new-4gpu.json")]).iloc[0]
    assert own.hidden.to_dict() == {"cluster-new-4gpu": 900 / 2500, "cluster-old-4gpu-swap": 0}
    assert own.copies_ms["cluster-new-4gpu"] == whole.copies_ns / 1e6 == 8 * 2500 / 1e6
    # They never stand for our own runs.
    job, records, here = load_job(PARAMS / "new-4gpu.yaml"), find_records(imported), "some-machine"
    assert len(records) == 6
    assert jobs.spoken_for(job, records, jobs.Machine(here, 8)) is None
    assert jobs.missing([job], records, jobs.Machine(here, 8))


@pytest.mark.parametrize(("change", "without", "status", "slowed"), [
    ({}, "?", "pass", ["all-to-alls"]), ({"shorter": 0.5}, "?", "fail", ["all-to-alls"]),
    ({"shorter": 2 / 3}, "?", "within noise", ["all-to-alls"]),
    ({"rounds": 3}, "?", "not measured", ["all-to-alls"]),  # too few for an interval
    ({}, "nelems", "pass", ["copies"]),  # an export of Nsight Systems has no sizes either
    ({}, "SendRecv", "not measured", [""]), ({}, "Memcpy", "not measured", []),
])  # fmt: skip
def test_a_trace_tells_of_contention(
    change: dict[str, Any], without: str, status: str, slowed: list[str], tmp_path: Path
) -> None:
    made = [each for each in contended(True, **change) if without not in each["name"]]
    for each in made:
        each["args"] = {key: arg for key, arg in each["args"].items() if without not in key}
    trace, place = put(tmp_path, text(made)), put(tmp_path, PLACE, "place.yaml")
    taken("new-4gpu", tmp_path, traces=[trace], machine=place)
    found = frames.load([tmp_path / "records"])
    assert checks(found, load_facts()).set_index("check").status["contention"] == status
    assert [*overlap.shares(found).get("slowed", [])] == slowed


def test_the_switch_is_where_the_times_say_it_is(tmp_path: Path) -> None:
    late = [it.steps.index(max(it.steps[1:])) for it in Log(LOGS / "old-4gpu-swap.log").iterations]
    assert late == [18, 18, 18]
    log = said("old-4gpu-swap").splitlines()[0] + "\n"
    dump = json.loads((LOGS / "new-4gpu.perf.json").read_text())
    for n, step in enumerate(dump["denoise_steps_ms"]):
        step["duration_ms"] = 50_000 if n == 20 else 20_000
    (lone,) = taken("old-4gpu-swap", tmp_path, log, dump=put(tmp_path, json.dumps(dump)))[
        "iterations"]  # fmt: skip
    assert [step["expert"] for step in lone["steps"]].index("low_noise") == 20
    assert lone["kind"] == "clean"
    log += "[x] [DenoisingStage] average time per step: 0.1 seconds\n"
    trace = put(tmp_path, text(events(0, steps=27)))  # steps of 2,900 ns
    (lone,) = taken("old-4gpu-swap", tmp_path, log, traces=[trace])["iterations"]
    assert lone["steps_from"] == "trace" and lone["steps"][5]["seconds"] == [2.9e-6]


@pytest.mark.parametrize(("key", "old", "new", "job", "number"), [
    ("flow_shift", '"flow_shift": 12.0', '"flow_shift": 3.0', "new-4gpu", "12"),
    ("num_gpus", '"num_gpus": 4', '"num_gpus": 8', "new-4gpu", "4"),
    ("engine", 'layerwise_offload": true', 'layerwise_offload": false', "new-4gpu", "swap"),
    ("dit_offload_prefetch_size", 'prefetch_size": 0.0', 'prefetch_size": 5.0', "new-4gpu", "5"),
    ("num_inference_steps", "infer_steps: 27", "infer_steps: 40", "new-6gpu", "40"),
    ("height", "height: 720", "height: 480", "new-6gpu", "480"),
    ("iterations", said(), said() * 2, "new-4gpu", "6"),
], ids=lambda value: value[:25])  # fmt: skip
def test_what_contradicts_the_params_file_is_named_with_both(
    key: str, old: str, new: str, job: str, number: str, tmp_path: Path
) -> None:
    both = rf"given\.log:? {key}.*{number}.*{job}\.yaml"
    refused(both, tmp_path, job, log=said(job).replace(old, new))


def test_warm_up_that_sglang_names_and_iterations_that_end_early(tmp_path: Path) -> None:
    log = said()
    first = log.index("[", log.index("Processing prompt 1/1") - 20)
    second = log.index("[", log.index("Processing prompt 1/1", first + 99) - 20)
    warm = (
        "[09-21 14:14:52] Processing warmup req... (1/1)\n\r100%|##| 1/1 [00:20<00:00, 20.1s/it]\n"
        "[09-21 14:15:52] Warmup req (1/1) processed in \x1b[92m22.31\x1b[0;0m seconds\n"
    )
    record = taken("new-4gpu", tmp_path, log[:first] + warm + log[second:])
    assert [it["kind"] for it in record["iterations"]] == THREE
    assert [len(it["steps"]) for it in record["iterations"]] == [0, 27, 27]
    lone = log[:second]
    assert taken("new-4gpu", tmp_path, lone)["iterations"][0]["kind"] == "clean"
    ended = "slurmstepd: error: *** JOB 1 CANCELLED AT 1 DUE TO TIME LIMIT ***"
    ends = {"": "failed", "\nDetected 1 oom_kill event\n": "oom", f"\n{ended}\n": "timeout"}
    for end, status in ends.items():
        record = taken("new-4gpu", tmp_path, lone[: lone.index("15/27")] + end)
        assert record["status"] == status and "14 of 27" in record["reason"]


def test_a_perf_dump_of_another_run_or_version(tmp_path: Path) -> None:
    good = json.loads((LOGS / "new-4gpu.perf.json").read_text())
    steps = good["denoise_steps_ms"]
    bad = [good | {"denoise_steps_ms": steps[:20]}, {"steps": [1.0, 2.0], "stages": {}}, [], {},
           *[good | {"denoise_steps_ms": [s | {"duration_ms": ms} for s in steps]}
             for ms in (2e3, -1, float("nan"))], good | {"timestamp": "<b>"}]  # fmt: skip
    for body in [*map(json.dumps, bad), "{", "[" * 10**5]:
        refused(r"dump\.json", tmp_path, dump=put(tmp_path, body, "dump.json"))
    other = put(tmp_path, json.dumps(good | {"memory_checkpoints": {}, "new": 1}))
    assert taken("new-4gpu", tmp_path, dump=other)["status"] == "ok"


@pytest.mark.parametrize("log", [
    "", b"\x00\xff" * 999, "server_args: {\n", "server_args: {" + '"a":[' * 10**5 + "}\n",
    "\r100%|#| 1/1 [00:01<00:00, 1.0s/it]\n\r  0%|#| 0/1 [00:01<?, ?s/it]\n" * 999,
], ids=range(5))  # fmt: skip
def test_what_is_no_log_is_named(log: str | bytes, tmp_path: Path) -> None:
    refused(r"given\.log", tmp_path, log=log)


def test_hostile_text_becomes_plain_text(tmp_path: Path) -> None:
    nasty = "ValueError: <script>alert(1)</script>\x1b]0;x\x07\x00\u202e\u2028" + "x" * 10**6
    log = said()[:3000] + f"\nTraceback (most recent call last):\n  x\n{nasty}\n"
    record = taken("new-4gpu", tmp_path, log + "y" * (3 << 20))
    assert record["status"] == "failed" and len(record["reason"]) < 1000
    assert record["reason"].isprintable() and "<script>" in record["reason"]


def test_traces_lie_beside_the_record(tmp_path: Path) -> None:
    for place in ("gpu: H100\ncount: 2\n", "GPU: H100\nnodes: 2\n", "[", "7"):
        refused(r"place\.yaml", tmp_path, machine=put(tmp_path, place, "place.yaml"))
    trace, nsys = put(tmp_path, text(events(0))), sqlite(tmp_path / "b.sqlite", events(0))
    record = taken("new-4gpu", tmp_path, traces=[trace], nsys=nsys)
    folder = tmp_path / "records" / record["machine"]["slug"]
    assert [trace["rank"] for trace in record["traces"]] == [5, 1]
    assert all((folder / t["path"]).stat().st_size == t["bytes"] for t in record["traces"])
