"""The benchmark beside peers: bits on CPU, and rows, tables and JSON whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers, rank, table
from benchmarks.__main__ import ENGINES_AND_PEERS, main, parse
from benchmarks.campaign import Campaign, grid
from tests.ranks import run_ranks
from wanreport.engines import ENGINES, Layerwise
from wanreport.measure import launch
from wanreport.model.weights import HostStore, RandomWeights
from wanreport.records import files

ROOT = Path(__file__).resolve().parent.parent
CPU = ["--device", "cpu", "--tokens", "27", "--blocks", "4"]


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in json.loads(path.read_text())["rows"]}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *CPU, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_engine_and_peer_gives_the_bits_of_resident(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    words = ["--ranks", "2", "--branches", "2"]
    done = run(*words, "--json", str(tmp_path / "b.json"), "--sglang", nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    report = files.read_bench(tmp_path / "b.json")[1]
    assert report == json.loads((tmp_path / "b.json").read_text())
    found = rows(tmp_path / "b.json")
    assert set(found) == {*ENGINES_AND_PEERS, files.LAST}
    names = {label.partition(":")[0] for label in ENGINES_AND_PEERS}
    assert names == {*ENGINES, "planned", "diffusers", "sglang"}
    for label, row in found.items():
        if label.startswith("sglang"):
            assert row["status"] == "absent"
            assert nowhere in row["reason"]
            assert f"absent: {row['reason']}" in done.stdout
        else:
            assert row["status"] == "ok", row["log"]
            assert _identical(report, row), label
            assert len(row["ranks"]) == report["settings"]["ranks"]
            assert row["ranks"][0]["samples_ms"] == [], "no times on a CPU"
    assert "no times are claimed" in done.stdout
    assert found["layerwise:prefetch=1"]["ranks"][0]["counters"]["h2d_copies"] > 0
    plans = [rank["plan"]["chosen"] for rank in found["planned"]["ranks"]]
    assert len(set(plans)) == 1, "all ranks choose alike"
    assert {name for name in names if found.get(name, {}).get("settings")} == {"stream", "planned"}
    assert set(peers.PEERS) == set(files.PEERS)


@pytest.mark.slow
def test_streams_settings_can_be_asked_for_one_by_one(tmp_path: Path) -> None:
    label = "stream:slots=3,windows=[7000,90000,1000],shard=true,copy_streams=2"
    path = tmp_path / "b.json"
    assert main([*CPU, "--ranks", "2", "--engines", label, "--json", str(path)]) == 0
    row = rows(path)[label]
    assert row["status"] == "ok", row["log"]
    assert row["settings"]["windows"] == [7000, 90000, 1000] and row["settings"]["shard"]
    assert _identical(json.loads(path.read_text()), row)
    assert row["ranks"][0]["counters"]["unshards"] > 0


def test_an_engine_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "layerwise:prefetch=deep"
    path = tmp_path / "b.json"
    assert main([*CPU, "--engines", bad, "swap", "diffusers", "--json", str(path)]) == 1
    found = rows(path)
    assert found[bad]["status"] == "failed"
    assert "TypeError" in found[bad]["reason"]
    assert "attach" in found[bad]["reason"]
    assert "Traceback" in found[bad]["log"]
    assert found[bad]["reason"] in capsys.readouterr().out
    assert found["swap"]["status"] == found[files.LAST]["status"] == "ok"
    assert _identical(json.loads(path.read_text()), found["diffusers"])  # one rank, one branch


def test_torchrun_starts_the_ranks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ForkedRanks", launch.TorchrunRanks)
    path = tmp_path / "b.json"
    assert main([*CPU, "--ranks", "2", "--engines", "resident", "--json", str(path)]) == 0
    assert [len(row["ranks"]) for row in rows(path).values()] == [2, 2]


def test_what_a_signal_leaves_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Campaign, label: str, pending: list[int]) -> None:
        if label != files.FIRST:
            raise KeyboardInterrupt
        self._end(label, pending, "failed", "x")

    monkeypatch.setattr(Campaign, "_start", stop)
    path = tmp_path / "b.json"
    assert main([*CPU, "--json", str(path), "--engines", "swap", "layerwise"]) == 130
    found = {label: (row["status"], row["reason"]) for label, row in rows(path).items()}
    left = dict.fromkeys(["swap", "layerwise", files.LAST], ("not run", "interrupted"))
    assert found == {files.FIRST: ("failed", "x"), **left}

    def fail(self: Campaign, label: str, pending: list[int]) -> None:
        self._end(label, pending, "failed", "y")

    words = [*CPU, "--json", str(path), "--engines", "swap", "layerwise", "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(Campaign, "_start", fail)
        main(words)
    before = rows(path)
    main(words)
    assert rows(path)["swap"] == before["swap"] and before["swap"]["reason"] == "y"


def test_what_the_budget_leaves_is_named_and_run_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.json"
    asked = [*CPU, "--json", str(path), "--engines", "swap"]
    assert main([*asked, "--budget-minutes", "0"]) == 0
    assert {row["status"] for row in rows(path).values()} == {"not run"}
    assert "not run: time budget" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(asked)
    assert "--resume" in capsys.readouterr().err

    assert main([*asked, "--resume"]) == 0
    assert {row["status"] for row in rows(path).values()} == {"ok"}
    before = path.read_bytes()
    assert main([*asked, "--resume"]) == 0
    assert path.read_bytes() == before, "nothing was left to do"

    ran: list[str] = []
    monkeypatch.setattr(Campaign, "_start", lambda self, label, pending: (
        ran.append(label), self._end(label, pending, "failed", "x")))  # fmt: skip
    main([*asked, "layerwise", "--resume"])
    assert ran == ["layerwise", files.LAST], "resident closes every call that measured"

    assert main([*asked, "--resume", "--branches", "2"]) == 2
    error = capsys.readouterr().err
    assert "branches was 1 and is 2 now" in error
    assert str(path) in error


def _outputs() -> list[Any]:
    """Digests of one step: resident's, layerwise's, and of one that forgets a copy."""
    spec = {"branches": 1, "warmup": 2, "passes": 5, "compile": False}
    found = []
    for engine in (ENGINES["resident"](), Layerwise(), _Forgetful()):
        expert = rank.make_expert("cpu", 4)
        store = HostStore({expert.name: expert}, RandomWeights())
        cpu = torch.device("cpu")
        engine.attach({expert.name: expert}, store, cpu)
        inputs = rank._inputs(expert, (1, 3, 9), 1, cpu)
        found.append(rank._measure(engine, expert, store, inputs, spec, cpu))
    return found


class _Forgetful(Layerwise):
    """Runs its third block with the weights of the second, but for the first pass."""

    passes = 0

    def before_block(self, expert: str, block: int) -> None:
        super().before_block(expert, block)
        self.passes += block == 0
        if block == 2 and self.passes > 1:
            stale = self.experts[expert].blocks[3].parameters()
            for mine, other in zip(self.experts[expert].blocks[2].parameters(), stale, strict=True):
                mine.data = other.data


def test_other_bits_are_seen_even_if_only_the_first_step_is_right() -> None:
    resident, layerwise, forgetful = run_ranks(_outputs, 1)[0]
    report = {"rows": [{"label": "resident", "tokens": 27, "ranks": [resident]}]}
    for measured, same in ((layerwise, True), (forgetful, False)):
        assert _identical(report, {"tokens": 27, "ranks": [measured]}) is same
    assert forgetful["first_output_sha256"] == resident["output_sha256"]


def _rank(ms: list[float], *, pinned: int, shared: int = 0, link: float | None = None) -> Any:
    memory = {"allocated_bytes": 3e9, "reserved_bytes": 4e9, "pinned_bytes": pinned}
    bandwidth = {"h2d_pinned_gb_s": 60.0, "h2d_pinned_together_gb_s": link} if link else None
    return {"samples_ms": ms, "memory": memory, "shared_pinned_bytes": shared, "link": bandwidth,
            "counters": {"h2d_bytes": 0}, "note": "", "output_sha256": "a",
            "first_output_sha256": "a"}  # fmt: skip


def _report() -> dict[str, Any]:
    fast, slow = [90.0] * 7, [100.0, 100.0, 100.0, 100.0, 101.0, 103.0, 99.0]
    entries = {
        "resident": [_rank(fast, pinned=7, shared=7, link=50.0),
                     _rank(slow, pinned=7, shared=7, link=55.0)],
        "diffusers": [_rank([404.0] * 7, pinned=20 * 10**9)] * 2,
        "resident again": [_rank([102.0] * 7, pinned=7, shared=7, link=51.0)] * 2,
        "sglang": [],
    }  # fmt: skip
    return {
        "settings": {"device": "cuda", "ranks": 2, "blocks": 20, "branches": 1, "compile": False},
        "bytes": 10 * 10**9,
        "machine": {"class": "2x GPU"},
        "software": {"torch": "2.11", "diffusers": "0.42"},
        "peers": {},
        "rows": [
            {"label": label, "tokens": 3120, "ranks": ranks, "reason": "out of memory",
             "status": "ok" if ranks else "oom", "settings": None}
            for label, ranks in entries.items()
        ],
    }  # fmt: skip


def test_the_table_shows_intervals_ratios_bits_and_reasons() -> None:
    report = _report()
    text = table.tables(report, [row["label"] for row in report["rows"]])
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "[99.0, 103.0]" in lines["resident"]
    assert lines["diffusers"].split()[:8] == ["diffusers", "404.0", "[404.0,", "404.0]", "7",
                                             "4.040", "3.00", "same"]  # fmt: skip
    assert "oom: out of memory" in lines["sglang"]
    report["rows"][1]["ranks"] = [_rank([404.0], pinned=1) | {"output_sha256": "b"}]
    assert "DIFFERENT" in table.tables(report, ["diffusers"])


def _identical(report: dict[str, Any], row: dict[str, Any]) -> bool | None:
    first = {r["tokens"]: r for r in report["rows"] if r["label"] == files.FIRST}
    return table.identical(row, first.get(row["tokens"]))


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [(3120, (2, 30, 52)), (32760, (21, 30, 52)), (75600, (21, 45, 80)), (10000, (1, 100, 100))],
)
def test_tokens_are_those_of_a_video(tokens: int, shape: tuple[int, int, int]) -> None:
    assert grid(tokens) == shape


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--engines", "layerwise:depth=3"], "depth"),
        (["--engines", "laywise"], "there are resident, swap"),
        (["--tokens", "3120;7800"], "--tokens 3120;7800"),
        (["--tokens", "10007"], "multiple of 1560"),
        (["--passes", "5"], "at least 6"),
        (["--resume"], "--json"),
    ],
)
def test_bad_input_is_refused_with_the_mend(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--device", "cpu", *words])
    assert complaint in capsys.readouterr().err


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
            kept = {p: p.data.clone() for p in layer.parameters()}
            self._consolidated_cpu_weights[i] = kept
            for p in kept:
                p.data = torch.empty(1, dtype=p.dtype)
            layer.register_forward_pre_hook(self.load)
            layer.register_forward_hook(self.drop)

    def load(self, module, args):
        for p in module.parameters():
            p.data = next(kept[p] for kept in self._consolidated_cpu_weights.values() if p in kept)

    def drop(self, module, args, output):
        for p in module.parameters():
            p.data = torch.empty(1, dtype=p.dtype)
"""


