"""Statistics of activations, and Wanda scores, against the obvious computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores, wifv_scores


def recorded_inputs(prunable, windows):
    """Inputs X of every output projection, [tokens, columns], kept whole."""
    inputs, hooks = [], []
    for layout in prunable.layouts:
        hooks.append(layout.output.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2))))
    with torch.no_grad():
        prunable.model(windows)
    for hook in hooks:
        hook.remove()
    return inputs


def test_statistics_are_second_moments(family, windows):
    prunable = PrunableModel(tiny_model(family))
    inputs = recorded_inputs(prunable, windows)
    stats = collect_statistics(prunable, windows, gram=True, batch_size=2)
    norms_only = collect_statistics(prunable, windows, gram=False)
    assert stats.n_tokens == windows.numel()
    assert norms_only.grams is None
    for i, x in enumerate(inputs):
        torch.testing.assert_close(stats.grams[i], (x.T @ x).float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats.square_norms[i], x.square().sum(0).float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms_only.square_norms[i], stats.square_norms[i], rtol=1e-4, atol=1e-4)


def test_wanda_is_the_norm_of_the_input_times_that_of_the_column(family, windows):
    prunable = PrunableModel(tiny_model(family))
    inputs = recorded_inputs(prunable, windows)
    scores = wanda_scores(prunable, collect_statistics(prunable, windows, gram=False))
    for layout, x, score in zip(prunable.layouts, inputs, scores, strict=True):
        expected = np.zeros(layout.unit.n_groups)
        for group in range(layout.unit.n_groups):
            for j in range(group * layout.width, (group + 1) * layout.width):
                expected[group] += (x[:, j].norm() * layout.output.weight[:, j].abs().sum()).item()
        np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_wifv_is_the_variance_of_the_input_times_the_square_of_the_column(family, windows):
    """And for an attention the square of that, as in FLAP's code."""
    prunable = PrunableModel(tiny_model(family))
    inputs = recorded_inputs(prunable, windows)
    stats = collect_statistics(prunable, windows, gram=False, batch_size=2)
    for layout, x, mean, score in zip(prunable.layouts, inputs, stats.means, wifv_scores(prunable, stats), strict=True):
        torch.testing.assert_close(mean, x.mean(dim=0).float(), rtol=1e-4, atol=1e-4)
        columns = x.var(dim=0, unbiased=False) * layout.output.weight.detach().square().sum(dim=0)
        if layout.unit.kind == "attention":
            columns = columns**2
        np.testing.assert_allclose(score, columns.view(-1, layout.width).mean(dim=1).numpy(), rtol=1e-3)


def test_one_column_that_fluctuates_much_outweighs_a_head_that_fluctuates_a_little():
    """By hand: with columns of 1, 1, ... and of 4, 0, 0, ... heads have 1 and 4 / 8, but squared first 1 and 16 / 8."""
    prunable = PrunableModel(tiny_model("llama"))
    variances = torch.cat([torch.ones(8), torch.tensor([4.0]), torch.zeros(7), torch.full((16,), 0.1)])
    with torch.no_grad():
        prunable.layouts[0].output.weight.copy_(torch.eye(32))
    stats = collect_statistics(prunable, torch.ones(1, 2, dtype=torch.int64), gram=False)
    stats.square_norms[0].copy_(variances * stats.n_tokens)
    stats.means[0].zero_()
    np.testing.assert_allclose(wifv_scores(prunable, stats)[0], [1.0, 2.0, 0.01, 0.01], rtol=1e-6)


def test_scores_do_not_depend_on_the_order_of_the_groups(family, windows):
    prunable = PrunableModel(tiny_model(family))
    stats = collect_statistics(prunable, windows)
    scores, fluctuations = wanda_scores(prunable, stats), wifv_scores(prunable, stats)
    prunable.rank(scores)
    for before, after in zip(scores, wanda_scores(prunable, collect_statistics(prunable, windows)), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-4)
    for before, after in zip(fluctuations, wifv_scores(prunable, stats), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-4)
    again = collect_statistics(prunable, windows)
    for before, after in zip(stats.grams, again.grams, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_statistics_are_of_the_dense_model_and_finite(windows):
    prunable = PrunableModel(tiny_model("llama"))
    prunable.rank([np.zeros(unit.n_groups) for unit in prunable.units])
    with (
        prunable.pruned([1] * 6),
        pytest.raises(RuntimeError, match="cannot collect statistics of a model that is pruned"),
    ):
        collect_statistics(prunable, windows)
    with pytest.raises(ValueError, match="calibration windows"):
        collect_statistics(prunable, windows[:0])
    prunable.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp: its activations are not finite"):
        collect_statistics(prunable, windows)
