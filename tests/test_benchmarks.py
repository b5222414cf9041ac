"""The benchmark beside peers: bits on CPU, and rows and JSON whatever happens."""

import json
import sys

import pytest
import torch

from benchmarks import peers, rank
from benchmarks.__main__ import ENGINES_AND_PEERS, Campaign, grid, identical, main, parse, step_ms
from tests.ranks import in_ranks, run_ranks
from wanreport.engines import ENGINES, Layerwise
from wanreport.measure import ranks
from wanreport.measure.machine import NODES
from wanreport.records import files

CPU = ["--device", "cpu", "--tokens", "27", "--blocks", "4"]
STREAM = "stream:slots=3,windows=[7000,90000,1000],shard=true,copy_streams=2"
APART = [f"{name}:{files.CFG}=true" for name in ("resident", "layerwise", "stream", "planned")]
PACKED = ["stream:transfer=packed", "planned:transfer=packed", "stream:transfer=fp8"]


def rows(path):
    """A campaign's rows by label, checked as the pages' reader checks them."""
    report = files.read_bench(path)[1]
    first = next(row for row in report["rows"] if row["label"] == files.FIRST)
    return {row["label"]: row | {"same": identical(row, first)} for row in report["rows"]}


def test_an_engine_that_fails_is_a_row_and_the_others_go_on(tmp_path, capsys):
    bad, path = "layerwise:prefetch=deep", tmp_path / "b.json"
    assert main([*CPU, "--engines", bad, "swap", "diffusers", "--json", str(path)]) == 1
    found = rows(path)
    assert found[bad]["status"] == "failed" and "Traceback" in found[bad]["log"]
    assert "TypeError" in found[bad]["reason"] and "attach" in found[bad]["reason"]
    assert found[bad]["reason"] in capsys.readouterr().out
    assert found["swap"]["status"] == found[files.LAST]["status"] == "ok"
    assert found["diffusers"]["same"]  # one rank, one branch


@pytest.mark.slow
def test_a_campaign_in_turns_rehearses_as_it_will_run(tmp_path, monkeypatch, capsys):
    """All engines and peers on two ranks give the bits of resident; what is not exact says so."""
    monkeypatch.setitem(ranks.KINDS, "cpu", ranks.TorchrunRanks)
    path, nowhere = tmp_path / "b.json", str(tmp_path / "nowhere")
    packed, planned, rounded = PACKED
    words = ["--ranks", "2", "--branches", "2", "--turns", "2", "--sglang", nowhere]
    labels = [*ENGINES_AND_PEERS, STREAM, *PACKED, *APART]
    assert main([*CPU, *words, "--json", str(path), "--engines", *labels]) == 0
    found, said = rows(path), capsys.readouterr().out
    assert set(found) == {*labels, files.LAST}
    assert {files.parse_label(label)[0] for label in found} == {*ENGINES, "planned", *files.PEERS}
    for label, row in found.items():
        name = files.parse_label(label)[0]
        if name == "sglang":
            assert row["status"] == "absent" and nowhere in row["reason"] and row["reason"] in said
            continue
        assert row["status"] == "ok" and row["same"] == (label != rounded), (label, row["log"])
        assert [each["samples_ms"] for each in row["ranks"]] == [[], []], "no times on a CPU"
        assert set(row["ranks"][0]["memory"].values()) == {None}, "nor one engine's memory"
        assert (row["settings"] is None) == (name not in ("stream", "planned"))
        assert ("latents_error" in row["ranks"][0]) == (label == rounded)
    assert found[STREAM]["settings"]["windows"] == [7000, 90000, 1000]
    assert found[planned]["settings"]["transfer"] == "packed"
    plans = [each["plan"]["chosen"] for each in found["planned"]["ranks"]]
    assert len(set(plans)) == 1, "all ranks choose alike"
    moved = {label: row["ranks"][0]["counters"] for label, row in found.items() if row["ranks"]}
    one, both = moved[APART[1]], moved["layerwise:prefetch=1"]
    assert 2 * one["h2d_bytes"] == both["h2d_bytes"] > 0, "a rank runs one branch"
    assert moved[STREAM]["unshards"] > 0
    brought = [moved[label]["h2d_bytes"] for label in (rounded, packed, "stream")]
    assert 0 < brought[0] < 0.6 * brought[2] and brought[0] < brought[1] < 0.85 * brought[2]
    errors = found[rounded]["ranks"][0]["latents_error"]
    assert len(errors) == rank.DENOISED and 0 < errors[0] < errors[-1] < 0.2
    assert f"{errors[-1]:.2%}" in said


