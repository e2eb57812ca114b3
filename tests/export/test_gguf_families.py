"""Families as GGUF: what llama.cpp computes is what the model computes, or the model is refused in one line."""

from __future__ import annotations

import gguf
import pytest
from conftest import byte_tokenizer, tiny_model
from gguf_models import MERGES, pruned, relative_error, wide_model

import ffprune_env as ff
from ffprune_env.export.gguf import file as gguf_file
from ffprune_env.export.gguf.families import why_no_gguf
from ffprune_env.export.gguf.file import export_gguf, write_gguf
from ffprune_env.export.gguf.kinds import kind_of

ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PARTIAL = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
GRANITE = {
    "embedding_multiplier": 3.0, "logits_scaling": 8.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1,
}  # fmt: skip
# llama.cpp keeps keys and values in f16.
TOLERANCE = 5e-3


@pytest.fixture
def tokenizer_folder(tmp_path):
    byte_tokenizer(MERGES).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
        ("granite", GRANITE),
        ("granite", {**GRANITE, "tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("phi3", {"pad_token_id": 0}),
    ],
)
def test_llama_cpp_computes_what_the_model_computes(tmp_path, tokenizer_folder, windows, family, settings):
    pytest.importorskip("cyllama")
    model = wide_model(family, **settings)
    write_gguf(model, tokenizer_folder, tmp_path / "model.gguf", kind_of("f32"))
    assert relative_error(model, tmp_path / "model.gguf", windows[0]) < TOLERANCE


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_written_where_it_is_a_tensor_of_its_own_whatever_the_config_says(
    tmp_path, tokenizer_folder, windows, tied, said
):
    pytest.importorskip("cyllama")
    model = retold(wide_model("granite", **GRANITE, tie_word_embeddings=tied), said)
    write_gguf(model, tokenizer_folder, tmp_path / "model.gguf", kind_of("f32"))
    names = {x.name for x in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert ("output.weight" in names) is not tied
    assert relative_error(model, tmp_path / "model.gguf", windows[0]) < TOLERANCE
    reason = why_no_gguf(retold(wide_model("qwen3", tie_word_embeddings=tied), said))
    assert reason is None if tied else "a qwen3 with a head of its own cannot be written" in reason


def retold(model, said):
    """A model whose config was edited."""
    model.config.tie_word_embeddings = said
    return model


def test_a_pruned_qwen2_keeps_its_biases_and_its_rotation(tmp_path, windows, monkeypatch):
    """Without the factors of the frequencies llama.cpp computes something else."""
    pytest.importorskip("cyllama")
    model = wide_model("qwen2", rope_parameters={**LLAMA3, "original_max_position_embeddings": 8})
    folder = pruned(model, [3, 20, 4, 7, 2, 40], tmp_path / "pruned")
    out = tmp_path / "model.gguf"
    export_gguf(folder, out, "f32")
    read = ff.load_pruned(folder)
    assert relative_error(read, out, windows[0]) < TOLERANCE
    real = gguf_file.tensors
    for left_out in ("rope_freqs", "blk.1.attn_k.bias"):

        def without(*args, left_out=left_out):
            return (pair for pair in real(*args) if not pair[0].startswith(left_out))

        monkeypatch.setattr(gguf_file, "tensors", without)
        export_gguf(folder, out, "f32")
        assert relative_error(read, out, windows[0]) > 4 * TOLERANCE


def test_the_matrices_of_a_pruned_phi3_are_taken_apart(tmp_path, windows):
    pytest.importorskip("cyllama")
    model = wide_model("phi3", pad_token_id=0)
    folder = pruned(model, [20, 7, 40], tmp_path / "pruned")  # attention stays whole
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    assert relative_error(ff.load_pruned(folder), tmp_path / "model.gguf", windows[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("opt", None, "a opt cannot be written as GGUF, llama.cpp has no architecture with sizes for every layer and"),
        ("gemma2", None, "norms behind each part; families that can are llama, mistral, qwen2, granite, phi3, qwen3"),
        ("qwen3", None, "a qwen3 with a head of its own cannot be written as GGUF: llama.cpp's openelm"),
        ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}, "a qwen3 with biases cannot be written"),
        ("qwen3", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}, "a qwen3 with rope type 'llama3' cannot"),
        ("phi3", {"pad_token_id": 0, "rope_parameters": PARTIAL}, "a phi3 that rotates a part of each head"),
        ("llama", {"hidden_act": "gelu"}, "rope type 'default' with 'gelu' cannot be written as GGUF; allowed are"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "rope type 'dynamic' with 'silu' cannot"),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused_in_one_line(family, settings, says):
    model = tiny_model(family) if settings is None else wide_model(family, **settings)
    reason = why_no_gguf(model)
    assert reason is not None
    assert says in reason
    assert "\n" not in reason
