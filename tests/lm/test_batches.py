"""Windows per forward pass: chosen, halved where memory runs out, and of no influence on what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.lm.batches import fitting_size, in_fitting_batches
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics


class Small:
    """Memory for so many windows: a forward hook on the last layer that fails as the allocators do."""

    def __init__(self, model, windows, message="CUDA out of memory. Tried to allocate 2.00 GiB."):
        self.windows, self.message, self.seen = windows, message, []
        model.get_decoder().layers[-1].register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.windows:
            raise torch.OutOfMemoryError(self.message) if "CUDA" in self.message else RuntimeError(self.message)


@pytest.fixture
def eight():
    return torch.randint(1, 256, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried.", "[enforce fail] DefaultCPUAllocator: can't allocate memory"]
)
@pytest.mark.parametrize("fits", [1, 2, 3])
def test_what_does_not_fit_is_halved_logged_and_right(eight, fits, message, caplog):
    model = tiny_model("llama-gqa")
    wanted = window_losses(model, eight, 1)
    memory = Small(model, fits, message)
    np.testing.assert_allclose(window_losses(model, eight, 8), wanted, rtol=1e-6)
    assert memory.seen[-1] == min(size for size in (1, 2, 4) if 2 * size > fits)
    assert "out of memory with 8 windows at once: going on with 4" in caplog.text
    tried = len(memory.seen)
    window_losses(model, eight, 8)  # it is known by now
    assert memory.seen[tried:] == memory.seen[-1:] * (8 // memory.seen[-1])


def test_statistics_begin_again(eight):
    whole = collect_statistics(PrunableModel(tiny_model("llama")), eight, batch_size=1)
    prunable = PrunableModel(tiny_model("llama"))
    Small(prunable.model, 3)
    halved = collect_statistics(prunable, eight, batch_size=8)
    for a, b in zip(whole.grams, halved.grams, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(whole.means, halved.means, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_divergence_too(eight):
    model = tiny_model("llama")
    dense = final_hidden_states(model, eight, 1)
    wanted = compare_with_dense(model, eight, [x + 0.1 for x in dense], 1)
    Small(model, 3)
    assert compare_with_dense(model, eight, [x + 0.1 for x in dense], 8) == pytest.approx(wanted, rel=1e-6)


def test_other_failures_and_the_last_window_are_not_caught(eight):
    model = tiny_model("llama")
    Small(model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        window_losses(model, eight, 8)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        in_fitting_batches(model, eight, 8, lambda size: torch.ones(2, 3) @ torch.ones(2, 3))


def test_a_processor_is_given_what_keeps_it_busy():
    model, sizes = tiny_model("llama"), []
    for length in (64, 1024, 2048):
        in_fitting_batches(model, torch.ones(100, length), None, sizes.append)
    assert sizes == [32, 2, 1]


def test_what_fitted_is_a_number_of_tokens_and_holds_for_windows_of_any_length(eight):
    model = tiny_model("llama")
    Small(model, 2)
    window_losses(model, eight, 8)
    openings = eight.reshape(-1, 1)
    assert fitting_size(model, eight, 8) == 2
    assert fitting_size(model, openings, None) == 2 * eight.shape[1]
    assert fitting_size(model, torch.cat([eight] * 3, dim=1), 8) == 1
