"""A pruned model that was written computes what it computed in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from pruned_models import PROMPT, WRITTEN, logits, ranked
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ffprune_env as ff


@pytest.fixture(scope="module", params=WRITTEN)
def written(request, tmp_path_factory):
    """A calibrated pruned model on disk, with the logits and the greedy continuation it had in memory."""
    prunable, calibration, kept = ranked(request.param)
    folder = tmp_path_factory.mktemp("written") / request.param
    with prunable.pruned(kept, calibration) as model:
        expected = logits(model, PROMPT)
        continued = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=12, do_sample=False)
    ff.save_pruned(prunable, kept, folder, tokenizer=byte_tokenizer(), calibration=calibration)
    return folder, prunable, kept, expected, continued


def test_what_is_loaded_computes_what_was_saved(written):
    folder, prunable, kept, expected, _ = written
    model = ff.load_pruned(folder)
    assert model.dtype == torch.float64
    assert not model.training
    torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-9)
    assert sum(p.numel() for p in model.parameters()) == prunable.params(kept)
    stored = load_file(folder / "model.safetensors")
    heads, channels = kept[0::2].tolist(), kept[1::2].tolist()
    assert model.config.num_attention_heads_per_layer == heads
    assert model.config.intermediate_size_per_layer == channels
    head_dim = prunable.layouts[0].width
    for i, layer in enumerate(model.get_decoder().layers):
        assert layer.self_attn.q_proj.out_features == heads[i] * head_dim
        assert (layer.fc2 if hasattr(layer, "fc2") else layer.mlp.down_proj).in_features == channels[i]
    weights = sum(t.numel() for name, t in stored.items() if not name.endswith("kv_index"))
    assert weights == prunable.params(kept)  # a shared embedding is written once


def test_plain_auto_classes_load_it_without_trust(written):
    folder, _, _, expected, _ = written
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__ == "ffprune_env.modeling.modeling_ffprune"
    torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-9)
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == byte_tokenizer()("abc")["input_ids"]
    named, _ = ff.load_model(str(folder), dtype="float32")
    torch.testing.assert_close(logits(named, PROMPT), expected.float(), rtol=0, atol=1e-3)


def test_generation_uses_the_cache(written):
    folder, _, _, _, continued = written
    model = ff.load_pruned(folder)
    mask = torch.ones_like(PROMPT)
    for cache in (True, False):
        again = model.generate(PROMPT, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=cache)
        assert torch.equal(again, continued)
    static = model.generate(
        PROMPT, attention_mask=mask, max_new_tokens=12, do_sample=False, cache_implementation="static"
    )
    assert torch.equal(static, continued)


def test_padding_does_not_change_what_is_generated(written):
    folder, _, _, _, continued = written
    model = ff.load_pruned(folder)
    short, long = PROMPT[:, :3], PROMPT
    padded = torch.cat([torch.cat([torch.zeros(1, 2, dtype=torch.int64), short], 1), long])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = model.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    alone = model.generate(short, attention_mask=torch.ones_like(short), max_new_tokens=12, do_sample=False)
    assert torch.equal(both[0, 5:], alone[0, 3:])
    assert torch.equal(both[1], continued[0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_kernel_can_be_chosen(written, implementation):
    folder, _, _, expected, _ = written
    chosen = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    switched = ff.load_pruned(folder)
    switched.set_attn_implementation(implementation)
    for model in (chosen, switched):
        assert implementation in model.config._attn_implementation
        torch.testing.assert_close(logits(model, PROMPT), expected, rtol=0, atol=1e-6)  # eager takes softmax in float32


def test_flash_attention_is_refused_where_keys_are_shared(tmp_path):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    model = ff.load_pruned(tmp_path / "out")
    with pytest.raises(ValueError, match="attention 'flash_attention_2' cannot read keys by index"):
        model.set_attn_implementation("flash_attention_2")
    with prunable.pruned(kept) as expected:
        torch.testing.assert_close(logits(model, PROMPT), logits(expected, PROMPT), rtol=0, atol=1e-9)


def test_layers_that_lost_no_query_heads_run_as_they_always_did(tmp_path):
    prunable, calibration, kept = ranked("llama-gqa")
    kept[2] = prunable.units[2].n_groups
    ff.save_pruned(prunable, kept, tmp_path / "out", calibration=calibration)
    model = ff.load_pruned(tmp_path / "out")
    layers = model.model.layers
    assert [hasattr(layer.self_attn, "kv_index") for layer in layers] == [True, False, False]
    assert [layer.self_attn.num_key_value_groups for layer in layers] == [1, 2, 1]
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with prunable.pruned(kept, calibration) as expected:
            torch.testing.assert_close(logits(model, PROMPT), logits(expected, PROMPT), rtol=0, atol=1e-6)


def test_saving_again_round_trips(written, tmp_path):
    folder, _, _, expected, _ = written
    model = ff.load_pruned(folder)
    model.save_pretrained(tmp_path / "again")
    again = ff.load_pruned(tmp_path / "again")
    assert torch.equal(logits(again, PROMPT), logits(model, PROMPT))
    torch.testing.assert_close(logits(again, PROMPT), expected, rtol=0, atol=1e-9)
    for name in (*(path.name for path in folder.glob("*.py")), "config.json"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()


def test_without_calibration_and_in_original_order(tmp_path):
    prunable, _, kept = ranked("llama")
    groups = prunable.kept_groups(kept)
    dense = {name: p.detach().clone() for name, p in tiny_model("llama").state_dict().items()}
    ff.save_pruned(prunable, kept, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(stored[name], dense[name][:, groups[3]])
    rows = (groups[2][:, None] * 8 + np.arange(8)).ravel()
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(stored[name], dense[name][rows])


def test_torch_compile_computes_the_same(written):
    folder, _, _, expected, _ = written
    model = ff.load_pruned(folder)
    compiled = torch.compile(
        model, backend="aot_eager", fullgraph=True
    )  # the whole graph is captured, not its code made
    torch.testing.assert_close(logits(compiled, PROMPT, use_cache=False), expected, rtol=0, atol=1e-9)


def test_generation_can_be_compiled(tmp_path):
    prunable, calibration, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out", calibration=calibration)
    model = ff.load_pruned(tmp_path / "out")
    settings = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(PROMPT, **settings)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    assert torch.equal(model.generate(PROMPT, cache_implementation="static", **settings), expected)
