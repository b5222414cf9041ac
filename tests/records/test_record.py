"""A record is written whole or not at all, read only if it is one, and outlives no reason."""

import errno
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.synthetic import write
from wanreport.jobs.job import Job, job_hash, resolve_job
from wanreport.measure.jobs import Machine, missing
from wanreport.records import record as kept
from wanreport.records.files import parse_record

JOB = Job(name="a-job", engine="layerwise", num_gpus=2)


def record(scale="tiny", status="ok", day=1, name="a-job", **known):
    changed = {key: known.pop(key) for key in ("seed", "checkpoint") if key in known}
    job = JOB.model_copy(update={"scale": scale, "name": name, **changed})
    machine = {"slug": "m", "device": "cuda" if scale == "a14b" else "cpu"}
    began = f"2026-01-0{day}T12:30:00+00:00"
    return kept.new_record(job, status=status, **{"machine": machine, "started_at": began, **known})


def put(root, made):
    write([made], root)
    return kept.record_path(root, made["machine"]["slug"], made["job"]["name"], made["job_hash"])


def test_a_record_comes_back_as_it_was_written_with_what_only_later_versions_know(tmp_path):
    made = record(wall_s=1.5, iterations=[{"kind": "clean", "total_s": 0.1 + 0.2, "later": [1]}])
    made["machine"]["later"] = {"key": None}
    path = put(tmp_path, made)
    assert path == tmp_path / "m" / f"a-job-{made['job_hash']}.json"
    assert kept.read_record(path) == made
    before = path.read_bytes()
    assert kept.write_record(made, path) == path
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_new_record_stands_for_a_resolved_job_that_failed(tmp_path):
    resolved = resolve_job(JOB, gpus=2)
    made, path = kept.new_record(resolved, reason="not yet"), tmp_path / "x.json"
    assert (made["job"]["scale"], made["status"]) == ("a14b", "failed")
    assert made["job_hash"] == job_hash(resolved)
    kept.write_record(made, path)
    for key in made:  # it lacks none
        path.write_text(json.dumps({k: v for k, v in made.items() if k != key}))
        with pytest.raises(kept.RecordError, match=f"{key}: "):
            kept.read_record(path)
    with pytest.raises(ValueError):
        kept.new_record(JOB)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_write_that_ends_early_loses_no_record_and_leaves_no_file(tmp_path, monkeypatch, error):
    made = record()
    path = put(tmp_path, made)
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises((kept.RecordError, KeyboardInterrupt)) as caught:
        kept.write_record({**made, "wall_s": 2.0}, path)
    assert isinstance(error, KeyboardInterrupt) or str(path) in str(caught.value)
    assert kept.read_record(path) == made and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "key"),
    [({"wall_s": float("nan")}, "JSON"), ({"traces": [{"path": Path("x")}]}, "JSON"),
     ({"model": {"a": [1, {"b": float("inf")}]}}, "JSON"), ({"status": "fine"}, "status: "),
     ({"schema_version": 2}, "schema_version: "), ({"iterations": None}, "iterations: "),
     ({"iterations": [{"kind": "hot"}]}, r"iterations\[0\]\.kind: "), ({"wall_s": True}, "wall_s")],
)  # fmt: skip
def test_what_is_not_a_record_is_not_written(tmp_path, change, key):
    with pytest.raises(kept.RecordError, match=key):
        kept.write_record({**record(), **change}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_records_are_found_in_order_one_folder_deep_and_each_that_is_damaged_is_named(tmp_path):
    assert kept.find_records(tmp_path / "none") == []
    b, a = (put(tmp_path, record(machine={"slug": slug})) for slug in "ba")
    put(tmp_path / "local", record())
    (a.parent / "._hidden.json").write_text("junk")
    assert [path for path, _ in kept.find_records(tmp_path)] == [a, b]
    for name, text in {"one": '{"schema_version": 7}', "two": "\xff\xfe=\xd8"}.items():
        (tmp_path / f"a/{name}.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(kept.RecordError, match=r"(?s)one\.json: .*two\.json: "):
        kept.find_records(tmp_path)
    with pytest.raises(kept.RecordError, match=r"gone\.json"):
        kept.read_record(tmp_path / "gone.json")


# What takes whose place ---------------------------------------------------------------------------


def stand(root):
    """Status and day of the records that count, and of those beside them."""
    found = [map(kept.read_record, sorted(root.glob(each))) for each in ("m/*.json", "m/earlier/*")]
    return tuple([f"{made['status']} {made['started_at'][9]}" for made in each] for each in found)


def test_a_result_of_the_full_model_is_kept_when_the_job_is_measured_again(tmp_path):
    path = put(tmp_path, record("a14b", day=1))
    put(tmp_path, record("a14b", day=3))
    first = path.parent / "earlier" / f"{path.stem}-20260101T123000.json"
    assert first.exists() and stand(tmp_path) == (["ok 3"], ["ok 1"])
    kept.write_record(kept.read_record(path) | {"wall_s": 2.5}, path)  # the same run
    assert stand(tmp_path) == (["ok 3"], ["ok 1"])
    for day in (1, 2):  # what a rehearsal gives is repeated at will
        put(tmp_path / "local", record(day=day))
    assert stand(tmp_path / "local") == (["ok 2"], [])


@pytest.mark.parametrize("scale", ["tiny", "a14b"])
@pytest.mark.parametrize("worse", ["oom", "failed", "timeout", "unsupported"])
def test_a_worse_record_never_takes_the_place_of_a_better_one(tmp_path, scale, worse):
    put(tmp_path, record(scale, "failed", day=1))
    path = put(tmp_path, record(scale, "oom", day=2))
    assert stand(tmp_path) == (["oom 2"], [])
    put(tmp_path, record(scale, day=3))
    assert stand(tmp_path) == (["ok 3"], [])
    written = kept.write_record(record(scale, worse, day=4), path)
    assert stand(tmp_path) == (["ok 3"], [f"{worse} 4"]) and written.parent.name == "earlier"


LARGE, TINY = record("a14b"), record("tiny")


@pytest.mark.parametrize(
    ("records", "best"),
    [([], None), ([record(seed=1)], None), ([TINY, LARGE], 1), ([TINY, record("a14b", "oom")], 1),
     ([record("a14b", "failed"), LARGE], 1), ([record(day=2), record(day=3)], 1),
     ([record("a14b", "failed", day=2), record("a14b", "oom")], 1),
     ([record(name="z", day=4), TINY], 1), ([record(name="z")], 0)],
)  # fmt: skip
def test_the_best_record_of_a_job(records, best):
    found = kept.best_record(JOB, [(Path(f"{i}.json"), made) for i, made in enumerate(records)])
    assert found == (None if best is None else (Path(f"{best}.json"), records[best]))
    tiny = JOB.model_copy(update={"scale": "tiny"})
    assert kept.best_record(tiny, [(Path("0.json"), LARGE)]) is None


def test_only_the_real_scale_on_a_gpu_is_not_a_rehearsal():
    for scale, device in [("a14b", "cuda"), ("a14b", "cpu"), ("tiny", "cuda"), ("tiny", "cpu")]:
        found = parse_record(Path("x"), record(scale, machine={"device": device}))
        assert found.is_rehearsal is ((scale, device) != ("a14b", "cuda"))


# What outlives its reason -------------------------------------------------------------------------


def is_missing(made):
    """Whether a job with this one record would be measured again on the record's machine."""
    return bool(missing([Job(**made["job"])], [(Path("m/x.json"), made)], Machine("m", 0)))


@pytest.mark.parametrize(
    ("status", "reason", "again"),
    [("ok", "", False), ("timeout", "", True), ("failed", "rank 0 was killed by SIGKILL", True),
     ("oom", "rank 0: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", False),
     ("oom", "rank 0: MemoryError: ", True),  # the host's
     ("unsupported", "weights: no folder 'transformer'", True)],
)  # fmt: skip
def test_what_the_job_itself_did_not_cause_is_tried_again(status, reason, again):
    assert is_missing(record(status=status, reason=reason)) is again


@pytest.mark.parametrize("checkpoint", ["weights", "~/weights", "$HOME/weights"])
def test_other_weights_in_the_same_place_are_measured_again(checkpoint, project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    file = project / "weights/transformer/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    made, then = record(checkpoint=checkpoint), file.stat()
    assert made["made_from"] == record(checkpoint=str(project / "weights"))["made_from"]
    assert not is_missing(made) and "made_from" not in record()
    file.write_bytes(b"others!")
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    assert is_missing(made) and not is_missing(record(checkpoint=checkpoint))
    assert not is_missing({key: made[key] for key in made if key != "made_from"})  # of old
    file.unlink()
    assert not is_missing(made), "without weights nothing better can be had"
