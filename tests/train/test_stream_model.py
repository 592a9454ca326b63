"""Both layouts on disk, and what is refused at the door."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, Qwen3Config

from synth.errors import BadInput
from train.fit_config import StreamConfig
from train.labels import (
    PUBLISHED_CATEGORIES,
    PUBLISHED_QUERY_CATEGORIES,
    PUBLISHED_RISKS,
    LabelMaps,
    label_maps,
)
from train.stream_model import StreamGuard, StreamGuardConfig
from train.stream_score import load_guard
from train.stream_task import StreamTask

SAFETY = label_maps(
    ("Safe", "Controversial", "Unsafe"),
    sorted(PUBLISHED_CATEGORIES),
    sorted(PUBLISHED_QUERY_CATEGORIES),
    ("Safe",),
    ("Unsafe", "Controversial"),
    ("Unsafe",),
)
HEADS = {
    "risk_level_category_pre.weight": [16, 32],
    "risk_level_category_layernorm.weight": [16],
    "risk_level_head.weight": [3, 16],
    "category_head.weight": [8, 16],
    "query_risk_level_category_pre.weight": [16, 32],
    "query_risk_level_category_layernorm.weight": [16],
    "query_risk_level_head.weight": [3, 16],
    "query_category_head.weight": [9, 16],
}


def guard(folder, maps=SAFETY, dtype=torch.float32) -> StreamGuard:
    config = StreamGuardConfig.for_policy(AutoConfig.from_pretrained(folder), maps, 16)
    torch.manual_seed(3)
    return StreamGuard(config).to(dtype).eval()


def saved(folder, tmp_path, **kwargs):
    shutil.copytree(folder, tmp_path / "guard")
    (tmp_path / "guard" / "model.safetensors").unlink()
    guard(folder, **kwargs).save_guard(tmp_path / "guard")
    return tmp_path / "guard"


def test_the_policys_names_take_the_published_order_when_they_are_the_published_names():
    assert SAFETY.risk == ("Safe", "Unsafe", "Controversial")
    assert SAFETY.response_category == PUBLISHED_CATEGORIES
    assert SAFETY.query_category[8] == "Jailbreak"


def test_another_policy_keeps_its_own_order():
    maps = label_maps(
        ("Clean", "Thin", "Junk"), ("Ads", "Boilerplate"), (), ("Clean",), ("Thin", "Junk"), ("Junk",)
    )
    assert maps.risk == ("Clean", "Thin", "Junk")
    assert maps.query_category == ("None",)


def test_automodel_reloads_our_layout_with_the_same_logits(llama, tmp_path):
    folder = saved(llama, tmp_path)
    again = AutoModel.from_pretrained(folder).eval()
    assert type(again) is StreamGuard
    ids = torch.tensor([[5, 6, 7, 8]])
    before, after = guard(llama)(ids), again(ids)
    for head in ("risk_level_logits", "category_logits", "query_risk_level_logits", "query_category_logits"):
        assert torch.equal(before[head], after[head])
    assert again.config.maps == SAFETY


def test_the_maps_of_another_policy_travel_in_the_config(llama, tmp_path):
    maps = LabelMaps(("Clean", "Junk"), ("Ads",), ("None",), ("Clean",), ("Junk",), ("Junk",))
    again = AutoModel.from_pretrained(saved(llama, tmp_path, maps=maps))
    assert again.config.maps == maps
    assert again.risk_level_head.weight.shape == (2, 16)


def test_a_qwen3_guard_is_written_in_the_published_layout(qwen3, tmp_path):
    folder = saved(qwen3, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForGuardModel"]
    assert config["model_type"] == "qwen3"
    sizes = (
        "guard_inner_size",
        "num_risk_level",
        "num_category",
        "num_query_risk_level",
        "num_query_category",
    )
    assert [config[name] for name in sizes] == [16, 3, 8, 3, 9]
    assert config["response_risk_level_map"] == {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
    assert config["query_risk_level_map"] == config["response_risk_level_map"]
    assert list(config["response_category_map"].values()) == list(PUBLISHED_CATEGORIES)
    assert list(config["query_category_map"].values()) == list(PUBLISHED_QUERY_CATEGORIES)
    tensors = load_file(folder / "model.safetensors")
    assert {name: list(tensors[name].shape) for name in HEADS} == HEADS
    assert set(tensors) - set(HEADS) == {name for name in tensors if name.startswith("model.")}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= set(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_and_writing_the_published_layout_changes_no_bit(qwen3, tmp_path, dtype):
    folder = saved(qwen3, tmp_path, dtype=dtype)
    StreamGuard.from_pretrained(folder, dtype="auto").save_guard(tmp_path / "again")
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert list(first) == list(second)
    assert all(first[name].dtype == dtype and torch.equal(first[name], second[name]) for name in first)
    read = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again")]
    assert read[0] == read[1]


def test_a_published_config_as_others_write_it_is_read(qwen3, tmp_path):
    folder = saved(qwen3, tmp_path, dtype=torch.bfloat16)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    plain = Qwen3Config().to_dict().keys() & config.keys()
    kept = {k: v for k, v in config.items() if k in plain and k not in ("dtype", "rope_parameters")}
    kept |= {k: v for k, v in config.items() if k.endswith("_map") or k.startswith(("num_", "guard_"))}
    kept |= {"architectures": ["Qwen3ForGuardModel"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
    kept |= {"rope_theta": 1000000, "auto_map": {"AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel"}}
    path.write_text(json.dumps(kept))
    again, _ = load_guard(folder)
    assert again.config.maps.risk == PUBLISHED_RISKS
    assert again.config.backbone_config.rope_parameters["rope_theta"] == 1000000
    assert again.config.maps.strict == ("Unsafe", "Controversial") and again.config.maps.loose == ("Unsafe",)


def test_the_training_task_builds_the_guard_it_saves(qwen3):
    maps = (PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES)
    config = StreamConfig(
        str(qwen3), response_categories=maps[0], query_categories=maps[1], inner_size=16, seed=4
    )
    first, second = StreamTask(config).whole(), StreamTask(config).whole()
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not any(p.is_meta for p in first.parameters())


def spoil_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no config"):
        load_guard(tmp_path)


def test_a_checkpoint_of_another_kind_is_refused(llama):
    with pytest.raises(BadInput, match="a llama model, not a streaming guard"):
        load_guard(llama)


def test_a_config_that_is_not_json_is_refused(llama, tmp_path):
    folder = saved(llama, tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="not readable as JSON"):
        load_guard(folder)


def test_pickled_weights_are_not_read(llama, tmp_path):
    folder = saved(llama, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no safetensors file"):
        load_guard(folder)


def test_weights_that_do_not_fit_the_config_are_refused(llama, tmp_path):
    folder = saved(llama, tmp_path)
    spoil_config(folder, guard_inner_size=8)
    with pytest.raises(BadInput, match=r"weights do not fit|mismatched keys"):
        load_guard(folder)


def test_missing_weights_are_refused(llama, tmp_path):
    from safetensors.torch import save_file

    folder = saved(llama, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["query_category_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"missing keys in the weights, query_category_head\.weight first"):
        load_guard(folder)


def test_a_truncated_weights_file_is_refused(llama, tmp_path):
    folder = saved(llama, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="weights do not fit"):
        load_guard(folder)


def test_published_sizes_that_contradict_the_maps_are_refused(qwen3, tmp_path):
    folder = saved(qwen3, tmp_path)
    spoil_config(folder, num_category=7)
    with pytest.raises(BadInput, match="num_category is 7, but response_category_map has 8"):
        load_guard(folder)
