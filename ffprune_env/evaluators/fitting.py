"""The ridge calibration of a ranked model, from statistics that are there or that are made unit by unit."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ffprune_env.evaluators.ranking import room_for_grams
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import Statistics, drain, stream_grams

logger = logging.getLogger(__name__)

# A regression on fewer tokens than this per column can leave a model worse than it was.
_TOKENS_PER_COLUMN = 4


def fit(
    prunable: PrunableModel,
    stats: Statistics,
    calibration_windows: torch.Tensor,
    settings: EvaluatorSettings,
    openings: torch.Tensor | None = None,
) -> tuple[RidgeCalibration | None, Statistics]:
    """Makes the factors of the calibration, if there is to be one.

    Args:
        prunable: the ranked model.
        stats: of the calibration text; a Gram matrix in it goes when the factors of its unit are made.
        calibration_windows: int64 [n, seq_len], calibration text.
        settings: whether, how strongly held back, and where factors are kept.
        openings: int64 [m, 1], what is calibrated on beside (:mod:`ffprune_env.texts.openings`).

    Returns:
        The calibration, None without one; and the statistics without Gram matrices.
    """
    bare = replace(stats, grams=None)
    if settings.calibration == "none":
        return None, bare
    widest = max(layout.output.in_features for layout in prunable.layouts)
    if calibration_windows.numel() < _TOKENS_PER_COLUMN * widest:
        logger.warning(
            "calibration may fit noise: %d tokens for units of up to %d columns; %d windows would do",
            calibration_windows.numel(),
            widest,
            -(-_TOKENS_PER_COLUMN * widest // calibration_windows.shape[1]),
        )
    matrices = list(stats.grams or ())
    del stats
    room = room_for_grams(prunable)
    grams = drain(matrices) if matrices else stream_grams(prunable, calibration_windows, room, settings.batch_size)
    opened = None if openings is None else stream_grams(prunable, openings, room, None, calibration_windows.shape[1])
    made = RidgeCalibration(prunable, grams, settings.ridge, settings.factor_storage, settings.ridge_scale, opened)
    return made, bare
