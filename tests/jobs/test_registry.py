"""A model path leads to the settings that SGLang 0.5.9 would take for it."""

import json

import pytest

from wanreport.jobs.registry import _REGISTRY, ModelPathError, resolve_model

A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
WAN = {"_class_name": "WanPipeline"}


def folder(path, **index):
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", **index}))
    return str(path)


def test_the_name_on_the_hub_is_an_exact_match():
    found = resolve_model(A14B)
    assert (found.config, found.how) == ("Wan2_2_T2V_A14B_Config", "exact")
    assert (found.flow_shift, found.boundary_ratio) == (12.0, 0.875)
    assert (found.guidance_scale, found.guidance_scale_2) == (4.0, 3.0)


def test_the_baselines_local_path_falls_through_to_the_480p_model():
    found = resolve_model("./models/wan2.2", index=WAN)
    assert (found.config, found.how) == ("WanT2V480PConfig", "detector")
    assert (found.flow_shift, found.boundary_ratio) == (3.0, None)
    assert "'wanpipeline' matches the detector 'wanpipeline'" in found.steps[-2]


def test_the_experts_boundary_comes_from_the_checkpoint_even_for_the_480p_model(tmp_path):
    found = resolve_model(folder(tmp_path / "models" / "wan2.2", boundary_ratio=0.875))
    assert (found.flow_shift, found.boundary_ratio) == (3.0, 0.875)
    assert (found.guidance_scale, found.guidance_scale_2) == (3.0, 3.0)


def test_a_folder_that_ends_with_the_hub_name_is_a_partial_match(tmp_path):
    found = resolve_model(folder(tmp_path / A14B, boundary_ratio=0.9))
    assert (found.how, found.flow_shift, found.boundary_ratio) == ("partial", 12.0, 0.9)


def test_a_symlink_counts_by_its_own_name_not_by_what_it_points_to(tmp_path):
    plain = folder(tmp_path / "models" / "wan2.2")
    (tmp_path / "Wan-AI").mkdir()
    (tmp_path / A14B).symlink_to(plain)
    assert resolve_model(str(tmp_path / A14B)).flow_shift == 12.0
    (tmp_path / "w").symlink_to(tmp_path / A14B)
    assert resolve_model(str(tmp_path / "w")).flow_shift == 3.0


def test_a_folder_in_the_working_directory_makes_the_hub_name_exact(tmp_path, monkeypatch):
    folder(tmp_path / A14B, boundary_ratio=0.8)
    monkeypatch.chdir(tmp_path)
    found = resolve_model(A14B)
    assert (found.how, found.flow_shift, found.boundary_ratio) == ("exact", 12.0, 0.8)


@pytest.mark.parametrize(
    ("path", "how", "config"),
    [
        (A14B.lower(), "partial", "Wan2_2_T2V_A14B_Config"),  # exact is case-sensitive
        (f"/data/{A14B}/", "partial", "Wan2_2_T2V_A14B_Config"),
        ("Wan2.2-T2V-A14B-Diffusers", "partial", "Wan2_2_T2V_A14B_Config"),
        ("/data/Wan2.2-T2V-A14B-Diffusers-bf16", "detector", "WanT2V480PConfig"),
        ("/data/Wan2.2-T2V-A14B", "detector", "WanT2V480PConfig"),
        ("/data/Wan2.2-T2V-A14B-Diffusers/.", "detector", "WanT2V480PConfig"),
        ("/hunyuan-disk/wan2.2", "detector", "HunyuanConfig"),  # the first to fire wins
    ],
)
def test_only_the_text_of_the_path_counts(path, how, config):
    found = resolve_model(path, index=WAN)
    assert (found.how, found.config) == (how, config)


@pytest.mark.parametrize(
    ("class_name", "path", "config"),
    [
        ("WanImageToVideoPipeline", "x", "WanI2V480PConfig"),
        ("Other", "my/ltx-video", "LTX2PipelineConfig"),
    ],
)
def test_detectors_look_at_path_and_class_name(class_name, path, config):
    assert resolve_model(path, index={"_class_name": class_name}).config == config


@pytest.mark.parametrize(
    ("name", "shift", "boundary", "guidance"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 3.0, None, (3.0, 3.0)),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 5.0, None, (5.0, 5.0)),
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 3.0, None, (5.0, 5.0)),
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", 5.0, None, (5.0, 5.0)),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 5.0, None, (5.0, 5.0)),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 5.0, 0.9, (3.5, 3.5)),
        ("IPostYellow/TurboWan2.2-I2V-A14B-Diffusers", 8.0, 0.9, (3.5, 3.5)),
    ],
)
def test_settings_of_other_registered_models(name, shift, boundary, guidance):
    found = resolve_model(name)
    assert (found.flow_shift, found.boundary_ratio) == (shift, boundary)
    assert (found.guidance_scale, found.guidance_scale_2) == guidance


def test_last_components_are_unique_so_that_a_partial_match_is_too():
    names = [name.rsplit("/", 1)[-1].lower() for entry in _REGISTRY for name in entry.hub]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("path", "index", "said"),
    [
        ("./models/gone", None, "neither a name that SGLang 0.5.9 knows nor a folder"),
        ("./models/x", {"_class_name": "UnheardOf"}, "matches none of SGLang 0.5.9's detectors"),
        ("./models/x", {}, "let the folder's name be"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_to_give(path, index, said):
    with pytest.raises(ModelPathError, match=said):
        resolve_model(path, index=index)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "a JSON object")],
)
def test_a_folder_without_a_usable_index_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelPathError, match=said):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("ratio", ["0.9", True, 2])
def test_a_boundary_that_is_no_ratio_is_refused(tmp_path, ratio):
    with pytest.raises(ModelPathError, match="boundary_ratio is"):
        resolve_model(folder(tmp_path / "m", boundary_ratio=ratio))
