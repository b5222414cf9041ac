"""A record is written whole or not at all, and read only if it is one."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.synthetic import write
from wanreport.jobs.job import Job, job_hash, resolve_job
from wanreport.records.record import (
    RecordError,
    best_record,
    find_records,
    is_rehearsal,
    new_record,
    put_back,
    read_record,
    record_path,
    write_record,
)

JOB = Job(name="a-job", engine="layerwise", num_gpus=2)
DAY = "2026-01-0{}T12:30:00+00:00"


def record(
    scale: str = "tiny", status: str = "ok", day: int | str = 1, name: str = "a-job", **known: Any
) -> dict[str, Any]:
    job = JOB.model_copy(update={"scale": scale, "name": name, "seed": known.pop("seed", 0)})
    device = "cuda" if scale == "a14b" else "cpu"
    known = {"machine": {"slug": "m", "device": device}, "started_at": DAY.format(day)} | known
    return new_record(job, status=status, reason="" if status == "ok" else "it broke", **known)


def put(root: Path, made: dict[str, Any]) -> Path:
    write([made], root)
    return record_path(root, made["machine"]["slug"], made["job"]["name"], made["job_hash"])


def test_a_record_comes_back_as_it_was_written_with_what_only_later_versions_know(
    tmp_path: Path,
) -> None:
    iteration = {"kind": "clean", "total_s": 0.1 + 0.2, "later": [1]}
    made = record(wall_s=1.5, iterations=[iteration])
    made["machine"]["later"] = {"key": None}
    path = put(tmp_path, made)
    assert path == tmp_path / "m" / f"a-job-{made['job_hash']}.json"
    assert read_record(path) == made
    before = path.read_bytes()
    write_record(made, path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_new_record_stands_for_a_resolved_job_that_failed(tmp_path: Path) -> None:
    resolved = resolve_job(JOB, gpus=2)
    made = new_record(resolved, reason="not yet")
    assert made["job"]["scale"] == "a14b" and made["status"] == "failed" and is_rehearsal(made)
    assert made["job_hash"] == job_hash(resolved)
    write_record(made, tmp_path / "x.json")
    with pytest.raises(ValueError):
        new_record(JOB)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_write_that_ends_early_loses_no_record_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    made = record()
    path = put(tmp_path, made)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", Mock(side_effect=error))
        with pytest.raises((RecordError, KeyboardInterrupt)) as caught:
            write_record({**made, "wall_s": 2.0}, path)
    assert isinstance(error, KeyboardInterrupt) or str(path) in str(caught.value)
    assert read_record(path) == made
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"wall_s": float("nan")}, "JSON"),
        ({"model": {"a": [1, {"b": float("inf")}]}}, "JSON"),
        ({"traces": [{"path": Path("x")}]}, "JSON"),
        ({"status": "fine"}, "status: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"iterations": None}, "iterations: "),
        ({"iterations": [{"kind": "hot"}]}, r"iterations\[0\]\.kind: "),
        ({"wall_s": True}, "wall_s: "),
    ],
)
def test_what_is_not_a_record_is_not_written(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecordError, match=key):
        write_record({**record(), **change}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"a": ', "[]", '{"schema_version": 7}', "\xff\xfe=\xd8"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    for each in (path, tmp_path / "gone.json"):
        with pytest.raises(RecordError, match=each.name):
            read_record(each)


def test_a_record_lacks_no_top_level_key(tmp_path: Path) -> None:
    for key in (made := record()):
        (tmp_path / "x.json").write_text(json.dumps({k: v for k, v in made.items() if k != key}))
        with pytest.raises(RecordError, match=f"{key}: "):
            read_record(tmp_path / "x.json")


def test_records_are_found_in_order_only_one_folder_deep_and_none_is_skipped(
    tmp_path: Path,
) -> None:
    assert find_records(tmp_path / "none") == []
    b, a = (put(tmp_path, record(machine={"slug": slug})) for slug in "ba")
    put(tmp_path / "local", record())
    (a.parent / "._hidden.json").write_text("junk")
    assert [path for path, _ in find_records(tmp_path)] == [a, b]
    for name in ("x", "y"):
        (tmp_path / "a" / f"{name}.json").write_text("{")
    with pytest.raises(RecordError, match=r"(?s)x\.json.*y\.json"):
        find_records(tmp_path)


def test_a_result_of_the_full_model_is_kept_when_the_job_is_measured_again(
    tmp_path: Path,
) -> None:
    def earlier(root: Path) -> list[Path]:
        return sorted(root.glob("*/earlier/*.json"))

    path = put(tmp_path, record("a14b", day=1))
    put(tmp_path, record("a14b", "failed", day=2))
    (kept,) = earlier(tmp_path)
    assert kept == path.parent / "earlier" / f"{path.stem}-20260101T123000.json"
    put(tmp_path, record("a14b", day=3))  # a failure is not a result
    write_record(read_record(path) | {"wall_s": 2.5}, path)  # the same run
    put(tmp_path, record("a14b", day=4))
    days = [read_record(file)["started_at"] for file in earlier(tmp_path)]
    assert days == [DAY.format(1), DAY.format(3)]
    assert [found["started_at"] for _, found in find_records(tmp_path)] == [DAY.format(4)]
    put_back(path, kept.read_bytes())  # the latest is kept by then, and would be there twice
    assert not kept.exists()
    assert [found["started_at"] for _, found in find_records(tmp_path)] == [DAY.format(1)]

    for day in (1, 2):  # what a rehearsal gives is repeated at will
        put(tmp_path / "local", record(day=day))
    assert earlier(tmp_path / "local") == []


LARGE, TINY = record("a14b"), record("tiny")


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([], None),
        ([record(seed=1)], None),
        ([TINY, LARGE], 1),
        ([TINY, record("a14b", "oom")], 1),
        ([record("a14b", "failed"), LARGE], 1),
        ([record("a14b", "failed", day=2), record("a14b", "oom")], 1),
        ([record(day=2), record(day=3)], 1),
        ([record(name="z", day=4), TINY], 1),
        ([record(name="z")], 0),
    ],
)
def test_the_best_record_of_a_job(records: list[dict[str, Any]], best: int | None) -> None:
    found = best_record(JOB, [(Path(f"{i}.json"), made) for i, made in enumerate(records)])
    assert found == (None if best is None else (Path(f"{best}.json"), records[best]))
    tiny = JOB.model_copy(update={"scale": "tiny"})
    assert best_record(tiny, [(Path("0.json"), LARGE)]) is None


def test_only_the_real_scale_on_a_gpu_is_not_a_rehearsal() -> None:
    for scale, device in itertools.product(("a14b", "tiny"), ("cuda", "cpu")):
        found = is_rehearsal(record(scale, machine={"device": device}))
        assert found is ((scale, device) != ("a14b", "cuda"))
