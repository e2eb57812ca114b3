"""The criteria by name: ways to score heads and channels of the dense model (docs/design.md, 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.pruning.gradients import GradientStatistics
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.ridge import RidgeScale
from ffprune_env.pruning.saliency import Statistics, wanda_scores, wifv_scores
from ffprune_env.pruning.surgeon import surgeon_scores


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        stats: moments of the inputs of the output projections.
        gradients: moments of the gradients at their outputs; None for criteria that need none.
        grams: makes G of every unit in turn, in original column order.
        ridge: λ of the calibration to come.
        ridge_scale: its unit.
    """

    stats: Statistics
    gradients: GradientStatistics | None
    grams: Callable[[], Iterable[torch.Tensor]]
    ridge: float
    ridge_scale: RidgeScale = "relative"


@dataclass(frozen=True)
class Criterion:
    """A way to score heads and channels.

    Attributes:
        score: makes N arrays of [n_members] scores, in original order.
        gradients: whether it needs backward passes.
        outputs: whether it needs F, the second moments of the gradients.
        carried: whether it needs what every head and channel carries of the loss.
    """

    score: Callable[[PrunableModel, Evidence], list[FloatArray]]
    gradients: bool = False
    outputs: bool = False
    carried: bool = False


def taylor_scores(gradients: GradientStatistics) -> list[FloatArray]:
    """E[(Σ_{j in head} x_j (Wᵀg)_j)²]: the loss that a head or channel carries, instead of the output it moves.

    Args:
        gradients: of the dense model.

    Returns:
        N arrays, [n_members] each, in original order.
    """
    if gradients.carried is None:
        raise ValueError("taylor looks at what heads and channels carry: collect gradients with carried=True")
    return [carried.double().cpu().numpy() for carried in gradients.carried]


def average_ranks(first: list[FloatArray], second: list[FloatArray]) -> list[FloatArray]:
    """Scores every head or channel by the mean of its places in two orders, 0 for the lowest."""
    return [(_places(one) + _places(other)) / 2 for one, other in zip(first, second, strict=True)]


def _places(scores: FloatArray) -> FloatArray:
    places = np.empty(len(scores))
    places[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return places


def _gradients(evidence: Evidence) -> GradientStatistics:
    if evidence.gradients is None:
        raise ValueError("this criterion looks at gradients: collect them first")
    return evidence.gradients


def _surgeon(prunable: PrunableModel, evidence: Evidence) -> list[FloatArray]:
    outputs = _gradients(evidence).outputs
    if outputs is None:
        raise ValueError("surgeon looks at the second moments of the gradients: collect them first")
    return surgeon_scores(prunable, evidence.grams(), outputs, evidence.ridge, evidence.ridge_scale)


#: Ways to score heads and channels, by the name that flags use.
CRITERIA: dict[str, Criterion] = {
    "wanda": Criterion(lambda prunable, evidence: wanda_scores(prunable, evidence.stats)),
    "wifv": Criterion(lambda prunable, evidence: wifv_scores(prunable, evidence.stats)),
    "taylor": Criterion(lambda prunable, evidence: taylor_scores(_gradients(evidence)), gradients=True, carried=True),
    "wanda+taylor": Criterion(
        lambda prunable, evidence: average_ranks(
            wanda_scores(prunable, evidence.stats), taylor_scores(_gradients(evidence))
        ),
        gradients=True,
        carried=True,
    ),
    "surgeon": Criterion(_surgeon, gradients=True, outputs=True),
}
