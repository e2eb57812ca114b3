"""What is not what pruning takes it for stays whole or is refused by name when it is wrapped, and left as it was."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LLAMA_LIKE, tiny_model
from test_head import own_losses, tiny
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.units import find_units


def gemma3() -> nn.Module:
    """What AutoModelForCausalLM makes of gemma3: a vision tower before the decoder."""
    text = {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def test_units_are_those_of_the_decoder_that_makes_the_logits(windows):
    prunable = PrunableModel(gemma3())
    assert prunable.units[0].name == "model.language_model.layers.0.self_attn"
    assert [unit.layer for unit in prunable.units] == [0, 0, 1, 1, 2, 2]
    rng = np.random.default_rng(0)
    prunable.rank([rng.random(layout.n_members) for layout in prunable.layouts])
    dense = window_losses(prunable.model, windows)
    torch.testing.assert_close(dense, own_losses(prunable.model, windows).float())
    for i, unit in enumerate(prunable.units):
        kept = [other.n_groups for other in prunable.units]
        kept[i] = unit.n_groups // 2
        with prunable.pruned(kept):
            assert not torch.allclose(window_losses(prunable.model, windows), dense, rtol=1e-7)


def state_of(model):
    """All that wrapping touches."""
    modules = [(sorted(vars(m)), sorted(m._buffers), getattr(m, "num_key_value_groups", None)) for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return modules, hooks, model.config._attn_implementation, repr(model)


def refused(model, message):
    """Wrapping raises, and leaves weights, modules and random numbers as they were."""
    before, weights = state_of(model), {name: x.clone() for name, x in model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(ValueError, match=message) as raised:
        PrunableModel(model)
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.rand(1), expected)
    assert state_of(model) == before
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])


def stays_whole(model, message, layers, caplog):
    """The attention of some layers is no unit, which is said once, and its modules are what they were."""
    untouched = [
        attention for name, attention in model.named_modules() if re.search(rf"layers\.{layers}\.self_attn$", name)
    ]
    assert len(untouched) == len(layers)
    before = [sorted(vars(module)) + sorted(module._buffers) for module in untouched]
    caplog.clear()
    prunable = PrunableModel(model)
    assert list(prunable.whole) == layers
    assert all(re.search(message, reason) for reason in prunable.whole.values())
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert [sorted(vars(module)) + sorted(module._buffers) for module in untouched] == before
    kinds = [(unit.layer, unit.kind) for unit in prunable.units]
    assert kinds == sorted(kinds)
    assert {layer for layer, kind in kinds} - {layer for layer, kind in kinds if kind == "attention"} == {*layers}
    return prunable


@pytest.mark.parametrize("key_heads", [4, 2])
def test_heads_that_are_coupled_in_halves_stay_whole(key_heads, windows, caplog):
    model = tiny("diffllama", num_key_value_heads=key_heads)
    before, dense = copy.deepcopy(model), window_losses(model, windows)
    message = r"reordering the heads of model\.layers\.\d\.self_attn changes what it"
    prunable = stays_whole(model, message, [0, 1, 2], caplog)
    prunable.rank(wanda_scores(prunable, collect_statistics(prunable, windows)))
    torch.testing.assert_close(window_losses(model, windows), dense)
    kept = np.array([unit.n_groups // 2 for unit in prunable.units])
    for unit, members in zip(prunable.units, prunable.kept_groups(kept), strict=True):
        gone = np.setdiff1d(np.arange(unit.n_groups), members)
        before.get_submodule(unit.name).down_proj.weight.data[:, gone] = 0
    with prunable.pruned(kept):
        torch.testing.assert_close(window_losses(model, windows), window_losses(before, windows))


class Weighted(nn.Module):
    """Gives each channel a weight by its place."""

    def forward(self, x):
        return F.silu(x) * torch.linspace(1, 2, x.shape[-1], dtype=x.dtype)


class Padded(nn.Module):
    """Wants all channels."""

    def forward(self, x):
        return F.silu(x) * x.new_ones(24)


class Leaky(nn.Module):
    """A norm over all channels: the same in any order, and not the same without some."""

    def forward(self, x):
        return F.silu(x) / x.square().mean(dim=-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (
            Weighted(),
            r"reordering the channels of model\.layers\.1\.mlp changes what it computes \(channel \d+ is off by",
        ),
        (Padded(), r"model\.layers\.1\.mlp with half of its channels removed is not .* masked \(The size of tensor"),
        (
            Leaky(),
            r"model\.layers\.1\.mlp with half of its channels removed is not .* masked \(what it gives is off by",
        ),
    ],
)
def test_the_first_unit_at_fault_is_named(activation, message):
    model = tiny_model("llama")
    model.model.layers[1].mlp.act_fn = activation
    refused(model, r"LlamaForCausalLM cannot be pruned: " + message)


def test_an_attention_that_wants_all_its_heads_stays_whole(caplog):
    """Code that reads the number of heads where none looks fails with fewer: in every layer that has the same."""
    message = r"layers\.0\.self_attn with half of its heads removed is not what it is with them masked \(shape"
    model = tiny("xglm", d_model=32, attention_heads=4, ffn_dim=24).float()
    stays_whole(model, message, [0, 1, 2], caplog)


def test_a_unit_that_does_not_run_is_refused():
    model = tiny_model("llama-gqa")
    layer = model.model.layers[2]
    layer.mlp.forward = lambda x: x
    refused(model, r"model\.layers\.2\.mlp runs 0 times in a forward pass on text, it must run once")


def test_a_unit_that_runs_twice_is_refused():
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda module, inputs, output: output + type(mlp).forward(mlp, output))
    refused(model, r"model\.layers\.0\.mlp runs 2 times in a forward pass on text, it must run once")


def test_a_unit_that_does_not_reach_the_logits_stays_whole_or_is_refused(caplog):
    model = tiny_model("opt")
    layer = model.model.decoder.layers[2]
    layer.self_attn.register_forward_hook(lambda module, inputs, output: (torch.zeros_like(output[0]), None))
    stays_whole(model, r"what .*\.layers\.2\.self_attn gives does not reach the logits", [2], caplog)
    model = tiny_model("llama")
    model.model.layers[2].mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    refused(model, r"what model\.layers\.2\.mlp gives does not reach the logits")


def test_a_unit_of_zeros_is_none_of_our_business():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    PrunableModel(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_no_fault(family, dtype):
    for seed in range(3):
        PrunableModel(tiny_model(family, seed).to(dtype))


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "llama-gqa", "opt"])
def test_a_factor_per_head_is_not_taken_for_rounding(family, dtype, caplog):
    """One head of one layer says a tenth more, which is a hundredth of the logits: far less than bfloat16 rounds."""
    model = tiny_model(family).to(dtype)
    layout = find_units(model)[2]
    factors = torch.ones(layout.output.in_features, dtype=dtype)
    factors[layout.width : 2 * layout.width] = 1.1
    layout.output.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factors[: inputs[0].shape[-1]],))
    message = rf"reordering the heads of {layout.unit.name} changes what it computes \(head \d is off by 0\."
    stays_whole(model, message, [1], caplog)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_a_factor_of_a_channel_is_not_taken_for_rounding(dtype):
    model = tiny_model("llama").to(dtype)
    factors = torch.ones(24, dtype=dtype)
    factors[7] = 1.25
    model.model.layers[1].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: output * factors[: output.shape[-1]]
    )
    refused(model, r"reordering the channels of model\.layers\.1\.mlp changes what it computes \(channel \d+ is off")


class Rooted(nn.Module):
    """A norm over all channels, of which little is left in the logits."""

    def forward(self, x):
        return F.silu(x) / x.float().square().mean(dim=-1, keepdim=True).pow(0.1).to(x.dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_a_weak_norm_over_all_channels_is_not_taken_for_rounding(dtype):
    model = tiny_model("llama").to(dtype)
    model.model.layers[1].mlp.act_fn = Rooted()
    refused(
        model, r"model\.layers\.1\.mlp with half of its channels removed is not .* masked \(what it gives is off by"
    )


def attend_near_and_far(module, query, key, value, mask, **kwargs):
    """The first head sees no farther than twenty tokens back."""
    places = torch.arange(query.shape[2])
    hidden = places[:, None] < places
    far = (places[:, None] - places >= 20) & (torch.arange(query.shape[1]) < 1)[:, None, None]
    scores = ((query @ key.mT) * module.scaling).masked_fill(hidden | far, -1e4)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_heads_that_differ_after_twenty_tokens_stay_whole(dtype, caplog):
    AttentionInterface.register("near_and_far", attend_near_and_far)
    model = tiny_model("llama").to(dtype)
    model.set_attn_implementation("near_and_far")
    message = r"reordering the heads of model\.layers\.\d\.self_attn changes what it computes \(head \d is off by"
    stays_whole(model, message, [0, 1, 2], caplog)


def test_two_heads_of_one_layer_are_put_in_another_order(caplog):
    """A random order of two is the one that they have, half of the time."""
    config = AutoConfig.for_model("llama", **{**LLAMA_LIKE, "num_attention_heads": 2, "num_hidden_layers": 1})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    factors = torch.tensor([1.0, 1.2], dtype=torch.bfloat16).repeat_interleave(16)
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: (inputs[0] * factors[: inputs[0].shape[-1]],)
    )
    stays_whole(model, r"reordering the heads of model\.layers\.0\.self_attn changes what it computes", [0], caplog)


def test_a_model_that_takes_fewer_tokens_than_are_tried():
    config = AutoConfig.for_model("opt", **{**LLAMA_LIKE, "max_position_embeddings": 12, "word_embed_proj_dim": 32})
    PrunableModel(AutoModelForCausalLM.from_config(config).eval())


def test_wrapping_changes_nothing(family, windows):
    model = tiny_model(family).train()
    dense, names = copy.deepcopy(model), [name for name, _ in model.named_modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prunable = PrunableModel(model)
    assert torch.equal(torch.rand(1), expected)
    assert prunable.rankings == 0
    assert all(torch.equal(order, torch.arange(len(order))) for order in prunable.order)
    assert all(module.training for module in model.modules())
    assert [name for name, _ in model.named_modules()] == names
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    assert prunable.rankings == 1


def test_a_streamed_model_is_probed_too(save_tiny, windows, monkeypatch):
    model = load_model(str(save_tiny("llama")), "float32", device_map="auto", max_memory="1KB")[0]
    losses, hooks = window_losses(model, windows), [layout.output._hf_hook for layout in find_units(model)]
    model.model.layers[1].mlp.act_fn = Weighted()
    with pytest.raises(ValueError, match=r"reordering the channels of model\.layers\.1\.mlp"):
        PrunableModel(model)
    assert [layout.output._hf_hook for layout in find_units(model)] == hooks
    model.model.layers[1].mlp.act_fn = nn.SiLU()
    torch.testing.assert_close(window_losses(model, windows), losses, rtol=0, atol=0)
    PrunableModel(model)
