"""The ridge calibration of a ranked model, from statistics that are there or that are made unit by unit."""

from __future__ import annotations

import logging

import torch

from ffprune_env.evaluators.ranking import room_for_grams
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import drain, stream_grams

logger = logging.getLogger(__name__)

# A regression on fewer tokens than this per column can leave a model worse than it was.
_TOKENS_PER_COLUMN = 4


def fit(
    prunable: PrunableModel,
    grams: list[torch.Tensor],
    calibration_windows: torch.Tensor,
    settings: EvaluatorSettings,
    openings: torch.Tensor | None = None,
) -> RidgeCalibration | None:
    """Makes the factors of the calibration, if there is to be one.

    Args:
        prunable: the ranked model.
        grams: Gram matrices of the calibration text, which are taken off this list one by one, when the factors of
            their unit are made, so that they can be freed; empty where there was no room for all: they are made here.
        calibration_windows: int64 [n, seq_len], calibration text.
        settings: whether, how strongly held back, and where factors are kept.
        openings: int64 [m, 1], what is calibrated on beside (:mod:`ffprune_env.texts.openings`).

    Returns:
        The calibration, None without one.
    """
    if settings.calibration == "none":
        return None
    widest = max(layout.output.in_features for layout in prunable.layouts)
    if calibration_windows.numel() < _TOKENS_PER_COLUMN * widest:
        logger.warning(
            "calibration may fit noise: %d tokens for units of up to %d columns; %d windows would do",
            calibration_windows.numel(),
            widest,
            -(-_TOKENS_PER_COLUMN * widest // calibration_windows.shape[1]),
        )
    # Both are in memory at the same time.
    room = room_for_grams(prunable) // (1 if openings is None else 2)
    made = drain(grams) if grams else stream_grams(prunable, calibration_windows, room, settings.batch_size)
    opened = None if openings is None else stream_grams(prunable, openings, room, None, calibration_windows.shape[1])
    return RidgeCalibration(prunable, made, settings.ridge, settings.factor_storage, settings.ridge_scale, opened)
