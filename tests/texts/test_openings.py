"""Openings: which tokens they are, who sees them, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from plain import plain

from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.lm.cost import counting
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.dense_pass import DensePass
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, stream_grams
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.texts.openings import openings_of

SETTINGS = {"seq_len": 32, "search_windows": 2, "calibration_windows": 4}


def test_they_are_every_so_many_th_token_each_in_a_window_of_its_own():
    windows = torch.arange(20).view(2, 10)
    assert openings_of(windows, 6, "never").tolist() == [[0], [6], [12], [18]]
    assert openings_of(windows, 1, "never").shape == (20, 1)


@pytest.mark.parametrize(("every", "bos"), [(0, "never"), (6, "always")])
def test_there_are_none_if_nobody_asks_or_if_all_windows_begin_with_the_same_token(every, bos):
    assert openings_of(torch.zeros(2, 10, dtype=torch.int64), every, bos) is None


def test_they_cost_as_much_as_their_tokens(windows):
    prunable = PrunableModel(tiny_model("llama"))
    openings = openings_of(windows, 4, "never")
    with counting() as tally:
        list(stream_grams(prunable, openings, 10**9, None, windows.shape[1]))
    assert tally.cost.forward_tokens == len(openings)
    assert tally.cost.forward_passes == len(openings) / windows.shape[1]
    with counting() as tally:
        list(DensePass(prunable, windows, room=0, openings=openings).layers())
    assert tally.cost.forward_tokens == windows.numel() + len(openings)


def test_both_calibrations_of_an_evaluator_see_them(tokenizer, text_file):
    settings = plain(calibration="sequential", openings=3, **SETTINGS)
    evaluator = build_evaluator(tiny_model("llama"), tokenizer, str(text_file), settings)
    kept = [max(1, unit.n_groups // 2) for unit in evaluator.units]
    got = evaluator.final_calibration(kept)
    text = evaluator.texts["calibration"]
    for openings, same in ((openings_of(text, 3), True), (None, False)):
        opened = None if openings is None else collect_statistics(evaluator.prunable, openings)
        ridge = RidgeCalibration(evaluator.prunable, collect_statistics(evaluator.prunable, text), openings=opened)
        assert torch.allclose(evaluator.calibration.weight(1, kept[1]), ridge.weight(1, kept[1]), atol=1e-6) == same
        last = SequentialCalibration(evaluator.calibration, kept, text, openings=openings)
        assert torch.allclose(got.weight(1, kept[1]), last.weight(1, kept[1]), atol=1e-6) == same


def test_the_ridge_fit_is_that_of_both_sums_with_λ_in_the_scale_of_windows(windows):
    prunable = PrunableModel(tiny_model("llama"))
    prunable.rank([np.arange(unit.n_groups)[::-1] for unit in prunable.units])
    stats, opened = (collect_statistics(prunable, text) for text in (windows, 10 * openings_of(windows, 3) % 250))
    got = RidgeCalibration(prunable, stats, 0.1, openings=opened)
    for i, layout in enumerate(prunable.layouts):
        both = (stats.grams[i] + opened.grams[i]).double()
        λ = 0.1 * float(stats.grams[i].diagonal().double().mean())
        m = layout.width
        kept, removed = both[:m, :m] + λ * torch.eye(m, dtype=torch.float64), both[:m, m:]
        weight = layout.output.weight.detach().double()
        expected = weight[:, :m] + weight[:, m:] @ torch.linalg.solve(kept, removed).T
        torch.testing.assert_close(got.weight(i, 1).double(), expected, rtol=1e-4, atol=1e-5)


def test_fewer_than_none_are_refused(tokenizer, text_file):
    with pytest.raises(ValueError, match="--openings must be at least 0, got -1"):
        build_evaluator(tiny_model("llama"), tokenizer, str(text_file), plain(openings=-1, **SETTINGS))
