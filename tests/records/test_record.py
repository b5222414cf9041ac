"""A record is written whole or not at all, and read only if it is one."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wanreport.jobs.job import Job, job_hash, resolve_job
from wanreport.records.record import (
    RecordError,
    best_record,
    find_earlier,
    find_records,
    is_rehearsal,
    new_record,
    put_back,
    read_record,
    record_path,
    write_record,
)

JOB = Job(name="a-job", engine="layerwise", num_gpus=2)


def record(scale="tiny", status="ok", device="cpu", started_at="2026-01-01T00:00:00Z", **known):
    job = known.pop("job", JOB).model_copy(update={"scale": scale})
    return new_record(
        job,
        status=status,
        reason="" if status == "ok" else "it broke",
        machine={"device": device},
        started_at=started_at,
        **known,
    )


def put(root, rec, machine="cpu-2c"):
    path = record_path(root, machine, rec["job"]["name"], rec["job_hash"])
    write_record(rec, path)
    return path


def test_a_record_comes_back_as_it_was_written(tmp_path):
    rec = record(wall_s=1.5, iterations=[{"kind": "clean", "total_s": 0.1 + 0.2}])
    path = put(tmp_path, rec)
    assert path == tmp_path / "cpu-2c" / f"a-job-{rec['job_hash']}.json"
    assert read_record(path) == rec
    before = path.read_bytes()
    write_record(rec, path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_new_record_stands_for_a_resolved_job():
    rec = new_record(resolve_job(JOB, gpus=2), reason="not yet")
    assert rec["job"]["scale"] == "a14b" and rec["status"] == "failed"
    assert rec["job_hash"] == job_hash(resolve_job(JOB, gpus=2))
    with pytest.raises(ValueError, match="resolve_job"):
        new_record(JOB)
    with pytest.raises(ValueError, match="a record has no iteration$"):
        new_record(JOB, iteration=[])


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full; free at least"),
        (errno.EDQUOT, "the disk quota is used up; free at least"),
        (errno.EACCES, "no permission to write"),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_disk_that_refuses_loses_no_record(tmp_path, monkeypatch, call, code, said):
    rec = record()
    path = put(tmp_path, rec)

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(RecordError) as caught:
            write_record({**rec, "wall_s": 2.0}, path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "nothing was lost" in str(caught.value)
    assert read_record(path) == rec
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_takes_only_a_part_at_a_time_gets_it_all(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:100]))
    rec = record()
    assert read_record(put(tmp_path, rec)) == rec


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, record())
    assert list((tmp_path / "cpu-2c").iterdir()) == []


def test_a_really_full_disk_loses_no_record(tmp_path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no small file system can be mounted here: {mount.stderr.strip()}")
    try:
        rec = record()
        path = put(tmp_path, rec)
        with pytest.raises(RecordError, match="the disk is full; free at least"):
            write_record({**rec, "hint": "x" * 100_000}, path)
        assert read_record(path) == rec
        assert list(path.parent.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wall_s": float("nan")}, "wall_s is nan, which JSON cannot hold"),
        ({"model": {"a": [1, {"b": float("inf")}]}}, r"model\.a\[1\]\.b is inf"),
        ({"traces": [{"path": Path("x")}]}, r"traces\[0\]\.path is PosixPath"),
        ({"status": "fine"}, "status: "),
        ({"status": "oom"}, "no reason is given"),
        ({"schema_version": 2}, "schema_version: "),
        ({"iterations": None}, "iterations: "),
        ({"wall_s": True}, "wall_s: "),
        ({"job": {}}, "no resolved scale"),
    ],
)
def test_what_is_no_record_is_not_written(tmp_path, change, said):
    with pytest.raises(RecordError, match=said):
        write_record({**record(), **change}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", sorted(record()))
def test_every_top_level_key_is_needed(tmp_path, key):
    rec = {k: v for k, v in record().items() if k != key}
    (tmp_path / "x.json").write_text(json.dumps(rec))
    with pytest.raises(RecordError, match=f"(?s)x.json: is not usable.*{key}"):
        read_record(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ('{"a": ', "is not valid JSON"),
        ('{"wall_s": NaN}', "NaN is not a JSON number"),
        ("[]", "valid dictionary|object"),
        ('{"schema_version": 7}', "schema_version: "),
        ("\ud83d".encode("utf-16", "surrogatepass").decode("latin-1"), "is not valid JSON"),
    ],
)
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, text, said):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match=said) as caught:
        read_record(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)
    assert "measure the job again" in str(caught.value)
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path / "gone.json")


def test_records_are_found_in_order_and_only_one_folder_deep(tmp_path):
    assert find_records(tmp_path / "none") == []
    b = put(tmp_path, record(), "b-machine")
    a = put(tmp_path, record(), "a-machine")
    local = put(tmp_path / "local", record(), "a-machine")
    (a.parent / "._hidden.json").write_text("junk")
    (a.parent / "notes.txt").write_text("no record")
    assert [path for path, _ in find_records(tmp_path)] == [a, b]
    assert [path for path, _ in find_records(tmp_path / "local")] == [local]


def test_a_result_of_the_full_model_is_kept_when_the_job_is_measured_again(tmp_path):
    def run(day, **known):
        known = {"scale": "a14b", "device": "cuda"} | known
        return put(tmp_path, record(started_at=f"2026-01-0{day}T12:30:00+00:00", **known))

    path = run(1)
    run(2, status="failed")
    (kept,) = (file for file, _ in find_earlier(tmp_path))
    assert kept == path.parent / "earlier" / f"{path.stem}-20260101T123000.json"
    run(3)  # a failure is no result
    write_record(read_record(path) | {"wall_s": 2.5}, path)  # the same run
    run(4)
    days = [found["started_at"][:10] for _, found in find_earlier(tmp_path)]
    assert days == ["2026-01-01", "2026-01-03"]
    assert [found["started_at"][:10] for _, found in find_records(tmp_path)] == ["2026-01-04"]

    for day in (1, 2):  # what a rehearsal gives is repeated at will
        put(tmp_path / "local", record(started_at=f"2026-01-0{day}T12:30:00+00:00"))
    assert find_earlier(tmp_path / "local") == []
    put_back(path, kept.read_bytes())  # the latest is kept by then, and would be there twice
    assert not kept.exists()
    assert [found["started_at"][:10] for _, found in find_records(tmp_path)] == ["2026-01-01"]
    kept.write_text("{}")
    with pytest.raises(RecordError, match=kept.name):
        find_earlier(tmp_path)


def test_all_unusable_records_are_named_and_none_is_skipped(tmp_path):
    put(tmp_path, record())
    for name in ("x", "y"):
        (tmp_path / "cpu-2c" / f"{name}.json").write_text("{")
    with pytest.raises(RecordError, match=r"(?s)x\.json.*y\.json"):
        find_records(tmp_path)


LARGE, TINY = record("a14b", device="cuda"), record("tiny")


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([], None),
        ([record(job=JOB.model_copy(update={"seed": 1}))], None),
        ([TINY, LARGE], 1),
        ([TINY, record("a14b", "oom")], 1),
        ([record("a14b", "failed"), LARGE], 1),
        ([record("a14b", "failed", started_at="2027"), record("a14b", "oom")], 1),
        ([record(started_at="2026-02"), record(started_at="2026-03")], 1),
        ([record(job=JOB.model_copy(update={"name": "z"}), started_at="2027"), TINY], 1),
        ([record(job=JOB.model_copy(update={"name": "z"}))], 0),
    ],
)
def test_the_best_record_of_a_job(records, best):
    found = best_record(JOB, [(Path(f"{i}.json"), rec) for i, rec in enumerate(records)])
    assert found == (None if best is None else (Path(f"{best}.json"), records[best]))


def test_a_job_of_explicit_scale_takes_no_record_of_another():
    tiny_only = JOB.model_copy(update={"scale": "tiny"})
    assert best_record(tiny_only, [(Path("0.json"), LARGE)]) is None


@pytest.mark.parametrize(
    ("scale", "device", "rehearsal"),
    [("a14b", "cuda", False), ("a14b", "cpu", True), ("tiny", "cuda", True), ("tiny", "cpu", True)],
)
def test_only_the_real_scale_on_a_gpu_is_no_rehearsal(scale, device, rehearsal):
    assert is_rehearsal(record(scale, device=device)) is rehearsal


def test_a_record_without_a_machine_is_a_rehearsal():
    assert is_rehearsal(new_record(resolve_job(JOB, gpus=2), reason="no machine"))


def test_jobs_records_and_settings_need_no_torch():
    code = (
        "import sys, wanreport.jobs.job, wanreport.records.record, wanreport.jobs.sglang;"
        "assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
