"""Perplexity: equal to what the model itself says, in chunks, and never silent about a broken window."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_model

from ffprune_env.lm import loss
from ffprune_env.lm.loss import perplexity, window_losses


def test_the_loss_is_the_models_own(family, windows):
    model = tiny_model(family)
    losses = window_losses(model, windows, batch_size=2)
    with torch.no_grad():
        expected = torch.stack([model(w[None], labels=w[None]).loss for w in windows]).float()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert perplexity(model, windows) == pytest.approx(math.exp(expected.double().mean()), rel=1e-5)


def test_chunks_change_nothing(windows, monkeypatch):
    model = tiny_model("llama")
    whole = window_losses(model, windows)
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 5 * 4 * 256)  # five rows
    torch.testing.assert_close(window_losses(model, windows), whole)


def test_no_logits_of_a_whole_window_are_made(windows, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(loss, "_LOGIT_BYTES", 5 * 4 * 256)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    window_losses(model, windows)  # what is compared with the model's own logits is compared now
    rows.clear()
    window_losses(model, windows)
    assert max(rows) == 5


def test_a_window_that_is_not_finite_makes_it_inf_and_says_so(windows, caplog):
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[windows[1, 3]] = torch.nan
    assert perplexity(model, windows) == math.inf
    assert "of 3 windows have no finite loss" in caplog.text


def test_a_loss_too_large_for_exp_is_inf(windows):
    model = tiny_model("llama")
    model.lm_head.weight.data *= 1e6
    assert perplexity(model, windows) == math.inf


def test_windows_longer_than_the_context_are_refused():
    model = tiny_model("opt")
    window_losses(model, torch.ones((1, 128), dtype=torch.int64))
    with pytest.raises(ValueError, match="windows have 129 tokens, the model takes at most 128"):
        window_losses(model, torch.ones((1, 129), dtype=torch.int64))


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)])
def test_windows_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="windows must be"):
        window_losses(tiny_model("llama"), torch.ones(shape, dtype=torch.int64))
