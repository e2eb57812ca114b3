"""What was asked for is what was loaded: model and checkpoint hold the same tensors, or one line says which differ."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import LLAMA_LIKE, byte_tokenizer, tiny_model
from safetensors.torch import load_file, save_file
from tiny_runs import assert_same, run_main, settings
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import ffprune_env as ff
from ffprune_env.lm import models
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.models import load_model
from ffprune_env.lm.stored_tensors import stored_tensors
from ffprune_env.pruning.prunable import PrunableModel

UP = "model.layers.1.mlp.up_proj.weight"
ON_DISK = {"device_map": "auto", "max_memory": "1KB"}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A whole checkpoint, untied, whose biases are in its config, for a test to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    prunable = PrunableModel(tiny_model("llama-gqa").float())
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    target = tmp_path_factory.mktemp("pruned") / "model"
    ff.save_pruned(prunable, [3, 20, 4, 7, 1, 24], target, tokenizer=byte_tokenizer())
    return target


def refused(folder, **options):
    """The one line that refuses a checkpoint."""
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(str(folder), "float32", **options)
    (line,) = str(caught.value).splitlines()
    print(line)
    return line


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor.contiguous() for name, tensor in change(weights).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def without(*names):
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def with_these(**tensors):
    return lambda weights: weights | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def replaced(change, ending="proj.weight"):
    return lambda weights: {name: change(x) if name.endswith(ending) else x for name, x in weights.items()}


def as_bin(folder, content=lambda weights: weights, **options):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(content(weights), folder / "pytorch_model.bin", **options)


def in_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder / "model.safetensors.index.json"


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


def float8(scales):
    def change(weights):
        scale = {f"{name}_scale_inv": torch.ones(1) for name in weights if name.endswith("proj.weight")}
        return replaced(lambda x: x.to(torch.float8_e4m3fn))(weights) | (scale if scales else {})

    return change


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


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_files_are_read_where_there_are_no_safetensors(folder, windows, zipped):
    expected = load_model(str(folder), "float32")[0](windows).logits
    as_bin(folder, _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(load_model(str(folder), "float32")[0](windows).logits, expected, rtol=0, atol=0)
    assert stored_tensors(folder)[UP].shape == (24, 32)


class Runs:
    """What a pickle can do: make a folder when it is read."""

    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


def as_bin_shards(folder, change=lambda shard: shard):
    """Two shards and their index, as large checkpoints have them; ``change`` edits the second one."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in (0, 1)}
    for i, (file, of) in enumerate(shards.items()):
        shard = {name: weights[name] for name in of}
        torch.save(change(shard) if i else shard, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, of in shards.items() for name in of}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return sorted(shards)


