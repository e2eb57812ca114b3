"""Openings: which tokens they are, who sees them, and what they cost."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from plain import plain

from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.lm.cost import counting
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.dense_pass import DensePass
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
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
        collect_statistics(prunable, windows, openings=openings)
    assert tally.cost.forward_tokens == windows.numel() + len(openings)
    assert tally.cost.forward_passes == len(windows) + len(openings) / windows.shape[1]
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
        stats = collect_statistics(evaluator.prunable, text, openings=openings)
        ridge = RidgeCalibration(evaluator.prunable, stats)
        assert torch.allclose(evaluator.calibration.weight(1, kept[1]), ridge.weight(1, kept[1]), atol=1e-6) == same
        last = SequentialCalibration(evaluator.calibration, kept, text, openings=openings)
        assert torch.allclose(got.weight(1, kept[1]), last.weight(1, kept[1]), atol=1e-6) == same


def test_fewer_than_none_are_refused(tokenizer, text_file):
    with pytest.raises(ValueError, match="--openings must be at least 0, got -1"):
        build_evaluator(tiny_model("llama"), tokenizer, str(text_file), plain(openings=-1, **SETTINGS))
