"""A model of which some attention cannot be cut exactly: FFNs alone are pruned, from calibration to reports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_head import tiny
from torch import nn

from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.comparison.filling import Filling
from ffprune_env.comparison.plan import Key
from ffprune_env.export.model_card import CardFacts, model_card
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.layer_calls import require_residual_layers
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.stored_order import order_as_json, order_from_json
from ffprune_env.pruning.units import find_units
from ffprune_env.run.measuring import baselines
from ffprune_env.run.plots import retention_plot


def with_sinks(*layers, seed=0):
    """A tiny Llama that keeps something of its heads beside the projections, and does nothing with it."""
    model = tiny_model("llama-gqa", seed)
    for layer in layers:
        model.model.layers[layer].self_attn.sinks = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    return model


def ranked(model, windows):
    prunable = PrunableModel(model)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    return prunable, RidgeCalibration(prunable, stats)


def kept_of(prunable, ffn=16):
    return np.array([ffn if unit.kind == "ffn" else unit.n_groups for unit in prunable.units])


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
def test_calibration_in_sequence_corrects_the_ffns(layers, windows):
    whole, first = ranked(with_sinks(*layers), windows)
    assert [unit.layer for unit in whole.units if unit.kind == "attention"] == [x for x in range(3) if x not in layers]
    cut, other = ranked(tiny_model("llama-gqa"), windows)
    kept = kept_of(whole)
    ours, theirs = SequentialCalibration(first, kept, windows), SequentialCalibration(other, kept_of(cut), windows)
    # Before the first FFN nothing is wrong that an attention could correct: there both are the same.
    place = [unit.name for unit in whole.units].index("model.layers.0.mlp")
    torch.testing.assert_close(ours.weight(place, 16), theirs.weight(1, 16))
    for i, layout in enumerate(whole.layouts):
        changed = not torch.allclose(ours.weight(i, int(kept[i])), first.weight(i, int(kept[i])))
        assert changed == (layout.unit.kind == "ffn" or layout.unit.layer > 0)
    nothing = SequentialCalibration(first, [unit.n_groups for unit in whole.units], windows)
    for i, layout in enumerate(whole.layouts):
        torch.testing.assert_close(nothing.weight(i, layout.unit.n_groups), layout.output.weight.data)


def test_what_the_ffn_gives_must_be_what_is_added(windows):
    model = with_sinks(0, 1, 2)
    require_residual_layers(model, find_units(model), windows)
    model = tiny("olmo2")  # norms behind its FFNs
    with pytest.raises(ValueError, match="its layers are not h"):
        require_residual_layers(model, find_units(model), windows)


def test_ffn_only_is_uniform_and_stands_once():
    units = PrunableModel(with_sinks(0, 1, 2)).units
    np.testing.assert_array_equal(uniform(0.3, units).kept, ffn_only(0.3, units).kept)
    assert list(baselines(0.3, units)) == ["uniform"]
    assert list(baselines(0.3, PrunableModel(with_sinks(0)).units)) == ["uniform", "ffn-only"]
    assert len(retention_plot(units, {"uniform": uniform(0.3, units).rates}).axes) == 1


@pytest.mark.parametrize(
    ("kinds", "methods", "wanted"),
    [
        (["ffn", "ffn"], ["uniform", "ffn-only", "fisher"], ["uniform", "fisher"]),
        (["ffn", "ffn"], ["ffn-only"], ["ffn-only"]),
        (["attention", "ffn", "ffn"], ["uniform", "ffn-only"], ["uniform", "ffn-only"]),
        (None, ["uniform", "ffn-only"], ["uniform", "ffn-only"]),
    ],
)
def test_a_comparison_measures_the_same_once(kinds, methods, wanted):
    folder = SimpleNamespace(dense=None if kinds is None else {"units": [{"kind": kind} for kind in kinds]})
    filling = SimpleNamespace(keys=[Key(method, 0.3, None) for method in methods])
    assert [key.method for key in Filling.wanted(filling, folder)] == wanted


def test_a_card_says_which_attention_is_whole(windows):
    prunable, _ = ranked(with_sinks(1), windows)
    lines = model_card(prunable, kept_of(prunable, ffn=12), None, CardFacts()).splitlines()
    whole, cut = (next(line for line in lines if line.startswith(f"    {layer}  ")) for layer in (1, 2))
    assert whole.split() == ["1", "whole", "█" * 10, "12/24"]
    assert cut.split() == ["2", "█" * 20, "4/4", "█" * 10, "12/24"]
    assert whole.index("12/24") == cut.index("12/24")


def test_an_order_on_disk_is_of_what_was_cut(windows, tmp_path):
    """Of some attention nobody knows that it stays whole before the model runs."""
    model = tiny("diffllama")
    prunable, _ = ranked(model, windows)
    content = order_as_json(prunable)
    assert list(content) == [f"model.layers.{layer}.mlp" for layer in range(3)]
    order = order_from_json(content, tiny("diffllama"), tmp_path, "start again")
    for members, expected in zip(order, prunable.order, strict=True):
        np.testing.assert_array_equal(members, expected)
