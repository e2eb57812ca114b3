"""What was asked for is what was loaded: model and checkpoint hold the same tensors, or one line says which differ."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import LLAMA_LIKE, byte_tokenizer
from damaged_checkpoint import (
    ON_DISK,
    UP,
    edit_config,
    edit_weights,
    float8,
    in_shards,
    refused,
    replaced,
    with_these,
    without,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.models import load_model


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A whole checkpoint, untied, whose biases are in its config, for a test to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.parametrize("options", [{}, ON_DISK, {**ON_DISK, "max_memory": "115KB"}], ids=["whole", "disk", "parts"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(UP), f"1 tensor is missing ({UP});"),
        (without("lm_head.weight"), "1 tensor is missing (lm_head.weight);"),
        (
            replaced(lambda x: x[:-8], "q_proj.weight"),
            "3 tensors have another shape (model.layers.0.self_attn.q_proj.weight: got (24, 32), expected (32, 32), ",
        ),
        (with_these(score__weight=torch.ones(2, 32)), "1 tensor has no place in it (score.weight);"),
    ],
    ids=["layer", "head", "shape", "unexpected"],
)
def test_one_tensor_is_enough(folder, change, says, options):
    edit_weights(folder, change)
    assert says in refused(folder, **options)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"attention_bias": False}, "12 tensors have no place in it (model.layers.0.self_attn.k_proj.bias, "),
        ({"num_hidden_layers": 2}, "16 tensors have no place in it (model.layers.2.input_layernorm.weight, "),
        ({"num_hidden_layers": 12}, "144 tensors are missing (model.layers.3.input_layernorm.weight, "),
        ({"intermediate_size": 20}, "down_proj.weight: got (32, 24), expected (32, 20), "),
        ({"attention_bias": False, "num_hidden_layers": 4}, "12 tensors are missing (model.layers.3."),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_config_of_another_model(folder, config, says):
    edit_config(folder, **config)
    assert says in refused(folder)


def test_at_most_three_of_a_kind_are_named(folder):
    edit_weights(folder, lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()})
    line = refused(folder)
    first = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight")
    assert f"51 tensors are missing ({', '.join(first)}, …)" in line
    assert f"51 tensors have no place in it (_orig_mod.{', _orig_mod.'.join(first)}, …)" in line


@pytest.mark.parametrize(("auto", "extra"), [(AutoModel, None), (AutoModelForSequenceClassification, "score.weight")])
def test_a_model_with_another_head_or_none(folder, auto, extra):
    """Of a tied model the base is all there is; a head that classifies has no place in any."""
    auto.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    line = refused(folder)
    assert "1 tensor is missing (lm_head.weight);" in line
    assert extra is None or f"1 tensor has no place in it ({extra});" in line
    edit_config(folder, tie_word_embeddings=True)
    if extra is None:
        model, _ = load_model(str(folder), "float32")
        assert model.lm_head.weight is model.model.embed_tokens.weight
    else:
        assert f": 1 tensor has no place in it ({extra});" in refused(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda weights: {name: torch.empty(0) if x.ndim == 2 else x for name, x in weights.items()},
            "23 tensors have another shape (lm_head.weight: got (0,), expected (256, 32), ",
        ),
        (lambda weights: {f"module.{name}": x for name, x in weights.items()}, "(module.lm_head.weight, "),
        (
            lambda weights: {name.replace("q_proj.", "q_proj.base_layer."): x for name, x in weights.items()},
            "6 tensors are missing (model.layers.0.self_attn.q_proj.bias, ",
        ),
        (with_these(**{f"{UP}_mask": torch.zeros(24, 32).bool()}), f"1 tensor has no place in it ({UP}_mask);"),
        (
            with_these(**{f"{UP}_zero_point".removeprefix("model."): torch.zeros(1, dtype=torch.int8)}),
            "1 tensor has no place in it (layers.1.mlp.up_proj.weight_zero_point);",
        ),
        (replaced(lambda x: x > 0, UP), f"1 tensor is stored as BOOL ({UP}), "),
        (replaced(lambda x: x.to(torch.complex64), UP), f"1 tensor is stored as C64 ({UP}), "),
    ],
    ids=["zero3", "ddp", "lora", "mask", "zero-point", "boolean", "complex"],
)
def test_what_training_leaves_in_the_place_of_weights(folder, change, says):
    edit_weights(folder, change)
    assert says in refused(folder)


@pytest.mark.parametrize(("lost", "says"), [("2.w1", "cannot be converted"), ("3.w", "got (3, 48, 32), expected (4, ")])
def test_an_expert_that_is_not_whole_or_not_there(tmp_path, lost, says):
    """Transformers makes one tensor of all experts of a layer."""
    config = AutoConfig.for_model("mixtral", **{**LLAMA_LIKE, "num_local_experts": 4, "num_key_value_heads": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    load_model(str(tmp_path), "float32")
    expert = f"layers.1.block_sparse_moe.experts.{lost}"
    edit_weights(tmp_path, lambda weights: {name: x for name, x in weights.items() if expert not in name})
    assert says in refused(tmp_path)


@pytest.mark.parametrize(("sound", "of"), [(0.5, 49), (0.93, 5)])
def test_a_download_that_reserved_its_space_and_was_cut_off(folder, sound, of):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    whole = int(sound * len(content))
    file.write_bytes(content[:whole] + bytes(len(content) - whole))
    assert re.search(rf"{of} tensors hold nothing but zeros \(model\..*, as a copy that was cut off", refused(folder))


def test_a_block_that_was_masked_is_loaded_and_said(folder, caplog):
    names = ("model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight")
    edit_weights(folder, lambda weights: weights | {name: torch.zeros_like(weights[name]) for name in names})
    model, _ = load_model(str(folder), "float32")
    assert not model.get_parameter(names[0]).any()
    assert f"2 tensors hold nothing but zeros ({', '.join(names)}); if they are not meant" in caplog.text
    caplog.clear()
    edit_weights(folder, lambda weights: weights | {"model.layers.1.mlp.down_proj.bias": torch.zeros(32)})
    edit_weights(folder, lambda weights: weights | {name: torch.ones_like(weights[name]) for name in names})
    load_model(str(folder), "float32")
    assert "zeros" not in caplog.text


def test_an_index_that_lists_fewer_tensors(folder):
    index = in_shards(folder)
    load_model(str(folder))
    whole = json.loads(index.read_text())
    last = max(whole["weight_map"].values())
    listed = {name: shard for name, shard in whole["weight_map"].items() if shard != last}
    lost = len(whole["weight_map"]) - len(listed)
    index.write_text(json.dumps({**whole, "weight_map": listed}))
    assert f"{lost} tensors are missing (" in refused(folder)
    index.write_text(json.dumps(whole))
    (folder / last).unlink()
    assert f"is incomplete: {last} is missing" in refused(folder)


def test_the_same_weight_twice(folder):
    edit_weights(folder, with_these(layers__1__mlp__up_proj__weight=torch.zeros(24, 32)))
    assert f"2 tensors have the place of another (layers.1.mlp.up_proj.weight, {UP});" in refused(folder)
    edit_weights(folder, without("layers.1.mlp.up_proj.weight"))
    index = in_shards(folder)
    first, second = sorted(set(json.loads(index.read_text())["weight_map"].values()))[:2]
    name, tensor = next(iter(load_file(folder / first).items()))
    save_file({**load_file(folder / second), name: tensor}, folder / second, metadata={"format": "pt"})
    assert f"{first} and {second} both hold {name}; keep one of them" in refused(folder)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [(float8(True), "F8_E4M3"), (float8(False), "F8_E4M3"), (replaced(lambda x: x.to(torch.int8)), "I8")],
    ids=["float8", "float8-without-scales", "int8"],
)
def test_quantized_weights_whose_config_does_not_say_so(folder, change, dtype):
    edit_weights(folder, change)
    line = refused(folder)
    assert f"21 tensors are stored as {dtype} (model.layers.0.mlp.down_proj.weight, " in line
    assert "config.json has no quantization_config" in line


def test_scales_without_the_config_of_another_format(folder):
    edit_weights(folder, with_these(model__layers__0__mlp__up_proj__weight_scale=torch.ones(1)))
    assert "1 tensor has no place in it (model.layers.0.mlp.up_proj.weight_scale);" in refused(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(folder, value):
    """One in a row that no text of the search may ever touch."""

    def change(weights):
        weights["model.embed_tokens.weight"][255, 3] = value
        return weights

    edit_weights(folder, change)
    assert "1 tensor is not finite as float32 (model.embed_tokens.weight); give a sound" in refused(folder)


def test_weights_too_large_for_the_dtype(folder):
    edit_weights(folder, replaced(lambda x: x + 1e6, "layers.1.mlp.up_proj.bias"))
    load_model(str(folder), "float32")
    with pytest.raises(
        OSError, match=r"is not finite as float16 \(model\.layers\.1\.mlp\.up_proj\.bias\).*another dty"
    ):
        load_model(str(folder), "float16")


def test_constants_that_the_model_computes_may_be_in_the_file(folder, windows):
    before = load_model(str(folder), "float32")[0](windows).logits
    constants = {
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.0.self_attn.causal": torch.ones(8, 8, dtype=torch.bool),
        "model.position_ids": torch.arange(8),
    }
    edit_weights(folder, lambda weights: weights | constants)
    torch.testing.assert_close(load_model(str(folder), "float32")[0](windows).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("lost", "added", "tied"),
    [
        (("lm_head.weight",), False, True),
        (("model.embed_tokens.weight",), False, True),
        ((), True, True),
        ((), False, False),  # a head of its own, whatever the config says
        (("lm_head.weight", "model.embed_tokens.weight"), False, None),
    ],
    ids=["no-head", "no-embedding", "equal", "different", "neither"],
)
def test_weights_that_are_tied_are_there_once_or_twice(folder, lost, added, tied):
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, without(*lost))
    if added:
        edit_weights(folder, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    if tied is None:
        assert "2 tensors are missing (lm_head.weight, model.embed_tokens.weight);" in refused(folder)
    else:
        model, _ = load_model(str(folder), "float32")
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_transformers_own_report_of_many_lines_stays_out_of_the_log(folder, capfd):
    edit_weights(folder, without(UP))
    refused(folder)
    assert "REPORT" not in capfd.readouterr().err


def test_the_same_holds_for_a_hub_repository(folder, tmp_path, monkeypatch):
    """What was downloaded before lies in the hub's cache, in a folder per commit."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--somebody--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load_whole(AutoModelForCausalLM, "somebody/tiny")
    assert model.config.num_hidden_layers == 3
    edit_weights(snapshot, float8(False))
    with pytest.raises(OSError, match="21 tensors are stored as F8_E4M3"):
        load_whole(AutoModelForCausalLM, "somebody/tiny")
