"""SGLang 0.5.9's flags and model paths come out as its own code brings them out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanreport.jobs import sglang

A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
WAN = {"_class_name": "WanPipeline"}


@pytest.mark.parametrize(
    ("layerwise", "cpu_offload", "fsdp", "engine", "rules"),
    [(None, None, False, "layerwise", [440, 555, 1101]),  # no flags at all
     (True, None, True, "layerwise", [440, 1099, 1101]), (True, False, True, "layerwise", [1099]),
     (False, None, False, "swap", [440]),  # the baseline's "old": not FSDP
     (False, True, False, "swap", []), (False, None, True, "fsdp", [440]),
     (False, False, True, None, []), (False, False, False, "resident", []),
     (None, False, False, "layerwise", [555])],  # --dit-cpu-offload false alone changes nothing
)  # fmt: skip
def test_flags_amount_to_an_engine_by_rules(layerwise, cpu_offload, fsdp, engine, rules):
    found = sglang.resolve(layerwise, cpu_offload, fsdp, 0.0)
    assert found.engine == engine
    assert [int(step.rpartition(":")[2].rstrip(")")) for step in found.steps] == rules


@pytest.mark.parametrize("engine", sorted(sglang.ENGINE_FLAGS))
def test_the_flags_listed_for_an_engine_lead_to_it(engine):
    given = sglang.ENGINE_FLAGS[engine] | {"dit_offload_prefetch_size": 3, "ulysses_degree": 4}
    words = [f"--{key.replace('_', '-')} {str(value).lower()}" for key, value in given.items()]
    text = sglang.resolve_text(" ".join(words))
    assert (text.engine, text.prefetch_size) == (engine, 3.0)


@pytest.mark.parametrize(
    ("size", "layers", "kept"),
    [(0.0, 1, 0), (0.2, 9, 0.2), (0.5, 21, 0.5), (0.99, 40, 0.99), (1.0, 1, 1), (3, 3, 3),
     (3.9, 3, 3), (40, 40, 40), (99, 40, 99)],
)  # fmt: skip
def test_prefetch_size_is_a_ratio_below_one_and_a_whole_count_from_there(size, layers, kept):
    assert sglang.prefetch_layers(size, 40) == layers
    found = sglang.resolve(True, False, False, size)
    assert found.prefetch_size == kept and bool(found.steps) is (size != kept)


@given(*[st.floats(min_value=0, max_value=1e6)] * 2, st.integers(1, 100))
def test_prefetch_is_within_the_layers_and_grows_with_its_size(a, b, layers):
    few, many = (sglang.prefetch_layers(size, layers) for size in sorted((a, b)))
    assert 1 <= few <= layers and 1 <= many <= layers
    assert few <= many or min(a, b) < 1 <= max(a, b)


@pytest.mark.parametrize(
    ("path", "index", "how", "config", "shift"),
    [(A14B, None, "exact", "Wan2_2_T2V_A14B_Config", 12),
     (A14B.lower(), None, "partial", "Wan2_2_T2V_A14B_Config", 12),  # exact is case-sensitive
     (f"/data/{A14B}/", WAN, "partial", "Wan2_2_T2V_A14B_Config", 12),
     ("Wan2.2-TI2V-5B-Diffusers", WAN, "partial", "Wan2_2_TI2V_5B_Config", 5),
     ("/data/Wan2.2-T2V-A14B-Diffusers-bf16", WAN, "detector", "WanT2V480PConfig", 3),
     ("/data/Wan2.2-T2V-A14B-Diffusers/.", WAN, "detector", "WanT2V480PConfig", 3),
     ("./models/wan2.2", WAN, "detector", "WanT2V480PConfig", 3),  # the baseline's own path
     ("x", {"_class_name": "WanImageToVideoPipeline"}, "detector", "WanI2V480PConfig", 3)],
)  # fmt: skip
def test_only_the_text_of_the_path_counts(path, index, how, config, shift):
    found = sglang.resolve_model(path, index=index)
    assert (found.how, found.config, found.flow_shift) == (how, config, shift) and found.steps


def test_the_experts_boundary_comes_from_the_checkpoint(tmp_path, monkeypatch):
    for name, ratio in (("models/wan2.2", 0.875), (A14B, 0.8)):
        (tmp_path / name).mkdir(parents=True)
        index = json.dumps(WAN | {"boundary_ratio": ratio})
        (tmp_path / name / "model_index.json").write_text(index)
    for link in ("w", "Wan2.2-T2V-A14B-Diffusers"):
        (tmp_path / link).symlink_to(tmp_path / A14B)
    monkeypatch.chdir(tmp_path)  # a folder in the working directory makes the name exact
    for path, how, shift, ratio in (
        (tmp_path / "models/wan2.2", "detector", 3, 0.875), (tmp_path / A14B, "partial", 12, 0.8),
        (A14B, "exact", 12, 0.8), (tmp_path / "w", "detector", 3, 0.8),  # a link's own name counts
        (tmp_path / "Wan2.2-T2V-A14B-Diffusers", "partial", 12, 0.8),
    ):  # fmt: skip
        found = sglang.resolve_model(str(path))
        assert (found.how, found.flow_shift, found.boundary_ratio) == (how, shift, ratio), path


def test_a_path_that_leads_nowhere_is_named_with_one_that_does(tmp_path):
    for path, index in (("./gone", None), ("./x", {"_class_name": "Other"}), ("./x", {}),
                        ("hunyuan/wan2.2", WAN)):  # fmt: skip
        with pytest.raises(sglang.ModelPathError, match=f"{path}.*{A14B}"):
            sglang.resolve_model(path, index=index)
    path = tmp_path / A14B
    path.mkdir(parents=True)
    for text in (None, "{", "[]", *(json.dumps({"boundary_ratio": r}) for r in ("0.9", True, 2))):
        if text is not None:
            (path / "model_index.json").write_text(text)
        with pytest.raises(sglang.ModelPathError, match=r"model_index\.json: "):
            sglang.resolve_model(str(path))
