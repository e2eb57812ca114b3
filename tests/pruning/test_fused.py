"""Gate and up in one matrix: cut as two views while the model is pruned, and the same module outside."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_head import tiny

from ffprune_env.lm.loss import window_losses
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.linear_from import linear_from
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.units import find_units

FUSED = {"phi3": {"num_key_value_heads": 2}, "glm": {"head_dim": 8, "num_key_value_heads": 2}}


@pytest.fixture(params=FUSED)
def model(request):
    return tiny(request.param, **FUSED[request.param])


def ranked(model, windows):
    prunable = PrunableModel(model)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, stats


def test_the_model_is_the_same_outside(model, windows):
    names, losses = [name for name, _ in model.named_modules()], window_losses(model, windows)
    prunable, _ = ranked(model, windows)
    torch.testing.assert_close(window_losses(model, windows), losses)
    assert sum(unit.kind == "ffn" for unit in prunable.units) == 3
    assert len(prunable.whole) == (3 if model.config.model_type == "phi3" else 0)
    ranked_losses, weights = window_losses(model, windows), [p.data_ptr() for p in model.parameters()]
    kept = [unit.n_groups // 2 for unit in prunable.units]
    with prunable.pruned(kept):
        gone = sum(unit.group_params * (unit.n_groups - k) for unit, k in zip(prunable.units, kept, strict=True))
        assert sum(parameter.numel() for parameter in model.parameters()) == prunable.n_params - gone
        first, second = (x.weight for x in prunable.layouts[-1].inputs)
        assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()  # views, no copies
    assert [name for name, _ in model.named_modules()] == names
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert torch.equal(window_losses(model, windows), ranked_losses)


def test_what_is_cut_is_what_is_masked(model, windows):
    before = copy.deepcopy(model)
    prunable, stats = ranked(model, windows)
    kept = np.array([unit.n_groups // 2 for unit in prunable.units])
    for unit, members in zip(prunable.units, prunable.kept_groups(kept), strict=True):
        module = before.get_submodule(unit.name)
        output = module.down_proj if unit.kind == "ffn" else module.o_proj
        gone = np.setdiff1d(np.arange(unit.n_groups), members)
        output.weight.data.view(32, unit.n_groups, -1)[:, gone] = 0
    with prunable.pruned(kept):
        torch.testing.assert_close(window_losses(model, windows), window_losses(before, windows))
    first = RidgeCalibration(prunable, stats)
    for calibration in (first, SequentialCalibration(first, kept, windows)):
        with prunable.pruned(kept, calibration):
            assert torch.isfinite(window_losses(model, windows)).all()


def test_a_model_that_was_cast_after_it_was_wrapped_is_cut_as_it_is_now(windows):
    model = tiny("phi3", **FUSED["phi3"])
    prunable, _ = ranked(model, windows)
    model.float()
    with prunable.pruned([4, 4, 4]):
        losses = window_losses(model, windows)
        assert prunable.layouts[0].inputs[0].weight.dtype == torch.float32
    assert torch.isfinite(losses).all()


def test_what_is_fused_is_named():
    model = tiny("phi3", **FUSED["phi3"])
    whole = PrunableModel(model).whole
    assert whole[0] == "model.layers.0.self_attn.qkv_proj holds queries, keys and values in one matrix"
    model = tiny("phi3", **FUSED["phi3"])
    model.model.layers[1].mlp.gate_up_proj = linear_from(torch.randn(40, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp: gate_up_proj does not hold as many gates and channels"):
        find_units(model)
