"""FastForward Pruning: finds how much of each layer of a language model to keep.

Importing this package registers ``ffprune/PruneBandit-v0`` with Gymnasium, and pruned models with transformers should
that be imported, and nothing more: the public names below are imported, with the libraries they need, when they are
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from ffprune_env.modeling.auto_classes import register_when_imported

if TYPE_CHECKING:
    from ffprune_env.budget.allocation import Allocation
    from ffprune_env.budget.even import ffn_only, uniform
    from ffprune_env.budget.mapping import allocate
    from ffprune_env.budget.units import PruneUnit
    from ffprune_env.env import PruneBanditEnv
    from ffprune_env.evaluators.build import load_evaluator
    from ffprune_env.evaluators.language_model import LMEvaluator
    from ffprune_env.evaluators.protocol import Evaluator
    from ffprune_env.evaluators.surrogate import SurrogateEvaluator
    from ffprune_env.evaluators.zero_shot import evaluate_zero_shot
    from ffprune_env.export.folder import save_pruned
    from ffprune_env.export.model_card import CardFacts
    from ffprune_env.lm.loss import perplexity
    from ffprune_env.lm.models import load_model
    from ffprune_env.lm.pruned_folder import load_pruned
    from ffprune_env.pruning.calibration import RidgeCalibration
    from ffprune_env.pruning.prunable import PrunableModel
    from ffprune_env.pruning.saliency import Statistics, collect_statistics, wanda_scores
    from ffprune_env.pruning.sequential import SequentialCalibration
    from ffprune_env.search.callbacks import ProgressiveSchedulingCallback
    from ffprune_env.search.schedule import ProgressiveSchedule
    from ffprune_env.texts.windows import load_windows

_HOME = {
    "Allocation": "budget.allocation",
    "CardFacts": "export.model_card",
    "Evaluator": "evaluators.protocol",
    "LMEvaluator": "evaluators.language_model",
    "ProgressiveSchedule": "search.schedule",
    "ProgressiveSchedulingCallback": "search.callbacks",
    "PrunableModel": "pruning.prunable",
    "PruneBanditEnv": "env",
    "PruneUnit": "budget.units",
    "RidgeCalibration": "pruning.calibration",
    "SequentialCalibration": "pruning.sequential",
    "Statistics": "pruning.saliency",
    "SurrogateEvaluator": "evaluators.surrogate",
    "allocate": "budget.mapping",
    "collect_statistics": "pruning.saliency",
    "evaluate_zero_shot": "evaluators.zero_shot",
    "ffn_only": "budget.even",
    "load_evaluator": "evaluators.build",
    "load_model": "lm.models",
    "load_pruned": "lm.pruned_folder",
    "load_windows": "texts.windows",
    "perplexity": "lm.loss",
    "save_pruned": "export.folder",
    "uniform": "budget.even",
    "wanda_scores": "pruning.saliency",
}

__all__ = [
    "Allocation",
    "CardFacts",
    "Evaluator",
    "LMEvaluator",
    "ProgressiveSchedule",
    "ProgressiveSchedulingCallback",
    "PrunableModel",
    "PruneBanditEnv",
    "PruneUnit",
    "RidgeCalibration",
    "SequentialCalibration",
    "Statistics",
    "SurrogateEvaluator",
    "allocate",
    "collect_statistics",
    "evaluate_zero_shot",
    "ffn_only",
    "load_evaluator",
    "load_model",
    "load_pruned",
    "load_windows",
    "perplexity",
    "save_pruned",
    "uniform",
    "wanda_scores",
]
__version__ = "0.1.0"

register_when_imported()
gym.register(id="ffprune/PruneBandit-v0", entry_point="ffprune_env.env:make_prune_bandit")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
