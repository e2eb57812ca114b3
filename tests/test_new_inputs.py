"""Inputs of the kinds that were once wrong in silence, chosen by someone who had not seen the fixes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LLAMA_LIKE, byte_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from plain import plain
from safetensors.torch import load_file, save_file
from test_context import one_layer
from test_head import own_losses, tiny
from test_pruned_again import masked
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.lm.head import head_of
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import context_length, load_model
from ffprune_env.methods.rebuilding.slicegpt import slicegpt
from ffprune_env.methods.rebuilding.svd_llm import svd_llm
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import fluctuations
from ffprune_env.pruning.units import find_units
from ffprune_env.search.samples import Archive, Sample

ON_DISK = {"device_map": "auto", "max_memory": "1KB"}
KEPT = [3, 20, 4, 7, 1, 24]


def ranked(model, seed=0, **options):
    prunable = PrunableModel(model, **options)
    rng = np.random.default_rng(seed)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    return prunable


@pytest.mark.parametrize("options", [{}, ON_DISK], ids=["whole", "disk"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("lost", "1 tensor is missing (model.layers.1.mlp.up_proj.weight);"),
        ("twice", "both hold model.layers.1.mlp.up_proj.weight; keep one of them"),
    ],
)
def test_an_index_that_is_not_what_its_shards_hold(tmp_path, change, says, options):
    """The index names every tensor; a shard lacks one that it lists, or another shard has one of its own."""
    tiny_model("llama-gqa").float().save_pretrained(tmp_path, max_shard_size="20KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    shard = tmp_path / (places[name] if change == "lost" else max(set(places.values()) - {places[name]}))
    weights = load_file(shard)
    if change == "twice":
        weights[name] = torch.ones(24, 32)
    else:
        del weights[name]
    save_file(weights, shard, metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(str(tmp_path), "float32", **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


ROPE = {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
SCALINGS = {
    "yarn": {**ROPE, "attention_factor": 0.7, "beta_fast": 8.0},
    "longrope": {**ROPE, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 7.0]},
    "dynamic": {"rope_theta": 1e4, "factor": 4.0},
}


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_biases_of_three_projections_a_scaled_rope_and_a_vocabulary_that_grew(tmp_path, windows, rope_type):
    """Qwen2 on more tokens than it was first trained with; embeddings tied, and more of them, after it was loaded."""
    longest = 16 if rope_type == "dynamic" else 128
    rope = {"rope_type": rope_type, **SCALINGS[rope_type]}
    model = tiny("qwen2", rope_parameters=rope, max_position_embeddings=longest, tie_word_embeddings=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    model.resize_token_embeddings(272, mean_resizing=False)
    prunable = ranked(model)
    dense = own_losses(model, windows)
    with prunable.pruned(KEPT) as pruned:
        expected = own_losses(pruned, windows)
    assert (expected - dense).abs().max() > 1e-3
    ff.save_pruned(prunable, KEPT, tmp_path / "out")
    again = ff.load_pruned(tmp_path / "out")
    torch.testing.assert_close(own_losses(again, windows), expected, rtol=0, atol=1e-9)
    assert sum(x.numel() for x in again.parameters()) == prunable.params(KEPT)


def test_a_norm_of_zeros_after_a_unit_is_heard_by_nobody():
    """Gemma's norms have a scale of 1 + weight: -1 leaves out the layer's FFN, whatever its own weights are."""
    model = tiny_model("gemma2")
    nn.init.constant_(model.model.layers[1].post_feedforward_layernorm.weight, -1)
    with pytest.raises(ValueError, match=r"what model\.layers\.1\.mlp gives does not reach the logits"):
        PrunableModel(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_heads_with_a_temperature_each_that_no_weight_tells(dtype):
    model = tiny_model("llama").to(dtype)
    for layer in model.model.layers:
        factors = torch.tensor([1.0, 1.3, 1.6, 2.0], dtype=dtype).repeat_interleave(8)
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, out, f=factors: out * f[: out.shape[-1]])
    prunable = PrunableModel(model)
    assert {unit.kind for unit in prunable.units} == {"ffn"}
    assert list(prunable.whole) == [0, 1, 2]
    assert all("reordering the heads" in reason for reason in prunable.whole.values())


def test_a_head_with_a_bias_and_a_temperature_that_a_hook_adds(windows):
    model = tiny("phi")
    model.lm_head.bias.data *= 30

    def cool(module, inputs, output):
        output.logits = output.logits / 3
        return output

    model.register_forward_hook(cool)
    assert head_of(model).route == "own head"
    torch.testing.assert_close(window_losses(model, windows), own_losses(model, windows).float())


@pytest.mark.parametrize(
    ("kind", "changes", "most"),
    [
        ("data2vec-text", {"is_decoder": True, "pad_token_id": 1}, 62),
        ("biogpt", {}, 64),
        ("codegen", {"n_embd": 32, "n_positions": 64, "rotary_dim": 4}, 64),
        ("trocr", {"d_model": 32, "decoder_layers": 1}, 64),
    ],
)
def test_positions_that_are_counted_from_elsewhere(kind, changes, most):
    model = one_layer(kind, {"max_position_embeddings": 64, **changes})
    assert context_length(model) == most
    with torch.no_grad():
        model(torch.full((1, most), 5))
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.full((1, most + 1), 5))


ASKS_NOTHING = """
import sys
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
folder = sys.argv[1]
assert len(AutoConfig.from_pretrained(folder).num_attention_heads_per_layer) == 3
assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [64, 65, 66]
GenerationConfig.from_pretrained(folder)
assert not any(name.startswith("ffprune_env") for name in sys.modules)
"""


def test_a_process_whose_standard_input_is_closed(tmp_path):
    ff.save_pruned(ranked(tiny_model("mistral").float()), KEPT, tmp_path / "out", tokenizer=byte_tokenizer())
    closed = ["bash", "-c", 'exec "$@" <&-', "x", sys.executable, "-c", ASKS_NOTHING, str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(closed, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


@pytest.mark.parametrize("family", ["llama-gqa", "opt"])
def test_pruned_five_times_in_groups_that_do_not_divide_what_is_left(tmp_path, windows, family):
    model = tiny_model(family)
    for step, channels in enumerate([1, 4, 3, 5, 2]):
        reference = copy.deepcopy(model)
        prunable = ranked(model, step, channels_per_group=channels)
        kept = [max(1, unit.n_groups * 2 // 3) for unit in prunable.units]
        expected = own_losses(masked(reference, prunable.kept_groups(kept)), windows)
        with prunable.pruned(kept) as pruned:
            torch.testing.assert_close(own_losses(pruned, windows), expected, rtol=0, atol=1e-9)
        ff.save_pruned(prunable, kept, tmp_path / str(step))
        model = ff.load_pruned(tmp_path / str(step))
        torch.testing.assert_close(own_losses(model, windows), expected, rtol=0, atol=1e-9)
        assert sum(x.numel() for x in model.parameters()) == prunable.params(kept)
    assert max(model.config.intermediate_size_per_layer) < LLAMA_LIKE["intermediate_size"] // 3


def test_a_model_in_training_mode_is_measured_as_it_will_be_used(windows):
    """Dropout and layerdrop made every figure of a model that was left in training mode another one."""
    config = AutoConfig.for_model("opt", **{**LLAMA_LIKE, "ffn_dim": 24, "word_embed_proj_dim": 32})
    config.update({"layerdrop": 0.5, "dropout": 0.3})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    prunable = PrunableModel(model)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    expected = window_losses(model, windows)
    statistics = ff.collect_statistics(prunable, windows)
    curves = damage_curves(prunable, windows)
    model.train()
    assert torch.equal(window_losses(model, windows), expected)
    assert all(map(torch.equal, ff.collect_statistics(prunable, windows).grams, statistics.grams))
    assert all(map(np.array_equal, damage_curves(prunable, windows), curves))
    assert all(module.training for module in model.modules())


def attend_in_two_ways(module, query, key, value, mask, **kwargs):
    """The first two heads see no farther than forty tokens back, as some models save memory."""
    places = torch.arange(query.shape[2])
    hidden = places[:, None] < places
    far = (places[:, None] - places >= 40) & (torch.arange(query.shape[1]) < 2)[:, None, None]
    scores = ((query @ key.mT) * module.scaling).masked_fill(hidden | far, -1e9)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def test_heads_that_differ_far_inside_a_window_only(text_file):
    """A few tokens cannot tell them apart, and the search would begin with another model than it was given."""
    AttentionInterface.register("two_ways", attend_in_two_ways)
    model = tiny_model("llama")
    model.set_attn_implementation("two_ways")
    options = {"seq_len": 64, "search_windows": 2, "calibration_windows": 2}
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM cannot be pruned: on 64 tokens of text its perplexity is 2\d+\.\d+, and 2"
    ) as caught:
        build_evaluator(model, byte_tokenizer(), str(text_file), plain(**options))
    assert "\n" not in str(caught.value)
    build_evaluator(tiny_model("llama"), byte_tokenizer(), str(text_file), plain(**options))


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1), st.sampled_from([0.1985, 0.2])), min_size=1, max_size=30))
def test_four_fidelities_and_two_sparsities_in_one_archive(drawn):
    """Whatever was measured on more windows is ahead, and of as many the best are kept."""
    archive = Archive(0.2, size=3)
    samples = []
    for step, (n_samples, reward, sparsity) in enumerate(drawn):
        kept, empty = np.array([step + 1, 1]), np.zeros(2)
        samples.append(
            Sample(step, sparsity, n_samples, empty, kept, empty, sparsity, 10.0, 10.0, reward, reward == 0, 0.1)
        )
        archive(samples[-1])
    expected = sorted(((x.n_samples, x.reward) for x in samples), reverse=True)[:3]
    assert [(x.n_samples, x.reward) for x in archive.best()] == expected


@pytest.mark.parametrize("sparsity", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_baselines_of_one_short_window_in_bfloat16_with_a_tied_head(windows, kind, sparsity):
    """Each removes what it was asked for and little more, and is still a model."""
    sizes = {"hidden_size": 64, "tie_word_embeddings": True}
    changes = {"opt": {"ffn_dim": 256, "word_embed_proj_dim": 64}, "llama": {"intermediate_size": 256}}
    model = tiny(kind, **LLAMA_LIKE | sizes | changes[kind]).bfloat16()
    dense = sum(x.numel() for x in model.parameters())
    wanted = round(sparsity * sum(layout.unit.n_params for layout in find_units(model)))
    for rebuild in (svd_llm, slicegpt):
        small = rebuild(model, windows[:1], wanted)
        removed = dense - sum(x.numel() for x in small.parameters())
        assert wanted <= removed < 1.1 * wanted
        assert np.isfinite(ff.perplexity(small, windows))


def test_fluctuations_of_columns_that_hardly_fluctuate(windows):
    """Their mean is a hundred deviations away, as of some columns of smollm2-135m, where sums of squares cancel."""
    model = tiny_model("opt").float()
    for layer in model.model.decoder.layers:
        layer.fc1.bias.data += 400
        layer.fc1.weight.data *= 30
    prunable = PrunableModel(model)
    seen: list[torch.Tensor] = []
    hook = prunable.layouts[1].output.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(windows)
    hook.remove()
    columns = seen[0].double()
    assert 80 < (columns.mean(0) / columns.std(0)).max() < 200
    expected = columns.var(0, correction=0) * prunable.layouts[1].output.weight.double().square().sum(0)
    found = fluctuations(prunable, ff.collect_statistics(prunable, windows))[1]
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
