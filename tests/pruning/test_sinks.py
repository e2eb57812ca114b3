"""How many attention sinks a pruned model has lost: a known answer, and a real model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

import ffprune_env as ff
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.sinks import MANY_LOST, find_sinks, lost_sinks

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
    sinks = find_sinks(prunable.model, windows)
    assert sinks.openings.flatten().tolist() == [MARKED] * 4
    assert lost_sinks(sinks, prunable.model) == 0
    kept = np.array([unit.n_groups for unit in prunable.units])
    kept[1] -= 1
    with prunable.pruned(kept) as model:
        assert lost_sinks(sinks, model) == lost


@pytest.mark.parametrize(("part", "lost"), [(0.4, 0.0), (0.01, 1.0)])
def test_a_smaller_mark_is_one_as_long_as_it_stands_out(marking, part, lost):
    prunable, windows = marking
    sinks = find_sinks(prunable.model, windows)
    with torch.no_grad():
        prunable.model.model.layers[0].mlp.down_proj.weight[:, 3] *= part
    assert lost_sinks(sinks, prunable.model) == lost


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_mark(marking, broken):
    prunable, windows = marking
    sinks = find_sinks(prunable.model, windows)
    with torch.no_grad():
        prunable.model.model.layers[0].mlp.down_proj.weight.fill_(broken)
    assert lost_sinks(sinks, prunable.model) == 1


def test_a_model_that_marks_nothing_has_none_to_lose(windows):
    assert find_sinks(tiny_model("llama"), windows) is None


def test_where_all_windows_begin_with_the_same_token_only_that_is_tried(marking):
    prunable, windows = marking
    assert find_sinks(prunable.model, windows, "always") is None


@pytest.mark.slow
def test_without_openings_a_calibration_loses_sinks_that_it_keeps_with_them():
    model, tokenizer = ff.load_model("smollm2-135m")
    text = [
        ff.load_windows("python-docs", tokenizer, split=split, seq_len=512, n_windows=32)
        for split in ("calibration", "search")
    ]
    prunable = PrunableModel(model, 32, "balanced")
    sinks = find_sinks(model, text[1])
    kept = np.array([unit.n_groups for unit in prunable.units])
    kept[[0, 6, 8]] = 2  # a third of the heads of layers 0, 3 and 4
    lost = []
    for openings in (None, ff.openings_of(text[0])):
        stats = ff.collect_statistics(prunable, text[0], batch_size=None)
        opened = None if openings is None else ff.collect_statistics(prunable, openings, batch_size=None)
        prunable.rank(ff.wanda_scores(prunable, stats))
        with prunable.pruned(kept, ff.RidgeCalibration(prunable, stats, openings=opened)):
            lost.append(lost_sinks(sinks, model))
    print(f"sinks lost: {lost[0]:.1%} without openings, {lost[1]:.1%} with them")
    assert lost[0] > 5 * MANY_LOST
    assert lost[1] < lost[0] / 4
