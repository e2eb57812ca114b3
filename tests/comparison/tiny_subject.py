"""A tiny model that methods are compared on."""

from __future__ import annotations

import torch

import ffprune_env as ff
from ffprune_env.comparison.subject import Subject
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores


def subject_of(model, windows: torch.Tensor) -> Subject:
    """A calibrated model; test text is what it is calibrated on, which no test here minds."""
    prunable = PrunableModel(model)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    texts = {"finalists": windows.flip(1), "curves": windows, "calibration": windows}
    evaluator = LMEvaluator(prunable, windows, 1, ff.RidgeCalibration(prunable, stats), True, stats, texts=texts)
    plain = LMEvaluator(prunable, windows, 1, evaluator.calibration, False, stats, texts=texts)
    return Subject(evaluator, plain, windows, windows)
