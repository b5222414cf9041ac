"""Benchmark files are read whole or refused with the key and the fix; what follows from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests import campaigns as made
from wanreport.analysis import compare
from wanreport.analysis.frames import load
from wanreport.jobs.settings import StreamSettings
from wanreport.records import files
from wanreport.records.files import FileError, bench_files, read_bench
from wanreport.records.record import find_records


def test_a_file_is_found_in_its_machines_folder_and_is_not_a_record(tmp_path: Path) -> None:
    report = made.campaign()
    path = made.write(report, tmp_path / "results")
    made.write(made.campaign(device="cpu", machine="CPU, 2 cores"), tmp_path / "results")
    (path.parent / ".peers.json").write_text("{")  # an editor's
    found = [read_bench(file)[1] for file in bench_files(tmp_path / "results")]
    assert [one["machine"]["slug"] for one in found] == [
        "2x-nvidia-h200-host-memory-over-pcie-nccl-p2p-disable-1", "cpu-2-cores"
    ]  # fmt: skip
    assert found[0] == report
    for root in (tmp_path / "results", tmp_path):
        assert find_records(root) == []


def _set(*where: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a key, given by its path and the new value; ... deletes it."""
    *way, key, value = where

    def change(report: Any) -> None:
        for step in way:
            report = report[step]
        if value is ...:
            del report[key]
        else:
            report[key] = value

    return change


FIRST = ("rows", 0)
RANK = (*FIRST, "ranks", 0)
PLANNED = ("rows", 3 * list(made.LABELS).index("planned"), "ranks", 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("schema_version", 3), "schema_version is 3, and this version of wanreport reads"),
        (_set("machine", "gpu_count", "2"), "machine.gpu_count: input should be a valid integer"),
        (_set("settings", "ranks", "2"), "settings.ranks: input should be a valid integer"),
        (_set("settings", "colour", 1), "settings.colour: extra inputs are not permitted"),
        (_set("rows", []), "rows: list should have at least 1 item"),
        (_set(*FIRST, "transport", ...), "rows[0].transport: field required"),
        (_set(*FIRST, "status", "fine"), "rows[0].status: input should be 'ok', 'failed'"),
        (_set(*FIRST, "status", "oom"), "rows[0] (resident).status: oom needs a reason"),
        (_set(*FIRST, "tokens", 7801), "rows[0] (resident).grid: [1, 1, 7800] are not 7801"),
        (_set(*FIRST, "ranks", []), "rows[0] (resident).ranks: are 0, and settings.ranks 2"),
        (_set(*RANK, "samples_ms", [1.0] * 4), "have [4, 7] samples_ms"),
        (_set(*RANK, "samples_ms", 0, -1.0), "rows[0].ranks[0].samples_ms[0]: input should be"),
        (_set(*RANK, "output_sha256", "abc"), "rows[0].ranks[0].output_sha256: string should"),
        (_set(*RANK, "link", None), "rows[0] (resident).ranks: link is missing"),
        (_set(*RANK, "counters", None), "counters are missing"),
        (_set("peers", "sglang", ...), ".label: peers.sglang is missing"),
        (_set(*FIRST, "label", "stream:slots=-1"), "rows[0] (stream:slots=-1).label: slots"),
        (_set(*FIRST, "label", "stream"), "rows[0] (stream).settings: are not those of its label"),
        (_set(*FIRST, "label", "stream:slots"), "the form is NAME:KEY=VALUE"),
        (_set(*FIRST, "label", "streem"), "rows[0] (streem).label: no engine 'streem'; there are"),
        (_set(*FIRST, "settings", {"slots": "x"}), "rows[0].settings.slots: input should be"),
        (_set(*PLANNED, "plan", "chosen", 99), "plan.chosen 99 is not a candidate"),
        (lambda report: report["rows"].append(report["rows"][0]), "twice for 7800 tokens"),
    ],
)
def test_a_file_that_is_not_right_is_refused_with_key_and_fix(
    change: Callable[[dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    report = made.campaign()
    change(report)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(report))
    with pytest.raises(FileError) as refused:
        read_bench(path)
    assert complaint in str(refused.value)
    assert str(path) in str(refused.value)
    assert "measure it again" in str(refused.value)


def test_all_files_are_named_and_one_in_anothers_folder_has_its_place_said(tmp_path: Path) -> None:
    path = made.write(made.campaign(), tmp_path)
    path.with_name("broken.json").write_text("{")
    elsewhere = tmp_path / "1x-other" / "benchmarks" / "moved.json"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(FileError) as refused:
        load([tmp_path])
    assert "broken.json: is not valid JSON" in str(refused.value)
    assert re.search(r"moved.json: machine.slug is 2x-.*; move the file to 2x-", str(refused.value))


def test_an_engines_limit_follows_from_what_it_must_move(tmp_path: Path) -> None:
    factors = {"resident": 1.0, "swap": 1.0, "fsdp": 1.0, "layerwise:prefetch=1": 1.0,
               "stream:slots=2": 1.0, "stream:slots=2,branches_per_visit=1": 1.0,
               "stream:slots=3,residents=8,shard=true": 1.0, "stream:slots=0,residents=20": 1.0,
               "sglang": 1.0}  # fmt: skip
    report = made.campaign(branches=2, resident_ms={7800: 10.0}, factors=factors)
    made.write(report, tmp_path)
    runs = compare.overhead(load([tmp_path])).set_index("label")
    blocks = runs.h2d_step_bytes / (report["bytes"] / 20)
    assert blocks.to_dict() == {
        "resident": 0,
        "swap": pytest.approx(0),
        "fsdp": 20,  # half of each block, in each of two branches
        "layerwise:prefetch=1": 38,  # block 0 stays
        "stream:slots=2": 20,  # both branches in one visit
        "stream:slots=2,branches_per_visit=1": 40,
        "stream:slots=3,residents=8,shard=true": 6,  # half of the 12 that stream
        "stream:slots=0,residents=20": 0,
        "sglang": 40,
    }
    rate = 54.9e9
    assert runs.limit_s["stream:slots=2"] == pytest.approx(report["bytes"] / rate)
    assert runs.limit_s["sglang"] == pytest.approx(2 * report["bytes"] / rate)
    assert runs.limit_s["swap"] == runs.step_s["resident"]


@pytest.mark.parametrize(
    ("label", "name"),
    [("planned:room=8", "planned"), ("resident again", "resident"), ("sglang", "sglang"),
     ("stream:windows=[1,2,3],shard=true", "stream")],
)  # fmt: skip
def test_a_label_names_an_engine(label: str, name: str) -> None:
    assert files.name_of(label) == name


def test_the_settings_of_a_label_are_the_engines_own() -> None:
    label = "stream:prefetch=1,slots=3,windows=[1,2,3],shard=true,spread=false"
    wanted = StreamSettings(slots=3, windows=(1, 2, 3), shard=True, spread=False)
    assert files.stream_settings(label, []) == asdict(wanted) | {"windows": [1, 2, 3]}
    assert files.stream_settings("layerwise:prefetch=3", []) is None
