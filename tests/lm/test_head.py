"""Logits are the model's own, whatever it does with the output of its decoder; so is all that is made of them."""

from __future__ import annotations

import gc
import logging
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LLAMA_LIKE, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from ffprune_env.lm import head, loss
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.lm.head import head_of
from ffprune_env.lm.loss import perplexity, window_losses
from ffprune_env.lm.probing import usual_error
from ffprune_env.pruning.backward import back_propagate, without_parameter_gradients
from ffprune_env.pruning.prunable import PrunableModel

MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
#: What comes between the last hidden state and the logits: factors, caps, a transform.
MORE_THAN_A_PROJECTION = {
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "falcon_h1": {**MAMBA, "mamba_expand": 1, "lm_head_multiplier": 0.3, "head_dim": 8},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 0.5},
    "nanochat": {"final_logit_softcapping": 0.5},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "bert": {"is_decoder": True},
    "electra": {"is_decoder": True, "embedding_size": 32},
}


def tiny(model_type: str, seed: int = 0, **settings: object) -> torch.nn.Module:
    config = AutoConfig.for_model(model_type, **{**LLAMA_LIKE, "num_key_value_heads": 4, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def own_losses(model, windows):
    with torch.no_grad():
        logits = model(input_ids=windows, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].mT, windows[:, 1:], reduction="none").mean(dim=1)


@pytest.mark.parametrize("model_type", MORE_THAN_A_PROJECTION)
def test_the_loss_is_the_models_own_where_logits_are_more_than_a_projection(model_type, windows, monkeypatch):
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 5 * 4 * 256)  # five rows
    model = tiny(model_type, **MORE_THAN_A_PROJECTION[model_type])
    assert head_of(model).route == "own head"
    torch.testing.assert_close(window_losses(model, windows, 2), own_losses(model, windows).float())