def test_what_a_signal_or_the_budget_leaves_is_a_row_and_the_same_call_goes_on(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "b.json"
    asked, ran = [*CPU, "--json", str(path), "--engines", "swap"], []

    def statuses():
        return {row["label"]: row["status"] for row in json.loads(path.read_text())["rows"]}

    def start(self, labels, pending):
        ran.extend(labels)
        if labels == ["layerwise"]:
            raise KeyboardInterrupt
        for tokens in pending:
            self._end(labels[0], tokens, "failed", "made up")

    assert main([*asked, "--budget-minutes", "0"]) == 0
    assert set(statuses().values()) == {"not run"}
    assert main(asked) == 0 and set(statuses().values()) == {"ok"}
    before = path.read_bytes()
    assert main(asked) == 0 and path.read_bytes() == before, "nothing was left to do"
    monkeypatch.setattr(Campaign, "_start", start)
    assert main([*asked, "layerwise"]) == 130
    left = {files.FIRST: "ok", "swap": "ok", "layerwise": "not run", files.LAST: "ok"}
    assert ran == ["layerwise"] and statuses() == left
    assert main([*asked, "fsdp"]) == 1
    assert ran == ["layerwise", "fsdp", files.LAST], "resident closes every call that measured"
    assert main([*asked, "--branches", "2"]) == 2
    assert f"{path}: branches" in capsys.readouterr().err


class _Forgetful(Layerwise):
    """Runs its third block with the weights of the second, but for the first pass."""

    passes = 0

    def before_block(self, expert, block):
        super().before_block(expert, block)
        self.passes += block == 0
        if block == 2 and self.passes > 1:
            mine, stale = (self.bound[expert][index] for index in (2, 3))
            for one, other in zip(mine, stale, strict=True):
                one.data = other.data


def _measured(*engines, turns=2):
    """Rows of engines that take turns over the benchmark's small expert, in one rank."""
    cpu, stores = torch.device("cpu"), {}
    lanes = [rank.Lane(engine, 4, stores, cpu) for engine in engines]
    return rank.measure(lanes, rank.make_inputs((1, 3, 9), 1, cpu), None, turns)


@in_ranks(1)
def test_other_bits_are_seen_even_if_only_the_first_step_is_right():
    found = _measured(ENGINES["resident"](), Layerwise(), _Forgetful())
    resident, layerwise, forgetful = ({"ranks": [row]} for row in found)
    assert identical(layerwise, resident) is True
    assert identical(forgetful, resident) is False
    assert forgetful["ranks"][0]["first_output_sha256"] == resident["ranks"][0]["output_sha256"]


def test_a_row_reads_as_its_slowest_ranks_steps():
    slow = [100.0, 100.0, 100.0, 100.0, 101.0, 103.0, 99.0]
    row = {"ranks": [{"samples_ms": samples} for samples in ([90.0] * 7, slow)]}
    assert step_ms(row) == (100.0, 99.0, 103.0, 7)


def test_tokens_are_those_of_a_video():
    shapes = {3120: (2, 30, 52), 32760: (21, 30, 52), 75600: (21, 45, 80), 10000: (1, 100, 100)}
    assert {tokens: grid(tokens) for tokens in shapes} == shapes


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--engines", "layerwise:depth=3"], "depth"),
        (["--engines", "laywise"], "resident, swap"),
        (["--engines", "stream:transfer=fp8"], "--turns"),  # beside resident it says how far off
        (["--engines", "swap:enable_cfg_parallel=true", "--branches", "2"], "even"),
        (["--engines", "swap:enable_cfg_parallel=no"], "true or left out"),
        (["--tokens", "3120;7800"], "3120;7800"),
        (["--tokens", "10007"], "1560"),
        (["--blocks", "0"], "1 to 64"),
        (["--turns", "-1"], "1 to 64"),
    ],
)
def test_bad_input_is_refused_with_the_fix(words, complaint, capsys):
    with pytest.raises(SystemExit):
        parse(["--device", "cpu", *words])
    assert complaint in capsys.readouterr().err


