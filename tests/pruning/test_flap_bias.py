"""FLAP's compensation: the mean of what was removed stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores


@pytest.fixture
def prepared(family: str, windows: torch.Tensor) -> tuple[PrunableModel, FlapBias]:
    prunable = PrunableModel(tiny_model(family))
    stats = collect_statistics(prunable, windows, gram=False)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, FlapBias(prunable, stats)


def outputs(prunable: PrunableModel, windows: torch.Tensor) -> list[torch.Tensor]:
    """Mean output of every output projection over all tokens."""
    seen, hooks = [], []
    for layout in prunable.layouts:
        hooks.append(layout.output.register_forward_hook(lambda *args: seen.append(args[2].flatten(0, -2).mean(0))))
    with torch.no_grad():
        prunable.model(windows)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_mean_output_of_the_first_pruned_unit_is_the_dense_one(prepared, windows):
    """What comes before the unit is whole, so its inputs are those that the means were taken of."""
    prunable, bias = prepared
    dense = outputs(prunable, windows)
    for i in range(len(prunable.units)):
        kept = np.array([unit.n_groups for unit in prunable.units])
        kept[i] = max(1, kept[i] // 2)
        with prunable.pruned(kept, bias):
            compensated = outputs(prunable, windows)[i]
        with prunable.pruned(kept):
            cut = outputs(prunable, windows)[i]
        torch.testing.assert_close(compensated, dense[i], rtol=1e-4, atol=1e-4)
        assert (cut - dense[i]).abs().max() > 1e-3


def test_dense_again_bit_for_bit(prepared, windows):
    prunable, bias = prepared
    names = [name for name, _ in prunable.model.named_parameters()]
    with torch.no_grad():
        before = prunable.model(windows).logits
        with prunable.pruned([2, 10] * 3, bias):
            pass
        after = prunable.model(windows).logits
    assert torch.equal(before, after)
    assert [name for name, _ in prunable.model.named_parameters()] == names


def test_ranking_again_makes_it_void(prepared):
    prunable, bias = prepared
    prunable.rank([np.zeros(unit.n_groups) for unit in prunable.units])
    with pytest.raises(RuntimeError, match="make another"), prunable.pruned([2, 10] * 3, bias):
        pass