def test_remote_code_that_divides_its_logits_is_measured_by_its_own_forward(windows, caplog):
    model = tiny_model("llama")
    forward = model.forward

    def divided(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = divided
    caplog.set_level(logging.INFO)
    for _ in range(2):
        torch.testing.assert_close(window_losses(model, windows), own_losses(model, windows).float())
    assert caplog.text.count("LlamaForCausalLM: logits are more than a vocabulary projection") == 1


class Odd(type(tiny_model("llama"))):
    """Adds to the logits what no hidden state knows."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + F.one_hot(input_ids, output.logits.shape[-1]) * 9
        return output


def test_logits_made_of_more_than_hidden_states_are_measured_and_not_pruned(windows, caplog):
    model = Odd(tiny_model("llama").config).double().eval()
    assert head_of(model).route == "whole"
    torch.testing.assert_close(window_losses(model, windows, 3), own_losses(model, windows).float())
    assert "Odd: logits are made by its own forward pass, a window at a time" in caplog.text
    with pytest.raises(ValueError, match="Odd has no hidden states that give its logits: it can be measured"):
        final_hidden_states(model, windows)
    with pytest.raises(ValueError, match="Odd cannot be pruned: its logits are made of more than the output"):
        PrunableModel(model)


class Recalls(type(tiny_model("llama"))):
    """Adds the logits of twelve tokens before, where there are any."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + F.pad(output.logits, (0, 0, 12, 0))[:, : output.logits.shape[1]]
        return output


class Sharpens(type(tiny_model("llama"))):
    """Multiplies logits by the logarithm of their place, from the twelfth on."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        place = torch.arange(1, output.logits.shape[1] + 1).clamp(min=12)
        output.logits = output.logits * place.log()[:, None]
        return output


@pytest.mark.parametrize("kind", [Recalls, Sharpens])
def test_what_happens_far_inside_a_window_only_is_seen_on_the_first_one(kind, windows, caplog):
    model = kind(tiny_model("llama").config).double().eval()
    assert head_of(model).route != "whole"
    torch.testing.assert_close(window_losses(model, windows, 3), own_losses(model, windows).float())
    assert f"{kind.__name__}: logits are made by its own forward pass, a window at a time" in caplog.text
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot be pruned: its logits are made of more than the out"):
        PrunableModel(model)


class Scaled(type(tiny_model("llama"))):
    """Scales what comes out of its embedding, and what goes into its head, in its own forward pass."""

    def forward(self, input_ids, **kwargs):
        hidden = self.model(inputs_embeds=self.model.embed_tokens(input_ids) * 7, **kwargs).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden / 3).clamp(-2, 2))


def test_embeddings_that_the_model_scales_before_its_decoder(windows):
    model = Scaled(tiny_model("llama").config).double().eval()
    model.lm_head = nn.Linear(32, 256, dtype=torch.float64)  # tied, and with a bias
    model.lm_head.weight = model.model.embed_tokens.weight
    assert head_of(model).route == "own head"
    torch.testing.assert_close(window_losses(model, windows, 2), own_losses(model, windows).float())
    prunable = PrunableModel(model)
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    with prunable.pruned([2, 10] * 3):
        torch.testing.assert_close(window_losses(model, windows, 2), own_losses(model, windows).float())


def test_soft_caps_of_large_logits_are_seen_where_the_probe_makes_small_ones(windows):
    model = tiny("recurrent_gemma", **MORE_THAN_A_PROJECTION["recurrent_gemma"] | {"logits_soft_cap": 1e5})
    model.lm_head.weight.data *= 1e-3
    assert head_of(model.float()).route == "own head"


def test_a_model_that_sees_the_future_is_refused(windows):
    with pytest.raises(ValueError, match=r"BertLMHeadModel cannot be measured: a token changes the logits of those"):
        perplexity(tiny("bert", is_decoder=False), windows)


def test_divergence_is_of_the_models_own_logits(windows):
    prunable = PrunableModel(tiny("granite", **MORE_THAN_A_PROJECTION["granite"]))
    model, kept = prunable.model, [2, 10] * 3
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    dense = final_hidden_states(model, windows)
    with torch.no_grad():
        p = model(windows).logits.log_softmax(-1)
        with prunable.pruned(kept):
            q = model(windows).logits.log_softmax(-1)
            ppl, kl = compare_with_dense(model, windows, dense, 2)
            expected = own_losses(model, windows)
    assert kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert ppl == pytest.approx(math.exp(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("model_type", ["granite", "falcon_h1", "gemma2"])
def test_gradients_are_those_of_the_models_own_loss(model_type, windows):
    model = tiny(model_type, **MORE_THAN_A_PROJECTION[model_type])
    down = model.get_decoder().layers[1].get_submodule("feed_forward" if model_type == "falcon_h1" else "mlp")
    gradients = []

    def note(module, inputs, output):
        output.register_hook(lambda gradient: gradients.append(gradient.clone()))

    head_of(model)
    hook = down.down_proj.register_forward_hook(note)
    with without_parameter_gradients(model):
        back_propagate(model, windows[:1])
    model.zero_grad()
    logits = model(input_ids=windows[:1], use_cache=False).logits
    F.cross_entropy(logits[0, :-1], windows[0, 1:], reduction="sum").backward()
    hook.remove()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)  # the loss is taken in float32


def test_the_comparison_leaves_nothing_behind(windows):
    model = tiny("gemma2", **MORE_THAN_A_PROJECTION["gemma2"]).train()
    model.model.layers[1].eval()
    training = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    head_of(model)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model.modules()] == training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any("forward" in vars(module) for module in model.modules())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def with_cap(model):
    model.config.final_logit_softcapping = 0.5


def with_scale(model):
    model.logit_scale = 0.5


def with_hook_on_head(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output / 2)


def with_hook_on_the_model(model):
    def halve(module, inputs, output):
        output.logits = output.logits / 2

    model.register_forward_hook(halve)


def with_hook_on_decoder(model):
    def halve(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state / 2

    model.model.register_forward_hook(halve)


def with_another_head(model):
    head = nn.Linear(32, 256, bias=False, dtype=torch.float64)
    model.lm_head = nn.Sequential(head, nn.Tanh())


def with_another_forward(model):
    forward = model.forward

    def halved(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved


def with_a_buffer_in_place(model):
    model.shift.add_(torch.arange(256) / 64)


def with_another_class(model):
    model.__class__ = Sharpens


class Shifted(type(tiny_model("llama"))):
    """Adds what it holds to its logits, which is nothing at first."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + self.shift
        return output


CHANGES = {
    "gemma2": [with_cap],
    "cohere": [with_scale],
    "llama": [
        with_hook_on_head,
        with_hook_on_the_model,
        with_hook_on_decoder,
        with_another_head,
        with_another_forward,
        with_a_buffer_in_place,
        with_another_class,
    ],
}
UNSCALED = {"cohere": {"logit_scale": 1.0}, "gemma2": {"head_dim": 8, "final_logit_softcapping": None}}


@pytest.mark.parametrize(
    ("model_type", "change"), [(kind, change) for kind, changes in CHANGES.items() for change in changes]
)
@pytest.mark.parametrize("measure", [window_losses, lambda *args: perplexity(*args)], ids=["losses", "perplexity"])
def test_what_is_changed_after_a_first_look_is_seen(model_type, change, measure, windows):
    model = tiny(model_type, **UNSCALED.get(model_type, {}))
    if change is with_a_buffer_in_place:
        model.register_buffer("shift", torch.zeros(256, dtype=torch.float64))
        model.__class__ = Shifted
    measure(model, windows)
    before = own_losses(model, windows)
    change(model)
    expected = own_losses(model, windows).float()
    assert not torch.allclose(expected, before.float(), rtol=1e-3)
    if measure is window_losses:
        torch.testing.assert_close(measure(model, windows), expected)
    else:
        assert measure(model, windows) == pytest.approx(math.exp(expected.mean()), rel=1e-5)


def test_what_leaves_no_trace_is_seen_by_the_public_perplexity(windows):
    model, factor = tiny_model("llama"), [1.0]
    model.lm_head.register_forward_hook(lambda module, inputs, output: (output * factor[0]).clamp(-3 / factor[0]))
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * factor[0]
        return output

    model.forward = scaled
    perplexity(model, windows)
    factor[0] = 0.5
    assert perplexity(model, windows) == pytest.approx(math.exp(own_losses(model, windows).mean()), rel=1e-5)


def test_what_wrapping_pruning_and_training_do_to_a_model_is_no_change(windows, monkeypatch):
    model = tiny("llama", num_key_value_heads=2)
    looks, look = [], head._compare
    monkeypatch.setattr(head, "_compare", lambda model: looks.append(1) or look(model))
    first = window_losses(model, windows)
    prunable = PrunableModel(model)
    prunable.rank([np.arange(layout.n_members) for layout in prunable.layouts])
    with prunable.pruned([2, 10] * 3):
        assert not torch.allclose(window_losses(model, windows), first)
    model.train()
    with without_parameter_gradients(model):
        back_propagate(model, windows[:1])
    torch.testing.assert_close(window_losses(model, windows), first)
    assert len(looks) == 1


def test_a_model_that_gave_no_numbers_is_looked_at_again_when_it_does(windows):
    model = tiny("granite", **MORE_THAN_A_PROJECTION["granite"])
    norm = model.model.layers[0].input_layernorm.weight.data
    scale = norm.clone()
    norm.fill_(math.nan)
    assert math.isinf(perplexity(model, windows))
    norm.copy_(scale)
    torch.testing.assert_close(window_losses(model, windows), own_losses(model, windows).float())


def test_the_usual_error_lets_one_window_of_three_be_odd_but_no_number_missing():
    expected = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    got = expected.clone()
    got[1] *= 5
    assert usual_error(got, expected) == 0
    got[2] *= 5
    assert usual_error(got, expected) == pytest.approx(4)
    for broken in (0, 1, 2):
        got = expected.clone()
        got[broken] = math.nan
        assert math.isnan(usual_error(got, expected))