def test_several_nodes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv(NODES, "2")
    test_bad_input_is_refused_with_the_fix([], NODES, capsys)


MANAGER = """
import torch
from sglang.multimodal_gen.runtime.server_args import ServerArgs

class LayerwiseOffloadManager:
    def __init__(self, model, *, layers_attr_str, num_layers, enabled, pin_cpu_memory=True,
                 prefetch_size=1):
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.enabled, self._consolidated_cpu_weights = enabled, {}
        layers = dict(model.named_modules())[layers_attr_str]
        assert len(layers) == num_layers and prefetch_size == 2 and pin_cpu_memory
        for i, layer in enumerate(layers):
            self._consolidated_cpu_weights[i] = {p: p.data.clone() for p in layer.parameters()}
            self.drop(layer)
            layer.register_forward_pre_hook(self.load)
            layer.register_forward_hook(self.drop)

    def load(self, module, args):
        for p in module.parameters():
            p.data = next(kept[p] for kept in self._consolidated_cpu_weights.values() if p in kept)

    def drop(self, module, *_):
        for p in module.parameters():
            p.data = torch.empty(1, dtype=p.dtype)
"""


def test_sglangs_manager_runs_without_its_server(tmp_path, monkeypatch):
    """Its package lies as SGLang 0.5.23's does, and would fail if the server were loaded."""
    inside = tmp_path / "sglang/multimodal_gen/runtime/managers"
    about = tmp_path / "sglang-0.5.23.dist-info"
    for folder in (inside, about):
        folder.mkdir(parents=True)
    for package in (inside.parents[2], inside.parents[1]):
        (package / "__init__.py").write_text("raise ImportError('the server')")
    (inside / "layerwise_offload.py").write_text(MANAGER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.23\n")
    for where, device, said in (tmp_path, "cpu", "0.5.23"), (inside, "cuda", "multimodal_gen"):
        with pytest.raises(LookupError, match=said):
            peers.Sglang.find(str(where), device)
    code = peers.Sglang.find(str(tmp_path), "cuda")
    assert (code["version"], len(code["sha256"])) == ("0.5.23", 64)
    assert code["module"] == "sglang.multimodal_gen.runtime.managers.layerwise_offload"
    monkeypatch.setattr(peers.Sglang, "find", lambda *_: code)
    told = Campaign(parse([*CPU, "--engines", "sglang"])).report["peers"]["sglang"]
    assert set(told) == {"module", "version", "sha256"}, "no path of this machine's"
    resident, sglang = run_ranks(_sglang, 1, code)[0]
    assert identical({"ranks": [sglang]}, {"ranks": [resident]})
    assert "0 of 4" in sglang["note"], "what is not pinned is not claimed to be"
    assert sglang["cudnn"], "its import changes no other row's kernels"


def _sglang(code):
    sys.modules.pop("sglang", None)
    torch.cuda.host_memory_stats = dict  # type: ignore[assignment,return-value]
    engine = peers.Sglang(prefetch=2)
    engine.code = code
    resident, sglang = _measured(ENGINES["resident"](), engine, turns=1)
    return [resident, sglang | {"cudnn": torch.backends.cuda.cudnn_sdp_enabled()}]


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_rows_on_a_gpu_have_times_and_bits(tmp_path):
    path = tmp_path / "b.json"
    main(["--tokens", "1560", "--blocks", "4", "--json", str(path), "--device", "cuda"])
    for label, row in rows(path).items():
        if label.startswith("sglang") and row["status"] == "absent":
            continue
        assert row["status"] == "ok", (label, row["reason"], row["log"])
        assert len(row["ranks"][0]["samples_ms"]) >= 7
        if label != "fsdp":  # its gathered buffers may pick other kernels
            assert row["same"], label
