"""Layers without an attention or an FFN in llama.cpp: it computes what the model computes, whichever are gone."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from conftest import byte_tokenizer
from gguf_models import MERGES, pruned, relative_error, wide_model

import ffprune_env as ff
from ffprune_env.export.gguf.file import export_gguf
from ffprune_env.pruning.prunable import PrunableModel

# llama.cpp keeps keys and values in f16.
TOLERANCE = 5e-3
BIASES = {"attention_bias": True, "mlp_bias": True}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1}
#: Query heads (of 4) and channels (of 40) of three layers.
GONE = {
    "attention of the first": [0, 20, 4, 40, 3, 40],
    "attention of the last": [4, 20, 4, 40, 0, 40],
    "attention in between": [3, 20, 0, 40, 2, 40],
    "all attention": [0, 20, 0, 40, 0, 7],
    "FFN of the first": [3, 0, 4, 40, 3, 40],
    "FFN of the last": [3, 20, 4, 40, 2, 0],
    "the first layer": [0, 0, 4, 40, 2, 20],
    "the layer in between": [2, 40, 0, 0, 3, 7],
    "the last layer": [2, 40, 3, 9, 0, 0],
    "much": [0, 0, 0, 20, 3, 0],
}


@pytest.mark.parametrize("kept", GONE.values(), ids=GONE)
@pytest.mark.parametrize(
    ("family", "settings"), [("llama", BIASES), ("granite", GRANITE), ("qwen3", {"tie_word_embeddings": True})]
)
def test_llama_cpp_computes_what_the_model_computes(tmp_path, windows, family, settings, kept):
    pytest.importorskip("cyllama")
    folder = pruned(wide_model(family, **settings), kept, tmp_path / "pruned")
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    assert relative_error(ff.load_pruned(folder), tmp_path / "model.gguf", windows[0]) < TOLERANCE


def test_a_phi3_without_an_ffn_is_taken_apart(tmp_path, windows):
    pytest.importorskip("cyllama")
    folder = pruned(wide_model("phi3", pad_token_id=0), [20, 0, 40], tmp_path / "pruned")  # attention stays whole
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    assert relative_error(ff.load_pruned(folder), tmp_path / "model.gguf", windows[0]) < TOLERANCE


def test_a_quantized_file_holds_them_too(tmp_path, windows):
    pytest.importorskip("cyllama")
    folder = pruned(wide_model("llama"), [*GONE["attention in between"][:5], 0], tmp_path / "pruned")
    export_gguf(folder, tmp_path / "model.gguf", "q8_0")
    assert relative_error(ff.load_pruned(folder), tmp_path / "model.gguf", windows[0]) < 0.1


def test_the_file_has_no_more_than_it_takes(tmp_path):
    folder = pruned(wide_model("llama"), [3, 20, 0, 40, 0, 0], tmp_path / "pruned")
    export_gguf(folder, tmp_path / "model.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    said = {name: reader.fields[f"deci.{name}"] for name in ("block_count", "attention.head_count")}
    assert int(said["block_count"].contents()) == 2
    assert said["attention.head_count"].contents() == [3, 0]
    names = [tensor.name for tensor in reader.tensors]
    assert not [name for name in names if name.startswith("blk.2") or "blk.1.attn" in name]
    assert "blk.1.ffn_norm.weight" in names


def test_a_model_without_any_layer_is_refused_in_one_line(tmp_path):
    prunable = PrunableModel(wide_model("llama"))
    prunable.rank([np.zeros(layout.n_members) for layout in prunable.layouts])
    ff.save_pruned(prunable, [0] * 6, tmp_path / "pruned", tokenizer=byte_tokenizer(MERGES))
    with pytest.raises(ValueError, match="a llama without any layer cannot be written as GGUF"):
        export_gguf(tmp_path / "pruned", tmp_path / "model.gguf", "f16")