def test_bin_files_in_shards_are_read_by_their_index(folder, windows):
    expected = load_model(str(folder), "float32")[0](windows).logits
    _, second = as_bin_shards(folder)
    assert torch.equal(load_model(str(folder), "float32")[0](windows).logits, expected)
    assert stored_tensors(folder)[UP].shape == (24, 32)
    (folder / second).unlink()
    assert f"is incomplete: {second} is missing" in refused(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_are_read_where_there_are_both(folder, windows, monkeypatch, tmp_path, sharded):
    """Of the others not a byte: neither other weights nor code."""
    monkeypatch.chdir(tmp_path)
    expected = load_model(str(folder), "float32")[0](windows).logits
    kept = (folder / "model.safetensors").read_bytes()
    if sharded:
        as_bin_shards(folder, lambda shard: {**shard, "x": Runs()})
    else:
        as_bin(folder, lambda weights: {"x": Runs()} | {name: x + 1 for name, x in weights.items()})
    (folder / "model.safetensors").write_bytes(kept)
    assert torch.equal(load_model(str(folder), "float32")[0](windows).logits, expected)
    assert not Path("ran").exists()


def test_code_in_any_pickle_of_a_checkpoint_is_refused_and_does_not_run(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Runs()))  # which runs, where it is let
    Path("ran").rmdir()
    _, second = as_bin_shards(folder, lambda shard: {**shard, "x": Runs()})
    assert f"{second} is damaged, or holds Python objects beside its tensors, which are never run; save" in refused(
        folder
    )
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    for content in (
        pickle.dumps(Runs(), protocol=2),
        pickle.dumps({"x": Runs()}, protocol=0),
    ):  # no archive of torch's at all
        (folder / "pytorch_model.bin").write_bytes(content)
        assert "pytorch_model.bin is damaged" in refused(folder)
    torch.save({"x": Runs()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "holds Python objects beside its tensors, which are never run" in refused(folder)
    assert not Path("ran").exists()


def test_a_search_of_bin_files_is_that_of_safetensors(folder, whole, ppo_script, text_file, tmp_path):
    as_bin_shards(folder)
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run")) == 0
    assert_same(tmp_path / "run", whole)


def test_a_search_of_a_malicious_file_ends_before_it_begins(
    folder, ppo_script, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    as_bin(folder, lambda weights: {**weights, "x": Runs()})
    capsys.readouterr()
    assert run_main(ppo_script, settings(folder, text_file, tmp_path / "run")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pytorch_model.bin is damaged, or holds Python objects beside its tensors, which are never run" in line
    assert not Path("ran").exists()
    assert not (tmp_path / "run").exists()


def test_a_malicious_file_from_the_hub_is_not_recommended(folder, monkeypatch, tmp_path):
    """What torch says of it proposes to run the code; from the hub it is torch that reads a file first."""
    monkeypatch.chdir(tmp_path)
    as_bin(folder, lambda weights: {**weights, "x": Runs()})
    monkeypatch.setattr("ffprune_env.lm.loading_report.stored_tensors", lambda folder: {})
    line = refused(folder)
    assert "it is damaged, or holds Python objects beside its tensors, which are never run" in line
    assert "weights_only" not in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (without(UP), f"1 tensor is missing ({UP});"),
        (float8(False), "21 tensors are stored as float8_e4m3fn"),
        (lambda weights: {"state_dict": weights}, "must hold tensors only, got dict under 'state_dict'"),
        (list, "must hold a dict of tensors, got list"),
        (lambda weights: {**weights, "x": Runs()}, "holds Python objects beside its tensors, which are never run"),
    ],
    ids=["missing", "float8", "nested", "list", "code"],
)
def test_bin_files_are_checked_too(folder, content, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    as_bin(folder, content)
    assert says in refused(folder)
    assert not Path("ran").exists()


def test_bin_files_that_are_damaged_or_cannot_stay_on_disk(folder):
    as_bin(folder)
    assert "cannot be spread to disk unless it is stored as safetensors" in refused(folder, **ON_DISK)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    assert "pytorch_model.bin is damaged or cut short" in refused(folder)
    file.write_bytes(b"a pickle")
    assert "pytorch_model.bin is damaged or cut short" in refused(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(UP), UP),
        (with_these(model__layers__1__mlp__up_proj__bias_2=torch.ones(7)), "up_proj.bias_2"),
        (without("model.layers.0.self_attn.kv_index"), "model.layers.0.self_attn.kv_index"),
        (replaced(lambda x: x.to(torch.float8_e4m3fn)), "21 tensors are stored as F8_E4M3"),
        (replaced(lambda x: x * math.nan, UP), f"1 tensor is not finite as float32 ({UP})"),
    ],
    ids=["missing", "unexpected", "key-index", "float8", "nan"],
)
def test_pruned_folders_are_checked_the_same(pruned, tmp_path, change, says):
    folder = Path(shutil.copytree(pruned, tmp_path / "model"))
    edit_weights(folder, change)
    assert says in refused(folder)
    with pytest.raises((OSError, ValueError)) as caught:
        ff.load_pruned(folder, "float32")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_whole_pruned_folders_load_both_ways(pruned, windows):
    ours, (theirs, _) = ff.load_pruned(pruned), load_model(str(pruned), "float32")
    torch.testing.assert_close(ours(windows).logits, theirs(windows).logits, rtol=0, atol=0)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(file, change):
    """A tiny Llama as GGUF; ``change`` edits its tensors first, under the names they have there."""
    merge = ("e", "n")
    words = sorted((i, word) for word, i in byte_tokenizer([merge]).get_vocab().items())
    tensors = {}
    for name, tensor in tiny_model("llama").float().state_dict().items():
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    writer = gguf.GGUFWriter(file, "llama")
    for add, value in (
        (writer.add_block_count, 3), (writer.add_context_length, 128), (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 24), (writer.add_head_count, 4), (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-6), (writer.add_vocab_size, 256), (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2), (writer.add_tokenizer_model, "gpt2"), (writer.add_token_types, [1] * 256),
        (writer.add_token_list, [word for _, word in words]), (writer.add_token_merges, [" ".join(merge)]),
    ):  # fmt: skip
        add(value)
    for name, tensor in change(tensors).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors, None),
        (without("blk.1.ffn_up.weight"), f"1 tensor is missing ({UP});"),
        (
            with_these(blk__3__ffn_up__weight=torch.zeros(24, 32)),
            "holds 31 tensors, and LlamaForCausalLM has a place for",
        ),
        (with_these(rope_freqs__weight=torch.ones(4)), "holds 31 tensors, and LlamaForCausalLM has a place for 30"),
    ],
    ids=["whole", "missing", "unexpected", "dropped"],
)
def test_a_gguf_file_is_converted_whole_or_not_at_all(tmp_path, change, says):
    file, target = write_gguf(tmp_path / "model.gguf", change), tmp_path / "cache" / "model"
    if says is None:
        models._convert_gguf(file, target)
        model, _ = load_model(str(target), "float32")
        expected = tiny_model("llama").float().state_dict()[UP]
        torch.testing.assert_close(model.state_dict()[UP], expected, rtol=0, atol=0)
    else:
        with pytest.raises(OSError, match=r"model\.gguf could not be converted: ") as caught:
            models._convert_gguf(file, target)
        assert says in str(caught.value)
        assert not any((tmp_path / "cache").iterdir())


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


def test_the_count_of_tensors_is_where_gguf_says(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", lambda tensors: tensors)
    assert struct.unpack("<4sIQ", file.read_bytes()[:16])[2] == len(gguf.GGUFReader(file).tensors)
