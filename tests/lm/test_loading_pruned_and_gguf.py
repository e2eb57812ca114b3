"""Pruned folders and GGUF files are loaded whole or not at all, as other checkpoints are."""

from __future__ import annotations

import math
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from damaged_checkpoint import (
    UP,
    edit_weights,
    refused,
    replaced,
    with_these,
    without,
)

import ffprune_env as ff
from ffprune_env.lm import models
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.prunable import PrunableModel


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    prunable = PrunableModel(tiny_model("llama-gqa").float())
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    target = tmp_path_factory.mktemp("pruned") / "model"
    ff.save_pruned(prunable, [3, 20, 4, 7, 1, 24], target, tokenizer=byte_tokenizer())
    return target


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


def test_the_count_of_tensors_is_where_gguf_says(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", lambda tensors: tensors)
    assert struct.unpack("<4sIQ", file.read_bytes()[:16])[2] == len(gguf.GGUFReader(file).tensors)
