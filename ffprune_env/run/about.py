"""What ``best.json`` and the model card tell beside the figures of an answer: of which model and which texts it is."""

from __future__ import annotations

from typing import Any

import torch

from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.model_card import CardFacts


def told_beside(
    model: str,
    text: str,
    tested_on: str,
    settings: EvaluatorSettings,
    evaluator: LMEvaluator,
    test_windows: torch.Tensor,
) -> tuple[dict[str, Any], CardFacts]:
    """What is known before anything is measured.

    Args:
        model: name of the dense model.
        text: what is searched on.
        tested_on: where test text comes from.
        settings: how the evaluator ranks and calibrates.
        evaluator: the model, its search text and its calibration.
        test_windows: int64 [n, seq_len].

    Returns:
        Items of ``best.json``, and facts for the model card.
    """
    calibrated_on = settings.calibration_text or text
    about = {
        "model": model, "text": text, "calibration_text": calibrated_on, "test_text": tested_on,
        "ridge": settings.ridge, "ridge_scale": settings.ridge_scale, "calibration_asked": settings.calibration,
    }  # fmt: skip
    calibration_windows = evaluator.texts["calibration"]
    return about, CardFacts.of(model, tested_on, test_windows, calibrated_on, calibration_windows, evaluator.bos)
