"""How many attention sinks a pruned model has lost: a known answer, and a real model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

import ffprune_env as ff
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.sinks import MANY_LOST, lost_sinks

ORDINARY, MARKED = 5, 7


@pytest.fixture
def marking():
    """A model whose first FFN marks one token, by one channel, and two windows: one with that token, one without."""
    model = tiny_model("llama")
    layer = model.model.layers[0]
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.zero_()
        embedding[ORDINARY, 0] = embedding[MARKED, 1] = 1
        layer.self_attn.o_proj.weight.zero_()
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight[3] = 0
            linear.weight[3, 1] = 1
        layer.mlp.down_proj.weight[:, 3] = 100
    return PrunableModel(model), torch.tensor([[ORDINARY] * 8, [MARKED] * 4 + [ORDINARY] * 4])


@pytest.mark.parametrize(("last", "lost"), [(True, 1.0), (False, 0.0)])
def test_what_the_only_channel_that_makes_it_takes_with_it_is_lost(marking, last, lost):
    prunable, windows = marking
    scores = [np.arange(unit.n_groups, dtype=float) for unit in prunable.units]
    scores[1][3] = -1 if last else 100
    prunable.rank(scores)
    kept = np.array([unit.n_groups for unit in prunable.units])
    assert lost_sinks(prunable, kept, None, windows) == 0
    kept[1] -= 1
    assert lost_sinks(prunable, kept, None, windows) == lost


def test_a_model_that_marks_nothing_has_none_to_lose(windows):
    prunable = PrunableModel(tiny_model("llama"))
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    assert lost_sinks(prunable, [1] * len(prunable.units), None, windows) is None


def test_where_all_windows_begin_with_the_same_token_only_that_is_tried(marking):
    prunable, windows = marking
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    kept = [unit.n_groups for unit in prunable.units]
    assert lost_sinks(prunable, kept, None, windows, "always") is None
    assert lost_sinks(prunable, kept, None, windows.flip(0), "always") is not None


@pytest.mark.slow
def test_without_openings_a_calibration_loses_sinks_that_it_keeps_with_them():
    model, tokenizer = ff.load_model("smollm2-135m")
    text = [
        ff.load_windows("python-docs", tokenizer, split=split, seq_len=512, n_windows=32)
        for split in ("calibration", "search")
    ]
    prunable = PrunableModel(model, 32, "balanced")
    kept = np.array([unit.n_groups for unit in prunable.units])
    kept[[0, 6, 8]] = 2  # a third of the heads of layers 0, 3 and 4
    lost = []
    for openings in (None, ff.openings_of(text[0])):
        stats = ff.collect_statistics(prunable, text[0], openings=openings, batch_size=None)
        prunable.rank(ff.wanda_scores(prunable, stats))
        lost.append(lost_sinks(prunable, kept, ff.RidgeCalibration(prunable, stats), text[1]))
    print(f"sinks lost: {lost[0]:.1%} without openings, {lost[1]:.1%} with them")
    assert lost[0] > 5 * MANY_LOST
    assert lost[1] < lost[0] / 4
