"""Benchmark files are read whole or refused with the key; what follows from them."""

import functools
import json
import operator
import re
from dataclasses import asdict

import pytest

from tests import campaigns as made
from wanreport.analysis.frames import load
from wanreport.jobs.settings import StreamSettings
from wanreport.records import files
from wanreport.records.files import FileError, read_bench
from wanreport.records.record import find_records


def test_a_file_is_found_in_its_machines_folder_and_is_not_a_record(tmp_path):
    report = made.campaign()
    path = made.write(report, tmp_path / "results")
    made.write(made.campaign(device="cpu", machine="CPU, 2 cores"), tmp_path / "results")
    (path.parent / ".peers.json").write_text("{")  # an editor's
    slugs = ["2x-nvidia-h200-host-memory-over-pcie-nccl-p2p-disable-1", "cpu-2-cores"]
    assert list(load([tmp_path / "results"]).runs.slug.unique()) == slugs
    assert read_bench(path)[1] == report
    assert find_records(tmp_path / "results") == find_records(tmp_path) == []


FIRST, PREDICTED = ("rows", 0), ("rows", 9, "ranks", 0, "plan", "candidates", 0, "predicted")


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [(("schema_version",), 3, "schema_version: "),
     (("machine", "gpu_count"), "2", "machine.gpu_count: "), (("rows",), [], "rows: "),
     ((*FIRST, "ended_at"), ..., "rows[0].ended_at"), ((*FIRST, "status"), "x", "rows[0].status"),
     ((*FIRST, "status"), "oom", "rows[0].ranks: 2 "),
     ((*FIRST, "ranks", 0, "samples_ms"), [1.0] * 4, "samples_ms [4, 7]"),
     (PREDICTED, ..., "rows[9].ranks[0].plan.candidates[0].predicted: field required"),
     ((*PREDICTED, "step_s"), ..., "rows[9].ranks[0].plan.candidates[0].predicted.step_s: "),
     ((*FIRST, "label"), "stream:slots", "rows[0].label: "),
     ((*FIRST, "label"), "streem", "rows[0].label: value error, no engine 'streem'"),
     ((*FIRST, "settings"), {"slots": -1}, "rows[0].settings.slots: "),
     ((*FIRST, "settings"), {"slot": 1}, "rows[0].settings.slot: ")],
)  # fmt: skip
def test_a_file_that_is_not_right_is_refused_with_its_key(at, value, complaint, tmp_path):
    report, path = made.campaign(), tmp_path / "broken.json"
    place = functools.reduce(operator.getitem, at[:-1], report)
    place[at[-1]] = value
    if value is ...:
        del place[at[-1]]
    path.write_text(json.dumps(report))
    with pytest.raises(FileError) as refused:
        read_bench(path)
    text = str(refused.value)
    assert complaint.lower() in text.lower() and text.startswith(str(path))


def test_all_rows_that_are_not_whole_are_named(tmp_path):
    report, path = made.campaign(), tmp_path / "broken.json"
    for rank in report["rows"][1]["ranks"]:
        rank["samples_ms"] = [1.0] * 4  # alike, but too few for a GPU
    report["rows"][3]["ranks"] = []
    report["rows"][5] |= {key: report["rows"][4][key] for key in ("label", "tokens")}
    path.write_text(json.dumps(report))
    with pytest.raises(FileError) as refused:
        read_bench(path)
    for complaint in ("rows[1].ranks: 2 of 2", "rows[3].ranks: 0 of 2", "('fsdp', 14040)"):
        assert complaint in str(refused.value)
    path.write_text(json.dumps(made.campaign(device="cpu")))
    read_bench(path)  # which has none


def test_all_files_are_named_and_one_in_anothers_folder_has_its_place_said(tmp_path):
    path = made.write(made.campaign(), tmp_path)
    path.with_name("broken.json").write_text("{")
    elsewhere = tmp_path / "1x-other" / "benchmarks" / "moved.json"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(FileError) as refused:
        load([tmp_path])
    assert "broken.json" in str(refused.value)
    assert re.search(r"moved.json: machine.slug is 2x-.* to 2x-", str(refused.value))


def test_what_an_engine_must_move_follows_from_its_settings(tmp_path):
    wanted = {  # blocks a step: fsdp half of each in each branch; of layerwise block 0 stays
        "resident": 0, "swap": pytest.approx(0), "fsdp": 20, "layerwise:prefetch=1": 38,
        "stream:slots=2": 20,  # both branches in one visit
        "stream:slots=2,branches_per_visit=1": 40,
        "stream:slots=3,residents=8,shard=true": 6,  # half of the 12 that stream
        "stream:slots=0,residents=20": 0, "sglang": 40,
    }  # fmt: skip
    report = made.campaign(branches=2, factors=dict.fromkeys(wanted, 1.0))
    made.write(report, tmp_path)
    runs = load([tmp_path]).runs.set_index("label")
    blocks = (runs.h2d_step_bytes / (report["bytes"] / 20))[runs.tokens.to_numpy() == 7800]
    assert blocks.loc[list(wanted)].to_dict() == wanted


@pytest.mark.parametrize(
    ("label", "name", "settings"),
    [("planned:transfer=packed", "planned", None), ("resident again", "resident", None),
     ("layerwise:prefetch=3", "layerwise", None),
     ("stream:prefetch=1,slots=3,windows=[1,2,3],shard=true,spread=false", "stream",
      StreamSettings(slots=3, windows=(1, 2, 3), shard=True, spread=False))],
)  # fmt: skip
def test_a_label_names_an_engine_and_its_settings(label, name, settings):
    assert files.parse_label(label)[0] == name
    assert files.stream_settings(label, []) == (settings and asdict(settings))
