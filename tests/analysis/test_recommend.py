"""What to run, from the committed records: measured where it was, else predicted."""

import pytest
from synthetic import ROOT, committed

from wanreport import cli
from wanreport.analysis.recommend import ALIKE, USABLE, recommend
from wanreport.analysis.recommend import run as recommend_command

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


def ways(gpu, gpus, wire="host-memory", **given):
    return recommend(committed(), gpu, gpus, wire, **given)


def test_of_what_is_as_fast_the_measured_goes_first_then_what_needs_less_memory():
    best, second = (row for row in ways(H200, 2).query("height == 480").itertuples())
    assert (best.engine, best.layout, best.transfer) == ("stream", "CFG parallel", "bf16")
    assert best.kind == "measured" and "480p-2gpu-stream-cfg-8steps" in best.rests_on
    assert best.total_s == pytest.approx(88.5085) and best.needs_bytes == 9_493_896_192
    assert best.total_s < second.total_s * (1 + ALIKE) and best.needs_bytes < second.needs_bytes
    alone = ways(H100, 1)
    assert alone.engine.tolist() == ["layerwise", "stream", "stream", "layerwise"]
    assert alone.needs_bytes[0] < alone.needs_bytes[1] < 1.1 * alone.needs_bytes[0]
    assert alone[alone.kind == "measured"].height.tolist() == [480, 480]
    assert set(alone.layout) == {"one GPU"}
    tied, other = (row for row in ways(H200, 4).query("height == 720").itertuples())
    assert tied.kind == other.kind == "measured" and tied.total_s > other.total_s


@pytest.mark.parametrize(("gpu", "gpus", "wire", "seconds"), [
    (H100, 8, "host-memory", [32.059, 31.8682, 102.4535, 102.2628]),
    (H100, 8, "nvlink", [26.0505, 26.0521, 90.2347, 90.4573]),
    (H200, 4, "nvlink", [45.8819, 45.9449, 171.5058, 171.4951]),
    (H200, 8, "host-memory", [34.1207, 34.1078, 109.5368, 109.5239]),
])  # fmt: skip
def test_what_was_not_measured_is_predicted_and_says_from_what(gpu, gpus, wire, seconds):
    """The numbers follow from the records until then: later ones may change them."""
    then = committed()
    then = then._replace(runs=then.runs[then.runs.started < "2026-11-26T15"])
    found = recommend(then, gpu, gpus, wire)
    assert found.total_s.tolist() == pytest.approx(seconds, abs=1e-4)
    assert set(found.kind) == {"predicted"} and set(found.layout) == {"CFG parallel and Ulysses"}
    assert found.rests_on.str.startswith("results/").all()
    assert found.rests_on.str.contains("data sheet").all() == (gpus == 4)


def test_an_odd_number_of_gpus_cannot_split_branches_and_resident_is_the_floor():
    odd = ways(H100, 3)
    assert set(odd.layout) == {"Ulysses"} and odd.groupby("height").size().tolist() == [2, 2]
    found = ways(H100, 4).query("height == 720")  # predicted 7.18 s a step, measured 7.56 s
    assert set(found.layout) == {"CFG parallel and Ulysses"}
    assert (found.step_s >= 7.56).all() and found.engine.iloc[0] == "stream"


@pytest.mark.parametrize("gb", [10.7, 12.0, 24.0, 80.0])
def test_nothing_is_recommended_that_does_not_fit(gb):
    found = ways(H100, 1, vram_gb=gb)
    assert len(found) and (found.needs_bytes <= USABLE * gb * 1e9).all()
    assert set(found.height) == ({480, 720} if gb > 20 else {480}), "720p needs 18 GB to compute"
    assert found.place.tolist() == [1, 2] * found.height.nunique()


def test_packed_blocks_are_for_where_the_link_is_the_limit():
    """At 480p they hide anyway. At a hundredth of the rate they cannot."""
    assert set(ways(H100, 1, vram_gb=24).transfer) == {"bf16"}
    slow = committed()
    runs = slow.runs.assign(plan_inputs=slow.runs.plan_inputs.map(
        lambda of: of | {"local": of["local"] | {"rate": of["local"]["rate"] / 100}}
        if of else of))  # fmt: skip
    best, second = (row for row in recommend(slow._replace(runs=runs), H100, 1, "nvlink", 24)
                    .query("height == 720").itertuples())  # fmt: skip
    assert (best.engine, best.transfer, second.transfer) == ("stream", "packed", "bf16")
    assert best.total_s < second.total_s


def test_the_command_says_it_for_every_model_and_interconnect(capsys):
    assert cli.main(["plan", "--gpus", "2", "--vram-gb", "24"]) == 0
    said = capsys.readouterr().out
    assert [said.count(f"2× {gpu}, ") for gpu in (H100, H200)] == [2, 2]
    assert said.count(" 480 ") == said.count(" 720 ") == 8
    assert cli.main(["plan", "--gpus", "1", "--vram-gb", "12"]) == 1
    out, err = capsys.readouterr()
    assert " 480 " in out and err.count("720p") == 2 and "480p" not in err


def test_the_command_fails_where_records_are_missing(tmp_path, monkeypatch, capsys):
    assert recommend_command(tmp_path, 2, None) == 1, "no records"
    assert "480p-1gpu-stream" in capsys.readouterr().err
    found = committed()
    several = found._replace(runs=found.runs[found.runs.gpus > 1])
    monkeypatch.setattr("wanreport.analysis.recommend.load", lambda *_: several)
    assert recommend_command(ROOT, 2, None) == 1
    assert "480p-1gpu-stream" in capsys.readouterr().err
