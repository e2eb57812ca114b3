"""Heads and channels of a model put in order, on calibration text; and a check that this changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy.typing as npt
import torch

from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.same_model import rounding_tolerance
from ffprune_env.pruning.criteria import CRITERIA, Evidence
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import Statistics, collect_statistics, gram_bytes, stream_grams
from ffprune_env.texts.spread import spread_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Gram matrices may take this many times the memory of the model before they are made in several runs.
_GRAMS_PER_MODEL = 1.5
# Calibration text for criteria that look at gradients; a token costs a forward and a backward pass.
_GRADIENT_TOKENS = 8192


def rank(
    prunable: PrunableModel,
    calibration_windows: torch.Tensor,
    settings: EvaluatorSettings,
    order: Sequence[npt.ArrayLike] | None = None,
) -> Statistics:
    """Puts heads and channels in the order that the criterion gives them.

    Args:
        prunable: the model, dense and never ranked.
        calibration_windows: int64 [n, seq_len], calibration text.
        settings: which criterion, and which calibration is to follow.
        order: see :func:`~ffprune_env.evaluators.build.build_evaluator`; the criterion is not asked then.

    Returns:
        Statistics of the calibration text, with Gram matrices if a calibration is to follow and there is room.
    """
    criterion = CRITERIA[settings.criterion]
    gradients = None
    if criterion.gradients and order is None:
        looked_at = spread_windows(calibration_windows, _GRADIENT_TOKENS)
        gradients = collect_gradients(prunable, looked_at, criterion.outputs, criterion.carried)
    room = room_for_grams(prunable)
    at_once = settings.calibration != "none" and gram_bytes(prunable) <= room
    stats = collect_statistics(prunable, calibration_windows, gram=at_once, batch_size=settings.batch_size)
    if order is not None:
        prunable.rank_as(order)
        return stats
    evidence = Evidence(
        stats,
        gradients,
        grams=lambda: stats.grams or stream_grams(prunable, calibration_windows, room, settings.batch_size),
        ridge=settings.ridge,
        ridge_scale=settings.ridge_scale,
    )
    prunable.rank(criterion.score(prunable, evidence))
    return stats


def require_same_perplexity(model: PreTrainedModel, window: torch.Tensor, before: float) -> None:
    """Refuses a model that ranking changed: what was tried on a few tokens can be otherwise far into a window.

    Args:
        model: the ranked model.
        window: int64 [1, seq_len], text.
        before: its perplexity there before it was ranked.

    Raises:
        ValueError: it is another one now, by more than rounding.
    """
    after = perplexity(model, window)
    if not abs(math.log(after / before)) <= rounding_tolerance(model.dtype) and math.isfinite(before):
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: on {window.shape[1]} tokens of text its perplexity is "
            f"{before:.4f}, and {after:.4f} with heads and channels in another order"
        )


def room_for_grams(prunable: PrunableModel) -> int:
    """Bytes that Gram matrices may take at one time: by the size of the model, and on GPUs half of what is free."""
    room = int(_GRAMS_PER_MODEL * prunable.model.get_memory_footprint())
    gpus = {layout.device for layout in prunable.layouts if layout.device.type == "cuda"}
    return min(room, sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) // 2) if gpus else room