@pytest.fixture
def sglang(tmp_path: Path) -> Any:
    """A package that lies as SGLang 0.5.23 does, and would fail if its server were loaded."""
    inside = tmp_path / "sglang" / "multimodal_gen" / "runtime" / "managers"
    inside.mkdir(parents=True)
    for package in (inside.parents[2], inside.parents[1]):
        (package / "__init__.py").write_text("raise ImportError('the server')")
    (inside / "layerwise_offload.py").write_text(MANAGER)
    (tmp_path / "sglang-0.5.23.dist-info").mkdir()
    (tmp_path / "sglang-0.5.23.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.23\n"
    )
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
        del sys.modules[name]


def test_sglangs_manager_runs_without_its_server(
    sglang: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = peers.find_sglang(str(sglang))
    assert code["version"] == "0.5.23"
    assert code["module"] == "sglang.multimodal_gen.runtime.managers.layerwise_offload"
    assert len(code["sha256"]) == 64
    monkeypatch.setattr(peers.Sglang, "find", lambda *_: code)
    said = Campaign(parse([*CPU, "--engines", "sglang"])).report["peers"]["sglang"]
    assert set(said) == {"module", "version", "sha256"}, "no path of this machine's"
    monkeypatch.setattr(torch.cuda, "host_memory_stats", dict)
    cpu, digests = torch.device("cpu"), []
    engines = [ENGINES["resident"](), peers.Sglang(prefetch=2)]
    engines[1].code = code
    for engine in engines:
        expert = rank.make_expert("cpu", 3)
        engine.attach({expert.name: expert}, HostStore({expert.name: expert}, RandomWeights()), cpu)
        inputs = rank._inputs(expert, (1, 3, 9), 1, cpu)
        digests.append(rank._step(engine, expert, inputs)())
    assert torch.equal(*digests)
    assert "0 of 3 blocks" in engines[1].note, "what is not pinned is not claimed to be"
    assert torch.backends.cuda.cudnn_sdp_enabled(), "its import changes no other row's kernels"


def test_a_missing_sglang_is_named_with_the_mend(sglang: Path, tmp_path: Path) -> None:
    with pytest.raises(peers.NeedsGpu, match="0.5.23 is there"):
        peers.Sglang.find(str(sglang), "cpu")
    with pytest.raises(peers.Missing, match=r"--target DIR sglang==0\.0\.1, then --sglang DIR"):
        peers.Sglang.find("0.0.1", "cpu")
    with pytest.raises(peers.Missing, match="no sglang/multimodal_gen"):
        peers.Sglang.find(str(tmp_path / "elsewhere"), "cpu")


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_rows_on_a_gpu_have_times_and_bits(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    words = ["--tokens", "1560", "--blocks", "4", "--json", str(path), "--device", "cuda"]
    main(words)
    report = json.loads(path.read_text())
    for label, row in rows(path).items():
        if label.startswith("sglang") and row["status"] == "absent":
            continue
        assert row["status"] == "ok", (label, row["reason"], row["log"])
        assert len(row["ranks"][0]["samples_ms"]) == 7
        if label != "fsdp":  # its gathered buffers may pick other kernels
            assert _identical(report, row), label
