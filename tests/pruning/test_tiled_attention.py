"""Attention in tiles: what plain attention computes, for whole windows alone; all else goes to torch's kernel."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_model

from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning import tiled_attention as module
from ffprune_env.pruning.tiled_attention import tiled_attention, use_tiled_attention


@pytest.fixture
def tiles(monkeypatch):
    """Counts the tiles' calls, on whatever processor this is."""
    calls = []

    def counted(*args):
        calls.append(args[0].shape)
        return tiled_attention(*args)

    monkeypatch.setattr(module, "_products_beat_the_kernel", lambda: True)
    monkeypatch.setattr(module, "tiled_attention", counted)
    return calls


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_causal_attention(tokens, scaling, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 8)
    q, k, v = torch.randn(3, 2, 3, tokens, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = q @ k.transpose(-1, -2) * (0.5 if scaling is None else scaling)
    expected = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf).softmax(-1) @ v
    torch.testing.assert_close(tiled_attention(q, k, v, scaling), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_measures_the_same(family, windows, tiles, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 8)  # three tiles of a window
    model = tiny_model(family).bfloat16()
    expected = window_losses(model, windows)
    use_tiled_attention(model)
    use_tiled_attention(model)  # a second call changes nothing
    torch.testing.assert_close(window_losses(model, windows), expected, rtol=0.02, atol=0.02)
    assert len(tiles) == 3 * len(windows)  # layers by windows


def test_a_window_shorter_than_the_text_is_left_to_the_mask(windows, tiles):
    model = tiny_model("mistral").bfloat16()  # its layers see 8 tokens back
    expected = window_losses(model, windows)
    use_tiled_attention(model)
    torch.testing.assert_close(window_losses(model, windows), expected)
    assert not tiles


@pytest.mark.parametrize("family", ["opt", "llama-gqa", "qwen2"])
def test_queries_with_a_bias_go_to_the_kernel(family, windows, tiles):
    """Their scores can be large, and what rounding does to them too."""
    model = tiny_model(family).bfloat16()
    use_tiled_attention(model)
    window_losses(model, windows)
    assert not tiles


def test_padding_caches_gradients_and_other_dtypes_go_to_the_kernel(windows, tiles):
    model = tiny_model("llama").bfloat16()
    use_tiled_attention(model)
    with torch.no_grad():
        padding = torch.ones_like(windows)
        padding[:, :5] = 0
        model(windows, attention_mask=padding)
        assert not tiles
        past = model(windows[:, :8]).past_key_values
        assert len(tiles) == 3
        model(windows[:, 8:], past_key_values=past)
    model(windows)
    window_losses(model.float(), windows)
    assert len(tiles) == 3


def test_other_implementations_stay(tiles):
    model = tiny_model("gemma2")
    use_tiled_attention(model)
    assert model.config._attn_implementation == "eager"
